"""Measurements behind `docs/choose.md`: how many nodes, and which optimiser.

``python -m benchmarks.choices`` prints two tables, in some minutes.

Integration: errors of rules on Nevo's cereals (20 markets, four random coefficients, no demographics) at fixed
parameters. For each rule its number of nodes in a market, and root mean squared errors of mean utilities and of
own-price elasticities (relative), against a product rule of 9 nodes in each dimension; for draws over ten seeds.

Optimisers: Nevo's cereals with demographics (13 parameters, one step) from the published starting values and from
random ones, which are the first of those of ``python -m benchmarks --rows starts``: whether each routine came to the
known optimum, and how many evaluations of the objective it took.
"""

import statistics
import warnings

import numpy as np
import pandas as pd

import blpjax
from benchmarks import models
from benchmarks.starts import draw_starts

SIGMA = np.diag([0.558, 3.312, 0.006, 0.093]) * 2
#: Rules and their sizes. Quadrature has levels, draws have numbers of them.
RULES = [("monte_carlo", (50, 200, 1000)), ("mlhs", (50, 200, 1000)), ("halton", (50, 200, 1000))]
RULES += [("grid", (5, 7, 9)), ("product", (3, 5))]
SEEDS = 10
OPTIMIZERS = ("trust-region", "optax-l-bfgs", "bfgs", "l-bfgs-b")
STARTS = 10
MARKETS = 20


def outputs(products: pd.DataFrame, integration: blpjax.Integration) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of nodes in a market, mean utilities, and own-price elasticities."""
    formulas = (
        blpjax.Formulation("0 + prices", absorb="C(product_ids)"),
        blpjax.Formulation("1 + prices + sugar + mushy"),
    )
    problem = blpjax.Problem(formulas, products, integration=integration)
    fixed = {"sigma_bounds": (SIGMA, SIGMA), "beta": [-30.0], "beta_bounds": ([-30.0], [-30.0])}
    results = problem.solve(SIGMA, **fixed, method="1s", optimization=blpjax.Optimization("return"))
    return problem.I // problem.T, results.delta, results.extract_diagonals(results.compute_elasticities())


def main() -> None:
    """Print both tables."""
    blpjax.options.verbose = False
    print_integration()
    print()
    print_optimizers()


def print_integration() -> None:
    """How many nodes."""
    known, _ = blpjax.data.load_nevo()
    products = known[known["market_ids"].isin(known["market_ids"].unique()[:MARKETS])].reset_index(drop=True)
    _, delta, elasticities = outputs(products, blpjax.Integration("product", 9))
    print("| rule | nodes | error of delta | error of own-price elasticities |\n|---|---|---|---|")
    for name, sizes in RULES:
        for size in sizes:
            drawn = name in ("monte_carlo", "mlhs", "halton")
            seeds: list[int | None] = list(range(SEEDS)) if drawn else [None]
            errors = []
            for seed in seeds:
                rule = blpjax.Integration(name, size, {"seed": seed} if drawn else None)
                nodes, found, own = outputs(products, rule)
                errors.append([((found - delta) ** 2).mean(), ((own / elasticities - 1) ** 2).mean()])
            first, second = np.sqrt(np.mean(errors, axis=0))
            print(f"| `{name}`, {size} | {nodes} | {first:.1e} | {second:.1e} |", flush=True)


def print_optimizers() -> None:
    """Which optimiser."""
    problem = models.nevo_problem(blpjax)
    starts = [(models.NEVO_SIGMA, models.NEVO_PI), *((one.sigma, one.pi) for one in draw_starts(STARTS - 1))]
    print("| routine | at the known optimum | evaluations, median | most |\n|---|---|---|---|")
    for name in OPTIMIZERS:
        evaluations, reached = [], 0
        for sigma, pi in starts:
            optimization = blpjax.Optimization(name)
            given = {"method": "1s", "check_optimality": "gradient", "optimization": optimization}
            if optimization.supports_bounds:
                given["sigma_bounds"] = models.unbounded(sigma)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = problem.solve(sigma, pi, **given)
            evaluations.append(int(results.objective_evaluations))
            reached += bool(results.converged) and models.at_optimum(float(results.objective))
        print(
            f"| `{name}` | {reached} of {STARTS} | {statistics.median(evaluations):g} | {max(evaluations)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
