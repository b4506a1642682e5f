"""Micro moments of one market: sums over agents and choices of probabilities times what surveys ask about.

Functions that take arrays with first axes ``*T`` work on many markets of NumPy arrays, too (`blpjax.kernels.arrays`).

A survey has a number for each agent i, choice c and row r: ``D_ric``, with weights in row zero and weights times values
of its parts in the others. Choices are the outside good and J products, or pairs of a first and a second one. Sums are

    sum_i w_i sum_c s_ic D_ric.

What surveys ask about is nearly always a sum of few products of something of agents and something of choices,
``D_ric = sum_k a_rki b_kc``, so that sums follow from ``B_ki = sum_c b_kc s_ic``, which no row is needed for.

With second choices ``s_ijk`` is the joint probability that j is best, and that k is best without j or, where groups are
eliminated and k is not in j's group g, without that:

    s_ijk = s_ij / s_ig (s_ik(-g) - s_ik) = P_ki (alpha_ji + sum_levels beta_ji 1[j and k are in the same nest]),
    s_ij0 = P_0i alpha_ji,   s_i0k = P_ki P_0i / sum_l P_li.

Alpha and beta are ``s_ij / s_ig`` times what `blpjax.kernels.removal` says. A group lies within a nest, or consists of
whole nests. Without nests alpha is ``P_ji / (1 - P_gi)``. Nothing is a difference of probabilities with and without a
product.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from blpjax.kernels.arrays import AnyArray, namespace, on_host
from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.removal import removal
from blpjax.kernels.shares import Choices, Nests, choices, deviations
from blpjax.kernels.tangents import moves, push

#: Covariances take so many numbers of agents times rows times choices at a time.
_TOGETHER = 2**18

#: Weights that are this small next to the largest are those of choices that are not in the survey.
_NEGLIGIBLE = 1e-12


class Survey(eqx.Module):
    """What a survey asks about in one market.

    Either `agents` and `choices` are factors, or `dense` has all numbers, and the others are None. Choices are C, that
    is 1 + J, places, the outside good first, on one axis or, with second choices, on two. Numbers of pairs are zero
    where the second choice is the first one, or of its group. `groups` are codes of the groups that are eliminated with
    a first choice, None where that is the product alone. `dataset` counts datasets.

    The shape of `agents` is (rows, K, I), that of `choices` (K, C) or (K, C, C), and of `dense` (rows, I, C) or
    (rows, I, C, C).
    """

    agents: Float[AnyArray, "*T rows K I"] | None
    choices: Float[AnyArray, "..."] | None
    dense: Float[AnyArray, "..."] | None
    groups: Int[AnyArray, "*T J"] | None
    dataset: int = eqx.field(static=True)
    second: bool = eqx.field(static=True)


class Diversion(NamedTuple):
    """Joint probabilities of first and second choices, see above: `first` (I,) is ``P_0i / sum_l P_li``.

    `beta` has one array for each level of nests.
    """

    alpha: Float[AnyArray, "*T J I"]
    beta: tuple[Float[AnyArray, "*T J I"], ...]
    first: Float[AnyArray, "*T I"]


def survey_sums(point: DemandPoint, survey: Survey) -> Float[AnyArray, "*T rows"]:
    """``sum_i w_i sum_c s_ic D_ric`` of each row."""
    xp = namespace(point.delta)
    if survey.dense is not None:
        found = point.choices()
        by_agent = _second_by_agent if survey.second else _first_by_agent
        return xp.einsum("...i,...ri->...r", point.weights, by_agent(point, found, survey.dense, survey.groups))
    assert survey.agents is not None and survey.choices is not None
    if survey.second:
        by_factor = _second_by_factor(point, point.choices(), survey.choices, survey.groups)
    elif on_host(point.delta) or point.nests is not None or point.C.ndim > 2:
        by_factor = _first_by_factor(point.choices(), survey.choices)
    else:
        given = (point.delta, point.X2, point.C, point.availability)
        by_factor = expected_values(survey.choices, *given)
    return xp.einsum("...i,...rki,...ki->...r", point.weights, survey.agents, by_factor)


def survey_products(point: DemandPoint, survey: Survey, means: Float[Array, " parts"]) -> Float[Array, "parts parts"]:
    """``sum_i w_i sum_c s_ic w_ic (v_pic - mean_p) (v_qic - mean_q)`` for pairs of parts, of weights and values."""
    found = point.choices()
    diversion = diversions(point, found, survey.groups) if survey.second else None
    size = means.size * (1 + point.delta.size) ** (2 if survey.second else 1)

    def one(i: Array) -> Array:
        if survey.dense is not None:
            D = survey.dense[:, i]
        else:
            assert survey.agents is not None and survey.choices is not None
            D = jnp.tensordot(survey.agents[:, :, i], survey.choices, 1)
        D = D.reshape(D.shape[0], -1)
        s = cells(*_one_agent(found, diversion, i), point.nests).reshape(-1)
        inside = jnp.abs(D[0]) > _NEGLIGIBLE * jnp.abs(D[0]).max()
        known = jnp.where(inside, D[0], 1.0)
        deviation = D[1:] - means[:, None] * D[:1]
        return (deviation * jnp.where(inside, point.weights[i] * s / known, 0.0)[None]) @ deviation.T

    several = max(1, _TOGETHER // size)
    found_products: Array = jax.lax.map(one, jnp.arange(point.weights.size), batch_size=several).sum(axis=0)
    return found_products


def cells(
    found: Choices, diversion: Diversion | None, nests: Nests | None
) -> Float[AnyArray, "*T I C"] | Float[AnyArray, "*T I C C"]:
    """Probabilities of agents' choices, or of pairs of first and second choices where there is a `diversion`.

    Those of pairs are meant where the second choice is neither the first one nor of its group.
    """
    xp = namespace(found.inside)
    inside, outside = found.inside.swapaxes(-1, -2), found.outside[..., None]
    alone = xp.concatenate([outside, inside], axis=-1)
    if diversion is None:
        return alone
    alpha = diversion.alpha.swapaxes(-1, -2)
    pairs = xp.concatenate([diversion.first[..., None], alpha], axis=-1)[..., :, None] * alone[..., None, :]
    for same, beta in zip(_same_nests(nests), diversion.beta, strict=True):
        within = beta.swapaxes(-1, -2)[..., :, None] * same[..., None, :, :] * inside[..., None, :]
        top, left = xp.zeros_like(within[..., :1, :]), xp.zeros_like(pairs[..., :1])
        pairs += xp.concatenate([left, xp.concatenate([top, within], axis=-2)], axis=-1)
    return pairs


def chosen(
    found: Choices,
    diversion: Diversion | None,
    nests: Nests | None,
    first: Int[Array, " I"],
    second: Int[Array, " I"] | None,
) -> Float[Array, " I"]:
    """Probabilities of one choice of each agent, or of one pair, by places of which the outside good has the first."""
    agents = jnp.arange(first.size)
    alone = jnp.concatenate([found.outside[None], found.inside])
    if diversion is None or second is None:
        return alone[first, agents]
    p = jnp.concatenate([diversion.first[None], diversion.alpha])[first, agents] * alone[second, agents]
    both = (first > 0) & (second > 0)
    j, k = jnp.maximum(first - 1, 0), jnp.maximum(second - 1, 0)
    for same, beta in zip(_same_nests(nests), diversion.beta, strict=True):
        p += jnp.where(both, beta[j, agents] * same[j, k] * found.inside[k, agents], 0.0)
    return p


def diversions(point: DemandPoint, found: Choices, groups: Int[AnyArray, "*T J"] | None) -> Diversion:
    """What joint probabilities of first and second choices consist of."""
    P, outside = found.inside, found.outside
    xp = namespace(P)
    together = xp.eye(P.shape[-2]) if groups is None else (groups[..., :, None] == groups[..., None, :]).astype(float)
    group = P if groups is None else together @ P
    part = xp.where(group > 0, P, 0.0) / xp.where(group > 0, group, 1.0)
    total = P.sum(axis=-2)
    first = outside * xp.where(total > 0, 1.0, 0.0) / xp.where(total > 0, total, 1.0)
    if point.nests is None:
        return Diversion(P * _reciprocal((1.0 - together) @ P + outside[..., None, :]), (), first)
    gained = removal(found, point.nests, together)
    return Diversion(part * gained.everywhere, tuple(part * within for within in gained.within), first)


def _one_agent(found: Choices, diversion: Diversion | None, i: Array) -> tuple[Choices, Diversion | None]:
    inside, outside = found.inside[:, i, None], found.outside[i, None]
    alone = Choices(inside, outside, (), outside)
    if diversion is None:
        return alone, None
    beta = tuple(within[:, i, None] for within in diversion.beta)
    return alone, Diversion(diversion.alpha[:, i, None], beta, diversion.first[i, None])


def _reciprocal(values: AnyArray) -> AnyArray:
    """One over values that are positive unless everything underflows; zero there."""
    xp = namespace(values)
    return xp.where(values > 0, 1.0, 0.0) / xp.where(values > 0, values, 1.0)


def _same_nests(nests: Nests | None) -> list[AnyArray]:
    """One where the row's and the column's product share a nest (J, J), for each level."""
    return [] if nests is None else [level.same(namespace(level.rho).ones_like(level.rho)) for level in nests.levels]


def _first_by_factor(found: Choices, b: AnyArray) -> AnyArray:
    return b[..., 1:] @ found.inside + b[..., :1] * found.outside[..., None, :]


def _first_by_agent(point: DemandPoint, found: Choices, dense: AnyArray, groups: AnyArray | None) -> AnyArray:
    xp = namespace(dense)
    inside = xp.einsum("...ric,...ci->...ri", dense[..., 1:], found.inside)
    return inside + dense[..., 0] * found.outside[..., None, :]


def _second_by_factor(point: DemandPoint, found: Choices, b: AnyArray, groups: AnyArray | None) -> AnyArray:
    """``sum_jk b_kjk s_ijk`` of each factor and agent."""
    xp = namespace(b)
    P, outside = found.inside, found.outside
    alpha, beta, first = diversions(point, found, groups)
    pairs = b[..., 1:, 1:]
    seconds = xp.einsum("...fjk,...ki->...fji", pairs, P) + b[..., 1:, :1] * outside[..., None, None, :]
    total = xp.einsum("...ji,...fji->...fi", alpha, seconds)
    for same, more in zip(_same_nests(point.nests), beta, strict=True):
        within = pairs * same[..., None, :, :]
        total += xp.einsum("...ji,...fji->...fi", more, xp.einsum("...fjk,...ki->...fji", within, P))
    return total + first[..., None, :] * xp.einsum("...fk,...ki->...fi", b[..., 0, 1:], P)


def _second_by_agent(point: DemandPoint, found: Choices, dense: AnyArray, groups: AnyArray | None) -> AnyArray:
    xp = namespace(dense)
    P, outside = found.inside, found.outside
    alpha, beta, first = diversions(point, found, groups)
    pairs = dense[..., 1:, 1:]
    seconds = xp.einsum("...rijk,...ki->...rij", pairs, P) + dense[..., 1:, 0] * outside[..., None, :, None]
    total = xp.einsum("...ji,...rij->...ri", alpha, seconds)
    for same, more in zip(_same_nests(point.nests), beta, strict=True):
        within = xp.einsum("...rijk,...jk,...ki->...rij", pairs, same, P)
        total += xp.einsum("...ji,...rij->...ri", more, within)
    return total + first[..., None, :] * xp.einsum("...rik,...ki->...ri", dense[..., 0, 1:], P)


@jax.custom_jvp
def expected_values(
    b: Float[Array, "K C"], delta: Float[Array, " J"], X2: Array, tastes: Float[Array, "K2 I"], availability: Array
) -> Float[Array, "K I"]:
    """``B_ki = sum_c b_kc s_ic`` with common tastes and without nests.

    The derivative rule holds no number for each product, agent and parameter: what is summed over products is prepared
    for all parameters, and a change of tastes enters agent by agent.
    """
    return _first_by_factor(_choices(delta, X2, tastes, availability), b)


def _choices(delta: Array, X2: Array, tastes: Array, availability: Array) -> Choices:
    return choices(delta[:, None] + deviations(X2, tastes), availability)


def _expected_values_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    b, delta, X2, tastes, availability = primals
    d_b, d_delta, d_X2, d_tastes, d_availability = tangents
    found = _choices(delta, X2, tastes, availability)
    P, values = found.inside, _first_by_factor(found, b)
    moved = jnp.zeros_like(values)
    if moves(d_delta):
        everybody = jnp.concatenate([b[:, 1:], jnp.ones((1, P.shape[0]))])
        changes = (everybody * d_delta[None, :]) @ P
        moved += changes[:-1] - values * changes[-1:]
    if moves(d_tastes):
        # sums over products of each factor times each characteristic (K, K2, I), and of each characteristic
        slopes = (b[:, None, 1:] * X2.T[None]) @ P
        moved += ((slopes - values[:, None, :] * (X2.T @ P)[None]) * d_tastes[None]).sum(axis=1)
    if moves(d_b) or moves(d_X2) or moves(d_availability):

        def others(b: Array, X2: Array, availability: Array) -> Array:
            return _first_by_factor(_choices(delta, X2, tastes, availability), b)

        moved += push(others, (b, X2, availability), (d_b, d_X2, d_availability))
    return values, moved


expected_values.defjvp(_expected_values_jvp, symbolic_zeros=True)
