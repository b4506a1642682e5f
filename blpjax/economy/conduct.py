"""Conduct with what it reads from product data: owners and columns, which are found out by asking it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from blpjax.economy.buckets import Economy
from blpjax.economy.ownership import Ownership
from blpjax.exceptions import DataError
from blpjax.inputs.columns import list_rows, read_ids, read_ownership, read_vector
from blpjax.inputs.table_format import find_vector, plain_value
from blpjax.inputs.tables import ProductTable
from blpjax.kernels.arrays import AnyArray
from blpjax.kernels.conduct import Conduct, PriceSetting, check_conduct
from blpjax.kernels.conduct_parameters import (
    PairWeights,
    Parameter,
    at_parameters,
    parameters_of,
    refuse_parameters,
)
from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.priced_market import Matrices, Owners, PricedMarket
from blpjax.machine.compilation import filtered_program
from blpjax.machine.tracing import operations_of_jax

_TABLE = "product_data"

#: The column that says who sets which prices, and the name of matrices in its place.
FIRMS, OWNERSHIP = "firm_ids", "ownership"


class ConductData(eqx.Module):
    """A conduct whose numbers are arrays, with the rows of product data that it reads.

    Attributes
    ----------
    conduct : the conduct.
    owners : codes of owners (N,), or ownership matrices (N, max J), by name.
    columns : columns (N,), by name.
    kept : (N,) which part of a price firms get after ad valorem taxes, None where that is all.
    parameters : names of the conduct's parameters, which are elements of kappa, in that order.
    """

    conduct: Conduct
    owners: dict[str, AnyArray]
    columns: dict[str, AnyArray]
    kept: AnyArray | None = None
    parameters: tuple[str, ...] = eqx.field(static=True, default=())

    @property
    def name(self) -> str:
        """What messages call the conduct."""
        return self.conduct.name

    @property
    def has_known_weights(self) -> bool:
        """Whether firms set prices with profit weights that no parameter moves."""
        return isinstance(self.conduct, PriceSetting) and not self.parameters

    def at(self, kappa: AnyArray) -> "ConductData":
        """The same with numbers (C,) in place of its parameters; itself where it has none."""
        if not self.parameters:
            return self
        values = {name: kappa[c, ...] for c, name in enumerate(self.parameters)}  # arrays, also of NumPy
        return dataclasses.replace(self, conduct=at_parameters(self.conduct, values), parameters=())

    def take(self, rows: AnyArray) -> "ConductData":
        """The same for some rows, which may be repeated."""
        owners, columns, kept = jax.tree.map(lambda values: values[rows], (self.owners, self.columns, self.kept))
        return dataclasses.replace(self, owners=owners, columns=columns, kept=kept)

    def longer(self, rows: int) -> "ConductData":
        """The same with more rows, which are copies of the first one."""
        known = len(next(iter(jax.tree.leaves((self.owners, self.columns, self.kept))), range(rows)))
        return self.take(np.where(np.arange(rows) < known, np.arange(rows), 0))

    def spread(self, economy: Economy) -> tuple["MarketData", ...]:
        """What each bucket's markets have of it."""
        owners = {
            name: economy.unstack(values) if values.ndim == 2 else [part - 1 for part in economy.scatter(values + 1)]
            for name, values in self.owners.items()
        }
        columns = {name: economy.spread(values) for name, values in self.columns.items()}
        kept = None if self.kept is None else economy.spread(self.kept)
        return tuple(
            MarketData(
                {name: parts[b] for name, parts in owners.items()},
                {name: parts[b] for name, parts in columns.items()},
                None if kept is None else kept[b],
            )
            for b in range(len(economy.buckets))
        )

    def check_firms(self) -> None:
        """Raise `ValueError` where the conduct does not depend on firm IDs."""
        if FIRMS not in self.owners:
            raise ValueError(
                f"Conduct {self.name} does not depend on {FIRMS}, so other firms change nothing. Change the column "
                "that it reads in product_data, or give another conduct."
            )

    def with_owners(self, firm_ids: Any = None, ownership: AnyArray | None = None) -> "ConductData":
        """The same with other firms, by IDs (N,), which are not traced, or by matrices (N, max J).

        Raises
        ------
        ValueError
            When the conduct does not depend on firm IDs, or weighs some pairs of firms by their IDs.
        """
        if firm_ids is None and ownership is None:
            return self
        self.check_firms()
        if any(one.name == FIRMS and _is_by_pairs(one.weights) for one in _owners_of(self.conduct)):
            raise ValueError(
                f"Conduct {self.name} has weights by pairs of firms. Give a conduct with those of new firms."
            )
        known = _codes(np.asarray(firm_ids).reshape(-1)) if ownership is None else ownership
        return dataclasses.replace(self, owners=self.owners | {FIRMS: known})


class MarketData(NamedTuple):
    """Rows of one market: codes of owners (J,), -1 for padding, or matrices (J, J), columns (J,), and what is kept."""

    owners: dict[str, AnyArray]
    columns: dict[str, AnyArray]
    kept: AnyArray | None


def prepare_conduct(conduct: Any, table: ProductTable) -> ConductData:
    """A conduct with what it reads from product data.

    Raises
    ------
    TypeError
        When it is none, or a user's function is none of operations of JAX, or does not return numbers.
    ValueError
        When a user's function returns another shape than (J,), or weights do not fit.
    DataError
        When a column is missing or cannot be used, naming column, market and row.
    """
    known = check_conduct(conduct)
    parameters = tuple(parameters_of(known))
    reader, asked = _Reader(known.name, table), _asked_for(known)
    resolved = jax.tree.map(reader.resolve, known, is_leaf=_is_special)
    for name in asked.owners:
        reader.read_owners(name)
    for name in asked.columns:
        reader.column(name)
    known.check(reader.check)
    return ConductData(resolved, reader.owners, reader.columns, parameters=parameters)


def prepare_known_conduct(conduct: Any, table: ProductTable) -> ConductData:
    """`prepare_conduct` for a conduct whose numbers all have to be known; `ValueError` where it has parameters."""
    refuse_parameters(check_conduct(conduct))
    return prepare_conduct(conduct, table)


def columns_read(conduct: Conduct) -> tuple[str, ...]:
    """Names of the columns of product data that a conduct reads, IDs included."""
    asked = _asked_for(conduct)
    return *asked.owners, *asked.columns


def in_market(demand_at: Callable[..., DemandPoint], arguments: Any, prices: Array, known: MarketData) -> PricedMarket:
    """One market with what `ConductData.spread` has for it."""
    return PricedMarket(demand_at, prices, arguments, *known)


def price_setting_ownership(economy: Economy, conduct: ConductData) -> Ownership:
    """Ownership matrices (T, J, J) by bucket of firms that set prices, whose conduct is a `PriceSetting`."""
    found = _weights(tuple(bucket.present for bucket in economy.buckets), conduct.conduct, conduct.spread(economy))
    return tuple(map(np.asarray, found)) if economy.on_host else found


@filtered_program(effort=0)
def _weights(present: Any, conduct: Conduct, known: Any) -> Any:
    assert isinstance(conduct, PriceSetting)

    def one(present: Array, known: MarketData) -> Array:
        H = conduct.weights_in(PricedMarket(_some_demand, jnp.ones(present.size), present, *known))
        return jnp.where(present[:, None] & present[None, :], H, 0.0)

    return tuple(jax.vmap(one)(*bucket) for bucket in zip(present, known, strict=True))


# what a conduct reads

#: How many products the market has that a conduct is shown to find out what it reads.
_PRODUCTS = 3


class _Asked:
    """Takes note of the names of what a conduct asks for."""

    def __init__(self) -> None:
        self.owners: dict[str, None] = {}
        self.columns: dict[str, None] = {}


class _AskedMarket(PricedMarket):
    """A market with any numbers that takes note of what it is asked for."""

    asked: _Asked | None = eqx.field(static=True, default=None)

    def column(self, name: str) -> Array:
        """Ones."""
        assert self.asked is not None
        self.asked.columns[name] = None
        return jnp.ones_like(self.prices)

    def _owner(self, name: str) -> Array:
        J = self.prices.size
        if name == _MATRICES.name:
            return jnp.eye(J)
        assert self.asked is not None
        self.asked.owners[name] = None
        return jnp.eye(J) if name == OWNERSHIP else jnp.arange(J) * 0


#: Stands for matrices of weights, which are not read.
_MATRICES = Matrices("weights")


def _asked_for(conduct: Conduct) -> _Asked:
    """What a conduct asks for, whatever its numbers are; found out once, where it can be found again."""
    plain = jax.tree.map(
        lambda leaf: Owners(leaf.name, _MATRICES if np.ndim(leaf.weights) == 2 else None) if _is_owners(leaf) else 0.5,
        conduct,
        is_leaf=_is_special,
    )
    try:
        hash(plain)
    except TypeError:  # a user's class with fields of any kind
        return _ask(plain)
    return _ask_once(plain)


def _ask(conduct: Conduct) -> _Asked:
    asked = _Asked()

    def markups(prices: Array) -> Array:
        return conduct.markups(_AskedMarket(_some_demand, prices, None, {}, {}, asked=asked))

    with operations_of_jax(f"Conduct {conduct.name!r}", "jax.numpy in place of numpy"):
        found = jax.eval_shape(markups, jnp.ones(_PRODUCTS))
    if found.shape != (_PRODUCTS,):
        raise ValueError(
            f"Conduct {conduct.name!r} must return a markup for each product of a market, an array of the shape "
            f"{(_PRODUCTS,)} for {_PRODUCTS} products, not {found.shape}."
        )
    return asked


_ask_once = functools.lru_cache(maxsize=256)(_ask)


def _some_demand(prices: Array, arguments: Any) -> DemandPoint:
    """A logit of the products that `arguments` (J,) say, or all."""
    J = prices.size
    present = jnp.ones(J, bool) if arguments is None else arguments
    none, ones = jnp.zeros((J, 0)), jnp.ones(J)
    return DemandPoint(
        -prices, none, jnp.zeros((0, 1)), jnp.ones(1), present[:, None] * 1.0, -ones, none, present, None
    )


def _is_by_pairs(weights: Any) -> bool:
    return isinstance(weights, PairWeights) or np.ndim(weights) == 2


def _is_owners(leaf: Any) -> bool:
    return isinstance(leaf, Owners)


def _is_special(leaf: Any) -> bool:
    return isinstance(leaf, Owners | Parameter)


# reading


class _Reader:
    """Reads what a conduct asks for."""

    def __init__(self, name: str, table: ProductTable) -> None:
        self.user = f"conduct {name}"
        self.table = table
        self.owners: dict[str, np.ndarray] = {}
        self.columns: dict[str, np.ndarray] = {}

    def resolve(self, leaf: Any) -> Any:
        """Numbers as arrays, and weights as kernels read them. Parameters stay what they are."""
        if isinstance(leaf, Parameter):
            return leaf
        if not isinstance(leaf, Owners):
            return np.asarray(leaf, float)
        weights = leaf.weights
        if isinstance(weights, Mapping):
            return Owners(leaf.name, self._pairs(leaf.name, weights))
        if isinstance(weights, Parameter):
            return leaf
        if weights is None or np.ndim(weights) == 0:
            return Owners(leaf.name, None if weights is None else np.asarray(weights, float))
        name = f"weights {len(self.owners)}"
        self.owners[name] = self._matrices(weights)
        return Owners(leaf.name, Matrices(name))

    def read_owners(self, name: str) -> None:
        """Codes of owners, or matrices."""
        if name == OWNERSHIP and self.table.ownership is not None:
            self.owners[name] = np.nan_to_num(self.table.ownership)
        else:
            self.owners[name] = _codes(self._ids(name))

    def column(self, name: str) -> np.ndarray:
        """A column of numbers."""
        if name not in self.columns:
            table = self.table
            self.columns[name] = read_vector(table.data, name, _TABLE, table.market_ids, self.user)
        return self.columns[name]

    def check(self, name: str, allowed: Callable[[Any], Any], words: str) -> None:
        """Refuse rows of a column."""
        values = self.column(name)
        bad = np.flatnonzero(~np.asarray(allowed(values)))
        if bad.size:
            rows = list_rows(bad, self.table.market_ids, values)
            raise DataError(f"{_TABLE}: column '{name}' must {words} for {self.user}, but is not in {rows}.")

    def _ids(self, name: str) -> np.ndarray:
        table = self.table
        if name == FIRMS and table.firm_ids is not None:
            return table.firm_ids
        if name == FIRMS and table.ownership is not None and FIRMS not in table.data:
            raise DataError(
                f"{_TABLE}: there is no column '{FIRMS}', which {self.user} needs. Use ownership='{OWNERSHIP}' for the "
                "matrices that there are."
            )
        find_vector(table.data, name, _TABLE, self.user)
        found = read_ids(table.data, name, _TABLE, table.market_ids)
        assert found is not None
        return found

    def _matrices(self, weights: Any) -> np.ndarray:
        """Ownership matrices (N, max J), zero in padding."""
        values, N = np.asarray(weights, float), self.table.market_ids.size
        if len(values) != N:
            raise ValueError(f"weights must be matrices with {N} rows, one for each product, not {len(values)}.")
        try:
            found = read_ownership({OWNERSHIP: values}, "weights", self.table.market_ids)
        except DataError as error:
            raise ValueError(str(error)) from None
        assert found is not None
        return np.nan_to_num(found)

    def _pairs(self, name: str, weights: Mapping[Any, Any]) -> np.ndarray | PairWeights:
        """Weights (F, F) by codes of owners."""
        ids = np.unique(self._ids(name))
        matrix, places = np.eye(ids.size), {plain_value(one): place for place, one in enumerate(ids)}
        parts: dict[Parameter, np.ndarray] = {}
        for pair, weight in weights.items():
            unknown = [one for one in pair if plain_value(one) not in places]
            if unknown:
                shown = ", ".join(repr(one) for one in list(places)[:10]) + ", ..." * (len(places) > 10)
                raise ValueError(
                    f"weights have {unknown[0]!r}, which is no value of column '{name}'. There are {shown}."
                )
            f, g = (places[plain_value(one)] for one in pair)
            if isinstance(weight, Parameter):
                matrix[f, g] = 0.0
                parts.setdefault(weight, np.zeros_like(matrix))[f, g] = 1.0
            else:
                matrix[f, g] = float(weight)
        return PairWeights(matrix, tuple(parts.items())) if parts else matrix


def _codes(ids: np.ndarray) -> np.ndarray:
    return np.unique(ids, return_inverse=True)[1].reshape(-1)


def _owners_of(conduct: Conduct) -> list[Owners]:
    return [leaf for leaf in jax.tree.leaves(conduct, is_leaf=_is_owners) if _is_owners(leaf)]
