"""The Monte Carlo study that is timed, and its simulation, which both libraries have, as in `benchmarks.models`."""

from typing import Any

BETA, SIGMA, GAMMA = [1.0, -2.0, 2.0], [[1.0]], [1.0, 4.0]


def simulation(lib: Any, markets: int, seed: int = 0) -> Any:
    """The tutorial's simulation."""
    F = lib.Formulation
    return lib.Simulation(
        (F("1 + prices + x"), F("0 + x"), F("0 + x + z")),
        lib.build_id_data(T=markets, J=20, F=10),
        beta=BETA,
        sigma=SIGMA,
        gamma=GAMMA,
        integration=lib.Integration("product", 9),
        xi_variance=1.0,
        omega_variance=1.0,
        correlation=0.9,
        seed=seed,
    )


def problem_of(truth: Any, supply: bool) -> Any:
    """The problem of a simulation's equilibrium, with demand alone or jointly with supply."""
    formulations = truth.product_formulations if supply else truth.product_formulations[:2]
    return truth.replace_endogenous().to_problem(formulations)


def start(supply: bool) -> dict[str, Any]:
    """Starting values beside those of sigma: that of alpha, which only supply needs."""
    return {"beta": [None, 0.5 * BETA[1], None]} if supply else {}


def study(lib: Any, markets: int, supply: bool) -> Any:
    """The study, which blpjax alone has."""
    truth = simulation(lib, markets)
    return lib.MonteCarlo(truth, problem_of(truth, supply), seed=1, sigma=[[0.5]], **start(supply))
