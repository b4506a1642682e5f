"""Monte Carlo studies: lanes give what single estimations give, whatever the size of batches."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.estimation.lane import LARGEST_BATCH, describe
from blpjax.estimation.lanes import BatchOutcome
from blpjax.exceptions import IdentificationError, IdentificationWarning, Status, StorageError
from blpjax.studies import monte_carlo, replications
from blpjax.studies.monte_carlo import MonteCarlo
from tests.support.study_design import MOMENTS, F, design, study
from tests.tolerances import LINEAR_ALGEBRA


@pytest.fixture(scope="module", params=[pytest.param(True, marks=pytest.mark.slow), False], ids=["supply", "demand"])
def case(request: Any) -> tuple[MonteCarlo, monte_carlo.MonteCarloResults]:
    made = study(request.param)
    return made, made.run(6, batch_size=2)


def test_replications_are_estimated_as_by_solve(case: Any) -> None:
    made, results = case
    drawn = replications.draw_replications(made._truth, jax.random.key(3), jnp.arange(2))
    supply = made.problem.K3 > 0
    for r in range(2):
        data = dict(made.problem.product_table.data)
        data |= {"prices": np.asarray(drawn.prices[r]), "shares": np.asarray(drawn.shares[r])}
        agents = made.simulation.agent_data
        problem = blpjax.Problem(made.problem.product_formulations, data, agent_data=agents)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IdentificationWarning)  # sigma may be zero
            single = problem.solve(sigma=[[2.0]], beta=[None, -2.0, None] if supply else None)
        mine = results.table[results.table["replication"] == r]
        assert mine["ok"].all() == single.converged
        np.testing.assert_allclose(mine["estimate"], single.parameters.ravel(), rtol=1e-6, atol=1e-8)
        errors = np.sqrt(np.diag(single.parameter_covariances) / single.problem.N)
        np.testing.assert_allclose(mine["standard_error"], errors, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_both_optimisers_give_the_same_table(case: Any) -> None:
    made, results = case
    starts = {"beta": None} if made.problem.K3 == 0 else {}
    chosen = blpjax.Optimization("optax-l-bfgs")
    table = MonteCarlo(made.simulation, made.problem, seed=3, optimization=chosen, **starts, **MOMENTS).run(6, 6).table
    both = table["ok"] & results.table["ok"]
    # a standard deviation and its negative are the same, and L-BFGS has no bounds
    sign = np.where(table["block"] == "sigma", np.sign(table["estimate"]), 1.0)
    settled = both & ((table["block"] != "sigma") | (results.table["estimate"] > 1e-3))
    assert (
        both.groupby(table["replication"]).all().sum() >= 5
        and (table["evaluations"] != results.table["evaluations"]).any()
    )
    for column, values in (("estimate", sign * table["estimate"]), ("standard_error", table["standard_error"])):
        np.testing.assert_allclose(values[settled], results.table.loc[settled, column], rtol=1e-6, atol=1e-7)


def test_optimisers_that_lanes_do_not_have_are_refused(case: Any) -> None:
    made, _ = case
    with pytest.raises(NotImplementedError, match=r"other routines than Optimization\('trust-region'\)"):
        MonteCarlo(made.simulation, optimization=blpjax.Optimization("bfgs"))
    with pytest.raises(ValueError, match="ignores bounds. Use 'trust-region'"):
        MonteCarlo(
            made.simulation, optimization=blpjax.Optimization("optax-l-bfgs"), bounds={"sigma": ([[0.0]], [[3.0]])}
        )


@pytest.mark.slow
def test_lanes_say_where_evaluations_ran_out(case: Any) -> None:
    made, _ = case
    limited = blpjax.Optimization("trust-region", {"max_evaluations": 2})
    table = MonteCarlo(made.simulation, optimization=limited, sigma=[[0.3]], **MOMENTS).run(2, 2).table
    assert (table["evaluations"] == 4).all() and not table["ok"].any()
    assert table["status"].str.contains("maximum number of evaluations").all()


def test_data_are_equilibria_of_the_simulation(case: Any) -> None:
    """Prices and shares are those of `replace_endogenous` for the same structural errors."""
    made, _ = case
    drawn = replications.draw_replications(made._truth, jax.random.key(3), jnp.arange(2))
    normal = jax.random.normal(jax.random.fold_in(jax.random.key(3), 1), (2, made.simulation.N))
    xi, omega = np.asarray(made._truth.root) @ np.asarray(normal)
    known = made.simulation
    again = blpjax.Simulation(
        known.product_formulations,
        known.product_data,
        agent_data=known.agent_data,
        beta=known.beta,
        sigma=known.sigma,
        gamma=known.gamma,
        xi=xi,
        omega=omega,
    ).replace_endogenous()
    np.testing.assert_allclose(drawn.prices[1], again.product_data["prices"].ravel(), rtol=1e-8)
    np.testing.assert_allclose(drawn.shares[1], again.product_data["shares"].ravel(), rtol=1e-8)


@pytest.mark.slow
def test_batches_do_not_change_the_table(case: Any) -> None:
    made, results = case
    parts = made.run(5, batch_size=3)
    expected = results.table[results.table["replication"] < 5]
    assert parts.table.shape == expected.shape
    for column in ("replication", "block", "parameter", "ok", "status"):
        assert (parts.table[column].to_numpy() == expected[column].to_numpy()).all()
    np.testing.assert_allclose(parts.table["estimate"], expected["estimate"], rtol=1e-6, atol=1e-9)


def test_summaries_describe_the_table(case: Any) -> None:
    made, results = case
    summary = results.summary()
    assert list(summary.index) == list(zip(made.blocks, made.labels, strict=True))
    slope = ("beta", "prices")
    rows = results.table[(results.table["block"] == "beta") & (results.table["parameter"] == "prices")]
    good = rows[rows["ok"]]
    LINEAR_ALGEBRA.check(summary.loc[slope, "bias"], good["estimate"].mean() + 2.0)
    inside = (good["estimate"] + 2.0).abs() <= 1.959964 * good["standard_error"]
    assert summary.loc[slope, "coverage"] == inside.mean() and summary.loc[slope, "true"] == -2.0
    with pytest.raises(ValueError, match="level must be between zero and one, such as 0.95, not 95"):
        results.summary(95.0)
    assert summary.loc[slope, "failures"] == (~rows["ok"]).sum() and "prices" in str(results)


@pytest.mark.slow
def test_standard_deviations_of_zero_are_not_identified(case: Any) -> None:
    """At symmetric nodes structural errors do not depend on sigma where it is zero, whatever its standard error is."""
    made, _ = case
    starts = {"beta": made._parameters.start.beta} if made.problem.K3 == 0 else {}
    held = {"sigma": [[1e-8]], "bounds": {"sigma": ([[0.0]], [[1e-7]])}}
    table = MonteCarlo(made.simulation, made.problem, seed=3, **held, **starts, **MOMENTS).run(6, batch_size=2).table
    sigma = table["block"] == "sigma"
    assert not table.loc[sigma, "identified"].any() and table.loc[~sigma, "identified"].all()


def test_summaries_leave_out_what_is_not_identified() -> None:
    """The second replication failed, the third does not identify sigma."""
    table = pd.DataFrame(
        {
            "replication": range(4),
            "block": "sigma",
            "parameter": "x x x",
            "true": 2.0,
            "estimate": [1.0, np.nan, 0.0, 2.6],
            "standard_error": [0.4, np.nan, 1e9, 0.4],
            "ok": [True, False, True, True],
            "identified": [True, False, False, True],
        }
    )
    row = monte_carlo.MonteCarloResults(table, 1.0, pd.DataFrame(), 0).summary().loc[("sigma", "x x x")]
    LINEAR_ALGEBRA.check(row[["mean", "bias", "mean_se"]], [1.2, -0.8, 0.4])
    # of the intervals 1 +- 0.78 and 2.6 +- 0.78 the second contains 2, and both exclude zero
    assert (row["coverage"], row["power"]) == (0.5, 1.0)
    assert row[["replications", "failures", "unidentified"]].tolist() == [4, 1, 1]


@pytest.mark.parametrize("supply", [pytest.param(True, marks=pytest.mark.slow), False], ids=["supply", "demand"])
def test_failed_equilibria_are_failures(supply: bool) -> None:
    made = study(supply)
    broken = made._truth.model.coefficients.beta.at[1].set(2.0)
    made._truth = eqx.tree_at(lambda t: t.model.coefficients.beta, made._truth, broken)
    table = made.run(2, batch_size=2).table
    assert not table["ok"].any() and table["status"].str.contains("slope down").all()


def test_numbers_that_are_not_finite_are_no_success(case: Any) -> None:
    """Also where the optimiser converged."""
    made, _ = case
    Q = len(made.labels)
    found = BatchOutcome(
        parameters=np.ones((2, Q)),
        standard_errors=np.array([[1.0] * Q, [np.nan] * Q]),
        identified=np.ones((2, Q), bool),
        objectives=np.ones(2),
        gradient_norms=np.ones(2),
        evaluations=np.ones(2, int),
        status=np.full(2, int(Status.CONVERGED)),
        ok=np.array([True, False]),
    )
    table = made._tabulate(0, found, np.full((2, 3), int(Status.CONVERGED)))
    assert table["status"][0] == Status.CONVERGED.sentence and table["status"].iloc[-1] == Status.NOT_FINITE.sentence


@pytest.mark.slow
def test_other_designs_are_other_studies() -> None:
    """Whatever changes a table changes the fingerprint, also what is in no array of the design."""

    def made(
        X1: str = "1 + prices + x", X2: str = "0 + x", norm: Any = None, scale: float = 1.0, **truth: Any
    ) -> MonteCarlo:
        iteration = blpjax.Iteration("simple", None if norm is None else {"norm": norm})
        simulation = small_simulation(**truth)
        table = dict(solved) | {"w": scale * np.linspace(1.0, 2.0, 17)}
        problem = blpjax.Problem((F(X1), F(X2)), table, integration=blpjax.Integration("product", 3))
        return MonteCarlo(simulation, problem, sigma=[[0.5]], beta=None, iteration=iteration, **MOMENTS)

    solved = small_simulation().replace_endogenous().to_problem().product_table.data
    designs: list[dict[str, Any]] = [
        {},
        {"costs_type": "log"},
        {"epsilon_scale": 2.0},
        {"rc_types": ["log"]},
        {"rc_types": [blpjax.Transformation(lambda index: index)]},
        {"rc_types": [blpjax.Transformation(lambda index: 2 * index)]},
        {"X2": "0 + w"},
        {"X2": "0 + w", "scale": 2.0},
        {"X1": "1 + I(prices**2) + x"},
        {"norm": lambda x: jnp.abs(x).max()},
        {"norm": lambda x: 2 * jnp.abs(x).max()},
    ]
    found = [made(**changes).fingerprint for changes in designs]
    assert len(set(found)) == len(designs)
    assert made(**designs[5]).fingerprint == found[5] and made(**designs[-1]).fingerprint == found[-1]


def test_costs_are_part_of_an_estimator(case: Any) -> None:
    """Costs or their logarithms may be linear for the same numbers."""
    options, supply = case[0]._options, study(True).problem.model_data
    logarithmic = eqx.tree_at(lambda data: data.supply, supply, dataclasses.replace(supply.supply, logarithmic=True))
    assert describe(options, supply) != describe(options, logarithmic)


def small_simulation(**options: Any) -> blpjax.Simulation:
    """Costs are above one, so that they have positive logarithms, and so are characteristics."""
    sizes = (5, 3, 5, 4)
    rng = np.random.default_rng(0)
    data = {"market_ids": np.repeat(range(4), sizes), "firm_ids": np.concatenate([np.arange(n) // 2 for n in sizes])}
    data |= {name: rng.uniform(1, 2, size=17) for name in ("x", "z")}
    data |= {f"demand_instruments{k}": rng.uniform(size=17) for k in range(2)}
    formulations = F("1 + prices + x"), F("0 + x"), F("1 + z")
    known = {"beta": [1.0, -2.0, 2.0], "sigma": [[0.5]], "gamma": [1.0, 0.5], "seed": 0}
    return blpjax.Simulation(
        formulations, data, integration=blpjax.Integration("product", 3), **known, **MOMENTS, **options
    )


def test_memory_decides_how_large_batches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made, sizes = study(True), []

    def run_batch(self: MonteCarlo, first: int, size: int) -> pd.DataFrame:
        sizes.append(size)
        return pd.DataFrame({name: np.arange(first, first + size) for name in self.columns})

    monkeypatch.setattr(MonteCarlo, "run_batch", run_batch)
    assert made.default_batch_size == LARGEST_BATCH
    made.run(4, memory=1)
    assert sizes == [1, 1, 1, 1]
    results = made.run(made.default_batch_size + 2)
    assert sizes[4:] == [made.default_batch_size // 2 + 1] * 2
    assert list(results.batches["size"]) == sizes[4:] and results.peak_memory > 1e8


def test_wrong_studies_are_refused() -> None:
    simulation = design()
    with pytest.raises(ValueError, match="replications must be a positive integer, not 0"):
        MonteCarlo(simulation, **MOMENTS).run(0)
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        MonteCarlo(simulation, **MOMENTS).run(2, batch_size=-1)
    with pytest.raises(ValueError, match="memory must be a positive number of bytes, not 0"):
        MonteCarlo(simulation, **MOMENTS).run(2, memory=0)
    with pytest.raises(ValueError, match="Variances must be at least zero"):
        MonteCarlo(simulation, xi_variance=-1.0)
    with pytest.raises(ValueError, match="alpha are no parameters"):
        MonteCarlo(simulation, alpha=1.0)
    with pytest.raises(ValueError, match="method must be one of"):
        MonteCarlo(simulation, method="3s")
    with pytest.raises(ValueError, match="W_type='clustered' needs a column 'clustering_ids' in product_data"):
        MonteCarlo(simulation, W_type="clustered")
    with pytest.raises(ValueError, match="se_type must be 'robust', 'clustered' or 'unadjusted', not 'wrong'"):
        MonteCarlo(simulation, se_type="wrong")
    solved = simulation.replace_endogenous()
    data = solved.to_problem().product_table.data
    few = {name: values for name, values in data.items() if "instruments" not in name}
    with pytest.raises(IdentificationError, match=r"fewer moments \(2\) than parameters \(4: "):
        MonteCarlo(simulation, solved.to_problem(simulation.product_formulations[:2], few), beta=None)
    other = design((5, 3, 5, 4) * 4 + (5, 3, 4, 5)).replace_endogenous().to_problem()
    with pytest.raises(ValueError, match="The problem must have the same products as the simulation"):
        MonteCarlo(simulation, other)
    absorbing = simulation.replace_endogenous().to_problem(
        (F("0 + prices + x", absorb="C(firm_ids)"), simulation.product_formulations[1], F("1 + z"))
    )
    with pytest.raises(NotImplementedError, match="Absorbed fixed effects are not supported"):
        MonteCarlo(simulation, absorbing)


def test_studies_go_on_where_they_stopped(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are there are not run again, and a study that is added to is the one that is run at once."""
    made, _ = case
    path = tmp_path / "study"
    made.run(4, batch_size=2, path=path)
    assert sorted(file.name for file in path.glob("*")) == [
        "batch-000000000.parquet",
        "batch-000000002.parquet",
        "study.json",
    ]
    run: list[int] = []
    original = MonteCarlo.run_batch
    monkeypatch.setattr(
        MonteCarlo, "run_batch", lambda self, first, size: run.append(first) or original(self, first, size)
    )
    (path / "batch-000000000.parquet").unlink()
    resumed = made.run(6, path=path).table
    assert run == [0, 4]
    whole = made.run(6, batch_size=2, path=tmp_path / "other").table
    pd.testing.assert_frame_equal(resumed, whole)


def test_directories_of_other_studies_are_refused(case: Any, tmp_path: Path) -> None:
    made, _ = case
    path = tmp_path / "study"
    made.run(2, batch_size=2, path=path)
    with pytest.raises(StorageError, match="holds batches of 2 replications, not 3"):
        made.run(3, batch_size=3, path=path)
    other = MonteCarlo(made.simulation, made.problem, seed=4, beta=made._parameters.start.beta, **MOMENTS)
    with pytest.raises(StorageError, match="study holds another study"):
        other.run(2, path=path)
    (path / "batch-000000000.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(StorageError, match="batch-000000000.parquet is no readable part of a study"):
        made.run(2, path=path)
    (path / "study.json").write_text("{}")
    with pytest.raises(StorageError, match="study.json does not describe a study"):
        made.run(2, path=path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file cannot be used as the directory of a study"):
        made.run(2, path=tmp_path / "file")


SCRIPT = """
import runpy
import sys
import blpjax
blpjax.options.verbose = False
runpy.run_path("tests/support/study_design.py")["study"](True).run(60, batch_size=2, path=sys.argv[1])
"""


@pytest.mark.slow
def test_killed_studies_lose_nothing(tmp_path: Path) -> None:
    """A process that is killed at three moments, and then left alone, ends with the table of one that was not."""
    made = study(True)
    whole = made.run(60, batch_size=2, path=tmp_path / "whole").table
    path = tmp_path / "killed"
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    written: dict[str, int] = {}
    moments = np.random.default_rng(0).uniform(size=3)
    for k, moment in enumerate(moments):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], cwd=root, env=environment)
        while len(list(path.glob("batch-*"))) < 1 + len(written) + 8 * moment and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.05 * moment)  # in the middle of a batch
        process.kill()
        assert process.wait() == -signal.SIGKILL
        found = {file.name: file.stat().st_mtime_ns for file in path.glob("batch-*")}
        assert written.items() <= found.items()  # what was written has not been written again
        assert k < len(found) < 30
        written = found
    resumed = made.run(60, path=path).table
    assert all((path / name).stat().st_mtime_ns == when for name, when in written.items())
    pd.testing.assert_frame_equal(resumed, whole)
