"""Starting values from a linear regression: the FRAC estimator of Salanié and Wolak (2022).

"Fast, Detail-free, and Approximately Correct: Estimating Mixed Demand Systems", following NBER working paper 25726 of
2019. To second order in the random coefficients, whose covariances are Omega = Sigma Sigma',

    log(s_j / s_0) = X1_j beta + xi_j + sum_k Omega_kk x_jk (x_jk / 2 - e_k)
                     + sum_{k > l} Omega_kl (x_jk x_jl - e_k x_jl - e_l x_jk) + sum_kd Pi_kd x_jk mean(d_d),

with x_k the columns of X2 and e_k = sum_j s_j x_jk in each market. Variances and means of random coefficients are
coefficients of artificial regressors, which two-stage least squares estimates.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from blpjax.economy.buckets import index_markets
from blpjax.economy.logit import closed_form_delta
from blpjax.exceptions import IdentificationError
from blpjax.inputs.identification import find_collinearity
from blpjax.objective.problem_data import ProblemData

_ANYTHING = (-np.inf, np.inf)

#: What is asked for starting values with.
AUTO = "auto"

#: Least standard deviation of the part of utility that a random coefficient makes up, in units of epsilon.
FLOOR = 0.1

#: Regressions: the first ignores how much demographics vary within markets, later ones take it from the one before.
_PASSES = 3

#: A mean demographic that other regressors explain but for this share of its size says nothing about Pi.
_VANISHING = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class FracStarts:
    """Approximate estimates of a mixed logit that are good places to start from.

    Attributes
    ----------
    sigma : (K2, K2) lower-triangular starting values, zero where sigma is fixed at zero and nowhere else.
    pi : (K2, D) starting values, likewise.
    beta : (K1,) coefficients of X1.
    covariances : (K2, K2) estimated covariances Omega of random coefficients, which may have negative variances. Those
        are why elements of `sigma` are at the floor.
    """

    sigma: np.ndarray
    pi: np.ndarray
    beta: np.ndarray
    covariances: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Design:
    """Regressors beyond X1, before absorption.

    `curvature` has an artificial regressor for each of the `pairs` (k, l) of random coefficients, `shifts` X2 times a
    mean demographic for each of the `interactions` (k, d).
    """

    pairs: list[tuple[int, int]]
    interactions: list[tuple[int, int]]
    curvature: np.ndarray
    shifts: np.ndarray


def compute_frac_starts(data: ProblemData, sigma: Any = None, pi: Any = None, floor: float = FLOOR) -> FracStarts:
    """Starting values of sigma and pi; see `Problem.compute_frac_starts`.

    Parameters
    ----------
    data : those of the problem.
    sigma : (K2, K2) array whose nonzero elements are free, by default the diagonal.
    pi : (K2, D) array whose nonzero elements are free, by default all.
    floor : least standard deviation of each random coefficient times the root mean square of its characteristic.
    """
    _check(data, floor)
    K2, D = data.K2, data.D
    free_sigma = np.tril(_pattern("sigma", sigma, np.eye(K2)))
    free_pi = _pattern("pi", pi, np.ones((K2, D)))
    X2 = np.asarray(data.characteristics.evaluate({})[1])
    design = _build_design(data, X2, free_sigma, free_pi)
    log_shares = closed_form_delta(data.product_table.shares, data.market_index.codes)
    omega, found, beta = np.zeros((K2, K2)), np.zeros((K2, D)), np.zeros(0)
    for _ in range(_PASSES if design.interactions else 1):
        dependent = log_shares - _demographic_curvature(data, X2, found)
        beta, variances, effects = _regress(data, design, dependent)
        for (k, m), value in zip(design.pairs, variances, strict=True):
            omega[k, m] = omega[m, k] = value
        for index, value in zip(design.interactions, effects, strict=True):
            found[index] = value
    least = floor / _sizes(X2)
    unknown = free_pi & (found == 0)
    found = np.where(unknown, least[:, None] / _sizes(data.agents_in_economy.demographics)[None, :], found)
    return FracStarts(_root(omega, free_sigma, least), found, beta, omega)


def fill_starts(data: ProblemData, sigma: Any, pi: Any, bounds: dict[str, Any]) -> tuple[Any, Any]:
    """Sigma and pi as `Problem.solve` was given them, with FRAC values within bounds where they are ``'auto'``.

    Where one of them is given, its nonzero elements say what is free.
    """
    automatic = [isinstance(value, str) and value == AUTO for value in (sigma, pi)]
    if not any(automatic):
        return sigma, pi
    if automatic[1] and data.D == 0:
        raise ValueError("pi='auto' needs demographics: an agent_formulation.")
    known_pi = None if automatic[1] or data.D == 0 else pi
    starts = compute_frac_starts(data, None if automatic[0] else sigma, known_pi)
    return (
        _clip(starts.sigma, bounds.get("sigma")) if automatic[0] else sigma,
        _clip(starts.pi, bounds.get("pi")) if automatic[1] else pi,
    )


def _check(data: ProblemData, floor: float) -> None:
    if data.K2 == 0:
        raise ValueError("FRAC starting values need random coefficients: a second formulation, X2.")
    if not floor > 0:
        raise ValueError(f"floor must be positive, not {floor!r}: elements of sigma that are zero stay zero.")
    specific = any(bucket.availability.shape[2] > 1 for bucket in data.economy.buckets)
    reasons = {
        "nesting_ids": data.H > 0,
        "rc_types other than 'linear'": any(kind != "linear" for kind in data.rc_types),
        "epsilon_scale other than 1": data.epsilon_scale != 1,
        "agents' own availability of products": specific,
    }
    for name, present in reasons.items():
        if present:
            raise NotImplementedError(f"FRAC starting values with {name} are not implemented. Give sigma and pi.")


def _pattern(name: str, values: Any, default: np.ndarray) -> np.ndarray:
    """Which elements are free."""
    try:
        array = default if values is None else np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers.") from error
    if array.size == 1 and default.size == 1:
        array = array.reshape(default.shape)
    if array.shape != default.shape:
        raise ValueError(f"{name} must have the shape {default.shape}, not {array.shape}.")
    return array != 0


def _build_design(data: ProblemData, X2: np.ndarray, free_sigma: np.ndarray, free_pi: np.ndarray) -> _Design:
    rows = data.market_index.rows
    shares, inside = data.product_table.shares[:, None], np.zeros_like(X2)
    for r in rows:
        inside[r] = (shares[r] * X2[r]).sum(axis=0)
    # rows of Sigma that share a free column are correlated
    together = free_sigma.astype(int) @ free_sigma.T > 0
    pairs = [(k, m) for k in range(data.K2) for m in range(k + 1) if together[k, m]]
    curvature = [
        X2[:, k] * X2[:, m] * (0.5 if k == m else 1.0)
        - inside[:, k] * X2[:, m]
        - (0.0 if k == m else 1.0) * inside[:, m] * X2[:, k]
        for k, m in pairs
    ]
    interactions, shifts = _find_interactions(data, X2, free_pi)
    return _Design(pairs, interactions, _columns(curvature, len(X2)), shifts)


def _find_interactions(
    data: ProblemData, X2: np.ndarray, free_pi: np.ndarray
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Elements of Pi whose regressors, X2 times mean demographics, differ from X1 and from each other, and these."""
    means = np.zeros((len(X2), data.D))
    for rows, weights, demographics in _people(data):
        means[rows] = np.einsum(
            "i,idj->jd", weights, np.broadcast_to(demographics, (*demographics.shape[:2], rows.size))
        )
    known = np.asarray(data.model_data.demand.X)
    interactions, shifts = [], []
    for k, d in np.argwhere(free_pi).tolist():
        shift = X2[:, k] * means[:, d]
        residual = data.residualize_demand(shift[:, None])
        unexplained = residual - _project(known, residual)
        if np.linalg.norm(unexplained) > _VANISHING * np.linalg.norm(shift):
            interactions.append((k, d))
            shifts.append(shift)
            known = np.hstack([known, residual])
    return interactions, _columns(shifts, len(X2))


def _people(data: ProblemData) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each market its rows of products, weights (I,) that sum to one, and demographics (I, D, J) or (I, D, 1)."""
    table, demographics = data.agents_in_economy.table, data.agents_in_economy.demographics
    for products, agents in zip(data.market_index.rows, index_markets(table.market_ids).rows, strict=True):
        weights, known = table.weights[agents], demographics[agents]
        known = known[:, :, : products.size] if known.ndim == 3 else known[:, :, None]
        yield products, weights / weights.sum(), known


def _demographic_curvature(data: ProblemData, X2: np.ndarray, pi: np.ndarray) -> np.ndarray:
    """What the spread of demographics within markets adds to log shares (N,): ``var(mu_j) / 2 - cov(mu_j, s'mu)``."""
    added = np.zeros(len(X2))
    if not pi.any():
        return added
    for rows, weights, demographics in _people(data):
        mu = ((X2[rows] @ pi).T * demographics).sum(axis=1)
        mu = mu - weights @ mu
        inside = mu @ data.product_table.shares[rows]
        added[rows] = weights @ (mu * (mu / 2 - inside[:, None]))
    return added


def _regress(data: ProblemData, design: _Design, dependent: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two-stage least squares of (N,) `dependent`: beta (K1,), covariances of coefficients, and elements of pi.

    Instruments are those of demand, and X2 times mean demographics where X2 is exogenous.
    """
    X2_columns, demand = data.characteristics.X2_columns, data.model_data.demand
    X, Z = np.asarray(demand.X), np.asarray(demand.Z)
    shifts = data.residualize_demand(design.shifts)
    exogenous = [not X2_columns[k].depends_on("prices") for k, _ in design.interactions]
    instruments = np.hstack([Z, shifts[:, exogenous]])
    regressors = np.hstack([X, data.residualize_demand(design.curvature), shifts])
    projected = _project(instruments, regressors)
    labels = _labels(data, design)
    n_instruments = find_collinearity(instruments).rank
    if n_instruments < len(labels) or find_collinearity(projected).rank < len(labels):
        raise IdentificationError(
            f"FRAC starting values need instruments for {len(labels)} coefficients ({', '.join(labels)}), but there "
            f"are {n_instruments} linearly independent ones, or they do not explain all of the regressors. Add "
            "instruments, free fewer elements of sigma and pi, or give both as numbers."
        )
    scale = _sizes(projected)
    dependent = data.residualize_demand(dependent[:, None])[:, 0]
    coefficients = np.linalg.lstsq(projected / scale, dependent, rcond=None)[0] / scale
    beta, variances, effects = np.split(coefficients, np.cumsum([X.shape[1], len(design.pairs)]))
    return beta, variances, effects


def _labels(data: ProblemData, design: _Design) -> list[str]:
    X1, X2 = data.characteristics.X1_columns, data.characteristics.X2_columns
    demographics = data.agents_in_economy.demographic_labels
    names = [column.label for column in X1]
    names += [f"covariance of {X2[k].label} x {X2[m].label}" for k, m in design.pairs]
    return names + [f"{X2[k].label} x {demographics[d]}" for k, d in design.interactions]


def _root(omega: np.ndarray, free: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Lower-triangular root of covariances (K2, K2) made positive definite, nonzero where elements are free.

    Random coefficients have at least the standard deviations `least` (K2,).
    """
    if not np.tril(free, -1).any():
        return np.diag(np.where(np.diag(free), np.maximum(np.sqrt(np.maximum(np.diag(omega), 0.0)), least), 0.0))
    values, vectors = np.linalg.eigh(omega / np.outer(least, least))
    root = np.linalg.cholesky((vectors * np.maximum(values, 1.0)) @ vectors.T) * least[:, None]
    root = np.where(root == 0, np.broadcast_to(least[:, None] / 10, root.shape), root)
    return np.where(free, root, 0.0)


def _clip(starts: np.ndarray, bounds: Any) -> np.ndarray:
    """Starting values within bounds, a pair of arrays or numbers with None or NaN where there is none."""
    if bounds is None:
        return starts
    try:
        lower, upper = (
            np.array(missing if b is None else b, float) for b, missing in zip(bounds, _ANYTHING, strict=True)
        )
        lower, upper = (np.where(np.isnan(b), missing, b) for b, missing in zip((lower, upper), _ANYTHING, strict=True))
        return np.where(starts == 0, 0.0, np.clip(starts, lower, upper))
    except (TypeError, ValueError):
        return starts  # `build_parameters` says what is wrong with the bounds


def _project(onto: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Fitted values (N, K) of regressions on the columns of (N, M), which may be collinear."""
    scaled = onto / _sizes(onto)
    return scaled @ np.linalg.lstsq(scaled, values, rcond=None)[0]


def _sizes(values: np.ndarray) -> np.ndarray:
    """Root mean squares along all axes but the second, one where they are zero."""
    axes = tuple(axis for axis in range(values.ndim) if axis != 1)
    sizes = np.sqrt((values**2).mean(axis=axes))
    return np.where(sizes > 0, sizes, 1.0)


def _columns(vectors: list[np.ndarray], size: int) -> np.ndarray:
    return np.column_stack(vectors) if vectors else np.zeros((size, 0))
