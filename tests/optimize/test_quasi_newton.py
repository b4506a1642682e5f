"""L-BFGS with Optax's directions, alone and in compiled loops."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from blpjax.exceptions import Status
from blpjax.optimize.quasi_newton import METHOD, QuasiNewtonState
from blpjax.optimize.stepwise import START_REDUCTIONS, Trial
from tests.support.optimizers import minimize_in_graph, trial

START = np.array([-1.2, 1.0, 0.5])
BEST = np.array([1.0, 1.0, -0.3])
STRICT = {"gtol": 1e-9}


def residuals(theta: Array) -> Array:
    """Rosenbrock's valley, and a third element that matters little."""
    return jnp.stack([10 * (theta[1] - theta[0] ** 2), 1 - theta[0], 0.01 * (theta[2] + 0.3), 0.02 * theta[2] + 0.006])


class Region(NamedTuple):
    """Where theta can be evaluated."""

    lower: Any = np.full(3, -np.inf)
    upper: Any = np.full(3, np.inf)

    @staticmethod
    def above(element: int, value: float) -> "Region":
        return Region(lower=np.where(np.arange(3) == element, value, -np.inf))

    @staticmethod
    def below(element: int, value: float) -> "Region":
        return Region(upper=np.where(np.arange(3) == element, value, np.inf))


EVERYWHERE = Region()


def minimise(start: Any, options: dict[str, Any], region: Region, offset: Any, units: Any) -> QuasiNewtonState:
    def evaluate(candidate: Array) -> Trial:
        r, J = residuals(candidate / units), jax.jacfwd(lambda theta: residuals(theta / units))(candidate)
        ok = ((candidate >= region.lower) & (candidate <= region.upper)).all()
        return trial(candidate, jnp.where(ok, r, jnp.nan), J, ok, offset)

    return minimize_in_graph(METHOD, evaluate, start * units, memory_size=5, **options)


compiled = jax.jit(minimise)


def run(
    start: np.ndarray,
    options: dict[str, float] | None = None,
    region: Region = EVERYWHERE,
    offset: float = 0.0,
    units: np.ndarray | None = None,
) -> QuasiNewtonState:
    """The method in a compiled loop, one program for all. `units` of theta, and an `offset` of the objective."""
    chosen = {"gtol": 1e-8, "maxiter": 1000.0} | (options or {})
    return jax.tree.map(np.asarray, compiled(start, chosen, region, offset, np.ones(3) if units is None else units))


def test_the_minimum_is_found() -> None:
    found = run(START, STRICT)
    assert (int(found.status), int(found.failures)) == (Status.CONVERGED, 0)
    np.testing.assert_allclose(found.theta, BEST, atol=1e-5)
    assert float(found.projected_gradient_norm) <= 1e-9 and int(found.iterations) < int(found.evaluations) < 100


def test_units_do_not_matter() -> None:
    plain, scaled = run(START), run(START, {"gtol": 1e-8}, units=np.array([1e-3, 1e4, 1e2]))
    np.testing.assert_allclose(scaled.theta, BEST * np.array([1e-3, 1e4, 1e2]), rtol=1e-3)
    assert int(scaled.evaluations) < 2 * int(plain.evaluations)


@pytest.mark.slow
def test_mapped_loops_end_where_single_ones_do() -> None:
    starts = np.stack([START, [2.0, -1.0, 0.0], BEST])
    chosen = {"gtol": STRICT["gtol"], "maxiter": 1000.0}
    together = jax.jit(jax.vmap(lambda start: minimise(start, chosen, EVERYWHERE, 0.0, np.ones(3))))(starts)
    for s, start in enumerate(starts):
        np.testing.assert_allclose(together.theta[s], run(start, STRICT).theta, rtol=1e-5)


def test_steps_into_failing_regions_are_shortened() -> None:
    found = run(START, region=Region.above(1, -0.1))
    assert int(found.status) == Status.CONVERGED and int(found.failures) > 0
    np.testing.assert_allclose(found.theta, BEST, atol=1e-4)


@pytest.mark.parametrize("limit, status", [(1.0, Status.CONVERGED), (-1.0, Status.NOT_FINITE)])
def test_starting_values_are_halved_until_they_can_be_evaluated(limit: float, status: Status) -> None:
    found = run(np.array([-4.8, 4.0, 8.0]), region=Region.below(2, limit))
    assert int(found.status) == status
    assert int(found.start_reductions) == (3 if limit > 0 else START_REDUCTIONS)
    if limit < 0:
        assert int(found.evaluations) == START_REDUCTIONS + 1 and np.isinf(found.projected_gradient_norm)


def test_no_progress_before_an_optimum_is_not_convergence() -> None:
    """Every other point fails: none along any direction can be evaluated."""
    found = run(START, region=Region(START, START))
    assert int(found.status) == Status.STALLED and (found.theta == START).all()


def test_creeping_toward_a_wall_is_given_up() -> None:
    """The way down leads straight into a region that cannot be evaluated."""
    found = run(START, region=Region.below(1, 1.05))
    assert int(found.status) == Status.STALLED and int(found.evaluations) < 300
    assert float(found.objective) < float(residuals(jnp.asarray(START)) @ residuals(jnp.asarray(START)))


def test_rounding_ends_the_method_as_what_it_is() -> None:
    """Where objectives of size 1e6 hide all changes, slopes decide; a tolerance of zero cannot be reached."""
    found = run(START, {"gtol": 0.0}, offset=1e6)
    assert int(found.status) == Status.ROUNDING_FLOOR and int(found.evaluations) < 200
    np.testing.assert_allclose(found.theta, BEST, atol=1e-6)


def test_iterations_are_limited() -> None:
    found = run(START, {"maxiter": 4.0})
    assert (int(found.status), int(found.iterations)) == (Status.MAX_EVALUATIONS, 4)
