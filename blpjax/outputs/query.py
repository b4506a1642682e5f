"""One call of a compute method: arguments checked, a market picked, the output evaluated, cut to size and labelled."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from blpjax.economy.buckets import AgentsInEconomy, Economy, MarketIndex
from blpjax.economy.conduct import ConductData, prepare_known_conduct
from blpjax.exceptions import ConvergenceError, raise_for_status
from blpjax.inputs.arguments import check_index
from blpjax.inputs.columns import find_unowned
from blpjax.inputs.integration import Integration
from blpjax.inputs.table_format import plain_value
from blpjax.inputs.tables import ProductTable
from blpjax.iteration import Iteration
from blpjax.machine.announcements import said
from blpjax.machine.tracing import operations_of_jax
from blpjax.model.model import Model
from blpjax.model.one_market import MarketPlace, find_market
from blpjax.model.parameters import ParameterLayout
from blpjax.outputs.labels import COLUMNS, KINDS, Extent, OutputTables

#: Arguments of a method of `Model` that are arrays, by name.
Given = dict[str, Any]
#: An output as a function of the model and of arrays that the user gave: an array, or `Checked`.
Output = Callable[[Model, Given], Any]


class Checked(NamedTuple):
    """An output (...) that comes from loops, with their status codes and residuals by market (T,)."""

    values: Any
    status: Any
    residuals: Any


class Loop(NamedTuple):
    """What the loops of an output do, in words, and whether failures warn or raise an exception, of which kind."""

    action: str
    warn: bool
    kind: type[ConvergenceError] = ConvergenceError


class Source:
    """What outputs are computed from: results, which say what has no meaning here."""

    #: How many draws results hold; None for one set of parameters. Arguments may then have a first axis of draws.
    draws: int | None = None

    @property
    def model(self) -> Model:
        """The model from which outputs are computed."""
        raise NotImplementedError

    @property
    def output_tables(self) -> OutputTables:
        """The tables that label outputs."""
        raise NotImplementedError

    def build_agents(self, agent_data: Any, integration: Integration | None) -> AgentsInEconomy:
        """The same economy with other agents."""
        raise NotImplementedError

    def model_in(self, economy: Economy) -> Model:
        """The model in an economy with other agents."""
        raise NotImplementedError

    def delta_method(self, function: Callable[[Model], Any], hold: str = "shares") -> Any:
        """Standard errors of a function of the model; here there are none."""
        raise TypeError(f"{type(self).__name__} has no standard errors: its parameters are known.")

    def evaluate_output(self, function: Output, given: Given) -> Any:
        """A pytree of NumPy arrays: the function at the model. Results with draws do this for each of them."""
        return jax.tree.map(np.array, function(self.model, given))

    def ask(
        self,
        market_id: Any,
        as_frame: bool,
        standard_errors: bool,
        hold: str,
        agent_data: Any = None,
        integration: Integration | None = None,
    ) -> "Query":
        """What is asked for in one call of a compute method: its arguments of these names."""
        tables = self.output_tables
        agents, layout = tables.agents, None
        if agent_data is not None or integration is not None:
            agents = self.build_agents(agent_data, integration)
            layout = self.model_in(agents.economy).layout
        position = place = None
        if market_id is not None:
            position = _market_position(tables.markets, market_id)
            place = find_market(agents.economy, position, tables.markets.rows[position])
        extent = Extent(tables, agents, position, alone=place is not None)
        return Query(self, extent, layout, place, as_frame, standard_errors, hold)


@dataclasses.dataclass(frozen=True)
class Query:
    """Which market is asked for, with which agents, and how the answer is to be given.

    Attributes
    ----------
    source : the results that are asked.
    extent : what is asked for of outputs, and what their rows are.
    layout : of the parameters in the agents' economy, None when these are the model's own.
    place : where the one market is whose model is evaluated alone, None when that of all markets is.
    as_frame, standard_errors, hold : see `blpjax.outputs.outputs.Outputs`.
    on_host : whether the output may be computed on the host, with NumPy, where the model is neither traced nor large.
    """

    source: Source
    extent: Extent
    layout: ParameterLayout | None
    place: MarketPlace | None
    as_frame: bool
    standard_errors: bool
    hold: str
    on_host: bool = True

    @property
    def rows(self) -> np.ndarray:
        """Rows of the product table that are asked for."""
        return self.extent.rows

    def of_all_markets(self) -> "Query":
        """The same for functions of users: of JAX, and at the model of all markets, also where one is asked for."""
        extent = dataclasses.replace(self.extent, alone=False)
        return dataclasses.replace(self, place=None, extent=extent, on_host=False)

    # arguments

    def read(self, **arguments: Any) -> Given:
        """Numbers by product, those that are not None, ready for the methods of the model that is asked.

        Raises
        ------
        ValueError
            When there is not one finite number for each product.
        """
        return {name: self.pad(self._read(name, values)) for name, values in arguments.items() if values is not None}

    def read_ids(self, name: str, ids: Any) -> np.ndarray | None:
        """IDs of firms by product.

        Raises
        ------
        ValueError
            When there is not one ID for each product.
        """
        if ids is None:
            return None
        check_index(name, ids, self._index)
        try:
            array = np.asarray(ids).reshape(-1)
        except ValueError as error:
            raise ValueError(
                f"{name} must hold {self.rows.size} IDs, one for each product, not a nested list of unequal lengths."
            ) from error
        if array.size != self.rows.size:
            raise ValueError(f"{name} must hold {self.rows.size} IDs, one for each product, not {array.size}.")
        missing = np.flatnonzero(pd.isna(array))
        if missing.size:
            raise ValueError(f"{name} must not have missing values, but row {missing[0]} has.")
        return self.pad(array)

    def read_ownership(self, firm_ids: Any, ownership: Any) -> tuple[np.ndarray | None, Given]:
        """Firm IDs and stacked ownership matrices, which may have a first axis of draws.

        Raises
        ------
        ValueError
            When IDs or matrices do not fit the products.
        """
        firms = self.read_ids("firm_ids", firm_ids)
        if ownership is None:
            return firms, {}
        check_index("ownership", ownership, self._index)
        array = _numbers("ownership", ownership)
        inside = self.extent.products_present[self.rows, self.extent.columns]
        N, width = inside.shape
        leading = () if array.ndim != 3 or self.source.draws is None else (self.source.draws,)
        if array.shape != (*leading, N, width):
            raise ValueError(f"ownership must have the shape {(N, width)}, not {array.shape}.")
        bad = np.argwhere(~np.isfinite(np.where(inside, array, 0.0)))
        if bad.size:
            raise ValueError(f"ownership must be finite, but row {bad[0][-2]} is not.")
        if (unowned := find_unowned(np.where(inside, array, 0.0))).size:
            market = self.extent.tables.markets.long_ids[self.rows[unowned[0]]]
            raise ValueError(
                f"ownership must not have rows of zeros, but row {unowned[0]} is one, in market "
                f"{plain_value(market)!r}: nobody's profit depends on the price of this product."
            )
        missing = self._missing
        more = [(0, 0)] * len(leading) + [(0, missing), (0, missing)]
        return firms, {"ownership": np.pad(np.where(inside, array, 0.0), more)}

    def read_conduct(self, conduct: Any, ownership: Any = None) -> ConductData | None:
        """A conduct with what it reads from product data in the rows that are asked for; None where it is not given.

        Raises
        ------
        TypeError, ValueError, DataError
            See `prepare_known_conduct`; also when ownership matrices are given, too.
        """
        if conduct is None:
            return None
        if ownership is not None:
            raise ValueError("Give either ownership or conduct: Bertrand(weights=...) has ownership matrices.")
        known = prepare_known_conduct(conduct, self.source.output_tables.products)
        return known if self.place is None else known.take(np.r_[self.rows, np.repeat(self.rows[:1], self._missing)])

    def pad(self, values: np.ndarray) -> np.ndarray:
        """Values (..., J) of one market with as many places as the model of one market has; the first one repeated."""
        return np.concatenate([values, np.repeat(values[..., :1], self._missing, axis=-1)], axis=-1)

    def read_function(self, function: Callable[[Model], Any], by: str, name: str) -> Output:
        """A user's function as an output of all markets that has NaN in padding.

        Raises
        ------
        TypeError
            When it is not a function; when it is called, for what is no operation of JAX or returns no numbers.
        ValueError
            When there are no outputs by this, or `name` has another meaning in tables; when it is called, for shapes.
        """
        if not callable(function):
            raise TypeError(f"function must be a function of a Model, not {type(function).__name__}.")
        if by not in KINDS:
            raise ValueError(f"by must be one of {', '.join(map(repr, KINDS))}, not {by!r}.")
        if name in COLUMNS:
            raise ValueError(f"name must not be {name!r}, which is another column of tables.")
        present = KINDS[by].present(self.extent)

        def output(model: Model, given: Given) -> Any:
            with operations_of_jax():
                values = function(model)
            return jnp.where(present, _read_output(values, by, present.shape), jnp.nan)

        return output

    # answers

    def answer(self, by: str, name: str, function: Output, given: Given | None = None, loop: Loop | None = None) -> Any:
        """The answer to the query.

        Parameters
        ----------
        by : what the output is labelled by, which decides its shape: see `blpjax.outputs.labels.KINDS`.
        name : of the column of its values in a table.
        function : the output; of loops, where `loop` says what these do.
        given : arrays that the user gave.
        loop : see there.

        Returns
        -------
        An array, a table, or what `delta_method` returns.
        """
        if self.as_frame and self.source.draws is not None:
            raise NotImplementedError("as_frame is not supported for draws. Use the array, or one set of parameters.")
        kind = KINDS[by]
        frame = functools.partial(kind.frame, self.extent)

        def asked(model: Model, given: Given) -> Any:
            found = function(self._restrict(model), given)
            if loop is None:
                return kind.cut(self.extent, found)
            return found._replace(values=kind.cut(self.extent, found.values))

        with said(f"Computing {name.replace('_', ' ')} ..."):
            return self._answer(asked, name, frame, {} if given is None else given, loop)

    def _answer(
        self,
        asked: Output,
        name: str,
        frame: Callable[[Any, str], pd.DataFrame],
        arguments: Given,
        loop: Loop | None,
    ) -> Any:
        if not self.standard_errors:
            values = self.source.evaluate_output(asked, arguments)
            if loop is not None:
                self._check(values, loop)
                values = values.values
            return frame(values, name) if self.as_frame else values

        def of_model(model: Model) -> Any:
            found = asked(model, arguments)
            # how loops ended comes along as numbers whose derivatives are zero: nothing is solved a second time for it
            return found if loop is None else (found.values, _constant(found.status), _constant(found.residuals))

        result = self.source.delta_method(of_model, hold=self.hold)
        if loop is not None:
            found = Checked(*result.value)
            self._check(found, loop)
            result = dataclasses.replace(result, value=found.values, jacobian=result.jacobian[: found.values.size])
        value = np.asarray(result.value)
        places = np.arange(value.size, dtype=float).reshape(value.shape)
        labelled = dataclasses.replace(result, labels=frame(places, name))
        return labelled.to_frame() if self.as_frame else labelled

    def _restrict(self, model: Model) -> Model:
        if self.layout is not None:
            model = model.with_agents(self.extent.agents.economy, self.layout)
        if self.on_host:
            model = model.on_host()
        if self.place is None:
            return model
        alone = model.in_market(self.place)
        return alone.on_host() if self.on_host else alone

    def _check(self, found: Checked, loop: Loop) -> None:
        """Report failures by market, in whichever draw."""
        market_ids = self.extent.market_ids
        T = market_ids.size
        status = np.asarray(found.status).reshape(-1, T).astype(int)
        worst = status.argmax(axis=0), np.arange(T)
        residuals = np.asarray(found.residuals).reshape(-1, T)[worst]
        raise_for_status(status[worst], market_ids, loop.action, residuals, loop.warn, loop.kind)

    @property
    def _missing(self) -> int:
        """How many products the one market lacks of its bucket's size."""
        if self.place is None:
            return 0
        return self.extent.agents.economy.buckets[self.place.bucket].size[1] - self.rows.size

    @property
    def _index(self) -> pd.Index | None:
        """Pandas' index of the rows of the product table that are asked for, None where they have none."""
        index = self.extent.tables.products.index
        return None if index is None else index[self.rows]

    def _read(self, name: str, values: Any) -> np.ndarray:
        check_index(name, values, self._index)
        array = _numbers(name, values)
        N, draws = self.rows.size, self.source.draws
        if draws is not None and array.ndim > 1 and array.size == draws * N and len(array) == draws:
            array = array.reshape(draws, N)
        elif array.size == N:
            array = array.reshape(-1)
        else:
            raise ValueError(f"{name} must hold {N} numbers, one for each product, not {array.size}.")
        bad = np.argwhere(~np.isfinite(array))
        if bad.size:
            raise ValueError(f"{name} must be an array of finite numbers: row {bad[0][-1]} is {array[tuple(bad[0])]}.")
        return array


def read_iteration(iteration: Any) -> Iteration:
    """An `Iteration`, or `TypeError`."""
    if not isinstance(iteration, Iteration):
        raise TypeError(f"iteration must be Iteration or None, not {type(iteration).__name__}.")
    return iteration


def read_factor(factor: Any) -> float:
    """A fraction by which a variable changes, or `ValueError`."""
    number = float(factor)
    if not np.isfinite(number) or number == 0:
        raise ValueError(f"factor must be a finite number other than zero, not {factor!r}.")
    return number


def find_products(products: ProductTable, ids: Any, index: int) -> np.ndarray:
    """(N,) which products have one of the IDs in a column of product IDs, or `ValueError`."""
    if products.product_ids is None:
        raise ValueError("eliminate_product_ids needs a column 'product_ids' in product_data.")
    columns = products.product_ids.reshape(products.shares.size, -1)
    if not 0 <= index < columns.shape[1]:
        raise ValueError(f"product_ids_index must be between 0 and {columns.shape[1] - 1}, not {index!r}.")
    known = columns[:, index]
    wanted = np.atleast_1d(np.asarray(ids, dtype=object if known.dtype == object else None))
    unknown = [value for value in wanted.tolist() if not (known == value).any()]
    if unknown:
        raise ValueError(f"eliminate_product_ids has {unknown[0]!r}, which is none of the product IDs.")
    return np.isin(known, wanted)


def read_matrices(source: Source, matrices: Any, market_id: Any) -> tuple[np.ndarray, Sequence[np.ndarray]]:
    """Stacked matrices as compute methods return them, and which rows of theirs each market has."""
    array = np.asarray(matrices, dtype=float)
    markets = source.output_tables.markets
    chosen: Sequence[np.ndarray] = markets.rows
    expected: tuple[int, ...] = (sum(rows.size for rows in chosen), max(rows.size for rows in chosen))
    if market_id is not None:
        size = chosen[_market_position(markets, market_id)].size
        expected, chosen = (size, size), (np.arange(size),)
    if source.draws is not None:
        expected = (source.draws, *expected)
    if array.shape != expected:
        raise ValueError(f"matrices must have the shape {expected}, as compute methods return them, not {array.shape}.")
    return array, chosen


def _market_position(markets: MarketIndex, market_id: Any) -> int:
    if isinstance(market_id, np.ndarray) and market_id.size == 1:
        market_id = market_id.item()  # one row of a column of IDs
    if np.ndim(market_id):
        raise ValueError(
            f"market_id must be one market or None, which stands for all markets, not {type(market_id).__name__} "
            f"{market_id!r}. Ask for several markets one after the other."
        )
    found = np.flatnonzero(markets.ids == market_id)
    if found.size != 1:
        known = ", ".join(repr(i) for i in markets.ids[:10].tolist())
        more = ", ..." * (len(markets.ids) > 10)
        raise ValueError(f"There is no market {market_id!r}. Markets are {known}{more}.")
    return int(found[0])


def _read_output(values: Any, by: str, shape: tuple[int, ...]) -> Any:
    """What a user's function returned, in this shape."""
    if not isinstance(values, jax.Array | np.ndarray):
        raise TypeError(f"function must return an array, not {type(values).__name__}.")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"function must return floating-point numbers, not {values.dtype}.")
    allowed = [shape, shape[:1]] if shape[1:] == (1,) else [shape]
    if values.shape not in allowed:
        shapes = " or ".join(map(str, allowed))
        raise ValueError(f"function must return an array of the shape {shapes} with by={by!r}, not {values.shape}.")
    return values.reshape(shape)


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of finite numbers.") from error


def _constant(values: Any) -> Any:
    return jax.lax.stop_gradient(jnp.asarray(values, float))
