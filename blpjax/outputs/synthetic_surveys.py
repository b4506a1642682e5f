"""Surveys that are drawn from a model: respondents and their choices."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from blpjax.economy.buckets import Bucket
from blpjax.economy.surveys import Markets, choice_offsets
from blpjax.exceptions import DataError
from blpjax.inputs.micro import MicroDataset, MicroPart
from blpjax.inputs.named_surveys import SurveyWeights
from blpjax.inputs.records import as_objects
from blpjax.inputs.surveys import compute_values, compute_weights, dataset_markets
from blpjax.inputs.table_format import plain_value
from blpjax.kernels import micro
from blpjax.kernels.shares import Choices
from blpjax.model.model import Model
from blpjax.model.tastes import demand_point, market_tastes
from blpjax.objective.programs import on_host
from blpjax.outputs.scores import SurveySource

#: So many numbers of agents times choices are worked on at a time.
_TOGETHER = 2**22


class SampledParts(NamedTuple):
    """What micro parts of one dataset are in a sample of respondents.

    `values` (n, PM) are those of respondents, `population` (PM,) means in the population that these are drawn from.
    """

    values: np.ndarray
    population: np.ndarray


class SampledMarkets(NamedTuple):
    """Everybody in all markets, some of whom are asked: `shares` (N,) of products among them.

    `agents` and `choices` (n,) of respondents are rows of the table of agents, and zero for the outside good.
    """

    shares: np.ndarray
    agents: np.ndarray
    choices: np.ndarray


class _Respondents(NamedTuple):
    """Positions of markets (n,), and in them of agents and choices, (2, n), or (3, n) with second choices."""

    owner: np.ndarray
    indices: np.ndarray


def simulate_survey(source: SurveySource, dataset: MicroDataset, seed: int | None) -> np.recarray:
    """Draw respondents, see `MicroMethods.simulate_micro_data`."""
    markets = source.data.survey_markets(source.products, source.data.agents_in_economy, source.layout)
    found = _draw(source, markets, dataset, seed)
    return _records(markets, found.owner, found.indices)


def sample_parts(source: SurveySource, parts: Sequence[MicroPart], seed: int) -> SampledParts:
    """Draw respondents of one dataset, those of `simulate_survey`, and evaluate its micro parts for them.

    Raises
    ------
    DataError, RuntimeError, ValueError
        When functions fail or what they return cannot be used, naming dataset, part and market.
    """
    dataset = parts[0].dataset
    markets = source.data.survey_markets(source.products, source.data.agents_in_economy, source.layout)
    found, model = _draw(source, markets, dataset, seed), on_host(source.model)
    values, sums, total = np.zeros((found.owner.size, len(parts))), np.zeros(len(parts)), 0.0
    for t in map(int, dataset_markets(dataset, markets.index.ids)):
        here, first = found.owner == t, 0
        known: list[np.ndarray] = []
        for q in _probabilities(model, markets, dataset, t, None):
            if not known:
                shape = (len(markets.agent_rows[t]), *q.shape[1:])
                known = [compute_values(part, markets.at(t), shape) for part in parts]
            total += q.sum()
            for p, part in enumerate(known):
                # values of choices that cannot be made may be missing
                own = part[first : first + len(q)]
                sums[p] += (q * np.where(q > 0, own, 0.0)).sum()
            first += len(q)
        for p, part in enumerate(known):
            values[here, p] = part[tuple(found.indices[:, here])]
    return SampledParts(values, sums / total)


def sample_markets(
    source: SurveySource, asked: np.ndarray, sizes: np.ndarray, rng: np.random.Generator
) -> SampledMarkets:
    """Draw the choices of `sizes` (T,) people in each market, of whom `asked` (T,) say who they are."""
    markets = source.data.survey_markets(source.products, source.data.agents_in_economy, source.layout)
    model, everybody = on_host(source.model), MicroDataset("everybody", 1, SurveyWeights("any", None))
    shares = np.zeros(source.products.size)
    agents, choices = [], []
    for t, (n, N) in enumerate(zip(asked, sizes, strict=True)):
        q = np.concatenate(list(_probabilities(model, markets, everybody, t, None)))
        q = q / q.sum()
        person, choice = np.unravel_index(rng.choice(q.size, n, p=q.reshape(-1)), q.shape)
        agents.append(np.asarray(markets.agent_rows[t])[person])
        choices.append(choice)
        counts = rng.multinomial(N - n, q.sum(axis=0)) + np.bincount(choice, minlength=q.shape[1])
        shares[markets.index.rows[t]] = counts[1:] / N
    return SampledMarkets(shares, np.concatenate(agents), np.concatenate(choices))


def _draw(source: SurveySource, markets: Markets, dataset: MicroDataset, seed: int | None) -> _Respondents:
    """Respondents of a dataset.

    All agents and choices of all markets are laid end to end, with their probabilities. Only sums by agent are kept;
    probabilities of the agents who are drawn are computed again.
    """
    model, chosen = on_host(source.model), dataset_markets(dataset, markets.index.ids)
    totals = [
        np.concatenate(
            [q.reshape(len(q), -1).sum(axis=1) for q in _probabilities(model, markets, dataset, int(t), None)]
        )
        for t in chosen
    ]
    ends = np.cumsum(np.concatenate(totals))
    n = dataset.observations
    if n is None:
        raise ValueError(f"The micro dataset '{dataset.name}' has no number of observations, which are simulated.")
    draws = np.random.RandomState(seed).random_sample(n) * ends[-1]
    agents = np.minimum(np.searchsorted(ends, draws, side="right"), ends.size - 1)
    rest = draws - np.concatenate([[0.0], ends])[agents]
    firsts = np.cumsum([0, *(len(total) for total in totals)])
    owner = np.searchsorted(firsts, agents, side="right") - 1
    indices = np.zeros((3, n), int)
    for m, t in enumerate(chosen):
        here = np.flatnonzero(owner == m)
        if not here.size:
            continue
        people, place = np.unique(agents[here] - firsts[m], return_inverse=True)
        number = 0
        for q in _probabilities(model, markets, dataset, int(t), people):
            for k in range(len(q)):
                own = here[place.reshape(-1) == number]
                cumulated = np.cumsum(q[k].reshape(-1))
                cell = np.searchsorted(cumulated, rest[own], side="right")
                cell = np.minimum(cell, np.flatnonzero(q[k].reshape(-1))[-1])
                indices[0, own] = people[number]
                indices[1 : q.ndim, own] = np.unravel_index(cell, q.shape[1:])
                number += 1
    second = any(_second(markets, dataset, int(t)) for t in chosen[:1])
    return _Respondents(chosen[owner], indices[: 3 if second else 2])


def _second(markets: Markets, dataset: MicroDataset, t: int) -> bool:
    return compute_weights(dataset, markets.at(t)).ndim == 3


def _records(markets: Markets, owner: np.ndarray, indices: np.ndarray) -> np.recarray:
    """The structured array, in the smallest of PyBLP's types of integers."""
    sizes = [max(map(len, markets.agent_rows)), *[max(map(len, markets.index.rows))] * (len(indices) - 1)]
    names = ("agent_indices", "choice_indices", "second_choice_indices")
    ids = as_objects(markets.index.ids)
    fields = {"micro_ids": np.arange(owner.size).astype(object), "market_ids": ids[owner]}
    for name, values, size in zip(names, indices, sizes, strict=False):
        kind = (
            np.uint8 if size <= np.iinfo(np.uint8).max else np.uint32 if size <= np.iinfo(np.uint32).max else np.uint64
        )
        fields[name] = values.astype(kind)
    found = np.recarray(owner.size, dtype=[(name, values.dtype, (1,)) for name, values in fields.items()])
    for name, values in fields.items():
        found[name] = values[:, None]
    return found


def _probabilities(
    model: Model, markets: Markets, dataset: MicroDataset, t: int, people: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Probabilities (i, ...) of some agents of a market, by default all, to be drawn with each of their choices."""
    market = markets.at(t)
    market_id, agents = market.market_id, market.agents
    weights = compute_weights(dataset, market)
    J = len(market.products)
    offsets = choice_offsets(weights.shape, J)
    place = int(np.asarray(model.economy.market_positions)[t])
    for bucket in model.economy.buckets:
        if place < bucket.size[0]:
            break
        place -= bucket.size[0]
    rows = markets.index.rows[t]
    X2 = model.characteristics.evaluate({})[1][rows]
    groups = markets.groups(dataset, t)
    tastes = market_tastes(model.coefficients, model.layout)
    everybody = np.arange(len(agents)) if people is None else people
    step = max(1, _TOGETHER // int(np.prod(weights.shape[1:])))
    for first in range(0, everybody.size, step):
        some = everybody[first : first + step]
        alone = _cut(bucket, place, J, some)
        delta = model.delta[rows][None]
        point = demand_point(tastes, alone, delta, X2[None], np.zeros_like(delta), np.zeros_like(X2[None]))
        with np.errstate(all="ignore"):
            found: Choices = point.choices()
            diversion = None
            if weights.ndim == 3:
                diversion = micro.diversions(point, found, None if groups is None else groups[None])
            s = micro.cells(found, diversion, point.nests)[0]
        s = s[(slice(None), *(slice(offset, None) for offset in offsets))]
        if weights.ndim == 3:
            codes = np.concatenate([[-1], np.arange(J) if groups is None else groups])
            s = s * (codes[offsets[0] :, None] != codes[offsets[1] :])
        q = point.weights[0].reshape(-1, *(1,) * (weights.ndim - 1)) * weights[some] * s
        if (q < 0).any():
            raise DataError(
                f"Respondents of micro dataset '{dataset.name}' cannot be drawn in market {plain_value(market_id)!r}, "
                "because agents there have negative integration weights."
            )
        yield q


def _cut(bucket: Bucket, place: int, J: int, some: np.ndarray) -> Bucket:
    """One market with some of its agents and without padding."""
    demographics = bucket.demographics[place : place + 1, some]
    availability = bucket.availability[place : place + 1, :J]
    return dataclasses.replace(
        bucket,
        shares=bucket.shares[place : place + 1, :J],
        X2=bucket.X2[place : place + 1, :J],
        availability=availability if availability.shape[2] == 1 else availability[..., some],
        weights=bucket.weights[place : place + 1, some],
        nodes=bucket.nodes[place : place + 1, some],
        demographics=demographics[..., :J] if demographics.ndim == 4 else demographics,
        nests=None if bucket.nests is None else bucket.nests[place : place + 1, :J],
        groups=None if bucket.groups is None else bucket.groups[place : place + 1],
        parents=None if bucket.parents is None else bucket.parents[place : place + 1],
        outer=None if bucket.outer is None else bucket.outer[place : place + 1],
    )
