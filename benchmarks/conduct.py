"""A test of conduct where there are very many small markets, from simulated data to printed statistics.

    python -m benchmarks.conduct --markets 400000

Each market has two firms with a product, and demand is a nested logit of one group. Five models are tested with three
sets of instruments, with the demand adjustment, and with errors that are correlated within 5,000 clusters.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

import blpjax
from blpjax import Bertrand, Formulation
from blpjax.machine.memory import peak_memory

Value = TypeVar("Value")

MODELS = {
    "Bertrand": Bertrand(),
    "Cournot": blpjax.Cournot(),
    "collusion": blpjax.Monopoly(),
    "competition": blpjax.PerfectCompetition(),
    "half": Bertrand(weights=0.5),
}
SETS = {
    "costs": Formulation("0 + rival_w"),
    "characteristics": Formulation("0 + rival_x"),
    "both": Formulation("0 + rival_w + rival_x"),
}


def simulate(markets: int) -> dict[str, np.ndarray]:
    """Product data of a Bertrand equilibrium."""
    rng, N = np.random.default_rng(0), 2 * markets
    market_ids = np.repeat(np.arange(markets), 2)
    data = {"market_ids": market_ids, "firm_ids": np.tile([0, 1], markets), "clustering_ids": market_ids % 5000}
    data |= {"nesting_ids": np.zeros(N, int), "x": rng.uniform(size=N), "w": rng.uniform(size=N)}
    for name in ("x", "w"):
        data[f"rival_{name}"] = data[name].reshape(markets, 2)[:, ::-1].reshape(-1)
    simulation = blpjax.Simulation(
        (Formulation("1 + prices + x"), None, Formulation("1 + x + w")),
        data,
        beta=[1, -2, 1],
        rho=0.4,
        gamma=[1, 0.3, 0.5],
        xi_variance=0.1,
        omega_variance=0.05,
        correlation=0.3,
        seed=0,
    )
    solved = simulation.replace_endogenous()
    data |= {name: np.ravel(solved.product_data[name]) for name in ("prices", "shares")}
    return data | {"demand_instruments": np.c_[data["w"], data["rival_x"], data["rival_w"]]}


def main() -> None:
    """Print seconds and the largest resident memory so far of each part."""
    parser = argparse.ArgumentParser(description="Time a test of conduct with very many small markets.")
    parser.add_argument("--markets", type=int, default=400_000)
    blpjax.options.verbose = False
    data = _timed("simulation", lambda: simulate(parser.parse_args().markets))
    problem = _timed("Problem", lambda: blpjax.Problem(Formulation("1 + prices + x"), data))
    results: Any = _timed("solve", lambda: problem.solve(rho=0.3, method="1s", se_type="clustered"))
    _timed("compute_markups", results.compute_markups)
    costs = Formulation("1 + x + w")
    test = _timed("test_conduct", lambda: results.test_conduct(MODELS, costs, SETS, se_type="clustered"))
    _timed("test_conduct again", lambda: results.test_conduct(MODELS, costs, SETS, se_type="clustered"))
    print(test)


def _timed(what: str, function: Callable[[], Value]) -> Value:
    wall, used = time.perf_counter(), _processor()
    value = function()
    seconds = f"{_processor() - used:7.1f} s of processors, {time.perf_counter() - wall:7.1f} s"
    print(f"{what:20s} {seconds}, {peak_memory() / 2**30:.2f} GiB", flush=True)
    return value


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
