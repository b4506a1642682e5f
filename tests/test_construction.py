"""Functions that build data: PyBLP's IDs, record arrays and dictionaries."""

import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax.inputs.construction
from blpjax.inputs.construction import build_id_data, build_integration, data_to_dict
from blpjax.inputs.integration import Integration
from tests.tolerances import ROUNDING


@pytest.fixture(scope="module")
def unchecked() -> ModuleType:
    """Return the module as users have it: tests import it with type checks, which would refuse wrong types first."""
    path = blpjax.inputs.construction.__file__
    assert path is not None
    spec = importlib.util.spec_from_file_location("unchecked_construction", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
