"""Results of which some markets alone are asked for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from blpjax.economy.buckets import MarketIndex, index_markets
from blpjax.economy.selection import select_markets
from blpjax.model.model import Model
from blpjax.outputs.labels import OutputTables
from blpjax.outputs.query import Given, Output
from blpjax.outputs.sources import OutcomeSource


class SomeMarkets(OutcomeSource):
    """Results with the rows of some markets alone, which are solved alone.

    Raises
    ------
    ValueError
        When there are no markets, one of them is given twice, or there is none of such an ID.
    NotImplementedError
        When markets are spread over devices.
    """

    def __init__(self, source: OutcomeSource, market_ids: Any) -> None:
        tables, economy = source.centre.output_tables, source.centre.model.economy
        if economy.placement is not None:
            raise NotImplementedError("market_ids is not supported for markets on several devices.")
        self._source, known = source, tables.markets
        chosen = np.sort(_positions(known, market_ids))
        self._selection = select_markets(jax.tree.map(np.asarray, economy), known.rows, chosen)
        self._on_device = jax.tree.map(jax.device_put, self._selection.economy)
        self.draws = source.draws
        rows = self._selection.rows
        index = index_markets(known.long_ids[rows])
        self._tables = OutputTables(_cut(tables.products, rows), index, self._agents(tables, known.ids[chosen]))

    @property
    def model(self) -> Model:
        """The model of these markets."""
        return self._select(self._source.model)

    @property
    def centre(self) -> OutcomeSource:
        """Results at one set of parameters, with these markets."""
        return self if self.draws is None else SomeMarkets(self._source.centre, self._tables.markets.ids)

    @property
    def output_tables(self) -> OutputTables:
        """Tables of these markets."""
        return self._tables

    def delta_method(self, function: Callable[[Model], Any], hold: str = "shares") -> Any:
        """Standard errors of a function of the model of these markets."""
        return self._source.delta_method(lambda model: function(self._select(model)), hold=hold)

    def evaluate_output(self, function: Output, given: Given) -> Any:
        """The function at the model of these markets, or at that of each draw."""
        return self._source.evaluate_output(lambda model, values: function(self._select(model), values), given)

    def _select(self, model: Model) -> Model:
        found = self._selection
        owned = model.ownership
        if owned is not None:
            owned = tuple(owned[b][places] for b, places in zip(found.buckets, found.places, strict=True))
        variables = {name: values[found.rows] for name, values in model.characteristics.variables.items()}
        return dataclasses.replace(
            model,
            economy=found.economy if model.economy.on_host else self._on_device,
            characteristics=dataclasses.replace(model.characteristics, variables=variables),
            delta=model.delta[found.rows],
            ownership=owned,
            conduct=None if model.conduct is None else model.conduct.take(found.rows),
        )

    def _agents(self, tables: OutputTables, ids: np.ndarray) -> Any:
        agents = tables.agents
        people = np.flatnonzero(np.isin(agents.table.market_ids, ids))
        table = dataclasses.replace(_cut(agents.table, people), data=agents.table.data)
        counts = tuple(np.array(agents.counts)[np.isin(tables.markets.ids, ids)].tolist())
        return dataclasses.replace(
            agents,
            table=table,
            demographics=agents.demographics[people],
            economy=self._selection.economy,
            counts=counts,
        )


def _positions(known: MarketIndex, market_ids: Any) -> np.ndarray:
    given = np.atleast_1d(np.asarray(market_ids)).reshape(-1).tolist()
    if not given:
        raise ValueError("market_ids must have at least one market.")
    places: list[int] = []
    for one in given:
        (found,) = np.nonzero(known.ids == one)
        if found.size != 1:
            raise ValueError(f"market_ids has {one!r}, which is no market.")
        if found[0] in places:
            raise ValueError(f"market_ids has {one!r} twice.")
        places.append(int(found[0]))
    return np.array(places)


def _cut(table: Any, rows: np.ndarray) -> Any:
    """A table with some of its rows."""
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(table):
        values = getattr(table, field.name)
        if field.name == "data":
            columns["data"] = {name: column[rows] for name, column in values.items() if len(column) > rows.max()}
        elif values is not None and not isinstance(values, tuple):
            columns[field.name] = values[rows]
    return dataclasses.replace(table, **columns)
