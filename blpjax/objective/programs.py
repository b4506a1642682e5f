"""The compiled programs of an objective, which host loops call.

Each is compiled once for a shape of economy and a specification, and reused by every evaluation, start and GMM step:
data, weighting matrices, bounds and tolerances are traced. An objective is anything with the methods of
`blpjax.objective.moments.GMM`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import tqdm
from jaxtyping import Array, ArrayLike, Float, Int

from blpjax.exceptions import succeeded
from blpjax.kernels.arrays import namespace
from blpjax.machine.compilation import program
from blpjax.machine.placement import on_device
from blpjax.objective.blocks import Point
from blpjax.objective.coarse import coarsened
from blpjax.objective.data import ModelData
from blpjax.objective.inference import CovarianceTypes, StepSummary
from blpjax.objective.moments import GMM, Ending, Evaluation, Sensitivity, summarise, weigh
from blpjax.objective.structure import StructuralModel

Tree = TypeVar("Tree")

#: First-order predictions of mean utilities are used when no element moves by more than this.
FARTHEST_PREDICTION = 5.0

#: Columns of the Hessian are computed together as long as they hold about so many numbers: at most half as many more,
#: where that makes batches equal.
HESSIAN_ELEMENTS = 2**25


def evaluate(objective: GMM, theta: Float[Array | np.ndarray, " P"], start: Float[Any, " N"]) -> Evaluation:
    """The objective and its derivatives at theta, with inversions from `start`.

    The rescue of inversions that acceleration does not finish is much code that is hardly ever needed: the program that
    has it is compiled, and all markets are inverted with it, only when some market asks for it.
    """
    theta, coarse = on_device(theta), coarsened(objective)
    if coarse is None:
        return _evaluate_or_rescue(objective, theta, start)
    return coarse.restore(_evaluate_or_rescue(coarse.objective, theta, coarse.lengthen(start)))


def _evaluate_or_rescue(objective: GMM, theta: Float[Array, " P"], start: Float[Any, " N"]) -> Evaluation:
    plain = objective.without_rescue()
    if plain is None:
        return _evaluate(objective, theta, start)
    found = _evaluate(plain, theta, start)
    if succeeded(np.asarray(found.inversion.status)).all():
        return found
    return _evaluate(objective, theta, start)


@program(effort=1, what="the objective and its derivatives")
def _evaluate(objective: GMM, theta: Float[Array, " P"], start: Float[Any, " N"]) -> Evaluation:
    return objective.evaluate(theta, start)


def weighted(model: StructuralModel, W: Float[Array | np.ndarray, "M M"], scale: Float[ArrayLike, ""]) -> GMM:
    """The objective of a model with a weighting matrix (M, M), times `scale`."""
    made = weigh(model.specification, on_host(model.data), np.asarray(W)), np.asarray(scale, float)
    placement = model.economy.placement
    put = jax.device_put if placement is None else placement.repeat
    weighting, factor = jax.tree.map(lambda leaf: put(np.asarray(leaf)), made)
    return GMM(model, weighting, factor)


def initial_weights(data: ModelData) -> Float[np.ndarray, "M M"]:
    """The initial weighting matrix: that of 2SLS for moments that are averages over products."""
    return np.asarray(on_host(data).initial_weights())


def on_host(values: Tree) -> Tree:
    """The same in NumPy's arrays, for what is computed once: nothing is compiled for it.

    What is spread over processes, none of which has all of it, stays where it is.
    """

    def here(leaf: Any) -> Any:
        spread = isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
        return leaf if spread else np.asarray(leaf)

    found: Tree = jax.tree.map(here, values)
    return found


def predicted_delta(
    delta: Float[Any, " N"], by_theta: Float[Any, "N P"], step: Float[Any, " P"], otherwise: Float[Any, " N"]
) -> Float[Any, " N"]:
    """Where to start an inversion: ``delta + (d delta / d theta) step``, or `otherwise` when that is far away.

    Works on NumPy and JAX arrays alike.
    """
    change = by_theta @ step
    return namespace(change).where(abs(change).max() <= FARTHEST_PREDICTION, delta + change, otherwise)


def predict_delta(evaluation: Evaluation, step: Float[np.ndarray, " P"], otherwise: Float[Any, " N"]) -> Any:
    """`predicted_delta` (N,) from an evaluation: on the host where it is there, otherwise a program."""
    known = evaluation.inversion.delta, evaluation.delta_by_theta, step
    if isinstance(known[0], np.ndarray):
        return predicted_delta(*known, np.asarray(otherwise))
    return _predicted_delta(*known, otherwise)


_predicted_delta = program(effort=0)(predicted_delta)


def hessian_at(
    objective: GMM, theta: Float[Array, " P"], delta: Float[Any, " N"], progress: bool = False
) -> Float[np.ndarray, "P P"]:
    """Exact Hessian of the objective at theta and its mean utilities `delta`.

    Columns are computed a few at a time where memory asks for it; `progress` shows a bar then.
    """
    start: Any = delta
    P, coarse = theta.size, coarsened(objective)
    if coarse is not None:
        objective, start = coarse.objective, coarse.lengthen(delta)
    economy = objective.model.economy
    elements = sum(bucket.shares.size * bucket.weights.shape[1] for bucket in economy.buckets)
    elements //= 1 if economy.placement is None else economy.placement.size
    columns = max(1, min(P, HESSIAN_ELEMENTS // max(elements, 1)))
    batches = max(1, round(P / columns))  # of equal size, for which few are computed in vain
    columns = -(-P // batches)
    directions = np.eye(batches * columns, P).reshape(batches, columns, P)
    bar = tqdm.tqdm(directions, desc="Hessian", disable=not progress or batches == 1)
    rows = np.concatenate([np.asarray(_curvature(objective, theta, start, batch)) for batch in bar])[:P]
    return (rows + rows.T) / 2


@program(effort=1, what="the Hessian")
def _curvature(
    objective: GMM, theta: Float[Array, " P"], delta: Float[Array, " N"], directions: Float[Array, "B P"]
) -> Float[Array, "B P"]:
    return objective.curvature(theta, delta, directions)


class Conclusion(NamedTuple):
    """What there is to know where a GMM step ended: parameters and errors at the `point`, Hessian (P, P), and summary.

    The Hessian is NaN where it was not asked for.
    """

    point: Point
    hessian: Float[np.ndarray, "P P"]
    summary: StepSummary


#: Turns (N, K) matrices into residuals on fixed effects, on the host.
Residualize = Callable[[np.ndarray], np.ndarray]

#: Covariances (M, M) of averaged moments over agents that are drawn again, at theta (P,) and from delta (N,).
Simulate = Callable[[GMM, Array, Array], np.ndarray]


def conclude(
    objective: GMM,
    theta: Float[Array, " P"],
    evaluation: Evaluation,
    residualize: Sequence[Residualize],
    types: CovarianceTypes,
    *,
    step: int,
    cluster_ids: Int[Array | np.ndarray, "N *G"],
    curvature: bool,
    progress: bool = False,
    simulate: Simulate | None = None,
) -> Conclusion:
    """Covariances, standard errors and perhaps the Hessian at the end of a GMM step.

    Parameters
    ----------
    residualize : what absorbs fixed effects from each equation.
    step : 1 for formulas of a first step.
    cluster_ids : (N,) or (N, G) clusters, see `blpjax.objective.clusters.Clusters`.
    curvature : whether the Hessian is computed; `progress` shows a bar for it.
    simulate : simulation error, None for none.
    """
    delta, ok = on_device(evaluation.inversion.delta), bool(evaluation.ok)
    hessian = np.full((theta.size, theta.size), np.nan)
    if curvature and theta.size and ok:
        hessian = hessian_at(objective, theta, delta, progress)
    point = end_at(objective, theta, evaluation, residualize)
    simulated = np.asarray(simulate(objective, theta, delta)) if simulate is not None and ok else None
    ending = Ending(theta, evaluation, point)
    if objective.data.more:
        found = jax.device_get(_sensitivity(objective, ending))
    else:
        found = on_host(objective).sensitivity(on_host(ending))
    data, W = on_host(objective.data), np.asarray(objective.weighting.W)
    summary = summarise(data, W, found, types, step, np.asarray(cluster_ids), simulated)
    return Conclusion(point, hessian, summary)


def end_at(
    objective: GMM, theta: Float[Array, " P"], evaluation: Evaluation, residualize: Sequence[Residualize]
) -> Point:
    """The point at theta, with structural errors that are residualised on the host."""
    model, costs = objective.model, evaluation.costs
    host, delta = on_host(objective), np.asarray(evaluation.inversion.delta)
    tilde_costs = None if costs is None else np.asarray(costs.tilde_costs)
    coefficients = host.linear_parameters(np.asarray(theta), delta, tilde_costs)
    linear = (coefficients.beta, coefficients.gamma)
    dependent = [delta] if tilde_costs is None else [delta, tilde_costs]
    errors = [
        absorb(values[:, None])[:, 0] - equation.X @ b
        for absorb, values, equation, b in zip(residualize, dependent, host.data.equations, linear, strict=False)
    ]
    omega = None if tilde_costs is None else errors[1]
    here = jax.device_put((coefficients, delta, errors[0], tilde_costs, omega))
    return Point(model.economy, model.data.supply, *here)


def sensitivity_at(
    objective: GMM, theta: Float[Array, " P"], evaluation: Evaluation, residualize: Sequence[Residualize]
) -> Sensitivity:
    """Averaged moments and their derivatives at an evaluation, in NumPy's arrays."""
    point = end_at(objective, theta, evaluation, residualize)
    found: Sensitivity = jax.device_get(_sensitivity(objective, Ending(theta, evaluation, point)))
    return found


@program(effort=1, what="standard errors")
def _sensitivity(objective: GMM, ending: Ending) -> Sensitivity:
    return objective.sensitivity(ending)
