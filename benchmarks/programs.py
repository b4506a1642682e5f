"""What a first answer waits for: the programs of small cases in new processes, with an empty and with a filled store.

``python -m benchmarks.programs rcnl`` runs one case in this process and prints JSON.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import models
from benchmarks.processes import run_module
from benchmarks.rows import Row, Timing
from benchmarks.settings import Settings

#: JAX's events of what is done for a program, by what a row calls it.
_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
    "/blpjax/programs/read": "reading",
}


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Numbers of programs that were compiled and read, their instructions, and seconds of each kind of work.

    `cpu` are the process's own seconds on all cores, imports included, and `wall` those on the clock.
    """

    compiled: int
    read: int
    instructions: int
    seconds: dict[str, float]
    cpu: float
    wall: float


def logit(lib: ModuleType) -> None:
    """Plain logit of Nevo's cereals with absorbed product effects, two steps."""
    products = pd.read_csv(lib.data.NEVO_PRODUCTS_LOCATION)
    lib.Problem(lib.Formulation("prices", absorb="C(product_ids)"), products).solve()


def nested(lib: ModuleType) -> None:
    """Nested logit of twenty markets, two steps."""
    products, _ = _few_markets(lib, 20)
    lib.Problem(lib.Formulation("1 + prices + sugar"), products).solve(rho=0.5)


def rcnl(lib: ModuleType) -> None:
    """Random coefficients nested logit with supply of a dozen markets: an evaluation, all outputs, a merger."""
    products, agents = _few_markets(lib, 12)
    formulas = ("1 + prices + sugar", "1 + prices", "1 + sugar")
    problem = lib.Problem(tuple(map(lib.Formulation, formulas)), products, lib.Formulation("0 + income"), agents)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = problem.solve(
            np.diag([0.3, 0.2]),
            np.array([[0.2], [0.0]]),
            rho=0.3,
            beta=[None, -20.0, None],
            method="1s",
            optimization=lib.Optimization("return"),
        )
    costs = results.compute_costs()
    for name in ("elasticities", "aggregate_elasticities", "diversion_ratios", "long_run_diversion_ratios"):
        getattr(results, f"compute_{name}")()
    for name in ("probabilities", "shares", "consumer_surpluses", "markups", "profits", "hhi", "passthrough"):
        getattr(results, f"compute_{name}")()
    merged = products["firm_ids"].replace(2, 1)
    prices = results.compute_prices(merged, costs=costs)
    shares = results.compute_shares(prices)
    results.compute_hhi(merged, shares)
    results.compute_profits(prices, shares, costs)
    results.compute_consumer_surpluses(prices)


def nevo(lib: ModuleType) -> None:
    """Nevo's cereals with demographics, one step, with the Hessian."""
    models.nevo_solve(lib, models.nevo_problem(lib), "both")


def autos(lib: ModuleType) -> None:
    """The automobiles with their supply side: one evaluation."""
    models.autos_evaluate(lib, models.autos_problem(lib))


CASES: dict[str, Callable[[ModuleType], None]] = {f.__name__: f for f in (logit, nested, rcnl, nevo, autos)}


def programs_rows(settings: Settings) -> Iterator[Row]:
    """Two rows for each case: seconds of whole processes with an empty and with a filled store, and their parts."""
    for name, case in CASES.items():
        theirs: list[float] = []
        found: dict[str, list[tuple[Waiting, float]]] = {"empty": [], "filled": []}
        for _ in range(settings.repeat):
            if settings.pyblp:
                theirs.append(run_case(name, "pyblp", "0")[1])
            with tempfile.TemporaryDirectory() as store:
                for runs in found.values():
                    runs.append(run_case(name, "blpjax", store))
        for state, runs in found.items():
            last = runs[-1][0]
            yield Row(
                f"programs, {name}, {state} store",
                size=(case.__doc__ or "").partition(":")[0].rstrip("."),
                first=Timing(tuple(seconds for _, seconds in runs)),
                pyblp=Timing(tuple(theirs)) if theirs else None,
                details={
                    "programs compiled, read": f"{last.compiled}, {last.read}",
                    "instructions": f"{last.instructions}",
                    "seconds": ", ".join(f"{kind} {seconds:.2f}" for kind, seconds in last.seconds.items()),
                    "CPU seconds of the process": f"{last.cpu:.2f}",
                },
            )


def run_case(name: str, library: str, store: str) -> tuple[Waiting, float]:
    """Run a case in a new process with a directory for programs: see `run_module`."""
    line, seconds = run_module("benchmarks.programs", name, library, cache=store)
    return Waiting(**json.loads(line)), seconds


def main(name: str, library: str) -> None:
    """Run a case in this process."""
    began = time.perf_counter()
    seconds = dict.fromkeys(_EVENTS.values(), 0.0)
    counts = dict.fromkeys(_EVENTS.values(), 0)

    def listen(event: str, duration: float, **_: Any) -> None:
        if event in _EVENTS:
            seconds[_EVENTS[event]] += duration
            counts[_EVENTS[event]] += 1

    if library == "blpjax":
        import jax

        jax.monitoring.register_event_duration_secs_listener(listen)
    module = __import__(library)
    module.options.verbose = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CASES[name](module)
    cpu, wall = time.process_time(), time.perf_counter() - began
    instructions = 0
    if library == "blpjax":
        from blpjax.machine.compilation import compiled_programs

        for compiled in compiled_programs():
            with contextlib.suppress(Exception):  # what was read may have no text
                instructions += (compiled.as_text() or "").count(" = ")
    found = Waiting(counts["compiling"], counts["reading"], instructions, seconds, cpu, wall)
    print(json.dumps(dataclasses.asdict(found)))


def _few_markets(lib: ModuleType, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Some markets of Nevo's cereals, with groups by mushy."""
    products = pd.read_csv(lib.data.NEVO_PRODUCTS_LOCATION)
    agents = pd.read_csv(lib.data.NEVO_AGENTS_LOCATION)
    markets = sorted(products["market_ids"].unique())[:number]
    products = products[products["market_ids"].isin(markets)].reset_index(drop=True)
    products["nesting_ids"] = products["mushy"]
    products["supply_instruments0"] = products["demand_instruments0"]
    products["supply_instruments1"] = products["demand_instruments1"]
    return products, agents[agents["market_ids"].isin(markets)].reset_index(drop=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
