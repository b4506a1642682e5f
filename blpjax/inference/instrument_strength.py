"""How strong instruments are for each parameter: F statistics of the first stages of the linearised problem.

Near the estimates mean utilities are linear in theta, so that GMM is an instrumental variables regression with the
endogenous regressors ``Y = [d delta / d theta, prices]`` and whatever else of X1 contains prices. Y (N, n) and
instruments Z (N, K) are residuals on exogenous columns of X1 and on absorbed fixed effects, and P = Z (Z'Z)^{-1} Z'.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from blpjax.estimation.estimates import Estimates
from blpjax.exceptions import IdentificationError
from blpjax.inputs.absorb import count_effects
from blpjax.objective import iv
from blpjax.objective.build import exogenous_columns
from blpjax.objective.clusters import Clusters
from blpjax.objective.projections import orthonormal_basis, residuals_on

#: Columns of Y that are smaller than this, next to what they were before they were residualised, do not vary.
CONSTANT = 1e-10


class Strength(NamedTuple):
    """Statistics of n endogenous regressors; see `instrument_strength`."""

    partial_r2: np.ndarray
    conditional: np.ndarray
    cragg_donald: float
    degrees_of_freedom: tuple[int, int]


class EffectiveF(NamedTuple):
    """Effective F statistics (n,), and the critical values (n,) that they should exceed."""

    statistic: np.ndarray
    critical_value: np.ndarray


class Regression(NamedTuple):
    """The linearised problem: Y (N, n), an orthonormal basis of Z (N, K), and how many parameters were partialled out.

    `blocks` and `labels` say whose coefficients columns of Y have; those of Y that do not vary are NaN.
    """

    blocks: list[str]
    labels: list[str]
    Y: np.ndarray
    basis: np.ndarray
    partialled: int


def strength_frame(results: Estimates) -> pd.DataFrame:
    """The table of `ProblemResults.compute_instrument_strength`."""
    problem, known = results.problem.data, _linearise(results)
    found = instrument_strength(known.Y, known.basis, known.partialled)
    columns = {"block": np.array(known.blocks, object), "parameter": np.array(known.labels, object)}
    robust = effective_f(known.Y, known.basis)
    columns |= {"effective_f": robust.statistic, "critical_value": robust.critical_value}
    if problem.product_table.clustering_ids is not None:
        clustered = effective_f(known.Y, known.basis, problem.clusters)
        columns |= {"effective_f_clustered": clustered.statistic, "critical_value_clustered": clustered.critical_value}
    frame = pd.DataFrame(columns | {"conditional_f": found.conditional, "partial_r2": found.partial_r2})
    frame.attrs = {
        "cragg_donald": found.cragg_donald,
        "instruments": known.basis.shape[1],
        "degrees_of_freedom": found.degrees_of_freedom,
    }
    return frame


def instrument_strength(Y: np.ndarray, basis: np.ndarray, partialled: int) -> Strength:
    """Partial R2, conditional F statistics of Sanderson and Windmeijer (2016), and that of Cragg and Donald (1993).

    All are for homoskedastic errors. A column of NaN in Y has statistics of NaN and is left out of the joint ones.

    Parameters
    ----------
    Y : (N, n) endogenous regressors.
    basis : (N, K) orthonormal columns that span the instruments.
    partialled : how many parameters were partialled out of both.

    Raises
    ------
    ValueError
        When there are no degrees of freedom.
    """
    (N, K), n = basis.shape, Y.shape[1]
    left = N - K - partialled
    if left < 1:
        raise ValueError(f"{N} products are too few for {K} instruments and {partialled} other parameters.")
    partial, conditional, cragg_donald = np.full(n, np.nan), np.full(n, np.nan), np.nan
    varying = np.flatnonzero(np.isfinite(Y).all(axis=0))
    Y = Y[:, varying] / np.linalg.norm(Y[:, varying], axis=0)  # of unit length: units do not matter
    fitted = basis.T @ Y
    partial[varying] = (fitted**2).sum(axis=0)
    m = varying.size
    if m and K >= m:
        residual = Y.T @ Y - fitted.T @ fitted
        # concentration matrix (V'V)^{-1/2}' Y'PY (V'V)^{-1/2} times degrees of freedom
        root = np.linalg.inv(np.linalg.cholesky(residual))
        cragg_donald = float(np.linalg.eigvalsh(root @ fitted.T @ fitted @ root.T)[0] * left / K)
        for j in range(m):
            others = np.delete(np.arange(m), j)
            # y_j less what two-stage least squares on the other regressors explains
            b = np.linalg.lstsq(fitted[:, others], fitted[:, j], rcond=None)[0]
            u = Y[:, j] - Y[:, others] @ b
            explained = np.sum((basis.T @ u) ** 2)
            conditional[varying[j]] = explained / (u @ u - explained) * left / (K - m + 1)
    return Strength(partial, conditional, cragg_donald, (K, left))


def effective_f(Y: np.ndarray, basis: np.ndarray, clusters: Clusters | None = None, bias: float = 0.1) -> EffectiveF:
    """Effective F statistics of Montiel Olea and Pflueger (2013), ``y'Py / tr((Z'Z)^{-1} S)``.

    S is ``sum_i z_i z_i' v_i^2`` with first-stage residuals v, and with `clusters` z_i v_i are added up within them
    before they are multiplied. The critical value (their simplified one for two-stage least squares) rejects, at 5%,
    that the worst-case bias exceeds a fraction `bias` of that of least squares: 23.1 with one instrument.

    Parameters
    ----------
    Y : (N, n) endogenous regressors. A column of NaN has statistics of NaN.
    basis : (N, K) orthonormal columns that span the instruments.
    clusters : of observations; without them errors are heteroscedastic.
    """
    from scipy.stats import ncx2  # a slow import that only this needs

    statistic, critical = np.full(Y.shape[1], np.nan), np.full(Y.shape[1], np.nan)
    kind = "robust" if clusters is None else "clustered"
    ids, count = (None, None) if clusters is None else clusters
    for j in np.flatnonzero(np.isfinite(Y).all(axis=0)):
        fitted = basis.T @ Y[:, j]
        v = Y[:, j] - basis @ fitted
        S = len(Y) * iv.moment_covariances([basis], [v], kind=kind, center=False, cluster_ids=ids, n_clusters=count)
        trace, largest, x = np.trace(S), np.linalg.eigvalsh(S)[-1], 1 / bias
        if trace <= 0:  # with several kinds of clusters
            continue
        statistic[j] = fitted @ fitted / trace
        degrees = trace**2 * (1 + 2 * x) / (np.sum(S**2) + 2 * x * trace * largest)
        critical[j] = ncx2.ppf(0.95, degrees, x * degrees) / degrees
    return EffectiveF(statistic, critical)


def _linearise(results: Estimates) -> Regression:
    """Regressors and instruments of the linearised problem.

    Raises
    ------
    NotImplementedError
        Where demand-side moments are of innovations.
    IdentificationError
        When there are fewer instruments than endogenous regressors.
    """
    problem, layout = results.problem.data, results.layout
    if results.moment_types.demand:
        raise NotImplementedError(
            "The strength of instruments is that for levels of xi. It is not implemented for demand_moment_types other "
            "than 'levels'."
        )
    equation, columns = problem.model_data.demand, problem.designs[0].columns
    X = np.asarray(equation.X)
    estimated = {k: label for (k,), label in zip(layout.beta, results.theta_labels[layout.part("beta")], strict=True)}
    concentrated = results.parameter_labels[layout.P :]
    estimated |= dict(zip(layout.concentrated_beta, concentrated, strict=False))
    exogenous = [k for k in exogenous_columns(columns, "prices") if k in estimated]
    endogenous = [k for k in sorted(estimated) if k not in exogenous]
    names = ("sigma", "pi", "rho", "tau")
    nonlinear = np.concatenate([np.arange(layout.P)[layout.part(name)] for name in names])
    blocks = [name for name in names for _ in getattr(layout, name)] + ["beta"] * len(endogenous)
    by_theta = np.asarray(results.xi_by_theta_jacobian)[:, nonlinear]
    labels = [results.theta_labels[p] for p in nonlinear] + [estimated[k] for k in endogenous]
    if not labels:
        raise ValueError("There are no endogenous regressors: neither theta nor coefficients on prices are estimated.")
    raw = np.c_[by_theta, np.asarray(equation.X_unabsorbed)[:, endogenous]]
    Y = np.c_[problem.residualize_demand(by_theta), X[:, endogenous]]
    controls = orthonormal_basis(X[:, exogenous])
    Y = residuals_on(controls, Y)
    size = np.linalg.norm(raw, axis=0)
    Y = np.where(np.linalg.norm(Y, axis=0) > CONSTANT * np.where(size > 0, size, 1.0), Y, np.nan)
    basis = orthonormal_basis(np.asarray(equation.Z), controls)
    if basis.shape[1] < len(labels):
        raise IdentificationError(
            f"There are {basis.shape[1]} excluded instruments for {len(labels)} endogenous regressors: "
            f"{', '.join(labels)}."
        )
    return Regression(blocks, labels, Y, basis, controls.shape[1] + count_effects(problem.demand_ids))
