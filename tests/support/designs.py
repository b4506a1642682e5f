"""Which designs of a test run each time, where a test asks the same of many of them."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(designs: Iterable[Any], fast: Collection[str]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: those with `fast` names run by default, the others are marked slow.

    Designs are names, or a mapping of names to values.
    """
    named = designs if isinstance(designs, dict) else {design: design for design in designs}
    names = [str(name) for name in named]
    unknown = set(fast) - set(names)
    assert not unknown, unknown
    return [
        pytest.param(value, id=name, marks=() if name in fast else pytest.mark.slow)
        for name, value in zip(names, named.values(), strict=True)
    ]
