"""Problem: data and formulations in, results out. Orchestration only."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from blpjax import estimator, gmm, options, report, states
from blpjax.characteristics import Characteristics
from blpjax.economy import AgentsInEconomy, Economy, MarketIndex, build_economy, index_markets
from blpjax.exceptions import ConvergenceWarning, IdentificationWarning
from blpjax.functions import ModelFunctions
from blpjax.inputs.absorb import build_absorber
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import (
    check_endogenous,
    check_instruments,
    check_order_condition,
    check_rank,
    find_collinearity,
)
from blpjax.inputs.integration import Integration
from blpjax.inputs.tables import AgentTable, read_agents, read_products
from blpjax.iteration import Iteration
from blpjax.moments import DemandData, Specification
from blpjax.optimize import Optimization
from blpjax.parameters import Parameters, build_parameters
from blpjax.results import ProblemResults
from blpjax.solver import StepContext, StepOptions, StepResult, solve_step


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
        Whether to add the columns of X1 that do not contain prices to the instruments. If false, `demand_instruments` are
        all instruments, and fixed effects have to be absorbed from them beforehand (`build_matrix` does that).

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
        X1_formulation, X2_formulation = _read_formulations(product_formulations, agent_formulation)
        _refuse_model_options(X2_formulation, rc_types, epsilon_scale, costs_type)
        self.product_formulations: list[Formulation | None] = [X1_formulation, X2_formulation, None]
        self.agent_formulation = agent_formulation
        self.integration = integration
        self.add_exogenous = bool(add_exogenous)
        self.rc_types = None if X2_formulation is None else ["linear"]
        self.epsilon_scale = 1.0
        self.costs_type = "linear"
        self._tolerances = {name: getattr(options, name) for name in states.TOLERANCES}

        self.product_table = read_products(product_data)
        self._X1 = X1_formulation.build(self.product_table.data)
        self._X2 = None if X2_formulation is None else X2_formulation.build(self.product_table.data)
        check_endogenous(self._X1, self._X2)
        self._absorber = build_absorber(X1_formulation, self.product_table.data)
        self._index = index_markets(self.product_table.market_ids)
        self.demand_data = self._build_demand_data()
        self.agents_in_economy = self.build_agents(agent_data, integration)
        options.output(f"Initialized the problem after {report.format_seconds(time.perf_counter() - began)}.")
        options.output("")
        options.output(str(self))

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
        delta_behavior: str = "first",
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
        delta_behavior : {'first', 'logit', 'last'}
            Where inversions start: at `delta` (or the last GMM step's solution), at the logit solution, or at the last
            solution.
        iteration : Iteration, optional
            By default ``Iteration('anderson', {'atol': 1e-13})``.
        W : (MD, MD) array, optional
            Initial weighting matrix, by default that of 2SLS.
        center_moments, W_type, se_type
            Whether moments are centred, and the type of W and of standard errors: ``'robust'``, ``'clustered'`` or
            ``'unadjusted'``.
        rho, gamma, rho_bounds, gamma_bounds, finite_differences, error_punishment, fp_type, shares_bounds, costs_bounds, \
        covariance_moments_mean, micro_moments, micro_sample_covariances, resample_agent_data, phi, phi_bounds, \
        demand_moment_types, supply_moment_types
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
        _refuse_solve_options(
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
            micro_moments=tuple(micro_moments),
            micro_sample_covariances=micro_sample_covariances,
            resample_agent_data=resample_agent_data,
            demand_moment_types=demand_moment_types,
            supply_moment_types=supply_moment_types,
        )
        step_options = self._read_step_options(
            parameters=self.read_parameters(sigma, pi, beta, sigma_bounds, pi_bounds, beta_bounds),
            optimization=optimization,
            iteration=iteration,
            check_optimality=check_optimality,
            error_behavior=error_behavior,
            delta_behavior=delta_behavior,
            scale_objective=scale_objective,
            W_type=W_type,
            se_type=se_type,
            center_moments=center_moments,
        )
        _check_choice("method", method, ("1s", "2s"))
        steps = [(0, "return")] if initial_update else []
        steps += [(1, "")] + ([(2, "")] if method == "2s" else [])
        weights = self._read_weights(W)
        start_delta = self._read_delta(delta)
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
            last = step == steps[-1][0]
            outcome = solve_step(step, max(step, 1), current, context, weights, theta, start_delta)
            _report_outcome(outcome, time.perf_counter() - began)
            self._warn_of_singularity(outcome, current)
            results = ProblemResults(self, results, outcome, current, estimated=last)
            weights, theta, start_delta = outcome.summary.updated_W, outcome.theta, outcome.delta
            options.output("")
            options.output(str(results))
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

        Parameters are those of `solve`: zeros fix elements of `sigma`, `pi` and `beta`, W (MD, MD) is the weighting matrix
        (by default that of 2SLS) and `delta` (N,) is where inversions start (by default the logit solution).
        """
        parameters = self.read_parameters(sigma, pi, beta, None, None, None)
        chosen = Iteration() if iteration is None else iteration
        specification = Specification(parameters.layout, chosen.fixed_point)
        scale = jnp.asarray(np.sqrt(self.N) if scale_objective else 1.0)
        weights = jnp.asarray(self._read_weights(W))
        inputs = estimator.prepare(
            specification, self.economy, self.demand_data, parameters.start, weights, scale, chosen.limits
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
        self, sigma: Any, pi: Any, beta: Any, sigma_bounds: Any, pi_bounds: Any, beta_bounds: Any
    ) -> Parameters:
        """Starting values, bounds and layout of the parameters from arguments of `solve`."""
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
        demographics, labels = np.zeros((agents.weights.size, 0)), ()
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
        arguments = states.read_problem(state)
        with states.built_again(state):
            problem = cls(**arguments)
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
        variables = {key: jnp.asarray(values) for key, values in inputs.items()}
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
        return self._index.ids

    @cached_property
    def unique_firm_ids(self) -> np.ndarray:
        """Sorted firm IDs."""
        return _unique(self.product_table.firm_ids)

    @cached_property
    def unique_product_ids(self) -> np.ndarray:
        """Sorted product IDs (of the first column, if there are several)."""
        return _unique(self.product_table.product_ids)

    @cached_property
    def unique_agent_ids(self) -> np.ndarray:
        """Sorted agent IDs."""
        return _unique(self.agent_table.agent_ids)

    @property
    def unique_nesting_ids(self) -> np.ndarray:
        """Empty: there are no nests."""
        return np.array([], dtype=object)

    @cached_property
    def products(self) -> np.recarray:
        """Product data as a structured array of N rows, with residualised `X1` and `ZD`."""
        table = self.product_table
        fields = {
            "market_ids": table.market_ids,
            "firm_ids": table.firm_ids,
            "product_ids": table.product_ids,
            "clustering_ids": table.clustering_ids,
            "shares": table.shares,
            "prices": table.prices,
            "X1": np.asarray(self.demand_data.X1),
            "X2": np.zeros((self.N, 0)) if self._X2 is None else self._X2.values,
            "ZD": np.asarray(self.demand_data.instruments),
        }
        used = {name for matrix in (self._X1, self._X2) if matrix is not None for c in matrix.columns for name in c.names}
        fields |= {name: table.data[name] for name in sorted(used - set(fields))}
        return _structured(fields, self.N)

    @cached_property
    def agents(self) -> np.recarray:
        """Agent data as a structured array of I rows."""
        table = self.agent_table
        fields = {
            "market_ids": table.market_ids,
            "agent_ids": table.agent_ids,
            "weights": table.weights,
            "nodes": table.nodes,
            "demographics": self.agents_in_economy.demographics,
        }
        return _structured(fields, table.weights.size)

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
        tolerances = {"atol": options.collinear_atol, "rtol": options.collinear_rtol}
        check_rank(X1_residuals, X1.labels, "X1", X1.values if unabsorbed else None, **tolerances)
        if self._X2 is not None:
            check_rank(self._X2.values, self._X2.labels, "X2", **tolerances)
        instruments = Z_residuals if self.add_exogenous else Z
        self.instrument_labels = labels
        self.instrument_rank = check_instruments(
            instruments, labels, "ZD", Z if unabsorbed and self.add_exogenous else None, **tolerances
        )
        Z_device = jnp.asarray(Z_residuals)
        return DemandData(jnp.asarray(X1_residuals), Z_device, Z_device if self.add_exogenous else jnp.asarray(Z))

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

    def _read_step_options(
        self,
        *,
        optimization: Any,
        iteration: Any,
        W_type: str,
        se_type: str,
        center_moments: bool,
        scale_objective: bool,
        **choices: Any,
    ) -> StepOptions:
        _check_choice("check_optimality", choices["check_optimality"], ("gradient", "both"))
        _check_choice("delta_behavior", choices["delta_behavior"], ("first", "logit", "last"))
        if choices["error_behavior"] in ("revert", "punish"):
            raise NotImplementedError(
                f"error_behavior='{choices['error_behavior']}' is not supported: a failed evaluation is never accepted. Use "
                "None, the default, or 'raise'."
            )
        _check_choice("error_behavior", choices["error_behavior"], (None, "raise"))
        for name, value, kind in (("optimization", optimization, Optimization), ("iteration", iteration, Iteration)):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} must be {kind.__name__} or None, not {type(value).__name__}.")
        for name, kind in (("W_type", W_type), ("se_type", se_type)):
            gmm.check_kind(kind, name)
            if kind == "clustered" and self.product_table.clustering_ids is None:
                raise ValueError(f"{name}='clustered' needs a column 'clustering_ids' in product_data.")
        result = StepOptions(
            optimization=Optimization("trust-region") if optimization is None else optimization,
            iteration=Iteration() if iteration is None else iteration,
            types=estimator.CovarianceTypes(W_type, se_type, bool(center_moments), self._clusters[1]),
            scale_objective=bool(scale_objective),
            **choices,
        )
        names = result.parameters.parameter_labels
        returned = result.optimization.method == "return"
        check_order_condition(self.instrument_rank, len(names), names, warn=returned)
        return result

    def _warn_of_singularity(self, result: StepResult, step_options: StepOptions) -> None:
        """Warn when W, standard errors, or the estimates themselves rest on a singular matrix."""
        summary, xi = result.summary, result.xi
        if not np.isfinite(summary.moments_covariances).all():
            return
        if summary.covariances_rank < self.MD:
            found = find_collinearity(np.asarray(self.demand_data.instruments) * xi[:, None])
            named = ", ".join(repr(self.instrument_labels[group[0]]) for group in found.groups)
            clusters = step_options.types.n_clusters
            few = step_options.types.W_type == "clustered" and clusters is not None and clusters < self.MD
            reason = f"there are only {clusters} clusters" if few else f"collinear moments: {named or 'nearly all'}"
            warnings.warn(
                f"The covariances of the {self.MD} moments have rank {summary.covariances_rank} ({reason}), so a "
                "pseudo-inverse was used for the updated weighting matrix. Consider fewer instruments.",
                IdentificationWarning,
                stacklevel=3,
            )
        if summary.inference.rank < summary.parameters.size:
            warnings.warn(
                f"The Jacobian of the moments has rank {summary.inference.rank} at the estimates, but there are "
                f"{summary.parameters.size} parameters, so not all of them are identified and standard errors mean nothing. "
                "Consider more instruments or fewer parameters.",
                IdentificationWarning,
                stacklevel=3,
            )

    def _read_weights(self, W: Any) -> np.ndarray:
        if W is None:
            return np.asarray(estimator.initial_weights(self.demand_data.instruments))
        array = np.array(W, dtype=float)
        if array.shape != (self.MD, self.MD):
            raise ValueError(f"W must have the shape {(self.MD, self.MD)}, not {array.shape}.")
        if not np.isfinite(array).all():
            raise ValueError("W must be finite.")
        tolerance = options.psd_atol + options.psd_rtol * np.abs(array)
        if (np.abs(array - array.T) > tolerance).any():
            raise ValueError("W must be symmetric.")
        scale = np.sqrt(np.maximum(np.diag(array), np.finfo(float).tiny))
        if np.linalg.eigvalsh(array / np.outer(scale, scale)).min(initial=0.0) < -1e-6:
            raise ValueError("W must be positive semidefinite.")
        return (array + array.T) / 2

    def _read_delta(self, delta: Any) -> np.ndarray:
        if delta is None:
            return self._logit_delta
        array = np.array(delta, dtype=float).reshape(-1)
        if array.size != self.N or not np.isfinite(array).all():
            raise ValueError(f"delta must hold {self.N} finite numbers, one for each product.")
        return array

    def _step_context(self, step_options: StepOptions, weights: np.ndarray) -> StepContext:
        scale = jnp.asarray(np.sqrt(self.N) if step_options.scale_objective else 1.0)
        inputs = estimator.prepare(
            step_options.specification,
            self.economy,
            self.demand_data,
            step_options.parameters.start,
            jnp.asarray(weights),
            scale,
            step_options.iteration.limits,
        )
        return StepContext(inputs, self._index.ids, self._clusters[0], self.residualize, self._logit_delta)


def _read_formulations(product_formulations: Any, agent_formulation: Any) -> tuple[Formulation, Formulation | None]:
    given = [product_formulations] if isinstance(product_formulations, Formulation) else product_formulations
    if not isinstance(given, Sequence) or not 1 <= len(given) <= 3 or not isinstance(given[0], Formulation):
        raise TypeError("product_formulations must be a Formulation or a sequence of one to three Formulations.")
    if any(f is not None and not isinstance(f, Formulation) for f in (*given, agent_formulation)):
        raise TypeError("product_formulations and agent_formulation must be Formulation instances or None.")
    if len(given) == 3 and given[2] is not None:
        raise NotImplementedError(
            "A third formulation (X3) asks for a supply side, which is not implemented yet. Give one or two formulations to "
            "estimate demand alone."
        )
    X2 = given[1] if len(given) > 1 else None
    if X2 is not None and X2.absorb is not None:
        raise ValueError("Fixed effects can be absorbed from X1, but not from X2. Remove absorb from the second formulation.")
    if agent_formulation is not None and agent_formulation.absorb is not None:
        raise ValueError("Fixed effects cannot be absorbed from demographics. Remove absorb from agent_formulation.")
    return given[0], X2


def _refuse_model_options(X2: Formulation | None, rc_types: Any, epsilon_scale: float, costs_type: str) -> None:
    if rc_types is not None and any(kind != "linear" for kind in rc_types):
        raise NotImplementedError("rc_types other than 'linear' are not implemented yet. Leave rc_types out.")
    if epsilon_scale != 1:
        raise NotImplementedError("epsilon_scale other than 1 is not implemented yet. Leave it out.")
    if costs_type != "linear":
        raise NotImplementedError("costs_type needs a supply side, which is not implemented yet. Leave it out.")


_UNSUPPORTED = {
    "rho": (None, "nested logit is not implemented yet"),
    "rho_bounds": (None, "nested logit is not implemented yet"),
    "gamma": (None, "a supply side is not implemented yet"),
    "gamma_bounds": (None, "a supply side is not implemented yet"),
    "costs_bounds": (None, "a supply side is not implemented yet"),
    "phi": (None, "dynamic moments are not implemented"),
    "phi_bounds": (None, "dynamic moments are not implemented"),
    "demand_moment_types": ("levels", "only moments in levels are implemented"),
    "supply_moment_types": ("levels", "only moments in levels are implemented"),
    "finite_differences": (False, "derivatives are always exact"),
    "error_punishment": (1, "failed evaluations are never accepted"),
    "fp_type": ("safe_linear", "the contraction is always protected against overflow"),
    "shares_bounds": ((1e-300, None), "simulated shares are always bounded from below by 1e-300"),
    "covariance_moments_mean": (0, "covariance moments are not implemented yet"),
    "micro_moments": ((), "micro moments are not implemented yet"),
    "micro_sample_covariances": (None, "micro moments are not implemented yet"),
    "resample_agent_data": (None, "simulation error in covariances is not implemented yet"),
}


def _refuse_solve_options(**given: Any) -> None:
    for name, value in given.items():
        default, reason = _UNSUPPORTED[name]
        same = value is default or (not isinstance(value, np.ndarray) and value == default)
        if not same:
            raise NotImplementedError(f"{name} is not supported: {reason}. Leave it out.")


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, not {value!r}.")


def _report_outcome(result: StepResult, seconds: float) -> None:
    outcome = result.outcome
    took = report.format_seconds(seconds)
    options.output("")
    if outcome.converged and not result.failed_markets:
        options.output(f"GMM step {result.step} completed after {took}.")
        return
    text = f"GMM step {result.step} did not converge: {outcome.message}"
    if result.failed_markets:
        text += f" At the returned parameters the inversion of market shares {result.failed_markets}."
    options.output(f"{text} ({took})")
    warnings.warn(text, ConvergenceWarning, stacklevel=3)


def _unique(ids: np.ndarray | None) -> np.ndarray:
    if ids is None:
        return np.array([], dtype=object)
    return np.unique(ids if ids.ndim == 1 else ids[:, 0])


def _structured(fields: Mapping[str, np.ndarray | None], rows: int) -> np.recarray:
    """A record array whose fields are matrices (rows, k); fields that are None have no columns."""
    matrices = {}
    for name, values in fields.items():
        array = np.zeros((rows, 0), dtype=object) if values is None else np.asarray(values)
        array = array.reshape(rows, -1) if array.size or values is not None else array
        matrices[name] = array if np.issubdtype(array.dtype, np.number) else array.astype(object)
    records = np.recarray(rows, dtype=[(name, m.dtype, (m.shape[1],)) for name, m in matrices.items()])
    for name, matrix in matrices.items():
        records[name] = matrix
    return records
