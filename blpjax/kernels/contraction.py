"""Mean utilities that reproduce observed market shares, in one market.

The contraction of Berry, Levinsohn and Pakes (1995) is ``delta <- delta + log S - log s(delta)``. The accelerated
default iterates it with the outside-share correction of Fukasawa (2024), ``- (log S_0 - log s_0)``, which has the same
fixed point and is exact in one step without heterogeneity. Products with an observed share of zero are padding: they
are unavailable, their mean utility stays zero.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.kernels.fixed_point import (
    ROUNDING_FLOOR,
    FixedPoint,
    Image,
    NewtonPoint,
    continued,
    iterate,
    newton,
    safeguarded,
)
from blpjax.kernels.implicit import implicit
from blpjax.kernels.linear_algebra import solve
from blpjax.kernels.shares import (
    Choices,
    Nests,
    Tastes,
    choices,
    deviations,
    scaled_exponentials,
    share_jacobian,
    shares,
)

#: Products in whose mean utilities an inversion moves farther than this from where exponentials were taken underflow.
_FARTHEST = 600.0

#: Evaluations after which acceleration gives way to Newton's method, which then takes fewer and is sure to arrive.
ACCELERATED = 300

#: A loop without progress succeeded when log shares are off by less than rounding explains, and by less than this.
_LARGEST_FLOOR = 5e-11


def logit_delta(observed: Float[Array, " J"], nests: Nests | None = None) -> Float[Array, " J"]:
    """Mean utilities without heterogeneity: ``log S_j - log S_0 - rho log(S_j / S_h)`` (Berry 1994).

    ``S_0 = 1 - sum_j S_j``, and ``S_h`` is the share of j's group. Without nests the last term is zero, and with groups
    within groups there is one for each level, with the difference of their parameters.
    """
    present = observed > 0
    known = jnp.where(present, observed, 1.0)
    inside = jnp.log(known) - jnp.log1p(-observed.sum())
    if nests is not None:
        for level in nests.levels:
            groups = jnp.where(present, level.spread(level.sums(observed)), 1.0)
            inside -= level.spread(level.rho) * (jnp.log(known) - jnp.log(groups))
    return jnp.where(present, inside, 0.0)


class ObservedMarket(eqx.Module):
    """One market as it is observed: shares S, which are zero for padding, and all of demand but mean utilities.

    `weights` need not sum to one and may be negative, `availability` are factors of exp V, and `nests` are groups of
    products with their nesting parameters, or None.
    """

    shares: Float[Array, " J"]
    X2: Float[Array, "J K2"]
    C: Tastes
    weights: Float[Array, " I"]
    availability: Float[Array, "J #I"]
    nests: Nests | None = None

    def simulate(self, delta: Float[Array, " J"]) -> Float[Array, " J"]:
        """Shares at mean utilities (J,)."""
        return shares(delta, self.X2, self.C, self.weights, self.availability, self.nests)


def invert_shares(
    market: ObservedMarket,
    start: Float[Array, " J"],
    limits: FixedPointLimits,
    method: FixedPointMethod = FixedPointMethod(),  # noqa: B008 (an immutable tuple)
) -> FixedPoint:
    """Solve ``s(delta) = S`` for delta.

    Differentiable to any order in every array of `market`, by the implicit function theorem:
    ``d delta = H^{-1} (dS - ds)`` with ``H = ds / d delta``.

    Parameters
    ----------
    market : observed shares and what demand consists of.
    start : (J,) initial values.
    limits, method : see `blpjax.Iteration`.
    """
    return implicit(partial(_solve, method), _share_gap, _solve_jacobian, market, start, limits)


def _solve(method: FixedPointMethod, observed: ObservedMarket, start: Array, limits: FixedPointLimits) -> FixedPoint:
    start = jnp.where(observed.shares > 0, start, 0.0)
    market = _Market(
        observed.shares,
        deviations(observed.X2, observed.C),
        observed.weights,
        observed.availability,
        observed.nests,
        (limits.smallest_share, limits.largest_share),
    )
    if method.host is not None:
        return _on_host(method.host, market, start)
    if method.name == "return":
        gap = market.log_gap(market.choices(start).inside @ market.weights)
        returned = iterate(method, partial(_contraction, market), start, limits)
        return eqx.tree_at(lambda f: f.residual, returned, jnp.abs(gap).max(initial=0.0))
    floor = _rounding_floor(market)
    if method.name == "newton":
        return _newton(market, start, limits, floor)
    changes = floor if market.nests is None else floor * (1.0 - market.nests.rho.max(initial=0.0))
    if method.nonlinear:
        found = iterate(method, partial(_exponential_contraction, market), jnp.exp(start), limits, floor=changes)
        return eqx.tree_at(lambda f: f.value, found, jnp.where(market.observed > 0, jnp.log(found.value), 0.0))
    if method.name != "anderson":
        return iterate(method, partial(_contraction, market), start, limits, floor=changes)
    corrected = _corrected_contraction(market, start) if market.nests is None else partial(_nested_contraction, market)
    if not method.safeguard:
        return iterate(method, corrected, start, limits, floor=floor)
    first = limits._replace(max_evaluations=jnp.minimum(limits.max_evaluations, ACCELERATED))  # type: ignore[arg-type]
    found = iterate(method, corrected, start, first, floor=floor)
    return safeguarded(found, lambda value, rest: _newton(market, value, rest, floor), start, limits)


class _Market(NamedTuple):
    """What loops need of a market: deviations mu (J, I) in place of characteristics and tastes.

    Simulated shares are clipped at `bounds` before logarithms are taken. Routines on the host have one of NumPy arrays.
    """

    observed: AnyArray
    mu: AnyArray
    weights: AnyArray
    availability: AnyArray
    nests: Nests | None
    bounds: tuple[Any, Any]

    def choices(self, delta: AnyArray) -> Choices:
        return choices(delta[:, None] + self.mu, self.availability, self.nests)

    def log_gap(self, simulated: Array) -> Array:
        """``log S - log s``, zero for padding, with simulated shares clipped."""
        lower, upper = self.bounds
        return _log_gap(self.observed, jnp.minimum(jnp.maximum(simulated, lower), upper))


def _rounding_floor(market: _Market) -> Array:
    """Accuracy of log shares that 64-bit utilities leave, at least `ROUNDING_FLOOR` and at most `_LARGEST_FLOOR`."""
    largest = 32.0 + 2.0 * jnp.abs(market.mu).max(initial=0.0)
    if market.nests is not None:
        largest *= market.nests.scales.max(initial=1.0)
    return jnp.clip(jnp.finfo(float).eps * largest, ROUNDING_FLOOR, _LARGEST_FLOOR)


def _log_gap(observed: Array, clipped: Array) -> Array:
    present = observed > 0
    return jnp.where(
        present, jnp.log(jnp.where(present, observed, 1.0)) - jnp.log(jnp.where(present, clipped, 1.0)), 0.0
    )


def _contraction(market: _Market, delta: Array) -> Array:
    """The contraction of Berry, Levinsohn and Pakes (1995), with nests times ``1 - rho`` (Grigolon and Verboven).

    Rho is that of the innermost groups.
    """
    gap = market.log_gap(market.choices(delta).inside @ market.weights)
    return delta + (gap if market.nests is None else gap / market.nests.scales)


def _exponential_contraction(market: _Market, x: Array) -> Image:
    """The contraction for ``x = exp delta``, with changes relative to x (Brunner, Heiss, Romahn and Weiser 2017)."""
    factors = jnp.exp(_contraction(market, jnp.log(x)) - jnp.log(x))
    return Image(x * factors, factors - 1.0)


def _on_host(routine: Any, market: _Market, start: Array) -> FixedPoint:
    """By a `blpjax.machine.host_routines.HostRoutine`."""
    leaves, structure = jax.tree.flatten(market)

    def market_of(arrays: list[Any]) -> Any:
        known = jax.tree.unflatten(structure, arrays)
        scale = namespace(known.observed).ones_like(known.observed)
        if known.nests is not None:
            scale = scale / known.nests.scales
        return known.observed, scale, partial(_simulate_on_host, known)

    counter, number = jax.ShapeDtypeStruct((), int), jax.ShapeDtypeStruct((), float)
    outcome = (jax.ShapeDtypeStruct(start.shape, float), counter, counter, counter, number)
    invert = partial(routine.invert, market_of)
    return FixedPoint(*jax.pure_callback(invert, outcome, start, *leaves, vmap_method="sequential"))


def _simulate_on_host(market: _Market, delta: AnyArray, with_jacobian: bool) -> tuple[AnyArray, AnyArray | None]:
    """Simulated shares, clipped, with NumPy, and their Jacobian where it is wanted; anything for padding."""
    found, (lower, upper) = market.choices(delta), market.bounds
    jacobian = share_jacobian(found, market.weights, nests=market.nests) if with_jacobian else None
    return namespace(delta).clip(found.inside @ market.weights, lower, upper), jacobian


def _outside_gap(observed: Array, weights: Array, outside: Array) -> Array:
    """``log S_0 - log s_0``, zero where the weights leave no observed outside share."""
    target = weights.sum() - observed.sum()
    usable = (target > 0) & (outside > 0)
    return jnp.where(usable, jnp.log(jnp.where(usable, target, 1.0)) - jnp.log(jnp.where(usable, outside, 1.0)), 0.0)


def _corrected_gap(market: _Market, simulated: Array, outside: Array) -> Array:
    """``(1 - rho) (log S_j - log s_j) + rho (log S_h - log s_h) - (log S_0 - log s_0)``, zero for padding.

    With groups within groups the second term is a sum over levels.
    """
    observed, nests = market.observed, market.nests
    gap = market.log_gap(simulated)
    if nests is not None:
        gap = gap / nests.scales
        for level in nests.levels:
            groups = _log_gap(level.sums(observed), jnp.maximum(level.sums(simulated), market.bounds[0]))
            gap += level.spread(level.rho * groups)
    return jnp.where(observed > 0, gap - _outside_gap(observed, market.weights, outside), 0.0)


def _nested_contraction(market: _Market, delta: Array) -> Image:
    """The corrected contraction with nests. Near ``rho = 1`` its steps are small where log shares are still off."""
    found = market.choices(delta)
    s = found.inside @ market.weights
    return Image(delta + _corrected_gap(market, s, found.outside @ market.weights), market.log_gap(s))


def _corrected_contraction(market: _Market, anchor: Array) -> Callable[[Array], Array]:
    """The corrected contraction with exponentials taken once, at `anchor`: two matrix-vector products an evaluation."""
    exponentials, none = scaled_exponentials(anchor[:, None] + market.mu, market.availability)

    def contraction(delta: Array) -> Array:
        moved = delta - anchor
        # exponentials that underflowed at the anchor could matter this far away: no value is better than a wrong one
        e = jnp.where(
            jnp.maximum(moved.max(), 0.0) - jnp.minimum(moved.min(), 0.0) < _FARTHEST, jnp.exp(moved), jnp.nan
        )
        scaled = market.weights / (none + e @ exponentials)
        return delta + _corrected_gap(market, e * (exponentials @ scaled), none @ scaled)

    return contraction


def _newton(market: _Market, start: Array, limits: FixedPointLimits, floor: Array) -> FixedPoint:
    """Damped Newton steps, and where they fail continuation in the size of deviations from mean utilities.

    It begins without heterogeneity, where the solution has a closed form.
    """
    size = jnp.abs(market.mu).max(initial=0.0)
    if market.nests is not None:
        size *= market.nests.scales.max(initial=1.0)

    def solve_at(number: Array, begin: Array, rest: FixedPointLimits) -> FixedPoint:
        return _damped_newton(market._replace(mu=number * market.mu), begin, rest, floor)

    origin = logit_delta(market.observed, market.nests)
    return continued(solve_at, start, origin, jnp.minimum(1.0, 4.0 / jnp.maximum(size, 1.0)), limits)


def _damped_newton(market: _Market, start: Array, limits: FixedPointLimits, floor: Array) -> FixedPoint:
    """Newton on the outside-corrected log residual, damped by the convex function whose gradient is s - S.

    With negative weights that function is not convex: the norm of the residual takes its place.
    """
    observed, weights = market.observed, market.weights
    present = observed > 0
    convex = (weights >= 0).all()

    def evaluate(delta: Array) -> NewtonPoint:
        found = market.choices(delta)
        s, s0 = found.inside @ weights, found.outside @ weights
        aggregate = jnp.where(present, _homogeneous_change(market, s, _corrected_gap(market, s, s0)), 0.0)
        H = share_jacobian(found, weights, nests=market.nests) + jnp.diag(jnp.where(present, 0.0, 1.0))
        right = jnp.stack([aggregate, observed - s * present], axis=1)
        candidates = solve(H, right)
        slopes = (s * present - observed) @ candidates
        step = jnp.where((slopes[0] < 0) & jnp.isfinite(candidates[:, 0]).all(), candidates[:, 0], candidates[:, 1])
        # the outside share too, as far as the rounding of observed shares lets it be known
        beside = _outside_gap(observed, weights, s0) * jnp.minimum(1.0, 1e3 * jnp.abs(weights.sum() - observed.sum()))
        residual = jnp.maximum(jnp.abs(market.log_gap(s)).max(), jnp.abs(beside))
        # sum_i w_i log(1 + sum_j a_ji exp V_ji) - S'delta
        merit = jnp.where(convex, weights @ found.inclusive - observed @ delta, residual)
        slope = jnp.where(convex, jnp.where(slopes[0] < 0, slopes[0], slopes[1]), -residual)
        return NewtonPoint(step, jnp.where(jnp.isfinite(residual), residual, jnp.inf), merit, slope)

    return newton(evaluate, start, limits, floor=floor)


def _homogeneous_change(market: _Market, s: Array, change: Array) -> Array:
    """How shares s would move with mean utilities if all agents were the same: maps corrected residuals into shares."""
    mean = (s @ change) / market.weights.sum()
    nests = market.nests
    if nests is None:
        return s * (change - mean)
    relative = nests.scales * change - mean
    for level in nests.levels:
        totals = level.sums(s)
        means = level.sums(s * change) / jnp.where(totals > 0, totals, 1.0)
        relative -= level.spread(level.odds * means)
    return s * relative


def _share_gap(delta: Array, market: ObservedMarket, start: Array, limits: FixedPointLimits) -> Array:
    return market.simulate(delta) - market.shares


def _solve_jacobian(
    delta: Array, right: Array, market: ObservedMarket, start: Array, limits: FixedPointLimits
) -> Array:
    found = choices(delta[:, None] + deviations(market.X2, market.C), market.availability, market.nests)
    H = share_jacobian(found, market.weights, nests=market.nests)
    return solve(H + jnp.diag(jnp.where(market.shares > 0, 0.0, 1.0)), right)
