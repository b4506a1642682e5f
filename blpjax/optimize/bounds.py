"""Bounds of theta: which elements they hold, and gradients without these."""

import numpy as np

from blpjax.model.parameters import Bounds


def project_gradient(theta: np.ndarray, gradient: np.ndarray, bounds: Bounds) -> np.ndarray:
    """The gradient with zeros where a bound keeps theta from following its negative."""
    projected = np.where(theta <= bounds.lower, np.minimum(gradient, 0.0), gradient)
    return np.where(theta >= bounds.upper, np.maximum(projected, 0.0), projected)
