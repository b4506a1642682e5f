"""Monte Carlo studies under each conduct: estimates are where they should be, and intervals cover the truth."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax import Bertrand, Formulation

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet")]

T, J, REPLICATIONS = 60, 4, 100
ERRORS = {"xi_variance": 0.1, "omega_variance": 0.1, "correlation": 0.5}


def price_leadership(market: blpjax.PricedMarket) -> Any:
    """Bertrand markups, and for all a tenth of the first product's price."""
    bertrand = -market.solve(market.ownership("firm_ids") * market.jacobian().T, market.shares())
    return bertrand + 0.1 * market.prices[0]


def first_order_conditions(margins: Any, market: blpjax.PricedMarket) -> Any:
    """Those of firms that set quantities: margins are revenues that quantities of own products cost each other."""
    return margins + (market.ownership("firm_ids") * market.inverse(market.jacobian()).T) @ market.shares()


CONDUCTS = {
    "Bertrand with weights": Bertrand(weights=0.5),
    "Bertrand with weights of pairs": Bertrand(weights={(0, 1): 0.6, (1, 0): 0.2}),
    "monopoly": blpjax.Monopoly(),
    "perfect competition": blpjax.PerfectCompetition(),
    "Cournot": blpjax.Cournot(),
    "mixed": blpjax.Mixed("quantity"),
    "Stackelberg": blpjax.Stackelberg("leaders"),
    "two tiers": blpjax.TwoTier(Bertrand("retailers"), Bertrand("firm_ids"), "integrated"),
    "resale price maintenance": blpjax.ResalePriceMaintenance("wholesale", "retailers", "firm_ids"),
    "bargaining": blpjax.Bargaining("retailers", "firm_ids", "power"),
    "rule of thumb": blpjax.RuleOfThumb(1.3),
    "constant markups": blpjax.ConstantMarkup(0.4),
    "one's own": blpjax.conduct(price_leadership, name="price leadership"),
    "one's own conditions": blpjax.conditions(first_order_conditions, name="conditions"),
}


class Design:
    """Firms, tiers and draws of exogenous variables, with random coefficients on a characteristic."""

    def __init__(self, conduct: Any) -> None:
        ids = blpjax.build_id_data(T=T, J=J, F=2)
        order = np.arange(T * J) % J
        self.panel = {name: ids[name].ravel() for name in ("market_ids", "firm_ids")}
        self.panel |= {"quantity": order % 2, "retailers": order % 2, "integrated": (order == 3).astype(int)}
        self.panel |= {"leaders": (self.panel["firm_ids"] == 0).astype(int), "power": 0.4 + 0.2 * (order % 2)}
        self.simulation = blpjax.Simulation(
            (Formulation("1 + prices + x"), Formulation("0 + x"), Formulation("1 + x + z")),
            self.panel,
            beta=[0.5, -2.0, 1.0],
            sigma=[[2.0]],
            gamma=[1.0, 0.3, 0.5],
            integration=blpjax.Integration("product", 5),
            seed=0,
            conduct=conduct,
            **ERRORS,
        )
        solved = self.simulation.replace_endogenous()
        self.data = blpjax.data_to_dict(solved.product_data) | self.draw(np.random.default_rng(0))
        self.problem = solved.to_problem(product_data=self.data)

    def draw(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Characteristics, cost shifters, and instruments of rivals' ones."""
        drawn = {"x": generator.uniform(size=T * J), "z": generator.uniform(size=T * J)}
        formulation = Formulation("0 + x + z")
        rivals = blpjax.build_differentiation_instruments(formulation, self.panel | drawn, version="quadratic")
        return drawn | {"demand_instruments": np.c_[rivals, drawn["z"]], "supply_instruments": rivals}

    def run(self, problem: blpjax.Problem | None = None, replications: int = REPLICATIONS) -> pd.DataFrame:
        """The summary of a study."""
        problem = self.problem if problem is None else problem
        starts = {"sigma": [[1.5]], "beta": [None, -1.5, None]}
        study = blpjax.MonteCarlo(
            self.simulation, problem=problem, seed=1, data_generator=self.draw, **ERRORS, **starts
        )
        return study.run(replications).summary()


@pytest.mark.parametrize("name", CONDUCTS)
def test_a_study_recovers_parameters_and_intervals_cover_them(name: str) -> None:
    summary = Design(CONDUCTS[name]).run()
    assert summary["failures"].sum() == 0
    assert summary["coverage"].between(0.88, 1.0).all(), summary["coverage"]
    chance = summary["sd"] / np.sqrt(REPLICATIONS)
    assert (summary["bias"].abs() < 3.5 * chance).all(), summary["bias"] / chance


def test_estimates_are_biased_under_another_conduct() -> None:
    """Where prices are costs, but firms are said to set them."""
    design = Design(blpjax.PerfectCompetition())
    formulations = design.problem.product_formulations
    wrong = blpjax.Problem(formulations, design.data, integration=blpjax.Integration("product", 5))
    other = design.run(wrong, 40)
    assert (other["bias"].abs() > 5 * other["sd"] / np.sqrt(40)).any()
