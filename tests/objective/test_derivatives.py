"""The objective as a function of theta: two orders of derivatives, no callbacks or loops over markets, few programs."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax.exceptions import succeeded
from blpjax.machine.compilation import forget_programs
from blpjax.objective.functions import ModelFunctions
from blpjax.objective.moments import GMM
from tests.support.economies import tables
from tests.support.programs import compilations
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, FIXED_PARAMETERS, SECOND_CENTRAL_DIFFERENCE, UNROLLED

pytestmark = pytest.mark.usefixtures("several_buckets", "quiet")

PRODUCTS, AGENTS = [4, 12, 4, 11, 4, 12], [15, 15, 14, 15, 15, 15]
SIGMA, PI, BETA = np.diag([0.4, 0.6]), np.array([[0.3], [-0.4]]), [None, -1.4, None]


def build(seed: int, products: list[int] = PRODUCTS, agents: list[int] = AGENTS) -> blpjax.Problem:
    formulations = (blpjax.Formulation("1 + prices + x"), blpjax.Formulation("1 + x"))
    product_data, agent_data = tables(seed, products, agents)
    return blpjax.Problem(formulations, product_data, blpjax.Formulation("0 + income"), agent_data)


def functions_of(problem: blpjax.Problem, method: str = "anderson") -> ModelFunctions:
    return problem.functions(SIGMA, PI, beta=BETA, iteration=blpjax.Iteration(method))


@pytest.fixture(scope="module")
def problem() -> blpjax.Problem:
    return build(1)


@pytest.fixture(scope="module")
def functions(problem: blpjax.Problem) -> ModelFunctions:
    return functions_of(problem)


@pytest.fixture(scope="module")
def newton_functions(problem: blpjax.Problem) -> ModelFunctions:
    """The same functions with the method that compiles fastest, where the method does not matter."""
    return functions_of(problem, "newton")


STEP, LONG_STEP = 1e-5, 1e-3
DIRECTIONS = np.stack([np.eye(5)[0], np.cos(np.arange(5))])


@pytest.fixture(scope="module")
def mapped(newton_functions: ModelFunctions) -> dict[str, np.ndarray]:
    """Values and gradients around the starting values, from one program mapped over theta."""
    functions = newton_functions
    steps = np.concatenate(
        [
            STEP * np.eye(5),
            -STEP * np.eye(5),
            np.zeros((1, 5)),
            *(LONG_STEP * np.array([-2.0, -1.0, 1.0, 2.0])[:, None] * direction for direction in DIRECTIONS),
        ]
    )
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(functions.objective)))(functions.theta[None] + steps)
    return {"value": np.asarray(values), "gradient": np.asarray(gradients)}


@pytest.fixture(scope="module")
def hessian(newton_functions: ModelFunctions) -> np.ndarray:
    """At the starting values."""
    return np.asarray(jax.jit(jax.hessian(newton_functions.objective))(newton_functions.theta))


@pytest.fixture(scope="module")
def derivatives(mapped: dict[str, np.ndarray]) -> dict[str, Any]:
    """Derivatives at the starting values, and central differences."""
    values, gradients = mapped["value"], mapped["gradient"]
    return {
        "value": values[10],
        "gradient": gradients[10],
        "difference": (values[:5] - values[5:10]) / (2 * STEP),
        "difference of gradient": (gradients[:5] - gradients[5:10]) / (2 * STEP),
    }


def test_markets_of_unequal_sizes_are_padded(functions: ModelFunctions) -> None:
    """What the other tests say, they say of padded markets."""
    economy = functions.minimand.model.economy
    assert economy.padded_size > sum(PRODUCTS) and len(economy.buckets) > 1
    assert functions.theta_labels == ("1 x 1", "x x x", "1 x income", "x x income", "prices")


@pytest.mark.slow
def test_gradients_are_central_differences(derivatives: dict[str, Any]) -> None:
    CENTRAL_DIFFERENCE.check(derivatives["gradient"], derivatives["difference"])


@pytest.mark.slow
def test_hessians_are_central_differences_of_the_gradient(derivatives: dict[str, Any], hessian: np.ndarray) -> None:
    CENTRAL_DIFFERENCE.check(hessian, derivatives["difference of gradient"])
    DELTA.check(hessian, hessian.T)


@pytest.mark.slow
def test_hessians_are_second_differences_of_the_objective(
    mapped: dict[str, np.ndarray], derivatives: dict[str, Any], hessian: np.ndarray
) -> None:
    """Along two directions, one of which mixes all parameters."""
    for k, direction in enumerate(DIRECTIONS):
        f, middle = mapped["value"][11 + 4 * k : 15 + 4 * k], derivatives["value"]
        second = (-f[0] + 16 * f[1] - 30 * middle + 16 * f[2] - f[3]) / (12 * LONG_STEP**2)
        SECOND_CENTRAL_DIFFERENCE.check(direction @ hessian @ direction, second)


@pytest.mark.slow
def test_derivatives_under_vmap_are_those_of_each_theta(
    functions: ModelFunctions, derivatives: dict[str, Any], hessian: np.ndarray
) -> None:
    """And those of another method to invert shares; forward differentiation agrees with reverse."""

    @jax.jit
    def alone(theta: Any) -> tuple[Any, Any]:
        return jax.jacfwd(functions.objective)(theta), jax.hessian(functions.objective)(theta)

    first, second = alone(functions.theta)
    DELTA.check(first, derivatives["gradient"])
    DELTA.check(second, hessian)


@pytest.mark.slow
def test_objective_agrees_with_an_unrolled_contraction(
    functions: ModelFunctions, derivatives: dict[str, Any], hessian: np.ndarray
) -> None:
    """Delta of each market by 400 plain steps through which JAX differentiates; beta, moments and objective by NumPy's
    formulas."""
    products, agents = tables(1, PRODUCTS, AGENTS)
    data = functions.minimand.data.demand
    L = functions.minimand.weighting.factor
    W = L @ L.T

    def delta_of(theta: Any, rows: np.ndarray, people: np.ndarray) -> Any:
        nodes, income = agents[["nodes0", "nodes1"]].to_numpy()[people], agents.income.to_numpy()[people]
        C = theta[:2, None] * nodes.T + theta[2:4, None] * income[None, :]
        V = np.column_stack([np.ones(rows.size), products.x.to_numpy()[rows]]) @ C
        target = np.log(products.shares.to_numpy()[rows])

        def step(delta: Any, _: Any) -> tuple[Any, None]:
            e = jnp.exp(delta[:, None] + V)
            return delta + target - jnp.log((e / (1 + e.sum(axis=0))[None, :]).mean(axis=1)), None

        return jax.lax.scan(step, jnp.asarray(target), None, length=400)[0]

    ids, people_ids = products.market_ids.to_numpy(), agents.market_ids.to_numpy()

    def objective(theta: Any) -> Any:
        Y = jnp.concatenate(
            [delta_of(theta, np.flatnonzero(ids == t), np.flatnonzero(people_ids == t)) for t in np.unique(ids)]
        )
        Y = Y - data.X[:, 1] * theta[4]
        X, Z = data.X[:, np.array([0, 2])], data.Z
        A = Z.T @ X
        beta = jnp.linalg.solve(A.T @ W @ A, A.T @ W @ (Z.T @ Y))
        g = Z.T @ (Y - X @ beta) / Y.size
        return Y.size * g @ W @ g

    value, first, second = jax.jit(
        lambda z: (objective(z), jax.jacfwd(objective)(z), jax.jacfwd(jax.jacfwd(objective))(z))
    )(functions.theta)
    FIXED_PARAMETERS.check(derivatives["value"], value)
    UNROLLED.check(derivatives["gradient"], first)
    UNROLLED.check(hessian, second)


evaluate = jax.jit(GMM.evaluate)


@pytest.mark.slow
def test_least_squares_form_agrees_with_the_objective(
    newton_functions: ModelFunctions, derivatives: dict[str, Any]
) -> None:
    """``evaluate`` gives the same value and gradient, and the Jacobians that belong to them."""
    functions = newton_functions
    e = evaluate(functions.minimand, functions.theta, functions.start)
    assert bool(e.ok)
    DELTA.check(e.objective, derivatives["value"])
    DELTA.check(e.residuals @ e.residuals, derivatives["value"])
    DELTA.check(e.gradient, derivatives["gradient"])
    DELTA.check(2 * e.residual_jacobian.T @ e.residuals, derivatives["gradient"])
    jacobian = np.asarray(functions.delta_jacobian(functions.theta))
    DELTA.check(e.xi_by_theta[:, :4], jacobian[:, :4])
    DELTA.check(e.xi_by_theta[:, 4], -np.asarray(functions.minimand.data.demand.X)[:, 1])


@pytest.mark.slow
def test_a_failed_inversion_makes_the_evaluation_missing(newton_functions: ModelFunctions) -> None:
    f = newton_functions
    limits = f.minimand.model.limits._replace(max_evaluations=2)
    e = evaluate(eqx.tree_at(lambda objective: objective.model.limits, f.minimand, limits), f.theta, f.start)
    assert not bool(e.ok) and np.isnan(e.objective)
    assert (np.asarray(e.inversion.status) > 1).any()


@pytest.mark.slow
def test_delta_reproduces_shares_and_its_jacobian_solves_the_share_equation(newton_functions: ModelFunctions) -> None:
    """``H d(delta)/d(theta) = -ds/d(theta)`` market by market."""
    functions = newton_functions
    theta = functions.theta
    delta = functions.delta(theta)
    economy = functions.minimand.model.economy
    observed = economy.gather([bucket.shares for bucket in economy.buckets])
    DELTA.check(functions.shares(theta, delta), observed)
    direct = jax.jit(jax.jacfwd(functions.shares))(theta, delta)
    moved = economy.scatter(functions.delta_jacobian(theta))
    products = [H @ change for H, change in zip(functions.share_derivatives(theta, delta), moved, strict=True)]
    DELTA.check(economy.gather(products)[:, :4], -np.asarray(direct)[:, :4])
    inside = economy.gather([P.sum(axis=2) for P in functions.probabilities(theta, delta)])
    assert inside.shape == observed.shape


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those of its loops and branches included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr") or hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_programs_have_no_callbacks_and_do_not_grow_with_the_number_of_markets() -> None:
    counts = []
    for T in (4, 12):
        f = functions_of(build(2, [5] * T, [9] * T), "newton")
        program = jax.make_jaxpr(jax.value_and_grad(f.objective))(f.theta)
        names = [equation.primitive.name for equation in equations(program.jaxpr)]
        assert not [name for name in names if "callback" in name or "infeed" in name or "outfeed" in name]
        assert "while" in names
        counts.append(len(names))
    assert counts[0] == counts[1] and counts[0] > 100


@pytest.mark.slow
def test_a_second_problem_of_equal_shape_compiles_nothing() -> None:
    def work(seed: int) -> float:
        problem = build(seed, [4] * 5, [10] * 5)
        f = functions_of(problem, "newton")
        value = f.objective(f.theta)
        results = problem.solve(
            SIGMA,
            PI,
            beta=BETA,
            method="1s",
            optimization=blpjax.Optimization("return"),
            check_optimality="gradient",
            iteration=blpjax.Iteration("newton"),
        )
        np.testing.assert_allclose(float(results.objective), float(value), rtol=1e-9)
        return float(value)

    forget_programs()
    with compilations() as seen:
        first = work(5)
    assert seen
    with compilations() as again:
        second = work(6)
    assert first != second
    assert not again


def test_other_parameters_weights_and_tolerances_compile_nothing() -> None:
    problem = build(5, [4] * 5, [10] * 5)

    def work(factor: float, **limits: Any) -> float:
        iteration = blpjax.Iteration("newton", {"atol": 1e-13 * factor} | limits)
        f = problem.functions(
            factor * SIGMA, PI, beta=[None, -1.4 * factor, None], W=factor * np.eye(problem.MD), iteration=iteration
        )
        return float(f.objective(f.theta))

    work(1.0)
    with compilations() as again:
        work(1.25)
        failed = work(1.25, max_evaluations=2)
    assert not again and np.isnan(failed)


@pytest.mark.slow
def test_a_failed_inversion_makes_moments_and_objective_nan(problem: blpjax.Problem) -> None:
    failing = problem.functions(SIGMA, PI, beta=BETA, iteration=blpjax.Iteration("simple", {"max_evaluations": 2}))
    assert not succeeded(failing.inversion(failing.theta).status).all()
    assert np.isnan(failing.objective(failing.theta)) and np.isnan(failing.moments(failing.theta)).all()
    assert np.isnan(jax.grad(failing.objective)(failing.theta)).any()
