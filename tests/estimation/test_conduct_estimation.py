"""Estimation under a conduct, on data that were simulated under it, and what is computed after it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blpjax
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, ESTIMATES, ROUNDING, Tolerance

pytestmark = pytest.mark.usefixtures("quiet")

F, Bertrand = blpjax.Formulation, blpjax.Bertrand
SOLVED = Tolerance(1e-8, 1e-9)
EXACT = {
    "method": "1s",
    "optimization": blpjax.Optimization("return"),
    "iteration": blpjax.Iteration("newton", {"atol": 1e-14}),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """A conduct in an economy with random coefficients, or nests, and linear or log costs."""

    conduct: Any
    nested: bool = False
    costs_type: str = "linear"
    theta: tuple[float, ...] = (0.8, -2.0)

    def simulation(self) -> blpjax.Simulation:
        market_ids = np.repeat(np.arange(12), (6, 5, 4) * 4)
        order = np.arange(market_ids.size)
        data = {"market_ids": market_ids, "firm_ids": order % 3, "makers": order // 2 % 2, "quantity": order % 2}
        data["retailers"] = data["firm_ids"]
        if isinstance(self.conduct, blpjax.TwoTier):
            del data["firm_ids"]
        if self.nested:
            data["nesting_ids"] = order // 3 % 2
        gamma = {"linear": [1.0, 0.2, 0.3], "log": [0.0, 0.1, 0.2]}[self.costs_type]
        return blpjax.Simulation(
            (F("1 + prices + x"), None if self.nested else F("0 + x"), F("1 + x + w")),
            data,
            beta=[1.0, -2.0, 1.0],
            sigma=None if self.nested else [[0.8]],
            rho=0.4 if self.nested else None,
            gamma=gamma,
            integration=None if self.nested else blpjax.Integration("product", 3),
            xi_variance=0.05,
            omega_variance=0.01,
            correlation=0.5,
            costs_type=self.costs_type,
            seed=0,
            conduct=self.conduct,
        )

    def solve(self, problem: blpjax.Problem, theta: Any = None, **options: Any) -> Any:
        first, price = self.theta if theta is None else theta
        random = {"rho": first} if self.nested else {"sigma": [[first]]}
        costs_bounds = (0.01, None) if self.costs_type == "log" else None
        return problem.solve(**random, beta=[None, price, None], costs_bounds=costs_bounds, **options)


DESIGNS = {
    "cournot": Design(blpjax.Cournot()),
    "weights": Design(Bertrand(weights=0.5)),
    "mixed, log costs": Design(blpjax.Mixed("quantity"), costs_type="log"),
    "cournot, nests": Design(blpjax.Cournot(), nested=True, theta=(0.4, -2.0)),
    "two tiers": Design(blpjax.TwoTier(Bertrand("retailers"), Bertrand("makers"))),
}


@functools.cache
def economy(name: str) -> tuple[blpjax.Simulation, Any, blpjax.Problem]:
    simulation = DESIGNS[name].simulation()
    solved = simulation.replace_endogenous()
    return simulation, solved, solved.to_problem()


@functools.cache
def at_truth(name: str) -> Any:
    return DESIGNS[name].solve(economy(name)[2], check_optimality="gradient", **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_costs_at_the_truth_are_those_of_the_simulation(design: str) -> None:
    simulation, solved, problem = economy(design)
    results, known = at_truth(design), DESIGNS[design]
    assert problem.conduct is known.conduct
    costs = np.exp(results.tilde_costs) if known.costs_type == "log" else results.tilde_costs
    SOLVED.check(costs, solved.costs)
    SOLVED.check(results.compute_costs(), solved.costs)
    SOLVED.check(problem.products.prices, results.compute_prices())
    if known.costs_type == "linear":
        explained = simulation.products.X3 @ simulation.gamma
        SOLVED.check(results.tilde_costs - explained, simulation.omega)


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_derivatives_of_the_objective_agree_with_differences(name: str) -> None:
    design, problem = DESIGNS[name], economy(name)[2]
    theta, step = np.array([0.9, 0.9]) * design.theta, 1e-4
    found = design.solve(problem, theta, **EXACT)

    def at(direction: np.ndarray) -> Any:
        return design.solve(problem, theta + step * direction, check_optimality="gradient", **EXACT)

    pairs = [(at(e), at(-e)) for e in np.eye(2)]
    gradient = [float((a.objective - b.objective).item()) / (2 * step) for a, b in pairs]
    CENTRAL_DIFFERENCE.check(found.gradient[:, 0], gradient)
    CENTRAL_DIFFERENCE.check(found.hessian, [(a.gradient - b.gradient)[:, 0] / (2 * step) for a, b in pairs])


@pytest.mark.slow
def test_other_evaluations_are_the_same() -> None:
    """By numbers of the original sizes, and by finite differences."""
    design, problem = DESIGNS["cournot"], economy("cournot")[2]
    found = at_truth("cournot")
    differences = design.solve(problem, finite_differences=True, check_optimality="gradient", **EXACT)
    ESTIMATES.check(differences.gradient, found.gradient)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blpjax.objective.programs.coarsened", lambda objective: None)
        again = design.solve(problem, check_optimality="gradient", **EXACT)
    DELTA.check(again.gradient, found.gradient)
    DELTA.check(again.objective, found.objective)


@pytest.mark.slow
def test_price_setting_is_the_same_as_ownership_matrices() -> None:
    _, _, problem = economy("weights")
    data = dict(problem.product_table.data)
    H = blpjax.build_ownership(data, lambda f, g: 1.0 if f == g else 0.5)
    same = blpjax.Problem(
        problem.product_formulations,
        data | {"ownership": H},
        integration=blpjax.Integration("product", 3),
    )
    found, expected = at_truth("weights"), DESIGNS["weights"].solve(same, check_optimality="gradient", **EXACT)
    ROUNDING.check(found.tilde_costs, expected.tilde_costs)
    DELTA.check(found.gradient, expected.gradient)
    DELTA.check(found.compute_passthrough(), expected.compute_passthrough())
    SOLVED.check(
        found.compute_prices(costs=found.compute_costs() + 0.1),
        expected.compute_prices(costs=expected.compute_costs() + 0.1),
    )


@pytest.mark.slow
def test_what_follows_estimation_knows_the_conduct() -> None:
    simulation, _, problem = economy("cournot")
    results = DESIGNS["cournot"].solve(problem, method="1s")
    merged = np.where(simulation.product_data.firm_ids == 1, 0, simulation.product_data.firm_ids)
    after = results.compute_prices(firm_ids=merged, costs=results.compute_costs())
    same = results.compute_prices(firm_ids=merged, conduct=blpjax.Cournot(), costs=results.compute_costs())
    SOLVED.check(after, same)
    outcome = results.counterfactual(firm_ids={1: 0})
    SOLVED.check(outcome.products.prices_after, after[:, 0])
    # prices are solved again at the same structural errors
    held = results.delta_method(lambda model: model.prices, hold="xi")
    SOLVED.check(held.value, problem.products.prices[:, 0])
    drawn = results.bootstrap(2, seed=0)
    SOLVED.check(drawn.compute_prices(), drawn.bootstrapped_prices)
    instruments = results.compute_optimal_instruments()
    again = instruments.to_problem()
    assert again.conduct == problem.conduct
    assert np.isfinite(instruments.demand_instruments).all() and instruments.fp_converged.all()
    DELTA.check(
        DESIGNS["cournot"].solve(again, check_optimality="gradient", **EXACT).tilde_costs,
        at_truth("cournot").tilde_costs,
    )


def test_what_needs_price_setting_or_cannot_be_done_is_refused(tmp_path: Path) -> None:
    simulation, _, problem = economy("cournot")
    results = at_truth("cournot")
    with pytest.raises(NotImplementedError, match="firms that set prices, but their conduct is Cournot"):
        results.compute_pricing_pressure(firm_ids={1: 0})
    data = dict(problem.product_table.data)
    given = problem.product_formulations, data
    integration = blpjax.Integration("product", 3)
    with pytest.raises(blpjax.exceptions.DataError, match="no column 'leaders'.*conduct Stackelberg"):
        blpjax.Problem(*given, integration=integration, conduct=blpjax.Stackelberg("leaders"))
    with pytest.raises(TypeError, match="conduct must be a conduct"):
        blpjax.Problem(*given, integration=integration, conduct=blpjax.Cournot)
    with pytest.raises(blpjax.exceptions.DataError, match="no column 'leaders'"):
        blpjax.Simulation(
            problem.product_formulations, simulation.product_data, beta=[1, -2, 1], sigma=[[1.0]], gamma=[1, 0, 0],
            integration=integration, conduct=blpjax.Stackelberg("leaders"),
        )  # fmt: skip
    own = blpjax.Problem(*given, integration=integration, conduct=blpjax.conduct(lambda market: 0.1 * market.prices))
    with pytest.raises(NotImplementedError, match="files hold no code"):
        own.to_state()


@pytest.mark.parametrize(
    "conduct",
    [
        blpjax.Cournot(),
        Bertrand(weights={(0, 1): 0.5, (2, 1): 0.25}),
        blpjax.Bargaining("firm_ids", "makers", 0.4),
        blpjax.TwoTier(blpjax.Mixed("quantity"), blpjax.Cournot("makers"), "quantity"),
    ],
)
def test_files_have_the_conduct(conduct: Any) -> None:
    from blpjax.problem.conduct_state import conduct_state, stored_conduct

    assert stored_conduct(conduct_state(conduct)) == conduct


def test_results_are_saved_with_their_conduct(tmp_path: Path) -> None:
    results = at_truth("cournot")
    results.save(tmp_path / "results.zip")
    again = blpjax.load(tmp_path / "results.zip")
    assert again.problem.conduct == results.problem.conduct
    ROUNDING.check(again.compute_costs(), results.compute_costs())
