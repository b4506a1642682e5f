"""Derivatives in theta by formulas, and Hessians by a Lagrangian, are those of the implicit rules differentiated."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.economy.mapping import map_directions
from blpjax.objective.moments import GMM
from blpjax.objective.slopes import solve_along
from blpjax.objective.structure import StructuralModel
from tests.support.joint import PI, SIGMA, Model, tables, with_asymmetric_ownership
from tests.tolerances import CENTRAL_DIFFERENCE, LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")

#: Price is a random coefficient, so that its slope differs between agents, and one product's firm owns nothing else.
PRICED = Model(X2="1 + prices + x", demographics="0 + income + I(income**2)")
LOWER = np.array([[0.4, 0, 0], [0.2, 0.3, 0], [0, -0.2, 0.6]])
INCOME = np.array([[0.3, 0], [0.1, -0.2], [0, 0.1]])
BETA, GAMMA = [None, -2.0, None, 0.5], [None, 0.5, None]


def joint_tables(seed: int, costs_type: str = "linear", **options: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    products, agents = tables(seed, costs_type, markets=5, **options)
    rng = np.random.default_rng(seed)
    lone = products.groupby("market_ids").cumcount() == 0
    return (
        products.assign(firm_ids=np.where(lone, 9, products.firm_ids), groups=rng.integers(0, 2, len(products))),
        agents.assign(nodes2=rng.normal(size=len(agents)), income0=agents.income, income1=-agents.income),
    )


def functions_of(problem: Any, *parameters: Any, **options: Any) -> Any:
    known = {"beta": BETA, "iteration": blpjax.Iteration("newton", {"atol": 1e-14})} | options
    return problem.functions(*parameters, **known)


def solved(problem: Any, *parameters: Any, **options: Any) -> tuple[GMM, jax.Array, jax.Array]:
    """The objective without loops, theta, and mean utilities there."""
    functions = functions_of(problem, *parameters, **options)
    return without_loops(functions.minimand), functions.theta, functions.delta(functions.theta)


def without_loops(minimand: GMM) -> GMM:
    return GMM(minimand.model.without_loops(), minimand.weighting, minimand.scale)


@partial(jax.jit, static_argnames="alone")
def by_formulas(objective: GMM, theta: jax.Array, delta: jax.Array, alone: bool = True) -> dict[str, Any]:
    """Also what one direction alone has, which is another program."""
    e = objective.evaluate(theta, delta)
    H = objective.curvature(theta, delta, jnp.eye(theta.size))
    return {
        "r": e.residuals,
        "J": e.residual_jacobian,
        "gradient": e.gradient,
        "delta": e.delta_by_theta,
        "xi": e.xi_by_theta,
        "omega": e.omega_by_theta,
        "H": H,
        "H 1": objective.curvature(theta, delta, jnp.ones((1, theta.size)))[0] if alone else H.sum(axis=0),
    }


@jax.jit
def by_rules(objective: GMM, theta: jax.Array, delta: jax.Array) -> dict[str, Any]:
    values, push, _ = jax.linearize(lambda theta: objective.vary(theta, delta), theta, has_aux=True)
    moved = jax.vmap(push, out_axes=-1)(jnp.eye(theta.size))
    gradient, again = jax.linearize(jax.grad(lambda theta: objective.value(theta, delta)), theta)
    H = jax.vmap(again)(jnp.eye(theta.size))
    return {
        "r": values.residuals,
        "J": moved.residuals,
        "gradient": gradient,
        "delta": moved.delta,
        "xi": moved.structural[0],
        "omega": moved.structural[1] if len(moved.structural) > 1 else None,
        "H": H,
        "H 1": H.sum(axis=0),
    }


def check(objective: GMM, theta: jax.Array, delta: jax.Array) -> dict[str, Any]:
    actual, expected = by_formulas(objective, theta, delta), by_rules(objective, theta, delta)
    for name, values in expected.items():
        if values is not None:
            assert np.isfinite(values).all(), name
            LINEAR_ALGEBRA.check(actual[name], values, name)
    return actual


def has_rules(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of models whose mean utilities are solved by the implicit rule from now on."""
    seen: list[str] = []
    solve = StructuralModel.solve

    def note(self: Any, *arguments: Any) -> Any:
        seen.append("rule")
        return solve(self, *arguments)

    monkeypatch.setattr(StructuralModel, "solve", note)
    return seen


@pytest.mark.slow
def test_with_log_costs_prices_as_a_random_coefficient_and_linear_parameters_in_theta() -> None:
    """At ordinary parameters and at large ones, with some costs that are clipped and some shares that are tiny."""
    products, agents = joint_tables(1, "log", importance=True)
    products["shares"] *= np.where(np.arange(len(products)) % 7 == 0, 1e-6, 1.0)
    problem = PRICED.build(blpjax, products, agents)
    for factor in (1.0, 8.0):
        options = {"gamma": GAMMA, "costs_bounds": (0.5, 1.7)}
        objective, theta, delta = solved(problem, factor * LOWER, factor * INCOME, **options)
        found = check(objective, theta, delta)
        omega = np.asarray(found["omega"])
        assert theta.size == 5 + 4 + 2 + 1 and (omega[:, :5] == 0).all(axis=1).any() and (omega != 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("costs_type", ["linear", "log"])
def test_with_asymmetric_ownership(costs_type: str) -> None:
    products, agents = joint_tables(2, costs_type)
    model = Model(X2="1 + prices + x", options={"costs_type": costs_type})
    check(*solved(model.build(blpjax, with_asymmetric_ownership(products), agents), LOWER, INCOME[:, :1]))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_without_a_supply_side(scale: float) -> None:
    model = Model(X3=None, options={"epsilon_scale": scale} if scale != 1 else {})
    check(*solved(model.build(blpjax, *joint_tables(3)), SIGMA, PI))


@pytest.mark.slow
def test_formulas_of_markets_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large ones are mapped."""
    monkeypatch.setattr("blpjax.objective.slopes.cached_elements", lambda: 1)
    check(*solved(Model().build(blpjax, *joint_tables(4)), SIGMA, PI))


CASES = ("nests", "subgroups", "types", "demographics")


def along_parameters(case: str) -> tuple[GMM, jax.Array, jax.Array]:
    """What has no formulas for all parameters at once."""
    products, agents = joint_tables(5, importance=True)
    nests = products.assign(nesting_ids=products["groups"])
    if case == "nests":
        return solved(Model().build(blpjax, nests, agents), SIGMA, PI, [0.3])
    if case == "subgroups":
        nests["subnesting_ids"] = nests["groups"] + 2 * (nests.x > nests.x.median())
        model = Model(X2="1 + prices + x")
        return solved(model.build(blpjax, nests, agents), LOWER, INCOME[:, :1], [0.3, 0.5])
    if case == "types":
        model = Model(options={"rc_types": ["linear", "log"]})
        return solved(model.build(blpjax, products, agents), SIGMA, PI)
    model = Model(demographics="0 + income")
    wide = agents.drop(columns=["income", "income0", "income1"])
    for j in range(8):
        wide[f"income{j}"] = agents.income * (1 + 0.1 * j)
    return solved(model.build(blpjax, products, wide), SIGMA, PI)


def test_derivatives_with_nests_are_differences() -> None:
    """Those by formulas along one parameter after the other, and a Lagrangian's Hessians."""
    products, agents = joint_tables(5, importance=True)
    nests = products.assign(nesting_ids=products["groups"])
    functions = functions_of(Model().build(blpjax, nests, agents), SIGMA, PI, [0.3])
    objective, step = without_loops(functions.minimand), 1e-5

    def at(theta: Any) -> tuple[dict[str, Any], Any]:
        delta = functions.delta(theta)
        return by_formulas(objective, theta, delta, alone=False), delta

    (found, _), theta = at(functions.theta), functions.theta
    ends = [[at(theta + sign * e) for sign in (1, -1)] for e in step * np.eye(theta.size)]

    def differences(values: Any) -> np.ndarray:
        moved = [(np.asarray(values(*up)) - np.asarray(values(*down))) / (2 * step) for up, down in ends]
        return np.stack(moved, axis=-1)

    CENTRAL_DIFFERENCE.check(found["delta"], differences(lambda e, delta: delta), "delta")
    CENTRAL_DIFFERENCE.check(found["J"], differences(lambda e, delta: e["r"]), "J")
    CENTRAL_DIFFERENCE.check(found["gradient"], differences(lambda e, delta: e["r"] @ e["r"]), "gradient")
    CENTRAL_DIFFERENCE.check(found["H"], differences(lambda e, delta: e["gradient"]), "H")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_along_one_parameter_after_the_other(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hessians are a Lagrangian's, too."""
    objective, theta, delta = along_parameters(case)
    check(objective, theta, delta)
    seen = has_rules(monkeypatch)
    jax.eval_shape(solve_along, objective.model, theta, delta)
    assert not seen


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_markets_and_parameters_one_after_the_other(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large markets are mapped, and as they are differentiated."""
    objective, theta, delta = along_parameters(case)

    def derivatives() -> Any:
        def both(objective: GMM, theta: jax.Array, delta: jax.Array) -> Any:
            _, slopes = solve_along(objective.model, theta, delta)
            return slopes.delta, slopes.markups, objective.curvature(theta, delta, jnp.eye(theta.size))

        return jax.jit(both)(objective, theta, delta)

    at_once = derivatives()
    for module in ("blpjax.objective.slopes", "blpjax.economy.mapping"):
        monkeypatch.setattr(f"{module}.cached_elements", lambda: 1)
    one_by_one = derivatives()
    assert map_directions(pairs=2, directions=1) is jax.lax.map
    for found, expected in zip(one_by_one, at_once, strict=True):
        LINEAR_ALGEBRA.check(found, expected)
