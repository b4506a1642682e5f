"""Gradients and Hessians of objectives with micro moments, next to central differences, also side by side."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.inputs.arguments import read_inversion
from blpjax.inputs.micro import MicroMoment
from blpjax.objective import programs
from blpjax.objective.micro import MicroMoments
from blpjax.objective.moments import GMM
from blpjax.objective.structure import Specification
from blpjax.problem.micro import read_micro
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.slow]

SIZES = {"a": 4, "b": 6, "c": 5}
SIGMA, PI = np.array([[0.6, 0.0], [0.2, 0.4]]), np.array([[0.3, 0.0], [0.0, -0.2]])

#: Each has what makes second derivatives of choices another formula, or leads through another part of the kernels.
DESIGNS: dict[str, dict[str, bool]] = {
    "common tastes, shares that are clipped on the way": {"clipped": True},
    "product-specific, available": {"specific": True, "available": True},
    "nests, product-specific, available": {"nested": True, "specific": True, "available": True},
}


def build(nested: bool = False, specific: bool = False, available: bool = False) -> blpjax.Problem:
    """Three markets of different sizes, seven agents in each."""
    rng = np.random.default_rng(1)
    market_ids = np.repeat(list(SIZES), list(SIZES.values()))
    N, most = market_ids.size, max(SIZES.values())
    products = pd.DataFrame({"market_ids": market_ids, "x": rng.normal(size=N), "prices": rng.uniform(1, 2, N)})
    products["shares"] = rng.uniform(0.03, 0.13, N)
    for k in range(8):
        products[f"demand_instruments{k}"] = products.prices ** (k % 3) * rng.normal(size=N)
    if nested:
        products["nesting_ids"] = np.arange(N) % 2
    agents = pd.DataFrame({"market_ids": np.repeat(list(SIZES), 7), "weights": 1 / 7, "income": rng.normal(size=21)})
    for name in ("nodes0", "nodes1"):
        agents[name] = rng.normal(size=21)
    for j in range(most if specific else 1):
        agents[f"distance{j}" if specific else "distance"] = rng.uniform(size=21)
    if available:
        for j in range(most):
            agents[f"availability{j}"] = 1.0
        agents.loc[[1, 9, 17], "availability2"] = 0.0
        agents.loc[5, "availability0"] = 0.4
    formulas = blpjax.Formulation("1 + prices + x"), blpjax.Formulation("1 + x")
    return blpjax.Problem(formulas, products, blpjax.Formulation("0 + income + distance"), agents)


def moments() -> list[MicroMoment]:
    """First and second choices, and a function of two surveys."""
    everybody = blpjax.MicroDataset.everybody("everybody", 200)
    second = blpjax.MicroDataset.second_choices("second", 100, second="any")
    parts = [blpjax.MicroPart.of(everybody, "income * x"), blpjax.MicroPart.of(second, "x * second.x")]
    return [
        MicroMoment.mean(everybody, "income", given="purchase", value=0.1),
        MicroMoment.mean(second, "income * second.x", value=0.2),
        MicroMoment("ratio", 0.3, parts, lambda v: v[0] / (2 + v[1])),
    ]


def objective(nested: bool, clipped: bool, **design: bool) -> tuple[GMM, np.ndarray, np.ndarray]:
    """The objective with weights of all pairs of moments, theta, and where inversions start."""
    problem = build(nested, **design)
    parameters = problem.read_parameters(SIGMA, PI, 0.3 if nested else None, None, None, {}, bounded=False)
    micro = read_micro(problem.data, moments(), None, parameters)
    types = problem.data.read_moment_types("levels", "levels")
    data = problem._data_of_moments(np.array([-np.inf, np.inf]), 0, (), types, micro.blocks)
    bounds = (0.02, 0.2) if clipped else (1e-300, None)
    chosen = read_inversion(blpjax.Iteration("anderson", {"atol": 1e-14}), "safe_linear", bounds)
    root = np.random.default_rng(2).normal(size=(data.size, data.size))
    specification = Specification(parameters.layout, chosen.fixed_point)
    minimand = problem._objective(specification, parameters, chosen, data, np.eye(data.size) + root @ root.T, True)
    start = problem.closed_form_delta(np.asarray(parameters.start.rho))
    # simulated shares there are beyond the bounds
    return minimand, parameters.theta, start + (4.0 if clipped else 0.0) * (np.arange(start.size) % 2)


@pytest.mark.parametrize("name", DESIGNS)
def test_derivatives_are_differences(name: str) -> None:
    minimand, theta, start = objective(**({"nested": False, "clipped": False} | DESIGNS[name]))
    at = programs.evaluate(minimand, theta, start)
    assert bool(at.ok) and not np.asarray(at.inversion.clipped).any()
    delta = at.inversion.delta
    ends = [
        [programs.evaluate(minimand, theta + sign * step, delta) for sign in (1, -1)]
        for step in 1e-5 * np.eye(theta.size)
    ]

    def differences(of: Any) -> np.ndarray:
        return np.array([(np.asarray(of(up)) - np.asarray(of(down))) / 2e-5 for up, down in ends])

    CENTRAL_DIFFERENCE.check(at.gradient, differences(lambda one: one.objective))
    CENTRAL_DIFFERENCE.check(at.residual_jacobian, differences(lambda one: one.residuals).T)
    H = programs.hessian_at(minimand, jnp.asarray(theta), delta)
    CENTRAL_DIFFERENCE.check(H, differences(lambda one: one.gradient))
    # derivatives of micro moments alone are those of the last rows, and are not zero
    (block,) = (block for block in minimand.data.more if isinstance(block, MicroMoments))
    L = np.linalg.inv(np.asarray(minimand.weighting.factor)).T / np.sqrt(float(minimand.data.count))
    assert np.abs((L @ np.asarray(at.residual_jacobian))[-block.size :]).min(axis=1).max() > 1e-4
    # two points at the same time give what each gives alone
    thetas = jnp.stack([theta, 0.9 * theta])
    together = jax.jit(jax.vmap(lambda values: minimand.evaluate(values, jnp.asarray(start))))(thetas)
    curved = jax.jit(
        jax.vmap(lambda values, known: minimand.curvature(values, known, jnp.eye(theta.size)), in_axes=(0, 0))
    )(thetas, together.inversion.delta)
    other = programs.evaluate(minimand, 0.9 * theta, start)
    for field in ("objective", "gradient", "residual_jacobian"):
        DELTA.check(getattr(together, field), np.stack([getattr(at, field), getattr(other, field)]), field)
    DELTA.check((curved[0] + curved[0].T) / 2, H)
