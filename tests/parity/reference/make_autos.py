"""Make the stored PyBLP results on the automobile data of Berry, Levinsohn and Pakes (1995), with a supply side.

Run one or more sections, or all of them when none is named::

    python tests/parity/reference/make_autos.py              # about 2 minutes on one core, with OMP_NUM_THREADS=1
    python tests/parity/reference/make_autos.py autos_fixed

Files are as those of ``make_reference.py``. Arrays with a row per product keep every ``EVERY``-th row, matrices with a
row and a column per product every ``EVERY_MATRIX``-th row, with ``null`` after the products of the row's market. What
is left out counts in norms: the square root of the sum of squares over each market's rows, by sorted market, (T,).
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyblp
from make_reference import Content, Polish, counters, make, take

EVERY = 100
EVERY_MATRIX = 450
MARKET = 1974  # the smallest, 72 products
BLOCK = 4

SIGMA = np.diag([3.612, 0, 4.628, 1.818, 1.050, 2.056])
PI = np.array([[0], [-43.501], [0], [0], [0], [0]])
OPTIONS: dict[str, Any] = {"costs_bounds": (0.001, None), "W_type": "clustered", "se_type": "clustered"}


def autos_fixed() -> Content:
    """Autos with log costs, bounded below, evaluated at the published starting values, one step, clustered.

    ``variants`` are other costs_bounds, which bind for some products, and linear costs.
    """
    variants = {}
    for name, costs_type, bounds in (("clipped", "log", (3.0, 12.0)), ("linear", "linear", None)):
        results = _problem(costs_type).solve(SIGMA, PI, **_at_start() | {"costs_bounds": bounds})
        evaluation = _evaluation(results)
        names = ("moments", "omega", "omega_by_theta_jacobian", "clipped_costs")
        variants[name] = _estimates(results) | {name: evaluation[name] for name in names}
    base = _problem().solve(SIGMA, PI, **_at_start())
    return {"base": _estimates(base) | _evaluation(base), "variants": variants}


def autos_two_steps() -> Content:
    """Autos from the published starting values, W updated there first, two clustered steps, both polished."""
    polish = Polish("l-bfgs-b", {"gtol": 1e-8, "ftol": 0, "maxiter": 1000, "maxfun": 2000})
    results = _problem().solve(SIGMA, PI, initial_update=True, optimization=pyblp.Optimization(polish), **OPTIONS)
    last = results.last_results
    return (
        _estimates(results)
        | _evaluation(results)
        | polish.report()
        | take(results, "hessian", "reduced_hessian_eigenvalues")
        | {"hansen": results.run_hansen_test(), "first_step": _estimates(last) | take(last, "projected_gradient_norm")}
    )


def autos_post() -> Content:
    """Everything after estimation on autos at the published starting values, and a merger of firms 16 and 19.

    Columns of ``elasticities`` and the like are products of the row's market. ``demand_hessians`` and
    ``profit_hessians`` are those of the first products of ``market``. Weights do not sum to one in any market.
    """
    results = _problem().solve(SIGMA, PI, **_at_start())
    ids = np.asarray(results.problem.products.market_ids).ravel()
    costs = results.compute_costs()
    firm_ids = pd.read_csv(pyblp.data.BLP_PRODUCTS_LOCATION)["firm_ids"].replace(16, 19)
    prices = results.compute_prices(firm_ids, costs=costs)
    shares = results.compute_shares(prices)
    elasticities = results.compute_elasticities()
    matrices = {
        "elasticities": elasticities,
        "elasticities_delta": results.compute_elasticities(None),
        "elasticities_hpwt": results.compute_elasticities("hpwt"),
        "demand_jacobians": results.compute_demand_jacobians(),
        "diversion_ratios": results.compute_diversion_ratios(),
        "long_run_diversion_ratios": results.compute_long_run_diversion_ratios(),
        "passthrough": results.compute_passthrough(),
        "probabilities": results.compute_probabilities(),
    }
    by_product = {
        "own_elasticities": results.extract_diagonals(elasticities),
        "costs": costs,
        "markups": results.compute_markups(costs=costs),
        "profits": results.compute_profits(costs=costs),
        "shares": results.compute_shares(),
        "delta": results.compute_delta(),
        "approximate_prices": results.compute_approximate_prices(firm_ids, costs=costs),
        "prices_after": prices,
        "shares_after": shares,
        "markups_after": results.compute_markups(prices, costs),
        "profits_after": results.compute_profits(prices, shares, costs),
    }
    by_market = {
        "own_elasticity_means": results.extract_diagonal_means(elasticities),
        "aggregate_elasticities": results.compute_aggregate_elasticities(factor=0.1),
        "aggregate_elasticities_delta": results.compute_aggregate_elasticities(factor=0.1, name=None),
        "hhi": results.compute_hhi(),
        "hhi_after": results.compute_hhi(firm_ids, shares),
        "surpluses": results.compute_consumer_surpluses(),
        "surpluses_after": results.compute_consumer_surpluses(prices),
    }
    surpluses = results.compute_consumer_surpluses(keep_all=True)
    people = results.problem.unique_market_ids.tolist().index(MARKET)
    demand, profit = (
        compute(market_id=MARKET) for compute in (results.compute_demand_hessians, results.compute_profit_hessians)
    )
    return {
        "market": MARKET,
        "matrices": {name: _thin(values, ids, EVERY_MATRIX) for name, values in matrices.items()},
        "by_product": {name: _thin(values, ids, EVERY) for name, values in by_product.items()},
        "by_market": by_market,
        "surpluses_of_all": np.asarray(surpluses)[people, :40],
        "demand_hessians": {"block": demand[:BLOCK, :BLOCK, :BLOCK], "norm": np.sqrt((demand**2).sum())},
        "profit_hessians": {"block": profit[:BLOCK, :BLOCK, :BLOCK], "norm": np.sqrt((profit**2).sum())},
    }


SECTIONS: dict[str, Callable[[], Content]] = {
    section.__name__: section for section in (autos_fixed, autos_post, autos_two_steps)
}


def _problem(costs_type: str = "log") -> pyblp.Problem:
    return pyblp.Problem(
        (
            pyblp.Formulation("1 + hpwt + air + mpd + space"),
            pyblp.Formulation("1 + prices + hpwt + air + mpd + space"),
            pyblp.Formulation("1 + log(hpwt) + air + log(mpg) + log(space) + trend"),
        ),
        pd.read_csv(pyblp.data.BLP_PRODUCTS_LOCATION),
        pyblp.Formulation("0 + I(1 / income)"),
        pd.read_csv(pyblp.data.BLP_AGENTS_LOCATION),
        costs_type=costs_type,
    )


def _at_start() -> dict[str, Any]:
    return OPTIONS | {
        "method": "1s",
        "optimization": pyblp.Optimization("return"),
        "check_optimality": "gradient",
    }


def _estimates(results: pyblp.ProblemResults) -> Content:
    return take(
        results,
        *("objective", "theta", "theta_labels", "sigma", "pi", "beta", "gamma", "gradient", "projected_gradient_norm"),
        *("sigma_se", "pi_se", "beta_se", "gamma_se", "parameter_covariances"),
    )


def _evaluation(results: pyblp.ProblemResults) -> Content:
    ids = np.asarray(results.problem.products.market_ids).ravel()
    by_product = ("delta", "xi", "omega", "tilde_costs", "xi_by_theta_jacobian", "omega_by_theta_jacobian")
    return (
        take(results, "moments", "moments_jacobian", "W", "updated_W")
        | {name: _thin(getattr(results, name), ids, EVERY) for name in by_product}
        | {name: np.flatnonzero(getattr(results, name)) for name in ("clipped_shares", "clipped_costs")}
        | counters(results)
    )


def _thin(values: Any, market_ids: np.ndarray, every: int) -> Content:
    """Some rows, and the norm of each market's rows."""
    array = np.asarray(values, dtype=float)
    squares = pd.Series(np.nansum(array.reshape(len(array), -1) ** 2, axis=1)).groupby(market_ids).sum()
    return {"rows": array[::every], "norms": np.sqrt(squares.to_numpy())}


if __name__ == "__main__":
    make(SECTIONS, sys.argv[1:])
