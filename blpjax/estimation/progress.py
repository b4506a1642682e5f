"""What a custom optimisation routine learns about one evaluation, by the names of PyBLP's `OptimizationProgress`."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from blpjax.exceptions import succeeded
from blpjax.model.parameters import Parameters
from blpjax.objective.moments import Evaluation
from blpjax.optimize.bounds import project_gradient


class Structural(NamedTuple):
    """Linear parameters and structural errors at some theta: beta (K1,), gamma (K3,), xi (N,), and omega (N,) or None.

    Xi and omega are residualised on any fixed effects.
    """

    beta: np.ndarray | jax.Array
    gamma: np.ndarray | jax.Array
    xi: np.ndarray | jax.Array
    omega: np.ndarray | jax.Array | None


class MicroState(NamedTuple):
    """Micro moments at some theta: observed values less those of the model (MM,), these, and derivatives (MM, P)."""

    micro: np.ndarray
    values: np.ndarray
    by_theta: np.ndarray


class OptimizationProgress:
    """One evaluation of the objective, as custom routines of `Optimization` get it.

    Attributes
    ----------
    problem : the `Problem` being solved.
    theta : (P,) point of evaluation.
    objective : objective there; NaN when the evaluation failed.
    gradient, projected_gradient : (P, 1) gradient; the second with zeros where a bound keeps theta from following its
        negative. NaN with ``compute_gradient=False``.
    projected_gradient_norm : largest absolute element of the projected gradient.
    ok : whether all markets were inverted and all numbers are finite.
    residuals, residual_jacobian : (M,) r with ``r'r`` the objective (over N if that is not scaled), and (M, P) its
        Jacobian, NaN with ``compute_gradient=False``: what Gauss-Newton steps need.
    fp_converged, fp_iterations, contraction_evaluations : (T,) how inversions went, by sorted market ID.
    sigma, sigma_squared, pi : (K2, K2), (K2, K2) and (K2, D) matrices at theta.
    phi : (1, 1) or (2, 2), without columns where there are no lags.
    kappa : (C, 1) parameters of conduct, with `kappa_bounds` and `kappa_labels`.
    rho, beta, gamma : (H, 1), (K1, 1) and (K3, 1), with concentrated elements at their estimates given theta.
    sigma_bounds, pi_bounds, rho_bounds, phi_bounds, beta_bounds, gamma_bounds : pairs of arrays shaped like these.
    sigma_labels, pi_labels, rho_labels, phi_labels, beta_labels, gamma_labels, theta_labels : names of their elements.
    delta, xi : (N, 1) mean utilities, and demand-side errors without absorbed fixed effects.
    tilde_costs, omega : (N, 1) marginal costs or their logarithms, and supply-side errors; (N, 0) without a supply
        side.
    clipped_shares : (N, 1) whether simulated shares are beyond `shares_bounds`.
    clipped_costs : (N, 1) whether costs were clipped at their bounds.
    xi_by_theta_jacobian, omega_by_theta_jacobian : (N, P), NaN with ``compute_gradient=False``, the second also
        without a supply side.
    micro, micro_values : (MM, 1) micro moments, observed values less those of the model, and these.
    micro_by_theta_jacobian : (MM, P) derivatives of `micro`, NaN with ``compute_gradient=False``.
    W : (M, M) weighting matrix.

    Linear parameters, structural errors and micro moments are computed when they are asked for.
    """

    def __init__(
        self,
        problem: Any,
        parameters: Parameters,
        W: np.ndarray,
        theta: np.ndarray,
        evaluation: Evaluation,
        structural: Callable[[], Structural],
        micro: Callable[[], MicroState],
    ) -> None:
        self.problem = problem
        self.W = W
        self.theta = np.array(theta, dtype=float)
        self._parameters = parameters
        self._structural_errors, self._micro_moments = structural, micro
        self._set_values(evaluation)
        self._set_parameters(parameters)

    def _set_values(self, evaluation: Evaluation) -> None:
        N = evaluation.inversion.delta.size
        self.objective = np.asarray(evaluation.objective)
        self.gradient = np.asarray(evaluation.gradient)[:, None]
        self.residuals = np.asarray(evaluation.residuals)
        self.residual_jacobian = np.asarray(evaluation.residual_jacobian)
        self.ok = bool(evaluation.ok)
        self.fp_converged = succeeded(np.asarray(evaluation.inversion.status)).astype(int)
        self.fp_iterations = np.asarray(evaluation.inversion.iterations)
        self.contraction_evaluations = np.asarray(evaluation.inversion.evaluations)
        self.delta = np.asarray(evaluation.inversion.delta)[:, None]
        self.xi_by_theta_jacobian = np.asarray(evaluation.xi_by_theta)
        self.omega_by_theta_jacobian = np.full((N, self.theta.size), np.nan)
        self.clipped_shares = np.asarray(evaluation.inversion.clipped)[:, None]
        self.tilde_costs, self.clipped_costs = np.zeros((N, 0)), np.zeros((N, 1), bool)
        if evaluation.costs is not None:
            self.omega_by_theta_jacobian = np.asarray(evaluation.omega_by_theta)
            self.tilde_costs = np.asarray(evaluation.costs.tilde_costs)[:, None]
            self.clipped_costs = np.asarray(evaluation.costs.clipped)[:, None]

    def _set_parameters(self, parameters: Parameters) -> None:
        coefficients, limits, labels = parameters.at(self.theta), parameters.limits, parameters.labels
        self.sigma, self.pi = np.asarray(coefficients.sigma), np.asarray(coefficients.pi)
        self.sigma_squared = self.sigma @ self.sigma.T
        self.rho = np.asarray(coefficients.rho)[:, None]
        self.tau = np.asarray(coefficients.tau)[:, None]
        self.phi = np.asarray(coefficients.phi)
        self.kappa = np.asarray(coefficients.kappa)[:, None]
        self.sigma_bounds, self.pi_bounds = tuple(limits.sigma), tuple(limits.pi)
        self.rho_bounds = tuple(bound[:, None] for bound in limits.rho)
        self.tau_bounds = tuple(bound[:, None] for bound in limits.tau)
        self.phi_bounds = tuple(limits.phi)
        self.kappa_bounds = tuple(bound[:, None] for bound in limits.kappa)
        self.beta_bounds = tuple(bound[:, None] for bound in limits.beta)
        self.gamma_bounds = tuple(bound[:, None] for bound in limits.gamma)
        self.sigma_labels, self.pi_labels = list(labels.X2), list(labels.demographics)
        self.rho_labels = parameters.rho_labels
        self.tau_labels, self.phi_labels = parameters.tau_labels, list(labels.errors)
        self.kappa_labels = list(labels.conduct)
        self.beta_labels, self.gamma_labels = list(labels.X1), list(labels.X3)
        self.theta_labels = parameters.theta_labels

    @cached_property
    def _structural(self) -> Structural:
        return self._structural_errors()

    @cached_property
    def _micro(self) -> MicroState:
        return self._micro_moments()

    @property
    def micro(self) -> np.ndarray:
        """(MM, 1) observed values less those of the model."""
        return self._micro.micro[:, None]

    @property
    def micro_values(self) -> np.ndarray:
        """(MM, 1) values of the model."""
        return self._micro.values[:, None]

    @property
    def micro_by_theta_jacobian(self) -> np.ndarray:
        """(MM, P) derivatives of `micro`."""
        return self._micro.by_theta

    @property
    def beta(self) -> np.ndarray:
        """(K1, 1) parameters of X1."""
        return np.asarray(self._structural.beta)[:, None]

    @property
    def gamma(self) -> np.ndarray:
        """(K3, 1) parameters of X3."""
        return np.asarray(self._structural.gamma)[:, None]

    @property
    def xi(self) -> np.ndarray:
        """(N, 1) demand-side errors."""
        return np.asarray(self._structural.xi)[:, None]

    @property
    def omega(self) -> np.ndarray:
        """(N, 1) supply-side errors, or (N, 0)."""
        omega = self._structural.omega
        return np.zeros((len(self.delta), 0)) if omega is None else np.asarray(omega)[:, None]

    @property
    def projected_gradient(self) -> np.ndarray:
        """(P, 1) gradient with zeros where a bound keeps theta from following its negative."""
        return project_gradient(self.theta, self.gradient[:, 0], self._parameters.bounds)[:, None]

    @property
    def projected_gradient_norm(self) -> np.ndarray:
        """Largest absolute element of the projected gradient."""
        return np.asarray(np.abs(self.projected_gradient).max(initial=0.0))
