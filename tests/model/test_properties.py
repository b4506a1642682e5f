"""What holds in every model: properties of shares, derivatives and inversions at parameters and data drawn at random.

Sizes are the same in all examples, so that each program is compiled once.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import blpjax
from tests.support.designs import mostly_slow
from tests.support.joint import quiet
from tests.tolerances import CENTRAL_DIFFERENCE, LINEAR_ALGEBRA

PRODUCTS, AGENTS = (5, 3, 4), 8
N = sum(PRODUCTS)

few = settings(max_examples=6)
seeds = st.integers(0, 2**31 - 1)
#: Tastes that are exponentials of random coefficients soon are so large that probabilities underflow.
sizes = st.floats(0.1, 0.8)
nesting = st.floats(0.05, 0.95)


class Economy(NamedTuple):
    """Product and agent tables with nesting IDs, and parameters."""

    products: pd.DataFrame
    agents: pd.DataFrame
    parameters: dict[str, Any]


def economy(seed: int, size: float, rho: float) -> Economy:
    """Three markets in mixed rows, with tastes of this size."""
    rng = np.random.default_rng(seed)
    markets = rng.permutation(np.repeat(["m0", "m1", "m2"], PRODUCTS))
    products = pd.DataFrame({"market_ids": markets, "product_ids": [f"p{j}" for j in range(N)]})
    draws = rng.uniform(0.02, 1.0, N)
    total = pd.Series(draws).groupby(markets).transform("sum").to_numpy()
    products["shares"] = draws / (total + rng.uniform(0.05, 3.0))
    products["prices"], products["x"] = rng.uniform(0.5, 2.0, (2, N))
    # both groups in every market, whatever the draws
    products["nesting_ids"] = np.where(products.groupby("market_ids").cumcount() % 2, "odd", "even")
    products["firm_ids"] = rng.integers(0, 3, N)
    for k in range(7):
        products[f"demand_instruments{k}"] = rng.normal(size=N)
    agents = pd.DataFrame({"market_ids": np.repeat(["m0", "m1", "m2"], AGENTS)})
    raw = rng.uniform(0.5, 1.0, len(agents))
    agents["weights"] = raw / pd.Series(raw).groupby(agents.market_ids).transform("sum")
    agents["nodes0"], agents["nodes1"], agents["income"] = rng.normal(size=(3, len(agents)))
    sigma = size * np.array([[0.7, 0.0], [rng.normal(), 0.5]])
    return Economy(products, agents, {"sigma": sigma, "pi": size * rng.normal(0, 0.5, (2, 1)), "rho": rho})


def solve(known: Economy, nests: bool = True, **options: Any) -> Any:
    """Results at the parameters. Prices have only common tastes, so that demand slopes down."""
    parameters = {name: value for name, value in known.parameters.items() if nests or name != "rho"}
    products = known.products if nests else known.products.drop(columns="nesting_ids")
    with quiet():
        problem = blpjax.Problem(
            (blpjax.Formulation("1 + prices + x"), blpjax.Formulation("1 + x")),
            products,
            blpjax.Formulation("0 + income"),
            known.agents,
            **options,
        )
        return problem.solve(
            **parameters,
            beta=[None, -2.0, None],
            method="1s",
            optimization=blpjax.Optimization("return"),
            iteration=blpjax.Iteration("newton", {"atol": 1e-14}),
            check_optimality="gradient",
        )


def blocks(values: np.ndarray, products: pd.DataFrame) -> list[np.ndarray]:
    """The square block of each market, of an array (N, widest)."""
    found = []
    for market in ("m0", "m1", "m2"):
        rows = np.flatnonzero(products.market_ids == market)
        found.append(values[rows][:, : rows.size])
    return found


MODELS: dict[str, dict[str, Any]] = {
    "random coefficients": {"nests": False},
    "nests": {"nests": True},
    "nests and other types": {"nests": True, "rc_types": ["logit", "log"], "epsilon_scale": 0.7},
}
every_model = pytest.mark.parametrize("model", mostly_slow(MODELS, ["nests"]))


@every_model
@few
@given(seeds, sizes, nesting)
def test_what_demand_implies_adds_up(model: dict[str, Any], seed: int, size: float, rho: float) -> None:
    known = economy(seed, size, rho)
    results, products = solve(known, **model), known.products
    assert results.fp_converged.all()
    # the inversion goes there and back
    shares = results.compute_shares()
    np.testing.assert_allclose(shares[:, 0], products.shares, rtol=1e-10)
    probabilities = results.compute_probabilities()
    inside = probabilities[~np.isnan(probabilities)]
    assert (inside > 0).all() and (inside < 1).all() and (shares > 0).all() and (shares < 1).all()
    jacobians, elasticities = results.compute_demand_jacobians(), results.compute_elasticities()
    prices, observed = products.prices.to_numpy(), products.shares.to_numpy()
    for t, (D, E) in enumerate(zip(blocks(jacobians, products), blocks(elasticities, products), strict=True)):
        rows = np.flatnonzero(products.market_ids == f"m{t}")
        np.testing.assert_allclose(E, D * prices[rows][None, :] / observed[rows][:, None], rtol=1e-8)
        # own derivatives are negative, products are substitutes, and the outside good gains
        assert (np.diag(D) < 0).all() and (D - np.diag(np.diag(D)) >= 0).all() and (D.sum(axis=0) < 1e-14).all()
        # utility has no income effects: derivatives are symmetric
        LINEAR_ALGEBRA.check(D, D.T)
    for output in ("diversion_ratios", "long_run_diversion_ratios"):
        for ratios in blocks(getattr(results, f"compute_{output}")(), products):
            LINEAR_ALGEBRA.check(ratios.sum(axis=1), np.ones(len(ratios)), output)
            assert (ratios >= -1e-12).all()
    step = 1e-5
    surpluses = [results.compute_consumer_surpluses(prices=prices + sign * step) for sign in (1, -1)]
    sales = [observed[products.market_ids == market].sum() for market in ("m0", "m1", "m2")]
    # a dearer market costs consumers what they buy
    CENTRAL_DIFFERENCE.check((surpluses[0] - surpluses[1])[:, 0] / (2 * step), -np.array(sales))


@pytest.mark.slow
@few
@given(seeds, sizes, nesting)
def test_orders_of_rows_and_names_of_ids_change_nothing(seed: int, size: float, rho: float) -> None:
    known, rng = economy(seed, size, rho), np.random.default_rng(seed)
    order, people = rng.permutation(N), rng.permutation(len(known.agents))
    # new names sort in another order
    names = {"m0": "z", "m1": "b", "m2": "k", "odd": "1", "even": "2"}
    products = known.products.replace(names).iloc[order].reset_index(drop=True)
    agents = known.agents.replace(names).iloc[people].reset_index(drop=True)
    first, second = solve(known), solve(Economy(products, agents, known.parameters))
    np.testing.assert_allclose(second.delta, first.delta[order], rtol=0, atol=1e-9)
    np.testing.assert_allclose(second.objective, first.objective, rtol=1e-7)
    np.testing.assert_allclose(second.gradient, first.gradient, rtol=1e-6, atol=1e-7)
    own = [r.extract_diagonals(r.compute_elasticities()) for r in (first, second)]
    np.testing.assert_allclose(own[1], own[0][order], rtol=1e-8)
    means = [r.extract_diagonal_means(r.compute_diversion_ratios()) for r in (first, second)]
    # markets by their sorted names: b, k, z are m1, m2, m0
    np.testing.assert_allclose(means[1], means[0][[1, 2, 0]], rtol=1e-8)


@pytest.mark.slow
@few
@given(seeds, sizes, nesting, st.floats(0.1, 0.9))
def test_splitting_agents_changes_nothing(seed: int, size: float, rho: float, part: float) -> None:
    """The first agent of each market becomes two with parts of its weight, and another one of no weight comes along."""
    known = economy(seed, size, rho)
    first = known.agents.groupby("market_ids").head(1)
    rest = known.agents.drop(first.index)
    split = pd.concat(
        [
            rest,
            first.assign(weights=part * first.weights),
            first.assign(weights=(1 - part) * first.weights),
            first.assign(weights=0.0, nodes0=3.0),
        ],
        ignore_index=True,
    )
    whole, parts = solve(known), solve(known._replace(agents=split))
    np.testing.assert_allclose(parts.delta, whole.delta, rtol=0, atol=1e-9)
    np.testing.assert_allclose(parts.objective, whole.objective, rtol=1e-7)
    for output in ("elasticities", "long_run_diversion_ratios", "consumer_surpluses"):
        actual, expected = (getattr(r, f"compute_{output}")() for r in (parts, whole))
        LINEAR_ALGEBRA.check(actual, expected, output)


@few
@given(seeds, sizes, nesting)
@pytest.mark.slow
def test_groups_without_correlation_change_nothing(seed: int, size: float, rho: float) -> None:
    """Groups without correlation are none."""
    known = economy(seed, size, rho)
    plain = solve(known, nests=False)
    uncorrelated = solve(known._replace(parameters={**known.parameters, "rho": 0.0}))
    assert uncorrelated.rho.tolist() == [[0.0]] and uncorrelated.theta_labels == plain.theta_labels
    np.testing.assert_allclose(uncorrelated.gradient, plain.gradient, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(uncorrelated.delta, plain.delta, rtol=0, atol=1e-9)
    LINEAR_ALGEBRA.check(uncorrelated.compute_elasticities(), plain.compute_elasticities())
