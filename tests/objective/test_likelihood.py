"""Likelihoods of surveys and shares: next to loops, differences, GMM, and the estimates of another implementation."""

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import blpjax
import blpjax.economy.respondents
from blpjax.estimation import likelihood as estimation
from blpjax.estimation.likelihood import evaluate_likelihood, exact_hessian
from blpjax.exceptions import (
    ConvergenceWarning,
    DataError,
    IdentificationError,
    IdentificationWarning,
    UnusedOptionWarning,
)
from blpjax.inputs.likelihood import ESTIMATORS
from blpjax.iteration import Iteration
from blpjax.objective.likelihood import Likelihood
from blpjax.objective.likelihood_data import build_likelihood
from blpjax.objective.likelihood_inference import Blocks
from blpjax.objective.programs import on_host
from tests.support import consumers
from tests.support.consumers import PI, SIGMA, SIZES, likelihood, logs, problem, restriction, tables
from tests.support.designs import mostly_slow
from tests.support.economies import in_several_buckets
from tests.support.silence import quiet
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, ESTIMATES, LINEAR_ALGEBRA, ROUNDING, Tolerance

pytestmark = pytest.mark.usefixtures("quiet")

THETA = np.array([0.9, 0.4, -0.3])

#: The reference has as many digits as its implementation's stopping rules are worth.
JOINT, ESTIMATED = Tolerance(0, 1e-6), Tolerance(0, 1e-5)


def objective(given: Any = None, known: Any = None) -> Likelihood:
    """The objective as a function of theta and of where mean utilities start."""
    data = (problem() if known is None else known).data
    parameters = problem().read_parameters(SIGMA, PI, None, None, None, {})
    return build_likelihood(data, parameters, likelihood() if given is None else given, Iteration())[0]


@cache
def evaluation(estimator: str) -> Any:
    return jax.device_get(evaluate(objective(likelihood(estimator)), THETA))


def evaluate(function: Likelihood, theta: np.ndarray, delta: Any = None) -> Any:
    start = problem().closed_form_delta() if delta is None else delta
    return evaluate_likelihood(function, jnp.asarray(theta), jnp.asarray(start))


def solve(estimator: str = "cler", given: Any = None, known: Any = None, **options: Any) -> Any:
    chosen = likelihood(estimator) if given is None else given
    return (problem() if known is None else known).solve(SIGMA, PI, likelihood=chosen, **options)


@cache
def solved(estimator: str) -> Any:
    with quiet():
        return solve(estimator)


# values


@pytest.mark.parametrize("estimator", mostly_slow([*ESTIMATORS], ["cler"]))
def test_values_are_those_of_loops(estimator: str) -> None:
    found = evaluation(estimator)
    micro, macro = logs(THETA, found.inversion.delta)
    penalty = restriction(found.inversion.delta)[0]
    expected = {"cler": micro + macro + penalty, "cheap": micro + macro + penalty, "mdle": micro + macro}
    LINEAR_ALGEBRA.check(found.objective, expected.get(estimator, micro))
    assert bool(found.ok)
    if estimator == "share-constrained":
        assert macro < 1e-9


@pytest.mark.parametrize("estimator", mostly_slow(["cler", "cheap", "mdle"], ["cler"]))
def test_mean_utilities_are_optimal(estimator: str) -> None:
    delta = evaluation(estimator).inversion.delta

    def inner(delta: np.ndarray) -> float:
        return sum(logs(THETA, delta)) + (restriction(delta)[0] if estimator == "cler" else 0.0)

    best = inner(delta)
    slopes = [(inner(delta + step) - inner(delta - step)) / 2e-4 for step in 1e-4 * np.eye(delta.size)]
    np.testing.assert_allclose(slopes, 0.0, atol=1e-4)
    assert all(inner(delta + step) > best for step in 0.01 * np.eye(delta.size))


@pytest.mark.parametrize("estimator", mostly_slow([*ESTIMATORS], ["cler"]))
def test_derivatives_are_those_of_differences(estimator: str) -> None:
    function, found = objective(likelihood(estimator)), evaluation(estimator)
    ends = [[evaluate(function, THETA + sign * step) for sign in (1, -1)] for step in 1e-5 * np.eye(3)]
    differences = [(float(up.objective) - float(down.objective)) / 2e-5 for up, down in ends]
    CENTRAL_DIFFERENCE.check(found.gradient, differences, "gradient")
    slopes = [(np.asarray(up.inversion.delta) - np.asarray(down.inversion.delta)) / 2e-5 for up, down in ends]
    CENTRAL_DIFFERENCE.check(found.delta_by_theta, np.transpose(slopes), "delta")
    curvature = [(np.asarray(up.gradient) - np.asarray(down.gradient)) / 2e-5 for up, down in ends]
    CENTRAL_DIFFERENCE.check(exact_hessian(function, THETA, found), curvature, "hessian")


@pytest.mark.slow
def test_residuals_lead_newton_steps() -> None:
    found = solved("cler")._result.outcome.evaluation
    r, J, count = found.residuals, found.residual_jacobian, max(len(tables()[2]), problem().N)
    LINEAR_ALGEBRA.check(count * r @ r, found.objective)
    LINEAR_ALGEBRA.check(2 * count * J.T @ r, found.gradient)
    LINEAR_ALGEBRA.check(2 * count * J.T @ J, found.hessian)


# tables


@pytest.mark.slow
def test_groups_of_respondents_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blpjax.economy.respondents, "SMALLEST_GROUP", 1)
    monkeypatch.setattr(blpjax.economy.respondents, "GROUP_PAIRS", 60)
    function = objective()
    assert all(part.chosen.shape[1] < 17 for part in function.people)
    found = evaluate(function, THETA)
    ROUNDING.check(found.objective, evaluation("cler").objective)
    LINEAR_ALGEBRA.check(found.hessian, evaluation("cler").hessian)


@pytest.mark.slow
@pytest.mark.usefixtures("several_buckets_here")
def test_buckets_change_nothing() -> None:
    known = consumers.build(*tables()[:2])
    assert len(known.economy.buckets) > 1
    found, expected = evaluate(objective(known=known), THETA), evaluation("cler")
    ROUNDING.check(found.objective, expected.objective)
    DELTA.check(found.inversion.delta, expected.inversion.delta)
    LINEAR_ALGEBRA.check(found.hessian, expected.hessian)


def test_systems_of_markets_do_not_depend_on_how_these_are_padded() -> None:
    """Files hold them, and another version may pad markets otherwise."""
    together = on_host(consumers.build(*tables()[:2]).economy)
    with in_several_buckets():
        apart = on_host(consumers.build(*tables()[:2]).economy)
    assert len(apart.buckets) > len(together.buckets)
    N = len(together.positions)
    rng = np.random.default_rng(0)
    shapes = [bucket.shares.shape for bucket in together.buckets]
    rows = together.stack([3 * np.eye(J) + rng.uniform(size=(T, J, J)) for T, J in shapes])
    right = rng.normal(size=(N, 2))
    known = Blocks.from_rows(together, rows)
    other = Blocks.from_rows(apart, known.rows())
    for found in (other, Blocks.from_rows(together, other.rows())):
        LINEAR_ALGEBRA.check(found.solve(right), known.solve(right))
        LINEAR_ALGEBRA.check(found.inverse_diagonal(), known.inverse_diagonal())


def test_choices_may_be_product_ids_and_rows_in_any_order() -> None:
    people = tables()[2].sample(frac=1, random_state=9)
    by_name = people.rename(columns={"chosen": "product_ids"}).drop(columns="choice_indices")
    found = evaluate(objective(likelihood(micro_data=by_name)), THETA)
    ROUNDING.check(found.objective, evaluation("cler").objective)


def test_sizes_may_be_a_column_or_a_number() -> None:
    by_column = objective(likelihood(market_sizes="sizes"))
    for found, expected in zip(by_column.others, objective().others, strict=True):
        ROUNDING.check(found.counts, expected.counts)
    same = dict.fromkeys(SIZES, 500)
    for found, expected in zip(
        objective(likelihood(market_sizes=500)).others, objective(likelihood(market_sizes=same)).others, strict=True
    ):
        ROUNDING.check(found.counts, expected.counts)


@pytest.mark.slow
def test_respondents_may_have_draws_of_their_own() -> None:
    draws = blpjax.Integration("monte_carlo", 40, {"seed": 0})
    function = objective(likelihood(integration=draws))
    assert [part.nodes.shape[1:] for part in function.people] == [
        (part.chosen.shape[1], 40, 1) for part in function.people
    ]
    found = float(evaluate(function, THETA).objective)
    assert 0 < abs(found - float(evaluation("cler").objective)) < 2


# estimates


@pytest.mark.parametrize("estimator", mostly_slow([*ESTIMATORS], ["cler"]))
def test_estimates_are_optimal_and_reported(estimator: str) -> None:
    found = solved(estimator)
    assert found.converged and found.projected_gradient_norm < 1e-6
    assert (found.reduced_hessian_eigenvalues > -1e-9).all()
    _, beta, xi = restriction(found.delta[:, 0])
    LINEAR_ALGEBRA.check(found.beta[:, 0], beta)
    LINEAR_ALGEBRA.check(found.xi[:, 0], xi)
    assert found.parameter_covariances.shape == (6, 6) and np.isfinite(found.delta_se).all()
    table = found.estimates()
    assert list(table.parameter) == found.parameter_labels
    assert "Likelihood SEs" in str(found) and "GMM" not in str(found)


@pytest.mark.slow
def test_standard_errors_are_those_of_dense_matrices() -> None:
    for estimator in ("cler", "cheap", "mdle"):
        found = solved(estimator)
        H, K, N = dense_hessian(estimator), dense_restrictions(estimator), problem().N
        xi = found.xi[:, 0]
        v = float(xi @ xi) / N
        A = np.linalg.inv(H + K @ K.T)
        V = A @ (H + v * K @ (K.T @ K) @ K.T) @ A
        products = tables()[0]
        X = np.c_[np.ones(N), products.prices, products.x]
        Z = np.c_[X[:, [0, 2]], products[[f"demand_instruments{k}" for k in range(3)]]]
        fitted = Z @ np.linalg.lstsq(Z, X, rcond=None)[0]
        Xi = np.linalg.solve(fitted.T @ fitted, fitted.T)
        joint = np.block([[V[:3, :3], V[:3, 3:] @ Xi.T], [Xi @ V[3:, :3], v * Xi @ Xi.T + Xi @ V[3:, 3:] @ Xi.T]])
        loose = Tolerance(1e-5, 1e-6)
        loose.check(found.parameter_covariances / N, joint, estimator)
        loose.check(found.delta_se[:, 0], np.sqrt(np.diag(V)[3:]), estimator)
        loose.check(found.joint_covariances()[6:, 6:], V[3:, 3:], estimator)


def dense_hessian(estimator: str) -> np.ndarray:
    """Second derivatives of log likelihoods in (theta, delta) by differences of loops' values."""
    found = solved(estimator)
    function = objective(likelihood(estimator))
    information = jax.device_get(function.information(jnp.asarray(found.theta), jnp.asarray(found.delta[:, 0])))
    P, N = 3, problem().N
    H = np.zeros((P + N, P + N))
    H[:P, :P], H[P:, :P], H[:P, P:] = information.theta_hessian, information.cross, information.cross.T
    at = np.r_[found.theta, found.delta[:, 0]]

    def value(point: np.ndarray) -> float:
        return sum(logs(point[:P], point[P:]))

    steps, size, markets = np.eye(P + N) * 1e-3, 1e-3, tables()[0].market_ids
    for i in range(P, P + N):
        for j in range(P, i + 1):
            if markets[i - P] != markets[j - P]:  # whose log likelihoods have nothing in common
                continue
            ends = [value(at + a * steps[i] + b * steps[j]) * a * b for a in (1, -1) for b in (1, -1)]
            H[i, j] = H[j, i] = sum(ends) / (4 * size**2)
    return H


def dense_restrictions(estimator: str) -> np.ndarray:
    K = np.asarray(objective(likelihood(estimator)).restrictions)
    return np.concatenate([np.zeros((3, K.shape[1])), K])


def test_restrictions_are_those_of_projections() -> None:
    K, delta = np.asarray(objective(likelihood(sigma2=0.3)).restrictions), np.random.default_rng(0).normal(size=14)
    assert K.shape == (14, 2)
    LINEAR_ALGEBRA.check(0.5 * delta @ K @ K.T @ delta, restriction(delta, sigma2=0.3)[0])
    LINEAR_ALGEBRA.check(K.T @ K, np.eye(2) / 0.3)


@pytest.mark.slow
def test_without_overidentification_restrictions_change_nothing() -> None:
    products = tables()[0].drop(columns=["demand_instruments1", "demand_instruments2"])
    known = consumers.build(products, tables()[1])
    cler, mdle = (solve(estimator, known=known) for estimator in ("cler", "mdle"))
    ESTIMATES.check(cler.theta, mdle.theta)
    ESTIMATES.check(cler.parameter_covariances, mdle.parameter_covariances)


@pytest.mark.slow
def test_large_populations_make_shares_constraints() -> None:
    large = {market: 1e4 * size for market, size in SIZES.items()}
    found = solve("mdle", likelihood("mdle", market_sizes=large))
    constrained = solve("share-constrained", likelihood("share-constrained", market_sizes=large))
    Tolerance(1e-4, 1e-5).check(found.theta, constrained.theta)
    Tolerance(1e-4, 1e-5).check(found.delta, constrained.delta)
    Tolerance(1e-3, 1e-4).check(found.parameter_covariances, constrained.parameter_covariances)


@pytest.mark.slow
def test_without_a_survey_large_populations_are_gmm() -> None:
    known = problem()
    alone = blpjax.MicroLikelihood(1e10)
    sigma = np.zeros((2, 2))
    found = known.solve(sigma, [[0.0], [-0.4]], likelihood=alone)
    gmm = known.solve(sigma, [[0.0], [-0.4]], method="1s")
    Tolerance(1e-4, 1e-4).check(found.theta, gmm.theta)
    Tolerance(1e-4, 1e-4).check(found.beta, gmm.beta)
    assert found.likelihood is alone


@pytest.mark.slow
def test_fixed_effects_and_fixed_coefficients() -> None:
    products = tables()[0].assign(kind=np.arange(14) % 2)
    absorbed = solve(known=absorbing(products, "0 + prices + x", "C(kind)"))
    dummies = solve(known=absorbing(products, "0 + prices + x + C(kind)", None))
    ESTIMATES.check(absorbed.theta, dummies.theta)
    ESTIMATES.check(absorbed.beta_se, dummies.beta_se[:2])
    fixed = solve(beta=[np.nan, -1.2, np.nan], beta_bounds=([None, -1.2, None], [None, -1.2, None]))
    moved = consumers.build(tables()[0], tables()[1])
    assert fixed.beta[1, 0] == -1.2 and np.isnan(fixed.beta_se[1, 0]) and moved.N == 14


def absorbing(products: pd.DataFrame, formula: str, absorb: str | None) -> blpjax.Problem:
    formulas = (blpjax.Formulation(formula, absorb=absorb), blpjax.Formulation("1 + x"))
    return blpjax.Problem(formulas, products, blpjax.Formulation("0 + income"), tables()[1])


def test_other_optimisers_find_the_same() -> None:
    found = solve(optimization=blpjax.Optimization("l-bfgs-b", {"gtol": 1e-8, "ftol": 1e-14}))
    Tolerance(1e-4, 1e-5).check(found.theta, solved("cler").theta)
    returned = solve(optimization=blpjax.Optimization("return"))
    np.testing.assert_array_equal(returned.theta, [1.0, 0.5, -0.4])


@pytest.mark.parametrize("estimator", mostly_slow(["cheap", "cler", "mdle", "share-constrained"], []))
def test_routines_without_gradients_need_no_derivatives(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values alone are those that come with derivatives, which are computed once, at the estimates."""
    known, counts = solved(estimator), []
    evaluate = estimation.evaluate_likelihood
    monkeypatch.setattr(estimation, "evaluate_likelihood", lambda *given: counts.append(1) or evaluate(*given))
    chosen = blpjax.Optimization("nelder-mead", {"xatol": 1e-9, "fatol": 1e-9}, compute_gradient=False)
    found = solve(estimator, optimization=chosen)
    assert found.converged and len(counts) == 1 and found.objective_evaluations > 50
    Tolerance(1e-4, 1e-5).check(found.theta, known.theta)
    LINEAR_ALGEBRA.check(found.objective, known.objective)
    Tolerance(1e-4, 1e-5).check(found.beta_se, known.beta_se)


@pytest.mark.slow
def test_starts_lead_to_the_best_minimum() -> None:
    """From zero, where the derivative in a standard deviation vanishes, optimisation moves on."""
    found = solve(starts=[[1.0, 0.5, -0.4], [0.0, 0.0, 0.0], [2.0, -1.0, 1.0]])
    ESTIMATES.check(found.theta, solved("cler").theta)
    table = found.starts
    assert table["chosen"].sum() == 1 and (table["optimum"] == 0).all() and table["minimum"].all()
    LINEAR_ALGEBRA.check(table["objective"], np.full(3, found.objective))
    ESTIMATES.check(table["smallest_eigenvalue"][0], np.linalg.eigvalsh(found.hessian)[0])
    # evaluations that fail during a search raise no errors
    some = solve(starts=[[1.0, 300.0, 300.0], [1.0, 0.5, -0.4]], error_behavior="raise")
    assert some.starts["converged"].all() and (some.starts["optimum"] == 0).all()


def test_wrong_starts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"starts must have the shape \(number of starts, 3\)"):
        solve(starts=[[1.0, 2.0]])
    with pytest.raises(ValueError, match="starts need an optimization"):
        solve(starts=2, optimization=blpjax.Optimization("return"))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["cler", "share-constrained"])
def test_files_hold_estimates(estimator: str, tmp_path: Path) -> None:
    people = tables()[2].rename(columns={"chosen": "product_ids"}).drop(columns="choice_indices")
    found = solve(estimator, likelihood(estimator, micro_data=people))
    found.starts = pd.DataFrame({"start": [0], "status": ["one"]})
    found.save(tmp_path / "file")
    loaded = blpjax.load(tmp_path / "file")
    assert isinstance(loaded, blpjax.LikelihoodResults)
    for name in ("theta", "beta", "delta", "delta_se", "parameter_covariances", "hessian", "objective"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(found, name))
    own, other = (one.delta_method(lambda m: m.compute_shares()).standard_errors for one in (found, loaded))
    np.testing.assert_array_equal(own, other)
    assert loaded.likelihood.market_sizes == SIZES and repr(loaded.likelihood) == repr(found.likelihood)
    pd.testing.assert_frame_equal(loaded.starts, found.starts)
    with quiet():
        again = loaded.problem.solve(SIGMA, PI, likelihood=loaded.likelihood)
    ESTIMATES.check(again.theta, found.theta)


def test_what_cannot_be_evaluated_is_not_converged() -> None:
    with pytest.warns(ConvergenceWarning, match="did not converge.*mean utilities"):
        found = solve(delta=np.full(14, 1e200), optimization=blpjax.Optimization("return"))
    assert not found.converged and not np.isfinite(found.parameter_covariances).any()


def test_outputs_and_their_standard_errors() -> None:
    found = solved("cler")
    shares = found.compute_shares()
    LINEAR_ALGEBRA.check(shares, np.asarray(found.model.shares)[:, None])
    assert np.abs(shares[:, 0] - tables()[0].shares).max() > 1e-4
    with quiet():
        own = found.extract_diagonals(found.compute_elasticities())
        assert own.shape == (14, 1) and (own < 0).all()
    by_hand = found.delta_method(lambda m: m.delta)
    LINEAR_ALGEBRA.check(by_hand.standard_errors, found.delta_se[:, 0])
    prices = found.delta_method(lambda m: m.coefficients.beta)
    LINEAR_ALGEBRA.check(prices.standard_errors, found.beta_se[:, 0])
    assert np.isfinite(found.delta_method(lambda m: m.compute_shares().sum(), hold="xi").standard_errors).all()
    drawn = found.bootstrap(20, seed=0)
    assert drawn.compute_shares().shape == (20, 14, 1)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.delta_se, found.delta_se)
    assert (
        set(found.to_dict()) >= {"theta", "beta_se", "delta"} and found.run_wald_test([0.0], [[1.0] + [0.0] * 5]) == 0
    )


@pytest.mark.slow
def test_nests_are_estimated_too() -> None:
    products = tables()[0].assign(nesting_ids=lambda t: (t.x > 1).astype(int))
    known = consumers.build(products, tables()[1])
    parameters = known.read_parameters(SIGMA, PI, 0.3, None, None, {})
    function, linear, _ = build_likelihood(known.data, parameters, likelihood(), Iteration())
    start, theta = jnp.asarray(known.closed_form_delta(np.array([0.3]))), np.array([0.7, 0.4, -0.3, 0.3])
    ends = [
        [evaluate_likelihood(function, jnp.asarray(theta + s * e), start) for s in (1, -1)] for e in 1e-5 * np.eye(4)
    ]
    found = evaluate_likelihood(function, jnp.asarray(theta), start)
    assert bool(found.ok) and linear.restrictions.shape == (14, 2)
    CENTRAL_DIFFERENCE.check(found.gradient, [(float(u.objective) - float(d.objective)) / 2e-5 for u, d in ends])
    curvature = [(np.asarray(u.gradient) - np.asarray(d.gradient)) / 2e-5 for u, d in ends]
    CENTRAL_DIFFERENCE.check(found.hessian, curvature)


# what is refused


def changed(**columns: Any) -> pd.DataFrame:
    return tables()[2].drop(columns="chosen").assign(**columns)


def wrong(name: str, value: Any, row: int = 3) -> pd.DataFrame:
    people = changed()
    people[name] = people[name].astype(object)
    people.loc[row, name] = value
    return people


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"micro_data": wrong("choice_indices", 9)}, DataError, "'choice_indices' must be integers.*row 3"),
        (
            {"micro_data": wrong("market_ids", "m9")},
            DataError,
            "'market_ids' has markets that product_data lack.*'m9', row 3",
        ),
        ({"micro_data": wrong("income", np.nan)}, DataError, "micro_data.*'income'.*row 3"),
        ({"micro_data": changed().drop(columns="income")}, DataError, "micro_data.*income"),
        ({"micro_data": changed().drop(columns="choice_indices")}, DataError, "There is neither"),
        ({"micro_data": changed(product_ids="p0")}, DataError, "not in both"),
        ({"micro_data": changed(weights=2.0)}, DataError, "'weights' cannot be used.*random sample"),
        ({"micro_data": changed(second_choice_indices=1)}, DataError, "second.*micro moments"),
        ({"micro_data": changed(product_ids="p7").drop(columns="choice_indices")}, DataError, "the market lacks.*'p7'"),
        ({"integration": None}, ValueError, "needs an integration"),
        ({"market_sizes": {"m0": 1}}, DataError, "lack market 'm1'"),
        ({"market_sizes": {**SIZES, "m2": -1}}, DataError, "positive.*'m2' is -1"),
        ({"market_sizes": "x"}, DataError, "column 'x' must be the same for all products"),
        ({"market_sizes": 20}, DataError, "respondents in market 'm.' chose .* only"),
    ],
)
def test_bad_surveys_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        objective(likelihood(**options))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimator": "gmm"}, ValueError, "estimator must be one of 'cler'"),
        ({"sigma2": 0}, ValueError, "sigma2 must be a positive number"),
        ({"market_sizes": [1, 2]}, TypeError, "market_sizes must be a number, a mapping"),
        ({"market_sizes": -1}, ValueError, "market_sizes must be positive"),
        ({"integration": 7}, TypeError, "integration must be None or an Integration, not int"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_likelihoods_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        likelihood(**options)


@pytest.mark.usefixtures("unchecked_types")
def test_what_likelihoods_do_not_support_is_refused() -> None:
    for option, message in {
        "W": "There are no weighting matrices",
        "micro_sample_covariances": "There are no micro moments",
    }.items():
        with pytest.raises(NotImplementedError, match=f"{option} is not supported with a likelihood.*{message}"):
            solve(**{option: np.eye(2)})
    with pytest.raises(NotImplementedError, match="se_type is not supported"):
        solve(se_type="clustered")
    with pytest.raises(NotImplementedError, match="kappa is not supported.*supply side needs GMM"):
        solve(kappa=0.5)
    with pytest.raises(NotImplementedError, match="'prices' cannot be an element of theta"):
        solve(beta=[None, -1.0, None])
    with pytest.raises(NotImplementedError, match="sigma='auto' is not supported"):
        problem().solve("auto", PI, likelihood=likelihood())
    with pytest.raises(TypeError, match="likelihood must be a MicroLikelihood or None, not str"):
        problem().solve(SIGMA, PI, likelihood="cler")
    with pytest.raises(ValueError, match="leave out integration"):
        problem().solve(np.zeros((2, 2)), PI, likelihood=likelihood())
    with pytest.raises(IdentificationError, match="nothing to estimate theta from"):
        solve("mdle", blpjax.MicroLikelihood(1e4, estimator="mdle"))
    with pytest.raises(IdentificationError, match="moments|parameters"):
        solve(given=blpjax.MicroLikelihood(1e4))


@pytest.mark.slow
def test_iterations_are_those_of_inversions() -> None:
    with pytest.warns(UnusedOptionWarning, match="iteration has no effect.*Newton's method"):
        solve(iteration=Iteration("squarem"), optimization=blpjax.Optimization("return"))
    found = solve("share-constrained", iteration=Iteration("newton"))
    ESTIMATES.check(found.theta, solved("share-constrained").theta)


def test_other_problems_are_refused() -> None:
    products, agents, _ = tables()
    formulas = (blpjax.Formulation("1 + prices + x"), blpjax.Formulation("1 + x"), blpjax.Formulation("1 + x"))
    supply = products.assign(firm_ids=products.product_ids, supply_instruments0=products.x**2)
    with_supply = blpjax.Problem(formulas, supply, blpjax.Formulation("0 + income"), agents)
    with pytest.raises(NotImplementedError, match="supply side is not supported.*compute_costs of the results"):
        solve(known=with_supply, beta=[None, -1.0, None])
    with quiet("agent_data"):
        light = consumers.build(products, agents.assign(weights=agents.weights / 2))
    with pytest.raises(DataError, match="'weights' must sum to one.*0.5 in market 'm0'"):
        solve(known=light)
    with pytest.raises(ValueError, match="random coefficients or demographics"):
        blpjax.Problem(formulas[0], products).solve(likelihood=likelihood(integration=None))


def test_results_refuse_what_belongs_to_gmm() -> None:
    found = solved("cler")
    refused = ("run_hansen_test", "run_lm_test", "compute_optimal_instruments")
    for name in (*refused, "compute_instrument_strength", "integration_report"):
        with pytest.raises(NotImplementedError, match=f"{name} is not supported for estimates by likelihood"):
            getattr(found, name)()
    with pytest.raises(NotImplementedError, match="run_distance_test"):
        found.run_distance_test(found)
    models = {"Bertrand": blpjax.Bertrand(), "monopoly": blpjax.Monopoly()}
    with pytest.raises(NotImplementedError, match="by likelihood: mean utilities.* Use demand_adjustment=False"):
        found.test_conduct(models, blpjax.Formulation("1"), blpjax.Formulation("0 + x"))
    with pytest.raises(NotImplementedError, match="project_fixed_effects"):
        found.project_fixed_effects(blpjax.Formulation("1"))
    with pytest.raises(ValueError, match="hold='xi'"):
        found.delta_method(lambda m: m.prices, constant_costs=False)


def test_parameters_that_nothing_depends_on_are_named() -> None:
    people = changed(income=0.0)
    agents = tables()[1].assign(income=0.0)
    with pytest.warns(IdentificationWarning, match="'1 x income'"):
        solve(given=likelihood(micro_data=people), known=consumers.build(tables()[0], agents))


# the authors' example

ORDER = [2, 3, 4, 0, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The excluded instrument")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimates_are_those_of_the_reference(estimator: str) -> None:
    known, survey, sizes = consumers.reference_problem(rule=False)
    given = blpjax.MicroLikelihood(sizes, survey, blpjax.Integration("product", 11), estimator)
    sigma, pi = np.diag([0, 0.5, 0.5]), np.array([[0.5, 0], [0.5, 0.5], [0, 0]])
    check_reference(known.solve(sigma, pi, likelihood=given), "estimates_grumps.csv", estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The excluded instrument")
@pytest.mark.parametrize("estimator", ["cler", "mdle"])
def test_estimates_without_simulation_noise_are_those_of_the_reference(estimator: str) -> None:
    known, survey, sizes = consumers.reference_problem(rule=True)
    given = blpjax.MicroLikelihood(sizes, survey, blpjax.Integration("product", 11), estimator)
    sigma, pi = np.diag([0, 0.8, 0.4]), np.array([[1.2, 0], [0.4, 0.8], [0, 0]])
    check_reference(known.solve(sigma, pi, likelihood=given), "estimates_gh7.csv", estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The excluded instrument")
def test_the_value_at_the_estimates_of_the_reference() -> None:
    known, survey, sizes = consumers.reference_problem(rule=False)
    reference = consumers.reference_estimates("estimates_grumps.csv", "cler")
    given = blpjax.MicroLikelihood(sizes, survey, blpjax.Integration("product", 11))
    sigma, pi = np.diag([0, 0.5, 0.5]), np.array([[0.5, 0], [0.5, 0.5], [0, 0]])
    parameters = known.read_parameters(sigma, pi, None, None, None, {})
    function, _, _ = build_likelihood(known.data, parameters, given, Iteration())
    theta = reference["theta"][0][[3, 4, 0, 1, 2]]
    found = evaluate_likelihood(function, jnp.asarray(theta), jnp.asarray(reference["delta"][0]))
    assert abs(float(found.objective) - 5708.54895789) < 1e-7


def check_reference(found: Any, file: str, estimator: str) -> None:
    reference = consumers.reference_estimates(file, estimator)
    tolerance = JOINT if estimator == "cler" else ESTIMATED
    assert found.converged
    tolerance.check(found.theta[ORDER], reference["theta"][0], "theta")
    tolerance.check(found.beta[:, 0], reference["beta"][0], "beta")
    tolerance.check(found.delta[:, 0], reference["delta"][0], "delta")
    if estimator != "share-constrained":
        errors = [found.pi_se[0, 0], found.pi_se[1, 0], found.pi_se[1, 1], found.sigma_se[1, 1], found.sigma_se[2, 2]]
        ESTIMATED.check(errors, reference["theta"][1], "theta")
        ESTIMATED.check(found.beta_se[:, 0], reference["beta"][1], "beta")
        ESTIMATED.check(found.delta_se[:, 0], reference["delta"][1], "delta")
    if "objective" in reference:
        Tolerance(0, 1e-9).check([float(found.objective)], reference["objective"][0], "objective")
