"""Equilibrium prices after a change of owners or costs, where utility is linear in prices and there are no nests.

Utilities are then ``V + alpha (p - p0)`` with arrays that stay the same, so that an evaluation of firms' conditions
takes a fraction of what it takes for any demand (`blpjax.kernels.equilibrium`). There are no derivatives of results.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.exceptions import Status, succeeded
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.equilibrium import relative_gap
from blpjax.kernels.fixed_point import FixedPoint, Image, iterate
from blpjax.kernels.lanes import solve_lanes
from blpjax.kernels.markups import Firms, own_share


class Nearby(NamedTuple):
    """Prices, with shares and expected utilities of agents' choices at them, NaN where there is no equilibrium."""

    found: FixedPoint
    shares: Float[Array, " J"]
    inclusive: Float[Array, " I"]


def solve_prices_nearby(
    point: DemandPoint,
    owned: Firms | Float[Array, "J J"],
    costs: Float[Array, " J"],
    start: Float[Array, " J"],
    limits: FixedPointLimits,
    inverse: Float[Array, "J J"] | None = None,
) -> Nearby:
    """Solve firms' first-order conditions.

    Parameters
    ----------
    point : demand at the prices `start`.
    owned : the products of each firm, or an ownership matrix.
    costs : (J,) marginal costs.
    limits : as in `blpjax.kernels.equilibrium.solve_prices`.
    inverse : of derivatives of the first-order conditions at an equilibrium nearby. With it steps are Newton's with
        these derivatives, accelerated: half a dozen is enough, or they fail, after large changes. Without it they are
        those of SQUAREM on the zeta-markup equation.
    """
    changed = point, owned, costs, start
    if inverse is None:
        found = solve_lanes(_squarem, changed, limits, start.size * point.weights.size)
    else:
        found = _newton(changed, limits, inverse)
    largest, conditions = _conditions(*changed)
    end, present = conditions(found.value), point.present
    finite = jnp.isfinite(jnp.where(present, end.own + found.value, 0.0)).all()
    status = jnp.where(finite | ~succeeded(found.status), found.status, int(Status.NOT_FINITE))
    status = jnp.where((present & (end.own >= 0)).any(), int(Status.UPWARD_SLOPING), status)
    residual = jnp.abs(end.gradient).max()
    good = succeeded(status)
    fixed = FixedPoint(
        jnp.where(present & ~good, jnp.nan, found.value),
        status,
        found.iterations,
        found.evaluations,
        jnp.where(jnp.isfinite(residual), residual, jnp.inf),
    )
    inclusive = largest + jnp.log(end.total)
    return Nearby(fixed, jnp.where(good, end.shares, jnp.nan), jnp.where(good, inclusive, jnp.nan))


class _Conditions(NamedTuple):
    gradient: Float[Array, " J"]
    step: Float[Array, " J"]
    own: Float[Array, " J"]  # ds_j / dp_j
    shares: Float[Array, " J"]
    total: Float[Array, " I"]


def _conditions(
    point: DemandPoint, owned: Firms | Array, costs: Array, start: Array
) -> tuple[Array, Callable[[Array], _Conditions]]:
    """Agents' largest utilities at the start, which are taken out of exponentials, and conditions at other prices."""
    V, alpha, present = point.utilities(), point.utility_slopes(), point.present
    largest = jnp.maximum(jnp.where(point.availability > 0, V, 0.0).max(axis=0), 0.0)
    # the largest utility at the start keeps exponentials in bounds, unless prices move so far that there is no hope
    base, none, weighted = V - largest[None, :], jnp.exp(-largest), alpha * point.weights[None, :]
    diagonal = own_share(owned)
    members = owned.members if isinstance(owned, Firms) else None

    def conditions(prices: Array) -> _Conditions:
        E = point.availability * jnp.exp(base + alpha * (prices - start)[:, None])
        total = none + E.sum(axis=0)
        P, eta = E / total[None, :], prices - costs
        R = P * weighted
        shares, scale = P @ point.weights, R.sum(axis=1)
        if members is None:
            through = ((R @ P.T) * owned) @ eta
        else:
            firm = members.argmax(axis=1)
            earned = jax.ops.segment_sum(eta[:, None] * P, firm, members.shape[1])  # by firm and agent
            through = (R * earned[firm]).sum(axis=1)
        gradient = jnp.where(present, shares - through + scale * diagonal * eta, 0.0)
        usable = scale * diagonal != 0
        step = jnp.where(usable, -gradient / jnp.where(usable, scale * diagonal, 1.0), costs - prices)
        return _Conditions(gradient, jnp.where(present, step, 0.0), scale - (R * P).sum(axis=1), shares, total)

    return largest, conditions


def _squarem(changed: Any, limits: FixedPointLimits) -> FixedPoint:
    point, _, _, start = changed
    conditions = _conditions(*changed)[1]

    def contraction(prices: Array) -> Image:
        at = conditions(prices)
        return _image(point, prices, prices + at.step, at)

    return iterate(FixedPointMethod("squarem"), contraction, start, limits)


def _newton(changed: Any, limits: FixedPointLimits, inverse: Float[Array, "J J"]) -> FixedPoint:
    point, _, _, start = changed
    conditions = _conditions(*changed)[1]

    def contraction(prices: Array) -> Image:
        at = conditions(prices)
        return _image(point, prices, prices - inverse @ at.gradient, at)

    return iterate(FixedPointMethod("anderson"), contraction, start, limits, 1)


def _image(point: DemandPoint, prices: Array, image: Array, at: _Conditions) -> Image:
    most = jnp.abs(jnp.where(point.present, prices, 0.0)).max()
    return Image(image, relative_gap(at.gradient, at.step, jnp.where(most > 0, most, 1.0)))
