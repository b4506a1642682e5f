"""Pricing of firms in all markets: pure functions of demand and ownership."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from blpjax.economy.buckets import Bucket, Economy
from blpjax.economy.mapping import map_markets
from blpjax.economy.ownership import Ownership
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels import equilibrium
from blpjax.kernels import markups as markup_kernels
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.kernels.demand import DemandPoint, demand_with_curvature, without_curvature
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.kernels.markups import Firms
from blpjax.model.demand import Demand, MarketDemand, linear_change, over_markets
from blpjax.model.tastes import MarketTastes, demand_point, market_tastes


def markups(demand: Demand, owned: Ownership) -> Float[AnyArray, " N"]:
    """Markups ``p - c`` that make observed prices optimal, in prices' units."""
    known = demand.characteristics
    X1_slope, X2_slope = known.slopes("prices")
    point = demand.delta, known.evaluate({})[1], X1_slope @ demand.coefficients.beta, X2_slope
    return compute_markups(demand.economy, market_tastes(demand.coefficients, demand.layout), owned, point)


def compute_markups(
    economy: Economy,
    parameters: MarketTastes,
    ownership: tuple[AnyArray | Firms, ...],
    point: tuple[Float[AnyArray, " N"], Float[AnyArray, "N K2"], Float[AnyArray, " N"], Float[AnyArray, "N K2"]],
) -> Float[AnyArray, " N"]:
    """Markups ``p - c`` of firms that set prices, at given tastes (equation 3.7).

    `point` has mean utilities, X2, and the derivatives of both in prices (`DemandPoint`), which are data to estimation:
    it need not evaluate formulas. Differentiable in everything.
    """

    def kernel(market: Bucket, owned: AnyArray | Firms, *values: AnyArray) -> AnyArray:
        found = markup_kernels.markups(demand_point(parameters, market, *values), owned)
        return namespace(found).where(market.present, found, 0.0)

    scattered = zip(economy.buckets, ownership, *map(economy.scatter, point), strict=True)
    return economy.gather([map_markets(kernel, *arrays) for arrays in scattered])


def passthrough(demand: Demand, owned: Ownership) -> tuple[Float[AnyArray, "T J J"], ...]:
    """Derivatives of equilibrium prices in marginal costs ``dp_j / dc_k``, one array for each bucket.

    On the host only where `passthrough_has_formulas`.
    """
    linear = demand.characteristics.is_linear("prices")

    def kernel(local: MarketDemand, owned: AnyArray) -> AnyArray:
        prices = local.characteristics.variables["prices"]
        if not linear:
            return equilibrium.passthrough(*demand_with_curvature(demand_at, prices, local), owned)
        point = demand_at(prices, local)
        return equilibrium.passthrough(point, without_curvature(point), owned)

    return over_markets(demand, kernel, owned)


def passthrough_has_formulas(demand: Demand) -> bool:
    """Whether passthrough needs no automatic derivatives: prices are linear in utility, groups not within groups."""
    return demand.characteristics.is_linear("prices") and all(b.outer is None for b in demand.economy.buckets)


def profit_gradients(
    demand: Demand, owned: Ownership, prices: Float[Array, " N"], costs: Float[Array, " N"]
) -> Float[Array, " N"]:
    """Firms' first-order conditions ``s_j + sum_k H_jk (p_k - c_k) ds_k / dp_j``, zero in equilibrium."""

    def kernel(local: MarketDemand, owned: Array, prices: Array, costs: Array) -> Array:
        H = markup_kernels.ownership_matrix(owned)
        return equilibrium.first_order_conditions(demand_at(prices, local), H, prices, costs)

    economy = demand.economy
    return economy.gather(over_markets(demand, kernel, owned, economy.spread(prices), economy.spread(costs)))


def firm_profit_hessians(
    demand: Demand, owned: Ownership, prices: Float[Array, " N"], costs: Float[Array, " N"]
) -> tuple[Float[Array, "T J J"], ...]:
    """Derivatives of `profit_gradients` in prices, rows by condition, one array for each bucket."""

    def kernel(local: MarketDemand, owned: Array, prices: Array, costs: Array) -> Array:
        H = markup_kernels.ownership_matrix(owned)
        return equilibrium.first_order_jacobian(demand_at, H, prices, costs, local)

    economy = demand.economy
    return over_markets(demand, kernel, owned, economy.spread(prices), economy.spread(costs))


def profit_hessians(
    demand: Demand, prices: Float[Array, " N"], costs: Float[Array, " N"]
) -> tuple[Float[Array, "T J J J"], ...]:
    """Second derivatives of products' profits in prices, ``d^2 pi_j / dp_k dp_l``, one array for each bucket."""

    def kernel(local: MarketDemand, prices: Array, costs: Array) -> Array:
        return equilibrium.profit_hessian(demand_at, prices, costs, local)

    economy = demand.economy
    return over_markets(demand, kernel, economy.spread(prices), economy.spread(costs))


class Pricing(eqx.Module):
    """What equilibrium prices of one market depend on: demand, and marginal costs at its shares."""

    demand: MarketDemand
    costs: Float[AnyArray, " J"]
    gamma: Float[AnyArray, " K3"]


def equilibrium_prices(
    demand: Demand,
    owned: Ownership,
    costs: Float[Array, " N"],
    start: Float[Array, " N"],
    limits: FixedPointLimits,
    held: Bool[AnyArray, " N"] | None = None,
    *,
    method: FixedPointMethod,
    costs_type: str | None,
) -> tuple[FixedPoint, ...]:
    """Equilibrium prices from `start`, one batch of loops for each bucket.

    Parameters
    ----------
    costs : (N,) marginal costs at the shares of `demand`.
    held : (N,) whose prices stay at `start`.
    costs_type : how costs move with shares in X3, ``'linear'`` or ``'log'``; None when they are constant.
    """
    gamma = jnp.asarray(demand.coefficients.gamma)

    def kernel(local: MarketDemand, owned: Array, costs: Array, start: Array, held: Array) -> FixedPoint:
        return market_prices(Pricing(local, costs, gamma), owned, start, limits, held, method, costs_type)

    economy = demand.economy
    known = *map(economy.spread, (costs, start)), economy.spread(jnp.zeros(costs.shape, bool) if held is None else held)
    return over_markets(demand, kernel, owned, *known)


def market_prices(
    pricing: Pricing,
    owned: Array,
    start: Float[Array, " J"],
    limits: FixedPointLimits,
    held: Bool[Array, " J"] | None,
    method: FixedPointMethod,
    costs_type: str | None,
) -> FixedPoint:
    """Equilibrium prices of one market: see `equilibrium_prices`."""
    return equilibrium.solve_prices(
        _priced_demand_at, costs_at(costs_type), owned, start, pricing, method, limits, held
    )


def demand_at(prices: AnyArray, demand: MarketDemand) -> DemandPoint:
    """Demand of one market at prices, with its slopes in these."""
    return demand.point("prices", {"prices": prices})


def _priced_demand_at(prices: AnyArray, pricing: Pricing) -> DemandPoint:
    return demand_at(prices, pricing.demand)


def costs_at(costs_type: str | None) -> equilibrium.CostsAt:
    """Marginal costs at given shares as a function of a `Pricing`; constant without a type."""
    return {None: _constant_costs, "linear": _linear_costs, "log": _log_costs}[costs_type]


def _constant_costs(shares: AnyArray, pricing: Pricing) -> AnyArray:
    return pricing.costs


def _cost_change(shares: AnyArray, pricing: Pricing) -> AnyArray:
    """``(X3(s') - X3(s)) gamma``; zero for padding, whose shares are none."""
    present = pricing.demand.market.present
    known = pricing.demand.characteristics
    safe = namespace(present, shares).where(present, shares, known.variables["shares"])
    return linear_change(known, "X3", pricing.gamma, {"shares": safe})


def _linear_costs(shares: AnyArray, pricing: Pricing) -> AnyArray:
    return pricing.costs + _cost_change(shares, pricing)


def _log_costs(shares: AnyArray, pricing: Pricing) -> AnyArray:
    change = _cost_change(shares, pricing)
    return pricing.costs * namespace(change).exp(change)
