"""What demand implies in all markets: pure functions of all parameters, mean utilities and data.

`blpjax.model.model.Model` calls these functions. Being functions of every parameter, they can as well be differentiated
for standard errors or mapped over draws. Arrays that belong to markets come as parts, one array for each bucket.

Of demand on the host, whose arrays are those of NumPy, functions under `host_or_program` are computed there, too.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from blpjax.economy.buckets import Bucket, Economy
from blpjax.economy.characteristics import Characteristics
from blpjax.economy.mapping import map_markets
from blpjax.economy.ownership import Ownership
from blpjax.exceptions import Status, succeeded
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels import demand as demand_kernels
from blpjax.kernels import substitution
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.kernels.demand import DemandPoint
from blpjax.machine.compilation import filtered_program
from blpjax.model.inversion import Inversion, invert_economy
from blpjax.model.parameters import Coefficients, ParameterLayout
from blpjax.model.tastes import MarketTastes, demand_point, market_tastes

Changes = dict[str, AnyArray]


class Demand(eqx.Module):
    """Demand at given parameters and mean utilities `delta` (N,), which are those at the variables' values.

    Outputs read shares and X2 from `characteristics`; the ones in `economy` are the observed ones, which `delta` was
    inverted from.
    """

    economy: Economy
    characteristics: Characteristics
    coefficients: Coefficients
    delta: Float[AnyArray, " N"]
    layout: ParameterLayout = eqx.field(static=True)

    @property
    def prices(self) -> Float[AnyArray, " N"]:
        """Prices at which demand is evaluated."""
        return self.characteristics.variables["prices"]

    @property
    def shares(self) -> Float[AnyArray, " N"]:
        """Market shares that belong to `delta` and `prices`."""
        return self.characteristics.variables["shares"]

    def utilities(self, changes: Changes) -> Float[AnyArray, " N"]:
        """Mean utilities after some variables have changed: ``delta + (X1(x') - X1(x)) beta``."""
        return self.delta + linear_change(self.characteristics, "X1", self.coefficients.beta, changes)


def host_or_program(effort: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function of demand that is compiled as a `filtered_program`, unless demand is on the host.

    There it is evaluated as it stands: all that it calls must work on NumPy arrays of many markets, too.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = filtered_program(effort)(function)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            if not any(isinstance(argument, Demand) and argument.economy.on_host for argument in arguments):
                return compiled(*arguments)
            with np.errstate(all="ignore"):
                return function(*arguments)

        return call

    return decorate


def linear_change(characteristics: Characteristics, matrix: str, coefficients: AnyArray, changes: Changes) -> AnyArray:
    """``(X(x') - X(x)) b`` for the matrix ``'X1'`` or ``'X3'``, from the columns that depend on what has changed."""
    before = characteristics.variables
    after = {**before, **changes}
    some = next(iter(before.values()))
    xp = namespace(some)
    total = xp.zeros_like(some)
    for k, column in enumerate(getattr(characteristics, f"{matrix}_columns")):
        if set(column.inputs) & set(changes):
            total += (column.evaluate(after, xp) - column.evaluate(before, xp)) * coefficients[k]
    return total


class MarketDemand(eqx.Module):
    """Demand in one market, as kernels need it: variables, `delta` (J,) and parameters. On the host, in many."""

    market: Bucket
    characteristics: Characteristics
    delta: Float[AnyArray, "*T J"]
    tastes: MarketTastes
    beta: Float[AnyArray, " K1"]

    def mean_utilities(self, changes: Changes) -> Float[AnyArray, "*T J"]:
        """``delta + (X1(x') - X1(x)) beta``."""
        return self.delta + linear_change(self.characteristics, "X1", self.beta, changes)

    def point(self, name: str | None, changes: Changes) -> DemandPoint:
        """Demand after changes, with slopes in a variable, or in delta when `name` is None."""
        X2 = self.characteristics.evaluate(changes)[1]
        if name is None:
            xp = namespace(X2)
            delta_slope, X2_slope = xp.ones_like(self.delta), xp.zeros_like(X2)
        else:
            X1_slope, X2_slope = self.characteristics.slopes(name, changes)
            delta_slope = X1_slope @ self.beta
        delta = self.mean_utilities(changes)
        return demand_point(self.tastes, self.market, delta, X2, delta_slope, X2_slope)

    def point_at(self, delta: Float[AnyArray, "*T J"], changes: Changes) -> DemandPoint:
        """Demand at given mean utilities after changes, without slopes."""
        X2 = self.characteristics.evaluate(changes)[1]
        xp = namespace(X2)
        return demand_point(self.tastes, self.market, delta, X2, xp.zeros_like(delta), xp.zeros_like(X2))


def over_markets(
    demand: Demand, kernel: Callable[..., Any], *parts: Any, elements: int | None = None
) -> tuple[Any, ...]:
    """Results of ``kernel(demand_of_one_market, *values_of_one_market)``, stacked by market, for each bucket.

    `parts` have one pytree of arrays (T, ...) for each bucket. `elements` are those of `map_markets`.
    """
    economy = demand.economy
    tastes = market_tastes(demand.coefficients, demand.layout)
    beta = demand.coefficients.beta
    variables = {name: economy.spread(values) for name, values in demand.characteristics.variables.items()}
    deltas = economy.scatter(demand.delta)

    def in_market(market: Bucket, known: Changes, delta: AnyArray, *values: Any) -> Any:
        characteristics = demand.characteristics.replace(known)
        return kernel(MarketDemand(market, characteristics, delta, tastes, beta), *values)

    results = []
    for b, bucket in enumerate(economy.buckets):
        known = {name: padded[b] for name, padded in variables.items()}
        values = (part[b] for part in parts)
        results.append(map_markets(in_market, bucket, known, deltas[b], *values, elements=elements))
    return tuple(results)


@host_or_program(effort=1)
def choice_probabilities(
    demand: Demand, delta: Float[AnyArray, " N"] | None, changes: Changes
) -> tuple[Float[AnyArray, "T J I"], ...]:
    """Choice probabilities, one array for each bucket, after changes of variables.

    With `delta` (N,), these are the mean utilities instead of the estimated ones updated with the changes.
    """
    mean = demand.economy.scatter(demand.utilities(changes) if delta is None else delta)

    def kernel(local: MarketDemand, mean: AnyArray, changes: Changes) -> AnyArray:
        return local.point_at(mean, changes).choices().inside

    return over_markets(demand, kernel, mean, _spread_changes(demand, changes))


@host_or_program(effort=1)
def market_shares(demand: Demand, delta: Float[AnyArray, " N"] | None, changes: Changes) -> Float[AnyArray, " N"]:
    """Market shares after changes of variables; arguments are those of `choice_probabilities`."""
    mean = demand.economy.scatter(demand.utilities(changes) if delta is None else delta)

    def kernel(local: MarketDemand, mean: AnyArray, changes: Changes) -> AnyArray:
        return local.point_at(mean, changes).shares()

    return demand.economy.gather(over_markets(demand, kernel, mean, _spread_changes(demand, changes)))


def consumer_offsets(demand: Demand, paid: tuple[AnyArray, ...]) -> tuple[Float[AnyArray, "T J I"], ...]:
    """Utility ``alpha_ji t_ji`` that agents have from what they pay beyond prices, one array for each bucket."""

    def kernel(local: MarketDemand, paid: AnyArray) -> AnyArray:
        return local.point("prices", {}).utility_slopes() * local.tastes.scale * paid

    return over_markets(demand, kernel, paid)


@host_or_program(effort=1)
def consumer_payments(demand: Demand, paid: tuple[AnyArray, ...]) -> Float[AnyArray, " N"]:
    """What agents pay beyond prices, by product: ``sum_i w_i P_ji t_ji``, with `paid` as in `consumer_offsets`."""

    def kernel(local: MarketDemand, paid: AnyArray) -> AnyArray:
        chosen = local.point_at(local.delta, {}).choices().inside * paid
        return (chosen * local.market.weights[..., None, :]).sum(axis=-1)

    return demand.economy.gather(over_markets(demand, kernel, paid))


@host_or_program(effort=1)
def demand_jacobians(demand: Demand, name: str | None) -> tuple[Float[AnyArray, "T J J"], ...]:
    """Derivatives ``ds_j / dx_k``, one array for each bucket, in a variable, or in delta when `name` is None."""
    return over_markets(demand, lambda local: local.point(name, {}).jacobian())


def elasticities(demand: Demand, name: str | None) -> tuple[Float[AnyArray, "T J J"], ...]:
    """Elasticities ``x_k / s_j ds_j / dx_k``, one array for each bucket; x is delta when `name` is None."""

    def kernel(local: MarketDemand) -> AnyArray:
        point = local.point(name, {})
        x = local.delta if name is None else local.characteristics.variables[name]
        return substitution.elasticities(point.jacobian(), x, local.characteristics.variables["shares"])

    return over_markets(demand, kernel)


def diversion_ratios(demand: Demand, name: str | None) -> tuple[Float[AnyArray, "T J J"], ...]:
    """Diversion ratios, one array for each bucket; the outside good stands on the diagonal."""
    return over_markets(demand, lambda local: substitution.diversion_ratios(local.point(name, {}).jacobian()))


def long_run_diversion_ratios(demand: Demand) -> tuple[Float[AnyArray, "T J J"], ...]:
    """Diversion when the row's product is removed, one array for each bucket; the outside good is on the diagonal."""

    def kernel(local: MarketDemand) -> AnyArray:
        point = local.point_at(local.delta, {})
        return substitution.long_run_diversion_ratios(point.utilities(), point.weights, point.availability, point.nests)

    return over_markets(demand, kernel)


def demand_hessians(demand: Demand, name: str | None) -> tuple[Float[Array, "T J J J"], ...]:
    """Second derivatives ``d^2 s_j / dx_k dx_l``, one array for each bucket; x is delta when `name` is None."""

    def kernel(local: MarketDemand) -> Array:
        x = local.delta if name is None else local.characteristics.variables[name]

        def demand_at(x: Array, local: MarketDemand) -> DemandPoint:
            return local.point(name, {} if name is None else {name: x})

        return demand_kernels.demand_hessian(*demand_kernels.demand_with_curvature(demand_at, x, local))

    return over_markets(demand, kernel)


def aggregate_elasticities(demand: Demand, factor: AnyArray, name: str | None) -> Float[AnyArray, " T"]:
    """``sum_j (s_j(x (1 + factor)) - s_j(x)) / factor`` by market; x is delta when `name` is None."""
    if name is None:
        moved = market_shares(demand, demand.delta * (1.0 + factor), {})
    else:
        moved = market_shares(demand, None, {name: demand.characteristics.variables[name] * (1.0 + factor)})
    change = (moved - market_shares(demand, None, {})) / factor
    return demand.economy.gather_markets([part.sum(axis=1) for part in demand.economy.scatter(change)])


def consumer_surpluses(
    demand: Demand, eliminated: Bool[AnyArray, " N"], changes: Changes
) -> tuple[tuple[Float[AnyArray, "markets I"], ...], Float[AnyArray, " T"]]:
    """Consumer surplus of each agent, one array for each bucket, and by market, after changes of variables.

    Marginal utility of income is that of a market's first product before the changes. `eliminated` products cannot be
    chosen.
    """

    def kernel(local: MarketDemand, eliminated: AnyArray, changes: Changes) -> tuple[AnyArray, AnyArray]:
        market = local.market
        slopes = local.point("prices", {}).utility_slopes()[..., 0, :]
        xp = namespace(slopes)
        # padded agents have average tastes, by which prices may not matter
        slopes = xp.where((market.weights == 0) & (slopes == 0), -1.0, slopes)
        availability = xp.where(eliminated[..., :, None], 0.0, market.availability)
        point = local.point_at(local.mean_utilities(changes), changes)
        surpluses = substitution.consumer_surpluses(point.utilities(), slopes, availability, point.nests)
        return surpluses, (surpluses * market.weights).sum(axis=-1)

    found = over_markets(demand, kernel, demand.economy.scatter(eliminated), _spread_changes(demand, changes))
    return tuple(part for part, _ in found), demand.economy.gather_markets([total for _, total in found])


def mean_utilities(demand: Demand, limits: FixedPointLimits, method: FixedPointMethod) -> Inversion:
    """Mean utilities that reproduce the shares of `demand`, from its own; NaN in markets where there are none."""
    economy, tastes = demand.economy, market_tastes(demand.coefficients, demand.layout)
    X2 = demand.characteristics.evaluate({})[1]
    current = economy.with_products(demand.shares, X2)
    found = invert_economy(current, tastes, demand.delta, limits, method)
    # an unknown share would pass for padding
    unknown = economy.gather_markets([jnp.isnan(bucket.shares).any(axis=1) for bucket in current.buckets])
    status = jnp.where(unknown, int(Status.NOT_FINITE), found.status)
    delta = jnp.where(economy.gather(economy.scatter_markets(succeeded(status))), found.delta, jnp.nan)
    return eqx.tree_at(lambda f: (f.delta, f.status), found, (delta, status))


def herfindahl_hirschman_indices(
    demand: Demand, firms: Ownership, shares: Float[AnyArray, " N"]
) -> Float[AnyArray, " T"]:
    """Concentration by market at given shares. `firms` are codes (T, J) of firms."""

    def kernel(market: Bucket, shares: AnyArray, firms: AnyArray) -> AnyArray:
        return substitution.herfindahl_hirschman_index(shares, firms)

    economy = demand.economy
    known = zip(economy.buckets, economy.scatter(shares), firms, strict=True)
    return economy.gather_markets([map_markets(kernel, *arrays) for arrays in known])


def _spread_changes(demand: Demand, changes: Changes) -> tuple[Changes, ...]:
    """Changed variables by bucket."""
    padded = {name: demand.economy.spread(values) for name, values in changes.items()}
    return tuple({name: parts[b] for name, parts in padded.items()} for b in range(len(demand.economy.buckets)))
