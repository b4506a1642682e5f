"""A small economy whose surveys are asked about by column, and the same by functions of indices."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

import blpjax
from tests.support.silence import quiet

SIGMA = np.array([[0.6, 0.0], [0.0, 0.3]])
PI = np.array([[0.3, 0.0], [0.0, 0.2]])


@cache
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Four markets, with columns that no formula uses, and unsorted rows."""
    rng = np.random.default_rng(2)
    sizes = {f"t{t}": J for t, J in enumerate([5, 7, 6, 6])}
    products = pd.concat(
        [
            pd.DataFrame(
                {
                    "market_ids": t,
                    "product_ids": [f"p{j}" for j in range(J)],
                    "firm_ids": [f"F{j % 2}" for j in range(J)],
                    "brand_ids": np.arange(J) % 3,
                    "x": rng.normal(size=J),
                    "mi": np.arange(J) % 2,
                    "size": rng.uniform(1, 2, J),
                    "prices": rng.uniform(1, 3, J),
                    "shares": rng.uniform(0.03, 0.13, J),
                }
            )
            for t, J in sizes.items()
        ]
    )
    for k in range(6):
        products[f"demand_instruments{k}"] = products.prices ** (k + 1) / 3**k + rng.normal(size=len(products)) / 5
    agents = pd.DataFrame({"market_ids": np.repeat(list(sizes), 6), "weights": 1 / 6})
    agents = agents.assign(income=rng.uniform(20, 80, 24), age=rng.uniform(18, 70, 24), kids=rng.integers(0, 3, 24))
    agents["size"] = rng.integers(1, 5, 24)
    agents["region"] = np.where(rng.uniform(size=24) > 0.5, "north", "south")
    agents["log_income"] = np.log(agents.income) - 3.8
    for k in range(2):
        agents[f"nodes{k}"] = rng.normal(size=24)
    for j in range(7):
        agents[f"distance{j}"] = rng.uniform(1, 9, 24)
    return (
        products.sample(frac=1, random_state=1, ignore_index=True),
        agents.sample(frac=1, random_state=2, ignore_index=True),
    )


def build(agents: Any = None, products: Any = None, **options: Any) -> blpjax.Problem:
    """The problem; its agent formula leaves out most columns of agents."""
    known = tables()
    with quiet():
        return blpjax.Problem(
            (blpjax.Formulation("1 + prices + x"), blpjax.Formulation("1 + x")),
            known[0] if products is None else products,
            blpjax.Formulation("0 + log_income + kids"),
            known[1] if agents is None else agents,
            **options,
        )


@cache
def problem() -> blpjax.Problem:
    """The problem that tests share."""
    return build()


def evaluate(micro_moments: Any, own: Any = None, **options: Any) -> Any:
    """Results at the starting values, without optimisation."""
    chosen = {
        "method": "1s",
        "optimization": blpjax.Optimization("return"),
        "check_optimality": "gradient",
    } | options
    with quiet():
        return (own or problem()).solve(SIGMA, PI, micro_moments=micro_moments, **chosen)


def rows(t: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Products and agents of a market, in the order of their rows."""
    products, agents = tables()
    return products[products.market_ids == t], agents[agents.market_ids == t]


def everything(t: Any) -> dict[str, np.ndarray]:
    """Columns of a market as arrays of agents (I, 1, 1), first choices (1, 1 + J, 1), and second ones (1, 1, 1 + J)."""
    products, agents = rows(t)
    found = {f"agent.{name}": agents[name].to_numpy()[:, None, None] for name in agents}
    for name in products:
        column = products[name].to_numpy()
        outside = np.r_[0.0, column] if column.dtype.kind in "iuf" else np.r_[[""], column.astype(object)]
        found[f"first.{name}"], found[f"second.{name}"] = outside[None, :, None], outside[None, None]
    inside = np.r_[0.0, np.ones(len(products))]
    found["purchase"], found["second.purchase"] = inside[None, :, None], inside[None, None]
    distance = agents[[f"distance{j}" for j in range(len(products))]].to_numpy()
    found["distance"] = np.column_stack([np.zeros(len(agents)), distance])[:, :, None]
    found["all"] = np.ones((len(agents), 1 + len(products), 1 + len(products)))
    return found
