"""Projections off fixed effects inside compiled programs, beside least squares on indicators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.objective.absorption import build_projection
from tests.tolerances import LINEAR_ALGEBRA


@pytest.mark.parametrize("sizes", [(), (7,), (5, 9), (4, 6, 3)], ids=str)
def test_residuals_are_those_of_least_squares(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(sizes))
    ids = np.column_stack([rng.integers(0, size, 60) for size in sizes]) if sizes else np.zeros((60, 0), int)
    values = rng.normal(size=(60, 2))
    projection = build_projection(ids)
    project = jax.jit(lambda v: projection(v))
    indicators = np.hstack([np.zeros((60, 1)), *(column[:, None] == np.unique(column) for column in ids.T)])
    expected = values - indicators @ np.linalg.lstsq(indicators, values)[0]
    LINEAR_ALGEBRA.check(project(jnp.asarray(values)), expected)
    LINEAR_ALGEBRA.check(project(jnp.asarray(values[:, 0])), expected[:, 0])


@pytest.mark.parametrize("sizes", [(7,), (5, 9), (4, 6, 3)], ids=str)
def test_weighted_residuals_are_those_of_weighted_least_squares(sizes: tuple[int, ...]) -> None:
    """Some levels do not count at all; rows that do not count have no residuals that matter."""
    rng = np.random.default_rng(len(sizes))
    ids = np.column_stack([rng.integers(0, size, 60) for size in sizes])
    weights = rng.integers(0, 3, 60).astype(float) * (ids[:, 0] != 2)
    values, root = rng.normal(size=(60, 2)), np.sqrt(weights)[:, None]
    indicators = np.hstack([column[:, None] == np.unique(column) for column in ids.T]).astype(float)
    expected = values - indicators @ np.linalg.lstsq(root * indicators, root * values)[0]
    project = build_projection(ids, weights)
    found = np.asarray(jax.jit(lambda v: project(v))(values))
    LINEAR_ALGEBRA.check(found[weights > 0], expected[weights > 0])
    assert np.isfinite(found).all()


def test_its_transpose_is_itself() -> None:
    rng = np.random.default_rng(0)
    ids, v = np.column_stack([rng.integers(0, 5, 40), rng.integers(0, 3, 40)]), jnp.asarray(rng.normal(size=40))
    project = build_projection(ids)
    back, forth = jax.jit(lambda v: (jax.linear_transpose(project, v)(v)[0], project(v)))(v)
    LINEAR_ALGEBRA.check(back, forth)
