"""Product and agent tables: required columns, missing values, share checks, ids, integration nodes and weights.

Whatever is wrong with a table is reported here, before anything is computed, in messages that name table, column,
market and row. Rows are counted from zero in the order of the user's table, and that order is kept everywhere.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from blpjax.exceptions import DataError, DataWarning, warn_user
from blpjax.inputs.columns import (
    find_columns,
    find_unowned,
    list_markets,
    list_rows,
    read_id_columns,
    read_ids,
    read_lag_indices,
    read_market_ids,
    read_matrix,
    read_ownership,
    read_vector,
    unique_ids,
)
from blpjax.inputs.integration import Integration
from blpjax.inputs.nesting import Nesting, read_nesting
from blpjax.inputs.spelling import warn_of_misspelt_fields
from blpjax.inputs.table_format import plain_value, read_table

#: Covariances add up products within clusters of all combinations of kinds: 31 of five.
MOST_CLUSTERINGS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class ProductTable:
    """Checked product data with N products in the order of the user's rows.

    Attributes
    ----------
    market_ids : (N,) market of each product.
    firm_ids : (N,) firm of each product, or None.
    nesting_ids : (N,) group of each product, or None.
    subnesting_ids : (N,) its subgroup within the group, or None.
    product_ids : (N,) or (N, n) names of products, or None.
    clustering_ids : (N,) clusters for clustered weighting matrices and standard errors, (N, n) of several kinds, or
        None.
    lag_indices : (N,) row of each product's lag, its own row in an initial period, or None.
    shares : (N,) shares of market size, each in (0, 1), summing to less than one in every market.
    prices : (N,) prices in data units.
    ownership : (N, max J) ownership matrices stacked by market, padded on the right with NaN, or None.
    demand_instruments : (N, n) excluded demand-side instruments. There may be none.
    supply_instruments, covariance_instruments : likewise for supply, and for covariances of demand and supply shocks.
        None are read without a supply side.
    demand_instrument_labels, supply_instrument_labels, covariance_instrument_labels : the column names.
    data : all columns of the table, (N,) or (N, n), as formulas read them.
    index : pandas' index of the rows, None where the table was no DataFrame.
    """

    market_ids: np.ndarray
    firm_ids: np.ndarray | None
    nesting_ids: np.ndarray | None
    subnesting_ids: np.ndarray | None
    product_ids: np.ndarray | None
    clustering_ids: np.ndarray | None
    lag_indices: np.ndarray | None
    shares: np.ndarray
    prices: np.ndarray
    ownership: np.ndarray | None
    demand_instruments: np.ndarray
    demand_instrument_labels: tuple[str, ...]
    supply_instruments: np.ndarray
    supply_instrument_labels: tuple[str, ...]
    covariance_instruments: np.ndarray
    covariance_instrument_labels: tuple[str, ...]
    data: Mapping[str, np.ndarray]
    index: Any = None

    @functools.cached_property
    def nesting(self) -> Nesting | None:
        """Groups of products, and groups within these; None without groups."""
        return None if self.nesting_ids is None else read_nesting(self.nesting_ids, self.subnesting_ids)

    @property
    def nests(self) -> np.ndarray | None:
        """(N, levels) codes of products' groups, see `Nesting`; None without groups."""
        return None if self.nesting is None else self.nesting.codes


@dataclasses.dataclass(frozen=True, eq=False)
class AgentTable:
    """Checked agent data with I agents.

    Agents are in the order of the user's rows, or, when nodes come from an `Integration`, sorted by market.

    Attributes
    ----------
    market_ids : (I,) market of each agent.
    agent_ids : (I,) or (I, n) names of agents, or None.
    weights : (I,) integration weights.
    nodes : (I, n) integration nodes, n at most K2.
    availability : (I, max J) factors of exp V for each agent and product, in the order of products within markets, zero
        for products that a market lacks. None without such columns.
    data : all columns and rows of the table, as the agent formulation reads them. Empty without agent data.
    rows : (I,) the row of `data` that belongs to each agent: `demographics = formulated[rows]`. None when agents are
        not rows of a table.
    """

    market_ids: np.ndarray
    agent_ids: np.ndarray | None
    weights: np.ndarray
    nodes: np.ndarray
    availability: np.ndarray | None
    data: Mapping[str, np.ndarray]
    rows: np.ndarray | None


def read_products(data: object, supply: bool = False, firms: bool = True) -> ProductTable:
    """Check product data.

    Other columns that formulas use are checked by `Formulation.build`, which reads them from `ProductTable.data`.

    Parameters
    ----------
    data : DataFrame, mapping from names to arrays, or structured array. `market_ids`, `shares` and `prices` are
        required.
    supply : whether there is a supply side, so that `firm_ids` or `ownership` are required too and supply and
        covariance instruments are read.
    firms : whether a supply side needs these, as it does where nothing else says how firms compete.

    Raises
    ------
    TypeError
        The table is of none of these types.
    DataError
        A required column or a row's value is missing or unusable, shares are not in (0, 1) or sum to one or more in a
        market, or numbered columns do not start at zero or have gaps.

    Warns
    -----
    DataWarning
        Product ids are repeated within a market.
    """
    table = "product_data"
    columns = read_table(data, table)
    market_ids = read_market_ids(columns, table)
    shares = read_vector(columns, "shares", table, market_ids)
    prices = read_vector(columns, "prices", table, market_ids)
    _check_shares(shares, market_ids, table)
    clustering_ids = read_id_columns(columns, "clustering_ids", table, market_ids)
    if clustering_ids is not None and clustering_ids.ndim > 1 and clustering_ids.shape[1] > MOST_CLUSTERINGS:
        raise DataError(
            f"{table}: 'clustering_ids' have {clustering_ids.shape[1]} columns, but errors can be correlated within at "
            f"most {MOST_CLUSTERINGS} kinds of clusters."
        )
    product_ids = read_id_columns(columns, "product_ids", table, market_ids)
    if product_ids is not None:
        _warn_duplicated_products(product_ids, market_ids, table)
    firm_ids = read_ids(columns, "firm_ids", table, market_ids)
    nesting_ids = read_ids(columns, "nesting_ids", table, market_ids)
    subnesting_ids = read_ids(columns, "subnesting_ids", table, market_ids)
    if subnesting_ids is not None and nesting_ids is None:
        raise DataError(
            f"{table}: there is a column 'subnesting_ids', groups within groups, but no column 'nesting_ids'. Name "
            "groups of one level nesting_ids."
        )
    ownership = read_ownership(columns, table, market_ids)
    if supply and firms and firm_ids is None and ownership is None:
        raise DataError(
            f"{table}: a supply side (X3) needs a column 'firm_ids', or 'ownership' with matrices, to know who sets "
            "which prices. There is neither."
        )
    if supply and ownership is not None and (unowned := find_unowned(ownership)).size:
        raise DataError(
            f"{table}: column 'ownership' has zeros only in {list_rows(unowned, market_ids)}. Nobody's profit depends "
            "on the price of such a product, so it reveals no costs."
        )
    names = ("demand_instruments", "supply_instruments", "covariance_instruments")
    matrices: dict[str, Any] = {}
    for name in names:
        read = {} if name != "demand_instruments" and not supply else columns
        instruments, labels = read_matrix(read, name, table, market_ids)
        matrices |= {name: instruments, f"{name[:-1]}_labels": labels}
    return ProductTable(
        market_ids=market_ids,
        firm_ids=firm_ids,
        nesting_ids=nesting_ids,
        subnesting_ids=subnesting_ids,
        ownership=ownership,
        product_ids=product_ids,
        clustering_ids=clustering_ids,
        lag_indices=read_lag_indices(columns, table, market_ids),
        shares=shares,
        prices=prices,
        **matrices,
        data=columns,
        index=data.index if isinstance(data, pd.DataFrame) else None,
    )


def read_agents(
    data: object,
    integration: object,
    K2: int,
    product_market_ids: np.ndarray,
    names: Collection[str] | None = None,
    weights_tol: float = 1e-10,
) -> AgentTable:
    """Check agent data, or build agents from an integration rule.

    Parameters
    ----------
    data : DataFrame, mapping, structured array, or None. `market_ids` is required; so are `nodes` and `weights` unless
        there is an integration rule, which replaces them.
    integration : `Integration` that builds nodes and weights, or None. Rows of `data` then stand for the built agents
        in order: in each market there must be at least as many rows as built agents, and later rows are not used.
    K2 : number of columns of X2. When it is zero, each market gets one agent of weight one without nodes.
    product_market_ids : (N,) markets of products.
    names : variables of the agent formulation, or None when there is no agent formulation.
    weights_tol : markets with weights that sum to a number further than this from one are named in a warning.

    Raises
    ------
    ValueError
        Arguments do not fit together: agents without X2, X2 without agents, or an agent formulation without agent data.
    TypeError
        The table or the integration is of the wrong type.
    DataError
        A required column or a row's value is missing or unusable, or markets differ from those of the products.

    Warns
    -----
    DataWarning
        Weights do not sum to one in some market.
    """
    table = "agent_data"
    _check_agent_arguments(data, integration, K2, names)
    product_markets = unique_ids(product_market_ids, "market_ids", "product_data")
    if K2 == 0:
        T = product_markets.size
        return AgentTable(product_markets, None, np.ones(T), np.zeros((T, 0)), None, {}, None)
    columns = {} if data is None else read_table(data, table)
    agent_ids = availability = None
    if data is not None:
        market_ids = read_market_ids(columns, table)
        _check_same_markets(product_markets, unique_ids(market_ids, "market_ids", table), table)
        availability = _read_availability(columns, market_ids, product_market_ids, table)
        agent_ids = read_id_columns(columns, "agent_ids", table, market_ids)
    if not isinstance(integration, Integration):
        # surplus columns are dropped before they are checked: nothing uses them
        nodes, _ = read_matrix(columns, "nodes", table, market_ids, required=True, limit=K2)
        weights = read_vector(columns, "weights", table, market_ids, "X2 (unless there is an integration)")
        _check_weights(weights, market_ids, weights_tol, table)
        warn_of_misspelt_fields(columns, names or (), table)
        return AgentTable(market_ids, agent_ids, weights, nodes, availability, columns, np.arange(market_ids.size))

    warn_of_misspelt_fields(columns, names or (), table)
    built = integration.build_many(K2, product_markets)
    _check_weights(built.weights, built.market_ids, weights_tol, "integration")
    rows = None
    if names is not None or agent_ids is not None or availability is not None:
        rows = _match_rows(market_ids, built.market_ids, table)
    agent_ids = None if agent_ids is None else agent_ids[rows]
    availability = None if availability is None else availability[rows]
    return AgentTable(built.market_ids, agent_ids, built.weights, built.nodes, availability, columns, rows)


def assign_node_columns(n_columns: int, nonzero_columns: np.ndarray) -> np.ndarray:
    """Which column of nodes goes with each column of Sigma that is not all zero.

    Parameters
    ----------
    n_columns : number of columns of nodes, at most K2.
    nonzero_columns : (K2,) booleans, whether a column of Sigma has an element that is not zero.

    Returns
    -------
    (number of nonzero columns,) column indices. With K2 columns of nodes, column k of nodes goes with column k of
    Sigma. With fewer, they are assigned in order to the nonzero columns of Sigma, and surplus columns are not used.
    This is what PyBLP does.

    Raises
    ------
    DataError
        There are fewer columns of nodes than nonzero columns of Sigma.
    """
    positions = np.flatnonzero(nonzero_columns)
    check_node_columns(n_columns, positions.size)
    return positions if n_columns == np.size(nonzero_columns) else np.arange(positions.size)


def check_node_columns(n_columns: int, n_needed: int) -> None:
    """Raise `DataError` if there are fewer columns of nodes than columns of Sigma that are not all zero."""
    if n_columns < n_needed:
        raise DataError(
            f"agent_data: nodes have {n_columns} column{'' if n_columns == 1 else 's'}, but {n_needed} columns of "
            "sigma have a nonzero element and each needs its own. Add columns ('nodes0', 'nodes1', ...), use an "
            "Integration, or fix columns of sigma at zero."
        )


def _check_agent_arguments(data: object, integration: object, K2: int, names: Collection[str] | None) -> None:
    given = [
        name
        for name, value in [("agent_formulation", names), ("agent_data", data), ("integration", integration)]
        if value is not None
    ]
    if K2 == 0:
        if given:
            raise ValueError(
                f"Without X2 there are no random coefficients, so {' and '.join(given)} would not be used. Add a "
                "second formulation to product_formulations, or leave them out."
            )
        return
    if integration is not None and not isinstance(integration, Integration):
        raise TypeError(f"integration must be an Integration or None, not {integration!r}.")
    if data is None and names is not None:
        raise ValueError("agent_formulation needs agent_data: demographics are columns of that table.")
    if data is None and integration is None:
        raise ValueError(
            "X2 needs agents: give agent_data with 'market_ids', 'weights' and 'nodes' columns, or an integration "
            "such as Integration('product', 5)."
        )


def _check_shares(shares: np.ndarray, market_ids: np.ndarray, table: str) -> None:
    bad = np.flatnonzero((shares <= 0) | (shares >= 1))
    if bad.size:
        hint = " Products with zero shares have no finite mean utility: drop them." if (shares[bad] == 0).any() else ""
        raise DataError(
            f"{table}: column 'shares' must be between zero and one, exclusive, but is not in "
            f"{list_rows(bad, market_ids, shares)}.{hint}"
        )
    markets, inverse = np.unique(market_ids, return_inverse=True)
    sums = np.bincount(inverse.ravel(), shares, markets.size)
    bad = np.flatnonzero(sums >= 1)
    if bad.size:
        raise DataError(
            f"{table}: column 'shares' sums to one or more in {list_markets(markets[bad], sums[bad])}. Shares "
            "are quantities divided by market size, so they should leave a positive share for the outside option."
        )


def _check_weights(weights: np.ndarray, market_ids: np.ndarray, tolerance: float, table: str) -> None:
    markets, inverse = np.unique(market_ids, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights, markets.size)
    # negative weights of quadrature rules may cancel, too
    if (none := np.flatnonzero(sums == 0)).size:
        raise DataError(
            f"{table}: column 'weights' sums to zero in {list_markets(markets[none])}, so that nobody buys anything "
            "there."
        )
    bad = np.flatnonzero(np.abs(sums - 1) > tolerance)
    if bad.size:
        warn_user(
            f"{table}: column 'weights' does not sum to one (by more than options.weights_tol = {tolerance:g}) in "
            f"{list_markets(markets[bad], sums[bad])}. This is expected of weights made by importance sampling, and is "
            "otherwise a sign of a problem with the data.",
            DataWarning,
        )


def _warn_duplicated_products(product_ids: np.ndarray, market_ids: np.ndarray, table: str) -> None:
    keys = [market_ids, *np.atleast_2d(product_ids.T)]
    codes = np.column_stack([np.unique(key, return_inverse=True)[1].ravel() for key in keys])
    _, first, inverse = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse.ravel()] != np.arange(codes.shape[0]))
    if repeated.size:
        shown = product_ids if product_ids.ndim == 1 else None
        warn_user(
            f"{table}: column 'product_ids' repeats an id of the same market in "
            f"{list_rows(repeated, market_ids, shown)}.",
            DataWarning,
        )


def _check_same_markets(product_markets: np.ndarray, agent_markets: np.ndarray, table: str) -> None:
    kinds = [_kind(markets) for markets in (product_markets, agent_markets)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"{table}: column 'market_ids' holds {kinds[1]} (such as {plain_value(agent_markets[0])!r}) but that of "
            f"product_data holds {kinds[0]} (such as {plain_value(product_markets[0])!r}). Give both the same type, "
            "for example with .astype(str)."
        )
    # dates may have different units
    products, agents = (m.astype("M8[ns]") if m.dtype.kind == "M" else m for m in (product_markets, agent_markets))
    without_agents = ~_contained(products, agents)
    if without_agents.any():
        raise DataError(
            f"{table}: there are no agents in {list_markets(product_markets[without_agents])} of product_data."
        )
    without_products = ~_contained(agents, products)
    if without_products.any():
        raise DataError(
            f"{table}: there are agents in {list_markets(agent_markets[without_products])}, but product_data has "
            "no products there. Drop these rows or add the products."
        )


def _contained(ids: np.ndarray, others: np.ndarray) -> np.ndarray:
    known = set(others.tolist())
    return np.array([value in known for value in ids.tolist()])


def _match_rows(market_ids: np.ndarray, built_market_ids: np.ndarray, table: str) -> np.ndarray:
    """Rows of agent data that stand for the built agents: the first rows of each market."""
    markets, codes, counts = np.unique(market_ids, return_inverse=True, return_counts=True)
    _, built_codes, built_counts = np.unique(built_market_ids, return_inverse=True, return_counts=True)
    short = np.flatnonzero(counts < built_counts)
    if short.size:
        t = short[0]
        raise DataError(
            f"{table}: market {plain_value(markets[t])!r} has {counts[t]} rows, but integration builds "
            f"{built_counts[t]} agents for it and each needs a row. Markets with too few rows: "
            f"{list_markets(markets[short])}."
        )
    order = np.argsort(codes.ravel(), kind="stable")
    starts = np.cumsum(counts) - counts
    built_order = np.argsort(built_codes.ravel(), kind="stable")
    ranks = np.empty(built_order.size, int)  # of each built agent within its market
    ranks[built_order] = np.arange(built_order.size) - np.repeat(np.cumsum(built_counts) - built_counts, built_counts)
    return order[starts[built_codes.ravel()] + ranks]


def _read_availability(
    columns: Mapping[str, np.ndarray], market_ids: np.ndarray, product_market_ids: np.ndarray, table: str
) -> np.ndarray | None:
    """Availability (I, max J), zero for products that a market lacks whatever the table has there."""
    given = find_columns(columns, "availability", table)
    if not any(columns[name].size for name in given):
        return None
    lacking = lacking_products(market_ids, product_market_ids)
    matrix = np.column_stack([columns[name] for name in given])
    if matrix.shape[1] < lacking.shape[1]:
        raise DataError(
            f"{table}: columns of 'availability' are {matrix.shape[1]}, but the largest market has {lacking.shape[1]} "
            f"products. Give 'availability0' to 'availability{lacking.shape[1] - 1}'."
        )
    known = {f"availability{j}": np.where(lacking[:, j], 0.0, matrix[:, j]) for j in range(lacking.shape[1])}
    values, _ = read_matrix(known, "availability", table, market_ids)
    negative = np.argwhere(values < 0)
    if negative.size:
        i, j = negative[0]
        raise DataError(
            f"{table}: column 'availability{j}' must not be negative, but is in "
            f"{list_rows(negative[negative[:, 1] == j, 0], market_ids, values[:, j])}."
        )
    markets, codes = np.unique(market_ids, return_inverse=True)
    best = np.zeros((markets.size, values.shape[1]))
    np.maximum.at(best, codes.reshape(-1), values)
    sizes = np.unique(product_market_ids, return_counts=True)[1]
    nobody = np.argwhere((best == 0) & (np.arange(values.shape[1])[None, :] < sizes[:, None]))
    if nobody.size:
        t, j = nobody[0]
        raise DataError(
            f"{table}: column 'availability{j}' is zero for all agents of market {plain_value(markets[t])!r}, but "
            f"product {j} of this market has a positive share."
        )
    return values


def lacking_products(market_ids: np.ndarray, product_market_ids: np.ndarray) -> np.ndarray:
    """(I, max J) whether an agent's market has no j-th product, for markets of agents (I,) and of products (N,)."""
    markets, sizes = np.unique(product_market_ids, return_counts=True)
    counts = sizes[np.searchsorted(markets, market_ids)]
    return counts[:, None] <= np.arange(sizes.max())[None, :]


def _kind(ids: np.ndarray) -> str:
    if ids.dtype.kind in "biuf":
        return "numbers"
    if ids.dtype.kind == "M":
        return "dates"
    return "strings" if all(isinstance(value, str) for value in ids.tolist()) else "objects"
