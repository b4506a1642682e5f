"""Counterfactuals in one call: what markets would look like after a merger, a tax, or another change."""

from typing import TYPE_CHECKING, Any

from blpjax.iteration import Iteration
from blpjax.outputs.sources import OutcomeSource

if TYPE_CHECKING:
    from blpjax.outputs.outcome import Counterfactual


class CounterfactualMethods(OutcomeSource):
    """Results of which one can ask what would happen."""

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
        market_ids: Any = None,
        standard_errors: bool = False,
        hold_fixed: str = "shares",
        error_behavior: str = "warn",
        iteration: Iteration | None = None,
        constant_costs: bool = True,
        check: bool = False,
        starts: Any = None,
        conduct: Any = None,
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
        add : table of new products: market_ids, firm_ids, variables of formulas (IDs of groups with nests), and either
            ``like``, the ID of a product of that market whose unobserved quality, fixed effects and costs a new one
            has, or ``xi`` (zero by default) and ``costs`` (by default those that X3 explains). Their rows come last.
            Other arguments have rows for the products that there are; functions of costs see these alone, and taxes
            are on new products where they are one number for all.
        hold : (N,) true where the price stays what it was; owners count what they earn there when they set others.
        prices : (N,) prices that consumers pay, which nobody sets then.
        taxes : a `Taxes`, in place of those that there were.
        market_ids : markets that are solved and in tables, by default all. Other arguments, and functions, then have
            the rows of these alone, in the order of the product table.
        standard_errors : whether tables have them, by the delta method, exact through the equilibrium.
        hold_fixed : ``'shares'`` or ``'xi'``: what stays fixed when parameters vary, see `ProblemResults.delta_method`.
        error_behavior : ``'warn'`` or ``'raise'`` where no equilibrium is found; numbers are NaN there.
        iteration, constant_costs : as in `compute_prices`.
        check : whether to check second-order conditions of firms, given the prices of others: `markets` then have the
            ``largest_curvature`` of their profits, and where it is positive there is a warning, or an error.
        starts : from how many random prices, around those before the change, searches begin, too, or a pair of that
            and a seed (0). `markets` then count different ``equilibria``; those to which prices before the change lead
            are taken.
        conduct : how firms compete after the change, such as ``blpjax.Cournot()`` (docs/conduct.md). Costs are those
            that observed prices imply under the conduct of the problem.

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
        from blpjax.outputs.outcome import solve_counterfactual  # imports much that only counterfactuals need

        given: dict[str, Any] = {"firm_ids": firm_ids, "ownership": ownership, "costs": costs, "set": set}
        given |= {"drop": drop, "add": add, "hold": hold, "prices": prices, "taxes": taxes}
        given |= {"iteration": iteration, "constant_costs": constant_costs, "conduct": conduct}
        source: OutcomeSource = self
        if market_ids is not None:
            if add is not None:
                raise NotImplementedError("market_ids is not supported with add, whose table has its own markets.")
            from blpjax.outputs.some_markets import SomeMarkets

            source = SomeMarkets(self, market_ids)
        return solve_counterfactual(source, (), given, standard_errors, hold_fixed, error_behavior, check, starts)
