"""Products and agents as structured arrays, before there is a problem: PyBLP's names, and what its functions return."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from blpjax import options
from blpjax.inputs import records
from blpjax.inputs.absorb import build_absorber
from blpjax.inputs.arguments import read_formulations
from blpjax.inputs.demographics import build_demographics
from blpjax.inputs.design import Column, DesignMatrix
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.inputs.table_format import read_table
from blpjax.inputs.tables import read_agents, read_products
from blpjax.model.formulated import build_matrices
from blpjax.objective.build import exogenous_columns
from blpjax.values import read_flag


def Products(
    product_formulations: Formulation | Sequence[Formulation | None],
    product_data: Any,
    instruments: bool = True,
    add_exogenous: bool = True,
) -> np.recarray:
    """Product data as a structured array, like `Problem.products`, but without absorption of fixed effects.

    Parameters
    ----------
    product_formulations, product_data, add_exogenous : as in `Problem`.
    instruments : whether there are instruments in `ZD`, `ZS` and `ZC`.

    Returns
    -------
    Structured array of N rows, every field a matrix.

    Raises
    ------
    DataError, IdentificationError, TypeError, ValueError
        See `Problem`.
    """
    instruments, add_exogenous = read_flag("instruments", instruments), read_flag("add_exogenous", add_exogenous)
    formulations = read_formulations(product_formulations, None)
    X1_formulation, _, X3_formulation = formulations
    table = read_products(product_data, supply=X3_formulation is not None)
    designs = build_matrices(formulations, table.data, demographics=True)
    X1, X2, X3 = designs
    N = table.shares.size
    none, no_ids = np.zeros((N, 0)), np.zeros((N, 0), int)

    def excluded_and(values: np.ndarray, X: DesignMatrix | None, endogenous: str) -> np.ndarray:
        if not instruments or X is None:
            return none
        return np.c_[values, X.values[:, exogenous_columns(X.columns, endogenous) if add_exogenous else []]]

    matrices = records.ProductMatrices(
        X1=X1.values,
        X2=none if X2 is None else X2.values,
        X3=none if X3 is None else X3.values,
        ZD=excluded_and(table.demand_instruments, X1, "prices"),
        ZS=excluded_and(table.supply_instruments, X3, "shares"),
        ZC=table.covariance_instruments if instruments else none,
        demand_ids=build_absorber(X1_formulation, table.data).ids,
        supply_ids=no_ids if X3_formulation is None else build_absorber(X3_formulation, table.data).ids,
    )
    return records.product_records(table, matrices, designs)


def Agents(
    products: np.recarray,
    agent_formulation: Formulation | None = None,
    agent_data: Any = None,
    integration: Integration | None = None,
    check_weights: bool = True,
) -> np.recarray:
    """Agent data as a structured array, like `Problem.agents`.

    Parameters
    ----------
    products : structured array such as `Products` returns, for its markets and the columns of X2.
    agent_formulation, agent_data, integration : as in `Problem`.
    check_weights : whether weights are needed, which are NaN otherwise.

    Returns
    -------
    Structured array of I rows, every field a matrix.

    Raises
    ------
    DataError, TypeError, ValueError
        See `Problem`.
    """
    if not isinstance(products, np.recarray) or not {"market_ids", "X2"} <= set(products.dtype.names or ()):
        raise TypeError("products must be a structured array of products, such as Products(...) or Problem.products.")
    formulation = agent_formulation
    if formulation is not None:
        read_formulations(Formulation("1"), formulation)
    missing = not read_flag("check_weights", check_weights) and integration is None and agent_data is not None
    given = agent_data
    if missing:
        given = read_table(agent_data, "agent_data")
        missing = "weights" not in given
        given = {**given, "weights": np.ones(len(next(iter(given.values()))))} if missing else given
    names = None if formulation is None else formulation.names
    market_ids, tolerance = products.market_ids.reshape(-1), np.inf if missing else options.weights_tol
    table = read_agents(given, integration, products.X2.shape[1], market_ids, names, tolerance)
    columns: tuple[Column, ...] = ()
    demographics = np.zeros((table.weights.size, 0))
    if formulation is not None:
        values, columns = build_demographics(formulation, table.data, market_ids)
        demographics = values if table.rows is None else values[table.rows]
    if missing:
        table = dataclasses.replace(table, weights=np.full(table.weights.size, np.nan))
    return records.agent_records(table, demographics, columns)
