"""A Monte Carlo study in batches of different sizes beside single replications by PyBLP, in one process.

The design is that of PyBLP's simulation tutorial: 50 markets of 20 products of 10 firms, a random coefficient on one
characteristic, demand and supply, two steps. A replication is simulated, instruments are built, and it is estimated.
"""

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import blpjax
from benchmarks import study_models
from benchmarks.estimation import measure_pyblp, quiet
from benchmarks.processes import gibibytes, goal_reached, run_process
from benchmarks.rows import Row, Timing, measure
from benchmarks.settings import Settings
from blpjax.machine import compilation

#: Warm ratio to PyBLP, for each replication, that is aimed at.
GOAL = 200


def study_rows(settings: Settings) -> Iterator[Row]:
    """Batches of different sizes, jointly with supply, and the demand side alone."""
    with quiet():
        for supply in (True, False):
            theirs = _time_pyblp(settings, supply) if settings.pyblp else None
            for size in settings.batches if supply else settings.batches[-1:]:
                yield _batch_row(settings, supply, size, theirs)


def _batch_row(settings: Settings, supply: bool, size: int, theirs: Timing | None) -> Row:
    compilation.forget_programs()
    made = study_models.study(blpjax, settings.study_markets, supply)
    first = measure(lambda: made.run(size, batch_size=size))
    results = None

    def again() -> None:
        nonlocal results
        results = made.run(size, batch_size=size)

    warm = measure(again, 3)
    assert results is not None
    each = Timing(tuple(seconds / size for seconds in warm.seconds))
    row = Row(
        f"study, {'joint' if supply else 'demand'}, batches of {size}",
        size=f"T={settings.study_markets} J=20 I=9, seconds by replication",
        compile=first.median - warm.median,
        first=first,
        warm=each,
        pyblp=theirs,
        converged=(bool(results.table["ok"].mean() > 0.95),),
        failure="" if results.table["ok"].mean() > 0.95 else "more than one replication in twenty failed",
    )
    failures = int((~results.table["ok"]).sum() / len(made.labels))
    details: dict[str, Any] = {"first run, seconds": f"{first}", "failures": f"{failures} of {size}"}
    if supply:
        alone = run_process("study", "blpjax", str(settings.study_markets), str(size)).report
        details["peak memory of a process"] = gibibytes(alone.peak)
    if theirs is not None:
        details["goal"] = goal_reached(row, GOAL)
    return dataclasses.replace(row, first=None, details=details)


def _time_pyblp(settings: Settings, supply: bool) -> Timing:
    """Replications by PyBLP: simulation, instruments and two steps."""
    pyblp = importlib.import_module("pyblp")
    pyblp.options.verbose = False
    seeds = iter(range(100))

    def replicate() -> None:
        truth = study_models.simulation(pyblp, settings.study_markets, next(seeds))
        problem = study_models.problem_of(truth, supply)
        routine = pyblp.Optimization("l-bfgs-b", {"gtol": 1e-5})
        problem.solve(sigma=np.array([[0.5]]), optimization=routine, **study_models.start(supply))

    return measure_pyblp(replicate, settings.repeat)
