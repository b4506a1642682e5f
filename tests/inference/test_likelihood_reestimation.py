"""The bootstrap that estimates by likelihood again: markets that count twice are markets that are there twice."""

import dataclasses
import pickle
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.estimation.likelihood import evaluate_likelihood
from blpjax.exceptions import IdentificationWarning
from blpjax.inference import likelihood_reestimation
from blpjax.inputs.likelihood import ESTIMATORS
from blpjax.iteration import Iteration
from blpjax.objective.likelihood_data import build_likelihood
from tests.support import consumers
from tests.support.consumers import PI, SIGMA, SIZES, likelihood, tables
from tests.support.silence import quiet
from tests.tolerances import ESTIMATES, LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")

COUNTS = np.array([2, 1, 0, 1])


@cache
def solved(estimator: str) -> Any:
    with quiet():
        return consumers.problem().solve(SIGMA, PI, likelihood=likelihood(estimator))


def draw(monkeypatch: pytest.MonkeyPatch, counts: np.ndarray) -> None:
    """Every sample has these markets."""
    monkeypatch.setattr(
        likelihood_reestimation, "draw_weights", lambda key, draws, units, count: np.tile(counts, (draws.size, 1))
    )


def stacked(table: pd.DataFrame) -> pd.DataFrame:
    parts = [
        table[table.market_ids == market].assign(market_ids=f"{market}_{k}")
        for market, count in zip(SIZES, COUNTS, strict=True)
        for k in range(count)
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_samples_in_which_each_market_is_there_once_are_the_full_one(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(monkeypatch, np.ones(4, int))
    found = solved(estimator).reestimate(1)
    assert found.table["ok"].all() and found.table["standard_error"].isna().all() and found.unit == "markets"
    ESTIMATES.check(found.table["estimate"], solved(estimator).parameters.ravel())
    LINEAR_ALGEBRA.check(found.table["objective"][0], solved(estimator).objective)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_samples_are_estimated_as_stacked_tables(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(monkeypatch, COUNTS)
    found = solved(estimator).reestimate(1).table
    products, agents, people = tables()
    sizes = {f"{market}_{k}": SIZES[market] for market, count in zip(SIZES, COUNTS, strict=True) for k in range(count)}
    survey = stacked(people.drop(columns="chosen"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)
        own = consumers.build(stacked(products), stacked(agents)).solve(
            SIGMA, PI, likelihood=likelihood(estimator, market_sizes=sizes, micro_data=survey)
        )
    assert found["ok"].all() and own.converged
    ESTIMATES.check(found["estimate"], own.parameters.ravel())


@pytest.mark.slow
def test_studies_go_on_and_have_outputs(tmp_path: Path) -> None:
    results = solved("mdle")
    first = results.reestimate(4, seed=1, batch_size=2, path=tmp_path)
    again = pickle.loads(pickle.dumps(results)).reestimate(4, seed=1, path=tmp_path)
    assert again.table.equals(first.table) and first.table["draw"].nunique() == 4
    with pytest.raises(blpjax.exceptions.StorageError, match="another study"):
        results.reestimate(4, seed=2, path=tmp_path)
    known = first.table[first.table["ok"]]
    assert known.groupby("parameter")["estimate"].nunique().max() > 1
    assert len(first.to_bootstrapped().compute_elasticities()) == first.ok.sum()


@pytest.mark.slow
def test_respondents_who_count_twice_are_there_twice() -> None:
    """In values and all derivatives, of which second ones have products of what respondents stand for."""
    problem, people = consumers.problem(), tables()[2].drop(columns="chosen")
    parameters = problem.read_parameters(SIGMA, PI, None, None, None, {})
    theta, start = jnp.array([0.9, 0.4, -0.3]), jnp.asarray(problem.closed_form_delta())

    def build(table: pd.DataFrame) -> Any:
        given = likelihood("share-constrained", micro_data=table)
        return build_likelihood(problem.data, parameters, given, Iteration())[0]

    once, twice = build(people), build(pd.concat([people, people]))
    doubled = tuple(dataclasses.replace(asked, present=2.0 * asked.present) for asked in once.people)
    weighted = dataclasses.replace(twice, people=doubled)
    found, expected = (evaluate_likelihood(one, theta, start) for one in (weighted, twice))
    for name in ("objective", "gradient", "hessian", "delta_by_theta"):
        LINEAR_ALGEBRA.check(getattr(found, name), getattr(expected, name), name)
