"""Functions of means of surveys that named moments are: ratios, covariances, correlations, coefficients of regressions.

They consist of arithmetic, so that NumPy's and JAX's arrays are taken alike, are equal by value, and can be stored.
"""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """The first mean over the second one: a mean given something."""

    def __call__(self, v: Any) -> Any:
        """Value of the function of the means v."""
        return v[0] / v[1]


@dataclass(frozen=True)
class Covariance:
    """``E[xy] - E[x] E[y]``, by places of the three means; `given` is that of a condition's mean, or -1."""

    xy: int
    x: int
    y: int
    given: int = -1

    def __call__(self, v: Any) -> Any:
        """Value of the function of the means v."""
        xy, x, y = (_conditional(v, place, self.given) for place in (self.xy, self.x, self.y))
        return xy - x * y


@dataclass(frozen=True)
class Correlation:
    """Covariance over the root of the product of variances, by places of means."""

    xy: int
    x: int
    y: int
    xx: int
    yy: int
    given: int = -1

    def __call__(self, v: Any) -> Any:
        """Value of the function of the means v."""
        variances = [
            Covariance(*places, self.given)(v) for places in ((self.xx, self.x, self.x), (self.yy, self.y, self.y))
        ]
        return Covariance(self.xy, self.x, self.y, self.given)(v) / (variances[0] * variances[1]) ** 0.5


@dataclass(frozen=True)
class Coefficient:
    """Element k of ``inv(E[xx']) E[xy]``.

    `crossproducts` are places of the K (K + 1) / 2 means of the lower triangle of xx', row by row, and `responses` of
    the K means of xy; -1 stands for one, the square of a constant.
    """

    k: int
    crossproducts: tuple[int, ...]
    responses: tuple[int, ...]

    def __call__(self, v: Any) -> Any:
        """Value of the function of the means v: by the factors L D L' of xx'."""
        K = len(self.responses)
        means = iter(1.0 if place < 0 else v[place] for place in self.crossproducts)
        A = [[next(means) for _ in range(row + 1)] for row in range(K)]
        b = [v[place] for place in self.responses]
        L: list[list[Any]] = [[0.0] * K for _ in range(K)]
        D: list[Any] = []
        for i in range(K):
            for j in range(i):
                L[i][j] = (A[i][j] - sum(L[i][m] * L[j][m] * D[m] for m in range(j))) / D[j]
            D.append(A[i][i] - sum(L[i][m] ** 2 * D[m] for m in range(i)))
        z: list[Any] = []
        for i in range(K):
            z.append(b[i] - sum(L[i][m] * z[m] for m in range(i)))
        x: list[Any] = [0.0] * K
        for i in reversed(range(self.k, K)):
            x[i] = z[i] / D[i] - sum(L[m][i] * x[m] for m in range(i + 1, K))
        return x[self.k]


#: Functions that files know, by the names of their classes.
FUNCTIONS = {kind.__name__: kind for kind in (Ratio, Covariance, Correlation, Coefficient)}


def function_state(function: Any) -> dict[str, Any] | None:
    """A function as plain values, None where it is none of these."""
    name = type(function).__name__
    if FUNCTIONS.get(name) is not type(function):
        return None
    return {"kind": name, **{field.name: getattr(function, field.name) for field in fields(function)}}


def read_function(state: dict[str, Any]) -> Any:
    """The function of a state."""
    given: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in state.items()}
    kind: Any = FUNCTIONS[given.pop("kind")]
    return kind(**given)


def _conditional(v: Any, place: int, given: int) -> Any:
    return v[place] if given < 0 else v[place] / v[given]
