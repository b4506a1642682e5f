"""Screens of mergers: against published tables, closed forms of the logit, and the equilibrium itself."""

import functools
from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax import Formulation, Optimization, Problem
from blpjax.outputs.pricing_pressure import market_pressure
from tests.support.designs import mostly_slow
from tests.support.estimated import CASES, merged, solved
from tests.support.silence import silent
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, LINEAR_ALGEBRA, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

PRODUCTS = pd.DataFrame(
    {
        "market_ids": ["a", "a", "a", "a", "b", "b", "b"],
        "product_ids": [1, 2, 3, 4, 1, 2, 3],
        "firm_ids": [1, 1, 2, 3, 1, 3, 3],
        "prices": [1.5, 1.8, 1.7, 2.0, 1.6, 1.9, 1.4],
        "shares": [0.15, 0.1, 0.2, 0.12, 0.25, 0.1, 0.2],
    }
)
FIRMS = PRODUCTS.firm_ids.to_numpy()
MERGED = np.where(FIRMS == 2, 1, FIRMS)


@functools.cache
def logit(log: bool = False, slope: float = -2.0, symmetric: tuple[float, float] | None = None) -> Any:
    """A logit at a known coefficient of prices, or of log(prices); or two equal products with a share and a price."""
    table = PRODUCTS
    if symmetric is not None:
        share, price = symmetric
        table = pd.DataFrame({"market_ids": 0, "firm_ids": [1, 2], "prices": price, "shares": share})
    table = table.assign(demand_instruments0=np.arange(len(table)))
    with silent():
        problem = Problem(Formulation("0 + log(prices)" if log else "0 + prices"), table)
        return problem.solve(
            beta=[slope], method="1s", optimization=Optimization("return"), check_optimality="gradient"
        )


# --- published numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "percentages"),
    [
        (0.4, [3.5, 7.4, 11.8, 16.7, 22.2]),
        pytest.param(0.5, [5.3, 11.1, 17.6, 25.0, 33.3], marks=pytest.mark.slow),
        pytest.param(0.6, [7.9, 16.7, 26.5, 37.5, 50.0], marks=pytest.mark.slow),
        pytest.param(0.7, [12.3, 25.9, 41.2, 58.3, 77.8], marks=pytest.mark.slow),
    ],
)
def test_compensating_reductions_of_costs_are_those_of_werden(margin: float, percentages: list[float]) -> None:
    """Table 1 of Werden (1996): two equal products, with diversion of 5% to 25% of sales and margins on prices."""
    for diversion, percentage in zip((0.05, 0.1, 0.15, 0.2, 0.25), percentages, strict=True):
        share = diversion / (1 + diversion)
        results = logit(slope=-1 / (margin * (1 - share)), symmetric=(share, 1.0))
        frame = results.compute_pricing_pressure({2: 1})
        LINEAR_ALGEBRA.check(frame["diversion"], [diversion] * 2)
        LINEAR_ALGEBRA.check(frame["cmcr"], [margin * diversion / ((1 - margin) * (1 - diversion))] * 2)
        assert (100 * frame["cmcr"]).round(1).tolist() == [percentage] * 2
        LINEAR_ALGEBRA.check(frame["guppi"], [margin * diversion] * 2)


def test_three_products_with_given_diversion() -> None:
    """The documented example of the R package antitrust: the owner of a product merges with that of two others."""
    R = np.array([[-1.0, 0.6, 0.02], [0.5, -1.0, 0.2], [0.01, 0.1, -1.0]])
    p, margins = np.array([50.0, 45.0, 70.0]), np.array([0.3, 0.4, 0.6])
    H0 = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    s = -(H0 * R) @ (margins * p)  # conditions of the firms, where own slopes are -1
    c = (1 - margins) * p
    diversion, pressure, changed = market_pressure(R.T, H0, np.ones((3, 3)), s, p, c)
    ROUNDING.check(diversion, [0.62, 0.5, 0.01])
    ROUNDING.check(100 * pressure / p, [23.28, 16.666666666666664, 0.2142857142857224])
    LINEAR_ALGEBRA.check(100 * (c - changed) / c, [67.22550177095634, 73.09720582447856, 8.424692190925953])


# --- closed forms ---------------------------------------------------------------------------------------------------


def test_screens_of_logits() -> None:
    """Diversion is ``s_k / (1 - s_j)``, and a firm with shares of S in all has margins of ``1 / (a (1 - S))``."""
    frame = logit().compute_pricing_pressure({2: 1}, 0.05)
    s, p = PRODUCTS.shares.to_numpy(), PRODUCTS.prices.to_numpy()

    def margins(firms: np.ndarray) -> np.ndarray:
        sums = PRODUCTS.assign(firm=firms).groupby(["market_ids", "firm"])["shares"].transform("sum")
        return np.asarray(1 / (2.0 * (1 - sums)))

    costs, merging = p - margins(FIRMS), np.array([1, 1, 1, 0, 0, 0, 0])
    partners = np.array([0.2, 0.2, 0.25, 0, 0, 0, 0])
    earned = partners * margins(FIRMS)[[2, 2, 0, 0, 0, 0, 0]] / (1 - s)
    LINEAR_ALGEBRA.check(frame["costs"], costs)
    LINEAR_ALGEBRA.check(frame["diversion"], partners / (1 - s))
    LINEAR_ALGEBRA.check(frame["guppi"], earned / p)
    LINEAR_ALGEBRA.check(frame["upp"], earned - 0.05 * merging * costs)
    LINEAR_ALGEBRA.check(frame["cmcr"], (margins(MERGED) - margins(FIRMS)) / costs)
    assert frame["firm_before"].tolist() == FIRMS.tolist() and frame["firm_after"].tolist() == MERGED.tolist()
    assert frame["product"].tolist() == PRODUCTS.product_ids.tolist()


@pytest.mark.parametrize(
    ("efficiency", "log"),
    [
        (0.0, False),
        (0.04, True),
        pytest.param(0.0, True, marks=pytest.mark.slow),
        pytest.param(0.04, False, marks=pytest.mark.slow),
    ],
)
def test_first_order_changes_are_newton_steps(log: bool, efficiency: float) -> None:
    """From conditions divided by own slopes, differentiated by differences; slopes in log(prices) have no symmetry."""
    slope = -4.0 if log else -2.0
    results = logit(log, slope)
    frame = results.compute_pricing_pressure(MERGED, efficiency)
    expected = np.zeros(len(PRODUCTS))
    for _, part in PRODUCTS.groupby("market_ids"):
        rows = part.index.to_numpy()
        p, s0 = part.prices.to_numpy(), part.shares.to_numpy()
        H = MERGED[rows][:, None] == MERGED[rows]
        other = np.log(s0 / (1 - s0.sum())) - slope * (np.log(p) if log else p)
        cheaper = (H != (FIRMS[rows][:, None] == FIRMS[rows])).any(axis=1)
        c = results.compute_costs()[rows, 0] * (1 - efficiency * cheaper)

        def h(prices: np.ndarray, other: Any = other, H: Any = H, c: Any = c) -> np.ndarray:
            e = np.exp(other + slope * (np.log(prices) if log else prices))
            s = e / (1 + e.sum())
            D = slope * (np.diag(s) - np.outer(s, s)) / (prices if log else 1.0)
            return np.asarray(-(s + (H * D.T) @ (prices - c)) / np.diag(D))

        step = 1e-5 * np.eye(p.size)
        J = np.stack([(h(p + one) - h(p - one)) / 2e-5 for one in step], axis=1)
        expected[rows] = -np.linalg.solve(J, h(p))
    CENTRAL_DIFFERENCE.check(frame["first_order_change"], expected)


# --- the equilibrium ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(["linear costs", "logit"], ["logit"]))
def test_prices_stay_where_costs_fall_by_what_compensates(name: str) -> None:
    known, firms = solved(name), CASES[name].tables[0].firm_ids
    frame = known.compute_pricing_pressure({2: 1})
    reductions = frame["cmcr"].to_numpy()
    assert (reductions[firms != 0] >= 0).all() and (reductions > 0).any() and np.allclose(reductions[firms == 0], 0)
    outcome = known.counterfactual(firm_ids={2: 1}, costs=lambda costs: (1 - reductions) * costs)
    DELTA.check(outcome.after.prices, frame["prices"])


def test_screens_agree_with_the_simulation_on_small_changes() -> None:
    """Where costs alone change, by little, a Newton step is the change of prices but for terms of second order."""
    firms = np.where(PRODUCTS.product_ids == 4, 1, FIRMS)
    whole = logit().compute_pricing_pressure(firms, simulate=True)
    outcome = logit().counterfactual(firm_ids=firms)
    np.testing.assert_array_equal(whole["simulated_change"], outcome.products["prices_change"])
    # efficiencies that nearly compensate leave little to change
    errors = []
    for part in (0.98, 0.99):
        frame = logit().compute_pricing_pressure(firms, part * whole["cmcr"], simulate=True)
        errors.append((frame["first_order_change"] - frame["simulated_change"]).abs().max())
        assert frame["simulated_change"].abs().max() > 20 * errors[-1]
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_firms_that_are_split_have_pressure_downwards() -> None:
    frame = logit().compute_pricing_pressure(np.arange(7))
    split = np.array([True, True, False, False, False, True, True])
    assert (frame.loc[split, ["diversion", "guppi", "upp", "cmcr", "first_order_change"]] < 0).all(axis=None)
    ROUNDING.check(frame.loc[~split, ["diversion", "guppi", "upp"]], np.zeros((3, 3)))


def test_ownership_by_matrices_and_negative_costs() -> None:
    table = PRODUCTS.drop(columns="firm_ids").to_dict("series")
    table["demand_instruments"] = np.arange(7.0)
    table["ownership"] = blpjax.build_ownership(PRODUCTS)
    with silent():
        results = Problem(Formulation("0 + prices"), table).solve(
            beta=[-2.0], method="1s", optimization=Optimization("return"), check_optimality="gradient"
        )
    frame = results.compute_pricing_pressure(MERGED)
    expected = logit().compute_pricing_pressure({2: 1})
    assert "firm_before" not in frame
    for column in ("guppi", "cmcr", "first_order_change"):
        LINEAR_ALGEBRA.check(frame[column], expected[column])
    frame = logit(slope=-0.3).compute_pricing_pressure({2: 1})
    assert (frame["costs"] < 0).all() and frame["cmcr"].isna().all() and frame["guppi"].notna().all()


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"firm_ids": {7: 1}}, "firm_ids has the old ID 7, which is none of the firm IDs."),
        ({"firm_ids": [1, 2]}, "firm_ids must hold 7 IDs, one for each product, not 2."),
        ({"firm_ids": None}, "firm_ids must be given"),
        ({"firm_ids": {1: 9}}, "firm_ids changes nothing: no product gets or loses a partner in its market."),
        ({"firm_ids": {2: 1}, "efficiencies": 5}, "efficiencies must be parts of costs, such as 0.05"),
        ({"firm_ids": {2: 1}, "efficiencies": [0.1]}, "efficiencies must hold 7 numbers"),
        (
            {"firm_ids": {2: 1}, "efficiencies": np.nan},
            "efficiencies must be an array of finite numbers: row 0 is nan.",
        ),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logit().compute_pricing_pressure(**arguments)


@pytest.mark.usefixtures("unchecked_types")
def test_flags_are_flags() -> None:
    with pytest.raises(TypeError, match="simulate must be"):
        logit().compute_pricing_pressure({2: 1}, simulate="yes")


@pytest.mark.slow
@pytest.mark.parametrize("hold", ["shares", "xi"])
def test_standard_errors_are_those_of_differences(hold: str) -> None:
    name = "logit"
    known, firms = solved(name), merged(CASES[name].tables[0])
    frame = known.compute_pricing_pressure(firms, 0.05, standard_errors=True, hold_fixed=hold)
    columns = ["costs", "diversion", "guppi", "upp", "cmcr", "first_order_change"]
    plain = known.compute_pricing_pressure(firms, 0.05)
    ROUNDING.check(frame[columns], plain[columns])
    if hold == "xi":
        other = known.compute_pricing_pressure(firms, 0.05, standard_errors=True)
        assert (frame["guppi_se"] > 0).any() and not np.allclose(frame["costs_se"], other["costs_se"])
        return
    beta, step, slopes = known.beta[:, 0], 1e-5, []
    for k in range(beta.size):
        h = step * np.eye(beta.size)[k]
        up, down = (CASES[name].solve(beta=beta + sign * h).compute_pricing_pressure(firms, 0.05) for sign in (1, -1))
        slopes.append((up[columns].to_numpy() - down[columns].to_numpy()) / (2 * step))
    J = np.stack(slopes)
    places = [known.parameter_labels.index(label) for label in known.beta_labels]
    V = (known.parameter_covariances / len(known.delta))[np.ix_(places, places)]
    errors = np.sqrt(np.einsum("inm,ij,jnm->nm", J, V, J))
    CENTRAL_DIFFERENCE.check(frame[[f"{column}_se" for column in columns]], errors)
