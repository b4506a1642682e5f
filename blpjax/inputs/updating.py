"""Replacing values of a product table, matched by market and product IDs."""

from collections.abc import Mapping, Sequence

import numpy as np

from blpjax.exceptions import DataError
from blpjax.inputs.columns import check_present, list_rows, read_market_ids
from blpjax.inputs.table_format import find_vector, is_missing, plain_value, read_table
from blpjax.values import read_flag

IDS = ("market_ids", "product_ids")

_TABLE, _USER = "data", "update"


def replace_values(
    known: Mapping[str, np.ndarray], data: object, columns: Sequence[str] | None = None, partial: bool = False
) -> dict[str, np.ndarray]:
    """Copy a product table with values of some columns replaced.

    Parameters
    ----------
    known : arrays by name, as `read_table` returns them, with N rows.
    data : DataFrame, mapping or structured array with `market_ids`, `product_ids` and new values.
    columns : what to replace, by default all columns of `data` but the IDs.
    partial : whether `data` may lack rows of `known`, which keep their values.

    Returns
    -------
    All columns of `known`. Those that are not replaced are the same arrays.

    Raises
    ------
    DataError
        When IDs are missing, repeated in either table, unknown, or (unless `partial`) lack rows of `known`; when a
        column is in one table only, has another number of columns, or another type of value.
    ValueError
        When there is nothing to replace, or an ID is to be replaced.
    TypeError
        When `data` is no table, or `columns` is a string.
    """
    partial = read_flag("partial", partial)
    given = read_table(data, _TABLE)
    names = _read_names(given, known, columns)
    own, other = _read_keys(known, "product_data"), _read_keys(given, _TABLE)
    positions = {key: row for row, key in enumerate(own)}
    unknown = np.flatnonzero([key not in positions for key in other])
    if unknown.size:
        raise DataError(
            f"{_TABLE}: product_data has no {_describe(other, unknown)}. IDs have to be of the same type, such as "
            f"{' and '.join(repr(part) for part in own[0])}."
        )
    rows = np.array([positions[key] for key in other], int)
    lacking = np.setdiff1d(np.arange(len(own)), rows)
    if lacking.size and not partial:
        raise DataError(f"{_TABLE}: there is no {_describe(own, lacking)}. Use partial=True to keep values of others.")
    changed = dict(known)
    for name in names:
        changed[name] = _replaced(known[name], given[name], rows, name)
    return changed


def _read_names(
    given: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray], columns: Sequence[str] | None
) -> list[str]:
    if isinstance(columns, str):
        raise TypeError(f"columns must be a sequence of names, such as [{columns!r}], not a string.")
    names = [name for name in given if name not in IDS] if columns is None else list(dict.fromkeys(columns))
    if not names:
        raise ValueError("There is nothing to replace: data has no columns other than market_ids and product_ids.")
    if ids := [name for name in names if name in IDS]:
        raise ValueError(f"columns must not contain {', '.join(ids)}, by which rows are matched.")
    for name in names:
        if name not in given:
            find_vector(given, name, _TABLE, _USER)
        if name not in known:
            find_vector(known, name, "product_data", f"{_USER} of that column")
    return names


def _read_keys(columns: Mapping[str, np.ndarray], table: str) -> list[tuple[object, object]]:
    """Market and product of each row, which have to identify it."""
    market_ids = read_market_ids(columns, table, _USER)
    product_ids = find_vector(columns, "product_ids", table, _USER)
    check_present(product_ids, "product_ids", table, market_ids)
    # dates would lose their type
    listed = [list(ids) if ids.dtype.kind == "M" else ids.tolist() for ids in (market_ids, product_ids)]
    keys = list(zip(*listed, strict=True))
    if len(set(keys)) < len(keys):
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        repeated = np.flatnonzero([first[key] != row for row, key in enumerate(keys)])
        raise DataError(
            f"{table}: market_ids and product_ids have to identify rows, but are repeated in "
            f"{list_rows(repeated, market_ids, product_ids)}."
        )
    return keys


def _describe(keys: Sequence[tuple[object, object]], rows: np.ndarray) -> str:
    """The first of some products, and how many more there are."""
    market, product = keys[rows[0]]
    more = f", and {rows.size - 1} more like it" if rows.size > 1 else ""
    return f"product {plain_value(product)!r} in market {plain_value(market)!r}{more}"


def _replaced(old: np.ndarray, new: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
    """Old values with new ones at some rows."""
    if old.shape[1:] != new.shape[1:]:
        raise DataError(
            f"{_TABLE}: column '{name}' has shape {new.shape}, but rows of product_data have shape {old.shape[1:]}."
        )
    numeric = [values.dtype.kind in "biuf" for values in (old, new)]
    if numeric[0] != numeric[1] and not is_missing(new).all():
        kinds = ["numbers" if n else "no numbers" for n in numeric]
        raise DataError(f"{_TABLE}: column '{name}' holds {kinds[1]}, but that of product_data holds {kinds[0]}.")
    changed = old.astype(np.result_type(old, new) if all(numeric) else object)
    changed[rows] = new
    return changed
