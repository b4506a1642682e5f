"""Outputs of one's own: functions of the model, with the markets, tables, standard errors and draws of built-in ones.

The first two functions are what a user writes.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import blpjax
from tests.support import joint
from tests.support.estimated import CASES, solved
from tests.tolerances import FIXED_PARAMETERS, ROUNDING

pytestmark = pytest.mark.usefixtures("several_buckets")


def weighted_lerner_indices(results: Any, product_data: pd.DataFrame, **how: Any) -> Any:
    """Average markups (p - c) / p of markets, weighted by sales."""
    ids, codes = np.unique(product_data["market_ids"], return_inverse=True)

    def average(model: Any) -> Any:
        sums = functools.partial(jax.ops.segment_sum, segment_ids=codes, num_segments=len(ids))
        return sums(model.shares * model.compute_markups()[:, 0]) / sums(model.shares)

    return results.compute(average, by="market", name="lerner_index", **how)


def upward_pricing_pressure(results: Any, **how: Any) -> Any:
    """What a merger adds to the cost of the row's product: sales diverted to the column's, times its margin."""

    def pressure(model: Any) -> Any:
        margins = model.economy.scatter((model.prices - model.compute_costs()[:, 0])[:, None])
        of_columns = model.economy.stack([jnp.repeat(m, m.shape[1], axis=2).swapaxes(1, 2) for m in margins])
        return model.compute_diversion_ratios() * of_columns

    return results.compute(pressure, by="pair", name="pressure", **how)


@functools.cache
def bootstrapped() -> Any:
    with joint.quiet():
        return solved("logit").bootstrap(2, seed=3)


@functools.cache
def simulated() -> Any:
    simulation = blpjax.Simulation(
        (blpjax.Formulation("1 + prices + x"), blpjax.Formulation("0 + x"), blpjax.Formulation("1 + x")),
        blpjax.build_id_data(T=3, J=5, F=2),
        beta=[1, -2, 1],
        sigma=0.5,
        gamma=[1, 1],
        integration=blpjax.Integration("product", 5),
        seed=1,
    )
    with joint.quiet():
        return simulation.replace_endogenous()


def products() -> pd.DataFrame:
    return CASES["linear costs"].tables[0]


# the recipe


@pytest.mark.parametrize("output", [weighted_lerner_indices, upward_pricing_pressure])
def test_an_output_takes_less_than_thirty_lines(output: Callable[..., Any]) -> None:
    assert len(inspect.getsource(output).splitlines()) < 30


@pytest.mark.slow
def test_weighted_lerner_indices_are_averages_of_markups() -> None:
    results, data = solved("linear costs"), products()
    sales = data.assign(lerner=results.compute_markups()[:, 0] * data.shares).groupby("market_ids")[
        ["lerner", "shares"]
    ]
    expected = sales.sum().lerner / sales.sum().shares
    found = weighted_lerner_indices(results, data)
    assert found.shape == (4, 1)
    ROUNDING.check(found[:, 0], expected)
    frame = weighted_lerner_indices(results, data, as_frame=True, standard_errors=True)
    assert list(frame.columns) == ["market_ids", "lerner_index", "standard_error", "lower", "upper"]
    assert frame.market_ids.tolist() == expected.index.tolist()
    ROUNDING.check(frame.lerner_index, expected)
    assert (frame.standard_error > 0).all()


def test_upward_pricing_pressure_is_diversion_times_margins() -> None:
    results, data = solved("linear costs"), products()
    diversion, margins = results.compute_diversion_ratios(), data.prices - results.compute_costs()[:, 0]
    found = upward_pricing_pressure(results)
    assert found.shape == diversion.shape
    for _, market in data.groupby("market_ids"):
        rows = market.index.to_numpy()
        J = rows.size
        ROUNDING.check(found[rows, :J], diversion[rows, :J] * margins[rows].to_numpy())
        assert np.isnan(found[rows, J:]).all()


# the same as built-in outputs

BUILT_IN: dict[str, tuple[str, dict[str, Any]]] = {
    "product": ("markups", {}),
    "pair": ("elasticities", {}),
    "triple": ("demand_hessians", {}),
    "market": ("hhi", {}),
    "agent": ("consumer_surpluses", {"keep_all": True}),
    "product and agent": ("probabilities", {}),
}


def own(by: str) -> Callable[[Any], Any]:
    method, arguments = BUILT_IN[by]
    return lambda model: getattr(model, f"compute_{method}")(**arguments)


@pytest.mark.parametrize("by", BUILT_IN)
def test_arrays_tables_and_markets_are_those_of_built_in_outputs(by: str) -> None:
    results = solved("linear costs")
    method, arguments = BUILT_IN[by]
    built_in = functools.partial(getattr(results, f"compute_{method}"), **arguments)
    everything = results.compute(own(by), by)
    ROUNDING.check(everything, built_in())
    frame = built_in(as_frame=True)
    pd.testing.assert_frame_equal(
        results.compute(own(by), by, frame.columns[-1], as_frame=True), frame, rtol=ROUNDING.rtol
    )
    alone, expected = results.compute(own(by), by, market_id="m001"), built_in(market_id="m001")
    assert alone.shape == expected.shape
    FIXED_PARAMETERS.check(alone, expected)
    frame = results.compute(own(by), by, "found", market_id="m001", as_frame=True)
    assert set(frame.market_ids) == {"m001"} and len(frame) == alone.size
    # exactly the rows among all markets
    inside = (products().market_ids == "m001").to_numpy() if len(everything) == len(products()) else slice(1, 2)
    np.testing.assert_array_equal(alone, everything[inside][tuple(slice(size) for size in alone.shape)])


@pytest.mark.parametrize(
    ("by", "hold"),
    [
        ("pair", "shares"),
        *(
            pytest.param(by, hold, marks=pytest.mark.slow)
            for by, hold in (
                ("market", "xi"),
                ("product", "shares"),
                ("product", "xi"),
                ("pair", "xi"),
                ("market", "shares"),
            )
        ),
    ],
)
def test_standard_errors_are_those_of_the_delta_method(by: str, hold: str) -> None:
    results = solved("linear costs")
    expected = results.delta_method(own(by), hold=hold)
    found = results.compute(own(by), by, standard_errors=True, hold=hold)
    assert found.hold == hold
    ROUNDING.check(found.value, expected.value)
    ROUNDING.check(found.standard_errors, expected.standard_errors)
    frame = results.compute(own(by), by, standard_errors=True, hold=hold, as_frame=True)
    ROUNDING.check(np.sort(frame.standard_error), np.sort(expected.standard_errors[np.isfinite(expected.value)]))
    alone = results.compute(own(by), by, market_id="m001", standard_errors=True, hold=hold)
    inside = (products().market_ids == "m001").to_numpy() if by != "market" else slice(1, 2)
    among_all = expected.standard_errors[inside][tuple(slice(size) for size in alone.value.shape)]
    ROUNDING.check(alone.standard_errors, among_all)


@pytest.mark.slow
def test_draws_have_the_first_axis() -> None:
    results = bootstrapped()
    found = results.compute(lambda model: model.compute_markups()[:, 0] * model.prices)
    assert found.shape == (2, len(products()), 1)
    for draw in range(2):
        model = results.model_of(draw)
        ROUNDING.check(found[draw], model.compute_markups() * model.prices[:, None])
    with pytest.raises(NotImplementedError, match="as_frame is not supported for draws"):
        results.compute(own("product"), as_frame=True)
    with pytest.raises(TypeError, match="Bootstrapped results have no standard errors by the delta method"):
        results.compute(own("product"), standard_errors=True)


@pytest.mark.slow
def test_draws_of_pairs_and_of_one_market_have_the_first_axis() -> None:
    results = bootstrapped()
    ROUNDING.check(results.compute(own("pair"), "pair"), results.compute_elasticities())
    alone = weighted_lerner_indices(results, products(), market_id="m002")
    np.testing.assert_array_equal(alone, weighted_lerner_indices(results, products())[:, 2:3])


@pytest.mark.slow
def test_simulations_have_them_without_standard_errors() -> None:
    results = simulated()
    ROUNDING.check(results.compute(own("pair"), by="pair"), results.compute_elasticities())
    pressure = upward_pricing_pressure(results, market_id=1, as_frame=True)
    assert list(pressure.columns) == ["market_ids", "row_product", "column_product", "pressure"] and len(pressure) == 25
    with pytest.raises(TypeError, match="SimulationResults has no standard errors: its parameters are known"):
        results.compute(own("product"), standard_errors=True)


# shapes


@pytest.mark.parametrize(("by", "size"), [("product", 29), ("market", 4)])
def test_vectors_and_columns_are_the_same(by: str, size: int) -> None:
    numbers = jnp.arange(float(size))
    found = [solved("linear costs").compute(lambda model, n=n: n, by) for n in (numbers, numbers[:, None])]
    assert found[0].shape == (size, 1)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("by", ["pair", "triple", "agent", "product and agent"])
def test_whatever_stands_in_padding_becomes_missing(by: str) -> None:
    results = solved("linear costs")
    method, arguments = BUILT_IN[by]
    expected = getattr(results, f"compute_{method}")(**arguments)
    found = results.compute(lambda model: jnp.ones(expected.shape), by)
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(found, np.where(np.isnan(expected), np.nan, 1.0))


# errors

BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "kind": ({"by": "firm"}, ValueError, "by must be one of 'product', 'pair', 'triple', 'market', .* not 'firm'"),
    "name": ({"name": "market_ids"}, ValueError, "name must not be 'market_ids', which is another column of tables"),
    "market": ({"market_id": "m9"}, ValueError, "There is no market 'm9'"),
    "no function": ({"function": 3}, TypeError, "function must be a function of a Model, not int"),
    "no array": ({"function": lambda model: None}, TypeError, "function must return an array, not NoneType"),
    "arrays": ({"function": lambda m: [m.prices, m.shares]}, TypeError, "function must return an array, not list"),
    "integers": (
        {"function": lambda model: jnp.zeros(29, int)},
        TypeError,
        "function must return floating-point numbers, not int64",
    ),
    "products": (
        {"function": lambda model: model.prices[:3]},
        ValueError,
        r"array of the shape \(29, 1\) or \(29,\) with by='product', not \(3,\)",
    ),
    "markets": (
        {"function": lambda model: model.prices, "by": "market"},
        ValueError,
        r"array of the shape \(4, 1\) or \(4,\) with by='market', not \(29,\)",
    ),
    "pairs": (
        {"function": lambda model: model.prices, "by": "pair"},
        ValueError,
        r"array of the shape \(29, 8\) with by='pair', not \(29,\)",
    ),
    "triples": (
        {"function": lambda model: model.compute_elasticities(), "by": "triple", "standard_errors": True},
        ValueError,
        r"array of the shape \(29, 8, 8\) with by='triple', not \(29, 8\)",
    ),
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_answered_is_explained(case: str) -> None:
    given, error, message = BAD[case]
    with pytest.raises(error, match=message):
        solved("linear costs").compute(**{"function": lambda model: model.prices, **given})


def test_functions_of_numpy_are_refused_where_jax_traces_them() -> None:
    def numpy_function(model: Any) -> Any:
        return np.exp(np.asarray(model.delta))

    assert solved("linear costs").compute(numpy_function).shape == (29, 1)
    for results, how in ((bootstrapped(), {}), (solved("linear costs"), {"standard_errors": True})):
        with pytest.raises(TypeError, match="function must consist of operations of JAX"):
            results.compute(numpy_function, **how)
