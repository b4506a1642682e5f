"""Simulated markets and economies with awkward features, and shares computed by a plain loop over agents."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

import blpjax.economy.buckets
from blpjax.inputs.construction import build_integration
from blpjax.inputs.integration import Integration

#: Every simulated market has this many products and agents, so that one compiled program serves all of them.
J, I = 6, 25  # noqa: E741


@contextlib.contextmanager
def in_several_buckets() -> Iterator[None]:
    """Where markets of different sizes are put into several buckets although they are few and small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blpjax.economy.buckets, "WORTHWHILE_PAIRS", 0)
        yield


class Market(NamedTuple):
    """One market: mean utilities (J,), X2 (J, 2), tastes C (2, I), weights (I,), availability (J, 1), shares (J,)."""

    delta: np.ndarray
    X2: np.ndarray
    C: np.ndarray
    weights: np.ndarray
    availability: np.ndarray
    shares: np.ndarray


def loop_shares(
    delta: np.ndarray, X2: np.ndarray, C: np.ndarray, weights: np.ndarray, availability: np.ndarray
) -> np.ndarray:
    """Market shares by loops over agents and products, in extended precision."""
    products, agents = X2.shape[0], C.shape[1]
    available = np.broadcast_to(availability, (products, agents))
    shares = np.zeros(products, np.longdouble)
    for i in range(agents):
        V = np.array(
            [np.longdouble(delta[j]) + sum(X2[j, k] * C[k, i] for k in range(X2.shape[1])) for j in range(products)]
        )
        largest = max(0, *(V[j] for j in range(products) if available[j, i] > 0))
        exponentials = [
            available[j, i] * np.exp(V[j] - largest) if available[j, i] != 0 else 0 for j in range(products)
        ]
        for j in range(products):
            shares[j] += weights[i] * exponentials[j] / (np.exp(-largest) + sum(exponentials))
    return shares.astype(float)


def market(
    seed: int,
    *,
    level: float = -2.0,
    sigma: float = 1.0,
    mass: float = 1.0,
    rule: str | None = None,
    spread: float = 0.7,
) -> Market:
    """A market at mean utilities around `level`, with tastes of size `sigma` and weights that sum to `mass`.

    With an integration `rule` its nodes and weights come first, and agents without weight fill up.
    """
    rng = np.random.default_rng(seed)
    X2 = np.column_stack([np.ones(J), rng.uniform(0, 2, J)])
    delta = level + spread * rng.normal(size=J)
    nodes, weights = rng.normal(size=(I, 2)), rng.dirichlet(np.full(I, 5.0))
    if rule is not None:
        built = build_integration(Integration(rule, 4), 2)
        known = built.weights.size
        assert known <= I
        nodes[:known], weights = built.nodes, np.zeros(I)
        weights[:known] = built.weights.reshape(-1)
    weights = weights * mass
    C = sigma * np.diag([0.7, 1.0]) @ nodes.T
    availability = np.ones((J, 1))
    return Market(delta, X2, C, weights, availability, loop_shares(delta, X2, C, weights, availability))


MARKETS = {
    "ordinary": market(1),
    "no heterogeneity": market(2, sigma=0.0),
    "negative weights": market(3, rule="nested_grid", sigma=0.6),
    "weights sum to 0.154": market(4, mass=0.154),
    "large sigma": market(5, sigma=6.0),
    "tiny shares": market(6, level=-20.0, sigma=1.5),
    "small outside share": market(7, level=3.0, sigma=0.5),
    "far from logit": market(8, level=5.0, sigma=8.0, spread=4.0),
}


def stack(markets: Sequence[Market]) -> Market:
    """Markets side by side along a new first axis."""
    return Market(*(np.stack(values) for values in zip(*markets, strict=True)))


def pad(small: Market, products: int, agents: int) -> Market:
    """The same market with places for more products and agents, as `blpjax.economy.buckets` pads them."""
    more, people = products - small.delta.size, agents - small.weights.size
    return Market(
        np.pad(small.delta, (0, more)),
        np.pad(small.X2, ((0, more), (0, 0))),
        np.pad(small.C, ((0, 0), (0, people))),
        np.pad(small.weights, (0, people)),
        np.pad(small.availability, ((0, more), (0, 0))),
        np.pad(small.shares, (0, more)),
    )


def tables(
    seed: int, products: Sequence[int], agents: Sequence[int], sigma: float = 0.8
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Product and agent tables with these numbers of products and agents in each market."""
    rng = np.random.default_rng(seed)
    rows, people = [], []
    for t, (n, m) in enumerate(zip(products, agents, strict=True)):
        x, w, z = rng.uniform(0, 2, (3, n))
        xi = rng.normal(0, 0.4, n)
        prices = 1.0 + 0.4 * w + 0.3 * z + 0.4 * xi
        nodes, income = rng.normal(size=(m, 2)), rng.normal(0, 0.5, m)
        X2 = np.column_stack([np.ones(n), x])
        C = np.vstack([0.4 * nodes[:, 0] + 0.3 * income, sigma * nodes[:, 1] - 0.5 * income])
        delta = -1.0 + x - 1.5 * prices + xi
        shares = loop_shares(delta, X2, C, np.full(m, 1 / m), np.ones((n, 1)))
        rows.append(
            pd.DataFrame(
                {
                    "market_ids": f"m{t:03d}",
                    "product_ids": [f"p{j}" for j in range(n)],
                    "shares": shares,
                    "prices": prices,
                    "x": x,
                    "demand_instruments0": w,
                    "demand_instruments1": z,
                    "demand_instruments2": w * z,
                    "demand_instruments3": w * x,
                    "demand_instruments4": z**2,
                    "demand_instruments5": x**2,
                }
            )
        )
        people.append(
            pd.DataFrame(
                {
                    "market_ids": f"m{t:03d}",
                    "weights": 1 / m,
                    "nodes0": nodes[:, 0],
                    "nodes1": nodes[:, 1],
                    "income": income,
                }
            )
        )
    return pd.concat(rows, ignore_index=True), pd.concat(people, ignore_index=True)
