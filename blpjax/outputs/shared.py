"""The arguments that all compute methods share, declared once."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, TypeVar, cast

from blpjax.machine.forks import check_process
from blpjax.values import read_flag

Method = TypeVar("Method", bound=Callable[..., Any])


class Shared(TypedDict, total=False):
    """Arguments of all compute methods; `blpjax.outputs.outputs.Outputs` documents them."""

    market_id: Any
    as_frame: bool
    standard_errors: bool
    hold: str


#: What they are by default.
DEFAULTS: Mapping[str, Any] = {"market_id": None, "as_frame": False, "standard_errors": False, "hold": "shares"}


def compute_method(method: Method) -> Method:
    """Show users of a method that ends with ``**shared: Unpack[Shared]`` these arguments by name.

    They stand after the method's own arguments, may be given by position, and always arrive, by default as `DEFAULTS`.
    Arguments that are true or false by default raise `TypeError` for anything else.
    Arguments that the method has behind a star stand after them. Type checkers accept all of these by keyword only.
    """
    own = inspect.signature(method)
    usual = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = [parameter for parameter in own.parameters.values() if parameter.kind is usual]
    shared = [
        inspect.Parameter(name, usual, default=default, annotation=Shared.__annotations__[name])
        for name, default in DEFAULTS.items()
    ]
    last = [p.replace(kind=usual) for p in own.parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    signature = own.replace(parameters=[*first, *shared, *last])

    flags = [name for name, parameter in signature.parameters.items() if isinstance(parameter.default, bool)]

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{method.__qualname__}() {error}") from None
        bound.apply_defaults()
        for name in flags:
            read_flag(name, bound.arguments[name])
        check_process()
        return method(**bound.arguments)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return cast(Method, call)
