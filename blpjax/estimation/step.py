"""One GMM step on the host: optimise with progress, then covariances and diagnostics at the optimum."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from blpjax import options as settings
from blpjax.economy.loops import Loops
from blpjax.estimation.options import StepOptions, has_finite_bounds, usable_bounds, usable_parameters
from blpjax.estimation.progress import OptimizationProgress, Structural
from blpjax.exceptions import (
    DeltaConvergenceError,
    GenericNumericalError,
    NonpositiveCostsError,
    ThetaConvergenceError,
    describe_status,
    raise_for_status,
)
from blpjax.model.parameters import Coefficients
from blpjax.objective import differences, programs
from blpjax.objective.blocks import Point
from blpjax.objective.inference import StepSummary
from blpjax.objective.moments import GMM, Ending, Evaluation
from blpjax.objective.simulation_error import AgentSamples, simulation_covariances
from blpjax.optimize.bounds import project_gradient
from blpjax.optimize.optimize import OptimizationOutcome, OptimizationStatus, minimize
from blpjax.reporting import report

#: What failed when a market's transformed marginal costs do not exist.
COSTS = "The recovery of marginal costs (costs_bounds keep log costs from being taken of negative costs)"


@dataclasses.dataclass(frozen=True)
class StepContext:
    """Data of a GMM step: the objective, market IDs and names of moments for messages, clusters, and absorption.

    `residualize_demand` and `residualize_supply` turn (N, K) matrices into residuals. `problem` is for those who ask
    about progress. `samples` are agents drawn again for simulation error, None when there is none to account for.
    """

    objective: GMM
    market_ids: Sequence[object] | np.ndarray
    cluster_ids: np.ndarray
    residualize_demand: Callable[[np.ndarray], np.ndarray]
    residualize_supply: Callable[[np.ndarray], np.ndarray]
    logit_delta: np.ndarray
    moment_labels: Sequence[str]
    problem: Any
    samples: AgentSamples | None = None

    @property
    def W(self) -> np.ndarray:
        """Weighting matrix (M, M)."""
        return np.asarray(self.objective.weighting.W)


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Arrays at the end of a GMM step, all in NumPy.

    `theta` (P,), `beta` (K1,), `gamma` (K3,), `delta`, `xi` and `omega` (N,), the last None without a supply side,
    `objective`, `gradient` (P,), `hessian` (P, P) or NaN, `summary` with host arrays of `StepSummary`, and the
    inversions of shares `inner`, arrays (T, evaluations). `outcome.evaluation` has costs and derivatives.
    """

    step: int
    theta: np.ndarray
    beta: np.ndarray
    gamma: np.ndarray
    delta: np.ndarray
    xi: np.ndarray
    omega: np.ndarray | None
    objective: float
    gradient: np.ndarray
    hessian: np.ndarray
    W: np.ndarray
    summary: StepSummary
    outcome: OptimizationOutcome
    inner: Loops
    failed_markets: str
    optimization_time: float
    total_time: float


class Evaluator:
    """The objective as optimisers call it; it keeps count of the inner loops and prints progress.

    Inversions start where `delta_behavior` says: at the same delta always (``'first'``, ``'logit'``), at the last
    solution (``'last'``), or at the first-order prediction from the best point so far (``'predicted'``). Up to the
    inversions' tolerance values depend on theta alone.
    """

    def __init__(self, step: int, options: StepOptions, context: StepContext, start: np.ndarray) -> None:
        self.step = step
        self.options = options
        self.context = context
        self.start = jnp.asarray(context.logit_delta if options.delta_behavior == "logit" else start)
        self.optimizer_iterations = 0
        self._records: list[Loops] = []
        self._began = time.perf_counter()
        self._best = np.inf
        self._anchor: tuple[np.ndarray, Evaluation] | None = None

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Evaluate the objective and its derivatives at theta (P,)."""
        options = self.options
        evaluation = self._evaluate(np.asarray(theta, float), self._start_at(theta), self._needs_derivatives)
        inversion = evaluation.inversion
        self._records.append(Loops(**inversion.fields()))
        if options.error_behavior == "raise" and not bool(evaluation.ok):
            status, residuals = jax.device_get((inversion.status, inversion.residuals))
            raise_for_status(
                status, self.context.market_ids, "The inversion of market shares", residuals, kind=DeltaConvergenceError
            )
            if evaluation.costs is not None:
                raise_for_status(
                    np.asarray(evaluation.costs.status), self.context.market_ids, COSTS, kind=NonpositiveCostsError
                )
            raise GenericNumericalError(f"The objective or its gradient is not finite at theta = {np.asarray(theta)}.")
        if options.delta_behavior == "last":
            self.start = jnp.where(evaluation.ok, inversion.delta, self.start)
        if options.delta_behavior == "predicted" and bool(evaluation.ok):
            if self._anchor is None or float(evaluation.objective) <= float(self._anchor[1].objective):
                self._anchor = np.array(theta, float), evaluation
        if settings.verbose:
            self._print_progress(theta, evaluation)
        return evaluation

    @property
    def _needs_derivatives(self) -> bool:
        optimization = self.options.optimization
        return optimization.compute_gradient or not optimization.routine.optimizes

    def _evaluate(self, theta: np.ndarray, start: jax.Array, derivatives: bool) -> Evaluation:
        objective, epsilon = self.context.objective, self.options.differences
        if not derivatives:
            return differences.evaluate_values(objective, theta, start)
        if epsilon is None:
            return programs.evaluate(objective, theta, start)
        return differences.evaluate_by_differences(objective, theta, start, epsilon)

    def complete(self, theta: np.ndarray, evaluation: Evaluation) -> Evaluation:
        """An evaluation at theta (P,) with derivatives, which routines without gradients have no use for."""
        if self._needs_derivatives:
            return evaluation
        return self._evaluate(np.asarray(theta, float), evaluation.inversion.delta, derivatives=True)

    def describe(self, theta: np.ndarray, evaluation: Evaluation) -> OptimizationProgress:
        """What custom routines learn about an evaluation."""
        return OptimizationProgress(
            self.context.problem,
            usable_parameters(self.options),
            self.context.W,
            theta,
            evaluation,
            lambda: jax.device_get(structural_errors(self.context, jnp.asarray(theta), evaluation)),
        )

    def _start_at(self, theta: np.ndarray) -> jax.Array:
        if self._anchor is None:
            return self.start
        best, evaluation = self._anchor
        step = np.asarray(theta, float) - best
        return programs.predict_delta(evaluation.inversion.delta, evaluation.delta_by_theta, step, self.start)

    def count_iteration(self, iterations: int) -> None:
        """Take note of the optimiser's number of major iterations, for progress."""
        self.optimizer_iterations = iterations

    def hessian(self, theta: np.ndarray, evaluation: Evaluation) -> jax.Array:
        """Exact Hessian (P, P) of the sum of squares of the evaluation's residuals."""
        objective, estimate = self.context.objective, jnp.asarray(theta, float)
        return programs.hessian(objective, estimate, evaluation.inversion.delta) / objective.scale

    def inner_loops(self) -> Loops:
        """Inversions of shares in all evaluations so far: arrays (T, evaluations)."""
        return jax.tree.map(lambda *columns: np.stack([np.asarray(c) for c in columns], axis=1), *self._records)

    def _print_progress(self, theta: np.ndarray, evaluation: Evaluation) -> None:
        failed = "" if bool(evaluation.ok) else describe_failures(evaluation, self.context.market_ids)
        if not self.options.optimization.universal_display:
            if failed:
                settings.output(failed)
            return
        objective = float(evaluation.objective)
        improvement = self._best - objective if objective < self._best < np.inf else None
        self._best = min(self._best, objective) if np.isfinite(objective) else self._best
        gradient = project_gradient(np.asarray(theta), np.asarray(evaluation.gradient), usable_bounds(self.options))
        inversion, projected = evaluation.inversion, has_finite_bounds(self.options)
        shown = report.Evaluation(
            step=self.step,
            seconds=time.perf_counter() - self._began,
            iterations=self.optimizer_iterations,
            evaluations=len(self._records),
            # on the host: of several processes only some may print
            fp_iterations=int(np.asarray(inversion.iterations).sum()),
            contraction_evaluations=int(np.asarray(inversion.evaluations).sum()),
            clipped_shares=int(np.asarray(inversion.clipped).sum()),
            clipped_costs=None if evaluation.costs is None else int(np.asarray(evaluation.costs.clipped).sum()),
            objective=objective,
            theta=np.asarray(theta),
            gradient_norm=float(np.abs(gradient).max(initial=0.0)),
            improvement=improvement,
            failed_markets=failed,
        )
        if len(self._records) == 1:
            settings.output(report.progress_header(len(theta), projected, evaluation.costs is not None))
        settings.output(report.progress_row(shown, projected))


def contributions_of(context: StepContext, result: StepResult) -> np.ndarray:
    """What products contribute (N, _) to the moments that are averages over products, at the end of a step."""
    objective, evaluation = context.objective, result.outcome.evaluation
    theta, delta = jnp.asarray(result.theta), jnp.asarray(evaluation.inversion.delta)
    costs = None if evaluation.costs is None else jnp.asarray(evaluation.costs.tilde_costs)
    coefficients = objective.linear_parameters(theta, delta, costs)
    errors = jnp.asarray(result.xi), None if result.omega is None else jnp.asarray(result.omega)
    point = dataclasses.replace(objective.point_at(coefficients, delta, costs), xi=errors[0], omega=errors[1])
    return np.asarray(objective.data.contributions(point))


def describe_failures(evaluation: Evaluation, market_ids: Sequence[object] | np.ndarray) -> str:
    """Sentences that name the markets in which shares were not inverted or costs not recovered; empty without any."""
    inversion, costs = evaluation.inversion, evaluation.costs
    parts = []
    if failed := describe_status(np.asarray(inversion.status), market_ids, np.asarray(inversion.residuals)):
        parts.append(f"The inversion of market shares {failed}.")
    if costs is not None and (failed := describe_status(np.asarray(costs.status), market_ids)):
        parts.append(f"{COSTS} {failed}.")
    return " ".join(parts)


class _Errors(NamedTuple):
    """All parameters at some theta, and structural errors (N,) residualised on any fixed effects."""

    coefficients: Coefficients
    xi: jax.Array
    omega: jax.Array | None


def _errors(context: StepContext, theta: jax.Array, evaluation: Evaluation) -> _Errors:
    delta, costs = evaluation.inversion.delta, evaluation.costs
    tilde_costs = None if costs is None else costs.tilde_costs
    coefficients, explained = programs.linear_parameters(context.objective, theta, delta, tilde_costs)
    xi = _residuals(context.residualize_demand, delta) - explained[0]
    omega = None
    if tilde_costs is not None:
        omega = _residuals(context.residualize_supply, tilde_costs) - explained[1]
    return _Errors(coefficients, xi, omega)


def structural_errors(context: StepContext, theta: jax.Array, evaluation: Evaluation) -> Structural:
    """Linear parameters at theta (P,), and structural errors residualised on any fixed effects."""
    found = _errors(context, theta, evaluation)
    return Structural(found.coefficients.beta, found.coefficients.gamma, found.xi, found.omega)


def solve_step(
    step: int, options: StepOptions, context: StepContext, theta: np.ndarray, delta: np.ndarray
) -> StepResult:
    """Minimise the objective from theta (P,) and delta (N,) and compute everything that results report."""
    began = time.perf_counter()
    evaluator = Evaluator(step, options, context, delta)
    outcome = minimize(
        options.optimization,
        evaluator,
        theta,
        usable_bounds(options),
        user_bounded=options.parameters.bounded_by_user,
        on_iteration=evaluator.count_iteration,
        progress_factory=evaluator.describe,
        hessian=evaluator.hessian,
        complete=evaluator.complete,
        failures=options.failure_policy,
    )
    failed = not outcome.converged and outcome.status is not OptimizationStatus.INTERRUPTED
    if failed and options.error_behavior == "raise":
        raise ThetaConvergenceError(f"GMM step {step} did not converge: {outcome.message}")
    optimised = time.perf_counter()
    evaluation, objective = outcome.evaluation, context.objective
    estimate = jnp.asarray(outcome.theta, float)
    P = estimate.size
    hessian = jnp.full((P, P), jnp.nan)
    if options.check_optimality == "both" and P > 0 and bool(evaluation.ok):
        hessian = programs.hessian(objective, estimate, evaluation.inversion.delta, settings.verbose)
    errors = _errors(context, estimate, evaluation)
    simulation = None
    if context.samples is not None and bool(evaluation.ok):
        point = (estimate, jnp.asarray(evaluation.inversion.delta))
        simulation = jnp.asarray(simulation_covariances(context.samples, objective, *point, context.market_ids))
    ending = _end(objective, estimate, evaluation, errors)
    # an initial update's formulas are those of a first step
    summary = programs.finish(objective, ending, options.types, max(step, 1), context.cluster_ids, simulation)
    outcome = dataclasses.replace(outcome, evaluation=jax.device_get(evaluation))
    errors, hessian, summary = jax.device_get((errors, hessian, summary))
    evaluation = outcome.evaluation
    return StepResult(
        step=step,
        theta=np.asarray(outcome.theta, float),
        beta=errors.coefficients.beta,
        gamma=errors.coefficients.gamma,
        delta=evaluation.inversion.delta,
        xi=errors.xi,
        omega=errors.omega,
        objective=float(evaluation.objective),
        gradient=evaluation.gradient,
        hessian=hessian,
        W=context.W,
        summary=summary,
        outcome=outcome,
        inner=evaluator.inner_loops(),
        failed_markets=describe_failures(evaluation, context.market_ids),
        optimization_time=optimised - began,
        total_time=time.perf_counter() - began,
    )


def _end(objective: GMM, theta: jax.Array, evaluation: Evaluation, errors: _Errors) -> Ending:
    """Where the step ended, with errors that were residualised on the host."""
    costs = None if evaluation.costs is None else evaluation.costs.tilde_costs
    model = objective.model
    point = Point(
        model.economy,
        model.data.supply,
        errors.coefficients,
        evaluation.inversion.delta,
        errors.xi,
        costs,
        errors.omega,
    )
    return Ending(theta, evaluation, point)


def _residuals(residualize: Callable[[np.ndarray], np.ndarray], values: jax.Array) -> jax.Array:
    return jnp.asarray(residualize(np.asarray(values)[:, None])[:, 0])
