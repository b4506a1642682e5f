"""What estimated demand implies in all markets: pure functions of all parameters, mean utilities and data.

Results methods call these functions at the estimates. Being functions of every parameter, they can as well be
differentiated for standard errors or mapped over draws.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.characteristics import Characteristics
from blpjax.economy import Bucket, Economy
from blpjax.kernels import outputs
from blpjax.kernels.shares import probabilities
from blpjax.markets import map_markets, market_tastes
from blpjax.parameters import Coefficients, ParameterLayout


class Demand(eqx.Module):
    """Demand at given parameters and mean utilities `delta` (N,), which are those at the variables' observed values."""

    economy: Economy
    characteristics: Characteristics
    coefficients: Coefficients
    delta: Float[Array, " N"]
    layout: ParameterLayout = eqx.field(static=True)

    def utilities(self, changes: dict[str, Float[Array, " N"]]) -> tuple[Float[Array, " N"], Float[Array, "N K2"]]:
        """Mean utilities and X2 after some variables have changed: ``delta + (X1(x') - X1(x)) beta``."""
        if not changes:
            return self.delta, self.characteristics.evaluate({})[1]
        X1, _ = self.characteristics.evaluate({})
        X1_changed, X2_changed = self.characteristics.evaluate(changes)
        return self.delta + (X1_changed - X1) @ self.coefficients.beta, X2_changed


@eqx.filter_jit
def choice_probabilities(
    demand: Demand, delta: Float[Array, " N"] | None, changes: dict[str, Float[Array, " N"]]
) -> tuple[Float[Array, "T J I"], ...]:
    """Choice probabilities, one array for each bucket, after changes of variables.

    With `delta` (N,), these are the mean utilities instead of the estimated ones updated with the changes.
    """
    updated, X2 = demand.utilities(changes)
    tastes = market_tastes(demand.coefficients, demand.layout)

    def kernel(market: Bucket, delta: Array, X2: Array) -> Array:
        return probabilities(delta[:, None] + X2 @ tastes.of_agents(market), market.availability)[0]

    values = demand.economy.scatter(updated if delta is None else delta), demand.economy.scatter(X2)
    return tuple(map_markets(kernel, *arrays) for arrays in zip(demand.economy.buckets, *values, strict=True))


@eqx.filter_jit
def market_shares(
    demand: Demand, delta: Float[Array, " N"] | None, changes: dict[str, Float[Array, " N"]]
) -> Float[Array, " N"]:
    """Market shares after changes of variables; arguments are those of `choice_probabilities`."""
    parts = choice_probabilities(demand, delta, changes)
    pairs = zip(parts, demand.economy.buckets, strict=True)
    return demand.economy.gather([jnp.einsum("tji,ti->tj", part, bucket.weights) for part, bucket in pairs])


@eqx.filter_jit
def demand_jacobians(demand: Demand, name: str | None) -> tuple[Float[Array, "T J J"], ...]:
    """Derivatives ``ds_j / dx_k``, one array for each bucket, in a variable, or in delta when `name` is None."""
    delta, X2 = demand.utilities({})
    if name is None:
        delta_slope, X2_slope = jnp.ones_like(delta), jnp.zeros_like(X2)
    else:
        X1_slope, X2_slope = demand.characteristics.slopes(name)
        delta_slope = X1_slope @ demand.coefficients.beta
    tastes = market_tastes(demand.coefficients, demand.layout)

    def kernel(market: Bucket, delta: Array, X2: Array, delta_slope: Array, X2_slope: Array) -> Array:
        C = tastes.of_agents(market)
        return outputs.demand_jacobian(delta, X2, C, market.weights, market.availability, delta_slope, X2_slope)

    scatter = demand.economy.scatter
    values = scatter(delta), scatter(X2), scatter(delta_slope), scatter(X2_slope)
    return tuple(map_markets(kernel, *arrays) for arrays in zip(demand.economy.buckets, *values, strict=True))


@eqx.filter_jit
def elasticities(demand: Demand, name: str | None) -> tuple[Float[Array, "T J J"], ...]:
    """Elasticities ``x_k / s_j ds_j / dx_k``, one array for each bucket; x is delta when `name` is None."""
    x = demand.economy.scatter(demand.delta if name is None else demand.characteristics.variables[name])
    shares = demand.economy.scatter(market_shares(demand, None, {}))
    jacobians = demand_jacobians(demand, name)
    return tuple(jax.vmap(outputs.elasticities)(*arrays) for arrays in zip(jacobians, x, shares, strict=True))


@eqx.filter_jit
def diversion_ratios(demand: Demand, name: str | None) -> tuple[Float[Array, "T J J"], ...]:
    """Diversion ratios, one array for each bucket; the outside good stands on the diagonal."""
    return tuple(jax.vmap(outputs.diversion_ratios)(jacobian) for jacobian in demand_jacobians(demand, name))
