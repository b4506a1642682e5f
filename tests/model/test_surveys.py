"""What the model says of surveys, next to loops over agents that remove products, and its derivatives."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax.economy import surveys
from blpjax.economy.surveys import build_surveys
from blpjax.model.surveys import Parts, part_covariances, part_values, survey_sums
from blpjax.objective.programs import on_host
from tests.support.surveys import PI, RHO, SHAPES, SIGMA, small, survey_of, tastes
from tests.tolerances import CENTRAL_DIFFERENCE, ROUNDING

#: All shapes with everything and with nothing else; the combinations between these are slow.
COMBINATIONS = [
    pytest.param(shape, nested, grouped, marks=() if nested == grouped else pytest.mark.slow)
    for shape in SHAPES
    for nested in (False, True)
    for grouped in (False, True)
]


@pytest.mark.parametrize("most", [0, 16], ids=["dense", "factors"])
@pytest.mark.parametrize(("shape", "nested", "grouped"), COMBINATIONS)
def test_sums_are_those_of_loops(
    shape: Sequence[int], nested: bool, grouped: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "MOST_FACTORS", most)
    economy, (parts, arrays) = small(), survey_of(shape, grouped)
    built = on_host(build_surveys(economy.markets(nested), economy.economy(nested), parts))
    (survey,) = built.buckets[0].surveys
    assert (survey.dense is None) == (most > 0) and survey.second == (len(shape) > 1)
    sums = survey_sums(built, Parts.of(parts), on_host(economy.economy(nested)), tastes(nested), economy.delta)
    ROUNDING.check(sums[0], economy.sums(shape, nested, grouped, arrays))


@pytest.mark.parametrize("nested", [False, True])
def test_second_choices_add_up_to_first_ones(nested: bool) -> None:
    """Whoever chooses j first chooses something else second: the outside good is always left."""
    economy = small()
    ones = blpjax.MicroDataset("d", 1, lambda t, p, a: np.ones((a.size, p.size, 1 + p.size)))
    first = blpjax.MicroDataset("f", 1, lambda t, p, a: np.ones((a.size, p.size)))
    x = blpjax.MicroPart("x", ones, lambda t, p, a: np.tile(p.X2[:, :1], (a.size, 1, 1 + p.size)))
    y = blpjax.MicroPart("y", first, lambda t, p, a: np.tile(p.X2[:, 0], (a.size, 1)))
    built = on_host(build_surveys(economy.markets(nested), economy.economy(nested), [x, y]))
    second, alone = survey_sums(
        built, Parts.of([x, y]), on_host(economy.economy(nested)), tastes(nested), economy.delta
    )
    ROUNDING.check(second, alone)


@pytest.mark.parametrize("chunks", [2, 3, {"s": 4}])
def test_chunks_change_nothing(chunks: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where weights are constant within chunks, which PyBLP takes for a share that does not move."""
    economy, (parts, _) = small(), survey_of((1, 1), True)
    found = []
    for number in (1, chunks):
        monkeypatch.setattr(blpjax.options, "micro_computation_chunks", number)
        built = on_host(build_surveys(economy.markets(True), economy.economy(True), parts))
        where = on_host(economy.economy(True))
        found.append(survey_sums(built, Parts.of(parts), where, tastes(True), economy.delta)[0])
    ROUNDING.check(*found)


def test_negative_weights_count() -> None:
    """As in sparse grids: the mean of x over buyers is fixed by market shares, whatever weights agents have."""
    economy = small()._replace(weights=np.array([0.6, 0.5, -0.2, 0.1, 0.9, 0.4, -0.3]))
    buyers = blpjax.MicroDataset("d", 1, lambda t, p, a: np.ones((a.size, p.size)))
    part = blpjax.MicroPart("x", buyers, lambda t, p, a: np.tile(p.X2[:, 0], (a.size, 1)))
    built = on_host(build_surveys(economy.markets(False), economy.economy(False), [part]))
    sums = survey_sums(built, Parts.of([part]), on_host(economy.economy(False)), tastes(False), economy.delta)
    shares, x = np.zeros(8), economy.X2[:, 0]
    for t, (rows, people) in enumerate(zip(economy.products.rows, economy.agents.rows, strict=True)):
        for i, person in enumerate(people):
            shares[rows] += economy.weights[person] * economy.probabilities(t, i, False)[1:].astype(float)
    ROUNDING.check(part_values(sums, Parts.of([part])), [shares @ x / shares.sum()])


@pytest.mark.parametrize(
    ("shape", "nested", "most"),
    [
        pytest.param((0,), True, 16, marks=pytest.mark.slow),
        ((0, 1), False, 0),
        pytest.param((1,), False, 16, marks=pytest.mark.slow),
        pytest.param((1,), False, 0, marks=pytest.mark.slow),
        pytest.param((1, 1), True, 16, marks=pytest.mark.slow),
    ],
)
def test_derivatives_are_differences(
    shape: Sequence[int], nested: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of means of parts in tastes and mean utilities, to second order."""
    monkeypatch.setattr(surveys, "MOST_FACTORS", most)
    economy, (parts, _) = small(), survey_of(shape, True)
    where, built = economy.economy(nested), build_surveys(economy.markets(nested), economy.economy(nested), parts)
    at = np.concatenate([SIGMA.ravel(), PI.ravel(), RHO if nested else np.zeros(0), economy.delta])
    start = 4 + (RHO.size if nested else 0)

    @jax.jit
    def values(theta: jax.Array) -> jax.Array:
        own = tastes(nested, theta[:2, None], theta[2:4, None], theta[4:start])
        return part_values(survey_sums(built, Parts.of(parts), where, own, theta[start:]), Parts.of(parts))

    slopes = jax.jit(jax.jacfwd(values))
    step = 1e-5
    sides = [np.stack([np.asarray(values(at + sign * e)) for e in step * np.eye(at.size)], axis=-1) for sign in (1, -1)]
    CENTRAL_DIFFERENCE.check(slopes(at), (sides[0] - sides[1]) / (2 * step))
    ROUNDING.check(jax.jit(jax.jacrev(values))(at), slopes(at))
    direction = np.linspace(-1, 1, at.size)
    second = jax.jit(lambda theta: jax.jvp(jax.jacrev(values), (theta,), (jnp.asarray(direction),))[1])(at)
    moved = [np.asarray(slopes(at + sign * step * direction)) for sign in (1, -1)]
    CENTRAL_DIFFERENCE.check(second, (moved[0] - moved[1]) / (2 * step))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(0,), (0, 1)])
def test_derivatives_are_differences_where_markets_are_mapped_one_by_one(
    shape: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blpjax.model.surveys.cached_elements", lambda: 1)
    test_derivatives_are_differences(shape, False, 16, monkeypatch)


@pytest.mark.parametrize(
    ("shape", "nested", "most"),
    [
        ((1,), False, 16),
        pytest.param((1,), False, 0, marks=pytest.mark.slow),
        ((1, 1), True, 0),
        pytest.param((1, 1), True, 16, marks=pytest.mark.slow),
    ],
)
def test_covariances_are_those_of_respondents(
    shape: Sequence[int], nested: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weighted by the probability of each cell to be that of a respondent, computed one cell after the other."""
    monkeypatch.setattr(surveys, "MOST_FACTORS", most)
    economy, (parts, arrays) = small(), survey_of(shape, True)
    built = build_surveys(economy.markets(nested), economy.economy(nested), parts)
    where = economy.economy(nested)

    @jax.jit
    def covariances(delta: jax.Array) -> jax.Array:
        return part_covariances(built, Parts.of(parts), where, tastes(nested), delta)

    found = covariances(jnp.asarray(economy.delta))
    q, v = [], []
    for t, (weights, *values) in arrays.items():
        for i, person in enumerate(economy.agents.rows[t]):
            s = economy.joint(t, i, nested, True) if len(shape) > 1 else economy.probabilities(t, i, nested)
            s = s[tuple(slice(1 - among, None) for among in shape)].astype(float)
            q.append((economy.weights[person] * s * weights[i]).ravel())
            v.append(np.array([value[i].ravel() for value in values]))
    ROUNDING.check(found, np.cov(np.concatenate(v, axis=1), aweights=np.concatenate(q), bias=True))
