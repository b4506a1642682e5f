"""Problem: data and formulations in, results out. Orchestration only."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blpjax import arguments, estimator, options, report, states, views
from blpjax.characteristics import Characteristics
from blpjax.diagnostics import report_outcome, warn_of_singularity
from blpjax.economy import AgentsInEconomy, Economy, MarketIndex, build_economy, index_markets
from blpjax.functions import ModelFunctions
from blpjax.inputs.absorb import build_absorber
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import (
    check_endogenous,
    check_instruments,
    check_order_condition,
    check_rank,
)
from blpjax.inputs.integration import Integration
from blpjax.inputs.tables import AgentTable, read_agents, read_products
from blpjax.iteration import Iteration
from blpjax.moments import DemandData, Specification
from blpjax.optimize import Optimization, OptimizationStatus
from blpjax.parameters import Parameters, build_parameters
from blpjax.results import ProblemResults
from blpjax.solver import StepContext, StepOptions, solve_step


class Problem:
    """A BLP demand estimation problem.

    Parameters
    ----------
    product_formulations : Formulation or sequence of up to two Formulations
        X1, linear characteristics (with any absorbed fixed effects), and X2, characteristics with random coefficients.
        Without X2 this is the plain logit.
    product_data : DataFrame, dict of arrays, or structured array
        N rows. Required: `market_ids`, `shares` (in (0, 1), summing to less than one in every market) and `prices`.
        Optional: `demand_instruments0`, `demand_instruments1`, ... or a matrix `demand_instruments`, `firm_ids`,
        `product_ids`, `clustering_ids`, and whatever the formulas name.
    agent_formulation : Formulation, optional
        Demographics d.
    agent_data : DataFrame, dict of arrays, or structured array, optional
        Rows are agents. `market_ids`, `weights` and `nodes0`, `nodes1`, ... (or a matrix `nodes`), and demographics.
    integration : Integration, optional
        Builds nodes and weights, instead of those of `agent_data`.
    rc_types, epsilon_scale, costs_type :
        Only the defaults are supported: linear random coefficients, no scaling, linear costs.
    add_exogenous : bool, optional
        Whether to add the columns of X1 that do not contain prices to the instruments. If false, `demand_instruments`
        are all instruments, and fixed effects have to be absorbed from them beforehand (`build_matrix` does that).

    Attributes
    ----------
    T, N, F, I : numbers of markets, products in all markets, firms and agents.
    K1, K2, D, MD, ED : numbers of columns of X1, X2, demographics and instruments, and of absorbed dimensions.
    K3, MS, ES, MC, H : zero: there is no supply side and there are no nests.
    unique_market_ids, unique_firm_ids, unique_product_ids, unique_agent_ids, unique_nesting_ids : sorted IDs.
    products, agents : structured arrays of the data, with fields such as `X1`, `X2`, `ZD`, `shares`, `nodes`.

    Raises
    ------
    DataError
        When a table cannot be used; the message names table, column, market and row.
    IdentificationError
        When X1 or X2 is rank-deficient, or prices are in neither.
    NotImplementedError
        For a supply side (X3), nests, and options that are not supported yet.
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
        X1_formulation, X2_formulation = arguments.read_formulations(product_formulations, agent_formulation)
        arguments.refuse_model_options(rc_types, epsilon_scale, costs_type)
        self.product_formulations: list[Formulation | None] = [X1_formulation, X2_formulation, None]
        self.agent_formulation = agent_formulation
        self.integration = integration
        self.add_exogenous = bool(add_exogenous)
        self.rc_types: list[str] = []
        self.epsilon_scale = 1.0
        self.costs_type = "linear"
        self._tolerances = {name: getattr(options, name) for name in states.TOLERANCES}

        self.product_table = read_products(product_data)
        self._X1 = X1_formulation.build(self.product_table.data)
        self._X2 = None if X2_formulation is None else X2_formulation.build(self.product_table.data)
        self.rc_types = ["linear"] * self.K2
        check_endogenous(self._X1, self._X2)
        self._absorber = build_absorber(X1_formulation, self.product_table.data)
        self._index = index_markets(self.product_table.market_ids)
        self.demand_data = self._build_demand_data()
        self.agents_in_economy = self.build_agents(agent_data, integration)
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
        sigma_bounds, pi_bounds, beta_bounds : pairs of arrays, optional
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
            Whether to compute the (exact) Hessian too.
        error_behavior : {None, 'raise'}
            A failed evaluation is by default NaN and never accepted; ``'raise'`` raises `ConvergenceError` at once.
        delta_behavior : {None, 'predicted', 'first', 'logit', 'last'}
            Where inversions start: at the first-order prediction from the best evaluation so far, at `delta` (or the
            last GMM step's solution), at the logit solution, or at the last solution. None is ``'predicted'`` for the
            default optimiser and ``'first'`` for others. Solutions are the same up to the tolerance of `iteration`.
        iteration : Iteration, optional
            By default ``Iteration('anderson', {'atol': 1e-13})``.
        W : (MD, MD) array, optional
            Initial weighting matrix, by default that of 2SLS.
        center_moments, W_type, se_type
            Whether moments are centred, and the type of W and of standard errors: ``'robust'``, ``'clustered'`` or
            ``'unadjusted'``.
        rho, gamma, rho_bounds, gamma_bounds, finite_differences, error_punishment, fp_type, shares_bounds, \
        costs_bounds, covariance_moments_mean, micro_moments, micro_sample_covariances, resample_agent_data, phi, \
        phi_bounds, demand_moment_types, supply_moment_types
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
            gamma=gamma,
            rho_bounds=rho_bounds,
            gamma_bounds=gamma_bounds,
            phi=phi,
            phi_bounds=phi_bounds,
            finite_differences=finite_differences,
            error_punishment=error_punishment,
            fp_type=fp_type,
            shares_bounds=shares_bounds,
            costs_bounds=costs_bounds,
            covariance_moments_mean=covariance_moments_mean,
            micro_moments=micro_moments,
            micro_sample_covariances=micro_sample_covariances,
            resample_agent_data=resample_agent_data,
            demand_moment_types=demand_moment_types,
            supply_moment_types=supply_moment_types,
        )
        arguments.check_choice("method", method, ("1s", "2s"))
        step_options = arguments.read_step_options(
            parameters=self.read_parameters(
                sigma, pi, beta, sigma_bounds, pi_bounds, beta_bounds, getattr(optimization, "supports_bounds", True)
            ),
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
                current = dataclasses.replace(step_options, optimization=Optimization("return"))
            context = self._step_context(current, weights)
            options.output("")
            options.output(f"Starting GMM step {step} ...")
            outcome = solve_step(step, current, context, weights, theta, start_delta)
            interrupted = outcome.outcome.status is OptimizationStatus.INTERRUPTED
            last = interrupted or step == steps[-1][0]
            report_outcome(outcome, time.perf_counter() - began)
            warn_of_singularity(
                outcome,
                current.types,
                np.asarray(self.demand_data.instruments),
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
        *,
        W: Any = None,
        delta: Any = None,
        scale_objective: bool = True,
        iteration: Iteration | None = None,
    ) -> ModelFunctions:
        """The model as compiled, differentiable functions of theta, for other optimisers and samplers.

        Parameters are those of `solve`: zeros fix elements of `sigma`, `pi` and `beta`, W (MD, MD) is the weighting
        matrix (by default that of 2SLS) and `delta` (N,) is where inversions start (by default the logit solution).
        """
        parameters = self.read_parameters(sigma, pi, beta, bounded=False)
        chosen = Iteration() if iteration is None else iteration
        specification = Specification(parameters.layout, chosen.fixed_point)
        factor = jnp.asarray(1.0 if scale_objective else 1.0 / self.N)
        weights = jnp.asarray(self._read_weights(W))
        inputs = estimator.prepare(
            specification, self.economy, self.demand_data, parameters.start, weights, factor, chosen.limits
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
        self,
        sigma: Any,
        pi: Any,
        beta: Any,
        sigma_bounds: Any = None,
        pi_bounds: Any = None,
        beta_bounds: Any = None,
        bounded: bool = True,
    ) -> Parameters:
        """Starting values, bounds and layout of the parameters from arguments of `solve`.

        Without `bounded` there are no default bounds.
        """
        return build_parameters(
            sigma=sigma,
            pi=pi,
            beta=beta,
            sigma_bounds=sigma_bounds,
            pi_bounds=pi_bounds,
            beta_bounds=beta_bounds,
            X1_labels=self._X1.labels,
            X2_labels=() if self._X2 is None else self._X2.labels,
            demographic_labels=self.agents_in_economy.demographic_labels,
            n_node_columns=self.agent_table.nodes.shape[1],
            bounded=bounded,
        )

    def residualize(self, matrix: np.ndarray) -> np.ndarray:
        """Residuals (N, K) of the columns of a matrix on the absorbed fixed effects; the matrix itself without any."""
        return self._absorber.residualize(matrix)

    def build_agents(self, agent_data: Any = None, integration: Integration | None = None) -> AgentsInEconomy:
        """The economy with these agents, for evaluating the same model with other nodes, weights or demographics."""
        formulation = self.agent_formulation
        table = self.product_table
        names = None if formulation is None else formulation.names
        agents = read_agents(agent_data, integration, self.K2, table.market_ids, names, options.weights_tol)
        labels: tuple[str, ...] = ()
        demographics = np.zeros((agents.weights.size, 0))
        if formulation is not None:
            design = formulation.build(agents.data, "agent_data")
            demographics, labels = design.values if agents.rows is None else design.values[agents.rows], design.labels
        index = index_markets(agents.market_ids)
        economy = build_economy(
            self._index,
            index,
            shares=table.shares,
            X2=np.zeros((self.N, 0)) if self._X2 is None else self._X2.values,
            weights=agents.weights,
            nodes=agents.nodes,
            demographics=demographics,
        )
        return AgentsInEconomy(agents, demographics, labels, economy, tuple(rows.size for rows in index.rows))

    def to_state(self) -> dict[str, Any]:
        """The problem as a tree of plain values, data included: what `ProblemResults.save` writes.

        Raises
        ------
        DataError
            When a column that is used holds objects that cannot be stored.
        """
        X1, X2, _ = self.product_formulations
        assert X1 is not None
        return states.problem_state(
            states.ProblemArguments(
                product_formulations=(X1, X2),
                products=self.product_table,
                agent_formulation=self.agent_formulation,
                agents=self.agent_table,
                integration=self.integration,
                add_exogenous=self.add_exogenous,
                tolerances=self._tolerances,
            )
        )

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Problem":
        """Build the problem that `to_state` described, with the same agents, without messages."""
        with states.built_again(state):
            problem = cls(**states.read_problem(state))
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
    def market_index(self) -> MarketIndex:
        """Sorted market IDs, and the rows of each market in the product table."""
        return self._index

    @cached_property
    def characteristics(self) -> Characteristics:
        """X1 and X2 as functions of the variables in their formulas."""
        X2 = self._X2
        inputs = {**self._X1.inputs, **({} if X2 is None else X2.inputs), "prices": self.product_table.prices}
        variables = {key: jax.device_put(values) for key, values in inputs.items()}
        return Characteristics(self._X1.columns, () if X2 is None else X2.columns, variables)

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
    def MD(self) -> int:
        """Number of instruments."""
        return self.demand_data.Z.shape[1]

    @property
    def ED(self) -> int:
        """Number of absorbed dimensions of fixed effects."""
        return self._absorber.dimensions

    K3 = MS = MC = ES = H = 0

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
        X2 = self._X2
        matrices = views.ProductMatrices(
            X1=np.asarray(self.demand_data.X1),
            X2=np.zeros((self.N, 0)) if X2 is None else X2.values,
            ZD=np.asarray(self.demand_data.instruments),
            demand_ids=self._absorber.ids,
        )
        columns = (*self._X1.columns, *(() if X2 is None else X2.columns))
        return views.product_records(self.product_table, matrices, columns)

    @cached_property
    def agents(self) -> np.recarray:
        """Agent data as a structured array of I rows."""
        return views.agent_records(self.agent_table, self.agents_in_economy.demographics)

    def __str__(self) -> str:
        dimensions = {name: getattr(self, name) for name in ("T", "N", "F", "I", "K1", "K2", "D", "MD", "ED")}
        formulations = {
            "X1: Linear Characteristics": self._X1.labels,
            "X2: Nonlinear Characteristics": () if self._X2 is None else self._X2.labels,
            "d: Demographics": self.agents_in_economy.demographic_labels,
        }
        return report.describe_problem(dimensions, formulations)

    __repr__ = __str__

    def _build_demand_data(self) -> DemandData:
        """Instruments [excluded, exogenous X1], and absorption of fixed effects, with their rank conditions."""
        table, X1 = self.product_table, self._X1
        exogenous = [k for k, column in enumerate(X1.columns) if not column.depends_on("prices")]
        added = exogenous if self.add_exogenous else []
        Z = np.c_[table.demand_instruments, X1.values[:, added]]
        labels = [*table.demand_instrument_labels, *(X1.labels[k] for k in added)]
        unabsorbed = self.ED > 0
        X1_residuals, Z_residuals = self.residualize(X1.values), self.residualize(Z)
        tolerances: dict[str, Any] = {"atol": options.collinear_atol, "rtol": options.collinear_rtol}
        check_rank(X1_residuals, X1.labels, "X1", X1.values if unabsorbed else None, **tolerances)
        if self._X2 is not None:
            check_rank(self._X2.values, self._X2.labels, "X2", **tolerances)
        instruments = Z_residuals if self.add_exogenous else Z
        self.instrument_labels = labels
        self.instrument_rank = check_instruments(
            instruments, labels, "ZD", Z if unabsorbed and self.add_exogenous else None, **tolerances
        )
        Z_device = jax.device_put(Z_residuals)
        return DemandData(
            X1=jax.device_put(X1_residuals),
            X1_unabsorbed=jax.device_put(X1.values),
            Z=Z_device,
            instruments=Z_device if self.add_exogenous else jax.device_put(Z),
        )

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
            return np.asarray(estimator.initial_weights(self.demand_data.instruments))
        return arguments.read_weights(W, self.MD)

    def _read_delta(self, delta: Any) -> np.ndarray:
        return self._logit_delta if delta is None else arguments.read_delta(delta, self.N)

    def _step_context(self, step_options: StepOptions, weights: np.ndarray) -> StepContext:
        factor = jnp.asarray(1.0 if step_options.scale_objective else 1.0 / self.N)
        inputs = estimator.prepare(
            step_options.specification,
            self.economy,
            self.demand_data,
            step_options.parameters.start,
            jnp.asarray(weights),
            factor,
            step_options.iteration.limits,
        )
        return StepContext(inputs, self._index.ids, self._clusters[0], self.residualize, self._logit_delta)
