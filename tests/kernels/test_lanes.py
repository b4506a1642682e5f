"""Loops in groups of lanes: each ends as if it were alone, and those that take long do not hold up the others."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.exceptions import Status
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels import lanes
from blpjax.kernels.fixed_point import FixedPoint, iterate
from blpjax.kernels.lanes import FIRST_EVALUATIONS, solve_lanes

LIMITS = FixedPointLimits(atol=1e-13, max_evaluations=1000)
#: Some loops end at once, some before the first limit, some after it, and two never.
SLOPES = np.array([[0.0, 0.5, 0.95, 1.0], [0.9, -0.5, 0.93, 0.2], [-1.0, 0.3, 0.6, 0.94]])


def solve(arguments: tuple[Any, Any], limits: FixedPointLimits) -> FixedPoint:
    """``x = 1 + slope x`` for two numbers, from `start`."""
    slope, start = arguments
    return iterate(FixedPointMethod("simple"), lambda x: 1.0 + slope * x, start, limits)


@jax.jit
def alone(slope: float, start: np.ndarray) -> FixedPoint:
    return solve((slope, start), LIMITS)


def by_lanes(slope: Any, start: Any, limits: FixedPointLimits = LIMITS) -> FixedPoint:
    return solve_lanes(solve, (slope, start), limits, elements=2)


@pytest.mark.parametrize("numbers", [2, pytest.param(4, marks=pytest.mark.slow), 2**10])
def test_lanes_of_maps_end_as_if_they_were_alone(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"_ON_CPUS": numbers, "_WITHIN": numbers, "_GROUPS": 1}.items():
        monkeypatch.setattr(lanes, name, number)
    starts = np.linspace(-1, 1, 8).reshape(4, 2)
    # slopes have both axes, starts only that of columns
    found = jax.jit(jax.vmap(jax.vmap(by_lanes), (0, None)))(jnp.asarray(SLOPES), jnp.asarray(starts))
    assert found.value.shape == (3, 4, 2)
    for (i, j), slope in np.ndenumerate(SLOPES):
        expected = alone(slope, starts[j])
        assert found.status[i, j] == expected.status, slope
        # rounding may be another one in programs of many lanes
        assert abs(found.evaluations[i, j] - expected.evaluations) <= 2, slope
        np.testing.assert_allclose(found.value[i, j], expected.value, rtol=1e-12)
    evaluations = np.asarray(found.evaluations)
    assert (evaluations > FIRST_EVALUATIONS).sum() > 2 and (evaluations < FIRST_EVALUATIONS).sum() > 2
    failed = np.asarray(found.status) == Status.MAX_EVALUATIONS
    assert failed.tolist() == (np.abs(SLOPES) == 1).tolist() and (evaluations[failed] == 1000).all()


def test_smaller_limits_are_kept() -> None:
    few = LIMITS._replace(max_evaluations=5)
    found = jax.jit(jax.vmap(partial(by_lanes, limits=few), (0, None)))(SLOPES.ravel(), np.ones(2))
    assert found.evaluations.max() == 5 and (found.status == Status.MAX_EVALUATIONS).sum() > 6


def test_lanes_that_take_long_do_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where the map is evaluated: a group of four lanes runs to the limit, not all thirty-two."""
    monkeypatch.setattr(lanes, "_ON_CPUS", 8)
    count = {"evaluations": 0}

    def counted(arguments: tuple[Any, Any], limits: FixedPointLimits) -> FixedPoint:
        slope, start = arguments

        def image(x: Any) -> Any:
            jax.debug.callback(lambda _: count.update(evaluations=count["evaluations"] + 1), x[0])
            return 1.0 + slope * x

        return iterate(FixedPointMethod("simple"), image, start, limits)

    slopes = jnp.where(jnp.arange(32) == 7, 1.0, 0.1)
    found = jax.jit(jax.vmap(lambda slope: solve_lanes(counted, (slope, jnp.ones(2)), LIMITS, 2)))(slopes)
    jax.effects_barrier()
    assert found.evaluations[7] == 1000 and found.status[7] == Status.MAX_EVALUATIONS
    assert 1000 <= count["evaluations"] <= 4 * (1000 + FIRST_EVALUATIONS) + 32 * 30
