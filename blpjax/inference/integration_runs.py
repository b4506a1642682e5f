"""How estimates and outcomes move with the number and the seed of draws: the same estimation with other nodes.

Every rule has its own lanes of compiled programs, a lane for each seed, from the same starting values.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from blpjax import options
from blpjax.economy.buckets import Economy
from blpjax.economy.ownership import pack_firms
from blpjax.estimation.estimates import Estimates
from blpjax.estimation.lane import BatchOptions, Lane, build_lane, largest_batch, split_lanes
from blpjax.estimation.lanes import BatchOutcome, estimate_batch, tabulate
from blpjax.estimation.options import StepOptions
from blpjax.exceptions import Status, raise_for_status, succeeded
from blpjax.inference.diagnostics import FirstStep
from blpjax.inference.integration_report import IntegrationReport
from blpjax.inference.reestimation import first_weights, refuse_lanes
from blpjax.inputs.arguments import read_costs_bounds
from blpjax.inputs.integration import Integration
from blpjax.iteration import Iteration
from blpjax.machine.forks import check_process
from blpjax.model.elsewhere import hold_shares_at
from blpjax.model.model import Model
from blpjax.model.parameters import all_coefficients
from blpjax.objective.data import ModelData
from blpjax.values import check_integer

#: What an outcome is called that is a number instead of a mapping.
OUTCOME = "outcome"


class Rules(NamedTuple):
    """Rules by name, seeds of those that have one, and agents that they are combined with (None for the problem's)."""

    rules: dict[str, Integration]
    seeds: list[int]
    agent_data: Any


def report_integration(
    results: Estimates,
    step_options: StepOptions,
    begin: FirstStep,
    rules: Rules,
    outcome: Callable[[Model], Any] | None,
    costs_bounds: Any,
) -> IntegrationReport:
    """Estimate with the nodes of every rule and seed; see `ProblemResults.integration_report`."""
    check_process()
    refuse_lanes(results, step_options, costs_bounds)
    problem = results.problem.data
    if problem.K2 == 0:
        raise ValueError("There is nothing to integrate without X2.")
    bounds = read_costs_bounds(costs_bounds, problem.model_data.supply is not None)
    known = problem.moments_of(step_options.moment_types).at(costs_bounds=bounds)
    baseline = _baseline(results, step_options.parameters.parameter_blocks, outcome)
    tables = []
    for name, rule in rules.rules.items():
        seeds = rules.seeds if rule.random else [-1]
        built = [
            problem.build_agents(
                _agent_data(problem, rules), _with_seed(rule, s) if rule.random else rule, options.weights_tol
            )
            for s in seeds
        ]
        economies = [agents.economy for agents in built]
        found = _estimate(results, step_options, begin, known, economies)
        table = _tabulate(results, step_options, found, seeds)
        if outcome is not None:
            table = pd.concat(
                [table, _outcomes(results, outcome, found, economies, seeds, list(baseline["parameter"]))]
            )
        tables.append(table.assign(integration=name, agents=max(built[0].counts)))
    columns = ["integration", "agents", "seed", "block", "parameter", "estimate", "standard_error", "ok", "status"]
    table = pd.concat(tables, ignore_index=True)[[*columns, "objective"]]
    report = IntegrationReport(table, baseline)
    options.output(f"\n{report}")
    return report


def read_rules(integrations: Any, seeds: Any, agent_data: Any) -> Rules:
    """Rules and seeds from arguments of `ProblemResults.integration_report`.

    Raises
    ------
    TypeError, ValueError
        When there are none, or one is no `Integration` or no seed.
    """
    if isinstance(integrations, Integration):
        integrations = [integrations]
    if not isinstance(integrations, Mapping):
        if not isinstance(integrations, Sequence) or isinstance(integrations, str):
            raise TypeError(f"integrations must be one Integration or several, not {type(integrations).__name__}.")
        integrations = {f"{rule.specification} {rule.size}": rule for rule in map(_read_rule, integrations)}
    rules = {str(name): _read_rule(rule) for name, rule in integrations.items()}
    if not rules:
        raise ValueError("integrations must have at least one Integration.")
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        seeds = range(check_integer("seeds", seeds, minimum=1))
    if isinstance(seeds, str) or not isinstance(seeds, Sequence | np.ndarray):
        raise TypeError(f"seeds must be a number of seeds or a sequence of them, not {seeds!r}.")
    read = [check_integer("An element of seeds", seed, minimum=0) for seed in seeds]
    if not read or len(set(read)) < len(read):
        raise ValueError("seeds must have at least one element, and none twice.")
    return Rules(rules, read, agent_data)


def _read_rule(rule: Any) -> Integration:
    if not isinstance(rule, Integration):
        raise TypeError(f"integrations must be one Integration or several, but one is {rule!r}.")
    return rule


def _with_seed(rule: Integration, seed: int) -> Integration:
    return Integration(rule.specification, rule.size, {**rule.specification_options, "seed": seed})


def _agent_data(problem: Any, rules: Rules) -> Any:
    """The table that demographics come from; None where nothing but nodes and weights is needed."""
    if rules.agent_data is not None:
        return rules.agent_data
    needed = problem.agent_formulation is not None or problem.agent_table.availability is not None
    return dict(problem.agent_table.data) if needed else None


def _estimate(
    results: Estimates, step_options: StepOptions, begin: FirstStep, known: ModelData, economies: Sequence[Economy]
) -> BatchOutcome:
    """Estimates in economies of one shape that differ in their agents."""
    problem, size = results.problem.data, len(economies)
    economy = economies[0]
    data = known
    if known.supply is not None:
        owned = pack_firms(problem.pricing_ownership_in(economy))
        data = dataclasses.replace(known, supply=dataclasses.replace(known.supply, ownership=owned))
    specification = step_options.specification._replace(layout=results.layout_in(economy))
    given = first_weights(begin, known)
    model = step_options.parameters, step_options.iteration, economy, data
    lane = build_lane(*model, begin.theta, results.delta[:, 0], problem.clusters[0], given)
    batch = BatchOptions(specification, step_options.types, min(results.step, 2))
    most = largest_batch(economy, specification.layout.P, data.supply is not None)
    found = []
    for first in range(0, size, most):
        chosen = economies[first : first + most]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *chosen)
        found.append(estimate_batch(batch, *split_lanes(_move, lane, stacked), len(chosen)))
    outcome: BatchOutcome = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    return outcome


def _move(lane: Lane, economy: Economy) -> Lane:
    return dataclasses.replace(lane, economy=economy)


def _tabulate(results: Estimates, step_options: StepOptions, found: BatchOutcome, seeds: Sequence[int]) -> pd.DataFrame:
    blocks, labels = step_options.parameters.parameter_blocks, results.parameter_labels
    table = tabulate(found, np.array(seeds), list(blocks), list(labels), [None] * len(seeds))
    return table.rename(columns={"number": "seed"})


def _outcomes(
    results: Estimates,
    outcome: Callable[[Model], Any],
    found: BatchOutcome,
    economies: Sequence[Economy],
    seeds: Sequence[int],
    names: list[str],
) -> pd.DataFrame:
    """Rows of outcomes at the estimates of each seed, with the mean utilities that reproduce observed shares there."""
    rows: list[dict[str, Any]] = []
    market_ids = results.problem.data.market_index.ids
    last = names[len(results.parameters) :]
    for s, (seed, economy) in enumerate(zip(seeds, economies, strict=True)):
        values = dict.fromkeys(last, np.nan)
        ok = bool(found.ok[s])
        if ok:
            base = results.model_in(economy)
            at = hold_shares_at(
                base, all_coefficients(base.layout, base.coefficients, found.parameters[s]), Iteration()
            )
            assert at.loops is not None
            status = np.asarray(at.loops.status)
            action = f"The inversion of shares at estimates of seed {seed}"
            residuals = np.asarray(at.loops.residuals)
            raise_for_status(status, market_ids, action, residuals, warn=True, note="Outcomes are NaN.")
            ok = bool(succeeded(status).all())
            values = _read_outcome(outcome(at.draw.model(base))) if ok else values
        shared = {"seed": seed, "block": OUTCOME, "standard_error": np.nan, "ok": ok, "objective": found.objectives[s]}
        shared["status"] = Status(found.reasons[s]).sentence
        rows += [{**shared, "parameter": name, "estimate": value} for name, value in values.items()]
    return pd.DataFrame(rows)


def _baseline(results: Estimates, blocks: Sequence[str], outcome: Callable[[Model], Any] | None) -> pd.DataFrame:
    rows = {
        "block": list(blocks),
        "parameter": list(results.parameter_labels),
        "estimate": results.parameters[:, 0],
        "standard_error": np.sqrt(np.diag(results.parameter_covariances) / len(results.delta)),
    }
    frame = pd.DataFrame(rows)
    if outcome is None:
        return frame
    if not callable(outcome):
        raise TypeError(f"outcome must be a function of a Model, not {type(outcome).__name__}.")
    values = _read_outcome(outcome(results.model))
    more = {"block": OUTCOME, "parameter": list(values), "estimate": list(values.values()), "standard_error": np.nan}
    return pd.concat([frame, pd.DataFrame(more)], ignore_index=True)


def _read_outcome(values: Any) -> dict[str, float]:
    """Outcomes by name.

    Raises
    ------
    TypeError
        When it is neither a number nor a mapping of names to numbers.
    """
    named = values if isinstance(values, Mapping) else {OUTCOME: values}
    if any(np.size(value) != 1 for value in named.values()) or not named:
        sizes = {name: np.shape(value) for name, value in named.items()}
        raise TypeError(
            f"outcome must return a number, or a mapping of names to numbers, not arrays of shapes {sizes}."
        )
    return {str(name): float(np.asarray(value).reshape(())) for name, value in named.items()}
