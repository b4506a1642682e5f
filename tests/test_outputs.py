"""Elasticities and diversion ratios: closed forms of the logit, differences of shares, and adding up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.kernels.outputs import demand_jacobian, diversion_ratios, elasticities
from tests.economies import MARKETS, J, Market, loop_shares, market, pad
from tests.tolerances import CENTRAL_DIFFERENCE, LINEAR_ALGEBRA, ROUNDING

every_market = pytest.mark.parametrize("m", MARKETS.values(), ids=MARKETS)

#: Utility falls in the variable x, on average by this much, and moves with tastes for the second characteristic.
SLOPE = -1.3


@jax.jit
def jacobian_of(
    delta: jax.Array, X2: jax.Array, C: jax.Array, weights: jax.Array, availability: jax.Array, slope: jax.Array
) -> jax.Array:
    X2_slope = jnp.zeros_like(X2).at[:, 1].set(1.0)
    return demand_jacobian(delta, X2, C, weights, availability, slope, X2_slope)


def jacobian(m: Market) -> jax.Array:
    return jacobian_of(*map(jnp.asarray, m[:5]), jnp.full(m.delta.size, SLOPE))


@every_market
def test_demand_jacobian_agrees_with_differences_of_shares(m: Market) -> None:
    """Tastes can be large: the step is small relative to them."""
    step, difference = 2e-6, np.zeros((J, J))
    for k in range(J):
        moved = []
        for sign in (1, -1):
            delta, X2 = m.delta.copy(), m.X2.copy()
            delta[k] += sign * step * SLOPE
            X2[k, 1] += sign * step
            moved.append(loop_shares(delta, X2, m.C, m.weights, m.availability))
        difference[:, k] = (moved[0] - moved[1]) / (2 * step)
    CENTRAL_DIFFERENCE.check(jacobian(m), difference)


def test_elasticities_of_the_logit_in_closed_form() -> None:
    """``alpha x_k (1[j = k] - s_k)`` without random coefficients."""
    m = MARKETS["no heterogeneity"]
    x = np.linspace(0.5, 2.0, J)
    actual = elasticities(jacobian(m), jnp.asarray(x), jnp.asarray(m.shares))
    ROUNDING.check(actual, SLOPE * x[None, :] * (np.eye(J) - m.shares[None, :]))


def test_diversion_of_the_logit_in_closed_form() -> None:
    """``s_k / (1 - s_j)``, and to the outside good on the diagonal."""
    m = MARKETS["no heterogeneity"]
    expected = np.broadcast_to(m.shares, (J, J)) / (1 - m.shares)[:, None]
    np.fill_diagonal(expected := expected.copy(), (1 - m.shares.sum()) / (1 - m.shares))
    LINEAR_ALGEBRA.check(diversion_ratios(jacobian(m)), expected)


@every_market
def test_diversion_ratios_sum_to_one(m: Market) -> None:
    LINEAR_ALGEBRA.check(diversion_ratios(jacobian(m)).sum(axis=1), np.ones(J))


def test_padded_products_leave_the_others_alone_and_finite() -> None:
    m = market(31)
    large, x = pad(m, J + 2, m.weights.size + 3), np.linspace(1.0, 2.0, J + 2)
    for output in (
        lambda m: jacobian(m),
        lambda m: elasticities(jacobian(m), jnp.asarray(x[: m.delta.size]), jnp.asarray(m.shares)),
        lambda m: diversion_ratios(jacobian(m)),
    ):
        padded, exact = output(large), output(m)
        assert np.isfinite(padded).all()
        ROUNDING.check(padded[:J, :J], exact)


def test_elasticities_are_differentiable_at_padded_products() -> None:
    m = pad(market(32), J + 1, 25)
    gradient = jax.grad(
        lambda delta: elasticities(
            jacobian_of(delta, *map(jnp.asarray, m[1:5]), jnp.full(J + 1, SLOPE)),
            jnp.ones(J + 1),
            jnp.asarray(m.shares),
        ).sum()
    )(jnp.asarray(m.delta))
    assert np.isfinite(gradient).all()
