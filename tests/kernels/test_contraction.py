"""Inversion of shares: round trips in awkward markets, methods against each other, PyBLP's counts, derivatives."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyblp
import pytest

from blpjax import data
from blpjax.exceptions import Status, succeeded
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.contraction import ObservedMarket, invert_shares, logit_delta
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.kernels.shares import shares, tastes
from tests.support.designs import mostly_slow
from tests.support.economies import MARKETS, I, J, Market, loop_shares, market, pad, stack
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, ROUNDING, UNROLLED

METHODS = {
    "default": FixedPointMethod(),
    "anderson alone": FixedPointMethod("anderson", safeguard=False),
    "newton": FixedPointMethod("newton"),
    "squarem 1": FixedPointMethod("squarem", scheme=1),
    "squarem 2": FixedPointMethod("squarem", scheme=2),
    "squarem 3": FixedPointMethod("squarem", scheme=3),
    "simple": FixedPointMethod("simple"),
}
LIMITS = FixedPointLimits(atol=1e-13, max_evaluations=20_000)
FIELDS = ("shares", "X2", "C", "weights", "availability")

# Delta after loops that differ in everything: the error of each is its last change times 1 / (1 - contraction modulus).
SAME_DELTA = 1e-12
MODULUS = 1e3


@partial(jax.jit, static_argnums=0)
def invert_all(method: FixedPointMethod, stacked: Any, starts: Any, limits: FixedPointLimits) -> FixedPoint:
    def one(arrays: Any, start: Any) -> FixedPoint:
        return invert_shares(ObservedMarket(*arrays), start, limits, method)

    return jax.vmap(one)(stacked, starts)


starts_of = jax.jit(jax.vmap(logit_delta))


def solve_all(method: FixedPointMethod, markets: list[Market], limits: FixedPointLimits = LIMITS) -> FixedPoint:
    stacked = stack(markets)
    arrays = tuple(jnp.asarray(getattr(stacked, name)) for name in FIELDS)
    return jax.tree.map(np.asarray, invert_all(method, arrays, starts_of(arrays[0]), limits))


@cache
def solution(name: str) -> FixedPoint:
    return solve_all(METHODS[name], list(MARKETS.values()))


most_methods = pytest.mark.parametrize("name", mostly_slow([*METHODS], ["default", "newton"]))


@most_methods
def test_inversion_recovers_mean_utilities(name: str) -> None:
    found = solution(name)
    for t, (label, m) in enumerate(MARKETS.items()):
        assert succeeded(int(found.status[t])), label
        np.testing.assert_allclose(found.value[t], m.delta, rtol=0, atol=SAME_DELTA * MODULUS, err_msg=label)


@most_methods
def test_success_means_that_shares_are_reproduced(name: str) -> None:
    """Shares are recomputed by a plain loop: a loop that failed says so."""
    found = solution(name)
    for t, (label, m) in enumerate(MARKETS.items()):
        gap = np.abs(np.log(loop_shares(np.asarray(found.value[t]), *m[1:5])) - np.log(m.shares)).max()
        assert (gap < 2e-12) == bool(succeeded(int(found.status[t]))), label


@most_methods
def test_all_methods_agree(name: str) -> None:
    easy = np.array([label not in ("far from logit", "large sigma", "small outside share") for label in MARKETS])
    np.testing.assert_allclose(solution(name).value[easy], solution("newton").value[easy], rtol=0, atol=2e-12)


def test_logit_in_closed_form() -> None:
    m = MARKETS["no heterogeneity"]
    closed = jax.jit(logit_delta)
    DELTA.check(closed(m.shares), m.delta)
    padded = np.r_[m.shares, 0.0]
    DELTA.check(closed(padded), np.r_[m.delta, 0.0])
    assert np.isfinite(jax.jit(jax.jacfwd(logit_delta))(padded)).all()


def test_without_heterogeneity_the_default_needs_at_most_three_evaluations() -> None:
    """Also from a start that is not the solution, because the corrected contraction is exact in one step."""
    m = MARKETS["no heterogeneity"]
    arrays = tuple(jnp.asarray(getattr(stack([m] * len(MARKETS)), name)) for name in FIELDS)
    starts = np.linspace(-1, 1, len(MARKETS))[:, None] * np.linspace(-5, 5, J)[None, :]
    starts[0] = m.delta
    found = invert_all(METHODS["default"], arrays, jnp.asarray(starts), LIMITS)
    assert found.evaluations.max() <= 3
    DELTA.check(found.value, np.broadcast_to(m.delta, starts.shape))


def test_common_utility_is_identified_against_the_outside_good() -> None:
    """The outside-share correction changes the path, not the solution, also where weights do not sum to one."""
    for mass in (0.154, 0.9, 1.3):
        m = market(41, mass=mass)
        found = solve_all(METHODS["default"], [m] * len(MARKETS))
        np.testing.assert_allclose(found.value[0], m.delta, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", mostly_slow(["default", "newton", "squarem 3"], ["default", "newton"]))
def test_shares_that_no_delta_can_reach_are_reported(name: str) -> None:
    """Weights that sum to 0.154 cannot make shares that sum to more."""
    m = MARKETS["weights sum to 0.154"]
    impossible = m._replace(shares=m.shares * 0.2 / m.shares.sum())
    found = solve_all(METHODS[name], [impossible] * len(MARKETS), LIMITS._replace(max_evaluations=500))
    assert not succeeded(np.asarray(found.status)).any()


def test_the_limit_on_evaluations_is_reported_by_the_default() -> None:
    found = solve_all(METHODS["default"], list(MARKETS.values()), LIMITS._replace(max_evaluations=2))
    assert set(found.status.tolist()) == {int(Status.CONVERGED), int(Status.MAX_EVALUATIONS)}
    assert found.evaluations.max() == 2 and np.isfinite(found.residual).all()


def test_utilities_that_underflow_at_the_start_do_not_give_a_wrong_solution() -> None:
    """At the logit solution, the second product's exponentials are below the smallest number for half of the agents.

    They matter in the solution, which is far away.
    """
    mu = np.where(np.arange(I) % 2 == 0, -356.0, -360.0)
    X2 = np.zeros((J, 2))
    X2[0], X2[1] = [1.0, 0.0], [0.0, 1.0]
    C = np.vstack([np.full(I, 350.0), mu])
    delta = np.array([-351.0, 358.0, -2.0, -2.0, -2.5, -3.0])
    weights, available = np.full(I, 1 / I), np.ones((J, 1))
    m = Market(delta, X2, C, weights, available, loop_shares(delta, X2, C, weights, available))
    found = solve_all(METHODS["default"], [m] * len(MARKETS))
    gap = np.abs(np.log(loop_shares(np.asarray(found.value[0]), *m[1:5])) - np.log(m.shares)).max()
    assert not succeeded(int(found.status[0])) or gap < 1e-10


class Nevo(NamedTuple):
    """Nevo's 94 markets: stacked arrays, and the published estimates of sigma and pi."""

    shares: np.ndarray
    X2: np.ndarray
    weights: np.ndarray
    nodes: np.ndarray
    demographics: np.ndarray
    sigma: np.ndarray
    pi: np.ndarray

    def market(self, t: int, scale: float) -> Market:
        C = scale * self.sigma @ self.nodes[t].T + self.pi @ self.demographics[t].T
        return Market(np.zeros(24), self.X2[t], C, self.weights[t], np.ones((24, 1)), self.shares[t])


@pytest.fixture(scope="module")
def nevo() -> Nevo:
    products, agents = data.load_nevo()
    people = agents.set_index("market_ids").groupby(level=0, sort=True)
    goods = products.assign(one=1.0).set_index("market_ids").groupby(level=0, sort=True)

    def stacked(groups: Any, names: list[str]) -> np.ndarray:
        return np.stack([group[names].to_numpy() for _, group in groups])

    return Nevo(
        stacked(goods, ["shares"])[:, :, 0],
        stacked(goods, ["one", "prices", "sugar", "mushy"]),
        stacked(people, ["weights"])[:, :, 0],
        stacked(people, [f"nodes{k}" for k in range(4)]),
        stacked(people, ["income", "income_squared", "age", "child"]),
        np.diag([0.5581, 3.3125, 0.0058, 0.0934]),
        np.array(
            [[2.2920, 0, 1.2844, 0], [588.3252, -30.1920, 0, 11.0546], [-0.3850, 0, 0.0522, 0], [0.7484, 0, -1.3534, 0]]
        ),
    )


def worst_gap(m: Market, delta: Any) -> float:
    """Largest difference of log shares, by plain NumPy."""
    V = np.asarray(delta, np.longdouble)[:, None] + m.X2.astype(np.longdouble) @ m.C.astype(np.longdouble)
    largest = np.maximum(V.max(axis=0), 0)
    e = np.exp(V - largest)
    simulated = (e / (np.exp(-largest) + e.sum(axis=0))) @ m.weights
    return float(np.abs(np.log(simulated) - np.log(m.shares)).max())


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "least"), [(1.0, 1.0), (10.0, 0.99)])
def test_nevo_markets_are_solved_at_ten_times_the_estimated_sigma(nevo: Nevo, scale: float, least: float) -> None:
    markets = [nevo.market(t, scale) for t in range(94)]
    found = solve_all(METHODS["default"], markets, LIMITS._replace(max_evaluations=5000))
    solved = succeeded(np.asarray(found.status))
    gaps = np.array([worst_gap(m, found.value[t]) for t, m in enumerate(markets)])
    assert (gaps[solved] <= 1e-12).all()
    assert solved.mean() >= least
    assert np.median(np.asarray(found.evaluations)) < 100


def test_extremely_hard_markets_are_solved_or_reported(nevo: Nevo) -> None:
    """Sigma fifty times the estimates, and shares of 1e-10."""
    markets = [nevo.market(t, 50.0) for t in range(94)]
    tiny = np.arange(24) % 3 == 0
    markets = [m._replace(shares=np.where(tiny, 1e-10, m.shares)) for m in markets]
    found = solve_all(METHODS["default"], markets, LIMITS._replace(max_evaluations=1000))
    gaps = np.array([worst_gap(m, found.value[t]) for t, m in enumerate(markets)])
    solved = succeeded(np.asarray(found.status))
    assert (gaps[solved] <= 1e-10).all()
    assert solved.any()


@pytest.mark.usefixtures("quiet")
def test_squarem_takes_about_as_many_evaluations_as_that_of_pyblp(nevo: Nevo) -> None:
    """The same scheme and tolerance from the same start, in one of Nevo's markets."""
    products, agents = data.load_nevo()
    name = sorted(products.market_ids.unique())[0]
    one, people = products[products.market_ids == name], agents[agents.market_ids == name]
    problem = pyblp.Problem(
        (pyblp.Formulation("0 + prices"), pyblp.Formulation("1 + prices + sugar + mushy")), one,
        pyblp.Formulation("0 + income + income_squared + age + child"), people,
    )  # fmt: skip
    theirs = problem.solve(
        nevo.sigma, nevo.pi, method="1s", optimization=pyblp.Optimization("return"), check_optimality="gradient",
        iteration=pyblp.Iteration("squarem", {"atol": 1e-13}),
    )  # fmt: skip
    ours = solve_all(METHODS["squarem 3"], [nevo.market(0, 1.0)])
    np.testing.assert_allclose(ours.value[0], theirs.delta[:, 0], rtol=0, atol=1e-10)
    counts = int(ours.evaluations[0]), int(theirs.contraction_evaluations.sum())
    assert 0.75 < counts[0] / counts[1] < 1.33, counts


class Small(NamedTuple):
    """A market as a function of parameters, small enough for second derivatives in all of them."""

    sigma: Any
    pi: Any
    X2: Any
    shares: Any
    weights: Any


SHAPES = Small((2, 2), (2, 1), (3, 2), (3,), (7,))


def small_market(seed: int) -> tuple[Small, np.ndarray, np.ndarray]:
    """Parameters with nodes (7, 2) and demographics (7, 1)."""
    rng = np.random.default_rng(seed)
    nodes, demographics = rng.normal(size=(7, 2)), rng.normal(size=(7, 1))
    sigma, pi = np.array([[0.6, 0.0], [0.2, 0.5]]), np.array([[0.3], [-0.2]])
    X2, weights = np.column_stack([np.ones(3), rng.uniform(0, 1.5, 3)]), rng.dirichlet(np.full(7, 4.0))
    observed = loop_shares(
        rng.normal(-2.0, 0.4, 3), X2, sigma @ nodes.T + pi @ demographics.T, weights, np.ones((3, 1))
    )
    return Small(sigma, pi, X2, observed, weights), nodes, demographics


def flatten(values: Small) -> np.ndarray:
    return np.concatenate([np.ravel(v) for v in values])


def unflatten(z: Any) -> Small:
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES])
    return Small(*(part.reshape(shape) for part, shape in zip(jnp.split(z, ends[:-1]), SHAPES, strict=True)))


def implied_delta(z: Any, nodes: Any, demographics: Any, products: int = 3, agents: int = 7) -> Any:
    """Delta by the library, in a market with padding."""
    p = unflatten(z)
    more, people = products - 3, agents - 7
    nodes, demographics = (jnp.pad(a, ((0, people), (0, 0))) for a in (nodes, demographics))
    C = tastes(p.sigma, p.pi, nodes, demographics)
    observed, X2 = jnp.pad(p.shares, (0, more)), jnp.pad(p.X2, ((0, more), (0, 0)))
    availability = jnp.pad(jnp.ones((3, 1)), ((0, more), (0, 0)))
    start = logit_delta(jax.lax.stop_gradient(observed))
    weights = jnp.pad(p.weights, (0, people))
    # the rule is the same for every method, and this one compiles fastest
    market = ObservedMarket(observed, X2, C, weights, availability)
    return invert_shares(market, start, LIMITS, METHODS["newton"]).value


delta_of = jax.jit(implied_delta)


def unrolled_delta(z: Any, nodes: Any, demographics: Any) -> Any:
    """Delta by 300 steps of the plain contraction, which JAX differentiates through."""
    p = unflatten(z)
    V = p.X2 @ (p.sigma @ nodes.T + p.pi @ demographics.T)

    def step(delta: Any, _: Any) -> tuple[Any, None]:
        e = jnp.exp(delta[:, None] + V)
        return delta + jnp.log(p.shares) - jnp.log((e / (1 + e.sum(axis=0))[None, :]) @ p.weights), None

    return jax.lax.scan(step, jnp.log(p.shares), None, length=300)[0]


def twice(value: Any) -> tuple[Any, Any]:
    """What is differentiated once more, and what is kept beside that."""
    return value, value


@jax.jit
def second_order(z: Any, nodes: Any, demographics: Any) -> dict[str, Any]:
    """First and second derivatives of delta in all parameters at once."""

    def function(z: Any) -> Any:
        return implied_delta(z, nodes, demographics)

    forward_over_reverse, reverse = jax.jacfwd(lambda z: twice(jax.jacrev(function)(z)), has_aux=True)(z)
    return {"forward": jax.jacfwd(function)(z), "reverse": reverse, "forward over reverse": forward_over_reverse}


@jax.jit
def reverse_over_forward(z: Any, nodes: Any, demographics: Any) -> Any:
    return jax.jacrev(jax.jacfwd(lambda z: implied_delta(z, nodes, demographics)))(z)


@pytest.fixture(scope="module")
def implicit_derivatives() -> dict[str, np.ndarray]:
    values, *people = small_market(0)
    return {name: np.asarray(value) for name, value in second_order(flatten(values), *people).items()}


def test_forward_and_reverse_agree(implicit_derivatives: dict[str, np.ndarray]) -> None:
    DELTA.check(implicit_derivatives["reverse"], implicit_derivatives["forward"])


@pytest.mark.slow
def test_second_derivatives_agree_in_all_modes(implicit_derivatives: dict[str, np.ndarray]) -> None:
    values, *people = small_market(0)
    DELTA.check(reverse_over_forward(flatten(values), *people), implicit_derivatives["forward over reverse"])


def test_implicit_derivatives_are_those_of_an_unrolled_contraction(implicit_derivatives: dict[str, np.ndarray]) -> None:
    """In sigma, pi, X2, shares and weights."""
    values, *people = small_market(0)
    z = flatten(values)

    def unrolled(z: Any) -> Any:
        return unrolled_delta(z, *people)

    value, first, second = jax.jit(
        lambda z: (unrolled(z), jax.jacfwd(unrolled)(z), jax.jacfwd(jax.jacfwd(unrolled))(z))
    )(z)
    DELTA.check(delta_of(z, *people), value)
    UNROLLED.check(implicit_derivatives["forward"], first)
    UNROLLED.check(implicit_derivatives["forward over reverse"], second)


@pytest.mark.slow
def test_implicit_derivatives_are_central_differences(implicit_derivatives: dict[str, np.ndarray]) -> None:
    values, *people = small_market(0)
    z, step = flatten(values), 1e-5

    def both(z: Any) -> tuple[Any, Any]:
        first, value = jax.jacfwd(lambda z: twice(implied_delta(z, *people)), has_aux=True)(z)
        return value, first

    steps = step * np.eye(z.size)
    moved = map(np.asarray, jax.jit(jax.vmap(both))(np.concatenate([z[None, :] + steps, z[None, :] - steps])))
    value, first = ((v[: z.size] - v[z.size :]) / (2 * step) for v in moved)
    CENTRAL_DIFFERENCE.check(implicit_derivatives["forward"], value.T)
    of_first = np.moveaxis(first, 0, 2)
    CENTRAL_DIFFERENCE.check(implicit_derivatives["forward over reverse"], of_first)


@pytest.mark.slow
def test_gradients_and_hessians_of_a_function_of_delta(implicit_derivatives: dict[str, np.ndarray]) -> None:
    """``sum_j sin delta_j``, for which the chain rule needs first and second derivatives of delta."""
    values, *people = small_market(0)
    z = flatten(values)

    def total(z: Any) -> Any:
        return jnp.sin(implied_delta(z, *people)).sum()

    delta = np.asarray(delta_of(z, *people))
    first, second = implicit_derivatives["forward"], implicit_derivatives["forward over reverse"]
    expected = np.einsum("j,jkl->kl", np.cos(delta), second) - np.einsum("j,jk,jl->kl", np.sin(delta), first, first)

    @jax.jit
    def everything(z: Any) -> Any:
        second, first = jax.jacfwd(lambda z: twice(jax.jacrev(total)(z)), has_aux=True)(z)
        return first, second, jax.grad(lambda v: jax.jacrev(total)(v).sum())(z)

    gradient, hessian, reverse = everything(z)
    DELTA.check(gradient, np.cos(delta) @ first)
    DELTA.check(hessian, expected)
    DELTA.check(reverse, expected.sum(axis=0))


@pytest.mark.slow
def test_derivatives_at_padded_markets_are_those_without_padding(implicit_derivatives: dict[str, np.ndarray]) -> None:
    values, *people = small_market(0)
    z = flatten(values)

    def padded(z: Any) -> Any:
        return implied_delta(z, *people, products=5, agents=10)

    @jax.jit
    def everything(z: Any) -> Any:
        second, first = jax.jacfwd(lambda z: twice(jax.jacrev(padded)(z)), has_aux=True)(z)
        return padded(z), first, second

    value, first, second = map(np.asarray, everything(z))
    pairs = (
        (value, delta_of(z, *people)),
        (first, implicit_derivatives["forward"]),
        (second, implicit_derivatives["forward over reverse"]),
    )
    for large, small in pairs:
        DELTA.check(large[:3], small)
        assert (large[3:] == 0).all()


@pytest.mark.slow
def test_derivatives_under_vmap_are_those_of_each_market() -> None:
    markets = [small_market(seed) for seed in range(3)]
    zs = np.stack([flatten(values) for values, *_ in markets])
    people = [np.stack([np.asarray(m[k]) for m in markets]) for k in (1, 2)]
    together = np.asarray(jax.jit(jax.vmap(jax.jacfwd(jax.jacfwd(implied_delta))))(zs, *people))
    for t in range(3):
        DELTA.check(together[t], second_order(zs[t], people[0][t], people[1][t])["forward over reverse"])


@jax.jit
def tangents_in_tastes(
    C: Any, direction: Any, observed: Any, X2: Any, weights: Any, availability: Any
) -> tuple[Any, Any, Any]:
    """Delta and its change as tastes move in a direction, and the change of shares that follows from both."""

    def delta(C: Any) -> Any:
        market = ObservedMarket(observed, X2, C, weights, availability)
        return invert_shares(market, logit_delta(observed), LIMITS).value

    solution, moved = jax.jvp(delta, (C,), (direction,))
    _, change = jax.jvp(lambda d, C: shares(d, X2, C, weights, availability), (solution, C), (moved, direction))
    return solution, moved, change


@pytest.mark.parametrize("label", ["negative weights", "weights sum to 0.154", "tiny shares", "small outside share"])
def test_derivatives_in_awkward_markets_solve_the_share_equation(label: str) -> None:
    """``ds/d(delta) d(delta) + ds/dC dC = 0``, with shares differentiated at the solution."""
    m = pad(MARKETS[label], J + 1, I + 2)
    observed, X2, C, weights, availability = (getattr(m, name) for name in FIELDS)
    direction = np.random.default_rng(5).normal(size=C.shape)

    solution, moved, change = map(
        np.asarray, tangents_in_tastes(*map(jnp.asarray, (C, direction, observed, X2, weights, availability)))
    )
    assert np.abs(change[:J] / m.shares[:J]).max() < 1e-10
    assert float(moved[J]) == 0.0
    ROUNDING.check(solution[J], 0.0)
