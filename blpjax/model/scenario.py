"""Counterfactuals as pure functions: from one point of a market's demand and pricing to another one.

Taxes need no other equilibrium than Bertrand's: where firms get ``r = nu p - t`` of a price p, their conditions
``nu_j s_j + sum_k H_jk (r_k - c_k) ds_k / dp_j = 0`` are those at ownership ``H_jk nu_k / nu_j`` and costs
``(c_k + t_k) / nu_k``. The same is true of other conduct in which ownership matrices weigh profits.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

from blpjax.economy.buckets import Economy
from blpjax.economy.conduct import ConductData
from blpjax.economy.loops import Loops
from blpjax.economy.ownership import Ownership, firm_codes, ownership_matrices
from blpjax.iteration import Iteration
from blpjax.kernels.arrays import AnyArray, constant, namespace
from blpjax.model.demand import consumer_offsets, consumer_payments, host_or_program, linear_change
from blpjax.model.model import Model


class State(eqx.Module):
    """Demand, prices and costs at one point.

    Attributes
    ----------
    base : the model where all began: consumers' marginal utilities of income are those there.
    changes : variables other than prices (N,) that are not those of the base.
    dropped : (N,) products that nobody can choose any more.
    model : the model at this point. Its rows of dropped products have no meaning.
    owned : ownership matrices by bucket; None where the base has other conduct.
    costs : (N,) marginal costs.
    kept, unit : (N,) firms get ``kept * prices - unit``.
    paid : what agents pay beyond prices (T, J, I), by bucket, which `model` knows as offsets of utilities; or None.
    loops : those that found prices, None where prices were given.
    conduct : how firms compete; None where they set prices, as `owned` says.
    """

    base: Model
    changes: dict[str, Float[AnyArray, " N"]]
    dropped: Bool[AnyArray, " N"]
    model: Model
    owned: Ownership | None
    costs: Float[AnyArray, " N"]
    kept: Float[AnyArray, " N"]
    unit: Float[AnyArray, " N"]
    paid: tuple[Float[AnyArray, "T J I"], ...] | None = None
    loops: Loops | None = None
    conduct: ConductData | None = None

    @property
    def prices(self) -> Float[AnyArray, " N"]:
        """What consumers pay (N,), before taxes on some of them; NaN for products that are dropped."""
        return self._where_sold(self.model.prices, float("nan"))

    @property
    def shares(self) -> Float[AnyArray, " N"]:
        """Market shares (N,), zero for products that are dropped."""
        return self._where_sold(self.model.shares, 0.0)

    @property
    def net_prices(self) -> Float[AnyArray, " N"]:
        """What firms get for a unit (N,)."""
        return self.kept * self.prices - self.unit

    @property
    def profits(self) -> Float[AnyArray, " N"]:
        """Profits by product (N,) for each consumer in the market, without fixed costs."""
        return self._where_sold((self.kept * self.model.prices - self.unit - self.costs) * self.model.shares, 0.0)

    @property
    def revenues(self) -> Float[AnyArray, " N"]:
        """Tax revenue by product (N,) for each consumer in the market."""
        prices = self.model.prices
        revenues = (prices - self.kept * prices + self.unit) * self.model.shares
        if self.paid is not None:
            revenues += consumer_payments(self.model, self.paid)
        return self._where_sold(revenues, 0.0)

    def compute_consumer_surpluses(self, keep_all: bool = False) -> Float[AnyArray, "T columns"]:
        """Consumer surpluses by market (T, 1) or by agent (T, max I), with marginal utilities of income of the base."""
        moved = self.changes | {"prices": self.model.prices}
        base = self.base if self.paid is None else _with_offsets(self.base, self.model.economy)
        return base.compute_consumer_surpluses(keep_all=keep_all, eliminated=self.dropped, changes=moved)

    def _where_sold(self, values: AnyArray, otherwise: float) -> AnyArray:
        return namespace(values).where(self.dropped, otherwise, values)


def starting_state(model: Model, absent: Bool[np.ndarray, " N"] | None = None) -> State:
    """The point at which a model is, with the costs that its prices imply, perhaps without some products (N,)."""
    owned, shape = model.owned() if model.conduct is None else None, model.delta.shape
    dropped = np.zeros(shape, bool) if absent is None else np.asarray(absent)
    there = model if absent is None else _without(model, dropped)
    costs = there.prices - there.markups()
    return State(model, {}, dropped, there, owned, costs, np.ones(shape), np.zeros(shape), conduct=model.conduct)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What changes, and how prices are found then. Arrays are those of NumPy; None changes nothing.

    Attributes
    ----------
    firm_ids, ownership : who owns what: IDs (N,), or matrices (N, max J).
    costs : marginal costs (N,), or a function of those that there were.
    changes : variables.
    enter : products that were dropped and come back.
    drop : products that leave.
    hold : products whose prices stay.
    prices : what consumers pay: nobody sets prices.
    kept, unit, paid : taxes, see `State`: either all are as they were, or none.
    iteration, constant_costs : see `Model.compute_prices`.
    conduct : how firms compete, with the firms that there are then.
    start : prices (N,) at which the search for prices begins; None begins at those before.
    """

    firm_ids: Any = None
    ownership: Any = None
    costs: Any = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    enter: Any = None
    drop: Any = None
    hold: Any = None
    prices: Any = None
    kept: Any = None
    unit: Any = None
    paid: Any = None
    iteration: Iteration | None = None
    constant_costs: bool = True
    conduct: ConductData | None = None
    start: Any = None

    def apply(self, state: State) -> State:
        """The point to which this leads from another one."""
        base, xp = state.base, namespace(state.costs)
        changes = state.changes | {name: xp.asarray(values, float) for name, values in self.changes.items()}
        dropped = state.dropped if self.enter is None else state.dropped & ~self.enter
        dropped = dropped if self.drop is None else dropped | self.drop
        kept = state.kept if self.kept is None else xp.asarray(self.kept)
        unit = state.unit if self.unit is None else xp.asarray(self.unit)
        paid = state.paid if self.kept is None else self.paid
        conduct, costs = self._conduct(state), self._costs(state)
        owned = state.owned if conduct is not None else self._owned(base, state.owned)
        going = State(base, changes, dropped, state.model, owned, costs, kept, unit, paid, conduct=conduct)
        prices = None if self.prices is None else xp.asarray(self.prices, float)
        model, costs, loops = _arrive(base, going, prices, self.start, self.hold, self.iteration, self.constant_costs)
        return State(base, changes, dropped, model, owned, costs, kept, unit, paid, loops, conduct)

    def _costs(self, state: State) -> AnyArray:
        """Marginal costs: those of the state, moved with variables in X3, and then as the scenario says."""
        xp, model = namespace(state.costs), state.model
        costs, moved = state.costs, {name: xp.asarray(values, float) for name, values in self.changes.items()}
        if moved:
            change = linear_change(model.characteristics, "X3", model.coefficients.gamma, moved)
            costs = costs * xp.exp(change) if model.costs_type == "log" else costs + change
        if self.costs is None:
            return costs
        found = self.costs(costs) if callable(self.costs) else self.costs
        return xp.asarray(found, float).reshape(-1)

    def _conduct(self, state: State) -> ConductData | None:
        if self.conduct is not None or state.conduct is None:
            return self.conduct
        return state.conduct.with_owners(self.firm_ids, self.ownership)

    def _owned(self, base: Model, known: Ownership | None) -> Ownership | None:
        if self.ownership is not None:
            return base.owned(None, self.ownership)
        return known if self.firm_ids is None else ownership_matrices(firm_codes(base.economy, self.firm_ids))


@host_or_program(effort=1)
def _arrive(
    base: Model,
    going: State,
    prices: AnyArray | None,
    start: AnyArray | None,
    hold: AnyArray | None,
    iteration: Iteration | None,
    constant_costs: bool,
) -> tuple[Model, AnyArray, Loops | None]:
    """The model after a change, marginal costs there, and the loops that found prices, unless `prices` are given.

    `going` is a point with everything that has changed but its model: costs are those at the shares of that, and prices
    are searched for from its prices.
    """
    before, loops = going.model, None
    remaining = _without(base, going.dropped)
    moved = remaining.at(going.changes, shares=before.shares)
    if going.paid is not None:
        remaining = _offset(remaining, consumer_offsets(moved, going.paid))
        moved = _with_offsets(moved, remaining.economy)
    if prices is None:
        taxed, conduct = moved, going.conduct
        if conduct is None:
            assert going.owned is not None
            taxed = dataclasses.replace(moved, ownership=taxed_ownership(base, going.owned, going.kept))
        else:
            conduct = dataclasses.replace(conduct, kept=going.kept)
        costs, begin = (going.costs + going.unit) / going.kept, constant(before.prices)
        if start is not None:
            begin = start if hold is None else namespace(begin).where(hold, begin, start)
        found = taxed.solve_prices(None, None, costs, begin, iteration, constant_costs, hold, conduct)
        prices, loops = found.prices, Loops(**found.fields())
    there = remaining.at(going.changes | {"prices": prices})
    model = dataclasses.replace(there, ownership=going.owned, conduct=going.conduct)
    return model, going.costs if constant_costs else moved.update_costs(going.costs, model.shares), loops


def _without(model: Model, dropped: AnyArray) -> Model:
    """The model in which nobody can choose some products (N,)."""
    parts = model.economy.scatter(dropped)
    xp = namespace(model.delta)
    buckets = model.economy.buckets
    left = [xp.where(part[:, :, None], 0.0, bucket.availability) for part, bucket in zip(parts, buckets, strict=True)]
    return eqx.tree_at(lambda m: [bucket.availability for bucket in m.economy.buckets], model, left)


def _offset(model: Model, offsets: tuple[AnyArray, ...]) -> Model:
    """The model with other offsets of utilities, one array for each bucket."""
    pairs = zip(model.economy.buckets, offsets, strict=True)
    buckets = tuple(dataclasses.replace(bucket, offsets=part) for bucket, part in pairs)
    return dataclasses.replace(model, economy=dataclasses.replace(model.economy, buckets=buckets))


def _with_offsets(model: Model, economy: Economy) -> Model:
    """The model with the offsets of utilities that another economy has."""
    return _offset(model, tuple(bucket.offsets for bucket in economy.buckets))


def taxed_ownership(model: Model, owned: Ownership, kept: AnyArray) -> Ownership:
    """Ownership at which conditions without taxes are those with them."""
    parts = model.economy.spread(kept)
    return tuple(H * nu[:, None, :] / nu[:, :, None] for H, nu in zip(owned, parts, strict=True))
