"""Kernels that work on arrays of JAX and of NumPy alike.

Compiled programs map them over markets, whose arrays have no axis for that. On the host they are called for all markets
of a bucket at a time, whose arrays have a first axis, and nothing is compiled.
"""

from types import ModuleType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

#: An array of JAX, perhaps traced, or of NumPy: type checkers cannot follow which.
AnyArray: TypeAlias = Any


def on_host(*values: Any) -> bool:
    """Whether all of these are arrays, or numbers, of NumPy."""
    return all(isinstance(one, np.ndarray | np.generic) for one in values)


def namespace(*values: Any) -> ModuleType:
    """`numpy` where all arrays are on the host, `jax.numpy` otherwise."""
    return np if on_host(*values) else jnp


def constant(values: AnyArray) -> AnyArray:
    """The values without derivatives."""
    return values if on_host(values) else jax.lax.stop_gradient(values)


def transposed(values: AnyArray) -> AnyArray:
    """The matrix, or each of several, with its axes exchanged."""
    return values.swapaxes(-1, -2)


def times(matrix: AnyArray, vector: AnyArray) -> AnyArray:
    """``matrix @ vector``, for one or several of both."""
    return matrix @ vector if vector.ndim == 1 else (matrix @ vector[..., None])[..., 0]


def with_diagonal(matrix: AnyArray, diagonal: AnyArray) -> AnyArray:
    """The matrix, or each of several, with another diagonal."""
    xp = namespace(matrix, diagonal)
    return xp.where(xp.eye(diagonal.shape[-1], dtype=bool), diagonal[..., :, None], matrix)


def diagonal_matrix(diagonal: AnyArray) -> AnyArray:
    """The matrix with this diagonal, or one for each of several."""
    return with_diagonal(np.zeros((diagonal.shape[-1], diagonal.shape[-1])), diagonal)


def solve_on_host(
    matrices: Float[np.ndarray, "*T J J"], right: Float[np.ndarray, "*T J"] | Float[np.ndarray, "*T J R"]
) -> Float[np.ndarray, "*T J"] | Float[np.ndarray, "*T J R"]:
    """Solve systems of several markets with NumPy, of one or many right-hand sides; NaN where a matrix is singular."""
    several = right.ndim == matrices.ndim
    try:
        found = np.linalg.solve(matrices, right if several else right[..., None])
        return found if several else found[..., 0]
    except np.linalg.LinAlgError:
        if matrices.ndim == 2:
            return np.full_like(right, np.nan)
        return np.stack([solve_on_host(*system) for system in zip(matrices, right, strict=True)])
