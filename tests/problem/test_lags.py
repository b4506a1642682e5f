"""Results with phi: tables, files, and what else is done with estimates of moments of innovations."""

import copy
import pickle
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyblp
import pytest

import blpjax
from blpjax import plots
from blpjax.exceptions import ConvergenceWarning, IdentificationError, IdentificationWarning
from blpjax.inference import reestimation
from blpjax.objective.moments import GMM
from tests.support import lags
from tests.support.silence import quiet
from tests.tolerances import ESTIMATES, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING, SHARDED

pytestmark = pytest.mark.usefixtures("quiet")


def chains() -> np.ndarray:
    """The initial period that each product's lags lead to."""
    found = lags.tables()[0].lag_indices.to_numpy()
    for _ in range(10):
        found = found[found]
    return found


@cache
def problem(supply: bool = False) -> blpjax.Problem:
    products, _ = lags.tables()
    return lags.model(supply, random=False).build(blpjax, products.assign(clustering_ids=chains()), None)


@cache
def estimated(supply: bool = False, **more: Any) -> Any:
    """Two steps; phi is estimated, with bounds."""
    phi = [[0.3, 0.0], [0.0, 0.4]] if supply else 0.3
    optimization = blpjax.Optimization("l-bfgs-b", {"gtol": 1e-8, "ftol": 0}) if supply else None
    options = {"optimization": optimization, "method": "2s", "phi": phi, "phi_bounds": (-1, 1)}
    return problem(supply).solve(**lags.arguments(blpjax, "stacked", supply, False, **options | more))


def test_estimates_are_near_the_truth_and_have_labels() -> None:
    """There is no autocorrelation in these data."""
    for supply in (False, True):
        results = estimated(supply)
        free = np.diag(results.phi)
        assert results.converged and results.at_bound == []
        assert (np.abs(free) < 4 * np.diag(results.phi_se)).all() and (np.diag(results.phi_se) < 1).all()
        names = ["Xi", "Omega"][: 1 + supply]
        assert results.phi_labels == names
        assert results.theta_labels[: 1 + supply] == [f"{name} on {name}" for name in names]
        if supply:
            assert np.isnan(results.phi_se[[0, 1], [1, 0]]).all() and results.phi_bounds[0][0, 1] == 0


@pytest.mark.parametrize("supply", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_hessians_have_rows_of_phi(supply: bool) -> None:
    results = estimated(supply, check_optimality="both")
    count = len(results.theta_labels)
    assert results.hessian.shape == (count, count) and np.isfinite(results.hessian).all()
    assert (results.reduced_hessian_eigenvalues > 0).all()


def test_tables_show_phi_and_counts_of_moments(capsys: pytest.CaptureFixture[str]) -> None:
    text = str(estimated(True))
    block = text[text.index("Phi Estimates (Robust SEs in Parentheses)") :].split("\n\n")[0]
    assert "Phi:" in block and block.count("Omega") == 2 and f"{estimated(True).phi[1, 1]:+.6E}" in block
    assert text.index("Phi Estimates") < text.index("Beta Estimates")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blpjax.options, "verbose", True)
        problem().solve(**lags.arguments(blpjax, "stacked", False, False))
    printed = capsys.readouterr().out
    block = printed[printed.index("Demand Moment Counts") :].split("\n\n")[0]
    assert "levels" in block and "innovations" in block and " 4 " in block and "Supply Moment Counts" not in printed
    # as in PyBLP's dictionaries
    with quiet():
        theirs = lags.build(pyblp, True, False).solve(**lags.arguments(pyblp, "stacked", True, False)).to_dict()
    ours = estimated(True).to_dict()
    for name in ("phi", "phi_se", "phi_bounds", "phi_labels"):
        assert np.shape(ours[name]) == np.shape(theirs[name]), name


def test_without_lags_phi_has_no_columns() -> None:
    products, _ = lags.tables()
    for supply in (False, True):
        plain = lags.model(supply, False).build(blpjax, products.drop(columns="lag_indices"), None)
        beta = [None, -2.0, None, None] if supply else None
        options = {"beta": beta, "method": "1s", "check_optimality": "gradient"}
        results = plain.solve(**options, optimization=blpjax.Optimization("return"))
        assert "Phi Estimates" not in str(results)
        assert results.phi.shape == results.phi_se.shape == (1 + supply, 0) == results.phi_bounds[0].shape


def test_files_and_pickles_hold_phi_and_types(tmp_path: Path) -> None:
    results = estimated(True)
    results.save(tmp_path / "results.blpjax")
    for found in (blpjax.load(tmp_path / "results.blpjax"), pickle.loads(pickle.dumps(results))):
        for name in ("phi", "phi_se", "phi_bounds", "theta", "parameter_covariances", "W"):
            np.testing.assert_array_equal(getattr(found, name), getattr(results, name), name)
        assert found.moment_types == results.moment_types and found.theta_labels == results.theta_labels
        assert str(found) == str(results)
        options = {"phi": results.phi, "W": results.W, "beta": [None, results.beta[1, 0], None, None]}
        again = found.problem.solve(**lags.arguments(blpjax, "stacked", True, False, **options))
        FIXED_PARAMETERS.check(again.moments, results.moments)


@pytest.mark.slow
def test_starts_run_as_lanes() -> None:
    usual = {"optimization": None, "phi": 0.3, "method": "1s"}
    results = problem().solve(
        **lags.arguments(blpjax, "stacked", False, False, **usual, starts=[{"phi": -0.5}, {"phi": 0.8}])
    )
    alone = problem().solve(**lags.arguments(blpjax, "stacked", False, False, **usual))
    assert results.starts.converged.all() and results.starts.optimum.nunique() == 1
    ESTIMATES.check(results.starts["estimate: phi Xi on Xi"], np.full(2, alone.phi.item()))
    ESTIMATES.check(results.phi, alone.phi)


@pytest.mark.slow
def test_bootstraps_draw_phi_and_outputs_have_standard_errors() -> None:
    results = estimated(True)
    drawn = results.bootstrap(200, seed=1)
    assert drawn.bootstrapped_phi.shape == (200, 2, 2) and not drawn.bootstrapped_phi[:, 0, 1].any()
    np.testing.assert_allclose(drawn.bootstrapped_phi[:, 0, 0].std(), results.phi_se[0, 0], rtol=0.2)
    elasticities = results.compute_elasticities(market_id="m000")
    found = results.delta_method(lambda model: model.compute_elasticities("prices")[0][:1])
    assert np.isfinite(found.standard_errors).all() and np.isfinite(elasticities).all()
    # phi moves no output
    assert not np.asarray(found.jacobian).reshape(-1, len(results.parameters))[:, :2].any()


@pytest.mark.slow
def test_samples_of_clusters_are_estimated_again() -> None:
    """First-order conditions of a sample, with formulas and in NumPy."""
    results = estimated(method="1s", check_optimality="gradient", phi_bounds=None)
    draws = results.reestimate(3, unit="clusters", seed=5, recentre=False).table
    assert draws.ok.all()
    products, at = problem().products, problem().products.lag_indices[:, 0]
    first = (at != np.arange(at.size)).astype(float)
    units = problem().clusters
    weights = np.asarray(reestimation.draw_weights(jax.random.key(5), jnp.arange(3), jnp.asarray(units[0]), units[1]))
    delta = results.delta[:, 0]
    for draw, w in enumerate(weights):
        phi, *beta = draws[draws.draw == draw].estimate
        xi = delta - products.X1 @ np.array(beta)
        ends = (0, 4, 10)
        Z = [products.ZD[:, a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
        u = [xi, first * (xi - phi * xi[at])]
        by = [
            np.c_[np.zeros(at.size), -products.X1],
            first[:, None] * np.c_[-xi[at], -(products.X1 - phi * products.X1[at])],
        ]
        g = np.concatenate([z.T @ (w * v) for z, v in zip(Z, u, strict=True)])
        G = np.concatenate([z.T @ (w[:, None] * v) for z, v in zip(Z, by, strict=True)])
        W = np.zeros((10, 10))
        for a, b, z in zip(ends[:-1], ends[1:], Z, strict=True):
            W[a:b, a:b] = np.linalg.inv(z.T @ (w[:, None] * z))
        scale = np.sqrt(np.einsum("mi,mn,ni->i", G, W, G) * (g @ W @ g))
        assert (np.abs(G.T @ W @ g) < 1e-5 * scale).all()
    recentred = results.reestimate(2, unit="clusters", seed=5).table
    assert recentred.ok.all() and not np.allclose(recentred.estimate, draws.estimate[: len(recentred)])


def test_samples_that_lack_lags_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="samples of units would lack .* Use unit='clusters'"):
        estimated().reestimate(2, unit="markets")


def test_optimal_instruments_do_not_identify_phi_and_studies_are_refused() -> None:
    with quiet():
        with pytest.warns(IdentificationWarning, match="in levels: zero for phi, and not optimal for innovations"):
            found = estimated().compute_optimal_instruments()
        assert found.demand_instruments.shape == (problem().N, 1) and not found.demand_instruments.any()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IdentificationWarning)  # columns of zeros are collinear
            built = found.to_problem()
        with pytest.raises(IdentificationError, match="the parameters are not identified"):
            built.solve(phi=0.4)
        levels = problem().solve(phi=0, method="1s", optimization=blpjax.Optimization("return"))
        assert levels.compute_optimal_instruments().to_problem().product_table.lag_indices is not None
    data = {"market_ids": [0, 0, 1, 1], "firm_ids": [0, 1, 0, 1], "lag_indices": [0, 1, 0, 1]}
    numbers = {"prices": [1.0, 1.5, 1.2, 1.1], "shares": [0.2, 0.3, 0.1, 0.2], "demand_instruments0": [1, 2, 4, 3]}
    formulations = (blpjax.Formulation("1 + prices"), None, blpjax.Formulation("1"))
    with quiet():
        simulation = blpjax.Simulation(formulations, data, [1, -2], gamma=[1], phi=np.diag([0.5, 0.5]), seed=0)
        with pytest.raises(
            NotImplementedError, match="Studies draw structural errors that do not follow from their lags"
        ):
            blpjax.MonteCarlo(simulation, problem=blpjax.Problem(formulations, data | numbers))


def test_profiles_of_the_objective_know_types() -> None:
    results = estimated(method="1s", check_optimality="gradient")
    axes = plots.plot_objective_profile(results, spans=[0.2])
    axes = np.atleast_1d(axes)
    assert np.isfinite(axes.ravel()[0].lines[0].get_ydata()).all()


@pytest.mark.slow
def test_custom_routines_see_phi() -> None:
    seen = []

    def keep(initial: Any, bounds: Any, function: Any, iterated: Any) -> tuple[Any, bool]:
        seen.append(function(initial))
        return initial, True

    optimization = blpjax.Optimization(keep)
    with pytest.warns(ConvergenceWarning, match="not an optimum"):
        problem(True).solve(**lags.arguments(blpjax, "stacked", True, False, optimization=optimization))
    progress = seen[0] if not isinstance(seen[0], tuple) else seen[0][-1]
    np.testing.assert_array_equal(progress.phi, lags.PHI)
    assert progress.phi_labels == ["Xi", "Omega"] and progress.phi_bounds[0].shape == (2, 2)


@pytest.mark.slow
def test_agents_are_drawn_again_with_lags() -> None:
    """Importance sampling and simulation error beside moments of innovations."""
    random = lags.build(blpjax, False, True)
    options = lags.arguments(blpjax, "stacked", False, True)
    results = random.solve(**options)
    agents = lags.tables()[1]
    with quiet(".*weights.*sum to one"):
        sampled = results.importance_sampling(3, seed=0).to_problem()
        again = sampled.solve(**options)
    assert np.isfinite(again.objective) and again.moment_types == results.moment_types
    shifts = [agents.assign(nodes1=agents.nodes1 * (1 + s)) for s in (0.0, 0.1, -0.1)]
    noisy = random.solve(**options, resample_agent_data=lambda i: shifts[i] if i < 3 else None)
    moments = [lags.model(False).build(blpjax, lags.tables()[0], one).solve(**options).moments[:, 0] for one in shifts]
    LINEAR_ALGEBRA.check(noisy.simulation_covariances, np.cov(np.array(moments), rowvar=False))
    FIXED_PARAMETERS.check(noisy.moments_covariances - noisy.simulation_covariances, results.moments_covariances)


@pytest.mark.slow
def test_markets_on_devices_give_the_same() -> None:
    random = lags.build(blpjax, True, True, markets=4)
    options = lags.arguments(blpjax, "all", True, True)
    with quiet("The Jacobian of the moments", "The covariances of the"):
        expected, found = random.solve(**options), random.shard(1).solve(**options)
    for name in ("objective", "gradient", "moments", "moments_jacobian", "phi_se"):
        SHARDED.check(getattr(found, name), getattr(expected, name), name)


@pytest.mark.slow
def test_levels_have_the_programs_that_they_had_without_lags() -> None:
    products, _ = lags.tables()
    plain = lags.model(True, False).build(blpjax, products.drop(columns="lag_indices"), None)
    texts = []
    for one, phi in ((plain, None), (problem(True), np.zeros((2, 2)))):
        functions = one.functions(beta=[None, -2.0, None, None], phi=phi)
        lowered = jax.jit(GMM.evaluate).lower(functions.minimand, functions.theta, functions.start)
        texts.append(lowered.as_text())
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_phi_of_a_problem_does_not_change_in_place() -> None:
    phi = np.array([[0.3, 0.0], [0.1, 0.4]])
    known = copy.deepcopy(phi)
    results = problem(True).solve(**lags.arguments(blpjax, "innovations", True, False, phi=phi))
    np.testing.assert_array_equal(phi, known)
    ROUNDING.check(results.phi, known)
