"""The one rule by which solutions of equations are differentiated.

Nothing is ever differentiated through iterations: `implicit` wraps a solver and differentiates the equation that its
solution satisfies.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from blpjax.kernels.fixed_point import FixedPoint


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def implicit(
    solve: Callable[..., FixedPoint],
    residual: Callable[..., Array],
    linear_solve: Callable[..., Array],
    *arguments: Any,
) -> FixedPoint:
    """Solve ``residual(x, *arguments) = 0`` for x with ``solve(*arguments)`` and differentiate the equation.

    The derivative is ``dx = -(d residual / dx)^{-1} d residual``, at first and, because it is written in terms of this
    function itself, at every higher order. Only `FixedPoint.value` has derivatives.

    Parameters
    ----------
    solve : function of the arguments that returns a `FixedPoint`. Never differentiated.
    residual : ``residual(x, *arguments)``, zero at the solution, of the shape of x.
    linear_solve : ``linear_solve(x, right, *arguments)`` solves with the derivative of `residual` in x. Where `solve`
        returns `factors`, they are passed on as a keyword argument.
    arguments : pytrees of arrays. The three functions must not close over traced values.
    """
    return solve(*arguments)


def _implicit_jvp(
    solve: Callable[..., FixedPoint],
    residual: Callable[..., Array],
    linear_solve: Callable[..., Array],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[FixedPoint, FixedPoint]:
    solution = implicit(solve, residual, linear_solve, *primals)
    leaves, structure = jax.tree.flatten(primals)
    directions = jax.tree.leaves(tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
    moving = [i for i, d in enumerate(directions) if not isinstance(d, SymbolicZero)]

    def equation(values: list[Array]) -> Array:
        full = list(leaves)
        for i, value in zip(moving, values, strict=True):
            full[i] = value
        return residual(solution.value, *jax.tree.unflatten(structure, full))

    _, right = jax.jvp(equation, ([leaves[i] for i in moving],), ([directions[i] for i in moving],))
    zeros = jax.tree.map(_zero_tangent, solution)
    known = {} if solution.factors is None else {"factors": solution.factors}
    return solution, eqx.tree_at(lambda s: s.value, zeros, -linear_solve(solution.value, right, *primals, **known))


def _zero_tangent(leaf: Array) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


implicit.defjvp(_implicit_jvp, symbolic_zeros=True)
