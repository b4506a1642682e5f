"""The only place that maps kernels, which see one market, over the markets of an economy."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from blpjax.economy import Bucket, Economy, Ownership
from blpjax.exceptions import Status
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.contraction import invert_shares, logit_delta
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.kernels.shares import tastes
from blpjax.kernels.supply import DemandPoint, Firms, markups
from blpjax.parameters import Coefficients, ParameterLayout

#: Markets are processed in chunks of at most this many product-agent pairs (32 MiB for each such array).
CHUNK_ELEMENTS = 2**22


class Inversion(eqx.Module):
    """Mean utilities and how each market's loop ended.

    `delta` is long (N,); `status`, `iterations`, `evaluations` and `residuals` are (T,) in the sorted order of market
    IDs.
    """

    delta: Float[Array, " N"]
    status: Int[Array, " T"]
    iterations: Int[Array, " T"]
    evaluations: Int[Array, " T"]
    residuals: Float[Array, " T"]


class MarketTastes(eqx.Module):
    """Parameters as kernels need them: the columns of Sigma that are not all zero, and Pi."""

    sigma: Float[Array, "K2 R"]
    pi: Float[Array, "K2 D"]
    node_columns: tuple[int, ...] = eqx.field(static=True)

    def of_agents(self, market: Bucket) -> Float[Array, "K2 I"]:
        """Tastes C of one market's agents."""
        return tastes(self.sigma, self.pi, market.nodes[:, list(self.node_columns)], market.demographics)


def market_tastes(coefficients: Coefficients, layout: ParameterLayout) -> MarketTastes:
    """Pair columns of nodes with the columns of Sigma that are not all zero."""
    sigma = jnp.asarray(coefficients.sigma)[:, list(layout.sigma_columns)]
    return MarketTastes(sigma, jnp.asarray(coefficients.pi), layout.node_columns)


def loop_elements() -> int:
    """How many product-agent pairs go into a chunk of loops that may take very different numbers of steps.

    A chunk takes as many steps as its slowest market. On CPUs large chunks save nothing that would make up for it.
    """
    return 2**16 if jax.default_backend() == "cpu" else CHUNK_ELEMENTS


def map_markets(kernel: Callable[..., Any], bucket: Bucket, *arguments: Any, elements: int | None = None) -> Any:
    """Apply ``kernel(bucket_of_one_market, *arguments_of_one_market)`` to all markets of a bucket.

    Markets are vectorised in chunks of at most so many product-agent pairs, by default `CHUNK_ELEMENTS`, so that memory
    stays bounded whatever their number.
    """
    T, J, width = bucket.size
    chunk = max(1, (CHUNK_ELEMENTS if elements is None else elements) // max(J * width, 1))
    if chunk >= T:
        return jax.vmap(kernel)(bucket, *arguments)
    return jax.lax.map(lambda stacked: kernel(*stacked), (bucket, *arguments), batch_size=chunk)


def invert_economy(
    economy: Economy,
    parameters: MarketTastes,
    start: Float[Array, " N"],
    limits: FixedPointLimits,
    method: FixedPointMethod,
) -> Inversion:
    """Mean utilities of all markets at given tastes, from `start` (N,).

    Without random coefficients this is the closed form of the logit. Differentiable in everything but `start` and
    `limits`.
    """
    if economy.buckets[0].X2.shape[2] == 0:
        parts = [jax.vmap(logit_delta)(bucket.shares) for bucket in economy.buckets]
        zeros = jnp.zeros(economy.market_positions.shape, int)
        return Inversion(economy.gather(parts), zeros + int(Status.CONVERGED), zeros, zeros, zeros.astype(float))

    def kernel(market: Bucket, begin: Array) -> FixedPoint:
        C = parameters.of_agents(market)
        return invert_shares(market.shares, market.X2, C, market.weights, market.availability, begin, limits, method)

    begins = economy.scatter(start)
    found = [map_markets(kernel, bucket, begin) for bucket, begin in zip(economy.buckets, begins, strict=True)]
    return Inversion(
        delta=economy.gather([f.value for f in found]),
        status=economy.gather_markets([f.status for f in found]),
        iterations=economy.gather_markets([f.iterations for f in found]),
        evaluations=economy.gather_markets([f.evaluations for f in found]),
        residuals=economy.gather_markets([f.residual for f in found]),
    )


def pack_firms(ownership: Ownership) -> tuple[Array | Firms, ...]:
    """Ownership by codes of firms as memberships of each market's firms; ownership matrices as they are.

    Codes must not be traced: their numbers decide shapes.
    """
    return tuple(part if part.ndim == 3 else _pack(np.asarray(part)) for part in ownership)


def _pack(codes: np.ndarray) -> Firms:
    local = np.full(codes.shape, -1)
    for t, market in enumerate(codes):
        local[t, market >= 0] = np.unique(market[market >= 0], return_inverse=True)[1].reshape(-1)
    return Firms(jax.device_put(local[:, :, None] == np.arange(local.max() + 1)))


def compute_markups(
    economy: Economy,
    parameters: MarketTastes,
    ownership: tuple[Array | Firms, ...],
    point: tuple[Float[Array, " N"], Float[Array, "N K2"], Float[Array, " N"], Float[Array, "N K2"]],
) -> Float[Array, " N"]:
    """Markups ``p - c`` of firms that set prices, at given tastes (equation 3.7).

    `point` has mean utilities, X2, and the derivatives of both in prices (`DemandPoint`). Differentiable in everything.
    """

    def kernel(market: Bucket, owned: Array | Firms, *values: Array) -> Array:
        delta, X2, delta_slope, X2_slope = values
        C = parameters.of_agents(market)
        present = market.present
        found = markups(
            DemandPoint(delta, X2, C, market.weights, market.availability, delta_slope, X2_slope, present), owned
        )
        return jnp.where(present, found, 0.0)

    scattered = zip(economy.buckets, ownership, *map(economy.scatter, point), strict=True)
    return economy.gather([map_markets(kernel, *arrays) for arrays in scattered])
