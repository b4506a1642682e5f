"""Nesting parameters that start at linear instrumental variables estimates."""

import numpy as np
import pandas as pd
import pytest

from blpjax import Formulation, Problem
from blpjax.exceptions import IdentificationError
from blpjax.nested_starts import estimate_rho
from tests.tolerances import CENTRAL_DIFFERENCE


def nested_logit(seed: int) -> Problem:
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
    return Problem(Formulation("1 + prices + x"), table)


@pytest.mark.parametrize("groups", [1, 2])
def test_automatic_starts_leave_rho_free(groups: int) -> None:
    """Linear estimates may be negative or above one; rho stays an element of theta, and the optimum is the same."""
    for seed in range(4):
        problem = nested_logit(seed)
        linear = estimate_rho(problem, by_group=groups > 1)
        automatic = problem.solve(rho=["auto"] * groups, method="1s")
        given = problem.solve(rho=[0.4] * groups, method="1s")
        assert automatic.theta_labels == given.theta_labels and len(automatic.theta) == groups
        CENTRAL_DIFFERENCE.check(automatic.objective, given.objective)
        np.testing.assert_allclose(automatic.rho, given.rho, atol=1e-5)
        if ((linear > 0) & (linear < 0.99)).all():
            np.testing.assert_allclose(automatic.rho[:, 0], linear, atol=1e-6)
        bounded = problem.solve(rho=["auto"] * groups, rho_bounds=(0, 2), method="1s")
        assert np.isfinite(bounded.rho_se).all()


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
