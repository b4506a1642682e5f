"""Types and shapes of arguments are checked while tests run."""

from typing import Any

import jaxtyping
import numpy as np
import pytest

from blpjax.kernels.arrays import solve_on_host
from blpjax.values import read_flag


def test_shapes_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="right"):
        solve_on_host(np.eye(3), np.ones(2))


def test_types_are_checked_where_there_are_no_shapes() -> None:
    name: Any = 1
    with pytest.raises(jaxtyping.TypeCheckError, match="read_flag"):
        read_flag(name, True)


@pytest.mark.usefixtures("unchecked_types")
def test_checks_can_be_turned_off() -> None:
    name: Any = 1
    assert read_flag(name, True)
