"""Design matrices: which columns the terms of a formula have, and what is in them.

Columns come term by term in the order of the formula. Categorical variables are coded by indicators, all of them or all
but the first, so that no term repeats what terms of a lower degree with the same numeric factors span already (the rule
of patsy and hence of PyBLP).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from types import ModuleType
from typing import Any

import numpy as np

from blpjax.exceptions import DataError
from blpjax.inputs.expressions import (
    Expression,
    Function,
    Indicator,
    Variable,
    evaluate,
    leaves,
    multiply,
    product_label,
    source_text,
    variable_names,
)
from blpjax.inputs.table_format import check_magnitude, describe_rows, find_vector, is_missing, plain_value
from blpjax.inputs.terms import INTERCEPT, Term


@dataclass(frozen=True, repr=False)
class Column:
    """One column of a design matrix as a product of expressions. Hashable and equal by value.

    Attributes
    ----------
    factors : the expressions that are multiplied; none for the intercept.
    """

    factors: tuple[Expression, ...]

    @cached_property
    def label(self) -> str:
        """What the column contains, as PyBLP prints it: `1`, `prices`, `x**2`, `x*y`, `kind['u']`."""
        return product_label(self.factors)

    @cached_property
    def expression(self) -> Expression:
        """The product as one tree."""
        return multiply(self.factors)

    @cached_property
    def names(self) -> frozenset[str]:
        """Variables of the table that the column uses, categorical ones included."""
        return variable_names(self.expression)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Keys of the arrays that `evaluate` needs."""
        return tuple(leaf.key for leaf in leaves(self.expression))

    def depends_on(self, name: str) -> bool:
        """Whether the column uses a variable of the table."""
        return name in self.names

    def evaluate(self, env: Mapping[str, Any], xp: ModuleType = np) -> Any:
        """Compute the column from its inputs.

        Parameters
        ----------
        env : arrays of one shape, at least those named by `inputs`; for example `DesignMatrix.inputs` with other
            prices.
        xp : the array namespace, `numpy` or `jax.numpy`. With the latter the function can be compiled and
            differentiated.

        Returns
        -------
        An array of the shape of the arrays in `env`. A column without variables is constant; it takes its shape from
        any array in `env`, and is a scalar when there is none.
        """
        value = evaluate(self.expression, env, xp)
        if self.inputs or not env:
            return value
        return xp.broadcast_to(xp.asarray(value, dtype=float), next(iter(env.values())).shape)

    def __str__(self) -> str:
        return self.label

    __repr__ = __str__


@dataclass(frozen=True, eq=False)
class DesignMatrix:
    """The matrix that a formula describes for a table.

    Attributes
    ----------
    values : (N, K) 64-bit numbers; K may be zero.
    columns : K columns.
    inputs : (N,) 64-bit numbers for every key that one of the columns needs: numeric variables under their names, and
        indicators of the levels found in the table under keys such as `C(kind)['u']`.
    """

    values: np.ndarray
    columns: tuple[Column, ...]
    inputs: dict[str, np.ndarray]

    @property
    def labels(self) -> tuple[str, ...]:
        """K labels of the columns."""
        return tuple(column.label for column in self.columns)


def design_matrix(
    terms: Sequence[Term],
    data: Mapping[str, np.ndarray],
    table: str,
    formula: str,
    assume_intercept: bool = False,
) -> DesignMatrix:
    """Build the matrix that has the columns of terms.

    Parameters
    ----------
    terms : terms in the order of their columns.
    data : arrays by name, as `read_table` returns them.
    table, formula : what the table and the formula are called in messages.
    assume_intercept : whether to code categorical variables as if there were an intercept although `terms` has none.

    Raises
    ------
    DataError
        When a variable is missing, is categorical where a number is needed, or has missing or infinite values, also
        after a logarithm, say. The message names the table, the column or the factor, the market and the row.
    """
    factors = tuple(dict.fromkeys(factor for term in terms for factor in term.factors))
    names = sorted({name for factor in factors for name in variable_names(factor)})
    vectors = {name: find_vector(data, name, table, f"the formula '{formula}'") for name in names}
    levels = {
        factor: variable_levels(vectors, factor, data, table) for factor in factors if is_categorical(factor, vectors)
    }
    numeric = {name for factor in factors if factor not in levels for name in variable_names(factor)}
    inputs = {name: _numeric_input(vectors[name], name, data, table, factors) for name in names if name in numeric}
    for factor in factors:
        if factor not in levels:
            _check_factor(factor, inputs, data, table)

    codings = _choose_codings(([INTERCEPT] if assume_intercept else []) + list(terms), levels.keys())
    columns = tuple(column for term in terms for column in _term_columns(term, codings[term], levels))
    used = {key for column in columns for key in column.inputs}
    for factor, found in levels.items():
        for level in found:
            indicator = _indicator(factor, level)
            if indicator.key in used:
                inputs[indicator.key] = (vectors[indicator.name] == level).astype(float)

    rows = next((np.shape(values)[0] for values in data.values()), 0)
    values = np.empty((rows, len(columns)))
    for index, column in enumerate(columns):
        values[:, index] = column.evaluate(inputs)
        check_magnitude(values[:, index], f"'{column.label}'", table, data)
    return DesignMatrix(values, columns, inputs)


def is_categorical(factor: Expression, vectors: Mapping[str, np.ndarray]) -> bool:
    """Whether a factor is categorical: marked by `C`, or a variable that holds no numbers (booleans are none)."""
    name = _bare_variable(factor)
    return name is not None and (
        isinstance(factor, Function) and factor.name == "C" or vectors[name].dtype.kind not in "iuf"
    )


def variable_levels(
    vectors: Mapping[str, np.ndarray], factor: Expression, data: Mapping[str, np.ndarray], table: str
) -> tuple[Any, ...]:
    """Sorted levels of the variable of a categorical factor. Booleans always have two.

    Raises
    ------
    DataError
        When values are missing, or cannot be sorted because they mix types.
    """
    (name,) = variable_names(factor)
    values = vectors[name]
    missing = np.flatnonzero(is_missing(values))
    if missing.size:
        raise DataError(f"{table}: categorical column '{name}' has a missing value in {describe_rows(data, missing)}.")
    if values.dtype.kind == "b":
        return (False, True)
    try:
        return tuple(np.unique(values))
    except TypeError as error:
        kinds = " and ".join(sorted({type(value).__name__ for value in values}))
        raise DataError(
            f"{table}: categorical column '{name}' mixes values of type {kinds}. Convert it to one type."
        ) from error


def _bare_variable(factor: Expression) -> str | None:
    """The variable that a factor consists of, if it is nothing else, as in `x`, `C(x)` and `I(x)`."""
    while isinstance(factor, Function) and factor.name in ("I", "C"):
        factor = factor.operand
    return factor.name if isinstance(factor, Variable) else None


def _numeric_input(
    values: np.ndarray, name: str, data: Mapping[str, np.ndarray], table: str, factors: Sequence[Expression]
) -> np.ndarray:
    """A numeric variable as finite 64-bit numbers."""
    if values.dtype.kind not in "iuf":
        user = next(
            source_text(factor)
            for factor in factors
            if name in variable_names(factor) and _bare_variable(factor) is None
        )
        kind = "booleans, which are categorical" if values.dtype.kind == "b" else "values that are not numbers"
        raise DataError(
            f"{table}: column '{name}' holds {kind}, but '{user}' needs numbers. Convert the column, or interact it "
            "with ':' outside of arithmetic."
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        kind = "a missing" if np.isnan(values[bad[0]]) else "an infinite"
        raise DataError(f"{table}: column '{name}' has {kind} value in {describe_rows(data, bad)}.")
    return values.astype(float)


def _check_factor(
    factor: Expression, inputs: Mapping[str, np.ndarray], data: Mapping[str, np.ndarray], table: str
) -> None:
    """Refuse factors that turn finite variables into infinite or missing values."""
    if not leaves(factor):
        return
    with np.errstate(all="ignore"):
        bad = np.flatnonzero(~np.isfinite(evaluate(factor, inputs)))
    if bad.size:
        where = ", ".join(f"{leaf.key} = {inputs[leaf.key][bad[0]]}" for leaf in leaves(factor))
        raise DataError(
            f"{table}: '{source_text(factor)}' is not finite in {describe_rows(data, bad)}, where {where}. Logarithms "
            "need positive numbers, and divisors must not be zero."
        )


def _indicator(factor: Expression, level: Any) -> Indicator:
    (name,) = variable_names(factor)
    return Indicator(name, repr(plain_value(level)))


def _term_columns(
    term: Term, codings: Sequence[Mapping[Expression, bool]], levels: Mapping[Expression, tuple]
) -> list[Column]:
    """Columns of a term: for each of its codings all combinations of levels, the leftmost factor changing fastest."""
    columns: list[Column] = []
    for coding in codings:
        choices: list[list[Expression]] = []
        for factor in term.factors:
            if factor not in levels:
                choices.append([factor])
            elif factor in coding:
                choices.append([_indicator(factor, level) for level in levels[factor][0 if coding[factor] else 1 :]])
        columns.extend(Column(combination[::-1]) for combination in product(*reversed(choices)))
    return columns


def _choose_codings(terms: Sequence[Term], categorical: Any) -> dict[Term, list[dict[Expression, bool]]]:
    """Choose for each term its blocks of indicators, {categorical factor: whether its first level is included}.

    A categorical factor with all indicators spans the constant and the contrasts between its levels. An interaction
    thus spans one space for every subset of its categorical factors, namely products of contrasts. Terms with the same
    numeric factors claim these spaces in the order of their degree, and each term is left with those that no earlier
    term has claimed.
    """
    groups: dict[frozenset[Expression], list[Term]] = {}
    for term in terms:
        groups.setdefault(frozenset(factor for factor in term.factors if factor not in categorical), []).append(term)
    codings = {}
    for group in groups.values():
        claimed: set[frozenset[Expression]] = set()
        for term in sorted(group, key=lambda member: len(member.factors)):
            own = [factor for factor in term.factors if factor in categorical]
            spaces = [frozenset(subset) for size in range(len(own) + 1) for subset in combinations(own, size)]
            unclaimed = [space for space in spaces if space not in claimed]
            claimed.update(unclaimed)
            codings[term] = _merge_spaces(unclaimed)
    return codings


def _merge_spaces(spaces: Sequence[frozenset[Expression]]) -> list[dict[Expression, bool]]:
    """Join spaces of which one has a single additional factor, coded by contrasts.

    Contrasts of that factor and the constant together are all of its indicators.
    """
    blocks: list[dict[Expression, bool]] = [dict.fromkeys(space, False) for space in spaces]
    merged = True
    while merged:
        merged = False
        for low, high in combinations(range(len(blocks)), 2):
            extra = blocks[high].keys() - blocks[low].keys()
            contained = blocks[low].items() <= blocks[high].items()
            if contained and len(extra) == 1 and not blocks[high][next(iter(extra))]:
                blocks[high] = {**blocks[low], next(iter(extra)): True}
                del blocks[low]
                merged = True
                break
    return blocks
