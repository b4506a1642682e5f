"""Estimates of a GMM step: covariances, diagnostics, tests of restrictions, and their tables."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import pandas as pd

from blpjax.economy.buckets import Economy
from blpjax.estimation.options import StepOptions
from blpjax.estimation.step import StepResult
from blpjax.estimation.summaries import fill, summarise
from blpjax.exceptions import succeeded
from blpjax.inputs.tables import assign_node_columns
from blpjax.model.model import Model
from blpjax.model.parameters import BLOCKS, Coefficients, ParameterLayout
from blpjax.objective import iv
from blpjax.objective.blocks import Point
from blpjax.objective.dynamics import MomentTypes
from blpjax.objective.problem_data import ProblemData
from blpjax.optimize.bounds import is_at_bound, mask, project_gradient
from blpjax.reporting import frames, report
from blpjax.reporting.estimates_table import EstimatesTable
from blpjax.reporting.micro import micro_table
from blpjax.reporting.tables import Part, Shown, show_html

Array = np.ndarray


@runtime_checkable
class SolvedProblem(Protocol):
    """What results need of the `Problem` that was solved, which is built on top of them.

    That is its data, itself with other instruments or agents, and what files hold of it.
    """

    data: ProblemData

    def replace_instruments(self, demand_instruments: np.ndarray, supply_instruments: np.ndarray) -> Any:
        """The same problem with other excluded instruments."""

    def replace_agents(self, agent_data: Any) -> Any:
        """The same problem with other agents."""

    def to_state(self) -> dict[str, Any]:
        """The problem as a tree of plain values."""


class Estimates(Shown):
    """Estimates of one GMM step with covariances, diagnostics and tests.

    `ProblemResults` documents the attributes, and adds what estimates imply for demand.
    """

    def __init__(
        self,
        problem: SolvedProblem,
        last_results: "Estimates | None",
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
        self.parameters = np.asarray(summary.parameters)[:, None]
        coefficients = parameters.at(result.theta)
        self.sigma = np.asarray(coefficients.sigma)
        self.pi = np.asarray(coefficients.pi)
        self.rho = np.asarray(coefficients.rho)[:, None]
        self.tau = np.asarray(coefficients.tau)[:, None]
        self.phi = np.asarray(coefficients.phi)
        self.kappa = np.asarray(coefficients.kappa)[:, None]
        self.beta = result.beta[:, None]
        self.gamma = result.gamma[:, None]
        self.sigma_labels = list(parameters.labels.X2)
        self.pi_labels = list(parameters.labels.demographics)
        self.rho_labels = [*parameters.labels.nests, *parameters.labels.subnests]
        self.tau_labels = parameters.tau_labels
        self.phi_labels = list(parameters.labels.errors)
        self.kappa_labels = list(parameters.labels.conduct)
        self.beta_labels = list(parameters.labels.X1)
        self.gamma_labels = list(parameters.labels.X3)
        self.theta_labels = parameters.theta_labels
        self.parameter_labels = parameters.parameter_labels
        self.parameter_blocks = parameters.parameter_blocks
        limits = parameters.limits
        self.sigma_bounds, self.pi_bounds = tuple(limits.sigma), tuple(limits.pi)
        self.rho_bounds = tuple(bound[:, None] for bound in limits.rho)
        self.tau_bounds = tuple(bound[:, None] for bound in limits.tau)
        self.phi_bounds = tuple(limits.phi)
        self.kappa_bounds = tuple(bound[:, None] for bound in limits.kappa)
        self.beta_bounds = tuple(bound[:, None] for bound in limits.beta)
        self.gamma_bounds = tuple(bound[:, None] for bound in limits.gamma)
        self.delta = result.delta[:, None]
        self.xi = result.xi[:, None]
        self.moments = np.asarray(summary.moments)[:, None]
        self.moments_jacobian = np.asarray(summary.moments_jacobian)
        self.moments_covariances = np.asarray(summary.moments_covariances)
        self.objective = np.asarray(result.objective)
        evaluation = result.outcome.evaluation
        self.xi_by_theta_jacobian = evaluation.xi_by_theta
        self._set_supply(result)
        self.gradient = result.gradient[:, None]
        self.hessian = result.hessian
        self.W = result.W
        self.updated_W = np.asarray(summary.updated_W)
        covariances = np.asarray(summary.inference.covariances)
        self.parameter_covariances = covariances if estimated else np.full_like(covariances, np.nan)
        errors = np.asarray(summary.inference.standard_errors)
        self._parameters_se = errors if estimated else np.full_like(errors, np.nan)
        self.parameter_sensitivity = np.asarray(summary.inference.sensitivity)
        self._set_standard_errors()
        self._set_absent()
        self._set_micro()

    def _set_standard_errors(self) -> None:
        layout = self._options.parameters.layout
        errors = self._parameters_se
        theta, first = errors[: layout.P], layout.P + len(layout.concentrated_beta)
        self.sigma_se = fill(self.sigma.shape, layout.sigma, theta[layout.part("sigma")])
        self.pi_se = fill(self.pi.shape, layout.pi, theta[layout.part("pi")])
        self.rho_se = fill(self.rho.shape[:1], layout.rho, theta[layout.part("rho")])[:, None]
        self.tau_se = fill(self.tau.shape[:1], layout.tau, theta[layout.part("tau")])[:, None]
        self.phi_se = fill(self.phi.shape, layout.phi, theta[layout.part("phi")])
        self.kappa_se = fill(self.kappa.shape[:1], layout.kappa, theta[layout.part("kappa")])[:, None]
        beta = np.concatenate([theta[layout.part("beta")], errors[layout.P : first]])
        gamma = np.concatenate([theta[layout.part("gamma")], errors[first:]])
        self.beta_se = _fill_vector(len(self.beta), layout.beta, layout.concentrated_beta, beta)
        self.gamma_se = _fill_vector(len(self.gamma), layout.gamma, layout.concentrated_gamma, gamma)
        self.sigma_squared = self.sigma @ self.sigma.T
        self.sigma_squared_se = self._sigma_squared_errors(len(layout.sigma))

    def _set_supply(self, result: StepResult) -> None:
        """What there is to say of costs; empty without a supply side, and like PyBLP's attributes then."""
        N, evaluation = self.problem.data.N, result.outcome.evaluation
        if evaluation.costs is None or result.omega is None:
            self.tilde_costs = self.omega = self.omega_fe = np.zeros((N, 0))
            self.clipped_costs = np.zeros((N, 1), bool)
            self.omega_by_theta_jacobian = np.full((N, len(self.theta)), np.nan)
            return
        self.tilde_costs = np.asarray(evaluation.costs.tilde_costs)[:, None]
        self.clipped_costs = np.asarray(evaluation.costs.clipped)[:, None]
        self.omega = result.omega[:, None]
        self.omega_by_theta_jacobian = evaluation.omega_by_theta
        self.omega_fe = np.zeros((N, 1))
        if self.problem.data.ES > 0:
            self.omega_fe = self.tilde_costs - self.problem.data.X3 @ self.gamma - self.omega

    def _set_absent(self) -> None:
        """Attributes of PyBLP's results for what is not there: perhaps simulation error."""
        M = len(self.moments)
        simulation = self._result.summary.simulation_covariances
        self.simulation_covariances = np.zeros((M, M)) if simulation is None else np.asarray(simulation)

    def _set_micro(self) -> None:
        """What there is to say of micro moments, which are the last ones."""
        observed = np.array([line.observed for line in self._options.micro if line.first])
        last = slice(len(self.moments) - observed.size, None)
        self.micro = self.moments[last]
        self.micro_values = observed[:, None] - self.micro
        sampling = self.moments_covariances - self.simulation_covariances
        self.micro_covariances = sampling[last, last] / self.problem.data.N
        self.micro_by_theta_jacobian = self.moments_jacobian[last, : len(self.theta)]

    def _sigma_squared_errors(self, size: int) -> Array:
        """Standard errors of sigma sigma' by the delta method."""
        layout = self._options.parameters.layout
        if size == 0:  # all elements are fixed
            return np.zeros(self.sigma.shape)
        index = tuple(np.array(layout.sigma).T)
        K2 = len(self.sigma)
        jacobian = np.zeros((K2, K2, size))
        for p, (k, m) in enumerate(zip(*index, strict=True)):
            jacobian[k, :, p] += self.sigma[:, m]
            jacobian[:, k, p] += self.sigma[:, m]
        rows = jacobian.reshape(K2 * K2, size)
        variances = np.einsum("ij,jk,ik->i", rows, self.parameter_covariances[:size, :size], rows)
        return np.sqrt(np.maximum(variances, 0.0) / self.problem.data.N).reshape(K2, K2)

    @property
    def layout(self) -> ParameterLayout:
        """Which elements of the parameters are estimated, and in which order."""
        return self._options.parameters.layout

    @property
    def moment_labels(self) -> list[str]:
        """What averaged moments are called, in their order: instruments, numbers of blocks, and micro moments."""
        known, micro = list(self.problem.data.instrument_labels), [m.name for m in self._options.micro if m.first]
        others = len(self.moments) - len(known) - len(micro)
        return [*known, *(f"moment {len(known) + k}" for k in range(others)), *micro]

    @property
    def moment_types(self) -> MomentTypes:
        """Types of demand-side and supply-side moments; none where all are levels."""
        return self._options.moment_types

    @property
    def se_type(self) -> str:
        """Type of standard errors: robust, clustered or unadjusted."""
        return self._options.types.se_type

    @property
    def xi_fe(self) -> Array:
        """(N, 1) fixed effects, ``delta - X1 beta - xi`` with X1 before absorption; zero without fixed effects."""
        if self.problem.data.ED == 0:
            return np.zeros((self.problem.data.N, 1))
        return self.delta - self.problem.data.X1 @ self.beta - self.xi

    @property
    def clipped_shares(self) -> Array:
        """(N, 1) whether a simulated share is beyond `shares_bounds` at the estimates."""
        if self._options.iteration.fixed_point.clips:
            return np.asarray(self._result.outcome.evaluation.inversion.clipped)[:, None]
        if succeeded(np.asarray(self._result.outcome.evaluation.inversion.status)).all():
            return np.zeros((self.problem.data.N, 1), bool)  # simulated shares equal the observed ones
        return ~(np.asarray(self.model.compute_shares()) >= 1e-300)

    @property
    def projected_gradient(self) -> Array:
        """(P, 1) gradient with zeros where a bound keeps theta from following its negative."""
        bounds = self._options.parameters.bounds
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
        return is_at_bound(self.theta, self._options.parameters.bounds)

    @property
    def reduced_hessian(self) -> Array:
        """(P, P) Hessian with zeros in the rows and columns of elements of theta at a bound."""
        return np.where(np.isnan(self.hessian), np.nan, mask(self.hessian, ~self._binding))

    @cached_property
    def reduced_hessian_eigenvalues(self) -> Array:
        """(P,) eigenvalues of the reduced Hessian, in ascending order."""
        if not np.isfinite(self.hessian).all():
            return np.full(len(self.theta), np.nan)
        return np.linalg.eigvalsh(self.reduced_hessian)

    @property
    def message(self) -> str:
        """How optimisation ended, in words, with markets where the model could not be evaluated at the estimates."""
        text = self._result.outcome.message
        if self._result.failed_markets:
            text += f" {self._result.failed_markets}"
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
    def _steps(self) -> list["Estimates"]:
        return [*(self.last_results._steps if self.last_results is not None else []), self]

    def to_dict(self, attributes: Sequence[str] | None = None) -> dict[str, Any]:
        """Attributes by name, all of them by default.

        Raises
        ------
        AttributeError
            For names that are not attributes of results.
        """
        return {name: getattr(self, name) for name in (ATTRIBUTES if attributes is None else attributes)}

    def estimates(self) -> pd.DataFrame:
        """One row for each parameter: estimate, standard error, t statistic, p value and 95% confidence interval.

        The first column says which `block` a parameter belongs to: sigma, pi, rho, tau, phi, kappa, beta or gamma.
        """
        frame = frames.estimates_frame(self.parameter_labels, self.parameters[:, 0], self._parameters_se)
        frame.insert(0, "block", np.array(self.parameter_blocks, dtype=object))
        return frame

    def summary(self, digits: int = 3) -> EstimatesTable:
        """Estimates with standard errors in parentheses, as papers show them.

        The table prints as text, is HTML in notebooks, and has `to_latex`, `to_markdown` and `to_frame`. Several
        results side by side are `blpjax.compare_estimates`.

        Parameters
        ----------
        digits : significant digits of numbers.
        """
        from blpjax.estimation.comparison import compare_estimates  # it is built on top of estimates

        return compare_estimates({"estimate": self}, digits)

    def to_latex(self, caption: str = "", label: str = "", digits: int = 3) -> str:
        """The `summary` in LaTeX; see `EstimatesTable.to_latex`."""
        return self.summary(digits).to_latex(caption, label)

    def to_markdown(self, digits: int = 3) -> str:
        """The `summary` in Markdown; see `EstimatesTable.to_markdown`."""
        return self.summary(digits).to_markdown()

    def run_hansen_test(self) -> float:
        """Hansen's (1982) J statistic, N gbar'W gbar. Chi-squared with MD - Q degrees of freedom after two steps."""
        return float(self._hansen().statistic)

    def run_distance_test(self, unrestricted: "Estimates") -> float:
        """Distance statistic of Newey and West (1987): J of these restricted results less that of `unrestricted`."""
        if not isinstance(unrestricted, Estimates):
            raise TypeError("unrestricted must be a ProblemResults.")
        statistics = np.asarray(self.run_hansen_test()), np.asarray(unrestricted.run_hansen_test())
        restrictions = np.asarray(max(len(unrestricted.parameters) - len(self.parameters), 0))
        return float(iv.distance_test(*statistics, restrictions=restrictions).statistic)

    def run_lm_test(self) -> float:
        """Lagrange multiplier statistic of Newey and West (1987), from the gradient at these restricted results."""
        arrays = (self.moments[:, 0], self.moments_jacobian, self.W, self.parameter_covariances)
        return float(iv.lm_test(*arrays, N=np.asarray(self.problem.data.N), restrictions=0).statistic)

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
        test = iv.wald_test(values, jacobian, self.parameter_covariances, N=np.asarray(self.problem.data.N))
        return float(test.statistic)

    def _hansen(self) -> iv.ChiSquaredTest:
        N, parameters = np.asarray(self.problem.data.N), np.asarray(len(self.parameters))
        return iv.hansen_test(self.moments[:, 0], self.W, N=N, parameters=parameters)

    @cached_property
    def model(self) -> Model:
        """The model at the estimates, from which outputs are computed."""
        return self.model_in(self.problem.data.economy)

    @property
    def _coefficients_in_model(self) -> Coefficients:
        blocks = {name: getattr(self, name) for name in BLOCKS}
        columns = {name: blocks[name][:, 0] for name in ("rho", "tau", "kappa", "beta", "gamma")}
        return Coefficients(**jax.device_put(blocks | columns))

    def model_in(self, economy: Economy) -> Model:
        """The model at the estimates in an economy with other agents."""
        return Model(
            economy=economy,
            characteristics=self.problem.data.characteristics,
            coefficients=self._coefficients_in_model,
            delta=jax.device_put(self.delta[:, 0]),
            ownership=self.problem.data.ownership_in(economy),
            layout=self.layout_in(economy),
            costs_type=self.problem.data.costs_type,
            conduct=self.problem.data.conduct_data,
        )

    @property
    def point(self) -> Point:
        """What moments are functions of, at the estimates."""
        supply = self.problem.data.model_data.supply
        return Point(
            economy=self.problem.data.economy,
            supply=supply,
            coefficients=self._coefficients_in_model,
            delta=jax.device_put(self.delta[:, 0]),
            xi=jax.device_put(self.xi[:, 0]),
            tilde_costs=None if supply is None else jax.device_put(self.tilde_costs[:, 0]),
            omega=None if supply is None else jax.device_put(self.omega[:, 0]),
        )

    def layout_in(self, economy: Economy) -> ParameterLayout:
        """Where parameters belong when agents have perhaps other columns of nodes."""
        layout = self._options.parameters.layout
        nonzero = np.isin(np.arange(len(self.sigma)), layout.sigma_columns)
        columns = assign_node_columns(economy.buckets[0].nodes.shape[2], nonzero)
        return layout._replace(node_columns=tuple(columns.tolist()))

    def _parts(self) -> list[Part]:
        return [*report.summarise_results(self._summary()), *self._further_parts()]

    def _further_parts(self) -> list[Part]:
        lines = self._options.micro
        return [micro_table(lines, self.micro_values[:, 0])] if lines else []

    def _folded(self) -> list[Part]:
        summary = self._summary()
        return [report.describe_step(summary), report.describe_effort(summary), *self._further_parts()]

    def _repr_html_(self) -> str:
        bounds = report.describe_bounds(self._summary())
        folded = [*self._folded(), "Problem", *self.problem.data._parts()]
        return show_html(type(self).__name__, [self.summary(), self.message, *bounds], folded)

    def _summary(self) -> report.ResultsSummary:
        failed = self.message if self._result.failed_markets else ""
        return summarise(self, self._options, self._estimated, self._binding, failed)


def _fill_vector(size: int, free: Sequence[tuple[int, ...]], concentrated: Sequence[int], values: Array) -> Array:
    """A column (size, 1) with values of free and then of concentrated elements, and NaN elsewhere."""
    return fill((size,), (*free, *((k,) for k in concentrated)), values)[:, None]


#: What `Estimates.to_dict` returns by default.
ATTRIBUTES = tuple(
    """step optimization_time cumulative_optimization_time total_time cumulative_total_time converged
    cumulative_converged optimization_iterations cumulative_optimization_iterations objective_evaluations
    cumulative_objective_evaluations fp_converged cumulative_fp_converged fp_iterations cumulative_fp_iterations
    contraction_evaluations cumulative_contraction_evaluations parameters parameter_covariances
    parameter_sensitivity theta sigma sigma_squared pi rho tau phi kappa beta gamma sigma_se sigma_squared_se pi_se
    rho_se phi_se kappa_se beta_se gamma_se sigma_bounds pi_bounds rho_bounds phi_bounds kappa_bounds beta_bounds
    gamma_bounds sigma_labels pi_labels rho_labels phi_labels kappa_labels beta_labels gamma_labels theta_labels
    parameter_labels delta tilde_costs clipped_shares clipped_costs xi omega xi_fe omega_fe micro micro_values
    micro_covariances moments moments_jacobian moments_covariances simulation_covariances objective xi_by_theta_jacobian
    omega_by_theta_jacobian micro_by_theta_jacobian gradient projected_gradient projected_gradient_norm hessian
    reduced_hessian reduced_hessian_eigenvalues W updated_W""".split()
)
