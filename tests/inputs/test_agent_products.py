"""Long tables of agents and products as numbered columns of agent data."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.exceptions import DataError

PRODUCTS = pd.DataFrame({"market_ids": ["b", "a", "a", "b", "a"], "product_ids": [1, 1, 2, 3, 5]})
AGENTS = pd.DataFrame({"market_ids": ["a", "b", "a"], "agent_ids": ["x", "x", "y"], "income": [1.0, 2.0, 3.0]})


def pairs() -> pd.DataFrame:
    """All agents and products in an order of its own, with a distance that says which pair it is."""
    table = AGENTS.merge(PRODUCTS, on="market_ids").sample(frac=1.0, random_state=0).drop(columns="income")
    distance = table["product_ids"] + 10.0 * (table["agent_ids"] == "y") + 100.0 * (table["market_ids"] == "b")
    return table.assign(distance=distance, availability=1.0 * (table["product_ids"] != 2))


def test_columns_follow_the_order_of_products_within_markets() -> None:
    before = pairs(), AGENTS.copy(), PRODUCTS.copy()
    found = blpjax.build_agent_product_data(AGENTS, pairs(), PRODUCTS)
    assert list(found) == [*AGENTS, *(f"{name}{j}" for name in ("distance", "availability") for j in range(3))]
    distances = np.column_stack([found[f"distance{j}"] for j in range(3)])
    np.testing.assert_array_equal(distances, [[1, 2, 5], [101, 103, np.nan], [11, 12, 15]])
    assert found["availability1"].tolist() == [0.0, 1.0, 0.0]
    only = blpjax.build_agent_product_data(AGENTS, pairs(), PRODUCTS, columns=["distance"])
    assert "availability0" not in only
    for frame, kept in zip((pairs(), AGENTS, PRODUCTS), before, strict=True):
        pd.testing.assert_frame_equal(frame, kept)


def test_problems_read_what_it_builds() -> None:
    """A permuted long table and columns made by hand give the same demographics and availability."""
    rng = np.random.default_rng(0)
    products = pd.DataFrame({"market_ids": np.repeat([0, 1], [3, 2]), "product_ids": [1, 2, 3, 2, 1]})
    products = products.assign(shares=0.2, prices=rng.uniform(1, 2, 5), x=rng.uniform(size=5))
    products = products.assign(**{f"demand_instruments{k}": rng.uniform(size=5) for k in range(2)})
    agents = pd.DataFrame({"market_ids": [0, 0, 1, 1], "agent_ids": [1, 2, 1, 2], "weights": 0.5, "nodes0": 0.0})
    long = agents[["market_ids", "agent_ids"]].merge(products[["market_ids", "product_ids"]], on="market_ids")
    long = long.assign(distance=rng.uniform(size=len(long)), availability=rng.uniform(0.5, 1.5, len(long)))
    built = blpjax.build_agent_product_data(agents, long.sample(frac=1.0, random_state=1), products)
    formulations = blpjax.Formulation("1 + prices"), blpjax.Formulation("0 + x")
    problem = blpjax.Problem(formulations, products, blpjax.Formulation("0 + distance"), built)
    wide = long.pivot(index=["market_ids", "agent_ids"], columns="product_ids", values="distance").to_numpy().copy()
    wide[2:, :2] = wide[2:, 1::-1]  # the second market has its products in another order
    demographics = problem.agents.demographics[:, 0, :]
    np.testing.assert_array_equal(demographics[:2], wide[:2])
    np.testing.assert_array_equal(demographics[2:, :2], wide[2:, :2])
    assert (problem.agents.availability[2:, 2] == 0).all() and (problem.agents.availability[:2] > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent_product_data": pairs().iloc[1:]}, "there are 7 rows, but 8 pairs of agents and products"),
        ({"agent_product_data": pd.concat([pairs(), pairs()[:1]])}, "agent_product_data: .* are repeated in 1 row"),
        ({"agent_product_data": pairs().replace({"agent_ids": {"x": "z"}})}, "agent_data has no such IDs"),
        ({"agent_product_data": pairs().assign(product_ids=[9, *pairs()["product_ids"][1:]])}, "product_data has no"),
        ({"agent_product_data": pairs().assign(distance="far")}, "column 'distance' must be one column of numbers"),
        ({"columns": ["speed"]}, "agent_product_data: there is no column 'speed'"),
        ({"agent_data": AGENTS.drop(columns="agent_ids")}, "agent_data: .*agent_ids"),
        ({"agent_data": AGENTS.assign(agent_ids="x")}, "agent_data: market_ids and agent_ids are repeated"),
        ({"product_data": PRODUCTS.drop(columns="product_ids")}, "product_data: .*product_ids"),
        ({"product_data": PRODUCTS[PRODUCTS["market_ids"] == "a"]}, "product_data has no"),
    ],
)
def test_tables_that_cannot_be_joined_are_refused(changes: dict[str, Any], message: str) -> None:
    tables = {"agent_data": AGENTS, "agent_product_data": pairs(), "product_data": PRODUCTS}
    with pytest.raises(DataError, match=message):
        blpjax.build_agent_product_data(**(tables | changes))


def small_problem(agents: Any) -> blpjax.Problem:
    products = pd.DataFrame({"market_ids": 0, "shares": [0.2, 0.3], "prices": [1.0, 2.0], "x": [0.5, 1.5]})
    products = products.assign(demand_instruments0=[0.3, 0.1])
    formulations = blpjax.Formulation("0 + prices"), blpjax.Formulation("0 + x")
    return blpjax.Problem(formulations, products, blpjax.Formulation("0 + C(near)"), agents)


def test_levels_must_be_the_same_for_all_products() -> None:
    agents = pd.DataFrame(
        {"market_ids": [0, 0], "weights": 0.5, "nodes0": 0.0, "near0": ["a", "b"], "near1": ["a", "c"]}
    )
    with pytest.raises(
        DataError, match=r"demographics for product 1 of markets are .*\['c'\].*, but those for product 0"
    ):
        small_problem(agents)


def test_products_that_nobody_can_choose_are_refused() -> None:
    agents = pd.DataFrame(
        {"market_ids": [0, 0], "weights": 0.5, "nodes0": 0.0, "near0": ["a", "b"], "near1": ["a", "b"]}
    )
    known = small_problem(agents.assign(availability0=[1.0, 0.0], availability1=[0.0, 1.0]))
    assert known.agents.availability.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(DataError, match="column 'availability1' is zero for all agents of market 0, but product 1"):
        small_problem(agents.assign(availability0=1.0, availability1=0.0))
