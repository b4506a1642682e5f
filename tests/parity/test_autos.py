"""The automobile data of Berry, Levinsohn and Pakes (1995): stored results of PyBLP, and its published tutorial."""

from typing import Any

import numpy as np
import pytest

import blpjax
from tests.support import autos
from tests.support.autos import EVERY, EVERY_MATRIX, PI, SIGMA, check_thinned
from tests.support.designs import mostly_slow
from tests.support.nevo import array, reference
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, ESTIMATES, FIXED_PARAMETERS, check_printed

pytestmark = pytest.mark.usefixtures("quiet")

ESTIMATED = ("objective", "sigma", "pi", "beta", "gamma", "sigma_se", "pi_se", "beta_se", "gamma_se")
EVALUATED = (*ESTIMATED, "gradient", "parameter_covariances", "moments", "moments_jacobian", "W", "updated_W")
BY_PRODUCT = ("delta", "xi", "omega", "tilde_costs", "xi_by_theta_jacobian", "omega_by_theta_jacobian")


@pytest.fixture(scope="module")
def problem(quiet: None) -> blpjax.Problem:
    return autos.problem()


@pytest.fixture(scope="module")
def start(problem: blpjax.Problem) -> blpjax.ProblemResults:
    return autos.evaluate(problem)


# --- one evaluation at the starting values --------------------------------------------------------------------------


def test_dimensions_as_printed(problem: blpjax.Problem) -> None:
    printed = {"T": 20, "N": 2217, "F": 26, "I": 4000, "K1": 5, "K2": 6, "K3": 6, "D": 1, "MD": 13, "MS": 18}
    assert {name: getattr(problem, name) for name in printed} == printed


@pytest.mark.parametrize("name", EVALUATED)
def test_evaluation_is_that_of_pyblp(start: blpjax.ProblemResults, name: str) -> None:
    FIXED_PARAMETERS.check(getattr(start, name), array(reference("autos_fixed")["base"][name]), name)


@pytest.mark.parametrize("name", BY_PRODUCT)
def test_structural_errors_are_those_of_pyblp(start: blpjax.ProblemResults, name: str) -> None:
    stored = reference("autos_fixed")["base"][name]
    check_thinned(DELTA if name == "delta" else FIXED_PARAMETERS, getattr(start, name), stored, EVERY, name)


def test_no_costs_are_clipped(start: blpjax.ProblemResults) -> None:
    assert reference("autos_fixed")["base"]["clipped_costs"] == []
    assert not start.clipped_costs.any() and not start.clipped_shares.any()


@pytest.mark.parametrize(
    ("variant", "costs_type", "bounds"),
    [("clipped", "log", (3.0, 12.0)), pytest.param("linear", "linear", None, marks=pytest.mark.slow)],
)
def test_other_costs_are_those_of_pyblp(variant: str, costs_type: str, bounds: Any) -> None:
    results = autos.evaluate(autos.problem(costs_type), costs_bounds=bounds)
    stored = reference("autos_fixed")["variants"][variant]
    np.testing.assert_array_equal(np.flatnonzero(results.clipped_costs), stored["clipped_costs"])
    for name in (*ESTIMATED, "gradient", "parameter_covariances", "moments"):
        FIXED_PARAMETERS.check(getattr(results, name), array(stored[name]), name)
    for name in ("omega", "omega_by_theta_jacobian"):
        check_thinned(FIXED_PARAMETERS, getattr(results, name), stored[name], EVERY, name)


# --- two steps ------------------------------------------------------------------------------------------------------

DOCUMENTED = {
    "objective": "497.33566",
    "sigma": ("2.02535", "6.10035", "3.95553", "0.25351", "1.90847"),
    "pi": ("-44.84296",),
    "beta": ("-7.3E+00", "+3.5E+00", "-1.0E+00", "+4.2E-01", "+4.2E+00"),
    "gamma": ("2.76027", "0.89697", "0.42281", "-0.52488", "-0.26068", "0.02660"),
}
PRINTED_ERRORS = {
    "sigma_se": ("+6.1E+00", "+2.2E+00", "+2.1E+00", "+5.5E-01", "+1.1E+00"),
    "pi_se": ("+9.2E+00",),
    "beta_se": ("+2.8E+00", "+1.4E+00", "+2.1E+00", "+2.5E-01", "+6.6E-01"),
    "gamma_se": ("+1.2E-01", "+7.2E-02", "+8.7E-02", "+7.3E-02", "+2.1E-01", "+3.1E-03"),
}


@pytest.fixture(scope="module")
def two_steps(problem: blpjax.Problem) -> blpjax.ProblemResults:
    return problem.solve(SIGMA, PI, initial_update=True, **autos.OPTIONS)


def estimated(values: np.ndarray) -> np.ndarray:
    """Elements that are not fixed at zero."""
    return values[np.isfinite(values) & (values != 0)]


@pytest.mark.slow
def test_two_steps_end_as_documented(two_steps: blpjax.ProblemResults) -> None:
    assert two_steps.cumulative_converged and two_steps.projected_gradient_norm < 1e-5
    assert two_steps.at_bound == []
    check_printed(two_steps.objective, DOCUMENTED["objective"])
    for name in ("sigma", "pi", "beta", "gamma"):
        for value, printed in zip(estimated(getattr(two_steps, name)), DOCUMENTED[name], strict=True):
            check_printed(value, printed)
    for name, errors in PRINTED_ERRORS.items():
        for value, printed in zip(estimated(getattr(two_steps, name)), errors, strict=True):
            check_printed(value, printed)
    check_printed(two_steps.reduced_hessian_eigenvalues[0], "+4.9E-01")
    check_printed(two_steps.reduced_hessian_eigenvalues[-1], "+5.1E+02")
    check_printed(np.linalg.cond(two_steps.W), "+4.2E+09")
    check_printed(np.linalg.cond(two_steps.parameter_covariances), "+3.8E+08")


@pytest.mark.slow
def test_two_steps_end_where_those_of_pyblp_end(two_steps: blpjax.ProblemResults) -> None:
    stored = reference("autos_two_steps")
    for name in ("objective", "sigma", "pi", "beta", "gamma"):
        ESTIMATES.check(getattr(two_steps.last_results, name), array(stored["first_step"][name]), f"first {name}")
    for name in (*ESTIMATED, "W", "updated_W", "moments", "moments_jacobian", "parameter_covariances"):
        ESTIMATES.check(getattr(two_steps, name), array(stored[name]), name)
    for name in ("delta", "xi", "omega", "tilde_costs"):
        check_thinned(ESTIMATES, getattr(two_steps, name), stored[name], EVERY, name)
    ESTIMATES.check(two_steps.run_hansen_test(), stored["hansen"])


@pytest.mark.slow
def test_hessian_is_exact(two_steps: blpjax.ProblemResults) -> None:
    stored = reference("autos_two_steps")
    scale = np.sqrt(np.abs(np.diag(stored["hessian_central"])))
    unit = np.outer(scale, scale)
    CENTRAL_DIFFERENCE.check(two_steps.hessian / unit, array(stored["hessian_central"]) / unit)


# --- after estimation -----------------------------------------------------------------------------------------------

MERGED = {16: 19}

MATRICES = {
    "elasticities": lambda results: results.compute_elasticities(),
    "elasticities_delta": lambda results: results.compute_elasticities(None),
    "elasticities_hpwt": lambda results: results.compute_elasticities("hpwt"),
    "demand_jacobians": lambda results: results.compute_demand_jacobians(),
    "diversion_ratios": lambda results: results.compute_diversion_ratios(),
    "long_run_diversion_ratios": lambda results: results.compute_long_run_diversion_ratios(),
    "passthrough": lambda results: results.compute_passthrough(),
    "probabilities": lambda results: results.compute_probabilities(),
}
BY_PRODUCT_AFTERWARDS = {
    "own_elasticities": lambda results: results.extract_diagonals(results.compute_elasticities()),
    "costs": lambda results: results.compute_costs(),
    "markups": lambda results: results.compute_markups(),
    "profits": lambda results: results.compute_profits(),
    "shares": lambda results: results.compute_shares(),
    "delta": lambda results: results.compute_delta(),
}
BY_MARKET = {
    "own_elasticity_means": lambda results: results.extract_diagonal_means(results.compute_elasticities()),
    "aggregate_elasticities": lambda results: results.compute_aggregate_elasticities(factor=0.1),
    "aggregate_elasticities_delta": lambda results: results.compute_aggregate_elasticities(factor=0.1, name=None),
    "hhi": lambda results: results.compute_hhi(),
    "surpluses": lambda results: results.compute_consumer_surpluses(),
}


@pytest.mark.parametrize("name", mostly_slow([*MATRICES], ["elasticities"]))
def test_matrices_are_those_of_pyblp(start: blpjax.ProblemResults, name: str) -> None:
    stored = reference("autos_post")["matrices"][name]
    check_thinned(FIXED_PARAMETERS, MATRICES[name](start), stored, EVERY_MATRIX, name)


@pytest.mark.parametrize(
    "name", mostly_slow([*BY_PRODUCT_AFTERWARDS], set(BY_PRODUCT_AFTERWARDS) - {"delta", "shares"})
)
def test_outcomes_of_products_are_those_of_pyblp(start: blpjax.ProblemResults, name: str) -> None:
    stored = reference("autos_post")["by_product"][name]
    check_thinned(FIXED_PARAMETERS, BY_PRODUCT_AFTERWARDS[name](start), stored, EVERY, name)


@pytest.mark.parametrize("name", mostly_slow([*BY_MARKET], ["own_elasticity_means", "hhi"]))
def test_outcomes_of_markets_are_those_of_pyblp(start: blpjax.ProblemResults, name: str) -> None:
    FIXED_PARAMETERS.check(BY_MARKET[name](start), array(reference("autos_post")["by_market"][name]), name)


def test_surpluses_of_consumers_are_those_of_pyblp(start: blpjax.ProblemResults) -> None:
    stored = reference("autos_post")
    surpluses = start.compute_consumer_surpluses(keep_all=True, market_id=stored["market"])
    kept = array(stored["surpluses_of_all"])
    FIXED_PARAMETERS.check(surpluses[0, : kept.size], kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demand_hessians", "profit_hessians"])
def test_second_derivatives_are_those_of_pyblp(start: blpjax.ProblemResults, name: str) -> None:
    stored = reference("autos_post")
    hessians = getattr(start, f"compute_{name}")(market_id=stored["market"])
    block = array(stored[name]["block"])
    size = len(block)
    FIXED_PARAMETERS.check(hessians[:size, :size, :size], block)
    FIXED_PARAMETERS.check(np.sqrt((hessians**2).sum()), stored[name]["norm"])


@pytest.mark.slow
def test_a_merger_is_that_of_pyblp(start: blpjax.ProblemResults) -> None:
    firm_ids = autos.tables()[0]["firm_ids"].replace(MERGED)
    costs = start.compute_costs()
    prices = start.compute_prices(firm_ids, costs=costs)
    shares = start.compute_shares(prices)
    by_product = {
        "approximate_prices": start.compute_approximate_prices(firm_ids, costs=costs),
        "prices_after": prices,
        "shares_after": shares,
        "markups_after": start.compute_markups(prices, costs),
        "profits_after": start.compute_profits(prices, shares, costs),
    }
    by_market = {
        "hhi_after": start.compute_hhi(firm_ids, shares),
        "surpluses_after": start.compute_consumer_surpluses(prices),
    }
    stored = reference("autos_post")
    for name, values in by_product.items():
        check_thinned(FIXED_PARAMETERS, values, stored["by_product"][name], EVERY, name)
    for name, values in by_market.items():
        FIXED_PARAMETERS.check(values, array(stored["by_market"][name]), name)
