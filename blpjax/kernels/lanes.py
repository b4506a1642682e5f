"""Loops of many markets side by side, of which those that take long do not hold up the others.

A loop over a batch ends when its last market does, and until then evaluates the map in all of them: one market without
a solution, or one draw of parameters with such a market, would cost all of them thousands of evaluations.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from blpjax.exceptions import Status
from blpjax.iteration import FixedPointLimits
from blpjax.kernels.fixed_point import FixedPoint

#: The loop of one market, ``solve(arguments, limits)``.
Solve = Callable[[Any, FixedPointLimits], FixedPoint]

#: So many evaluations all markets have at first. Those that need more begin again, among themselves.
FIRST_EVALUATIONS = 150

#: A group has at most so many numbers. On CPUs there are several groups, so that few wait for those that need more, and
#: smaller ones where maps are within each other: markets at several draws of parameters differ more.
_ON_CPUS, _WITHIN, _ELSEWHERE, _GROUPS = 2**16, 2**13, 2**22, 8


def solve_lanes(solve: Solve, arguments: Any, limits: FixedPointLimits, elements: int) -> FixedPoint:
    """``solve(arguments, limits)``, which `jax.vmap`, also several within each other, runs in groups of its lanes.

    The outcome of each lane is that of its own loop from its own start, as if it were alone: lanes whose loops have not
    ended after `FIRST_EVALUATIONS` form new groups and begin again.

    Parameters
    ----------
    solve : never differentiated; it must not close over traced values.
    arguments : pytree of arrays.
    elements : how many numbers the largest arrays of one lane have.
    """
    leaves, structure = jax.tree.flatten((arguments, limits))

    @jax.jit  # traced once, however often it is mapped
    def solve_one(most: Array, values: Sequence[Array]) -> FixedPoint:
        own, bounds = jax.tree.unflatten(structure, values)
        return solve(own, bounds._replace(max_evaluations=jnp.minimum(most, bounds.max_evaluations)))

    return _mapped(solve_one, max(1, elements), (), ((),) * len(leaves))(*map(jnp.asarray, leaves))


def _mapped(
    solve_one: Callable[..., FixedPoint], elements: int, sizes: tuple[int, ...], own: tuple[tuple[bool, ...], ...]
) -> Callable[..., FixedPoint]:
    """The function of leaves that maps have given axes of these sizes; `own` says which of the axes each leaf has."""

    @jax.custom_batching.custom_vmap
    def solve_all(*leaves: Array) -> FixedPoint:
        if not sizes:
            return solve_one(_unlimited(), leaves)
        return _in_groups(solve_one, elements, sizes, own, leaves)

    @solve_all.def_vmap
    def _(size: int, mapped: Sequence[bool], *leaves: Array) -> tuple[FixedPoint, Any]:
        deeper = tuple((new, *known) for new, known in zip(mapped, own, strict=True))
        found = _mapped(solve_one, elements, (size, *sizes), deeper)(*leaves)
        return found, jax.tree.map(lambda _: True, found)

    return solve_all


def _unlimited() -> Array:
    return jnp.asarray(jnp.iinfo(int).max)


def _in_groups(
    solve_one: Callable[..., FixedPoint],
    elements: int,
    sizes: tuple[int, ...],
    own: tuple[tuple[bool, ...], ...],
    leaves: tuple[Array, ...],
) -> FixedPoint:
    total = math.prod(sizes)
    group = min((_ON_CPUS if len(sizes) == 1 else _WITHIN) // elements, total // _GROUPS)
    if jax.default_backend() != "cpu":
        group = min(_ELSEWHERE // elements, total)

    def take(lanes: Array) -> list[Array]:
        places = jnp.unravel_index(lanes, sizes)
        parts = [tuple(place for place, has in zip(places, axes, strict=True) if has) for axes in own]
        return [leaf[part] if part else leaf for leaf, part in zip(leaves, parts, strict=True)]

    if group <= 1:
        found = jax.lax.map(lambda lane: solve_one(_unlimited(), take(lane)), jnp.arange(total))
        return jax.tree.map(lambda leaf: leaf.reshape(*sizes, *leaf.shape[1:]), found)

    solve_group = jax.vmap(solve_one, (None, [0 if any(axes) else None for axes in own]))

    def attempt(number: Array, state: tuple[FixedPoint, Array]) -> tuple[FixedPoint, Array]:
        """Run the loops of those lanes that are left, and say which of them were cut short."""
        found, left = state
        queue, count = jnp.argsort(~left, stable=True), left.sum()
        most = jnp.where(number == 0, FIRST_EVALUATIONS, _unlimited())

        def run_group(state: tuple[FixedPoint, Array, Array]) -> tuple[FixedPoint, Array, Array]:
            found, again, at = state
            # the last lane stands in for those that the last group lacks
            lanes = queue[jnp.minimum(at + jnp.arange(group), count - 1)]
            solved = solve_group(most, take(lanes))
            kept = jax.tree.map(lambda every, new: every.at[lanes].set(new), found, solved)
            cut = (solved.evaluations >= most) & (solved.status != int(Status.CONVERGED))
            return kept, again.at[lanes].set(cut), at + group

        begun = found, jnp.zeros(total, bool), jnp.zeros((), int)
        found, again, _ = jax.lax.while_loop(lambda state: state[2] < count, run_group, begun)
        return found, again

    shapes = jax.eval_shape(solve_one, _unlimited(), take(jnp.zeros((), int)))
    nothing = jax.tree.map(lambda leaf: jnp.zeros((total, *leaf.shape), leaf.dtype), shapes)
    # both attempts in a loop, since what is compiled is mostly the map
    found, _ = jax.lax.fori_loop(0, 2, attempt, (nothing, jnp.ones(total, bool)))
    return jax.tree.map(lambda leaf: leaf.reshape(*sizes, *leaf.shape[1:]), found)
