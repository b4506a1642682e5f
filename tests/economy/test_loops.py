"""Loops of all markets: their order, what stands for none, and the worst of several draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.economy.loops import Loops, gather_loops, no_loops, worst_loops
from blpjax.exceptions import Status
from blpjax.kernels.fixed_point import FixedPoint
from blpjax.model.model import Prices
from tests.economy.test_buckets import PRODUCTS, economy_of
from tests.support.economies import tables


@pytest.mark.usefixtures("several_buckets_here")
def test_loops_stand_in_the_sorted_order_of_markets() -> None:
    economy = economy_of(*tables(1, PRODUCTS, [6] * len(PRODUCTS)))
    assert len(economy.buckets) > 1
    found = []
    for bucket in economy.buckets:
        size = bucket.present.sum(axis=1)  # says which market a loop is of
        found.append(jax.vmap(lambda n: FixedPoint(jnp.zeros(1), n % 2, n, 2 * n, 0.5 * n))(size))
    loops = gather_loops(economy, found)
    assert loops.status.tolist() == [count % 2 for count in PRODUCTS]
    assert loops.iterations.tolist() == PRODUCTS
    assert loops.evaluations.tolist() == [2 * count for count in PRODUCTS]
    assert loops.residuals.tolist() == [0.5 * count for count in PRODUCTS]


def test_no_loops_converged_without_an_evaluation() -> None:
    loops = no_loops(2, 3)
    assert (loops.status == Status.CONVERGED).all()
    for values in loops.fields().values():
        assert values.shape == (2, 3) and not values.any()
    assert loops.residuals.dtype == float


def test_results_of_loops_are_loops() -> None:
    prices = Prices(prices=jnp.ones(4), **no_loops(2).fields())
    assert list(prices.fields()) == ["status", "iterations", "evaluations", "residuals"]
    assert prices.status.tolist() == Loops(**prices.fields()).status.tolist() == [0, 0]


@pytest.mark.parametrize("axis", [0, 1])
def test_the_worst_loop_of_each_market_comes_as_a_whole(axis: int) -> None:
    status = np.array([[0, 1, 3], [2, 0, 3]])  # two draws of three markets; the first of equals counts
    numbers = np.arange(6).reshape(2, 3)
    loops = Loops(*(values if axis == 0 else values.T for values in (status, numbers, 10 * numbers, 0.1 * numbers)))
    worst = worst_loops(loops, axis)
    assert worst.status.tolist() == [2, 1, 3]
    assert worst.iterations.tolist() == [3, 1, 2] and worst.evaluations.tolist() == [30, 10, 20]
    assert worst.residuals.tolist() == (0.1 * np.array([3, 1, 2])).tolist()
