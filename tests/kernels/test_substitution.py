"""Outputs of one market: closed forms of the logit, differences and loops, and adding up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.kernels import substitution
from blpjax.kernels.demand import DemandPoint
from tests.support.economies import MARKETS, J, Market, loop_shares, market, pad
from tests.tolerances import CENTRAL_DIFFERENCE, LINEAR_ALGEBRA, ROUNDING

pytestmark = pytest.mark.usefixtures("several_buckets")

every_market = pytest.mark.parametrize("m", MARKETS.values(), ids=MARKETS)

# Compiled as a whole: one operation after another takes longer.
consumer_surpluses, diversion_ratios, elasticities, herfindahl_hirschman_index, long_run_diversion_ratios = map(
    jax.jit,
    (
        substitution.consumer_surpluses,
        substitution.diversion_ratios,
        substitution.elasticities,
        substitution.herfindahl_hirschman_index,
        substitution.long_run_diversion_ratios,
    ),
)

#: Utility falls in the variable x, on average by this much, and moves with tastes for the second characteristic.
SLOPE = -1.3


@jax.jit
def jacobian_of(
    delta: jax.Array, X2: jax.Array, C: jax.Array, weights: jax.Array, availability: jax.Array, slope: jax.Array
) -> jax.Array:
    X2_slope = jnp.zeros_like(X2).at[:, 1].set(1.0)
    present = (availability > 0).any(axis=1)
    return DemandPoint(delta, X2, C, weights, availability, slope, X2_slope, present).jacobian()


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


def utilities(m: Market) -> jax.Array:
    return jnp.asarray(m.delta[:, None] + m.X2 @ m.C)


def long_run(m: Market) -> jax.Array:
    return long_run_diversion_ratios(utilities(m), jnp.asarray(m.weights), jnp.asarray(m.availability))


@every_market
def test_long_run_diversion_is_what_others_gain_when_a_product_is_removed(m: Market) -> None:
    """Gains are differences of shares, accurate to rounding errors of the largest."""
    expected = np.zeros((J, J))
    for j in range(J):
        left = m.availability.copy()
        left[j] = 0.0
        gains = loop_shares(m.delta, m.X2, m.C, m.weights, left) - m.shares
        expected[j] = gains / m.shares[j]
        expected[j, j] = -gains.sum() / m.shares[j]  # what the outside good gains: weights of any sum cancel
    if m.shares.min() > 1e-6:
        CENTRAL_DIFFERENCE.check(long_run(m), expected)
    LINEAR_ALGEBRA.check(long_run(m).sum(axis=1), np.ones(J))


def test_long_run_diversion_of_a_product_that_everybody_chooses() -> None:
    """Its customers go where the next best utility is, however small other probabilities are."""
    ratios = long_run_diversion_ratios(jnp.array([[60.0], [1.0], [0.0]]), jnp.ones(1), jnp.ones((3, 1)))
    expected = np.exp([0.0, 1.0, 0.0])
    LINEAR_ALGEBRA.check(ratios[0], expected / expected.sum())


@jax.jit
@jax.grad
def _surplus_gradient(V: Any, slopes: Any, availability: Any) -> Any:
    return consumer_surpluses(V, slopes, availability).sum()


@every_market
def test_surplus_is_the_expected_utility_of_the_best_choice(m: Market) -> None:
    """Also where utilities overflow, and of products that some cannot choose."""
    rng = np.random.default_rng(3)
    slopes, availability = -rng.uniform(0.5, 2, m.weights.size), rng.uniform(0, 1, (J, m.weights.size)).round()
    V = np.asarray(utilities(m))
    exponentials = np.where(availability > 0, np.exp(V.astype(np.longdouble)), 0)
    expected = np.log1p(exponentials.sum(axis=0)).astype(float) / -slopes
    ROUNDING.check(consumer_surpluses(jnp.asarray(V), jnp.asarray(slopes), jnp.asarray(availability)), expected)
    huge = consumer_surpluses(jnp.asarray(V) + 1000.0, jnp.asarray(slopes), jnp.ones(V.shape))
    assert np.isfinite(huge).all() and (huge >= (V.max(axis=0) + 1000.0) / -slopes).all()
    assert np.isfinite(_surplus_gradient(V, slopes, availability)).all()


def test_concentration_is_that_of_inside_sales_by_firm() -> None:
    shares, firms = jnp.array([0.1, 0.2, 0.1, 0.0]), jnp.array([4, 0, 4, -1])
    ROUNDING.check(herfindahl_hirschman_index(shares, firms), 1e4 * 0.5)
    ROUNDING.check(herfindahl_hirschman_index(shares, jnp.zeros(4, int)), 1e4)


@pytest.mark.slow
def test_padded_products_leave_the_others_alone_and_finite() -> None:
    m = market(31)
    large, x = pad(m, J + 2, m.weights.size + 3), np.linspace(1.0, 2.0, J + 2)
    for output in (
        long_run,
        lambda m: jacobian(m),
        lambda m: elasticities(jacobian(m), jnp.asarray(x[: m.delta.size]), jnp.asarray(m.shares)),
        lambda m: diversion_ratios(jacobian(m)),
    ):
        padded, exact = output(large), output(m)
        assert np.isfinite(padded).all()
        ROUNDING.check(padded[:J, :J], exact)


def test_elasticities_are_differentiable_at_padded_products() -> None:
    m = pad(market(32), J + 1, 25)
    gradient = jax.jit(
        jax.grad(
            lambda delta: elasticities(
                jacobian_of(delta, *map(jnp.asarray, m[1:5]), jnp.full(J + 1, SLOPE)),
                jnp.ones(J + 1),
                jnp.asarray(m.shares),
            ).sum()
        )
    )(jnp.asarray(m.delta))
    assert np.isfinite(gradient).all()
