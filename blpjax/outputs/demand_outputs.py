"""What demand implies, with markets, products and agents by name: the demand side of `PostEstimation`.

`blpjax.model.model.Model` computes the numbers; `blpjax.outputs.query` checks arguments, picks markets and labels
numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from blpjax.economy.buckets import AgentsInEconomy, Economy, MarketIndex
from blpjax.exceptions import DeltaConvergenceError
from blpjax.inputs.arguments import read_inversion
from blpjax.inputs.integration import Integration
from blpjax.inputs.tables import ProductTable
from blpjax.iteration import Iteration
from blpjax.model.model import Model, find_market
from blpjax.outputs.query import Checked, Given, Loop, Output, OutputTables, Query


class DemandOutputs:
    """What a model at given parameters implies, by product, market and agent.

    Methods have PyBLP's names and arguments and return NumPy arrays of its shapes, with products in the order of the
    product table. All of them take these arguments, too:

    market_id
        One market, by default all of them. Other arguments and what is returned then have the rows of that market.
    as_frame
        Whether to return a tidy table with market and product labels instead of an array.
    standard_errors
        Whether to return what `delta_method` does for the output, its value with standard errors. In a table they
        become the columns ``standard_error``, ``lower`` and ``upper``, the last two limits of 95% confidence intervals.
    hold
        What stays fixed as parameters vary, see `delta_method`.

    Numbers that are given as arguments, such as prices or costs, are constants: standard errors do not account for how
    they depend on the parameters. Leave costs out, or give `delta_method` a function of the model, where they do.

    Raises
    ------
    ValueError
        When there is no such market, or an argument does not have one finite number for each product.
    NameError
        When no formula of utility has the variable that is asked for.
    TypeError
        When standard errors are asked for, but parameters are known.
    """

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

    # demand

    def compute_aggregate_elasticities(
        self,
        factor: float = 0.1,
        name: str | None = "prices",
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Aggregate elasticities of demand, ``sum_j (s_j(x (1 + factor)) - s_j(x)) / factor``.

        Parameters
        ----------
        factor : by which fraction the variable rises for all products.
        name : the variable x, or None for delta.
        market_id, as_frame, standard_errors, hold : see the class.

        Returns
        -------
        (T, 1) array in the sorted order of market IDs, (1, 1) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        scale = _read_factor(factor)
        return asked.by_market(
            "aggregate_elasticity", lambda model, given: model.compute_aggregate_elasticities(scale, name)
        )

    def compute_elasticities(
        self,
        name: str | None = "prices",
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Elasticities of demand, ``x_k / s_j ds_j / dx_k`` for the product j of the row and k of the column.

        Parameters
        ----------
        name : the variable x, or None for delta.
        market_id, as_frame, standard_errors, hold : see the class.

        Returns
        -------
        (N, max J) array, padded with NaN on the right in markets with fewer products; (J, J) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        return asked.by_pair("elasticity", lambda model, given: model.compute_elasticities(name))

    def compute_demand_jacobians(
        self,
        name: str | None = "prices",
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Derivatives of demand ``ds_j / dx_k``. Arguments and shapes are those of `compute_elasticities`."""
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        return asked.by_pair("derivative", lambda model, given: model.compute_demand_jacobians(name))

    def compute_demand_hessians(
        self,
        name: str | None = "prices",
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Second derivatives of demand ``d^2 s_j / dx_k dx_l``. Arguments are those of `compute_elasticities`.

        Returns
        -------
        (N, max J, max J) array, padded with NaN in markets with fewer products; (J, J, J) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        return asked.by_triple("second_derivative", lambda model, given: model.compute_demand_hessians(name))

    def compute_diversion_ratios(
        self,
        name: str | None = "prices",
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Diversion ratios ``-(ds_k / dx_j) / (ds_j / dx_j)`` from the product j of the row to k of the column.

        Diversion to the outside good stands on the diagonal, so that rows sum to one. Arguments and shapes are those
        of `compute_elasticities`.

        This is the formula that PyBLP documents. PyBLP 1.3.0 has ``ds_j / dx_k`` in the numerator, which is the same
        unless x enters the utilities of products differently, as with log(prices) or prices:x.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        return asked.by_pair("diversion_ratio", lambda model, given: model.compute_diversion_ratios(name))

    def compute_long_run_diversion_ratios(
        self, market_id: Any = None, as_frame: bool = False, standard_errors: bool = False, hold: str = "shares"
    ) -> Any:
        """Long-run diversion ratios ``(s_k(-j) - s_k) / s_j``, where s_k(-j) are shares when nobody can choose j.

        Diversion to the outside good stands on the diagonal, so that rows sum to one. Shapes are those of
        `compute_elasticities`.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        return asked.by_pair("long_run_diversion_ratio", lambda model, given: model.compute_long_run_diversion_ratios())

    def compute_shares(
        self,
        prices: Any = None,
        delta: Any = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Market shares.

        Parameters
        ----------
        prices : (N,) prices at which to evaluate shares.
        delta : (N,) mean utilities; by default the model's, updated with the prices.
        agent_data, integration : other agents, as in `Problem`.
        market_id, as_frame, standard_errors, hold : see the class.

        Returns
        -------
        (N, 1) array, (J, 1) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold, agent_data, integration)
        given = asked.read(prices=prices, delta=delta)
        return asked.by_product("share", lambda model, given: model.compute_shares(**given), given)

    def compute_probabilities(
        self,
        prices: Any = None,
        delta: Any = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Choice probabilities of agents (columns, in the order of the agent table) for products (rows).

        Arguments are those of `compute_shares`.

        Returns
        -------
        (N, max I) array, padded with NaN on the right in markets with fewer agents; (J, I) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold, agent_data, integration)
        given = asked.read(prices=prices, delta=delta)
        return asked.by_product_and_agent(
            "probability", lambda model, given: model.compute_probabilities(**given), given
        )

    def compute_consumer_surpluses(
        self,
        prices: Any = None,
        keep_all: bool = False,
        eliminate_product_ids: Any = None,
        product_ids_index: int = 0,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Consumer surpluses per consumer, ``sum_i w_i log(1 + sum_j exp V_ji) / (-dV_1i / dp_1)``, in prices' units.

        As in PyBLP, the derivative is that of a market's first product at unchanged prices. Surpluses have a meaning
        where marginal utility of income is the same for all products and at all prices, not with log(prices).

        Parameters
        ----------
        prices : (N,) prices at which to evaluate utilities.
        keep_all : whether to return surpluses of all agents.
        eliminate_product_ids : IDs of products that nobody can choose.
        product_ids_index : which column of product IDs these are, counted from zero.
        market_id, as_frame, standard_errors, hold : see the class.

        Returns
        -------
        (T, 1) array in the sorted order of market IDs, (1, 1) for one market. With `keep_all`, (T, max I), padded with
        NaN on the right in markets with fewer agents; (1, I) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        given = asked.read(prices=prices)
        if eliminate_product_ids is not None:
            removed = _find_products(self.output_tables.products, eliminate_product_ids, product_ids_index)
            given["eliminated"] = asked.pad(removed[asked.rows])
        answer = asked.by_agent if keep_all else asked.by_market
        return answer(
            "consumer_surplus",
            lambda model, given: model.compute_consumer_surpluses(keep_all=keep_all, **given),
            given,
        )

    def compute_delta(
        self,
        agent_data: Any = None,
        integration: Integration | None = None,
        iteration: Iteration | None = None,
        fp_type: str = "safe_linear",
        shares_bounds: Any = (1e-300, None),
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Mean utilities at the parameters with other agents or another iteration, starting at the known ones.

        Results with draws warn in place of raising an exception, and have NaN where shares could not be inverted.

        `iteration`, `fp_type` and `shares_bounds` are those of `Problem.solve`.

        Returns
        -------
        (N, 1) array, (J, 1) for one market.

        Raises
        ------
        DeltaConvergenceError
            Naming the markets that could not be inverted.
        """
        chosen = read_inversion(iteration, fp_type, shares_bounds)
        asked = self.ask(market_id, as_frame, standard_errors, hold, agent_data, integration)

        def invert(model: Model, given: Given) -> Checked:
            found = model.invert(chosen)
            return Checked(found.delta[:, None], found.status, found.residuals)

        loop = Loop("The inversion of market shares", self.draws is not None, DeltaConvergenceError)
        return asked.by_product("delta", invert, loop=loop)

    # matrices

    def extract_diagonals(self, matrices: Any, market_id: Any = None) -> np.ndarray:
        """Diagonals of stacked matrices, for example own elasticities: (N, 1), or (J, 1) for one market."""
        stacked, chosen = self._read_matrices(matrices, market_id)
        diagonals = np.full((*stacked.shape[:-1], 1), np.nan)
        for rows in chosen:
            diagonals[..., rows, 0] = stacked[..., rows, np.arange(rows.size)]
        return diagonals

    def extract_diagonal_means(self, matrices: Any, market_id: Any = None) -> np.ndarray:
        """Means of the diagonals of stacked matrices by market: (T, 1) in the sorted order of market IDs."""
        diagonals = self.extract_diagonals(matrices, market_id)
        _, chosen = self._read_matrices(matrices, market_id)
        return np.stack([diagonals[..., rows, :].mean(axis=-2) for rows in chosen], axis=-2)

    def _read_matrices(self, matrices: Any, market_id: Any) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        array = np.asarray(matrices, dtype=float)
        chosen: Sequence[np.ndarray] = self.output_tables.markets.rows
        width = max(rows.size for rows in chosen)
        expected: tuple[int, ...] = (sum(rows.size for rows in chosen), width)
        if market_id is not None:
            size = chosen[_market_position(self.output_tables.markets, market_id)].size
            expected, chosen = (size, size), (np.arange(size),)
        if self.draws is not None:
            expected = (self.draws, *expected)
        if array.shape != expected:
            raise ValueError(
                f"matrices must have the shape {expected}, as compute methods return them, not {array.shape}."
            )
        return array, chosen

    def ask(
        self,
        market_id: Any,
        as_frame: bool,
        standard_errors: bool,
        hold: str,
        agent_data: Any = None,
        integration: Integration | None = None,
    ) -> Query:
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
        return Query(self, tables, agents, layout, position, place, as_frame, standard_errors, hold)


def _market_position(markets: MarketIndex, market_id: Any) -> int:
    found = np.flatnonzero(markets.ids == market_id)
    if found.size != 1:
        known = ", ".join(repr(i) for i in markets.ids[:10].tolist())
        more = ", ..." * (len(markets.ids) > 10)
        raise ValueError(f"There is no market {market_id!r}. Markets are {known}{more}.")
    return int(found[0])


def _read_factor(factor: Any) -> float:
    number = float(factor)
    if not np.isfinite(number) or number == 0:
        raise ValueError(f"factor must be a finite number other than zero, not {factor!r}.")
    return number


def _find_products(products: ProductTable, ids: Any, index: int) -> np.ndarray:
    """(N,) which products have one of the IDs in a column of product IDs."""
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
