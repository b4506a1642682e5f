"""Micro datasets, micro parts and micro moments: what surveys say, and checks of what users say about them.

These are plain containers: nothing is computed when they are built. Those that are made by column
(`blpjax.inputs.named_moments`) are equal by value, others when they are the same object. What must hold for a problem's
data is checked when they are used.
"""

import dataclasses
import math
import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from blpjax import options
from blpjax.inputs.named_moments import UNKNOWN, NamedDatasets, NamedMoments, NamedParts
from blpjax.inputs.named_surveys import MarketArrays, SurveyValues, SurveyWeights
from blpjax.inputs.table_format import plain_value

#: A function of a market's ID, its products and its agents, both structured arrays, that returns an array over agents
#: and choices.
MarketFunction = Callable[[Any, Any, Any], Any]


class _ByValue:
    """Equal by value where that is known, and otherwise when it is the same object."""

    def key(self) -> Any:
        """What decides, or None for the object itself."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not type(self):
            return NotImplemented
        key = self.key()
        return key is not None and key == other.key()

    def __hash__(self) -> int:
        key = self.key()
        return object.__hash__(self) if key is None else hash(key)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MicroDataset(NamedDatasets, _ByValue):
    """A survey of consumers: how likely agents are to be in it, given what they choose.

    The constructors `everybody`, `buyers` and `second_choices` name columns instead of functions.

    Parameters
    ----------
    name : str
        What messages and tables call it.
    observations : int
        Number of respondents.
    compute_weights : callable
        ``compute_weights(t, products, agents)`` returns probabilities of being in the survey, up to a factor, for the
        market with the ID `t`: an array over its I agents and its choices, of one of six shapes with J products:
        (I, J) with inside goods, (I, 1 + J) with the outside good in the first column; and for second choices, of
        agents whose first choice were not there, (I, J, J), (I, 1 + J, J) with the outside good among first choices,
        (I, J, 1 + J) with it among second ones, or (I, 1 + J, 1 + J). `products` and `agents` are structured arrays of
        the market's rows: ``products.X2`` is (J, K2), ``agents.demographics`` (I, D), and so on, see
        `Problem.products`.

        The function is called once for each market, before anything is estimated (PyBLP calls it at every evaluation),
        so that it must be a function of its arguments alone. With `options.micro_computation_chunks` it is called for
        some of the agents at a time.
    eliminated_product_ids_index : int, optional
        For second choices: which column of `product_ids` says what is eliminated with the first choice. By default
        that is the chosen product alone.
    market_ids : sequence, optional
        Markets that the survey is about, by default all.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type or value.
    """

    name: str
    observations: int | np.integer | None
    compute_weights: MarketFunction | SurveyWeights
    eliminated_product_ids_index: int | np.integer | None = None
    market_ids: Any = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        count, by_column = self.observations, isinstance(self.compute_weights, SurveyWeights)
        if count is not None or not by_column:
            if isinstance(count, bool | np.bool_) or not isinstance(count, numbers.Integral) or count < 1:
                raise ValueError(f"observations must be a positive int, not {count!r}.")
            object.__setattr__(self, "observations", int(count))
        if not by_column:
            _check_callable("compute_weights", self.compute_weights)
        index = self.eliminated_product_ids_index
        if index is not None:
            if isinstance(index, bool | np.bool_) or not isinstance(index, numbers.Integral) or index < 0:
                raise ValueError(f"eliminated_product_ids_index must be None or a nonnegative int, not {index!r}.")
            object.__setattr__(self, "eliminated_product_ids_index", int(index))
        if self.market_ids is not None:
            object.__setattr__(self, "market_ids", _read_market_ids(self.market_ids))

    def key(self) -> Any:
        """What decides about equality: all fields where weights are by column."""
        if not isinstance(self.compute_weights, SurveyWeights):
            return None
        return self.name, self.observations, self.compute_weights, self.market_ids

    def __str__(self) -> str:
        count = "Unknown" if self.observations is None else self.observations
        return f"{self.name}: {count} Observations in {describe_markets(self)}"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MicroPart(NamedParts, _ByValue):
    """The mean of something over the respondents of a survey.

    The constructor `of` names columns instead of a function.

    Parameters
    ----------
    name : str
        What messages and tables call it.
    dataset : MicroDataset
        The survey.
    compute_values : callable
        ``compute_values(t, products, agents)`` returns what is averaged, for each agent and choice: an array of the
        same shape as that of the dataset's `compute_weights`, which has the same arguments.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type or value.
    """

    name: str
    dataset: MicroDataset
    compute_values: MarketFunction | SurveyValues | MarketArrays

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.dataset, MicroDataset):
            raise TypeError(f"dataset must be a MicroDataset, not {type(self.dataset).__name__}.")
        if not isinstance(self.compute_values, SurveyValues | MarketArrays):
            _check_callable("compute_values", self.compute_values)

    def key(self) -> Any:
        """What decides about equality: all fields where they are by column."""
        if not isinstance(self.compute_values, SurveyValues):
            return None
        return self.name, self.dataset, self.compute_values

    def __str__(self) -> str:
        return f"{self.name} on {self.dataset}"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MicroMoment(NamedMoments):
    """A micro moment: an observed value, less what the model says, a mean or a function of means of surveys.

    The constructors `mean`, `quantile_share`, `variance`, `covariance`, `correlation`, `regression` and `scores` name
    columns instead of functions.

    Parameters
    ----------
    name : str
        What messages and tables call it.
    value : float
        The observed value.
    parts : MicroPart or iterable of MicroParts
        What the moment is a function of; a list afterwards. With a single part, not in a list, it is that part,
        unless there is a `compute_value`.
    compute_value : callable, optional
        Function of an array with the values of the parts that returns a number. Needed with a list of parts.
    compute_gradient : callable, optional
        Its derivatives, an array of the same size. By default they are found by automatic differentiation, for which
        `compute_value` has to consist of arithmetic and functions of `jax.numpy`. It is compared with differences of
        `compute_value` before anything is estimated.

    Raises
    ------
    TypeError, ValueError
        When an argument has the wrong type or value.
    """

    name: str
    value: Any
    parts: Any
    compute_value: Callable[[Any], Any] | None = None
    compute_gradient: Callable[[Any], Any] | None = None

    _part = MicroPart

    def __post_init__(self) -> None:
        _check_name(self.name)
        object.__setattr__(self, "value", _read_value(self.value))
        alone = isinstance(self.parts, MicroPart)
        if isinstance(self.parts, str) or not (alone or isinstance(self.parts, Iterable)):
            raise TypeError(f"parts must be a MicroPart or several of them, not {type(self.parts).__name__}.")
        parts = [self.parts] if alone else list(self.parts)
        if not parts:
            raise ValueError("parts must have at least one MicroPart.")
        for part in parts:
            if not isinstance(part, MicroPart):
                raise TypeError(f"parts must consist of MicroParts, not {type(part).__name__}.")
        check_parts(parts)
        object.__setattr__(self, "parts", parts)
        for name in ("compute_value", "compute_gradient"):
            if getattr(self, name) is not None:
                _check_callable(name, getattr(self, name))
        if self.compute_value is None and not alone:
            raise ValueError("compute_value is needed with a list of parts: a function of an array of their values.")
        if self.compute_value is None and self.compute_gradient is not None:
            raise ValueError("compute_gradient needs a compute_value, of which it is the derivative.")
        if self.compute_value is None:
            # functions, so that a moment can be made anew of the attributes of another one
            object.__setattr__(self, "compute_value", value_of_part)
            object.__setattr__(self, "compute_gradient", gradient_of_part)

    @property
    def is_part(self) -> bool:
        """Whether the moment is its only part."""
        return self.compute_value is value_of_part

    @property
    def observed(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    def __str__(self) -> str:
        return f"{self.name}: {self.value:+.{options.digits - 1}E} ({'; '.join(map(str, self.parts))})"

    __repr__ = __str__


def value_of_part(values: Any) -> Any:
    """The moment that is its only part, given an array with that part's value."""
    return values[0]


def gradient_of_part(values: Any) -> np.ndarray:
    """Its derivative."""
    return np.ones(1)


def describe_markets(dataset: MicroDataset) -> str:
    """Which markets a dataset is about: all, one by name, or how many."""
    if dataset.market_ids is None:
        return "All Markets"
    if len(dataset.market_ids) == 1:
        return f"Market {plain_value(next(iter(dataset.market_ids)))!r}"
    return f"{len(dataset.market_ids)} Markets"


def read_micro_moments(micro_moments: Any, observed: bool = False) -> list[MicroMoment]:
    """Micro moments as an argument. With `observed` values and numbers of observations must be known.

    Raises
    ------
    TypeError
        When it is no iterable of `MicroMoment` instances.
    ValueError
        When a moment is there twice, two moments, two parts or two datasets have the same name, or something is not
        known.
    """
    hint = "micro_moments must be a list of MicroMoment instances"
    if isinstance(micro_moments, MicroMoment):
        raise TypeError(f"{hint}: put the moment into a list, [moment].")
    if isinstance(micro_moments, str) or not isinstance(micro_moments, Iterable):
        raise TypeError(f"{hint}, not {type(micro_moments).__name__}.")
    moments = list(micro_moments)
    for moment in moments:
        if not isinstance(moment, MicroMoment):
            raise TypeError(f"{hint}, but one of them is {type(moment).__name__}.")
    _check_distinct("micro_moments", "moment", moments)
    check_parts(distinct_parts(moments))
    for moment in moments if observed else ():
        if not moment.observed:
            raise ValueError(
                f"The micro moment '{moment.name}' has no value. Give value=..., or have blpjax.micro_moments compute "
                "it from a survey's table."
            )
        for dataset in distinct_datasets(moment.parts):
            if dataset.observations is None:
                raise ValueError(f"The micro dataset '{dataset.name}' has no number of observations.")
    return moments


def distinct_parts(moments: Sequence[MicroMoment]) -> list[MicroPart]:
    """The distinct parts of moments, in the order in which they are met."""
    return list(dict.fromkeys(part for moment in moments for part in moment.parts))


def distinct_datasets(parts: Sequence[MicroPart]) -> list[MicroDataset]:
    """The distinct datasets of parts, in the order in which they are met."""
    return list(dict.fromkeys(part.dataset for part in parts))


def check_parts(parts: Sequence[MicroPart]) -> None:
    """`ValueError` when a part is there twice, or two parts or two datasets have the same name."""
    _check_distinct("parts", "micro part", parts)
    _check_distinct("parts", "micro dataset", distinct_datasets(parts))


def _check_distinct(argument: str, kind: str, values: Sequence[Any]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{argument}: the {kind} '{repeated[0].name}' is there twice.")
    names = [name for (name, _), count in Counter(map(_distinction, values)).items() if count > 1]
    if names:
        raise ValueError(f"{argument}: two {kind}s have the name '{names[0]}'.")


def _distinction(value: Any) -> tuple[str, str]:
    """What values may not share: names, for parts by column those of part and dataset."""
    by_column = isinstance(getattr(value, "compute_values", None), SurveyValues)
    return value.name, value.dataset.name if by_column else ""


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}.")


def _check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise ValueError(f"{name} must be callable, not {value!r}.")


def _read_market_ids(market_ids: Any) -> frozenset[Any]:
    if isinstance(market_ids, str) or not isinstance(market_ids, Iterable):
        raise TypeError(f"market_ids must be a list of market IDs or None, not {market_ids!r}.")
    known = [value if isinstance(value, np.datetime64) else plain_value(value) for value in market_ids]
    if not known:
        raise ValueError("market_ids must have at least one market. Leave it out for all markets.")
    repeated = [value for value, count in Counter(known).items() if count > 1]
    if repeated:
        raise ValueError(f"market_ids are repeated: {', '.join(map(repr, repeated))}.")
    return frozenset(known)


def _read_value(value: Any) -> float:
    if value is UNKNOWN:
        return math.nan
    if value is None or isinstance(value, str | bytes | bool):
        raise TypeError(f"value must be a number, not {value!r}.")
    array = np.asarray(value)
    if array.dtype.kind not in "iufb" or array.size != 1:
        raise TypeError(f"value must be a number, not {value!r}.")
    number = float(array.reshape(-1)[0])
    if not np.isfinite(number):
        raise ValueError(f"value must be finite, not {number}.")
    return number
