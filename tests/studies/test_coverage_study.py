"""A thousand replications: intervals cover the truth as often as they say, and biases are small."""

import numpy as np
import pytest

import blpjax

F = blpjax.Formulation
ERRORS = {"xi_variance": 0.1, "omega_variance": 0.1, "correlation": 0.5}


def study(markets: int) -> blpjax.MonteCarlo:
    ids = blpjax.build_id_data(T=markets, J=10, F=5)
    simulation = blpjax.Simulation(
        (F("1 + prices + x"), F("0 + x"), F("1 + x + z")),
        {"market_ids": ids["market_ids"], "firm_ids": ids["firm_ids"]},
        beta=[0.5, -2.0, 1.0],
        sigma=[[2.0]],
        gamma=[1.0, 0.3, 0.5],
        integration=blpjax.Integration("product", 7),
        seed=0,
        **ERRORS,
    )
    return blpjax.MonteCarlo(simulation, seed=1, optimal_instruments="approximate", **ERRORS)


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    summary = study(100).run(1000).summary()
    assert summary["failures"].sum() == 0 and summary["unidentified"].sum() == 0
    named = summary.loc[[("beta", "prices"), ("gamma", "1"), ("gamma", "x"), ("gamma", "z")]]
    assert named["coverage"].between(0.93, 0.97).all(), named["coverage"]
    # biases vanish beside the spread of estimates, and standard errors are this spread
    assert (summary["bias"].abs() < 4 * summary["sd"] / np.sqrt(1000)).all(), summary["bias"]
    assert (summary["mean_se"] / summary["sd"]).between(0.9, 1.1).all()
