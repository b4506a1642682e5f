"""Numbers of outcomes: what tables of products and of markets have, at one point and over draws."""

from typing import Any, NamedTuple

import jax
import numpy as np

from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.model.demand import host_or_program
from blpjax.model.model import Model
from blpjax.model.scenario import State

#: Numbers of tables, by table and column.
Numbers = dict[str, dict[str, AnyArray]]

#: What tables of products and of markets have, before and after.
PRODUCT_COLUMNS = ("prices", "shares", "costs", "net_prices", "profits")
MARKET_COLUMNS = ("consumer_surplus", "profits", "revenue", "total", "inside_share", "mean_price")


@host_or_program(effort=1)
def numbers_of(base: Model, before: State, after: State, codes: AnyArray, T: int) -> Numbers:
    """All numbers of tables. `codes` (N,) are those of products' markets."""
    found: Numbers = {"markets": {}, "products": {}}
    for when, state in (("before", before), ("after", after)):
        for name in PRODUCT_COLUMNS:
            found["products"][f"{name}_{when}"] = getattr(state, name)
        for name, values in of_markets(state, codes, T).items():
            found["markets"][f"{name}_{when}"] = values
    for part in found.values():
        for name in [column for column in part if column.endswith("_before")]:
            stem = name.removesuffix("_before")
            part[f"{stem}_change"] = part[f"{stem}_after"] - part[name]
    return found


def of_markets(state: State, codes: AnyArray, T: int) -> dict[str, AnyArray]:
    """Numbers of markets (T,) at one point, of products' `codes` (N,)."""
    xp = namespace(state.costs)

    def sums(values: AnyArray) -> AnyArray:
        return np.bincount(codes, values, T) if xp is np else jax.ops.segment_sum(values, codes, T)

    surplus, profits = state.compute_consumer_surpluses()[:, 0], sums(state.profits)
    revenue, sold = sums(state.revenues), xp.where(state.dropped, 0.0, 1.0)
    return {
        "consumer_surplus": surplus,
        "profits": profits,
        "revenue": revenue,
        "total": surplus + profits + revenue,
        "inside_share": sums(state.shares),
        "mean_price": sums(xp.where(state.dropped, 0.0, state.model.prices)) / sums(sold),
    }


def read_market_weights(weights: Any, T: int) -> np.ndarray:
    """Weights (T,) of markets, by default those of means, or `ValueError`."""
    w = np.full(T, 1 / T) if weights is None else np.asarray(weights, float).reshape(-1)
    if w.size != T or not np.isfinite(w).all():
        raise ValueError(f"weights must be {T} finite numbers, one for each market.")
    return w


def averaging(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weights of means of markets in the mean over all products."""
    return weights * counts / (weights * counts).sum()


class Spread(NamedTuple):
    """Of numbers with a first axis of draws: standard deviations, and limits of 95% intervals of percentiles."""

    se: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def spread_of(draws: np.ndarray) -> Spread:
    """How numbers (draws, ...) vary over draws in which they are known; NaN where they are in fewer than two."""
    found = np.full((3, *draws.shape[1:]), np.nan)
    several = np.isfinite(draws).sum(axis=0) > 1
    known = np.where(np.isfinite(draws), draws, np.nan)[:, several]
    found[0, several] = np.nanstd(known, axis=0, ddof=1)
    found[1:, several] = np.nanquantile(known, [0.025, 0.975], axis=0)
    return Spread(*found)


def spreads_of(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Columns about draws, of numbers (draws, ...) before and after."""
    numbers = {"before": before, "after": after, "change": after - before}
    spreads = {when: spread_of(values)._asdict() for when, values in numbers.items()}
    return {f"{when}_{key}": values for when, spread in spreads.items() for key, values in spread.items()}


def surpluses_of_agents(before: State, after: State) -> tuple[AnyArray, AnyArray]:
    """Consumer surpluses of agents (T, max I) at both points."""
    return before.compute_consumer_surpluses(keep_all=True), after.compute_consumer_surpluses(keep_all=True)
