"""Identification checks: what can be known before solving to make estimates meaningless.

Matrices are built (and, where there are fixed effects, residualised) when they get here. What cannot be estimated
raises `IdentificationError`, what is merely suspicious warns with `IdentificationWarning`. PyBLP warns of collinear
columns and does not compare numbers of moments and parameters: underidentified problems "converge" at their starting
values.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from blpjax.exceptions import IdentificationError, IdentificationWarning, warn_user
from blpjax.inputs.design import DesignMatrix
from blpjax.inputs.formulation import Formulation

# A residualised column this small compared with the original is what rounding or an iterative method has left of it.
_ABSORBED = 1e-6
# Columns that are collinear only after absorption differ by the error of iterative methods.
_COLLINEAR_AFTER_ABSORPTION = 1e-7
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Collinearity:
    """Columns of a matrix that can be written in terms of others.

    Attributes
    ----------
    rank : number of columns that are linearly independent.
    absorbed : indices of columns that are constant within fixed effects, hence zero after absorption.
    groups : for each other dependent column, its index followed by those of the columns that it is a combination of
        (none if the column is zero).
    """

    rank: int
    absorbed: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]


def check_endogenous(
    X1: DesignMatrix, X2: DesignMatrix | None = None, X3: DesignMatrix | None = None, demographics: bool = False
) -> None:
    """Check that prices and shares are where they can be.

    `demographics` says whether there are any: these may give prices in X2 alone a mean coefficient.

    Raises
    ------
    IdentificationError
        Prices are in neither X1 nor X2, or in X3; shares are in X1 or X2; prices or shares are a categorical variable.

    Warns
    -----
    IdentificationWarning
        Prices are only in X2, and there are no demographics.
    """
    for name, matrix in [("X1", X1), ("X2", X2), ("X3", X3)]:
        _refuse_categories(name, matrix)
    for name, matrix in [("X1", X1), ("X2", X2)]:
        _refuse(name, matrix, "shares", "Shares are what demand explains.")
    _refuse("X3", X3, "prices", "Marginal costs are what prices reveal. Include prices in X1 or X2.")
    if _labels_with(X1, "prices"):
        return
    if X2 is None or not _labels_with(X2, "prices"):
        raise IdentificationError(
            "Neither X1 nor X2 depends on 'prices', so the effect of prices on demand cannot be estimated. Formulas "
            "have to call prices by this name, for example '1 + prices', 'log(prices)' or 'I(prices**2)'. A column "
            "computed from prices beforehand would be treated as exogenous. For demand without prices, give prices of "
            "zero a coefficient of zero: '1 + prices + x' with Problem.solve(beta=[None, 0, None])."
        )
    if demographics:
        return
    warn_user(
        "'prices' are in X2 but not in X1, so the mean price coefficient is zero. Add 'prices' to X1 "
        "unless this is intended.",
        IdentificationWarning,
    )


def refuse_endogenous(name: str, formulation: Formulation) -> None:
    """Raise `IdentificationError` where prices or shares are in a formulation of what is to be exogenous.

    `name` is what the message calls it.
    """
    for endogenous in ("prices", "shares"):
        if endogenous in formulation.names:
            raise IdentificationError(
                f"'{endogenous}' in {name} are endogenous. Use exogenous variables, perhaps some that predict them."
            )


def check_rank(
    values: np.ndarray,
    labels: Sequence[str],
    name: str,
    unabsorbed: np.ndarray | None = None,
    atol: float = 1e-10,
    rtol: float = 1e-10,
    *,
    warn: bool = False,
) -> bool:
    """Check that the columns of X1, X2 or X3 are linearly independent. A matrix without columns passes.

    Parameters
    ----------
    values : (N, K) matrix, after absorption of fixed effects if there are any.
    labels : K labels of its columns.
    name : what messages call the matrix.
    unabsorbed : (N, K) matrix before absorption, or None when there are no fixed effects.
    atol, rtol : see `find_collinearity`.
    warn : whether to warn instead, because some coefficients may not be estimated.

    Returns
    -------
    bool
        Whether they are.

    Raises
    ------
    IdentificationError
        Some columns are combinations of others, or are absorbed by fixed effects, and `warn` is false. All of them are
        named.
    """
    found = find_collinearity(values, unabsorbed, atol, rtol)
    if found.rank == len(labels):
        return True
    text = (
        f"{name} has {len(labels)} columns but rank {found.rank}: {_describe(found, labels, unabsorbed is not None)}. "
    )
    if warn:
        warn_user(
            f"{text}Problem.solve cannot estimate the coefficients of all of them: remove columns from the formula of "
            f"{name}, or fix coefficients, for example at zero.",
            IdentificationWarning,
        )
        return False
    raise IdentificationError(
        f"{text}Remove columns from the formula of {name}, or fix coefficients, for example at zero. (Without this "
        "check, by setting options.collinear_atol = options.collinear_rtol = 0, they would be arbitrary.)"
    )


def check_instruments(
    values: np.ndarray,
    labels: Sequence[str],
    name: str,
    unabsorbed: np.ndarray | None = None,
    atol: float = 1e-10,
    rtol: float = 1e-10,
) -> int:
    """Warn of collinear instruments and count those that are not.

    Parameters are those of `check_rank`.

    Returns
    -------
    int
        Rank of the instruments: the number of moments they are good for.

    Warns
    -----
    IdentificationWarning
        Some columns are combinations of others, or are absorbed by fixed effects. All of them are named.
    """
    found = find_collinearity(values, unabsorbed, atol, rtol)
    if found.rank < len(labels):
        warn_user(
            f"{name} has {len(labels)} columns but rank {found.rank}: "
            f"{_describe(found, labels, unabsorbed is not None)}. These instruments add no information and make "
            "weighting matrices singular. Drop them. (To silence this warning, set "
            "options.collinear_atol = options.collinear_rtol = 0.)",
            IdentificationWarning,
        )
    return found.rank


def check_order_condition(moments: int, parameters: int, names: Sequence[str], warn: bool = False) -> None:
    """Check that there are at least as many moments as parameters.

    Parameters
    ----------
    moments : number of moments, preferably of linearly independent ones.
    parameters : number of parameters that are estimated, linear ones included.
    names : what messages call the parameters.
    warn : whether to warn instead, because nothing will be optimised.

    Raises
    ------
    IdentificationError
        There are fewer moments than parameters and `warn` is false, or there are no moments at all.
    """
    if moments >= parameters:
        return
    text = (
        f"There are fewer moments ({moments}) than parameters ({parameters}: {_list(names, 20)}), so the parameters "
        f"are not identified. Add at least {parameters - moments} more excluded "
        f"instrument{'s' if parameters - moments > 1 else ''} to product_data, as columns 'demand_instruments0', "
        "'demand_instruments1', ... numbered from zero, or fix parameters."
    )
    if not (warn and moments):
        raise IdentificationError(text)
    warn_user(text, IdentificationWarning)


def check_excluded(values: np.ndarray, labels: Sequence[str], endogenous: dict[str, np.ndarray]) -> None:
    """Warn of excluded instruments (N, n) that are linear functions of a variable which they should be instruments for.

    Warns
    -----
    IdentificationWarning
        Naming the instrument and the `endogenous` variable (N,), prices or shares.
    """
    if len(values) <= 2:
        return  # two numbers are linear functions of any other two
    centred = values - values.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=0)
    for name, variable in endogenous.items():
        moved = variable - variable.mean()
        length = np.linalg.norm(moved)
        if length <= 1e-12 * np.linalg.norm(variable):
            continue
        same = np.abs(moved @ centred) >= (1 - 1e-12) * length * lengths
        for k in np.flatnonzero(same & (lengths > 0)).tolist():
            warn_user(
                f"The excluded instrument '{labels[k]}' is a linear function of '{name}', which is as if {name} were "
                f"exogenous. Leave it out unless they are.",
                IdentificationWarning,
            )


def find_collinearity(
    values: np.ndarray, unabsorbed: np.ndarray | None = None, atol: float = 1e-10, rtol: float = 1e-10
) -> Collinearity:
    """Find columns that are combinations of others, with a QR decomposition that pivots columns.

    Columns are scaled to unit length first, so units of measurement do not matter (in PyBLP they do). A scaled column
    is dependent when what is left of it after projection on the columns before it is no longer than `atol + rtol * sd`,
    where sd is its standard deviation, or, where fixed effects were absorbed, 1e-7 if that is more. Nothing is
    dependent when both tolerances are zero.

    Parameters
    ----------
    values : (N, K) finite matrix, after absorption.
    unabsorbed : (N, K) matrix before absorption, or None. A column is absorbed when absorption has reduced its
        deviations from the mean by a factor of a million, which also covers methods that absorb iteratively.
    atol, rtol : tolerances, `options.collinear_atol` and `options.collinear_rtol`.
    """
    K = values.shape[1]
    if K == 0 or (atol <= 0 and rtol <= 0):
        return Collinearity(K, (), ())
    norms = np.linalg.norm(values, axis=0)
    absorbed = np.zeros(K, bool)
    if unabsorbed is not None:
        deviations = np.linalg.norm(unabsorbed - unabsorbed.mean(axis=0), axis=0)
        lengths = np.linalg.norm(unabsorbed, axis=0)
        # deviations of a constant column are rounding errors
        absorbed = norms <= _ABSORBED * np.where(deviations > 1e-12 * lengths, deviations, lengths)
        absorbed &= lengths > 0
    zero = ~absorbed & (norms == 0)
    rest = np.flatnonzero(~absorbed & ~zero)
    groups: list[tuple[int, ...]] = [(int(k),) for k in np.flatnonzero(zero)]
    rank = 0
    if rest.size:
        scaled = values[:, rest] / norms[rest]
        tolerances = atol + rtol * scaled.std(axis=0)
        if unabsorbed is not None:
            tolerances = np.maximum(tolerances, _COLLINEAR_AFTER_ABSORPTION)
        rank, dependent = _pivoted_groups(scaled, tolerances)
        groups += [tuple(int(rest[k]) for k in group) for group in dependent]
    return Collinearity(rank, tuple(int(k) for k in np.flatnonzero(absorbed)), tuple(sorted(groups)))


def collinear_moments(S: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Moments with covariances S (M, M) that are combinations of others: each followed by these, if there are any."""
    scale = np.sqrt(np.where(np.diag(S) > 0, np.diag(S), 1.0))
    return find_collinearity(S / np.outer(scale, scale), atol=1e-8, rtol=1e-8).groups


def _pivoted_groups(scaled: np.ndarray, tolerances: np.ndarray) -> tuple[int, list[tuple[int, ...]]]:
    """Rank of a matrix with columns of unit length; each dependent column, followed by those that make it up."""
    R, order = scipy.linalg.qr(scaled, mode="r", pivoting=True)
    diagonal = np.zeros(order.size)  # with fewer rows than columns, the last columns have no diagonal element
    diagonal[: min(R.shape)] = np.abs(np.diag(R))
    # pivoting sorts the diagonal, so independent columns come first
    dependent = diagonal <= tolerances[order]
    rank = max(int(np.argmax(dependent)), 1) if dependent.any() else order.size
    if rank == order.size:
        return rank, []
    combinations = scipy.linalg.solve_triangular(R[:rank, :rank], R[:rank, rank:])
    groups = []
    for position, coefficients in zip(order[rank:], combinations.T, strict=True):
        partners = np.flatnonzero(np.abs(coefficients) > 1e-6 * np.abs(coefficients).max())
        groups.append((int(position), *sorted(int(k) for k in order[partners])))
    return rank, groups


def _describe(found: Collinearity, labels: Sequence[str], with_fixed_effects: bool) -> str:
    parts = []
    if found.absorbed:
        absorbed = [labels[k] for k in found.absorbed]
        parts.append(f"{_quote(absorbed)} {'is' if len(absorbed) == 1 else 'are'} absorbed by the fixed effects")
    for column, *others in found.groups:
        if others:
            where = " after absorption of the fixed effects" if with_fixed_effects else ""
            parts.append(f"'{labels[column]}' is collinear with {_quote([labels[k] for k in others])}{where}")
        else:
            parts.append(f"'{labels[column]}' is zero")
    return _list(parts, _SHOWN, "; ")


def _refuse(name: str, matrix: DesignMatrix | None, variable: str, reason: str) -> None:
    labels = [] if matrix is None else _labels_with(matrix, variable)
    if labels:
        raise IdentificationError(f"{name} cannot depend on '{variable}', but {_quote(labels)} would. {reason}")


def _refuse_categories(name: str, matrix: DesignMatrix | None) -> None:
    """Indicators of levels of an endogenous variable cannot be evaluated at other values, let alone differentiated."""
    for variable in ("prices", "shares"):
        columns = (
            [] if matrix is None else [c for c in matrix.columns if variable in c.names and variable not in c.inputs]
        )
        if columns:
            raise IdentificationError(
                f"{name} cannot use '{variable}' as a categorical variable, but {_quote([c.label for c in columns])} "
                f"would. Its effect has to be smooth: write '{variable}' without C(...), or compute categories "
                "beforehand under another name if they are exogenous."
            )


def _labels_with(matrix: DesignMatrix, variable: str) -> list[str]:
    return [column.label for column in matrix.columns if column.depends_on(variable)]


def _quote(labels: Sequence[str]) -> str:
    return _list([f"'{label}'" for label in labels], 20)


def _list(items: Sequence[str], shown: int, separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - shown} more" if len(items) > shown else ""
    return separator.join(items[:shown]) + more
