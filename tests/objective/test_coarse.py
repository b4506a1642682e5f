"""Objectives of coarse sizes have the same numbers, and changes of a problem find their programs."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.machine.sizes import coarse_size, pad_axes
from blpjax.objective import coarse, programs
from tests.support.designs import mostly_slow
from tests.support.programs import compilations

pytestmark = pytest.mark.usefixtures("quiet")

FORMULA = "1 + prices + x"


def tables(products: tuple[int, ...] = (4, 7, 5), seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Products of markets of these sizes, with three groups, and 20 agents in each."""
    rng = np.random.default_rng(seed)
    N, T = sum(products), len(products)
    x, w, z = rng.uniform(0, 2, (3, N))
    prices = 1 + 0.5 * w + rng.uniform(0, 0.5, N)
    table = pd.DataFrame(
        {
            "market_ids": np.repeat(np.arange(T), products),
            "firm_ids": np.concatenate([np.arange(J) % 3 for J in products]),
            "nesting_ids": np.concatenate([np.array(["a", "b"])[np.arange(J) % 2] for J in products]),
            "shares": rng.uniform(0.5, 1.0, N) / (2.0 * max(products)),
            "prices": prices,
            "x": x,
            "w": w,
            **{f"demand_instruments{i}": v for i, v in enumerate((w, z, w * x, w**2, z * w))},
            **{f"supply_instruments{i}": v for i, v in enumerate((z, x**2, z * x))},
        }
    )
    agents = pd.DataFrame(
        {
            "market_ids": np.repeat(np.arange(T), 20),
            "weights": 1 / 20,
            **{f"nodes{k}": rng.normal(size=20 * T) for k in range(2)},
            "income": rng.lognormal(0, 0.3, 20 * T),
        }
    )
    return table, agents


def solve(formula: str = FORMULA, *, data: Any = None, nests: bool = True, **options: Any) -> Any:
    """Evaluate an objective with supply at given parameters."""
    products, agents = tables() if data is None else data
    if not nests:
        products = products.drop(columns="nesting_ids")
    problem = blpjax.Problem(
        (blpjax.Formulation(formula), blpjax.Formulation("0 + prices + x"), blpjax.Formulation("1 + w + x")),
        products,
        blpjax.Formulation("0 + income"),
        agents,
        costs_type=options.pop("costs_type", "linear"),
    )
    return problem.solve(
        np.diag([0.3, 0.6]),
        [[0.2], [0.0]],
        rho=0.3 if nests else None,
        beta=[None, -2.0] + [None] * formula.count("x"),
        method="1s",
        optimization=blpjax.Optimization("return"),
        **options,
    )


#: Options of `solve`. Tests that use the same ones share their programs.
LOG_COSTS = {"costs_type": "log", "nests": False, "costs_bounds": (0.1, 3.0)}
DESIGNS = {"log costs": LOG_COSTS | {"check_optimality": "gradient"}, "log costs with Hessians": LOG_COSTS, "nests": {}}


@pytest.mark.slow
@pytest.mark.parametrize("options", mostly_slow(DESIGNS, ["log costs"]))
def test_coarse_objectives_have_the_same_numbers(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = solve(**options)
    monkeypatch.setattr(coarse, "SMALL", 0)
    exact = solve(**options)
    values = ["objective", "gradient", "delta", "xi", "omega", "tilde_costs", "beta", "gamma", "W"]
    for name in values + ([] if "check_optimality" in options else ["hessian"]):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-9, atol=1e-10, err_msg=name)
    for name in ("xi_by_theta_jacobian", "omega_by_theta_jacobian", "parameter_covariances", "moments_jacobian"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-8, atol=1e-9, err_msg=name)
    np.testing.assert_array_equal(found.clipped_costs, exact.clipped_costs)
    np.testing.assert_array_equal(found.contraction_evaluations, exact.contraction_evaluations)
    assert found.fp_converged.shape == exact.fp_converged.shape


@pytest.mark.parametrize("options", mostly_slow(DESIGNS, ["log costs"]))
def test_changed_problems_find_their_programs(options: dict[str, Any]) -> None:
    solve(**options)
    with compilations() as compiled:
        solve("1 + prices + x + I(x**2)", **options)
        solve(data=tables(seed=1), **options)
        solve(data=tables((6, 3, 5)), **options)
        solve(data=tables((4, 7, 5)), W_type="unadjusted", **options)
    assert compiled == []


def test_markets_that_lose_one_product_after_another_need_two_programs(unstored_programs: None) -> None:
    products, _ = tables((24,))
    programs._evaluate.forget()
    with compilations() as compiled:
        for J in range(24, 14, -1):
            problem = blpjax.Problem(blpjax.Formulation(FORMULA), products[:J].drop(columns="nesting_ids"))
            problem.solve(method="1s")
    assert len([name for name in compiled if "evaluate" in name]) <= 2
    assert len(set(compiled)) == len(set(compiled) & {"jit(_evaluate)"})


def test_large_objectives_and_those_with_other_moments_stay_as_they_are() -> None:
    products, agents = tables()
    problem = blpjax.Problem((blpjax.Formulation(FORMULA), blpjax.Formulation("0 + x")), products, agent_data=agents)
    objective = problem.functions(sigma=0.5, rho=0.2).minimand
    small = coarse.coarsened(objective)
    assert small is not None
    assert small is coarse.coarsened(objective)
    assert small.N == len(products)
    offset = dataclasses.replace(objective.data, offset=jax.numpy.zeros(objective.data.size))
    other = dataclasses.replace(objective, model=dataclasses.replace(objective.model, data=offset))
    assert coarse.coarsened(other) is None


@pytest.mark.parametrize(
    ("size", "coarse_sizes"), [(0, (8, 8)), (8, (8, 8)), (9, (12, 16)), (13, (16, 16)), (17, (24, 32)), (25, (32, 32))]
)
def test_sizes_are_on_a_grid(size: int, coarse_sizes: tuple[int, int]) -> None:
    assert (coarse_size(size), coarse_size(size, steps=1)) == coarse_sizes


def test_axes_are_padded_at_their_ends() -> None:
    values = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(pad_axes(values, (3,), -1), [[0, 1, 2], [3, 4, 5], [-1, -1, -1]])
    np.testing.assert_array_equal(pad_axes(values, (2, 4)), [[0, 1, 2, 0], [3, 4, 5, 0]])
