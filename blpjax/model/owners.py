"""Equilibria after many changes of owners and costs, each in each market that it changes, as one batch of markets."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.mapping import cached_elements
from blpjax.economy.selection import repeat_markets
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.arrays import AnyArray
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.kernels.markups import Firms, ownership_matrix
from blpjax.kernels.nearby import solve_prices_nearby
from blpjax.kernels.shares import inclusive_values
from blpjax.machine.compilation import filtered_program
from blpjax.model.demand import MarketDemand, over_markets
from blpjax.model.model import Model
from blpjax.model.pricing import Pricing, demand_at, market_prices

#: An equilibrium nearby is found in half a dozen evaluations, or else by other means.
NEARBY_EVALUATIONS = 16


class MarketOutcomes(eqx.Module):
    """Numbers of markets (C,) in equilibrium, NaN where none was found, and how the search ended."""

    consumer_surplus: Float[AnyArray, "*C"]
    profits: Float[AnyArray, "*C"]
    inside_share: Float[AnyArray, "*C"]
    mean_price: Float[AnyArray, "*C"]
    status: AnyArray
    residuals: Float[AnyArray, "*C"]


def repeated(model: Model, bucket: int, places: np.ndarray) -> Model:
    """The model on the host of so many markets of one bucket, see `repeat_markets`."""
    chosen = repeat_markets(model.economy, bucket, places)
    variables = {name: values[chosen.rows] for name, values in model.characteristics.variables.items()}
    return dataclasses.replace(
        model,
        economy=chosen.economy,
        characteristics=model.characteristics.replace(variables),
        delta=model.delta[chosen.rows],
        ownership=None,
    )


def base_inverses(model: Model, costs: Float[np.ndarray, " N"]) -> list[tuple[Float[np.ndarray, "T J J"], np.ndarray]]:
    """For each bucket, inverses of derivatives of firms' conditions at observed prices, and where these may be used.

    That is where observed prices satisfy second-order conditions: where they do not, an equilibrium nearby would not be
    one at which firms stay.
    """
    slopes = model.economy.unstack(np.nan_to_num(np.asarray(model.firm_profit_hessians(costs=costs))))
    found = []
    for part, owned, bucket in zip(slopes, model.owned(), model.economy.buckets, strict=True):
        absent = ~np.asarray(bucket.present)
        one = np.eye(part.shape[1])
        square: np.ndarray = np.where(absent[:, :, None] | absent[:, None, :], -one, part)
        within = np.where((np.asarray(owned) == 1) | (one > 0), square, 0.0)
        firm = (within + within.swapaxes(1, 2)) / 2
        usable = np.isfinite(square).all(axis=(1, 2))
        firm = np.where(usable[:, None, None], firm, -one)
        usable &= np.linalg.eigvalsh(firm).max(axis=1) < 0
        safe = np.where(usable[:, None, None], square, one)
        found.append((np.linalg.inv(safe), usable))
    return found


@filtered_program(effort=1)
def outcomes_nearby(
    model: Model,
    owned: Firms | Float[AnyArray, "C J J"],
    costs: Float[AnyArray, "C J"],
    inverse: Float[AnyArray, "C J J"] | None,
    limits: FixedPointLimits,
) -> MarketOutcomes:
    """Outcomes in the C markets of a model, at other owners and costs: see `blpjax.kernels.nearby`."""

    def kernel(local: MarketDemand, owned: Firms | Array, costs: Array, inverse: Array | None = None) -> MarketOutcomes:
        point, start = local.point("prices", {}), local.characteristics.variables["prices"]
        solved = solve_prices_nearby(point, owned, costs, start, limits, inverse)
        return _outcome(local, solved.found, costs, solved.shares, solved.inclusive)

    parts = (owned,), (costs,), *(() if inverse is None else ((inverse,),))
    # a few evaluations are done where arrays are in the cache; longer loops run in groups of their own
    (found,) = over_markets(model, kernel, *parts, elements=None if inverse is None else cached_elements())
    return found


@filtered_program(effort=1)
def outcomes_anywhere(
    model: Model,
    owned: Firms | Float[AnyArray, "C J J"],
    costs: Float[AnyArray, "C J"],
    limits: FixedPointLimits,
    method: FixedPointMethod,
) -> MarketOutcomes:
    """The same for any demand, by the method of `Model.compute_prices`."""

    def kernel(local: MarketDemand, owned: Firms | Array, costs: Array) -> MarketOutcomes:
        start, H = local.characteristics.variables["prices"], ownership_matrix(owned)
        found = market_prices(Pricing(local, costs, model.coefficients.gamma), H, start, limits, None, method, None)
        point = demand_at(found.value, local)
        inclusive = inclusive_values(point.utilities(), point.availability, point.nests)
        return _outcome(local, found, costs, point.shares(), inclusive)

    (found,) = over_markets(model, kernel, (owned,), (costs,))
    return found


def _outcome(local: MarketDemand, found: FixedPoint, costs: Array, s: Array, inclusive: Array) -> MarketOutcomes:
    market, prices = local.market, found.value
    slopes = local.point("prices", {}).utility_slopes()[0]
    slopes = jnp.where((market.weights == 0) & (slopes == 0), -1.0, slopes)
    present = market.present
    return MarketOutcomes(
        (inclusive / -slopes * market.weights).sum(),
        jnp.where(present, (prices - costs) * s, 0.0).sum(),
        jnp.where(present, s, 0.0).sum(),
        jnp.where(present, prices, 0.0).sum() / present.sum(),
        found.status,
        found.residual,
    )
