"""What surveys ask about in all markets, as factors or in full, padded into the buckets of an economy."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Int

from blpjax.economy.buckets import Economy, MarketIndex
from blpjax.inputs.micro import MicroDataset, MicroPart, distinct_datasets
from blpjax.inputs.named_surveys import Factors, SurveyMarket
from blpjax.inputs.survey_expressions import SurveyTables
from blpjax.inputs.surveys import (
    check_groups,
    compute_values,
    compute_weights,
    dataset_markets,
    eliminated_groups,
    factorise_values,
    factorise_weights,
    market_agents,
    weigh_values,
)
from blpjax.kernels.arrays import AnyArray
from blpjax.kernels.micro import Survey

#: What a survey asks about has at most so many factors in a market; it is kept in full otherwise.
MOST_FACTORS = 16

#: Factors leave out what is smaller than this, next to the largest number of a row.
_PRECISION = 1e-13

#: Numbers of rows times choices that are factorised at a time.
_TOGETHER = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class Markets:
    """Products and agents of all markets, as the user's functions get them.

    products, agents : structured arrays of N and I rows. index, agent_rows : rows of each market in both.
    product_ids, nests : (N,) or (N, n), and (N, levels) codes of nests, or None.
    tables : all columns of both tables, for surveys by column. product_places, agent_places : rows of these for each
        product and agent, None where they are the same.
    """

    products: np.recarray
    agents: np.recarray
    index: MarketIndex
    agent_rows: Sequence[np.ndarray]
    product_ids: np.ndarray | None
    nests: np.ndarray | None
    tables: SurveyTables = dataclasses.field(default_factory=lambda: SurveyTables({}, {}))
    product_places: np.ndarray | None = None
    agent_places: np.ndarray | None = None

    def at(self, t: int) -> SurveyMarket:
        """The market at a position in the sorted order of IDs."""
        rows, people = self.index.rows[t], self.agent_rows[t]
        return SurveyMarket(
            market_id=self.index.ids[t],
            products=self.products[rows],
            agents=market_agents(self.agents, people, rows.size),
            tables=self.tables,
            product_rows=rows if self.product_places is None else self.product_places[rows],
            agent_rows=people if self.agent_places is None else self.agent_places[people],
        )

    def groups(self, dataset: MicroDataset, t: int) -> np.ndarray | None:
        """What is eliminated with each product of a market, see `eliminated_groups`, checked."""
        rows = self.index.rows[t]
        groups = eliminated_groups(dataset, self.product_ids, rows, self.at(t))
        check_groups(dataset, self.index.ids[t], groups, None if self.nests is None else self.nests[rows])
        return groups


class BucketSurveys(eqx.Module):
    """Surveys of one bucket, in those of its markets that they are about: `places` (m,), None where that is all."""

    places: Int[AnyArray, " m"] | None
    surveys: tuple[Survey, ...]


class Surveys(eqx.Module):
    """What surveys ask about, by bucket of an economy."""

    buckets: tuple[BucketSurveys, ...]


class _Found(NamedTuple):
    """What a survey asks about in one market: factors ``agents (rows, K, I)`` and ``choices (K, C[, C])``, or all."""

    agents: np.ndarray | None
    choices: np.ndarray | None
    dense: np.ndarray | None
    groups: np.ndarray | None

    @property
    def second(self) -> bool:
        """Whether there are second choices."""
        whole = self.dense if self.choices is None else self.choices
        assert whole is not None
        return whole.ndim == (3 if self.choices is not None else 4)


def build_surveys(
    markets: Markets, economy: Economy, parts: Sequence[MicroPart], datasets: Sequence[MicroDataset] | None = None
) -> Surveys:
    """Call the functions of datasets and parts once for each market, check what they return, and pad it.

    Rows of the survey of a dataset are its weights, and weights times values of its parts, in their order. Datasets are
    those of the parts by default.

    Raises
    ------
    DataError, ValueError, RuntimeError
        When functions fail or what they return cannot be used, naming dataset, part and market.
    """
    datasets = distinct_datasets(parts) if datasets is None else datasets
    found: dict[tuple[int, int], _Found] = {}
    for d, dataset in enumerate(datasets):
        own = [part for part in parts if part.dataset == dataset]
        for t in dataset_markets(dataset, markets.index.ids):
            found[d, int(t)] = _ask(markets, dataset, own, int(t))
    places = np.asarray(economy.market_positions)[: len(markets.index.ids)]
    buckets, first = [], 0
    for bucket in economy.buckets:
        T, J, I = bucket.size  # noqa: E741
        here = {int(places[t]) - first: t for t in range(len(places)) if first <= places[t] < first + T}
        asked = sorted(place for place, t in here.items() if any((d, t) in found for d in range(len(datasets))))
        # markets that are spread over devices stay where they are
        kept = list(range(T)) if bucket.placement is not None else asked
        surveys = []
        for d in range(len(datasets)):
            for second in (False, True):
                known = {
                    k: found[d, here[place]]
                    for k, place in enumerate(kept)
                    if place in here and (d, here[place]) in found and found[d, here[place]].second == second
                }
                if known:
                    surveys.append(_pad(known, (len(kept), J, I), d, second))
        everywhere = len(kept) == T
        chosen = BucketSurveys(None if everywhere else np.array(kept, int), tuple(surveys))
        put = jax.device_put if bucket.placement is None else bucket.placement.spread
        buckets.append(jax.tree.map(put, chosen))
        first += T
    return Surveys(tuple(buckets))


def stack_surveys(several: Sequence[Surveys]) -> Surveys:
    """Surveys of the same datasets in economies of one shape, with a first axis of all arrays.

    Where numbers of factors differ there are as many as the most, and where some are in full all are.
    """
    buckets = []
    for locals_ in zip(*(surveys.buckets for surveys in several), strict=True):
        stacked = [_stack(same) for same in zip(*(local.surveys for local in locals_), strict=True)]
        places = locals_[0].places
        if places is not None:
            places = np.broadcast_to(np.asarray(places), (len(several), len(places)))
        buckets.append(BucketSurveys(places, tuple(stacked)))
    return Surveys(tuple(buckets))


def _stack(several: Sequence[Survey]) -> Survey:
    agents = choices = dense = groups = None
    if any(one.dense is not None for one in several):
        dense = np.stack([_expanded(one) for one in several])
    else:
        K = max(one.agents.shape[2] for one in several)  # type: ignore[union-attr]
        agents = np.stack([_widened(one.agents, 2, K) for one in several])
        choices = np.stack([_widened(one.choices, 1, K) for one in several])
    if several[0].groups is not None:
        groups = np.stack([np.asarray(one.groups) for one in several])
    return Survey(agents, choices, dense, groups, several[0].dataset, several[0].second)


def _widened(values: Any, axis: int, size: int) -> np.ndarray:
    missing = [(0, size - n if k == axis else 0) for k, n in enumerate(values.shape)]
    return np.pad(np.asarray(values), missing)


def _expanded(survey: Survey) -> np.ndarray:
    if survey.dense is not None:
        return np.asarray(survey.dense)
    assert survey.agents is not None and survey.choices is not None
    return np.einsum("trki,tk...->tri...", np.asarray(survey.agents), np.asarray(survey.choices))


def dependent_rows(surveys: Surveys, dataset: int, tolerances: tuple[float, float]) -> list[int]:
    """Parts of a dataset, counted from zero, whose values are linear combinations of those of parts before them.

    `tolerances` are absolute and relative ones of what such a combination leaves.
    """
    R: Any = None
    sizes: Any = 0.0
    for survey in (survey for local in surveys.buckets for survey in local.surveys if survey.dataset == dataset):
        # factors of choices are orthonormal
        numbers = np.asarray(survey.agents if survey.dense is None else survey.dense)[:, 1:]
        for market in numbers.reshape(*numbers.shape[:2], -1):
            sizes = sizes + (market**2).sum(axis=1)
            R = np.linalg.qr(market.T if R is None else np.concatenate([R, market.T]), mode="r")
    if R is None:
        return []
    left = np.zeros(R.shape[1])
    left[: min(R.shape)] = np.abs(np.diag(R))
    return np.flatnonzero(left <= tolerances[0] + tolerances[1] * np.sqrt(sizes)).tolist()


def choice_offsets(shape: tuple[int, ...], J: int) -> tuple[int, ...]:
    """Which of 1 + J places the first one of each axis of choices is: zero where the outside good is among them."""
    return tuple(1 + J - size for size in shape[1:])


def _ask(markets: Markets, dataset: MicroDataset, parts: Sequence[MicroPart], t: int) -> _Found:
    """What a dataset asks about in one market."""
    market = markets.at(t)
    I, J = len(market.agents), len(market.products)  # noqa: E741
    known = factorise_weights(dataset, market)
    weights = compute_weights(dataset, market) if known is None else None
    shape = (I, *known.choices.shape[1:]) if known is not None else weights.shape  # type: ignore[union-attr]
    groups, offsets = markets.groups(dataset, t), choice_offsets(shape, J)
    keep = np.ones(shape[1:])
    if len(shape) == 3:
        codes = np.arange(J) if groups is None else groups
        both = np.ones((1 + J, 1 + J))
        both[1:, 1:] = codes[:, None] != codes
        both[0, 0] = 0.0
        keep = both[offsets[0] :, offsets[1] :]
    factors = _Factors(1 + len(parts), shape)
    step = max(1, _TOGETHER // max(1, int(np.prod(shape[1:]))))
    for r in range(1 + len(parts)):
        if known is not None:
            whole = known if r == 0 else factorise_values(parts[r - 1], market, known)
            if whole is not None:
                factors.add_products(r, whole, keep)
                continue
        values = None if r == 0 else compute_values(parts[r - 1], market, shape)
        for first in range(0, I, step):
            some = slice(first, first + step)
            if weights is not None:
                numbers = weights[some]
            else:
                assert known is not None
                numbers = np.multiply.outer(known.agents[0, some], known.choices[0])
            if values is not None:
                numbers = weigh_values(parts[r - 1], market, numbers, values[some], first)
            factors.add(r, some, numbers * keep)
        del values  # before the next ones are computed
    return factors.expand(J, offsets, groups)


class _Factors:
    """Numbers of rows, agents and choices as factors ``D_ric = sum_k a_rki b_kc`` with orthonormal b."""

    def __init__(self, rows: int, shape: tuple[int, ...]) -> None:
        self.shape = (rows, *shape)
        self.size = int(np.prod(shape[1:]))
        self.b = np.zeros((0, self.size))
        self.a = np.zeros((rows, shape[0], 0))
        self.dense: np.ndarray | None = None
        self.scale = np.zeros(rows)

    def add(self, r: int, some: slice, numbers: np.ndarray) -> None:
        """Take in numbers of some agents in a row."""
        flat = numbers.reshape(len(numbers), self.size)
        if self.dense is not None:
            self.dense[r, some] = flat
            return
        self.scale[r] = max(self.scale[r], _largest(flat))
        a = flat @ self.b.T
        rest = a @ self.b
        np.subtract(flat, rest, out=rest)
        while _largest(rest) > _PRECISION * self.scale[r]:
            if len(self.b) == min(MOST_FACTORS, self.size):
                self._expand_all(r, some, flat)
                return
            self._add_basis(rest[np.abs(rest).max(axis=1).argmax()])
            new = self.b[-1]
            rest -= (rest @ new)[:, None] * new
        self._widen()
        self.a[r, some] = a if a.shape[1] == len(self.b) else flat @ self.b.T

    def add_products(self, r: int, products: Factors, keep: np.ndarray) -> None:
        """Take in a row of all agents that is a sum of products, with what is not to be kept set to zero."""
        b = np.where(keep == 0, 0.0, products.choices).reshape(-1, self.size)
        if self.dense is None:
            for row in b:
                while True:
                    rest = row - (row @ self.b.T) @ self.b
                    if np.linalg.norm(rest) <= _PRECISION * np.linalg.norm(row):
                        break
                    if len(self.b) == min(MOST_FACTORS, self.size):
                        self._expand_all(r, slice(0, 0), np.zeros((0, self.size)))
                        break
                    self._add_basis(rest)
                if self.dense is not None:
                    break
        if self.dense is not None:
            self.dense[r] = products.agents.T @ b
            return
        self._widen()
        self.a[r] = products.agents.T @ (b @ self.b.T)

    def _add_basis(self, new: np.ndarray) -> None:
        new = new / np.linalg.norm(new)
        new -= (new @ self.b.T) @ self.b
        new /= np.linalg.norm(new)
        self.b = np.concatenate([self.b, new[None]])

    def _widen(self) -> None:
        missing = len(self.b) - self.a.shape[2]
        if missing:
            self.a = np.concatenate([self.a, np.zeros((*self.a.shape[:2], missing))], axis=2)

    def _expand_all(self, r: int, some: slice, flat: np.ndarray) -> None:
        self._widen()
        self.dense = np.zeros((self.shape[0], self.shape[1], self.size))
        for row in range(r + 1):
            self.dense[row] = self.a[row] @ self.b
        self.dense[r, some] = flat

    def expand(self, J: int, offsets: tuple[int, ...], groups: np.ndarray | None) -> _Found:
        """With all places of choices, those that weights do not have being zero."""
        missing = [(offset, 0) for offset in offsets]
        if self.dense is not None:
            whole = np.pad(self.dense.reshape(self.shape), [(0, 0), (0, 0), *missing])
            return _Found(None, None, whole, groups)
        choices = np.pad(self.b.reshape(-1, *self.shape[2:]), [(0, 0), *missing])
        return _Found(self.a.swapaxes(1, 2), choices, None, groups)


def _largest(numbers: np.ndarray) -> float:
    """The largest absolute number, without an array of absolute numbers."""
    return max(float(numbers.max(initial=0.0)), -float(numbers.min(initial=0.0)))


def _pad(found: dict[int, _Found], size: tuple[int, int, int], dataset: int, second: bool) -> Survey:
    """The survey of a dataset in a bucket's markets (m, J, I); zero in markets that it is not about."""
    T, J, I = size  # noqa: E741
    axes = (1 + J,) * (2 if second else 1)
    some = next(iter(found.values()))
    rows = len(some.agents if some.dense is None else some.dense)  # type: ignore[arg-type]
    agents = choices = dense = groups = None
    if any(one.dense is not None for one in found.values()):
        dense = np.zeros((T, rows, I, *axes))
        for k, one in found.items():
            whole = one.dense
            if whole is None:
                assert one.agents is not None and one.choices is not None
                whole = np.einsum("rki,k...->ri...", one.agents, one.choices)
            dense[k][tuple(slice(n) for n in whole.shape)] = whole
    else:
        K = max(1, *(len(one.choices) for one in found.values()))  # type: ignore[arg-type]
        agents, choices = np.zeros((T, rows, K, I)), np.zeros((T, K, *axes))
        for k, one in found.items():
            assert one.agents is not None and one.choices is not None
            agents[k][tuple(slice(n) for n in one.agents.shape)] = one.agents
            choices[k][tuple(slice(n) for n in one.choices.shape)] = one.choices
    if any(one.groups is not None for one in found.values()):
        groups = np.tile(-1 - np.arange(J), (T, 1))
        for k, one in found.items():
            if one.groups is not None:
                groups[k, : one.groups.size] = one.groups
    return Survey(agents, choices, dense, groups, dataset, second)
