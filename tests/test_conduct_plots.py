"""The figure of tests of conduct shows the statistics of tables, and tells strong instruments from weak ones."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from matplotlib import pyplot
from matplotlib.colors import to_rgba

from blpjax import plots
from blpjax.inference.conduct_test_results import ConductTest


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    pyplot.close("all")


def test(sets: int = 2) -> ConductTest:
    """Three models, the last pair of which has no test."""
    rows = [
        {"model": "a", "against": "b", "TRV": -3.0, "worst_size": 0.1, "best_power": np.nan},
        {"model": "a", "against": "c", "TRV": 2.5, "worst_size": np.nan, "best_power": 0.95},
        {"model": "b", "against": "c", "TRV": np.nan, "worst_size": np.nan, "best_power": np.nan},
    ]
    tables = [
        pd.DataFrame(rows).assign(instruments=f"set {k}", TRV=lambda t, k=k: t["TRV"] / 10**k) for k in range(sets)
    ]
    none = pd.DataFrame()
    return ConductTest(pd.concat(tables, ignore_index=True), none, none, none, (), "robust", True)


test.__test__ = False  # type: ignore[attr-defined]


def test_points_are_statistics_and_filled_where_instruments_are_strong() -> None:
    ax = plots.plot_conduct_test(test())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a / b", "a / c", "b / c"]
    first, second = ax.collections[:2]
    np.testing.assert_allclose(first.get_offsets()[:, 0].filled(np.nan), [-3.0, 2.5, np.nan])
    np.testing.assert_allclose(second.get_offsets()[:, 0].filled(np.nan), [-0.3, 0.25, np.nan])
    white, blue, orange = map(to_rgba, ("white", "tab:blue", "tab:orange"))
    # rejected with a good size, rejected with a bad one; later not rejected without and with power
    assert [tuple(face) for face in first.get_facecolors()[:2]] == [blue, white]
    assert [tuple(face) for face in second.get_facecolors()[:2]] == [white, orange]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["set 0", "set 1"]


def test_one_set_needs_no_legend_and_axes_may_be_given() -> None:
    _, ax = pyplot.subplots()
    assert plots.plot_conduct_test(test(1), ax) is ax and ax.get_legend() is None
    np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 1], [0, 1, 2])
