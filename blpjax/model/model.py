"""A model of demand and pricing at given parameters: every output as a pure, differentiable function.

Everything after estimation goes through `Model`: results call its methods at the estimates, bootstraps map them over
draws, and the delta method differentiates them. Results ask the model on the host, where first answers do not wait for
compilation. It has more than 500 lines, because every output is a method of one class.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.buckets import Economy, widened
from blpjax.economy.conduct import ConductData, price_setting_ownership
from blpjax.economy.loops import Loops, gather_loops
from blpjax.economy.ownership import Ownership, firm_codes, ownership_matrices
from blpjax.iteration import FixedPointLimits, FixedPointMethod, Iteration
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.kernels.conduct import PriceSetting
from blpjax.machine.compilation import filtered_program
from blpjax.machine.tracing import is_traced
from blpjax.model import conduct as conducts
from blpjax.model import demand, pricing
from blpjax.model.coarse import CoarseModel, coarsen
from blpjax.model.demand import Demand, host_or_program, linear_change
from blpjax.model.inversion import Inversion
from blpjax.model.one_market import MarketPlace, cut_market
from blpjax.model.parameters import ParameterLayout

#: Numbers by product: (N,) or (N, 1), traced or not.
Values = Any

#: Models with at most this many pairs of products and agents, or of products, are evaluated on the host, in some
#: milliseconds. Larger ones are worth programs, which take seconds to compile and are then several times as fast.
HOST_PAIRS = 2**18


class Prices(Loops):
    """Equilibrium prices (N,), NaN in markets without one, with the loops (T,) that found them.

    `residuals` are norms of the profit gradient.
    """

    prices: Float[AnyArray, " N"]


class Model(Demand):
    """Demand and, where there is one, supply at given parameters.

    Methods have the names, arguments and shapes of those of `ProblemResults`, which documents them. They return JAX
    arrays, can be traced, mapped and differentiated in the model itself and in the numbers that they are given, and
    check nothing. Firm IDs are host arrays, not traced. A model `on_host` has arrays of NumPy and returns such.

    Attributes
    ----------
    economy : markets with agents, observed shares and availability.
    characteristics : formulas and variables, with the prices and shares of this model.
    coefficients : `sigma`, `pi`, `beta` and `gamma`.
    delta : (N,) mean utilities at these variables.
    layout : which node columns go with which columns of sigma.
    ownership : who owns what, None when there are neither firm IDs nor ownership matrices.
    costs_type : whether marginal costs (``'linear'``) or their logarithms (``'log'``) are linear in X3.
    conduct : how firms compete; None where they set prices, as `ownership` says.
    """

    ownership: Ownership | None = None
    costs_type: str = eqx.field(static=True, default="linear")
    conduct: ConductData | None = None

    # demand

    def compute_aggregate_elasticities(
        self, factor: float | AnyArray = 0.1, name: str | None = "prices"
    ) -> Float[AnyArray, "T 1"]:
        """Changes of total sales when a variable is scaled by ``1 + factor``, divided by the factor."""
        self.check_variable(name)
        return _values(demand.aggregate_elasticities, self, self._array(factor), name)[:, None]

    def compute_elasticities(self, name: str | None = "prices") -> Float[AnyArray, "N J"]:
        """Elasticities of demand ``x_k / s_j ds_j / dx_k``."""
        return self._matrices(demand.elasticities, name)

    def compute_demand_jacobians(self, name: str | None = "prices") -> Float[AnyArray, "N J"]:
        """Derivatives of demand ``ds_j / dx_k``."""
        return self._matrices(demand.demand_jacobians, name)

    def compute_demand_hessians(self, name: str | None = "prices") -> Float[AnyArray, "N J J"]:
        """Second derivatives of demand ``d^2 s_j / dx_k dx_l``."""
        self.check_variable(name)
        return self._program_rows(_stacked, {name}, demand.demand_hessians, name)

    def compute_diversion_ratios(self, name: str | None = "prices") -> Float[AnyArray, "N J"]:
        """Diversion ratios ``-(ds_k / dx_j) / (ds_j / dx_j)``, with the outside good on the diagonal."""
        return self._matrices(demand.diversion_ratios, name)

    def compute_long_run_diversion_ratios(self) -> Float[AnyArray, "N J"]:
        """Diversion ``(s_k(-j) - s_k) / s_j`` when j is removed, with the outside good on the diagonal."""
        return _matrices(demand.long_run_diversion_ratios, self)

    def compute_probabilities(self, prices: Values = None, delta: Values = None) -> Float[AnyArray, "N I"]:
        """Choice probabilities.

        Columns of agents that a market lacks hold probabilities of an agent with average tastes.
        """
        return _probabilities(self, self._long(delta), self._changes(prices))

    def compute_shares(self, prices: Values = None, delta: Values = None) -> Float[AnyArray, "N 1"]:
        """Market shares."""
        return demand.market_shares(self, self._long(delta), self._changes(prices))[:, None]

    def compute_consumer_surpluses(
        self,
        prices: Values = None,
        keep_all: bool = False,
        eliminated: Values = None,
        changes: Mapping[str, AnyArray] | None = None,
    ) -> Float[AnyArray, "T columns"]:
        """Consumer surpluses by market (T, 1), or with `keep_all` those of its agents (T, max I).

        `eliminated` (N,) says which products cannot be chosen, `changes` has other variables than `prices` that are
        not those of this model. Columns of agents that a market lacks have no meaning.
        """
        self.check_variable("prices")
        nothing = np.zeros(self.delta.shape, bool)
        removed = nothing if eliminated is None else namespace(eliminated).asarray(eliminated).reshape(-1)
        everyone, total = _surpluses(self, removed, self._changes(prices) | dict(changes or {}))
        return everyone if keep_all else total[:, None]

    def invert(self, iteration: Iteration) -> Inversion:
        """Mean utilities that reproduce `shares`, from `delta`, at these parameters; NaN in markets where it fails."""
        return self._home(_call(demand.mean_utilities, self, *_options(iteration)))

    # matrices

    def extract_diagonals(self, matrices: AnyArray) -> Float[AnyArray, "N 1"]:
        """Diagonals of stacked matrices (N, max J), for example own elasticities."""
        parts = self.economy.unstack(matrices)
        return self.economy.gather([namespace(part).diagonal(part, axis1=1, axis2=2) for part in parts])[:, None]

    def extract_diagonal_means(self, matrices: AnyArray) -> Float[AnyArray, "T 1"]:
        """Means of the diagonals of stacked matrices (N, max J) by market."""
        diagonals = self.economy.scatter(self.extract_diagonals(matrices)[:, 0])
        means = [d.sum(axis=1) / b.present.sum(axis=1) for d, b in zip(diagonals, self.economy.buckets, strict=True)]
        return self.economy.gather_markets(means)[:, None]

    # supply

    def compute_costs(
        self, firm_ids: Any = None, ownership: Values = None, conduct: ConductData | None = None
    ) -> Float[AnyArray, "N 1"]:
        """Marginal costs that make prices optimal."""
        return (self.prices - self.markups(firm_ids, ownership, conduct))[:, None]

    def compute_passthrough(
        self, firm_ids: Any = None, ownership: Values = None, conduct: ConductData | None = None
    ) -> Float[AnyArray, "N J"]:
        """Passthrough ``dp_j / dc_k`` of marginal costs to equilibrium prices."""
        self.check_variable("prices")
        known = self.conducted(firm_ids, ownership, conduct)
        if known is not None:
            return self._program_rows(_stacked, {"prices"}, conducts.passthrough, known)
        owned = self.owned(firm_ids, ownership)
        if self.economy.on_host and pricing.passthrough_has_formulas(self):
            return _matrices(pricing.passthrough, self, owned)
        return self._program_rows(_stacked, {"prices"}, pricing.passthrough, owned)

    def compute_approximate_prices(
        self,
        firm_ids: Any = None,
        ownership: Values = None,
        costs: Values = None,
        conduct: ConductData | None = None,
    ) -> Float[AnyArray, "N 1"]:
        """Prices after changes of ownership, costs or conduct if shares and their slopes did not change."""
        return (self._costs(costs) + self.markups(firm_ids, ownership, conduct))[:, None]

    def compute_prices(
        self,
        firm_ids: Any = None,
        ownership: Values = None,
        costs: Values = None,
        prices: Values = None,
        iteration: Iteration | None = None,
        constant_costs: bool = True,
        conduct: ConductData | None = None,
    ) -> Float[AnyArray, "N 1"]:
        """Equilibrium prices, NaN in markets in which none was found (`solve_prices` says why)."""
        given = firm_ids, ownership, costs, prices, iteration, constant_costs
        return self.solve_prices(*given, conduct=conduct).prices[:, None]

    def solve_prices(
        self,
        firm_ids: Any = None,
        ownership: Values = None,
        costs: Values = None,
        prices: Values = None,
        iteration: Iteration | None = None,
        constant_costs: bool = True,
        held: Values = None,
        conduct: ConductData | None = None,
    ) -> Prices:
        """Equilibrium prices with statuses and counters. Arguments are those of `compute_prices`.

        Where `held` (N,) is true, prices stay those at which the search starts.
        """
        self.check_variable("prices")
        start = self._prices(prices)
        known = self.conducted(firm_ids, ownership, conduct)
        setting = known is None or isinstance(known.conduct, PriceSetting)
        limits, method = _options(
            (PRICE_ITERATION if setting else CONDUCT_ITERATION) if iteration is None else iteration
        )
        if method.host is not None and not setting:
            raise NotImplementedError(
                "Iterations on the host are supported where firms set prices. Use Iteration('newton') with conduct."
            )
        moving = None if constant_costs or not self._costs_move else self.costs_type
        game = self.owned(firm_ids, ownership) if known is None else known
        nobody = np.zeros(start.shape, bool)
        fixed = nobody if held is None else np.asarray(held, bool).reshape(-1)
        arrays = self._costs(costs), start, fixed
        coarse = None if method.host is not None else coarsen(self, {"prices"}, moving is not None)
        model = self
        if coarse is not None:
            model, game, arrays = coarse.model, coarse.argument(game), tuple(map(coarse.argument, arrays))
        if isinstance(game, ConductData) and setting:
            game = price_setting_ownership(model.economy, game)
        found = _equilibrium(model, game, *arrays[:2], limits, method, moving, arrays[2])
        return self._home(found) if coarse is None else _of_rows(coarse, found, "prices")

    def compute_hhi(self, firm_ids: Any = None, shares: Values = None) -> Float[AnyArray, "T 1"]:
        """Herfindahl-Hirschman indices of concentration."""
        if firm_ids is not None:
            firms = firm_codes(self.economy, firm_ids)
        elif self.ownership is not None and np.issubdtype(self.ownership[0].dtype, jnp.integer):
            firms = self.ownership
        else:
            raise ValueError("firm_ids must be given, because there is no column 'firm_ids' in product_data.")
        s = self.shares if shares is None else self._long(shares)
        return _values(demand.herfindahl_hirschman_indices, self, firms, s)[:, None]

    def compute_markups(
        self, prices: Values = None, costs: Values = None, conduct: ConductData | None = None
    ) -> Float[AnyArray, "N 1"]:
        """Lerner indices ``(p - c) / p``."""
        p, c = self._prices(prices), self._costs(costs, conduct)
        return ((p - c) / p)[:, None]

    def compute_profits(
        self, prices: Values = None, shares: Values = None, costs: Values = None, conduct: ConductData | None = None
    ) -> Float[AnyArray, "N 1"]:
        """Profits ``(p - c) s`` of each product per consumer."""
        s = self._long(shares)
        return ((self._prices(prices) - self._costs(costs, conduct)) * (self.shares if s is None else s))[:, None]

    def compute_profit_hessians(self, prices: Values = None, costs: Values = None) -> Float[AnyArray, "N J J"]:
        """Second derivatives of each product's profits in prices, ``d^2 pi_j / dp_k dp_l``."""
        self.check_variable("prices")
        return self._program_rows(
            _stacked, {"prices"}, pricing.profit_hessians, self._prices(prices), self._costs(costs)
        )

    def profit_gradients(
        self, prices: Values = None, costs: Values = None, firm_ids: Any = None, ownership: Values = None
    ) -> Float[AnyArray, " N"]:
        """First-order conditions ``s_j + sum_k H_jk (p_k - c_k) ds_k / dp_j``, zero in equilibrium."""
        self.check_variable("prices")
        p, c = self._prices(prices), self._costs(costs)
        return self._program_rows(_call, {"prices"}, pricing.profit_gradients, self.owned(firm_ids, ownership), p, c)

    def firm_profit_hessians(
        self, prices: Values = None, costs: Values = None, firm_ids: Any = None, ownership: Values = None
    ) -> Float[AnyArray, "N J"]:
        """Derivatives of `profit_gradients` in prices: between products of one firm, the Hessian of its profits."""
        self.check_variable("prices")
        p, c = self._prices(prices), self._costs(costs)
        return self._program_rows(
            _stacked, {"prices"}, pricing.firm_profit_hessians, self.owned(firm_ids, ownership), p, c
        )

    def markups(
        self, firm_ids: Any = None, ownership: Values = None, conduct: ConductData | None = None
    ) -> Float[AnyArray, " N"]:
        """Markups ``p - c`` (N,) that make prices optimal, in units of prices."""
        known = self.conducted(firm_ids, ownership, conduct)
        if known is not None:
            return self.solve_markups(known).markups
        self.check_variable("prices")
        return _values(pricing.markups, self, self.owned(firm_ids, ownership))

    def solve_markups(self, conduct: ConductData) -> conducts.Markups:
        """Markups under some conduct at the model's prices, with a status of each market."""
        self.check_variable("prices")
        coarse = coarsen(self, {"prices"})
        if coarse is None:
            return self._home(_call(conducts.markups, self, conduct))
        return _of_rows(coarse, _call(conducts.markups, coarse.model, coarse.argument(conduct)), "markups")

    def conducted(
        self, firm_ids: Any = None, ownership: Values = None, conduct: ConductData | None = None
    ) -> ConductData | None:
        """The conduct in effect, the model's own by default, with other firms; None where only ownership matters."""
        known = self.conduct if conduct is None else conduct
        if known is None:
            return None
        matrices = None if ownership is None else self._array(ownership)
        return known.at(self.coefficients.kappa).with_owners(firm_ids, matrices)

    def owned(self, firm_ids: Any = None, ownership: Values = None) -> Ownership:
        """Ownership matrices by firm IDs (N,), by stacked matrices (N, max J), or else the model's own.

        They are matrices in any case, so that programs are the same.

        Raises
        ------
        ValueError
            When both are given, or neither and the model has none.
        NotImplementedError
            Where the model's firms do not just set prices.
        """
        if firm_ids is not None and ownership is not None:
            raise ValueError("Give either firm_ids or ownership, not both.")
        if (known := self.conducted(firm_ids, ownership)) is not None:
            if not isinstance(known.conduct, PriceSetting):
                raise NotImplementedError(
                    f"This needs firms that set prices, but their conduct is {known.name}. Outputs that have an "
                    "argument conduct know it."
                )
            return price_setting_ownership(self.economy, known)
        if ownership is not None:
            return self.economy.unstack(self._array(ownership))
        firms = self.ownership if firm_ids is None else firm_codes(self.economy, firm_ids)
        if firms is None:
            raise ValueError(
                "firm_ids or ownership must be given, because product_data has neither a column 'firm_ids' nor "
                "ownership matrices."
            )
        return ownership_matrices(firms)

    # other points

    def at(self, changes: Mapping[str, AnyArray], shares: Values = None) -> "Model":
        """The model after variables, such as prices, have changed.

        Mean utilities move with X1, and shares are recomputed unless they are given. Ownership stays the same.

        Parameters
        ----------
        changes : new values (N,) by the names of variables.
        shares : (N,) shares at these values.

        Raises
        ------
        NameError
            When no formula has a numeric variable of such a name.
        ValueError
            When shares are among the changes.
        """
        if "shares" in changes:
            raise ValueError("Shares follow from other variables. To have them given, use the argument shares.")
        moved = {name: self._array(values).reshape(-1) for name, values in changes.items()}
        characteristics, given = self.characteristics.replace(moved), self._long(shares)
        found = demand.market_shares(self, None, moved) if given is None else given
        characteristics = characteristics.replace({"shares": found})
        delta = self.utilities(moved)
        return eqx.tree_at(lambda m: (m.characteristics, m.delta), self, (characteristics, delta))

    def with_agents(self, economy: Economy, layout: ParameterLayout) -> "Model":
        """The model with other agents, whose nodes `layout` describes, at the same mean utilities.

        It has no ownership, which belongs to the other economy's buckets.
        """
        return dataclasses.replace(self, economy=economy, layout=layout, ownership=None)

    def update_costs(self, costs: Values, shares: Values) -> Float[AnyArray, " N"]:
        """Marginal costs at other shares: `costs` (N,) moved by ``(X3(s') - X3(s)) gamma``, perhaps in logs."""
        base, moved = (self._array(values).reshape(-1) for values in (costs, shares))
        change = linear_change(self.characteristics, "X3", self.coefficients.gamma, {"shares": moved})
        return base * namespace(change).exp(change) if self.costs_type == "log" else base + change

    def on_host(self) -> "Model":
        """The same model with arrays of NumPy, or this model where it is traced, large or spread over devices."""
        pairs = sum(T * J * max(J, width) for T, J, width in (bucket.size for bucket in self.economy.buckets))
        if self.economy.placement is not None or pairs > HOST_PAIRS or is_traced(self):
            return self
        return jax.tree.map(np.asarray, self)

    def in_market(self, place: MarketPlace) -> "Model":
        """The model of one market alone, which `find_market` finds, with as many rows as its bucket has products.

        Outputs begin with the market's J rows and columns; the rest is padding, to be cut off. Programs for markets of
        the same bucket are the same.
        """
        J = self.economy.buckets[place.bucket].size[1]
        rows, missing = place.rows, J - place.rows.size
        padded = np.r_[rows, np.full(missing, rows[0])]
        positions = np.r_[np.arange(rows.size), np.full(missing, J)]
        where = np.asarray(place.place), padded, positions
        return cut_market(self, place.bucket, *(where if self.economy.on_host else jax.device_put(where)))

    def check_variable(self, name: str | None) -> None:
        """Raise `NameError` when no formula of utility has a numeric variable of this name."""
        names = self.characteristics.names
        if name is not None and name not in names:
            raise NameError(f"No formula has a numeric variable {name!r}. Those of X1 and X2 are {', '.join(names)}.")

    @property
    def _costs_move(self) -> bool:
        """Whether marginal costs depend on shares."""
        return any(column.depends_on("shares") for column in self.characteristics.X3_columns)

    def _matrices(self, function: Callable[..., Any], name: str | None) -> AnyArray:
        self.check_variable(name)
        return _matrices(function, self, name)

    def _prices(self, prices: Values) -> AnyArray:
        given = self._long(prices)
        return self.prices if given is None else given

    def _costs(self, costs: Values, conduct: ConductData | None = None) -> AnyArray:
        given = self._long(costs)
        return self.prices - self.markups(conduct=conduct) if given is None else given

    def _changes(self, prices: Values) -> dict[str, AnyArray]:
        """Prices, also where they do not change, so that programs are the same."""
        return {"prices": self._prices(prices)}

    def _long(self, values: Values) -> AnyArray | None:
        return None if values is None else self._array(values).reshape(-1)

    def _array(self, values: Values) -> AnyArray:
        """Floating-point numbers, on the host where the model is there."""
        return np.asarray(values, float) if self.economy.on_host else jnp.asarray(values, float)

    def _program_rows(
        self, program: Callable[..., Any], moving: set[Any], function: Callable[..., Any], *arguments: Any
    ) -> AnyArray:
        """Rows (N, ...) that a program computes, for a model of coarse sizes where this one is on the host and small.

        `moving` are the variables that the function changes or differentiates in.
        """
        coarse = coarsen(self, moving - {None})
        if coarse is None:
            return self._home(program(function, self, *arguments))
        return coarse.rows(program(function, coarse.model, *map(coarse.argument, arguments)))

    def _home(self, found: Any) -> Any:
        """What a program returned, on the host where the model is there."""
        return jax.tree.map(np.asarray, found) if self.economy.on_host else found


#: How equilibrium prices are found by default: where Anderson and Newton fail, after large mergers, SQUAREM does not.
PRICE_ITERATION = Iteration("squarem", {"atol": 1e-12})


#: The same under other conduct: see `blpjax.kernels.conduct_prices`.
CONDUCT_ITERATION = Iteration("newton", {"atol": 1e-12})


def _options(iteration: Iteration) -> tuple[FixedPointLimits, FixedPointMethod]:
    """Limits as arrays, so that other tolerances compile nothing."""
    return jax.tree.map(np.asarray, iteration.limits), iteration.fixed_point


def _of_rows(coarse: CoarseModel, found: Any, name: str) -> Any:
    """What a program returned for a coarse model, loops with an array (N,) of this name."""
    loops = {each: coarse.markets(values) for each, values in found.fields().items()}
    return type(found)(**{name: coarse.rows(getattr(found, name))}, **loops)


def _apply(function: Callable[..., Any], model: Model, *arguments: Any) -> Any:
    return function(model, *arguments)


def _stack(function: Callable[..., Any], model: Model, *arguments: Any) -> AnyArray:
    """Rows (N, max J) of matrices, or (N, max J, max J) of arrays (J, J, J), NaN at padded products."""
    return model.economy.stack(function(model, *arguments))


#: Of functions that need JAX, such as those with loops or second derivatives,
_call, _stacked = filtered_program(effort=1)(_apply), filtered_program(effort=1)(_stack)

#: and of those that can be evaluated on the host.
_values, _matrices = host_or_program(effort=1)(_apply), host_or_program(effort=1)(_stack)


@host_or_program(effort=1)
def _probabilities(model: Model, delta: AnyArray | None, changes: dict[str, AnyArray]) -> AnyArray:
    return model.economy.gather(widened(demand.choice_probabilities(model, delta, changes), 2))


@host_or_program(effort=1)
def _surpluses(model: Model, eliminated: AnyArray, changes: dict[str, AnyArray]) -> tuple[AnyArray, AnyArray]:
    parts, total = demand.consumer_surpluses(model, eliminated, changes)
    return model.economy.gather_markets(widened(parts, 1)), total


@filtered_program(effort=1, what="equilibrium prices")
def _equilibrium(
    model: Model,
    game: Ownership | ConductData,
    costs: Array,
    start: Array,
    limits: FixedPointLimits,
    method: FixedPointMethod,
    costs_type: str | None,
    held: AnyArray,
) -> Prices:
    known = costs, start, limits, held
    if isinstance(game, ConductData):
        found = conducts.equilibrium_prices(model, game, *known, method=method, costs_type=costs_type)
    else:
        found = pricing.equilibrium_prices(model, game, *known, method=method, costs_type=costs_type)
    prices = model.economy.gather([part.value for part in found])
    return Prices(prices=prices, **gather_loops(model.economy, found).fields())
