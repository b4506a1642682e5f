"""Bounded nonlinear least squares: a structured quasi-Newton trust-region method in pure JAX.

Minimises ``q(theta) = r'r`` over a box, where one evaluation gives the residuals ``r`` (M,) and their Jacobian ``J``
(M, P) together and may fail. With ``f = q / 2`` the gradient is ``g = J'r`` and the Hessian ``J'J + S``, where ``S``
collects the second derivatives of the residuals. As in NL2SOL (Dennis, Gay and Welsch 1981, An adaptive nonlinear
least-squares algorithm, ACM TOMS 7), ``S`` is a sized secant approximation, and each step uses whichever of the models
``J'J`` and ``J'J + S`` predicted the last change better: Gauss-Newton steps where residuals are small, quasi-Newton
steps where they are large. Steps are measured in ``||D s||`` with the column norms of ``J`` on the diagonal of ``D``,
so that the units of theta do not matter.

Convergence is of first order, a vanishing projected gradient from which no model promises a decrease: whether the
point is a minimum must be read off the exact Hessian. A region that cannot be evaluated is backed away from but not
walked around: where descent leads straight into it, the method ends as stalled.

`initialise`, `proceed`, `update` and `inform` are pure functions of a `TrustRegionState`. A host loop that prints
progress calls `advance` (update and proceed in one program) once per evaluation; `minimize_in_graph` runs the same
functions in a `jax.lax.while_loop`, also under `jax.vmap`.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from blpjax.exceptions import Status
from blpjax.machine.compilation import program

#: Code of a state whose loop has not ended; all other codes are those of `Status`.
RUNNING = -1

#: How often starting values that cannot be evaluated are halved before giving up.
START_REDUCTIONS = 8

_EPS = float(jnp.finfo(jnp.float64).eps)
_EIGENVALUE_FLOOR = 1e-13

#: Trials that may be rejected in a row before rounding, or a model without the exact Hessian, is to blame.
REJECTIONS = 3

#: Exact Hessians that may be asked for since q last decreased by more than its rounding error.
_HESSIANS = 3

#: An element moves in a step by at most so many times its size, that of its starting value, or `SMALLEST`. Where its
#: column of the Jacobian all but vanishes, as for standard deviations near zero, models know nothing of what is far.
LONGEST = 10.0
SMALLEST = 0.1


class TrustRegionOptions(NamedTuple):
    """Tolerances and limits. All are traced: changing them compiles nothing.

    gtol : largest element of the projected gradient of q, in absolute terms.
    decrease_tol : largest decrease of q, divided by ``1 + q``, that a full step promises at convergence.
    floor_tol : the same where rounding stops all progress.
    noise : relative error of an evaluation's residuals, at which changes of q and of its gradient mean nothing.
    max_evaluations : number of evaluations.
    initial_radius : first trust-region radius as a multiple of ``||D theta||``.
    """

    gtol: float = 1e-7
    decrease_tol: float = 1e-14
    floor_tol: float = 1e-12
    noise: float = 1e-13
    max_evaluations: int = 1000
    initial_radius: float = 1.0


class Residuals(eqx.Module):
    """One evaluation: residuals r, their Jacobian and whether it succeeded (values that are not finite fail too)."""

    residuals: Float[Array | np.ndarray, " M"]
    residual_jacobian: Float[Array | np.ndarray, "M P"]
    ok: Bool[Array | np.ndarray, ""]


class TrustRegionState(eqx.Module):
    """Everything the method knows. Quantities belong to `theta`, the best point so far, unless said otherwise.

    Attributes
    ----------
    theta, residuals, residual_jacobian : (P,), (M,), (M, P). Before the first success, theta is the next starting
        point.
    lower, upper, safe_point : (P,) bounds, and the point toward which failing starting values are moved.
    typical : (P,) sizes of starting values.
    objective, gradient : q and its gradient ``2 J'r`` (P,).
    second_order : (P, P) approximation S of the second-order term of half the Hessian of q.
    scale : (P,) diagonal of D, in units of residuals per unit of theta.
    radius : trust-region radius, in units of residuals.
    augmented : whether the next step uses ``J'J + S`` instead of ``J'J``.
    informed : whether S is exact at `theta`.
    asked_at, asked : (P,) where the exact Hessian was last asked for, and how often it was without q decreasing.
    asked_objective : q there when counting began.
    switched : whether the last rejection changed the model and not the radius.
    rejections : trial points rejected since the last accepted one.
    started : whether some evaluation succeeded.
    start_reductions : how often the starting values were halved.
    projected_gradient_norm : largest absolute element of the gradient, zeros where a bound blocks descent.
    decrease : largest decrease of q that either model promises without trust region and bounds.
    evaluations, failures, iterations : number of evaluations, of failed ones, and of accepted steps.
    status : `RUNNING` or a code of `Status`.
    """

    options: TrustRegionOptions
    lower: Float[Array, " P"]
    upper: Float[Array, " P"]
    safe_point: Float[Array, " P"]
    typical: Float[Array, " P"]
    theta: Float[Array, " P"]
    residuals: Float[Array, " M"]
    residual_jacobian: Float[Array, "M P"]
    objective: Float[Array, ""]
    gradient: Float[Array, " P"]
    second_order: Float[Array, "P P"]
    scale: Float[Array, " P"]
    radius: Float[Array, ""]
    augmented: Bool[Array, ""]
    informed: Bool[Array, ""]
    asked_at: Float[Array, " P"]
    asked_objective: Float[Array, ""]
    asked: Int[Array, ""]
    switched: Bool[Array, ""]
    rejections: Int[Array, ""]
    started: Bool[Array, ""]
    start_reductions: Int[Array, ""]
    projected_gradient_norm: Float[Array, ""]
    decrease: Float[Array, ""]
    evaluations: Int[Array, ""]
    failures: Int[Array, ""]
    iterations: Int[Array, ""]
    status: Int[Array, ""]


class Advance(NamedTuple):
    """State after an evaluation, the point to evaluate next, and whether the exact Hessian is needed before that."""

    state: TrustRegionState
    candidate: Float[Array, " P"]
    stuck: Bool[Array, ""]


def proceed(state: TrustRegionState) -> Advance:
    """What to do next."""
    return Advance(state, propose(state), _is_stuck(state))


def initialise(
    start: Float[ArrayLike, " P"],
    lower: Float[ArrayLike, " P"],
    upper: Float[ArrayLike, " P"],
    residual_count: int,
    options: TrustRegionOptions | None = None,
    safe_point: Float[ArrayLike, " P"] | None = None,
) -> TrustRegionState:
    """State before the first evaluation, whose candidate is `start` moved into its bounds.

    Parameters
    ----------
    start, lower, upper : (P,) starting values and bounds, infinite where there are none. Equal bounds fix an element.
    residual_count : M.
    options : tolerances and limits.
    safe_point : (P,) where an evaluation is likely to succeed, zeros by default: starting values that cannot be
        evaluated are moved half way toward it, up to `START_REDUCTIONS` times.
    """
    lower, upper = jnp.asarray(lower, float), jnp.asarray(upper, float)
    theta = jnp.clip(jnp.asarray(start, float), lower, upper)
    safe = jnp.zeros_like(theta) if safe_point is None else jnp.asarray(safe_point, float)
    P, zero, infinity = theta.size, jnp.asarray(0, int), jnp.asarray(jnp.inf, float)
    options = TrustRegionOptions() if options is None else options
    return TrustRegionState(
        options=jax.tree.map(lambda value: jnp.asarray(value, float), options),
        lower=lower,
        upper=upper,
        safe_point=jnp.clip(safe, lower, upper),
        typical=jnp.abs(theta),
        theta=theta,
        residuals=jnp.full(residual_count, jnp.inf),
        residual_jacobian=jnp.zeros((residual_count, P)),
        objective=infinity,
        gradient=jnp.zeros(P),
        second_order=jnp.zeros((P, P)),
        scale=jnp.zeros(P),
        radius=infinity,
        augmented=jnp.asarray(False),
        informed=jnp.asarray(False),
        asked_at=jnp.full(P, jnp.nan),
        asked_objective=infinity,
        asked=zero,
        switched=jnp.asarray(False),
        rejections=zero,
        started=jnp.asarray(False),
        start_reductions=zero,
        projected_gradient_norm=infinity,
        decrease=infinity,
        evaluations=zero,
        failures=zero,
        iterations=zero,
        status=jnp.asarray(RUNNING, int),
    )


def propose(state: TrustRegionState) -> Float[Array, " P"]:
    """The (P,) point to evaluate next. It lies within the bounds."""
    if state.theta.size == 0:
        return state.theta
    step = _step(state)
    target = jnp.clip(state.theta + step, state.lower, state.upper)
    return jnp.where(state.started, target, state.theta)


def update(
    state: TrustRegionState, candidate: Float[Array | np.ndarray, " P"], evaluation: Residuals
) -> TrustRegionState:
    """State after the candidate's evaluation: accept or reject it, learn curvature, and test convergence."""
    finite = jnp.isfinite(evaluation.residuals).all() & jnp.isfinite(evaluation.residual_jacobian).all()
    ok = evaluation.ok & finite
    r = jnp.where(ok, evaluation.residuals, 0.0)
    J = jnp.where(ok, evaluation.residual_jacobian, 0.0)
    # Squares may overflow although the residuals do not.
    ok = ok & jnp.isfinite(r @ r) & jnp.isfinite((J * J).sum())
    case = jnp.where(state.started, 2, jnp.where(ok, 1, 0))
    branches = [_reduce_start, _accept_start, _compare]
    state = jax.lax.switch(case, branches, state, candidate, Residuals(r, J, ok))
    return _assess(_replace(state, evaluations=state.evaluations + 1, failures=state.failures + (1 - ok)))


@program(effort=0)
def advance(state: TrustRegionState, candidate: Float[Array | np.ndarray, " P"], evaluation: Residuals) -> Advance:
    """`update`, then `proceed`, as one compiled program: what a host loop calls once per evaluation."""
    return proceed(update(state, candidate, evaluation))


def _is_stuck(state: TrustRegionState) -> Array:
    """Whether only the exact Hessian can tell how to go on.

    It helped if q has decreased since. Where gradients have errors, by which steps are accepted that change nothing,
    it is not asked for without end.
    """
    failing = (state.status == Status.STALLED) | ((state.status == RUNNING) & (state.rejections >= REJECTIONS))
    helpful = (state.asked < _HESSIANS) | _decreased(state)
    return failing & helpful & (state.theta != state.asked_at).any()


def _decreased(state: TrustRegionState) -> Array:
    return state.objective < (1 - state.options.floor_tol) * state.asked_objective


def inform(state: TrustRegionState, hessian: Float[Array | np.ndarray, "P P"]) -> Advance:
    """Continue from the best point with the exact Hessian of q there, where trial after trial was rejected.

    Secants know nothing of directions in which the Jacobian vanishes by symmetry, as at a standard deviation of zero.
    A Hessian that is not finite changes nothing, but is not asked for again.
    """
    decreased = _decreased(state)
    state = _replace(
        state,
        asked_at=state.theta,
        asked_objective=jnp.where(decreased, state.objective, state.asked_objective),
        asked=jnp.where(decreased, 1, state.asked + 1),
    )
    usable = jnp.isfinite(jnp.asarray(hessian)).all()
    half = 0.5 * jnp.where(usable, hessian, 0.0)
    scale = jnp.maximum(state.scale, jnp.sqrt(jnp.abs(jnp.diagonal(half))))
    length = jnp.linalg.norm(scale * state.theta)
    informed = _replace(
        state,
        second_order=half - state.residual_jacobian.T @ state.residual_jacobian,
        scale=scale,
        radius=jnp.where(length > 0, state.options.initial_radius * length, 1.0),
        augmented=jnp.asarray(True),
        informed=jnp.asarray(True),
        switched=jnp.asarray(False),
        rejections=jnp.zeros_like(state.rejections),
        status=jnp.full_like(state.status, RUNNING),
    )
    return proceed(jax.tree.map(lambda new, old: jnp.where(usable, new, old), _assess(informed), state))


#: `inform` as one compiled program.
with_curvature = program(effort=0)(inform)


def minimize_in_graph(
    evaluate: Callable[[Float[Array, " P"]], Residuals],
    start: Float[ArrayLike, " P"],
    lower: Float[ArrayLike, " P"],
    upper: Float[ArrayLike, " P"],
    options: TrustRegionOptions | None = None,
    safe_point: Float[ArrayLike, " P"] | None = None,
) -> TrustRegionState:
    """Run the method inside a compiled program and return its last state.

    `evaluate` must be traceable by JAX. The function can be mapped with `jax.vmap` over starts, bounds and whatever
    `evaluate` closes over; the loop then ends with the slowest element. It cannot be differentiated in reverse mode.
    """
    shapes = jax.eval_shape(evaluate, jax.ShapeDtypeStruct(jnp.shape(start), jnp.result_type(float)))
    state = initialise(start, lower, upper, shapes.residuals.shape[0], options, safe_point)

    def body(carry: Advance) -> Advance:
        return proceed(update(carry.state, carry.candidate, evaluate(carry.candidate)))

    initial = Advance(state, state.theta, jnp.asarray(False))
    return jax.lax.while_loop(lambda carry: carry.state.status == RUNNING, body, initial).state


def _replace(state: TrustRegionState, **changes: object) -> TrustRegionState:
    names = list(changes)
    return eqx.tree_at(lambda s: [getattr(s, name) for name in names], state, [changes[name] for name in names])


def _reduce_start(state: TrustRegionState, candidate: Array, evaluation: Residuals) -> TrustRegionState:
    """The starting values failed: move those that are not fixed half way toward the safe point."""
    reductions = state.start_reductions + 1
    exhausted = reductions > START_REDUCTIONS
    closer = state.safe_point + 0.5 * (state.theta - state.safe_point)
    return _replace(
        state,
        theta=jnp.where(exhausted, state.theta, jnp.clip(closer, state.lower, state.upper)),
        start_reductions=jnp.minimum(reductions, START_REDUCTIONS),
        status=jnp.where(exhausted, Status.NOT_FINITE.value, state.status),
    )


def _accept_start(state: TrustRegionState, candidate: Array, evaluation: Residuals) -> TrustRegionState:
    r, J = jnp.asarray(evaluation.residuals), jnp.asarray(evaluation.residual_jacobian)
    norms = _column_norms(J)
    scale = jnp.where(norms > 0, norms, 1.0)
    length = jnp.linalg.norm(scale * candidate)
    radius = state.options.initial_radius * jnp.where(length > 0, length, jnp.linalg.norm(r))
    state = _replace(state, radius=radius, scale=scale)
    return _replace(_move(state, candidate, r, J), started=jnp.asarray(True))


def _move(state: TrustRegionState, theta: Array, r: Array, J: Array) -> TrustRegionState:
    return _replace(state, theta=theta, residuals=r, residual_jacobian=J, objective=r @ r, gradient=2 * (J.T @ r))


def _compare(state: TrustRegionState, candidate: Array, evaluation: Residuals) -> TrustRegionState:
    """Compare the trial point's decrease of ``f = q / 2`` with what the two models predicted."""
    r, J, ok = jnp.asarray(evaluation.residuals), jnp.asarray(evaluation.residual_jacobian), evaluation.ok
    step = candidate - state.theta
    length = jnp.linalg.norm(state.scale * step)
    slope = 0.5 * state.gradient @ step
    # f - f_new as a sum of products loses fewer digits than a difference of two sums.
    actual = jnp.where(ok, 0.5 * (state.residuals - r) @ (state.residuals + r), -jnp.inf)
    gauss_newton = -slope - 0.5 * ((state.residual_jacobian @ step) ** 2).sum()
    augmented = gauss_newton - 0.5 * step @ state.second_order @ step
    predicted = jnp.where(state.augmented, augmented, gauss_newton)

    # Where changes of q drown in rounding, gradients say which steps and which model are good.
    noise = state.options.floor_tol * (0.5 * state.objective)
    drowned = ok & (jnp.abs(actual) <= noise) & (predicted <= noise)
    gradients = _compare_gradients(state, candidate, J.T @ r)
    accepted = ok & (((actual > 0) & (actual >= 1e-4 * predicted)) | (drowned & gradients.smaller))

    own = jnp.where(drowned, gradients.own_error, jnp.abs(actual - predicted))
    other_predicted = jnp.where(state.augmented, gauss_newton, augmented)
    other = jnp.where(drowned, gradients.other_error, jnp.abs(actual - other_predicted))
    better = ok & (1.5 * other < own)
    retry = ~accepted & better & ~state.switched
    change = jnp.where(accepted, better, retry)

    shrink = jnp.where(ok & ~drowned, jnp.clip(-0.5 * slope / (-slope - actual), 0.1, 0.5), 0.25)
    bad = jnp.where(drowned, ~gradients.smaller, actual < 0.25 * predicted)
    good = jnp.where(drowned, gradients.smaller, actual > 0.75 * predicted)
    radius = jnp.where(bad, shrink * length, jnp.where(good, jnp.maximum(state.radius, 2 * length), state.radius))
    state = _replace(
        state,
        radius=jnp.where(retry, state.radius, radius),
        augmented=state.augmented ^ change,
        switched=retry,
        rejections=jnp.where(accepted, 0, state.rejections + 1),
        iterations=state.iterations + accepted,
    )
    moved = _move(_replace(_learn(state, step, r, J), informed=jnp.asarray(False)), candidate, r, J)
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), moved, state)


class _Gradients(NamedTuple):
    """Whether the trial's gradient shrank as predicted, and errors of the two models' predictions of it."""

    smaller: Array
    own_error: Array
    other_error: Array


def _compare_gradients(state: TrustRegionState, candidate: Array, gradient: Array) -> _Gradients:
    step, old = candidate - state.theta, 0.5 * state.gradient
    gauss_newton = old + state.residual_jacobian.T @ (state.residual_jacobian @ step)
    augmented = gauss_newton + state.second_order @ step
    own = jnp.where(state.augmented, augmented, gauss_newton)
    other = jnp.where(state.augmented, gauss_newton, augmented)
    before = _scaled_gradient_norm(state, state.theta, old)
    after = _scaled_gradient_norm(state, candidate, gradient)
    promised = before - _scaled_gradient_norm(state, candidate, own)
    return _Gradients(
        smaller=(after < before) & (before - after >= 0.1 * promised),
        own_error=jnp.linalg.norm((gradient - own) / state.scale),
        other_error=jnp.linalg.norm((gradient - other) / state.scale),
    )


def _learn(state: TrustRegionState, step: Array, r: Array, J: Array) -> TrustRegionState:
    """Secant update of S after an accepted step (Dennis, Gay and Welsch 1981, section 3), and of the scale."""
    change = J.T @ r - 0.5 * state.gradient  # y
    residual_change = J.T @ r - state.residual_jacobian.T @ r  # y#, what S s should be
    S = state.second_order
    curvature = step @ S @ step
    # Sizing: S must not overstate a second-order term that vanishes with the residuals.
    size = jnp.minimum(1.0, jnp.abs(_ratio(step @ residual_change, curvature, 1.0)))
    # A secant direction nearly orthogonal to the step is damped, as it would blow up S.
    inner = step @ change
    cosine = _ratio(jnp.abs(inner), jnp.linalg.norm(state.scale * step) * jnp.linalg.norm(change / state.scale), 0.0)
    weight = change * _ratio(jnp.minimum(1.0, cosine / 1e-6), inner, 0.0)
    error = residual_change - size * (S @ step)
    correction = error - 0.5 * (error @ step) * weight
    S = size * S + correction[:, None] * weight[None, :] + weight[:, None] * correction[None, :]
    scale = jnp.maximum(0.6 * state.scale, _column_norms(J))
    return _replace(state, second_order=S, scale=scale)


def _assess(state: TrustRegionState) -> TrustRegionState:
    """First-order optimality of the current point, and whether the loop ends."""
    options = state.options
    free = _free(state, state.theta, state.gradient)
    norm = jnp.max(jnp.where(free, jnp.abs(state.gradient), 0.0), initial=0.0)
    # Gauss-Newton's promise is compared too: it is large unless r is orthogonal to J's columns, however flat q is.
    models = jnp.stack([_scaled_model(state, jnp.asarray(False), free), _scaled_model(state, jnp.asarray(True), free)])
    g = jnp.where(free, 0.5 * state.gradient / state.scale, 0.0)
    promises = jnp.where(state.started, 2 * jax.vmap(_promised_decrease, (0, None))(models, g), jnp.inf)
    decrease = promises.max()

    # Rounding errors of r, and hence of the gradient, that no method can get below.
    J = jnp.abs(state.residual_jacobian)
    gradient_noise = 2 * options.noise * (J.T @ (jnp.abs(state.residuals) + J @ jnp.abs(state.theta)))
    quiet = (~free | (jnp.abs(state.gradient) <= jnp.maximum(options.gtol, gradient_noise))).all()

    length = jnp.maximum(jnp.linalg.norm(state.scale * state.theta), jnp.linalg.norm(state.residuals))
    collapsed = state.radius <= 2 * _EPS * length
    stuck = collapsed | (state.rejections >= REJECTIONS)
    converged = (norm <= options.gtol) & (decrease <= options.decrease_tol * (1 + state.objective))
    # Where J itself vanishes Gauss-Newton promises a decrease that is not there: trials have shown that, so one model
    # suffices where the gradient is quiet. Where it is not, for it depends on units, both models have to agree, unless
    # one of them has the exact Hessian.
    promised = jnp.where(state.informed, promises[1], jnp.where(quiet, promises.min(), decrease))
    floor = stuck & (promised <= options.floor_tol * (1 + state.objective))
    limit = state.evaluations >= options.max_evaluations
    ended = jnp.select(
        [state.started & converged, state.started & floor, state.started & collapsed, limit],
        [Status.CONVERGED.value, Status.ROUNDING_FLOOR.value, Status.STALLED.value, Status.MAX_EVALUATIONS.value],
        state.status,
    )
    return _replace(
        state,
        projected_gradient_norm=jnp.where(state.started, norm, jnp.inf),
        decrease=decrease,
        status=jnp.where(state.status == RUNNING, ended, state.status),
    )


def _free(state: TrustRegionState, theta: Array, gradient: Array) -> Array:
    """Elements that may move downhill: those not at a bound that blocks descent."""
    blocked = ((theta <= state.lower) & (gradient > 0)) | ((theta >= state.upper) & (gradient < 0))
    return ~blocked & (state.lower < state.upper)


def _scaled_gradient_norm(state: TrustRegionState, theta: Array, gradient: Array) -> Array:
    return jnp.linalg.norm(jnp.where(_free(state, theta, gradient), gradient / state.scale, 0.0))


def _scaled_model(state: TrustRegionState, augmented: Array, free: Array) -> Array:
    """``D^-1 (J'J + S) D^-1`` over the free elements, the identity over the others."""
    J = state.residual_jacobian / state.scale[None, :]
    S = jnp.where(augmented, state.second_order, 0.0) / state.scale[:, None] / state.scale[None, :]
    return jnp.where(free[:, None] & free[None, :], J.T @ J + S, jnp.eye(free.size))


def _promised_decrease(B: Array, g: Array) -> Array:
    """Decrease ``g'B^-1 g / 2`` of the model at its stationary point, with absolute eigenvalues of B, none tiny."""
    if g.size == 0:
        return jnp.zeros(())
    eigenvalues, vectors = jnp.linalg.eigh(B)
    size = jnp.abs(eigenvalues)
    return 0.5 * ((vectors.T @ g) ** 2 / jnp.maximum(size, _EIGENVALUE_FLOOR * size.max())).sum()


def gauss_newton_decrease(residual_jacobian: Float[Array, "M P"], gradient: Float[Array, " P"]) -> Float[Array, ""]:
    """Decrease of q that unbounded linear least squares promises, where its gradient is ``2 J'r``."""
    norms = _column_norms(residual_jacobian)
    scale = jnp.where(norms > 0, norms, 1.0)
    J = residual_jacobian / scale[None, :]
    return 2 * _promised_decrease(J.T @ J, 0.5 * gradient / scale)


class _ActiveSet(NamedTuple):
    """Scaled step found so far, elements that have not reached a bound, and whether all bounds hold."""

    step: Array
    free: Array
    done: Array


def _step(state: TrustRegionState) -> Array:
    """Trust-region step within the bounds that decreases the model at least as much as the projected gradient."""
    free = _free(state, state.theta, state.gradient)
    B = _scaled_model(state, state.augmented, free)
    g = jnp.where(free, 0.5 * state.gradient / state.scale, 0.0)
    longest = LONGEST * jnp.maximum(jnp.maximum(jnp.abs(state.theta), state.typical), SMALLEST)
    lower = jnp.where(free, jnp.maximum(state.lower - state.theta, -longest) * state.scale, 0.0)
    upper = jnp.where(free, jnp.minimum(state.upper - state.theta, longest) * state.scale, 0.0)
    radius = state.radius

    def body(active: _ActiveSet) -> _ActiveSet:
        # Elements at their bounds stay there; the others solve the trust-region problem given those.
        held = jnp.where(active.free, 0.0, active.step)
        both = active.free[:, None] & active.free[None, :]
        inner = _trust_region_step(
            jnp.where(both, B, jnp.eye(free.size)),
            jnp.where(active.free, g + B @ held, 0.0),
            jnp.sqrt(jnp.maximum(radius**2 - held @ held, 0.0)),
        )
        step = jnp.where(active.free, inner, held)
        violated = active.free & ((step < lower) | (step > upper))
        return _ActiveSet(jnp.clip(step, lower, upper), active.free & ~violated, ~violated.any())

    initial = _ActiveSet(jnp.zeros_like(g), free, jnp.asarray(False))
    step = jax.lax.while_loop(lambda active: ~active.done, body, initial).step
    # Fixing elements at bounds may cost descent: points along the projected gradient guarantee it.
    lengths = _ratio(radius, jnp.linalg.norm(g), 0.0) * 0.5 ** jnp.arange(0.0, 40.0, 2.0)
    path = jnp.clip(-lengths[:, None] * g[None, :], lower[None, :], upper[None, :])
    steps = jnp.concatenate([step[None, :], path])
    values = steps @ g + 0.5 * (steps * (steps @ B)).sum(axis=1)
    return steps[jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))] / state.scale


class _Bracket(NamedTuple):
    """Shift of B's eigenvalues, an interval that holds the right one, and steps taken to find it."""

    shift: Array
    low: Array
    high: Array
    steps: Array


def _trust_region_step(B: Array, g: Array, radius: Array) -> Array:
    """Minimise ``g'p + p'Bp / 2`` subject to ``||p|| <= radius`` (More and Sorensen 1983), by B's eigenvalues."""
    eigenvalues, vectors = jnp.linalg.eigh(B)
    b = vectors.T @ g
    floor = _EIGENVALUE_FLOOR * jnp.abs(eigenvalues).max()
    smallest = jnp.maximum(0.0, floor - eigenvalues[0])

    def norm(shift: Array) -> Array:
        return jnp.linalg.norm(b / (eigenvalues + shift))

    def searching(bracket: _Bracket) -> Array:
        return (jnp.abs(norm(bracket.shift) - radius) > 1e-3 * radius) & (bracket.steps < 60)

    def search(bracket: _Bracket) -> _Bracket:
        # Newton's method for 1 / ||p(shift)|| = 1 / radius, safeguarded by bisection.
        shift, p = bracket.shift, -b / (eigenvalues + bracket.shift)
        length = jnp.linalg.norm(p)
        low = jnp.where(length > radius, shift, bracket.low)
        high = jnp.where(length > radius, bracket.high, shift)
        newton = shift + _ratio(length**2, (p**2 / (eigenvalues + shift)).sum(), 0.0) * (length - radius) / radius
        inside = (newton > low) & (newton < high)
        return _Bracket(jnp.where(inside, newton, 0.5 * (low + high)), low, high, bracket.steps + 1)

    interior = norm(smallest) <= radius
    highest = jnp.maximum(smallest, jnp.linalg.norm(b) / jnp.maximum(radius, 1e-300) - eigenvalues[0])
    steps = jnp.where(interior, 60, 0)
    shift = jax.lax.while_loop(searching, search, _Bracket(smallest, smallest, highest, steps)).shift
    p = -b / (eigenvalues + shift)
    length = jnp.linalg.norm(p)
    # On the boundary, remove the search's error; with negative curvature inside (the hard case), go along it to the
    # boundary.
    along = jnp.sqrt(jnp.maximum(radius**2 - length**2, 0.0)) * jnp.where(p[0] < 0, -1.0, 1.0)
    p = p.at[0].add(jnp.where(interior & (eigenvalues[0] < -floor), along, 0.0))
    return vectors @ (p * jnp.where(interior, 1.0, _ratio(radius, length, 0.0)))


def _column_norms(J: Array) -> Array:
    return jnp.sqrt((J * J).sum(axis=0))


def _ratio(numerator: Array, denominator: Array, otherwise: float) -> Array:
    """Quotient, with a given value where the denominator is zero or the quotient not finite."""
    value = numerator / jnp.where(denominator == 0, 1.0, denominator)
    return jnp.where((denominator == 0) | ~jnp.isfinite(value), otherwise, value)
