"""What is said about a GMM step when it is done: whether it converged, and whether singular matrices spoil it."""

from collections.abc import Sequence

import jax
import numpy as np

from blpjax import options
from blpjax.estimation.step import StepContext, StepResult
from blpjax.exceptions import ConvergenceWarning, IdentificationError, IdentificationWarning, warn_user
from blpjax.inputs.identification import collinear_moments, find_collinearity
from blpjax.model.parameters import Labels
from blpjax.objective import iv
from blpjax.objective.blocks import SampleMoments
from blpjax.objective.clusters import counts_of_kinds
from blpjax.objective.inference import CovarianceTypes
from blpjax.objective.moments import NEGLIGIBLE, lacks_influence
from blpjax.reporting import report


def report_outcome(result: StepResult, seconds: float) -> None:
    """Print how a step ended, and warn with `ConvergenceWarning` unless it converged everywhere."""
    outcome = result.outcome
    took = report.format_seconds(seconds)
    options.output("")
    if outcome.converged and not result.failed_markets:
        options.output(f"GMM step {result.step} completed after {took}.")
        return
    text = f"GMM step {result.step} did not converge: {outcome.message}"
    if result.failed_markets:
        text += f" At the returned parameters: {result.failed_markets}"
    options.output(f"{text} ({took})")
    warn_user(text, ConvergenceWarning)


def warn_of_singularity(
    result: StepResult, types: CovarianceTypes, context: StepContext, theta_names: Sequence[str]
) -> None:
    """Warn with `IdentificationWarning` when W, standard errors, or the estimates themselves rest on a singular matrix.

    Parameters
    ----------
    result : the step.
    types : how covariances were estimated.
    context : data of the step, which names moments.
    theta_names : names of the P elements of theta, with the matrices that they belong to.

    Raises
    ------
    IdentificationError
        When one of these matrices is singular and `options.pseudo_inverses` is off.
    """
    summary, M = result.summary, result.summary.moments.size
    if not np.isfinite(summary.moments_covariances).all():
        return
    condition = _scaled_condition_number(np.asarray(summary.moments_covariances))
    _refuse_pseudo_inverses(result, M)
    crossed = isinstance(types.n_clusters, tuple) and "clustered" in (types.W_type, types.se_type)
    if crossed:
        _warn_of_crossed_clusters(result, types)
    elif np.isfinite(options.singular_tol) and (summary.covariances_rank < M or condition > options.singular_tol):
        point = context.point(result.theta, result.outcome.evaluation)
        data = context.objective.data
        Z, residuals = jax.device_get((data.instruments, data.residuals(point)))
        found = find_collinearity(iv.moment_contributions(Z, residuals))
        places = [group[0] for group in found.groups]
        size = sum(block.size for block in data.more if isinstance(block, SampleMoments))
        S = np.asarray(summary.moments_covariances)[M - size :, M - size :]
        places += [M - size + group[0] for group in collinear_moments(S)]
        named = ", ".join(repr(context.moment_labels[place]) for place in places)
        few = types.W_type == "clustered" and types.n_clusters is not None and types.n_clusters < M
        reason = f"there are only {types.n_clusters} clusters" if few else f"collinear moments: {named or 'none'}"
        warn_user(
            f"The covariances of the {M} moments have rank {summary.covariances_rank} and condition number "
            f"{condition:.1e} ({reason}), so the updated weighting matrix is a pseudo-inverse or inaccurate. Consider "
            "fewer instruments.",
            IdentificationWarning,
        )
    evaluation, layout = result.outcome.evaluation, context.objective.model.layout
    lacking = lacks_influence(evaluation, result.theta, layout) & ~_moves_samples(result, context)
    if lacking.any():
        vanishing = ", ".join(name for name, lacks in zip(theta_names, lacking, strict=True) if lacks)
        warn_user(
            f"Structural errors do not depend on {vanishing} near the estimates, so the standard errors of these "
            "parameters mean nothing. Standard deviations of zero do this when integration nodes are symmetric.",
            IdentificationWarning,
        )
    elif summary.inference.rank < summary.parameters.size:
        warn_user(
            f"The Jacobian of the moments has rank {summary.inference.rank} at the estimates, but there are "
            f"{summary.parameters.size} parameters, so not all of them are identified and standard errors mean "
            "nothing. Consider more instruments or fewer parameters.",
            IdentificationWarning,
        )


def warn_of_subgroups(rho: np.ndarray, labels: Labels) -> None:
    """Warn with `IdentificationWarning` of nesting parameters that utility maximisation excludes."""
    if far := labels.far_subgroups(rho):
        named = ", ".join(map(repr, far))
        warn_user(
            f"rho of {named} is below that of the group: products of a subgroup would be worse substitutes "
            "than others of the group, which no consumers with random utility are like. Consider other groups, "
            "exchanging nesting_ids and subnesting_ids, or instruments that tell their levels apart.",
            IdentificationWarning,
        )


def _warn_of_crossed_clusters(result: StepResult, types: CovarianceTypes) -> None:
    """Say where covariances that are clustered in several ways had negative eigenvalues."""
    summary, M = result.summary, result.summary.moments.size
    counts = " and ".join(map(str, counts_of_kinds(types.n_clusters or 0)))
    if types.W_type == "clustered" and summary.covariances_rank < M:
        warn_user(
            f"The covariances of the {M} moments, clustered in several ways by {counts} clusters, have "
            f"{summary.covariances_rank} positive eigenvalues only, so the updated weighting matrix is a "
            "pseudo-inverse without the others. Consider fewer instruments, or W_type='robust'.",
            IdentificationWarning,
        )
    if types.se_type == "clustered":
        B = np.asarray(summary.inference.sensitivity)
        before, after = B @ summary.moments_covariances @ B.T, np.asarray(summary.inference.covariances)
        if not np.allclose(before, after, rtol=1e-9, atol=1e-9 * np.abs(after).max(initial=0.0)):
            warn_user(
                f"The covariances of the parameters, clustered in several ways by {counts} clusters, had negative "
                "eigenvalues, which are set to zero (Cameron, Gelbach and Miller 2011). Some standard errors are too "
                "large then, and there are too few clusters to trust the others.",
                IdentificationWarning,
            )


def _moves_samples(result: StepResult, context: StepContext) -> np.ndarray:
    """(P,) whether moments of other samples than that of products depend on an element of theta."""
    size = sum(block.size for block in context.objective.data.more if isinstance(block, SampleMoments))
    rows = np.asarray(result.summary.moments_jacobian)[len(context.moment_labels) - size :, : result.theta.size]
    moved: np.ndarray = (np.abs(rows) * np.maximum(np.abs(result.theta), 1.0)).max(axis=0, initial=0.0) >= NEGLIGIBLE
    return moved


def _refuse_pseudo_inverses(result: StepResult, moments: int) -> None:
    inference, size = result.summary.inference, result.summary.parameters.size
    for what, rank, full, advice in (
        ("covariances of the moments", result.summary.covariances_rank, moments, "fewer instruments"),
        ("Jacobian of the moments", inference.rank, size, "more instruments or fewer parameters"),
    ):
        if rank < full and not options.pseudo_inverses:
            raise IdentificationError(
                f"The rank of the {what} in GMM step {result.step} is {rank} and not {full}: the inverse that the "
                f"updated weighting matrix or standard errors need does not exist. Consider {advice}, or allow "
                "pseudo-inverses: options.pseudo_inverses = True."
            )


def _scaled_condition_number(S: np.ndarray) -> float:
    """Condition number of covariances scaled to a unit diagonal, which units of measurement do not change."""
    scale = np.sqrt(np.where(np.diag(S) > 0, np.diag(S), 1.0))
    return float(np.linalg.cond(S / np.outer(scale, scale))) if S.size else 1.0
