"""Rows of a survey's table as respondents with their choices, for expressions by column."""

from typing import Any, NamedTuple

import numpy as np

from blpjax.exceptions import DataError
from blpjax.inputs.columns import list_rows, read_ids, read_market_ids, read_required_ids, read_vector
from blpjax.inputs.micro import MicroDataset, MicroPart
from blpjax.inputs.named_surveys import (
    SurveyValues,
    SurveyWeights,
    all_values,
    describe_cell,
    eliminated_ids,
    read_weights,
)
from blpjax.inputs.survey_expressions import Cells, SurveyTables
from blpjax.inputs.table_format import is_missing, plain_value, read_table

_TABLE = "survey_data"


class SurveyRows(NamedTuple):
    """Respondents n: their cells, weights (n,) that sum to one, and codes (n,) of clusters."""

    cells: Cells
    weights: np.ndarray
    clusters: np.ndarray


def read_survey_rows(
    dataset: MicroDataset, survey_data: Any, product_data: Any, weights: str | None, clusters: str | None, outside: Any
) -> SurveyRows:
    """Read and check a survey's table; see `blpjax.micro_moments`, which has the same arguments and errors."""
    columns = read_table(survey_data, _TABLE)
    market_ids, known = read_market_ids(columns, _TABLE), dataset.compute_weights
    assert isinstance(known, SurveyWeights)
    products = {} if product_data is None else read_table(product_data, "product_data")
    if dataset.market_ids is not None:
        allowed = {str(plain_value(value)) for value in dataset.market_ids}
        wrong = np.flatnonzero([str(plain_value(value)) not in allowed for value in market_ids])
        if wrong.size:
            raise DataError(
                f"{_TABLE}: the micro dataset '{dataset.name}' is not about the markets of "
                f"{list_rows(wrong, market_ids)}."
            )
    names = ("product_ids", "second_product_ids")[: len(known.offsets)]
    chosen = [_find_products(columns, name, market_ids, products, outside) for name in names]
    for name, rows, offset in zip(names, chosen, known.offsets, strict=True):
        nothing = np.flatnonzero(rows < 0)
        if offset and nothing.size:
            raise DataError(
                f"{_TABLE}: the micro dataset '{dataset.name}' is about inside goods, but column '{name}' has none in "
                f"{list_rows(nothing, market_ids)}."
            )
    rows = np.arange(market_ids.size)
    tables = SurveyTables(products, columns, ("product_data", _TABLE))
    cells = Cells(tables, market_ids, rows, chosen[0], chosen[1] if len(chosen) == 2 else None)
    _check_cells(dataset, known, cells)
    given = np.ones(rows.size) if weights is None else read_vector(columns, weights, _TABLE, market_ids, "weights")
    if (given < 0).any() or not given.any():
        bad = np.flatnonzero(given < 0)
        where = f"is negative in {list_rows(bad, market_ids, given)}" if bad.size else "is zero everywhere"
        raise DataError(f"{_TABLE}: column '{weights}' of weights {where}.")
    codes = rows
    if clusters is not None:
        ids = read_required_ids(columns, clusters, _TABLE, market_ids, "clusters")
        codes = np.unique(ids, return_inverse=True)[1].reshape(-1)
    return SurveyRows(cells, given / given.sum(), codes)


def row_values(part: MicroPart, respondents: SurveyRows) -> np.ndarray:
    """Values of a part (n,) for respondents.

    Raises
    ------
    DataError
        When a column is missing, or a value is.
    """
    known, cells = part.compute_values, respondents.cells
    assert isinstance(known, SurveyValues)
    user = f"Micro part '{part.name}' of micro dataset '{part.dataset.name}'"
    values = np.array(all_values(known, cells, user))
    bad = np.flatnonzero(~np.isfinite(values) & (respondents.weights > 0))
    if bad.size:
        raise DataError(
            f"{user} is missing or infinite for {bad.size} respondents, among them "
            f"{describe_cell(known, cells, (int(bad[0]),), user)}."
        )
    return np.where(respondents.weights > 0, values, 0.0)


def _find_products(
    columns: dict[str, np.ndarray], name: str, market_ids: np.ndarray, products: dict[str, np.ndarray], outside: Any
) -> np.ndarray:
    """Rows of products by ID, -1 for the outside good; without product data 0 for inside goods."""
    if name not in columns:
        raise DataError(
            f"{_TABLE}: there is no column '{name}' of IDs of choices, in which missing values stand for the outside "
            "good."
        )
    values = columns[name]
    nothing = is_missing(values)
    if outside is not None:
        nothing = nothing | np.array([plain_value(value) == outside for value in values])
    if not products:
        return np.where(nothing, -1, 0)
    table = "product_data"
    ids = read_ids(products, "product_ids", table, products.get("market_ids"))
    if ids is None:
        raise DataError(f"{table}: there is no column 'product_ids', by which choices of respondents are found.")
    places: dict[tuple[str, str], int] = {}
    markets = read_market_ids(products, table)
    for row, key in enumerate(zip(map(_text, markets), map(_text, ids), strict=True)):
        if key in places:
            raise DataError(
                f"{table}: product_ids are repeated in market {plain_value(markets[row])!r}, so that choices of "
                f"{plain_value(ids[row])!r} are not clear."
            )
        places[key] = row
    keys = zip(map(_text, market_ids), map(_text, values), strict=True)
    found = np.array([-1 if none else places.get(key, -2) for none, key in zip(nothing, keys, strict=True)])
    unknown = np.flatnonzero(found == -2)
    if unknown.size:
        raise DataError(
            f"{_TABLE}: {table} have no product with the ID in column '{name}' in "
            f"{list_rows(unknown, market_ids, values)}."
        )
    return found


def _check_cells(dataset: MicroDataset, known: SurveyWeights, cells: Cells) -> None:
    """Refuse respondents who cannot be in the survey according to the dataset."""
    markets, user = np.asarray(cells.market), f"Micro dataset '{dataset.name}'"
    if cells.second is not None and "market_ids" in cells.tables.products:
        group = np.arange(len(cells.tables.products["market_ids"]))
        if known.without is not None:
            ids = eliminated_ids(known, cells.tables, user)
            group = np.unique(np.array(list(map(_text, ids))), return_inverse=True)[1].reshape(-1)
        first, second = (np.where(rows < 0, -1, group[rows]) for rows in (cells.first, cells.second))
        same = np.flatnonzero(first == second)
        if same.size:
            what = "what was chosen first" if known.without is None else f"of the same '{known.without}' as the first"
            raise DataError(f"{_TABLE}: second choices are {what} in {list_rows(same, markets)}.")
    for name, expression in (("agent_weights", known.agents), ("product_weights", known.products)):
        if expression is None:
            continue
        try:
            asked = read_weights(known, cells.tables, name, user)
        except DataError:
            continue  # a survey need not say what the dataset's weights depend on
        zero = np.flatnonzero(np.broadcast_to(asked.values(cells), cells.shape) == 0)
        if zero.size:
            raise DataError(
                f"{_TABLE}: by {name} of the micro dataset '{dataset.name}' respondents in {list_rows(zero, markets)} "
                "cannot be in the survey."
            )


def _text(value: Any) -> str:
    """IDs as text, whole numbers without decimals: missing values turn columns of integers into floats."""
    plain = plain_value(value)
    return str(int(plain)) if isinstance(plain, float) and plain.is_integer() else str(plain)
