"""The figure of the objective along parameters, which `blpjax.plots` has for users."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from blpjax.objective.functions import ModelFunctions
from blpjax.problem.problem import Problem
from blpjax.problem.results import ProblemResults


def plot_objective_profile(
    results: ProblemResults,
    elements: str | int | Sequence[str | int] | None = None,
    spans: float | Sequence[float] | None = None,
    points: int = 21,
    functions: ModelFunctions | None = None,
    ax: Any = None,
) -> Any:
    """The GMM objective along elements of theta, one at a time, all others at their estimates.

    The objective is evaluated anew at each point, with the weighting matrix of the results' step. At a minimum all
    curves are lowest in the middle; a flat one belongs to a parameter about which the data say little. Points at which
    the model cannot be evaluated leave gaps.

    Parameters
    ----------
    results : results of estimation.
    elements : labels among `theta_labels`, or positions in theta; by default all elements.
    spans : how far to go to both sides, for each element or for all; by default two standard errors.
    points : number of points of each curve, at least three.
    functions : the model as `Problem.functions` makes it, needed when `solve` had `costs_bounds` or
        `covariance_moments_mean`: give these, the estimates as starting values, and ``W=results.W``.
    ax : where to draw.

    Returns
    -------
    Axes
        One element has the parameter itself on the horizontal axis, several the distance from the estimate in spans,
        which are standard errors by default.

    Raises
    ------
    ValueError
        When there is no such element, a standard error is missing that is needed, or the functions do not have the
        objective of the results at the estimates.
    """
    from matplotlib import pyplot

    chosen = _read_elements(results, elements)
    if points < 3:
        raise ValueError(f"points must be at least 3, not {points!r}.")
    widths = _read_spans(results, chosen, spans)
    model = _functions(results) if functions is None else functions
    at = _positions(results, model)
    scale = _scale(results, model, at)
    steps = np.linspace(-1, 1, points)
    if ax is None:
        ax = pyplot.subplots(layout="constrained")[1]
    for p, width in zip(chosen, widths, strict=True):
        curve = [scale * _evaluate(model, at, results.theta, p, width * step) for step in steps]
        if len(chosen) == 1:
            horizontal = results.theta[p] + width * steps
        else:
            horizontal = steps * (2 if spans is None else 1)
        ax.plot(horizontal, curve, marker=".", label=results.theta_labels[p])
    one, label = len(chosen) == 1, results.theta_labels[chosen[0]]
    ax.axvline(results.theta[chosen[0]] if one else 0, color="black", linewidth=0.8, linestyle=":")
    unit = "standard errors" if spans is None else "spans"
    ax.set(xlabel=label if one else f"distance from the estimate in {unit}", ylabel="objective")
    ax.set_title("Objective around the estimate, one element at a time")
    if not one:
        ax.legend(fontsize="small")
    return ax


def _read_elements(results: ProblemResults, elements: Any) -> list[int]:
    P, labels = len(results.theta), results.theta_labels
    if elements is None:
        elements = range(P)
    chosen = []
    for element in [elements] if isinstance(elements, str | int | np.integer) else elements:
        if isinstance(element, str):
            if labels.count(element) != 1:
                times = "no element" if element not in labels else f"{labels.count(element)} elements"
                raise ValueError(f"theta has {times} {element!r}. Its elements are {', '.join(labels)}.")
            chosen.append(labels.index(element))
        elif 0 <= element < P:
            chosen.append(int(element))
        else:
            raise ValueError(f"elements must be labels, or positions between 0 and {P - 1}, not {element!r}.")
    if not chosen:
        raise ValueError("There are no elements of theta along which to evaluate the objective.")
    return chosen


def _read_spans(results: ProblemResults, chosen: Sequence[int], spans: Any) -> np.ndarray:
    if spans is None:
        variances = np.diag(results.parameter_covariances)[list(chosen)] / results.problem.data.N
        if not (variances > 0).all():
            raise ValueError("spans must be given, because there are no standard errors.")
        return np.asarray(2 * np.sqrt(variances))
    given = np.asarray(spans, dtype=float)
    if given.shape not in ((), (len(chosen),)) or not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(f"spans must be one positive number, or {len(chosen)} of them, one for each element.")
    return np.broadcast_to(given, (len(chosen),))


def _functions(results: ProblemResults) -> ModelFunctions:
    """The model with the estimates as starting values, free where results have free elements."""
    assert isinstance(results.problem, Problem)
    blocks: dict[str, Any] = {}
    for name in ("sigma", "pi", "rho", "tau", "phi", "kappa"):
        values = np.array(getattr(results, name))
        lower, upper = getattr(results, f"{name}_bounds")
        # a start of zero would fix an element that ended there at its bound
        blocks[name] = np.where((values == 0) & (lower < upper), 1e-6, values) if values.size else None
    beta, gamma = _concentrated(results)
    demand, supply = results.moment_types
    return results.problem.functions(
        **blocks,
        demand_moment_types=demand or "levels",
        supply_moment_types=supply or "levels",
        beta=np.where(beta, np.nan, results.beta[:, 0]),
        gamma=np.where(gamma, np.nan, results.gamma[:, 0]) if gamma.size else None,
        W=results.W,
        delta=results.delta,
    )


def _concentrated(results: ProblemResults) -> tuple[np.ndarray, np.ndarray]:
    """(K1,) and (K3,) which linear parameters are concentrated out: those that labels list after theta."""
    sides = [
        [i for i, (lower, upper) in enumerate(zip(*bounds, strict=True)) if lower < upper]
        for bounds in (results.beta_bounds, results.gamma_bounds)
    ]
    labels = [results.beta_labels, results.gamma_labels]
    known = [[labels[side][i] for i in free] for side, free in enumerate(sides)]
    tail = results.parameter_labels[len(results.theta) :]
    total = len(known[0]) + len(known[1]) - len(tail)
    in_theta = results.theta_labels[len(results.theta) - total :]
    for n in range(total + 1):
        # elements of beta come before those of gamma, in theta and after it
        split = len(known[0]) - n
        parts = (in_theta[:n], tail[:split]), (in_theta[n:], tail[split:])
        if split >= 0 and all(sorted(a + b) == sorted(c) for (a, b), c in zip(parts, known, strict=True)):
            return tuple(  # type: ignore[return-value]
                np.array([label in part[1] and i in side for i, label in enumerate(names)], dtype=bool)
                for part, side, names in zip(parts, sides, labels, strict=True)
            )
    raise AssertionError("labels of parameters are inconsistent")


def _positions(results: ProblemResults, model: ModelFunctions) -> list[int]:
    """Where the elements of theta are among those of the functions, which may have more of them."""
    positions: list[int] = []
    labels = list(model.theta_labels)
    for label in results.theta_labels:
        first = positions[-1] + 1 if positions else 0
        if label not in labels[first:]:
            raise ValueError(f"functions must have the elements of theta that results have, but {label!r} is missing.")
        positions.append(labels.index(label, first))
    return positions


def _scale(results: ProblemResults, model: ModelFunctions, at: Sequence[int]) -> float:
    """What makes the functions' objective that of the results: one, or 1 / N when they were not scaled by N."""
    here = _evaluate(model, at, results.theta, 0, 0.0)
    known = float(results.objective)
    for scale in (1.0, 1 / results.problem.data.N, float(results.problem.data.N)):
        if np.isclose(scale * here, known, rtol=1e-5, atol=1e-8):
            return scale
    raise ValueError(
        f"At the estimates the objective is {known:.6g}, but that of the functions is {here:.6g}. Give functions made "
        "by Problem.functions with the estimates, W=results.W, and options of solve such as costs_bounds."
    )


def _evaluate(model: ModelFunctions, at: Sequence[int], theta: np.ndarray, p: int, step: float) -> float:
    moved = np.array(theta)
    moved[p] += step
    full = np.array(model.theta)
    full[list(at)] = moved
    return float(model.objective(jnp.asarray(full)))
