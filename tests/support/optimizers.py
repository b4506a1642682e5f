"""Methods that are led from one evaluation to the next, in loops of tests."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blpjax.optimize.stepwise import RUNNING, Advance, Stepwise, Trial


def trial(theta: Any, r: Any, J: Any, ok: Any, offset: float = 0.0) -> Trial:
    """The evaluation of a sum of squares, to which an offset is added."""
    return Trial(theta, r @ r + offset, 2 * J.T @ r, r, J, ok)


def minimize_in_graph(
    method: Stepwise,
    evaluate: Callable[[jax.Array], Trial],
    start: Any,
    lower: Any = -np.inf,
    upper: Any = np.inf,
    **options: float,
) -> Any:
    """The last state of a method that runs inside a compiled program. May be mapped over starts and bounds."""
    start = jnp.asarray(start, float)
    lower, upper = (jnp.broadcast_to(jnp.asarray(bound, float), start.shape) for bound in (lower, upper))
    residual_count = jax.eval_shape(evaluate, start).residuals.shape[0]

    def body(now: Advance) -> Advance:
        return method.advance(now.state, evaluate(now.candidate))

    begun = method.begin(start, lower, upper, residual_count, options)
    return jax.lax.while_loop(lambda now: now.state.status == RUNNING, body, begun).state
