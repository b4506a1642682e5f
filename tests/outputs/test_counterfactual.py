"""Counterfactuals: against firms' conditions solved by SciPy, PyBLP, closed forms, and each other; their errors."""

import dataclasses
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
from blpjax.exceptions import ConvergenceWarning, DataError, EquilibriumPricesConvergenceError
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.support.estimated import CASES, FIXED_EFFECTS, Case, merged, solved
from tests.support.programs import compilations
from tests.support.silence import silent
from tests.support.worlds import AGENTS, BETA, FIRMS, PRODUCTS, World, results
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")
ODD, FIRST = (PRODUCTS.product_ids % 2 == 1).to_numpy(), (PRODUCTS.product_ids == 0).to_numpy()
RATES = np.where(ODD, 0.2, 0.1)
ENTRANTS = pd.DataFrame({"market_ids": ["a", "b", "c"], "firm_ids": [9, 0, 9], "x": [0.7, 1.0, 0.4]})
NEW = ENTRANTS.assign(xi=[0.1, -0.2, 0.0], costs=[0.9, 1.0, 1.1])
POOR = "-0.3 * (income < 0)"
SCENARIOS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "merger": (
        {"firm_ids": {1: 0}, "costs": lambda c: 0.95 * c},
        {"firms": np.where(FIRMS == 1, 0, FIRMS), "costs": lambda c: 0.95 * c},
    ),
    "divestiture": ({"firm_ids": np.where(ODD, 9, FIRMS)}, {"firms": np.where(ODD, 9, FIRMS)}),
    "exit": ({"drop": FIRST}, {"present": ~FIRST}),
    "exit at given prices": (
        {"drop": FIRST, "prices": PRODUCTS.prices},
        {"present": ~FIRST, "given": True},
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
    "monopoly": ({"firm_ids": np.zeros(len(FIRMS), int)}, {"firms": 0}),
    "owners of halves": (
        {"ownership": blpjax.build_ownership(PRODUCTS, lambda f, g: 1 if f == g else 0.5)},
        {"weight": 0.5},
    ),
    "entry": ({"add": NEW, "taxes": Taxes(0.1)}, {"added": NEW, "unit": 0.1}),
    "entry at given prices": (
        {"add": NEW.assign(prices=NEW.costs + 0.6), "prices": PRODUCTS.prices},
        {"added": NEW, "given": True},
    ),
}
SUBSIDIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "subsidy of the poor": ({"taxes": Taxes(consumers=POOR)}, {"paid": lambda a, p: -0.3 * (a.income < 0).to_numpy()}),
    "of some products, with a tax": (
        {"taxes": Taxes(0.1, consumers="-0.3 * (income < 0) * x"), "firm_ids": {1: 0}, "hold": FIRST, "drop": ODD},
        {
            "paid": lambda a, p: -0.3 * np.outer(p.x, a.income < 0),
            "firms": np.where(FIRMS == 1, 0, FIRMS),
            "held": FIRST,
            "present": ~ODD,
            "unit": 0.1,
        },
    ),
    "with new products": (
        {"taxes": Taxes(consumers=lambda agents: -0.3 * (agents["income"] < 0)), "add": NEW},
        {"paid": lambda a, p: -0.3 * (a.income < 0).to_numpy(), "added": NEW},
    ),
}
#: In logarithms of prices the Jacobian of demand is not symmetric. Scenarios that share a program are not all run.
CASES_OF_PRICES = [
    *(("prices", name) for name in SCENARIOS),
    *(
        pytest.param("prices", name, marks=() if name == "subsidy of the poor" else pytest.mark.slow)
        for name in SUBSIDIES
    ),
    *(
        pytest.param("log(prices)", name, marks=() if name == "taxes of net prices" else pytest.mark.slow)
        for name in SCENARIOS
    ),
]
COSTS_OF_SHARES = Case(joint.Model(X2=None, X3="1 + w + shares", demographics=None), "log")


@functools.cache
def costs_of_shares() -> Any:
    return COSTS_OF_SHARES.solve()


@pytest.mark.parametrize(("price", "name"), CASES_OF_PRICES)
def test_no_firm_gains_from_another_price(price: str, name: str) -> None:
    arguments, changes = {**SCENARIOS, **SUBSIDIES}[name]
    found, expected = results(price).counterfactual(**arguments), World(price, **changes).solve()
    for column in ("prices", "shares", "net_prices", "profits"):
        LINEAR_ALGEBRA.check(found.products[f"{column}_after"], expected[column], column)
    by = expected.groupby("market")
    sums = by[["profits", "revenue"]].sum().assign(inside_share=by["shares"].sum(), mean_price=by["prices"].mean())
    sums = sums.assign(consumer_surplus=by["surplus"].first(), revenue=sums.revenue + by["raised"].first())
    sums["total"] = sums.profits + sums.revenue + sums.consumer_surplus
    for column in sums:
        LINEAR_ALGEBRA.check(found.markets[f"{column}_after"], sums[column], column)
    assert found.markets["converged"].all() and (found.markets["residual"] < 1e-10).all()
    np.testing.assert_array_equal(found.products["prices_before"].head(len(PRODUCTS)), PRODUCTS.prices)


def test_nothing_that_changes_is_the_point_that_was_observed() -> None:
    found = results().counterfactual()
    for column in ("prices", "shares", "costs", "net_prices", "profits"):
        DELTA.check(found.products[f"{column}_after"], found.products[f"{column}_before"], column)
    ROUNDING.check(found.markets["consumer_surplus_before"], results().compute_consumer_surpluses()[:, 0])
    ROUNDING.check(found.products["profits_before"], results().compute_profits()[:, 0])


@pytest.mark.parametrize("name", mostly_slow(["linear costs", "fixed effects", "logit"], ["logit"]))
def test_mergers_are_those_of_compute_prices(name: str) -> None:
    known, (products, _) = solved(name), CASES[name].tables
    found = known.counterfactual(firm_ids=merged(products))
    FIXED_PARAMETERS.check(found.products["prices_after"], known.compute_prices(merged(products))[:, 0])
    matrices = blpjax.build_ownership(products.assign(firm_ids=merged(products)))
    DELTA.check(known.counterfactual(ownership=matrices).after.prices, found.after.prices)


@pytest.mark.slow
def test_costs_follow_variables_and_shares() -> None:
    known, (products, _) = costs_of_shares(), COSTS_OF_SHARES.tables
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
            beta=[-2.0], method="1s", optimization=Optimization("return"), check_optimality="gradient"
        )
    found = known.counterfactual(costs=lambda c: c + 0.3, taxes=Taxes(ad_valorem=rate))
    costs = known.compute_costs()[:, 0] + 0.3
    v = np.log(single.shares / (1 - single.shares)) + 2.0 * single.prices - 2.0 * (1 + rate) * costs
    markup = (1 + scipy.special.lambertw(np.exp(v.to_numpy() - 1)).real) / 2.0
    LINEAR_ALGEBRA.check(found.after.prices, (1 + rate) * costs + markup)


@pytest.mark.parametrize(("a", "v"), [(1.0, 1.0), (0.8, 3.6), (1.5, -3.0)])
def test_duopolies_with_logit_demand_have_closed_forms(a: float, v: float) -> None:
    """Two equal products, each of its own firm, with utilities of v - a m at markups m.

    If one firm owns both, ``a m = 1 + W(2 exp(v - 1))``. Firms that set quantities have ``a m = 1 + s / s0``, so that
    ``a m = 1 + W(exp(v - 1))``, as one that sells alone has. Of firms that set prices, ``a m = 1 / (1 - s)``.
    """
    duopoly = pd.DataFrame({"market_ids": 0, "firm_ids": [0, 1], "prices": 2.0, "shares": 0.2})
    duopoly["demand_instruments0"] = [1.0, 2.0]
    with silent():
        known = Problem(Formulation("0 + prices"), duopoly).solve(
            beta=[-a], method="1s", optimization=Optimization("return"), check_optimality="gradient"
        )
    # costs at which the utility of a price of costs is v
    costs = np.full(2, (np.log(0.2 / 0.6) + a * 2.0 - v) / a)

    def rivals(m: float) -> float:
        odds = np.exp(v - a * m)
        return a * m - (1 + 2 * odds) / (1 + odds)

    expected = {
        "prices": (scipy.optimize.brentq(rivals, 0.0, 100.0, xtol=1e-14), {}),
        "quantities": ((1 + scipy.special.lambertw(np.exp(v - 1)).real) / a, {"conduct": blpjax.Cournot()}),
        "merger": ((1 + scipy.special.lambertw(2 * np.exp(v - 1)).real) / a, {"firm_ids": {1: 0}}),
    }
    for name, (markup, arguments) in expected.items():
        found = known.counterfactual(costs=costs, **arguments)
        LINEAR_ALGEBRA.check(found.after.prices, costs + markup, name)
        share = np.exp(v - a * markup) / (1 + 2 * np.exp(v - a * markup))
        LINEAR_ALGEBRA.check(found.markets["profits_after"], [2 * markup * share], name)
        LINEAR_ALGEBRA.check(found.markets["consumer_surplus_after"], [-np.log(1 - 2 * share) / a], name)


# --- entry ----------------------------------------------------------------------------------------------------------


def test_a_product_that_leaves_and_comes_back_changes_nothing() -> None:
    same = PRODUCTS.loc[FIRST, ["market_ids", "firm_ids", "x"]].assign(like=0)
    found = results().counterfactual(drop=FIRST, add=same)
    back = found.products.tail(len(same))
    DELTA.check(back["prices_after"], PRODUCTS.prices[FIRST])
    DELTA.check(back["shares_after"], PRODUCTS.shares[FIRST])
    DELTA.check(found.markets["total_after"], found.markets["total_before"])
    assert (back["shares_before"] == 0).all() and back["prices_before"].isna().all()


def test_new_products_have_what_their_table_says() -> None:
    found = results().counterfactual(add=NEW, firm_ids={2: 1})
    assert found.products["firm_after"].tail(3).tolist() == [9, 0, 9]
    ROUNDING.check(found.products["costs_after"].tail(3), NEW.costs)
    ROUNDING.check(found.markets["consumer_surplus_before"], results().compute_consumer_surpluses()[:, 0])


def test_numbers_of_new_products_keep_their_values() -> None:
    """Also where all known ones are integers."""
    whole = PRODUCTS.assign(x=np.arange(len(PRODUCTS)) % 3)
    with silent():
        known = Problem(Formulation("1 + prices + x"), whole).solve(
            beta=BETA["prices"], method="1s", optimization=Optimization("return"), check_optimality="gradient"
        )
    one = pd.DataFrame({"market_ids": ["a"], "firm_ids": [9], "x": [0.5], "costs": [1.0]})
    after = known.counterfactual(add=one).after.model
    assert after.characteristics.variables["x"][-1] == 0.5
    ROUNDING.check(after.delta[-1], BETA["prices"] @ [1.0, after.prices[-1], 0.5])


@pytest.mark.parametrize("standard_errors", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_costs_of_new_products_follow_from_a_supply_side(standard_errors: bool) -> None:
    known, products = solved("logit"), CASES["logit"].tables[0]
    first = products.drop_duplicates("market_ids")
    entrants = first[["market_ids", "x", "y", "w"]].assign(firm_ids=9)
    found = known.counterfactual(add=entrants, standard_errors=standard_errors)
    gamma, beta = known.gamma[:, 0], known.beta[:, 0]
    new = found.products.tail(len(first))
    ROUNDING.check(new["costs_after"], gamma[0] + gamma[1] * first.w + gamma[2] * first.x)
    utilities = found.after.model.delta[len(products) :] - beta[1] * found.after.prices[len(products) :]
    ROUNDING.check(utilities, beta[0] + beta[2] * first.x + beta[3] * first.y)
    assert (found.markets["consumer_surplus_change"] > 0).all()
    assert not standard_errors or (new["prices_after_se"] > 0).all()
    model = dataclasses.replace(FIXED_EFFECTS, X2=None, demographics=None)
    fixed = Case(model, "log", {"beta": [-2.0, None, None]}).solve()
    with pytest.raises(DataError, match="fixed effects of new products are unknown"):
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
    with pytest.raises(DataError, match="no column 'prices', which new products need"):
        results().counterfactual(add=entrants, prices=PRODUCTS.prices)
    with pytest.raises(NotImplementedError, match="new products had no shares before"):
        results().counterfactual(add=entrants, constant_costs=False)
    with pytest.raises(DataError, match="X3 explains them by shares"):
        costs_of_shares().counterfactual(
            add=COSTS_OF_SHARES.tables[0][["market_ids", "x", "y", "w"]].assign(firm_ids=9)
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
    if "drop" in arguments:
        own = found.delta_method(lambda before, after: jnp.nanmean(after.prices) - before.prices.mean())
        LINEAR_ALGEBRA.check(own.standard_errors, summary.loc["mean_price", "change_se"])


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"add": NEW.drop(columns=["xi", "costs"]).assign(like=0)}])
def test_standard_errors_with_taxes_on_consumers_are_those_of_differences(more: dict[str, Any]) -> None:
    arguments = {"taxes": Taxes(consumers=POOR), "firm_ids": {1: 0}, "drop": FIRST, **more}
    known, columns = results(), ("consumer_surplus", "profits", "revenue", "total", "mean_price")
    found = known.counterfactual(standard_errors=True, **arguments)

    def at(q: np.ndarray) -> np.ndarray:
        sigma, pi = np.diag(q[:2]), np.array([[0.0], [q[2]]])
        with silent():
            moved = known.problem.solve(
                sigma, pi, beta=q[3:], method="1s", optimization=Optimization("return"), check_optimality="gradient"
            )
        return np.concatenate([moved.counterfactual(**arguments).markets[f"{c}_change"] for c in columns])

    q = known.parameters[:, 0]
    assert q.tolist() == [0.5, 0.3, 0.4, *BETA["prices"]]
    J = np.stack([(at(q + h) - at(q - h)) / 2e-5 for h in 1e-5 * np.eye(q.size)], axis=1)
    errors = np.sqrt(np.einsum("mi,ij,mj->m", J, known.parameter_covariances / len(PRODUCTS), J))
    CENTRAL_DIFFERENCE.check(np.concatenate([found.markets[f"{c}_change_se"] for c in columns]), errors)


@pytest.mark.slow
def test_draws_are_what_compute_methods_of_draws_say() -> None:
    known, products = solved("logit"), CASES["logit"].tables[0]
    drawn, new = known.bootstrap(4, seed=0), merged(products)
    found = drawn.counterfactual(firm_ids=new)
    assert found.draws == 4 and "intervals over 4 draws" in str(found)
    prices = drawn.compute_prices(new)
    FIXED_PARAMETERS.check(found.drawn["products"]["prices_after"], prices[:, :, 0])
    profits = drawn.compute_profits(prices, drawn.compute_shares(prices), drawn.compute_costs())[:, :, 0]
    LINEAR_ALGEBRA.check(found.drawn["products"]["profits_after"], profits)
    surplus = (drawn.compute_consumer_surpluses(prices) - drawn.compute_consumer_surpluses())[:, :, 0]
    LINEAR_ALGEBRA.check(found.drawn["markets"]["consumer_surplus_change"], surplus)
    # the middle is at the estimates, intervals are those of draws
    point = known.counterfactual(firm_ids=new)
    DELTA.check(found.markets["total_change"], point.markets["total_change"])
    ROUNDING.check(found.markets["consumer_surplus_change_lower"], np.quantile(surplus, 0.025, axis=0))
    ROUNDING.check(found.summary().loc["consumer_surplus", "change_se"], surplus.mean(axis=1).std(ddof=1))
    by_market = {market: rows for market, rows in enumerate(products.groupby("market_ids").indices.values())}
    sold = np.stack(
        [(products.x.to_numpy() * found.drawn["products"]["shares_after"])[:, r].sum(1) for r in by_market.values()]
    )
    ROUNDING.check(found.total(products.x)["after_upper"], np.quantile(sold, 0.975, axis=1))
    own = found.over_draws(lambda before, after: (after.prices - before.prices).mean())
    LINEAR_ALGEBRA.check(own, (prices - drawn.bootstrapped_prices).mean(axis=(1, 2)))
    assert found.compute_elasticities().shape == (4, *known.compute_elasticities().shape)
    everybody = found.by_agent(np.zeros(len(found.markets)))
    LINEAR_ALGEBRA.check(everybody["change_lower"].item(), np.quantile(surplus.mean(axis=1), 0.025))
    assert (found.markets["failures"] == 0).all()
    with pytest.raises(TypeError, match="no standard errors by the delta method"):
        found.delta_method(lambda before, after: after.prices)


@pytest.mark.slow
def test_draws_without_an_equilibrium_are_counted_and_left_out() -> None:
    drawn, short = solved("logit").bootstrap(4, seed=0), blpjax.Iteration("simple", {"max_evaluations": 2})
    markets = CASES["logit"].tables[0].market_ids
    with pytest.warns(ConvergenceWarning) as warned:
        found = drawn.counterfactual(costs=lambda c: c + 0.5 * (markets == markets[0]).to_numpy(), iteration=short)
    assert "failed for 4 of 4 draws" in str(warned[-1].message) and "leave these out" in str(warned[-1].message)
    failed = np.isnan(found.drawn["markets"]["total_after"])
    assert found.markets["total_after_lower"].isna().tolist() == failed.any(axis=0).tolist()
    assert 0 < failed.sum() < failed.size
    assert found.markets["failures"].tolist() == failed.sum(axis=0).tolist()


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


@pytest.mark.parametrize("price", ["prices", pytest.param("log(prices)", marks=pytest.mark.slow)])
def test_some_markets_are_those_among_all(price: str) -> None:
    rows, known = (PRODUCTS.market_ids != "a").to_numpy(), results(price)
    taxes = {"taxes": Taxes(consumers=POOR)} if price == "prices" else {}
    everything = known.counterfactual(firm_ids={1: 0}, costs=lambda c: 0.9 * c, drop=FIRST, **taxes)
    some = known.counterfactual(
        firm_ids={1: 0}, costs=lambda c: 0.9 * c, drop=FIRST[rows], market_ids=["c", "b"], **taxes
    )
    assert some.markets["market_ids"].tolist() == ["b", "c"] and len(some.products) == 8
    for table, kept in (("products", rows), ("markets", [False, True, True])):
        expected = getattr(everything, table)[kept].reset_index(drop=True)
        numbers = [name for name in expected if name.endswith(("_before", "_after", "_change")) and "firm" not in name]
        DELTA.check(getattr(some, table)[numbers], expected[numbers], table)
    DELTA.check(some.compute_elasticities()[:, :3], everything.compute_elasticities()[rows][:, :3])
    people = (AGENTS.market_ids != "a").to_numpy()
    poor = some.by_agent((AGENTS.income < 0).to_numpy()[people])
    where = np.where(people, np.where(AGENTS.income < 0, "poor", "rich"), "elsewhere")
    groups = everything.by_agent(where).set_index("group")
    DELTA.check(poor["change"], [groups.loc["rich", "change"], groups.loc["poor", "change"]])


@pytest.mark.slow
def test_some_markets_have_standard_errors_and_draws() -> None:
    known, some = solved("logit"), CASES["logit"].tables[0].market_ids.unique()[[3, 1]]
    everything = known.counterfactual(firm_ids={2: 1}, standard_errors=True).markets.set_index("market_ids")
    found = known.counterfactual(firm_ids={2: 1}, market_ids=some, standard_errors=True).markets.set_index("market_ids")
    LINEAR_ALGEBRA.check(found["total_change_se"], everything.loc[found.index, "total_change_se"])
    drawn = known.bootstrap(3, seed=0)
    alone = drawn.counterfactual(firm_ids={2: 1}, market_ids=some).markets.set_index("market_ids")
    all_of_them = drawn.counterfactual(firm_ids={2: 1}).markets.set_index("market_ids")
    LINEAR_ALGEBRA.check(alone["profits_change_upper"], all_of_them.loc[alone.index, "profits_change_upper"])


@pytest.mark.slow
def test_outputs_with_taxes_on_consumers_are_those_of_what_each_pays() -> None:
    found = results().counterfactual(taxes=Taxes(consumers=POOR))
    groups, poor = found.by_agent((AGENTS.income < 0).to_numpy()).set_index("group"), AGENTS.income < 0
    assert groups.loc[True, "change"] > 0.02 and abs(groups.loc[False, "change"]) < 0.01
    P, prices = found.compute_probabilities(), found.after.prices
    rows = PRODUCTS.market_ids == "a"
    who, x = AGENTS[AGENTS.market_ids == "a"], PRODUCTS.x[rows].to_numpy()
    alpha = -2.0 + 0.3 * who.nodes1.to_numpy() + 0.4 * who.income.to_numpy()
    paid = prices[rows][:, None] - 0.3 * (who.income < 0).to_numpy()
    V = 1.0 + 0.5 * who.nodes0.to_numpy() + alpha * paid + (1.5 * x + results().xi[rows, 0])[:, None]
    expected = np.exp(V) / (1 + np.exp(V).sum(axis=0))
    LINEAR_ALGEBRA.check(P[rows], expected)
    LINEAR_ALGEBRA.check(found.after.revenues[rows], -0.3 * expected[:, poor[who.index]].sum(axis=1) / 30)
    D = ((expected * alpha)[:, None] * (np.eye(4)[:, :, None] - expected[None])).sum(axis=2).T / 30
    LINEAR_ALGEBRA.check(found.compute_demand_jacobians(market_id="a"), D)
    DELTA.check(found.compute_delta()[:, 0], found.after.model.delta)
    # firms get the whole price
    DELTA.check(found.compute_costs()[:, 0], results().compute_costs()[:, 0])
    assert found.compute_passthrough().shape == (12, 5)
    # in place of taxes that there were, and gone where others are
    again = found.counterfactual(taxes=Taxes(unit=0.1))
    DELTA.check(again.after.prices, results().counterfactual(taxes=Taxes(unit=0.1)).after.prices)
    kept = found.counterfactual(firm_ids={1: 0})
    once = results().counterfactual(firm_ids={1: 0}, taxes=Taxes(consumers=POOR))
    DELTA.check(kept.after.prices, once.after.prices)
    LINEAR_ALGEBRA.check(kept.markets["total_change"], once.markets["total_change"])


@pytest.mark.parametrize("base", ["net", "price"])
def test_a_tax_that_all_consumers_pay_is_one_that_firms_remit(base: str) -> None:
    paid = results().counterfactual(taxes=Taxes(consumers=np.full(len(AGENTS), 0.2)))
    remitted = results().counterfactual(taxes=Taxes(unit=0.2, base=base))
    DELTA.check(paid.after.prices + 0.2, remitted.after.prices)
    DELTA.check(paid.after.net_prices, remitted.after.net_prices)
    DELTA.check(paid.markets["revenue_after"], remitted.markets["revenue_after"])


def test_consumers_lose_what_they_pay_more() -> None:
    """Roy's identity: d CS / d t = - sum_j s_j (d p_j / d t + the tax)."""
    step = 1e-4

    def at(t: float) -> Any:
        return results().counterfactual(taxes=Taxes(unit=t, consumers=np.full(len(AGENTS), 0.5 * t)))

    up, down, here = at(0.1 + step), at(0.1 - step), at(0.1)
    slopes = (up.markets["consumer_surplus_after"] - down.markets["consumer_surplus_after"]) / (2 * step)
    moved = (up.after.prices - down.after.prices) / (2 * step) + 0.5
    lost = pd.Series(here.after.shares * moved).groupby(PRODUCTS.market_ids).sum()
    CENTRAL_DIFFERENCE.check(slopes, -lost)


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
        ({"market_ids": []}, ValueError, "at least one market"),
        ({"market_ids": ["a", "d"]}, ValueError, "market_ids has 'd', which is no market"),
        ({"market_ids": ["a", "a"]}, ValueError, "'a' twice"),
        ({"market_ids": "a", "add": NEW}, NotImplementedError, "has its own markets"),
        ({"taxes": Taxes(consumers=[0.1])}, ValueError, "consumers must have the shape \\(90,\\), or \\(90, 5\\)"),
        ({"taxes": Taxes(consumers="incme < 0")}, DataError, "no column 'incme' .* Did you mean 'income'"),
        ({"taxes": Taxes(consumers="log(income)")}, DataError, "no finite number in row .* of agent_data"),
        ({"taxes": Taxes(consumers="0 * income")}, ValueError, "zero for everybody"),
        ({"taxes": Taxes(consumers=lambda agents: "a")}, ValueError, "text, a function of agents, or an array"),
        ({"taxes": Taxes(consumers=np.full(90, np.nan))}, ValueError, "row 0 of the agents is nan"),
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


def test_taxes_on_consumers_need_agents_and_linear_prices() -> None:
    with pytest.raises(NotImplementedError, match="linear in prices. X1 has 'log\\(prices\\)'"):
        results("log(prices)").counterfactual(taxes=Taxes(consumers=POOR))
    with pytest.raises(NotImplementedError, match="none without X2"):
        solved("logit").counterfactual(taxes=Taxes(consumers=[0.1]))


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
        (lambda: results().counterfactual().over_draws(lambda b, a: a.prices), TypeError, "no draws"),
        (lambda: solved("logit").bootstrap(4).counterfactual(standard_errors=True), TypeError, "Draws say themselves"),
    ],
)
def test_other_mistakes_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
