"""Equilibrium prices: methods, closed forms, derivatives, failures, and PyBLP's numbers."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyblp
import pytest

from blpjax.exceptions import ConvergenceError, Status, raise_for_status
from blpjax.iteration import FixedPointLimits, Iteration
from blpjax.kernels import equilibrium
from blpjax.kernels import markups as supply
from blpjax.kernels.demand import DemandPoint, demand_hessian, demand_with_curvature
from blpjax.kernels.equilibrium import first_order_conditions, solve_prices
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.kernels.markups import ownership_matrix
from tests.support.designs import mostly_slow
from tests.support.firms import (
    DEMANDS,
    Firms,
    I,
    J,
    arrays,
    firms,
    fixed_costs,
    in_logarithms,
    in_X1,
    partial_ownership,
    passthrough,
    returns_to_scale,
)
from tests.support.firms import plain_shares as shares_by_definition
from tests.support.silence import quiet
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, LINEAR_ALGEBRA, ROUNDING

# Compiled as a whole: one operation after another takes longer.
markups, plain_shares = jax.jit(supply.markups), jax.jit(shares_by_definition)
passthrough_matrix, profit_hessian = (
    jax.jit(kernel, static_argnums=0) for kernel in (passthrough, equilibrium.profit_hessian)
)
#: ``point(demand, prices, f)``.
point = jax.jit(lambda demand, prices, f: demand(prices, f), static_argnums=0)

METHODS = ("simple", "squarem", "anderson", "newton")
#: Options of a loop that ends after its first step, with success.
ONE_STEP = {"atol": 1e10, "max_evaluations": 1}
every_demand = pytest.mark.parametrize("demand", DEMANDS.values(), ids=DEMANDS)
one_demand = pytest.mark.parametrize("demand", mostly_slow(DEMANDS, ["logarithms of prices"]))
every_method = pytest.mark.parametrize("method", METHODS)
#: One of those that iterate on a map, and the one that does not.
two_methods = pytest.mark.parametrize("method", mostly_slow(METHODS, ["anderson", "newton"]))
one_method = pytest.mark.parametrize("method", mostly_slow(METHODS, ["anderson"]))


@cache
def program(demand: Any, costs: Any, method: str) -> Any:
    """``solve(limits, f, owned, start)``, compiled once for all tests."""
    options = Iteration(method).fixed_point

    @jax.jit
    def solve(limits: FixedPointLimits, f: Firms, owned: Any, start: Any) -> FixedPoint:
        return solve_prices(demand, costs, owned, start, f, options, limits)

    return solve


def solver(demand: Any, costs: Any = fixed_costs, method: str = "anderson", **options: Any) -> Any:
    """``solve(f, owned, start)`` with these limits, which no program knows."""
    return partial(program(demand, costs, method), Iteration(method, {"atol": 1e-14} | options).limits)


@partial(jax.jit, static_argnums=(0, 1))
def gradient(demand: Any, costs: Any, owned: Any, f: Firms, prices: Any) -> Any:
    point = demand(prices, f)
    return first_order_conditions(point, ownership_matrix(owned), prices, costs(point.shares(), f))


@pytest.mark.parametrize(
    ("demand", "method"),
    # every method with the demand whose Jacobian is not symmetric
    [
        pytest.param(demand, method, id=f"{name}-{method}", marks=marks)
        for name, demand in DEMANDS.items()
        for method in METHODS
        for marks in [[] if demand is in_logarithms else [pytest.mark.slow]]
    ],
)
def test_prices_solve_the_first_order_conditions(demand: Any, method: str) -> None:
    f = arrays(firms(1))
    solve = solver(demand, method=method)
    for owned in (f.firms, np.arange(J), np.zeros(J, int)):
        found = solve(f, owned, f.costs)
        assert found.status <= Status.ROUNDING_FLOOR and found.residual <= 1e-12
        at_solution = np.abs(gradient(demand, fixed_costs, owned, f, found.value)).max()
        assert float(found.residual) == pytest.approx(float(at_solution), abs=1e-14)
        DELTA.check(np.asarray(found.value) - np.asarray(f.costs), markups(point(demand, found.value, f), owned))
        assert (np.asarray(found.value) > np.asarray(f.costs)).all()


@one_method
def test_partial_asymmetric_ownership(method: str) -> None:
    f, H = firms(2), partial_ownership()
    found = solver(in_logarithms, method=method)(f, H, f.costs)
    assert found.status <= Status.ROUNDING_FLOOR
    DELTA.check(np.asarray(found.value) - f.costs, markups(point(in_logarithms, found.value, f), H))


@pytest.mark.slow
@two_methods
@pytest.mark.parametrize("mass", [1.0, 0.154])
def test_costs_that_depend_on_shares_are_those_at_the_equilibrium(method: str, mass: float) -> None:
    f = firms(3, mass=mass)
    found = solver(in_X1, returns_to_scale, method)(f, f.firms, f.costs)
    assert found.status <= Status.ROUNDING_FLOOR
    at = point(in_X1, found.value, f)
    costs = np.asarray(jax.jit(returns_to_scale)(plain_shares(at), f))
    assert (costs < f.costs).all()
    DELTA.check(np.asarray(found.value) - costs, markups(at, f.firms))


def test_logit_prices_of_single_products_have_a_closed_form() -> None:
    f = firms(4)._replace(C=np.zeros((2, I)), price_tastes=np.zeros(I))
    prices = solver(in_X1)(f, np.arange(J), f.costs).value
    DELTA.check(prices, f.costs + 0.5 / (1.0 - np.asarray(plain_shares(point(in_X1, prices, f)))))


def test_the_gradient_is_that_of_profits() -> None:
    f = arrays(firms(5))
    prices = f.costs * 1.3 + 0.2

    @jax.jit
    @jax.grad
    def marginal_profits(p: Any, firm: int) -> Any:
        return jnp.where(f.firms == firm, (p - f.costs) * plain_shares(in_logarithms(p, f)), 0.0).sum()

    expected = [float(marginal_profits(prices, int(f.firms[j]))[j]) for j in range(J)]
    ROUNDING.check(gradient(in_logarithms, fixed_costs, f.firms, f, prices), expected)


@one_demand
def test_a_plain_step_leads_to_costs_plus_zeta(demand: Any) -> None:
    f = firms(6)
    prices, H = f.costs * 1.3 + 0.2, (f.firms[:, None] == f.firms).astype(float)
    at = point(demand, prices, f)
    P, slopes = map(np.asarray, jax.jit(lambda p: (p.choices().inside, p.utility_slopes()))(at))
    R = P * slopes * f.weights
    Gamma = P @ R.T  # row j, column k: sum_i w_i P_ji P_ki alpha_ki
    expected = ((H * Gamma.T) @ (prices - f.costs) - np.asarray(plain_shares(at))) / R.sum(axis=1)
    step = solver(demand, method="simple", **ONE_STEP)
    ROUNDING.check(np.asarray(step(f, H, prices).value) - f.costs, expected)
    H = partial_ownership()
    found = solver(demand)(f, H, f.costs).value
    DELTA.check(step(f, H, found).value, found)


@pytest.mark.parametrize("method", mostly_slow(["simple", "anderson", "newton"], ["anderson"]))
@one_demand
def test_equilibria_from_twenty_starts_agree(demand: Any, method: str) -> None:
    f = firms(7)
    rng = np.random.default_rng(7)
    starts = rng.uniform(0.5, 1.0, (20, J)) * np.geomspace(1.0, 60.0, 20)[:, None]
    solve = solver(demand, method=method)
    expected = solve(f, f.firms, starts[0]).value
    for start in starts:
        found = solve(f, f.firms, start)
        assert found.status <= Status.ROUNDING_FLOOR
        DELTA.check(found.value, expected)


@two_methods
def test_prices_so_high_that_nobody_buys_are_no_solution(method: str) -> None:
    """There the profit gradient is zero to any tolerance."""
    f = firms(8)
    expected = solver(in_X1)(f, f.firms, f.costs).value
    for height in (15.0, 1e3, 1e6):
        found = solver(in_X1, method=method)(f, f.firms, np.full(J, height))
        if method != "newton":
            assert found.status <= Status.ROUNDING_FLOOR
        if found.status <= Status.ROUNDING_FLOOR:
            DELTA.check(found.value, expected)
        else:
            assert np.isnan(found.value).all()


@pytest.mark.slow
@two_methods
def test_padding_changes_nothing_and_keeps_its_price(method: str) -> None:
    small, large = firms(9), firms(9, J + 3, I + 5)
    solve = solver(in_logarithms, method=method)
    expected, start = solve(small, small.firms, small.costs), np.r_[large.costs[:J], [7.0] * 3]
    found = solve(large, large.firms, start)
    DELTA.check(np.asarray(found.value)[:J], expected.value)
    assert np.asarray(found.value)[J:].tolist() == [7.0] * 3
    assert int(found.evaluations) == int(expected.evaluations)


@pytest.mark.slow
def test_markets_under_vmap_are_what_they_are_alone() -> None:
    markets = [firms(seed, slope=slope) for seed, slope in ((1, -2.0), (2, 3.0), (3, -1.0))]
    together = jax.tree.map(lambda *x: np.stack(x), *markets)
    solve = solver(in_X1)
    mapped = jax.tree.map(np.asarray, jax.vmap(solve)(together, together.firms, together.costs))
    for t, f in enumerate(markets):
        one = solve(f, f.firms, f.costs)
        assert int(mapped.status[t]) == int(one.status)
        DELTA.check(mapped.value[t], one.value)
    assert mapped.status.tolist() == [0, int(Status.UPWARD_SLOPING), 0]


@two_methods
def test_upward_sloping_demand_has_no_prices(method: str) -> None:
    for seed in (1, 2, 3):
        f = firms(seed, slope=2.0)._replace(price_tastes=np.full(I, 0.1))
        found = solver(in_X1, method=method, max_evaluations=300)(f, f.firms, f.costs)
        assert found.status == Status.UPWARD_SLOPING
        assert np.isnan(found.value).all()


def test_upward_sloping_demand_is_an_error_that_names_the_market() -> None:
    with pytest.raises(ConvergenceError, match="met demand that does not slope down .* in 1 of 2 markets: 'C02'"):
        raise_for_status(np.array([0, Status.UPWARD_SLOPING]), ["C01", "C02"], "Solving for prices")


def test_one_product_without_a_downward_slope_is_enough() -> None:
    """A product of which nobody buys anything has a slope of zero."""
    f = arrays(firms(2)._replace(availability=np.array([[1.0]] * (J - 1) + [[0.0]])))
    found = solver(in_X1)(f, f.firms, f.costs)
    assert found.status == Status.UPWARD_SLOPING and np.isnan(found.value).all()


@every_method
def test_failures_give_no_prices(method: str) -> None:
    f = firms(3)
    short = solver(in_logarithms, method=method, max_evaluations=2)(f, f.firms, f.costs)
    assert short.status == Status.MAX_EVALUATIONS and int(short.evaluations) <= 2
    missing = f._replace(costs=np.where(np.arange(J) == 1, np.nan, f.costs))
    broken = solver(in_logarithms, method=method)(missing, f.firms, f.costs)
    assert broken.status == Status.NOT_FINITE
    for found in (short, broken):
        assert np.isnan(found.value).all()
    assert short.residual > 1e-6 and broken.residual == np.inf


def test_return_keeps_the_start_and_its_derivatives() -> None:
    f = arrays(firms(1))
    iteration = Iteration("return")

    @jax.jit
    def both(start: Any) -> tuple[FixedPoint, Any]:
        def solve(start: Any) -> FixedPoint:
            return solve_prices(in_X1, fixed_costs, f.firms, start, f, iteration.fixed_point, FixedPointLimits())

        return solve(start), jax.jacfwd(lambda p: solve(p).value)(start)

    found, slopes = both(f.costs)
    assert found.value.tolist() == f.costs.tolist() and found.status == Status.CONVERGED
    assert slopes.tolist() == np.eye(J).tolist()


CHANGES = ("costs", "base", "slope", "C", "price_tastes", "X2", "weights", "H")


@cache
def derivatives(demand: Any, costs: Any) -> Any:
    """``along(limits, f, values, direction)``: prices, their first derivative, and their second one."""
    solve = program(demand, costs, "anderson")

    @jax.jit
    def along(limits: FixedPointLimits, f: Firms, values: dict[str, Any], direction: dict[str, Any]) -> Any:
        def prices(values: dict[str, Any]) -> Any:
            moved = f._replace(**{name: value for name, value in values.items() if name != "H"})
            return solve(limits, moved, values["H"], f.costs * 1.1).value

        def first(values: dict[str, Any]) -> Any:
            return jax.jvp(prices, (values,), (direction,))

        (value, once), (_, twice) = jax.jvp(first, (values,), (direction,))
        return value, once, twice

    return along


def known(f: Firms) -> dict[str, np.ndarray]:
    """What prices depend on."""
    return {name: partial_ownership() if name == "H" else np.asarray(getattr(f, name)) for name in CHANGES}


@pytest.mark.slow
def test_failures_have_no_derivatives() -> None:
    f = firms(3)
    values = known(f)
    along = derivatives(in_logarithms, returns_to_scale)
    _, *rates = along(
        Iteration("anderson", {"max_evaluations": 2}).limits, f, values, jax.tree.map(np.ones_like, values)
    )
    assert all(np.isnan(rate).all() for rate in rates)


@pytest.mark.parametrize("costs", [pytest.param(fixed_costs, marks=pytest.mark.slow), returns_to_scale])
@pytest.mark.parametrize("demand", [pytest.param(in_X1, marks=pytest.mark.slow), in_logarithms])
def test_derivatives_of_prices_are_those_of_resolved_equilibria(demand: Any, costs: Any) -> None:
    f, step = firms(10), 1e-5
    values, along = known(f), partial(derivatives(demand, costs), Iteration("anderson", {"atol": 1e-14}).limits, f)
    rng = np.random.default_rng(0)
    everything = {name: 0.1 * rng.normal(size=value.shape) for name, value in values.items()}
    zeros = jax.tree.map(np.zeros_like, values)
    for direction in [zeros | {name: everything[name]} for name in CHANGES] + [everything]:
        moved = (jax.tree.map(lambda v, d, s=s: v + s * step * d, values, direction) for s in (1, -1))
        up, down = (list(map(np.asarray, along(at, direction))) for at in moved)
        _, once, twice = along(values, direction)
        CENTRAL_DIFFERENCE.check(once, (up[0] - down[0]) / (2 * step))
        CENTRAL_DIFFERENCE.check(twice, (up[1] - down[1]) / (2 * step), "second")


@pytest.mark.slow
def test_reverse_mode_agrees_with_forward_mode_in_both_orders() -> None:
    f = arrays(firms(11))
    solve = solver(in_logarithms, returns_to_scale)

    def mean(slope: Any) -> Any:
        return solve(f._replace(slope=slope), f.firms, f.costs).value.mean()

    forward, backward = (
        jax.jit(lambda s, d=d: (d(mean)(s), d(jax.grad(mean))(s)))(f.slope) for d in (jax.jacfwd, jax.grad)
    )
    for one, other in zip(forward, backward, strict=True):
        LINEAR_ALGEBRA.check(one, other)


@pytest.mark.slow
@one_demand
def test_derivatives_in_costs_are_passthrough(demand: Any) -> None:
    f = arrays(firms(12))
    solve = solver(demand)
    prices = solve(f, f.firms, f.costs).value
    rates = jax.jit(jax.jacfwd(lambda c: solve(f._replace(costs=c), f.firms, f.costs).value))(f.costs)
    LINEAR_ALGEBRA.check(rates, passthrough_matrix(demand, f.firms, prices, f))


@pytest.mark.slow
@one_demand
def test_profit_hessian_is_the_second_derivative_of_profits(demand: Any) -> None:
    f = firms(13, J + 2)
    prices = f.costs * 1.3 + 0.2
    actual = profit_hessian(demand, prices, f.costs, f)
    expected = jax.jit(jax.jacfwd(jax.jacrev(lambda p: (p - f.costs) * plain_shares(demand(p, f)))))(prices)
    ROUNDING.check(actual, expected)
    assert (np.asarray(actual)[J:] == 0).all() and (np.asarray(actual)[:, J:] == 0).all()


def test_second_order_conditions_hold_at_the_equilibrium() -> None:
    f = arrays(firms(14))
    prices = solver(in_logarithms)(f, f.firms, f.costs).value
    hessian = np.asarray(profit_hessian(in_logarithms, prices, f.costs, f))
    for firm in range(3):
        own = np.flatnonzero(np.asarray(f.firms) == firm)
        assert np.linalg.eigvalsh(hessian[own].sum(axis=0)[np.ix_(own, own)]).max() < 0


class Economy:
    """Two markets solved by PyBLP, with logarithms of prices in X2 and costs that depend on shares."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        n, agents = 5, 20
        data = pd.DataFrame(
            {"market_ids": np.repeat(["a", "b"], n), "firm_ids": np.tile([0, 0, 1, 2, 1], 2)}
            | {name: rng.uniform(0.2, 1.5, 2 * n) for name in ("x", "w")}
        )
        kappa = np.array([[1.0, 0.3, 0.0], [0.1, 1.0, 0.2], [0.0, 0.4, 1.0]])
        ownership = kappa[np.ix_(data.firm_ids[:n], data.firm_ids[:n])]
        people = pd.DataFrame(
            {"market_ids": np.repeat(["a", "b"], agents), "weights": rng.uniform(0.5, 1.5, 2 * agents) * 0.9 / agents}
        )
        nodes = rng.normal(size=(2 * agents, 2))
        self.sigma, self.beta, self.gamma = np.diag([0.6, 0.5]), np.array([1.0, -1.5, 1.0]), np.array([0.6, 0.5, -0.4])
        simulation = pyblp.Simulation(
            (
                pyblp.Formulation("1 + prices + x"),
                pyblp.Formulation("0 + x + log(prices)"),
                pyblp.Formulation("1 + w + shares"),
            ),
            {name: data[name].to_numpy() for name in ("market_ids", "firm_ids", "x", "w")}
            | {"ownership": np.tile(ownership, (2, 1))},
            beta=self.beta,
            sigma=self.sigma,
            gamma=self.gamma,
            xi=(xi := rng.normal(size=2 * n) * 0.2),
            omega=(omega := rng.normal(size=2 * n) * 0.1),
            agent_data={"market_ids": people.market_ids, "weights": people.weights, "nodes": nodes},
        )
        iteration = pyblp.Iteration("simple", {"atol": 1e-14})
        start = np.full(2 * n, 1.5)
        self.results = simulation.replace_endogenous(prices=start, iteration=iteration, constant_costs=False)
        self.data, self.n, self.ownership = data, n, ownership
        self.arguments = [self._market(t, data, people, nodes, xi, omega) for t in ("a", "b")]

    def _market(self, t: str, data: Any, people: Any, nodes: Any, xi: Any, omega: Any) -> dict[str, np.ndarray]:
        rows, agents = data.market_ids == t, people.market_ids == t
        x, w = data.x[rows].to_numpy(), data.w[rows].to_numpy()
        values = {
            "base": self.beta[0] + self.beta[2] * x + xi[rows],
            "slope": self.beta[1],
            "x": x,
            "C": self.sigma @ nodes[agents].T,
            "weights": people.weights[agents].to_numpy(),
            "costs": self.gamma[0] + self.gamma[1] * w + omega[rows],
            "returns": self.gamma[2],
        }
        return {name: np.asarray(value) for name, value in values.items()}

    @staticmethod
    def demand(prices: Any, a: Any) -> DemandPoint:
        ones = jnp.ones_like(prices)
        return DemandPoint(
            a["base"] + a["slope"] * prices,
            jnp.column_stack([a["x"], jnp.log(prices)]),
            a["C"],
            a["weights"],
            ones[:, None],
            a["slope"] * ones,
            jnp.column_stack([0.0 * ones, 1.0 / prices]),
            prices == prices,
        )

    @staticmethod
    def costs(shares: Any, a: Any) -> Any:
        return a["costs"] + a["returns"] * shares


@pytest.fixture(scope="module")
def economy() -> Iterator[Economy]:
    with quiet():
        yield Economy()


def test_equilibrium_and_what_follows_are_those_of_pyblp(economy: Economy) -> None:
    theirs, n, H = economy.results, economy.n, np.asarray(economy.ownership, float)
    solve = solver(economy.demand, economy.costs)
    hessian_of_demand = jax.jit(lambda prices, a: demand_hessian(*demand_with_curvature(economy.demand, prices, a)))
    for t, a in enumerate(economy.arguments):
        rows, market_id = slice(t * n, (t + 1) * n), "ab"[t]
        prices = theirs.product_data.prices[rows].flatten()
        found = solve(a, H, np.full(n, 1.5))
        DELTA.check(found.value, prices)
        at = point(economy.demand, found.value, a)
        shares = np.asarray(jax.jit(DemandPoint.shares)(at))
        DELTA.check(shares, theirs.product_data.shares[rows].flatten())
        costs = economy.costs(shares, a)
        DELTA.check(costs, theirs.compute_costs(market_id=market_id).flatten())
        DELTA.check(markups(at, H), prices - np.asarray(costs))
        for owned, arguments in ((H, {}), (np.eye(n), {"ownership": np.eye(n)})):
            rates = theirs.compute_passthrough(market_id=market_id, **arguments)
            LINEAR_ALGEBRA.check(passthrough_matrix(economy.demand, owned, found.value, a), rates)
        second = hessian_of_demand(found.value, a)
        LINEAR_ALGEBRA.check(second, theirs.compute_demand_hessians(market_id=market_id))
        hessian = profit_hessian(economy.demand, found.value, costs, a)
        LINEAR_ALGEBRA.check(hessian, theirs.compute_profit_hessians(market_id=market_id))
        # single products, at costs that no longer depend on shares
        expected = theirs.compute_prices(
            ownership=np.eye(n), costs=costs, market_id=market_id, iteration=pyblp.Iteration("simple", {"atol": 1e-14})
        )
        fixed = a | {"costs": costs, "returns": np.zeros(())}
        DELTA.check(solve(fixed, np.eye(n), costs).value, expected.flatten())
