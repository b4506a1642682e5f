"""Compilation: how much effort goes into a program, and the persistent cache that spares a second process all of it."""

import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun, unsafe_am_i_under_a_jit_DO_NOT_USE  # type: ignore[attr-defined]

from blpjax import options as global_options
from blpjax.exceptions import SizeError
from blpjax.machine import tracing
from blpjax.machine.announcements import announced
from blpjax.machine.caches import VARIABLE, cache_directory, turned_off
from blpjax.machine.derived import Call, Step, at_top_level, before_steps, derive
from blpjax.machine.executables import HOLE, Executable, FlatFunction, Outline, Static
from blpjax.machine.forks import check_process
from blpjax.machine.garbage import uncollected
from blpjax.machine.host_routines import raising_errors
from blpjax.machine.interrupts import WaitingInterrupts
from blpjax.machine.memory import require_memory
from blpjax.machine.store import NotStorableError, Store, describe

#: Programs of arguments with at most so many numbers are compiled with least effort: they take some milliseconds then.
_SMALL = 2**15

#: Derivatives and maps have so many times as many numbers as their arguments.
_OFTEN = 16

#: The option that has XLA use its older emitters on CPUs; nothing where this version of XLA does not know it.
_EMITTERS = {"xla_cpu_use_fusion_emitters": False}

_SMALLER = "Use fewer agents, smaller markets or smaller batches, or a machine with more memory."

#: With more memory maps than this a process forgets its programs before it makes another one. Each takes some of the
#: 65,530 that Linux allows a process by default, and one without any left is aborted.
MAPS_KEPT = 45_000


class Program:
    """A function that is compiled, one executable for each structure of its arguments.

    An executable is kept in memory, in `executables`, and, where what it depends on means the same in another process,
    in the `Store`. Arguments that are spread over devices, and settings of JAX for debugging, leave everything to
    `jax.jit`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        effort: int,
        static_argnums: Sequence[int] = (),
        filtered: bool = False,
        what: str = "",
    ) -> None:
        self.function = function
        self.what = what or function.__name__.strip("_").replace("_", " ")
        self.effort = effort
        self.static_argnums = frozenset(static_argnums)
        self.filtered = filtered
        self.executables: dict[Any, Executable | None] = {}
        self._differentiated: set[Any] = set()
        self._describable: dict[Any, bool] = {}
        self._outlines: dict[Any, Outline] = {}
        self._traced: dict[Any, tuple[Callable[..., Any], FlatFunction]] = {}
        self._without_options: set[Any] = set()
        functools.update_wrapper(self, function)
        _programs.add(self)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run the program, which is compiled first where it is new. Interrupts wait until it has ended."""
        check_process()
        if self.filtered and tracing.is_traced((arguments, options)):
            return self._call_nested(arguments, options)
        with WaitingInterrupts(self._say_what_is_kept):
            return self._run(arguments, options)

    def _run(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        leaves, tree = jax.tree.flatten((self._split(arguments), options))
        values, statics = self._sort(leaves)
        new = False
        if values is not None:
            key = _key(tree, statics, values)
            new = key not in self.executables
            executable = self._find(key, values)
            if executable is not None:
                with _short_of_memory(self.function.__name__):
                    return executable(values)
        saying = self._announced(values or ()) if new else contextlib.nullcontext()
        effort = self._effort_for(values)
        with raising_errors(), _short_of_memory(self.function.__name__), saying:
            found = _with_options_known(lambda: self._jitted(effort, bool(_EMITTERS))(*arguments, **options))
            return jax.block_until_ready(found)

    def _find(self, key: Any, values: Sequence[Any]) -> Executable | None:
        """The executable of a key, which is made where it is new. None where only `jax.jit` can run the program."""
        if key not in self.executables:
            if memory_maps() > MAPS_KEPT:
                forget_programs()
            built = self._build(key)
            if built is not None:
                self._check_memory(built, values)
            self.executables[key] = built
        return self.executables[key]

    def _call_nested(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run inside of other programs, or of derivatives and maps, which compile a program of their own at first."""
        nested, shapes_alone = unsafe_am_i_under_a_jit_DO_NOT_USE(), tracing.shapes_alone()
        if nested and not shapes_alone:
            return self._nested(*arguments, **options)
        leaves, tree = jax.tree.flatten((self._split(arguments), options))
        values, statics = self._sort(leaves, _any if nested else at_top_level)
        if values is not None and self._can_describe(tree, statics):
            if not nested:
                return self._call_derived(tree, statics, values)
            outline = self._outline(tree, statics, values)
            return outline.outputs.assemble([jnp.zeros(*kind) for kind in outline.kinds])
        if nested:
            return self._nested(*arguments, **options)
        arrays = [leaf for leaf in jax.tree.leaves((arguments, options)) if isinstance(leaf, jax.Array | np.ndarray)]
        key = tuple((type(array), *_kind(array)) for array in arrays)
        new = key not in self._differentiated
        self._differentiated.add(key)
        with self._announced(arrays, "derivatives or maps of ") if new else contextlib.nullcontext():
            effort = self._effort_for(arrays, _OFTEN)
            try:
                if key not in self._without_options:
                    return _with_options_known(lambda: self._jitted(effort, bool(_EMITTERS))(*arguments, **options))
            except ValueError as error:
                # gradients are programs of JAX's own, in which ours may have no options
                if "can only be passed to top-level" not in str(error):
                    raise
                self._without_options.add(key)
            return self._nested(*arguments, **options)

    def _call_derived(self, tree: Any, statics: tuple[Any, ...], values: Sequence[Any]) -> Any:
        """Run with values that are pushed forward or mapped, outside of other programs."""
        last: list[Executable] = []

        def run(arrays: Sequence[Any], steps: tuple[Step, ...]) -> list[Any]:
            executable = self._find(_key(tree, statics, arrays, steps), arrays)
            assert executable is not None, "what can be described has an executable"
            with raising_errors(), _short_of_memory(self.function.__name__):
                found = jax.block_until_ready(executable.run(arrays))
            last[:] = [executable]
            own = found[: executable.outputs.arrays]
            call.moving = tuple(np.issubdtype(array.dtype, np.inexact) for array in own)
            return found

        call = Call(run)
        arrays = call(values)
        return last[0].outputs.assemble(arrays)

    def _can_describe(self, tree: Any, statics: tuple[Any, ...]) -> bool:
        """Whether static arguments have a description, without which nothing is kept."""
        key = tree, statics, tuple(map(type, statics))
        if key not in self._describable:
            try:
                describe((self._identity(), tree, statics))
                self._describable[key] = True
            except NotStorableError:
                self._describable[key] = False
        return self._describable[key]

    def _effort_for(self, arrays: Sequence[Any] | None, times: int = 1) -> int:
        return 0 if arrays is not None and times * sum(array.size for array in arrays) <= _SMALL else self.effort

    def _announced(self, shapes: Sequence[Any], which: str = "") -> Any:
        return announced(which + self.what, shapes, program_store() is not None)

    def _say_what_is_kept(self) -> None:
        kept = "in this process" if program_store() is None else "for later calls and processes"
        global_options.output(f"Interrupted. Programs that were compiled until now are kept {kept}.")

    def forget(self) -> None:
        """Forget all executables."""
        self.executables.clear()
        self._traced.clear()

    # arguments

    def _split(self, arguments: tuple[Any, ...]) -> list[Any]:
        """Arguments, with static ones as leaves of the tree."""
        return [Static(a) if i in self.static_argnums else a for i, a in enumerate(arguments)]

    def _sort(
        self, leaves: list[Any], usable: Callable[[Any, set[jax.Device]], bool] | None = None
    ) -> tuple[list[Any] | None, tuple[Any, ...]]:
        """Arrays on the default device, None where there are others, and static leaves with holes for arrays.

        What is traced is not among them, unless it is `usable`.
        """
        if jax.config.jax_disable_jit or jax.config.jax_debug_nans or jax.config.jax_debug_infs:  # type: ignore[attr-defined]
            return None, ()
        device = _device()
        if jax.config.jax_default_device not in (None, *device):  # type: ignore[attr-defined]
            return None, ()
        values: list[Any] = []
        statics: list[Any] = []
        for leaf in leaves:
            if isinstance(leaf, jax.Array):
                if not (usable or _untraced)(leaf, device):
                    return None, ()
                values.append(leaf)
            elif isinstance(leaf, np.ndarray | np.generic):
                values.append(leaf)
            elif not self.filtered and isinstance(leaf, bool | int | float):
                values.append(np.asarray(leaf))
            else:
                statics.append(leaf)
                continue
            statics.append(HOLE)
        return values, tuple(statics)

    # what runs

    @functools.cached_property
    def _nested(self) -> Callable[..., Any]:
        """The function inside of other programs, which may not be given options of the compiler."""
        import equinox as eqx

        return eqx.filter_jit(self.function)

    @functools.cache  # noqa: B019 (programs live as long as their modules)
    def _jitted(self, effort: int, emitters: bool) -> Callable[..., Any]:
        """What `jax.jit` makes of the function; another one where XLA turned out not to know our choice of emitters."""
        options = compiler_options(effort)
        if self.filtered:
            import equinox as eqx

            # passed on to jax.jit, though the annotations do not say so
            return eqx.filter_jit(self.function, compiler_options=options)  # type: ignore[call-overload]
        return jax.jit(self.function, static_argnums=tuple(self.static_argnums), compiler_options=options)

    def _build(self, key: Any) -> Executable | None:
        """The executable from the store, or compiled and put there. None where only `jax.jit` can run the program."""
        tree, (statics, _), kinds, set_to, steps = key
        try:
            description = describe((self._identity(), self.effort, tree, statics, kinds, set_to, steps))
        except NotStorableError:
            return None
        store, name = program_store(), self.function.__name__
        path = None if store is None else store.path(name, description)
        read = _read(store, path, lambda content: Executable.load(content, name))
        if read is not None:
            return read
        base = (*key[:2], before_steps(kinds, steps), set_to, ())
        flat = FlatFunction(self.function, tree, statics, self.filtered)
        function, flat = self._traced.get(base, (flat, flat)) if steps else (flat, flat)
        function = derive(function, steps, len(kinds))
        function.__name__ = function.__qualname__ = name
        shapes = _shapes(kinds)
        with self._announced(shapes, "derivatives or maps of " if steps else ""):
            effort = self._effort_for(shapes, _OFTEN if steps else 1)
            compiled = self._compile(function, shapes, effort, store)
        if compiled is None:
            return Executable(jax.jit(function), flat.outputs) if steps else None
        executable = Executable(compiled[0], flat.outputs)
        if store is not None and path is not None and not compiled[1]:
            with contextlib.suppress(NotStorableError):
                store.write(path, executable.save())
        return executable

    def _outline(self, tree: Any, statics: tuple[Any, ...], values: Sequence[Any]) -> Outline:
        """Shapes of what the function returns, from the store, or traced and put there."""
        key = _key(tree, statics, values)
        if key not in self._outlines:
            kinds = tuple(map(_kind, values))
            store = program_store()
            path = None
            if store is not None:
                description = describe((self._identity(), "shapes", tree, statics, kinds, settings()))
                path = store.path(f"shapes{self.function.__name__}", description)
            found = _read(store, path, Outline.load)
            if found is None:
                flat = FlatFunction(self.function, tree, statics, self.filtered)
                with tracing.whole():  # programs inside of it have values, because this is what derivatives are made of
                    traced = jax.jit(flat).trace(*_shapes(kinds))
                self._traced[key] = jaxpr_as_fun(traced.jaxpr), flat
                found = Outline(tuple(map(_kind, traced.jaxpr.out_avals)), flat.outputs)
                if store is not None and path is not None:
                    with contextlib.suppress(NotStorableError):
                        store.write(path, found.save())
            self._outlines[key] = found
        return self._outlines[key]

    def _compile(
        self, flat: Callable[..., Any], shapes: Sequence[jax.ShapeDtypeStruct], effort: int, store: Store | None
    ) -> tuple[Any, list[str]] | None:
        """The compiled function, and what was read from JAX's own cache; None where it calls functions of Python."""
        with uncollected():
            traced = jax.jit(flat).trace(*shapes)
            if tracing.calls_back(traced.jaxpr.jaxpr):
                return None  # executables hold addresses of this process's functions
            lowered = traced.lower()
        with _unwritten(store is not None) as hits:
            compiled = _with_options_known(lambda: lowered.compile(compiler_options(effort)))
        return compiled, hits

    def _check_memory(self, executable: "Executable", values: Sequence[Any]) -> None:
        """Raise `SizeError` before a program is run for the first time if there is no memory for what it will hold."""
        needed = executable.memory()
        device = jax.devices()[0]
        free = None
        if device.platform != "cpu":
            known = device.memory_stats() or {}
            free = known.get("bytes_limit", float("inf")) - known.get("bytes_in_use", 0)
        longest = max((value.size for value in values), default=0)
        what = f"The program {self.function.__name__.strip('_')}, for arrays of up to {longest:,} numbers,"
        require_memory(needed, what, _SMALLER, free)

    def _identity(self) -> str:
        module, name = self.function.__module__, self.function.__qualname__
        if module.partition(".")[0] != "blpjax" or "<" in name:
            raise NotStorableError(f"{module}.{name}")
        return f"{module}.{name}"


_programs: "weakref.WeakSet[Program]" = weakref.WeakSet()


def program(
    effort: int, static_argnums: int | tuple[int, ...] = (), what: str = ""
) -> Callable[[Callable[..., Any]], Program]:
    """Decorate a function that is compiled on its own, never inside another program.

    On CPUs LLVM's optimisation level `effort` (0 to 3) decides how long compilation takes. Matrix products,
    factorisations and exponentials are library calls, so level 1 runs as fast as the default where these dominate, and
    level 0 serves programs that take well under a millisecond anyway, and all programs of small arrays. Other backends
    compile with their defaults. Messages call the program by `what`, or else by its name.
    """
    static = (static_argnums,) if isinstance(static_argnums, int) else static_argnums
    return lambda function: Program(function, effort, static, what=what)


def filtered_program(effort: int, what: str = "") -> Callable[[Callable[..., Any]], Program]:
    """Decorate a function of equinox modules, arrays and static values that is compiled.

    `effort` and `what` are those of `program`. Called with traced values, or where a program is being built, the
    function is compiled without it: options may not be given inside of another program. Derivatives and maps of
    functions that are not compiled as a whole then still consist of few programs, and these are found again.
    """
    return lambda function: Program(function, effort, filtered=True, what=what)


def compiler_options(effort: int) -> dict[str, int | bool] | None:
    """Options of XLA: `effort` is LLVM's level on CPUs, where XLA's older emitters of loops compile faster.

    Measured on two cores, seconds of all processors, for the objective of Nevo's cereals with its derivatives: 12 s at
    level 1 with the newer emitters, 7 s with the older ones, 3 s at level 0. An evaluation takes 13 ms, 8 ms, 30 ms.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": effort, **_EMITTERS}


def _with_options_known(compile_or_run: Callable[[], Any]) -> Any:
    """The value of a function that compiles with `compiler_options`, also where XLA has no choice of emitters."""
    try:
        return compile_or_run()
    except jax.errors.JaxRuntimeError as error:
        if not _EMITTERS or f"No such compile option: '{next(iter(_EMITTERS))}'" not in str(error):
            raise
        _EMITTERS.clear()
        return compile_or_run()


@contextlib.contextmanager
def _short_of_memory(name: str) -> Iterator[None]:
    """Where a program runs: `SizeError` where XLA finds no memory for it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise SizeError(f"There was no memory left for the program {name.strip('_')}. {_SMALLER}") from error


def memory_maps() -> int:
    """How many memory maps this process has; zero where that is not known."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0


def forget_programs() -> None:
    """Forget all executables of this process, those of `jax.jit` too. They stay on disk."""
    for one in list(_programs):
        one.forget()
    jax.clear_caches()


def compiled_programs() -> list[Any]:
    """What this process has compiled or read: `jax.stages.Compiled`."""
    found = [executable.compiled for one in _programs for executable in one.executables.values() if executable]
    return [compiled for compiled in found if isinstance(compiled, jax.stages.Compiled)]


@functools.cache
def program_store() -> Store | None:
    """Where programs are kept between processes, None where the environment says that they are not."""
    return None if turned_off() else Store(cache_directory(os.environ.get(VARIABLE, "")) / "programs")


@contextlib.contextmanager
def _unwritten(really: bool) -> Iterator[list[str]]:
    """Where JAX writes nothing to its own cache, because the store is written; yields what is read from there.

    What was read cannot be written again on CPUs: names of functions are missing in it.
    """
    hits: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event.endswith("/cache_hits"):
            hits.append(event)

    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    if really:
        jax.config.update(name, float("inf"))
    jax.monitoring.register_event_listener(listen)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(listen)
        jax.config.update(name, before)


def settings() -> tuple[Any, ...]:
    """JAX's settings that programs depend on."""
    config: Any = jax.config
    return (
        config.jax_enable_x64,
        config.jax_default_matmul_precision,
        config.jax_numpy_dtype_promotion,
        config.jax_numpy_rank_promotion,
        config.jax_default_prng_impl,
    )


@functools.cache
def _device() -> set[jax.Device]:
    return {jax.devices()[0]}


def _key(tree: Any, statics: tuple[Any, ...], values: Sequence[Any], steps: tuple[Step, ...] = ()) -> Any:
    """What an executable depends on. Types, because 1 and True are equal, but not the same argument."""
    return tree, (statics, tuple(map(type, statics))), tuple(map(_kind, values)), settings(), steps


def _shapes(kinds: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in kinds]


def _read(store: Store | None, path: Path | None, load: Callable[[bytes], Any]) -> Any:
    """What a file of the store holds; None where there is none, or where it cannot be used and is removed."""
    content = None if store is None or path is None else store.read(path)
    if store is None or path is None or content is None:
        return None
    try:
        return load(content)
    except Exception:  # whatever another version, or a damaged disk, left there
        store.remove(path)
        return None


def _any(leaf: jax.Array, device: set[jax.Device]) -> bool:
    return True


def _untraced(leaf: jax.Array, device: set[jax.Device]) -> bool:
    return not isinstance(leaf, jax.core.Tracer) and leaf.devices() == device


def _kind(value: Any) -> tuple[tuple[int, ...], Any]:
    return value.shape, value.dtype
