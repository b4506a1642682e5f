"""A file that version 0.1.0 wrote is read as what it was, computes the same and is estimated alike."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blpjax
from tests.parity.reference.make_file import ARGUMENTS, FIRST_ROWS, NUMBERS, OUTPUTS, ROWS, build
from tests.tolerances import ESTIMATES, FIXED_PARAMETERS, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

REFERENCE = Path(__file__).parents[1] / "parity" / "reference"


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((REFERENCE / "results-0.1.0.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def loaded() -> blpjax.ProblemResults:
    return blpjax.load(REFERENCE / "results-0.1.0.blpjax")


def test_numbers_and_texts_are_those_that_were_saved(loaded: blpjax.ProblemResults, stored: dict[str, Any]) -> None:
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(loaded, name), np.array(stored["numbers"][name], float), name)
    for name in ROWS:
        np.testing.assert_array_equal(getattr(loaded, name)[:FIRST_ROWS], stored["rows"][name], name)
    first = loaded.last_results
    assert first is not None and first.step == 1 and loaded.step == 2
    for name, values in stored["first_step"].items():
        np.testing.assert_array_equal(getattr(first, name), values, name)
    assert [str(label) for label in loaded.theta_labels] == stored["labels"]["theta"]
    assert list(loaded.beta_labels) == stored["labels"]["beta"]
    assert str(loaded) == stored["texts"]["results"] and str(loaded.problem) == stored["texts"]["problem"]


def test_outputs_are_computed_as_before(loaded: blpjax.ProblemResults, stored: dict[str, Any]) -> None:
    market = loaded.problem.unique_market_ids[0]
    for name in OUTPUTS:
        of = None if name == "consumer_surpluses" else market
        ROUNDING.check(getattr(loaded, f"compute_{name}")(market_id=of), stored["outputs"][name], name)


@pytest.mark.slow
def test_the_problem_is_the_one_that_was_solved(loaded: blpjax.ProblemResults) -> None:
    built = build()
    assert str(built) == str(loaded.problem)
    for name in ("market_ids", "firm_ids", "nesting_ids", "clustering_ids"):
        assert (loaded.problem.products[name] == built.products[name]).all(), name
    # equilibria are found to this
    for name in ("shares", "prices", "X1", "X2", "X3", "ZD", "ZS"):
        FIXED_PARAMETERS.check(loaded.problem.products[name], built.products[name], name)
    for name in ("weights", "nodes", "demographics"):
        np.testing.assert_array_equal(loaded.problem.agents[name], built.agents[name], name)


@pytest.mark.slow
def test_the_problem_is_estimated_alike(loaded: blpjax.ProblemResults) -> None:
    again = loaded.problem.solve(**ARGUMENTS)
    assert again.converged and again.cumulative_converged
    ESTIMATES.check(again.parameters, loaded.parameters)
    ESTIMATES.check(again.objective, loaded.objective)
    ESTIMATES.check(np.diag(again.parameter_covariances), np.diag(loaded.parameter_covariances))
