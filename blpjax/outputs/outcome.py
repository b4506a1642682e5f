"""Outcomes of counterfactuals: markets before and after a change, as tables and as a source of outputs."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import numpy as np
import pandas as pd

from blpjax.economy.buckets import index_markets
from blpjax.economy.loops import Loops, worst_loops
from blpjax.exceptions import (
    EquilibriumPricesConvergenceError,
    raise_for_status,
    succeeded,
)
from blpjax.inputs.arguments import check_choice
from blpjax.machine.announcements import said
from blpjax.model.model import Model
from blpjax.model.scenario import Scenario, State
from blpjax.outputs.certified import (
    largest_curvatures,
    read_starts,
    report_curvatures,
    try_starts,
    warn_of_several,
)
from blpjax.outputs.changes import read_scenario, with_entry
from blpjax.outputs.entry import Entry, first_state, read_entry
from blpjax.outputs.labels import OutputTables
from blpjax.outputs.outcome_numbers import (
    MARKET_COLUMNS,
    PRODUCT_COLUMNS,
    Numbers,
    averaging,
    numbers_of,
    read_market_weights,
    spread_of,
    spreads_of,
    surpluses_of_agents,
)
from blpjax.outputs.outputs import Outputs
from blpjax.outputs.query import Given, Output
from blpjax.outputs.sources import OutcomeSource
from blpjax.reporting.tables import Part, Shown
from blpjax.values import read_flag


class Counterfactual(Shown):
    """Markets before and after a change.

    Attributes
    ----------
    before, after : the points: `blpjax.model.scenario.State` with arrays of NumPy.
    products : a row for each product: market, product and firms, and prices, shares, costs, net_prices (what firms get)
        and profits (by product, for each consumer in the market), each with ``_before``, ``_after`` and ``_change``.
        Products that were dropped have a share and profits of zero, and no price.
    markets : a row for each market: consumer_surplus, profits, revenue (of taxes), total (their sum), inside_share and
        mean_price (over products), likewise; ``converged`` and ``residual`` of the search for prices,
        ``largest_curvature`` with `check`, and ``equilibria``, how many different ones were found, with `starts`.
    firms : profits of each firm in each market.

    Methods such as `compute_elasticities` are those of `ProblemResults`, after the change.

    Outcomes of results with draws (`BootstrappedResults.counterfactual`) are those at the estimates, and tables have
    columns ``..._se``, ``..._lower`` and ``..._upper``: standard deviations over draws, and limits of 95% intervals of
    percentiles. What compute methods return has a first axis of `draws`. `drawn` has numbers of draws by table and
    column, such as ``outcome.drawn["markets"]["total_change"]`` (draws, T). Draws without an equilibrium in a market
    (``failures`` in `markets` counts them) are left out there.

    Consumer surplus is in units of prices, for each consumer. Its change is the compensating variation where utility
    is linear in prices; otherwise it is the approximation that `compute_consumer_surpluses` describes.
    With `standard_errors` tables have columns ``..._se``.
    """

    def __init__(
        self,
        source: OutcomeSource,
        scenarios: tuple[Scenario, ...],
        entry: Entry | None,
        standard_errors: bool,
        hold_fixed: str,
    ) -> None:
        self._source, self._scenarios, self._entry, self._hold = source, scenarios, entry, hold_fixed
        centre = source.centre
        self._tables = centre.output_tables if entry is None else entry.tables
        self.before, self.after = (jax.tree.map(np.asarray, state) for state in self._states(centre.model.on_host()))
        self.draws = source.draws
        self._found = self.drawn = self._drawn_loops = None
        if self.draws is not None:
            self.drawn, self._drawn_loops = self.over_draws(self._with_loops)
        elif standard_errors:
            self._found = self.delta_method(self._numbers)

    def _parts(self) -> list[Part]:
        failed = self.markets.loc[~self.markets["converged"], "market_ids"].tolist()
        draws = "" if self.draws is None else f", and intervals over {self.draws} draws"
        parts: list[Part] = [f"Counterfactual, means over {len(self.markets)} markets{draws}:", self.summary()]
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
        if self.draws is not None:
            drawn = self._drawn_loops
            frame["failures"] = 0 if drawn is None else (~succeeded(drawn.status)).sum(axis=0)
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

        Columns are before, after and change, with standard errors and intervals where tables have them. Prices are
        always averaged, over products, with their market's weight. A market without an equilibrium makes these numbers
        NaN.

        Raises
        ------
        ValueError
            When there is not one finite weight for each market.
        """
        w = read_market_weights(weights, len(self._tables.markets.ids))
        rows: dict[str, dict[str, Any]] = {}
        for name in MARKET_COLUMNS:
            sums = [(when, w if name != "mean_price" else averaging(w, counts)) for when, counts in self._counts()]
            rows[name] = {when: v @ self._value("markets", name, when) for when, v in sums}
            rows[name]["change"] = rows[name]["after"] - rows[name]["before"]
            if self.drawn is not None:
                rows[name] |= spreads_of(*(self.drawn["markets"][f"{name}_{when}"] @ v for when, v in sums))
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
        before, after = (self._by_row(found) for found in surpluses_of_agents(self.before, self.after))
        drawn = None if self.draws is None else [self._by_row(found) for found in self.over_draws(surpluses_of_agents)]
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
            w, places = part["weight"].to_numpy() / weight, part.index.to_numpy()
            row |= {"before": before[places] @ w, "after": after[places] @ w}
            row["change"] = row["after"] - row["before"]
            if drawn is not None:
                row |= spreads_of(*(values[:, places] @ w for values in drawn))
            rows[group] = row
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group").reset_index()

    def _by_row(self, surpluses: np.ndarray) -> np.ndarray:
        """Surpluses (..., T, max I) in the order of the agent table (..., I)."""
        agents = self._tables.agents
        present = np.arange(max(agents.counts)) < np.array(agents.counts)[:, None]
        found = np.empty((*surpluses.shape[:-2], agents.table.weights.size))
        order = np.concatenate(index_markets(agents.table.market_ids).rows)
        found[..., order] = surpluses[..., : present.shape[1]][..., present]
        return found

    def total(self, values: Any) -> pd.DataFrame:
        """Sums over products of values (N,) times shares, before, after and their change, by market.

        For example emissions, or calories: values are those of one unit of the product.
        """
        numbers = _After(self).ask(None, False, False, "shares").read(values=values)["values"]
        codes, T = self._tables.markets.codes, len(self._tables.markets.ids)
        before, after = (np.bincount(codes, numbers * s.shares, T) for s in (self.before, self.after))
        columns = {"before": before, "after": after, "change": after - before}
        if self.drawn is not None:
            member = codes == np.arange(T)[:, None]
            shares = (self.drawn["products"][f"shares_{when}"] for when in ("before", "after"))
            columns |= spreads_of(*((numbers * s) @ member.T for s in shares))
        return pd.DataFrame({"market_ids": self._tables.markets.ids} | columns)

    # going on

    def delta_method(self, function: Callable[[State, State], Any]) -> Any:
        """Standard errors of a function of both points, ``lambda before, after: ...``, in operations of JAX.

        Points have `prices`, `shares`, `costs`, `net_prices`, `profits` and `revenues` (N,),
        `compute_consumer_surpluses()` (T, 1), and the `model` with all that it computes.
        """
        return self._source.delta_method(lambda model: function(*self._states(model)), hold=self._hold)

    def over_draws(self, function: Callable[[State, State], Any]) -> Any:
        """A function of both points, as in `delta_method`, at each draw: arrays of NumPy with a first axis of draws.

        Raises
        ------
        TypeError
            When results have no draws.
        """
        if self._source.draws is None:
            raise TypeError("There are no draws. Use counterfactual of bootstrapped results, or delta_method.")
        return self._source.evaluate_output(lambda model, given: function(*self._states(model)), {})

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
        return solve_counterfactual(self._source, self._scenarios, given, standard_errors, self._hold, error_behavior)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("compute_", "extract_")) and hasattr(Outputs, name):
            if name in _OF_SUPPLY and (
                self._remitted or any(scenario.hold is not None for scenario in self._scenarios)
            ):
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
        """Whether there are taxes after the change."""
        return self._remitted or self.after.paid is not None

    @property
    def _remitted(self) -> bool:
        """Whether firms get something else than prices after the change."""
        return bool((self.after.kept != 1).any() or (self.after.unit != 0).any())

    def _states(self, model: Model) -> tuple[State, State]:
        state = before = first_state(model, self._entry)
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
        return numbers_of(before.base, before, after, markets.codes, len(markets.ids))

    def _with_loops(self, before: State, after: State) -> tuple[Numbers, Loops | None]:
        return self._numbers(before, after), after.loops

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
                if self.drawn is not None:
                    for key, values in spread_of(self.drawn[table][f"{name}_{when}"])._asdict().items():
                        columns[f"{name}_{when}_{key}"] = values
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
        self.draws = found.draws

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

    def evaluate_output(self, function: Output, given: Given) -> Any:
        found = self._found
        if self.draws is None:
            return super().evaluate_output(function, given)
        return found._source.evaluate_output(lambda model, given: function(found._states(model)[1].model, given), given)


#: Outputs that take observed prices for those that firms without taxes set.
_OF_SUPPLY = frozenset(
    "compute_costs compute_passthrough compute_approximate_prices compute_prices compute_markups compute_profits "
    "compute_profit_hessians".split()
)


_ARGUMENTS = ("firm_ids", "ownership", "costs", "set", "drop", "hold", "prices", "taxes", "iteration", "conduct")


def solve_counterfactual(
    source: OutcomeSource,
    before: tuple[Scenario, ...],
    given: dict[str, Any],
    standard_errors: bool,
    hold_fixed: str,
    error_behavior: str,
    check: bool = False,
    starts: Any = None,
) -> Counterfactual:
    """The outcome of a change, with arguments that `CounterfactualMethods.counterfactual` documents.

    Parameters
    ----------
    source : results.
    before : changes that there have been already.
    given : arguments by name, of those that say what changes.
    standard_errors, hold_fixed, error_behavior, check, starts : see there.
    """
    read_flag("check", check)
    tried = read_starts(starts)
    if given["prices"] is not None and (check or tried):
        raise ValueError("check and starts have no meaning where prices are given, which nobody sets.")
    read_flag("standard_errors", standard_errors)
    check_choice("hold_fixed", hold_fixed, ("shares", "xi"))
    check_choice("error_behavior", error_behavior, ("raise", "warn"))
    if source.draws is not None and (standard_errors or hold_fixed != "shares"):
        raise TypeError("Draws say themselves how uncertain outcomes are: leave standard_errors and hold_fixed out.")
    centre, entry = source.centre, None
    scenario = read_scenario(centre, before, given)
    if given.get("add") is not None:
        read = [one for one in (scenario.conduct, centre.model.conduct) if one is not None]
        entry = read_entry(centre.formulated, centre.output_tables, given["add"], centre.model, read)
        scenario = with_entry(scenario, entry, centre.output_tables, given)
    competing = scenario.conduct is not None or centre.model.conduct is not None
    if check and (competing or any(one.conduct is not None for one in before)):
        raise NotImplementedError("check is supported for firms that set prices, without conduct.")
    markets, equilibria = (centre.output_tables if entry is None else entry.tables).markets, None
    if tried is not None:
        state = first_state(centre.model.on_host(), entry)
        for one in before:
            state = one.apply(state)
        scenario, equilibria = try_starts(state, scenario, markets.codes, len(markets.ids), tried)
    with said("Solving for prices after the change ..."):
        found = Counterfactual(source, (*before, scenario), entry, standard_errors, hold_fixed)
    if equilibria is not None:
        found.markets["equilibria"] = equilibria
        warn_of_several(equilibria, markets.ids)
    if check:
        curvatures = largest_curvatures(found.after, markets.rows, scenario.hold)
        found.markets["largest_curvature"] = curvatures
        report_curvatures(curvatures, markets.ids, error_behavior == "warn")
    ids, action = centre.output_tables.markets.ids, "The search for equilibrium prices"
    kind, warn = EquilibriumPricesConvergenceError, error_behavior == "warn"
    if (loops := found.after.loops) is not None:
        raise_for_status(loops.status, ids, action, loops.residuals, warn, kind)
    if (drawn := found._drawn_loops) is not None:
        failed = np.flatnonzero(~succeeded(drawn.status).all(axis=1))
        worst, action = worst_loops(drawn, axis=0), f"{action} failed for {failed.size} of {source.draws} draws: it"
        raise_for_status(worst.status, ids, action, worst.residuals, warn, kind, note="Intervals leave these out.")
    return found
