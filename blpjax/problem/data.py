"""Problems as holders of their data, under the names of its attributes: how they are built, replaced and stored."""

import functools
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from blpjax import options
from blpjax.economy.buckets import AgentsInEconomy, Economy, MarketIndex
from blpjax.economy.characteristics import Characteristics
from blpjax.economy.ownership import Ownership
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.inputs.tables import AgentTable, ProductTable
from blpjax.machine.placement import build_placement
from blpjax.model.formulated import Formulations
from blpjax.model.parameters import Parameters, Transformation, UtilityForm
from blpjax.model.starting_values import build_parameters, check_price_coefficients
from blpjax.objective.clusters import Clusters
from blpjax.objective.data import ModelData
from blpjax.objective.problem_data import ProblemData, Tolerances, build_problem_data
from blpjax.problem.state import problem_state, read_problem
from blpjax.reporting import report
from blpjax.reporting.tables import Part, Shown

Holder = TypeVar("Holder", bound="DataHolder")


def _shared(name: str) -> Any:
    """A property of problems that is one of their data, with its docstring, or without one where it is a field."""
    known = getattr(ProblemData, name, None)
    documented = isinstance(known, property | functools.cached_property)
    return property(operator.attrgetter(f"data.{name}"), doc=known.__doc__ if documented else "")


class DataHolder(Shown):
    """What problems do with their data; `Problem` documents arguments and attributes, and solves it.

    `data` never change: what differs is another problem.
    """

    product_formulations: Formulations = _shared("product_formulations")
    agent_formulation: Formulation | None = _shared("agent_formulation")
    integration: Integration | None = _shared("integration")
    form: UtilityForm = _shared("form")
    rc_types: list[Any] = _shared("rc_types")
    epsilon_scale: float = _shared("epsilon_scale")
    costs_type: str = _shared("costs_type")
    add_exogenous: bool = _shared("add_exogenous")
    conduct: Any = _shared("conduct")

    T: int = _shared("T")
    N: int = _shared("N")
    F: int = _shared("F")
    I: int = _shared("I")  # noqa: E741
    K1: int = _shared("K1")
    K2: int = _shared("K2")
    K3: int = _shared("K3")
    D: int = _shared("D")
    MD: int = _shared("MD")
    MS: int = _shared("MS")
    MC: int = _shared("MC")
    ED: int = _shared("ED")
    ES: int = _shared("ES")
    H: int = _shared("H")
    unique_market_ids: np.ndarray = _shared("unique_market_ids")
    unique_firm_ids: np.ndarray = _shared("unique_firm_ids")
    unique_product_ids: np.ndarray = _shared("unique_product_ids")
    unique_agent_ids: np.ndarray = _shared("unique_agent_ids")
    unique_nesting_ids: np.ndarray = _shared("unique_nesting_ids")
    unique_subnesting_ids: np.ndarray = _shared("unique_subnesting_ids")
    products: np.recarray = _shared("products")
    agents: np.recarray = _shared("agents")

    product_table: ProductTable = _shared("product_table")
    agent_table: AgentTable = _shared("agent_table")
    market_index: MarketIndex = _shared("market_index")
    agents_in_economy: AgentsInEconomy = _shared("agents_in_economy")
    economy: Economy = _shared("economy")
    X1: np.ndarray = _shared("X1")
    X3: np.ndarray = _shared("X3")
    characteristics: Characteristics = _shared("characteristics")
    ownership: Ownership | None = _shared("ownership")
    demand_ids: np.ndarray = _shared("demand_ids")
    supply_ids: np.ndarray = _shared("supply_ids")
    clusters: Clusters = _shared("clusters")
    model_data: ModelData = _shared("model_data")
    instrument_labels: list[str] = _shared("instrument_labels")
    instrument_rank: int = _shared("instrument_rank")

    #: What other parts of the library use.
    _hidden = frozenset(
        """agent_table agents_in_economy build_agents characteristics closed_form_delta clusters data demand_ids economy
        form from_state instrument_rank market_index model_data ownership ownership_in product_table read_parameters
        replace_agents replace_instruments residualize_demand residualize_supply supply_ids to_state""".split()
    )

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
        *,
        conduct: Any = None,
    ) -> None:
        def build(tolerances: Tolerances) -> ProblemData:
            return build_problem_data(
                product_formulations,
                product_data,
                agent_formulation=agent_formulation,
                agent_data=agent_data,
                integration=integration,
                rc_types=rc_types,
                epsilon_scale=epsilon_scale,
                costs_type=costs_type,
                add_exogenous=add_exogenous,
                conduct=conduct,
                tolerances=tolerances,
            )

        self.data = _announce("Initializing", "Initialized", build)

    @classmethod
    def _hold(cls: type[Holder], data: ProblemData) -> Holder:
        """A problem with these data."""
        problem = object.__new__(cls)
        problem.data = data
        return problem

    @classmethod
    def _derive(cls: type[Holder], build: Callable[[Tolerances], ProblemData]) -> Holder:
        """A problem whose data are built from those of another one, without reading them again."""
        return cls._hold(_announce("Re-creating", "Re-created", build))

    def residualize_demand(self, matrix: np.ndarray) -> np.ndarray:
        """Residuals (N, K) of the columns of a matrix on the fixed effects of X1; the matrix itself without any."""
        return self.data.residualize_demand(matrix)

    def residualize_supply(self, matrix: np.ndarray) -> np.ndarray:
        """Residuals (N, K) of the columns of a matrix on the fixed effects of X3; the matrix itself without any."""
        return self.data.residualize_supply(matrix)

    def build_agents(self, agent_data: Any = None, integration: Integration | None = None) -> AgentsInEconomy:
        """The economy with these agents, for evaluating the same model with other nodes, weights or demographics."""
        return self.data.build_agents(agent_data, integration, options.weights_tol)

    def ownership_in(self, economy: Economy) -> Ownership | None:
        """Who owns what in an economy with other agents, whose buckets may be others."""
        return self.data.ownership_in(economy)

    def closed_form_delta(self, rho: np.ndarray | None = None) -> np.ndarray:
        """(N,) mean utilities of the logit, or with rho (1,) or (H,) those of the nested logit (Berry 1994)."""
        return self.data.closed_form_delta(rho)

    def read_parameters(
        self,
        sigma: Any,
        pi: Any,
        rho: Any,
        beta: Any,
        gamma: Any,
        bounds: Mapping[str, Any],
        bounded: bool = True,
        tau: Any = None,
        *,
        phi: Any = None,
        kappa: Any = None,
    ) -> Parameters:
        """Starting values, bounds (by block) and layout of the parameters from arguments of `solve`.

        Without `bounded` there are no default bounds.
        """
        parameters = build_parameters(
            sigma=sigma,
            pi=pi,
            rho=rho,
            tau=tau,
            phi=phi,
            kappa=kappa,
            beta=beta,
            gamma=gamma,
            bounds=bounds,
            form=self.form,
            conduct_bounds=tuple(self.data.conduct_parameters.values()),
            labels=self.data.labels,
            n_node_columns=self.agent_table.nodes.shape[1],
            bounded=bounded,
        )
        self.data.check_estimated(parameters.layout)
        if self.data.designs[2] is not None:
            check_price_coefficients(parameters.layout.concentrated_beta, self.data.designs[0])
        return parameters

    def update(self: Holder, data: Any, columns: Sequence[str] | None = None, partial: bool = False) -> Holder:
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
        known, table = self.data, self.product_table
        products = known.change_columns(data, columns, partial)

        def build(tolerances: Tolerances) -> ProblemData:
            return known.replace_products(products, tolerances)

        found = _announce("Initializing", "Initialized", build)
        if not known.replaced_instruments:
            return self._hold(found)
        Z = table.demand_instruments, table.supply_instruments
        return self._derive(lambda tolerances: found.replace_instruments(*Z, tolerances))

    def shard(self: Holder, devices: int | Sequence[Any] | None = None) -> Holder:
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
        if self.data.placement is not None:
            raise ValueError(f"The problem is spread over {self.data.placement.size} devices already.")
        return self._hold(self.data.shard(build_placement(devices)))

    @property
    def devices(self) -> tuple[jax.Device, ...] | None:
        """Devices that markets are spread over, or None where one device has all of them."""
        return None if self.data.placement is None else self.data.placement.devices

    def to_state(self) -> dict[str, Any]:
        """The problem as a tree of plain values, data included: what `ProblemResults.save` writes.

        Raises
        ------
        DataError
            When a column that is used holds objects that cannot be stored.
        """
        return problem_state(self.data, type(self).__name__)

    @classmethod
    def from_state(cls: type[Holder], state: dict[str, Any]) -> Holder:
        """Build the problem that `to_state` described, with the same agents, without messages."""
        kinds = {kind.__name__: kind for kind in (cls, *cls.__subclasses__())}
        return kinds[state.get("kind", cls.__name__)]._hold(read_problem(state))

    def _parts(self) -> Sequence[Part]:
        return self.data._parts()


def _announce(begin: str, end: str, build: Callable[[Tolerances], ProblemData]) -> ProblemData:
    """Data that are checked with the options of now, with messages before and after."""
    began = time.perf_counter()
    options.output(f"{begin} the problem ...")
    data = build(Tolerances(*(float(getattr(options, name)) for name in Tolerances._fields)))
    options.output(f"{end} the problem after {report.format_seconds(time.perf_counter() - began)}.")
    if options.verbose:
        options.output(f"\n{data}")
    return data
