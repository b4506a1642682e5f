"""Utilities, choice probabilities and market shares of one market.

Functions that take arrays with first axes ``*T`` work on many markets of NumPy arrays, too (`blpjax.kernels.arrays`).

One market has J products, I agents and K2 characteristics with random coefficients. Agent i's utility from product j is
``V_ji = delta_j + X2_j' C_i`` with tastes ``C = Sigma nu' + Pi d'``, next to an outside good of utility zero.
Availability ``a`` multiplies ``exp V``: zero removes a product from an agent's choice set. Padded products are
unavailable products.

With nests, agents choose a group h and a product in it (Cardell 1997):

    P_ji = Q_ji P_hi,    Q_ji = a_ji exp(V_ji / (1 - rho_h)) / D_hi,
    P_hi = D_hi^(1 - rho_h) / (1 + sum_g D_gi^(1 - rho_g)),

where ``D_hi`` is the sum of ``a_ji exp(V_ji / (1 - rho_h))`` over the products of h.

Groups may lie within other groups g, whose parameters are nu_g: then ``I_hi = (1 - rho_h) log D_hi`` is a subgroup's
utility, and agents choose g and a subgroup in it as they would choose a group and a product (Verboven 1996),

    P_hi = Q_hi P_gi,    Q_hi = exp(I_hi / (1 - nu_g)) / sum_{l of g} exp(I_li / (1 - nu_g)).

Choices are those of one level where all of rho and nu are the same, or nu is zero. Probabilities move by

    d log P_ji = dV_ji / (1 - rho_h) - sum_levels odds sum_{k of j's group} Q_ki dV_ki - sum_k P_ki dV_ki,

where Q_ki are products' probabilities within the groups of a level, and the odds are ``nu / (1 - nu)`` for groups and
``rho / (1 - rho) - nu / (1 - nu)`` for subgroups. So all that groups are needed for are sums over levels.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blpjax.kernels.arrays import AnyArray, constant, diagonal_matrix, namespace, on_host, times, transposed
from blpjax.kernels.tangents import moves, push

_LARGEST_EXPONENT = 700.0

#: With at most this many groups, their maxima are taken by comparing every product with every group.
_FEW_GROUPS = 8

#: Tastes of agents: one column for each, or, where demographics are specific to products, one for each product too.
Tastes = Float[AnyArray, "*T K2 I"] | Float[AnyArray, "*T J K2 I"]


class Grouping(eqx.Module):
    """Which of a market's H groups each product belongs to. Padding has no group, and padded groups no products."""

    members: Bool[AnyArray, "*T J H"]

    def spread(self, values: Float[AnyArray, "*T H I"] | Float[Array, " H"]) -> Float[AnyArray, "..."]:
        """Values of groups for each of their products; zero for padding."""
        return self.members.astype(float) @ values

    def sums(self, values: Float[AnyArray, "*T J I"] | Float[Array, " J"]) -> Float[AnyArray, "..."]:
        """Sums over the products of each group."""
        return transposed(self.members.astype(float)) @ values

    def same(self, values: Float[AnyArray, "*T H"]) -> Float[AnyArray, "*T J J"]:
        """Values of groups at pairs of products of the same group; zero elsewhere."""
        members = self.members.astype(float)
        return (members * values[..., None, :]) @ transposed(members)


class Level(Grouping):
    """Groups of products of one level, and by how much they exceed those of the next level, which has zero at the top.

    `rho` are differences of nesting parameters, and `odds` those of ``rho / (1 - rho)``.
    """

    rho: Float[AnyArray, "*T H"]
    odds: Float[AnyArray, "*T H"]


class Nests(Grouping):
    """Groups with their nesting parameters. Where they lie within other groups, these are `outer`, nests of groups."""

    rho: Float[AnyArray, "*T H"]
    outer: "Nests | None" = None

    @property
    def scales(self) -> Float[AnyArray, "*T J"]:
        """``1 / (1 - rho_h(j))``; one for padding."""
        return 1.0 / (1.0 - times(self.members.astype(float), self.rho))

    @property
    def odds(self) -> Float[AnyArray, "*T H"]:
        """``rho_h / (1 - rho_h)``."""
        return self.rho / (1.0 - self.rho)

    @property
    def levels(self) -> tuple[Level, ...]:
        """Groups of products, the innermost first."""
        if self.outer is None:
            return (Level(self.members, self.rho, self.odds),)
        above, members = self.outer.members.astype(float), self.members.astype(float)
        own = Level(self.members, self.rho - times(above, self.outer.rho), self.odds - times(above, self.outer.odds))
        outer = (Level(members @ level.members.astype(float) > 0, level.rho, level.odds) for level in self.outer.levels)
        return (own, *outer)


def nests_of(codes: Int[AnyArray, "*T J"], rho: Float[AnyArray, "*T H"], outer: Nests | None = None) -> Nests:
    """Nests by codes of products' groups, which are negative for padding, and parameters of these H groups.

    `outer` are nests of the groups, by codes of groups.
    """
    groups = namespace(codes).arange(rho.shape[-1])
    return Nests(codes[..., :, None] == groups.reshape((1,) * codes.ndim + (-1,)), rho, outer)


class Choices(NamedTuple):
    """Choice probabilities of inside goods, of the outside good, and of goods within their groups of each level.

    `inclusive` is ``-log outside``, finite also where the outside probability underflows.
    """

    inside: Float[AnyArray, "*T J I"]
    outside: Float[AnyArray, "*T I"]
    within: tuple[Float[AnyArray, "*T J I"], ...]
    inclusive: Float[AnyArray, "*T I"]


def tastes(
    sigma: Float[AnyArray, "K2 R"],
    pi: Float[AnyArray, "K2 D"],
    nodes: Float[AnyArray, "*T I R"],
    demographics: Float[AnyArray, "*T I D"] | Float[AnyArray, "*T I D J"],
) -> Tastes:
    """Agent-specific deviations from mean tastes, ``C = Sigma nu' + Pi d'``: (K2, I).

    `sigma` holds the columns of the Cholesky root that are not all zero, one for each column of `nodes` (R may be 0).
    With demographics (I, D, J) that are specific to products, so are tastes: (J, K2, I).
    """
    common = sigma @ transposed(nodes)
    if demographics.ndim == nodes.ndim:
        return common + pi @ transposed(demographics)
    return common[..., None, :, :] + namespace(nodes).einsum("kd,...idj->...jki", pi, demographics)


def deviations(X2: Float[AnyArray, "*T J K2"], C: Tastes) -> Float[AnyArray, "*T J I"]:
    """``X2_j' C_i``, or ``X2_j' C_ji``: agents' deviations from mean utilities, or those of slopes."""
    return X2 @ C if C.ndim == X2.ndim else namespace(X2).einsum("...jk,...jki->...ji", X2, C)


def probabilities(
    utilities: Float[AnyArray, "*T J I"], availability: Float[AnyArray, "*T J #I"], nests: Nests | None = None
) -> tuple[Float[AnyArray, "*T J I"], Float[AnyArray, "*T I"]]:
    """Choice probabilities of every product and of the outside good, see `choices`.

    Returns
    -------
    inside : (J, I) probabilities ``s_ji = a_ji exp(V_ji) / (1 + sum_k a_ki exp(V_ki))``, or those with nests.
    outside : (I,) probabilities of the outside good.
    """
    found = choices(utilities, availability, nests)
    return found.inside, found.outside


def choices(
    utilities: Float[AnyArray, "*T J I"], availability: Float[AnyArray, "*T J #I"], nests: Nests | None = None
) -> Choices:
    """Choice probabilities.

    The largest utility is subtracted before exponentials are taken, so that nothing overflows. The outside probability
    is computed directly, not as one minus a sum.
    """
    xp = namespace(utilities)
    if nests is None:
        largest = _largest_utility(utilities, availability)
        exponentials, none = _scaled(utilities, availability, largest)
        denominator = none + exponentials.sum(axis=-2)
        return Choices(exponentials / denominator[..., None, :], none / denominator, (), largest + xp.log(denominator))
    groups = _groups(utilities, availability, nests)
    among = choices(groups.values, groups.filled, nests.outer)
    inside, *within = (groups.within * nests.spread(values) for values in (among.inside, *among.within))
    return among._replace(inside=inside, within=(groups.within, *within))


def inclusive_values(
    utilities: Float[AnyArray, "*T J I"], availability: Float[AnyArray, "*T J #I"], nests: Nests | None = None
) -> Float[AnyArray, "*T I"]:
    """Expected utility of each agent's choice, ``log(1 + sum_j a_ji exp V_ji)``, or that with nests."""
    if nests is not None:
        groups = _groups(utilities, availability, nests)
        return inclusive_values(groups.values, groups.filled, nests.outer)
    xp = namespace(utilities)
    values = xp.where(availability > 0, utilities, 0.0)
    largest = constant(values.max(axis=-2, initial=0.0))
    total = (availability * xp.exp(values - largest[..., None, :])).sum(axis=-2)
    # log(1 + sum) that keeps its digits where the sum is small
    return largest + xp.log1p(total + xp.expm1(-largest))


def scaled_exponentials(
    utilities: Float[AnyArray, "*T J I"], availability: Float[AnyArray, "*T J #I"]
) -> tuple[Float[AnyArray, "*T J I"], Float[AnyArray, "*T I"]]:
    """``a exp V`` of every product (J, I) and of the outside good (I,), scaled.

    They are divided by the exponential of each agent's largest utility of an available product or the outside good.
    """
    return _scaled(utilities, availability, _largest_utility(utilities, availability))


def shares(
    delta: Float[AnyArray, "*T J"],
    X2: Float[AnyArray, "*T J K2"],
    C: Tastes,
    weights: Float[AnyArray, "*T I"],
    availability: Float[AnyArray, "*T J #I"],
    nests: Nests | None = None,
) -> Float[AnyArray, "*T J"]:
    """Market shares ``s_j = sum_i w_i s_ji``.

    The derivative rule is written in matrix products, ``P (w o dC_k')`` and the like, so that a derivative in any
    number of parameters never holds a J x I array for each of them, unless tastes are specific to products.
    """
    if on_host(delta):
        return _simulated(delta, X2, C, weights, availability, nests)
    return _shares(delta, X2, C, weights, availability, nests)


def share_jacobian(
    found: Choices,
    weights: Float[AnyArray, "*T I"],
    values: Float[AnyArray, "*T J I"] | None = None,
    nests: Nests | None = None,
) -> Float[AnyArray, "*T J J"]:
    """Derivatives of shares in utilities, ``H = diag(P w) - P diag(w) P'``, symmetric.

    With `values` (J, I), the derivative of each product's utility for each agent in some variable of product k, the
    entry (j, k) is ``ds_j / dx_k = 1[j = k] sum_i w_i P_ji values_ji - sum_i w_i P_ji P_ki values_ki``. With nests the
    first sum is divided by ``1 - rho``, and ``odds sum_i w_i P_ji Q_ki values_ki`` are subtracted where j and k are of
    the same group, at each level.
    """
    P = found.inside
    weighted = P * weights[..., None, :]
    own = weighted.sum(axis=-1) if values is None else (weighted * values).sum(axis=-1)
    cross = weighted @ transposed(P if values is None else P * values)
    if nests is not None:
        own = own * nests.scales
        for level, within in zip(nests.levels, found.within, strict=True):
            cross += level.same(level.odds) * (weighted @ transposed(within if values is None else within * values))
    return diagonal_matrix(own) - cross


def _largest_utility(utilities: AnyArray, availability: AnyArray) -> AnyArray:
    available = namespace(utilities).where(availability > 0, utilities, 0.0)
    return constant(available.max(axis=-2, initial=0.0))


def _scaled(utilities: AnyArray, availability: AnyArray, largest: AnyArray) -> tuple[AnyArray, AnyArray]:
    exponentials = availability * _bounded_exponential(utilities - largest[..., None, :])
    return exponentials, namespace(utilities).exp(-largest)


def _bounded_exponential(below: AnyArray) -> AnyArray:
    # Only the utility of an unavailable product can be that large: it must not overflow before it is multiplied by
    # zero. Not jnp.minimum: on CPUs XLA may make it 700 where one argument is NaN.
    xp = namespace(below)
    return xp.exp(xp.where(below > _LARGEST_EXPONENT, _LARGEST_EXPONENT, below))


class _Groups(NamedTuple):
    """Probabilities within groups (J, I), and inclusive values ``(1 - rho) log D`` (H, I) of those that are `filled`.

    `filled` is one, and zero for groups without available products, whose values are zero.
    """

    within: AnyArray
    values: AnyArray
    filled: AnyArray


def _groups(utilities: AnyArray, availability: AnyArray, nests: Nests) -> _Groups:
    xp = namespace(utilities)
    scaled = utilities * nests.scales[..., :, None]
    largest = constant(_group_maxima(xp.where(availability > 0, scaled, -xp.inf), nests.members))
    filled = largest > -xp.inf
    largest = xp.where(filled, largest, 0.0)
    exponentials = availability * _bounded_exponential(scaled - nests.spread(largest))
    sums = nests.sums(exponentials)
    filled &= ~(sums <= 0)
    known = xp.where(filled, sums, 1.0)
    values = (1.0 - nests.rho)[..., :, None] * (largest + xp.log(known))
    grouped = nests.members.any(axis=-1)[..., :, None]
    within = xp.where(grouped, exponentials, 0.0) / xp.where(grouped, nests.spread(known), 1.0)
    return _Groups(within, xp.where(filled, values, 0.0), xp.where(filled, 1.0, 0.0))


def _group_maxima(values: AnyArray, members: AnyArray) -> AnyArray:
    """Largest value (H, I) among the products of each group; NaN where there is one."""
    if on_host(values):
        xp = namespace(values)
        in_group = xp.moveaxis(members, -1, 0)[..., None]
        return xp.stack([xp.where(one, values, -xp.inf).max(axis=-2, initial=-xp.inf) for one in in_group], axis=-2)
    if members.shape[1] <= _FEW_GROUPS:
        return jnp.where(members[:, :, None], values[:, None, :], -jnp.inf).max(axis=0, initial=-jnp.inf)
    codes = jnp.where(members.any(axis=1), members.argmax(axis=1), members.shape[1])
    return jax.ops.segment_max(values, codes, members.shape[1] + 1)[:-1]


def _simulated(
    delta: AnyArray, X2: AnyArray, C: AnyArray, weights: AnyArray, availability: AnyArray, nests: Nests | None
) -> AnyArray:
    inside, _ = probabilities(delta[..., :, None] + deviations(X2, C), availability, nests)
    return times(inside, weights)


@jax.custom_jvp
def _shares(delta: Array, X2: Array, C: Array, weights: Array, availability: Array, nests: Nests | None) -> Array:
    return _simulated(delta, X2, C, weights, availability, nests)


def _shares_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    delta, X2, C, weights, availability, nests = primals
    d_delta, d_X2, d_C, d_weights, d_availability, d_nests = tangents
    utilities = delta[:, None] + deviations(X2, C)
    found = choices(utilities, availability, nests)
    P = found.inside
    s = P @ weights
    through = _common_tangent if C.ndim == 2 else _specific_tangent
    ds = through(found, X2, C, weights, nests, (d_delta, d_X2, d_C))
    if moves(d_availability):
        ds += push(lambda a: probabilities(utilities, a, nests)[0], (availability,), (d_availability,)) @ weights
    if nests is not None and any(map(moves, nesting_parameters(d_nests))):
        changes = [d if moves(d) else None for d in nesting_parameters(d_nests)]
        ds += (P * choices_move(found, nests, utilities_like(found, nests, availability, changes)).inside) @ weights
    if moves(d_weights):
        ds += P @ d_weights
    return s, ds


def nesting_parameters(nests: Nests | None) -> list[Any]:
    """Parameters of groups of each level, the innermost first."""
    return [] if nests is None else [nests.rho, *nesting_parameters(nests.outer)]


def with_nesting_parameters(nests: Nests, rho: list[Any]) -> Nests:
    """The same groups with other `nesting_parameters`."""
    outer = None if nests.outer is None else with_nesting_parameters(nests.outer, rho[1:])
    return Nests(nests.members, rho[0], outer)


def utilities_like(
    found: Choices, nests: Nests, availability: Float[AnyArray, "*T J #I"], changes: list[Any]
) -> Float[AnyArray, "*T J I"]:
    """Changes of utilities by which choices move as they do by changes of `nesting_parameters`, None for no change.

    For those of groups whose members have probabilities Q they are ``log Q d rho``: of groups within other groups, and
    of products within groups, of which it is ``log (Q / a) d rho``.
    """
    xp = namespace(found.inside)
    total, below = xp.zeros_like(found.inside), availability
    for level, within, change in zip(nests.levels, found.within, changes, strict=True):
        if change is not None:
            chosen = within > 0
            logarithms = xp.log(xp.where(chosen, within / xp.where(chosen, below, 1.0), 1.0))
            total += times(level.members.astype(float), change)[..., :, None] * logarithms
        below = within
    return total


class ChoicesMove(NamedTuple):
    """Changes of logarithms of choice probabilities: of inside goods, and within groups of each level."""

    inside: Float[AnyArray, "*T J I"]
    within: tuple[Float[AnyArray, "*T J I"], ...]


def choices_move(found: Choices, nests: Nests | None, dV: Float[AnyArray, "*T J I"]) -> ChoicesMove:
    """How choices move with utilities, by the formula above; within groups the sums over outer levels are missing."""
    remaining, moved, within = 1.0, dV, []
    if nests is not None:
        moved = nests.scales[..., :, None] * dV
        remaining = nests.scales
        for level, Q in zip(nests.levels, found.within, strict=True):
            means = level.spread(level.sums(Q * dV))
            within.append(moved - remaining[..., :, None] * means)
            odds = times(level.members.astype(float), level.odds)
            moved, remaining = moved - odds[..., :, None] * means, remaining - odds
    return ChoicesMove(moved - (found.inside * dV).sum(axis=-2)[..., None, :], tuple(within))


def _common_tangent(
    found: Choices, X2: Array, C: Array, weights: Array, nests: Nests | None, tangents: tuple[Any, Any, Any]
) -> Array:
    """``sum_i w_i P_ji d log P_ji``, see above, by matrix products. Sums over products come first, agent by agent."""
    d_delta, d_X2, d_C = tangents
    P = found.inside
    own = jnp.zeros(P.shape[0])
    if moves(d_delta):
        own += d_delta * (P @ weights)
    if moves(d_C):
        own += (X2 * (P @ (weights[:, None] * d_C.T))).sum(axis=1)
    if moves(d_X2):
        own += (d_X2 * (P @ (weights[:, None] * C.T))).sum(axis=1)
    if nests is None:
        return own - P @ (weights * _summed(P, X2, C, None, tangents))
    moved = nests.scales * own
    for at, (level, within) in enumerate(zip(nests.levels, found.within, strict=True)):
        means = _summed(within, X2, C, level, tangents)
        if at == 0:
            moved -= P @ (weights * (level.sums(P) * means).sum(axis=0))
        by_group = (P * weights[None, :]) @ (level.odds[:, None] * means).T
        moved -= (level.members * by_group).sum(axis=1)
    return moved


def _summed(
    weighted: Array, X2: Array, C: Array, level: Level | None, tangents: tuple[Any, Any, Any]
) -> Float[Array, "*H I"]:
    """Sums of weighted changes of utilities over all products (I,), or over those of each group (H, I)."""
    d_delta, d_X2, d_C = tangents
    expand = (lambda tastes: tastes) if level is None else (lambda tastes: tastes[:, None, :])
    total = jnp.zeros(weighted.shape[1:] if level is None else (level.rho.size, weighted.shape[1]))
    if moves(d_delta):
        total += _product_sums(d_delta, weighted, level)
    if moves(d_C):
        sums = jax.vmap(lambda x: _product_sums(x, weighted, level), in_axes=1)(X2)
        total += (sums * expand(d_C)).sum(axis=0)
    if moves(d_X2):
        sums = jax.vmap(lambda x: _product_sums(x, weighted, level), in_axes=1)(d_X2)
        total += (sums * expand(C)).sum(axis=0)
    return total


def _product_sums(values: Array, weighted: Array, level: Level | None) -> Array:
    """Sums (I,) of values (J,) over products, or (H, I) over the products of each group."""
    return values @ weighted if level is None else (level.members * values[:, None]).T @ weighted


def _specific_tangent(
    found: Choices, X2: Array, C: Array, weights: Array, nests: Nests | None, tangents: tuple[Any, Any, Any]
) -> Array:
    """The same with tastes that are specific to products, for which there are J x I changes of utilities anyway."""
    d_delta, d_X2, d_C = tangents
    dV = jnp.zeros_like(found.inside)
    if moves(d_delta):
        dV += d_delta[:, None]
    if moves(d_C):
        dV += deviations(X2, d_C)
    if moves(d_X2):
        dV += deviations(d_X2, C)
    return (found.inside * choices_move(found, nests, dV).inside) @ weights


_shares.defjvp(_shares_jvp, symbolic_zeros=True)
