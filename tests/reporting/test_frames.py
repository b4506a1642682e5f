"""Tidy frames: which rows and columns, in which order, and which shapes are refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from blpjax.reporting import frames


def test_estimates_frame_follows_from_the_normal_distribution() -> None:
    frame = frames.estimates_frame(["a", "b", "c"], np.array([[1.96], [-2.0], [3.0]]), [1.0, 4.0, np.nan])
    assert list(frame) == ["parameter", "estimate", "se", "t", "p_value", "lower", "upper"]
    assert list(frame["parameter"]) == ["a", "b", "c"]
    np.testing.assert_allclose(frame["t"], [1.96, -0.5, np.nan])
    np.testing.assert_allclose(frame["p_value"], [0.0499958, 0.6170751, np.nan], rtol=1e-6)
    interval = np.array(scipy.stats.norm.interval(0.95, loc=-2, scale=4))
    np.testing.assert_allclose(frame.loc[1, ["lower", "upper"]].to_numpy(dtype=float), interval)
    assert frame.loc[2, ["t", "p_value", "lower", "upper"]].isna().all()


def test_zero_standard_errors_do_not_warn() -> None:
    frame = frames.estimates_frame(["a", "b"], [1.0, 0.0], [0.0, 0.0])
    np.testing.assert_array_equal(frame["t"], [np.inf, np.nan])


def test_estimates_frame_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="1 labels, 2 estimates and 2 standard errors"):
        frames.estimates_frame(["a"], [1.0, 2.0], [1.0, 2.0])


# Market b has two products, a three and c one; their rows are mixed.
MARKETS = np.array(["b", "a", "a", "c", "b", "a"])
PRODUCTS = np.array(["p1", "p2", "p3", "p1", "p4", "p1"])


def padded(width_by_market: Mapping[str, int]) -> np.ndarray:
    """Ten times the row plus the column, and NaN padding."""
    width = max(width_by_market.values())
    values = 10.0 * np.arange(MARKETS.size)[:, None] + np.arange(width)
    sizes = np.array([width_by_market[market] for market in MARKETS])
    return np.where(np.arange(width) < sizes[:, None], values, np.nan)


def rows_of(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(frame.itertuples(index=False, name=None))


def test_matrices_frame_pairs_products_of_a_market_in_row_order() -> None:
    matrices = padded({"a": 3, "b": 2, "c": 1})
    matrices[2, 1] = np.nan  # a result, not padding: stays
    frame = frames.matrices_frame(MARKETS[:, None], PRODUCTS[:, None], matrices, "elasticity")
    assert list(frame) == ["market_ids", "row_product", "column_product", "elasticity"]
    expected = [("b", "p1", "p1", 0.0), ("b", "p1", "p4", 1.0)]
    expected += [("a", "p2", other, 10.0 + k) for k, other in enumerate(["p2", "p3", "p1"])]
    assert rows_of(frame)[:5] == expected
    assert rows_of(frame)[8:] == [("c", "p1", "p1", 30.0), ("b", "p4", "p1", 40.0), ("b", "p4", "p4", 41.0)] + [
        ("a", "p1", other, 50.0 + k) for k, other in enumerate(["p2", "p3", "p1"])
    ]
    assert np.isnan(frame["elasticity"][6]) and frame["elasticity"].isna().sum() == 1
    assert list(frame.index) == list(range(14))


def test_positions_stand_in_for_missing_labels() -> None:
    frame = frames.matrices_frame(MARKETS, None, padded({"a": 3, "b": 2, "c": 1}), "elasticity")
    assert list(frame["row_product"][:5]) == [0, 0, 0, 0, 0]
    assert list(frame["column_product"][-3:]) == [0, 1, 2]
    assert list(frame["row_product"][-3:]) == [2, 2, 2]
    vector = frames.vector_frame(MARKETS, None, np.arange(6.0)[:, None], "share")
    assert rows_of(vector) == [("b", 0, 0.0), ("a", 0, 1.0), ("a", 1, 2.0), ("c", 0, 3.0), ("b", 1, 4.0), ("a", 2, 5.0)]


def test_matrices_of_one_market_and_integer_markets() -> None:
    frame = frames.matrices_frame([7, 7], ["x", "y"], [[1.0, 2.0], [3.0, 4.0]], "diversion")
    assert rows_of(frame) == [(7, "x", "x", 1.0), (7, "x", "y", 2.0), (7, "y", "x", 3.0), (7, "y", "y", 4.0)]


def test_vector_frame_keeps_the_order_of_the_table() -> None:
    frame = frames.vector_frame(MARKETS, PRODUCTS, np.arange(6.0), "share")
    assert list(frame) == ["market_ids", "product", "share"]
    assert rows_of(frame) == list(zip(MARKETS, PRODUCTS, np.arange(6.0), strict=True))


def test_probabilities_frame_pairs_products_with_agents_of_their_market() -> None:
    agents, agent_ids = np.array(["c", "a", "b", "a", "c", "c"]), np.array([9, 8, 7, 6, 5, 4])
    probabilities = padded({"a": 2, "b": 1, "c": 3})
    frame = frames.probabilities_frame(MARKETS, PRODUCTS, agents, agent_ids, probabilities)
    assert list(frame) == ["market_ids", "product", "agent", "probability"]
    assert rows_of(frame) == [
        ("b", "p1", 7, 0.0),
        ("a", "p2", 8, 10.0),
        ("a", "p2", 6, 11.0),
        ("a", "p3", 8, 20.0),
        ("a", "p3", 6, 21.0),
        ("c", "p1", 9, 30.0),
        ("c", "p1", 5, 31.0),
        ("c", "p1", 4, 32.0),
        ("b", "p4", 7, 40.0),
        ("a", "p1", 8, 50.0),
        ("a", "p1", 6, 51.0),
    ]


def test_agents_of_other_markets_are_left_out() -> None:
    frame = frames.probabilities_frame(["a"], None, ["b", "a", "b", "a", "b"], None, [[0.25, 0.5]])
    assert rows_of(frame) == [("a", 0, 0, 0.25), ("a", 0, 1, 0.5)]


def test_logit_probabilities_have_one_agent_per_market() -> None:
    frame = frames.probabilities_frame(MARKETS, PRODUCTS, None, None, np.arange(6.0)[:, None])
    assert list(frame["agent"]) == [0] * 6
    assert list(frame["probability"]) == list(range(6))


@pytest.mark.parametrize("shape", [(5, 3), (6, 2), (6,)])
def test_matrices_of_another_shape_are_refused(shape: Sequence[int]) -> None:
    with pytest.raises(
        ValueError, match=r"elasticity has shape .* there are 6 products and up to 3 columns in a market"
    ):
        frames.matrices_frame(MARKETS, PRODUCTS, np.zeros(shape), "elasticity")


def test_other_shapes_and_markets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share has shape \(5,\), but there are 6 products"):
        frames.vector_frame(MARKETS, PRODUCTS, np.zeros(5), "share")
    with pytest.raises(ValueError, match="There are 5 labels but 6 market IDs"):
        frames.vector_frame(MARKETS, PRODUCTS[:5], np.zeros(6), "share")
    with pytest.raises(ValueError, match="Market 'c' has products but no agent"):
        frames.probabilities_frame(MARKETS, PRODUCTS, ["a", "b"], None, np.zeros((6, 1)))
