"""The page on conduct: its examples run, and say what it says of them."""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blpjax
from tests.tolerances import DELTA

PAGE = (Path(__file__).parents[1] / "docs" / "conduct.md").read_text(encoding="utf-8")

BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@functools.cache
def names_after(blocks: int) -> dict[str, Any]:
    """What there is after some of the page's examples."""
    names: dict[str, Any] = {}
    for block in BLOCKS[:blocks]:
        exec(compile(block, "page", "exec"), names)
    return names


@pytest.mark.slow
def test_conduct_of_ones_own() -> None:
    names = names_after(3)
    bertrand = names["results"].compute_costs()
    DELTA.check(names["same"], bertrand)
    prices = names["products"]["prices"]
    first = prices.groupby(names["products"]["market_ids"]).transform("first")
    DELTA.check(names["markups"], prices - bertrand[:, 0] + 0.1 * first)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::blpjax.exceptions.ConvergenceWarning")
def test_all_examples_run() -> None:
    assert len(BLOCKS) == 6
    outcome = names_after(4)["outcome"]
    assert outcome.markets["converged"].all() and (outcome.markets["mean_price_change"] > 0).all()
    assert np.isfinite(outcome.products["prices_after"]).all()


@pytest.mark.slow
def test_a_weight_is_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS[4:]:
        exec(compile(block, "page", "exec"), names)
    results = names["colluding"]
    assert results.converged and "weight" in capsys.readouterr().out
    assert 0.01 < results.kappa_se.item() < 0.25 and abs(results.kappa.item() - 0.5) < 3 * results.kappa_se.item()
    # half of common ownership in which firms internalise half of rivals' profits
    problem = results.problem
    data = dict(problem.product_table.data)
    data["ownership"] = blpjax.build_ownership(data, lambda f, g: 1.0 if f == g else 0.5)
    halved = blpjax.Problem(problem.product_formulations, data, conduct=names["common"]).solve(
        kappa=0.5,
        beta=[None, -2.0, None],
        method="1s",
        optimization=blpjax.Optimization("return"),
        check_optimality="gradient",
    )
    DELTA.check(halved.compute_costs(), halved.compute_costs(conduct=blpjax.Bertrand(weights=0.25)))
