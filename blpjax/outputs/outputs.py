"""Outputs of a model with markets, products and agents by name: the compute methods of all results.

`blpjax.model.model.Model` computes the numbers; `blpjax.outputs.query` checks arguments, picks markets and labels
numbers. It has more than 500 lines because methods document all that can be given to them.
"""

from collections.abc import Callable
from typing import Any, Unpack

import numpy as np

from blpjax.economy.conduct import ConductData
from blpjax.exceptions import DeltaConvergenceError, EquilibriumPricesConvergenceError
from blpjax.inputs.arguments import check_choice, read_inversion
from blpjax.inputs.integration import Integration
from blpjax.iteration import Iteration
from blpjax.model.model import Model
from blpjax.outputs.query import (
    Checked,
    Given,
    Loop,
    Query,
    Source,
    find_products,
    read_factor,
    read_iteration,
    read_matrices,
)
from blpjax.outputs.shared import Shared, compute_method
from blpjax.reporting.tables import Shown


class Outputs(Shown, Source):
    """What a model at given parameters implies for demand and, where firms set prices, for supply.

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

    #: What other parts of the library use.
    _hidden = frozenset(
        ("ask", "build_agents", "evaluate_output", "formulated", "from_state", "layout", "model_in", "moment_types")
        + ("output_tables", "point", "survey_source")
    )

    @compute_method
    def compute(
        self, function: Callable[[Model], Any], by: str = "product", name: str = "output", **shared: Unpack[Shared]
    ) -> Any:
        """An output of one's own: any function of the model, evaluated and labelled as the other outputs are.

        For example, Lerner indices of markets, weighted by sales::

            codes = jnp.asarray(np.unique(product_data["market_ids"], return_inverse=True)[1])

            def lerner_index(model):
                weighted = model.shares * model.compute_markups()[:, 0]
                return jax.ops.segment_sum(weighted, codes, T) / jax.ops.segment_sum(model.shares, codes, T)

            results.compute(lerner_index, by="market", name="lerner_index", standard_errors=True, as_frame=True)

        Parameters
        ----------
        function : maps a `Model` to an array of floating-point numbers, in operations of JAX: see `delta_method`. Its
            model has all markets, also when one is asked for, so it may use arrays with a row for each product.
        by : what the function's numbers belong to, and so its shape, for N products in the order of the product table
            and T markets in the sorted order of IDs, with at most J products and I agents: ``'product'`` (N, 1) or
            (N,), ``'pair'`` (N, J), ``'triple'`` (N, J, J), ``'market'`` (T, 1) or (T,), ``'agent'`` (T, I), or
            ``'product and agent'`` (N, I). Rows of markets with fewer products or agents end with anything.
        name : of the column of values in a table.
        market_id, as_frame, standard_errors, hold : see the class.

        Returns
        -------
        Array of the first of these shapes, NaN in padding, or (J, 1), (J, J), (J, J, J), (1, 1), (1, I) or (J, I) for
        one market; for results with draws with a first axis of them. Or a table, or what `delta_method` returns.

        Raises
        ------
        ValueError
            When `by` is none of these, `name` is another column of tables, or the function's shape is wrong.
        TypeError
            When the function returns no array of floating-point numbers, or, with draws or standard errors, is none of
            operations of JAX.
        """
        asked = self.ask(**shared).of_all_markets()
        return asked.answer(by, name, asked.read_function(function, by, name))

    # demand

    @compute_method
    def compute_aggregate_elasticities(
        self, factor: float = 0.1, name: str | None = "prices", **shared: Unpack[Shared]
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
        asked = self.ask(**shared)
        scale = read_factor(factor)
        return asked.answer(
            "market", "aggregate_elasticity", lambda model, given: model.compute_aggregate_elasticities(scale, name)
        )

    @compute_method
    def compute_elasticities(self, name: str | None = "prices", **shared: Unpack[Shared]) -> Any:
        """Elasticities of demand, ``x_k / s_j ds_j / dx_k`` for the product j of the row and k of the column.

        Parameters
        ----------
        name : the variable x, or None for delta.
        market_id, as_frame, standard_errors, hold : see the class.

        Returns
        -------
        (N, max J) array, padded with NaN on the right in markets with fewer products; (J, J) for one market.
        """
        asked = self.ask(**shared)
        return asked.answer("pair", "elasticity", lambda model, given: model.compute_elasticities(name))

    @compute_method
    def compute_demand_jacobians(self, name: str | None = "prices", **shared: Unpack[Shared]) -> Any:
        """Derivatives of demand ``ds_j / dx_k``. Arguments and shapes are those of `compute_elasticities`."""
        asked = self.ask(**shared)
        return asked.answer("pair", "derivative", lambda model, given: model.compute_demand_jacobians(name))

    @compute_method
    def compute_demand_hessians(self, name: str | None = "prices", **shared: Unpack[Shared]) -> Any:
        """Second derivatives of demand ``d^2 s_j / dx_k dx_l``. Arguments are those of `compute_elasticities`.

        Returns
        -------
        (N, max J, max J) array, padded with NaN in markets with fewer products; (J, J, J) for one market.
        """
        asked = self.ask(**shared)
        return asked.answer("triple", "second_derivative", lambda model, given: model.compute_demand_hessians(name))

    @compute_method
    def compute_diversion_ratios(self, name: str | None = "prices", **shared: Unpack[Shared]) -> Any:
        """Diversion ratios ``-(ds_k / dx_j) / (ds_j / dx_j)`` from the product j of the row to k of the column.

        Diversion to the outside good stands on the diagonal, so that rows sum to one. Arguments and shapes are those
        of `compute_elasticities`.

        This is the formula that PyBLP documents. PyBLP 1.3.0 has ``ds_j / dx_k`` in the numerator, which is the same
        unless x enters the utilities of products differently, as with log(prices) or prices:x.
        """
        asked = self.ask(**shared)
        return asked.answer("pair", "diversion_ratio", lambda model, given: model.compute_diversion_ratios(name))

    @compute_method
    def compute_long_run_diversion_ratios(self, **shared: Unpack[Shared]) -> Any:
        """Long-run diversion ratios ``(s_k(-j) - s_k) / s_j``, where s_k(-j) are shares when nobody can choose j.

        Diversion to the outside good stands on the diagonal, so that rows sum to one. Shapes are those of
        `compute_elasticities`.
        """
        asked = self.ask(**shared)
        return asked.answer(
            "pair", "long_run_diversion_ratio", lambda model, given: model.compute_long_run_diversion_ratios()
        )

    @compute_method
    def compute_shares(
        self,
        prices: Any = None,
        delta: Any = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        **shared: Unpack[Shared],
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
        asked = self.ask(**shared, agent_data=agent_data, integration=integration)
        given = asked.read(prices=prices, delta=delta)
        return asked.answer("product", "share", lambda model, given: model.compute_shares(**given), given)

    @compute_method
    def compute_probabilities(
        self,
        prices: Any = None,
        delta: Any = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        **shared: Unpack[Shared],
    ) -> Any:
        """Choice probabilities of agents (columns, in the order of the agent table) for products (rows).

        Arguments are those of `compute_shares`.

        Returns
        -------
        (N, max I) array, padded with NaN on the right in markets with fewer agents; (J, I) for one market.
        """
        asked = self.ask(**shared, agent_data=agent_data, integration=integration)
        given = asked.read(prices=prices, delta=delta)
        return asked.answer(
            "product and agent", "probability", lambda model, given: model.compute_probabilities(**given), given
        )

    @compute_method
    def compute_consumer_surpluses(
        self,
        prices: Any = None,
        keep_all: bool = False,
        eliminate_product_ids: Any = None,
        product_ids_index: int = 0,
        **shared: Unpack[Shared],
    ) -> Any:
        """Consumer surpluses per consumer, ``sum_i w_i log(1 + sum_j exp V_ji) / (-dV_1i / dp_1)``, in prices' units.

        As in PyBLP, the derivative is that of a market's first product at unchanged prices. Surpluses have a meaning
        where marginal utility of income is the same for all products and at all prices, not with log(prices).

        Prices that are given are constants: with ``standard_errors=True`` errors are those of surpluses at these very
        prices, without the uncertainty of the prices themselves, as of those that `compute_prices` has found. Standard
        errors of what a merger does to surpluses, where prices move with the parameters, are those of
        ``counterfactual(..., standard_errors=True)``.

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
        asked = self.ask(**shared)
        given = asked.read(prices=prices)
        if eliminate_product_ids is not None:
            removed = find_products(self.output_tables.products, eliminate_product_ids, product_ids_index)
            given["eliminated"] = asked.pad(removed[asked.rows])
        return asked.answer(
            "agent" if keep_all else "market",
            "consumer_surplus",
            lambda model, given: model.compute_consumer_surpluses(keep_all=keep_all, **given),
            given,
        )

    @compute_method
    def compute_delta(
        self,
        agent_data: Any = None,
        integration: Integration | None = None,
        iteration: Iteration | None = None,
        fp_type: str = "safe_linear",
        shares_bounds: Any = (1e-300, None),
        **shared: Unpack[Shared],
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
        asked = self.ask(**shared, agent_data=agent_data, integration=integration)

        def invert(model: Model, given: Given) -> Checked:
            found = model.invert(chosen)
            return Checked(found.delta[:, None], found.status, found.residuals)

        loop = Loop("The inversion of market shares", self.draws is not None, DeltaConvergenceError)
        return asked.answer("product", "delta", invert, loop=loop)

    # supply

    @compute_method
    def compute_costs(
        self, firm_ids: Any = None, ownership: Any = None, *, conduct: Any = None, **shared: Unpack[Shared]
    ) -> Any:
        """Marginal costs that make prices optimal, ``c = p - eta``.

        Parameters
        ----------
        firm_ids : (N,) firm IDs instead of the model's ownership.
        ownership : (N, max J) ownership matrices instead, stacked by market; (J, J) for one market.
        market_id, as_frame, standard_errors, hold : see the class.
        conduct : how firms compete, such as ``blpjax.Cournot()`` (docs/conduct.md); by default as the problem says.

        Returns
        -------
        (N, 1) array, (J, 1) for one market.

        Raises
        ------
        DataError
            When product data lack a column that `conduct` reads.
        ConvergenceError
            When there are no markups under `conduct` in some market, or demand rises in prices. Results with draws warn
            instead, and have NaN there.
        """
        asked = self.ask(**shared)
        firms, given = asked.read_ownership(firm_ids, ownership)
        known = asked.read_conduct(conduct, ownership)
        if known is not None:
            known = known.with_owners(firms)
            return self._answer_markups(asked, "cost", known, given, lambda model, markups, _: model.prices - markups)
        return asked.answer("product", "cost", lambda model, given: model.compute_costs(firms, **given), given)

    @compute_method
    def compute_passthrough(
        self, firm_ids: Any = None, ownership: Any = None, *, conduct: Any = None, **shared: Unpack[Shared]
    ) -> Any:
        """Passthrough ``dp_j / dc_k`` of marginal costs of the column's product to the equilibrium price of the row's.

        Arguments are those of `compute_costs`, shapes those of `compute_elasticities`. Under any conduct it is
        ``(I - dm / dp)^{-1}`` with the markups m.
        """
        asked = self.ask(**shared)
        firms, given = asked.read_ownership(firm_ids, ownership)
        known = asked.read_conduct(conduct, ownership)
        return asked.answer(
            "pair", "passthrough", lambda model, given: model.compute_passthrough(firms, **given, conduct=known), given
        )

    @compute_method
    def compute_approximate_prices(
        self,
        firm_ids: Any = None,
        ownership: Any = None,
        costs: Any = None,
        *,
        conduct: Any = None,
        **shared: Unpack[Shared],
    ) -> Any:
        """Prices after changes of ownership, costs or conduct if shares and their derivatives did not change.

        Arguments are those of `compute_prices`, shapes those of `compute_costs`.
        """
        asked = self.ask(**shared)
        firms, given = asked.read_ownership(firm_ids, ownership)
        known = asked.read_conduct(conduct, ownership)
        given |= asked.read(costs=costs)
        return asked.answer(
            "product",
            "price",
            lambda model, given: model.compute_approximate_prices(firms, **given, conduct=known),
            given,
        )

    @compute_method
    def compute_prices(
        self,
        firm_ids: Any = None,
        ownership: Any = None,
        costs: Any = None,
        prices: Any = None,
        iteration: Iteration | None = None,
        constant_costs: bool = True,
        *,
        error_behavior: str = "warn",
        conduct: Any = None,
        **shared: Unpack[Shared],
    ) -> Any:
        """Equilibrium prices after changes of ownership, costs or conduct.

        Parameters
        ----------
        firm_ids, ownership : as in `compute_costs`.
        costs : (N,) marginal costs; by default those of `compute_costs` under unchanged ownership and conduct.
        prices : (N,) prices to start at.
        iteration : how to solve for prices, by default ``Iteration('squarem', {'atol': 1e-12})`` where firms set
            prices. Under other conduct ``Iteration('newton', {'atol': 1e-12})`` on ``p - c - m(p)``; other methods
            iterate on ``p <- (p + c + m(p)) / 2``.
        constant_costs : whether costs stay as they are when shares change; if not, they move with shares in X3.
        market_id, as_frame, standard_errors, hold : see the class.
        error_behavior : ``'warn'`` or ``'raise'`` when no equilibrium is found in some market.
        conduct : how firms compete, see `compute_costs`.

        Returns
        -------
        (N, 1) array, (J, 1) for one market; NaN in markets in which no equilibrium was found.

        Raises
        ------
        DataError
            When product data lack a column that `conduct` reads.
        EquilibriumPricesConvergenceError
            With ``error_behavior='raise'``, naming the markets in which no equilibrium was found.

        Warns
        -----
        ConvergenceWarning
            With ``error_behavior='warn'``, likewise.
        """
        check_choice("error_behavior", error_behavior, ("raise", "warn"))
        chosen = None if iteration is None else read_iteration(iteration)
        asked = self.ask(**shared)
        firms, given = asked.read_ownership(firm_ids, ownership)
        known = asked.read_conduct(conduct, ownership)
        given |= asked.read(costs=costs, prices=prices)

        def solve(model: Model, given: Given) -> Checked:
            found = model.solve_prices(firms, iteration=chosen, constant_costs=constant_costs, conduct=known, **given)
            return Checked(found.prices[:, None], found.status, found.residuals)

        loop = Loop("The search for equilibrium prices", error_behavior == "warn", EquilibriumPricesConvergenceError)
        return asked.answer("product", "price", solve, given, loop)

    @compute_method
    def compute_hhi(self, firm_ids: Any = None, shares: Any = None, **shared: Unpack[Shared]) -> Any:
        """Herfindahl-Hirschman indices ``10,000 sum_f (sum_{j in f} s_j / sum_j s_j)^2``.

        As PyBLP computes them, shares are those of inside sales; its documentation leaves the denominator out.

        Parameters
        ----------
        firm_ids : (N,) firm IDs, by default those of the product table.
        shares : (N,) shares, by default unchanged ones.
        market_id, as_frame, standard_errors, hold : see the class.

        Returns
        -------
        (T, 1) array in the sorted order of market IDs, (1, 1) for one market.
        """
        asked = self.ask(**shared)
        known = self.output_tables.products.firm_ids
        if firm_ids is None and known is not None:
            firm_ids = known[asked.rows]
        firms = asked.read_ids("firm_ids", firm_ids)
        given = asked.read(shares=shares)
        return asked.answer("market", "hhi", lambda model, given: model.compute_hhi(firms, **given), given)

    @compute_method
    def compute_markups(
        self, prices: Any = None, costs: Any = None, *, conduct: Any = None, **shared: Unpack[Shared]
    ) -> Any:
        """Markups as fractions of prices, ``(p - c) / p``.

        Parameters
        ----------
        prices : (N,) prices, by default unchanged ones.
        costs : (N,) marginal costs, by default those of `compute_costs` at unchanged prices.
        market_id, as_frame, standard_errors, hold : see the class.
        conduct : how firms compete, see `compute_costs`: where costs that prices imply are those under another conduct.

        Returns
        -------
        (N, 1) array, (J, 1) for one market.

        Raises
        ------
        ValueError
            When costs are given, and conduct, too.
        DataError, ConvergenceError
            As in `compute_costs`.
        """
        asked = self.ask(**shared)
        given = asked.read(prices=prices, costs=costs)
        if (known := _conduct_of_costs(asked, conduct, costs)) is not None:

            def lerner(model: Model, markups: Any, given: Given) -> Any:
                p = given.get("prices", model.prices)
                return (p - model.prices + markups) / p

            return self._answer_markups(asked, "markup", known, given, lerner)
        return asked.answer("product", "markup", lambda model, given: model.compute_markups(**given), given)

    @compute_method
    def compute_profits(
        self,
        prices: Any = None,
        shares: Any = None,
        costs: Any = None,
        *,
        conduct: Any = None,
        **shared: Unpack[Shared],
    ) -> Any:
        """Profits per consumer of each product, ``(p - c) s``.

        Arguments are those of `compute_markups`, and `shares` (N,), by default unchanged ones even at other prices.

        Returns
        -------
        (N, 1) array, (J, 1) for one market.
        """
        asked = self.ask(**shared)
        given = asked.read(prices=prices, shares=shares, costs=costs)
        if (known := _conduct_of_costs(asked, conduct, costs)) is not None:

            def profits(model: Model, markups: Any, given: Given) -> Any:
                margins = given.get("prices", model.prices) - model.prices + markups
                return margins * given.get("shares", model.shares)

            return self._answer_markups(asked, "profit", known, given, profits)
        return asked.answer("product", "profit", lambda model, given: model.compute_profits(**given), given)

    @compute_method
    def compute_profit_hessians(self, prices: Any = None, costs: Any = None, **shared: Unpack[Shared]) -> Any:
        """Second derivatives in prices of each product's profits, ``d^2 pi_j / dp_k dp_l``.

        Arguments are those of `compute_markups`. Sums over a firm's products j are the Hessian of its profits.

        Returns
        -------
        (N, max J, max J) array, padded with NaN in markets with fewer products; (J, J, J) for one market.
        """
        asked = self.ask(**shared)
        given = asked.read(prices=prices, costs=costs)
        return asked.answer(
            "triple", "second_derivative", lambda model, given: model.compute_profit_hessians(**given), given
        )

    # matrices

    def extract_diagonals(self, matrices: Any, market_id: Any = None) -> np.ndarray:
        """Diagonals of stacked matrices, for example own elasticities: (N, 1), or (J, 1) for one market."""
        stacked, chosen = read_matrices(self, matrices, market_id)
        diagonals = np.full((*stacked.shape[:-1], 1), np.nan)
        for rows in chosen:
            diagonals[..., rows, 0] = stacked[..., rows, np.arange(rows.size)]
        return diagonals

    def extract_diagonal_means(self, matrices: Any, market_id: Any = None) -> np.ndarray:
        """Means of the diagonals of stacked matrices by market: (T, 1) in the sorted order of market IDs."""
        diagonals = self.extract_diagonals(matrices, market_id)
        _, chosen = read_matrices(self, matrices, market_id)
        return np.stack([diagonals[..., rows, :].mean(axis=-2) for rows in chosen], axis=-2)

    def _answer_markups(
        self, asked: Query, name: str, conduct: ConductData, given: Given, values: Callable[[Model, Any, Given], Any]
    ) -> Any:
        """Outputs of the model, of markups (N,) under some conduct, and of what is given."""

        def solve(model: Model, given: Given) -> Checked:
            found = model.solve_markups(conduct)
            return Checked(values(model, found.markups, given)[:, None], found.status, found.residuals)

        loop = Loop(f"Computation of markups with conduct {conduct.name}", self.draws is not None)
        return asked.answer("product", name, solve, given, loop)


def _conduct_of_costs(asked: Query, conduct: Any, costs: Any) -> ConductData | None:
    """The conduct under which prices imply costs, None where it is not given."""
    if conduct is not None and costs is not None:
        raise ValueError("Give either costs or conduct, which says what costs are.")
    return asked.read_conduct(conduct)
