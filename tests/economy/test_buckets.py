"""Padding into buckets: layouts, orders, waste, and that nothing about it shows in results."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.economy import mapping
from blpjax.economy.buckets import Bucket, Economy, bucket_markets, build_economy, index_markets
from blpjax.economy.mapping import map_markets
from blpjax.exceptions import Status
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.contraction import logit_delta
from blpjax.model.inversion import Inversion, invert_economy
from blpjax.model.parameters import UtilityForm
from blpjax.model.tastes import MarketTastes
from tests.support.economies import loop_shares, tables
from tests.tolerances import DELTA, ROUNDING

pytestmark = pytest.mark.usefixtures("several_buckets")

PRODUCTS, AGENTS = [3, 7, 4, 7, 3, 5], [20, 6, 20, 8, 21, 11]
LIMITS = FixedPointLimits()
SIGMA, PI = jnp.array([[0.5, 0.0], [0.0, 0.7]]), jnp.array([[0.3], [-0.4]])
TASTES = MarketTastes(SIGMA, PI, jnp.zeros(0), jnp.zeros(0), (0, 1), UtilityForm())


def economy_of(products: Any, agents: Any, X2_columns: tuple[str, ...] = ("one", "x")) -> Economy:
    columns = products.assign(one=1.0)
    return build_economy(
        index_markets(products.market_ids.to_numpy()),
        index_markets(agents.market_ids.to_numpy()),
        shares=products.shares.to_numpy(),
        X2=columns[list(X2_columns)].to_numpy(),
        weights=agents.weights.to_numpy(),
        nodes=agents[["nodes0", "nodes1"]].to_numpy(),
        demographics=agents[["income"]].to_numpy(),
    )


@pytest.fixture(scope="module")
def simulated() -> tuple[Any, Any]:
    return tables(1, PRODUCTS, AGENTS)


@pytest.fixture(scope="module")
def shuffled(simulated: tuple[Any, Any]) -> tuple[Any, Any, np.ndarray]:
    """The same tables with rows of all markets mixed, and where each row went."""
    rng = np.random.default_rng(2)
    products, agents = simulated
    order = rng.permutation(len(products))
    return products.iloc[order].reset_index(drop=True), agents.iloc[rng.permutation(len(agents))], order


def test_markets_are_indexed_in_sorted_order_with_rows_in_table_order() -> None:
    index = index_markets(np.array(["b", "a", "c", "a", "b", "a"]))
    assert index.ids.tolist() == ["a", "b", "c"]
    assert [rows.tolist() for rows in index.rows] == [[1, 3, 5], [0, 4], [2]]


def test_gather_and_scatter_are_inverses(shuffled: tuple[Any, Any, np.ndarray]) -> None:
    economy = economy_of(*shuffled[:2])
    rng = np.random.default_rng(3)
    for shape in ((sum(PRODUCTS),), (sum(PRODUCTS), 3)):
        values = jnp.asarray(rng.normal(size=shape))
        parts = economy.scatter(values)
        assert economy.gather(parts).tolist() == values.tolist()
        for part, bucket in zip(parts, economy.buckets, strict=True):
            assert part.shape == (*bucket.shares.shape, *shape[1:])
            assert (np.asarray(part)[np.asarray(bucket.shares) == 0] == 0).all()


def test_buckets_hold_the_rows_of_their_markets(shuffled: tuple[Any, Any, np.ndarray]) -> None:
    products, agents, _ = shuffled
    economy = economy_of(products, agents)
    ROUNDING.check(economy.gather([bucket.shares for bucket in economy.buckets]), products.shares)
    ROUNDING.check(economy.gather([bucket.X2 for bucket in economy.buckets])[:, 1], products.x)
    totals = [bucket.weights.sum(axis=1) for bucket in economy.buckets]
    ROUNDING.check(economy.gather_markets(totals), np.ones(len(PRODUCTS)))
    incomes = [(bucket.demographics[:, :, 0] ** 2).sum(axis=1) for bucket in economy.buckets]
    ROUNDING.check(economy.gather_markets(incomes), agents.assign(q=agents.income**2).groupby("market_ids").q.sum())
    counts = [bucket.availability.sum(axis=(1, 2)) for bucket in economy.buckets]
    assert economy.gather_markets(counts).tolist() == PRODUCTS


def test_padding_is_zero(simulated: tuple[Any, Any]) -> None:
    economy = economy_of(*simulated)
    assert sum(int((np.asarray(b.shares) > 0).sum()) for b in economy.buckets) == sum(PRODUCTS)
    assert economy.padded_size >= sum(PRODUCTS)
    for bucket in economy.buckets:
        empty, nobody = np.asarray(bucket.shares) == 0, np.asarray(bucket.weights) == 0
        assert (np.asarray(bucket.X2)[empty] == 0).all() and (np.asarray(bucket.availability)[empty] == 0).all()
        assert (np.asarray(bucket.nodes)[nobody] == 0).all() and (np.asarray(bucket.demographics)[nobody] == 0).all()


def waste(sizes: np.ndarray, groups: list[np.ndarray]) -> float:
    """Padded work relative to the work without padding."""
    return float(sum(len(g) * sizes[g].max(axis=0).prod() for g in groups) / sizes.prod(axis=1).sum())


def uniform(T: int, low: int, high: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, T)


def lognormal(T: int, center: float, spread: float, seed: int) -> np.ndarray:
    return np.maximum(np.exp(np.random.default_rng(seed).normal(center, spread, T)).astype(int), 1)


#: Distributions of (products, agents), and the largest accepted waste. Where both numbers vary independently over an
#: order of magnitude, no four rectangles cover them with less than about twice the work.
DISTRIBUTIONS = {
    "equal": (np.full((94, 2), [24, 20]), 1.0),
    "automobiles": (np.c_[uniform(20, 72, 150, 0), np.full(20, 200)], 1.5),
    "products": (np.c_[uniform(500, 5, 150, 1), np.full(500, 200)], 1.5),
    "from one product": (np.c_[uniform(500, 1, 100, 2), np.full(500, 200)], 1.5),
    "agents": (np.c_[np.full(500, 50), uniform(500, 50, 500, 3)], 1.5),
    "lognormal products": (np.c_[lognormal(1000, 3.0, 0.7, 4), np.full(1000, 100)], 1.5),
    "in proportion": (uniform(500, 5, 100, 5)[:, None] * np.array([1, 10]), 1.5),
    "two kinds": (np.c_[uniform(300, 0, 1, 6) * 90 + 10, uniform(300, 0, 1, 7) * 450 + 50], 1.5),
    "one giant": (np.c_[np.r_[np.full(99, 10), 1000], np.full(100, 100)], 1.1),
    "similar agents": (np.c_[uniform(2000, 5, 150, 10), uniform(2000, 80, 120, 11)], 1.5),
    "products and agents": (np.c_[uniform(2000, 5, 150, 8), uniform(2000, 50, 500, 9)], 2.3),
}


@pytest.mark.parametrize(("sizes", "largest"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_at_most_four_buckets_waste_little(sizes: np.ndarray, largest: float) -> None:
    groups = bucket_markets(sizes)
    assert 1 <= len(groups) <= 4
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(sizes)))
    assert waste(sizes, groups) <= largest


def test_markets_of_equal_size_share_one_bucket() -> None:
    assert len(bucket_markets(np.full((50, 2), [7, 9]))) == 1
    assert len(bucket_markets(np.array([[7, 9]]))) == 1


def test_similar_sizes_share_a_bucket() -> None:
    """Four sizes of two kinds make two groups, because more are not worth another program."""
    sizes = np.array([[2, 10], [3, 10], [20, 10], [21, 10]])
    assert [group.tolist() for group in bucket_markets(sizes)] == [[0, 1], [2, 3]]


@pytest.fixture(scope="module")
def inversion(simulated: tuple[Any, Any]) -> Any:
    products, agents = simulated
    return invert(economy_of(products, agents), products)


def start_of(products: Any) -> jax.Array:
    outside = 1 - products.groupby("market_ids").shares.transform("sum")
    return jnp.asarray(np.log(products.shares / outside).to_numpy())


@jax.jit
def invert_jit(economy: Economy, start: jax.Array) -> Inversion:
    return invert_economy(economy, TASTES, start, LIMITS, FixedPointMethod("newton"))


def invert(economy: Economy, products: Any) -> Inversion:
    return invert_jit(economy, start_of(products))


def test_inverted_shares_are_the_observed_ones(simulated: tuple[Any, Any], inversion: Any) -> None:
    products, agents = simulated
    assert (np.asarray(inversion.status) <= Status.ROUNDING_FLOOR).all()
    assert inversion.evaluations.shape == inversion.residuals.shape == (len(PRODUCTS),)
    for name, rows in products.groupby("market_ids").groups.items():
        people = agents[agents.market_ids == name]
        C = (
            np.asarray(SIGMA) @ people[["nodes0", "nodes1"]].to_numpy().T
            + np.asarray(PI) @ people[["income"]].to_numpy().T
        )
        X2 = np.column_stack([np.ones(len(rows)), products.x[rows]])
        simulated_shares = loop_shares(
            np.asarray(inversion.delta)[rows], X2, C, people.weights.to_numpy(), np.ones((len(rows), 1))
        )
        DELTA.check(simulated_shares, products.shares[rows])


def test_permuting_rows_permutes_delta(shuffled: tuple[Any, Any, np.ndarray], inversion: Any) -> None:
    """Agents are summed in another order, so that the last digits differ."""
    products, agents, order = shuffled
    again = invert(economy_of(products, agents), products)
    np.testing.assert_allclose(again.delta, np.asarray(inversion.delta)[order], rtol=0, atol=1e-11)


def test_values_by_market_stand_in_the_sorted_order_of_ids(simulated: tuple[Any, Any]) -> None:
    """One market with impossible shares fails alone, in its place, wherever its bucket is."""
    for t in (0, 3, 5):
        products, agents = simulated
        people = agents.copy()
        people.loc[people.market_ids == f"m{t:03d}", "weights"] *= 1e-3
        found = invert(economy_of(products, people), products)
        assert [s > Status.ROUNDING_FLOOR for s in found.status.tolist()] == [k == t for k in range(len(PRODUCTS))]


def test_chunks_of_markets_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = economy_of(*tables(1, [4] * 5, [6] * 5)).buckets[0]
    T, J, width = bucket.size

    def kernel(market: Bucket, scale: Any) -> Any:
        nothing = jnp.zeros((3, 0))  # as derivatives in no parameters
        return {"a": scale * market.X2.sum() + market.nodes.sum(), "b": market.shares * 2.0, "c": nothing}

    scales = jnp.arange(T) + 1.0
    whole = map_markets(kernel, bucket, scales)
    for chunk in (1, 2):  # two leaves a remainder where T is odd
        monkeypatch.setattr(mapping, "CHUNK_ELEMENTS", chunk * J * width)
        parts = map_markets(kernel, bucket, scales)
        for one, other in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
            assert one.shape == other.shape
            ROUNDING.check(one, other)


def test_without_random_coefficients_delta_is_the_logit_in_closed_form(shuffled: tuple[Any, Any, np.ndarray]) -> None:
    products, agents, _ = shuffled
    economy = economy_of(products, agents, X2_columns=())
    nothing = MarketTastes(jnp.zeros((0, 0)), jnp.zeros((0, 1)), jnp.zeros(0), jnp.zeros(0), (), UtilityForm())
    found = invert_economy(economy, nothing, jnp.zeros(len(products)), LIMITS, FixedPointMethod())
    ROUNDING.check(found.delta, start_of(products))
    assert found.status.tolist() == found.evaluations.tolist() == [0] * len(PRODUCTS)
    assert np.isfinite(jax.jit(logit_delta)(economy.buckets[0].shares[0])).all()
