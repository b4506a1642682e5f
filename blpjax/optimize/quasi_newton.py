"""Unbounded minimisation of smooth functions: Optax's L-BFGS directions and a line search, in pure JAX.

Directions are those of `optax.scale_by_lbfgs` (Liu and Nocedal 1989). The line search looks for a step that satisfies
the weak Wolfe conditions, by interpolation, expansion and bisection (Lewis and Overton 2013, Nonsmooth optimization via
quasi-Newton methods, Mathematical Programming 141); where changes of the objective drown in rounding, slopes replace
objectives (Hager and Zhang 2005, A new conjugate gradient method with guaranteed descent, SIAM Journal on Optimization
16). Evaluations may fail: such steps are too long. A region that cannot be evaluated is not walked around, and a saddle
point, such as a standard deviation of zero at symmetric nodes, is not left.

`initialise`, `proceed` and `update` are pure functions of a `QuasiNewtonState`, with the roles of those in
`blpjax.optimize.trust_region`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from blpjax.exceptions import Status
from blpjax.machine.compilation import program
from blpjax.optimize.trust_region import LONGEST, RUNNING, SMALLEST, START_REDUCTIONS, gauss_newton_decrease

#: Weak Wolfe conditions: share of the promised decrease, and of the slope, that a step may leave.
_DECREASE, _CURVATURE = 1e-4, 0.9

#: Relative changes of the objective that mean nothing.
_NOISE = 1e-13

#: Steps that a line search tries, and after how many of them a decrease is enough: before walls of failing evaluations
#: slopes need not become flat.
_TRIALS, _PATIENCE = 30, 10

#: Such steps in a row, by which the method creeps toward a wall, before it gives up.
_STEEP = 5

#: Promised decrease, divided by one plus the objective, at which a line search may fail because of rounding, and at
#: which all is rounding.
_FLOOR, _NOTHING = 1e-12, 1e-20

#: See `_units`.
_FAINT = 1e-3


class QuasiNewtonOptions(NamedTuple):
    """Tolerance and limit: largest element of the gradient in absolute terms, and number of iterations."""

    gtol: float = 1e-6
    maxiter: int = 1000


class QuasiNewtonState(eqx.Module):
    """Everything the method knows. Quantities belong to `theta`, the last iterate, unless said otherwise.

    Attributes
    ----------
    theta, objective, gradient : (P,), scalar, (P,). Before the first success, theta is the next starting point.
    scale : (P,) units of theta that directions are made in: column norms of the residuals' Jacobian at the start, of
        those that all but vanish there larger ones.
    typical : (P,) sizes of starting values.
    memory : Optax's state of recent steps and changes of the gradient.
    direction, slope : (P,) search direction and the derivative of the objective along it.
    length, low, high : step length to try next as a multiple of the direction, and an interval that holds a good one.
    trials : lengths tried along the direction.
    steep : steps taken in a row after which the slope was as steep as before.
    restarted : whether the direction is that of steepest descent.
    started : whether some evaluation succeeded.
    start_reductions : how often the starting values were halved.
    projected_gradient_norm : largest absolute element of the gradient.
    decrease : decrease of the sum of squares that linear least squares promises.
    evaluations, failures, iterations : number of evaluations, of failed ones, and of steps taken.
    status : `RUNNING` or a code of `Status`.
    """

    options: QuasiNewtonOptions
    theta: Float[Array, " P"]
    objective: Float[Array, ""]
    gradient: Float[Array, " P"]
    scale: Float[Array, " P"]
    typical: Float[Array, " P"]
    memory: Any
    direction: Float[Array, " P"]
    slope: Float[Array, ""]
    length: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    trials: Int[Array, ""]
    steep: Int[Array, ""]
    restarted: Bool[Array, ""]
    started: Bool[Array, ""]
    start_reductions: Int[Array, ""]
    projected_gradient_norm: Float[Array, ""]
    decrease: Float[Array, ""]
    evaluations: Int[Array, ""]
    failures: Int[Array, ""]
    iterations: Int[Array, ""]
    status: Int[Array, ""]


class QuasiNewtonAdvance(NamedTuple):
    """State after an evaluation, and the point to evaluate next. The method never needs a Hessian."""

    state: QuasiNewtonState
    candidate: Float[Array, " P"]
    stuck: Bool[Array | np.ndarray, ""]


class _Trial(NamedTuple):
    theta: Array
    objective: Array
    gradient: Array
    residual_jacobian: Array
    ok: Array


def initialise(
    start: Float[ArrayLike, " P"], memory_size: int = 10, options: QuasiNewtonOptions | None = None
) -> QuasiNewtonState:
    """State before the first evaluation, whose candidate is `start`.

    Parameters
    ----------
    start : (P,) starting values. If they cannot be evaluated, they are halved, up to `START_REDUCTIONS` times.
    memory_size : number of recent steps that directions are made from.
    options : tolerance and limit.
    """
    theta = jnp.asarray(start, float)
    zero, infinity, no = jnp.asarray(0, int), jnp.asarray(jnp.inf, float), jnp.asarray(False)
    return QuasiNewtonState(
        options=jax.tree.map(lambda value: jnp.asarray(value, float), options or QuasiNewtonOptions()),
        theta=theta,
        objective=infinity,
        gradient=jnp.zeros_like(theta),
        scale=jnp.ones_like(theta),
        typical=jnp.abs(theta),
        memory=optax.scale_by_lbfgs(memory_size).init(theta),
        direction=jnp.zeros_like(theta),
        slope=jnp.zeros(()),
        length=jnp.ones(()),
        low=jnp.zeros(()),
        high=infinity,
        trials=zero,
        steep=zero,
        restarted=no,
        started=no,
        start_reductions=zero,
        projected_gradient_norm=infinity,
        decrease=infinity,
        evaluations=zero,
        failures=zero,
        iterations=zero,
        status=jnp.asarray(RUNNING, int),
    )


def proceed(state: QuasiNewtonState) -> QuasiNewtonAdvance:
    """What to do next."""
    return QuasiNewtonAdvance(state, state.theta + state.length * state.direction, jnp.asarray(False))


def update(
    state: QuasiNewtonState,
    candidate: Float[Array | np.ndarray, " P"],
    objective: Float[Array | np.ndarray, ""],
    gradient: Float[Array | np.ndarray, " P"],
    residual_jacobian: Float[Array | np.ndarray, "M P"],
    ok: Bool[Array | np.ndarray, ""],
) -> QuasiNewtonState:
    """State after the candidate's evaluation: begin, take the step, or try another length."""
    objective, gradient = jnp.asarray(objective), jnp.asarray(gradient)
    ok = jnp.asarray(ok) & jnp.isfinite(objective) & jnp.isfinite(gradient).all()
    J = jnp.where(ok, jnp.asarray(residual_jacobian), 0.0)
    trial = _Trial(jnp.asarray(candidate), jnp.where(ok, objective, 0.0), jnp.where(ok, gradient, 0.0), J, ok)
    case = jnp.where(state.started, 2, jnp.where(ok, 1, 0))
    state = jax.lax.switch(case, [_reduce_start, _accept, _search], state, trial)
    return _assess(_replace(state, evaluations=state.evaluations + 1, failures=state.failures + (1 - ok)))


@program(effort=0)
def advance(
    state: QuasiNewtonState,
    candidate: Float[Array | np.ndarray, " P"],
    objective: Float[Array | np.ndarray, ""],
    gradient: Float[Array | np.ndarray, " P"],
    residual_jacobian: Float[Array | np.ndarray, "M P"],
    ok: Bool[Array | np.ndarray, ""],
) -> QuasiNewtonAdvance:
    """`update`, then `proceed`, as one compiled program: what a host loop calls once per evaluation."""
    return proceed(update(state, candidate, objective, gradient, residual_jacobian, ok))


def _replace(state: QuasiNewtonState, **changes: object) -> QuasiNewtonState:
    names = list(changes)
    return eqx.tree_at(lambda s: [getattr(s, name) for name in names], state, [changes[name] for name in names])


def _reduce_start(state: QuasiNewtonState, trial: _Trial) -> QuasiNewtonState:
    exhausted = state.start_reductions == START_REDUCTIONS
    return _replace(
        state,
        theta=jnp.where(exhausted, state.theta, 0.5 * state.theta),
        start_reductions=jnp.minimum(state.start_reductions + 1, START_REDUCTIONS),
        status=jnp.where(exhausted, Status.NOT_FINITE.value, state.status),
    )


def _accept(state: QuasiNewtonState, trial: _Trial) -> QuasiNewtonState:
    """The trial becomes the iterate, and a new direction begins there."""
    scale = jnp.where(state.started, state.scale, _units(trial))
    preconditioned, memory = _lbfgs(state).update(trial.gradient / scale, state.memory, scale * trial.theta)
    moved = _replace(
        state,
        theta=trial.theta,
        objective=trial.objective,
        gradient=trial.gradient,
        scale=scale,
        memory=memory,
        decrease=gauss_newton_decrease(trial.residual_jacobian, trial.gradient),
        restarted=~state.started,
        iterations=state.iterations + state.started,
        started=jnp.asarray(True),
    )
    moved = _search_along(moved, -jnp.asarray(preconditioned) / scale)
    curved = (trial.gradient - state.gradient) @ (trial.theta - state.theta) > 0
    return _choose((curved | ~state.started) & (moved.slope < 0), moved, _restart(moved))


def _units(trial: _Trial) -> Array:
    """Column norms, but none by which an element's own size would matter a thousand times less than that of others."""
    norms = jnp.linalg.norm(trial.residual_jacobian, axis=0)
    sizes = jnp.maximum(jnp.abs(trial.theta), SMALLEST)
    scale = jnp.maximum(norms, _FAINT * (norms * sizes).max(initial=0.0) / sizes)
    return jnp.where(scale > 0, scale, 1.0)


def _restart(state: QuasiNewtonState) -> QuasiNewtonState:
    """Forget all and search along the gradient."""
    lbfgs, scaled = _lbfgs(state), state.scale * state.theta
    preconditioned, memory = lbfgs.update(state.gradient / state.scale, lbfgs.init(scaled), scaled)
    state = _replace(state, memory=memory, restarted=jnp.asarray(True))
    return _search_along(state, -jnp.asarray(preconditioned) / state.scale)


def _lbfgs(state: QuasiNewtonState) -> optax.GradientTransformation:
    return optax.scale_by_lbfgs(state.memory.weights_memory.shape[0])


def _search_along(state: QuasiNewtonState, direction: Array) -> QuasiNewtonState:
    longest = LONGEST * jnp.maximum(jnp.maximum(jnp.abs(state.theta), state.typical), SMALLEST)
    ratio = (longest / jnp.maximum(jnp.abs(direction), 1e-300)).min(initial=1.0)
    return _replace(
        state,
        direction=direction,
        slope=state.gradient @ direction,
        length=ratio,
        low=jnp.zeros(()),
        high=jnp.asarray(jnp.inf),
        trials=jnp.zeros_like(state.trials),
    )


def _search(state: QuasiNewtonState, trial: _Trial) -> QuasiNewtonState:
    """Take the step, or choose another length."""
    length, slope = state.length, trial.gradient @ state.direction
    rise = trial.objective - state.objective
    drowned = (rise <= _NOISE * jnp.abs(state.objective)) & (slope <= (2 * _DECREASE - 1) * state.slope)
    decreased = trial.ok & ((rise <= _DECREASE * length * state.slope) | drowned)
    flat = slope >= _CURVATURE * state.slope
    low = jnp.where(decreased, length, state.low)
    high = jnp.where(decreased, state.high, length)
    # the parabola through both objectives and the first slope, where nothing better is known
    bend = 2 * (rise - length * state.slope)
    parabola = length * jnp.clip(-length * state.slope / jnp.where(bend > 0, bend, jnp.inf), 0.1, 0.5)
    bisected = jnp.where(trial.ok & ~decreased & (low == 0), parabola, 0.5 * (low + high))
    # the line through both slopes has its zero where the objective is lowest
    steeper = state.slope - slope
    longer = length * jnp.where(steeper < 0, jnp.clip(state.slope / jnp.where(steeper < 0, steeper, -1.0), 2, 10), 10)
    tried = _replace(
        state,
        length=jnp.where(jnp.isfinite(high), bisected, longer),
        low=low,
        high=high,
        trials=state.trials + 1,
    )
    failed = tried.trials >= _TRIALS
    at_floor = state.decrease <= _FLOOR * (1 + jnp.abs(state.objective))
    reason = jnp.where(at_floor, Status.ROUNDING_FLOOR.value, Status.STALLED.value)
    ended = _replace(tried, status=jnp.where(failed, reason, tried.status))
    tried = _choose(failed & ~state.restarted & ~at_floor, _restart(tried), ended)
    taken = _accept(_replace(state, steep=jnp.where(flat, 0, state.steep + 1)), trial)
    taken = _replace(taken, status=jnp.where(taken.steep >= _STEEP, Status.STALLED.value, taken.status))
    return _choose(decreased & (flat | (state.trials >= _PATIENCE)), taken, tried)


def _assess(state: QuasiNewtonState) -> QuasiNewtonState:
    norm = jnp.abs(state.gradient).max(initial=0.0)
    converged = state.started & (norm <= state.options.gtol)
    at_floor = state.started & ~state.restarted & (state.decrease <= _NOTHING * (1 + jnp.abs(state.objective)))
    ended = jnp.select(
        [converged, at_floor, state.iterations >= state.options.maxiter],
        [Status.CONVERGED.value, Status.ROUNDING_FLOOR.value, Status.MAX_EVALUATIONS.value],
        state.status,
    )
    return _replace(
        state,
        projected_gradient_norm=jnp.where(state.started, norm, jnp.inf),
        status=jnp.where(state.status == RUNNING, ended, state.status),
    )


def _choose(condition: Array, one: QuasiNewtonState, other: QuasiNewtonState) -> QuasiNewtonState:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
