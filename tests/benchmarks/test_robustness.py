"""Hard markets are solved, what is called solved is, and what has no solution is reported."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import robustness, stress
from benchmarks.robustness import Outcome
from benchmarks.stress import StressMarket
from blpjax.exceptions import Status, succeeded
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.contraction import ObservedMarket, invert_shares, logit_delta
from blpjax.kernels.fixed_point import FixedPoint, continued
from blpjax.kernels.shares import nests_of, shares

#: All markets but those with many products, in one shape.
PRODUCTS, AGENTS = 24, 80

#: One market of each family.
MARKETS = [m for m in stress.stress_markets(1) if m.shares.size <= PRODUCTS]

#: No market whose log shares are further off is solved, whatever a method says.
LARGEST = 1e-10

LIMITS = FixedPointLimits()


def padded(array: Any, *shape: int, value: float = 0.0) -> np.ndarray:
    result = np.full(shape, value, np.asarray(array).dtype)
    result[tuple(slice(n) for n in np.shape(array))] = array
    return result


def invert(markets: list[StressMarket], method: str = "anderson", limits: FixedPointLimits = LIMITS) -> FixedPoint:
    """Invert markets at once, all with nests or all without."""
    nested = markets[0].rho > 0
    assert all((m.rho > 0) == nested for m in markets)
    arrays = [
        (
            padded(m.shares, PRODUCTS),
            padded(m.X2, PRODUCTS, stress.WIDTH),
            padded(m.C, stress.WIDTH, AGENTS),
            padded(m.weights, AGENTS),
            padded(np.ones((m.shares.size, 1)), PRODUCTS, 1),
            padded(m.groups, PRODUCTS, value=-1),
            np.asarray(m.rho),
        )
        for m in markets
    ]
    return _invert(method, nested, [jnp.asarray(np.stack(a)) for a in zip(*arrays, strict=True)], limits)


def _one(method: str, nested: bool, limits: FixedPointLimits, *arrays: Any) -> FixedPoint:
    observed, X2, C, weights, availability, codes, rho = arrays
    nests = nests_of(codes, jnp.broadcast_to(rho, (4,))) if nested else None
    market = ObservedMarket(observed, X2, C, weights, availability, nests)
    return invert_shares(market, logit_delta(observed, nests), limits, FixedPointMethod(method))


def _all(method: str, nested: bool, arrays: Any, limits: FixedPointLimits) -> FixedPoint:
    return jax.vmap(lambda *values: _one(method, nested, limits, *values))(*arrays)


_invert = jax.jit(_all, static_argnums=(0, 1))


def gaps_of(markets: list[StressMarket], found: FixedPoint) -> np.ndarray:
    """Largest differences of log shares, recomputed in extended precision."""
    values = np.asarray(found.value)
    return np.array([stress.worst_gap(m, values[t, : m.shares.size]) for t, m in enumerate(markets)])


@pytest.mark.parametrize(
    ("method", "nested"),
    [
        ("anderson", False),
        pytest.param("newton", False, marks=pytest.mark.slow),
        pytest.param("squarem", False, marks=pytest.mark.slow),
        pytest.param("anderson", True, marks=pytest.mark.slow),
        pytest.param("newton", True, marks=pytest.mark.slow),
    ],
)
def test_hard_markets_are_solved_and_success_is_true(method: str, nested: bool) -> None:
    markets = [m for m in MARKETS if (m.rho > 0) == nested]
    found = invert(markets, method)
    solved, gaps = succeeded(np.asarray(found.status)), gaps_of(markets, found)
    assert (gaps[solved] <= LARGEST).all()
    assert solved.any()
    if method != "squarem":
        failed = [m.family for m, good in zip(markets, solved, strict=True) if not good]
        assert not failed
        assert found.evaluations.max() <= 1000


def test_stress_markets_are_what_their_names_say() -> None:
    by_name = {m.family: m for m in stress.stress_markets(1)}
    assert by_name["shares 1e-14"].shares.min() == 1e-14
    assert 1 - by_name["outside share 1e-8, sigma x 50"].shares.sum() == pytest.approx(1e-8, rel=1e-3)
    assert by_name["negative weights"].weights.min() < 0
    assert {m.shares.size for m in by_name.values()} >= {1, 300}
    assert by_name["rho = 0.99"].rho == 0.99
    assert np.bincount(by_name["rho = 0.99"].groups).min() == 1
    assert all(m.shares.min() >= 1e-14 * (1 - 1e-9) and 0 < 1 - m.shares.sum() for m in by_name.values())


def test_shares_in_extended_precision_are_those_of_the_library() -> None:
    for m in MARKETS:
        if m.family not in ("shares 1e-14", "rho = 0.99", "rho = 0.99, sigma x 10"):
            continue
        nests = nests_of(jnp.asarray(m.groups), jnp.full(4, m.rho)) if m.rho else None
        delta = np.linspace(-1.0, 1.0, m.shares.size)
        arrays = (jnp.asarray(a) for a in (delta, m.X2, m.C, m.weights, np.ones((m.shares.size, 1))))
        ours = shares(*arrays, nests)
        theirs = stress.log_shares(m, delta)
        np.testing.assert_allclose(np.asarray(ours), np.exp(theirs[:-1]).astype(float), rtol=1e-11, atol=1e-300)
        assert float(np.exp(theirs).sum()) == pytest.approx(m.weights.sum(), rel=1e-12)


@pytest.mark.parametrize("method", ["anderson", pytest.param("newton", marks=pytest.mark.slow)])
def test_shares_without_a_solution_are_reported_as_failures(method: str) -> None:
    """Inside shares of a sum above one, next to a market that has a solution."""
    markets = [m for m in MARKETS if m.rho == 0]
    impossible = [dataclasses.replace(m, shares=m.shares * 1.2 / m.shares.sum()) for m in markets[1:]]
    found = invert([markets[0], *impossible], method)
    assert succeeded(np.asarray(found.status)).tolist() == [True] + [False] * len(impossible)
    assert (np.asarray(found.residual)[1:] > LARGEST).all()


def test_the_limit_on_evaluations_holds_for_all_stages_together() -> None:
    markets = [m for m in MARKETS if m.rho == 0]
    needed = np.asarray(invert(markets).evaluations)
    most = int(needed.max())
    found = invert(markets, limits=LIMITS._replace(max_evaluations=most - 1))
    assert found.status[needed.argmax()] == Status.MAX_EVALUATIONS
    assert np.array_equal(found.evaluations, np.minimum(needed, most - 1))


def test_a_market_that_needs_continuation_has_implicit_derivatives() -> None:
    """``ds/d(delta) d(delta) + ds/dC dC = 0`` at the solution, relative to shares."""
    (m,) = [m for m in MARKETS if m.family == "epsilon_scale = 0.0001"]
    arrays = m.shares, m.X2, m.weights, np.ones((m.shares.size, 1))
    observed, X2, weights, availability = (jnp.asarray(a) for a in arrays)
    direction = jnp.asarray(1e-4 * np.random.default_rng(5).normal(size=m.C.shape))

    def delta(C: Any) -> Any:
        market = ObservedMarket(observed, X2, C, weights, availability)
        return invert_shares(market, logit_delta(observed), LIMITS, FixedPointMethod("newton")).value

    solution, moved = jax.jit(lambda C: jax.jvp(delta, (C,), (direction,)))(jnp.asarray(m.C))
    assert stress.worst_gap(m, np.asarray(solution)) <= LARGEST
    of_shares = jax.jit(lambda d, C, dd: jax.jvp(lambda d, C: shares(d, X2, C, weights, availability), (d, C), dd))
    _, change = of_shares(solution, jnp.asarray(m.C), (moved, direction))
    _, alone = of_shares(solution, jnp.asarray(m.C), (moved, jnp.zeros_like(direction)))
    assert np.abs(np.asarray(change)).max() < 1e-8 * np.abs(np.asarray(alone)).max()


def test_continuation_follows_solutions_of_problems_that_cannot_be_solved_directly() -> None:
    """Problem t has the root 100 t, and is solved only from closer than 10."""

    def solve_at(number: Any, start: Any, limits: FixedPointLimits) -> FixedPoint:
        near = jnp.abs(start - 100.0 * number).max() < 10.0
        gap = jnp.where(near, 0.0, 1.0)
        status = jnp.where(near, int(Status.CONVERGED), int(Status.STALLED))
        one = jnp.ones((), int)
        return FixedPoint(jnp.where(near, 100.0 * number, start), status, one, one, gap)

    @jax.jit
    def run(step: Any, limit: Any) -> FixedPoint:
        origin = jnp.zeros(1)
        return continued(solve_at, origin, origin, step, FixedPointLimits(max_evaluations=limit))

    found = run(0.01, 1000)
    assert found.status == Status.CONVERGED and float(found.value[0]) == 100.0
    # one direct attempt, problem zero, and 0.01, 0.03, 0.07, 0.15, ... by a line through the last two
    assert int(found.evaluations) == 2 + 6
    assert run(1.0, 1000).status == Status.CONVERGED
    assert run(0.01, 5).status in (Status.MAX_EVALUATIONS, Status.STALLED) and int(run(0.01, 5).evaluations) == 5


def test_continuation_that_cannot_begin_ends_at_once() -> None:
    def solve_at(number: Any, start: Any, limits: FixedPointLimits) -> FixedPoint:
        one = jnp.ones((), int)
        return FixedPoint(start, one * int(Status.STALLED), one, one, jnp.asarray(3.0) - number)

    found = continued(solve_at, jnp.ones(1), jnp.zeros(1), jnp.asarray(0.1), FixedPointLimits())
    assert found.status == Status.STALLED and int(found.evaluations) == 2
    assert float(found.value[0]) == 1.0 and float(found.residual) == 2.0


def test_the_command_fails_where_a_success_was_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def invert_badly(method: str, markets: list[StressMarket]) -> Outcome:
        gaps = np.full(len(markets), 1e-12)
        gaps[0] = 2e-10
        return Outcome(method, gaps, np.ones(len(markets), bool), np.full(len(markets), 7), 0.5)

    monkeypatch.setattr(robustness, "invert", invert_badly)
    assert robustness.main(["--number", "1", "--methods", "blpjax default"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: reported as solved with log shares further off than 1e-10: {'blpjax default': 1}" in printed
    assert "| blpjax default | 7, 7 | 19 of 20 (95%) | 1e-12 | 19 | 1 | 0.50 |" in printed


@pytest.mark.slow
def test_the_command_compares_methods_on_the_same_markets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {name: stress.FAMILIES[name] for name in ("shares 1e-14", "outside share 1e-8")}
    monkeypatch.setattr(stress, "FAMILIES", few)
    assert robustness.main(["--number", "1", "--methods", "blpjax default", "PyBLP lm"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("2 of 2 (100%)") == 2
