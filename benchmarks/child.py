"""What runs in a process of its own, and prints JSON.

``python -m benchmarks.child nevo pyblp``, and likewise ``autos``, ``post``; ``... simulated blpjax T J I REPETITIONS``
with numbers of markets, products and agents, and of evaluations after the first; ``... equilibrium blpjax T J I``;
``... unequal blpjax T LEAST MOST I`` with numbers of products from LEAST to MOST; ``... study blpjax T SIZE`` with a
number of replications.
"""

import dataclasses
import importlib
import json
import resource
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from benchmarks import family_models, models, study_models
from benchmarks.comparison import Outcome, outcome_of
from benchmarks.settings import Size, UnequalSize


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


def run_autos(library: str, afterwards: bool) -> Report:
    """Evaluate the automobiles once, with the Hessian, or compute everything after estimation."""
    lib = importlib.import_module(library)
    lib.options.verbose = False
    problem = models.autos_problem(lib)
    began = time.perf_counter()
    results = models.autos_evaluate(lib, problem, "gradient" if afterwards else "both")
    if afterwards:
        models.autos_post(results)
    seconds = time.perf_counter() - began
    return Report(outcome_of(results, models.AUTOS_SIGMA, models.AUTOS_PI), seconds, (), peak_memory())


def run_equilibrium(library: str, size: Size) -> Report:
    """Find prices of simulated markets. There is no objective; estimates are the mean price and mean share."""
    lib = importlib.import_module(library)
    lib.options.verbose = False
    simulation = models.simulation(lib, size)
    began = time.perf_counter()
    results = simulation.replace_endogenous()
    seconds = time.perf_counter() - began
    means = tuple(float(np.mean(np.asarray(results.product_data[name]))) for name in ("prices", "shares"))
    converged = bool(np.all(results.fp_converged))
    return Report(Outcome(0.0, means, (), 1, converged), seconds, (), peak_memory())


def run_unequal(library: str, size: UnequalSize) -> Report:
    """Evaluate objective and Jacobian of unequal markets once, at fixed parameters."""
    lib = importlib.import_module(library)
    lib.options.verbose = False
    problem = family_models.unequal_problem(lib, family_models.simulate_unequal(size))
    began = time.perf_counter()
    results = family_models.unequal_evaluate(lib, problem)
    seconds = time.perf_counter() - began
    outcome = outcome_of(results, family_models.UNEQUAL_SIGMA, family_models.UNEQUAL_PI)
    return Report(outcome, seconds, (), peak_memory())


def run_study(library: str, markets: int, size: int) -> Report:
    """Run a batch of replications. There is no objective; estimates are their means."""
    lib = importlib.import_module(library)
    lib.options.verbose = False
    study = study_models.study(lib, markets, supply=True)
    began = time.perf_counter()
    results = study.run(size, batch_size=size)
    seconds = time.perf_counter() - began
    means = tuple(float(value) for value in results.summary()["mean"])
    return Report(Outcome(0.0, means, (), 1, bool(results.table["ok"].all())), seconds, (), peak_memory())


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
    match case:
        case "nevo":
            report = run_nevo(library)
        case "simulated":
            *size, warm = map(int, numbers)
            report = run_simulated(library, Size(*size), warm)
        case "equilibrium":
            report = run_equilibrium(library, Size(*map(int, numbers)))
        case "unequal":
            report = run_unequal(library, UnequalSize(*map(int, numbers)))
        case "study":
            report = run_study(library, *map(int, numbers))
        case _:
            report = run_autos(library, afterwards=case == "post")
    print(json.dumps(dataclasses.asdict(report)))


if __name__ == "__main__":
    main(sys.argv[1:])
