"""What the model says of surveys: means of micro parts over respondents in all markets, and their covariances."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.buckets import Bucket, Economy
from blpjax.economy.mapping import cached_elements, map_markets
from blpjax.economy.surveys import Surveys
from blpjax.inputs.micro import MicroPart, distinct_datasets
from blpjax.kernels import micro
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.micro import Survey
from blpjax.machine.compilation import filtered_program
from blpjax.model.tastes import MarketTastes, demand_point


class Parts(NamedTuple):
    """Which parts there are (static): `sizes` are numbers of parts by dataset, `places` says where each part stands.

    Places count parts of the first dataset, then those of the second, and so on.
    """

    sizes: tuple[int, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, parts: Sequence[MicroPart]) -> "Parts":
        """Those of some parts."""
        by_dataset = [[p for p, part in enumerate(parts) if part.dataset == d] for d in distinct_datasets(parts)]
        order = [p for own in by_dataset for p in own]
        return cls(tuple(map(len, by_dataset)), tuple(order.index(p) for p in range(len(parts))))

    @property
    def datasets(self) -> list[int]:
        """The dataset of each part."""
        owner = [d for d, size in enumerate(self.sizes) for _ in range(size)]
        return [owner[place] for place in self.places]


def survey_sums(
    surveys: Surveys, parts: Parts, economy: Economy, tastes: MarketTastes, delta: Float[AnyArray, " N"]
) -> list[Float[AnyArray, " _"]]:
    """Sums over agents, choices and markets, for each dataset: of weights, then of weights times values of its parts.

    Differentiable in tastes and delta.
    """
    totals: list[Any] = [0.0] * len(parts.sizes)
    for dataset, found in _over_markets(micro.survey_sums, surveys, economy, tastes, delta):
        totals[dataset] += found
    return totals


def part_values(sums: Sequence[Float[AnyArray, " _"]], parts: Parts) -> Float[AnyArray, " PM"]:
    """Means of parts, from the sums of their datasets."""
    xp = namespace(*sums)
    return xp.concatenate([rows[1:] / rows[0] for rows in sums])[np.array(parts.places)]


def compute_part_values(
    surveys: Surveys, parts: Parts, economy: Economy, tastes: MarketTastes, delta: Float[AnyArray, " N"]
) -> Float[AnyArray, " PM"]:
    """Means of parts: by a program, or with NumPy where all arrays are on the host."""
    if not economy.on_host:
        return _compiled_values(surveys, parts, economy, tastes, delta)
    with np.errstate(all="ignore"):
        return part_values(survey_sums(surveys, parts, economy, tastes, delta), parts)


@filtered_program(effort=1)
def _compiled_values(
    surveys: Surveys, parts: Parts, economy: Economy, tastes: MarketTastes, delta: Float[AnyArray, " N"]
) -> Float[Array, " PM"]:
    return part_values(survey_sums(surveys, parts, economy, tastes, delta), parts)


def part_covariances(
    surveys: Surveys, parts: Parts, economy: Economy, tastes: MarketTastes, delta: Float[Array, " N"]
) -> Float[Array, "PM PM"]:
    """Covariances of parts' values for one respondent; those of parts of different surveys are zero."""
    sums = survey_sums(surveys, parts, economy, tastes, delta)
    totals: list[Any] = [0.0] * len(parts.sizes)

    def kernel(point: DemandPoint, survey: Survey) -> Array:
        rows = sums[survey.dataset]
        return micro.survey_products(point, survey, rows[1:] / rows[0])

    for dataset, found in _over_markets(kernel, surveys, economy, tastes, delta):
        totals[dataset] += found
    blocks = [total / rows[0] for total, rows in zip(totals, sums, strict=True)]
    places = np.array(parts.places)
    return jax.scipy.linalg.block_diag(*blocks)[places[:, None], places]


def _over_markets(
    kernel: Callable[[DemandPoint, Survey], AnyArray],
    surveys: Surveys,
    economy: Economy,
    tastes: MarketTastes,
    delta: AnyArray,
) -> list[tuple[int, AnyArray]]:
    """Results of a kernel, summed over the markets of a bucket, with the dataset of each survey."""
    results: list[tuple[int, AnyArray]] = []
    deltas = economy.scatter(delta)
    xp = np if economy.on_host else jnp

    def one(market: Bucket, delta: AnyArray, own: tuple[Survey, ...]) -> tuple[AnyArray, ...]:
        X2 = market.X2
        point = demand_point(tastes, market, delta, X2, xp.zeros_like(delta), xp.zeros_like(X2))
        return tuple(kernel(point, survey) for survey in own)

    for bucket, mean, local in zip(economy.buckets, deltas, surveys.buckets, strict=True):
        if not local.surveys:
            continue
        here: Any = (bucket, mean)
        if local.places is not None:
            here = jax.tree.map(lambda leaf, places=local.places: leaf[places], here)
        found = economy.collect(map_markets(one, *here, local.surveys, elements=cached_elements()))
        results += [(survey.dataset, sums.sum(axis=0)) for survey, sums in zip(local.surveys, found, strict=True)]
    return results
