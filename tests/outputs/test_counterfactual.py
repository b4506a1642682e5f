"""Counterfactuals: against firms' conditions solved by SciPy, PyBLP, closed forms, and each other; their errors."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.special

import blpjax
from blpjax import Formulation, Optimization, Problem, Taxes
from blpjax.exceptions import ConvergenceWarning, EquilibriumPricesConvergenceError
from tests.support.estimated import CASES, merged, solved
from tests.support.programs import compilations
from tests.support.silence import silent
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")
SIZES = (4, 3, 5)
BETA, SIGMA, PI = np.array([1.0, -2.0, 1.5]), np.diag([0.5, 0.3]), np.array([[0.0], [0.4]])


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Three markets with firms of several products. Prices are not special: costs are what they imply."""
    rng, N = np.random.default_rng(5), sum(SIZES)
    products = pd.DataFrame({"market_ids": np.repeat(["a", "b", "c"], SIZES), "x": rng.uniform(0.3, 1.2, N)})
    products["product_ids"] = np.concatenate([np.arange(size) for size in SIZES])
    products["firm_ids"] = np.array([0, 0, 1, 2, 1, 0, 2, 0, 1, 1, 2, 2])
    products["prices"] = 1.2 + 0.5 * products.x + rng.uniform(0, 0.3, N)
    products["shares"] = rng.uniform(0.08, 0.16, N)
    agents = pd.DataFrame({"market_ids": np.repeat(["a", "b", "c"], 30), "weights": 1 / 30})
    agents = agents.assign(nodes0=rng.normal(size=90), nodes1=rng.normal(size=90), income=rng.normal(size=90))
    instruments = {f"demand_instruments{k}": rng.uniform(size=N) for k in range(6)}
    return products.assign(**instruments), agents


PRODUCTS, AGENTS = tables()
ODD, FIRST = (PRODUCTS.product_ids % 2 == 1).to_numpy(), (PRODUCTS.product_ids == 0).to_numpy()
RATES = np.where(ODD, 0.2, 0.1)


@functools.cache
def results() -> Any:
    formulas = Formulation("1 + prices + x"), Formulation("1 + prices")
    with silent():
        problem = Problem(formulas, PRODUCTS, Formulation("0 + income"), AGENTS)
        return problem.solve(SIGMA, PI, beta=BETA, method="1s", optimization=Optimization("return"))


def demand(market: str, prices: np.ndarray, x: np.ndarray, xi: np.ndarray, present: np.ndarray) -> Any:
    """Shares, their derivatives, and consumer surplus of a market, agent by agent."""
    people = AGENTS[AGENTS.market_ids == market]
    J = prices.size
    shares, slopes, surplus = np.zeros(J), np.zeros((J, J)), 0.0
    for one in people.itertuples():
        alpha = BETA[1] + SIGMA[1, 1] * one.nodes1 + PI[1, 0] * one.income
        utility = BETA[0] + SIGMA[0, 0] * one.nodes0 + alpha * prices + BETA[2] * x + xi
        e = np.where(present, np.exp(utility), 0.0)
        s = e / (1 + e.sum())
        shares += one.weights * s
        slopes += one.weights * alpha * (np.diag(s) - np.outer(s, s))
        surplus += one.weights * np.log1p(e.sum()) / -alpha
    return shares, slopes, surplus


def conditions(q: np.ndarray, market: str, prices: np.ndarray, xi: np.ndarray, w: dict[str, Any]) -> np.ndarray:
    """First-order conditions of the prices that are free, at which these are q."""
    H, free = w["firms"][:, None] == w["firms"], w["present"] & ~w["held"]
    prices = prices.copy()
    prices[free] = q
    s, D, _ = demand(market, prices, w["x"], xi, w["present"])
    margins = w["kept"] * prices - w["unit"] - w["costs"]
    return np.asarray((w["kept"] * s + (H * D.T) @ margins)[free])


class World:
    """What a scenario is, for the reference: every array has a row for each product."""

    def __init__(self) -> None:
        N = len(PRODUCTS)
        self.firms, self.x, self.costs = (
            PRODUCTS.firm_ids.to_numpy(),
            PRODUCTS.x.to_numpy(),
            results().compute_costs()[:, 0],
        )
        self.kept, self.unit = np.ones(N), np.zeros(N)
        self.present, self.held = np.ones(N, bool), np.zeros(N, bool)
        self.prices: np.ndarray | None = None

    def solve(self) -> pd.DataFrame:
        """Prices at which no firm gains from another price, by SciPy."""
        frames = []
        for market, part in PRODUCTS.groupby("market_ids"):
            rows = part.index.to_numpy()
            xi, known = results().xi[rows, 0], part.prices.to_numpy()
            pick = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
            free = pick["present"] & ~pick["held"]
            prices = known.copy()
            if self.prices is not None:
                prices = self.prices[rows]
            elif free.any():
                prices[free] = scipy.optimize.root(conditions, known[free], (market, known, xi, pick), tol=1e-13).x
            s, _, surplus = demand(str(market), prices, pick["x"], xi, pick["present"])
            net = pick["kept"] * prices - pick["unit"]
            frames.append(
                pd.DataFrame(
                    {
                        "prices": np.where(pick["present"], prices, np.nan),
                        "shares": s,
                        "net_prices": np.where(pick["present"], net, np.nan),
                        "profits": (net - pick["costs"]) * s,
                        "revenue": (prices - net) * s,
                        "surplus": surplus,
                        "market": market,
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)


def world(**changes: Any) -> World:
    made = World()
    for name, value in changes.items():
        setattr(made, name, value(getattr(made, name)) if callable(value) else np.broadcast_to(value, len(PRODUCTS)))
    return made


FIRMS = PRODUCTS.firm_ids.to_numpy()
SCENARIOS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "merger": (
        {"firm_ids": {1: 0}, "costs": lambda c: 0.95 * c},
        {"firms": np.where(FIRMS == 1, 0, FIRMS), "costs": lambda c: 0.95 * c},
    ),
    "divestiture": ({"firm_ids": np.where(ODD, 9, FIRMS)}, {"firms": np.where(ODD, 9, FIRMS)}),
    "exit": ({"drop": FIRST}, {"present": ~FIRST}),
    "exit at given prices": (
        {"drop": FIRST, "prices": PRODUCTS.prices},
        {"present": ~FIRST, "prices": PRODUCTS.prices.to_numpy()},
    ),
    "unit tax": ({"taxes": Taxes(unit=np.where(FIRST, 0, 0.2))}, {"unit": np.where(FIRST, 0, 0.2)}),
    "taxes of net prices": (
        {"taxes": Taxes(unit=0.1, ad_valorem=RATES)},
        {"unit": 0.1, "kept": 1 / (1 + RATES)},
    ),
    "taxes of prices": ({"taxes": Taxes(ad_valorem=RATES, base="price")}, {"kept": 1 - RATES}),
    "characteristic": ({"set": {"x": lambda x: x + 0.3 * FIRST}}, {"x": lambda x: x + 0.3 * FIRST}),
    "costs": ({"costs": lambda c: c + 0.1}, {"costs": lambda c: c + 0.1}),
    "held products of merging firms": (
        {"firm_ids": {1: 0}, "hold": ODD},
        {"firms": np.where(FIRMS == 1, 0, FIRMS), "held": ODD},
    ),
    "everything": (
        {
            "firm_ids": {2: 1},
            "hold": FIRST,
            "set": {"x": 1.0},
            "taxes": Taxes(0.1, 0.05),
            "drop": PRODUCTS.product_ids == 2,
        },
        {
            "firms": np.where(FIRMS == 2, 1, FIRMS),
            "held": FIRST,
            "x": 1.0,
            "unit": 0.1,
            "kept": 1 / 1.05,
            "present": (PRODUCTS.product_ids != 2).to_numpy(),
        },
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_firm_gains_from_another_price(name: str) -> None:
    arguments, changes = SCENARIOS[name]
    found, expected = results().counterfactual(**arguments), world(**changes).solve()
    for column in ("prices", "shares", "net_prices", "profits"):
        LINEAR_ALGEBRA.check(found.products[f"{column}_after"], expected[column], column)
    by = expected.groupby("market")
    sums = (
        by[["profits", "revenue"]].sum().assign(consumer_surplus=by["surplus"].first(), inside_share=by["shares"].sum())
    )
    sums["total"] = sums.profits + sums.revenue + sums.consumer_surplus
    sums["mean_price"] = by["prices"].mean()
    for column in sums:
        LINEAR_ALGEBRA.check(found.markets[f"{column}_after"], sums[column], column)
    assert found.markets["converged"].all() and (found.markets["residual"] < 1e-10).all()
    np.testing.assert_array_equal(found.products["prices_before"], PRODUCTS.prices)


def test_nothing_that_changes_is_the_point_that_was_observed() -> None:
    found = results().counterfactual()
    for column in ("prices", "shares", "costs", "net_prices", "profits"):
        DELTA.check(found.products[f"{column}_after"], found.products[f"{column}_before"], column)
    ROUNDING.check(found.markets["consumer_surplus_before"], results().compute_consumer_surpluses()[:, 0])
    ROUNDING.check(found.products["profits_before"], results().compute_profits()[:, 0])


def test_mergers_are_those_of_compute_prices() -> None:
    for name in ("linear costs", "fixed effects", "logit"):
        known, (products, _) = solved(name), CASES[name].tables
        found = known.counterfactual(firm_ids=merged(products))
        FIXED_PARAMETERS.check(found.products["prices_after"], known.compute_prices(merged(products))[:, 0], name)
        matrices = blpjax.build_ownership(products.assign(firm_ids=merged(products)))
        DELTA.check(known.counterfactual(ownership=matrices).after.prices, found.after.prices, name)


def test_costs_follow_variables_and_shares() -> None:
    known, (products, _) = solved("log costs of shares"), CASES["log costs of shares"].tables
    gamma = known.gamma[:, 0]
    found = known.counterfactual(set={"w": products.w + 0.1})
    LINEAR_ALGEBRA.check(found.after.costs, known.compute_costs()[:, 0] * np.exp(0.1 * gamma[1]))
    moving = known.counterfactual(firm_ids=merged(products), constant_costs=False)
    expected = known.compute_prices(merged(products), constant_costs=False)[:, 0]
    FIXED_PARAMETERS.check(moving.after.prices, expected)
    change = moving.after.shares - products.shares.to_numpy()
    LINEAR_ALGEBRA.check(moving.after.costs, known.compute_costs()[:, 0] * np.exp(gamma[2] * change))


def test_two_steps_are_the_same_as_one() -> None:
    merger, tax = {"firm_ids": {1: 0}, "costs": lambda c: c + 0.1}, {"taxes": Taxes(0.1, RATES)}
    once = results().counterfactual(**merger, **tax)
    twice = results().counterfactual(**merger).counterfactual(**tax)
    DELTA.check(twice.after.prices, once.after.prices)
    DELTA.check(twice.markets["total_change"], once.markets["total_change"])
    first = results().counterfactual(drop=FIRST).counterfactual(set={"x": 0.5})
    both = results().counterfactual(drop=FIRST, set={"x": 0.5})
    DELTA.check(first.after.shares, both.after.shares)
    pd.testing.assert_series_equal(twice.products["firm_after"], once.products["firm_after"])


def test_a_uniform_tax_is_higher_costs() -> None:
    a, t = 0.15, 0.2
    taxed = results().counterfactual(taxes=Taxes(t, a))
    costly = results().counterfactual(costs=lambda c: (1 + a) * (c + t))
    DELTA.check(taxed.after.prices, costly.after.prices)
    DELTA.check(taxed.after.net_prices, taxed.after.prices / (1 + a) - t)


def test_removing_a_product_at_fixed_prices_harms_consumers() -> None:
    found = results().counterfactual(drop=ODD, prices=PRODUCTS.prices)
    assert (found.markets["consumer_surplus_change"] < 0).all()
    eliminated = results().compute_consumer_surpluses(eliminate_product_ids=[1, 3])[:, 0]
    DELTA.check(found.markets["consumer_surplus_after"], eliminated)


def test_markets_may_become_empty() -> None:
    found = results().counterfactual(drop=PRODUCTS.market_ids == "b")
    row = found.markets.set_index("market_ids").loc["b"]
    assert row["consumer_surplus_after"] == row["profits_after"] == row["inside_share_after"] == 0
    assert found.markets.loc[found.markets.market_ids != "b", "profits_change"].abs().max() < 1e-9


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_monopoly_with_logit_demand_has_a_closed_form(rate: float) -> None:
    """Markups are (1 + W(exp(v - 1))) / a, with Lambert's W, and v the utility at a price of costs."""
    single = pd.DataFrame(
        {"market_ids": [0, 1], "firm_ids": 0, "prices": [1.5, 2.0], "shares": [0.3, 0.2], "x": [1.0, 2.0]}
    )
    single["demand_instruments0"] = [1.0, 2.0]
    with silent():
        known = Problem(Formulation("0 + prices"), single).solve(
            beta=[-2.0], method="1s", optimization=Optimization("return")
        )
    found = known.counterfactual(costs=lambda c: c + 0.3, taxes=Taxes(ad_valorem=rate))
    costs = known.compute_costs()[:, 0] + 0.3
    v = np.log(single.shares / (1 - single.shares)) + 2.0 * single.prices - 2.0 * (1 + rate) * costs
    markup = (1 + scipy.special.lambertw(np.exp(v.to_numpy() - 1)).real) / 2.0
    LINEAR_ALGEBRA.check(found.after.prices, (1 + rate) * costs + markup)


# --- entry ----------------------------------------------------------------------------------------------------------

ENTRANTS = pd.DataFrame({"market_ids": ["a", "b", "c"], "firm_ids": [9, 0, 9], "x": [0.7, 1.0, 0.4]})


def test_a_product_that_leaves_and_comes_back_changes_nothing() -> None:
    same = PRODUCTS.loc[FIRST, ["market_ids", "firm_ids", "x"]].assign(like=0)
    found = results().counterfactual(drop=FIRST, add=same)
    back = found.products.tail(len(same))
    DELTA.check(back["prices_after"], PRODUCTS.prices[FIRST])
    DELTA.check(back["shares_after"], PRODUCTS.shares[FIRST])
    DELTA.check(found.markets["total_after"], found.markets["total_before"])
    assert (back["shares_before"] == 0).all() and back["prices_before"].isna().all()


@pytest.mark.parametrize("prices", [False, True])
def test_new_products_are_as_if_they_had_been_there(prices: bool) -> None:
    """Where their market's tables have had them, with a share that the model explains, and they were dropped."""
    entrants = ENTRANTS.assign(xi=[0.1, -0.2, 0.0], costs=[0.9, 1.0, 1.1], prices=[1.5, 1.6, 1.4])
    given = {"prices": PRODUCTS.prices} if prices else {}
    found = results().counterfactual(add=entrants, firm_ids={2: 1}, taxes=Taxes(0.1), **given)
    after = found.after
    if prices:
        np.testing.assert_array_equal(found.products["prices_after"].tail(3), entrants.prices)
    else:
        gradient = after.model.profit_gradients(costs=after.costs + 0.1, firm_ids=found.products["firm_after"])
        assert np.abs(gradient).max() < 1e-10
    for t, market in enumerate(["a", "b", "c"]):
        rows = np.flatnonzero(found.products.market_ids == market)
        x = np.append(PRODUCTS.x[PRODUCTS.market_ids == market], entrants.x[t])
        xi = np.append(results().xi[(PRODUCTS.market_ids == market).to_numpy(), 0], entrants.xi[t])
        s, _, surplus = demand(market, after.prices[rows], x, xi, np.ones(rows.size, bool))
        LINEAR_ALGEBRA.check(after.shares[rows], s)
        LINEAR_ALGEBRA.check(found.markets["consumer_surplus_after"][t], surplus)
    assert found.products["firm_after"].tail(3).tolist() == [9, 0, 9]
    ROUNDING.check(found.products["costs_after"].tail(3), entrants.costs)
    ROUNDING.check(found.markets["consumer_surplus_before"], results().compute_consumer_surpluses()[:, 0])


def test_numbers_of_new_products_keep_their_values() -> None:
    """Also where all known ones are integers."""
    whole = PRODUCTS.assign(x=np.arange(len(PRODUCTS)) % 3)
    with silent():
        known = Problem(Formulation("1 + prices + x"), whole).solve(
            beta=BETA, method="1s", optimization=Optimization("return")
        )
    one = pd.DataFrame({"market_ids": ["a"], "firm_ids": [9], "x": [0.5], "costs": [1.0]})
    after = known.counterfactual(add=one).after.model
    assert after.characteristics.variables["x"][-1] == 0.5
    ROUNDING.check(after.delta[-1], BETA @ [1.0, after.prices[-1], 0.5])


def test_costs_of_new_products_follow_from_a_supply_side_with_standard_errors() -> None:
    known, products = solved("logit"), CASES["logit"].tables[0]
    first = products.drop_duplicates("market_ids")
    entrants = first[["market_ids", "x", "y", "w"]].assign(firm_ids=9)
    found = known.counterfactual(add=entrants, standard_errors=True)
    gamma, beta = known.gamma[:, 0], known.beta[:, 0]
    new = found.products.tail(len(first))
    ROUNDING.check(new["costs_after"], gamma[0] + gamma[1] * first.w + gamma[2] * first.x)
    utilities = found.after.model.delta[len(products) :] - beta[1] * found.after.prices[len(products) :]
    ROUNDING.check(utilities, beta[0] + beta[2] * first.x + beta[3] * first.y)
    assert (new["prices_after_se"] > 0).all() and (found.markets["consumer_surplus_change"] > 0).all()
    fixed = solved("fixed effects")
    with pytest.raises(blpjax.exceptions.DataError, match="fixed effects of new products are unknown"):
        fixed.counterfactual(add=entrants)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (ENTRANTS, "DataError", "no column 'costs', and nothing explains"),
        (ENTRANTS.assign(costs=1.0, market_ids="d"), "DataError", "row 0 is in the market 'd'"),
        (ENTRANTS.drop(columns="x").assign(costs=1.0), "DataError", "no column 'x'"),
        (ENTRANTS.assign(costs=1.0, z=1.0), "DataError", "column 'z', which product_data does not have"),
        (ENTRANTS.assign(like=[0, 7, 0]), "DataError", "row 1 is like the product 7, of which there are 0"),
        (ENTRANTS.assign(costs=np.nan), "DataError", "costs"),
        ([1, 2], "TypeError", "add"),
    ],
)
def test_new_products_that_cannot_be_there_are_named(table: Any, error: str, message: str) -> None:
    kind = getattr(blpjax.exceptions, error, TypeError)
    with pytest.raises(kind, match=message):
        results().counterfactual(add=table)


def test_what_new_products_do_not_support_says_so() -> None:
    entrants = ENTRANTS.assign(costs=1.0)
    with pytest.raises(NotImplementedError, match="Use firm_ids"):
        results().counterfactual(add=entrants, ownership=np.ones((12, 5)))
    with pytest.raises(blpjax.exceptions.DataError, match="no column 'prices', which new products need"):
        results().counterfactual(add=entrants, prices=PRODUCTS.prices)
    with pytest.raises(NotImplementedError, match="new products had no shares before"):
        results().counterfactual(add=entrants, constant_costs=False)
    shares = solved("log costs of shares")
    with pytest.raises(blpjax.exceptions.DataError, match="X3 explains them by shares"):
        shares.counterfactual(
            add=CASES["log costs of shares"].tables[0][["market_ids", "x", "y", "w"]].assign(firm_ids=9)
        )
    with pytest.raises(NotImplementedError, match="in the call that adds them"):
        results().counterfactual(add=entrants).counterfactual(firm_ids={2: 1})
    with pytest.raises(TypeError, match="add"):
        results().counterfactual().counterfactual(add=entrants)


# --- standard errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"firm_ids": {2: 1}, "costs": lambda c: 0.95 * c, "taxes": Taxes(0.05)},
        pytest.param({"drop": "first", "set": {"y": lambda y: y + 0.1}}, marks=pytest.mark.slow),
    ],
)
def test_standard_errors_are_those_of_differences(arguments: dict[str, Any]) -> None:
    known = solved("logit")
    if arguments.get("drop") == "first":
        arguments = arguments | {"drop": ~CASES["logit"].tables[0].duplicated("market_ids").to_numpy()}
    found = known.counterfactual(standard_errors=True, **arguments)
    beta, columns = known.beta[:, 0], ("consumer_surplus", "profits", "revenue", "total", "mean_price")

    def at(parameters: np.ndarray) -> np.ndarray:
        moved = CASES["logit"].solve(beta=parameters)
        return np.concatenate([moved.counterfactual(**arguments).markets[f"{c}_change"] for c in columns])

    step, slopes = 1e-5, []
    for k in range(beta.size):
        up, down = (at(beta + sign * step * np.eye(beta.size)[k]) for sign in (1, -1))
        slopes.append((up - down) / (2 * step))
    J = np.stack(slopes, axis=1)
    places = [
        known.parameter_labels.index(label) for label in known.beta_labels
    ]  # costs are implied: gamma has no effect
    V = (known.parameter_covariances / len(known.delta))[np.ix_(places, places)]
    errors = np.sqrt(np.einsum("mi,ij,mj->m", J, V, J))
    CENTRAL_DIFFERENCE.check(np.concatenate([found.markets[f"{c}_change_se"] for c in columns]), errors)
    T = len(found.markets)
    mean = J.reshape(len(columns), T, -1)[0].mean(axis=0)
    summary = found.summary()
    CENTRAL_DIFFERENCE.check(summary.loc["consumer_surplus", "change_se"], np.sqrt(mean @ V @ mean))
    own = found.delta_method(lambda before, after: jnp.nanmean(after.prices) - before.prices.mean())
    LINEAR_ALGEBRA.check(own.standard_errors, summary.loc["mean_price", "change_se"])


def test_a_second_scenario_of_the_same_kind_compiles_nothing() -> None:
    def solve(cheaper: float) -> Any:
        new = {"firm_ids": {2: 1}, "costs": lambda costs: cheaper * costs, "taxes": Taxes(1 - cheaper)}
        return solved("logit").counterfactual(**new, standard_errors=True).summary()

    first = solve(0.95)
    with compilations() as seen:
        assert solve(0.9).loc["revenue", "after"] > first.loc["revenue", "after"]
    assert seen == []


# --- tables ---------------------------------------------------------------------------------------------------------


def test_tables_agree_with_each_other() -> None:
    found = results().counterfactual(firm_ids={1: 0}, taxes=Taxes(ad_valorem=0.1))
    firms = found.firms.groupby("market_ids")[["profits_before", "profits_after"]].sum()
    ROUNDING.check(firms["profits_after"], found.markets["profits_after"])
    ROUNDING.check(firms["profits_before"], found.markets["profits_before"])
    assert set(found.products["firm_after"]) == {0, 2} and (found.products["firm_before"] == FIRMS).all()
    summary, weights = found.summary(), [100.0, 200.0, 50.0]
    assert str(found).startswith("Counterfactual, means over 3 markets:") and "consumer_surplus" in repr(found)
    ROUNDING.check(summary.loc["profits", "after"], found.markets["profits_after"].mean())
    ROUNDING.check(found.summary(weights).loc["total", "change"], found.markets["total_change"] @ weights)
    ROUNDING.check(summary.loc["mean_price", "after"], found.products["prices_after"].mean())
    ROUNDING.check(
        found.total(PRODUCTS.x)["after"], PRODUCTS.x.mul(found.after.shares).groupby(PRODUCTS.market_ids).sum()
    )


def test_groups_of_agents_add_up_to_everybody() -> None:
    found = results().counterfactual(costs=lambda c: c + 0.2)
    groups = found.by_agent("income", quantiles=4)
    assert (groups["change"] < 0).all() and groups["weight"].to_numpy() == pytest.approx(3 / 4, abs=0.05)
    assert (groups["highest"].to_numpy()[:-1] <= groups["lowest"].to_numpy()[1:]).all()
    mean = (groups["weight"] * groups["change"]).sum() / 3
    assert mean == pytest.approx(found.markets["consumer_surplus_change"].mean(), rel=1e-12)
    sexes = found.by_agent(np.tile(["f", "m"], 45))
    assert sexes["group"].tolist() == ["f", "m"] and sexes["weight"].sum() == pytest.approx(3)


def test_scenarios_are_compared_side_by_side() -> None:
    table = blpjax.compare({"1+0": {"firm_ids": {1: 0}}, "cheaper": {"costs": lambda c: 0.9 * c}}, results())
    assert table.index.tolist() == ["1+0", "cheaper"]
    expected = results().counterfactual(firm_ids={1: 0}).summary()
    ROUNDING.check(table.loc["1+0", ("profits", "change")], expected.loc["profits", "change"])
    assert table.loc["cheaper", ("consumer_surplus", "change")] > 0 > table.loc["1+0", ("consumer_surplus", "change")]


def test_demand_after_the_change_is_that_of_the_outcome() -> None:
    found = results().counterfactual(costs=lambda c: c + 0.2)
    elasticities = found.compute_elasticities()
    expected = results().compute_elasticities()
    assert elasticities.shape == expected.shape and not np.allclose(elasticities, expected, equal_nan=True)
    ROUNDING.check(found.compute_shares()[:, 0], found.after.shares)
    DELTA.check(found.compute_costs()[:, 0], found.after.costs)
    with pytest.raises(NotImplementedError, match="taxes"):
        results().counterfactual(taxes=Taxes(0.1)).compute_costs()
    assert "compute_elasticities" in dir(found)


def test_simulations_have_them_without_standard_errors() -> None:
    with silent():
        solution = blpjax.Simulation(
            (Formulation("1 + prices + x"), None, Formulation("1 + x")),
            PRODUCTS[["market_ids", "firm_ids", "x"]],
            beta=[1.0, -2.0, 1.0],
            gamma=[0.5, 0.2],
            seed=0,
        ).replace_endogenous()
    found = solution.counterfactual(firm_ids={1: 0})
    FIXED_PARAMETERS.check(found.after.prices, solution.compute_prices(np.where(FIRMS == 1, 0, FIRMS))[:, 0])
    with pytest.raises(TypeError, match="has no standard errors"):
        solution.counterfactual(standard_errors=True)


# --- failures and errors --------------------------------------------------------------------------------------------


def test_markets_without_an_equilibrium_are_named_and_make_sums_missing() -> None:
    short = blpjax.Iteration("simple", {"max_evaluations": 2})
    with pytest.warns(ConvergenceWarning, match="equilibrium prices reached the maximum .* 'a'"):
        found = results().counterfactual(
            costs=lambda c: c + 0.5 * (PRODUCTS.market_ids == "a").to_numpy(), iteration=short
        )
    assert found.markets["converged"].tolist()[0] is False or not found.markets["converged"].iloc[0]
    assert np.isnan(found.markets["profits_after"].iloc[0]) and np.isnan(found.summary().loc["total", "after"])
    assert found.firms.loc[found.firms.market_ids == "a", "profits_after"].isna().all()
    with pytest.raises(EquilibriumPricesConvergenceError, match="'a'"):
        results().counterfactual(costs=lambda c: c + 0.5, iteration=short, error_behavior="raise")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"set": {"typo": 1.0}}, NameError, "'typo', but no formula has such a numeric variable. There are x"),
        ({"set": {"prices": 1.0}}, ValueError, "Use the argument prices"),
        ({"set": {"shares": 1.0}}, ValueError, "follow from other variables"),
        ({"set": [1]}, TypeError, "set must be a mapping"),
        ({"drop": np.zeros(len(PRODUCTS), bool)}, ValueError, "drop is true for no product"),
        ({"drop": [0, 1]}, ValueError, "drop must be 12 times True or False"),
        ({"hold": PRODUCTS.product_ids}, ValueError, "hold must be 12 times True or False"),
        ({"hold": FIRST, "drop": FIRST}, ValueError, "hold and drop are both true in row 0"),
        ({"hold": FIRST, "prices": PRODUCTS.prices}, ValueError, "nobody sets"),
        ({"firm_ids": {1: "merged"}}, ValueError, "new IDs of the type of old ones"),
        ({"firm_ids": {7: 1}}, ValueError, "old ID 7, which is none of the firm IDs"),
        ({"firm_ids": [1, 2]}, ValueError, "firm_ids must hold 12 IDs"),
        ({"firm_ids": FIRMS, "ownership": np.ones((12, 5))}, ValueError, "not both"),
        ({"costs": [1.0]}, ValueError, "costs must hold 12 numbers"),
        ({"taxes": 0.2}, TypeError, "taxes must be a Taxes"),
        ({"taxes": Taxes(unit=np.where(FIRST, 0.1, 0)), "drop": FIRST}, ValueError, "no product that remains"),
        ({"taxes": Taxes(unit=[0.1])}, ValueError, "taxes must hold 12 numbers"),
        ({"taxes": Taxes(0.1), "constant_costs": False}, NotImplementedError, "constant_costs=True"),
        ({"drop": PRODUCTS.product_ids.eq(0).iloc[::-1]}, ValueError, "another index"),
        ({"standard_errors": "yes"}, TypeError, "standard_errors must be True or False"),
        ({"hold_fixed": "prices"}, ValueError, "hold_fixed"),
        ({"error_behavior": "ignore"}, ValueError, "error_behavior"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_changes_nothing_or_does_not_fit_is_an_error(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        results().counterfactual(**arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Taxes(base="gross"), ValueError, "base"),
        (lambda: Taxes(ad_valorem=-1.0), ValueError, "above -1"),
        (lambda: Taxes(ad_valorem=[0.5, 1.0], base="price"), ValueError, "below 1"),
        (lambda: Taxes(unit=np.nan), ValueError, "finite"),
        (lambda: results().counterfactual().summary([1.0]), ValueError, "3 finite numbers"),
        (lambda: results().counterfactual().total([1.0]), ValueError, "values must hold 12 numbers"),
        (lambda: results().counterfactual().by_agent("age"), ValueError, "no demographic 'age'. There are income"),
        (lambda: results().counterfactual().by_agent([1.0]), ValueError, "90 values"),
        (lambda: results().counterfactual().counterfactual(typo=1), TypeError, "'typo'"),
        (lambda: results().counterfactual().compute_typo, AttributeError, "compute_typo"),
        (lambda: blpjax.compare([{}], results()), TypeError, "mapping of names"),
        (lambda: solved("logit").bootstrap(2).counterfactual, AttributeError, "counterfactual"),
    ],
)
def test_other_mistakes_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
