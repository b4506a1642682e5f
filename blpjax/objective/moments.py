"""The GMM objective: averaged moments of theta, with linear parameters concentrated out.

With instruments and characteristics residualised once on any fixed effects, ``Z'M delta = Z'delta``: the loop never
absorbs. Where there are more blocks than those of the two equations, structural errors are residualised at every
evaluation, because such moments need not be linear in them.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from blpjax.kernels.arrays import namespace
from blpjax.model.inversion import Inversion
from blpjax.model.parameters import BLOCKS, Coefficients, ParameterLayout, fill_concentrated, parameter_directions
from blpjax.objective import iv
from blpjax.objective.blocks import Moving, Point
from blpjax.objective.data import ModelData, Uncertainty
from blpjax.objective.dynamics import MovingStep, moving_instruments, moving_moments
from blpjax.objective.inference import CovarianceTypes, StepSummary
from blpjax.objective.iv import LinearStep, average_moments, cross_moments, linear_step
from blpjax.objective.slopes import Values, has_tastes, market_hessian, solve_along
from blpjax.objective.structure import (
    Costs,
    Solution,
    Specification,
    StructuralModel,
    Structure,
    concentrated_columns,
)

#: Structural errors whose largest derivative in an element of theta, times its size, is below this do not depend on it.
NEGLIGIBLE = 1e-6


class Weighting(eqx.Module):
    """What depends on the weighting matrix W (M, M).

    `instruments` are Z L (N, M) for each equation, with ``W = L L'`` for all moments, `step` the linear IV-GMM step
    with these instruments, and `factor` L. With more blocks than those of the equations instruments are Z, and the step
    is that of the equations alone. Where moments depend on lags `lagged` are instruments for these, see
    `blpjax.objective.dynamics.moving_instruments`.

    Moments of Z that W then multiplies would lose digits in proportion to the condition number of Z, as optimal
    instruments may have a large one: the objective would be too noisy to be minimised.
    """

    W: Float[Any, "M M"]
    factor: Float[Any, "M M"]
    instruments: list[Float[Any, "N _"]]
    step: LinearStep | MovingStep
    lagged: list[Float[Any, "N _"] | None] = eqx.field(default_factory=list)


class Evaluation(eqx.Module):
    """The objective at one theta, and all that it consists of.

    The objective is `scale` times the sum of squares of `residuals` (M,) ``= sqrt(N) L' gbar`` with ``W = L L'``;
    `residual_jacobian` (M, P) is their derivative in theta and `gradient` (P,) the objective's. `xi_by_theta` and
    `omega_by_theta` (N, P) are ``d xi / d theta`` and ``d omega / d theta`` at fixed concentrated parameters and before
    absorption of fixed effects; with covariance moments, after both. `delta_by_theta` (N, P) is the derivative of mean
    utilities, and `costs_by_theta` that of ``tilde_costs``, None where no block of moments asks for it. What belongs to
    supply is None without a supply side. `ok` says that all markets were inverted and all numbers are finite.
    """

    objective: Float[Any, ""]
    gradient: Float[Any, " P"]
    residuals: Float[Any, " M"]
    residual_jacobian: Float[Any, "M P"]
    delta_by_theta: Float[Any, "N P"]
    xi_by_theta: Float[Any, "N P"]
    omega_by_theta: Float[Any, "N P"] | None
    inversion: Inversion
    costs: Costs | None
    ok: Bool[Any, ""]
    costs_by_theta: Float[Any, "N P"] | None = None


class Ending(eqx.Module):
    """Where a GMM step ended: theta (P,), the objective there, and the point with residualised errors."""

    theta: Float[Any, " P"]
    evaluation: Evaluation
    point: Point


class Varying(NamedTuple):
    """What is differentiated in theta.

    Residuals r (M,) ``= sqrt(N) L' gbar``, mean utilities (N,), structural errors (N,) by equation, and transformed
    costs (N,), None where no block of moments asks for them.
    """

    residuals: Float[Any, "M *P"]
    delta: Float[Any, "N *P"]
    structural: list[Float[Any, "N *P"]]
    costs: Float[Any, "N *P"] | None


class Concentrated(NamedTuple):
    """Weighted averaged moments ``L'gbar`` (M,), concentrated parameters (K,), and structural errors (N,) by equation.

    `estimates` are elements of beta, then of gamma. Errors are residualised and without what concentrated parameters
    explain where some block `projects`, and otherwise what these have to explain.
    """

    weighted: Float[Array, " M"]
    estimates: Float[Array, " K"]
    structural: list[Float[Array, " N"]]


class Sensitivity(NamedTuple):
    """Where a GMM step ended: all parameters (P + K,), averaged moments (M,), their Jacobian, and their uncertainty."""

    parameters: Float[Any, " P"]
    moments: Float[Any, " M"]
    jacobian: Float[Any, "M P"]
    uncertainty: Uncertainty


class GMM(eqx.Module):
    """The objective ``N gbar'W gbar``, times `scale`, as a function of theta (P,) and of where inversions start (N,).

    `scale` is one, or 1 / N for an objective that is not scaled by N. Host loops, lanes and finite differences use
    these methods, and nothing else, of an objective.
    """

    model: StructuralModel
    weighting: Weighting
    scale: Float[Any, ""]

    @property
    def data(self) -> ModelData:
        """Data of the moments."""
        return self.model.data

    def without_rescue(self) -> "GMM | None":
        """See `StructuralModel.without_rescue`."""
        model = self.model.without_rescue()
        return None if model is None else GMM(model, self.weighting, self.scale)

    def evaluate(self, theta: Float[Array, " P"], start: Float[Any, " N"]) -> Evaluation:
        """Objective, gradient and the Jacobian of its least-squares residuals, from one inversion of the shares."""
        solution, by_theta = solve_along(self.model, theta, start)

        def vary(theta: Array, known: Values) -> tuple[Varying, Structure]:
            return self.vary_at(theta, _solution_at(solution, known))

        known = Values(solution.inversion.delta, solution.markups)
        if not theta.size:
            values, found = vary(theta, known)
            derivatives = jax.tree.map(lambda leaf: jnp.zeros((leaf.size, 0)), values)
            return self.assemble(values, derivatives, found)

        def along(direction: Array, slope: Values) -> tuple[Varying, Varying, Structure]:
            return jax.jvp(vary, (theta, known), (direction, slope), has_aux=True)

        # values and derivatives in one loop over markets, where a linearisation would keep what one market needs of all
        mapped = jax.vmap(along, in_axes=-1, out_axes=(None, -1, None))
        values, derivatives, found = mapped(jnp.eye(theta.size), by_theta)
        return self.assemble(values, derivatives, found)

    def vary(self, theta: Float[Array, " P"], start: Float[Any, " N"]) -> tuple[Varying, Structure]:
        """What is differentiated at theta, and what else the model implies there."""
        return self.vary_at(theta, self.model.solve(theta, start))

    def vary_at(self, theta: Float[Array, " P"], solution: Solution) -> tuple[Varying, Structure]:
        """The same where mean utilities and markups are known."""
        found = self.model.structure(theta, solution)
        concentrated = self.concentrate(found)
        residuals = jnp.sqrt(self.data.count) * concentrated.weighted
        costs = found.costs.tilde_costs if self.data.more and found.costs is not None else None
        return Varying(residuals, found.inversion.delta, concentrated.structural, costs), found

    def assemble(self, values: Varying, derivatives: Varying | None, found: Structure) -> Evaluation:
        """An evaluation, given derivatives in theta on last axes. None stands for NaN: they are not wanted."""
        r = values.residuals
        ok = jnp.isfinite(r).all() & found.succeeded
        if derivatives is None:
            P = self.model.layout.P
            derivatives = jax.tree.map(lambda leaf: jnp.full((*leaf.shape, P), jnp.nan), values)
        else:
            ok = ok & jnp.isfinite(derivatives.residuals).all()
        J = derivatives.residuals
        return Evaluation(
            objective=jnp.where(ok, self.scale * (r @ r), jnp.nan),
            gradient=2.0 * self.scale * J.T @ r,
            residuals=r,
            residual_jacobian=J,
            delta_by_theta=derivatives.delta,
            xi_by_theta=derivatives.structural[0],
            omega_by_theta=derivatives.structural[1] if len(derivatives.structural) > 1 else None,
            inversion=found.inversion,
            costs=found.costs,
            ok=ok,
            costs_by_theta=derivatives.costs,
        )

    def value(self, theta: Float[Array, " P"], start: Float[Any, " N"]) -> Float[Array, ""]:
        """The objective alone. Differentiable to any order in theta.

        NaN where shares could not be inverted, or costs recovered, in some market.
        """
        return self._value(self.model.at(theta, start))

    def moments(self, theta: Float[Array, " P"], start: Float[Any, " N"]) -> Float[Array, " M"]:
        """``gbar`` (M,) with linear parameters concentrated out. Differentiable to any order in theta, NaN likewise."""
        found = self.model.at(theta, start)
        return found.valid * self.average(found)

    def curvature(
        self, theta: Float[Array, " P"], delta: Float[Array, " N"], directions: Float[Array, "B P"]
    ) -> Float[Array, "B P"]:
        """Products of directions with the exact Hessian at theta and its mean utilities."""
        # derivatives need the solution of the inversion, not the loop that finds it, so the program has none
        solved = GMM(self.model.without_loops(), self.weighting, self.scale)
        if not has_tastes(self.model):
            _, push = jax.linearize(jax.grad(lambda values: solved.value(values, delta)), theta)
            return jax.vmap(push)(directions)
        solution, by_theta = solve_along(solved.model, theta, delta)
        known = Values(solution.inversion.delta, solution.markups)

        def value(theta: Array, known: Values) -> Array:
            return self._value(self.model.structure(theta, _solution_at(solution, known)))

        def along(tau: Array) -> Array:
            return value(theta + tau, jax.tree.map(lambda at, slope: at + slope @ tau, known, by_theta))

        pulled = jax.grad(value, argnums=1)(theta, known)
        here = jnp.zeros(theta.size)
        moments = jax.vmap(lambda direction: jax.jvp(jax.grad(along), (here,), (direction,))[1])(directions)
        return moments + market_hessian(solved.model, theta, solution, by_theta, pulled, directions)

    def average(self, found: Structure) -> Float[Array, " M"]:
        """Averaged moments ``gbar`` (M,) with linear parameters concentrated out."""
        filled = self._fill(found.coefficients, self.concentrate(found).estimates)
        return self.data.averages(self.point(filled, found))

    def concentrate(self, found: Structure) -> Concentrated:
        """Weighted moments with linear parameters concentrated out."""
        data, step = self.data, self._step_at(found.coefficients)
        b = self._linear_moments(found.dependent, found.coefficients)
        estimates = step.coefficients(b)
        if not data.more:
            return Concentrated(step.moments(b), estimates, found.dependent)
        point = self.point(self._fill(found.coefficients, estimates), found)
        more = jnp.concatenate([block.averages(point, data.weights) for block in data.more])
        if data.offset is not None:
            more = more - data.offset[b.size :]
        weighted = self.weighting.factor.T @ jnp.concatenate([step.moments(b), more])
        if not data.projects:
            return Concentrated(weighted, estimates, found.dependent)
        return Concentrated(weighted, estimates, [point.xi] if point.omega is None else [point.xi, point.omega])

    def point(self, coefficients: Coefficients, found: Structure) -> Point:
        """What moments are functions of, at all parameters. Errors are residualised where equations `absorb`."""
        delta, costs = found.inversion.delta, found.costs
        return self.point_at(coefficients, delta, None if costs is None else costs.tilde_costs)

    def point_at(
        self, coefficients: Coefficients, delta: Float[Array, " N"], tilde_costs: Float[Array, " N"] | None
    ) -> Point:
        """The point at given mean utilities and costs, see `point`."""
        supply = self.data.supply
        xi = self.data.demand.errors(delta, jnp.asarray(coefficients.beta))
        omega = None
        if supply is not None and tilde_costs is not None:
            omega = supply.equation.errors(tilde_costs, jnp.asarray(coefficients.gamma))
        return Point(self.model.economy, supply, coefficients, delta, xi, tilde_costs, omega)

    def linear_parameters(
        self, theta: Float[Any, " P"], delta: Float[Any, " N"], tilde_costs: Float[Any, " N"] | None
    ) -> Coefficients:
        """All parameters: those of theta, and beta and gamma with concentrated elements at given delta and costs."""
        coefficients = self.model.expand(theta)
        b = self._linear_moments(self.model.dependent(coefficients, delta, tilde_costs), coefficients)
        return self._fill(coefficients, self._step_at(coefficients).coefficients(b))

    def finish(self, ending: Ending, types: CovarianceTypes, step: int, cluster_ids: Int[Array, "N *G"]) -> StepSummary:
        """Moments, their Jacobian and covariances, and inference about all parameters at the end of a GMM step."""
        return summarise(self.data, self.weighting.W, self.sensitivity(ending), types, step, cluster_ids)

    def sensitivity(self, ending: Ending) -> Sensitivity:
        """All parameters, and how moments depend on them and on the sample, at the end of a GMM step."""
        data, layout, point = self.data, self.model.layout, ending.point
        xp = namespace(ending.theta)
        linear = [
            xp.asarray(getattr(point.coefficients, name))[np.array(getattr(layout, f"concentrated_{name}"), int)]
            for name in ("beta", "gamma")
        ]
        return Sensitivity(
            xp.concatenate([ending.theta, *linear]),
            data.averages(point),
            data.jacobian(point, self._directions(ending)),
            data.uncertainty(point),
        )

    def _directions(self, ending: Ending) -> Moving:
        """How a point moves with each element of theta, and of beta and gamma that is concentrated out."""
        layout, evaluation = self.model.layout, ending.evaluation
        X, xp = concentrated_columns(layout, self.data), namespace(ending.theta)
        sizes = [len(layout.concentrated_beta), len(layout.concentrated_gamma)]

        def columns(by_theta: Any, beta: Any = None, gamma: Any = None) -> Any:
            N = by_theta.shape[0]
            rest = [xp.zeros((N, n)) if x is None else -x for x, n in zip((beta, gamma), sizes, strict=True)]
            return xp.concatenate([by_theta, *rest], axis=1)

        moves = parameter_directions(layout, self.model.fixed, concentrated=True)
        coefficients = jax.tree.map(lambda leaf: xp.asarray(np.moveaxis(leaf, 0, -1)), moves)
        costs = omega = None
        if evaluation.omega_by_theta is not None and evaluation.costs is not None:
            omega = columns(evaluation.omega_by_theta, gamma=X[1])
            by_theta = evaluation.costs_by_theta
            costs = xp.zeros_like(omega) if by_theta is None else columns(by_theta)
        return Moving(
            coefficients, columns(evaluation.delta_by_theta), columns(evaluation.xi_by_theta, beta=X[0]), costs, omega
        )

    def _value(self, found: Structure) -> Array:
        r = found.valid * self.concentrate(found).weighted
        return self.scale * self.data.count * (r @ r)

    def _step_at(self, coefficients: Coefficients) -> LinearStep:
        """The linear step, which depends on phi where moments depend on lags."""
        step = self.weighting.step
        return step.at(coefficients.phi) if isinstance(step, MovingStep) else step

    def _linear_moments(self, dependent: list[Float[Any, " N"]], coefficients: Coefficients) -> Float[Any, " m"]:
        """Moments of the equations with what concentrated parameters have to explain in place of errors."""
        data, weighting = self.data, self.weighting
        Z = weighting.instruments
        if data.dynamics is not None:
            b = moving_moments(Z, weighting.lagged, coefficients.phi, dependent, data.count)
        elif data.more:
            b = average_moments(Z, dependent, data.weights)
        else:
            parts = [average_moments([z], [y], data.weights) for z, y in zip(Z, dependent, strict=True)]
            b = sum(parts[1:], parts[0])
        if data.offset is None:
            return b
        return b - (data.offset[: b.size] if data.more else weighting.factor.T @ data.offset)

    def _fill(self, coefficients: Coefficients, estimates: Float[Any, " K"]) -> Coefficients:
        return fill_concentrated(self.model.layout, coefficients, estimates)


def _solution_at(solution: Solution, known: Values) -> Solution:
    inversion = eqx.tree_at(lambda found: found.delta, solution.inversion, known.delta)
    return Solution(inversion, known.markups)


def summarise(
    data: ModelData,
    W: Float[Any, "M M"],
    found: Sensitivity,
    types: CovarianceTypes,
    step: int,
    cluster_ids: Int[Any, "N *G"],
    simulation_covariances: Float[Any, "M M"] | None = None,
) -> StepSummary:
    """Covariances of moments and inference about all parameters: with NumPy alone where all arrays are NumPy's.

    `simulation_covariances` are added to the covariances of moments.
    """

    def covariances(kind: str) -> Any:
        S = data.covariances(
            found.uncertainty,
            kind=kind,
            center=types.center_moments,
            cluster_ids=cluster_ids,
            n_clusters=types.n_clusters,
        )
        return S if simulation_covariances is None else S + simulation_covariances

    S = covariances(types.se_type)
    S_for_W = S if types.W_type == types.se_type else covariances(types.W_type)
    robust = None
    if isinstance(types.n_clusters, tuple) and "clustered" in (types.se_type, types.W_type):
        robust = covariances("robust")
        if types.W_type == "clustered":
            S_for_W = iv.positive_part(S_for_W, namespace(robust).diagonal(robust))
    return StepSummary(
        parameters=found.parameters,
        moments=found.moments,
        moments_jacobian=found.jacobian,
        moments_covariances=S,
        updated_W=iv.updated_weights(S_for_W),
        inference=iv.parameter_inference(
            found.jacobian,
            W,
            S,
            N=data.count,
            se_type=types.se_type,
            step=step,
            robust=robust if types.se_type == "clustered" else None,
        ),
        covariances_rank=iv.numerical_rank(S_for_W),
        simulation_covariances=simulation_covariances,
    )


def weigh(specification: Specification, data: ModelData, W: Float[Any, "M M"]) -> Weighting:
    """Prepare the linear step at a weighting matrix W (M, M), which may be singular.

    With NumPy alone where all arrays are NumPy's.
    """
    Z, X = [equation.Z for equation in data.equations], concentrated_columns(specification.layout, data)
    L = iv.weight_factor(W)
    if data.dynamics is not None:
        M = sum(z.shape[1] for z in Z)
        identity = namespace(*Z, *X).eye(M)
        scaled, root = (identity, iv.weight_factor(W[:M, :M])) if data.more else (L, identity)
        found = moving_instruments(data.dynamics, data.equations, X, scaled, root, data.weights)
        return Weighting(W, L, found.instruments, found.step, found.lagged)
    if data.more:
        A = cross_moments(Z, X, data.weights)
        return Weighting(W, L, Z, linear_step(A, W[: A.shape[0], : A.shape[0]]))
    ends = np.cumsum([0, *(z.shape[1] for z in Z)])
    Z = [z @ L[first:last] for z, first, last in zip(Z, ends[:-1], ends[1:], strict=True)]
    xp = namespace(*Z, *X)
    A = xp.concatenate([cross_moments([z], [x], data.weights) for z, x in zip(Z, X, strict=True)], axis=1)
    return Weighting(W, L, Z, linear_step(A, xp.eye(A.shape[0])))


def lacks_influence(evaluation: Evaluation, theta: Any, layout: ParameterLayout) -> Any:
    """(P,) whether structural errors hardly depend on an element of theta, whose standard error then means nothing.

    It is moments that depend on phi. Works on NumPy and JAX arrays alike.
    """
    size = abs(theta).clip(1.0)
    lacking = abs(evaluation.xi_by_theta).max(axis=0, initial=0.0) * size < NEGLIGIBLE
    if evaluation.omega_by_theta is not None:
        lacking = lacking & (abs(evaluation.omega_by_theta).max(axis=0, initial=0.0) * size < NEGLIGIBLE)
    if not layout.phi:
        return lacking
    explaining = np.array([block == "phi" for block in BLOCKS for _ in getattr(layout, block)])
    return lacking & ~(explaining & (abs(evaluation.residual_jacobian).max(axis=0, initial=0.0) * size >= NEGLIGIBLE))
