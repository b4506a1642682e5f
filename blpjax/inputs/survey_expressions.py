"""What surveys ask about, by column: which table a name belongs to, and values of expressions for agents and choices.

An expression is split into a sum of products of something of agents and something of choices where it can be, so that
no number is needed for each agent and choice.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from blpjax.exceptions import DataError
from blpjax.inputs.expressions import (
    SURVEYS,
    Expression,
    Function,
    Negative,
    Number,
    Operation,
    Same,
    Text,
    Variable,
    evaluate,
    leaves,
    parse_expression,
    source_text,
)
from blpjax.inputs.table_format import is_missing, plain_value

#: Words that are no columns.
_WORDS = ("purchase", "outside", "market")

#: Sums of more products than this are not split.
_MOST_TERMS = 16

_ONE = Number(1.0)
_COMPARED = ("==", "!=", "<", "<=", ">", ">=")


class Source(NamedTuple):
    """What a name stands for: a `kind`, a `column`, and whether it is about second choices.

    Kinds are ``'agent'`` and ``'product'`` for columns of tables, ``'specific'`` for numbered columns of agents that
    belong to products, and words.
    """

    kind: str
    column: str
    second: bool = False

    @property
    def sides(self) -> frozenset[str]:
        """Whether values differ between agents, between choices, both, or neither."""
        known = {"agent": "a", "specific": "ac", "market": ""}
        return frozenset(known.get(self.kind, "c"))


@dataclass(frozen=True, eq=False)
class SurveyTables:
    """Columns of products and of agents, (rows,) or (rows, n), with what the tables are called in messages."""

    products: Mapping[str, np.ndarray]
    agents: Mapping[str, np.ndarray]
    names: tuple[str, str] = ("product_data", "agent_data")

    @cached_property
    def positions(self) -> np.ndarray:
        """Places of products within their markets, counted from zero in the order of rows."""
        _, codes = np.unique(self.products["market_ids"], return_inverse=True)
        order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes)
        places = np.empty(codes.size, int)
        places[order] = np.arange(codes.size) - np.repeat(np.cumsum(counts) - counts, counts)
        return places

    def find(self, name: str, user: str) -> Source:
        """What a name stands for.

        Raises
        ------
        DataError
            When there is no such column, naming similar ones, or there is one in both tables.
        """
        prefix, _, column = name.rpartition(".")
        second = prefix == "second"
        if not prefix and column in _WORDS or second and column in _WORDS[:2]:
            return Source(column, column, second)
        specific = column not in self.agents and f"{column}0" in self.agents
        in_agents = (column in self.agents and not second) or specific
        in_products = column in self.products
        of_agents = Source("specific" if specific else "agent", column, second)
        if prefix != "product" and in_agents and not (in_products and prefix in ("", "second")):
            return of_agents
        if prefix != "agent" and in_products and not (in_agents and not prefix):
            return Source("product", column, second)
        if in_agents and in_products and not prefix:
            if column == "market_ids":
                raise DataError(f"{user}: for IDs of markets write 'market', as in market == 1990.")
            raise DataError(
                f"{user}: there is a column '{column}' in both {self.names[0]} and {self.names[1]}. Write "
                f"'product.{column}' or 'agent.{column}'."
            )
        raise self._unknown(name, prefix, column, user)

    def _unknown(self, name: str, prefix: str, column: str, user: str) -> DataError:
        tables = dict(zip(self.names, (self.products, self.agents), strict=True))
        if prefix == "agent":
            del tables[self.names[0]]
        elif prefix:
            del tables[self.names[1]]
        known = [known for table in tables.values() for known in table]
        close = difflib.get_close_matches(column, [*known, *(() if prefix else _WORDS)], n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else f" There are: {', '.join(known) or '-'}."
        return DataError(f"{user}: there is no column '{column}' in {' or '.join(tables)}.{hint}")

    def holds(self, source: Source) -> str:
        """Whether values are ``'numbers'``, ``'text'`` or ``'dates'``."""
        if source.kind in ("purchase", "outside"):
            return "numbers"
        values = self._column(source)
        return "numbers" if values.dtype.kind in "biuf" else "dates" if values.dtype.kind == "M" else "text"

    def _column(self, source: Source) -> np.ndarray:
        if source.kind == "market":
            table = self.products if "market_ids" in self.products else self.agents
            return np.asarray(table["market_ids"])
        column = f"{source.column}0" if source.kind == "specific" else source.column
        return np.asarray((self.products if source.kind == "product" else self.agents)[column])


@dataclass(frozen=True, eq=False)
class Cells:
    """Agents and choices for which expressions are evaluated.

    `agents`, `first` and `second` are rows of the tables, arrays that broadcast against each other; choices are -1 for
    the outside good, and `second` is None without second choices. `market` is an ID, or IDs of the same shape.
    """

    tables: SurveyTables
    market: Any
    agents: np.ndarray
    first: np.ndarray
    second: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all cells."""
        given = [self.agents, self.first, *(() if self.second is None else (self.second,))]
        return np.broadcast_shapes(*(array.shape for array in given))

    def values(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Values of a column, and where they are missing. Numeric product columns are zero for the outside good."""
        choice = self.second if source.second else self.first
        assert choice is not None
        inside = choice >= 0
        if source.kind in ("purchase", "outside"):
            return 1.0 * (inside if source.kind == "purchase" else ~inside), np.zeros((), bool)
        if source.kind == "market":
            return _comparable(np.asarray(self.market)), np.zeros((), bool)
        if source.kind == "specific":
            values, rows = self._specific(source, choice), inside
            missing = np.isnan(values)
        elif source.kind == "agent":
            values = _comparable(self.tables.agents[source.column][self.agents])
            return values, is_missing(values)
        else:
            values, rows = _comparable(self.tables.products[source.column][choice]), inside
            missing = is_missing(values)
        # identities of the outside good are no number that a product has
        nothing: Any = "" if values.dtype == object else np.nan if source.column.endswith("_ids") else 0.0
        return np.where(rows, values, nothing), missing & rows

    def same(self, source: Source) -> np.ndarray:
        """Whether IDs of first and second choices are the same, false where one is the outside good."""
        assert self.second is not None
        first, second = (_comparable(self.tables.products[source.column][rows]) for rows in (self.first, self.second))
        return 1.0 * ((self.first >= 0) & (self.second >= 0) & (first == second))

    def _specific(self, source: Source, choice: np.ndarray) -> np.ndarray:
        numbered: list[np.ndarray] = []
        while f"{source.column}{len(numbered)}" in self.tables.agents:
            numbered.append(np.asarray(self.tables.agents[f"{source.column}{len(numbered)}"]))
        places = np.where(choice >= 0, self.tables.positions[choice], -1)
        found = np.full(np.broadcast_shapes(self.agents.shape, choice.shape), np.nan)
        for place in np.unique(places[(places >= 0) & (places < len(numbered))]):
            found = np.where(places == place, numbered[place][self.agents], found)
        return found


class Asked(NamedTuple):
    """An expression with what its names stand for."""

    expression: Expression
    sources: dict[str, Source]

    @classmethod
    def of(cls, expression: Expression, tables: SurveyTables, user: str, second: bool | None = None) -> "Asked":
        """Find the columns of an expression; `second` says whether there are second choices, None where unknown.

        Raises
        ------
        DataError
            When a name is unknown or in both tables, or text is used as a number.
        """
        sources = {}
        for leaf in leaves(expression):
            name = f"product.{leaf.name}" if isinstance(leaf, Same) else leaf.name
            source = tables.find(name, user)
            if second is False and (source.second or isinstance(leaf, Same)):
                raise DataError(f"{user}: '{leaf.key}' is about second choices, which the dataset has none of.")
            if source.kind not in ("purchase", "outside", "specific") and tables._column(source).ndim > 1:
                raise DataError(f"{user}: column '{source.column}' has several columns, but one is needed.")
            sources[leaf.key] = source
        found = cls(expression, sources)
        if found._holds(expression, tables, user) != "numbers":
            raise DataError(f"{user}: {source_text(expression)} is text. Compare it, as in {_example(expression)}.")
        return found

    @property
    def sides(self) -> frozenset[str]:
        """Whether values differ between agents (``'a'``), between choices (``'c'``), both, or neither."""
        return self._sides(self.expression)

    @property
    def is_specific(self) -> bool:
        """Whether there are columns of agents that belong to products."""
        return any(source.kind == "specific" for source in self.sources.values())

    def values(self, cells: Cells) -> np.ndarray:
        """Values in cells, of a shape that broadcasts to theirs. NaN where a column's value is missing."""
        return self._evaluate(self.expression, cells)

    def terms(self, cells: Cells) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """Values as a sum of products of something of agents and something of choices, None where they are none."""
        parts = self._split(self.expression)
        if parts is None or len(parts) > _MOST_TERMS:
            return None
        return [
            (self._evaluate(of_agents, cells), self._evaluate(of_choices, cells)) for of_agents, of_choices in parts
        ]

    def describe(self, cells: Cells, index: tuple[int, ...]) -> str:
        """What the columns are in a cell, for messages."""
        shown = []
        for leaf in leaves(self.expression):
            if not isinstance(leaf, Same):
                values = np.broadcast_to(cells.values(self.sources[leaf.key])[0], cells.shape)
                shown.append(f"{leaf.key} = {plain_value(values[index])}")
        row = int(np.broadcast_to(cells.agents, cells.shape)[index])
        product = int(np.broadcast_to(cells.first, cells.shape)[index])
        choice = "the outside good" if product < 0 else f"row {product} of {cells.tables.names[0]}"
        where = f"row {row} of {cells.tables.names[1]} and {choice}"
        return f"{where}, where {', '.join(shown)}" if shown else where

    def _evaluate(self, expression: Expression, cells: Cells) -> np.ndarray:
        env, missing = {}, np.zeros((), bool)
        for leaf in leaves(expression):
            source = self.sources[leaf.key]
            if isinstance(leaf, Same):
                env[leaf.key] = cells.same(source)
                continue
            env[leaf.key], absent = cells.values(source)
            missing = missing | absent
        with np.errstate(all="ignore"):
            return np.where(missing, np.nan, np.asarray(evaluate(expression, env), float))

    def _sides(self, expression: Expression) -> frozenset[str]:
        return frozenset().union(*(self.sources[leaf.key].sides for leaf in leaves(expression)))

    def _split(self, expression: Expression) -> list[tuple[Expression, Expression]] | None:
        sides = self._sides(expression)
        if len(sides) < 2:
            return [(_ONE, expression) if "c" in sides else (expression, _ONE)]
        match expression:
            case Function("I", operand):
                return self._split(operand)
            case Negative(operand):
                return _negated(self._split(operand))
            case Operation("+", left, right):
                return _joined(self._split(left), self._split(right))
            case Operation("-", left, right):
                return _joined(self._split(left), _negated(self._split(right)))
            case Operation("*", left, right):
                return _multiplied(self._split(left), self._split(right))
            case Operation("/", left, right) if len(self._sides(right)) < 2:
                return _multiplied(self._split(left), self._split(Operation("/", _ONE, right)))
            case Operation("**", base, Number(2.0)):
                return _multiplied(self._split(base), self._split(base))
        return None

    def _holds(self, expression: Expression, tables: SurveyTables, user: str) -> str:
        """Numbers, text or dates; arithmetic takes numbers, and comparisons what is alike."""
        match expression:
            case Text():
                return "text"
            case Variable():
                return tables.holds(self.sources[expression.key])
            case Negative(operand) | Function(_, operand):
                self._need_numbers((operand,), tables, user)
            case Operation(operator, left, right) if operator in _COMPARED:
                kinds = [self._holds(side, tables, user) for side in (left, right)]
                words = ["text" if kind == "dates" else kind for kind in kinds]
                if words[0] != words[1]:
                    raise DataError(
                        f"{user}: {source_text(expression)} compares {kinds[0]} with {kinds[1]}. Text needs quotes, "
                        "numbers none."
                    )
                if words[0] == "text" and operator not in ("==", "!="):
                    raise DataError(f"{user}: {source_text(expression)} compares text, which is only equal or not.")
            case Operation(_, left, right):
                self._need_numbers((left, right), tables, user)
        return "numbers"

    def _need_numbers(self, operands: tuple[Expression, ...], tables: SurveyTables, user: str) -> None:
        for operand in operands:
            if (kind := self._holds(operand, tables, user)) != "numbers":
                raise DataError(
                    f"{user}: column '{source_text(operand)}' holds {kind}, but numbers are needed. Compare it, as in "
                    f"{_example(operand)}."
                )


def read_expression(text: Any, user: str) -> Expression:
    """Parse an expression of a survey.

    Raises
    ------
    TypeError
        When it is not text.
    ValueError
        When it cannot be parsed.
    """
    if not isinstance(text, str):
        raise TypeError(f"{user} must be an expression as text, such as 'age * mi', not {text!r}.")
    try:
        return parse_expression(text, SURVEYS)
    except ValueError as error:
        raise ValueError(f"{user}: {error}") from error


def _comparable(column: np.ndarray) -> np.ndarray:
    """Numbers as floats, and all else as objects that can be compared with text, dates without a time as days."""
    if column.dtype.kind in "biuf":
        return column.astype(float)
    if column.dtype.kind == "M" and (column.astype("M8[D]") == column).all():
        column = column.astype("M8[D]")
    return column.astype(str).astype(object) if column.dtype.kind in "MU" else column.astype(object)


def _example(expression: Expression) -> str:
    return f"{source_text(expression)} == 'a'"


Parts = list[tuple[Expression, Expression]] | None


def _joined(left: Parts, right: Parts) -> Parts:
    return None if left is None or right is None else left + right


def _negated(parts: Parts) -> Parts:
    return None if parts is None else [(Negative(a), c) for a, c in parts]


def _multiplied(left: Parts, right: Parts) -> Parts:
    if left is None or right is None or len(left) * len(right) > _MOST_TERMS:
        return None
    return [(_product(a, b), _product(c, d)) for a, c in left for b, d in right]


def _product(left: Expression, right: Expression) -> Expression:
    return right if left == _ONE else left if right == _ONE else Operation("*", left, right)
