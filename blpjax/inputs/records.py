"""A problem's data as PyBLP's structured arrays: what `Problem.products` and `Problem.agents` show."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from blpjax.inputs.design import Column, DesignMatrix
from blpjax.inputs.tables import AgentTable, ProductTable


class ProductMatrices(NamedTuple):
    """Matrices that belong to a product table.

    `X1` (N, K1), `X3` (N, K3), `ZD` (N, MD) and `ZS` (N, MS) are residualised on any fixed effects, whose codes are
    `demand_ids` (N, ED) and `supply_ids` (N, ES); X2 is (N, K2), `ZC` (N, MC).
    """

    X1: np.ndarray
    X2: np.ndarray
    X3: np.ndarray
    ZD: np.ndarray
    ZS: np.ndarray
    ZC: np.ndarray
    demand_ids: np.ndarray
    supply_ids: np.ndarray


def product_records(
    table: ProductTable, matrices: ProductMatrices, designs: Sequence[DesignMatrix | None]
) -> np.recarray:
    """Product data as a structured array of N rows, with the `designs` of X1, X2 and X3.

    Every field is a matrix with N rows; fields without data have no columns. Variables of the formulas are fields too,
    unless a field has their name. Titles of the fields of X1, X2 and X3 are their columns: what they contain, as in
    ``products.dtype.fields["X1"][2]``.
    """
    N = table.shares.size
    none, no_ids, no_lags = np.zeros((N, 0)), np.zeros((N, 0), object), np.zeros((N, 0), np.int64)
    fields = {
        "market_ids": table.market_ids,
        "firm_ids": table.firm_ids,
        "demand_ids": matrices.demand_ids,
        "supply_ids": matrices.supply_ids,
        "nesting_ids": no_ids if table.nesting_ids is None else table.nesting_ids,
        "subnesting_ids": no_ids if table.subnesting_ids is None else table.subnesting_ids,
        "product_ids": table.product_ids,
        "clustering_ids": table.clustering_ids,
        "lag_indices": no_lags if table.lag_indices is None else table.lag_indices,
        "ownership": none if table.ownership is None else table.ownership,
        "shares": table.shares,
        "ZD": matrices.ZD,
        "ZS": matrices.ZS,
        "ZC": matrices.ZC,
        "X1": matrices.X1,
        "X2": matrices.X2,
        "X3": matrices.X3,
        "prices": table.prices,
    }
    titles = {f"X{i}": () if design is None else design.columns for i, design in enumerate(designs, start=1)}
    used = {name for columns in titles.values() for column in columns for name in column.names}
    fields |= {name: as_variable(table.data[name]) for name in sorted(used - set(fields))}
    return structure(fields, N, titles)


def agent_records(table: AgentTable, demographics: np.ndarray, columns: Sequence[Column]) -> np.recarray:
    """Agent data with `demographics` (I, D), or (I, D, max J), as a structured array of I rows.

    The title of the field of demographics are their `columns`.
    """
    fields = {
        "market_ids": table.market_ids,
        "agent_ids": table.agent_ids,
        "weights": table.weights,
        "nodes": table.nodes,
        "demographics": demographics,
        "availability": np.zeros((table.weights.size, 0)) if table.availability is None else table.availability,
    }
    return structure(fields, table.weights.size, {"demographics": tuple(columns)})


def unique_ids(ids: np.ndarray | None) -> np.ndarray:
    """Sorted IDs, those of the first column if there are several: no IDs when there is no column."""
    if ids is None:
        return np.array([], dtype=object)
    return as_objects(np.unique(ids if ids.ndim == 1 else ids[:, 0]))


def as_objects(ids: np.ndarray) -> np.ndarray:
    """IDs as an array of objects, PyBLP's type. Dates keep theirs: as objects, some of them would become integers."""
    return ids if ids.dtype.kind == "M" else ids.astype(object)


def as_variable(values: np.ndarray) -> np.ndarray:
    """A column of a table as structured arrays hold it: all numbers are 64-bit floats."""
    return values.astype(float) if values.dtype.kind in "iuf" else values


def structure(
    fields: Mapping[str, np.ndarray | None], rows: int, titles: Mapping[str, tuple[Column, ...]] | None = None
) -> np.recarray:
    """A structured array whose fields are matrices; those that are None have no columns. Some have `titles`."""
    matrices = {}
    for name, values in fields.items():
        matrix = (
            np.zeros((rows, 0), object) if values is None else values.reshape(rows, -1) if values.ndim == 1 else values
        )
        numbers = matrix.dtype.kind == "f" or name == "lag_indices"
        matrices[name] = as_objects(matrix) if name.endswith("_ids") or not numbers else matrix
    named = {name: (title, name) for name, title in (titles or {}).items()}
    dtype: list[Any] = [(named.get(name, name), m.dtype, m.shape[1:]) for name, m in matrices.items()]
    records = np.recarray(rows, dtype=dtype)
    for name, matrix in matrices.items():
        records[name] = matrix
    return records
