"""Statistics of tests of conduct: influence functions by numerical derivatives, the paper's formulas, simulation."""

import functools
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from blpjax.inference.conduct_critical_values import POWERS, SIZES, critical_values
from blpjax.inference.conduct_statistics import Fit, confidence_set, fit_models
from blpjax.objective.clusters import number_clusters
from blpjax.objective.projections import orthonormal_basis, residuals_on
from tests.support.designs import mostly_slow
from tests.tolerances import CENTRAL_DIFFERENCE, LINEAR_ALGEBRA, ROUNDING

N, M, K, P, R = 80, 4, 3, 2, 3

#: Adjustments for demand: none, for estimates from products, and for estimates from products and another sample.
ADJUSTMENTS = ["none", "products", "all"]


@functools.cache
def data(seed: int = 0) -> dict[str, Any]:
    """Costs of four models, cost shifters, instruments in odd units, slopes, influence functions and clusters.

    `errors` are influence functions of R errors of another sample.
    """
    rng = np.random.default_rng(seed)
    shifters, Z = np.c_[np.ones(N), rng.normal(size=N)], rng.normal(size=(N, K)) * [1.0, 100.0, 0.01] + 1
    costs = (
        rng.normal(size=(N, M))
        + 0.5 * rng.normal(size=(N, 1))
        + Z @ np.diag([1, 0.01, 100]) @ rng.normal(size=(K, M)) / 4
    )
    slopes, psi = rng.normal(size=(M, N, P)), rng.normal(size=(N, P))
    psi = psi - psi.mean(axis=0)
    known = {"W": shifters, "Z": Z, "c": costs, "slopes": slopes, "psi": psi, "ids": rng.integers(0, 12, N)}
    return known | {"errors": 5 * rng.normal(size=(R, P))}


def fit(adjust: str = "none", clusters: bool = False, **changes: Any) -> Fit:
    known = data() | changes
    controls = orthonormal_basis(known["W"])
    return fit_models(
        residuals_on(controls, known["c"]),
        orthonormal_basis(known["Z"], controls),
        None if adjust == "none" else list(known["slopes"]),
        None if adjust == "none" else known["psi"],
        number_clusters(known["ids"]) if clusters else None,
        known["errors"] if adjust == "all" else None,
    )


def weighted_fit(w: np.ndarray, adjust: str, moved: np.ndarray | float = 0.0) -> np.ndarray:
    """Q of all models in a sample in which observations count w times; estimates of demand follow the sample.

    They are `moved` (P,) by errors of another sample.
    """
    known = data()
    c = known["c"]
    if adjust != "none":
        c = c + np.einsum("mnp,p->nm", known["slopes"], w @ known["psi"] / w.sum() + moved)
    root = np.sqrt(w)[:, None]

    def residuals(values: np.ndarray) -> np.ndarray:
        b = np.linalg.lstsq(root * known["W"], root * values, rcond=None)[0]
        return values - known["W"] @ b

    omega, Z = residuals(c), residuals(known["Z"])
    g = Z.T @ (w[:, None] * omega) / w.sum()
    A = Z.T @ (w[:, None] * Z) / w.sum()
    return np.array([g[:, m] @ np.linalg.solve(A, g[:, m]) for m in range(M)])


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("adjust", ADJUSTMENTS)
def test_variances_are_those_of_influence_functions(adjust: str, clusters: bool) -> None:
    """Which are derivatives of the fit when an observation counts a little more, regressions and demand included."""
    h, ones = 1e-5, np.ones(N)
    scores = np.array(
        [
            N * (weighted_fit(ones + h * row, adjust) - weighted_fit(ones - h * row, adjust)) / (2 * h)
            for row in np.eye(N)
        ]
    )
    if clusters:
        scores = np.stack([scores[data()["ids"] == c].sum(axis=0) for c in range(12)])
    if adjust == "all":
        others = [weighted_fit(ones, adjust, h * e) - weighted_fit(ones, adjust, -h * e) for e in data()["errors"]]
        scores = np.concatenate([scores, np.array(others) / (2 * h)])
    C = scores.T @ scores / N
    found, Q = fit(adjust, clusters), weighted_fit(ones, adjust)
    LINEAR_ALGEBRA.check(found.Q, Q)
    CENTRAL_DIFFERENCE.check(found.C, C)
    for i in range(M):
        for j in range(M):
            if i != j:
                T = np.sqrt(N) * (Q[i] - Q[j]) / np.sqrt(C[i, i] + C[j, j] - 2 * C[i, j])
                CENTRAL_DIFFERENCE.check(found.TRV[i, j], T)


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("adjust", ADJUSTMENTS)
def test_effective_f_is_that_of_the_paper(adjust: str, clusters: bool) -> None:
    """With the instruments themselves and the weighting matrix of two-stage least squares."""
    known = data()
    project = np.eye(N) - known["W"] @ np.linalg.pinv(known["W"])
    omega, Z = project @ known["c"], project @ known["Z"]
    W = np.linalg.inv(Z.T @ Z / N)
    g = Z.T @ omega / N
    phi = []
    for m in range(M):
        part = (omega[:, m] - Z @ W @ g[:, m])[:, None] * Z
        B = Z.T @ known["slopes"][m] / N
        if adjust != "none":
            part = part + known["psi"] @ B.T
        if clusters:
            part = np.stack([part[known["ids"] == c].sum(axis=0) for c in range(12)])
        if adjust == "all":
            part = np.concatenate([part, known["errors"] @ B.T])
        phi.append(part @ W)
    found = fit(adjust, clusters)
    for i in range(M):
        for j in range(i):
            s = {(a, b): np.trace(phi[a].T @ phi[b] / N @ np.linalg.inv(W)) / K for a in (i, j) for b in (i, j)}
            rho = (s[i, i] - s[j, j]) / np.sqrt((s[i, i] + s[j, j]) ** 2 - 4 * s[i, j] ** 2)
            LINEAR_ALGEBRA.check(found.rho[i, j], rho)
            fits = (
                s[j, j] * g[:, i] @ W @ g[:, i] + s[i, i] * g[:, j] @ W @ g[:, j] - 2 * s[i, j] * g[:, i] @ W @ g[:, j]
            )
            F = (1 - rho**2) * N / (2 * K) * fits / (s[i, i] * s[j, j] - s[i, j] ** 2)
            LINEAR_ALGEBRA.check(found.F[i, j], F)


def test_units_mixtures_signs_and_order_do_not_matter() -> None:
    known, before = data(), fit("all", True)
    mixed = fit("all", True, Z=known["Z"] @ np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 50.0], [3.0, 0.0, -1.0]]) + 7.0)
    scaled = fit("all", True, c=1000 * known["c"], slopes=1000 * known["slopes"])
    more = fit("all", True, Z=np.c_[known["Z"], known["Z"].sum(axis=1)])  # the same span
    order = np.array([2, 0, 3, 1])
    turned = fit("all", True, c=known["c"][:, order], slopes=known["slopes"][order])
    for name in ("TRV", "F", "rho"):
        values = getattr(before, name)
        for other in (mixed, scaled, more):
            LINEAR_ALGEBRA.check(getattr(other, name), values, name)
        ROUNDING.check(getattr(turned, name), values[np.ix_(order, order)])
        sign = 1 if name == "F" else -1
        ROUNDING.check(values.T, sign * values)
    LINEAR_ALGEBRA.check(scaled.Q, 1e6 * before.Q)
    sets = [confidence_set(one).p_values for one in (before, turned)]
    np.testing.assert_allclose(sets[1], sets[0][order], atol=0.005)


def test_demand_that_is_certain_needs_no_adjustment() -> None:
    known, plain = data(), fit()
    certain = fit("products", psi=0 * known["psi"])
    flat = fit("products", slopes=0 * known["slopes"])
    for other in (certain, flat):
        LINEAR_ALGEBRA.check(other.TRV, plain.TRV)
        LINEAR_ALGEBRA.check(other.F, plain.F)
    assert np.nanmax(np.abs(fit("products").TRV - plain.TRV)) > 0.01


def test_models_with_the_same_costs_have_no_test() -> None:
    """Also where they differ by what cost shifters explain."""
    known = data()
    costs = np.c_[known["c"][:, :2], known["c"][:, [0]] + known["W"] @ [[3.0], [2.0]], known["c"][:, 3]]
    found = fit(c=costs)
    same = np.isnan(found.TRV)
    assert same[0, 2] and same[2, 0] and same.sum() == M + 2
    assert (np.isnan(found.F) == same).all() and (np.isnan(found.rho) == same).all()
    p_values, steps = confidence_set(found)
    assert np.isnan(p_values[2]) and np.isfinite(p_values[[0, 1, 3]]).all()
    without = confidence_set(fit(c=costs[:, [0, 1, 3]]))
    np.testing.assert_allclose(p_values[[0, 1, 3]], without.p_values, atol=0.005)


def test_models_that_are_nearly_alike_keep_their_digits() -> None:
    """The difference of costs is a direction: statistics do not change when it is scaled down to 1e-6."""
    known = data()
    gap = known["c"][:, 1] - known["c"][:, 0]

    def near(size: float) -> Fit:
        return fit(c=np.c_[known["c"][:, 0], known["c"][:, 0] + size * gap])

    # limits of all statistics exist: halving a small difference changes them in proportion
    small, smaller = near(2e-6), near(1e-6)
    np.testing.assert_allclose(small.TRV[0, 1], smaller.TRV[0, 1], rtol=1e-5)
    np.testing.assert_allclose(small.F[0, 1], smaller.F[0, 1], rtol=1e-5)


def test_clusters_of_several_kinds_correlate_what_shares_one() -> None:
    """Against sums over all pairs of observations; where variances are then not positive there is no test."""
    known, rng = data(), np.random.default_rng(4)
    ids = np.column_stack([known["ids"], rng.integers(0, 15, N)])
    share = (ids[:, None, :] == ids[None, :, :]).any(axis=2)
    found, controls = fit("products", True, ids=ids), orthonormal_basis(known["W"])
    omega = residuals_on(controls, known["c"])
    z = np.sqrt(N) * orthonormal_basis(known["Z"], controls)
    g = z.T @ omega / N
    B = np.einsum("nk,mnp->mkp", z, known["slopes"]) / N
    scores = 2 * (z @ g) * omega - (z @ g) ** 2 - (g**2).sum(axis=0)
    scores = scores + 2 * known["psi"] @ np.einsum("km,mkp->pm", g, B)
    C = scores.T @ share @ scores / N
    LINEAR_ALGEBRA.check(found.C, C)
    variance = np.diag(C)[:, None] + np.diag(C) - 2 * C
    assert (np.isfinite(found.TRV) == (variance > 1e-12)).all()
    without = found.TRV.copy()
    without[0, 1] = without[1, 0] = np.nan
    assert np.isnan(confidence_set(found._replace(TRV=without)).p_values).all()


# --- confidence sets -----------------------------------------------------------------------------------------------


def test_p_values_are_running_maxima_of_simulated_ones() -> None:
    """Directly: correlated normal statistics of all pairs that are left, with another generator."""
    found = fit("products")
    p_values, steps = confidence_set(found, seed=3)
    rng, left, highest = np.random.default_rng(99), list(range(M)), 0.0
    root = np.linalg.cholesky(found.C)
    while len(left) > 1:
        pairs = [(i, j) for i in left for j in left if i > j]
        worst = max(pairs, key=lambda pair: abs(found.TRV[pair]))
        draws = rng.normal(size=(400_000, M)) @ root.T
        T = [(draws[:, i] - draws[:, j]) / (draws[:, i] - draws[:, j]).std() for i, j in pairs]
        p = np.mean(np.abs(T).max(axis=0) > abs(found.TRV[worst]))
        out = worst[0] if found.TRV[worst] > 0 else worst[1]
        highest = max(highest, p)
        np.testing.assert_allclose([steps[out], p_values[out]], [p, highest], atol=0.004)
        left.remove(out)
    assert p_values[left[0]] == steps[left[0]] == 1.0
    assert (confidence_set(found, seed=3).p_values == p_values).all()


# --- critical values -----------------------------------------------------------------------------------------------

#: Tables of Duarte, Magnolfi, Sølvsten and Sullivan (2024): K, rho, critical values for size and for power.
PUBLISHED = [
    (1, 0.0, (0.0, 0.0, 0.0), (17.8, 22.2, 29.8)),
    (1, 0.5, (0.0, 0.0, 0.0), (12.4, 15.5, 20.5)),
    (1, 0.9, (28.4, 13.5, 0.0), (3.1, 3.8, 5.1)),
    (1, 0.99, (31.8, 14.5, 8.4), (0.3, 0.4, 0.5)),
    (2, 0.0, (0.0, 0.0, 0.0), (9.9, 12.3, 16.4)),
]


@pytest.mark.parametrize(("K", "rho", "size", "power"), PUBLISHED)
def test_critical_values_are_the_published_ones(K: int, rho: float, size: Any, power: Any) -> None:
    found = critical_values(K, -rho)
    np.testing.assert_allclose(found.size, size, rtol=0.03)
    np.testing.assert_allclose(found.power, power, atol=0.1)
    assert critical_values(K, rho) is found


DESIGNS = {"7, 0.5": (7, 0.5), "40, 0.8": (40, 0.8), "3, 0.97": (3, 0.97)}


@pytest.mark.parametrize("design", mostly_slow(DESIGNS, fast=["7, 0.5"]))
def test_critical_values_have_their_meaning_with_vectors(design: tuple[int, float]) -> None:
    """Simulate the limit as it is written: where power is as claimed, F exceeds the value in one draw of twenty."""
    (K, rho), rng = design, np.random.default_rng(1)
    x = rng.normal(size=(50_000, K))
    y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)
    first = np.eye(K)[0]

    def limit(below: float, above: float) -> tuple[float, np.ndarray]:
        a, b = x + below * first, y + above * first
        A, B, D = (a**2).sum(axis=1), (b**2).sum(axis=1), (a * b).sum(axis=1)
        return float((np.abs(D) / np.sqrt(A + B + 2 * rho * D) > 1.96).mean()), (A + B - 2 * rho * D) / (2 * K)

    found = critical_values(K, rho)
    for power, value in zip(POWERS, found.power, strict=True):
        low, high = 0.0, 40.0
        for _ in range(12 if value else 0):
            mu = (low + high) / 2
            low, high = (mu, high) if limit(mu, mu)[0] < power else (low, mu)
        if value:
            np.testing.assert_allclose(value, np.quantile(limit(high, high)[1], 0.95), rtol=0.05)
        else:
            assert limit(0.0, 0.0)[0] > power - 0.01
    sizes = [limit(0.0, mu)[0] for mu in np.linspace(0, 30, 31)]
    for size, value in zip(SIZES, found.size, strict=True):
        assert value or max(sizes) < size + 0.005
        assert not value or max(sizes) > size - 0.005


# --- size and power ------------------------------------------------------------------------------------------------


def simulate(rng: np.random.Generator, tilt: float, strength: float = 1.0, n: int = 400) -> dict[str, Any]:
    """Products of a logit whose slope is estimated, with two models of markups that are a / alpha and b / alpha.

    True markups are ``(1 - tilt) a + tilt b`` over alpha: models fit equally at a tilt of one half.
    """
    z, w, omega, xi = rng.normal(size=(4, n))
    a, b = 1 + 0.3 * strength * z + 0.2 * rng.normal(size=n), 1 - 0.3 * strength * z + 0.2 * rng.normal(size=n)
    alpha = 2.0
    prices = 3 + w + omega + ((1 - tilt) * a + tilt * b) / alpha
    delta = -alpha * prices + 1.5 * xi
    controls = orthonormal_basis(np.c_[np.ones(n), z])
    y, p, q = (residuals_on(controls, v[:, None])[:, 0] for v in (delta, prices, w))
    estimate = -(q @ y) / (q @ p)  # by the cost shifter w
    psi = -q * (y + estimate * p) / (q @ p / n)
    shifters = orthonormal_basis(np.c_[np.ones(n), w])
    costs = prices[:, None] - np.c_[a, b] / estimate
    return {
        "omega": residuals_on(shifters, costs),
        "basis": orthonormal_basis(z[:, None], shifters),
        "slopes": [m[:, None] / estimate**2 for m in (a, b)],
        "psi": psi[:, None],
    }


@pytest.mark.slow
def test_rejection_rates_are_those_of_theory() -> None:
    """Of 1,000 economies 5% reject models that fit equally; the wrong one is rejected where the other is true."""
    rng = np.random.default_rng(8)
    T = np.array([fit_models(**simulate(rng, 0.5)).TRV[0, 1] for _ in range(1000)])
    low, high = binom.ppf([0.001, 0.999], 1000, 0.05)
    assert low <= (np.abs(T) > 1.96).sum() <= high
    T = np.array([fit_models(**simulate(rng, 0.0)).TRV[0, 1] for _ in range(200)])
    assert (T < -1.96).mean() > 0.75 and not (T > 1.96).any()


@pytest.mark.slow
def test_effective_f_tells_weak_instruments() -> None:
    """F exceeds the critical values of power where instruments move markups, and hardly ever where they do not."""
    rng = np.random.default_rng(9)
    reached = {}
    for strength in (1.0, 0.0):
        fits = [fit_models(**simulate(rng, 0.0, strength)) for _ in range(100)]
        values = [critical_values(one.K, one.rho[0, 1]).power[0] for one in fits]
        reached[strength] = np.mean([one.F[0, 1] > value for one, value in zip(fits, values, strict=True)])
    assert reached[1.0] > 0.95 and reached[0.0] < 0.12
