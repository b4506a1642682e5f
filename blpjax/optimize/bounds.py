"""Bounds of theta: which elements they hold, and what is left of gradients and Hessians without these.

All functions take NumPy and JAX arrays alike. There are two rules. `is_held` asks the gradient too: bounds matter to
optimisers where they keep theta from following the negative gradient. `is_at_bound` does not: reduced Hessians of
results are, as those of PyBLP, without the elements that are at a bound, whatever the gradient.
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float


@runtime_checkable
class Box(Protocol):
    """Lower and upper bounds, arrays of shape (P,), infinite where there are none."""

    @property
    def lower(self) -> Any:
        """Lower bounds, (P,)."""
        ...

    @property
    def upper(self) -> Any:
        """Upper bounds, (P,)."""
        ...


def is_held(theta: Float[Any, " P"], gradient: Float[Any, " P"], bounds: Box, force: float = 0.0) -> Bool[Any, " P"]:
    """Elements (P,) that a bound keeps from following the negative gradient, and those that equal bounds fix.

    The gradient pushes them against the bound by more than `force`: multipliers below that are taken for zero.
    """
    at_lower, at_upper = (theta <= bounds.lower) & (gradient > force), (theta >= bounds.upper) & (gradient < -force)
    return at_lower | at_upper | (bounds.lower >= bounds.upper)


def is_at_bound(theta: Float[Any, " P"], bounds: Box) -> Bool[Any, " P"]:
    """Elements (P,) that are at a bound, whatever the gradient."""
    return (theta <= bounds.lower) | (theta >= bounds.upper)


def project_gradient(theta: Float[Any, " P"], gradient: Float[Any, " P"], bounds: Box) -> Float[Any, " P"]:
    """The gradient (P,) with zeros where a bound keeps theta from following its negative."""
    return mask(gradient, ~is_held(theta, gradient, bounds))


def mask(values: Float[Any, "*shape"], free: Bool[Any, " P"], diagonal: float = 0.0) -> Float[Any, "*shape"]:
    """A vector (P,) or matrix (P, P) with zeros where elements are not free, and `diagonal` on the diagonal there."""
    xp = values.__array_namespace__()
    if values.ndim == 1:
        return xp.where(free, values, 0.0)
    return xp.where(free[:, None] & free[None, :], values, diagonal * xp.eye(free.size))
