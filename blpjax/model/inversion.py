"""Mean utilities that reproduce the observed shares of all markets."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from blpjax.economy.buckets import Bucket, Economy
from blpjax.economy.loops import Loops, gather_loops, no_loops
from blpjax.economy.mapping import loop_elements, map_markets
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.contraction import ObservedMarket, invert_shares, logit_delta
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.model.tastes import MarketTastes, with_offsets


class Inversion(Loops):
    """Mean utilities `delta` (N,), with the loops (T,) that found them.

    `clipped` (N,) says which simulated shares are beyond the bounds of the `FixedPointLimits`; it is false everywhere
    where these are the default ones.
    """

    delta: Float[Any, " N"]
    clipped: Bool[Any, " N"]


def closed_form(economy: Economy, parameters: MarketTastes) -> Float[Array, " N"]:
    """Mean utilities of the (nested) logit, which has no random coefficients."""

    def kernel(market: Bucket) -> Array:
        return parameters.scale * logit_delta(market.shares, parameters.of_groups(market))

    return economy.gather([map_markets(kernel, bucket) for bucket in economy.buckets])


def invert_economy(
    economy: Economy,
    parameters: MarketTastes,
    start: Float[Array, " N"],
    limits: FixedPointLimits,
    method: FixedPointMethod,
) -> Inversion:
    """Mean utilities of all markets at given tastes, from `start` (N,).

    Without random coefficients this is the closed form of the (nested) logit. Differentiable in everything but `start`
    and `limits`.
    """
    if economy.buckets[0].X2.shape[2] == 0:
        loops, nowhere = no_loops(*economy.market_positions.shape), jnp.zeros(economy.positions.shape, bool)
        return Inversion(delta=closed_form(economy, parameters), clipped=nowhere, **loops.fields())

    def kernel(market: Bucket, begin: Array) -> tuple[FixedPoint, Array]:
        C, nests, scale = parameters.of_agents(market), parameters.of_groups(market), parameters.scale
        X2 = market.X2
        if market.offsets is not None:
            X2, C, _ = with_offsets(market.offsets, X2, C, X2)
        observed = ObservedMarket(market.shares, X2 / scale, C, market.weights, market.availability, nests)
        found = invert_shares(observed, begin / scale, limits, method)
        clipped = jnp.zeros(begin.shape, bool)
        if method.clips:
            s = observed.simulate(found.value)
            clipped = (market.shares > 0) & ((s < limits.smallest_share) | (s > limits.largest_share))
        return eqx.tree_at(lambda f: f.value, found, found.value * scale), clipped

    begins = economy.scatter(start)
    pairs = [
        map_markets(kernel, bucket, begin, elements=loop_elements())
        for bucket, begin in zip(economy.buckets, begins, strict=True)
    ]
    found = [fixed_point for fixed_point, _ in pairs]
    return Inversion(
        delta=economy.gather([f.value for f in found]),
        clipped=economy.gather([clipped for _, clipped in pairs]),
        **gather_loops(economy, found).fields(),
    )
