"""What runs in a process of its own, and prints JSON.

``python -m benchmarks.child nevo pyblp`` or ``... simulated blpjax T J I REPETITIONS``, with numbers of markets,
products and agents, and of evaluations after the first.
"""

import dataclasses
import importlib
import json
import resource
import sys
import time
import warnings
from pathlib import Path

from benchmarks import models
from benchmarks.comparison import Outcome, outcome_of
from benchmarks.settings import Size


@dataclasses.dataclass(frozen=True)
class Report:
    """Outcome, seconds of the first solve and of `warm` later ones, and the largest resident memory so far in bytes."""

    outcome: Outcome
    first: float
    warm: tuple[float, ...]
    peak: int


def run_nevo(library: str) -> Report:
    """Import, load, build and solve Nevo's model once."""
    lib = importlib.import_module(library)
    lib.options.verbose = False
    problem = models.nevo_problem(lib)
    began = time.perf_counter()
    results = models.nevo_solve(lib, problem, "both")
    first = time.perf_counter() - began
    return Report(outcome_of(results, models.NEVO_SIGMA, models.NEVO_PI), first, (), peak_memory())


def run_simulated(library: str, size: Size, warm: int) -> Report:
    """Build a simulated economy and evaluate its objective and Jacobian once, and then `warm` times more."""
    lib = importlib.import_module(library)
    lib.options.verbose = False
    problem = models.simulated_problem(lib, size)
    seconds = []
    for _ in range(1 + warm):
        began = time.perf_counter()
        results = models.simulated_solve(lib, problem)
        seconds.append(time.perf_counter() - began)
    outcome = outcome_of(results, models.SIMULATED_SIGMA, models.SIMULATED_PI)
    return Report(outcome, seconds[0], tuple(seconds[1:]), peak_memory())


def peak_memory() -> int:
    """Largest resident memory of this process, in bytes."""
    # On Linux `getrusage` counts what the parent held when it started this process; the kernel's own mark does not.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main(arguments: list[str]) -> None:
    """Print one line of JSON."""
    warnings.simplefilter("ignore")
    case, library, *numbers = arguments
    if case == "nevo":
        report = run_nevo(library)
    else:
        *size, warm = map(int, numbers)
        report = run_simulated(library, Size(*size), warm)
    print(json.dumps(dataclasses.asdict(report)))


if __name__ == "__main__":
    main(sys.argv[1:])
