"""ProblemResults: estimates, covariances and diagnostics, and what they imply."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from blpjax import gmm, outputs, report, storage
from blpjax.exceptions import raise_for_status, succeeded
from blpjax.characteristics import Characteristics
from blpjax.economy import AgentsInEconomy, Economy, MarketIndex
from blpjax.inputs.integration import Integration
from blpjax.inputs.tables import ProductTable
from blpjax.iteration import Iteration
from blpjax.markets import invert_economy, market_tastes
from blpjax.outputs import Demand
from blpjax.parameters import Coefficients
from blpjax.solver import StepOptions, StepResult, has_finite_bounds, project_gradient, usable_bounds
from blpjax.states import Step, read_step, step_state

Array = np.ndarray


class ProblemLike(Protocol):
    """What results need of a problem."""

    product_table: ProductTable
    agents_in_economy: AgentsInEconomy
    N: int
    T: int
    ED: int
    X1: np.ndarray
    unique_market_ids: np.ndarray
    market_index: MarketIndex
    characteristics: Characteristics
    economy: Economy

    def build_agents(self, agent_data: Any, integration: Integration | None) -> AgentsInEconomy:
        """The same economy with other agents."""

    def to_state(self) -> dict[str, Any]:
        """The problem as a tree of plain values."""


class ProblemResults:
    """Results of one GMM step of `Problem.solve`, the last of them with standard errors.

    Arrays have PyBLP's shapes and row order: vectors over products are (N, 1) in the order of the product table, P is the
    number of elements of theta, Q that of theta and the concentrated elements of beta.

    Attributes
    ----------
    problem : the `Problem`.
    last_results : results of the previous GMM step, or None.
    step : number of the GMM step.
    theta (P,), parameters (Q, 1) : estimates; `theta_labels`, `parameter_labels` name them.
    sigma (K2, K2), pi (K2, D), beta (K1, 1) : estimates as matrices, and `sigma_squared` = sigma sigma'.
    sigma_se, sigma_squared_se, pi_se, beta_se : standard errors, NaN for fixed elements and before the last step.
    parameter_covariances (Q, Q) : covariances of sqrt(N) times the estimation error.
    parameter_sensitivity (Q, MD) : sensitivity to moments (Andrews, Gentzkow and Shapiro 2017).
    delta, xi, xi_fe (N, 1) : mean utilities, structural errors, and fixed effects (with any that are absorbed).
    objective : float. moments (MD, 1), moments_jacobian (MD, Q), moments_covariances (MD, MD).
    xi_by_theta_jacobian (N, P) : neither residualised nor projected.
    gradient, projected_gradient (P, 1), projected_gradient_norm.
    hessian, reduced_hessian (P, P), reduced_hessian_eigenvalues (P,) : exact, NaN with ``check_optimality='gradient'``.
    W, updated_W (MD, MD) : weighting matrices.
    converged, cumulative_converged : whether optimisation converged, in this step and in all.
    optimization_iterations, objective_evaluations, optimization_time, total_time : and each with ``cumulative_``.
    fp_converged, fp_iterations, contraction_evaluations (T, evaluations) : the inversion of shares by market, in the order of
        `Problem.unique_market_ids`, and objective evaluation; and each with ``cumulative_``. `fp_residuals` has the final
        residuals.
    """

    def __init__(
        self,
        problem: "ProblemLike",
        last_results: "ProblemResults | None",
        result: StepResult,
        options: StepOptions,
        estimated: bool,
    ) -> None:
        parameters, summary = options.parameters, result.summary
        self.problem = problem
        self.last_results = last_results
        self._result = result
        self._options = options
        self._estimated = estimated
        self.step = result.step
        self.optimization_time = result.optimization_time
        self.total_time = result.total_time
        self.converged = bool(result.outcome.converged and not result.failed_markets)
        self.optimization_iterations = int(result.outcome.iterations)
        self.objective_evaluations = int(result.outcome.evaluations)
        self.fp_converged = succeeded(result.inner.status).astype(int)
        self.fp_iterations = result.inner.iterations
        self.contraction_evaluations = result.inner.evaluations
        self.fp_residuals = result.inner.residuals
        self.theta = result.theta
        self.parameters = summary.parameters[:, None]
        self._coefficients = parameters.at(result.theta)
        self.sigma = np.asarray(self._coefficients.sigma)
        self.pi = np.asarray(self._coefficients.pi)
        self.beta = result.beta[:, None]
        self.sigma_labels = list(parameters.sigma_labels)
        self.pi_labels = list(parameters.pi_labels)
        self.beta_labels = list(parameters.beta_labels)
        self.theta_labels = parameters.theta_labels
        self.parameter_labels = parameters.parameter_labels
        used = parameters if options.optimization.supports_bounds else parameters.unbounded()
        self.sigma_bounds = tuple(used.sigma_bounds)
        self.pi_bounds = tuple(used.pi_bounds)
        self.beta_bounds = tuple(bound[:, None] for bound in used.beta_bounds)
        self.delta = result.delta[:, None]
        self.xi = result.xi[:, None]
        self.moments = summary.moments[:, None]
        self.moments_jacobian = summary.moments_jacobian
        self.moments_covariances = summary.moments_covariances
        self.objective = np.asarray(result.objective)
        self.xi_by_theta_jacobian = result.xi_by_theta
        self.gradient = result.gradient[:, None]
        self.hessian = result.hessian
        self.W = result.W
        self.updated_W = summary.updated_W
        missing = np.full_like(summary.inference.covariances, np.nan)
        self.parameter_covariances = summary.inference.covariances if estimated else missing
        self.parameter_sensitivity = summary.inference.sensitivity
        self._set_standard_errors()

    def _set_standard_errors(self) -> None:
        layout = self._options.parameters.layout
        N = self.problem.N
        errors = np.sqrt(np.diag(self.parameter_covariances) / N)
        first, second = len(layout.sigma), len(layout.sigma) + len(layout.pi)
        self.sigma_se = _fill(self.sigma.shape, layout.sigma, errors[:first])
        self.pi_se = _fill(self.pi.shape, layout.pi, errors[first:second])
        linear = (*layout.beta, *layout.concentrated_beta)
        self.beta_se = _fill(self.beta.shape, tuple((k, 0) for k in linear), errors[second:])
        self.sigma_squared = self.sigma @ self.sigma.T
        self.sigma_squared_se = self._sigma_squared_errors(first)

    def _sigma_squared_errors(self, size: int) -> Array:
        """Standard errors of sigma sigma' by the delta method."""
        layout = self._options.parameters.layout
        if size == 0:
            return np.full(self.sigma.shape, np.nan)
        index = tuple(np.array(layout.sigma).T)
        K2 = len(self.sigma)
        jacobian = np.zeros((K2, K2, size))
        for p, (k, m) in enumerate(zip(*index, strict=True)):
            jacobian[k, :, p] += self.sigma[:, m]
            jacobian[:, k, p] += self.sigma[:, m]
        rows = jacobian.reshape(K2 * K2, size)
        variances = np.einsum("ij,jk,ik->i", rows, self.parameter_covariances[:size, :size], rows)
        return np.sqrt(np.maximum(variances, 0.0) / self.problem.N).reshape(K2, K2)

    @property
    def xi_fe(self) -> Array:
        """(N, 1) fixed effects, ``delta - X1 beta - xi`` with X1 before absorption; (N, 0) without fixed effects."""
        if self.problem.ED == 0:
            return np.zeros((self.problem.N, 0))
        return self.delta - self.problem.X1 @ self.beta - self.xi

    @property
    def clipped_shares(self) -> Array:
        """(N, 1) whether a simulated share is below the bound of 1e-300 at the estimates."""
        if not self._result.failed_markets:  # simulated shares equal the observed ones
            return np.zeros((self.problem.N, 1), bool)
        return ~(np.asarray(self.compute_shares()) >= 1e-300)

    @property
    def projected_gradient(self) -> Array:
        """(P, 1) gradient with zeros where a bound keeps theta from following its negative."""
        bounds = usable_bounds(self._options)
        return project_gradient(self.theta, self.gradient[:, 0], bounds)[:, None]

    @property
    def projected_gradient_norm(self) -> float:
        """Largest absolute element of the projected gradient."""
        return float(np.abs(self.projected_gradient).max(initial=0.0))

    @property
    def at_bound(self) -> list[str]:
        """Labels of the elements of theta that are at a bound."""
        return [self.theta_labels[p] for p in np.flatnonzero(self._binding)]

    @property
    def _binding(self) -> Array:
        bounds = usable_bounds(self._options)
        return (self.theta <= bounds.lower) | (self.theta >= bounds.upper)

    @property
    def reduced_hessian(self) -> Array:
        """(P, P) Hessian with zeros in the rows and columns of elements of theta at a bound."""
        free = ~self._binding
        return np.where(np.isnan(self.hessian), np.nan, self.hessian * np.outer(free, free))

    @cached_property
    def reduced_hessian_eigenvalues(self) -> Array:
        """(P,) eigenvalues of the reduced Hessian, in ascending order."""
        if not np.isfinite(self.hessian).all():
            return np.full(len(self.theta), np.nan)
        return np.linalg.eigvalsh(self.reduced_hessian)

    @property
    def message(self) -> str:
        """How optimisation ended, in words, with the markets whose shares could not be inverted at the estimates."""
        text = self._result.outcome.message
        if self._result.failed_markets:
            text += f" The inversion of market shares {self._result.failed_markets}."
        return text

    @property
    def cumulative_optimization_time(self) -> float:
        """Seconds of optimisation in this and all previous steps."""
        return sum(step.optimization_time for step in self._steps)

    @property
    def cumulative_total_time(self) -> float:
        """Seconds of this and all previous steps."""
        return sum(step.total_time for step in self._steps)

    @property
    def cumulative_converged(self) -> bool:
        """Whether this and all previous steps converged."""
        return all(step.converged for step in self._steps)

    @property
    def cumulative_optimization_iterations(self) -> int:
        """Major iterations of this and all previous steps."""
        return sum(step.optimization_iterations for step in self._steps)

    @property
    def cumulative_objective_evaluations(self) -> int:
        """Objective evaluations of this and all previous steps."""
        return sum(step.objective_evaluations for step in self._steps)

    @property
    def cumulative_fp_converged(self) -> Array:
        """(T, evaluations) of this and all previous steps."""
        return np.concatenate([step.fp_converged for step in self._steps], axis=1)

    @property
    def cumulative_fp_iterations(self) -> Array:
        """(T, evaluations) of this and all previous steps."""
        return np.concatenate([step.fp_iterations for step in self._steps], axis=1)

    @property
    def cumulative_contraction_evaluations(self) -> Array:
        """(T, evaluations) of this and all previous steps."""
        return np.concatenate([step.contraction_evaluations for step in self._steps], axis=1)

    @property
    def _steps(self) -> list["ProblemResults"]:
        return [*(self.last_results._steps if self.last_results is not None else []), self]

    def to_dict(self, attributes: Sequence[str] | None = None) -> dict[str, Any]:
        """Attributes by name, all of them by default.

        Raises
        ------
        AttributeError
            For names that are not attributes of results.
        """
        return {name: getattr(self, name) for name in (ATTRIBUTES if attributes is None else attributes)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write these results, those of previous steps, and the problem with its data to a file for `blpjax.load`.

        The file is a zip archive of NumPy arrays and JSON. No suffix is added, and an existing file is replaced. Functions of
        the user, such as a custom optimisation routine, are stored by name only.

        Raises
        ------
        DataError
            When a column that the problem uses holds objects other than strings, numbers, dates and timestamps.
        OSError
            When the file cannot be written.

        Warns
        -----
        DataWarning
            When such a column is left out, because the problem does not use it.
        """
        steps = [step_state(Step(step._result, step._options, step._estimated)) for step in self._steps]
        storage.write(path, "results", {"problem": self.problem.to_state(), "steps": steps})

    @classmethod
    def from_state(cls, problem: "ProblemLike", steps: Sequence[dict[str, Any]]) -> "ProblemResults":
        """The last of the results that `save` described, with all previous ones."""
        results: ProblemResults | None = None
        for state in steps:
            step = read_step(state)
            results = cls(problem, results, step.result, step.options, step.estimated)
        if results is None:
            raise ValueError("There are no GMM steps.")
        return results

    def estimates(self) -> pd.DataFrame:
        """One row for each parameter: estimate, standard error, t statistic, p value and 95% confidence interval."""
        errors = np.sqrt(np.diag(self.parameter_covariances) / self.problem.N)
        return report.estimates_frame(self.parameter_labels, self.parameters[:, 0], errors)

    def run_hansen_test(self) -> float:
        """Hansen's (1982) J statistic, N gbar'W gbar. Chi-squared with MD - Q degrees of freedom after two steps."""
        return float(self._hansen().statistic)

    def run_distance_test(self, unrestricted: "ProblemResults") -> float:
        """Distance statistic of Newey and West (1987): J of these restricted results less that of `unrestricted`."""
        if not isinstance(unrestricted, ProblemResults):
            raise TypeError("unrestricted must be a ProblemResults.")
        restricted, other = self.run_hansen_test(), unrestricted.run_hansen_test()
        restrictions = len(unrestricted.parameters) - len(self.parameters)
        return float(gmm.distance_test(restricted, other, restrictions=max(restrictions, 0)).statistic)

    def run_lm_test(self) -> float:
        """Lagrange multiplier statistic of Newey and West (1987), from the gradient at these restricted results."""
        arrays = (jnp.asarray(self.moments[:, 0]), self.moments_jacobian, self.W, self.parameter_covariances)
        return float(gmm.lm_test(*map(jnp.asarray, arrays), N=self.problem.N, restrictions=0).statistic)

    def run_wald_test(self, restrictions: Any, restrictions_jacobian: Any) -> float:
        """Wald statistic of Newey and West (1987).

        Parameters
        ----------
        restrictions : (R,) restrictions, functions of the parameters that are zero under the null, at the estimates.
        restrictions_jacobian : (R, Q) their derivatives in `parameters`.

        Raises
        ------
        ValueError
            When the shapes do not fit.
        """
        values = np.array(restrictions, float).reshape(-1)
        jacobian = np.atleast_2d(np.array(restrictions_jacobian, float))
        covariances = jnp.asarray(self.parameter_covariances)
        test = gmm.wald_test(jnp.asarray(values), jnp.asarray(jacobian), covariances, N=self.problem.N)
        return float(test.statistic)

    def _hansen(self) -> gmm.ChiSquaredTest:
        moments = jnp.asarray(self.moments[:, 0])
        return gmm.hansen_test(moments, jnp.asarray(self.W), N=self.problem.N, parameters=len(self.parameters))

    @property
    def demand(self) -> Demand:
        """Demand at the estimates, the argument of the functions in `blpjax.outputs`."""
        return self._demand(self.problem.economy)

    def compute_elasticities(
        self, name: str | None = "prices", market_id: Any = None, as_frame: bool = False
    ) -> Array | pd.DataFrame:
        """Elasticities of demand, ``x_k / s_j ds_j / dx_k`` for the product j of the row and k of the column.

        Parameters
        ----------
        name : the variable x, or None for delta.
        market_id : one market, by default all of them, stacked.
        as_frame : whether to return a tidy table with market and product labels.

        Returns
        -------
        (N, max J) array, padded with NaN on the right in markets with fewer products; (J, J) for one market.

        Raises
        ------
        NameError
            When no formula has the variable.
        ValueError
            When there is no such market.
        """
        return self._matrices(outputs.elasticities, name, market_id, as_frame, "elasticity")

    def compute_demand_jacobians(
        self, name: str | None = "prices", market_id: Any = None, as_frame: bool = False
    ) -> Array | pd.DataFrame:
        """Derivatives of demand ``ds_j / dx_k``. Arguments and shapes are those of `compute_elasticities`."""
        return self._matrices(outputs.demand_jacobians, name, market_id, as_frame, "derivative")

    def compute_diversion_ratios(
        self, name: str | None = "prices", market_id: Any = None, as_frame: bool = False
    ) -> Array | pd.DataFrame:
        """Diversion ratios ``-(ds_k / dx_j) / (ds_j / dx_j)`` from the product j of the row to k of the column.

        Diversion to the outside good stands on the diagonal, so that rows sum to one. Arguments and shapes are those of
        `compute_elasticities`.
        """
        return self._matrices(outputs.diversion_ratios, name, market_id, as_frame, "diversion_ratio")

    def extract_diagonals(self, matrices: Any, market_id: Any = None) -> Array:
        """Diagonals of stacked matrices, for example own elasticities: (N, 1), or (J, 1) for one market."""
        stacked, chosen = self._read_matrices(matrices, market_id)
        diagonals = np.full((stacked.shape[0], 1), np.nan)
        for rows in chosen:
            diagonals[rows, 0] = stacked[rows, np.arange(rows.size)]
        return diagonals

    def extract_diagonal_means(self, matrices: Any, market_id: Any = None) -> Array:
        """Means of the diagonals of stacked matrices by market: (T, 1) in the order of `Problem.unique_market_ids`."""
        diagonals = self.extract_diagonals(matrices, market_id)
        _, chosen = self._read_matrices(matrices, market_id)
        return np.array([[diagonals[rows, 0].mean()] for rows in chosen])

    def compute_shares(
        self,
        prices: Any = None,
        delta: Any = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        market_id: Any = None,
        as_frame: bool = False,
    ) -> Array | pd.DataFrame:
        """Market shares.

        Parameters
        ----------
        prices : (N,) prices at which to evaluate shares, those of one market when `market_id` is given.
        delta : mean utilities; by default the estimates, updated with the prices.
        agent_data, integration : other agents, as in `Problem`.
        market_id : one market, by default all of them.
        as_frame : whether to return a tidy table.

        Returns
        -------
        (N, 1) array, (J, 1) for one market.
        """
        demand, delta, changes = self._evaluation_point(prices, delta, agent_data, integration, market_id)
        shares = np.asarray(outputs.market_shares(demand, delta, changes))
        return self._vector(shares, market_id, as_frame, "share")

    def compute_probabilities(
        self,
        prices: Any = None,
        delta: Any = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        market_id: Any = None,
        as_frame: bool = False,
    ) -> Array | pd.DataFrame:
        """Choice probabilities of agents (columns, in the order of the agent table) for products (rows).

        Arguments are those of `compute_shares`.

        Returns
        -------
        (N, max I) array, padded with NaN on the right in markets with fewer agents; (J, I) for one market.
        """
        demand, delta, changes = self._evaluation_point(prices, delta, agent_data, integration, market_id)
        stacked = self._stack(outputs.choice_probabilities(demand, delta, changes), demand)
        counts = self._agents(agent_data, integration).counts
        for rows, count in zip(self.problem.market_index.rows, counts, strict=True):
            stacked[rows, count:] = np.nan
        stacked = stacked[:, : max(counts)]
        rows = self._market_rows(market_id)
        if as_frame:
            agents = self._agents(agent_data, integration).table
            labels = None if agents.agent_ids is None else agents.agent_ids.reshape(len(agents.weights), -1)[:, 0]
            return report.probabilities_frame(*self._labels(rows), agents.market_ids, labels, stacked[rows])
        if market_id is None:
            return stacked
        return stacked[rows][:, : counts[self._market_position(market_id)]]

    def compute_delta(
        self,
        agent_data: Any = None,
        integration: Integration | None = None,
        iteration: Iteration | None = None,
        fp_type: str = "safe_linear",
        shares_bounds: Any = (1e-300, None),
        market_id: Any = None,
        as_frame: bool = False,
    ) -> Array | pd.DataFrame:
        """Mean utilities at the estimates with other agents or another iteration, starting at the estimated ones.

        `fp_type` and `shares_bounds` can only have their default values.

        Returns
        -------
        (N, 1) array, (J, 1) for one market.

        Raises
        ------
        ConvergenceError
            Naming the markets that could not be inverted.
        """
        if fp_type != "safe_linear" or tuple(shares_bounds) != (1e-300, None):
            raise NotImplementedError("fp_type and shares_bounds of compute_delta are not supported. Leave them out.")
        chosen = Iteration() if iteration is None else iteration
        economy = self._agents(agent_data, integration).economy
        tastes = market_tastes(self._coefficients, self._options.parameters.layout)
        found = _invert(economy, tastes, jnp.asarray(self.delta[:, 0]), chosen.limits, chosen.fixed_point)
        ids = self.problem.unique_market_ids
        raise_for_status(found.status, ids, "The inversion of market shares", found.residuals)
        return self._vector(np.asarray(found.delta), market_id, as_frame, "delta")

    def __str__(self) -> str:
        return report.summarise_results(self._summary())

    __repr__ = __str__

    def _demand(self, economy: Any) -> Demand:
        layout = self._options.parameters.layout
        coefficients = Coefficients(self._coefficients.sigma, self._coefficients.pi, jnp.asarray(self.beta[:, 0]))
        return Demand(economy, self.problem.characteristics, coefficients, jnp.asarray(self.delta[:, 0]), layout)

    def _agents(self, agent_data: Any, integration: Integration | None) -> AgentsInEconomy:
        if agent_data is None and integration is None:
            return self.problem.agents_in_economy
        return self.problem.build_agents(agent_data, integration)

    def _evaluation_point(
        self, prices: Any, delta: Any, agent_data: Any, integration: Integration | None, market_id: Any
    ) -> tuple[Demand, jax.Array | None, dict[str, jax.Array]]:
        demand = self._demand(self._agents(agent_data, integration).economy)
        changes = {}
        if prices is not None:
            changes["prices"] = jnp.asarray(self._fill_market("prices", prices, market_id, self.problem.product_table.prices))
        filled = None if delta is None else jnp.asarray(self._fill_market("delta", delta, market_id, self.delta[:, 0]))
        return demand, filled, changes

    def _fill_market(self, name: str, values: Any, market_id: Any, default: Array) -> Array:
        """Long values (N,) from those of all products or of one market."""
        array = np.array(values, dtype=float).reshape(-1)
        rows = self._market_rows(market_id)
        if array.size != rows.size:
            raise ValueError(f"{name} must hold {rows.size} numbers, one for each product, not {array.size}.")
        filled = np.array(default, dtype=float)
        filled[rows] = array
        return filled

    def _market_position(self, market_id: Any) -> int:
        found = np.flatnonzero(self.problem.unique_market_ids == market_id)
        if found.size != 1:
            known = ", ".join(repr(i) for i in self.problem.unique_market_ids[:10].tolist())
            raise ValueError(f"There is no market {market_id!r}. Markets are {known}{', ...' * (self.problem.T > 10)}.")
        return int(found[0])

    def _market_rows(self, market_id: Any) -> Array:
        if market_id is None:
            return np.arange(self.problem.N)
        return self.problem.market_index.rows[self._market_position(market_id)]

    def _labels(self, rows: Array) -> tuple[Array, Array | None]:
        table = self.problem.product_table
        ids = table.product_ids
        if ids is not None and ids.ndim == 2:
            ids = ids[:, 0]
        return table.market_ids[rows], None if ids is None else ids[rows]

    def _vector(self, values: Array, market_id: Any, as_frame: bool, name: str) -> Array | pd.DataFrame:
        rows = self._market_rows(market_id)
        if as_frame:
            return report.vector_frame(*self._labels(rows), values[rows], name)
        return values[rows][:, None]

    def _matrices(
        self, function: Any, variable: str | None, market_id: Any, as_frame: bool, name: str
    ) -> Array | pd.DataFrame:
        names = self.problem.characteristics.names
        if variable is not None and variable not in names:
            raise NameError(f"No formula has a numeric variable {variable!r}. Those of X1 and X2 are {', '.join(names)}.")
        rows = self._market_rows(market_id)
        demand = self.demand
        stacked = self._stack(function(demand, variable), demand)
        sizes = [r.size for r in self.problem.market_index.rows]
        for market, size in zip(self.problem.market_index.rows, sizes, strict=True):
            stacked[market, size:] = np.nan
        stacked = stacked[:, : max(sizes)]
        if as_frame:
            return report.matrices_frame(*self._labels(rows), stacked[rows], name)
        return stacked if market_id is None else stacked[rows][:, : rows.size]

    def _stack(self, parts: Sequence[jax.Array], demand: Demand) -> Array:
        """Rows (N, widest) of padded arrays (T, J, width), one for each bucket."""
        widest = max(part.shape[2] for part in parts)
        padded = [
            np.pad(np.asarray(part), ((0, 0), (0, 0), (0, widest - part.shape[2]))).reshape(-1, widest) for part in parts
        ]
        return np.concatenate(padded)[np.asarray(demand.economy.positions)]

    def _read_matrices(self, matrices: Any, market_id: Any) -> tuple[Array, Sequence[Array]]:
        array = np.asarray(matrices, dtype=float)
        index = self.problem.market_index
        if market_id is None:
            width = max(rows.size for rows in index.rows)
            expected, chosen = (self.problem.N, width), index.rows
        else:
            size = self._market_rows(market_id).size
            expected, chosen = (size, size), (np.arange(size),)
        if array.shape != expected:
            raise ValueError(f"matrices must have the shape {expected}, as compute methods return them, not {array.shape}.")
        return array, chosen

    def _summary(self) -> report.ResultsSummary:
        layout, types = self._options.parameters.layout, self._options.types
        K2, P, Q = len(self.sigma), len(self.theta), len(self.parameters)
        return report.ResultsSummary(
            step=self.step,
            objective=float(self.objective),
            se_type=types.se_type,
            seconds=self.cumulative_total_time,
            objective_evaluations=self.cumulative_objective_evaluations,
            clipped_shares=int(self.clipped_shares.sum()),
            gradient_norm=self.projected_gradient_norm if P else None,
            eigenvalues=self.reduced_hessian_eigenvalues if np.isfinite(self.hessian).all() else None,
            reduced=has_finite_bounds(self._options),
            W_condition=_condition_number(self.W),
            covariance_condition=_condition_number(self.parameter_covariances) if Q > 1 and self._estimated else None,
            converged=self.cumulative_converged if P else None,
            optimization_iterations=self.cumulative_optimization_iterations,
            fp_iterations=int(self.cumulative_fp_iterations.sum()) if K2 else None,
            contraction_evaluations=int(self.cumulative_contraction_evaluations.sum()) if K2 else None,
            clusters=types.n_clusters or 0,
            sigma=_coefficients(self.sigma_labels, self.sigma_labels, self.sigma, self.sigma_se, layout.sigma),
            sigma_squared=_coefficients(self.sigma_labels, self.sigma_labels, self.sigma_squared, self.sigma_squared_se),
            pi=_coefficients(self.sigma_labels, self.pi_labels, self.pi, self.pi_se, layout.pi),
            linear={"Beta": report.Coefficients(self.beta_labels, self.beta, self.beta_se)},
            at_bound=self.at_bound,
            failed_markets=self.message if self._result.failed_markets else "",
        )


_invert = jax.jit(invert_economy, static_argnums=4)


def _coefficients(
    rows: Sequence[str], columns: Sequence[str], values: Array, errors: Array, index: Sequence[tuple[int, ...]] | None = None
) -> report.Coefficients | None:
    """A matrix for tables, None without elements. Elements at `index` were estimated, by default those with errors."""
    if values.size == 0:
        return None
    free = None if index is None else np.isfinite(_fill(values.shape, index, np.zeros(len(index))))
    return report.Coefficients(rows, values, errors, columns, free)


def _condition_number(matrix: Array) -> float:
    return float(np.linalg.cond(matrix)) if np.isfinite(matrix).all() and matrix.size else float("nan")


def _fill(shape: tuple[int, ...], index: Sequence[tuple[int, ...]], values: Array) -> Array:
    """A matrix with values at an index and NaN elsewhere."""
    matrix = np.full(shape, np.nan)
    if index:
        matrix[tuple(np.array(index).T)] = values[: len(index)]
    return matrix


def _empty(*shape: str) -> property:
    """Attributes of PyBLP's results that have no elements without a supply side, nests or micro moments."""

    def get(self: ProblemResults) -> Array:
        sizes = {"N": self.problem.N, "P": len(self.theta)}
        return np.zeros([sizes.get(name, int(name) if name.isdigit() else 0) for name in shape])

    return property(get, doc="Empty: there is no supply side, no nests and no micro moments.")


for _name, _shape in {
    "rho": ("0", "1"),
    "rho_se": ("0", "1"),
    "gamma": ("0", "1"),
    "gamma_se": ("0", "1"),
    "tilde_costs": ("N", "0"),
    "omega": ("N", "0"),
    "omega_fe": ("N", "0"),
    "micro": ("0", "1"),
    "micro_values": ("0", "1"),
    "micro_covariances": ("0", "0"),
    "omega_by_theta_jacobian": ("N", "P"),
    "micro_by_theta_jacobian": ("0", "P"),
}.items():
    setattr(ProblemResults, _name, _empty(*_shape))

#: What `ProblemResults.to_dict` returns by default.
ATTRIBUTES = tuple(
    """step optimization_time cumulative_optimization_time total_time cumulative_total_time converged cumulative_converged
    optimization_iterations cumulative_optimization_iterations objective_evaluations cumulative_objective_evaluations
    fp_converged cumulative_fp_converged fp_iterations cumulative_fp_iterations contraction_evaluations
    cumulative_contraction_evaluations parameters parameter_covariances parameter_sensitivity theta sigma sigma_squared pi rho
    beta gamma sigma_se sigma_squared_se pi_se rho_se beta_se gamma_se sigma_bounds pi_bounds beta_bounds sigma_labels
    pi_labels beta_labels theta_labels parameter_labels delta clipped_shares tilde_costs xi omega xi_fe omega_fe micro
    micro_values micro_covariances moments moments_jacobian moments_covariances objective xi_by_theta_jacobian
    omega_by_theta_jacobian micro_by_theta_jacobian gradient projected_gradient projected_gradient_norm hessian
    reduced_hessian reduced_hessian_eigenvalues W updated_W""".split()
)
