"""Scripts that PyBLP accepts: what they say explicitly, leave in shared options, or read from a problem's arrays."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax import Optimization
from blpjax.exceptions import DataWarning, IdentificationError, IdentificationWarning, UnusedOptionWarning
from blpjax.inputs.integration import Integration
from tests.support.silence import quiet
from tests.tolerances import DELTA, LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")


def products(markets: int = 20, sigma: float = 1.5) -> pd.DataFrame:
    """Markets of five products whose shares are those of tastes for x with a standard deviation of sigma."""
    rng = np.random.default_rng(0)
    nodes = Integration("product", 5).build(1)
    shape = (markets, 5)
    x, cost, xi = rng.normal(size=shape), rng.uniform(0, 1, shape), 0.3 * rng.normal(size=shape)
    prices = 1 + cost + 0.3 * xi
    utility = (0.5 - 2 * prices + x + xi)[:, :, None] + sigma * x[:, :, None] * nodes.nodes[:, 0]
    odds = np.exp(utility)
    shares = (odds / (1 + odds.sum(axis=1, keepdims=True))) @ nodes.weights
    rivals = x.sum(axis=1, keepdims=True) - x
    columns = {
        "market_ids": np.repeat(np.arange(markets), 5),
        "product_ids": np.tile(np.arange(5), markets),
        "firm_ids": np.tile([0, 0, 1, 1, 2], markets),
        "shares": shares,
        "prices": prices,
        "x": x,
    }
    instruments = [cost, rivals, x * rivals, ((x[:, :, None] - x[:, None, :]) ** 2).sum(axis=2)]
    columns |= {f"demand_instruments{k}": values for k, values in enumerate(instruments)}
    return pd.DataFrame({name: values.reshape(-1) for name, values in columns.items()})


def random_coefficient(library: Any) -> Any:
    """A problem with a random coefficient on x, whose nodes are symmetric."""
    formulations = (library.Formulation("1 + prices + x"), library.Formulation("0 + x"))
    with quiet():
        return library.Problem(formulations, products(), integration=library.Integration("product", 5))


def test_negative_starts_of_sigma_are_mirror_images_and_evaluated_as_pyblp_does() -> None:
    ours, theirs = map(random_coefficient, (blpjax, pyblp))
    found = {}
    for start in (-0.4, 0.4):
        found[start] = ours.solve([[start]], method="1s", optimization=Optimization("return"))
        expected = theirs.solve([[start]], method="1s", optimization=pyblp.Optimization("return"))
        LINEAR_ALGEBRA.check(found[start].objective, float(expected.objective))
        DELTA.check(found[start].delta, expected.delta)
        assert found[start].sigma.item() == start
    LINEAR_ALGEBRA.check(found[-0.4].objective, found[0.4].objective)
    DELTA.check(found[-0.4].delta, found[0.4].delta)
    assert [bound.item() for bound in found[-0.4].sigma_bounds] == [-np.inf, 0]


@pytest.mark.parametrize("routine", ["trust-region", "l-bfgs-b"])
def test_optimisers_reach_the_mirror_image_of_the_optimum_from_negative_starts(routine: str) -> None:
    problem = random_coefficient(blpjax)
    up, down = (problem.solve([[start]], method="1s", optimization=Optimization(routine)) for start in (0.4, -0.4))
    assert up.converged and down.converged and up.sigma.item() > 1
    np.testing.assert_allclose(-down.sigma, up.sigma, rtol=1e-5)
    np.testing.assert_allclose(down.objective, up.objective, rtol=1e-7)


def logit(library: Any, formula: str = "1 + prices + x", data: Any = None, **options: Any) -> Any:
    with quiet():
        return library.Problem(library.Formulation(formula, **options), products() if data is None else data)


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ({"costs_bounds": (0.001, None)}, "costs_bounds has no effect: there is no supply side"),
        ({"error_behavior": "punish"}, "error_behavior='punish' has no effect: Optimization.'trust-region'"),
        ({"error_behavior": "revert", "error_punishment": 3.0}, "error_behavior='revert' has no effect"),
    ],
)
def test_options_that_scripts_share_between_problems_warn_and_give_the_results_of_pyblp(
    shared: dict[str, Any], message: str
) -> None:
    with pytest.warns(UnusedOptionWarning, match=message):
        results = logit(blpjax).solve(method="1s", **shared)
    expected = logit(pyblp).solve(method="1s", **shared)
    LINEAR_ALGEBRA.check(results.beta, expected.beta)
    LINEAR_ALGEBRA.check(results.beta_se, expected.beta_se)


def test_bounds_on_costs_that_are_none_are_no_option_at_all() -> None:
    logit(blpjax).solve(method="1s", costs_bounds=(None, None))


@pytest.mark.parametrize("absorb", ["", "  "])
def test_an_empty_formula_of_fixed_effects_absorbs_nothing(absorb: str) -> None:
    ours, theirs = (logit(library, "prices + x", absorb=absorb) for library in (blpjax, pyblp))
    assert blpjax.Formulation("x", absorb=absorb) == blpjax.Formulation("x")
    assert (ours.K1, ours.ED, ours.MD) == (theirs.K1, theirs.ED, theirs.MD)
    LINEAR_ALGEBRA.check(ours.products.X1, theirs.products.X1)


@pytest.mark.parametrize("options", [{"disp": True}, {"iprint": 2, "gtol": 1e-6}])
def test_options_that_print_are_accepted_where_a_routine_of_scipy_prints_no_more(options: dict[str, Any]) -> None:
    with pytest.warns(UnusedOptionWarning, match=r"of Optimization\('l-bfgs-b'\) has no effect: SciPy's routine no"):
        chosen = Optimization("l-bfgs-b", options)
    assert chosen == Optimization("l-bfgs-b", {k: v for k, v in options.items() if k == "gtol"})
    assert Optimization("l-bfgs-b", {"disp": False, "iprint": -1}).method_options == {}
    results = random_coefficient(blpjax).solve([[0.4]], method="1s", optimization=chosen)
    assert results.converged


def test_a_matrix_of_instruments_is_taken_where_there_are_numbered_columns_too() -> None:
    table = products()
    columns = {name: table[name].to_numpy() for name in table}
    columns["demand_instruments"] = table[["demand_instruments0", "demand_instruments2"]].to_numpy() ** 2
    with pytest.warns(DataWarning, match="column 'demand_instruments' and also 'demand_instruments0', 'demand_instr"):
        ours = logit(blpjax, data=columns)
    theirs = logit(pyblp, data=columns)
    assert ours.MD == theirs.MD == 4
    LINEAR_ALGEBRA.check(ours.products.ZD, theirs.products.ZD)


def test_demand_without_prices_has_prices_of_zero_with_a_coefficient_of_zero() -> None:
    table = products().assign(prices=0.0)
    message = "'prices' is zero. Problem.solve cannot estimate the coefficients of all of them"
    with pytest.warns(IdentificationWarning, match=message):
        problem = logit(blpjax, data=table)
    results = problem.solve(beta=[None, 0, None], method="1s")
    expected = logit(pyblp, data=table).solve(beta=[None, 0, None], method="1s")
    LINEAR_ALGEBRA.check(results.beta, expected.beta)
    LINEAR_ALGEBRA.check(results.beta_se[[0, 2]], expected.beta_se[[0, 2]])
    with pytest.raises(IdentificationError, match="X1 has 3 columns but rank 2: 'prices' is zero"):
        problem.solve(method="1s")


def test_a_column_that_repeats_another_may_have_a_fixed_coefficient() -> None:
    """Its instrument adds nothing, so that estimates are those without it."""
    with pytest.warns(IdentificationWarning, match="columns but rank"):
        problem = logit(blpjax, "1 + prices + x + x2", products().assign(x2=lambda table: 2 * table.x))
    with quiet("The covariances of the 7 moments have rank 6"):
        fixed = problem.solve(beta=[None, None, None, 0.1], beta_bounds=([None, None, None, 0.1],) * 2, method="1s")
    plain = logit(blpjax).solve(method="1s")
    np.testing.assert_allclose(fixed.beta[:, 0], [*plain.beta[:2, 0], plain.beta[2, 0] - 0.2, 0.1], rtol=1e-8)


def test_titles_of_fields_are_columns_as_in_pyblp() -> None:
    agents = pd.DataFrame({"market_ids": np.arange(20), "weights": 1.0, "nodes0": 0.5, "nodes1": 0.1, "income": 1.0})
    agents["income"] += agents.market_ids
    table = products().assign(kind=["u", "v"] * 50)
    formulas = ("1 + prices + x:prices + kind", "1 + x")
    for supply in ((), ("1 + x + log(x**2)",)):
        with quiet():
            ours, theirs = (
                library.Problem(
                    tuple(map(library.Formulation, (*formulas, *supply))),
                    table,
                    library.Formulation("0 + income + I(income**2)"),
                    agents,
                )
                for library in (blpjax, pyblp)
            )
        for name, fields in (("products", ("X1", "X2", "X3")), ("agents", ("demographics",))):
            actual, expected = getattr(ours, name).dtype, getattr(theirs, name).dtype
            for field in fields:
                titles = actual.fields[field][2]
                assert list(map(str, titles)) == list(map(str, expected.fields[field][2])), field
                assert [title.names for title in titles] == [
                    {variable.split("[")[0] for variable in title.names} for title in expected.fields[field][2]
                ]
    assert pickle.loads(pickle.dumps(ours.products)).dtype == ours.products.dtype
    assert "[1, prices, " in str(list(ours.products.dtype.fields["X1"][2]))
