"""Demand of one market at given tastes and mean utilities, with its slopes and second derivatives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from blpjax.kernels.arrays import AnyArray, namespace, times
from blpjax.kernels.shares import Choices, Nests, Tastes, choices, deviations, share_jacobian, shares


class DemandPoint(eqx.Module):
    """Demand of one market at given prices, and how utilities move with each product's own price.

    Utilities are ``V_ji = delta_j + X2_j' C_i`` (see `blpjax.kernels.shares`). `delta_slope` is ``d delta_j / dp_j``,
    the linear part of utility, `X2_slope` is ``dX2_j / dp_j``, and `present` is false for padding, which must also be
    unavailable. The slopes may be those in another variable than price.
    """

    delta: Float[AnyArray, "*T J"]
    X2: Float[AnyArray, "*T J K2"]
    C: Tastes
    weights: Float[AnyArray, "*T I"]
    availability: Float[AnyArray, "*T J #I"]
    delta_slope: Float[AnyArray, "*T J"]
    X2_slope: Float[AnyArray, "*T J K2"]
    present: Bool[AnyArray, "*T J"]
    nests: Nests | None = None

    def utilities(self) -> Float[AnyArray, "*T J I"]:
        """Utilities V."""
        return self.delta[..., :, None] + deviations(self.X2, self.C)

    def choices(self) -> Choices:
        """Choice probabilities."""
        return choices(self.utilities(), self.availability, self.nests)

    def utility_slopes(self) -> Float[AnyArray, "*T J I"]:
        """``alpha_ji = delta_slope_j + X2_slope_j' C_i``, in utility per unit of price."""
        return self.delta_slope[..., :, None] + deviations(self.X2_slope, self.C)

    def shares(self) -> Float[AnyArray, "*T J"]:
        """Market shares; zero for padding."""
        return shares(self.delta, self.X2, self.C, self.weights, self.availability, self.nests)

    def jacobian(self) -> Float[AnyArray, "*T J J"]:
        """Derivatives ``ds_j / dx_k`` of shares in the variable of the slopes; zero for padding."""
        return share_jacobian(self.choices(), self.weights, self.utility_slopes(), self.nests)

    def lambda_diagonal(self) -> Float[AnyArray, "*T J"]:
        """``Lambda_j = sum_i w_i P_ji alpha_ji / (1 - rho)``, a part of ``ds_j / dp_j``; zero for padding."""
        found = times(self.choices().inside * self.utility_slopes(), self.weights)
        return found if self.nests is None else found * self.nests.scales


#: Demand at given prices, ``demand_at(prices, arguments)``. It must not close over traced values.
DemandAt = Callable[[AnyArray, Any], DemandPoint]


class Curvature(NamedTuple):
    """Second derivatives of utilities in each product's own price: those of ``delta`` (J,) and of ``X2`` (J, K2)."""

    delta: Float[AnyArray, "*T J"]
    X2: Float[AnyArray, "*T J K2"]


def demand_with_curvature(
    demand_at: DemandAt, prices: Float[Array, " J"], arguments: Any
) -> tuple[DemandPoint, Curvature]:
    """Demand at `prices`, and how its slopes move with prices: each product's with its own price only."""
    point, tangent = jax.jvp(lambda p: demand_at(p, arguments), (prices,), (jnp.ones_like(prices),))
    return point, Curvature(tangent.delta_slope, tangent.X2_slope)


def without_curvature(point: DemandPoint) -> Curvature:
    """The curvature of utilities that are linear in prices."""
    xp = namespace(point.delta)
    return Curvature(xp.zeros_like(point.delta_slope), xp.zeros_like(point.X2_slope))


def demand_hessian(point: DemandPoint, curvature: Curvature) -> Float[Array, "J J J"]:
    """Second derivatives of shares in the variable of the point's slopes: ``d^2 s_j / dx_k dx_l`` at (j, k, l).

    `curvature` is that of utilities in each product's own x, zero where they are linear. Zero for padding.
    """
    if point.nests is not None:
        return along_prices(DemandPoint.jacobian, point, curvature)
    P, alpha = point.choices().inside, point.utility_slopes()
    S = P * point.weights[None, :]
    M = P * alpha
    # 2 sum_i w_i P_ji M_ki M_li, one j after the other: no J x J x I array
    hessian = jax.lax.map(lambda row: 2.0 * (M * row[None, :]) @ M.T, S)
    j = jnp.arange(P.shape[0])
    cross = (S * alpha) @ M.T
    hessian = hessian.at[j, j, :].add(-cross).at[j, :, j].add(-cross)
    second = alpha**2 + second_slopes(point, curvature)
    hessian = hessian.at[:, j, j].add(-(S @ (P * second).T))
    return hessian.at[j, j, j].add((S * second).sum(axis=1))


def second_slopes(point: DemandPoint, curvature: Curvature) -> AnyArray:
    """``d alpha_ji / dp_j``."""
    return curvature.delta[..., :, None] + deviations(curvature.X2, point.C)


def along_prices(function: Callable[[DemandPoint], Array], point: DemandPoint, curvature: Curvature) -> Array:
    """Derivatives of a function of demand in each price, on the last axis, one price after the other.

    For what has no formula of its own.
    """

    def moving(values: tuple[Array, ...]) -> Array:
        return function(eqx.tree_at(lambda p: (p.delta, p.X2, p.delta_slope, p.X2_slope), point, values))

    at = (point.delta, point.X2, point.delta_slope, point.X2_slope)

    def in_one(one: Array) -> Array:
        X2, X2_slope = one[:, None] * point.X2_slope, one[:, None] * curvature.X2
        return jax.jvp(moving, (at,), ((one * point.delta_slope, X2, one * curvature.delta, X2_slope),))[1]

    return jnp.moveaxis(jax.lax.map(in_one, jnp.eye(point.delta.size)), 0, -1)
