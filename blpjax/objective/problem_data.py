"""The data of a problem as a value that never changes: what solving it, and its results, need to know of it."""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from blpjax.economy.buckets import AgentsInEconomy
from blpjax.economy.ownership import pack_firms
from blpjax.economy.sharding import shard_economy
from blpjax.exceptions import DataError, DataWarning
from blpjax.inputs import records
from blpjax.inputs.absorb import Absorber, build_absorber
from blpjax.inputs.arguments import read_formulations
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import check_rank
from blpjax.inputs.integration import AgentNodes, BuiltIntegration, Integration
from blpjax.inputs.spelling import warn_of_misspelt_fields
from blpjax.inputs.tables import read_products
from blpjax.inputs.updating import replace_values
from blpjax.machine.placement import Placement
from blpjax.model.formulated import Formulated, build_matrices, formulate, read_costs_type
from blpjax.model.parameters import ParameterLayout
from blpjax.objective.build import Designs, Equations, build_equations
from blpjax.objective.clusters import Clusters, number_clusters
from blpjax.objective.data import ModelData, place_data
from blpjax.objective.dynamics import MomentTypes, build_dynamics, read_moment_types
from blpjax.reporting import report
from blpjax.reporting.tables import Part, Shown
from blpjax.values import read_flag


class Tolerances(NamedTuple):
    """Options that decide whether data are refused, by their names in `blpjax.options`."""

    weights_tol: float
    collinear_atol: float
    collinear_rtol: float


class Absorbers(NamedTuple):
    """What absorbs the fixed effects of X1 and X3; without X3 the second is the first."""

    demand: Absorber
    supply: Absorber


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ProblemData(Shown, Formulated):
    """What a problem is made of: `Formulated` with fixed effects and the data of all moments.

    Methods return other values that share what they do not replace.

    Attributes
    ----------
    integration : what built nodes and weights, or None.
    add_exogenous : whether exogenous columns of X1 and X3 are instruments, too.
    tolerances : those that data were checked with.
    absorbers : what absorbs fixed effects.
    model_data : data of all moments; `instrument_labels` and `instrument_rank` are names of their instruments, and how
        many of these are linearly independent.
    collinear : those of X1, X2 and X3 whose columns are linearly dependent.
    replaced_instruments : whether excluded instruments are others than those of the columns of the product table.
    placement : devices that markets are spread over, or None where one device has all of them.
    """

    integration: Integration | None
    add_exogenous: bool
    tolerances: Tolerances
    absorbers: Absorbers
    model_data: ModelData
    instrument_labels: list[str]
    instrument_rank: int
    collinear: frozenset[str] = frozenset()
    replaced_instruments: bool = False
    placement: Placement | None = None

    def residualize_demand(self, matrix: np.ndarray) -> np.ndarray:
        """Residuals (N, K) of the columns of a matrix on the fixed effects of X1; the matrix itself without any."""
        return self.absorbers.demand.residualize(matrix)

    def residualize_supply(self, matrix: np.ndarray) -> np.ndarray:
        """Residuals (N, K) of the columns of a matrix on the fixed effects of X3; the matrix itself without any."""
        return matrix if self.designs[2] is None else self.absorbers.supply.residualize(matrix)

    def check_estimated(self, layout: ParameterLayout) -> None:
        """Raise `IdentificationError` when columns of X1, X2 or X3 with estimated coefficients are collinear."""
        estimated = {
            "X1": {*layout.concentrated_beta, *(k for (k,) in layout.beta)},
            "X2": {k for k, _ in (*layout.sigma, *layout.pi)},
            "X3": {*layout.concentrated_gamma, *(k for (k,) in layout.gamma)},
        }
        effects = {"X1": self.residualize_demand, "X3": self.residualize_supply}
        absorbed = {"X1": self.ED, "X3": self.ES}
        tolerances = self.tolerances.collinear_atol, self.tolerances.collinear_rtol
        for name in sorted(self.collinear):
            chosen = sorted(estimated[name])
            values, labels = getattr(self, name)[:, chosen], getattr(self.labels, name)
            residuals = effects[name](values) if absorbed.get(name) else values
            unabsorbed = values if absorbed.get(name) else None
            check_rank(residuals, [labels[k] for k in chosen], name, unabsorbed, *tolerances)

    def read_moment_types(self, demand: Any, supply: Any) -> MomentTypes:
        """Types of moments; see `blpjax.objective.dynamics.read_moment_types`.

        Raises
        ------
        NotImplementedError
            With covariance instruments or absorbed fixed effects, unless all moments are levels.
        """
        types = read_moment_types(demand, supply, (self.MD, self.MS), self.product_table.lag_indices)
        for side, given, absorbed in (("demand", types.demand, self.ED), ("supply", types.supply, self.ES)):
            if given and self.MC:
                raise NotImplementedError(
                    f"{side}_moment_types other than levels are not supported with covariance instruments. Leave one "
                    "of them out."
                )
            if given and absorbed:
                raise NotImplementedError(
                    f"{side}_moment_types other than levels are not supported with absorbed fixed effects. Put "
                    "indicators, C(...), into formulas instead."
                )
        return types

    def moments_of(self, types: MomentTypes) -> ModelData:
        """Data of moments of these types."""
        lags = self.product_table.lag_indices
        if not types or lags is None:
            return self.model_data
        dynamics = build_dynamics(lags, types, (self.MD, self.MS)[: len(self.model_data.equations)])
        if self.placement is not None:
            dynamics = jax.tree.map(self.placement.repeat, jax.tree.map(np.asarray, dynamics))
        return dataclasses.replace(self.model_data, dynamics=dynamics)

    def build_agents(self, agent_data: Any, integration: Integration | None, weights_tol: float) -> AgentsInEconomy:
        """The economy with these agents, for evaluating the same model with other nodes, weights or demographics."""
        agents = super().build_agents(agent_data, integration, weights_tol)
        if self.placement is None:
            return agents
        return dataclasses.replace(agents, economy=shard_economy(agents.economy, self.placement))

    def replace_instruments(
        self, demand_instruments: np.ndarray, supply_instruments: np.ndarray, tolerances: Tolerances
    ) -> "ProblemData":
        """The same with other excluded instruments (N, n) and (N, m). Formulas still read the product table's columns.

        Raises
        ------
        ValueError
            When they are not finite matrices with N rows, or there are supply-side instruments without a supply side.
        """
        fields: dict[str, Any] = {}
        for name, values in (("demand_instruments", demand_instruments), ("supply_instruments", supply_instruments)):
            matrix = np.array(values, float)
            if matrix.ndim != 2 or len(matrix) != self.N or not np.isfinite(matrix).all():
                raise ValueError(f"{name} must be a matrix of finite numbers with {self.N} rows.")
            fields |= {name: matrix, f"{name[:-1]}_labels": tuple(f"{name}[{k}]" for k in range(matrix.shape[1]))}
        if self.designs[2] is None and fields["supply_instruments"].size:
            raise ValueError("supply_instruments need a supply side: a third formulation, X3.")
        table = dataclasses.replace(self.product_table, **fields)
        return self._rebuild(tolerances, product_table=table, add_exogenous=True, replaced_instruments=True)

    def replace_agents(self, agent_data: Any, tolerances: Tolerances) -> "ProblemData":
        """The same with other agents, whose weights need not sum to one.

        Raises
        ------
        DataError
            When agents cannot be used, or a level of a categorical demographic is missing.
        """
        agents = self.build_agents(agent_data, None, np.inf)
        missing = set(self.agents_in_economy.demographic_labels) - set(agents.demographic_labels)
        if missing:
            raise DataError(
                f"agent_data: a level of a categorical variable is missing, so there are no demographics "
                f"{', '.join(map(repr, sorted(missing)))}. Draw more agents."
            )
        return self._rebuild(tolerances, integration=None, agents_in_economy=agents)

    def change_columns(self, data: Any, columns: Sequence[str] | None, partial: bool) -> dict[str, np.ndarray]:
        """Product data with other values of some variables; see `Problem.update`, which has the same arguments.

        Raises
        ------
        DataError, ValueError
            See there.
        """
        known = self.product_table.data
        changed = replace_values(dict(known), data, columns, partial)
        replaced = [name for name in changed if changed[name] is not known[name]]
        unused = [name for name in replaced if re.fullmatch(r"(demand|supply)_instruments[0-9]*", name)]
        if self.replaced_instruments and unused:
            raise ValueError(f"{', '.join(unused)} cannot be replaced: the problem's instruments are not its table's.")
        return changed

    def replace_products(self, product_data: Mapping[str, np.ndarray], tolerances: Tolerances) -> "ProblemData":
        """The same with other product data, whose instruments are used, and the same agents."""
        with warnings.catch_warnings():
            # agents are what they were, and so is what was said about them
            warnings.filterwarnings("ignore", "agent_data: ", DataWarning)
            found = build_problem_data(
                self.product_formulations,
                product_data,
                agent_formulation=self.agent_formulation,
                agent_data=dict(self.agent_table.data) or None,
                integration=self.integration,
                built=self.built_nodes,
                rc_types=self.rc_types or None,
                epsilon_scale=self.epsilon_scale,
                costs_type=self.costs_type,
                add_exogenous=self.add_exogenous,
                conduct=self.conduct,
                tolerances=tolerances,
            )
        return found if self.placement is None else found.shard(self.placement)

    def shard(self, placement: Placement) -> "ProblemData":
        """The same with its markets on these devices, from one device."""
        agents = dataclasses.replace(
            self.agents_in_economy, economy=shard_economy(self.agents_in_economy.economy, placement)
        )
        moved = dataclasses.replace(self, agents_in_economy=agents, placement=placement)
        data = self.model_data
        if data.supply is not None:
            owned = pack_firms(moved.pricing_ownership_in(moved.economy))
            data = dataclasses.replace(data, supply=dataclasses.replace(data.supply, ownership=owned))
        return dataclasses.replace(moved, model_data=place_data(data, placement))

    def _rebuild(self, tolerances: Tolerances, **changes: Any) -> "ProblemData":
        """The same with changes, and with equations that are built and checked again."""
        changed = dataclasses.replace(self, tolerances=tolerances, **changes)
        found = _build_equations(changed, self.absorbers, changed.add_exogenous, tolerances)
        data = found.data if self.placement is None else place_data(found.data, self.placement)
        return dataclasses.replace(
            changed,
            model_data=data,
            instrument_labels=found.instrument_labels,
            instrument_rank=found.instrument_rank,
            collinear=found.collinear,
        )

    @property
    def built_nodes(self) -> AgentNodes | None:
        """Nodes and weights that the integration has built, None without one."""
        table = self.agent_table
        return None if self.integration is None else AgentNodes(table.market_ids, table.nodes, table.weights)

    @cached_property
    def clusters(self) -> Clusters:
        """Clusters of products, of one or several kinds; one of all products without clustering IDs."""
        ids = self.product_table.clustering_ids
        return Clusters(np.zeros(self.N, int), 1) if ids is None else number_clusters(ids)

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
        return self.absorbers.demand.dimensions

    @property
    def ES(self) -> int:
        """Number of dimensions of fixed effects absorbed from supply."""
        return 0 if self.designs[2] is None else self.absorbers.supply.dimensions

    @property
    def demand_ids(self) -> np.ndarray:
        """(N, ED) levels of fixed effects absorbed from demand, counted from zero."""
        return self.absorbers.demand.ids

    @property
    def supply_ids(self) -> np.ndarray:
        """(N, ES) levels of fixed effects absorbed from supply, counted from zero."""
        return self.absorbers.supply.ids[:, : self.ES]

    @cached_property
    def products(self) -> np.recarray:
        """Product data as a structured array of N rows, with residualised `X1` and `ZD`."""
        supply, covariance = self.model_data.supply, self.model_data.covariance
        none = np.zeros((self.N, 0))
        matrices = records.ProductMatrices(
            X1=np.asarray(self.model_data.demand.X),
            X2=self.X2,
            X3=none if supply is None else np.asarray(supply.equation.X),
            ZD=np.asarray(self.model_data.demand.instruments),
            ZS=none if supply is None else np.asarray(supply.equation.instruments),
            ZC=none if covariance is None else np.asarray(covariance.instruments),
            demand_ids=self.demand_ids,
            supply_ids=self.supply_ids,
        )
        return records.product_records(self.product_table, matrices, self.designs)

    def _parts(self) -> Sequence[Part]:
        names = ["T", "N", "F", "I", "K1", "K2", "K3", "D", "MD", "MS", "MC", "ED", "ES", "H"]
        kept = [name for name in names if self.K3 or name not in ("K3", "MS", "MC", "ES")]
        labels = self.labels
        formulations = {
            "X1: Linear Characteristics": labels.X1,
            "X2: Nonlinear Characteristics": labels.X2,
            f"X3: {self.costs_type.title()} Cost Characteristics": labels.X3,
            "d: Demographics": labels.demographics,
        }
        return report.describe_problem({name: getattr(self, name) for name in kept}, formulations)


def build_problem_data(
    product_formulations: Any,
    product_data: Any,
    *,
    agent_formulation: Formulation | None,
    agent_data: Any,
    integration: Integration | None,
    rc_types: Sequence[Any] | None,
    epsilon_scale: float,
    costs_type: str,
    add_exogenous: bool,
    tolerances: Tolerances,
    built: AgentNodes | None = None,
    conduct: Any = None,
) -> ProblemData:
    """Read and check arguments of `Problem`, which documents them and all exceptions.

    Parameters
    ----------
    tolerances : what decides whether data are refused.
    built : nodes and weights that the integration has built already.
    """
    add_exogenous = read_flag("add_exogenous", add_exogenous)
    formulations = read_formulations(product_formulations, agent_formulation)
    X1, _, X3 = formulations
    costs_type = read_costs_type(costs_type, X3 is not None)
    table = read_products(product_data, supply=X3 is not None, firms=conduct is None)
    given = [formulation for formulation in formulations if formulation is not None]
    used = {name for formulation in given for name in formulation.names | formulation.absorb_names}
    warn_of_misspelt_fields(table.data, used, "product_data")
    designs = build_matrices(formulations, table.data, agent_formulation is not None)
    demand = build_absorber(X1, table.data)
    absorbers = Absorbers(demand, demand if X3 is None else build_absorber(X3, table.data))
    known = formulate(
        formulations,
        agent_formulation,
        table,
        designs,
        agent_data,
        integration=integration if integration is None or built is None else BuiltIntegration(integration, built),
        weights_tol=tolerances.weights_tol,
        form=(rc_types, epsilon_scale),
        costs_type=costs_type,
        conduct=conduct,
    )
    found = _build_equations(known, absorbers, add_exogenous, tolerances)
    return ProblemData(
        **known.fields,
        integration=integration,
        add_exogenous=add_exogenous,
        tolerances=tolerances,
        absorbers=absorbers,
        model_data=found.data,
        instrument_labels=found.instrument_labels,
        instrument_rank=found.instrument_rank,
        collinear=found.collinear,
    )


def _build_equations(known: Formulated, absorbers: Absorbers, add_exogenous: bool, tolerances: Tolerances) -> Equations:
    other = known.conduct_data
    if other is not None and other.has_known_weights:
        other = None
    return build_equations(
        Designs(*known.designs, absorbers.demand, absorbers.supply),
        known.product_table,
        known.characteristics,
        None if known.designs[2] is None else known.pricing_ownership_in(known.economy),
        other,
        logarithmic=known.costs_type == "log",
        add_exogenous=add_exogenous,
        tolerances=(tolerances.collinear_atol, tolerances.collinear_rtol),
    )
