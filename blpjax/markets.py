"""The only place that maps kernels, which see one market, over the markets of an economy."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from blpjax.economy import Bucket, Economy, Ownership
from blpjax.exceptions import Status
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.contraction import invert_shares, logit_delta
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.kernels.shares import Nests, Tastes, nests_of, shares, tastes
from blpjax.kernels.supply import DemandPoint, Firms, markups
from blpjax.parameters import Coefficients, ParameterLayout, UtilityForm

#: Markets are processed in chunks of at most this many product-agent pairs (32 MiB for each such array).
CHUNK_ELEMENTS = 2**22


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


class MarketTastes(eqx.Module):
    """Parameters as kernels need them: the columns of Sigma that are not all zero, Pi, rho and tau."""

    sigma: Float[Array, "K2 R"]
    pi: Float[Array, "K2 D"]
    rho: Float[Array, " H"]
    tau: Float[Array, " S"]
    node_columns: tuple[int, ...] = eqx.field(static=True)
    form: UtilityForm = eqx.field(static=True)

    @property
    def scale(self) -> float:
        """What utilities are divided by."""
        return self.form.epsilon_scale

    def of_agents(self, market: Bucket) -> Tastes:
        """Tastes C of one market's agents."""
        C = tastes(self.sigma, self.pi, market.nodes[:, list(self.node_columns)], market.demographics)
        if not self.form.transformations:
            return C
        rows, at = [], 0
        for k, transformation in enumerate(self.form.transformations):
            row = C[..., k, :]
            if transformation is not None:
                end = at + len(transformation.parameters)
                row, at = transformation.function(row, *self.tau[at:end]), end
            rows.append(row)
        return jnp.stack(rows, axis=-2)

    def of_groups(self, market: Bucket) -> Nests | None:
        """Groups of one market's products with their nesting parameters."""
        if market.nests is None or market.groups is None:
            return None
        rho = jnp.broadcast_to(self.rho, market.groups.shape) if self.rho.size == 1 else self.rho[market.groups]
        return nests_of(market.nests, rho)


def market_tastes(coefficients: Coefficients, layout: ParameterLayout) -> MarketTastes:
    """Pair columns of nodes with the columns of Sigma that are not all zero."""
    sigma = jnp.asarray(coefficients.sigma)[:, list(layout.sigma_columns)]
    pi, rho, tau = (jnp.asarray(getattr(coefficients, name)) for name in ("pi", "rho", "tau"))
    return MarketTastes(sigma, pi, rho, tau, layout.node_columns, layout.form)


def loop_elements() -> int:
    """How many product-agent pairs go into a chunk of loops that may take very different numbers of steps.

    A chunk takes as many steps as its slowest market. On CPUs large chunks save nothing that would make up for it.
    """
    return 2**16 if jax.default_backend() == "cpu" else CHUNK_ELEMENTS


def map_markets(kernel: Callable[..., Any], bucket: Bucket, *arguments: Any, elements: int | None = None) -> Any:
    """Apply ``kernel(bucket_of_one_market, *arguments_of_one_market)`` to all markets of a bucket.

    Markets are vectorised in chunks of at most so many product-agent pairs, by default `CHUNK_ELEMENTS`, so that memory
    stays bounded whatever their number. Where markets are spread over devices, each device maps its own.
    """
    if bucket.placement is not None:

        def on_device(own: Bucket, *values: Any) -> Any:
            return map_markets(kernel, dataclasses.replace(own, placement=None), *values, elements=elements)

        return bucket.placement.map(on_device, bucket, *arguments)
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
        known = market.shares, market.X2 / scale, C, market.weights, market.availability
        found = invert_shares(*known, begin / scale, limits, method, nests)
        clipped = jnp.zeros(begin.shape, bool)
        if method.clips:
            s = shares(found.value, *known[1:], nests)
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


def demand_point(
    parameters: MarketTastes,
    market: Bucket,
    delta: Float[Array, " J"],
    X2: Float[Array, "J K2"],
    delta_slope: Float[Array, " J"],
    X2_slope: Float[Array, "J K2"],
) -> DemandPoint:
    """Demand of one market at given tastes, mean utilities and X2, with the slopes of both in some variable."""
    scale = parameters.scale
    return DemandPoint(
        delta / scale,
        X2 / scale,
        parameters.of_agents(market),
        market.weights,
        market.availability,
        delta_slope / scale,
        X2_slope / scale,
        market.present,
        parameters.of_groups(market),
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
        found = markups(demand_point(parameters, market, *values), owned)
        return jnp.where(market.present, found, 0.0)

    scattered = zip(economy.buckets, ownership, *map(economy.scatter, point), strict=True)
    return economy.gather([map_markets(kernel, *arrays) for arrays in scattered])
