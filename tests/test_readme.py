"""What the README and CONTRIBUTING say can be done."""

import contextlib
import re
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks in one language."""
    return [text for kind, text in BLOCK.findall((ROOT / "README.md").read_text()) if kind == language]


@pytest.mark.parametrize("standard_errors", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_python_blocks_run_in_order_and_print_what_is_shown(standard_errors, capsys, tmp_path):
    """Standard errors of a merger take most of the time, and none is among what is shown."""
    matplotlib.use("agg")
    namespace: dict[str, object] = {"__name__": "readme"}
    sources = blocks("python")
    assert sources
    with contextlib.chdir(tmp_path):
        for number, source in enumerate(sources):
            if not standard_errors:
                source = source.replace(", standard_errors=True", "")
            exec(compile(source, f"README block {number}", "exec"), namespace)
    printed = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    shown = [line.rstrip() for text in blocks("text") for line in text.splitlines() if line.strip()]
    assert shown
    assert [line for line in shown if line not in printed] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_named_in_documents_exist(document):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`", (ROOT / document).read_text()))
    assert named
    assert named <= targets


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) < 100
