"""Exceptions, and the outcomes of loops as data.

Every loop returns a `Status` code beside its value. Codes are plain integers inside compiled programs;
`raise_for_status` and `describe_status` turn them into sentences that name markets, at the edge of the library.

PyBLP's names
-------------
PyBLP raises `MultipleErrors` for whatever went wrong in numerical work; here that is another name of
`ConvergenceError`. These subclasses of it have the names of PyBLP's parts, and are raised themselves:
`DeltaConvergenceError`, `EquilibriumPricesConvergenceError`, `SyntheticPricesConvergenceError`,
`SyntheticDeltaConvergenceError`, `ThetaConvergenceError`, `NonpositiveCostsError`, `NonpositiveSyntheticCostsError`,
`AbsorptionError` and `GenericNumericalError`.

PyBLP's other names are absent, because they could never be raised:

- ``ClippedSharesError``: clipped shares are `ProblemResults.clipped_shares`.
- ``...NumericalError`` other than the generic one: overflow and missing values are the status `Status.NOT_FINITE` of
  the loop in which they occur, with the exception of that loop.
- ``...ReversionError``: what is reverted or punished is reported with the evaluation of the objective.
- ``...InversionError``, ``...EigenvaluesError``, ``Invalid...CovariancesError``: singular matrices have pseudo-inverses
  with an `IdentificationWarning`, or results of NaN.
- ``MicroMoments...``, ``MicroScores...``, ``SyntheticMicro...``: an evaluation with micro moments that are not finite
  fails, and says which these are; scores of choices without probability are NaN.
"""

import enum
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


class BLPError(Exception):
    """Base class of the exceptions that blpjax raises for numerical failures."""


class DataError(BLPError, ValueError):
    """A product or agent table cannot be used. The message names table, column, market and row."""


class IdentificationError(BLPError, ValueError):
    """The problem is not identified, for example because there are fewer moments than parameters."""


class ConvergenceError(BLPError, RuntimeError):
    """A loop failed in at least one market. The message names the markets."""


#: PyBLP's name of what is caught where numerical work fails.
MultipleErrors = ConvergenceError


class ThetaConvergenceError(ConvergenceError):
    """An optimisation did not converge, and ``error_behavior='raise'``; otherwise that is a `ConvergenceWarning`."""


class DeltaConvergenceError(ConvergenceError):
    """Mean utilities at which simulated shares are the observed ones were not found."""


class EquilibriumPricesConvergenceError(ConvergenceError):
    """Equilibrium prices were not found."""


class SyntheticPricesConvergenceError(ConvergenceError):
    """Equilibrium prices of a simulation were not found."""


class SyntheticDeltaConvergenceError(ConvergenceError):
    """Mean utilities of a simulation with given prices and shares were not found."""


class NonpositiveCostsError(ConvergenceError):
    """Marginal costs whose logarithms are needed are not positive in estimation."""


class NonpositiveSyntheticCostsError(ConvergenceError):
    """Marginal costs whose logarithms are needed are not positive in a simulation."""


class AbsorptionError(ConvergenceError):
    """Fixed effects could not be absorbed to the method's tolerance."""


class GenericNumericalError(ConvergenceError):
    """Results are not finite although no loop failed."""


class StorageError(BLPError, ValueError):
    """A file cannot be loaded: blpjax did not write it, a newer version did, or it is damaged. The message names it."""


class StudyError(BLPError, RuntimeError):
    """A study cannot go on because workers were lost. The message says what is kept."""


class SizeError(BLPError, MemoryError):
    """Something would need more memory than there is. The message says what needs how much, and what to do."""


class ForkError(BLPError, RuntimeError):
    """Nothing can be computed in a process that was forked from one that had used JAX. The message says what to do."""


class DescriptionError(BLPError, ValueError):
    """A file does not describe a study. The message names it, the table and the key."""


class IdentificationWarning(UserWarning):
    """The problem may be weakly identified or ill-conditioned."""


class DataWarning(UserWarning):
    """A product or agent table is unusual but can be used."""


class ConvergenceWarning(UserWarning):
    """A loop or an optimisation ended without converging."""


class UnusedOptionWarning(UserWarning):
    """An option of a valid script has no effect on this problem, or in this library."""


#: Warnings point at the first line that is not in these packages: that of the user's program.
_LIBRARIES = ("blpjax", "beartype", "contextlib", "equinox", "functools", "jax", "jaxtyping")


def warn_user(text: str, category: type[Warning]) -> None:
    """Warn at the line of the user's program that called the library, however deep in it this is called."""
    frame, level = sys._getframe(), 1
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


def warn_unused(option: str, reason: str) -> None:
    """Warn that an option has no effect, and why: nothing is accepted and ignored silently."""
    warn_user(f"{option} has no effect: {reason}", UnusedOptionWarning)


class Status(enum.IntEnum):
    """Outcome of a loop in one market.

    `CONVERGED` and `ROUNDING_FLOOR` are successes: the second means that the residual can no longer be reduced in
    64-bit arithmetic although it is slightly above the requested tolerance.
    """

    CONVERGED = 0
    ROUNDING_FLOOR = 1
    MAX_EVALUATIONS = 2
    NOT_FINITE = 3
    STALLED = 4
    UPWARD_SLOPING = 5

    @property
    def sentence(self) -> str:
        """What happened, in words."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CONVERGED: "converged",
    Status.ROUNDING_FLOOR: "converged to the accuracy of 64-bit arithmetic",
    Status.MAX_EVALUATIONS: "reached the maximum number of evaluations",
    Status.NOT_FINITE: "produced infinite or missing values",
    Status.STALLED: "made no further progress before reaching its tolerance",
    Status.UPWARD_SLOPING: "met demand that does not slope down (prices have no equilibrium)",
}


#: Where users say how solutions are found, or when they are good enough, success is not believed when residuals (of log
#: shares, of profits) are larger than this. SciPy's tolerance is 6e-6 by default.
CREDIBLE_RESIDUAL = 1e-5


def succeeded(codes: Any) -> Any:
    """Whether each status code is a success. Works on NumPy and JAX integer arrays alike."""
    return codes <= Status.ROUNDING_FLOOR


def describe_status(
    codes: np.ndarray, market_ids: Sequence[object] | np.ndarray, residuals: np.ndarray | None = None
) -> str:
    """Say which markets failed and why, or return an empty string when all succeeded.

    Parameters
    ----------
    codes : (T,) integer array of `Status` codes.
    market_ids : T market IDs in the same order.
    residuals : (T,) final residuals, optional.
    """
    codes = np.asarray(codes)
    failed = np.flatnonzero(~succeeded(codes))
    if failed.size == 0:
        return ""
    parts = []
    for code in np.unique(codes[failed]):
        rows = failed[codes[failed] == code]
        names = ", ".join(repr(_plain(market_ids[t])) for t in rows[:5]) + (
            f" and {rows.size - 5} more" if rows.size > 5 else ""
        )
        worst = (
            ""
            if residuals is None
            else f" (largest residual {np.nanmax(np.append(np.asarray(residuals)[rows], 0.0)):.1e})"
        )
        parts.append(f"{Status(int(code)).sentence} in {rows.size} of {codes.size} markets: {names}{worst}")
    return "; ".join(parts)


def raise_for_status(
    codes: np.ndarray,
    market_ids: Sequence[object] | np.ndarray,
    action: str,
    residuals: np.ndarray | None = None,
    warn: bool = False,
    kind: type[ConvergenceError] = ConvergenceError,
    *,
    note: str = "",
) -> None:
    """Turn failed status codes into one error of a `kind`, or one `ConvergenceWarning` when `warn` is true.

    A `note` is a sentence that follows.
    """
    message = describe_status(codes, market_ids, residuals)
    if not message:
        return
    text = f"{action} {message}." + (f" {note}" if note else "")
    if warn:
        warn_user(text, ConvergenceWarning)
    else:
        raise kind(text)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value
