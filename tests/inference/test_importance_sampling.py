"""Importance sampling: PyBLP's agents and weights, problems with them, bad arguments."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax import Formulation, Integration
from blpjax.exceptions import DataError, DataWarning
from blpjax.inference.importance_sampling import ATTRIBUTES
from tests.support import joint
from tests.tolerances import FIXED_PARAMETERS, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

PARAMETERS = {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [None, -2.0, None, None]}


def solve(library: Any, problem: Any) -> Any:
    with joint.quiet():
        return problem.solve(
            **PARAMETERS,
            method="1s",
            optimization=library.Optimization("return"),
            iteration=library.Iteration("squarem", {"atol": 1e-14}),
            check_optimality="gradient",
        )


def tables(candidates: int = 400) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Products and agents, so many candidates in every market, rows mixed."""
    products, agents = joint.tables(3, markets=4)
    rng = np.random.default_rng(0)
    agents = pd.DataFrame(
        {
            "market_ids": np.repeat(np.unique(products["market_ids"]), candidates),
            "nodes0": rng.normal(size=4 * candidates),
            "nodes1": rng.normal(size=4 * candidates),
            "income": rng.normal(size=4 * candidates),
            "agent_ids": np.arange(4 * candidates),
        }
    )
    return products, agents.sample(frac=1, random_state=0, ignore_index=True)


@pytest.fixture(scope="module")
def results() -> tuple[Any, Any]:
    """Results of blpjax and PyBLP with few agents."""
    products, agents = joint.tables(3, markets=4)
    return tuple(solve(lib, joint.Model().build(lib, products, agents)) for lib in (blpjax, pyblp))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def demand_alone() -> tuple[Any, Any]:
    """Results without demographics and supply."""
    products, agents = joint.tables(3, markets=4)
    model, found = joint.Model(X3=None, demographics=None), []
    for library in (blpjax, pyblp):
        with joint.quiet():
            found.append(
                model.build(library, products, agents).solve(
                    joint.SIGMA, method="1s", optimization=library.Optimization("return"), check_optimality="gradient"
                )
            )
    return found[0], found[1]


def sample(result: Any, *arguments: Any, **options: Any) -> Any:
    with joint.quiet():
        return result.importance_sampling(*arguments, **options)


def check(ours: Any, theirs: Any) -> None:
    for name in ATTRIBUTES:
        if name.startswith(("weight", "effective")):
            FIXED_PARAMETERS.check(getattr(ours, name), getattr(theirs, name), name)
    assert ours.draws == theirs.draws
    np.testing.assert_array_equal(ours.diagnostic_market_ids, theirs.diagnostic_market_ids)
    for name in ("market_ids", "nodes", "demographics", "agent_ids"):
        np.testing.assert_array_equal(ours.sampled_agents[name], theirs.sampled_agents[name])
    FIXED_PARAMETERS.check(ours.sampled_agents.weights, theirs.sampled_agents.weights)


@pytest.mark.parametrize("ar_constant", [1.0, 1.7])
def test_agents_are_those_of_pyblp(results: tuple[Any, Any], ar_constant: float) -> None:
    candidates = tables()[1]
    with_weights = candidates.assign(weights=-1.0)
    ours = results[0].importance_sampling(20, ar_constant, 5, candidates)
    theirs = sample(results[1], 20, ar_constant, 5, with_weights)
    check(ours, theirs)
    check(results[0].importance_sampling(20, ar_constant, 5, with_weights), theirs)
    assert (np.bincount(pd.factorize(ours.sampled_agents.market_ids[:, 0])[0]) == 20).all()
    assert list(ours.to_dict()) == list(theirs.to_dict())
    for word in ("Importance Sampling Results Summary", "Total", "Min", "for Skewness", "Weight Sum"):
        assert word in str(ours)


def test_by_default_candidates_are_the_problems_agents(results: tuple[Any, Any]) -> None:
    check(*(result.importance_sampling(5, seed=1) for result in results))


def test_more_precise_mean_utilities_are_used(results: tuple[Any, Any]) -> None:
    delta = results[0].delta + 0.3
    check(*(result.importance_sampling(8, seed=1, delta=delta) for result in results))


def test_candidates_may_come_from_an_integration(demand_alone: tuple[Any, Any]) -> None:
    found = []
    for library, result in zip((blpjax, pyblp), demand_alone, strict=True):
        found.append(
            result.importance_sampling(15, seed=2, integration=library.Integration("monte_carlo", 100, {"seed": 3}))
        )
    check(*found)
    problem = found[0].to_problem()
    assert problem.integration is None
    np.testing.assert_array_equal(problem.agents.nodes, found[0].sampled_agents.nodes)


def test_rows_of_agent_data_stand_for_the_agents_of_an_integration(results: tuple[Any, Any]) -> None:
    candidates = tables(100)[1].drop(columns=["nodes0", "nodes1"])
    found = []
    for library, result in zip((blpjax, pyblp), results, strict=True):
        integration = library.Integration("mlhs", 100, {"seed": 3})
        found.append(result.importance_sampling(15, seed=2, agent_data=candidates, integration=integration))
    for name in ("market_ids", "nodes"):
        np.testing.assert_array_equal(found[0].sampled_agents[name], found[1].sampled_agents[name])


@pytest.mark.slow
def test_weights_undo_the_choice_of_agents(results: tuple[Any, Any]) -> None:
    ours = results[0]
    agents = ours.build_agents(tables(4000)[1].assign(weights=1 / 4000), None)
    delta = ours.compute_delta(agent_data=tables(4000)[1].assign(weights=1 / 4000))
    shares = ours.problem.product_table.shares
    sampled = ours.importance_sampling(400, 1.0, 0, tables(4000)[1], delta=delta)
    found = np.asarray(ours.model_in(sampled.to_problem().economy).compute_shares(delta=delta))[:, 0]
    assert agents.table.weights.size == 16000
    # inside shares of each agent are divided out: they add up exactly, the products' shares do in expectation
    index = ours.problem.market_index
    for rows in index.rows:
        ROUNDING.check(found[rows].sum(), shares[rows].sum())
    assert np.abs(found / shares - 1).max() < 0.1
    assert (np.abs(sampled.weight_sums - 1) < 0.2).all() and (sampled.effective_draws <= 400).all()


def test_the_problem_is_solved_with_sampled_agents_as_pyblp_does(results: tuple[Any, Any], tmp_path: Path) -> None:
    candidates = tables()[1]
    found = []
    for library, result in zip((blpjax, pyblp), results, strict=True):
        problem = sample(result, 30, seed=9, agent_data=candidates.assign(weights=1.0)).to_problem()
        assert (problem.I, problem.MD, problem.MS) == (120, 9, 7)
        found.append(solve(library, problem))
    assert type(found[0].problem) is blpjax.ImportanceSamplingProblem
    for name in ("delta", "objective", "gradient", "beta", "gamma", "xi", "omega"):
        FIXED_PARAMETERS.check(getattr(found[0], name), getattr(found[1], name), name)
    # the original problem is what it was
    assert results[0].problem.I == len(joint.tables(3, markets=4)[1])
    found[0].save(tmp_path / "results")
    loaded = blpjax.load(tmp_path / "results")
    assert type(loaded.problem) is blpjax.ImportanceSamplingProblem
    np.testing.assert_array_equal(loaded.problem.agents, found[0].problem.agents)
    np.testing.assert_array_equal(solve(blpjax, loaded.problem).objective, found[0].objective)


@pytest.mark.parametrize("standard_errors", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_counterfactuals_are_those_of_sampled_agents(results: tuple[Any, Any], standard_errors: bool) -> None:
    """A merger as by PyBLP with the same agents, standard errors, and groups of agents."""
    found = [
        solve(library, sample(result, 30, seed=9, agent_data=tables()[1].assign(weights=1.0)).to_problem())
        for library, result in zip((blpjax, pyblp), results, strict=True)
    ]
    firms = found[0].problem.products.firm_ids[:, 0]
    merged = np.where(firms == np.unique(firms)[1], firms.min(), firms)
    with joint.quiet():
        outcome = found[0].counterfactual(firm_ids=merged, standard_errors=standard_errors)
        costs = found[1].compute_costs()
        prices = found[1].compute_prices(merged, costs=costs, iteration=pyblp.Iteration("simple", {"atol": 1e-13}))
        surplus = found[1].compute_consumer_surpluses(prices)
    FIXED_PARAMETERS.check(outcome.products["prices_after"], prices[:, 0])
    FIXED_PARAMETERS.check(outcome.markets["consumer_surplus_after"], surplus[:, 0])
    assert not standard_errors or (outcome.markets["consumer_surplus_change_se"] > 0).all()
    groups = outcome.by_agent("income", quantiles=3)
    ROUNDING.check(groups["weight"].sum(), found[0].problem.agents.weights.sum())
    total = outcome.markets["consumer_surplus_change"].sum()
    FIXED_PARAMETERS.check(groups["change"] @ groups["weight"], total)


def test_sampled_agents_and_optimal_instruments_are_kept_together(results: tuple[Any, Any]) -> None:
    original = results[0].problem
    problem = original.replace_instruments(original.products.ZD[:, :6] ** 2, original.products.ZS[:, :4] ** 2)
    problem = problem.replace_agents(results[0].importance_sampling(4, seed=9).agent_data)
    restored = blpjax.Problem.from_state(problem.to_state())
    for known in (problem, restored):
        assert type(known) is blpjax.ImportanceSamplingProblem and known.I == 16
        np.testing.assert_array_equal(known.products.ZD[:, :6], original.products.ZD[:, :6] ** 2)
        np.testing.assert_array_equal(known.products.ZS[:, :4], original.products.ZS[:, :4] ** 2)


def test_too_few_accepted_candidates_are_an_error(results: tuple[Any, Any]) -> None:
    with pytest.raises(
        DataError, match="only [0-9]+ of 30 candidates were accepted in market 'm000', fewer than draws=29"
    ):
        results[0].importance_sampling(29, seed=0)
    with pytest.raises(DataError, match="or a smaller ar_constant"):
        results[0].importance_sampling(5, 50.0, seed=0)


def test_a_missing_level_of_a_demographic_is_an_error() -> None:
    products, agents = joint.tables(3, markets=4)
    agents["kind"] = ["rare" if i == 0 else "usual" if i % 2 else "other" for i in range(len(agents))]
    model = joint.Model(X3=None)
    problem = dataclasses.replace(model, demographics="0 + C(kind)").build(blpjax, products, agents)
    with joint.quiet():
        results = problem.solve(
            joint.SIGMA,
            np.array([[0.1, 0, 0], [0, 0, 0]]),
            method="1s",
            optimization=blpjax.Optimization("return"),
            check_optimality="gradient",
        )
    sampled = results.importance_sampling(2, seed=1)
    assert sampled.sampled_agents.demographics.shape[1] == 3
    with pytest.raises(DataError, match=r"level of a categorical variable is missing.*kind\['rare'\]"):
        sampled.to_problem()


def test_wrong_arguments_are_refused(results: tuple[Any, Any]) -> None:
    ours, _ = results
    for draws in (0, True):
        with pytest.raises(ValueError, match="draws must be a positive integer"):
            ours.importance_sampling(draws)
    for constant in (0.5, float("nan")):
        with pytest.raises(ValueError, match="ar_constant must be a number that is at least one"):
            ours.importance_sampling(5, constant)
    with pytest.raises(ValueError, match="delta must hold 29 finite numbers"):
        ours.importance_sampling(5, delta=[1.0])
    with pytest.raises(DataError, match="agent_data: there is no column 'nodes"):
        ours.importance_sampling(5, agent_data=tables()[1].drop(columns=["nodes0", "nodes1"]))
    with pytest.raises(DataError, match="agent_data: there is no column 'market_ids'"):
        ours.importance_sampling(5, agent_data=tables()[1].drop(columns="market_ids"))
    with pytest.raises(ValueError, match="agent_formulation needs agent_data"):
        ours.importance_sampling(5, integration=Integration("monte_carlo", 100))


def test_without_random_coefficients_there_is_nothing_to_sample() -> None:
    problem = blpjax.Problem(Formulation("1 + prices"), joint.tables(3, markets=4)[0])
    results = problem.solve(method="1s")
    with pytest.raises(ValueError, match="Without X2 there are no agents"):
        results.importance_sampling(5)


def test_candidates_are_not_warned_of(results: tuple[Any, Any], recwarn: pytest.WarningsRecorder) -> None:
    results[0].importance_sampling(5, seed=0, agent_data=tables()[1].assign(weights=3.0)).to_problem()
    assert not [warning for warning in recwarn if issubclass(warning.category, DataWarning)]
