"""A store of programs for one test."""

from pathlib import Path

import pytest

from blpjax.machine import compilation
from blpjax.machine.store import Store


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of this test's own."""
    mine = Store(tmp_path / "programs")
    monkeypatch.setattr(compilation, "program_store", lambda: mine)
    return mine
