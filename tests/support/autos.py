"""The automobile data as in the stored PyBLP results, with a supply side."""

import functools
import warnings
from typing import Any

import numpy as np
import pandas as pd

import blpjax
from blpjax.data import load_blp
from tests.support.nevo import array

#: Starting values: published estimates of Berry, Levinsohn and Pakes (1995), as in PyBLP's tutorial.
SIGMA = np.diag([3.612, 0, 4.628, 1.818, 1.050, 2.056])
PI = np.array([[0.0], [-43.501], [0], [0], [0], [0]])
OPTIONS: dict[str, Any] = {"costs_bounds": (0.001, None), "W_type": "clustered", "se_type": "clustered"}
#: What is stored of arrays with a row per product, and of matrices with rows and columns by product.
EVERY = 100
EVERY_MATRIX = 450


@functools.cache
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Products and agents."""
    products, agents = load_blp()
    return products, agents


def problem(costs_type: str = "log") -> blpjax.Problem:
    """Random coefficients on five characteristics, and prices over income."""
    products, agents = tables()
    with warnings.catch_warnings():
        # weights are those of importance sampling
        warnings.filterwarnings("ignore", message=".*weights_tol")
        return blpjax.Problem(
            (
                blpjax.Formulation("1 + hpwt + air + mpd + space"),
                blpjax.Formulation("1 + prices + hpwt + air + mpd + space"),
                blpjax.Formulation("1 + log(hpwt) + air + log(mpg) + log(space) + trend"),
            ),
            products,
            blpjax.Formulation("0 + I(1 / income)"),
            agents,
            costs_type=costs_type,
        )


def evaluate(built: blpjax.Problem, **changes: Any) -> blpjax.ProblemResults:
    """One step at the starting values."""
    chosen = OPTIONS | {
        "method": "1s",
        "optimization": blpjax.Optimization("return"),
        "check_optimality": "gradient",
    }
    return built.solve(SIGMA, PI, **chosen | changes)


def check_thinned(tolerance: Any, actual: Any, stored: dict[str, Any], every: int, what: str) -> None:
    """Compare the rows that are stored, and the norm of each market's rows."""
    values = np.asarray(actual, dtype=float)
    tolerance.check(values[::every], array(stored["rows"]), what)
    squares = pd.Series(np.nansum(values.reshape(len(values), -1) ** 2, axis=1))
    norms = np.sqrt(squares.groupby(tables()[0]["market_ids"].to_numpy()).sum().to_numpy())
    tolerance.check(norms, array(stored["norms"]), f"norms of {what}")
