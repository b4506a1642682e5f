"""How much memory a process has taken, in bytes, and whether there is enough for what comes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blpjax.exceptions import BLPError, SizeError
from blpjax.machine import memory
from blpjax.machine.memory import available_memory, format_bytes, peak_memory, require_memory

#: In a process of its own, which has not taken much yet.
FREED = """
import numpy as np
from blpjax.machine.memory import peak_memory
before = peak_memory()
block = np.ones(before // 8 + 2**21)  # cannot fit into what had been taken before
size = block.nbytes
del block
assert size <= peak_memory() < before + 2 * size
assert peak_memory() >= before
"""


@pytest.mark.slow
def test_peaks_remember_what_was_freed() -> None:
    subprocess.run(
        [sys.executable, "-c", FREED], check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    )


def test_systems_without_the_kernels_mark_have_another_count(monkeypatch: pytest.MonkeyPatch) -> None:
    known = peak_memory()
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert 0.3 * known < peak_memory() < 100 * known


@pytest.mark.parametrize(
    "count, text",
    [
        (5, "5 bytes"),
        (2048, "2 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (3 * 2**30, "3 GiB"),
        (2**39, "512 GiB"),
        (1e15, "909 TiB"),
    ],
)
def test_sizes_are_legible(count: float, text: str) -> None:
    assert format_bytes(count) == text


def test_what_does_not_fit_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 2**31)
    require_memory(2**30, "Little", "Nothing.")
    with pytest.raises(SizeError) as raised:
        require_memory(2**32, "A table", "Use fewer rows.")
    expected = "A table would need at least 4 GiB of memory, but only 2 GiB are available. Use fewer rows."
    assert str(raised.value) == expected and isinstance(raised.value, BLPError | MemoryError)
    with pytest.raises(SizeError, match="only 512 MiB are available"):
        require_memory(2**30, "A table", "Use fewer rows.", 2**29)
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    require_memory(2**60, "Who knows", "Nothing.")


def test_what_is_available_shrinks_by_what_is_taken() -> None:
    before = available_memory()
    if before is None:
        pytest.skip("this system does not tell")
    assert 2**20 < before < 2**50


def test_limits_of_control_groups_count(tmp_path: Path) -> None:
    """The tightest one of a group and those that it is in, of which files that are kept in memory make room."""
    (tmp_path / "cgroup").write_text("12:memory:/old\n0::/queue/job\n")
    root = tmp_path / "fs"
    for name, (limit, taken, files) in {
        "": ("max", 9, 9),
        "queue": (1000, 600, 50),
        "queue/job": (900, 100, 0),
    }.items():
        group = root / name
        group.mkdir()
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{taken}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {files}\n")
    assert memory._group_memory(tmp_path / "cgroup", root) == [800, 450]
    assert memory._group_memory(tmp_path / "none", root) == []


@pytest.mark.skipif(sys.platform != "linux", reason="limits of addresses are Linux's")
def test_limits_of_addresses_count() -> None:
    code = (
        "import resource; from blpjax.machine.memory import available_memory; before = available_memory(); "
        "resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36)); print(available_memory() <= 2**36)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
