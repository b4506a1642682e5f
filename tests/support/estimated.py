"""Small problems with the covariances of their parameters, evaluated by blpjax and PyBLP where they were simulated."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

import blpjax
from tests.support import joint


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of an economy with four markets, and arguments of `solve` other than the usual ones."""

    model: joint.Model
    costs_type: str = "linear"
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame | None]:
        products, agents = joint.tables(costs_type=self.costs_type, markets=4)
        return products, agents if self.model.X2 else None

    def solve(self, library: Any = blpjax, **more: Any) -> Any:
        """Results at the parameters, without optimisation."""
        options = {"costs_type": self.costs_type} if self.model.X3 else {}
        problem = dataclasses.replace(self.model, options=options).build(library, *self.tables)
        random = {"sigma": joint.SIGMA, "pi": joint.PI} if self.model.X2 else {}
        usual = {
            "beta": [None, -2.0, None, None],
            "method": "1s",
            "optimization": library.Optimization("return"),
            "iteration": library.Iteration("squarem", {"atol": 1e-14}) if self.model.X2 else None,
            "check_optimality": "gradient",
        }
        with joint.quiet():
            return problem.solve(**random | usual | dict(self.arguments) | more)


FIXED_EFFECTS = joint.Model(
    "0 + prices + x + y", X3="0 + w + x", absorb_demand="C(firm_ids)", absorb_supply="C(firm_ids)"
)
CASES = {
    "linear costs": Case(joint.Model()),
    "log costs of shares": Case(joint.Model(X3="1 + w + shares"), "log"),
    "fixed effects": Case(FIXED_EFFECTS, "log", {"beta": [-2.0, None, None]}),
    "demand alone": Case(joint.Model(X3=None)),
    "logit": Case(joint.Model(X2=None, demographics=None)),
}


def solved(name: str, library: Any = blpjax) -> Any:
    """Results of one of the cases, computed once."""
    return _solved(name, library)


@functools.cache
def _solved(name: str, library: Any) -> Any:
    return CASES[name].solve(library)


def merged(products: pd.DataFrame) -> np.ndarray:
    """Firm IDs after a merger of two of the three firms."""
    return products.firm_ids.replace(2, 1).to_numpy()
