"""Rows that need processes of their own: whole runs of a script, and peak memory."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.child import Report
from benchmarks.comparison import Outcome, compare
from benchmarks.models import at_optimum
from benchmarks.rows import Row, Timing
from benchmarks.settings import Settings

ROOT = Path(__file__).parents[1]

#: Peak resident memory that the memory row may use, compilation included.
MEMORY_LIMIT = 6 * 2**30

# JAX's own settings of its cache would win over the directory that a row chooses.
_CACHE_VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@dataclasses.dataclass(frozen=True)
class Process:
    """A finished process: what it reported, and its wall-clock seconds, start of Python included."""

    report: Report
    seconds: float


def run_process(*arguments: str, cache: str = "0") -> Process:
    """Run ``benchmarks.child`` with a directory for compiled programs, or without one: see `run_module`."""
    line, seconds = run_module("benchmarks.child", *arguments, cache=cache)
    content: dict[str, Any] = json.loads(line, object_hook=_with_tuples)
    return Process(Report(**content | {"outcome": Outcome(**content["outcome"])}), seconds)


def run_module(module: str, *arguments: str, cache: str) -> tuple[str, float]:
    """The last line that a module prints in a process of its own, and the process's seconds, start of Python included.

    Raises
    ------
    RuntimeError
        The process failed; the message is the last line that it wrote.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _CACHE_VARIABLES}
    environment |= {"BLPJAX_COMPILATION_CACHE": cache, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"the process ended with status {done.returncode}: {lines[-1]}")
    return done.stdout.strip().splitlines()[-1], seconds


def _with_tuples(content: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def process_rows(settings: Settings) -> Iterator[Row]:
    """Nevo from the start of Python to the end, with an empty and with a filled compilation cache."""
    _fill_file_cache(settings)
    pyblp: list[Process] = []
    empty: list[Process] = []
    filled: list[Process] = []
    for _ in range(settings.repeat):
        if settings.pyblp:
            pyblp.append(run_process("nevo", "pyblp"))
        with tempfile.TemporaryDirectory() as cache:
            empty.append(run_process("nevo", "blpjax", cache=cache))
            filled.append(run_process("nevo", "blpjax", cache=cache))
    yield _process_row("process, empty cache", empty, pyblp, goal=5)
    yield _process_row("process, filled cache", filled, pyblp, goal=8)


def _fill_file_cache(settings: Settings) -> None:
    """Import both libraries once, so that no process compiles Python or reads from a cold disk."""
    libraries = ["blpjax", "pyblp"] if settings.pyblp else ["blpjax"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"import {', '.join(libraries)}"]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)


def _process_row(case: str, ours: list[Process], theirs: list[Process], goal: float) -> Row:
    outcomes = [process.report.outcome for process in (ours[-1], *theirs[-1:])]
    difference = compare(*outcomes) if theirs else None
    problems = [process.report.outcome for process in ours]
    failure = ""
    if not all(outcome.converged for outcome in problems):
        failure = "did not converge"
    elif not all(at_optimum(outcome.objective) for outcome in problems):
        failure = f"objective {problems[-1].objective:.10g}"
    row = Row(
        case,
        size="import, load, build, solve",
        first=Timing(tuple(process.seconds for process in ours)),
        pyblp=Timing(tuple(process.seconds for process in theirs)) if theirs else None,
        evaluations=tuple(outcome.evaluations for outcome in outcomes),
        converged=tuple(outcome.converged for outcome in outcomes),
        estimates_difference=difference.estimates if difference else None,
        errors_difference=difference.errors if difference else None,
        failure=failure,
    )
    solving = Timing(tuple(process.report.first for process in ours))
    details = {"of which solving, s": str(solving), "goal": goal_reached(row, goal)}
    return dataclasses.replace(row, details=details)


def goal_reached(row: Row, goal: float) -> str:
    """Whether the ratio of medians reached a goal, in words."""
    if row.ratio is None:
        return f"{goal:g}x, PyBLP was not run"
    return f"{goal:g}x, {'reached' if row.ratio.median >= goal else 'missed'}"


def memory_rows(settings: Settings) -> Iterator[Row]:
    """Objective and Jacobian of a large simulated economy: seconds, and peak memory of a fresh process."""
    size = settings.size
    numbers = [str(number) for number in dataclasses.astuple(size)]
    ours = run_process("simulated", "blpjax", *numbers, str(settings.repeat)).report
    theirs = run_process("simulated", "pyblp", *numbers, "0").report if settings.pyblp else None
    outcomes = [report.outcome for report in (ours, theirs) if report is not None]
    difference = compare(ours.outcome, theirs.outcome) if theirs else None
    warm = Timing(ours.warm)
    failure = ""
    if ours.peak > MEMORY_LIMIT:
        failure = f"peak of {gibibytes(ours.peak)}, more than {gibibytes(MEMORY_LIMIT)}"
    elif not ours.outcome.converged:
        failure = "shares of some markets could not be inverted"
    details = {"peak memory of the process": gibibytes(ours.peak), "limit": gibibytes(MEMORY_LIMIT)}
    if theirs is not None:
        details["peak memory of PyBLP's process"] = gibibytes(theirs.peak)
    yield Row(
        "memory, one evaluation",
        size=f"{size} P=20",
        compile=ours.first - warm.median,
        first=Timing((ours.first,)),
        warm=warm,
        pyblp=Timing((theirs.first,)) if theirs else None,
        evaluations=tuple(outcome.evaluations for outcome in outcomes),
        converged=tuple(outcome.converged for outcome in outcomes),
        estimates_difference=difference.estimates if difference else None,
        errors_difference=difference.errors if difference else None,
        failure=failure,
        details=details,
    )


def gibibytes(size: int) -> str:
    """Bytes as text."""
    return f"{size / 2**30:.2f} GiB"
