"""Published numbers: Nevo's cereals with demographics, PyBLP's tutorials 4.1.2 and 4.2, the BLPestimatoR vignette."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

import blpjax
from blpjax.exceptions import IdentificationWarning
from tests.support.nevo import (
    DEMOGRAPHICS,
    PI,
    SIGMA,
    UNBOUNDED,
    array,
    first_rows,
    formulations,
    problem,
    reference,
    tables,
    tutorial,
)
from tests.tolerances import (
    CENTRAL_DIFFERENCE,
    DELTA,
    ESTIMATES,
    FIXED_PARAMETERS,
    LINEAR_ALGEBRA,
    LOOSE_INNER_LOOP,
    ROUNDING,
    Tolerance,
    check_printed,
)

pytestmark = pytest.mark.usefixtures("quiet")

ESTIMATED = ("theta", "sigma", "sigma_squared", "pi", "beta", "sigma_se", "sigma_squared_se", "pi_se", "beta_se")
EVALUATED = (
    "parameter_covariances",
    "parameter_sensitivity",
    "moments",
    "moments_jacobian",
    "moments_covariances",
    "updated_W",
)
BY_PRODUCT = ("delta", "xi", "xi_fe", "xi_by_theta_jacobian")

# The vignette's gradient: errors of 3e-5 in delta times second derivatives of the size of the largest element.
LOOSE_GRADIENT = Tolerance(1e-5, 1e-4)

# The printed routine stops at a gradient of 1e-4 in a direction whose curvature is 0.016: (1e-4)^2 / 0.016 = 6e-7 left
# of 159.
FLAT = Tolerance(1e-8)


@pytest.fixture(scope="module")
def nevo(quiet: None) -> blpjax.Problem:
    return problem()


@pytest.fixture(scope="module")
def unbounded(nevo: blpjax.Problem) -> blpjax.ProblemResults:
    return nevo.solve(SIGMA, PI, method="1s", **UNBOUNDED)


@pytest.fixture(scope="module")
def bounded(nevo: blpjax.Problem) -> blpjax.ProblemResults:
    return nevo.solve(SIGMA, PI, method="1s")


@pytest.fixture(scope="module")
def start(nevo: blpjax.Problem) -> blpjax.ProblemResults:
    return nevo.solve(SIGMA, PI, method="1s", optimization=blpjax.Optimization("return"))


@pytest.fixture(scope="module")
def monte_carlo(quiet: None) -> blpjax.Problem:
    return tutorial(blpjax.Integration("monte_carlo", size=50, specification_options={"seed": 0}))


def check_hessian(actual: np.ndarray, differences: np.ndarray) -> None:
    """Compare Hessians scaled to a unit diagonal: their elements differ by nine orders of magnitude."""
    scale = np.sqrt(np.abs(np.diag(differences)))
    CENTRAL_DIFFERENCE.check(actual / np.outer(scale, scale), differences / np.outer(scale, scale), "hessian")


def check_printed_results(results: blpjax.ProblemResults, printed: Mapping[str, tuple[str, str]]) -> None:
    """Estimates and standard errors, by the labels of parameters, as they were printed."""
    found = dict(zip(results.parameter_labels, range(len(results.parameters)), strict=True))
    errors = np.sqrt(np.diag(results.parameter_covariances) / results.problem.N)
    for label, (estimate, error) in printed.items():
        check_printed(results.parameters[found[label], 0], estimate)
        check_printed(errors[found[label]], error)


# --- Nevo with demographics, unbounded ------------------------------------------------------------------------------


def test_unbounded_optimum_is_found_in_few_evaluations(unbounded: blpjax.ProblemResults) -> None:
    check_printed(unbounded.objective, "4.5615141648")
    assert unbounded.converged
    assert unbounded.projected_gradient_norm < 1e-6
    assert unbounded.objective_evaluations <= 20
    assert unbounded.at_bound == []
    assert unbounded.fp_converged.all()
    assert unbounded.fp_converged.shape == (94, unbounded.objective_evaluations)


@pytest.mark.parametrize("name", [*ESTIMATED, *EVALUATED])
def test_unbounded_optimum_is_that_of_pyblp(unbounded: blpjax.ProblemResults, name: str) -> None:
    ESTIMATES.check(getattr(unbounded, name), array(reference("nevo_unbounded")[name]), name)


@pytest.mark.parametrize("name", BY_PRODUCT)
def test_structural_errors_at_unbounded_optimum_are_those_of_pyblp(unbounded: blpjax.ProblemResults, name: str) -> None:
    ESTIMATES.check(first_rows(unbounded, name), array(reference("nevo_unbounded")[name]), name)


def test_parameters_are_labelled_and_ordered_as_in_pyblp(unbounded: blpjax.ProblemResults) -> None:
    assert list(unbounded.theta_labels) == reference("nevo_unbounded")["theta_labels"]
    assert list(unbounded.parameter_labels) == [*reference("nevo_unbounded")["theta_labels"], "prices"]
    np.testing.assert_array_equal(unbounded.parameters[:, 0], [*unbounded.theta, unbounded.beta[0, 0]])


def test_default_weights_are_those_of_two_stage_least_squares(unbounded: blpjax.ProblemResults) -> None:
    LINEAR_ALGEBRA.check(unbounded.W, array(reference("nevo_unbounded")["W"]))


def test_hessian_is_exact_at_unbounded_optimum(unbounded: blpjax.ProblemResults) -> None:
    stored = reference("nevo_unbounded")
    check_hessian(unbounded.hessian, array(stored["hessian_central"]))
    np.testing.assert_array_equal(unbounded.reduced_hessian, unbounded.hessian)
    # The smallest is nine orders of magnitude below the largest.
    np.testing.assert_allclose(unbounded.reduced_hessian_eigenvalues, stored["hessian_central_eigenvalues"], rtol=1e-4)


@pytest.mark.parametrize(("label", "name"), [("prices", "prices"), ("sugar", "sugar"), ("delta", None)])
def test_elasticities_and_diversion_ratios_are_those_of_pyblp(
    unbounded: blpjax.ProblemResults, label: str, name: str | None
) -> None:
    stored = reference("nevo_unbounded")
    market = stored["market"]
    elasticities = unbounded.compute_elasticities(name, market_id=market)
    ratios = unbounded.compute_diversion_ratios(name, market_id=market)
    ESTIMATES.check(elasticities, array(stored[f"elasticities_{label}"]), "elasticities")
    ESTIMATES.check(ratios, array(stored[f"diversion_ratios_{label}"]), "diversion ratios")


def test_own_elasticities_and_probabilities_are_those_of_pyblp(unbounded: blpjax.ProblemResults) -> None:
    stored, elasticities = reference("nevo_unbounded"), unbounded.compute_elasticities()
    ESTIMATES.check(unbounded.extract_diagonal_means(elasticities), array(stored["own_elasticity_means"]))
    own = array(stored["own_elasticities"])
    ESTIMATES.check(unbounded.extract_diagonals(elasticities)[: len(own)], own)
    ESTIMATES.check(unbounded.compute_probabilities(market_id=stored["market"]), array(stored["probabilities"]))


def test_test_statistics_are_those_of_pyblp(unbounded: blpjax.ProblemResults) -> None:
    stored, restrictions = reference("nevo_unbounded"), np.eye(4, len(unbounded.parameters))
    ESTIMATES.check(unbounded.run_hansen_test(), stored["hansen"])
    ESTIMATES.check(unbounded.run_wald_test(unbounded.parameters[:1], restrictions[:1]), stored["wald_one"])
    ESTIMATES.check(unbounded.run_wald_test(unbounded.parameters[:4], restrictions), stored["wald_four"])
    assert 0 <= unbounded.run_lm_test() < 1e-10  # a quadratic form of the gradient


def test_tutorial_with_demographics_as_printed(unbounded: blpjax.ProblemResults) -> None:
    check_printed(unbounded.objective, "+4.6E+00")
    check_printed(unbounded.reduced_hessian_eigenvalues[-1], "+1.6E+04")
    check_printed(np.linalg.cond(unbounded.W), "+6.9E+07")
    check_printed(np.linalg.cond(unbounded.parameter_covariances), "+8.4E+08")
    check_printed_results(
        unbounded,
        {
            "1 x 1": ("+5.6E-01", "+1.6E-01"),
            "prices x prices": ("+3.3E+00", "+1.3E+00"),
            "sugar x sugar": ("-5.8E-03", "+1.4E-02"),
            "mushy x mushy": ("+9.3E-02", "+1.9E-01"),
            "1 x income": ("+2.3E+00", "+1.2E+00"),
            "1 x age": ("+1.3E+00", "+6.3E-01"),
            "prices x income": ("+5.9E+02", "+2.7E+02"),
            "prices x income_squared": ("-3.0E+01", "+1.4E+01"),
            "prices x child": ("+1.1E+01", "+4.1E+00"),
            "mushy x income": ("+7.5E-01", "+8.0E-01"),
            "mushy x age": ("-1.4E+00", "+6.7E-01"),
            "prices": ("-6.3E+01", "+1.5E+01"),
        },
    )


@pytest.mark.slow
def test_restricting_a_parameter_as_printed(nevo: blpjax.Problem) -> None:
    restricted = PI.copy()
    restricted[1, 1] = 0
    fixed = nevo.solve(SIGMA, restricted, method="1s", **UNBOUNDED)
    dropped = problem(DEMOGRAPHICS.replace("income_squared + ", ""))
    deleted = dropped.solve(
        SIGMA, np.delete(restricted, 1, axis=1), method="1s", check_optimality="gradient", **UNBOUNDED
    )
    for results in (fixed, deleted):
        assert results.converged
        check_printed(results.objective, "+1.5E+01")
        check_printed(np.linalg.cond(results.parameter_covariances), "+5.7E+05")
        check_printed_results(
            results,
            {
                "1 x 1": ("+3.7E-01", "+1.2E-01"),
                "prices x prices": ("+1.8E+00", "+9.2E-01"),
                "sugar x sugar": ("-4.4E-03", "+1.2E-02"),
                "mushy x mushy": ("+8.6E-02", "+1.9E-01"),
                "1 x income": ("+3.1E+00", "+1.1E+00"),
                "1 x age": ("+1.2E+00", "+1.0E+00"),
                "prices x income": ("+4.2E+00", "+4.6E+00"),
                "prices x child": ("+1.2E+01", "+5.2E+00"),
                "sugar x income": ("-1.9E-01", "+3.5E-02"),
                "sugar x age": ("+2.8E-02", "+3.2E-02"),
                "mushy x income": ("+1.5E+00", "+6.5E-01"),
                "mushy x age": ("-1.5E+00", "+1.1E+00"),
                "prices": ("-3.2E+01", "+2.3E+00"),
            },
        )
    check_printed(fixed.reduced_hessian_eigenvalues[0], "+4.7E-02")
    check_printed(fixed.reduced_hessian_eigenvalues[-1], "+1.7E+04")
    assert np.isnan(fixed.pi_se[1, 1])
    assert np.isnan(deleted.hessian).all() and np.isnan(deleted.reduced_hessian_eigenvalues).all()
    ESTIMATES.check(deleted.theta, fixed.theta)
    ESTIMATES.check(deleted.parameter_covariances, fixed.parameter_covariances)


# --- Nevo with demographics, default bounds -------------------------------------------------------------------------


def test_bounded_optimum_has_sigma_on_sugar_at_its_bound(bounded: blpjax.ProblemResults) -> None:
    check_printed(bounded.objective, "4.721350")
    assert bounded.converged
    assert bounded.sigma[2, 2] == 0
    assert bounded.at_bound == ["sugar x sugar"]
    assert "At bound: 'sugar x sugar' of sigma." in str(bounded)
    assert "Reduced Hessian" in str(bounded)


@pytest.mark.parametrize("name", [*ESTIMATED, *EVALUATED])
def test_bounded_optimum_is_that_of_pyblp(bounded: blpjax.ProblemResults, name: str) -> None:
    ESTIMATES.check(getattr(bounded, name), array(reference("nevo_bounded")[name]), name)


def test_gradient_is_projected_on_bounds(bounded: blpjax.ProblemResults) -> None:
    gradient = bounded.gradient[:, 0]
    ESTIMATES.check(gradient[2], array(reference("nevo_bounded")["gradient"])[2, 0])
    assert gradient[2] > 1  # the bound binds
    assert bounded.projected_gradient[2, 0] == 0
    np.testing.assert_array_equal(np.delete(bounded.projected_gradient[:, 0], 2), np.delete(gradient, 2))
    assert bounded.projected_gradient_norm < 1e-6


def test_hessian_is_reduced_to_parameters_inside_their_bounds(bounded: blpjax.ProblemResults) -> None:
    check_hessian(bounded.hessian, array(reference("nevo_bounded")["hessian_central"]))
    assert not bounded.reduced_hessian[2].any() and not bounded.reduced_hessian[:, 2].any()
    inside = np.delete(np.arange(13), 2)
    block = np.ix_(inside, inside)
    np.testing.assert_array_equal(bounded.reduced_hessian[block], bounded.hessian[block])
    eigenvalues = np.sort(np.append(np.linalg.eigvalsh(bounded.hessian[block]), 0.0))
    np.testing.assert_allclose(bounded.reduced_hessian_eigenvalues, eigenvalues, atol=1e-10)
    assert eigenvalues[1] > 1e-5


# --- Nevo with demographics at the published starting values --------------------------------------------------------


@pytest.mark.parametrize("name", ["objective", "gradient", *ESTIMATED, *EVALUATED])
def test_evaluation_at_starting_values_is_that_of_pyblp(start: blpjax.ProblemResults, name: str) -> None:
    FIXED_PARAMETERS.check(getattr(start, name), array(reference("nevo_fixed")["base"][name]), name)


@pytest.mark.parametrize("name", BY_PRODUCT)
def test_structural_errors_at_starting_values_are_those_of_pyblp(start: blpjax.ProblemResults, name: str) -> None:
    FIXED_PARAMETERS.check(first_rows(start, name), array(reference("nevo_fixed")["base"][name]), name)


def test_delta_at_starting_values_is_that_of_pyblp(start: blpjax.ProblemResults) -> None:
    DELTA.check(first_rows(start, "delta"), array(reference("nevo_fixed")["base"]["delta"]))


def test_hessian_is_exact_at_starting_values(start: blpjax.ProblemResults) -> None:
    check_hessian(start.hessian, array(reference("nevo_fixed")["base"]["hessian_central"]))


@pytest.mark.parametrize("center", [True, False], ids=["centered", "uncentered"])
@pytest.mark.parametrize("kind", ["robust", "clustered", "unadjusted"])
def test_covariances_of_every_type_are_those_of_pyblp(kind: str, center: bool) -> None:
    results = problem(clustered=True).solve(
        SIGMA,
        PI,
        method="1s",
        optimization=blpjax.Optimization("return"),
        check_optimality="gradient",
        W_type=kind,
        se_type=kind,
        center_moments=center,
    )
    stored = reference("nevo_fixed")["variants"][f"{kind}_{'centered' if center else 'uncentered'}"]
    assert len(stored) == 7
    for name, expected in stored.items():
        FIXED_PARAMETERS.check(getattr(results, name), array(expected), name)


# --- the BLPestimatoR vignette --------------------------------------------------------------------------------------

# Printed there for the first six cereals of the first market.
VIGNETTE_DELTA = (-7.069801, -4.357675, -6.056909, -5.887501, -3.501289, -3.079323)
VIGNETTE_START = ("-3.944367", "-2.845205", "-3.958199", "-4.934153", "-2.425356", "-4.086816")
VIGNETTE_GRADIENT = {
    "1 x 1": 9.8468,
    "prices x prices": 0.3171,
    "sugar x sugar": 363.5319,
    "mushy x mushy": 16.3598,
    "1 x income": 10.6031,
    "prices x income": 0.7028,
    "sugar x income": 42.5236,
    "mushy x income": -3.4759,
    "prices x income_squared": 13.4982,
    "1 x age": -2.0231,
    "sugar x age": 10.9331,
    "mushy x age": 1.2851,
    "prices x child": -0.5714,
}


def test_vignette_mean_utilities_objective_and_gradient(start: blpjax.ProblemResults) -> None:
    LOOSE_INNER_LOOP.check(start.delta[:6, 0], VIGNETTE_DELTA)
    objective = start.objective.item()
    check_printed(objective, "29.35334")  # with a converged inner loop
    # There 29.35439: the squared sum of moments, each with an error of the inner loop's size.
    np.testing.assert_allclose(objective, 29.35439, rtol=1e-4)
    LOOSE_GRADIENT.check(start.gradient[:, 0], [VIGNETTE_GRADIENT[label] for label in start.theta_labels])


def test_vignette_starting_mean_utilities_are_the_fit_of_a_plain_logit() -> None:
    results = blpjax.Problem(formulations()[0], tables()[0]).solve(method="1s")
    for value, printed in zip((results.delta - results.xi)[:6, 0], VIGNETTE_START, strict=True):
        check_printed(value, printed)


@pytest.mark.slow
def test_vignette_jacobian_of_mean_utilities_is_built_from_share_derivatives(nevo: blpjax.Problem) -> None:
    functions = nevo.functions(SIGMA, PI)
    theta, delta = functions.theta, functions.delta(functions.theta)
    by_theta = np.asarray(jax.jacfwd(functions.shares, 0)(theta, delta))
    (by_delta,) = functions.share_derivatives(theta, delta)
    jacobian = np.asarray(functions.delta_jacobian(theta))
    assert jacobian.shape == (2256, 13)
    # Its market_2 is the second in the order of the data, and rows 25 to 48 of all markets.
    market_ids = tables()[0]["market_ids"].to_numpy()
    for market_id in (market_ids[0], market_ids[24]):
        rows = np.flatnonzero(market_ids == market_id)
        block = np.asarray(by_delta)[list(nevo.unique_market_ids).index(market_id)]
        LINEAR_ALGEBRA.check(jacobian[rows], -np.linalg.solve(block, by_theta[rows]), str(market_id))
    FIXED_PARAMETERS.check(functions.shares(theta, delta), tables()[0]["shares"])


def test_vignette_shares_average_the_choice_probabilities(nevo: blpjax.Problem) -> None:
    functions = nevo.functions(SIGMA, PI)
    delta = functions.start  # any mean utilities, as the vignette has it
    (probabilities,) = functions.probabilities(functions.theta, delta)
    first = np.asarray(functions.shares(functions.theta, delta))[:24]
    ROUNDING.check(np.asarray(probabilities)[0].mean(axis=1), first)


# --- tutorial 4.1.2: plain logit ------------------------------------------------------------------------------------


def test_plain_logit_as_printed() -> None:
    results = blpjax.Problem(blpjax.Formulation("prices", absorb="C(product_ids)"), tables()[0]).solve()
    check_printed(results.objective, "+1.9E+02")
    check_printed(np.linalg.cond(results.W), "+5.7E+07")
    check_printed_results(results, {"prices": ("-3.0E+01", "+1.0E+00")})
    assert results.cumulative_objective_evaluations == 2


@pytest.mark.parametrize(
    ("section", "arguments"),
    [
        ("one_step", {"method": "1s"}),
        ("two_step", {}),
        ("two_step_clustered", {"W_type": "clustered", "se_type": "clustered"}),
        ("two_step_unadjusted", {"W_type": "unadjusted", "se_type": "unadjusted"}),
    ],
)
def test_plain_logit_is_that_of_pyblp(section: str, arguments: dict[str, Any]) -> None:
    products = tables()[0]
    clustered = products.assign(clustering_ids=products["market_ids"])
    results = blpjax.Problem(formulations()[0], clustered).solve(**arguments)
    stored = dict(reference("logit")[section])
    FIXED_PARAMETERS.check(results.run_hansen_test(), stored.pop("hansen"), "Hansen's statistic")
    assert {"beta", "beta_se", "W", "updated_W", "moments_jacobian", "xi"} <= set(stored)
    for name, expected in stored.items():
        actual = first_rows(results, name) if name in BY_PRODUCT else getattr(results, name)
        FIXED_PARAMETERS.check(actual, array(expected), name)
    assert results.theta.shape == (0,) and results.converged


# --- tutorial 4.2.5: random coefficients without demographics -------------------------------------------------------

BFGS = blpjax.Optimization("bfgs", {"gtol": 1e-4})


@pytest.mark.slow
def test_diagonal_covariances_as_printed(monte_carlo: blpjax.Problem) -> None:
    results = monte_carlo.solve(sigma=np.eye(4), optimization=BFGS)
    check_printed(results.objective, "+1.8E+02")
    check_printed(results.reduced_hessian_eigenvalues[0], "+1.1E+00")
    check_printed(results.reduced_hessian_eigenvalues[-1], "+6.0E+03")
    check_printed(np.linalg.cond(results.W), "+5.8E+07")
    check_printed(np.linalg.cond(results.parameter_covariances), "+4.8E+04")
    check_printed_results(
        results,
        {
            "1 x 1": ("+5.2E-02", "+1.1E+00"),
            "prices x prices": ("-4.3E-01", "+8.0E+00"),
            "sugar x sugar": ("+3.6E-02", "+5.8E-02"),
            "mushy x mushy": ("+5.0E-01", "+1.7E+00"),
            "prices": ("-3.0E+01", "+1.4E+00"),
        },
    )
    check_same_optimum(results, reference("tutorial_diagonal"))


@pytest.mark.slow
def test_diagonal_covariances_by_default(monte_carlo: blpjax.Problem) -> None:
    results = monte_carlo.solve(sigma=np.eye(4), **UNBOUNDED)
    assert results.cumulative_converged and results.projected_gradient_norm < 1e-6
    check_same_optimum(results, reference("tutorial_diagonal_polished"))


@pytest.mark.slow
def test_unrestricted_covariances_as_printed(monte_carlo: blpjax.Problem) -> None:
    results = monte_carlo.solve(sigma=np.ones((4, 4)), optimization=BFGS)
    check_printed(results.objective, "+1.5E+02")
    check_printed(results.projected_gradient_norm, "+8.7E-05")
    check_printed(results.reduced_hessian_eigenvalues[0], "+8.5E-02")
    check_printed(results.reduced_hessian_eigenvalues[-1], "+6.5E+03")
    check_printed(np.linalg.cond(results.W), "+5.2E+07")
    check_printed(np.linalg.cond(results.parameter_covariances), "+8.3E+05")
    check_printed_results(
        results,
        {
            "1 x 1": ("+1.2E+00", "+3.0E+00"),
            "prices x 1": ("-1.1E+01", "+1.8E+01"),
            "prices x prices": ("+8.4E+00", "+1.2E+01"),
            "sugar x 1": ("+6.1E-02", "+2.5E-01"),
            "sugar x prices": ("-9.1E-02", "+2.3E-01"),
            "sugar x sugar": ("+3.8E-02", "+8.3E-02"),
            "mushy x 1": ("-5.9E-01", "+2.1E+00"),
            "mushy x prices": ("-6.2E-01", "+1.5E+00"),
            "mushy x sugar": ("-2.3E-02", "+2.5E+00"),
            "mushy x mushy": ("+4.8E-01", "+1.3E+00"),
            "prices": ("-3.1E+01", "+6.0E+00"),
        },
    )
    check_same_optimum(results, reference("tutorial_mc"))


@pytest.mark.slow
def test_unrestricted_covariances_with_default_bounds(monte_carlo: blpjax.Problem) -> None:
    """PyBLP's polished optimum without bounds has a positive diagonal."""
    results = monte_carlo.solve(sigma=np.ones((4, 4)))
    assert results.cumulative_converged and results.at_bound == []
    assert results.projected_gradient_norm < 1e-6
    check_same_optimum(results, reference("tutorial_mc_polished"))
    ESTIMATES.check(results.sigma_se, array(reference("tutorial_mc_polished")["sigma_se"]))


@pytest.mark.slow
def test_unrestricted_covariances_have_a_better_optimum_than_the_printed_one(monte_carlo: blpjax.Problem) -> None:
    """From the same start, without bounds: 160.350 in the first step instead of 167.708."""
    results = monte_carlo.solve(sigma=np.ones((4, 4)), method="1s", **UNBOUNDED)
    assert results.converged and results.projected_gradient_norm < 1e-6
    assert results.reduced_hessian_eigenvalues[0] > 0
    # PyBLP evaluates its own objective at these values to the same 160.350, with a gradient of 3e-9.
    check_printed(results.objective, "160.350274")
    assert results.objective < reference("tutorial_mc_polished")["first_step"]["objective"] - 7


@pytest.fixture(scope="module")
def product_rule(quiet: None) -> blpjax.Problem:
    return tutorial(blpjax.Integration("product", size=5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "arguments"),
    [(1.0, {"optimization": BFGS}), (1.0, UNBOUNDED), (1.5, {})],
    ids=["as printed", "without bounds", "with default bounds"],
)
def test_product_rule_as_printed(product_rule: blpjax.Problem, start: float, arguments: dict[str, Any]) -> None:
    """Covariances of rank one: at the optimum, moments have no derivatives in all but one column of sigma.

    With bounds, which are where columns of sigma change signs, some starts lead to saddle points of the first step.
    """
    with pytest.warns(IdentificationWarning, match="do not depend on"):
        results = product_rule.solve(sigma=start * np.ones((4, 4)), **arguments)
    stored = reference("tutorial_product")
    assert results.cumulative_converged
    check_printed(results.objective, "+1.6E+02")
    check_printed(results.beta[0, 0], "-3.1E+01")
    printed = (
        ("+5.5E-01", "-9.4E+00", "+8.3E-02", "-1.1E-01"),
        ("-9.4E+00", "+1.6E+02", "-1.4E+00", "+1.9E+00"),
        ("+8.3E-02", "-1.4E+00", "+1.2E-02", "-1.7E-02"),
        ("-1.1E-01", "+1.9E+00", "-1.7E-02", "+2.2E-02"),
    )
    for element, digits in zip(results.sigma_squared.ravel(), np.ravel(printed), strict=True):
        check_printed(element, digits)
    assert results.last_results is not None
    FLAT.check(results.last_results.objective, stored["first_step"]["objective"])
    FLAT.check(results.objective, stored["objective"])


def check_same_optimum(results: blpjax.ProblemResults, stored: Mapping[str, Any]) -> None:
    """Both steps. Only sigma sigma' is compared: signs of the columns of sigma are not identified."""
    assert results.last_results is not None
    ESTIMATES.check(results.last_results.objective, stored["first_step"]["objective"], "first step")
    ESTIMATES.check(results.last_results.sigma_squared, array(stored["first_step"]["sigma_squared"]), "first step")
    for name in ("objective", "sigma_squared", "sigma_squared_se", "beta", "beta_se"):
        ESTIMATES.check(getattr(results, name), array(stored[name]), name)
