"""Micro moments from a survey's table: values, numbers of respondents, and covariances."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from blpjax.inputs.micro import MicroDataset, MicroMoment, MicroPart, distinct_parts, read_micro_moments
from blpjax.inputs.named_surveys import SurveyValues, SurveyWeights
from blpjax.inputs.survey_rows import read_survey_rows, row_values
from blpjax.objective.micro import moment_functions, moment_values

_NOTATION = (
    "'E[x]', 'E[x | g]', 'P[x > 1]', 'Var[x]', 'Cov[x, y]', 'Corr[x, y]', each perhaps given g, or a regression such "
    "as 'y ~ x + z'"
)


class SurveyMoments(NamedTuple):
    """What a survey says: `moments, covariances = blpjax.micro_moments(...)`.

    Attributes
    ----------
    moments : list of MicroMoment with observed values, for `Problem.solve` as `micro_moments`.
    covariances : (MM, MM) sampling covariances of the values, for `micro_sample_covariances`.
    """

    moments: list[MicroMoment]
    covariances: np.ndarray


def micro_moments(
    dataset: MicroDataset,
    survey_data: Any,
    moments: Sequence[str | MicroMoment],
    product_data: Any = None,
    *,
    weights: str | None = None,
    clusters: str | None = None,
    outside: Any = None,
) -> SurveyMoments:
    """Micro moments with the values that a survey's table has, and the covariances of these.

    The expressions of moments are evaluated for each respondent; values are functions of their (weighted) means, and
    covariances follow by the delta method, without a correction for small samples. Surveys of other respondents are
    independent: use `scipy.linalg.block_diag` for the covariances of moments of several.

    Parameters
    ----------
    dataset : MicroDataset that is made by column. Its number of observations is replaced by the number of rows.
    survey_data : DataFrame, dict of arrays, or structured array
        A row for each respondent, with `market_ids`, `product_ids` of choices, in which missing values stand for the
        outside good, `second_product_ids` for second choices, and all columns of agents that expressions use.
    moments : sequence of str or MicroMoment
        Such as ``"E[age | minivan]"``, ``"P[income > 50]"``, ``"Var[x]"``, ``"Cov[x, y | g]"``, ``"Corr[x, y]"``,
        ``"prices ~ income + age"`` (a moment for each coefficient but the intercept), or moments by column of this
        dataset, whose values play no role.
    product_data : table, optional
        Products with `market_ids` and `product_ids`, by which choices are found, and the columns of products that
        expressions use. Without it they may use those of the survey, and ``purchase`` and ``outside``.
    weights : str, optional
        Column of weights of respondents. The dataset should then describe the population that they represent.
    clusters : str, optional
        Column that says which respondents were drawn together, such as households.
    outside : optional
        An ID that stands for the outside good.

    Returns
    -------
    SurveyMoments, a pair of moments and covariances.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type, a moment cannot be read or is there twice, or is of another dataset.
    DataError
        When a table cannot be used, a choice is no product of its market, a respondent cannot be in the survey, or an
        expression has a column that is not there or a value that is missing. Messages name column, market and row.
    """
    if not isinstance(dataset, MicroDataset):
        raise TypeError(f"dataset must be a MicroDataset, not {type(dataset).__name__}.")
    if not isinstance(dataset.compute_weights, SurveyWeights):
        raise TypeError(
            f"The micro dataset '{dataset.name}' must be one by column, such as MicroDataset.buyers(...): its "
            "compute_weights is a function of arrays, which a survey's table does not have."
        )
    chosen = read_micro_moments(_read(dataset, moments))
    respondents = read_survey_rows(dataset, survey_data, product_data, weights, clusters, outside)
    parts, w = distinct_parts(chosen), respondents.weights
    values = np.array([row_values(part, respondents) for part in parts]).reshape(len(parts), w.size)
    means = values @ w
    functions = moment_functions(chosen)
    influence = w * (values - means[:, None])
    sums = np.zeros((len(parts), respondents.clusters.max() + 1))
    np.add.at(sums.T, respondents.clusters, influence.T)
    observed = np.asarray(moment_values(functions, means))
    F = np.asarray(jax.jacfwd(lambda v: moment_values(functions, v))(means))
    spread = F @ sums
    survey = dataclasses.replace(dataset, observations=w.size)
    known = {part: MicroPart(part.name, survey, part.compute_values) for part in parts}
    filled = []
    for moment, value in zip(chosen, observed, strict=True):
        own = [known[part] for part in moment.parts]
        if not np.isfinite(value):
            raise ValueError(f"The micro moment '{moment.name}' is {value} in survey_data: its condition never holds.")
        alone = moment.is_part
        filled.append(MicroMoment(moment.name, float(value), own[0] if alone else own, moment.compute_value))
    return SurveyMoments(filled, spread @ spread.T)


def _read(dataset: MicroDataset, moments: Any) -> list[MicroMoment]:
    if isinstance(moments, str | MicroMoment) or not isinstance(moments, Iterable):
        raise TypeError(f"moments must be a list of {_NOTATION}, or of MicroMoments, not {moments!r}.")
    found: list[MicroMoment] = []
    for moment in moments:
        if isinstance(moment, str):
            found += _parse(dataset, moment)
            continue
        if not isinstance(moment, MicroMoment):
            raise TypeError(f"moments must be text or MicroMoments, but one of them is {type(moment).__name__}.")
        for part in moment.parts:
            if part.dataset != dataset or not isinstance(part.compute_values, SurveyValues):
                raise ValueError(
                    f"The micro moment '{moment.name}' must be one by column of the micro dataset '{dataset.name}', "
                    f"but its part '{part.name}' is not."
                )
        found.append(moment)
    if not found:
        raise ValueError("moments must have at least one moment.")
    return found


def _parse(dataset: MicroDataset, text: str) -> list[MicroMoment]:
    if "~" in text:
        formula, _, given = text.partition("|")
        return MicroMoment.regression(dataset, formula, given=given or None)
    match = re.fullmatch(r"\s*(E|P|Var|Cov|Corr)\[([^|]*)(?:\|([^|]*))?\]\s*", text)
    if match is None:
        raise ValueError(f"The moment '{text}' must be {_NOTATION}.")
    kind, asked, given = match.groups()
    expressions = [asked] if kind in ("E", "P", "Var") else asked.split(",")
    if kind in ("Cov", "Corr") and len(expressions) != 2:
        raise ValueError(f"The moment '{text}' must have two expressions, separated by a comma.")
    build: Any = {
        "E": MicroMoment.mean,
        "P": MicroMoment.quantile_share,
        "Var": MicroMoment.variance,
        "Cov": MicroMoment.covariance,
        "Corr": MicroMoment.correlation,
    }[kind]
    return [build(dataset, *(expression.strip() for expression in expressions), given=given and given.strip())]
