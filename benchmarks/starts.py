"""Robustness: Nevo's cereals from random starting values, and inversions far from the estimates."""

import dataclasses
import json
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import blpjax
from benchmarks import models
from benchmarks.estimation import quiet
from benchmarks.rows import Row, Timing, measure
from benchmarks.settings import Settings

#: PyBLP's results from the first of these starting values, made by ``tests/parity/reference/make_reference.py``.
STORED = Path(__file__).parents[1] / "tests" / "parity" / "reference" / "random_starts.json"

SEED = 20260101

#: How an estimation can end: a false convergence is one at a point that is no minimum at all.
KINDS = ("optimum", "another local minimum", "failure reported", "false convergence", "crash")

#: Largest gradient of the objective at a minimum.
GRADIENT = 1e-6

#: Markets count as solved at this largest difference of log shares.
SOLVED = 1e-12


@dataclasses.dataclass(frozen=True)
class Start:
    """Starting values of sigma (4, 4) and pi (4, 4)."""

    sigma: np.ndarray
    pi: np.ndarray


@dataclasses.dataclass(frozen=True)
class Ending:
    """How an estimation ended: `kind` is one of `KINDS`."""

    kind: str
    objective: float
    evaluations: int
    failed_evaluations: int
    seconds: float
    message: str


def draw_starts(number: int) -> list[Start]:
    """Published standard deviations times U(0, 5) and interactions times U(-3, 3), from a fixed seed."""
    rng = np.random.default_rng(SEED)
    starts = []
    for _ in range(number):
        sigma = models.NEVO_SIGMA * np.diag(rng.uniform(0, 5, 4))
        starts.append(Start(sigma, models.NEVO_PI * rng.uniform(-3, 3, (4, 4))))
    return starts


def starts_rows(settings: Settings) -> Iterator[Row]:
    """One row for all starting values, and one for the inversion at ten times the estimates of sigma."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem = models.nevo_problem(blpjax)
        estimates = models.nevo_solve(blpjax, problem, "gradient")
        endings = [estimate(problem, start) for start in draw_starts(settings.starts)]
        yield _starts_row(problem, endings)
        yield _inversion_row(problem, estimates)


def estimate(problem: Any, start: Start) -> Ending:
    """Estimate from starting values and say how that ended."""
    results: list[Any] = []
    try:
        timing = measure(lambda: results.append(models.nevo_solve(blpjax, problem, "gradient", start.sigma, start.pi)))
    except Exception as error:  # a crash is what is being counted
        return Ending("crash", float("nan"), 0, 0, float("nan"), f"{type(error).__name__}: {error}")
    result = results[0]
    right = models.at_optimum(float(result.objective))
    kind = "failure reported"
    if result.converged:
        kind = "optimum" if right else _other_point(problem, result)
    failures = int((~result.fp_converged.astype(bool)).any(axis=0).sum())
    return Ending(kind, float(result.objective), result.objective_evaluations, failures, timing.median, result.message)


def _other_point(problem: Any, result: Any) -> str:
    """What a point is that is not the known optimum: gradient and Hessian say whether it is a minimum."""
    again = problem.solve(
        result.sigma,
        result.pi,
        method="1s",
        sigma_bounds=models.unbounded(result.sigma),
        optimization=blpjax.Optimization("return"),
    )
    minimum = again.projected_gradient_norm < GRADIENT and again.reduced_hessian_eigenvalues.min() > 0
    return "another local minimum" if minimum else "false convergence"


def _starts_row(problem: Any, endings: list[Ending]) -> Row:
    counts = Counter(ending.kind for ending in endings)
    evaluations = [ending.evaluations for ending in endings if ending.kind != "crash"] or [0]
    elsewhere = [ending for ending in endings if ending.kind != "optimum"]
    # a genuine local minimum is no fault of a local method, only a goal that was missed
    bad = [ending for ending in elsewhere if ending.kind != "another local minimum"]
    details = {
        "ended": ", ".join(f"{counts[kind]} {kind}" for kind in KINDS),
        "evaluations": f"median {statistics.median(evaluations):g}, most {max(evaluations)}",
        "starts with evaluations that failed": sum(ending.failed_evaluations > 0 for ending in endings),
        "goal": f"all at the known optimum, {'missed' if elsewhere else 'reached'}",
        **{f"start {endings.index(e)}": f"{e.kind}, objective {e.objective:.10g}: {e.message}" for e in elsewhere},
        **_stored_details(endings),
    }
    return Row(
        "random starts",
        size=f"T={problem.T} N={problem.N} I={problem.I} P=13",
        warm=Timing(tuple(ending.seconds for ending in endings if ending.kind != "crash") or (float("nan"),)),
        evaluations=(statistics.median_high(evaluations),),
        converged=(not bad,),
        failure=f"{len(bad)} of {len(endings)} starts ended at no minimum" if bad else "",
        details=details,
    )


def _stored_details(endings: list[Ending]) -> dict[str, str]:
    """PyBLP's outcome from the same starting values, as stored, beside ours."""
    if not STORED.exists():
        return {}
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    lines = {}
    for number, (ending, start) in enumerate(zip(endings, stored["starts"], strict=False)):
        theirs = start.get("error") or f"{start['objective']:.10f} after {start['objective_evaluations']} evaluations"
        ours = f"{ending.objective:.10f} after {ending.evaluations}"
        lines[f"start {number}, ours / stored PyBLP {stored['versions']['pyblp']}"] = f"{ours} / {theirs}"
    return lines


def _inversion_row(problem: Any, estimates: Any) -> Row:
    """Share of markets whose log shares are matched to 1e-12 with sigma at ten times the estimates."""
    functions = problem.functions(models.NEVO_SIGMA, models.NEVO_PI)
    is_sigma = np.arange(estimates.theta.size) < np.count_nonzero(models.NEVO_SIGMA)
    theta = jnp.asarray(np.where(is_sigma, 10.0, 1.0) * estimates.theta)
    found: list[Any] = []

    def invert() -> None:
        found.append(functions.inversion(theta))
        found[-1].delta.block_until_ready()

    first, warm = measure(invert), measure(invert, 5)
    inversion = found[-1]
    shares = np.asarray(problem.products.shares)[:, 0]
    simulated = np.asarray(functions.shares(theta, inversion.delta))
    errors = np.abs(np.log(simulated) - np.log(shares))
    markets = np.asarray(problem.products.market_ids)[:, 0]
    solved = [bool((errors[markets == market] <= SOLVED).all()) for market in problem.unique_market_ids]
    reported, counts = np.asarray(inversion.status) != 0, inversion.evaluations
    silent = int((~np.array(solved) & ~reported).sum())
    share = float(np.mean(solved))
    failure = ""
    if share < 0.99:
        failure = f"{share:.1%} of markets were solved"
    elif silent:
        failure = f"{silent} markets are further away than {SOLVED:g} and not reported"
    return Row(
        "inversion, 10 x sigma",
        size=f"T={problem.T} N={problem.N} I={problem.I}",
        compile=first.median - warm.median,
        first=first,
        warm=warm,
        converged=(share == 1.0,),
        failure=failure,
        details={
            f"markets solved to {SOLVED:g}": f"{sum(solved)} of {len(solved)} ({share:.1%}), at least 99% expected",
            "largest difference of log shares": float(errors.max()),
            "contraction evaluations": f"median {np.median(counts):g}, most {np.max(counts)}",
        },
    )
