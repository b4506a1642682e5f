"""Routines that minimise a recorded objective: our own, those of SciPy, and the user's.

Each takes a `Recorder`, (P,) starting values and `RoutineSettings`, and returns a `RoutineEnd`: what it claims, which
`blpjax.optimize.optimize.minimize` checks. `blpjax.optimize.table` says what else there is to know of them.
"""

import contextlib
import enum
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from blpjax.exceptions import Status
from blpjax.machine.sizes import FEWEST_MOMENTS, coarse_size, pad_axes
from blpjax.optimize.recorder import Recorder
from blpjax.optimize.stepwise import RUNNING, Stepwise, Trial


class OptimizationStatus(enum.IntEnum):
    """How optimisation ended. The first five codes are those of `blpjax.exceptions.Status`."""

    CONVERGED = 0
    ROUNDING_FLOOR = 1
    MAX_EVALUATIONS = 2
    NOT_FINITE = 3
    STALLED = 4
    RETURNED = 5
    ROUTINE_FAILED = 6
    NOT_OPTIMAL = 7
    INTERRUPTED = 8

    @property
    def sentence(self) -> str:
        """What happened, in words."""
        return _SENTENCES[self]

    @property
    def converged(self) -> bool:
        """Whether this is a success."""
        return self in (OptimizationStatus.CONVERGED, OptimizationStatus.ROUNDING_FLOOR, OptimizationStatus.RETURNED)


_SENTENCES = {
    OptimizationStatus.CONVERGED: "Optimization converged",
    OptimizationStatus.ROUNDING_FLOOR: "Optimization converged to the accuracy of 64-bit arithmetic",
    OptimizationStatus.MAX_EVALUATIONS: "Optimization reached the maximum number of evaluations",
    OptimizationStatus.NOT_FINITE: "The objective could not be evaluated at the starting values",
    OptimizationStatus.STALLED: "Optimization made no further progress before reaching an optimum",
    OptimizationStatus.RETURNED: "The starting values were returned without optimization",
    OptimizationStatus.ROUTINE_FAILED: "The optimization routine reports failure",
    OptimizationStatus.NOT_OPTIMAL: "The optimization routine reports success at a point that is not an optimum",
    OptimizationStatus.INTERRUPTED: "Optimization was interrupted; the best values so far are returned",
}


class RoutineEnd(NamedTuple):
    """How a routine ended: final values, what it claims, its words, and whether a limit of the user's stopped it."""

    theta: np.ndarray
    status: OptimizationStatus
    words: str
    limited: bool = False


class RoutineSettings(NamedTuple):
    """What routines are told.

    Their `options`, whether to `display` their own progress, the exact `hessian` of r'r as a function of theta and its
    evaluation, if there is one, and what makes progress objects for users' functions of the same.
    """

    options: Mapping[str, Any]
    display: bool
    hessian: Callable[[np.ndarray, Any], ArrayLike] | None
    progress_factory: Callable[[np.ndarray, Any], object]


def run_return(recorder: Recorder, start: np.ndarray, settings: RoutineSettings) -> RoutineEnd:
    """No optimisation."""
    ok = recorder(start).ok
    return RoutineEnd(start, OptimizationStatus.RETURNED if ok else OptimizationStatus.NOT_FINITE, "")


def run_stepwise(
    recorder: Recorder, start: np.ndarray, settings: RoutineSettings, method: Stepwise, steps_back: bool
) -> RoutineEnd:
    """A method that is led from one evaluation to the next (`blpjax.optimize.stepwise`).

    Unless it `steps_back` whatever the recorder's policy says of failed evaluations, these have values by that policy.
    """
    record, hessian = recorder(start), settings.hessian
    # zeros change no sum of squares, and one more moment no program
    residual_count = coarse_size(np.shape(record.evaluation.residuals)[0], least=FEWEST_MOMENTS)
    with _on_cpu():
        bounds = recorder.lower, recorder.upper
        # on the host, as it is after every step: the programs of steps are the same
        state = jax.device_get(method.start(start, *bounds, residual_count, settings.options).state)
    while True:
        objective, gradient, ok = record.objective, record.gradient, record.ok
        if recorder.policy is not None and not steps_back:
            objective, gradient = recorder.value_and_gradient(record.theta)
            ok = True
        r, J = jax.device_get((record.evaluation.residuals, record.evaluation.residual_jacobian))
        trial = Trial(
            record.theta,
            np.asarray(objective, float),
            np.asarray(gradient, float),
            pad_axes(np.asarray(r, float), (residual_count,)),
            pad_axes(np.asarray(J, float), (residual_count,)),
            np.asarray(ok),
        )
        with _on_cpu():
            state, candidate, stuck = jax.device_get(method.step(state, trial))
        best = recorder.best
        if stuck and hessian is not None and best is not None:
            # where rounding hides decreases, the gradient decides what is accepted: that need not be the lowest point
            at = best if np.array_equal(best.theta, state.theta) else recorder(state.theta)
            curvature = np.asarray(hessian(at.theta, at.evaluation), float)
            with _on_cpu():
                curvature = curvature if at.ok else np.full_like(curvature, np.nan)
                state, candidate, _ = jax.device_get(method.resume(state, curvature))
        if state.iterations > recorder.iterations:
            recorder.count_iteration(state.theta)
        if state.status != RUNNING:
            status = OptimizationStatus(Status(int(state.status)).value)
            return RoutineEnd(np.array(state.theta), status, method.describe(state))
        record = recorder(candidate)


def _on_cpu() -> contextlib.AbstractContextManager[Any]:
    """The method's matrices are small: an accelerator would only add latency."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


#: By which `status` routines of SciPy say that their line search found no better point.
_LINE_SEARCH_FAILED = {"l-bfgs-b": 2, "cg": 2, "bfgs": 2, "newton-cg": 2, "tnc": 4, "slsqp": 8}


#: And that iterations or evaluations reached their maximum.
_LIMIT_REACHED = {
    **dict.fromkeys(("l-bfgs-b", "cg", "bfgs", "newton-cg"), (1,)),
    **dict.fromkeys(("nelder-mead", "powell"), (1, 2)),
    **{"tnc": (3,), "slsqp": (9,), "trust-constr": (0,)},
}


def run_scipy(
    recorder: Recorder, start: np.ndarray, settings: RoutineSettings, method: str, display: Mapping[str, Any]
) -> RoutineEnd:
    """A routine of `scipy.optimize.minimize`, with gradients if the recorder has them, and bounds if there are any.

    `display` are options by which it prints its own progress.
    """
    from scipy.optimize import Bounds, minimize  # a slow import that only these routines need

    options = {**(display if settings.display else {}), **settings.options}
    keep_feasible = options.pop("keep_feasible", False)
    bounds = None
    if np.isfinite([recorder.lower, recorder.upper]).any():
        bounds = Bounds(recorder.lower, recorder.upper, keep_feasible)
    with _scipy_warnings_ignored():
        result = minimize(
            recorder.value_and_gradient if recorder.compute_gradient else recorder.value,
            start,
            method=method,
            jac=True if recorder.compute_gradient else None,
            bounds=bounds,
            callback=lambda theta, *unused: recorder.count_iteration(theta),
            options=options,
        )
    status = OptimizationStatus.CONVERGED if result.success else OptimizationStatus.ROUTINE_FAILED
    if not result.success and result.status == _LINE_SEARCH_FAILED.get(method):
        status = OptimizationStatus.STALLED
    limited = not result.success and result.status in _LIMIT_REACHED[method]
    return RoutineEnd(np.asarray(result.x, float), status, str(result.message).strip().rstrip("."), limited)


@contextlib.contextmanager
def _scipy_warnings_ignored() -> Iterator[None]:
    """Without SciPy's remarks on unchanged gradients and on line searches, which the outcome tells anyway."""
    from scipy.optimize import OptimizeWarning

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=OptimizeWarning)
        for message in (
            "delta_grad == 0.0",
            "The line search algorithm did not",
            "Rounding errors prevent the line search",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def run_custom(
    recorder: Recorder, start: np.ndarray, settings: RoutineSettings, method: Callable[..., tuple[Any, bool]]
) -> RoutineEnd:
    """The user's own function."""

    def objective_function(theta: Any) -> tuple[float, np.ndarray | None, object]:
        values = np.array(theta, dtype=float).ravel()
        if values.size != start.size:
            raise ValueError(
                f"The custom routine evaluated the objective at {values.size} instead of {start.size} parameters."
            )
        if recorder.compute_gradient:
            objective, gradient = recorder.value_and_gradient(values)
        else:
            objective, gradient = recorder.value(values), None
        return objective, gradient, settings.progress_factory(values, recorder(values).evaluation)

    pairs = list(zip(recorder.lower.tolist(), recorder.upper.tolist(), strict=True))
    returned = method(start.copy(), pairs, objective_function, lambda: recorder.count_iteration(), **settings.options)
    if not isinstance(returned, Sequence) or len(returned) != 2:
        raise TypeError(f"The custom optimization routine must return (final, converged), not {returned!r}.")
    final = np.array(returned[0], dtype=float).ravel()
    if final.size != start.size:
        raise ValueError(f"The custom optimization routine must return {start.size} final values, not {final.size}.")
    status = OptimizationStatus.CONVERGED if bool(returned[1]) else OptimizationStatus.ROUTINE_FAILED
    return RoutineEnd(final, status, "")
