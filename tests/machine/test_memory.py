"""How much memory a process has taken, in bytes."""

from pathlib import Path

import numpy as np
import pytest

from blpjax.machine.memory import format_bytes, peak_memory


def test_peaks_remember_what_was_freed() -> None:
    before = peak_memory()
    block = np.ones(before // 8 + 2**21)  # cannot fit into what had been taken before
    size = block.nbytes
    del block
    assert size <= peak_memory() < before + 2 * size
    assert peak_memory() >= before


def test_systems_without_the_kernels_mark_have_another_count(monkeypatch: pytest.MonkeyPatch) -> None:
    known = peak_memory()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert 0.3 * known < peak_memory() < 100 * known


@pytest.mark.parametrize(
    "count, text", [(5, "5 bytes"), (2048, "2 KiB"), (1.5 * 2**20, "1.5 MiB"), (3 * 2**30, "3 GiB"), (2**39, "512 GiB")]
)
def test_sizes_are_legible(count: float, text: str) -> None:
    assert format_bytes(count) == text
