"""Estimation by likelihood: one optimisation of a `Likelihood`, with what results report, as a step of GMM has it."""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from blpjax import options as settings
from blpjax.estimation.options import StepOptions
from blpjax.estimation.progress import MicroState, OptimizationProgress, Structural
from blpjax.estimation.starts import Optimum, Search, Trials, examine_optimum, run_in_turn, search_starts
from blpjax.estimation.step import Evaluator, StepResult
from blpjax.exceptions import (
    ConvergenceWarning,
    IdentificationWarning,
    ThetaConvergenceError,
    describe_status,
    warn_user,
)
from blpjax.machine.compilation import program
from blpjax.machine.placement import on_device
from blpjax.model.parameters import Bounds
from blpjax.objective import iv
from blpjax.objective.inference import StepSummary
from blpjax.objective.likelihood import Information, Likelihood, LikelihoodEvaluation
from blpjax.objective.likelihood_data import Linear
from blpjax.objective.likelihood_inference import (
    Blocks,
    JointCovariances,
    constrained_covariances,
    joint_covariances,
    padded,
    parameter_covariances,
)
from blpjax.objective.moments import Evaluation
from blpjax.objective.problem_data import ProblemData
from blpjax.objective.programs import on_host
from blpjax.optimize.optimize import Optimization, OptimizationOutcome, OptimizationStatus, minimize
from blpjax.reporting import report

#: Curvature of a Hessian that is scaled to a unit diagonal is negative below minus this. From beside such an optimum
#: minimisation is tried again so often, with a first trust region of this relative size.
_FLAT, _TRIALS, _SHORT = 1e-5, 3, 0.05

#: A Hessian, scaled to a unit diagonal, with smaller eigenvalues does not tell parameters apart.
_SINGULAR = 1e-10


@dataclasses.dataclass(frozen=True)
class LikelihoodContext:
    """An objective with its linear part, and the problem's data, whose `logit_delta` (N,) may start mean utilities.

    `sigma2` is the variance that weights restrictions, `problem` for those who ask about progress.
    """

    objective: Likelihood
    linear: Linear
    data: ProblemData
    logit_delta: np.ndarray
    sigma2: float
    problem: Any

    @property
    def market_ids(self) -> np.ndarray:
        """IDs of markets in their sorted order."""
        return self.data.market_index.ids

    @property
    def W(self) -> np.ndarray:
        """A weighting matrix (M, M) of NaN: there is none."""
        return np.full((self.data.MD, self.data.MD), np.nan)

    def structural(self, delta: np.ndarray) -> Structural:
        """Linear parameters and structural errors, residualised on fixed effects, at mean utilities (N,)."""
        beta = np.array(self.objective.fixed.beta)
        concentrated = list(self.objective.layout.concentrated_beta)
        beta[concentrated] = self.linear.coefficient_map @ (delta - self.linear.offset)
        X = np.asarray(self.data.model_data.demand.X)
        return Structural(beta, np.zeros(0), self.data.residualize_demand(delta[:, None])[:, 0] - X @ beta, None)


class LikelihoodEvaluator(Evaluator):
    """A likelihood as optimisers call it, see `Evaluator`."""

    action = "The search for mean utilities"

    def __init__(self, options: StepOptions, context: LikelihoodContext, start: np.ndarray) -> None:
        self.likelihood = context
        self.context: Any = context
        self._begin(1, options, context.logit_delta, start)

    def _evaluate(self, theta: np.ndarray, start: Any, derivatives: bool) -> Evaluation:
        program = evaluate_likelihood if derivatives else likelihood_value
        return program(self.likelihood.objective, on_device(theta), on_device(start))

    def complete(self, theta: np.ndarray, evaluation: Evaluation) -> Evaluation:
        """The evaluation with derivatives, which routines without gradients have no use for."""
        if self._needs_derivatives:
            return evaluation
        start = on_device(evaluation.inversion.delta)
        found = evaluate_likelihood(self.likelihood.objective, on_device(np.asarray(theta, float)), start)
        ok = np.asarray(evaluation.ok) & np.asarray(found.ok)
        objective = np.where(ok, evaluation.objective, np.nan)
        return dataclasses.replace(found, objective=objective, inversion=evaluation.inversion, ok=ok)

    def hessian(self, theta: np.ndarray, evaluation: Evaluation) -> np.ndarray:
        """Exact Hessian (P, P) of the sum of squares of the evaluation's residuals."""
        return exact_hessian(self.likelihood.objective, theta, evaluation) / float(self.likelihood.objective.count)

    @property
    def evaluations(self) -> int:
        """How often the objective was evaluated."""
        return len(self._records)

    def describe(self, theta: np.ndarray, evaluation: Evaluation) -> OptimizationProgress:
        """What custom routines learn about an evaluation."""
        nothing = np.zeros(0)
        return OptimizationProgress(
            self.likelihood.problem,
            self.options.parameters,
            self.likelihood.W,
            theta,
            evaluation,
            lambda: self.likelihood.structural(np.asarray(evaluation.inversion.delta)),
            lambda: MicroState(nothing, nothing, np.zeros((0, theta.size))),
        )

    def failures(self, theta: np.ndarray, evaluation: Evaluation) -> str:
        """Sentences that say where mean utilities were not found; empty where nothing failed."""
        inversion = evaluation.inversion
        failed = describe_status(
            np.asarray(inversion.status), self.likelihood.market_ids, np.asarray(inversion.residuals)
        )
        return f"{self.action} {failed}." if failed else ""


@program(effort=1, what="the likelihood")
def likelihood_value(
    objective: Likelihood, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> LikelihoodEvaluation:
    """The objective alone at theta, with mean utilities found from `start`."""
    return objective.value(theta, start)


@program(effort=1, what="the likelihood and its derivatives")
def evaluate_likelihood(
    objective: Likelihood, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> LikelihoodEvaluation:
    """The objective and its derivatives at theta, with mean utilities found from `start`."""
    return objective.evaluate(theta, start)


@program(effort=1, what="the Hessian")
def _curvature(objective: Likelihood, theta: Float[Array, " P"], delta: Float[Array, " N"]) -> Float[Array, "P P"]:
    return objective.curvature(theta, delta)


@program(effort=1)
def _information(objective: Likelihood, theta: Float[Array, " P"], delta: Float[Array, " N"]) -> Information:
    return objective.information(theta, delta)


def exact_hessian(objective: Likelihood, theta: np.ndarray, evaluation: Any) -> np.ndarray:
    """Exact Hessian (P, P) of the objective at an evaluation."""
    found = np.asarray(evaluation.hessian)
    if objective.specification.estimator != "cheap" or not theta.size:
        return found
    return found + np.asarray(_curvature(objective, on_device(theta), on_device(evaluation.inversion.delta)))


def solve_likelihood(
    options: StepOptions, context: LikelihoodContext, theta: np.ndarray, delta: np.ndarray
) -> tuple[StepResult, JointCovariances]:
    """Minimise from theta (P,) and delta (N,), and compute what results report.

    Raises
    ------
    ConvergenceError
        With ``error_behavior='raise'``, when something does not converge.
    """
    began = time.perf_counter()
    evaluator = LikelihoodEvaluator(options, context, delta)
    outcome = _minimise(evaluator, options, theta)
    interrupted = outcome.status is OptimizationStatus.INTERRUPTED
    if not outcome.converged and not interrupted and options.error_behavior == "raise":
        raise ThetaConvergenceError(f"Estimation by likelihood did not converge: {outcome.message}")
    optimised = time.perf_counter()
    evaluation = jax.device_get(outcome.evaluation)
    outcome = dataclasses.replace(outcome, evaluation=evaluation)
    estimates, ok = np.asarray(outcome.theta, float), bool(evaluation.ok)
    found = np.asarray(evaluation.inversion.delta)
    linear = context.structural(found)
    joint = _covariances(context, estimates, found, np.asarray(linear.xi), evaluation) if ok else None
    P, Q = estimates.size, estimates.size + len(context.objective.layout.concentrated_beta)
    hessian = np.full((P, P), np.nan)
    if options.check_optimality == "both" and ok and not interrupted:
        hessian = exact_hessian(context.objective, estimates, evaluation)
    covariances = np.full((Q, Q), np.nan)
    if joint is not None:
        variance = float(linear.xi @ linear.xi) / found.size
        covariances = found.size * parameter_covariances(joint, context.linear.coefficient_map, variance)
    result = StepResult(
        step=1,
        theta=estimates,
        beta=np.asarray(linear.beta),
        gamma=np.asarray(linear.gamma),
        delta=found,
        xi=np.asarray(linear.xi),
        omega=None,
        objective=float(evaluation.objective),
        gradient=np.asarray(evaluation.gradient),
        hessian=hessian,
        W=context.W,
        summary=_summary(context, estimates, linear, evaluation, covariances),
        outcome=outcome,
        inner=evaluator.inner_loops(),
        failed_markets=evaluator.failures(estimates, evaluation),
        optimization_time=optimised - began,
        total_time=time.perf_counter() - began,
    )
    return result, joint if joint is not None else constrained_covariances(
        np.full((P, P), np.nan), np.asarray(evaluation.delta_by_theta)
    )


def try_likelihood_starts(given: Any, options: StepOptions, context: LikelihoodContext, delta: np.ndarray) -> Trials:
    """Minimise from many starting values, one after the other with the same programs; see `starts.try_starts`.

    Raises
    ------
    ValueError, TypeError
        For starts of the wrong shape or outside of bounds.

    Warns
    -----
    ConvergenceWarning
        When no start ended at a local minimum.
    """
    bounds = options.parameters.bounds

    def minimise(options: StepOptions, point: np.ndarray) -> tuple[OptimizationOutcome, str]:
        evaluator = LikelihoodEvaluator(options, context, delta)
        outcome = _minimise(evaluator, options, point)
        return outcome, evaluator.failures(outcome.theta, outcome.evaluation)

    def examine(theta: np.ndarray) -> Optimum:
        evaluation = evaluate_likelihood(context.objective, on_device(theta), on_device(delta))
        derivatives = np.asarray(evaluation.gradient), exact_hessian(context.objective, theta, evaluation)
        return examine_optimum(theta, float(evaluation.objective), derivatives, bounds, 1.0)

    search = Search(lambda points: run_in_turn(points, options, minimise), examine, 1.0, floated=True)
    return search_starts(given, options, search)


def minimise_likelihood(
    options: StepOptions, context: LikelihoodContext, theta: np.ndarray, delta: np.ndarray
) -> OptimizationOutcome:
    """Minimise from theta (P,) and delta (N,), and compute nothing else."""
    return _minimise(LikelihoodEvaluator(options, context, delta), options, theta)


@contextlib.contextmanager
def without_messages() -> Iterator[None]:
    """Print nothing and warn of nothing, where tables say how many estimations ended."""
    verbose = settings.verbose
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            settings.verbose = False
            yield
        finally:
            settings.verbose = verbose


def _minimise(evaluator: LikelihoodEvaluator, options: StepOptions, theta: np.ndarray) -> OptimizationOutcome:
    """Minimise, and try again from beside optima where curvature is negative.

    Such are standard deviations of zero, which are bounds, and where derivatives vanish but for simulation error. From
    there valleys are curved: the element that curvature is about is first moved and held.
    """
    bounds, optimization = options.parameters.bounds, options.optimization
    best = _minimise_once(evaluator, optimization, options, theta, bounds)
    iterations, failed = best.iterations, best.failed_evaluations
    for _ in range(_TRIALS):
        if not best.converged or not optimization.routine.optimizes or not optimization.supports_bounds:
            break
        # the evaluation of the cheap estimator lacks curvature that may be negative
        hessian = exact_hessian(evaluator.likelihood.objective, best.theta, best.evaluation)
        found = _move_aside(best.theta, hessian, bounds)
        if found is None:
            break
        p, start = found
        held = Bounds(bounds.lower.copy(), bounds.upper.copy())
        held.lower[p] = held.upper[p] = start[p]
        aside = _minimise_once(evaluator, optimization, options, start, held)
        again = _minimise_once(evaluator, _shorter(optimization), options, aside.theta, bounds)
        iterations += aside.iterations + again.iterations
        failed += aside.failed_evaluations + again.failed_evaluations
        before = float(best.evaluation.objective)
        if not again.converged or float(again.evaluation.objective) >= before - 1e-9 * (1 + abs(before)):
            break
        best = again
    return dataclasses.replace(
        best, iterations=iterations, evaluations=evaluator.evaluations, failed_evaluations=failed
    )


def _minimise_once(
    evaluator: LikelihoodEvaluator, optimization: Optimization, options: StepOptions, theta: np.ndarray, bounds: Bounds
) -> OptimizationOutcome:
    return minimize(
        optimization,
        evaluator,
        theta,
        bounds,
        user_bounded=options.parameters.bounded_by_user,
        on_iteration=evaluator.count_iteration,
        progress_factory=evaluator.describe,
        hessian=evaluator.hessian,
        complete=evaluator.complete,
        failures=options.failure_policy,
    )


def _shorter(optimization: Optimization) -> Optimization:
    """The same with short first steps, where the routine has an option for that."""
    if optimization.method != "trust-region":
        return optimization
    options = {"initial_radius": _SHORT, **(optimization.method_options or {})}
    return dataclasses.replace(optimization, method_options=options)


def _move_aside(at: np.ndarray, H: np.ndarray, bounds: Bounds) -> tuple[int, np.ndarray] | None:
    """An element with negative curvature, and theta (P,) with it moved, within bounds; None where there is none."""
    theta = np.array(at, float)
    curvature = np.where(bounds.lower < bounds.upper, np.diag(H), np.inf)
    if not theta.size or not np.isfinite(H).all():
        return None
    p = int(curvature.argmin())
    if curvature[p] > -_FLAT * np.abs(np.diag(H)).max():
        return None
    step = np.sqrt(2.0 / -curvature[p])
    theta[p] = np.clip(theta[p] + step, bounds.lower[p], bounds.upper[p])
    if theta[p] == at[p]:
        theta[p] = np.clip(theta[p] - step, bounds.lower[p], bounds.upper[p])
    return (p, theta) if theta[p] != at[p] else None


def _covariances(
    context: LikelihoodContext, theta: np.ndarray, delta: np.ndarray, xi: np.ndarray, evaluation: Any
) -> JointCovariances:
    objective = context.objective
    if objective.specification.estimator == "share-constrained":
        return constrained_covariances(np.asarray(evaluation.hessian), np.asarray(evaluation.delta_by_theta))
    found = jax.device_get(_information(objective, on_device(theta), on_device(delta)))
    economy = on_host(objective.economy)
    blocks = Blocks(economy, padded(found.blocks, [bucket.present for bucket in economy.buckets]))
    K, variance = np.asarray(objective.restrictions), float(xi @ xi) / xi.size
    return joint_covariances(blocks, found.cross, found.theta_hessian, K, variance / context.sigma2)


def _summary(
    context: LikelihoodContext, theta: np.ndarray, linear: Structural, evaluation: Any, covariances: np.ndarray
) -> StepSummary:
    """What the step of GMM reports: averages of instruments times structural errors, without weights."""
    demand, columns = on_host(context.data.model_data.demand), list(context.objective.layout.concentrated_beta)
    N, M, Q = context.data.N, context.data.MD, len(covariances)
    X, Z = np.asarray(demand.X)[:, columns], np.asarray(demand.Z)
    unknown = np.full((M, M), np.nan)
    with np.errstate(invalid="ignore"):
        errors = iv.standard_errors(covariances, N)
    return StepSummary(
        parameters=np.concatenate([theta, np.asarray(linear.beta)[columns]]),
        moments=Z.T @ np.asarray(linear.xi) / N,
        moments_jacobian=Z.T @ np.concatenate([np.asarray(evaluation.xi_by_theta), -X], axis=1) / N,
        moments_covariances=unknown,
        updated_W=unknown,
        inference=iv.Inference(covariances, errors, np.full((Q, M), np.nan), np.asarray(Q)),
        covariances_rank=np.asarray(M),
    )


def report_likelihood(result: StepResult, labels: Sequence[str], seconds: float) -> None:
    """Print how estimation ended, and warn where it did not converge or some parameters are not identified."""
    outcome, took = result.outcome, report.format_seconds(seconds)
    settings.output("")
    if not outcome.converged or result.failed_markets:
        text = f"Estimation by likelihood did not converge: {outcome.message}"
        if result.failed_markets:
            text += f" At the returned parameters: {result.failed_markets}"
        settings.output(f"{text} ({took})")
        warn_user(text, ConvergenceWarning)
        return
    settings.output(f"Estimation by likelihood completed after {took}.")
    H = np.asarray(outcome.evaluation.hessian)
    scale = np.sqrt(np.abs(np.diag(H)))
    flat = [label for label, size in zip(labels, scale, strict=False) if not size > 0]
    if not flat and H.size:
        values, vectors = np.linalg.eigh(H / np.outer(scale, scale))
        if values[0] <= _SINGULAR:
            flat = [label for label, weight in zip(labels, np.abs(vectors[:, 0]), strict=False) if weight > 0.1]
    if flat:
        warn_user(
            f"The objective hardly depends on {', '.join(map(repr, flat))} near the estimates, or is no minimum there, "
            "so that standard errors mean nothing.",
            IdentificationWarning,
        )
