"""Equilibrium prices of one market under any conduct: ``p = c + m(p)``, and passthrough.

That map need not contract. Steps of half its length come near an equilibrium, and Newton's method on the difference
solves for it. Where firms set prices, `blpjax.kernels.equilibrium` is faster.
"""

import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from blpjax.exceptions import Status, succeeded
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.conduct import Conduct
from blpjax.kernels.equilibrium import CostsAt, own_slopes
from blpjax.kernels.fixed_point import FixedPoint, Image, NewtonPoint, iterate, newton, safeguarded
from blpjax.kernels.implicit import implicit
from blpjax.kernels.lanes import solve_lanes
from blpjax.kernels.linear_algebra import solve
from blpjax.kernels.priced_market import PricedMarket

#: Newton begins after so many steps of half the length of the map, and where it fails so many more follow.
_DAMPED_STEPS, _MORE_STEPS = 10, 200

_HALF = 0.5


def conduct_markups(conduct: Conduct, market: PricedMarket) -> FixedPoint:
    """Markups at the market's prices, NaN where they do not exist, with a status; zero for absent products.

    They do not exist where they are not finite, and where demand for some product does not fall in its own price.
    """
    point = market.point()
    found = jnp.where(point.present, conduct.markups(market), 0.0)
    status = _status(point, jnp.ones(found.shape, bool), found)
    one = jnp.ones((), int)
    value = jnp.where(succeeded(status), found, jnp.where(point.present, jnp.nan, 0.0))
    return FixedPoint(value, status, one, one, jnp.zeros(()))


def solve_conduct_prices(
    conduct: Conduct,
    costs_at: CostsAt,
    market: PricedMarket,
    costs: Any,
    held: Bool[Array, " J"],
    method: FixedPointMethod,
    limits: FixedPointLimits,
) -> FixedPoint:
    """Prices ``p = c(s(p)) + m(p)``, from the market's prices.

    Differentiable to any order in every array, by the implicit function theorem. Prices are NaN unless the status is a
    success: see `blpjax.kernels.equilibrium.solve_prices`.

    Parameters
    ----------
    costs_at, costs : marginal costs ``costs_at(shares, costs)`` (J,). Firms take them as given.
    market : where the search starts; absent products keep their prices.
    held : (J,) whose prices stay.
    method : ``'newton'``, which begins with a few steps of half the map's length and goes on with them where it fails;
        ``'simple'``, ``'squarem'`` and ``'anderson'`` iterate on these steps; ``'return'`` returns the start.
    limits : the loop ends when the gap ``p - c - m``, relative to the largest price, is at most ``atol + rtol |p|``.

    Returns
    -------
    FixedPoint whose residual is the largest gap relative to the largest price.
    """
    game = _Game(conduct, market, costs, held, costs_at)
    if method.name == "return":
        returned = iterate(method, lambda prices: prices, market.prices, limits)
        gap = jax.lax.stop_gradient(_size(_gap(market.prices, game), market.prices))
        return eqx.tree_at(lambda f: f.residual, returned, gap)
    return implicit(partial(_solve_lanes, method), _residual, _solve_slopes, game, limits)


def conduct_passthrough(conduct: Conduct, market: PricedMarket) -> Float[Array, "J J"]:
    """``dp_j / dc_k = (I - dm / dp)^{-1}`` at the market's prices, an equilibrium at the costs that they imply."""
    moved = jnp.where(market.present[:, None], conduct.markup_slopes(market), 0.0)
    return market.inverse(jnp.eye(market.prices.size) - moved)


class _Game(eqx.Module):
    """A market in which prices are set, and all that equilibrium prices depend on."""

    conduct: Conduct
    market: PricedMarket
    costs: Any
    held: Bool[Array, " J"]
    costs_at: CostsAt = eqx.field(static=True)

    def free(self) -> Array:
        return self.market.present & ~self.held


def _gap(prices: Array, game: _Game) -> Array:
    """``p - c - m``, zero where prices are not set."""
    market = game.market.at(prices)
    return jnp.where(game.free(), prices - game.costs_at(market.shares(), game.costs) - game.conduct.markups(market), 0)


def _size(gap: Array, prices: Array) -> Array:
    largest = jnp.abs(gap).max() / jnp.abs(prices).max()
    return jnp.where(jnp.isfinite(gap).all(), largest, jnp.inf)


def _residual(prices: Array, game: _Game, limits: FixedPointLimits) -> Array:
    return jnp.where(game.free(), _gap(prices, game), prices - game.market.prices)


def _slopes(prices: Array, game: _Game) -> Array:
    """Derivatives of the gap, one price after the other, and rows of the identity where prices are not set."""
    moved = game.market.at(prices).price_derivatives(lambda market: _gap(market.prices, game))
    return jnp.where(game.free()[:, None], moved, jnp.eye(prices.size))


def _solve_slopes(prices: Array, right: Array, game: _Game, limits: FixedPointLimits) -> Array:
    return solve(_slopes(prices, game), right)


def _solve_lanes(method: FixedPointMethod, game: _Game, limits: FixedPointLimits) -> FixedPoint:
    agents = jax.eval_shape(game.market.point).weights.size
    return solve_lanes(partial(_solve, method), game, limits, game.market.prices.size * agents)


def _solve(method: FixedPointMethod, game: _Game, limits: FixedPointLimits) -> FixedPoint:
    start = game.market.prices

    def damped(prices: Array) -> Image:
        gap = _gap(prices, game)
        return Image(prices - _HALF * gap, gap / jnp.abs(prices).max())

    if method.name == "newton":
        few = limits._replace(max_evaluations=jnp.minimum(_DAMPED_STEPS, limits.max_evaluations))  # type: ignore[arg-type]
        plain = FixedPointMethod("simple", norm=method.norm)
        found = iterate(plain, damped, start, few)
        found = safeguarded(found, partial(_newton, game), start, limits)
        more = limits._replace(
            max_evaluations=jnp.minimum(found.evaluations + _MORE_STEPS, limits.max_evaluations)  # type: ignore[arg-type]
        )
        found = safeguarded(found, lambda at, rest: iterate(plain, damped, at, rest), start, more)
    else:
        found = iterate(method, damped, start, limits)
    return _checked(found, game)


def _newton(game: _Game, start: Array, limits: FixedPointLimits) -> FixedPoint:
    def evaluate(prices: Array) -> NewtonPoint:
        gap = _gap(prices, game)
        size = _size(gap, prices)
        return NewtonPoint(solve(_slopes(prices, game), -gap), size, size, -size)

    return newton(evaluate, start, limits, math.inf)


def _checked(found: FixedPoint, game: _Game) -> FixedPoint:
    """Replace prices that are no equilibrium by NaN, and say why."""
    point, start = game.market.at(found.value).point(), game.market.prices
    known = _status(point, game.free(), found.value)
    status = jnp.where(
        succeeded(known) | (known == int(Status.NOT_FINITE)) & ~succeeded(found.status), found.status, known
    )
    value = jnp.where(point.present, jnp.where(succeeded(status), found.value, jnp.nan), start)
    return FixedPoint(value, status, found.iterations, found.evaluations, found.residual)


def _status(point: Any, some: Array, values: Array) -> Array:
    """Whether values and slopes of demand are finite, and demand for some products falls in their own prices."""
    own = own_slopes(point)
    finite = jnp.isfinite(jnp.where(point.present, own + values, 0.0)).all()
    upward = (point.present & some & (own >= 0)).any()
    status = jnp.where(finite, int(Status.CONVERGED), int(Status.NOT_FINITE))
    return jnp.where(upward, int(Status.UPWARD_SLOPING), status)
