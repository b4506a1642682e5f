"""Programs of derivatives and maps of programs, which are kept on disk as programs themselves are.

`jax.jvp` and `jax.vmap` of a compiled function trace it, and compile what they make of it, in every process. Where a
program is pushed forward or mapped outside of other programs, it is called through a primitive whose rules are further
calls of the same program, with one step more. What runs at last has arrays alone as arguments, so it can be found by
its name: the program's, and the steps.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

#: A function of arrays; it returns a pytree of them.
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)  # named tuples would be equal to those of the other class
class Push:
    """Values, and derivatives along tangents of those arguments that are `moved`, which come after all arguments."""

    moved: tuple[bool, ...]

    def derive(self, function: Function, dependence: Any) -> tuple[Function, Any]:
        """The function after this step, and which inputs each of its outputs depends on, in a tree like these."""

        def pushed(*values: Any) -> tuple[Any, Any]:
            primals, tangents = values[: len(self.moved)], values[len(self.moved) :]

            def moving(*some: Any) -> Any:
                rest = iter(some)
                return function(*(next(rest) if m else p for m, p in zip(self.moved, primals, strict=True)))

            found, change = jax.jvp(moving, tuple(p for m, p in zip(self.moved, primals, strict=True) if m), tangents)
            return found, jax.tree.map(lambda leaf: leaf if _moves(leaf) else None, change)

        return pushed, (dependence, jax.tree.map(self.of_tangents, dependence, is_leaf=_is_leaf))

    def of_tangents(self, inputs: frozenset[int]) -> frozenset[int]:
        """The inputs that tangents of outputs depend on, of those that outputs depend on."""
        places = [i for i, m in enumerate(self.moved) if m]
        return inputs | {len(self.moved) + j for j, i in enumerate(places) if i in inputs}


@dataclasses.dataclass(frozen=True)
class Map:
    """All at once, along a first axis of those arguments that are `mapped`."""

    mapped: tuple[bool, ...]

    def derive(self, function: Function, dependence: Any) -> tuple[Function, Any]:
        """The function after this step, and which inputs each of its outputs depends on, in a tree like these."""
        axes = jax.tree.map(lambda inputs: 0 if self.reaches(inputs) else None, dependence, is_leaf=_is_leaf)
        return jax.vmap(function, [0 if m else None for m in self.mapped], axes), dependence

    def reaches(self, inputs: frozenset[int]) -> bool:
        """Whether what depends on these inputs is mapped."""
        return any(self.mapped[i] for i in inputs)


Step = Push | Map


class Call:
    """One way to call a program: `run` takes arrays, and steps, and returns arrays.

    What is known of its outputs is written by `run`: `moving`, whether each array of them has derivatives.
    """

    def __init__(self, run: Callable[[Sequence[Any], tuple[Step, ...]], Sequence[Any]]) -> None:
        self.run = run
        self.moving: tuple[bool, ...] = ()

    def __call__(self, values: Sequence[Any]) -> list[Any]:
        """Arrays that the program returns, for arguments that may be pushed forward or mapped."""
        return list(_call.bind(*values, call=self, steps=()))

    def outputs(self, steps: tuple[Step, ...], arguments: int) -> list[tuple[bool, frozenset[int]]]:
        """Of each array that is returned after some steps: whether it has derivatives, and the inputs it depends on."""
        found = [(moving, frozenset(range(arguments))) for moving in self.moving]
        for step in steps:
            if isinstance(step, Push):
                found += [(True, step.of_tangents(inputs)) for moving, inputs in found if moving]
        return found


def derive(function: Function, steps: Sequence[Step], arguments: int) -> Function:
    """The function of arrays after some steps, which returns a list of arrays."""
    dependence: Any = frozenset(range(_first(steps, arguments)))
    for step in steps:
        function, dependence = step.derive(function, dependence)
    return lambda *values: jax.tree.leaves(function(*values))


def before_steps(kinds: Sequence[Any], steps: Sequence[Step]) -> tuple[Any, ...]:
    """Shapes and types of a function's arguments, of those after some steps."""
    for step in reversed(steps):
        if isinstance(step, Push):
            kinds = kinds[: len(step.moved)]
        else:
            kinds = [(s[1:], t) if m else (s, t) for m, (s, t) in zip(step.mapped, kinds, strict=True)]
    return tuple(kinds)


def at_top_level(leaf: Any, devices: set[jax.Device]) -> bool:
    """Whether a value is an array on these devices, or consists of such arrays while it is pushed forward or mapped.

    Anything else is not for rules of this module, such as what is recorded for reverse differentiation.
    """
    if not isinstance(leaf, jax.core.Tracer):
        return isinstance(leaf, np.ndarray | np.generic) or (isinstance(leaf, jax.Array) and leaf.devices() == devices)
    kind, parts = type(leaf).__name__, []
    if kind == "JVPTracer":
        tangent = leaf.tangent
        parts = [leaf.primal] if isinstance(tangent, ad.Zero) else [leaf.primal, tangent]
    elif kind == "BatchTracer" and isinstance(leaf.batch_dim, int):
        parts = [leaf.val]
    return bool(parts) and all(at_top_level(part, devices) for part in parts)


def _first(steps: Sequence[Step], arguments: int) -> int:
    """How many arguments a function has before some steps."""
    return arguments - sum(sum(step.moved) for step in steps if isinstance(step, Push))


def _no_change(value: Any) -> Any:
    return ad.Zero(jax.typeof(value).to_tangent_aval())


def _moves(tangent: Any) -> bool:
    return bool(tangent.dtype != jax.dtypes.float0)


def _is_leaf(value: Any) -> bool:
    return isinstance(value, frozenset)


_call = Primitive("program")
_call.multiple_results = True


def _run(*values: Any, call: Call, steps: tuple[Step, ...]) -> Sequence[Any]:
    return call.run(values, steps)


def _push(primals: Sequence[Any], tangents: Sequence[Any], *, call: Call, steps: tuple[Step, ...]) -> Any:
    moved = tuple(not isinstance(tangent, ad.Zero) for tangent in tangents)
    along = [tangent for tangent, m in zip(tangents, moved, strict=True) if m]
    found = _call.bind(*primals, *along, call=call, steps=(*steps, Push(moved)))
    moving = [moves for moves, _ in call.outputs(steps, _first(steps, len(primals)))]
    values, changes = found[: len(moving)], iter(found[len(moving) :])
    return values, [next(changes) if m else _no_change(value) for m, value in zip(moving, values, strict=True)]


def _map(values: Sequence[Any], axes: Sequence[int | None], *, call: Call, steps: tuple[Step, ...]) -> Any:
    step = Map(tuple(axis is not None for axis in axes))
    first = [value if not axis else jnp.moveaxis(value, axis, 0) for value, axis in zip(values, axes, strict=True)]
    found = _call.bind(*first, call=call, steps=(*steps, step))
    outputs = call.outputs(steps, _first(steps, len(values)))
    return found, [0 if step.reaches(inputs) else None for _, inputs in outputs]


_call.def_impl(_run)
ad.primitive_jvps[_call] = _push
batching.primitive_batchers[_call] = _map
