"""Elements held by bounds, alike for NumPy's and JAX's arrays."""

from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.model.parameters import Bounds
from blpjax.optimize.bounds import is_at_bound, is_held, mask, project_gradient

# at the lower bound, pushed against it and away from it; the same at the upper bound; inside; fixed
THETA = np.array([0.0, 0.0, 1.0, 1.0, 0.5, 2.0])
GRADIENT = np.array([3.0, -3.0, -3.0, 3.0, 3.0, -0.5])
BOUNDS = Bounds(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 2.0]), np.array([1.0, 1.0, 1.0, 1.0, 1.0, 2.0]))


@pytest.mark.parametrize("library", [np, jnp])
def test_bounds_hold_what_descent_pushes_against_them(library: ModuleType) -> None:
    theta, gradient, bounds = library.asarray(THETA), library.asarray(GRADIENT), Bounds(*map(library.asarray, BOUNDS))
    held = is_held(theta, gradient, bounds)
    assert held.tolist() == [True, False, True, False, False, True]
    assert is_held(theta, gradient, bounds, force=3.0).tolist() == [False] * 5 + [True]
    assert is_at_bound(theta, bounds).tolist() == [True, True, True, True, False, True]
    projected = project_gradient(theta, gradient, bounds)
    assert isinstance(projected, type(theta)) and projected.tolist() == [0.0, -3.0, 0.0, 3.0, 3.0, 0.0]

    # descent within bounds goes where the projected gradient says
    moved = library.clip(theta - 1e-3 * gradient, *bounds) - theta
    np.testing.assert_allclose(moved, -1e-3 * projected, atol=1e-15)

    H = gradient[:, None] * gradient[None, :] + library.eye(6)
    reduced = mask(H, ~held, diagonal=7.0)
    free = np.flatnonzero(~np.asarray(held))
    np.testing.assert_array_equal(np.asarray(reduced)[np.ix_(free, free)], np.asarray(H)[np.ix_(free, free)])
    assert np.asarray(reduced).sum() == np.asarray(H)[np.ix_(free, free)].sum() + 7.0 * 3
