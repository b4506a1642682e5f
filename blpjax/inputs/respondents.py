"""Respondents of surveys: rows of `micro_data`, checked, with nodes that were given or are built for each of them."""

from typing import Any, NamedTuple

import numpy as np

from blpjax.exceptions import DataError
from blpjax.inputs.columns import find_columns, read_ids
from blpjax.inputs.integration import Integration
from blpjax.inputs.table_format import plain_value, read_table


class Respondents(NamedTuple):
    """Rows of respondents: several for each, where heterogeneity is integrated over.

    Attributes
    ----------
    columns : (rows,) or (rows, n) columns, with market IDs, nodes and weights.
    respondent : (rows,) which respondent a row belongs to. ids : what these are called, in their order.
    first, second : (rows,) indices of choices, None where they are not asked for.
    """

    columns: dict[str, np.ndarray]
    respondent: np.ndarray
    ids: np.ndarray
    first: np.ndarray | None
    second: np.ndarray | None


def read_respondents(micro_data: Any, integration: Integration | None, nodes: int, choices: int) -> Respondents:
    """Read and check micro data.

    Parameters
    ----------
    integration : builds `nodes` columns of nodes for each row, or None where rows have nodes, weights and IDs.
    choices : how many choices of respondents are read, up to two.

    Raises
    ------
    KeyError
        When a column is missing.
    DataError, ValueError, TypeError
        When a column cannot be used, or there is nothing to integrate over.
    """
    table = "micro_data"
    columns = read_table(micro_data, table)
    names = ("choice_indices", "second_choice_indices")[:choices]
    for name in ("market_ids", *names):
        _require(name, columns)
    if choices == 1 and "second_choice_indices" in columns:
        raise DataError("micro_data have second_choice_indices, but the dataset is about first choices alone.")
    rows = len(columns["market_ids"])
    if integration is not None:
        if not isinstance(integration, Integration):
            raise TypeError(f"integration must be None or an Integration, not {type(integration).__name__}.")
        if nodes == 0:
            raise ValueError("There is no unobserved heterogeneity over which to integrate: leave out integration.")
        built = integration.build_many(nodes, np.arange(rows))
        respondent = built.market_ids.astype(int)
        kept = {name: column[respondent] for name, column in columns.items() if not _is_nodes(name)}
        columns = {**kept, "nodes": built.nodes, "weights": built.weights}
        ids = np.arange(rows)
    else:
        for name in ("micro_ids", "weights", "nodes"):
            _require(name, columns, " without an integration")
        given = read_ids(columns, "micro_ids", table, columns["market_ids"])
        if given is None:
            raise KeyError("micro_data must have micro_ids without an integration.")
        unique, places, codes = np.unique(given, return_index=True, return_inverse=True)
        order = np.argsort(places)  # of first appearance
        respondent, ids = np.argsort(order)[codes.reshape(-1)], unique[order]
    found = [_read_indices(columns, name) for name in names]
    for name, values in (("market_ids", columns["market_ids"]), *zip(names, found, strict=True)):
        firsts = np.full(ids.size, -1)
        firsts[respondent[::-1]] = np.arange(respondent.size)[::-1]
        bad = np.flatnonzero(values[firsts[respondent]] != values)
        if bad.size:
            who = plain_value(ids[respondent[bad[0]]])
            raise DataError(f"micro_data: {name} differ between the rows of the micro ID {who!r}.")
    first, second = (*found, None, None)[:2]
    return Respondents(columns, respondent, ids, first, second)


def check_indices(name: str, indices: np.ndarray, size: int, market_id: Any) -> None:
    """`DataError` when indices of choices in a market are none of so many."""
    bad = indices[(indices < 0) | (indices >= size)]
    if bad.size:
        raise DataError(
            f"micro_data: {name} in market {plain_value(market_id)!r} must be from 0 to {size - 1}, which are the "
            f"choices of the dataset's weights, not {bad[0]}."
        )


def _require(name: str, columns: dict[str, np.ndarray], reason: str = "") -> None:
    if name not in columns and not find_columns(columns, name, "micro_data"):
        raise KeyError(f"micro_data must have {name}{reason}.")


def _is_nodes(name: str) -> bool:
    return name in ("weights", "micro_ids") or name.rstrip("0123456789") == "nodes"


def _read_indices(columns: dict[str, np.ndarray], name: str) -> np.ndarray:
    try:
        values = np.asarray(columns[name], float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise DataError(f"micro_data: {name} must be integers.") from error
    if not np.isfinite(values).all() or (values != np.round(values)).any():
        raise DataError(f"micro_data: {name} must be integers.")
    return values.astype(int)
