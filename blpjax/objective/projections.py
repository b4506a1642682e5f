"""Orthonormal bases of what instruments and controls span: statistics of projections do not depend on which columns."""

import numpy as np

#: What is left of a column, next to the column, where others explain all of it: rounding, or iterative absorption.
NEGLIGIBLE = 1e-7

#: Relative size of a singular value below which columns of unit length are collinear.
COLLINEAR = 1e-8


def orthonormal_basis(columns: np.ndarray, controls: np.ndarray | None = None) -> np.ndarray:
    """Orthonormal columns (N, K) that span residuals of `columns` on `controls`, where K is their rank.

    Parameters
    ----------
    columns : (N, M) numbers. Their units do not matter.
    controls : orthonormal columns (N, C), or None for no controls.
    """
    size = np.linalg.norm(columns, axis=0)
    columns = columns[:, size > 0] / size[size > 0]
    if controls is not None:
        columns = residuals_on(controls, columns)
    size = np.linalg.norm(columns, axis=0)
    columns = columns[:, size > NEGLIGIBLE] / size[size > NEGLIGIBLE]
    if not columns.size:
        return np.zeros((len(columns), 0))
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    basis: np.ndarray = left[:, singular > COLLINEAR * singular[0]]
    return basis if controls is None else np.linalg.qr(residuals_on(controls, basis))[0]


def residuals_on(controls: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Residuals of values (N, K) on orthonormal controls (N, C)."""
    for _ in range(2):  # twice, so that they are orthogonal up to rounding
        values = values - controls @ (controls.T @ values)
    return values
