"""Lanes are spread over threads and devices without changing anything."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.estimation import lanes
from blpjax.machine import compilation, spread
from tests.support.study_design import study


@pytest.mark.parametrize("size", [1, 2, 7, 65])
def test_pieces_are_put_together_in_order(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "LARGEST_PIECE", 8)
    monkeypatch.setattr(spread, "_cores", lambda: 3)
    threads, widths = set(), set()

    def work(chosen: np.ndarray, placement: Any) -> dict[str, Any]:
        assert placement is None
        threads.add(threading.get_ident())
        widths.add(chosen.size)
        return {"lanes": jnp.asarray(chosen), "squares": chosen[:, None] ** 2}

    found = spread.spread(work, size)
    np.testing.assert_array_equal(found["lanes"], np.arange(size))
    np.testing.assert_array_equal(found["squares"], np.arange(size)[:, None] ** 2)
    # one shape, so that programs are compiled once
    assert len(widths) == 1 and widths.pop() <= 8
    assert (threading.get_ident() in threads) == (size == 1)


def test_the_first_piece_of_a_key_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "LARGEST_PIECE", 1)
    monkeypatch.setattr(spread, "_cores", lambda: 4)
    running, most, finished = 0, 0, []
    lock = threading.Lock()

    def work(chosen: np.ndarray, placement: Any) -> np.ndarray:
        nonlocal running, most
        with lock:
            running += 1
            if not finished:
                most = max(most, running)
        threading.Event().wait(0.02)
        with lock:
            running -= 1
            finished.append(chosen)
        return chosen

    spread.spread(work, 8, key=object())
    assert most == 1


def test_errors_of_a_piece_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "_cores", lambda: 2)

    def work(chosen: np.ndarray, placement: Any) -> np.ndarray:
        if 3 in chosen:
            raise RuntimeError("lane 3 broke")
        return chosen

    with pytest.raises(RuntimeError, match="lane 3 broke"):
        spread.spread(work, 6)


def test_lanes_one_by_one_are_vectorised_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"a": jnp.arange(12.0).reshape(4, 3)}

    def total(tree: dict[str, jax.Array], scale: jax.Array) -> jax.Array:
        return scale * jnp.cumsum(tree["a"])

    assert spread.one_by_one()
    mapped = spread.each_lane(total, values, jnp.arange(4.0))
    monkeypatch.setattr(spread, "one_by_one", lambda: False)
    np.testing.assert_array_equal(spread.each_lane(total, values, jnp.arange(4.0)), mapped)


@pytest.mark.slow
def test_eight_devices_give_what_one_gives() -> None:
    script = Path(__file__).parents[1] / "support" / "spread_study.py"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(script.parents[2]),
    }
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


@pytest.mark.slow
def test_vectorised_lanes_are_estimated_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on accelerators: in rounds after which lanes that have ended are left out."""
    made = study(supply=True)
    alone = made.run(10, batch_size=10).table
    widths = []
    pad = lanes._pad_lanes

    def pad_lanes(*arguments: Any) -> np.ndarray:
        widths.append(pad(*arguments).size)
        return pad(*arguments)

    for module in (spread, lanes):
        monkeypatch.setattr(module, "one_by_one", lambda: False)
    monkeypatch.setattr(lanes, "SMALLEST", 2)
    monkeypatch.setattr(lanes, "ROUND", 1)
    monkeypatch.setattr(lanes, "_pad_lanes", pad_lanes)
    monkeypatch.setattr(spread, "_cores", lambda: 1)
    compilation.forget_programs()  # programs are not found by what was replaced
    try:
        together = made.run(10, batch_size=10).table
    finally:
        compilation.forget_programs()
    assert min(widths) < 10
    assert (together["status"] == alone["status"]).all()
    for column in ("estimate", "standard_error", "objective"):
        np.testing.assert_allclose(together[column], alone[column], rtol=1e-9, atol=1e-11, err_msg=column)
