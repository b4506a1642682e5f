"""What the two libraries' results have in common, as plain numbers that can be compared and sent between processes."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Estimates and standard errors of free parameters (sigma and pi by rows, then beta), and how they were found."""

    objective: float
    estimates: tuple[float, ...]
    errors: tuple[float, ...]
    evaluations: int
    converged: bool


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest relative differences."""

    estimates: float
    errors: float


def outcome_of(results: Any, sigma: np.ndarray, pi: np.ndarray) -> Outcome:
    """Summarise results of either library that were found from these starting values, in which zeros stay zero."""

    def stack(of_sigma: Any, of_pi: Any, of_beta: Any) -> tuple[float, ...]:
        parts = (np.asarray(of_sigma)[sigma != 0], np.asarray(of_pi)[pi != 0], np.ravel(of_beta))
        return tuple(np.concatenate(parts).astype(float).tolist())

    return Outcome(
        objective=float(np.squeeze(results.objective)),
        estimates=stack(results.sigma, results.pi, results.beta),
        errors=stack(results.sigma_se, results.pi_se, results.beta_se),
        evaluations=int(results.objective_evaluations),
        converged=bool(results.converged),
    )


def compare(ours: Outcome, theirs: Outcome) -> Difference:
    """Differences relative to PyBLP's numbers."""
    return Difference(
        _largest_difference(ours.estimates, theirs.estimates), _largest_difference(ours.errors, theirs.errors)
    )


def _largest_difference(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    actual, expected = np.array(ours), np.array(theirs)
    return float(np.max(np.abs(actual - expected) / np.abs(expected)))
