"""The objective as optimisation routines see it: counted, remembered, and finite where it fails."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from numpy.typing import ArrayLike

from blpjax.optimize.bounds import is_held


@runtime_checkable
class Evaluation(Protocol):
    """What one evaluation of the objective provides. Arrays may be NumPy's or JAX's."""

    @property
    def objective(self) -> Any:
        """Scalar, r'r or a multiple of it."""
        ...

    @property
    def gradient(self) -> Any:
        """Gradient of q, (P,)."""
        ...

    @property
    def residuals(self) -> Any:
        """Residuals r, (M,)."""
        ...

    @property
    def residual_jacobian(self) -> Any:
        """Jacobian of r, (M, P)."""
        ...

    @property
    def ok(self) -> Any:
        """Whether the evaluation succeeded."""
        ...


class FailurePolicy(NamedTuple):
    """What routines see where the objective cannot be evaluated.

    `behavior` is ``'revert'``, values of the last evaluation that succeeded (before any, an objective of 1e10 and a
    gradient of zero), the objective times `punishment`, or ``'punish'``, the `punishment` as objective and a gradient
    of zero.
    """

    behavior: Literal["revert", "punish"]
    punishment: float = 1.0


#: The objective that takes the place of a failed one before any evaluation has succeeded.
_FIRST_OBJECTIVE = 1e10


class Recorded(NamedTuple):
    """One evaluation with its numbers on the host."""

    theta: np.ndarray
    objective: float
    gradient: np.ndarray | None
    ok: bool
    evaluation: Any


class Recorder:
    """Calls the objective, remembers the points that matter, and stands in for evaluations that fail."""

    def __init__(
        self,
        evaluate: Callable[[np.ndarray], Evaluation],
        lower: np.ndarray,
        upper: np.ndarray,
        compute_gradient: bool,
        on_iteration: Callable[[int], object] | None,
        complete: Callable[[np.ndarray, Any], Evaluation] | None = None,
        policy: FailurePolicy | None = None,
    ) -> None:
        self.evaluate = evaluate
        self.lower, self.upper = lower, upper
        self.compute_gradient = compute_gradient
        self.on_iteration = on_iteration
        self.policy = policy
        self._complete = complete
        self.evaluations = self.failures = self.iterations = 0
        self.highest = 0.0
        self.last: Recorded | None = None
        self.best: Recorded | None = None
        self.iterate: Recorded | None = None
        self.succeeded: Recorded | None = None

    def __call__(self, theta: ArrayLike) -> Recorded:
        """Evaluate, or recall, the objective at theta (P,)."""
        theta = np.array(theta, dtype=float).ravel()
        for known in (self.last, self.best, self.iterate):
            if known is not None and np.array_equal(known.theta, theta):
                return known
        self.last = self._record(theta, self.evaluate(theta.copy()))
        ok = self.last.ok
        self.evaluations += 1
        self.failures += not ok
        if ok:
            self.succeeded = self.last
            self.highest = max(self.highest, self.last.objective)
            inside = bool(((theta >= self.lower) & (theta <= self.upper)).all())
            if inside and (self.best is None or self.last.objective < self.best.objective):
                self.best = self.last
            if self.iterate is None:
                self.iterate = self.last
        return self.last

    def complete(self, record: Recorded) -> Recorded:
        """The same point with derivatives, where evaluations are without any."""
        if self._complete is None:
            return record
        return self._record(record.theta, self._complete(record.theta, record.evaluation))

    def _record(self, theta: np.ndarray, evaluation: Evaluation) -> Recorded:
        wanted = (evaluation.objective, evaluation.gradient if self.compute_gradient else None, evaluation.ok)
        objective, gradient, ok = jax.device_get(wanted)
        gradient = None if gradient is None else np.asarray(gradient, float).ravel()
        ok = bool(ok) and bool(np.isfinite(objective)) and (gradient is None or bool(np.isfinite(gradient).all()))
        return Recorded(theta, float(objective), gradient, ok, evaluation)

    def count_iteration(self, theta: np.ndarray | None = None, *unused: Any, count: int | None = None) -> None:
        """A major iteration has ended, at theta if given."""
        for known in (self.last, self.best):
            if theta is not None and known is not None and known.ok and np.array_equal(known.theta, theta):
                self.iterate = known
        before, self.iterations = self.iterations, self.iterations + 1 if count is None else count
        if self.on_iteration is not None and self.iterations > before:
            self.on_iteration(self.iterations)

    def value(self, theta: np.ndarray) -> float:
        """Objective, or a finite value larger than any seen: for routines that use no gradient."""
        record = self(theta)
        if not record.ok and self.policy is not None:
            return self._stand_in(record, self.policy)[0]
        return record.objective if record.ok else 10 * (1 + self.highest)

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Objective and gradient, or a bowl around the last iterate: line searches interpolate it to a shorter step.

        The value exceeds the iterate's objective by what the gradient had promised as decrease. A much larger one
        would make the interpolated step uselessly small.
        """
        record, centre = self(theta), self.iterate
        if record.ok and record.gradient is not None:
            return record.objective, record.gradient.copy()
        if self.policy is not None:
            return self._stand_in(record, self.policy)
        if centre is None or centre.gradient is None:
            return 10 * (1 + self.highest), np.zeros_like(record.theta)
        step = record.theta - centre.theta
        rise = abs(float(centre.gradient @ step)) + 0.1 * (1 + abs(centre.objective))
        return centre.objective + rise, 2 * rise * step / (step @ step)

    def _stand_in(self, record: Recorded, policy: FailurePolicy) -> tuple[float, np.ndarray]:
        good = self.succeeded
        gradient = np.zeros_like(record.theta)
        if policy.behavior == "punish":
            return policy.punishment, gradient
        if good is None:
            return _FIRST_OBJECTIVE * policy.punishment, gradient
        return good.objective * policy.punishment, gradient if good.gradient is None else good.gradient.copy()

    def gauss_newton_decrease(self, record: Recorded) -> tuple[float, float]:
        """Sum of squares q of the residuals at a point, and the decrease of q that least squares promises there.

        Linear least squares within the bounds; both are NaN without a Jacobian.
        """
        if record.evaluation.residual_jacobian is None:
            return np.nan, np.nan
        r, J = jax.device_get((record.evaluation.residuals, record.evaluation.residual_jacobian))
        r, norms = np.asarray(r, float), np.linalg.norm(J, axis=0)
        scale = np.where(norms > 0, norms, 1.0)
        # The solver wants an interior: a distance this small from a bound promises nothing.
        lower = np.minimum((self.lower - record.theta) * scale, -1e-12)
        upper = np.maximum((self.upper - record.theta) * scale, 1e-12)
        step = np.linalg.lstsq(J / scale, -r, rcond=-1)[0]
        if ((step < lower) | (step > upper)).any():
            from scipy.optimize import lsq_linear  # a slow import that only bounds in the way need

            step = lsq_linear(J / scale, -r, (lower, upper), method="bvls").x
        rest = J / scale @ step + r
        return float(r @ r), float(r @ r - rest @ rest)

    def newton_decrease(self, record: Recorded, hessian: np.ndarray) -> float:
        """Decrease of the sum of squares that the exact Hessian (P, P) promises over the elements free to move.

        Negative curvature counts as if it were positive.
        """
        r, J = jax.device_get((record.evaluation.residuals, record.evaluation.residual_jacobian))
        gradient = 2.0 * np.asarray(J, float).T @ np.asarray(r, float)
        free = ~is_held(record.theta, gradient, self)
        H, g = hessian[np.ix_(free, free)], gradient[free]
        scale = np.sqrt(np.maximum(np.abs(np.diag(H)), np.finfo(float).tiny))
        values, vectors = np.linalg.eigh(H / np.outer(scale, scale))
        sizes = np.maximum(np.abs(values), 1e-13 * np.abs(values).max(initial=0.0))
        return float(0.5 * ((vectors.T @ (g / scale)) ** 2 / np.maximum(sizes, np.finfo(float).tiny)).sum())
