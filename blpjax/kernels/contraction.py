"""Mean utilities that reproduce observed market shares, in one market.

The contraction of Berry, Levinsohn and Pakes (1995) is ``delta <- delta + log S - log s(delta)``. The accelerated
default iterates it with the outside-share correction of Fukasawa (2024), ``- (log S_0 - log s_0)``, which has the same
fixed point and is exact in one step without heterogeneity. Products with an observed share of zero are padding: they
are unavailable, their mean utility stays zero.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.fixed_point import FixedPoint, NewtonPoint, implicit, iterate, newton, safeguarded
from blpjax.kernels.linear_algebra import solve
from blpjax.kernels.shares import probabilities, scaled_exponentials, share_jacobian, shares

#: Products in whose mean utilities an inversion moves farther than this from where exponentials were taken underflow.
_FARTHEST = 600.0


#: Simulated shares are bounded from below by this before logarithms are taken.
SMALLEST_SHARE = 1e-300


def logit_delta(observed: Float[Array, " J"]) -> Float[Array, " J"]:
    """Mean utilities of the plain logit, ``log S_j - log S_0`` with ``S_0 = 1 - sum_j S_j`` (Berry 1994)."""
    present = observed > 0
    inside = jnp.log(jnp.where(present, observed, 1.0)) - jnp.log1p(-observed.sum())
    return jnp.where(present, inside, 0.0)


def invert_shares(
    observed: Float[Array, " J"],
    X2: Float[Array, "J K2"],
    C: Float[Array, "K2 I"],
    weights: Float[Array, " I"],
    availability: Float[Array, "J #I"],
    start: Float[Array, " J"],
    limits: FixedPointLimits,
    method: FixedPointMethod = FixedPointMethod(),  # noqa: B008 (an immutable tuple)
) -> FixedPoint:
    """Solve ``s(delta) = S`` for delta.

    Differentiable to any order in everything but `start` and `limits`, by the implicit function theorem:
    ``d delta = H^{-1} (dS - ds)`` with ``H = ds / d delta``.

    Parameters
    ----------
    observed : (J,) observed shares S; zero marks padding.
    X2, C : (J, K2) characteristics and (K2, I) tastes (`blpjax.kernels.shares.tastes`).
    weights : (I,) integration weights, which need not sum to one and may be negative.
    availability : (J, I) or (J, 1) factors of exp V.
    start : (J,) initial values.
    limits, method : see `blpjax.Iteration`.
    """
    return implicit(
        partial(_solve, method), _share_gap, _solve_jacobian, observed, X2, C, weights, availability, start, limits
    )


def _solve(
    method: FixedPointMethod,
    observed: Array,
    X2: Array,
    C: Array,
    weights: Array,
    availability: Array,
    start: Array,
    limits: FixedPointLimits,
) -> FixedPoint:
    start = jnp.where(observed > 0, start, 0.0)
    mu = X2 @ C
    if method.name == "newton":
        return _newton(observed, mu, weights, availability, start, limits)
    if method.name != "anderson":
        return iterate(method, partial(_contraction, observed, mu, weights, availability), start, limits)
    found = iterate(method, _corrected_contraction(observed, mu, weights, availability, start), start, limits)
    if not method.safeguard:
        return found
    return safeguarded(found, partial(_newton, observed, mu, weights, availability), start, limits)


def _log_gap(observed: Array, simulated: Array) -> Array:
    """``log S - log s``, zero for padding. Simulated shares are bounded below by `SMALLEST_SHARE`."""
    present = observed > 0
    clipped = jnp.maximum(simulated, SMALLEST_SHARE)
    return jnp.where(
        present, jnp.log(jnp.where(present, observed, 1.0)) - jnp.log(jnp.where(present, clipped, 1.0)), 0.0
    )


def _contraction(observed: Array, mu: Array, weights: Array, availability: Array, delta: Array) -> Array:
    inside, _ = probabilities(delta[:, None] + mu, availability)
    return delta + _log_gap(observed, inside @ weights)


def _outside_gap(observed: Array, weights: Array, outside: Array) -> Array:
    """``log S_0 - log s_0``, zero where the weights leave no observed outside share."""
    target = weights.sum() - observed.sum()
    usable = (target > 0) & (outside > 0)
    return jnp.where(usable, jnp.log(jnp.where(usable, target, 1.0)) - jnp.log(jnp.where(usable, outside, 1.0)), 0.0)


def _corrected_contraction(
    observed: Array, mu: Array, weights: Array, availability: Array, anchor: Array
) -> Callable[[Array], Array]:
    """The corrected contraction with exponentials taken once, at `anchor`: two matrix-vector products an evaluation."""
    exponentials, none = scaled_exponentials(anchor[:, None] + mu, availability)

    def contraction(delta: Array) -> Array:
        moved = delta - anchor
        # exponentials that underflowed at the anchor could matter this far away: no value is better than a wrong one
        e = jnp.where(
            jnp.maximum(moved.max(), 0.0) - jnp.minimum(moved.min(), 0.0) < _FARTHEST, jnp.exp(moved), jnp.nan
        )
        scaled = weights / (none + e @ exponentials)
        simulated = e * (exponentials @ scaled)
        return (
            delta
            + _log_gap(observed, simulated)
            - jnp.where(observed > 0, _outside_gap(observed, weights, none @ scaled), 0.0)
        )

    return contraction


def _newton(
    observed: Array, mu: Array, weights: Array, availability: Array, start: Array, limits: FixedPointLimits
) -> FixedPoint:
    """Newton on the outside-corrected log residual, damped by the convex function whose gradient is s - S.

    With negative weights that function is not convex: the norm of the residual takes its place.
    """
    present = observed > 0
    total = weights.sum()
    convex = (weights >= 0).all()

    def evaluate(delta: Array) -> NewtonPoint:
        utilities = delta[:, None] + mu
        P, outside = probabilities(utilities, availability)
        s = P @ weights
        gap = _log_gap(observed, s)
        s0 = outside @ weights
        corrected = jnp.where(present, gap - _outside_gap(observed, weights, s0), 0.0)
        # the same Jacobian for a homogeneous model maps the corrected residual into shares
        aggregate = jnp.where(present, s * (corrected - (s @ corrected) / total), 0.0)
        H = share_jacobian(P, weights) + jnp.diag(jnp.where(present, 0.0, 1.0))
        right = jnp.stack([aggregate, observed - s * present], axis=1)
        candidates = solve(H, right)
        slopes = (s * present - observed) @ candidates
        step = jnp.where((slopes[0] < 0) & jnp.isfinite(candidates[:, 0]).all(), candidates[:, 0], candidates[:, 1])
        residual = jnp.abs(gap).max()
        # sum_i w_i log(1 + sum_j a_ji exp V_ji) - S'delta, from the outside probability: -log s_i0
        merit = jnp.where(convex, -(weights @ jnp.log(outside)) - observed @ delta, residual)
        slope = jnp.where(convex, jnp.where(slopes[0] < 0, slopes[0], slopes[1]), -residual)
        return NewtonPoint(step, jnp.where(jnp.isfinite(residual), residual, jnp.inf), merit, slope)

    return newton(evaluate, start, limits)


def _share_gap(
    delta: Array,
    observed: Array,
    X2: Array,
    C: Array,
    weights: Array,
    availability: Array,
    start: Array,
    limits: FixedPointLimits,
) -> Array:
    return shares(delta, X2, C, weights, availability) - observed


def _solve_jacobian(
    delta: Array,
    right: Array,
    observed: Array,
    X2: Array,
    C: Array,
    weights: Array,
    availability: Array,
    start: Array,
    limits: FixedPointLimits,
) -> Array:
    P, _ = probabilities(delta[:, None] + X2 @ C, availability)
    H = share_jacobian(P, weights) + jnp.diag(jnp.where(observed > 0, 0.0, 1.0))
    return solve(H, right)
