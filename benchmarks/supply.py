"""The supply side beside PyBLP: estimating the automobiles, what follows, simulated equilibria, and their memory.

PyBLP is timed with the threads of LAPACK that there are without blpjax (`benchmarks.estimation.measure_pyblp`).
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import blpjax
from benchmarks import models
from benchmarks.comparison import compare, compare_outputs, outcome_of
from benchmarks.estimation import failed_end, measure_pyblp, quiet, with_ends
from benchmarks.processes import gibibytes, goal_reached, run_process
from benchmarks.rows import Row, Timing, measure
from benchmarks.settings import Settings
from blpjax.machine import compilation

#: Warm ratios to PyBLP that are aimed at.
AUTOS_GOAL, POST_GOAL, EQUILIBRIUM_GOAL, MERGERS_GOAL = 100, 20, 50, 50

#: How many mergers are solved, and how many of these by PyBLP.
MERGERS, PYBLP_MERGERS = 1000, 10

#: Evaluations by PyBLP 1.3.0 from the same starting values: 116 in two steps, and 12 for each step's Hessian.
AUTOS_EVALUATIONS = 140

#: Largest accepted differences of outputs at the same parameters, and of equilibrium prices.
OUTPUT_TOLERANCE = 1e-6

#: Largest accepted difference of surpluses after mergers, whose prices PyBLP finds to five digits.
MERGER_TOLERANCE = 1e-5


def autos_rows(settings: Settings) -> Iterator[Row]:
    """Two clustered steps from the tutorial's starting values, standard errors and Hessians included."""
    with quiet():
        compilation.forget_programs()
        problem = models.autos_problem(blpjax)
        solver = Repeated(lambda: models.autos_solve(blpjax, problem))
        first, warm = measure(solver), measure(solver, settings.warm)
        results = solver.value
        outcomes = [outcome_of(results, models.AUTOS_SIGMA, models.AUTOS_PI)]
        pyblp, details, difference = _import_pyblp(), {}, None
        other = models.autos_problem(pyblp)
        if settings.pyblp:
            slow = Repeated(lambda: models.autos_solve(pyblp, other))
            theirs = measure_pyblp(slow)
            outcomes.append(outcome_of(slow.value, models.AUTOS_SIGMA, models.AUTOS_PI))
            difference = compare(*outcomes)
        else:
            models.autos_evaluate(pyblp, other)
            one = measure_pyblp(lambda: models.autos_evaluate(pyblp, other), 3)
            theirs = Timing(tuple(AUTOS_EVALUATIONS * seconds for seconds in one.seconds))
            details["PyBLP's seconds"] = f"scaled: {AUTOS_EVALUATIONS} times one evaluation of {one} s"
    row = Row(
        "autos, two steps",
        size=f"T={problem.T} N={problem.N} I={problem.I} P={len(results.theta)}",
        compile=first.median - warm.median,
        first=first,
        warm=warm,
        pyblp=theirs,
        failure=autos_failure(results),
    )
    yield with_ends(row, results, outcomes, difference, AUTOS_GOAL, details)


def autos_failure(results: Any) -> str:
    """What is wrong with an estimation of the automobiles, or an empty string."""
    return failed_end(results, models.AUTOS_OBJECTIVE)


def post_rows(settings: Settings) -> Iterator[Row]:
    """Everything after estimation of the automobiles at the starting values, and a merger."""
    with quiet():
        compilation.forget_programs()
        results = models.autos_evaluate(blpjax, models.autos_problem(blpjax))
        pyblp = _import_pyblp() if settings.pyblp else None
        others = None if pyblp is None else models.autos_evaluate(pyblp, models.autos_problem(pyblp))
        row = output_row(
            "autos, post-estimation",
            f"T={results.problem.T} N={results.problem.N} I={results.problem.I}",
            lambda: models.autos_post(results),
            None if others is None else lambda: models.autos_post(others),
            settings,
        )
    slower = "PyBLP was not run"
    if row.pyblp is not None and row.first is not None:
        slower = "reached" if row.first.median <= row.pyblp.median else "missed"
    goals = f"{goal_reached(row, POST_GOAL)}; first call not slower than PyBLP, {slower}"
    yield dataclasses.replace(row, details=row.details | {"goals": goals})


def mergers_rows(settings: Settings) -> Iterator[Row]:
    """A thousand mergers of two or three firms as one batch; PyBLP solves some of them one after the other."""
    with quiet():
        compilation.forget_programs()
        problem = models.autos_problem(blpjax)
        results = models.autos_evaluate(blpjax, problem)
        known = problem.products.firm_ids[:, 0]
        mergers = models.many_mergers(known, MERGERS)
        scenarios = {merger: {"firm_ids": dict.fromkeys(merger[1:], merger[0])} for merger in mergers}
        ours = Repeated(lambda: blpjax.compare(scenarios, results))
        first, warm = measure(ours), measure(ours)
        surplus = ours.value["consumer_surplus", "after"].to_numpy()
        failure = f"{np.isnan(surplus).sum()} mergers have no equilibrium" if np.isnan(surplus).any() else ""
        details: dict[str, Any] = {"mergers": len(mergers)}
        theirs, difference = None, None
        if settings.pyblp:
            other = models.autos_evaluate(_import_pyblp(), models.autos_problem(_import_pyblp()))
            slow = Repeated(lambda: models.merge_one_by_one(other, known, mergers[:PYBLP_MERGERS]))
            one = measure_pyblp(slow)
            theirs = Timing(tuple(len(mergers) / PYBLP_MERGERS * seconds for seconds in one.seconds))
            difference = float(np.abs(slow.value / surplus[:PYBLP_MERGERS] - 1).max())
            details["PyBLP's seconds"] = f"scaled: prices of {PYBLP_MERGERS} mergers in {one} s"
            if not difference <= MERGER_TOLERANCE:
                failure = failure or f"surpluses differ from PyBLP's by {difference:.2g}"
    row = Row(
        "autos, mergers",
        size=f"T={problem.T} N={problem.N} I={problem.I}",
        compile=first.median - warm.median,
        first=first,
        warm=warm,
        pyblp=theirs,
        estimates_difference=difference,
        failure=failure,
    )
    yield dataclasses.replace(row, details=details | {"goal": goal_reached(row, MERGERS_GOAL)})


def equilibrium_rows(settings: Settings) -> Iterator[Row]:
    """Prices and shares of simulated markets from the same primitives."""
    with quiet():
        compilation.forget_programs()
        ours = models.simulation(blpjax, settings.equilibrium)
        pyblp = _import_pyblp() if settings.pyblp else None
        theirs = None if pyblp is None else models.simulation(pyblp, settings.equilibrium)
        row = output_row(
            "equilibrium prices",
            str(settings.equilibrium),
            lambda: solve_equilibrium(ours),
            None if theirs is None else lambda: solve_equilibrium(theirs),
            settings,
        )
    yield dataclasses.replace(row, details=row.details | {"goal": goal_reached(row, EQUILIBRIUM_GOAL)})


def solve_equilibrium(simulation: Any) -> dict[str, np.ndarray]:
    """Prices and shares, and whether markets' fixed points converged."""
    results = simulation.replace_endogenous()
    data = results.product_data
    return {
        "prices": np.ravel(data["prices"]),
        "shares": np.ravel(data["shares"]),
        "converged": np.ravel(results.fp_converged).astype(float),
    }


def output_row(
    case: str,
    size: str,
    ours: Callable[[], dict[str, np.ndarray]],
    theirs: Callable[[], dict[str, np.ndarray]] | None,
    settings: Settings,
) -> Row:
    """Row for named outputs, which must be those of PyBLP. Runs of the two libraries alternate."""
    mine = Repeated(ours)
    first = measure(mine)
    other = None if theirs is None else Repeated(theirs)
    warm: list[float] = []
    pyblp: list[float] = []
    for _ in range(settings.repeat):
        warm += measure(mine, settings.warm).seconds
        if other is not None:
            pyblp += measure_pyblp(other).seconds
    failure, details, difference = _output_failure(mine.value), {"outputs": len(mine.value)}, None
    if other is not None:
        worst, difference = compare_outputs(mine.value, other.value)
        details["largest difference"] = f"{difference:.1e}, in {worst}"
        if not difference <= OUTPUT_TOLERANCE:
            failure = failure or f"{worst} differ from PyBLP's by {difference:.2g}"
    timing = Timing(tuple(warm))
    return Row(
        case,
        size=size,
        compile=first.median - timing.median,
        first=first,
        warm=timing,
        pyblp=Timing(tuple(pyblp)) if pyblp else None,
        estimates_difference=difference,
        failure=failure,
        details=details,
    )


def _output_failure(outputs: dict[str, np.ndarray]) -> str:
    if "converged" in outputs and not outputs["converged"].all():
        return f"{int((outputs['converged'] == 0).sum())} markets have no equilibrium"
    empty = [name for name, values in outputs.items() if not np.isfinite(values).any()]
    return f"no finite numbers in {', '.join(empty)}" if empty else ""


def memory_rows(settings: Settings) -> Iterator[Row]:
    """Peak memory of fresh processes, everything that Python holds included, beside that of PyBLP's."""
    equilibrium = [str(number) for number in dataclasses.astuple(settings.equilibrium)]
    for case, arguments in (("autos", ()), ("post", ()), ("equilibrium", equilibrium)):
        ours = run_process(case, "blpjax", *arguments).report
        theirs = run_process(case, "pyblp", *arguments).report if settings.pyblp else None
        reports = [report for report in (ours, theirs) if report is not None]
        details = {"peak memory of the process": gibibytes(ours.peak)}
        if theirs is not None:
            goal = "reached" if ours.peak <= theirs.peak else "missed"
            details |= {"peak memory of PyBLP's process": gibibytes(theirs.peak), "goal": f"below PyBLP's, {goal}"}
        yield Row(
            f"memory, {case}",
            first=Timing((ours.first,)),
            pyblp=Timing((theirs.first,)) if theirs else None,
            evaluations=tuple(report.outcome.evaluations for report in reports),
            converged=tuple(report.outcome.converged for report in reports),
            failure="" if ours.outcome.converged else "did not converge",
            details=details,
        )


class Repeated:
    """A function that is called for its time, and its last value."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.value: Any = None

    def __call__(self) -> None:
        """Call once."""
        self.value = self.function()


def _import_pyblp() -> Any:
    pyblp = importlib.import_module("pyblp")
    pyblp.options.verbose = False
    return pyblp
