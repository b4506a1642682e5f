"""Figures show the numbers of the compute methods, with the right labels, and refuse what they cannot draw."""

import functools
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.container import BarContainer

import blpjax
from blpjax import plots
from blpjax.studies.results import MonteCarloResults
from tests.support import estimated, joint
from tests.support.designs import mostly_slow
from tests.tolerances import CENTRAL_DIFFERENCE, LINEAR_ALGEBRA, ROUNDING

BETA = [None, -2.0, None, None]
MARKETS = 20
N = 142


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    pyplot.close("all")


@functools.cache
def solved(supply: bool = False, **changes: Any) -> blpjax.ProblemResults:
    """One-step estimates of an economy with firms 0, 1 and 2."""
    products, agents = joint.tables(markets=changes.pop("markets", MARKETS))
    model = joint.Model(X3="1 + w + x" if supply else None)
    problem = model.build(blpjax, products, agents)
    given: dict[str, Any] = {"method": "1s"} | ({"beta": BETA} if supply else {})
    with joint.quiet():
        return problem.solve(joint.SIGMA, joint.PI, **given | changes)


@functools.cache
def nevo() -> blpjax.ProblemResults:
    """Plain logit estimates of the cereals, which have no supply side; IDs of firms are there."""
    products, _ = blpjax.data.load_nevo()
    with joint.quiet():
        return blpjax.Problem(blpjax.Formulation("0 + prices", absorb="C(product_ids)"), products).solve()


def tick_labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_figures_of_other_modules_are_here_too() -> None:
    """The reference has what `__all__` names."""
    assert plots.__all__ == sorted(name for name in vars(plots) if name.startswith("plot_"))


# --- heatmaps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", mostly_slow(["elasticities", "diversion_ratios", "passthrough"], ["elasticities"]))
def test_heatmaps_show_one_market(quantity: str) -> None:
    results = solved()
    ax = getattr(plots, f"plot_{quantity}")(results, "m002")
    matrix = getattr(results, f"compute_{quantity}")(market_id="m002")
    shown = ax.images[0].get_array()
    np.testing.assert_array_equal(shown.data, matrix)
    np.testing.assert_array_equal(shown.mask, np.eye(len(matrix), dtype=bool))
    products = joint.tables(markets=MARKETS)[0]
    assert (
        tick_labels(ax.xaxis) == tick_labels(ax.yaxis) == products.product_ids[products.market_ids == "m002"].tolist()
    )
    assert [text.get_text() for text in ax.texts] == [f"{value:.3g}" for value in matrix.ravel()]
    assert "m002" in ax.get_title()


def test_heatmaps_of_some_products_have_given_labels() -> None:
    _, ax = pyplot.subplots()
    results = solved()
    assert plots.plot_elasticities(results, "m000", "x", [3, 1], ["third", "first"], annotate=False, ax=ax) is ax
    np.testing.assert_array_equal(
        ax.images[0].get_array().data, results.compute_elasticities("x", "m000")[np.ix_([3, 1], [3, 1])]
    )
    assert tick_labels(ax.yaxis) == ["third", "first"] and not ax.texts


def test_diagonals_have_a_scale_of_their_own_where_there_is_no_room_for_numbers() -> None:
    results = nevo()
    for name, label in (("elasticities", "own elasticity"), ("diversion_ratios", "to the outside good")):
        ax = getattr(plots, f"plot_{name}")(results, "C01Q1")
        assert not ax.texts
        shown = ax.images[1].get_array()
        own = np.diag(getattr(results, f"compute_{name}")(market_id="C01Q1"))
        np.testing.assert_array_equal(shown.compressed(), own)
        low, high = ax.images[1].get_clim()
        assert (low, high) == ((own.min(), 0) if name == "elasticities" else (0, own.max()))
        assert label in [axes.get_ylabel() for axes in ax.figure.axes]


def test_products_without_ids_are_numbered() -> None:
    products, agents = joint.tables(markets=2)
    problem = joint.Model(X2=None, X3=None, demographics=None).build(blpjax, products.drop(columns="product_ids"), None)
    with joint.quiet():
        results = problem.solve(method="1s")
    assert tick_labels(plots.plot_diversion_ratios(results, "m001").yaxis) == [str(j) for j in range(7)]


def test_unknown_market() -> None:
    with pytest.raises(ValueError, match="There is no market 'm9'. Markets are 'm000', "):
        plots.plot_diversion_ratios(solved(), "m9")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["a"]}, "labels must name 6 products, not 1."),
        ({"products": [0, 6]}, "products must be positions between 0 and 5 in market 'm002'."),
        ({"products": []}, "products must be positions"),
    ],
)
def test_bad_products_of_heatmaps(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.plot_elasticities(solved(), "m002", **arguments)


# --- prices and markups ---------------------------------------------------------------------------------------------


def medians(ax: Axes) -> list[float]:
    """Medians of horizontal boxes, from below."""
    # after two whiskers and two caps of each box; the last line of all is zero
    return [float(line.get_xdata()[0]) for line in ax.lines[4:-1:5]]


def test_price_changes_by_firm() -> None:
    results = solved()
    products = joint.tables(markets=MARKETS)[0]
    changed = products.prices * (1 + products.firm_ids.map({0: 0.03, 1: 0.01, 2: 0.02}))
    ax = plots.plot_price_changes(results, changed, labels={1: "one"}, highlight=[1, 2])
    assert tick_labels(ax.yaxis) == ["one", "2", "0"]  # by median
    ROUNDING.check(medians(ax), [1.0, 2.0, 3.0])
    faces = [tuple(patch.get_facecolor()) for patch in ax.patches]
    assert faces[0] == faces[1] != faces[2]


def test_price_changes_from_other_prices() -> None:
    products = joint.tables(markets=MARKETS)[0]
    ax = plots.plot_price_changes(
        solved(), 2 * products.prices, prices=4 * products.prices, firm_ids=products.market_ids
    )
    ROUNDING.check(medians(ax), [-50.0] * MARKETS)


def test_markups() -> None:
    results = solved()
    markups = results.compute_markups()
    whole, by_firm = plots.plot_markups(results), plots.plot_markups(results, by_firm=True, labels={2: "two"})
    assert sum(patch.get_height() for patch in whole.patches) == markups.size
    legend = [text.get_text() for text in by_firm.get_legend().get_texts()]
    assert set(legend) == {"0", "1", "two", f"median {np.median(markups):.3f}"}
    given = plots.plot_markups(results, np.full(markups.size, 0.25), bins=4)
    ROUNDING.check(given.lines[0].get_xdata(), [0.25, 0.25])


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (
            "price_changes",
            {"changed_prices": [1.0]},
            f"changed_prices must hold {N} numbers, one for each product, not 1.",
        ),
        ("price_changes", {"changed_prices": ["a"]}, f"changed_prices must hold {N} numbers"),
        ("price_changes", {"changed_prices": np.ones(N), "firm_ids": [1]}, f"firm_ids must hold {N} IDs"),
        ("price_changes", {"changed_prices": np.ones(N), "highlight": [7]}, "highlight has 7, which is not the ID"),
        ("price_changes", {"changed_prices": np.ones(N), "labels": {7: "a"}}, "labels has 7, which is not the ID"),
        ("markups", {"markups": [1.0]}, f"markups must hold {N} numbers, one for each product, not 1."),
        ("markups", {"by_firm": True, "labels": {7: "a"}}, "labels has 7"),
    ],
)
def test_bad_numbers_and_firms(function: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(plots, f"plot_{function}")(solved(), **arguments)


def test_markets_without_equilibrium_are_not_drawn_as_if_nothing_were_missing() -> None:
    changed = np.ones(N)
    changed[[5, 7]] = np.nan
    with pytest.raises(ValueError, match="changed_prices must be finite, but 2 of them are not: row 5 is nan."):
        plots.plot_price_changes(solved(), changed)


def test_firms_are_needed() -> None:
    products, agents = joint.tables(markets=2)
    problem = joint.Model(X2=None, X3=None, demographics=None).build(blpjax, products.drop(columns="firm_ids"), None)
    with joint.quiet():
        results = problem.solve(method="1s")
    with pytest.raises(ValueError, match="firm_ids must be given, because there is no column 'firm_ids'"):
        plots.plot_price_changes(results, products.prices)


# --- counterfactuals ------------------------------------------------------------------------------------------------


@functools.cache
def outcome(standard_errors: bool = False, **changes: Any) -> blpjax.Counterfactual:
    return estimated.solved("logit").counterfactual(firm_ids={2: 1}, standard_errors=standard_errors, **changes)


def test_price_changes_of_counterfactuals_are_those_of_results() -> None:
    found = outcome()
    ax = plots.plot_price_changes(found, highlight=[1])
    same = plots.plot_price_changes(estimated.solved("logit"), found.after.prices)
    assert tick_labels(ax.yaxis) == tick_labels(same.yaxis)
    ROUNDING.check(medians(ax), medians(same))
    table = found.products
    for by, column in (("product", "product"), ("market", "market_ids")):
        change = 100 * (table["prices_after"] / table["prices_before"] - 1)
        expected = change.groupby(table[column]).median().sort_values()
        ax = plots.plot_price_changes(found, by=by)
        ROUNDING.check(medians(ax), expected)
        assert ax.get_ylabel() == by and set(tick_labels(ax.yaxis)) == {str(one) for one in expected.index}
    again = plots.plot_price_changes(estimated.solved("logit"), found.after.prices, by="market")
    ROUNDING.check(medians(again), medians(ax))


@pytest.mark.slow
def test_price_changes_with_standard_errors_have_intervals() -> None:
    found = outcome(True)
    ax = plots.plot_price_changes(found, labels={0: "none"}, highlight=[2])
    table = found.products
    means = (table["prices_after"] / table["prices_before"]).groupby(table["firm_before"]).mean().sub(1).mul(100)
    ordered = means.sort_values()
    assert tick_labels(ax.yaxis) == [{0: "none"}.get(firm, str(firm)) for firm in ordered.index]
    points = [float(bars.lines[0].get_xdata()[0]) for bars in ax.containers]
    ROUNDING.check(points, ordered)
    one = table[table["firm_before"] == 2].index.to_numpy()
    expected = found.delta_method(lambda before, after: (after.prices[one] / before.prices[one]).mean())
    place = list(ordered.index).index(2)
    (interval,) = ax.containers[place].lines[2][0].get_segments()
    LINEAR_ALGEBRA.check(interval[1, 0] - interval[0, 0], 100 * float(expected.upper - expected.lower))
    colors = [bars.lines[0].get_color() for bars in ax.containers]
    assert colors[place] == "tab:orange" and len(set(colors)) == 2


def test_dropped_products_have_no_change_of_price() -> None:
    products = estimated.CASES["logit"].tables[0]
    found = estimated.solved("logit").counterfactual(drop=(products.firm_ids == 0).to_numpy())
    assert set(tick_labels(plots.plot_price_changes(found).yaxis)) == {"1", "2"}


def heights(ax: Axes) -> list[list[float]]:
    bars = [container for container in ax.containers if isinstance(container, BarContainer)]
    return [[bar.get_height() for bar in container] for container in bars]


def test_welfare() -> None:
    merger, taxed = outcome(), outcome(taxes=blpjax.Taxes(0.1))
    rows = ["consumer_surplus", "profits", "total"]
    ax = plots.plot_welfare(merger)
    ROUNDING.check(heights(ax)[0], merger.summary().loc[rows, "change"])
    assert tick_labels(ax.xaxis) == ["consumer surplus", "profits", "total"] and ax.get_legend() is None
    weights = [1.0, 2.0, 3.0, 4.0]
    ax = plots.plot_welfare({"merger": merger, "tax": taxed}, weights)
    for shown, found in zip(heights(ax), (merger, taxed), strict=True):
        ROUNDING.check(shown, found.summary(weights).loc[[*rows[:2], "revenue", "total"], "change"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["merger", "tax"]


def test_welfare_has_intervals_with_standard_errors() -> None:
    found = outcome(True)
    ax = plots.plot_welfare(found)
    segments = np.array(ax.collections[0].get_segments())
    errors = found.summary().loc[["consumer_surplus", "profits", "total"], "change_se"]
    assert (errors > 0).all()
    ROUNDING.check(segments[:, 1, 1] - segments[:, 0, 1], 2 * 1.96 * errors)


def test_what_cannot_be_drawn_of_counterfactuals_is_named() -> None:
    found = outcome()
    for arguments, message in (
        ({"changed_prices": [1.0]}, "must not be given with a counterfactual"),
        ({"firm_ids": [1]}, "firm_ids must hold"),
        ({"firm_ids": [1], "by": "market"}, "firm_ids must not be given with by='market'"),
        ({"by": "nest"}, r"by must be one of \['firm', 'product', 'market'\], not 'nest'."),
        ({"by": "product", "highlight": ["x"]}, "highlight has 'x', which is not the ID of a product"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.plot_price_changes(found, **arguments)
    with pytest.raises(ValueError, match="changed_prices must be given"):
        plots.plot_price_changes(estimated.solved("logit"))
    with pytest.raises(ValueError, match="at least one by name"):
        plots.plot_welfare({})
    with pytest.warns(blpjax.exceptions.ConvergenceWarning, match="in 4 of 4 markets"):
        failed = estimated.solved("logit").counterfactual(
            firm_ids={2: 1}, iteration=blpjax.Iteration("simple", {"max_evaluations": 1})
        )
    for draw in (plots.plot_welfare, plots.plot_price_changes):
        with pytest.raises(ValueError, match="No equilibrium was found in 4 markets, such as 'm000'"):
            draw(failed)


# --- the objective --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("supply", [pytest.param(True, marks=pytest.mark.slow), False])
def test_profiles_are_lowest_at_the_estimates(supply: bool) -> None:
    results = solved(supply)
    ax = plots.plot_objective_profile(results, points=5)
    curves = [line for line in ax.lines if len(line.get_xdata()) == 5]
    assert [line.get_label() for line in curves] == results.theta_labels
    for line in curves:
        height = np.asarray(line.get_ydata())
        ROUNDING.check(line.get_xdata(), [-2, -1, 0, 1, 2])
        CENTRAL_DIFFERENCE.check(height[2], results.objective)
        assert (height >= height[2]).all()


@pytest.mark.slow
def test_profile_of_one_element_has_its_own_axis() -> None:
    results = solved()
    ax = plots.plot_objective_profile(results, "x x x", spans=0.1, points=3)
    p = results.theta_labels.index("x x x")
    ROUNDING.check(ax.lines[0].get_xdata(), results.theta[p] + np.array([-0.1, 0, 0.1]))
    # the second difference is nearly the second derivative
    low, middle, high = ax.lines[0].get_ydata()
    assert (low - 2 * middle + high) / 0.01 == pytest.approx(results.hessian[p, p], rel=0.1)
    assert ax.get_xlabel() == "x x x" and ax.get_legend() is None


@pytest.mark.slow
def test_profile_of_an_element_at_its_bound() -> None:
    results = solved(markets=10)
    assert results.at_bound == ["x x x"]
    ax = plots.plot_objective_profile(results, "x x x", spans=0.1, points=3)
    _, middle, high = ax.lines[0].get_ydata()
    CENTRAL_DIFFERENCE.check(middle, results.objective)
    assert high > middle


def test_profile_of_an_unscaled_objective() -> None:
    results = solved(scale_objective=False, check_optimality="gradient")
    ax = plots.plot_objective_profile(results, 0, points=3)
    CENTRAL_DIFFERENCE.check(ax.lines[0].get_ydata()[1], results.objective)


@pytest.mark.slow
def test_profile_with_bounded_costs_needs_functions() -> None:
    products = joint.tables(markets=MARKETS)[0]
    bounds = (float(np.quantile(products.costs, 0.3)), None)
    results = solved(True, costs_bounds=bounds, check_optimality="gradient")
    assert results.clipped_costs.any()
    with pytest.raises(
        ValueError, match="Give functions made by Problem.functions .* options of solve such as costs_b"
    ):
        plots.plot_objective_profile(results, 0, points=3)
    assert isinstance(results.problem, blpjax.Problem)
    beta = [None, results.beta[1, 0], None, None]
    assert not results.at_bound
    functions = results.problem.functions(results.sigma, results.pi, beta=beta, W=results.W, costs_bounds=bounds)
    ax = plots.plot_objective_profile(results, 0, points=3, functions=functions)
    CENTRAL_DIFFERENCE.check(ax.lines[0].get_ydata()[1], results.objective)


@pytest.mark.parametrize(
    "given",
    [
        {"sigma_bounds": (np.diag([0.4, -np.inf]), np.diag([0.4, np.inf]))},
        {"beta": [-0.5, -2.0, 1.0, None], "gamma": [None, 0.5, 0.3]},
    ],
)
@pytest.mark.slow
def test_profiles_of_other_free_elements(given: dict[str, Any]) -> None:
    products, agents = joint.tables(markets=MARKETS)
    problem = joint.Model().build(blpjax, products, agents)
    with joint.quiet():
        results = problem.solve(
            joint.SIGMA,
            joint.PI,
            method="1s",
            optimization=blpjax.Optimization("return"),
            check_optimality="gradient",
            **{"beta": BETA} | given,
        )
    ax = plots.plot_objective_profile(results, spans=0.01, points=3)
    assert [line.get_label() for line in ax.lines[: len(results.theta)]] == results.theta_labels
    for line in ax.lines[: len(results.theta)]:
        CENTRAL_DIFFERENCE.check(line.get_ydata()[1], results.objective)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"elements": "y"}, r"theta has no element 'y'. Its elements are 1 x 1, x x x, 1 x income."),
        ({"elements": [3]}, "positions between 0 and 2, not 3."),
        ({"elements": []}, "There are no elements of theta"),
        ({"points": 2}, "points must be at least 3, not 2."),
        ({"spans": [0.1, 0.1]}, "spans must be one positive number, or 3 of them"),
        ({"spans": -1.0}, "spans must be one positive number"),
    ],
)
def test_bad_arguments_of_profiles(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.plot_objective_profile(solved(), **arguments)


def test_profiles_without_standard_errors_need_spans() -> None:
    first = solved(method="2s", check_optimality="gradient").last_results
    assert isinstance(first, blpjax.ProblemResults)
    with pytest.raises(ValueError, match="spans must be given, because there are no standard errors."):
        plots.plot_objective_profile(first)


# --- replications ---------------------------------------------------------------------------------------------------


def replications() -> MonteCarloResults:
    """Estimates of one parameter that are normal around the truth, two parameters of the same label, and failures."""
    draws = np.random.default_rng(0).normal(size=50)
    columns = {"replication": np.arange(50), "status": "converged", "standard_error": 0.5, "identified": True}
    columns |= {"objective": 0.0, "gradient_norm": 0.0, "evaluations": 5}
    parts = [("beta", "prices", -2.0), ("beta", "1", 1.0), ("gamma", "1", np.nan)]
    tables = [
        pd.DataFrame(columns | {"block": b, "parameter": p, "true": t, "estimate": t + 0.5 * draws, "ok": draws < 1.5})
        for b, p, t in parts
    ]
    return MonteCarloResults(pd.concat(tables, ignore_index=True), 1.0, pd.DataFrame(), 0)


def test_replications_are_counted_in_standard_errors() -> None:
    draws = np.random.default_rng(0).normal(size=50)
    ax = plots.plot_replications(replications(), "prices", bins=10)
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, np.histogram(draws[draws < 1.5], 10, (-5, 5), density=True)[0])
    assert ax.get_title() == f"beta prices, {(draws < 1.5).sum()} replications"
    assert "beta 1" in plots.plot_replications(replications(), "1", "beta").get_title()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["replications", "standard normal"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("y",), r"None of the parameters is 'y'. There are: beta prices, beta 1, gamma 1."),
        (("1",), r"More than one, in beta, gamma, of the parameters is '1'."),
        (("1", "gamma"), "gamma 1 has no known true value"),
    ],
)
def test_parameters_without_replications(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.plot_replications(replications(), *arguments)


# --- matplotlib -----------------------------------------------------------------------------------------------------


def test_blpjax_alone_does_not_import_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "blpjax.plots")
    with pytest.raises(ImportError, match=r'blpjax.plots needs matplotlib. .*"blpjax\[plots\]"'):
        importlib.import_module("blpjax.plots")
