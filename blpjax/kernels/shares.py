"""Utilities, choice probabilities and market shares of one market.

One market has J products, I agents and K2 characteristics with random coefficients. Agent i's utility from product j is
``V_ji = delta_j + X2_j' C_i`` with tastes ``C = Sigma nu' + Pi d'``, next to an outside good of utility zero.
Availability ``a`` multiplies ``exp V``: zero removes a product from an agent's choice set. Padded products are
unavailable products.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

_LARGEST_EXPONENT = 700.0


def tastes(
    sigma: Float[Array, "K2 R"],
    pi: Float[Array, "K2 D"],
    nodes: Float[Array, "I R"],
    demographics: Float[Array, "I D"],
) -> Float[Array, "K2 I"]:
    """Agent-specific deviations from mean tastes, ``C = Sigma nu' + Pi d'``.

    `sigma` holds the columns of the Cholesky root that are not all zero, one for each column of `nodes` (R may be 0).
    """
    return sigma @ nodes.T + pi @ demographics.T


def probabilities(
    utilities: Float[Array, "J I"], availability: Float[Array, "J #I"]
) -> tuple[Float[Array, "J I"], Float[Array, " I"]]:
    """Choice probabilities of every product and of the outside good.

    The largest utility is subtracted before exponentials are taken, so that nothing overflows. The outside probability
    is computed directly, not as one minus a sum.

    Returns
    -------
    inside : (J, I) probabilities ``s_ji = a_ji exp(V_ji) / (1 + sum_k a_ki exp(V_ki))``.
    outside : (I,) probabilities of the outside good.
    """
    exponentials, none = scaled_exponentials(utilities, availability)
    denominator = none + exponentials.sum(axis=0)
    return exponentials / denominator[None, :], none / denominator


def scaled_exponentials(
    utilities: Float[Array, "J I"], availability: Float[Array, "J #I"]
) -> tuple[Float[Array, "J I"], Float[Array, " I"]]:
    """``a exp V`` of every product (J, I) and of the outside good (I,), scaled.

    They are divided by the exponential of each agent's largest utility of an available product or the outside good.
    """
    largest = jax.lax.stop_gradient(jnp.where(availability > 0, utilities, 0.0).max(axis=0, initial=0.0))
    below = utilities - largest[None, :]
    # Only the utility of an unavailable product can be that large: it must not overflow before it is multiplied by
    # zero. Not jnp.minimum: on CPUs XLA may make it 700 where one argument is NaN.
    return availability * jnp.exp(jnp.where(below > _LARGEST_EXPONENT, _LARGEST_EXPONENT, below)), jnp.exp(-largest)


@jax.custom_jvp
def shares(
    delta: Float[Array, " J"],
    X2: Float[Array, "J K2"],
    C: Float[Array, "K2 I"],
    weights: Float[Array, " I"],
    availability: Float[Array, "J #I"],
) -> Float[Array, " J"]:
    """Market shares ``s_j = sum_i w_i s_ji``.

    The derivative rule is written in matrix products, ``P (w o dC_k')`` and the like, so that a derivative in any
    number of parameters never holds a J x I array for each of them.
    """
    inside, _ = probabilities(delta[:, None] + X2 @ C, availability)
    return inside @ weights


def _shares_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    delta, X2, C, weights, availability = primals
    d_delta, d_X2, d_C, d_weights, d_availability = tangents
    utilities = delta[:, None] + X2 @ C
    P, _ = probabilities(utilities, availability)
    s = P @ weights
    # every part below is ds_j = sum_i w_i P_ji (dV_ji - sum_k P_ki dV_ki); the agent-level sums are added up first
    ds = jnp.zeros_like(s)
    agent = jnp.zeros_like(weights)
    if not isinstance(d_delta, SymbolicZero):
        ds += d_delta * s
        agent += P.T @ d_delta
    if not isinstance(d_C, SymbolicZero):
        ds += (X2 * (P @ (weights[:, None] * d_C.T))).sum(axis=1)
        agent += (d_C * (X2.T @ P)).sum(axis=0)
    if not isinstance(d_X2, SymbolicZero):
        ds += (d_X2 * (P @ (weights[:, None] * C.T))).sum(axis=1)
        agent += (C * (d_X2.T @ P)).sum(axis=0)
    if not isinstance(d_availability, SymbolicZero):
        _, d_P = jax.jvp(lambda a: probabilities(utilities, a)[0], (availability,), (d_availability,))
        ds += d_P @ weights
    if not isinstance(d_weights, SymbolicZero):
        ds += P @ d_weights
    return s, ds - P @ (weights * agent)


shares.defjvp(_shares_jvp, symbolic_zeros=True)


def share_jacobian(
    P: Float[Array, "J I"], weights: Float[Array, " I"], values: Float[Array, "J I"] | None = None
) -> Float[Array, "J J"]:
    """Derivatives of shares in utilities, ``H = diag(P w) - P diag(w) P'``, symmetric.

    With `values` (J, I), the derivative of each product's utility for each agent in some variable of product k, the
    entry (j, k) is ``ds_j / dx_k = 1[j = k] sum_i w_i P_ji values_ji - sum_i w_i P_ji P_ki values_ki``.
    """
    weighted = P * weights[None, :]
    moved = P if values is None else P * values
    own = weighted.sum(axis=1) if values is None else (weighted * values).sum(axis=1)
    return jnp.diag(own) - weighted @ moved.T
