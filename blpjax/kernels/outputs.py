"""What demand implies, in one market: derivatives, elasticities and diversion.

Rows and columns of padded products hold finite numbers without meaning.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.kernels.shares import probabilities, share_jacobian


def demand_jacobian(
    delta: Float[Array, " J"],
    X2: Float[Array, "J K2"],
    C: Float[Array, "K2 I"],
    weights: Float[Array, " I"],
    availability: Float[Array, "J #I"],
    delta_slope: Float[Array, " J"],
    X2_slope: Float[Array, "J K2"],
) -> Float[Array, "J J"]:
    """Derivatives ``ds_j / dx_k`` of shares in a variable x that is specific to products.

    `delta_slope` (J,) is ``d delta_k / dx_k``, the linear part of utility, and `X2_slope` (J, K2) is ``dX2_k / dx_k``.
    """
    P, _ = probabilities(delta[:, None] + X2 @ C, availability)
    return share_jacobian(P, weights, delta_slope[:, None] + X2_slope @ C)


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
