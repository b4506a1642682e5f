"""Nevo's cereal data as in the stored PyBLP results, and those results."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import blpjax
from blpjax.data import load_nevo

#: Starting values of Nevo (2000) as in PyBLP's tutorial and the BLPestimatoR vignette.
SIGMA = np.diag([0.3302, 2.4526, 0.0163, 0.2441])
PI = np.array(
    [
        [5.4819, 0, 0.2037, 0],
        [15.8935, -1.2000, 0, 2.6342],
        [-0.2506, 0, 0.0511, 0],
        [1.2650, 0, -0.8091, 0],
    ]
)
#: Solve without the default bounds on the diagonal of sigma, as PyBLP's BFGS does.
UNBOUNDED: dict[str, Any] = {"sigma_bounds": (np.full((4, 4), -np.inf), np.full((4, 4), np.inf))}
DEMOGRAPHICS = "0 + income + income_squared + age + child"
#: Arrays with a row per product are stored for the first products only.
FIRST_ROWS = 30


@functools.cache
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Products and agents."""
    products, agents = load_nevo()
    return products, agents


def formulations() -> tuple[blpjax.Formulation, blpjax.Formulation]:
    return (
        blpjax.Formulation("0 + prices", absorb="C(product_ids)"),
        blpjax.Formulation("1 + prices + sugar + mushy"),
    )


def problem(demographics: str = DEMOGRAPHICS, clustered: bool = False) -> blpjax.Problem:
    """Four random coefficients and, with all demographics, nine interactions; clusters are markets."""
    products, agents = tables()
    if clustered:
        products = products.assign(clustering_ids=products["market_ids"])
    return blpjax.Problem(formulations(), products, blpjax.Formulation(demographics), agents)


def tutorial(integration: blpjax.Integration) -> blpjax.Problem:
    """Without demographics, with built nodes."""
    return blpjax.Problem(formulations(), tables()[0], integration=integration)


@functools.cache
def reference(section: str) -> dict[str, Any]:
    """Stored results of PyBLP (see `tests/parity/reference/make_reference.py`)."""
    path = Path(__file__).parents[1] / "parity" / "reference" / f"{section}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def array(stored: object) -> np.ndarray:
    """A stored array of numbers, with NaN for null."""
    return np.array(stored, dtype=float)


def first_rows(results: blpjax.ProblemResults, name: str) -> np.ndarray:
    return np.asarray(getattr(results, name))[:FIRST_ROWS]
