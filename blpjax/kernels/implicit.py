"""The one rule by which solutions of equations are differentiated.

Nothing is ever differentiated through iterations: `implicit` wraps a solver and differentiates the equation that its
solution satisfies.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from blpjax.kernels.fixed_point import FixedPoint
from blpjax.kernels.tangents import push, zero_tangents


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
    right = push(partial(residual, solution.value), primals, tangents)
    known = {} if solution.factors is None else {"factors": solution.factors}
    change = -linear_solve(solution.value, right, *primals, **known)
    return solution, eqx.tree_at(lambda s: s.value, zero_tangents(solution), change)


implicit.defjvp(_implicit_jvp, symbolic_zeros=True)
