"""Likelihoods beside GMM on simulated economies with consumer-level choices: bias, coverage, mean squared errors.

    python -m benchmarks.consumers --number 500

Every economy is estimated by two-step GMM with micro moments of the survey, and by likelihood with its rows. Shares are
those of a finite population, which GMM takes for exact. The command fails when the likelihood is biased beyond Monte
Carlo error, its intervals of 95% cover the truth in less than 92 or more than 98 of 100 economies, or its mean squared
errors are not smaller than those of GMM.
"""

import argparse
import sys
import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import blpjax

#: Markets, products in each, respondents and population of each, and the standard deviation of structural errors.
T, J, ASKED, POPULATION, XI = 20, 6, 300, 20_000, 0.5

#: What x is between.
X = (-2.0, 2.0)

#: The truth: beta, the standard deviation of tastes for x, and how income changes tastes for prices and x.
BETA, SIGMA, PI = (-0.5, -1.5, 1.0), 1.0, (0.5, -0.5)

NAMES = ["sigma x", "prices x income", "x x income", "1", "prices", "x"]
TRUTH = np.array([SIGMA, *PI, *BETA])


class Economy(NamedTuple):
    """Tables of products, of agents, which are nodes for income and tastes, and of respondents."""

    products: pd.DataFrame
    agents: pd.DataFrame
    people: pd.DataFrame


def simulate(seed: int) -> Economy:
    """Draw an economy: costs shift prices, which depend on structural errors; shares are those of a population."""
    rng = np.random.default_rng(seed)
    rule = blpjax.Integration("product", 7).build(2)
    products, people = [], []
    for t in range(T):
        x, z, xi = rng.uniform(*X, J), rng.uniform(0, 2, J), rng.normal(0, XI, J)
        prices = 1.0 + 0.5 * z + 0.3 * x + 0.4 * xi + rng.uniform(0, 0.2, J)
        delta = BETA[0] + BETA[1] * prices + BETA[2] * x + xi
        income, node = rng.normal(size=(2, ASKED))
        p = _probabilities(delta, prices, x, income, node)
        choices = (rng.uniform(size=(ASKED, 1)) > p.cumsum(axis=1)).sum(axis=1)
        pi = rule.weights @ _probabilities(delta, prices, x, *rule.nodes.T)
        counts = np.bincount(choices, minlength=1 + J) + rng.multinomial(POPULATION - ASKED, pi / pi.sum())
        products.append(
            pd.DataFrame(
                {
                    "market_ids": t,
                    "product_ids": range(J),
                    "firm_ids": range(J),
                    "shares": counts[1:] / POPULATION,
                    "prices": prices,
                }
            ).assign(x=x, demand_instruments0=z)
        )
        people.append(pd.DataFrame({"market_ids": t, "choice_indices": choices, "income": income}))
    table = pd.concat(products, ignore_index=True)
    more = blpjax.build_differentiation_instruments(
        blpjax.Formulation("0 + x + demand_instruments0"), table, version="quadratic"
    )
    rivals = [column for column in np.asarray(more).T if column.any()]  # firms have one product
    for k, column in enumerate(rivals):
        table[f"demand_instruments{1 + k}"] = column
    nodes = pd.DataFrame({"weights": rule.weights, "nodes0": rule.nodes[:, 1], "income": rule.nodes[:, 0]})
    agents = pd.concat([nodes.assign(market_ids=t) for t in range(T)], ignore_index=True)
    return Economy(table, agents, pd.concat(people, ignore_index=True))


def _probabilities(delta: Any, prices: Any, x: Any, income: Any, node: Any) -> np.ndarray:
    """Probabilities (I, 1 + J) of choices, the outside good first."""
    V = delta[None, :] + PI[0] * income[:, None] * prices + (SIGMA * node + PI[1] * income)[:, None] * x
    e = np.exp(np.concatenate([np.zeros((len(V), 1)), V], axis=1))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def build(economy: Economy) -> blpjax.Problem:
    """The problem of an economy."""
    formulas = (blpjax.Formulation("1 + prices + x"), blpjax.Formulation("0 + prices + x"))
    return blpjax.Problem(formulas, economy.products, blpjax.Formulation("0 + income"), economy.agents)


def micro_moments(economy: Economy) -> list[blpjax.MicroMoment]:
    """Means over respondents of income times what they have chosen: whether anything, its price, and its x."""
    dataset = blpjax.MicroDataset("survey", len(economy.people), lambda t, p, a: np.ones((a.size, 1 + p.size)))
    rows = (economy.people.market_ids * J + economy.people.choice_indices - 1).to_numpy()
    bought, income = (economy.people.choice_indices > 0).to_numpy(), economy.people.income.to_numpy()
    found = []
    for name in ("one", "prices", "x"):
        chosen = np.ones(rows.size) if name == "one" else economy.products[name].to_numpy()[np.maximum(rows, 0)]
        value = float((bought * income * chosen).mean())

        def compute(t: Any, p: Any, a: Any, name: str = name) -> np.ndarray:
            column = np.ones(p.size) if name == "one" else p.X2[:, 0 if name == "prices" else 1]
            return np.outer(a.demographics[:, 0], np.r_[0.0, column])

        found.append(blpjax.MicroMoment(name, value, blpjax.MicroPart(name, dataset, compute)))
    return found


def estimate(economy: Economy, estimators: tuple[str, ...] = ("cler",)) -> dict[str, Any]:
    """Results of GMM, and of likelihoods that begin at its estimates and weight restrictions by its errors."""
    problem, start = build(economy), np.diag([0.0, SIGMA])
    found = {"gmm": problem.solve(start, np.array(PI)[:, None], micro_moments=micro_moments(economy))}
    gmm = found["gmm"]
    sigma = np.diag([0.0, max(0.1, gmm.sigma[1, 1])])
    for estimator in estimators:
        likelihood = blpjax.MicroLikelihood(
            POPULATION, economy.people, blpjax.Integration("product", 7), estimator, float((gmm.xi**2).mean())
        )
        found[estimator] = problem.solve(sigma, gmm.pi, likelihood=likelihood)
    return found


def rows_of(seed: int, results: dict[str, Any]) -> pd.DataFrame:
    """Estimates and standard errors, one row for each parameter and estimator."""
    parts = []
    for estimator, found in results.items():
        errors = found.estimates()["se"].to_numpy()
        known = {"seed": seed, "estimator": estimator, "parameter": NAMES, "true": TRUTH, "converged": found.converged}
        parts.append(pd.DataFrame({**known, "estimate": found.parameters[:, 0], "error": errors}))
    return pd.concat(parts, ignore_index=True)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Bias with its Monte Carlo error, root mean squared errors, coverage, by estimator and parameter."""
    off = table.estimate - table.true
    table = table.assign(off=off, squared=off**2, covered=off.abs() <= 1.959964 * table.error)
    groups = table.groupby(["parameter", "estimator"], sort=False)
    found = pd.DataFrame(
        {
            "bias": groups.off.mean(),
            "its error": groups.off.std() / np.sqrt(groups.off.count()),
            "rmse": np.sqrt(groups.squared.mean()),
            "mean se": groups.error.mean(),
            "coverage": groups.covered.mean(),
        }
    )
    return found


def check(summary: pd.DataFrame, estimator: str = "cler") -> list[str]:
    """What is not as it should be."""
    own = summary.xs(estimator, level="estimator")
    gmm = summary.xs("gmm", level="estimator")
    wrong = [f"{name} is biased" for name in own.index[(own.bias.abs() > 3 * own["its error"])]]
    wrong += [f"coverage of {name} is off" for name in own.index[~own.coverage.between(0.92, 0.98)]]
    return wrong + [f"GMM has smaller errors for {name}" for name in own.index[own.rmse >= gmm.rmse]]


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--number", type=int, default=500, help="how many economies")
    number = parser.parse_args().number
    blpjax.options.verbose = False
    began, tables = time.perf_counter(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(number):
            tables.append(rows_of(seed, estimate(simulate(seed))))
            if seed % 25 == 24:
                print(f"{seed + 1} of {number} after {time.perf_counter() - began:.0f} seconds", file=sys.stderr)
    table = pd.concat(tables, ignore_index=True)
    summary = summarise(table)
    print(summary.round(4).to_string())
    failed = table[~table.converged].groupby("estimator").seed.nunique()
    print(f"{number} economies, {time.perf_counter() - began:.0f} seconds. Not converged: {dict(failed)}")
    wrong = check(summary)
    print("\n".join(wrong) or "As it should be.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
