"""What is imported, and when, in processes of their own; names that are found when they are asked for."""

import functools
import pickle
import subprocess
import sys

import pytest

import blpjax

#: What takes long to import, and scripts may not need.
SLOW = {
    "dask",
    "distributed",
    "formulaic",
    "matplotlib",
    "multiprocessing",
    "optax",
    "pyhdfe",
    "scipy.optimize",
    "scipy.sparse",
    "scipy.special",
    "scipy.stats",
}
ESTIMATION = """
import numpy as np
import pandas as pd
import blpjax

blpjax.options.verbose = False
rng = np.random.default_rng(0)
data = pd.DataFrame({"market_ids": np.repeat(np.arange(20), 3), "product_ids": np.tile(np.arange(3), 20)})
data["shares"] = rng.uniform(0.1, 0.3, 60)
data["prices"] = rng.uniform(1, 2, 60)
data["demand_instruments0"] = data["prices"] + rng.uniform(size=60)
data["demand_instruments1"] = data["demand_instruments0"] ** 2
problem = blpjax.Problem(blpjax.Formulation("0 + prices + I(prices ** 2)", absorb="C(product_ids)"), data)
print(problem, problem.solve(method="1s"))
"""


def run(program: str) -> str:
    """What a program prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@functools.cache
def imported() -> list[set[str]]:
    """Modules that there are after blpjax was imported, and then after an estimation."""
    parts = ("import blpjax, sys\nblpjax.options.digits = 3\nblpjax.exceptions.DataError", ESTIMATION)
    shown = run("\n".join(f"{part}\nprint('MODULES', *sys.modules)" for part in parts))
    return [set(line.split()[1:]) for line in shown.splitlines() if line.startswith("MODULES")]


def test_importing_blpjax_imports_little() -> None:
    modules, _ = imported()
    assert not modules & (SLOW | {"equinox", "pandas", "pyarrow", "tqdm"})
    own = {name for name in modules if name.startswith("blpjax")}
    assert own == {"blpjax", "blpjax.exceptions", "blpjax.machine", "blpjax.options", "blpjax.values"} | {
        f"blpjax.machine.{name}" for name in ("caches", "garbage", "lapack")
    }


def test_an_estimation_imports_only_what_it_needs() -> None:
    _, modules = imported()
    assert "blpjax.problem.results" in modules
    assert not modules & (SLOW - {"multiprocessing"})  # which progress bars import
    unused = ("simulation", "studies", "plots", "inference.bootstrap", "objective.likelihood", "outputs.outcome")
    assert not {name for name in modules if name.startswith(tuple(f"blpjax.{name}" for name in unused))}


@pytest.mark.parametrize("name", blpjax.__all__)
def test_names_are_found(name: str) -> None:
    assert getattr(blpjax, name) is not None
    assert name in dir(blpjax)


NAMES = """
from blpjax import *
print(*(name for name in dir() if name[:2] != "__"), __version__)
import blpjax
print(*(name for name in dir(blpjax) if name[0] != "_"), blpjax.plots.__name__)
"""


@pytest.mark.slow
def test_only_names_for_users_are_completed_and_imported_with_a_star() -> None:
    starred, completed = (line.split() for line in run(NAMES).splitlines())
    assert set(starred) == set(blpjax.__all__) - {"__version__"} | {blpjax.__version__}
    *names, plots = completed
    assert set(names) == {name for name in blpjax.__all__ if name[0] != "_"} | {"plots"} and plots == "blpjax.plots"


@pytest.mark.slow
def test_pickles_are_read_before_blpjax_is_imported() -> None:
    formulation = blpjax.Formulation("prices", absorb="C(product_ids)")
    program = f"import pickle\nprint(pickle.loads({pickle.dumps(formulation)!r}))"
    assert run(f"{program}\nimport jax\nprint(jax.config.jax_enable_x64)") == f"{formulation}\nTrue\n"
