"""What the tables of estimates show."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blpjax.estimation.options import StepOptions
from blpjax.objective.clusters import counts_of_kinds
from blpjax.reporting import report

Array = np.ndarray


def summarise(
    results: Any, options: StepOptions, estimated: bool, binding: Array, failed_markets: str
) -> report.ResultsSummary:
    """The numbers of the tables of `Estimates`.

    Parameters
    ----------
    results : the `Estimates`.
    options : those of their step.
    estimated : whether these are the last ones, with standard errors.
    binding : (P,) which elements of theta are at a bound.
    failed_markets : a sentence on what failed in which markets; empty if nothing did.
    """
    parameters, types = options.parameters, options.types
    layout = parameters.layout
    K2, P, Q = len(results.sigma), len(results.theta), len(results.parameters)
    return report.ResultsSummary(
        step=results.step,
        objective=float(results.objective),
        se_type=types.se_type,
        seconds=results.cumulative_total_time,
        objective_evaluations=results.cumulative_objective_evaluations,
        clipped_shares=int(results.clipped_shares.sum()),
        clipped_costs=int(results.clipped_costs.sum()) if options.costs_bounded else None,
        gradient_norm=results.projected_gradient_norm if P else None,
        eigenvalues=results.reduced_hessian_eigenvalues if np.isfinite(results.hessian).all() else None,
        reduced=parameters.has_bounds,
        W_condition=_condition_number(results.W),
        covariance_condition=_condition_number(results.parameter_covariances) if Q > 1 and estimated else None,
        converged=results.cumulative_converged if P else None,
        optimization_iterations=results.cumulative_optimization_iterations,
        fp_iterations=int(results.cumulative_fp_iterations.sum()) if K2 else None,
        contraction_evaluations=int(results.cumulative_contraction_evaluations.sum()) if K2 else None,
        clusters=counts_of_kinds(types.n_clusters or 0),
        sigma=_coefficients(results.sigma_labels, results.sigma_labels, results.sigma, results.sigma_se, layout.sigma),
        sigma_squared=_coefficients(
            results.sigma_labels, results.sigma_labels, results.sigma_squared, results.sigma_squared_se
        ),
        pi=_coefficients(results.sigma_labels, results.pi_labels, results.pi, results.pi_se, layout.pi),
        phi=_coefficients(results.phi_labels, results.phi_labels, results.phi, results.phi_se, layout.phi),
        linear={
            "Rho": report.Coefficients(parameters.rho_labels, results.rho, results.rho_se),
            "Tau": report.Coefficients(results.tau_labels, results.tau, results.tau_se),
            "Kappa": report.Coefficients(results.kappa_labels, results.kappa, results.kappa_se),
            "Beta": report.Coefficients(results.beta_labels, results.beta, results.beta_se),
            "Gamma": report.Coefficients(results.gamma_labels, results.gamma, results.gamma_se),
        },
        at_bound=[parameters.theta_names[p] for p in np.flatnonzero(binding)],
        failed_markets=failed_markets,
    )


def _coefficients(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Array,
    errors: Array,
    index: Sequence[tuple[int, ...]] | None = None,
) -> report.Coefficients | None:
    """A matrix for tables, None without elements. Elements at `index` were estimated, by default those with errors."""
    if values.size == 0:
        return None
    free = None if index is None else np.isfinite(fill(values.shape, index, np.zeros(len(index))))
    return report.Coefficients(rows, values, errors, columns, free)


def _condition_number(matrix: Array) -> float:
    return float(np.linalg.cond(matrix)) if np.isfinite(matrix).all() and matrix.size else float("nan")


def fill(shape: tuple[int, ...], index: Sequence[tuple[int, ...]], values: Array) -> Array:
    """A matrix with values at an index and NaN elsewhere."""
    matrix = np.full(shape, np.nan)
    if index:
        matrix[tuple(np.array(index).T)] = values[: len(index)]
    return matrix
