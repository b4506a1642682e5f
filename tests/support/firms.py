"""Markets in which firms set prices: demand as the kernels want it, which depends on prices in four ways."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from blpjax.kernels import equilibrium
from blpjax.kernels.demand import DemandPoint, demand_with_curvature
from tests.support.economies import I, J, market, pad


class Firms(NamedTuple):
    """A market (arrays as in `tests.support.economies.Market`), its firms (J,), costs (J,), tastes for prices (I,)."""

    base: Any  # mean utilities without prices
    slope: Any  # of mean utility in price
    X2: Any
    C: Any
    price_tastes: Any
    weights: Any
    availability: Any
    costs: Any
    firms: Any
    present: Any


def firms(seed: int, products: int = J, agents: int = I, mass: float = 1.0, slope: float = -2.0) -> Firms:
    """Simulate a market, with places for this many products and agents."""
    rng = np.random.default_rng(seed)
    small = market(seed, level=1.0, sigma=0.7, mass=mass)
    costs, codes, tastes = rng.uniform(0.5, 2.0, J), np.arange(J) % 3, -0.7 * np.exp(0.4 * rng.normal(size=I))
    large = pad(small, products, agents)
    more = products - J
    return Firms(
        large.delta,
        np.array(slope),
        large.X2,
        large.C,
        np.pad(tastes, (0, agents - I)),
        large.weights,
        large.availability,
        np.pad(costs, (0, more), constant_values=1.0),
        np.pad(codes, (0, more), constant_values=-1),
        np.arange(products) < J,
    )


def arrays(economy: Firms) -> Firms:
    return Firms(*map(jnp.asarray, economy))


def _point(f: Firms, delta: Any, column: Any, delta_slope: Any, column_slope: Any) -> DemandPoint:
    return DemandPoint(
        delta,
        jnp.column_stack([f.X2, column]),
        jnp.concatenate([f.C, f.price_tastes[None, :]]),
        f.weights,
        f.availability,
        delta_slope,
        jnp.column_stack([jnp.zeros_like(f.X2), column_slope]),
        f.present,
    )


def in_X1(prices: Any, f: Firms) -> DemandPoint:
    zero = jnp.zeros_like(prices)
    return _point(f, f.base + f.slope * prices, zero, f.slope + zero, zero)


def in_X2(prices: Any, f: Firms) -> DemandPoint:
    zero = jnp.zeros_like(prices)
    return _point(f, f.base, 2.0 * prices, zero, 2.0 + zero)


def in_both(prices: Any, f: Firms) -> DemandPoint:
    zero = jnp.zeros_like(prices)
    return _point(f, f.base + f.slope * prices, prices, f.slope + zero, 1.0 + zero)


def in_logarithms(prices: Any, f: Firms) -> DemandPoint:
    """Slopes of utility that depend on prices: logarithms in X2, squares in X1."""
    delta = f.base + 0.5 * f.slope * prices - 0.1 * prices**2
    return _point(f, delta, 3.0 * jnp.log(prices), 0.5 * f.slope - 0.2 * prices, 3.0 / prices)


DEMANDS: dict[str, Callable[[Any, Firms], DemandPoint]] = {
    "prices in X1": in_X1,
    "prices in X2": in_X2,
    "prices in both": in_both,
    "logarithms of prices": in_logarithms,
}


def fixed_costs(shares: Any, f: Firms) -> Any:
    return f.costs


def returns_to_scale(shares: Any, f: Firms) -> Any:
    """Marginal costs that fall in own shares."""
    return f.costs * jnp.exp(-0.8 * shares)


def partial_ownership(seed: int = 5, products: int = J) -> np.ndarray:
    """An asymmetric ownership matrix with other numbers than zero and one, and a diagonal that is not one."""
    rng = np.random.default_rng(seed)
    H = rng.uniform(0.0, 0.5, (products, products))
    np.fill_diagonal(H, rng.uniform(0.8, 1.0, products))
    return H


def passthrough(demand: Any, owned: Any, prices: Any, f: Firms) -> jax.Array:
    """Passthrough at these prices."""
    return equilibrium.passthrough(*demand_with_curvature(demand, prices, f), owned)


def plain_shares(point: DemandPoint) -> jax.Array:
    """Shares as JAX would differentiate them by itself."""
    e = point.availability * jnp.exp(point.delta[:, None] + point.X2 @ point.C)
    return (e / (1.0 + e.sum(axis=0))[None, :]) @ point.weights


def plain_markup_product(point: DemandPoint, H: Any, eta: Any) -> jax.Array:
    """``A eta`` with A as its definition says, dense."""
    e = point.availability * jnp.exp(point.delta[:, None] + point.X2 @ point.C)
    P = e / (1.0 + e.sum(axis=0))[None, :]
    R = P * (point.delta_slope[:, None] + point.X2_slope @ point.C) * point.weights[None, :]
    demand = jnp.diag(R.sum(axis=1)) - P @ R.T  # ds_j / dp_k
    return -(H * demand.T) @ eta
