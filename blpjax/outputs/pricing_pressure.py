"""Screens of mergers: upward pricing pressure, compensating cost reductions, and first-order changes of prices."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from blpjax.kernels.arrays import solve_on_host
from blpjax.model.model import Model
from blpjax.outputs.changes import read_firms
from blpjax.outputs.counterfactual import CounterfactualMethods
from blpjax.values import read_flag


class Pressure(NamedTuple):
    """Of products of a market (J,): diversion to new partners, what these earn by it, and costs implied then."""

    diversion: np.ndarray
    earned: np.ndarray
    changed_costs: np.ndarray


class PressureMethods(CounterfactualMethods):
    """Results of which one can ask which way a merger would push prices."""

    def compute_pricing_pressure(self, firm_ids: Any, efficiencies: Any = 0.0, simulate: bool = False) -> pd.DataFrame:
        """What screens say of a merger, or another change of owners, at observed prices and the costs they imply.

        A merger makes a product j earn what its buyers who turn to new partners k leave there: the diversion ratios
        ``R_jk = -(ds_k / dp_j) / (ds_j / dp_j)`` times margins ``p_k - c_k``.

        Parameters
        ----------
        firm_ids : (N,) IDs of firms after the change, or a mapping of old IDs to new ones, such as ``{2: 1}``.
        efficiencies : by which part marginal costs fall: a number for products that get or lose partners in their
            market, or (N,) numbers, such as 0.05.
        simulate : whether to solve for new prices, too, for comparison: see `counterfactual`.

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
            When `simulate` is neither True nor False.
        """
        read_flag("simulate", simulate)
        query, table = self.ask(None, False, False, "shares"), self.output_tables.products
        after = read_firms(query, table.firm_ids, firm_ids)
        if after is None:
            raise ValueError("firm_ids must be given: those of firms after the change.")
        N, rates = table.shares.size, np.asarray(efficiencies)
        rates = query.read(efficiencies=np.broadcast_to(rates, N) if rates.ndim == 0 else rates)["efficiencies"]
        if (rates >= 1).any():
            raise ValueError("efficiencies must be parts of costs, such as 0.05, and so below one.")
        model, rows = self.model.on_host(), self.output_tables.markets.rows
        changed = _changed(model, after)
        if not changed.any():
            raise ValueError("firm_ids changes nothing: no product gets or loses a partner in its market.")
        if np.ndim(efficiencies) == 0:
            rates = np.where(changed, rates, 0.0)
        markets, ids = query.extent.product_labels
        labels = {"market_ids": markets, "product": ids, "firm_before": table.firm_ids, "firm_after": after}
        frame = pd.DataFrame({name: values for name, values in labels.items() if values is not None})
        frame = frame.assign(**pricing_pressure(model, rows, after, rates))
        if simulate:
            outcome = self.counterfactual(firm_ids=after, costs=lambda costs: (1 - rates) * costs)
            frame["simulated_change"] = outcome.products["prices_change"]
        return frame


def pricing_pressure(
    model: Model, rows: Sequence[np.ndarray], firm_ids: np.ndarray, efficiencies: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns (N,) of the table, with `rows` those of each market, for a model on the host.

    Derivatives of own slopes in all prices are those of conditions of firms with a product each and a margin of one:
    third derivatives of nothing are needed.
    """
    s, p, c = (np.asarray(values).reshape(-1) for values in (model.shares, model.prices, model.compute_costs()))
    D, N = np.asarray(model.compute_demand_jacobians()), model.prices.size
    H0, H1 = (np.asarray(model.economy.stack(owned)) for owned in (model.owned(), model.owned(firm_ids)))
    cheaper = (1 - efficiencies) * c
    F = np.asarray(model.profit_gradients(costs=cheaper, firm_ids=firm_ids))
    slopes = np.asarray(model.firm_profit_hessians(costs=cheaper, firm_ids=firm_ids))
    alone = np.asarray(model.firm_profit_hessians(costs=p - 1, firm_ids=np.arange(N)))
    new = {name: np.full(N, np.nan) for name in (*Pressure._fields, "first_order_change")}
    for market in rows:
        square = (market, slice(market.size))
        part = D[square], H0[square], H1[square]
        for name, values in market_pressure(*part, s[market], p[market], c[market])._asdict().items():
            new[name][market] = values
        own = np.diag(part[0])
        curvature = alone[square] - part[0] - np.diag(own)
        h = -F[market] / own
        steps = -slopes[square] / own[:, None] - (h / own)[:, None] * curvature
        new["first_order_change"][market] = -solve_on_host(steps, h)
    return {
        "prices": p,
        "costs": c,
        "diversion": new["diversion"],
        "guppi": new["earned"] / p,
        "upp": new["earned"] - efficiencies * c,
        "cmcr": np.where(c > 0, c - new["changed_costs"], np.nan) / np.where(c > 0, c, 1.0),
        "first_order_change": new["first_order_change"],
    }


def market_pressure(
    D: np.ndarray, H0: np.ndarray, H1: np.ndarray, s: np.ndarray, p: np.ndarray, c: np.ndarray
) -> Pressure:
    """What new owners of a market's products gain by higher prices, and costs at which they would leave them.

    Parameters
    ----------
    D : (J, J) derivatives ``ds_j / dp_k``.
    H0, H1 : (J, J) ownership before and after.
    s, p, c : (J,) shares, prices, and costs.
    """
    R = (H1 - H0) * -D.T / np.diag(D)[:, None]
    return Pressure(R.sum(axis=1), R @ (p - c), p + solve_on_host(H1 * D.T, s))


def _changed(model: Model, firm_ids: np.ndarray) -> np.ndarray:
    """Which products (N,) get or lose partners in their market."""
    stack = model.economy.stack
    return np.asarray(np.nansum(np.abs(stack(model.owned(firm_ids)) - stack(model.owned())), axis=1) > 0)
