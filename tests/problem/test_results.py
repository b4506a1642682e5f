"""Results: PyBLP's attributes, tables and outputs on an unequal economy, and what outputs satisfy in any economy."""

import re
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax.exceptions import DeltaConvergenceError
from tests.support.problems import PI, SIGMA, build, evaluate, small_tables
from tests.support.silence import quiet
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

#: Wall-clock times and counters of loops that are programmed differently.
NOT_COMPARED = re.compile("time$|time_$|fp_iterations|contraction_evaluations|labels|bounds")
#: What PyBLP's results lack.
EXTRAS = {"parameter_labels", "tau", "kappa", "kappa_se", "kappa_bounds", "kappa_labels"}
#: One program for all inversions of these tests.
SQUAREM = blpjax.Iteration("squarem", {"atol": 1e-14})
MARKETS = [None, "m002", "m004"]
NAMES = ["prices", "x", "w", None]


@pytest.fixture(scope="module")
def ours() -> Any:
    return evaluate(build(blpjax), blpjax, check_optimality="both")


@pytest.fixture(scope="module")
def theirs() -> Any:
    return evaluate(build(pyblp), pyblp, check_optimality="both")


@pytest.fixture(scope="module")
def steps() -> Any:
    """Results of three steps, the first of them an update of W at the starting values."""
    problem = build(blpjax)
    return evaluate(problem, blpjax, method="2s", initial_update=True)


@pytest.fixture(scope="module")
def their_steps() -> Any:
    return evaluate(build(pyblp), pyblp, method="2s", initial_update=True)


# attributes


def test_attributes_have_the_names_shapes_and_types_of_pyblp(ours: Any, theirs: Any) -> None:
    actual, expected = ours.to_dict(), theirs.to_dict()
    assert set(actual) - set(expected) == EXTRAS
    assert set(expected) <= set(actual)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert isinstance(actual[name], np.ndarray), name
            assert (actual[name].shape, actual[name].dtype) == (value.shape, value.dtype), name
        elif name.endswith("_bounds"):
            assert isinstance(actual[name], tuple) and len(actual[name]) == 2
            for bound, theirs_bound in zip(actual[name], value, strict=True):
                np.testing.assert_array_equal(bound, theirs_bound, name)
        elif name.endswith("_labels"):
            assert actual[name] == [str(label) for label in value], name
        elif isinstance(value, float):
            assert isinstance(actual[name], float), name
        else:
            assert type(actual[name]) is type(value), name


def test_attributes_have_the_values_of_pyblp(ours: Any, theirs: Any) -> None:
    expected = theirs.to_dict()
    for name in sorted(set(expected) - {"hessian", "reduced_hessian", "reduced_hessian_eigenvalues"}):
        if not NOT_COMPARED.search(name):
            FIXED_PARAMETERS.check(getattr(ours, name), expected[name], name)


def test_to_dict_takes_the_attributes_that_are_asked_for(ours: Any) -> None:
    assert list(ours.to_dict(["theta", "objective"])) == ["theta", "objective"]
    with pytest.raises(AttributeError, match="costs"):
        ours.to_dict(["costs"])


def test_parameters_are_labelled(ours: Any, theirs: Any) -> None:
    assert ours.parameter_labels == [*map(str, theirs.theta_labels), *theirs.beta_labels]
    assert ours.parameter_labels[:4] == ["1 x 1", "prices x prices", "x x prices", "x x x"]


def test_the_table_is_that_of_pyblp(ours: Any, theirs: Any) -> None:
    """Times and counts of the inner loop aside, and the Hessian, which PyBLP approximates."""

    def tokens(results: Any) -> list[str]:
        text = re.sub(r"\d\d:\d\d:\d\d", "TIME", str(results))
        iterations, evaluations = results.cumulative_fp_iterations.sum(), results.contraction_evaluations.sum()
        text = re.sub(rf"{iterations}\s+{evaluations}\b", "COUNTS", text)
        for value in (results.reduced_hessian_eigenvalues.min(), results.reduced_hessian_eigenvalues.max()):
            text = text.replace(f"{value:+.6E}", "EIGENVALUE")
        return text.split()

    assert tokens(ours) == tokens(theirs)
    assert "EIGENVALUE" in tokens(ours) and "COUNTS" in tokens(ours)
    assert repr(ours) == str(ours)


def test_estimates_are_a_table_by_parameter(ours: Any) -> None:
    frame = ours.estimates()
    assert frame.parameter.tolist() == ours.parameter_labels
    assert list(frame.columns) == ["block", "parameter", "estimate", "se", "t", "p_value", "lower", "upper"]
    assert frame.block.tolist() == ours.parameter_blocks
    np.testing.assert_array_equal(frame.estimate, ours.parameters[:, 0])
    ROUNDING.check(frame.se[-4:], ours.beta_se[:, 0])


# steps


def test_steps_are_chained(steps: Any, their_steps: Any) -> None:
    chain, expected = [steps], [their_steps]
    while chain[-1].last_results is not None:
        chain.append(chain[-1].last_results)
        expected.append(expected[-1].last_results)
    assert [step.step for step in chain] == [step.step for step in expected] == [2, 1, 0]
    assert all(step.problem is steps.problem for step in chain)
    for step, same in zip(chain, expected, strict=True):
        for name in ("objective", "W", "updated_W", "beta", "theta", "gradient"):
            FIXED_PARAMETERS.check(getattr(step, name), getattr(same, name), f"{name} of step {step.step}")
    np.testing.assert_array_equal(chain[0].W, chain[1].updated_W)


def test_only_the_last_step_has_standard_errors(steps: Any, their_steps: Any) -> None:
    for name in ("sigma_se", "sigma_squared_se", "pi_se", "beta_se", "parameter_covariances"):
        FIXED_PARAMETERS.check(getattr(steps, name), getattr(their_steps, name), name)
        first, expected = getattr(steps.last_results, name), getattr(their_steps.last_results, name)
        assert np.isnan(first).all() and first.shape == expected.shape
    assert np.isnan(steps.last_results.estimates().se).all()
    assert "NAN" in str(steps.last_results)


def test_counters_accumulate_over_steps(steps: Any) -> None:
    first, second = steps.last_results.last_results, steps.last_results
    T = steps.problem.T
    for name in ("fp_iterations", "fp_converged", "contraction_evaluations"):
        columns = [getattr(step, name) for step in (first, second, steps)]
        assert all(column.shape == (T, 1) for column in columns)
        np.testing.assert_array_equal(getattr(steps, f"cumulative_{name}"), np.hstack(columns))
    for name in ("objective_evaluations", "optimization_iterations", "total_time", "optimization_time"):
        values = [getattr(step, name) for step in (first, second, steps)]
        assert getattr(steps, f"cumulative_{name}") == pytest.approx(sum(values))
    assert steps.cumulative_objective_evaluations == 3 and steps.cumulative_converged is True


# outputs


#: PyBLP has no demand Jacobian in delta.
OUTPUTS = [(o, n) for o in ("elasticities", "diversion_ratios", "demand_jacobians") for n in NAMES][:-1]


@pytest.mark.parametrize("market_id", MARKETS)
@pytest.mark.parametrize(("output", "name"), OUTPUTS)
def test_matrices_are_those_of_pyblp(ours: Any, theirs: Any, output: str, name: str | None, market_id: Any) -> None:
    with quiet():
        expected = getattr(theirs, f"compute_{output}")(name, market_id)
    actual = getattr(ours, f"compute_{output}")(name, market_id)
    if output == "diversion_ratios":
        expected = documented_diversion(theirs, name, market_id, expected)
    FIXED_PARAMETERS.check(actual, expected)
    assert np.isnan(actual).any() == (market_id is None)


def documented_diversion(theirs: Any, name: str | None, market_id: Any, expected: np.ndarray) -> np.ndarray:
    """Diversion as PyBLP documents it.

    It divides ``ds_j / dx_k`` by ``ds_j / dx_j``. That is the documented ``(ds_k / dx_j) / (ds_j / dx_j)`` where x
    enters the utility of all products in the same way, but not with log(prices) and prices:x.
    """
    if name in (None, "w"):
        return expected
    with quiet():
        jacobians = theirs.compute_demand_jacobians(name)
    ratios = np.full_like(jacobians, np.nan)
    for market in theirs.problem.unique_market_ids:
        rows = np.flatnonzero(theirs.problem.products.market_ids[:, 0] == market)
        J = jacobians[rows, : rows.size]
        block = -J.T / np.diag(J)[:, None]
        block[np.diag_indices(rows.size)] = J.sum(axis=0) / np.diag(J)
        ratios[rows, : rows.size] = block
    rows = theirs.problem.products.market_ids[:, 0] == market_id
    return ratios if market_id is None else ratios[rows][:, : rows.sum()]


def test_the_demand_jacobian_in_delta(ours: Any) -> None:
    jacobians = ours.compute_demand_jacobians(None)
    elasticities = ours.compute_elasticities(None)
    for market, rows in zip(ours.problem.unique_market_ids, ours.problem.market_index.rows, strict=True):
        block = jacobians[rows, : rows.size]
        LINEAR_ALGEBRA.check(block, block.T, f"symmetry in market {market}")
        scaled = block * ours.delta[rows].T / ours.compute_shares()[rows]
        LINEAR_ALGEBRA.check(elasticities[rows, : rows.size], scaled)


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "prices": {"prices": 1.1},
    "delta": {"delta": 0.3},
    "agents": {"agent_data": True},
    "rule": {"agent_data": True, "integration": True},
    "all": {"prices": 0.9, "agent_data": True, "integration": True},
    "prices and delta": {"prices": 1.1, "delta": 0.3},
}


def changed(library: Any, results: Any, change: dict[str, Any], market_id: Any) -> dict[str, Any]:
    """Arguments for all products or, with a market, for those of the market."""
    products, agents = small_tables()
    inside = np.full(len(products), True) if market_id is None else products.market_ids.to_numpy() == market_id
    arguments = {}
    if "prices" in change:
        arguments["prices"] = change["prices"] * products.prices.to_numpy()[inside]
    if "delta" in change:
        arguments["delta"] = (results.delta + change["delta"])[inside]
    if "agent_data" in change:
        people = agents.query("agent_ids != 'a3'")
        if "integration" in change:  # PyBLP wants as many rows as are built, in their order
            people = agents.sort_values("market_ids").groupby("market_ids").head(4)
        arguments["agent_data"] = people.assign(income=0.5 * people.income + 0.1)
    if "integration" in change:
        arguments["integration"] = library.Integration("monte_carlo", 4, {"seed": 3})
    return arguments


@pytest.mark.parametrize("market_id", [None, "m002"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("output", ["shares", "probabilities"])
@pytest.mark.filterwarnings("ignore:agent_data. column 'weights':blpjax.exceptions.DataWarning")
def test_shares_and_probabilities_are_those_of_pyblp(
    ours: Any, theirs: Any, output: str, change: dict[str, Any], market_id: Any
) -> None:
    with quiet():
        expected = getattr(theirs, f"compute_{output}")(
            market_id=market_id, **changed(pyblp, theirs, change, market_id)
        )
    actual = getattr(ours, f"compute_{output}")(market_id=market_id, **changed(blpjax, ours, change, market_id))
    FIXED_PARAMETERS.check(actual, expected)


@pytest.mark.parametrize(
    ("change", "market_id"),
    [
        ("nothing", None),
        ("rule", "m002"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("nothing", "m002"), ("agents", None), ("agents", "m002"), ("rule", None))
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:agent_data. column 'weights':blpjax.exceptions.DataWarning")
def test_mean_utilities_are_those_of_pyblp(ours: Any, theirs: Any, change: str, market_id: Any) -> None:
    options = {"iteration": ("squarem", {"atol": 1e-14}), "market_id": market_id}
    found = []
    for library, results in ((pyblp, theirs), (blpjax, ours)):
        with quiet():
            arguments = changed(library, results, CHANGES[change], market_id)
            iteration = library.Iteration(*options["iteration"])
            found.append(results.compute_delta(iteration=iteration, market_id=market_id, **arguments))
    DELTA.check(found[1], found[0])


def test_the_demand_jacobian_is_the_slope_of_shares(ours: Any) -> None:
    """Prices stand in X1 as log(prices) and prices:x, and in X2."""
    prices = ours.problem.products.prices[:, 0]
    jacobians = ours.compute_demand_jacobians()
    step = 1e-6
    for rows in ours.problem.market_index.rows[:3]:
        for position, row in enumerate(rows):
            h = step * np.eye(len(prices))[row]
            difference = ours.compute_shares(prices + h) - ours.compute_shares(prices - h)
            CENTRAL_DIFFERENCE.check(jacobians[rows, position], difference[rows, 0] / (2 * step))


def test_at_the_estimates_shares_are_the_observed_ones(ours: Any) -> None:
    DELTA.check(ours.compute_shares(), ours.problem.products.shares)
    DELTA.check(ours.compute_delta(iteration=SQUAREM), ours.delta)
    assert not ours.clipped_shares.any()


def test_diversion_sums_to_one(ours: Any) -> None:
    for name in NAMES:
        LINEAR_ALGEBRA.check(np.nansum(ours.compute_diversion_ratios(name), axis=1), np.ones(ours.problem.N))


def test_diagonals_and_their_means_are_those_of_pyblp(ours: Any, theirs: Any) -> None:
    with quiet():
        matrices = theirs.compute_elasticities()
        for market_id in ("m002", "m004", None):
            given = matrices if market_id is None else theirs.compute_elasticities(market_id=market_id)
            for method in ("extract_diagonals", "extract_diagonal_means"):
                expected = getattr(theirs, method)(given, market_id)
                ROUNDING.check(getattr(ours, method)(given, market_id), expected, f"{method} of {market_id}")


# labelled tables


def test_matrices_as_tables_hold_the_numbers_of_the_arrays(ours: Any) -> None:
    products = small_tables()[0]
    for method, column in [
        ("compute_elasticities", "elasticity"),
        ("compute_demand_jacobians", "derivative"),
        ("compute_diversion_ratios", "diversion_ratio"),
    ]:
        frame, array = getattr(ours, method)(as_frame=True), getattr(ours, method)()
        assert list(frame.columns) == ["market_ids", "row_product", "column_product", column]
        assert len(frame) == np.isfinite(array).sum() == (products.groupby("market_ids").size() ** 2).sum()
        assert frame[column].notna().all()
        keyed = frame.set_index(["market_ids", "row_product", "column_product"])[column]
        for _, market in products.groupby("market_ids"):
            for i, row in market.iterrows():
                for k, other in enumerate(market.itertuples()):
                    assert keyed[row.market_ids, row.product_ids, other.product_ids] == array[i, k]
        one = getattr(ours, method)(market_id="m002", as_frame=True)
        pd.testing.assert_frame_equal(one, frame[frame.market_ids == "m002"].reset_index(drop=True), check_exact=False)


def test_vectors_as_tables_hold_the_numbers_of_the_arrays(ours: Any) -> None:
    products = small_tables()[0]
    for method, column, options in [
        ("compute_shares", "share", {}),
        ("compute_delta", "delta", {"iteration": SQUAREM}),
    ]:
        frame = getattr(ours, method)(as_frame=True, **options)
        pd.testing.assert_series_equal(frame.market_ids, products.market_ids, check_dtype=False)
        assert frame["product"].tolist() == products.product_ids.tolist()
        ROUNDING.check(frame[column], getattr(ours, method)(**options)[:, 0])
        assert len(getattr(ours, method)(market_id="m002", as_frame=True, **options)) == 2


def test_probabilities_as_a_table_hold_the_numbers_of_the_array(ours: Any) -> None:
    products, agents = small_tables()
    frame, array = ours.compute_probabilities(as_frame=True), ours.compute_probabilities()
    assert len(frame) == np.isfinite(array).sum()
    keyed = frame.set_index(["market_ids", "product", "agent"]).probability
    for i, row in products.iterrows():
        for k, agent in enumerate(agents.agent_ids[agents.market_ids == row.market_ids]):
            assert keyed[row.market_ids, row.product_ids, agent] == array[i, k]


# bad arguments


def test_unknown_variables_are_named(ours: Any) -> None:
    for method in ("elasticities", "demand_jacobians", "diversion_ratios"):
        with pytest.raises(NameError, match="No formula has a numeric variable 'income'.*prices, w, x"):
            getattr(ours, f"compute_{method}")("income")
        with pytest.raises(NameError, match="numeric variable '1'"):
            getattr(ours, f"compute_{method}")("1")


def test_unknown_markets_are_named(ours: Any) -> None:
    elasticities = ours.compute_elasticities()
    for method in ("elasticities", "demand_jacobians", "diversion_ratios", "shares", "probabilities", "delta"):
        with pytest.raises(ValueError, match=r"There is no market 'C01'. Markets are 'm000', 'm001', .*'m007'\."):
            getattr(ours, f"compute_{method}")(market_id="C01")
    for method in ("extract_diagonals", "extract_diagonal_means"):
        with pytest.raises(ValueError, match="There is no market 3"):
            getattr(ours, method)(elasticities, 3)


@pytest.mark.parametrize("output", ["shares", "probabilities"])
def test_prices_and_delta_of_wrong_sizes_are_refused(ours: Any, output: str) -> None:
    compute = getattr(ours, f"compute_{output}")
    with pytest.raises(ValueError, match="prices must hold 32 numbers, one for each product, not 31"):
        compute(prices=np.ones(31))
    with pytest.raises(ValueError, match="delta must hold 2 numbers, one for each product, not 32"):
        compute(delta=np.ones(32), market_id="m002")
    with pytest.raises(ValueError, match="prices must be an array of finite numbers"):
        compute(prices=["dear"] * 32)
    with pytest.raises(ValueError, match="delta must be an array of finite numbers"):
        compute(delta=np.full(32, np.nan))


def test_matrices_of_wrong_shapes_are_refused(ours: Any) -> None:
    for method in (ours.extract_diagonals, ours.extract_diagonal_means):
        with pytest.raises(ValueError, match=r"matrices must have the shape \(32, 6\).*not \(32, 5\)"):
            method(np.zeros((32, 5)))
        with pytest.raises(ValueError, match=r"\(2, 2\).*not \(32, 6\)"):
            method(np.zeros((32, 6)), "m002")


@pytest.mark.slow
def test_mean_utilities_do_not_depend_on_the_type_of_contraction(ours: Any) -> None:
    nonlinear = ours.compute_delta(fp_type="safe_nonlinear", shares_bounds=(1e-10, None))
    DELTA.check(nonlinear, ours.delta)


def test_wrong_types_of_contractions_are_refused(ours: Any) -> None:
    with pytest.raises(ValueError, match="fp_type must be one of"):
        ours.compute_delta(fp_type="quadratic")
    with pytest.raises(ValueError, match="shares_bounds must be a pair"):
        ours.compute_delta(shares_bounds=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"needs a method that iterates on the plain contraction.*'newton'"):
        ours.compute_delta(fp_type="nonlinear", iteration=blpjax.Iteration("newton"))


def test_an_inversion_that_fails_names_its_markets(ours: Any) -> None:
    with pytest.raises(DeltaConvergenceError, match="reached the maximum number of evaluations in 8 of 8 markets"):
        ours.compute_delta(
            agent_data=small_tables()[1].assign(income=2.0),
            iteration=blpjax.Iteration("squarem", {"max_evaluations": 3}),
        )


def test_agents_without_the_right_columns_are_refused(ours: Any) -> None:
    agents = small_tables()[1]
    with pytest.raises(blpjax.exceptions.DataError, match="agent_data: .*income"):
        ours.compute_shares(agent_data=agents.drop(columns="income"))
    with pytest.raises(blpjax.exceptions.DataError, match="no agents in 1 market: 'm002'"):
        ours.compute_probabilities(agent_data=agents[agents.market_ids != "m002"])
    with pytest.raises(blpjax.exceptions.DataError, match="nodes have 2 columns, but 3 columns of sigma"):
        ours.compute_delta(agent_data=agents.drop(columns="nodes2"))


# tests of restrictions


@pytest.mark.slow
def test_other_agents_need_nodes_only_where_sigma_is_not_zero() -> None:
    problem, agents = build(blpjax), small_tables()[1]
    with quiet():
        results = problem.solve(
            np.diag([0.0, 0.2, 0.3]),
            PI,
            method="1s",
            optimization=blpjax.Optimization("return"),
            iteration=SQUAREM,
            check_optimality="gradient",
        )
    renamed = agents.drop(columns="nodes0").rename(columns={"nodes1": "nodes0", "nodes2": "nodes1"})
    ROUNDING.check(results.compute_shares(agent_data=renamed), results.compute_shares())
    DELTA.check(results.compute_delta(agent_data=renamed, iteration=SQUAREM), results.delta)
    with pytest.raises(blpjax.exceptions.DataError, match="nodes have 1 column, but 2 columns of sigma"):
        results.compute_shares(agent_data=renamed.drop(columns="nodes1"))


def test_statistics_are_those_of_pyblp(steps: Any, their_steps: Any) -> None:
    FIXED_PARAMETERS.check(steps.run_hansen_test(), their_steps.run_hansen_test())
    FIXED_PARAMETERS.check(steps.run_lm_test(), their_steps.run_lm_test())
    R = np.eye(2, len(steps.parameters))
    with quiet():
        for restrictions, jacobian in ((steps.parameters[:2], R), (steps.parameters[0], R[:1])):
            expected = their_steps.run_wald_test(restrictions, jacobian)
            FIXED_PARAMETERS.check(steps.run_wald_test(restrictions, jacobian), expected)
    difference = steps.run_distance_test(steps.last_results)
    assert difference == pytest.approx(float(steps.objective - steps.last_results.objective))


@pytest.mark.usefixtures("unchecked_types")
def test_restrictions_of_wrong_shapes_are_refused(steps: Any) -> None:
    Q = len(steps.parameters)
    with pytest.raises(ValueError, match="restrictions"):
        steps.run_wald_test([0.0, 0.0], np.eye(1, Q))
    with pytest.raises(ValueError, match="jacobian"):
        steps.run_wald_test([0.0], np.eye(1, Q - 1))
    with pytest.raises(TypeError, match="unrestricted must be a ProblemResults"):
        steps.run_distance_test(3.0)


# other problems


def test_the_logit_has_pyblps_attributes_and_tables(logit: tuple[Any, Any]) -> None:
    ours, theirs = logit
    texts = [re.sub(r"\d\d:\d\d:\d\d", "TIME", str(results)).split() for results in logit]
    assert texts[0] == texts[1]
    expected = theirs.to_dict()
    for name, value in ours.to_dict().items():
        if isinstance(value, np.ndarray) and name in expected:
            assert (value.shape, value.dtype) == (expected[name].shape, expected[name].dtype), name
            if not NOT_COMPARED.search(name):
                FIXED_PARAMETERS.check(value, expected[name], name)
    with quiet():
        FIXED_PARAMETERS.check(ours.compute_elasticities(), theirs.compute_elasticities())
        FIXED_PARAMETERS.check(ours.compute_probabilities(), theirs.compute_probabilities())
        FIXED_PARAMETERS.check(ours.compute_delta(), theirs.compute_delta())


@pytest.fixture(scope="module")
def logit() -> tuple[Any, Any]:
    found = []
    for library in (blpjax, pyblp):
        with quiet():
            problem = library.Problem(library.Formulation("0 + prices + x", absorb="C(firm_ids)"), small_tables()[0])
            found.append(problem.solve(method="2s", W_type="clustered", se_type="clustered"))
    return found[0], found[1]


def test_fixed_effects_are_what_parameters_leave(logit: tuple[Any, Any]) -> None:
    """The effect of a firm is the same for all its products."""
    ours, theirs = logit
    FIXED_PARAMETERS.check(ours.xi_fe, theirs.xi_fe)
    frame = pd.DataFrame({"firm": small_tables()[0].firm_ids, "effect": ours.xi_fe[:, 0]})
    assert frame.groupby("firm").effect.std().max() < 1e-12
    assert len(frame.effect.round(9).unique()) == 3


def test_fixed_parameters_have_no_standard_errors() -> None:
    """Zeros, and elements with equal bounds, as in PyBLP."""
    bounds = (np.full((3, 3), -np.inf), np.full((3, 3), np.inf))
    bounds[0][0, 0] = bounds[1][0, 0] = SIGMA[0, 0]
    found = []
    for library in (blpjax, pyblp):
        problem = build(library)
        found.append(evaluate(problem, library, sigma_bounds=bounds, beta=[None, -2.0, None, 0.0]))
    ours, theirs = found
    assert ours.theta_labels == [str(label) for label in theirs.theta_labels]
    for name in (
        "theta",
        "parameters",
        "sigma",
        "sigma_se",
        "sigma_squared_se",
        "pi_se",
        "beta",
        "beta_se",
        "gradient",
    ):
        FIXED_PARAMETERS.check(getattr(ours, name), getattr(theirs, name), name)
    assert np.isnan(ours.sigma_se[0, 0]) and np.isnan(ours.beta_se[3, 0]) and np.isfinite(ours.beta_se[1, 0])
    assert ours.pi.shape == PI.shape


def test_results_do_not_warn_when_they_are_printed(ours: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "Beta Estimates" in str(ours)
