"""Formulas for design matrices and for fixed effects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from blpjax.inputs.design import Column, DesignMatrix, design_matrix
from blpjax.inputs.expressions import variable_names
from blpjax.inputs.formulas import parse_terms
from blpjax.inputs.terms import INTERCEPT, Term

__all__ = ["Column", "DesignMatrix", "Formulation"]


@dataclass(frozen=True)
class Formulation:
    """Formulas that say which columns a matrix has and which fixed effects are absorbed into it.

    Formulas have R's operators: `+` joins terms, `-` removes them, `a:b` interacts, `a * b` is `a + b + a:b`, `a / b`
    is `a + a:b`, and `(a + b) ** 2` has all interactions of up to two terms. There is an intercept unless `0 +` or
    `- 1` removes it, or fixed effects are absorbed. Factors are variables, `log(...)`, `exp(...)`, and `I(...)`, inside
    of which `+ - * / **` are arithmetic. Variables that hold text or booleans are categorical, as are those in
    `C(...)`. Columns have the order that PyBLP gives them.

    Parameters
    ----------
    formula : formula of the matrix.
    absorb : formula of the fixed effects, such as `"C(product_ids) + C(market_ids)"`. Each of its terms is one
        dimension; an interaction such as `C(a):C(b)` has one effect per combination. With fixed effects the matrix may
        have no columns, as in `Formulation("0", absorb="C(a)")`. An empty formula absorbs nothing, as None.
    absorb_method : one of PyHDFE's methods: `"within"` (the default in one dimension), `"map"` (the default in
        several), `"lsmr"`, `"sw"`, `"dummy"`.
    absorb_options : options of that method, described in PyHDFE's `create`.

    Raises
    ------
    ValueError
        When a formula is malformed or has no terms, when it contains a function or an operator that is not supported
        (named in the message), or when `absorb_method` or `absorb_options` are wrong.
    TypeError
        When an argument is of the wrong type.
    """

    formula: str
    absorb: str | None = None
    absorb_method: str | None = None
    absorb_options: Mapping[str, Any] | None = field(default=None, hash=False)
    terms: tuple[Term, ...] = field(init=False, repr=False, compare=False)
    absorb_terms: tuple[Term, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_types(self)
        terms = parse_terms(self.formula)
        absorb_terms: tuple[Term, ...] = ()
        if self.absorb is not None and not self.absorb.strip():
            object.__setattr__(self, "absorb", None)  # no effects, as an empty formula says
        if self.absorb is not None:
            absorb_terms = _parse_absorb(self.absorb)
            terms = tuple(term for term in terms if term != INTERCEPT)
        elif not terms:
            raise ValueError(f"The formula '{self.formula}' has no terms.")
        if sum(not _names((term,)) for term in terms) > 1:
            raise ValueError(f"The formula '{self.formula}' has more than one constant term.")
        object.__setattr__(self, "absorb_options", MappingProxyType(dict(self.absorb_options or {})))
        object.__setattr__(self, "terms", terms)
        object.__setattr__(self, "absorb_terms", absorb_terms)
        _check_absorb_method(self)

    @property
    def names(self) -> frozenset[str]:
        """Variables that the formula uses, those of `absorb` excluded."""
        return _names(self.terms)

    @property
    def absorb_names(self) -> frozenset[str]:
        """Variables that identify fixed effects."""
        return _names(self.absorb_terms)

    def build(self, data: Mapping[str, np.ndarray], table: str = "product_data") -> DesignMatrix:
        """Build the matrix, without absorbing fixed effects.

        Parameters
        ----------
        data : arrays by name with N rows, as `read_table` returns them.
        table : what the table is called in messages.

        Returns
        -------
        The (N, K) matrix with its columns. Levels of categorical variables are those in `data`. With fixed effects,
        categorical variables are coded as if there were an intercept, which itself is left out.

        Raises
        ------
        DataError
            When a variable is missing from the table, is not numeric where a number is needed, or has missing or
            infinite values, also after a logarithm, say. The message names the table, the column or factor, the market
            and the row.
        """
        return design_matrix(self.terms, data, table, self.formula, assume_intercept=bool(self.absorb_terms))

    def __str__(self) -> str:
        names = [str(term) for term in self.terms] + [f"Absorb[{term}]" for term in self.absorb_terms]
        return " + ".join(names)

    __repr__ = __str__

    def __reduce__(self) -> tuple[Any, ...]:
        return Formulation, (self.formula, self.absorb, self.absorb_method, dict(self.absorb_options or {}))


def _names(terms: tuple[Term, ...]) -> frozenset[str]:
    return frozenset(name for term in terms for factor in term.factors for name in variable_names(factor))


def _check_types(formulation: Formulation) -> None:
    if not isinstance(formulation.formula, str):
        raise TypeError(f"formula must be a string, not {type(formulation.formula).__name__}.")
    for name in ("absorb", "absorb_method"):
        value = getattr(formulation, name)
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be None or a string, not {type(value).__name__}.")
    options = formulation.absorb_options
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"absorb_options must be None or a dictionary, not {type(options).__name__}.")


def _parse_absorb(absorb: str) -> tuple[Term, ...]:
    """Terms of the fixed effects. Intercepts say nothing here and are ignored."""
    terms = tuple(term for term in parse_terms(absorb) if term != INTERCEPT)
    if not terms:
        raise ValueError(f"absorb='{absorb}' has no terms. Use None to absorb nothing.")
    for term in terms:
        if not _names((term,)):
            raise ValueError(f"absorb='{absorb}' has the constant term '{term}'.")
    return terms


def _check_absorb_method(formulation: Formulation) -> None:
    """Let PyHDFE check its method and options on a minimal panel with as many dimensions."""
    dimensions = len(formulation.absorb_terms)
    if dimensions == 0:
        if formulation.absorb_method is not None or formulation.absorb_options:
            raise ValueError("absorb_method and absorb_options need absorb, which is None.")
        return
    if formulation.absorb_method is None and not formulation.absorb_options:
        return

    import pyhdfe  # a slow import that only these options need

    ids = np.vstack([np.zeros(dimensions, int), np.eye(dimensions, dtype=int)])
    try:
        pyhdfe.create(
            ids,
            drop_singletons=False,
            compute_degrees=False,
            residualize_method=formulation.absorb_method,
            options=dict(formulation.absorb_options or {}),
        )
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"absorb_method={formulation.absorb_method!r} with absorb_options={dict(formulation.absorb_options or {})} "
            f"and {dimensions} dimension{'s' * (dimensions > 1)} of fixed effects: {error}"
        ) from error
