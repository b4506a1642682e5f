"""From R-style text to an ordered list of terms."""

import re

from blpjax.inputs.expressions import FORMULAS, Grammar
from blpjax.inputs.terms import INTERCEPT, Term, Terms, add, parse_factor, subtract

# Variables, and functions of what has no further parentheses but one pair inside of each other, and no quotes.
_INSIDE = r"[^()\[\]{}'\"`%\\]"
_FACTOR = rf"[^\W\d]\w*(?:\((?:{_INSIDE}|\({_INSIDE}*\))*\))?"
_TERM = rf"[01]|{_FACTOR}(?:\s*:\s*{_FACTOR})*"
_PLAIN = re.compile(rf"\s*(?:\+|-(?=\s*[01]))?\s*(?:{_TERM})(?:\s*[+-]\s*(?:{_TERM}))*\s*")


def parse_terms(formula: str, grammar: Grammar = FORMULAS) -> tuple[Term, ...]:
    """List the terms of a formula in PyBLP's order: the intercept, unless removed, then the others as they appear.

    Raises
    ------
    ValueError
        When the formula is malformed, or uses an operator or a function that is not supported. The message names it.
    """
    value = _evaluate_sum(formula, grammar)
    if value is None:
        from blpjax.inputs.syntax import evaluate_formula  # a slow import that only other formulas need

        value = evaluate_formula(formula, grammar)
    unique = tuple(dict.fromkeys(value.terms))
    return unique if value.removed else (INTERCEPT, *unique)


def _evaluate_sum(formula: str, grammar: Grammar) -> Terms | None:
    """Value of a plain sum of interactions, zeros and ones, as most formulas are; None for others, and wrong ones."""
    if not _PLAIN.fullmatch(formula):
        return None
    value = Terms()
    for sign, text in re.findall(rf"([+-]?)\s*({_TERM})", formula):
        try:
            names = [] if text in ("0", "1") else re.findall(_FACTOR, text)
            factors = tuple(parse_factor(name, grammar) for name in names)
        except (SyntaxError, ValueError):
            return None
        part = Terms((Term(factors),)) if factors else Terms(intercept=text == "1", removed=text == "0")
        value = subtract(value, part, text == "0") if sign == "-" else add(value, part, text == "0")
    return value
