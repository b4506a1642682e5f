"""Many starting values for one estimation: where each of them leads, and which optimum is the best."""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from jaxtyping import Array

from blpjax import options as settings
from blpjax.estimation.lane import BatchOptions, Lane, build_lane, largest_batch, split_lanes
from blpjax.estimation.lane_optimizer import LaneOptimizer, read_optimizer
from blpjax.estimation.lanes import estimate_batch
from blpjax.estimation.options import StepOptions
from blpjax.estimation.step import StepContext, solve_step
from blpjax.exceptions import ConvergenceWarning, Status, succeeded, warn_user
from blpjax.machine.memory import require_memory
from blpjax.machine.placement import on_device
from blpjax.model.parameters import BLOCKS, Bounds, Parameters, compress
from blpjax.objective import programs
from blpjax.optimize.bounds import is_held, project_gradient
from blpjax.optimize.optimize import OptimizationOutcome, OptimizationStatus

#: Two starts reached the same optimum when objectives differ by less than this, and so does, at one of them, the
#: quadratic model of the objective between them. Both are relative to one plus the objective, which is scaled by N: a
#: distance of a hundredth of a standard error changes it by 1e-4.
SAME_OBJECTIVE, SAME_POINT = 1e-6, 1e-4

#: Smallest eigenvalue of the Hessian, scaled to a unit diagonal, that rounding errors may give to a minimum.
NEGATIVE_CURVATURE = -1e-8

#: Elements at a bound do not count for second-order conditions where the gradient pushes them against it by this.
PUSHED = 1e-6


@dataclasses.dataclass(frozen=True)
class Starts:
    """Starting values for `Problem.solve`: the given ones, and quasi-random points in a box.

    Points are those of a scrambled Halton sequence.

    Parameters
    ----------
    number : number of starts, the given values included.
    seed : of the sequence.
    lower, upper : arrays (P,) or numbers, or mappings from names of parameters to matrices, such as
        ``{"sigma": ..., "pi": ...}``, of which free elements count. NaN and what is missing have defaults. The box is
        within the bounds of the parameters, and by default it is these. Where there is no bound, the box ends at the
        distance ``2 |value|`` from the given starting value.

    Raises
    ------
    ValueError, TypeError
        When `number` is not a positive integer or `seed` not an integer.
    """

    number: int
    seed: int = 0
    lower: Any = None
    upper: Any = None

    def __post_init__(self) -> None:
        for name in ("number", "seed"):
            if isinstance(getattr(self, name), bool | np.bool_):
                raise TypeError(f"{name} of Starts must be an integer, not {getattr(self, name)!r}.")
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        if self.number < 1 or self.seed < 0:
            raise ValueError(
                f"number of Starts must be at least one and seed at least zero, not {self.number} and {self.seed}."
            )


@dataclasses.dataclass(frozen=True)
class Trials:
    """Where starts led: `theta` (P,), the best local minimum, None where none was found, and the table of all starts.

    The table has a row for each start and the columns `start` (its number), `chosen`, `optimum` (which of the distinct
    optima it reached, counted from zero by objective, -1 for none), `converged`, `minimum` (whether second-order
    conditions hold at that optimum), `status`, `objective`, `gradient_norm` (of the projected gradient),
    `smallest_eigenvalue` of that optimum's Hessian without elements that are held by a bound, `evaluations`, and the
    starting value and the estimate of each element of theta, such as ``'start: sigma x'`` and ``'estimate: sigma x'``.
    """

    theta: np.ndarray | None
    table: pd.DataFrame


class Ends(NamedTuple):
    """Where the optimiser ended from each of S starts: arrays with S rows, and sentences."""

    theta: np.ndarray
    objective: np.ndarray
    gradient_norm: np.ndarray
    evaluations: np.ndarray
    converged: np.ndarray
    status: list[str]


class Optimum(NamedTuple):
    """A point with the objective and its first and second derivatives, and whether it is a local minimum."""

    theta: np.ndarray
    objective: float
    gradient: np.ndarray
    hessian: np.ndarray
    smallest_eigenvalue: float
    minimum: bool


class Search(NamedTuple):
    """How starts of an objective are tried.

    run : function of points (S, P) that minimises from each. examine : function of a point (P,) that looks at
    second-order conditions. scale : what objectives of ends are divided by before they are compared. floated : whether
    the level of the objective means nothing, so that the best one found is subtracted.
    """

    run: Callable[[np.ndarray], Ends]
    examine: Callable[[np.ndarray], Optimum]
    scale: float
    floated: bool = False


def try_starts(given: Any, options: StepOptions, context: StepContext, delta: np.ndarray) -> Trials:
    """Minimise the objective of a first GMM step from many starting values.

    Lanes of one compiled program do that where they can: for the default optimiser with its default options or Optax's
    L-BFGS, exact derivatives and inner loops inside of programs, and markets on one device. Otherwise starts are tried
    one after the other.

    Parameters
    ----------
    given : `starts` of `Problem.solve`.
    options, context : those of the step.
    delta : (N,) where inversions start.

    Raises
    ------
    ValueError, TypeError
        For starts of the wrong shape or outside of bounds.

    Warns
    -----
    ConvergenceWarning
        When no start ended at a local minimum.
    """
    optimizer = read_optimizer(options.optimization, float(context.objective.scale))
    outside = options.differences is not None or options.iteration.fixed_point.host is not None
    sharded = context.objective.model.economy.placement is not None

    def minimise(options: StepOptions, point: np.ndarray) -> tuple[OptimizationOutcome, str]:
        found = solve_step(1, options, context, point, delta)
        return found.outcome, found.failed_markets

    def run(points: np.ndarray) -> Ends:
        if optimizer is not None and not outside and not sharded:
            return _run_lanes(points, options, context, delta, optimizer)
        return run_in_turn(points, options, minimise)

    search = Search(run, lambda theta: _examine(theta, options, context, delta), float(context.objective.scale))
    return search_starts(given, options, search)


def search_starts(given: Any, options: StepOptions, search: Search) -> Trials:
    """Where many starts lead, and the best local minimum; see `try_starts`, whose `given` and warning these are."""
    points = read_starts(given, options.parameters, options.parameters.bounds)
    if not options.optimization.routine.optimizes:
        raise ValueError("starts need an optimization, but Optimization('return') does not optimize.")
    settings.output(f"Trying {len(points)} starts ...")
    ends = search.run(points)
    optima, reached = _find_optima(ends, search)
    best = next((k for k, optimum in enumerate(optima) if optimum.minimum), None)
    chosen = np.zeros(len(points), bool)
    if best is not None:
        same = np.flatnonzero(reached == best)
        chosen[same[ends.objective[same].argmin()]] = True
    table = _tabulate(points, ends, optima, reached, chosen, options)
    settings.output(describe_starts(table))
    if best is None:
        warn_user(
            f"None of the {len(points)} starts ended at a local minimum; estimation starts at the given values. "
            "The starts of the results say how each of them ended.",
            ConvergenceWarning,
        )
        return Trials(None, table)
    return Trials(optima[best].theta, table)


def describe_starts(table: pd.DataFrame) -> str:
    """How many starts reached the chosen optimum, and which others there are, in words."""
    found = table[table["minimum"]]
    failed = int((~table["converged"]).sum())
    parts = []
    if table["chosen"].any():
        best = table.loc[table["chosen"], "optimum"].iloc[0]
        parts.append(f"{int((table['optimum'] == best).sum())} of {len(table)} starts reached the chosen optimum")
    distinct = found["optimum"].nunique()
    parts.append(f"{distinct} distinct local {'optimum' if distinct == 1 else 'optima'}")
    if distinct:
        low, high = found["objective"].min(), found["objective"].max()
        parts.append(f"objectives from {low:.{settings.digits}g} to {high:.{settings.digits}g}")
    if others := int((table["converged"] & ~table["minimum"]).sum()):
        parts.append(f"{others} ended where second-order conditions fail")
    if failed:
        parts.append(f"{failed} did not converge")
    return "Starts: " + "; ".join(parts) + "."


def read_starts(given: Any, parameters: Parameters, bounds: Bounds) -> np.ndarray:
    """Starting values (S, P) that `starts` of `Problem.solve` stands for.

    Raises
    ------
    ValueError, TypeError
        When something has the wrong shape, is not finite or is outside of bounds, which the message names.
    """
    if not parameters.layout.P:
        raise ValueError("starts need free parameters, but theta has no elements.")
    if isinstance(given, int | np.integer) and not isinstance(given, bool):
        given = Starts(int(given))
    if isinstance(given, Starts):
        return _draw_points(given, parameters, bounds)
    if isinstance(given, Sequence) and len(given) and all(isinstance(start, Mapping) for start in given):
        points = np.stack([_read_start(start, parameters, f"starts[{s}]") for s, start in enumerate(given)])
    else:
        try:
            points = np.array(given, float)
        except (TypeError, ValueError) as error:
            raise TypeError(
                "starts must be a number, Starts, a list of mappings from names of parameters to matrices, or an array "
                f"with a row for each start, not {type(given).__name__}."
            ) from error
    P = parameters.layout.P
    if points.ndim != 2 or points.shape[1] != P or not len(points):
        raise ValueError(f"starts must have the shape (number of starts, {P}), not {points.shape}.")
    for s, p in np.argwhere(~((points >= bounds.lower) & (points <= bounds.upper) & np.isfinite(points))):
        raise ValueError(
            f"starts[{s}] has {points[s, p]:g} for '{parameters.theta_labels[p]}', which is not a number within its "
            f"bounds [{bounds.lower[p]:g}, {bounds.upper[p]:g}]."
        )
    return points


def _draw_points(starts: Starts, parameters: Parameters, bounds: Bounds) -> np.ndarray:
    value, P = parameters.theta, parameters.layout.P
    sides = []
    for name, bound, sign in (("lower", bounds.lower, -1.0), ("upper", bounds.upper, 1.0)):
        default = np.where(np.isfinite(bound), bound, value + sign * 2 * np.abs(value))
        side = _read_side(getattr(starts, name), parameters, f"{name} of Starts")
        sides.append(np.clip(np.where(np.isnan(side), default, side), bounds.lower, bounds.upper))
    lower, upper = sides
    if (~np.isfinite(lower) | ~np.isfinite(upper) | (lower > upper)).any():
        p = int(np.argmax(~np.isfinite(lower) | ~np.isfinite(upper) | (lower > upper)))
        raise ValueError(
            f"The box of Starts must be finite, but it is [{lower[p]:g}, {upper[p]:g}] for "
            f"'{parameters.theta_labels[p]}'."
        )
    # points, and where they lead, twice: in arrays and in the table
    require_memory(8 * starts.number * (4 * P + 8), f"starts: {starts.number:,} starts", "Use fewer starts.")
    from scipy.stats import qmc  # a slow import that only these points need

    points = qmc.Halton(P, rng=np.random.default_rng(starts.seed)).random(starts.number - 1)
    return np.concatenate([value[None, :], lower + points * (upper - lower)])


def _read_side(given: Any, parameters: Parameters, name: str) -> np.ndarray:
    """One side of a box (P,), NaN where nothing was given."""
    P = parameters.layout.P
    if given is None:
        return np.full(P, np.nan)
    if isinstance(given, Mapping):
        blocks = _read_blocks(given, parameters, name)
        parts = []
        for block in BLOCKS:
            index = getattr(parameters.layout, block)
            parts += [blocks[block][i] if block in blocks else np.nan for i in index]
        return np.array(parts, float)
    values = np.array(given, float)
    if values.shape not in ((), (P,)):
        raise ValueError(f"{name} must be a number, have the shape ({P},), or be a mapping, not {values.shape}.")
    return np.broadcast_to(values, P)


def _read_start(given: Mapping[str, Any], parameters: Parameters, name: str) -> np.ndarray:
    """Theta (P,) of matrices of parameters; those that are missing have the given starting values."""
    blocks = _read_blocks(given, parameters, name)
    known = parameters.at(parameters.theta)
    for block, values in blocks.items():
        fixed = np.ones(values.shape, bool)
        if index := getattr(parameters.layout, block):
            fixed[tuple(np.array(index).T)] = False
        if block in ("beta", "gamma"):
            fixed[list(getattr(parameters.layout, f"concentrated_{block}"))] = False
        for i in map(tuple, np.argwhere(fixed & (values != getattr(known, block)))):
            raise ValueError(
                f"{name}['{block}'][{', '.join(map(str, i))}] is {values[i]:g}, but this element is fixed at "
                f"{np.asarray(getattr(known, block))[i]:g}."
            )
    return compress(
        parameters.layout, dataclasses.replace(known, **{block: np.asarray(values) for block, values in blocks.items()})
    )


def _read_blocks(given: Mapping[str, Any], parameters: Parameters, name: str) -> dict[str, np.ndarray]:
    if unknown := sorted(set(map(str, given)) - set(BLOCKS)):
        raise ValueError(f"{name} has {', '.join(unknown)}, but there are only {', '.join(BLOCKS)}.")
    blocks = {}
    for block, matrix in given.items():
        shape = np.shape(getattr(parameters.start, block))
        values = np.array(matrix, float)
        if values.size != int(np.prod(shape)) or (values.ndim == 2 and len(shape) == 2 and values.shape != shape):
            raise ValueError(f"{name}['{block}'] must have the shape {shape}, not {values.shape}.")
        values = values.reshape(shape)
        blocks[block] = np.tril(values) if block == "sigma" else values
    return blocks


def _run_lanes(
    points: np.ndarray, options: StepOptions, context: StepContext, delta: np.ndarray, optimizer: LaneOptimizer
) -> Ends:
    model, (S, P) = context.objective.model, points.shape
    estimated = options.parameters, options.iteration, model.economy, model.data
    lane = build_lane(*estimated, points[0], delta, context.cluster_ids, context.W)
    size = min(S, largest_batch(model.economy, P, model.data.supply is not None))
    chosen = BatchOptions(options.specification, options.types, 1, optimizer)
    parts = []
    for first in range(0, S, size):
        rows = np.arange(first, first + size) % S  # the last batch is as large as the others
        varying, shared = split_lanes(_begin_at, lane, jax.device_put(points[rows]))
        parts.append(estimate_batch(chosen, varying, shared, size))
    found = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:S], *parts)
    scale, theta = float(context.objective.scale), found.parameters[:, :P]
    return Ends(
        theta=theta,
        objective=scale * found.objectives,
        gradient_norm=scale * found.gradient_norms,
        evaluations=found.evaluations,
        converged=succeeded(found.status) & np.isfinite(found.objectives) & np.isfinite(theta).all(axis=1),
        status=[Status(code).sentence for code in found.status],
    )


def _begin_at(lane: Lane, theta: Array) -> Lane:
    return dataclasses.replace(lane, theta=theta)


def run_in_turn(
    points: np.ndarray,
    options: StepOptions,
    minimise: Callable[[StepOptions, np.ndarray], tuple[OptimizationOutcome, str]],
) -> Ends:
    """Minimise from each point (S, P), one after the other, where one that fails does not end the others.

    Parameters
    ----------
    minimise : function of options and a point (P,) that returns the `OptimizationOutcome`, and a sentence that says
        where its evaluation failed, empty where it did not.
    """
    found = []
    for s, point in enumerate(points):
        settings.output(f"Start {s} ...")
        outcome, failures = minimise(options.one_of_many, point)
        if outcome.status is OptimizationStatus.INTERRUPTED:
            raise KeyboardInterrupt("Starts were interrupted.")
        found.append((outcome, failures))
    theta = np.stack([np.asarray(one.theta, float) for one, _ in found])
    gradients = [
        project_gradient(at, np.asarray(one.evaluation.gradient), options.parameters.bounds)
        for at, (one, _) in zip(theta, found, strict=True)
    ]
    return Ends(
        theta=theta,
        objective=np.array([float(one.evaluation.objective) for one, _ in found]),
        gradient_norm=np.array([np.abs(gradient).max(initial=0.0) for gradient in gradients]),
        evaluations=np.array([one.evaluations for one, _ in found]),
        converged=np.array([one.converged and not failures for one, failures in found]),
        status=[failures or one.message for one, failures in found],
    )


def _find_optima(ends: Ends, search: Search) -> tuple[list[Optimum], np.ndarray]:
    """Distinct optima by objective, and which of them each start reached (S,)."""
    optima: list[Optimum] = []
    reached = np.full(len(ends.status), -1)
    known = ends.objective[ends.converged]
    level = float(known.min()) if search.floated and known.size else 0.0
    for s in np.argsort(ends.objective, kind="stable"):
        if not ends.converged[s]:
            continue
        theta, objective = ends.theta[s], (ends.objective[s] - level) / search.scale
        same = (k for k, optimum in enumerate(optima) if _is_same(optimum, theta, objective))
        reached[s] = next(same, len(optima))
        if reached[s] == len(optima):
            found = search.examine(theta)
            optima.append(found._replace(objective=found.objective - level / search.scale))
    return optima, reached


def _is_same(optimum: Optimum, theta: np.ndarray, objective: float) -> bool:
    size, step = 1 + abs(optimum.objective), theta - optimum.theta
    values, vectors = np.linalg.eigh(optimum.hessian)
    change = np.abs(optimum.gradient @ step) + (np.abs(values) * (vectors.T @ step) ** 2).sum() / 2
    return bool(abs(objective - optimum.objective) <= SAME_OBJECTIVE * size and change <= SAME_POINT * size)


def _examine(theta: np.ndarray, options: StepOptions, context: StepContext, delta: np.ndarray) -> Optimum:
    minimand, scale = context.objective, float(context.objective.scale)
    evaluation = programs.evaluate(minimand, theta, on_device(delta))
    H = np.asarray(programs.hessian_at(minimand, on_device(theta), evaluation.inversion.delta))
    derivatives = np.asarray(evaluation.gradient), H
    return examine_optimum(theta, float(evaluation.objective), derivatives, options.parameters.bounds, scale)


def examine_optimum(
    theta: np.ndarray, objective: float, derivatives: tuple[np.ndarray, np.ndarray], bounds: Bounds, scale: float
) -> Optimum:
    """Second-order conditions, without elements that the gradient pushes against a bound.

    Parameters
    ----------
    theta, objective, derivatives : a point (P,), and the objective, gradient (P,) and Hessian (P, P) there.
    scale : of the objective, which the optimum has without it.
    """
    gradient, H = derivatives
    free = ~is_held(theta, gradient, bounds, PUSHED * scale)
    reduced = H[np.ix_(free, free)]
    finite = bool(np.isfinite(H).all())
    smallest, minimum = np.nan, finite
    if finite and reduced.size:
        smallest = float(np.linalg.eigvalsh(reduced)[0])
        diagonal = np.diag(reduced)
        sizes = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
        minimum = bool(np.linalg.eigvalsh(reduced / np.outer(sizes, sizes))[0] >= NEGATIVE_CURVATURE)
    H = H if finite else np.zeros_like(H)
    return Optimum(theta, objective / scale, gradient / scale, H / scale, smallest, minimum)


def _tabulate(
    points: np.ndarray,
    ends: Ends,
    optima: list[Optimum],
    reached: np.ndarray,
    chosen: np.ndarray,
    options: StepOptions,
) -> pd.DataFrame:
    parameters = options.parameters
    labels = zip(parameters.theta_blocks, parameters.theta_labels, strict=True)
    names = [f"{block} {label}" for block, label in labels]
    table = pd.DataFrame(
        {
            "start": np.arange(len(points)),
            "chosen": chosen,
            "optimum": reached,
            "converged": ends.converged,
            "minimum": [k >= 0 and optima[k].minimum for k in reached],
            "status": np.array(ends.status, dtype=object),
            "objective": ends.objective,
            "gradient_norm": ends.gradient_norm,
            "smallest_eigenvalue": [optima[k].smallest_eigenvalue if k >= 0 else np.nan for k in reached],
            "evaluations": ends.evaluations,
        }
    )
    for prefix, values in (("start", points), ("estimate", ends.theta)):
        table[[f"{prefix}: {name}" for name in names]] = values
    return table
