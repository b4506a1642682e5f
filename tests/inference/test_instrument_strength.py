"""Strength of instruments: against linearmodels, formulas in the literature's own letters, and what cannot matter."""

import functools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
from linearmodels.iv import IV2SLS

import blpjax
from blpjax import Formulation, Optimization, Problem
from blpjax.exceptions import IdentificationError, IdentificationWarning
from blpjax.inference.instrument_strength import effective_f, instrument_strength
from blpjax.inputs.absorb import count_effects
from blpjax.objective.projections import orthonormal_basis
from tests.support import joint, lags
from tests.support.estimated import CASES, solved
from tests.tolerances import FIXED_PARAMETERS, LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")

EXCLUDED = [f"demand_instruments{k}" for k in range(6)]


@functools.cache
def data() -> pd.DataFrame:
    return joint.tables(markets=4)[0].sort_values("market_ids", ignore_index=True)


def logit(products: pd.DataFrame | None = None, X1: str = "1 + prices + x + y", absorb: str | None = None) -> Any:
    problem = Problem(Formulation(X1, absorb=absorb), data() if products is None else products)
    return problem.solve(method="1s", optimization=Optimization("return"))


def residuals(columns: np.ndarray, controls: np.ndarray) -> np.ndarray:
    return columns - controls @ np.linalg.lstsq(controls, columns, rcond=None)[0]


def linearised(name: str) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """Y, Z, the number of exogenous columns, and clusters of one of the solved problems."""
    results = solved(name)
    products = CASES[name].tables[0]
    X = products.assign(one=1.0)[["one", "x", "y"]].to_numpy()
    by_theta = results.xi_by_theta_jacobian[:, : len(results.theta) - 1]  # the coefficient on prices is the last
    Y = np.c_[by_theta, products.prices]
    clusters = np.unique(products.clustering_ids, return_inverse=True)[1]
    return residuals(Y, X), residuals(products[EXCLUDED].to_numpy(), X), X.shape[1], clusters


# --- against other computations -----------------------------------------------------------------------------------


def test_the_first_stage_of_a_logit_is_that_of_linearmodels() -> None:
    products = data().assign(one=1.0)
    found = logit().compute_instrument_strength()
    assert found["block"].tolist() == ["beta"] and found["parameter"].tolist() == ["prices"]
    model = IV2SLS(np.zeros(len(products)), products[["one", "x", "y"]], products["prices"], products[EXCLUDED])
    fit = model.fit(cov_type="unadjusted").first_stage
    LINEAR_ALGEBRA.check(found["partial_r2"], [fit.diagnostics["partial.rsquared"].iloc[0]])
    K, left = found.attrs["degrees_of_freedom"]
    assert (K, left) == (6, len(products) - 9) and found.attrs["instruments"] == 6
    # linearmodels' F has N in place of degrees of freedom
    F = fit.diagnostics["f.stat"].iloc[0] * left / len(products)
    LINEAR_ALGEBRA.check(found["conditional_f"], [F])
    LINEAR_ALGEBRA.check(found.attrs["cragg_donald"], F)


def test_one_instrument_has_the_robust_f_statistic_of_its_coefficient() -> None:
    products = data().assign(one=1.0).drop(columns=EXCLUDED[1:])
    found = logit(products).compute_instrument_strength()
    regressors = products[["one", "x", "y", EXCLUDED[0]]]
    for suffix, options in (("", {"cov_type": "robust"}), ("_clustered", {"cov_type": "clustered"})):
        if suffix:
            options["clusters"] = np.unique(products.clustering_ids, return_inverse=True)[1]
        fit = IV2SLS(products["prices"], regressors, None, None).fit(debiased=False, **options)
        LINEAR_ALGEBRA.check(found[f"effective_f{suffix}"], [fit.tstats.iloc[-1] ** 2])
        # the square of the normal quantile at a concentration parameter of 10: (sqrt(10) + 1.645)^2
        np.testing.assert_allclose(found[f"critical_value{suffix}"], 23.1, atol=0.05)


def test_effective_and_joint_statistics_are_those_of_their_formulas() -> None:
    """With the instruments themselves in place of an orthonormal basis, and eigenvalues of a pencil of matrices."""
    Y, Z, exogenous, clusters = linearised("demand alone")
    (N, n), K = Y.shape, Z.shape[1]
    found = solved("demand alone").compute_instrument_strength()
    assert found["block"].tolist() == ["sigma", "sigma", "pi", "beta"] and n == 4
    P = Z @ np.linalg.inv(Z.T @ Z) @ Z.T
    left = N - K - exogenous
    for j in range(n):
        y, others = Y[:, j], np.delete(Y, j, axis=1)
        v = y - P @ y
        scores = Z * v[:, None]
        sums = np.stack([scores[clusters == c].sum(axis=0) for c in np.unique(clusters)])
        for suffix, part in (("", scores), ("_clustered", sums)):
            S = part.T @ part
            F = y @ P @ y / np.trace(np.linalg.inv(Z.T @ Z) @ S)
            FIXED_PARAMETERS.check(found[f"effective_f{suffix}"][j], F)
            root = np.linalg.inv(scipy.linalg.sqrtm(Z.T @ Z).real)
            W = root @ S @ root
            largest = np.linalg.eigvalsh(W).max()
            degrees = np.trace(W) ** 2 * 21 / (np.trace(W @ W) + 20 * np.trace(W) * largest)
            critical = scipy.stats.ncx2.ppf(0.95, degrees, 10 * degrees) / degrees
            FIXED_PARAMETERS.check(found[f"critical_value{suffix}"][j], critical)
        u = y - others @ np.linalg.solve(others.T @ P @ others, others.T @ P @ y)
        F = (u @ P @ u / (K - n + 1)) / (u @ (u - P @ u) / left)
        FIXED_PARAMETERS.check(found["conditional_f"][j], F)
        FIXED_PARAMETERS.check(found["partial_r2"][j], y @ P @ y / (y @ y))
    eigenvalues = scipy.linalg.eigh(Y.T @ P @ Y, (Y.T @ Y - Y.T @ P @ Y) / left, eigvals_only=True)
    FIXED_PARAMETERS.check(found.attrs["cragg_donald"], eigenvalues[0] / K)


def test_absorbed_effects_count_as_indicators() -> None:
    """In one dimension, and in two, one of whose levels is redundant."""
    for absorb, indicators in (("C(firm_ids)", "C(firm_ids)"), ("C(firm_ids) + C(market_ids)",) * 2):
        absorbed = logit(X1="0 + prices + x + y", absorb=absorb).compute_instrument_strength()
        included = logit(X1=f"1 + prices + x + y + {indicators}").compute_instrument_strength()
        pd.testing.assert_frame_equal(absorbed, included, rtol=1e-8)
        FIXED_PARAMETERS.check(absorbed.attrs["cragg_donald"], included.attrs["cragg_donald"])
        assert absorbed.attrs["degrees_of_freedom"] == included.attrs["degrees_of_freedom"]


def test_redundant_effects_are_not_counted() -> None:
    ids = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3]])  # two components, 3 + 4 levels
    assert count_effects(ids[:, :0]) == 0 and count_effects(ids[:, :1]) == 3 and count_effects(ids) == 5


# --- what cannot and what must matter ------------------------------------------------------------------------------


def test_units_and_mixtures_of_instruments_do_not_matter() -> None:
    products = data().copy()
    mixed = products[EXCLUDED].to_numpy() @ (np.eye(6) + 0.3 * np.tri(6)) * np.array([1, 100, 1e-6, 1, 10, 1])
    more = {f"demand_instruments{k}": mixed[:, k] for k in range(6)}
    before = logit().compute_instrument_strength()
    after = logit(products.assign(**more)).compute_instrument_strength()
    pd.testing.assert_frame_equal(before, after, rtol=1e-7)
    with pytest.warns(IdentificationWarning, match="collinear"):
        twice = logit(products.assign(demand_instruments6=products.demand_instruments0)).compute_instrument_strength()
    pd.testing.assert_frame_equal(before, twice, rtol=1e-7)


def test_parameters_that_share_an_instrument_are_weak_together_only() -> None:
    """Two regressors that follow the first instrument closely, and another one hardly."""
    rng = np.random.default_rng(0)
    Z = orthonormal_basis(rng.normal(size=(400, 3)))
    Y = np.c_[Z[:, 0], Z[:, 0] + 0.1 * Z[:, 1]] * 20 + rng.normal(size=(400, 2))
    assert (effective_f(Y, Z).statistic > 50).all()
    found = instrument_strength(Y, Z, 0)
    assert found.cragg_donald < 3 and (found.conditional < 5).all()
    alone = instrument_strength(Y[:, :1], Z, 0)
    assert alone.conditional[0] > 50 and alone.conditional[0] == pytest.approx(alone.cragg_donald)
    # a regressor that does not vary has no statistics, and others are as without it
    constant = instrument_strength(np.c_[Y[:, :1], np.full(400, np.nan)], Z, 0)
    LINEAR_ALGEBRA.check(constant.conditional, [alone.conditional[0], np.nan])
    assert np.isnan(effective_f(np.c_[Y[:, :1], np.full(400, np.nan)], Z).statistic).tolist() == [False, True]


def test_fixed_coefficients_are_no_regressors() -> None:
    """X1 without an estimated coefficient on x has x among the excluded instruments."""
    problem = Problem(Formulation("1 + prices + x + y"), data())
    results = problem.solve(beta=[None, None, 0, None], method="1s", optimization=Optimization("return"))
    assert results.compute_instrument_strength().attrs["instruments"] == 7


# --- errors --------------------------------------------------------------------------------------------------------


def test_problems_without_first_stages_say_why() -> None:
    problem = Problem(Formulation("1 + prices + x + y"), data())
    fixed = problem.solve(beta=[None, 0, None, None], method="1s", optimization=Optimization("return"))
    with pytest.raises(ValueError, match="no endogenous regressors"):
        fixed.compute_instrument_strength()
    few = Problem(Formulation("1 + prices + x + I(prices**2)"), data().drop(columns=EXCLUDED[1:]))
    with pytest.warns(IdentificationWarning):
        results = few.solve(method="1s", optimization=Optimization("return"))
    with pytest.raises(IdentificationError, match=r"1 excluded instruments for 2 .*: prices, "):
        results.compute_instrument_strength()
    with pytest.raises(ValueError, match="5 products are too few"):
        instrument_strength(np.ones((5, 1)), np.eye(5)[:, :3], 2)
    dynamic = lags.build(blpjax, supply=False, random=False, markets=4)
    results = dynamic.solve(**lags.arguments(blpjax, "innovations", supply=False, random=False))
    with pytest.raises(NotImplementedError, match="demand_moment_types"):
        results.compute_instrument_strength()
