"""Optimisation of the GMM objective: configuration, and one checked result for all routines."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from blpjax import options as settings
from blpjax.exceptions import warn_unused, warn_user
from blpjax.optimize.bounds import Box
from blpjax.optimize.recorder import Evaluation, FailurePolicy, Recorded, Recorder
from blpjax.optimize.routines import OptimizationStatus, RoutineEnd, RoutineSettings, run_return
from blpjax.optimize.stepwise import START_REDUCTIONS, reduce_start
from blpjax.optimize.table import ROUTINES, Routine, find_routine
from blpjax.values import read_flag

__all__ = [
    "ObjectiveProgress",
    "Optimization",
    "OptimizationOutcome",
    "OptimizationStatus",
    "minimize",
]

#: A routine's success is not believed when a Gauss-Newton step promises a larger decrease of q than this, relative and
#: absolute.
_CREDIBLE_DECREASE = (1e-3, 1e-6)

#: Line searches cannot see relative decreases of the objective below this, because inner loops end at tolerances and
#: weighting matrices are ill-conditioned: where they fail with no more to gain, the routine has converged.
_HIDDEN_DECREASE = 1e-9


@dataclasses.dataclass(frozen=True)
class ObjectiveProgress:
    """What a custom routine learns about one evaluation of any objective.

    Attributes
    ----------
    theta : (P,) point of evaluation.
    objective : objective there; NaN or infinite when the evaluation failed.
    gradient : (P,) gradient, or None without analytic gradients.
    residuals, residual_jacobian : (M,) r with ``objective = r'r``, and (M, P) its Jacobian.
    ok : whether the evaluation succeeded.
    """

    theta: np.ndarray
    objective: float
    gradient: np.ndarray | None
    residuals: np.ndarray
    residual_jacobian: np.ndarray
    ok: bool


@dataclasses.dataclass(frozen=True, repr=False)
class Optimization:
    """How to minimise the GMM objective.

    Parameters
    ----------
    method : str or callable
        Least squares routine, with bounds: ``'trust-region'``, the default of `Problem.solve`
        (`blpjax.optimize.trust_region`: after Dennis, Gay and Welsch 1981). SciPy's routines with bounds: ``'slsqp'``,
        ``'trust-constr'``,
        ``'l-bfgs-b'``, ``'tnc'``, and ``'knitro'`` where Artelys Knitro is installed. Routines that ignore bounds:
        ``'cg'``, ``'bfgs'``, ``'newton-cg'``, ``'optax-l-bfgs'``, and without gradients ``'nelder-mead'`` and
        ``'powell'``. ``'return'`` evaluates the objective at the starting values and returns them.

        A custom routine is a function ``method(initial, bounds, objective_function, iteration_callback, **options)``
        that returns ``(final, converged)``. It gets (P,) starting values, P pairs of bounds, a function of theta that
        returns ``(objective, gradient, progress)``, the gradient being None without analytic gradients, and a function
        without arguments to call after each major iteration. Final values are believed to be an optimum only where they
        are within bounds, and derivatives there promise no better ones nearby.
    method_options : mapping, optional
        Options of the routine, by SciPy's names for SciPy's routines, and ``keep_feasible`` for those with bounds: by
        default ``'trust-constr'``, which alone heeds it, may evaluate points outside of bounds on its way, as with
        PyBLP 1.3.0 (whose documentation says otherwise). ``'trust-region'`` has those of
        `blpjax.optimize.trust_region.TrustRegionOptions`: ``gtol`` (1e-7, largest element of the projected gradient),
        ``decrease_tol`` (1e-14, relative decrease of the objective that a full step promises), ``max_evaluations``
        (1000), ``initial_radius`` (1), ``floor_tol`` and ``noise``.
        ``'optax-l-bfgs'`` (`blpjax.optimize.quasi_newton`) has ``memory_size`` (10), ``maxiter`` (1000) and ``gtol``
        (1e-6).
        ``'knitro'`` has Knitro's user options by name, by default ``algorithm`` 1, ``hessopt`` 2, ``honorbnds`` 1 and
        ``gradopt`` 1 (2 without gradients), and ``knitro_dir``, its directory, by default that of the environment
        variable KNITRODIR.
    compute_gradient : bool, optional
        Whether the routine uses gradients. Must be false for ``'nelder-mead'`` and ``'powell'`` and true for
        ``'newton-cg'``, ``'trust-region'`` and ``'optax-l-bfgs'``. If it is false, others take differences of the
        objective, and no derivatives are computed before the routine has ended.
    universal_display : bool, optional
        Whether progress is shown as the same table for all routines. If false, routines of SciPy and Knitro print their
        own instead (SciPy's L-BFGS-B no longer prints anything), and others print nothing.

    Raises
    ------
    OSError
        For ``'knitro'`` when Knitro is not installed or does not start.
    TypeError, ValueError
        For unknown methods and options, and for a `compute_gradient` that the method cannot honour.

    Notes
    -----
    Where the objective cannot be evaluated, ``'trust-region'`` and ``'optax-l-bfgs'`` step back. Other routines see a
    large finite value and, as the gradient, a slope back to the last iterate. All but the first one see what
    `error_behavior` of `Problem.solve` says instead, if it is given. Such a point is never returned as an optimum.
    """

    method: str | Callable[..., tuple[Any, bool]]
    method_options: Mapping[str, Any] | None = None
    compute_gradient: bool = True
    universal_display: bool = True

    def __post_init__(self) -> None:
        _check_method(self.method)
        if self.method_options is not None and not isinstance(self.method_options, Mapping):
            raise TypeError(
                f"The method_options of Optimization must be a mapping or None, not {self.method_options!r}."
            )
        options = _leave_out_silenced(self.method, dict(self.method_options or {}))
        object.__setattr__(self, "method_options", options)
        for name in ("compute_gradient", "universal_display"):
            read_flag(f"{name} of Optimization", getattr(self, name))
        if isinstance(self.method, str):
            _check_options(self.method, options)
            _check_compute_gradient(self.method, self.compute_gradient)

    def __repr__(self) -> str:
        with_gradient = "with" if self.compute_gradient else "without"
        listed = ", ".join(f"{name}: {value}" for name, value in (self.method_options or {}).items())
        routine = self.routine.description
        return f"Configured to optimize using {routine} {with_gradient} analytic gradients and options {{{listed}}}."

    @property
    def routine(self) -> Routine:
        """What there is to know of the routine."""
        return find_routine(self.method)

    @property
    def supports_bounds(self) -> bool:
        """Whether the routine respects bounds."""
        return self.routine.bounds


@dataclasses.dataclass(frozen=True)
class OptimizationOutcome:
    """Result of an optimisation.

    Attributes
    ----------
    theta : (P,) final values: those of the routine if it succeeded or came to its limits, otherwise the best that could
        be evaluated.
    evaluation : the evaluation at theta.
    converged : whether the routine succeeded and theta could be evaluated. Never true for a failed evaluation.
    status : how optimisation ended.
    message : the same in words, with details.
    iterations, evaluations, failed_evaluations : major iterations, evaluations of the objective, and failed ones among
        them.
    """

    theta: np.ndarray
    evaluation: Any
    converged: bool
    status: OptimizationStatus
    message: str
    iterations: int
    evaluations: int
    failed_evaluations: int


def minimize(
    optimization: Optimization,
    evaluate: Callable[[np.ndarray], Evaluation],
    start: ArrayLike,
    bounds: Box,
    user_bounded: bool = False,
    *,
    on_iteration: Callable[[int], object] | None = None,
    progress_factory: Callable[[np.ndarray, Any], object] | None = None,
    hessian: Callable[[np.ndarray, Any], ArrayLike] | None = None,
    complete: Callable[[np.ndarray, Any], Evaluation] | None = None,
    failures: FailurePolicy | None = None,
) -> OptimizationOutcome:
    """Minimise an objective from (P,) starting values.

    Parameters
    ----------
    optimization : what routine to use.
    evaluate : function of theta (P,) that returns an `Evaluation`.
    start : (P,) starting values. If they cannot be evaluated, they are moved half way toward zero, up to eight times
        (not for ``'return'`` and custom routines, and not with `failures`), and the message says so.
    bounds : object with attributes `lower` and `upper`, each (P,).
    user_bounded : whether the user gave bounds, which gives a warning if the routine ignores them.
    on_iteration : called with the number of major iterations whenever it grows.
    progress_factory : makes a custom routine's progress object from theta and its evaluation, `ObjectiveProgress` by
        default.
    hessian : function of theta and its evaluation that returns the exact Hessian (P, P) of r'r. It is called rarely:
        where trust-region steps keep failing, and where a routine's claim of success looks doubtful.
    complete : function of theta and its evaluation that returns it with derivatives, if `evaluate` leaves them out for
        a routine without gradients. It is called where the routine ends.
    failures : what routines see where the objective cannot be evaluated, by default a larger value and a slope back.
        The trust-region routine always steps back instead.

    Raises
    ------
    KeyboardInterrupt
        Only if no more than the start has been evaluated yet: later interruptions end the optimisation with a usable
        outcome.
    TypeError, ValueError
        If a custom routine returns something else than P final values and a flag.
    """
    if user_bounded and not optimization.supports_bounds:
        warn_user(
            f"Optimization('{optimization.method}') ignores parameter bounds. Use Optimization('trust-region'), "
            "'l-bfgs-b', 'slsqp', 'trust-constr' or 'tnc' to respect them.",
            UserWarning,
        )
    theta = np.array(start, dtype=float).ravel()
    lower, upper = (np.broadcast_to(np.asarray(bound, float), theta.shape) for bound in (bounds.lower, bounds.upper))
    if not optimization.supports_bounds:
        lower, upper = np.full_like(theta, -np.inf), np.full_like(theta, np.inf)
    recorder = Recorder(evaluate, lower, upper, optimization.compute_gradient, on_iteration, complete, failures)
    try:
        end, reductions = _run(optimization, recorder, theta, progress_factory or _default_progress, hessian)
    except KeyboardInterrupt:
        if recorder.last is None or recorder.evaluations < 2:
            raise
        end, reductions = RoutineEnd(recorder.last.theta, OptimizationStatus.INTERRUPTED, ""), 0
    return _conclude(optimization, recorder, end, reductions, hessian)


def _run(
    optimization: Optimization,
    recorder: Recorder,
    start: np.ndarray,
    progress_factory: Callable[[np.ndarray, Any], object],
    hessian: Callable[[np.ndarray, Any], ArrayLike] | None,
) -> tuple[RoutineEnd, int]:
    """Run the routine from starting values that can be evaluated; also return how often they were halved."""
    routine = optimization.routine
    display = settings.verbose and not optimization.universal_display
    told = RoutineSettings(dict(optimization.method_options or {}), display, hessian, progress_factory)
    if start.size == 0:
        return run_return(recorder, start, told), 0
    if not routine.moves_start:
        return routine.run(recorder, start, told), 0
    theta, reductions = np.clip(start, recorder.lower, recorder.upper), 0
    while not recorder(theta).ok and recorder.policy is None:
        if reductions == START_REDUCTIONS:
            return RoutineEnd(start, OptimizationStatus.NOT_FINITE, ""), reductions
        theta, reductions = reduce_start(theta, recorder), reductions + 1
    return routine.run(recorder, theta, told), reductions


def _conclude(
    optimization: Optimization,
    recorder: Recorder,
    end: RoutineEnd,
    reductions: int,
    hessian: Callable[[np.ndarray, Any], ArrayLike] | None,
) -> OptimizationOutcome:
    """Choose the final point and check the routine's claim there."""
    status, words = end.status, end.words
    final = recorder.complete(recorder(end.theta))
    best = final if recorder.best is None else recorder.best
    near = final.ok and _is_inside(final.theta, recorder) and final.objective <= best.objective + _tolerated(best)
    if near and not recorder.compute_gradient:
        best = final  # not one of the points next to it that differences were taken at
    custom = callable(optimization.method)
    if status.converged and not final.ok:
        status, words = OptimizationStatus.NOT_OPTIMAL, "its final values cannot be evaluated"
    elif status.converged and not custom and final.objective > best.objective + _tolerated(best):
        status, words = OptimizationStatus.NOT_OPTIMAL, "its final values are worse than earlier ones"
    elif status.converged and custom and not _is_inside(final.theta, recorder):
        status, words = OptimizationStatus.NOT_OPTIMAL, "its final values are outside of the bounds"
    elif status is OptimizationStatus.CONVERGED and not optimization.routine.believed:
        squares, decrease = _promised_decrease(recorder, final, hessian, *_CREDIBLE_DECREASE)
        relative, absolute = _CREDIBLE_DECREASE
        if not decrease <= relative * squares + absolute and not np.isnan(squares):
            status, words = (
                OptimizationStatus.NOT_OPTIMAL,
                f"a better point seems near: a full step promises a decrease of the objective by {decrease:.1e}",
            )
    elif status is OptimizationStatus.STALLED and final.ok and not optimization.routine.believed:
        squares, decrease = _promised_decrease(recorder, final, hessian, _HIDDEN_DECREASE, 0.0)
        if decrease <= _HIDDEN_DECREASE * squares:
            status = OptimizationStatus.ROUNDING_FLOOR
    left_there = custom or (end.limited and _is_inside(final.theta, recorder))
    own = status.converged or (left_there and final.ok) or np.array_equal(best.theta, final.theta)
    chosen = final if own else recorder.complete(best)
    details = [words] if words else []
    if reductions and status is not OptimizationStatus.NOT_FINITE:
        details.append(f"the starting values could not be evaluated and were multiplied by {0.5**reductions:g}")
    if recorder.failures:
        details.append(f"{recorder.failures} of {recorder.evaluations} evaluations failed")
    return OptimizationOutcome(
        theta=chosen.theta,
        evaluation=chosen.evaluation,
        converged=status.converged and chosen.ok,
        status=status,
        message=status.sentence + (f" ({'; '.join(details)})." if details else "."),
        iterations=recorder.iterations,
        evaluations=recorder.evaluations,
        failed_evaluations=recorder.failures,
    )


def _promised_decrease(
    recorder: Recorder,
    record: Recorded,
    hessian: Callable[[np.ndarray, Any], ArrayLike] | None,
    relative: float,
    absolute: float,
) -> tuple[float, float]:
    """Sum of squares of the residuals at a point and the decrease that a full step promises; NaN without a Jacobian.

    Where least squares promises more than these tolerances, curvature decides: the promise is empty where columns of
    the Jacobian vanish.
    """
    squares, decrease = recorder.gauss_newton_decrease(record)
    if decrease > relative * squares + absolute and hessian is not None:
        decrease = recorder.newton_decrease(record, np.asarray(hessian(record.theta, record.evaluation), float))
    return squares, decrease


def _tolerated(best: Recorded) -> float:
    """By how much a routine's final objective may exceed the best one."""
    return 1e-6 * (1.0 + abs(best.objective))


def _is_inside(theta: np.ndarray, bounds: Box) -> bool:
    """Whether theta (P,) is within bounds, but for rounding."""
    slack = 1e-12 * (1 + np.abs(theta))
    return bool(((theta >= bounds.lower - slack) & (theta <= bounds.upper + slack)).all())


def _default_progress(theta: np.ndarray, evaluation: Any) -> ObjectiveProgress:
    fields = ("objective", "gradient", "residuals", "residual_jacobian", "ok")
    objective, gradient, r, J, ok = jax.device_get(tuple(getattr(evaluation, name) for name in fields))
    return ObjectiveProgress(theta, float(objective), gradient, r, J, bool(ok))


#: Options of stepwise methods that count something.
_COUNTS = ("max_evaluations", "maxiter", "memory_size")


def _check_method(method: object) -> None:
    if callable(method):
        return
    if not isinstance(method, str) or method not in ROUTINES:
        raise ValueError(f"Optimization method must be one of {list(ROUTINES)} or a callable, not {method!r}.")


def _leave_out_silenced(method: object, options: dict[str, Any]) -> dict[str, Any]:
    """Options without those that would print, had the routine not stopped doing so, which a warning says."""
    silenced = ROUTINES[method].silenced if isinstance(method, str) else ()
    for name in silenced:
        if name in options and options.pop(name) not in (False, None, -1):
            warn_unused(
                f"The option {name} of Optimization('{method}')",
                "SciPy's routine no longer prints anything. Progress is shown unless options.verbose is off.",
            )
    return options


#: Options of SciPy's routines that are flags, texts or arrays. Others are numbers, or None.
_NO_NUMBERS = (
    *("disp", "adaptive", "keep_feasible", "factorization_method"),
    *("finite_diff_rel_step", "hess_inv0", "initial_simplex", "direc", "scale", "offset"),
)


def _check_options(method: str, options: Mapping[str, Any]) -> None:
    routine = ROUTINES[method]
    if routine.check is not None:
        routine.check(options)
    if routine.options is None:
        return
    known = sorted(routine.options)
    if unknown := sorted(map(str, set(options) - set(known))):
        has = f"It has {known}." if known else "It has none."
        raise ValueError(f"Optimization('{method}') does not have the options {unknown}. {has}")
    for name, value in options.items():
        if routine.stepwise is None and (value is None or name in _NO_NUMBERS):
            continue
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
            raise TypeError(f"The option {name} of Optimization('{method}') must be a number, not {value!r}.")
        if np.isnan(value):
            raise ValueError(f"The option {name} of Optimization('{method}') must be a number, not {value!r}.")
        if routine.stepwise is not None:
            if not value > 0:
                raise ValueError(f"The option {name} of Optimization('{method}') must be positive, not {value!r}.")
            if name in _COUNTS and not float(value).is_integer():
                raise ValueError(f"The option {name} of Optimization('{method}') must be an integer, not {value!r}.")


def _check_compute_gradient(method: str, compute_gradient: bool) -> None:
    if compute_gradient and ROUTINES[method].gradient == "cannot":
        raise ValueError(f"Optimization('{method}') uses no gradients: compute_gradient must be False.")
    if not compute_gradient and ROUTINES[method].gradient == "must":
        raise ValueError(f"Optimization('{method}') needs analytic gradients: compute_gradient must be True.")
