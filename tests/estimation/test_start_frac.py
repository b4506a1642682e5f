"""FRAC starting values: exact to second order, near the truth, and as good a start as any other; errors."""

import functools
from typing import Any

import numpy as np
import pytest

import blpjax
from blpjax import Formulation
from blpjax.estimation.start_frac import fill_starts
from blpjax.exceptions import IdentificationError
from tests.support import nevo
from tests.support.economies import loop_shares
from tests.support.silence import quiet
from tests.tolerances import ESTIMATES

# prices are exogenous here
pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.filterwarnings("ignore:The excluded instrument")]

BETA = (0.5, -1.5, 1.0)
IDENTITY, CORRELATED = ((1.0, 0.0), (0.0, 1.0)), ((1.0, 0.0), (0.5, 0.8))


@functools.cache
def simulate(
    size: float,
    noise: float = 0.0,
    sigma: tuple[tuple[float, float], ...] = IDENTITY,
    pi: float = 0.0,
    seed: int = 7,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tables of 60 markets with four to nine products: tastes ``size * (sigma nu + pi income)`` for x and y.

    Means of income differ between markets. Structural errors have the standard deviation `noise`.
    """
    rng = np.random.default_rng(seed)
    built = blpjax.build_integration(blpjax.Integration("product", 5), 2)
    weights, count = built.weights[:, 0], built.weights.size
    products, agents = [], []
    for t in range(60):
        J = rng.integers(4, 10)
        x, y = rng.uniform(0, 2, J), rng.normal(0, 1, J)
        cost, xi = rng.uniform(0, 2, J), noise * rng.normal(size=J)
        prices = 1 + cost + 0.5 * xi
        income = rng.normal() + 0.5 * rng.normal(size=count)
        tastes = size * (np.array(sigma) @ built.nodes.T + np.array([[pi], [-pi]]) * income)
        delta = np.column_stack([np.ones(J), prices, x]) @ BETA + 0.3 * y + xi
        shares = loop_shares(delta, np.column_stack([x, y]), tastes, weights, np.ones((J, 1)))
        columns = [cost, x.sum() - x, y.sum() - y, (x - x.mean()) ** 2, (y - y.mean()) ** 2, x**2, y**2, x * y]
        instruments = np.column_stack([*columns, (x - x.mean()) * (y - y.mean()), cost**2])
        products.append(
            {"market_ids": np.repeat(t, J), "shares": shares, "prices": prices, "x": x, "y": y}
            | {"demand_instruments": instruments}
        )
        agents.append({"market_ids": np.repeat(t, count), "weights": weights, "nodes": built.nodes, "income": income})
    return _stack(products), _stack(agents)


def _stack(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def build(products: Any, agents: Any, demographics: str | None = None, **more: Any) -> blpjax.Problem:
    formulations = (Formulation("1 + prices + x + y"), Formulation("0 + x + y"))
    with quiet():
        formulation = None if demographics is None else Formulation(demographics)
        return blpjax.Problem(formulations, products, formulation, agents, **more)


@pytest.mark.parametrize("sigma", [IDENTITY, CORRELATED], ids=["independent", "correlated"])
def test_without_structural_errors_the_error_is_of_higher_order(sigma: Any) -> None:
    """Half of the standard deviations, a quarter of the relative error of variances."""
    truth, errors = np.array(sigma) @ np.array(sigma).T, []
    for size in (0.4, 0.2):
        starts = build(*simulate(size, sigma=sigma)).compute_frac_starts(sigma=sigma)
        errors.append(np.abs(starts.covariances / size**2 - truth).max())
        np.testing.assert_allclose(starts.beta, [*BETA, 0.3], atol=0.02)
    assert errors[1] < 0.05
    assert 3 < errors[0] / errors[1] < 5
    np.testing.assert_allclose(starts.sigma, 0.2 * np.array(sigma), rtol=0.03, atol=0.002)


def test_means_of_demographics_identify_pi() -> None:
    """The spread of demographics adds to log shares what spread in tastes does, but is not taken for it."""
    starts = build(*simulate(0.3, pi=0.8), "0 + income").compute_frac_starts()
    np.testing.assert_allclose(starts.pi[:, 0], [0.24, -0.24], atol=0.02)
    np.testing.assert_allclose(starts.sigma, 0.3 * np.eye(2), atol=0.02)


def test_starts_are_near_the_truth() -> None:
    starts = build(*simulate(0.5, noise=0.2)).compute_frac_starts()
    np.testing.assert_allclose(starts.sigma, 0.5 * np.eye(2), atol=0.15)
    np.testing.assert_allclose(starts.beta, [*BETA, 0.3], atol=0.2)


@pytest.mark.slow
def test_the_optimum_is_that_from_the_truth() -> None:
    problem = build(*simulate(0.8, noise=0.2, pi=0.5), "0 + income")
    optimization = blpjax.Optimization("l-bfgs-b", {"gtol": 1e-8, "ftol": 0})
    chosen = {"method": "1s", "optimization": optimization, "check_optimality": "gradient"}
    automatic = problem.solve("auto", "auto", **chosen)
    known = problem.solve(0.8 * np.eye(2), [[0.4], [-0.4]], **chosen)
    assert automatic.converged and known.converged
    for name in ("objective", "sigma", "pi", "beta"):
        ESTIMATES.check(getattr(automatic, name), getattr(known, name), name)
    assert automatic.theta_labels == ["x x x", "y x y", "x x income", "y x income"]


def test_given_arrays_say_what_is_free() -> None:
    problem = build(*simulate(0.8, noise=0.2, pi=0.5), "0 + income")
    given = [[0.3], [0.0]]
    sigma, pi = fill_starts(problem.data, "auto", given, {})
    starts = problem.compute_frac_starts(pi=[[1.0], [0.0]])
    assert pi is given and starts.pi[1, 0] == 0 != starts.pi[0, 0]
    np.testing.assert_array_equal(sigma, starts.sigma)
    sigma, pi = fill_starts(problem.data, np.diag([0.5, 0.0]), "auto", {})
    starts = problem.compute_frac_starts(sigma=np.diag([1.0, 0.0]))
    assert sigma[0, 0] == 0.5 and starts.sigma[1, 1] == 0 != starts.sigma[0, 0]
    np.testing.assert_array_equal(pi, starts.pi)


def test_starts_are_within_bounds() -> None:
    problem = build(*simulate(0.8, noise=0.2))
    sigma, _ = fill_starts(problem.data, "auto", None, {"sigma": (np.diag([np.nan, 2.0]), np.diag([0.3, np.inf]))})
    np.testing.assert_array_equal(sigma, np.diag([0.3, 2.0]))
    sigma, _ = fill_starts(problem.data, "auto", None, {"sigma": (None, 0.3)})
    np.testing.assert_array_equal(sigma, np.diag([0.3, 0.3]))


def test_negative_variances_start_at_the_floor() -> None:
    """Nobody's tastes differ: estimated variances are noise around zero."""
    problem = build(*simulate(0.0, noise=0.5, seed=3))
    starts = problem.compute_frac_starts(floor=0.05)
    sizes = np.sqrt(np.mean(problem.products["X2"] ** 2, axis=0))
    negative = np.diag(starts.covariances) < 0
    assert negative.any()
    np.testing.assert_allclose(np.diag(starts.sigma)[negative], 0.05 / sizes[negative])
    correlated = problem.compute_frac_starts(sigma=np.tril(np.ones((2, 2))))
    assert (correlated.sigma[np.tril_indices(2)] != 0).all()


def test_the_same_demographics_in_all_markets_start_at_the_floor() -> None:
    products, agents = simulate(0.5, noise=0.2)
    starts = build(products, agents | {"income": agents["nodes"][:, 0]}, "0 + income").compute_frac_starts()
    assert (starts.pi > 0).all() and (starts.pi < 0.2).all()
    np.testing.assert_array_equal(starts.sigma, build(products, agents).compute_frac_starts().sigma)


@pytest.mark.slow
def test_cereal_data_are_solved_from_automatic_starts() -> None:
    """Four random coefficients and fixed effects of products."""
    problem = nevo.problem("0 + income + age")
    pi = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    starts = problem.compute_frac_starts(pi=pi)
    assert ((starts.pi != 0) == pi).all() and (np.diag(starts.sigma) > 0).all()
    automatic = problem.solve("auto", starts.pi, method="1s")
    usual = problem.solve(nevo.SIGMA, nevo.PI[:, [0, 2]] * pi + 0.1 * pi, method="1s")
    assert automatic.converged and usual.converged
    ESTIMATES.check(automatic.objective, usual.objective)


# errors


def test_random_coefficients_are_needed() -> None:
    products, _ = simulate(0.5, noise=0.2)
    with quiet():
        logit = blpjax.Problem(Formulation("1 + prices + x + y"), products)
    with pytest.raises(ValueError, match="FRAC starting values need random coefficients"):
        logit.compute_frac_starts()
    with pytest.raises(ValueError, match="FRAC starting values need random coefficients"):
        logit.solve(sigma="auto")


def test_demographics_are_needed_for_pi() -> None:
    with pytest.raises(ValueError, match="pi='auto' needs demographics"):
        build(*simulate(0.5, noise=0.2)).solve("auto", "auto")


def test_instruments_are_needed() -> None:
    products, agents = simulate(0.5, noise=0.2)
    few = build(products | {"demand_instruments": products["demand_instruments"][:, :1]}, agents)
    with pytest.raises(IdentificationError, match=r"instruments for 6 coefficients \(1, prices, .*x x x.* there are 4"):
        few.compute_frac_starts()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": np.eye(3)}, r"sigma must have the shape \(2, 2\), not \(3, 3\)"),
        ({"sigma": "all"}, "sigma must be an array of numbers"),
        ({"floor": 0.0}, "floor must be positive, not 0.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(*simulate(0.5, noise=0.2)).compute_frac_starts(**arguments)


def test_other_models_are_not_supported() -> None:
    problem = build(*simulate(0.5, noise=0.2), rc_types=["linear", "log"])
    with pytest.raises(NotImplementedError, match="with rc_types other than 'linear' are not implemented. Give sigma"):
        problem.solve("auto")
