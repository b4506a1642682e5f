"""One GMM step on the host: optimise with progress, then covariances and diagnostics at the optimum."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from blpjax import options as settings
from blpjax.economy.loops import Loops
from blpjax.estimation.checkpoint import Checkpoint
from blpjax.estimation.options import StepOptions
from blpjax.estimation.progress import MicroState, OptimizationProgress, Structural
from blpjax.exceptions import (
    DeltaConvergenceError,
    GenericNumericalError,
    NonpositiveCostsError,
    ThetaConvergenceError,
    describe_status,
    raise_for_status,
)
from blpjax.machine.placement import on_device
from blpjax.objective import differences, programs
from blpjax.objective.blocks import Point
from blpjax.objective.inference import StepSummary
from blpjax.objective.micro import MicroMoments
from blpjax.objective.moments import GMM, Evaluation
from blpjax.optimize.bounds import project_gradient
from blpjax.optimize.optimize import OptimizationOutcome, OptimizationStatus, minimize
from blpjax.reporting import report

#: What failed when a market's transformed marginal costs do not exist.
COSTS = "The recovery of marginal costs (costs_bounds keep log costs from being taken of negative costs)"


@dataclasses.dataclass(frozen=True)
class StepContext:
    """Data of a GMM step: the objective, market IDs and names of moments for messages, clusters, and absorption.

    `residualize` turn (N, K) matrices into residuals on the fixed effects of each equation. `problem` is for those who
    ask about progress. `simulate` computes simulation error, None when there is none to account for. `checkpoint` takes
    note of the best points, None when nobody asks for that.
    """

    objective: GMM
    market_ids: Sequence[object] | np.ndarray
    cluster_ids: np.ndarray
    residualize: Sequence[programs.Residualize]
    logit_delta: np.ndarray
    moment_labels: Sequence[str]
    problem: Any
    simulate: programs.Simulate | None = None
    checkpoint: Checkpoint | None = None

    @property
    def W(self) -> np.ndarray:
        """Weighting matrix (M, M)."""
        return np.asarray(self.objective.weighting.W)

    def weigh(self, W: np.ndarray) -> "StepContext":
        """The same with another weighting matrix."""
        return dataclasses.replace(self, objective=programs.weighted(self.objective.model, W, self.objective.scale))

    def point(self, theta: np.ndarray | jax.Array, evaluation: Evaluation) -> Point:
        """What moments are functions of at theta (P,), with structural errors residualised on any fixed effects."""
        return programs.end_at(self.objective, on_device(theta), evaluation, self.residualize)


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

    #: What may fail in a market.
    action = "The inversion of market shares"

    def __init__(self, step: int, options: StepOptions, context: StepContext, start: np.ndarray) -> None:
        self.context = context
        self._begin(step, options, context.logit_delta, start)
        self._checkpoint: Checkpoint | None = context.checkpoint

    def _begin(self, step: int, options: StepOptions, logit_delta: np.ndarray, start: np.ndarray) -> None:
        self.step = step
        self.options = options
        self.start = on_device(logit_delta if options.delta_behavior == "logit" else start)
        self.optimizer_iterations = 0
        self._records: list[Loops] = []
        self._began = time.perf_counter()
        self._best = np.inf
        self._anchor: tuple[np.ndarray, Evaluation] | None = None
        self._checkpoint = None

    def __call__(self, theta: np.ndarray) -> Evaluation:
        """Evaluate the objective and its derivatives at theta (P,)."""
        options = self.options
        evaluation = self._evaluate(np.asarray(theta, float), self._start_at(theta), self._needs_derivatives)
        inversion = evaluation.inversion
        self._records.append(Loops(**inversion.fields()))
        if options.error_behavior == "raise" and not bool(evaluation.ok):
            status, residuals = jax.device_get((inversion.status, inversion.residuals))
            raise_for_status(status, self.context.market_ids, self.action, residuals, kind=DeltaConvergenceError)
            if evaluation.costs is not None:
                raise_for_status(
                    np.asarray(evaluation.costs.status), self.context.market_ids, COSTS, kind=NonpositiveCostsError
                )
            raise GenericNumericalError(f"The objective or its gradient is not finite at theta = {np.asarray(theta)}.")
        if options.delta_behavior == "last" and bool(evaluation.ok):
            self.start = inversion.delta
        if options.delta_behavior == "predicted" and bool(evaluation.ok):
            if self._anchor is None or float(evaluation.objective) <= float(self._anchor[1].objective):
                self._anchor = np.array(theta, float), evaluation
        if self._checkpoint is not None and self.step > 0 and bool(evaluation.ok):
            self._checkpoint.keep(self.step, np.asarray(theta), float(evaluation.objective))
        if settings.verbose:
            self._print_progress(theta, evaluation)
        return evaluation

    @property
    def _needs_derivatives(self) -> bool:
        optimization = self.options.optimization
        return optimization.compute_gradient or not optimization.routine.optimizes

    def _evaluate(self, theta: np.ndarray, start: Any, derivatives: bool) -> Evaluation:
        objective, epsilon = self.context.objective, self.options.differences
        if not derivatives:
            return differences.evaluate_values(objective, theta, start)
        if callable(self.options.optimization.method):
            return self._add_derivatives(theta, differences.evaluate_values(objective, theta, start))
        if epsilon is None:
            return programs.evaluate(objective, theta, start)
        return differences.evaluate_by_differences(objective, theta, start, epsilon)

    def _add_derivatives(self, theta: np.ndarray, evaluation: Evaluation) -> Evaluation:
        """Derivatives for an evaluation without any, whose values stay as they are to the last bit.

        Routines that take differences of the objective would turn rounding errors of other values into other steps.
        """
        objective, epsilon = self.context.objective, self.options.differences
        start = evaluation.inversion.delta
        if epsilon is None:
            found = programs.evaluate(objective, theta, start)
        else:
            found = differences.evaluate_by_differences(objective, theta, start, epsilon)
        ok = evaluation.ok & found.ok
        return dataclasses.replace(
            found,
            objective=np.where(ok, evaluation.objective, np.nan),
            residuals=evaluation.residuals,
            inversion=evaluation.inversion,
            costs=evaluation.costs,
            ok=ok,
        )

    def complete(self, theta: np.ndarray, evaluation: Evaluation) -> Evaluation:
        """An evaluation at theta (P,) with derivatives, which routines without gradients have no use for."""
        if self._needs_derivatives:
            return evaluation
        return self._add_derivatives(np.asarray(theta, float), evaluation)

    def describe(self, theta: np.ndarray, evaluation: Evaluation) -> OptimizationProgress:
        """What custom routines learn about an evaluation."""
        return OptimizationProgress(
            self.context.problem,
            self.options.parameters,
            self.context.W,
            theta,
            evaluation,
            lambda: jax.device_get(structural_errors(self.context, on_device(theta), evaluation)),
            lambda: micro_state(self.context, self.options, on_device(theta), evaluation),
        )

    def _start_at(self, theta: np.ndarray) -> Any:
        if self._anchor is None:
            return self.start
        best, evaluation = self._anchor
        step = np.asarray(theta, float) - best
        return programs.predict_delta(evaluation, step, self.start)

    def count_iteration(self, iterations: int) -> None:
        """Take note of the optimiser's number of major iterations, for progress."""
        self.optimizer_iterations = iterations

    def hessian(self, theta: np.ndarray, evaluation: Evaluation) -> np.ndarray:
        """Exact Hessian (P, P) of the sum of squares of the evaluation's residuals."""
        objective, estimate = self.context.objective, jax.device_put(np.asarray(theta, float))
        return programs.hessian_at(objective, estimate, evaluation.inversion.delta) / np.asarray(objective.scale)

    def failures(self, theta: np.ndarray, evaluation: Evaluation) -> str:
        """Sentences on what failed in an evaluation; empty where nothing did."""
        return describe_failures(evaluation, self.context, theta)

    def inner_loops(self) -> Loops:
        """Inversions of shares in all evaluations so far: arrays (T, evaluations)."""
        return jax.tree.map(lambda *columns: np.stack([np.asarray(c) for c in columns], axis=1), *self._records)

    def _print_progress(self, theta: np.ndarray, evaluation: Evaluation) -> None:
        failed = "" if bool(evaluation.ok) else self.failures(theta, evaluation)
        if not self.options.optimization.universal_display:
            if failed:
                settings.output(failed)
            return
        objective = float(evaluation.objective)
        improvement = self._best - objective if objective < self._best < np.inf else None
        self._best = min(self._best, objective) if np.isfinite(objective) else self._best
        gradient = project_gradient(np.asarray(theta), np.asarray(evaluation.gradient), self.options.parameters.bounds)
        inversion, projected = evaluation.inversion, self.options.parameters.has_bounds
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


def describe_failures(evaluation: Evaluation, context: StepContext, theta: np.ndarray) -> str:
    """Sentences that name the markets in which shares were not inverted or costs not recovered; empty without any.

    Where nothing else failed at theta (P,), they name the micro moments that are not finite.
    """
    inversion, costs, market_ids = evaluation.inversion, evaluation.costs, context.market_ids
    parts = []
    if failed := describe_status(np.asarray(inversion.status), market_ids, np.asarray(inversion.residuals)):
        parts.append(f"The inversion of market shares {failed}.")
    if costs is not None and (failed := describe_status(np.asarray(costs.status), market_ids)):
        parts.append(f"{COSTS} {failed}.")
    micro = [block for block in context.objective.data.more if isinstance(block, MicroMoments)]
    if micro and not parts and not bool(evaluation.ok):
        arguments = (context.objective, on_device(np.asarray(theta, float)), evaluation, context.residualize)
        found = programs.sensitivity_at(*arguments)
        P = np.size(theta)
        for block in micro:
            finite = np.isfinite(found.moments) & np.isfinite(found.jacobian[:, :P]).all(axis=1)
            names = [name for name, fine in zip(block.names, finite[-block.size :], strict=True) if not fine]
            if names:
                parts.append(f"The micro moments {', '.join(map(repr, names))} are not finite.")
    return " ".join(parts)


def micro_state(context: StepContext, options: StepOptions, theta: jax.Array, evaluation: Evaluation) -> MicroState:
    """Micro moments at an evaluation, of which there may be none."""
    observed = np.array([line.observed for line in options.micro if line.first])
    if not observed.size:
        return MicroState(observed, observed, np.zeros((0, theta.size)))
    found = programs.sensitivity_at(context.objective, theta, evaluation, context.residualize)
    micro = found.moments[-observed.size :]
    return MicroState(micro, observed - micro, found.jacobian[-observed.size :, : theta.size])


def structural_errors(context: StepContext, theta: jax.Array, evaluation: Evaluation) -> Structural:
    """Linear parameters at theta (P,), and structural errors residualised on any fixed effects."""
    point = context.point(theta, evaluation)
    return Structural(point.coefficients.beta, point.coefficients.gamma, point.xi, point.omega)


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
        options.parameters.bounds,
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
    found = programs.conclude(
        context.objective,
        jax.device_put(np.asarray(outcome.theta, float)),
        outcome.evaluation,
        context.residualize,
        options.types,
        step=max(step, 1),  # an initial update's formulas are those of a first step
        cluster_ids=context.cluster_ids,
        # who has interrupted does not wait for more programs than it takes
        curvature=options.check_optimality == "both" and outcome.status is not OptimizationStatus.INTERRUPTED,
        progress=settings.verbose,
        simulate=context.simulate,
    )
    outcome = dataclasses.replace(outcome, evaluation=jax.device_get(outcome.evaluation))
    point, evaluation = found.point, outcome.evaluation
    parts = (point.coefficients, point.xi, point.omega, found.hessian, found.summary)
    coefficients, xi, omega, hessian, summary = jax.device_get(parts)
    return StepResult(
        step=step,
        theta=np.asarray(outcome.theta, float),
        beta=coefficients.beta,
        gamma=coefficients.gamma,
        delta=evaluation.inversion.delta,
        xi=xi,
        omega=omega,
        objective=float(evaluation.objective),
        gradient=evaluation.gradient,
        hessian=hessian,
        W=context.W,
        summary=summary,
        outcome=outcome,
        inner=evaluator.inner_loops(),
        failed_markets=describe_failures(evaluation, context, outcome.theta),
        optimization_time=optimised - began,
        total_time=time.perf_counter() - began,
    )
