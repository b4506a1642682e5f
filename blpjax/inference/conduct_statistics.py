"""Statistics of tests of conduct: what implied costs of models, and how these move with demand estimates, say of them.

Rivers and Vuong (2002), in the form of Duarte, Magnolfi, Sølvsten and Sullivan (2024, Testing firm conduct,
Quantitative Economics 15). Instruments are an orthonormal basis of what they span after cost shifters, so that the
weighting matrix of a model's fit is the identity: nothing depends on which columns span it.

Letters: N products, K instruments z (their rank), M models, P parameters of demand.

    omega_m (N,) costs that model m implies, less what cost shifters explain     g_m = z' omega_m / N       v_m = z g_m
    Q_m = g_m' g_m, the fit     psi (N, P) influence of products on estimates    B_m = z' d omega_m / d theta / N (K, P)
    e (R, P) influence of R independent errors of other samples than that of products on estimates
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from blpjax.objective.clusters import Clusters, sums_within

#: Costs of two models are the same where their residuals differ by less than this, relative to their size.
SAME = 1e-9

#: Normal draws for p-values of model confidence sets, whose errors are then below 0.001.
DRAWS = 200_000


class Fit(NamedTuple):
    """How M models fit one set of K instruments.

    `Q` (M,), and matrices (M, M) with a row for the first model of a pair: `TRV`, positive where it fits worse, `F`,
    `rho`, `C`, covariances of the influence functions of Q, and `same`, whether models have the same costs. Elements of
    such pairs are NaN; so is TRV where variances that are clustered in several ways are not positive.
    """

    Q: np.ndarray
    TRV: np.ndarray
    F: np.ndarray
    rho: np.ndarray
    C: np.ndarray
    same: np.ndarray
    K: int


class Products(NamedTuple):
    """Of vectors x_m, matrices (M, M) of products ``x_l' x_m``, ``|x_l - x_m|^2`` and ``|x_l|^2 - |x_m|^2``.

    Differences are those of vectors, so that they are precise for vectors that are nearly the same.
    """

    inner: np.ndarray
    apart: np.ndarray
    longer: np.ndarray

    def __add__(self, other: "Products") -> "Products":  # type: ignore[override]
        """Those of both lots of rows."""
        return Products(*(mine + its for mine, its in zip(self, other, strict=True)))

    def scaled(self, factor: float | int) -> "Products":
        """All times a factor."""
        return Products(*(factor * part for part in self))


def fit_models(
    omega: np.ndarray,
    basis: np.ndarray,
    slopes: Sequence[np.ndarray] | None = None,
    psi: np.ndarray | None = None,
    clusters: Clusters | None = None,
    errors: np.ndarray | None = None,
) -> Fit:
    """Statistics of all pairs of models.

    Parameters
    ----------
    omega : (N, M) implied costs, residualised.
    basis : (N, K) orthonormal columns.
    slopes : derivatives (N, P) of each model's implied costs in parameters of demand, which need not be residualised.
    psi : (N, P) influence functions of the estimates of these. Without them demand is taken as known.
    clusters : of products that are correlated; without them they are independent.
    errors : (R, P) influence functions of errors of other samples, such as surveys, which are independent of products
        and of each other: estimates differ from the truth by the sum of all influence functions over N.
    """
    (N, M), K = omega.shape, basis.shape[1]
    z = np.sqrt(N) * basis
    g = z.T @ omega / N
    v = z @ g
    Q = (g**2).sum(axis=0)
    scores = 2 * v * omega - v**2 - Q
    effects, from_others = None, np.zeros((0, M))
    if slopes is not None and psi is not None:
        B = np.stack([z.T @ slope / N for slope in slopes])  # (M, K, P)
        errors = np.zeros((0, psi.shape[1])) if errors is None else errors
        moves = 2 * np.einsum("km,mkp->pm", g, B)
        scores, from_others = scores + psi @ moves, errors @ moves
        effects = np.einsum("mkp->kpm", B)
    C = _products(scores, clusters) + _products_of(from_others)
    V = Products(*np.zeros((3, M, M)))
    for k in range(K):
        phi = z[:, [k]] * (omega - v)
        if effects is not None:
            phi += psi @ effects[k]
            V += _products_of(errors @ effects[k])
        V += _products(phi, clusters)
    return _compare(C.scaled(1 / N), V.scaled(1 / (N * K)), g, _same_costs(omega), N)


def _compare(C: Products, V: Products, g: np.ndarray, same: np.ndarray, N: int) -> Fit:
    """Statistics from covariances C of influence functions, and V with elements ``tr(V_lm) / K``.

    Where differences of models are small, all statistics are ratios of small numbers, none of which is a difference
    of large ones here.
    """
    G, K = _products(g, None), len(g)
    own, Q = np.diag(V.inner), np.diag(G.inner)
    total, fits = own[:, None] + own[None, :], Q[:, None] + Q[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        TRV = np.sqrt(N) * G.longer / np.sqrt(np.where(C.apart > 0, C.apart, np.nan))
        # ``(s_l + s_m)^2 - 4 s_lm^2``
        bracket = V.apart * (total + 2 * V.inner)
        bracket = np.where(bracket > 0, bracket, np.nan)
        rho = V.longer / np.sqrt(bracket)
        # ``s_m Q_l + s_l Q_m - 2 s_lm g_l' g_m``
        numerator = (total * G.apart + V.apart * (fits - G.apart) - V.longer * G.longer) / 2
        F = 2 * N * numerator / (K * bracket)
    for matrix in (TRV, F, rho):
        matrix[same] = np.nan
    return Fit(Q, TRV, F, rho, C.inner, same, K)


class ConfidenceSet(NamedTuple):
    """P-values (M,) of models, the running maximum of `steps` along eliminations. NaN for what is left out."""

    p_values: np.ndarray
    steps: np.ndarray


def confidence_set(fit: Fit, seed: int = 0) -> ConfidenceSet:
    """The model confidence set of Hansen, Lunde and Nason (2011), in which models are whose p-value is large enough.

    The model with the largest statistic of those left is eliminated, until one is left. A p-value is the probability of
    a larger one, under equal fit of those left: simulated, and exact for the last pair. Of models with the same costs,
    only the first takes part; where some pair has no test, there are no p-values at all.
    """
    M = fit.Q.size
    steps, p_values = np.full(M, np.nan), np.full(M, np.nan)
    left = [m for m in range(M) if not fit.same[m, :m].any()]
    if (np.isnan(fit.TRV) & ~fit.same).any():
        return ConfidenceSet(p_values, steps)
    eigenvalues, vectors = np.linalg.eigh(fit.C)
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0))
    draws = root @ np.random.default_rng(seed).standard_normal((M, DRAWS if len(left) > 2 else 0))
    own, highest = np.diag(fit.C), 0.0
    scale = np.sqrt(np.maximum(own[:, None] + own[None, :] - 2 * fit.C, np.finfo(float).tiny))
    while len(left) > 1:
        T = np.nan_to_num(fit.TRV[np.ix_(left, left)])
        worst, other = np.unravel_index(np.argmax(T), T.shape)
        if len(left) == 2:
            p = 2 * float(ndtr(-T[worst, other]))
        else:
            largest = np.zeros(DRAWS)
            for i, a in enumerate(left):
                for b in left[:i]:
                    gap = draws[a] - draws[b]
                    np.abs(gap, out=gap)
                    gap /= scale[a, b]
                    np.maximum(largest, gap, out=largest)
            p = float(np.mean(largest > T[worst, other]))
        highest = max(highest, p)
        eliminated = left.pop(int(worst))
        steps[eliminated], p_values[eliminated] = p, highest
    steps[left], p_values[left] = 1.0, 1.0
    return ConfidenceSet(p_values, steps)


def _products(contributions: np.ndarray, clusters: Clusters | None) -> Products:
    """Products of the columns of contributions (N, M), which are added up within clusters before."""
    if clusters is None:
        return _products_of(contributions)
    parts = [_products_of(sums).scaled(sign) for sign, sums in sums_within(contributions, clusters)]
    return Products(*(sum(kind[1:], kind[0]) for kind in zip(*parts, strict=True)))


def _products_of(x: np.ndarray) -> Products:
    M = x.shape[1]
    apart, longer = np.zeros((2, M, M))
    for i in range(M):
        for j in range(i):
            gap = x[:, i] - x[:, j]
            apart[i, j] = apart[j, i] = gap @ gap
            longer[i, j] = gap @ (x[:, i] + x[:, j])
            longer[j, i] = -longer[i, j]
    return Products(x.T @ x, apart, longer)


def _same_costs(omega: np.ndarray) -> np.ndarray:
    """Which pairs (M, M) of models imply the same costs once cost shifters have explained what they can."""
    size = np.sqrt((omega**2).mean(axis=0))
    gaps = np.array([np.sqrt(((omega - column[:, None]) ** 2).mean(axis=0)) for column in omega.T])
    same: np.ndarray = gaps <= SAME * np.maximum(size[:, None], size[None, :])
    return same
