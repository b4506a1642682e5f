"""Monte Carlo studies of likelihoods: people are drawn, and estimates are those of `Problem.solve`."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.exceptions import DataError
from blpjax.objective.programs import on_host
from blpjax.studies import replications
from blpjax.studies.generator import NOTHING
from blpjax.studies.monte_carlo import MonteCarlo
from tests.support.study_design import MOMENTS, demand_of, surveyed
from tests.tolerances import ESTIMATES, ROUNDING

T, J = 12, 5
RULE = blpjax.Integration("product", 3)


def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Products, agents with all nodes for each income, and respondents of whom numbers in markets count alone."""
    rng, rule = np.random.default_rng(0), RULE.build(1)
    products = pd.DataFrame({"market_ids": np.repeat(np.arange(T), J), "firm_ids": np.tile(np.arange(J) // 2, T)})
    products = products.assign(x=rng.uniform(0, 2, T * J), z=rng.uniform(size=T * J))
    agents = pd.DataFrame({"market_ids": np.repeat(np.arange(T), 30)})
    agents = agents.assign(income=np.repeat(rng.normal(size=10 * T), 3), nodes0=np.tile(rule.nodes[:, 0], 10 * T))
    agents["weights"] = np.tile(rule.weights, 10 * T) / 10
    asked = np.repeat(np.arange(1, T), 40)
    return products, agents, pd.DataFrame({"market_ids": asked, "income": 0.0, "choice_indices": 0})


@cache
def simulation() -> blpjax.Simulation:
    return surveyed(*tables()[:2], of_x=1.0)


@cache
def problem() -> blpjax.Problem:
    return demand_of(simulation())


def likelihood(**options: Any) -> blpjax.MicroLikelihood:
    given = {"market_sizes": 50_000, "micro_data": tables()[2], "integration": RULE, "sigma2": 0.05} | options
    return blpjax.MicroLikelihood(**given)


def build(own: Any = None, given: Any = None, **options: Any) -> MonteCarlo:
    chosen = likelihood() if given is None else given
    return MonteCarlo(simulation(), own or problem(), seed=3, likelihood=chosen, **MOMENTS, **options)


def test_people_choose_as_the_simulation_says() -> None:
    """Shares of everybody are near probabilities, and respondents are agents of their markets who chose something."""
    made, known = build(), simulation().primitives
    model = known.model(known.delta)
    at = model.on_host()
    values = (known.product_table.prices, np.asarray(at.compute_shares())[:, 0], known.delta)
    drawn = on_host(replications.Drawn(*map(jnp.asarray, values), jnp.zeros(T, int), NOTHING))
    assert made._likelihood is not None
    data, survey = made._likelihood._draw(1, drawn, at)
    shares, N = data.product_table.shares, 50_000
    errors = np.sqrt(values[1] * (1 - values[1]) / N)
    assert (np.abs(shares - values[1]) < 5 * errors).all() and np.abs(shares - values[1]).min() > 0
    ROUNDING.check(shares * N, np.round(shares * N))
    people = pd.DataFrame(survey.micro_data)
    assert (people.groupby("market_ids").size() == 40).all() and 0 not in set(people.market_ids)
    agents = tables()[1]
    for market, rows in people.groupby("market_ids"):
        assert set(rows.income) <= set(agents.income[agents.market_ids == market])
        assert rows.choice_indices.between(0, J).all()
    # everybody likes x more with more income: a survey that says who chose what shows that
    x = np.r_[0, 1][(people.choice_indices > 0).astype(int)]
    assert np.corrcoef(people.income, x)[0, 1] > 0.1
    again = made._likelihood._draw(1, drawn, at)[1].micro_data
    assert again is not None and (again["choice_indices"] == people.choice_indices.to_numpy()).all()
    assert made.fingerprint == build().fingerprint != build(given=likelihood(sigma2=0.1)).fingerprint


@pytest.mark.usefixtures("unchecked_types")
def test_likelihoods_that_cannot_be_studied_are_refused() -> None:
    for option, value in {"method": "1s", "W_type": "unadjusted", "optimal_instruments": "approximate"}.items():
        with pytest.raises(NotImplementedError, match=f"{option} is not supported in studies of likelihoods"):
            build(**{option: value})
    with pytest.raises(TypeError, match="likelihood must be a MicroLikelihood or None"):
        build(given="cler")
    with pytest.raises(DataError, match="must exceed numbers of respondents, but market 1 has 40 people and 40 "):
        build(given=likelihood(market_sizes=40))
    with pytest.raises(DataError, match="no markets with the IDs 99"):
        build(given=likelihood(micro_data=tables()[2].assign(market_ids=99)))


@pytest.mark.slow
def test_replications_are_estimated_as_by_solve(tmp_path: Path) -> None:
    made = build()
    results = made.run(3, batch_size=2, path=tmp_path)
    assert results.table["ok"].all() and build().run(3, path=tmp_path).table.equals(results.table)
    drawn = replications.draw_replications(made._truth, jax.random.key(3), jnp.arange(2))
    assert made._likelihood is not None
    one = jax.tree.map(lambda leaf: np.asarray(leaf)[1], drawn)
    data, survey = made._likelihood._draw(1, one, on_host(made._truth.model))
    known = simulation()
    again = blpjax.Problem(
        known.product_formulations[:2], dict(data.product_table.data), known.agent_formulation, known.agent_data
    )
    single = again.solve([[1.0]], [[1.0]], likelihood=survey)
    rows = results.table[results.table["replication"] == 1]
    ESTIMATES.check(rows["estimate"], single.parameters.ravel())
    ESTIMATES.check(rows["standard_error"], np.sqrt(np.diag(single.parameter_covariances) / again.N))
    assert single.converged and (rows["true"].to_numpy() == [1.0, 1.0, 1.0, -2.0, 1.0]).all()
    # a market so small that nobody chooses some product: the replication says so
    tiny = build(given=likelihood(market_sizes=60)).run(2).table
    assert not tiny["ok"].any() and tiny["estimate"].isna().all() and tiny["status"].str.len().min() > 20
    small = summary_of(build(data_generator=lambda rng: {"x": rng.uniform(0, 2, T * J)}))
    assert small["failures"].max() <= 1 and ((small["bias"].abs() / small["mean_se"]) < 2).all()


def summary_of(study: MonteCarlo) -> pd.DataFrame:
    return study.run(6).summary()
