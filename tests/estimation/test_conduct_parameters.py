"""Profit weights, bargaining power and other numbers of a conduct as parameters of theta."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax.problem.conduct_state import conduct_state, stored_conduct
from tests.support.designs import mostly_slow
from tests.tolerances import ROUNDING, Tolerance

pytestmark = pytest.mark.usefixtures("quiet")

F, Parameter = blpjax.Formulation, blpjax.Parameter
DERIVATIVE, SOLVED = Tolerance(1e-7, 1e-8), Tolerance(1e-8, 1e-9)
EXACT = {
    "method": "1s",
    "optimization": blpjax.Optimization("return"),
    "iteration": blpjax.Iteration("newton", {"atol": 1e-14}),
}
ON_HOST = blpjax.Optimization("l-bfgs-b", {"gtol": 1e-6, "ftol": 0})
ERRORS = {"xi_variance": 0.1, "omega_variance": 0.05, "correlation": 0.5}


def internalised(market: Any, weight: Any) -> Any:
    """Bertrand with a weight of rivals' profits, by a function of one's own."""
    H = market.ownership("firm_ids")
    everybody = jnp.where(market.present[:, None] & market.present[None, :], 1.0, H)
    return -market.solve((H + weight * (everybody - H)) * market.jacobian().T, market.shares())


def internalised_conditions(margins: Any, market: Any, weight: Any) -> Any:
    H = market.ownership("firm_ids")
    everybody = jnp.where(market.present[:, None] & market.present[None, :], 1.0, H)
    return market.shares() + ((H + weight * (everybody - H)) * market.jacobian().T) @ margins


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """A conduct with true parameters, in markets of two to six products, with random coefficients or nests."""

    conduct: Any
    kappa: Any
    nested: bool = False
    costs_type: str = "linear"

    def panel(self, T: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(0)
        sizes = generator.integers(2, 7, size=T)
        order, N = np.concatenate([np.arange(size) for size in sizes]), int(sizes.sum())
        data = {
            "market_ids": np.repeat(np.arange(T), sizes),
            "firm_ids": order % 2 if isinstance(self.conduct, blpjax.Bargaining) else order // 2,
            "makers": order // 2,
            "x": generator.uniform(size=N),
            "w": generator.uniform(size=N),
        }
        return data | ({"nesting_ids": order % 2} if self.nested else {})

    def simulation(self, T: int) -> blpjax.Simulation:
        return blpjax.Simulation(
            (F("1 + prices + x"), None if self.nested else F("0 + x"), F("1 + x + w")),
            self.panel(T),
            beta=[3.0, -2.0, 2.0],
            sigma=None if self.nested else [[1.5]],
            rho=0.3 if self.nested else None,
            gamma=[1.0, 0.3, 0.8] if self.costs_type == "linear" else [0.1, 0.1, 0.2],
            integration=None if self.nested else blpjax.Integration("product", 5),
            costs_type=self.costs_type,
            seed=0,
            conduct=self.conduct,
            kappa=self.kappa,
            **ERRORS,
        )

    def economy(self, T: int) -> tuple[blpjax.Simulation, Any, blpjax.Problem]:
        """Rivals' characteristics and their number are instruments: markups depend on these."""
        simulation = self.simulation(T)
        solved, panel = simulation.replace_endogenous(), self.panel(T)
        Z = np.c_[
            blpjax.build_blp_instruments(F("1 + x + w"), panel),
            blpjax.build_differentiation_instruments(F("0 + x"), panel, version="quadratic"),
        ]
        Z = Z[:, np.ptp(Z, axis=0) > 0]
        instruments = {"demand_instruments": np.c_[Z, panel["w"]], "supply_instruments": Z}
        return simulation, solved, solved.to_problem(product_data=panel | prices_and_shares(solved) | instruments)

    def solve(self, problem: blpjax.Problem, theta: Any, **options: Any) -> Any:
        """At (or from) the first element of sigma or rho, then those of kappa, and the price coefficient."""
        first, *kappa, price = theta
        random = {"rho": first} if self.nested else {"sigma": [[first]]}
        bounds = (0.01, None) if self.costs_type == "log" else None
        return problem.solve(**random, kappa=kappa, beta=[None, price, None], costs_bounds=bounds, **options)

    @property
    def theta(self) -> np.ndarray:
        """Near the truth."""
        return 0.9 * np.r_[0.3 if self.nested else 1.5, self.kappa, -2.0]


def prices_and_shares(solved: Any) -> dict[str, np.ndarray]:
    return {name: np.array(solved.product_data[name], float).reshape(-1) for name in ("prices", "shares")}


WEIGHT = blpjax.Bertrand(weights=Parameter("weight"))
DESIGNS = {
    "weight": Design(WEIGHT, [0.5]),
    "weights of pairs, log costs": Design(
        blpjax.Bertrand(weights={(0, 1): Parameter("a"), (1, 0): Parameter("a"), (2, 0): Parameter("b"), (0, 2): 0.1}),
        [0.6, 0.3],
        costs_type="log",
    ),
    "power": Design(blpjax.Bargaining("firm_ids", "makers", Parameter("power")), [0.5]),
    "cournot, nests": Design(blpjax.Cournot(weights=Parameter("weight")), [0.4], nested=True),
    "two tiers": Design(
        blpjax.TwoTier(blpjax.Bertrand(weights=Parameter("retail")), blpjax.Cournot("makers", Parameter("wholesale"))),
        [0.4, 0.3],
    ),
    "rule of thumb": Design(blpjax.RuleOfThumb(Parameter("phi")), [1.5]),
    "own function": Design(blpjax.conduct(internalised, parameters="weight"), [0.5]),
    "own conditions": Design(blpjax.conditions(internalised_conditions, parameters=("weight",)), [0.5]),
}


@functools.cache
def economy(name: str) -> tuple[blpjax.Simulation, Any, blpjax.Problem]:
    return DESIGNS[name].economy(30)


@functools.cache
def estimated() -> Any:
    """Partial collusion."""
    return DESIGNS["weight"].solve(economy("weight")[2], DESIGNS["weight"].theta)


@functools.cache
def near_the_truth() -> Any:
    return at(DESIGNS["weight"].theta)


def at(theta: np.ndarray, name: str = "weight") -> Any:
    """Results at theta, without Hessians."""
    return DESIGNS[name].solve(economy(name)[2], theta, check_optimality="gradient", **EXACT)


def differences(value: Any, theta: np.ndarray, p: int, step: float = 1e-3) -> Any:
    """The derivative in an element of theta by central differences of fourth order."""
    e = step * np.eye(theta.size)[p]
    near, far = (value(theta + k * e) - value(theta - k * e) for k in (1, 2))
    return (8 * near - far) / (12 * step)


def places(results: Any) -> list[int]:
    """Where parameters of conduct stand in theta."""
    return [p for p, block in enumerate(results.parameter_blocks) if block == "kappa"]


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(DESIGNS.keys(), ["weight"]))
def test_gradients_in_parameters_of_conduct_agree_with_differences(name: str) -> None:
    design = DESIGNS[name]
    found = at(design.theta, name)
    assert len(places(found)) == len(design.kappa)
    for p in places(found):
        expected = differences(lambda theta: at(theta, name).objective.item(), design.theta, p)
        DERIVATIVE.check(found.gradient[p, 0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_hessians_in_parameters_of_conduct_agree_with_differences(name: str) -> None:
    """Exact Hessians, which trust regions use."""
    design = DESIGNS[name]
    found = design.solve(economy(name)[2], design.theta, **EXACT)
    assert len(places(found)) == len(design.kappa)
    for p in places(found):
        expected = differences(lambda theta: at(theta, name).gradient[:, 0], design.theta, p)
        DERIVATIVE.check(found.hessian[:, p], expected)


@pytest.mark.parametrize("name", mostly_slow(DESIGNS.keys(), ["weight"]))
def test_costs_at_true_parameters_are_those_of_the_simulation(name: str) -> None:
    simulation, solved, problem = economy(name)
    design = DESIGNS[name]
    results = design.solve(problem, design.theta / 0.9, check_optimality="gradient", **EXACT)
    SOLVED.check(results.compute_costs(), solved.costs)
    SOLVED.check(results.compute_prices(), problem.products.prices)
    assert simulation.kappa[:, 0].tolist() == design.kappa


def test_costs_move_with_a_weight_as_first_order_conditions_say() -> None:
    """``(H o D') m = -s`` implies ``dm / dkappa = -(H o D')^{-1} ((1 - H_0) o D') m``."""
    results = near_the_truth()
    problem, (kappa,) = results.problem, results.kappa[:, 0]
    D = results.compute_demand_jacobians()
    m = problem.products.prices - results.compute_costs()
    for rows in problem.market_index.rows:
        firms, D_t, m_t = problem.products.firm_ids[rows, 0], D[rows, : rows.size], m[rows, 0]
        same = firms[:, None] == firms[None, :]
        slope = -np.linalg.solve(np.where(same, 1.0, kappa) * D_t.T, (~same * D_t.T) @ m_t)
        ROUNDING.check(-results.omega_by_theta_jacobian[rows, 1], slope)


@pytest.mark.slow
def test_a_simulated_economy_gives_its_weight_back() -> None:
    """The estimate is within a few standard errors, which say something."""
    results = estimated()
    assert results.converged and results.parameter_blocks[:3] == ["sigma", "kappa", "beta"]
    row = results.estimates().set_index("parameter").loc["weight"]
    assert row["block"] == "kappa" and row["estimate"] == results.kappa.item()
    assert 0.01 < row["se"] < 0.2 and abs(row["estimate"] - 0.5) < 3 * row["se"]
    assert row["se"] == results.kappa_se.item()
    assert results.kappa_labels == ["weight"] and "weight" in results.theta_labels
    assert [bound.item() for bound in results.kappa_bounds] == [0.0, 1.0]
    text = str(results)
    assert "Kappa Estimates" in text and "weight" in text
    assert "weight" in results.summary().to_latex() and "Kappa True Values" in str(economy("weight")[0])


@pytest.mark.slow
def test_a_fixed_weight_is_the_same_as_a_known_one() -> None:
    problem, results = economy("weight")[2], near_the_truth()
    given = {"sigma": [[1.35]], "beta": [None, -1.8, None], **EXACT}
    given["check_optimality"] = "gradient"
    fixed = problem.solve(kappa=0.45, kappa_bounds=(0.45, 0.45), **given)
    assert fixed.parameter_blocks == ["sigma", "beta", "beta", "beta", "gamma", "gamma", "gamma"]
    assert np.isnan(fixed.kappa_se) and fixed.kappa == 0.45
    data = dict(problem.product_table.data)
    known = blpjax.Problem(
        problem.product_formulations,
        data,
        integration=blpjax.Integration("product", 5),
        conduct=blpjax.Bertrand(weights=0.45),
    ).solve(**given)
    assert known.kappa.size == 0 and "Kappa" not in str(known)
    for found in (fixed, results):
        ROUNDING.check(found.tilde_costs, known.tilde_costs)
        SOLVED.check(found.objective, known.objective)
    SOLVED.check(fixed.gradient, known.gradient)
    SOLVED.check(results.gradient[[0, 2]], known.gradient)


def test_weights_stay_between_zero_and_one_unless_bounds_say_otherwise() -> None:
    problem = economy("weight")[2]
    given = {"sigma": [[1.5]], "beta": [None, -2.0, None]}
    exact = EXACT | {"check_optimality": "gradient"}
    held = problem.solve(**given, kappa=0.2, kappa_bounds=(None, 0.3), **exact | {"optimization": ON_HOST})
    assert held.kappa == 0.3 and "At bound: 'weight' of kappa" in str(held)
    with pytest.raises(ValueError, match=r"kappa\[0\] = 1.2 is not within its bounds \[0, 1\]"):
        problem.solve(**given, kappa=1.2, **EXACT)
    monopoly = problem.solve(**given, kappa=1, **exact)
    D = monopoly.compute_demand_jacobians()
    for rows in problem.market_index.rows:
        markups = -np.linalg.solve(D[rows, : rows.size].T, problem.products.shares[rows])
        SOLVED.check(monopoly.tilde_costs[rows], problem.products.prices[rows] - markups)


@pytest.mark.slow
def test_a_weight_of_zero_is_fixed_and_means_bertrand() -> None:
    bertrand = economy("weight")[2].solve(
        sigma=[[1.5]], beta=[None, -2.0, None], kappa=0, check_optimality="gradient", **EXACT
    )
    assert "kappa" not in bertrand.parameter_blocks
    ROUNDING.check(bertrand.compute_costs(), bertrand.compute_costs(conduct=blpjax.Bertrand()))


@pytest.mark.slow
def test_what_follows_estimation_moves_with_the_parameter() -> None:
    results, problem = near_the_truth(), economy("weight")[2]
    SOLVED.check(results.compute_costs(), results.tilde_costs)
    slopes = results.delta_method(lambda model: model.compute_costs()[:, 0]).jacobian[:, 1]
    SOLVED.check(slopes, results.omega_by_theta_jacobian[:, 1])
    assert problem.functions(sigma=[[1.5]], beta=[None, -2.0, None], kappa=0.5).theta_labels[1] == "weight"


@pytest.mark.slow
def test_counterfactuals_move_with_the_parameter() -> None:
    results = near_the_truth()
    known = blpjax.Bertrand(weights=results.kappa.item())
    SOLVED.check(results.compute_costs(), results.compute_costs(conduct=known))
    found, same = (results.counterfactual(firm_ids={0: 1}, **given) for given in ({}, {"conduct": known}))
    SOLVED.check(found.products.prices_after, same.products.prices_after)


@pytest.mark.slow
def test_prices_are_solved_for_again_at_other_values_of_the_parameter() -> None:
    """In standard errors at fixed structural errors, and in bootstraps, within bounds."""
    results = estimated()
    known = blpjax.Bertrand(weights=results.kappa.item())
    SOLVED.check(results.compute_passthrough(), results.compute_passthrough(conduct=known))
    outcome = results.counterfactual(firm_ids={0: 1}, standard_errors=True, hold_fixed="xi")
    assert (outcome.products.prices_after_se > 0).all()
    held = results.delta_method(lambda model: model.prices, hold="xi")
    SOLVED.check(held.value, results.problem.products.prices[:, 0])

    def prices(weight: float) -> np.ndarray:
        """At the same demand and costs."""
        conduct = blpjax.Bertrand(weights=weight)
        return results.compute_prices(conduct=conduct, costs=results.compute_costs())[:, 0]

    step = 1e-4
    expected = (prices(results.kappa.item() + step) - prices(results.kappa.item() - step)) / (2 * step)
    Tolerance(1e-5, 1e-6).check(held.jacobian[:, 1], expected)
    drawn = results.bootstrap(3, seed=0)
    assert drawn.bootstrapped_kappa.shape == (3, 1, 1) and np.ptp(drawn.bootstrapped_kappa) > 0
    assert ((drawn.bootstrapped_kappa >= 0) & (drawn.bootstrapped_kappa <= 1)).all()
    SOLVED.check(drawn.compute_prices(), drawn.bootstrapped_prices)


def test_files_and_pickles_have_parameters_of_conduct(tmp_path: Path) -> None:
    results = near_the_truth()
    results.save(tmp_path / "results.zip")
    again = blpjax.load(tmp_path / "results.zip")
    assert again.problem.conduct == WEIGHT and again.kappa == results.kappa
    ROUNDING.check(again.compute_costs(), results.compute_costs())
    results.to_pickle(tmp_path / "results.pickle")
    assert blpjax.read_pickle(tmp_path / "results.pickle").kappa_labels == ["weight"]
    for name, design in DESIGNS.items():
        if not name.startswith("own"):
            assert stored_conduct(conduct_state(design.conduct)) == design.conduct


@pytest.mark.slow
def test_optimal_instruments_are_slopes_of_expected_markups() -> None:
    """Studies compute the same ones."""
    results = estimated()
    found = results.compute_optimal_instruments()
    assert found.fp_converged.all() and np.ptp(found.expected_omega_by_theta_jacobian[:, 1]) > 0.1
    again = found.to_problem()
    optimal = DESIGNS["weight"].solve(again, results.theta)
    assert optimal.converged and abs(optimal.kappa.item() - 0.5) < 3 * optimal.kappa_se.item()


def test_what_cannot_be_estimated_is_refused() -> None:
    problem = economy("weight")[2]
    given = {"sigma": [[1.5]], "beta": [None, -2.0, None], **EXACT}
    results, data = near_the_truth(), dict(problem.product_table.data)
    formulas, integration = problem.product_formulations, blpjax.Integration("product", 5)
    with pytest.raises(ValueError, match="kappa must be given: a number for each parameter of conduct, .* 'weight'"):
        problem.solve(**given)
    with pytest.raises(ValueError, match=r"kappa must have the shape \(1,\), not \(2,\). Parameters .* are 'weight'"):
        problem.solve(**given, kappa=[0.1, 0.2])
    with pytest.raises(ValueError, match="kappa must be given"):
        blpjax.MonteCarlo(Design(blpjax.Bertrand(), None).simulation(30), problem=problem)
    with pytest.raises(ValueError, match="kappa must be given"):
        Design(WEIGHT, None).simulation(30)
    known = blpjax.Problem(formulas, data, integration=integration, conduct=blpjax.Cournot())
    with pytest.raises(ValueError, match="kappa must not be given, because conduct has no parameters. Put blpjax.Par"):
        known.solve(**given, kappa=0.5)
    with pytest.raises(ValueError, match="kappa_bounds must not be given, because the model has no kappa"):
        known.solve(**given, kappa_bounds=(0, 1))
    with pytest.raises(ValueError, match=r"conduct has parameters \('weight'\), which need a supply side"):
        blpjax.Problem(formulas[:2], data, integration=integration, conduct=WEIGHT)
    few = {name: values for name, values in data.items() if "instruments" not in name}
    with pytest.raises(blpjax.exceptions.IdentificationError, match="weight"):
        blpjax.Problem(formulas, few, integration=integration, conduct=WEIGHT).solve(
            sigma=[[1.5]], beta=[None, -2.0, None], kappa=0.5
        )
    for compute in (
        lambda: results.compute_costs(conduct=WEIGHT),
        lambda: results.counterfactual(firm_ids={0: 1}, conduct=WEIGHT),
        lambda: results.test_conduct({"one": WEIGHT, "two": blpjax.Cournot()}, F("1 + w"), {"z": F("0 + x")}),
    ):
        with pytest.raises(ValueError, match=r"has parameters \('weight'\), which only the conduct of Problem and Sim"):
            compute()
    bargaining = Design(DESIGNS["power"].conduct, [0.0])
    with pytest.raises(ValueError, match="kappa must not be zero for 'power', which has to be positive"):
        bargaining.simulation(30)
    with pytest.raises(TypeError, match="name must be the name of a parameter"):
        Parameter("")
    with pytest.raises(TypeError, match="parameters must be names of the function's parameters"):
        blpjax.conduct(internalised, parameters=3)
    with pytest.raises(TypeError, match="weights must be a number, a mapping of pairs.*or a Parameter"):
        blpjax.Bertrand(weights="weight")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight", "power"])
def test_a_study_recovers_parameters_of_conduct_and_intervals_cover_them(name: str) -> None:
    design, count = DESIGNS[name], 100
    simulation, _, problem = design.economy(160)
    chosen = {"sigma": [[1.2]], "beta": [None, -1.8, None], "kappa": 0.4}
    study = blpjax.MonteCarlo(simulation, problem=problem, seed=1, **ERRORS, **chosen)
    assert study.true_values[study.blocks.index("kappa")] == 0.5
    summary = study.run(count).summary()
    assert summary["failures"].sum() == 0
    assert summary["coverage"].between(0.88, 1.0).all(), summary["coverage"]
    chance = summary["sd"] / np.sqrt(count)
    assert (summary["bias"].abs() < 3.5 * chance).all(), summary["bias"] / chance
