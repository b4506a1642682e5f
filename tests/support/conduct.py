"""Results of a problem without a supply side whose table has columns that conducts read, and such conducts."""

import functools
from typing import Any

import numpy as np
import pandas as pd

import blpjax
from tests.support.estimated import CASES
from tests.support.joint import quiet

CASE = CASES["demand alone"]


@functools.cache
def solved() -> Any:
    """Results of a problem whose table has columns that conducts read."""
    products, agents = CASE.tables
    order = products.groupby("market_ids").cumcount()
    more = {"quantity": order % 2, "leader": products.firm_ids == 1, "makers": order // 3, "half": 0.5, "odd": order}
    more["gaps"] = np.where(order == 2, np.nan, 1.0)
    with quiet():
        problem = blpjax.Problem(
            (blpjax.Formulation("1 + prices + x + y"), blpjax.Formulation("1 + x")),
            products.assign(**more),
            blpjax.Formulation("0 + income"),
            agents,
        )
        return problem.solve(
            sigma=np.diag([0.4, 0.6]),
            pi=[[0.3], [0.0]],
            beta=[None, -2.0, None, None],
            method="1s",
            optimization=blpjax.Optimization("return"),
            iteration=blpjax.Iteration("newton", {"atol": 1e-14}),
            check_optimality="gradient",
        )


def table() -> pd.DataFrame:
    return pd.DataFrame(dict(solved().problem.data.product_table.data))


def own_cournot(market: blpjax.PricedMarket) -> Any:
    return -(market.ownership("firm_ids") * market.inverse(market.jacobian()).T) @ market.shares()


CONDUCTS = {
    "bertrand": blpjax.Bertrand(),
    "weights": blpjax.Bertrand(weights={(1, 2): 0.3, (2, 1): 0.3}),
    "cournot": blpjax.Cournot(),
    "mixed": blpjax.Mixed("quantity"),
    "stackelberg": blpjax.Stackelberg("leader"),
    "two tiers": blpjax.TwoTier(blpjax.Bertrand("firm_ids"), blpjax.Bertrand("makers")),
    "bargaining": blpjax.Bargaining("firm_ids", "makers", "half"),
    "conditions": blpjax.conditions(lambda m, market: m - 0.1 * market.prices - 0.02 * m**2),
}
