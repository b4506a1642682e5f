"""Strict settings for every test: 64-bit, no silent rank promotion, shapes checked at run time."""

import gc
import hashlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import hypothesis
import jaxtyping
import pytest


def compilation_cache() -> Path:
    """Return a directory for compiled programs, another one for each version of jaxlib and kind of processor.

    It is the user's and not the repository's: clones of it share what they have compiled.
    """
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    key = hashlib.sha256(features.encode()).hexdigest()[:12]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blpjax-tests"
    return base / f"jaxlib-{version('jaxlib')}-{platform.machine()}-{key}"


# The environment rather than `jax.config`: set before blpjax is imported, it reaches the processes that tests start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compilation_cache())
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ.setdefault("BLPJAX_COMPILATION_CACHE", os.environ["JAX_COMPILATION_CACHE_DIR"])
# What tests compile themselves is small and runs once.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Where in Python an operation comes from is not written into programs: nobody reads it there, and it takes time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Parallel test processes share a GPU: none may take all of its memory when it starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Figures go to files.
os.environ.setdefault("MPLBACKEND", "agg")

from tests.support import type_checks  # noqa: E402

# Pytrees with annotated fields are equinox modules or named tuples: JAX rebuilds other classes with placeholders.
type_checks.install()

import jax  # noqa: E402

import blpjax  # noqa: E402, F401  (turns on 64-bit)
from blpjax.machine import announcements, compilation  # noqa: E402
from tests.support.economies import in_several_buckets  # noqa: E402
from tests.support.silence import silent  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# What is printed must not depend on how fast the machine compiles.
announcements.ANNOUNCED_AFTER = 1e6

# The first example pays for compilation, and a failure must be one that everybody gets.
hypothesis.settings.register_profile("blpjax", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("blpjax")

# Tracing makes many objects that live on: looking for garbage among them as often as Python does takes a tenth of
# the time.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 50, 100)

#: How many memory maps a module may leave to the next one.
MAPS = 40_000


@pytest.fixture
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn run-time type checks off, as they are for users: for tests of the library's own messages about wrong types.

    Used as `@pytest.mark.usefixtures("unchecked_types")`.
    """
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """Print nothing in this module, neither blpjax nor PyBLP."""
    with silent():
        yield


@pytest.fixture(scope="module")
def several_buckets() -> Iterator[None]:
    """Put markets of different sizes into several buckets although they are few and small, in all of a module."""
    with in_several_buckets():
        yield


@pytest.fixture
def several_buckets_here() -> Iterator[None]:
    """What `several_buckets` does, in one test."""
    with in_several_buckets():
        yield


@pytest.fixture
def unstored_programs() -> Iterator[None]:
    """Neither keep programs on disk nor take them from there: for tests that replace code that programs are made of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "program_store", lambda: None)
        yield


@pytest.fixture(autouse=True)
def _unstored_where_code_is_replaced(request: pytest.FixtureRequest) -> None:
    if "monkeypatch" in request.fixturenames:
        request.getfixturevalue("unstored_programs")


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """Forget compiled programs after a module where there are many.

    Each takes some of the memory maps that Linux allows a process (65,530), and a process without any left is aborted.
    """
    yield
    if compilation.memory_maps() > MAPS:
        compilation.forget_programs()
