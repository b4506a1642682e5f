"""The table of PyBLP's vocabulary, `tests/ARGUMENTS.md`, next to PyBLP, to the tests and to blpjax.

The last tests are of arguments and methods that no other test exercises.
"""

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyblp
import pytest

import blpjax
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.support.estimated import CASES, solved
from tests.support.silence import quiet
from tests.tolerances import FIXED_PARAMETERS, ROUNDING

TESTS = Path(__file__).parents[1]
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \| (.*) \|$", re.MULTILINE)
REFERENCE = re.compile(r"`((?:\w+/)*test_\w+\.py::\w+)`")

#: Classes of which every argument has a row.
CONFIGURED = ("Formulation", "Integration", "Iteration", "Optimization", "Problem", "Simulation")
#: Classes of which every public method has a row.
RESULTS = (
    "ProblemResults",
    "BootstrappedResults",
    "OptimalInstrumentResults",
    "OptimalInstrumentProblem",
    "ImportanceSamplingResults",
    "ImportanceSamplingProblem",
    "Simulation",
    "SimulationResults",
)
#: Modules of which users need the name.
MODULES = ("data", "options", "exceptions")


@functools.cache
def rows() -> dict[str, tuple[str, str]]:
    """Test and remark by what of PyBLP's they are about."""
    found = ROW.findall((TESTS / "ARGUMENTS.md").read_text(encoding="utf-8"))
    assert len({name for name, _, _ in found}) == len(found)
    return {name: (test, remark) for name, test, remark in found}


def arguments(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def methods(kind: type) -> list[str]:
    return [name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))]


def vocabulary() -> Iterator[str]:
    """What of the installed PyBLP has to be in the table."""
    for kind in CONFIGURED:
        yield from (f"{kind}({name})" for name in arguments(getattr(pyblp, kind).__init__))
    yield from (f"Problem.solve({name})" for name in arguments(pyblp.Problem.solve))
    for kind in RESULTS:
        yield from (f"{kind}.{name}" for name in methods(getattr(pyblp, kind)))
    for name in dir(pyblp):
        public = not name.startswith("_") and not inspect.ismodule(getattr(pyblp, name))
        if public and name not in (*CONFIGURED, *RESULTS):
            yield name
    yield from MODULES


def test_the_table_has_all_of_pyblps_vocabulary() -> None:
    assert sorted(rows()) == sorted(vocabulary())


def test_tests_in_the_table_exist() -> None:
    names = {test for test, _ in rows().values()}
    names |= {name for _, remark in rows().values() for name in REFERENCE.findall(remark)}
    for file in sorted({name.split("::")[0] for name in names}):
        functions = {
            node.name for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body if hasattr(node, "name")
        }
        assert {name.split("::")[1] for name in names if name.startswith(f"{file}::")} <= functions, file


def test_what_is_not_absent_is_there() -> None:
    """Methods and functions with every argument of PyBLP's; beyond these, what blpjax adds."""
    for name, (_, remark) in rows().items():
        if "absent" in remark:
            continue
        owner, _, rest = name.partition(".")
        if "(" in name:
            owner, argument = name.removesuffix(")").split("(")
            kind, _, method = owner.partition(".")
            assert argument in arguments(getattr(getattr(blpjax, kind), method or "__init__")), name
        elif rest:
            theirs, ours = (getattr(getattr(library, owner), rest) for library in (pyblp, blpjax))
            assert set(arguments(theirs)) <= set(arguments(ours)), name
        else:
            ours = getattr(blpjax, owner)
            if inspect.isfunction(ours):
                assert arguments(ours)[: len(arguments(getattr(pyblp, owner)))] == arguments(getattr(pyblp, owner)), (
                    name
                )


def test_defaults_are_those_of_pyblp() -> None:
    """But for those that the README explains."""
    others = {"Problem.solve": {"error_behavior", "delta_behavior"}, "Iteration": {"method"}}
    for kind, method in [*((kind, "__init__") for kind in CONFIGURED), ("Problem", "solve")]:
        theirs, ours = (
            inspect.signature(getattr(getattr(library, kind), method)).parameters for library in (pyblp, blpjax)
        )
        name = kind if method == "__init__" else f"{kind}.{method}"
        different = {key for key in theirs if theirs[key].default != ours[key].default}
        assert different == others.get(name, set()), name


def test_positional_arguments_have_the_places_of_pyblps() -> None:
    """So that scripts may pass them by position. What blpjax adds comes afterwards."""
    for kind, method in [*((kind, "__init__") for kind in CONFIGURED), ("Problem", "solve")]:
        theirs, ours = (arguments(getattr(getattr(library, kind), method)) for library in (pyblp, blpjax))
        assert ours[: len(theirs)] == theirs, (kind, method)


# arguments and methods that no other test exercises


def test_bounds_of_gamma_hold() -> None:
    """The unbounded estimate is outside, so that the optimum is at the bound."""
    case, beta = CASES["logit"], [None, -2.0, None, None]
    optimization = blpjax.Optimization("l-bfgs-b", {"gtol": 1e-8, "ftol": 0})
    gamma, free = [None, 0.5, None], {"optimization": optimization, "method": "1s", "W_type": "robust", "beta": beta}
    inside = case.solve(blpjax, **free, gamma=gamma)
    lower = inside.gamma[1, 0] + 0.1
    bounded = case.solve(
        blpjax, **free, gamma=[None, lower + 0.1, None], gamma_bounds=([-np.inf, lower, -np.inf], [np.inf] * 3)
    )
    assert inside.converged and bounded.converged and inside.at_bound == []
    assert bounded.gamma[1, 0] == lower and bounded.at_bound == ["w"]
    assert bounded.objective > inside.objective
    np.testing.assert_array_equal(bounded.gamma_bounds[0][:, 0], [-np.inf, lower, -np.inf])


def test_moments_of_structural_errors_are_those_of_pyblp() -> None:
    found = []
    for library in (blpjax, pyblp):
        with quiet():
            found.append(
                library.Simulation(
                    (library.Formulation("1 + prices + x"), None, library.Formulation("1 + x")),
                    library.build_id_data(T=200, J=10, F=2),
                    beta=[1, -2, 1],
                    gamma=[1, 1],
                    xi_variance=0.3,
                    omega_variance=2.0,
                    correlation=-0.6,
                    seed=1,
                )
            )
    for name in ("xi", "omega"):
        ROUNDING.check(getattr(found[0], name), getattr(found[1], name), name)
    xi, omega = found[0].xi[:, 0], found[0].omega[:, 0]
    np.testing.assert_allclose([xi.var(), omega.var(), np.corrcoef(xi, omega)[0, 1]], [0.3, 2.0, -0.6], rtol=0.1)


OUTPUTS = (
    "aggregate_elasticities",
    "approximate_prices",
    "demand_hessians",
    "demand_jacobians",
    "long_run_diversion_ratios",
    "profit_hessians",
)


@pytest.mark.slow
def test_outputs_of_simulations_are_those_of_pyblp() -> None:
    found = []
    for library in (blpjax, pyblp):
        with quiet():
            simulation = library.Simulation(
                (library.Formulation("1 + prices + x"), library.Formulation("0 + x"), library.Formulation("1 + x")),
                library.build_id_data(T=3, J=5, F=2),
                beta=[1, -2, 1],
                sigma=0.5,
                gamma=[1, 1],
                integration=library.Integration("product", 5),
                seed=1,
            )
            found.append(simulation.replace_endogenous(iteration=library.Iteration("simple", {"atol": 1e-14})))
    for output in OUTPUTS:
        with quiet():
            actual, expected = (getattr(results, f"compute_{output}")() for results in found)
        FIXED_PARAMETERS.check(actual, expected, output)
    for name in ("extract_diagonals", "extract_diagonal_means"):
        actual, expected = (getattr(results, name)(results.compute_elasticities()) for results in found)
        FIXED_PARAMETERS.check(actual, expected, name)


@functools.cache
def bootstrapped() -> Any:
    with joint.quiet():
        return solved("logit").bootstrap(2, seed=3)


OUTPUTS_OF_DRAWS = ("approximate_prices", "demand_hessians", "demand_jacobians", "diversion_ratios", "markups")


@pytest.mark.parametrize("output", mostly_slow(OUTPUTS_OF_DRAWS, ["demand_jacobians", "markups"]))
def test_outputs_of_draws_are_those_of_each_draw(output: str) -> None:
    values = getattr(bootstrapped(), f"compute_{output}")()
    assert len(values) == 2
    for draw in range(2):
        direct = np.asarray(getattr(bootstrapped().model_of(draw), f"compute_{output}")())
        ROUNDING.check(values[draw].ravel()[: direct.size], direct.ravel(), output)
