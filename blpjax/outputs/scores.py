"""Scores of respondents and of agents: derivatives of log probabilities of choices in theta, at observed shares."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from blpjax.economy.buckets import Bucket, Economy, build_economy, index_markets
from blpjax.economy.mapping import cached_elements, map_markets
from blpjax.economy.surveys import Markets, Surveys, build_surveys, choice_offsets
from blpjax.exceptions import DataError
from blpjax.inputs import records
from blpjax.inputs.demographics import build_demographics
from blpjax.inputs.integration import Integration
from blpjax.inputs.micro import MicroDataset
from blpjax.inputs.respondents import check_indices, read_respondents
from blpjax.inputs.survey_expressions import SurveyTables
from blpjax.inputs.surveys import compute_weights, dataset_markets, spread_nodes
from blpjax.inputs.table_format import plain_value, read_table
from blpjax.inputs.tables import AgentTable, assign_node_columns, read_agents
from blpjax.iteration import FixedPointMethod, Iteration
from blpjax.kernels import micro
from blpjax.kernels.arrays import namespace
from blpjax.machine.compilation import filtered_program
from blpjax.model.formulated import Formulated
from blpjax.model.inversion import invert_economy
from blpjax.model.model import Model
from blpjax.model.parameters import ParameterLayout, compress, expand
from blpjax.model.surveys import Parts, survey_sums
from blpjax.model.tastes import demand_point, market_tastes


class SurveySource(NamedTuple):
    """What methods for micro data need of results: tables with formulas, products, the model, and its parameters."""

    data: Formulated
    products: np.recarray
    model: Model
    layout: ParameterLayout


class Rows(NamedTuple):
    """Rows of respondents: agents who stand for them, what these choose, and which respondent each row belongs to.

    `respondents` is their number. `first` and `second` (rows,) are indices of choices, None for all choices.
    """

    table: AgentTable
    demographics: np.ndarray
    respondent: np.ndarray
    respondents: int
    first: np.ndarray | None = None
    second: np.ndarray | None = None


class _Request(NamedTuple):
    """Whose choices are asked for in a bucket: groups (T, J), and places (T, I) of choices, None for all choices."""

    groups: Int[Any, "T J"] | None
    first: Int[Any, "T I"] | None
    second: Int[Any, "T I"] | None


class _Local(NamedTuple):
    """The markets that respondents live in, with rows of respondents as their agents.

    `kept` are the rows of products in these markets.
    """

    markets: Markets
    economy: Economy
    kept: np.ndarray


class _Asked(NamedTuple):
    """Weights of a market's rows, of the shape of the user's function, and where they stand among 1 + J places."""

    weights: np.ndarray
    offsets: tuple[int, ...]
    groups: np.ndarray | None


def own_agents(source: SurveySource, dataset: MicroDataset, integration: Integration | None) -> Rows:
    """The problem's agents in a dataset's markets as respondents, each with own nodes, or others to integrate over."""
    agents = source.data.agents_in_economy
    table, index = agents.table, index_markets(agents.table.market_ids)
    chosen = np.arange(table.weights.size)
    if dataset.market_ids is not None:
        chosen = np.concatenate([index.rows[t] for t in dataset_markets(dataset, index.ids)])
    respondent, nodes, weights = np.arange(chosen.size), table.nodes[chosen], np.ones(chosen.size)
    if integration is not None:
        built = _check_integration(source, integration).build_many(len(source.layout.sigma_columns), respondent)
        respondent, nodes, weights = built.market_ids.astype(int), built.nodes, built.weights
    rows = chosen[respondent]
    some = AgentTable(
        market_ids=table.market_ids[rows],
        agent_ids=None if table.agent_ids is None else table.agent_ids[rows],
        weights=weights,
        nodes=nodes,
        availability=None if table.availability is None else table.availability[rows],
        data=table.data,
        rows=None if table.rows is None else table.rows[rows],
    )
    return Rows(some, agents.demographics[rows], respondent, chosen.size)


def read_rows(source: SurveySource, micro_data: Any, integration: Integration | None, choices: int) -> Rows:
    """Micro data as rows of respondents, of whom so many choices are read."""
    if integration is not None:
        _check_integration(source, integration)
    data, known = source.data, source.data.agents_in_economy
    found = read_respondents(micro_data, integration, len(source.layout.sigma_columns), choices)
    products = data.product_table.market_ids
    here = products[np.isin(products, found.columns["market_ids"])]
    formulation = data.agent_formulation
    try:
        names = None if formulation is None else formulation.names
        table = read_agents(found.columns, None, data.K2, here, names, np.inf)
        demographics = np.zeros((table.weights.size, 0))
        if formulation is not None:
            demographics, columns = build_demographics(formulation, table.data, here)
            labels = tuple(column.label for column in columns)
            if labels != known.demographic_labels:
                raise DataError(f"demographics are {list(labels)}, not {list(known.demographic_labels)}.")
    except DataError as error:
        raise DataError(f"micro_data cannot be used as agents: {error}") from error
    return Rows(table, demographics, found.respondent, found.ids.size, found.first, found.second)


def markets_of(dataset: MicroDataset, data: Formulated, micro_data: Any) -> MicroDataset:
    """The same dataset in those of its markets that micro data are about.

    Raises
    ------
    KeyError, ValueError
        When there are no market IDs, or some are unknown or not those of the dataset.
    """
    columns = read_table(micro_data, "micro_data")
    if "market_ids" not in columns:
        raise KeyError("micro_data must have market_ids.")
    given = {plain_value(value) for value in np.unique(columns["market_ids"])}
    ids = data.market_index.ids
    known = {plain_value(ids[t]) for t in dataset_markets(dataset, ids)}
    if given - known:
        raise ValueError(
            f"micro_data has market_ids that are not among the markets of the micro dataset '{dataset.name}': "
            f"{', '.join(sorted(map(repr, given - known)))}."
        )
    return dataclasses.replace(dataset, market_ids=list(ids[[plain_value(value) in given for value in ids]]))


def survey_of(source: SurveySource, dataset: MicroDataset) -> Surveys:
    """Weights of a dataset for the problem's agents."""
    markets = source.data.survey_markets(source.products, source.data.agents_in_economy, source.layout)
    return build_surveys(markets, source.model.economy, [], [dataset])


def choices_of(surveys: Surveys, dataset: MicroDataset) -> int:
    """How many choices a dataset is about; `NotImplementedError` when there are second ones in some markets only."""
    found = {survey.second for bucket in surveys.buckets for survey in bucket.surveys}
    if len(found) > 1:
        raise NotImplementedError(
            f"Scores of the micro dataset '{dataset.name}' are not supported, because it has second choices in some "
            "markets only. Use a dataset for each kind of market."
        )
    return 2 if found.pop() else 1


def scores(
    source: SurveySource, dataset: MicroDataset, surveys: Surveys, rows: Rows
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Scores in each element of theta in turn.

    For each element there are, by market in the order of sorted IDs, which respondents it has and their scores: (n,)
    for given choices, and (n, ...) with the shape of weights for all choices.
    """
    second = choices_of(surveys, dataset) == 2
    local = _local(source, rows)
    asked = [_ask(local.markets, dataset, t) for t in range(len(local.markets.index.ids))]
    requests = tuple(_requests(local, rows, asked))
    model, layout, theta = source.model, source.layout, compress(source.layout, source.model.coefficients)
    nonzero = np.isin(np.arange(source.data.K2), layout.sigma_columns)
    columns = assign_node_columns(rows.table.nodes.shape[1], nonzero)
    local_layout = layout._replace(node_columns=tuple(columns.tolist()))
    slopes = _delta_slopes(model, layout, theta)
    for direction in np.eye(theta.size):
        found = _along(
            (model, layout, local_layout), theta, slopes @ direction, direction, surveys, local.economy, local.kept,
            (requests, second),
        )  # fmt: skip
        (den, values), (den_slope, changes) = jax.device_get(found)
        who, what = [], []
        for t, one in enumerate(asked):
            numerators = [_numerators(local, rows, one, t, parts) for parts in (values, changes)]
            members, (number, change) = numerators[0][0], (n for _, n in numerators)
            with np.errstate(all="ignore"):
                score = change / number - den_slope / den
            who.append(members)
            what.append(np.where(np.isfinite(score), score, np.nan))
        yield who, what


def _local(source: SurveySource, rows: Rows) -> _Local:
    """Markets of respondents alone."""
    data, table = source.data, rows.table
    all_ids = data.product_table.market_ids
    kept = np.flatnonzero(np.isin(all_ids, table.market_ids))
    index, people = index_markets(all_ids[kept]), index_markets(table.market_ids)
    nests = None if data.product_table.nests is None else data.product_table.nests[kept]
    economy = build_economy(
        index,
        people,
        shares=np.asarray(source.model.shares)[kept],
        X2=np.asarray(source.model.characteristics.evaluate({})[1])[kept],
        weights=table.weights,
        nodes=table.nodes,
        demographics=rows.demographics,
        availability=table.availability,
        nests=nests,
    )
    columns = np.array(source.layout.sigma_columns, int)
    spread = dataclasses.replace(table, nodes=spread_nodes(table.nodes, columns, data.K2))
    agents = records.agent_records(spread, rows.demographics, data.agents_in_economy.demographic_columns)
    ids = data.product_table.product_ids
    products: Any = source.products[kept]
    known = (None if ids is None else ids[kept], nests)
    moved = {name: np.asarray(source.products[name]).reshape(-1) for name in ("shares", "prices")}
    tables = SurveyTables({**data.product_table.data, **moved}, table.data)
    markets = Markets(
        products, agents, index, people.rows, *known, tables, product_places=kept, agent_places=table.rows
    )
    return _Local(markets, economy, kept)


def _ask(markets: Markets, dataset: MicroDataset, t: int) -> _Asked:
    market = markets.at(t)
    weights = compute_weights(dataset, market)
    return _Asked(weights, choice_offsets(weights.shape, len(market.products)), markets.groups(dataset, t))


def _requests(local: _Local, rows: Rows, asked: Sequence[_Asked]) -> Iterator[_Request]:
    """Places of choices by bucket; indices are checked."""
    index, first_market = local.markets.index, 0
    places = np.asarray(local.economy.market_positions)
    chosen = [indices for indices in (rows.first, rows.second) if indices is not None]
    for bucket in local.economy.buckets:
        T, J, I = bucket.size  # noqa: E741
        groups = np.tile(np.arange(J), (T, 1))
        indices = np.zeros((len(chosen), T, I), int)
        for t, one in enumerate(asked):
            k = places[t] - first_market
            if not 0 <= k < T:
                continue
            if one.groups is not None:
                groups[k] = -1 - np.arange(J)
                groups[k, : one.groups.size] = one.groups
            people = local.markets.agent_rows[t]
            for axis, (name, values) in enumerate(
                zip(("choice_indices", "second_choice_indices"), chosen, strict=False)
            ):
                check_indices(name, values[people], one.weights.shape[1 + axis], index.ids[t])
                indices[axis, k, : people.size] = values[people] + one.offsets[axis]
        first_market += T
        grouped = any(one.groups is not None for one in asked)
        first, second = (*indices, None, None)[:2]
        yield _Request(groups if grouped else None, first, second)


def _numerators(
    local: _Local, rows: Rows, asked: _Asked, t: int, parts: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Which respondents live in a market, and sums over their rows of weights times probabilities, or derivatives."""
    place, people = int(np.asarray(local.economy.market_positions)[t]), local.markets.agent_rows[t]
    for found in parts:
        if place < len(found):
            break
        place -= len(found)
    values = found[place, : people.size]
    numbers = asked.weights
    if rows.first is None:
        values = values[
            (slice(None), *(slice(o, o + n) for o, n in zip(asked.offsets, numbers.shape[1:], strict=True)))
        ]
        if numbers.ndim == 3:
            J = local.markets.index.rows[t].size
            codes = np.concatenate([[-1], np.arange(J) if asked.groups is None else asked.groups])
            values = values * (codes[asked.offsets[0] :, None] != codes[asked.offsets[1] :])
    else:
        chosen = [indices[people] for indices in (rows.first, rows.second) if indices is not None]
        numbers = numbers[(np.arange(people.size), *chosen)]
        if len(chosen) == 2:
            J = local.markets.index.rows[t].size
            codes = np.concatenate([[-1], np.arange(J) if asked.groups is None else asked.groups])
            first, second = (codes[c + o] for c, o in zip(chosen, asked.offsets, strict=True))
            values = values * (first != second)
    members, own = np.unique(rows.respondent[people], return_inverse=True)
    weights = rows.table.weights[people].reshape(-1, *(1,) * (numbers.ndim - 1))
    totals = np.zeros((members.size, *numbers.shape[1:]))
    np.add.at(totals, own.reshape(-1), weights * numbers * values)
    return members, totals


@filtered_program(effort=0)
def _delta_slopes(model: Model, layout: ParameterLayout, theta: Float[Any, " P"]) -> Float[Array, "N P"]:
    """Derivatives of mean utilities in theta, with shares held."""
    economy = model.economy.with_products(model.shares, model.characteristics.evaluate({})[1])
    limits, method = Iteration().limits, FixedPointMethod("return")

    def delta(theta: Array) -> Array:
        tastes = market_tastes(expand(layout, model.coefficients, theta), layout)
        return invert_economy(economy, tastes, model.delta, limits, method).delta

    slopes: Array = jax.jacfwd(delta)(jax.numpy.asarray(theta))
    return slopes


@filtered_program(effort=0)
def _along(
    given: tuple[Model, ParameterLayout, ParameterLayout],
    theta: Float[Any, " P"],
    slope: Float[Any, " N"],
    direction: Float[Any, " P"],
    surveys: Surveys,
    local: Economy,
    kept: Int[Any, " n"],
    asked: tuple[tuple[_Request, ...], bool],
) -> Any:
    """The sum of weights of the problem's agents, and probabilities of respondents' choices, with derivatives.

    These are along a direction of theta, in which mean utilities change by `slope`.
    """
    (model, layout, local_layout), (requests, second) = given, asked
    economy = model.economy.with_products(model.shares, model.characteristics.evaluate({})[1])

    def at(step: Array) -> tuple[Array, list[Array]]:
        coefficients = expand(layout, model.coefficients, theta + step * direction)
        delta = model.delta + step * slope
        sums = survey_sums(surveys, Parts((0,), ()), economy, market_tastes(coefficients, layout), delta)
        tastes, found = market_tastes(coefficients, local_layout), []

        def kernel(market: Bucket, delta: Array, request: _Request) -> Array:
            xp = namespace(delta)
            X2 = market.X2
            point = demand_point(tastes, market, delta, X2, xp.zeros_like(delta), xp.zeros_like(X2))
            choices = point.choices()
            diversion = micro.diversions(point, choices, request.groups) if second else None
            if request.first is None:
                return micro.cells(choices, diversion, point.nests)
            return micro.chosen(choices, diversion, point.nests, request.first, request.second)

        for bucket, part, request in zip(local.buckets, local.scatter(delta[kept]), requests, strict=True):
            found.append(map_markets(kernel, bucket, part, request, elements=cached_elements()))
        return sums[0][0], found

    return jax.jvp(at, (jax.numpy.zeros(()),), (jax.numpy.ones(()),))


def _check_integration(source: SurveySource, integration: Any) -> Integration:
    if not isinstance(integration, Integration):
        raise TypeError(f"integration must be None or an Integration, not {type(integration).__name__}.")
    if not source.layout.sigma_columns:
        raise ValueError("There is no unobserved heterogeneity over which to integrate: leave out integration.")
    return integration
