"""ProblemResults: estimates, covariances and diagnostics, and what they imply."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from blpjax import outputs, report, storage
from blpjax.arguments import refuse_unsupported
from blpjax.economy import AgentsInEconomy, Economy
from blpjax.estimates import Estimates, ProblemLike
from blpjax.exceptions import raise_for_status
from blpjax.inputs.integration import Integration
from blpjax.iteration import FixedPointLimits, Iteration
from blpjax.markets import Inversion, invert_economy, market_tastes
from blpjax.moments import Specification
from blpjax.outputs import Demand
from blpjax.parameters import Coefficients
from blpjax.states import Step, read_step, step_state

Array = np.ndarray


class ProblemResults(Estimates):
    """Results of one GMM step of `Problem.solve`, the last of them with standard errors.

    Arrays have PyBLP's shapes and row order: vectors over products are (N, 1) in the order of the product table, P is
    the number of elements of theta, Q that of theta and the concentrated elements of beta.

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
    fp_converged, fp_iterations, contraction_evaluations (T, evaluations) : the inversion of shares by market, in the
        order of `Problem.unique_market_ids`, and objective evaluation; and each with ``cumulative_``. `fp_residuals`
        has the final residuals.
    """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write these results, those of previous steps, and the problem with its data to a file for `blpjax.load`.

        The file is a zip archive of NumPy arrays and JSON. No suffix is added, and an existing file is replaced.
        Functions of the user, such as a custom optimisation routine, are stored by name only.

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

        Diversion to the outside good stands on the diagonal, so that rows sum to one. Arguments and shapes are those
        of `compute_elasticities`.

        This is the formula that PyBLP documents. PyBLP 1.3.0 has ``ds_j / dx_k`` in the numerator, which is the same
        unless x enters the utilities of products differently, as with log(prices) or prices:x.
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
        refuse_unsupported(fp_type=fp_type, shares_bounds=shares_bounds)
        if iteration is not None and not isinstance(iteration, Iteration):
            raise TypeError(f"iteration must be Iteration or None, not {type(iteration).__name__}.")
        asked = slice(None) if market_id is None else [self._market_position(market_id)]
        chosen = Iteration() if iteration is None else iteration
        economy = self._agents(agent_data, integration).economy
        specification = Specification(self._layout_in(economy), chosen.fixed_point)
        found = _invert(specification, economy, self.demand.coefficients, jnp.asarray(self.delta[:, 0]), chosen.limits)
        status, residuals = np.asarray(found.status)[asked], np.asarray(found.residuals)[asked]
        ids = self.problem.unique_market_ids[asked]
        raise_for_status(status, ids, "The inversion of market shares", residuals)
        return self._vector(np.asarray(found.delta), market_id, as_frame, "delta")

    def _agents(self, agent_data: Any, integration: Integration | None) -> AgentsInEconomy:
        if agent_data is None and integration is None:
            return self.problem.agents_in_economy
        return self.problem.build_agents(agent_data, integration)

    def _evaluation_point(
        self, prices: Any, delta: Any, agent_data: Any, integration: Integration | None, market_id: Any
    ) -> tuple[Demand, jax.Array | None, dict[str, jax.Array]]:
        demand = self.demand_in(self._agents(agent_data, integration).economy)
        changes = {}
        if prices is not None:
            changes["prices"] = jnp.asarray(
                self._fill_market("prices", prices, market_id, self.problem.product_table.prices)
            )
        filled = None if delta is None else jnp.asarray(self._fill_market("delta", delta, market_id, self.delta[:, 0]))
        return demand, filled, changes

    def _fill_market(self, name: str, values: Any, market_id: Any, default: Array) -> Array:
        """Long values (N,) from those of all products or of one market."""
        try:
            array = np.array(values, dtype=float).reshape(-1)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be an array of finite numbers.") from error
        rows = self._market_rows(market_id)
        if array.size != rows.size:
            raise ValueError(f"{name} must hold {rows.size} numbers, one for each product, not {array.size}.")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be an array of finite numbers.")
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
            raise NameError(
                f"No formula has a numeric variable {variable!r}. Those of X1 and X2 are {', '.join(names)}."
            )
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
            np.pad(np.asarray(part), ((0, 0), (0, 0), (0, widest - part.shape[2]))).reshape(-1, widest)
            for part in parts
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
            raise ValueError(
                f"matrices must have the shape {expected}, as compute methods return them, not {array.shape}."
            )
        return array, chosen


@partial(jax.jit, static_argnums=0)
def _invert(
    specification: Specification,
    economy: Economy,
    coefficients: Coefficients,
    start: jax.Array,
    limits: FixedPointLimits,
) -> Inversion:
    tastes = market_tastes(coefficients, specification.layout)
    return invert_economy(economy, tastes, start, limits, specification.method)
