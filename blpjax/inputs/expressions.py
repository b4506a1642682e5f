"""Arithmetic expressions as frozen trees: parsed from text, printed, and evaluated with NumPy or with `jax.numpy`.

Trees are hashable and equal by value, so they can be static arguments of compiled functions: two problems with the same
formulas share their programs.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np


class Grammar(NamedTuple):
    """What expressions may consist of, beside numbers, variables and arithmetic.

    `functions` of one argument, whether there are `conditions`, which are comparisons, text and joined comparisons,
    and `prefixes` of names such as ``second.x``. `supported` says all that in messages.
    """

    functions: tuple[str, ...]
    conditions: bool
    prefixes: tuple[str, ...]
    supported: str


#: Factors of formulas.
FORMULAS = Grammar(
    ("log", "exp", "I", "C"),
    False,
    (),
    "Supported are + - * / ** with numbers and variables, log(...), exp(...), I(...), and C(variable) for categories.",
)

#: What surveys ask about.
SURVEYS = Grammar(
    ("log", "exp", "I", "same"),
    True,
    ("agent", "product", "second"),
    "Supported are + - * / ** with numbers and columns, log(...), exp(...), I(...), same(column of IDs), comparisons "
    "with < <= > >= == !=, which 'and' joins, and names that begin with 'agent.', 'product.' or 'second.'.",
)

_OPERATORS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="
}  # fmt: skip
_PRECEDENCE = {**dict.fromkeys(_COMPARISONS.values(), 0), "+": 1, "-": 1, "*": 2, "/": 2, "**": 4}
_NEGATIVE_PRECEDENCE, _ATOM_PRECEDENCE = 3, 5
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge
}  # fmt: skip


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True)
class Variable:
    """A numeric variable of the table, an array under `name` in the environment."""

    name: str

    @property
    def key(self) -> str:
        """Name of its array in the environment."""
        return self.name


@dataclass(frozen=True)
class Indicator:
    """One for rows in which a categorical variable has the level that prints as `level`, and otherwise zero."""

    name: str
    level: str

    @property
    def key(self) -> str:
        """Name of its array in the environment, such as `C(kind)['u']`."""
        return f"C({self.name})[{self.level}]"


@dataclass(frozen=True)
class Same:
    """One where a second choice has the same ID in the column `name` as the first one, and otherwise zero."""

    name: str

    @property
    def key(self) -> str:
        """Name of its array in the environment, such as `same(firm_ids)`."""
        return f"same({self.name})"


@dataclass(frozen=True)
class Text:
    """A text that IDs are compared with."""

    value: str


@dataclass(frozen=True)
class Negative:
    """Minus an expression."""

    operand: "Expression"


@dataclass(frozen=True)
class Operation:
    """`left operator right`, where the operator is one of `+ - * / **`, or a comparison that is one or zero."""

    operator: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True)
class Function:
    """`log`, `exp`, the identity `I`, or the marker of categorical variables `C`, applied to an expression."""

    name: str
    operand: "Expression"


Expression: TypeAlias = Number | Variable | Indicator | Same | Text | Negative | Operation | Function


def parse_expression(text: str, grammar: Grammar = FORMULAS) -> Expression:
    """Parse Python arithmetic such as `I(x * y - 1 / w)` or `C(kind)`.

    Raises
    ------
    ValueError
        When the text contains anything but `+ - * / **`, numbers, variables, and what the grammar has. The message
        names it.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"'{text}' cannot be parsed: {error.msg}. {grammar.supported}") from error
    return _Parser(text, grammar).convert(node, outermost=True)


def variable_names(expression: Expression) -> frozenset[str]:
    """Variables of the table that an expression uses."""
    return frozenset(leaf.name for leaf in leaves(expression))


def leaves(expression: Expression) -> tuple[Variable | Indicator | Same, ...]:
    """Variables and indicators in an expression, from left to right, each once."""
    match expression:
        case Variable() | Indicator() | Same():
            return (expression,)
        case Negative(operand) | Function(_, operand):
            return leaves(operand)
        case Operation(_, left, right):
            return tuple(dict.fromkeys(leaves(left) + leaves(right)))
    return ()


def degree(expression: Expression, name: str) -> float:
    """Degree of the polynomial that an expression is in a variable; infinite where it is none, or may be none."""
    match expression:
        case Variable():
            return float(expression.name == name)
        case Negative(operand) | Function("I", operand):
            return degree(operand, name)
        case Operation("+" | "-", left, right):
            return max(degree(left, name), degree(right, name))
        case Operation("*", left, right):
            return degree(left, name) + degree(right, name)
        case Operation("/", left, right) if degree(right, name) == 0:
            return degree(left, name)
    return float("inf") if name in variable_names(expression) else 0.0


def evaluate(expression: Expression, env: Mapping[str, Any], xp: ModuleType = np) -> Any:
    """Evaluate an expression.

    Parameters
    ----------
    expression : tree without categorical markers (`C` is replaced by indicators when a design matrix is built).
    env : arrays of one shape by the `key` of the expression's leaves.
    xp : the array namespace, `numpy` or `jax.numpy`.

    Returns
    -------
    An array of the shape of the arrays in `env`, or a scalar when the expression has no variables.
    """
    match expression:
        case Number(value) | Text(value):
            return value
        case Variable() | Indicator() | Same():
            return env[expression.key]
        case Negative(operand):
            return -evaluate(operand, env, xp)
        case Operation("**", left, Number(value)) if value.is_integer():
            # an integer exponent has derivatives everywhere, also in zero and for negative bases
            return evaluate(left, env, xp) ** int(value)
        case Operation(operator, left, right):
            return _apply(operator, evaluate(left, env, xp), evaluate(right, env, xp))
        case Function("I", operand):
            return evaluate(operand, env, xp)
        case Function("log" | "exp" as name, operand):
            return getattr(xp, name)(evaluate(operand, env, xp))
    raise TypeError(f"{source_text(expression)} is categorical and has no numeric value.")


def source_text(expression: Expression) -> str:
    """Print an expression as source code with spaces, as in `I(x ** 2)`."""
    return _text(expression, spaced=True)[0]


def is_comparison(expression: Expression) -> bool:
    """Whether an expression is a comparison, or several that are joined."""
    match expression:
        case Operation("*", left, right):
            return is_comparison(left) and is_comparison(right)
        case Operation(operator):
            return operator in _COMPARE
        case Function("I", operand):
            return is_comparison(operand)
    return False


def compact_text(expression: Expression) -> str:
    """Print the value of an expression as PyBLP labels its columns, without `I` and `C`, as in `x**2`."""
    return _text(expression, spaced=False)[0]


def multiply(factors: tuple[Expression, ...]) -> Expression:
    """The product of expressions; of none, the number one."""
    if not factors:
        return Number(1.0)
    product = factors[0]
    for factor in factors[1:]:
        product = Operation("*", product, factor)
    return product


def product_label(factors: tuple[Expression, ...]) -> str:
    """Label of a product as PyBLP prints it: variables first, in alphabetical order, then sums, then functions."""
    if not factors:
        return "1"

    if len(factors) == 1:
        return compact_text(factors[0])
    printed = [_text(factor, spaced=False) for factor in factors]
    texts = [f"({text})" if precedence < _PRECEDENCE["*"] else text for text, precedence in printed]
    return "*".join(sorted(texts, key=lambda text: (text.startswith(("log(", "exp(")), text.startswith("("), text)))


def _apply(operator: str, left: Any, right: Any) -> Any:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
        case "**":
            return left**right
    return 1.0 * _COMPARE[operator](left, right)


class _Parser(NamedTuple):
    """Turns Python's syntax tree into an own one, refusing everything that the grammar does not have."""

    text: str
    grammar: Grammar

    def convert(self, node: ast.expr, outermost: bool = False) -> Expression:
        """The expression of a node."""
        text, functions = self.text, self.grammar.functions
        match node:
            case ast.Constant(value=value) if isinstance(value, (int, float)) and not isinstance(value, bool):
                return _number(value, text)
            case ast.Name(id=name):
                if name in functions:
                    raise self._error(f"'{name}' in '{text}' is a function, not a variable.")
                return Variable(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return _checked(Negative(self.convert(operand)), text)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.convert(operand)
            case ast.BinOp(op=operator, left=left, right=right) if type(operator) in _OPERATORS:
                return _checked(Operation(_OPERATORS[type(operator)], self.convert(left), self.convert(right)), text)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in functions:
                return self._call(name, argument, outermost)
            case ast.Call(func=ast.Name(id=name)) if name in functions:
                raise self._error(f"'{name}' in '{text}' takes exactly one argument.")
            case ast.Attribute(value=ast.Name(id=prefix), attr=name) if prefix in self.grammar.prefixes:
                return Variable(f"{prefix}.{name}")
            case ast.Compare(left=left, ops=ops, comparators=others) if self.grammar.conditions:
                return self._compare(left, ops, others)
            case ast.BoolOp(op=ast.And(), values=values) if self.grammar.conditions:
                return multiply(tuple(map(self.convert, values)))
        part = ast.unparse(node.func) if isinstance(node, ast.Call) else ast.unparse(node)
        kind = "function" if isinstance(node, ast.Call) else "expression"
        raise self._error(f"The {kind} '{part}' in '{text}' is not supported.")

    def _call(self, name: str, argument: ast.expr, outermost: bool) -> Expression:
        operand = self.convert(argument)
        if name == "C" and not outermost:
            raise ValueError(
                f"'{self.text}' uses C(...) inside of another expression. Interact categories with ':' or '*' instead."
            )
        if name in ("C", "same") and not isinstance(operand, Variable):
            raise self._error(f"'{self.text}' is not supported: {name}(...) takes the name of one variable.")
        if isinstance(operand, Variable):
            if name == "same":
                return Same(operand.name.removeprefix("product."))
            if name == "C":
                return Function("C", operand)
        return _checked(Function(name, operand), self.text)

    def _compare(self, left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr]) -> Expression:
        found: list[Expression] = []
        for op, right in zip(ops, others, strict=True):
            if type(op) not in _COMPARISONS:
                raise self._error(
                    f"The expression '{ast.unparse(right)}' in '{self.text}' is compared in an unsupported way."
                )
            sides = tuple(
                Text(side.value)
                if isinstance(side, ast.Constant) and isinstance(side.value, str)
                else self.convert(side)
                for side in (left, right)
            )
            found.append(Operation(_COMPARISONS[type(op)], *sides))
            left = right
        return multiply(tuple(found))

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{message} {self.grammar.supported}")


def _number(value: int | float, text: str) -> Number:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"A number in '{text}' is too large.")
    return Number(number)


def _checked(expression: Expression, text: str) -> Expression:
    """Refuse constants such as `1 / 0`, which no data could repair."""
    if leaves(expression):
        return expression
    try:
        with np.errstate(all="ignore"):
            finite = math.isfinite(evaluate(expression, {}))
    except (ArithmeticError, TypeError):
        finite = False
    if not finite:
        raise ValueError(f"'{source_text(expression)}' in '{text}' is not a finite number.")
    return expression


def _text(expression: Expression, spaced: bool) -> tuple[str, int]:
    """The text of an expression and the precedence of its outermost operation."""
    match expression:
        case Number(value):
            return (str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)), _ATOM_PRECEDENCE
        case Variable(name):
            return name, _ATOM_PRECEDENCE
        case Indicator(name, level):
            return f"{name}[{level}]", _ATOM_PRECEDENCE
        case Same():
            return expression.key, _ATOM_PRECEDENCE
        case Text(value):
            return repr(value), _ATOM_PRECEDENCE
        case Function("I" | "C", operand) if not spaced:
            return _text(operand, spaced)
        case Function(name, operand):
            return f"{name}({_text(operand, spaced)[0]})", _ATOM_PRECEDENCE
        case Negative(operand):
            text, precedence = _text(operand, spaced)
            return f"-({text})" if precedence < _NEGATIVE_PRECEDENCE else f"-{text}", _NEGATIVE_PRECEDENCE
    own = _PRECEDENCE[expression.operator]
    (left, left_precedence), (right, right_precedence) = _text(expression.left, spaced), _text(expression.right, spaced)
    power, compared = expression.operator == "**", own == 0
    if left_precedence < own or (power or compared) and left_precedence == own:
        left = f"({left})"
    # powers associate to the right and may have a negative exponent without parentheses
    if right_precedence < (_NEGATIVE_PRECEDENCE if power else own + 1):
        right = f"({right})"
    space = " " if spaced or own <= 1 else ""
    return f"{left}{space}{expression.operator}{space}{right}", own
