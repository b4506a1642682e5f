"""Sums of characteristics and differentiation instruments: PyBLP's numbers, loops over products, what is refused."""

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from blpjax.exceptions import DataError
from blpjax.inputs.construction import build_id_data
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.instruments import build_blp_instruments, build_differentiation_instruments
from blpjax.inputs.matrices import build_matrix
from tests.tolerances import ABSORPTION, ROUNDING

FORMULAS = ["1", "0 + x", "1 + x", "x + y + I(x * y)", "0 + C(kind)", "x * C(kind)", "prices + shares", "0 + integer"]
VERSIONS = [(version, interact) for version in ("local", "quadratic") for interact in (False, True)]


def products(sizes: Sequence[int] = (5, 1, 8, 3, 1, 13, 2), firms: int = 3, seed: int = 0) -> pd.DataFrame:
    """Unequal markets with scattered rows; the last market has one firm."""
    rng = np.random.default_rng(seed)
    N = sum(sizes)
    data = pd.DataFrame(
        {
            "market_ids": np.repeat([f"m{t:02d}" for t in range(len(sizes))], sizes),
            "firm_ids": rng.integers(0, firms, N),
            "kind": rng.choice(["u", "v", "w"], N),
            "integer": rng.integers(0, 4, N),
            "x": rng.uniform(size=N),
            "y": rng.normal(100, 1, N),
            "prices": rng.uniform(1, 2, N),
            "shares": rng.uniform(0, 0.1, N),
        }
    )
    data.loc[data["market_ids"] == data["market_ids"].iloc[-1], "firm_ids"] = 9
    return data.sample(frac=1, random_state=seed)


DATA = {
    "unequal": products(),
    "one product per market": products((1, 1, 1)),
    "one product": products((1,)),
    "one market": products((20, 2)).query("market_ids == 'm00'"),
    "single-product firms": products().assign(firm_ids=np.arange(33)),
    "one firm": products().assign(firm_ids="only"),
}


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("name", DATA)
def test_sums_of_characteristics_are_those_of_pyblp(name: str, formula: str) -> None:
    pyblp = pytest.importorskip("pyblp")
    built = build_blp_instruments(Formulation(formula), DATA[name])
    ROUNDING.check(built, pyblp.build_blp_instruments(pyblp.Formulation(formula), DATA[name]), f"{name}, {formula}")


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # PyBLP's, without any pair of products
@pytest.mark.parametrize("version, interact", VERSIONS)
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("name", DATA)
def test_differentiation_instruments_are_those_of_pyblp(name: str, formula: str, version: str, interact: bool) -> None:
    pyblp = pytest.importorskip("pyblp")
    built = build_differentiation_instruments(Formulation(formula), DATA[name], version, interact)
    expected = pyblp.build_differentiation_instruments(pyblp.Formulation(formula), DATA[name], version, interact)
    if version == "local" and not interact:
        np.testing.assert_array_equal(built, expected)  # counts
    ROUNDING.check(built, expected, f"{name}, {formula}")


@pytest.mark.parametrize("version, interact", VERSIONS)
def test_markets_larger_than_a_block_do_not_change_numbers(version: str, interact: bool) -> None:
    pyblp = pytest.importorskip("pyblp")
    data = products((400, 3, 300), firms=7)
    built = build_differentiation_instruments(Formulation("0 + x + y + prices"), data, version, interact)
    expected = pyblp.build_differentiation_instruments(pyblp.Formulation("0 + x + y + prices"), data, version, interact)
    ROUNDING.check(built, expected)


def test_instruments_are_sums_over_products_of_the_same_and_of_other_firms() -> None:
    data = products()
    X, firms, markets = data[["x", "integer"]].to_numpy(), data["firm_ids"].to_numpy(), data["market_ids"].to_numpy()
    sums, squares, closes = np.zeros((3, len(data), 4))
    pairs = [(j, k) for j in range(len(data)) for k in range(len(data)) if j != k and markets[j] == markets[k]]
    deviations = np.std([X[j] - X[k] for j, k in pairs], axis=0)
    for j, k in pairs:
        half = slice(0, 2) if firms[j] == firms[k] else slice(2, 4)
        sums[j, half] += X[k]
        squares[j, half] += (X[j] - X[k]) ** 2
        closes[j, half] += np.abs(X[j] - X[k]) < deviations
    formulation = Formulation("0 + x + integer")
    ROUNDING.check(build_blp_instruments(formulation, data), sums)
    ROUNDING.check(build_differentiation_instruments(formulation, data), closes)
    ROUNDING.check(build_differentiation_instruments(formulation, data, "quadratic"), squares)


def test_sums_over_no_products_are_exactly_zero() -> None:
    formulation = Formulation("0 + x + y + prices")
    for build in (build_blp_instruments, build_differentiation_instruments):
        other, rival = slice(None, 3), slice(3, None)
        alone = build(formulation, products().assign(firm_ids=np.arange(33)))
        assert (alone[:, other] == 0).all() and (alone[:, rival] != 0).any()
        monopoly = build(formulation, products().assign(firm_ids=1))
        assert (monopoly[:, rival] == 0).all() and (monopoly[:, other] != 0).any()


def test_products_exactly_one_deviation_apart_are_not_close() -> None:
    data = {"market_ids": [0, 0, 1, 1], "firm_ids": [0, 1, 0, 0], "x": [0.1, 0.4, 0.4, 0.1]}
    np.testing.assert_array_equal(build_differentiation_instruments(Formulation("0 + x"), data), np.zeros((4, 2)))


@pytest.mark.parametrize("interact", [False, True])
def test_memory_stays_near_that_of_the_result(interact: bool) -> None:
    J, K = 1_000, 8
    rng = np.random.default_rng(0)
    data = {f"x{k}": rng.normal(size=J) for k in range(K)} | {"market_ids": np.zeros(J), "firm_ids": np.arange(J) % 9}
    formulation = Formulation("0 + " + " + ".join(f"x{k}" for k in range(K)))
    tracemalloc.start()
    try:
        result = build_differentiation_instruments(formulation, data, "local", interact)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # differences of one market, J x J x K, are 64 MB
    assert peak < 2 * result.nbytes + 16e6


@pytest.mark.parametrize("data", [products(), products().to_records(), dict(products())])
def test_any_table_will_do_and_is_left_alone(data: Any) -> None:
    before = pd.DataFrame(data)
    for build in (build_blp_instruments, build_differentiation_instruments):
        np.testing.assert_array_equal(
            build(Formulation("x + C(kind)"), data), build(Formulation("x + C(kind)"), products())
        )
    pd.testing.assert_frame_equal(pd.DataFrame(data), before)


def test_id_data_of_matrices_can_be_used() -> None:
    np.testing.assert_array_equal(
        build_blp_instruments(Formulation("1"), build_id_data(T=1, J=3, F=2)), [[1, 1], [1, 1], [0, 2]]
    )


@pytest.mark.parametrize("build", [build_blp_instruments, build_differentiation_instruments])
def test_unusable_tables_are_refused(build: Any) -> None:
    data, x = products().reset_index(drop=True), Formulation("0 + x")
    with pytest.raises(DataError, match=f"product_data: there is no column 'market_ids', which {build.__name__} needs"):
        build(x, data.drop(columns="market_ids"))
    with pytest.raises(DataError, match=f"product_data: there is no column 'firm_ids', which {build.__name__} needs"):
        build(x, data.drop(columns="firm_ids"))
    with pytest.raises(DataError, match="product_data: there is no column 'z', which the formula '0 [+] z' needs"):
        build(Formulation("0 + z"), data)
    with pytest.raises(DataError, match="product_data: the table is empty"):
        build(x, data.iloc[:0])
    market = data["market_ids"][3]
    for column in ("x", "firm_ids"):
        bad = data.astype({column: float})
        bad.loc[3, column] = np.nan
        with pytest.raises(DataError, match=f"product_data: column '{column}' has .*missing value.*'{market}', row 3"):
            build(x, bad)
    bad = data.copy()
    bad.loc[3, "market_ids"] = None
    with pytest.raises(DataError, match="product_data: column 'market_ids' has missing values in 1 row, .* row 3"):
        build(x, bad)


@pytest.mark.parametrize("absorb", ["C(kind)", "C(kind) + C(integer)"])
def test_fixed_effects_are_absorbed_from_characteristics_first(absorb: str) -> None:
    pyblp = pytest.importorskip("pyblp")
    data, formulas = products(), ("0 + x + y", absorb)
    X = build_matrix(Formulation(*formulas), data)
    residuals = data.assign(u=X[:, 0], v=X[:, 1])
    options = {"tol": 1e-14} if "+" in absorb else None
    pyblp_formulation = pyblp.Formulation(*formulas, absorb_method="map" if options else None, absorb_options=options)
    for build, theirs in (
        (build_blp_instruments, pyblp.build_blp_instruments),
        (build_differentiation_instruments, pyblp.build_differentiation_instruments),
    ):
        built = build(Formulation(*formulas), data)
        np.testing.assert_array_equal(built, build(Formulation("0 + u + v"), residuals))
        ABSORPTION.check(built, theirs(pyblp_formulation, data), absorb)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("build", [build_blp_instruments, build_differentiation_instruments])
def test_characteristics_come_from_a_formulation(build: Any) -> None:
    with pytest.raises(TypeError, match="formulation must be a Formulation, not str"):
        build("0 + x", products())


def test_unknown_versions_are_refused() -> None:
    with pytest.raises(ValueError, match="version must be 'local' or 'quadratic', not 'Local'"):
        build_differentiation_instruments(Formulation("0 + x"), products(), "Local")
