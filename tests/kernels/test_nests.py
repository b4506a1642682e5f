"""Kernels with nests: loops in extended precision, the logit as a limit, closed forms, and derivatives of all kinds."""

from functools import cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.exceptions import Status
from blpjax.iteration import Iteration
from blpjax.kernels import contraction, substitution
from blpjax.kernels import markups as supply
from blpjax.kernels import shares as logit
from blpjax.kernels.contraction import ObservedMarket, invert_shares
from blpjax.kernels.demand import DemandPoint, demand_hessian, demand_with_curvature
from blpjax.kernels.equilibrium import first_order_conditions, profit_hessian, solve_prices
from blpjax.kernels.markups import price_derivatives
from blpjax.kernels.shares import Nests, nests_of
from tests.support.designs import mostly_slow
from tests.support.economies import I, J, market
from tests.support.firms import DEMANDS, Firms, arrays, firms, fixed_costs, partial_ownership
from tests.support.firms import passthrough as passthrough_at
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, LINEAR_ALGEBRA, ROUNDING, SECOND_CENTRAL_DIFFERENCE

# Compiled as a whole: one operation after another takes longer.
choices, inclusive_values, probabilities, share_jacobian, shares = map(
    jax.jit, (logit.choices, logit.inclusive_values, logit.probabilities, logit.share_jacobian, logit.shares)
)
markup_matrix, markup_product, markups = map(jax.jit, (supply.markup_matrix, supply.markup_product, supply.markups))
consumer_surpluses, diversion_ratios, long_run_diversion_ratios, logit_delta = map(
    jax.jit,
    (
        substitution.consumer_surpluses,
        substitution.diversion_ratios,
        substitution.long_run_diversion_ratios,
        contraction.logit_delta,
    ),
)
passthrough = jax.jit(passthrough_at, static_argnums=0)
jacobian = jax.jit(DemandPoint.jacobian)

#: Two groups of several products and one of a single product.
CODES = np.array([0, 1, 0, 2, 1, 0])
RHO = np.array([0.3, 0.6, 0.5])

#: Nesting parameters of the three groups.
PARAMETERS = {
    "moderate": RHO,
    "equal": np.full(3, 0.4),
    "near one": np.array([0.99, 0.9, 0.985]),
    "zero": np.zeros(3),
    "one of them zero": np.array([0.0, 0.7, 0.2]),
    "negative": np.array([-0.3, 0.2, 0.4]),
}
every_rho = pytest.mark.parametrize("rho", PARAMETERS.values(), ids=PARAMETERS)


class Nested(NamedTuple):
    """Arguments of shares in their order: C is (2, I) or (J, 2, I), availability (J, I) or (J, 1).

    Arrays of NumPy, and nothing is compiled for what tests do with them: what is tested is compiled as a whole.
    """

    delta: Any
    X2: Any
    C: Any
    weights: Any
    availability: Any
    nests: Nests


def nested(seed: int = 1, rho: np.ndarray = RHO, specific: bool = False, available: bool = True) -> Nested:
    """A market; availability differs between agents, or tastes between products."""
    m, rng = market(seed), np.random.default_rng(seed + 100)
    factors = rng.uniform(0.3, 2.0, (J, I)) * (rng.uniform(size=(J, I)) > 0.3) if available else m.availability
    C = m.C[None, :, :] + 0.3 * rng.normal(size=(J, 2, I)) if specific else m.C
    return Nested(m.delta, m.X2, C, m.weights, factors, nests_of(CODES, rho))


class Loop(NamedTuple):
    inside: np.ndarray
    outside: np.ndarray
    inclusive: np.ndarray


def loop(utilities: Any, availability: Any, codes: np.ndarray, rho: np.ndarray) -> Loop:
    """Choice probabilities and inclusive values by loops over agents, groups and products, in extended precision."""
    V = np.asarray(utilities, np.longdouble)
    a = np.broadcast_to(np.asarray(availability, np.longdouble), V.shape)
    inside, outside, inclusive = (np.zeros(shape, np.longdouble) for shape in (V.shape, V.shape[1], V.shape[1]))
    for i in range(V.shape[1]):
        values, within = {}, np.zeros(V.shape[0], np.longdouble)
        for h in np.unique(codes):
            one = np.longdouble(1) - np.longdouble(rho[h])
            chosen = [j for j in range(V.shape[0]) if codes[j] == h and a[j, i] > 0]
            if not chosen:
                continue
            largest = max(V[j, i] / one for j in chosen)
            parts = {j: a[j, i] * np.exp(V[j, i] / one - largest) for j in chosen}
            for j in chosen:
                within[j] = parts[j] / sum(parts.values())
            values[h] = one * (largest + np.log(sum(parts.values())))
        top = max(0, *values.values()) if values else np.longdouble(0)
        total = np.exp(-top) + sum(np.exp(value - top) for value in values.values())
        outside[i], inclusive[i] = np.exp(-top) / total, top + np.log(total)
        for j in range(V.shape[0]):
            if codes[j] in values:
                inside[j, i] = within[j] * np.exp(values[codes[j]] - top) / total
    return Loop(inside.astype(float), outside.astype(float), inclusive.astype(float))


def utilities_of(n: Any) -> Any:
    if n.C.ndim == 2:
        return n.delta[:, None] + n.X2 @ n.C
    return n.delta[:, None] + (np if isinstance(n.C, np.ndarray) else jnp).einsum("jk,jki->ji", n.X2, n.C)


def changed(values: np.ndarray, places: Any, value: Any) -> np.ndarray:
    """The array with this value at these places."""
    values = values.copy()
    values[places] = value
    return values


def plain_choices(utilities: Any, availability: Any, members: Any, rho: Any) -> Any:
    """Probabilities as JAX would differentiate them by itself, for groups that nobody finds empty."""
    e = availability * jnp.exp(utilities / (1.0 - members @ rho)[:, None])
    sums = members.T @ e
    filled = sums > 0
    powers = jnp.where(filled, jnp.where(filled, sums, 1.0) ** (1.0 - rho)[:, None], 0.0)
    within = e / (members @ jnp.where(filled, sums, 1.0))
    return within * (members @ (powers / (1.0 + powers.sum(axis=0))[None, :]))


def plain_shares(delta: Any, X2: Any, C: Any, weights: Any, availability: Any, rho: Any) -> jax.Array:
    members = jnp.asarray(np.eye(3)[CODES])
    V = delta[:, None] + (X2 @ C if C.ndim == 2 else jnp.einsum("jk,jki->ji", X2, C))
    return plain_choices(V, availability, members, rho) @ weights


def library_shares(delta: Any, X2: Any, C: Any, weights: Any, availability: Any, rho: Any) -> jax.Array:
    return shares(delta, X2, C, weights, availability, nests_of(jnp.asarray(CODES), rho))


def flat(n: Nested) -> tuple[np.ndarray, ...]:
    """Arguments with rho in place of nests."""
    return (*n[:5], n.nests.rho)


# probabilities


@every_rho
@pytest.mark.parametrize("specific", [False, True], ids=["tastes", "tastes of products"])
def test_probabilities_are_those_of_a_loop(rho: np.ndarray, specific: bool) -> None:
    n = nested(1, rho, specific)
    found = choices(utilities_of(n), n.availability, n.nests)
    expected = loop(utilities_of(n), n.availability, CODES, rho)
    # utilities are divided by one minus rho, and so are their rounding errors multiplied
    ROUNDING.check(found.inside, expected.inside)
    ROUNDING.check(found.outside, expected.outside)
    ROUNDING.check(found.inclusive, expected.inclusive)
    ROUNDING.check(inclusive_values(utilities_of(n), n.availability, n.nests), expected.inclusive)
    ROUNDING.check(found.inside.sum(axis=0) + found.outside, np.ones(I))
    ROUNDING.check(shares(*n), expected.inside @ np.asarray(n.weights))
    assert (np.asarray(found.inside)[np.asarray(n.availability) == 0] == 0).all()


@jax.jit
def _two_orders(*at: Any) -> Any:
    """First derivatives, and second ones."""
    first = jax.jacfwd(library_shares, (0, 1, 2, 5))(*at)
    return first, jax.jacfwd(jax.jacrev(library_shares), (0, 5))(*at)


@jax.jit
def _jacobians(n: Nested) -> Any:
    """Derivatives of shares in everything that is not an availability or a nesting parameter."""
    return jax.jacfwd(partial(logit.shares, nests=n.nests), range(4))(*n[:5])


@pytest.mark.parametrize("common", [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize("rho", [0.5, 0.99])
def test_nothing_overflows_at_extreme_utilities(common: float, rho: float) -> None:
    n = nested(2, np.full(3, rho))
    delta = common + np.array([1000.0, -1000.0, 999.0, 0.0, 1.0, -5.0])
    n = n._replace(delta=delta)
    found = choices(utilities_of(n), n.availability, n.nests)
    expected = loop(utilities_of(n), n.availability, CODES, np.full(3, rho))
    for one, other in zip((found.inside, found.outside, found.inclusive), expected, strict=True):
        # exponents of 1e5 are rounded to 1e-11
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-300)
    for values in jax.tree.leaves(_two_orders(*flat(n))):
        assert np.isfinite(values).all()


@pytest.mark.slow
@pytest.mark.parametrize("specific", [False, True])
def test_without_correlation_within_groups_it_is_the_logit(specific: bool) -> None:
    n = nested(3, np.zeros(3), specific)
    plain = shares(*n[:5])
    ROUNDING.check(shares(*n), plain)
    V = utilities_of(n)
    for one, other in zip(
        (*probabilities(V, n.availability, n.nests), inclusive_values(V, n.availability, n.nests)),
        (*probabilities(V, n.availability), inclusive_values(V, n.availability)),
        strict=True,
    ):
        ROUNDING.check(one, other)
    found = choices(V, n.availability, n.nests)
    logit = choices(V, n.availability)
    ROUNDING.check(share_jacobian(found, n.weights, V, n.nests), share_jacobian(logit, n.weights, V))
    first = [_jacobians(n._replace(nests=h)) for h in (nests_of(np.arange(J), np.zeros(J)), None)]
    for one, other in zip(*first, strict=True):
        ROUNDING.check(one, other)


@pytest.mark.slow
def test_groups_of_one_product_are_no_groups() -> None:
    """Whatever their parameters are: with availability of zero or one, these do not matter."""
    n = nested(4)
    availability = (n.availability > 0).astype(float)
    alone = nests_of(np.arange(J), np.linspace(0.0, 0.99, J))
    ROUNDING.check(shares(*n[:4], availability, alone), shares(*n[:4], availability))
    V = utilities_of(n)
    ROUNDING.check(inclusive_values(V, availability, alone), inclusive_values(V, availability))
    slopes = np.full((J, I), -1.5)
    ROUNDING.check(
        share_jacobian(choices(V, availability, alone), n.weights, slopes, alone),
        share_jacobian(choices(V, availability), n.weights, slopes),
    )
    moves = jax.jit(jax.jacfwd(lambda rho: shares(*n[:4], availability, nests_of(jnp.arange(J), rho))))(alone.rho)
    np.testing.assert_allclose(moves, 0.0, rtol=0, atol=1e-14)


@jax.jit
def _everything(n: Nested, codes: Any) -> tuple[Any, ...]:
    def value(delta: Any, rho: Any, C: Any) -> Any:
        return shares(delta, n.X2, C, n.weights, n.availability, nests_of(codes, rho))

    at = (n.delta, n.nests.rho, n.C)
    surplus = inclusive_values(utilities_of(n), n.availability, nests_of(codes, n.nests.rho))
    return value(*at), jax.jacfwd(value, (0, 1, 2))(*at), jax.jacfwd(jax.jacrev(value), (0, 1))(*at), surplus


@pytest.mark.parametrize("removed", mostly_slow({"single": (3,), "pair": (1, 4), "all": (0, 1, 2, 3, 4, 5)}, ["pair"]))
@pytest.mark.parametrize("utility", [0.0, 1000.0, -1000.0])
def test_products_whose_removal_empties_a_group(removed: tuple[int, ...], utility: float) -> None:
    """Values and derivatives are those of the market without the products, whatever their utility is."""
    n = nested(5, available=False)
    kept = np.setdiff1d(np.arange(J), removed)
    availability = np.ones((J, 1))
    availability[list(removed)] = 0.0
    large = n._replace(delta=changed(n.delta, list(removed), utility), availability=availability)

    found = _everything(large, CODES)
    fewer = n._replace(delta=n.delta[kept], X2=n.X2[kept], availability=n.availability[kept])
    small = _everything(fewer, CODES[kept])
    for long, short in zip(jax.tree.leaves(found), jax.tree.leaves(small), strict=True):
        assert np.isfinite(long).all()
        lacking = [np.arange(J)[kept] if size == J else np.arange(size) for size in np.shape(long)]
        ROUNDING.check(np.asarray(long)[np.ix_(*lacking)], short)
    assert (np.asarray(found[0])[list(removed)] == 0).all()


@pytest.mark.slow
def test_padding_changes_nothing() -> None:
    """Padded products have no group, and padded groups no products."""
    n, more, codes = nested(6, available=False), 2, np.array([0, 1, 0, 1])
    few = J - more
    n = n._replace(delta=n.delta[:few], X2=n.X2[:few], availability=n.availability[:few])
    small = n._replace(nests=nests_of(codes, RHO[:2]))
    pad = lambda x: np.concatenate([x, np.zeros((more, *x.shape[1:]))])  # noqa: E731
    padded = np.r_[codes, np.full(more, -1)]
    nests = nests_of(padded, np.r_[RHO[:2], 0.0])
    large = n._replace(delta=pad(n.delta), X2=pad(n.X2), availability=pad(n.availability), nests=nests)
    found, expected = _everything(large, padded), _everything(small, codes)
    for long, short in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(long).all()
        ROUNDING.check(np.asarray(long)[tuple(slice(size) for size in np.shape(short))], short)
    assert (np.asarray(found[0])[few:] == 0).all()


@pytest.mark.slow
def test_many_groups_are_the_same_as_few() -> None:
    """More than eight groups, for which maxima are found in another way."""
    n = nested(7)
    many = nests_of(CODES * 4, changed(np.zeros(12), [0, 4, 8], n.nests.rho))
    ROUNDING.check(shares(*n[:5], many), shares(*n))
    ROUNDING.check(
        jax.jacfwd(lambda d: shares(d, *n[1:5], many))(n.delta), jax.jacfwd(lambda d: shares(d, *n[1:]))(n.delta)
    )


def test_missing_utilities_have_missing_shares() -> None:
    n = nested(8, available=False)
    assert np.isnan(shares(changed(n.delta, 0, np.nan), *n[1:])).all()


# derivatives of shares


NAMES = ("delta", "X2", "C", "weights", "availability", "rho")
EVERYTHING = tuple(range(6))


def plain_logit(delta: Any, X2: Any, C: Any, weights: Any, availability: Any, rho: Any) -> jax.Array:
    """Shares without nests and with tastes of products, as JAX would differentiate them by itself."""
    e = availability * jnp.exp(delta[:, None] + jnp.einsum("jk,jki->ji", X2, C))
    return (e / (1.0 + e.sum(axis=0))[None, :]) @ weights


def library_logit(delta: Any, X2: Any, C: Any, weights: Any, availability: Any, rho: Any) -> jax.Array:
    return shares(delta, X2, C, weights, availability)


#: Ways to differentiate that together have all rules, and the others.
FEW = ("reverse", "forward over forward")
MORE = ("forward", "forward over reverse", "reverse over forward")


@pytest.mark.parametrize(
    ("rule", "plain", "specific", "modes"),
    [
        pytest.param(library_shares, plain_shares, False, FEW, id="tastes"),
        pytest.param(library_shares, plain_shares, False, MORE, id="tastes-more", marks=pytest.mark.slow),
        pytest.param(library_shares, plain_shares, True, FEW + MORE, id="tastes of products", marks=pytest.mark.slow),
        pytest.param(
            library_logit,
            plain_logit,
            True,
            FEW + MORE,
            id="tastes of products without nests",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_derivative_rule_agrees_with_differentiation_of_the_formula(
    rule: Any, plain: Any, specific: bool, modes: tuple[str, ...]
) -> None:
    """First derivatives in each argument, and second ones along directions in all of them."""
    n = nested(9, specific=specific)
    # what leaves a group empty has no derivative in its availability
    at = flat(n._replace(availability=n.availability + 0.1))
    rng = np.random.default_rng(10)
    along, other = (tuple(rng.normal(size=x.shape) for x in at) for _ in range(2))
    cotangent = jnp.cos(jnp.arange(J) + 1.0)

    @partial(jax.jit, static_argnums=0)
    def derivatives(function: Any) -> dict[str, Any]:
        def forward(*values: Any) -> Any:
            return jax.jvp(function, values, along)[1]

        def reverse(*values: Any) -> Any:
            return jax.vjp(function, *values)[1](cotangent)

        ways = {
            "forward": lambda: jax.jacfwd(function, EVERYTHING)(*at),
            "reverse": lambda: reverse(*at),
            "forward over forward": lambda: jax.jvp(forward, at, other)[1],
            "forward over reverse": lambda: jax.jvp(reverse, at, other)[1],
            "reverse over forward": lambda: jax.vjp(forward, *at)[1](cotangent),
        }
        return {name: ways[name]() for name in modes}

    actual, expected = derivatives(rule), derivatives(plain)
    for name in expected:
        for one, wanted in zip(jax.tree.leaves(actual[name]), jax.tree.leaves(expected[name]), strict=True):
            ROUNDING.check(one, wanted, name)


@pytest.mark.parametrize("which", mostly_slow(dict(zip(NAMES, EVERYTHING, strict=True)), ["rho"]))
def test_second_derivatives_in_one_argument_alone(which: int) -> None:
    """Arguments that do not move are told from those that do."""
    at = flat(nested(9))
    direction = np.random.default_rng(10).normal(size=at[which].shape)

    @partial(jax.jit, static_argnums=0)
    def second(function: Any) -> Any:
        def along(x: Any) -> Any:
            return jax.jvp(lambda y: function(*at[:which], y, *at[which + 1 :]), (x,), (direction,))[1]

        return along(at[which]), jax.jvp(along, (at[which],), (direction,))[1]

    if NAMES[which] == "availability":
        at = flat(nested(9)._replace(availability=nested(9).availability + 0.1))
    for one, other in zip(second(library_shares), second(plain_shares), strict=True):
        ROUNDING.check(one, other)


@pytest.mark.slow
def test_tastes_of_products_that_are_the_same_are_common_tastes() -> None:
    n = nested(12)
    repeated = n._replace(C=np.broadcast_to(n.C[None], (J, *n.C.shape)))
    ROUNDING.check(shares(*repeated), shares(*n))
    first = jax.jit(jax.jacfwd(logit.shares, 2))
    ROUNDING.check(np.asarray(first(*repeated)).sum(axis=1), first(*n))


def test_share_jacobian_is_the_derivative_in_utilities_and_variables() -> None:
    n = nested(13)
    V = utilities_of(n)
    found = choices(V, n.availability, n.nests)
    H = share_jacobian(found, n.weights, nests=n.nests)
    ROUNDING.check(H, jax.jit(jax.jacfwd(plain_shares))(*flat(n)))
    ROUNDING.check(H, np.asarray(H).T)
    slopes = np.random.default_rng(14).normal(size=(J, I))

    def moved(x: Any) -> Any:
        members = jnp.asarray(np.eye(3)[CODES])
        return plain_choices(V + x[:, None] * slopes, n.availability, members, n.nests.rho) @ n.weights

    ROUNDING.check(share_jacobian(found, n.weights, slopes, n.nests), jax.jit(jax.jacfwd(moved))(np.zeros(J)))


# inversion


@cache
def inverter(method: str, **options: Any) -> Any:
    iteration = Iteration(method, {"atol": 1e-13, "max_evaluations": 20_000} | options)

    @jax.jit
    def invert(observed: Any, n: Nested, start: Any) -> Any:
        return invert_shares(ObservedMarket(observed, *n[1:]), start, iteration.limits, iteration.fixed_point)

    return invert


METHODS = ("anderson", "newton", "squarem", "simple")


@every_rho
@pytest.mark.parametrize("method", mostly_slow(METHODS, ["anderson", "newton"]))
def test_inverted_shares_are_the_observed_ones(rho: np.ndarray, method: str) -> None:
    """The contraction holds for parameters between zero and one; the others also below."""
    if rho.min() < 0 and method in ("squarem", "simple"):
        pytest.skip("no contraction")
    n = nested(15, rho, available=False)
    observed = shares(*n)
    found = inverter(method)(observed, n, logit_delta(observed, n.nests))
    assert found.status <= Status.ROUNDING_FLOOR
    # linear convergence stops where steps are small, which is not yet where errors are
    atol = 1e-11 if method in ("anderson", "newton") else 1e-9
    np.testing.assert_allclose(found.value, n.delta, rtol=0, atol=atol)


@every_rho
def test_without_heterogeneity_the_inversion_has_a_closed_form(rho: np.ndarray) -> None:
    n = nested(16, rho, available=False)
    n = n._replace(C=np.zeros_like(n.C))
    observed = shares(*n)
    closed = logit_delta(observed, n.nests)
    np.testing.assert_allclose(closed, n.delta, rtol=0, atol=1e-12)
    found = inverter("anderson")(observed, n, np.zeros(J))
    assert found.status <= Status.ROUNDING_FLOOR
    DELTA.check(found.value, closed)


def test_inversion_where_everybody_buys_and_correlation_is_near_one() -> None:
    n = nested(17, np.full(3, 0.99), available=False)
    n = n._replace(delta=n.delta + 16.0)
    observed = shares(*n)
    assert 1 - float(observed.sum()) < 1e-5
    for method in ("anderson", "newton"):
        found = inverter(method)(observed, n, logit_delta(observed, n.nests))
        assert found.status <= Status.ROUNDING_FLOOR
        np.testing.assert_allclose(shares(found.value, *n[1:]), observed, rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("specific", [False, True])
def test_derivatives_of_the_inversion_are_those_of_the_implicit_function(specific: bool) -> None:
    """Against central differences of inversions, first and second, in rho, tastes and shares."""
    n = nested(18, specific=specific)
    observed = shares(*n)
    rng = np.random.default_rng(19)
    moves = tuple(rng.normal(size=x.shape) for x in (observed, n.C, n.nests.rho))
    limits, method = Iteration("newton", {"atol": 1e-14}).limits, Iteration("newton").fixed_point

    def delta(step: Any) -> Any:
        s, C, rho = (
            x + step * d * scale
            for x, d, scale in zip((observed, n.C, n.nests.rho), moves, (0.01, 1.0, 0.1), strict=True)
        )
        nests = nests_of(jnp.asarray(CODES), rho)
        market = ObservedMarket(s, *map(jnp.asarray, (n.X2, C, n.weights, n.availability)), nests)
        return invert_shares(market, jnp.asarray(n.delta), limits, method).value

    def first(step: Any) -> Any:
        return jax.jvp(delta, (step,), (jnp.ones(()),))

    @jax.jit
    def everything(step: Any) -> Any:
        """Delta, its first derivative, and its second one."""
        (value, once), (_, twice) = jax.jvp(first, (step,), (jnp.ones(()),))
        return value, once, twice

    h = 1e-4
    one, two, minus_one, minus_two = (list(map(np.asarray, everything(k * h))) for k in (1, 2, -1, -2))
    _, once, twice = everything(0.0)
    for k, derivative in enumerate((once, twice)):
        difference = (8 * (one[k] - minus_one[k]) - two[k] + minus_two[k]) / (12 * h)
        CENTRAL_DIFFERENCE.check(derivative, difference)
    ROUNDING.check(jax.jit(jax.jacrev(delta))(0.0), once)


# supply


def grouped(demand: Any, rho: np.ndarray = RHO) -> Any:
    """Demand that depends on prices as `demand` does, with groups of products, in place of padding if there is any."""

    def demand_at(prices: Any, f: Firms) -> DemandPoint:
        codes = np.r_[CODES, np.full(prices.size - J, -1)]
        nests = nests_of(jnp.asarray(codes), jnp.asarray(rho))
        return eqx.tree_at(lambda p: p.nests, demand(prices, f), nests, is_leaf=lambda x: x is None)

    return demand_at


NESTED_DEMANDS = {name: grouped(demand) for name, demand in DEMANDS.items()}
one_nested_demand = pytest.mark.parametrize("demand", mostly_slow(NESTED_DEMANDS, ["prices in X1"]))


def shares_at(demand: Any, f: Firms) -> Any:
    """Shares as a function of prices, by the plain formula."""
    members = jnp.asarray(np.vstack([np.eye(3)[CODES], np.zeros((f.base.size - J, 3))]))

    def function(prices: Any) -> Any:
        point = demand(prices, f)
        V = point.delta[:, None] + point.X2 @ point.C
        return plain_choices(V, point.availability, members, point.nests.rho) @ point.weights

    return function


def prices_of(f: Firms) -> Any:
    return f.costs * 1.4 + 0.3


@cache
def compiled(demand: Any) -> Any:
    """``point, shares, slopes`` of prices and a market, the last two by the plain formula."""

    @jax.jit
    def known(prices: Any, f: Firms) -> Any:
        plain = shares_at(demand, f)
        return demand(prices, f), plain(prices), jax.jacfwd(plain)(prices)

    return known


@one_nested_demand
def test_markups_and_their_matrix(demand: Any) -> None:
    f, H = firms(20), partial_ownership()
    point, s, slopes = compiled(demand)(prices_of(f), f)
    ROUNDING.check(jacobian(point), slopes)
    A = np.asarray(markup_matrix(point, H))
    ROUNDING.check(A, -H * np.asarray(slopes).T)
    eta = np.arange(1.0, J + 1)
    ROUNDING.check(markup_product(point, H, eta), A @ eta)
    LINEAR_ALGEBRA.check(markups(point, H), np.linalg.solve(A, s))
    owned = (f.firms[:, None] == f.firms).astype(float)
    LINEAR_ALGEBRA.check(markups(point, f.firms), np.linalg.solve(-owned * np.asarray(slopes).T, s))


def test_nested_logit_markups_of_single_products_have_a_closed_form() -> None:
    """``(1 - rho) / alpha / (1 - rho s_j/h - (1 - rho) s_j)`` (Berry 1994)."""
    f = firms(21)._replace(C=np.zeros((2, I)), price_tastes=np.zeros(I))
    point, s, _ = compiled(NESTED_DEMANDS["prices in X1"])(prices_of(f), f)
    s, rho = np.asarray(s), RHO[CODES]
    within = s / np.bincount(CODES, s)[CODES]
    expected = (1 - rho) / 2.0 / (1 - rho * within - (1 - rho) * s)
    LINEAR_ALGEBRA.check(markups(point, np.arange(J)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("demand", NESTED_DEMANDS.values(), ids=NESTED_DEMANDS)
def test_price_derivatives_and_hessians_are_those_of_the_definitions(demand: Any) -> None:
    f, H = arrays(firms(22)), jnp.asarray(partial_ownership())
    prices, eta = prices_of(f), jnp.linspace(-1.0, 2.0, J)
    costs = prices - 0.5 - 0.1 * jnp.arange(J)

    @jax.jit
    def computed(prices: Any) -> Any:
        point, curvature = demand_with_curvature(demand, prices, f)
        first = price_derivatives(point, curvature, H, eta)
        return *first, demand_hessian(point, curvature), profit_hessian(demand, prices, costs, f)

    @jax.jit
    def expected(prices: Any) -> Any:
        plain = shares_at(demand, f)
        return (
            jax.jacfwd(plain)(prices),
            jax.jacfwd(lambda p: -(H * jax.jacfwd(plain)(p).T) @ eta)(prices),
            jax.jacfwd(lambda p: demand(p, f).lambda_diagonal())(prices),
            jax.jacfwd(jax.jacrev(plain))(prices),
            jax.jacfwd(jax.jacrev(lambda p: (p - costs) * plain(p)))(prices),
        )

    for one, other in zip(computed(prices), expected(prices), strict=True):
        ROUNDING.check(one, other)


@pytest.mark.parametrize("demand", mostly_slow(NESTED_DEMANDS, ["logarithms of prices"]))
def test_second_derivatives_agree_with_central_differences(demand: Any) -> None:
    """Which know nothing of derivatives of any formula."""
    f, step = firms(23), 1e-4
    prices, at = prices_of(f), jax.jit(demand)

    def s(p: Any) -> np.ndarray:
        point = jax.tree.map(np.asarray, at(p, f))
        return loop(utilities_of(point), point.availability, CODES, RHO).inside @ point.weights

    hessian = np.asarray(jax.jit(lambda p: demand_hessian(*demand_with_curvature(demand, p, f)))(prices))
    for k, m in ((0, 0), (0, 2), (1, 5), (3, 3)):
        a, b = step * np.eye(J)[k], step * np.eye(J)[m]
        difference = (s(prices + a + b) - s(prices + a - b) - s(prices - a + b) + s(prices - a - b)) / (4 * step**2)
        SECOND_CENTRAL_DIFFERENCE.check(hessian[:, k, m], difference)


@pytest.mark.slow
def test_derivatives_of_markups_are_those_of_a_dense_solve() -> None:
    """In everything at once: in reverse, and the second along directions in everything."""
    f, H = arrays(firms(24)), jnp.asarray(partial_ownership())
    whole = NESTED_DEMANDS["prices in both"](prices_of(f), f)
    members, rng = jnp.asarray(np.eye(3)[CODES]), np.random.default_rng(24)

    def dense(point: DemandPoint) -> Any:
        assert point.nests is not None
        rho = point.nests.rho

        def function(step: Any) -> Any:
            delta, X2 = point.delta + step * point.delta_slope, point.X2 + step[:, None] * point.X2_slope
            return plain_choices(delta[:, None] + X2 @ point.C, point.availability, members, rho) @ point.weights

        s, slopes = function(jnp.zeros(J)), jax.jacfwd(function)(jnp.zeros(J))
        return jnp.linalg.solve(-H * slopes.T, s)

    floats, rest = eqx.partition(whole, eqx.is_inexact_array)
    along, other = (jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), floats) for _ in range(2))

    @partial(jax.jit, static_argnums=0)
    def derivatives(function: Any) -> Any:
        def forward(values: Any) -> Any:
            return jax.jvp(lambda v: function(eqx.combine(v, rest)), (values,), (along,))[1]

        def reverse(values: Any) -> Any:
            return jax.grad(lambda v: function(eqx.combine(v, rest)) @ jnp.arange(1.0, J + 1))(values)

        return reverse(floats), jax.jvp(forward, (floats,), (other,)), jax.jvp(reverse, (floats,), (other,))[1]

    actual, expected = derivatives(lambda point: markups(point, H)), derivatives(dense)
    assert len(jax.tree.leaves(actual[0])) == 8
    for one, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        LINEAR_ALGEBRA.check(one, wanted)


@cache
def solver(demand: Any, method: str, **options: Any) -> Any:
    iteration = Iteration(method, {"atol": 1e-14} | options)

    @jax.jit
    def solve(f: Firms, owned: Any, start: Any) -> Any:
        return solve_prices(demand, fixed_costs, owned, start, f, iteration.fixed_point, iteration.limits)

    return solve


@pytest.mark.parametrize("method", mostly_slow(["squarem", "newton"], ["newton"]))
@one_nested_demand
def test_equilibrium_prices(demand: Any, method: str) -> None:
    f = firms(25)
    found = solver(demand, method)(f, f.firms, f.costs)
    assert found.status <= Status.ROUNDING_FLOOR
    prices = np.asarray(found.value)
    point, _, _ = compiled(demand)(prices, f)
    DELTA.check(prices - f.costs, markups(point, f.firms))
    owned = (f.firms[:, None] == f.firms).astype(float)
    conditions = jax.jit(first_order_conditions)(point, owned, prices, f.costs)
    np.testing.assert_allclose(conditions, 0.0, rtol=0, atol=1e-13)
    one_step = solver(demand, "simple", atol=1e10, max_evaluations=1)
    DELTA.check(np.asarray(one_step(f, f.firms, prices).value) - f.costs, prices - f.costs)


@pytest.mark.parametrize("kind", mostly_slow(["passthrough", "implicit"], ["passthrough"]))
@one_nested_demand
def test_rates_of_prices_in_costs(demand: Any, kind: str) -> None:
    """Passthrough, and the implicit derivative of prices in costs, are differences of prices that are solved again."""
    f, step, solve = firms(25), 1e-5, solver(demand, "newton")
    prices = np.asarray(solve(f, f.firms, f.costs).value)

    def at(costs: Any) -> Any:
        return solve(f._replace(costs=costs), f.firms, prices).value

    moved = [np.asarray(at(f.costs + m)) - np.asarray(at(f.costs - m)) for m in step * np.eye(J)]
    difference = np.stack(moved, axis=1) / (2 * step)
    rates = passthrough(demand, f.firms, prices, f) if kind == "passthrough" else jax.jit(jax.jacfwd(at))(f.costs)
    CENTRAL_DIFFERENCE.check(rates, difference)


@pytest.mark.slow
def test_padding_changes_no_markup_no_price_and_no_derivative() -> None:
    demand = NESTED_DEMANDS["logarithms of prices"]
    solve = solver(demand, "squarem")

    @jax.jit
    def everything(f: Firms) -> Any:
        prices = prices_of(f)
        point, curvature = demand_with_curvature(demand, prices, f)
        return (
            supply.markups(point, f.firms),
            passthrough_at(demand, f.firms, prices, f),
            solve(f, f.firms, f.costs).value,
            demand_hessian(point, curvature),
        )

    for long, short in zip(everything(firms(26, J + 2, I + 3)), everything(firms(26)), strict=True):
        assert np.isfinite(long).all()
        DELTA.check(np.asarray(long)[tuple(slice(J) for _ in short.shape)], short)


# what demand implies


@every_rho
def test_long_run_diversion_is_what_others_gain_when_a_product_is_removed(rho: np.ndarray) -> None:
    n = nested(27, rho)
    V, weights = utilities_of(n), np.asarray(n.weights)
    before = loop(V, n.availability, CODES, rho)
    ratios = np.asarray(long_run_diversion_ratios(V, n.weights, n.availability, n.nests))
    for j in range(J):
        left = loop(V, changed(n.availability, j, 0.0), CODES, rho)
        expected = (left.inside - before.inside) @ weights
        expected[j] = (left.outside - before.outside) @ weights
        CENTRAL_DIFFERENCE.check(ratios[j], expected / (before.inside @ weights)[j])
    LINEAR_ALGEBRA.check(ratios.sum(axis=1), np.ones(J))


def test_diversion_within_groups_is_larger() -> None:
    """And the closed form of Berry's nested logit: elasticities of rivals in other groups ignore the group."""
    n = nested(28, available=False)
    n = n._replace(C=np.zeros_like(n.C))
    V = utilities_of(n)
    found = choices(V, n.availability, n.nests)
    jacobian = share_jacobian(found, n.weights, np.full((J, I), -2.0), n.nests)
    s, rho = np.asarray(shares(*n)), RHO[CODES]
    same = CODES[:, None] == CODES
    within = s / np.bincount(CODES, s)[CODES]
    # ds_j / dp_k = -2 s_j (1[j = k] / (1 - rho) - same rho / (1 - rho) s_k/h - s_k)
    scale = rho / (1 - rho)
    expected = -2.0 * s[:, None] * (np.diag(1 / (1 - rho)) - same * (scale * within)[None, :] - s[None, :])
    ROUNDING.check(jacobian, expected)
    ratios = np.asarray(diversion_ratios(jacobian))
    LINEAR_ALGEBRA.check(ratios.sum(axis=1), np.ones(J))
    assert ratios[0, 2] / s[2] > 1.05 * ratios[0, 1] / s[1]


def test_surplus_is_the_inclusive_value_and_its_derivatives_are_probabilities() -> None:
    n = nested(29)
    V, slopes = utilities_of(n), -np.linspace(0.5, 2.0, I)
    surplus = consumer_surpluses(V, slopes, n.availability, n.nests)
    ROUNDING.check(surplus * -slopes, loop(V, n.availability, CODES, RHO).inclusive)
    gradient = jax.jit(jax.grad(lambda V: inclusive_values(V, n.availability, n.nests).sum()))(V)
    ROUNDING.check(gradient, probabilities(V, n.availability, n.nests)[0])
