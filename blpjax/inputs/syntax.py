"""Formulas with any of the operators.

Tokens, precedence and syntax trees are formulaic's. That takes long to import, which plain sums do not ask for: see
`formulas`.
"""

import re
from collections.abc import Iterable, Iterator

from formulaic.errors import FormulaicError
from formulaic.parser import DefaultOperatorResolver
from formulaic.parser.types import ASTNode, FormulaParser, Token

from blpjax.inputs.expressions import FORMULAS, Grammar
from blpjax.inputs.terms import Term, Terms, add, interact, parse_factor, subtract

OPERATORS = "+ - * / : **"


def evaluate_formula(formula: str, grammar: Grammar = FORMULAS) -> Terms:
    """Terms of a formula.

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
    return Terms() if tree is None else _evaluate_tree(tree, formula, grammar)


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


def _evaluate_tree(tree: Token | ASTNode, formula: str, grammar: Grammar) -> Terms:
    """Evaluate a syntax tree from its leaves up, without recursion, so that formulas may have thousands of terms."""
    order: list[Token | ASTNode] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        order.append(node)
        pending.extend(node.args if isinstance(node, ASTNode) else ())
    values: dict[int, Terms] = {}
    for node in reversed(order):
        if isinstance(node, ASTNode):
            values[id(node)] = _operate(
                node, [values.get(id(argument)) for argument in node.args], node is tree, formula
            )
        elif node.kind is not Token.Kind.VALUE:
            values[id(node)] = Terms((Term((parse_factor(node.token, grammar),)),))
        elif node.token in ("0", "1"):
            values[id(node)] = Terms(intercept=node.token == "1", removed=node.token == "0")
    if id(tree) not in values:
        raise _literal_error(tree, formula)
    return values[id(tree)]


def _operate(node: ASTNode, values: list[Terms | None], outermost: bool, formula: str) -> Terms:
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
            return add(left, right, last_is_zero)
        case "-", [only] if not only.terms:
            return Terms(intercept=last_is_zero, removed=not last_is_zero)
        case "-", [_]:
            raise _sign_error(formula)
        case "-", [left, right]:
            return subtract(left, right, last_is_zero)
        case ":", [left, right]:
            return Terms(interact(left, right, formula))
        case "*", [left, right]:
            return Terms(left.terms + right.terms + interact(left, right, formula))
        case "/", [left, right]:
            # what is nested is nested in all of the left side at once: (a + b) / c is a + b + a:b:c
            parent = Terms((Term(tuple(factor for term in left.terms for factor in term.factors)),), left.intercept)
            return Terms(left.terms + interact(parent, right, formula))
    raise ValueError(f"The operator '{symbol}' in the formula '{formula}' has {len(known)} arguments.")


def _power(base: Terms, exponent: Token | ASTNode, formula: str) -> Terms:
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
        latest = tuple(dict.fromkeys(interact(base, Terms(latest), formula)))
        terms += latest
    return Terms(terms)


def _literal_error(token: Token | ASTNode, formula: str) -> ValueError:
    return ValueError(
        f"The formula '{formula}' uses {token} as a term. Only 0 and 1 are allowed, which stand for the intercept. "
        "Use I(...) for arithmetic."
    )
