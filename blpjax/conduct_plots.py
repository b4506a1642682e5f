"""Figures of tests of conduct, which `blpjax.plots` has for users."""

from typing import Any

import numpy as np

from blpjax.inference.conduct_critical_values import NORMAL, POWERS, SIZES
from blpjax.inference.conduct_test_results import ConductTest

#: Colours of sets of instruments, in their order, again and again.
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:cyan")


def plot_conduct_test(test: ConductTest, ax: Any = None) -> Any:
    """Rivers-Vuong statistics of all pairs of models, a row for each, beside the band in which no model is rejected.

    Points right of the band reject the first model of a pair for the second, points left of it the second for the
    first. Filled points have instruments that are strong enough for what they say: a worst-case size of at most 12.5%
    where they reject, and a best-case power of at least 50% where they do not. Sets of instruments have colours. Pairs
    without a test have no point.

    Parameters
    ----------
    test : results of `ProblemResults.test_conduct`.
    ax : where to draw.
    """
    from matplotlib import pyplot

    table = test.table
    pairs = list(dict.fromkeys(zip(table["model"], table["against"], strict=True)))
    sets = list(dict.fromkeys(table["instruments"]))
    if ax is None:
        ax = pyplot.subplots(figsize=(7.0, 1.4 + 0.35 * len(pairs)), layout="constrained")[1]
    ax.axvspan(-NORMAL, NORMAL, color="0.93", zorder=0)
    ax.axvline(0, color="0.6", linewidth=0.8, zorder=1)
    spread = np.linspace(-0.25, 0.25, len(sets)) if len(sets) > 1 else np.zeros(1)
    for k, name in enumerate(sets):
        rows = table[table["instruments"] == name]
        places = np.array([pairs.index(pair) for pair in zip(rows["model"], rows["against"], strict=True)]) + spread[k]
        rejects = rows["TRV"].abs() > NORMAL
        strong = np.where(rejects, rows["worst_size"] <= SIZES[-1], rows["best_power"] >= POWERS[0])
        colour = COLOURS[k % len(COLOURS)]
        faces = np.where(strong, colour, "white")
        ax.scatter(rows["TRV"], places, c=faces, edgecolors=colour, zorder=2)
    ax.set_yticks(range(len(pairs)), labels=[f"{model} / {against}" for model, against in pairs])
    ax.set(ylim=(len(pairs) - 0.5, -0.5), xlabel="Rivers-Vuong statistic (right: the first model fits worse)")
    for k, name in enumerate(sets):  # filled, whatever the points are
        ax.scatter([], [], c=COLOURS[k % len(COLOURS)], label=name)
    if len(sets) > 1:
        ax.legend(fontsize="small")
    return ax
