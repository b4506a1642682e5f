"""The model as pure functions: derivatives of everything, other points, one market alone, and what adds up."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax.economy.ownership import firm_codes
from blpjax.exceptions import Status, succeeded
from blpjax.machine.compilation import forget_programs
from blpjax.model.model import Model
from blpjax.model.one_market import find_market
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.support.programs import compilations
from tests.tolerances import CENTRAL_DIFFERENCE, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

pytestmark = [
    pytest.mark.filterwarnings("ignore:agent_data. column 'weights':blpjax.exceptions.DataWarning"),
    pytest.mark.usefixtures("several_buckets"),
]

FORMULAS = {
    "linear": ("1 + w + log(shares)", {}),
    "log": ("1 + w + x + shares", {"costs_type": "log"}),
}


@functools.cache
def results(costs_type: str) -> Any:
    """Results on importance weights that do not sum to one."""
    X3, options = FORMULAS[costs_type]
    problem = joint.Model(X3=X3, options=options).build(blpjax, *joint.tables(1, costs_type, True, markets=4))
    with joint.quiet():
        return problem.solve(
            joint.SIGMA,
            joint.PI,
            beta=[None, -2.0, None, None],
            method="1s",
            optimization=blpjax.Optimization("return"),
            check_optimality="gradient",
        )


def model(costs_type: str = "linear") -> Model:
    return results(costs_type).model


def merged() -> np.ndarray:
    firms = results("linear").problem.product_table.firm_ids
    return np.where(firms == 2, 1, firms)


def blocks(rows: Any) -> list[np.ndarray]:
    """The matrices of all markets, without padding."""
    markets = results("linear").problem.market_index.rows
    return [np.asarray(rows)[r][:, : r.size] for r in markets]


def test_variables_that_no_formula_has_cannot_change() -> None:
    m = model("linear")
    with pytest.raises(NameError, match="No formula has a numeric variable 'typo'. There are .*prices, shares, "):
        m.at({"typo": m.prices})
    with pytest.raises(ValueError, match="To have them given, use the argument shares"):
        m.at({"prices": m.prices, "shares": m.shares})


# equilibria


@pytest.mark.parametrize(
    ("costs_type", "constant_costs"),
    [
        ("linear", True),
        pytest.param("log", False, marks=pytest.mark.slow),
        pytest.param("linear", False, marks=pytest.mark.slow),
        pytest.param("log", True, marks=pytest.mark.slow),
    ],
)
def test_equilibria_satisfy_first_order_conditions(costs_type: str, constant_costs: bool) -> None:
    m, firms = model(costs_type), merged()
    found = m.solve_prices(firm_ids=firms, constant_costs=constant_costs)
    assert succeeded(found.status).all() and (found.residuals < 1e-11).all() and (found.evaluations > 0).all()
    after = m.at({"prices": found.prices})
    costs = m.compute_costs()[:, 0]
    if not constant_costs:
        costs = m.update_costs(costs, after.shares)
    np.testing.assert_allclose(after.profit_gradients(costs=costs, firm_ids=firms), 0.0, atol=1e-11)
    LINEAR_ALGEBRA.check(after.compute_costs(firm_ids=firms)[:, 0], costs)
    assert np.abs(m.profit_gradients(costs=costs, firm_ids=firms)).max() > 1e-4


@pytest.mark.parametrize("costs_type", mostly_slow([*FORMULAS], ["linear"]))
def test_costs_move_with_shares_as_formulated(costs_type: str) -> None:
    m = model(costs_type)
    costs, shares, gamma = np.random.default_rng(0).uniform(1, 2, m.delta.size), m.shares * 1.2, m.coefficients.gamma
    linear = costs_type == "linear"
    moved = costs + gamma[2] * np.log(1.2) if linear else costs * np.exp(gamma[3] * 0.2 * m.shares)
    ROUNDING.check(m.update_costs(costs, shares), moved)


@pytest.mark.slow
def test_passthrough_is_the_derivative_of_resolved_prices() -> None:
    m, firms = model(), merged()
    costs = m.compute_costs()[:, 0]
    derivative = np.asarray(jax.jacfwd(lambda c: m.solve_prices(firm_ids=firms, costs=c).prices)(costs))
    after = m.at({"prices": m.solve_prices(firm_ids=firms).prices})
    rows = results("linear").problem.market_index.rows
    for block, r in zip(blocks(after.compute_passthrough(firm_ids=firms)), rows, strict=True):
        LINEAR_ALGEBRA.check(block, derivative[np.ix_(r, r)])
    step = 1e-5 * np.eye(costs.size)[rows[2][1]]
    up, down = (m.solve_prices(firm_ids=firms, costs=costs + s).prices for s in (step, -step))
    CENTRAL_DIFFERENCE.check(derivative[:, rows[2][1]], (up - down) / 2e-5)


def test_loops_that_are_cut_short_give_no_prices() -> None:
    short = blpjax.Iteration("squarem", {"max_evaluations": 2})
    found = model().solve_prices(firm_ids=merged(), iteration=short)
    assert (found.status == Status.MAX_EVALUATIONS).all() and np.isnan(found.prices).all()


# derivatives


def merger(m: Model) -> jax.Array:
    """Prices after a merger, and what follows from them."""
    prices = m.compute_prices(firm_ids=merged())
    after = m.at({"prices": prices})
    vectors = (
        prices,
        after.compute_profits(costs=m.compute_costs()),
        after.compute_consumer_surpluses(),
        after.compute_hhi(firm_ids=merged()),
        after.compute_elasticities()[:, :1],
        after.compute_long_run_diversion_ratios()[:, :1],
        after.compute_passthrough()[:, :1],
    )
    return jnp.concatenate(vectors)[:, 0]


@pytest.mark.slow
def test_outputs_are_differentiable_through_equilibria() -> None:
    """In a direction of all parameters and mean utilities at once: forward, in reverse, mapped, and by differences."""
    m, rng = model(), np.random.default_rng(2)
    coefficients = jax.tree.map(lambda x: np.tril(np.ones_like(x)) * 0.1 if x.ndim == 2 else 0.1 * x, m.coefficients)
    direction = rng.normal(size=m.delta.size), coefficients

    def at(step: Any) -> Model:
        values = (
            m.delta + step * direction[0],
            jax.tree.map(lambda x, d: x + step * d, m.coefficients, direction[1]),
        )
        return eqx.tree_at(lambda m: (m.delta, m.coefficients), m, values)

    forward = jax.jacfwd(lambda step: merger(at(step)))(0.0)
    CENTRAL_DIFFERENCE.check(forward, (merger(at(1e-5)) - merger(at(-1e-5))) / 2e-5)
    reverse = jax.grad(lambda step: at(step).compute_prices(firm_ids=merged()).sum())(0.0)
    LINEAR_ALGEBRA.check(reverse, forward[: m.delta.size].sum())
    mapped = jax.vmap(lambda step: at(step).compute_costs(firm_ids=merged()))(jnp.array([0.0, 0.01]))
    LINEAR_ALGEBRA.check(mapped[1], at(0.01).compute_costs(firm_ids=merged()))


def test_second_derivatives_are_those_of_first_ones() -> None:
    m, prices = model(), model().prices
    rows = results("linear").problem.market_index.rows[2]
    k = rows[1]
    step = 1e-5 * np.eye(prices.size)[k]
    up, down = (m.at({"prices": prices + s}).compute_demand_jacobians() for s in (step, -step))
    expected = np.asarray(up - down)[rows, : rows.size] / 2e-5
    CENTRAL_DIFFERENCE.check(np.asarray(m.compute_demand_hessians())[rows][:, : rows.size, 1], expected)

    costs = m.compute_costs()[:, 0]

    def slopes(prices: Any) -> np.ndarray:
        moved = m.at({"prices": prices})
        J = np.asarray(moved.compute_demand_jacobians())[rows, : rows.size]
        return (np.asarray(prices) - costs)[rows, None] * J + np.diag(moved.shares[rows])

    expected = (slopes(prices + step) - slopes(prices - step)) / 2e-5
    CENTRAL_DIFFERENCE.check(np.asarray(m.compute_profit_hessians())[rows][:, : rows.size, 1], expected)


@pytest.mark.slow
def test_second_derivatives_in_mean_utilities() -> None:
    m, rows = model(), results("linear").problem.market_index.rows[1]
    step = 1e-5 * np.eye(m.delta.size)[rows[0]]
    up, down = (eqx.tree_at(lambda m: m.delta, m, m.delta + s).compute_demand_jacobians(None) for s in (step, -step))
    expected = np.asarray(up - down)[rows, : rows.size] / 2e-5
    CENTRAL_DIFFERENCE.check(np.asarray(m.compute_demand_hessians(None))[rows][:, : rows.size, 0], expected)


def test_surplus_falls_with_prices_by_what_is_bought() -> None:
    """Roy's identity, where marginal utility of income is the same for all consumers."""
    m = model()
    gradient = jax.jit(jax.grad(lambda p: m.compute_consumer_surpluses(p).sum()))(m.prices)
    ROUNDING.check(gradient, -m.compute_shares()[:, 0])
    everyone = m.compute_consumer_surpluses(keep_all=True)
    table = results("linear").problem.agents_in_economy.table
    for t, market in enumerate(np.unique(table.market_ids)):
        weights = table.weights[table.market_ids == market]
        ROUNDING.check(everyone[t, : weights.size] @ weights, m.compute_consumer_surpluses()[t, 0])


# other points


def test_the_model_at_other_prices_has_its_own_utilities_and_shares() -> None:
    m = model()
    prices = 1.3 * m.prices
    moved = m.at({"prices": prices})
    ROUNDING.check(moved.shares, m.compute_shares(prices)[:, 0])
    ROUNDING.check(moved.delta, m.delta + m.coefficients.beta[1] * (prices - m.prices))
    ROUNDING.check(moved.compute_shares()[:, 0], moved.shares)
    FIXED_PARAMETERS.check(moved.at({"prices": m.prices}).shares, m.shares)
    given = m.at({"prices": prices}, shares=m.shares)
    ROUNDING.check(given.shares, m.shares)
    cheaper = m.at({"x": m.characteristics.variables["x"] + 0.1})
    assert (cheaper.shares != m.shares).all()


def test_costs_prices_and_shares_are_consistent() -> None:
    """At costs that make observed prices optimal, they are an equilibrium, and approximate prices are exact."""
    m = model()
    LINEAR_ALGEBRA.check(m.compute_prices()[:, 0], m.prices)
    ROUNDING.check(m.compute_approximate_prices()[:, 0], m.prices)
    margin = m.prices[:, None] - m.compute_costs()
    ROUNDING.check(m.compute_markups(), margin / m.prices[:, None])
    ROUNDING.check(m.compute_profits(), margin * m.shares[:, None])


@pytest.mark.slow
def test_mean_utilities_are_inverted_from_observed_shares() -> None:
    found = model().invert(blpjax.Iteration("newton"))
    assert succeeded(found.status).all()
    LINEAR_ALGEBRA.check(found.delta, model().delta)


# ownership


def test_ownership_by_firms_and_by_matrices_is_the_same() -> None:
    m, firms = model(), merged()
    problem = results("linear").problem
    matrices = np.full((problem.N, 8), np.nan)
    for r in problem.market_index.rows:
        matrices[r, : r.size] = firms[r][:, None] == firms[r]
    ROUNDING.check(m.compute_costs(ownership=matrices), m.compute_costs(firm_ids=firms))
    names = np.array(["a", "b", "c"], dtype=object)[firms]
    ROUNDING.check(m.compute_costs(firm_ids=names), m.compute_costs(firm_ids=firms))
    codes = firm_codes(m.economy, firms)
    assert all(((part < 0) == ~bucket.present).all() for part, bucket in zip(codes, m.economy.buckets, strict=True))


@pytest.mark.slow
def test_markups_are_differentiable_in_ownership() -> None:
    """A cost is a function of the share that one firm holds of another."""
    m, firms = model(), merged()
    problem = results("linear").problem
    same, other = np.zeros((2, problem.N, 8))
    for r in problem.market_index.rows:
        same[r, : r.size] = firms[r][:, None] == firms[r]
        other[r, : r.size] = 1 - same[r, : r.size]

    def costs(held: Any) -> jax.Array:
        return m.compute_costs(ownership=same + held * other)[:, 0]

    costs = jax.jit(costs)
    CENTRAL_DIFFERENCE.check(jax.jit(jax.jacfwd(costs))(0.3), (costs(0.3 + 1e-5) - costs(0.3 - 1e-5)) / 2e-5)


def test_what_is_missing_is_named() -> None:
    m = model()
    bare = Model(m.economy, m.characteristics, m.coefficients, m.delta, m.layout)
    for compute in (bare.compute_costs, bare.compute_prices, bare.compute_passthrough, bare.profit_gradients):
        with pytest.raises(ValueError, match="firm_ids or ownership must be given"):
            compute()
    with pytest.raises(ValueError, match="firm_ids must be given"):
        bare.compute_hhi()
    with pytest.raises(ValueError, match="not both"):
        m.compute_costs(firm_ids=merged(), ownership=np.ones((m.delta.size, 8)))
    for name in ("w", "shares", "unknown"):
        with pytest.raises(NameError, match=f"numeric variable '{name}'. Those of X1 and X2 are prices, x, y"):
            m.compute_elasticities(name)


# one market


@pytest.mark.slow
def test_one_market_alone_is_the_market_among_all() -> None:
    m, problem = model("log"), results("log").problem
    for position, rows in enumerate(problem.market_index.rows):
        alone, J = m.in_market(find_market(m.economy, position, rows)), rows.size
        assert alone.delta.size >= J
        ROUNDING.check(alone.compute_shares()[:J], m.compute_shares()[rows])
        ROUNDING.check(alone.compute_costs()[:J], m.compute_costs()[rows])
        ROUNDING.check(alone.compute_elasticities()[:J, :J], m.compute_elasticities()[rows, :J])
        ROUNDING.check(alone.compute_hhi()[0], m.compute_hhi()[position])
        ROUNDING.check(alone.compute_consumer_surpluses()[0], m.compute_consumer_surpluses()[position])
        LINEAR_ALGEBRA.check(
            alone.compute_prices(firm_ids=np.zeros(alone.delta.size), constant_costs=False)[:J],
            m.compute_prices(firm_ids=np.zeros(m.delta.size), constant_costs=False)[rows],
        )
    with pytest.raises(IndexError):
        find_market(m.economy, 4, rows)


def test_derivatives_do_not_leak_from_padding() -> None:
    """Repeated rows of a market that is smaller than its bucket have no part in its outputs."""
    m, rows = model(), results("linear").problem.market_index.rows[2]

    def shares(delta: jax.Array) -> jax.Array:
        moved = eqx.tree_at(lambda m: m.delta, m, delta)
        return moved.in_market(find_market(m.economy, 2, rows)).compute_shares()[: rows.size, 0]

    forward, backward = jax.jit(lambda d: (jax.jacfwd(shares)(d), jax.jacrev(shares)(d)))(m.delta)
    ROUNDING.check(backward, forward)
    ROUNDING.check(forward[:, rows], blocks(m.compute_demand_jacobians(None))[2])


@pytest.mark.slow
def test_markets_of_one_bucket_share_their_programs() -> None:
    forget_programs()
    m, index = model(), results("linear").problem.market_index
    places = [find_market(m.economy, position, rows) for position, rows in enumerate(index.rows)]
    m.in_market(places[0]).compute_diversion_ratios().block_until_ready()
    with compilations() as compiled:
        for place in places[1:]:
            m.in_market(place).compute_diversion_ratios()
        assert compiled == []
        m.compute_diversion_ratios("y")
        assert compiled
