"""Critical values of the F statistic of tests of conduct, for any number of instruments.

Where instruments are weak for testing, the limit of the Rivers-Vuong statistic is

    TRV -> Psi_-' Psi_+ / sqrt(|Psi_-|^2 + |Psi_+|^2 + 2 rho Psi_-' Psi_+)
    F   -> (|Psi_-|^2 + |Psi_+|^2 - 2 rho Psi_-' Psi_+) / (2 K)

with normal vectors of K elements, of means (mu_-, 0, ..., 0) and (mu_+, 0, ..., 0), variances of one, and correlations
rho between elements (Duarte, Magnolfi, Sølvsten and Sullivan 2024). Probabilities are averages over a quasi-random
sequence of the first elements and of a Wishart matrix of the others (Bartlett's decomposition), the same for all mu.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

#: Worst-case sizes and best-case powers that there are critical values for.
SIZES, POWERS = (0.075, 0.1, 0.125), (0.5, 0.75, 0.95)

#: Statistics that are larger reject at 5%.
NORMAL = 1.959963984540054

#: Correlations are rounded to so many digits, so that critical values are found again.
DIGITS = 3

_POINTS = 15  # two to this power
_FARTHEST, _STEPS = 120.0, 25


class CriticalValues(NamedTuple):
    """What F should exceed, with 95% confidence, so that sizes are below `SIZES` and powers can reach `POWERS`.

    A critical value is zero where the worst-case size is never that large, or power is as large whatever the means.
    """

    size: tuple[float, ...]
    power: tuple[float, ...]


def critical_values(K: int, rho: float) -> CriticalValues:
    """Critical values for K instruments and the correlation rho of a pair of models, whose sign does not matter."""
    return _critical_values(int(K), min(round(abs(float(rho)), DIGITS), 1 - 10.0**-DIGITS))


@cache
def _critical_values(K: int, rho: float) -> CriticalValues:
    draws = _draw(K, rho)
    grid = np.concatenate([[0.0], np.geomspace(0.05, _FARTHEST, 60)])
    rejected = np.array([_simulate(draws, 0.0, mu, rho, K).rejected for mu in grid])
    sizes = []
    for size in SIZES:
        above = np.flatnonzero(rejected > size)
        if not above.size:
            sizes.append(0.0)
            continue
        low, high = grid[above[-1]], grid[min(above[-1] + 1, grid.size - 1)]
        for _ in range(_STEPS):
            mu = (low + high) / 2
            low, high = (mu, high) if _simulate(draws, 0.0, mu, rho, K).rejected > size else (low, mu)
        sizes.append(_simulate(draws, 0.0, low, rho, K).quantile())
    powers = []
    for power in POWERS:
        if _simulate(draws, 0.0, 0.0, rho, K).rejected >= power:
            powers.append(0.0)
            continue
        low, high = 0.0, _FARTHEST
        for _ in range(_STEPS):
            mu = (low + high) / 2
            low, high = (mu, high) if _simulate(draws, mu, mu, rho, K).rejected < power else (low, mu)
        powers.append(_simulate(draws, high, high, rho, K).quantile())
    return CriticalValues(tuple(sizes), tuple(powers))


class _Draws(NamedTuple):
    """First elements of both vectors without their means, and sums of products of the other elements."""

    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray


class _Limit(NamedTuple):
    """How often the test rejects, and draws of F."""

    rejected: float
    F: np.ndarray

    def quantile(self) -> float:
        """The critical value: what F exceeds with a probability of 5%."""
        return float(np.quantile(self.F, 0.95))


def _draw(K: int, rho: float) -> _Draws:
    points, r = _points(K), np.sqrt(1 - rho**2)
    x, other, n, c, d = points
    return _Draws(
        x,
        rho * x + r * other,
        c,
        rho * c + r * np.sqrt(c) * n,
        rho**2 * c + 2 * rho * r * np.sqrt(c) * n + r**2 * (n**2 * (K > 1) + d),
    )


@cache
def _points(K: int) -> tuple[np.ndarray, ...]:
    """Three normal variables, and chi-squared ones with K - 1 and K - 2 degrees of freedom."""
    from scipy.special import chdtri, ndtri
    from scipy.stats import qmc  # slow imports that only this needs

    uniform = qmc.Sobol(5, rng=np.random.default_rng(0)).random_base2(_POINTS).clip(1e-12, 1 - 1e-12).T
    squares = [chdtri(k, u) if k > 0 else np.zeros(u.size) for k, u in zip((K - 1, K - 2), uniform[3:], strict=True)]
    return (*ndtri(uniform[:3]), *squares)


def _simulate(draws: _Draws, below: float, above: float, rho: float, K: int) -> _Limit:
    """The limit at means mu_- and mu_+."""
    x, y = draws.x + below, draws.y + above
    A, B, D = x**2 + draws.xx, y**2 + draws.yy, x * y + draws.xy
    squares = A + B
    return _Limit(float(np.mean(D**2 > NORMAL**2 * (squares + 2 * rho * D))), (squares - 2 * rho * D) / (2 * K))
