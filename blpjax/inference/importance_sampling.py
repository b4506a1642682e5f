"""Importance sampling of agents who are likely to buy (Berry, Levinsohn and Pakes 1995, section 6)."""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax import options
from blpjax.economy.buckets import AgentsInEconomy, MarketIndex, index_markets
from blpjax.estimation.estimates import Estimates
from blpjax.exceptions import DataError
from blpjax.inputs import records
from blpjax.inputs.arguments import read_draws, read_vector
from blpjax.inputs.integration import Integration
from blpjax.inputs.table_format import plain_value, read_table
from blpjax.machine.compilation import filtered_program
from blpjax.machine.forks import check_process
from blpjax.machine.pickling import Picklable
from blpjax.model.demand import MarketDemand, over_markets
from blpjax.model.model import Model
from blpjax.objective.problem_data import ProblemData
from blpjax.reporting import report
from blpjax.reporting.tables import Part, Shown, one_row_table
from blpjax.values import read_seed


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImportanceSamplingResults(Shown, Picklable):
    """Agents drawn by importance sampling, from `ProblemResults.importance_sampling`, with diagnostics (Owen 2013).

    Attributes
    ----------
    problem_results : the results that they were computed from.
    sampled_agents : structured array of the agents, T times `draws` rows, with the fields of `Problem.agents`.
    agent_data : the same agents as arrays by name with all columns of the agent data, as `Problem` reads them.
    computation_time : seconds.
    draws : number of agents in each market.
    diagnostic_market_ids : (T,) sorted market IDs, which the following diagnostics belong to.
    weight_sums : (T, 1) sums of weights, which should not be far from one.
    effective_draws : (T, 1) effective sample sizes ``(sum w)^2 / sum w^2``.
    effective_draws_for_variance : (T, 1) those for variances, ``(sum w^2)^2 / sum w^4``.
    effective_draws_for_skewness : (T, 1) those for skewness, ``(sum w^2)^3 / (sum w^3)^2``.
    """

    problem_results: Estimates
    sampled_agents: np.recarray
    agent_data: dict[str, np.ndarray]
    computation_time: float
    draws: int
    diagnostic_market_ids: np.ndarray
    weight_sums: np.ndarray
    effective_draws: np.ndarray
    effective_draws_for_variance: np.ndarray
    effective_draws_for_skewness: np.ndarray

    def to_problem(self) -> Any:
        """The same problem with the sampled agents.

        Returns
        -------
        ImportanceSamplingProblem

        Raises
        ------
        DataError
            When a level of a categorical demographic is not among the sampled agents.
        """
        return self.problem_results.problem.replace_agents(self.agent_data)

    def to_dict(self, attributes: Sequence[str] | None = None) -> dict[str, Any]:
        """Attributes by name; by default all but `problem_results` and `agent_data`."""
        return {name: getattr(self, name) for name in (ATTRIBUTES if attributes is None else attributes)}

    def _parts(self) -> list[Part]:
        effective = ("effective_draws", "effective_draws_for_variance", "effective_draws_for_skewness")
        sums = self.weight_sums
        columns = {
            ("", "Computation", "Time"): report.format_seconds(self.computation_time),
            ("", "Total", "Sampling Draws"): str(self.sampled_agents.size),
            ("", "Sampling Draws", "per Market"): str(self.draws),
            ("", "Min", "Effective Draws"): str(int(getattr(self, effective[0]).min())),
            ("Min", "Effective Draws", "for Variance"): str(int(getattr(self, effective[1]).min())),
            ("Min", "Effective Draws", "for Skewness"): str(int(getattr(self, effective[2]).min())),
            ("", "Min", "Weight Sum"): report.format_number(float(sums.min())),
            ("", "Max", "Weight Sum"): report.format_number(float(sums.max())),
        }
        return [one_row_table(columns, "Importance Sampling Results Summary")]


#: What `ImportanceSamplingResults.to_dict` returns by default.
ATTRIBUTES = (
    *("sampled_agents", "computation_time", "draws", "diagnostic_market_ids", "weight_sums"),
    *("effective_draws", "effective_draws_for_variance", "effective_draws_for_skewness"),
)


def importance_sampling(
    results: Estimates,
    draws: int,
    ar_constant: float = 1.0,
    seed: int | None = None,
    agent_data: Any = None,
    integration: Integration | None = None,
    delta: Any = None,
) -> ImportanceSamplingResults:
    """Agents drawn by importance sampling; `ProblemResults.importance_sampling` documents the arguments."""
    began = time.perf_counter()
    check_process()
    data = results.problem.data
    options.output("Importance sampling ...")
    count, seed = read_draws(draws), read_seed("seed", seed)
    _check_arguments(data, ar_constant)
    if agent_data is None and integration is None:
        candidates = data.agents_in_economy
    else:
        table = agent_data if agent_data is None or integration is not None else _with_equal_weights(agent_data)
        candidates = data.build_agents(table, integration, options.weights_tol)
    mean = (
        results.delta[:, 0]
        if delta is None
        else read_vector("delta", delta, len(results.delta), data.product_table.index)
    )
    inside = _inside_probabilities(results.model_in(candidates.economy), mean, candidates)
    weights = _sample(data, candidates, inside, count, ar_constant, seed)

    chosen = np.flatnonzero(weights > 0)
    known = candidates.table
    sampled = dataclasses.replace(
        known,
        market_ids=known.market_ids[chosen],
        agent_ids=None if known.agent_ids is None else known.agent_ids[chosen],
        weights=weights[chosen],
        nodes=known.nodes[chosen],
        availability=None if known.availability is None else known.availability[chosen],
        rows=None if known.rows is None else known.rows[chosen],
    )
    index = index_markets(sampled.market_ids)
    moments = {k: _sums(index, sampled.weights**k) for k in (1, 2, 3, 4)}
    columns = {} if sampled.rows is None else {name: values[sampled.rows] for name, values in sampled.data.items()}
    kept = {name: values for name, values in columns.items() if not re.fullmatch(r"weights|nodes[0-9]*", name)}
    found = ImportanceSamplingResults(
        problem_results=results,
        sampled_agents=records.agent_records(sampled, candidates.demographics[chosen], candidates.demographic_columns),
        agent_data={**kept, "market_ids": sampled.market_ids, "weights": sampled.weights, "nodes": sampled.nodes},
        computation_time=time.perf_counter() - began,
        draws=count,
        diagnostic_market_ids=records.as_objects(index.ids),
        weight_sums=moments[1],
        effective_draws=moments[1] ** 2 / moments[2],
        effective_draws_for_variance=moments[2] ** 2 / moments[4],
        effective_draws_for_skewness=moments[2] ** 3 / moments[3] ** 2,
    )
    options.output(f"Finished importance sampling after {report.format_seconds(found.computation_time)}.")
    options.output("")
    options.output(found)
    return found


def _check_arguments(data: ProblemData, ar_constant: Any) -> None:
    if data.K2 == 0:
        raise ValueError("Without X2 there are no agents to sample.")
    if isinstance(ar_constant, bool) or not isinstance(ar_constant, int | float | np.number) or not ar_constant >= 1:
        raise ValueError(f"ar_constant must be a number that is at least one, not {ar_constant!r}.")


def _with_equal_weights(agent_data: Any) -> dict[str, np.ndarray]:
    """Agent data with weights that sum to one, because candidates' own weights play no role."""
    columns = read_table(agent_data, "agent_data")
    if "market_ids" in columns and columns["market_ids"].size:
        _, codes, counts = np.unique(columns["market_ids"].astype(str), return_inverse=True, return_counts=True)
        columns["weights"] = 1 / counts[codes.reshape(-1)]
    return columns


def _inside_probabilities(model: Model, delta: np.ndarray, candidates: AgentsInEconomy) -> list[np.ndarray]:
    """For each market, in the sorted order of IDs, its agents' probabilities (I,) to buy anything."""
    parts = [np.asarray(part) for part in _probabilities(model, model.economy.scatter(jnp.asarray(delta)))]
    rows = [row for part in parts for row in part]
    positions = np.asarray(model.economy.market_positions)
    return [rows[position][:count] for position, count in zip(positions, candidates.counts, strict=True)]


@filtered_program(effort=1, what="choice probabilities")
def _probabilities(model: Model, delta: tuple[Float[Array, "T J"], ...]) -> tuple[Float[Array, "T I"], ...]:
    def kernel(local: MarketDemand, mean: Array) -> Array:
        return local.point_at(mean, {}).choices().inside.sum(axis=0)

    return tuple(model.economy.collect(over_markets(model, kernel, delta)))


def _sample(
    data: ProblemData,
    candidates: AgentsInEconomy,
    inside: Sequence[np.ndarray],
    draws: int,
    ar_constant: float,
    seed: int | None,
) -> np.ndarray:
    """Weights (I,) of all candidates, zero for those that are not drawn. Draws are PyBLP's for a seed."""
    state = np.random.RandomState(seed)
    weights = np.zeros(candidates.table.weights.size)
    products, agents = data.market_index, index_markets(candidates.table.market_ids)
    for market, rows, people, probabilities in zip(products.ids, products.rows, agents.rows, inside, strict=True):
        # accepted with probability (1 - s_i0) / M
        accepted = np.flatnonzero(state.uniform(size=people.size) < probabilities / ar_constant)
        if accepted.size < draws:
            raise DataError(
                f"agent_data: only {accepted.size} of {people.size} candidates were accepted in market "
                f"{plain_value(market)!r}, fewer than draws={draws}. Give more candidates, with agent_data or "
                f"integration, or ask for fewer draws{' or a smaller ar_constant' if ar_constant > 1 else ''}."
            )
        sampled = state.choice(accepted, size=draws, replace=False)
        inside_share = data.product_table.shares[rows].sum()
        weights[people[sampled]] = inside_share / probabilities[sampled] / draws  # (1 - s_0) / (1 - s_i0) / I
    return weights


def _sums(index: MarketIndex, values: np.ndarray) -> np.ndarray:
    return np.array([[values[rows].sum()] for rows in index.rows])
