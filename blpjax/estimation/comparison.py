"""Estimates side by side."""

from collections.abc import Mapping, Sequence

import numpy as np

from blpjax.estimation.estimates import Estimates
from blpjax.reporting.estimates_table import EstimatesColumn, EstimatesTable
from blpjax.values import check_integer


def compare_estimates(results: Mapping[str, Estimates] | Sequence[Estimates], digits: int = 3) -> EstimatesTable:
    """Lay estimates of several models side by side, as in papers: with standard errors in parentheses below them.

    Parameters
    ----------
    results : results of estimation by the headings of their columns, or a sequence of them, which are (1), (2), ...
    digits : significant digits of numbers.

    Returns
    -------
    EstimatesTable
        which prints as text, is HTML in notebooks, and has `to_latex`, `to_markdown` and `to_frame`.

    Raises
    ------
    TypeError
        For what are no results of estimation.
    ValueError
        When there are none, or `digits` is not positive.
    """
    if isinstance(results, Estimates):
        raise TypeError("results must be a sequence of results, or a mapping from headings to them.")
    named = dict(results) if isinstance(results, Mapping) else {f"({i})": one for i, one in enumerate(results, 1)}
    if not named:
        raise ValueError("results must not be empty.")
    for name, one in named.items():
        if not isinstance(one, Estimates):
            raise TypeError(f"results must hold results of Problem.solve, but {name!r} is {type(one).__name__}.")
    columns = tuple(_column(str(name), one) for name, one in named.items())
    return EstimatesTable(columns, check_integer("digits", digits, minimum=1))


def _column(name: str, results: Estimates) -> EstimatesColumn:
    data, optimised = results.problem.data, bool(len(results.theta))
    statistics = {
        "Products": str(data.N),
        "Markets": str(data.T),
        "Objective": f"{float(results.objective):.6g}",
        "Standard errors": results.se_type,
    }
    if optimised:
        statistics["Converged"] = "yes" if results.cumulative_converged else "NO"
    notes = []
    if optimised and not results.cumulative_converged:
        notes.append("NOT CONVERGED: the optimization did not reach an optimum, so these are not estimates.")
    if np.isnan(results.estimates()["se"]).all():
        notes.append("Standard errors are unknown, because this is not the last step or estimation failed.")
    return EstimatesColumn(name, results.estimates(), statistics, notes)
