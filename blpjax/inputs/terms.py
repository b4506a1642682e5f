"""The algebra of formulas: from R-style text to an ordered list of terms.

Tokens, precedence and syntax trees are formulaic's; what the operators do to lists of terms follows patsy, on which
PyBLP's order of columns rests (formulaic's own lists come in another order).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from formulaic.errors import FormulaicError
from formulaic.parser import DefaultOperatorResolver
from formulaic.parser.types import ASTNode, FormulaParser, Token

from blpjax.inputs.expressions import Expression, Function, Variable, parse_expression, source_text

OPERATORS = "+ - * / : **"


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
class _Terms:
    """Value of a part of a formula. The intercept may be mentioned, removed, or left to the other parts."""

    terms: tuple[Term, ...] = ()
    intercept: bool = False
    removed: bool = False


def parse_terms(formula: str) -> tuple[Term, ...]:
    """List the terms of a formula in PyBLP's order: the intercept, unless removed, then the others as they appear.

    Raises
    ------
    ValueError
        When the formula is malformed, or uses an operator or a function that is not supported. The message names it.
    """
    parser = FormulaParser(operator_resolver=DefaultOperatorResolver())
    try:
        tree = parser.get_ast_from_tokens(_separate_signs(parser.get_tokens(formula), formula), context={})
    except (FormulaicError, SyntaxError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error).strip().splitlines()[0]
        raise ValueError(f"The formula '{formula}' cannot be parsed: {reason}") from error
    value = _Terms() if tree is None else _evaluate_tree(tree, formula)
    unique = tuple(dict.fromkeys(value.terms))
    return unique if value.removed else (INTERCEPT, *unique)


def _separate_signs(tokens: Iterable[Token], formula: str) -> list[Token]:
    """Put parentheses around `-1` in `x + -1`, and refuse `x + -y`.

    Formulaic would merge adjoining signs, and so drop y silently.
    """
    separated: list[Token] = []
    after_operator = wrapping = False
    for token in _split_operators(tokens):
        if wrapping:
            if token.token not in ("0", "1"):
                raise _sign_error(formula)
            separated += [token, Token(")", kind=Token.Kind.CONTEXT)]
            wrapping = after_operator = False
            continue
        if after_operator and token.token == "+":
            continue
        if after_operator and token.token == "-":
            separated.append(Token("(", kind=Token.Kind.CONTEXT))
            wrapping = True
        separated.append(token)
        after_operator = token.kind is Token.Kind.OPERATOR
    return separated


def _split_operators(tokens: Iterable[Token]) -> Iterator[Token]:
    """Split adjoining operators, which formulaic reads as one token."""
    for token in tokens:
        if token.kind is Token.Kind.OPERATOR and set(token.token) <= set("+-*/:"):
            for symbol in re.findall(r"\*\*|.", token.token):
                yield token.copy_with_attrs(token=symbol)
        else:
            yield token


def _sign_error(formula: str) -> ValueError:
    return ValueError(f"The formula '{formula}' has a minus sign in front of a term. Use I(-...) to change signs.")


def _evaluate_tree(tree: Token | ASTNode, formula: str) -> _Terms:
    """Evaluate a syntax tree from its leaves up, without recursion, so that formulas may have thousands of terms."""
    order: list[Token | ASTNode] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        order.append(node)
        pending.extend(node.args if isinstance(node, ASTNode) else ())
    values: dict[int, _Terms] = {}
    for node in reversed(order):
        if isinstance(node, ASTNode):
            values[id(node)] = _operate(
                node, [values.get(id(argument)) for argument in node.args], node is tree, formula
            )
        elif node.kind is not Token.Kind.VALUE:
            values[id(node)] = _Terms((Term((_parse_factor(node.token),)),))
        elif node.token in ("0", "1"):
            values[id(node)] = _Terms(intercept=node.token == "1", removed=node.token == "0")
    if id(tree) not in values:
        raise _literal_error(tree, formula)
    return values[id(tree)]


def _parse_factor(text: str) -> Expression:
    factor = parse_expression(text)
    if not isinstance(factor, (Variable, Function)):
        raise ValueError(f"'{text}' is not supported as a term. Put arithmetic into I(...).")
    return factor


def _operate(node: ASTNode, values: list[_Terms | None], outermost: bool, formula: str) -> _Terms:
    """Apply one operator. Literals other than 0 and 1 have no value."""
    symbol, arguments = node.operator.symbol, list(node.args)
    if symbol not in (*OPERATORS.split(), "~"):
        raise ValueError(
            f"The operator '{symbol}' in the formula '{formula}' is not supported. Supported are {OPERATORS}."
        )
    if symbol == "**" and len(arguments) == 2 and values[0] is not None:
        return _power(values[0], arguments[1], formula)
    for value, argument in zip(values, arguments, strict=True):
        if value is None:
            raise _literal_error(argument, formula)
    known = [value for value in values if value is not None]
    last_is_zero = bool(arguments) and isinstance(arguments[-1], Token) and arguments[-1].token == "0"
    match symbol, known:
        case "~", [only] if outermost:
            return only
        case "~", _:
            raise ValueError(f"The formula '{formula}' should not have a left-hand side.")
        case "+", [only]:
            return only
        case "+", [left, right]:
            return _add(left, right, last_is_zero)
        case "-", [only] if not only.terms:
            return _Terms(intercept=last_is_zero, removed=not last_is_zero)
        case "-", [_]:
            raise _sign_error(formula)
        case "-", [left, right]:
            return _subtract(left, right, last_is_zero)
        case ":", [left, right]:
            return _Terms(_interact(left, right, formula))
        case "*", [left, right]:
            return _Terms(left.terms + right.terms + _interact(left, right, formula))
        case "/", [left, right]:
            # what is nested is nested in all of the left side at once: (a + b) / c is a + b + a:b:c
            parent = _Terms((Term(tuple(factor for term in left.terms for factor in term.factors)),), left.intercept)
            return _Terms(left.terms + _interact(parent, right, formula))
    raise ValueError(f"The operator '{symbol}' in the formula '{formula}' has {len(known)} arguments.")


def _add(left: _Terms, right: _Terms, right_is_zero: bool) -> _Terms:
    if right_is_zero:
        return _Terms(left.terms, removed=True)
    if right.intercept:
        return _Terms(left.terms + right.terms, intercept=True)
    # an intercept that was removed on the right, as in `x + (y - 1)`, is removed only there
    return _Terms(left.terms + right.terms, left.intercept, left.removed)


def _subtract(left: _Terms, right: _Terms, right_is_zero: bool) -> _Terms:
    if right_is_zero:
        return _Terms(left.terms, intercept=True)
    terms = tuple(term for term in left.terms if term not in right.terms)
    return _Terms(terms, removed=True) if right.intercept else _Terms(terms, left.intercept, left.removed)


def _interact(left: _Terms, right: _Terms, formula: str) -> tuple[Term, ...]:
    if left.intercept or right.intercept:
        raise ValueError(f"The formula '{formula}' interacts the intercept with something, which is not supported.")
    return tuple(Term(first.factors + second.factors) for first in left.terms for second in right.terms)


def _power(base: _Terms, exponent: Token | ASTNode, formula: str) -> _Terms:
    """All interactions of at most `exponent` of the terms."""
    text = exponent.token if isinstance(exponent, Token) and exponent.kind is Token.Kind.VALUE else ""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"The formula '{formula}' needs a positive integer after '**'. Use I(x ** ...) for arithmetic powers."
        )
    if base.intercept:
        raise ValueError(f"The formula '{formula}' interacts the intercept with something, which is not supported.")
    terms = latest = base.terms
    # more factors than terms cannot be distinct
    for _ in range(1, min(int(text), len(base.terms))):
        latest = tuple(dict.fromkeys(_interact(base, _Terms(latest), formula)))
        terms += latest
    return _Terms(terms)


def _literal_error(token: Token | ASTNode, formula: str) -> ValueError:
    return ValueError(
        f"The formula '{formula}' uses {token} as a term. Only 0 and 1 are allowed, which stand for the intercept. "
        "Use I(...) for arithmetic."
    )
