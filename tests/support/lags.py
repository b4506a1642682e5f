"""The economy of `tests.support.joint` with lags: products of the market before, where they were sold there."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from tests.support import joint

#: Types of moments, given MD = 10 and MS = 8 instruments.
TYPES: Mapping[str, tuple[Any, Any]] = {
    "innovations": ("innovations", "innovations"),
    "stacked": ([("levels", 4), ("innovations", 6)], [("levels", 3), ("differenced_innovations", 5)]),
    "all": (
        [("differenced_innovations", 2), ("levels", 3), ("innovations", 5)],
        [("innovations", 3), ("levels", 3), ("differenced_innovations", 2)],
    ),
}
PHI = np.array([[0.3, -0.2], [0.1, 0.4]])


@cache
def tables(markets: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Product and agent tables. Some products are missing in some markets, after which they start again."""
    products, agents = joint.tables(markets=markets)
    rows = {key: row for row, key in enumerate(zip(products.market_ids, products.product_ids, strict=True))}
    before = [f"m{int(market[1:]) - 1:03d}" for market in products.market_ids]
    keys = zip(before, products.product_ids, strict=True)
    lags = [rows.get(key, row) for row, key in enumerate(keys)]
    # lags of prices depend on lags of errors, without which phi would not be identified
    before = np.where(np.array(lags) == np.arange(len(lags)), 0.0, products.prices.to_numpy()[lags])
    more = {"lag_indices": lags, "demand_instruments6": before, "supply_instruments4": before}
    return products.assign(**more), agents


def model(supply: bool = True, random: bool = True) -> joint.Model:
    """A supply side and random coefficients may be left out."""
    return joint.Model(
        X2="1 + x" if random else None,
        X3="1 + w + x" if supply else None,
        demographics="0 + income" if random else None,
    )


def build(library: Any, supply: bool = True, random: bool = True, markets: int = 10) -> Any:
    """The problem with PyBLP or blpjax."""
    products, agents = tables(markets)
    return model(supply, random).build(library, products, agents if random else None)


def arguments(library: Any, kind: str, supply: bool = True, random: bool = True, **more: Any) -> dict[str, Any]:
    """Arguments of `solve`: parameters, types of moments, and no optimisation; perhaps others."""
    demand, other = TYPES[kind]
    found = {
        "phi": PHI if supply else PHI[0, 0],
        "beta": [None, -2.0, None, None] if supply else None,
        "demand_moment_types": demand,
        "supply_moment_types": other if supply else "levels",
        "method": "1s",
        "optimization": library.Optimization("return"),
        "check_optimality": "gradient",
    }
    if random:
        found |= {"sigma": joint.SIGMA, "pi": joint.PI, "iteration": library.Iteration("squarem", {"atol": 1e-14})}
    return found | more
