"""Economies in which firms set prices, with a supply side that can be estimated, and problems on them."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tests.support import silence

#: Numbers of products: unequal, and at most eight, so that one compiled program serves all economies.
PRODUCTS = (8, 7, 6, 8, 5, 8, 7, 8, 6, 8)
AGENTS = (30, 28, 30, 30, 25, 30, 30, 29, 30, 30)

#: The economies' own parameters: X1 is 1, prices, x, y; X2 is 1, x; X3 is 1, w, x.
BETA = np.array([-0.5, -2.0, 1.0, 0.5])
SIGMA = np.diag([0.4, 0.6])
PI = np.array([[0.3], [0.0]])
GAMMA = {"linear": np.array([0.8, 0.5, 0.3]), "log": np.array([0.0, 0.3, 0.15])}


@dataclasses.dataclass(frozen=True)
class Model:
    """Formulations (X2 and demographics may be left out with None) and options of a problem."""

    X1: str = "1 + prices + x + y"
    X2: str | None = "1 + x"
    X3: str | None = "1 + w + x"
    absorb_demand: str | None = None
    absorb_supply: str | None = None
    demographics: str | None = "0 + income"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, library: Any, products: Any, agents: Any) -> Any:
        """Build the problem with PyBLP or blpjax."""
        Formulation = library.Formulation
        formulations = [
            Formulation(self.X1, absorb=self.absorb_demand),
            None if self.X2 is None else Formulation(self.X2),
            None if self.X3 is None else Formulation(self.X3, absorb=self.absorb_supply),
        ]
        demographics = None if self.demographics is None else Formulation(self.demographics)
        with quiet():
            return library.Problem(tuple(formulations), products, demographics, agents, **self.options)


def tables(
    seed: int = 0, costs_type: str = "linear", importance: bool = False, markets: int = len(PRODUCTS)
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Product and agent tables of a Bertrand equilibrium between three firms, rows of markets mixed.

    Products have columns with what is not observed: xi, omega and costs.

    Parameters
    ----------
    seed : of all draws.
    costs_type : whether marginal costs or their logarithms are linear in 1, w, x and omega.
    importance : whether integration weights are unequal and sum to about 0.4, as those of importance sampling may.
    markets : number of markets; their sizes are those of `PRODUCTS` and `AGENTS`, again and again.
    """
    products, agents = _simulated(seed, costs_type, importance, markets)
    return products.copy(), agents.copy()


@functools.cache
def _simulated(seed: int, costs_type: str, importance: bool, markets: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    rows, people = [], []
    for t in range(markets):
        n, m = PRODUCTS[t % len(PRODUCTS)], AGENTS[t % len(AGENTS)]
        x, y, w, z = rng.uniform(0, 2, (4, n))
        xi, omega = rng.multivariate_normal([0, 0], [[0.09, 0.01], [0.01, 0.01]], n).T
        firm_ids = rng.permutation(np.arange(n) % 3)
        nodes, income = rng.normal(size=(m, 2)), rng.normal(0, 0.5, m)
        costs = np.column_stack([np.ones(n), w, x]) @ GAMMA[costs_type] + omega
        costs = np.exp(costs) if costs_type == "log" else costs
        utilities = (BETA[0] + BETA[2] * x + BETA[3] * y + xi)[:, None] + np.column_stack([np.ones(n), x]) @ (
            SIGMA @ nodes.T + PI * income
        )
        weights = rng.lognormal(-1.4, 1, m) / m if importance else np.full(m, 1 / m)
        prices, shares = _equilibrium(utilities, weights, costs, firm_ids[:, None] == firm_ids)
        rivals = firm_ids[:, None] != firm_ids
        rows.append(
            pd.DataFrame(
                {
                    "market_ids": f"m{t:03d}",
                    "product_ids": [f"p{j}" for j in range(n)],
                    "firm_ids": firm_ids,
                    "clustering_ids": [f"c{i}" for i in rng.integers(0, 20, n)],
                    "shares": shares,
                    "prices": prices,
                    "x": x,
                    "y": y,
                    "w": w,
                    "xi": xi,
                    "omega": omega,
                    "costs": costs,
                    "demand_instruments0": w,
                    "demand_instruments1": z,
                    "demand_instruments2": rivals @ x,
                    "demand_instruments3": rivals @ y,
                    "demand_instruments4": w**2,
                    "demand_instruments5": w * x,
                    "supply_instruments0": y,
                    "supply_instruments1": rivals @ x,
                    "supply_instruments2": z,
                    "supply_instruments3": y**2,
                }
            )
        )
        people.append(
            pd.DataFrame(
                {
                    "market_ids": f"m{t:03d}",
                    "weights": weights,
                    "nodes0": nodes[:, 0],
                    "nodes1": nodes[:, 1],
                    "income": income,
                }
            )
        )
    products, agents = pd.concat(rows, ignore_index=True), pd.concat(people, ignore_index=True)
    return products.sample(frac=1, random_state=seed, ignore_index=True), agents


def with_asymmetric_ownership(products: pd.DataFrame) -> pd.DataFrame:
    """Products with ownership columns, in which firms hold different shares of each other."""
    size = products.groupby("market_ids").size().max()
    ownership = np.full((len(products), size), np.nan)
    for _, market in products.groupby("market_ids"):
        firms, rows = market["firm_ids"].to_numpy(), market.index.to_numpy()
        held = np.where(firms[:, None] < firms, 0.3, 0.6)
        ownership[rows, : len(rows)] = np.where(firms[:, None] == firms, 1.0, held)
    columns = {f"ownership{j}": ownership[:, j] for j in range(size)}
    return products.assign(**columns)


def quiet() -> contextlib.AbstractContextManager[None]:
    """Print nothing, and ignore warnings of PyBLP's dependencies, and of what some models are about."""
    return silence.quiet(".*weights_tol", "'prices' are in X2 but not in X1")


def _equilibrium(
    utilities: np.ndarray, weights: np.ndarray, costs: np.ndarray, ownership: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Prices and shares where p - c is the markup: repeated until nothing changes. Utilities leave prices out."""
    alpha, prices = BETA[1], costs + 0.5
    for _ in range(10_000):
        exponentials = np.exp(utilities + alpha * prices[:, None])
        probabilities = exponentials / (1 + exponentials.sum(axis=0))
        shares = probabilities @ weights
        derivatives = alpha * (np.diag(shares) - probabilities * weights @ probabilities.T)
        updated = costs - np.linalg.solve(ownership * derivatives, shares)
        if np.abs(updated - prices).max() < 1e-14:
            return prices, shares
        prices = (prices + updated) / 2
    raise ArithmeticError("prices do not settle")
