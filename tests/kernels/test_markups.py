"""Markups, their matrix and product, passthrough, and second derivatives of demand."""

from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.kernels import markups as supply
from blpjax.kernels.demand import DemandPoint, demand_hessian, demand_with_curvature
from blpjax.kernels.markups import ownership_matrix, price_derivatives
from tests.support.designs import mostly_slow
from tests.support.firms import (
    DEMANDS,
    Firms,
    I,
    J,
    arrays,
    firms,
    partial_ownership,
    passthrough,
    plain_markup_product,
    plain_shares,
)
from tests.tolerances import CENTRAL_DIFFERENCE, LINEAR_ALGEBRA, ROUNDING

# Compiled as a whole: one operation after another takes longer.
markup_matrix, markup_product, markups = map(jax.jit, (supply.markup_matrix, supply.markup_product, supply.markups))

two_demands = pytest.mark.parametrize("demand", mostly_slow(DEMANDS, ["prices in X1", "logarithms of prices"]))
one_demand = pytest.mark.parametrize("demand", mostly_slow(DEMANDS, ["logarithms of prices"]))
POINT_ARRAYS = ("delta", "X2", "C", "weights", "availability", "delta_slope", "X2_slope")


def wild_point(seed: int = 1) -> DemandPoint:
    """No number is special: negative weights, availability that differs between agents, a padded product."""
    rng = np.random.default_rng(seed)
    availability = rng.uniform(0.3, 2.0, (4, 5)) * (rng.uniform(size=(4, 5)) > 0.2)
    availability[3] = 0.0
    point = (rng.normal(size=shape) for shape in (4, (4, 3), (3, 5), 5))
    slopes = (rng.normal(size=shape) for shape in (4, (4, 3)))
    return DemandPoint(*map(jnp.asarray, (*point, availability, *slopes, np.arange(4) < 3)))


def fixed_prices(f: Firms) -> Any:
    return f.costs * 1.4 + 0.3


@cache
def compiled(demand: Any) -> Any:
    """``point, shares, slopes`` of prices and a market, the last two by the plain formula."""

    @jax.jit
    def known(prices: Any, f: Firms) -> Any:
        def plain(prices: Any) -> Any:
            return plain_shares(demand(prices, f))

        return demand(prices, f), plain(prices), jax.jacfwd(plain)(prices)

    return known


def owned_by(codes: np.ndarray) -> np.ndarray:
    return (codes[:, None] == codes).astype(float)


def test_ownership_of_codes_and_of_matrices() -> None:
    codes = jnp.array([2, 0, 2, -1, -1])
    expected = np.zeros((5, 5))
    expected[[0, 0, 1, 2, 2], [0, 2, 1, 0, 2]] = 1.0
    assert ownership_matrix(codes).tolist() == expected.tolist()
    H = jnp.asarray(partial_ownership())
    assert ownership_matrix(H) is H


@two_demands
def test_markup_matrix_holds_the_derivatives_of_shares_in_prices(demand: Any) -> None:
    f, H = firms(1), partial_ownership()
    point, _, slopes = compiled(demand)(fixed_prices(f), f)
    A = np.asarray(markup_matrix(point, H))
    ROUNDING.check(A, -H * np.asarray(slopes).T)
    eta = np.arange(1.0, J + 1)
    ROUNDING.check(markup_product(point, H, eta), A @ eta)


def test_padding_has_the_rows_and_columns_of_the_identity() -> None:
    A = np.asarray(markup_matrix(wild_point(), partial_ownership(products=4)))
    assert A[3].tolist() == A[:, 3].tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("which", [*POINT_ARRAYS, "H", "eta"])
def test_derivative_rule_agrees_with_differentiation_of_the_definition(which: str) -> None:
    point, H = wild_point(), jnp.asarray(partial_ownership(products=4))
    eta = jnp.array([0.5, -1.0, 2.0, 0.7])

    def alone(product: Any) -> tuple[Any, Any]:
        if which == "H":
            return (lambda x: product(point, x, eta)), H
        if which == "eta":
            return (lambda x: product(point, H, x)), eta
        return (lambda x: product(eqx.tree_at(lambda p: getattr(p, which), point, x), H, eta)), getattr(point, which)

    (rule, value), (plain, _) = alone(markup_product), alone(plain_markup_product)
    kinds = (jax.jacfwd, jax.jacrev, jax.hessian)
    actual, expected = (jax.jit(lambda x, f=f: [kind(f)(x) for kind in kinds])(value) for f in (rule, plain))
    for kind, one, other in zip(kinds, actual, expected, strict=True):
        ROUNDING.check(one, other, kind.__name__)


def test_derivative_rule_in_all_arguments_at_once() -> None:
    """Mixed second derivatives, too: along one direction in everything, then along another."""
    rng = np.random.default_rng(3)
    point, H, eta = wild_point(), jnp.asarray(partial_ownership(products=4)), jnp.array([0.5, -1.0, 2.0, 0.7])
    floats, rest = eqx.partition((point, H, eta), eqx.is_inexact_array)
    first, second = (jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), floats) for _ in range(2))

    def derivatives(product: Any) -> Any:
        def along(values: Any) -> Any:
            return jax.jvp(lambda v: product(*eqx.combine(v, rest)), (values,), (first,))[1]

        def backward(values: Any) -> Any:
            return jax.grad(lambda v: along(v) @ jnp.arange(1.0, 5.0))(values)

        return along(floats), jax.jvp(along, (floats,), (second,))[1], backward(floats)

    actual, expected = (jax.jit(lambda p=p: derivatives(p))() for p in (markup_product, plain_markup_product))
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        ROUNDING.check(one, other)


@partial(jax.jit, static_argnums=0)
def _profit_gradients(demand: Any, f: Firms, prices: Any, H: Any, eta: Any) -> Any:
    """Of profits of each product's owner in all prices."""

    def profits(p: Any, row: Any) -> Any:
        return (row * (p - prices + eta)) @ plain_shares(demand(p, f))

    return jax.vmap(jax.grad(profits), (None, 0))(prices, H)


@pytest.mark.parametrize("mass", [1.0, 0.154])
@two_demands
def test_markups_solve_the_first_order_conditions(demand: Any, mass: float) -> None:
    f = firms(2, mass=mass)
    prices = fixed_prices(f)
    point, s, _ = compiled(demand)(prices, f)
    for owned, H in ((f.firms, owned_by(f.firms)), (partial_ownership(), partial_ownership())):
        gradients = _profit_gradients(demand, f, prices, H, markups(point, owned))
        found = np.diag(gradients) + (1.0 - np.diag(H)) * np.asarray(s)
        assert (np.abs(found) < 1e-14 * mass * 100).all()


def test_logit_markups_of_single_products_have_a_closed_form() -> None:
    f = firms(3)._replace(C=np.zeros((2, I)), price_tastes=np.zeros(I))
    point, s, _ = compiled(DEMANDS["prices in X1"])(fixed_prices(f), f)
    s = np.asarray(s)
    ROUNDING.check(markups(point, np.arange(J)), 1.0 / (2.0 * (1.0 - s)))
    # a monopolist's markup is the same for all products: one over the slope and the outside share
    ROUNDING.check(markups(point, np.zeros(J, int)), np.full(J, 0.5 / (1.0 - s.sum())))


@pytest.mark.slow
def test_padding_changes_no_markup_and_no_derivative() -> None:
    small, large = firms(4), firms(4, J + 3, I + 5)
    demand = DEMANDS["logarithms of prices"]

    @jax.jit
    def everything(f: Firms) -> Any:
        def values(base: Any, slope: Any) -> Any:
            g = f._replace(base=base, slope=slope)
            return supply.markups(demand(fixed_prices(f), g), f.firms)

        return (
            values(f.base, f.slope),
            *jax.jacfwd(values, (0, 1))(f.base, f.slope),
            jax.hessian(values, 1)(f.base, f.slope),
            passthrough(demand, f.firms, fixed_prices(f), f),
        )

    padded = list(map(np.asarray, everything(large)))
    for short, long in zip(everything(small), padded, strict=True):
        ROUNDING.check(long[tuple(slice(n) for n in short.shape)], short)
    eta, in_base, in_slope, _, rates = padded
    assert (eta[J:] == 0).all() and (in_base[J:] == 0).all() and (in_slope[J:] == 0).all()
    assert (rates[J:] == np.eye(J + 3)[J:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("which", [*POINT_ARRAYS, "H"])
def test_derivatives_of_markups_are_those_of_a_dense_solve(which: str) -> None:
    f, H = arrays(firms(5)), jnp.asarray(partial_ownership())
    point = DEMANDS["prices in both"](fixed_prices(f), f)

    def dense(point: DemandPoint, H: Any) -> Any:
        A = jax.jacfwd(plain_markup_product, 2)(point, H, jnp.zeros(J))
        return jnp.linalg.solve(A, plain_shares(point))

    def alone(function: Any, x: Any) -> Any:
        return function(point, x) if which == "H" else function(eqx.tree_at(lambda p: getattr(p, which), point, x), H)

    value = H if which == "H" else getattr(point, which)
    weights = jnp.arange(1.0, J + 1)

    def derivatives(g: Any) -> Any:
        def function(x: Any) -> Any:
            return alone(g, x)

        def second(x: Any) -> Any:
            return jax.jvp(jax.grad(lambda y: function(y) @ weights), (x,), (jnp.cos(x),))

        return jax.jit(lambda x: (jax.jacfwd(function)(x), jax.jacrev(function)(x), *second(x)))(value)

    names = ("jacfwd", "jacrev", "second", "second")
    for name, one, other in zip(names, derivatives(markups), derivatives(dense), strict=True):
        LINEAR_ALGEBRA.check(one, other, name)


def test_singular_markup_matrices_give_no_finite_markups() -> None:
    f = firms(6)
    point, *_ = compiled(DEMANDS["prices in X1"])(fixed_prices(f), f)
    H = owned_by(f.firms)
    H[2] = 0.0
    assert not np.isfinite(markups(point, H)).all()


@pytest.mark.slow
def test_markups_under_vmap_are_those_of_each_market() -> None:
    markets = [firms(seed) for seed in (7, 8, 9)]
    demand = DEMANDS["prices in X2"]
    together = jax.tree.map(lambda *x: np.stack(x), *markets)

    def alone(f: Firms) -> Any:
        return supply.markups(demand(fixed_prices(f), f), f.firms)

    for eta, f in zip(np.asarray(jax.jit(jax.vmap(alone))(together)), markets, strict=True):
        ROUNDING.check(eta, jax.jit(alone)(f))


@two_demands
def test_price_derivatives_are_those_of_the_definitions(demand: Any) -> None:
    f, H = arrays(firms(10)), jnp.asarray(partial_ownership())
    prices, eta = fixed_prices(f), jnp.linspace(-1.0, 2.0, J)

    @jax.jit
    def expected(p: Any) -> Any:
        point = demand(p, f)
        return plain_shares(point), plain_markup_product(point, H, eta), point.lambda_diagonal()

    actual = jax.jit(lambda p: price_derivatives(*demand_with_curvature(demand, p, f), H, eta))(prices)
    slopes = jax.jit(jax.jacfwd(expected))(prices)
    for one, other in zip((actual.shares, actual.markup_product, actual.lambda_diagonal), slopes, strict=True):
        ROUNDING.check(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("demand", DEMANDS.values(), ids=DEMANDS)
def test_demand_hessian_is_the_second_derivative_of_shares(demand: Any) -> None:
    f = arrays(firms(11, J + 1, I + 2))
    prices = fixed_prices(f)
    actual = jax.jit(lambda p: demand_hessian(*demand_with_curvature(demand, p, f)))(prices)
    ROUNDING.check(actual, jax.jit(jax.jacfwd(jax.jacrev(lambda p: plain_shares(demand(p, f)))))(prices))
    assert (np.asarray(actual)[J] == 0).all()


@one_demand
def test_passthrough_is_the_total_derivative_of_the_first_order_conditions(demand: Any) -> None:
    f = arrays(firms(12))
    prices, step = fixed_prices(f), 1e-5
    rates_of = jax.jit(lambda p, owned: passthrough(demand, owned, p, f))
    # costs implied by prices, the inverse relation
    costs = jax.jit(lambda p, owned: p - supply.markups(demand(p, f), owned))
    for owned in (jnp.asarray(owned_by(np.asarray(f.firms))), jnp.asarray(partial_ownership())):
        moved = [np.asarray(costs(prices + m, owned)) - np.asarray(costs(prices - m, owned)) for m in np.eye(J) * step]
        difference = np.stack(moved, axis=1) / (2 * step)
        CENTRAL_DIFFERENCE.check(np.linalg.inv(rates_of(prices, owned)), difference)
