"""Loops that solve fixed points and roots.

Nothing is ever differentiated through iterations: see `blpjax.kernels.implicit`. Every loop is a `while_loop` on
the unknowns of one market, made for `jax.vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from blpjax.exceptions import CREDIBLE_RESIDUAL, Status, succeeded
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.loops import while_loop


class Image(NamedTuple):
    """Value of a map, and what is small at its fixed point where that is not the change."""

    value: Float[Array, " J"]
    gap: Float[Array, " J"]


Map = Callable[[Array], Array | Image]

Floor = float | Float[Array, ""]

#: A loop that makes no more progress has reached the accuracy of 64-bit arithmetic when its residual is below this.
ROUNDING_FLOOR = 1e-12

_PATIENCE = 12

#: On the way to a problem, problems are solved to this residual, each with at most so many evaluations.
_ON_THE_WAY = 1e-6

_STAGE = 50


class FixedPoint(eqx.Module):
    """Outcome of a loop: the value, how it ended and what it took.

    `residual` is the norm of the last change (or of the map's own `Image.gap`), `iterations` counts major iterations
    and `evaluations` calls of the map. `factors` of the equation's derivative are there where the solver has them.
    """

    value: Float[Array, " J"]
    status: Int[Array, ""]
    iterations: Int[Array, ""]
    evaluations: Int[Array, ""]
    residual: Float[Array, ""]
    factors: Any = None


def iterate(
    method: FixedPointMethod,
    contraction: Map,
    start: Float[Array, " J"],
    limits: FixedPointLimits,
    plain: int = 0,
    accelerated: int | None = None,
    floor: Floor = ROUNDING_FLOOR,
) -> FixedPoint:
    """Iterate ``x <- contraction(x)`` from `start` until the norm of the change is at most ``atol + rtol |x|``.

    A `contraction` that returns an `Image` says itself what takes the place of the change in this.

    `method.name` is ``'simple'``, ``'squarem'`` (Varadhan and Roland 2008), ``'anderson'`` (Anderson 1965, type II) or
    ``'return'``. A loop that stops short of its tolerance says so in `FixedPoint.status`; its value is then the best
    one that was seen. One that makes no more progress below `floor` is a success. What a user's norm takes for
    a success is none where changes are larger than `CREDIBLE_RESIDUAL` and the tolerance. Anderson acceleration sets in
    after that many `plain` steps, and gives way to plain steps again where `accelerated` steps did not get there.
    """
    if method.name == "return":
        zero = jnp.zeros((), int)
        return FixedPoint(start, zero + Status.CONVERGED, zero, zero, jnp.zeros(()))
    if method.name == "anderson":
        found = _anderson(method, contraction, start, limits, plain, accelerated, floor)
    else:
        found = {"simple": _simple, "squarem": _squarem}[method.name](method, contraction, start, limits, floor)
    if method.norm is None or method.norm is np.linalg.norm:
        return found
    return _doubted(found, contraction, limits)


def _doubted(found: FixedPoint, contraction: Map, limits: FixedPointLimits) -> FixedPoint:
    """The outcome of a loop that a user's norm has ended: no success where changes are large."""
    change = _norm(FixedPointMethod(), _apply(contraction, found.value).gap)
    tolerance = limits.atol + limits.rtol * _norm(FixedPointMethod(), found.value)
    large = succeeded(found.status) & ~(change <= jnp.maximum(tolerance, CREDIBLE_RESIDUAL))
    return eqx.tree_at(lambda f: f.status, found, jnp.where(large, int(Status.STALLED), found.status))


class _Progress(NamedTuple):
    """Bookkeeping that all fixed-point loops share."""

    best: Float[Array, " J"]
    residual: Float[Array, ""]
    patience: Int[Array, ""]
    iterations: Int[Array, ""]
    evaluations: Int[Array, ""]
    finite: Bool[Array, ""]  # whether the last evaluation was
    done: Bool[Array, ""]


def _no_progress(start: Array) -> _Progress:
    zero = jnp.zeros((), int)
    return _Progress(start, jnp.asarray(jnp.inf), zero, zero, zero, jnp.asarray(True), jnp.asarray(False))


def _norm(method: FixedPointMethod, x: Array) -> Array:
    if method.norm is None:
        # XLA may leave NaN out of maxima on CPUs
        return jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x)).max(initial=0.0)
    if method.norm is np.linalg.norm:
        return jnp.linalg.norm(x)
    try:
        return method.norm(x)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "The option norm of Iteration must consist of operations of JAX: use jax.numpy in place of numpy."
        ) from error


def _apply(contraction: Map, x: Array) -> Image:
    image = contraction(x)
    return image if isinstance(image, Image) else Image(image, image - x)


def _record(
    progress: _Progress, method: FixedPointMethod, limits: FixedPointLimits, image: Image, floor: Floor
) -> tuple[_Progress, Array]:
    """Take note of a value of the map; also return the norm of the change, infinite if it is not finite."""
    new = image.value
    change = _norm(method, image.gap)
    change = jnp.where(jnp.isfinite(change), change, jnp.inf)
    better = change < progress.residual
    patience = jnp.where(better, 0, progress.patience + 1)
    tolerance = limits.atol + limits.rtol * _norm(method, new)
    residual = jnp.minimum(change, progress.residual)
    stuck = (patience >= _PATIENCE) & (residual <= floor)
    recorded = _Progress(
        jnp.where(better, new, progress.best),
        residual,
        patience,
        progress.iterations,
        progress.evaluations + 1,
        jnp.isfinite(change),
        (change <= tolerance) | stuck,
    )
    # evaluations after the loop has ended (the rest of a cycle) change nothing
    ended = progress.done | (progress.evaluations >= limits.max_evaluations)
    return jax.tree.map(lambda kept, fresh: jnp.where(ended, kept, fresh), progress, recorded), change


def _continues(progress: _Progress, limits: FixedPointLimits) -> Array:
    return ~progress.done & (progress.evaluations < limits.max_evaluations)


def safeguarded(
    found: FixedPoint,
    again: Callable[[Array, FixedPointLimits], FixedPoint],
    start: Float[Array, " J"],
    limits: FixedPointLimits,
) -> FixedPoint:
    """Solve a second way, ``again(value, limits)``, where a loop failed.

    It starts at the best value that was `found`, at `start` where that is not finite, and has the evaluations that are
    left. Under `jax.vmap`, lanes that succeeded wait: their limit on evaluations is zero.
    """
    failed = ~succeeded(found.status)
    rest = jnp.where(failed, limits.max_evaluations - found.evaluations, 0)
    more = limits._replace(max_evaluations=rest)  # type: ignore[arg-type]  # traced, as all limits are here
    second = again(jnp.where(jnp.isfinite(found.value), found.value, start), more)
    failed &= second.evaluations > 0
    return FixedPoint(
        jnp.where(failed, second.value, found.value),
        jnp.where(failed, second.status, found.status),
        found.iterations + second.iterations,
        found.evaluations + jnp.where(failed, second.evaluations, 0),
        jnp.where(failed, second.residual, found.residual),
    )


def _finish(progress: _Progress, method: FixedPointMethod, limits: FixedPointLimits, floor: Floor) -> FixedPoint:
    tolerance = limits.atol + limits.rtol * _norm(method, progress.best)
    spent = progress.evaluations >= limits.max_evaluations
    failure = jnp.where(
        progress.finite, jnp.where(spent, int(Status.MAX_EVALUATIONS), int(Status.STALLED)), int(Status.NOT_FINITE)
    )
    status = jnp.where(
        progress.residual <= tolerance,
        int(Status.CONVERGED),
        jnp.where(progress.residual <= floor, int(Status.ROUNDING_FLOOR), failure),
    )
    return FixedPoint(progress.best, status, progress.iterations, progress.evaluations, progress.residual)


def _simple(
    method: FixedPointMethod, contraction: Map, start: Array, limits: FixedPointLimits, floor: Floor
) -> FixedPoint:
    def body(carry: tuple[Array, _Progress]) -> tuple[Array, _Progress]:
        x, progress = carry
        new = _apply(contraction, x)
        progress, change = _record(progress, method, limits, new, floor)
        progress = progress._replace(iterations=progress.iterations + 1)
        return new.value, progress._replace(done=progress.done | ~jnp.isfinite(change))

    _, progress = while_loop(lambda carry: _continues(carry[1], limits), body, (start, _no_progress(start)), start)
    return _finish(progress, method, limits, floor)


def _squarem(
    method: FixedPointMethod, contraction: Map, start: Array, limits: FixedPointLimits, floor: Floor
) -> FixedPoint:
    class Cycle(NamedTuple):
        x: Array
        step_min: Array
        step_max: Array
        progress: _Progress

    def accelerate(cycle: Cycle, x1: Array, x2: Array) -> tuple[Array, Array, Array]:
        """The extrapolated point, and the limits of the next step's length."""
        r = x1 - cycle.x
        v = (x2 - x1) - r
        # step length -alpha of schemes S1 to S3 in Varadhan and Roland (2008), equation 10
        rr, rv, vv = r @ r, r @ v, v @ v
        step = {1: -rv / vv, 2: -rr / rv, 3: jnp.sqrt(rr / vv)}[method.scheme]
        step = jnp.where(jnp.isfinite(step), step, 1.0)
        bounded = jnp.clip(step, cycle.step_min, cycle.step_max)
        step_max = jnp.where(bounded == cycle.step_max, cycle.step_max * limits.step_factor, cycle.step_max)
        lower = (bounded == cycle.step_min) & (cycle.step_min < 0)
        step_min = jnp.where(lower, cycle.step_min * limits.step_factor, cycle.step_min)
        return cycle.x + 2.0 * bounded * r + bounded**2 * v, step_min, step_max

    def body(cycle: Cycle) -> Cycle:
        # three evaluations, of one copy of the map: what is compiled is mostly the map
        def evaluate(number: Array, points: tuple[Array, Array, Array, _Progress]) -> tuple[Any, ...]:
            x, x1, x2, progress = points
            image = _apply(contraction, x)
            progress, change = _record(progress, method, limits, image, floor)
            x1 = jnp.where(number == 0, image.value, x1)
            x2 = jnp.where(number == 1, image.value, x2)
            last = jnp.where(jnp.isfinite(change) | (number == 0), image.value, x2)
            return jnp.where(number == 1, accelerate(cycle, x1, x2)[0], last), x1, x2, progress

        x, x1, x2, progress = lax.fori_loop(0, 3, evaluate, (cycle.x, cycle.x, cycle.x, cycle.progress))
        _, step_min, step_max = accelerate(cycle, x1, x2)
        return Cycle(x, step_min, step_max, progress._replace(iterations=progress.iterations + 1))

    begun = Cycle(start, jnp.asarray(limits.step_min, float), jnp.asarray(limits.step_max, float), _no_progress(start))
    last = while_loop(
        lambda cycle: _continues(cycle.progress, limits) & jnp.isfinite(cycle.x).all(), body, begun, start
    )
    return _finish(last.progress, method, limits, floor)


def _anderson(
    method: FixedPointMethod,
    contraction: Map,
    start: Array,
    limits: FixedPointLimits,
    plain: int,
    accelerated: int | None,
    floor: Floor,
) -> FixedPoint:
    memory = method.memory

    class History(NamedTuple):
        x: Array  # where the map is evaluated next
        safe: Array  # the plain step from the last accepted point
        change: Array  # the last accepted change and the map's value there
        image: Array
        size: Array  # its norm
        changes: Array  # (memory, J) differences of successive changes and images
        images: Array
        recorded: Array
        failures: Array  # consecutive rejected steps
        progress: _Progress

    def body(history: History) -> History:
        mapped = _apply(contraction, history.x)
        progress, size = _record(history.progress, method, limits, mapped, floor)
        image, change = mapped.value, mapped.value - history.x
        steady = history.progress.evaluations < plain
        if accelerated is not None:
            steady |= history.progress.evaluations >= plain + accelerated
        accept = jnp.isfinite(size) & ((size <= 2.0 * history.size) | steady)
        slot = (jnp.arange(memory) == history.recorded % memory)[:, None]
        usable = accept & (history.recorded >= 0)
        changes = jnp.where(usable & slot, (change - history.change)[None, :], history.changes)
        images = jnp.where(usable & slot, (image - history.image)[None, :], history.images)
        mixed = image - _least_squares(changes, change) @ images
        mixed = jnp.where(jnp.isfinite(mixed).all() & ~steady, mixed, image)
        # a step that makes the change grow is undone: the history is emptied and a plain step taken
        restart = jnp.zeros_like(changes)
        return History(
            jnp.where(accept, mixed, history.safe),
            jnp.where(accept, image, history.safe),
            jnp.where(accept, change, history.change),
            jnp.where(accept, image, history.image),
            jnp.where(accept, size, jnp.inf),
            jnp.where(accept, changes, restart),
            jnp.where(accept, images, restart),
            jnp.where(accept & ~steady, history.recorded + 1, -1),
            jnp.where(accept, 0, history.failures + 1),
            progress._replace(iterations=progress.iterations + 1),
        )

    none = jnp.zeros((memory, start.size))
    one = jnp.ones((), int)
    first = History(start, start, start, start, jnp.asarray(jnp.inf), none, none, -one, 0 * one, _no_progress(start))
    last = while_loop(lambda history: _continues(history.progress, limits) & (history.failures < 2), body, first, start)
    return _finish(last.progress, method, limits, floor)


def _least_squares(rows: Float[Array, "M J"], target: Float[Array, " J"]) -> Float[Array, " M"]:
    """Coefficients of the ridge regression of `target` on a few `rows`, by an unrolled Cholesky factorisation.

    Rows are scaled to unit length, so that the ridge means the same at every stage of convergence; empty rows get zero.
    """
    lengths = jnp.sqrt((rows * rows).sum(axis=1))
    scale = jnp.where(lengths > 0, 1.0 / jnp.where(lengths > 0, lengths, 1.0), 0.0)
    unit = rows * scale[:, None]
    gram = unit @ unit.T
    right = unit @ target
    size = rows.shape[0]
    factor: list[list[Any]] = [[None] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            entry = gram[i, j] - sum(factor[i][k] * factor[j][k] for k in range(j))
            if i == j:
                # an empty row has a zero diagonal: one stands in for it
                factor[i][i] = jnp.sqrt(jnp.maximum(entry, 0.0) + jnp.where(scale[i] > 0, 1e-13, 1.0))
            else:
                factor[i][j] = entry / factor[j][j]
    forward: list[Any] = []
    for i in range(size):
        forward.append((right[i] - sum(factor[i][k] * forward[k] for k in range(i))) / factor[i][i])
    solution: list[Any] = [None] * size
    for i in reversed(range(size)):
        solution[i] = (forward[i] - sum(factor[k][i] * solution[k] for k in range(i + 1, size))) / factor[i][i]
    return jnp.stack(solution) * scale


class NewtonPoint(NamedTuple):
    """What the Newton loop knows of a point: the full step, the residual's norm, a merit value and its slope."""

    step: Float[Array, " J"]
    residual: Float[Array, ""]
    merit: Float[Array, ""]
    slope: Float[Array, ""]


def newton(
    evaluate: Callable[[Array], NewtonPoint],
    start: Float[Array, " J"],
    limits: FixedPointLimits,
    longest: float = 20.0,
    floor: Floor = ROUNDING_FLOOR,
) -> FixedPoint:
    """Damped Newton iteration: halve steps until the merit falls enough (Armijo) or the residual clearly does.

    Steps are at most `longest` in any element. Stops when the residual is at most `limits.atol`, or below `floor`
    and makes no more progress.
    """

    class State(NamedTuple):
        x: Array
        point: NewtonPoint
        damping: Array
        stalled: Array
        progress: _Progress

    def full(point: NewtonPoint) -> Array:
        return jnp.minimum(1.0, longest / jnp.maximum(jnp.abs(point.step).max(initial=0.0), 1e-300))

    def unfinished(state: State) -> Array:
        residual, patience = state.progress.residual, state.progress.patience
        stuck = (patience >= 4) & (residual <= floor)
        return (
            (residual > limits.atol) & ~stuck & ~state.stalled & (state.progress.evaluations < limits.max_evaluations)
        )

    def body(state: State) -> State:
        # the first pass evaluates the starting point, so that a loop that is not needed costs nothing
        first = state.progress.evaluations == 0
        candidate = state.x + state.damping * state.point.step
        point = evaluate(candidate)
        finite = jnp.isfinite(point.residual) & jnp.isfinite(point.merit) & jnp.isfinite(point.step).all()
        noise = 1e-13 * (1.0 + jnp.abs(state.point.merit))
        falls = point.merit <= state.point.merit + 1e-4 * state.damping * state.point.slope + noise
        accept = finite & (first | falls | (point.residual < 0.9 * state.point.residual))
        better = finite & (point.residual < state.progress.residual)
        progress = _Progress(
            best=jnp.where(better, candidate, state.progress.best),
            residual=jnp.where(better, point.residual, state.progress.residual),
            patience=jnp.where(better, 0, state.progress.patience + finite),
            iterations=state.progress.iterations + (accept & ~first),
            evaluations=state.progress.evaluations + 1,
            finite=finite | ~first,
            done=state.progress.done,
        )
        kept = jax.tree.map(lambda new, old: jnp.where(accept, new, old), point, state.point)
        damping = jnp.where(accept, full(point), 0.5 * state.damping)
        # relative to what a full step is here, which is little where the derivative is close to singular
        stalled = (damping < 1e-10 * full(kept)) | (first & ~finite)
        return State(jnp.where(accept, candidate, state.x), kept, damping, stalled, progress)

    nowhere = NewtonPoint(jnp.zeros_like(start), jnp.asarray(jnp.inf), jnp.asarray(jnp.inf), jnp.asarray(0.0))
    begun = State(start, nowhere, jnp.asarray(1.0), jnp.asarray(False), _no_progress(start))
    last = while_loop(unfinished, body, begun, start)
    return _finish(last.progress, FixedPointMethod("newton"), limits._replace(rtol=0.0), floor)


class _Stage(NamedTuple):
    """A problem on the way that was solved: its number, and the solution."""

    number: Float[Array, ""]
    value: Float[Array, " J"]


class _Path(NamedTuple):
    """How far a continuation is."""

    found: FixedPoint  # the best for the problem itself, with counts of all evaluations
    last: _Stage
    before: _Stage
    step: Float[Array, ""]
    direct: Bool[Array, ""]  # whether the next attempt is one without a way
    over: Bool[Array, ""]


def continued(
    solve_at: Callable[[Array, Array, FixedPointLimits], FixedPoint],
    start: Float[Array, " J"],
    origin: Float[Array, " J"],
    step: Float[Array, ""],
    limits: FixedPointLimits,
) -> FixedPoint:
    """Solve problem number one from `start`, and where that fails by continuation from problem number zero.

    Problem zero is solved from `origin`, the next is number `step`. From then on loops start where the last two
    solutions point to. Steps double where solutions are found quickly, and become shorter where they are not found.

    Parameters
    ----------
    solve_at : ``solve_at(number, start, limits)`` solves a problem with a number between zero and one.
    start, origin : (J,) where problems one and zero are solved from.
    step : number of the first problem after zero.
    limits : the limit on evaluations is one for all problems together.
    """

    def body(path: _Path) -> _Path:
        last, before, spent = path.last, path.before, path.found.evaluations
        target = jnp.where(path.direct, 1.0, jnp.where(last.number < 0, 0.0, jnp.minimum(last.number + path.step, 1.0)))
        ahead = jnp.where(before.number < 0, 0.0, (target - last.number) / (last.number - before.number))
        begin = jnp.where(path.direct, start, last.value + ahead * (last.value - before.value))
        final = target >= 1.0
        stage = limits._replace(
            atol=jnp.where(final, limits.atol, jnp.maximum(limits.atol, _ON_THE_WAY)),  # type: ignore[arg-type]
            max_evaluations=jnp.minimum(limits.max_evaluations - spent, _STAGE),  # type: ignore[arg-type]
        )
        new = solve_at(target, begin, stage)
        solved = succeeded(new.status)
        quick = new.evaluations <= _STAGE // 4
        step = jnp.where(path.direct, path.step, path.step * jnp.where(solved, jnp.where(quick, 2.0, 1.0), 0.25))
        moved = solved & ~path.direct
        # shares of the best value, not of the last one, are what a failure is reported with
        better = final & (solved | (new.residual < path.found.residual))
        kept = jax.tree.map(lambda fresh, old: jnp.where(better, fresh, old), new, path.found)
        counts = path.found.iterations + new.iterations, spent + new.evaluations
        lost = ~solved & ~path.direct & ((target <= 0.0) | (step < 1e-4 * target))
        return _Path(
            FixedPoint(kept.value, kept.status, *counts, kept.residual),
            _chosen(moved, _Stage(target, new.value), last),
            _chosen(moved, last, before),
            step,
            jnp.asarray(False),
            (final & solved) | lost,
        )

    zero = jnp.zeros((), int)
    nowhere = _Stage(jnp.asarray(-1.0), origin)
    nothing = FixedPoint(start, zero + Status.MAX_EVALUATIONS, zero, zero, jnp.asarray(jnp.inf))
    first = _Path(nothing, nowhere, nowhere, step, jnp.asarray(True), jnp.asarray(False))
    found = while_loop(
        lambda path: ~path.over & (path.found.evaluations < limits.max_evaluations), body, first, start
    ).found
    # the limit of one problem was reached, not that of all
    early = (found.status == Status.MAX_EVALUATIONS) & (found.evaluations < limits.max_evaluations)
    return eqx.tree_at(lambda f: f.status, found, jnp.where(early, int(Status.STALLED), found.status))


def _chosen(condition: Array, yes: _Stage, no: _Stage) -> _Stage:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
