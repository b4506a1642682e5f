"""The test of the logit's independence of irrelevant alternatives."""

import functools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from linearmodels.iv import IV2SLS

from blpjax import Formulation, Problem
from blpjax.exceptions import DataError, IdentificationError
from tests.support import joint

pytestmark = pytest.mark.usefixtures("quiet")

EXCLUDED = [f"demand_instruments{k}" for k in range(6)]
RIVALS = Formulation("0 + distance + number")


@functools.cache
def data() -> pd.DataFrame:
    """Products with how far rivals' x are, squared, and how many products there are."""
    products = joint.tables(markets=10)[0]
    x, markets = products.x.to_numpy(), products.market_ids.to_numpy()
    distance = ((x[:, None] - x) ** 2 * (markets[:, None] == markets)).sum(axis=1)
    number = products.groupby("market_ids").x.transform("size")
    return products.assign(distance=distance, number=number, text="a")


def test(problem: Any = None, A: Any = RIVALS, **options: Any) -> Any:
    problem = Problem(Formulation("1 + prices + x + y"), data()) if problem is None else problem
    return problem.run_iia_test(A, **options)


test.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["robust", "clustered", "unadjusted"])
@pytest.mark.parametrize("own", [False, True])
def test_statistics_are_those_of_linearmodels(kind: str, own: bool) -> None:
    products = data().assign(one=1.0)
    names = ["demand_instruments0", "demand_instruments4", "demand_instruments5"] if own else EXCLUDED
    found = test(se_type=kind, instruments=Formulation("0 + " + " + ".join(names)) if own else None)
    delta = np.log(products.shares) - np.log(1 - products.groupby("market_ids").shares.transform("sum"))
    model = IV2SLS(delta, products[["one", "x", "y", "distance", "number"]], products["prices"], products[names])
    options = {"clusters": np.unique(products.clustering_ids, return_inverse=True)[1]} if kind == "clustered" else {}
    fit = model.fit(cov_type=kind, debiased=False, **options)
    np.testing.assert_allclose(found.table["estimate"], fit.params[["distance", "number"]], rtol=1e-8)
    np.testing.assert_allclose(found.table["se"], fit.std_errors[["distance", "number"]], rtol=1e-8)
    wald = fit.wald_test(np.eye(6)[3:5], np.zeros(2))
    assert found.statistic == pytest.approx(wald.stat, rel=1e-8) and found.degrees_of_freedom == 2
    assert found.p_value == pytest.approx(wald.pval, rel=1e-8) and found.table["parameter"].tolist() == [
        "distance",
        "number",
    ]
    assert f"IIA test with {kind} standard errors: chi2(2) = " in str(found)


def test_effects_are_absorbed_from_everything() -> None:
    absorbed = Problem(Formulation("0 + prices + x + y", absorb="C(firm_ids)"), data())
    included = Problem(Formulation("0 + C(firm_ids) + prices + x + y"), data())
    pd.testing.assert_frame_equal(test(absorbed).table, test(included).table, rtol=1e-7)


def test_nests_do_not_change_the_logit_that_is_tested() -> None:
    nested = Problem(Formulation("1 + prices + x + y"), data().assign(nesting_ids=data().firm_ids))
    pd.testing.assert_frame_equal(test(nested).table, test().table)


def test_the_logit_passes_and_strong_tastes_do_not() -> None:
    """500 markets of four products whose characteristics differ: p-values with and without tastes for x."""
    rng = np.random.default_rng(3)
    T, J = 500, 4
    x, w, xi = rng.uniform(0, 3, (T, J)), rng.normal(size=(T, J)), 0.3 * rng.normal(size=(T, J))
    prices = 1 + 0.5 * w + 0.3 * x + 0.3 * xi
    p_values = []
    for spread in (0.0, 3.0):
        utilities = (xi - prices)[..., None] + x[..., None] * (spread * rng.normal(size=200))
        shares = (np.exp(utilities) / (1 + np.exp(utilities).sum(axis=1, keepdims=True))).mean(axis=2)
        distance = ((x[:, :, None] - x[:, None, :]) ** 2).sum(axis=2)
        columns = {"prices": prices, "shares": shares, "x": x, "distance": distance, "demand_instruments0": w}
        table = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
        problem = Problem(Formulation("1 + prices + x"), table.assign(market_ids=np.repeat(np.arange(T), J)))
        p_values.append(test(problem, Formulation("0 + distance")).p_value)
    assert p_values[0] > 0.05 and p_values[1] < 1e-6


def test_arguments_that_cannot_be_used_are_refused() -> None:
    for formula, message in (
        ("0 + prices", "'prices' in formulation are"),
        ("0 + I(shares**2)", "'shares'"),
    ):
        with pytest.raises(IdentificationError, match=message):
            test(A=Formulation(formula))
    with pytest.raises(IdentificationError, match="'prices' in instruments are endogenous"):
        test(instruments=Formulation("0 + prices"))
    for formula in ("1 + distance", "0 + x", "0 + distance + I(2 * distance)"):
        with pytest.raises(IdentificationError, match="collinear with each other, with X1"):
            test(A=Formulation(formula))
    with pytest.raises(IdentificationError, match="as many excluded instruments as columns of X1 with prices"):
        test(instruments=Formulation("0 + distance"))
    with pytest.raises(ValueError, match="formulation cannot absorb"):
        test(A=Formulation("0 + distance", absorb="C(firm_ids)"))
    with pytest.raises(DataError, match="distanz"):
        test(A=Formulation("0 + distanz"))
    with pytest.raises(ValueError, match="se_type must be one of"):
        test(se_type="HC3")
    without = Problem(Formulation("1 + prices + x + y"), data().drop(columns="clustering_ids"))
    with pytest.raises(ValueError, match="clustering_ids"):
        test(without, se_type="clustered")


@pytest.mark.usefixtures("unchecked_types")
def test_formulations_are_asked_for() -> None:
    with pytest.raises(TypeError, match="formulation must be a Formulation, not str"):
        test(A="distance")
