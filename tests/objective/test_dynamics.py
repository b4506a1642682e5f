"""Moments of innovations and of their differences: next to PyBLP, formulas written out, and differences."""

from functools import cache
from typing import Any

import jax
import numpy as np
import pyblp
import pytest

import blpjax
from blpjax.exceptions import IdentificationError
from tests.support import joint, lags
from tests.support.silence import quiet
from tests.tolerances import CENTRAL_DIFFERENCE, ESTIMATES, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

LOGIT, RANDOM = False, True
ALONE, FIRMS = False, True

#: What is compared at fixed parameters, and how closely.
COMPARED = {
    FIXED_PARAMETERS: (
        "objective gradient xi omega beta gamma phi moments xi_by_theta_jacobian omega_by_theta_jacobian W "
        "moments_jacobian moments_covariances phi_bounds parameters"
    ),
    LINEAR_ALGEBRA: "updated_W phi_se beta_se gamma_se sigma_se pi_se parameter_covariances",
}


@cache
def problem(supply: bool = FIRMS, random: bool = LOGIT) -> blpjax.Problem:
    return lags.build(blpjax, supply, random)


def solve(kind: str, supply: bool = FIRMS, random: bool = LOGIT, **more: Any) -> Any:
    return problem(supply, random).solve(**lags.arguments(blpjax, kind, supply, random, **more))


@cache
def theirs(supply: bool, random: bool) -> Any:
    return lags.build(pyblp, supply, random)


def both(kind: str, supply: bool, random: bool, **more: Any) -> tuple[Any, Any]:
    with quiet():
        expected = theirs(supply, random).solve(**lags.arguments(pyblp, kind, supply, random, **more))
    return solve(kind, supply, random, **more), expected


def check(actual: Any, expected: Any) -> None:
    for tolerance, names in COMPARED.items():
        for name in names.split():
            tolerance.check(*(np.asarray(getattr(one, name), float) for one in (actual, expected)), name)
    assert actual.phi_labels == expected.phi_labels
    assert [label for label in actual.theta_labels if " on " in label] == [
        label for label in expected.theta_labels if " on " in label
    ]


# next to PyBLP


@pytest.mark.parametrize(
    ("kind", "supply", "se_type"),
    [
        pytest.param(
            kind,
            supply,
            se_type,
            id=f"{kind}-{'firms' if supply else 'alone'}-{se_type}",
            marks=() if (kind, supply) in (("all", ALONE), ("all", FIRMS)) else pytest.mark.slow,
        )
        for kind in lags.TYPES
        for supply in (ALONE, FIRMS)
        for se_type in ("robust", "clustered", "unadjusted")
    ],
)
def test_evaluation_is_that_of_pyblp(kind: str, supply: bool, se_type: str) -> None:
    check(*both(kind, supply, LOGIT, se_type=se_type, W_type=se_type, center_moments=se_type == "robust"))


@pytest.mark.slow
@pytest.mark.parametrize("supply", [ALONE, FIRMS])
@pytest.mark.parametrize("kind", ["stacked", "all"])
def test_evaluation_with_random_coefficients_is_that_of_pyblp(kind: str, supply: bool) -> None:
    check(*both(kind, supply, RANDOM))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("supply", "phi", "bounds"),
    [
        (ALONE, 0.3, None),
        (ALONE, 0.3, ([[0.3]], [[0.3]])),
        (FIRMS, lags.PHI, None),
        (FIRMS, [[0.3, 0.0], [0.0, 0.4]], None),
        (FIRMS, lags.PHI, (lags.PHI - [[0, 0.2], [0.3, 0.1]], lags.PHI + [[0, 0.2], [0.3, 0.1]])),
    ],
    ids=["alone", "fixed", "all", "diagonal", "bounds"],
)
def test_estimates_of_two_steps_are_those_of_pyblp(supply: bool, phi: Any, bounds: Any) -> None:
    found = []
    for library, one in ((blpjax, problem(supply)), (pyblp, theirs(supply, LOGIT))):
        optimization = pyblp.Optimization("l-bfgs-b", {"gtol": 1e-7, "ftol": 0}) if library is pyblp else None
        more = {"phi": phi, "phi_bounds": bounds, "method": "2s", "optimization": optimization}
        with quiet():
            found.append(one.solve(**lags.arguments(library, "stacked", supply, LOGIT, **more)))
    for name in ("objective", "phi", "phi_se", "beta", "beta_se", "gamma", "gamma_se", "W"):
        ESTIMATES.check(*(np.asarray(getattr(one, name), float) for one in found), name)


def test_weights_that_are_given_and_levels_in_other_words() -> None:
    """A list of levels, with types that have no instruments, is what is meant by levels."""
    plain = solve("all", ALONE, demand_moment_types="levels", phi=0)
    spelled = solve("all", ALONE, demand_moment_types=[("innovations", 0), ("levels", 10)], phi=0)
    np.testing.assert_array_equal(plain.moments, spelled.moments)
    assert plain.objective == spelled.objective and not plain.moment_types and plain.phi.shape == (1, 1)
    W = plain.W + 0.1 * np.diag(np.diag(plain.W))
    check(*both("all", FIRMS, LOGIT, W=np.diag(np.linspace(1, 2, 18))))
    check(*both("all", ALONE, LOGIT, W=W))


# formulas


def test_moments_are_what_formulas_say() -> None:
    """Row by row, from errors in levels."""
    results = solve("all")
    products, phi = problem().products, lags.PHI
    at = products.lag_indices[:, 0]
    first = at != np.arange(at.size)
    second = first & first[at]
    errors = np.hstack([results.xi, results.omega])
    innovations = errors - errors[at] @ phi.T
    blocks = {
        "levels": errors,
        "innovations": first[:, None] * innovations,
        "differenced_innovations": second[:, None] * (innovations - innovations[at]),
    }
    expected = []
    for side, (Z, types) in enumerate(zip((products.ZD, products.ZS), lags.TYPES["all"], strict=True)):
        start = 0
        for kind, count in types:
            expected.append(Z[:, start : start + count].T @ blocks[kind][:, side] / at.size)
            start += count
    ROUNDING.check(results.moments[:, 0], np.concatenate(expected))
    # linear parameters minimise the objective
    weighted = results.moments_jacobian[:, len(results.theta) :].T @ results.W @ results.moments
    assert np.abs(weighted).max() < 1e-10 * np.abs(results.moments_jacobian).max() * np.abs(results.W).max()


@pytest.mark.parametrize("random", [LOGIT, pytest.param(RANDOM, marks=pytest.mark.slow)])
@pytest.mark.parametrize("supply", [ALONE, pytest.param(FIRMS, marks=pytest.mark.slow)])
def test_derivatives_are_those_of_differences(supply: bool, random: bool) -> None:
    results = solve("all", supply, random, check_optimality="both")
    given = {
        name: value
        for name, value in lags.arguments(blpjax, "all", supply, random).items()
        if name not in ("method", "optimization", "check_optimality")
    }
    functions = problem(supply, random).functions(**given, delta=results.delta)
    gradient, step = jax.jit(jax.grad(functions.objective)), 1e-5
    CENTRAL_DIFFERENCE.check(gradient(functions.theta), results.gradient[:, 0])
    for p, direction in enumerate(np.eye(len(results.theta))):
        up, down = functions.theta + step * direction, functions.theta - step * direction
        CENTRAL_DIFFERENCE.check(
            (functions.objective(up) - functions.objective(down)) / (2 * step), results.gradient[p, 0]
        )
        CENTRAL_DIFFERENCE.check((gradient(up) - gradient(down)) / (2 * step), results.hessian[p])


@pytest.mark.slow
def test_functions_can_be_mapped() -> None:
    """As lanes are on GPUs: linear steps at many phis at a time."""
    given = {k: v for k, v in lags.arguments(blpjax, "all", FIRMS, LOGIT).items() if k in ("phi", "beta")}
    types = dict(zip(("demand_moment_types", "supply_moment_types"), lags.TYPES["all"], strict=True))
    functions = problem().functions(**given, **types)
    points = functions.theta[None, :] + np.linspace(-0.2, 0.2, 3)[:, None]
    alone = jax.value_and_grad(functions.objective)
    values, gradients = map(np.asarray, jax.jit(jax.vmap(alone))(points))
    for k, point in enumerate(points):
        value, gradient = jax.jit(alone)(point)
        ROUNDING.check(values[k], value)
        LINEAR_ALGEBRA.check(gradients[k], gradient)


def test_finite_differences_and_the_initial_update_know_types() -> None:
    exact, rough = solve("all"), solve("all", finite_differences=True)
    np.testing.assert_allclose(rough.gradient, exact.gradient, rtol=1e-4, atol=1e-4 * np.abs(exact.gradient).max())
    updated = solve("all", initial_update=True)
    ROUNDING.check(updated.W, exact.updated_W)
    with quiet():
        expected = theirs(FIRMS, LOGIT).solve(**lags.arguments(pyblp, "all", FIRMS, LOGIT, initial_update=True))
    FIXED_PARAMETERS.check(updated.objective, expected.objective)


@pytest.mark.slow
def test_blocks_of_ones_own_stand_beside_innovations() -> None:
    """With no weight they change nothing."""

    class Levels(blpjax.MomentBlock):
        instruments: Any

        def residuals(self, point: blpjax.Point) -> Any:
            return point.xi

    plain, Z = solve("all"), problem().products.ZD[:, :2]
    W = np.zeros((20, 20))
    W[:18, :18] = plain.W
    beside = solve("all", W=W, moment_blocks=[Levels(jax.numpy.asarray(Z))])
    for name in ("objective", "gradient", "xi", "beta", "gamma"):
        LINEAR_ALGEBRA.check(getattr(beside, name), getattr(plain, name), name)
    ROUNDING.check(beside.moments[:18], plain.moments)
    ROUNDING.check(beside.moments[18:], Z.T @ plain.xi / len(Z))
    LINEAR_ALGEBRA.check(beside.moments_jacobian[:18], plain.moments_jacobian)


# refusals


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"phi": None}, ValueError, "phi must be given, because product_data has lag_indices: a matrix .2, 2."),
        ({"phi": 0.5}, ValueError, r"phi must have the shape \(2, 2\), not \(\)"),
        ({"phi": [[0.5, np.nan], [0, 0]]}, ValueError, "phi must be finite"),
        ({"phi_bounds": (0.35, 1)}, ValueError, r"phi\[0, 0\] = 0.3 is not within its bounds \[0.35, 1\]"),
        (
            {"demand_moment_types": "innovation"},
            ValueError,
            "must be one of 'levels', .*'innovation'",
        ),
        ({"supply_moment_types": 3}, TypeError, "supply_moment_types must be one of .*a list of pairs .*not 3"),
        ({"supply_moment_types": ["levels"]}, TypeError, "supply_moment_types must be .*list of pairs"),
        (
            {"demand_moment_types": [("levels", 10.0)]},
            TypeError,
            "instruments in demand_moment_types must be an",
        ),
        ({"demand_moment_types": [("levels", -1), ("innovations", 11)]}, ValueError, "must be at least 0"),
        (
            {"demand_moment_types": [("levels", 8)]},
            ValueError,
            "must sum to that of all instruments, 10, not .8.",
        ),
        ({"demand_moment_types": [("levels", 4), ("levels", 6)]}, ValueError, "must have each type only once"),
        (
            {"supply_moment_types": "levels"},
            IdentificationError,
            "phi is not identified for 'Omega on Xi', 'Omega on Omega': levels .*supply_moment_types",
        ),
        (
            {"demand_moment_types": "differenced_innovations", "supply_moment_types": "differenced_innovations"},
            IdentificationError,
            "do not identify all linear parameters: differences leave nothing of '1', '1'",
        ),
        ({"starts": [{"phi": [[0.3, 0.1], [0.1]]}]}, ValueError, "inhomogeneous|shape"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve("innovations", **changes)


@pytest.mark.usefixtures("unchecked_types")
def test_what_needs_lags_or_a_supply_side_says_so() -> None:
    products, _ = lags.tables()
    without = lags.model(ALONE, LOGIT).build(blpjax, products.drop(columns="lag_indices"), None)
    with pytest.raises(ValueError, match="demand_moment_types with 'innovations' needs lag_indices in product_data"):
        without.solve(demand_moment_types="innovations")
    with pytest.raises(ValueError, match="phi must not be given, .* no lag_indices .*beta the fifth"):
        without.solve(None, None, None, [None, -2.0, None, None])
    with pytest.raises(ValueError, match="phi_bounds must not be given, because the model has no phi"):
        without.solve(phi_bounds=(0, 1))
    with pytest.raises(ValueError, match="supply_moment_types would not be used, because there are no supply-side"):
        solve("innovations", ALONE, supply_moment_types="innovations")
    short = lags.model(ALONE, LOGIT).build(blpjax, *lags.tables(2)[:1], None)
    with pytest.raises(ValueError, match="'differenced_innovations' needs a row of product_data whose lag has a lag"):
        short.solve(phi=0.5, demand_moment_types="differenced_innovations")


def test_fixed_effects_and_covariance_instruments_are_refused() -> None:
    products, _ = lags.tables()
    absorbed = joint.Model("0 + prices + x", None, "1 + w", absorb_demand="C(firm_ids)", demographics=None)
    arguments = {"phi": lags.PHI, "beta": [-2.0, None], "demand_moment_types": "innovations"}
    with pytest.raises(NotImplementedError, match="demand_moment_types .*absorbed fixed effects. Put indicators"):
        absorbed.build(blpjax, products, None).solve(**arguments)
    covariance = lags.model(FIRMS, LOGIT).build(blpjax, products.assign(covariance_instruments0=1.0), None)
    arguments = {"phi": lags.PHI, "beta": [None, -2.0, None, None], "supply_moment_types": "innovations"}
    with pytest.raises(NotImplementedError, match="supply_moment_types .*with covariance instruments. Leave one"):
        covariance.solve(**arguments)
