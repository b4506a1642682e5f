"""Conduct as a tree of plain values, which files hold, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from blpjax.kernels import conduct as conducts
from blpjax.kernels.conduct import Conduct
from blpjax.kernels.conduct_parameters import Parameter
from blpjax.kernels.priced_market import Owners

State = dict[str, Any]


def conduct_state(conduct: Conduct) -> State:
    """The tree of a conduct.

    Raises
    ------
    NotImplementedError
        When it is a user's function or class.
    """
    from blpjax.kernels.own_conduct import OwnConditions, OwnConduct  # which problems without one do not need

    kind = type(conduct)
    if isinstance(conduct, OwnConduct | OwnConditions) or getattr(conducts, kind.__name__, None) is not kind:
        raise NotImplementedError(
            f"conduct {conduct.name!r} is a function or class of your own, and files hold no code. Save the estimates "
            "themselves, for example results.to_dict(), or pickle the results."
        )
    fields = {field.name: _value(getattr(conduct, field.name)) for field in dataclasses.fields(conduct)}
    return {"kind": kind.__name__, "fields": fields}


def stored_conduct(state: State) -> Conduct:
    """The conduct of a tree."""
    kind = getattr(conducts, state["kind"])
    found: Conduct = object.__new__(kind)
    for name, value in state["fields"].items():
        object.__setattr__(found, name, _stored(value))
    return found


def _value(value: Any) -> Any:
    if isinstance(value, Conduct):
        return {"conduct": conduct_state(value)}
    if isinstance(value, Parameter):
        return {"parameter": value.name, "bounds": list(value.bounds)}
    if not isinstance(value, Owners):
        return value
    weights = value.weights
    if isinstance(weights, Mapping):
        weights = {"pairs": [[*pair, _value(weight)] for pair, weight in weights.items()]}
    elif isinstance(weights, Parameter):
        weights = _value(weights)
    elif weights is not None and np.ndim(weights):
        weights = np.asarray(weights, float)
    return {"owners": value.name, "weights": weights}


def _stored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "conduct" in value:
        return stored_conduct(value["conduct"])
    if "parameter" in value:
        lower, upper = value["bounds"]
        return Parameter(value["parameter"]).within(lower, upper)
    weights = value["weights"]
    if isinstance(weights, dict) and "pairs" in weights:
        weights = {(first, second): _stored(weight) for first, second, weight in weights["pairs"]}
    elif isinstance(weights, dict):
        weights = _stored(weights)
    return Owners(value["owners"], weights)
