"""The page on counterfactuals: every line of its table runs, and no task takes more than five."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest

import blpjax

PAGE = (Path(__file__).parents[1] / "docs" / "counterfactuals.md").read_text(encoding="utf-8")


def tasks() -> dict[str, list[str]]:
    """Lines by task, in the order of the page."""
    rows = re.findall(r"^\| (.+?) \| (`.+`) \|$", PAGE, re.MULTILINE)
    return {task: re.findall(r"`(.+?)`", lines) for task, lines in rows}


def test_no_task_takes_more_than_five_lines() -> None:
    assert len(tasks()) > 20 and len(tasks()) == len(re.findall(r"^\| .+ \|$", PAGE, re.MULTILINE)) - 1
    assert max(map(len, tasks().values())) <= 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::blpjax.exceptions.ConvergenceWarning")
def test_all_lines_run() -> None:
    matplotlib.use("agg")
    names: dict[str, Any] = {}
    setup, *more = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(setup, "setup", "exec"), names)
    for block in more:
        exec(compile(block, "block", "exec"), names)
    for task, lines in tasks().items():
        exec(compile("\n".join(lines), task, "exec"), names)
        found = eval(lines[-1].partition(" = ")[2] if " = " in lines[-1] else lines[-1], names)
        if isinstance(found, blpjax.Counterfactual):
            assert found.markets["converged"].all(), task
            assert found.markets["total_change"].abs().max() > 0, task
        elif isinstance(found, pd.DataFrame):
            assert len(found), task
