"""One form for tables: a dictionary of NumPy arrays with one row per observation."""

import difflib
import numbers
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from blpjax.exceptions import DataError

#: Squares of larger numbers overflow when there are many.
_LARGEST = 1e150


def read_table(data: object, table: str) -> dict[str, np.ndarray]:
    """Copy a table into a dictionary of arrays that have one row per observation.

    Parameters
    ----------
    data : DataFrame, mapping from names to arrays, or structured (record) array. Fields of mappings and of structured
        arrays may be matrices with N rows. The index of a DataFrame is ignored.
    table : what the table is called in messages, for example `"product_data"`.

    Returns
    -------
    Arrays by name, in the table's order: (N,) or, for fields with zero or several columns, (N, K). Numbers and booleans
    keep their type; nullable pandas columns become NumPy ones, with NaN where a number is missing and `None` where
    anything else is; categoricals become their values; text becomes an object array of strings; object columns that
    hold nothing but real numbers (and missing values) become numeric. The arrays are copies: `data` is never modified.

    Raises
    ------
    TypeError
        When `data` is none of the accepted types, or a field cannot be a column (nested fields, complex numbers).
    DataError
        When names are duplicated, series of a mapping have different indices, or fields differ in their number of rows.
        Missing values are no error here: they are refused where a column is used.
    """
    columns: dict[str, np.ndarray] = {}
    _check_indices(data, table)
    for name, values in _fields(data, table):
        if name in columns:
            raise DataError(f"{table}: column '{name}' appears more than once.")
        columns[name] = _as_rows(values, name, table)
    sizes = {name: values.shape[0] for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        first = next(iter(sizes))
        other = next(name for name, size in sizes.items() if size != sizes[first])
        raise DataError(
            f"{table}: column '{first}' has {sizes[first]} rows but column '{other}' has {sizes[other]}. All columns "
            "need the same number of rows."
        )
    return columns


def is_missing(values: np.ndarray) -> np.ndarray:
    """Which elements are missing: NaN, NaT, `None` or `pandas.NA`. Any array in, booleans of its shape out."""
    return np.asarray(pd.isna(values), bool)


def find_vector(data: Mapping[str, np.ndarray], name: str, table: str, user: str) -> np.ndarray:
    """Get a column that has to be a vector.

    Parameters
    ----------
    data : arrays by name, as `read_table` returns them.
    name : the column.
    table : what the table is called in messages.
    user : what needs the column, for example `"formula '1 + x'"`.

    Raises
    ------
    DataError
        When there is no such column (the message offers similar names), or it is a matrix.
    """
    if name not in data:
        close = difflib.get_close_matches(name, list(data), n=3)
        hint = (
            f" Did you mean {' or '.join(repr(match) for match in close)}?"
            if close
            else f" It has: {', '.join(data) or 'no columns'}."
        )
        raise DataError(f"{table}: there is no column '{name}', which {user} needs.{hint}")
    values = np.asarray(data[name])
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"{table}: column '{name}' has shape {values.shape}, but {user} needs one value per row.")
    return values


def describe_rows(data: Mapping[str, np.ndarray], rows: np.ndarray) -> str:
    """Say where a fault is: `market 'C01Q1', row 12 (and 3 more rows)`. Rows count from 0, markets are `market_ids`."""
    row = int(rows[0])
    markets = np.asarray(data["market_ids"]).reshape(-1) if "market_ids" in data else np.array([])
    market = f"market {plain_value(markets[row])!r}, " if row < markets.size else ""
    more = f" (and {rows.size - 1} more row{'s' if rows.size > 2 else ''})" if rows.size > 1 else ""
    return f"{market}row {row}{more}"


def check_magnitude(values: np.ndarray, what: str, table: str, data: Mapping[str, np.ndarray]) -> None:
    """Raise `DataError` for finite numbers (N,) whose squares overflow, or all of whose squares vanish."""
    bad = np.flatnonzero(np.abs(values) > _LARGEST)
    if bad.size:
        raise DataError(
            f"{table}: {what} is {values[bad[0]]:g} in {describe_rows(data, bad)}. Squares of numbers above "
            f"{_LARGEST:g} overflow: measure it in other units."
        )
    if 0 < np.abs(values).max(initial=0.0) < 1 / _LARGEST:
        raise DataError(
            f"{table}: {what} has no number above {1 / _LARGEST:g}. Squares of such numbers are zero: measure it in "
            "other units."
        )


def plain_value(value: object) -> object:
    """A NumPy scalar as the Python value that prints like users wrote it; anything else unchanged."""
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def _fields(data: object, table: str) -> Iterator[tuple[str, object]]:
    """Names and raw values of the columns of any accepted type of table."""
    if isinstance(data, pd.DataFrame):
        for position, name in enumerate(data.columns):
            yield str(name), data.iloc[:, position]
    elif isinstance(data, Mapping):
        for name, values in data.items():
            yield str(name), values
    elif isinstance(data, np.ndarray) and data.dtype.names is not None:
        for name in data.dtype.names:
            yield name, np.asarray(data[name])
    else:
        raise TypeError(
            f"{table} must be a pandas DataFrame, a mapping from column names to arrays, or a structured NumPy array, "
            f"not {type(data).__module__}.{type(data).__qualname__}."
        )


def _check_indices(data: object, table: str) -> None:
    """Raise `DataError` when series of a mapping have different indices: their rows would not belong together."""
    if not isinstance(data, Mapping):
        return
    indexed = {name: values.index for name, values in data.items() if isinstance(values, pd.Series | pd.DataFrame)}
    for name, index in indexed.items():
        first = next(iter(indexed))
        if len(index) == len(indexed[first]) and not index.equals(indexed[first]):
            raise DataError(
                f"{table}: columns '{first}' and '{name}' are pandas objects with different indices, so that it is not "
                "clear which rows belong together. Make a DataFrame of them, or use .to_numpy() to keep their order."
            )


def _as_rows(values: object, name: str, table: str) -> np.ndarray:
    """Convert one field to a new (N,) or (N, K) array of a plain type."""
    if isinstance(values, pd.DataFrame):
        if values.shape[1] == 0:
            return np.zeros(values.shape)
        parts = [_plain_array(values.iloc[:, k], name, table) for k in range(values.shape[1])]
        array = np.column_stack(parts)
    else:
        array = _plain_array(values, name, table)
    if array.ndim == 0:
        raise DataError(f"{table}: column '{name}' is a single value. Give an array with one value per row.")
    if array.ndim > 2:
        raise DataError(f"{table}: column '{name}' has {array.ndim} dimensions. Columns may be vectors or matrices.")
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _plain_array(values: object, name: str, table: str) -> np.ndarray:
    """Copy values into an array of numbers, booleans, dates or objects."""
    if isinstance(values, (pd.Series, pd.Index)) or pd.api.types.is_extension_array_dtype(
        getattr(values, "dtype", None)
    ):
        array = _from_pandas(pd.Series(values))
    elif np.ma.isMaskedArray(values):
        numeric = np.ma.asarray(values).dtype.kind in "iuf"
        array = np.ma.filled(np.ma.asarray(values).astype(float if numeric else object), np.nan if numeric else None)
    else:
        try:
            array = np.array(values)
        except ValueError as error:
            raise DataError(
                f"{table}: column '{name}' is ragged: it needs one value for each row, not lists of unequal lengths."
            ) from error
    if array.dtype.names is not None or array.dtype.kind == "c":
        kind = "complex numbers" if array.dtype.kind == "c" else "nested fields"
        raise TypeError(f"{table}: column '{name}' contains {kind}, which are not supported.")
    if array.dtype.kind in "US":
        return array.astype(str).astype(object)
    return _numeric_where_possible(array) if array.dtype == object else array


def _from_pandas(series: pd.Series) -> np.ndarray:
    """Copy a series into an array, whatever its extension type."""
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _from_pandas(series.astype(dtype.categories.dtype if not series.isna().any() else object))
    if isinstance(dtype, pd.SparseDtype):
        return series.sparse.to_dense().to_numpy(copy=True)
    if not pd.api.types.is_extension_array_dtype(dtype):
        return series.to_numpy(copy=True)
    missing = series.isna().to_numpy()
    if pd.api.types.is_bool_dtype(dtype) and not missing.any():
        return series.to_numpy(dtype=bool, copy=True)
    if pd.api.types.is_integer_dtype(dtype) and not missing.any():
        return series.to_numpy(dtype=np.int64 if pd.api.types.is_signed_integer_dtype(dtype) else np.uint64, copy=True)
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype):
        return series.to_numpy(dtype=float, na_value=np.nan, copy=True)
    array = series.to_numpy(dtype=object, copy=True)
    array[missing] = None
    return array


def _numeric_where_possible(array: np.ndarray) -> np.ndarray:
    """Give object arrays that hold only numbers a numeric type, so that they are not mistaken for categories."""
    missing = is_missing(array)
    present = [value for value in array[~missing]]
    if not present or any(isinstance(value, (bool, np.bool_)) for value in present):
        if present and not missing.any() and all(isinstance(value, (bool, np.bool_)) for value in present):
            return array.astype(bool)
        return array
    if not missing.any() and all(isinstance(value, numbers.Integral) for value in present):
        try:
            return array.astype(np.int64)
        except OverflowError:
            return array
    if all(isinstance(value, numbers.Real) for value in present):
        numeric = np.full(array.shape, np.nan)
        numeric[~missing] = [float(value) for value in present]
        return numeric
    return array
