"""By what outputs are labelled: which of their elements are asked for, and the tables that these become."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from blpjax.economy.buckets import AgentsInEconomy, MarketIndex
from blpjax.inputs.tables import ProductTable
from blpjax.kernels.arrays import namespace
from blpjax.reporting import frames


class OutputTables(NamedTuple):
    """Tables that say what the rows of outputs are: products, the rows of each market, and agents."""

    products: ProductTable
    markets: MarketIndex
    agents: AgentsInEconomy


@dataclasses.dataclass(frozen=True)
class Extent:
    """All markets, or the one that is asked for.

    Attributes
    ----------
    tables : what the rows of outputs are.
    agents : the agents in whose economy outputs are evaluated.
    position : where the one market stands in the sorted order of market IDs, None for all markets.
    alone : whether outputs are of this market alone, its products first and then padding, or of all markets.
    """

    tables: OutputTables
    agents: AgentsInEconomy
    position: int | None
    alone: bool

    # what is asked for

    @property
    def rows(self) -> np.ndarray:
        """Rows of the product table."""
        markets = self.tables.markets
        return np.arange(self.tables.products.shares.size) if self.position is None else markets.rows[self.position]

    @property
    def market_ids(self) -> np.ndarray:
        """Market IDs, in sorted order."""
        return self.tables.markets.ids[self._markets]

    @property
    def product_labels(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Market IDs and product IDs of rows."""
        products = self.tables.products
        ids = products.product_ids
        if ids is not None and ids.ndim == 2:
            ids = ids[:, 0]
        return products.market_ids[self.rows], None if ids is None else ids[self.rows]

    @property
    def agent_labels(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Market IDs and agent IDs, of agents in all markets."""
        table = self.agents.table
        ids = table.agent_ids
        return table.market_ids, None if ids is None else ids.reshape(len(table.weights), -1)[:, 0]

    # where it is

    def of_products(self, values: Any) -> Any:
        """Rows of an output that has one for each product."""
        if self.position is None:
            return values
        return values[: self.rows.size] if self.alone else values[self.rows]

    def of_markets(self, values: Any) -> Any:
        """Rows of an output that has one for each market."""
        return values if self.alone else values[self._markets]

    @property
    def columns(self) -> slice:
        """Columns of an output that has one for each product of a market."""
        return slice(None if self.position is None else self.rows.size)

    # padding

    @property
    def products_present(self) -> np.ndarray:
        """(N, max J) which columns of a product's row are products of its market; for all markets."""
        sizes = np.array([rows.size for rows in self.tables.markets.rows])
        return np.arange(sizes.max()) < sizes[self.tables.markets.codes, None]

    @property
    def agents_present(self) -> np.ndarray:
        """(T, max I) which columns of a market's row are agents; for all markets."""
        counts = np.array(self.agents.counts)
        return np.arange(counts.max()) < counts[:, None]

    def keep_agents(self, values: Any, by_product: bool) -> Any:
        """Columns in which some of the rows that are asked for have agents, NaN where a row has none."""
        present = self.agents_present[self._markets]
        present = present[:, present.any(axis=0)]
        if by_product:
            present = present[self.tables.markets.codes if self.position is None else np.zeros(self.rows.size, int)]
        cut = values[:, : present.shape[1]]
        return cut if present.all() else namespace(cut).where(present, cut, np.nan)

    @property
    def _markets(self) -> slice:
        return slice(None) if self.position is None else slice(self.position, self.position + 1)


class Kind(NamedTuple):
    """By what an output is labelled.

    present : which elements are no padding, in an output of all markets, whose shape this is. cut : what is asked for.
    frame : the table of this, with the name of its values.
    """

    present: Callable[[Extent], np.ndarray]
    cut: Callable[[Extent, Any], Any]
    frame: Callable[[Extent, np.ndarray, str], pd.DataFrame]


def _triples_present(extent: Extent) -> np.ndarray:
    present = extent.products_present
    return present[:, :, None] & present[:, None, :]


#: What outputs may be labelled by, and their shapes: N products in T markets with J products and I agents each.
KINDS = {
    # (N, 1)
    "product": Kind(
        lambda extent: np.ones((extent.tables.products.shares.size, 1), bool),
        lambda extent, values: extent.of_products(values),
        lambda extent, values, name: frames.vector_frame(*extent.product_labels, values, name),
    ),
    # (N, max J)
    "pair": Kind(
        lambda extent: extent.products_present,
        lambda extent, values: extent.of_products(values)[:, extent.columns],
        lambda extent, values, name: frames.matrices_frame(*extent.product_labels, values, name),
    ),
    # (N, max J, max J)
    "triple": Kind(
        _triples_present,
        lambda extent, values: extent.of_products(values)[:, extent.columns, extent.columns],
        lambda extent, values, name: frames.cubes_frame(*extent.product_labels, values, name),
    ),
    # (T, 1)
    "market": Kind(
        lambda extent: np.ones((len(extent.tables.markets.ids), 1), bool),
        lambda extent, values: extent.of_markets(values),
        lambda extent, values, name: frames.markets_frame(extent.market_ids, values, name),
    ),
    # (T, max I)
    "agent": Kind(
        lambda extent: extent.agents_present,
        lambda extent, values: extent.keep_agents(extent.of_markets(values), by_product=False),
        lambda extent, values, name: frames.agents_frame(extent.market_ids, *extent.agent_labels, values, name),
    ),
    # (N, max I)
    "product and agent": Kind(
        lambda extent: extent.agents_present[extent.tables.markets.codes],
        lambda extent, values: extent.keep_agents(extent.of_products(values), by_product=True),
        lambda extent, values, name: frames.probabilities_frame(
            *extent.product_labels, *extent.agent_labels, values, name
        ),
    ),
}

#: Columns of tables that hold no values of outputs.
COLUMNS = (
    "market_ids product row_product column_product first_product second_product agent standard_error lower upper"
).split()
