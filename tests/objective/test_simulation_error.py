"""Simulation error in covariances: PyBLP draws the same agents, a loop over problems, errors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax.exceptions import ConvergenceError, DataError
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.tolerances import FIXED_PARAMETERS

pytestmark = pytest.mark.usefixtures("quiet")

SIGMA, PI = np.diag([0.5, 0.7]), np.array([[0.2], [0.0]])
BETA = [None, -2.5, None, None]

COVARIANCES = ("simulation_covariances", "moments_covariances", "updated_W", "parameter_covariances")


def resampler(sets: int = 4) -> Callable[[int], pd.DataFrame | None]:
    """Agents of all markets drawn again, with another number of them in each market."""
    markets = [f"m{t:03d}" for t in range(4)]

    def resample(index: int) -> pd.DataFrame | None:
        if index >= sets:
            return None
        rng = np.random.default_rng(index)
        counts = rng.permutation([27, 28, 29, 30])
        ids, weights = np.repeat(markets, counts), np.repeat(1 / counts, counts)
        nodes = rng.normal(size=(ids.size, 2))
        columns = {"nodes0": nodes[:, 0], "nodes1": nodes[:, 1], "income": rng.normal(0, 0.5, ids.size)}
        return pd.DataFrame({"market_ids": ids, "weights": weights} | columns)

    return resample


def build(library: Any = blpjax, model: joint.Model = joint.Model()) -> Any:  # noqa: B008
    products, agents = joint.tables(3, markets=4)
    return model.build(library, products, agents if model.X2 else None)


def solve(library: Any = blpjax, model: joint.Model = joint.Model(), problem: Any = None, **more: Any) -> Any:  # noqa: B008
    """Results at the starting values."""
    chosen = {
        "sigma": SIGMA,
        "pi": PI,
        "beta": BETA,
        "method": "1s",
        "optimization": library.Optimization("return"),
        "iteration": library.Iteration("squarem", {"atol": 1e-14}),
        "check_optimality": "gradient",
        "resample_agent_data": resampler(),
    }
    with joint.quiet():
        return (build(library, model) if problem is None else problem).solve(**chosen | more)


FIXED_EFFECTS = joint.Model(X1="0 + prices + x", absorb_demand="C(firm_ids)", X3=None)


CASES: dict[str, tuple[joint.Model, dict[str, Any]]] = {
    "supply": (joint.Model(), {}),
    "unadjusted": (joint.Model(X3=None), {"W_type": "unadjusted", "se_type": "unadjusted"}),
    "two steps": (FIXED_EFFECTS, {"beta": None, "method": "2s", "se_type": "clustered"}),
}


@pytest.mark.parametrize("case", mostly_slow([*CASES], ["supply"]))
def test_pyblp_adds_the_same(case: str) -> None:
    model, arguments = CASES[case]
    ours, theirs = (solve(library, model, **arguments) for library in (blpjax, pyblp))
    assert (np.diag(theirs.simulation_covariances) > 0).all()
    for name in (*COVARIANCES, "sigma_se", "beta_se"):
        FIXED_PARAMETERS.check(getattr(ours, name), getattr(theirs, name), name)


def test_covariances_are_those_of_problems_with_these_agents() -> None:
    moments = []
    for index in range(3):
        with joint.quiet():
            problem = joint.Model().build(blpjax, joint.tables(3, markets=4)[0], resampler()(index))
        results = solve(problem=problem, resample_agent_data=None)
        moments.append(results.moments[:, 0])
    with_error, without = solve(resample_agent_data=resampler(3)), solve(resample_agent_data=None)
    FIXED_PARAMETERS.check(with_error.simulation_covariances, np.cov(moments, rowvar=False))
    FIXED_PARAMETERS.check(
        with_error.moments_covariances, without.moments_covariances + with_error.simulation_covariances
    )
    assert (without.simulation_covariances == 0).all()
    assert (with_error.sigma_se.diagonal() > without.sigma_se.diagonal()).all()


def test_indices_count_up_in_every_step() -> None:
    seen, resample = [], resampler(2)

    def watched(index: int) -> pd.DataFrame | None:
        seen.append(index)
        return resample(index)

    solve(resample_agent_data=watched, method="2s")
    assert seen == [0, 1, 2, 0, 1, 2]


def test_stored_with_results(tmp_path: Any) -> None:
    results = solve()
    with joint.quiet():
        results.save(tmp_path / "results")
        loaded = blpjax.load(tmp_path / "results")
    np.testing.assert_array_equal(loaded.simulation_covariances, results.simulation_covariances)


def lacking(column: str) -> Callable[[int], pd.DataFrame | None]:
    def resample(index: int) -> pd.DataFrame | None:
        agents = resampler()(index)
        return agents if agents is None or index == 0 else agents.drop(columns=column)

    return resample


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (4, TypeError, "resample_agent_data must be a function of an index or None, not int"),
        (resampler(1), ValueError, r"at least 2 sets of agents, but resample_agent_data\(1\) returned None"),
        (
            lacking("weights"),
            DataError,
            r"What resample_agent_data\(1\) returned cannot be used: .*'weights'",
        ),
        (lacking("income"), DataError, r"resample_agent_data\(1\) returned cannot be used: agent_data: .*'income'"),
    ],
)
def test_wrong_functions_are_refused_before_estimation(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve(resample_agent_data=given)


def test_logit_has_no_agents() -> None:
    with pytest.raises(ValueError, match="resample_agent_data needs random coefficients"):
        solve(model=joint.Model(X2=None, demographics=None), sigma=None, pi=None)


def test_markets_that_fail_are_named() -> None:
    def resample(index: int) -> pd.DataFrame | None:
        agents = resampler()(index)
        return agents if agents is None else agents.assign(income=np.where(agents.market_ids == "m002", 1e6, 0.0))

    with pytest.raises(
        ConvergenceError, match=r"agents of resample_agent_data\(0\), the inversion .* in 1 of 4.*'m002'"
    ):
        solve(resample_agent_data=resample, iteration=blpjax.Iteration("squarem", {"max_evaluations": 50}))
