"""Threads of LAPACK, in processes of their own."""

import os
import subprocess
import sys

import pytest

IMPORTING = "import blpjax"
ORIGINAL = """
import blpjax
from blpjax.machine.lapack import original_lapack_threads

context = original_lapack_threads()
context.__enter__()
"""
AFTERWARDS = "context.__exit__(None, None, None)"
COUNTING = """
from threadpoolctl import threadpool_info

counts = [info["num_threads"] for info in threadpool_info() if "scipy.libs" in info["filepath"]]
print(max(counts, default=1))
"""


def threads(program: str, **variables: str) -> int:
    """Threads of SciPy's OpenBLAS after a program, of two at first where there are two cores.

    One where SciPy does not bring such a library.
    """
    code = f"import scipy.linalg\n{program}\n{COUNTING}"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_importing_blpjax_leaves_lapack_one_thread() -> None:
    assert threads(IMPORTING) == 1


@pytest.mark.slow
def test_a_variable_leaves_lapack_alone() -> None:
    assert threads(IMPORTING, BLPJAX_LAPACK_THREADS="0") == threads("")


@pytest.mark.slow
def test_other_libraries_can_have_the_original_threads() -> None:
    assert threads(ORIGINAL) == threads("")
    assert threads(ORIGINAL + AFTERWARDS) == 1
    assert threads(ORIGINAL + AFTERWARDS, BLPJAX_LAPACK_THREADS="0") == threads("")
