"""Columns that look like misspelt fields."""

import warnings

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.exceptions import DataWarning
from blpjax.inputs.spelling import warn_of_misspelt_fields
from tests.support.problems import build, small_tables
from tests.support.silence import quiet


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("demand_instrument8", "demand_instruments8"),
        ("demand_intruments0", "demand_instruments0"),
        ("demand_isntruments0", "demand_instruments0"),
        ("Demand_Instruments3", "demand_instruments3"),
        ("supply_instrumentz", "supply_instruments"),
        ("nesting_id", "nesting_ids"),
        ("clustring_ids", "clustering_ids"),
    ],
)
def test_columns_that_differ_by_a_letter_from_a_field_are_named(column: str, field: str) -> None:
    data = {"market_ids": np.arange(3), "firm_ids": np.arange(3), column: np.arange(3.0)}
    with pytest.warns(DataWarning, match=f"product_data: column '{column}' is not used. If .* '{field}', rename it"):
        warn_of_misspelt_fields(data, (), "product_data")


def test_columns_that_are_used_or_unlike_fields_are_left_alone() -> None:
    names = ["firm_id", "share", "price", "demand", "demand_instruments0", "city_ids", "instruments0"]
    data: dict[str, np.ndarray] = {name: np.arange(3.0) for name in ("market_ids", "firm_ids", *names)}
    data["demand_instrument"] = np.array(["cost", "sums", "sums"], dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_misspelt_fields(data, (), "product_data")
        warn_of_misspelt_fields({**data, "nesting_id": np.arange(3)}, {"nesting_id"}, "product_data")


def test_problems_warn_of_misspelt_columns_of_both_tables() -> None:
    products, agents = small_tables()
    products = products.rename(columns={"demand_instruments7": "demand_instrument7"})
    with quiet(), pytest.warns(DataWarning, match="column 'demand_instrument7' is not used"):
        problem = blpjax.Problem(blpjax.Formulation("1 + prices"), products)
    assert problem.MD == 8
    with (
        quiet(),
        pytest.warns(DataWarning, match="agent_data: column 'node3' is .* meant to be 'nodes3'"),
    ):
        build(blpjax, agents=agents.assign(node3=1.0))


def test_series_with_different_indices_are_refused() -> None:
    products = small_tables()[0]
    columns = {name: products[name] for name in products}
    build(blpjax, columns)
    columns["prices"] = products.prices.sort_values()
    message = "columns 'market_ids' and 'prices' are pandas objects with different indices"
    with pytest.raises(blpjax.exceptions.DataError, match=message):
        build(blpjax, columns)
    columns["prices"] = products.prices.to_numpy()
    build(blpjax, pd.DataFrame(columns).to_dict("series"))
