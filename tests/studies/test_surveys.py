"""Micro moments in Monte Carlo studies: respondents are drawn anew, and estimates are those of `Problem.solve`."""

import dataclasses
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax.exceptions import DataError, IdentificationError, IdentificationWarning
from blpjax.inputs.micro import MicroMoment
from blpjax.studies import replications
from blpjax.studies.generator import NOTHING
from blpjax.studies.monte_carlo import MonteCarlo
from tests.support.study_design import MOMENTS, demand_of, surveyed
from tests.tolerances import LINEAR_ALGEBRA, ROUNDING

SIZES = (5, 3, 5, 4) * 5


def tables() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    market_ids, rng = np.repeat(np.arange(len(SIZES)), SIZES), np.random.default_rng(0)
    products = {"market_ids": market_ids, "firm_ids": np.concatenate([np.arange(n) // 2 for n in SIZES])}
    products |= {name: rng.uniform(size=market_ids.size) for name in ("x", "z")}
    rows = np.repeat(np.arange(len(SIZES)), 20)
    agents = {"market_ids": rows, "weights": np.full(rows.size, 1 / 20)}
    return products, agents | {name: rng.normal(size=rows.size) for name in ("nodes0", "income")}


@cache
def simulation() -> blpjax.Simulation:
    return surveyed(*tables(), of_x=2.0)


def problem(instruments: int = 3) -> blpjax.Problem:
    return demand_of(simulation(), instruments)


def moments(prices: bool = False, observations: Any = 2000) -> list[MicroMoment]:
    """By column, and by functions, perhaps of prices; values play no role."""
    everybody = blpjax.MicroDataset.everybody("everybody", observations)
    buyers = blpjax.MicroDataset("buyers", 1000, lambda t, p, a: np.ones((a.size, p.size)))
    part = blpjax.MicroPart("income x", buyers, lambda t, p, a: a.demographics * p.X2[:, 0][None])
    costly = blpjax.MicroPart("costly", buyers, lambda t, p, a: a.demographics * p.prices[:, 0][None])
    found = [
        MicroMoment.mean(everybody, "income", given="purchase"),
        MicroMoment("ratio", 0.0, [part, blpjax.MicroPart.of(everybody, "purchase")], lambda v: v[0] / v[1]),
    ]
    return [*found, MicroMoment("costly", 0.0, costly)] if prices else found


def build(micro_moments: Sequence[MicroMoment], own: Any = None, **options: Any) -> MonteCarlo:
    given = {"beta": None} if own is not None and own.K3 == 0 else {}
    return MonteCarlo(simulation(), own, seed=3, micro_moments=micro_moments, **given, **MOMENTS, **options)


def test_surveys_are_asked_again_where_they_use_what_is_drawn() -> None:
    own = problem()
    assert not build(moments(), own)._surveys._moves
    assert build(moments(prices=True), own)._surveys._moves
    dataset = blpjax.MicroDataset("b", 10, lambda t, p, a: 1.0 + (p.prices[:, 0] > 1e3) * np.ones((a.size, 1)))
    assert build(
        [MicroMoment("m", 0.0, blpjax.MicroPart("p", dataset, lambda t, p, a: a.nodes * np.ones(p.size)))], own
    )._surveys._moves
    by_column = MicroMoment.mean(blpjax.MicroDataset.buyers("b", 10), "log(income**2) * prices")
    assert build([by_column], own)._surveys._moves
    of_x = moments()[1:]
    assert not build(of_x, own)._surveys._moves
    drawn = build(of_x, own, data_generator=lambda rng: {"x": rng.uniform(size=own.N)})
    assert drawn._surveys._moves and drawn._surveys.numbers > 0


@pytest.mark.slow
def test_studies_with_other_surveys_are_other_studies() -> None:
    own = problem()
    same = [build(moments(), own).fingerprint for _ in range(2)]
    others = [build(what, own).fingerprint for what in ([], moments()[:1], moments(observations=1999))]
    others.append(build(moments(), own, micro_sample_covariances=True).fingerprint)
    assert same[0] == same[1] and len({same[0], *others}) == 5


def test_values_are_those_of_respondents() -> None:
    """At two sets of prices: populations by a loop over markets, and samples of the size that they should have."""
    made = build(moments(prices=True, observations=40_000), problem(), micro_sample_covariances=True)
    known, columns = simulation().primitives, simulation().product_data
    model, drawn, expected = known.model(known.delta), [], []
    for prices in (known.product_table.prices, known.product_table.prices[::-1] * 1.3):
        at, totals = model.on_host().at({"prices": prices}), np.zeros((2, 4))
        values = (np.array(prices), np.asarray(at.compute_shares())[:, 0], np.asarray(at.delta))
        drawn.append(replications.Drawn(*map(jnp.asarray, values), jnp.zeros(len(SIZES), int), NOTHING))
        for t in range(len(SIZES)):
            rows, people = columns["market_ids"][:, 0] == t, np.asarray(tables()[1]["market_ids"]) == t
            income, nu = tables()[1]["income"][people], tables()[1]["nodes0"][people]
            x = columns["x"][rows, 0]
            e = np.exp(values[2][rows][:, None] + x[:, None] * (nu + income)[None])
            s = e / (1 + e.sum(axis=0)) / income.size
            totals[0] += [s.sum(), 1.0, s.sum(), s.sum()]
            costly = values[0][rows][:, None]
            totals[1] += [(s * income).sum(), s.sum(), (s * income * x[:, None]).sum(), (s * income * costly).sum()]
        income, share, income_x, dear = totals[1] / totals[0]
        expected.append([income, income_x / share, dear])
    found = made._surveys.draw(np.arange(2), jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn), model)
    LINEAR_ALGEBRA.check(found.population, expected)
    distance = (found.observed - found.population) / found.errors
    assert (np.abs(distance) < 4).all() and (np.abs(distance) > 1e-6).all()
    ROUNDING.check(found.errors**2, np.diagonal(found.sample, axis1=1, axis2=2))
    again = made._surveys.draw(np.array([1]), jax.tree.map(lambda leaf: leaf[None], drawn[1]), model)
    assert (again.observed[0] == found.observed[1]).all()
    broken = jax.tree.map(lambda leaf: leaf[None], drawn[1])
    broken = dataclasses.replace(broken, prices=jnp.nan * broken.prices)
    assert np.isnan(made._surveys.draw(np.array([1]), broken, model).observed).all()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"micro_moments": [MicroMoment.mean(blpjax.MicroDataset.everybody("e"), "income")]}, ValueError,
         "The micro dataset 'e' has no number of observations, which are drawn"),
        ({"micro_sample_covariances": True}, ValueError, "micro_sample_covariances need micro_moments"),
        ({"micro_moments": moments(), "micro_sample_covariances": np.eye(2)}, TypeError, "micro_sample_covariances"),
        ({"micro_moments": moments() * 2}, ValueError, "is there twice"),
        ({"micro_moments": [MicroMoment.mean(blpjax.MicroDataset.everybody("e", 9), "wealth")]}, DataError, "wealth"),
    ],
)  # fmt: skip
def test_surveys_that_cannot_be_used_are_refused(given: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        MonteCarlo(simulation(), problem(), **{"beta": None, **given}, **MOMENTS)


def test_micro_moments_count_as_moments() -> None:
    with pytest.raises(IdentificationError, match=r"fewer moments \(4\) than parameters \(5"):
        build([], problem(2))
    assert len(build(moments(), problem(2)).labels) == 5


@pytest.mark.slow
def test_replications_are_estimated_as_by_solve(tmp_path: Path) -> None:
    """With the values that respondents say; a study with prices in moments goes on where it stopped."""
    own = simulation().replace_endogenous().to_problem(simulation().product_formulations[:2])
    for prices, sampled in ((False, True), (True, False)):
        asked = moments(prices)
        made = build(asked, own, micro_sample_covariances=sampled)
        results = made.run(4, batch_size=2, path=tmp_path / str(prices))
        drawn = replications.draw_replications(made._truth, jax.random.key(3), jnp.arange(2))
        survey = made._surveys.draw(np.arange(2), drawn, made._truth.model)
        data = dict(own.product_table.data)
        data |= {"prices": np.asarray(drawn.prices[1]), "shares": np.asarray(drawn.shares[1])}
        again = blpjax.Problem(own.product_formulations, data, own.agent_formulation, simulation().agent_data)
        filled = [
            MicroMoment(m.name, v, m.parts[0]) if m.is_part else MicroMoment(m.name, v, m.parts, m.compute_value)
            for m, v in zip(asked, survey.observed[1], strict=True)
        ]
        covariances = survey.sample[1] if sampled else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IdentificationWarning)
            single = again.solve([[1.0]], [[1.0]], micro_moments=filled, micro_sample_covariances=covariances)
        rows = results.table[results.table["replication"] == 1]
        mine = {block: frame for block, frame in rows.groupby("block")}
        assert rows["ok"].all() and single.converged
        estimates = np.concatenate([mine[block]["estimate"] for block in ("sigma", "pi", "beta")])
        np.testing.assert_allclose(estimates, single.parameters.ravel(), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(mine["micro"]["estimate"], single.micro_values.ravel(), rtol=1e-6)
        LINEAR_ALGEBRA.check(mine["survey"]["estimate"], survey.observed[1])
        errors = np.concatenate([mine[block]["standard_error"] for block in ("sigma", "pi", "beta")])
        np.testing.assert_allclose(errors, np.sqrt(np.diag(single.parameter_covariances) / own.N), rtol=1e-5)
        assert (
            build(asked, own, micro_sample_covariances=sampled)
            .run(4, path=tmp_path / str(prices))
            .table.equals(results.table)
        )
        with pytest.raises(blpjax.exceptions.StorageError, match="another study"):
            build(asked[:1], own).run(4, path=tmp_path / str(prices))


@pytest.mark.slow
def test_studies_with_surveys_have_optimal_instruments_and_draw_variables() -> None:
    """Second choices too: estimates are near the truth, and standard errors like their standard deviations."""
    second = blpjax.MicroDataset.second_choices("second", 500)
    asked = [*moments(), MicroMoment.mean(second, "x * second.x")]
    options = {"optimal_instruments": "approximate", "data_generator": lambda rng: {"x": rng.uniform(size=sum(SIZES))}}
    results = build(asked, **options).run(12)
    summary = results.summary()
    assert summary["failures"].max() <= 2
    near = summary["bias"].abs() / (summary["sd"] / np.sqrt(summary["replications"] - summary["failures"]))
    assert (near < 4).all()
    assert (summary.loc["survey", "sd"] > 0).all() and list(summary.loc["survey"].index) == [m.name for m in asked]
    assert summary["coverage"].mean() > 0.8
