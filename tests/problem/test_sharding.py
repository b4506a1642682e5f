"""Tests of problems whose markets are spread over devices and processes."""

import copy
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import blpjax
from blpjax.economy import buckets
from blpjax.economy.sharding import shard_economy
from blpjax.machine.placement import Placement, build_placement
from blpjax.studies.monte_carlo import MonteCarlo
from tests.support import joint
from tests.support.sharded_problem import ATTRIBUTES, CONDUCT, MICRO
from tests.support.study_design import MOMENTS, F, design
from tests.tolerances import SHARDED

PROGRAM = Path(__file__).parents[1] / "support" / "sharded_problem.py"
OUTPUTS = (*ATTRIBUTES, *MICRO, "micro_again", "elasticities", "elasticities_of_one_market", "prices", "surpluses")
DEMAND = joint.Model(X3=None, demographics=None)


@pytest.fixture(scope="module")
def problem() -> blpjax.Problem:
    """Small markets on one device."""
    return DEMAND.build(blpjax, *joint.tables(markets=3))


def check_objective(found: blpjax.Problem, expected: blpjax.Problem, method: str = "squarem") -> None:
    """Compare objectives and their gradients at some parameters."""
    iteration = blpjax.Iteration(method)
    values = []
    for problem in (found, expected):
        functions = problem.functions(sigma=np.diag([0.4, 0.6]), iteration=iteration)
        values.append(jax.value_and_grad(functions.objective)(functions.theta))
    SHARDED.check(values[0][0], values[1][0])
    SHARDED.check(values[0][1], values[1][1])


def run_programs(commands: Sequence[Sequence[str]], directory: Path, devices: int = 1, seconds: float = 500) -> None:
    """Run programs at the same time. None of them outlives this function."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(PROGRAM.parents[2]),
    }
    logs = [directory / f"log{i}.txt" for i in range(len(commands))]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as file:
                arguments = [sys.executable, str(PROGRAM), *command]
                running.append(subprocess.Popen(arguments, env=environment, stdout=file, stderr=file))
        deadline = time.monotonic() + seconds
        while any(process.poll() is None for process in running):
            failed = any(process.poll() not in (None, 0) for process in running)
            if failed or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        texts = "\n".join(log.read_text(errors="replace") for log in logs)
        assert [process.poll() for process in running] == [0] * len(commands), texts
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results on one device and on eight."""
    directory = tmp_path_factory.mktemp("devices")
    run_programs([[str(directory / "found.npz")]], directory, devices=8)
    return np.load(directory / "found.npz")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Results of both processes."""
    directory = tmp_path_factory.mktemp("processes")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    files = [str(directory / f"found{rank}.npz") for rank in range(2)]
    run_programs([[file, address, "2", str(rank)] for rank, file in enumerate(files)], directory)
    return [np.load(file) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OUTPUTS, "instruments", "first_step"])
def test_eight_devices_agree_with_one(eight_devices: Any, name: str) -> None:
    SHARDED.check(eight_devices[f"several_{name}"], eight_devices[f"one_{name}"])


@pytest.mark.slow
def test_several_devices_agree_with_one_where_firms_set_quantities(tmp_path: Path) -> None:
    run_programs([[str(tmp_path / "found.npz"), "conduct"]], tmp_path, devices=2)
    found = np.load(tmp_path / "found.npz")
    for name in CONDUCT:
        SHARDED.check(found[f"several_{name}"], found[f"one_{name}"], name)


@pytest.mark.slow
def test_each_device_has_its_own_markets(eight_devices: Any) -> None:
    assert eight_devices["markets"].tolist() == [4, 8]
    assert eight_devices["places"].tolist() == [8, 8]
    assert eight_devices["blocks"].tolist() == [[1] * 8] * 2
    assert eight_devices["owned"].tolist() == [[1] * 8] * 2
    assert all(len(set(devices)) == 8 for devices in eight_devices["devices"].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_two_processes_agree_with_one(two_processes: list[Any], eight_devices: Any, name: str) -> None:
    for found in two_processes:
        SHARDED.check(found[f"several_{name}"], eight_devices[f"one_{name}"])
    np.testing.assert_array_equal(*(found[f"several_{name}"] for found in two_processes))


@pytest.mark.slow
def test_processes_have_a_device_each(two_processes: list[Any]) -> None:
    assert [found["devices"].tolist() for found in two_processes] == [[2, 1]] * 2


@pytest.mark.slow
def test_processes_with_different_data_are_refused(two_processes: list[Any]) -> None:
    for found in two_processes:
        assert str(found["different_agents"]) == (
            "DataError: The processes do not have the same problem: agents differ. Every process has to read the same "
            "data, and integrations that draw nodes need a seed."
        )


@pytest.mark.slow
def test_processes_without_devices_are_refused(two_processes: list[Any]) -> None:
    for found in two_processes:
        assert "ValueError: The 1 devices leave process 1 of 2 without one" in str(found["too_few"])


@pytest.mark.slow
def test_spread_problems_are_not_estimated_again_in_lanes(eight_devices: Any) -> None:
    assert "NotImplementedError: The markets of the problem are spread over devices" in str(
        eight_devices["reestimation"]
    )


def test_spread_problems_are_not_replicated() -> None:
    simulation = design((3, 4))
    known = simulation.product_data
    data = {name: np.asarray(known[name]).ravel() for name in ("market_ids", "firm_ids", "x")}
    data |= {"shares": np.full(7, 0.1), "prices": np.arange(7.0)}
    problem = blpjax.Problem((F("1 + prices + x"), F("0 + x")), data, integration=blpjax.Integration("product", 3))
    with pytest.raises(NotImplementedError, match=r"spread over devices.* Use the problem without shard\(\)"):
        MonteCarlo(simulation, problem.shard(), seed=0, **MOMENTS)


def test_devices_of_a_problem(problem: blpjax.Problem) -> None:
    spread = problem.shard()
    assert problem.devices is None
    assert spread.devices == tuple(jax.devices())
    assert type(spread) is blpjax.Problem


def test_derived_problems_are_spread_as_well(problem: blpjax.Problem) -> None:
    spread = problem.shard(1)
    products, agents = joint.tables(markets=3)
    updated = spread.update({name: products[name] for name in ("market_ids", "product_ids", "x")})
    for derived in (updated, spread.replace_agents(agents)):
        assert derived.devices == spread.devices
        assert derived.economy.placement == spread.economy.placement


@pytest.mark.slow
def test_pickles_hold_no_devices(problem: blpjax.Problem) -> None:
    spread = problem.shard()
    loaded = pickle.loads(pickle.dumps(spread))
    assert loaded.devices is None and loaded.economy.placement is None
    assert copy.deepcopy(spread).economy.placement == spread.economy.placement
    check_objective(loaded, problem)


@pytest.mark.usefixtures("several_buckets_here")
@pytest.mark.slow
def test_padding_markets_are_reported_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    # one device that counts as three fills buckets up as three devices do
    monkeypatch.setattr(joint, "PRODUCTS", (3, 8, 3, 8, 8))
    problem = DEMAND.build(blpjax, *joint.tables(markets=5))
    monkeypatch.setattr(Placement, "size", property(lambda self: 3))
    spread = problem.shard(1)
    assert [bucket.size[0] for bucket in problem.economy.buckets] == [2, 3]
    assert [bucket.size[0] for bucket in spread.economy.buckets] == [3, 3]
    assert not np.asarray(spread.economy.buckets[0].present[2]).any()
    long = np.arange(problem.N, dtype=float)
    padded = spread.economy.scatter(jax.numpy.asarray(long))
    np.testing.assert_array_equal(spread.economy.gather(padded), long)
    np.testing.assert_array_equal(spread.economy.gather(spread.economy.spread(jax.numpy.asarray(long))), long)
    markets = np.arange(5.0)
    by_place = spread.economy.scatter_markets(jax.numpy.asarray(markets))
    np.testing.assert_array_equal(spread.economy.gather_markets([part[:, 0] for part in by_place]), markets)
    check_objective(spread, problem)


def test_host_routines_invert_spread_markets(problem: blpjax.Problem) -> None:
    check_objective(problem.shard(), problem, "lm")


@pytest.mark.parametrize(
    ("devices", "error", "words"),
    [
        (7, ValueError, r"devices must be between 1 and 1, the number that JAX finds, not 7\."),
        (0, ValueError, r"devices must be between 1 and 1"),
        ([], ValueError, "devices must not be empty"),
        (2 * jax.devices(), ValueError, "devices must not have a device twice"),
        (True, TypeError, "devices must be a number, a list of devices such as jax.devices"),
        ("gpu", TypeError, "not 'gpu'"),
        ([0], TypeError, "devices must be a number"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_unusable_devices_are_refused(
    problem: blpjax.Problem, devices: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        problem.shard(devices)


def test_spread_problems_are_not_spread_again(problem: blpjax.Problem) -> None:
    with pytest.raises(ValueError, match="spread over 1 devices already"):
        problem.shard().shard()


def test_placements_are_equal_by_value() -> None:
    assert build_placement() == build_placement() and hash(build_placement()) == hash(build_placement())


def test_spread_economies_have_the_same_markets(problem: blpjax.Problem) -> None:
    spread = shard_economy(problem.economy, build_placement())
    assert isinstance(spread, buckets.Economy)
    for bucket, original in zip(spread.buckets, problem.economy.buckets, strict=True):
        np.testing.assert_array_equal(bucket.nodes, original.nodes)
