"""Derivatives and maps of programs: those of the function, and found again without tracing it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.machine.compilation import Program
from blpjax.machine.derived import Map, Push
from blpjax.machine.store import Store
from blpjax.machine.tracing import shapes_of
from tests.support.programs import package_program
from tests.tolerances import ROUNDING

#: How often the function was traced.
traced: list[int] = []


def function(x: Any, y: Any, name: str) -> Any:
    """Arrays that depend on everything, on y alone, and on numbers without derivatives; and what is no array."""
    traced.append(1)
    return {"both": jnp.sin(x) * y.sum(), "y": jnp.exp(y), "places": jnp.argsort(x), "name": (name, None)}


X, Y = np.array([0.3, -1.2, 0.7]), np.array([0.1, 0.2])
XS, YS = np.stack([X, 2 * X, -X, X + 1], axis=1), np.stack([Y, 3 * Y, -Y, Y - 1])


def along(call: Callable[..., Any], x: Any, y: Any, dx: Any, dy: Any) -> Any:
    return jax.jvp(lambda x, y: numbers(call(x, y, "a")), (x, y), (dx, dy))


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    assert found["name"] == ("a", None)
    return {name: value for name, value in found.items() if name != "name"}


#: Ways to use a function, each of which returns arrays. Those with False are left to JAX, and are not kept.
USES: dict[str, tuple[Callable[[Callable[..., Any]], Any], bool]] = {
    "map": (lambda call: jax.vmap(lambda x, y: numbers(call(x, y, "a")), (1, 0))(XS, YS), True),
    "map of one": (lambda call: jax.vmap(lambda x: numbers(call(x, Y, "a")), 1)(XS), True),
    "push": (lambda call: along(call, X, Y, X**2, Y + 1), True),
    "map of pushes": (lambda call: jax.vmap(lambda d: along(call, X, Y, d, jnp.zeros(2)), 1)(XS), True),
    "map of pushes at other places": (lambda call: jax.vmap(lambda x: along(call, x, Y, x, Y), 1)(XS), True),
    "push of a map": (
        lambda call: jax.jvp(jax.vmap(lambda x: numbers(call(x, Y, "a")), 1), (XS,), (2 * XS,)),
        True,
    ),
    "push of a push": (
        lambda call: jax.jvp(lambda x: along(call, x, Y, X, Y)[1]["both"], (X,), (X,)),
        True,
    ),
    "map of maps": (
        lambda call: jax.vmap(lambda y: jax.vmap(lambda x: numbers(call(x, y, "a")), 1)(XS))(YS),
        True,
    ),
    "Jacobian": (lambda call: jax.jacfwd(lambda x: call(x, Y, "a")["both"])(X), True),
    "gradient": (lambda call: jax.grad(lambda x: call(x, Y, "a")["both"].sum())(X), False),
    "Hessian": (lambda call: jax.hessian(lambda x: call(x, Y, "a")["both"].sum())(X), False),
    "map of gradients": (
        lambda call: jax.vmap(jax.grad(lambda x: call(x, Y, "a")["both"].sum()), 1)(XS),
        False,
    ),
}


@pytest.mark.parametrize("use", USES)
def test_they_are_those_of_the_function_and_are_found_again(kept: Store, use: str) -> None:
    how, stays = USES[use]
    expected = how(function)
    first = how(package_program(function, filtered=True))
    traced.clear()
    second = how(package_program(function, filtered=True))
    assert not traced and kept.directory.exists() == stays
    assert jax.tree.structure(expected) == jax.tree.structure(first) == jax.tree.structure(second)
    for leaf, one, other in zip(*map(jax.tree.leaves, (expected, first, second)), strict=True):
        assert leaf.dtype == one.dtype == other.dtype
        if leaf.dtype != jax.dtypes.float0:
            ROUNDING.check(one, leaf)
            ROUNDING.check(other, leaf)


def test_steps_of_different_kinds_are_different() -> None:
    assert len({Push((True, False)), Map((True, False)), Push((True, False))}) == 2


def test_they_are_traced_once_in_a_process(kept: Store) -> None:
    program = package_program(function, filtered=True)
    traced.clear()
    for scale in (1.0, 2.0):
        jax.vmap(lambda d, scale=scale: along(program, scale * X, Y, d, Y), 1)(XS)
    assert len(traced) == 1


def test_shapes_are_known_without_tracing_and_are_never_taken_for_values(kept: Store) -> None:
    program = package_program(function, filtered=True)
    twice = jax.jit(lambda x, y: 2 * program(x, y, "a")["both"])
    expected = jax.eval_shape(lambda x, y: numbers(function(x, y, "a")), X, Y)

    def shapes(call: Program) -> Any:
        return shapes_of(lambda x, y: numbers(call(x, y, "a")), X, Y)

    assert shapes(program) == expected
    traced.clear()
    assert shapes(package_program(function, filtered=True)) == expected
    assert not traced

    assert shapes_of(twice, X, Y).shape == X.shape  # traces what is compiled next, with zeros in place of values
    ROUNDING.check(twice(X, Y), 2 * function(X, Y, "a")["both"])
    pushed = along(program, X, Y, X, Y)
    for leaf, other in zip(*map(jax.tree.leaves, (pushed, along(function, X, Y, X, Y))), strict=True):
        if leaf.dtype != jax.dtypes.float0:
            ROUNDING.check(leaf, other)


def test_functions_of_users_have_derivatives_that_are_not_kept(kept: Store) -> None:
    def applied(function: Any, x: Any) -> Any:
        return function(x)

    program = package_program(applied, filtered=True)
    slopes = jax.vmap(lambda d: jax.jvp(lambda x: program(lambda x: x**3, x), (X,), (d,))[1])(np.eye(3))
    ROUNDING.check(slopes, np.diag(3 * X**2))
    assert not kept.directory.exists()


def test_what_calls_python_can_be_mapped(kept: Store) -> None:
    seen = []

    def called(x: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        found = jax.pure_callback(lambda value: seen.append(1) or value + 1, shape, x, vmap_method="sequential")
        return found, x

    program = package_program(called, filtered=True)
    for _ in range(2):
        found, same = jax.vmap(program)(XS)
        ROUNDING.check(found, XS + 1)
        ROUNDING.check(same, XS)
    assert len(seen) == 2 * len(XS) and not kept.directory.exists()
