"""Sizes on a coarse grid: arrays with a little padding find the programs that were compiled for others."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def coarse_size(size: int, steps: int = 2) -> int:
    """The size, at least 8, or the next one on a grid with so many steps, one or two, from each power of two on."""
    power = max(8, 1 << max(size - 1, 0).bit_length())
    return 3 * power // 4 if steps == 2 and power > 8 and size <= 3 * power // 4 else power


def pad_axes(values: Any, shape: Sequence[int], fill: int | float | np.bool_ = 0) -> np.ndarray:
    """A new array of that shape, and any further axes, which begins with the values and ends with `fill`."""
    padded = np.full((*shape, *values.shape[len(shape) :]), fill, values.dtype)
    padded[tuple(map(slice, values.shape))] = values
    return padded
