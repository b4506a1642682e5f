"""Sums of products of contributions within clusters, of one kind or of several that cross each other.

With several kinds of clusters, such as markets and products, contributions are correlated within each. Products within
clusters of one kind, less those within intersections of two, and so on, count every correlated pair once (Cameron,
Gelbach and Miller 2011, Robust inference with multiway clustering, Journal of Business & Economic Statistics 29).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from blpjax.kernels.arrays import namespace, on_host

#: Numbers of clusters: one number, or with several kinds one for each grouping of `groupings`.
Counts = int | tuple[int, ...]


class Clusters(NamedTuple):
    """Clusters of N observations.

    `ids` are (N,) integers from zero, or with several kinds (N, G) of them, for each of `groupings`. `counts` say how
    many there are.
    """

    ids: Int[np.ndarray, "N *G"]
    counts: Counts

    @property
    def kinds(self) -> int:
        """How many kinds of clusters there are."""
        return count_kinds(self.counts)


def groupings(kinds: int) -> list[tuple[int, ...]]:
    """Which kinds of clusters intersect in each grouping: first each kind alone, last all of them."""
    return [subset for size in range(1, kinds + 1) for subset in combinations(range(kinds), size)]


def count_kinds(counts: Counts) -> int:
    """How many kinds of clusters there are."""
    return 1 if isinstance(counts, int | np.integer) else (len(counts) + 1).bit_length() - 1


def counts_of_kinds(counts: Counts) -> tuple[int, ...]:
    """Numbers of clusters of each kind."""
    return (int(counts),) if isinstance(counts, int | np.integer) else counts[: count_kinds(counts)]


def number_clusters(ids: np.ndarray) -> Clusters:
    """Number clusters from IDs (N,) or (N, kinds) that can be sorted."""
    columns = ids.reshape(len(ids), -1)
    found = [np.unique(column, return_inverse=True) for column in columns.T]
    codes = np.column_stack([inverse.reshape(-1) for _, inverse in found])
    if codes.shape[1] == 1:
        return Clusters(codes[:, 0], found[0][0].size)
    numbered = [
        np.unique(codes[:, list(subset)], axis=0, return_inverse=True)[1].reshape(-1)
        for subset in groupings(codes.shape[1])
    ]
    return Clusters(np.column_stack(numbered), tuple(int(column.max()) + 1 for column in numbered))


def clustered_products(
    g: Float[Any, "N M"], ids: Int[Any, " N"], count: int, weights: Float[Any, " N"] | None
) -> Float[Any, "M M"]:
    """Sum over clusters of products (M, M) of what contributions g add up to within them, NaN for IDs out of range.

    Parameters
    ----------
    ids, count : numbers of clusters from zero, and how many there are.
    weights : (N,) how often each observation counts, the same within a cluster: one that counts twice is two.
    """
    if on_host(g):
        return _clustered_on_host(g, np.asarray(ids), count, weights)
    sums = jax.ops.segment_sum(g, ids, num_segments=count)
    # segment_sum drops observations whose ID is out of range. NaN, rather than covariances without them.
    valid = jnp.all((ids >= 0) & (ids < count))
    if weights is None:
        return jnp.where(valid, sums.T @ sums, jnp.nan)
    drawn = jnp.maximum(jax.ops.segment_max(weights, ids, num_segments=count), 0.0)
    return jnp.where(valid, (sums * drawn[:, None]).T @ sums, jnp.nan)


def crossed_products(
    g: Float[Any, "N M"],
    ids: Int[Any, "N G"],
    counts: Sequence[int],
    weights: Float[Any, " N"] | None,
    drawn: Float[Any, "N kinds"] | None,
) -> Float[Any, "M M"]:
    """The same for several kinds of clusters, by inclusion and exclusion. There may be negative eigenvalues.

    Parameters
    ----------
    ids, counts : of each of `groupings`.
    weights : how often each observation counts, the same within a cluster of any kind.
    drawn : instead of weights, how often each observation's cluster of each kind counts; the observation counts as
        often as the product of these.
    """
    kinds, total = count_kinds(tuple(counts)), namespace(g, ids).zeros((g.shape[1], g.shape[1]))
    for k, subset in enumerate(groupings(kinds)):
        part, often = g, weights
        if drawn is not None:
            others = [kind for kind in range(kinds) if kind not in subset]
            part, often = g * drawn[:, others].prod(axis=1)[:, None], drawn[:, list(subset)].prod(axis=1)
        total = total + (1 if len(subset) % 2 else -1) * clustered_products(part, ids[:, k], counts[k], often)
    return total


def sums_within(g: np.ndarray, clusters: Clusters) -> list[tuple[int, np.ndarray]]:
    """What contributions g (N, M) add up to within the clusters of each grouping, with the sign of their products."""
    counts = clusters.counts if isinstance(clusters.counts, tuple) else (clusters.counts,)
    ids = clusters.ids.reshape(len(g), -1)
    return [
        (1 if len(subset) % 2 else -1, _sums_on_host(g, ids[:, k], counts[k]))
        for k, subset in enumerate(groupings(clusters.kinds))
    ]


def _sums_on_host(g: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """What contributions g (N, M) add up to within clusters (count, M)."""
    return np.stack([np.bincount(ids, column, count) for column in g.T], axis=1)


def _clustered_on_host(g: np.ndarray, ids: np.ndarray, count: int, weights: np.ndarray | None) -> np.ndarray:
    """The same with NumPy."""
    if ((ids < 0) | (ids >= count)).any():
        return np.full((g.shape[1], g.shape[1]), np.nan)
    sums = _sums_on_host(g, ids, count)
    if weights is None:
        products: np.ndarray = sums.T @ sums
        return products
    drawn = np.zeros(count)
    np.maximum.at(drawn, ids, weights)
    weighted: np.ndarray = (sums * drawn[:, None]).T @ sums
    return weighted
