"""The trust-region method on standard problems (More, Garbow and Hillstrom 1981) and against SciPy."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from blpjax.exceptions import Status
from blpjax.optimize.stepwise import RUNNING, START_REDUCTIONS, Trial
from blpjax.optimize.trust_region import METHOD, TrustRegionState
from tests.support.designs import mostly_slow
from tests.support.optimizers import minimize_in_graph, trial

# All problems are padded with zero residuals to one length, so that one program serves all of the same P.
M = 20

KOWALIK_Y = np.array([0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246])
KOWALIK_U = np.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
MEYER_Y = np.array(
    [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872]
)
OSBORNE_Y = np.array([0.844, 0.936, 0.881, 0.784, 0.685, 0.603, 0.538, 0.490, 0.457, 0.431, 0.414])
T10, T16, T20 = np.arange(1, 11.0), np.arange(1, 17.0), np.arange(1, 21.0)


def pad(r: jax.Array) -> jax.Array:
    return jnp.concatenate([r, jnp.zeros(M - r.size)])


def rosenbrock(x: jax.Array) -> jax.Array:
    return pad(jnp.array([10 * (x[1] - x[0] ** 2), 1 - x[0]]))


def powell_singular(x: jax.Array) -> jax.Array:
    return pad(
        jnp.array([x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3]), (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2])
    )


def brown_badly_scaled(x: jax.Array) -> jax.Array:
    return pad(jnp.array([x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2]))


def meyer(x: jax.Array) -> jax.Array:
    return pad(x[0] * jnp.exp(x[1] / (45 + 5 * T16 + x[2])) - MEYER_Y)


def osborne(x: jax.Array) -> jax.Array:
    t = 30 * np.arange(11)
    return pad(OSBORNE_Y - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4])))


def kowalik(x: jax.Array) -> jax.Array:
    return pad(KOWALIK_Y - x[0] * (KOWALIK_U**2 + KOWALIK_U * x[1]) / (KOWALIK_U**2 + KOWALIK_U * x[2] + x[3]))


def box(x: jax.Array) -> jax.Array:
    t = T10 / 10
    return pad(jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (np.exp(-t) - np.exp(-10 * t)))


def brown_dennis(x: jax.Array) -> jax.Array:
    t = T20 / 5
    return pad((x[0] + t * x[1] - np.exp(t)) ** 2 + (x[2] + x[3] * jnp.sin(t) - np.cos(t)) ** 2)


def jennrich(x: jax.Array) -> jax.Array:
    return pad(2 + 2 * T10 - (jnp.exp(T10 * x[0]) + jnp.exp(T10 * x[1])))


def freudenstein(x: jax.Array) -> jax.Array:
    first = -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1]
    return pad(jnp.array([first, -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]]))


# Starting values and how many evaluations are too many.
PROBLEMS: dict[str, tuple[Callable[[jax.Array], jax.Array], list[float], int]] = {
    "rosenbrock": (rosenbrock, [-1.2, 1], 35),
    "powell singular": (powell_singular, [3, -1, 0, 1], 20),
    "brown badly scaled": (brown_badly_scaled, [1, 1], 30),
    "meyer": (meyer, [0.02, 4000, 250], 180),
    "osborne": (osborne, [0.5, 1.5, -1, 0.01, 0.02], 50),
    "kowalik": (kowalik, [0.25, 0.39, 0.415, 0.39], 18),
    "box": (box, [0, 10, 20], 10),
    "brown dennis": (brown_dennis, [25, 5, -5, -1], 40),
    "jennrich": (jennrich, [0.3, 0.4], 20),
    "freudenstein": (freudenstein, [0.5, -2], 15),
    "rosenbrock, far": (rosenbrock, [-12, 10], 10),
    "kowalik, far": (kowalik, [2.5, 3.9, 4.15, 3.9], 45),
}


@cache
def compiled(function: Callable[[jax.Array], jax.Array]) -> Callable[[Any], tuple[np.ndarray, np.ndarray]]:
    """``residuals, jacobian`` of theta, compiled once for all tests."""
    both = jax.jit(lambda theta: (function(theta), jax.jacfwd(function)(theta)))
    return lambda theta: tuple(map(np.asarray, both(np.asarray(theta, float))))


def run(
    function: Callable[[jax.Array], jax.Array],
    start: Any,
    lower: Any = -np.inf,
    upper: Any = np.inf,
    fails: Callable[[np.ndarray], bool] = lambda theta: False,
    **options: float,
) -> tuple[TrustRegionState, np.ndarray]:
    """Run the method by a host loop. Returns its last state and all points evaluated."""
    start = np.asarray(start, float)
    lower, upper = (np.broadcast_to(np.asarray(bound, float), start.shape) for bound in (lower, upper))
    both = compiled(function)
    rows = jax.eval_shape(function, start).shape[0]
    state, candidate, _ = METHOD.begin(start, lower, upper, rows, options)
    candidate, points = np.asarray(candidate), []
    while int(state.status) == RUNNING:
        points.append(candidate)
        r, J = both(candidate)
        with np.errstate(over="ignore", invalid="ignore"):
            evaluated = trial(candidate, r, J, np.asarray(not fails(candidate)))
        state, candidate, _ = METHOD.step(state, evaluated)
        candidate = np.asarray(candidate)
    return state, np.array(points)


@pytest.mark.parametrize(
    "name", mostly_slow([*PROBLEMS], [name for name, (_, start, _) in PROBLEMS.items() if len(start) in (2, 4)])
)
def test_reaches_the_optimum_of_standard_problems_in_few_evaluations(name: str) -> None:
    function, start, budget = PROBLEMS[name]
    state, _ = run(function, start)
    reference = scipy.optimize.least_squares(
        lambda x: compiled(function)(x)[0],
        start,
        lambda x: compiled(function)(x)[1],
        method="lm",
        x_scale="jac",
        xtol=1e-15,
        gtol=1e-15,
        ftol=1e-15,
    )
    assert int(state.status) in (Status.CONVERGED, Status.ROUNDING_FLOOR)
    assert float(state.objective) <= 2 * reference.cost * (1 + 1e-9) + 1e-14
    assert int(state.evaluations) <= budget
    r, J = compiled(function)(state.theta)
    np.testing.assert_allclose(float(state.objective), r @ r, rtol=1e-9, atol=1e-25)
    np.testing.assert_allclose(state.gradient, 2 * J.T @ r, rtol=1e-6, atol=2e-3 if name == "meyer" else 1e-8)


def test_large_residuals_need_far_fewer_evaluations_than_levenberg_marquardt() -> None:
    function, start, _ = PROBLEMS["brown dennis"]
    state, _ = run(function, start)
    both = compiled(function)
    reference = scipy.optimize.least_squares(lambda x: both(x)[0], start, lambda x: both(x)[1], method="lm", xtol=1e-12)
    assert 4 * int(state.evaluations) < reference.nfev


def test_units_of_theta_do_not_matter() -> None:
    function, start, _ = PROBLEMS["kowalik"]
    units = np.array([2.0**17, 2.0**-10, 1.0, 2.0**5])
    _, points = run(function, start)
    _, scaled = run(lambda x: function(x / units), start * units)
    n = min(len(points), len(scaled)) - 1
    assert n > 8
    np.testing.assert_allclose(scaled[:n] / units, points[:n], rtol=1e-6)


BOXES = {
    "optimum at upper bounds": ("rosenbrock", [-1.2, 1], [-5, -5], [0.5, 2]),
    "start at bounds": ("rosenbrock", [-1.2, -0.5], [-1.2, -0.5], [0.8, 5]),
    "start at the wrong corner": ("kowalik", [0, 0.5, 0.5, 0.5], [0, 0, 0, 0], [0.18, 0.5, 0.5, 0.5]),
    "optimum at a lower bound": ("brown dennis", [25, 5, -5, -1], [-20, 5, -5, -1], [30, 30, 0.2, 1]),
    "one element fixed": ("brown dennis", [25, 5, -5, -1], [-np.inf, 5, -np.inf, -np.inf], [np.inf, 5, np.inf, np.inf]),
    "start outside": ("jennrich", [3, -3], [0.0, 0.28], [0.2, 1]),
}


@pytest.mark.parametrize("name", BOXES)
def test_bounds_hold_at_every_evaluation_and_the_bounded_optimum_is_found(name: str) -> None:
    problem, start, lower, upper = BOXES[name]
    function = PROBLEMS[problem][0]
    lower, upper = np.array(lower, float), np.array(upper, float)
    state, points = run(function, start, lower, upper)
    assert (points >= lower).all() and (points <= upper).all()
    assert int(state.status) in (Status.CONVERGED, Status.ROUNDING_FLOOR)

    # SciPy's bounded optimiser wants bounds that differ.
    gap = upper > lower

    def at(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        theta = lower.copy()
        theta[gap] = x
        return compiled(function)(theta)

    reference = scipy.optimize.least_squares(
        lambda x: at(x)[0],
        np.clip(start, lower + 1e-3, upper - 1e-3)[gap],
        lambda x: at(x)[1][:, gap],
        bounds=(lower[gap], upper[gap]),
        x_scale="jac",
        **dict.fromkeys(("xtol", "ftol", "gtol"), 1e-14),
    )
    assert float(state.objective) <= 2 * reference.cost * (1 + 1e-8) + 1e-14
    theta, gradient = np.asarray(state.theta), np.asarray(state.gradient)
    inside = (theta > lower) & (theta < upper)
    assert (np.abs(gradient[inside]) <= 1e-6).all()
    assert (gradient[(theta == lower) & gap] >= -1e-8).all() and (gradient[(theta == upper) & gap] <= 1e-8).all()


def test_nothing_to_do_when_all_elements_are_fixed() -> None:
    state, points = run(rosenbrock, [3, 4], [3, 4], [3, 4])
    assert (int(state.status), int(state.evaluations)) == (Status.CONVERGED, 1)
    np.testing.assert_array_equal(points, [[3, 4]])


@pytest.mark.slow
def test_one_parameter() -> None:
    state, _ = run(lambda x: pad(jnp.array([jnp.exp(x[0]) - 2, x[0] - 1])), [3.0])
    exact = scipy.optimize.minimize_scalar(lambda x: (np.exp(x) - 2) ** 2 + (x - 1) ** 2, tol=1e-12)
    np.testing.assert_allclose(state.theta, [exact.x], rtol=1e-7)
    assert int(state.status) == Status.CONVERGED


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["rosenbrock", "kowalik", "brown dennis"])
def test_random_failures_delay_but_do_not_mislead(name: str, seed: int) -> None:
    function, start, budget = PROBLEMS[name]
    random = np.random.default_rng(seed)
    failed = []

    def fails(theta: np.ndarray) -> bool:
        fail = bool(random.uniform() < 0.3) and len(failed) + 1 < 200
        if fail:
            failed.append(theta)
        return fail

    reference, _ = run(function, start)
    state, _ = run(function, start, fails=fails)
    assert int(state.failures) == len(failed) > 0
    assert int(state.status) in (Status.CONVERGED, Status.ROUNDING_FLOOR)
    np.testing.assert_allclose(state.objective, reference.objective, rtol=1e-9, atol=1e-14)
    assert int(state.evaluations) < 3 * budget


def test_a_region_that_cannot_be_evaluated_is_walked_around() -> None:
    state, points = run(rosenbrock, [-1.2, 1], fails=lambda x: bool(x[0] > -0.8 and x[1] < -0.1))
    np.testing.assert_allclose(state.theta, [1, 1], rtol=1e-6)
    assert int(state.failures) > 0


def test_starting_values_that_fail_are_halved_within_bounds() -> None:
    state, points = run(rosenbrock, [8, 8], fails=lambda x: bool(np.abs(x).max() > 3))
    np.testing.assert_allclose(points[:3], [[8, 8], [4, 4], [2, 2]])
    assert (int(state.start_reductions), int(state.status)) == (2, Status.CONVERGED)
    _, points = run(rosenbrock, [8, 8], [2.5, 8], [9, 8], fails=lambda x: bool(x[0] > 3))
    np.testing.assert_allclose(points[:3], [[8, 8], [4, 8], [2.5, 8]])


def test_starting_values_that_keep_failing_are_reported() -> None:
    state, points = run(rosenbrock, [8, 8], fails=lambda x: True)
    assert (int(state.status), int(state.evaluations)) == (Status.NOT_FINITE, START_REDUCTIONS + 1)
    assert not bool(state.started) and len(points) == START_REDUCTIONS + 1


@pytest.mark.parametrize("broken", ["residuals", "residual_jacobian", "overflow"])
def test_values_that_are_not_finite_fail_without_a_flag(broken: str) -> None:
    def function(x: jax.Array) -> jax.Array:
        r = rosenbrock(x)
        if broken == "residual_jacobian":
            # Finite values, but the derivative is infinity times zero.
            return r + 0 * jnp.sqrt(jnp.maximum(x[1] + 0.5, 0.0))
        return jnp.where(x[1] <= -0.5, jnp.nan if broken == "residuals" else 1e200, r)

    state, points = run(function, [-1.2, 1], initial_radius=100.0)
    assert int(state.failures) == (points[:, 1] <= -0.5).sum() > 0
    assert int(state.status) == Status.CONVERGED
    np.testing.assert_allclose(state.theta, [1, 1], rtol=1e-6)


def test_the_maximum_number_of_evaluations_is_a_failure() -> None:
    state, points = run(kowalik, [0.25, 0.39, 0.415, 0.39], max_evaluations=7)
    assert (int(state.status), int(state.evaluations), len(points)) == (Status.MAX_EVALUATIONS, 7, 7)


def test_a_small_gradient_in_a_flat_region_is_not_convergence() -> None:
    def flat(x: jax.Array) -> jax.Array:
        return pad(jnp.array([1 + 1e-10 * x[0], 0.5e-10 * x[1]]))

    state, _ = run(flat, [1.0, 1.0], max_evaluations=2)
    assert float(state.projected_gradient_norm) < 1e-8 and float(state.decrease) > 0.5
    assert int(state.status) == Status.MAX_EVALUATIONS
    state, _ = run(flat, [1.0, 1.0])
    assert int(state.status) == Status.CONVERGED
    assert float(state.objective) < 1e-14

    # No step succeeds: the radius collapses.
    first = np.array([1.0, 1.0])
    state, _ = run(flat, first, fails=lambda x: not np.array_equal(x, first))
    assert int(state.status) == Status.STALLED


def test_a_wrong_jacobian_ends_in_failure() -> None:
    state, candidate, _ = METHOD.begin(np.array([-1.2, 1.0]), np.full(2, -np.inf), np.full(2, np.inf), M, {})
    while int(state.status) == RUNNING:
        r, J = compiled(rosenbrock)(candidate)
        wrong = trial(candidate, r, -J, np.asarray(True))
        state, candidate, _ = METHOD.step(state, wrong)
    assert int(state.status) == Status.STALLED


def test_rounding_errors_of_evaluations_end_in_success_at_the_floor() -> None:
    random = np.random.default_rng(0)
    start, infinity = np.array([0.25, 0.39, 0.415, 0.39]), np.full(4, np.inf)
    state, candidate, _ = METHOD.begin(start, -infinity, infinity, M, {"gtol": 1e-30})
    while int(state.status) == RUNNING:
        r, J = compiled(kowalik)(candidate)
        r = r * (1 + 1e-14 * random.normal(size=M))
        state, candidate, _ = METHOD.step(state, trial(candidate, r, J, np.asarray(True)))
    exact, _ = run(kowalik, [0.25, 0.39, 0.415, 0.39], gtol=1e-14)
    assert int(state.status) == Status.ROUNDING_FLOOR
    assert int(state.evaluations) < 40
    np.testing.assert_allclose(state.theta, exact.theta, rtol=1e-5)


@pytest.mark.slow
def test_mapped_starts_in_a_compiled_program_match_runs_one_by_one() -> None:
    starts = np.random.default_rng(1).uniform(-2, 2, size=(6, 2))
    lower, upper = np.array([-2.0, -2.0]), np.array([0.9, 2.0])

    def solve(start: jax.Array) -> TrustRegionState:
        def evaluate(theta: jax.Array) -> Trial:
            ok = (theta[0] < 0.3) | (theta[1] > -0.5)
            return trial(theta, rosenbrock(theta), jax.jacfwd(rosenbrock)(theta), ok)

        return minimize_in_graph(METHOD, evaluate, start, lower, upper)

    mapped = jax.jit(jax.vmap(solve))(starts)
    alone = jax.jit(solve)
    for i, start in enumerate(starts):
        state = alone(start)
        looped, _ = run(rosenbrock, start, lower, upper, fails=lambda x: not (x[0] < 0.3 or x[1] > -0.5))
        for other in (state, looped):
            assert int(mapped.status[i]) == int(other.status) == Status.CONVERGED
            np.testing.assert_allclose(mapped.theta[i], other.theta, rtol=1e-9)
            np.testing.assert_allclose(mapped.objective[i], other.objective, rtol=1e-9)
        assert int(mapped.evaluations[i]) == int(state.evaluations)


@pytest.mark.slow
def test_one_program_serves_all_evaluations() -> None:
    def odd(x: jax.Array) -> jax.Array:
        return jnp.array([x[0] - 1, x[1] * x[0] - 2, x[1] ** 2 - 3, x[0], x[1]])

    before = len(METHOD.step.executables)
    run(odd, [2.0, 5.0])
    run(odd, [1.0, 1.0], [0, 0], [0.5, 2], gtol=1e-6)
    assert len(METHOD.step.executables) == before + 1
