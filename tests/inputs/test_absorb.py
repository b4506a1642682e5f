"""Absorption of fixed effects against PyBLP and against regressions on indicators."""

import numpy as np
import pandas as pd
import pyblp
import pytest

from blpjax.exceptions import AbsorptionError, DataError
from blpjax.inputs.absorb import Absorber, build_absorber
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.matrices import build_matrix
from blpjax.inputs.table_format import read_table

N = 80


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    return pd.DataFrame({
        "market_ids": np.arange(N) // 8,
        "x": rng.normal(size=N),
        "y": rng.normal(size=N),
        "a": rng.integers(0, 3, N),
        "b": 1.5 * rng.integers(0, 4, N),
        "kind": np.array(["u", "v", "w"])[rng.integers(0, 3, N)],
        "flag": rng.uniform(size=N) < 0.4,
        "one": "k",
    })  # fmt: skip


def indicators(*columns: np.ndarray) -> np.ndarray:
    """Indicators of all combinations of the values of columns that occur."""
    codes = pd.MultiIndex.from_arrays(columns).factorize()[0]
    return (codes[:, None] == np.unique(codes)).astype(float)


def residuals(dummies: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return matrix - dummies @ np.linalg.lstsq(dummies, matrix, rcond=None)[0]


@pytest.mark.parametrize(
    ("absorb", "dimensions", "method", "options"),
    [
        ("C(a)", 1, None, None),
        ("kind", 1, None, None),
        ("flag", 1, "dummy", None),
        ("C(a):C(b)", 1, "within", None),
        ("C(a) + C(b)", 2, None, {"tol": 1e-13}),
        ("C(a) + C(b)", 2, "sw", None),
        ("C(a) + C(b)", 2, "map", {"transform": "symmetric", "acceleration": "cg", "tol": 1e-13}),
        ("C(a) / flag", 2, "lsmr", {"residual_tol": 1e-12}),
        ("C(a) * C(b)", 3, None, None),
        ("C(a) + C(b) + kind", 3, "dummy", None),
    ],
)
def test_residuals_are_those_of_pyblp(
    absorb: str, dimensions: int, method: str | None, options: dict | None, table: pd.DataFrame
) -> None:
    formulation = Formulation("x + I(x * y) + flag", absorb, method, options)
    ours = build_matrix(formulation, table)
    theirs = pyblp.build_matrix(pyblp.Formulation("x + I(x * y) + flag", absorb, method, options), table)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12, strict=True)
    assert build_absorber(formulation, read_table(table, "product_data")).dimensions == dimensions


def test_residuals_are_those_of_a_regression_on_indicators(table: pd.DataFrame) -> None:
    absorb = "C(a):kind + C(b) + flag"
    absorber = build_absorber(Formulation("x", absorb, "map", {"tol": 1e-14}), read_table(table, "product_data"))
    matrix = table[["x", "y"]].to_numpy()
    before = matrix.copy()
    dummies = np.hstack([indicators(table["a"], table["kind"]), indicators(table["b"]), indicators(table["flag"])])
    np.testing.assert_allclose(absorber.residualize(matrix), residuals(dummies, matrix), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(matrix, before)
    assert absorber.labels == ("C(a):kind", "C(b)", "flag")


def test_ids_number_the_combinations_of_levels(table: pd.DataFrame) -> None:
    ids = build_absorber(Formulation("0", absorb="C(a):kind + flag"), read_table(table, "product_data")).ids
    assert ids.shape == (N, 2) and ids.dtype.kind == "i"
    pairs = table["a"].astype(str) + table["kind"]
    for first in range(N):
        np.testing.assert_array_equal(ids[:, 0] == ids[first, 0], pairs == pairs[first])
    np.testing.assert_array_equal(ids[:, 1], table["flag"])


def test_fixed_effects_need_no_regressors(table: pd.DataFrame) -> None:
    for formula in ("0", "1", "x - x"):
        assert build_matrix(Formulation(formula, absorb="C(a) + C(b)"), table).shape == (N, 0)


def test_without_fixed_effects_nothing_changes(table: pd.DataFrame) -> None:
    absorber = build_absorber(Formulation("x"), read_table(table, "product_data"))
    matrix = np.array([table["x"], np.full(N, np.nan)]).T
    assert absorber.dimensions == 0 and absorber.ids.shape == (N, 0)
    np.testing.assert_array_equal(absorber.residualize(matrix), matrix)
    assert absorber.residualize(matrix) is not matrix


@pytest.mark.parametrize("absorb", ["C(a)", "C(a) + C(b)"])
def test_columns_that_are_not_finite_become_missing(absorb: str, table: pd.DataFrame) -> None:
    absorber = build_absorber(Formulation("0", absorb=absorb), read_table(table, "product_data"))
    matrix = table[["x", "y", "x"]].to_numpy().copy()
    matrix[3, 1], matrix[4, 2] = np.nan, np.inf
    result = absorber.residualize(matrix)
    assert np.isnan(result[:, 1:]).all()
    np.testing.assert_array_equal(result[:, :1], absorber.residualize(matrix[:, :1]))


@pytest.mark.parametrize(("method", "options"), [("map", {"iteration_limit": 1}), ("lsmr", {"condition_limit": 1})])
def test_lack_of_convergence_is_an_error(method: str, options: dict, table: pd.DataFrame) -> None:
    with pytest.raises(AbsorptionError, match="C\\(a\\) \\+ C\\(b\\) failed: .*absorb_method.*iteration_limit"):
        build_matrix(Formulation("x", "C(a) + C(b)", method, options), table)


@pytest.mark.parametrize(
    ("absorb", "message"),
    [
        ("a", "product_data: 'a' in absorb='a' is not categorical, .* Use C\\(a\\)"),
        ("C(a) + log(x)", "'log\\(x\\)' in .* is not categorical, .* Use C\\(x\\)"),
        ("C(aa)", "there is no column 'aa', which absorb='C\\(aa\\)' needs. Did you mean .*'a'"),
        ("C(a) + one", "The fixed effect one has a single level, which C\\(a\\) contains already"),
    ],
)
def test_unusable_fixed_effects_are_refused_by_name(absorb: str, message: str, table: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=message):
        build_absorber(Formulation("x", absorb=absorb), read_table(table, "product_data"))


def test_missing_ids_are_refused_by_market_and_row(table: pd.DataFrame) -> None:
    gaps = table.assign(kind=table["kind"].where(table.index != 20))
    with pytest.raises(DataError, match="categorical column 'kind' has a missing value in market 2, row 20"):
        build_absorber(Formulation("x", absorb="kind"), read_table(gaps, "product_data"))


def test_more_dimensions_than_rows_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be absorbed: .*more columns than rows"):
        Absorber(np.array([[0, 0, 0], [1, 1, 1]]))


def test_wrong_shapes_are_refused() -> None:
    absorber = Absorber(np.array([[0], [0], [1]]))
    assert absorber.labels == ("dimension 0",)
    with pytest.raises(ValueError, match="must have 3 rows and two dimensions, but its shape is \\(2, 1\\)"):
        absorber.residualize(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="ids must be a matrix of integers"):
        Absorber(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="2 labels for 1 dimension"):
        Absorber(np.zeros((3, 1), int), labels=("a", "b"))


@pytest.mark.usefixtures("unchecked_types")
def test_build_matrix_takes_formulations(table: pd.DataFrame) -> None:
    with pytest.raises(TypeError, match="formulation must be a Formulation, not str"):
        build_matrix("x", table)  # type: ignore[arg-type]
