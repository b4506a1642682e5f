"""Projection of fixed effects: regressions on product indicators by PyBLP, generalised least squares, errors."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax import Formulation
from blpjax.exceptions import DataError, IdentificationError
from tests.support import joint
from tests.tolerances import FIXED_PARAMETERS, LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")

PROJECTED = Formulation("1 + sweet + soggy")
LOGIT = joint.Model("0 + prices + x + y", X2=None, X3=None, demographics=None, absorb_demand="C(product_ids)")
SUPPLY = dataclasses.replace(joint.Model(), X1="0 + prices + x + y", absorb_demand="C(product_ids)")
SWEET = {f"p{j}": (3.0, 1.0, 4.0, 1.5, 9.0, 2.5, 6.0, 5.0)[j] for j in range(8)}


@functools.cache
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ten markets with up to eight products, which are sweet and perhaps soggy wherever they are sold."""
    products, agents = joint.tables(3)
    number = products.product_ids.str[1:].astype(int)
    return products.assign(sweet=products.product_ids.map(SWEET), soggy=number % 2, number=number), agents


def solve(model: joint.Model = LOGIT, library: Any = blpjax, products: Any = None, **more: Any) -> Any:
    """Estimates of a plain logit, or of other models at given parameters."""
    known, agents = tables()
    chosen: dict[str, Any] = {"method": "1s"}
    if model.X2:
        chosen |= {
            "sigma": joint.SIGMA,
            "pi": joint.PI,
            "optimization": library.Optimization("return"),
            "iteration": library.Iteration("squarem", {"atol": 1e-14}),
            "check_optimality": "gradient",
        }
    problem = model.build(library, known if products is None else products, agents if model.X2 else None)
    with joint.quiet():
        return problem.solve(**chosen | more)


@functools.cache
def logit() -> blpjax.ProblemResults:
    results: blpjax.ProblemResults = solve()
    return results


CASES = {
    "logit": (LOGIT, {}),
    "logit, clusters": (LOGIT, {"se_type": "clustered", "center_moments": False}),
    "logit, unadjusted": (LOGIT, {"se_type": "unadjusted"}),
    "random coefficients and supply": (SUPPLY, {"beta": [-2.0, None, None]}),
    "random coefficients and clusters": (dataclasses.replace(SUPPLY, X3=None), {"se_type": "clustered"}),
}


@pytest.mark.parametrize("name", CASES)
def test_effects_and_covariances_are_those_of_indicators(name: str) -> None:
    """PyBLP estimates coefficients of indicators of the products, which are then instruments, too."""
    model, arguments = CASES[name]
    found = solve(model, **arguments).project_fixed_effects(PROJECTED)
    linear = [*arguments.get("beta", [None] * 3), *[None] * 8]
    indicators = dataclasses.replace(model, X1="0 + prices + x + y + C(product_ids)", absorb_demand=None)
    theirs = solve(indicators, pyblp, **arguments | {"beta": linear})
    N, first = theirs.problem.N, len(theirs.theta) + sum(value is None for value in linear[:3])
    covariances = theirs.parameter_covariances[first : first + 8, first : first + 8] / N
    FIXED_PARAMETERS.check(found.effects, theirs.beta[3:], "effects")
    FIXED_PARAMETERS.check(found.effect_covariances, covariances, "covariances")
    FIXED_PARAMETERS.check(np.sqrt(np.diag(found.effect_covariances)), theirs.beta_se[3:, 0], "standard errors")
    assert found.effect_ids == [f"p{j}" for j in range(8)]


def test_coefficients_are_generalised_least_squares() -> None:
    found = logit().project_fixed_effects(PROJECTED)
    X = np.column_stack([np.ones(8), list(SWEET.values()), np.arange(8) % 2])
    L = np.linalg.cholesky(np.linalg.inv(found.effect_covariances))
    expected, squares = np.linalg.lstsq(L.T @ X, L.T @ found.effects, rcond=None)[:2]
    LINEAR_ALGEBRA.check(found.coefficients, expected)
    LINEAR_ALGEBRA.check(found.covariances, np.linalg.inv((L.T @ X).T @ (L.T @ X)))
    LINEAR_ALGEBRA.check(found.standard_errors[:, 0] ** 2, np.diag(found.covariances))
    LINEAR_ALGEBRA.check(found.test.statistic, squares[0])
    assert float(found.test.degrees_of_freedom) == 5
    np.testing.assert_allclose(found.effects, X @ found.coefficients + found.residuals)


def test_equal_weights_are_least_squares() -> None:
    found = logit().project_fixed_effects(PROJECTED, weighting="ols")
    X = found.characteristics
    A = np.linalg.pinv(X)
    LINEAR_ALGEBRA.check(found.coefficients, A @ found.effects)
    LINEAR_ALGEBRA.check(found.covariances, A @ found.effect_covariances @ A.T)
    assert found.r_squared == pytest.approx(1 - found.residuals.var() / found.effects.var())
    generalised = logit().project_fixed_effects(PROJECTED)
    assert (found.standard_errors > generalised.standard_errors).all()
    assert found.r_squared > generalised.r_squared and found.weighted_r_squared < generalised.weighted_r_squared


def test_as_many_characteristics_as_effects_explain_them() -> None:
    """Then coefficients on indicators are the effects themselves, and their covariances too."""
    found = logit().project_fixed_effects(Formulation("0 + product_ids"))
    LINEAR_ALGEBRA.check(found.coefficients, found.effects)
    LINEAR_ALGEBRA.check(found.covariances, found.effect_covariances)
    assert found.r_squared == pytest.approx(1) and np.isnan(float(found.test.p_value))


@pytest.mark.slow
def test_standard_errors_are_the_spread_of_estimates() -> None:
    """Tastes for characteristics in 300 simulated logit economies without unobserved quality."""
    rng = np.random.default_rng(0)
    T, J, sweet = 40, 6, np.array([0.0, 1.0, 2.0, 4.0, 3.0, 1.5])
    ids = {"market_ids": np.repeat(np.arange(T), J), "product_ids": np.tile(np.arange(J), T)}
    estimates, errors = [], []
    for _ in range(300):
        xi, w = 0.3 * rng.normal(size=T * J), rng.uniform(0, 2, T * J)
        prices = 1 + w + 0.5 * xi
        exponentials = np.exp((-1.0 - prices + 0.5 * np.tile(sweet, T) + xi).reshape(T, J))
        shares = (exponentials / (1 + exponentials.sum(axis=1, keepdims=True))).ravel()
        data = ids | {"shares": shares, "prices": prices, "demand_instruments0": w, "sweet": np.tile(sweet, T)}
        results = blpjax.Problem(Formulation("0 + prices", absorb="C(product_ids)"), data).solve(method="1s")
        found = results.project_fixed_effects(Formulation("1 + sweet"))
        estimates.append(found.coefficients[:, 0])
        errors.append(found.standard_errors[:, 0])
    np.testing.assert_allclose(np.mean(estimates, axis=0), [-1.0, 0.5], atol=0.03)
    np.testing.assert_allclose(np.std(estimates, axis=0), np.mean(errors, axis=0), rtol=0.15)


def test_characteristics_may_come_from_a_table_of_products() -> None:
    table = pd.DataFrame({"product_ids": SWEET.keys(), "sugar": SWEET.values()})
    renamed = logit().project_fixed_effects(Formulation("1 + sugar"), table.iloc[::-1])
    known = logit().project_fixed_effects(Formulation("1 + sweet"))
    np.testing.assert_array_equal(renamed.coefficients, known.coefficients)
    assert renamed.labels == ("1", "sugar")
    with pytest.raises(DataError, match="product_data: there is no row for 'product_ids' = 'p2'"):
        logit().project_fixed_effects(Formulation("1 + sugar"), table[table.product_ids != "p2"])


def test_effects_of_interactions_have_tuples_of_levels() -> None:
    products = tables()[0].assign(half=np.where(tables()[0].market_ids < "m005", "early", "late"))
    model = dataclasses.replace(LOGIT, absorb_demand="C(product_ids):C(half)")
    found = solve(model, products=products[products.number < 5]).project_fixed_effects(Formulation("1 + sweet"))
    assert found.effect_ids[:3] == [("early", "p0"), ("early", "p1"), ("early", "p2")]


def test_tables() -> None:
    found = logit().project_fixed_effects(PROJECTED)
    text = str(found)
    for part in ("Minimum-Distance Summary (GLS)", "Chi-Squared", "sweet", f"({found.standard_errors[1, 0]:+.6E})"):
        assert part in text
    frame = found.estimates()
    assert list(frame["parameter"]) == ["1", "sweet", "soggy"]
    np.testing.assert_array_equal(frame["se"], found.standard_errors[:, 0])


# errors


def test_varying_characteristics_are_refused() -> None:
    with pytest.raises(DataError, match=r"'x' varies within 'product_ids'.*see market 'm\d+', row \d+ \(and"):
        logit().project_fixed_effects(Formulation("1 + x"))


def test_too_many_or_collinear_characteristics_are_refused() -> None:
    with pytest.raises(IdentificationError, match=r"formulation .*'I\(2\*sweet\)|2.*sweet.* collinear"):
        logit().project_fixed_effects(Formulation("1 + sweet + I(2*sweet)"))
    powers = " + ".join(f"I(number**{k})" for k in range(2, 9))
    with pytest.raises(IdentificationError, match=r"fewer fixed effects \(8\) than characteristics \(9: 1, number"):
        logit().project_fixed_effects(Formulation(f"1 + number + {powers}"))


def test_fixed_effects_are_needed() -> None:
    without = solve(dataclasses.replace(LOGIT, X1="1 + prices + x + y", absorb_demand=None))
    with pytest.raises(ValueError, match="no fixed effects to project: the formulation of X1 absorbs none"):
        without.project_fixed_effects(PROJECTED)
    several = solve(dataclasses.replace(LOGIT, absorb_demand="C(product_ids) + C(market_ids)"))
    with pytest.raises(NotImplementedError, match="Fixed effects in several dimensions.*add the others to the formula"):
        several.project_fixed_effects(PROJECTED)


def test_single_rows_are_named() -> None:
    products = tables()[0]
    one = products.index[products.number == 7][0]
    found = solve(products=products[(products.number != 7) | (products.index == one)])
    with pytest.raises(DataError, match="the fixed effect of 'p7' has a single row"):
        found.project_fixed_effects(PROJECTED)


def test_clusters_of_products_leave_no_weights() -> None:
    products = tables()[0].assign(clustering_ids=tables()[0].product_ids)
    with pytest.warns(blpjax.exceptions.IdentificationWarning, match="rank 7"):
        found = solve(products=products, se_type="clustered", W_type="clustered")
    with pytest.raises(IdentificationError, match="covariances of the 8 fixed effects are singular"):
        found.project_fixed_effects(PROJECTED)
    assert np.isfinite(found.project_fixed_effects(PROJECTED, weighting="ols").standard_errors).all()


def test_covariances_of_parameters_are_needed() -> None:
    first = solve(method="2s").last_results
    with pytest.raises(ValueError, match="no covariances of parameters, which only the last GMM step has"):
        first.project_fixed_effects(PROJECTED)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="formulation must be a Formulation, not str"):
        logit().project_fixed_effects("1 + sweet")
    with pytest.raises(ValueError, match="Nothing can be absorbed"):
        logit().project_fixed_effects(Formulation("0 + sweet", absorb="C(product_ids)"))
    with pytest.raises(ValueError, match="weighting must be 'gls' or 'ols', not 'equal'"):
        logit().project_fixed_effects(PROJECTED, weighting="equal")
