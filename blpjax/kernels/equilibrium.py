"""Equilibrium prices of one market (Bertrand competition), passthrough, and the conditions of first and second order.

Firms' first-order conditions ``s = A (p - c)`` (see `blpjax.kernels.markups`) are solved in the form of Morrow and
Skerlos (2011), ``p - c = zeta(p)`` with ``zeta = Lambda^{-1} [(H o Gamma') (p - c) - s]``, where
``Lambda_jj = sum_i w_i P_ji alpha_ji`` and ``Gamma_jk = sum_i w_i P_ji P_ki alpha_ki``. Since
``zeta - (p - c) = -(s - A (p - c)) / Lambda_jj``, the loops divide the profit gradient by the diagonal of Lambda.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blpjax.exceptions import Status, succeeded
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.arrays import AnyArray, namespace, on_host, solve_on_host
from blpjax.kernels.demand import Curvature, DemandAt, DemandPoint, demand_hessian, demand_with_curvature
from blpjax.kernels.fixed_point import FixedPoint, Image, NewtonPoint, iterate, newton, safeguarded
from blpjax.kernels.implicit import implicit
from blpjax.kernels.lanes import solve_lanes
from blpjax.kernels.linear_algebra import solve
from blpjax.kernels.markups import (
    Owned,
    markup_matrix,
    markup_product,
    markups,
    own_share,
    ownership_matrix,
    price_derivatives,
    profit_gradient,
)

#: Marginal costs at given shares, ``costs_at(shares, arguments)``. It must not close over traced values.
CostsAt = Callable[[AnyArray, Any], AnyArray]

#: A loop ends when changes relative to the largest price are at most the tolerance divided by this, also where shares
#: are so small that every price passes for a solution of the first-order conditions.
_RELATIVE = 1e-2

#: Anderson and Newton begin with this many plain steps: far from the equilibrium they are no match for them.
_PLAIN_STEPS = 3

#: Anderson steps that find no equilibrium are followed by plain ones, which are slow but hardly ever fail: in large
#: markets acceleration may wander about without end.
_ACCELERATED_STEPS = 100


def solve_prices(
    demand_at: DemandAt,
    costs_at: CostsAt,
    owned: Int[Array, " J"] | Float[Array, "J J"],
    start: Float[Array, " J"],
    arguments: Any,
    method: FixedPointMethod,
    limits: FixedPointLimits,
    held: Bool[Array, " J"] | None = None,
) -> FixedPoint:
    """Solve firms' first-order conditions for equilibrium prices.

    Differentiable to any order in `arguments` and a float `owned`, by the implicit function theorem. Prices are NaN
    unless the status is a success: not where the loop fails, and not where it ends at a point at which the demand for
    some product does not fall in its own price (`Status.UPWARD_SLOPING`).

    Parameters
    ----------
    demand_at : ``demand_at(prices, arguments)`` gives demand at prices (J,), of which a product's own price may move
        only its own utility. It must be finite for padding too.
    costs_at : ``costs_at(shares, arguments)`` gives marginal costs (J,). Firms take them as given even where they
        depend on shares.
    owned : (J,) codes of firms or (J, J) ownership matrix, see `blpjax.kernels.markups.ownership_matrix`.
    start : (J,) initial prices; padding keeps them.
    arguments : pytree of arrays.
    method : ``'simple'`` (``p <- c + zeta(p)``), ``'squarem'``, ``'anderson'`` and ``'newton'`` (damped, on
        ``p - c - zeta(p)``), which begin with a few plain steps, or ``'return'``, which returns `start`, whatever its
        residual. Newton takes over where Anderson fails, if ``method.safeguard``. Or a routine on the host.
    limits : the loop ends when the norm of the profit gradient is at most ``atol + rtol |p|`` and prices change by at
        most 100 times that, relative to the largest price.
    held : (J,) whose prices stay at `start`. Firms count what they earn with these products when they set other prices.

    Returns
    -------
    FixedPoint whose residual is the norm of the profit gradient at the returned prices.
    """
    # a float matrix in place of integer codes of firms, which have no derivatives
    nobody = jnp.zeros(start.shape, bool) if held is None else held
    game = _Game(ownership_matrix(owned), arguments, nobody, demand_at, costs_at)
    if method.name == "return":
        returned = iterate(method, lambda prices: prices, start, limits)
        gap = jax.lax.stop_gradient(jnp.abs(_residual(start, game, start, limits)).max(initial=0.0))
        return eqx.tree_at(lambda f: f.residual, returned, gap)
    return implicit(partial(_solve_lanes, method), _residual, _solve_jacobian, game, start, limits)


def first_order_conditions(
    point: DemandPoint, H: Float[Array, "J J"], prices: Float[Array, " J"], costs: Float[Array, " J"]
) -> Float[Array, " J"]:
    """Profit gradient ``s - A (p - c)``: element j is ``s_j + sum_k H_jk (p_k - c_k) ds_k / dp_j``. Zero for padding.

    With standard ownership it is the derivative of the profits of j's firm in the price of j.
    """
    return jnp.where(point.present, point.shares() - markup_product(point, H, prices - costs), 0.0)


def first_order_jacobian(
    demand_at: DemandAt, H: Float[Array, "J J"], prices: Float[Array, " J"], costs: Float[Array, " J"], arguments: Any
) -> Float[Array, "J J"]:
    """Derivatives of the profit gradient in prices, costs constant: (k, l) is that of the condition of k in price l.

    Between products of one firm it is the Hessian of the firm's profits: second-order conditions ask that this block be
    negative definite.
    """
    game = _Game(H, arguments, jnp.zeros(prices.shape, bool), demand_at, lambda shares, arguments: costs)
    return _linearise(game, prices).gradient


def profit_hessian(
    demand_at: DemandAt, prices: Float[Array, " J"], costs: Float[Array, " J"], arguments: Any
) -> Float[Array, "J J J"]:
    """Second derivatives of each product's profits in prices, ``d^2 pi_j / dp_k dp_l`` at (j, k, l), costs constant.

    ``pi_j = (p_j - c_j) s_j``. The Hessian of a firm's profits adds up over the firm's products j.
    """
    point, curvature = demand_with_curvature(demand_at, prices, arguments)
    hessian = (prices - costs)[:, None, None] * demand_hessian(point, curvature)
    nobody = jnp.zeros((prices.size, prices.size))
    jacobian, j = price_derivatives(point, curvature, nobody, prices).shares, jnp.arange(prices.size)
    return hessian.at[j, j, :].add(jacobian).at[j, :, j].add(jacobian)


def passthrough(point: DemandPoint, curvature: Curvature, owned: Owned) -> Float[AnyArray, "*T J J"]:
    """Passthrough of marginal costs to equilibrium prices: element (j, k) is ``dp_j / dc_k``. Identity for padding.

    It differentiates ``A(p) (p - c) = s(p)`` totally at the point's prices, which are an equilibrium at the costs that
    they imply under this ownership, ``c = p - eta``.

    Parameters
    ----------
    point, curvature : demand at prices (`demand_with_curvature`). On the host, groups may not lie within groups.
    owned : (J,) codes of firms or (J, J) ownership matrix.
    """
    H = ownership_matrix(owned)
    derivatives = price_derivatives(point, curvature, H, markups(point, H))
    A = markup_matrix(point, H)
    system = A + derivatives.markup_product - derivatives.shares
    return solve_on_host(system, A) if on_host(A) else solve(system, A)


class _Game(eqx.Module):
    """What firms that set prices in one market own, demand, costs, and whose prices are held."""

    H: Float[AnyArray, "J J"]
    arguments: Any
    held: Bool[AnyArray, " J"]
    demand_at: DemandAt = eqx.field(static=True)
    costs_at: CostsAt = eqx.field(static=True)

    def demand(self, prices: AnyArray) -> DemandPoint:
        return self.demand_at(prices, self.arguments)

    def costs(self, shares: AnyArray) -> AnyArray:
        return self.costs_at(shares, self.arguments)

    def free(self, point: DemandPoint) -> AnyArray:
        """Which prices are set: neither those of padding nor those that are held."""
        return point.present & ~self.held

    def conditions(self, point: DemandPoint, prices: Array) -> "_Conditions":
        """First-order conditions of the prices that are set."""
        found = _conditions(point, self.H, prices, self.costs(point.shares()))
        return _Conditions(*(jnp.where(self.held, 0.0, part) for part in found))


class _Conditions(NamedTuple):
    """The profit gradient and the change of prices in the zeta-markup equation, zero for padding."""

    gradient: Float[AnyArray, " J"]
    step: Float[AnyArray, " J"]


def _conditions(point: DemandPoint, owned: Owned, prices: Array, costs: Array) -> _Conditions:
    found = profit_gradient(point, owned, prices - costs)
    gradient = jnp.where(point.present, found.gradient, 0.0)
    scale = found.lambda_diagonal * own_share(owned)
    usable = scale != 0
    # without any demand, because shares underflow at a very high price, zeta has no value: start again from costs
    step = jnp.where(usable, -gradient / jnp.where(usable, scale, 1.0), costs - prices)
    return _Conditions(gradient, jnp.where(point.present, step, 0.0))


def _solve_lanes(method: FixedPointMethod, game: _Game, start: Array, limits: FixedPointLimits) -> FixedPoint:
    if method.host is not None:
        return _solve(method, (game, start), limits)
    agents = jax.eval_shape(game.demand, start).weights.size
    return solve_lanes(partial(_solve, method), (game, start), limits, start.size * agents)


def _solve(method: FixedPointMethod, arguments: tuple[_Game, Array], limits: FixedPointLimits) -> FixedPoint:
    game, start = arguments

    def conditions(prices: Array) -> _Conditions:
        return game.conditions(game.demand(prices), prices)

    present = game.demand(start).present

    def contraction(prices: Array) -> Image:
        found = conditions(prices)
        image = prices + found.step
        return Image(image, relative_gap(found.gradient, found.step, _largest(present, prices, image)))

    if method.host is not None:
        found = _on_host(method.host, game, start)
    elif method.name == "newton":
        few = jnp.minimum(_PLAIN_STEPS, limits.max_evaluations)
        plain = limits._replace(max_evaluations=few)  # type: ignore[arg-type]  # traced, as all limits are here
        found = iterate(FixedPointMethod("simple", norm=method.norm), contraction, start, plain)
    else:
        found = iterate(method, contraction, start, limits, _PLAIN_STEPS, _ACCELERATED_STEPS)
    if method.name == "newton" or (method.name == "anderson" and method.safeguard):
        found = safeguarded(found, partial(_newton, game), start, limits)
    point = game.demand(found.value)
    return _checked(found, point, game.free(point), game.conditions(point, found.value), start)


def relative_gap(gradient: Array, step: Array, largest: Array) -> Array:
    """The profit gradient, or steps relative to the largest price where these are larger: what loops make small."""
    relative = _RELATIVE * step / largest
    return jnp.where(jnp.abs(relative) > jnp.abs(gradient), relative, gradient)


def _on_host(routine: Any, game: _Game, start: Array) -> FixedPoint:
    """By a `blpjax.machine.host_routines.HostRoutine`."""
    leaves, structure = jax.tree.flatten(game)

    def conditions_of(arrays: list[Any]) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        known = jax.tree.unflatten(structure, arrays[1:])
        return known.free(known.demand(arrays[0])), partial(_conditions_on_host, known)

    counter, number = jax.ShapeDtypeStruct((), int), jax.ShapeDtypeStruct((), float)
    outcome = (jax.ShapeDtypeStruct(start.shape, float), counter, counter, counter, number)
    solve_market = partial(routine.find_prices, conditions_of)
    return FixedPoint(*jax.pure_callback(solve_market, outcome, start, *leaves, vmap_method="sequential"))


def _conditions_on_host(game: _Game, prices: AnyArray) -> tuple[AnyArray, AnyArray]:
    """What `_conditions` are, with NumPy; anything for padding."""
    point = game.demand(prices)
    shares = point.shares()
    xp, margins = namespace(shares), prices - game.costs(shares)
    gradient = shares - markup_matrix(point, game.H) @ margins
    scale = point.lambda_diagonal() * xp.diagonal(game.H)
    usable = scale != 0
    return gradient, xp.where(usable, -gradient / xp.where(usable, scale, 1.0), -margins)


def _largest(present: Array, *values: Array) -> Array:
    """The largest absolute element that is not padding, or one where all are zero."""
    largest = jnp.abs(jnp.where(present[None, :], jnp.stack(values), 0.0)).max()
    return jnp.where(largest > 0, largest, 1.0)


def _newton(game: _Game, start: Array, limits: FixedPointLimits) -> FixedPoint:
    """Newton on ``p - c - zeta(p)``, damped by its norm.

    The norm of the profit gradient would not do: it vanishes, too, where prices are so high that nobody buys.
    """
    scale = _largest(game.demand(start).present, start)

    def evaluate(prices: Array) -> NewtonPoint:
        linear = _linearise(game, prices)
        point, found = linear.point, linear.conditions
        # the step is -gradient / (Lambda H_jj): both move with prices
        own = jnp.diagonal(game.H)
        jacobian = linear.gradient + (found.step * own)[:, None] * linear.lambda_diagonal
        jacobian = jnp.where(game.free(point)[:, None], jacobian, jnp.eye(prices.size))
        change = jnp.abs(found.step).max()
        residual = jnp.maximum(jnp.abs(found.gradient).max(), change / _largest(point.present, prices))
        return NewtonPoint(
            solve(jacobian, -found.gradient),
            jnp.where(jnp.isfinite(residual), residual, jnp.inf),
            change / scale,
            -change / scale,
        )

    return newton(evaluate, start, limits, math.inf)


class _Linear(NamedTuple):
    """The first-order conditions and the derivatives of the profit gradient and of Lambda in prices, (J, J) each."""

    point: DemandPoint
    conditions: _Conditions
    gradient: Float[Array, "J J"]
    lambda_diagonal: Float[Array, "J J"]


def _linearise(game: _Game, prices: Array) -> _Linear:
    point, curvature = demand_with_curvature(game.demand_at, prices, game.arguments)
    shares = point.shares()
    costs = game.costs(shares)
    derivatives = price_derivatives(point, curvature, game.H, prices - costs)
    # margins move with prices, and with shares where costs do
    margins = jnp.eye(prices.size) - jax.jacfwd(game.costs)(shares) @ derivatives.shares
    gradient = derivatives.shares - derivatives.markup_product - markup_matrix(point, game.H) @ margins
    return _Linear(point, game.conditions(point, prices), gradient, derivatives.lambda_diagonal)


def _checked(found: FixedPoint, point: DemandPoint, free: Array, conditions: _Conditions, start: Array) -> FixedPoint:
    """Replace prices that are not an equilibrium by NaN, and say why."""
    own = own_slopes(point)
    upward = (free & (own >= 0)).any()
    finite = jnp.isfinite(jnp.where(point.present, own + found.value, 0.0)).all()
    status = jnp.where(finite | ~succeeded(found.status), found.status, int(Status.NOT_FINITE))
    status = jnp.where(upward, int(Status.UPWARD_SLOPING), status)
    failed = jnp.where(point.present, jnp.nan, start)
    residual = jnp.abs(conditions.gradient).max()
    return FixedPoint(
        jnp.where(succeeded(status), jnp.where(point.present, found.value, start), failed),
        status,
        found.iterations,
        found.evaluations,
        jnp.where(jnp.isfinite(residual), residual, jnp.inf),
    )


def own_slopes(point: DemandPoint) -> Array:
    """``ds_j / dp_j`` (J,)."""
    found = point.choices()
    P = found.inside
    moved = 1.0 - P
    if point.nests is not None:
        moved = point.nests.scales[:, None] - P
        for level, within in zip(point.nests.levels, found.within, strict=True):
            moved -= level.spread(level.odds)[:, None] * within
    return (P * moved * point.utility_slopes()) @ point.weights


def _residual(prices: Array, game: _Game, start: Array, limits: FixedPointLimits) -> Array:
    point = game.demand(prices)
    gradient = first_order_conditions(point, game.H, prices, game.costs(point.shares()))
    return jnp.where(game.free(point), gradient, prices - start)


def _solve_jacobian(prices: Array, right: Array, game: _Game, start: Array, limits: FixedPointLimits) -> Array:
    linear = _linearise(game, prices)
    jacobian = jnp.where(game.free(linear.point)[:, None], linear.gradient, jnp.eye(prices.size))
    return solve(jacobian, right)
