"""Parametric bootstrap: PyBLP's draws and outputs, the delta method to sampling error, and draws that fail."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax import BootstrappedResults, options
from blpjax.exceptions import ConvergenceWarning
from blpjax.model import elsewhere
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.support.estimated import CASES, merged, solved
from tests.tolerances import FIXED_PARAMETERS, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

DRAWS = 5
PARAMETERS = ("sigma", "pi", "rho", "beta", "gamma")


def precise(results: Any, factor: float) -> Any:
    """The same results with covariances that are smaller by a factor."""
    found = copy.copy(results)
    found.parameter_covariances = results.parameter_covariances * factor
    return found


@functools.cache
def bootstrapped(case: str, library: Any = blpjax, constant_costs: bool = True) -> Any:
    """Bootstrapped results, with covariances that are small enough for all draws to have an equilibrium."""
    results = precise(solved(case, library), 0.01)
    iteration = pyblp.Iteration("simple", {"atol": 1e-14}) if library is pyblp else None
    with joint.quiet():
        return results.bootstrap(DRAWS, seed=3, iteration=iteration, constant_costs=constant_costs)


@pytest.mark.parametrize("case", mostly_slow([*CASES], ["linear costs"]))
def test_draws_are_those_of_pyblp(case: str) -> None:
    ours, theirs = bootstrapped(case), bootstrapped(case, pyblp)
    assert isinstance(ours, BootstrappedResults) and ours.problem_results.problem is solved(case).problem
    for name in (*PARAMETERS, "prices", "shares", "delta"):
        expected = getattr(theirs, f"bootstrapped_{name}")
        FIXED_PARAMETERS.check(getattr(ours, f"bootstrapped_{name}"), expected, name)
    assert ours.draws == theirs.draws == DRAWS
    for name in ("fp_converged", "fp_iterations", "contraction_evaluations"):
        assert getattr(ours, name).shape == getattr(theirs, name).shape == (4, DRAWS)
    assert ours.fp_converged.dtype == bool and ours.fp_converged.all()
    assert (ours.contraction_evaluations > 0).all() == (theirs.contraction_evaluations > 0).all()
    assert ours.computation_time > 0


@pytest.mark.slow
def test_costs_can_move_with_shares() -> None:
    ours, theirs = (bootstrapped("log costs of shares", library, False) for library in (blpjax, pyblp))
    FIXED_PARAMETERS.check(ours.bootstrapped_prices, theirs.bootstrapped_prices)
    constant = bootstrapped("log costs of shares").bootstrapped_prices
    assert np.abs(ours.bootstrapped_prices - constant).max() > 1e-4


def test_draws_of_a_logit_are_clipped_to_bounds() -> None:
    case = dataclasses.replace(CASES["logit"], model=joint.Model(X2=None, X3=None, demographics=None))
    found = []
    for library in (blpjax, pyblp):
        results = case.solve(library, beta_bounds=([-np.inf, -2.1, -np.inf, -np.inf], np.full(4, np.inf)))
        with joint.quiet():
            found.append(results.bootstrap(50, seed=1).bootstrapped_beta)
    assert found[0][:, 1].min() == -2.1
    FIXED_PARAMETERS.check(*found)


@pytest.mark.slow
def test_draws_are_clipped_to_bounds() -> None:
    """Default bounds of sigma, and those that some elements are given."""
    bounds = {
        "sigma_bounds": ([[0, 0], [0, 0.55]], [[np.inf, 0], [0, 0.65]]),
        "beta_bounds": ([-np.inf, -2.1, -np.inf, -np.inf], np.full(4, np.inf)),
    }
    found = []
    for library in (blpjax, pyblp):
        results = CASES["demand alone"].solve(library, **bounds)
        with joint.quiet():
            found.append(results.bootstrap(50, seed=1))
    sigma, beta = found[0].bootstrapped_sigma, found[0].bootstrapped_beta
    assert sigma[:, 0, 0].min() == 0.0 and (sigma[:, 0, 1] == 0).all()
    assert sigma[:, 1, 1].min() == 0.55 and sigma[:, 1, 1].max() == 0.65
    assert beta[:, 1].min() == -2.1
    FIXED_PARAMETERS.check(sigma, found[1].bootstrapped_sigma)
    FIXED_PARAMETERS.check(beta, found[1].bootstrapped_beta)


# outputs


@dataclasses.dataclass(frozen=True)
class Call:
    """A compute method, with arguments made of other outputs of the same results and rows of the product table."""

    method: str
    arguments: Callable[[Any, pd.DataFrame, Any], dict[str, Any]] = lambda results, rows, market_id: {}

    def answer(self, results: Any, market_id: Any = None) -> Any:
        products = CASES["linear costs"].tables[0]
        rows = products if market_id is None else products[products.market_ids == market_id]
        with joint.quiet():
            return getattr(results, f"compute_{self.method}")(
                **self.arguments(results, rows, market_id), market_id=market_id
            )


def merger(results: Any, rows: pd.DataFrame, market_id: Any) -> dict[str, Any]:
    return {"firm_ids": merged(rows), "costs": results.compute_costs(market_id=market_id)}


def new_prices(results: Any, rows: pd.DataFrame, market_id: Any) -> dict[str, Any]:
    return {"prices": np.stack([rows.prices.to_numpy()[:, None] * (1 + 0.01 * d) for d in range(DRAWS)])}


CALLS = {
    "aggregate elasticities": Call("aggregate_elasticities"),
    "elasticities": Call("elasticities"),
    "long-run diversion": Call("long_run_diversion_ratios"),
    "probabilities": Call("probabilities"),
    "shares": Call("shares", new_prices),
    "surplus": Call("consumer_surpluses", new_prices),
    "concentration": Call("hhi", lambda results, rows, market_id: {"firm_ids": merged(rows)}),
    "delta": Call("delta"),
    "costs": Call("costs"),
    "costs with ownership": Call(
        "costs", lambda results, rows, market_id: {"ownership": np.ones((len(rows), 8 if market_id is None else 7))}
    ),
    "profits": Call("profits", new_prices),
    "profit Hessians": Call("profit_hessians"),
    "passthrough": Call("passthrough"),
    "prices of a merger": Call("prices", merger),
}


#: Calls that need a program of their own.
SLOW = ("delta", "passthrough", "profit Hessians", "prices of a merger")


@pytest.mark.parametrize(
    ("call", "market_id"),
    [
        *(pytest.param(call, None, marks=pytest.mark.slow if call in SLOW else ()) for call in CALLS),
        pytest.param("prices of a merger", "m001", marks=pytest.mark.slow),
    ],
)
def test_outputs_of_draws_are_those_of_pyblp(call: str, market_id: Any) -> None:
    ours, theirs = (bootstrapped("linear costs", library) for library in (blpjax, pyblp))
    actual, expected = (CALLS[call].answer(results, market_id) for results in (ours, theirs))
    assert len(actual) == DRAWS
    FIXED_PARAMETERS.check(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["costs with ownership"])
def test_one_market_of_draws_alone_is_as_among_all(call: str) -> None:
    ours, inside = bootstrapped("linear costs"), CASES["linear costs"].tables[0].market_ids == "m001"
    FIXED_PARAMETERS.check(CALLS[call].answer(ours, "m001"), CALLS[call].answer(ours)[:, inside])


def test_matrices_of_draws_have_diagonals() -> None:
    ours, theirs = (bootstrapped("linear costs", library) for library in (blpjax, pyblp))
    matrices = ours.compute_elasticities()
    FIXED_PARAMETERS.check(ours.extract_diagonals(matrices), theirs.extract_diagonals(matrices))
    with joint.quiet():
        FIXED_PARAMETERS.check(ours.extract_diagonal_means(matrices), theirs.extract_diagonal_means(matrices))


def test_the_model_of_a_draw_has_its_outputs() -> None:
    ours = bootstrapped("linear costs")
    model = ours.model_of(2)
    FIXED_PARAMETERS.check(model.compute_costs(), ours.compute_costs()[2])
    FIXED_PARAMETERS.check(model.compute_shares(), ours.bootstrapped_shares[2])
    np.testing.assert_array_equal(model.prices, ours.bootstrapped_prices[2, :, 0])
    with pytest.raises(NotImplementedError, match=r"a model for each draw. Use model_of\(draw\)"):
        print(ours.model)


@pytest.mark.slow
def test_chunks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, results = bootstrapped("linear costs"), precise(solved("linear costs"), 0.01)
    costs = whole.compute_costs()
    monkeypatch.setattr(elsewhere, "CHUNK_ELEMENTS", 2 * 4 * 8 * 30)
    monkeypatch.setattr("blpjax.inference.bootstrap.loop_elements", lambda: 3 * 4 * 8 * 30)
    assert elsewhere.lanes(results.problem.economy) == 2
    parts = results.bootstrap(DRAWS, seed=3)
    FIXED_PARAMETERS.check(parts.bootstrapped_prices, whole.bootstrapped_prices)
    FIXED_PARAMETERS.check(parts.compute_costs(), costs)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["linear costs", "demand alone"])
def test_standard_deviations_are_those_of_the_delta_method_with_xi_held(case: str) -> None:
    """With precise parameters: their errors of a thousandth leave outputs linear, and the rest is sampling error."""
    results, draws = precise(solved(case), 1e-5), 600
    firms = merged(CASES[case].tables[0])
    found = results.bootstrap(draws, seed=0)
    costs = found.compute_costs()
    spread = {
        "elasticities": found.compute_elasticities().std(axis=0),
        "costs": costs.std(axis=0),
        "prices": found.compute_prices(firm_ids=firms, costs=costs).std(axis=0),
        "surplus": found.compute_consumer_surpluses().std(axis=0),
    }
    errors = results.delta_method(
        lambda m: {
            "elasticities": m.compute_elasticities(),
            "costs": m.compute_costs(),
            "prices": m.compute_prices(firm_ids=firms, costs=m.compute_costs()),
            "surplus": m.compute_consumer_surpluses(),
        },
        hold="xi",
    ).standard_errors
    for name, deviations in spread.items():
        ratios = deviations / errors[name]
        ratios = ratios[np.isfinite(ratios)]
        assert ratios.size == np.isfinite(deviations).sum()
        # the error of a standard deviation of 600 draws is 1 / sqrt(1200) = 2.9%, hardly ever four times that
        assert np.abs(ratios - 1).max() < 0.115, name


# what is said


def test_results_can_be_shown_and_turned_into_a_dictionary() -> None:
    ours = bootstrapped("linear costs")
    more = set(ours.to_dict()) - set(bootstrapped("linear costs", pyblp).to_dict())
    assert more == {"bootstrapped_tau", "bootstrapped_kappa"}
    assert ours.to_dict(["draws"]) == {"draws": DRAWS}
    with pytest.raises(AttributeError, match="theta"):
        ours.to_dict(["theta"])
    assert "Bootstrapped Results Summary" in str(ours) and str(ours.fp_iterations.sum()) in repr(ours)
    assert "Fixed Point" not in str(bootstrapped("demand alone"))


def test_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(options, "verbose", True)
    monkeypatch.setattr(options, "verbose_output", shown.append)
    solved("demand alone").bootstrap(DRAWS, seed=0)
    assert shown[0] == "Bootstrapping results ..." and "Bootstrapped Results Summary" in shown[-1]


def test_draws_have_no_standard_errors_of_their_own() -> None:
    with pytest.raises(TypeError, match="no standard errors by the delta method. Take standard deviations over draws"):
        bootstrapped("linear costs").compute_costs(standard_errors=True)


# failures


def test_draws_without_an_equilibrium_are_named_and_missing() -> None:
    """Demand rises in prices at some draws of a parameter that is little known."""
    results = copy.copy(solved("linear costs"))
    results.parameter_covariances = np.zeros_like(results.parameter_covariances)
    results.parameter_covariances[3, 3] = 29 * 3.0**2
    with pytest.warns(ConvergenceWarning, match=r"failed for 2 of 5 draws \(\d, \d\): it met demand .* 4 of 4"):
        found = results.bootstrap(DRAWS, seed=1)
    upward = found.bootstrapped_beta[:, 1, 0] >= 0
    assert upward.sum() == 2
    np.testing.assert_array_equal(~found.fp_converged, np.tile(upward, (4, 1)))
    for name in ("prices", "shares", "delta"):
        missing = np.isnan(getattr(found, f"bootstrapped_{name}"))
        np.testing.assert_array_equal(missing, np.tile(upward[:, None, None], (1, 29, 1)))
    np.testing.assert_array_equal(np.isnan(found.compute_costs()[:, 0, 0]), upward)


@pytest.mark.slow
def test_mean_utilities_of_draws_without_an_equilibrium_are_missing() -> None:
    results = copy.copy(solved("linear costs"))
    results.parameter_covariances = np.zeros_like(results.parameter_covariances)
    results.parameter_covariances[3, 3] = 29 * 3.0**2
    with pytest.warns(ConvergenceWarning, match="failed for 2 of 5 draws"):
        found = results.bootstrap(DRAWS, seed=1)
    with pytest.warns(ConvergenceWarning, match="The inversion of market shares produced infinite or missing values"):
        delta = found.compute_delta()
    FIXED_PARAMETERS.check(delta, found.bootstrapped_delta)


def test_failures_of_one_market_are_its_own() -> None:
    """Clipped costs make other prices optimal in three markets, which a loop that is cut short does not find."""
    results = CASES["linear costs"].solve(costs_bounds=(1.2, None))
    results.parameter_covariances = 1e-12 * results.parameter_covariances
    clipped = pd.Series(results.clipped_costs[:, 0]).groupby(CASES["linear costs"].tables[0].market_ids).any()
    assert 0 < clipped.sum() < 4
    short = blpjax.Iteration("simple", {"max_evaluations": 1, "atol": 1e-5})
    with pytest.warns(
        ConvergenceWarning, match=rf"of 5 draws \(0, 1, 2, 3, 4\): it .* in {clipped.sum()} of 4 markets"
    ):
        found = results.bootstrap(DRAWS, seed=0, iteration=short)
    np.testing.assert_array_equal(found.fp_converged[:, 0], ~clipped)
    missing = clipped[CASES["linear costs"].tables[0].market_ids].to_numpy()
    np.testing.assert_array_equal(np.isnan(found.bootstrapped_prices[0, :, 0]), missing)
    np.testing.assert_array_equal(np.isnan(found.compute_costs()[0, :, 0]), missing)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"draws": 0}, ValueError, "draws must be a positive integer, not 0"),
    ({"draws": 2.5}, ValueError, "draws must be a positive integer, not 2.5"),
    ({"iteration": "simple"}, TypeError, "iteration must be Iteration or None, not str"),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        solved("linear costs").bootstrap(**arguments)


def test_unknown_covariances_are_refused() -> None:
    with pytest.raises(ValueError, match="parameter_covariances of these results are unknown"):
        precise(solved("linear costs"), np.nan).bootstrap(2)


def test_fixed_parameters_are_not_drawn() -> None:
    beta = np.array([-0.5, -2.0, 1.0, 0.5])
    case = dataclasses.replace(CASES["logit"], model=joint.Model(X2=None, X3=None, demographics=None))
    results = case.solve(beta=beta, beta_bounds=(beta, beta))
    found = results.bootstrap(2)
    np.testing.assert_array_equal(found.bootstrapped_beta, np.tile(beta[:, None], (2, 1, 1)))
    ROUNDING.check(found.bootstrapped_shares[1], results.problem.products.shares)
