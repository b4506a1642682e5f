"""Problem: data and formulations in, results out. Orchestration only."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from blpjax import arguments, estimator, options, report, states, views
from blpjax.characteristics import Characteristics, build_characteristics
from blpjax.diagnostics import report_outcome, warn_of_singularity
from blpjax.economy import (
    AgentsInEconomy,
    Economy,
    MarketIndex,
    Ownership,
    build_agents,
    firm_ownership,
    index_markets,
)
from blpjax.exceptions import DataError
from blpjax.functions import ModelFunctions
from blpjax.inputs.absorb import Absorber, build_absorber
from blpjax.inputs.design import DesignMatrix
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import (
    check_endogenous,
    check_instruments,
    check_order_condition,
    check_rank,
)
from blpjax.inputs.integration import Integration
from blpjax.inputs.tables import AgentTable, read_products
from blpjax.iteration import Iteration
from blpjax.markets import pack_firms
from blpjax.moments import CovarianceMoments, Equation, ModelData, Specification, Supply
from blpjax.optimize import Optimization, OptimizationStatus
from blpjax.parameters import Labels, Parameters, build_parameters
from blpjax.projection import build_projection
from blpjax.results import ProblemResults
from blpjax.solver import StepContext, StepOptions, StepResult, solve_step


class Problem:
    """A BLP problem: demand and, with a third formulation, the marginal costs of firms that set prices.

    Parameters
    ----------
    product_formulations : Formulation or sequence of up to three Formulations
        X1, linear characteristics (with any absorbed fixed effects), X2, characteristics with random coefficients, and
        X3, characteristics that explain marginal costs (with any absorbed fixed effects). Without X2 demand is the
        plain logit. X3 may contain shares, not prices.
    product_data : DataFrame, dict of arrays, or structured array
        N rows. Required: `market_ids`, `shares` (in (0, 1), summing to less than one in every market) and `prices`.
        With X3 also `firm_ids`, or `ownership` matrices stacked by market (`build_ownership`), which come first.
        Optional: `demand_instruments0`, `demand_instruments1`, ... or a matrix `demand_instruments`, and likewise
        `supply_instruments` and `covariance_instruments` for X3, `product_ids`, `clustering_ids`, and whatever the
        formulas name.
    agent_formulation : Formulation, optional
        Demographics d.
    agent_data : DataFrame, dict of arrays, or structured array, optional
        Rows are agents. `market_ids`, `weights` and `nodes0`, `nodes1`, ... (or a matrix `nodes`), and demographics.
    integration : Integration, optional
        Builds nodes and weights, instead of those of `agent_data`.
    rc_types, epsilon_scale :
        Only the defaults are supported: linear random coefficients and no scaling.
    costs_type : {'linear', 'log'}
        Whether X3 explains marginal costs or their logarithms.
    add_exogenous : bool, optional
        Whether to add the columns of X1 that do not contain prices, and those of X3 that do not contain shares, to the
        instruments. If false, `demand_instruments` and `supply_instruments` are all instruments, and fixed effects have
        to be absorbed from them beforehand (`build_matrix` does that).

    Attributes
    ----------
    T, N, F, I : numbers of markets, products in all markets, firms and agents.
    K1, K2, K3, D : numbers of columns of X1, X2, X3 and demographics.
    MD, MS, MC : numbers of demand, supply and covariance instruments.
    ED, ES : numbers of dimensions of fixed effects absorbed from demand and supply.
    H : zero: there are no nests.
    unique_market_ids, unique_firm_ids, unique_product_ids, unique_agent_ids, unique_nesting_ids : sorted IDs.
    products, agents : structured arrays of the data, with fields such as `X1`, `X2`, `X3`, `ZD`, `ZS`, `nodes`.

    Raises
    ------
    DataError
        When a table cannot be used; the message names table, column, market and row.
    IdentificationError
        When X1, X2 or X3 is rank-deficient, or prices are in neither X1 nor X2, or in X3.
    NotImplementedError
        For nests, and options that are not supported yet.
    """

    def __init__(
        self,
        product_formulations: Formulation | Sequence[Formulation | None],
        product_data: Any,
        agent_formulation: Formulation | None = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        rc_types: Sequence[str] | None = None,
        epsilon_scale: float = 1.0,
        costs_type: str = "linear",
        add_exogenous: bool = True,
    ) -> None:
        began = time.perf_counter()
        options.output("Initializing the problem ...")
        self.product_formulations = arguments.read_formulations(product_formulations, agent_formulation)
        arguments.refuse_model_options(rc_types, epsilon_scale)
        arguments.check_choice("costs_type", costs_type, ("linear", "log"))
        self.agent_formulation = agent_formulation
        self.integration = integration
        self.add_exogenous = bool(add_exogenous)
        self.epsilon_scale = 1.0
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
        self.rc_types = ["linear"] * self.K2
        check_endogenous(self._X1, self._X2, self._X3, agent_formulation is not None)
        self._demand_absorber = build_absorber(X1, data)
        self._supply_absorber = self._demand_absorber if X3 is None else build_absorber(X3, data)
        self._index = index_markets(self.product_table.market_ids)
        self.agents_in_economy = self.build_agents(agent_data, integration)
        self.model_data = self._build_model_data()
        options.output(f"Initialized the problem after {report.format_seconds(time.perf_counter() - began)}.")
        if options.verbose:
            options.output(f"\n{self}")

    def solve(
        self,
        sigma: Any = None,
        pi: Any = None,
        rho: Any = None,
        beta: Any = None,
        gamma: Any = None,
        sigma_bounds: Any = None,
        pi_bounds: Any = None,
        rho_bounds: Any = None,
        beta_bounds: Any = None,
        gamma_bounds: Any = None,
        delta: Any = None,
        method: str = "2s",
        initial_update: bool | None = None,
        optimization: Optimization | None = None,
        scale_objective: bool = True,
        check_optimality: str = "both",
        finite_differences: bool = False,
        error_behavior: str | None = None,
        error_punishment: float = 1,
        delta_behavior: str | None = None,
        iteration: Iteration | None = None,
        fp_type: str = "safe_linear",
        shares_bounds: Any = (1e-300, None),
        costs_bounds: Any = None,
        W: Any = None,
        center_moments: bool = True,
        W_type: str = "robust",
        se_type: str = "robust",
        covariance_moments_mean: float = 0,
        micro_moments: Sequence[Any] = (),
        micro_sample_covariances: Any = None,
        resample_agent_data: Callable[[int], Any] | None = None,
        phi: Any = None,
        phi_bounds: Any = None,
        demand_moment_types: str = "levels",
        supply_moment_types: str = "levels",
    ) -> ProblemResults:
        """Estimate the parameters by one-step or two-step GMM.

        Parameters
        ----------
        sigma : (K2, K2) array
            Starting values of the lower-triangular Cholesky root of the covariance matrix of tastes. Zeros stay zero.
        pi : (K2, D) array
            Starting values of the interactions with demographics. Zeros stay zero.
        beta : (K1,) array, optional
            NaN or None concentrates an element out (the default for all); zeros stay zero; others become part of theta.
            With a supply side elements on prices cannot be concentrated out, because costs depend on them.
        gamma : (K3,) array, optional
            The same for the parameters of marginal costs.
        sigma_bounds, pi_bounds, beta_bounds, gamma_bounds : pairs of arrays, optional
            Lower and upper bounds. Equal bounds fix an element. By default the diagonal of sigma is at least zero.
        delta : (N,) array, optional
            Where inversions of shares start, by default the logit solution.
        method : {'2s', '1s'}
        initial_update : bool, optional
            Whether to update W and delta at the starting values first.
        optimization : Optimization, optional
            By default ``Optimization('trust-region')``: bounded Gauss-Newton steps with learned curvature.
        scale_objective : bool
            Whether the objective is multiplied by N, so that it is Hansen's J statistic after two steps.
        check_optimality : {'both', 'gradient'}
            Whether to compute the (exact) Hessian too, other than at an initial update.
        error_behavior : {None, 'raise'}
            A failed evaluation is by default NaN and never accepted; ``'raise'`` raises `ConvergenceError` at once.
        delta_behavior : {None, 'predicted', 'first', 'logit', 'last'}
            Where inversions start: at the first-order prediction from the best evaluation so far, at `delta` (or the
            last GMM step's solution), at the logit solution, or at the last solution. None is ``'predicted'`` for the
            default optimiser and ``'first'`` for others. Solutions are the same up to the tolerance of `iteration`.
        iteration : Iteration, optional
            By default ``Iteration('anderson', {'atol': 1e-13})``.
        costs_bounds : pair of floats, optional
            Bounds at which marginal costs are clipped; by default there are none. Log costs need a positive lower bound
            where some costs may be negative.
        W : (M, M) array, optional
            Initial weighting matrix, by default that of 2SLS, for M = MD + MS + MC moments.
        covariance_moments_mean : float
            Mean m of ``(xi omega - m) Z`` in the moments of covariance instruments.
        center_moments, W_type, se_type
            Whether moments are centred, and the type of W and of standard errors: ``'robust'``, ``'clustered'`` or
            ``'unadjusted'``.
        rho, rho_bounds, finite_differences, error_punishment, fp_type, shares_bounds, micro_moments, \
        micro_sample_covariances, resample_agent_data, phi, phi_bounds, demand_moment_types, supply_moment_types
            Only their defaults are supported.

        Returns
        -------
        ProblemResults

        Raises
        ------
        ValueError, TypeError
            For arguments of the wrong shape or value.
        IdentificationError
            When there are fewer moments than parameters (a warning with ``Optimization('return')``).
        NotImplementedError
            For arguments that are not supported; the message names them.
        """
        arguments.refuse_unsupported(
            rho=rho,
            rho_bounds=rho_bounds,
            phi=phi,
            phi_bounds=phi_bounds,
            finite_differences=finite_differences,
            error_punishment=error_punishment,
            fp_type=fp_type,
            shares_bounds=shares_bounds,
            micro_moments=micro_moments,
            micro_sample_covariances=micro_sample_covariances,
            resample_agent_data=resample_agent_data,
            demand_moment_types=demand_moment_types,
            supply_moment_types=supply_moment_types,
        )
        arguments.check_choice("method", method, ("1s", "2s"))
        bounds = {"sigma": sigma_bounds, "pi": pi_bounds, "beta": beta_bounds, "gamma": gamma_bounds}
        supports_bounds = getattr(optimization, "supports_bounds", True)
        data = self._read_supply_options(costs_bounds, covariance_moments_mean)
        step_options = arguments.read_step_options(
            parameters=self.read_parameters(sigma, pi, beta, gamma, bounds, supports_bounds),
            costs_bounded=data.supply is not None and bool(jnp.isfinite(data.supply.costs_bounds).any()),
            optimization=optimization,
            iteration=iteration,
            check_optimality=check_optimality,
            error_behavior=error_behavior,
            delta_behavior=delta_behavior,
            scale_objective=scale_objective,
            W_type=W_type,
            se_type=se_type,
            center_moments=center_moments,
            n_clusters=None if self.product_table.clustering_ids is None else self._clusters[1],
        )
        names, returned = step_options.parameters.parameter_labels, step_options.optimization.method == "return"
        check_order_condition(self.instrument_rank, len(names), names, warn=returned)
        steps = [(0, "return")] if initial_update else []
        steps += [(1, "")] + ([(2, "")] if method == "2s" else [])
        start_delta = self._read_delta(delta)
        weights = self._read_weights(W)
        theta = step_options.parameters.theta
        results: ProblemResults | None = None
        for step, kind in steps:
            began = time.perf_counter()
            current = step_options
            if kind == "return":
                current = dataclasses.replace(
                    step_options, optimization=Optimization("return"), check_optimality="gradient"
                )
            context = self._step_context(current, data, weights)
            options.output("")
            options.output(f"Starting GMM step {step} ...")
            outcome = solve_step(step, current, context, weights, theta, start_delta)
            interrupted = outcome.outcome.status is OptimizationStatus.INTERRUPTED
            last = interrupted or step == steps[-1][0]
            report_outcome(outcome, time.perf_counter() - began)
            warn_of_singularity(
                outcome,
                current.types,
                self._contributions(data, outcome),
                self.instrument_labels,
                current.parameters.theta_labels,
            )
            results = ProblemResults(self, results, outcome, current, estimated=last)
            weights, theta, start_delta = np.asarray(outcome.summary.updated_W), outcome.theta, outcome.delta
            if options.verbose:
                options.output(f"\n{results}")
            if interrupted:
                break
        assert results is not None
        return results

    def functions(
        self,
        sigma: Any = None,
        pi: Any = None,
        beta: Any = None,
        gamma: Any = None,
        *,
        W: Any = None,
        delta: Any = None,
        scale_objective: bool = True,
        iteration: Iteration | None = None,
        costs_bounds: Any = None,
        covariance_moments_mean: float = 0,
    ) -> ModelFunctions:
        """The model as compiled, differentiable functions of theta, for other optimisers and samplers.

        Parameters are those of `solve`: zeros fix elements of the parameters, W (M, M) is the weighting matrix (by
        default that of 2SLS) and `delta` (N,) is where inversions start (by default the logit solution).
        """
        parameters = self.read_parameters(sigma, pi, beta, gamma, {}, bounded=False)
        data = self._read_supply_options(costs_bounds, covariance_moments_mean)
        chosen = Iteration() if iteration is None else iteration
        specification = Specification(parameters.layout, chosen.fixed_point)
        factor = jnp.asarray(1.0 if scale_objective else 1.0 / self.N)
        weights = jnp.asarray(self._read_weights(W))
        inputs = estimator.prepare(
            specification, self.economy, data, parameters.start, weights, factor, chosen.limits
        )
        return ModelFunctions(
            specification=specification,
            inputs=inputs,
            characteristics=self.characteristics,
            start=jnp.asarray(self._read_delta(delta)),
            theta=jnp.asarray(parameters.theta),
            theta_labels=tuple(parameters.theta_labels),
        )

    def read_parameters(
        self, sigma: Any, pi: Any, beta: Any, gamma: Any, bounds: Mapping[str, Any], bounded: bool = True
    ) -> Parameters:
        """Starting values, bounds (by block) and layout of the parameters from arguments of `solve`.

        Without `bounded` there are no default bounds.
        """
        X2, X3 = self._X2, self._X3
        parameters = build_parameters(
            sigma=sigma,
            pi=pi,
            beta=beta,
            gamma=gamma,
            bounds=bounds,
            labels=Labels(
                X1=self._X1.labels,
                X2=() if X2 is None else X2.labels,
                X3=() if X3 is None else X3.labels,
                demographics=self.agents_in_economy.demographic_labels,
            ),
            n_node_columns=self.agent_table.nodes.shape[1],
            bounded=bounded,
        )
        if X3 is not None:
            arguments.check_price_coefficients(parameters.layout.concentrated_beta, self._X1)
        return parameters

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
        return build_agents(self.agent_formulation, agent_data, integration, self._index, shares, X2, weights_tol)

    def replace_instruments(
        self, demand_instruments: np.ndarray, supply_instruments: np.ndarray
    ) -> "OptimalInstrumentProblem":
        """The same problem with other excluded instruments, to which exogenous columns of X1 and X3 are added.

        Parameters
        ----------
        demand_instruments : (N, n) excluded demand-side instruments, before absorption of fixed effects.
        supply_instruments : (N, m) excluded supply-side instruments, or (N, 0) without a supply side.

        Raises
        ------
        ValueError
            When they are not finite matrices with N rows, or there are supply-side instruments without a supply side.

        Warns
        -----
        IdentificationWarning
            When instruments are collinear.
        """
        return self._derive(
            OptimalInstrumentProblem, lambda problem: problem._set_instruments(demand_instruments, supply_instruments)
        )

    def replace_agents(self, agent_data: Any) -> "ImportanceSamplingProblem":
        """The same problem with other agents, whose weights need not sum to one.

        Parameters
        ----------
        agent_data : as in `Problem`, with weights and nodes.

        Raises
        ------
        DataError
            When agents cannot be used, or a level of a categorical demographic is missing.
        """

        def change(problem: ImportanceSamplingProblem) -> None:
            problem.integration = None
            problem.agents_in_economy = self._build_agents(agent_data, None, np.inf)
            missing = set(self.agents_in_economy.demographic_labels) - set(problem.agents_in_economy.demographic_labels)
            if missing:
                raise DataError(
                    f"agent_data: a level of a categorical variable is missing, so there are no demographics "
                    f"{', '.join(map(repr, sorted(missing)))}. Draw more agents."
                )

        return self._derive(ImportanceSamplingProblem, change)

    def _derive(self, kind: "type[Derived]", change: Callable[["Derived"], None]) -> "Derived":
        """A problem that shares what `change` does not replace, without reading the data again."""
        began = time.perf_counter()
        options.output("Re-creating the problem ...")
        cached = {name for name, value in vars(Problem).items() if isinstance(value, cached_property)}
        problem = object.__new__(kind)
        vars(problem).update({name: value for name, value in vars(self).items() if name not in cached})
        change(problem)
        problem._tolerances = {name: getattr(options, name) for name in states.TOLERANCES}
        problem.model_data = problem._build_model_data()
        options.output(f"Re-created the problem after {report.format_seconds(time.perf_counter() - began)}.")
        if options.verbose:
            options.output(f"\n{problem}")
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

    def to_state(self) -> dict[str, Any]:
        """The problem as a tree of plain values, data included: what `ProblemResults.save` writes.

        Raises
        ------
        DataError
            When a column that is used holds objects that cannot be stored.
        """
        state = states.problem_state(
            states.ProblemArguments(
                product_formulations=self.product_formulations,
                products=self.product_table,
                agent_formulation=self.agent_formulation,
                agents=self.agent_table,
                integration=self.integration,
                costs_type=self.costs_type,
                add_exogenous=self.add_exogenous,
                tolerances=self._tolerances,
            )
        )
        names = ("demand_instruments", "supply_instruments") if self._replaced_instruments else ()
        return {
            **state,
            "kind": type(self).__name__,
            "instruments": {name: getattr(self.product_table, name) for name in names},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Problem":
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
        table = self.product_table
        if table.ownership is not None:
            return economy.unstack(jnp.asarray(np.nan_to_num(table.ownership)))
        return None if table.firm_ids is None else firm_ownership(economy, table.firm_ids)

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

    H = 0
    _replaced_instruments = False

    @property
    def unique_market_ids(self) -> np.ndarray:
        """Sorted market IDs."""
        return views.as_objects(self._index.ids)

    @cached_property
    def unique_firm_ids(self) -> np.ndarray:
        """Sorted firm IDs."""
        return views.unique_ids(self.product_table.firm_ids)

    @cached_property
    def unique_product_ids(self) -> np.ndarray:
        """Sorted product IDs (of the first column, if there are several)."""
        return views.unique_ids(self.product_table.product_ids)

    @cached_property
    def unique_agent_ids(self) -> np.ndarray:
        """Sorted agent IDs."""
        return views.unique_ids(self.agent_table.agent_ids)

    @property
    def unique_nesting_ids(self) -> np.ndarray:
        """Empty: there are no nests."""
        return np.array([], dtype=object)

    @cached_property
    def products(self) -> np.recarray:
        """Product data as a structured array of N rows, with residualised `X1` and `ZD`."""
        supply, covariance = self.model_data.supply, self.model_data.covariance
        none = np.zeros((self.N, 0))
        matrices = views.ProductMatrices(
            X1=np.asarray(self.model_data.demand.X),
            X2=none if self._X2 is None else self._X2.values,
            X3=none if supply is None else np.asarray(supply.equation.X),
            ZD=np.asarray(self.model_data.demand.instruments),
            ZS=none if supply is None else np.asarray(supply.equation.instruments),
            ZC=none if covariance is None else np.asarray(covariance.instruments),
            demand_ids=self._demand_absorber.ids,
            supply_ids=self._supply_absorber.ids[:, : self.ES],
        )
        designs = [design for design in (self._X1, self._X2, self._X3) if design is not None]
        columns = [column for design in designs for column in design.columns]
        return views.product_records(self.product_table, matrices, columns)

    @cached_property
    def agents(self) -> np.recarray:
        """Agent data as a structured array of I rows."""
        return views.agent_records(self.agent_table, self.agents_in_economy.demographics)

    def __str__(self) -> str:
        names = ["T", "N", "F", "I", "K1", "K2", "K3", "D", "MD", "MS", "MC", "ED", "ES"]
        kept = [name for name in names if self.K3 or name not in ("K3", "MS", "MC", "ES")]
        formulations = {
            "X1: Linear Characteristics": self._X1.labels,
            "X2: Nonlinear Characteristics": () if self._X2 is None else self._X2.labels,
            f"X3: {'Log ' if self.costs_type == 'log' else ''}Cost Characteristics": ()
            if self._X3 is None
            else self._X3.labels,
            "d: Demographics": self.agents_in_economy.demographic_labels,
        }
        return report.describe_problem({name: getattr(self, name) for name in kept}, formulations)

    __repr__ = __str__

    def _build_model_data(self) -> ModelData:
        """Equations of demand and supply, with costs unbounded and a mean of zero of the covariance moments."""
        table = self.product_table
        if self._X2 is not None:
            check_rank(self._X2.values, self._X2.labels, "X2", **self._rank_tolerances)
        demand_instruments = table.demand_instruments, table.demand_instrument_labels
        demand, labels, rank = self._build_equation(
            self._X1, "prices", ("X1", "ZD"), demand_instruments, self._demand_absorber
        )
        self.instrument_labels, self.instrument_rank = labels, rank
        if self._X3 is None:
            return ModelData(demand)
        supply_instruments = table.supply_instruments, table.supply_instrument_labels
        equation, labels, rank = self._build_equation(
            self._X3, "shares", ("X3", "ZS"), supply_instruments, self._supply_absorber
        )
        self.instrument_labels, self.instrument_rank = self.instrument_labels + labels, self.instrument_rank + rank
        X1_slope, X2_slope = self.characteristics.slopes("prices")
        assert self.ownership is not None
        supply = Supply(
            equation=equation,
            ownership=pack_firms(self.ownership),
            prices=jax.device_put(table.prices),
            X1_slope=X1_slope,
            X2=jax.device_put(np.zeros((self.N, 0)) if self._X2 is None else self._X2.values),
            X2_slope=X2_slope,
            costs_bounds=jax.device_put(np.array([-np.inf, np.inf])),
            logarithmic=self.costs_type == "log",
        )
        instruments = table.covariance_instruments
        if instruments.shape[1] == 0:
            return ModelData(demand, supply)
        labels = list(table.covariance_instrument_labels)
        self.instrument_labels = self.instrument_labels + labels
        self.instrument_rank += check_instruments(instruments, labels, "ZC", None, **self._rank_tolerances)
        covariance = CovarianceMoments(
            instruments=jax.device_put(instruments),
            mean=jax.device_put(np.array(0.0)),
            demand=build_projection(self._demand_absorber.ids),
            supply=build_projection(self._supply_absorber.ids),
        )
        return ModelData(demand, supply, covariance)

    @property
    def _rank_tolerances(self) -> dict[str, Any]:
        return {"atol": options.collinear_atol, "rtol": options.collinear_rtol}

    def _build_equation(
        self,
        X: DesignMatrix,
        endogenous: str,
        names: tuple[str, str],
        excluded: tuple[np.ndarray, Sequence[str]],
        absorber: Absorber,
    ) -> tuple[Equation, list[str], int]:
        """An equation with instruments [excluded, exogenous X], their labels, and how many are independent.

        Fixed effects are absorbed, and conditions on ranks are checked. `names` are those of X and of the instruments.
        """
        exogenous = [k for k, column in enumerate(X.columns) if not column.depends_on(endogenous)]
        added = exogenous if self.add_exogenous else []
        Z = np.c_[excluded[0], X.values[:, added]]
        labels = [*excluded[1], *(X.labels[k] for k in added)]
        unabsorbed = absorber.dimensions > 0
        residuals, Z_residuals = absorber.residualize(X.values), absorber.residualize(Z)
        check_rank(residuals, X.labels, names[0], X.values if unabsorbed else None, **self._rank_tolerances)
        instruments = Z_residuals if self.add_exogenous else Z
        original = Z if unabsorbed and self.add_exogenous else None
        rank = check_instruments(instruments, labels, names[1], original, **self._rank_tolerances)
        Z_device = jax.device_put(Z_residuals)
        equation = Equation(
            X=jax.device_put(residuals),
            X_unabsorbed=jax.device_put(X.values),
            Z=Z_device,
            instruments=Z_device if self.add_exogenous else jax.device_put(Z),
        )
        return equation, labels, rank

    def _read_supply_options(self, costs_bounds: Any, covariance_moments_mean: Any) -> ModelData:
        """Data of all moments with options of `solve` in place."""
        supply, covariance = self.model_data.supply, self.model_data.covariance
        bounds = arguments.read_costs_bounds(costs_bounds, supply is not None)
        mean = arguments.read_covariance_mean(covariance_moments_mean, covariance is not None)
        data = self.model_data
        if supply is not None:
            data = eqx.tree_at(lambda d: d.supply.costs_bounds, data, jax.device_put(bounds))
        if covariance is not None:
            data = eqx.tree_at(lambda d: d.covariance.mean, data, jax.device_put(np.array(mean)))
        return data

    def _contributions(self, data: ModelData, outcome: StepResult) -> np.ndarray:
        """(N, M) contributions of products to moments."""
        residuals = jax.device_get(data.residuals(*jax.device_put((outcome.xi, outcome.omega))))
        pairs = zip(data.weighted_instruments, residuals, strict=True)
        return np.hstack([np.asarray(instruments) * u[:, None] for instruments, u in pairs])

    @cached_property
    def _clusters(self) -> tuple[np.ndarray, int]:
        ids = self.product_table.clustering_ids
        if ids is None:
            return np.zeros(self.N, int), 1
        unique, codes = np.unique(ids.reshape(-1), return_inverse=True)
        return codes, unique.size

    @cached_property
    def _logit_delta(self) -> np.ndarray:
        """(N,) mean utilities of the plain logit, ``log S_j - log S_0`` (Berry 1994)."""
        shares, codes = self.product_table.shares, np.searchsorted(self._index.ids, self.product_table.market_ids)
        inside = np.bincount(codes, weights=shares)
        return np.log(shares) - np.log1p(-inside[codes])

    def _read_weights(self, W: Any) -> np.ndarray:
        if W is None:
            return np.asarray(estimator.initial_weights(self.model_data.weighted_instruments))
        return arguments.read_weights(W, self.MD + self.MS + self.MC)

    def _read_delta(self, delta: Any) -> np.ndarray:
        return self._logit_delta if delta is None else arguments.read_delta(delta, self.N)

    def _step_context(self, step_options: StepOptions, data: ModelData, weights: np.ndarray) -> StepContext:
        factor = jnp.asarray(1.0 if step_options.scale_objective else 1.0 / self.N)
        inputs = estimator.prepare(
            step_options.specification,
            self.economy,
            data,
            step_options.parameters.start,
            jnp.asarray(weights),
            factor,
            step_options.iteration.limits,
        )
        return StepContext(
            inputs,
            self._index.ids,
            self._clusters[0],
            self.residualize_demand,
            self.residualize_supply,
            self._logit_delta,
        )


class OptimalInstrumentProblem(Problem):
    """A problem with optimal excluded instruments, from `OptimalInstrumentResults.to_problem`, used like others."""


class ImportanceSamplingProblem(Problem):
    """A problem with sampled agents, from `ImportanceSamplingResults.to_problem`, used like others."""


Derived = TypeVar("Derived", bound=Problem)
