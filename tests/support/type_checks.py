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

    def decorate(checked: Any) -> Any:
        if inspect.isfunction(checked) and not any(map(_has_shapes, checked.__annotations__.values())):
            return _types_checked(checked)
        return _shapes_checked(typechecker=typechecker)(checked)

    return decorate


def _types_checked(function: Callable[..., Any]) -> Callable[..., Any]:
    checked = _check(function)
    if checked is function:
        return function

    def call(*arguments: Any, **options: Any) -> Any:
        return (function if jaxtyping.config.jaxtyping_disable else checked)(*arguments, **options)

    return functools.wraps(function)(types.FunctionType(call.__code__, _LIBRARY, closure=call.__closure__))


def _has_shapes(annotation: Any) -> bool:
    """Whether an annotation may have arrays with shapes in it: one that is a name of what is defined later may."""
    if isinstance(annotation, str):
        return True
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shapes, get_args(annotation)))
