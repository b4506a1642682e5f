"""Many estimations of one shape at once: GMM estimators as lanes of compiled programs.

A lane goes through the same steps as `Problem.solve` with the same optimiser and has the same objective, so that its
estimates are the same. On CPUs lanes are worked on one after the other, on several cores; elsewhere they are
vectorised, and those that have ended are taken out, so that they stop costing anything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float, Int

from blpjax.estimation.lane import BatchOptions, Lane, place_lane
from blpjax.exceptions import Status, succeeded
from blpjax.machine.compilation import filtered_program
from blpjax.machine.placement import Placement
from blpjax.machine.spread import each_lane, one_by_one, spread
from blpjax.objective.data import ModelData
from blpjax.objective.inference import StepSummary
from blpjax.objective.micro import MicroMoments
from blpjax.objective.moments import Ending, Evaluation, Weighting, lacks_influence, weigh
from blpjax.objective.programs import predicted_delta
from blpjax.optimize.stepwise import RUNNING

#: Evaluations of vectorised lanes between two looks at which of them have ended.
ROUND = 6

#: Batches are not made smaller than this when lanes have ended: another program would have to be compiled.
SMALLEST = 8


class BatchOutcome(eqx.Module):
    """Outcome of each of B estimations.

    `parameters` and `standard_errors` (B, Q) are those of theta and of the concentrated elements of beta and gamma;
    `identified` (B, Q) says whether structural errors depend on a parameter, without which its standard error means
    nothing. `status` (B,) are codes of `Status`, that of the first step that failed or of the last one. `ok` (B,) says
    whether all steps succeeded and all numbers are finite. `gradient_norms`, `objectives` and `evaluations` (B,) are
    those of the last step, evaluations summed over steps. `micro_values` and `micro_errors` (B, MM) are the model's
    micro moments at the estimates and their standard errors, None without any.
    """

    parameters: Float[np.ndarray, "B Q"]
    standard_errors: Float[np.ndarray, "B Q"]
    identified: Bool[np.ndarray, "B Q"]
    objectives: Float[np.ndarray, " B"]
    gradient_norms: Float[np.ndarray, " B"]
    evaluations: Int[np.ndarray, " B"]
    status: Int[np.ndarray, " B"]
    ok: Bool[np.ndarray, " B"]
    micro_values: Float[np.ndarray, "B MM"] | None = None
    micro_errors: Float[np.ndarray, "B MM"] | None = None

    @property
    def reasons(self) -> Int[np.ndarray, " B"]:
        """Codes of `Status`, of success only where an estimation is `ok`: otherwise some number is not finite."""
        return np.where(succeeded(self.status) & ~self.ok, int(Status.NOT_FINITE), self.status)


def tabulate(
    outcome: BatchOutcome,
    numbers: Int[np.ndarray, " B"],
    blocks: Sequence[str],
    labels: Sequence[str],
    failures: Sequence[str | None],
) -> pd.DataFrame:
    """A row for each estimation and parameter. Estimates that cannot be used are NaN, and their status says why.

    Parameters
    ----------
    numbers : (B,) numbers of the estimations, the column `number`.
    blocks, labels : blocks and names of the Q parameters.
    failures : B sentences on what else is wrong with an estimation, None where nothing is.
    """
    B, Q = outcome.parameters.shape
    ok = outcome.ok & np.array([failure is None for failure in failures], bool)
    sentences = [failure or Status(code).sentence for failure, code in zip(failures, outcome.reasons, strict=True)]
    valid = np.where(ok, 1.0, np.nan)[:, None]
    return pd.DataFrame(
        {
            "number": np.repeat(numbers, Q),
            "block": np.tile(blocks, B),
            "parameter": np.tile(labels, B),
            "estimate": (valid * outcome.parameters).ravel(),
            "standard_error": (valid * outcome.standard_errors).ravel(),
            "ok": np.repeat(ok, Q),
            "identified": outcome.identified.ravel(),
            "status": np.repeat(np.array(sentences, dtype=object), Q),
            "objective": np.repeat(outcome.objectives, Q),
            "gradient_norm": np.repeat(outcome.gradient_norms, Q),
            "evaluations": np.repeat(outcome.evaluations, Q),
        }
    )


def estimate_batch(
    options: BatchOptions, varying: Lane, shared: Lane, size: int, devices: Sequence[jax.Device] | None = None
) -> BatchOutcome:
    """Estimate `size` models.

    Parameters
    ----------
    varying : arrays with a first axis of lanes, None for what is in `shared`.
    shared : what all lanes have in common, None for what is in `varying`.
    devices : where, see `blpjax.machine.spread.spread`.
    """

    def work(lanes: np.ndarray, placement: Placement | None) -> BatchOutcome:
        own = place_lane(_take(varying, jnp.asarray(lanes)), placement)
        return estimate_lanes(options, own, place_lane(shared, placement), lanes.size)

    key = (options, jax.tree.structure((varying, shared)), *(leaf.shape for leaf in jax.tree.leaves((varying, shared))))
    return spread(work, size, devices, key)


def estimate_lanes(options: BatchOptions, varying: Lane, shared: Lane, size: int) -> BatchOutcome:
    """`estimate_batch` for as many models as should be worked on at a time, where the lanes' placement says."""
    theta = varying.theta
    if theta is None:
        theta = jnp.broadcast_to(shared.theta, (size, *shared.theta.shape))
    weights = _initial_weights(varying, shared)
    total, status = np.zeros(size, int), np.full(size, RUNNING)
    if shared.data.needs_update and varying.W is None and shared.W is None:
        # one evaluation at the starting values says how some moments are weighted
        parts, run = _begin(options, varying, shared, theta, weights)
        run = _round(options, varying, shared, parts, run, jnp.ones(size, int))
        weights = _finish(options, 1, varying, shared, parts, run).updated_W
        total += 1
    for step in range(1, options.steps + 1):
        parts, run = _begin(options, varying, shared, theta, weights)
        run = _minimise(options, varying, shared, parts, run)
        finished = _finish(options, step, varying, shared, parts, run)
        state = run.advance.state
        theta, weights = state.theta, finished.updated_W
        total += np.asarray(state.evaluations)
        failed = (status != RUNNING) & ~succeeded(status)
        status = np.where(failed, status, np.asarray(state.status))
    found = jax.device_get(finished)
    finite = np.isfinite(found.parameters).all(axis=1) & np.isfinite(found.standard_errors).all(axis=1)
    return BatchOutcome(
        parameters=found.parameters,
        standard_errors=found.standard_errors,
        identified=found.identified,
        objectives=found.objective,
        gradient_norms=np.asarray(state.projected_gradient_norm),
        evaluations=total,
        status=status,
        ok=finite & found.ok & succeeded(status),
        micro_values=found.micro_values,
        micro_errors=found.micro_errors,
    )


class _Run(eqx.Module):
    """What the optimiser does next, an `Advance` of one of them, and the evaluation at its best point."""

    advance: Any
    best: Evaluation


class _Finished(eqx.Module):
    parameters: Array
    standard_errors: Array
    identified: Array
    objective: Array
    updated_W: Array
    ok: Array
    micro_values: Array | None
    micro_errors: Array | None


def _minimise(options: BatchOptions, varying: Lane, shared: Lane, parts: Weighting, run: _Run) -> _Run:
    """Run all lanes to their end. Vectorised lanes that have ended are left out; others then cost nothing anyway."""
    size = run.advance.state.status.shape[0]
    lanes = np.arange(size)

    def work(program: Callable[..., _Run]) -> _Run:
        if one_by_one() or lanes.size == size:
            return program(options, varying, shared, parts, run)
        chosen = jnp.asarray(_pad_lanes(lanes, size, 1 if shared.placement is None else shared.placement.size))
        pieces = (_take(tree, chosen) for tree in (varying, parts, run))
        return _put(run, program(options, next(pieces), shared, *pieces), chosen)

    most = jnp.iinfo(int).max if one_by_one() else ROUND
    while lanes.size:
        run = work(lambda *given: _round(*given, jnp.full(given[-1].advance.state.status.shape, most)))
        lanes = np.flatnonzero(np.asarray(run.advance.stuck))
        if lanes.size:
            run = work(_inform)
        lanes = np.flatnonzero(np.asarray(run.advance.state.status) == RUNNING)
    return run


def _pad_lanes(lanes: np.ndarray, size: int, devices: int) -> np.ndarray:
    """Lanes and then `size`, which is none: there are few numbers of lanes, so that few programs are compiled."""
    width = size
    while width > 4 * lanes.size and width > SMALLEST * devices:
        width = -(-width // (4 * devices)) * devices
    return np.concatenate([lanes, np.full(width - lanes.size, size)])


@filtered_program(effort=0)
def _take(tree: Any, lanes: Array) -> Any:
    """Some lanes of a tree. What stands in for no lane has ended."""
    found = jax.tree.map(lambda leaf: leaf.at[lanes].get(mode="clip"), tree)
    if not isinstance(found, _Run):
        return found
    status = found.advance.state.status
    ended = jnp.where(lanes < jax.tree.leaves(tree)[0].shape[0], status, int(Status.CONVERGED))
    return eqx.tree_at(lambda run: run.advance.state.status, found, ended)


@filtered_program(effort=0)
def _put(tree: Any, part: Any, lanes: Array) -> Any:
    return jax.tree.map(lambda leaf, new: leaf.at[lanes].set(new, mode="drop"), tree, part)


@filtered_program(effort=1, what="estimations side by side")
def _round(options: BatchOptions, varying: Lane, shared: Lane, parts: Weighting, run: _Run, most: Array) -> _Run:
    """Evaluations of every lane until it ends or is stuck, at most so many (B,)."""

    def one(lane: Lane, part: Weighting, begun: _Run, most: Array) -> _Run:
        whole = eqx.combine(lane, shared)
        objective = whole.objective(options.specification, part)

        def continues(count: tuple[Array, _Run]) -> Array:
            done, now = count
            state = now.advance.state
            return (done < most) & (state.status == RUNNING) & ~now.advance.stuck

        def evaluate(count: tuple[Array, _Run]) -> tuple[Array, _Run]:
            done, now = count
            candidate, known = now.advance.candidate, now.best
            step = candidate - now.advance.state.theta
            start = predicted_delta(known.inversion.delta, known.delta_by_theta, step, whole.delta)
            start = jnp.where(known.ok, start, whole.delta)
            found = objective.evaluate(candidate, start)
            advance = options.optimizer.advance(now.advance, found)
            better = found.ok & (advance.state.theta == candidate).all()
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, known)
            return done + 1, _Run(advance, best)

        return jax.lax.while_loop(continues, evaluate, (jnp.asarray(0), begun))[1]

    return each_lane(one, varying, parts, run, most, placement=shared.placement)


@filtered_program(effort=1)
def _inform(options: BatchOptions, varying: Lane, shared: Lane, parts: Weighting, run: _Run) -> _Run:
    """Continue with the exact Hessian at the best point, as `Problem.solve` does where trials are rejected."""

    def one(lane: Lane, part: Weighting, now: _Run) -> _Run:
        objective = eqx.combine(lane, shared).objective(options.specification, part)
        delta = now.best.inversion.delta

        def hessian(state: Any) -> Array:
            H = objective.curvature(state.theta, delta, jnp.eye(state.theta.size))
            return jnp.where(now.best.ok, (H + H.T) / 2, jnp.nan)

        return _Run(options.optimizer.inform(now.advance, hessian), now.best)

    def where_stuck(lane: Lane, part: Weighting, now: _Run) -> _Run:
        return jax.lax.cond(now.advance.stuck, one, lambda lane, part, now: now, lane, part, now)

    return each_lane(where_stuck, varying, parts, run, placement=shared.placement)


@filtered_program(effort=0)
def _initial_weights(varying: Lane, shared: Lane) -> Array:
    def one(lane: Lane) -> Array:
        whole = eqx.combine(lane, shared)
        return whole.data.initial_weights() if whole.W is None else whole.W

    return each_lane(one, varying, placement=shared.placement)


@filtered_program(effort=0)
def _begin(options: BatchOptions, varying: Lane, shared: Lane, theta: Array, weights: Array) -> tuple[Weighting, _Run]:
    """Linear steps at weighting matrices, and optimisers at starting values."""
    specification = options.specification

    def one(varying: Lane, start: Array, W: Array) -> tuple[Weighting, _Run]:
        lane = eqx.combine(varying, shared)
        weighting = weigh(specification, lane.data, W)
        advance = options.optimizer.begin(start, lane.lower, lane.upper, W.shape[0])
        shapes = jax.eval_shape(lambda: lane.objective(specification, weighting).evaluate(start, lane.delta))
        best = jax.tree.map(_nothing, shapes)
        return weighting, _Run(advance, best)

    return each_lane(one, varying, theta, weights, placement=shared.placement)


def _nothing(leaf: jax.ShapeDtypeStruct) -> Array:
    return jnp.full(leaf.shape, jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 0, leaf.dtype)


@filtered_program(effort=1, what="standard errors of estimations side by side")
def _finish(
    options: BatchOptions,
    step: int,
    varying: Lane,
    shared: Lane,
    parts: Weighting,
    run: _Run,
) -> _Finished:
    """Covariances and the next weighting matrix at the estimates."""

    def one(varying: Lane, part: Weighting, now: _Run) -> _Finished:
        lane = eqx.combine(varying, shared)
        theta, evaluation = now.advance.state.theta, now.best
        objective, delta = lane.objective(options.specification, part), evaluation.inversion.delta
        tilde_costs = None if evaluation.costs is None else evaluation.costs.tilde_costs
        coefficients = objective.linear_parameters(theta, delta, tilde_costs)
        ending = Ending(theta, evaluation, objective.point_at(coefficients, delta, tilde_costs))
        found = objective.finish(ending, options.types, step, lane.cluster_ids)
        concentrated = jnp.ones(found.parameters.size - theta.size, bool)
        micro = _micro_outcome(lane.data, found)
        return _Finished(
            found.parameters,
            found.inference.standard_errors,
            jnp.concatenate([~lacks_influence(evaluation, theta, options.specification.layout), concentrated]),
            evaluation.objective,
            found.updated_W,
            evaluation.ok,
            *micro,
        )

    return each_lane(one, varying, parts, run, placement=shared.placement)


def _micro_outcome(data: ModelData, found: StepSummary) -> tuple[Array | None, Array | None]:
    """The model's micro moments (MM,), which stand last, and their standard errors at the estimates."""
    blocks = [block for block in data.more if isinstance(block, MicroMoments)]
    if not blocks:
        return None, None
    last = slice(-blocks[0].size, None)
    moments = found.moments if data.offset is None else found.moments + data.offset
    slopes = found.moments_jacobian[last]
    variances = ((slopes @ found.inference.covariances) * slopes).sum(axis=1) / data.count
    return blocks[0].observed - moments[last], jnp.sqrt(jnp.maximum(variances, 0.0))
