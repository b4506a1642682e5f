"""Products and agents as formulations describe them: what problems and simulations have in common."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from blpjax.economy.buckets import AgentsInEconomy, Economy, MarketIndex, build_agents, index_markets
from blpjax.economy.characteristics import Characteristics, build_characteristics
from blpjax.economy.conduct import ConductData, prepare_conduct, price_setting_ownership
from blpjax.economy.logit import closed_form_delta
from blpjax.economy.ownership import Ownership, firm_codes, table_ownership
from blpjax.economy.surveys import Markets
from blpjax.exceptions import warn_unused
from blpjax.inputs import records
from blpjax.inputs.arguments import check_choice
from blpjax.inputs.design import Column, DesignMatrix
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import check_endogenous
from blpjax.inputs.integration import Integration
from blpjax.inputs.survey_expressions import SurveyTables
from blpjax.inputs.surveys import spread_nodes
from blpjax.inputs.tables import AgentTable, ProductTable
from blpjax.kernels.conduct import Conduct, check_conduct
from blpjax.kernels.conduct_parameters import parameters_of
from blpjax.model.parameters import Labels, ParameterLayout, UtilityForm
from blpjax.model.starting_values import read_utility_form

#: Formulations of X1, X2 and X3, None where there is no such matrix.
Formulations = tuple[Formulation, Formulation | None, Formulation | None]

#: X1, X2 and X3, None where there is no such matrix.
Matrices = tuple[DesignMatrix, DesignMatrix | None, DesignMatrix | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Formulated:
    """Checked tables, and what formulations make of them. What follows from fields is computed when it is asked for.

    Attributes
    ----------
    product_formulations : those of X1, X2 and X3. agent_formulation : that of demographics, or None.
    product_table, market_index : checked product data, and the rows of each market in it.
    designs : X1, X2 and X3.
    agents_in_economy : checked agent data in their economy.
    form : transformations of random coefficients, and the scale of epsilon. rc_types : K2 types as they were given.
    costs_type : whether costs (``'linear'``) or their logarithms (``'log'``) are linear in X3.
    conduct : how firms compete, as it was given; None where they set prices.
    """

    product_formulations: Formulations
    agent_formulation: Formulation | None
    product_table: ProductTable
    market_index: MarketIndex
    designs: Matrices
    agents_in_economy: AgentsInEconomy
    form: UtilityForm
    rc_types: list[Any]
    costs_type: str
    conduct: Conduct | None = dataclasses.field(default=None, kw_only=True)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of this class by name, for values that have more of them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Formulated)}

    def build_agents(self, agent_data: Any, integration: Integration | None, weights_tol: float) -> AgentsInEconomy:
        """The economy with these agents, for evaluating the same model with other nodes, weights or demographics."""
        table = self.product_table
        given = self.agent_formulation, agent_data, integration
        return build_agents(*given, self.market_index, table.shares, self.X2, weights_tol, table.nests)

    def survey_markets(self, products: np.recarray, agents: AgentsInEconomy, layout: ParameterLayout) -> Markets:
        """Products (N rows) and agents as functions of micro data get them.

        Nodes are spread over columns of X2 where sigma has columns of zeros.
        """
        table, columns = agents.table, np.array(layout.sigma_columns, int)
        spread = dataclasses.replace(table, nodes=spread_nodes(table.nodes, columns, self.K2))
        known = records.agent_records(spread, agents.demographics, agents.demographic_columns)
        rows = index_markets(table.market_ids).rows
        moved = {name: products[name].reshape(-1) for name in ("shares", "prices")}
        return Markets(
            products,
            known,
            self.market_index,
            rows,
            self.product_table.product_ids,
            self.product_table.nests,
            SurveyTables({**self.product_table.data, **moved}, table.data),
            agent_places=table.rows,
        )

    @property
    def economy(self) -> Economy:
        """All markets, padded into buckets, as compiled programs read them."""
        return self.agents_in_economy.economy

    @property
    def agent_table(self) -> AgentTable:
        """Checked agent data."""
        return self.agents_in_economy.table

    @property
    def X1(self) -> np.ndarray:
        """(N, K1) linear characteristics before absorption of fixed effects."""
        return self.designs[0].values

    @property
    def X2(self) -> np.ndarray:
        """(N, K2) nonlinear characteristics."""
        return np.zeros((self.N, 0)) if self.designs[1] is None else self.designs[1].values

    @property
    def X3(self) -> np.ndarray:
        """(N, K3) characteristics that explain marginal costs, before absorption of fixed effects."""
        return np.zeros((self.N, 0)) if self.designs[2] is None else self.designs[2].values

    @property
    def columns(self) -> list[Column]:
        """Columns of X1, X2 and X3."""
        return [column for design in self.designs if design is not None for column in design.columns]

    @property
    def labels(self) -> Labels:
        """Names of characteristics, demographics and nests, and whether there are lags."""
        X1, X2, X3 = (() if design is None else design.labels for design in self.designs)
        nesting, conduct = self.product_table.nesting, tuple(self.conduct_parameters)
        lagged, demographics = self.product_table.lag_indices is not None, self.agents_in_economy.demographic_labels
        known = Labels(X1, X2, X3, demographics, lagged=lagged, conduct=conduct)
        if nesting is None:
            return known
        nests, subnests = nesting.labels
        return known._replace(nests=nests, subnests=subnests, parents=tuple(nesting.parents.tolist()))

    @property
    def conduct_parameters(self) -> dict[str, tuple[float, float]]:
        """Names of the conduct's parameters, the elements of kappa, with their default bounds."""
        return {} if self.conduct is None else parameters_of(self.conduct)

    @cached_property
    def conduct_data(self) -> ConductData | None:
        """The conduct with what it reads from product data; None where firms set prices."""
        return None if self.conduct is None else prepare_conduct(self.conduct, self.product_table)

    @cached_property
    def characteristics(self) -> Characteristics:
        """X1, X2 and X3 as functions of the variables in their formulas."""
        return build_characteristics(self.designs, self.product_table.prices, self.product_table.shares)

    @cached_property
    def ownership(self) -> Ownership | None:
        """Who owns what: matrices from the data, or else codes of firms; None without either."""
        return self.ownership_in(self.economy)

    def ownership_in(self, economy: Economy) -> Ownership | None:
        """Who owns what in an economy with other agents, whose buckets may be others."""
        return table_ownership(economy, self.product_table)

    def pricing_ownership_in(self, economy: Economy) -> Ownership:
        """Whose profits the price of a product maximises, in estimation; anything where other conduct decides."""
        known = self.conduct_data
        if known is not None and known.has_known_weights:
            return price_setting_ownership(economy, known)
        found = self.ownership_in(economy)
        return firm_codes(economy, np.zeros(self.N, int)) if found is None else found

    def closed_form_delta(self, rho: np.ndarray | None = None) -> np.ndarray:
        """(N,) mean utilities of the logit, or with rho those of the nested logit (Berry 1994)."""
        table, codes = self.product_table, self.market_index.codes
        return self.epsilon_scale * closed_form_delta(table.shares, codes, table.nesting, rho)

    @property
    def epsilon_scale(self) -> float:
        """Factor of the idiosyncratic taste shocks."""
        return self.form.epsilon_scale

    @property
    def T(self) -> int:
        """Number of markets."""
        return len(self.market_index.ids)

    @property
    def N(self) -> int:
        """Number of products in all markets."""
        return self.product_table.shares.size

    @property
    def F(self) -> int:
        """Number of firms."""
        return self.unique_firm_ids.size

    @property
    def I(self) -> int:  # noqa: E743
        """Number of agents in all markets."""
        return self.agent_table.weights.size if self.K2 else 0

    @property
    def K1(self) -> int:
        """Number of linear characteristics."""
        return self.X1.shape[1]

    @property
    def K2(self) -> int:
        """Number of characteristics with random coefficients."""
        return self.X2.shape[1]

    @property
    def K3(self) -> int:
        """Number of characteristics that explain marginal costs."""
        return self.X3.shape[1]

    @property
    def D(self) -> int:
        """Number of demographics."""
        return len(self.agents_in_economy.demographic_labels)

    @property
    def H(self) -> int:
        """Number of nesting groups."""
        return self.unique_nesting_ids.size

    @property
    def unique_market_ids(self) -> np.ndarray:
        """Sorted market IDs."""
        return records.as_objects(self.market_index.ids)

    @cached_property
    def unique_firm_ids(self) -> np.ndarray:
        """Sorted firm IDs."""
        return records.unique_ids(self.product_table.firm_ids)

    @cached_property
    def unique_product_ids(self) -> np.ndarray:
        """Sorted product IDs (of the first column, if there are several)."""
        return records.unique_ids(self.product_table.product_ids)

    @cached_property
    def unique_agent_ids(self) -> np.ndarray:
        """Sorted agent IDs."""
        return records.unique_ids(self.agent_table.agent_ids)

    @cached_property
    def unique_nesting_ids(self) -> np.ndarray:
        """Sorted IDs of nests."""
        return records.unique_ids(self.product_table.nesting_ids)

    @property
    def unique_subnesting_ids(self) -> np.ndarray:
        """Sorted pairs (S, 2) of the IDs of a nest and of a nest within it."""
        nesting = self.product_table.nesting
        return np.zeros((0, 2), object) if nesting is None else nesting.subgroups

    @cached_property
    def agents(self) -> np.recarray:
        """Agent data as a structured array of I rows, with demographics."""
        agents = self.agents_in_economy
        return records.agent_records(agents.table, agents.demographics, agents.demographic_columns)


def build_matrices(formulations: Formulations, data: Mapping[str, np.ndarray], demographics: bool) -> Matrices:
    """X1, X2 and X3 of product data, for utilities with or without demographics.

    Raises
    ------
    DataError
        When a matrix cannot be built; the message names column, market and row.
    IdentificationError
        When prices are in neither X1 nor X2, or in X3.
    """
    X1, X2, X3 = (None if formulation is None else formulation.build(data) for formulation in formulations)
    assert X1 is not None
    check_endogenous(X1, X2, X3, demographics)
    return X1, X2, X3


def formulate(
    product_formulations: Formulations,
    agent_formulation: Formulation | None,
    product_table: ProductTable,
    designs: Matrices,
    agent_data: Any,
    *,
    integration: Integration | None,
    weights_tol: float,
    form: tuple[Any, Any],
    costs_type: str,
    conduct: Any = None,
) -> Formulated:
    """Put agents, and types of random coefficients, to products whose matrices are built.

    Parameters
    ----------
    agent_data, integration, weights_tol : see `blpjax.economy.buckets.build_agents`.
    form : `rc_types` and `epsilon_scale` as they were given.
    conduct : how firms compete, None where they set prices.

    Raises
    ------
    DataError, ValueError, TypeError
        When agents, types or conduct cannot be used; see `read_agents`, `read_utility_form` and `prepare_conduct`.
    """
    rc_types, epsilon_scale = form
    index, shares = index_markets(product_table.market_ids), product_table.shares
    X2 = np.zeros((shares.size, 0)) if designs[1] is None else designs[1].values
    K2, given = X2.shape[1], (agent_formulation, agent_data, integration)
    known = Formulated(
        product_formulations=product_formulations,
        agent_formulation=agent_formulation,
        product_table=product_table,
        market_index=index,
        designs=designs,
        form=read_utility_form(rc_types, epsilon_scale, K2),
        agents_in_economy=build_agents(*given, index, shares, X2, weights_tol, product_table.nests),
        rc_types=["linear"] * K2 if rc_types is None else list(rc_types),
        costs_type=costs_type,
        conduct=None if conduct is None else check_conduct(conduct),
    )
    if designs[2] is None and known.conduct_parameters:
        raise ValueError(
            f"conduct has parameters ({', '.join(map(repr, known.conduct_parameters))}), which need a supply side: a "
            "third formulation, X3. Give numbers in their place."
        )
    assert known.conduct is None or known.conduct_data is not None  # what it reads is there
    return known


def read_costs_type(costs_type: str, supply: bool) -> str:
    """The type of costs in effect, ``'linear'`` without a supply side; `ValueError` unless it is that or ``'log'``.

    Another type without a supply side gives a warning.
    """
    check_choice("costs_type", costs_type, ("linear", "log"))
    if supply or costs_type == "linear":
        return costs_type
    warn_unused(f"costs_type={costs_type!r}", "there is no supply side, a third formulation, X3.")
    return "linear"
