"""Fixed-point routines that run on the host, market by market: SciPy's root finders and the user's own.

Compiled programs call them through `jax.pure_callback`. They are slow: every market waits for Python. What they raise
is kept, and raised again by `raising_errors` where the program was called. What they claim is checked: a market has
converged where simulated shares are the observed ones, or where firms' first-order conditions hold.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from blpjax import options as settings
from blpjax.exceptions import CREDIBLE_RESIDUAL, Status

Array = np.ndarray

#: SciPy's root finders by PyBLP's names, with the sentence that describes each.
SCIPY_METHODS = {
    "broyden1": "the Broyden's good Jacobian approximation method of SciPy",
    "broyden2": "the Broyden's bad Jacobian approximation method of SciPy",
    "krylov": "the Krylov inverse Jacobian approximation method of SciPy",
    "diagbroyden": "the diagonal Broyden Jacobian approximation method of SciPy",
    "df-sane": "the derivative-free spectral method of SciPy",
    "hybr": "the modified Powell hybrid method of MINPACK",
    "lm": "the modified Levenberg-Marquardt method of MINPACK",
}
#: Those that can use a Jacobian. They have no norm to choose and no callback.
MINPACK = ("hybr", "lm")
_NO_TOL_NORM = (*MINPACK, "df-sane")

_raised: list[BaseException] = []


@contextlib.contextmanager
def raising_errors() -> Iterator[None]:
    """Where a program may call routines, and is waited for: what they raise is raised here, without JAX's frames."""
    _raised.clear()
    try:
        yield
    finally:
        if _raised:
            error = _raised[0]
            _raised.clear()
            raise error from None


class Image(NamedTuple):
    """What a contraction makes of its argument (n,).

    `value` (n,), `change` (n,), whose norm is displayed, `weights` (n,) of changes or None, and the map's `jacobian`
    (n, n) where it was asked for.
    """

    value: Array
    change: Array
    weights: Array | None
    jacobian: Array | None


@runtime_checkable
class HostProblem(Protocol):
    """A fixed-point problem of one market as routines on the host see it, without padding."""

    def enter(self, values: Array) -> Array:
        """Unknowns (n,) of routines at values (n,) of the problem."""
        ...

    def leave(self, unknowns: Array) -> Array:
        """The inverse of `enter`."""
        ...

    def contraction(self, unknowns: Array, with_jacobian: bool) -> Image:
        """The contraction at unknowns (n,)."""
        ...

    def residual(self, values: Array) -> float:
        """How far values (n,) are from a solution: converged are those of at most `CREDIBLE_RESIDUAL`."""
        ...


@dataclasses.dataclass(frozen=True)
class HostRoutine:
    """A routine with its options; called with arrays of one market, it returns those of a `FixedPoint`.

    `method` is a name in `SCIPY_METHODS` or ``method(initial, contraction, callback, **options)``, which returns the
    final values and whether it converged. With `nonlinear`, the unknowns of inversions are exponentials of mean
    utilities.
    """

    method: str | Callable[..., tuple[Any, Any]]
    options: tuple[tuple[str, Any], ...]
    compute_jacobian: bool
    display: bool
    nonlinear: bool

    def __hash__(self) -> int:
        # options may hold what has no hash
        names = tuple(name for name, _ in self.options)
        return hash((self.method, names, self.compute_jacobian, self.display, self.nonlinear))

    def invert(self, market_of: "MarketOf", start: Any, *arrays: Any) -> tuple[Array, ...]:
        """Invert the shares of one market from mean utilities (J,); ``market_of(arrays)`` is a `SharesToInvert`."""

        def build() -> tuple[Array, HostProblem]:
            market = SharesToInvert(*market_of([np.asarray(array) for array in arrays]))
            rows = market.observed > 0
            return rows, ShareInversion(market, rows, self.nonlinear)

        return self.solve(start, build)

    def find_prices(self, conditions_of: "ConditionsOf", start: Any, *arrays: Any) -> tuple[Array, ...]:
        """Find equilibrium prices (J,) of one market from `start` (J,).

        ``conditions_of([start, *arrays])`` returns which products are no padding (J,), and a function of prices (J,)
        that returns the derivatives of profits (J,) and the changes (J,) of prices to those that they lead to.
        """

        def build() -> tuple[Array, HostProblem]:
            prices = np.array(start, dtype=float)
            rows, conditions = conditions_of([prices, *(np.asarray(array) for array in arrays)])
            return rows, PriceSearch(prices, np.asarray(rows), conditions)

        return self.solve(start, build)

    def solve(
        self, start: Any, build: Callable[[], tuple[Array, HostProblem]]
    ) -> tuple[Array, Array, Array, Array, Array]:
        """Value (J,), status, iterations, evaluations and residual of one market; padding keeps its start.

        `build` returns which elements (J,) are no padding, and the problem of these.
        """
        if not _raised:
            try:
                return self._solve(start, *build())
            except BaseException as error:  # interrupts, too: JAX would log it, and raise an error in words of its own
                _raised.append(error)
        failed, none = np.asarray(int(Status.NOT_FINITE)), np.asarray(0)
        return np.full(np.shape(start), np.nan), failed, none, none, np.asarray(np.inf)

    def _solve(self, start: Any, rows: Array, problem: HostProblem) -> tuple[Array, Array, Array, Array, Array]:
        value = np.array(start, dtype=float)
        loop = _Loop(self, problem)
        found, converged = loop.run(value[rows])
        with np.errstate(all="ignore"):
            residual = problem.residual(found) if np.isfinite(found).all() else np.inf
        status = Status.CONVERGED if converged and residual <= CREDIBLE_RESIDUAL else Status.STALLED
        value[rows] = found
        return (
            value,
            np.asarray(int(status if np.isfinite(found).all() else Status.NOT_FINITE)),
            np.asarray(loop.iterations or loop.evaluations),
            np.asarray(loop.evaluations),
            np.asarray(float(residual)),
        )


class _Loop:
    """One run of a routine in one market."""

    def __init__(self, routine: HostRoutine, problem: HostProblem) -> None:
        self.routine, self.problem = routine, problem
        self.iterations = self.evaluations = 0

    def run(self, start: Array) -> tuple[Array, bool]:
        """Final values and whether the routine says that it converged."""
        with np.errstate(all="ignore"):
            initial = self.problem.enter(start)
            if callable(self.routine.method):
                returned = self.routine.method(
                    initial.copy(), self.contraction, self.callback, **dict(self.routine.options)
                )
                final, converged = _read_returned(returned, initial.shape)
            else:
                final, converged = self._find_root(initial)
            return self.problem.leave(final), bool(converged)

    def _find_root(self, initial: Array) -> tuple[Array, bool]:
        from scipy.optimize import root  # a slow import that only these routines need

        method, given = self.routine.method, dict(self.routine.options)
        with_jacobian = self.routine.compute_jacobian

        def gap(x: Array) -> Any:
            image, _, jacobian = self.contraction(x)
            return image - x if jacobian is None else (image - x, jacobian - np.eye(x.size))

        more: dict[str, Any] = {}
        if method not in MINPACK:
            more["callback"] = lambda *_: self.callback()
        if method not in _NO_TOL_NORM:
            given.setdefault("tol_norm", lambda x: np.abs(x).max(initial=0.0))
        found = root(gap, initial, method=method, jac=with_jacobian or None, options=given, **more)
        return np.asarray(found.x, dtype=float).reshape(initial.shape), bool(found.success)

    def callback(self) -> None:
        """Count a major iteration."""
        self.iterations += 1

    def contraction(self, x: Array) -> tuple[Array, Array | None, Array | None]:
        """The map's value, weights of changes in it, and its Jacobian where that was asked for."""
        self.evaluations += 1
        found = self.problem.contraction(np.asarray(x, dtype=float), self.routine.compute_jacobian)
        if self.routine.display:
            settings.output(
                f"{self.evaluations:6d}  {self.iterations:6d}  {np.abs(found.change).max(initial=0.0):+.6E}"
            )
        return found.value, found.weights, found.jacobian


#: What `HostRoutine.find_prices` needs to know of a market,
ConditionsOf = Callable[[list[Array]], tuple[Array, Callable[[Array], tuple[Array, Array]]]]

#: and `HostRoutine.invert`.
MarketOf = Callable[[list[Array]], tuple[Array, Array, Callable[[Array, bool], tuple[Array, Array | None]]]]

#: Size of the differences, relative to prices, that Jacobians of the search for prices consist of.
_DIFFERENCE = 1e-5


class PriceSearch:
    """The contraction whose fixed points are equilibrium prices; see `HostRoutine.find_prices`."""

    def __init__(self, everything: Array, rows: Array, conditions: Callable[[Array], tuple[Array, Array]]) -> None:
        self.everything, self.rows, self.conditions = everything, rows, conditions

    def enter(self, values: Array) -> Array:
        """Prices (n,) are the unknowns."""
        return values

    def leave(self, unknowns: Array) -> Array:
        """Prices (n,)."""
        return unknowns

    def contraction(self, unknowns: Array, with_jacobian: bool) -> Image:
        """The contraction at prices (n,), with its Jacobian by central differences."""
        change, jacobian = self._at(unknowns)[1], None
        if with_jacobian:
            jacobian = np.eye(unknowns.size)
            for k, size in enumerate(_DIFFERENCE * np.maximum(np.abs(unknowns), 1e-3)):
                one = np.where(np.arange(unknowns.size) == k, size, 0.0)
                jacobian[:, k] += (self._at(unknowns + one)[1] - self._at(unknowns - one)[1]) / (2.0 * size)
        return Image(unknowns + change, change, None, jacobian)

    def residual(self, values: Array) -> float:
        """The largest derivative of profits at prices (n,), or relative change of prices where that is larger."""
        gradient, change = self._at(values)
        relative = np.abs(change).max(initial=0.0) / max(np.abs(values).max(initial=0.0), 1e-300)
        return float(max(np.abs(gradient).max(initial=0.0), relative))

    def _at(self, prices: Array) -> tuple[Array, Array]:
        everything = self.everything.copy()
        everything[self.rows] = prices
        gradient, change = self.conditions(everything)
        return gradient[self.rows], change[self.rows]


class Simulated(NamedTuple):
    """Simulated shares (J,), clipped, and their derivatives in mean utilities (J, J) where these were asked for."""

    shares: Array
    jacobian: Array | None


class SharesToInvert(NamedTuple):
    """One market as `blpjax.kernels.contraction` knows it: observed shares (J,), zero for padding, and demand.

    `simulate` is a function of mean utilities (J,) and of whether their Jacobian is wanted. `scale` (J,) is one, or
    with nests ``1 - rho``.
    """

    observed: Array
    scale: Array
    simulate: Callable[[Array, bool], tuple[Array, Array | None]]


class ShareInversion:
    """The contraction that inverts shares: the unknowns are mean utilities, or exponentials of these."""

    def __init__(self, market: SharesToInvert, rows: Array, nonlinear: bool) -> None:
        self.market, self.rows, self.nonlinear = market, rows, nonlinear

    def enter(self, values: Array) -> Array:
        """Unknowns at mean utilities (n,)."""
        return np.exp(values) if self.nonlinear else values

    def leave(self, unknowns: Array) -> Array:
        """Mean utilities (n,)."""
        return np.log(unknowns) if self.nonlinear else unknowns

    def contraction(self, unknowns: Array, with_jacobian: bool) -> Image:
        """The contraction at unknowns (n,)."""
        x, scale = unknowns, self.market.scale[self.rows]
        simulated = self._at(self.leave(x), with_jacobian)
        change = scale * self._gap(simulated)
        image = x * np.exp(change) if self.nonlinear else x + change
        jacobian = None
        if simulated.jacobian is not None:
            jacobian = np.eye(x.size) - (scale / simulated.shares)[:, None] * simulated.jacobian
            if self.nonlinear:
                jacobian = image[:, None] * jacobian / x[None, :]
        return Image(image, change, 1.0 / x if self.nonlinear else None, jacobian)

    def residual(self, values: Array) -> float:
        """The largest element of ``log S - log s`` at mean utilities (n,)."""
        return float(np.abs(self._gap(self._at(values, False))).max(initial=0.0))

    def _gap(self, simulated: Simulated) -> Array:
        gap: Array = np.log(self.market.observed[self.rows]) - np.log(simulated.shares)
        return gap

    def _at(self, delta: Array, with_jacobian: bool) -> Simulated:
        everything = np.zeros(self.rows.size)
        everything[self.rows] = delta
        shares, jacobian = self.market.simulate(everything, with_jacobian)
        return Simulated(shares[self.rows], None if jacobian is None else jacobian[np.ix_(self.rows, self.rows)])


def _read_returned(returned: Any, shape: tuple[int, ...]) -> tuple[Array, Any]:
    """Final values and the flag that a user's function returns; `TypeError` or `ValueError` when they are not these."""
    if not isinstance(returned, Sequence) or isinstance(returned, str) or len(returned) != 2:
        raise TypeError(f"The function that Iteration was given must return (final, converged), not {returned!r}.")
    try:
        final = np.array(returned[0], dtype=float)
    except (TypeError, ValueError):
        raise TypeError(
            f"The function that Iteration was given must return an array of numbers and a flag, not {returned!r}."
        ) from None
    if final.size != shape[0]:
        raise ValueError(
            f"The function that Iteration was given must return {shape[0]} final values, as many as it is given, not "
            f"{final.size}."
        )
    return final.reshape(shape), returned[1]
