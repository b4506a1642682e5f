"""Respondents of a survey and everybody else, by bucket of an economy, as compiled programs read them."""

from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from blpjax.economy.buckets import Economy, MarketIndex
from blpjax.exceptions import DataError
from blpjax.inputs.likelihood import SurveyRows
from blpjax.inputs.table_format import plain_value
from blpjax.kernels.arrays import AnyArray

#: A group has at least so many places for respondents, and so many products times nodes times respondents, or more.
SMALLEST_GROUP, GROUP_PAIRS = 8, 2**15


class Respondents(eqx.Module):
    """Respondents of the markets of one bucket, in G groups of c, each of which lives in one market.

    Groups are what is computed at a time, so that memory does not grow with the survey, and all that is padded.

    Attributes
    ----------
    market : the place of each group's market in the bucket.
    chosen, present : places of what respondents have chosen, zero for the outside good, and whether there is one.
    demographics, availability : as in a `Bucket`, availability being None where it is that of the market.
    nodes, weights : of unobserved tastes, with one row where they are the same for all.
    """

    market: Int[AnyArray, " G"]
    chosen: Int[AnyArray, "G c"]
    present: Float[AnyArray, "G c"]
    demographics: Float[AnyArray, "G c D"] | Float[AnyArray, "G c D J"]
    availability: Float[AnyArray, "G J c"] | None
    nodes: Float[AnyArray, "G #c R k"]
    weights: Float[AnyArray, "G #c R"]


class Others(eqx.Module):
    """Everybody else in the markets of one bucket: `counts` (T, 1 + J) of choices, the outside good first.

    `shares` are counts divided by their sums, one for padding, which has counts of zero.
    """

    counts: Float[AnyArray, "T C"]
    shares: Float[AnyArray, "T C"]


def build_others(
    economy: Economy, products: MarketIndex, shares: np.ndarray, sizes: np.ndarray, rows: SurveyRows | None
) -> tuple[Others, ...]:
    """Who is left in each market (T,) of `sizes` people when respondents are taken away.

    Raises
    ------
    DataError
        When there are more respondents who chose something than people, naming market and product.
    """
    found = []
    for t, (own, N, people) in enumerate(zip(products.rows, sizes, _by_market(products, rows), strict=True)):
        asked = (
            np.zeros(1 + own.size, int) if rows is None else np.bincount(rows.places[people], minlength=1 + own.size)
        )
        s = np.r_[1.0 - shares[own].sum(), shares[own]]
        left = N * s - asked
        short = np.flatnonzero(left <= 0)
        if short.size:
            j = int(short[0])
            what = "the outside good" if j == 0 else f"product {j} (row {own[j - 1]} of product_data)"
            raise DataError(
                f"micro_data: {asked[j]} respondents in market {plain_value(products.ids[t])!r} chose {what}, but by "
                f"its share only {N * s[j]:.6g} of the {N:.6g} people there did. Check market_sizes and shares."
            )
        found.append(left)
    places_of, first, parts = np.asarray(economy.market_positions)[: len(found)], 0, []
    for bucket in economy.buckets:
        T, J, _ = bucket.size
        counts, rest = np.zeros((T, 1 + J)), np.ones((T, 1 + J))
        for t, left in enumerate(found):
            if first <= places_of[t] < first + T:
                counts[places_of[t] - first, : left.size] = left
                rest[places_of[t] - first, : left.size] = left / left.sum()
        parts.append(jax.device_put(Others(counts, rest)))
        first += T
    return tuple(parts)


def build_respondents(economy: Economy, products: MarketIndex, rows: SurveyRows | None) -> tuple[Respondents, ...]:
    """Put respondents into groups, in the buckets of their markets; without any, groups are empty."""
    places_of, first, parts = np.asarray(economy.market_positions)[: len(products.ids)], 0, []
    people = _by_market(products, rows)
    for bucket in economy.buckets:
        T, J, _ = bucket.size
        here = [t for t in range(len(products.ids)) if first <= places_of[t] < first + T]
        R = 1 if rows is None else rows.weights.shape[1]
        most = max((people[t].size for t in here), default=0)
        size = max(1, min(most, max(SMALLEST_GROUP, GROUP_PAIRS // (J * R))))
        market: list[int] = []
        members: list[np.ndarray] = []
        for t in here:
            own = people[t]
            groups = np.array_split(own, -(-own.size // size)) if own.size else []
            market += [int(places_of[t]) - first] * len(groups)
            members += groups
        parts.append(jax.device_put(_group(rows, market, members, size, bucket.demographics.shape[2:], J)))
        first += T
    return tuple(parts)


def _by_market(products: MarketIndex, rows: SurveyRows | None) -> list[np.ndarray]:
    """Rows of the respondents of each market."""
    codes = np.zeros(0, int) if rows is None else np.searchsorted(products.ids, rows.market_ids)
    ends = np.cumsum(np.bincount(codes, minlength=len(products.ids)))
    return np.split(np.argsort(codes, kind="stable"), ends[:-1])


def _group(
    rows: SurveyRows | None,
    market: Sequence[int],
    members: Sequence[np.ndarray],
    size: int,
    demographics: tuple[int, ...],
    J: int,
) -> Respondents:
    """Groups of at most so many respondents; where there is none, one group of nobody in the first market."""
    G = max(1, len(market))
    index, present = np.zeros((G, size), int), np.zeros((G, size))
    for g, own in enumerate(members):
        index[g, : own.size], present[g, : own.size] = own, 1.0
        index[g, own.size :] = own[0]
    where = np.array(market or [0], int)
    if rows is None or not members:
        k = 0 if rows is None else rows.nodes.shape[2]
        R = 1 if rows is None else rows.nodes.shape[1]
        one = 1 if rows is None or len(rows.nodes) == 1 else size
        available = None if rows is None or rows.availability is None else np.ones((G, J, size))
        return Respondents(
            where,
            np.zeros((G, size), int),
            present,
            np.zeros((G, size, *demographics)),
            available,
            np.zeros((G, one, R, k)),
            np.ones((G, one, R)) / R,
        )
    values = rows.demographics[..., :J] if rows.demographics.ndim == 3 else rows.demographics
    common = len(rows.nodes) == 1
    return Respondents(
        where,
        rows.places[index],
        present,
        values[index],
        None if rows.availability is None else rows.availability[index][..., :J].swapaxes(1, 2),
        np.repeat(rows.nodes[None], G, axis=0) if common else rows.nodes[index],
        np.repeat(rows.weights[None], G, axis=0) if common else rows.weights[index],
    )
