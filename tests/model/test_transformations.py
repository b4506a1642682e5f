"""Types of random coefficients that users define, with parameters of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from tests.tolerances import CENTRAL_DIFFERENCE, ROUNDING

SIGMA, PI = np.diag([0.7, 0.4]), [[0.3], [0.0]]


def power(index: Any, shape: Any) -> Any:
    return jnp.sinh(shape * index) / shape


def cubic(index: Any) -> Any:
    return index + 0.1 * index**3


KIND = blpjax.Transformation(power, parameters=("shape",))


def simulation(rc_types: Any, **options: Any) -> blpjax.Simulation:
    F = blpjax.Formulation
    return blpjax.Simulation(
        (F("1 + prices + x"), F("0 + x + y"), F("1 + z")),
        blpjax.build_id_data(T=4, J=5, F=2),
        beta=[0.5, -2.0, 1.0],
        sigma=SIGMA,
        pi=PI,
        gamma=[1.0, 0.5],
        agent_formulation=F("0 + income"),
        integration=blpjax.Integration("product", 3),
        rc_types=rc_types,
        seed=0,
        **options,
    )


@pytest.fixture(scope="module")
def simulated() -> Any:
    return simulation([KIND, cubic], tau=[0.8]).replace_endogenous()


def test_shares_are_those_of_transformed_coefficients(simulated: Any) -> None:
    data, agents = simulated.product_data, simulated.simulation.agents
    one = data["market_ids"].ravel() == 2
    people = agents.market_ids.ravel() == 2
    index = agents.nodes[people] @ SIGMA.T + agents.demographics[people] @ np.array(PI).T
    tastes = np.column_stack([np.sinh(0.8 * index[:, 0]) / 0.8, cubic(index[:, 1])])
    mu = np.column_stack([data["x"][one], data["y"][one]]) @ tastes.T
    e = np.exp(simulated.delta[one] + mu)
    ROUNDING.check(simulated.compute_shares()[one, 0], (e / (1 + e.sum(axis=0))) @ agents.weights[people, 0])


@pytest.mark.slow
def test_estimation_knows_the_parameters_of_transformations(simulated: Any) -> None:
    problem = simulated.to_problem()
    assert problem.rc_types == [KIND, cubic]
    options = {"sigma": SIGMA, "pi": PI, "beta": [None, -1.5, None], "tau": [0.7]}
    fixed = problem.solve(
        **options, method="1s", optimization=blpjax.Optimization("return"), check_optimality="gradient"
    )
    assert fixed.theta_labels == ["x x x", "y x y", "x x income", "x: shape", "prices"]
    assert fixed.tau_labels == ["x: shape"] and fixed.tau.tolist() == [[0.7]] and fixed.tau_se.shape == (1, 1)
    assert "Tau Estimates" in str(fixed) and "Tau True Values" in str(simulated.simulation)
    objective, theta = problem.functions(**options).objective, jnp.asarray(fixed.theta)
    step = 1e-5 * jnp.eye(theta.size)
    numerical = [float(objective(theta + h) - objective(theta - h)) / 2e-5 for h in step]
    CENTRAL_DIFFERENCE.check(fixed.gradient.ravel(), numerical)
    bounded = problem.solve(
        **options,
        tau_bounds=([0.7], [0.7]),
        method="1s",
        optimization=blpjax.Optimization("return"),
        check_optimality="gradient",
    )
    assert "x: shape" not in bounded.theta_labels and np.isnan(bounded.tau_se).all()
    errors = fixed.delta_method(lambda model: model.coefficients.tau).standard_errors
    ROUNDING.check(errors, fixed.tau_se.ravel())


@pytest.mark.slow
def test_plain_functions_are_types_too(simulated: Any) -> None:
    """A function of the index, and the same as one of PyBLP's types."""
    named = simulation(["log", "logit"]).replace_endogenous()
    own = simulation([jnp.exp, lambda x: 1 / (1 + jnp.exp(-x))]).replace_endogenous()
    ROUNDING.check(own.compute_shares(), named.compute_shares())
    assert not np.allclose(named.compute_shares(), simulated.compute_shares(), rtol=1e-3)


def test_wrong_types_and_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="tau must be given"):
        simulation([KIND, "linear"])
    with pytest.raises(ValueError, match="tau must not be given, because no type in rc_types has parameters"):
        simulation(["log", "linear"], tau=[1.0])
    with pytest.raises(ValueError, match=r"tau must have the shape \(1,\)"):
        simulation([KIND, "linear"], tau=[1.0, 2.0])
    with pytest.raises(ValueError, match="rc_types must be 'linear', 'log', 'logit', functions of JAX arrays or Trans"):
        simulation(["log", "lognormal"])
    with pytest.raises(ValueError, match="rc_types must be a list with a type for each of the 2 columns"):
        simulation(["log"])
    with pytest.raises(TypeError, match="function must be a function"):
        blpjax.Transformation("exp")
    with pytest.raises(TypeError, match="parameters must be names"):
        blpjax.Transformation(jax.nn.relu, parameters=(1,))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (np.exp, TypeError, r"rc_types\[1\] must consist of operations of JAX: use jax.numpy in place of numpy"),
        (
            lambda x: x if x[0, 0] > 0 else -x,
            TypeError,
            r"rc_types\[1\] must consist of .* and no conditions on values",
        ),
        (lambda: 1.0, TypeError, r"rc_types\[1\] must be a function of JAX arrays with 1 argument, the index, that"),
        (
            blpjax.Transformation(jnp.exp, ("a",)),
            TypeError,
            r"rc_types\[1\] must .* with 2 arguments, the index, a, that",
        ),
        (lambda x: x.sum(), ValueError, r"rc_types\[1\] must return an array of the shape that it is given"),
    ],
)
def test_functions_that_jax_cannot_trace_are_refused(kind: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        simulation(["linear", kind])
