"""Equilibria at draws of structural errors, with Jacobians of the errors in theta, averaged over draws."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Bool, Float

from blpjax import options
from blpjax.economy.loops import Loops, no_loops
from blpjax.economy.mapping import cached_elements, map_directions
from blpjax.exceptions import Status, succeeded
from blpjax.iteration import Iteration
from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.slopes import Slopes, slopes_along
from blpjax.machine.compilation import filtered_program
from blpjax.machine.memory import require_memory
from blpjax.model import elsewhere, pricing
from blpjax.model.demand import MarketDemand, over_markets
from blpjax.model.model import Model
from blpjax.model.parameters import Coefficients, parameter_directions
from blpjax.model.tastes import market_tastes


class Setting(eqx.Module):
    """Where structural errors are drawn around.

    Attributes
    ----------
    model : the model at the estimates.
    parameters : (Q,) all parameters, the P elements of theta first.
    prices : (N,) expected prices, at which all draws are evaluated; None for equilibrium prices.
    iteration, constant_costs : how to solve for equilibrium prices, as in `Model.compute_prices`.
    """

    model: Model
    parameters: Float[Array, " Q"]
    prices: Float[Array, " N"] | None
    iteration: Iteration | None = eqx.field(static=True)
    constant_costs: bool = eqx.field(static=True)


class Averages(Loops):
    """Averages over draws of Jacobians of xi and omega (N, P), of prices and of shares (N,), all in NumPy.

    A draw counts in the markets where its prices were found and all numbers are finite, which `status` says; averages
    over none are NaN. Loops are those for prices (T, draws). `omega_jacobian` is NaN without a supply side.
    """

    xi_jacobian: np.ndarray
    omega_jacobian: np.ndarray
    prices: np.ndarray
    shares: np.ndarray


def average_realizations(setting: Setting, draws: Iterator[np.ndarray], total: int) -> Averages:
    """Average over draws, several at a time where memory allows.

    Parameters
    ----------
    draws : `total` arrays: mean utilities at observed prices (N, 1), or these and transformed costs (N, 2).
    """
    model = setting.model
    # how the search for prices ended in each market at each draw
    needed = 8 * 4 * total * model.economy.market_positions.size
    require_memory(needed, f"Averages over {total:,} draws of structural errors", "Ask for fewer draws.")
    size = min(total, elsewhere.lanes(model.economy, (model.layout.P + 2) * 2 * model.delta.size))
    sums: Any = None
    outcomes = []
    for first in tqdm.tqdm(range(0, total, size), disable=not options.verbose or size >= total):
        kept = min(size, total - first)
        drawn = [next(draws) for _ in range(kept)]
        drawn += drawn[-1:] * (size - kept)  # all chunks have one size, so that programs are compiled once
        found, loops = _realize_many(setting, jnp.asarray(np.stack(drawn)), np.arange(size) < kept)
        sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
        outcomes.append(jax.tree.map(lambda values, kept=kept: np.asarray(values)[:kept].T, loops))
    totals, counts = jax.device_get(sums)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no draw counts
        averages = [(values.T / counts).T for values in totals]
    if drawn[0].shape[1] == 1:
        averages[1] = np.full_like(averages[0], np.nan)
    together = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *outcomes)
    xi_jacobian, omega_jacobian, prices, shares = averages
    return Averages(
        xi_jacobian=xi_jacobian, omega_jacobian=omega_jacobian, prices=prices, shares=shares, **together.fields()
    )


class Realization(Loops):
    """What one draw implies: Jacobians of xi and omega (N, P), prices and shares (N,), and loops for prices (T,)."""

    xi_jacobian: Float[Array, "N P"]
    omega_jacobian: Float[Array, "N P"]
    prices: Float[Array, " N"]
    shares: Float[Array, " N"]


def realize(setting: Setting, base: Float[Array, "N sides"]) -> Realization:
    """Prices, shares and Jacobians, given mean utilities at observed prices and perhaps transformed costs.

    Can be traced and mapped over settings and draws. The status of a market says whether its prices were found and all
    its numbers are finite.
    """
    model = eqx.tree_at(lambda m: m.delta, setting.model, base[:, 0])
    economy, tilde_costs = model.economy, base[:, 1] if base.shape[1] == 2 else None
    loops: Loops
    if setting.prices is not None:
        prices, loops = setting.prices, no_loops(*economy.market_positions.shape)
    else:
        assert tilde_costs is not None
        costs = jnp.exp(tilde_costs) if model.costs_type == "log" else tilde_costs
        found = model.solve_prices(costs=costs, iteration=setting.iteration, constant_costs=setting.constant_costs)
        prices, loops = found.prices, found
    realized = model.at({"prices": prices})
    xi_jacobian, omega_jacobian = _jacobians(realized, setting.parameters, tilde_costs)
    finite = jnp.isfinite(jnp.column_stack([prices, realized.shares, xi_jacobian, omega_jacobian])).all(axis=1)
    finite_markets = economy.gather_markets([part.all(axis=1) for part in economy.spread(finite)])
    status = jnp.where(succeeded(loops.status) & ~finite_markets, int(Status.NOT_FINITE), loops.status)
    return Realization(
        xi_jacobian=xi_jacobian,
        omega_jacobian=omega_jacobian,
        prices=prices,
        shares=realized.shares,
        **loops.fields() | {"status": status},
    )


@filtered_program(effort=1)
def _realize_many(
    setting: Setting, bases: Float[Array, "draws N sides"], wanted: Bool[Array, " draws"]
) -> tuple[Any, Loops]:
    """Sums over the draws that count, with their numbers (N,), and loops of all draws (draws, T)."""
    found = jax.vmap(lambda base: realize(setting, base))(bases)
    economy = setting.model.economy
    usable = jax.vmap(lambda status: economy.gather(economy.scatter_markets(succeeded(status))))(found.status)
    counted = usable & wanted[:, None]

    def total(values: Array) -> Array:
        included = counted.reshape(*counted.shape, *[1] * (values.ndim - 2))
        return jnp.where(included, values, 0.0).sum(axis=0)

    sums = tuple(total(v) for v in (found.xi_jacobian, found.omega_jacobian, found.prices, found.shares))
    return (sums, counted.sum(axis=0)), Loops(**found.fields())


def _jacobians(
    model: Model, parameters: Float[Array, " Q"], tilde_costs: Float[Array, " N"] | None
) -> tuple[Float[Array, "N P"], Float[Array, "N P"]]:
    """Derivatives of xi and omega in theta at the model's prices and shares, and fixed concentrated parameters.

    Costs in ``d log c = d c / c`` are the drawn ones: at given expected prices they are not those that make prices
    optimal.
    """
    P, known = model.layout.P, model.characteristics
    X1, X3 = known.evaluate({})[0], known.evaluate_X3({})

    if P == 0:
        none = jnp.zeros((model.delta.size, 0))
        return none, none
    if model.conduct is None and model.economy.buckets[0].X2.shape[2] > 0:
        delta_slopes, markup_slopes = _slopes(model, supply=tilde_costs is not None)
    else:

        def solved(theta: Array) -> tuple[Array, Array | None]:
            moved = elsewhere.hold_shares(model, jnp.concatenate([theta, parameters[P:]]))
            return moved.delta, None if tilde_costs is None else moved.markups()

        _, push = jax.linearize(solved, parameters[:P])
        delta_slopes, markup_slopes = jax.vmap(push, out_axes=1)(jnp.eye(P))
    moves = parameter_directions(model.layout, model.coefficients)
    xi_jacobian = delta_slopes - X1 @ moves.beta.T
    if tilde_costs is None or markup_slopes is None:
        return xi_jacobian, jnp.zeros_like(xi_jacobian)
    slope = jnp.exp(-tilde_costs)[:, None] if model.costs_type == "log" else 1.0
    return xi_jacobian, -slope * markup_slopes - X3 @ moves.gamma.T


def _slopes(model: Model, supply: bool) -> tuple[Float[Array, "N P"], Float[Array, "N P"] | None]:
    """Derivatives in theta of mean utilities that reproduce the model's shares, and of markups, by formulas."""
    moves = parameter_directions(model.layout, model.coefficients)

    def kernel(local: MarketDemand, *owned: Array) -> Slopes:
        def point_at(coefficients: Coefficients) -> DemandPoint:
            known = market_tastes(coefficients, model.layout), coefficients.beta
            there = eqx.tree_at(lambda m: (m.tastes, m.beta), local, known)
            return pricing.demand_at(local.characteristics.variables["prices"], there)

        each = map_directions(local.delta.size * local.market.weights.size, model.layout.P)
        return slopes_along(point_at, model.coefficients, moves, each, owned[0] if owned else None)

    found = over_markets(model, kernel, *([model.owned()] if supply else []), elements=cached_elements())
    slopes: Slopes = jax.tree.map(lambda *buckets: model.economy.gather(buckets), *found)
    return model.layout.form.epsilon_scale * slopes.delta, slopes.eta_by_parameters
