"""How mean utilities and markups of one market move with parameters: derivatives of the equations that they solve.

First derivatives are formulas for all parameters at once. A parameter of tastes, an element of Sigma or Pi, multiplies
one characteristic and one node or demographic of agents. With these beside each other, X (J, n) and B (I, n),
everything is products of J x I matrices and I x n ones: no array has a number for each product, agent and parameter.
With nests, transformed coefficients, or demographics that are specific to products, parameters come one after the
other, or all beside each other in small markets, each with its J x I matrix of moved utilities.

These are the derivatives by the implicit function theorem that `blpjax.kernels.contraction.invert_shares` and
`blpjax.kernels.markups.markups` have as well, from choice probabilities that are computed once.

Second derivatives are those of a Lagrangian, the equations times multipliers, for any demand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.linear_algebra import factorise, substitute
from blpjax.kernels.markups import (
    Firms,
    direct_product,
    markup_matrix,
    own_share,
    ownership_matrix,
    spread_markups,
    weighted_sums,
)
from blpjax.kernels.shares import (
    Tastes,
    choices_move,
    deviations,
    nesting_parameters,
    share_jacobian,
    utilities_like,
    with_nesting_parameters,
)


class Moves(eqx.Module):
    """What parameters move.

    Parameter p of n moves tastes for one of the `characteristics` by a column of B, ``dC_k = B_p``. Further parameters,
    m of them, move no tastes but `delta_slope`, by columns of `linear`.
    """

    B: Float[Array, "I n"]
    linear: Float[Array, "J m"]
    characteristics: tuple[int, ...] = eqx.field(static=True)

    def columns(self, X: Float[Array, "J K2"]) -> Float[Array, "J n"]:
        """The characteristics that tastes' parameters are about, beside each other."""
        return X[:, list(self.characteristics)]

    @property
    def kinds(self) -> tuple[list[int], Int[Array, " n"]]:
        """The different characteristics, in order, and the place there of that of each parameter."""
        found = sorted(set(self.characteristics))
        return found, jnp.array([found.index(k) for k in self.characteristics], int)


class Slopes(NamedTuple):
    """Markups eta, None without a supply side, and derivatives of mean utilities and markups in parameters."""

    delta: Float[Array, "J p"]
    eta: Float[Array, " J"] | None
    eta_by_parameters: Float[Array, "J p"] | None


def market_slopes(point: DemandPoint, moves: Moves, owned: Firms | Float[Array, "J J"] | None) -> Slopes:
    """Derivatives in tastes' parameters, then in those of `linear`, with common tastes and without nests.

    With ``S = w o P``, ``G = (P'X) o B`` and ``H = diag(P w) - S P'`` mean utilities move by

        D = -H^{-1} (X o (S B) - S G).

    With ``R = S o alpha``, ``N = (H o eta') P`` of the ownership matrix H, ``T = S o (N - H_jj eta)``,
    ``Q = T o alpha`` and ``U = G + P'D``, markups ``A eta = s`` move by ``-A^{-1} t``, because shares do not move:

        t = (Q 1) o D + X o (Q B) - (Q + R o N) U + X_slope o (T B) + [H o (R P')] (eta o D) + Z

    with ``Z_jp = sum_i R_ji B_ip sum_k H_jk eta_k X_kp P_ki``, and by ``-A^{-1} ((T 1) o linear)``.
    """
    B, X, X_slope = moves.B, moves.columns(point.X2), moves.columns(point.X2_slope)
    P = point.choices().inside
    S = P * point.weights[None, :]
    s, G = S.sum(axis=1), (P.T @ X) * B
    absent = jnp.where(point.present, 0.0, 1.0)
    D = -substitute(factorise(jnp.diag(s + absent) - S @ P.T), X * (S @ B) - S @ G)
    unmoved = jnp.zeros_like(moves.linear)
    if owned is None:
        return Slopes(jnp.concatenate([D, unmoved], axis=1), None, None)
    alpha, H_jj = point.utility_slopes(), own_share(owned)
    R = S * alpha
    owned_dense = ownership_matrix(owned) * (R @ P.T)
    A = owned_dense + jnp.diag(absent - H_jj * R.sum(axis=1))
    factors = factorise(A)
    eta = substitute(factors, s)
    N = weighted_sums(owned, eta, P)
    T = S * (N - (H_jj * eta)[:, None])
    Q = T * alpha

    Z = _rivals(point.X2, moves, owned, eta, R, P)
    t = Q.sum(axis=1)[:, None] * D + X * (Q @ B) - (Q + R * N) @ (G + P.T @ D)
    t += X_slope * (T @ B) + owned_dense @ (eta[:, None] * D) + Z
    right = jnp.concatenate([t, T.sum(axis=1)[:, None] * moves.linear], axis=1)
    return Slopes(jnp.concatenate([D, unmoved], axis=1), eta, -substitute(factors, right))


def _rivals(X2: Array, moves: Moves, owned: Firms | Array, eta: Array, R: Array, P: Array) -> Array:
    """``Z_jp = sum_i R_ji B_ip sum_k H_jk eta_k X_kp P_ki`` (J, n)."""
    kinds, places = moves.kinds
    characteristics = X2.T[jnp.array(kinds, int)]
    F, K, n = owned.members.shape[1] if isinstance(owned, Firms) else X2.shape[0], len(kinds), len(places)
    if isinstance(owned, Firms) and F * (K + n) < K * (2 * F + n):
        # sums over each firm's products for each characteristic, then over agents for each parameter: with few firms,
        # or about as many characteristics as parameters, these are fewer products than below
        members = owned.members.astype(float)
        sums = jax.lax.map(lambda X_k: (members * (eta * X_k)[:, None]).T @ P, characteristics)

        def weighted(p: Array) -> Array:
            return (members * (R @ (sums[places[p]] * moves.B[None, :, p]).T)).sum(axis=1)

        return jax.lax.map(weighted, jnp.arange(places.size)).T

    def weighted_by_all(X_k: Array) -> Array:
        return (R * weighted_sums(owned, eta * X_k, P)) @ moves.B

    return jax.lax.map(weighted_by_all, characteristics)[places, :, jnp.arange(places.size)].T


class Parts(NamedTuple):
    """What parameters move of demand at given mean utilities, or how they move it."""

    C: Tastes
    delta_slope: Float[Array, " J"]
    nesting_parameters: list[Float[Array, " H"]]

    @classmethod
    def of(cls, point: DemandPoint) -> "Parts":
        """Those of demand."""
        return cls(point.C, point.delta_slope, nesting_parameters(point.nests))


def slopes_along(
    point_at: Callable[[Any], DemandPoint],
    coefficients: Any,
    directions: Any,
    each: Callable[[Callable[..., Any], Any], Any],
    owned: Firms | Float[Array, "J J"] | None,
) -> Slopes:
    """Derivatives in any directions, for any demand.

    At given mean utilities, utilities move by dV, which nesting parameters do too (`utilities_like`), and choice
    probabilities by ``dP = P o d log P``. Mean utilities move by ``D = -H^{-1} dP w``; and, where utilities move by
    dV + D, markups ``A eta = s`` by ``-A^{-1} dA eta``, because shares do not move.

    Parameters
    ----------
    point_at : demand as a function of coefficients, a pytree, at given mean utilities.
    coefficients, directions : where, and directions there, stacked on the first axes of the pytree's arrays.
    each : maps a function over these first axes, such as `jax.vmap(f)(values)` does.
    """
    point = point_at(coefficients)
    found, weights, nests = point.choices(), point.weights, point.nests
    P, absent = found.inside, jnp.diag(jnp.where(point.present, 0.0, 1.0))

    def move(direction: Any) -> Parts:
        return jax.jvp(lambda at: Parts.of(point_at(at)), (coefficients,), (direction,))[1]

    def utilities(moved: Parts) -> Array:
        dV = deviations(point.X2, moved.C)
        return dV if nests is None else dV + utilities_like(found, nests, point.availability, moved.nesting_parameters)

    def shares_move(direction: Any) -> Array:
        return (P * choices_move(found, nests, utilities(move(direction))).inside) @ weights

    H = share_jacobian(found, weights, nests=nests) + absent
    D = -substitute(factorise(H), each(shares_move, directions).T)
    if owned is None:
        return Slopes(D, None, None)
    alpha = point.utility_slopes()
    s, A = P @ weights, absent - ownership_matrix(owned) * share_jacobian(found, weights, alpha, nests).T
    factors = factorise(A)
    eta = substitute(factors, s)

    def summed(inside: Array, within: tuple[Array, ...], alpha: Array, rho: list[Array]) -> Array:
        known = None if nests is None else with_nesting_parameters(nests, rho)
        _, spread = spread_markups(found._replace(inside=inside, within=within), known, owned, eta)
        return (inside * alpha * spread) @ weights

    def markups_move(direction: tuple[Any, Array]) -> Array:
        moved = move(direction[0])
        inside, within = choices_move(found, nests, utilities(moved) + direction[1][:, None])
        slopes = moved.delta_slope[:, None] + deviations(point.X2_slope, moved.C)
        within = tuple(Q * change for Q, change in zip(found.within, within, strict=True))
        at = P, found.within, alpha, nesting_parameters(nests)
        return jax.jvp(summed, at, (P * inside, within, slopes, moved.nesting_parameters))[1]

    return Slopes(D, eta, -substitute(factors, each(markups_move, (directions, D.T)).T))


class Multipliers(NamedTuple):
    """What shares, and ``A eta``, are weighted by in a Lagrangian."""

    shares: Float[Array, " J"]
    markups: Float[Array, " J"] | None


def multipliers(
    point: DemandPoint,
    eta: Float[Array, " J"] | None,
    owned: Firms | Float[Array, "J J"] | None,
    by_delta: Float[Array, " J"],
    by_eta: Float[Array, " J"] | None,
) -> Multipliers:
    """Multipliers at which ``f + lambda's + mu'A eta`` does not move with mean utilities or markups.

    ``mu = -A^{-T} df/d eta`` and ``lambda = -H^{-1} (df/d delta + d(mu'A eta)/d delta)``.
    """
    right, mu = by_delta, None
    if owned is not None and eta is not None and by_eta is not None:
        mu = -substitute(factorise(markup_matrix(point, owned).T), by_eta)
        right += jax.grad(lambda delta: mu @ direct_product(_moved(point, delta), owned, eta))(point.delta)
    absent = jnp.diag(jnp.where(point.present, 0.0, 1.0))
    H = share_jacobian(point.choices(), point.weights, nests=point.nests) + absent
    return Multipliers(-substitute(factorise(H), right), mu)


def weighted_equations(
    point: DemandPoint,
    eta: Float[Array, " J"] | None,
    owned: Firms | Float[Array, "J J"] | None,
    weights: Multipliers,
) -> Float[Array, ""]:
    """``lambda's + mu'A eta``, without the rules that make many first derivatives cheap: second ones cost less so."""
    total = weights.shares @ (point.choices().inside @ point.weights)
    if owned is None or eta is None or weights.markups is None:
        return total
    return total + weights.markups @ direct_product(point, owned, eta)


def _moved(point: DemandPoint, delta: Array) -> DemandPoint:
    return eqx.tree_at(lambda p: p.delta, point, delta)
