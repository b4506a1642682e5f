"""`Problem.update` replaces values by IDs, and names IDs that do not fit."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.exceptions import DataError
from blpjax.inputs.updating import replace_values
from tests.support import problems
from tests.support.silence import quiet
from tests.tolerances import LINEAR_ALGEBRA

KNOWN = {
    "market_ids": np.array(["a", "a", "b"], object),
    "product_ids": np.array([1, 2, 1]),
    "x": np.array([1, 2, 3]),
    "kind": np.array(["u", "v", "u"], object),
    "matrix": np.ones((3, 2)),
}


def with_ids() -> pd.DataFrame:
    """Products in mixed rows with IDs within markets."""
    products, _ = problems.small_tables()
    return products.assign(product_ids=products.groupby("market_ids").cumcount())


def test_values_are_matched_by_ids_whatever_the_order_of_rows() -> None:
    products = with_ids()
    problem = problems.build(blpjax, products)
    changed = products.assign(x=products.x + 0.1, prices=products.prices * 1.05)
    rows = changed[["market_ids", "product_ids", "x", "prices"]].sample(frac=1, random_state=0)
    with quiet():
        updated = problem.update(rows)
    expected = problems.build(blpjax, changed)
    found, wanted = (problems.evaluate(p, blpjax) for p in (updated, expected))
    LINEAR_ALGEBRA.check(found.objective, wanted.objective)
    LINEAR_ALGEBRA.check(found.gradient, wanted.gradient)
    np.testing.assert_array_equal(updated.products["X2"], expected.products["X2"])
    np.testing.assert_array_equal(problem.products["prices"][:, 0], products.prices)


def test_columns_choose_and_partial_data_keep_other_values() -> None:
    products = with_ids()
    problem = problems.build(blpjax, products)
    market = products.market_ids.iloc[0]
    rows = products[products.market_ids == market][["market_ids", "product_ids", "x"]].assign(x=7.0, prices=-1.0)
    with quiet():
        updated = problem.update(rows, columns=["x"], partial=True)
    expected = np.where(products.market_ids == market, 7.0, products.x)
    np.testing.assert_array_equal(updated.product_table.data["x"], expected)
    np.testing.assert_array_equal(updated.product_table.prices, products.prices)


def test_drawn_agents_stay_the_same() -> None:
    formulations = tuple(map(blpjax.Formulation, problems.FORMULAS))
    with quiet():
        problem = blpjax.Problem(formulations, with_ids(), integration=blpjax.Integration("monte_carlo", 5))
        updated = problem.update(with_ids()[["market_ids", "product_ids", "w"]].assign(x=lambda rows: rows.w**2))
    np.testing.assert_array_equal(updated.agents["nodes"], problem.agents["nodes"])
    assert updated.integration == problem.integration and type(updated.integration) is blpjax.Integration


def test_options_of_the_problem_stay_the_same() -> None:
    products = with_ids()
    new = products[["market_ids", "product_ids", "w"]].assign(w=products.w + 1)
    formulations = tuple(map(blpjax.Formulation, ("1 + prices + w", "0 + x", "1 + w")))
    rule = blpjax.Integration("product", 3)
    with quiet():
        logit = blpjax.Problem(formulations[0], products, add_exogenous=False).update(new)
        supply = blpjax.Problem(formulations, products, integration=rule, rc_types=["log"], costs_type="log").update(
            new
        )
    assert (logit.K2, logit.MD, logit.add_exogenous) == (0, 8, False)
    assert (supply.rc_types, supply.costs_type, supply.K3) == (["log"], "log", 2)


def test_sampled_agents_may_have_weights_that_do_not_sum_to_one() -> None:
    products = with_ids()
    with quiet():
        problem = problems.build(blpjax, products)
        _, agents = problems.small_tables()
        sampled = problem.replace_agents(agents.assign(weights=2 * agents.weights))
        updated = sampled.update(products[["market_ids", "product_ids", "w"]].assign(w=products.w + 1))
    assert type(updated) is blpjax.ImportanceSamplingProblem
    np.testing.assert_array_equal(updated.agents["weights"], sampled.agents["weights"])


def test_new_values_are_checked_like_old_ones() -> None:
    problem = problems.build(blpjax, with_ids())
    with quiet(), pytest.raises(DataError, match="product_data: column 'shares' must be between zero and one"):
        problem.update(with_ids()[["market_ids", "product_ids"]].assign(shares=1.5))


def test_replaced_instruments_stay_in_place() -> None:
    products = with_ids()
    Z = np.random.default_rng(0).normal(size=(len(products), 12))
    with quiet():
        problem = problems.build(blpjax, products).replace_instruments(Z, np.zeros((len(products), 0)))
        updated = problem.update(products[["market_ids", "product_ids", "w"]].assign(w=products.w + 1))
        with pytest.raises(ValueError, match="demand_instruments0 cannot be replaced: the problem's instruments are"):
            problem.update(products[["market_ids", "product_ids", "demand_instruments0"]])
    assert type(updated) is blpjax.OptimalInstrumentProblem
    np.testing.assert_array_equal(updated.products["ZD"][:, :12], Z)
    np.testing.assert_array_equal(updated.X1, problem.X1 + [0, 0, 0, 1])


IDS = {"market_ids": ["b", "a", "a"], "product_ids": [1, 2, 1]}


def test_types_follow_the_values() -> None:
    changed = replace_values(KNOWN, {**IDS, "x": [0.5, 1.5, 2.5], "kind": ["w", "w", "u"]})
    assert changed["x"].tolist() == [2.5, 1.5, 0.5] and changed["kind"].tolist() == ["u", "w", "w"]
    assert changed["matrix"] is KNOWN["matrix"] and KNOWN["x"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "data, options, message",
    [
        ({**IDS, "product_ids": [1, 2, 3], "x": [1, 2, 3]}, {}, "data: product_data has no product 3 in market 'a'"),
        (
            {**IDS, "product_ids": ["1", "2", "1"], "x": [1, 2, 3]},
            {},
            "no product '1' in market 'b', and 2 more like it. IDs have to be of the same type, such as 'a' and 1",
        ),
        (
            {"market_ids": ["a", "b"], "product_ids": [1, 1], "x": [1, 2]},
            {},
            "data: there is no product 2 in market 'a'. Use partial=True",
        ),
        (
            {**IDS, "product_ids": [1, 1, 1], "x": [1, 2, 3]},
            {"partial": True},
            "data: market_ids and product_ids have to identify rows, but are repeated in 1 row, counted from 0: market "
            "'a', row 2",
        ),
        ({**IDS, "y": [1, 2, 3]}, {}, "product_data: there is no column 'y', which update of that column needs"),
        ({**IDS, "x": [1, 2, 3]}, {"columns": ["kind"]}, "data: there is no column 'kind', which update needs"),
        ({"market_ids": ["a"], "x": [1]}, {}, "data: there is no column 'product_ids', which update needs"),
        (
            {**IDS, "matrix": [1, 2, 3]},
            {},
            r"data: column 'matrix' has shape (3,), but rows of product_data have shape (2",
        ),
        (
            {**IDS, "x": ["u", "v", "w"]},
            {},
            "data: column 'x' holds no numbers, but that of product_data holds numbers",
        ),
        ({**IDS, "product_ids": [1, None, 1], "x": [1, 2, 3]}, {}, "data: column 'product_ids' has missing values"),
    ],
)
def test_what_does_not_fit_is_named(data: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        replace_values(KNOWN, data, **options)


def test_products_have_to_be_identified() -> None:
    known = {**KNOWN, "product_ids": np.array([1, 1, 1])}
    with pytest.raises(DataError, match="product_data: market_ids and product_ids have to identify rows"):
        replace_values(known, {**IDS, "x": [1, 2, 3]})


@pytest.mark.parametrize(
    "data, columns, message",
    [
        (IDS, None, "There is nothing to replace"),
        ({**IDS, "x": [1, 2, 3]}, ["market_ids"], "columns must not contain market_ids"),
    ],
)
def test_there_has_to_be_something_to_replace(data: Any, columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace_values(KNOWN, data, columns)


@pytest.mark.usefixtures("unchecked_types")
def test_a_string_is_no_list_of_columns() -> None:
    with pytest.raises(TypeError, match=r"columns must be a sequence of names, such as \['x'\], not a string"):
        replace_values(KNOWN, {**IDS, "x": [1, 2, 3]}, "x")
