"""Counterfactuals in one call: what markets would look like after a merger, a tax, or another change."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import numpy as np
import pandas as pd

from blpjax.economy.buckets import index_markets
from blpjax.exceptions import EquilibriumPricesConvergenceError, raise_for_status, succeeded
from blpjax.inputs.arguments import check_choice
from blpjax.iteration import Iteration
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.model.demand import host_or_program
from blpjax.model.formulated import Formulated
from blpjax.model.model import Model
from blpjax.model.scenario import Scenario, State, starting_state
from blpjax.outputs.changes import read_scenario, with_entry
from blpjax.outputs.entry import Entry, read_entry
from blpjax.outputs.labels import OutputTables
from blpjax.outputs.outputs import Outputs
from blpjax.reporting.tables import Part, Shown
from blpjax.values import read_flag

#: Numbers of tables, by table and column.
Numbers = dict[str, dict[str, AnyArray]]

#: What tables of products and of markets have, before and after.
PRODUCT_COLUMNS = ("prices", "shares", "costs", "net_prices", "profits")
MARKET_COLUMNS = ("consumer_surplus", "profits", "revenue", "total", "inside_share", "mean_price")


class CounterfactualMethods(Outputs):
    """Results of which one can ask what would happen."""

    @property
    def formulated(self) -> Formulated:
        """Tables and formulas, in which there may be new products."""
        raise NotImplementedError

    def counterfactual(
        self,
        *,
        firm_ids: Any = None,
        ownership: Any = None,
        costs: Any = None,
        set: Any = None,  # noqa: A002  (users write counterfactual(set={"x": ...}))
        drop: Any = None,
        add: Any = None,
        hold: Any = None,
        prices: Any = None,
        taxes: Any = None,
        standard_errors: bool = False,
        hold_fixed: str = "shares",
        error_behavior: str = "warn",
        iteration: Iteration | None = None,
        constant_costs: bool = True,
    ) -> "Counterfactual":
        """What prices, shares, profits and surplus would be if something changed. Nothing else does.

        The point of comparison is the observed one, with observed prices and shares and the costs that they imply.

        Parameters
        ----------
        firm_ids : (N,) IDs of firms after the change, or a mapping of old IDs to new ones, such as ``{2: 1}``.
        ownership : (N, max J) ownership matrices instead, stacked by market.
        costs : marginal costs: an array (N,), or a function of those that observed prices imply, such as
            ``lambda costs: 0.95 * costs``, which then move with the parameters in standard errors.
        set : variables of formulas other than prices, by name: numbers, arrays (N,), or functions of the old values.
            Utilities and costs follow.
        drop : (N,) true where nobody can choose a product any more.
        add : table of new products: market_ids, firm_ids, variables of formulas (nesting_ids with nests), and either
            ``like``, the ID of a product of that market whose unobserved quality, fixed effects and costs a new one
            has, or ``xi`` (zero by default) and ``costs`` (by default those that X3 explains). Their rows come last.
            Other arguments have rows for the products that there are; functions of costs see these alone, and taxes
            are on new products where they are one number for all.
        hold : (N,) true where the price stays what it was; owners count what they earn there when they set others.
        prices : (N,) prices that consumers pay, which nobody sets then.
        taxes : a `Taxes`, in place of those that there were.
        standard_errors : whether tables have them, by the delta method, exact through the equilibrium.
        hold_fixed : ``'shares'`` or ``'xi'``: what stays fixed when parameters vary, see `ProblemResults.delta_method`.
        error_behavior : ``'warn'`` or ``'raise'`` where no equilibrium is found; numbers are NaN there.
        iteration, constant_costs : as in `compute_prices`.

        Returns
        -------
        Counterfactual, with tables of products, markets and firms before and after.

        Raises
        ------
        ValueError, TypeError, NameError
            For arguments that change nothing or do not fit, such as a variable that no formula has.
        EquilibriumPricesConvergenceError
            With ``error_behavior='raise'``, naming markets.

        Warns
        -----
        ConvergenceWarning
            With ``error_behavior='warn'``, likewise.
        """
        given: dict[str, Any] = {"firm_ids": firm_ids, "ownership": ownership, "costs": costs, "set": set}
        given |= {"drop": drop, "add": add, "hold": hold, "prices": prices, "taxes": taxes}
        given |= {"iteration": iteration, "constant_costs": constant_costs}
        return _solve(self, (), given, standard_errors, hold_fixed, error_behavior)


class Counterfactual(Shown):
    """Markets before and after a change.

    Attributes
    ----------
    before, after : the points: `blpjax.model.scenario.State` with arrays of NumPy.
    products : a row for each product: market, product and firms, and prices, shares, costs, net_prices (what firms get)
        and profits (by product, for each consumer in the market), each with ``_before``, ``_after`` and ``_change``.
        Products that were dropped have a share and profits of zero, and no price.
    markets : a row for each market: consumer_surplus, profits, revenue (of taxes), total (their sum), inside_share and
        mean_price (over products), likewise; ``converged`` and ``residual`` of the search for prices.
    firms : profits of each firm in each market.

    Methods such as `compute_elasticities` are those of `ProblemResults`, after the change.

    Consumer surplus is in units of prices, for each consumer. Its change is the compensating variation where utility
    is linear in prices; otherwise it is the approximation that `compute_consumer_surpluses` describes.
    With `standard_errors` tables have columns ``..._se``.
    """

    def __init__(
        self,
        source: CounterfactualMethods,
        scenarios: tuple[Scenario, ...],
        entry: Entry | None,
        standard_errors: bool,
        hold_fixed: str,
    ) -> None:
        self._source, self._scenarios, self._entry, self._hold = source, scenarios, entry, hold_fixed
        self._tables = source.output_tables if entry is None else entry.tables
        self.before, self.after = (jax.tree.map(np.asarray, state) for state in self._states(source.model.on_host()))
        self._found = None
        if standard_errors:
            self._found = self.delta_method(self._numbers)

    def _parts(self) -> list[Part]:
        failed = self.markets.loc[~self.markets["converged"], "market_ids"].tolist()
        parts: list[Part] = [f"Counterfactual, means over {len(self.markets)} markets:", self.summary()]
        if failed:
            parts.insert(0, f"NOT CONVERGED: no equilibrium was found in {len(failed)} markets, such as {failed[0]!r}.")
        return parts

    # tables

    @cached_property
    def products(self) -> pd.DataFrame:
        """See the class."""
        table = self._tables.products
        frame = pd.DataFrame({"market_ids": table.market_ids})
        if table.product_ids is not None:
            frame["product"] = table.product_ids if table.product_ids.ndim == 1 else table.product_ids[:, 0]
        for name, ids in (("firm_before", table.firm_ids), ("firm_after", self._firms)):
            if ids is not None:
                frame[name] = ids
        return pd.concat([frame, self._columns("products", PRODUCT_COLUMNS)], axis=1)

    @cached_property
    def markets(self) -> pd.DataFrame:
        """See the class."""
        frame = pd.DataFrame({"market_ids": self._tables.markets.ids})
        frame = pd.concat([frame, self._columns("markets", MARKET_COLUMNS)], axis=1)
        loops = self.after.loops
        frame["converged"] = True if loops is None else succeeded(loops.status)
        frame["residual"] = 0.0 if loops is None else loops.residuals
        return frame

    @cached_property
    def firms(self) -> pd.DataFrame:
        """See the class."""
        if self._firms is None or self._tables.products.firm_ids is None:
            raise ValueError("There are no firm IDs: ownership was given by matrices.")
        parts = []
        for when, firm in (("before", "firm_before"), ("after", "firm_after")):
            sums = self.products.groupby(["market_ids", firm], sort=True)[f"profits_{when}"].sum(min_count=1)
            parts.append(sums.rename_axis(["market_ids", "firm"]))
        frame = pd.concat(parts, axis=1).reset_index()
        failed = frame["market_ids"].isin(self.markets.loc[~self.markets["converged"], "market_ids"])
        frame = frame.fillna({"profits_before": 0.0, "profits_after": 0.0})
        frame.loc[failed, "profits_after"] = np.nan
        frame["profits_change"] = frame["profits_after"] - frame["profits_before"]
        return frame

    def summary(self, weights: Any = None) -> pd.DataFrame:
        """Means over markets, or sums with weights (T,) such as numbers of consumers: a row for each number.

        Columns are before, after and change, with standard errors where tables have them. Prices are always averaged,
        over products, with their market's weight. A market without an equilibrium makes these numbers NaN.

        Raises
        ------
        ValueError
            When there is not one finite weight for each market.
        """
        T = len(self._tables.markets.ids)
        w = np.full(T, 1 / T) if weights is None else np.asarray(weights, float).reshape(-1)
        if w.size != T or not np.isfinite(w).all():
            raise ValueError(f"weights must be {T} finite numbers, one for each market.")
        rows: dict[str, dict[str, Any]] = {}
        for name in MARKET_COLUMNS:
            sums = [(when, w if name != "mean_price" else _averaging(w, counts)) for when, counts in self._counts()]
            rows[name] = {when: v @ self._value("markets", name, when) for when, v in sums}
            rows[name]["change"] = rows[name]["after"] - rows[name]["before"]
            if self._found is None:
                continue
            jacobian, V = self._found.jacobian, self._found.parameter_covariances
            slopes = {when: v @ jacobian[self._rows("markets", name, when)] for when, v in sums}
            slopes["change"] = slopes["after"] - slopes["before"]
            rows[name] |= {f"{when}_se": np.sqrt(max(slope @ V @ slope, 0.0)) for when, slope in slopes.items()}
        return pd.DataFrame.from_dict(rows, orient="index")

    def by_agent(self, values: Any, quantiles: int | None = None) -> pd.DataFrame:
        """Mean consumer surplus of groups of agents before and after, over all markets, by weights of agents.

        Parameters
        ----------
        values : what groups are by: the name of a demographic of the agent formula, or an array with a value for each
            row of the agent table.
        quantiles : into how many groups of equal weight agents are put by their values; by default there is a group
            for each value.

        Returns
        -------
        A row for each group: weight, before, after, change; with quantiles also the group's lowest and highest values.

        Raises
        ------
        ValueError
            When there are no such demographics, or not one value for each agent.
        """
        agents = self._tables.agents
        table, labels = agents.table, agents.demographic_labels
        if isinstance(values, str):
            if values not in labels or agents.demographics.ndim != 2:
                raise ValueError(f"There is no demographic {values!r}. There are {', '.join(labels) or 'none'}.")
            values = agents.demographics[:, labels.index(values)]
        groups = np.asarray(values).reshape(-1)
        if groups.size != table.weights.size:
            raise ValueError(f"values must be {table.weights.size} values, one for each row of the agent table.")
        frame = pd.DataFrame({"value": groups, "weight": np.asarray(table.weights).reshape(-1)})
        present = np.arange(max(agents.counts)) < np.array(agents.counts)[:, None]
        order = np.concatenate(index_markets(table.market_ids).rows)
        for when, state in (("before", self.before), ("after", self.after)):
            everyone = state.compute_consumer_surpluses(keep_all=True)[:, : present.shape[1]]
            frame.loc[order, when] = everyone[present]
        frame["group"] = frame["value"]
        if quantiles is not None:
            ranked = frame.sort_values("value", kind="stable")
            share = (ranked["weight"].cumsum() - ranked["weight"] / 2) / ranked["weight"].sum()
            frame["group"] = (share * quantiles).astype(int).clip(0, quantiles - 1) + 1
        rows = {}
        for group, part in frame.groupby("group", sort=True):
            weight = part["weight"].sum()
            row = {"lowest": part["value"].min(), "highest": part["value"].max()} if quantiles is not None else {}
            row |= {"weight": weight}
            row |= {when: (part[when] * part["weight"]).sum(skipna=False) / weight for when in ("before", "after")}
            rows[group] = row | {"change": row["after"] - row["before"]}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group").reset_index()

    def total(self, values: Any) -> pd.DataFrame:
        """Sums over products of values (N,) times shares, before, after and their change, by market.

        For example emissions, or calories: values are those of one unit of the product.
        """
        numbers = _After(self).ask(None, False, False, "shares").read(values=values)["values"]
        codes, T = self._tables.markets.codes, len(self._tables.markets.ids)
        before, after = (np.bincount(codes, numbers * s.shares, T) for s in (self.before, self.after))
        ids = self._tables.markets.ids
        return pd.DataFrame({"market_ids": ids, "before": before, "after": after, "change": after - before})

    # going on

    def delta_method(self, function: Callable[[State, State], Any]) -> Any:
        """Standard errors of a function of both points, ``lambda before, after: ...``, in operations of JAX.

        Points have `prices`, `shares`, `costs`, `net_prices`, `profits` and `revenues` (N,),
        `compute_consumer_surpluses()` (T, 1), and the `model` with all that it computes.
        """
        return self._source.delta_method(lambda model: function(*self._states(model)), hold=self._hold)

    def counterfactual(
        self,
        *,
        standard_errors: bool = False,
        error_behavior: str = "warn",
        **changes: Any,
    ) -> "Counterfactual":
        """A further change, with the arguments of `ProblemResults.counterfactual`, compared with the first point.

        Ownership, costs, taxes, variables and dropped products stay as they are here unless they change again. Prices
        that were held here are free.
        """
        if self._entry is not None:
            raise NotImplementedError("There are new products: give all changes in the call that adds them.")
        known = {name: None for name in _ARGUMENTS} | {"constant_costs": True}
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise TypeError(f"counterfactual() got an unexpected keyword argument {unknown[0]!r}.")
        given = known | changes
        return _solve(self._source, self._scenarios, given, standard_errors, self._hold, error_behavior)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("compute_", "extract_")) and hasattr(Outputs, name):
            if name in _OF_SUPPLY and (self.taxed or any(scenario.hold is not None for scenario in self._scenarios)):
                raise NotImplementedError(
                    f"{name} does not know taxes or held prices. Tables of products and markets, and the attribute "
                    "after, have costs, net prices and profits."
                )
            return getattr(_After(self), name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(n for n in dir(Outputs) if n.startswith(("compute_", "extract_")))})

    @property
    def taxed(self) -> bool:
        """Whether firms get something else than prices after the change."""
        return bool((self.after.kept != 1).any() or (self.after.unit != 0).any())

    def _states(self, model: Model) -> tuple[State, State]:
        if self._entry is None:
            before = starting_state(model)
        else:
            longer = self._entry.extend(model)
            before = starting_state(longer, self._entry.new)
            costs = self._entry.all_costs(longer, before.costs)
            before = dataclasses.replace(before, costs=costs)
        state = before
        for scenario in self._scenarios:
            state = scenario.apply(state)
        return before, state

    # numbers

    def _counts(self) -> list[tuple[str, np.ndarray]]:
        """How many products there are in each market."""
        codes, T = self._tables.markets.codes, len(self._tables.markets.ids)
        states = (("before", self.before), ("after", self.after))
        return [(when, np.bincount(codes, ~state.dropped, T)) for when, state in states]

    @cached_property
    def _firms(self) -> Any:
        for scenario in reversed(self._scenarios):
            if scenario.ownership is not None:
                return None
            if scenario.firm_ids is not None:
                return scenario.firm_ids
        return self._tables.products.firm_ids

    def _numbers(self, before: State, after: State) -> Numbers:
        """All numbers of tables."""
        markets = self._tables.markets
        return _numbers(before.base, before, after, markets.codes, len(markets.ids))

    @cached_property
    def _values(self) -> Numbers:
        return self._numbers(self.before, self.after)

    def _value(self, table: str, name: str, when: str) -> np.ndarray:
        return self._values[table][f"{name}_{when}"]

    def _columns(self, table: str, names: tuple[str, ...]) -> pd.DataFrame:
        columns = {}
        for name in names:
            for when in ("before", "after", "change"):
                columns[f"{name}_{when}"] = self._value(table, name, when)
                if self._found is not None:
                    columns[f"{name}_{when}_se"] = self._found.standard_errors[table][f"{name}_{when}"]
        return pd.DataFrame(columns)

    def _rows(self, table: str, name: str, when: str) -> slice:
        """Where some numbers stand among all, in the order of ``jax.tree.leaves``."""
        first = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._values):
            if tuple(key.key for key in path) == (table, f"{name}_{when}"):
                return slice(first, first + leaf.size)
            first += leaf.size
        raise KeyError(name)


class _After(Outputs):
    """The outputs of the model after a change."""

    def __init__(self, found: Counterfactual) -> None:
        self._found = found

    @property
    def model(self) -> Model:
        return self._found.after.model

    @property
    def output_tables(self) -> OutputTables:
        tables, after = self._found._tables, self._found.after
        products = dataclasses.replace(
            tables.products, prices=after.model.prices, shares=after.model.shares, firm_ids=self._found._firms
        )
        return tables._replace(products=products)

    def delta_method(self, function: Callable[[Model], Any], hold: str = "shares") -> Any:
        found = self._found
        return found._source.delta_method(lambda model: function(found._states(model)[1].model), hold=hold)


#: Outputs that take observed prices for those that firms without taxes set.
_OF_SUPPLY = frozenset(
    "compute_costs compute_passthrough compute_approximate_prices compute_prices compute_markups compute_profits "
    "compute_profit_hessians".split()
)


@host_or_program(effort=1)
def _numbers(base: Model, before: State, after: State, codes: AnyArray, T: int) -> Numbers:
    """All numbers of tables. `codes` (N,) are those of products' markets."""
    found: Numbers = {"markets": {}, "products": {}}
    for when, state in (("before", before), ("after", after)):
        for name in PRODUCT_COLUMNS:
            found["products"][f"{name}_{when}"] = getattr(state, name)
        for name, values in _of_markets(state, codes, T).items():
            found["markets"][f"{name}_{when}"] = values
    for part in found.values():
        for name in [column for column in part if column.endswith("_before")]:
            stem = name.removesuffix("_before")
            part[f"{stem}_change"] = part[f"{stem}_after"] - part[name]
    return found


def _of_markets(state: State, codes: AnyArray, T: int) -> dict[str, AnyArray]:
    xp = namespace(state.costs)

    def sums(values: AnyArray) -> AnyArray:
        return np.bincount(codes, values, T) if xp is np else jax.ops.segment_sum(values, codes, T)

    surplus, profits = state.compute_consumer_surpluses()[:, 0], sums(state.profits)
    revenue, sold = sums(state.revenues), xp.where(state.dropped, 0.0, 1.0)
    return {
        "consumer_surplus": surplus,
        "profits": profits,
        "revenue": revenue,
        "total": surplus + profits + revenue,
        "inside_share": sums(state.shares),
        "mean_price": sums(xp.where(state.dropped, 0.0, state.model.prices)) / sums(sold),
    }


def _averaging(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weights of means of markets in the mean over all products."""
    return weights * counts / (weights * counts).sum()


_ARGUMENTS = ("firm_ids", "ownership", "costs", "set", "drop", "hold", "prices", "taxes", "iteration")


def _solve(
    source: CounterfactualMethods,
    before: tuple[Scenario, ...],
    given: dict[str, Any],
    standard_errors: bool,
    hold_fixed: str,
    error_behavior: str,
) -> Counterfactual:
    read_flag("standard_errors", standard_errors)
    check_choice("hold_fixed", hold_fixed, ("shares", "xi"))
    check_choice("error_behavior", error_behavior, ("raise", "warn"))
    if source.draws is not None:
        raise NotImplementedError("counterfactual is not supported for draws. Use results with standard_errors=True.")
    scenario = read_scenario(source, any(one.kept is not None for one in before), given)
    entry = None
    if given.get("add") is not None:
        entry = read_entry(source.formulated, source.output_tables, given["add"], source.model)
        scenario = with_entry(scenario, entry, source.output_tables, given)
    found = Counterfactual(source, (*before, scenario), entry, standard_errors, hold_fixed)
    if (loops := found.after.loops) is not None:
        ids, action = source.output_tables.markets.ids, "The search for equilibrium prices"
        kind, warn = EquilibriumPricesConvergenceError, error_behavior == "warn"
        raise_for_status(loops.status, ids, action, loops.residuals, warn, kind)
    return found
