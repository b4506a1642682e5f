"""What JAX compiles, and modules as users have them."""

import contextlib
import importlib.util
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax

from blpjax.machine.compilation import Program
from blpjax.machine.executables import READ_EVENT


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of programs that are compiled in the block, or read from disk."""
    seen: list[str] = []

    def listen(event: str, duration: float, **details: Any) -> None:
        if event in ("/jax/core/compile/backend_compile_duration", READ_EVENT):
            seen.append(details.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def without_type_checks(module: ModuleType) -> ModuleType:
    """The module as users have it: tests import it with type checks, which would refuse wrong types first."""
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(f"unchecked_{module.__name__.rpartition('.')[2]}", module.__file__)
    assert spec is not None and spec.loader is not None
    unchecked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchecked)
    return unchecked


def package_program(function: Any, **options: Any) -> Program:
    """The function as a program, as if it were one of the package."""
    function.__module__, function.__qualname__ = "blpjax.made_up", function.__name__
    return Program(function, 0, **options)
