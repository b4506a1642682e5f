"""Nested logit, RCNL, other random coefficients, availability and product-specific demographics, next to PyBLP.

Everything is compared at starting values, where both libraries compute the same functions of the same data.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

MARKETS = 4
COMMON = {"sigma": [[0.5, 0], [0.2, 0.3]], "pi": [[0.3], [0.4]]}
SPECIFIC = {"sigma": [[0.5, 0], [0.2, 0.3]], "pi": [[0.3, 0.2], [0.1, 0.4]]}


@functools.cache
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Products in groups a, b and c, of which c has one product in one market and none in another; agents."""
    products, agents = joint.tables(seed=3, markets=MARKETS)
    rng = np.random.default_rng(5)
    rank = products.groupby("market_ids").cumcount()
    nesting_ids = np.where(rank >= 6, "c", np.where(rank % 2, "a", "b"))
    products = products.assign(nesting_ids=nesting_ids, shares=products.shares * 0.8)
    within = products.groupby(["market_ids", "nesting_ids"])
    products["demand_instruments6"] = within.x.transform("size")
    products["demand_instruments7"] = within.x.transform("sum")
    widest = products.groupby("market_ids").size().max()
    columns = {f"distance{j}": rng.uniform(size=len(agents)) for j in range(widest)}
    columns |= {
        f"availability{j}": (rng.uniform(size=len(agents)) > 0.2) * rng.uniform(0.5, 1.5, len(agents))
        for j in range(widest)
    }
    return products, agents.assign(**columns)


@dataclasses.dataclass(frozen=True)
class Case:
    """Which parts of the model there are, and parameters."""

    arguments: Mapping[str, Any]
    nests: bool = False
    X2: str | None = "1 + prices"
    X3: str | None = "1 + w + x"
    demographics: str | None = "0 + income"
    availability: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, library: Any, products: Any = None) -> Any:
        known, agents = tables()
        known = known if products is None else products
        given = known if self.nests else known.drop(columns="nesting_ids")
        people = agents if self.availability else agents.loc[:, ~agents.columns.str.startswith("availability")]
        formulas = ("1 + prices + x + y", self.X2, self.X3)
        with joint.quiet():
            return library.Problem(
                tuple(None if formula is None else library.Formulation(formula) for formula in formulas),
                given,
                None if self.X2 is None else library.Formulation(self.demographics),
                None if self.X2 is None else people,
                **self.options,
            )

    def solve(self, library: Any, problem: Any = None, **more: Any) -> Any:
        given = {
            "beta": [None, -2.0, None, None],
            "method": "1s",
            "optimization": library.Optimization("return"),
            "iteration": library.Iteration("squarem", {"atol": 1e-14, "max_evaluations": 20_000})
            if library is pyblp
            else library.Iteration("anderson", {"atol": 1e-14}),
            "costs_bounds": (0.01, None) if self.X3 else None,
            "check_optimality": "gradient",
        }
        with joint.quiet():
            return (self.build(library) if problem is None else problem).solve(**given | dict(self.arguments) | more)


CASES = {
    "nested logit": Case({"rho": 0.6}, nests=True, X2=None, X3=None),
    "nested logit by group with supply": Case({"rho": [0.3, 0.6, 0.2]}, nests=True, X2=None),
    "RCNL with supply": Case({**COMMON, "rho": 0.9}, nests=True),
    "other random coefficients": Case(
        COMMON, X2="1 + I(-prices)", options={"rc_types": ["logit", "log"], "costs_type": "log"}
    ),
    "availability": Case(COMMON, availability=True, options={"epsilon_scale": 0.6}),
    "demographics of products": Case(SPECIFIC, demographics="0 + income + distance"),
    "everything": Case(
        {**SPECIFIC, "rho": [0.4, 0.5, 0.2]},
        nests=True,
        X2="1 + I(-prices)",
        demographics="0 + income + distance",
        availability=True,
        options={"rc_types": ["logit", "log"]},
    ),
}
#: Cases that are compared each time, "everything" beside them.
SUPPLIED = ("nested logit", "nested logit by group with supply")


@functools.cache
def solved(name: str, library: Any = blpjax) -> Any:
    return CASES[name].solve(library)


@pytest.fixture(scope="module", autouse=True)
def _forget_results() -> Any:
    yield
    solved.cache_clear()
    with_function.cache_clear()


ATTRIBUTES = (
    "objective delta xi omega theta beta gamma rho sigma pi tilde_costs gradient sigma_se pi_se rho_se beta_se "
    "gamma_se parameter_covariances xi_by_theta_jacobian omega_by_theta_jacobian"
).split()


@pytest.mark.parametrize("name", mostly_slow([*CASES], [*SUPPLIED]))
def test_results_are_those_of_pyblp(name: str) -> None:
    ours, theirs = solved(name), solved(name, pyblp)
    assert ours.fp_converged.all() and theirs.fp_converged.all()
    if ours.rho.size != 1:  # PyBLP gives one parameter of all groups the name of the first
        assert ours.theta_labels == [str(label) for label in theirs.theta_labels]
    for attribute in ATTRIBUTES:
        actual, expected = (np.asarray(getattr(results, attribute), float) for results in (ours, theirs))
        FIXED_PARAMETERS.check(actual, expected, attribute)
    for attribute in ("rho_bounds", "rho_labels", "unique_nesting_ids", "H", "rc_types", "epsilon_scale"):
        holders = [r if hasattr(r, attribute) else r.problem for r in (ours, theirs)]
        actual, expected = (getattr(holder, attribute) for holder in holders)
        assert np.array_equal(actual, expected), attribute


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_hessians_are_symmetric(name: str) -> None:
    hessian = CASES[name].solve(blpjax, check_optimality="both").hessian
    assert np.isfinite(hessian).all()
    DELTA.check(hessian, hessian.T)


NEEDS_COSTS = ("costs", "passthrough", "prices", "markups", "profits", "profit_hessians")
OUTPUTS = (
    "aggregate_elasticities",
    "elasticities",
    "demand_jacobians",
    "demand_hessians",
    "diversion_ratios",
    "long_run_diversion_ratios",
    "probabilities",
    "consumer_surpluses",
    "shares",
    "hhi",
    *NEEDS_COSTS,
)

#: Where PyBLP computes something else; other tests have closed forms.
DIFFERENT = {
    ("availability", "consumer_surpluses"),
    ("demographics of products", "diversion_ratios"),
    ("everything", "diversion_ratios"),
}


@pytest.mark.parametrize("name", mostly_slow([*CASES], SUPPLIED[:1]))
def test_outputs_are_those_of_pyblp(name: str) -> None:
    ours, theirs = solved(name), solved(name, pyblp)
    for output in OUTPUTS:
        if (name, output) in DIFFERENT or (CASES[name].X3 is None and output in NEEDS_COSTS):
            continue
        actual, expected = (
            getattr(results, f"compute_{output}")(**_merger(library) if output == "prices" else {})
            for results, library in ((ours, blpjax), (theirs, pyblp))
        )
        FIXED_PARAMETERS.check(actual, expected, output)


def _merger(library: Any) -> dict[str, Any]:
    iteration = library.Iteration("simple", {"atol": 1e-13, "max_evaluations": 5000})
    return {"firm_ids": tables()[0].firm_ids.replace(2, 1).to_numpy(), "iteration": iteration}


@pytest.mark.slow
def test_surplus_is_in_units_of_prices_whatever_the_scale_of_epsilon() -> None:
    """``-scale log P_0i / -alpha_i``: PyBLP leaves the scale out."""
    results, (products, agents) = solved("availability"), tables()
    probabilities, surpluses = results.compute_probabilities(), results.compute_consumer_surpluses()
    for t, market in enumerate(np.unique(products.market_ids)):
        rows, people = np.flatnonzero(products.market_ids == market), agents[agents.market_ids == market]
        outside = 1 - probabilities[rows][:, : len(people)].sum(axis=0)
        tastes = people[["nodes0", "nodes1"]].to_numpy() @ results.sigma[1] + people.income * results.pi[1, 0]
        alpha = results.beta[1, 0] + tastes.to_numpy()
        ROUNDING.check(surpluses[t, 0], (0.6 * -np.log(outside) / -alpha / len(people)).sum())


@pytest.mark.slow
def test_a_scale_of_epsilon_scales_parameters() -> None:
    """Also with nests, for which PyBLP has no scale."""
    given = {"sigma": np.array(COMMON["sigma"]), "pi": np.array(COMMON["pi"]), "rho": 0.5}
    results = Case(given, nests=True, X3=None, options={"epsilon_scale": 0.6}).solve(blpjax)
    plain = Case({"sigma": given["sigma"] / 0.6, "pi": given["pi"] / 0.6, "rho": 0.5}, nests=True, X3=None).solve(
        blpjax, beta=[None, -2.0 / 0.6, None, None]
    )
    DELTA.check(results.delta, 0.6 * plain.delta)
    LINEAR_ALGEBRA.check(results.beta, 0.6 * plain.beta)
    for output in ("elasticities", "probabilities", "long_run_diversion_ratios", "consumer_surpluses"):
        actual, expected = (getattr(r, f"compute_{output}")() for r in (results, plain))
        LINEAR_ALGEBRA.check(actual, expected, output)
    assert results.problem.epsilon_scale == 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demographics of products", "everything"])
def test_diversion_where_slopes_are_specific_to_products(name: str) -> None:
    """``-(ds_k / dp_j) / (ds_j / dp_j)`` for row j and column k; with such slopes derivatives are not symmetric."""
    results, products = solved(name), tables()[0]
    jacobians, ratios = results.compute_demand_jacobians(), results.compute_diversion_ratios()
    assert not np.isclose(ratios, solved(name, pyblp).compute_diversion_ratios(), equal_nan=True).all()
    for market in np.unique(products.market_ids):
        rows = np.flatnonzero(products.market_ids == market)
        D = jacobians[rows][:, : rows.size]
        expected = -D.T / np.diag(D)[:, None]
        np.fill_diagonal(expected, D.sum(axis=0) / np.diag(D))
        ROUNDING.check(ratios[rows][:, : rows.size], expected)
        LINEAR_ALGEBRA.check(ratios[rows][:, : rows.size].sum(axis=1), np.ones(rows.size))
    step = 1e-5
    prices, j = products.prices.to_numpy(), 4
    moved = [results.compute_shares(prices=prices + sign * step * (np.arange(len(prices)) == j)) for sign in (1, -1)]
    rows = np.flatnonzero(products.market_ids == products.market_ids[j])
    difference = (moved[0] - moved[1])[rows, 0] / (2 * step)
    CENTRAL_DIFFERENCE.check(jacobians[rows, list(rows).index(j)], difference)


@pytest.mark.slow
def test_nested_logit_is_estimated_as_by_pyblp() -> None:
    given = {"optimization": None, "method": "2s", "check_optimality": "both"}
    ours, theirs = (CASES["nested logit"].solve(library, **given) for library in (blpjax, pyblp))
    assert ours.converged
    for name in ("rho", "rho_se", "beta", "beta_se"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-4, err_msg=name)
    assert ours.objective <= theirs.objective * (1 + 1e-7)


def test_nested_logit_is_linear_instrumental_variables_on_within_group_shares() -> None:
    """The estimates solve the moments of Berry's (1994) regression."""
    results = CASES["nested logit"].solve(blpjax, optimization=None, beta=None)
    products, Z = tables()[0], results.problem.products.ZD
    within = np.log(products.shares / products.groupby(["market_ids", "nesting_ids"]).shares.transform("sum"))
    outside = np.log(1 - products.groupby("market_ids").shares.transform("sum"))
    X = np.column_stack([np.ones(len(products)), products.prices, products.x, products.y, within])
    A = X.T @ Z @ np.linalg.inv(Z.T @ Z) @ Z.T
    expected = np.linalg.solve(A @ X, A @ (np.log(products.shares) - outside))
    np.testing.assert_allclose(np.r_[results.beta[:, 0], results.rho[0]], expected, rtol=1e-5)


@pytest.mark.slow
def test_optimal_instruments_of_rcnl_are_those_of_pyblp() -> None:
    ours, theirs = (
        solved("RCNL with supply", library).compute_optimal_instruments(method="approximate", seed=0)
        for library in (blpjax, pyblp)
    )
    for name in ("demand_instruments", "supply_instruments", "expected_prices", "expected_shares"):
        CENTRAL_DIFFERENCE.check(getattr(ours, name), getattr(theirs, name), name)


@pytest.mark.slow
def test_simulated_equilibria_are_those_of_pyblp() -> None:
    products, agents = tables()
    case = CASES["everything"]

    def simulate(library: Any) -> Any:
        with joint.quiet():
            simulation = library.Simulation(
                tuple(library.Formulation(f) for f in ("1 + prices + x + y", "1 + I(-prices)", "1 + w + x")),
                products.drop(columns=["shares", "prices"]),
                beta=[1.0, -2.0, 1.0, 0.5],
                gamma=[0.8, 0.5, 0.3],
                xi=products.xi,
                omega=products.omega,
                agent_formulation=library.Formulation("0 + income + distance"),
                agent_data=agents,
                **dict(case.arguments),
                **dict(case.options),
            )
            return simulation.replace_endogenous(iteration=library.Iteration("simple", {"atol": 1e-13}))

    ours, theirs = simulate(blpjax), simulate(pyblp)
    for name in ("prices", "shares"):
        LINEAR_ALGEBRA.check(ours.product_data[name], theirs.product_data[name], name)
    assert (ours.product_data["shares"] > 0).all()
    problem = ours.to_problem()
    assert problem.H == 3 and problem.form == ours.simulation.primitives.form


# functions of random coefficients


def cubic(column: Any) -> Any:
    return column + 0.1 * column**3


@functools.cache
def with_function() -> Any:
    return CUBIC.solve(blpjax)


CUBIC = Case(COMMON, X3=None, options={"rc_types": ["linear", cubic]})


@pytest.mark.slow
def test_random_coefficients_of_any_function() -> None:
    results = with_function()
    assert results.fp_converged.all() and results.problem.rc_types == ["linear", cubic]
    theta, step = np.array([0.5, 0.2, 0.3, 0.3, 0.4]), 1e-5

    def objective(theta: np.ndarray) -> float:
        sigma, pi = [[theta[0], 0.0], [theta[1], theta[2]]], theta[3:, None]
        return float(CUBIC.solve(blpjax, results.problem, sigma=sigma, pi=pi).objective)

    difference = [(objective(theta + m) - objective(theta - m)) / (2 * step) for m in step * np.eye(5)]
    assert results.theta_labels == ["1 x 1", "prices x 1", "prices x prices", "1 x income", "prices x income", "prices"]
    CENTRAL_DIFFERENCE.check(results.gradient[:5, 0], difference)


@pytest.mark.slow
def test_functions_of_random_coefficients_may_be_those_of_names() -> None:
    case = Case(COMMON, X2="1 + I(-prices)", X3=None)
    named, own = (
        dataclasses.replace(case, options={"rc_types": types}).solve(blpjax)
        for types in (["logit", "log"], [jax.nn.sigmoid, jnp.exp])
    )
    for name in ("delta", "objective", "gradient", "sigma_se"):
        np.testing.assert_array_equal(getattr(own, name), getattr(named, name), name)


# files


@pytest.mark.slow
def test_results_of_the_whole_family_are_saved_and_loaded(tmp_path: Path) -> None:
    results = solved("everything")
    results.save(tmp_path / "results")
    loaded = blpjax.load(tmp_path / "results")
    for name in ("delta", "rho", "objective", "gradient", "rho_se", "parameter_covariances"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(results, name), name)
    assert loaded.problem.rc_types == ["logit", "log"]
    assert loaded.problem.form == results.problem.form
    assert loaded.theta_labels == results.theta_labels
    np.testing.assert_array_equal(loaded.problem.unique_nesting_ids, results.problem.unique_nesting_ids)
    np.testing.assert_array_equal(loaded.compute_elasticities(), results.compute_elasticities())
    again = CASES["everything"].solve(blpjax, loaded.problem)
    np.testing.assert_array_equal(again.delta, results.delta)
    scaled = dataclasses.replace(CASES["nested logit"], options={"epsilon_scale": 0.6}).solve(blpjax)
    scaled.save(tmp_path / "scaled")
    loaded = blpjax.load(tmp_path / "scaled")
    assert loaded.problem.epsilon_scale == 0.6 and loaded.problem.form == scaled.problem.form
    np.testing.assert_array_equal(loaded.compute_elasticities(), scaled.compute_elasticities())


@pytest.mark.slow
def test_functions_of_random_coefficients_are_not_saved(tmp_path: Path) -> None:
    results = with_function()
    with pytest.raises(
        NotImplementedError, match="rc_types has the function 'cubic', and files hold no code. Save the"
    ):
        results.save(tmp_path / "results")
    assert not (tmp_path / "results").exists()


# what is refused


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"rho must be given: an array of shape \(3,\)"),
        ({"rho": [0.5, 0.5]}, r"rho must have the shape \(3,\), not \(2,\)"),
        ({"rho": [[0.5, 0.5, 0.1], [0, 0, 0]]}, r"rho must have the shape \(3,\), not \(2, 3\)"),
        ({"rho": 1.0}, "rho must be below one, not 1"),
        ({"rho": [0.5, 1.5, 0.5]}, "rho must be below one, not 1.5"),
        ({"rho": np.nan}, "rho must be finite"),
        ({"rho": "half"}, "rho must be an array of numbers"),
        ({"rho": 0.5, "rho_bounds": (0.6, 0.9)}, r"rho\[0\] = 0.5 is not within its bounds \[0.6, 0.9\]"),
        ({"rho": -0.2}, "rho must not be negative, but is -0.2.*rho_bounds that allow it"),
        ({"rho": 0.5, "rho_bounds": 0.9}, r"rho_bounds must be a pair \(lower, upper\)"),
        ({"rho": 0.5, "rho_bounds": ([0, 0, 0], [1, 1, 1])}, r"rho_bounds must hold arrays of the shape \(1,\)"),
    ],
)
def test_nesting_parameters_that_cannot_be_used(arguments: dict[str, Any], message: str) -> None:
    problem = solved("nested logit").problem
    with pytest.raises(ValueError, match=message):
        problem.solve(method="1s", optimization=blpjax.Optimization("return"), **arguments)


def test_nesting_parameters_that_are_fixed_or_zero_are_not_in_theta() -> None:
    found = CASES["nested logit"].solve(
        blpjax, solved("nested logit").problem, rho=[0.3, 0.0, 0.2], rho_bounds=([0, 0, 0.2], [0.95, 0.9, 0.2])
    )
    assert found.theta_labels == ["a", "prices"] and found.rho[:, 0].tolist() == [0.3, 0.0, 0.2]
    assert np.isfinite(found.rho_se[0, 0]) and np.isnan(found.rho_se[1:, 0]).all()


def test_starting_values_by_regression_refuse_nests() -> None:
    with pytest.raises(NotImplementedError, match="nest"):
        CASES["RCNL with supply"].build(blpjax).compute_frac_starts()
