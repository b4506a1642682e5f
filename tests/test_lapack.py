"""Threads of LAPACK, in processes of their own."""

import os
import subprocess
import sys

PROGRAM = """
import scipy.linalg
import blpjax
from threadpoolctl import threadpool_info

counts = [info["num_threads"] for info in threadpool_info() if "scipy.libs" in info["filepath"]]
print(max(counts, default=1))
"""


def threads(**variables: str) -> int:
    """Threads of SciPy's OpenBLAS after importing blpjax with two threads at first; one if there is no such library."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_importing_blpjax_leaves_lapack_one_thread() -> None:
    assert threads() == 1


def test_a_variable_leaves_lapack_alone() -> None:
    if (os.cpu_count() or 1) > 1:
        assert threads(BLPJAX_LAPACK_THREADS="0") in (1, 2)  # 1 where SciPy does not come with OpenBLAS
