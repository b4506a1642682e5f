"""Micro moments by column, next to the same ones by functions of indices, and what is said of what is wrong."""

import pickle
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.economy import surveys
from blpjax.exceptions import DataError, IdentificationWarning
from blpjax.inputs.expressions import SURVEYS, parse_expression
from blpjax.inputs.named_surveys import SurveyValues
from tests.support.designs import mostly_slow
from tests.support.named_surveys import PI, SIGMA, build, evaluate, everything, problem, tables
from tests.support.programs import compilations
from tests.tolerances import CENTRAL_DIFFERENCE, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

Moment, Part, Dataset = blpjax.MicroMoment, blpjax.MicroPart, blpjax.MicroDataset

#: Datasets by column, shapes of their choices, and weights by functions of all columns of a market.
DATASETS: dict[str, tuple[Any, tuple[int, ...], Callable[[dict[str, np.ndarray]], Any]]] = {
    "everybody": (Dataset.everybody("d", 500), (0,), lambda c: c["all"]),
    "buyers": (Dataset.buyers("d", 500), (1,), lambda c: c["all"]),
    "weighted": (
        Dataset.everybody("d", 500, agent_weights="1 + (income > 50)", product_weights="mi + 2 * outside"),
        (0,),
        lambda c: (1 + (c["agent.income"] > 50)) * (c["first.mi"] + 2 * (1 - c["purchase"])) * c["all"],
    ),
    "some markets": (
        Dataset.buyers("d", 500, market_ids=["t1", "t3"], agent_weights="kids"),
        (1,),
        lambda c: c["agent.kids"] * c["all"],
    ),
    "second": (Dataset.second_choices("d", 500), (1, 0), lambda c: c["all"]),
    "all pairs": (
        Dataset.second_choices("d", 500, first="any", product_weights="1 + second.mi"),
        (0, 0),
        lambda c: (1 + c["second.mi"]) * c["all"],
    ),
    "inside pairs": (Dataset.second_choices("d", 500, second="inside"), (1, 1), lambda c: c["all"]),
}  # fmt: skip

#: Expressions, and the same by columns of a market.
FIRST: list[tuple[str, Callable[[dict[str, np.ndarray]], Any]]] = [
    ("age", lambda c: c["agent.age"]),
    ("age * mi", lambda c: c["agent.age"] * c["first.mi"]),
    ("(age - 40) * (x + 0.5)", lambda c: (c["agent.age"] - 40) * (c["first.x"] + 0.5)),
    ("(income / 50 - prices) ** 2", lambda c: (c["agent.income"] / 50 - c["first.prices"]) ** 2),
    ("-log(income) / (1 + prices)", lambda c: -np.log(c["agent.income"]) / (1 + c["first.prices"])),
    ("exp(-age) * agent.size + product.size", lambda c: np.exp(-c["agent.age"]) * c["agent.size"] + c["first.size"]),
    ("(income > 50) * (firm_ids == 'F1')", lambda c: (c["agent.income"] > 50) * (c["first.firm_ids"] == "F1")),
    ("income < 30 * prices", lambda c: c["agent.income"] < 30 * c["first.prices"]),
    ("20 < income <= 60 and region == 'north'", lambda c: (c["agent.income"] <= 60) * (c["agent.region"] == "north")),
    ("distance * purchase", lambda c: c["distance"]),
    ("distance ** 2 / age", lambda c: c["distance"] ** 2 / c["agent.age"]),
    ("purchase - outside", lambda c: 2 * c["purchase"] - 1),
    ("age * (market == 't1') + mi", lambda c: c["agent.age"] * (c["market"] == "t1") + c["first.mi"]),
    ("brand_ids == 0", lambda c: (c["first.brand_ids"] == 0) * (c["purchase"] == 1)),
]  # fmt: skip
SECOND: list[tuple[str, Callable[[dict[str, np.ndarray]], Any]]] = [
    ("mi * second.mi", lambda c: c["first.mi"] * c["second.mi"]),
    ("age * (x - second.x) ** 2", lambda c: c["agent.age"] * (c["first.x"] - c["second.x"]) ** 2),
    ("second.outside * income", lambda c: (1 - c["second.purchase"]) * c["agent.income"]),
    ("same(firm_ids)", lambda c: (c["first.firm_ids"] == c["second.firm_ids"]) * c["purchase"] * c["second.purchase"]),
    ("second.distance - distance", lambda c: c["distance"].swapaxes(1, 2) - c["distance"]),
]


def computing(kind: str, function: Callable[[dict[str, np.ndarray]], Any]) -> Any:
    """A function of columns as one of arrays."""
    offsets = DATASETS[kind][1]

    def compute(t: Any, products: Any, agents: Any) -> np.ndarray:
        columns = everything(t) | {"market": t}
        array = np.broadcast_to(np.asarray(function(columns), float), columns["all"].shape)
        return (array if len(offsets) == 2 else array[:, :, 0])[(slice(None), *(slice(o, None) for o in offsets))]

    return compute


@cache
def dataset_by_index(kind: str) -> Any:
    named, _, weights = DATASETS[kind]
    return Dataset("d", 500, computing(kind, weights), market_ids=named.market_ids)


def by_index(kind: str, values: Callable[[dict[str, np.ndarray]], Any], name: str = "p") -> Any:
    """The part by functions of arrays, as scripts write them."""
    return Part(name, dataset_by_index(kind), computing(kind, values))


@pytest.fixture(scope="module")
def results() -> Any:
    return evaluate([])


@pytest.mark.parametrize("kind", mostly_slow([*DATASETS], ["second"]))
def test_expressions_are_functions_of_arrays(kind: str, results: Any) -> None:
    """To rounding, for every expression; also where callables have the weights and columns the values."""
    known = FIRST + (SECOND if len(DATASETS[kind][1]) == 2 else [])
    named = [Part.of(DATASETS[kind][0], text) for text, _ in known]
    theirs = [by_index(kind, values, text) for text, values in known]
    mixed = [
        Part(text, part.dataset, SurveyValues(parse_expression(text, SURVEYS)))
        for part, (text, _) in zip(theirs, known, strict=True)
    ]
    found = [
        results.compute_micro_values([Moment(f"m{k}", 0, part) for k, part in enumerate(parts)])
        for parts in (named, mixed, theirs)
    ]
    for (text, _), one, other, expected in zip(known, *found, strict=True):
        ROUNDING.check(one, expected, text)
        ROUNDING.check(other, expected, text)


@pytest.mark.parametrize("kind", ["everybody", "second", "some markets"])
def test_columns_need_no_number_for_each_agent_and_choice(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless columns of agents belong to products, or comparisons are of agents with products."""
    calls: list[Any] = []
    monkeypatch.setattr(
        surveys, "compute_values", lambda part, market, shape: calls.append(part.name) or np.ones(shape)
    )
    known = problem().data
    layout = problem().read_parameters(SIGMA, PI, None, None, None, {}).layout
    markets = known.survey_markets(known.products, known.agents_in_economy, layout)
    for text, _ in FIRST:
        surveys.build_surveys(markets, known.economy, [Part.of(DATASETS[kind][0], text)])
    assert set(calls) == {"income < 30 * prices", "distance * purchase", "distance ** 2 / age"}


@pytest.mark.parametrize("build_moments", [
    lambda d: [Moment.mean(d, "age", given="mi", value=40)],
    lambda d: [Moment.mean(d, "log(prices)", given="purchase", value=1)],
    lambda d: [Moment.covariance(d, "income", "x", value=0.1)],
    lambda d: [Moment.covariance(d, "income", "x", given="purchase", value=0.1)],
    lambda d: [Moment.correlation(d, "income", "prices", given="purchase", value=0.1)],
    lambda d: [Moment.variance(d, "prices", given="kids > 0", value=0.4)],
    lambda d: Moment.regression(d, "prices ~ income + agent.size:kids", {"1": 1, "income": 0, "agent.size:kids": 0}),
    lambda d: Moment.regression(d, "prices ~ 0 + income", {"income": 0}, given="purchase"),
])  # fmt: skip
def test_functions_are_those_of_samples(build_moments: Any, results: Any) -> None:
    """Those that NumPy computes of a sample in which each agent and choice has the weight of its probability."""
    dataset = DATASETS["everybody"][0]
    weights, columns = [], []
    for t in problem().unique_market_ids:
        cells = everything(t)
        shape = cells["all"].shape[:2]
        probabilities = np.asarray(results.compute_probabilities(market_id=t)).T
        s = np.column_stack([1 - probabilities.sum(axis=1), probabilities])
        weights.append((s / 6).ravel())
        columns.append({k: np.broadcast_to(v[:, :, 0], shape).ravel() for k, v in cells.items() if "second" not in k})
    w = np.concatenate(weights)
    c = {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}

    def sample(text: str) -> np.ndarray:
        inside = {
            "mi": c["first.mi"], "purchase": c["purchase"], "kids > 0": c["agent.kids"] > 0, "x": c["first.x"],
            "prices": c["first.prices"], "income": c["agent.income"], "age": c["agent.age"], "1": np.ones(w.size),
            "agent.size:kids": c["agent.size"] * c["agent.kids"],
            "log(prices)": np.log(np.where(c["purchase"] > 0, c["first.prices"], 1)),
        }  # fmt: skip
        return np.asarray(inside[text], float)

    for moment in build_moments(dataset):
        text, _, given = moment.name.rstrip("]").partition(" | ")
        g = w * sample(given) if given else w
        kind, _, asked = text.partition("[")
        if kind == "E":
            expected = (g @ sample(asked)) / g.sum()
        elif kind == "Var":
            expected = np.cov(sample(asked), aweights=g, bias=True)
        elif kind in ("Cov", "Corr"):
            C = np.cov(*map(sample, asked.split(", ")), aweights=g, bias=True)
            expected = C[0, 1] if kind == "Cov" else C[0, 1] / np.sqrt(C[0, 0] * C[1, 1])
        else:
            label, _, formula = text.partition(" in ")
            terms = [term.strip() for term in formula.split("~")[1].split("+")]
            terms = terms[1:] if terms[0] == "0" else ["1", *terms]
            X = np.stack([sample(term) for term in terms], axis=1)
            expected = np.linalg.solve(X.T @ (g[:, None] * X), X.T @ (g * sample("prices")))[terms.index(label)]
        np.testing.assert_allclose(results.compute_micro_values([moment])[0], expected, rtol=1e-9, err_msg=moment.name)


def several(value: float = 40) -> list[Any]:
    """Moments of all kinds, with the dataset made anew; those of tests that need some are these, for one program."""
    a, b, c, d = (Dataset.everybody("d", 500) for _ in range(4))
    return [
        Moment.mean(a, "age", given="mi", value=value),
        Moment.mean(b, "purchase", given="kids > 0", value=0.4),
        Moment.correlation(c, "income", "x", given="purchase", value=0.1),
        *Moment.regression(d, "prices ~ income + x", {"income": 0}, given="purchase"),
    ]


@pytest.mark.slow
def test_derivatives_are_differences() -> None:
    """Of means, and functions of many means, at other parameters."""
    ms = several()
    found = evaluate(ms)
    parts = ["age * mi", "mi", "purchase * (kids > 0)", "kids > 0", "income * x * purchase", "income * purchase"]
    assert found.micro_frame(parts=True)["part"].tolist()[:6] == parts
    frame = problem().compare_micro(ms, SIGMA, PI)
    step, sides = 1e-5, []
    for sign in (1, -1):
        pi = PI.copy()
        pi[0, 0] += sign * step
        sides.append(problem().compare_micro(ms, SIGMA, pi)["value"].to_numpy())
    differences = (sides[0] - sides[1]) / (2 * step)
    slopes = found.micro_by_theta_jacobian[:, found.theta_labels.index("1 x log_income")]
    for m, expected in enumerate(differences):
        CENTRAL_DIFFERENCE.check(frame["d/d 1 x log_income"][m], expected)
        CENTRAL_DIFFERENCE.check(-slopes[m], expected)


def test_a_second_problem_compiles_nothing() -> None:
    """With other data, and moments that were made anew; and neither does solving after a look."""

    problem().compare_micro(several(0.1), SIGMA, PI)
    with compilations() as seen:
        evaluate(several(0.1))
    assert seen == []
    products, agents = tables()
    other = build(agents.assign(age=agents.age + 1), products.assign(x=products.x**2))
    with compilations() as seen:
        evaluate(several(0.2), other)
    assert seen == []


def test_named_objects_are_equal_by_value() -> None:
    one, two = (Dataset.second_choices("d", 5, without="brand_ids", market_ids=["t0"]) for _ in range(2))
    assert one == two and len({one, two}) == 1 and one != Dataset.second_choices("d", 6, without="brand_ids")
    assert Part.of(one, "age * mi") == Part.of(two, "age*mi") != Part.of(two, "mi * age")
    assert Part.of(one, "age") != Part.of(Dataset.buyers("e", 5), "age")
    moment = Moment.covariance(one, "age", "mi")
    assert moment.compute_value == Moment.covariance(two, "mi", "x").compute_value
    assert not moment.observed and "+NAN" in str(moment) and "Unknown Obs" in str(Dataset.buyers("b"))
    assert Moment.mean(Dataset.buyers("b", 5), "age").parts[0] == Part.of(Dataset.buyers("b", 5), "age")


def test_names_say_what_moments_are() -> None:
    d = Dataset.buyers("d", 5)
    names = [
        Moment.mean(d, "age").name,
        Moment.mean(d, " age ", given="mi").name,
        Moment.quantile_share(d, "income > 50").name,
        Moment.variance(d, "age").name,
        Moment.covariance(d, "age", "x", given="mi").name,
        Moment.correlation(d, "age", "x").name,
        Moment.regression(d, "x ~ age")[0].name,
        Moment.mean(d, "age", name="A").name,
    ]
    expected = ["E[age]", "E[age | mi]", "E[income > 50]", "Var[age]", "Cov[age, x | mi]", "Corr[age, x]"]
    assert names == [*expected[:2], "P[income > 50]", *expected[3:], "age in x ~ age", "A"]


def test_groups_are_eliminated_by_any_column() -> None:
    """As by columns of product_ids with the same groups, which may be texts and numbers."""
    products, _ = tables()
    known = products.assign(product_ids0=products.product_ids, product_ids1=products.brand_ids)
    found = evaluate([], build(products=known.drop(columns="product_ids")))
    column = Dataset.second_choices("d", 5, without="brand_ids")
    index = Dataset("d", 5, lambda t, p, a: np.ones((a.size, p.size, 1 + p.size)), eliminated_product_ids_index=1)
    values = [
        Moment("m", 0, Part("p", d, SurveyValues(parse_expression("age * second.x", SURVEYS)))) for d in (column, index)
    ]
    ROUNDING.check(*(found.compute_micro_values([moment]) for moment in values))
    same = found.compute_micro_values([Moment.mean(column, "same(brand_ids)"), Moment.mean(column, "same(firm_ids)")])
    assert same[0] == 0 < same[1] < 1
    with pytest.raises(ValueError, match="eliminated_product_ids_index is 1, but product_data have 0 columns"):
        part = Part("p", index, lambda t, p, a: np.ones((a.size, p.size, 1 + p.size)))
        build(products=products.drop(columns="product_ids")).compare_micro([Moment("m", 0, part)], SIGMA, PI)


@pytest.mark.slow
def test_named_moments_are_saved(tmp_path: Path) -> None:
    """With all that there is, and they can be used again."""
    d = Dataset.everybody("d", 500, agent_weights="kids + 1", market_ids=["t1", "t2"])
    pairs = Dataset.second_choices("s", 50, without="brand_ids")
    ms = [
        Moment.mean(d, "firm_ids == 'F1'", value=0.1),
        Moment.correlation(d, "age", "x", given="purchase", value=0.1),
        *Moment.regression(d, "prices ~ income", {"income": 0.01}, given="purchase"),
        Moment.mean(pairs, "second.outside", value=0.5),
    ]
    found = evaluate(ms)
    found.save(tmp_path / "file")
    for again in (blpjax.load(tmp_path / "file"), pickle.loads(pickle.dumps(found))):
        assert [moment.name for moment in again.micro_moments] == [moment.name for moment in ms]
        assert [moment.parts for moment in again.micro_moments] == [moment.parts for moment in ms]
        pd.testing.assert_frame_equal(again.micro_frame(parts=True), found.micro_frame(parts=True))
        np.testing.assert_array_equal(again.compute_micro_values(again.micro_moments), found.compute_micro_values(ms))
    found = evaluate([Moment("m", 0.1, by_index("buyers", FIRST[1][1]))])
    found.save(tmp_path / "file")
    assert np.isfinite(found.micro_frame(parts=True)["part_value"]).all()
    for again in (blpjax.load(tmp_path / "file"), pickle.loads(pickle.dumps(found))):
        assert again.micro_moments is None and np.isnan(again.micro_frame(parts=True)["part_value"]).all()
        pd.testing.assert_frame_equal(again.micro_frame(), found.micro_frame())
    assert evaluate([]).micro_frame(parts=True).empty


@pytest.mark.slow
def test_comparison_is_what_results_say() -> None:
    ms = several()
    found = evaluate(ms)
    frame = problem().compare_micro(ms, SIGMA, PI)
    pd.testing.assert_frame_equal(frame, found.micro_frame(), rtol=1e-8)
    assert frame.columns[:7].tolist() == ["moment", "observed", "value", "difference", "se", "t", "informative"]
    assert frame.columns[7:].tolist() == [f"d/d {label}" for label in found.theta_labels]
    np.testing.assert_allclose(frame["t"], found.micro[:, 0] / np.sqrt(np.diag(found.micro_covariances)), rtol=1e-9)
    sample = problem().compare_micro(ms, SIGMA, PI, micro_sample_covariances=np.diag([4.0, 9.0, 16.0, 25.0]))
    np.testing.assert_allclose(sample["se"], [2, 3, 4, 5])


@pytest.mark.slow
def test_moments_that_shares_fix_are_uninformative() -> None:
    """Means of what products have, over everybody, are those of market shares at any parameters."""
    d = Dataset.everybody("d")
    ms = [Moment.mean(d, "age", given="mi"), Moment.mean(d, "x * purchase")]
    with pytest.warns(IdentificationWarning, match=r"micro moments 'E\[x \* purchase\]' are uninformative"):
        frame = problem().compare_micro(ms, SIGMA, PI)
    assert (
        frame["informative"].tolist() == [True, False] and frame["observed"].isna().all() and frame["se"].isna().all()
    )
    products, agents = tables()
    T = products.market_ids.nunique()
    np.testing.assert_allclose(frame["value"][1], (products.x * products.shares).sum() / T, rtol=1e-10)


@pytest.mark.parametrize("estimated", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_optimal_moments_are_scores(estimated: bool, results: Any) -> None:
    """Of agents' choices their mean is zero; observed ones are those of respondents."""
    found = results
    d = Dataset.everybody("d", 60, market_ids=["t1", "t2"])
    people = pd.DataFrame(blpjax.data_to_dict(found.simulate_micro_data(d, seed=0)))
    agents = tables()[1]
    agents = agents.assign(agent_indices=agents.groupby("market_ids").cumcount()).drop(columns="weights")
    people = people.merge(agents, on=["market_ids", "agent_indices"]).sort_values("micro_ids")
    people = people.drop(columns=["nodes0", "nodes1"])
    rule = blpjax.Integration("product", 3)
    ms = Moment.scores(found, d, people, rule)
    assert [moment.name for moment in ms] == [f"score of {label}" for label in found.theta_labels]
    expected = [scores.mean() for scores in found.compute_micro_scores(d, people, rule)]
    np.testing.assert_array_equal([moment.value for moment in ms], expected)
    own = Moment.scores(found, d, people.assign(weights=1.0, nodes0=0.1, nodes1=-0.2))
    assert np.abs(found.compute_micro_values(own)).max() < 1e-10
    if estimated:
        frame = evaluate(ms).micro_frame()
        assert frame["informative"].all() and np.isfinite(frame["se"]).all()


# what is wrong


#: Moments of a dataset of everybody, and what is said of them.
WRONG: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (
        lambda d: Moment.mean(d, "aeg"),
        DataError,
        r"Micro moment 'E\[aeg\]' of micro dataset 'd', expression 'aeg': there is no column 'aeg' in product_data or "
        "agent_data. Did you mean 'age'",
    ),
    (lambda d: Moment.mean(d, "age", given="min"), DataError, "expression 'age [*] min': there is no column 'min'"),
    (lambda d: Moment.mean(d, "agent.x"), DataError, "there is no column 'x' in agent_data. There are: "),
    (
        lambda d: Moment.mean(d, "size"),
        DataError,
        "column 'size' in both product_data and agent_data. Write 'product.size' or 'agent.size'",
    ),
    (lambda d: Moment.mean(d, "market_ids == 't1'"), DataError, "for IDs of markets write 'market'"),
    (lambda d: Moment.mean(d, "second.x"), DataError, "'second.x' is about second choices, which the dataset has none"),
    (lambda d: Moment.mean(d, "same(firm_ids)"), DataError, r"'same\(firm_ids\)' is about second choices"),
    (
        lambda d: Moment.mean(d, "firm_ids * age"),
        DataError,
        "'firm_ids' holds text, but numbers are needed. Compare it",
    ),
    (lambda d: Moment.mean(d, "firm_ids"), DataError, "firm_ids is text. Compare it, as in firm_ids == 'a'"),
    (
        lambda d: Moment.mean(d, "firm_ids == 1"),
        DataError,
        "firm_ids == 1 compares text with numbers. Text needs quotes",
    ),
    (
        lambda d: Moment.mean(d, "firm_ids > 'F0'"),
        DataError,
        "firm_ids > 'F0' compares text, which is only equal or not",
    ),
    (lambda d: Moment.mean(d, "age == 'old'"), DataError, "compares numbers with text"),
    (
        lambda d: Moment.mean(d, "log(prices)"),
        DataError,
        r"values for micro part 'log\(prices\)' of micro dataset 'd' in market 't0' must be finite .* row \d+ of "
        "agent_data and the outside good, where prices = 0.0. For products alone, give given='purchase'",
    ),
    (
        lambda d: Moment.mean(d, "log(kids) + mi"),
        DataError,
        r"in market 't0' must be finite .*, where kids = 0.0, mi = ",
    ),
    (
        lambda d: Moment.mean(d, "age ++"),
        ValueError,
        "an expression of micro dataset 'd': 'age [+][+]' cannot be parsed",
    ),
    (lambda d: Moment.mean(d, "sqrt(age)"), ValueError, "The function 'sqrt' in 'sqrt[(]age[)]' is not supported"),
    (lambda d: Moment.mean(d, "age or mi"), ValueError, "The expression 'age or mi' in 'age or mi' is not supported"),
    (lambda d: Moment.mean(d, "age in mi"), ValueError, "'mi' in 'age in mi' is compared in an unsupported way"),
    (lambda d: Moment.mean(d, 3), TypeError, "an expression of micro dataset 'd' must be an expression as text"),
    (lambda d: Moment.mean("d", "age"), TypeError, "dataset must be a MicroDataset, not str"),
    (lambda d: Moment.quantile_share(d, "income"), ValueError, "quantile_share needs a comparison"),
    (lambda d: Moment.regression(d, "prices")[0], ValueError, "needs a formula such as"),
    (
        lambda d: Moment.regression(d, "prices ~ age", {"income": 1})[0],
        ValueError,
        "'income' is none of the terms '1', 'age' of 'prices ~ age'",
    ),
    (lambda d: Dataset.second_choices("s", first="all"), ValueError, "first must be one of 'inside', 'any', not 'all'"),
    (lambda d: Dataset.second_choices("s", without=1), TypeError, "without must be the name of a column"),
    (lambda d: Dataset.buyers("s", 0), ValueError, "observations must be a positive int, not 0"),
    (
        lambda d: Moment.mean(Dataset.second_choices("s", without="brand"), "age"),
        DataError,
        "Micro dataset 's', without: there is no column 'brand' in product_data. Did you mean 'brand_ids'",
    ),
    (
        lambda d: Moment.mean(Dataset.buyers("s", agent_weights="x"), "age"),
        DataError,
        "Micro dataset 's': agent_weights 'x' must not use columns of product_data",
    ),
    (
        lambda d: Moment.mean(Dataset.buyers("s", product_weights="distance"), "age"),
        DataError,
        "Micro dataset 's': product_weights 'distance' must not use columns of agent_data",
    ),
    (
        lambda d: Moment.mean(Dataset.buyers("s", product_weights="x"), "age"),
        DataError,
        "weights for micro dataset 's' in market 't0' must not be negative, but product_weights 'x' are for row",
    ),
    (
        lambda d: Moment.mean(Dataset.buyers("s", agent_weights="1 / kids"), "age"),
        DataError,
        "must not be missing or infinite, but agent_weights '1 / kids' are for row .* where kids = 0.0",
    ),
    (
        lambda d: Moment.mean(Dataset.buyers("s", agent_weights="age < 0"), "age"),
        DataError,
        "weights for micro dataset 's' in market 't0' are all zero. Use market_ids",
    ),
    (
        lambda d: Moment.mean(Dataset.buyers("s", market_ids=["t9"]), "age"),
        ValueError,
        "'s' is invalid: product_data have no markets with the IDs 't9'",
    ),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("make", "error", "message"), WRONG)
def test_what_is_wrong_is_named(make: Any, error: type[Exception], message: str, results: Any) -> None:
    with pytest.raises(error, match=message):
        made = make(Dataset.everybody("d"))
        results.compute_micro_values([made])


def test_missing_values_of_agents_are_named() -> None:
    """Unless weights, or the condition, leave these agents out. Comparisons take them for no answer."""
    agents = tables()[1].copy()
    row = int(np.flatnonzero(agents.kids == 0)[0])
    agents.loc[row, ["income", "age"]] = np.nan
    found = evaluate([], build(agents))
    d = Dataset.buyers("d", 5)
    for text in ("income", "income > 50", "age * x", "age < prices"):
        with pytest.raises(DataError, match=f"must be finite .* row {row} of agent_data .* = nan"):
            found.compute_micro_values([Moment.mean(d, text)])
    weighted = Dataset.buyers("d", 5, agent_weights="kids")
    values = found.compute_micro_values([Moment.mean(weighted, "age"), Moment.mean(weighted, "age", given="kids > 0")])
    assert np.isfinite(values).all() and values[0] == pytest.approx(values[1])
    given = found.compute_micro_values([Moment.mean(d, "age", given="kids > 0")])
    assert np.isfinite(given).all()


def test_estimation_needs_values_and_observations() -> None:
    with pytest.raises(ValueError, match=r"The micro moment 'E\[age\]' has no value. Give value="):
        evaluate([Moment.mean(Dataset.buyers("d", 5), "age")])
    with pytest.raises(ValueError, match="The micro dataset 'd' has no number of observations"):
        evaluate([Moment.mean(Dataset.buyers("d"), "age", value=3)])
    with pytest.raises(ValueError, match="'d' has no number of observations, which are simulated"):
        evaluate([]).simulate_micro_data(Dataset.buyers("d"))
    with pytest.raises(ValueError, match="micro_moments must have at least one moment"):
        problem().compare_micro([], SIGMA, PI)
    twice = [Moment.mean(Dataset.buyers("d", 5), "age", value=3) for _ in range(2)]
    with pytest.raises(ValueError, match=r"two moments have the name 'E\[age\]'"):
        evaluate(twice)


def test_scores_belong_to_agents(results: Any) -> None:
    d = Dataset.everybody("d", 60)
    people = pd.DataFrame({"market_ids": ["t1"], "choice_indices": 0, "log_income": 0.1, "kids": 1})
    ms = Moment.scores(results, d, people, blpjax.Integration("product", 2))
    agents = tables()[1]
    fewer = build(agents.groupby("market_ids").head(5).assign(weights=0.2))
    with pytest.raises(DataError, match="scores belong to the agents for which they were computed"):
        evaluate(ms, fewer)


@pytest.mark.slow
def test_collinear_moments_are_named() -> None:
    """Buyers and others are all: one of these shares says what the other one says."""
    d = Dataset.everybody("d", 500)
    ms = [
        Moment.mean(d, "kids * purchase", value=0.3),
        Moment.mean(d, "income > 50 and purchase", value=0.3),
        Moment.mean(d, "income <= 50 and purchase", value=0.1),
        Moment.mean(d, "purchase * age", value=12),
    ]
    with pytest.warns(IdentificationWarning, match="") as seen:
        evaluate([*ms, Moment.mean(d, "2 * kids * purchase", value=0.6)])
    texts = [str(one.message) for one in seen]
    assert any("covariances of the" in text and "kids * purchase]'" in text for text in texts)
    moments, covariances = ms[:2], np.ones((2, 2))
    with pytest.warns(IdentificationWarning, match=r"are singular: .* Collinear are 'E\[.*', 'E\["):
        problem().compare_micro(moments, SIGMA, PI, micro_sample_covariances=covariances)


def test_everybody_buys_as_shares_say(results: Any) -> None:
    """The probability of a product in a survey of everybody in its market is its share."""
    products, _ = tables()
    moments = []
    for row, product in products.iterrows():
        dataset = Dataset.everybody(f"d{row}", market_ids=[product.market_ids])
        moments.append(Moment.mean(dataset, f"product_ids == '{product.product_ids}'", name=f"m{row}"))
    np.testing.assert_allclose(results.compute_micro_values(moments), products.shares, rtol=1e-10)


@pytest.mark.parametrize(
    "ids", [[7, 3, 11, 5], np.array(["2001-01-01", "2000-01-01", "2003-01-01", "2002-01-01"], "M8[D]")]
)
def test_market_ids_may_be_numbers_and_dates(ids: Any, results: Any) -> None:
    """Whatever their order, which is that of rows here and not of IDs."""
    known = dict(zip(["t0", "t1", "t2", "t3"], ids, strict=True))
    moved = [table.assign(market_ids=table.market_ids.map(known)) for table in tables()]
    found = evaluate([], build(moved[1], moved[0]))

    def values(source: Any, markets: list[Any], word: str) -> np.ndarray:
        d = Dataset.buyers("d", 5, market_ids=markets)
        moments = [Moment.mean(d, "age * x"), Moment.mean(d, f"age * (market == {word})")]
        return source.compute_micro_values(moments)

    word = repr(str(known["t2"])) if isinstance(ids, np.ndarray) else str(known["t2"])
    expected = values(results, ["t1", "t2"], "'t2'")
    np.testing.assert_allclose(values(found, [known["t1"], known["t2"]], word), expected, rtol=1e-9)


@pytest.mark.slow
def test_derivatives_are_differences_with_everything() -> None:
    """Nests with a free rho, availability, demographics of products, an agent without weight, and second choices."""
    products, agents = tables()
    sizes = agents.market_ids.map(products.groupby("market_ids").size()).to_numpy()
    agents = agents.assign(weights=np.where(agents.index % 6 == 0, 0, agents.weights))
    agents["weights"] = agents.weights / agents.groupby("market_ids").weights.transform("sum")
    available = (np.random.default_rng(0).uniform(size=(len(agents), 7)) > 0.2) & (np.arange(7) < sizes[:, None])
    available[:, 0] = True
    agents = agents.assign(**{f"availability{j}": available[:, j] * 1.0 for j in range(7)})
    own = blpjax.Problem(
        (blpjax.Formulation("1 + prices + x"), blpjax.Formulation("1 + x")),
        products.assign(nesting_ids=products.mi),
        blpjax.Formulation("0 + log_income + I(distance / 9)"),
        agents,
    )
    pairs, buyers = Dataset.second_choices("s", 50, first="any"), Dataset.buyers("b", 90, agent_weights="age")
    ms = [
        Moment.mean(buyers, "income * x", value=30),
        Moment.mean(pairs, "mi * second.mi * age", given="purchase", value=0.3),
        Moment.mean(pairs, "second.distance", given="second.purchase", value=4),
        Moment.correlation(buyers, "income", "distance", value=0.1),
    ]
    at = np.array([0.6, 0.3, 0.3, -0.2, 0.2, 0.4])  # sigma, pi by rows, rho

    def parameters(theta: np.ndarray) -> tuple[Any, Any, Any]:
        return np.diag(theta[:2]), [[theta[2], theta[3]], [0, theta[4]]], [theta[5]]

    options = {"method": "1s", "optimization": blpjax.Optimization("return"), "micro_moments": ms}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)
        first = own.solve(*parameters(at), check_optimality="gradient", **options)
        W = np.asarray(first.updated_W)
        found = own.solve(*parameters(first.theta), W=W, **options)
        step, sides = 1e-5, []
        assert first.theta.tolist() == at.tolist()
        for direction in step * np.eye(at.size):
            moved = [
                own.solve(*parameters(at + sign * direction), W=W, check_optimality="gradient", **options)
                for sign in (1, -1)
            ]
            sides.append([(one.micro[:, 0], one.objective, one.gradient[:, 0]) for one in moved])
    by_theta = np.array([(one[0][0] - one[1][0]) / (2 * step) for one in sides]).T
    CENTRAL_DIFFERENCE.check(found.micro_by_theta_jacobian, by_theta)
    CENTRAL_DIFFERENCE.check(found.gradient[:, 0], [float(one[0][1] - one[1][1]) / (2 * step) for one in sides])
    CENTRAL_DIFFERENCE.check(found.hessian, [(one[0][2] - one[1][2]) / (2 * step) for one in sides])


@pytest.mark.slow
def test_simulations_and_sampled_agents_have_columns() -> None:
    """Prices and shares are those of the simulation, and agents those that were drawn."""
    found = evaluate([])
    d = Dataset.buyers("d", 50)
    drawn = found.importance_sampling(4, seed=0, agent_data=pd.concat([tables()[1]] * 10, ignore_index=True))
    values = evaluate([], drawn.to_problem()).compute_micro_values([Moment.mean(d, "age * (region == 'north')")])
    assert 0 < values[0] < 70
    products, agents = tables()
    simulation = blpjax.Simulation(
        (blpjax.Formulation("1 + prices + x"), blpjax.Formulation("1 + x"), blpjax.Formulation("1 + x")),
        products.drop(columns=["prices", "shares", "size"]).assign(firm_ids=products.firm_ids),
        beta=[1, -2, 1],
        sigma=SIGMA,
        pi=PI,
        gamma=[1, 0.1],
        agent_formulation=blpjax.Formulation("0 + log_income + kids"),
        agent_data=agents,
        seed=0,
    ).replace_endogenous()
    named = Moment.mean(d, "kids * prices")
    compute = Part(
        "p",
        Dataset("e", 5, lambda t, p, a: np.ones((a.size, p.size))),
        lambda t, p, a: np.tile(p.prices.T, (a.size, 1)),
    )
    price = simulation.compute_micro_values([Moment.mean(d, "prices"), Moment("m", 0, compute)])
    ROUNDING.check(price[0], price[1])
    assert np.isfinite(simulation.compute_micro_values([named])).all()


@pytest.mark.slow
def test_groups_must_go_with_nests() -> None:
    products, _ = tables()
    nested = products.assign(nesting_ids=products.mi)
    own = build(products=nested)
    with pytest.raises(
        ValueError, match="'d' is invalid in market 't0': what is eliminated .* must lie within one nest"
    ):
        own.compare_micro([Moment.mean(Dataset.second_choices("d", without="brand_ids"), "second.x")], SIGMA, PI, 0.3)
    found = own.compare_micro([Moment.mean(Dataset.second_choices("d", without="mi"), "second.x")], SIGMA, PI, 0.3)
    assert np.isfinite(found["value"]).all() and found["d/d All Groups"].abs().max() > 0
