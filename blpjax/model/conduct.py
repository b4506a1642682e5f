"""Conduct in all markets: markups, profit weights, passthrough and equilibrium prices as pure functions of demand."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from blpjax.economy.conduct import ConductData, MarketData, in_market
from blpjax.economy.loops import Loops, gather_loops
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.arrays import AnyArray
from blpjax.kernels.conduct_prices import conduct_markups, conduct_passthrough, solve_conduct_prices
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.kernels.priced_market import PricedMarket
from blpjax.model.demand import Demand, MarketDemand, over_markets
from blpjax.model.pricing import Pricing, costs_at, demand_at


class Markups(Loops):
    """Markups ``p - c`` (N,), NaN in markets without any, with a status (T,) of each market."""

    markups: Float[AnyArray, " N"]


def markups(demand: Demand, conduct: ConductData) -> Markups:
    """Markups at the prices of `demand`, in their units.

    The status of a market is `Status.NOT_FINITE` where some are not finite, and `Status.UPWARD_SLOPING` where demand
    for some product does not fall in its own price.
    """

    def kernel(local: MarketDemand, known: MarketData) -> FixedPoint:
        return conduct_markups(conduct.conduct, _market(local, known))

    found = over_markets(demand, kernel, conduct.spread(demand.economy))
    values = demand.economy.gather([part.value for part in found])
    return Markups(markups=values, **gather_loops(demand.economy, found).fields())


def passthrough(demand: Demand, conduct: ConductData) -> tuple[Float[Array, "T J J"], ...]:
    """Derivatives of equilibrium prices in marginal costs ``dp_j / dc_k``, one array for each bucket."""

    def kernel(local: MarketDemand, known: MarketData) -> Array:
        return conduct_passthrough(conduct.conduct, _market(local, known))

    return over_markets(demand, kernel, conduct.spread(demand.economy))


def equilibrium_prices(
    demand: Demand,
    conduct: ConductData,
    costs: Float[Array, " N"],
    start: Float[Array, " N"],
    limits: FixedPointLimits,
    held: Bool[AnyArray, " N"],
    *,
    method: FixedPointMethod,
    costs_type: str | None,
) -> tuple[FixedPoint, ...]:
    """Equilibrium prices from `start`, one batch of loops for each bucket: see `pricing.equilibrium_prices`."""
    gamma = jnp.asarray(demand.coefficients.gamma)

    def kernel(local: MarketDemand, known: MarketData, costs: Array, start: Array, held: Array) -> FixedPoint:
        pricing = Pricing(local, costs, gamma)
        market = in_market(demand_at, local, start, known)
        return solve_conduct_prices(conduct.conduct, costs_at(costs_type), market, pricing, held, method, limits)

    economy = demand.economy
    arrays = conduct.spread(economy), *map(economy.spread, (costs, start, held))
    return over_markets(demand, kernel, *arrays)


def _market(local: MarketDemand, known: MarketData) -> PricedMarket:
    return in_market(demand_at, local, local.characteristics.variables["prices"], known)
