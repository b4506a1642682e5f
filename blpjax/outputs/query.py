"""One call of a compute method: arguments checked, a market picked, the output evaluated, cut to size and labelled."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from blpjax.economy.buckets import AgentsInEconomy, MarketIndex
from blpjax.exceptions import ConvergenceError, raise_for_status
from blpjax.inputs.tables import ProductTable
from blpjax.iteration import Iteration
from blpjax.model.model import MarketPlace, Model
from blpjax.model.parameters import ParameterLayout
from blpjax.reporting import frames

#: Arguments of a method of `Model` that are arrays, by name.
Given = dict[str, Any]
#: An output as a function of the model and of arrays that the user gave: an array, or `Checked`.
Output = Callable[[Model, Given], Any]


class OutputTables(NamedTuple):
    """Tables that say what the rows of outputs are: products, the rows of each market, and agents."""

    products: ProductTable
    markets: MarketIndex
    agents: AgentsInEconomy


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


@runtime_checkable
class Source(Protocol):
    """What a query needs of results."""

    draws: int | None

    def evaluate_output(self, function: Output, given: Given) -> Any:
        """A pytree of NumPy arrays: the function at the results' model."""

    def delta_method(self, function: Callable[[Model], Any], hold: str = "shares") -> Any:
        """A function of the model with standard errors: `blpjax.inference.delta_method.DeltaMethodResults`."""


@dataclasses.dataclass(frozen=True)
class Query:
    """Which market is asked for, with which agents, and how the answer is to be given.

    Attributes
    ----------
    source : the results that are asked.
    tables : what the rows of outputs are.
    agents : the agents in whose economy outputs are evaluated, and `layout` of the parameters there, None when these
        are the model's own.
    layout : see there.
    position, place : where the one market is that is asked for, None for all markets.
    as_frame, standard_errors, hold : see `blpjax.outputs.demand_outputs.DemandOutputs`.
    """

    source: Source
    tables: OutputTables
    agents: AgentsInEconomy
    layout: ParameterLayout | None
    position: int | None
    place: MarketPlace | None
    as_frame: bool
    standard_errors: bool
    hold: str

    @property
    def rows(self) -> np.ndarray:
        """Rows of the product table that are asked for."""
        return np.arange(self.tables.products.shares.size) if self.place is None else self.place.rows

    @property
    def market_ids(self) -> np.ndarray:
        """Markets that are asked for."""
        ids = self.tables.markets.ids
        return ids if self.position is None else ids[[self.position]]

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
        array = np.asarray(ids).reshape(-1)
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
        array = _numbers("ownership", ownership)
        sizes = [rows.size for rows in self.tables.markets.rows]
        N = self.rows.size
        width = max(sizes) if self.position is None else N
        leading = () if array.ndim != 3 or self.source.draws is None else (self.source.draws,)
        if array.shape != (*leading, N, width):
            raise ValueError(f"ownership must have the shape {(N, width)}, not {array.shape}.")
        own = np.array(sizes)[self.tables.markets.codes[self.rows]]
        inside = np.arange(width) < own[:, None]
        bad = np.argwhere(~np.isfinite(np.where(inside, array, 0.0)))
        if bad.size:
            raise ValueError(f"ownership must be finite, but row {bad[0][-2]} is not.")
        missing = self._missing
        more = [(0, 0)] * len(leading) + [(0, missing), (0, missing)]
        return firms, {"ownership": np.pad(np.where(inside, array, 0.0), more)}

    def pad(self, values: np.ndarray) -> np.ndarray:
        """Values (..., J) of one market with as many places as the model of one market has; the first one repeated."""
        return np.concatenate([values, np.repeat(values[..., :1], self._missing, axis=-1)], axis=-1)

    # answers

    def by_product(self, name: str, function: Output, given: Given | None = None, loop: Loop | None = None) -> Any:
        """Answer with a vector over products, (N, 1) or (J, 1)."""
        J = self.rows.size
        return self._answer(name, function, lambda x: x[:J], given, loop, self._label(frames.vector_frame))

    def by_pair(self, name: str, function: Output, given: Given | None = None) -> Any:
        """Answer with matrices over pairs of products, (N, max J) or (J, J)."""
        J = self.rows.size
        cut = (slice(None), slice(None)) if self.place is None else (slice(J), slice(J))
        return self._answer(name, function, lambda x: x[cut], given, None, self._label(frames.matrices_frame))

    def by_triple(self, name: str, function: Output, given: Given | None = None) -> Any:
        """Answer with arrays over triples of products, (N, max J, max J) or (J, J, J)."""
        J = self.rows.size
        cut = (slice(None),) * 3 if self.place is None else (slice(J),) * 3
        return self._answer(name, function, lambda x: x[cut], given, None, self._label(frames.cubes_frame))

    def by_market(self, name: str, function: Output, given: Given | None = None) -> Any:
        """Answer with a value for each market, (T, 1) or (1, 1)."""

        def frame(values: np.ndarray, name: str) -> pd.DataFrame:
            return frames.markets_frame(self.market_ids, values, name)

        return self._answer(name, function, lambda x: x, given, None, frame)

    def by_agent(self, name: str, function: Output, given: Given | None = None) -> Any:
        """Answer with a value for each market and agent, (T, max I) or (1, I)."""
        keep = self._agents_present

        def frame(values: np.ndarray, name: str) -> pd.DataFrame:
            return frames.agents_frame(self.market_ids, *self._agent_labels, values, name)

        return self._answer(name, function, lambda x: _keep(x, keep), given, None, frame)

    def by_product_and_agent(self, name: str, function: Output, given: Given | None = None) -> Any:
        """Answer with a value for each product and agent in its market, (N, max I) or (J, I)."""
        J = self.rows.size
        codes = self.tables.markets.codes if self.place is None else np.zeros(J, int)
        keep = self._agents_present[codes]

        def frame(values: np.ndarray, name: str) -> pd.DataFrame:
            return frames.probabilities_frame(*self._product_labels, *self._agent_labels, values, name)

        return self._answer(name, function, lambda x: _keep(x[:J], keep), given, None, frame)

    def _answer(
        self,
        name: str,
        function: Output,
        cut: Callable[[Any], Any],
        given: Given | None,
        loop: Loop | None,
        frame: Callable[[np.ndarray, str], pd.DataFrame],
    ) -> Any:
        if self.as_frame and self.source.draws is not None:
            raise NotImplementedError("as_frame is not supported for draws. Use the array, or one set of parameters.")

        def asked(model: Model, given: Given) -> Any:
            found = function(self._restrict(model), given)
            return found._replace(values=cut(found.values)) if loop is not None else cut(found)

        arguments = {} if given is None else given
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
        if not self.as_frame:
            return result
        errors = frame(np.asarray(result.standard_errors), name)[name]
        return frames.with_confidence_limits(frame(np.asarray(result.value), name), name, errors)

    def _restrict(self, model: Model) -> Model:
        if self.layout is not None:
            model = model.with_agents(self.agents.economy, self.layout)
        return model if self.place is None else model.in_market(self.place)

    def _check(self, found: Checked, loop: Loop) -> None:
        """Report failures by market, in whichever draw."""
        T = self.market_ids.size
        status = np.asarray(found.status).reshape(-1, T).astype(int)
        worst = status.argmax(axis=0), np.arange(T)
        residuals = np.asarray(found.residuals).reshape(-1, T)[worst]
        raise_for_status(status[worst], self.market_ids, loop.action, residuals, loop.warn, loop.kind)

    def _label(self, frame: Callable[..., pd.DataFrame]) -> Callable[[np.ndarray, str], pd.DataFrame]:
        return lambda values, name: frame(*self._product_labels, values, name)

    @property
    def _product_labels(self) -> tuple[np.ndarray, np.ndarray | None]:
        products = self.tables.products
        ids = products.product_ids
        if ids is not None and ids.ndim == 2:
            ids = ids[:, 0]
        return products.market_ids[self.rows], None if ids is None else ids[self.rows]

    @property
    def _agent_labels(self) -> tuple[np.ndarray, np.ndarray | None]:
        table = self.agents.table
        ids = table.agent_ids
        return table.market_ids, None if ids is None else ids.reshape(len(table.weights), -1)[:, 0]

    @property
    def _agents_present(self) -> np.ndarray:
        """(T, max I) or (1, I) which columns of a market's row are agents."""
        counts = np.array(self.agents.counts)
        if self.position is not None:
            counts = counts[[self.position]]
        return np.arange(counts.max()) < counts[:, None]

    @property
    def _missing(self) -> int:
        """How many products the one market lacks of its bucket's size."""
        if self.place is None:
            return 0
        return self.agents.economy.buckets[self.place.bucket].size[1] - self.rows.size

    def _read(self, name: str, values: Any) -> np.ndarray:
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
    """An `Iteration` that can solve for prices, or `TypeError` or `NotImplementedError`."""
    if not isinstance(iteration, Iteration):
        raise TypeError(f"iteration must be Iteration or None, not {type(iteration).__name__}.")
    if iteration.fixed_point.host is not None:
        raise NotImplementedError(
            "Equilibrium prices are solved inside compiled programs, where SciPy's root finders and custom methods "
            "cannot run. Use Iteration('squarem'), the default, or 'simple', 'anderson' or 'newton'."
        )
    return iteration


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of finite numbers.") from error


def _constant(values: Any) -> Any:
    return jax.lax.stop_gradient(jnp.asarray(values, float))


def _keep(values: Any, keep: np.ndarray) -> Any:
    """Columns that some row keeps, NaN where a row does not."""
    cut = values[:, : keep.shape[1]]
    return cut if keep.all() else jnp.where(keep, cut, jnp.nan)
