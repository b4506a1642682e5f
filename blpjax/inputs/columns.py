"""Checked columns of tables: ids, vectors and matrices of finite numbers, and words for rows and markets in messages.

Every message names the table, the column and, where it is about values, market and row. Rows are counted from zero.
"""

import numbers
import re
from collections.abc import Mapping

import numpy as np

from blpjax.exceptions import DataError, DataWarning, warn_user
from blpjax.inputs.table_format import check_magnitude, find_vector, is_missing, plain_value

_SHOWN = 3  # offenders listed in a message


def read_market_ids(columns: Mapping[str, np.ndarray], table: str, user: str = "every problem") -> np.ndarray:
    """Market ids (N,), which can be sorted. This also checks that the table has rows at all."""
    if not columns or next(iter(columns.values())).shape[0] == 0:
        raise DataError(f"{table}: the table is empty.")
    ids = find_vector(columns, "market_ids", table, user)
    check_present(ids, "market_ids", table, None)
    unique_ids(ids, "market_ids", table)
    return ids


def read_ids(
    columns: Mapping[str, np.ndarray], name: str, table: str, market_ids: np.ndarray | None
) -> np.ndarray | None:
    """An optional (N,) column of ids without missing values."""
    if name not in columns or columns[name].size == 0:
        return None
    ids = columns[name]
    if ids.ndim > 1:
        raise DataError(f"{table}: column '{name}' must be one-dimensional, but has {ids.shape[1]} columns.")
    check_present(ids, name, table, market_ids)
    unique_ids(ids, name, table)
    return ids


def read_required_ids(
    columns: Mapping[str, np.ndarray], name: str, table: str, market_ids: np.ndarray, user: str
) -> np.ndarray:
    """A required (N,) column of ids without missing values."""
    ids = find_vector(columns, name, table, user)
    check_present(ids, name, table, market_ids)
    unique_ids(ids, name, table)
    return ids


def read_id_columns(
    columns: Mapping[str, np.ndarray], name: str, table: str, market_ids: np.ndarray
) -> np.ndarray | None:
    """Optional ids that may have several columns, (N,) or (N, n)."""
    # another column, such as an older 'product_ids2', may well stand beside IDs
    candidates = [name] if name in columns else find_columns(columns, name, table)
    found = [column for column in candidates if columns[column].size]
    if not found:
        return None
    for column in found:
        check_present(columns[column], column, table, market_ids)
        unique_ids(columns[column], column, table)
    return (
        columns[found[0]] if len(found) == 1 else np.column_stack([columns[column].astype(object) for column in found])
    )


def read_vector(
    columns: Mapping[str, np.ndarray], name: str, table: str, market_ids: np.ndarray, user: str = "every problem"
) -> np.ndarray:
    """A required (N,) column of finite numbers."""
    return _numeric(find_vector(columns, name, table, user), name, table, market_ids)


def read_matrix(
    columns: Mapping[str, np.ndarray],
    name: str,
    table: str,
    market_ids: np.ndarray,
    required: bool = False,
    limit: int | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Finite numbers of a matrix or of numbered columns, (N, n) with n at most `limit`, and n labels."""
    found = find_columns(columns, name, table)
    if not found:
        if required:
            find_vector(columns, f"{name}0", table, f"X2 (unless '{name}' is a matrix or there is an integration)")
        return np.zeros((market_ids.size, 0)), ()
    parts: list[np.ndarray] = []
    for column in found:
        values = columns[column] if columns[column].ndim == 2 else columns[column][:, None]
        for k in range(values.shape[1]):
            if limit is None or len(parts) < limit:
                label = column if values.shape[1] == 1 else f"{column}[:, {k}]"
                parts.append(_numeric(values[:, k], label, table, market_ids))
    if not parts and required:
        raise DataError(f"{table}: column '{name}' has no columns.")
    matrix = np.column_stack(parts) if parts else np.zeros((market_ids.size, 0))
    return matrix, tuple(f"{name}{k}" for k in range(matrix.shape[1]))


def read_ownership(columns: Mapping[str, np.ndarray], table: str, market_ids: np.ndarray) -> np.ndarray | None:
    """Optional stacked ownership matrices, (N, J) where J is the number of products in the largest market.

    Row j of a market with fewer products has its elements in the first columns, and NaN in the others, whatever is
    there in the table. Surplus columns on the right, as in a selection of markets, are dropped.

    Raises
    ------
    DataError
        There are fewer columns than products in the largest market, or an element for a product of the row's market is
        missing, infinite, or no number. The message names column, market and row.
    """
    found = [column for column in find_columns(columns, "ownership", table) if columns[column].size]
    if not found:
        return None
    markets, codes, sizes = np.unique(market_ids, return_inverse=True, return_counts=True)
    ownership = np.full((market_ids.size, sizes.max()), np.nan)
    k = 0
    for column in found:
        values = columns[column] if columns[column].ndim == 2 else columns[column][:, None]
        for index in range(min(values.shape[1], ownership.shape[1] - k)):
            label = column if values.shape[1] == 1 else f"{column}[:, {index}]"
            padding = sizes[codes.ravel()] <= k  # rows of markets with fewer products
            elements = values[:, index].astype(float if values.dtype.kind in "biuf" else object)
            elements[padding] = 0
            ownership[:, k] = np.where(padding, np.nan, _numeric(elements, label, table, market_ids))
            k += 1
    if k < ownership.shape[1]:
        raise DataError(
            f"{table}: column 'ownership' has {k} column{'' if k == 1 else 's'}, but market "
            f"{plain_value(markets[sizes.argmax()])!r} has {sizes.max()} products. Ownership matrices need one column "
            "for each product of the largest market; build_ownership makes such columns."
        )
    return ownership


def read_lag_indices(columns: Mapping[str, np.ndarray], table: str, market_ids: np.ndarray) -> np.ndarray | None:
    """Optional rows (N,) of lags, counted from zero: an initial period's lag is the row itself. None without any.

    Raises
    ------
    DataError
        An element is no row of the table, no row or every row is an initial period, two rows have the same lag, or
        lags lead in a circle. The message names markets and rows.
    """
    name, N = "lag_indices", market_ids.size
    if name not in columns or columns[name].size == 0:
        return None
    values = columns[name]
    if values.ndim > 1 and values.shape[1] > 1:
        raise DataError(f"{table}: column '{name}' must be one-dimensional, but has {values.shape[1]} columns.")
    given = _numeric(values.reshape(-1), name, table, market_ids)

    def refuse(bad: np.ndarray, must: str) -> None:
        if bad.any():
            raise DataError(f"{table}: column '{name}' {must} {list_rows(np.flatnonzero(bad), market_ids, given)}.")

    refuse(
        (given != np.floor(given)) | (given < 0) | (given > N - 1),
        f"must hold rows of the table, integers from 0 to {N - 1}, but does not in",
    )
    lags, rows = given.astype(np.int64), np.arange(N)
    initial = lags == rows
    if not initial.any():
        raise DataError(
            f"{table}: column '{name}' must hold a row's own number for initial periods, which have no lag, but no row "
            "is one. Rows are counted from 0."
        )
    if initial.all():
        raise DataError(f"{table}: column '{name}' holds every row's own number, so no row has a lag. Leave it out.")
    counts = np.bincount(lags[~initial], minlength=N)
    refuse(~initial & (counts[lags] > 1), "must hold each row only once, as a lag of one other row, but does not in")
    reached = lags
    for _ in range(N.bit_length()):  # each time lags of twice as many periods
        reached = reached[reached]
    refuse(~initial[reached], "must lead to an initial period, a row that is its own lag, but leads in a circle from")
    return lags


def find_unowned(ownership: np.ndarray) -> np.ndarray:
    """Rows of ownership matrices (..., N, J), padded with NaN or zeros, in which nobody owns anything.

    Such a product's price affects nobody's profit, so that no cost makes it optimal.
    """
    rows = ~(np.nan_to_num(ownership) != 0).any(axis=-1)
    return np.flatnonzero(rows.reshape(-1, rows.shape[-1]).any(axis=0))


def find_columns(columns: Mapping[str, np.ndarray], name: str, table: str) -> list[str]:
    """Names of the columns that make up a matrix field: the matrix, or columns numbered from zero without gaps.

    Beside a matrix, numbered columns are not used, which a `DataWarning` says.
    """
    numbered = [column for column in columns if re.fullmatch(re.escape(name) + r"[0-9]+", column)]
    if name in columns:
        if numbered:
            warn_user(
                f"{table}: there is a column '{name}' and also {', '.join(map(repr, numbered))}. The former is used, "
                "the numbered columns are not.",
                DataWarning,
            )
        return [name]
    expected = [f"{name}{k}" for k in range(len(numbered))]
    missing = [column for column in expected if column not in columns]
    if missing:
        found = ", ".join(f"'{column}'" for column in numbered)
        raise DataError(
            f"{table}: numbered columns must start at zero and have no gaps, but '{missing[0]}' is missing among the "
            f"columns found: {found}."
        )
    return expected


def check_present(values: np.ndarray, name: str, table: str, market_ids: np.ndarray | None) -> None:
    """Raise when values are missing, or, if they are numbers, infinite."""
    missing = _any_column(is_missing(values))
    if missing.any():
        raise DataError(
            f"{table}: column '{name}' has missing values in {list_rows(np.flatnonzero(missing), market_ids)}."
        )
    if values.dtype.kind == "f":
        infinite = _any_column(np.isinf(values))
        if infinite.any():
            raise DataError(
                f"{table}: column '{name}' has infinite values in {list_rows(np.flatnonzero(infinite), market_ids)}."
            )


def unique_ids(ids: np.ndarray, name: str, table: str) -> np.ndarray:
    """Sorted distinct ids, or `DataError` when they cannot be sorted or are collections."""
    if ids.dtype == object and any(isinstance(value, list | dict | set | np.ndarray) for value in ids.flat):
        kind = next(type(value).__name__ for value in ids.flat if isinstance(value, list | dict | set | np.ndarray))
        raise DataError(f"{table}: column '{name}' holds a {kind} for each row, but needs one ID: text or a number.")
    try:
        return np.unique(ids)
    except TypeError:
        kinds = sorted({type(value).__name__ for value in ids.tolist()})
        raise DataError(
            f"{table}: column '{name}' mixes values of types {' and '.join(kinds)}, which cannot be sorted. Give all "
            "the same type, for example with .astype(str)."
        ) from None


def list_rows(rows: np.ndarray, market_ids: np.ndarray | None, values: np.ndarray | None = None) -> str:
    """Name the first few rows and say how many there are."""
    parts = []
    for row in rows[:_SHOWN].tolist():
        market = "" if market_ids is None else f"market {plain_value(market_ids[row])!r}, "
        parts.append(f"{market}row {row}" + ("" if values is None else f" ({plain_value(values[row])!r})"))
    more = f"; and {rows.size - _SHOWN} more" if rows.size > _SHOWN else ""
    return f"{rows.size} row{'' if rows.size == 1 else 's'}, counted from 0: {'; '.join(parts)}{more}"


def list_markets(markets: np.ndarray, sums: np.ndarray | None = None) -> str:
    """Name the first few markets, perhaps with their sums, and say how many there are."""
    parts = [
        repr(plain_value(market)) + ("" if sums is None else f" (sum {sums[t]:.8g})")
        for t, market in enumerate(markets[:_SHOWN])
    ]
    more = f" and {markets.size - _SHOWN} more" if markets.size > _SHOWN else ""
    return f"{markets.size} market{'' if markets.size == 1 else 's'}: {', '.join(parts)}{more}"


def _any_column(flags: np.ndarray) -> np.ndarray:
    return np.asarray(flags if flags.ndim == 1 else flags.any(axis=1))


def _numeric(values: np.ndarray, name: str, table: str, market_ids: np.ndarray) -> np.ndarray:
    """Finite numbers as a new array of floats."""
    check_present(values, name, table, market_ids)
    numeric = values.dtype.kind in "biuf"
    bad = [] if numeric else [not isinstance(value, (numbers.Real, np.bool_)) for value in values.tolist()]
    if numeric or (values.dtype.kind == "O" and not any(bad)):
        found = values.astype(float)
        check_magnitude(found, f"column '{name}'", table, {"market_ids": market_ids})
        return found
    rows = np.flatnonzero(bad) if any(bad) else np.arange(values.size)  # dates may look like numbers
    raise DataError(
        f"{table}: column '{name}' must hold numbers, but does not in {list_rows(rows, market_ids, values)}. "
        "pandas.to_numeric converts text to numbers."
    )
