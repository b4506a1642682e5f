"""Where the time of a warm estimation goes: each compiled program alone, and what is left for the host."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import blpjax
from benchmarks import models
from benchmarks.estimation import Solver, quiet
from benchmarks.rows import Row, Timing, measure
from benchmarks.settings import Settings
from blpjax.objective import programs
from blpjax.objective.functions import ModelFunctions
from blpjax.optimize.stepwise import Trial
from blpjax.optimize.trust_region import METHOD


def profile_rows(settings: Settings) -> Iterator[Row]:
    """One row for a warm solve with the Hessian, and its parts in the details."""
    with quiet():
        problem = models.nevo_problem(blpjax)
        solver = Solver(blpjax, problem, "both")
        solver()
        seconds: list[float] = []
        optimising: list[float] = []
        step: list[float] = []
        for _ in range(settings.warm):
            seconds += measure(solver).seconds
            optimising.append(solver.results.optimization_time)
            step.append(solver.results.total_time)
        results = solver.results
        parts = _time_parts(problem, results, max(settings.warm, 3))
    evaluations = results.objective_evaluations
    evaluation, advance, hessian = (parts[name].median for name in ("evaluation", "trust-region step", "Hessian"))
    warm = Timing(tuple(seconds))
    whole, inside, estimating = warm.median, statistics.median(optimising), statistics.median(step)
    yield Row(
        "profile of Nevo, both",
        size=f"T={problem.T} N={problem.N} I={problem.I} P={len(results.theta)}",
        warm=warm,
        evaluations=(evaluations,),
        converged=(results.converged,),
        failure="" if results.converged else "did not converge",
        details={
            "one evaluation with Jacobian": _milliseconds(parts["evaluation"]),
            "inversion alone": _milliseconds(parts["inversion"]),
            "one trust-region step": _milliseconds(parts["trust-region step"]),
            "Hessian": _milliseconds(parts["Hessian"]),
            "optimiser": _share(inside, whole),
            f"- {evaluations} evaluations": _share(evaluations * evaluation, whole),
            f"- {evaluations} steps": _share(evaluations * advance, whole),
            "- host": _share(inside - evaluations * (evaluation + advance), whole),
            "after the optimiser": _share(estimating - inside, whole),
            "- Hessian": _share(hessian, whole),
            "- covariances, host": _share(estimating - inside - hessian, whole),
            "before and after the GMM step": _share(whole - estimating, whole),
            "contraction evaluations in a market": (
                f"median {np.median(results.contraction_evaluations):g}, most {results.contraction_evaluations.max()}"
            ),
        },
    )


def _time_parts(problem: Any, results: Any, repetitions: int) -> dict[str, Timing]:
    """Programs at the starting values and at the estimates (the Hessian: at the estimates only)."""
    functions = problem.functions(models.NEVO_SIGMA, models.NEVO_PI)
    ends = [functions.theta, jnp.asarray(results.theta)]
    evaluations = [_evaluate(functions, theta) for theta in ends]
    states = [_state(theta, evaluation) for theta, evaluation in zip(ends, evaluations, strict=True)]
    delta = evaluations[-1].inversion.delta

    def time_at_both(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> Timing:
        timings = [_time(partial(function, *given), repetitions) for given in arguments]
        return timings[0] + timings[1]

    return {
        "evaluation": time_at_both(lambda theta: _evaluate(functions, theta), [(theta,) for theta in ends]),
        "inversion": time_at_both(functions.inversion, [(theta,) for theta in ends]),
        "trust-region step": time_at_both(METHOD.step, states),
        "Hessian": _time(lambda: programs.hessian_at(functions.minimand, ends[-1], delta), repetitions),
    }


def _evaluate(functions: ModelFunctions, theta: jax.Array) -> Any:
    return programs.evaluate(functions.minimand, theta, functions.start)


def _state(theta: jax.Array, evaluation: Any) -> tuple[Any, ...]:
    """Arguments of a trust-region step that follows an evaluation at theta."""
    r, J = evaluation.residuals, evaluation.residual_jacobian
    trial = Trial(theta, evaluation.objective, evaluation.gradient, r, J, evaluation.ok)
    unbounded = np.full(theta.shape, np.inf)
    begun = METHOD.begin(theta, -unbounded, unbounded, r.size, {})
    return METHOD.step(begun.state, trial).state, trial


def _time(function: Callable[[], Any], repetitions: int) -> Timing:
    def call() -> None:
        jax.block_until_ready(function())

    call()
    return measure(call, repetitions)


def _milliseconds(timing: Timing) -> str:
    return f"{1e3 * timing.median:.3g} ms [{1e3 * timing.low:.3g}-{1e3 * timing.high:.3g}]"


def _share(seconds: float, whole: float) -> str:
    return f"{1e3 * seconds:.3g} ms, {seconds / whole:.0%} of a warm solve"
