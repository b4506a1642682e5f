"""Nested logits and unequal markets that are timed, written once for both libraries as in `benchmarks.models`."""

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.settings import Size, UnequalSize

Array = np.ndarray

#: Largest element of the projected gradient at which both libraries' optimisers stop.
GTOL = 1e-5

#: Groups of the simulated nested logit, the parameter of their shares, and where estimation starts.
NESTS, NESTED_RHO, NESTED_START = 4, 0.6, 0.3


def nested_problem(lib: ModuleType, size: Size) -> Any:
    """A plain nested logit."""
    return lib.Problem(lib.Formulation("1 + prices + x"), simulate_nested(size))


def nested_solve(lib: ModuleType, problem: Any) -> Any:
    """Two steps, from a rho of half its size."""
    return problem.solve(rho=NESTED_START, optimization=_optimization(lib))


def simulate_nested(size: Size, seed: int = 0) -> dict[str, Array]:
    """Products in four groups. Excluded instruments are a cost, and sums of rivals' x and costs in the group."""
    rng = np.random.default_rng(seed)
    T, J = size.markets, size.products
    nests, markets = np.tile(np.arange(J) % NESTS, T), np.repeat(np.arange(T), J)
    x, cost = rng.uniform(0, 2, (2, T * J))
    xi, noise = rng.normal(0, 0.3, T * J), rng.normal(0, 0.1, T * J)
    prices = 1 + 0.5 * cost + 0.3 * x + 0.3 * xi + noise
    groups = markets * NESTS + nests
    shares = _nested_shares((-3 - prices + x + xi)[:, None], NESTED_RHO, groups)[:, 0]
    return {
        "market_ids": markets,
        "firm_ids": np.tile(np.arange(J) % 5, T),
        "nesting_ids": nests,
        "shares": shares,
        "prices": prices,
        "x": x,
        "demand_instruments": np.stack([cost, _rivals(x, groups), _rivals(cost, groups)], axis=1),
    }


def _nested_shares(utilities: Array, rho: float, groups: Array) -> Array:
    """(N, I) choice probabilities from utilities (N, I) without the error; `groups` are `NESTS` for each market."""
    exponentials = np.exp(utilities / (1 - rho))
    markets = groups // NESTS
    sums = np.zeros((NESTS * (markets.max() + 1), utilities.shape[1]))
    np.add.at(sums, groups, exponentials)
    values = sums ** (1 - rho)
    totals = 1 + values.reshape(-1, NESTS, utilities.shape[1]).sum(axis=1)
    probabilities: Array = exponentials / sums[groups] * values[groups] / totals[markets]
    return probabilities


def _rivals(values: Array, groups: Array) -> Array:
    """(N,) sums of values (N,) over the other products of a product's group."""
    sums: Array = np.bincount(groups, values)[groups] - values
    return sums


#: Parameters of simulated shares of cereals, at which they are evaluated, and where estimation starts. Prices are in
#: tenths of the data's unit and sugar in ten times its: parameters of one size favour L-BFGS-B, which PyBLP runs.
RCNL_SIGMA, RCNL_RHO = np.diag([1.5, 2.0]), 0.4
RCNL_STARTS = np.diag([0.8, 1.0]), 0.2


def rcnl_problem(lib: ModuleType, nodes: int) -> Any:
    """Nevo's cereals with simulated shares, product effects, and one group of mushy cereals and one of the others."""
    integration = lib.Integration("product", nodes)
    return lib.Problem(
        (lib.Formulation("0 + prices", absorb="C(product_ids)"), lib.Formulation("0 + I(10 * prices) + I(sugar / 10)")),
        simulate_cereals(lib),
        integration=integration,
    )


def rcnl_solve(lib: ModuleType, problem: Any) -> Any:
    """Two steps."""
    sigma, rho = RCNL_STARTS
    return problem.solve(sigma, rho=rho, optimization=_optimization(lib))


def rcnl_evaluate(lib: ModuleType, problem: Any) -> Any:
    """Objective, gradient and standard errors at the parameters of the simulation."""
    return problem.solve(
        RCNL_SIGMA, rho=RCNL_RHO, method="1s", optimization=lib.Optimization("return"), check_optimality="gradient"
    )


def simulate_cereals(lib: ModuleType, seed: int = 0) -> pd.DataFrame:
    """Nevo's table with shares of a random coefficients nested logit, and sums of rivals' instruments in the group.

    With the shares of the data and these instruments sigma is estimated to be zero, where there is no RCNL to time.
    """
    rng = np.random.default_rng(seed)
    products = pd.read_csv(lib.data.NEVO_PRODUCTS_LOCATION)
    N = len(products)
    codes = pd.factorize(products["product_ids"])[0]
    nests = products["mushy"].to_numpy()
    groups = NESTS * pd.factorize(products["market_ids"])[0] + nests
    effects = rng.normal(0, 0.5, codes.max() + 1)[codes]
    delta = effects - 30 * products["prices"].to_numpy() + rng.normal(0, 0.1, N)
    nodes = rng.normal(size=(2, 200))
    X2 = np.stack([10 * products["prices"], products["sugar"] / 10], axis=1)
    # The other two of four groups are empty, and do not count.
    shares = _nested_shares(delta[:, None] + X2 @ RCNL_SIGMA @ nodes, RCNL_RHO, groups).mean(axis=1)
    names = [name for name in products if name.startswith("demand_instruments")]
    more = {f"demand_instruments{len(names) + k}": _rivals(products[n], groups) for k, n in enumerate(names)}
    return products.assign(shares=shares, nesting_ids=nests, **more)


#: Parameters at which unequal markets are evaluated: K2 = 3, D = 1, 6 parameters.
UNEQUAL_SIGMA = np.diag([0.5, 0.3, 0.4])
UNEQUAL_PI = np.array([[0.3], [0.2], [-0.2]])


@dataclasses.dataclass(frozen=True)
class Tables:
    """Product and agent tables: markets are numbered from zero, in order."""

    products: dict[str, Array]
    agents: dict[str, Array]

    @property
    def pairs(self) -> int:
        """Number of pairs of products and agents in the same market."""
        return int(np.bincount(self.products["market_ids"]) @ np.bincount(self.agents["market_ids"]))

    def first(self, markets: int) -> "Tables":
        """The tables of the first markets alone."""
        parts = []
        for table in (self.products, self.agents):
            kept = table["market_ids"] < markets
            parts.append({name: values[kept] for name, values in table.items()})
        return Tables(*parts)


def unequal_problem(lib: ModuleType, tables: Tables) -> Any:
    """An economy with simulated shares."""
    return lib.Problem(
        (lib.Formulation("1 + prices + x"), lib.Formulation("1 + prices + x")),
        tables.products,
        lib.Formulation("0 + income"),
        tables.agents,
    )


def unequal_evaluate(lib: ModuleType, problem: Any) -> Any:
    """Objective, gradient and standard errors at fixed parameters."""
    return problem.solve(
        UNEQUAL_SIGMA, UNEQUAL_PI, method="1s", optimization=lib.Optimization("return"), check_optimality="gradient"
    )


def simulate_unequal(size: UnequalSize, seed: int = 0) -> Tables:
    """Markets of any size. Shares come from tastes 1.2 times as strong as those that are evaluated."""
    rng = np.random.default_rng(seed)
    fifth = size.agents // 5
    J = rng.integers(size.least, size.most + 1, size.markets)
    individuals = rng.integers(size.agents - fifth, size.agents + fifth + 1, size.markets)
    N, count = J.sum(), individuals.sum()
    x, xi, instruments = rng.uniform(0, 2, N), rng.normal(0, 0.3, N), rng.normal(size=(N, 8))
    prices = 1.5 + 0.05 * instruments.sum(axis=1) + 0.3 * x + 0.3 * xi
    X2 = np.stack([np.ones(N), prices, x], axis=1)
    nodes, income = rng.normal(size=(count, 3)), rng.normal(size=(count, 1))
    tastes = 1.2 * (nodes @ UNEQUAL_SIGMA.T + income @ UNEQUAL_PI.T)
    shares = np.empty(N)
    ends, ends_agents = np.cumsum(J), np.cumsum(individuals)
    for end, end_agents, products, people in zip(ends, ends_agents, J, individuals, strict=True):
        rows, who = slice(end - products, end), slice(end_agents - people, end_agents)
        delta = -3 - prices[rows] + 0.8 * x[rows] + xi[rows]
        exponentials = np.exp(delta[:, None] + X2[rows] @ tastes[who].T)
        shares[rows] = (exponentials / (1 + exponentials.sum(axis=0))).mean(axis=1)
    markets = np.repeat(np.arange(size.markets), J)
    products_table = {
        "market_ids": markets,
        "firm_ids": np.arange(N) % 5,
        "shares": shares,
        "prices": prices,
        "x": x,
        "demand_instruments": instruments,
    }
    agents_table = {
        "market_ids": np.repeat(np.arange(size.markets), individuals),
        "weights": np.repeat(1 / individuals, individuals),
        "nodes": nodes,
        "income": income[:, 0],
    }
    return Tables(products_table, agents_table)


def _optimization(lib: ModuleType) -> Any:
    """Each library's default routine, with the same tolerance of the gradient."""
    if lib.__name__ == "pyblp":
        return lib.Optimization("l-bfgs-b", {"ftol": 0, "gtol": GTOL})
    return lib.Optimization("trust-region", {"gtol": GTOL})
