"""Pickles round trip, and say what they cannot hold."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blpjax
from blpjax import Formulation, Integration, Iteration, Optimization
from blpjax.exceptions import StorageError
from tests.simulation.test_simulation import simulate
from tests.simulation.test_simulation import solve as solve_simulation
from tests.support import estimated, problems
from tests.support.designs import mostly_slow
from tests.support.silence import quiet


def round_trip(x: Any, path: Path) -> Any:
    if hasattr(x, "to_pickle"):
        x.to_pickle(path)
    else:
        blpjax.save_pickle(x, path)
    return blpjax.read_pickle(path)


@pytest.mark.parametrize(
    "configuration",
    [
        Formulation("1 + prices + I(x ** 2)", absorb="C(product_ids)", absorb_method="map"),
        Integration("halton", 10, {"seed": 1}),
        Iteration("squarem", {"atol": 1e-14}),
        Optimization("l-bfgs-b", {"ftol": 1e-14}),
    ],
    ids=lambda configuration: type(configuration).__name__,
)
def test_configurations_equal_what_they_were(configuration: object, tmp_path: Path) -> None:
    assert round_trip(configuration, tmp_path / "x") == configuration


@pytest.mark.parametrize("name", mostly_slow(["linear costs", "fixed effects"], ["linear costs"]))
def test_results_give_the_same_numbers(name: str, tmp_path: Path) -> None:
    results = estimated.solved(name)
    loaded = round_trip(results, tmp_path / "results.pickle")
    for name in ("parameters", "parameter_covariances", "delta", "xi", "moments"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(results, name))
    np.testing.assert_array_equal(loaded.compute_elasticities(), results.compute_elasticities())
    assert str(loaded) == str(results)


def test_problems_can_be_solved_again(tmp_path: Path) -> None:
    problem = problems.build(blpjax)
    loaded = round_trip(problem, tmp_path / "problem.pickle")
    assert str(loaded) == str(problem)
    found, expected = (problems.evaluate(p, blpjax) for p in (loaded, problem))
    np.testing.assert_array_equal(found.gradient, expected.gradient)
    np.testing.assert_array_equal(found.parameter_covariances, expected.parameter_covariances)


def test_what_follows_estimation_gives_the_same_numbers(tmp_path: Path) -> None:
    results = estimated.solved("logit")
    with quiet():
        bootstrapped, instruments = results.bootstrap(2, seed=0), results.compute_optimal_instruments()
        loaded = round_trip(bootstrapped, tmp_path / "x")
        np.testing.assert_array_equal(loaded.bootstrapped_prices, bootstrapped.bootstrapped_prices)
        loaded = round_trip(instruments, tmp_path / "x")
        np.testing.assert_array_equal(loaded.demand_instruments, instruments.demand_instruments)
        problem = instruments.to_problem()
        loaded = round_trip(problem, tmp_path / "x")
    assert type(loaded) is blpjax.OptimalInstrumentProblem
    np.testing.assert_array_equal(loaded.products["ZD"], problem.products["ZD"])


def test_sampled_agents_stay_the_same(tmp_path: Path) -> None:
    sampled = estimated.solved("linear costs").importance_sampling(1, seed=1)
    loaded = round_trip(sampled, tmp_path / "x")
    assert (loaded.draws, type(loaded)) == (1, blpjax.ImportanceSamplingResults)
    np.testing.assert_array_equal(loaded.sampled_agents["nodes"], sampled.sampled_agents["nodes"])


def test_simulations_and_their_results_give_the_same_numbers(tmp_path: Path) -> None:
    simulation = simulate(blpjax)
    loaded = round_trip(simulation, tmp_path / "x")
    results, again = solve_simulation(simulation), solve_simulation(loaded)
    np.testing.assert_array_equal(again.product_data["prices"], results.product_data["prices"])
    loaded = round_trip(results, tmp_path / "x")
    np.testing.assert_array_equal(loaded.compute_elasticities(), results.compute_elasticities())


@pytest.mark.slow
def test_another_process_computes_the_same(tmp_path: Path) -> None:
    results = estimated.solved("fixed effects")
    path = tmp_path / "results.pickle"
    results.to_pickle(path)
    code = f"import blpjax; r = blpjax.read_pickle({str(path)!r}); print(r.compute_costs().sum().hex())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float.fromhex(done.stdout.split()[-1]) == pytest.approx(results.compute_costs().sum(), rel=1e-14)


def test_functions_without_a_name_are_refused_and_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "x"
    blpjax.save_pickle([1, 2], path)
    with pytest.raises(
        TypeError, match=r"^The Optimization cannot be pickled: .* by 'def' at the top level of a module"
    ):
        blpjax.save_pickle(Optimization(lambda *arguments: (arguments[0], True)), path)
    assert blpjax.read_pickle(path) == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_directories_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no directory '.*nowhere'"):
        blpjax.save_pickle(1, tmp_path / "nowhere" / "x")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        blpjax.save_pickle(1, tmp_path)


@pytest.mark.parametrize(
    "old, new, message",
    [
        (b"blpjax.inputs.formulation", b"blpjax.formulations.other", "No module named 'blpjax.formulations'"),
        (b"Formulation", b"Formulatiom", "Can't get attribute 'Formulatiom'|has no attribute 'Formulatiom'"),
    ],
    ids=["module", "class"],
)
def test_pickles_of_other_versions_are_refused(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    """They name modules and classes that were moved since then."""
    path = tmp_path / "x"
    blpjax.save_pickle(Formulation("1 + prices"), path)
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    with pytest.raises(StorageError, match=rf"'{path}' holds objects of another version of blpjax.*({message})"):
        blpjax.read_pickle(path)
    with pytest.raises(StorageError, match="keep results in files of ProblemResults.save, which blpjax.load reads"):
        blpjax.read_pickle(path)
