"""What demand implies, in one market: derivatives, elasticities, diversion, surplus and concentration.

Rows and columns of padded products hold finite numbers without meaning. Arrays with first axes ``*T`` are of many
markets and on the host (`blpjax.kernels.arrays`).
"""

from jaxtyping import Float, Int

from blpjax.kernels.arrays import AnyArray, namespace, times, transposed, with_diagonal
from blpjax.kernels.shares import Choices, Nests, choices, inclusive_values


def elasticities(
    jacobian: Float[AnyArray, "*T J J"], x: Float[AnyArray, "*T J"], shares: Float[AnyArray, "*T J"]
) -> Float[AnyArray, "*T J J"]:
    """``x_k / s_j ds_j / dx_k``: percentage change of the share of the row's product per per cent of the column's x."""
    positive = namespace(shares).where(shares > 0, shares, 1.0)
    return jacobian * x[..., None, :] / positive[..., :, None]


def diversion_ratios(jacobian: Float[AnyArray, "*T J J"]) -> Float[AnyArray, "*T J J"]:
    """``-(ds_k / dx_j) / (ds_j / dx_j)``: where the row's product loses its customers to.

    Diversion to the outside good stands on the diagonal, so that rows sum to one.
    """
    xp = namespace(jacobian)
    own = xp.diagonal(jacobian, axis1=-2, axis2=-1)
    safe = xp.where(own != 0, own, 1.0)
    return with_diagonal(-transposed(jacobian) / safe[..., :, None], jacobian.sum(axis=-2) / safe)


def long_run_diversion_ratios(
    utilities: Float[AnyArray, "*T J I"],
    weights: Float[AnyArray, "*T I"],
    availability: Float[AnyArray, "*T J #I"],
    nests: Nests | None = None,
) -> Float[AnyArray, "*T J J"]:
    """``(s_k(-j) - s_k) / s_j``: where the row's product loses its customers to when it is removed.

    Diversion to the outside good stands on the diagonal, so that rows sum to one. Removing product j multiplies the
    other probabilities of agent i by ``1 / (1 - P_ji)``, so ``s_k(-j) - s_k = sum_i w_i P_ji P_ki / (1 - P_ji)``.
    With nests, see `_without`.
    Source: Conlon and Mortimer (2021), the average treatment effect.
    """
    found = choices(utilities, availability, nests)
    P, xp = found.inside, namespace(utilities)
    if nests is not None:
        leaving, inside = _without(found, weights, nests)
    else:
        # 1 - P_j as a sum of the other probabilities, which keeps its digits where P_j is nearly one
        none = xp.zeros_like(P[..., :1, :])
        before = xp.concatenate([none, xp.cumsum(P, axis=-2)[..., :-1, :]], axis=-2)
        after = xp.concatenate([xp.cumsum(P[..., ::-1, :], axis=-2)[..., ::-1, :][..., 1:, :], none], axis=-2)
        others = found.outside[..., None, :] + before + after
        leaving = weights[..., None, :] * P / xp.where(others > 0, others, 1.0)
        inside = leaving @ transposed(P)
    shares = times(P, weights)
    safe = xp.where(shares != 0, shares, 1.0)
    return with_diagonal(inside / safe[..., :, None], times(leaving, found.outside) / safe)


def _without(found: Choices, weights: AnyArray, nests: Nests) -> tuple[AnyArray, AnyArray]:
    """What others gain when the row's product j is removed, for an agent by ``w_i a_ji``, and in all (J, J).

    With ``q = Q_ji`` and the probability P_h of j's group, removing j leaves ``z = (1 - q)^(1 - rho)`` of the group's
    weight. Probabilities outside of the group are divided by ``1 - v``, where ``v = P_h (1 - z)``, so that they grow by
    ``a = v / (1 - v)`` of what they were, and those in it by ``b = (u + v) / (1 - v)`` with ``u = (1 - q)^-rho - 1``.
    """
    assert found.within is not None
    P, Q, xp = found.inside, found.within, namespace(found.inside)
    same = nests.same(xp.ones_like(nests.rho))
    rho = (1.0 - 1.0 / nests.scales)[..., :, None]
    # what is left of one is a sum of others, which keeps its digits where that is little
    rivals = with_diagonal(same, xp.zeros_like(same[..., 0])) @ Q
    elsewhere = found.outside[..., None, :] + (1.0 - same) @ P
    small, some = Q < 0.5, rivals > 0
    rest = xp.where(small, xp.log1p(-xp.where(small, Q, 0.0)), xp.log(xp.where(some, rivals, 1.0)))
    group = same @ P
    z = xp.where(small | some, xp.exp((1.0 - rho) * rest), 0.0)
    v = group * xp.where(small | some, -xp.expm1((1.0 - rho) * rest), 1.0)
    left = elsewhere + group * z
    left = xp.where(left > 0, left, 1.0)
    leaving = weights[..., None, :] * v / left
    growing = weights[..., None, :] * (xp.expm1(-rho * rest) + v) / left
    return leaving, xp.where(same > 0, growing @ transposed(P), leaving @ transposed(P))


def consumer_surpluses(
    utilities: Float[AnyArray, "*T J I"],
    slopes: Float[AnyArray, "*T I"],
    availability: Float[AnyArray, "*T J #I"],
    nests: Nests | None = None,
) -> Float[AnyArray, "*T I"]:
    """Surplus ``log(1 + sum_j a_ji exp V_ji) / (-dV_1i / dp_1)`` of each agent (Small and Rosen 1981).

    With nests, inclusive values of groups take the place of utilities. `slopes` (I,) are derivatives of utility in
    price. The surplus has a meaning where they are the same for all products.
    """
    return inclusive_values(utilities, availability, nests) / -slopes


def herfindahl_hirschman_index(shares: Float[AnyArray, "*T J"], firms: Int[AnyArray, "*T J"]) -> Float[AnyArray, "*T"]:
    """``10,000 sum_f (sum_{j in f} s_j / sum_j s_j)^2`` over shares of inside sales.

    `firms` are codes of firms, negative ones for padding.
    """
    same = (firms[..., :, None] == firms[..., None, :]) & (firms >= 0)[..., None, :]
    return 1e4 * (shares * times(same.astype(float), shares)).sum(axis=-1) / shares.sum(axis=-1) ** 2
