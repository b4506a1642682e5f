"""Nested logit, random coefficients nested logit, and unequal markets beside PyBLP in one process.

PyBLP is timed with the threads of LAPACK that there are without blpjax (`benchmarks.estimation.measure_pyblp`).
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import blpjax
from benchmarks import family_models
from benchmarks.comparison import compare, outcome_of
from benchmarks.estimation import measure_pyblp, quiet
from benchmarks.processes import gibibytes, run_process
from benchmarks.rows import Row, Timing, measure
from benchmarks.settings import Settings
from benchmarks.supply import Repeated, output_row
from blpjax.machine import compilation

#: Largest accepted relative differences of estimates from PyBLP's: of optima, and at the same parameters.
OPTIMUM_TOLERANCE, EVALUATION_TOLERANCE = 1e-4, 1e-8

#: Padding may take this many times the work of markets without it.
PADDING_LIMIT = 1.5


def nested_rows(settings: Settings) -> Iterator[Row]:
    """Two steps of a plain nested logit, whose mean utilities have a closed form."""
    with quiet():
        compilation.forget_programs()
        problem = family_models.nested_problem(blpjax, settings.nested)
        pyblp = _import_pyblp(settings)
        other = None if pyblp is None else family_models.nested_problem(pyblp, settings.nested)
        yield _estimation_row(
            "nested logit, two steps",
            _size(problem),
            lambda: family_models.nested_solve(blpjax, problem),
            None if other is None else lambda: family_models.nested_solve(pyblp, other),
            settings,
        )


def rcnl_rows(settings: Settings) -> Iterator[Row]:
    """One evaluation and two steps of a random coefficients nested logit. PyBLP takes its two steps once."""
    with quiet():
        compilation.forget_programs()
        problem = family_models.rcnl_problem(blpjax, settings.rcnl)
        pyblp = _import_pyblp(settings)
        other = None if pyblp is None else family_models.rcnl_problem(pyblp, settings.rcnl)
        yield _estimation_row(
            "RCNL, one evaluation",
            _size(problem),
            lambda: family_models.rcnl_evaluate(blpjax, problem),
            None if other is None else lambda: family_models.rcnl_evaluate(pyblp, other),
            settings,
            tolerance=EVALUATION_TOLERANCE,
        )
        compilation.forget_programs()
        yield _estimation_row(
            "RCNL, two steps",
            _size(problem),
            lambda: family_models.rcnl_solve(blpjax, problem),
            None if other is None else lambda: family_models.rcnl_solve(pyblp, other),
            dataclasses.replace(settings, repeat=1),
        )


def _estimation_row(
    case: str,
    size: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any] | None,
    settings: Settings,
    tolerance: float = OPTIMUM_TOLERANCE,
) -> Row:
    """Row for functions that return results. Runs of the two libraries alternate."""
    solvers = [Repeated(ours)] if theirs is None else [Repeated(ours), Repeated(theirs)]
    first = measure(solvers[0])
    warm: list[float] = []
    pyblp: list[float] = []
    for _ in range(settings.repeat):
        warm += measure(solvers[0], settings.warm).seconds
        for other in solvers[1:]:
            pyblp += measure_pyblp(other).seconds
    results = [solver.value for solver in solvers]
    outcomes = [outcome_of(item, np.asarray(item.sigma), np.asarray(item.pi)) for item in results]
    difference = compare(*outcomes) if theirs is not None else None
    failure = ""
    if not outcomes[0].converged:
        failure = "did not converge"
    elif difference is not None and not difference.estimates <= tolerance:
        failure = f"estimates differ from PyBLP's by {difference.estimates:.2g}"
    timing = Timing(tuple(warm))
    return Row(
        case,
        size=size,
        compile=first.median - timing.median,
        first=first,
        warm=timing,
        pyblp=Timing(tuple(pyblp)) if pyblp else None,
        evaluations=tuple(outcome.evaluations for outcome in outcomes),
        converged=tuple(outcome.converged for outcome in outcomes),
        estimates_difference=difference.estimates if difference else None,
        errors_difference=difference.errors if difference else None,
        failure=failure,
        details={
            "objective": " / ".join(f"{outcome.objective:.9g}" for outcome in outcomes),
            "evaluations in all steps": " / ".join(str(item.cumulative_objective_evaluations) for item in results),
            "rho": ", ".join(f"{value:.6g}" for value in np.ravel(results[0].rho)),
        },
    )


def unequal_rows(settings: Settings) -> Iterator[Row]:
    """One evaluation of many unequal markets at fixed parameters; PyBLP evaluates the first of them.

    Outputs of a market depend on no other market, so those of the markets that both libraries see are compared.
    PyBLP's seconds are scaled by numbers of pairs of products and agents.
    """
    tables = family_models.simulate_unequal(settings.unequal)
    markets = min(settings.unequal_pyblp, settings.unequal.markets)
    part = tables.first(markets)
    rows = part.products["market_ids"].size
    with quiet():
        compilation.forget_programs()
        problem = family_models.unequal_problem(blpjax, tables)
        ours = Repeated(lambda: family_models.unequal_evaluate(blpjax, problem))
        pyblp = _import_pyblp(settings)
        other = None if pyblp is None else family_models.unequal_problem(pyblp, part)
        theirs = Repeated(lambda: family_models.unequal_evaluate(pyblp, other))
        row = output_row(
            "unequal, one evaluation",
            f"{settings.unequal} N={problem.N}",
            lambda: _outputs(ours, rows),
            None if other is None else lambda: _outputs(theirs, rows),
            dataclasses.replace(settings, warm=1),
        )
        peak = run_process("unequal", "blpjax", *map(str, dataclasses.astuple(settings.unequal))).report.peak
    details = {"padded work": _padding(problem.economy, tables.pairs), **row.details}
    details["peak memory of the process"] = gibibytes(peak)
    if row.pyblp is not None:
        factor = tables.pairs / part.pairs
        scaled = Timing(tuple(factor * seconds for seconds in row.pyblp.seconds))
        details["PyBLP's seconds"] = f"scaled: {factor:.3f} times {row.pyblp} s for the first {markets} markets"
        row = dataclasses.replace(row, pyblp=scaled)
    results = [ours.value] if pyblp is None else [ours.value, theirs.value]
    yield dataclasses.replace(
        row,
        evaluations=tuple(int(item.objective_evaluations) for item in results),
        converged=tuple(bool(np.all(item.fp_converged)) for item in results),
        failure=row.failure or ("" if np.all(ours.value.fp_converged) else "shares of some markets are not inverted"),
        details=details,
    )


def _outputs(evaluate: Repeated, rows: int) -> dict[str, np.ndarray]:
    """What an evaluation found for the first rows of the product table."""
    evaluate()
    results = evaluate.value
    outputs = {"delta": results.delta, "Jacobian of xi": results.xi_by_theta_jacobian}
    return {name: np.asarray(values)[:rows] for name, values in outputs.items()}


def _padding(economy: Any, pairs: int) -> str:
    """How many times the pairs of products and agents are padded to, and buckets, in words."""
    sizes = [bucket.size for bucket in economy.buckets]
    ratio = sum(T * J * people for T, J, people in sizes) / pairs
    goal = "reached" if ratio <= PADDING_LIMIT else "missed"
    buckets = ", ".join(f"{T}x{J}x{people}" for T, J, people in sizes)
    return f"{ratio:.3f} times the actual, at most {PADDING_LIMIT:g}, {goal}; markets x products x agents: {buckets}"


def _size(problem: Any) -> str:
    return f"T={problem.T} N={problem.N} I={problem.I}"


def _import_pyblp(settings: Settings) -> Any:
    """PyBLP, which prints nothing, or None where it is not to run."""
    if not settings.pyblp:
        return None
    pyblp = importlib.import_module("pyblp")
    pyblp.options.verbose = False
    return pyblp
