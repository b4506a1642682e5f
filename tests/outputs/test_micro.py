"""Micro data at the parameters of results, next to PyBLP."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax.exceptions import DataError
from tests.support.problems import build, evaluate, small_tables
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


@pytest.mark.parametrize("results", [estimated, pytest.param(simulated, marks=pytest.mark.slow)])
def test_values_are_those_of_pyblp(results: Any) -> None:
    ours, theirs = (results(library).compute_micro_values(moments(library)) for library in (blpjax, pyblp))
    FIXED_PARAMETERS.check(ours, theirs)
    assert ours.shape == (3,) and results().compute_micro_values([]).shape == (0,)


def test_large_models_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    on_host = estimated().compute_micro_values(moments(blpjax))
    monkeypatch.setattr("blpjax.model.model.HOST_PAIRS", 0)
    FIXED_PARAMETERS.check(estimated().compute_micro_values(moments(blpjax)), on_host)


# scores and simulated surveys


def survey(library: Any, second: bool = False, **kwargs: Any) -> Any:
    if second:
        return library.MicroDataset("s", 60, lambda t, p, a: np.ones((a.size, p.size, 1 + p.size)), **kwargs)

    def weights(t: Any, products: Any, agents: Any) -> np.ndarray:
        return np.outer(1 + agents.demographics[:, 0] ** 2, np.r_[0.3, np.ones(products.size)])

    return library.MicroDataset("w", 60, weights, **kwargs)


def answers(results: Any, second: bool = False) -> pd.DataFrame:
    """People in some markets with their choices."""
    source = results.simulation if hasattr(results, "simulation") else results.problem
    markets = np.repeat(np.asarray(source.unique_market_ids)[[0, 2, 3]], [3, 2, 4])
    rng = np.random.default_rng(5)
    people = pd.DataFrame({"market_ids": markets, "income": rng.normal(size=9)})
    people["choice_indices"] = np.arange(9) % 3 - (1 if second else 0)
    people["choice_indices"] = people.choice_indices.clip(0)
    people["second_choice_indices"] = (people.choice_indices + 2) % 3
    people.loc[4, "second_choice_indices"] = 0
    return people if second else people.drop(columns="second_choice_indices")


@pytest.mark.parametrize(
    ("results", "second"),
    [
        pytest.param(estimated, False, marks=pytest.mark.slow),
        (estimated, True),
        pytest.param(simulated, False, marks=pytest.mark.slow),
        pytest.param(simulated, True, marks=pytest.mark.slow),
    ],
)
def test_scores_are_those_of_pyblp(results: Any, second: bool) -> None:
    found = []
    for library in (blpjax, pyblp):
        own, data = results(library), answers(results(library), second)
        dataset, rule = survey(library, second), library.Integration("product", 2)
        found.append((own.compute_micro_scores(dataset, data, rule), own.compute_agent_scores(dataset)))
    (ours, all_ours), (theirs, all_theirs) = found
    assert len(ours) == len(theirs) and len(all_ours) == len(all_theirs)
    FIXED_PARAMETERS.check(np.array(ours), np.array(theirs))
    for one, other in zip(all_ours, all_theirs, strict=True):
        assert list(one) == sorted(other)
        for t in one:
            FIXED_PARAMETERS.check(one[t], other[t])


@pytest.mark.slow
def test_scores_are_derivatives_of_log_probabilities() -> None:
    """Of the model's own micro values: the share of a dataset that is one choice of one agent."""
    own = estimated()
    t = own.problem.unique_market_ids[1]
    dataset = blpjax.MicroDataset("d", 1, lambda t, p, a: np.ones((a.size, 1 + p.size)), market_ids=[t])

    def one(t: Any, products: Any, agents: Any) -> np.ndarray:
        return np.outer(np.arange(agents.size) == 1, np.arange(1 + products.size) == 2)

    moment = blpjax.MicroMoment("m", 0, blpjax.MicroPart("p", dataset, one))
    found = evaluate(own.problem, blpjax, micro_moments=[moment])
    expected = -found.micro_by_theta_jacobian[0] / found.micro_values[0]
    FIXED_PARAMETERS.check([score[t][1, 2] for score in own.compute_agent_scores(dataset)], expected)


def test_scores_of_agents_have_mean_zero() -> None:
    own = estimated()
    dataset = survey(blpjax)
    parts = [
        blpjax.MicroPart(f"p{k}", dataset, lambda t, p, a, v=v: np.nan_to_num(v[t]))
        for k, v in enumerate(own.compute_agent_scores(dataset))
    ]
    means = own.compute_micro_values([blpjax.MicroMoment(part.name, 0, part) for part in parts])
    assert np.abs(means).max() < 1e-10


def test_given_nodes_are_grouped_by_respondent_in_their_order() -> None:
    """PyBLP sorts respondents, so that scores may belong to others than one thinks."""
    own, data = estimated(), answers(estimated())
    rng = np.random.default_rng(0)
    rows = data.loc[data.index.repeat(3)].reset_index(drop=True)
    names = np.array(["c", "a", "b", "i", "h", "d", "e", "g", "f"])
    rows = rows.assign(micro_ids=names.repeat(3), weights=1 / 3, **{f"nodes{k}": rng.normal(size=27) for k in range(3)})
    ours = np.array(own.compute_micro_scores(survey(blpjax), rows))
    theirs = np.array(estimated(pyblp).compute_micro_scores(survey(pyblp), rows))
    FIXED_PARAMETERS.check(ours[:, np.argsort(names)], theirs)
    shuffled = np.array(own.compute_micro_scores(survey(blpjax), rows.iloc[::-1]))
    FIXED_PARAMETERS.check(shuffled[:, ::-1], ours)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("results", [estimated, pytest.param(simulated, marks=pytest.mark.slow)])
def test_simulated_surveys_are_those_of_pyblp(results: Any, second: bool) -> None:
    ours, theirs = (
        results(library).simulate_micro_data(survey(library, second), seed=3) for library in (blpjax, pyblp)
    )
    assert ours.dtype.names == theirs.dtype.names and ours.shape == theirs.shape
    for name in ours.dtype.names:
        assert ours[name].dtype == theirs[name].dtype and (ours[name] == theirs[name]).all(), name


def test_simulated_surveys_of_some_markets_are_in_sorted_order() -> None:
    """In PyBLP they are in the order of a set, which differs between processes."""
    ids = estimated().problem.unique_market_ids
    some = [estimated().simulate_micro_data(survey(blpjax, market_ids=own), 0) for own in (ids[[4, 1]], ids[[1, 4]])]
    assert (some[0] == some[1]).all() and set(some[0].market_ids[:, 0]) == set(ids[[1, 4]])


@pytest.mark.slow
def test_simulated_surveys_are_the_same_in_other_processes() -> None:
    """Whose texts have other hashes, by which sets of market IDs are ordered."""
    script = """
import numpy as np, blpjax
from tests.outputs.test_micro import estimated, survey
blpjax.options.verbose = False
ids = estimated().problem.unique_market_ids[[5, 1, 3, 7]]
found = estimated().simulate_micro_data(survey(blpjax, market_ids=list(ids)), seed=0)
print([str(t) for t in found.market_ids[:, 0]], found.agent_indices[:, 0].tolist(), found.choice_indices[:, 0].tolist())
"""
    root, told = Path(__file__).parents[2], []
    for seed in ("1", "2"):
        known = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", script], cwd=root, env=known, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout.splitlines()[-1])
    assert told[0] == told[1]


def wrong(**changes: Any) -> pd.DataFrame:
    data = answers(estimated())
    for name, values in changes.items():
        data = data.drop(columns=name) if values is None else data.assign(**{name: values})
    return data


RULE = blpjax.Integration("product", 2)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("data", "rule", "error", "message"),
    [
        (lambda: wrong(market_ids=None), RULE, KeyError, "micro_data must have market_ids"),
        (lambda: wrong(choice_indices=None), RULE, KeyError, "micro_data must have choice_indices"),
        (wrong, None, KeyError, "micro_data must have micro_ids without an integration"),
        (lambda: wrong(micro_ids=range(9)), None, KeyError, "micro_data must have weights without an integration"),
        (lambda: wrong(micro_ids=range(9), weights=1), None, KeyError, "must have nodes without an integration"),
        (
            lambda: wrong(micro_ids=range(9), weights=1.0, nodes0=0.5),
            None,
            DataError,
            "node",
        ),
        (
            lambda: wrong(micro_ids=[0, 0, 1, 2, 3, 4, 5, 6, 7], weights=1.0, nodes0=0.0, nodes1=0.0, nodes2=0.0),
            None,
            DataError,
            "micro_data: choice_indices differ between the rows of the micro ID 0",
        ),
        (
            lambda: wrong(micro_ids=[0, 1, 2, 0, 3, 4, 5, 6, 7], weights=1.0, nodes0=0.0, nodes1=0.0, nodes2=0.0),
            None,
            DataError,
            "micro_data: market_ids differ between the rows of the micro ID 0",
        ),
        (lambda: wrong(market_ids="nowhere"), RULE, ValueError, "not among the markets of the micro dataset 'w': 'now"),
        (
            lambda: wrong(choice_indices=-1),
            RULE,
            DataError,
            "micro_data: choice_indices in market .* must be from 0 to",
        ),
        (lambda: wrong(choice_indices=99), RULE, DataError, "which are the choices of the dataset's weights, not 99"),
        (lambda: wrong(choice_indices=1.5), RULE, DataError, "micro_data: choice_indices must be integers"),
        (lambda: wrong(choice_indices="a"), RULE, DataError, "micro_data: choice_indices must be integers"),
        (lambda: wrong(income=np.nan), RULE, DataError, "micro_data cannot be used as agents: agent_data: column 'inc"),
        (lambda: wrong(second_choice_indices=1), RULE, DataError, "the dataset is about first choices alone"),
        (wrong, "product", TypeError, "integration must be None or an Integration, not str"),
    ],
)
def test_micro_data_that_cannot_be_used_are_named(data: Any, rule: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        estimated().compute_micro_scores(survey(blpjax), data(), rule)


@pytest.mark.usefixtures("unchecked_types")
def test_what_has_no_scores_says_so() -> None:
    with pytest.raises(TypeError, match="dataset must be a MicroDataset, not str"):
        estimated().compute_agent_scores("d")
    logit = blpjax.Problem(blpjax.Formulation("1 + prices"), small_tables()[0])
    found = logit.solve(method="1s")
    with pytest.raises(ValueError, match="Scores need random coefficients, but X2 is not formulated"):
        found.compute_agent_scores(survey(blpjax))
    names = {t: k for k, t in enumerate(estimated().problem.unique_market_ids)}
    mixed = blpjax.MicroDataset(
        "m", 1, lambda t, p, a: np.ones((a.size, p.size) if names[t] % 2 else (a.size, p.size, p.size))
    )
    with pytest.raises(NotImplementedError, match="Scores of the micro dataset 'm' are not supported, because it has"):
        estimated().compute_agent_scores(mixed)
    some = survey(blpjax, market_ids=estimated().problem.unique_market_ids[:1])
    with pytest.raises(ValueError, match="market_ids that are not among the markets of the micro dataset 'w'"):
        estimated().compute_micro_scores(some, wrong(), RULE)
    with pytest.raises(DataError, match="second_choice_indices in market .* must be from 0 to"):
        pairs = answers(estimated(), second=True).assign(second_choice_indices=99)
        estimated().compute_micro_scores(survey(blpjax, second=True), pairs, RULE)
    with pytest.raises(DataError, match="The weights for micro dataset 'z' in market .* are all zero"):
        estimated().simulate_micro_data(blpjax.MicroDataset("z", 1, lambda t, p, a: np.zeros((a.size, p.size))))


def test_micro_data_need_no_random_coefficients() -> None:
    """The outside good and products are chosen by a single agent."""
    logit = [
        library.Problem(library.Formulation("1 + prices"), small_tables()[0]).solve(method="1s")
        for library in (blpjax, pyblp)
    ]
    moments, data = [], []
    for library, found in zip((blpjax, pyblp), logit, strict=True):
        dataset = library.MicroDataset("d", 40, lambda t, p, a: np.ones((a.size, 1 + p.size, p.size)))
        part = library.MicroPart("p", dataset, lambda t, p, a: np.tile(p.prices[:, 0], (a.size, 1 + p.size, 1)))
        moments.append(found.compute_micro_values([library.MicroMoment("m", 0, part)]))
        data.append(found.simulate_micro_data(dataset, 0).second_choice_indices)
    FIXED_PARAMETERS.check(*moments)
    assert (data[0] == data[1]).all()
