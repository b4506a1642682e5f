"""One GMM step on the host: optimise with progress, then covariances and diagnostics at the optimum."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blpjax import options as settings
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
from blpjax.objective import differences, inference
from blpjax.objective.moments import Evaluation, MomentInputs
from blpjax.objective.simulation_error import AgentSamples, simulation_covariances
from blpjax.optimize.bounds import project_gradient
from blpjax.optimize.optimize import OptimizationOutcome, OptimizationStatus, minimize
from blpjax.reporting import report

#: What failed when a market's transformed marginal costs do not exist.
COSTS = "The recovery of marginal costs (costs_bounds keep log costs from being taken of negative costs)"


@dataclasses.dataclass(frozen=True)
class StepContext:
    """Data of a GMM step: `inputs` on the device, market IDs for messages, clusters, and what absorbs fixed effects.

    `residualize_demand` and `residualize_supply` turn (N, K) matrices into residuals. `problem` and the weighting
    matrix `W` (M, M) are for those who ask about progress. `samples` are agents drawn again for simulation error, None
    when there is none to account for.
    """

    inputs: MomentInputs
    market_ids: Sequence[object] | np.ndarray
    cluster_ids: np.ndarray
    residualize_demand: Callable[[np.ndarray], np.ndarray]
    residualize_supply: Callable[[np.ndarray], np.ndarray]
    logit_delta: np.ndarray
    problem: Any
    W: np.ndarray
    samples: AgentSamples | None = None


@dataclasses.dataclass(frozen=True)
class InnerLoops:
    """How the inversion of shares went: rows are markets in the sorted order of IDs, columns objective evaluations."""

    status: np.ndarray
    iterations: np.ndarray
    evaluations: np.ndarray
    residuals: np.ndarray


@dataclasses.dataclass(frozen=True)
class StepResult:
    """Arrays at the end of a GMM step, all in NumPy.

    `theta` (P,), `beta` (K1,), `gamma` (K3,), `delta`, `xi` and `omega` (N,), the last None without a supply side,
    `objective`, `gradient` (P,), `hessian` (P, P) or NaN, `summary` with host arrays of `estimator.StepSummary`, and
    what the loops did. `outcome.evaluation` has costs and derivatives.
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
    summary: inference.StepSummary
    outcome: OptimizationOutcome
    inner: InnerLoops
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
        self._records: list[tuple[jax.Array, ...]] = []
        self._began = time.perf_counter()
        self._best = np.inf
        self._anchor: tuple[np.ndarray, Evaluation] | None = None

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Evaluate the objective and its derivatives at theta (P,)."""
        options = self.options
        evaluation = self._evaluate(np.asarray(theta, float), self._start_at(theta), self._needs_derivatives)
        inversion = evaluation.inversion
        self._records.append((inversion.status, inversion.iterations, inversion.evaluations, inversion.residuals))
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
        specification, inputs, epsilon = self.options.specification, self.context.inputs, self.options.differences
        if not derivatives:
            return differences.evaluate_values(specification, inputs, theta, start)
        if epsilon is None:
            return inference.evaluate(specification, inputs, theta, start)
        return differences.evaluate_by_differences(specification, inputs, theta, start, epsilon)

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
            lambda: jax.device_get(structural_errors(self.options, self.context, jnp.asarray(theta), evaluation)[1]),
        )

    def _start_at(self, theta: np.ndarray) -> jax.Array:
        if self._anchor is None:
            return self.start
        best, evaluation = self._anchor
        step = np.asarray(theta, float) - best
        return inference.predict_delta(evaluation.inversion.delta, evaluation.delta_by_theta, step, self.start)

    def count_iteration(self, iterations: int) -> None:
        """Take note of the optimiser's number of major iterations, for progress."""
        self.optimizer_iterations = iterations

    def hessian(self, theta: np.ndarray, evaluation: Evaluation) -> jax.Array:
        """Exact Hessian (P, P) of the sum of squares of the evaluation's residuals."""
        inputs, estimate = self.context.inputs, jnp.asarray(theta, float)
        delta = evaluation.inversion.delta
        return inference.hessian(self.options.specification, inputs, estimate, delta) / inputs.factor

    def inner_loops(self) -> InnerLoops:
        """Statuses and counters of all evaluations so far."""
        columns = [np.stack([np.asarray(record[i]) for record in self._records], axis=1) for i in range(4)]
        return InnerLoops(*columns)

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


def describe_failures(evaluation: Evaluation, market_ids: Sequence[object] | np.ndarray) -> str:
    """Sentences that name the markets in which shares were not inverted or costs not recovered; empty without any."""
    inversion, costs = evaluation.inversion, evaluation.costs
    parts = []
    if failed := describe_status(np.asarray(inversion.status), market_ids, np.asarray(inversion.residuals)):
        parts.append(f"The inversion of market shares {failed}.")
    if costs is not None and (failed := describe_status(np.asarray(costs.status), market_ids)):
        parts.append(f"{COSTS} {failed}.")
    return " ".join(parts)


def structural_errors(
    options: StepOptions, context: StepContext, theta: jax.Array, evaluation: Evaluation
) -> tuple[inference.LinearParameters, Structural]:
    """Linear parameters at theta (P,), and structural errors residualised on any fixed effects."""
    delta, costs = evaluation.inversion.delta, evaluation.costs
    linear = inference.linear_parameters(
        options.specification, context.inputs, theta, delta, None if costs is None else costs.tilde_costs
    )
    xi = _residuals(context.residualize_demand, delta) - linear.explained
    omega = None
    if costs is not None:
        omega = _residuals(context.residualize_supply, costs.tilde_costs) - linear.explained_costs
    return linear, Structural(linear.beta, linear.gamma, xi, omega)


def solve_step(
    step: int,
    options: StepOptions,
    context: StepContext,
    W: np.ndarray,
    theta: np.ndarray,
    delta: np.ndarray,
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
    evaluation = outcome.evaluation
    specification, inputs = options.specification, context.inputs
    estimate = jnp.asarray(outcome.theta, float)
    P = estimate.size
    hessian = jnp.full((P, P), jnp.nan)
    if options.check_optimality == "both" and P > 0 and bool(evaluation.ok):
        hessian = inference.hessian(specification, inputs, estimate, evaluation.inversion.delta, settings.verbose)
    linear, errors = structural_errors(options, context, estimate, evaluation)
    simulation = None
    if context.samples is not None and bool(evaluation.ok):
        point = (estimate, jnp.asarray(evaluation.inversion.delta))
        simulation = jnp.asarray(
            simulation_covariances(context.samples, specification, inputs, *point, context.market_ids)
        )
    summary = inference.summarise(
        specification,
        options.types,
        max(step, 1),  # an initial update's formulas are those of a first step
        inputs,
        estimate,
        evaluation,
        linear,
        errors.xi,
        errors.omega,
        jnp.asarray(W),
        context.cluster_ids,
        simulation,
    )
    outcome = dataclasses.replace(outcome, evaluation=jax.device_get(evaluation))
    linear, errors, hessian, summary = jax.device_get((linear, errors, hessian, summary))
    evaluation = outcome.evaluation
    return StepResult(
        step=step,
        theta=np.asarray(outcome.theta, float),
        beta=linear.beta,
        gamma=linear.gamma,
        delta=evaluation.inversion.delta,
        xi=errors.xi,
        omega=errors.omega,
        objective=float(evaluation.objective),
        gradient=evaluation.gradient,
        hessian=hessian,
        W=np.asarray(W),
        summary=summary,
        outcome=outcome,
        inner=evaluator.inner_loops(),
        failed_markets=describe_failures(evaluation, context.market_ids),
        optimization_time=optimised - began,
        total_time=time.perf_counter() - began,
    )


def _residuals(residualize: Callable[[np.ndarray], np.ndarray], values: jax.Array) -> jax.Array:
    return jnp.asarray(residualize(np.asarray(values)[:, None])[:, 0])
