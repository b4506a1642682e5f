"""Markups under each conduct make every player's profits stationary, where all others react as they should."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import blpjax
from blpjax.kernels.conduct import Conduct
from blpjax.kernels.markups import markups
from blpjax.kernels.priced_market import PricedMarket
from tests.support.designs import mostly_slow
from tests.support.economies import J
from tests.support.firms import arrays, firms, in_logarithms
from tests.tolerances import ROUNDING, Tolerance

ECONOMY = firms(3)
PRICES = ECONOMY.costs + np.array([1.1, 1.4, 0.9, 1.2, 1.3, 1.0])
FIRMS, MAKERS = ECONOMY.firms, np.array([0, 0, 1, 1, 2, 3])
COLUMNS = {
    "by_quantity": np.array([0, 1, 0, 1, 1, 0]),
    "leader": FIRMS == 0,
    "own": np.arange(J) == 5,
    "power": np.linspace(0.3, 0.8, J),
    "none": np.zeros(J),
}
Bertrand, TwoTier = blpjax.Bertrand, blpjax.TwoTier
RETAIL, UPSTREAM = Bertrand("firm_ids"), Bertrand("manufacturer_ids")


def cournot(market: PricedMarket) -> jax.Array:
    return -(market.ownership("firm_ids") * market.inverse(market.jacobian()).T) @ market.shares()


def bertrand_conditions(margins: jax.Array, market: PricedMarket) -> jax.Array:
    return market.shares() + (market.ownership("firm_ids") * market.jacobian().T) @ margins


CONDUCTS: dict[str, Conduct] = {
    "bertrand": RETAIL,
    "partial": Bertrand(weights=0.4),
    "full weights": Bertrand(weights=1.0),
    "no weights": Bertrand(weights=0.0),
    "monopoly": blpjax.Monopoly(),
    "competition": blpjax.PerfectCompetition(),
    "cournot": blpjax.Cournot(),
    "own cournot": blpjax.conduct(cournot),
    "own conditions": blpjax.conditions(bertrand_conditions),
    "mixed": blpjax.Mixed("by_quantity"),
    "stackelberg": blpjax.Stackelberg("leader"),
    "no leaders": blpjax.Stackelberg("none"),
    "two tiers": TwoTier(RETAIL, UPSTREAM, "own"),
    "upstream cournot": TwoTier(RETAIL, blpjax.Cournot("manufacturer_ids")),
    "retail price maintenance": TwoTier(blpjax.PerfectCompetition(), UPSTREAM),
    "zero retail": blpjax.ResalePriceMaintenance("retail", "firm_ids"),
    "bargaining": blpjax.Bargaining("firm_ids", power="power"),
    "retailers decide": blpjax.Bargaining("firm_ids", power=1.0),
    "thumb": blpjax.RuleOfThumb(1.25),
    "constant": blpjax.ConstantMarkup("power"),
}


def market(places: int = J) -> PricedMarket:
    """The market, with places for more products."""
    more = places - J

    def pad(values: Any, fill: float) -> jax.Array:
        return jnp.asarray(np.pad(np.asarray(values, np.asarray(fill).dtype), (0, more), constant_values=fill))

    owners = {"firm_ids": pad(FIRMS, -1), "manufacturer_ids": pad(MAKERS, -1)}
    columns = {name: pad(values, 1.0) for name, values in COLUMNS.items()}
    return PricedMarket(in_logarithms, pad(PRICES, 1.0), arrays(firms(3, places)), owners, columns)


@functools.cache
def found(name: str) -> np.ndarray:
    """Markups under a conduct."""
    return np.asarray(jax.jit(CONDUCTS[name].markups)(market()))


# demand and players, in NumPy


def choices(p: np.ndarray, available: np.ndarray | None = None) -> np.ndarray:
    e = ECONOMY
    V = (e.base + 0.5 * e.slope * p - 0.1 * p**2)[:, None] + e.X2 @ e.C + 3 * np.log(p)[:, None] * e.price_tastes
    odds = np.exp(V) * (e.availability if available is None else available[:, None])
    return odds / (1 + odds.sum(axis=0))


def shares(p: np.ndarray, available: np.ndarray | None = None) -> np.ndarray:
    return choices(p, available) @ ECONOMY.weights


def jacobian(p: np.ndarray) -> np.ndarray:
    P = choices(p)
    moved = P * ((0.5 * ECONOMY.slope - 0.2 * p)[:, None] + 3 / p[:, None] * ECONOMY.price_tastes)
    return np.diag(moved @ ECONOMY.weights) - (P * ECONOMY.weights) @ moved.T


def root(conditions: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    solved = scipy.optimize.root(conditions, start, tol=1e-13)
    assert np.abs(conditions(solved.x)).max() < 1e-11
    return solved.x


def reaction(costs: np.ndarray, setting: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Prices when some products' firms set theirs as in Bertrand, and others stay."""
    H = FIRMS[:, None] == FIRMS

    def conditions(free: np.ndarray) -> np.ndarray:
        moved = p.copy()
        moved[setting] = free
        D = jacobian(moved)
        some = np.where(setting, moved - costs, 0.0)
        return (shares(moved) + (H * D.T) @ some)[setting]

    moved = p.copy()
    moved[setting] = root(conditions, p[setting])
    return moved


def slope(function: Callable[[float], float], step: float = 1e-3) -> float:
    """Derivative at zero, by differences of fourth order."""
    return (8 * (function(step) - function(-step)) - function(2 * step) + function(-2 * step)) / (12 * step)


def unit(j: int) -> np.ndarray:
    return np.eye(J)[j]


def profits(p: np.ndarray, costs: np.ndarray, weights: np.ndarray) -> float:
    return float(weights @ ((p - costs) * shares(p)))


@pytest.mark.slow
def test_prices_maximise_profits_with_weights() -> None:
    for name, kappa in (("bertrand", 0.0), ("partial", 0.4), ("full weights", 1.0)):
        costs = PRICES - found(name)
        for j in range(J):
            weights = np.where(FIRMS == FIRMS[j], 1.0, kappa)
            assert abs(slope(lambda h, j=j, w=weights, c=costs: profits(PRICES + h * unit(j), c, w))) < 1e-9


@pytest.mark.parametrize("name", mostly_slow(["cournot", "mixed"], ["cournot"]))
def test_quantities_maximise_profits_at_other_quantities_and_prices(name: str) -> None:
    costs, quantity = PRICES - found(name), np.ones(J, bool)
    if name == "mixed":
        quantity = COLUMNS["by_quantity"] > 0
    sold = shares(PRICES)

    def after(j: int, h: float) -> np.ndarray:
        """Prices when firms change what they set for one product."""
        target, fixed = sold + h * unit(j) * quantity, PRICES + h * unit(j) * ~quantity

        def conditions(p: np.ndarray) -> np.ndarray:
            return np.where(quantity, shares(p) - target, p - fixed)

        return root(conditions, PRICES)

    for j in range(J):
        mine = np.where(FIRMS == FIRMS[j], 1.0, 0.0)
        assert abs(slope(lambda h, j=j, w=mine: profits(after(j, h), costs, w), 2e-4)) < 1e-7


def test_leaders_know_how_followers_react() -> None:
    costs, leading = PRICES - found("stackelberg"), COLUMNS["leader"]
    assert np.abs(reaction(costs, ~leading, PRICES) - PRICES).max() < 1e-9
    for j in np.flatnonzero(leading):
        moved = functools.partial(lambda j, h: reaction(costs, ~leading, PRICES + h * unit(j)), j)
        mine = np.where(FIRMS == FIRMS[j], 1.0, 0.0)
        assert abs(slope(lambda h, at=moved, w=mine: profits(at(h), costs, w))) < 1e-8


@pytest.mark.parametrize("name", mostly_slow(["two tiers", "upstream cournot"], ["two tiers"]))
def test_manufacturers_know_how_retailers_react(name: str) -> None:
    retail = found("bertrand")
    wholesale, upstream = PRICES - retail, found(name) - retail
    integrated = COLUMNS["own"] if name == "two tiers" else np.zeros(J, bool)
    assert not upstream[integrated].any() and (upstream[~integrated] > 0).all()
    everything, sold = np.ones(J, bool), shares(PRICES)

    def wholesale_profits(j: int, w: np.ndarray) -> float:
        s = shares(reaction(w, everything, PRICES))
        return float((MAKERS == MAKERS[j]) @ ((w - wholesale + upstream) * s))

    def at_quantities(target: np.ndarray) -> np.ndarray:
        return root(lambda w: shares(reaction(w, everything, PRICES)) - target, wholesale)

    for j in np.flatnonzero(~integrated)[: J if name == "two tiers" else 2]:
        if name == "two tiers":
            gain = slope(lambda h, j=j: wholesale_profits(j, wholesale + h * unit(j)))
        else:
            gain = slope(lambda h, j=j: wholesale_profits(j, at_quantities(sold + h * unit(j))), 1e-4)
        assert abs(gain) < 1e-7


def test_bargains_maximise_nash_products() -> None:
    retail = found("bertrand")
    upstream, b = found("bargaining") - retail, COLUMNS["power"]
    for j in range(J):
        gone = 1.0 - unit(j)
        lost = shares(PRICES) - shares(PRICES, gone)
        for_retailer = np.where(FIRMS == FIRMS[j], retail, 0.0) @ lost
        for_maker = np.where(MAKERS == MAKERS[j], upstream, 0.0) @ lost
        assert for_retailer > 0 and for_maker > 0
        # a higher wholesale price moves s_j from one to the other
        gain = (1 - b[j]) / for_maker - b[j] / for_retailer
        assert abs(gain) < 1e-10 / for_maker


#: Conducts that are the same.
ALIKE = {
    "no weights": "bertrand",
    "full weights": "monopoly",
    "no leaders": "bertrand",
    "retailers decide": "bertrand",
    "own cournot": "cournot",
    "own conditions": "bertrand",
    "retail price maintenance": "zero retail",
}


@pytest.mark.parametrize("name", mostly_slow([*ALIKE], ["full weights", "own cournot", "own conditions"]))
def test_conducts_that_are_the_same(name: str) -> None:
    ROUNDING.check(found(name), found(ALIKE[name]))


def test_what_conducts_have_in_common() -> None:
    bertrand = found("bertrand")
    expected = jax.jit(lambda prices: markups(in_logarithms(prices, arrays(ECONOMY)), jnp.asarray(FIRMS)))(PRICES)
    ROUNDING.check(bertrand, expected)
    assert (found("monopoly") > bertrand).all() and (found("two tiers") >= bertrand).all()
    assert not found("competition").any()
    ROUNDING.check(PRICES / (PRICES - found("thumb")), np.full(J, 1.25))
    ROUNDING.check(found("constant"), COLUMNS["power"])


@pytest.mark.slow
def test_absent_products_change_nothing() -> None:
    padded = jax.jit(lambda market: {name: conduct.markups(market) for name, conduct in CONDUCTS.items()})
    for name, values in padded(market(J + 2)).items():
        ROUNDING.check(values[:J], found(name), name)
        if name not in ("thumb", "constant"):
            assert not np.asarray(values[J:]).any(), name


@pytest.mark.slow
def test_one_product_has_the_markup_of_a_monopoly() -> None:
    alone = np.arange(J) == 2

    def at(prices: jax.Array) -> PricedMarket:
        here = market()
        economy = arrays(ECONOMY)._replace(availability=jnp.asarray(alone[:, None] * 1.0), present=jnp.asarray(alone))
        return PricedMarket(in_logarithms, prices, economy, here.owners, here.columns)

    names = ("cournot", "monopoly", "partial", "stackelberg", "mixed")
    solve = jax.jit(lambda p: {name: CONDUCTS[name].markups(at(p)) for name in (*names, "bertrand")})
    m = solve(jnp.asarray(PRICES))
    for name in names:
        ROUNDING.check(m[name], m["bertrand"], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cournot", "mixed", "stackelberg", "two tiers", "bargaining", "own conditions"])
def test_derivatives_in_data_agree_with_differences(name: str) -> None:
    def total(shift: jax.Array) -> jax.Array:
        here, economy = market(), arrays(ECONOMY)
        moved = economy._replace(base=economy.base + shift, price_tastes=economy.price_tastes * (1 + shift))
        at = PricedMarket(in_logarithms, here.prices * (1 + 0.1 * shift), moved, here.owners, here.columns)
        return CONDUCTS[name].markups(at)

    zero = jnp.zeros(())
    derivative = jax.jit(jax.jacfwd(total))(zero)
    moved, step = jax.jit(total), 1e-4
    differences = (moved(zero + step) - moved(zero - step)) / (2 * step)
    Tolerance(1e-6, 1e-7).check(derivative, differences)


def test_the_published_example_of_bargaining() -> None:
    """Two manufacturers and two retailers; margins are those that R's antitrust prints for its logit example."""
    s = np.array([0.1293482, 0.1422541, 0.4631014, 0.2152962])
    downstream, upstream = [13.04232, 13.04233, 29.53958, 29.53958], [23.31, 14.78715, 23.31, 14.78715]
    slope_in_price = -0.10526316

    def logit(prices: jax.Array, arguments: Any) -> Any:
        from blpjax.kernels.demand import DemandPoint

        none, ones = jnp.zeros((4, 0)), jnp.ones(4)
        delta = jnp.log(s / (1 - s.sum())) + slope_in_price * (prices - 100.0)
        slopes = slope_in_price * ones
        return DemandPoint(delta, none, jnp.zeros((0, 1)), jnp.ones(1), ones[:, None], slopes, none, ones > 0, None)

    owners = {"retailer_ids": jnp.array([1, 1, 2, 2]), "manufacturer_ids": jnp.array([1, 2, 1, 2])}
    at = PricedMarket(logit, jnp.full(4, 100.0), None, owners, {})
    m = jax.jit(blpjax.Bargaining(power=0.5).markups)(at)
    Tolerance(1e-6).check(m, np.add(downstream, upstream))
