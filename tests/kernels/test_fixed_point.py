"""Loops: they find the fixed point, count what they do, say truthfully how they ended; the implicit derivative rule."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from blpjax.exceptions import Status
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.fixed_point import ROUNDING_FLOOR, FixedPoint, Image, NewtonPoint, iterate, newton, safeguarded
from blpjax.kernels.implicit import implicit
from tests.support.designs import mostly_slow
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, ROUNDING

LOOPS = {
    "simple": FixedPointMethod("simple"),
    "squarem 1": FixedPointMethod("squarem", scheme=1),
    "squarem 2": FixedPointMethod("squarem", scheme=2),
    "squarem 3": FixedPointMethod("squarem", scheme=3),
    "anderson": FixedPointMethod("anderson"),
}
#: SQUAREM's schemes differ in the length of a step alone.
every_loop = pytest.mark.parametrize("method", mostly_slow(LOOPS, ["squarem 3", "anderson"]))
one_loop = pytest.mark.parametrize("method", mostly_slow(LOOPS, ["anderson"]))
LIMITS = FixedPointLimits(atol=1e-13, max_evaluations=2000)


class Linear(NamedTuple):
    """Of a linear map ``x <- A x + b``, and its fixed point."""

    A: np.ndarray
    b: np.ndarray
    solution: np.ndarray


def linear(rates: np.ndarray) -> Linear:
    """A linear map with these eigenvalues, six of them everywhere."""
    rng = np.random.default_rng(3)
    Q, _ = np.linalg.qr(rng.normal(size=(rates.size, rates.size)))
    A, b = Q @ np.diag(rates) @ Q.T, rng.normal(size=rates.size)
    return Linear(A, b, np.linalg.solve(np.eye(rates.size) - A, b))


def affine(x: Any, A: Any, b: Any) -> Any:
    return A @ x + b


#: Maps of which a program has all, of which it is told one.
MAPS: dict[str, Callable[[Any], Any]] = {
    "cosine": jnp.cos,
    "missing": lambda x: x * jnp.nan,
    "becomes infinite": lambda x: jnp.where(x > -100.0, x - 30.0 - x**2, jnp.nan),
    "without a fixed point": lambda x: x + jnp.exp(x) + 1e-3,
}


def chosen(x: Any, which: Any) -> Any:
    return jax.lax.switch(which, list(MAPS.values()), x)


@cache
def program(method: FixedPointMethod, contraction: Callable[..., Any]) -> Any:
    """``solve(start, limits, *known)``, compiled once for all tests."""

    @jax.jit
    def solve(start: Any, limits: FixedPointLimits, *known: Any) -> FixedPoint:
        return iterate(method, lambda x: contraction(x, *known), start, limits)

    return solve


def run(
    method: FixedPointMethod,
    contraction: Callable[..., Any] | str,
    start: Any,
    limits: FixedPointLimits = LIMITS,
    known: tuple[Any, ...] = (),
) -> FixedPoint:
    """Iterate on a map of what is known, or on one of `MAPS`."""
    if isinstance(contraction, str):
        contraction, known = chosen, (np.asarray(list(MAPS).index(contraction)),)
    return jax.tree.map(np.asarray, program(method, contraction)(jnp.asarray(start, float), limits, *known))


def run_linear(method: FixedPointMethod, known: Linear, limits: FixedPointLimits = LIMITS) -> FixedPoint:
    return run(method, affine, np.zeros(6), limits, (known.A, known.b))


@every_loop
def test_loops_find_the_fixed_point_of_a_linear_map(method: FixedPointMethod) -> None:
    known = linear(np.linspace(0.1, 0.9, 6))
    found = run_linear(method, known)
    assert found.status == Status.CONVERGED and found.residual <= 1e-13
    DELTA.check(found.value, known.solution)


@every_loop
def test_loops_find_the_fixed_point_of_a_nonlinear_map(method: FixedPointMethod) -> None:
    found = run(method, "cosine", [0.0, 1.0, -3.0])
    assert found.status == Status.CONVERGED
    DELTA.check(found.value, np.full(3, 0.7390851332151607))


@pytest.mark.parametrize(
    "method", mostly_slow({name: LOOPS[name] for name in list(LOOPS)[1:]}, ["squarem 3", "anderson"])
)
def test_acceleration_needs_fewer_evaluations(method: FixedPointMethod) -> None:
    known = linear(np.linspace(0.1, 0.95, 6))
    plain = run_linear(LOOPS["simple"], known)
    assert int(run_linear(method, known).evaluations) < int(plain.evaluations) / 3


def test_simple_iteration_takes_as_many_evaluations_as_theory_says() -> None:
    """With ``x <- x / 2 + b`` from zero, change number n is ``b 2^(1 - n)``."""
    limits = FixedPointLimits(atol=1e-9, max_evaluations=1000)
    found = run(LOOPS["simple"], lambda x: 0.5 * x + 3.0, [0.0], limits)
    expected = math.ceil(math.log2(3.0 / 1e-9)) + 1
    assert int(found.evaluations) == int(found.iterations) == expected
    assert float(found.residual) == pytest.approx(3.0 * 2.0 ** (1 - expected), rel=1e-6)


@every_loop
def test_evaluations_are_counted_truly(method: FixedPointMethod) -> None:
    calls = 0

    def count(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return 0.8 * np.asarray(x) + np.array([1.0, -2.0, 0.5]) + 0.1 * np.sin(x)

    def contraction(x: Any) -> Any:
        return io_callback(count, jax.ShapeDtypeStruct((3,), float), x, ordered=True)

    found = run(method, contraction, np.zeros(3))
    jax.effects_barrier()
    assert found.status == Status.CONVERGED
    # a SQUAREM cycle is three evaluations: those after convergence is seen do nothing and are not counted
    spare = 2 if method.name == "squarem" else 0
    assert calls - spare <= int(found.evaluations) <= calls
    assert int(found.iterations) * (3 if method.name == "squarem" else 1) == calls


@every_loop
def test_reaching_the_limit_on_evaluations_is_no_success(method: FixedPointMethod) -> None:
    known = linear(np.linspace(0.5, 0.999, 6))
    found = run_linear(method, known, LIMITS._replace(max_evaluations=6))
    assert found.status == Status.MAX_EVALUATIONS
    assert int(found.evaluations) == 6
    assert found.residual > 1e-13
    assert np.abs(found.value - known.solution).max() > 1e-6


@every_loop
def test_a_limit_within_a_cycle_is_respected(method: FixedPointMethod) -> None:
    found = run_linear(method, linear(np.linspace(0.5, 0.999, 6)), LIMITS._replace(max_evaluations=5))
    assert int(found.evaluations) <= 5


@every_loop
def test_a_map_of_missing_values_fails_at_once(method: FixedPointMethod) -> None:
    found = run(method, "missing", np.ones(3))
    assert found.status == Status.NOT_FINITE and not np.isfinite(found.residual)
    assert int(found.evaluations) <= 3
    ROUNDING.check(found.value, np.ones(3))


@every_loop
def test_a_map_that_becomes_infinite_is_reported_as_such(method: FixedPointMethod) -> None:
    """Far below the limit on evaluations, that limit must not be blamed."""
    found = run(method, "becomes infinite", np.zeros(3))
    assert found.status in (Status.NOT_FINITE, Status.STALLED)
    assert int(found.evaluations) < 100


@every_loop
def test_a_diverging_map_is_no_success(method: FixedPointMethod) -> None:
    """``x <- x + exp(x)`` has no fixed point."""
    found = run(method, "without a fixed point", np.zeros(3), LIMITS._replace(max_evaluations=300))
    assert found.status > Status.ROUNDING_FLOOR


@every_loop
def test_success_means_that_the_change_is_small(method: FixedPointMethod) -> None:
    """An expanding map, which accelerated loops may solve: if they say so, it is true."""
    known = linear(np.array([-1.4, 0.3, 1.2, 0.0, 0.1, 0.2]))
    found = run_linear(method, known, LIMITS._replace(max_evaluations=300))
    if found.status <= Status.ROUNDING_FLOOR:
        np.testing.assert_allclose(found.value, known.solution, rtol=0, atol=1e-10)
    else:
        assert found.residual > ROUNDING_FLOOR
    if method.name == "simple":
        assert found.status > Status.ROUNDING_FLOOR


def noisy(x: Any, noise: Any) -> Any:
    """A contraction whose last digits are noise, as rounding errors make them."""
    return 0.5 * jnp.cos(x) + noise * jnp.sin(1e15 * x + jnp.arange(x.size))


@one_loop
def test_the_rounding_floor_is_a_success_below_1e_12(method: FixedPointMethod) -> None:
    found = run(method, noisy, np.zeros(40), LIMITS._replace(atol=0.0), (2e-14,))
    assert found.status == Status.ROUNDING_FLOOR
    assert 0 < found.residual <= ROUNDING_FLOOR
    assert int(found.evaluations) < 200
    np.testing.assert_allclose(found.value, 0.4501836112948736, atol=1e-12)


@one_loop
def test_noise_above_the_rounding_floor_is_no_success(method: FixedPointMethod) -> None:
    found = run(method, noisy, np.zeros(40), LIMITS._replace(max_evaluations=200), (1e-9,))
    assert found.status > Status.ROUNDING_FLOOR


def test_return_takes_the_start_as_the_solution() -> None:
    found = run(FixedPointMethod("return"), jnp.cos, [3.0, 4.0])
    assert found.status == Status.CONVERGED and int(found.evaluations) == int(found.iterations) == 0
    assert found.value.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("norm", [np.linalg.norm, lambda x: jnp.abs(x).sum()], ids=["numpy", "custom"])
def test_norms_decide_when_loops_stop(norm: Any) -> None:
    """Ten equal elements: a norm that adds them up asks for more than the largest element does."""
    limits = FixedPointLimits(atol=1e-6, max_evaluations=1000)
    found = run(FixedPointMethod("simple", norm=norm), lambda x: 0.9 * x + 1.0, np.zeros(100), limits)
    factor = 10 if norm is np.linalg.norm else 100
    assert int(found.evaluations) == math.ceil(math.log(factor / 1e-6) / -math.log(0.9)) + 1
    assert float(norm(np.asarray(found.value) * 0 + 1)) == factor


def test_relative_tolerances_are_relative_to_the_value() -> None:
    limits = FixedPointLimits(atol=0.0, rtol=1e-6, max_evaluations=1000)
    found = run(LOOPS["simple"], lambda x: 0.9 * x + 1e8, [0.0], limits)
    assert found.status == Status.CONVERGED
    assert 0.8e3 * 0.9 < float(found.residual) <= 1.0e3  # the solution is 1e9


@one_loop
def test_under_vmap_every_lane_is_what_it_is_alone(method: FixedPointMethod) -> None:
    """Lanes that are done wait, unchanged and uncounted."""

    def solve(rate: Any, start: Any) -> FixedPoint:
        return iterate(method, lambda x: rate * jnp.tanh(x) + 1.0, start, LIMITS)

    rates, starts = np.array([0.1, 0.6, 0.99, np.nan]), np.zeros((4, 2))
    starts[2] = 5.0
    together = jax.tree.map(np.asarray, jax.jit(jax.vmap(solve))(rates, starts))
    alone = jax.jit(solve)
    for t in range(4):
        one = alone(rates[t], starts[t])
        assert int(together.status[t]) == int(one.status)
        assert int(together.evaluations[t]) == int(one.evaluations)
        assert int(together.iterations[t]) == int(one.iterations)
        ROUNDING.check(together.value[t], one.value)
    assert together.status.tolist() == [0, 0, 0, int(Status.NOT_FINITE)]


@one_loop
def test_a_map_may_say_what_is_small_at_its_fixed_point(method: FixedPointMethod) -> None:
    """A gap a million times smaller than the change: loops stop earlier than they would, and report the gap."""

    def measured(x: Any) -> Image:
        return Image(jnp.cos(x), 1e-6 * (jnp.cos(x) - x))

    limits = LIMITS._replace(atol=1e-9)
    start = [0.5, 2.0, 1.0]
    found, usual = run(method, measured, start, limits), run(method, "cosine", start, limits)
    assert found.status == Status.CONVERGED and 0 < float(found.residual) <= 1e-9
    assert int(found.evaluations) < int(usual.evaluations)
    np.testing.assert_allclose(found.value, 0.7390851332151607, atol=2e-3)


@pytest.mark.parametrize("failing", [True, False])
def test_a_second_way_is_taken_only_where_the_first_failed(failing: bool) -> None:
    limits = LIMITS._replace(max_evaluations=50)
    first = run(LOOPS["simple"], "cosine", np.ones(3), LIMITS._replace(max_evaluations=10 if failing else 500))
    again = jax.jit(lambda found: safeguarded(found, partial(iterate, LOOPS["anderson"], jnp.cos), found.value, limits))
    found = again(first)
    assert found.status == Status.CONVERGED
    if failing:
        assert first.status == Status.MAX_EVALUATIONS and 10 < int(found.evaluations) < 50
        DELTA.check(found.value, np.full(3, 0.7390851332151607))
    else:
        assert int(found.evaluations) == int(first.evaluations) and found.value.tolist() == first.value.tolist()


def quadratic_point(x: Any) -> NewtonPoint:
    """Newton's method for ``x^3 = (1, 8)``, with half the squared residual as the merit."""
    residual = x**3 - jnp.array([1.0, 8.0])
    slope = -(residual @ residual)
    return NewtonPoint(-residual / (3 * x**2), jnp.abs(residual).max(), 0.5 * residual @ residual, slope)


solve_quadratic = jax.jit(partial(newton, quadratic_point))


def test_newton_converges_quadratically() -> None:
    found = solve_quadratic(np.array([2.0, 3.0]), LIMITS)
    assert found.status == Status.CONVERGED and int(found.evaluations) < 12
    ROUNDING.check(found.value, [1.0, 2.0])


def test_newton_counts_rejected_steps_as_evaluations_only() -> None:
    """From 0.05 the full step is 133 times too long, and its length is limited."""
    found = solve_quadratic(np.array([0.05, 0.05]), LIMITS)
    assert found.status == Status.CONVERGED
    assert int(found.evaluations) > int(found.iterations) + 1


def test_newton_without_progress_is_stalled() -> None:
    def uphill(x: Any) -> NewtonPoint:
        return NewtonPoint(jnp.ones_like(x), 1.0 + jnp.abs(x).max(), jnp.abs(x).sum(), -jnp.ones(()))

    found = jax.jit(partial(newton, uphill))(jnp.zeros(2), LIMITS)
    assert found.status == Status.STALLED and int(found.evaluations) < 60
    assert found.value.tolist() == [0.0, 0.0]


def test_newton_at_its_limit_and_at_missing_values() -> None:
    found = solve_quadratic(np.array([2.0, 3.0]), LIMITS._replace(max_evaluations=3))
    assert found.status == Status.MAX_EVALUATIONS and int(found.evaluations) == 3
    assert solve_quadratic(np.array([np.nan, 1.0]), LIMITS).status == Status.NOT_FINITE
    assert solve_quadratic(np.array([0.0, 1.0]), LIMITS).status > Status.ROUNDING_FLOOR


def test_newton_at_the_rounding_floor() -> None:
    """A third of the residual's last digits are noise: a tolerance of zero cannot be met."""

    def evaluate(x: Any) -> NewtonPoint:
        point = quadratic_point(x)
        return point._replace(residual=jnp.maximum(point.residual, 3e-14))

    found = jax.jit(partial(newton, evaluate))(jnp.array([2.0, 3.0]), LIMITS._replace(atol=0.0))
    assert found.status == Status.ROUNDING_FLOOR and found.residual <= ROUNDING_FLOOR


def cube_root(a: Any, scale: Any) -> Any:
    """The root of ``scale['s'] x^3 = a``, by a loop that JAX could not differentiate in reverse."""

    def solve(a: Any, scale: Any) -> FixedPoint:
        return newton(partial(_cube_point, a, scale["s"]), jnp.ones_like(a), LIMITS)

    def residual(x: Any, a: Any, scale: Any) -> Any:
        return scale["s"] * x**3 - a

    def linear_solve(x: Any, right: Any, a: Any, scale: Any) -> Any:
        return right / (3 * scale["s"] * x**2)

    return implicit(solve, residual, linear_solve, a, scale).value


def _cube_point(a: Any, s: Any, x: Any) -> NewtonPoint:
    residual = s * x**3 - a
    return NewtonPoint(
        -residual / (3 * s * x**2), jnp.abs(residual).max(), 0.5 * residual @ residual, -(residual @ residual)
    )


@pytest.mark.parametrize("third", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_implicit_derivatives_of_all_orders_and_arguments(third: bool) -> None:
    a, s = jnp.array([2.0, 5.0]), jnp.array(1.5)

    def implied(a: Any, s: Any) -> Any:
        return cube_root(a, {"s": s}).sum()

    def explicit(a: Any, s: Any) -> Any:
        return jnp.cbrt(a / s).sum()

    def derivatives(f: Any) -> Any:
        return jax.jit(
            lambda a, s: (
                jax.grad(f, (0, 1))(a, s),
                jax.hessian(f, (0, 1))(a, s),
                jax.jacrev(jax.jacfwd(f, (0, 1)), (0, 1))(a, s),
                jax.jacfwd(jax.hessian(f), 1)(a, s) if third else None,
            )
        )(a, s)

    actual, expected = derivatives(implied), derivatives(explicit)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        DELTA.check(one, other)
    step, value = 1e-5, jax.jit(implied)
    difference = (float(value(a, s + step)) - float(value(a, s - step))) / (2 * step)
    CENTRAL_DIFFERENCE.check(actual[0][1], difference)


def test_only_values_have_derivatives() -> None:
    """Counters and residuals are piecewise constant."""

    def residual_of(a: Any) -> Any:
        found = implicit(
            lambda a: newton(partial(_cube_point, a, 1.0), jnp.ones_like(a), LIMITS),
            lambda x, a: x**3 - a,
            lambda x, right, a: right / (3 * x**2),
            a,
        )
        return found.residual + found.evaluations

    assert jax.jit(jax.jacfwd(residual_of))(jnp.array([2.0])).tolist() == [0.0]


@one_loop
def test_missing_values_are_no_fixed_point_in_however_many_markets(method: FixedPointMethod) -> None:
    """So many that XLA vectorises maxima over products."""
    starts = np.full((2000, 8), np.nan)
    found = jax.jit(jax.vmap(lambda start: iterate(method, lambda x: 0.5 * x, start, LIMITS)))(starts)
    assert not np.isin(np.asarray(found.status), (Status.CONVERGED, Status.ROUNDING_FLOOR)).any()
