"""Methods that are led from one evaluation to the next: what they have in common, in pure JAX.

Such a method is a `Stepwise`: a few functions of its state, which is a `SearchState` with more. `begin` says what to
evaluate first, and `advance` takes the evaluation, a `Trial`, and says what to evaluate next; where it is stuck, the
method wants to be told the exact Hessian by `inform`. The functions are pure. A host loop calls them as compiled
programs, one per evaluation (`step`, `resume`); loops inside of programs, also under `jax.vmap`, call them as they are.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from blpjax.exceptions import Status
from blpjax.machine.compilation import program
from blpjax.optimize.bounds import Box

#: Code of a state whose loop has not ended; all other codes are those of `Status`.
RUNNING = -1

#: How often starting values that cannot be evaluated are halved before giving up.
START_REDUCTIONS = 8

#: An element moves in a step by at most so many times its size, that of its starting value, or `SMALLEST`. Where its
#: column of the Jacobian all but vanishes, as for standard deviations near zero, models know nothing of what is far.
LONGEST = 10.0
SMALLEST = 0.1


class Trial(eqx.Module):
    """One evaluation at theta (P,). Arrays may be NumPy's or JAX's.

    Methods look at what they need, and take values that are not finite for a failure.

    `objective` is r'r or a multiple of it, `gradient` (P,) its gradient, `residuals` (M,) are r and
    `residual_jacobian` (M, P) their Jacobian; `ok` says whether the evaluation succeeded.
    """

    theta: Float[Any, " P"]
    objective: Float[Any, ""]
    gradient: Float[Any, " P"]
    residuals: Float[Any, " M"]
    residual_jacobian: Float[Any, "M P"]
    ok: Bool[Any, ""]


class SearchState(eqx.Module):
    """What every method knows. Quantities belong to `theta`, the last accepted point, unless said otherwise.

    Attributes
    ----------
    lower, upper : (P,) bounds.
    typical : (P,) sizes of starting values.
    theta : (P,). Before the first success, the next starting point.
    objective, gradient : what the method minimises, and its gradient (P,).
    started : whether some evaluation succeeded.
    start_reductions : how often the starting values were halved.
    projected_gradient_norm : largest absolute element of the gradient, zeros where a bound blocks descent.
    decrease : decrease of the sum of squares that a full step promises.
    evaluations, failures, iterations : number of evaluations, of failed ones, and of accepted steps.
    status : `RUNNING` or a code of `Status`.
    """

    lower: Float[Array, " P"]
    upper: Float[Array, " P"]
    typical: Float[Array, " P"]
    theta: Float[Array, " P"]
    objective: Float[Array, ""]
    gradient: Float[Array, " P"]
    started: Bool[Array, ""]
    start_reductions: Int[Array, ""]
    projected_gradient_norm: Float[Array, ""]
    decrease: Float[Array, ""]
    evaluations: Int[Array, ""]
    failures: Int[Array, ""]
    iterations: Int[Array, ""]
    status: Int[Array, ""]


class Advance(NamedTuple):
    """State after an evaluation, the point to evaluate next, and whether the exact Hessian is needed before that."""

    state: Any
    candidate: Float[Array, " P"]
    stuck: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class Stepwise:
    """A method that is led from one evaluation to the next. All functions are pure.

    Attributes
    ----------
    begin : function of starting values and bounds, each (P,), of the number of residuals M, and of a mapping of
        options, that returns an `Advance`, whose candidate are the starting values.
    advance : function of the state and a `Trial` of the candidate that returns an `Advance`.
    inform : function of the state and the exact Hessian (P, P) of r'r at its `theta` that returns an `Advance`. A
        Hessian that is not finite changes nothing, but is not asked for again.
    describe : how the method ended, in words.
    """

    begin: Callable[[ArrayLike, ArrayLike, ArrayLike, int, Mapping[str, Any]], Advance]
    advance: Callable[[Any, Trial], Advance]
    inform: Callable[[Any, Array | np.ndarray], Advance]
    describe: Callable[[Any], str]

    def start(
        self, start: ArrayLike, lower: ArrayLike, upper: ArrayLike, residual_count: int, options: Mapping[str, Any]
    ) -> Advance:
        """`begin` as one compiled program."""
        return cast(Advance, _start(self.begin, start, lower, upper, residual_count, tuple(options.items())))

    @cached_property
    def step(self) -> Callable[[Any, Trial], Advance]:
        """`advance` as one compiled program: what a host loop calls once per evaluation."""
        return program(effort=0)(self.advance)

    @cached_property
    def resume(self) -> Callable[[Any, Array | np.ndarray], Advance]:
        """`inform` as one compiled program."""
        return program(effort=0)(self.inform)


@program(effort=0, static_argnums=(0, 4, 5))
def _start(
    begin: Callable[..., Advance],
    start: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    residual_count: int,
    options: tuple[tuple[str, Any], ...],
) -> Advance:
    return begin(start, lower, upper, residual_count, dict(options))


State = TypeVar("State", bound=SearchState)


def initial_values(start: Float[Array, " P"], lower: Float[Array, " P"], upper: Float[Array, " P"]) -> dict[str, Any]:
    """Attributes of a `SearchState` before the first evaluation, that of `start`, which is within bounds."""
    zero, infinity = jnp.asarray(0, int), jnp.asarray(jnp.inf, float)
    return {
        "lower": lower,
        "upper": upper,
        "typical": jnp.abs(start),
        "theta": start,
        "objective": infinity,
        "gradient": jnp.zeros_like(start),
        "started": jnp.asarray(False),
        "start_reductions": zero,
        "projected_gradient_norm": infinity,
        "decrease": infinity,
        "evaluations": zero,
        "failures": zero,
        "iterations": zero,
        "status": jnp.asarray(RUNNING, int),
    }


def take(
    state: State,
    trial: Trial,
    accept_start: Callable[[State, Trial], State],
    compare: Callable[[State, Trial], State],
) -> State:
    """State after a trial, which `accept_start` handles if it is the first one that succeeds, and `compare` later."""
    case = jnp.where(state.started, 2, jnp.where(trial.ok, 1, 0))
    state = jax.lax.switch(case, [_reduce_start, accept_start, compare], state, trial)
    return replace(state, evaluations=state.evaluations + 1, failures=state.failures + (1 - jnp.asarray(trial.ok)))


def reduce_start(theta: Float[Any, " P"], bounds: Box) -> Float[Any, " P"]:
    """What to try instead of starting values (P,) that cannot be evaluated: half of them, within bounds."""
    return (0.5 * theta).clip(bounds.lower, bounds.upper)


def _reduce_start(state: State, trial: Trial) -> State:
    exhausted = state.start_reductions == START_REDUCTIONS
    return replace(
        state,
        theta=jnp.where(exhausted, state.theta, reduce_start(state.theta, state)),
        start_reductions=jnp.minimum(state.start_reductions + 1, START_REDUCTIONS),
        status=jnp.where(exhausted, Status.NOT_FINITE.value, state.status),
    )


def longest_step(state: SearchState) -> Float[Array, " P"]:
    """How far each element (P,) may move in a step."""
    return LONGEST * jnp.maximum(jnp.maximum(jnp.abs(state.theta), state.typical), SMALLEST)


def replace(state: State, **changes: object) -> State:
    """The state with other values of some attributes."""
    names = list(changes)
    return eqx.tree_at(lambda s: [getattr(s, name) for name in names], state, [changes[name] for name in names])


def choose(condition: Bool[Array, ""], one: State, other: State) -> State:
    """The one state where the condition holds, the other one elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
