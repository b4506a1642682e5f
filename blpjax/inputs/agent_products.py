"""What varies over agents and products, from a long table to the numbered columns of agent data."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from blpjax.exceptions import DataError
from blpjax.inputs.columns import list_rows, read_market_ids, read_required_ids
from blpjax.inputs.table_format import plain_value, read_table

_KEYS = ("market_ids", "agent_ids", "product_ids")


def build_agent_product_data(
    agent_data: Any, agent_product_data: Any, product_data: Any, columns: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Agent data with variables that are specific to products, joined on IDs.

    `Problem` and `Simulation` read such variables from numbered columns: `distance3` belongs to the fourth product of
    an agent's market, in the order of product data. This function makes these columns from a table with a row for each
    agent and product, so that their order does not have to be taken care of.

    Parameters
    ----------
    agent_data : table with `market_ids` and `agent_ids`, which identify agents within markets.
    agent_product_data : table with `market_ids`, `agent_ids`, `product_ids` and variables, such as `distance`, or
        `availability`. There must be one row for each agent and each product of its market, in any order.
    product_data : table with `market_ids` and `product_ids`, which identify products within markets.
    columns : names of the variables, by default all other columns of `agent_product_data`.

    Returns
    -------
    All columns of `agent_data`, and for each variable numbered columns, as many as there are products in the largest
    market. They are NaN for products that a market lacks. A variable's own column in `agent_data` is replaced.

    Raises
    ------
    DataError
        When IDs are missing, repeated or unknown, there is no row for some agent and product, or a variable is missing
        or not numeric.
    """
    agents, products, pairs = (
        _read(data, table, keys)
        for data, table, keys in (
            (agent_data, "agent_data", _KEYS[:2]),
            (product_data, "product_data", _KEYS[::2]),
            (agent_product_data, "agent_product_data", _KEYS),
        )
    )
    given = read_table(agent_product_data, "agent_product_data")
    names = [name for name in given if name not in _KEYS] if columns is None else list(columns)
    for name in names:
        if name not in given:
            raise DataError(f"agent_product_data: there is no column '{name}'.")
        if given[name].ndim > 1 or given[name].dtype.kind not in "biuf":
            raise DataError(f"agent_product_data: column '{name}' must be one column of numbers.")
    agents["agent_row"] = np.arange(len(agents))
    products["product_row"] = products.groupby("market_ids", sort=False).cumcount()
    found = pairs.merge(agents, how="left", on=["market_ids", "agent_ids"])
    found = found.merge(products, how="left", on=["market_ids", "product_ids"])
    for column, table in (("agent_row", "agent_data"), ("product_row", "product_data")):
        unknown = np.flatnonzero(found[column].isna())
        if unknown.size:
            raise DataError(
                f"agent_product_data: {table} has no such IDs as those in "
                f"{list_rows(unknown, found['market_ids'].to_numpy())}."
            )
    _check_complete(agents, products, len(pairs))
    rows, places = found["agent_row"].to_numpy(int), found["product_row"].to_numpy(int)
    widest = int(products["product_row"].max()) + 1
    known = read_table(agent_data, "agent_data")
    columns_of = {name: values for name, values in known.items() if name not in names}
    for name in names:
        wide = np.full((len(agents), widest), np.nan)
        wide[rows, places] = given[name]
        columns_of |= {f"{name}{j}": wide[:, j] for j in range(widest)}
    return columns_of


def _read(data: Any, table: str, keys: Collection[str]) -> pd.DataFrame:
    """IDs of a table, which must identify its rows."""
    columns = read_table(data, table)
    market_ids = read_market_ids(columns, table)
    ids = {"market_ids": market_ids}
    for name in keys:
        if name != "market_ids":
            ids[name] = read_required_ids(columns, name, table, market_ids, "joining agents with products")
    frame = pd.DataFrame(ids)
    repeated = np.flatnonzero(frame.duplicated())
    if repeated.size:
        raise DataError(f"{table}: {' and '.join(keys)} are repeated in {list_rows(repeated, market_ids)}.")
    return frame


def _check_complete(agents: pd.DataFrame, products: pd.DataFrame, pairs: int) -> None:
    """Rows are unique and known, so that none is missing if their number is right."""
    sizes = products.groupby("market_ids").size()
    expected = agents["market_ids"].map(sizes)
    if expected.isna().any():
        market = plain_value(agents["market_ids"].to_numpy()[np.flatnonzero(expected.isna())[0]])
        raise DataError(f"agent_data: there are agents in market {market!r}, but product_data has no products there.")
    if pairs != expected.sum():
        raise DataError(
            f"agent_product_data: there are {pairs} rows, but {int(expected.sum())} pairs of agents and products of "
            "their markets, and each needs a row."
        )
