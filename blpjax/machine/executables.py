"""Executables of arrays, and what it takes to make outputs of them that a function of pytrees returns."""

import enum
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import serialize_executable

from blpjax.machine.store import describe, restore

#: The event that `jax.monitoring` reports, with seconds, when an executable is read from the store.
READ_EVENT = "/blpjax/programs/read"


class Static:
    """A static argument, a leaf of the tree of arguments."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static) or type(self.value) is not type(other.value):
            return False
        return bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash(self.value)


class _Mark(enum.Enum):
    HOLE = enum.auto()


#: What stands for an array among static leaves.
HOLE = _Mark.HOLE


class Outputs(NamedTuple):
    """What a function returns beside arrays: its structure, and leaves with holes for arrays."""

    structure: Any
    statics: tuple[Any, ...]

    @property
    def arrays(self) -> int:
        """How many arrays the function returns."""
        return sum(static is HOLE for static in self.statics)

    def assemble(self, arrays: Sequence[Any]) -> Any:
        """What the function returns, where these are its arrays."""
        if len(arrays) < len(self.statics):
            rest = iter(arrays)
            arrays = [next(rest) if static is HOLE else static for static in self.statics]
        return jax.tree.unflatten(self.structure, arrays)


class FlatFunction:
    """A function of pytrees as one of their arrays, which returns a list of arrays.

    `outputs`, what it returns beside these, is known once it was traced. Without `filtered` all leaves are arrays.
    """

    def __init__(self, function: Callable[..., Any], tree: Any, statics: tuple[Any, ...], filtered: bool) -> None:
        self.function = function
        self.outputs = Outputs(None, ())
        self._tree = tree
        self._statics = statics
        self._filtered = filtered

    def __call__(self, *values: Any) -> list[Any]:
        """The arrays that the function returns, for all arrays among the leaves of its arguments."""
        rest = iter(values)
        leaves = [next(rest) if static is HOLE else static for static in self._statics]
        split, options = jax.tree.unflatten(self._tree, leaves)
        arguments = [a.value if isinstance(a, Static) else a for a in split]
        found, structure = jax.tree.flatten(self.function(*arguments, **options))
        arrays = [isinstance(leaf, jax.Array) or not self._filtered for leaf in found]
        self.outputs = Outputs(structure, tuple(HOLE if a else leaf for leaf, a in zip(found, arrays, strict=True)))
        return [leaf for leaf, array in zip(found, arrays, strict=True) if array]


class Executable:
    """What was compiled of a flat function, or of its derivatives and maps, and how to make its outputs."""

    def __init__(self, compiled: Any, outputs: Outputs) -> None:
        self.compiled = compiled
        self.outputs = outputs

    def __call__(self, values: Sequence[Any]) -> Any:
        """What the function returns."""
        return self.outputs.assemble(self.run(values))

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The arrays that it returns."""
        return list(self.compiled(*values))

    def memory(self) -> int:
        """Bytes that the program will hold beside its arguments, zero where XLA does not tell."""
        try:
            found = self.compiled.memory_analysis()
            return int(found.temp_size_in_bytes + found.output_size_in_bytes)
        except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
            return 0

    def save(self) -> bytes:
        """What a file of the store holds."""
        content, inputs, outputs = serialize_executable.serialize(self.compiled)
        return describe((content, inputs.num_leaves, outputs.num_leaves, *self.outputs))

    @staticmethod
    def load(saved: bytes, name: str) -> "Executable":
        """The executable that was saved; it is reported to `jax.monitoring`."""
        began = time.perf_counter()
        content, inputs, outputs, structure, statics = restore(saved)
        if jax.default_backend() == "cpu" and b"lapack_" in content:
            prepare_lapack()
        trees = jax.tree.structure(((0,) * inputs, {})), jax.tree.structure([0] * outputs)
        compiled = serialize_executable.deserialize_and_load(content, *trees)
        jax.monitoring.record_event_duration_secs(READ_EVENT, time.perf_counter() - began, fun_name=f"jit({name})")
        return Executable(compiled, Outputs(structure, statics))


class Outline(NamedTuple):
    """Shapes and types of the arrays that a function returns, and what else it returns."""

    kinds: tuple[tuple[tuple[int, ...], Any], ...]
    outputs: Outputs

    def save(self) -> bytes:
        """What a file of the store holds."""
        return describe((self.kinds, *self.outputs))

    @staticmethod
    def load(saved: bytes) -> "Outline":
        """The shapes that were saved."""
        kinds, structure, statics = restore(saved)
        return Outline(kinds, Outputs(structure, statics))


def prepare_lapack() -> None:
    """Have LAPACK's routines ready for executables: JAX looks for them when it lowers a program that calls some."""
    from jaxlib import lapack

    lapack.prepare_lapack_call("potrf", np.dtype(float))
