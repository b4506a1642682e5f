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


@pytest.mark.slow
def test_the_directory_can_be_chosen(tmp_path: Path) -> None:
    directory, _ = settings(BLPJAX_COMPILATION_CACHE=str(tmp_path / "mine"))
    assert directory is not None and Path(directory).parent == tmp_path / "mine"


def test_zero_opts_out(tmp_path: Path) -> None:
    before = settings("", BLPJAX_COMPILATION_CACHE="0", XDG_CACHE_HOME=str(tmp_path))
    assert before == (None, 1.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", [pytest.param("environment", marks=pytest.mark.slow), "configuration"])
def test_the_users_directory_is_never_overridden(tmp_path: Path, way: str) -> None:
    theirs = str(tmp_path / "theirs")
    if way == "environment":
        directory, seconds = settings(JAX_COMPILATION_CACHE_DIR=theirs, BLPJAX_COMPILATION_CACHE=str(tmp_path / "mine"))
    else:
        directory, seconds = settings(f"jax.config.update('jax_compilation_cache_dir', {theirs!r})")
    assert (directory, seconds) == (theirs, 1.0)


@pytest.mark.slow
def test_the_users_least_time_is_kept(tmp_path: Path) -> None:
    found = settings(BLPJAX_COMPILATION_CACHE=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="3")
    assert found == (str(cache_directory(tmp_path)), 3.0)


@pytest.mark.slow
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


#: Has JAX itself keep a program, and says whether it was found and what was said.
PROGRAM = """
import json, sys, warnings
import jax
hits = []
jax.monitoring.register_event_listener(lambda event, **more: hits.append(event) if event.endswith("/cache_hits") else 0)
import blpjax, jax.numpy as jnp
if sys.argv[1:]:
    def full(self, data):
        raise OSError(28, "No space left on device")
    import pathlib
    pathlib.Path.write_bytes = full
texts = []
blpjax.options.verbose_output = texts.append
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", append=True)
    for n in (2, 3):
        jax.jit(lambda x: jnp.sin(x) + 1)(jnp.ones(n)).block_until_ready()
print(json.dumps([len(hits), texts, [str(one.message) for one in caught]]))
"""


def run_program(directory: Path, *arguments: str) -> tuple[int, list[str], list[str]]:
    known = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    known |= {"BLPJAX_COMPILATION_CACHE": str(directory), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    known["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, env=known, capture_output=True, text=True, check=True)
    assert not done.stderr
    hits, texts, caught = json.loads(done.stdout.splitlines()[-1])
    return hits, texts, caught


@pytest.mark.slow
def test_damaged_entries_of_jaxs_own_cache_are_replaced_in_silence(tmp_path: Path) -> None:
    assert run_program(tmp_path) == (0, [], [])
    intact, _, _ = run_program(tmp_path)
    assert intact >= 2
    entries = [entry for entry in cache_directory(tmp_path).glob("*-cache") if "lambda" in entry.name]
    assert len(entries) == 2
    entries[0].write_bytes(entries[0].read_bytes()[:100])
    entries[1].write_bytes(b"garbage")
    hits, *said = run_program(tmp_path)
    assert hits < intact and said == [[], []]
    assert run_program(tmp_path) == (intact, [], [])


def test_no_space_for_jaxs_own_cache_is_said_once(tmp_path: Path) -> None:
    hits, texts, caught = run_program(tmp_path, "full")
    assert hits == 0 and caught == []
    assert len(texts) == 1 and "cannot be kept" in texts[0] and "No space left on device" in texts[0]
