"""What is traced: whether something is, what users' functions may do there, and what programs call while they run."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import (  # type: ignore[attr-defined]
    jaxprs_in_params,
    unsafe_am_i_under_a_jit_DO_NOT_USE,
)

#: What to use in functions of the model.
_USE = "methods of the model and jax.numpy in place of numpy and of methods of results"

#: Whether shapes alone matter; None where this version of JAX could take what was traced then for the function itself.
_shapes_alone = jax.make_user_context(False) if hasattr(jax, "make_user_context") else None


def is_traced(values: Any) -> bool:
    """Whether any leaf of a pytree is traced, or what is made of them would be, because a program is being built."""
    if unsafe_am_i_under_a_jit_DO_NOT_USE():
        return True
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


@contextlib.contextmanager
def operations_of_jax(what: str = "function", use: str = _USE) -> Iterator[None]:
    """Where a user's function is traced: `TypeError` when it needs the values of what it is given.

    The message says what it is, and what to `use`.
    """
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(f"{what} must consist of operations of JAX: use {use}, and no conditions on values.") from error


def shapes_of(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `jax.eval_shape` says of a function; its programs are not traced where shapes of their outputs are known."""
    with _set(True):
        return jax.eval_shape(function, *arguments)


def whole() -> contextlib.AbstractContextManager[Any]:
    """Where functions are traced for their values inside of `shapes_of`."""
    return _set(False)


def _set(alone: bool) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if _shapes_alone is None else _shapes_alone(alone)


def shapes_alone() -> bool:
    """Whether this is inside of `shapes_of`."""
    return _shapes_alone is not None and bool(_shapes_alone.value)


def calls_back(jaxpr: Any) -> bool:
    """Whether a program calls functions of Python while it runs."""
    return any(
        "callback" in equation.primitive.name or any(map(calls_back, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )
