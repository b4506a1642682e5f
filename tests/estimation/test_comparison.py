"""Estimates as tables: blocks, side by side, and what notebooks and completion show of results."""

import inspect
import re

import numpy as np
import pandas as pd
import pytest

import blpjax
from tests.support.estimated import CASES, solved
from tests.support.joint import SIGMA, quiet


def test_estimates_say_which_block_a_parameter_belongs_to() -> None:
    results = solved("linear costs")
    frame = results.estimates()
    assert list(frame.columns[:4]) == ["block", "parameter", "estimate", "se"]
    for block in ("beta", "gamma"):
        part = frame[frame["block"] == block].set_index("parameter")["estimate"]
        expected = pd.Series(getattr(results, block)[:, 0], getattr(results, f"{block}_labels"))
        pd.testing.assert_series_equal(part.sort_index(), expected.sort_index(), check_names=False)
    assert not frame[["block", "parameter"]].duplicated().any() and frame["parameter"].duplicated().any()
    both = pd.concat([frame, solved("demand alone").estimates()], keys=["joint", "demand"])
    assert len(both.set_index(["block", "parameter"], append=True)) == len(both)


def test_results_stand_side_by_side() -> None:
    joint, logit = solved("linear costs"), solved("logit")
    table = blpjax.compare_estimates({"random": joint, "logit": logit})
    frame = table.to_frame()
    row = frame.loc[("beta", "prices")]
    np.testing.assert_allclose(row["random"], [-2.0, joint.beta_se[1, 0]])
    assert row["logit"]["estimate"] == logit.beta[1, 0]
    assert frame["logit"].loc[["sigma", "pi"]].isna().all(axis=None)
    statistics = table.columns[0].statistics
    assert statistics["Products"] == str(joint.problem.N) and statistics["Objective"] == f"{float(joint.objective):.6g}"
    assert blpjax.compare_estimates([joint, logit]).columns[1].name == "(2)"


def test_models_that_did_not_converge_are_named() -> None:
    stopped = blpjax.Optimization("trust-region", {"max_evaluations": 1})
    with quiet(), pytest.warns(blpjax.exceptions.ConvergenceWarning):
        results = CASES["demand alone"].solve(optimization=stopped)
    assert not results.converged
    table = blpjax.compare_estimates([solved("demand alone"), results])
    assert table.columns[1].statistics["Converged"] == "NO"
    for text in (str(table), table.to_markdown(), table.to_latex(), results._repr_html_(), results.to_latex()):
        assert "NOT CONVERGED" in text


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_estimate_is_refused() -> None:
    results = solved("logit")
    with pytest.raises(TypeError, match="must be a sequence of results, or a mapping"):
        blpjax.compare_estimates(results)
    with pytest.raises(TypeError, match=r"must hold results of Problem.solve, but '\(2\)' is DataFrame"):
        blpjax.compare_estimates([results, results.estimates()])
    with pytest.raises(ValueError, match="results must not be empty"):
        blpjax.compare_estimates({})
    with pytest.raises(ValueError, match="digits must be at least 1"):
        results.summary(digits=0)


def test_notebooks_show_estimates_and_fold_the_rest() -> None:
    results = solved("linear costs")
    top, details = results._repr_html_().split("<details>")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", top)
    number = cells.index("prices") + 1
    assert cells[number] == f"-2.00<br><small>({results.beta_se[1, 0]:.3g})</small>" and "Converged" in cells
    assert "Dimensions" in details and "Condition Number" in details
    problem = results.problem._repr_html_()
    assert "Dimensions" in problem and "Formulations" in problem and f"<td>{results.problem.N}</td>" in problem
    assert results.to_markdown() == results.summary().to_markdown()


def test_parameters_at_bounds_are_named_with_their_matrix() -> None:
    bounds = np.diag([SIGMA[0, 0], 0.0]), np.full((2, 2), np.inf)
    results = CASES["demand alone"].solve(sigma_bounds=bounds)
    assert results.at_bound == ["1 x 1"] and "\n\nAt bound: '1 x 1' of sigma." in str(results)
    assert "At bound" in results._repr_html_() and "At bound" not in str(solved("demand alone"))


def test_completion_shows_what_is_documented() -> None:
    """Names that are completed of results, problems and outputs have docstrings, or are attributes with values."""
    results = solved("linear costs")
    for thing in (results, results.problem):
        names = [name for name in dir(thing) if name[0] != "_"]
        assert not {"ask", "build_agents", "model_in", "output_tables", "to_state", "economy", "draws"} & set(names)
        undocumented = [name for name in names if callable(found := getattr(thing, name)) and not inspect.getdoc(found)]
        assert not undocumented
    assert {"estimates", "compute_elasticities", "summary", "counterfactual"} <= set(dir(results))
