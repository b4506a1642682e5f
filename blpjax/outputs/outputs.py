"""Outputs of a model with markets, products and agents by name: the compute methods of all results."""

from typing import Any

from blpjax.exceptions import EquilibriumPricesConvergenceError
from blpjax.iteration import Iteration
from blpjax.model.model import Model
from blpjax.outputs.demand_outputs import DemandOutputs
from blpjax.outputs.query import Checked, Given, Loop, read_iteration


class PostEstimation(DemandOutputs):
    """What a model at given parameters implies for demand and, where firms set prices, for supply.

    `DemandOutputs` documents the arguments that all methods share.
    """

    def compute_costs(
        self,
        firm_ids: Any = None,
        ownership: Any = None,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Marginal costs that make prices optimal, ``c = p - eta``.

        Parameters
        ----------
        firm_ids : (N,) firm IDs instead of the model's ownership.
        ownership : (N, max J) ownership matrices instead, stacked by market; (J, J) for one market.
        market_id, as_frame, standard_errors, hold : see `DemandOutputs`.

        Returns
        -------
        (N, 1) array, (J, 1) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        firms, given = asked.read_ownership(firm_ids, ownership)
        return asked.by_product("cost", lambda model, given: model.compute_costs(firms, **given), given)

    def compute_passthrough(
        self,
        firm_ids: Any = None,
        ownership: Any = None,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Passthrough ``dp_j / dc_k`` of marginal costs of the column's product to the equilibrium price of the row's.

        Arguments are those of `compute_costs`, shapes those of `compute_elasticities`.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        firms, given = asked.read_ownership(firm_ids, ownership)
        return asked.by_pair("passthrough", lambda model, given: model.compute_passthrough(firms, **given), given)

    def compute_approximate_prices(
        self,
        firm_ids: Any = None,
        ownership: Any = None,
        costs: Any = None,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Prices after changes of ownership or costs if shares and their derivatives did not change.

        Arguments are those of `compute_prices`, shapes those of `compute_costs`.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        firms, given = asked.read_ownership(firm_ids, ownership)
        given |= asked.read(costs=costs)
        return asked.by_product("price", lambda model, given: model.compute_approximate_prices(firms, **given), given)

    def compute_prices(
        self,
        firm_ids: Any = None,
        ownership: Any = None,
        costs: Any = None,
        prices: Any = None,
        iteration: Iteration | None = None,
        constant_costs: bool = True,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
        error_behavior: str = "warn",
    ) -> Any:
        """Equilibrium prices after changes of ownership or costs.

        Parameters
        ----------
        firm_ids, ownership : as in `compute_costs`.
        costs : (N,) marginal costs; by default those of `compute_costs` under unchanged ownership.
        prices : (N,) prices to start at.
        iteration : how to solve for prices, by default ``Iteration('squarem', {'atol': 1e-12})``.
        constant_costs : whether costs stay as they are when shares change; if not, they move with shares in X3.
        market_id, as_frame, standard_errors, hold : see `DemandOutputs`.
        error_behavior : ``'warn'`` or ``'raise'`` when no equilibrium is found in some market.

        Returns
        -------
        (N, 1) array, (J, 1) for one market; NaN in markets in which no equilibrium was found.

        Raises
        ------
        EquilibriumPricesConvergenceError
            With ``error_behavior='raise'``, naming the markets in which no equilibrium was found.

        Warns
        -----
        ConvergenceWarning
            With ``error_behavior='warn'``, likewise.
        """
        if error_behavior not in ("warn", "raise"):
            raise ValueError(f"error_behavior must be 'warn' or 'raise', not {error_behavior!r}.")
        chosen = None if iteration is None else read_iteration(iteration)
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        firms, given = asked.read_ownership(firm_ids, ownership)
        given |= asked.read(costs=costs, prices=prices)

        def solve(model: Model, given: Given) -> Checked:
            found = model.solve_prices(firms, iteration=chosen, constant_costs=constant_costs, **given)
            return Checked(found.prices[:, None], found.status, found.residuals)

        loop = Loop("The search for equilibrium prices", error_behavior == "warn", EquilibriumPricesConvergenceError)
        return asked.by_product("price", solve, given, loop)

    def compute_hhi(
        self,
        firm_ids: Any = None,
        shares: Any = None,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Herfindahl-Hirschman indices ``10,000 sum_f (sum_{j in f} s_j / sum_j s_j)^2``.

        As PyBLP computes them, shares are those of inside sales; its documentation leaves the denominator out.

        Parameters
        ----------
        firm_ids : (N,) firm IDs, by default those of the product table.
        shares : (N,) shares, by default unchanged ones.
        market_id, as_frame, standard_errors, hold : see `DemandOutputs`.

        Returns
        -------
        (T, 1) array in the sorted order of market IDs, (1, 1) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        known = self.output_tables.products.firm_ids
        if firm_ids is None and known is not None:
            firm_ids = known[asked.rows]
        firms = asked.read_ids("firm_ids", firm_ids)
        given = asked.read(shares=shares)
        return asked.by_market("hhi", lambda model, given: model.compute_hhi(firms, **given), given)

    def compute_markups(
        self,
        prices: Any = None,
        costs: Any = None,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Markups as fractions of prices, ``(p - c) / p``.

        Parameters
        ----------
        prices : (N,) prices, by default unchanged ones.
        costs : (N,) marginal costs, by default those of `compute_costs` at unchanged prices.
        market_id, as_frame, standard_errors, hold : see `DemandOutputs`.

        Returns
        -------
        (N, 1) array, (J, 1) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        given = asked.read(prices=prices, costs=costs)
        return asked.by_product("markup", lambda model, given: model.compute_markups(**given), given)

    def compute_profits(
        self,
        prices: Any = None,
        shares: Any = None,
        costs: Any = None,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Profits per consumer of each product, ``(p - c) s``.

        Arguments are those of `compute_markups`, and `shares` (N,), by default unchanged ones even at other prices.

        Returns
        -------
        (N, 1) array, (J, 1) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        given = asked.read(prices=prices, shares=shares, costs=costs)
        return asked.by_product("profit", lambda model, given: model.compute_profits(**given), given)

    def compute_profit_hessians(
        self,
        prices: Any = None,
        costs: Any = None,
        market_id: Any = None,
        as_frame: bool = False,
        standard_errors: bool = False,
        hold: str = "shares",
    ) -> Any:
        """Second derivatives in prices of each product's profits, ``d^2 pi_j / dp_k dp_l``.

        Arguments are those of `compute_markups`. Sums over a firm's products j are the Hessian of its profits.

        Returns
        -------
        (N, max J, max J) array, padded with NaN in markets with fewer products; (J, J, J) for one market.
        """
        asked = self.ask(market_id, as_frame, standard_errors, hold)
        given = asked.read(prices=prices, costs=costs)
        return asked.by_triple("second_derivative", lambda model, given: model.compute_profit_hessians(**given), given)
