"""Outputs of small models are computed with coarse sizes: same numbers, and few programs."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.model import coarse, model
from tests.support.programs import compilations

pytestmark = pytest.mark.usefixtures("quiet")


def simulate(sizes: tuple[int, ...] = (3, 5), formula: str = "1 + prices + x", **options: Any) -> Any:
    """Equilibrium prices in markets of these sizes, with costs that may move with shares."""
    rng = np.random.default_rng(0)
    N = sum(sizes)
    products = pd.DataFrame(
        {
            "market_ids": np.repeat(np.arange(len(sizes)), sizes),
            "firm_ids": np.arange(N) % 3,
            "x": rng.uniform(0, 1, 40)[:N],
            "w": rng.uniform(0, 1, 40)[:N],
            "shares": 0.5 / N,
        }
    )
    simulation = blpjax.Simulation(
        (blpjax.Formulation(formula), blpjax.Formulation("1 + x"), blpjax.Formulation("1 + w + shares")),
        products,
        beta=[0.5, -3.0, 1.0] + [0.3] * (formula.count("+") - 2),
        sigma=np.diag([0.4, 0.8]),
        gamma=[0.5, 0.3, 0.2],
        integration=blpjax.Integration("product", 4),
        xi=np.zeros(N),
        omega=np.zeros(N),
    )
    return simulation.replace_endogenous(**options)


def outputs(found: Any) -> dict[str, Any]:
    """What is computed by programs."""
    moved = found.compute_costs() * 1.1
    return {
        "prices": found.product_data["prices"],
        "after": found.compute_prices(costs=moved),
        "moving costs": found.compute_prices(costs=moved, constant_costs=False),
        "passthrough": found.compute_passthrough(),
        "hessians": found.compute_demand_hessians("x"),
        "in delta": found.compute_demand_hessians(None),
        "profits": found.compute_profit_hessians(),
        "one market": found.compute_passthrough(market_id=0),
        "gradients": [value for firms in found.profit_gradients.values() for part in firms.values() for value in part],
        "evaluations": found.contraction_evaluations,
        "converged": found.fp_converged,
    }


@pytest.mark.slow
def test_outputs_of_coarse_models_have_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outputs(simulate())
    monkeypatch.setattr(coarse, "SMALL", 0)
    exact = outputs(simulate())
    for name, values in exact.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-9, err_msg=name)


def test_loops_over_markets_of_ten_sizes_need_two_programs(unstored_programs: None) -> None:
    model._equilibrium.forget()
    model._stacked.forget()
    with compilations() as compiled:
        for J in range(14, 4, -1):
            found = simulate((J,), compute_gradients=False, compute_hessians=False)
            found.compute_passthrough()
            found.compute_prices(firm_ids=np.zeros(J))
    assert compiled.count("jit(_equilibrium)") <= 2
    assert compiled.count("jit(_stack)") <= 2


def test_exogenous_columns_of_formulas_compile_nothing() -> None:
    options = {"sizes": (8,), "compute_gradients": False, "compute_hessians": False}
    simulate(**options).compute_passthrough()
    with compilations() as compiled:
        simulate(formula="1 + prices + x + I(x**2)", **options).compute_passthrough()
    assert [name for name in compiled if name != "jit(stage)"] == []
