"""Screens of mergers: upward pricing pressure, compensating cost reductions, and first-order changes of prices."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from blpjax.inputs.arguments import check_choice
from blpjax.kernels.arrays import AnyArray, namespace, solve_on_host, times, transposed
from blpjax.kernels.linear_algebra import solve
from blpjax.model.model import Model
from blpjax.outputs.counterfactual import CounterfactualMethods
from blpjax.values import read_flag


class Pressure(NamedTuple):
    """Of products of a market (J,): diversion to new partners, what these earn by it, and costs implied then."""

    diversion: AnyArray
    earned: AnyArray
    changed_costs: AnyArray


class PressureMethods(CounterfactualMethods):
    """Results of which one can ask which way a merger would push prices."""

    def compute_pricing_pressure(
        self,
        firm_ids: Any,
        efficiencies: Any = 0.0,
        simulate: bool = False,
        *,
        standard_errors: bool = False,
        hold_fixed: str = "shares",
    ) -> pd.DataFrame:
        """What screens say of a merger, or another change of owners, at observed prices and the costs they imply.

        A merger makes a product j earn what its buyers who turn to new partners k leave there: the diversion ratios
        ``R_jk = -(ds_k / dp_j) / (ds_j / dp_j)`` times margins ``p_k - c_k``.

        Parameters
        ----------
        firm_ids : (N,) IDs of firms after the change, or a mapping of old IDs to new ones, such as ``{2: 1}``.
        efficiencies : by which part marginal costs fall: a number for products that get or lose partners in their
            market, or (N,) numbers, such as 0.05.
        simulate : whether to solve for new prices, too, for comparison: see `counterfactual`.
        standard_errors : whether there are columns ``..._se`` of all numbers, by the delta method.
        hold_fixed : ``'shares'`` or ``'xi'``: what stays fixed when parameters vary, see `ProblemResults.delta_method`.

        Returns
        -------
        A row for each product, with market, product, firms, prices and costs, and these columns:

        - diversion: the sum of R_jk to products k with which j gets a common owner, less those that it loses.
        - guppi: ``sum_k R_jk (p_k - c_k) / p_j`` over the same products, a part of the price (Salop and Moresi 2009).
        - upp: the same in units of prices, less the efficiency (Farrell and Shapiro 2010).
        - cmcr: by which part costs of all products would have to fall so that prices stay (Werden 1996), with any
          number of products. Costs under both owners are those that prices imply. NaN where costs are not positive.
        - first_order_change: of prices, in their units: a Newton step from the first-order conditions after the change,
          in units of margins, which accounts for efficiencies, passthrough and rivals (Jaffe and Weyl 2013).
        - simulated_change: of prices, with `simulate`.

        Raises
        ------
        ValueError
            When owners do not change, IDs do not fit the products, or efficiencies are not numbers below one.
        TypeError
            When `simulate` or `standard_errors` is neither True nor False.
        """
        from blpjax.outputs.changes import read_firms  # imports much that only counterfactuals need

        read_flag("simulate", simulate)
        read_flag("standard_errors", standard_errors)
        check_choice("hold_fixed", hold_fixed, ("shares", "xi"))
        query, table = self.ask(None, False, False, "shares"), self.output_tables.products
        after = read_firms(query, table.firm_ids, firm_ids)
        if after is None:
            raise ValueError("firm_ids must be given: those of firms after the change.")
        N, rates = table.shares.size, np.asarray(efficiencies)
        rates = query.read(efficiencies=np.broadcast_to(rates, N) if rates.ndim == 0 else rates)["efficiencies"]
        if (rates >= 1).any():
            raise ValueError("efficiencies must be parts of costs, such as 0.05, and so below one.")
        model = self.model.on_host()
        changed = _changed(model, after)
        if not changed.any():
            raise ValueError("firm_ids changes nothing: no product gets or loses a partner in its market.")
        if np.ndim(efficiencies) == 0:
            rates = np.where(changed, rates, 0.0)
        markets, ids = query.extent.product_labels
        labels = {"market_ids": markets, "product": ids, "firm_before": table.firm_ids, "firm_after": after}
        frame = pd.DataFrame({name: values for name, values in labels.items() if values is not None})
        numbers = pricing_pressure(model, after, rates)
        if standard_errors:
            found = self.delta_method(lambda model: pricing_pressure(model, after, rates), hold=hold_fixed)
            numbers |= {f"{name}_se": values for name, values in found.standard_errors.items()}
        frame = frame.assign(**{name: np.asarray(values) for name, values in numbers.items()})
        if simulate:
            outcome = self.counterfactual(
                firm_ids=after,
                costs=lambda costs: (1 - rates) * costs,
                standard_errors=standard_errors,
                hold_fixed=hold_fixed,
            )
            frame["simulated_change"] = outcome.products["prices_change"]
            if standard_errors:
                frame["simulated_change_se"] = outcome.products["prices_change_se"]
        return frame


def pricing_pressure(model: Model, firm_ids: np.ndarray, efficiencies: np.ndarray) -> dict[str, AnyArray]:
    """Columns (N,) of the table, which JAX can differentiate where the model is not on the host.

    Derivatives of own slopes in all prices are those of conditions of firms with a product each and a margin of one:
    third derivatives of nothing are needed.
    """
    xp, economy, N = namespace(model.delta), model.economy, model.delta.size
    s, p, c = model.shares, model.prices, model.compute_costs()[:, 0]
    cheaper = (1 - efficiencies) * c
    F = model.profit_gradients(costs=cheaper, firm_ids=firm_ids)
    rows = (
        model.compute_demand_jacobians(),
        model.firm_profit_hessians(costs=cheaper, firm_ids=firm_ids),
        model.firm_profit_hessians(costs=p - 1, firm_ids=np.arange(N)),
    )
    owners = model.owned(), model.owned(firm_ids)
    vectors = (economy.scatter(values) for values in (s, p, c, F))
    parts = zip(economy.buckets, *map(economy.unstack, rows), *owners, *vectors, strict=True)
    pressures, steps = [], []
    for bucket, D, slopes, alone, H0, H1, *known, gradient in parts:
        absent = xp.where(bucket.present, 0.0, 1.0)
        identity = xp.eye(D.shape[-1])[None]
        diagonal = identity * absent[:, :, None]
        # padding has slopes of its own, on which nothing depends
        D = D - diagonal
        pressures.append(market_pressure(D, H0, H1 + diagonal * xp.where(H1 == 0, 1.0, 0.0), *known))
        own = xp.diagonal(D, axis1=-2, axis2=-1)
        curvature = alone - D - own[..., None] * identity
        h = -gradient / own
        matrix = -slopes / own[..., None] - (h / own)[..., None] * curvature
        steps.append(-_solve(matrix + diagonal, h))
    new = {name: economy.gather([getattr(part, name) for part in pressures]) for name in Pressure._fields}
    return {
        "prices": p,
        "costs": c,
        "diversion": new["diversion"],
        "guppi": new["earned"] / p,
        "upp": new["earned"] - efficiencies * c,
        "cmcr": xp.where(c > 0, c - new["changed_costs"], np.nan) / xp.where(c > 0, c, 1.0),
        "first_order_change": economy.gather(steps),
    }


def market_pressure(D: AnyArray, H0: AnyArray, H1: AnyArray, s: AnyArray, p: AnyArray, c: AnyArray) -> Pressure:
    """What new owners of a market's products gain by higher prices, and costs at which they would leave them.

    Parameters
    ----------
    D : (J, J) derivatives ``ds_j / dp_k``, or those of several markets, as all others.
    H0, H1 : (J, J) ownership before and after.
    s, p, c : (J,) shares, prices, and costs.
    """
    xp = namespace(D)
    R = (H1 - H0) * -transposed(D) / xp.diagonal(D, axis1=-2, axis2=-1)[..., None]
    return Pressure(R.sum(axis=-1), times(R, p - c), p + _solve(H1 * transposed(D), s))


def _solve(matrices: AnyArray, right: AnyArray) -> AnyArray:
    if namespace(matrices) is np:
        return solve_on_host(matrices, right)
    return jax.vmap(solve)(matrices, right)


def _changed(model: Model, firm_ids: np.ndarray) -> np.ndarray:
    """Which products (N,) get or lose partners in their market."""
    stack = model.economy.stack
    return np.asarray(np.nansum(np.abs(stack(model.owned(firm_ids)) - stack(model.owned())), axis=1) > 0)
