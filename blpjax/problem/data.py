"""The data of a problem: checked tables, designs, agents and equations, their dimensions, and how they are replaced."""

import dataclasses
import re
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import jax
import numpy as np

from blpjax import options
from blpjax.economy.buckets import AgentsInEconomy, Economy, MarketIndex, build_agents, index_markets
from blpjax.economy.characteristics import Characteristics, build_characteristics
from blpjax.economy.logit import closed_form_delta
from blpjax.economy.ownership import Ownership, pack_firms, table_ownership
from blpjax.economy.sharding import shard_economy
from blpjax.exceptions import DataWarning
from blpjax.inputs import arguments, records
from blpjax.inputs.absorb import build_absorber
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import check_endogenous
from blpjax.inputs.integration import Integration
from blpjax.inputs.tables import AgentTable, read_products
from blpjax.inputs.updating import replace_values
from blpjax.machine.placement import Placement, build_placement
from blpjax.model import starting_values
from blpjax.model.parameters import Transformation
from blpjax.objective.build import Designs, build_equations
from blpjax.objective.data import place_data
from blpjax.problem import state as states
from blpjax.reporting import report

Derived = TypeVar("Derived", bound="ProblemData")


class ProblemData:
    """What a problem is made of; `Problem` documents arguments and attributes, and solves it."""

    _replaced_instruments = False
    _placement: Placement | None = None

    def __init__(
        self,
        product_formulations: Formulation | Sequence[Formulation | None],
        product_data: Any,
        agent_formulation: Formulation | None = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        rc_types: Sequence[str | Callable[[Any], Any] | Transformation] | None = None,
        epsilon_scale: float = 1.0,
        costs_type: str = "linear",
        add_exogenous: bool = True,
    ) -> None:
        began = time.perf_counter()
        options.output("Initializing the problem ...")
        self.product_formulations = arguments.read_formulations(product_formulations, agent_formulation)
        arguments.check_choice("costs_type", costs_type, ("linear", "log"))
        self.agent_formulation = agent_formulation
        self.integration = integration
        self.add_exogenous = bool(add_exogenous)
        self.costs_type = costs_type
        self._tolerances = {name: getattr(options, name) for name in states.TOLERANCES}

        X1, X2, X3 = self.product_formulations
        assert X1 is not None
        if X3 is None and costs_type != "linear":
            raise ValueError("costs_type='log' needs a supply side: a third formulation, X3.")
        self.product_table = read_products(product_data, supply=X3 is not None)
        data = self.product_table.data
        self._X1 = X1.build(data)
        self._X2 = None if X2 is None else X2.build(data)
        self._X3 = None if X3 is None else X3.build(data)
        self.form = starting_values.read_utility_form(rc_types, epsilon_scale, self.K2)
        self.epsilon_scale = self.form.epsilon_scale
        self.rc_types = ["linear"] * self.K2 if rc_types is None else list(rc_types)
        check_endogenous(self._X1, self._X2, self._X3, agent_formulation is not None)
        self._demand_absorber = build_absorber(X1, data)
        self._supply_absorber = self._demand_absorber if X3 is None else build_absorber(X3, data)
        self._index = index_markets(self.product_table.market_ids)
        self.agents_in_economy = self.build_agents(agent_data, integration)
        self._set_equations()
        options.output(f"Initialized the problem after {report.format_seconds(time.perf_counter() - began)}.")
        if options.verbose:
            options.output(f"\n{self}")

    def _set_equations(self) -> None:
        found = build_equations(
            Designs(self._X1, self._X2, self._X3, self._demand_absorber, self._supply_absorber),
            self.product_table,
            self.characteristics,
            self.ownership,
            logarithmic=self.costs_type == "log",
            add_exogenous=self.add_exogenous,
        )
        self.model_data, self.instrument_labels, self.instrument_rank = found
        if self._placement is not None:
            self.model_data = place_data(self.model_data, self._placement)

    def residualize_demand(self, matrix: np.ndarray) -> np.ndarray:
        """Residuals (N, K) of the columns of a matrix on the fixed effects of X1; the matrix itself without any."""
        return self._demand_absorber.residualize(matrix)

    def residualize_supply(self, matrix: np.ndarray) -> np.ndarray:
        """Residuals (N, K) of the columns of a matrix on the fixed effects of X3; the matrix itself without any."""
        return matrix if self._X3 is None else self._supply_absorber.residualize(matrix)

    def build_agents(self, agent_data: Any = None, integration: Integration | None = None) -> AgentsInEconomy:
        """The economy with these agents, for evaluating the same model with other nodes, weights or demographics."""
        return self._build_agents(agent_data, integration, options.weights_tol)

    def _build_agents(self, agent_data: Any, integration: Integration | None, weights_tol: float) -> AgentsInEconomy:
        X2 = np.zeros((self.N, 0)) if self._X2 is None else self._X2.values
        shares = self.product_table.shares
        nests = self.product_table.nesting_ids
        agents = build_agents(
            self.agent_formulation, agent_data, integration, self._index, shares, X2, weights_tol, nests
        )
        if self._placement is None:
            return agents
        return dataclasses.replace(agents, economy=shard_economy(agents.economy, self._placement))

    def _derive(self, kind: "type[Derived]", change: Callable[["Derived"], None]) -> "Derived":
        """A problem that shares what `change` does not replace, without reading the data again."""
        began = time.perf_counter()
        options.output("Re-creating the problem ...")
        problem = self._copy(kind)
        change(problem)
        problem._tolerances = {name: getattr(options, name) for name in states.TOLERANCES}
        problem._set_equations()
        options.output(f"Re-created the problem after {report.format_seconds(time.perf_counter() - began)}.")
        if options.verbose:
            options.output(f"\n{problem}")
        return problem

    def _copy(self, kind: "type[Derived]") -> "Derived":
        """A problem with the same attributes, without what is computed from them when it is asked for."""
        attributes = {name: value for base in kind.__mro__ for name, value in vars(base).items()}
        cached = {name for name, value in attributes.items() if isinstance(value, cached_property)}
        problem = object.__new__(kind)
        vars(problem).update({name: value for name, value in vars(self).items() if name not in cached})
        return problem

    def _set_instruments(self, demand_instruments: np.ndarray, supply_instruments: np.ndarray) -> None:
        """Replace excluded instruments of the product table. Formulas still read its columns."""
        fields: dict[str, Any] = {}
        for name, values in (("demand_instruments", demand_instruments), ("supply_instruments", supply_instruments)):
            matrix = np.array(values, float)
            if matrix.ndim != 2 or len(matrix) != self.N or not np.isfinite(matrix).all():
                raise ValueError(f"{name} must be a matrix of finite numbers with {self.N} rows.")
            fields |= {name: matrix, f"{name[:-1]}_labels": tuple(f"{name}[{k}]" for k in range(matrix.shape[1]))}
        if self._X3 is None and fields["supply_instruments"].size:
            raise ValueError("supply_instruments need a supply side: a third formulation, X3.")
        self.product_table = dataclasses.replace(self.product_table, **fields)
        self.add_exogenous = self._replaced_instruments = True

    def update(self: "Derived", data: Any, columns: Sequence[str] | None = None, partial: bool = False) -> "Derived":
        """The same problem with other values of some variables, matched by market and product.

        Everything that depends on the variables is computed again: formulas, instruments that are in the table, shares.
        Agents, with nodes and weights that were drawn, stay the same. This problem does not change.

        Parameters
        ----------
        data : DataFrame, dict of arrays, or structured array
            `market_ids`, `product_ids` and new values, in any order of rows.
        columns : sequence of str, optional
            Variables to replace, by default all columns of `data` other than the IDs. `product_data` has them already.
        partial : bool, optional
            Whether `data` may lack products, which keep their values. By default this is an error.

        Returns
        -------
        Problem

        Raises
        ------
        DataError
            When IDs in `data` are repeated or unknown, or lack products; when products are not identified by their
            `product_ids`; when a variable is in one table only; and when the problem cannot use the new values.
        ValueError
            When nothing or an ID is to be replaced, or instruments that optimal ones have replaced.
        """
        given = states.built_arguments(self._arguments)
        known = given["product_data"]
        given["product_data"] = changed = replace_values(known, data, columns, partial)
        replaced = [name for name in changed if changed[name] is not known[name]]
        unused = [name for name in replaced if re.fullmatch(r"(demand|supply)_instruments[0-9]*", name)]
        if self._replaced_instruments and unused:
            raise ValueError(f"{', '.join(unused)} cannot be replaced: the problem's instruments are not its table's.")
        with warnings.catch_warnings():
            # agents are what they were, and so is what was said about them
            warnings.filterwarnings("ignore", "agent_data: ", DataWarning)
            problem = type(self)(**given)
        if self._placement is not None:
            problem = problem.shard(self.devices)
        if isinstance(problem.integration, states.BuiltIntegration):
            problem.integration = problem.integration.plain
        if not self._replaced_instruments:
            return problem
        table = self.product_table
        return problem._derive(
            type(problem), lambda p: p._set_instruments(table.demand_instruments, table.supply_instruments)
        )

    def shard(self: "Derived", devices: int | Sequence[Any] | None = None) -> "Derived":
        """The same problem with its markets spread over devices, so that one estimation can exceed one device.

        Each device solves its own markets: loops wait for no other device, which only exchange what has a row for each
        product or market. Everything is computed as on one device and agrees with it up to rounding. The result is
        used like any problem, and so are its results. This problem does not change.

        A device holds the arrays of its markets: characteristics X2, agents, availability, ownership, and whatever is
        computed of them, such as choice probabilities and their derivatives, which is nearly all memory of an
        estimation. Buckets of markets of similar size are filled up to multiples of the number of devices. Every device
        holds all of what has N rows, such as prices, X1, X3, instruments, and derivatives of mean utilities in theta
        (N, P).

        With several processes (`jax.distributed.initialize`), every process has to build the same problem and call the
        same methods in the same order. Each ends with the same results. Files are then written by one of them.

        Parameters
        ----------
        devices : int or sequence of jax.Device, optional
            How many devices, or which. By default all, those of other processes included.

        Returns
        -------
        Problem

        Raises
        ------
        TypeError
            When `devices` are neither a number nor devices.
        ValueError
            When there are fewer devices, a device is given twice, or a process has none; when this problem is spread
            over devices already.
        DataError
            When processes do not have the same data or agents, for example because nodes were drawn without a seed.

        Notes
        -----
        Pickles, and files of `ProblemResults.save`, hold no devices: what is read from them is on one device again.
        With several processes only the latter can be written.

        A problem is built on JAX's default device before its markets are spread. Where not even its data fit there,
        build it within ``jax.default_device(jax.devices("cpu")[0])``: in the memory of the host.
        """
        if self._placement is not None:
            raise ValueError(f"The problem is spread over {self._placement.size} devices already.")
        placement = build_placement(devices)
        problem = self._copy(type(self))
        problem._placement = placement
        agents = self.agents_in_economy
        problem.agents_in_economy = dataclasses.replace(agents, economy=shard_economy(agents.economy, placement))
        data = self.model_data
        if data.supply is not None:
            assert problem.ownership is not None
            owned = pack_firms(problem.ownership)
            data = dataclasses.replace(data, supply=dataclasses.replace(data.supply, ownership=owned))
        problem.model_data = place_data(data, placement)
        return problem

    @property
    def devices(self) -> tuple[jax.Device, ...] | None:
        """Devices that markets are spread over, or None where one device has all of them."""
        return None if self._placement is None else self._placement.devices

    @property
    def _arguments(self) -> states.ProblemArguments:
        """What the problem was built from."""
        return states.ProblemArguments(
            product_formulations=self.product_formulations,
            products=self.product_table,
            agent_formulation=self.agent_formulation,
            agents=self.agent_table,
            integration=self.integration,
            rc_types=self.rc_types,
            epsilon_scale=self.epsilon_scale,
            costs_type=self.costs_type,
            add_exogenous=self.add_exogenous,
            tolerances=self._tolerances,
        )

    def to_state(self) -> dict[str, Any]:
        """The problem as a tree of plain values, data included: what `ProblemResults.save` writes.

        Raises
        ------
        DataError
            When a column that is used holds objects that cannot be stored.
        """
        state = states.problem_state(self._arguments)
        names = ("demand_instruments", "supply_instruments") if self._replaced_instruments else ()
        return {
            **state,
            "kind": type(self).__name__,
            "instruments": {name: getattr(self.product_table, name) for name in names},
        }

    @classmethod
    def from_state(cls: type["Derived"], state: dict[str, Any]) -> "Derived":
        """Build the problem that `to_state` described, with the same agents, without messages."""
        kinds = {kind.__name__: kind for kind in (cls, *cls.__subclasses__())}
        with states.built_again(state):
            problem = kinds[state.get("kind", cls.__name__)](**states.read_problem(state))
            if state.get("instruments"):
                problem = problem._derive(type(problem), lambda p: p._set_instruments(**state["instruments"]))
        if isinstance(problem.integration, states.BuiltIntegration):
            problem.integration = problem.integration.plain
        return problem

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
        return self._X1.values

    @property
    def X3(self) -> np.ndarray:
        """(N, K3) characteristics that explain marginal costs, before absorption of fixed effects."""
        return np.zeros((self.N, 0)) if self._X3 is None else self._X3.values

    @property
    def market_index(self) -> MarketIndex:
        """Sorted market IDs, and the rows of each market in the product table."""
        return self._index

    @cached_property
    def characteristics(self) -> Characteristics:
        """X1, X2 and X3 as functions of the variables in their formulas."""
        table = self.product_table
        return build_characteristics((self._X1, self._X2, self._X3), table.prices, table.shares)

    @cached_property
    def ownership(self) -> Ownership | None:
        """Who owns what: matrices from the data, or else codes of firms; None without either."""
        return self.ownership_in(self.economy)

    def ownership_in(self, economy: Economy) -> Ownership | None:
        """Who owns what in an economy with other agents, whose buckets may be others."""
        return table_ownership(economy, self.product_table)

    @property
    def T(self) -> int:
        """Number of markets."""
        return len(self._index.ids)

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
        return self._X1.values.shape[1]

    @property
    def K2(self) -> int:
        """Number of characteristics with random coefficients."""
        return 0 if self._X2 is None else self._X2.values.shape[1]

    @property
    def D(self) -> int:
        """Number of demographics."""
        return len(self.agents_in_economy.demographic_labels)

    @property
    def K3(self) -> int:
        """Number of characteristics that explain marginal costs."""
        return 0 if self._X3 is None else self._X3.values.shape[1]

    @property
    def MD(self) -> int:
        """Number of demand instruments."""
        return self.model_data.demand.Z.shape[1]

    @property
    def MS(self) -> int:
        """Number of supply instruments."""
        return 0 if self.model_data.supply is None else self.model_data.supply.equation.Z.shape[1]

    @property
    def MC(self) -> int:
        """Number of covariance instruments."""
        return 0 if self.model_data.covariance is None else self.model_data.covariance.instruments.shape[1]

    @property
    def ED(self) -> int:
        """Number of dimensions of fixed effects absorbed from demand."""
        return self._demand_absorber.dimensions

    @property
    def ES(self) -> int:
        """Number of dimensions of fixed effects absorbed from supply."""
        return 0 if self._X3 is None else self._supply_absorber.dimensions

    @property
    def demand_ids(self) -> np.ndarray:
        """(N, ED) levels of fixed effects absorbed from demand, counted from zero."""
        return self._demand_absorber.ids

    @property
    def supply_ids(self) -> np.ndarray:
        """(N, ES) levels of fixed effects absorbed from supply, counted from zero."""
        return self._supply_absorber.ids[:, : self.ES]

    @property
    def H(self) -> int:
        """Number of nesting groups."""
        return self.unique_nesting_ids.size

    @property
    def unique_market_ids(self) -> np.ndarray:
        """Sorted market IDs."""
        return records.as_objects(self._index.ids)

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

    @cached_property
    def products(self) -> np.recarray:
        """Product data as a structured array of N rows, with residualised `X1` and `ZD`."""
        supply, covariance = self.model_data.supply, self.model_data.covariance
        none = np.zeros((self.N, 0))
        matrices = records.ProductMatrices(
            X1=np.asarray(self.model_data.demand.X),
            X2=none if self._X2 is None else self._X2.values,
            X3=none if supply is None else np.asarray(supply.equation.X),
            ZD=np.asarray(self.model_data.demand.instruments),
            ZS=none if supply is None else np.asarray(supply.equation.instruments),
            ZC=none if covariance is None else np.asarray(covariance.instruments),
            demand_ids=self.demand_ids,
            supply_ids=self.supply_ids,
        )
        designs = [design for design in (self._X1, self._X2, self._X3) if design is not None]
        columns = [column for design in designs for column in design.columns]
        return records.product_records(self.product_table, matrices, columns)

    @cached_property
    def agents(self) -> np.recarray:
        """Agent data as a structured array of I rows."""
        return records.agent_records(self.agent_table, self.agents_in_economy.demographics)

    def __str__(self) -> str:
        names = ["T", "N", "F", "I", "K1", "K2", "K3", "D", "MD", "MS", "MC", "ED", "ES", "H"]
        kept = [name for name in names if self.K3 or name not in ("K3", "MS", "MC", "ES")]
        formulations = {
            "X1: Linear Characteristics": self._X1.labels,
            "X2: Nonlinear Characteristics": () if self._X2 is None else self._X2.labels,
            f"X3: {self.costs_type.title()} Cost Characteristics": () if self._X3 is None else self._X3.labels,
            "d: Demographics": self.agents_in_economy.demographic_labels,
        }
        return report.describe_problem({name: getattr(self, name) for name in kept}, formulations)

    __repr__ = __str__

    @cached_property
    def clusters(self) -> tuple[np.ndarray, int]:
        """Clusters of products (N,), counted from zero, and their number; one without clustering IDs."""
        ids = self.product_table.clustering_ids
        if ids is None:
            return np.zeros(self.N, int), 1
        unique, codes = np.unique(ids.reshape(-1), return_inverse=True)
        return codes, unique.size

    def closed_form_delta(self, rho: np.ndarray | None = None) -> np.ndarray:
        """(N,) mean utilities of the logit, or with rho (1,) or (H,) those of the nested logit (Berry 1994)."""
        table = self.product_table
        return self.epsilon_scale * closed_form_delta(table.shares, self._index.codes, table.nesting_ids, rho)
