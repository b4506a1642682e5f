"""Optimal instruments: PyBLP's numbers and draws, problems made of them, failed equilibria, bad arguments."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax import Formulation, Iteration
from blpjax.exceptions import (
    ConvergenceError,
    ConvergenceWarning,
    DataError,
    GenericNumericalError,
    IdentificationWarning,
)
from blpjax.inference.optimal_instruments import ATTRIBUTES, compute_optimal_instruments
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.tolerances import DELTA, ESTIMATES, FIXED_PARAMETERS, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

USUAL = {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [None, -2.0, None, None]}
TIGHT = {"atol": 1e-14}
NUMBERS = [name for name in ATTRIBUTES if name.startswith(("demand", "supply", "inverse", "expected"))]


class Case(NamedTuple):
    """A model and parameters at which it is evaluated."""

    model: joint.Model
    parameters: dict[str, Any]


CASES = {
    "linear costs": Case(joint.Model(), USUAL),
    "log costs, beta and gamma in theta": Case(
        joint.Model(options={"costs_type": "log"}), USUAL | {"beta": [None, -2.0, 0.9, None], "gamma": [None, 0.4, 0]}
    ),
    "log costs of shares": Case(
        joint.Model("1 + log(prices) + x + y", X3="1 + w + shares + log(shares)", options={"costs_type": "log"}),
        USUAL | {"beta": [None, -4.0, None, None], "gamma": [None, None, 0.1, None]},
    ),
    "fixed effects": Case(
        joint.Model("0 + prices + x", X3="0 + w", absorb_demand="C(firm_ids)", absorb_supply="C(firm_ids)"),
        USUAL | {"beta": [-2.0, None]},
    ),
    "prices in X2, demand alone": Case(
        joint.Model("1 + prices + x + y", "0 + x + log(prices)", None), USUAL | {"beta": [None, None, None, 0.5]}
    ),
    "fixed effects, demand alone": Case(
        joint.Model("0 + prices + I(prices**2) + x", X3=None, absorb_demand="C(firm_ids)"), USUAL | {"beta": None}
    ),
    "logit": Case(joint.Model(X2=None, X3=None, demographics=None), {"beta": None}),
    "logit, log costs of shares": Case(
        joint.Model(X2=None, X3="1 + w + shares + log(shares)", demographics=None, options={"costs_type": "log"}),
        {"beta": [None, -2.0, None, None]},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def one_draw_at_a_time() -> Iterator[None]:
    """Programs for all numbers of draws are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blpjax.model.elsewhere.lanes", lambda economy, outputs: 1)
        yield


def solve(library: Any, problem: Any, parameters: dict[str, Any], **more: Any) -> Any:
    chosen = {
        "method": "1s",
        "optimization": library.Optimization("return"),
        "iteration": library.Iteration("squarem", TIGHT),
        "check_optimality": "gradient",
    }
    with joint.quiet():
        return problem.solve(**parameters, **(chosen | more))


@functools.cache
def solved(name: str) -> tuple[Any, Any]:
    """Results of blpjax and PyBLP at the case's parameters."""
    case = CASES[name]
    logs = case.model.options.get("costs_type") == "log"
    products, agents = joint.tables(3, "log" if logs else "linear", markets=4)
    found = []
    for library in (blpjax, pyblp):
        problem = case.model.build(library, products, agents if case.model.X2 else None)
        found.append(solve(library, problem, case.parameters))
    return found[0], found[1]


def compute(name: str, **arguments: Any) -> tuple[Any, Any]:
    """Instruments of both libraries, which are computed once where there are no arguments."""
    return _computed(name, **arguments) if arguments else _computed_once(name)


def _computed(name: str, **arguments: Any) -> tuple[Any, Any]:
    ours, theirs = solved(name)
    with joint.quiet():
        return ours.compute_optimal_instruments(**arguments), theirs.compute_optimal_instruments(**arguments)


_computed_once = functools.cache(_computed)


def check(ours: Any, theirs: Any, names: list[str] = NUMBERS) -> None:
    for name in names:
        FIXED_PARAMETERS.check(getattr(ours, name), getattr(theirs, name), name)


@pytest.mark.parametrize(
    "arguments", [{}, {"method": "normal", "draws": 3}, {"method": "empirical", "draws": 3}], ids=str
)
@pytest.mark.parametrize("name", mostly_slow([*CASES], ["prices in X2, demand alone", "logit"]))
def test_instruments_are_those_of_pyblp(name: str, arguments: dict[str, Any]) -> None:
    ours, theirs = compute(name, seed=7, **arguments)
    check(ours, theirs)
    assert (ours.draws, ours.fp_converged.tolist()) == (theirs.draws, theirs.fp_converged.tolist())
    assert (ours.fp_iterations.shape, ours.contraction_evaluations.shape) == (theirs.fp_iterations.shape,) * 2
    # without a search for equilibrium prices there are no iterations
    assert ours.fp_iterations.any() == theirs.fp_iterations.any()
    for shifters in ("supply_shifter_formulation", "demand_shifter_formulation"):
        assert str(getattr(ours, shifters)) == str(getattr(theirs, shifters))
    assert list(ours.to_dict()) == list(theirs.to_dict())


@pytest.mark.parametrize(
    "name",
    mostly_slow(["log costs, beta and gamma in theta", "fixed effects, demand alone", "logit"], ["logit"]),
)
def test_given_expected_prices_replace_equilibrium_prices(name: str) -> None:
    prices = solved(name)[0].problem.product_table.prices + 0.1
    ours, theirs = compute(name, expected_prices=prices, method="normal", draws=2, seed=0)
    check(ours, theirs)
    ROUNDING.check(ours.expected_prices[:, 0], prices)
    assert not ours.fp_iterations.any() and ours.fp_converged.all()


@pytest.mark.slow
@pytest.mark.parametrize("constant_costs", [True, False])
def test_a_search_for_prices_can_be_asked_for_where_costs_depend_on_shares(constant_costs: bool) -> None:
    results = solved("log costs of shares")
    found = []
    for library, result in zip((blpjax, pyblp), results, strict=True):
        with joint.quiet():
            iteration = library.Iteration("simple", {"atol": 1e-13})
            found.append(result.compute_optimal_instruments(iteration=iteration, constant_costs=constant_costs))
    check(*found)
    assert found[0].fp_iterations.any()
    assert "Fixed Point" in str(found[0]) and "Error Term" in str(found[0])


@pytest.mark.slow
def test_averages_do_not_depend_on_how_many_draws_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = solved("linear costs")
    one_by_one = ours.compute_optimal_instruments("normal", 3, 0)
    monkeypatch.setattr("blpjax.model.elsewhere.lanes", lambda economy, outputs: 2)
    in_pairs = ours.compute_optimal_instruments("normal", 3, 0)
    for name in NUMBERS:
        DELTA.check(getattr(in_pairs, name), getattr(one_by_one, name), name)
    np.testing.assert_array_equal(in_pairs.fp_iterations.shape, (4, 3))
    assert np.abs(in_pairs.expected_prices - ours.compute_optimal_instruments().expected_prices).max() > 1e-3


def instruments(problem: Any) -> list[np.ndarray]:
    return [np.asarray(problem.products.ZD), np.asarray(problem.products.ZS)]


@pytest.mark.filterwarnings("ignore:Z[DS] has:blpjax.exceptions.IdentificationWarning")
@pytest.mark.parametrize(
    "name",
    mostly_slow(
        [name for name in CASES if "shares" not in name],
        ["linear costs", "prices in X2, demand alone", "logit"],
    ),
)
def test_problems_have_the_instruments_of_pyblp(name: str) -> None:
    ours, theirs = compute(name)
    problems = ours.to_problem(), theirs.to_problem()
    for built, expected in zip(*map(instruments, problems), strict=True):
        FIXED_PARAMETERS.check(built, expected)
    assert isinstance(problems[0], blpjax.OptimalInstrumentProblem) and isinstance(problems[0], blpjax.Problem)
    names = ("N", "T", "I", "K1", "K2", "K3", "D", "MD", "MS", "ED", "ES")
    assert [getattr(problems[0], n) for n in names] == [getattr(problems[1], n) for n in names]
    # the original problem is what it was
    original = solved(name)[0].problem
    assert original.MD == solved(name)[1].problem.MD and type(original) is blpjax.Problem


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log costs of shares", "logit, log costs of shares"])
def test_columns_of_X3_with_shares_are_no_instruments(name: str) -> None:
    prices = solved(name)[0].problem.product_table.prices
    ours, theirs = compute(name, expected_prices=prices + 0.1)
    (ZD, ZS), (ZD_pyblp, ZS_pyblp) = instruments(ours.to_problem()), instruments(theirs.to_problem())
    FIXED_PARAMETERS.check(ZD, ZD_pyblp)
    exogenous = [not {"shares"} & column.names for column in ours.problem_results.model.characteristics.X3_columns]
    excluded = ZS_pyblp.shape[1] - len(exogenous)
    # PyBLP adds all of X3, endogenous columns too
    FIXED_PARAMETERS.check(ZS, ZS_pyblp[:, np.r_[np.full(excluded, True), exogenous]])
    shares = ours.problem_results.problem.product_table.shares
    assert not np.isclose(ZS, shares[:, None]).all(axis=0).any()


@pytest.mark.slow
def test_reestimation_finds_the_estimates_of_pyblp() -> None:
    products, agents = joint.tables(3)
    model = joint.Model(X2="0 + x", demographics=None)
    start = {"sigma": 0.5, "beta": [None, -2.0, None, None]}
    found = []
    for library in (blpjax, pyblp):
        with joint.quiet():
            results = solve(library, model.build(library, products, agents), start)
            problem = results.compute_optimal_instruments("normal", 2, 0).to_problem()
            optimization = library.Optimization("l-bfgs-b", {"gtol": 1e-9, "ftol": 0})
            found.append(solve(library, problem, start, optimization=optimization))
    for name in ("sigma", "beta", "gamma"):
        ESTIMATES.check(getattr(found[0], name), getattr(found[1], name), name)


@dataclasses.dataclass(frozen=True)
class Change:
    """Arguments of `to_problem`, made with a library's Formulation."""

    arguments: Callable[[Any], dict[str, Any]]


CHANGES = {
    "shifters": Change(
        lambda F: {"supply_shifter_formulation": F("w + I(w**2)"), "demand_shifter_formulation": F("0 + y + I(y**2)")}
    ),
    "no shifters": Change(lambda F: {"supply_shifter_formulation": F("1"), "demand_shifter_formulation": F("1")}),
    "dropped columns": Change(lambda F: {"drop_indices": [0, 2]}),
    "nothing dropped": Change(lambda F: {"drop_indices": []}),
    "other data": Change(
        lambda F: {
            "supply_shifter_formulation": F("w + u"),
            "product_data": joint.tables(3, markets=4)[0].assign(u=lambda rows: rows["w"] ** 3),
        }
    ),
}


@pytest.mark.filterwarnings("ignore:Z[DS] has:blpjax.exceptions.IdentificationWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", mostly_slow(["linear costs", "log costs, beta and gamma in theta"], ["linear costs"]))
def test_shifters_and_dropped_columns_are_those_of_pyblp(name: str, change: str) -> None:
    ours, theirs = compute(name)
    arguments = CHANGES[change].arguments
    with joint.quiet():
        expected = theirs.to_problem(**arguments(pyblp.Formulation))
    for built, known in zip(instruments(ours.to_problem(**arguments(Formulation))), instruments(expected), strict=True):
        FIXED_PARAMETERS.check(built, known)


def test_all_columns_of_the_problems_data_can_be_shifters() -> None:
    ours, _ = compute("linear costs")
    problem = ours.to_problem(supply_shifter_formulation=Formulation("0 + w + supply_instruments2"))
    assert problem.MD == ours.to_problem().MD + 1


def test_instruments_may_be_replaced_by_others() -> None:
    ours, _ = compute("linear costs")
    found = copy.copy(ours)
    found.demand_instruments = ours.demand_instruments / ours.demand_instruments.std(axis=0)
    scaled, plain = (instruments(results.to_problem())[0] for results in (found, ours))
    P = ours.demand_instruments.shape[1]
    ROUNDING.check(scaled[:, :P] * ours.demand_instruments.std(axis=0), plain[:, :P])
    np.testing.assert_array_equal(scaled[:, P:], plain[:, P:])
    found.demand_instruments = ours.demand_instruments[:-1]
    with pytest.raises(ValueError, match="demand_instruments"):
        found.to_problem()


def test_problems_with_new_instruments_are_solved_saved_and_loaded(tmp_path: Path) -> None:
    case = CASES["linear costs"]
    ours, theirs = compute("linear costs")
    results = solve(blpjax, ours.to_problem(), case.parameters)
    expected = solve(pyblp, theirs.to_problem(), case.parameters)
    for name in ("objective", "gradient", "beta", "gamma", "xi", "omega", "parameter_covariances"):
        FIXED_PARAMETERS.check(getattr(results, name), getattr(expected, name), name)
    path = tmp_path / "results"
    results.save(path)
    loaded = blpjax.load(path)
    assert type(loaded.problem) is blpjax.OptimalInstrumentProblem
    for saved, built in zip(instruments(results.problem), instruments(loaded.problem), strict=True):
        np.testing.assert_array_equal(built, saved)
    again = solve(blpjax, loaded.problem, case.parameters)
    np.testing.assert_array_equal(again.objective, results.objective)
    expected = results.compute_optimal_instruments()
    ROUNDING.check(loaded.compute_optimal_instruments().demand_instruments, expected.demand_instruments)


def test_formulas_may_use_columns_of_replaced_instruments() -> None:
    products, agents = joint.tables(3, markets=4)
    problem = joint.Model(X3="1 + demand_instruments0 + x").build(blpjax, products, agents)
    problem = problem.replace_instruments(problem.products.ZD[:, 1:5] ** 2, problem.products.ZS[:, :4] ** 3)
    np.testing.assert_array_equal(problem.X3[:, 1], products["w"])
    restored = blpjax.Problem.from_state(problem.to_state())
    np.testing.assert_array_equal(restored.X3, problem.X3)
    for known, built in zip(instruments(problem), instruments(restored), strict=True):
        np.testing.assert_array_equal(built, known)


def test_draws_without_equilibrium_are_left_out_and_named() -> None:
    ours, _ = solved("linear costs")
    table = ours.problem.product_table
    lost, N = table.market_ids == "m002", len(ours.xi)
    perturbed = copy.copy(ours)
    # at costs of minus infinity there is no equilibrium
    perturbed.tilde_costs = np.where(lost[:, None], -1e300, ours.tilde_costs)
    with pytest.warns(
        ConvergenceWarning, match=r"all draws in 1 markets, where instruments are NaN.* 1 of 4 markets: 'm002'"
    ):
        found = compute_optimal_instruments(perturbed)
    intact = ours.compute_optimal_instruments()
    assert np.isnan(found.demand_instruments[lost]).all() and np.isnan(found.expected_prices[lost]).all()
    DELTA.check(found.demand_instruments[~lost], intact.demand_instruments[~lost])
    np.testing.assert_array_equal(found.fp_converged[:, 0], [True, True, False, True])
    with pytest.raises(ConvergenceError, match="computation of optimal instruments .* in 1 of 4 markets: 'm002'"):
        found.to_problem()
    assert N == found.expected_prices.size


def test_averages_are_over_the_draws_that_have_an_equilibrium(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = solved("linear costs")
    errors = np.hstack([ours.xi, ours.omega])
    drawn = [
        np.random.RandomState(s).multivariate_normal([0, 0], np.cov(errors, rowvar=False), len(errors)) for s in (0, 1)
    ]
    spoiled = drawn[1].copy()
    spoiled[ours.problem.product_table.market_ids == "m001", 1] = -1e300

    def average(*samples: np.ndarray) -> Any:
        monkeypatch.setattr("blpjax.inference.optimal_instruments._draw_errors", lambda *arguments: iter(samples))
        return ours.compute_optimal_instruments("normal", len(samples))

    with pytest.warns(
        ConvergenceWarning, match=r"leave out draws of structural errors, because .* in 1 of 4 markets: 'm001'"
    ):
        found = average(drawn[0], spoiled)
    first, both = average(drawn[0]), average(*drawn)
    affected = ours.problem.product_table.market_ids == "m001"
    for name in (
        "expected_xi_by_theta_jacobian",
        "expected_omega_by_theta_jacobian",
        "expected_prices",
        "expected_shares",
    ):
        DELTA.check(getattr(found, name)[affected], getattr(first, name)[affected], name)
        DELTA.check(getattr(found, name)[~affected], getattr(both, name)[~affected], name)
    np.testing.assert_array_equal(found.fp_converged, [[True, True], [True, False], [True, True], [True, True]])


@pytest.mark.slow
def test_covariance_instruments_are_not_optimised() -> None:
    products, agents = joint.tables(3, markets=4)
    products["covariance_instruments0"] = products["x"]
    results = solve(blpjax, joint.Model().build(blpjax, products, agents), USUAL)
    with pytest.warns(IdentificationWarning, match="covariance_instruments stay what they are"):
        found = results.compute_optimal_instruments()
    problem = found.to_problem()
    assert problem.MC == 1
    np.testing.assert_array_equal(problem.products.ZC[:, 0], products["x"])


def test_collinear_shifters_are_named() -> None:
    ours, _ = compute("linear costs")
    with pytest.warns(IdentificationWarning, match=r"ZD has 8 columns but rank 7: .*'demand_instruments\[4\]'"):
        ours.to_problem(supply_shifter_formulation=Formulation("0 + x"))


def test_wrong_arguments_are_refused() -> None:
    ours, _ = solved("linear costs")
    alone, _ = solved("logit")
    compute = ours.compute_optimal_instruments
    with pytest.raises(ValueError, match="method must be one of .*'approximate', 'normal', 'empirical'"):
        compute("exact")
    for draws in (0, True):
        with pytest.raises(ValueError, match="draws must be a positive integer"):
            compute("normal", draws)
    for prices in ([1.0], np.full(len(ours.xi), np.nan), "high"):
        with pytest.raises(ValueError, match="expected_prices must (hold 29 finite numbers|be an array of numbers)"):
            compute(expected_prices=prices)
    with pytest.raises(ValueError, match="either expected_prices or iteration"):
        compute(expected_prices=np.ones(len(ours.xi)), iteration=Iteration("simple"))
    with pytest.raises(ValueError, match="iteration needs a supply side"):
        alone.compute_optimal_instruments(iteration=Iteration("simple"))
    broken = copy.copy(ours)
    broken.xi = np.full_like(ours.xi, np.nan)
    with pytest.raises(GenericNumericalError, match="Structural errors of these results are not finite"):
        compute_optimal_instruments(broken)


def test_wrong_arguments_of_to_problem_are_refused() -> None:
    ours, _ = compute("linear costs")
    alone, _ = compute("logit")
    with pytest.raises(TypeError, match="supply_shifter_formulation must be None, because there is no supply side"):
        alone.to_problem(supply_shifter_formulation=Formulation("w"))
    with pytest.raises(ValueError, match="demand_shifter_formulation must not contain 'prices'"):
        ours.to_problem(demand_shifter_formulation=Formulation("prices + y"))
    with pytest.raises(ValueError, match="supply_shifter_formulation must not absorb fixed effects"):
        ours.to_problem(Formulation("w", absorb="C(firm_ids)"))
    with pytest.raises(DataError, match="product_data: there is no column 'nothing'"):
        ours.to_problem(Formulation("nothing"))
    with pytest.raises(ValueError, match="product_data must have 29 rows, those of the problem, not 2"):
        ours.to_problem(Formulation("w"), product_data=pd.DataFrame({"w": [1.0, 2.0]}))
    with pytest.raises(ValueError, match="drop_indices must be a sequence of integers from 0 to 3"):
        ours.to_problem(drop_indices=[4])


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_types_are_refused() -> None:
    ours, _ = compute("linear costs")
    with pytest.raises(TypeError, match="iteration must be Iteration or None"):
        solved("linear costs")[0].compute_optimal_instruments(iteration="simple")
    with pytest.raises(TypeError, match="supply_shifter_formulation must be a Formulation or None, not str"):
        ours.to_problem("w")
    for indices in ([0.5], [True], "0"):
        with pytest.raises(TypeError, match="drop_indices must be a sequence of integers from 0 to 3"):
            ours.to_problem(drop_indices=indices)


def test_replaced_instruments_must_fit_the_problem() -> None:
    ours, alone = solved("linear costs")[0].problem, solved("logit")[0].problem
    Z = np.ones((ours.N, 1))
    with pytest.raises(ValueError, match="demand_instruments must be a matrix of finite numbers with 29 rows"):
        ours.replace_instruments(Z[1:], Z)
    with pytest.raises(ValueError, match="supply_instruments must be a matrix of finite numbers"):
        ours.replace_instruments(Z, Z * np.nan)
    with pytest.raises(ValueError, match="supply_instruments need a supply side"):
        alone.replace_instruments(np.asarray(jnp.asarray(Z)), Z)
