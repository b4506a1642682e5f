"""What takes long says what it is doing, and nothing else does."""

import threading
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax.machine import announcements
from blpjax.machine.announcements import said
from blpjax.machine.compilation import filtered_program
from tests.support.estimated import solved
from tests.support.silence import silent


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said, at once."""
    found: list[str] = []
    monkeypatch.setattr(announcements, "ANNOUNCED_AFTER", 0.0)
    monkeypatch.setattr("blpjax.options.verbose", True)
    monkeypatch.setattr("blpjax.options.verbose_output", found.append)
    return found


def waiting(text: str, texts: list[str], calls: int = 1) -> Callable[[Any], Any]:
    """A function that waits, at its call of that number, until the text has been said."""
    moment, seen = threading.Event(), []

    def function(value: Any) -> Any:
        seen.append(value)
        if len(seen) < calls:
            return value
        for _ in range(1000):
            if text in texts:
                return value
            moment.wait(0.01)
        raise AssertionError(texts)

    return function


def test_what_is_short_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(announcements, "ANNOUNCED_AFTER", 60.0)
    monkeypatch.setattr("blpjax.options.verbose", True)
    monkeypatch.setattr("blpjax.options.verbose_output", texts.append)
    with said("never"):
        pass
    assert not texts


def test_nothing_is_said_without_verbose(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blpjax.options.verbose", False)
    with said("never"):
        threading.Event().wait(0.1)
    assert not texts


def test_outputs_and_derivatives_say_what_they_compute(texts: list[str]) -> None:
    with silent():
        results = solved("linear costs")
    wait = waiting("Computing output ...", texts)
    results.compute(lambda model: wait(model.shares), by="product")
    wait = waiting("Differentiating outputs in 10 directions ...", texts, calls=2)  # the first one is for shapes
    results.delta_method(lambda model: wait(model.shares).sum())


def test_programs_that_derivatives_and_maps_compile_are_announced_once(texts: list[str]) -> None:
    import jax

    expected = "Compiling derivatives or maps of nothing much for arrays of up to 3 numbers ..."

    @filtered_program(effort=0, what="nothing much")
    def slow(x: Any) -> Any:
        for _ in range(1000):
            if any(text.startswith(expected) for text in texts):
                break
            threading.Event().wait(0.01)
        return x**2

    values = jnp.arange(3.0)
    np.testing.assert_allclose(jax.jvp(slow, (values,), (values,))[1], 2 * np.arange(3.0) ** 2)
    assert sum(text.startswith(expected) for text in texts) == 1
    jax.jvp(slow, (values,), (values,))
    assert sum(text.startswith(expected) for text in texts) == 1
    assert blpjax.options.verbose
