"""Covariances of estimates by likelihood, with exogeneity restrictions or without; on the host.

With the Hessian H of the log likelihoods in (theta, delta), the restrictions K, and the variance ``v = xi'xi / N`` of
structural errors (Grieco, Murry, Pinkse and Sagl 2023)

    A = (H + K K')^{-1},    M = H + v K K' K K',    Var(theta, delta) = A M A = A + (v / sigma2 - 1) A K K' A,

because ``K'K = I / sigma2``, where K has rows of zeros for theta. Linear parameters are ``Xi delta``, so that

    Var(beta) = v Xi Xi' + Xi Var(delta) Xi',    Cov(theta, beta) = Cov(theta, delta) Xi':

terms with ``K'X^`` are zero. Where shares are constraints they are taken for known, and theta has the variance that the
likelihood of the survey gives it, ``Var(delta) = D Var(theta) D'``.

Nothing here is N x N: A consists of solutions of markets and of few columns.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blpjax.economy.buckets import Economy


class Blocks(NamedTuple):
    """Systems of markets (T, J, J), by bucket, as long as padding has the identity."""

    economy: Economy
    matrices: tuple[np.ndarray, ...]

    @staticmethod
    def from_rows(economy: Economy, rows: np.ndarray) -> "Blocks":
        """Systems of an economy from their `rows`."""
        matrices = []
        for part, bucket in zip(economy.unstack(rows), economy.buckets, strict=True):
            absent = ~np.asarray(bucket.present)
            matrices.append(np.asarray(part) + absent[:, :, None] * np.eye(absent.shape[1]))
        return Blocks(economy, tuple(matrices))

    def rows(self) -> np.ndarray:
        """Rows of products (N, widest), however markets are padded: NaN beyond a market's products."""
        return np.asarray(self.economy.stack(self.matrices))

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Solutions (N, m)."""
        parts = self.economy.scatter(right)
        return np.asarray(
            self.economy.gather([np.linalg.solve(a, b) for a, b in zip(self.matrices, parts, strict=True)])
        )

    def inverse_diagonal(self) -> np.ndarray:
        """Diagonal (N,) of the inverse."""
        parts = [np.linalg.inv(a).diagonal(axis1=1, axis2=2) for a in self.matrices]
        return np.asarray(self.economy.gather(parts))


class JointCovariances(NamedTuple):
    """Covariances of theta (P,) and of mean utilities (N,), in parts.

    Attributes
    ----------
    theta : (P, P) ``A_theta,theta``, and `by_theta` (N, P) ``D = d delta / d theta``.
    blocks : systems of markets, or None where mean utilities follow from theta alone.
    restrictions, moved : K (N, L) and what is left of ``Var = A + factor A K K' A``: A K for theta (P, L) and delta.
    factor : ``v / sigma2 - 1``.
    """

    theta: np.ndarray
    by_theta: np.ndarray
    blocks: Blocks | None
    inner: np.ndarray
    factor: float
    moved: tuple[np.ndarray, np.ndarray]

    def products(self, left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """``left' Var right`` for directions in theta (P, m) and in delta (N, m)."""
        found = self._along(*left).T @ self.theta @ self._along(*right)
        found = found + self.factor * self._restricted(*left).T @ self._restricted(*right)
        if self.blocks is None:
            return np.asarray(found)
        return np.asarray(found + left[1].T @ _solve(self.blocks, self.inner, right[1]))

    def delta_variances(self) -> np.ndarray:
        """Variances (N,) of mean utilities."""
        found = ((self.by_theta @ self.theta) * self.by_theta).sum(axis=1)
        found = found + self.factor * (self.moved[1] ** 2).sum(axis=1)
        if self.blocks is None:
            return np.asarray(found)
        found = found + self.blocks.inverse_diagonal()
        if self.inner.shape[1]:
            U = self.blocks.solve(self.inner)
            small = np.eye(self.inner.shape[1]) + self.inner.T @ U
            found = found - (U * np.linalg.solve(small, U.T).T).sum(axis=1)
        return np.asarray(found)

    def _along(self, theta: np.ndarray, delta: np.ndarray) -> np.ndarray:
        return theta + self.by_theta.T @ delta

    def _restricted(self, theta: np.ndarray, delta: np.ndarray) -> np.ndarray:
        return self.moved[0].T @ theta + self.moved[1].T @ delta


def joint_covariances(
    blocks: Blocks,
    cross: np.ndarray,
    theta_hessian: np.ndarray,
    restrictions: np.ndarray,
    variance: float,
) -> JointCovariances:
    """Covariances where mean utilities maximise likelihoods; see above.

    Parameters
    ----------
    blocks : second derivatives of the log likelihoods in delta. cross (N, P), theta_hessian (P, P) : the others.
    restrictions : K (N, L), without columns where there are none.
    variance : ``v / sigma2``.
    """
    D = -_solve(blocks, restrictions, cross)
    C = _inverse(theta_hessian + cross.T @ D)
    by_delta = _solve(blocks, restrictions, restrictions)
    along = D.T @ restrictions
    moved = (C @ along, by_delta + D @ C @ along)
    return JointCovariances(C, D, blocks, restrictions, variance - 1.0, moved)


def constrained_covariances(hessian: np.ndarray, by_theta: np.ndarray) -> JointCovariances:
    """Covariances where mean utilities follow from theta by the shares, which are taken for known."""
    nothing = np.zeros((len(by_theta), 0))
    return JointCovariances(_inverse(hessian), by_theta, None, nothing, 0.0, (np.zeros((len(hessian), 0)), nothing))


def parameter_covariances(joint: JointCovariances, coefficient_map: np.ndarray, variance: float) -> np.ndarray:
    """Covariances (P + K, P + K) of theta and of linear parameters ``Xi delta``, with `coefficient_map` Xi (K, N).

    `variance` is that of structural errors.
    """
    P, N = len(joint.theta), coefficient_map.shape[1]
    K = len(coefficient_map)
    directions = (
        np.concatenate([np.eye(P), np.zeros((P, K))], axis=1),
        np.concatenate([np.zeros((N, P)), coefficient_map.T], axis=1),
    )
    found = joint.products(directions, directions)
    found[P:, P:] += variance * coefficient_map @ coefficient_map.T
    return np.asarray(found + found.T) / 2


def padded(matrices: Sequence[np.ndarray], present: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Systems (T, J, J) with the identity in place of padding."""
    return tuple(
        np.where(here[:, :, None] & here[:, None, :], block, np.eye(block.shape[1])[None])
        for block, here in zip(matrices, present, strict=True)
    )


def _solve(blocks: Blocks, K: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve with blocks plus ``K K'``."""
    if right.shape[1] == 0:
        return right
    found = blocks.solve(right)
    if K.shape[1] == 0:
        return found
    U = blocks.solve(K)
    return np.asarray(found - U @ np.linalg.solve(np.eye(K.shape[1]) + K.T @ U, K.T @ found))


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a Hessian, NaN where it is singular."""
    try:
        return np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return np.full_like(matrix, np.nan)
