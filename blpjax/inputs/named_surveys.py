"""Surveys by column: who is asked, and about what, as values that are equal by what they say; and one market of them.

Weights are products of something of agents and something of choices.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from blpjax.exceptions import DataError
from blpjax.inputs.expressions import Expression, Operation, source_text
from blpjax.inputs.survey_expressions import Asked, Cells, SurveyTables
from blpjax.inputs.table_format import plain_value

CHOICES = ("inside", "any")


@dataclass(frozen=True)
class SurveyWeights:
    """Who is in a survey.

    `first` and `second` say which choices: ``'inside'`` without the outside good, ``'any'`` with it; `second` is None
    without second choices. `agents` and `products` are expressions that multiply weights, or None for one. `without`
    is the column of products that says what is eliminated with a first choice, None for the product alone.
    """

    first: str
    second: str | None
    agents: Expression | None = None
    products: Expression | None = None
    without: str | None = None

    @property
    def offsets(self) -> tuple[int, ...]:
        """Which of 1 + J places the first one of each axis of choices is."""
        return tuple(int(choice == "inside") for choice in (self.first, self.second) if choice is not None)

    def __str__(self) -> str:
        return f"weights by column ({self.first} first choices)"


@dataclass(frozen=True)
class SurveyValues:
    """What is averaged: an expression, times another one that is a condition, or None.

    Where the condition is zero values of the expression play no role, and may be missing.
    """

    of: Expression
    given: Expression | None = None

    @property
    def expression(self) -> Expression:
        """The product."""
        return self.of if self.given is None else Operation("*", self.of, self.given)

    def __str__(self) -> str:
        return source_text(self.expression)


@dataclass(frozen=True, eq=False)
class MarketArrays:
    """Values that are known for each agent and choice, by market ID. Equal when they are the same object."""

    arrays: dict[Any, np.ndarray]

    def at(self, market_id: Any, shape: tuple[int, ...], user: str) -> np.ndarray:
        """Values in a market.

        Raises
        ------
        DataError
            When there are none, or they are those of other agents.
        """
        values = self.arrays.get(plain_value(market_id))
        if values is None:
            raise DataError(f"The {user} are not known: there are scores in other markets only.")
        if values.shape != shape:
            raise DataError(
                f"The {user} have the shape {values.shape}, not {shape}: scores belong to the agents for which they "
                "were computed."
            )
        return values


class Factors(NamedTuple):
    """Sums of R products of something of agents and of choices: (R, I) and (R, C) or (R, C, C)."""

    agents: np.ndarray
    choices: np.ndarray


@dataclass(frozen=True, eq=False)
class SurveyMarket:
    """One market as functions of surveys get it: its ID, and structured arrays of its products and agents.

    `tables` have all columns, of which `product_rows` (J,) and `agent_rows` (I,) are those of the market.
    """

    market_id: Any
    products: np.recarray
    agents: np.recarray
    tables: SurveyTables
    product_rows: np.ndarray
    agent_rows: np.ndarray

    def cells(self, offsets: tuple[int, ...]) -> Cells:
        """All agents and choices, arrays (I, C) or (I, C, C)."""
        places = [np.r_[-1, self.product_rows][offset:] for offset in offsets]
        if len(places) == 1:
            return Cells(self.tables, self.market_id, self.agent_rows[:, None], places[0][None])
        return Cells(
            self.tables, self.market_id, self.agent_rows[:, None, None], places[0][None, :, None], places[1][None, None]
        )


def weight_factors(weights: SurveyWeights, market: SurveyMarket, user: str) -> Factors:
    """Weights in a market, one product.

    Raises
    ------
    DataError
        When weights are negative, missing, infinite, or all zero, or an expression cannot be evaluated.
    """
    cells, found = market.cells(weights.offsets), []
    for name, expression, side in _sides(weights):
        rest = cells.shape[:1] if side == "a" else cells.shape[1:]
        if expression is None:
            found.append(np.ones(rest))
            continue
        asked = read_weights(weights, market.tables, name, user)
        values = np.broadcast_to(
            asked.values(cells), (rest + (1,) * (len(cells.shape) - 1)) if side == "a" else (1, *rest)
        )
        array = values.reshape(rest)
        bad = np.argwhere(~np.isfinite(array) | (array < 0))
        if bad.size:
            index = (*bad[0], *(0,) * (len(cells.shape) - 1)) if side == "a" else (0, *bad[0])
            must = "negative" if array[tuple(bad[0])] < 0 else "missing or infinite"
            raise DataError(
                f"The {user} must not be {must}, but {name} '{source_text(expression)}' are for "
                f"{asked.describe(cells, tuple(map(int, index)))}."
            )
        found.append(array)
    if not found[0].any() or not found[1].any():
        raise DataError(f"The {user} are all zero. Use market_ids to say which markets the dataset is about.")
    return Factors(found[0][None], found[1][None])


def value_factors(
    values: SurveyValues, weights: Factors, market: SurveyMarket, offsets: tuple[int, ...], user: str
) -> Factors | None:
    """Weights times values in a market as products, None where they are no short sum, or not finite."""
    cells, second = market.cells(offsets), len(offsets) == 2
    of = Asked.of(values.of, market.tables, user, second).terms(cells)
    if of is None:
        return None
    given: Any = [(np.ones(()), np.ones(()))]
    if values.given is not None:
        given = Asked.of(values.given, market.tables, user, second).terms(cells)
        if given is None:
            return None
    I, choices = cells.shape[0], cells.shape[1:]  # noqa: E741
    a, b = weights.agents[0], weights.choices[0]
    agents, others = [], []
    for of_agents, of_choices in of:
        for if_agents, if_choices in given:
            agents.append(_times(a, _times(_agents(if_agents, I), _agents(of_agents, I))))
            others.append(_times(b, _times(_choices(if_choices, choices), _choices(of_choices, choices))))
    found = Factors(np.array(agents), np.array(others))
    return found if np.isfinite(found.agents).all() and np.isfinite(found.choices).all() else None


def all_values(values: SurveyValues, cells: Cells, user: str) -> np.ndarray:
    """Values for each agent and choice, zero where the condition is zero."""
    second = cells.second is not None
    of = Asked.of(values.of, cells.tables, user, second).values(cells)
    if values.given is not None:
        of = _times(Asked.of(values.given, cells.tables, user, second).values(cells), of)
    return np.broadcast_to(of, cells.shape)


def describe_cell(values: SurveyValues, cells: Cells, index: tuple[int, ...], user: str) -> str:
    """What columns are in a cell, for messages."""
    return Asked.of(values.expression, cells.tables, user).describe(cells, index)


def read_weights(weights: SurveyWeights, tables: SurveyTables, name: str, user: str) -> Asked:
    """The expression of weights of this name; `DataError` when it is about the wrong table."""
    _, expression, side = next(one for one in _sides(weights) if one[0] == name)
    assert expression is not None
    asked = Asked.of(expression, tables, f"{user}, {name}", weights.second is not None)
    wrong = asked.sides - {side} or (side == "c" and asked.is_specific)
    if wrong:
        other = tables.names[0] if side == "a" else tables.names[1]
        raise DataError(f"{user}: {name} '{source_text(expression)}' must not use columns of {other}.")
    return asked


def check_weights(weights: SurveyWeights, tables: SurveyTables, user: str) -> None:
    """`DataError` when columns of weights are not there, or cannot be used."""
    for name, expression, _ in _sides(weights):
        if expression is not None:
            read_weights(weights, tables, name, user)
    if weights.without is not None:
        eliminated_ids(weights, tables, user)


def eliminated_ids(weights: SurveyWeights, tables: SurveyTables, user: str) -> np.ndarray:
    """Column of all products that says what is eliminated; `DataError` when there is no such column."""
    assert weights.without is not None
    column = tables.find(f"product.{weights.without}", f"{user}, without").column
    values = np.asarray(tables.products[column])
    if values.ndim > 1:
        raise DataError(f"{user}, without: column '{column}' has several columns, but one is needed.")
    return values


def _sides(weights: SurveyWeights) -> tuple[tuple[str, Expression | None, str], ...]:
    return (("agent_weights", weights.agents, "a"), ("product_weights", weights.products, "c"))


def _agents(values: np.ndarray, I: int) -> np.ndarray:  # noqa: E741
    return np.broadcast_to(values.reshape(-1) if values.size > 1 else values.reshape(()), (I,))


def _choices(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(values[0] if values.ndim else values, shape)


def _times(condition: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Products, zero where the first factor is, whatever the second one is."""
    with np.errstate(all="ignore"):
        return np.where(condition == 0, 0.0, condition * values)
