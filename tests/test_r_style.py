"""The front end for users of R: BLPestimatoR's vignette, and arguments that do not fit together."""

import functools
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import blpjax
from blpjax.exceptions import DataError
from blpjax.r_style import read_theta_guesses
from tests.support import nevo, problems
from tests.support.silence import quiet
from tests.tolerances import LINEAR_ALGEBRA

CEREALS = "share ~ price + productdummy | 0 + productdummy | price + sugar + mushy | 0 + " + " + ".join(
    f"IV{k}" for k in range(1, 21)
)
RANDOM = ["(Intercept)", "price", "sugar", "mushy"]
DEMOGRAPHICS = {"income": "income", "incomesq": "income_squared", "age": "age", "child": "child"}
MODEL = "s ~ p + x | x | 0 + x | 0 + z0 + z1 + I(z0^2)"


def wide(agents: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row for each market and one column for each draw, last market first."""
    numbered = agents.assign(draw=agents.groupby("market_ids").cumcount())
    table = numbered.pivot(index="market_ids", columns="draw", values=column)
    return table.rename_axis("cdid").reset_index().iloc[::-1]


@functools.cache
def cereals() -> tuple[blpjax.Problem, pd.DataFrame]:
    """The problem of the vignette and its starting guesses."""
    products, agents = nevo.tables()
    names = {"market_ids": "cdid", "shares": "share", "prices": "price", "product_ids": "productdummy"}
    instruments = {f"demand_instruments{k}": f"IV{k + 1}" for k in range(20)}
    table = products.rename(columns=names | instruments).assign(product_id=products.product_ids)
    with quiet():
        problem = blpjax.problem_from_formula(
            CEREALS,
            table,
            "cdid",
            "product_id",
            demographic_draws={name: wide(agents, column) for name, column in DEMOGRAPHICS.items()},
            integration_draws={name: wide(agents, f"nodes{k}") for k, name in enumerate(RANDOM)},
            integration_weights=np.full(20, 1 / 20),
        )
    values = np.column_stack([np.diag(nevo.SIGMA), nevo.PI])
    guesses = pd.DataFrame(np.where(values == 0, np.nan, values), RANDOM, ["unobs_sd", *DEMOGRAPHICS])
    return problem, guesses.iloc[::-1, ::-1]


def small() -> pd.DataFrame:
    """A small table with names like those of R users."""
    products, _ = problems.small_tables()
    names = {"shares": "s", "prices": "p", "market_ids": "market", "demand_instruments0": "z0"}
    return products.rename(columns=names | {"demand_instruments1": "z1"}).assign(car=np.arange(len(products)))


def build(model: str = MODEL, products: Any = None, **options: Any) -> blpjax.Problem:
    chosen = {"integration_method": "sgGH", "integration_accuracy": 3} | options
    with quiet():
        return blpjax.problem_from_formula(model, small() if products is None else products, "market", **chosen)


def draws(*names: str, size: int = 4) -> dict[str, pd.DataFrame]:
    markets = sorted(set(small().market))
    rng = np.random.default_rng(0)
    return {name: pd.DataFrame(rng.normal(size=(len(markets), size))).assign(market=markets) for name in names}


@functools.cache
def cereal_results() -> blpjax.ProblemResults:
    """Results at the starting guesses."""
    problem, guesses = cereals()
    with quiet():
        return problem.solve(
            *read_theta_guesses(problem, guesses),
            method="1s",
            optimization=blpjax.Optimization("return"),
            check_optimality="gradient",
        )


@pytest.mark.slow
def test_cereals_at_the_starting_guesses_are_those_of_the_vignette() -> None:
    results = cereal_results()
    np.testing.assert_array_equal(results.sigma, nevo.SIGMA)
    np.testing.assert_array_equal(results.pi, nevo.PI)
    # the vignette inverts shares to a tolerance of 1e-6, which leaves fewer digits than it prints
    assert results.objective == pytest.approx(29.3544, rel=1e-4)
    gradient = dict(zip(results.theta_labels, results.gradient[:, 0], strict=True))
    printed = {
        "1 x 1": 9.8468,
        "prices x prices": 0.3171,
        "sugar x sugar": 363.5319,
        "mushy x mushy": 16.3598,
        "1 x income": 10.6031,
        "1 x age": -2.0231,
        "prices x income": 0.7028,
        "prices x incomesq": 13.4982,
        "prices x child": -0.5714,
        "sugar x income": 42.5236,
        "sugar x age": 10.9331,
        "mushy x income": -3.4759,
        "mushy x age": 1.2851,
    }
    assert gradient == pytest.approx(printed, rel=3e-3)


@pytest.mark.slow
def test_summary_has_the_rows_and_tests_of_the_package() -> None:
    results = cereal_results()
    summary = blpjax.estimation_summary(results)
    random = summary.random
    assert list(random.index[:4]) == [f"unobs_sd*{name}" for name in ("(Intercept)", "prices", "sugar", "mushy")]
    assert {"income*prices", "incomesq*prices", "age*mushy"} < set(random.index)
    np.testing.assert_array_equal(random.loc["child*prices", "estimate"], results.pi[1, 3])
    np.testing.assert_array_equal(random.loc["child*prices", "std_error"], results.pi_se[1, 3])
    np.testing.assert_array_equal(summary.linear["std_error"], results.beta_se[:, 0])
    assert summary.linear.index[0] == "(Intercept)" and summary.j_statistic is None
    V = results.parameter_covariances[:13, :13] / results.problem.N
    LINEAR_ALGEBRA.check(summary.wald_statistic, results.theta @ np.linalg.solve(V, results.theta))
    assert summary.wald_p_value == stats.chi2.sf(summary.wald_statistic, 13)
    text = str(summary)
    for part in (
        "94 market(s) with 2256 products",
        "25 linear coefficient(s)",
        "13 non-linear parameter(s)",
        "4 demographic variable(s)",
        f"Wald test: {summary.wald_statistic:.4f} on 13 DF",
        "Standard errors: robust",
    ):
        assert part in text


def test_formulas_build_the_problem_that_its_matrices_build() -> None:
    products = small().rename(columns={"s": "shares", "p": "prices", "market": "market_ids"})
    exogenous = blpjax.build_matrix(blpjax.Formulation("1 + x"), products)
    excluded = products[["z0", "z1"]].assign(square=products.z0**2)
    table = {name: products[name] for name in products if "demand_instruments" not in name}
    table["demand_instruments"] = np.column_stack([exogenous, excluded])
    formulations = blpjax.Formulation("1 + prices + x"), blpjax.Formulation("0 + x")
    with quiet():
        direct = blpjax.Problem(formulations, table, integration=blpjax.Integration("grid", 3), add_exogenous=False)
        given = {"optimization": blpjax.Optimization("return"), "check_optimality": "gradient"}
        results = [problem.solve(0.7, **given) for problem in (direct, build())]
    LINEAR_ALGEBRA.check(results[1].objective, results[0].objective)
    LINEAR_ALGEBRA.check(results[1].parameters, results[0].parameters)
    summary = blpjax.estimation_summary(results[1])
    assert summary.j_df == 5 - 4 and summary.j_statistic == results[1].run_hansen_test()
    assert "Hansen's J test" in str(summary) and "grid of size 3" in summary.integration


def test_automobiles_have_the_dimensions_that_the_vignette_prints() -> None:
    products, _ = blpjax.data.load_blp()
    found = blpjax.build_blp_instruments(blpjax.Formulation("1 + hpwt + air + mpg + space"), products)
    np.testing.assert_allclose(found[0], [4, 1.840967, 0, 6.152, 5.9898, 87, 44.55554, 0, 150.386, 125.5613], rtol=1e-6)
    names = {"market_ids": "cdid", "car_ids": "id", "prices": "price", "shares": "share"}
    instruments = {f"IV{k + 1}": column for k, column in enumerate(found.T)}
    cars = products.rename(columns=names).assign(const=1, **instruments).drop(columns="clustering_ids")
    with quiet():
        problem = blpjax.problem_from_formula(
            "share ~ 0 + const + price + hpwt + air + mpg + space | 0 + const + hpwt + air + mpg + space |"
            f"0 + price + const + hpwt + air + mpg | 0 + {' + '.join(instruments)}",
            cars,
            "cdid",
            "id",
            integration_method="MLHS",
            integration_accuracy=50,
            integration_seed=48,
        )
    assert (problem.T, problem.N, problem.K1, problem.K2, problem.D, problem.MD) == (20, 2217, 6, 5, 0, 5 + 10)
    assert problem.I == 20 * 50
    guesses = pd.DataFrame({"unobs_sd": 1.0}, index=["price", "const", "hpwt", "air", "mpg"])
    sigma, pi = read_theta_guesses(problem, guesses)
    assert pi is None and sigma.tolist() == np.eye(5).tolist()


def test_logit_models_have_no_random_part() -> None:
    problem = build("s ~ p + x | x | 0 | 0 + z0 + z1", integration_method=None, integration_accuracy=None)
    with quiet():
        summary = blpjax.estimation_summary(problem.solve())
    assert (problem.K2, problem.MD) == (0, 4) and summary.random.empty and "Wald" not in str(summary)
    with pytest.raises(ValueError, match="has no random coefficients, so draws would not be used"):
        build("s ~ p + x | x | 0 | 0 + z0 + z1")


@pytest.mark.parametrize(
    "method, specification, options",
    [
        ("MLHS", "mlhs", {"seed": 3}),
        ("mc", "monte_carlo", {"seed": 3}),
        ("randHalton", "halton", {"seed": 3}),
        ("Halton", "halton", {"scramble": False}),
        ("sgNH", "nested_grid", {}),
    ],
)
def test_methods_of_integration_have_names(method: str, specification: str, options: dict[str, Any]) -> None:
    problem = build(integration_method=method, integration_accuracy=5, integration_seed=options.get("seed"))
    assert problem.integration == blpjax.Integration(specification, 5, options)


def test_draws_go_to_their_markets_and_clusters_are_named() -> None:
    given = draws("x", "income")
    problem = build(
        integration_method=None,
        integration_accuracy=None,
        integration_draws={"x": given["x"].iloc[::-1]},
        demographic_draws={"income": given["income"].sample(frac=1, random_state=0)},
        products=small().drop(columns="clustering_ids"),
        group_structure="market",
    )
    for column, name in (("nodes", "x"), ("demographics", "income")):
        table = given[name].set_index("market")
        for market in problem.unique_market_ids:
            rows = problem.agents["market_ids"][:, 0] == market
            np.testing.assert_array_equal(problem.agents[column][rows, 0], table.loc[market])
    assert set(problem.agents["weights"].ravel()) == {0.25} and problem.clusters[1] == problem.T


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "s ~ p + x | x | x"}, "must be 'share ~ linear | exogenous | random | instruments'"),
        ({"model": "p + x | x | x | z0"}, "must be 'share ~ linear"),
        ({"model": "s ~ p + w + x | x | 0 + x | 0 + z0"}, "price must name the column with prices, because in"),
        ({"model": "s ~ 0 | x | 0 + x | 0 + z0", "price": "p"}, "has no linear coefficients"),
        ({"model": "s ~ p + x | 0 | 0 + x | 0", "price": "p"}, "There are no instruments"),
        ({"integration_method": "sgTr"}, "must be MLHS, MC, Halton, randHalton, sgGH or sgNH, not 'sgTr'"),
        ({"integration_accuracy": None}, "integration_method='sgGH' needs integration_accuracy"),
        ({"integration_seed": 1}, "integration_method='sgGH' draws nothing, so integration_seed would not be used"),
        ({"integration_method": None}, "integration_accuracy and integration_seed need the name"),
        ({"integration_draws": draws("x")}, "either an integration_method or integration_draws, and not both"),
        ({"integration_weights": [1.0]}, "integration_weights belong to integration_draws"),
        (
            {"integration_method": None, "integration_accuracy": None, "integration_draws": draws("y")},
            "integration_draws must be for the random coefficients x, not y",
        ),
        (
            {
                "integration_method": None,
                "integration_accuracy": None,
                "integration_draws": draws("x"),
                "integration_weights": [0.5, 0.5],
            },
            "integration_weights must be 4 finite numbers",
        ),
        ({"demographic_draws": draws("my.income", size=3)}, "'my.income' cannot be a variable"),
    ],
)
def test_arguments_have_to_fit_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build(**options)


@pytest.mark.parametrize(
    "table, message",
    [
        (draws("income")["income"], "demographic_draws['income']: there are 4 draws in each market, but"),
        (draws("income", size=3)["income"].iloc[1:], "demographic_draws['income']: there is no row for market"),
        (pd.concat([draws("income", size=3)["income"]] * 2), "has more than one row"),
        (draws("income", size=3)["income"].drop(columns="market"), "there is no column 'market', which market_identi"),
        (draws("income", size=3)["income"][["market"]], "there are no draws, only the column 'market'"),
        (draws("income", size=3)["income"].assign(d="u"), "column 'd' does not hold numbers"),
        (draws("income", size=3)["income"].assign(d=np.nan), "column 'd' has missing values"),
    ],
)
def test_tables_of_draws_are_checked(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        build(demographic_draws={"income": table})


def test_columns_with_the_names_of_problems_are_in_the_way() -> None:
    with pytest.raises(DataError, match="there is a column 'prices' beside 'p', which takes that name"):
        build(products=small().assign(prices=1.0))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda guesses: guesses.drop(index="sugar"), "rows must be (Intercept), prices, sugar, mushy, not"),
        (lambda guesses: guesses.rename(columns={"age": "years"}), "columns must be unobs_sd, income, incomesq, age,"),
        (lambda guesses: guesses.fillna(0), "values must be finite and not zero. Use NaN"),
    ],
)
def test_guesses_have_to_have_the_names_of_the_model(change: Any, message: str) -> None:
    problem, guesses = cereals()
    with pytest.raises(ValueError, match=re.escape(message)):
        read_theta_guesses(problem, change(guesses))
