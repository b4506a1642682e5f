"""Processes that are forked after JAX was used say so, instead of waiting for threads that are not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Asks for something in a forked process, and prints what comes of it.
SCRIPT = """
import multiprocessing, warnings
warnings.simplefilter("ignore")
import numpy as np
import blpjax
from tests.support.economies import tables
blpjax.options.verbose = False
products, agents = tables(5, [3, 3, 2], [4, 4, 5])
def build():
    return blpjax.Problem(blpjax.Formulation("1 + prices + x"), products)
def ask(name):
    try:
        found = {
            "build": build,
            "solve": lambda: problem.solve(method="1s"),
            "output": lambda: results.compute_elasticities(),
            "errors": lambda: results.compute_elasticities(standard_errors=True),
            "bootstrap": lambda: results.bootstrap(3),
            "reestimate": lambda: results.reestimate(3),
            "delta method": lambda: results.delta_method(lambda model: model.compute_shares()),
        }[name]()
        return type(found).__name__
    except Exception as error:
        return f"{type(error).__name__} {error}"
if USED:
    problem = build()
    results = problem.solve(method="1s")
with multiprocessing.get_context("fork").Pool(1) as pool:
    for name in NAMES:
        print(name, "|", pool.apply_async(ask, (name,)).get(60), flush=True)
"""


def run(used: bool, *names: str) -> list[str]:
    code = SCRIPT.replace("USED", str(used)).replace("NAMES", repr(names))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_process_says_at_its_first_call_that_processes_have_to_be_spawned() -> None:
    names = ("build", "solve", "output", "errors", "bootstrap", "reestimate", "delta method")
    found = run(True, *names)
    assert len(found) == len(names)
    for line in found:
        assert "ForkError This process was forked" in line and "get_context('spawn')" in line


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_processes_that_were_forked_before_jax_was_used_compute() -> None:
    assert run(False, "build") == ["build | Problem"]
