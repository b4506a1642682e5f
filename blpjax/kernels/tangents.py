"""Tangents in derivative rules: directions in which arguments move, or a mark that they do not move at all.

A rule that is defined with ``symbolic_zeros=True`` learns which of its arguments are constant, and leaves out what only
their derivatives need.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array


def moves(tangent: Any) -> bool:
    """Whether an array moves, so that its tangent is one. In rules with symbolic zeros only."""
    return not isinstance(tangent, SymbolicZero)


def push(function: Callable[..., Array], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Array:
    """Derivative of ``function(*primals)`` in the direction of `tangents`, differentiated in those leaves that move."""
    leaves, structure = jax.tree.flatten(primals)
    directions = jax.tree.leaves(tangents, is_leaf=lambda leaf: not moves(leaf))
    moving = [i for i, direction in enumerate(directions) if moves(direction)]

    def of_moving(values: list[Array]) -> Array:
        full = list(leaves)
        for i, value in zip(moving, values, strict=True):
            full[i] = value
        return function(*jax.tree.unflatten(structure, full))

    _, found = jax.jvp(of_moving, ([leaves[i] for i in moving],), ([directions[i] for i in moving],))
    return found


def zero_tangents(tree: Any) -> Any:
    """Tangents of a tree of arrays that does not move. Those of integers have no numbers."""
    return jax.tree.map(_zero_tangent, tree)


def _zero_tangent(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)
