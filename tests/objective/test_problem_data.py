"""The data of a problem: a value that never changes, from which other values are made."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import blpjax
from blpjax.objective.problem_data import ProblemData, Tolerances
from tests.support import problems
from tests.support.problems import small_tables


@pytest.fixture(scope="module")
def problem() -> blpjax.Problem:
    return problems.build(blpjax)


def replace_instruments(problem: blpjax.Problem) -> blpjax.Problem:
    Z = np.random.default_rng(0).normal(size=(problem.N, 9))
    return problem.replace_instruments(Z, np.zeros((problem.N, 0)))


CHANGES: dict[str, tuple[Callable[[Any], blpjax.Problem], set[str]]] = {
    "instruments": (
        replace_instruments,
        {"product_table", "model_data", "instrument_labels", "instrument_rank", "replaced_instruments"},
    ),
    "agents": (
        lambda problem: problem.replace_agents(small_tables()[1]),
        {"agents_in_economy", "model_data", "instrument_labels"},
    ),
    "devices": (lambda problem: problem.shard(1), {"agents_in_economy", "model_data", "placement"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_problems_share_what_they_do_not_replace(problem: blpjax.Problem, change: str) -> None:
    data, (derive, replaced) = problem.data, CHANGES[change]
    before = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    with problems.quiet():
        derived = derive(problem).data
    different = {name for name, value in before.items() if getattr(derived, name) is not value}
    assert different - {"tolerances", "collinear"} == replaced
    assert problem.data is data and all(getattr(data, name) is value for name, value in before.items())


def test_fields_cannot_be_assigned_to(problem: blpjax.Problem) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.data.costs_type = "log"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        problem.costs_type = "log"


def test_problems_show_their_data_with_the_same_docstrings(problem: blpjax.Problem) -> None:
    names = [name for name in vars(blpjax.problem.data.DataHolder) if hasattr(problem.data, name) and name[0] != "_"]
    assert {"T", "ES", "product_formulations", "unique_firm_ids", "clusters", "instrument_rank"} <= {*names}
    for name in names:
        value = getattr(problem, name)
        if not callable(value):
            assert value is getattr(problem.data, name) or np.array_equal(value, getattr(problem.data, name)), name
        if isinstance(getattr(ProblemData, name, None), property | functools.cached_property):
            assert getattr(blpjax.Problem, name).__doc__ == getattr(ProblemData, name).__doc__, name
    assert blpjax.Problem.T.__doc__ == "Number of markets."  # type: ignore[attr-defined]


def test_tolerances_are_those_of_when_data_were_checked(
    problem: blpjax.Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problem.data.tolerances == Tolerances(*(getattr(blpjax.options, name) for name in Tolerances._fields))
    monkeypatch.setattr(blpjax.options, "collinear_rtol", 0)
    with problems.quiet():
        derived = replace_instruments(problem)
    assert derived.data.tolerances == problem.data.tolerances._replace(collinear_rtol=0.0)
