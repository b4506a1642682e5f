"""One small problem for PyBLP and blpjax: unequal numbers of products and agents across markets, in mixed rows."""

from typing import Any

import numpy as np
import pandas as pd

from tests.support.economies import tables
from tests.support.silence import quiet

FORMULAS = ("1 + log(prices) + prices:x + w", "1 + prices + x")
SIGMA = np.array([[0.5, 0, 0], [0, 0.2, 0], [0, 0.1, 0.3]])
PI = np.array([[0.2], [0.0], [-0.3]])


def small_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Product and agent tables with all kinds of IDs, rows in random order."""
    products, agents = tables(5, [3, 3, 2, 3, 5, 6, 5, 5], [5, 4, 5, 5, 8, 7, 8, 8])
    rng = np.random.default_rng(1)
    N = len(products)
    more = {
        "firm_ids": rng.integers(0, 3, N),
        "w": rng.normal(size=N),
        "clustering_ids": [f"c{i}" for i in rng.integers(0, 20, N)],
        "demand_instruments6": rng.normal(size=N),
        "demand_instruments7": products.x * products.demand_instruments0**2,
    }
    products = products.assign(**more).sample(frac=1, random_state=3, ignore_index=True)
    agents["nodes2"] = rng.normal(size=len(agents))
    agents["agent_ids"] = [f"a{i}" for i in range(len(agents))]
    return products, agents.sample(frac=1, random_state=4, ignore_index=True)


def build(library: Any, products: Any = None, agents: Any = None, **options: Any) -> Any:
    """Build the problem, perhaps with other tables, with PyBLP or blpjax."""
    known = small_tables()
    with quiet():
        return library.Problem(
            tuple(library.Formulation(formula) for formula in FORMULAS),
            known[0] if products is None else products,
            library.Formulation("0 + income"),
            known[1] if agents is None else agents,
            **options,
        )


def evaluate(problem: Any, library: Any, **options: Any) -> Any:
    """Results at the starting values, without optimisation."""
    chosen = {
        "method": "1s",
        "optimization": library.Optimization("return"),
        "iteration": library.Iteration("squarem", {"atol": 1e-14}),
        "check_optimality": "gradient",
    } | options
    with quiet():
        return problem.solve(SIGMA, PI, **chosen)
