"""How mean utilities and markups of all markets move with theta, at first and at second order."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.economy.buckets import Bucket
from blpjax.economy.conduct import MarketData, in_market
from blpjax.economy.mapping import cached_elements, map_directions, map_markets
from blpjax.kernels.curvature import Paths, market_curvature
from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.markups import Firms
from blpjax.kernels.slopes import Moves, Slopes, market_slopes, multipliers, slopes_along, weighted_equations
from blpjax.model.demand import MarketDemand, over_markets
from blpjax.model.parameters import Coefficients, parameter_directions
from blpjax.model.pricing import demand_at
from blpjax.model.tastes import demand_point, market_tastes
from blpjax.objective.structure import Solution, StructuralModel


class Values(eqx.Module):
    """What belongs to mean utilities (N,) and to markups, these None without supply; derivatives have more axes."""

    delta: Float[Array, "N *P"]
    markups: Float[Array, "N *P"] | None


def has_tastes(model: StructuralModel) -> bool:
    """Whether there are random coefficients."""
    return model.economy.buckets[0].X2.shape[2] > 0


def moves_by_products(model: StructuralModel) -> bool:
    """Whether formulas are for all parameters at once: common linear tastes, no nests, firms that set prices."""
    bucket = model.economy.buckets[0]
    common = bucket.demographics.ndim == 3 and not model.layout.form.transformations
    return has_tastes(model) and common and bucket.nests is None and _are_firms(model)


def _are_firms(model: StructuralModel) -> bool:
    """Whether markups, if there are any, are those of firms that set prices."""
    return model.data.supply is None or model.data.supply.conduct is None


def solve_along(
    model: StructuralModel, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> tuple[Solution, Values]:
    """Mean utilities, found from `start`, and markups, with derivatives (N, P) of both in theta."""
    if has_tastes(model) and _are_firms(model):
        return _solve_by_market(model, theta, start)

    def solved(theta: Array) -> tuple[Values, Solution]:
        found = model.solve(theta, start)
        return Values(found.inversion.delta, found.markups), found

    values, push, solution = jax.linearize(solved, theta, has_aux=True)
    if theta.size:
        return solution, jax.vmap(push, out_axes=-1)(jnp.eye(theta.size))
    return solution, jax.tree.map(lambda leaf: jnp.zeros((leaf.size, 0)), values)


def market_hessian(
    model: StructuralModel,
    theta: Float[Array, " P"],
    solution: Solution,
    by_theta: Values,
    pulled: Values,
    directions: Float[Array, "B P"],
) -> Float[Array, "B P"]:
    """What the curvature of mean utilities and markups adds to the Hessian of a function of them, times directions.

    It is that of a Lagrangian: the equations that mean utilities and markups solve, weighted by multipliers, at values
    that move linearly with theta. No implicit rule is differentiated.

    Parameters
    ----------
    by_theta, pulled : derivatives of mean utilities and markups in theta, and of the function in these.
    """
    layout, size = model.layout, theta.size
    if model.data.supply is not None and model.data.supply.conduct is not None:
        return _conduct_hessian(model, theta, solution, by_theta, pulled, directions)
    coefficients, scale = model.expand(theta), layout.form.epsilon_scale

    def by_formulas(local: _Local, known: Values, by_theta: Values, pulled: Values) -> Array:
        point = local.point(model, coefficients, known.delta)
        firms = local.owned if isinstance(local.owned, Firms) else None
        weights = multipliers(point, known.markups, firms, scale * pulled.delta, pulled.markups)
        paths = Paths(by_theta.delta / scale, by_theta.markups)
        return market_curvature(point, known.markups, firms, weights, _moves(model, local), paths)

    def kernel(local: _Local, known: Values, by_theta: Values, pulled: Values) -> Array:
        def at(tau: Array) -> tuple[DemandPoint, Array | None]:
            now = jax.tree.map(lambda value, slope: value + slope @ tau, known, by_theta)
            return local.point(model, model.expand(theta + tau), now.delta), now.markups

        weights = multipliers(*at(jnp.zeros(size)), local.owned, scale * pulled.delta, pulled.markups)
        _, push = jax.linearize(
            jax.grad(lambda tau: weighted_equations(*at(tau), local.owned, weights)), jnp.zeros(size)
        )
        return map_directions(known.delta.size * local.market.weights.size, directions.shape[0])(push, directions)

    solved = Values(solution.inversion.delta, solution.markups)
    supply = model.data.supply
    if moves_by_products(model) and (supply is None or all(isinstance(owned, Firms) for owned in supply.ownership)):
        found = model.economy.gather_markets(_over_markets(model, by_formulas, solved, by_theta, pulled))
        return directions @ found.sum(axis=0)
    return model.economy.gather_markets(_over_markets(model, kernel, solved, by_theta, pulled)).sum(axis=0)


def _conduct_hessian(
    model: StructuralModel,
    theta: Float[Array, " P"],
    solution: Solution,
    by_theta: Values,
    pulled: Values,
    directions: Float[Array, "B P"],
) -> Float[Array, "B P"]:
    """`market_hessian` where markups are those of some conduct, functions of mean utilities, which are solved for."""
    supply, layout, economy = model.data.supply, model.layout, model.economy
    assert supply is not None and supply.conduct is not None and pulled.markups is not None
    known_conduct, zero = supply.conduct, jnp.zeros(theta.size)

    def kernel(local: MarketDemand, known: MarketData, slopes: Array, by_delta: Array, by_markups: Array) -> Array:
        prices = local.characteristics.variables["prices"]

        def at(tau: Array, delta: Array) -> MarketDemand:
            moved = model.expand(theta + tau)
            return MarketDemand(local.market, local.characteristics, delta, market_tastes(moved, layout), moved.beta)

        def weighted(tau: Array, there: MarketDemand) -> Array:
            conduct = known_conduct.at(model.expand(theta + tau).kappa).conduct
            found = conduct.markups(in_market(demand_at, there, prices, known))
            return by_markups @ jnp.where(local.market.present, found, 0.0)

        by_markups_alone = jax.grad(lambda delta: weighted(zero, at(zero, delta)))(local.delta)
        right = layout.form.epsilon_scale * (by_delta + by_markups_alone)
        weights = multipliers(demand_at(prices, local), None, None, right, None)

        def lagrangian(tau: Array) -> Array:
            there = at(tau, local.delta + slopes @ tau)
            return weighted_equations(demand_at(prices, there), None, None, weights) + weighted(tau, there)

        _, push = jax.linearize(jax.grad(lagrangian), zero)
        return jax.lax.map(push, directions)

    demand = model.demand(model.expand(theta), solution.inversion.delta)
    arrays = map(economy.scatter, (by_theta.delta, pulled.delta, pulled.markups))
    found = over_markets(demand, kernel, supply.conduct.spread(economy), *arrays, elements=cached_elements())
    return economy.gather_markets(found).sum(axis=0)


class _Local(eqx.Module):
    """One market with who owns what in it, and the derivatives of X1 and X2 in prices; None without a supply side."""

    market: Bucket
    owned: Firms | Array | None
    X1_slope: Float[Array, "J K1"] | None
    X2_slope: Float[Array, "J K2"] | None

    def point(self, model: StructuralModel, coefficients: Coefficients, delta: Float[Array, " J"]) -> DemandPoint:
        """Demand at some parameters and mean utilities."""
        X2, tastes = self.market.X2, market_tastes(coefficients, model.layout)
        if self.X1_slope is None or self.X2_slope is None:
            return demand_point(tastes, self.market, delta, X2, jnp.zeros_like(delta), jnp.zeros_like(X2))
        return demand_point(tastes, self.market, delta, X2, self.X1_slope @ coefficients.beta, self.X2_slope)


def _over_markets(model: StructuralModel, kernel: Callable[..., Any], *values: Any) -> list[Any]:
    """Results of ``kernel(local, *values_of_one_market)`` by bucket. `values` are pytrees of arrays (N, ...)."""
    economy, supply = model.economy, model.data.supply
    slopes = None if supply is None else (supply.X1_slope, supply.X2_slope)
    leaves, structure = jax.tree.flatten((slopes, values))
    scattered = [economy.scatter(leaf) for leaf in leaves]

    def one(market: Bucket, owned: Any, known: Any) -> Any:
        slopes, values = known
        return kernel(_Local(market, owned, *(slopes or (None, None))), *values)

    return [
        map_markets(
            one,
            bucket,
            None if supply is None else supply.ownership[b],
            jax.tree.unflatten(structure, [parts[b] for parts in scattered]),
            elements=cached_elements(),
        )
        for b, bucket in enumerate(economy.buckets)
    ]


def _moves(model: StructuralModel, local: _Local) -> Moves:
    """What elements of theta move in a market."""
    layout, market = model.layout, local.market
    nodes = [layout.node_columns[layout.sigma_columns.index(m)] for _, m in layout.sigma]
    demographics = [d for _, d in layout.pi]
    betas = [k for (k,) in layout.beta]
    first = len(layout.phi)  # of which neither mean utilities nor markups are functions
    B = jnp.concatenate([market.nodes[:, nodes], market.demographics[:, demographics]], axis=1)
    linear = jnp.zeros((market.X2.shape[0], first + len(betas) + len(layout.gamma)))
    if local.X1_slope is not None:
        slopes = local.X1_slope[:, betas] / layout.form.epsilon_scale
        linear = linear.at[:, first : first + len(betas)].set(slopes)
    return Moves(B, linear, tuple(k for k, _ in (*layout.sigma, *layout.pi)))


def _solve_by_market(model: StructuralModel, theta: Array, start: Array) -> tuple[Solution, Values]:
    economy, scale, coefficients = model.economy, model.layout.form.epsilon_scale, model.expand(theta)
    moves = parameter_directions(model.layout, model.fixed)

    def at_once(local: _Local, delta: Array) -> Slopes:
        return market_slopes(local.point(model, coefficients, delta), _moves(model, local), local.owned)

    def along(local: _Local, delta: Array) -> Slopes:
        each = map_directions(delta.size * local.market.weights.size, theta.size)
        return slopes_along(lambda at: local.point(model, at, delta), coefficients, moves, each, local.owned)

    inversion = model.invert(coefficients, start)
    parts = _over_markets(model, at_once if moves_by_products(model) else along, inversion.delta)
    found: Slopes = jax.tree.map(lambda *buckets: economy.gather(buckets), *parts)
    return Solution(inversion, found.eta), Values(scale * found.delta, found.eta_by_parameters)
