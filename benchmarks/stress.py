"""Markets whose shares are hard to invert, each with a solution, and a measure of how well it was found."""

import dataclasses
from collections.abc import Callable

import numpy as np

import blpjax
from benchmarks import models
from blpjax import data

SEED = 20260415

#: Columns of X2: those of Nevo's cereals. Simulated markets use the first two, a constant and a uniform variable.
WIDTH = 4


@dataclasses.dataclass(frozen=True)
class StressMarket:
    """One market and why it is hard.

    Attributes
    ----------
    family : what makes it hard; markets of a family differ in their draws.
    X2 : (J, 4) characteristics.
    C : (4, I) tastes.
    weights : (I,) integration weights.
    shares : (J,) observed shares.
    groups : (J,) codes of groups, all zero without nests.
    rho : nesting parameter, zero without nests.
    """

    family: str
    X2: np.ndarray
    C: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    groups: np.ndarray
    rho: float = 0.0


#: Draws a market with a generator; the number is that of the market within its family.
Draw = Callable[[np.random.Generator, int], StressMarket]


def log_shares(market: StressMarket, delta: np.ndarray) -> np.ndarray:
    """Logarithms of simulated shares (J,) and of the outside share (last), in extended precision."""
    V = np.asarray(delta, np.longdouble)[:, None] + market.X2.astype(np.longdouble) @ market.C.astype(np.longdouble)
    rho = np.longdouble(market.rho)
    members = market.groups[:, None] == np.unique(market.groups)[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        if market.rho == 0:
            members = np.eye(V.shape[0], dtype=bool)
        within = np.where(members[:, :, None], (V / (1 - rho))[:, None, :], -np.inf)
        largest = within.max(axis=0)
        inclusive = (1 - rho) * (largest + np.log(np.exp(within - largest[None]).sum(axis=0)))
        top = np.maximum(inclusive.max(axis=0), 0)
        total = top + np.log(np.exp(-top) + np.exp(inclusive - top[None, :]).sum(axis=0))
        own = members.argmax(axis=1)
        P = np.exp(V / (1 - rho) - inclusive[own] / (1 - rho) + inclusive[own] - total[None, :])
        return np.log(np.append(P, np.exp(-total)[None, :], axis=0) @ market.weights.astype(np.longdouble))


def worst_gap(market: StressMarket, delta: np.ndarray) -> float:
    """Largest difference of log shares at mean utilities (J,); infinite where these are not finite."""
    if not np.isfinite(delta).all():
        return float("inf")
    gap = log_shares(market, delta)[:-1] - np.log(market.shares.astype(np.longdouble))
    return float(np.abs(np.where(np.isnan(gap), np.inf, gap)).max())


def stress_markets(number: int = 8) -> list[StressMarket]:
    """So many markets of each family, from a fixed seed.

    Shares of most are those at mean utilities that were drawn. Where shares themselves were drawn or observed, weights
    are positive: then every vector of positive shares that leaves some to the outside good has a solution (Berry 1994).
    """
    markets = []
    for position, (family, draw) in enumerate(FAMILIES.items()):
        for n in range(number):
            rng = np.random.default_rng([SEED, position, n])
            markets.append(dataclasses.replace(draw(rng, n), family=family))
    return markets


def simulated(
    rng: np.random.Generator,
    products: int = 12,
    agents: int = 80,
    sigma: float = 1.0,
    level: float = -2.0,
    spread: float = 0.7,
) -> tuple[StressMarket, np.ndarray]:
    """A market without shares, and mean utilities around `level`. Tastes are normal, of size `sigma`."""
    X2 = np.zeros((products, WIDTH))
    X2[:, 0], X2[:, 1] = 1.0, rng.uniform(0, 2, products)
    C = np.zeros((WIDTH, agents))
    C[:2] = sigma * np.array([0.7, 1.0])[:, None] * rng.normal(size=(2, agents))
    delta = level + spread * rng.normal(size=products)
    nothing = np.zeros(products)
    return StressMarket("", X2, C, rng.dirichlet(np.full(agents, 5.0)), nothing, np.zeros(products, int)), delta


def with_shares_at(market: StressMarket, delta: np.ndarray, least: float = 1e-14) -> StressMarket:
    """Observe shares at mean utilities, without products whose shares are smaller than `least`."""
    simulated_shares = np.exp(log_shares(market, delta)[:-1])
    while not (simulated_shares >= least).all():
        kept = simulated_shares >= least
        market = dataclasses.replace(market, X2=market.X2[kept], groups=market.groups[kept])
        delta = delta[kept]
        simulated_shares = np.exp(log_shares(market, delta)[:-1])
    return dataclasses.replace(market, shares=simulated_shares.astype(float))


def _large_sigma(sigma: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> StressMarket:
        return with_shares_at(*simulated(rng, sigma=sigma, level=0.0, spread=0.5 * sigma))

    return draw


def _drawn_shares(sigma: float, products: int = 12, agents: int = 80, tiny: float | None = None) -> Draw:
    """Shares are drawn; those of a third of the products may be `tiny`."""

    def draw(rng: np.random.Generator, n: int) -> StressMarket:
        market, _ = simulated(rng, products, agents, sigma)
        shares = rng.uniform(0.3, 0.95) * rng.dirichlet(np.ones(products))
        if tiny is not None:
            shares = np.where(np.arange(products) % 3 == 0, tiny, shares)
        return dataclasses.replace(market, shares=shares)

    return draw


def _small_outside_share(sigma: float) -> Draw:
    """Mean utilities rise together until the outside share is 1e-8."""

    def draw(rng: np.random.Generator, n: int) -> StressMarket:
        market, delta = simulated(rng, sigma=sigma, spread=max(0.7, 0.3 * sigma))
        for _ in range(200):
            delta = delta + np.clip(float(log_shares(market, delta)[-1] - np.log(1e-8)), -10.0, 10.0)
        return with_shares_at(market, delta)

    return draw


def _one_product(rng: np.random.Generator, n: int) -> StressMarket:
    """Its share is 1e-14, one less 1e-8, or in between."""
    market, _ = simulated(rng, 1, sigma=50.0)
    return dataclasses.replace(market, shares=np.array([(1e-14, 1.0 - 1e-8, 0.3)[n % 3]]))


def _nested(draw_market: Draw) -> Draw:
    """Four groups, one of them of one product, with ``rho = 0.99``."""

    def draw(rng: np.random.Generator, n: int) -> StressMarket:
        market = draw_market(rng, n)
        return dataclasses.replace(market, groups=np.r_[3, np.arange(market.shares.size - 1) % 3], rho=0.99)

    return draw


def _nested_at_delta(rng: np.random.Generator, n: int) -> StressMarket:
    """Utilities differ in hundredths: else nearly all shares would vanish."""
    market, delta = simulated(rng, sigma=0.05, spread=0.01)
    groups = np.r_[3, np.arange(delta.size - 1) % 3]
    return with_shares_at(dataclasses.replace(market, groups=groups, rho=0.99), delta)


def _negative_weights(sigma: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> StressMarket:
        market, delta = simulated(rng, spread=max(0.4, 0.1 * sigma))
        built = blpjax.build_integration(blpjax.Integration("nested_grid", 5), 2)
        C = np.zeros((WIDTH, built.weights.size))
        C[:2] = sigma * np.array([[0.7], [1.0]]) * np.asarray(built.nodes).T
        market = dataclasses.replace(market, C=C, weights=np.asarray(built.weights).reshape(-1))
        return with_shares_at(market, delta)

    return draw


def _epsilon_scale(scale: float) -> Draw:
    """Utilities divided by the scale of the idiosyncratic term, as `Problem` does with ``epsilon_scale``."""

    def draw(rng: np.random.Generator, n: int) -> StressMarket:
        market, _ = simulated(rng, products=6, agents=80)
        shares = rng.uniform(0.5, 0.9) * rng.dirichlet(np.full(6, 3.0))
        return dataclasses.replace(market, X2=market.X2 / scale, shares=shares)

    return draw


def _nevo(sigma: float) -> Draw:
    """Nevo's cereals with their own shares, and the published sigma multiplied."""
    products, agents = data.load_nevo()
    goods, people = products.assign(one=1.0).groupby("market_ids"), agents.groupby("market_ids")
    names = sorted(products["market_ids"].unique())

    def draw(rng: np.random.Generator, n: int) -> StressMarket:
        name = names[(11 * n) % len(names)]
        own, agent = goods.get_group(name), people.get_group(name)
        nodes = agent[[f"nodes{k}" for k in range(4)]].to_numpy().T
        demographics = agent[["income", "income_squared", "age", "child"]].to_numpy().T
        C = sigma * models.NEVO_SIGMA @ nodes + models.NEVO_PI @ demographics
        X2 = own[["one", "prices", "sugar", "mushy"]].to_numpy()
        zeros = np.zeros(len(own), int)
        return StressMarket("", X2, C, agent["weights"].to_numpy(), own["shares"].to_numpy(), zeros)

    return draw


FAMILIES: dict[str, Draw] = {
    "sigma x 50": _large_sigma(50.0),
    "sigma x 50, drawn shares": _drawn_shares(50.0),
    "sigma x 50, 6 agents, shares 1e-14": _drawn_shares(50.0, 20, 6, tiny=1e-14),
    "Nevo, sigma x 10": _nevo(10.0),
    "Nevo, sigma x 50": _nevo(50.0),
    "outside share 1e-8": _small_outside_share(1.0),
    "outside share 1e-8, sigma x 50": _small_outside_share(50.0),
    "shares 1e-14": _drawn_shares(1.0, tiny=1e-14),
    "shares 1e-14, sigma x 50": _drawn_shares(50.0, tiny=1e-14),
    "J = 1, sigma x 50": _one_product,
    "J = 300": _drawn_shares(3.0, 300, 200),
    "J = 300, sigma x 50": _drawn_shares(50.0, 300, 200),
    "negative weights": _negative_weights(1.0),
    "negative weights, sigma x 50": _negative_weights(50.0),
    "epsilon_scale = 0.01": _epsilon_scale(1e-2),
    "epsilon_scale = 0.0001": _epsilon_scale(1e-4),
    "rho = 0.99": _nested_at_delta,
    "rho = 0.99, drawn shares": _nested(_drawn_shares(1.0)),
    "rho = 0.99, sigma x 10": _nested(_drawn_shares(10.0)),
    "rho = 0.99, sigma x 50, shares 1e-14": _nested(_drawn_shares(50.0, tiny=1e-14)),
}
