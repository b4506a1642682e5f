"""Interrupts from the keyboard wait for programs, and then stop everything; a process that is interrupted ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blpjax.machine.compilation import Program
from blpjax.machine.interrupts import WaitingInterrupts

ROOT = Path(__file__).parents[2]

#: Estimates with nothing compiled before. An interrupt that was lost, or came too late, leaves the process sleeping.
SCRIPT = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import blpjax
from tests.support.problems import FORMULAS, PI, SIGMA, small_tables
products, agents = small_tables()
formulas = tuple(map(blpjax.Formulation, FORMULAS))
problem = {
    "logit": lambda: blpjax.Problem(formulas[0], products),
    "random coefficients": lambda: blpjax.Problem(formulas, products, blpjax.Formulation("0 + income"), agents),
}[MODEL]()
print("ready", flush=True)
results = problem.solve() if MODEL == "logit" else problem.solve(SIGMA, PI)
print("solved", results.converged, flush=True)
if results.converged:
    time.sleep(300)
"""


@pytest.fixture(autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """Programs that shells start in the background ignore interrupts, and so does what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(directory: Path, model: str, seconds: float) -> None:
    """Interrupt a process some seconds after it has begun to solve, and read how it ended."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    known |= {"BLPJAX_COMPILATION_CACHE": str(directory), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-u", "-c", SCRIPT.replace("MODEL", repr(model))]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=known, cwd=ROOT, **pipes) as process:
        assert process.stdout is not None
        while "ready" not in (line := process.stdout.readline()):
            assert line, "the process ended"
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        try:
            shown, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert "Exception ignored" not in errors and "Fatal" not in errors, errors
    if process.returncode == 0:  # there was something that is worth being kept
        assert "Optimization was interrupted" in shown and "solved False" in shown
    else:
        assert process.returncode == -signal.SIGINT and errors.splitlines()[-1].startswith("KeyboardInterrupt"), errors


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("seconds", [0.1, 0.6])
def test_a_first_estimation_can_be_interrupted(tmp_path: Path, seconds: float) -> None:
    interrupt(tmp_path, "logit", seconds)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("seconds", np.linspace(0.05, 6.0, 20).round(2).tolist())
def test_a_first_estimation_can_be_interrupted_at_any_moment(tmp_path: Path, seconds: float) -> None:
    interrupt(tmp_path, "random coefficients", seconds)


def package_program(function: Any) -> Program:
    function.__module__, function.__qualname__ = "blpjax.made_up", function.__name__
    return Program(function, 0)


def test_programs_are_compiled_and_kept_before_an_interrupt_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr("blpjax.options.verbose", True)
    monkeypatch.setattr("blpjax.options.verbose_output", texts.append)

    def doubled(x: Any) -> Any:
        signal.raise_signal(signal.SIGINT)  # while it is traced
        return 2 * x

    program = package_program(doubled)
    with pytest.raises(KeyboardInterrupt):
        program(np.ones(2))
    assert len(program.executables) == 1
    assert texts == ["Interrupted. Programs that were compiled until now are kept in this process."]
    np.testing.assert_array_equal(program(np.ones(2)), 2.0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and len(texts) == 1


def test_the_users_own_handler_is_called_once_at_the_end() -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: calls.append(number))
    try:
        mine = signal.getsignal(signal.SIGINT)
        with WaitingInterrupts(lambda: calls.append(0)), WaitingInterrupts(lambda: calls.append(-1)):
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
            assert calls == []
        assert calls == [0, signal.SIGINT] and signal.getsignal(signal.SIGINT) is mine
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with WaitingInterrupts(lambda: calls.append(0)):
            signal.raise_signal(signal.SIGINT)
        assert len(calls) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_left_alone() -> None:
    found: list[Any] = []

    def enter() -> None:
        with WaitingInterrupts(lambda: None):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
