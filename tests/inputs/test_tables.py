"""Product and agent tables: what is read from them, and what is refused in which words."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from blpjax.exceptions import DataError, DataWarning
from blpjax.inputs.demographics import build_demographics
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.inputs.tables import (
    AgentTable,
    ProductTable,
    assign_node_columns,
    check_node_columns,
    read_agents,
    read_products,
)


def make_products(**changes: Any) -> pd.DataFrame:
    """Three products in market 'b' and two in market 'a', in mixed order; a change to None drops a column."""
    columns: dict[str, Any] = {
        "market_ids": ["b", "a", "b", "a", "b"],
        "firm_ids": [1, 1, 2, 2, 3],
        "product_ids": ["x", "x", "y", "y", "z"],
        "clustering_ids": [0, 1, 0, 1, 2],
        "shares": [0.1, 0.2, 0.3, 0.4, 0.05],
        "prices": [1.0, 2.0, 3.0, 4.0, 5.0],
        "size": [10, 20, 30, 40, 50],
        "demand_instruments0": [0.0, 1.0, 0.0, 2.0, 5.0],
        "demand_instruments1": [3.0, 1.0, 4.0, 1.0, 5.0],
    }
    columns.update(changes)
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None}, index=range(5, 10))


def make_agents(**changes: Any) -> pd.DataFrame:
    """Three agents in market 'b' and two in market 'a', in mixed order."""
    columns: dict[str, Any] = {
        "market_ids": ["b", "a", "b", "b", "a"],
        "weights": [0.25, 0.5, 0.25, 0.5, 0.5],
        "nodes0": [0.0, 1.0, 2.0, 3.0, 4.0],
        "nodes1": [5.0, 6.0, 7.0, 8.0, 9.0],
        "nodes2": [0.5, 1.5, 2.5, 3.5, 4.5],
        "income": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
    columns.update(changes)
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})


MARKETS = np.array(["b", "a", "b", "a", "b"], dtype=object)


def agents_from(data: object, **arguments: Any) -> AgentTable:
    return read_agents(data, **{"integration": None, "K2": 2, "product_market_ids": MARKETS, **arguments})


# product data that can be used


def test_products_keep_the_rows_of_the_user() -> None:
    data = make_products()
    table = read_products(data)
    assert isinstance(table, ProductTable)
    for name in ["market_ids", "firm_ids", "product_ids", "clustering_ids", "shares", "prices"]:
        np.testing.assert_array_equal(getattr(table, name), data[name])
    np.testing.assert_array_equal(table.demand_instruments, data[["demand_instruments0", "demand_instruments1"]])
    assert table.demand_instrument_labels == ("demand_instruments0", "demand_instruments1")
    assert set(table.data) == set(data.columns)
    np.testing.assert_array_equal(Formulation("0 + size").build(table.data).values[:, 0], data["size"])


def test_products_are_a_copy() -> None:
    data = {name: values.to_numpy().copy() for name, values in make_products().items()}
    table = read_products(data)
    data["prices"][0] = 99.0
    assert table.prices[0] == 1.0
    assert table.data["prices"][0] == 1.0


def test_optional_columns_may_be_absent() -> None:
    names = ["firm_ids", "product_ids", "clustering_ids", "demand_instruments0", "demand_instruments1"]
    table = read_products(make_products(**dict.fromkeys(names)))
    assert table.firm_ids is None
    assert table.product_ids is None
    assert table.clustering_ids is None
    assert table.demand_instruments.shape == (5, 0)
    assert table.demand_instrument_labels == ()


def test_instruments_may_be_a_matrix() -> None:
    data = make_products()
    numbered = ["demand_instruments0", "demand_instruments1"]
    matrix = data[numbered].to_numpy()
    mapping = {name: data[name].to_numpy() for name in data.columns if name not in numbered}
    table = read_products({**mapping, "demand_instruments": matrix})
    np.testing.assert_array_equal(table.demand_instruments, matrix)
    assert table.demand_instrument_labels == ("demand_instruments0", "demand_instruments1")
    empty = read_products({**mapping, "demand_instruments": np.zeros((5, 0))})
    assert empty.demand_instruments.shape == (5, 0)


def test_more_than_ten_numbered_columns_are_in_the_order_of_their_numbers() -> None:
    numbers = {f"demand_instruments{k}": np.full(5, float(k)) for k in sorted(range(12), key=str)}
    table = read_products(make_products(**numbers))
    np.testing.assert_array_equal(table.demand_instruments[0], np.arange(12))


def test_structured_arrays_with_column_vectors_are_read() -> None:
    records = np.zeros(5, dtype=[("market_ids", "O", (1,)), ("shares", "f8", (1,)), ("prices", "f8", (1,))])
    data = make_products()
    for name in records.dtype.names or ():
        records[name][:, 0] = data[name]
    table = read_products(records)
    assert table.prices.shape == (5,)
    np.testing.assert_array_equal(table.shares, data["shares"])


def test_supply_side_columns_are_left_alone_without_a_supply_side() -> None:
    table = read_products(make_products(supply_instruments1=[np.nan] * 5, covariance_instruments0=["text"] * 5))
    assert {"supply_instruments1", "covariance_instruments0"} <= set(table.data)


def test_product_ids_may_have_several_columns() -> None:
    table = read_products(make_products(product_ids=None, product_ids0=list("xxyyz"), product_ids1=[1, 1, 1, 1, 1]))
    assert table.product_ids is not None
    np.testing.assert_array_equal(table.product_ids[:, 1], 1)
    with pytest.warns(DataWarning, match="product_ids"):
        read_products(make_products(product_ids=None, product_ids0=list("xxxyz"), product_ids1=[1, 1, 1, 1, 1]))


# product data that cannot be used


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"market_ids": None, "market_id": [1] * 5},
            "product_data: .*no column 'market_ids'.*Did you mean 'market_id'",
        ),
        ({"shares": None}, "product_data: there is no column 'shares'"),
        ({"prices": None, "price": [1.0] * 5}, "product_data: there is no column 'prices'.*Did you mean 'price'"),
        (
            {"market_ids": ["b", "a", None, "a", "b"]},
            "product_data: column 'market_ids' has missing values in 1 row.*row 2",
        ),
        ({"market_ids": ["b", "a", 1, 1, "b"]}, "product_data: column 'market_ids' mixes values of types int and str"),
        (
            {"firm_ids": [1, 2, np.nan, 2, 3]},
            "product_data: column 'firm_ids' has missing values in 1 row.*market 'b', row 2",
        ),
        (
            {"product_ids": ["x", None, "y", "y", "z"]},
            "product_data: column 'product_ids' has missing values.*'a', row 1",
        ),
        (
            {"clustering_ids": [0, 1, None, 1, None]},
            "'clustering_ids' has missing values in 2 rows.*market 'b', row 2; market 'b', row 4\\.$",
        ),
        (
            {"market_ids": [["b"], ["a"], ["b"], ["a"], ["b"]]},
            "'market_ids' holds a list for each row, but needs one ID",
        ),
        ({"firm_ids": [["b"], ["a"], ["b"], ["a"], ["b"]]}, "'firm_ids' holds a list for each row, but needs one ID"),
        (
            {"demand_instruments1": [3.0, 1.0, 1e200, 1.0, 5.0]},
            "column 'demand_instruments1' is 1e.200 in market 'b', row 2. Squares of numbers above 1e.150",
        ),
        ({"prices": [1e-200] * 5}, "column 'prices' has no number above 1e-150"),
        (
            {"prices": [1.0, np.nan, np.nan, np.nan, np.nan]},
            "'prices' has missing values in 4 rows.*market 'a', row 1; market 'b', row 2; market 'a', "
            "row 3; and 1 more",
        ),
        ({"prices": [1.0, 2.0, None, 4.0, 5.0]}, "product_data: column 'prices' has missing values.*market 'b', row 2"),
        (
            {"prices": [1.0, np.inf, 3.0, 4.0, 5.0]},
            "product_data: column 'prices' has infinite values.*market 'a', row 1",
        ),
        (
            {"prices": [1.0, "2,5", 3.0, 4.0, 5.0]},
            r"product_data: column 'prices' must hold numbers, but does not in 1 row, .*market 'a', row 1 \('2,5'\)",
        ),
        ({"prices": pd.date_range("2020-01-01", periods=5)}, "product_data: column 'prices' must hold numbers"),
        (
            {"shares": [0.1, 0.2, 0.0, 0.4, 0.05]},
            r"product_data: column 'shares' must be between zero and one.*market 'b', row 2 \(0.0\).*drop them",
        ),
        (
            {"shares": [1.0, 0.2, 0.1, 0.4, 0.05]},
            r"product_data: column 'shares' must be between.*market 'b', row 0 \(1.0\)",
        ),
        ({"shares": [-0.1, 0.2, 1.5, 0.4, 0.05]}, r"'shares' must be between.* 2 rows.*row 0 \(-0.1\).*row 2 \(1.5\)"),
        (
            {"shares": [0.1, 0.5, 0.3, 0.5, 0.05]},
            r"product_data: column 'shares' sums to one or more in 1 market: 'a' \(sum 1\)",
        ),
        (
            {"demand_instruments0": None},
            "product_data: numbered columns must start at.*'demand_instruments0' is missing.*'demand_instruments1'",
        ),
        (
            {"demand_instruments3": [1.0] * 5},
            "no gaps, but 'demand_instruments2' is missing.*'demand_instruments1', 'demand_instruments3'",
        ),
        (
            {"demand_instruments1": [1.0, 2.0, np.nan, 4.0, 5.0]},
            "product_data: column 'demand_instruments1' has missing values.*market 'b', row 2",
        ),
    ],
)
def test_bad_product_data_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_products(make_products(**changes))


def test_bad_values_in_a_matrix_are_refused_with_their_column() -> None:
    mapping = {name: make_products()[name].to_numpy() for name in ["market_ids", "shares", "prices"]}
    matrix = np.ones((5, 3))
    matrix[3, 1] = np.inf
    with pytest.raises(DataError, match=re.escape("'demand_instruments[:, 1]' has infinite values") + ".*'a', row 3"):
        read_products({**mapping, "demand_instruments": matrix})
    with pytest.raises(DataError, match="'prices' has shape"):
        read_products({**mapping, "prices": matrix})
    with pytest.raises(DataError, match="'firm_ids' must be one-dimensional, but has 3 columns"):
        read_products({**mapping, "firm_ids": matrix})


def test_malformed_tables_are_refused() -> None:
    data = make_products()
    with pytest.raises(DataError, match="product_data: the table is empty"):
        read_products(data.iloc[:0])
    with pytest.raises(DataError, match="product_data: the table is empty"):
        read_products({})
    with pytest.raises(DataError, match="product_data: column 'size' appears more than once"):
        read_products(pd.concat([data, data[["size"]]], axis=1))
    with pytest.raises(DataError, match="product_data: .*'market_ids' has 5 rows but column 'prices' has 4"):
        read_products({"market_ids": np.arange(5), "prices": np.arange(4)})
    with pytest.raises(TypeError, match="product_data must be a pandas DataFrame"):
        read_products("products.csv")


def test_nesting_ids() -> None:
    found = read_products(make_products(nesting_ids=[1, 1, 2, 2, 2])).nesting_ids
    assert found is not None and found.tolist() == [1, 1, 2, 2, 2]
    assert read_products(make_products()).nesting_ids is None
    with pytest.raises(DataError, match="product_data: column 'nesting_ids' has missing values in 1 row.*, row 3"):
        read_products(make_products(nesting_ids=["a", "a", "b", None, "b"]))


def test_repeated_products_of_a_market_warn() -> None:
    with pytest.warns(DataWarning, match=r"product_data: column 'product_ids' repeats .* 1 row, .*'b', row 4 \('x'\)"):
        read_products(make_products(product_ids=["x", "x", "y", "y", "x"]))


# agent data that can be used


def test_agents_keep_the_rows_of_the_user() -> None:
    data = make_agents(agent_ids=list("pqrst"))
    table = agents_from(data, names={"income"})
    np.testing.assert_array_equal(table.market_ids, data["market_ids"])
    np.testing.assert_array_equal(table.agent_ids, data["agent_ids"])
    np.testing.assert_array_equal(table.weights, data["weights"])
    np.testing.assert_array_equal(table.rows, np.arange(5))
    np.testing.assert_array_equal(table.data["income"], data["income"])


@pytest.mark.parametrize("K2", [1, 2, 3, 4])
def test_the_first_K2_columns_of_nodes_are_kept(K2: int) -> None:
    data = make_agents()
    matrix = data[["nodes0", "nodes1", "nodes2"]].to_numpy()
    np.testing.assert_array_equal(agents_from(data, K2=K2).nodes, matrix[:, :K2])
    mapping = {"market_ids": data["market_ids"].to_numpy(), "weights": data["weights"].to_numpy(), "nodes": matrix}
    np.testing.assert_array_equal(agents_from(mapping, K2=K2).nodes, matrix[:, :K2])


def test_columns_of_nodes_that_nothing_uses_may_be_bad() -> None:
    assert agents_from(make_agents(nodes2=[np.nan] * 5)).nodes.shape == (5, 2)


def test_without_X2_each_market_has_one_agent_of_weight_one() -> None:
    table = agents_from(None, K2=0)
    np.testing.assert_array_equal(table.market_ids, ["a", "b"])
    np.testing.assert_array_equal(table.weights, [1.0, 1.0])
    assert table.nodes.shape == (2, 0)


def test_integration_alone_builds_agents_for_sorted_markets() -> None:
    integration = Integration("product", 3)
    table = agents_from(None, integration=integration)
    rule = integration.build(2)
    np.testing.assert_array_equal(table.market_ids, ["a"] * 9 + ["b"] * 9)
    np.testing.assert_array_equal(table.nodes, np.tile(rule.nodes, (2, 1)))
    np.testing.assert_array_equal(table.weights, np.tile(rule.weights, 2))
    assert table.rows is None
    assert not table.data


def test_integration_uses_the_first_rows_of_each_market() -> None:
    data = make_agents(agent_ids=list("pqrst"), weights=None, nodes0=None)
    table = agents_from(data, integration=Integration("product", 2), K2=1, names={"income"})
    np.testing.assert_array_equal(table.market_ids, ["a", "a", "b", "b"])
    np.testing.assert_array_equal(table.rows, [1, 4, 0, 2])
    np.testing.assert_array_equal(table.agent_ids, ["q", "t", "p", "r"])


def test_too_few_rows_for_an_integration_matter_only_if_rows_are_used() -> None:
    data = make_agents()
    integration = Integration("product", 3)
    message = "agent_data: market 'a' has 2 rows, but integration builds 3 agents.* 1 market: 'a'\\.$"
    with pytest.raises(DataError, match=message):
        agents_from(data, integration=integration, K2=1, names=frozenset())
    with pytest.raises(DataError, match=message):
        agents_from(make_agents(agent_ids=list("pqrst")), integration=integration, K2=1)
    table = agents_from(data, integration=integration, K2=1)
    assert table.rows is None
    assert table.market_ids.size == 6


def test_agents_are_those_of_pyblp() -> None:
    pyblp = pytest.importorskip("pyblp")
    random = np.random.default_rng(0)
    products = pd.DataFrame({"market_ids": np.repeat([3, 1, 2], 2), "shares": 0.2, "prices": random.uniform(size=6)})
    products["demand_instruments0"] = random.normal(size=6)
    agents = pd.DataFrame({"market_ids": random.permutation(np.repeat([1, 2, 3], [5, 4, 6]))})
    agents["income"] = random.normal(size=15)
    problem = pyblp.Problem(
        (pyblp.Formulation("1 + prices"), pyblp.Formulation("1 + prices")),
        products,
        pyblp.Formulation("0 + income"),
        agents,
        pyblp.Integration("product", 2),
    )
    ours = read_agents(agents, Integration("product", 2), 2, products["market_ids"].to_numpy(), {"income"})
    np.testing.assert_array_equal(ours.market_ids, problem.agents.market_ids[:, 0].astype(int))
    np.testing.assert_allclose(ours.nodes, problem.agents.nodes, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(ours.weights, problem.agents.weights[:, 0], rtol=1e-13)
    np.testing.assert_array_equal(ours.data["income"][ours.rows], problem.agents.demographics[:, 0])


# agent data that cannot be used


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"market_ids": None, "markets": [1] * 5},
            "agent_data: there is no column 'market_ids'.*Did you mean 'markets'",
        ),
        ({"weights": None, "weight": [1.0] * 5}, "agent_data: there is no column 'weights'.*Did you mean 'weight'"),
        ({"weights": [0.25, 0.5, np.nan, 0.5, 0.5]}, "agent_data: column 'weights' has missing.*market 'b', row 2"),
        ({"nodes0": None, "nodes1": None, "nodes2": None, "node0": [1.0] * 5}, "agent_data: .*'nodes0'.*mean 'node0'"),
        ({"weights": [0.0, 0.5, 0.0, 0.0, 0.5]}, "column 'weights' sums to zero in 1 market: 'b', so that nobody buys"),
        ({"nodes0": None}, "agent_data: numbered columns must start at zero.*'nodes0' is missing.*'nodes1', 'nodes2'"),
        ({"nodes1": None}, "agent_data: numbered columns must .* no gaps, but 'nodes1' is missing.*'nodes0', 'nodes2'"),
        (
            {"nodes1": [1.0, 2.0, 3.0, -np.inf, 5.0]},
            "agent_data: column 'nodes1' has infinite values.*market 'b', row 3",
        ),
        ({"nodes1": list("abcde")}, r"agent_data: column 'nodes1' must hold numbers.*market 'b', row 0 \('a'\)"),
        ({"agent_ids": [1, 2, 3, None, 5]}, "agent_data: column 'agent_ids' has missing values.*market 'b', row 3"),
        ({"market_ids": list("bbbbb")}, "agent_data: there are no agents in 1 market: 'a' of product_data"),
        ({"market_ids": list("bacad")}, "agent_data: there are agents in 2 markets: 'c', 'd', but product_data has no"),
        (
            {"market_ids": [2, 1, 2, 2, 1]},
            r"agent_data: column 'market_ids' holds numbers \(such as 1\) but that of product_data holds strings "
            r"\(such as 'a'\).*\.astype\(str\)",
        ),
    ],
)
def test_bad_agent_data_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        agents_from(make_agents(**changes))


def test_market_ids_of_other_types_but_equal_values_match() -> None:
    agents = make_agents(market_ids=[2.0, 1.0, 2.0, 2.0, 1.0])
    assert agents_from(agents, product_market_ids=np.array([1, 2, 2])).market_ids.size == 5
    days = pd.to_datetime(["2020-01-02", "2020-01-01", "2020-01-02", "2020-01-02", "2020-01-01"])
    products = np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[s]")
    assert agents_from(make_agents(market_ids=days), product_market_ids=products).market_ids.size == 5


def test_malformed_agent_tables_are_refused() -> None:
    with pytest.raises(DataError, match="agent_data: the table is empty"):
        agents_from(make_agents().iloc[:0])
    with pytest.raises(DataError, match="agent_data: column 'nodes' has no columns"):
        agents_from({"market_ids": MARKETS, "weights": np.ones(5), "nodes": np.zeros((5, 0))})
    with pytest.raises(TypeError, match="agent_data must be a pandas DataFrame"):
        agents_from([1, 2, 3])


def test_availability_is_that_of_the_products_of_a_market() -> None:
    """Market 'a' has two products: whatever stands in the third column is not used there."""
    columns = {
        "availability0": [1.0, 0.5, 0.0, 1.0, 2.0],
        "availability1": [0.0, 1.0, 1.0, 1.0, 0.0],
        "availability2": [1.0, np.nan, 3.0, 0.0, -5.0],
    }
    found = agents_from(make_agents(**columns)).availability
    assert found is not None
    expected = [[1, 0, 1], [0.5, 1, 0], [0, 1, 3], [1, 1, 0], [2, 0, 0]]
    assert found.tolist() == expected
    matrix = np.column_stack(list(columns.values()))
    given = {name: column.to_numpy() for name, column in make_agents().items()}
    again = agents_from({**given, "availability": matrix}).availability
    assert again is not None and again.tolist() == expected
    assert agents_from(make_agents()).availability is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {0: [1.0] * 5},
            "columns of 'availability' are 1, but the largest market has 3 products. Give .*'availability2'",
        ),
        ({0: [1.0] * 5, 2: [1.0] * 5}, "numbered columns must start at zero and have no gaps, but 'availability1' is"),
        (
            {0: [1.0] * 5, 1: [1.0, 1.0, -0.5, 1.0, 1.0], 2: [1.0] * 5},
            r"column 'availability1' must not be negative, but is in 1 row.*'b', row 2 \(-0.5\)",
        ),
        (
            {0: [1.0] * 5, 1: [1.0] * 5, 2: [1.0, 1.0, np.nan, 1.0, 1.0]},
            "column 'availability2' has missing values in 1 row.*'b', row 2",
        ),
    ],
)
def test_availability_that_cannot_be_used_is_named(columns: dict[int, list[float]], message: str) -> None:
    with pytest.raises(DataError, match=f"agent_data: {message}"):
        agents_from(make_agents(**{f"availability{j}": values for j, values in columns.items()}))


def test_availability_goes_with_built_agents() -> None:
    """Rows of the table stand for the built agents of their market in order."""
    columns = {f"availability{j}": np.arange(5.0) + 10 * j for j in range(3)}
    table = agents_from(make_agents(**columns), integration=Integration("product", 1))
    assert table.availability is not None and table.availability.tolist() == [[1.0, 11.0, 0.0], [0.0, 10.0, 20.0]]


def test_product_specific_demographics() -> None:
    formulation = Formulation("0 + income + income:distance")
    distances = {
        "distance0": [1.0, 2.0, 3.0, 4.0, 5.0],
        "distance1": [0.0, 1.0, 0.5, 2.0, 3.0],
        "distance2": [7.0, np.nan, 8.0, 9.0, np.nan],
    }
    data = {name: column.to_numpy() for name, column in make_agents(**distances).items()}
    found = build_demographics(formulation, data, MARKETS)
    assert found.labels == ("income", "distance*income") and found.values.shape == (5, 2, 3)
    for j, column in enumerate(distances.values()):
        assert found.values[:, 0, j].tolist() == data["income"].tolist()
        used = ~np.isnan(column)
        np.testing.assert_array_equal(found.values[used, 1, j], (data["income"] * column)[used])
    assert np.isfinite(found.values).all()
    del data["distance1"]
    with pytest.raises(DataError, match="agent_data: 'distance' is specific to products.* 3 products.* no 'distance1'"):
        build_demographics(formulation, data, MARKETS)
    plain = build_demographics(Formulation("0 + distance0"), data, MARKETS)
    assert plain.values.shape == (5, 1), "a column may be named by its number"


def test_arguments_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="Without X2 .* agent_data and integration would not be used"):
        agents_from(make_agents(), integration=Integration("product", 3), K2=0)
    with pytest.raises(ValueError, match="agent_formulation needs agent_data"):
        agents_from(None, integration=Integration("product", 3), names={"income"})
    with pytest.raises(ValueError, match="X2 needs agents: give agent_data .* or an integration"):
        agents_from(None)
    with pytest.raises(TypeError, match="integration must be an Integration or None, not 'product'"):
        agents_from(None, integration="product")


def test_weights_that_do_not_sum_to_one_warn() -> None:
    data = make_agents(weights=[0.25, 0.5, 0.25, 0.5, 0.6])
    with pytest.warns(
        DataWarning, match=r"agent_data: column 'weights' does not sum to one .* 1 market: 'a' \(sum 1.1\)"
    ):
        agents_from(data)
    assert agents_from(data, weights_tol=np.inf).weights[4] == 0.6  # warnings are errors in tests


# columns of nodes and columns of Sigma


def test_too_few_columns_of_nodes_are_refused() -> None:
    check_node_columns(2, 2)
    with pytest.raises(
        DataError, match="agent_data: nodes have 1 column, but 2 columns of sigma have a nonzero element"
    ):
        check_node_columns(1, 2)
    with pytest.raises(DataError, match="nodes have 1 column, but 2"):
        assign_node_columns(1, np.array([True, False, True]))


@pytest.mark.usefixtures("quiet")
def test_columns_of_nodes_go_with_columns_of_sigma_as_in_pyblp() -> None:
    """PyBLP's objective tells which column it used: it is the one with a single column of nodes."""
    pyblp = pytest.importorskip("pyblp")
    random = np.random.default_rng(1)
    products = pd.DataFrame({"market_ids": np.repeat(range(10), 3), "prices": random.uniform(1, 2, size=30)})
    products["shares"] = random.uniform(0.05, 0.3, size=30)
    products["demand_instruments"] = random.normal(size=30)
    products = products.rename(columns={"demand_instruments": "demand_instruments0"})
    products["demand_instruments1"] = random.normal(size=30)
    nodes = random.normal(size=(200, 2))

    def objective(columns: list[int]) -> float:
        agents = {"market_ids": np.repeat(range(10), 20), "weights": np.full(200, 0.05), "nodes": nodes[:, columns]}
        formulations = (pyblp.Formulation("1 + prices"), pyblp.Formulation("1 + prices"))
        problem = pyblp.Problem(formulations, products, agent_data=agents)
        results = problem.solve(np.diag([0.0, 1.0]), optimization=pyblp.Optimization("return"), method="1s")
        return float(results.objective)

    alone = [objective([0]), objective([1])]
    both = objective([0, 1])
    assert not np.isclose(alone[0], alone[1])
    nonzero = np.array([False, True])
    used = int(assign_node_columns(2, nonzero)[0])
    np.testing.assert_allclose(both, alone[used], rtol=1e-10)
    assert assign_node_columns(1, nonzero).tolist() == [0]
    assert assign_node_columns(3, np.array([True, False, True])).tolist() == [0, 2]
    assert assign_node_columns(2, np.array([True, False, True])).tolist() == [0, 1]


def test_text_that_is_the_same_for_all_agents_is_no_demographic() -> None:
    data = {name: column.to_numpy() for name, column in make_agents(kind=["u"] * 5).items()}
    message = "agent_data: column 'kind' is 'u' for all agents, so it is no demographic"
    for formula in ("1 + kind", "0 + income:C(kind)"):
        with pytest.raises(DataError, match=message):
            build_demographics(Formulation(formula), data, MARKETS)


def test_one_cluster_matters_only_where_covariances_are_clustered() -> None:
    assert read_products(make_products(clustering_ids=[7] * 5)).clustering_ids is not None


# rows of lags


@pytest.mark.parametrize("lags", [[0, 1, 1, 3, 2], [0.0, 1.0, 1.0, 3.0, 2.0], [[0], [1], [1], [3], [2]]])
def test_lags_are_rows_in_the_order_of_the_table(lags: list[Any]) -> None:
    data = {name: column.to_numpy() for name, column in make_products().items()} | {"lag_indices": np.array(lags)}
    found = read_products(data).lag_indices
    assert found is not None and found.dtype == np.int64 and found.tolist() == [0, 1, 1, 3, 2]


def test_there_may_be_no_lags() -> None:
    assert read_products(make_products()).lag_indices is None
    data = {name: column.to_numpy() for name, column in make_products().items()}
    assert read_products({**data, "lag_indices": np.zeros((5, 0), np.int64)}).lag_indices is None


@pytest.mark.parametrize(
    ("lags", "message"),
    [
        ([0, 1, 1, 3, 5], r"integers from 0 to 4, but does not in 1 row, counted from 0: market 'b', row 4 \(5.0\)"),
        ([0, 1, -1, 3, 2], r"integers from 0 to 4, but does not in 1 row, .*market 'b', row 2 \(-1.0\)"),
        ([0, 1, 0.5, 3, 2], r"integers from 0 to 4, but does not in 1 row, .*row 2 \(0.5\)"),
        ([0, 1, np.nan, 3, 2], "'lag_indices' has missing values in 1 row, .*market 'b', row 2"),
        (["0", "1", "1", "3", "2"], "'lag_indices' must hold numbers"),
        ([1, 2, 3, 4, 0], "must hold a row's own number for initial periods, .* but no row is one"),
        ([0, 1, 2, 3, 4], "holds every row's own number, so no row has a lag. Leave it out"),
        (
            [0, 1, 1, 1, 4],
            r"only once, as a lag of one other row, but does not in 2 rows.*row 2 \(1.0\); .*row 3 \(1.0\)",
        ),
        ([0, 2, 3, 1, 0], r"leads in a circle from 3 rows, .*row 1 \(2.0\); .*row 2 \(3.0\); .*row 3 \(1.0\)"),
    ],
)
def test_lags_that_are_no_rows_are_named(lags: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^product_data: column .*{message}"):
        read_products(make_products(lag_indices=lags))


def test_lags_have_one_column() -> None:
    data = {name: column.to_numpy() for name, column in make_products().items()}
    with pytest.raises(DataError, match="column 'lag_indices' must be one-dimensional, but has 2 columns"):
        read_products({**data, "lag_indices": np.zeros((5, 2), int)})
