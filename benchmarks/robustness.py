"""``python -m benchmarks.robustness``: methods that invert shares, on the same hard markets, blpjax's and PyBLP's.

The exit status is 1 if a market is reported as solved whose log shares are further off than `SOLVED`, measured in
extended precision. Both libraries get the same tables and run their inversions through `Problem`.
"""

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

import blpjax
from benchmarks import stress
from benchmarks.estimation import quiet
from benchmarks.stress import StressMarket

#: A market is solved if the method says so and log shares are off by at most this.
SOLVED = 1e-10

#: Each method's library and ``Iteration``. Limits on evaluations are the defaults.
METHODS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "blpjax default": ("blpjax", ()),
    "blpjax newton": ("blpjax", ("newton",)),
    "blpjax squarem": ("blpjax", ("squarem",)),
    "PyBLP squarem": ("pyblp", ("squarem",)),
    "PyBLP lm": ("pyblp", ("lm", {"xtol": 1e-14, "ftol": 1e-14}, True)),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a method made of T markets.

    Attributes
    ----------
    method : its name in `METHODS`.
    gaps : (T,) largest differences of log shares.
    reported : (T,) whether the method says that it solved the market.
    evaluations : (T,) evaluations of its map.
    seconds : for all markets: blpjax's compiled inversion, and PyBLP's ``solve``, which computes a little more.
    """

    method: str
    gaps: np.ndarray
    reported: np.ndarray
    evaluations: np.ndarray
    seconds: float

    @property
    def solved(self) -> np.ndarray:
        """(T,) whether the method says so and is right."""
        return self.reported & (self.gaps <= SOLVED)

    @property
    def wrong(self) -> np.ndarray:
        """(T,) whether the method says so and is wrong."""
        return self.reported & (self.gaps > SOLVED)

    def take(self, chosen: np.ndarray) -> "Outcome":
        """The same of some of the markets; `seconds` are those of all."""
        return dataclasses.replace(
            self, gaps=self.gaps[chosen], reported=self.reported[chosen], evaluations=self.evaluations[chosen]
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of methods, and one of families of markets; the exit status is 1 if a success was none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description="Inversion of hard shares.")
    parser.add_argument("--number", type=int, default=4, help="markets of each family (4)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which methods (all)")
    given = parser.parse_args(arguments)
    markets = stress.stress_markets(given.number)
    print(f"{len(markets)} markets, {given.number} of each of {len(stress.FAMILIES)} families\n")
    outcomes = []
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method in given.methods:
            outcomes.append(invert(method, markets))
    print("\n".join(method_lines(outcomes)) + "\n")
    print("\n".join(family_lines(outcomes, markets)))
    wrong = {o.method: int(o.wrong.sum()) for o in outcomes if o.method.startswith("blpjax") and o.wrong.any()}
    if wrong:
        print(f"\nFAILED: reported as solved with log shares further off than {SOLVED:g}: {wrong}")
    return 1 if wrong else 0


def invert(method: str, markets: Sequence[StressMarket]) -> Outcome:
    """Invert the shares of all markets by one method, those with nests apart."""
    name, options = METHODS[method]
    parts, seconds = [], 0.0
    for nested in (False, True):
        chosen = [n for n, market in enumerate(markets) if (market.rho > 0) == nested]
        if chosen:
            some = [markets[n] for n in chosen]
            found, spent = (_by_blpjax if name == "blpjax" else _by_pyblp)(options, some)
            parts.append(found.set_index(pd.Index(chosen)))
            seconds += spent
    table = pd.concat(parts).sort_index()
    gaps = np.array([stress.worst_gap(market, delta) for market, delta in zip(markets, table["delta"], strict=True)])
    return Outcome(method, gaps, table["reported"].to_numpy(bool), table["evaluations"].to_numpy(int), seconds)


def _by_blpjax(options: tuple[Any, ...], markets: Sequence[StressMarket]) -> tuple[pd.DataFrame, float]:
    problem = _problem(blpjax, markets)
    rho = markets[0].rho or None
    functions = problem.functions(
        np.eye(len(_used(markets))), rho=rho, iteration=blpjax.Iteration(*(options or ("anderson",)))
    )
    functions.inversion(functions.theta).delta.block_until_ready()
    begin = time.perf_counter()
    found = functions.inversion(functions.theta)
    found.delta.block_until_ready()
    seconds = time.perf_counter() - begin
    reported = np.asarray(blpjax.exceptions.succeeded(np.asarray(found.status)))
    return _table(problem, np.asarray(found.delta), reported, np.asarray(found.evaluations)), seconds


def _by_pyblp(options: tuple[Any, ...], markets: Sequence[StressMarket]) -> tuple[pd.DataFrame, float]:
    import pyblp

    pyblp.options.verbose = False
    problem = _problem(pyblp, markets)
    begin = time.perf_counter()
    results = problem.solve(
        np.eye(len(_used(markets))),
        rho=markets[0].rho or None,
        method="1s",
        optimization=pyblp.Optimization("return", compute_gradient=False),
        check_optimality="gradient",
        iteration=pyblp.Iteration(*options),
    )
    seconds = time.perf_counter() - begin
    reported, counts = np.asarray(results.fp_converged)[:, 0], np.asarray(results.contraction_evaluations)[:, 0]
    return _table(problem, np.asarray(results.delta), reported, counts), seconds


def _problem(library: ModuleType, markets: Sequence[StressMarket]) -> Any:
    """A problem with these markets, whose tastes are nodes: sigma is the identity."""
    used = _used(markets)
    columns = [f"x{k}" for k in used]
    goods, people = [], []
    rng = np.random.default_rng(0)
    for n, market in enumerate(markets):
        product = pd.DataFrame(market.X2[:, used], columns=columns)
        product.insert(0, "market_ids", f"{n:04d}")
        product["shares"] = market.shares
        product["prices"] = rng.uniform(size=len(product))
        if market.rho:
            product["nesting_ids"] = market.groups
        for k in range(stress.WIDTH + 1):
            product[f"demand_instruments{k}"] = rng.normal(size=len(product))
        goods.append(product)
        agent = pd.DataFrame(market.C[used].T, columns=[f"nodes{k}" for k in range(len(used))])
        agent.insert(0, "market_ids", f"{n:04d}")
        agent["weights"] = market.weights
        people.append(agent)
    formulations = library.Formulation("1 + prices"), library.Formulation("0 + " + " + ".join(columns))
    return library.Problem(
        formulations, pd.concat(goods, ignore_index=True), agent_data=pd.concat(people, ignore_index=True)
    )


def _used(markets: Sequence[StressMarket]) -> list[int]:
    """Columns of X2 that are not zero in all markets."""
    return [k for k in range(stress.WIDTH) if any(market.X2[:, k].any() for market in markets)]


def _table(problem: Any, delta: np.ndarray, reported: np.ndarray, evaluations: np.ndarray) -> pd.DataFrame:
    ids, delta = np.asarray(problem.products.market_ids).reshape(-1), delta.reshape(-1)
    deltas = [delta[ids == t] for t in problem.unique_market_ids]
    return pd.DataFrame({"delta": deltas, "reported": reported, "evaluations": evaluations})


def method_lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Rows of a Markdown table, one for each method."""
    yield (
        "| method | evaluations: median, most | solved | worst residual where solved "
        f"| up to {SOLVED:g}, reported or not | wrongly reported | seconds |"
    )
    yield "|---|---|---|---|---|---|---|"
    for o in outcomes:
        worst = o.gaps[o.solved].max(initial=0.0)
        counts = f"{np.median(o.evaluations):.0f}, {o.evaluations.max()}"
        yield (
            f"| {o.method} | {counts} | {int(o.solved.sum())} of {o.solved.size} ({o.solved.mean():.0%}) | {worst:.0e} "
            f"| {int((o.gaps <= SOLVED).sum())} | {int(o.wrong.sum())} | {o.seconds:.2f} |"
        )


def family_lines(outcomes: Sequence[Outcome], markets: Sequence[StressMarket]) -> Iterator[str]:
    """Rows of a Markdown table, one for each family: markets solved, and the median of evaluations."""
    families = np.array([market.family for market in markets])
    yield "| family | " + " | ".join(o.method for o in outcomes) + " |"
    yield "|---" * (len(outcomes) + 1) + "|"
    for family in dict.fromkeys(families):
        parts = [o.take(families == family) for o in outcomes]
        cells = (f"{int(o.solved.sum())} of {o.solved.size}, {np.median(o.evaluations):.0f}" for o in parts)
        yield f"| {family} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
