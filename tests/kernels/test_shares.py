"""Market shares: against a plain loop, exact removal of unavailable products, overflow, and the derivative rule."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.kernels.shares import choices, probabilities, share_jacobian, shares, tastes
from tests.support.designs import mostly_slow
from tests.support.economies import MARKETS, I, J, Market, loop_shares, market, pad, stack
from tests.tolerances import CENTRAL_DIFFERENCE, ROUNDING

ARGUMENTS = ("delta", "X2", "C", "weights", "availability")
Arguments = tuple[jax.Array, ...]


def arguments(m: Market) -> Arguments:
    return tuple(jnp.asarray(getattr(m, name)) for name in ARGUMENTS)


def plain_shares(delta: Any, X2: Any, C: Any, weights: Any, availability: Any) -> jax.Array:
    """Shares as JAX would differentiate them by itself, without protection against overflow."""
    exponentials = availability * jnp.exp(delta[:, None] + X2 @ C)
    return (exponentials / (1 + exponentials.sum(axis=0))[None, :]) @ weights


def available_market() -> Market:
    """A market in which availability differs between agents, is not only zero or one, and removes some choices."""
    m = market(11)
    rng = np.random.default_rng(12)
    factors = rng.uniform(0.3, 2.0, (J, I)) * (rng.uniform(size=(J, I)) > 0.3)
    return m._replace(availability=factors, shares=loop_shares(*m[:4], factors))


@pytest.mark.parametrize("m", [*MARKETS.values(), available_market()], ids=[*MARKETS, "availability"])
def test_shares_are_those_of_a_loop_over_agents(m: Market) -> None:
    ROUNDING.check(jax.jit(shares)(*arguments(m)), loop_shares(*m[:5]))


def test_probabilities_sum_to_one_with_the_outside_good() -> None:
    m = available_market()
    inside, outside = jax.jit(probabilities)(jnp.asarray(m.delta[:, None] + m.X2 @ m.C), jnp.asarray(m.availability))
    ROUNDING.check(inside.sum(axis=0) + outside, np.ones(I))
    assert (np.asarray(inside)[m.availability == 0] == 0).all()


def test_tastes_are_sigma_nu_plus_pi_d() -> None:
    rng = np.random.default_rng(0)
    sigma, pi, nodes, demographics = (rng.normal(size=shape) for shape in ((3, 2), (3, 4), (5, 2), (5, 4)))
    actual = tastes(*map(jnp.asarray, (sigma, pi, nodes, demographics)))
    for i in range(5):
        ROUNDING.check(actual[:, i], sigma @ nodes[i] + pi @ demographics[i])


@jax.jit
def _two_orders(*arrays: Any) -> tuple[Any, ...]:
    return shares(*arrays), jax.jacfwd(shares, (0, 1, 2))(*arrays), jax.jacfwd(jax.jacrev(shares))(*arrays)


@pytest.mark.parametrize("common", [0.0, 1000.0, -1000.0])
def test_nothing_overflows_at_extreme_utilities(common: float) -> None:
    m = market(13)
    delta = common + np.array([1000.0, -1000.0, 999.0, 0.0, 1.0, -5.0])
    changed = m._replace(delta=delta)
    arrays = arguments(changed)
    found = _two_orders(*arrays)
    for values in jax.tree.leaves(found):
        assert np.isfinite(values).all()
    ROUNDING.check(found[0], loop_shares(*changed[:5]))


@pytest.mark.parametrize("utility", [0.0, 3.0, 1000.0, -1000.0])
def test_an_unavailable_product_has_no_influence(utility: float) -> None:
    """Values and derivatives of the other products are those of the market without it, whatever its utility is."""
    m = market(14)
    small = Market(m.delta[:-1], m.X2[:-1], m.C, m.weights, m.availability[:-1], m.shares[:-1])
    removed = m.availability.copy()
    removed[-1] = 0.0
    large = m._replace(delta=np.r_[m.delta[:-1], utility], availability=removed)
    _compare_padded(large, small)


def test_padding_changes_nothing() -> None:
    small = Market(*(a[:4] if a.shape[0] == J else a for a in market(15)))
    _compare_padded(pad(small, J, I), small)


@jax.jit
def _everything(*arrays: jax.Array) -> tuple[Any, ...]:
    def value(delta: Any, X2: Any, C: Any) -> Any:
        return shares(delta, X2, C, *arrays[3:])

    first = jax.jacfwd(value, (0, 1, 2))(*arrays[:3])
    second = jax.jacfwd(jax.jacrev(value, (0, 1)), (0, 2))(*arrays[:3])
    return value(*arrays[:3]), first, second


def _compare_padded(large: Market, small: Market) -> None:
    n, m = small.delta.size, small.weights.size
    padded, exact = _everything(*arguments(large)), _everything(*arguments(small))
    for long, short in zip(jax.tree.leaves(padded), jax.tree.leaves(exact), strict=True):
        assert np.isfinite(long).all()
        kept = np.asarray(long)[tuple(slice(size) for size in np.shape(short))]
        np.testing.assert_allclose(kept, short, rtol=1e-13, atol=1e-14)
        # the share of an unavailable product is zero, and so are all of its derivatives and those of padded agents
        outside = np.asarray(long).copy()
        outside[tuple(slice(size) for size in np.shape(short))] = 0.0
        assert (outside == 0).all()
    assert m == np.shape(exact[1][2])[2] and n == exact[0].size


@pytest.fixture(scope="module")
def directions() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(20)
    m = available_market()
    return tuple(rng.normal(size=getattr(m, name).shape) for name in ARGUMENTS)


def _derivatives(function: Any, which: int, arrays: Arguments, directions: Arguments) -> dict[str, jax.Array]:
    """Derivatives in one argument, alone and mixed with a direction in all of them, in all modes."""

    def alone(value: Any) -> Any:
        return function(*arrays[:which], value, *arrays[which + 1 :])

    def in_one(*values: Any) -> Any:
        return jax.jvp(
            lambda v: function(*values[:which], v, *values[which + 1 :]), (values[which],), (directions[which],)
        )[1]

    def reverse(*values: Any) -> Any:
        return jax.vjp(lambda v: function(*values[:which], v, *values[which + 1 :]), values[which])[1](cotangent)[0]

    cotangent = jnp.cos(jnp.arange(arrays[0].size) + 1.0)
    return {
        "forward": jax.jvp(alone, (arrays[which],), (directions[which],))[1],
        "reverse": jax.vjp(alone, arrays[which])[1](cotangent)[0],
        "forward over forward": jax.jvp(in_one, arrays, directions)[1],
        "forward over reverse": jax.jvp(reverse, arrays, directions)[1],
        "reverse over forward": jax.vjp(in_one, *arrays)[1](cotangent),
        "reverse over reverse": jax.vjp(reverse, *arrays)[1](directions[which]),
    }


def which_arguments(*fast: str) -> Any:
    return pytest.mark.parametrize("which", mostly_slow({name: k for k, name in enumerate(ARGUMENTS)}, fast))


@which_arguments("availability")
def test_derivative_rule_agrees_with_differentiation_of_the_formula(
    which: int, directions: tuple[np.ndarray, ...]
) -> None:
    arrays, moved = arguments(available_market()), tuple(map(jnp.asarray, directions))
    actual = jax.jit(partial(_derivatives, shares, which))(arrays, moved)
    expected = jax.jit(partial(_derivatives, plain_shares, which))(arrays, moved)
    for name in expected:
        for one, other in zip(jax.tree.leaves(actual[name]), jax.tree.leaves(expected[name]), strict=True):
            ROUNDING.check(one, other, name)


@which_arguments("X2")
def test_derivative_rule_agrees_with_central_differences(which: int, directions: tuple[np.ndarray, ...]) -> None:
    arrays, direction, step = arguments(available_market()), directions[which], 1e-5

    def alone(value: Any) -> Any:
        return shares(*arrays[:which], value, *arrays[which + 1 :])

    @jax.jit
    def first(value: Any) -> Any:
        return jax.jvp(alone, (value,), (jnp.asarray(direction),))[1]

    def moved(sign: int) -> list[np.ndarray]:
        values = [np.asarray(a) for a in arrays]
        values[which] = values[which] + sign * step * direction
        return values

    difference = (loop_shares(*moved(1)) - loop_shares(*moved(-1))) / (2 * step)
    CENTRAL_DIFFERENCE.check(first(arrays[which]), difference, "first")
    second = jax.jit(lambda value: jax.jvp(first, (value,), (jnp.asarray(direction),))[1])(arrays[which])
    up, down = (np.asarray(first(jnp.asarray(moved(sign)[which]))) for sign in (1, -1))
    of_first = (up - down) / (2 * step)
    if ARGUMENTS[which] == "weights":
        assert (np.asarray(second) == 0).all()
    else:
        CENTRAL_DIFFERENCE.check(second, of_first, "second")


@pytest.mark.slow
def test_derivatives_under_vmap_are_those_of_each_market() -> None:
    markets = list(MARKETS.values())[:3]
    both = jax.jit(jax.vmap(jax.jacfwd(jax.jacrev(shares), (0, 2))))(*(jnp.asarray(a) for a in stack(markets)[:5]))
    both, single = list(map(np.asarray, both)), jax.jit(jax.jacfwd(jax.jacrev(plain_shares), (0, 2)))
    for t, m in enumerate(markets):
        one = single(*arguments(m))
        for mapped, expected in zip(both, one, strict=True):
            ROUNDING.check(mapped[t], expected)


def test_all_arguments_at_once_under_vmap_of_directions() -> None:
    """Jacobians in everything at once are those in each argument alone."""
    arrays = arguments(available_market())
    together = jax.jit(jax.jacfwd(shares, tuple(range(5))))(*arrays)
    expected = jax.jit(jax.jacrev(plain_shares, tuple(range(5))))(*arrays)
    for one, other, name in zip(together, expected, ARGUMENTS, strict=True):
        ROUNDING.check(one, other, name)


def test_share_jacobian_is_the_derivative_in_delta() -> None:
    arrays = arguments(available_market())

    @jax.jit
    def both(delta: Any, X2: Any, C: Any, weights: Any, availability: Any) -> tuple[Any, Any]:
        found = share_jacobian(choices(delta[:, None] + X2 @ C, availability), weights)
        return found, jax.jacfwd(plain_shares)(delta, X2, C, weights, availability)

    H, expected = both(*arrays)
    ROUNDING.check(H, expected)
    ROUNDING.check(H, np.asarray(H).T)


def test_share_jacobian_with_values_is_the_derivative_in_a_characteristic() -> None:
    """With agent-specific slopes of utility, here the tastes for the second characteristic."""

    @jax.jit
    def both(delta: Any, X2: Any, C: Any, weights: Any, availability: Any) -> tuple[Any, Any]:
        found = choices(delta[:, None] + X2 @ C, availability)
        actual = share_jacobian(found, weights, jnp.broadcast_to(C[1], found.inside.shape))
        return actual, jax.jacfwd(lambda x: plain_shares(delta, X2.at[:, 1].set(x), C, weights, availability))(X2[:, 1])

    ROUNDING.check(*both(*arguments(available_market())))


@pytest.mark.parametrize("markets", [1, 1000])
def test_missing_utilities_have_missing_shares(markets: int) -> None:
    """In as many markets as make XLA vectorise loops, too."""
    m = market(1)
    _, X2, C, weights, availability = arguments(m)
    delta = jnp.full((markets, J), jnp.nan)
    found = jax.jit(jax.vmap(lambda delta: shares(delta, X2, C, weights, availability)))(delta)
    assert np.isnan(found).all()
