"""Estimates of simulated economies, with either kind of instruments: centred at the truth, intervals cover it."""

from typing import Any

import numpy as np
import pytest

import blpjax

F = blpjax.Formulation
FORMULATIONS = F("1 + prices + x"), F("0 + x"), F("1 + x + z")
ERRORS = {"xi_variance": 0.1, "omega_variance": 0.1, "correlation": 0.5}


def panel() -> dict[str, np.ndarray]:
    """Ten products of five firms in a hundred markets."""
    ids = blpjax.build_id_data(T=100, J=10, F=5)
    return {name: ids[name].ravel() for name in ("market_ids", "firm_ids")}


def draw(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Exogenous variables, and instruments that tell how far from its rivals a product is."""
    drawn = {"x": generator.uniform(size=1000), "z": generator.uniform(size=1000)}
    rivals = blpjax.build_differentiation_instruments(F("0 + x + z"), panel() | drawn, version="quadratic")
    return drawn | {"demand_instruments": np.c_[rivals, drawn["z"]], "supply_instruments": rivals}


def study(instruments: str) -> blpjax.MonteCarlo:
    """Demand and supply by two-step GMM: with instruments and characteristics drawn anew, or optimal instruments."""
    simulation = blpjax.Simulation(
        FORMULATIONS,
        panel(),
        beta=[0.5, -2.0, 1.0],
        sigma=[[2.0]],
        gamma=[1.0, 0.3, 0.5],
        integration=blpjax.Integration("product", 7),
        seed=0,
        **ERRORS,
    )
    chosen: dict[str, Any] = {"optimal_instruments": "approximate"}
    if instruments == "differentiation":
        solved = simulation.replace_endogenous()
        data = blpjax.data_to_dict(solved.product_data) | draw(np.random.default_rng(0))
        problem = solved.to_problem(product_data=data)
        chosen = {"problem": problem, "data_generator": draw, "sigma": [[1.5]], "beta": [None, -1.5, None]}
    return blpjax.MonteCarlo(simulation, seed=1, **ERRORS, **chosen)


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("instruments", "replications"), [("differentiation", 200), ("optimal", 1000)])
def test_intervals_cover_the_truth_as_often_as_they_say(instruments: str, replications: int) -> None:
    summary = study(instruments).run(replications).summary()
    assert summary["failures"].sum() == 0 and summary["unidentified"].sum() == 0
    assert summary["coverage"].between(0.90, 0.98).all(), summary["coverage"]
    if replications == 1000:
        named = summary.loc[[("beta", "prices"), ("gamma", "1"), ("gamma", "x"), ("gamma", "z")]]
        assert named["coverage"].between(0.93, 0.97).all(), named["coverage"]
    # no bias beyond what the means of so many replications show by chance
    chance = summary["sd"] / np.sqrt(replications)
    assert (summary["bias"].abs() < 3 * chance).all(), summary["bias"] / chance
    # standard errors are the spread of estimates
    assert (summary["mean_se"] / summary["sd"]).between(0.9, 1.1).all()
