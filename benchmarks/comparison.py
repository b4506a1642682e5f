"""What the two libraries' results have in common, as plain numbers that can be compared and sent between processes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Estimates and standard errors of free parameters, and how they were found.

    Sigma and pi come by rows, then rho, beta and gamma.
    """

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

    def stack(of_sigma: Any, of_pi: Any, *of_linear: Any) -> tuple[float, ...]:
        parts = (np.asarray(of_sigma)[sigma != 0], np.asarray(of_pi)[pi != 0], *map(np.ravel, of_linear))
        return tuple(np.concatenate(parts).astype(float).tolist())

    return Outcome(
        objective=float(np.squeeze(results.objective)),
        estimates=stack(results.sigma, results.pi, results.rho, results.beta, results.gamma),
        errors=stack(results.sigma_se, results.pi_se, results.rho_se, results.beta_se, results.gamma_se),
        evaluations=int(results.objective_evaluations),
        converged=bool(results.converged),
    )


def compare(ours: Outcome, theirs: Outcome) -> Difference:
    """Differences relative to PyBLP's numbers."""
    return Difference(
        _largest_difference(ours.estimates, theirs.estimates), _largest_difference(ours.errors, theirs.errors)
    )


def compare_outputs(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> tuple[str, float]:
    """Name of the output that differs most, and that difference relative to PyBLP's largest element of the output.

    Outputs that differ in shape or in what is NaN differ infinitely.
    """
    differences = {name: _relative_difference(ours[name], theirs[name]) for name in theirs}
    worst = max(differences, key=differences.__getitem__)
    return worst, differences[worst]


def _relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    if actual.shape != expected.shape or not np.array_equal(np.isnan(actual), np.isnan(expected)):
        return math.inf
    known = ~np.isnan(expected)
    return float(np.abs(actual - expected)[known].max() / np.abs(expected[known]).max())


def _largest_difference(ours: tuple[float, ...], theirs: tuple[float, ...]) -> float:
    actual, expected = np.array(ours), np.array(theirs)
    return float(np.max(np.abs(actual - expected) / np.abs(expected)))
