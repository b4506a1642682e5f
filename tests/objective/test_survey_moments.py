"""Micro moments from tables of surveys: values by pandas, covariances by formulas, and surveys drawn from the model."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.exceptions import DataError
from tests.support.named_surveys import evaluate, tables
from tests.tolerances import ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

Moment, Dataset = blpjax.MicroMoment, blpjax.MicroDataset


def survey(n: int = 80, second: bool = False) -> pd.DataFrame:
    """Respondents with choices, some of them of the outside good, which has no ID."""
    products, _ = tables()
    rng = np.random.default_rng(5)
    chosen = products.iloc[rng.integers(0, len(products), n)]
    people = pd.DataFrame({"market_ids": chosen.market_ids.to_numpy(), "product_ids": chosen.product_ids.to_numpy()})
    people = people.assign(income=rng.uniform(20, 80, n), age=rng.uniform(20, 70, n), household=rng.integers(0, 25, n))
    people["row_weights"] = rng.uniform(0.5, 2, n)
    if second:
        number = people.product_ids.str[1:].astype(int)
        people["second_product_ids"] = [f"p{(j + 1) % 5}" if j != 3 else None for j in number]
    else:
        people.loc[::6, "product_ids"] = None
    return people


def joined(people: pd.DataFrame) -> pd.DataFrame:
    """The same with columns of chosen products, zero for the outside good."""
    products = tables()[0][["market_ids", "product_ids", "x", "mi", "prices", "firm_ids"]]
    found = people.merge(products, how="left", on=["market_ids", "product_ids"])
    found["purchase"] = found.product_ids.notna() * 1.0
    return found.fillna({"x": 0, "mi": 0, "prices": 0})


@pytest.mark.parametrize("weights", [None, "row_weights"])
@pytest.mark.parametrize("clusters", [None, "household"])
def test_values_and_covariances_are_those_of_rows(weights: str | None, clusters: str | None) -> None:
    """Each covariance is a sum over clusters of products of influences, which differences of weights give."""
    people = survey()
    specified = ["E[age | mi]", "E[purchase]", "Cov[income, x]", "Corr[age, prices | purchase]", "P[income > 50]"]
    specified += ["Var[x]", "prices ~ income | purchase"]
    given = {"product_data": tables()[0], "weights": weights, "clusters": clusters}
    moments, covariances = blpjax.micro_moments(Dataset.everybody("d"), people, specified, **given)
    c = joined(people)

    def values(w: np.ndarray) -> np.ndarray:
        one, bought = w * (c.mi == 1), w * c.purchase
        income = np.cov(c.income, c.x, aweights=w, bias=True)
        among = np.cov(c.age, c.prices, aweights=bought, bias=True)
        slope = np.cov(c.income, c.prices, aweights=bought, bias=True)
        return np.array(
            [
                (one @ c.age) / one.sum(),
                bought.sum() / w.sum(),
                income[0, 1],
                among[0, 1] / np.sqrt(among[0, 0] * among[1, 1]),
                (w @ (c.income > 50)) / w.sum(),
                income[1, 1],
                slope[0, 1] / slope[0, 0],
            ]
        )

    w = np.ones(len(c)) if weights is None else c[weights].to_numpy()
    np.testing.assert_allclose([moment.value for moment in moments], values(w), rtol=1e-10)
    assert {moment.parts[0].dataset.observations for moment in moments} == {len(c)}
    step = 1e-5
    sides = [np.array([values(w * (1 + sign * e)) for e in step * np.eye(len(c))]) for sign in (1, -1)]
    influence = (sides[0] - sides[1]) / (2 * step)
    if clusters is not None:
        influence = np.array([influence[(c[clusters] == k).to_numpy()].sum(axis=0) for k in sorted(set(c[clusters]))])
    scale = np.sqrt((influence**2).sum(axis=0))
    np.testing.assert_allclose(
        covariances / np.outer(scale, scale), influence.T @ influence / np.outer(scale, scale), atol=1e-7
    )


@pytest.mark.slow
def test_a_survey_of_the_model_has_its_values() -> None:
    """Within three standard errors, which are about those of the model for so many respondents."""
    found = evaluate([])
    dataset = Dataset.second_choices("d", 4000, first="any", without="brand_ids", agent_weights="kids + 1")
    people = pd.DataFrame(blpjax.data_to_dict(found.simulate_micro_data(dataset, seed=1)))
    products, agents = tables()
    agents = agents.assign(agent_indices=agents.groupby("market_ids").cumcount())
    numbered = products.assign(index=1 + products.groupby("market_ids").cumcount())[
        ["market_ids", "index", "product_ids"]
    ]
    people = people.astype({"choice_indices": int, "second_choice_indices": int, "agent_indices": int})
    people = people.merge(agents.drop(columns=["weights"]), on=["market_ids", "agent_indices"])
    for column, index in (("product_ids", "choice_indices"), ("second_product_ids", "second_choice_indices")):
        labels = numbered.rename(columns={"product_ids": column, "index": index})
        people = people.merge(labels, how="left", on=["market_ids", index])
    asked = [
        Moment.mean(dataset, "age * x"),
        Moment.mean(dataset, "second.outside", given="purchase"),
        Moment.mean(dataset, "same(firm_ids)", given="firm_ids == 'F1'"),
        Moment.mean(dataset, "second.distance", given="second.purchase"),
        Moment.covariance(dataset, "x", "second.x", given="purchase and second.purchase"),
    ]
    moments, covariances = blpjax.micro_moments(dataset, people, asked, products)
    errors = np.sqrt(np.diag(covariances))
    assert (np.abs(np.array([m.value for m in moments]) - found.compute_micro_values(moments)) < 3 * errors).all()
    solved = evaluate(moments)
    np.testing.assert_allclose(errors, np.sqrt(np.diag(solved.micro_covariances)), rtol=0.1)
    given = evaluate(moments, micro_sample_covariances=covariances)
    ROUNDING.check(given.micro_covariances, covariances)


def test_surveys_need_no_products_where_they_do_not_use_them() -> None:
    people = survey()
    moments, _ = blpjax.micro_moments(Dataset.everybody("d"), people, ["E[purchase | income > 50]"])
    assert moments[0].value == pytest.approx(people.product_ids.notna()[people.income > 50].mean())
    labelled = people.fillna({"product_ids": "none"})
    same, _ = blpjax.micro_moments(Dataset.everybody("d"), labelled, ["E[purchase | income > 50]"], outside="none")
    assert same[0].value == moments[0].value


def test_ids_may_be_numbers() -> None:
    """Which missing values, and other tables, have turned into decimals."""
    products, _ = tables()
    people = survey()
    texts, _ = blpjax.micro_moments(Dataset.everybody("d"), people, ["E[age | mi]"], products)
    numbered = products.assign(product_ids=products.product_ids.str[1:].astype(int))
    codes = pd.to_numeric(people.product_ids.str[1:])
    assert codes.dtype == float
    numbers, _ = blpjax.micro_moments(
        Dataset.everybody("d"), people.assign(product_ids=codes), ["E[age | mi]"], numbered
    )
    assert numbers[0].value == texts[0].value


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"moments": ["E[aeg]"]},
        DataError,
        "'aeg' of micro dataset 'd': there is no column 'aeg' in product_data or surv",
    ),
    ({"moments": ["E[prices"]}, ValueError, r"The moment 'E\[prices' must be 'E\[x\]', "),
    ({"moments": ["Cov[age]"]}, ValueError, r"'Cov\[age\]' must have two expressions, separated by a comma"),
    ({"moments": "E[age]"}, TypeError, "moments must be a list of"),
    ({"moments": [3]}, TypeError, "moments must be text or MicroMoments, but one of them is int"),
    ({"moments": []}, ValueError, "moments must have at least one moment"),
    ({"moments": ["E[age]", "E[age]"]}, ValueError, r"two moments have the name 'E\[age\]'"),
    (
        {"moments": [Moment.mean(Dataset.buyers("e"), "age")]},
        ValueError,
        "must be one by column of the micro dataset 'd'",
    ),
    ({"moments": ["E[age | income > 900]"]}, ValueError, "is nan in survey_data: its condition never holds"),
    ({"moments": ["E[log(x)]"]}, DataError, "missing or infinite for .* respondents, among them row .* where x = "),
    ({"dataset": "d"}, TypeError, "dataset must be a MicroDataset, not str"),
    (
        {"dataset": Dataset("d", 5, lambda t, p, a: 0)},
        TypeError,
        "'d' must be one by column, such as MicroDataset.buyers",
    ),
    (
        {"dataset": Dataset.buyers("d")},
        DataError,
        "'d' is about inside goods, but column 'product_ids' has none in 14 rows",
    ),
    ({"dataset": Dataset.everybody("d", market_ids=["t0"])}, DataError, "'d' is not about the markets of .* market 't"),
    (
        {"dataset": Dataset.second_choices("d", first="any")},
        DataError,
        "no column 'second_product_ids' of IDs of choices",
    ),
    (
        {"dataset": Dataset.everybody("d", agent_weights="income > 50")},
        DataError,
        "by agent_weights of the micro dataset 'd' respondents in .* cannot be in the survey",
    ),
    ({"weights": "wieghts"}, DataError, "survey_data: there is no column 'wieghts'"),
    ({"clusters": "house"}, DataError, "survey_data: there is no column 'house'"),
    ({"survey_data": survey().drop(columns="product_ids")}, DataError, "no column 'product_ids' of IDs of choices"),
    (
        {"survey_data": survey().assign(product_ids="p9")},
        DataError,
        "no product with the ID in column 'product_ids' in 80",
    ),
    (
        {"survey_data": survey().assign(row_weights=-1), "weights": "row_weights"},
        DataError,
        "'row_weights' of weights is n",
    ),
    (
        {"survey_data": survey().assign(row_weights=0), "weights": "row_weights"},
        DataError,
        "of weights is zero everywhere",
    ),
    (
        {"product_data": tables()[0].drop(columns="product_ids")},
        DataError,
        "product_data: there is no column 'product_ids'",
    ),
    ({"product_data": tables()[0].assign(product_ids="p1")}, DataError, "product_ids are repeated in market 't"),
    (
        {
            "dataset": Dataset.second_choices("d"),
            "survey_data": survey(second=True).assign(second_product_ids=survey(second=True).product_ids),
        },
        DataError,
        "second choices are what was chosen first in 80 rows",
    ),
    (
        {
            "dataset": Dataset.second_choices("d", without="firm_ids"),
            "survey_data": survey(second=True).assign(product_ids="p1", second_product_ids="p3"),
        },
        DataError,
        "second choices are of the same 'firm_ids' as the first in 80 rows",
    ),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("changes", "error", "message"), WRONG)
def test_what_is_wrong_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {
        "dataset": Dataset.everybody("d"),
        "survey_data": survey(),
        "moments": ["E[age | mi]"],
        "product_data": tables()[0],
    } | changes
    with pytest.raises(error, match=message):
        blpjax.micro_moments(**given)
