"""Hundreds of mergers at once: scenarios that differ in owners and costs alone."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from blpjax import options
from blpjax.exceptions import EquilibriumPricesConvergenceError, Status, raise_for_status, succeeded
from blpjax.inputs.arguments import check_choice
from blpjax.inputs.table_format import plain_value
from blpjax.iteration import Iteration
from blpjax.kernels.markups import Firms, ownership_matrix
from blpjax.model.model import PRICE_ITERATION, Model
from blpjax.model.owners import (
    NEARBY_EVALUATIONS,
    MarketOutcomes,
    base_inverses,
    outcomes_anywhere,
    outcomes_nearby,
    repeated,
)
from blpjax.model.scenario import starting_state
from blpjax.outputs.changes import read_scenario
from blpjax.outputs.consumer_taxes import nonlinear_in_prices
from blpjax.outputs.outcome_numbers import MARKET_COLUMNS, averaging, of_markets, read_market_weights
from blpjax.outputs.query import read_iteration
from blpjax.outputs.sources import OutcomeSource
from blpjax.reporting.report import format_seconds

#: Arguments that scenarios of a batch may have, and those that all of them may share.
OWN_ARGUMENTS, SHARED_ARGUMENTS = (
    frozenset(("firm_ids", "ownership", "costs")),
    frozenset(("error_behavior", "iteration")),
)

#: Numbers of products times agents that are processed together.
_TOGETHER = 2**21


class _Case(NamedTuple):
    """Owners and costs in a market that some scenario has changed, and the scenarios that have them."""

    market: int
    owned: np.ndarray
    costs: np.ndarray
    scenarios: list[int]


def can_be_batch(model: Model) -> bool:
    """Whether scenarios of a model can be a batch: on one device, and with firms that set prices."""
    return model.economy.placement is None and model.conduct is None


def compare_owners(
    scenarios: Mapping[Any, Mapping[str, Any]],
    results: OutcomeSource,
    weights: Any,
    error_behavior: str = "warn",
    iteration: Iteration | None = None,
) -> pd.DataFrame:
    """What `compare` returns of scenarios whose arguments are `OWN_ARGUMENTS`, solved as one batch.

    Markets that a scenario does not change are not solved, and what several scenarios make of a market is solved once.

    Raises
    ------
    ValueError, TypeError, EquilibriumPricesConvergenceError
        See `ProblemResults.counterfactual`; messages about failures name scenario and market.
    """
    check_choice("error_behavior", error_behavior, ("raise", "warn"))
    chosen = PRICE_ITERATION if iteration is None else read_iteration(iteration)
    began, names = time.perf_counter(), list(scenarios)
    model: Model = jax.tree.map(np.asarray, results.model)
    markets = results.output_tables.markets
    T, before = len(markets.ids), starting_state(model)
    w = read_market_weights(weights, T)
    base = {name: np.asarray(values) for name, values in of_markets(before, markets.codes, T).items()}
    quick = (
        iteration is None and nonlinear_in_prices(results.model) is None and results.model.coefficients.rho.size == 0
    )
    cases = _find_cases(scenarios, results, model, np.asarray(before.costs))
    options.output(f"Solving {len(cases)} markets of {len(names)} scenarios ...")
    found = _solve(model, cases, np.asarray(before.costs), chosen, quick)
    options.output(f"Solved them after {format_seconds(time.perf_counter() - began)}.")
    after = {name: np.tile(values, (len(names), 1)) for name, values in base.items()}
    for k, case in enumerate(cases):
        for name in ("consumer_surplus", "profits", "inside_share", "mean_price"):
            after[name][case.scenarios, case.market] = getattr(found, name)[k]
    after["total"] = after["consumer_surplus"] + after["profits"] + after["revenue"]
    labels = [f"{names[c.scenarios[0]]!r} in {plain_value(markets.ids[c.market])!r}" for c in cases]
    if labels:
        kind, warn = EquilibriumPricesConvergenceError, error_behavior == "warn"
        raise_for_status(found.status, labels, "The search for equilibrium prices", found.residuals, warn, kind)
    return _table(names, base, after, w, np.bincount(markets.codes, minlength=T))


def _find_cases(
    scenarios: Mapping[Any, Mapping[str, Any]], results: OutcomeSource, model: Model, costs: np.ndarray
) -> list[_Case]:
    rows, cases = results.output_tables.markets.rows, dict[Any, _Case]()
    nothing = dict.fromkeys(("set", "drop", "hold", "prices", "taxes", "iteration", *OWN_ARGUMENTS))
    whole = np.asarray(model.economy.stack(model.owned()))
    known = [_key(whole[r][:, : r.size]) for r in rows]
    for s, (name, arguments) in enumerate(scenarios.items()):
        scenario = read_scenario(results, (), {**nothing, "constant_costs": True, **arguments})
        moved = costs
        if scenario.costs is not None:
            moved = scenario.costs(costs.copy()) if callable(scenario.costs) else scenario.costs
            moved = np.asarray(moved, float).reshape(-1)
            if moved.size != costs.size or not np.isfinite(moved).all():
                raise ValueError(f"costs of {name!r} must be {costs.size} finite numbers, one for each product.")
        matrices, codes = scenario.ownership, None
        if scenario.firm_ids is not None:
            codes = np.unique(scenario.firm_ids, return_inverse=True)[1].reshape(-1)
        for t, own in enumerate(rows):
            owned = whole[own][:, : own.size]
            if matrices is not None:
                owned = matrices[own][:, : own.size]
            elif codes is not None:
                owned = _first_seen(codes[own])
            matrix = _key(owned)
            if matrix == known[t] and (moved is costs or np.array_equal(moved[own], costs[own])):
                continue
            key = t, matrix, moved[own].tobytes()
            if key not in cases:
                cases[key] = _Case(t, owned, moved[own], [])
            cases[key].scenarios.append(s)
    return list(cases.values())


def _key(owned: np.ndarray) -> bytes:
    """What owners have in common that are the same: codes of firms in the order in which they appear, or matrices."""
    if owned.ndim == 2:
        firms = _first_seen(owned.argmax(axis=1))
        if not np.array_equal(ownership_matrix(firms), owned):
            return b"matrix" + owned.tobytes()
        owned = firms
    return b"firms" + owned.astype(np.uint16).tobytes()


def _first_seen(codes: np.ndarray) -> np.ndarray:
    """Codes of firms in the order in which they appear."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.reshape(-1)]


def _solve(model: Model, cases: list[_Case], costs: np.ndarray, iteration: Iteration, quick: bool) -> MarketOutcomes:
    """Numbers of all cases; `quick` says whether the iteration is the default, which has a quicker way."""
    economy, number = model.economy, len(cases)
    columns = ("consumer_surplus", "profits", "inside_share", "mean_price", "residuals")
    found = MarketOutcomes(**{name: np.full(number, np.nan) for name in columns}, status=np.full(number, -1))
    if not cases:
        return found
    limits, method = jax.tree.map(np.asarray, iteration.limits), iteration.fixed_point
    few = limits._replace(max_evaluations=np.asarray(NEARBY_EVALUATIONS))
    places, first = np.asarray(economy.market_positions)[[case.market for case in cases]], 0
    inverses = base_inverses(model, costs) if quick else []
    plain = all(case.owned.ndim == 1 for case in cases)
    firms = 1 << max(0, max(int(case.owned.max()) for case in cases)).bit_length() if plain else None
    for b, bucket in enumerate(economy.buckets):
        T, J, width = bucket.size
        left = np.flatnonzero((places >= first) & (places < first + T))

        def solve(
            chosen: np.ndarray, program: Any, *more: Any, b: int = b, J: int = J, width: int = width, first: int = first
        ) -> np.ndarray:
            """Solve these, and say which of them are left."""
            size = max(1, min(_TOGETHER // (J * width), 1 << max(0, chosen.size - 1).bit_length()))
            for part in _parts(chosen, size):
                own = places[part] - first
                known = repeated(model, b, own), *_padded(cases, part, J, firms)
                _keep(found, part, program(*known, *(one(own) if callable(one) else one for one in more)))
            return chosen[~succeeded(found.status[chosen])]

        if quick:
            matrices, usable = inverses[b]
            near = usable[places[left] - first]
            again = solve(left[near], outcomes_nearby, matrices.__getitem__, few)
            left = solve(np.union1d(left[~near], again), outcomes_nearby, None, limits)
            # the quicker way is the same iteration, but its exponentials overflow where prices are very far away
            left = left[found.status[left] == Status.NOT_FINITE]
        solve(left, outcomes_anywhere, limits, method)
        first += T
    return found


def _parts(chosen: np.ndarray, size: int) -> list[np.ndarray]:
    """Parts of this size; the last one repeats its last element."""
    starts = range(0, chosen.size, size)
    return [chosen[np.minimum(np.arange(at, at + size), chosen.size - 1)] for at in starts]


def _padded(cases: list[_Case], part: np.ndarray, J: int, firms: int | None) -> tuple[Any, np.ndarray]:
    """Owners and costs (C, J) of some cases: memberships of so many firms where all are codes, or matrices."""
    costs = np.ones((part.size, J))
    owned = np.full((part.size, J), -1) if firms is not None else np.zeros((part.size, J, J))
    for k, c in enumerate(part):
        case, n = cases[c], cases[c].costs.size
        costs[k, :n] = case.costs
        if firms is not None:
            owned[k, :n] = case.owned
        else:
            owned[k, :n, :n] = ownership_matrix(case.owned) if case.owned.ndim == 1 else case.owned
    return owned if firms is None else Firms(owned[:, :, None] == np.arange(firms)), costs


def _keep(found: MarketOutcomes, part: np.ndarray, solved: MarketOutcomes) -> None:
    for name in MarketOutcomes.__dataclass_fields__:
        getattr(found, name)[part] = np.asarray(getattr(solved, name))


def _table(
    names: list[Any],
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    w: np.ndarray,
    counts: np.ndarray,
) -> pd.DataFrame:
    columns = {}
    for name in MARKET_COLUMNS:
        v = averaging(w, counts) if name == "mean_price" else w
        columns[name, "before"] = np.full(len(names), before[name] @ v)
        columns[name, "after"] = after[name] @ v
        columns[name, "change"] = (after[name] - before[name]) @ v
    frame = pd.DataFrame(columns, index=pd.Index(names, tupleize_cols=False, name="scenario"))
    return frame
