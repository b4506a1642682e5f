"""Functions that build data: PyBLP's IDs, record arrays and dictionaries."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax.inputs.construction
from blpjax.exceptions import DataError
from blpjax.inputs.columns import read_ownership
from blpjax.inputs.construction import build_id_data, build_integration, build_ownership, data_to_dict
from blpjax.inputs.integration import Integration
from blpjax.inputs.table_format import read_table
from tests.support.programs import without_type_checks
from tests.tolerances import ROUNDING


@pytest.fixture(scope="module")
def unchecked() -> ModuleType:
    return without_type_checks(blpjax.inputs.construction)


@pytest.mark.parametrize("T, J, F", [(2, 5, 4), (3, 4, 4), (1, 7, 3), (50, 20, 10), (4, 1, 1)])
def test_id_data_is_that_of_pyblp(T: int, J: int, F: int) -> None:
    pyblp = pytest.importorskip("pyblp")
    built, expected = build_id_data(T, J, F), pyblp.build_id_data(T=T, J=J, F=F)
    assert built.dtype == expected.dtype and built.shape == expected.shape
    assert built.tolist() == expected.tolist()
    np.testing.assert_array_equal(built.market_ids, expected.market_ids)
    np.testing.assert_array_equal(built.firm_ids, expected.firm_ids)


def test_firms_with_small_ids_have_the_excess_products() -> None:
    built = build_id_data(T=1, J=8, F=3)
    assert built.firm_ids.ravel().tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "T, J, F, message",
    [
        (0, 1, 1, "T must be at least 1, not 0"),
        (1, 1, 0, "F must be at least 1, not 0"),
        (2, 3, 4, "J must be at least F.* J is 3 and F is 4"),
    ],
)
def test_impossible_panels_are_refused(T: int, J: int, F: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_id_data(T, J, F)


def test_numbers_of_a_panel_must_be_integers(unchecked: ModuleType) -> None:
    with pytest.raises(TypeError, match="J must be an integer, not 2.5"):
        unchecked.build_id_data(2, 2.5, 1)
    with pytest.raises(TypeError, match="T must be an integer, not True"):
        unchecked.build_id_data(True, 2, 1)


@pytest.mark.parametrize(
    "specification, size, options, dimensions",
    [("grid", 5, None, 2), ("nested_product", 4, None, 3), ("monte_carlo", 30, {"seed": 7}, 1)],
)
def test_integration_data_is_that_of_pyblp(
    specification: str, size: int, options: dict[str, Any] | None, dimensions: int
) -> None:
    pyblp = pytest.importorskip("pyblp")
    built = build_integration(Integration(specification, size, options), dimensions)
    expected = pyblp.build_integration(pyblp.Integration(specification, size, options), dimensions)
    assert isinstance(built, np.recarray) and built.dtype == expected.dtype
    ROUNDING.check(built.nodes, expected.nodes)
    ROUNDING.check(built.weights, expected.weights)
    np.testing.assert_array_equal(built["nodes"], built.nodes)


def test_integration_data_needs_an_integration(unchecked: ModuleType) -> None:
    with pytest.raises(TypeError, match="integration must be an Integration, not 'grid'"):
        unchecked.build_integration("grid", 2)
    with pytest.raises(ValueError, match="dimensions must be at least 1, not 0"):
        build_integration(Integration("grid", 2), 0)


def record_array(rows: int) -> np.recarray:
    fields = [("ids", object, (1,)), ("x", float), ("Z", float, (3,)), ("none", float, (0,))]
    data = np.zeros(rows, dtype=fields).view(np.recarray)
    data["ids"][:, 0] = [f"id{row}" for row in range(rows)]
    data["x"] = np.arange(rows)
    data["Z"] = np.arange(3 * rows).reshape(rows, 3)
    return data


@pytest.mark.parametrize("ignore_empty", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_dictionaries_are_those_of_pyblp(rows: int, ignore_empty: bool) -> None:
    pyblp = pytest.importorskip("pyblp")
    data = record_array(rows)
    built, expected = data_to_dict(data, ignore_empty), pyblp.data_to_dict(data, ignore_empty)
    assert list(built) == list(expected)
    for name, values in built.items():
        assert values.dtype == expected[name].dtype
        np.testing.assert_array_equal(values, expected[name])


def test_matrices_become_numbered_columns_of_a_data_frame() -> None:
    frame = pd.DataFrame(data_to_dict(record_array(4)))
    assert list(frame) == ["ids", "x", "Z0", "Z1", "Z2"]
    assert frame["Z1"].tolist() == [1, 4, 7, 10]
    assert frame["ids"].tolist() == ["id0", "id1", "id2", "id3"]


def test_fields_with_titles_and_plain_structured_arrays_can_be_split() -> None:
    data = np.zeros(2, dtype=[((("prices", "sugar"), "X1"), float, (2,)), ("prices", float)])
    assert list(data_to_dict(data)) == ["X10", "X11", "prices"]


def test_dictionaries_hold_copies() -> None:
    data = record_array(2)
    built = data_to_dict(data)
    built["x"][0] = built["Z0"][0] = 99
    assert data["x"][0] == 0 and data["Z"][0, 0] == 0


def test_only_structured_vectors_of_vectors_and_matrices_can_be_split(unchecked: ModuleType) -> None:
    with pytest.raises(TypeError, match="structured NumPy array with named fields, not DataFrame"):
        unchecked.data_to_dict(pd.DataFrame({"x": [1]}))
    with pytest.raises(TypeError, match="structured NumPy array with named fields, not ndarray"):
        data_to_dict(np.zeros(3))
    with pytest.raises(ValueError, match="Field 'D' has 3 dimensions"):
        data_to_dict(np.zeros(3, dtype=[("D", float, (2, 2))]))
    with pytest.raises(ValueError, match="one-dimensional, but it has 2 dimensions"):
        data_to_dict(np.zeros((3, 2), dtype=[("x", float)]))


def owners() -> pd.DataFrame:
    """Unequal markets whose rows are scattered, with a firm of several products, and a market with one product."""
    return pd.DataFrame(
        {"market_ids": ["n", "m", "n", "l", "m", "n", "m", "n"], "firm_ids": [3, 1, 1, 2, 1, 2, 3, 1]}, index=[7] * 8
    )


def by_order(f: int, g: int) -> float:
    return 1 if f == g else (0.3 if f < g else 0.7)


@pytest.mark.parametrize(
    "specification", [None, "monopoly", "single", by_order, lambda f, g: f == g, lambda f, g: np.float32(f - 2 * g)]
)
def test_ownership_is_that_of_pyblp(specification: str | Callable[[int, int], float] | None) -> None:
    pyblp = pytest.importorskip("pyblp")
    built, expected = build_ownership(owners(), specification), pyblp.build_ownership(owners(), specification)
    assert built.dtype == expected.dtype
    np.testing.assert_array_equal(built, expected)


def test_ownership_of_id_data_is_that_of_pyblp() -> None:
    pyblp = pytest.importorskip("pyblp")
    ids = build_id_data(T=2, J=5, F=4)[1:]
    np.testing.assert_array_equal(build_ownership(ids), pyblp.build_ownership(ids))


def test_partial_ownership_may_be_asymmetric() -> None:
    built = build_ownership({"market_ids": [0, 0], "firm_ids": ["b", "a"]}, by_order)
    np.testing.assert_array_equal(built, [[1, 0.7], [0.3, 1]])


@pytest.mark.parametrize("specification", ["monopoly", "single"])
def test_special_ownership_needs_no_firms(specification: str) -> None:
    data = owners()
    np.testing.assert_array_equal(
        build_ownership(data[["market_ids"]], specification), build_ownership(data, specification)
    )


def test_kappa_is_called_once_for_each_pair_of_firms_that_meet() -> None:
    calls = []

    def kappa(f: str, g: str) -> float:
        assert type(f) is str and type(g) is str
        calls.append((f, g))
        return float(f == g)

    data = {"market_ids": [0, 0, 0, 1, 1, 2], "firm_ids": ["a", "b", "a", "a", "b", "c"]}
    np.testing.assert_array_equal(build_ownership(data, kappa), build_ownership(data))
    assert sorted(calls) == [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b"), ("c", "c")]


def test_numbers_of_firms_can_be_positions_in_a_matrix() -> None:
    matrix = np.array([[1, 0.5], [0.25, 1]])
    built = build_ownership({"market_ids": [0, 0], "firm_ids": [1, 0]}, lambda f, g: matrix[f, g])
    np.testing.assert_array_equal(built, [[1, 0.25], [0.5, 1]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_kappa_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match=f"return a finite number, but it is {value} for firms 1 and 3"):
        build_ownership(owners(), lambda f, g: value if (f, g) == (1, 3) else 0)


@pytest.mark.parametrize("value", [None, "1", [1.0], np.ones(1), 1j])
def test_kappa_must_be_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match="must return a number, but it is .* for firms 3 and 1"):
        build_ownership(owners(), lambda f, g: value if (f, g) == (3, 1) else 0)


def test_unknown_specifications_of_ownership_are_refused(unchecked: ModuleType) -> None:
    with pytest.raises(ValueError, match="None, 'monopoly', 'single', or a function of two firm IDs, not 'duopoly'"):
        build_ownership(owners(), "duopoly")
    with pytest.raises(TypeError, match="function of two firm IDs, not array"):
        unchecked.build_ownership(owners(), np.eye(2))


def test_ownership_needs_complete_ids() -> None:
    data = owners().astype({"firm_ids": float})
    with pytest.raises(DataError, match="product_data: there is no column 'market_ids', which build_ownership needs"):
        build_ownership(data[["firm_ids"]])
    with pytest.raises(DataError, match="no column 'firm_ids', which build_ownership with this kappa_specification"):
        build_ownership(data[["market_ids"]])
    data.iloc[4, 1] = np.nan
    with pytest.raises(DataError, match="column 'firm_ids' has missing values in 1 row, .* market 'm', row 4"):
        build_ownership(data)
    with pytest.raises(DataError, match="product_data: the table is empty"):
        build_ownership(data.iloc[:0])


def reread(ownership: Any, market_ids: pd.Series, numbered: bool = False) -> np.ndarray | None:
    columns = (
        {f"ownership{k}": values for k, values in enumerate(ownership.T)} if numbered else {"ownership": ownership}
    )
    return read_ownership(read_table(columns, "product_data"), "product_data", market_ids.to_numpy())


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("padding", [np.nan, 5.0, np.inf])
def test_ownership_is_read_as_it_was_built(padding: float, numbered: bool) -> None:
    built, market_ids = build_ownership(owners(), by_order), owners()["market_ids"]
    given = np.column_stack([np.where(np.isnan(built), padding, built), np.full(len(built), padding)])
    kept = given.copy()
    np.testing.assert_array_equal(reread(given, market_ids, numbered), built)
    np.testing.assert_array_equal(given, kept)
    np.testing.assert_array_equal(reread(given[:, :4], market_ids, numbered), built)


def test_ownership_of_objects_and_of_markets_with_one_product_can_be_read() -> None:
    market_ids = pd.Series(["a", "a", "b"])
    built = reread(np.array([[True, 0.5], [1, True], [2, None]], dtype=object), market_ids)
    np.testing.assert_array_equal(built, [[1, 0.5], [1, 1], [2, np.nan]])
    np.testing.assert_array_equal(reread(np.ones((3, 1), int), pd.Series([0, 1, 2])), np.ones((3, 1)))


def test_ownership_is_optional() -> None:
    assert read_ownership({"market_ids": np.arange(3)}, "product_data", np.arange(3)) is None
    assert reread(np.zeros((3, 0)), pd.Series([0, 1, 2])) is None


@pytest.mark.parametrize(
    "row, column, value, message",
    [
        (4, 1, np.nan, r"column 'ownership\[:, 1\]' has missing values in 1 row, .* market 'm', row 4"),
        (0, 3, np.inf, r"column 'ownership\[:, 3\]' has infinite values in 1 row, .* market 'n', row 0"),
        (3, 0, "x", r"column 'ownership\[:, 0\]' must hold numbers.* market 'l', row 3 \('x'\)"),
    ],
)
def test_unusable_ownership_is_refused(row: int, column: int, value: Any, message: str) -> None:
    ownership = build_ownership(owners()).astype(object)
    ownership[row, column] = value
    with pytest.raises(DataError, match=message):
        reread(ownership, owners()["market_ids"])


def test_ownership_needs_a_column_for_each_product() -> None:
    ownership, market_ids = build_ownership(owners()), owners()["market_ids"]
    with pytest.raises(DataError, match="'ownership' has 3 columns, but market 'n' has 4 products"):
        reread(ownership[:, :3], market_ids)
    with pytest.raises(DataError, match="'ownership1' is missing"):
        read_ownership({"ownership0": ownership[:, 0], "ownership2": ownership[:, 1]}, "t", market_ids.to_numpy())
