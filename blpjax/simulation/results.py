"""SimulationResults: simulated data that are consistent with true parameters, and what they imply."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from blpjax import options
from blpjax.economy.buckets import AgentsInEconomy, Economy
from blpjax.exceptions import succeeded
from blpjax.inputs import arguments, records
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.inputs.tables import ProductTable
from blpjax.machine.pickling import Picklable
from blpjax.model.formulated import Formulated
from blpjax.model.model import Model
from blpjax.model.parameters import Transformation
from blpjax.outputs.labels import OutputTables
from blpjax.outputs.micro import MicroMethods
from blpjax.outputs.pricing_pressure import PressureMethods
from blpjax.outputs.scores import SurveySource
from blpjax.problem.problem import Problem
from blpjax.reporting.tables import Part
from blpjax.simulation.data import Primitives, basic_instruments
from blpjax.simulation.profit_conditions import FirmConditions
from blpjax.simulation.report import summarise_simulation


@runtime_checkable
class SimulationLike(Protocol):
    """What results need of the `Simulation` that was solved, which is built on top of them."""

    primitives: Primitives


class Solution(NamedTuple):
    """How a simulation was solved.

    model : the model at the solution. changes : variables that were replaced, (N,) by name. costs : (N,) marginal
    costs, None without a supply side. status, iterations, evaluations : of the loops, (T,). conditions : those of
    firms' profits, None if they do not apply. seconds : computation time.
    """

    model: Model
    changes: dict[str, np.ndarray]
    costs: np.ndarray | None
    status: np.ndarray
    iterations: np.ndarray
    evaluations: np.ndarray
    conditions: FirmConditions | None
    seconds: float


class SimulationResults(PressureMethods, MicroMethods, Picklable):
    """Results of a solved simulation.

    The compute methods are those of `ProblemResults`, at the true parameters: there are no standard errors.

    Attributes
    ----------
    simulation : the `Simulation`.
    product_data : structured array of the simulation's product data with replaced variables: prices and shares, or
        exogenous characteristics. NaN in markets in which no solution was found.
    delta : (N, 1) mean utilities.
    costs : (N, 1) marginal costs; None without a supply side.
    computation_time : seconds.
    fp_converged, fp_iterations, contraction_evaluations : (T,) whether the loops for prices or delta converged, and
        their numbers of iterations and evaluations, in the order of `Simulation.unique_market_ids`.
    """

    def __init__(self, simulation: SimulationLike, solution: Solution) -> None:
        self.simulation = simulation
        self._solution = solution
        self.product_data = simulation.primitives.product_data(solution.changes)
        self.delta = np.asarray(solution.model.delta)[:, None]
        self.costs = None if solution.costs is None else solution.costs[:, None]
        self.computation_time = solution.seconds
        self.fp_converged = np.asarray(succeeded(solution.status))
        self.fp_iterations = solution.iterations
        self.contraction_evaluations = solution.evaluations

    @property
    def model(self) -> Model:
        """The model at true parameters and the solution, from which outputs are computed."""
        return self._solution.model

    @cached_property
    def output_tables(self) -> OutputTables:
        """The tables that label outputs."""
        known = self.simulation.primitives
        products = change_products(known.product_table, self._solution.changes)
        return OutputTables(products, known.market_index, known.agents_in_economy)

    @property
    def formulated(self) -> Formulated:
        """Tables and formulas of the simulation, at the solution."""
        return self.simulation.primitives

    def survey_source(self) -> SurveySource:
        """What methods for micro data need: with simulated prices and shares."""
        return survey_source(self.simulation.primitives, self.model, self._solution.changes)

    def build_agents(self, agent_data: Any, integration: Integration | None) -> AgentsInEconomy:
        """The simulation's economy with other agents."""
        return self.simulation.primitives.build_agents(agent_data, integration, options.weights_tol)

    def model_in(self, economy: Economy) -> Model:
        """The model in an economy with other agents."""
        return self.model.with_agents(economy, self.simulation.primitives.layout_in(economy))

    @cached_property
    def profit_gradients(self) -> dict[Any, dict[Any, np.ndarray]] | None:
        """Firms' first-order conditions by market and firm ID, one for each price, zero in equilibrium.

        With ownership matrices that of product k is ``s_k + sum_j H_kj (p_j - c_j) ds_j / dp_k``.
        """
        found = self._solution.conditions
        return None if found is None else found.gradients_by_firm()

    @cached_property
    def profit_gradient_norms(self) -> dict[Any, dict[Any, float]] | None:
        """Largest absolute elements of profit gradients by market and firm ID."""
        found = self._solution.conditions
        return None if found is None else found.norms_by_firm()

    @cached_property
    def profit_hessians(self) -> dict[Any, dict[Any, np.ndarray]] | None:
        """Hessians of firms' profits by market and firm ID: derivatives of profit gradients in own prices."""
        found = self._solution.conditions
        return None if found is None else found.hessians_by_firm()

    @cached_property
    def profit_hessian_eigenvalues(self) -> dict[Any, dict[Any, np.ndarray]] | None:
        """Ascending eigenvalues of firms' Hessians: all are negative at a local maximum of the firm's profits."""
        found = self._solution.conditions
        return None if found is None else found.eigenvalues_by_firm()

    def to_dict(self, attributes: Sequence[str] | None = None) -> dict[str, Any]:
        """Attributes by name, by default all but `simulation`.

        Raises
        ------
        AttributeError
            For names that are not attributes of results.
        """
        return {name: getattr(self, name) for name in (ATTRIBUTES if attributes is None else attributes)}

    def to_problem(
        self,
        product_formulations: Formulation | Sequence[Formulation | None] | None = None,
        product_data: Any = None,
        agent_formulation: Formulation | None = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        rc_types: Sequence[str | Callable[[Any], Any] | Transformation] | None = None,
        epsilon_scale: float | None = None,
        costs_type: str | None = None,
        add_exogenous: bool = True,
        *,
        conduct: Any = None,
    ) -> Problem:
        """Problem with the simulated data and, unless `product_data` are given, basic excluded instruments.

        Arguments are those of `Problem` and by default the simulation's, except that agents are left out when
        formulations without X2 are given, and `costs_type` when they are without X3. The agents' nodes are those of the
        simulation, unless an integration is given.

        Instruments are sums of characteristics over other products of the firm and over those of rivals
        (`build_blp_instruments`) for all variables in columns of X1 without prices, on the supply side in columns of X3
        without shares, and for ones where numbers of products vary between markets; and, for each side, variables that
        only the other one has. Constant columns are dropped. Replace these instruments by better ones for anything
        serious.
        """
        known = self.simulation.primitives
        formulations = known.product_formulations if product_formulations is None else product_formulations
        _, X2, X3 = arguments.read_formulations(formulations, agent_formulation)
        if X2 is not None:
            agent_formulation = known.agent_formulation if agent_formulation is None else agent_formulation
            if agent_data is None and (integration is None or agent_formulation is not None):
                agent_data = known.agent_columns
            if rc_types is None and any(kind != "linear" for kind in known.rc_types):
                rc_types = known.rc_types
        if costs_type is None:
            costs_type = known.costs_type if X3 is not None else "linear"
        return Problem(
            formulations,
            self._problem_data() if product_data is None else product_data,
            agent_formulation,
            agent_data,
            integration,
            rc_types,
            known.epsilon_scale if epsilon_scale is None else epsilon_scale,
            costs_type,
            add_exogenous,
            conduct=known.conduct if conduct is None else conduct,
        )

    def _problem_data(self) -> dict[str, np.ndarray]:
        known = self.simulation.primitives
        columns = {**known.product_table.data, **self._solution.changes}
        return {**columns, **basic_instruments(known, columns)}

    def _parts(self) -> list[Part]:
        conditions = self._solution.conditions
        shown = summarise_simulation(
            seconds=self.computation_time,
            failures=int((~self.fp_converged).sum()),
            iterations=int(self.fp_iterations.sum()),
            evaluations=int(self.contraction_evaluations.sum()),
            gradient_norms=None if conditions is None else conditions.gradient_norms,
            eigenvalues=None if conditions is None else conditions.eigenvalues,
        )
        return [shown]


def change_products(table: ProductTable, changes: Mapping[str, np.ndarray]) -> ProductTable:
    """Product data with other values (N,) of some variables."""
    return dataclasses.replace(
        table,
        prices=changes.get("prices", table.prices),
        shares=changes.get("shares", table.shares),
        data={**table.data, **changes},
    )


def survey_source(known: Primitives, model: Model, changes: Mapping[str, np.ndarray]) -> SurveySource:
    """What micro data of a simulation follow from, after some variables (N,) have changed, at the model with these."""
    table = change_products(known.product_table, changes)
    changed, formulas = dataclasses.replace(known, product_table=table), model.characteristics
    X1, X2, X3 = map(np.asarray, (*formulas.evaluate({}), formulas.evaluate_X3({})))
    none = np.zeros((known.N, 0))
    matrices = records.ProductMatrices(X1, X2, X3, none, none, none, none, none)
    return SurveySource(changed, records.product_records(table, matrices, known.designs), model, known.layout_of_all())


#: What `SimulationResults.to_dict` returns by default.
ATTRIBUTES = (
    "product_data",
    "delta",
    "costs",
    "computation_time",
    "fp_converged",
    "fp_iterations",
    "contraction_evaluations",
    "profit_gradients",
    "profit_gradient_norms",
    "profit_hessians",
    "profit_hessian_eigenvalues",
)
