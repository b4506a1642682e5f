"""What demand implies, in one market: derivatives, elasticities, diversion, surplus and concentration.

Rows and columns of padded products hold finite numbers without meaning.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from blpjax.kernels.shares import Nests, inclusive_values, probabilities


def elasticities(
    jacobian: Float[Array, "J J"], x: Float[Array, " J"], shares: Float[Array, " J"]
) -> Float[Array, "J J"]:
    """``x_k / s_j ds_j / dx_k``: percentage change of the share of the row's product per per cent of the column's x."""
    positive = jnp.where(shares > 0, shares, 1.0)
    return jacobian * x[None, :] / positive[:, None]


def diversion_ratios(jacobian: Float[Array, "J J"]) -> Float[Array, "J J"]:
    """``-(ds_k / dx_j) / (ds_j / dx_j)``: where the row's product loses its customers to.

    Diversion to the outside good stands on the diagonal, so that rows sum to one.
    """
    own = jnp.diagonal(jacobian)
    safe = jnp.where(own != 0, own, 1.0)
    ratios = -jacobian.T / safe[:, None]
    outside = jacobian.sum(axis=0) / safe
    return ratios.at[jnp.diag_indices(own.size)].set(outside)


def long_run_diversion_ratios(
    utilities: Float[Array, "J I"],
    weights: Float[Array, " I"],
    availability: Float[Array, "J #I"],
    nests: Nests | None = None,
) -> Float[Array, "J J"]:
    """``(s_k(-j) - s_k) / s_j``: where the row's product loses its customers to when it is removed.

    Diversion to the outside good stands on the diagonal, so that rows sum to one. Removing product j multiplies the
    other probabilities of agent i by ``1 / (1 - P_ji)``, so ``s_k(-j) - s_k = sum_i w_i P_ji P_ki / (1 - P_ji)``.
    With nests, shares are computed again without each of the products.
    Source: Conlon and Mortimer (2021), the average treatment effect.
    """
    if nests is not None:
        return _removals(utilities, weights, availability, nests)
    P, outside = probabilities(utilities, availability)
    # 1 - P_j as a sum of the other probabilities, which keeps its digits where P_j is nearly one
    none = jnp.zeros_like(P[:1])
    before = jnp.concatenate([none, jnp.cumsum(P, axis=0)[:-1]])
    after = jnp.concatenate([jnp.cumsum(P[::-1], axis=0)[::-1][1:], none])
    others = outside[None, :] + before + after
    leaving = weights[None, :] * P / jnp.where(others > 0, others, 1.0)
    shares = P @ weights
    safe = jnp.where(shares != 0, shares, 1.0)
    ratios = (leaving @ P.T) / safe[:, None]
    return ratios.at[jnp.diag_indices(shares.size)].set((leaving @ outside) / safe)


def _removals(utilities: Array, weights: Array, availability: Array, nests: Nests) -> Array:
    P, outside = probabilities(utilities, availability, nests)

    def without(one: Array) -> tuple[Array, Array]:
        removed = jnp.where(one[:, None], 0.0, availability)
        fewer, none = probabilities(utilities, removed, nests)
        return (fewer - P) @ weights, (none - outside) @ weights

    inside, none = jax.lax.map(without, jnp.eye(P.shape[0], dtype=bool))
    shares = P @ weights
    safe = jnp.where(shares != 0, shares, 1.0)
    return (inside / safe[:, None]).at[jnp.diag_indices(shares.size)].set(none / safe)


def consumer_surpluses(
    utilities: Float[Array, "J I"],
    slopes: Float[Array, " I"],
    availability: Float[Array, "J #I"],
    nests: Nests | None = None,
) -> Float[Array, " I"]:
    """Surplus ``log(1 + sum_j a_ji exp V_ji) / (-dV_1i / dp_1)`` of each agent (Small and Rosen 1981).

    With nests, inclusive values of groups take the place of utilities. `slopes` (I,) are derivatives of utility in
    price. The surplus has a meaning where they are the same for all products.
    """
    return inclusive_values(utilities, availability, nests) / -slopes


def herfindahl_hirschman_index(shares: Float[Array, " J"], firms: Int[Array, " J"]) -> Float[Array, ""]:
    """``10,000 sum_f (sum_{j in f} s_j / sum_j s_j)^2`` over shares of inside sales.

    `firms` are codes of firms, negative ones for padding.
    """
    same = (firms[:, None] == firms[None, :]) & (firms >= 0)[None, :]
    return 1e4 * (shares @ same.astype(float) @ shares) / shares.sum() ** 2
