"""Markups, their matrix and product, passthrough, and second derivatives of demand."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.kernels.demand import DemandPoint, demand_hessian, demand_with_curvature
from blpjax.kernels.equilibrium import passthrough
from blpjax.kernels.markups import (
    markup_matrix,
    markup_product,
    markups,
    ownership_matrix,
    price_derivatives,
)
from tests.support.designs import mostly_slow
from tests.support.firms import (
    DEMANDS,
    Firms,
    I,
    J,
    arrays,
    firms,
    partial_ownership,
    plain_markup_product,
    plain_shares,
)
from tests.tolerances import CENTRAL_DIFFERENCE, LINEAR_ALGEBRA, ROUNDING

every_demand = pytest.mark.parametrize("demand", DEMANDS.values(), ids=DEMANDS)
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


def test_ownership_of_codes_and_of_matrices() -> None:
    codes = jnp.array([2, 0, 2, -1, -1])
    expected = np.zeros((5, 5))
    expected[[0, 0, 1, 2, 2], [0, 2, 1, 0, 2]] = 1.0
    assert ownership_matrix(codes).tolist() == expected.tolist()
    H = jnp.asarray(partial_ownership())
    assert ownership_matrix(H) is H


@every_demand
def test_markup_matrix_holds_the_derivatives_of_shares_in_prices(demand: Any) -> None:
    f, H = arrays(firms(1)), partial_ownership()
    prices = fixed_prices(f)
    slopes = jax.jacfwd(lambda p: plain_shares(demand(p, f)))(prices)
    A = markup_matrix(demand(prices, f), jnp.asarray(H))
    ROUNDING.check(A, -H * np.asarray(slopes).T)
    eta = jnp.arange(1.0, J + 1)
    ROUNDING.check(markup_product(demand(prices, f), jnp.asarray(H), eta), A @ eta)


def test_padding_has_the_rows_and_columns_of_the_identity() -> None:
    A = np.asarray(markup_matrix(wild_point(), jnp.asarray(partial_ownership(products=4))))
    assert A[3].tolist() == A[:, 3].tolist() == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "which", mostly_slow([*POINT_ARRAYS, "H", "eta"], [POINT_ARRAYS[0], POINT_ARRAYS[-1], "H", "eta"])
)
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
    for derivative in (jax.jacfwd, jax.jacrev, jax.hessian):
        ROUNDING.check(jax.jit(derivative(rule))(value), jax.jit(derivative(plain))(value), derivative.__name__)


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


@pytest.mark.parametrize("mass", [1.0, 0.154])
@every_demand
def test_markups_solve_the_first_order_conditions(demand: Any, mass: float) -> None:
    f = arrays(firms(2, mass=mass))
    prices = fixed_prices(f)
    for owned in (f.firms, jnp.asarray(partial_ownership())):
        eta = markups(demand(prices, f), owned)

        def profits(p: Any, j: int, owned: Any = owned, eta: Any = eta) -> Any:
            return (ownership_matrix(owned)[j] * (p - prices + eta)) @ plain_shares(demand(p, f))

        for j in range(J):
            own = ownership_matrix(owned)[j, j]
            gradient = jax.grad(profits)(prices, j)[j] + (1.0 - own) * plain_shares(demand(prices, f))[j]
            assert abs(float(gradient)) < 1e-14 * mass * 100


def test_logit_markups_of_single_products_have_a_closed_form() -> None:
    f = arrays(firms(3)._replace(C=np.zeros((2, I)), price_tastes=np.zeros(I)))
    point = DEMANDS["prices in X1"](fixed_prices(f), f)
    expected = 1.0 / (2.0 * (1.0 - np.asarray(plain_shares(point))))
    ROUNDING.check(markups(point, jnp.arange(J)), expected)
    # a monopolist's markup is the same for all products: one over the slope and the outside share
    ROUNDING.check(markups(point, jnp.zeros(J, int)), np.full(J, 0.5 / (1.0 - plain_shares(point).sum())))


def test_padding_changes_no_markup_and_no_derivative() -> None:
    small, large = arrays(firms(4)), arrays(firms(4, J + 3, I + 5))
    demand = DEMANDS["logarithms of prices"]

    @jax.jit
    def everything(f: Firms) -> Any:
        def values(base: Any, slope: Any) -> Any:
            g = f._replace(base=base, slope=slope)
            return markups(demand(fixed_prices(f), g), f.firms)

        return (
            values(f.base, f.slope),
            *jax.jacfwd(values, (0, 1))(f.base, f.slope),
            jax.hessian(values, 1)(f.base, f.slope),
            passthrough(demand, f.firms, fixed_prices(f), f),
        )

    for short, long in zip(everything(small), everything(large), strict=True):
        ROUNDING.check(np.asarray(long)[tuple(slice(n) for n in short.shape)], short)
    eta, in_base, in_slope, _, rates = everything(large)
    assert (eta[J:] == 0).all() and (in_base[J:] == 0).all() and (in_slope[J:] == 0).all()
    assert (np.asarray(rates)[J:] == np.eye(J + 3)[J:]).all()


@pytest.mark.parametrize("which", mostly_slow([*POINT_ARRAYS, "H"], ["H"]))
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
    for derivative in (jax.jacfwd, jax.jacrev):
        actual, expected = (jax.jit(derivative(lambda x, g=g: alone(g, x)))(value) for g in (markups, dense))
        LINEAR_ALGEBRA.check(actual, expected, derivative.__name__)
    actual, expected = (
        jax.jit(lambda x, g=g: jax.jvp(jax.grad(lambda y: alone(g, y) @ weights), (x,), (jnp.cos(x),)))(value)
        for g in (markups, dense)
    )
    for one, other in zip(actual, expected, strict=True):
        LINEAR_ALGEBRA.check(one, other, "second")


def test_singular_markup_matrices_give_no_finite_markups() -> None:
    f = arrays(firms(6))
    point = DEMANDS["prices in X1"](fixed_prices(f), f)
    H = ownership_matrix(f.firms).at[2].set(0.0)
    assert not np.isfinite(markups(point, H)).all()


def test_markups_under_vmap_are_those_of_each_market() -> None:
    markets = [arrays(firms(seed)) for seed in (7, 8, 9)]
    demand = DEMANDS["prices in X2"]
    together = jax.tree.map(lambda *x: jnp.stack(x), *markets)
    mapped = jax.vmap(lambda f: markups(demand(fixed_prices(f), f), f.firms))(together)
    for eta, f in zip(mapped, markets, strict=True):
        ROUNDING.check(eta, markups(demand(fixed_prices(f), f), f.firms))


@every_demand
def test_price_derivatives_are_those_of_the_definitions(demand: Any) -> None:
    f, H = arrays(firms(10)), jnp.asarray(partial_ownership())
    prices, eta = fixed_prices(f), jnp.linspace(-1.0, 2.0, J)
    point, curvature = demand_with_curvature(demand, prices, f)
    actual = price_derivatives(point, curvature, H, eta)
    ROUNDING.check(actual.shares, jax.jacfwd(lambda p: plain_shares(demand(p, f)))(prices))
    ROUNDING.check(actual.markup_product, jax.jacfwd(lambda p: plain_markup_product(demand(p, f), H, eta))(prices))
    ROUNDING.check(actual.lambda_diagonal, jax.jacfwd(lambda p: demand(p, f).lambda_diagonal())(prices))


@one_demand
def test_demand_hessian_is_the_second_derivative_of_shares(demand: Any) -> None:
    f = arrays(firms(11, J + 1, I + 2))
    prices = fixed_prices(f)
    actual = jax.jit(lambda p: demand_hessian(*demand_with_curvature(demand, p, f)))(prices)
    ROUNDING.check(actual, jax.jacfwd(jax.jacrev(lambda p: plain_shares(demand(p, f))))(prices))
    assert (np.asarray(actual)[J] == 0).all()


@one_demand
def test_passthrough_is_the_total_derivative_of_the_first_order_conditions(demand: Any) -> None:
    f = arrays(firms(12))
    prices, step = fixed_prices(f), 1e-5
    for owned in (f.firms, jnp.asarray(partial_ownership())):
        rates = jax.jit(lambda p, owned=owned: passthrough(demand, owned, p, f))(prices)
        # costs implied by prices, the inverse relation
        costs = jax.jit(lambda p, owned=owned: p - markups(demand(p, f), owned))
        moved = jnp.eye(J) * step
        difference = np.stack([(costs(prices + m) - costs(prices - m)) / (2 * step) for m in moved], axis=1)
        CENTRAL_DIFFERENCE.check(np.linalg.inv(rates), difference)
