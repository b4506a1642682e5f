"""Blocks of moments: those of users behave like the library's, in estimation, covariances, derivatives and refusals."""

from functools import cache
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import blpjax
from blpjax.objective.blocks import CovarianceMoments
from tests.support import joint
from tests.tolerances import CENTRAL_DIFFERENCE, ESTIMATES, FIXED_PARAMETERS, LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")

START: dict[str, Any] = {"sigma": np.diag([0.5, 0.5]), "pi": [[0.2], [0]], "beta": [None, -1.5, None, None]}


class MeanMarkup(blpjax.MomentBlock):
    """The mean of ``p - c`` is what an industry study says. The recipe: two fields and a method."""

    name: ClassVar[str] = "mean markup"
    instruments: Float[Array, "N M"]
    value: Float[Array, ""]

    def residuals(self, point: blpjax.Point) -> Array:
        return point.prices - point.costs - self.value


class SurveyedMarkup(blpjax.SampleMoments):
    """The same from an independent survey, whose sampling variance is known."""

    value: Float[Array, ""]
    variance: Float[Array, ""]
    size: ClassVar[int] = 1

    def values(self, point: blpjax.Point) -> Array:
        return jnp.mean(point.prices - point.costs)[None] - self.value

    def covariances(self, point: blpjax.Point) -> Array:
        return self.variance[None, None]


class OwnCovariances(blpjax.MomentBlock):
    """The library's covariance moments, written again by a user."""

    instruments: Float[Array, "N M"]

    def residuals(self, point: blpjax.Point) -> Array:
        return point.xi * point.omega


@cache
def problem() -> blpjax.Problem:
    return joint.Model().build(blpjax, *joint.tables())


@cache
def logit() -> blpjax.Problem:
    """The same products without random coefficients."""
    return joint.Model(X2=None, demographics=None).build(blpjax, joint.tables()[0], None)


def markup(results: Any) -> float:
    return float((problem().products.prices - results.tilde_costs).mean())


def mean_markup(value: float) -> MeanMarkup:
    return MeanMarkup(jnp.ones((problem().N, 1)), jnp.asarray(value))


@cache
def without() -> Any:
    return problem().solve(**START, method="1s", check_optimality="gradient")


def test_a_block_of_ones_own_moves_estimates_to_what_it_says() -> None:
    """With a weight that nothing can compete with, the model has the mean markup that the block fixes."""
    options = {"beta": START["beta"], "method": "1s", "check_optimality": "gradient"}
    plain = logit().solve(**options, optimization=blpjax.Optimization("return"))
    value, M = markup(plain) + 0.05, len(plain.W)
    W = np.zeros((M + 1, M + 1))
    W[:M, :M], W[M, M] = plain.W, 1e6
    found = logit().solve(**options, W=W, moment_blocks=[mean_markup(value)])
    assert found.converged and len(found.moments) == M + 1
    assert abs(markup(found) - value) < 1e-3 < abs(markup(plain) - value)
    np.testing.assert_allclose(found.moments[-1, 0], markup(found) - value, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_moments_of_a_block_enter_two_steps_and_standard_errors() -> None:
    block = mean_markup(markup(without()))
    found = problem().solve(**START, moment_blocks=[block])
    costs = np.asarray(found.tilde_costs[:, 0])
    contributions = problem().products.prices[:, 0] - costs - float(block.value)
    assert found.converged and found.run_hansen_test() > 0
    LINEAR_ALGEBRA.check(found.moments_covariances[-1, -1], contributions.var())
    # the sandwich of the step, by NumPy
    G, W, S, N = found.moments_jacobian, found.W, found.moments_covariances, problem().N
    bread = np.linalg.inv(G.T @ W @ G)
    errors = np.sqrt(np.diag(bread @ G.T @ W @ S @ W @ G @ bread) / N)
    FIXED_PARAMETERS.check(found.estimates()["se"], errors)


@pytest.mark.slow
def test_derivatives_with_a_block_are_differences() -> None:
    functions = problem().functions(**START, moment_blocks=[mean_markup(0.4)])
    theta, step = functions.theta, 1e-5
    gradient = jax.grad(functions.objective)(theta)
    sides = [jax.vmap(functions.objective)(theta[None] + sign * step * jnp.eye(theta.size)) for sign in (1, -1)]
    CENTRAL_DIFFERENCE.check(gradient, (sides[0] - sides[1]) / (2 * step))
    # the row of the block in the moments' Jacobian, where no parameter is concentrated out
    held = START | {"beta": np.array([-0.5, -1.5, 1.0, 0.5]), "gamma": [0.8, 0.5, 0.3]}
    options = {"method": "1s", "optimization": blpjax.Optimization("return"), "check_optimality": "gradient"}
    found = problem().solve(**held, **options, moment_blocks=[mean_markup(0.4)])
    moments = problem().functions(**held, moment_blocks=[mean_markup(0.4)])
    CENTRAL_DIFFERENCE.check(found.moments_jacobian, jax.jacfwd(moments.moments)(moments.theta))


@pytest.mark.slow
def test_covariance_moments_can_be_written_by_users() -> None:
    products, agents = joint.tables()
    Z = np.column_stack([np.ones(len(products)), products["x"]])
    columns = {f"covariance_instruments{k}": z for k, z in enumerate(Z.T)}
    theirs = joint.Model().build(blpjax, products.assign(**columns), agents)
    options = {"method": "1s", "optimization": blpjax.Optimization("return"), "check_optimality": "gradient"}
    known = theirs.solve(**START, **options)
    assert isinstance(theirs.model_data.more[0], CovarianceMoments)
    own = problem().solve(**START, **options, moment_blocks=[OwnCovariances(jnp.asarray(Z))])
    for name in ("objective", "gradient", "moments", "W", "moments_covariances", "updated_W", "beta"):
        FIXED_PARAMETERS.check(getattr(own, name), getattr(known, name), name)


@pytest.mark.slow
def test_moments_of_another_sample_are_weighted_by_its_variance() -> None:
    """They have no weight before W is updated at the starting values, which happens by default."""
    value, variance = markup(without()) + 0.02, 1e-6
    block = SurveyedMarkup(jnp.asarray(value), jnp.asarray(variance))
    found = problem().solve(**START, method="1s", moment_blocks=[block], check_optimality="gradient")
    first = found.last_results
    assert found.converged and first.step == 0
    assert (first.W[-1] == 0).all()
    LINEAR_ALGEBRA.check(found.W[-1, -1], 1 / (problem().N * variance))
    assert (found.W[-1, :-1] == 0).all() and (found.moments_covariances[-1, :-1] == 0).all()
    assert abs(markup(found) - value) < abs(markup(without()) - value) / 2


@pytest.mark.slow
def test_starts_and_differences_see_blocks() -> None:
    block = mean_markup(markup(without()) + 0.01)
    options = {"method": "1s", "check_optimality": "gradient", "moment_blocks": [block]}
    plain = problem().solve(**START, **options)
    tried = problem().solve(**START, **options, starts=3)
    ESTIMATES.check(tried.objective, plain.objective)
    differences = problem().solve(
        **START, **options, finite_differences=True, optimization=blpjax.Optimization("return")
    )
    exact = problem().solve(**START, **options, optimization=blpjax.Optimization("return"))
    np.testing.assert_allclose(differences.gradient, exact.gradient, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(differences.moments_jacobian, exact.moments_jacobian, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        (lambda: mean_markup(0.4), TypeError, "moment_blocks must be a list of blpjax.MomentBlock instances"),
        (lambda: ["markup"], TypeError, r"moment_blocks\[0\] must be a blpjax.MomentBlock, not str"),
        (
            lambda: [MeanMarkup(jnp.ones((3, 1)), jnp.asarray(0.4))],
            ValueError,
            r"moment_blocks\[0\] \(mean markup\) must have instruments with a row of finite numbers for each of the",
        ),
    ],
)
def test_what_is_no_block_is_refused(blocks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        problem().solve(**START, moment_blocks=blocks())


def test_blocks_that_need_a_first_update_get_it_or_say_so() -> None:
    block = SurveyedMarkup(jnp.asarray(0.4), jnp.asarray(1e-4))
    with pytest.raises(ValueError, match="initial_update=False needs a weighting matrix W"):
        problem().solve(**START, moment_blocks=[block], initial_update=False)


def test_what_cannot_account_for_blocks_refuses_their_results() -> None:
    options = {"method": "1s", "optimization": blpjax.Optimization("return"), "check_optimality": "gradient"}
    found = logit().solve(beta=START["beta"], **options, moment_blocks=[mean_markup(0.4)])
    with pytest.raises(NotImplementedError, match="Results with micro_moments or moment_blocks cannot be"):
        found.reestimate(2)


def test_costs_of_a_point_need_a_supply_side() -> None:
    demand = joint.Model(X3=None).build(blpjax, *joint.tables())
    block = MeanMarkup(jnp.ones((demand.N, 1)), jnp.asarray(0.4))
    with pytest.raises(ValueError, match="with a supply side only"):
        demand.solve(sigma=START["sigma"], pi=START["pi"], moment_blocks=[block])


class ByNumpy(MeanMarkup):
    """A block that NumPy computes."""

    name: ClassVar[str] = "by NumPy"

    def residuals(self, point: blpjax.Point) -> Array:
        return jnp.asarray(np.array(point.costs)) - self.value


def test_blocks_that_numpy_computes_are_refused_in_words() -> None:
    block = ByNumpy(jnp.ones((problem().N, 1)), jnp.asarray(0.5))
    with pytest.raises(TypeError, match="moments of the block 'by NumPy' must consist of operations of JAX"):
        problem().solve(**START, method="1s", moment_blocks=[block])
