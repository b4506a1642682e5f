"""Tangents: rules learn what moves, and differentiate only in that."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blpjax.kernels.tangents import moves, push, zero_tangents


def test_rules_learn_which_arguments_move() -> None:
    seen: list[list[bool]] = []

    @jax.custom_jvp
    def product(x: Any, y: Any) -> Any:
        return x["a"] * x["b"] * y

    def rule(primals: Any, tangents: Any) -> Any:
        d_x, d_y = tangents
        seen.append([moves(d_x["a"]), moves(d_x["b"]), moves(d_y)])
        return product(*primals), push(lambda x, y: x["a"] * x["b"] * y, primals, tangents)

    product.defjvp(rule, symbolic_zeros=True)
    a, b, y = (jnp.asarray(value) for value in (2.0, 3.0, 5.0))
    assert float(jax.grad(lambda b: product({"a": a, "b": b}, y))(b)) == 10.0
    assert seen == [[False, True, False]]
    assert float(jax.jvp(lambda a, y: product({"a": a, "b": b}, y), (a, y), (1.0, 1.0))[1]) == 15.0 + 6.0
    assert seen[1:] == [[True, False, True]]


def test_tangents_that_are_zero_suit_a_tree_of_arrays() -> None:
    tree = {"value": jnp.ones(3), "count": jnp.ones(2, int), "flag": jnp.ones((), bool)}
    zeros = zero_tangents(tree)
    assert zeros["value"].tolist() == [0.0, 0.0, 0.0]
    assert zeros["count"].dtype == zeros["flag"].dtype == jax.dtypes.float0
    _, moved = jax.jvp(lambda tree: tree["value"] * tree["count"].sum(), (tree,), (zeros,))
    np.testing.assert_array_equal(moved, 0.0)
