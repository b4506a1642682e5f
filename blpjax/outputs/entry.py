"""New products in known markets: tables, economy and model with rows for them after those that there are."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from blpjax.economy.buckets import build_economy, index_markets
from blpjax.economy.characteristics import Characteristics, build_characteristics
from blpjax.economy.conduct import ConductData, prepare_conduct
from blpjax.economy.ownership import firm_codes
from blpjax.exceptions import DataError
from blpjax.inputs.columns import read_vector
from blpjax.inputs.nesting import read_nesting
from blpjax.inputs.table_format import plain_value, read_table
from blpjax.kernels.arrays import namespace
from blpjax.model.formulated import Formulated, build_matrices
from blpjax.model.model import Model
from blpjax.model.scenario import State, starting_state
from blpjax.outputs.labels import OutputTables

#: Columns of the table of new products that are not columns of product data.
_OWN = ("xi", "costs", "like")


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """New products.

    Attributes
    ----------
    tables : products and markets with the new ones, which come last.
    characteristics : formulas and variables of all products.
    known, count : how many products there were, and how many are new.
    like : (count,) row of the product that a new one is like, or -1.
    xi : (count,) unobserved quality of those that are like none.
    costs : (count,) marginal costs, NaN where they follow from another product or from X3.
    conduct : that of the problem, with rows of new products.
    """

    tables: OutputTables
    characteristics: Characteristics
    known: int
    count: int
    like: np.ndarray
    xi: np.ndarray
    costs: np.ndarray
    conduct: ConductData | None = None

    @property
    def new(self) -> np.ndarray:
        """(N,) which products are new."""
        return np.arange(self.known + self.count) >= self.known

    def extend(self, model: Model) -> Model:
        """A model with the new products, as if they could be bought: with mean utilities, and mean prices."""
        xp = namespace(model.delta)
        economy, characteristics = self.tables.agents.economy, self.characteristics
        if xp is np:
            economy, characteristics = jax.tree.map(np.asarray, (economy, characteristics))
        joined = {}
        for name, values in characteristics.variables.items():
            before = model.characteristics.variables.get(name, values[: self.known])
            joined[name] = xp.concatenate([xp.asarray(before), xp.asarray(values[self.known :])])
        characteristics = eqx.tree_at(lambda c: c.variables, characteristics, joined)
        X1, beta = characteristics.evaluate({})[0], model.coefficients.beta
        mean, rows = X1 @ beta, np.where(self.like >= 0, self.like, 0)
        other = xp.where(self.like >= 0, model.delta[rows] - mean[rows], self.xi)
        delta = xp.concatenate([model.delta, mean[self.known :] + other])
        firms = self.tables.products.firm_ids
        longer = dataclasses.replace(model, economy=economy, characteristics=characteristics, delta=delta)
        return dataclasses.replace(longer, ownership=firm_codes(economy, firms), conduct=self.conduct)

    def all_costs(self, model: Model, costs: Any) -> Any:
        """Marginal costs (N,) with those of new products, given those of products that there were, in their rows."""
        xp = namespace(costs)
        X3, gamma = model.characteristics.evaluate_X3({}), model.coefficients.gamma
        explained = X3 @ gamma if X3.shape[1] else xp.full(costs.shape, np.nan)
        explained = (xp.exp(explained) if model.costs_type == "log" else explained)[self.known :]
        rows = np.where(self.like >= 0, self.like, 0)
        found = xp.where(self.like >= 0, costs[rows], explained)
        return xp.concatenate([costs[: self.known], xp.where(np.isnan(self.costs), found, self.costs)])


def first_state(model: Model, entry: Entry | None) -> State:
    """The point before all changes, perhaps with new products that nobody can choose."""
    if entry is None:
        return starting_state(model)
    longer = entry.extend(model)
    before = starting_state(longer, entry.new)
    return dataclasses.replace(before, costs=entry.all_costs(longer, before.costs))


def read_entry(
    data: Formulated, tables: OutputTables, add: Any, model: Model, conducts: Sequence[ConductData] = ()
) -> Entry:
    """Read a table of new products, with the columns that some `conducts` read.

    Raises
    ------
    DataError
        When a column is missing, or a row names a market or a product that does not exist.
    NotImplementedError
        When agents have availability or demographics that are specific to products.
    """
    products, table = tables.products, "add"
    given = read_table(add, table)
    if tables.agents.table.availability is not None or tables.agents.demographics.ndim != 2:
        raise NotImplementedError(
            "Products cannot be added where agents have availability or demographics that are specific to products. "
            "Have them in product_data from the start, and use drop."
        )
    if products.firm_ids is None:
        raise ValueError("Products cannot be added without a column 'firm_ids' of product_data: who sells them?")
    known, count = products.shares.size, len(next(iter(given.values()), []))
    markets = _column(given, "market_ids", table)
    for row, market in enumerate(markets):
        if not (tables.markets.ids == market).any():
            raise DataError(f"{table}: row {row} is in the market {plain_value(market)!r}, which does not exist.")
    like = _read_like(given, tables, markets)
    shares = np.full(count, 1e-3)
    if "prices" in given:
        prices = read_vector(given, "prices", table, markets)
    else:  # where the search for prices begins
        prices = np.array([products.prices[products.market_ids == one].mean() for one in markets])
    fixed = {"market_ids": markets, "prices": prices, "shares": shares}
    columns = {}
    used = {name for formulation in data.product_formulations if formulation is not None for name in formulation.names}
    fields = {"market_ids", "firm_ids", "prices", "shares", *(used & set(products.data))}
    groups = [name for name in ("nesting_ids", "subnesting_ids") if getattr(products, name) is not None]
    fields |= set(groups)
    fields |= {name for one in conducts for name in (*one.owners, *one.columns)} & set(products.data)
    for name in sorted(fields):
        old = products.data[name] if name not in ("prices", "shares") else getattr(products, name)
        new = fixed[name] if name in fixed else _column(given, name, table)
        columns[name] = _joined(old, new)
    if groups:
        each = list(zip(*(map(plain_value, columns[name]) for name in groups), strict=True))
        if unknown := sorted(set(each[known:]) - set(each[:known]), key=str):
            what = ", ".join(f"{name} {value!r}" for name, value in zip(groups, unknown[0], strict=True))
            raise DataError(f"{table}: there is a row with {what}, which is no group of products.")
    extra = sorted(set(given) - fields - {*_OWN, "product_ids"} - set(products.data))
    if extra:
        raise DataError(f"{table}: there is a column {extra[0]!r}, which product_data does not have.")
    designs = build_matrices(data.product_formulations, columns, demographics=data.D > 0)
    for name, design, old in zip(("X1", "X2", "X3"), designs, data.designs, strict=True):
        if design is not None and old is not None and design.labels != old.labels:
            raise DataError(f"{table}: {name} would have other columns, because a categorical variable has new values.")
    agents, index = tables.agents, index_markets(columns["market_ids"])
    economy = build_economy(
        index,
        index_markets(agents.table.market_ids),
        shares=columns["shares"],
        X2=np.zeros((known + count, 0)) if designs[1] is None else designs[1].values,
        weights=agents.table.weights,
        nodes=agents.table.nodes,
        demographics=agents.demographics,
        nests=read_nesting(*(columns[name] for name in groups)).codes if groups else None,
    )
    ids = None
    if products.product_ids is not None:
        own = products.product_ids if products.product_ids.ndim == 1 else products.product_ids[:, 0]
        ids = np.concatenate([own.astype(object), np.asarray(given.get("product_ids", [None] * count), object)])
    longer = dataclasses.replace(
        products,
        market_ids=columns["market_ids"],
        firm_ids=columns["firm_ids"],
        nesting_ids=columns.get("nesting_ids"),
        subnesting_ids=columns.get("subnesting_ids"),
        product_ids=ids,
        ownership=None,
        shares=columns["shares"],
        prices=columns["prices"],
        data=columns,
        index=None,
    )
    xi, costs = _read_unobserved(given, data, markets, like, model)
    return Entry(
        OutputTables(longer, index, dataclasses.replace(agents, economy=economy)),
        build_characteristics(designs, columns["prices"], columns["shares"]),
        known,
        count,
        like,
        xi,
        costs,
        None if data.conduct is None else prepare_conduct(data.conduct, longer),
    )


def _joined(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Both, without a change of values: numbers of both kinds become the wider one, anything else objects."""
    if old.dtype != new.dtype and not all(np.issubdtype(part.dtype, np.number) for part in (old, new)):
        old, new = old.astype(object), new.astype(object)
    return np.concatenate([old, new])


def _column(given: Mapping[str, np.ndarray], name: str, table: str) -> np.ndarray:
    if name not in given:
        raise DataError(f"{table}: there is no column {name!r}, which new products need.")
    return given[name].reshape(-1)


def _read_like(given: Mapping[str, np.ndarray], tables: OutputTables, markets: np.ndarray) -> np.ndarray:
    """Rows of products that new ones are like, -1 where there are none."""
    found = np.full(markets.size, -1)
    if "like" not in given:
        return found
    ids = tables.products.product_ids
    if ids is None:
        raise DataError("add: a column 'like' needs a column 'product_ids' of product_data.")
    own = ids if ids.ndim == 1 else ids[:, 0]
    for row, (market, name) in enumerate(zip(markets, given["like"].reshape(-1), strict=True)):
        if name is None or name != name:
            continue
        rows = np.flatnonzero((tables.products.market_ids == market) & (own == name))
        if rows.size != 1:
            raise DataError(
                f"add: row {row} is like the product {plain_value(name)!r}, of which there are {rows.size} in market "
                f"{plain_value(market)!r}."
            )
        found[row] = rows[0]
    return found


def _read_unobserved(
    given: Mapping[str, np.ndarray], data: Formulated, markets: np.ndarray, like: np.ndarray, model: Model
) -> tuple[np.ndarray, np.ndarray]:
    """Unobserved quality and costs of new products."""
    lonely = like < 0
    xi = read_vector(given, "xi", "add", markets) if "xi" in given else np.zeros(markets.size)
    absorbed = data.product_formulations[0].absorb is not None
    if absorbed and lonely.any():
        raise DataError(
            "add: fixed effects of new products are unknown. Name products that they are like in a column 'like', "
            "whose fixed effects and unobserved quality they then have."
        )
    if "costs" in given:
        return xi, read_vector(given, "costs", "add", markets)
    X3 = data.product_formulations[2]
    columns = model.characteristics.X3_columns
    if lonely.any() and (X3 is None or X3.absorb is not None or not columns):
        raise DataError("add: there is no column 'costs', and nothing explains marginal costs of new products.")
    if lonely.any() and any(column.depends_on("shares") for column in columns):
        raise DataError(
            "add: there is no column 'costs', and X3 explains them by shares, which new products have none of."
        )
    return xi, np.full(markets.size, np.nan)
