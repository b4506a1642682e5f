"""Compilation: how much effort goes into a program, and the persistent cache that spares a second process all of it."""

import contextlib
import functools
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

#: Set to ``0`` to leave JAX's configuration alone, or to a directory to keep the cache there.
VARIABLE = "BLPJAX_COMPILATION_CACHE"


def program(
    effort: int, static_argnums: int | tuple[int, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function that is compiled on its own, never inside another program.

    On CPUs LLVM's optimisation level `effort` (0 to 3) decides how long compilation takes. Matrix products,
    factorisations and exponentials are library calls, so level 1 runs as fast as the default where these dominate, and
    level 0 serves programs that take well under a millisecond anyway. Other backends compile with their defaults.
    The function's attribute `cache_size()` counts the programs that were compiled.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.cache
        def compiled() -> Callable[..., Any]:
            options = {"xla_backend_optimization_level": effort} if jax.default_backend() == "cpu" else None
            return jax.jit(function, static_argnums=static_argnums, compiler_options=options)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return compiled()(*arguments)

        call.cache_size = lambda: compiled()._cache_size()  # type: ignore[attr-defined]
        return call

    return decorate


def filtered_program(effort: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function of equinox modules, arrays and static values that is compiled.

    `effort` is that of `program`. Called with traced values, or where a program is being built, the function is
    compiled without it: options may not be given inside of another program. Derivatives and maps of functions that are
    not compiled as a whole then still consist of few programs, and these are found again.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        nested = eqx.filter_jit(function)

        @functools.cache
        def compiled() -> Callable[..., Any]:
            options = {"xla_backend_optimization_level": effort} if jax.default_backend() == "cpu" else None
            # passed on to jax.jit, though the annotations do not say so
            return eqx.filter_jit(function, compiler_options=options)  # type: ignore[call-overload]

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            if is_traced((arguments, options)):
                return nested(*arguments, **options)
            return compiled()(*arguments, **options)

        return call

    return decorate


@contextlib.contextmanager
def operations_of_jax() -> Iterator[None]:
    """Where a user's function of the model is traced: `TypeError` when it needs the values of what it is given."""
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "function must consist of operations of JAX: use methods of the model and jax.numpy in place of numpy and "
            "of methods of results, and no conditions on values."
        ) from error


def is_traced(values: Any) -> bool:
    """Whether any leaf of a pytree is traced, or what is made of them would be, because a program is being built."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in (*jax.tree.leaves(values), jax.device_put(0.0)))


def configure_cache() -> None:
    """Point JAX's compilation cache at a directory of this machine's kind, unless the user has configured one."""
    choice = os.environ.get(VARIABLE, "")
    configured = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if choice == "0" or configured or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    directory = cache_directory(Path(choice) if choice else None)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a read-only home directory: everything works, only slower
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # the many small programs of an estimation add up: keep those too
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


def cache_directory(base: Path | None = None) -> Path:
    """Where programs for this version of jaxlib and this kind of processor are kept."""
    if base is None:
        home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
        base = (Path(home) if home else Path.home() / ".cache") / "blpjax"
    kind = hashlib.sha256(_processor().encode()).hexdigest()[:12]
    return base / f"jaxlib-{version('jaxlib')}-{platform.machine()}-{kind}"


def _processor() -> str:
    """What distinguishes processors that cannot run each other's programs."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
