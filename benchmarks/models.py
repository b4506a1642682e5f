"""The models that are timed, written once for both libraries: each function takes the module `pyblp` or `blpjax`."""

import itertools
import math
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.settings import Size

Array = np.ndarray

#: Published starting values for Nevo's cereals (Nevo 2000; PyBLP's tutorial).
NEVO_SIGMA = np.diag([0.3302, 2.4526, 0.0163, 0.2441])
NEVO_PI = np.array(
    [
        # income, income^2, age, child
        [5.4819, 0, 0.2037, 0],  # constant
        [15.8935, -1.2000, 0, 2.6342],  # prices
        [-0.2506, 0, 0.0511, 0],  # sugar
        [1.2650, 0, -0.8091, 0],  # mushy
    ]
)

#: Objective at the unbounded one-step optimum.
NEVO_OBJECTIVE = 4.5615141648
OBJECTIVE_TOLERANCE = 1e-6


def nevo_problem(lib: ModuleType) -> Any:
    """Nevo's cereals with demographics and absorbed product effects."""
    return lib.Problem(
        (lib.Formulation("0 + prices", absorb="C(product_ids)"), lib.Formulation("1 + prices + sugar + mushy")),
        pd.read_csv(lib.data.NEVO_PRODUCTS_LOCATION),
        lib.Formulation("0 + income + income_squared + age + child"),
        pd.read_csv(lib.data.NEVO_AGENTS_LOCATION),
    )


def nevo_solve(
    lib: ModuleType, problem: Any, check_optimality: str, sigma: Array = NEVO_SIGMA, pi: Array = NEVO_PI
) -> Any:
    """One GMM step without bounds: blpjax's default routine, and BFGS, which ignores bounds, in PyBLP."""
    if lib.__name__ == "pyblp":
        options: dict[str, Any] = {"optimization": lib.Optimization("bfgs", {"gtol": 1e-5})}
    else:
        options = {"sigma_bounds": unbounded(sigma)}
    return problem.solve(sigma, pi, method="1s", check_optimality=check_optimality, **options)


def unbounded(matrix: Array) -> tuple[Array, Array]:
    """Infinite lower and upper bounds on the elements of a matrix."""
    bound = np.full(matrix.shape, math.inf)
    return -bound, bound


def at_optimum(objective: float) -> bool:
    """Whether an objective is that of Nevo's unbounded optimum."""
    return abs(objective / NEVO_OBJECTIVE - 1) <= OBJECTIVE_TOLERANCE


#: Parameters of the simulated economies at which they are evaluated: K2 = 4, D = 4, 20 parameters.
SIMULATED_SIGMA = np.diag([0.5, 0.3, 0.4, 0.6])
SIMULATED_PI = np.array([[0.3, -0.2, 0.1, 0.1], [0.2, 0.1, -0.1, 0.1], [-0.1, 0.2, 0.2, 0.1], [0.1, 0.1, -0.2, 0.3]])


def simulated_problem(lib: ModuleType, size: Size) -> Any:
    """An economy with simulated shares, which need not be an equilibrium to take the same work."""
    products, agents = simulate(size)
    return lib.Problem(
        (lib.Formulation("1 + prices + x + y"), lib.Formulation("1 + prices + x + y")),
        products,
        lib.Formulation("0 + income + age + children + education"),
        agents,
    )


def simulated_solve(lib: ModuleType, problem: Any) -> Any:
    """Objective, Jacobian, moments and standard errors at fixed parameters."""
    return problem.solve(
        SIMULATED_SIGMA, SIMULATED_PI, method="1s", optimization=lib.Optimization("return"), check_optimality="gradient"
    )


def simulate(size: Size, seed: int = 0) -> tuple[dict[str, Array], dict[str, Array]]:
    """Product and agent tables. Shares come from tastes 1.2 times as strong as those that are evaluated."""
    rng = np.random.default_rng(seed)
    T, J, individuals = size.markets, size.products, size.agents
    x, y = rng.uniform(0, 2, (2, T, J))
    xi = rng.normal(0, 0.3, (T, J))
    instruments = rng.normal(size=(T, J, 24))
    prices = 1.5 + 0.05 * instruments.sum(axis=2) + 0.3 * x + 0.3 * xi
    nodes, demographics = rng.normal(size=(T, individuals, 4)), rng.normal(size=(T, individuals, 4))
    shares = np.empty((T, J))
    for t in range(T):
        X2 = np.stack([np.ones(J), prices[t], x[t], y[t]], axis=1)
        tastes = 1.2 * (SIMULATED_SIGMA @ nodes[t].T + SIMULATED_PI @ demographics[t].T)
        exponentials = np.exp((-2 - prices[t] + 0.8 * x[t] + 0.4 * y[t] + xi[t])[:, None] + X2 @ tastes)
        shares[t] = (exponentials / (1 + exponentials.sum(axis=0))).mean(axis=1)
    products = {
        "market_ids": np.repeat(np.arange(T), J),
        "firm_ids": np.tile(np.arange(J) % 5, T),
        "shares": shares.ravel(),
        "prices": prices.ravel(),
        "x": x.ravel(),
        "y": y.ravel(),
        "demand_instruments": instruments.reshape(T * J, -1),
    }
    names = ("income", "age", "children", "education")
    agents = {
        "market_ids": np.repeat(np.arange(T), individuals),
        "weights": np.full(T * individuals, 1 / individuals),
        "nodes": nodes.reshape(T * individuals, 4),
        **{name: demographics[:, :, d].ravel() for d, name in enumerate(names)},
    }
    return products, agents


#: Published estimates of Berry, Levinsohn and Pakes (1995), the starting values of PyBLP's tutorial.
AUTOS_SIGMA = np.diag([3.612, 0, 4.628, 1.818, 1.050, 2.056])
AUTOS_PI = np.array([[0.0], [-43.501], [0.0], [0.0], [0.0], [0.0]])

#: Objective where both clustered steps end.
AUTOS_OBJECTIVE = 497.3356615

#: Firms of the automobile data that merge: the first becomes part of the second.
AUTOS_MERGER = {16: 19}


def autos_problem(lib: ModuleType) -> Any:
    """The automobiles with log costs. Their integration weights do not sum to one, and are not warned of."""
    tolerance = lib.options.weights_tol
    lib.options.weights_tol = math.inf
    try:
        with warnings.catch_warnings():
            # Prices matter through income alone.
            warnings.filterwarnings("ignore", message="'prices' are in X2 but not in X1")
            return lib.Problem(
                (
                    lib.Formulation("1 + hpwt + air + mpd + space"),
                    lib.Formulation("1 + prices + hpwt + air + mpd + space"),
                    lib.Formulation("1 + log(hpwt) + air + log(mpg) + log(space) + trend"),
                ),
                pd.read_csv(lib.data.BLP_PRODUCTS_LOCATION),
                lib.Formulation("0 + I(1 / income)"),
                pd.read_csv(lib.data.BLP_AGENTS_LOCATION),
                costs_type="log",
            )
    finally:
        lib.options.weights_tol = tolerance


def autos_solve(lib: ModuleType, problem: Any, **options: Any) -> Any:
    """As in PyBLP's tutorial: two clustered steps by the default routine, W updated at the starting values."""
    return problem.solve(
        AUTOS_SIGMA,
        AUTOS_PI,
        costs_bounds=(0.001, None),
        W_type="clustered",
        se_type="clustered",
        **{"initial_update": True} | options,
    )


def autos_evaluate(lib: ModuleType, problem: Any, check_optimality: str = "gradient") -> Any:
    """One step at the starting values: objective, gradient, standard errors, and perhaps the Hessian."""
    return autos_solve(
        lib,
        problem,
        initial_update=False,
        method="1s",
        optimization=lib.Optimization("return"),
        check_optimality=check_optimality,
    )


def autos_post(results: Any) -> dict[str, Array]:
    """Everything after estimation of the automobiles, and a merger."""
    elasticities, costs = results.compute_elasticities(), results.compute_costs()
    outputs = {
        "elasticities": elasticities,
        "elasticities of delta": results.compute_elasticities(name=None),
        "aggregate elasticities": results.compute_aggregate_elasticities(factor=0.1),
        "diversion ratios": results.compute_diversion_ratios(),
        "long-run diversion ratios": results.compute_long_run_diversion_ratios(),
        "probabilities": results.compute_probabilities(),
        "shares": results.compute_shares(),
        "surpluses": results.compute_consumer_surpluses(),
        "surpluses of all agents": results.compute_consumer_surpluses(keep_all=True),
        "own elasticities": results.extract_diagonals(elasticities),
        "mean own elasticities": results.extract_diagonal_means(elasticities),
        "costs": costs,
        "markups": results.compute_markups(costs=costs),
        "profits": results.compute_profits(costs=costs),
        "HHI": results.compute_hhi(),
        "passthrough": results.compute_passthrough(),
    }
    firm_ids = pd.Series(np.ravel(results.problem.products.firm_ids)).replace(AUTOS_MERGER).to_numpy()
    prices = results.compute_prices(firm_ids, costs=costs)
    shares = results.compute_shares(prices)
    outputs |= {
        "approximate prices of the merger": results.compute_approximate_prices(firm_ids, costs=costs),
        "prices after the merger": prices,
        "shares after the merger": shares,
        "HHI after the merger": results.compute_hhi(firm_ids, shares),
        "profits after the merger": results.compute_profits(prices, shares, costs),
        "surpluses after the merger": results.compute_consumer_surpluses(prices),
    }
    return {name: np.asarray(values, dtype=float) for name, values in outputs.items()}


def simulation(lib: ModuleType, size: Size, seed: int = 0) -> Any:
    """Markets with five firms whose prices and shares are still to be found; xi and omega are given."""
    rng = np.random.default_rng(seed)
    T, J, individuals = size.markets, size.products, size.agents
    x, w = rng.uniform(0, 2, (2, T * J))
    xi, omega = rng.multivariate_normal([0, 0], [[0.09, 0.01], [0.01, 0.01]], T * J).T
    products = {
        "market_ids": np.repeat(np.arange(T), J),
        "firm_ids": np.tile(np.arange(J) % 5, T),
        "x": x,
        "w": w,
    }
    agents = {
        "market_ids": np.repeat(np.arange(T), individuals),
        "weights": np.full(T * individuals, 1 / individuals),
        "nodes": rng.normal(size=(T * individuals, 3)),
    }
    return lib.Simulation(
        (lib.Formulation("1 + prices + x"), lib.Formulation("1 + prices + x"), lib.Formulation("1 + w + x")),
        products,
        beta=[-1.0, -2.0, 1.0],
        sigma=np.diag([0.5, 0.3, 0.6]),
        gamma=[0.5, 0.5, 0.3],
        agent_data=agents,
        xi=xi,
        omega=omega,
    )


def many_mergers(firm_ids: Array, number: int) -> list[tuple[Any, ...]]:
    """All pairs of firms and so many triples, in a random order that is always the same."""
    firms = np.unique(firm_ids).tolist()
    pairs, triples = (list(itertools.combinations(firms, size)) for size in (2, 3))
    state = np.random.RandomState(0)
    chosen = [*pairs, *(triples[k] for k in state.permutation(len(triples)))][:number]
    return [chosen[k] for k in state.permutation(len(chosen))]


def merge_one_by_one(results: Any, firm_ids: Array, mergers: list[tuple[Any, ...]]) -> Array:
    """Mean consumer surplus after each merger."""
    costs, found = results.compute_costs(), []
    for merger in mergers:
        merged = np.where(np.isin(firm_ids, merger), merger[0], firm_ids)
        prices = results.compute_prices(merged, costs=costs)
        found.append(float(np.mean(results.compute_consumer_surpluses(prices))))
    return np.array(found)
