"""Unbounded minimisation of smooth functions: Optax's L-BFGS directions and a line search, in pure JAX.

Directions are those of `optax.scale_by_lbfgs` (Liu and Nocedal 1989). The line search looks for a step that satisfies
the weak Wolfe conditions, by interpolation, expansion and bisection (Lewis and Overton 2013, Nonsmooth optimization via
quasi-Newton methods, Mathematical Programming 141); where changes of the objective drown in rounding, slopes replace
objectives (Hager and Zhang 2005, A new conjugate gradient method with guaranteed descent, SIAM Journal on Optimization
16). Evaluations may fail: such steps are too long. A region that cannot be evaluated is not walked around, and a saddle
point, such as a standard deviation of zero at symmetric nodes, is not left.

`METHOD` is the method's `blpjax.optimize.stepwise.Stepwise`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from blpjax.exceptions import Status
from blpjax.optimize.stepwise import (
    RUNNING,
    SMALLEST,
    Advance,
    SearchState,
    Stepwise,
    Trial,
    choose,
    initial_values,
    longest_step,
    replace,
    take,
)
from blpjax.optimize.subproblem import gauss_newton_decrease

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


#: Number of recent steps that directions are made from.
MEMORY_SIZE = 10


class QuasiNewtonState(SearchState):
    """Everything the method knows. Quantities belong to `theta`, the last iterate, unless said otherwise.

    Attributes
    ----------
    scale : (P,) units of theta that directions are made in: column norms of the residuals' Jacobian at the start, of
        those that all but vanish there larger ones.
    memory : Optax's state of recent steps and changes of the gradient.
    direction, slope : (P,) search direction and the derivative of the objective along it.
    length, low, high : step length to try next as a multiple of the direction, and an interval that holds a good one.
    trials : lengths tried along the direction.
    steep : steps taken in a row after which the slope was as steep as before.
    restarted : whether the direction is that of steepest descent.
    decrease : decrease of the sum of squares that linear least squares promises.
    """

    options: QuasiNewtonOptions
    scale: Float[Array, " P"]
    memory: Any
    direction: Float[Array, " P"]
    slope: Float[Array, ""]
    length: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    trials: Int[Array, ""]
    steep: Int[Array, ""]
    restarted: Bool[Array, ""]


def _begin(
    start: Float[ArrayLike, " P"],
    lower: Float[ArrayLike, " P"],
    upper: Float[ArrayLike, " P"],
    residual_count: int,
    options: Mapping[str, Any],
) -> Advance:
    """Begin at `start` (P,). Bounds are ignored; `options` are `memory_size` and some of `QuasiNewtonOptions`."""
    given = {"memory_size": MEMORY_SIZE, **options}
    memory_size = int(given.pop("memory_size"))
    theta = jnp.asarray(start, float)
    zero, infinity, no = jnp.asarray(0, int), jnp.asarray(jnp.inf, float), jnp.asarray(False)
    state = QuasiNewtonState(
        **initial_values(theta, jnp.full_like(theta, -jnp.inf), jnp.full_like(theta, jnp.inf)),
        options=jax.tree.map(lambda value: jnp.asarray(value, float), QuasiNewtonOptions(**given)),
        scale=jnp.ones_like(theta),
        memory=_lbfgs(memory_size).init(theta),
        direction=jnp.zeros_like(theta),
        slope=jnp.zeros(()),
        length=jnp.ones(()),
        low=jnp.zeros(()),
        high=infinity,
        trials=zero,
        steep=zero,
        restarted=no,
    )
    return _proceed(state)


def _advance(state: QuasiNewtonState, trial: Trial) -> Advance:
    """Begin, take the step, or try another length."""
    objective, gradient = jnp.asarray(trial.objective), jnp.asarray(trial.gradient)
    ok = jnp.asarray(trial.ok) & jnp.isfinite(objective) & jnp.isfinite(gradient).all()
    r, J = jnp.where(ok, trial.residuals, 0.0), jnp.where(ok, trial.residual_jacobian, 0.0)
    usable = Trial(jnp.asarray(trial.theta), jnp.where(ok, objective, 0.0), jnp.where(ok, gradient, 0.0), r, J, ok)
    return _proceed(_assess(take(state, usable, _accept, _search)))


def _inform(state: QuasiNewtonState, hessian: Float[Array | np.ndarray, "P P"]) -> Advance:
    """The method never needs a Hessian, and has no use for one."""
    return _proceed(state)


def _proceed(state: QuasiNewtonState) -> Advance:
    """What to do next."""
    return Advance(state, state.theta + state.length * state.direction, jnp.asarray(False))


def _accept(state: QuasiNewtonState, trial: Trial) -> QuasiNewtonState:
    """The trial becomes the iterate, and a new direction begins there."""
    scale = jnp.where(state.started, state.scale, _units(trial))
    preconditioned, memory = _lbfgs(_memory_size(state)).update(
        trial.gradient / scale, state.memory, scale * trial.theta
    )
    moved = replace(
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
    return choose((curved | ~state.started) & (moved.slope < 0), moved, _restart(moved))


def _units(trial: Trial) -> Array:
    """Column norms, but none by which an element's own size would matter a thousand times less than that of others."""
    norms = jnp.linalg.norm(trial.residual_jacobian, axis=0)
    sizes = jnp.maximum(jnp.abs(trial.theta), SMALLEST)
    scale = jnp.maximum(norms, _FAINT * (norms * sizes).max(initial=0.0) / sizes)
    return jnp.where(scale > 0, scale, 1.0)


def _restart(state: QuasiNewtonState) -> QuasiNewtonState:
    """Forget all and search along the gradient."""
    lbfgs, scaled = _lbfgs(_memory_size(state)), state.scale * state.theta
    preconditioned, memory = lbfgs.update(state.gradient / state.scale, lbfgs.init(scaled), scaled)
    state = replace(state, memory=memory, restarted=jnp.asarray(True))
    return _search_along(state, -jnp.asarray(preconditioned) / state.scale)


def _memory_size(state: QuasiNewtonState) -> int:
    return int(state.memory.weights_memory.shape[0])


def _lbfgs(memory_size: int) -> Any:
    from optax import scale_by_lbfgs  # a slow import that only this method needs

    return scale_by_lbfgs(memory_size)


def _search_along(state: QuasiNewtonState, direction: Array) -> QuasiNewtonState:
    ratio = (longest_step(state) / jnp.maximum(jnp.abs(direction), 1e-300)).min(initial=1.0)
    return replace(
        state,
        direction=direction,
        slope=state.gradient @ direction,
        length=ratio,
        low=jnp.zeros(()),
        high=jnp.asarray(jnp.inf),
        trials=jnp.zeros_like(state.trials),
    )


def _search(state: QuasiNewtonState, trial: Trial) -> QuasiNewtonState:
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
    tried = replace(
        state,
        length=jnp.where(jnp.isfinite(high), bisected, longer),
        low=low,
        high=high,
        trials=state.trials + 1,
    )
    failed = tried.trials >= _TRIALS
    at_floor = state.decrease <= _FLOOR * (1 + jnp.abs(state.objective))
    reason = jnp.where(at_floor, Status.ROUNDING_FLOOR.value, Status.STALLED.value)
    ended = replace(tried, status=jnp.where(failed, reason, tried.status))
    tried = choose(failed & ~state.restarted & ~at_floor, _restart(tried), ended)
    taken = _accept(replace(state, steep=jnp.where(flat, 0, state.steep + 1)), trial)
    taken = replace(taken, status=jnp.where(taken.steep >= _STEEP, Status.STALLED.value, taken.status))
    return choose(decreased & (flat | (state.trials >= _PATIENCE)), taken, tried)


def _assess(state: QuasiNewtonState) -> QuasiNewtonState:
    norm = jnp.abs(state.gradient).max(initial=0.0)
    converged = state.started & (norm <= state.options.gtol)
    at_floor = state.started & ~state.restarted & (state.decrease <= _NOTHING * (1 + jnp.abs(state.objective)))
    ended = jnp.select(
        [converged, at_floor, state.iterations >= state.options.maxiter],
        [Status.CONVERGED.value, Status.ROUNDING_FLOOR.value, Status.MAX_EVALUATIONS.value],
        state.status,
    )
    return replace(
        state,
        projected_gradient_norm=jnp.where(state.started, norm, jnp.inf),
        status=jnp.where(state.status == RUNNING, ended, state.status),
    )


def _describe(state: QuasiNewtonState) -> str:
    return f"gradient norm {state.projected_gradient_norm:.1e}"


METHOD = Stepwise(_begin, _advance, _inform, _describe)
