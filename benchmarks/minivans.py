"""Petrin's (2002) automobiles with micro moments, as in PyBLP's tutorial, beside PyBLP: two clustered steps."""

import importlib
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

import blpjax
from benchmarks.comparison import compare, outcome_of
from benchmarks.estimation import failed_end, measure_pyblp, quiet, with_ends
from benchmarks.models import unbounded
from benchmarks.rows import Row, Timing, measure
from benchmarks.settings import Settings
from blpjax.machine import compilation

#: Warm ratio to PyBLP that is aimed at.
GOAL = 100

#: Published estimates, the tutorial's starting values. Rows are those of `CHARACTERISTICS`.
SIGMA = np.diag([3.23, 0, 4.43, 0.46, 0.01, 2.58, 4.42, 0, 0, 0, 0])
PI = np.zeros((11, 9))
PI[1, 1:4] = 7.52, 31.13, 34.49
PI[7:, 4] = 0.57, 0.28, 0.31, 0.42

CHARACTERISTICS = ("1", "I(-prices)", "hpwt", "space", "air", "mpd", "fwd", "mi", "sw", "su", "pv")
INCOMES = ("I(low / income)", "I(mid / income)", "I(high / income)")
DEMOGRAPHICS = ("1", *INCOMES, "I(log(fs) * fv)", "age", "fs", "mid", "high")

#: Objective where both steps end. The weights of the second step are those of the first one's estimates.
OBJECTIVE = 182.719526

#: Evaluations by PyBLP: 87 in two steps, as published, one for the initial update, and 26 for each step's Hessian.
EVALUATIONS = 140

#: Interviews of the Consumer Expenditure Survey.
OBSERVATIONS = 29125


def problem(lib: ModuleType) -> Any:
    """Prices matter by income group, the taste for vans by family size; firms have log costs that move with output."""
    common = "hpwt + space + air + mpd + fwd + mi + sw + su + pv"
    return lib.Problem(
        (
            lib.Formulation(f"1 + {common} + pgnp + trend + trend2"),
            lib.Formulation(" + ".join(CHARACTERISTICS)),
            lib.Formulation("1 + log(hpwt) + log(wt) + log(mpg) + air + fwd + trend * (jp + eu) + log(q)"),
        ),
        pd.read_csv(lib.data.PETRIN_PRODUCTS_LOCATION),
        lib.Formulation(" + ".join(DEMOGRAPHICS)),
        pd.read_csv(lib.data.PETRIN_AGENTS_LOCATION),
        costs_type="log",
    )


def micro_moments(lib: ModuleType) -> list[Any]:
    """A conditional mean for each row of the example data's values, whose labels say of what.

    ``E[age | mi]`` is the mean of age among those who buy minivans, ``E[new | mid]`` the share of the middle-income
    group who buy a car.
    """
    survey = lib.MicroDataset("CEX", OBSERVATIONS, lambda t, p, a: np.ones((a.size, 1 + p.size)))
    parts: dict[str, Any] = {}

    def part(name: str, demographic: str, characteristic: str, outside: float) -> Any:
        """The mean of a product; of an interview that bought nothing, of the demographic times `outside`."""
        d, k = DEMOGRAPHICS.index(demographic), CHARACTERISTICS.index(characteristic)
        if name not in parts:
            parts[name] = lib.MicroPart(
                name, survey, lambda t, p, a: np.outer(a.demographics[:, d], np.r_[outside, p.X2[:, k]])
            )
        return parts[name]

    moments = []
    for label, value in pd.read_csv(lib.data.PETRIN_VALUES_LOCATION, index_col=0)["value"].items():
        of, given = re.findall(r"\w+", str(label))[1:]
        if of == "new":
            pair = part(f"bought and {given}", given, "1", 0), part(given, given, "1", 1)
        else:
            pair = part(f"{of} times {given}", of, given, 0), part(given, "1", given, 0)
        moments.append(lib.MicroMoment(str(label), value, pair, ratio, ratio_gradient))
    return moments


def ratio(v: Any) -> Any:
    """The ratio of two parts."""
    return v[0] / v[1]


def ratio_gradient(v: Any) -> np.ndarray:
    """Its derivatives in both."""
    return np.array([1 / v[1], -v[0] / v[1] ** 2])


def solve(lib: ModuleType, built: Any, **options: Any) -> Any:
    """Two clustered steps; blpjax's default routine, and BFGS, as in the tutorial, in PyBLP.

    Nodes are not symmetric around zero, so signs of sigma matter: it has no bounds.
    """
    chosen: dict[str, Any] = {"W_type": "clustered", "se_type": "clustered", "micro_moments": micro_moments(lib)}
    if lib.__name__ == "pyblp":
        chosen["optimization"] = lib.Optimization("bfgs", {"gtol": 1e-4})
        chosen["iteration"] = lib.Iteration("squarem", {"atol": 1e-13})
    else:
        chosen["sigma_bounds"] = unbounded(SIGMA)
    return built.solve(SIGMA, PI, **chosen | options)


def evaluate(lib: ModuleType, built: Any) -> Any:
    """Two evaluations at the starting values, with standard errors: one updates the weighting matrix."""
    return solve(lib, built, method="1s", optimization=lib.Optimization("return"), check_optimality="gradient")


def minivan_rows(settings: Settings) -> Iterator[Row]:
    """Two clustered steps from the tutorial's starting values, standard errors and Hessians included."""
    pyblp = importlib.import_module("pyblp")
    pyblp.options.verbose = False
    with quiet():
        compilation.forget_programs()
        built, found = problem(blpjax), []
        first = measure(lambda: found.append(solve(blpjax, built)))
        warm = measure(lambda: found.append(solve(blpjax, built)), settings.repeat)
        results, details, difference = found[-1], {}, None
        outcomes = [outcome_of(results, SIGMA, PI)]
        other = problem(pyblp)
        if settings.pyblp:
            slow: list[Any] = []
            theirs = measure_pyblp(lambda: slow.append(solve(pyblp, other)))
            outcomes.append(outcome_of(slow[0], SIGMA, PI))
            difference = compare(*outcomes)
        else:
            two = measure_pyblp(lambda: evaluate(pyblp, other))
            theirs = Timing(tuple(EVALUATIONS / 2 * seconds for seconds in two.seconds))
            details["PyBLP's seconds"] = f"scaled: {EVALUATIONS} times half of two evaluations in {two} s"
    row = Row(
        "petrin, two steps",
        size=f"T={built.T} N={built.N} I={built.I} P={len(results.theta)} MM={len(results.micro)}",
        compile=first.median - warm.median,
        first=first,
        warm=warm,
        pyblp=theirs,
        failure=failure(results),
    )
    yield with_ends(row, results, outcomes, difference, GOAL, details)


def failure(results: Any) -> str:
    """What is wrong with an estimation, or an empty string."""
    return failed_end(results, OBJECTIVE)
