"""One market of a model, as a model of its own."""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from blpjax.economy.buckets import Economy
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.model.demand import host_or_program

if TYPE_CHECKING:
    from blpjax.model.model import Model


class MarketPlace(NamedTuple):
    """Where one market is: its bucket, its place there, and its J rows of the product table."""

    bucket: int
    place: int
    rows: np.ndarray


def find_market(economy: Economy, position: int, rows: np.ndarray) -> MarketPlace:
    """Place of the market at a position in the sorted order of market IDs, on the host."""
    place = int(np.asarray(economy.market_positions)[position])
    for b, bucket in enumerate(economy.buckets):
        if place < bucket.size[0]:
            return MarketPlace(b, place, np.asarray(rows))
        place -= bucket.size[0]
    raise IndexError(f"There is no market at position {position}.")


@host_or_program(effort=1)
def cut_market(model: "Model", bucket: int, place: Any, rows: AnyArray, positions: AnyArray) -> "Model":
    """The model of the market at a place of a bucket: see `Model.in_market`.

    `rows` (J,) are those of its products, then copies of the first one, and `positions` (J,) say where products stand,
    or J where there is none.
    """
    placement = model.economy.placement
    xp = namespace(model.delta)

    def one(values: AnyArray) -> AnyArray:
        if model.economy.on_host:
            return values[place : place + 1]
        found = jax.lax.dynamic_index_in_dim(values, place, keepdims=True)
        return found if placement is None else placement.gather(found)

    part = dataclasses.replace(jax.tree.map(one, model.economy.buckets[bucket]), placement=None)
    sources = xp.where(positions < rows.size, xp.arange(rows.size), 0)
    economy = Economy((part,), positions, sources, xp.zeros(1, int))
    variables = {name: values[rows] for name, values in model.characteristics.variables.items()}
    return dataclasses.replace(
        model,
        economy=economy,
        characteristics=model.characteristics.replace(variables),
        delta=model.delta[rows],
        ownership=None if model.ownership is None else (one(model.ownership[bucket]),),
        conduct=None if model.conduct is None else model.conduct.take(rows),
    )
