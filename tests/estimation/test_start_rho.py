"""Nesting parameters that start at linear instrumental variables estimates."""

import numpy as np
import pandas as pd
import pytest

from blpjax import Formulation, Optimization, Problem
from blpjax.economy.logit import log_shares_within
from blpjax.estimation.start_rho import estimate_rho
from blpjax.exceptions import IdentificationError
from blpjax.inputs.nesting import read_nesting
from tests.support.designs import mostly_slow
from tests.tolerances import CENTRAL_DIFFERENCE, LINEAR_ALGEBRA, ROUNDING

# prices are exogenous here
pytestmark = pytest.mark.filterwarnings("ignore:The excluded instrument")


def nested_logit(seed: int, epsilon_scale: float = 1.0) -> Problem:
    """Data of a plain logit whose groups are irrelevant, so that estimates of rho are about zero."""
    rng = np.random.default_rng(seed)
    T, J = 30, 6
    table = pd.DataFrame({"market_ids": np.repeat(np.arange(T), J), "nesting_ids": np.tile([0, 0, 0, 1, 1, 1], T)})
    table = table.assign(x=rng.normal(size=T * J), prices=rng.uniform(1, 2, T * J))
    xi = rng.normal(scale=0.5, size=T * J)
    e = np.exp(1 - 2 * table.prices + table.x + xi)
    table["shares"] = e / (1 + e.groupby(table.market_ids).transform("sum"))
    grouped = table.groupby(["market_ids", "nesting_ids"])
    table["demand_instruments0"] = grouped.x.transform("sum") - table.x
    table["demand_instruments1"] = table["demand_instruments0"] * table["nesting_ids"]
    table["demand_instruments2"] = table["prices"]
    table["demand_instruments3"] = table["demand_instruments0"] ** 2
    return Problem(Formulation("1 + prices + x"), table, epsilon_scale=epsilon_scale)


@pytest.mark.parametrize("seed", mostly_slow({str(seed): seed for seed in range(4)}, ["0"]))
@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_automatic_starts_leave_rho_free(groups: int, seed: int) -> None:
    """Linear estimates may be negative or above one; rho stays an element of theta, and the optimum is the same."""
    problem = nested_logit(seed)
    linear = estimate_rho(problem.data, by_group=groups > 1)
    automatic = problem.solve(rho=["auto"] * groups, method="1s")
    given = problem.solve(rho=[0.4] * groups, method="1s")
    assert automatic.theta_labels == given.theta_labels and len(automatic.theta) == groups
    CENTRAL_DIFFERENCE.check(automatic.objective, given.objective)
    np.testing.assert_allclose(automatic.rho, given.rho, atol=1e-5)
    if ((linear > 0) & (linear < 0.99)).all():
        np.testing.assert_allclose(automatic.rho[:, 0], linear, atol=1e-6)
    bounded = problem.solve(rho=["auto"] * groups, rho_bounds=(0, 2), method="1s")
    assert np.isfinite(bounded.rho_se).all()


@pytest.mark.parametrize("by_group", [False, True])
def test_linear_estimates_of_rho_are_those_of_scaled_utilities(by_group: bool) -> None:
    """``delta = scale (log S_j / S_0 - rho log S_j / S_h)`` is linear in X1: two-stage least squares by hand."""
    scale = 2.5
    problem = nested_logit(1, scale)
    table = pd.DataFrame({name: np.ravel(values) for name, values in problem.product_table.data.items()})
    outside = 1 - table.groupby("market_ids").shares.transform("sum")
    within = table.shares / table.groupby(["market_ids", "nesting_ids"]).shares.transform("sum")
    regressors = scale * np.log(within.to_numpy())[:, None]
    if by_group:
        regressors = regressors * (table.nesting_ids.to_numpy()[:, None] == np.array([0, 1]))
    exogenous = table[["demand_instruments0", "demand_instruments1", "demand_instruments2", "demand_instruments3", "x"]]
    Z = np.c_[exogenous, np.ones(len(table))]
    X = np.c_[regressors, np.ones(len(table)), table[["prices", "x"]]]
    fitted = Z @ np.linalg.lstsq(Z, X)[0]
    expected = np.linalg.lstsq(fitted, scale * np.log(table.shares / outside))[0][: regressors.shape[1]]
    LINEAR_ALGEBRA.check(estimate_rho(problem.data, by_group), expected)


def test_logarithms_of_shares_within_groups() -> None:
    """Also where rows of a market are apart and IDs are strings."""
    table = pd.DataFrame(
        {"market": [1, 0, 1, 0, 1, 0], "nest": list("babaab"), "shares": [0.1, 0.2, 0.3, 0.25, 0.2, 0.1]}
    )
    nesting = read_nesting(table.nest.to_numpy())
    found = log_shares_within(table.shares.to_numpy(), table.market.to_numpy(), nesting)
    expected = np.log(table.shares / table.groupby(["market", "nest"]).shares.transform("sum"))
    ROUNDING.check(found[:, 0], expected)
    assert nesting.codes[:, 0].tolist() == [1, 0, 1, 0, 0, 1]


def test_linear_estimates_of_rho_are_the_one_step_estimates_of_the_scaled_model() -> None:
    problem = nested_logit(1, 2.5)
    optimization = Optimization("l-bfgs-b", {"gtol": 1e-10, "ftol": 0})
    options = {"method": "1s", "optimization": optimization, "check_optimality": "gradient"}
    results = problem.solve(rho=0.4, rho_bounds=(-2, 0.99), **options)
    np.testing.assert_allclose(results.rho[:, 0], estimate_rho(problem.data), atol=1e-6)


def test_automatic_starts_of_rho_need_nests_and_instruments() -> None:
    problem = nested_logit(0)
    with pytest.raises(ValueError, match="rho must be 'auto', 2 times 'auto', or numbers"):
        problem.solve(rho=["auto", 0.5])
    table = {name: values for name, values in problem.product_table.data.items() if name != "nesting_ids"}
    with pytest.raises(ValueError, match="there are no nesting_ids"):
        Problem(Formulation("1 + prices + x"), table).solve(rho="auto")
    few = {name: v for name, v in problem.product_table.data.items() if not name.startswith("demand_instruments")}
    with pytest.raises(IdentificationError, match="rho='auto' needs instruments for shares within groups"):
        Problem(Formulation("1 + prices + x"), few).solve(rho="auto")
