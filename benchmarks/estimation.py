"""Nevo's cereals beside PyBLP in one process, with and without the Hessian.

Importing blpjax leaves SciPy's LAPACK one thread. PyBLP is timed with the threads that it had before.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import blpjax
from benchmarks import models
from benchmarks.comparison import Difference, Outcome, compare, outcome_of
from benchmarks.processes import goal_reached
from benchmarks.rows import Row, Timing, measure
from benchmarks.settings import Settings
from blpjax.machine import compilation
from blpjax.machine.lapack import original_lapack_threads

#: Warm ratios to PyBLP, and number of evaluations, that are aimed at.
GOALS = {"gradient": 300, "both": 150}
EVALUATIONS_GOAL = 20


def nevo_rows(settings: Settings) -> Iterator[Row]:
    """One row for each value of `check_optimality`."""
    with quiet():
        for check_optimality in ("gradient", "both"):
            yield _nevo_row(check_optimality, settings)


def _nevo_row(check_optimality: str, settings: Settings) -> Row:
    compilation.forget_programs()
    problem = models.nevo_problem(blpjax)
    solver = Solver(blpjax, problem, check_optimality)
    first = measure(solver)
    other = None
    if settings.pyblp:
        pyblp = importlib.import_module("pyblp")
        pyblp.options.verbose = False
        other = Solver(pyblp, models.nevo_problem(pyblp), check_optimality)
    warm: list[float] = []
    theirs: list[float] = []
    for _ in range(settings.repeat):
        warm += measure(solver, settings.warm).seconds
        if other is not None:
            theirs += measure_pyblp(other).seconds
            warm += measure(solver, settings.warm).seconds
    solvers = [solver] if other is None else [solver, other]
    outcomes = [outcome_of(item.results, models.NEVO_SIGMA, models.NEVO_PI) for item in solvers]
    difference = None if other is None else compare(*outcomes)
    objective = outcomes[0].objective
    failure = ""
    if not outcomes[0].converged:
        failure = "did not converge"
    elif not models.at_optimum(objective):
        failure = f"objective {objective:.10g} instead of {models.NEVO_OBJECTIVE:.10g}"
    timing = Timing(tuple(warm))
    row = Row(
        f"Nevo, {check_optimality}",
        size=f"T={problem.T} N={problem.N} I={problem.I} P={len(solver.results.theta)}",
        compile=first.median - timing.median,
        first=first,
        warm=timing,
        pyblp=Timing(tuple(theirs)) if theirs else None,
        evaluations=tuple(outcome.evaluations for outcome in outcomes),
        converged=tuple(outcome.converged for outcome in outcomes),
        estimates_difference=difference.estimates if difference else None,
        errors_difference=difference.errors if difference else None,
        failure=failure,
    )
    few = "reached" if outcomes[0].evaluations <= EVALUATIONS_GOAL else "missed"
    goals = f"{goal_reached(row, GOALS[check_optimality])}; at most {EVALUATIONS_GOAL} evaluations, {few}"
    return dataclasses.replace(row, details={"objective": f"{objective:.10f}", "goals": goals})


def with_ends(
    row: Row,
    results: Any,
    outcomes: Sequence[Outcome],
    difference: Difference | None,
    goal: float,
    details: Mapping[str, Any],
) -> Row:
    """The row of an estimation in two steps with where these ended, in blpjax and, if it was run, in PyBLP."""
    ends = {
        "objective": f"{results.objective:.9f}",
        "projected gradient norm": f"{results.projected_gradient_norm:.2g}",
        "evaluations in both steps": results.cumulative_objective_evaluations,
        "goal": goal_reached(row, goal),
    }
    return dataclasses.replace(
        row,
        evaluations=tuple(outcome.evaluations for outcome in outcomes),
        converged=tuple(outcome.converged for outcome in outcomes),
        estimates_difference=difference.estimates if difference else None,
        errors_difference=difference.errors if difference else None,
        details={**details, **ends},
    )


def failed_end(results: Any, objective: float) -> str:
    """What is wrong with an estimation that should end at an objective, or an empty string."""
    if not results.cumulative_converged:
        return "did not converge"
    if abs(results.objective / objective - 1) > models.OBJECTIVE_TOLERANCE:
        return f"objective {results.objective:.10g} instead of {objective:.10g}"
    return ""


def measure_pyblp(function: Callable[[], object], repetitions: int = 1) -> Timing:
    """`measure` with PyBLP as installed: LAPACK has the threads that it had before blpjax was imported."""
    with original_lapack_threads():
        return measure(function, repetitions)


class Solver:
    """Solves a problem each time it is called and keeps the last results."""

    def __init__(self, lib: Any, problem: Any, check_optimality: str) -> None:
        self.lib = lib
        self.problem = problem
        self.check_optimality = check_optimality
        self.results: Any = None

    def __call__(self) -> None:
        """Solve once."""
        self.results = models.nevo_solve(self.lib, self.problem, self.check_optimality)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context in which blpjax prints nothing."""
    verbose = blpjax.options.verbose
    blpjax.options.verbose = False
    try:
        yield
    finally:
        blpjax.options.verbose = verbose
