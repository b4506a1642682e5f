"""The persistent compilation cache: where it goes, and that users have the last word."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blpjax.machine.caches import cache_directory

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
SCRIPT = f"""
import json, jax
{{before}}
import blpjax, jax.numpy as jnp
print(json.dumps([getattr(jax.config, name) for name in {SETTINGS}] + [str(jnp.ones(1).dtype)]))
"""


def settings(before: str = "", **environment: str) -> tuple[str | None, float]:
    """JAX's settings in a new process that imports blpjax, with no other variables about caches."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "BLPJAX", "XDG_CACHE"))
    }
    root = str(Path(__file__).parents[2])
    inherited["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    directory, seconds, dtype = json.loads(output.splitlines()[-1])
    assert dtype == "float64"
    return directory, seconds


def test_by_default_programs_are_kept_in_the_users_cache(tmp_path: Path) -> None:
    directory, seconds = settings(XDG_CACHE_HOME=str(tmp_path))
    assert directory is not None
    assert Path(directory).parent == tmp_path / "blpjax" and Path(directory).is_dir()
    assert seconds < 0.1


def test_the_directory_can_be_chosen(tmp_path: Path) -> None:
    directory, _ = settings(BLPJAX_COMPILATION_CACHE=str(tmp_path / "mine"))
    assert directory is not None and Path(directory).parent == tmp_path / "mine"


def test_zero_opts_out(tmp_path: Path) -> None:
    before = settings("", BLPJAX_COMPILATION_CACHE="0", XDG_CACHE_HOME=str(tmp_path))
    assert before == (None, 1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", ["environment", "configuration"])
def test_the_users_directory_is_never_overridden(tmp_path: Path, way: str) -> None:
    theirs = str(tmp_path / "theirs")
    if way == "environment":
        directory, seconds = settings(JAX_COMPILATION_CACHE_DIR=theirs, BLPJAX_COMPILATION_CACHE=str(tmp_path / "mine"))
    else:
        directory, seconds = settings(f"jax.config.update('jax_compilation_cache_dir', {theirs!r})")
    assert (directory, seconds) == (theirs, 1.0)


def test_the_users_least_time_is_kept(tmp_path: Path) -> None:
    found = settings(BLPJAX_COMPILATION_CACHE=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="3")
    assert found == (str(cache_directory(tmp_path)), 3.0)


def test_a_directory_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert settings(BLPJAX_COMPILATION_CACHE=str(tmp_path / "file")) == (None, 1.0)


def test_kinds_of_processors_and_versions_have_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cache_directory(tmp_path)
    assert here == cache_directory(tmp_path)
    monkeypatch.setattr("blpjax.machine.caches._processor", lambda: "another kind")
    assert cache_directory(tmp_path) != here
    monkeypatch.setattr("jaxlib.version.__version__", "0.0")
    assert cache_directory(tmp_path).name.startswith("jaxlib-0.0-")
