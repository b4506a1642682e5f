"""Many starting values: where each leads is what `solve` says, and the best local minimum is chosen."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.estimation import starts as multistart
from blpjax.exceptions import ConvergenceWarning, IdentificationWarning
from tests.support import joint
from tests.support.economies import loop_shares
from tests.tolerances import ESTIMATES, FIXED_PARAMETERS

# What cannot be inverted ends soon.
FEW = blpjax.Iteration("anderson", {"max_evaluations": 100})
POINTS = np.array([[0.6], [1e200], [0.0], [3.0]])


@pytest.fixture(scope="module")
def problem() -> Any:
    """Demand with symmetric nodes: at a standard deviation of zero, which is no minimum, the gradient vanishes."""
    rule, rng = blpjax.Integration("product", 3), np.random.default_rng(0)
    built, markets = blpjax.build_integration(rule, 1), []
    for t in range(20):
        J = (5, 3, 5, 4)[t % 4]
        x, cost, more = rng.uniform(size=(3, J))
        xi = rng.normal(0, 0.2, J)
        prices = 1 + cost + 0.5 * xi
        tastes, delta = 2.0 * built.nodes.T, 1 - 2 * prices + 2 * x + xi
        shares = loop_shares(delta, x[:, None], tastes, built.weights[:, 0], np.ones((J, 1)))
        columns = {"market_ids": t, "shares": shares, "prices": prices, "x": x, "demand_instruments0": cost}
        others = {"demand_instruments1": x.sum() - x, "demand_instruments2": (x - x.mean()) ** 2}
        markets.append(pd.DataFrame(columns | others | {"demand_instruments3": more}))
    formulations = blpjax.Formulation("1 + prices + x"), blpjax.Formulation("0 + x")
    with joint.quiet():
        return blpjax.Problem(formulations, pd.concat(markets, ignore_index=True), integration=rule)


def solve(problem: Any, **options: Any) -> Any:
    with joint.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)
        return problem.solve(**({"sigma": [[0.6]], "iteration": FEW} | options))


@pytest.fixture(scope="module")
def results(problem: Any) -> Any:
    return solve(problem, starts=POINTS)


def test_starts_lead_where_solve_does(problem: Any, results: Any) -> None:
    table = results.starts
    for s in (0, 3):
        single = solve(problem, sigma=[POINTS[s]], method="1s")
        ESTIMATES.check(table["estimate: sigma x x x"][s], single.theta[0])
        FIXED_PARAMETERS.check(table["objective"][s], single.objective)
        assert table["smallest_eigenvalue"][s] > 0
        ESTIMATES.check(table["smallest_eigenvalue"][s], single.reduced_hessian_eigenvalues[0])
    assert (table["start: sigma x x x"] == POINTS[:, 0]).all() and list(table["start"]) == [0, 1, 2, 3]


@pytest.mark.slow
def test_l_bfgs_runs_in_lanes_too(problem: Any, results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multistart, "run_in_turn", None)
    chosen = blpjax.Optimization("optax-l-bfgs", {"gtol": 1e-8})
    table = solve(problem, starts=POINTS[[0, 3]], method="1s", optimization=chosen).starts
    assert table["converged"].all() and (table["gradient_norm"] <= 1e-8).all()
    ESTIMATES.check(np.abs(table["estimate: sigma x x x"]), results.starts["estimate: sigma x x x"][[0, 3]])


def test_failed_starts_are_seen_for_what_they_are(results: Any) -> None:
    table = results.starts
    assert list(table["converged"]) == [True, False, True, True] == list(table["minimum"])
    assert list(table["optimum"]) == [0, -1, 0, 0]
    assert table["chosen"].sum() == 1 and not table["chosen"][1]
    assert "infinite or missing values" in table["status"][1] and np.isnan(table["smallest_eigenvalue"][1])
    described = "Starts: 3 of 4 starts reached the chosen optimum; 1 distinct local optimum; objectives from"
    assert described in str(results) and repr(results).endswith("1 did not converge.")


def test_stationary_points_that_are_no_minima_are_not_chosen(problem: Any, results: Any) -> None:
    best = results.starts["estimate: sigma x x x"][0]
    again = solve(problem, starts=[[0.0], [best]], method="1s", optimization=blpjax.Optimization("l-bfgs-b"))
    table = again.starts
    assert list(table["chosen"]) == [False, True] == list(table["minimum"])
    assert table["smallest_eigenvalue"][0] < 0 < table["smallest_eigenvalue"][1]
    assert table["converged"].all() and "1 ended where second-order conditions fail" in str(again)


def test_results_are_those_of_solve_from_the_best_start(problem: Any, results: Any) -> None:
    table = results.starts
    best = table.loc[table["chosen"], "estimate: sigma x x x"].to_numpy()
    plain = solve(problem, sigma=[best])
    np.testing.assert_array_equal(results.theta, plain.theta)
    np.testing.assert_array_equal(results.parameters, plain.parameters)
    assert results.objective_evaluations == plain.objective_evaluations and plain.starts is None
    assert results.last_results.starts is table and results.converged


def test_starts_survive_files(results: Any, tmp_path: Path) -> None:
    results.save(tmp_path / "results.blpjax")
    pd.testing.assert_frame_equal(blpjax.load(tmp_path / "results.blpjax").starts, results.starts)
    results.to_pickle(tmp_path / "results.pickle")
    pd.testing.assert_frame_equal(blpjax.read_pickle(tmp_path / "results.pickle").starts, results.starts)


@pytest.mark.slow
def test_mappings_are_arrays_by_name(problem: Any, results: Any) -> None:
    again = solve(problem, starts=[{"sigma": [[0.6]]}, {}], method="1s", scale_objective=False)
    expected = results.starts
    ESTIMATES.check(again.starts["estimate: sigma x x x"], expected["estimate: sigma x x x"][[0, 0]])
    FIXED_PARAMETERS.check(again.starts["objective"], expected["objective"][[0, 0]] / problem.N)
    ESTIMATES.check(again.starts["smallest_eigenvalue"], expected["smallest_eigenvalue"][[0, 0]] / problem.N)


def test_options_of_the_default_optimiser_are_honoured(problem: Any) -> None:
    """Lanes have none."""
    impatient = blpjax.Optimization("trust-region", {"max_evaluations": 1})
    with (
        pytest.warns(ConvergenceWarning, match="GMM step 1 did not converge"),
        pytest.warns(ConvergenceWarning, match="None of the 2 starts ended at a local minimum"),
    ):
        again = solve(problem, starts=[[0.6], [3.0]], method="1s", optimization=impatient)
    assert list(again.starts["evaluations"]) == [1, 1] and not again.starts["converged"].any()


def test_other_routines_try_starts_in_turn(problem: Any, results: Any) -> None:
    again = solve(
        problem,
        starts=[[0.6], [1.0]],
        method="1s",
        optimization=blpjax.Optimization("l-bfgs-b", {"ftol": 0, "gtol": 1e-7}),
        error_behavior=None,
    )
    assert list(again.starts["optimum"]) == [0, 0] and again.converged
    np.testing.assert_allclose(again.starts["estimate: sigma x x x"], results.starts["estimate: sigma x x x"][0], 1e-4)


def test_without_a_minimum_the_given_values_are_used(problem: Any) -> None:
    with pytest.warns(ConvergenceWarning, match="None of the 4 starts ended at a local minimum"):
        results = solve(problem, starts=[[1e200]] * 4, method="1s")
    assert results.converged and not results.starts["chosen"].any()
    assert "0 distinct local optima; 4 did not converge" in str(results)


def test_points_fill_a_box(problem: Any) -> None:
    def points(starts: Any, **options: Any) -> np.ndarray:
        parameters = problem.read_parameters([[0.6]], None, None, [None, -2.0, None], None, options)
        return blpjax.estimation.starts.read_starts(starts, parameters, parameters.bounds)

    found = points(blpjax.Starts(40, seed=3))
    assert (found[0] == [0.6, -2.0]).all() and found.shape == (40, 2)
    assert found[:, 0].min() >= 0 and 1.7 < found[:, 0].max() <= 1.8
    assert -6 <= found[:, 1].min() < -5.5 and 1.5 < found[:, 1].max() <= 2
    np.testing.assert_array_equal(points(blpjax.Starts(40, seed=3)), found)
    assert (points(40)[1:] != found[1:]).all()
    boxed = points(blpjax.Starts(40, lower={"sigma": [[0.5]]}, upper=[np.nan, -1.0]))[1:]
    assert boxed[:, 0].min() >= 0.5 and boxed[:, 1].max() <= -1 and boxed[:, 1].min() < -5.5
    bounded = points(9, sigma=([[0.4]], [[0.7]]))[1:]
    assert bounded[:, 0].min() >= 0.4 and bounded[:, 0].max() <= 0.7


@pytest.mark.parametrize(
    ("starts", "kind", "message"),
    [
        (0, ValueError, "number of Starts must be at least one"),
        ([[1.0, 2.0]], ValueError, r"must have the shape \(number of starts, 1\), not \(1, 2\)"),
        ([[1.0], [-1.0]], ValueError, r"starts\[1\] has -1 for 'x x x', which is not a number within its bounds"),
        ([{"sigma": [[1.0, 0.0]]}], ValueError, r"starts\[0\]\['sigma'\] must have the shape \(1, 1\), not \(1, 2\)"),
        ([{"alpha": 1.0}], ValueError, r"starts\[0\] has alpha, but there are only sigma, pi"),
        ("many", TypeError, "starts must be a number, Starts, a list of mappings"),
        (blpjax.Starts(3, lower=2.0, upper=1.0), ValueError, r"box of Starts must be finite, but it is \[2, 1\]"),
        (blpjax.Starts(3, upper=[1.0, 1.0]), ValueError, r"upper of Starts must be a number, have the shape \(1,\)"),
    ],
)
def test_wrong_starts_are_refused(problem: Any, starts: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        solve(problem, starts=starts)


def test_fixed_elements_stay_fixed(problem: Any) -> None:
    with pytest.raises(ValueError, match=r"starts\[0\]\['beta'\]\[2\] is 3, but this element is fixed at 0"):
        solve(problem, beta=[None, None, 0], starts=[{"beta": [None, None, 3.0]}])
    with pytest.raises(ValueError, match="starts need free parameters"):
        solve(problem, sigma=[[0.0]], starts=3)
    with pytest.raises(ValueError, match="Optimization\\('return'\\) does not optimize"):
        solve(problem, starts=3, optimization=blpjax.Optimization("return"))
    with pytest.raises(TypeError, match="number of Starts must be an integer, not True"):
        blpjax.Starts(True)


@pytest.mark.slow
def test_starts_with_supply_and_fixed_effects() -> None:
    """A lane with absorbed fixed effects, a bounded parameter and a given weighting matrix ends as `solve` does."""
    model = joint.Model("0 + prices + x + y", X3="0 + w + x", absorb_demand="C(firm_ids)", absorb_supply="C(firm_ids)")
    problem = model.build(blpjax, *joint.tables())
    W = np.diag(np.linspace(1.0, 2.0, problem.MD + problem.MS))
    known = {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [-2.0, None, None], "W": W, "method": "1s"}
    known |= {"beta_bounds": ([-2.2, None, None], [-1.8, None, None])}
    with joint.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)
        many = problem.solve(**known, starts=3)
        single = problem.solve(**known)
    table = many.starts
    FIXED_PARAMETERS.check(table["objective"][0], single.objective)
    columns = [name for name in table if name.startswith("estimate")]
    ESTIMATES.check(table.loc[0, columns].to_numpy(float), single.theta)
    assert single.objective >= many.objective * (1 - 1e-9) and table["chosen"].sum() == 1
