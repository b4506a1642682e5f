"""ProblemResults: estimates, covariances and diagnostics, and what they imply."""

import os
from collections.abc import Sequence
from typing import Any

from blpjax import storage
from blpjax.economy import AgentsInEconomy
from blpjax.estimates import Estimates, ProblemLike
from blpjax.inputs.integration import Integration
from blpjax.postestimation import PostEstimation
from blpjax.queries import OutputTables
from blpjax.states import Step, read_step, step_state


class ProblemResults(Estimates, PostEstimation):
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

    @property
    def output_tables(self) -> OutputTables:
        """The problem's tables, which label outputs."""
        return OutputTables(self.problem.product_table, self.problem.market_index, self.problem.agents_in_economy)

    def build_agents(self, agent_data: Any, integration: Integration | None) -> AgentsInEconomy:
        """The problem's economy with other agents."""
        return self.problem.build_agents(agent_data, integration)
