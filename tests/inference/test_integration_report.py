"""How estimates move with draws: lanes with other nodes give what problems with these nodes give."""

import functools
import pickle
from typing import Any

import numpy as np
import pytest

from blpjax import Formulation, Integration, Problem
from blpjax.exceptions import DataError
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.support.estimated import solved
from tests.tolerances import ESTIMATES

pytestmark = pytest.mark.usefixtures("quiet")

#: Without demographics as many as there are in the table of agents: programs are the same. These have to last.
NODES = {"demand": 30, "supply, demographics": 25}
#: At which estimates are neither at a bound nor at another minimum.
SEEDS = {"demand": [6, 9], "supply, demographics": [3, 8]}
DRAWS = Integration("monte_carlo", 30)
CASES = {
    "demand": (joint.Model(X2="0 + x", X3=None, demographics=None), {"sigma": [[0.6]], "method": "1s"}),
    "supply, demographics": (
        joint.Model(),
        {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [None, -2.0, None, None], "se_type": "clustered"},
    ),
}


def outcome(model: Any) -> dict[str, Any]:
    return {"elasticity": model.extract_diagonals(model.compute_elasticities()).mean()}


def build(name: str, integration: Any = None) -> Any:
    """A problem whose nodes are the table's, or built."""
    model = CASES[name][0]
    products, agents = joint.tables(seed=2, markets=6)
    formulas = [Formulation(model.X1), Formulation(model.X2), model.X3 and Formulation(model.X3)]
    demographics = model.demographics and Formulation(model.demographics)
    with joint.quiet():
        table = agents if demographics or integration is None else None
        return Problem([f for f in formulas if f], products, demographics, table, integration=integration)


@functools.cache
def estimated(name: str) -> Any:
    with joint.quiet():
        return build(name).solve(**CASES[name][1])


@functools.cache
def report(name: str) -> Any:
    return estimated(name).integration_report(
        Integration("monte_carlo", NODES[name]), seeds=SEEDS[name], outcome=outcome
    )


@pytest.mark.parametrize("name", mostly_slow(list(CASES), []))
def test_each_seed_has_the_estimates_of_a_problem_with_its_draws(name: str) -> None:
    found = report(name)
    problem = build(name, Integration("monte_carlo", NODES[name], {"seed": SEEDS[name][1]}))
    with joint.quiet():
        results = problem.solve(**CASES[name][1])
    rows = found.table[found.table["seed"] == SEEDS[name][1]]
    assert rows["ok"].all() and set(rows["agents"]) == {NODES[name]}
    assert set(rows["integration"]) == {f"monte_carlo {NODES[name]}"}
    estimates = rows[rows["block"] != "outcome"]
    assert estimates["parameter"].tolist() == results.parameter_labels
    ESTIMATES.check(estimates["estimate"], results.parameters[:, 0])
    errors = np.sqrt(np.diag(results.parameter_covariances) / problem.N)
    np.testing.assert_allclose(estimates["standard_error"], errors, rtol=1e-3)
    ESTIMATES.check(rows["estimate"].iloc[-1], float(outcome(results.model)["elasticity"]))


@pytest.mark.slow
def test_summaries_are_over_seeds() -> None:
    found, results = report("demand"), estimated("demand")
    summary = found.summary()
    assert summary.index.names == ["integration", "agents", "block", "parameter"]
    table = found.table[found.table["parameter"] == "prices"]["estimate"].to_numpy()
    row = summary.xs("prices", level="parameter").iloc[0]
    k = results.parameter_labels.index("prices")
    error = np.sqrt(results.parameter_covariances[k, k] / results.problem.N)
    expected = [
        results.parameters[k, 0],
        error,
        table.mean(),
        abs(np.diff(table)[0]) / np.sqrt(2),
        min(table),
        max(table),
    ]
    np.testing.assert_allclose(row[["baseline", "standard_error", "mean", "sd", "lowest", "highest"]], expected)
    np.testing.assert_allclose(row[["noise", "shift"]], [row["sd"] / error, (row["mean"] - row["baseline"]) / error])
    assert row[["runs", "failures"]].tolist() == [2, 0]
    assert np.isnan(summary.xs("elasticity", level="parameter")["noise"]).all()
    assert str(pickle.loads(pickle.dumps(found))) == str(found) and "elasticity" in str(found)


@pytest.mark.slow
def test_rules_without_seeds_run_once_and_reproduce_themselves() -> None:
    rule = Integration("product", 7)
    problem = build("demand", rule)
    with joint.quiet():
        results = problem.solve([[0.6]])
    found = results.integration_report({"same": rule, "unscrambled": Integration("halton", 25, {"scramble": False})})
    assert found.table.groupby("integration")["seed"].unique().apply(list).to_dict() == {
        "same": [-1],
        "unscrambled": [-1],
    }
    same = found.table[found.table["integration"] == "same"]
    ESTIMATES.check(same["estimate"], results.parameters[:, 0])


def test_arguments_that_cannot_be_used_are_refused() -> None:
    results = estimated("demand")
    for given, kind, message in (
        ("halton", TypeError, "one Integration or several, not str"),
        ([DRAWS, 3], TypeError, "but one is 3"),
        ([], ValueError, "at least one Integration"),
    ):
        with pytest.raises(kind, match=message):
            results.integration_report(given)
    for seeds, kind, message in (
        (0, ValueError, "seeds must be"),
        ([1, 1], ValueError, "none twice"),
        ([], ValueError, "at least one element"),
        ("12", TypeError, "a number of seeds or a sequence"),
        ([-1], ValueError, "element of seeds"),
    ):
        with pytest.raises(kind, match=message):
            results.integration_report(DRAWS, seeds=seeds)
    with pytest.raises(TypeError, match="a mapping of names to numbers, not arrays of shapes"):
        results.integration_report(DRAWS, outcome=lambda m: m.prices)
    with pytest.raises(ValueError, match="nothing to integrate without X2"):
        solved("logit").integration_report(DRAWS)


def test_demographics_have_to_last() -> None:
    with pytest.raises(DataError, match="agent_data"):
        solved("demand alone").integration_report(Integration("monte_carlo", 400))


@pytest.mark.usefixtures("unchecked_types")
def test_outcomes_are_functions() -> None:
    with pytest.raises(TypeError, match="outcome must be a function of a Model, not str"):
        estimated("demand").integration_report(DRAWS, outcome="surplus")
