"""Sizes on a coarse grid: arrays with a little padding find the programs that were compiled for others."""

from collections.abc import Sequence
from typing import Any

import numpy as np

#: Numbers of moments of small problems have this size at least: optimal instruments are fewer than those before.
FEWEST_MOMENTS = 16


def coarse_size(size: int, steps: int = 2, least: int = 8) -> int:
    """The size, but the `least`, or the next one on a grid with one or two steps from each power of two on."""
    power = max(least, 1 << max(size - 1, 0).bit_length())
    return 3 * power // 4 if steps == 2 and power > least and size <= 3 * power // 4 else power


def pad_axes(values: Any, shape: Sequence[int], fill: int | float | np.bool_ = 0) -> np.ndarray:
    """A new array of that shape, and any further axes, which begins with the values and ends with `fill`."""
    padded = np.full((*shape, *values.shape[len(shape) :]), fill, values.dtype)
    padded[tuple(map(slice, values.shape))] = values
    return padded
