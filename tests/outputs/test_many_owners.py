"""Many mergers as one batch: the same numbers as one after the other, solved once where they are the same."""

import itertools
from typing import Any

import numpy as np
import pytest

import blpjax
from blpjax import Formulation, Optimization, Problem
from blpjax.exceptions import ConvergenceWarning, EquilibriumPricesConvergenceError
from blpjax.outputs import many_owners
from tests.support.silence import silent
from tests.support.worlds import FIRMS, PRODUCTS, results
from tests.tolerances import LINEAR_ALGEBRA, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")
HALF = blpjax.build_ownership(PRODUCTS, lambda f, g: 1 if f == g else 0.5)
MERGERS: dict[Any, dict[str, Any]] = {
    pair: {"firm_ids": {pair[1]: pair[0]}} for pair in itertools.combinations(range(3), 2)
}
SCENARIOS = {
    **MERGERS,
    "all": {"firm_ids": np.zeros(FIRMS.size, int)},
    "the same": {"firm_ids": np.full(FIRMS.size, 7)},
    "cheaper": {"firm_ids": {1: 0}, "costs": lambda costs: 0.95 * costs},
    "costs in one market": {"costs": lambda costs: costs + 0.1 * (PRODUCTS.market_ids == "b").to_numpy()},
    "nothing": {},
    "single products": {"firm_ids": np.arange(FIRMS.size)},
    "one product": {"firm_ids": np.r_[9, FIRMS[1:]]},
}


def one_by_one(known: Any, scenarios: dict[Any, dict[str, Any]], weights: Any = None) -> Any:
    return [known.counterfactual(**arguments).summary(weights).stack() for arguments in scenarios.values()]


@pytest.mark.parametrize("price", ["prices", pytest.param("log(prices)", marks=pytest.mark.slow)])
def test_a_batch_is_what_one_after_the_other_is(price: str) -> None:
    known, weights = results(price), [1.0, 2.0, 0.5]
    table = blpjax.compare(SCENARIOS, known, weights=weights)
    assert table.index.tolist() == list(SCENARIOS)
    for (_, found), expected in zip(table.iterrows(), one_by_one(known, SCENARIOS, weights), strict=True):
        LINEAR_ALGEBRA.check(found[list(expected.index)], expected, str(found.name))
    ROUNDING.check(table.loc["all"], table.loc["the same"])
    assert (table.loc["nothing"].xs("change", level=1) == 0).all()


@pytest.mark.slow
def test_matrices_and_nests_are_solved_in_a_batch_too() -> None:
    more = SCENARIOS | {"halves": {"ownership": HALF}}
    table = blpjax.compare(more, results())
    LINEAR_ALGEBRA.check(table.loc["halves"], one_by_one(results(), {"": more["halves"]})[0][table.columns])
    nested = PRODUCTS.assign(nesting_ids=PRODUCTS.product_ids % 2)
    with silent():
        problem = Problem(Formulation("1 + prices + x"), nested)
        known = problem.solve(
            rho=0.4,
            beta=[1.0, -2.0, 1.5],
            method="1s",
            optimization=Optimization("return"),
            check_optimality="gradient",
        )
    pairs = list(itertools.permutations(range(3), 2))
    scenarios: dict[Any, dict[str, Any]] = {pair: {"firm_ids": {pair[1]: pair[0]}} for pair in pairs}
    scenarios |= {k: {} for k in range(9)}
    table = blpjax.compare(scenarios, known)
    for pair, expected in zip(pairs, one_by_one(known, {pair: scenarios[pair] for pair in pairs}), strict=True):
        LINEAR_ALGEBRA.check(table.loc[[pair]].iloc[0][list(expected.index)], expected)


def test_what_does_not_change_or_is_the_same_is_not_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    solve = many_owners._solve
    monkeypatch.setattr(
        many_owners, "_solve", lambda model, cases, *more: seen.extend(cases) or solve(model, cases, *more)
    )
    blpjax.compare(SCENARIOS, results())
    names = list(SCENARIOS)
    by_market = {(case.market, tuple(names[s] for s in case.scenarios)) for case in seen}
    assert all((t, ("all", "the same")) in by_market for t in range(3))
    assert [t for t, what in by_market if what == ("costs in one market",)] == [1]
    assert [t for t, what in by_market if "one product" in what] == [0]
    assert not any("nothing" in what for _, what in by_market)


def test_failures_name_scenario_and_market() -> None:
    short = blpjax.Iteration("simple", {"max_evaluations": 2})
    only = {k: {"costs": lambda c, k=k: c + 0.1 * k * (PRODUCTS.market_ids == "b").to_numpy()} for k in range(9)}
    with pytest.warns(ConvergenceWarning, match="equilibrium prices reached the maximum .*1 in 'b'"):
        table = blpjax.compare(only, results(), iteration=short)
    assert table.loc[1:].xs("after", axis=1, level=1).drop(columns="revenue").isna().all(axis=None)
    assert table.loc[0].notna().all()
    with pytest.raises(EquilibriumPricesConvergenceError, match="'b'"):
        blpjax.compare(only, results(), iteration=short, error_behavior="raise")


@pytest.mark.parametrize(
    ("shared", "arguments", "error", "message"),
    [
        ({"weights": [1.0]}, {}, ValueError, "3 finite numbers"),
        ({"error_behavior": "ignore"}, {}, ValueError, "error_behavior"),
        ({"iteration": "simple"}, {}, TypeError, "Iteration"),
        ({}, {"firm_ids": {7: 1}}, ValueError, "old ID 7"),
        ({}, {"costs": lambda costs: costs[:3]}, ValueError, "costs of 'bad' must be 12 finite numbers"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_mistakes_are_named(shared: Any, arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        blpjax.compare({**SCENARIOS, "bad": arguments}, results(), **shared)
