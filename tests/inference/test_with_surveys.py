"""What is done with estimates, where some moments are micro moments: estimation again, tests, and other problems."""

import copy
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax.inference import reestimation
from blpjax.inputs.micro import MicroMoment
from tests.support import named_surveys as economy
from tests.support.silence import quiet
from tests.tolerances import ESTIMATES, FIXED_PARAMETERS, LINEAR_ALGEBRA

VALUES = (0.05, 0.1, 0.05)


def moments(values: Any = VALUES) -> list[MicroMoment]:
    everybody = blpjax.MicroDataset.everybody("everybody", 500)
    buyers = blpjax.MicroDataset.buyers("buyers", 300)
    return [
        MicroMoment.mean(everybody, "log_income", given="purchase", value=values[0]),
        MicroMoment.mean(buyers, "kids * x", value=values[1]),
        MicroMoment.mean(buyers, "log_income * prices", value=values[2]),
    ]


def solve(problem: Any = None, sigma: Any = economy.SIGMA, pi: Any = economy.PI, **options: Any) -> Any:
    chosen = {"micro_moments": moments()} | options
    with quiet("Standard errors", "At the estimates", "The objective"):
        return (economy.problem() if problem is None else problem).solve(sigma, pi, **chosen)


@cache
def estimated() -> Any:
    return solve()


@cache
def evaluated() -> Any:
    return economy.evaluate(moments())


def study(results: Any, **options: Any) -> Any:
    chosen = {"unit": None, "seed": 0, "recentre": False, "costs_bounds": None} | options
    micro = results._micro_blocks("reestimate")
    return reestimation.build_study(results, results._options, results.first_step(), micro=micro, **chosen)


@pytest.mark.slow
def test_values_of_samples_are_drawn_around_observed_ones() -> None:
    made = study(evaluated())
    drawn = np.asarray(made._draw_observed(jnp.arange(4000)))
    errors = np.sqrt(np.diag(evaluated().micro_covariances))
    assert (np.abs(drawn.mean(axis=0) - VALUES) < 4 * errors / np.sqrt(4000)).all()
    correlations = np.corrcoef(drawn.T) - evaluated().micro_covariances / np.outer(errors, errors)
    assert np.abs(correlations).max() < 0.08 and np.abs(drawn.std(axis=0) / errors - 1).max() < 0.08
    # draws depend on seed and number alone
    LINEAR_ALGEBRA.check(made._draw_observed(jnp.array([7]))[0], drawn[7])
    assert np.abs(np.asarray(study(evaluated(), seed=1)._draw_observed(jnp.array([7])))[0] - drawn[7]).min() > 0
    assert made.fingerprint != study(evaluated(), seed=1).fingerprint


@pytest.mark.slow
def test_given_covariances_are_those_of_lanes() -> None:
    C = np.diag([1e-4, 2e-4, 3e-4])
    results = economy.evaluate(moments(), micro_sample_covariances=C)
    (block,) = results._micro_blocks("reestimate")
    LINEAR_ALGEBRA.check(block.sample, C)
    (block,) = evaluated()._micro_blocks("reestimate")
    assert block.sample is None


@pytest.mark.slow
def test_functions_that_were_lost_are_missed() -> None:
    results = copy.copy(evaluated())
    results.micro_moments = None  # as after functions were pickled
    with pytest.raises(NotImplementedError, match="reestimate needs the functions of micro moments, which files"):
        results.reestimate(2)


@pytest.mark.slow
def test_samples_are_estimated_as_by_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every market is drawn once, samples differ in what their surveys say alone."""
    ones = lambda key, draws, units, count: jnp.ones((draws.size, units.size))  # noqa: E731
    monkeypatch.setattr(reestimation, "draw_weights", ones)
    results = estimated()
    with quiet():
        again = results.reestimate(2, recentre=False)
        values = np.asarray(study(results)._draw_observed(jnp.arange(2)))
        recentred = results.reestimate(2)
    for draw in range(2):
        start = results.first_step()
        single = solve(micro_moments=moments(values[draw]), W=start.W)
        mine = again.table[again.table["draw"] == draw]
        assert mine["ok"].all() and single.converged
        ESTIMATES.check(mine["estimate"], single.parameters.ravel())
        ESTIMATES.check(mine["standard_error"], np.sqrt(np.diag(single.parameter_covariances) / single.problem.N))
        other = recentred.table[recentred.table["draw"] == draw]
        assert np.abs(other["estimate"].to_numpy() - mine["estimate"].to_numpy()).max() > 1e-4
    monkeypatch.undo()
    with quiet():
        bootstrapped = results.reestimate(4).to_bootstrapped()
    assert bootstrapped.compute_elasticities().shape[0] == 4


@pytest.mark.slow
def test_starts_are_tried_with_the_weights_of_the_first_step() -> None:
    """Without weights of micro moments, which they get at the given values, starts would ignore surveys."""
    single = solve(method="1s")
    for options in ({}, {"optimization": blpjax.Optimization("l-bfgs-b", {"gtol": 1e-9})}):
        results = solve(method="1s", starts=blpjax.Starts(3, seed=1), **options)
        chosen = results.starts[results.starts["chosen"]]
        FIXED_PARAMETERS.check(chosen["objective"], [results.objective])
        if not options:
            ESTIMATES.check(results.theta, single.theta)
        LINEAR_ALGEBRA.check(results.W, single.W)
    W = np.asarray(single.W)
    FIXED_PARAMETERS.check(solve(method="1s", starts=2, W=W).objective, single.objective)


@pytest.mark.slow
def test_tests_and_problems_after_estimation_have_micro_moments() -> None:
    results = estimated()
    FIXED_PARAMETERS.check(results.run_hansen_test(), results.objective)
    size = len(results.parameters)
    restriction = np.eye(1, size, 2)
    errors = np.sqrt(np.diag(results.parameter_covariances) / results.problem.N)
    wald = results.run_wald_test(results.theta[2:3], restriction)
    LINEAR_ALGEBRA.check(wald, (results.theta[2] / errors[2]) ** 2)
    sigma = economy.SIGMA * np.array([[1, 0], [0, 0]])
    restricted = solve(sigma=sigma, W=results.W, method="1s")
    distance = restricted.run_distance_test(results)
    LINEAR_ALGEBRA.check(distance, restricted.objective - results.objective)
    assert restricted.run_lm_test() >= 0
    values = solve(
        results.problem,
        results.sigma,
        results.pi,
        optimization=blpjax.Optimization("return"),
        check_optimality="gradient",
        method="1s",
    )
    LINEAR_ALGEBRA.check(values.micro_values, results.micro_values)
    optimal = results.compute_optimal_instruments().to_problem()
    again = solve(optimal, results.sigma, results.pi)
    assert again.converged and again.problem is optimal and again.micro_values.shape == (3, 1)
    products, agents = economy.tables()
    candidates = agents.loc[np.repeat(np.arange(24), 60)].reset_index(drop=True)
    rng = np.random.default_rng(0)
    candidates = candidates.assign(weights=1 / 360, nodes0=rng.normal(size=1440), nodes1=rng.normal(size=1440))
    with quiet():
        sampled = results.importance_sampling(50, seed=1, agent_data=candidates).to_problem()
        updated = economy.problem().update(products.assign(x=1.1 * products.x))
    for problem in (sampled, updated):
        found = solve(problem, results.sigma, results.pi)
        assert found.converged and np.abs(found.micro_values - results.micro_values).max() > 1e-6
