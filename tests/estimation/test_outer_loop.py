"""Options of `Problem.solve` that concern optimisation, on a small economy and against PyBLP."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyblp
import pytest

import blpjax
from blpjax import options
from blpjax.exceptions import ConvergenceError, ConvergenceWarning, IdentificationError
from tests.support import economies, joint, problems
from tests.support.silence import quiet
from tests.tolerances import ESTIMATES

pytestmark = pytest.mark.usefixtures("quiet")

SIGMA, PI = np.diag([0.0, 0.6]), np.array([[0.0], [-0.35]])
START = np.array([0.6, -0.35])
ONE_STEP = {"method": "1s", "check_optimality": "gradient"}
#: Utilities do not exist here.
HOPELESS = np.array([np.inf, -0.35])


def build(library: Any, **changes: Any) -> Any:
    products, agents = economies.tables(11, (7, 8) * 6, (23, 25) * 6, 1.2)
    return library.Problem(
        (library.Formulation("1 + prices + x"), library.Formulation("1 + x")),
        products.assign(**changes),
        library.Formulation("0 + income"),
        agents,
    )


@pytest.fixture(scope="module")
def problem(quiet: None) -> blpjax.Problem:
    return build(blpjax)


@pytest.fixture(scope="module")
def peer(quiet: None) -> Any:
    return build(pyblp)


@pytest.fixture(scope="module")
def results(problem: blpjax.Problem) -> blpjax.ProblemResults:
    return problem.solve(SIGMA, PI, **ONE_STEP)


class Seen(NamedTuple):
    """What a custom routine saw at one theta."""

    objective: float
    gradient: np.ndarray | None
    progress: Any


def visit(library: Any, problem: Any, points: list[np.ndarray], gradient: bool = True, **chosen: Any) -> list[Seen]:
    """What a custom routine sees at these points; it does not claim to have converged."""
    seen = []

    def method(initial: Any, bounds: Any, objective_function: Callable, iteration_callback: Any) -> tuple[Any, bool]:
        seen.extend(Seen(*objective_function(theta)) for theta in points)
        return START, False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = {**ONE_STEP, "iteration": library.Iteration("squarem", {"atol": 1e-14}), **chosen}
        problem.solve(SIGMA, PI, optimization=library.Optimization(method, compute_gradient=gradient), **chosen)
    return seen


# --- what custom routines see ---------------------------------------------------------------------------------------


def test_progress_has_the_attributes_of_pyblp(problem: blpjax.Problem, peer: Any) -> None:
    (theirs,) = visit(pyblp, peer, [START], sigma_bounds=(SIGMA * 0.5, SIGMA * 3))
    (ours,) = visit(blpjax, problem, [START], sigma_bounds=(SIGMA * 0.5, SIGMA * 3))
    assert isinstance(ours.progress, blpjax.OptimizationProgress)
    np.testing.assert_allclose(ours.objective, theirs.objective, rtol=1e-9)
    np.testing.assert_allclose(ours.gradient, theirs.gradient, rtol=1e-7)
    absent = {"clipped_shares"}
    counters = {"fp_iterations", "contraction_evaluations", "problem"}
    names = set(vars(theirs.progress)) - absent
    for name in names - counters:
        expected, actual = getattr(theirs.progress, name), getattr(ours.progress, name)
        if name.endswith("labels"):
            assert list(actual) == list(expected), name
            continue
        assert np.shape(actual) == np.shape(expected) or name == "theta", name
        np.testing.assert_allclose(
            np.ravel(actual).astype(float), np.ravel(expected).astype(float), rtol=1e-6, atol=1e-9, err_msg=name
        )
    assert ours.progress.problem is problem and ours.progress.fp_converged.all()
    assert (ours.progress.fp_iterations > 0).all() and (ours.progress.contraction_evaluations > 1).all()
    N = problem.N
    np.testing.assert_allclose(
        ours.progress.residuals @ ours.progress.residuals, ours.objective, rtol=1e-12, err_msg=f"{N} products"
    )


def test_routines_without_gradients_compute_no_derivatives(
    problem: blpjax.Problem, results: blpjax.ProblemResults
) -> None:
    (without,) = visit(blpjax, problem, [START], gradient=False)
    (exact,) = visit(blpjax, problem, [START])
    assert without.gradient is None and np.isnan(without.progress.gradient).all()
    assert np.isnan(without.progress.residual_jacobian).all() and np.isfinite(without.progress.xi).all()
    np.testing.assert_allclose(without.objective, exact.objective, rtol=1e-12)
    simplex = blpjax.Optimization("nelder-mead", {"xatol": 1e-9, "fatol": 1e-12}, compute_gradient=False)
    found = problem.solve(SIGMA, PI, optimization=simplex, **ONE_STEP)
    # the end has them nevertheless
    assert found.converged and np.isfinite(found.xi_by_theta_jacobian).all()
    for name in ("objective", "sigma", "pi", "beta", "sigma_se", "beta_se"):
        ESTIMATES.check(getattr(found, name), getattr(results, name), name)
    with pytest.raises(ValueError, match="delta_behavior='predicted' needs derivatives"):
        problem.solve(SIGMA, PI, optimization=simplex, delta_behavior="predicted")


def test_values_do_not_depend_on_whether_derivatives_are_computed(problem: blpjax.Problem) -> None:
    """To the last bit: routines that take differences of the objective would take other steps."""
    points = [START, 0.9 * START, 1.1 * START]
    without = visit(blpjax, problem, points, gradient=False)
    for (objective, gradient, progress), expected in zip(visit(blpjax, problem, points), without, strict=True):
        assert objective == expected.objective and gradient is not None and np.isfinite(gradient).all()
        np.testing.assert_array_equal(progress.delta, expected.progress.delta)
    points, epsilon = [], 1e-6
    for k in range(2):
        for sign in (1, -1):
            points.append(START + sign * epsilon * (np.arange(2) == k))
    up_and_down = np.array([seen.objective for seen in visit(blpjax, problem, points)]).reshape(2, 2)
    (exact,) = visit(blpjax, problem, [START])
    assert exact.gradient is not None
    np.testing.assert_allclose(exact.gradient, (up_and_down[:, 0] - up_and_down[:, 1]) / (2 * epsilon), rtol=1e-5)


# --- finite differences ---------------------------------------------------------------------------------------------


@pytest.fixture
def epsilon() -> Iterator[float]:
    before = options.finite_differences_epsilon
    options.finite_differences_epsilon = pyblp.options.finite_differences_epsilon = 1e-5
    yield 1e-5
    options.finite_differences_epsilon = pyblp.options.finite_differences_epsilon = before


@pytest.mark.usefixtures("epsilon")
def test_finite_differences_are_those_of_pyblp(problem: blpjax.Problem, peer: Any) -> None:
    def evaluate(library: Any, solved: Any, differences: bool) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return solved.solve(
                SIGMA,
                PI,
                optimization=library.Optimization("return"),
                iteration=library.Iteration("squarem", {"atol": 1e-14}),
                finite_differences=differences,
                **ONE_STEP,
            )

    theirs, ours = evaluate(pyblp, peer, True), evaluate(blpjax, problem, True)
    exact = evaluate(blpjax, problem, False)
    for name in ("gradient", "xi_by_theta_jacobian", "sigma_se", "pi_se", "beta_se"):
        actual, expected, analytic = (getattr(r, name) for r in (ours, theirs, exact))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-8, err_msg=name)
        np.testing.assert_allclose(actual, analytic, rtol=1e-5, atol=1e-8, err_msg=name)
        assert (np.asarray(actual) != analytic)[np.isfinite(actual)].any(), name


@pytest.mark.parametrize("method", ["trust-region", "l-bfgs-b"])
@pytest.mark.parametrize("default", [True, False])
def test_estimates_do_not_depend_on_how_derivatives_are_computed(
    problem: blpjax.Problem, results: blpjax.ProblemResults, method: str, default: bool, request: Any
) -> None:
    if not default:
        request.getfixturevalue("epsilon")
    chosen = blpjax.Optimization(method)
    found = problem.solve(SIGMA, PI, finite_differences=True, optimization=chosen, **ONE_STEP)
    assert found.converged, found.message
    for name in ("objective", "sigma", "pi", "beta", "sigma_se", "beta_se"):
        np.testing.assert_allclose(getattr(found, name), getattr(results, name), rtol=3e-5, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_the_default_optimiser_lives_with_errors_of_differences() -> None:
    other = problems.build(blpjax)
    with quiet():
        exact = other.solve(problems.SIGMA, problems.PI, method="1s", check_optimality="gradient")
        found = other.solve(problems.SIGMA, problems.PI, finite_differences=True, **ONE_STEP)
        strict = blpjax.Optimization("trust-region", {"floor_tol": 1e-16, "gtol": 1e-12})
        with pytest.warns(ConvergenceWarning, match="no further progress"):
            stalled = other.solve(problems.SIGMA, problems.PI, finite_differences=True, optimization=strict, **ONE_STEP)
    assert found.converged, found.message
    errors = np.concatenate([exact.sigma_se[np.nonzero(problems.SIGMA)], exact.pi_se[np.nonzero(problems.PI)]])
    assert (np.abs(found.theta - exact.theta) < 1e-4 * errors).all()
    assert not stalled.converged


@pytest.mark.slow
@pytest.mark.usefixtures("epsilon")
def test_finite_differences_know_costs_and_covariance_moments() -> None:
    products, agents = joint.tables()
    products = products.assign(covariance_instruments0=1.0, covariance_instruments1=products["x"])
    problem = joint.Model().build(blpjax, products, agents)
    exact, differenced = (
        problem.solve(
            joint.SIGMA,
            joint.PI,
            beta=[None, -2.0, None, None],
            optimization=blpjax.Optimization("return"),
            finite_differences=differences,
            **ONE_STEP,
        )
        for differences in (False, True)
    )
    for name in ("gradient", "xi_by_theta_jacobian", "omega_by_theta_jacobian", "sigma_se", "beta_se", "gamma_se"):
        actual, expected = getattr(differenced, name), getattr(exact, name)
        scale = np.nanmax(np.abs(expected))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7 * scale, err_msg=name)


@pytest.mark.usefixtures("unchecked_types")
def test_finite_differences_are_true_or_false(problem: blpjax.Problem) -> None:
    with pytest.raises(TypeError, match="finite_differences must be True or False, not 'central'"):
        problem.solve(SIGMA, PI, finite_differences="central")


# --- failing evaluations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behavior", "punishment"), [("revert", 1.0), ("revert", 3.0), ("punish", 1.0), ("punish", 1e4)]
)
def test_errors_are_reverted_and_punished_as_in_pyblp(
    problem: blpjax.Problem, peer: Any, behavior: str, punishment: float
) -> None:
    points = [START, HOPELESS, 1.1 * START, HOPELESS]
    # with 'last', what PyBLP reverts mean utilities to are those of the last evaluation
    chosen = {"error_behavior": behavior, "error_punishment": punishment, "delta_behavior": "last"}
    theirs, ours = visit(pyblp, peer, points, **chosen), visit(blpjax, problem, points, **chosen)
    for i, (actual, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert actual.progress.ok == (i % 2 == 0)
        np.testing.assert_allclose(actual.objective, expected.objective, rtol=1e-8, err_msg=str(i))
        np.testing.assert_allclose(actual.gradient, expected.gradient, rtol=1e-6, err_msg=str(i))
    assert np.isnan(ours[1].progress.objective)


def test_the_first_error_reverts_to_a_huge_objective(problem: blpjax.Problem) -> None:
    first, second = visit(blpjax, problem, [HOPELESS, START], error_behavior="revert", error_punishment=2.0)
    assert first.objective == 2e10 and not first.gradient.any() and second.objective < 1e3
    (without,) = visit(blpjax, problem, [HOPELESS], gradient=False, error_behavior="punish", error_punishment=7.0)
    assert (without.objective, without.gradient) == (7.0, None)


@pytest.mark.parametrize("behavior", ["revert", "punish"])
@pytest.mark.parametrize("method", ["l-bfgs-b", "nelder-mead", pytest.param("optax-l-bfgs", marks=pytest.mark.slow)])
def test_what_fails_is_never_reported_as_converged(problem: blpjax.Problem, behavior: str, method: str) -> None:
    chosen = blpjax.Optimization(method, compute_gradient=method != "nelder-mead")
    hopeless = blpjax.Iteration("simple", {"max_evaluations": 3})
    with pytest.warns(ConvergenceWarning, match="12 of 12 markets"):
        failed = problem.solve(
            SIGMA,
            PI,
            optimization=chosen,
            iteration=hopeless,
            error_behavior=behavior,
            error_punishment=0.5,
            **ONE_STEP,
        )
    assert not failed.converged and np.isnan(failed.objective)


@pytest.mark.slow
@pytest.mark.parametrize("max_evaluations", [7, 8])
def test_only_optima_count_where_some_evaluations_fail(
    problem: blpjax.Problem, results: blpjax.ProblemResults, max_evaluations: int
) -> None:
    chosen = blpjax.Optimization("nelder-mead", {"xatol": 1e-9, "fatol": 1e-12}, compute_gradient=False)
    few = blpjax.Iteration("anderson", {"max_evaluations": max_evaluations})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = problem.solve(
            SIGMA, PI, optimization=chosen, iteration=few, error_behavior="punish", error_punishment=1e3, **ONE_STEP
        )
    assert "evaluations failed" in found.message and np.isfinite(found.objective)
    assert found.converged == bool(np.abs(found.theta - results.theta).max() < 1e-4), found.message


def test_error_behavior_raise_raises_for_optimization_too(problem: blpjax.Problem) -> None:
    short = blpjax.Optimization("trust-region", {"max_evaluations": 2})
    with pytest.raises(ConvergenceError, match="GMM step 1 did not converge: Optimization reached the maximum number"):
        problem.solve(SIGMA, PI, optimization=short, error_behavior="raise")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"error_punishment": 10.0}, "error_punishment does nothing with error_behavior=None. Use it with 'revert'"),
        ({"error_behavior": "raise", "error_punishment": 10.0}, "error_punishment does nothing .*'raise'"),
        ({"error_behavior": "punish", "error_punishment": -1}, "error_punishment must be a number of at least zero"),
        ({"error_behavior": "revert", "error_punishment": "a"}, "error_punishment must be a number .* not 'a'"),
        ({"error_behavior": "ignore"}, "error_behavior must be one of .*'punish'.* not 'ignore'"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_error_options_that_cannot_be_honoured_are_refused(
    problem: blpjax.Problem, chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        problem.solve(SIGMA, PI, **chosen)


# --- display --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bfgs", "trust-region"])
@pytest.mark.parametrize("universal", [True, False])
def test_one_display_or_the_other(
    problem: blpjax.Problem, monkeypatch: pytest.MonkeyPatch, capsys: Any, method: str, universal: bool
) -> None:
    texts: list[str] = []
    monkeypatch.setattr(options, "verbose", True)
    monkeypatch.setattr(options, "verbose_output", texts.append)
    chosen = blpjax.Optimization(method, universal_display=universal)
    problem.solve(SIGMA, PI, optimization=chosen, **ONE_STEP)
    assert any("Contraction" in text and "Theta" in text for text in texts) == universal
    own = "Current function value" in capsys.readouterr().out
    assert own == (method == "bfgs" and not universal)
    monkeypatch.setattr(options, "verbose", False)
    problem.solve(SIGMA, PI, optimization=chosen, **ONE_STEP)
    assert capsys.readouterr().out == ""


# --- pseudo-inverses ------------------------------------------------------------------------------------------------


def test_singular_matrices_are_errors_without_pseudo_inverses(
    problem: blpjax.Problem, results: blpjax.ProblemResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    products, _ = economies.tables(11, (7, 8) * 6, (23, 25) * 6, 1.2)
    monkeypatch.setattr(options, "pseudo_inverses", False)
    np.testing.assert_array_equal(problem.solve(SIGMA, PI, **ONE_STEP).sigma_se, results.sigma_se)
    with pytest.warns(match="collinear"):
        collinear = build(blpjax, demand_instruments6=products.demand_instruments0 * 2)
    with pytest.raises(IdentificationError, match="instruments .*'demand_instruments6'.* have rank .* pseudo-inverse"):
        collinear.solve(SIGMA, PI)
    clustered = build(blpjax, clustering_ids=np.arange(len(products)) % 3)
    with pytest.raises(IdentificationError, match="covariances of the moments in GMM step 1 is 2 and not"):
        clustered.solve(SIGMA, PI, W_type="clustered", **ONE_STEP)
