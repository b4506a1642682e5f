"""Residuals on fixed effects inside compiled programs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
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
    """

    first: Int[Array, " N"] | None
    counts: Float[Array, " levels"]
    others: Int[Array, "N E"]
    inverse: Float[Array, "G G"]

    def __call__(self, values: Float[Array, "N *K"]) -> Float[Array, "N *K"]:
        """Residuals of each column."""
        if self.first is None:
            return values
        demeaned = self._demean(self.first, values)
        if self.others.shape[1] == 0:
            return demeaned
        size = self.inverse.shape[0]
        sums = sum(jax.ops.segment_sum(demeaned, self.others[:, e], size) for e in range(self.others.shape[1]))
        effects = self.inverse @ sums
        fitted = sum(effects[self.others[:, e]] for e in range(self.others.shape[1]))
        return demeaned - self._demean(self.first, jnp.asarray(fitted))

    def _demean(self, levels: Array, values: Array) -> Array:
        totals = jax.ops.segment_sum(values, levels, self.counts.size)
        counts = self.counts.reshape(-1, *[1] * (values.ndim - 1))
        return values - (totals / counts)[levels]


def build_projection(ids: np.ndarray) -> Projection:
    """Projection off the fixed effects with IDs (N, E), integers from zero in every column. E may be zero."""
    sizes = ids.max(axis=0, initial=-1) + 1
    order = np.argsort(-sizes, kind="stable")
    if order.size == 0:
        return Projection(None, jnp.zeros(0), jnp.zeros((len(ids), 0), int), jnp.zeros((0, 0)))
    first, others = ids[:, order[0]], ids[:, order[1:]]
    counts = np.bincount(first, minlength=sizes[order[0]]).astype(float)
    offsets = np.concatenate([[0], np.cumsum(sizes[order[1:]])]).astype(int)
    others = others + offsets[:-1]
    rows = np.repeat(np.arange(len(ids)), others.shape[1])
    ones = np.ones(rows.size)
    D = scipy.sparse.csr_matrix((ones, (rows, others.reshape(-1))), (len(ids), offsets[-1]))
    totals = scipy.sparse.csr_matrix((np.ones(len(ids)), (first, np.arange(len(ids)))), (counts.size, len(ids))) @ D
    cross = (D.T @ D - totals.T @ scipy.sparse.diags(1 / np.maximum(counts, 1.0)) @ totals).toarray()
    inverse = np.linalg.pinv(cross, rcond=1e-12, hermitian=True)
    return Projection(*map(jax.device_put, (first, np.maximum(counts, 1.0), others, inverse)))
