"""Groups within groups from tables to outputs: their limits, closed forms, derivatives, files, and what is refused."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.exceptions import DataError, IdentificationWarning
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.tolerances import CENTRAL_DIFFERENCE, FIXED_PARAMETERS, LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")

F = blpjax.Formulation
NONLINEAR = {"sigma": [[0.5, 0], [0.2, 0.3]], "pi": [[0.3], [0.4]]}
EVALUATED = {
    "method": "1s",
    "beta": [None, -2.0, None, None],
    "optimization": blpjax.Optimization("return"),
    "check_optimality": "gradient",
    "iteration": blpjax.Iteration("anderson", {"atol": 1e-14}),
}


@functools.cache
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Groups a and b of subgroups 0 and 1, which have one product in some markets, or none."""
    products, agents = joint.tables(seed=3, markets=5)
    rank = products.groupby("market_ids").cumcount()
    products = products.assign(
        nesting_ids=np.where(rank % 2, "a", "b"),
        subnesting_ids=rank // 4,
        shares=products.shares * 0.8,
    )
    for place, names in enumerate((["nesting_ids"], ["nesting_ids", "subnesting_ids"])):
        within = products.groupby(["market_ids", *names])
        products[f"demand_instruments{6 + 2 * place}"] = within.x.transform("size")
        products[f"demand_instruments{7 + 2 * place}"] = within.x.transform("sum")
    return products, agents


def build(products: pd.DataFrame | None = None, X2: bool = True) -> blpjax.Problem:
    known, agents = tables()
    formulas = (F("1 + prices + x + y"), F("1 + prices") if X2 else None, F("1 + w + x") if X2 else None)
    people = (F("0 + income"), agents) if X2 else (None, None)
    return blpjax.Problem(formulas, known if products is None else products, *people)


@functools.cache
def problem() -> blpjax.Problem:
    return build()


@functools.cache
def at(*rho: float) -> Any:
    return problem().solve(**NONLINEAR, rho=rho, costs_bounds=(0.01, None), **EVALUATED)


@functools.cache
def logit_at(*rho: float) -> Any:
    """Without random coefficients and a supply side."""
    return build(X2=False).solve(rho=rho, **EVALUATED)


@pytest.fixture(scope="module", autouse=True)
def _forget_results() -> Any:
    yield
    at.cache_clear()
    logit_at.cache_clear()
    problem.cache_clear()


ATTRIBUTES = ("objective", "delta", "xi", "omega", "tilde_costs", "beta", "gamma")
OUTPUTS = ("elasticities", "long_run_diversion_ratios", "consumer_surpluses", "costs", "passthrough", "profit_hessians")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["groups", "subgroups"])
def test_limits_are_models_of_one_level(level: str) -> None:
    """Where subgroups are as close as their groups, and where groups are no closer than others."""
    products = tables()[0]
    if level == "groups":
        limit, one = at(0.4, 0.4), products
    else:
        limit, one = at(0.0, 0.4), products.assign(nesting_ids=products.nesting_ids + products.subnesting_ids.map(str))
    known = build(one.drop(columns="subnesting_ids"))
    single = known.solve(**NONLINEAR, rho=0.4, costs_bounds=(0.01, None), **EVALUATED)
    for name in ATTRIBUTES:
        FIXED_PARAMETERS.check(getattr(limit, name), getattr(single, name), name)
    for name in OUTPUTS:
        FIXED_PARAMETERS.check(getattr(limit, f"compute_{name}")(), getattr(single, f"compute_{name}")(), name)


@pytest.mark.slow
def test_gradients_agree_with_differences_for_parameters_of_each_group() -> None:
    known = problem()
    rho = np.array([0.2, 0.3, 0.4, 0.5, 0.35, 0.45])
    results, step = at(*rho), 1e-5
    assert results.theta_labels[5:-1] == ["a", "b", *(f"{g}: {s}" for g, s in known.unique_subnesting_ids)]

    def objective(moved: np.ndarray) -> float:
        return float(at(*moved).objective)

    places = [0, 1, 2, len(rho) - 1]
    difference = [(objective(rho + m) - objective(rho - m)) / (2 * step) for m in step * np.eye(len(rho))[places]]
    CENTRAL_DIFFERENCE.check(results.gradient[5 + np.array(places), 0], difference)
    assert np.isfinite(results.rho_se).all() and results.rho_bounds[1].max() == 0.99


@pytest.mark.parametrize("evaluated", mostly_slow({"logit": logit_at, "random coefficients": at}, ["logit"]))
def test_markups_follow_from_numerical_derivatives_of_shares(evaluated: Any) -> None:
    results, products = evaluated(0.3, 0.6), tables()[0]
    prices, costs, step = products.prices.to_numpy(), results.compute_costs()[:, 0], 1e-5
    market = np.flatnonzero(products.market_ids == products.market_ids[0])
    slopes = np.zeros((market.size, market.size))
    for place, j in enumerate(market):
        moved = step * (np.arange(prices.size) == j)
        up, down = (results.compute_shares(prices=prices + sign * moved)[market, 0] for sign in (1, -1))
        slopes[:, place] = (up - down) / (2 * step)
    firms = products.firm_ids.to_numpy()[market]
    owned = firms[:, None] == firms
    expected = np.linalg.solve(-(owned * slopes.T), products.shares.to_numpy()[market])
    np.testing.assert_allclose((prices - costs)[market], expected, rtol=1e-6)
    # rivals of the subgroup are closer than those of the group, and these closer than others
    ratios, subgroups = results.compute_diversion_ratios()[market], products.subnesting_ids.to_numpy()[market]
    groups, s = products.nesting_ids.to_numpy()[market], products.shares.to_numpy()[market]
    weights = ratios[:, : market.size] / s
    same, close = groups[:, None] == groups, (groups[:, None] == groups) & (subgroups[:, None] == subgroups)
    off = ~np.eye(market.size, dtype=bool)
    assert weights[close & off].mean() > weights[same & ~close].mean() > weights[~same].mean()


def test_logit_estimates_are_those_of_a_linear_regression() -> None:
    """On logarithms of shares within subgroups, and of subgroups within groups (Verboven 1996)."""
    products, known = tables()[0], build(X2=False)
    with pytest.warns(IdentificationWarning, match="rho of 'All Subgroups' is below that of the group"):
        results = known.solve(rho="auto", method="1s", rho_bounds=(-5, 0.999))
    s = products.shares
    group = products.groupby(["market_ids", "nesting_ids"]).shares.transform("sum")
    subgroup = products.groupby(["market_ids", "nesting_ids", "subnesting_ids"]).shares.transform("sum")
    outside = 1 - products.groupby("market_ids").shares.transform("sum")
    within = np.column_stack([np.log(subgroup / group), np.log(s / subgroup)])
    X = np.column_stack([np.ones(len(s)), products.prices, products.x, products.y, within])
    Z = known.products.ZD
    A = X.T @ Z @ np.linalg.inv(Z.T @ Z) @ Z.T
    expected = np.linalg.solve(A @ X, A @ np.log(s / outside))
    np.testing.assert_allclose(np.r_[results.beta[:, 0], results.rho[:, 0]], expected, rtol=1e-5)
    assert results.theta_labels == ["All Groups", "All Subgroups"]
    LINEAR_ALGEBRA.check(results.delta[:, 0], np.log(s / outside) - within @ results.rho[:, 0])


def test_files_keep_them(tmp_path: Path) -> None:
    results = logit_at(0.3, 0.6)
    results.save(tmp_path / "results")
    loaded = blpjax.load(tmp_path / "results")
    np.testing.assert_array_equal(loaded.rho, results.rho)
    np.testing.assert_array_equal(loaded.problem.unique_subnesting_ids, problem().unique_subnesting_ids)
    np.testing.assert_array_equal(loaded.compute_elasticities(), results.compute_elasticities())
    assert loaded.theta_labels == results.theta_labels


@pytest.mark.slow
def test_counterfactuals_add_and_drop_products_of_subgroups() -> None:
    """What enters as a product left is that product."""
    results, products = at(0.3, 0.6), tables()[0]
    last = len(products) - 1
    row = products.iloc[[last]]
    left = results.counterfactual(drop=np.arange(len(products)) == last)
    costs, xi = results.compute_costs()[[last], 0], np.asarray(results.xi)[[last], 0]
    names = ["market_ids", "firm_ids", "nesting_ids", "subnesting_ids", "x", "y", "w"]
    again = results.counterfactual(
        drop=np.arange(len(products)) == last, add=row[names].assign(xi=xi, costs=costs).reset_index(drop=True)
    )
    assert left.markets.converged.all() and again.markets.converged.all()
    here = (products.market_ids == products.market_ids[last]).to_numpy() & (np.arange(len(products)) != last)
    prices = products.prices.to_numpy()[here]
    assert np.abs(left.products["prices_after"].to_numpy()[here] - prices).max() > 1e-5
    np.testing.assert_allclose(again.products["prices_after"].to_numpy()[:-1][here], prices, rtol=1e-7)


def test_products_of_new_subgroups_are_refused() -> None:
    results, products = logit_at(0.3, 0.6), tables()[0]
    last = len(products) - 1
    costs, xi = results.compute_costs()[[last], 0], np.asarray(results.xi)[[last], 0]
    row = products.iloc[[last]][["market_ids", "firm_ids", "nesting_ids", "subnesting_ids", "x", "y", "w"]]
    with pytest.raises(DataError, match="nesting_ids 'a', subnesting_ids 9, which is no group of products"):
        results.counterfactual(add=row.assign(subnesting_ids=9, xi=xi, costs=costs, nesting_ids="a"))


@pytest.mark.slow
def test_second_choices_in_subgroups_are_a_survey() -> None:
    """How many would stay in their subgroup without their first choice, by a loop over removed products."""
    dataset = blpjax.MicroDataset(
        "second", observations=1000, compute_weights=lambda t, p, a: np.ones((a.size, 1 + p.size, 1 + p.size))
    )
    groups = tables()[0]

    def same_subgroup(t: Any, p: Any, a: Any) -> np.ndarray:
        codes = [f"{g}{s}" for g, s in zip(p.nesting_ids[:, 0], p.subnesting_ids[:, 0], strict=True)]
        names = np.array(["", *codes])
        return np.repeat((names[:, None] == names)[None], a.size, axis=0).astype(float)

    moment = blpjax.MicroMoment("stay", 0.5, blpjax.MicroPart("stay", dataset, same_subgroup))
    results = at(0.3, 0.6)
    found = results.compute_micro_values([moment])
    total = weight = 0.0
    probabilities, agents = results.compute_probabilities(), tables()[1]
    for market in groups.market_ids.unique():
        rows = np.flatnonzero(groups.market_ids == market)
        people = np.flatnonzero(agents.market_ids == market)
        w = agents.weights.to_numpy()[people]
        P = probabilities[rows][:, : people.size]
        names = (groups.nesting_ids + groups.subnesting_ids.map(str)).to_numpy()[rows]
        for j, row in enumerate(rows):
            without = probabilities_without(results, row)[rows][:, : people.size]
            total += (w * (without - P)[(names == names[j]) & (rows != row)]).sum()
        weight += w.sum()
    FIXED_PARAMETERS.check(np.ravel(found)[0], total / weight)


def probabilities_without(results: Any, row: int) -> np.ndarray:
    """Choice probabilities when one product is far too bad to be chosen."""
    delta = np.array(results.delta)
    delta[row] = -1e3
    return results.compute_probabilities(delta=delta)


@pytest.mark.slow
def test_studies_of_simulated_economies_find_the_truth() -> None:
    """Estimates of 200 replications, in lanes, are unbiased, and intervals cover the truth."""
    T, J = 60, 8
    rank = np.tile(np.arange(J), T)
    data = {"market_ids": np.repeat(np.arange(T), J), "firm_ids": rank % 3}
    data |= {"nesting_ids": rank % 2, "subnesting_ids": rank // 4}
    errors = {"xi_variance": 0.02, "omega_variance": 0.02}
    known = {"beta": [-1.0, -2.0, 1.0], "rho": [0.3, 0.6], "gamma": [1.0, 0.5], "seed": 1}
    simulation = blpjax.Simulation((F("1 + prices + x"), None, F("1 + w")), data, **known, **errors)
    solved = simulation.replace_endogenous()
    products = pd.DataFrame(
        {name: np.ravel(solved.product_data[name]) for name in (*data, "prices", "shares", "x", "w")}
    )
    for place, names in enumerate((["nesting_ids"], ["nesting_ids", "subnesting_ids"])):
        products[f"demand_instruments{place}"] = products.groupby(["market_ids", *names]).x.transform("sum")
    products["demand_instruments2"] = products.w
    study = blpjax.MonteCarlo(simulation, blpjax.Problem((F("1 + prices + x"),), products), correlation=0.5, **errors)
    summary = study.run(200).summary()
    assert summary["failures"].sum() == 0 and summary["coverage"].between(0.90, 0.98).all(), summary
    assert (summary["bias"].abs() < 3 * summary["sd"] / np.sqrt(200)).all(), summary


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "rho must have two elements, for all groups and for all subgroups, or 6: one for each of 2 groups"),
        ({"rho": 0.5}, "rho must have two elements"),
        ({"rho": [0.5, 0.4]}, "rho of a subgroup must not be below that of its group, but that of 'All Subgroups'"),
        ({"rho": [0.5, 1.0]}, "rho must be below one, not 1"),
        ({"rho": [-0.1, 0.5]}, "rho must not be negative, but is -0.1"),
        ({"rho": [0.2, 0.5, 0.6, 0.6, 0.4, 0.6]}, "must not be below that of its group, but that of 'b: 0' is"),
        ({"rho": ["auto"] * 3}, "rho must be 'auto', 6 times 'auto', or numbers"),
    ],
)
def test_nesting_parameters_that_cannot_be_used(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problem().solve(**NONLINEAR, **{**EVALUATED, **arguments})


def test_subgroups_need_groups() -> None:
    products = tables()[0]
    with pytest.raises(DataError, match="a column 'subnesting_ids', groups within groups, but no column 'nes"):
        build(products.drop(columns="nesting_ids"))
    with pytest.raises(DataError, match="column 'subnesting_ids' has missing values in 1 row.*, row 4"):
        build(products.assign(subnesting_ids=np.where(np.arange(len(products)) == 4, None, "s")))
