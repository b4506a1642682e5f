"""Identification checks: what is refused or warned of before solving, and in which words."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest

from blpjax.exceptions import IdentificationError, IdentificationWarning
from blpjax.inputs.absorb import Absorber
from blpjax.inputs.design import DesignMatrix
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import (
    check_endogenous,
    check_excluded,
    check_instruments,
    check_order_condition,
    check_rank,
    find_collinearity,
)

N = 60


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    table: dict[str, np.ndarray] = {name: random.normal(size=N) for name in ["x", "y", "z"]}
    table["prices"] = random.uniform(1, 2, size=N)
    table["shares"] = random.uniform(0, 0.1, size=N)
    table["kind"] = np.tile(np.array(["u", "v", "w"], dtype=object), N // 3)
    table["city"] = np.repeat(np.arange(6), N // 6)
    table["sum"] = table["x"] - 2 * table["y"]
    table["sugar"] = table["city"] ** 2.0
    return table


def build(formula: str, data: dict[str, np.ndarray]) -> DesignMatrix:
    return Formulation(formula).build(data)


# prices and shares


def test_excluded_instruments_that_are_prices_or_shares_are_named() -> None:
    rng = np.random.default_rng(0)
    prices, shares, z = rng.uniform(size=(3, 10))
    endogenous = {"prices": prices, "shares": shares, "constant": np.ones(10)}
    instruments = np.column_stack([z, 3 - 2 * prices, np.ones(10), shares])
    with pytest.warns(IdentificationWarning) as caught:
        check_excluded(instruments, ["z", "p", "one", "s"], endogenous)
    found = [re.findall("'([a-z]+)'", str(warning.message)) for warning in caught]
    assert found == [["p", "prices"], ["s", "shares"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_excluded(np.column_stack([z, prices + 1e-3 * z]), ["z", "near"], endogenous)
        check_excluded(np.zeros((10, 0)), [], endogenous)


def test_prices_in_X1_are_fine(data: dict[str, np.ndarray]) -> None:
    check_endogenous(build("1 + x + I(prices**2)", data))
    check_endogenous(build("prices", data), build("1 + prices", data), build("1 + shares", data))


def test_prices_in_neither_X1_nor_X2_are_refused(data: dict[str, np.ndarray]) -> None:
    message = "Neither X1 nor X2 depends on 'prices'.*by this name"
    with pytest.raises(IdentificationError, match=message):
        check_endogenous(build("1 + x", data))
    with pytest.raises(IdentificationError, match=message):
        check_endogenous(build("1 + x", data), build("1 + y", data))


def test_prices_only_in_X2_warn(data: dict[str, np.ndarray]) -> None:
    with pytest.warns(IdentificationWarning, match="'prices' are in X2 but not in X1"):
        check_endogenous(build("1 + x", data), build("1 + I(-prices)", data))
    check_endogenous(build("1 + x", data), build("1 + I(-prices)", data), demographics=True)


def test_shares_on_the_demand_side_and_prices_in_costs_are_refused(data: dict[str, np.ndarray]) -> None:
    with pytest.raises(IdentificationError, match=r"X1 cannot depend on 'shares', but 'log\(shares\)' would"):
        check_endogenous(build("1 + prices + log(shares)", data))
    with pytest.raises(IdentificationError, match="X2 cannot depend on 'shares', but 'shares' would"):
        check_endogenous(build("1 + prices", data), build("shares", data))
    with pytest.raises(IdentificationError, match="X3 cannot depend on 'prices', but 'prices', 'prices[*]x' would"):
        check_endogenous(build("1 + prices", data), None, build("x + prices + x:prices", data))


@pytest.mark.parametrize("formula", ["1 + C(prices)", "0 + prices + C(prices):x", "1 + prices + x:C(prices)"])
def test_categories_of_prices_are_refused(data: dict[str, np.ndarray], formula: str) -> None:
    """Their indicators cannot be evaluated at other prices."""
    data["prices"] = np.round(data["prices"], 1)
    message = r"cannot use 'prices' as a categorical variable, but .*prices\[.*without C\("
    with pytest.raises(IdentificationError, match="X1 " + message):
        check_endogenous(build(formula, data))
    with pytest.raises(IdentificationError, match="X2 " + message):
        check_endogenous(build("1 + prices", data), build(formula, data))
    data["shares"] = np.round(data["shares"], 2)
    with pytest.raises(IdentificationError, match="X3 cannot use 'shares' as a categorical variable"):
        check_endogenous(build("1 + prices", data), None, build("x + C(shares)", data))


# rank of X


def test_independent_columns_pass(data: dict[str, np.ndarray]) -> None:
    matrix = build("1 + prices + x + y + C(kind) + I(x**2)", data)
    check_rank(matrix.values, matrix.labels, "X1")
    assert find_collinearity(matrix.values).rank == matrix.values.shape[1]


def test_a_matrix_without_columns_passes() -> None:
    check_rank(np.zeros((N, 0)), (), "X1")
    check_rank(np.zeros((N, 0)), (), "X1", np.zeros((N, 0)))


@pytest.mark.parametrize("name", ["X1", "X2", "X3"])
def test_collinear_columns_are_named(data: dict[str, np.ndarray], name: str) -> None:
    matrix = build("1 + z + x + y + sum", data)
    with pytest.raises(IdentificationError) as caught:
        check_rank(matrix.values, matrix.labels, name)
    message = str(caught.value)
    assert message.startswith(f"{name} has 5 columns but rank 4: ")
    found = re.search(r": '(\w+)' is collinear with ('\w+', '\w+')\.", message)
    assert found is not None
    assert {found[1], *re.findall(r"\w+", found[2])} == {"x", "y", "sum"}
    assert f"the formula of {name}" in message
    assert "collinear_atol" in message


def test_two_collinear_groups_are_told_apart(data: dict[str, np.ndarray]) -> None:
    values = np.column_stack([data["x"], data["y"], 3 * data["x"], data["z"], -data["y"]])
    found = find_collinearity(values)
    assert found.rank == 3
    assert {frozenset(group) for group in found.groups} == {frozenset({0, 2}), frozenset({1, 4})}


def test_indicators_of_all_levels_are_collinear_with_the_intercept(data: dict[str, np.ndarray]) -> None:
    values = np.column_stack([np.ones(N), *(data["kind"] == level for level in "uvw")])
    with pytest.raises(IdentificationError, match="rank 3: '.*' is collinear with '.*', '.*', '.*'. Remove"):
        check_rank(values, ["1", "u", "v", "w"], "X1")


def test_zero_columns_are_named(data: dict[str, np.ndarray]) -> None:
    with pytest.raises(IdentificationError, match="X2 has 2 columns but rank 1: 'nothing' is zero"):
        check_rank(np.column_stack([data["x"], np.zeros(N)]), ["x", "nothing"], "X2")


def test_more_columns_than_rows_are_refused() -> None:
    with pytest.raises(IdentificationError, match="X1 has 4 columns but rank 3"):
        check_rank(np.random.default_rng(0).normal(size=(3, 4)), list("abcd"), "X1")


@pytest.mark.parametrize("scale", [1e-14, 1e-5, 1.0, 1e12])
def test_units_of_measurement_do_not_matter(data: dict[str, np.ndarray], scale: float) -> None:
    independent = np.column_stack([np.ones(N), scale * data["x"], data["y"]])
    assert find_collinearity(independent).rank == 3
    dependent = np.column_stack([independent, scale * data["sum"]])
    assert find_collinearity(dependent).rank == 3


def test_tolerances_decide_and_zeros_disable(data: dict[str, np.ndarray]) -> None:
    nearly = np.column_stack([data["x"], data["x"] + 1e-7 * data["y"]])
    check_rank(nearly, ["x", "nearly"], "X1")
    with pytest.raises(IdentificationError, match="'.*' is collinear with"):
        check_rank(nearly, ["x", "nearly"], "X1", atol=1e-5)
    with pytest.raises(IdentificationError, match="'.*' is collinear with"):
        check_rank(nearly, ["x", "nearly"], "X1", rtol=1e-4)
    check_rank(np.column_stack([data["x"], data["x"]]), ["x", "again"], "X1", atol=0.0, rtol=0.0)


# fixed effects


def test_absorbed_columns_are_named(data: dict[str, np.ndarray]) -> None:
    unabsorbed = np.column_stack([data["prices"], data["sugar"], np.full(N, 0.1)])
    values = Absorber(data["city"][:, None]).residualize(unabsorbed)
    message = "X1 has 3 columns but rank 1: 'sugar', 'constant' are absorbed by the fixed effects"
    with pytest.raises(IdentificationError, match=message):
        check_rank(values, ["prices", "sugar", "constant"], "X1", unabsorbed)
    with pytest.raises(IdentificationError, match="'sugar' is absorbed by the fixed effects"):
        check_rank(values[:, :2], ["prices", "sugar"], "X1", unabsorbed[:, :2])
    check_rank(values[:, :1], ["prices"], "X1", unabsorbed[:, :1])


@pytest.mark.parametrize("method", ["within", "map", "lsmr", "sw"])
def test_iterative_absorption_leaves_little_enough_to_be_noticed(data: dict[str, np.ndarray], method: str) -> None:
    random = np.random.default_rng(2)
    ids = np.column_stack([random.integers(0, 6, size=N), random.integers(0, 5, size=N)])
    if method == "within":
        ids = ids[:, :1]
    effects = ids @ np.array([3.0, -7.0])[: ids.shape[1]]
    unabsorbed = np.column_stack([data["x"], data["y"], effects, 2 * data["x"] + 100 * effects])
    values = Absorber(ids, method).residualize(unabsorbed)
    found = find_collinearity(values, unabsorbed)
    assert found.rank == 2
    assert found.absorbed == (2,)
    assert [set(group) for group in found.groups] == [{0, 3}]
    with pytest.raises(IdentificationError, match="is collinear with '.*' after absorption of the fixed effects"):
        check_rank(values, ["x", "y", "effects", "both"], "X1", unabsorbed)


def test_columns_with_little_variation_within_fixed_effects_pass(data: dict[str, np.ndarray]) -> None:
    unabsorbed = (1e4 * data["sugar"] + data["x"])[:, None]
    check_rank(Absorber(data["city"][:, None]).residualize(unabsorbed), ["x"], "X1", unabsorbed)


# instruments


def test_collinear_instruments_warn_and_do_not_count(data: dict[str, np.ndarray]) -> None:
    values = np.column_stack([data["x"], data["y"], data["sum"], np.ones(N)])
    labels = ["demand_instruments0", "demand_instruments1", "demand_instruments2", "1"]
    message = r"ZD has 4 columns but rank 3: 'demand_instruments\d' is collinear with 'demand_instruments\d', 'demand_"
    with pytest.warns(IdentificationWarning, match=message):
        assert check_instruments(values, labels, "ZD") == 3
    assert check_instruments(values[:, 1:], labels[1:], "ZD") == 3  # warnings are errors in tests
    assert check_instruments(np.zeros((N, 0)), [], "ZD") == 0


def test_absorbed_instruments_warn(data: dict[str, np.ndarray]) -> None:
    unabsorbed = np.column_stack([data["x"], data["sugar"]])
    values = Absorber(data["city"][:, None]).residualize(unabsorbed)
    with pytest.warns(IdentificationWarning, match="ZD has .* 'b' is absorbed by the fixed effects"):
        assert check_instruments(values, ["a", "b"], "ZD", unabsorbed) == 1


def test_many_dependent_columns_are_cut_short(data: dict[str, np.ndarray]) -> None:
    values = np.column_stack([data["x"]] * 9)
    with pytest.warns(IdentificationWarning, match="; and 3 more"):
        check_instruments(values, [f"z{k}" for k in range(9)], "ZD")


@pytest.mark.parametrize("extra", ["sum", "z"])
def test_pyblp_warns_of_the_same_matrices(data: dict[str, np.ndarray], extra: str) -> None:
    """PyBLP only warns of a singular X1; whether it does agrees with the rank found here."""
    pyblp = pytest.importorskip("pyblp")
    products = pd.DataFrame({**data, "market_ids": data["city"], "demand_instruments0": data["z"] ** 2})
    formula = f"1 + prices + x + y + {extra}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pyblp.Problem(pyblp.Formulation(formula), products)
    warned = any("X1" in str(warning.message) for warning in caught)
    matrix = build(formula, data)
    assert warned == (find_collinearity(matrix.values).rank < matrix.values.shape[1])
    assert warned == (extra == "sum")


# numbers of moments and parameters


def test_enough_moments_pass() -> None:
    check_order_condition(3, 3, ["a", "b", "c"])
    check_order_condition(4, 3, ["a", "b", "c"])


def test_fewer_moments_than_parameters_are_refused() -> None:
    names = ["sigma[1, 1]", "prices", "1", "x"]
    with pytest.raises(IdentificationError) as caught:
        check_order_condition(2, 4, names)
    message = str(caught.value)
    assert "fewer moments (2) than parameters (4: sigma[1, 1], prices, 1, x)" in message
    assert "at least 2 more excluded instruments" in message
    assert "'demand_instruments0'" in message
    with pytest.raises(IdentificationError, match="at least 1 more excluded instrument to"):
        check_order_condition(3, 4, names)


def test_fewer_moments_warn_when_nothing_is_optimised() -> None:
    with pytest.warns(IdentificationWarning, match=r"fewer moments \(1\) than parameters \(2: a, b\)"):
        check_order_condition(1, 2, ["a", "b"], warn=True)
    with pytest.raises(IdentificationError, match=r"fewer moments \(0\)"):
        check_order_condition(0, 1, ["a"], warn=True)
