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

`METHOD` is the method's `blpjax.optimize.stepwise.Stepwise`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from blpjax.exceptions import Status
from blpjax.optimize.bounds import is_held, mask
from blpjax.optimize.stepwise import (
    RUNNING,
    Advance,
    SearchState,
    Stepwise,
    Trial,
    choose,
    initial_values,
    longest_step,
    replace,
    take,
)
from blpjax.optimize.subproblem import bounded_step, column_norms, promised_decrease, ratio

_EPS = float(jnp.finfo(jnp.float64).eps)

#: Trials that may be rejected in a row before rounding, or a model without the exact Hessian, is to blame.
_REJECTIONS = 3

#: Relative noise of q that is reckoned with: ill-conditioned weights multiply the rounding errors of residuals.
_NOISE = 1e-11

#: Changes of q that are noise where less than that is promised, in units of what is promised at most.
_LOUDEST = 10.0

#: Exact Hessians that may be asked for since q last decreased by more than its rounding error.
_HESSIANS = 3


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


class TrustRegionState(SearchState):
    """Everything the method knows. Quantities belong to `theta`, the best point so far, unless said otherwise.

    Attributes
    ----------
    residuals, residual_jacobian : (M,), (M, P).
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
    decrease : largest decrease of q that either model promises without trust region and bounds.
    """

    options: TrustRegionOptions
    residuals: Float[Array, " M"]
    residual_jacobian: Float[Array, "M P"]
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


def _begin(
    start: Float[ArrayLike, " P"],
    lower: Float[ArrayLike, " P"],
    upper: Float[ArrayLike, " P"],
    residual_count: int,
    options: Mapping[str, Any],
) -> Advance:
    """Begin at `start` (P,) moved into its bounds, which are infinite where there are none and fix what they enclose.

    There are M = `residual_count` residuals; `options` are some of `TrustRegionOptions`.
    """
    lower, upper = jnp.asarray(lower, float), jnp.asarray(upper, float)
    theta = jnp.clip(jnp.asarray(start, float), lower, upper)
    P, zero, infinity, no = theta.size, jnp.asarray(0, int), jnp.asarray(jnp.inf, float), jnp.asarray(False)
    state = TrustRegionState(
        **initial_values(theta, lower, upper),
        options=jax.tree.map(lambda value: jnp.asarray(value, float), TrustRegionOptions(**options)),
        residuals=jnp.full(residual_count, jnp.inf),
        residual_jacobian=jnp.zeros((residual_count, P)),
        second_order=jnp.zeros((P, P)),
        scale=jnp.zeros(P),
        radius=infinity,
        augmented=no,
        informed=no,
        asked_at=jnp.full(P, jnp.nan),
        asked_objective=infinity,
        asked=zero,
        switched=no,
        rejections=zero,
    )
    return Advance(state, theta, no)


def _advance(state: TrustRegionState, trial: Trial) -> Advance:
    """Accept or reject the trial, learn curvature, test convergence, and choose the next point, within bounds."""
    finite = jnp.isfinite(trial.residuals).all() & jnp.isfinite(trial.residual_jacobian).all()
    ok = trial.ok & finite
    r = jnp.where(ok, trial.residuals, 0.0)
    J = jnp.where(ok, trial.residual_jacobian, 0.0)
    # Squares may overflow although the residuals do not.
    ok = ok & jnp.isfinite(r @ r) & jnp.isfinite((J * J).sum())
    usable = Trial(trial.theta, r @ r, 2 * (J.T @ r), r, J, ok)
    return _proceed(_assess(take(state, usable, _accept_start, _compare)))


def _proceed(state: TrustRegionState) -> Advance:
    """What to do next."""
    return Advance(state, _propose(state), _is_stuck(state))


def _propose(state: TrustRegionState) -> Array:
    if state.theta.size == 0:
        return state.theta
    target = jnp.clip(state.theta + _step(state), state.lower, state.upper)
    return jnp.where(state.started, target, state.theta)


def _step(state: TrustRegionState) -> Array:
    """Step of the current model within its radius and the bounds."""
    free, longest = _free(state, state.theta, state.gradient), longest_step(state)
    lower = jnp.maximum(state.lower - state.theta, -longest) * state.scale
    upper = jnp.minimum(state.upper - state.theta, longest) * state.scale
    B, g = _scaled_model(state, state.augmented, free), mask(0.5 * state.gradient / state.scale, free)
    return bounded_step(B, g, mask(lower, free), mask(upper, free), state.radius) / state.scale


def _is_stuck(state: TrustRegionState) -> Array:
    """Whether only the exact Hessian can tell how to go on.

    It helped if q has decreased since. Where gradients have errors, by which steps are accepted that change nothing,
    it is not asked for without end.
    """
    failing = (state.status == Status.STALLED) | ((state.status == RUNNING) & (state.rejections >= _REJECTIONS))
    helpful = (state.asked < _HESSIANS) | _decreased(state)
    return failing & helpful & (state.theta != state.asked_at).any()


def _decreased(state: TrustRegionState) -> Array:
    return state.objective < (1 - state.options.floor_tol) * state.asked_objective


def _inform(state: TrustRegionState, hessian: Float[Array | np.ndarray, "P P"]) -> Advance:
    """Continue from the best point with the exact Hessian of q there, where trial after trial was rejected.

    Secants know nothing of directions in which the Jacobian vanishes by symmetry, as at a standard deviation of zero.
    A Hessian that is not finite changes nothing, but is not asked for again.
    """
    decreased = _decreased(state)
    state = replace(
        state,
        asked_at=state.theta,
        asked_objective=jnp.where(decreased, state.objective, state.asked_objective),
        asked=jnp.where(decreased, 1, state.asked + 1),
    )
    usable = jnp.isfinite(jnp.asarray(hessian)).all()
    half = 0.5 * jnp.where(usable, hessian, 0.0)
    scale = jnp.maximum(state.scale, jnp.sqrt(jnp.abs(jnp.diagonal(half))))
    length = jnp.linalg.norm(scale * state.theta)
    informed = replace(
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
    return _proceed(choose(usable, _assess(informed), state))


def _accept_start(state: TrustRegionState, trial: Trial) -> TrustRegionState:
    norms = column_norms(jnp.asarray(trial.residual_jacobian))
    scale = jnp.where(norms > 0, norms, 1.0)
    length = jnp.linalg.norm(scale * trial.theta)
    radius = state.options.initial_radius * jnp.where(length > 0, length, jnp.linalg.norm(trial.residuals))
    return replace(_move(state, trial), radius=radius, scale=scale, started=jnp.asarray(True))


def _move(state: TrustRegionState, trial: Trial) -> TrustRegionState:
    return replace(
        state,
        theta=trial.theta,
        objective=trial.objective,
        gradient=trial.gradient,
        residuals=trial.residuals,
        residual_jacobian=trial.residual_jacobian,
    )


def _compare(state: TrustRegionState, trial: Trial) -> TrustRegionState:
    """Compare the trial point's decrease of ``f = q / 2`` with what the two models predicted."""
    r, ok, step = trial.residuals, jnp.asarray(trial.ok), trial.theta - state.theta
    length = jnp.linalg.norm(state.scale * step)
    slope = 0.5 * state.gradient @ step
    # f - f_new as a sum of products loses fewer digits than a difference of two sums.
    actual = jnp.where(ok, 0.5 * (state.residuals - r) @ (state.residuals + r), -jnp.inf)
    gauss_newton = -slope - 0.5 * ((state.residual_jacobian @ step) ** 2).sum()
    augmented = gauss_newton - 0.5 * step @ state.second_order @ step
    predicted = jnp.where(state.augmented, augmented, gauss_newton)

    # Where changes of q drown in rounding, gradients say which steps and which model are good. Of a step that promises
    # less than the noise a somewhat larger change is noise, too: ill-conditioned weights multiply rounding errors.
    noise = jnp.maximum(state.options.floor_tol, _NOISE) * (0.5 * state.objective)
    drowned = ok & (jnp.abs(actual) <= _LOUDEST * noise) & (predicted <= noise)
    gradients = _compare_gradients(state, trial.theta, 0.5 * trial.gradient)
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
    state = replace(
        state,
        radius=jnp.where(retry, state.radius, radius),
        augmented=state.augmented ^ change,
        switched=retry,
        rejections=jnp.where(accepted, 0, state.rejections + 1),
        iterations=state.iterations + accepted,
    )
    moved = _move(replace(_learn(state, trial), informed=jnp.asarray(False)), trial)
    return choose(accepted, moved, state)


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


def _learn(state: TrustRegionState, trial: Trial) -> TrustRegionState:
    """Secant update of S after an accepted step (Dennis, Gay and Welsch 1981, section 3), and of the scale."""
    step, half = trial.theta - state.theta, 0.5 * trial.gradient
    change = half - 0.5 * state.gradient  # y
    residual_change = half - state.residual_jacobian.T @ trial.residuals  # y#, what S s should be
    S = state.second_order
    curvature = step @ S @ step
    # Sizing: S must not overstate a second-order term that vanishes with the residuals.
    size = jnp.minimum(1.0, jnp.abs(ratio(step @ residual_change, curvature, 1.0)))
    # A secant direction nearly orthogonal to the step is damped, as it would blow up S.
    inner = step @ change
    cosine = ratio(jnp.abs(inner), jnp.linalg.norm(state.scale * step) * jnp.linalg.norm(change / state.scale), 0.0)
    weight = change * ratio(jnp.minimum(1.0, cosine / 1e-6), inner, 0.0)
    error = residual_change - size * (S @ step)
    correction = error - 0.5 * (error @ step) * weight
    S = size * S + correction[:, None] * weight[None, :] + weight[:, None] * correction[None, :]
    scale = jnp.maximum(0.6 * state.scale, column_norms(jnp.asarray(trial.residual_jacobian)))
    return replace(state, second_order=S, scale=scale)


def _assess(state: TrustRegionState) -> TrustRegionState:
    """First-order optimality of the current point, and whether the loop ends."""
    options = state.options
    free = _free(state, state.theta, state.gradient)
    norm = jnp.max(jnp.abs(mask(state.gradient, free)), initial=0.0)
    # Gauss-Newton's promise is compared too: it is large unless r is orthogonal to J's columns, however flat q is.
    models = jnp.stack([_scaled_model(state, jnp.asarray(False), free), _scaled_model(state, jnp.asarray(True), free)])
    g = mask(0.5 * state.gradient / state.scale, free)
    promises = jnp.where(state.started, 2 * jax.vmap(promised_decrease, (0, None))(models, g), jnp.inf)
    decrease = promises.max()

    # Rounding errors of r, and hence of the gradient, that no method can get below.
    J = jnp.abs(state.residual_jacobian)
    gradient_noise = 2 * options.noise * (J.T @ (jnp.abs(state.residuals) + J @ jnp.abs(state.theta)))
    quiet = (~free | (jnp.abs(state.gradient) <= jnp.maximum(options.gtol, gradient_noise))).all()

    length = jnp.maximum(jnp.linalg.norm(state.scale * state.theta), jnp.linalg.norm(state.residuals))
    collapsed = state.radius <= 2 * _EPS * length
    stuck = collapsed | (state.rejections >= _REJECTIONS)
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
    return replace(
        state,
        projected_gradient_norm=jnp.where(state.started, norm, jnp.inf),
        decrease=decrease,
        status=jnp.where(state.status == RUNNING, ended, state.status),
    )


def _free(state: TrustRegionState, theta: Array, gradient: Array) -> Array:
    """Elements that may move downhill."""
    return ~is_held(theta, gradient, state)


def _scaled_gradient_norm(state: TrustRegionState, theta: Array, gradient: Array) -> Array:
    return jnp.linalg.norm(mask(gradient / state.scale, _free(state, theta, gradient)))


def _scaled_model(state: TrustRegionState, augmented: Array, free: Array) -> Array:
    """``D^-1 (J'J + S) D^-1`` over the free elements, the identity over the others."""
    J = state.residual_jacobian / state.scale[None, :]
    S = jnp.where(augmented, state.second_order, 0.0) / state.scale[:, None] / state.scale[None, :]
    return mask(J.T @ J + S, free, diagonal=1.0)


def _describe(state: TrustRegionState) -> str:
    return (
        f"projected gradient norm {state.projected_gradient_norm:.1e}, "
        f"promised decrease of the objective {state.decrease:.1e}"
    )


METHOD = Stepwise(_begin, _advance, _inform, _describe)
