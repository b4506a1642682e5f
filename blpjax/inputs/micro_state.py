"""Micro moments by column as plain values, which files hold, and back."""

from collections.abc import Sequence
from typing import Any

from blpjax.inputs.expressions import SURVEYS, Expression, parse_expression, source_text
from blpjax.inputs.micro import MicroDataset, MicroMoment, MicroPart, distinct_datasets, distinct_parts
from blpjax.inputs.named_moments import UNKNOWN
from blpjax.inputs.named_surveys import MarketArrays, SurveyValues, SurveyWeights
from blpjax.inputs.survey_functions import function_state, read_function


def moments_state(moments: Sequence[MicroMoment]) -> dict[str, Any] | None:
    """Moments as plain values and arrays; None where one has a function of the user, which files cannot hold."""
    parts = distinct_parts(moments)
    datasets = distinct_datasets(parts)
    known = all(isinstance(dataset.compute_weights, SurveyWeights) for dataset in datasets)
    known &= all(isinstance(part.compute_values, SurveyValues | MarketArrays) for part in parts)
    for moment in moments:
        own = moment.compute_gradient is None and function_state(moment.compute_value) is not None
        known &= moment.is_part or own
    if not known:
        return None
    return {
        "datasets": [_dataset_state(dataset) for dataset in datasets],
        "parts": [
            {"name": part.name, "dataset": datasets.index(part.dataset), **_values_state(part.compute_values)}
            for part in parts
        ],
        "moments": [
            {
                "name": moment.name,
                "value": moment.value,
                "parts": [parts.index(part) for part in moment.parts],
                "function": None if moment.is_part else function_state(moment.compute_value),
            }
            for moment in moments
        ],
    }


def read_moments(state: dict[str, Any]) -> list[MicroMoment]:
    """The moments of a state."""
    datasets = [_read_dataset(one) for one in state["datasets"]]
    parts = [MicroPart(one["name"], datasets[one["dataset"]], _read_values(one)) for one in state["parts"]]
    found = []
    for one in state["moments"]:
        own, value = [parts[p] for p in one["parts"]], one["value"]
        known = UNKNOWN if value != value else value
        if one["function"] is None:
            found.append(MicroMoment(one["name"], known, own[0]))
        else:
            found.append(MicroMoment(one["name"], known, own, read_function(one["function"])))
    return found


def _dataset_state(dataset: MicroDataset) -> dict[str, Any]:
    weights = dataset.compute_weights
    assert isinstance(weights, SurveyWeights)
    return {
        "name": dataset.name,
        "observations": dataset.observations,
        "market_ids": None if dataset.market_ids is None else sorted(dataset.market_ids, key=str),
        "choices": [weights.first, weights.second],
        "agents": _text(weights.agents),
        "products": _text(weights.products),
        "without": weights.without,
    }


def _read_dataset(state: dict[str, Any]) -> MicroDataset:
    agents, products = _expression(state["agents"]), _expression(state["products"])
    first, second = state["choices"]
    weights = SurveyWeights(first, second, agents, products, state["without"])
    return MicroDataset(state["name"], state["observations"], weights, market_ids=state["market_ids"])


def _values_state(values: Any) -> dict[str, Any]:
    if isinstance(values, MarketArrays):
        return {"markets": list(values.arrays), "arrays": list(values.arrays.values())}
    return {"of": _text(values.of), "given": _text(values.given)}


def _read_values(state: dict[str, Any]) -> SurveyValues | MarketArrays:
    if "arrays" in state:
        return MarketArrays(dict(zip(state["markets"], state["arrays"], strict=True)))
    of = _expression(state["of"])
    assert of is not None
    return SurveyValues(of, _expression(state["given"]))


def _text(expression: Expression | None) -> str | None:
    return None if expression is None else source_text(expression)


def _expression(text: str | None) -> Expression | None:
    return None if text is None else parse_expression(text, SURVEYS)
