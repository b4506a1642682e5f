"""Peak memory of an evaluation with second choices among many products, in a process of its own."""

import sys

import numpy as np
import pandas as pd

import blpjax
from blpjax.machine.memory import peak_memory


def main(J: int, people: int, markets: int, named: int = 0) -> None:
    """Print how many bytes it takes, and how many the data of one part have, perhaps with three `named` moments."""
    rng = np.random.default_rng(0)
    blpjax.options.verbose = False
    N = markets * J
    products = pd.DataFrame({"market_ids": np.repeat(np.arange(markets), J), "shares": rng.uniform(0.2, 0.9, N) / J})
    products = products.assign(prices=rng.uniform(1, 2, N), x=rng.uniform(size=N), y=rng.uniform(size=N))
    for k in range(4):
        products[f"demand_instruments{k}"] = products.prices ** (k + 1) + rng.uniform(size=N)
    agents = pd.DataFrame({"market_ids": np.repeat(np.arange(markets), people), "weights": 1 / people})
    agents = agents.assign(nodes0=rng.normal(size=len(agents)), income=rng.normal(size=len(agents)))
    problem = blpjax.Problem(
        (blpjax.Formulation("1 + prices + x + y"), blpjax.Formulation("0 + x + y")),
        products,
        blpjax.Formulation("0 + income"),
        agents,
    )
    moments = by_column() if named else by_function()
    found = problem.solve(
        [[0.5, 0], [0, 0]],
        [[0.2], [0.3]],
        method="1s",
        optimization=blpjax.Optimization("return"),
        check_optimality="gradient",
        micro_moments=moments,
    )
    assert np.isfinite(found.objective) and np.isfinite(found.micro_covariances).all()
    print(peak_memory(), 8 * people * J * (1 + J))


def by_column() -> list[blpjax.MicroMoment]:
    """Three moments, of which nothing has a number for each agent and pair of choices."""
    dataset = blpjax.MicroDataset.second_choices("second", 500)
    asked = "x * second.x", "income * second.y", "second.outside"
    return [blpjax.MicroMoment.mean(dataset, expression, value=0.3) for expression in asked]


def by_function() -> list[blpjax.MicroMoment]:
    """Two moments, whose functions return such numbers."""
    dataset = blpjax.MicroDataset("second", 500, lambda t, p, a: np.ones((a.size, p.size, 1 + p.size)))

    def similar(t: object, p: np.recarray, a: np.recarray) -> np.ndarray:
        return np.einsum("i,j,k->ijk", 1 + a.demographics[:, 0] ** 2, p.x[:, 0], np.r_[0, p.x[:, 0]])

    part = blpjax.MicroPart("similar", dataset, similar)
    other = blpjax.MicroPart("outside", dataset, lambda t, p, a: np.eye(1, 1 + p.size) * np.ones((a.size, p.size, 1)))
    return [blpjax.MicroMoment("similar", 0.3, part), blpjax.MicroMoment("outside", 0.3, other)]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
