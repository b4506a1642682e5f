"""Outputs by product, market and agent: PyBLP's numbers, one market alone, tables, and bad arguments."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax.exceptions import ConvergenceError, ConvergenceWarning, EquilibriumPricesConvergenceError
from blpjax.inference.delta_method import DeltaMethodResults
from blpjax.machine.compilation import forget_programs
from blpjax.outputs.labels import OutputTables
from blpjax.outputs.outputs import Outputs
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.support.estimated import merged
from tests.support.programs import compilations
from tests.tolerances import DELTA, FIXED_PARAMETERS, ROUNDING

pytestmark = [
    pytest.mark.usefixtures("several_buckets"),
    pytest.mark.filterwarnings("ignore:agent_data. column 'weights':blpjax.exceptions.DataWarning"),
]

TIGHT = {"atol": 1e-14}


class Case(NamedTuple):
    """A problem, its tables, and parameters at which outputs are computed."""

    model: joint.Model
    tables: tuple[pd.DataFrame, pd.DataFrame | None]
    parameters: dict[str, Any]


def cases() -> dict[str, Case]:
    linear, log = joint.tables(markets=4), joint.tables(costs_type="log", markets=4)
    weighted = joint.tables(importance=True, markets=4)
    usual = {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [None, -2.0, None, None]}
    logs = {"sigma": np.diag([0.6, 0.1]), "pi": np.array([[0.3], [0.1]]), "beta": [None, -4.0, None, None]}
    return {
        "linear costs": Case(joint.Model(), linear, usual),
        "log costs of shares, asymmetric ownership": Case(
            joint.Model(X3="1 + w + x + shares", options={"costs_type": "log"}),
            (joint.with_asymmetric_ownership(log[0]), log[1]),
            usual,
        ),
        "log(prices), unequal weights": Case(
            joint.Model("1 + log(prices) + x + y", "0 + x + log(prices)", "1 + w + log(shares)"), weighted, logs
        ),
        "demand alone, logit": Case(
            joint.Model(X2=None, X3=None, demographics=None), (linear[0], None), {"beta": [None, -2.0, None, None]}
        ),
    }


@functools.cache
def solved(name: str) -> tuple[Any, Any]:
    """Results of blpjax and PyBLP."""
    model, tables, parameters = cases()[name]
    found = []
    for library in (blpjax, pyblp):
        problem = model.build(library, *tables)
        with joint.quiet():
            results = problem.solve(
                **parameters,
                method="1s",
                optimization=library.Optimization("return"),
                iteration=library.Iteration("squarem", TIGHT),
                check_optimality="gradient",
            )
        found.append(results)
    return found[0], found[1]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a compute method, with arguments for some rows of the product table."""

    method: str
    arguments: Callable[[pd.DataFrame], dict[str, Any]] = lambda rows: {}
    options: Callable[[Any], dict[str, Any]] = lambda library: {}

    def answer(self, library: Any, results: Any, products: pd.DataFrame, market_id: Any = None, **more: Any) -> Any:
        rows = products if market_id is None else products[products.market_ids == market_id]
        with joint.quiet():
            return getattr(results, f"compute_{self.method}")(
                **self.arguments(rows), **self.options(library), market_id=market_id, **more
            )


def dearer(rows: pd.DataFrame) -> np.ndarray:
    return rows.prices.to_numpy() * (1.1 + 0.1 * rows.x.to_numpy())


def cheaper(rows: pd.DataFrame) -> np.ndarray:
    return 0.8 * rows.costs.to_numpy()


def holdings(rows: pd.DataFrame) -> np.ndarray:
    """Any ownership matrices, the same numbers whether for all markets or for one."""
    width = rows.groupby("market_ids").size().max()
    H = 0.2 + 0.6 * np.sin(37.0 * rows.x.to_numpy()[:, None] * np.arange(1, width + 1)) ** 2
    position = rows.groupby("market_ids").cumcount().to_numpy()
    H[np.arange(len(rows)), position] = 1.0
    return H


DEMAND = {
    "aggregate elasticities": Call("aggregate_elasticities"),
    "aggregate elasticities in x": Call("aggregate_elasticities", lambda rows: {"name": "x", "factor": 0.3}),
    "aggregate elasticities in delta": Call("aggregate_elasticities", lambda rows: {"name": None}),
    "elasticities": Call("elasticities"),
    "elasticities in x": Call("elasticities", lambda rows: {"name": "x"}),
    "elasticities in delta": Call("elasticities", lambda rows: {"name": None}),
    "Jacobians": Call("demand_jacobians"),
    "Hessians": Call("demand_hessians"),
    "Hessians in x": Call("demand_hessians", lambda rows: {"name": "x"}),
    "diversion in x": Call("diversion_ratios", lambda rows: {"name": "x"}),
    "diversion in delta": Call("diversion_ratios", lambda rows: {"name": None}),
    "long-run diversion": Call("long_run_diversion_ratios"),
    "probabilities": Call("probabilities"),
    "shares": Call("shares", lambda rows: {"prices": dearer(rows)}),
    "delta": Call("delta", options=lambda library: {"iteration": library.Iteration("squarem", TIGHT)}),
    "surplus": Call("consumer_surpluses"),
    "surplus at other prices": Call("consumer_surpluses", lambda rows: {"prices": dearer(rows)}),
    "surplus of agents": Call("consumer_surpluses", lambda rows: {"prices": dearer(rows), "keep_all": True}),
    "surplus without products": Call("consumer_surpluses", lambda rows: {"eliminate_product_ids": ["p1", "p7"]}),
}
SUPPLY = {
    "costs": Call("costs"),
    "costs of a merger": Call("costs", lambda rows: {"firm_ids": merged(rows)}),
    "costs with holdings": Call("costs", lambda rows: {"ownership": holdings(rows)}),
    "passthrough": Call("passthrough"),
    "passthrough of a merger": Call("passthrough", lambda rows: {"firm_ids": merged(rows)}),
    "passthrough with holdings": Call("passthrough", lambda rows: {"ownership": holdings(rows)}),
    "approximate prices": Call("approximate_prices", lambda rows: {"firm_ids": merged(rows), "costs": cheaper(rows)}),
    "markups": Call("markups"),
    "markups at other prices": Call("markups", lambda rows: {"prices": dearer(rows), "costs": cheaper(rows)}),
    "profits": Call("profits"),
    "profits at other prices": Call(
        "profits", lambda rows: {"prices": dearer(rows), "costs": cheaper(rows), "shares": 0.9 * rows.shares.to_numpy()}
    ),
    "profit Hessians": Call("profit_hessians"),
    "profit Hessians elsewhere": Call("profit_hessians", lambda rows: {"prices": dearer(rows), "costs": cheaper(rows)}),
    "concentration": Call("hhi"),
    "concentration of a merger": Call(
        "hhi", lambda rows: {"firm_ids": merged(rows), "shares": rows.shares.to_numpy() * rows.x.to_numpy()}
    ),
}


def equilibrium(library: Any) -> dict[str, Any]:
    """PyBLP's default tolerance is its own profit gradient's: a tighter one makes the comparison sharper."""
    return (
        {"iteration": pyblp.Iteration("simple", {"atol": 1e-14, "max_evaluations": 5000})} if library is pyblp else {}
    )


PRICES = {
    "prices of a merger": Call("prices", lambda rows: {"firm_ids": merged(rows)}, equilibrium),
    "prices at lower costs": Call("prices", lambda rows: {"costs": cheaper(rows), "prices": dearer(rows)}, equilibrium),
    "prices with holdings": Call("prices", lambda rows: {"ownership": holdings(rows)}, equilibrium),
    "prices when costs move": Call(
        "prices", lambda rows: {"firm_ids": merged(rows), "constant_costs": False}, equilibrium
    ),
}
CALLS = {**DEMAND, **SUPPLY, **PRICES}
#: One call for each way to answer.
KINDS = [
    "aggregate elasticities",
    "elasticities",
    "Hessians",
    "probabilities",
    "delta",
    "surplus of agents",
    "costs with holdings",
    "prices of a merger",
]
#: Calls that need a program of their own.
WITH_A_PROGRAM = [call for call in CALLS if "Hessians" in call or call in ("delta", *PRICES)]
#: Of which another case answers the like.
SLOW = {
    "linear costs": [call for call in CALLS if call not in KINDS],
    "log(prices), unequal weights": [*WITH_A_PROGRAM, *(call for call in CALLS if call.startswith("passthrough"))],
    "demand alone, logit": WITH_A_PROGRAM,
}


def is_slow(case: str, call: str, market_id: Any) -> bool:
    return call in SLOW.get(case, ()) or (market_id is not None and call in ("Hessians", "delta"))


#: Kinds of calls, for all markets or for one.
QUESTIONS = [
    pytest.param(call, market_id, marks=pytest.mark.slow if is_slow("", call, market_id) else ())
    for call in KINDS
    for market_id in (None, "m001")
]
#: Where costs are linear each way to answer is compared. The other cases ask more; one market alone has its own test.
COMPARISONS = [
    pytest.param(case, call, market_id, marks=pytest.mark.slow if is_slow(case, call, market_id) else ())
    for case in cases()
    for call in CALLS
    for market_id in ((None, "m002") if case == "linear costs" else (None,))
]


@pytest.mark.parametrize(("case", "call", "market_id"), COMPARISONS)
def test_outputs_are_those_of_pyblp(case: str, call: str, market_id: Any) -> None:
    ours, theirs = solved(case)
    products = cases()[case].tables[0]
    expected = CALLS[call].answer(pyblp, theirs, products, market_id)
    actual = CALLS[call].answer(blpjax, ours, products, market_id)
    assert isinstance(actual, np.ndarray) and actual.flags.writeable
    FIXED_PARAMETERS.check(actual, expected)


@pytest.mark.parametrize(
    "call",
    mostly_slow([*CALLS], [call for call in CALLS if call not in WITH_A_PROGRAM]),
)
def test_one_market_alone_has_the_numbers_that_it_has_among_all(call: str) -> None:
    """A market that is smaller than its bucket."""
    name, market_id = "log costs of shares, asymmetric ownership", "m001"
    ours, products = solved(name)[0], cases()[name].tables[0]
    everything = CALLS[call].answer(blpjax, ours, products)
    alone = CALLS[call].answer(blpjax, ours, products, market_id)
    if len(everything) == len(products):
        inside = everything[(products.market_ids == market_id).to_numpy()]
    else:
        inside = everything[1:2]
    FIXED_PARAMETERS.check(alone, inside[tuple(slice(size) for size in alone.shape)])
    assert np.isnan(inside).sum() == inside.size - alone.size


# tables


@pytest.mark.parametrize(("call", "market_id"), QUESTIONS)
def test_tables_hold_the_numbers_of_arrays(call: str, market_id: Any) -> None:
    ours, products = solved("linear costs")[0], cases()["linear costs"].tables[0]
    array = CALLS[call].answer(blpjax, ours, products, market_id)
    frame = CALLS[call].answer(blpjax, ours, products, market_id, as_frame=True)
    assert frame.columns[0] == "market_ids"
    assert len(frame) == np.isfinite(array).sum()
    np.testing.assert_array_equal(np.sort(frame.iloc[:, -1]), np.sort(array[np.isfinite(array)]))


def test_tables_of_second_derivatives_are_labelled() -> None:
    ours, products = solved("linear costs")[0], cases()["linear costs"].tables[0]
    hessians = ours.compute_demand_hessians()
    frame = ours.compute_demand_hessians(as_frame=True)
    keyed = frame.set_index(["market_ids", "product", "first_product", "second_product"]).second_derivative
    for _, market in products.groupby("market_ids"):
        ids = market.product_ids.to_list()
        for row, product in market.product_ids.items():
            for k, first in enumerate(ids):
                for m, second in enumerate(ids):
                    assert keyed[market.market_ids.iloc[0], product, first, second] == hessians[row, k, m]


def test_tables_by_market_and_agent_are_labelled() -> None:
    ours = solved("linear costs")[0]
    frame, array = ours.compute_hhi(as_frame=True), ours.compute_hhi()
    assert list(frame.columns) == ["market_ids", "hhi"]
    assert frame.market_ids.tolist() == ["m000", "m001", "m002", "m003"]
    np.testing.assert_array_equal(frame.hhi, array[:, 0])
    frame = ours.compute_consumer_surpluses(keep_all=True, as_frame=True)
    array = ours.compute_consumer_surpluses(keep_all=True)
    assert list(frame.columns) == ["market_ids", "agent", "consumer_surplus"]
    assert frame.groupby("market_ids").size().tolist() == list(joint.AGENTS[:4])
    for t, (_, market) in enumerate(frame.groupby("market_ids")):
        np.testing.assert_array_equal(market.consumer_surplus, array[t, : len(market)])


# standard errors and draws


class Known(Outputs):
    """Outputs of a model whose parameters are known."""

    def __init__(self, results: Any) -> None:
        self._results = results

    @property
    def model(self) -> Any:
        return self._results.model

    @property
    def output_tables(self) -> OutputTables:
        return self._results.output_tables


class Estimated(Known):
    """Standard errors are a tenth of the values."""

    def delta_method(self, function: Any, hold: str = "shares") -> DeltaMethodResults:
        value = jax.tree.map(np.asarray, function(self.model))
        numbers = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(value)])
        return DeltaMethodResults(value, 0.1 * numbers[:, None], np.eye(1), ["scale"], hold)


class Drawn(Known):
    """Two draws, of which the second has mean utilities that are higher by one."""

    draws = 2

    def evaluate_output(self, function: Any, given: Any) -> Any:
        found = []
        for d in range(2):
            of_draw = {name: values[d] if values.ndim > 1 else values for name, values in given.items()}
            model = dataclasses.replace(self.model, delta=self.model.delta + d)
            found.append(function(model, of_draw))
        return np.stack(found)


@pytest.mark.parametrize(("call", "market_id"), QUESTIONS)
def test_standard_errors_are_those_of_the_delta_method(call: str, market_id: Any) -> None:
    results, products = Estimated(solved("linear costs")[0]), cases()["linear costs"].tables[0]
    value = CALLS[call].answer(blpjax, results, products, market_id)
    found = CALLS[call].answer(blpjax, results, products, market_id, standard_errors=True, hold="xi")
    assert found.hold == "xi"
    np.testing.assert_array_equal(found.value, value)
    frame = CALLS[call].answer(blpjax, results, products, market_id, standard_errors=True, as_frame=True)
    assert list(frame.columns[-3:]) == ["standard_error", "lower", "upper"]
    ROUNDING.check(frame.standard_error, 0.1 * np.abs(frame.iloc[:, -4]))
    ROUNDING.check(frame.upper - frame.lower, 2 * 1.959963984540054 * frame.standard_error)


@pytest.mark.parametrize("call", ["delta", "prices of a merger"])
def test_nothing_is_solved_a_second_time_for_standard_errors(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[Any] = []
    monkeypatch.setattr(Estimated, "evaluate_output", lambda *arguments: evaluated.append(arguments))
    results, products = Estimated(solved("linear costs")[0]), cases()["linear costs"].tables[0]
    found = CALLS[call].answer(blpjax, results, products, None, standard_errors=True)
    assert found.value.shape == (len(products), 1) and not evaluated


def test_known_parameters_have_no_standard_errors() -> None:
    with pytest.raises(TypeError, match="Known has no standard errors: its parameters are known"):
        Known(solved("linear costs")[0]).compute_costs(standard_errors=True)


def test_draws_have_an_axis_of_their_own_in_answers_and_arguments() -> None:
    ours, products = solved("linear costs")[0], cases()["linear costs"].tables[0]
    drawn = Drawn(ours)
    costs = drawn.compute_costs()
    assert costs.shape == (2, len(products), 1)
    np.testing.assert_array_equal(costs[0], ours.compute_costs())
    markups = drawn.compute_markups(costs=costs)
    ROUNDING.check(markups, drawn.compute_markups())
    same = drawn.compute_markups(costs=costs[0])
    assert (same[1] == same[0]).all() and (markups[1] != markups[0]).all()
    elasticities = drawn.compute_elasticities()
    means = drawn.extract_diagonal_means(elasticities)
    ROUNDING.check(drawn.extract_diagonals(elasticities)[0], ours.extract_diagonals(elasticities[0]))
    ROUNDING.check(means[0], ours.extract_diagonal_means(elasticities[0]))
    assert means.shape == (2, 4, 1)
    with pytest.raises(NotImplementedError, match="as_frame is not supported for draws"):
        drawn.compute_costs(as_frame=True)
    with pytest.raises(ValueError, match=r"matrices must have the shape \(2, 29, 8\)"):
        drawn.extract_diagonals(elasticities[0])


# failures


@pytest.fixture(scope="module")
def upward() -> Any:
    """Results at which demand rises in prices for consumers of one market, whose income is high."""
    products, agents = joint.tables(markets=4)
    agents = agents.assign(income=agents.income.where(agents.market_ids != "m002", agents.income + 20.0))
    problem = joint.Model(X2="0 + prices").build(blpjax, products, agents)
    with joint.quiet():
        return problem.solve(
            [[0.1]],
            [[0.2]],
            beta=[None, -2.0, None, None],
            method="1s",
            optimization=blpjax.Optimization("return"),
            check_optimality="gradient",
        )


def test_markets_where_nothing_is_optimal_are_named() -> None:
    """At costs of minus infinity there is no equilibrium."""
    ours = solved("linear costs")[0]
    inside = ours.problem.product_table.market_ids == "m002"
    costs = np.where(inside, -1e300, 1.0)
    with pytest.warns(ConvergenceWarning, match="equilibrium prices .* in 1 of 4 markets: 'm002'"):
        prices = ours.compute_prices(costs=costs)
    assert np.isnan(prices[inside]).all() and np.isfinite(prices[~inside]).all()
    with pytest.raises(EquilibriumPricesConvergenceError, match="'m002'"):
        ours.compute_prices(costs=costs, error_behavior="raise")
    with pytest.raises(EquilibriumPricesConvergenceError, match="in 1 of 1 markets: 'm002'"):
        ours.compute_prices(costs=costs[inside], market_id="m002", error_behavior="raise")
    assert np.isfinite(ours.compute_prices(costs=np.full(7, 1.0), market_id="m001")).all()


@pytest.mark.slow
def test_markets_without_an_equilibrium_are_named(upward: Any) -> None:
    with pytest.warns(ConvergenceWarning, match="equilibrium prices .* in 1 of 4 markets: 'm002'"):
        prices = upward.compute_prices(costs=np.full(29, 1.0))
    inside = upward.problem.product_table.market_ids == "m002"
    assert np.isnan(prices[inside]).all() and np.isfinite(prices[~inside]).all()
    with pytest.raises(EquilibriumPricesConvergenceError, match="'m002'"):
        upward.compute_prices(costs=np.full(29, 1.0), error_behavior="raise")
    with pytest.raises(EquilibriumPricesConvergenceError, match="in 1 of 1 markets: 'm002'"):
        upward.compute_prices(costs=np.full(6, 1.0), market_id="m002", error_behavior="raise")
    with pytest.raises(ConvergenceError, match="in 1 of 4 markets: 'm002'"):
        upward.compute_prices(costs=np.full(29, 1.0), error_behavior="raise", standard_errors=True)
    with pytest.warns(ConvergenceWarning, match="equilibrium prices .* in 1 of 4 markets: 'm002'"):
        uncertain = upward.compute_prices(costs=np.full(29, 1.0), standard_errors=True)
    np.testing.assert_array_equal(np.isnan(uncertain.standard_errors[:, 0]), inside)
    assert uncertain.jacobian.shape == (29, len(upward.parameters))
    assert np.isfinite(upward.compute_prices(costs=np.full(7, 1.0), market_id="m001")).all()


@pytest.mark.slow
def test_loops_that_are_cut_short_are_reported() -> None:
    ours = solved("linear costs")[0]
    short = blpjax.Iteration("simple", {"max_evaluations": 2})
    with pytest.warns(ConvergenceWarning, match="maximum number of evaluations in 4 of 4 markets: 'm000'"):
        prices = ours.compute_prices(firm_ids=np.zeros(29), iteration=short)
    assert np.isnan(prices).all()


ROUTINES = {
    "hybr": blpjax.Iteration("hybr", {"xtol": 1e-13}, compute_jacobian=True),
    "lm": blpjax.Iteration("lm", {"xtol": 1e-13, "ftol": 1e-15}),
}


@pytest.mark.slow
@pytest.mark.parametrize("routine", ROUTINES.values(), ids=ROUTINES)
@pytest.mark.parametrize(
    "name", ["linear costs", "log costs of shares, asymmetric ownership", "log(prices), unequal weights"]
)
def test_routines_on_the_host_find_equilibrium_prices(name: str, routine: blpjax.Iteration) -> None:
    ours, _ = solved(name)
    known = {"ownership": np.ones((29, 8)), "costs": cheaper(cases()[name].tables[0]), "constant_costs": False}
    expected = ours.compute_prices(**known)
    DELTA.check(ours.compute_prices(**known, iteration=routine), expected)
    alone = {**known, "ownership": np.ones((7, 7)), "costs": known["costs"][rows_of(name, "m001")]}
    DELTA.check(ours.compute_prices(**alone, market_id="m001", iteration=routine), expected[rows_of(name, "m001")])


def test_a_routine_on_the_host_finds_the_prices_of_a_market() -> None:
    ours, products = solved("linear costs")[0], cases()["linear costs"].tables[0]
    rows = rows_of("linear costs", "m001")
    known = {"ownership": np.ones((7, 7)), "costs": cheaper(products)[rows], "market_id": "m001"}
    found = ours.compute_prices(**known, iteration=blpjax.Iteration("hybr", {"xtol": 1e-13}))
    DELTA.check(found, ours.compute_prices(**known))


def rows_of(name: str, market_id: str) -> np.ndarray:
    return np.flatnonzero(cases()[name].tables[0].market_ids == market_id)


@pytest.mark.slow
def test_functions_of_users_find_equilibrium_prices() -> None:
    ours, _ = solved("linear costs")
    seen = []

    def plain(initial: np.ndarray, contraction: Any, callback: Any, steps: int) -> tuple[np.ndarray, bool]:
        for _ in range(steps):
            image, weights, jacobian = contraction(initial)
            seen.append((initial.size, weights, jacobian))
            initial = image
            callback()
        return initial, True

    found = ours.compute_prices(firm_ids=np.zeros(29), iteration=blpjax.Iteration(plain, {"steps": 200}))
    DELTA.check(found, ours.compute_prices(firm_ids=np.zeros(29)))
    assert {size for size, *_ in seen} == set(cases()["linear costs"].tables[0].groupby("market_ids").size())
    assert all(weights is None and jacobian is None for _, weights, jacobian in seen)
    with pytest.warns(ConvergenceWarning, match="equilibrium prices"):
        early = ours.compute_prices(firm_ids=np.zeros(29), iteration=blpjax.Iteration(plain, {"steps": 1}))
    assert np.isnan(early).all()  # whatever the function says


def test_errors_of_users_functions_reach_them() -> None:
    def broken(initial: np.ndarray, *unused: Any) -> Any:
        raise ZeroDivisionError("this is the user's")

    ours, _ = solved("linear costs")
    with pytest.raises(ZeroDivisionError, match="this is the user's"):
        ours.compute_prices(firm_ids=np.zeros(29), iteration=blpjax.Iteration(broken))


@pytest.mark.slow
def test_derivatives_of_prices_do_not_depend_on_the_routine() -> None:
    ours, _ = solved("linear costs")
    known = {"firm_ids": np.zeros(29), "standard_errors": True}
    found = ours.compute_prices(**known, iteration=blpjax.Iteration("hybr", {"xtol": 1e-13}))
    FIXED_PARAMETERS.check(found.standard_errors, ours.compute_prices(**known).standard_errors)


def test_one_row_of_a_column_of_market_ids_is_a_market() -> None:
    ours, _ = solved("linear costs")
    market_id = ours.problem.products.market_ids[0]
    assert market_id.shape == (1,)
    found = ours.compute_elasticities(market_id=market_id)
    np.testing.assert_array_equal(found, ours.compute_elasticities(market_id=market_id[0]))
    np.testing.assert_array_equal(ours.extract_diagonals(found, market_id)[:, 0], np.diag(found))


# bad arguments

BAD = [
    ("costs", {"market_id": "m9"}, ValueError, "There is no market 'm9'. Markets are 'm000'"),
    ("costs", {"firm_ids": np.ones(3)}, ValueError, "firm_ids must hold 29 IDs, one for each product, not 3"),
    ("costs", {"firm_ids": [None] * 29}, ValueError, "firm_ids must not have missing values, but row 0 has"),
    ("costs", {"ownership": np.ones((29, 3))}, ValueError, r"ownership must have the shape \(29, 8\), not \(29, 3\)"),
    ("costs", {"ownership": np.zeros((29, 8))}, ValueError, "rows of zeros, but row 0 is one, in market '"),
    ("prices", {"ownership": np.zeros((29, 8))}, ValueError, "rows of zeros, but row 0 is one, in market '"),
    ("costs", {"firm_ids": [[0, 1], [2]]}, ValueError, "firm_ids must hold 29 IDs, one for each product, not a nested"),
    ("elasticities", {"market_id": ["m001", "m002"]}, ValueError, "market_id must be one market or None, .* not list"),
    ("elasticities", {"market_id": np.array(["m001", "m002"])}, ValueError, "market_id must be one market or None"),
    ("costs", {"ownership": np.full((29, 8), np.nan)}, ValueError, "ownership must be finite, but row 0 is not"),
    ("costs", {"ownership": "all"}, ValueError, "ownership must be an array of finite numbers"),
    (
        "costs",
        {"firm_ids": np.ones(29), "ownership": np.ones((29, 8))},
        ValueError,
        "Give either firm_ids or ownership, not both",
    ),
    ("prices", {"costs": np.ones(28)}, ValueError, "costs must hold 29 numbers, one for each product, not 28"),
    ("prices", {"prices": np.r_[np.ones(28), np.inf]}, ValueError, "prices must be .* finite numbers: row 28 is inf"),
    ("prices", {"iteration": "simple"}, TypeError, "iteration must be Iteration or None, not str"),
    ("prices", {"error_behavior": "ignore"}, ValueError, "error_behavior must be one of .*'warn'.* not 'ignore'"),
    ("aggregate_elasticities", {"factor": 0}, ValueError, "factor must be a finite number other than zero, not 0"),
    ("demand_hessians", {"name": "w"}, NameError, "No formula has a numeric variable 'w'"),
    ("consumer_surpluses", {"eliminate_product_ids": ["p0", "zz"]}, ValueError, "eliminate_product_ids has 'zz'"),
    (
        "consumer_surpluses",
        {"eliminate_product_ids": ["p0"], "product_ids_index": 1},
        ValueError,
        "product_ids_index must be between 0 and 0, not 1",
    ),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("method", "arguments", "error", "message"), BAD)
def test_bad_arguments_are_named(method: str, arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(solved("linear costs")[0], f"compute_{method}")(**arguments)


def test_what_is_not_in_the_data_has_to_be_given() -> None:
    products, _ = joint.tables(markets=4)
    bare = products.drop(columns=["firm_ids", "product_ids"])
    model, _, parameters = cases()["demand alone, logit"]
    problem = model.build(blpjax, bare, None)
    with joint.quiet():
        results = problem.solve(
            **parameters, optimization=blpjax.Optimization("return"), method="1s", check_optimality="gradient"
        )
    for method in ("costs", "prices", "passthrough", "approximate_prices", "markups", "profits", "profit_hessians"):
        with pytest.raises(ValueError, match="firm_ids or ownership must be given, because product_data has neither"):
            getattr(results, f"compute_{method}")()
    with pytest.raises(ValueError, match="firm_ids must be given, because there is no column 'firm_ids'"):
        results.compute_hhi()
    with pytest.raises(ValueError, match="eliminate_product_ids needs a column 'product_ids'"):
        results.compute_consumer_surpluses(eliminate_product_ids=["p1"])
    assert results.compute_costs(firm_ids=products.firm_ids).shape == (29, 1)
    assert results.compute_hhi(firm_ids=products.firm_ids, market_id=None).shape == (4, 1)


def test_one_product_can_be_eliminated_by_its_id_alone() -> None:
    ours = solved("linear costs")[0]
    np.testing.assert_array_equal(
        ours.compute_consumer_surpluses(eliminate_product_ids="p1"),
        ours.compute_consumer_surpluses(eliminate_product_ids=["p1"]),
    )


# --- compilation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_first_answers_wait_for_one_program_of_outputs_and_one_of_estimation(nested: bool) -> None:
    """Without a single operation of JAX outside of programs. Without nests the programs are those of other tests."""
    forget_programs()
    products, agents = joint.tables(markets=4)
    if nested:
        products["nesting_ids"] = np.where(products.x < 1, "a", "b")
    problem = joint.Model().build(blpjax, products, agents)
    with compilations() as estimation, joint.quiet():
        results = problem.solve(
            joint.SIGMA,
            joint.PI,
            0.3 if nested else None,
            beta=[None, -2.0, None, None],
            method="1s",
            optimization=blpjax.Optimization("return"),
            iteration=blpjax.Iteration("squarem", TIGHT),
            check_optimality="gradient",
        )
    assert estimation == ["jit(_evaluate)"]
    merged_ids = products.firm_ids.replace(2, 1)
    with compilations() as outputs, joint.quiet():
        for name in ("prices", "x", None):
            elasticities = results.compute_elasticities(name)
            results.compute_demand_jacobians(name)
            results.compute_diversion_ratios(name)
            results.compute_aggregate_elasticities(0.1, name)
        results.extract_diagonal_means(elasticities)
        results.compute_long_run_diversion_ratios()
        results.compute_consumer_surpluses(keep_all=True)
        results.compute_consumer_surpluses(eliminate_product_ids=["p1"])
        results.compute_probabilities()
        costs = results.compute_costs()
        results.compute_approximate_prices(merged_ids, costs=costs)
        results.compute_elasticities(market_id="m001")
        results.compute_passthrough()
        assert outputs == []
        prices = results.compute_prices(merged_ids, costs=costs)
        shares = results.compute_shares(prices)
        results.compute_hhi(merged_ids, shares)
        results.compute_markups(prices, costs)
        results.compute_profits(prices, shares, costs)
        results.compute_consumer_surpluses(prices)
    assert outputs == ["jit(_equilibrium)"]


def test_series_are_those_of_the_rows_of_product_data() -> None:
    rng = np.random.default_rng(0)
    N = 12
    data = pd.DataFrame({"market_ids": np.repeat([0, 1], 6), "firm_ids": np.tile([1, 2, 3], 4)}, index=range(5, 5 + N))
    data["prices"], data["x"], data["z"] = rng.uniform(1, 2, N), rng.normal(size=N), rng.normal(size=N)
    data["shares"], data["demand_instruments0"] = rng.uniform(0.05, 0.1, N), data.z + data.prices
    with joint.quiet():
        ours = blpjax.Problem(blpjax.Formulation("1 + prices + x"), data).solve(method="1s")
    expected = ours.compute_costs(firm_ids=data.firm_ids.to_numpy())
    np.testing.assert_array_equal(ours.compute_costs(firm_ids=data.firm_ids), expected)
    np.testing.assert_array_equal(ours.compute_costs(firm_ids=data.firm_ids.reset_index(drop=True)), expected)
    second = data[data.market_ids == 1]
    np.testing.assert_array_equal(ours.compute_costs(firm_ids=second.firm_ids, market_id=1), expected[6:])
    for method, arguments in (
        ("compute_costs", {"firm_ids": data.firm_ids.sort_values()}),
        ("compute_profits", {"prices": data.prices[::-1]}),
        ("compute_hhi", {"shares": data.shares.set_axis(range(100, 100 + N))}),
        ("compute_costs", {"firm_ids": second.firm_ids[::-1], "market_id": 1}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} has another index than product_data"):
            getattr(ours, method)(**arguments)
    with pytest.raises(ValueError, match="delta has another index than product_data"):
        ours.problem.solve(method="1s", delta=data.prices[::-1])
