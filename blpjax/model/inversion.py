"""The only place that maps kernels, which see one market, over the markets of an economy."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blpjax.economy.buckets import Bucket, Economy
from blpjax.economy.mapping import map_markets
from blpjax.exceptions import Status
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.contraction import ObservedMarket, invert_shares, logit_delta
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.model.tastes import MarketTastes


class Inversion(eqx.Module):
    """Mean utilities and how each market's loop ended.

    `delta` is long (N,); `status`, `iterations`, `evaluations` and `residuals` are (T,) in the sorted order of market
    IDs. `clipped` (N,) says which simulated shares are beyond the bounds of the `FixedPointLimits`; it is false
    everywhere where these are the default ones.
    """

    delta: Float[Array, " N"]
    status: Int[Array, " T"]
    iterations: Int[Array, " T"]
    evaluations: Int[Array, " T"]
    residuals: Float[Array, " T"]
    clipped: Bool[Array, " N"]


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
        closed = jax.vmap(lambda market: parameters.scale * logit_delta(market.shares, parameters.of_groups(market)))
        parts = [closed(bucket) for bucket in economy.buckets]
        zeros = jnp.zeros(economy.market_positions.shape, int)
        nowhere = jnp.zeros(economy.positions.shape, bool)
        status = zeros + int(Status.CONVERGED)
        return Inversion(economy.gather(parts), status, zeros, zeros, zeros.astype(float), nowhere)

    def kernel(market: Bucket, begin: Array) -> tuple[FixedPoint, Array]:
        C, nests, scale = parameters.of_agents(market), parameters.of_groups(market), parameters.scale
        observed = ObservedMarket(market.shares, market.X2 / scale, C, market.weights, market.availability, nests)
        found = invert_shares(observed, begin / scale, limits, method)
        clipped = jnp.zeros(begin.shape, bool)
        if method.clips:
            s = observed.simulate(found.value)
            clipped = (market.shares > 0) & ((s < limits.smallest_share) | (s > limits.largest_share))
        return eqx.tree_at(lambda f: f.value, found, found.value * scale), clipped

    begins = economy.scatter(start)
    pairs = [map_markets(kernel, bucket, begin) for bucket, begin in zip(economy.buckets, begins, strict=True)]
    found = [fixed_point for fixed_point, _ in pairs]
    return Inversion(
        delta=economy.gather([f.value for f in found]),
        status=economy.gather_markets([f.status for f in found]),
        iterations=economy.gather_markets([f.iterations for f in found]),
        evaluations=economy.gather_markets([f.evaluations for f in found]),
        residuals=economy.gather_markets([f.residual for f in found]),
        clipped=economy.gather([clipped for _, clipped in pairs]),
    )
