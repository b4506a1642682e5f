"""Residuals on fixed effects inside compiled programs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Projection(eqx.Module):
    """The linear map from values (N,) or (N, K) to their residuals on fixed effects, exact up to rounding.

    The dimension with most levels is absorbed by demeaning, the others by least squares on demeaned indicators, whose
    cross products have been inverted (Frisch, Waugh and Lovell). Being a fixed linear map, it costs nothing to
    differentiate.

    Attributes
    ----------
    first : (N,) levels of the first dimension, and `counts` their numbers of rows; None without fixed effects.
    others : (N, E - 1) levels of the other dimensions, counted on from one dimension to the next.
    inverse : (G, G) pseudo-inverse of the cross products of their G demeaned indicators.
    weights : (N,) how often each row counts; None where all count once.
    """

    first: Int[Array, " N"] | None
    counts: Float[Array, " levels"]
    others: Int[Array, "N E"]
    inverse: Float[Array, "G G"]
    weights: Float[Array, " N"] | None = None

    def __call__(self, values: Float[Array, "N *K"]) -> Float[Array, "N *K"]:
        """Residuals of each column."""
        if self.first is None:
            return values
        demeaned = self._demean(self.first, values)
        if self.others.shape[1] == 0:
            return demeaned
        size = self.inverse.shape[0]
        weighted = self._weigh(demeaned)
        sums = sum(jax.ops.segment_sum(weighted, self.others[:, e], size) for e in range(self.others.shape[1]))
        effects = self.inverse @ sums
        fitted = sum(effects[self.others[:, e]] for e in range(self.others.shape[1]))
        return demeaned - self._demean(self.first, jnp.asarray(fitted))

    def _demean(self, levels: Array, values: Array) -> Array:
        totals = jax.ops.segment_sum(self._weigh(values), levels, self.counts.size)
        counts = self.counts.reshape(-1, *[1] * (values.ndim - 1))
        return values - (totals / counts)[levels]

    def _weigh(self, values: Array) -> Array:
        return values if self.weights is None else values * self.weights.reshape(-1, *[1] * (values.ndim - 1))


def build_projection(ids: np.ndarray, weights: np.ndarray | None = None) -> Projection:
    """Projection off the fixed effects with IDs (N, E), integers from zero in every column. E may be zero.

    With `weights` (N,) rows count so many times. Rows of levels that do not count at all are not changed.
    """
    known = None if weights is None else jax.device_put(np.asarray(weights, float))
    sizes = ids.max(axis=0, initial=-1) + 1
    order = np.argsort(-sizes, kind="stable")
    if order.size == 0:
        return Projection(None, jnp.zeros(0), jnp.zeros((len(ids), 0), int), jnp.zeros((0, 0)), known)
    first, others = ids[:, order[0]], ids[:, order[1:]]
    counted = np.ones(len(ids)) if weights is None else np.asarray(weights, float)
    counts = np.bincount(first, counted, minlength=sizes[order[0]])
    counts = np.where(counts > 0, counts, 1.0)
    inverse = np.zeros((0, 0))
    if others.shape[1] > 0:
        offsets = np.concatenate([[0], np.cumsum(sizes[order[1:]])]).astype(int)
        others = others + offsets[:-1]
        inverse = _inverted_cross_products(first, counts, others, counted, int(offsets[-1]))
    first, counts, others, inverse = map(jax.device_put, (first, counts, others, inverse))
    return Projection(first, counts, others, inverse, known)


def _inverted_cross_products(
    first: np.ndarray, counts: np.ndarray, others: np.ndarray, counted: np.ndarray, size: int
) -> np.ndarray:
    """Pseudo-inverse of the cross products of `size` indicators, demeaned by levels of the first dimension."""
    from scipy import sparse  # a slow import that one dimension does not need

    N = len(first)
    rows = np.repeat(np.arange(N), others.shape[1])
    D = sparse.csr_matrix((np.ones(rows.size), (rows, others.reshape(-1))), (N, size))
    totals = sparse.csr_matrix((counted, (first, np.arange(N))), (counts.size, N)) @ D
    cross = (D.T @ sparse.diags(counted) @ D - totals.T @ sparse.diags(1 / counts) @ totals).toarray()
    inverse: np.ndarray = np.linalg.pinv(cross, rcond=1e-12, hermitian=True)
    return inverse
