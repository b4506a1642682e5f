"""Every optimisation routine behind one result, with failing evaluations, bounds and interruptions."""

import contextlib
import dataclasses
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyblp
import pytest
import scipy.optimize

from blpjax.exceptions import Status
from blpjax.optimize.optimize import ObjectiveProgress, Optimization, OptimizationOutcome, OptimizationStatus, minimize
from blpjax.optimize.recorder import FailurePolicy, Recorder
from blpjax.optimize.routines import RoutineEnd, RoutineSettings
from blpjax.optimize.table import ROUTINES, Routine
from blpjax.optimize.trust_region import METHOD
from tests.support.designs import mostly_slow

SCIPY_BOUNDED = ["slsqp", "trust-constr", "l-bfgs-b", "tnc"]
SCIPY_UNBOUNDED = ["cg", "bfgs", "newton-cg"]
WITHOUT_GRADIENT = ["nelder-mead", "powell"]
OURS = ["trust-region", "optax-l-bfgs"]
WITH_GRADIENT = [*OURS, *SCIPY_BOUNDED, *SCIPY_UNBOUNDED]
#: The others take many steps, or run outside of a program, where evaluations fail.
QUICK = [method for method in [*WITH_GRADIENT, *WITHOUT_GRADIENT] if method not in ("trust-constr", "optax-l-bfgs")]

TIMES = np.arange(1, 9.0)
OPTIMUM = np.array([2.0, 0.5, 1.0])
START = np.array([1.0, 1.0, 0.5])


class Box(NamedTuple):
    lower: np.ndarray
    upper: np.ndarray


FREE = Box(np.full(3, -np.inf), np.full(3, np.inf))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    objective: Any
    gradient: Any
    residuals: Any
    residual_jacobian: Any
    ok: Any


class Objective:
    """Fit of an exponential decay; fails where told, and may be interrupted."""

    def __init__(
        self, fails: Callable[[np.ndarray], bool] = lambda theta: False, interrupt_at: int | None = None
    ) -> None:
        self.fails, self.interrupt_at = fails, interrupt_at
        self.points: list[np.ndarray] = []

    @np.errstate(over="ignore", invalid="ignore")
    def __call__(self, theta: np.ndarray) -> Evaluation:
        if len(self.points) == self.interrupt_at:
            raise KeyboardInterrupt
        self.points.append(theta)
        decay = np.exp(-theta[1] * TIMES)
        r = (
            theta[0] * decay
            + theta[2]
            - (OPTIMUM[0] * np.exp(-OPTIMUM[1] * TIMES) + OPTIMUM[2] + 0.01 * np.cos(5 * TIMES))
        )
        J = np.stack([decay, -theta[0] * TIMES * decay, np.ones_like(TIMES)], axis=1)
        if self.fails(theta):
            r, J = r * np.nan, J * np.nan
        return Evaluation(r @ r, 2 * J.T @ r, r, J, np.asarray(not self.fails(theta)))


def configure(method: str, **options: Any) -> Optimization:
    defaults = {"trust-constr": {"gtol": 1e-7, "xtol": 1e-12}, "slsqp": {"ftol": 1e-12}, "tnc": {"maxfun": 1000}}
    return Optimization(method, defaults.get(method, {}) | options, compute_gradient=method not in WITHOUT_GRADIENT)


@pytest.fixture(scope="module")
def best() -> np.ndarray:
    """The unbounded optimum, by SciPy's least squares."""
    objective = Objective()
    return scipy.optimize.least_squares(
        lambda x: np.asarray(objective(x).residuals),
        OPTIMUM,
        lambda x: np.asarray(objective(x).residual_jacobian),
        xtol=1e-15,
    ).x


@pytest.mark.parametrize("method", [*WITH_GRADIENT, *WITHOUT_GRADIENT])
def test_every_routine_finds_the_optimum(method: str, best: np.ndarray) -> None:
    objective, counts = Objective(), []
    outcome = minimize(configure(method), objective, START, FREE, on_iteration=counts.append)
    assert outcome.converged and outcome.status.converged, outcome.message
    np.testing.assert_allclose(outcome.theta, best, rtol=2e-3)
    assert (outcome.evaluations, outcome.failed_evaluations) == (len(objective.points), 0)
    assert counts == list(range(1, outcome.iterations + 1)) and 0 < outcome.iterations <= outcome.evaluations
    np.testing.assert_allclose(objective(outcome.theta).objective, outcome.evaluation.objective, rtol=1e-14)
    assert outcome.message.startswith("Optimization converged")


def test_the_default_routine_is_accurate_and_needs_few_evaluations(best: np.ndarray) -> None:
    default, scipys = (
        minimize(optimization, Objective(), START, FREE)
        for optimization in (Optimization("trust-region"), Optimization("bfgs", {"gtol": 1e-8}))
    )
    np.testing.assert_allclose(default.theta, best, rtol=1e-7)
    assert default.evaluations < 18 and default.evaluations <= scipys.evaluations
    assert "promised decrease" in default.message


@pytest.mark.parametrize("method", [*SCIPY_BOUNDED, *SCIPY_UNBOUNDED, *OURS])
def test_value_and_gradient_cost_one_evaluation(method: str) -> None:
    objective = Objective()
    minimize(configure(method), objective, START, FREE)
    points = np.array(objective.points)
    assert not (np.diff(points, axis=0) == 0).all(axis=1).any()


@pytest.mark.parametrize("method", ["trust-region", *SCIPY_BOUNDED])
def test_bounds_are_respected_and_may_be_active(method: str) -> None:
    objective, bounds = Objective(), Box(np.array([0.0, 0.6, -np.inf]), np.array([1.5, 2.0, np.inf]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = minimize(configure(method), objective, START, bounds, user_bounded=True)
    assert outcome.converged, outcome.message
    points = np.array(objective.points)
    assert (points >= bounds.lower).all() and (points <= bounds.upper).all()
    # At the optimum the first element is at its upper bound and the second at its lower one.
    np.testing.assert_allclose(outcome.theta[:2], [1.5, 0.6], atol=1e-4)
    assert abs(outcome.evaluation.gradient[2]) < 1e-4


@pytest.mark.parametrize("method", ["trust-region", "slsqp", "l-bfgs-b", "tnc"])
def test_starting_values_may_lie_on_their_bounds(method: str, best: np.ndarray) -> None:
    bounds = Box(np.array([0.0, 0.0, 0.5]), np.array([5.0, 1.0, 5.0]))
    outcome = minimize(configure(method), Objective(), START, bounds)
    assert outcome.converged, outcome.message
    np.testing.assert_allclose(outcome.theta, best, rtol=1e-3)


@pytest.mark.parametrize("method", ["optax-l-bfgs", *SCIPY_UNBOUNDED, *WITHOUT_GRADIENT])
def test_ignored_bounds_are_warned_about_only_if_the_user_gave_them(method: str) -> None:
    bounds = Box(np.zeros(3), np.full(3, 1.0))
    assert not configure(method).supports_bounds
    with pytest.warns(
        UserWarning, match=f"Optimization\\('{method}'\\) ignores parameter bounds. Use .*'trust-region'"
    ):
        warned = minimize(configure(method), Objective(), START, bounds, user_bounded=True)
    silent = minimize(configure(method), Objective(), START, bounds)
    assert (warned.theta == silent.theta).all() and warned.theta[0] > 1.5


# The region between the start and the optimum in which evaluations fail.
FAILING = {
    "islands": lambda theta: bool(np.sin(40 * theta.sum()) > 0.9),
    "overshooting": lambda theta: bool(np.abs(theta).max() > 2.6),
    "wall with a gap": lambda theta: bool(0.9 < theta[0] < 1.0 and theta[1] > 0.9),
}


@pytest.mark.parametrize("region", FAILING)
@pytest.mark.parametrize("method", mostly_slow([*WITH_GRADIENT, *WITHOUT_GRADIENT], QUICK))
def test_failing_evaluations_never_give_false_convergence(method: str, region: str, best: np.ndarray) -> None:
    fails = FAILING[region]
    outcome = minimize(configure(method), Objective(fails), START, FREE)
    assert not fails(outcome.theta) and bool(outcome.evaluation.ok)
    assert np.isfinite(outcome.theta).all()
    if outcome.converged:
        np.testing.assert_allclose(outcome.theta, best, rtol=2e-2)
    if outcome.failed_evaluations:
        assert f"{outcome.failed_evaluations} of {outcome.evaluations} evaluations failed" in outcome.message


@pytest.mark.parametrize("method", WITH_GRADIENT)
def test_routines_with_gradients_recover_from_overshooting(method: str, best: np.ndarray) -> None:
    outcome = minimize(configure(method), Objective(lambda theta: bool(theta[1] < 0.2)), np.full(3, 3.0), FREE)
    assert outcome.failed_evaluations > 0
    assert outcome.converged, outcome.message
    np.testing.assert_allclose(outcome.theta, best, rtol=2e-2)


@pytest.mark.parametrize("method", mostly_slow(WITH_GRADIENT, set(QUICK) & set(WITH_GRADIENT)))
@pytest.mark.parametrize("wall", [0.4, 0.49])
def test_a_wall_across_the_path_of_descent_is_not_taken_for_an_optimum(
    method: str, wall: float, best: np.ndarray
) -> None:
    def fails(theta: np.ndarray) -> bool:
        return bool(theta[0] > 2.2 or theta[1] < wall)

    outcome = minimize(configure(method), Objective(fails), START, FREE)
    assert not fails(outcome.theta) and bool(outcome.evaluation.ok)
    assert not outcome.converged or np.abs(outcome.theta - best).max() < 0.02


@pytest.mark.parametrize("method", ["trust-region", "l-bfgs-b", "nelder-mead"])
def test_starting_values_that_fail_are_reduced(method: str, best: np.ndarray) -> None:
    objective = Objective(lambda theta: bool(np.abs(theta).max() > 3))
    outcome = minimize(configure(method), objective, np.array([2.0, 10.0, 2.0]), FREE)
    np.testing.assert_allclose(objective.points[:3], [[2, 10, 2], [1, 5, 1], [0.5, 2.5, 0.5]])
    assert outcome.converged
    assert "the starting values could not be evaluated and were multiplied by 0.25" in outcome.message


@pytest.mark.parametrize("method", ["trust-region", "bfgs", "powell", "return"])
def test_starting_values_that_keep_failing_are_reported(method: str) -> None:
    objective = Objective(lambda theta: True)
    outcome = minimize(configure(method), objective, START, FREE)
    assert (outcome.converged, outcome.status) == (False, OptimizationStatus.NOT_FINITE)
    assert outcome.message.startswith("The objective could not be evaluated at the starting values")
    assert len(objective.points) <= 10 and outcome.evaluation is not None


@pytest.mark.parametrize("method", [*WITH_GRADIENT, *WITHOUT_GRADIENT])
def test_an_interruption_leaves_the_best_values_so_far(method: str) -> None:
    objective = Objective(interrupt_at=6)
    outcome = minimize(configure(method), objective, START, FREE)
    values = [float(Objective()(theta).objective) for theta in objective.points]
    assert (outcome.converged, outcome.status, outcome.evaluations) == (False, OptimizationStatus.INTERRUPTED, 6)
    np.testing.assert_array_equal(outcome.theta, objective.points[int(np.argmin(values))])
    assert "interrupted" in outcome.message
    with pytest.raises(KeyboardInterrupt):
        minimize(configure(method), Objective(interrupt_at=0), START, FREE)


@pytest.mark.parametrize(
    ("optimization", "start"),
    [
        (Optimization("l-bfgs-b", {"ftol": 0.9}), START),
        # SciPy's own report of success, at an objective hundreds of times larger than the smallest.
        (Optimization("nelder-mead", compute_gradient=False), np.array([0.5, 1.5, 0.0])),
    ],
)
def test_success_that_a_routine_claims_too_early_is_not_believed(optimization: Optimization, start: np.ndarray) -> None:
    outcome = minimize(optimization, Objective(), start, FREE)
    assert (outcome.converged, outcome.status) == (False, OptimizationStatus.NOT_OPTIMAL)
    assert "a full step promises a decrease of the objective by" in outcome.message


def test_routines_that_come_to_their_limits_are_left_where_they_are() -> None:
    """As in PyBLP. The barrier of 'trust-constr' may lead away from better points that it has seen."""
    bounds, options, objective = Box(np.array([0.0, 0.0, -np.inf]), np.full(3, np.inf)), {"maxiter": 2}, Objective()
    for compute_gradient in (True, False):
        outcome = minimize(Optimization("trust-constr", options, compute_gradient), objective, START, bounds)
        expected = scipy.optimize.minimize(
            lambda x: float(objective(x).objective),
            START,
            method="trust-constr",
            jac=(lambda x: np.asarray(objective(x).gradient)) if compute_gradient else None,
            bounds=list(zip(*bounds, strict=True)),
            options=options,
        )
        np.testing.assert_array_equal(outcome.theta, expected.x)
        assert not outcome.converged


def test_points_that_differences_were_taken_at_are_no_estimates() -> None:
    outcome = minimize(Optimization("l-bfgs-b", {"maxiter": 2}, compute_gradient=False), Objective(), START, FREE)
    objective = Objective()
    expected = scipy.optimize.minimize(
        lambda x: float(objective(x).objective), START, method="l-bfgs-b", options={"maxiter": 2}
    )
    np.testing.assert_array_equal(outcome.theta, expected.x)


@pytest.mark.parametrize("method", ["bfgs", "l-bfgs-b"])
def test_line_searches_that_fail_at_an_optimum_have_converged(method: str, best: np.ndarray) -> None:
    """Rounding errors of values, here of 1e-9, hide the last decreases, but derivatives promise no more."""
    rng = np.random.default_rng(0)

    class Noisy(Objective):
        def __call__(self, theta: np.ndarray) -> Evaluation:
            found = super().__call__(theta)
            return dataclasses.replace(found, objective=found.objective * (1 + 1e-9 * rng.uniform(-1, 1)))

    options = {"ftol": 0.0, "gtol": 1e-14} if method == "l-bfgs-b" else {"gtol": 1e-14}
    outcome = minimize(Optimization(method, options), Noisy(), START, FREE)
    assert outcome.converged and outcome.status is OptimizationStatus.ROUNDING_FLOOR, outcome.message
    np.testing.assert_allclose(outcome.theta, best, rtol=1e-3)
    assert outcome.message.startswith("Optimization converged to the accuracy of 64-bit arithmetic (")


def test_the_routines_own_failure_is_reported_in_its_words() -> None:
    outcome = minimize(Optimization("bfgs", {"maxiter": 2}), Objective(), START, FREE)
    assert (outcome.converged, outcome.status, outcome.iterations) == (False, OptimizationStatus.ROUTINE_FAILED, 2)
    assert "Maximum number of iterations" in outcome.message
    for method, option in (("trust-region", "max_evaluations"), ("optax-l-bfgs", "maxiter")):
        outcome = minimize(Optimization(method, {option: 3}), Objective(), START, FREE)
        assert (outcome.converged, outcome.status) == (False, OptimizationStatus.MAX_EVALUATIONS)


def test_finite_differences_replace_gradients() -> None:
    with_gradient, without = (
        minimize(Optimization("l-bfgs-b", {"ftol": 1e-14}, compute_gradient=choice), Objective(), START, FREE)
        for choice in (True, False)
    )
    assert with_gradient.converged and without.converged
    np.testing.assert_allclose(with_gradient.theta, without.theta, rtol=1e-3)
    assert without.evaluations > 2 * with_gradient.evaluations


def test_return_evaluates_the_starting_values_once() -> None:
    objective = Objective()
    outcome = minimize(Optimization("return"), objective, START, FREE)
    np.testing.assert_array_equal(objective.points, [START])
    np.testing.assert_array_equal(outcome.theta, START)
    assert (outcome.converged, outcome.status, outcome.iterations) == (True, OptimizationStatus.RETURNED, 0)


def test_nothing_to_optimise() -> None:
    def evaluate(theta: np.ndarray) -> Evaluation:
        return Evaluation(1.0, np.zeros(0), np.ones(1), np.zeros((1, 0)), True)

    outcome = minimize(Optimization("trust-region"), evaluate, np.zeros(0), Box(np.zeros(0), np.zeros(0)))
    assert outcome.converged and outcome.evaluations == 1


def test_a_custom_grid_search_runs_as_documented() -> None:
    def grid(
        initial: Any, bounds: Any, objective_function: Any, iteration_callback: Any, points: int
    ) -> tuple[Any, bool]:
        best_values, best_objective = initial, np.inf
        for values in product(*(np.linspace(lower, upper, points) for lower, upper in bounds)):
            objective, gradient, progress = objective_function(values)
            assert gradient is None and isinstance(progress, ObjectiveProgress)
            np.testing.assert_array_equal(progress.theta, values)
            assert progress.ok and progress.objective == objective and progress.residual_jacobian.shape == (8, 3)
            if objective < best_objective:
                best_values, best_objective = values, objective
        iteration_callback()
        return best_values, True

    bounds = Box(np.array([1.0, 0.0, 0.0]), np.array([3.0, 1.0, 2.0]))
    outcome = minimize(Optimization(grid, {"points": 3}, compute_gradient=False), Objective(), START, bounds)
    np.testing.assert_array_equal(outcome.theta, OPTIMUM)
    # the best point of a grid is no optimum
    assert (outcome.converged, outcome.iterations, outcome.evaluations) == (False, 1, 27)
    assert outcome.status is OptimizationStatus.NOT_OPTIMAL


def test_a_custom_routine_sees_gradients_progress_and_finite_values_where_evaluations_fail() -> None:
    seen = []

    def method(initial: Any, bounds: Any, objective_function: Any, iteration_callback: Any) -> tuple[Any, bool]:
        seen.extend(objective_function(theta) for theta in (START, START + 5))
        return START, False

    outcome = minimize(
        Optimization(method),
        Objective(lambda theta: bool(theta[0] > 3)),
        START,
        FREE,
        progress_factory=lambda *args: args,
    )
    (objective, gradient, progress), (failed, slope, _) = seen
    np.testing.assert_array_equal(gradient, progress[1].gradient)
    assert failed > objective and np.isfinite(slope).all()
    assert (outcome.converged, outcome.status) == (False, OptimizationStatus.ROUTINE_FAILED)
    np.testing.assert_array_equal(outcome.theta, START)


def test_a_custom_routine_cannot_claim_success_where_the_objective_fails() -> None:
    def method(initial: Any, bounds: Any, objective_function: Any, iteration_callback: Any) -> tuple[Any, bool]:
        objective_function(initial)
        return initial + 5, True

    outcome = minimize(Optimization(method), Objective(lambda theta: bool(theta[0] > 3)), START, FREE)
    assert (outcome.converged, outcome.status) == (False, OptimizationStatus.NOT_OPTIMAL)
    assert "cannot be evaluated" in outcome.message
    np.testing.assert_array_equal(outcome.theta, START)


@pytest.mark.parametrize("compute_gradient", [True, False])
def test_a_custom_routine_is_believed_only_at_an_optimum(best: np.ndarray, compute_gradient: bool) -> None:
    for theta, optimal in ((START, False), (OPTIMUM, False), (best, True)):
        custom = Optimization(lambda *_, theta=theta: (theta, True), compute_gradient=compute_gradient)
        outcome = minimize(custom, Objective(), START, FREE)
        np.testing.assert_array_equal(outcome.theta, theta)
        assert outcome.converged is optimal, theta
        assert optimal or "a full step promises a decrease of the objective" in outcome.message


def test_a_custom_routine_cannot_claim_success_outside_of_bounds(best: np.ndarray) -> None:
    bounds = Box(best + [0.5, -1, -1], best + 2)
    outcome = minimize(Optimization(lambda *_: (best, True)), Objective(), START, bounds)
    assert not outcome.converged and "its final values are outside of the bounds" in outcome.message
    held = minimize(Optimization("trust-region"), Objective(), START, bounds)
    assert (
        held.converged and minimize(Optimization(lambda *_: (held.theta, True)), Objective(), START, bounds).converged
    )


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "must return \\(final, converged\\), not None"),
        ((np.zeros(2), True), ValueError, "must return 3 final values, not 2"),
    ],
)
def test_what_a_custom_routine_returns_is_checked(returned: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        minimize(Optimization(lambda *_: returned), Objective(), START, FREE)
    with pytest.raises(ValueError, match="evaluated the objective at 2 instead of 3 parameters"):
        minimize(Optimization(lambda _, __, f, ___: (f(np.zeros(2)), True)), Objective(), START, FREE)


def test_one_program_serves_all_evaluations_and_runs() -> None:
    minimize(configure("trust-region"), Objective(), START, FREE)
    before = len(METHOD.step.executables)
    minimize(configure("trust-region", gtol=1e-6), Objective(), OPTIMUM, Box(np.zeros(3), np.full(3, 3.0)))
    assert len(METHOD.step.executables) == before


def test_scipys_own_progress_is_printed_only_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blpjax.options.verbose", True)
    for method in ("bfgs", "slsqp", "trust-constr", "nelder-mead"):
        minimize(configure(method), Objective(), START, FREE)
        assert capsys.readouterr().out == ""
        minimize(dataclasses.replace(configure(method), universal_display=False), Objective(), START, FREE)
        assert capsys.readouterr().out != ""


METHODS = ["knitro", "return", *SCIPY_BOUNDED, *SCIPY_UNBOUNDED, *WITHOUT_GRADIENT]


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("compute_gradient", [True, False])
def test_gradients_are_required_and_refused_as_in_pyblp(method: str, compute_gradient: bool) -> None:
    try:
        pyblp.Optimization(method, compute_gradient=compute_gradient)
    except ValueError:
        with pytest.raises(ValueError, match=f"Optimization\\('{method}'\\) .* compute_gradient must be"):
            Optimization(method, compute_gradient=compute_gradient)
    else:
        assert Optimization(method, compute_gradient=compute_gradient).compute_gradient == compute_gradient


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("bgfs",), ValueError, "must be one of .*'bfgs'.* or a callable, not 'bgfs'"),
        ((3,), ValueError, "or a callable, not 3"),
        (("bfgs", {"tol": 1}), ValueError, "'bfgs'\\) does not have the options \\['tol'\\]. It has .*'gtol'"),
        (("return", {"gtol": 1}), ValueError, "does not have the options \\['gtol'\\]. It has none"),
        (
            ("trust-region", {"gtol": -1}),
            ValueError,
            "option gtol of Optimization\\('trust-region'\\) must be positive",
        ),
        (("trust-region", {"gtol": "small"}), TypeError, "option gtol .* must be a number, not 'small'"),
        (("l-bfgs-b", {"maxiter": "abc"}), TypeError, "option maxiter of .*'l-bfgs-b'\\) must be a number, not 'abc'"),
        (("bfgs", {"gtol": np.nan}), ValueError, "option gtol of Optimization\\('bfgs'\\) must be a number, not nan"),
        (("tnc", {"maxfun": True}), TypeError, "option maxfun of Optimization\\('tnc'\\) must be a number, not True"),
        (("bfgs", [1]), TypeError, "method_options of Optimization must be a mapping"),
        (("trust-region", {"max_evaluations": 1.5}), ValueError, "max_evaluations .* must be an integer, not 1.5"),
        (("optax-l-bfgs", {"memory_size": 2.5}), ValueError, "memory_size .* must be an integer, not 2.5"),
        (("bfgs", {}, 1), TypeError, "compute_gradient of Optimization must be True or False"),
        (("trust-region", {}, False), ValueError, "'trust-region'\\) needs analytic gradients"),
    ],
)
def test_wrong_configurations_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Optimization(*arguments)


@pytest.mark.parametrize("method", [*SCIPY_BOUNDED, *SCIPY_UNBOUNDED, *WITHOUT_GRADIENT])
def test_known_options_are_those_that_scipy_documents(method: str) -> None:
    with pytest.raises(ValueError, match="It has ") as caught:
        Optimization(method, {"no such option": 1}, compute_gradient=method not in WITHOUT_GRADIENT)
    known = set(str(caught.value).split("It has ")[1].strip("[].").replace("'", "").split(", ")) - {
        "keep_feasible",
        "iprint",
    }
    documentation = scipy.optimize.show_options("minimize", method, disp=False)
    assert len(known) > 3
    assert [name for name in known if name not in documentation] == []


def test_configurations_are_values() -> None:
    options = {"gtol": 1e-3}
    optimization = Optimization("l-bfgs-b", options)
    options["gtol"] = 1.0
    assert optimization == Optimization("l-bfgs-b", {"gtol": 1e-3}) != Optimization("bfgs", {"gtol": 1e-3})
    assert pickle.loads(pickle.dumps(optimization)) == optimization
    assert repr(optimization) == (
        "Configured to optimize using the L-BFGS-B algorithm in SciPy with analytic gradients "
        "and options {gtol: 0.001}."
    )
    custom = Optimization(lambda *_: (0, True), compute_gradient=False)
    assert "a custom routine without analytic gradients and options {}" in repr(custom)
    assert custom.supports_bounds
    with pytest.raises(dataclasses.FrozenInstanceError):
        optimization.method = "bfgs"  # type: ignore[misc]


def test_a_function_and_an_entry_of_the_table_are_a_new_routine(
    monkeypatch: pytest.MonkeyPatch, best: np.ndarray
) -> None:
    def run_gauss_newton(recorder: Recorder, start: np.ndarray, told: RoutineSettings) -> RoutineEnd:
        theta = start
        for _ in range(told.options["steps"]):
            found = recorder(theta).evaluation
            theta = theta - np.linalg.lstsq(found.residual_jacobian, found.residuals)[0]
            recorder.count_iteration(theta)
        return RoutineEnd(theta, OptimizationStatus.CONVERGED, "done")

    entry = Routine("Gauss and Newton's algorithm", run_gauss_newton, ("steps",), bounds=False, gradient="must")
    monkeypatch.setitem(ROUTINES, "gauss-newton", entry)
    optimization = Optimization("gauss-newton", {"steps": 8})
    assert not optimization.supports_bounds and "using Gauss and Newton's algorithm with" in repr(optimization)
    outcome = minimize(optimization, Objective(lambda theta: bool(np.abs(theta).max() > 3)), 2 * OPTIMUM, FREE)
    np.testing.assert_allclose(outcome.theta, best, rtol=1e-6)
    assert (outcome.converged, outcome.iterations) == (True, 8) and "multiplied by 0.5" in outcome.message
    assert minimize(Optimization("gauss-newton", {"steps": 0}), Objective(), START, FREE).status is (
        OptimizationStatus.NOT_OPTIMAL
    )
    with pytest.raises(
        ValueError, match="'gauss-newton'\\) does not have the options \\['tol'\\]. It has \\['steps'\\]"
    ):
        Optimization("gauss-newton", {"tol": 1})
    with pytest.raises(ValueError, match="'gauss-newton'\\) needs analytic gradients"):
        Optimization("gauss-newton", compute_gradient=False)


def test_what_the_table_says_is_consistent() -> None:
    for name, routine in ROUTINES.items():
        assert routine.options is not None or routine.check is not None, name
        assert set(routine.differences) | set(routine.lane_options) <= set(routine.options or ()), name
        assert routine.stepwise is not None or not routine.lane_options, name
        assert routine.optimizes or not routine.moves_start, name
    assert [name for name, routine in ROUTINES.items() if routine.stepwise] == OURS


def test_statuses_extend_those_of_loops() -> None:
    shared = [(s.name, s.value) for s in Status if s is not Status.UPWARD_SLOPING]
    assert shared == [(s.name, s.value) for s in OptimizationStatus][: len(shared)]
    assert all(status.sentence for status in OptimizationStatus)
    assert {f.name for f in dataclasses.fields(OptimizationOutcome)} >= {"theta", "converged", "status", "message"}


# --- Knitro ---------------------------------------------------------------------------------------------------------


class FakeKnitro(types.ModuleType):
    """The functions of Knitro's Python interface that are used, around SciPy's L-BFGS-B routine."""

    KN_INFINITY, KN_OBJGOAL_MINIMIZE, KN_DENSE = 1e20, 0, -1

    def __init__(self, code: int = 0, licensed: bool = True) -> None:
        super().__init__("knitro")
        self.code, self.licensed, self.freed = code, licensed, 0
        self.options: dict[str, Any] = {}

    def KN_new(self) -> dict[str, Any]:
        if not self.licensed:
            raise RuntimeError("no license found")
        return {"gradient": None}

    def KN_free(self, context: Any) -> None:
        self.freed += 1

    def KN_set_int_param(self, context: Any, name: str, value: int) -> None:
        if name not in ("algorithm", "gradopt", "hessopt", "honorbnds", "outlev", "maxit"):
            raise RuntimeError(f"{name} is no integer option")
        self.options[name] = value

    def KN_set_double_param(self, context: Any, name: str, value: float) -> None:
        if name not in ("opttol", "maxtime_real"):
            raise RuntimeError(f"{name} is no option")
        assert isinstance(value, float)
        self.options[name] = value

    def KN_set_char_param(self, context: Any, name: str, value: str) -> None:
        self.options[name] = value

    def KN_add_vars(self, context: Any, number: int) -> None:
        context["size"] = number

    def KN_set_var_lobnds(self, context: Any, xLoBnds: list[float]) -> None:
        context["lower"] = xLoBnds

    def KN_set_var_upbnds(self, context: Any, xUpBnds: list[float]) -> None:
        context["upper"] = xUpBnds

    def KN_set_var_primal_init_values(self, context: Any, xInitVals: list[float]) -> None:
        context["start"] = xInitVals

    def KN_set_obj_goal(self, context: Any, goal: int) -> None:
        assert goal == self.KN_OBJGOAL_MINIMIZE

    def KN_add_eval_callback(self, context: Any, evalObj: bool, funcCallback: Callable[..., int]) -> str:
        context["function"] = funcCallback
        return "callback"

    def KN_set_cb_grad(self, context: Any, cb: str, objGradIndexVars: int, gradCallback: Callable[..., int]) -> None:
        assert cb == "callback" and objGradIndexVars == self.KN_DENSE
        context["gradient"] = gradCallback

    def KN_set_newpt_callback(self, context: Any, callback: Callable[..., int]) -> None:
        context["new point"] = callback

    def KN_solve(self, context: dict[str, Any]) -> None:
        def call(name: str, x: np.ndarray) -> Any:
            result = types.SimpleNamespace(obj=0.0, objGrad=[0.0] * context["size"])
            if context[name](context, "callback", types.SimpleNamespace(x=x.tolist()), result, None) != 0:
                raise StopIteration
            return result

        context["solution"] = np.array(context["start"])
        with contextlib.suppress(StopIteration):
            context["solution"] = scipy.optimize.minimize(
                lambda x: call("function", x).obj,
                context["start"],
                jac=None if context["gradient"] is None else lambda x: np.array(call("gradient", x).objGrad),
                bounds=list(zip(context["lower"], context["upper"], strict=True)),
                method="l-bfgs-b",
                callback=lambda x: context["new point"](context, x.tolist(), [], None),
                options={"ftol": 1e-14},
            ).x

    def KN_get_solution(self, context: dict[str, Any]) -> tuple[int, float, list[float], list[float]]:
        return self.code, 0.0, context["solution"].tolist(), []


@pytest.fixture
def knitro(monkeypatch: pytest.MonkeyPatch) -> FakeKnitro:
    module = FakeKnitro()
    monkeypatch.setitem(sys.modules, "knitro", module)
    return module


@pytest.mark.parametrize("with_gradient", [True, False])
def test_an_installed_knitro_is_driven(knitro: FakeKnitro, best: np.ndarray, with_gradient: bool) -> None:
    bounds = Box(np.array([0.0, 0.0, -np.inf]), np.full(3, 5.0))
    options = {"maxit": 100, "opttol": 1e-9, "maxtime_real": 60}
    optimization = Optimization("knitro", options, compute_gradient=with_gradient)
    assert optimization.supports_bounds and "Artelys Knitro" in repr(optimization)
    outcome = minimize(optimization, Objective(), START, bounds)
    assert outcome.converged and outcome.iterations > 2, outcome.message
    np.testing.assert_allclose(outcome.theta, best, rtol=1e-3)
    defaults = {"algorithm": 1, "gradopt": 1 if with_gradient else 2, "hessopt": 2, "honorbnds": 1, "outlev": 0}
    assert knitro.options == defaults | options
    assert knitro.freed == 2  # when configured, and when used


def test_what_knitro_claims_is_checked_and_its_failures_are_reported(knitro: FakeKnitro) -> None:
    knitro.code = -400
    outcome = minimize(Optimization("knitro"), Objective(), START, FREE)
    assert (outcome.converged, outcome.status) == (False, OptimizationStatus.ROUTINE_FAILED)
    assert "return code is -400" in outcome.message
    knitro.code = 0
    knitro.KN_solve = lambda context: context.update(solution=np.array(context["start"]))  # type: ignore[method-assign]
    outcome = minimize(Optimization("knitro"), Objective(), START, FREE)
    assert (outcome.converged, outcome.status) == (False, OptimizationStatus.NOT_OPTIMAL)


def test_interruptions_pass_through_knitro(knitro: FakeKnitro) -> None:
    outcome = minimize(Optimization("knitro"), Objective(interrupt_at=4), START, FREE)
    assert (outcome.status, outcome.evaluations) == (OptimizationStatus.INTERRUPTED, 4)
    assert knitro.freed == 2


def test_a_missing_knitro_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KNITRODIR", raising=False)
    monkeypatch.setitem(sys.modules, "knitro", None)
    with pytest.raises(
        OSError, match="needs Knitro, which cannot be imported.* or use Optimization\\('trust-region'\\)"
    ):
        Optimization("knitro")
    with pytest.raises(OSError, match="finds no directory 'lib' in knitro_dir"):
        Optimization("knitro", {"knitro_dir": str(tmp_path)})
    monkeypatch.setitem(sys.modules, "knitro", FakeKnitro(licensed=False))
    with pytest.raises(OSError, match="does not start: no license found. Is there a licence"):
        Optimization("knitro")
    monkeypatch.setitem(sys.modules, "knitro", types.ModuleType("knitro"))
    with pytest.raises(OSError, match="needs Knitro 12 or newer"):
        Optimization("knitro")


def test_knitro_is_found_where_it_says_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for part in ("lib", "examples/Python"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "examples/Python/knitro.py").write_text("KN_new = dict\ndef KN_free(context): pass\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "knitro", raising=False)
    monkeypatch.setenv("KNITRODIR", str(tmp_path))
    Optimization("knitro")
    assert Path(str(sys.modules["knitro"].__file__)).is_relative_to(tmp_path)
    monkeypatch.delitem(sys.modules, "knitro")


def test_options_that_knitro_does_not_know_are_refused(knitro: FakeKnitro) -> None:
    with pytest.raises(ValueError, match="Knitro does not accept the option ftol = 1e-09: ftol is no option"):
        Optimization("knitro", {"ftol": 1e-9})


# --- failing evaluations as the user wants them ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy", [FailurePolicy("revert", 3.0), FailurePolicy("punish", 1e3), FailurePolicy("punish")]
)
@pytest.mark.parametrize(
    "method",
    mostly_slow([*OURS[1:], *SCIPY_BOUNDED, *SCIPY_UNBOUNDED, *WITHOUT_GRADIENT], set(QUICK) - {OURS[0]}),
)
def test_policies_for_failures_never_give_false_convergence(
    method: str, policy: FailurePolicy, best: np.ndarray
) -> None:
    for fails in FAILING.values():
        outcome = minimize(configure(method), Objective(fails), START, FREE, failures=policy)
        assert not fails(outcome.theta) and bool(outcome.evaluation.ok)
        assert not outcome.converged or np.abs(outcome.theta - best).max() < 0.04
    outcome = minimize(configure(method), Objective(lambda theta: True), START, FREE, failures=policy)
    assert not outcome.converged and outcome.failed_evaluations == outcome.evaluations


def test_derivatives_that_are_left_out_are_completed_at_the_end() -> None:
    objective, completed = Objective(), []

    def complete(theta: np.ndarray, evaluation: Evaluation) -> Evaluation:
        completed.append(theta)
        return Objective()(theta)

    def without(theta: np.ndarray) -> Evaluation:
        found = objective(theta)
        return dataclasses.replace(found, gradient=found.gradient * np.nan, residual_jacobian=np.nan)

    outcome = minimize(configure("nelder-mead"), without, START, FREE, complete=complete)
    assert outcome.converged and len(completed) == 1 and np.isfinite(outcome.evaluation.gradient).all()
    short = minimize(configure("nelder-mead", maxfev=9), without, START, FREE, complete=complete)
    assert not short.converged and np.isfinite(short.evaluation.gradient).all()
