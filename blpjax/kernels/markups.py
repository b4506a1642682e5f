"""Markups of one market in which firms set prices (Bertrand competition), and how their equation moves with prices.

Ownership enters as ``A = -H o (ds/dp)'``, element (j, k) being ``-H_jk ds_k / dp_j``, and markups solve ``A eta = s``.
With ``alpha_ji = dV_ji / dp_j``, the slope of agent i's utility in the product's own price,

    ds_k / dp_j = 1[j = k] sum_i w_i P_ji alpha_ji - sum_i w_i P_ki P_ji alpha_ji.

With nests the first sum is divided by ``1 - rho``, and ``odds sum_i w_i P_ki Q_ji alpha_ji`` are subtracted
where j and k are of the same group (`blpjax.kernels.shares`).

Any H will do: partial, asymmetric, with a diagonal that is not one.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blpjax.exceptions import Status
from blpjax.kernels.arrays import (
    AnyArray,
    diagonal_matrix,
    namespace,
    on_host,
    solve_on_host,
    transposed,
)
from blpjax.kernels.demand import Curvature, DemandPoint, along_prices, second_slopes
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.kernels.implicit import implicit
from blpjax.kernels.linear_algebra import Factors, factorise, solve
from blpjax.kernels.shares import Choices, Level, Nests
from blpjax.kernels.tangents import moves, push


class Firms(eqx.Module):
    """Standard ownership: which of a market's F firms owns each product. Padding has no owner.

    With few firms products with ``H = members members'`` cost less than with H.
    """

    members: Bool[AnyArray, "*T J F"]

    def apply(self, values: Float[Array, "J K"]) -> Float[Array, "J K"]:
        """``H values``: sums over the products of each product's firm."""
        members = self.members.astype(float)
        return members @ (members.T @ values)


#: Who owns what: codes of firms (-1 for padding), their products, or an ownership matrix.
Owned = Int[AnyArray, "*T J"] | Firms | Float[AnyArray, "*T J J"]


def ownership_matrix(owned: Owned) -> Float[AnyArray, "*T J J"]:
    """Ownership matrix H.

    From (J,) integer codes of firms, or `Firms`, it is one where two products have the same firm; rows and columns of
    padding, whose codes are negative, are zero. A (J, J) matrix is returned as it is.
    """
    if isinstance(owned, Firms):
        members = owned.members.astype(float)
        return members @ members.T
    if not jnp.issubdtype(owned.dtype, jnp.integer):
        return owned
    return ((owned[..., :, None] == owned[..., None, :]) & (owned >= 0)[..., None, :]).astype(float)


def markups(point: DemandPoint, owned: Owned) -> Float[AnyArray, "*T J"]:
    """Markups ``eta = A^{-1} s``, in units of price; marginal costs are prices less these. Zero for padding.

    Differentiable to any order in every array, by ``A d eta = ds - dA eta``. A singular A gives values that are not
    finite. Source: Berry, Levinsohn and Pakes (1995).

    Parameters
    ----------
    point : demand at the prices that are observed.
    owned : (J,) codes of firms, `Firms`, or a (J, J) ownership matrix, see `ownership_matrix`.
    """
    known = owned if isinstance(owned, Firms) else ownership_matrix(owned)
    if on_host(point.delta):
        right = namespace(point.delta).where(point.present, point.shares(), 0.0)
        return solve_on_host(markup_matrix(point, known), right)
    return implicit(_solve_markups, _markup_gap, _solve_markup_matrix, point, known).value


def markup_matrix(point: DemandPoint, owned: Firms | Float[AnyArray, "*T J J"]) -> Float[AnyArray, "*T J J"]:
    """``A = -H o (ds/dp)'`` by one matrix product. Rows and columns of padding are those of the identity."""
    moved = ownership_matrix(owned) * transposed(point.jacobian())
    absent = namespace(moved).where(point.present, 0.0, 1.0)
    return diagonal_matrix(absent) - moved


def markup_product(
    point: DemandPoint, owned: Firms | Float[Array, "J J"], eta: Float[Array, " J"]
) -> Float[Array, " J"]:
    """``A eta`` without forming A; zero for padding.

    With ``R = w o P o alpha``, ``Lambda_j = sum_i R_ji`` and ``N_ji = sum_k H_jk eta_k P_ki`` it is
    ``sum_i R_ji N_ji - Lambda_j H_jj eta_j`` without nests, and with nests

        sum_i R_ji (N_ji + odds sum_{k of j's group} H_jk eta_k Q_ki - H_jj eta_j / (1 - rho)),

    with sums over groups of all levels.
    """
    if point.nests is None and point.C.ndim == 2:
        return _markup_product(point, owned, eta)
    return direct_product(point, owned, eta)


class Gradient(NamedTuple):
    """The profit gradient ``s - A eta`` and the diagonal of Lambda, zero for padding."""

    gradient: Float[AnyArray, " J"]
    lambda_diagonal: Float[AnyArray, " J"]


def profit_gradient(point: DemandPoint, owned: Owned, eta: Float[Array, " J"]) -> Gradient:
    """What loops for prices need, from choice probabilities that are computed once.

    It is not for derivatives: `markup_product` and shares have rules of their own that need less memory.
    """
    parts = _parts(point, owned, eta)
    gradient = parts.S.sum(axis=1) - (parts.R * parts.spread).sum(axis=1)
    scales = 1.0 if point.nests is None else point.nests.scales
    return Gradient(gradient, parts.R.sum(axis=1) * scales)


class PriceDerivatives(NamedTuple):
    """Derivatives in prices, the column's product: of shares, of ``A eta`` at given eta, and of Lambda's diagonal."""

    shares: Float[AnyArray, "*T J J"]
    markup_product: Float[AnyArray, "*T J J"]
    lambda_diagonal: Float[AnyArray, "*T J J"]


def price_derivatives(
    point: DemandPoint, curvature: Curvature, H: Float[AnyArray, "*T J J"], eta: Float[AnyArray, "*T J"]
) -> PriceDerivatives:
    """Derivatives of demand and of ``A eta`` in prices. Zero for padding.

    By matrix products, since ``dP_ji / dp_l = P_ji alpha_li (1[j = l] / (1 - rho) - odds Q_li - P_li)``, where the
    odds are zero unless j and l are of the same group. Those of groups within groups come one price after the other.
    """
    nests = point.nests
    if nests is not None and nests.outer is not None:
        return PriceDerivatives(
            point.jacobian(),
            along_prices(lambda moved: markup_product(moved, H, eta), point, curvature),
            along_prices(DemandPoint.lambda_diagonal, point, curvature),
        )
    P, S, R, N, spread, within = _parts(point, H, eta)
    alpha = point.utility_slopes()
    E, M = H * eta[..., None, :], P * alpha
    scales = namespace(P).ones_like(eta) if nests is None else nests.scales
    through_rivals = R @ transposed(M)
    own = R * alpha * scales[..., :, None] + S * second_slopes(point, curvature)
    product = E * scales[..., None, :] * through_rivals - (R * (spread + N)) @ transposed(M)
    shares, moved = -S @ transposed(M), -through_rivals
    if nests is not None:
        (level,), (within_group,) = nests.levels, within
        Q = transposed(within_group * alpha)
        odds, through_group = level.same(level.odds), R @ Q
        in_group = (R * ((E * level.same(namespace(P).ones_like(level.odds))) @ within_group)) @ Q
        product += odds * (scales[..., None, :] * (E * through_group - in_group) - (R * spread) @ Q)
        product -= _through_groups(level, E, P, R, Q)
        shares -= odds * (S @ Q)
        moved -= odds * through_group
    return PriceDerivatives(
        diagonal_matrix(scales * R.sum(axis=-1)) + shares,
        diagonal_matrix((own * spread).sum(axis=-1)) + product,
        scales[..., :, None] * (diagonal_matrix(own.sum(axis=-1)) + moved),
    )


def _through_groups(level: Level, E: AnyArray, P: AnyArray, R: AnyArray, Q: AnyArray) -> AnyArray:
    """``odds sum_i R_ji Q_li sum_{k of l's group} E_jk P_ki`` at (j, l), group by group: no array J x groups x I."""

    def of_group(group: tuple[AnyArray, AnyArray]) -> AnyArray:
        members, odds = group
        return ((R * ((E * members[..., None, :]) @ P)) @ Q) * (odds[..., None] * members)[..., None, :]

    xp = namespace(P)
    groups = xp.moveaxis(level.members.astype(float), -1, 0), xp.moveaxis(level.odds, -1, 0)
    if on_host(P):
        return sum(map(of_group, zip(*groups, strict=True)), xp.zeros_like(E))
    return jax.lax.map(of_group, groups).sum(axis=0)


def _markup_gap(eta: Array, point: DemandPoint, owned: Firms | Array) -> Array:
    return markup_product(point, owned, eta) + jnp.where(point.present, -point.shares(), eta)


def _solve_markup_matrix(
    eta: Array, right: Array, point: DemandPoint, owned: Firms | Array, factors: Factors | None = None
) -> Array:
    return solve(markup_matrix(point, owned), right, factors)


def _solve_markups(point: DemandPoint, owned: Firms | Array) -> FixedPoint:
    A = markup_matrix(point, owned)
    factors = factorise(A)
    eta = solve(A, jnp.where(point.present, point.shares(), 0.0), factors)
    one = jnp.ones((), int)
    return FixedPoint(eta, 0 * one + Status.CONVERGED, one, one, jnp.zeros(()), factors)


@jax.custom_jvp
def _markup_product(point: DemandPoint, owned: Firms | Array, eta: Array) -> Array:
    """The product without nests and with common tastes.

    As for `blpjax.kernels.shares.shares`, the derivative rule is written in matrix products that any number of tangents
    share, so that it never holds a J x I array for each tangent.
    """
    return direct_product(point, owned, eta)


def direct_product(point: DemandPoint, owned: Firms | Array, eta: Array) -> Array:
    """`markup_product` by its definition, for any demand and without a derivative rule of its own."""
    parts = _parts(point, owned, eta)
    return (parts.R * parts.spread).sum(axis=1)


class _Parts(NamedTuple):
    """What the product and its derivatives are made of."""

    P: Float[AnyArray, "*T J I"]
    S: Float[AnyArray, "*T J I"]  # w o P
    R: Float[AnyArray, "*T J I"]  # w o P o alpha
    N: Float[AnyArray, "*T J I"]  # (H o eta') P
    spread: Float[AnyArray, "*T J I"]  # N_ji - H_jj eta_j, or what takes its place with nests
    within: tuple[Float[AnyArray, "*T J I"], ...]  # Q of each level


def _parts(point: DemandPoint, owned: Firms | AnyArray, eta: AnyArray) -> _Parts:
    found = point.choices()
    S = found.inside * point.weights[..., None, :]
    N, spread = spread_markups(found, point.nests, owned, eta)
    return _Parts(found.inside, S, S * point.utility_slopes(), N, spread, found.within)


def spread_markups(
    found: Choices, nests: Nests | None, owned: Firms | AnyArray, eta: AnyArray
) -> tuple[Float[AnyArray, "*T J I"], Float[AnyArray, "*T J I"]]:
    """``N_ji = sum_k H_jk eta_k P_ki``, and what ``A eta`` sums, ``N_ji - H_jj eta_j`` or that with nests."""
    N = weighted_sums(owned, eta, found.inside)
    own = own_share(owned) * eta
    if nests is None:
        return N, N - own[..., :, None]
    spread = N - (own * nests.scales)[..., :, None]
    for level, within in zip(nests.levels, found.within, strict=True):
        spread += (ownership_matrix(owned) * level.same(level.odds) * eta[..., None, :]) @ within
    return N, spread


def weighted_sums(owned: Firms | AnyArray, eta: AnyArray, values: AnyArray) -> AnyArray:
    """``(H o eta') values``, of the shape of `values` (J, I)."""
    if isinstance(owned, Firms):
        return owned.apply(eta[:, None] * values)
    return (owned * eta[..., None, :]) @ values


def own_share(owned: Firms | AnyArray) -> AnyArray:
    """The diagonal of H (J,)."""
    if isinstance(owned, Firms):
        return owned.members.any(axis=1).astype(float)
    return namespace(owned).diagonal(owned, axis1=-2, axis2=-1)


def _markup_product_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    point, owned, eta = primals
    d_point, d_owned, d_eta = tangents
    parts = _parts(point, owned, eta)
    value = (parts.R * parts.spread).sum(axis=1)
    tangent = _through_utilities(point, d_point, owned, eta, parts) + _through_slopes(point, d_point, parts)
    matrix_moves = not isinstance(owned, Firms) and moves(d_owned)
    if matrix_moves or moves(d_eta):
        dense, own = parts.R @ parts.P.T, parts.R.sum(axis=1)
        if matrix_moves:
            tangent += (dense * d_owned) @ eta - own * jnp.diagonal(d_owned) * eta
        if moves(d_eta):
            tangent += (dense * ownership_matrix(owned)) @ d_eta - own * own_share(owned) * d_eta
    if moves(d_point.weights):
        tangent += (parts.P * point.utility_slopes() * parts.spread) @ d_point.weights
    if moves(d_point.availability):
        # the rare case that needs no special rule
        tangent += push(
            lambda a: direct_product(eqx.tree_at(lambda p: p.availability, point, a), owned, eta),
            (point.availability,),
            (d_point.availability,),
        )
    return value, tangent


def _through_utilities(point: DemandPoint, d_point: Any, owned: Firms | Array, eta: Array, parts: _Parts) -> Array:
    """``sum_i Q_ji (dV_ji - v_i) + R_ji sum_k E_jk P_ki (dV_ki - v_i)`` with ``Q = R o spread`` and ``E = H o eta'``.

    This is the derivative through ``dP_ki = P_ki (dV_ki - v_i)`` with ``dV_ki = d delta_k + dX2_k' C_i + X2_k' dC_i``.
    The agent-level sums ``v_i = sum_l P_li dV_li`` are added up first.
    """
    P, _, R, N, spread, _ = parts
    Q = R * spread
    E = ownership_matrix(owned) * eta[None, :]
    tangent, agent = jnp.zeros_like(point.delta), jnp.zeros_like(point.weights)
    if moves(d_point.delta):
        d_delta = d_point.delta
        tangent += Q.sum(axis=1) * d_delta + (E * (R @ P.T)) @ d_delta
        agent += P.T @ d_delta
    if moves(d_point.X2):
        d_X2 = d_point.X2
        by_taste = E[None, :, :] * ((R[None, :, :] * point.C[:, None, :]) @ P.T)
        tangent += (d_X2 * (Q @ point.C.T)).sum(axis=1) + jnp.einsum("mjk,km->j", by_taste, d_X2)
        agent += (point.C * (d_X2.T @ P)).sum(axis=0)
    if moves(d_point.C):
        d_C = d_point.C
        sums = jax.vmap(lambda x: weighted_sums(owned, eta * x, P), in_axes=1)(point.X2)
        by_characteristic = R[None, :, :] * sums
        tangent += (point.X2 * (Q @ d_C.T)).sum(axis=1) + jnp.einsum("mji,mi->j", by_characteristic, d_C)
        agent += (d_C * (point.X2.T @ P)).sum(axis=0)
    return tangent - (Q + R * N) @ agent


def _through_slopes(point: DemandPoint, d_point: Any, parts: _Parts) -> Array:
    """``sum_i w_i P_ji spread_ji d alpha_ji`` with ``d alpha = d delta_slope + dX2_slope' C + X2_slope' dC``."""
    T = parts.S * parts.spread
    tangent = jnp.zeros_like(point.delta)
    if moves(d_point.delta_slope):
        tangent += T.sum(axis=1) * d_point.delta_slope
    if moves(d_point.X2_slope):
        tangent += (d_point.X2_slope * (T @ point.C.T)).sum(axis=1)
    if moves(d_point.C):
        tangent += (point.X2_slope * (T @ d_point.C.T)).sum(axis=1)
    return tangent


_markup_product.defjvp(_markup_product_jvp, symbolic_zeros=True)
