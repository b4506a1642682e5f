"""A small economy, and what firms do in it after a change, by SciPy's root finding and loops over markets."""

import functools
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize

from blpjax import Formulation, Optimization, Problem
from tests.support.silence import silent

SIZES = (4, 3, 5)
MARKETS = ("a", "b", "c")
SIGMA, PI = np.diag([0.5, 0.3]), np.array([[0.0], [0.4]])
#: Mean tastes for a constant, prices or their logarithm, and x.
BETA = {"prices": np.array([1.0, -2.0, 1.5]), "log(prices)": np.array([1.0, -4.0, 1.5])}


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Three markets with firms of several products. Prices are not special: costs are what they imply."""
    rng, N = np.random.default_rng(5), sum(SIZES)
    products = pd.DataFrame({"market_ids": np.repeat(MARKETS, SIZES), "x": rng.uniform(0.3, 1.2, N)})
    products["product_ids"] = np.concatenate([np.arange(size) for size in SIZES])
    products["firm_ids"] = np.array([0, 0, 1, 2, 1, 0, 2, 0, 1, 1, 2, 2])
    products["prices"] = 1.2 + 0.5 * products.x + rng.uniform(0, 0.3, N)
    products["shares"] = rng.uniform(0.08, 0.16, N)
    agents = pd.DataFrame({"market_ids": np.repeat(MARKETS, 30), "weights": 1 / 30})
    agents = agents.assign(nodes0=rng.normal(size=90), nodes1=rng.normal(size=90), income=rng.normal(size=90))
    instruments = {f"demand_instruments{k}": rng.uniform(size=N) for k in range(6)}
    return products.assign(**instruments), agents


PRODUCTS, AGENTS = tables()
FIRMS = PRODUCTS.firm_ids.to_numpy()


@functools.cache
def results(price: str = "prices") -> Any:
    """Results at these parameters, with utility linear in prices or in their logarithm."""
    formulas = Formulation(f"1 + {price} + x"), Formulation(f"1 + {price}")
    with silent():
        problem = Problem(formulas, PRODUCTS, Formulation("0 + income"), AGENTS)
        return problem.solve(
            SIGMA, PI, beta=BETA[price], method="1s", optimization=Optimization("return"), check_optimality="gradient"
        )


def demand(price: str, market: str, at: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Shares, their derivatives in prices, consumer surplus, and what taxes on consumers raise.

    `at` has prices, x, xi, which products are present, and the price of the first product before changes. Taxes on
    consumers `paid` (J, I) may be there, too.
    """
    people = AGENTS[AGENTS.market_ids == market]
    nodes0, nodes1, income, weights = people[["nodes0", "nodes1", "income", "weights"]].to_numpy().T
    logs, beta, p = price != "prices", BETA[price], at["prices"]
    paid = at.get("paid", np.zeros((p.size, len(people))))
    alpha = beta[1] + SIGMA[1, 1] * nodes1 + PI[1, 0] * income
    spent = p[:, None] + paid
    utility = beta[0] + SIGMA[0, 0] * nodes0 + alpha * (np.log(spent) if logs else spent)
    explained = utility + (beta[2] * at["x"] + at["xi"])[:, None]
    e = np.where(at["present"][:, None], np.exp(explained), 0.0)
    s = e / (1 + e.sum(axis=0))
    weighted = weights * s * (alpha / spent if logs else alpha)
    slopes = np.diag(weighted.sum(axis=1)) - s @ weighted.T
    surplus = weights @ (np.log1p(e.sum(axis=0)) / -(alpha / at["first"] if logs else alpha))
    return s @ weights, slopes, float(surplus), float(weights @ (s * paid).sum(axis=0))


def conditions(q: np.ndarray, price: str, market: str, at: dict[str, Any]) -> np.ndarray:
    """First-order conditions of the prices that are free, at which these are q."""
    free = at["present"] & ~at["held"]
    prices = at["prices"].copy()
    prices[free] = q
    s, D, _, _ = demand(price, market, at | {"prices": prices})
    margins = at["kept"] * prices - at["unit"] - at["costs"]
    return np.asarray((at["kept"] * s + (at["H"] * D.T) @ margins)[free])


class World:
    """What a scenario is: every array has a row for each product, new ones last."""

    def __init__(self, price: str = "prices", **changes: Any) -> None:
        self.price, known = price, results(price)
        self.market_ids, self.firms = PRODUCTS.market_ids.to_numpy(), FIRMS
        self.x, self.xi, self.costs = PRODUCTS.x.to_numpy(), known.xi[:, 0], known.compute_costs()[:, 0]
        self.prices = PRODUCTS.prices.to_numpy()
        N = len(PRODUCTS)
        self.kept, self.unit = np.ones(N), np.zeros(N)
        self.present, self.held = np.ones(N, bool), np.zeros(N, bool)
        self.given, self.weight, self.paid = False, 0.0, lambda agents, products: 0.0
        added = changes.pop("added", None)
        for name, value in changes.items():
            old = getattr(self, name)
            plain = name in ("weight", "given", "paid")
            setattr(self, name, value if plain else value(old) if callable(value) else np.broadcast_to(value, N))
        if added is not None:
            self._add(added)

    def _add(self, table: pd.DataFrame) -> None:
        """New products, with prices at which the search begins."""
        count = len(table)
        more = {"market_ids": table.market_ids, "firms": table.firm_ids, "x": table.x, "xi": table.xi}
        more |= {"costs": table.costs, "prices": table.costs + 0.6, "present": True, "held": False}
        more |= {"kept": self.kept[0], "unit": self.unit[0]}
        for name, value in more.items():
            values = np.broadcast_to(np.asarray(value), count)
            setattr(self, name, np.concatenate([np.asarray(getattr(self, name)), values]))

    def solve(self) -> pd.DataFrame:
        """Prices at which no firm gains from another price, and what follows, by product and in its market."""
        parts = []
        for market in MARKETS:
            rows = np.flatnonzero(self.market_ids == market)
            at = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
            same = at["firms"][:, None] == at["firms"]
            at["H"] = np.where(same, 1.0, self.weight)
            at["first"] = PRODUCTS.prices[PRODUCTS.market_ids == market].iloc[0]
            people = AGENTS[AGENTS.market_ids == market]
            table = pd.DataFrame({"x": at["x"]})
            at["paid"] = np.broadcast_to(self.paid(people, table), (rows.size, len(people)))
            free, prices = at["present"] & ~at["held"], at["prices"].copy()
            if not self.given and free.any():
                found = scipy.optimize.root(conditions, prices[free], (self.price, market, at), tol=1e-13)
                assert np.abs(found.fun).max() < 1e-11, found.message
                prices[free] = found.x
            s, _, surplus, raised = demand(self.price, market, at | {"prices": prices})
            net = at["kept"] * prices - at["unit"]
            columns = {"prices": np.where(at["present"], prices, np.nan), "shares": s, "market": market, "row": rows}
            columns |= {"net_prices": np.where(at["present"], net, np.nan), "profits": (net - at["costs"]) * s}
            columns |= {"revenue": (prices - net) * s, "surplus": surplus, "raised": raised}
            parts.append(pd.DataFrame(columns))
        return pd.concat(parts, ignore_index=True).sort_values("row", ignore_index=True)
