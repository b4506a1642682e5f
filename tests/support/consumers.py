"""A small economy with consumer-level choices, and its likelihood by loops over people, nodes and products."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from tests.support.silence import quiet

SIGMA, PI = np.diag([0.0, 1.0]), np.array([[0.5], [-0.4]])
BETA = np.array([-1.0, -1.2, 0.8])
SIZES = {"m0": 2000.0, "m1": 4500.0, "m2": 2500.0, "m3": 3500.0}
NODES = blpjax.Integration("product", 3)


@cache
def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Products, agents and respondents of four markets, one of which nobody was asked in; rows are in random order."""
    rng = np.random.default_rng(8)
    products, agents, people = [], [], []
    rule = NODES.build(1)
    for t, (J, asked) in enumerate([(3, 60), (5, 150), (2, 0), (4, 85)]):
        x, z = rng.uniform(0, 2, (2, J))
        xi = rng.normal(0, 0.5, J)
        prices = 1 + 0.5 * z + 0.3 * xi + rng.uniform(0, 0.3, J)
        delta = BETA[0] + BETA[1] * prices + BETA[2] * x + xi
        income = rng.normal(size=6)
        market = f"m{t}"
        places = np.zeros(J)
        for i in range(len(income)):
            for node, weight in zip(rule.nodes[:, 0], rule.weights, strict=True):
                places += weight / len(income) * choice(delta, x, income[i], node)[1:]
        own = {"market_ids": market, "product_ids": [f"p{j}" for j in range(J)], "shares": places, "prices": prices}
        instruments = {"demand_instruments0": z, "demand_instruments1": z * x, "demand_instruments2": z**2}
        products.append(pd.DataFrame({**own, "x": x, "sizes": SIZES[market], **instruments}))
        for person in income:
            one = {"market_ids": market, "income": person, "nodes0": rule.nodes[:, 0]}
            agents.append(pd.DataFrame({**one, "weights": rule.weights / len(income)}))
        for _ in range(asked):
            person, node = rng.normal(), rng.normal()
            chosen = rng.choice([None, *own["product_ids"]], p=choice(delta, x, person, node))
            people.append({"market_ids": market, "income": person, "chosen": chosen})
    found = [pd.concat(products), pd.concat(agents), pd.DataFrame(people)]
    found = [table.sample(frac=1, random_state=2, ignore_index=True) for table in found]
    # indices of choices count products in the order of the table
    order = {market: ["", *own] for market, own in found[0].groupby("market_ids").product_ids}
    chosen = zip(found[2].market_ids, found[2].chosen.fillna(""), strict=True)
    indices = [order[market].index(name) for market, name in chosen]
    return found[0], found[1], found[2].assign(choice_indices=indices)


def choice(delta: Any, x: Any, income: float, node: float, theta: Any = (1.0, 0.5, -0.4)) -> np.ndarray:
    """Probabilities (1 + J,) of somebody's choices, the outside good first."""
    V = np.r_[0.0, delta + theta[1] * income + x * (theta[0] * node + theta[2] * income)]
    e = np.exp(V - V.max())
    return e / e.sum()


@cache
def problem() -> blpjax.Problem:
    """The problem of these tables."""
    products, agents, _ = tables()
    return build(products, agents)


def build(products: pd.DataFrame, agents: pd.DataFrame, formula: str = "1 + prices + x") -> blpjax.Problem:
    """The problem of perhaps other tables."""
    formulas = (blpjax.Formulation(formula), blpjax.Formulation("1 + x"))
    with quiet():
        return blpjax.Problem(formulas, products, blpjax.Formulation("0 + income"), agents)


def likelihood(estimator: str = "cler", **options: Any) -> blpjax.MicroLikelihood:
    """The likelihood of the survey."""
    given = {"market_sizes": SIZES, "micro_data": tables()[2].drop(columns="chosen"), "integration": NODES} | options
    return blpjax.MicroLikelihood(estimator=estimator, **given)


def logs(theta: Any, delta: np.ndarray, people: pd.DataFrame | None = None) -> tuple[float, float]:
    """Negative log likelihoods of the survey and of everybody else, by loops; delta is in the order of products."""
    products, agents, known = tables()
    people, rule = known if people is None else people, NODES.build(1)
    micro = macro = 0.0
    for market, N in SIZES.items():
        rows = np.flatnonzero(products.market_ids == market)
        d, x, s = delta[rows], products.x.to_numpy()[rows], products.shares.to_numpy()[rows]
        asked = people[people.market_ids == market]
        counts = np.bincount(asked.choice_indices, minlength=1 + rows.size)
        for person in asked.itertuples():
            nodes = zip(rule.nodes[:, 0], rule.weights, strict=True)
            p = sum(w * choice(d, x, person.income, v, theta)[person.choice_indices] for v, w in nodes)
            micro -= np.log(p)
        pi = np.zeros(1 + rows.size)
        for agent in agents[agents.market_ids == market].itertuples():
            pi += agent.weights * choice(d, x, agent.income, agent.nodes0, theta)
        left = N * np.r_[1 - s.sum(), s] - counts
        macro -= (left * np.log(pi / (left / left.sum()))).sum()
    return micro, macro


def restriction(delta: np.ndarray, sigma2: float = 1.0) -> tuple[float, np.ndarray, np.ndarray]:
    """``min_beta (delta - X beta)' P_Z (delta - X beta) / 2 sigma2``, the minimiser, and the residuals."""
    products = tables()[0]
    X = np.c_[np.ones(len(products)), products.prices, products.x]
    Z = np.c_[X[:, [0, 2]], products[[f"demand_instruments{k}" for k in range(3)]]]
    fitted = Z @ np.linalg.lstsq(Z, X, rcond=None)[0]
    beta = np.linalg.lstsq(fitted, delta, rcond=None)[0]
    xi = delta - X @ beta
    return 0.5 * xi @ (Z @ np.linalg.lstsq(Z, xi, rcond=None)[0]) / sigma2, beta, xi


def reference_folder() -> Path:
    """The test data of the estimator's authors, which are not part of this project; skips where they are absent.

    ``BLPJAX_REFERENCE`` says where they are; by default in ``shared/reference/micro`` beside the repository.
    """
    root = Path(__file__).resolve().parents[2]
    given = os.environ.get("BLPJAX_REFERENCE")
    tried = [Path(given)] if given else [parent / "shared" / "reference" / "micro" for parent in root.parents]
    for folder in tried:
        if (folder / "estimates_grumps.csv").exists():
            return folder
    pytest.skip("There is no shared/reference/micro beside the repository, nor does BLPJAX_REFERENCE say where it is.")


def reference_problem(rule: bool) -> tuple[blpjax.Problem, pd.DataFrame, dict[str, float]]:
    """The authors' example: with their draws, or with a 7 x 7 rule for each draw of demographics."""
    folder = reference_folder()
    products = pd.read_csv(folder / "example_products.csv")
    people = pd.read_csv(folder / "example_consumers.csv")
    draws = pd.read_csv(folder / "example_draws.csv.gz")
    names = {"market": "market_ids", "product": "product_ids", "share": "shares", "ibu": "prices"}
    table = products.rename(columns=names)
    for k, name in enumerate(["prices", "IVgh_ibu", "IVgh_abv"]):
        table[f"demand_instruments{k}"] = table[name]
    if rule:
        nodes = blpjax.Integration("product", 7).build(2)
        agents = draws.loc[np.repeat(draws.index, nodes.weights.size)].reset_index(drop=True)
        tiled = np.tile(np.c_[nodes.nodes, nodes.weights], (len(draws), 1))
        agents = agents.assign(nodes0=tiled[:, 0], nodes1=tiled[:, 1], weights=agents.weight * tiled[:, 2])
    else:
        nu = pd.read_csv(folder / "grumps_nu.csv.gz")
        agents = draws.assign(nodes0=nu.nu_ibu, nodes1=nu.nu_abv, weights=draws.weight)
    agents = agents.rename(columns={"market": "market_ids"}).drop(columns="weight")
    chosen = people.choice.where(people.choice != "product 11", None)
    survey = pd.DataFrame(
        {"market_ids": people.market, "product_ids": chosen, "income": people.income, "age": people.age}
    )
    sizes = pd.read_csv(folder / "example_marketsizes.csv").set_index("market").N.to_dict()
    formulas = (blpjax.Formulation("1 + prices + abv"), blpjax.Formulation("1 + prices + abv"))
    with quiet():
        return blpjax.Problem(formulas, table, blpjax.Formulation("0 + income + age"), agents), survey, sizes


def reference_estimates(file: str, estimator: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Estimates and standard errors by name, theta in the order of theirs."""
    table = pd.read_csv(reference_folder() / file)
    known = table[table.estimator == estimator.replace("share-constrained", "shareconstraint")]
    return {name: (own.estimate.to_numpy(), own.se.to_numpy()) for name, own in known.groupby("parameter")}
