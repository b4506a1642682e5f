"""ProblemResults: estimates of a step, with everything that can be computed from them, in files and tables.

What they imply is in `outputs/`, and what one may ask about their uncertainty in `inference/`.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from blpjax import options
from blpjax.economy.buckets import AgentsInEconomy
from blpjax.estimation.estimates import SolvedProblem
from blpjax.inference.methods import InferenceMethods
from blpjax.inputs.integration import Integration
from blpjax.inputs.micro import MicroMoment
from blpjax.inputs.micro_state import moments_state, read_moments
from blpjax.machine import storage
from blpjax.machine.pickling import Picklable
from blpjax.model.formulated import Formulated
from blpjax.objective.micro import MicroMoments
from blpjax.outputs.labels import OutputTables
from blpjax.outputs.micro import MicroMethods
from blpjax.outputs.pricing_pressure import PressureMethods
from blpjax.outputs.scores import SurveySource
from blpjax.problem.micro import read_micro
from blpjax.problem.state import Step, read_step, step_state
from blpjax.reporting.micro import micro_frame, parts_frame
from blpjax.reporting.tables import Part


class ProblemResults(InferenceMethods, PressureMethods, MicroMethods, Picklable):
    """Results of one GMM step of `Problem.solve`, the last of them with standard errors.

    Arrays have PyBLP's shapes and row order: vectors over products are (N, 1) in the order of the product table, P is
    the number of elements of theta, Q that of theta and the concentrated elements of beta.

    Attributes
    ----------
    problem : the `Problem`.
    last_results : results of the previous GMM step, or None.
    step : number of the GMM step.
    theta (P,), parameters (Q, 1) : estimates; `theta_labels`, `parameter_labels` name them, `parameter_blocks` (Q
        names such as sigma and beta) say what they belong to.
    sigma (K2, K2), pi (K2, D), beta (K1, 1) : estimates as matrices, and `sigma_squared` = sigma sigma'.
    sigma_se, sigma_squared_se, pi_se, beta_se : standard errors, NaN for fixed elements and before the last step.
    phi, phi_se (1, 1) or (2, 2) : how xi, and omega, follow from their lags; without columns where there are none.
    kappa, kappa_se (C, 1) : parameters of conduct, named by `kappa_labels`.
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
    micro_moments : the micro moments, None where files or pickles could not hold their functions.
    starts : DataFrame, or None: where each of the starting values led, if `Problem.solve` was given `starts`. See
        `blpjax.estimation.starts.Trials` for its columns.
    """

    starts: pd.DataFrame | None = None
    micro_moments: tuple[MicroMoment, ...] | None = ()

    _hidden = PressureMethods._hidden | {"draws"}

    def micro_frame(self, parts: bool = False) -> pd.DataFrame:
        """Micro moments at these estimates as a table; see `Problem.compare_micro` for its columns.

        Parameters
        ----------
        parts : whether there is a row for each part of each moment, with the additional columns `part`, `part_value`
            (the model's mean, NaN where moments are not known any more), `dataset`, `observations` and `markets`.
        """
        lines, values = self._options.micro, self.micro_values[:, 0]
        observed = np.array([line.observed for line in lines if line.first])
        given = self.micro_covariances, -self.micro_by_theta_jacobian, self.theta_labels, self.theta
        frame = micro_frame(lines, observed, values, *given)
        if not parts:
            return frame
        known = None
        if self.micro_moments is not None:
            known = self.compute_part_values([part for moment in self.micro_moments for part in moment.parts])
        return parts_frame(lines, frame, known)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write these results, those of previous steps, and the problem with its data to a file for `blpjax.load`.

        The file is a zip archive of NumPy arrays and JSON. No suffix is added, and an existing file is replaced.
        Functions of the user, such as a custom optimisation routine, are stored by name only. `micro_moments` are
        stored where they are by column, and are None afterwards where they have functions.

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
        starts = None if self.starts is None else {name: column.to_numpy() for name, column in self.starts.items()}
        moments = None if self.micro_moments is None else moments_state(self.micro_moments)
        state = {"problem": self.problem.to_state(), "steps": steps, "starts": starts, "micro_moments": moments}
        storage.write(path, "results", {**state, **self._more_state()})

    def _more_state(self) -> dict[str, Any]:
        """What files hold beside that."""
        return {}

    @classmethod
    def from_state(
        cls,
        problem: SolvedProblem,
        steps: Sequence[dict[str, Any]],
        starts: dict[str, Any] | None = None,
        micro_moments: dict[str, Any] | None = None,
    ) -> "ProblemResults":
        """The last of the results that `save` described, with all previous ones."""
        results: ProblemResults | None = None
        for state in steps:
            step = read_step(state, problem.data.form)
            results = cls(problem, results, step.result, step.options, step.estimated)
            results.starts = None if starts is None else pd.DataFrame(starts)
            results.micro_moments = None if micro_moments is None else tuple(read_moments(micro_moments))
            if not step.options.micro:
                results.micro_moments = ()
        if results is None:
            raise ValueError("There are no GMM steps.")
        return results

    @property
    def formulated(self) -> Formulated:
        """Tables and formulas of the problem."""
        return self.problem.data

    def _micro_blocks(self, user: str) -> list[MicroMoments]:
        """The block of micro moments, for which functions of datasets and parts are called again, or none."""
        if not self._options.micro:
            return []
        if self.micro_moments is None:
            raise NotImplementedError(
                f"{user} needs the functions of micro moments, which files and pickles do not hold. Use moments by "
                "column, such as MicroMoment.mean, or results that were not loaded."
            )
        sample = self.micro_covariances if self._options.micro_sampled else None
        given = self.problem.data, self.micro_moments, sample, self._options.parameters
        return list(read_micro(*given, observed=False).blocks)

    def __getstate__(self) -> dict[str, Any]:
        lost = self.micro_moments is not None and moments_state(self.micro_moments) is None
        return {**self.__dict__, **({"micro_moments": None} if lost else {})}

    def _further_parts(self) -> list[Part]:
        if self.starts is None:
            return super()._further_parts()
        from blpjax.estimation.starts import describe_starts

        return [*super()._further_parts(), describe_starts(self.starts)]

    def survey_source(self) -> SurveySource:
        """What methods for micro data need."""
        known = self.problem.data
        return SurveySource(known, known.products, self.model, self._options.parameters.layout)

    @property
    def output_tables(self) -> OutputTables:
        """The problem's tables, which label outputs."""
        known = self.problem.data
        return OutputTables(known.product_table, known.market_index, known.agents_in_economy)

    def build_agents(self, agent_data: Any, integration: Integration | None) -> AgentsInEconomy:
        """The problem's economy with other agents."""
        return self.problem.data.build_agents(agent_data, integration, options.weights_tol)
