"""Likelihoods of surveys and market shares as an objective: mean utilities are found at every theta.

With the negative log likelihoods of the survey and of everybody else, L(delta, theta), and exogeneity restrictions
``Pi(delta) = || K'(delta - offset) ||^2 / 2`` (Grieco, Murry, Pinkse and Sagl 2023) objectives and equations are

    cler               L + Pi          L_delta + Pi_delta = 0
    cheap              L + Pi          L_delta = 0
    mdle               L               L_delta = 0
    share-constrained  L of the survey pi(delta, theta) = shares of everybody else

The Hessian of L in delta is block diagonal, and K has few columns: Newton steps take a solution for each market and one
of as many equations as K has columns. The objective's derivatives follow from the implicit function theorem: with
``D = d delta / d theta`` and multipliers mu of what delta solves, the Hessian is that of the Lagrangian along D.

Optimisers of the library are led by residuals. Those of a likelihood are ``r = (J'^{-1} g / 2, rest)`` with the
gradient g and ``J'J = H / 2``, for the exact Hessian H where that is positive definite: Gauss-Newton steps are Newton
steps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.economy.buckets import Economy
from blpjax.economy.respondents import Others, Respondents
from blpjax.exceptions import Status, succeeded
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels import linear_algebra
from blpjax.model.inversion import Inversion, invert_economy
from blpjax.model.likelihood import (
    ShareTerms,
    TastesAt,
    Terms,
    expected_value_terms,
    share_likelihood_terms,
    share_terms,
    survey_terms,
)
from blpjax.model.parameters import Coefficients, ParameterLayout, expand
from blpjax.model.tastes import market_tastes
from blpjax.objective.moments import Evaluation

#: Newton's method in mean utilities: what a last step may be, how many there are, and the largest damping.
_STEP, _STEPS, _DAMPING = 1e-9, 200, 1e10

#: Relative error of a log likelihood, for its number of people: smaller decreases mean nothing.
_NOISE = 1e-14

#: Eigenvalues of the scaled Hessian are at least this next to the largest in the model that leads optimisers.
_FLAT = 1e-8


class LikelihoodSpecification(NamedTuple):
    """What decides which programs are compiled (static): the inversion is that of share-constrained likelihoods."""

    layout: ParameterLayout
    estimator: str
    method: FixedPointMethod


class LikelihoodEvaluation(Evaluation):
    """An `Evaluation` with the `hessian` (P, P), exact but for the cheap estimator: that lacks curvature of delta."""

    hessian: Float[Any, "P P"] | None = None


class Information(eqx.Module):
    """Second derivatives of the log likelihoods in mean utilities, by bucket, in both, and in theta, and `by_theta`.

    `cross` is (N, P). The last is ``d delta / d theta``, for given shares where these are constraints.
    """

    blocks: tuple[Float[Any, "..."], ...]
    cross: Float[Any, "N P"]
    theta_hessian: Float[Any, "P P"]
    by_theta: Float[Any, "N P"]


class _Search(NamedTuple):
    """Newton's method in mean utilities: the best point, with derivatives, and how it goes on."""

    delta: Array
    value: Array
    gradient: Array
    blocks: tuple[Array, ...]
    damping: Array
    step: Array
    steps: Array
    evaluations: Array
    status: Array


class Likelihood(eqx.Module):
    """The objective as a function of theta (P,) and of where mean utilities start (N,).

    Attributes
    ----------
    economy : markets with observed shares. people, others : respondents and everybody else, by bucket.
    restrictions : K (N, L), without columns where there are none. offset : (N,) what fixed elements of beta explain.
    fixed : values of parameters that are not estimated. limits : of inversions.
    rest : (N,) shares among everybody else. count : what squares of residuals are divided by.
    """

    specification: LikelihoodSpecification = eqx.field(static=True)
    economy: Economy
    people: tuple[Respondents, ...]
    others: tuple[Others, ...]
    restrictions: Float[Any, "N L"]
    offset: Float[Any, " N"]
    fixed: Coefficients
    limits: FixedPointLimits
    rest: Float[Any, " N"]
    count: Float[Any, ""]

    @property
    def layout(self) -> ParameterLayout:
        """Where the elements of theta belong."""
        return self.specification.layout

    def evaluate(self, theta: Float[Array, " P"], start: Float[Any, " N"]) -> LikelihoodEvaluation:
        """The objective with derivatives, at the mean utilities that are found from `start`."""
        inversion = self._find_delta(theta, start)
        return self.evaluate_at(theta, inversion)

    def value(self, theta: Float[Array, " P"], start: Float[Any, " N"]) -> LikelihoodEvaluation:
        """The objective without derivatives in theta, which are NaN, at the mean utilities that are found."""
        inversion, P = self._find_delta(theta, start), theta.size
        parts = self._terms if self._joint else self._survey
        value: Any = sum(part.value for part in parts(theta, inversion.delta, in_theta=False))
        if self._joint:
            left = self.restrictions.T @ (inversion.delta - self.offset)
            value = value + 0.5 * left @ left
        ok = succeeded(inversion.status).all() & jnp.isfinite(value)
        unknown = jnp.full((inversion.delta.size, P), jnp.nan)
        return LikelihoodEvaluation(
            objective=jnp.where(ok, value, jnp.nan),
            gradient=unknown[0],
            residuals=jnp.full(P + 1 if P else 1, jnp.nan),
            residual_jacobian=jnp.full((P + 1 if P else 1, P), jnp.nan),
            delta_by_theta=unknown,
            xi_by_theta=unknown,
            omega_by_theta=None,
            inversion=inversion,
            costs=None,
            ok=ok,
            hessian=jnp.full((P, P), jnp.nan),
        )

    def evaluate_at(self, theta: Float[Array, " P"], inversion: Inversion) -> LikelihoodEvaluation:
        """The same where mean utilities are known."""
        delta, estimator = inversion.delta, self.specification.estimator
        if estimator == "share-constrained":
            value, gradient, hessian, by_theta = self._constrained(theta, delta)
        else:
            value, gradient, hessian, by_theta = self._concentrated(theta, delta)
        ok = succeeded(inversion.status).all() & jnp.isfinite(value) & jnp.isfinite(gradient).all()
        ok = ok & jnp.isfinite(hessian).all()
        residuals, jacobian = _residuals(value, gradient, hessian, self.count)
        return LikelihoodEvaluation(
            objective=jnp.where(ok, value, jnp.nan),
            gradient=gradient,
            residuals=residuals,
            residual_jacobian=jacobian,
            delta_by_theta=by_theta,
            xi_by_theta=by_theta,
            omega_by_theta=None,
            inversion=inversion,
            costs=None,
            ok=ok,
            hessian=hessian,
        )

    def information(self, theta: Float[Array, " P"], delta: Float[Array, " N"]) -> Information:
        """Second derivatives of the negative log likelihoods of the survey and of everybody else."""
        terms = self._terms(theta, delta, in_theta=True)
        cross = self.economy.gather([part.cross for part in terms])
        blocks = tuple(part.hessian for part in terms)
        by_theta = self._slopes(blocks, cross) if self._joint else self._share_slopes(theta, delta)[1]
        return Information(blocks, cross, sum(part.theta_hessian for part in terms), by_theta)

    def curvature(self, theta: Float[Array, " P"], delta: Float[Array, " N"]) -> Float[Array, "P P"]:
        """What the Hessian of an evaluation of the cheap estimator lacks: how ``d delta / d theta`` moves."""
        terms = self._terms(theta, delta, in_theta=True)
        blocks = tuple(part.hessian for part in terms)
        D = -self._solve_blocks(blocks, self.economy.gather([part.cross for part in terms]))
        K = self.restrictions
        mu = self._solve_blocks(blocks, (K @ (K.T @ (delta - self.offset)))[:, None])[:, 0]

        def slopes(delta: Array, theta: Array) -> Array:
            found = self._terms(theta, delta, in_theta=True)
            products = [
                jnp.einsum("tjk,tkp->tjp", part.hessian, own)
                for part, own in zip(found, self.economy.scatter(D), strict=True)
            ]
            return mu @ (self.economy.gather(products) + self.economy.gather([part.cross for part in found]))

        _, push = jax.linearize(slopes, delta, theta)
        rows = jax.lax.map(lambda pair: push(*pair), (D.T, jnp.eye(theta.size)))
        return -(rows + rows.T) / 2

    @property
    def _joint(self) -> bool:
        """Whether mean utilities maximise a likelihood."""
        return self.specification.estimator != "share-constrained"

    @property
    def _inner(self) -> Float[Any, "N L"]:
        """Restrictions that mean utilities take into account."""
        return self.restrictions if self.specification.estimator == "cler" else self.restrictions[:, :0]

    def tastes(self, survey: bool) -> TastesAt:
        """Tastes as a function of theta, of respondents or of the problem's agents."""
        layout = self.layout
        if survey:
            layout = layout._replace(node_columns=tuple(range(len(layout.sigma_columns))))
        return lambda theta: market_tastes(expand(self.layout, self.fixed, theta), layout)

    def _concentrated(self, theta: Array, delta: Array) -> tuple[Array, Array, Array, Array]:
        """Objective, gradient, Hessian and ``d delta / d theta`` where mean utilities maximise a likelihood."""
        terms = self._terms(theta, delta, in_theta=True)
        blocks, K = tuple(part.hessian for part in terms), self.restrictions
        cross = self.economy.gather([part.cross for part in terms])
        D = self._slopes(blocks, cross)
        left = K.T @ (delta - self.offset)
        value = sum(part.value for part in terms) + 0.5 * left @ left
        gradient: Any = sum(part.by_theta for part in terms)
        hessian: Any = sum(part.theta_hessian for part in terms)
        hessian = hessian + cross.T @ D
        if self.specification.estimator == "cheap":
            moved = K.T @ D
            gradient, hessian = gradient + moved.T @ left, hessian + moved.T @ moved
        return value, gradient, (hessian + hessian.T) / 2, D

    def _constrained(self, theta: Array, delta: Array) -> tuple[Array, Array, Array, Array]:
        """The same where simulated shares are those of everybody else."""
        economy, survey = self.economy, self._survey(theta, delta, in_theta=True)
        shares, D = self._share_slopes(theta, delta)
        by_delta = economy.gather([part.gradient for part in survey])
        systems = tuple(part.by_delta.swapaxes(1, 2) for part in shares)
        mu = self._solve_blocks(systems, by_delta[:, None])[:, 0]
        held = [
            expected_value_terms(bucket, own, self.tastes(False), theta, mean)
            for bucket, own, mean in zip(economy.buckets, economy.scatter(mu), economy.scatter(delta), strict=True)
        ]
        parts = [jax.tree.map(lambda a, b: a - b, one, two) for one, two in zip(survey, held, strict=True)]
        cross = economy.gather([part.cross for part in parts])
        along: Any = sum(part.theta_hessian for part in parts)
        for part, own in zip(parts, economy.scatter(D), strict=True):
            along = along + jnp.einsum("tjp,tjk,tkq->pq", own, part.hessian, own)
        hessian = along + cross.T @ D + D.T @ cross
        gradient: Any = sum(part.by_theta for part in survey)
        return (
            jnp.asarray(sum(part.value for part in survey)),
            gradient + D.T @ by_delta,
            (hessian + hessian.T) / 2,
            D,
        )

    def _find_delta(self, theta: Array, start: Array) -> Inversion:
        economy = self.economy
        if not self._joint:
            X2 = economy.gather([bucket.X2 for bucket in economy.buckets])
            return invert_economy(
                economy.with_products(self.rest, X2),
                self.tastes(False)(theta),
                start,
                self.limits,
                self.specification.method,
            )
        found = jax.lax.while_loop(
            lambda s: s.status == _RUNNING, lambda s: self._newton_step(theta, s), self._begin(theta, start)
        )
        everywhere = jnp.zeros(economy.market_positions.shape, int)
        return Inversion(
            status=everywhere + found.status,
            iterations=everywhere + found.steps,
            evaluations=everywhere + found.evaluations,
            residuals=everywhere + found.step,
            delta=found.delta,
            clipped=jnp.zeros(economy.positions.shape, bool),
        )

    def _begin(self, theta: Array, start: Array) -> _Search:
        value, gradient, blocks = self._inner_terms(theta, start)
        zero = jnp.zeros((), int)
        fine = jnp.isfinite(value) & jnp.isfinite(gradient).all()
        status = jnp.where(fine, _RUNNING, int(Status.NOT_FINITE))
        return _Search(start, value, gradient, blocks, jnp.zeros(()), jnp.asarray(jnp.inf), zero, zero + 1, status)

    def _newton_step(self, theta: Array, at: _Search) -> _Search:
        damped = tuple(
            block + at.damping * (own.counts[:, 1:, None] * jnp.eye(block.shape[1])[None])
            for block, own in zip(at.blocks, self.others, strict=True)
        )
        step = -self._solve(damped, at.gradient[:, None], self._inner)[:, 0]
        promised = -(at.gradient @ step)
        value, gradient, blocks = self._inner_terms(theta, at.delta + step)
        people: Any = sum(own.counts.sum() for own in self.others)
        empty = promised <= _NOISE * (people + jnp.abs(at.value))
        fine = jnp.isfinite(value) & jnp.isfinite(gradient).all() & (promised >= 0)
        taken = fine & (empty | (value <= at.value - 1e-4 * promised))
        length = jnp.abs(step).max(initial=0.0)
        relaxed = jnp.where(at.damping > 1e-4, at.damping / 10, 0.0)
        damping = jnp.where(taken, relaxed, jnp.maximum(10 * at.damping, 1e-3))
        done = taken & (at.damping == 0) & (length <= _STEP)
        evaluations = at.evaluations + 1
        status = jnp.select(
            [done, damping > _DAMPING, evaluations > _STEPS],
            [int(Status.CONVERGED), int(Status.STALLED), int(Status.MAX_EVALUATIONS)],
            _RUNNING,
        )
        new = _Search(at.delta + step, value, gradient, blocks, damping, length, at.steps + 1, evaluations, status)
        old = at._replace(damping=damping, evaluations=evaluations, status=status)
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, old)

    def _inner_terms(self, theta: Array, delta: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        terms, K = self._terms(theta, delta, in_theta=False), self._inner
        left = K.T @ (delta - self.offset)
        value = jnp.asarray(sum(part.value for part in terms)) + 0.5 * left @ left
        gradient = self.economy.gather([part.gradient for part in terms]) + K @ left
        return value, gradient, tuple(part.hessian for part in terms)

    def _terms(self, theta: Array, delta: Array, in_theta: bool) -> list[Terms]:
        """Negative log likelihoods of the survey and of everybody else, by bucket."""
        found = []
        means = self.economy.scatter(delta)
        for survey, bucket, others, mean in zip(
            self._survey(theta, delta, in_theta), self.economy.buckets, self.others, means, strict=True
        ):
            rest = share_likelihood_terms(bucket, others, self.tastes(False), theta, mean, in_theta)
            found.append(jax.tree.map(lambda a, b: a - b, survey, rest))
        return found

    def _survey(self, theta: Array, delta: Array, in_theta: bool) -> list[Terms]:
        """The negative log likelihood of the survey, by bucket."""
        own = zip(self.economy.buckets, self.people, self.economy.scatter(delta), strict=True)
        return [
            jax.tree.map(jnp.negative, survey_terms(bucket, people, self.tastes(True), theta, mean, in_theta))
            for bucket, people, mean in own
        ]

    def _share_slopes(self, theta: Array, delta: Array) -> tuple[list[ShareTerms], Array]:
        """Derivatives of shares, and of mean utilities that keep shares."""
        own = zip(self.economy.buckets, self.economy.scatter(delta), strict=True)
        shares = [share_terms(bucket, self.tastes(False), theta, mean) for bucket, mean in own]
        by_theta = self.economy.gather([part.by_theta for part in shares])
        return shares, -self._solve_blocks(tuple(part.by_delta for part in shares), by_theta)

    def _slopes(self, blocks: Sequence[Array], cross: Array) -> Array:
        """``d delta / d theta`` (N, P)."""
        return -self._solve(blocks, cross, self._inner)

    def _solve(self, blocks: Sequence[Array], right: Array, K: Array) -> Array:
        """Solve with the matrix of blocks by market plus ``K K'``, by the formula of Woodbury."""
        if K.shape[1] == 0:
            return self._solve_blocks(blocks, right)
        both = self._solve_blocks(blocks, jnp.concatenate([right, K], axis=1))
        found, U = both[:, : right.shape[1]], both[:, right.shape[1] :]
        small = jnp.eye(K.shape[1]) + K.T @ U
        return found - U @ linear_algebra.solve(small, K.T @ found)

    def _solve_blocks(self, blocks: Sequence[Array], right: Array) -> Array:
        """Solve a system of each market, (T, J, J) by bucket, for right-hand sides (N, m)."""
        if right.shape[1] == 0:
            return right
        found = []
        for bucket, block, own in zip(self.economy.buckets, blocks, self.economy.scatter(right), strict=True):
            here = bucket.present[:, :, None] & bucket.present[:, None, :]
            full = jnp.where(here, block, jnp.eye(block.shape[1])[None])
            found.append(jax.vmap(linear_algebra.solve)(full, own))
        return self.economy.gather(found)


#: A search that has not ended.
_RUNNING = -1


def _residuals(value: Array, gradient: Array, hessian: Array, count: Array) -> tuple[Array, Array]:
    """Residuals (P + 1,), and their Jacobian, whose least squares are a Newton step; see above."""
    P = gradient.size
    if P == 0:
        return jnp.sqrt(jnp.maximum(value, 0.0) / count)[None], jnp.zeros((1, 0))
    fine = jnp.isfinite(hessian).all() & jnp.isfinite(gradient).all() & jnp.isfinite(value)
    H = jnp.where(fine, hessian, jnp.eye(P))
    g, q = jnp.where(fine, gradient, 0.0), jnp.where(fine, jnp.maximum(value, 0.0), 0.0)
    diagonal = jnp.abs(jnp.diagonal(H))
    D = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    values, V = jnp.linalg.eigh(H / D[:, None] / D[None, :])
    size = jnp.abs(values)
    root = jnp.sqrt(jnp.maximum(size, _FLAT * jnp.maximum(size.max(), 1e-300)) / 2)
    J = ((V * root[None, :]) @ V.T) * D[None, :]
    r = (V / root[None, :]) @ (V.T @ (g / D / 2))
    # squares of residuals cannot exceed the objective: a smaller step then
    squares = r @ r
    factor = jnp.sqrt(jnp.maximum(1.0, squares / jnp.maximum(0.5 * q, 1e-300)))
    J, r = J * factor, r / factor
    rest = jnp.sqrt(jnp.maximum(q - r @ r, 0.0))
    bad = jnp.where(fine, 1.0, jnp.nan) / jnp.sqrt(count)
    return bad * jnp.concatenate([r, rest[None]]), bad * jnp.concatenate([J, jnp.zeros((1, P))])
