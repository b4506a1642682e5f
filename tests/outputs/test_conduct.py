"""Outputs of results under other conduct than that of the problem."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax.exceptions import ConvergenceError, DataError
from blpjax.inference.markups import markups_with_slopes
from tests.support.conduct import CONDUCTS, own_cournot, solved, table
from tests.support.joint import quiet
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, ROUNDING, Tolerance

SOLVED = Tolerance(1e-9)


@pytest.mark.parametrize("name", [n if n == "cournot" else pytest.param(n, marks=pytest.mark.slow) for n in CONDUCTS])
def test_prices_at_the_costs_that_they_imply_are_the_observed_ones(name: str) -> None:
    results, conduct = solved(), CONDUCTS[name]
    costs = results.compute_costs(conduct=conduct)
    found = results.compute_prices(conduct=conduct, costs=costs, prices=1.1 * costs + 0.2)
    SOLVED.check(found[:, 0], table().prices)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDUCTS)
def test_one_market_alone_has_the_costs_that_it_has_among_all(name: str) -> None:
    results, conduct = solved(), CONDUCTS[name]
    costs = results.compute_costs(conduct=conduct)
    one = results.compute_costs(conduct=conduct, market_id="m001")
    ROUNDING.check(one[:, 0], costs[table().market_ids == "m001", 0])


def test_markups_profits_and_prices_follow_from_costs() -> None:
    results, conduct, data = solved(), CONDUCTS["cournot"], table()
    costs, p, s = results.compute_costs(conduct=conduct)[:, 0], data.prices.to_numpy(), data.shares.to_numpy()
    ROUNDING.check(results.compute_markups(conduct=conduct)[:, 0], (p - costs) / p)
    ROUNDING.check(results.compute_profits(conduct=conduct)[:, 0], (p - costs) * s)
    ROUNDING.check(results.compute_profits(conduct=conduct, prices=p + 1)[:, 0], (p + 1 - costs) * s)
    bertrand = results.compute_costs()[:, 0]
    ROUNDING.check(results.compute_approximate_prices(conduct=conduct)[:, 0], bertrand + p - costs)
    frame = results.compute_costs(conduct=conduct, as_frame=True)
    assert list(frame.columns) == ["market_ids", "product", "cost"]
    # less competition than in prices, at the costs of competition in prices
    assert (results.compute_prices(conduct=conduct)[:, 0] > p).mean() > 0.9


@pytest.mark.slow
def test_own_functions_and_other_firms() -> None:
    results, data = solved(), table()
    known = results.compute_costs(conduct=blpjax.Cournot())
    ROUNDING.check(results.compute_costs(conduct=blpjax.conduct(own_cournot, name="mine")), known)
    ROUNDING.check(results.compute_costs(conduct=blpjax.Bertrand()), results.compute_costs())
    merged = data.firm_ids.replace(2, 1).to_numpy()
    changed = results.compute_costs(firm_ids=merged, conduct=blpjax.Bertrand())
    ROUNDING.check(changed, results.compute_costs(firm_ids=merged))
    H = blpjax.build_ownership(data, lambda f, g: 1.0 if f == g else 0.3 * ({f, g} == {1, 2}))
    by_matrices = results.compute_costs(conduct=blpjax.Bertrand(weights=H))
    ROUNDING.check(by_matrices, results.compute_costs(conduct=CONDUCTS["weights"]))
    ROUNDING.check(by_matrices, results.compute_costs(ownership=np.nan_to_num(H)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bertrand", "cournot", "two tiers"])
def test_passthrough_agrees_with_differences(name: str) -> None:
    results, conduct, data = solved(), CONDUCTS[name], table()
    costs, rows = results.compute_costs(conduct=conduct)[:, 0], np.flatnonzero(data.market_ids == "m001")
    found = results.compute_passthrough(conduct=conduct)
    step = 1e-4 * (np.arange(len(data)) == rows[1])
    up, down = (results.compute_prices(conduct=conduct, costs=c)[:, 0] for c in (costs + step, costs - step))
    CENTRAL_DIFFERENCE.check(found[rows, 1], (up - down)[rows] / 2e-4)
    if name == "bertrand":
        DELTA.check(found, results.compute_passthrough())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cournot", "stackelberg", "bargaining"])
def test_markups_move_with_parameters_as_differences_say(name: str) -> None:
    results, conduct = solved(), CONDUCTS[name]
    [found] = markups_with_slopes(results, [conduct], [None], True)
    by_delta_method = results.compute_costs(conduct=conduct, standard_errors=True)
    labels = results.parameter_labels
    assert [labels[q] for q in found.parameters] == ["1 x 1", "x x x", "1 x income", "prices"]
    DELTA.check(found.jacobian, -by_delta_method.jacobian[:, found.parameters])
    others = [q for q in range(len(labels)) if q not in found.parameters]
    assert not by_delta_method.jacobian[:, others].any()
    theta, step = results.theta, 1e-5
    moved = []
    for sign in (1, -1):
        sigma, pi, beta = np.diag([0.4, 0.6]), np.array([[0.3], [0.0]]), [None, -2.0, None, None]
        sigma[1, 1] += sign * step
        with quiet():
            again = results.problem.solve(
                sigma,
                pi,
                beta=beta,
                method="1s",
                optimization=blpjax.Optimization("return"),
                iteration=blpjax.Iteration("newton", {"atol": 1e-14}),
                check_optimality="gradient",
            )
        moved.append(table().prices.to_numpy() - again.compute_costs(conduct=conduct)[:, 0])
    assert theta.size == 4
    CENTRAL_DIFFERENCE.check(found.jacobian[:, 1], (moved[0] - moved[1]) / (2 * step))


@pytest.mark.parametrize(
    ("conduct", "kind", "message"),
    [
        (blpjax.Cournot, TypeError, "such as blpjax.Cournot.*Call it: Cournot"),
        (own_cournot, TypeError, "Use blpjax.conduct"),
        (blpjax.Mixed("quantities"), DataError, "no column 'quantities'.*conduct Mixed"),
        (blpjax.Mixed("odd"), DataError, "'odd' must be zero or one for conduct Mixed.*market 'm003', row 6"),
        (blpjax.ConstantMarkup("gaps"), DataError, "'gaps'.*missing.*row"),
        (blpjax.TwoTier(), DataError, "no column 'retailer_ids'.*conduct TwoTier"),
        (blpjax.Bargaining("firm_ids", "makers", "odd"), DataError, "'odd' must be above zero and at most one"),
        (blpjax.Bertrand(weights={(1, 9): 0.5}), ValueError, "weights have 9.*'firm_ids'. There are 0, 1, 2"),
        (blpjax.Bertrand(weights=np.eye(3)), ValueError, "one for each product, not 3"),
        (blpjax.Bertrand("ownership"), DataError, "no column 'ownership'"),
        (blpjax.conduct(lambda market: market.jacobian()), ValueError, r"shape \(3,\) for 3 products, not \(3, 3\)"),
        (blpjax.conduct(lambda market: 1.0), TypeError, "must return a JAX array of numbers, not float"),
        (blpjax.conduct(lambda m: jnp.asarray(np.log(m.prices))), TypeError, "operations of JAX"),
        (blpjax.conditions(lambda m, market: m[:1]), ValueError, "a condition for each product"),
        (
            blpjax.TwoTier(blpjax.Bertrand(), blpjax.Bargaining("firm_ids", "makers")),
            NotImplementedError,
            "Bargaining has both tiers",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_used_is_refused(conduct: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        solved().compute_costs(conduct=conduct)


@pytest.mark.usefixtures("unchecked_types")
def test_arguments_that_do_not_fit_are_refused() -> None:
    results, conduct, data = solved(), blpjax.Cournot(), table()
    N = len(data)
    with pytest.raises(ValueError, match="either ownership or conduct"):
        results.compute_costs(ownership=np.ones((N, 8)), conduct=conduct)
    with pytest.raises(ValueError, match="either costs or conduct"):
        results.compute_markups(costs=np.ones(N), conduct=conduct)
    with pytest.raises(ValueError, match="PerfectCompetition does not depend on firm_ids"):
        results.compute_costs(firm_ids=np.arange(N), conduct=blpjax.PerfectCompetition())
    with pytest.raises(ValueError, match="weights by pairs of firms"):
        results.compute_costs(firm_ids=np.arange(N), conduct=CONDUCTS["weights"])
    with pytest.raises(NotImplementedError, match="Iteration\\('newton'\\)"):
        results.compute_prices(conduct=conduct, iteration=blpjax.Iteration("hybr"))
    for make, kind, message in (
        (lambda: blpjax.Bertrand(3), TypeError, "ownership must be the name of a column"),
        (lambda: blpjax.Bertrand(weights="x"), TypeError, "weights must be a number, a mapping.*or a Parameter"),
        (lambda: blpjax.Bertrand(weights={3: 1.0}), ValueError, "pairs of owners such as"),
        (lambda: blpjax.Bargaining(power=0.0), ValueError, "power must be above zero"),
        (lambda: blpjax.RuleOfThumb(-1), ValueError, "phi must be above zero"),
        (lambda: blpjax.ConstantMarkup(float("nan")), ValueError, "markup must be finite"),
        (lambda: blpjax.ResalePriceMaintenance("none"), ValueError, "zero must be 'wholesale' or 'retail'"),
        (lambda: blpjax.TwoTier("firm_ids"), TypeError, "retail must be a conduct"),
        (lambda: blpjax.conduct("f"), TypeError, "function must be a function"),
    ):
        with pytest.raises(kind, match=message):
            make()


@pytest.mark.slow
def test_markups_that_do_not_exist_are_errors_that_name_markets() -> None:
    results = solved()
    broken = blpjax.conduct(lambda market: jnp.sqrt(market.prices - market.prices[0] - 1e9), name="roots")
    with pytest.raises(ConvergenceError, match="conduct roots produced infinite or missing values in 4 of 4 markets"):
        results.compute_costs(conduct=broken)
    with pytest.raises(ConvergenceError, match="conduct roots"):
        markups_with_slopes(results, [broken], [None], True)
    unsolvable = blpjax.conditions(lambda m, market: m**2 + 1.0, name="no root")
    with pytest.raises(ConvergenceError, match="conduct no root produced infinite"):
        results.compute_costs(conduct=unsolvable)
    with pytest.warns(blpjax.exceptions.ConvergenceWarning, match="The search for equilibrium prices"):
        assert np.isnan(results.compute_prices(conduct=broken)).all()
    rising = results.problem.solve(
        np.diag([0.4, 0.6]), [[0.3], [0.0]], beta=[None, 0.5, None, None], method="1s",
        optimization=blpjax.Optimization("return"), check_optimality="gradient",
    )  # fmt: skip
    with pytest.raises(ConvergenceError, match="demand that does not slope down"):
        rising.compute_costs(conduct=blpjax.Cournot())


@pytest.mark.slow
def test_draws_have_markups_and_prices() -> None:
    results = solved()
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        drawn = results.bootstrap(3, seed=0)
    costs = drawn.compute_costs(conduct=blpjax.Cournot())
    assert costs.shape == (3, len(table()), 1)
    again = drawn.model_of(1).compute_costs(conduct=_prepared(blpjax.Cournot()))
    DELTA.check(costs[1], again)


def _prepared(conduct: Any) -> Any:
    from blpjax.economy.conduct import prepare_conduct

    return prepare_conduct(conduct, solved().problem.data.product_table)
