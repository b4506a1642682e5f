"""Micro data at the parameters of results, next to PyBLP."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from tests.support.problems import build, evaluate
from tests.tolerances import FIXED_PARAMETERS

pytestmark = pytest.mark.usefixtures("quiet")


@cache
def estimated(library: Any = blpjax) -> Any:
    return evaluate(build(library), library)


@cache
def simulated(library: Any = blpjax) -> Any:
    """Five markets whose prices and shares are simulated."""
    rng = np.random.default_rng(0)
    ids = library.build_id_data(T=5, J=6, F=3)
    products = pd.DataFrame({name: np.asarray(ids[name]).ravel() for name in ("market_ids", "firm_ids")})
    products = products.assign(x=rng.uniform(size=30), w=rng.uniform(size=30))
    agents = pd.DataFrame({"market_ids": np.repeat(np.arange(5), 12), "weights": 1 / 12})
    agents = agents.assign(nodes0=rng.normal(size=60), nodes1=rng.normal(size=60), income=rng.normal(size=60))
    simulation = library.Simulation(
        (library.Formulation("1 + prices + x"), library.Formulation("1 + x + prices"), library.Formulation("1 + w")),
        products,
        beta=[0.5, -2, 1],
        sigma=np.diag([0.4, 0, 0.3]),
        pi=[[0], [0.3], [0.2]],
        gamma=[0.5, 0.4],
        agent_formulation=library.Formulation("0 + income"),
        agent_data=agents,
        seed=0,
    )
    return simulation.replace_endogenous()


def moments(library: Any) -> list[Any]:
    everybody = library.MicroDataset("d", 100, lambda t, p, a: np.ones((a.size, 1 + p.size)))
    second = library.MicroDataset("e", 10, lambda t, p, a: np.ones((a.size, p.size, 1 + p.size)))

    def price_income(t: Any, products: Any, agents: Any) -> np.ndarray:
        return np.outer(agents.demographics[:, 0], np.r_[0, products.prices[:, 0] + products.X2[:, 2]])

    def third_node(t: Any, products: Any, agents: Any) -> np.ndarray:
        return np.outer(agents.nodes[:, -1] ** 2, np.r_[1, products.x[:, 0]])

    parts = [library.MicroPart("p", everybody, price_income), library.MicroPart("n", everybody, third_node)]
    out = library.MicroPart("o", second, lambda t, p, a: np.eye(1, 1 + p.size) * np.ones((a.size, p.size, 1)))
    ratio = library.MicroMoment("r", 0, parts, lambda v: float(v[0] / v[1]), lambda v: v)
    return [ratio, library.MicroMoment("p", 1, parts[0]), library.MicroMoment("o", 2, out)]


@pytest.mark.parametrize("results", [estimated, simulated])
def test_values_are_those_of_pyblp(results: Any) -> None:
    ours, theirs = (results(library).compute_micro_values(moments(library)) for library in (blpjax, pyblp))
    FIXED_PARAMETERS.check(ours, theirs)
    assert ours.shape == (3,) and results().compute_micro_values([]).shape == (0,)


def test_large_models_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    on_host = estimated().compute_micro_values(moments(blpjax))
    monkeypatch.setattr("blpjax.model.model.HOST_PAIRS", 0)
    FIXED_PARAMETERS.check(estimated().compute_micro_values(moments(blpjax)), on_host)
