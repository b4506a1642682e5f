"""Plain values of arguments and options, checked: flags, integers, seeds. A wrong type is never taken for a value."""

import numbers

import numpy as np


def read_flag(name: str, value: object) -> bool:
    """A flag, or `TypeError` for anything that is merely true or false in Python's sense, such as text."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, not {value!r}.")
    return bool(value)


def check_integer(name: str, value: object, minimum: int) -> int:
    """An integer as a plain `int`; `TypeError` for other types, booleans included, and `ValueError` below `minimum`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, not {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}.")
    return int(value)


def read_seed(name: str, value: object) -> int | None:
    """A seed of `numpy.random.RandomState`, from 0 to 2**32 - 1, or None; else `TypeError` or `ValueError`."""
    if value is None:
        return None
    seed = check_integer(name, value, minimum=0)
    if seed >= 2**32:
        raise ValueError(f"{name} must be below 2**32, not {seed}.")
    return seed
