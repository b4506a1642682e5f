"""Steps of trust-region methods: quadratic models within a ball and a box, and what models promise.

Elements are scaled so that the ball is round. All functions are pure, in JAX.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.optimize.bounds import mask

_EIGENVALUE_FLOOR = 1e-13


class _ActiveSet(NamedTuple):
    """Step found so far, elements that have not reached a bound, and whether all bounds hold."""

    step: Array
    free: Array
    done: Array


def bounded_step(
    B: Float[Array, "P P"],
    g: Float[Array, " P"],
    lower: Float[Array, " P"],
    upper: Float[Array, " P"],
    radius: Float[Array, ""],
) -> Float[Array, " P"]:
    """Step p (P,) that decreases ``g'p + p'Bp / 2`` at least as much as the projected gradient.

    Its length is at most `radius` and its elements are between `lower`, which is at most zero, and `upper`, which is at
    least zero. Where both are zero an element stays where it is.
    """
    free = (lower < 0) | (upper > 0)

    def body(active: _ActiveSet) -> _ActiveSet:
        # Elements at their bounds stay there; the others solve the trust-region problem given those.
        held = jnp.where(active.free, 0.0, active.step)
        inner = _trust_region_step(
            mask(B, active.free, diagonal=1.0),
            mask(g + B @ held, active.free),
            jnp.sqrt(jnp.maximum(radius**2 - held @ held, 0.0)),
        )
        step = jnp.where(active.free, inner, held)
        violated = active.free & ((step < lower) | (step > upper))
        return _ActiveSet(jnp.clip(step, lower, upper), active.free & ~violated, ~violated.any())

    initial = _ActiveSet(jnp.zeros_like(g), free, jnp.asarray(False))
    step = jax.lax.while_loop(lambda active: ~active.done, body, initial).step
    # Fixing elements at bounds may cost descent: points along the projected gradient guarantee it.
    lengths = ratio(radius, jnp.linalg.norm(g), 0.0) * 0.5 ** jnp.arange(0.0, 40.0, 2.0)
    path = jnp.clip(-lengths[:, None] * g[None, :], lower[None, :], upper[None, :])
    steps = jnp.concatenate([step[None, :], path])
    values = steps @ g + 0.5 * (steps * (steps @ B)).sum(axis=1)
    return steps[jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))]


class _Bracket(NamedTuple):
    """Shift of B's eigenvalues, an interval that holds the right one, and steps taken to find it."""

    shift: Array
    low: Array
    high: Array
    steps: Array


def _trust_region_step(B: Array, g: Array, radius: Array) -> Array:
    """Minimise ``g'p + p'Bp / 2`` subject to ``||p|| <= radius`` (More and Sorensen 1983), by B's eigenvalues."""
    eigenvalues, vectors = jnp.linalg.eigh(B)
    b = vectors.T @ g
    floor = _EIGENVALUE_FLOOR * jnp.abs(eigenvalues).max()
    smallest = jnp.maximum(0.0, floor - eigenvalues[0])

    def norm(shift: Array) -> Array:
        return jnp.linalg.norm(b / (eigenvalues + shift))

    def searching(bracket: _Bracket) -> Array:
        return (jnp.abs(norm(bracket.shift) - radius) > 1e-3 * radius) & (bracket.steps < 60)

    def search(bracket: _Bracket) -> _Bracket:
        # Newton's method for 1 / ||p(shift)|| = 1 / radius, safeguarded by bisection.
        shift, p = bracket.shift, -b / (eigenvalues + bracket.shift)
        length = jnp.linalg.norm(p)
        low = jnp.where(length > radius, shift, bracket.low)
        high = jnp.where(length > radius, bracket.high, shift)
        newton = shift + ratio(length**2, (p**2 / (eigenvalues + shift)).sum(), 0.0) * (length - radius) / radius
        inside = (newton > low) & (newton < high)
        return _Bracket(jnp.where(inside, newton, 0.5 * (low + high)), low, high, bracket.steps + 1)

    interior = norm(smallest) <= radius
    highest = jnp.maximum(smallest, jnp.linalg.norm(b) / jnp.maximum(radius, 1e-300) - eigenvalues[0])
    steps = jnp.where(interior, 60, 0)
    shift = jax.lax.while_loop(searching, search, _Bracket(smallest, smallest, highest, steps)).shift
    p = -b / (eigenvalues + shift)
    length = jnp.linalg.norm(p)
    # On the boundary, remove the search's error; with negative curvature inside (the hard case), go along it to the
    # boundary.
    along = jnp.sqrt(jnp.maximum(radius**2 - length**2, 0.0)) * jnp.where(p[0] < 0, -1.0, 1.0)
    p = p.at[0].add(jnp.where(interior & (eigenvalues[0] < -floor), along, 0.0))
    return vectors @ (p * jnp.where(interior, 1.0, ratio(radius, length, 0.0)))


def promised_decrease(B: Float[Array, "P P"], g: Float[Array, " P"]) -> Float[Array, ""]:
    """Decrease ``g'B^-1 g / 2`` of the model at its stationary point, with absolute eigenvalues of B, none tiny."""
    if g.size == 0:
        return jnp.zeros(())
    eigenvalues, vectors = jnp.linalg.eigh(B)
    size = jnp.abs(eigenvalues)
    return 0.5 * ((vectors.T @ g) ** 2 / jnp.maximum(size, _EIGENVALUE_FLOOR * size.max())).sum()


def gauss_newton_decrease(residual_jacobian: Float[Array, "M P"], gradient: Float[Array, " P"]) -> Float[Array, ""]:
    """Decrease of q that unbounded linear least squares promises, where its gradient is ``2 J'r``."""
    norms = column_norms(residual_jacobian)
    scale = jnp.where(norms > 0, norms, 1.0)
    J = residual_jacobian / scale[None, :]
    return 2 * promised_decrease(J.T @ J, 0.5 * gradient / scale)


def column_norms(J: Float[Array, "M P"]) -> Float[Array, " P"]:
    """Euclidean norms of a matrix's columns."""
    return jnp.sqrt((J * J).sum(axis=0))


def ratio(numerator: Float[Array, ""], denominator: Float[Array, ""], otherwise: float) -> Float[Array, ""]:
    """Quotient, with a given value where the denominator is zero or the quotient not finite."""
    value = numerator / jnp.where(denominator == 0, 1.0, denominator)
    return jnp.where((denominator == 0) | ~jnp.isfinite(value), otherwise, value)
