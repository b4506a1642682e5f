"""Kernels with groups within groups, against formulas of their own, loops over removals, and their limits."""

from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.exceptions import Status
from blpjax.iteration import Iteration
from blpjax.kernels import contraction, micro, substitution
from blpjax.kernels import markups as supply
from blpjax.kernels import shares as logit
from blpjax.kernels.contraction import ObservedMarket, invert_shares
from blpjax.kernels.demand import demand_hessian, demand_with_curvature
from blpjax.kernels.equilibrium import own_slopes
from blpjax.kernels.shares import Nests, nests_of
from blpjax.kernels.substitution import consumer_surpluses
from tests.support.designs import mostly_slow
from tests.support.economies import I, J, market
from tests.support.firms import DEMANDS, arrays, firms, partial_ownership
from tests.tolerances import DELTA, LINEAR_ALGEBRA, ROUNDING

# Compiled as a whole: one operation after another takes longer.
choices, inclusive_values, shares, share_jacobian = map(
    jax.jit, (logit.choices, logit.inclusive_values, logit.shares, logit.share_jacobian)
)
diversions, logit_delta, long_run_diversion_ratios = map(
    jax.jit, (micro.diversions, contraction.logit_delta, substitution.long_run_diversion_ratios)
)

#: Two subgroups of two products in one group; another group of two subgroups of one product.
CODES, PARENTS = np.array([0, 1, 2, 3, 1, 0]), np.array([0, 0, 1, 1])
RHO, NU = np.array([0.5, 0.7, 0.6, 0.4]), np.array([0.3, 0.2])
GROUPS = PARENTS[CODES]

PARAMETERS = {
    "moderate": (RHO, NU),
    "near one": (np.array([0.99, 0.985, 0.97, 0.96]), np.array([0.95, 0.9])),
    "no groups": (RHO, np.zeros(2)),
}
every_rho = pytest.mark.parametrize(("rho", "nu"), PARAMETERS.values(), ids=PARAMETERS)


def nests(rho: Any = RHO, nu: Any = NU) -> Nests:
    """Nests; of NumPy where parameters are."""
    return nests_of(CODES, rho, nests_of(PARENTS, nu))


def arguments(seed: int, specific: bool = False) -> tuple[Any, ...]:
    """Arguments of shares in their order but nests, arrays of NumPy; availability differs between agents."""
    m, rng = market(seed), np.random.default_rng(seed + 100)
    C = m.C[None, :, :] + 0.3 * rng.normal(size=(J, 2, I)) if specific else m.C
    return m.delta, m.X2, C, m.weights, rng.uniform(0.3, 2.0, (J, I))


def utilities(delta: Any, X2: Any, C: Any) -> Any:
    einsum = (np if isinstance(C, np.ndarray) else jnp).einsum
    return delta[:, None] + (X2 @ C if C.ndim == 2 else einsum("jk,jki->ji", X2, C))


def plain_choices(V: Any, availability: Any, rho: Any, nu: Any) -> tuple[Any, Any]:
    """Probabilities and inclusive values by the definition, without protection against overflow."""
    xp = np if isinstance(V, np.ndarray) else jnp
    own, above = np.eye(4)[CODES], np.eye(2)[PARENTS]
    e = availability * xp.exp(V / (1.0 - own @ rho)[:, None])
    D = own.T @ e
    powers = xp.where(D > 0, xp.where(D > 0, D, 1.0) ** ((1.0 - rho) / (1.0 - above @ nu))[:, None], 0.0)
    G = above.T @ powers
    weights = xp.where(G > 0, xp.where(G > 0, G, 1.0) ** (1.0 - nu)[:, None], 0.0)
    total = 1.0 + weights.sum(axis=0)
    within = e / (own @ xp.where(D > 0, D, 1.0))
    among = powers / (above @ xp.where(G > 0, G, 1.0))
    return within * (own @ (among * (above @ (weights / total[None, :])))), xp.log(total)


def extended(values: Any) -> np.ndarray:
    """In extended precision, which reaches much farther."""
    return np.asarray(values, np.longdouble)


def plain_shares(delta: Any, X2: Any, C: Any, weights: Any, availability: Any, rho: Any, nu: Any) -> Any:
    return plain_choices(utilities(delta, X2, C), availability, rho, nu)[0] @ weights


def library_shares(delta: Any, X2: Any, C: Any, weights: Any, availability: Any, rho: Any, nu: Any) -> Any:
    return logit.shares(delta, X2, C, weights, availability, nests(rho, nu))


@every_rho
def test_probabilities_are_those_of_the_definition(rho: np.ndarray, nu: np.ndarray) -> None:
    delta, X2, C, weights, availability = arguments(1)
    V = utilities(delta, X2, C)
    found, (inside, inclusive) = choices(V, availability, nests(rho, nu)), plain_choices(V, availability, rho, nu)
    ROUNDING.check(found.inside, inside)
    ROUNDING.check(found.inside.sum(axis=0) + found.outside, np.ones(I))
    ROUNDING.check(found.inclusive, inclusive)
    ROUNDING.check(inclusive_values(V, availability, nests(rho, nu)), inclusive)
    # on the host, with an axis of markets
    host = jax.tree.map(lambda x: np.stack([x, x]), (V, availability, nests(rho, nu)))
    ROUNDING.check(logit.choices(*host).inside[1], inside)


def test_limits_are_one_level_and_none() -> None:
    delta, X2, C, weights, availability = known = arguments(2)
    equal = shares(*known, nests(NU[PARENTS], NU))
    ROUNDING.check(equal, shares(*known, nests_of(GROUPS, NU)))
    ROUNDING.check(shares(*known, nests(RHO, 0.0 * NU)), shares(*known, nests_of(CODES, RHO)))
    ROUNDING.check(shares(*known, nests(0.0 * RHO, 0.0 * NU)), shares(*known, None))


@jax.jit
def _value_and_first(*at: Any) -> Any:
    return library_shares(*at), jax.jacfwd(library_shares, (0, 1, 2, 5, 6))(*at)


@pytest.mark.parametrize("common", [1000.0, -1000.0])
def test_nothing_overflows_at_extreme_utilities(common: float) -> None:
    delta, *known = arguments(3)
    extreme = common + np.array([1000.0, -1000.0, 999.0, 0.0, 1.0, -5.0])
    found, first = _value_and_first(extreme, *known, RHO, NU)
    for value in (found, *first):
        assert np.isfinite(value).all()
    # only those that somebody likes as much as the best one, or the outside good, are bought
    near, found = extreme > (1900.0 if common > 0 else -100.0), np.asarray(found)
    assert (found[~near] < 1e-100).all() and found[near].sum() > 0.1


@jax.jit
def _plain_value_and_first(*at: Any) -> Any:
    return plain_shares(*at), jax.jacfwd(plain_shares, (0, 1, 2, 5, 6))(*at)


@pytest.mark.parametrize("removed", [(2,), (2, 3), (0, 1, 4, 5), (0, 1, 2, 3, 4, 5)], ids=str)
def test_products_whose_removal_empties_groups(removed: tuple[int, ...]) -> None:
    """Whatever their utilities are, values and derivatives of others are those of the definition."""
    delta, *known, availability = arguments(4)
    far = delta.copy()
    availability[list(removed)], far[list(removed)] = 0.0, 1000.0
    value, first = _value_and_first(far, *known, availability, RHO, NU)
    expected, derivatives = _plain_value_and_first(delta, *known, availability, RHO, NU)
    ROUNDING.check(value, expected)
    for one, other in zip(first, derivatives, strict=True):
        ROUNDING.check(one, other)


#: Ways to differentiate that together have all rules, and the others.
FEW, MORE = ("reverse", "forward over forward"), ("forward", "forward over reverse")


@pytest.mark.parametrize(
    ("specific", "modes"),
    [
        pytest.param(False, FEW, id="tastes"),
        pytest.param(False, MORE, id="tastes-more", marks=pytest.mark.slow),
        pytest.param(True, FEW + MORE, id="tastes of products", marks=pytest.mark.slow),
    ],
)
def test_derivative_rule_agrees_with_differentiation_of_the_definition(specific: bool, modes: tuple[str, ...]) -> None:
    at = tuple(map(jnp.asarray, (*arguments(5, specific), RHO, NU)))
    rng, everything = np.random.default_rng(6), tuple(range(7))
    along, other = (tuple(jnp.asarray(rng.normal(size=x.shape)) for x in at) for _ in range(2))

    @partial(jax.jit, static_argnums=0)
    def derivatives(function: Any) -> dict[str, Any]:
        def forward(*values: Any) -> Any:
            return jax.jvp(function, values, along)[1]

        def reverse(*values: Any) -> Any:
            return jax.vjp(function, *values)[1](jnp.cos(jnp.arange(J) + 1.0))

        ways = {
            "forward": lambda: jax.jacfwd(function, everything)(*at),
            "reverse": lambda: reverse(*at),
            "forward over forward": lambda: jax.jvp(forward, at, other)[1],
            "forward over reverse": lambda: jax.jvp(reverse, at, other)[1],
        }
        return {name: ways[name]() for name in modes}

    actual, expected = derivatives(library_shares), derivatives(plain_shares)
    for name in expected:
        for one, wanted in zip(jax.tree.leaves(actual[name]), jax.tree.leaves(expected[name]), strict=True):
            ROUNDING.check(one, wanted, name)


def observe(delta: Any, X2: Any, C: Any, weights: Any, availability: Any) -> ObservedMarket:
    """The market with the shares that these mean utilities imply."""
    known = map(jnp.asarray, (shares(delta, X2, C, weights, availability, nests()), X2, C, weights, availability))
    return ObservedMarket(*known, nests())


@cache
def inverter(method: str) -> Any:
    return jax.jit(partial(invert_shares, method=Iteration(method).fixed_point))


@pytest.mark.parametrize("method", mostly_slow(["anderson", "newton", "simple", "df-sane", "hybr"], ["anderson"]))
def test_inverted_shares_are_the_observed_ones(method: str) -> None:
    delta, X2, C, weights, availability = arguments(7)
    observed = observe(delta, X2, C, weights, availability)
    iteration = Iteration(method, {"atol": 1e-13, "max_evaluations": 3000} if method not in ("df-sane", "hybr") else {})
    found = inverter(method)(observed, logit_delta(observed.shares, observed.nests), iteration.limits)
    assert int(found.status) == Status.CONVERGED
    LINEAR_ALGEBRA.check(found.value, delta)


def test_without_heterogeneity_the_inversion_has_a_closed_form() -> None:
    """``log s_j - log s_0 - rho log s_j/h - nu log s_h/g`` (Verboven 1996), and one corrected step finds it."""
    delta, X2, C, weights, _ = arguments(8)
    C, availability, weights = 0.0 * C, np.ones((J, I)), weights / weights.sum()
    observed = observe(delta, X2, C, weights, availability)
    DELTA.check(logit_delta(observed.shares, observed.nests), delta)
    iteration = Iteration("anderson", {"atol": 1e-12})
    found = inverter("anderson")(observed, 0.0 * delta, iteration.limits)
    DELTA.check(found.value, delta)
    assert int(found.evaluations) <= 3


def test_derivatives_of_the_inversion_are_those_of_the_implicit_function() -> None:
    delta, X2, C, weights, availability = arguments(9)
    s, iteration = shares(delta, X2, C, weights, availability, nests()), Iteration("newton", {"atol": 1e-14})

    @jax.jit
    @partial(jax.jacfwd, argnums=(0, 1, 2))
    def actual(S: Any, rho: Any, nu: Any) -> Any:
        observed = ObservedMarket(S, *map(jnp.asarray, (X2, C, weights, availability)), nests(rho, nu))
        return invert_shares(observed, jnp.asarray(delta), iteration.limits, iteration.fixed_point).value

    _, derivatives = _plain_value_and_first(delta, X2, C, weights, availability, RHO, NU)
    H, _, _, d_rho, d_nu = map(np.asarray, derivatives)
    for found, moved in zip(actual(s, RHO, NU), (-jnp.eye(J), d_rho, d_nu), strict=True):
        LINEAR_ALGEBRA.check(found, -np.linalg.solve(H, moved))


@every_rho
def test_long_run_diversion_is_what_others_gain_when_a_product_is_removed(rho: np.ndarray, nu: np.ndarray) -> None:
    delta, X2, C, weights, availability = arguments(10)
    V = utilities(delta, X2, C)
    before, _ = plain_choices(extended(V), extended(availability), rho, nu)
    ratios = np.asarray(long_run_diversion_ratios(V, weights, availability, nests(rho, nu)))
    for j in np.flatnonzero(before @ weights > 1e-6):
        left, _ = plain_choices(extended(V), extended(np.where(np.arange(J)[:, None] == j, 0.0, availability)), rho, nu)
        expected = (left - before) @ weights
        expected[j] = (before - left).sum(axis=0) @ weights
        LINEAR_ALGEBRA.check(ratios[j], expected / (before @ weights)[j])
    LINEAR_ALGEBRA.check(ratios.sum(axis=1), np.ones(J))


@cache
def nested_point() -> tuple[Any, Any, np.ndarray]:
    """Demand at some prices, choices, and utilities."""

    @jax.jit
    def known(f: Any) -> Any:
        point = eqx.tree_at(lambda p: p.nests, DEMANDS["prices in both"](f.costs + 1.0, f), nests(), is_leaf=_is_none)
        return point, point.choices(), point.utilities()

    point, found, V = known(firms(24))
    return point, found, np.asarray(V)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 2, 3, 0], [0, 0, 1, 2, 0, 0]], ids=str)
def test_second_choices_are_those_without_the_first_and_its_group(groups: list[int]) -> None:
    """Groups are products, subgroups, or several subgroups of one group."""
    point, found, V = nested_point()
    codes, availability = np.array(groups), np.asarray(point.availability)
    alpha, beta, _ = jax.tree.map(np.asarray, diversions(point, found, codes))
    before, _ = plain_choices(V, availability, RHO, NU)
    for j in range(J):
        eliminated = codes == codes[j]
        left, _ = plain_choices(V, availability * ~eliminated[:, None], RHO, NU)
        part = before[j] / before[eliminated].sum(axis=0)
        same = [(CODES == CODES[j])[:, None], (GROUPS == GROUPS[j])[:, None]]
        gained = alpha[j][None, :] + sum(shared * more[j][None, :] for shared, more in zip(same, beta, strict=True))
        DELTA.check((before * gained)[~eliminated], (part[None, :] * (left - before))[~eliminated])


def _is_none(x: Any) -> bool:
    return x is None


@pytest.mark.slow
def test_demand_and_markups_follow_from_shares() -> None:
    f, H = arrays(firms(20)), jnp.asarray(partial_ownership())
    prices, eta = f.costs * 1.4 + 0.3, jnp.arange(1.0, J + 1)

    def demand(prices: Any, f: Any) -> Any:
        point = DEMANDS["logarithms of prices"](prices, f)
        return eqx.tree_at(lambda p: p.nests, point, jax.tree.map(jnp.asarray, nests()), is_leaf=_is_none)

    def plain(prices: Any) -> Any:
        point = DEMANDS["logarithms of prices"](prices, f)
        return plain_choices(point.utilities(), point.availability, RHO, NU)[0] @ point.weights

    @jax.jit
    def computed(prices: Any) -> Any:
        point, curvature = demand_with_curvature(demand, prices, f)
        return (
            point.jacobian(),
            own_slopes(point),
            supply.markup_product(point, H, eta),
            supply.profit_gradient(point, H, eta).gradient,
            supply.markups(point, H),
            demand_hessian(point, curvature),
        )

    s, slopes, hessian = jax.tree.map(
        np.asarray, jax.jit(lambda p: (plain(p), jax.jacfwd(plain)(p), jax.jacfwd(jax.jacrev(plain))(p)))(prices)
    )
    A = -np.asarray(H) * slopes.T
    actual, eta = computed(prices), np.asarray(eta)
    expected = (slopes, np.diag(slopes), A @ eta, s - A @ eta, np.linalg.solve(A, s), hessian)
    for one, other in zip(actual, expected, strict=True):
        LINEAR_ALGEBRA.check(one, other)


def test_elasticities_of_the_nested_logit_have_a_closed_form() -> None:
    """Those of Verboven (1996): own, within the subgroup, within the group, and elsewhere."""
    delta, X2, C, weights, _ = arguments(11)
    C, availability, weights, alpha = 0.0 * C, np.ones((J, I)), weights / weights.sum(), -2.0
    V = utilities(delta, X2, C)
    found = choices(V, availability, nests())
    s = np.asarray(found.inside) @ weights
    jacobian = share_jacobian(found, weights, np.full((J, I), alpha), nests())
    rho, nu = RHO[CODES], NU[GROUPS]
    own, group = s / np.bincount(CODES, s)[CODES], s / np.bincount(GROUPS, s)[GROUPS]
    first, second = 1 / (1 - rho) - 1 / (1 - nu), nu / (1 - nu)
    expected = np.diag(s / (1 - rho)) - s[:, None] * (
        (CODES[:, None] == CODES) * (first * own) + (GROUPS[:, None] == GROUPS) * (second * group) + s
    )
    ROUNDING.check(jacobian, alpha * expected)


def test_the_gradient_of_surplus_are_probabilities() -> None:
    delta, X2, C, weights, availability = arguments(12)
    V = utilities(delta, X2, C)

    def surplus(V: Any) -> Any:
        return consumer_surpluses(V, -jnp.ones(I), availability, nests()).sum()

    ROUNDING.check(jax.jit(jax.grad(surplus))(V), choices(V, availability, nests()).inside)
