"""Linear systems of one market, safe to solve for many markets and in several places of a program at a time.

On CPUs JAX hands batches of matrices to LAPACK in parts that run on XLA's threads, and the thread that does so waits
for the others. As many such calls at the same time as there are threads wait for each other forever (seen with jaxlib
0.8 to 0.10 on two cores). Here markets are factorised one after the other on CPUs, which costs little: matrices are
small, and a call of LAPACK for one matrix needs no other thread. Other backends factorise batches.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int


class Factors(NamedTuple):
    """LU factors of a matrix, in one array, and the order of its rows."""

    triangles: Float[Array, "J J"]
    order: Int[Array, " J"]


def factorise(matrix: Float[Array, "J J"]) -> Factors:
    """LU factorisation with pivoting, without derivatives."""
    return Factors(*_factorise(lax.stop_gradient(matrix)))


def solve(
    matrix: Float[Array, "J J"], right: Float[Array, "J *R"], factors: Factors | None = None
) -> Float[Array, "J *R"]:
    """Solve ``matrix x = right`` by LU factorisation, for one or several right-hand sides.

    Differentiable to any order. A singular matrix gives values that are not finite. `factors` are those of the matrix
    if they are known.
    """
    columns = right if right.ndim == 2 else right[:, None]
    triangles, order = factorise(matrix) if factors is None else factors
    solution = lax.custom_linear_solve(
        partial(jnp.matmul, matrix),
        columns,
        lambda _, b: substitute(Factors(triangles, order), b),
        lambda _, b: _substitute_transposed(triangles, order, b),
    )
    return solution if right.ndim == 2 else solution[:, 0]


def substitute(factors: Factors, right: Float[Array, "J *R"]) -> Float[Array, "J *R"]:
    """`solve` by known factors, without derivatives."""
    columns = right if right.ndim == 2 else right[:, None]
    below = _triangular(True, factors.triangles, columns[factors.order])
    return _triangular(False, factors.triangles, below).reshape(right.shape)


@custom_vmap
def _factorise(matrix: Float[Array, "J J"]) -> tuple[Float[Array, "J J"], Int[Array, " J"]]:
    factors, _, order = lax.linalg.lu(matrix)
    return factors, order


@_factorise.def_vmap
def _factorise_many(size: int, batched: list[bool], matrices: Array) -> Any:
    found = lax.platform_dependent(
        matrices,
        cpu=lambda m: lax.map(_factorise, m),
        default=lambda m: tuple(lax.linalg.lu(m)[i] for i in (0, 2)),
    )
    return found, (True, True)


def _substitute_transposed(factors: Array, order: Array, right: Array) -> Array:
    below = _triangular_transposed(True, factors, _triangular_transposed(False, factors, right))
    return jnp.zeros_like(below).at[order].set(below)


def _make_triangular(transposed: bool) -> Any:
    """A triangular solve ``(lower, factors, right)`` that, like the factorisation, takes markets one by one on CPUs."""

    def one(lower: bool, factors: Array, right: Array) -> Array:
        return lax.linalg.triangular_solve(
            factors, right, left_side=True, lower=lower, unit_diagonal=lower, transpose_a=transposed
        )

    def build(lower: bool) -> Any:
        single = custom_vmap(partial(one, lower))

        @single.def_vmap
        def many(size: int, batched: list[bool], factors: Array, right: Array) -> Any:
            if not batched[0]:  # many right-hand sides of one market
                stacked = jnp.moveaxis(right, 0, 1).reshape(right.shape[1], -1)
                found = single(factors, stacked).reshape(right.shape[1], size, -1)
                return jnp.moveaxis(found, 1, 0), True
            rights = right if batched[1] else jnp.broadcast_to(right[None], (size, *right.shape))
            found = lax.platform_dependent(
                factors,
                rights,
                cpu=lambda f, r: lax.map(lambda pair: single(*pair), (f, r)),
                default=lambda f, r: jax.vmap(partial(one, lower))(f, r),
            )
            return found, True

        return single

    solvers = {lower: build(lower) for lower in (True, False)}
    return lambda lower, factors, right: solvers[lower](factors, right)


_triangular = _make_triangular(False)
_triangular_transposed = _make_triangular(True)
