"""Taxes on some consumers: what each agent pays beyond the price of each product."""

from typing import Any

import numpy as np
import pandas as pd

from blpjax.economy.buckets import index_markets
from blpjax.exceptions import DataError
from blpjax.inputs.survey_expressions import Asked, Cells, SurveyTables, read_expression
from blpjax.inputs.table_format import plain_value
from blpjax.model.model import Model
from blpjax.outputs.labels import OutputTables

_USER = "taxes: consumers"


def read_consumer_taxes(
    tables: OutputTables, consumers: Any, known: OutputTables | None = None
) -> tuple[np.ndarray, ...]:
    """What agents pay beyond prices: arrays (T, J, I), one for each bucket.

    Parameters
    ----------
    tables : products and agents, perhaps with new products at the end.
    consumers : see `Taxes`.
    known : the tables without new products, for which arrays by product are.

    Raises
    ------
    DataError, TypeError, ValueError
        When a column is unknown, numbers are missing, do not fit the tables, or are zero for everybody.
    """
    agents, markets = tables.agents.table, tables.markets
    own = index_markets(agents.market_ids)
    width = max(rows.size for rows in markets.rows)
    found = np.zeros((agents.weights.size, width))
    if isinstance(consumers, str):
        named = SurveyTables(tables.products.data, _columns(tables))
        asked = Asked.of(read_expression(consumers, _USER), named, _USER)
        for market, rows, people in zip(markets.ids, markets.rows, own.rows, strict=True):
            cells = Cells(named, plain_value(market), people[:, None], rows[None, :])
            values = np.broadcast_to(asked.values(cells), cells.shape)
            bad = np.argwhere(~np.isfinite(values))
            if bad.size:
                raise DataError(f"{_USER} is no finite number in {asked.describe(cells, tuple(bad[0]))}.")
            found[people, : rows.size] = values
    else:
        values = _read_array(tables, consumers, known)
        for rows, people in zip((known or tables).markets.rows, own.rows, strict=True):
            found[people, : rows.size] = values[people, : rows.size] if values.ndim == 2 else values[people, None]
        if values.ndim == 1 and known is not None:
            for rows, people in zip(markets.rows, own.rows, strict=True):
                found[people, : rows.size] = values[people, None]
    if not found.any():
        raise ValueError(f"{_USER} is zero for everybody, so that it changes nothing.")
    return tables.agents.economy.scatter_pairs(markets, own, found)


def check_linear_prices(model: Model) -> None:
    """Raise where taxes on some consumers would not be an offset of utilities.

    Raises
    ------
    NotImplementedError
        When there are no agents, utilities are not linear in prices, or markets are spread over devices.
    """
    if not len(model.coefficients.sigma):
        raise NotImplementedError("Taxes on some consumers need agents, of which there are none without X2.")
    if model.economy.placement is not None:
        raise NotImplementedError("Taxes on some consumers are not supported for markets on several devices.")
    if (column := nonlinear_in_prices(model)) is not None:
        raise NotImplementedError(f"Taxes on some consumers are supported where utility is linear in prices. {column}.")


def nonlinear_in_prices(model: Model) -> str | None:
    """Which column of X1 or X2 makes utility not linear in prices, in words; None where it is."""
    known = model.characteristics
    variables = {name: np.asarray(values) for name, values in known.variables.items()}
    moved = variables | {"prices": 1.5 * variables["prices"] + 1.0}
    for name, columns in (("X1", known.X1_columns), ("X2", known.X2_columns)):
        for column in columns:
            if "prices" not in column.inputs:
                continue
            here, there = (_slope(column, at) for at in (variables, moved))
            if not np.allclose(here, there, rtol=1e-9, atol=0.0):
                return f"{name} has {column.label!r}"
    return None


def _slope(column: Any, variables: dict[str, np.ndarray]) -> np.ndarray:
    """Derivatives of a column in prices (N,), by a complex step."""
    step = 1e-200
    return np.imag(column.evaluate(variables | {"prices": variables["prices"] + 1j * step})) / step


def _read_array(tables: OutputTables, consumers: Any, known: OutputTables | None) -> np.ndarray:
    agents = tables.agents.table
    if callable(consumers):
        consumers = consumers(pd.DataFrame(_columns(tables)))
    size, width = agents.weights.size, max(rows.size for rows in (known or tables).markets.rows)
    try:
        values = np.asarray(consumers, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_USER} must be text, a function of agents, or an array of numbers.") from error
    if values.shape not in ((size,), (size, width)):
        raise ValueError(
            f"{_USER} must have the shape {(size,)}, or {(size, width)} with a number for each product of the agent's "
            f"market, not {values.shape}."
        )
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"{_USER} must be finite, but row {bad[0][0]} of the agents is {values[tuple(bad[0])]}.")
    return values


def _columns(tables: OutputTables) -> dict[str, np.ndarray]:
    """Columns of agents (I,), as they are in the economy: those of their table, and demographics by label."""
    agents, table = tables.agents, tables.agents.table
    found = {"market_ids": table.market_ids, "weights": table.weights}
    found |= {f"nodes{k}": column for k, column in enumerate(table.nodes.T)}
    if agents.demographics.ndim == 2:
        found |= dict(zip(agents.demographic_labels, agents.demographics.T, strict=True))
    if table.rows is not None:
        found |= {name: values[table.rows] for name, values in table.data.items() if values.ndim == 1}
    return found
