"""How closely numbers must agree, by what they are compared with, and why.

A test names the reason, never a number of its own: `DELTA.check(actual, expected)`. An element passes when its error is
within `rtol` times its own size plus `atol` times the largest element of the expected array.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted difference: `rtol` relative to the element plus `atol` relative to the largest element."""

    rtol: float
    atol: float = 0.0

    def check(self, actual: ArrayLike, expected: ArrayLike, what: str = "") -> None:
        """Fail, showing elements, where `actual` is too far from `expected`, or differs in shape or NaN."""
        expected = np.asarray(expected, dtype=float)
        actual = np.asarray(actual, dtype=float)
        assert actual.shape == expected.shape, f"{what} shape {actual.shape}, not {expected.shape}"
        finite = np.abs(expected[np.isfinite(expected)])
        atol = self.atol * finite.max(initial=0.0)
        np.testing.assert_allclose(actual, expected, rtol=self.rtol, atol=atol, err_msg=what)


# The same arithmetic on the same 64-bit numbers in another order: rounding errors of sums of a few thousand terms.
ROUNDING = Tolerance(1e-12, 1e-13)

# Markets in other places, on several devices: the same arithmetic market by market, sums in another order, and what
# an optimiser makes of their rounding errors.
SHARDED = Tolerance(1e-10, 1e-12)

# Linear algebra on the same numbers (least squares, inverses, weighting matrices): rounding times condition numbers
# up to 1e4.
LINEAR_ALGEBRA = Tolerance(1e-8, 1e-10)

# Mean utilities that two inner loops of tolerance 1e-14 reached by different paths: the error left is the last step
# times 1 / (1 - contraction modulus), and moduli up to 0.99 are common.
DELTA = Tolerance(1e-10, 1e-12)

# What is computed from delta at given parameters: the objective, moments, elasticities.
FIXED_PARAMETERS = Tolerance(1e-7, 1e-9)

# Estimates from different optimisers, or published ones with enough digits: an optimiser stops where the gradient
# is small, and the flat directions of a GMM objective turn a gradient of 1e-6 into this much of a standard error.
ESTIMATES = Tolerance(1e-5, 1e-7)

# Fixed effects absorbed by iteration (two or more dimensions) compared with dummy variables or another iteration.
ABSORPTION = Tolerance(1e-7, 1e-8)

# First derivatives against central differences: with the best step, about eps^(1/3), both truncation and rounding
# are near eps^(2/3) = 4e-11 for explicit functions; values that come out of an inner loop carry its error, divided
# by the step.
CENTRAL_DIFFERENCE = Tolerance(1e-6, 1e-7)

# Second derivatives against central differences of the objective: step eps^(1/4), errors near eps^(1/2).
# Differences of the gradient are first differences and use CENTRAL_DIFFERENCE.
SECOND_CENTRAL_DIFFERENCE = Tolerance(1e-4, 1e-5)

# The implicit derivative rule against derivatives through an unrolled loop run to rounding error.
UNROLLED = Tolerance(1e-9, 1e-11)

# The BLPestimatoR vignette's numbers come from an inner loop stopped at 1e-6.
LOOSE_INNER_LOOP = Tolerance(1e-5)


def check_printed(actual: float, printed: str) -> None:
    """Fail where `actual` does not round to a number as it was printed: `check_printed(x, "-6.3E+01")`."""
    mantissa, _, exponent = printed.upper().partition("E")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    # A little over half a unit, for numbers that were themselves rounded from a rounded print.
    assert abs(float(actual) - float(printed)) <= 0.51 * unit, f"{actual!r} does not round to {printed}"
