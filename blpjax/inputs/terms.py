"""The algebra of formulas: lists of terms, and what the operators do to them.

That follows patsy, on which PyBLP's order of columns rests.
"""

from dataclasses import dataclass, field

from blpjax.inputs.expressions import FORMULAS, Expression, Function, Grammar, Variable, parse_expression, source_text


@dataclass(frozen=True)
class Term:
    """An interaction of distinct factors, of none for the intercept. Their order decides columns, not equality."""

    factors: tuple[Expression, ...]
    _set: frozenset[Expression] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(dict.fromkeys(self.factors)))
        object.__setattr__(self, "_set", frozenset(self.factors))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Term) and self._set == other._set

    def __hash__(self) -> int:
        return hash(self._set)

    def __str__(self) -> str:
        return ":".join(source_text(factor) for factor in self.factors) or "1"


INTERCEPT = Term(())


@dataclass(frozen=True)
class Terms:
    """Value of a part of a formula. The intercept may be mentioned, removed, or left to the other parts."""

    terms: tuple[Term, ...] = ()
    intercept: bool = False
    removed: bool = False


def parse_factor(text: str, grammar: Grammar = FORMULAS) -> Expression:
    """Expression of one factor: a variable or a function."""
    factor = parse_expression(text, grammar)
    if not isinstance(factor, (Variable, Function)):
        raise ValueError(f"'{text}' is not supported as a term. Put arithmetic into I(...).")
    return factor


def add(left: Terms, right: Terms, right_is_zero: bool) -> Terms:
    """Terms of ``left + right``; `right_is_zero` where the right side is the literal 0."""
    if right_is_zero:
        return Terms(left.terms, removed=True)
    if right.intercept:
        return Terms(left.terms + right.terms, intercept=True)
    # an intercept that was removed on the right, as in `x + (y - 1)`, is removed only there
    return Terms(left.terms + right.terms, left.intercept, left.removed)


def subtract(left: Terms, right: Terms, right_is_zero: bool) -> Terms:
    """Terms of ``left - right``, likewise."""
    if right_is_zero:
        return Terms(left.terms, intercept=True)
    terms = tuple(term for term in left.terms if term not in right.terms)
    return Terms(terms, removed=True) if right.intercept else Terms(terms, left.intercept, left.removed)


def interact(left: Terms, right: Terms, formula: str) -> tuple[Term, ...]:
    """Interactions of every term on the left with every one on the right."""
    if left.intercept or right.intercept:
        raise ValueError(f"The formula '{formula}' interacts the intercept with something, which is not supported.")
    return tuple(Term(first.factors + second.factors) for first in left.terms for second in right.terms)
