"""Small models with sizes on a coarse grid and without what an output does not depend on.

Outputs that need programs, those with loops or second derivatives, then share few of them: a market with another number
of products, or a formula with another exogenous column, finds its programs compiled.
"""

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from blpjax.economy.buckets import Economy
from blpjax.economy.characteristics import Characteristics
from blpjax.economy.conduct import ConductData
from blpjax.economy.padding import SMALL, BucketSizes, coarse_economy, coarse_sizes
from blpjax.machine.sizes import pad_axes
from blpjax.model.parameters import BLOCKS

if TYPE_CHECKING:
    from blpjax.model.model import Model


class CoarseModel(NamedTuple):
    """A model of coarse sizes, with the economy of the original."""

    model: "Model"
    original: Economy
    sizes: list[BucketSizes]

    def argument(self, value: Any) -> Any:
        """An argument of an output: arrays (N,), matrices by bucket and conduct are made larger."""
        if isinstance(value, ConductData):
            return value.longer(self.model.delta.size)
        if isinstance(value, tuple):
            return tuple(pad_axes(part, (size.T, size.J, size.J)) for part, size in zip(value, self.sizes, strict=True))
        return _longer(value, self.model.delta.size) if isinstance(value, np.ndarray) and value.ndim == 1 else value

    def rows(self, found: Any) -> np.ndarray:
        """Rows (N, max J, ...) of the original, or (N,)."""
        J = max(bucket.size[1] for bucket in self.original.buckets)
        values = np.asarray(found)
        return values[(slice(self.original.positions.size), *[slice(J)] * (values.ndim - 1))]

    def markets(self, found: Any) -> np.ndarray:
        """Values (T,) of the original."""
        return np.asarray(found)[: self.original.market_positions.size]


def coarsen(model: "Model", moving: Collection[str], costs_move: bool = False) -> CoarseModel | None:
    """The model on the host with coarse sizes, for outputs in which only these variables move.

    With `costs_move` marginal costs move with shares. None where the model is large or not on the host.
    """
    economy = model.economy
    if not economy.on_host or sum(np.size(leaf) for leaf in jax.tree.leaves(model)) > SMALL:
        return None
    sizes = coarse_sizes(economy)
    padded = coarse_economy(economy, sizes)
    rows, known, coefficients = padded.positions.size, model.characteristics, model.coefficients
    linear = [k for k, column in enumerate(known.X1_columns) if set(column.inputs) & set(moving)]
    shifting = [k for k, column in enumerate(known.X3_columns) if costs_move and "shares" in column.inputs]
    columns = [known.X1_columns[k] for k in linear], known.X2_columns, [known.X3_columns[k] for k in shifting]
    needed = {"prices", "shares", *moving} | {name for part in columns for column in part for name in column.inputs}
    variables = {name: _longer(values, rows) for name, values in known.variables.items() if name in needed}
    X1, X2, X3 = map(tuple, columns)
    nowhere: Any = dict.fromkeys((*BLOCKS, "concentrated_beta", "concentrated_gamma"), ())
    characteristics = Characteristics(X1, X2, X3, variables)
    return CoarseModel(
        dataclasses.replace(
            model,
            economy=padded,
            characteristics=characteristics,
            coefficients=dataclasses.replace(
                coefficients, beta=coefficients.beta[linear], gamma=coefficients.gamma[shifting]
            ),
            delta=_longer(model.delta, rows),
            # outputs depend on parameters, not on where these are in theta
            layout=model.layout._replace(**nowhere),
            ownership=None,
            costs_type="linear",
            conduct=None,
        ),
        economy,
        sizes,
    )


def _longer(values: np.ndarray, rows: int) -> np.ndarray:
    """Values (N,) followed by so many copies of the first one, of which formulas exist."""
    return pad_axes(values, (rows,), values[0])
