"""Whether equilibria are such: second-order conditions of firms, and what other starting prices lead to."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from blpjax.exceptions import ConvergenceWarning, EquilibriumPricesConvergenceError, warn_user
from blpjax.inputs.arguments import read_draws
from blpjax.model.scenario import Scenario, State, taxed_ownership
from blpjax.values import read_seed

#: Logarithms of prices at which searches begin vary by this standard deviation around those before the change.
_SPREAD = 0.3

#: Prices of equilibria that are the same differ by less than this, relative to prices.
_SAME = 1e-6


def read_starts(starts: Any) -> tuple[int, int] | None:
    """How many starting prices there are, and the seed, or `ValueError`."""
    if starts is None:
        return None
    number, seed = starts if isinstance(starts, tuple) and len(starts) == 2 else (starts, 0)
    return read_draws(number, "starts"), read_seed("starts", seed) or 0


def largest_curvatures(after: State, rows: Sequence[np.ndarray], hold: np.ndarray | None) -> np.ndarray:
    """The largest eigenvalue (T,) of Hessians of firms' profits in the prices that they set, by market.

    It is negative where each firm is at a strict local maximum of its profits, given the prices of others. Products are
    of the same firm where they have the same row of the ownership matrix. -inf where no price is set.
    """
    assert after.owned is not None
    model = dataclasses.replace(after.model, ownership=taxed_ownership(after.base, after.owned, after.kept))
    kept = np.asarray(after.kept)
    slopes = kept[:, None] * np.asarray(model.firm_profit_hessians(costs=(after.costs + after.unit) / kept))
    owned = np.asarray(model.economy.stack(after.owned))
    free = ~np.asarray(after.dropped) & (True if hold is None else ~hold)
    found = np.full(len(rows), -np.inf)
    for t, market in enumerate(rows):
        if not np.isfinite(after.model.prices[market][free[market]]).all():
            found[t] = np.nan
            continue
        _, firms = np.unique(np.nan_to_num(owned[market]), axis=0, return_inverse=True)
        for firm in range(firms.max() + 1):
            own = np.flatnonzero((firms.reshape(-1) == firm) & free[market])
            if own.size:
                block = slopes[market[own]][:, own]
                found[t] = max(found[t], np.linalg.eigvalsh((block + block.T) / 2).max())
    return found


def try_starts(
    before: State, scenario: Scenario, codes: np.ndarray, T: int, starts: tuple[int, int]
) -> tuple[Scenario, np.ndarray]:
    """The scenario with starting prices that lead to an equilibrium where some do, and how many different ones (T,).

    In each market that from the prices before the change is taken, or else the first one that was found.
    """
    number, seed = starts
    state = np.random.RandomState(seed)
    known = np.asarray(before.model.prices)
    taken, found = known.copy(), [list[np.ndarray]() for _ in range(T)]
    for k in range(number + 1):
        start = known if k == 0 else known * np.exp(_SPREAD * state.normal(size=known.size))
        after = dataclasses.replace(scenario, start=start).apply(before)
        prices = np.asarray(after.model.prices)
        for t in range(T):
            own = prices[(codes == t) & ~np.asarray(after.dropped)]
            if not np.isfinite(own).all() or any(np.allclose(own, one, rtol=_SAME, atol=0.0) for one in found[t]):
                continue
            if not found[t]:
                taken[codes == t] = np.where(np.isfinite(prices[codes == t]), prices[codes == t], known[codes == t])
            found[t].append(own)
    return dataclasses.replace(scenario, start=taken), np.array([len(one) for one in found])


def warn_of_several(equilibria: np.ndarray, market_ids: np.ndarray) -> None:
    """Warn where several equilibria were found."""
    if several := market_ids[equilibria > 1].tolist():
        warn_user(
            f"Different equilibria were found in {len(several)} markets, such as {several[0]!r}. Those to which prices "
            "before the change lead are taken, or else the first ones.",
            ConvergenceWarning,
        )


def report_curvatures(curvatures: np.ndarray, market_ids: np.ndarray, warn: bool) -> None:
    """Warn, or raise `EquilibriumPricesConvergenceError`, where second-order conditions fail."""
    if not (failing := market_ids[curvatures > 0].tolist()):
        return
    text = (
        f"Second-order conditions fail in {len(failing)} markets, such as {failing[0]!r}: prices satisfy those of "
        "first order, but some firm would gain by others. Try starts."
    )
    if not warn:
        raise EquilibriumPricesConvergenceError(text)
    warn_user(text, ConvergenceWarning)
