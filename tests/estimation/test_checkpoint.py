"""Estimations that were killed go on from the best points in a file."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blpjax
from blpjax.estimation.checkpoint import Checkpoint
from blpjax.exceptions import StorageError, UnusedOptionWarning
from blpjax.model.parameters import Bounds
from tests.support.estimated import CASES, solved
from tests.tolerances import ESTIMATES

pytestmark = pytest.mark.usefixtures("quiet")

NAMES = ["'x' of sigma", "'y' of sigma"]
BOUNDS = Bounds(np.array([0.0, -np.inf]), np.array([2.0, np.inf]))
START = np.array([1.0, 1.0])


def test_the_best_point_of_each_step_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    first = Checkpoint(path, NAMES, 10)
    for step, theta, objective in ((1, [0.5, 2.0], 3.0), (1, [0.4, 1.0], 4.0), (2, [2.5, -1.0], 1.0)):
        first.keep(step, np.array(theta), objective)
    again = Checkpoint(path, NAMES, 10)
    assert again.start(1, START, BOUNDS).tolist() == [0.5, 2.0]
    assert again.start(2, START, BOUNDS).tolist() == [2.0, -1.0]  # within bounds
    assert Checkpoint(tmp_path / "new.json", NAMES, 10).start(1, START, BOUNDS) is START
    assert sorted(one.name for one in tmp_path.iterdir()) == ["best.json", "new.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no points of an estimation"),
        ("[]", "holds no points of an estimation"),
        ('{"steps": {"1": {"theta": [1], "objective": 1}}}', "holds no points of an estimation"),
        ('{"steps": {}, "format": 1, "parameters": ["a"], "products": 10}', "of 10 products and the parameters a"),
        (
            json.dumps({"steps": {}, "format": 1, "parameters": NAMES, "products": 9}),
            "another estimation, of 9 products",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "best.json"
    path.write_text(content)
    with pytest.raises(StorageError, match=message):
        Checkpoint(path, NAMES, 10)
    assert path.read_text() == content


def test_paths_that_cannot_be_written_are_refused_before_anything_is_estimated(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no directory"):
        Checkpoint(tmp_path / "nowhere" / "best.json", NAMES, 10)


def test_estimation_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    case, path = CASES["demand alone"], tmp_path / "best.json"
    given: dict[str, Any] = {"method": "2s", "optimization": blpjax.Optimization("trust-region")}
    whole = case.solve(**given)

    calls = []

    def stop(text: str) -> None:
        calls.append(text)
        if sum(line.startswith(" 1 ") for line in calls) == 3:
            raise ZeroDivisionError  # as good as a kill

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("tests.support.joint.quiet", contextlib.nullcontext)
        patch.setattr(blpjax.options, "verbose", True)
        patch.setattr(blpjax.options, "verbose_output", stop)
        case.solve(path=path, **given)
    known = json.loads(path.read_text())["steps"]
    assert list(known) == ["1"] and known["1"]["theta"] != whole.last_results.theta.tolist()

    resumed = case.solve(path=path, **given)
    ESTIMATES.check(resumed.theta, whole.theta)
    assert resumed.converged and resumed.last_results.objective_evaluations < whole.last_results.objective_evaluations
    known = json.loads(path.read_text())["steps"]
    ESTIMATES.check(known["2"]["theta"], resumed.theta)
    ended = case.solve(path=path, **given)
    assert ended.converged and ended.cumulative_objective_evaluations <= 4


def test_what_has_nothing_to_keep_is_refused(tmp_path: Path) -> None:
    problem = solved("demand alone").problem
    sigma, pi = solved("demand alone").sigma, solved("demand alone").pi
    with pytest.raises(ValueError, match=r"path must not be given with Optimization\('return'\)"):
        problem.solve(sigma, pi, optimization=blpjax.Optimization("return"), path=tmp_path / "best.json")
    with pytest.raises(NotImplementedError, match="path is not supported with starts"):
        problem.solve(sigma, pi, starts=2, path=tmp_path / "best.json")
    logit = blpjax.Problem(problem.product_formulations[0], problem.product_table.data)
    with pytest.warns(UnusedOptionWarning, match="path has no effect"):
        logit.solve(method="1s", path=tmp_path / "best.json")
    assert not (tmp_path / "best.json").exists()
