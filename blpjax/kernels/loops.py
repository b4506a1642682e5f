"""Loops of one market that are mapped over markets."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def while_loop(unfinished: Callable[[Any], Array], body: Callable[[Any], Any], begun: Any, own: Array) -> Any:
    """`jax.lax.while_loop` from values that all depend, in form, on `own`, an array that each market has its own of.

    JAX maps a loop over markets by mapping its body again until it knows all values that differ between markets. Here
    all do from the start, so that the body, which is most of a program, is mapped once.
    """
    never = jnp.isnan(own).any() & False
    known = jax.tree.map(lambda leaf: leaf | never if leaf.dtype == bool else leaf + never.astype(leaf.dtype), begun)
    return jax.lax.while_loop(unfinished, body, known)
