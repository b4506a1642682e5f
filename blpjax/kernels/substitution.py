"""What demand implies, in one market: derivatives, elasticities, diversion, surplus and concentration.

Rows and columns of padded products hold finite numbers without meaning. Arrays with first axes ``*T`` are of many
markets and on the host (`blpjax.kernels.arrays`).
"""

from jaxtyping import Float, Int

from blpjax.kernels.arrays import AnyArray, namespace, times, transposed, with_diagonal
from blpjax.kernels.removal import removal
from blpjax.kernels.shares import Nests, choices, inclusive_values


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
    With nests, see `blpjax.kernels.removal`.
    Source: Conlon and Mortimer (2021), the average treatment effect.
    """
    found = choices(utilities, availability, nests)
    P, xp = found.inside, namespace(utilities)
    if nests is not None:
        gained = removal(found, nests)
        leaving = weights[..., None, :] * gained.everywhere
        inside = leaving @ transposed(P)
        for level, more in zip(nests.levels, gained.within, strict=True):
            inside += level.same(xp.ones_like(level.rho)) * ((weights[..., None, :] * more) @ transposed(P))
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
