"""What estimation does with its options, on small simulated economies and from many starts on Nevo's data."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax import options
from blpjax.exceptions import ConvergenceError, ConvergenceWarning, IdentificationWarning
from tests.support import economies, nevo
from tests.support.designs import mostly_slow
from tests.support.nevo import array, reference
from tests.support.programs import compilations
from tests.tolerances import DELTA, ESTIMATES, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

# Of similar size, so that one padded shape serves all markets.
PRODUCTS = (7, 8) * 6
AGENTS = (23, 25) * 6
SIGMA = np.diag([0.0, 0.6])
PI = np.array([[0.0], [-0.35]])
ONE_STEP = {"method": "1s", "check_optimality": "gradient"}
# On the host: the default routine has a program for each number of parameters.
ON_HOST = blpjax.Optimization("l-bfgs-b", {"gtol": 1e-8, "ftol": 0})


@pytest.fixture(scope="module")
def data() -> tuple[pd.DataFrame, pd.DataFrame]:
    return economies.tables(11, PRODUCTS, AGENTS, 1.2)


def build(lib: Any, data: tuple[pd.DataFrame, pd.DataFrame], **changes: Any) -> Any:
    """A problem of either library with random coefficients on the constant and x."""
    products, agents = data
    X1 = changes.pop("X1", "1 + prices + x")
    absorb = changes.pop("absorb", None)
    X2 = changes.pop("X2", "1 + x")
    demographics = changes.pop("demographics", "0 + income")
    return lib.Problem(
        (lib.Formulation(X1, absorb=absorb), lib.Formulation(X2)),
        products,
        None if demographics is None else lib.Formulation(demographics),
        agents,
        **changes,
    )


@pytest.fixture(scope="module")
def problem(quiet: None, data: tuple[pd.DataFrame, pd.DataFrame]) -> blpjax.Problem:
    return build(blpjax, data)


@pytest.fixture(scope="module")
def results(problem: blpjax.Problem) -> blpjax.ProblemResults:
    """One step by the default routine: sigma and pi on x."""
    estimated = problem.solve(SIGMA, PI, method="1s")
    assert estimated.converged and estimated.projected_gradient_norm < 1e-7
    assert estimated.at_bound == []
    return estimated


def check_estimates(actual: Any, expected: Any, names: tuple[str, ...] = ()) -> None:
    """Estimates and standard errors of two results."""
    for name in ("objective", "sigma", "pi", "beta", "sigma_se", "pi_se", "beta_se", "sigma_squared_se", *names):
        if np.size(getattr(expected, name)):
            ESTIMATES.check(getattr(actual, name), getattr(expected, name), name)


# --- optimisation routines ------------------------------------------------------------------------------------------

ROUTINES = {
    "trust-region": {},
    "slsqp": {"ftol": 1e-14},
    "trust-constr": {"gtol": 1e-10, "xtol": 1e-14},
    "l-bfgs-b": {"gtol": 1e-8, "ftol": 0},
    "tnc": {"gtol": 1e-6, "ftol": 1e-14, "xtol": 1e-10},
    "cg": {"gtol": 1e-7},
    "bfgs": {"gtol": 1e-7},
    "newton-cg": {"xtol": 1e-4},
    "optax-l-bfgs": {"gtol": 1e-7},
    "nelder-mead": {"xatol": 1e-9, "fatol": 1e-12},
    "powell": {"xtol": 1e-10, "ftol": 1e-15},
}


@pytest.mark.parametrize(
    "routine", mostly_slow([*ROUTINES], set(ROUTINES) - {"nelder-mead", "powell", "tnc", "newton-cg", "optax-l-bfgs"})
)
def test_every_routine_reaches_the_same_optimum(
    problem: blpjax.Problem, results: blpjax.ProblemResults, routine: str
) -> None:
    with_gradient = routine not in ("nelder-mead", "powell")
    chosen = blpjax.Optimization(routine, ROUTINES[routine], compute_gradient=with_gradient)
    other = problem.solve(SIGMA, PI, method="1s", optimization=chosen)
    assert other.converged
    check_estimates(other, results)
    assert "Optimization converged" in other.message


def test_return_evaluates_the_starting_values_only(problem: blpjax.Problem) -> None:
    returned = problem.solve(SIGMA, PI, method="1s", optimization=blpjax.Optimization("return"))
    np.testing.assert_array_equal(returned.theta, [SIGMA[1, 1], PI[1, 0]])
    assert returned.converged and returned.objective_evaluations == 1 and returned.optimization_iterations == 0
    assert returned.projected_gradient_norm > 1e-2


def search_grid(
    initial: np.ndarray,
    bounds: list[tuple[float, float]],
    objective_function: Callable,
    iteration_callback: Callable,
    *,
    zooms: int,
) -> tuple[np.ndarray, bool]:
    """Evaluate a grid of 5 x 5 points around the best so far, and halve its width where the centre remains the best."""
    centre, width = np.array(initial), 0.4
    while zooms > 0:
        steps = width * np.linspace(-1, 1, 5)
        points = [np.clip(centre + [a, b], *np.array(bounds).T) for a in steps for b in steps]
        best = min(points, key=lambda point: objective_function(point)[0])
        if np.array_equal(best, centre):
            zooms, width = zooms - 1, width / 2
        centre = best
        iteration_callback()
    return centre, True


def gauss_newton(
    initial: np.ndarray, bounds: list[tuple[float, float]], objective_function: Callable, iteration_callback: Callable
) -> tuple[np.ndarray, bool]:
    """Gauss-Newton steps, halved until the objective falls, from the residuals that the third value has."""
    theta, (objective, gradient, progress) = initial, objective_function(initial)
    for _ in range(100):
        r, J = progress.residuals, progress.residual_jacobian
        assert progress.ok
        FIXED_PARAMETERS.check(objective, r @ r)
        np.testing.assert_allclose(gradient, 2 * J.T @ r, rtol=1e-8, atol=1e-10)
        if np.abs(gradient).max() < 1e-7:
            return theta, True
        step, before = np.linalg.lstsq(J, r)[0], objective
        while True:
            objective, gradient, progress = objective_function(theta - step)
            if objective < before:
                break
            step = step / 2
        theta = theta - step
        iteration_callback()
    return theta, False


@pytest.mark.slow
def test_a_custom_grid_search_reaches_the_same_optimum(problem: blpjax.Problem, results: blpjax.ProblemResults) -> None:
    searched = problem.solve(
        SIGMA, PI, method="1s", optimization=blpjax.Optimization(search_grid, {"zooms": 24}, compute_gradient=False)
    )
    assert searched.converged and searched.optimization_iterations >= 24
    check_estimates(searched, results)


@pytest.mark.slow
def test_custom_gauss_newton_steps_reach_the_same_optimum(
    problem: blpjax.Problem, results: blpjax.ProblemResults
) -> None:
    iterated = problem.solve(SIGMA, PI, method="1s", optimization=blpjax.Optimization(gauss_newton))
    assert iterated.converged and iterated.optimization_iterations < iterated.objective_evaluations
    check_estimates(iterated, results)


# --- options of solve -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behavior", ["logit", "last"])
def test_where_inversions_start_does_not_matter(
    problem: blpjax.Problem, results: blpjax.ProblemResults, behavior: str
) -> None:
    other = problem.solve(SIGMA, PI, method="1s", delta_behavior=behavior)
    check_estimates(other, results)
    ESTIMATES.check(other.delta, results.delta)
    again = problem.solve(SIGMA, PI, method="1s", delta=results.delta, delta_behavior=behavior)
    check_estimates(again, results)
    warm = problem.solve(
        results.sigma, results.pi, optimization=blpjax.Optimization("return"), delta=results.delta, **ONE_STEP
    )
    assert warm.fp_iterations.max() <= 2


def test_unscaled_objective_is_the_scaled_one_over_N(problem: blpjax.Problem, results: blpjax.ProblemResults) -> None:
    unscaled = problem.solve(
        SIGMA, PI, method="1s", scale_objective=False, optimization=blpjax.Optimization("trust-region", {"gtol": 1e-10})
    )
    ESTIMATES.check(unscaled.objective * problem.N, results.objective)
    ESTIMATES.check(unscaled.theta, results.theta)
    ESTIMATES.check(unscaled.parameter_covariances, results.parameter_covariances)
    ESTIMATES.check(unscaled.hessian * problem.N, results.hessian)
    ESTIMATES.check(unscaled.run_hansen_test(), results.run_hansen_test())


def test_initial_update_weights_the_first_step_by_the_starting_values(problem: blpjax.Problem) -> None:
    updated = problem.solve(SIGMA, PI, method="1s", initial_update=True)
    initial = problem.solve(SIGMA, PI, optimization=blpjax.Optimization("return"), **ONE_STEP)
    assert updated.last_results is not None and updated.last_results.step == 0 and updated.step == 1
    LINEAR_ALGEBRA.check(updated.W, initial.updated_W)
    given = problem.solve(SIGMA, PI, method="1s", W=initial.updated_W)
    check_estimates(updated, given)
    assert given.last_results is None
    assert updated.cumulative_objective_evaluations == updated.objective_evaluations + 1


def test_two_steps_are_one_with_the_weights_of_the_first(
    problem: blpjax.Problem, results: blpjax.ProblemResults
) -> None:
    two = problem.solve(SIGMA, PI)
    assert two.step == 2 and two.last_results is not None and two.last_results.step == 1
    ESTIMATES.check(two.last_results.theta, results.theta)
    assert np.isnan(two.last_results.beta_se).all() and np.isfinite(two.beta_se).all()
    one = problem.solve(results.sigma, results.pi, method="1s", W=results.updated_W)
    check_estimates(two, one)
    assert two.cumulative_converged
    assert two.cumulative_fp_iterations.shape == (problem.T, two.cumulative_objective_evaluations)


def test_a_second_step_alone_is_the_same_to_the_last_bit(problem: blpjax.Problem) -> None:
    few = {"optimization": blpjax.Optimization("l-bfgs-b", {"maxfun": 3}), "check_optimality": "gradient"}
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        two = problem.solve(SIGMA, PI, **few)
        first = problem.solve(SIGMA, PI, method="1s", **few)
        second = problem.solve(first.sigma, first.pi, method="1s", W=first.updated_W, delta=first.delta, **few)
    for name in ("theta", "objective", "beta", "delta", "xi", "W", "updated_W", "moments", "parameter_covariances"):
        np.testing.assert_array_equal(getattr(second, name), getattr(two, name), err_msg=name)


@pytest.mark.slow
def test_linear_parameters_in_theta_have_the_same_estimates(
    problem: blpjax.Problem, results: blpjax.ProblemResults
) -> None:
    everything = problem.solve(SIGMA, PI, beta=[-0.5, -1.0, 0.5], optimization=ON_HOST, **ONE_STEP)
    assert everything.theta_labels == ["x x x", "x x income", "1", "prices", "x"]
    assert everything.theta.shape == (5,) and everything.moments_jacobian.shape == (problem.MD, 5)
    check_estimates(everything, results, ("moments_jacobian", "parameter_covariances"))


@pytest.mark.slow
def test_one_linear_parameter_in_theta_has_the_same_estimate(
    problem: blpjax.Problem, results: blpjax.ProblemResults
) -> None:
    one = problem.solve(SIGMA, PI, beta=[None, -1.0, None], **ONE_STEP)
    assert one.theta_labels == ["x x x", "x x income", "prices"]
    assert one.parameter_labels == ["x x x", "x x income", "prices", "1", "x"]
    check_estimates(one, results)


@pytest.mark.slow
def test_equal_bounds_fix_parameters(problem: blpjax.Problem, results: blpjax.ProblemResults) -> None:
    bounds = (np.array([[0.0], [-0.3]]), np.array([[0.0], [-0.3]]))
    fixed = problem.solve(SIGMA, bounds[0], pi_bounds=bounds, optimization=ON_HOST, **ONE_STEP)
    assert fixed.theta_labels == ["x x x"] and fixed.pi[1, 0] == -0.3 and np.isnan(fixed.pi_se).all()
    assert fixed.parameters.shape == (4, 1) and fixed.converged
    assert fixed.objective > results.objective
    profiled = problem.solve(SIGMA, results.pi, pi_bounds=(results.pi, results.pi), optimization=ON_HOST, **ONE_STEP)
    ESTIMATES.check(profiled.sigma, results.sigma)


@pytest.mark.slow
def test_equal_bounds_fix_linear_parameters(problem: blpjax.Problem) -> None:
    beta_bounds = ([-np.inf, -1.5, -np.inf], [np.inf, -1.5, np.inf])
    price = problem.solve(SIGMA, PI, beta=[np.nan, -1.5, np.nan], beta_bounds=beta_bounds, **ONE_STEP)
    assert price.beta[1, 0] == -1.5 and np.isnan(price.beta_se[1, 0]) and np.isfinite(price.beta_se[[0, 2], 0]).all()
    assert price.parameter_labels == ["x x x", "x x income", "1", "x"]


@pytest.mark.slow
def test_beta_at_zero_stays_there(data: tuple[pd.DataFrame, pd.DataFrame], problem: blpjax.Problem) -> None:
    fixed = problem.solve(SIGMA, PI, beta=[np.nan, np.nan, 0], **ONE_STEP)
    assert fixed.beta[2, 0] == 0 and np.isnan(fixed.beta_se[2, 0])
    products, agents = data
    without = build(blpjax, (products.assign(demand_instruments6=products["x"]), agents), X1="1 + prices")
    excluded = without.solve(SIGMA, PI, **ONE_STEP)
    ESTIMATES.check(fixed.parameters, excluded.parameters)
    ESTIMATES.check(fixed.parameter_covariances, excluded.parameter_covariances)


def test_bounds_hold_at_every_evaluation(problem: blpjax.Problem, results: blpjax.ProblemResults) -> None:
    upper = np.array([[np.inf, np.inf], [np.inf, results.sigma[1, 1] - 0.1]])
    start = np.diag([0.0, 0.1])
    seen: list[float] = []

    def record(initial: np.ndarray, bounds: Any, *unused: object) -> tuple[np.ndarray, bool]:
        seen.extend(bounds[0])
        return initial, True

    with pytest.warns(ConvergenceWarning, match="not an optimum"):
        problem.solve(
            start, PI, sigma_bounds=(np.zeros((2, 2)), upper), optimization=blpjax.Optimization(record), **ONE_STEP
        )
    assert seen == [0.0, upper[1, 1]]
    held = problem.solve(start, PI, method="1s", sigma_bounds=(np.zeros((2, 2)), upper))
    assert held.at_bound == ["x x x"] and held.sigma[1, 1] == upper[1, 1] and held.converged
    assert held.gradient[0, 0] < 0 and held.projected_gradient[0, 0] == 0
    assert held.objective > results.objective


def test_routines_without_bounds_warn_when_the_user_gave_some(problem: blpjax.Problem) -> None:
    bounds = (np.zeros((2, 2)), np.full((2, 2), 0.6))
    with pytest.warns(UserWarning, match=r"Optimization\('bfgs'\) ignores parameter bounds"):
        problem.solve(SIGMA, PI, method="1s", sigma_bounds=bounds, optimization=blpjax.Optimization("bfgs"))


# --- what may be estimated, against PyBLP ---------------------------------------------------------------------------


def solve_both(data: tuple[pd.DataFrame, pd.DataFrame], arguments: dict[str, Any], **changes: Any) -> tuple[Any, Any]:
    """Results of blpjax and of PyBLP, which estimates with a tight tolerance."""
    ours = build(blpjax, data, **changes).solve(**arguments)
    tight = pyblp.Optimization("l-bfgs-b", {"gtol": 1e-8, "ftol": 0})
    theirs = build(pyblp, data, **changes).solve(**{"optimization": tight} | arguments)
    return ours, theirs


def evaluate_both(data: tuple[pd.DataFrame, pd.DataFrame], arguments: dict[str, Any], **changes: Any) -> None:
    """Compare both libraries at given parameters."""
    ours = build(blpjax, data, **changes).solve(**arguments, optimization=blpjax.Optimization("return"), **ONE_STEP)
    theirs = build(pyblp, data, **changes).solve(**arguments, optimization=pyblp.Optimization("return"), **ONE_STEP)
    assert list(ours.theta_labels) == list(theirs.theta_labels)
    names = (
        *("theta", "objective", "gradient", "delta", "xi", "moments", "moments_jacobian", "xi_by_theta_jacobian"),
        *("parameters", "parameter_covariances", "updated_W", "sigma_se", "sigma_squared", "sigma_squared_se", "pi_se"),
        *("beta", "beta_se"),
    )
    for name in names:
        if np.size(getattr(theirs, name)):
            FIXED_PARAMETERS.check(getattr(ours, name), getattr(theirs, name), name)


@pytest.mark.slow
def test_covariances_of_tastes_are_those_of_pyblp(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    sigma = np.array([[0.4, 9.0], [0.3, 0.7]])  # what stands above the diagonal is ignored
    evaluate_both(data, {"sigma": sigma, "pi": [[0.3], [-0.4]]})


def test_demographics_alone_are_those_of_pyblp(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    evaluate_both(data, {"sigma": np.zeros((2, 2)), "pi": [[0.3], [-0.4]]})


def test_fixed_and_free_elements_are_those_of_pyblp(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    arguments = {"sigma": [[0, 0], [0.3, 0.7]], "pi": [[0.3], [0]], "beta": [np.nan, -1.4, 0]}
    evaluate_both(data, arguments)


@pytest.mark.slow
def test_unbalanced_weights_without_demographics_are_those_of_pyblp(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    products, agents = data
    raw = agents["weights"] * np.exp(agents["income"])
    weighted = agents.assign(weights=raw / raw.groupby(agents["market_ids"]).transform("sum"))
    evaluate_both((products, weighted), {"sigma": np.diag([0.5, 0.9])}, demographics=None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["robust", "clustered", "unadjusted"])
def test_two_steps_with_two_fixed_effects_are_those_of_pyblp(kind: str) -> None:
    products, agents = economies.tables(3, (5, 9, 7, 10) * 6, (15, 30, 20, 25) * 6, 1.5)
    products = products.assign(clustering_ids=np.arange(len(products)) % 40)
    ours, theirs = solve_both(
        (products, agents),
        {"sigma": [[0, 0], [0, 1.2]], "pi": [[0], [-0.8]], "W_type": kind, "se_type": kind},
        X1="0 + prices + x",
        absorb="C(market_ids) + C(product_ids)",
    )
    assert ours.converged and theirs.converged and ours.at_bound == []
    check_estimates(ours, theirs, ("xi", "xi_fe", "delta", "updated_W"))
    ESTIMATES.check(ours.last_results.theta, theirs.last_results.theta)
    ESTIMATES.check(ours.run_hansen_test(), theirs.run_hansen_test())


def test_plain_logit_is_two_stage_least_squares(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    products, _ = data
    results = blpjax.Problem(blpjax.Formulation("1 + prices + x"), products).solve(method="1s")
    X = np.column_stack([np.ones(len(products)), products["prices"], products["x"]])
    Z = np.column_stack([*(products[f"demand_instruments{m}"] for m in range(6)), X[:, 0], X[:, 2]])
    outside = 1 - products.groupby("market_ids")["shares"].transform("sum")
    fitted = Z @ np.linalg.lstsq(Z, X)[0]
    delta = np.log(products["shares"] / outside).to_numpy()
    LINEAR_ALGEBRA.check(results.beta[:, 0], np.linalg.lstsq(fitted, delta)[0])
    ROUNDING.check(results.delta[:, 0], delta)


@pytest.mark.slow
def test_prices_in_X2_alone_with_absorbed_effects_only(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    with pytest.warns(IdentificationWarning, match="prices"):
        problem = build(blpjax, data, X1="0", absorb="C(product_ids)", X2="0 + prices", demographics=None)
    assert problem.K1 == 0 and problem.ED == 1
    results = problem.solve(sigma=0.5, optimization=ON_HOST, **ONE_STEP)
    assert results.converged and results.beta.shape == (0, 1) and results.parameters.shape == (1, 1)
    assert results.moments_jacobian.shape == (6, 1)
    # With no linear parameters, xi is what product effects leave of delta.
    effects = pd.Series(results.delta[:, 0]).groupby(data[0]["product_ids"].to_numpy()).transform("mean")
    FIXED_PARAMETERS.check(results.xi[:, 0], results.delta[:, 0] - effects)


def test_instruments_built_by_hand_give_the_same_estimates(
    data: tuple[pd.DataFrame, pd.DataFrame], results: blpjax.ProblemResults
) -> None:
    products, agents = data
    by_hand = products.assign(demand_instruments6=1.0, demand_instruments7=products["x"])
    problem = build(blpjax, (by_hand, agents), add_exogenous=False)
    assert problem.MD == 8
    check_estimates(problem.solve(SIGMA, PI, method="1s"), results, ("W", "updated_W"))


# --- order and names of the data ------------------------------------------------------------------------------------


def test_the_order_of_rows_does_not_matter(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    products, agents = data
    original = build(blpjax, data).solve(SIGMA, PI)
    rng = np.random.default_rng(0)
    order, people = rng.permutation(len(products)), rng.permutation(len(agents))
    shuffled = build(blpjax, (products.iloc[order], agents.iloc[people])).solve(SIGMA, PI)
    check_estimates(shuffled, original)
    for name in ("delta", "xi"):
        ESTIMATES.check(getattr(shuffled, name), getattr(original, name)[order], name)
    own = [r.extract_diagonals(r.compute_elasticities()) for r in (shuffled, original)]
    ESTIMATES.check(own[0], own[1][order])


def test_the_names_of_markets_do_not_matter(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    products, agents = data
    original = build(blpjax, data).solve(SIGMA, PI)
    names = {f"m{t:03d}": 2000 - 7 * t for t in range(len(PRODUCTS))}
    renamed = [table.assign(market_ids=table["market_ids"].map(names)) for table in (products, agents)]
    other = build(blpjax, tuple(renamed)).solve(SIGMA, PI)
    check_estimates(other, original)
    ESTIMATES.check(other.delta, original.delta)
    # Results by market are in the order of sorted market IDs, here reversed.
    means = [r.extract_diagonal_means(r.compute_elasticities()) for r in (other, original)]
    ESTIMATES.check(means[0], means[1][::-1])


# --- failures -------------------------------------------------------------------------------------------------------

HOPELESS = blpjax.Iteration("simple", {"max_evaluations": 3})


def test_failed_inversions_are_reported_and_never_count_as_convergence(problem: blpjax.Problem) -> None:
    message = r"did not converge.*maximum number of evaluations in 12 of 12 markets: 'm000', 'm001'"
    with pytest.warns(ConvergenceWarning, match=message):
        failed = problem.solve(SIGMA, PI, method="1s", iteration=HOPELESS)
    assert not failed.converged and np.isnan(failed.objective) and not failed.fp_converged.any()
    assert "NOT CONVERGED" in str(failed) and "'m000'" in str(failed)
    with pytest.warns(ConvergenceWarning, match="12 of 12 markets"):
        returned = problem.solve(SIGMA, PI, iteration=HOPELESS, optimization=blpjax.Optimization("return"), **ONE_STEP)
    assert not returned.converged and np.isnan(returned.objective)


def test_a_custom_routine_cannot_claim_convergence_where_inversions_fail(problem: blpjax.Problem) -> None:
    def insist(
        initial: np.ndarray, bounds: Any, objective_function: Callable, *unused: object
    ) -> tuple[np.ndarray, bool]:
        objective_function(initial)
        return initial, True

    with pytest.warns(ConvergenceWarning, match="not an optimum.*cannot be evaluated"):
        failed = problem.solve(SIGMA, PI, iteration=HOPELESS, optimization=blpjax.Optimization(insist), **ONE_STEP)
    assert not failed.converged


def test_a_routine_that_runs_out_of_evaluations_has_not_converged(problem: blpjax.Problem) -> None:
    short = blpjax.Optimization("trust-region", {"max_evaluations": 2})
    with pytest.warns(ConvergenceWarning, match="reached the maximum number of evaluations"):
        stopped = problem.solve(SIGMA, PI, method="1s", optimization=short)
    assert not stopped.converged and np.isfinite(stopped.objective) and stopped.objective_evaluations == 2
    assert stopped.fp_converged.all()


def test_errors_are_raised_on_demand(problem: blpjax.Problem) -> None:
    with pytest.raises(ConvergenceError, match=r"inversion of market shares reached .* in 12 of 12 markets: 'm000'"):
        problem.solve(SIGMA, PI, iteration=HOPELESS, error_behavior="raise")


@pytest.mark.parametrize("method", ["1s", "2s"])
def test_interruption_leaves_the_best_values_so_far(
    problem: blpjax.Problem, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    rows: list[str] = []

    def interrupt(text: str) -> None:
        rows.extend(line for line in text.splitlines() if line.startswith(" 1 ") or line.startswith(" 2 "))
        if len(rows) == 3 and "Interrupted" not in rows:
            rows.append("Interrupted")
            raise KeyboardInterrupt

    monkeypatch.setattr(options, "verbose", True)
    monkeypatch.setattr(options, "verbose_output", interrupt)
    with pytest.warns(ConvergenceWarning, match="interrupted; the best values so far"):
        partial = problem.solve(SIGMA, PI, method=method)
    assert not partial.converged and partial.step == 1 and partial.last_results is None
    assert partial.objective_evaluations == 2
    monkeypatch.setattr(options, "verbose", False)
    again = problem.solve(partial.sigma, partial.pi, method="1s", optimization=blpjax.Optimization("return"))
    FIXED_PARAMETERS.check(again.objective, partial.objective)
    assert np.isfinite(partial.beta_se).all()
    start = problem.solve(SIGMA, PI, optimization=blpjax.Optimization("return"), **ONE_STEP)
    assert partial.objective < start.objective


# --- compilation ----------------------------------------------------------------------------------------------------


def test_a_second_problem_of_the_same_shape_compiles_nothing(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    build(blpjax, data).solve(SIGMA, PI)
    second = build(blpjax, economies.tables(12, PRODUCTS, AGENTS))
    with compilations() as compiled:
        jax.jit(lambda x: x + 3.25)(1.0)  # the event is heard
        assert len(compiled) == 1
        compiled.clear()
        weights = np.eye(second.MD)
        for arguments in ({}, {"W": weights}, {"sigma_bounds": (np.zeros((2, 2)), np.ones((2, 2)))}):
            second.solve(SIGMA * 1.1, PI * 0.9, **arguments)
        second.solve(SIGMA, PI, iteration=blpjax.Iteration("anderson", {"atol": 1e-12}), scale_objective=False)
        assert compiled == []


# --- Nevo's data from many starts -----------------------------------------------------------------------------------


def random_starts(number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sigma times U(0, 5) and Pi times U(-3, 3), drawn as for the stored results of PyBLP."""
    rng = np.random.default_rng(20260101)
    for _ in range(number):
        yield nevo.SIGMA * np.diag(rng.uniform(0, 5, 4)), nevo.PI * rng.uniform(-3, 3, (4, 4))


def solve_from(problem: blpjax.Problem, sigma: np.ndarray, pi: np.ndarray) -> blpjax.ProblemResults:
    return problem.solve(sigma, pi, method="1s", **nevo.UNBOUNDED)


@pytest.fixture(scope="module")
def cereals(quiet: None) -> blpjax.Problem:
    return nevo.problem()


def check_known_optimum(results: blpjax.ProblemResults) -> None:
    known = reference("nevo_unbounded")
    ESTIMATES.check(results.objective, known["objective"])
    ESTIMATES.check(results.sigma_squared, array(known["sigma_squared"]))
    ESTIMATES.check(results.pi, array(known["pi"]))
    ESTIMATES.check(results.beta_se, array(known["beta_se"]))


@pytest.mark.slow
def test_random_starts_end_where_pyblp_ends(cereals: blpjax.Problem) -> None:
    stored = reference("random_starts")["starts"]
    for (sigma, pi), theirs in zip(random_starts(len(stored)), stored, strict=True):
        np.testing.assert_array_equal(sigma, array(theirs["sigma_start"]))
        np.testing.assert_array_equal(pi, array(theirs["pi_start"]))
        results = solve_from(cereals, sigma, pi)
        assert results.converged
        ESTIMATES.check(results.objective, theirs["objective"])
        check_known_optimum(results)
        assert results.objective_evaluations < theirs["objective_evaluations"] / 2


@pytest.mark.slow
def test_fifty_random_starts_end_at_an_optimum(cereals: blpjax.Problem) -> None:
    """All at the known one but the 39th: a strict local minimum at 35.3005, where PyBLP's gradient is 4e-10."""
    elsewhere = {}
    for number, (sigma, pi) in enumerate(random_starts(50)):
        results = solve_from(cereals, sigma, pi)
        assert results.converged and results.projected_gradient_norm < 1e-6, number
        if results.objective < 4.5616:
            check_known_optimum(results)
        else:
            elsewhere[number] = results
    assert set(elsewhere) <= {38}
    for results in elsewhere.values():
        assert results.reduced_hessian_eigenvalues[0] > 1e-5
        ESTIMATES.check(results.objective, 35.300527301)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["anderson", "newton", "squarem"])
def test_shares_are_inverted_at_ten_times_the_estimated_sigma(cereals: blpjax.Problem, method: str) -> None:
    known = reference("nevo_unbounded")
    functions = cereals.functions(
        10 * array(known["sigma"]), array(known["pi"]), iteration=blpjax.Iteration(method, {"atol": 1e-12})
    )
    found = functions.inversion(functions.theta)
    solved = np.asarray(found.residuals) <= 1e-12
    assert solved.mean() >= 0.99
    np.testing.assert_array_equal(np.asarray(found.status) <= 1, solved)  # the rest are reported
    predicted = np.asarray(functions.shares(functions.theta, found.delta))
    rows = np.concatenate([rows for rows, ok in zip(cereals.market_index.rows, solved, strict=True) if ok])
    DELTA.check(predicted[rows], cereals.products.shares[rows, 0])
