"""The objective without derivatives, and with derivatives by central differences instead of exact ones.

Differences cost two inversions of all markets per element of theta, and memory for one evaluation of shares, no more.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.machine.compilation import program
from blpjax.objective.moments import GMM, Evaluation, Varying
from blpjax.objective.structure import Structure


def evaluate_values(objective: GMM, theta: Float[Array | np.ndarray, " P"], start: Float[Any, " N"]) -> Evaluation:
    """Evaluate the objective at theta without derivatives, which are NaN."""
    values, found = _vary(objective, jnp.asarray(theta), start)
    return objective.assemble(values, None, found)


def evaluate_by_differences(
    objective: GMM, theta: Float[Array | np.ndarray, " P"], start: Float[Any, " N"], epsilon: float
) -> Evaluation:
    """Evaluate the objective at theta, and its derivatives by central differences, as `GMM.evaluate` does exactly.

    ``(f(theta + epsilon / 2) - f(theta - epsilon / 2)) / epsilon`` for one element of theta after the other. Errors of
    inversions are divided by `epsilon`, so with a tolerance of 1e-13 and an epsilon of 1.5e-8 derivatives have about
    five digits.
    """
    values, found = _vary(objective, jnp.asarray(theta), start)
    columns = []
    for p in range(np.size(theta)):
        sides = []
        for half_step in (epsilon / 2, -epsilon / 2):
            moved = np.array(theta, dtype=float)
            moved[p] += half_step
            sides.append(_vary(objective, jnp.asarray(moved), found.inversion.delta)[0])
        columns.append(jax.tree.map(lambda up, down: (up - down) / epsilon, *sides))
    if columns:
        derivatives = jax.tree.map(lambda *parts: jnp.stack(parts, axis=-1), *columns)
    else:
        derivatives = jax.tree.map(lambda leaf: jnp.zeros((leaf.size, 0)), values)
    return objective.assemble(values, derivatives, found)


@program(effort=1, what="the objective and its differences")
def _vary(objective: GMM, theta: Float[Array, " P"], start: Float[Any, " N"]) -> tuple[Varying, Structure]:
    return objective.vary(theta, start)
