"""A small Monte Carlo study."""

from typing import Any

import numpy as np

import blpjax
from blpjax.studies.monte_carlo import MonteCarlo

F = blpjax.Formulation
MOMENTS = {"xi_variance": 0.05, "omega_variance": 0.05, "correlation": 0.5}


def design(sizes: tuple[int, ...] = (5, 3, 5, 4) * 5) -> blpjax.Simulation:
    """Markets of different sizes."""
    market_ids = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(0)
    data = {"market_ids": market_ids, "firm_ids": np.concatenate([np.arange(n) // 2 for n in sizes])}
    data |= {f"demand_instruments{k}": rng.uniform(size=market_ids.size) for k in range(2)}
    data |= {f"supply_instruments{k}": rng.uniform(size=market_ids.size) for k in range(2)}
    return blpjax.Simulation(
        (F("1 + prices + x"), F("0 + x"), F("1 + z")),
        data,
        beta=[1.0, -2.0, 2.0],
        sigma=[[2.0]],
        gamma=[1.0, 0.5],
        integration=blpjax.Integration("product", 3),
        seed=0,
        **MOMENTS,
    )


def study(supply: bool) -> MonteCarlo:
    simulation = design()
    if supply:
        return MonteCarlo(simulation, seed=3, **MOMENTS)
    problem = simulation.replace_endogenous().to_problem(simulation.product_formulations[:2])
    return MonteCarlo(simulation, problem, seed=3, beta=None, **MOMENTS)


def surveyed(products: Any, agents: Any, of_x: float) -> blpjax.Simulation:
    """With tastes of agents that depend on their income."""
    return blpjax.Simulation(
        (F("1 + prices + x"), F("0 + x"), F("1 + z")),
        products,
        agent_formulation=F("0 + income"),
        agent_data=agents,
        beta=[1.0, -2.0, of_x],
        sigma=[[1.0]],
        pi=[[1.0]],
        gamma=[1.0, 0.5],
        seed=0,
        **MOMENTS,
    )


def demand_of(known: blpjax.Simulation, instruments: int = 3) -> blpjax.Problem:
    """With the simulation's own prices and shares: there is no equilibrium to compute."""
    names = ("market_ids", "firm_ids", "x", "z", "prices", "shares")
    data = {name: known.product_data[name].ravel() for name in names}
    data |= {f"demand_instruments{k}": data["z"] ** (k + 1) for k in range(instruments)}
    return blpjax.Problem(known.product_formulations[:2], data, known.agent_formulation, known.agent_data)
