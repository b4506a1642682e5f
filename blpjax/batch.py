"""Many estimations of one shape at once: GMM estimators as lanes of one compiled program.

A lane goes through the same steps as `Problem.solve` with its default optimiser and has the same objective, so that its
estimates are the same. Evaluations of all lanes are vectorised; the small matrices of the optimiser and of covariances
are worked on one lane after the other. Lanes that have ended are taken out of the batch, so that they stop costing
anything.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from blpjax import gmm, moments
from blpjax.compilation import filtered_program
from blpjax.economy import Economy
from blpjax.estimator import CovarianceTypes, LinearParameters, lacks_influence, summarise_step
from blpjax.exceptions import Status, succeeded
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.moments import Evaluation, ModelData, MomentInputs, Specification
from blpjax.parameters import Coefficients
from blpjax.trust_region import RUNNING, Advance, Residuals, TrustRegionOptions, inform, initialise, propose, update

#: Evaluations between two looks at which lanes have ended.
ROUND = 6

#: Trials that may be rejected in a row before the exact Hessian is computed.
REJECTIONS = 3

#: Batches are not made smaller than this when lanes have ended: another program would have to be compiled.
SMALLEST = 8


class BatchOptions(NamedTuple):
    """What decides which programs are compiled: layout and inner loop, types of covariances, number of GMM steps."""

    specification: Specification
    types: CovarianceTypes
    steps: int


class Lane(eqx.Module):
    """Everything that one estimation depends on. All is traced.

    Batches are two such trees: one whose arrays have a first axis of lanes, and one with what lanes share. Each has
    None where the other one has an array.
    """

    economy: Economy
    data: ModelData
    fixed: Coefficients
    theta: Float[Array, " P"]
    lower: Float[Array, " P"]
    upper: Float[Array, " P"]
    delta: Float[Array, " N"]
    cluster_ids: Int[Array, " N"]
    limits: FixedPointLimits


class BatchOutcome(eqx.Module):
    """Outcome of each of B estimations.

    `parameters` and `standard_errors` (B, Q) are those of theta and of the concentrated elements of beta and gamma;
    `identified` (B, Q) says whether structural errors depend on a parameter, without which its standard error means
    nothing. `status` (B,) are codes of `Status`, that of the first step that failed or of the last one. `ok` (B,) says
    whether all steps succeeded and all numbers are finite. `gradient_norms`, `objectives` and `evaluations` (B,) are
    those of the last step, evaluations summed over steps.
    """

    parameters: Float[np.ndarray, "B Q"]
    standard_errors: Float[np.ndarray, "B Q"]
    identified: Bool[np.ndarray, "B Q"]
    objectives: Float[np.ndarray, " B"]
    gradient_norms: Float[np.ndarray, " B"]
    evaluations: Int[np.ndarray, " B"]
    status: Int[np.ndarray, " B"]
    ok: Bool[np.ndarray, " B"]


def estimate_batch(options: BatchOptions, varying: Lane, shared: Lane, size: int) -> BatchOutcome:
    """Estimate `size` models.

    Parameters
    ----------
    varying : arrays with a first axis of lanes, None for what is in `shared`.
    shared : what all lanes have in common, None for what is in `varying`.
    """
    theta = varying.theta
    if theta is None:
        theta = jnp.broadcast_to(shared.theta, (size, *shared.theta.shape))
    weights = _initial_weights(varying, shared)
    total, status = np.zeros(size, int), np.full(size, RUNNING)
    for step in range(1, options.steps + 1):
        parts = _linear_steps(options, varying, shared, weights)
        carry = _begin(varying, shared, theta, weights.shape[1])
        carry = _minimise(options, varying, shared, parts, carry)
        finished = _finish(options, step, varying, shared, parts, carry.state.theta, weights)
        theta, weights = carry.state.theta, finished.updated_W
        total += np.asarray(carry.state.evaluations)
        failed = (status != RUNNING) & ~succeeded(status)
        status = np.where(failed, status, np.asarray(carry.state.status))
    found = jax.device_get(finished)
    finite = np.isfinite(found.parameters).all(axis=1) & np.isfinite(found.standard_errors).all(axis=1)
    return BatchOutcome(
        parameters=found.parameters,
        standard_errors=found.standard_errors,
        identified=found.identified,
        objectives=found.objective,
        gradient_norms=np.asarray(carry.state.projected_gradient_norm),
        evaluations=total,
        status=status,
        ok=finite & found.ok & succeeded(status),
    )


class _LinearParts(eqx.Module):
    """Linear steps and factors of the weighting matrices of all lanes."""

    step: gmm.LinearStep
    weight_factor: Array


class _Finished(eqx.Module):
    parameters: Array
    standard_errors: Array
    identified: Array
    objective: Array
    updated_W: Array
    ok: Array


def _minimise(options: BatchOptions, varying: Lane, shared: Lane, parts: _LinearParts, carry: Advance) -> Advance:
    """Run all lanes to their end, in rounds after which lanes that have ended are left out."""
    size = carry.state.status.shape[0]
    running, everything = np.arange(size), carry
    informed_at = np.full(carry.state.theta.shape, np.nan)

    def work(program: Callable[..., Advance], lanes: np.ndarray) -> Advance:
        chosen = jnp.asarray(_pad_lanes(lanes, size))
        part = program(options, _take(varying, chosen), shared, _take(parts, chosen), _take(everything, chosen))
        return _put(everything, part, chosen)

    while running.size:
        everything = work(_round, running)
        status, rejections, theta = jax.device_get(
            (everything.state.status, everything.state.rejections, everything.state.theta)
        )
        failing = (status == Status.STALLED) | ((status == RUNNING) & (rejections >= REJECTIONS))
        failing = np.flatnonzero(failing & (theta != informed_at).any(axis=1))
        if failing.size and theta.size:
            informed_at[failing] = theta[failing]
            everything = work(_inform, failing)
            status = np.asarray(everything.state.status)
        running = np.flatnonzero(status == RUNNING)
    return everything


def _pad_lanes(lanes: np.ndarray, size: int) -> np.ndarray:
    """Lanes, some of them repeated: there are few numbers of lanes, so that few programs are compiled."""
    width = size
    while width > 4 * lanes.size and width > SMALLEST:
        width //= 4
    return np.resize(lanes, width)


@filtered_program(effort=0)
def _take(tree: Any, lanes: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[lanes], tree)


@filtered_program(effort=0)
def _put(tree: Any, part: Any, lanes: Array) -> Any:
    return jax.tree.map(lambda leaf, new: leaf.at[lanes].set(new), tree, part)


@filtered_program(effort=1)
def _round(options: BatchOptions, varying: Lane, shared: Lane, parts: _LinearParts, carry: Advance) -> Advance:
    """At most `ROUND` evaluations of every lane."""

    def residuals(lane: Lane, part: _LinearParts, theta: Array) -> Residuals:
        whole = eqx.combine(lane, shared)
        found = moments.evaluate(options.specification, _inputs(whole, part), theta, whole.delta)
        return Residuals(found.residuals, found.residual_jacobian, found.ok)

    def advance(arguments: tuple[Advance, Residuals]) -> Advance:
        now, evaluation = arguments
        state = update(now.state, now.candidate, evaluation)
        state = jax.tree.map(lambda new, old: jnp.where(now.state.status == RUNNING, new, old), state, now.state)
        return Advance(state, propose(state))

    def body(count: tuple[Array, Advance]) -> tuple[Array, Advance]:
        done, now = count
        evaluations = jax.vmap(residuals)(varying, parts, now.candidate)
        # one lane after the other: batched factorisations of small matrices block each other on CPUs
        return done + 1, jax.lax.map(advance, (now, evaluations))

    def unfinished(count: tuple[Array, Advance]) -> Array:
        return (count[0] < ROUND) & (count[1].state.status == RUNNING).any()

    return jax.lax.while_loop(unfinished, body, (jnp.asarray(0), carry))[1]


@filtered_program(effort=1)
def _inform(options: BatchOptions, varying: Lane, shared: Lane, parts: _LinearParts, carry: Advance) -> Advance:
    """Continue with the exact Hessian at the best point, as `Problem.solve` does where trials are rejected."""
    specification = options.specification
    # derivatives need the solution of the inversion, not the loop that finds it
    solved = specification._replace(method=FixedPointMethod("return"))

    def hessian(lane: Lane, part: _LinearParts, theta: Array) -> Array:
        whole = eqx.combine(lane, shared)
        inputs = _inputs(whole, part)
        delta = moments.invert(specification, inputs, theta, whole.delta).delta
        H = jax.jacfwd(jax.grad(lambda values: moments.objective(solved, inputs, values, delta)))(theta)
        return (H + H.T) / 2

    hessians = jax.vmap(hessian)(varying, parts, carry.state.theta)

    def one(arguments: tuple[Advance, Array]) -> Advance:
        now, H = arguments
        usable = jnp.isfinite(H).all() & now.state.started
        return jax.tree.map(lambda new, old: jnp.where(usable, new, old), inform(now.state, H), now)

    return jax.lax.map(one, (carry, hessians))


def _inputs(lane: Lane, part: _LinearParts) -> MomentInputs:
    return MomentInputs(
        lane.economy, lane.data, lane.fixed, part.step, part.weight_factor, jnp.asarray(1.0), lane.limits
    )


@filtered_program(effort=0)
def _initial_weights(varying: Lane, shared: Lane) -> Array:
    def one(lane: Lane) -> Array:
        return gmm.initial_weights(eqx.combine(lane, shared).data.weighted_instruments)

    return jax.lax.map(one, varying)


@filtered_program(effort=0)
def _linear_steps(options: BatchOptions, varying: Lane, shared: Lane, weights: Array) -> _LinearParts:
    def one(arguments: tuple[Lane, Array]) -> _LinearParts:
        lane, W = eqx.combine(arguments[0], shared), arguments[1]
        factor = jnp.asarray(1.0)
        made = moments.make_inputs(options.specification, lane.economy, lane.data, lane.fixed, W, factor, lane.limits)
        return _LinearParts(made.step, made.weight_factor)

    return jax.lax.map(one, (varying, weights))


@filtered_program(effort=0)
def _begin(varying: Lane, shared: Lane, theta: Array, residual_count: int) -> Advance:
    def one(arguments: tuple[Lane, Array]) -> Advance:
        lane, start = eqx.combine(arguments[0], shared), arguments[1]
        state = initialise(start, lane.lower, lane.upper, residual_count, TrustRegionOptions())
        return Advance(state, state.theta)

    return jax.lax.map(one, (varying, theta))


@filtered_program(effort=1)
def _finish(
    options: BatchOptions,
    step: int,
    varying: Lane,
    shared: Lane,
    parts: _LinearParts,
    theta: Array,
    weights: Array,
) -> _Finished:
    """Covariances and the next weighting matrix at the estimates."""
    specification = options.specification

    def evaluate(lane: Lane, part: _LinearParts, theta: Array) -> Evaluation:
        whole = eqx.combine(lane, shared)
        return moments.evaluate(specification, _inputs(whole, part), theta, whole.delta)

    def one(arguments: tuple[Lane, _LinearParts, Array, Array, Evaluation]) -> _Finished:
        varying, part, theta, W, evaluation = arguments
        lane = eqx.combine(varying, shared)
        inputs, supply = _inputs(lane, part), lane.data.supply
        delta = evaluation.inversion.delta
        tilde_costs = None if evaluation.costs is None else evaluation.costs.tilde_costs
        beta, gamma = moments.linear_parameters(specification, inputs, theta, delta, tilde_costs)
        explained = lane.data.demand.X @ beta
        explained_costs = None if supply is None else supply.equation.X @ gamma
        linear = LinearParameters(beta, gamma, explained, explained_costs)
        omega = None if tilde_costs is None or explained_costs is None else tilde_costs - explained_costs
        found = summarise_step(
            specification,
            options.types,
            step,
            inputs,
            theta,
            evaluation,
            linear,
            delta - explained,
            omega,
            W,
            lane.cluster_ids,
        )
        inference = found.inference
        return _Finished(
            found.parameters,
            inference.standard_errors,
            jnp.concatenate([~lacks_influence(evaluation, theta), jnp.ones(found.parameters.size - theta.size, bool)]),
            evaluation.objective,
            found.updated_W,
            evaluation.ok,
        )

    evaluations = jax.vmap(evaluate)(varying, parts, theta)
    return jax.lax.map(one, (varying, parts, theta, weights, evaluations))
