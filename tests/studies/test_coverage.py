"""Estimates of simulated economies: centred at the truth, with confidence intervals that cover it."""

import numpy as np
import pytest

import blpjax
from blpjax import Formulation

SIGMA, BETA, GAMMA = [2.0], [0.5, -2.0, 1.0], [1.0, 0.3, 0.5]
REPLICATIONS = 200


def replicate(seed: int) -> blpjax.ProblemResults:
    """Demand and supply of ten products of five firms in a hundred markets, estimated by two-step GMM."""
    ids = blpjax.build_id_data(T=100, J=10, F=5)
    simulation = blpjax.Simulation(
        (Formulation("1 + prices + x"), Formulation("0 + x"), Formulation("1 + x + z")),
        {"market_ids": ids["market_ids"], "firm_ids": ids["firm_ids"]},
        beta=BETA,
        sigma=SIGMA[0],
        gamma=GAMMA,
        integration=blpjax.Integration("product", 7),
        xi_variance=0.1,
        omega_variance=0.1,
        correlation=0.5,
        seed=seed,
    )
    solved = simulation.replace_endogenous()
    data = blpjax.data_to_dict(solved.product_data)
    rivals = blpjax.build_differentiation_instruments(Formulation("0 + x + z"), data, version="quadratic")
    data |= {"demand_instruments": np.c_[rivals, data["z"]], "supply_instruments": rivals}
    problem = solved.to_problem(product_data=data)
    return problem.solve(sigma=1.5, beta=[None, -1.5, None], check_optimality="gradient")


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blpjax.options, "verbose", False)
    truth = np.array([*SIGMA, BETA[1], BETA[0], BETA[2], *GAMMA])
    estimates, covered = [], []
    for seed in range(REPLICATIONS):
        results = replicate(seed)
        assert results.converged
        table = results.estimates()
        errors = table["se"].to_numpy()
        estimates.append(table["estimate"].to_numpy())
        covered.append(np.abs(estimates[-1] - truth) < 1.96 * errors)
    rates = np.mean(covered, axis=0)
    assert ((rates >= 0.90) & (rates <= 0.98)).all(), rates
    # no bias beyond what the means of so many replications show by chance
    chance = np.std(estimates, axis=0, ddof=1) / np.sqrt(REPLICATIONS)
    errors_of_means = np.abs(np.mean(estimates, axis=0) - truth)
    assert (errors_of_means < 3 * chance).all(), errors_of_means / chance
