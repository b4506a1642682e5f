"""Types and shapes of arguments are checked in every call while tests run.

jaxtyping checks that shapes fit each other, within a call. That costs much more than to check types, so it is done only
where an annotation has shapes: beartype alone checks the rest.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

_shapes_checked = jaxtyping.jaxtyped

#: Both raise the same error, which is a `TypeError`.
_check = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))

#: Warnings point at the user's line, and do not take what checks for one: it says that it is jaxtyping.
_LIBRARY = {"jaxtyping": jaxtyping, "__name__": "jaxtyping"}


def install() -> None:
    """Check types in all modules of blpjax that are imported from now on."""
    jaxtyping.jaxtyped = _checked
    jaxtyping.install_import_hook("blpjax", "beartype.beartype")


def _checked(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """What jaxtyping's import hook decorates functions and classes with."""
    with_shapes = _shapes_checked(typechecker=typechecker)

    def decorate(checked: Any) -> Any:
        if not inspect.isfunction(checked):
            return with_shapes(checked)
        return _once_called(checked, with_shapes if any(map(_has_shapes, checked.__annotations__.values())) else _check)

    return decorate


def _once_called(function: Callable[..., Any], check: Callable[..., Any]) -> Callable[..., Any]:
    """The function with checks that are made in its first call: most functions are never called in a process."""
    if not function.__annotations__:
        return function
    checked: Callable[..., Any] | None = None

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:
            return function(*arguments, **options)
        if checked is None:
            checked = check(function)
        return checked(*arguments, **options)

    return functools.wraps(function)(types.FunctionType(call.__code__, _LIBRARY, closure=call.__closure__))


def _has_shapes(annotation: Any) -> bool:
    """Whether an annotation may have arrays with shapes in it: one that is a name of what is defined later may."""
    if isinstance(annotation, str):
        return True
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shapes, get_args(annotation)))
