"""Optimisation of the GMM objective: configuration, routines, and one result type for all of them."""

import contextlib
import dataclasses
import enum
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import scipy.optimize
from numpy.typing import ArrayLike

from blpjax.exceptions import Status
from blpjax.recorder import Box, Evaluation, Recorder
from blpjax.trust_region import (
    RUNNING,
    START_REDUCTIONS,
    Residuals,
    TrustRegionOptions,
    TrustRegionState,
    advance,
    initialise,
    with_curvature,
)

_DESCRIPTIONS = {
    "trust-region": "the bounded structured quasi-Newton least squares trust-region method",
    "optax-l-bfgs": "the L-BFGS algorithm with directions from Optax and a line search from SciPy",
    "slsqp": "Sequential Least SQuares Programming in SciPy",
    "trust-constr": "the trust-region routine in SciPy",
    "l-bfgs-b": "the L-BFGS-B algorithm in SciPy",
    "tnc": "the truncated Newton algorithm in SciPy",
    "cg": "the conjugate gradient algorithm in SciPy",
    "bfgs": "the BFGS algorithm in SciPy",
    "newton-cg": "the Newton-CG algorithm in SciPy",
    "nelder-mead": "the Nelder-Mead algorithm in SciPy",
    "powell": "the modified Powell algorithm in SciPy",
    "return": "a trivial routine that returns the initial parameters",
}
_UNBOUNDED = ("optax-l-bfgs", "cg", "bfgs", "newton-cg", "nelder-mead", "powell")
_WITHOUT_GRADIENT = ("nelder-mead", "powell")
_WITH_GRADIENT = ("newton-cg", "trust-region", "optax-l-bfgs")

_OPTAX_DEFAULTS = {"memory_size": 10, "maxiter": 1000, "gtol": 1e-6}
_BOUNDED = "keep_feasible "
_OPTIONS = {
    "trust-region": " ".join(TrustRegionOptions._fields),
    "optax-l-bfgs": " ".join(_OPTAX_DEFAULTS),
    "return": "",
    "nelder-mead": "disp maxiter maxfev initial_simplex xatol fatol adaptive",
    "powell": "disp xtol ftol maxiter maxfev direc",
    "cg": "disp maxiter gtol norm eps finite_diff_rel_step c1 c2",
    "bfgs": "disp maxiter gtol norm eps finite_diff_rel_step xrtol c1 c2 hess_inv0",
    "newton-cg": "disp xtol maxiter eps c1 c2",
    "l-bfgs-b": _BOUNDED + "maxcor ftol gtol eps maxfun maxiter maxls finite_diff_rel_step",
    "tnc": _BOUNDED + "disp eps scale offset maxCGit eta stepmx accuracy minfev ftol xtol gtol rescale maxfun "
    "finite_diff_rel_step",
    "slsqp": _BOUNDED + "disp iprint ftol eps maxiter finite_diff_rel_step",
    "trust-constr": _BOUNDED + "disp verbose gtol xtol barrier_tol initial_tr_radius initial_constr_penalty "
    "initial_barrier_parameter initial_barrier_tolerance factorization_method finite_diff_rel_step maxiter",
}

#: A routine's success is not believed when a Gauss-Newton step promises a larger decrease of q than this, relative and
#: absolute.
_CREDIBLE_DECREASE = (1e-3, 1e-6)

#: Trust-region trials that may be rejected in a row before the exact Hessian is asked for.
_REJECTIONS = 3


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


@dataclasses.dataclass(frozen=True)
class OptimizationProgress:
    """What a custom routine learns about one evaluation.

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
        Least squares routine, with bounds: ``'trust-region'``, the default of `Problem.solve` (`blpjax.trust_region`:
        after Dennis, Gay and Welsch 1981). SciPy's routines with bounds: ``'slsqp'``, ``'trust-constr'``,
        ``'l-bfgs-b'``, ``'tnc'``. Routines that ignore bounds: ``'cg'``, ``'bfgs'``, ``'newton-cg'``,
        ``'optax-l-bfgs'``, and without gradients ``'nelder-mead'`` and ``'powell'``. ``'return'`` evaluates the
        objective at the starting values and returns them.

        A custom routine is a function ``method(initial, bounds, objective_function, iteration_callback, **options)``
        that returns ``(final, converged)``. It gets (P,) starting values, P pairs of bounds, a function of theta that
        returns ``(objective, gradient, progress)``, the gradient being None without analytic gradients, and a function
        without arguments to call after each major iteration.
    method_options : mapping, optional
        Options of the routine, by SciPy's names for SciPy's routines, and ``keep_feasible`` (true) for those with
        bounds. ``'trust-region'`` has those of `blpjax.trust_region.TrustRegionOptions`: ``gtol`` (1e-7, largest
        element of the projected gradient), ``decrease_tol`` (1e-14, relative decrease of the objective that a full
        step promises), ``max_evaluations`` (1000), ``initial_radius`` (1), ``floor_tol`` and ``noise``.
        ``'optax-l-bfgs'`` has ``memory_size`` (10), ``maxiter`` (1000) and ``gtol`` (1e-6).
    compute_gradient : bool, optional
        Whether the routine uses analytic gradients. Must be false for ``'nelder-mead'`` and ``'powell'`` and true for
        ``'newton-cg'``, ``'trust-region'`` and ``'optax-l-bfgs'``. Others use finite differences when it is false.
    universal_display : bool, optional
        Whether progress looks the same for all routines. If false, SciPy's routines print their own besides (its
        L-BFGS-B routine no longer prints anything).

    Raises
    ------
    NotImplementedError
        For ``'knitro'``.
    TypeError, ValueError
        For unknown methods and options, and for a `compute_gradient` that the method cannot honour.

    Notes
    -----
    Where the objective cannot be evaluated, routines other than ``'trust-region'`` see a large finite value and, as the
    gradient, a slope back to the last iterate. Such a point is never returned as an optimum.
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
        options = dict(self.method_options or {})
        object.__setattr__(self, "method_options", options)
        for name in ("compute_gradient", "universal_display"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise TypeError(f"{name} of Optimization must be true or false, not {getattr(self, name)!r}.")
        if isinstance(self.method, str):
            _check_options(self.method, options)
            _check_compute_gradient(self.method, self.compute_gradient)

    def __repr__(self) -> str:
        with_gradient = "with" if self.compute_gradient else "without"
        routine = _DESCRIPTIONS[self.method] if isinstance(self.method, str) else "a custom routine"
        listed = ", ".join(f"{name}: {value}" for name, value in (self.method_options or {}).items())
        return f"Configured to optimize using {routine} {with_gradient} analytic gradients and options {{{listed}}}."

    @property
    def supports_bounds(self) -> bool:
        """Whether the routine respects bounds."""
        return self.method not in _UNBOUNDED


@dataclasses.dataclass(frozen=True)
class OptimizationOutcome:
    """Result of an optimisation.

    Attributes
    ----------
    theta : (P,) final values: those of the routine if it succeeded, otherwise the best that could be evaluated.
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
    on_iteration: Callable[[int], object] | None = None,
    progress_factory: Callable[[np.ndarray, Any], object] | None = None,
    hessian: Callable[[np.ndarray, Any], ArrayLike] | None = None,
) -> OptimizationOutcome:
    """Minimise an objective from (P,) starting values.

    Parameters
    ----------
    optimization : what routine to use.
    evaluate : function of theta (P,) that returns an `Evaluation`.
    start : (P,) starting values. If they cannot be evaluated, they are moved half way toward zero, up to eight times
        (not for ``'return'`` and custom routines), and the message says so.
    bounds : object with attributes `lower` and `upper`, each (P,).
    user_bounded : whether the user gave bounds, which gives a warning if the routine ignores them.
    on_iteration : called with the number of major iterations whenever it grows.
    progress_factory : makes a custom routine's progress object from theta and its evaluation, `OptimizationProgress`
        by default.
    hessian : function of theta and its evaluation that returns the exact Hessian (P, P) of r'r. It is called rarely:
        where trust-region steps keep failing, and where a routine's claim of success looks doubtful.

    Raises
    ------
    KeyboardInterrupt
        Only if nothing has been evaluated yet: later interruptions end the optimisation with a usable outcome.
    TypeError, ValueError
        If a custom routine returns something else than P final values and a flag.
    """
    if user_bounded and not optimization.supports_bounds:
        warnings.warn(
            f"Optimization('{optimization.method}') ignores parameter bounds. Use Optimization('trust-region'), "
            "'l-bfgs-b', 'slsqp', 'trust-constr' or 'tnc' to respect them.",
            UserWarning,
            stacklevel=2,
        )
    theta = np.array(start, dtype=float).ravel()
    lower, upper = (np.broadcast_to(np.asarray(bound, float), theta.shape) for bound in (bounds.lower, bounds.upper))
    if not optimization.supports_bounds:
        lower, upper = np.full_like(theta, -np.inf), np.full_like(theta, np.inf)
    recorder = Recorder(evaluate, lower, upper, optimization.compute_gradient, on_iteration)
    try:
        end, reductions = _run(optimization, recorder, theta, progress_factory or _default_progress, hessian)
    except KeyboardInterrupt:
        if recorder.last is None:
            raise
        end, reductions = _End(recorder.last.theta, OptimizationStatus.INTERRUPTED, ""), 0
    return _conclude(optimization, recorder, end, reductions, hessian)


class _End(NamedTuple):
    """How a routine ended: final values, what it claims, and its own words."""

    theta: np.ndarray
    status: OptimizationStatus
    words: str


def _run(
    optimization: Optimization,
    recorder: Recorder,
    start: np.ndarray,
    progress_factory: Callable[[np.ndarray, Any], object],
    hessian: Callable[[np.ndarray, Any], ArrayLike] | None,
) -> tuple[_End, int]:
    """Run the routine from starting values that can be evaluated; also return how often they were halved."""
    method = optimization.method
    if method == "return" or start.size == 0:
        ok = recorder(start).ok
        return _End(start, OptimizationStatus.RETURNED if ok else OptimizationStatus.NOT_FINITE, ""), 0
    if callable(method):
        return _run_custom(optimization, recorder, start, progress_factory), 0
    theta = np.clip(start, recorder.lower, recorder.upper)
    reductions = 0
    while not recorder(theta).ok:
        if reductions == START_REDUCTIONS:
            return _End(start, OptimizationStatus.NOT_FINITE, ""), reductions
        reductions += 1
        theta = np.clip(0.5 * theta, recorder.lower, recorder.upper)
    if method == "trust-region":
        return _run_trust_region(optimization, recorder, theta, hessian), reductions
    run = _run_optax if method == "optax-l-bfgs" else _run_scipy
    return run(optimization, recorder, theta), reductions


def _run_trust_region(
    optimization: Optimization,
    recorder: Recorder,
    start: np.ndarray,
    hessian: Callable[[np.ndarray, Any], ArrayLike] | None,
) -> _End:
    options = TrustRegionOptions(**(optimization.method_options or {}))
    record = recorder(start)
    with _on_cpu():
        state = initialise(start, recorder.lower, recorder.upper, np.shape(record.evaluation.residuals)[0], options)
    informed_at = np.full_like(start, np.nan)
    while True:
        r, J = jax.device_get((record.evaluation.residuals, record.evaluation.residual_jacobian))
        evaluation = Residuals(np.asarray(r, float), np.asarray(J, float), np.asarray(record.ok))
        with _on_cpu():
            state, proposed = advance(state, record.theta, evaluation)
            candidate, theta, code, rejections, iterations, norm, decrease = _observe(state, proposed)
        failing = code == Status.STALLED or (code == RUNNING and rejections >= _REJECTIONS)
        best = recorder.best
        if failing and hessian is not None and best is not None and not np.array_equal(theta, informed_at):
            informed_at = np.array(theta)
            curvature = np.asarray(hessian(best.theta, best.evaluation), float)
            if np.array_equal(best.theta, theta) and np.isfinite(curvature).all():
                with _on_cpu():
                    state, proposed = with_curvature(state, curvature)
                    candidate, theta, code, rejections, iterations, norm, decrease = _observe(state, proposed)
        if iterations > recorder.iterations:
            recorder.count_iteration(count=int(iterations))
        if code != RUNNING:
            words = f"projected gradient norm {norm:.1e}, promised decrease of the objective {decrease:.1e}"
            return _End(np.array(theta), OptimizationStatus(Status(int(code)).value), words)
        record = recorder(candidate)


def _observe(state: TrustRegionState, proposed: jax.Array) -> tuple[Any, ...]:
    """What the host loop needs to know, on the host."""
    return jax.device_get(
        (
            proposed,
            state.theta,
            state.status,
            state.rejections,
            state.iterations,
            state.projected_gradient_norm,
            state.decrease,
        )
    )


def _on_cpu() -> contextlib.AbstractContextManager[Any]:
    """The method's matrices are small: an accelerator would only add latency."""
    try:
        return jax.default_device(jax.devices("cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _run_optax(optimization: Optimization, recorder: Recorder, start: np.ndarray) -> _End:
    """L-BFGS directions and a strong Wolfe line search (Nocedal and Wright 2006, algorithms 3.5 and 3.6)."""
    options = _OPTAX_DEFAULTS | dict(optimization.method_options or {})
    lbfgs = optax.scale_by_lbfgs(memory_size=int(options["memory_size"]))
    direction_of = jax.jit(lbfgs.update)
    theta, state = start, lbfgs.init(start)
    previous: float | None = None
    restarted = True
    for _ in range(int(options["maxiter"])):
        objective, gradient = recorder.value_and_gradient(theta)
        if np.abs(gradient).max() <= options["gtol"]:
            return _End(theta, OptimizationStatus.CONVERGED, f"gradient norm {np.abs(gradient).max():.1e}")
        # Before the first iteration, expect a decrease that makes the first step's length about one, as SciPy does.
        before = objective + 0.5 * float(np.linalg.norm(gradient)) if previous is None else previous
        preconditioned, state = direction_of(gradient, state, theta)
        direction = -np.asarray(preconditioned)
        with _scipy_warnings_ignored():
            step = scipy.optimize.line_search(
                lambda x: recorder.value_and_gradient(x)[0],
                lambda x: recorder.value_and_gradient(x)[1],
                *(theta, direction, gradient, objective, before),
                maxiter=30,
            )[0]
        if step is None:
            if restarted:
                return _End(theta, OptimizationStatus.STALLED, "the line search failed along the gradient")
            state, previous, restarted = lbfgs.init(theta), None, True
            continue
        theta, previous, restarted = theta + step * direction, objective, False
        recorder(theta)
        recorder.count_iteration(theta)
    return _End(theta, OptimizationStatus.MAX_EVALUATIONS, f"{options['maxiter']} iterations")


def _run_scipy(optimization: Optimization, recorder: Recorder, start: np.ndarray) -> _End:
    method, options = str(optimization.method), dict(optimization.method_options or {})
    keep_feasible = options.pop("keep_feasible", True)
    if not optimization.universal_display and "disp" in _OPTIONS[method].split():
        own = {"slsqp": {"iprint": 2}, "trust-constr": {"verbose": 3}}.get(method, {})
        options = {"disp": True, **own, **options}
    bounds = None
    if optimization.supports_bounds and np.isfinite([recorder.lower, recorder.upper]).any():
        bounds = scipy.optimize.Bounds(recorder.lower, recorder.upper, keep_feasible)
    with _scipy_warnings_ignored():
        result = scipy.optimize.minimize(
            recorder.value_and_gradient if optimization.compute_gradient else recorder.value,
            start,
            method=method,
            jac=True if optimization.compute_gradient else None,
            bounds=bounds,
            callback=lambda theta, *unused: recorder.count_iteration(theta),
            options=options,
        )
    status = OptimizationStatus.CONVERGED if result.success else OptimizationStatus.ROUTINE_FAILED
    return _End(np.asarray(result.x, float), status, str(result.message).strip().rstrip("."))


@contextlib.contextmanager
def _scipy_warnings_ignored() -> Iterator[None]:
    """Without SciPy's remarks on unchanged gradients and on line searches, which the outcome tells anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=scipy.optimize.OptimizeWarning)
        for message in (
            "delta_grad == 0.0",
            "The line search algorithm did not",
            "Rounding errors prevent the line search",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def _run_custom(
    optimization: Optimization,
    recorder: Recorder,
    start: np.ndarray,
    progress_factory: Callable[[np.ndarray, Any], object],
) -> _End:
    def objective_function(theta: Any) -> tuple[float, np.ndarray | None, object]:
        values = np.array(theta, dtype=float).ravel()
        if values.size != start.size:
            raise ValueError(
                f"The custom routine evaluated the objective at {values.size} instead of {start.size} parameters."
            )
        if optimization.compute_gradient:
            objective, gradient = recorder.value_and_gradient(values)
        else:
            objective, gradient = recorder.value(values), None
        return objective, gradient, progress_factory(values, recorder(values).evaluation)

    assert callable(optimization.method)
    pairs = list(zip(recorder.lower.tolist(), recorder.upper.tolist(), strict=True))
    options = optimization.method_options or {}
    returned = optimization.method(
        start.copy(), pairs, objective_function, lambda: recorder.count_iteration(), **options
    )
    if not isinstance(returned, Sequence) or len(returned) != 2:
        raise TypeError(f"The custom optimization routine must return (final, converged), not {returned!r}.")
    final = np.array(returned[0], dtype=float).ravel()
    if final.size != start.size:
        raise ValueError(f"The custom optimization routine must return {start.size} final values, not {final.size}.")
    status = OptimizationStatus.CONVERGED if bool(returned[1]) else OptimizationStatus.ROUTINE_FAILED
    return _End(final, status, "")


def _conclude(
    optimization: Optimization,
    recorder: Recorder,
    end: _End,
    reductions: int,
    hessian: Callable[[np.ndarray, Any], ArrayLike] | None,
) -> OptimizationOutcome:
    """Choose the final point and check the routine's claim there."""
    status, words = end.status, end.words
    final = recorder(end.theta)
    best = final if recorder.best is None else recorder.best
    custom = callable(optimization.method)
    if status.converged and not final.ok:
        status, words = OptimizationStatus.NOT_OPTIMAL, "its final values cannot be evaluated"
    elif status.converged and not custom and final.objective > best.objective + 1e-6 * (1 + abs(best.objective)):
        status, words = OptimizationStatus.NOT_OPTIMAL, "its final values are worse than earlier ones"
    elif status is OptimizationStatus.CONVERGED and not custom and optimization.method != "trust-region":
        squares, decrease = recorder.gauss_newton_decrease(final)
        relative, absolute = _CREDIBLE_DECREASE
        if decrease > relative * squares + absolute and hessian is not None:
            # the promise is empty where columns of the Jacobian vanish: curvature decides
            decrease = recorder.newton_decrease(final, np.asarray(hessian(final.theta, final.evaluation), float))
        if not decrease <= relative * squares + absolute and not np.isnan(squares):
            status, words = (
                OptimizationStatus.NOT_OPTIMAL,
                f"a better point seems near: a full step promises a decrease of the objective by {decrease:.1e}",
            )
    chosen = final if status.converged or (custom and final.ok) else best
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


def _default_progress(theta: np.ndarray, evaluation: Any) -> OptimizationProgress:
    fields = ("objective", "gradient", "residuals", "residual_jacobian", "ok")
    objective, gradient, r, J, ok = jax.device_get(tuple(getattr(evaluation, name) for name in fields))
    return OptimizationProgress(theta, float(objective), gradient, r, J, bool(ok))


def _check_method(method: object) -> None:
    if callable(method):
        return
    if method == "knitro":
        raise NotImplementedError(
            "Optimization('knitro') is not supported. Use Optimization('trust-region'), which respects bounds, or call "
            "Knitro in a custom routine: Optimization(method) with a function method(initial, bounds, "
            "objective_function, iteration_callback)."
        )
    if not isinstance(method, str) or method not in _DESCRIPTIONS:
        raise ValueError(f"Optimization method must be one of {list(_DESCRIPTIONS)} or a callable, not {method!r}.")


def _check_options(method: str, options: Mapping[str, Any]) -> None:
    known = sorted(_OPTIONS[method].split())
    if unknown := sorted(map(str, set(options) - set(known))):
        has = f"It has {known}." if known else "It has none."
        raise ValueError(f"Optimization('{method}') does not have the options {unknown}. {has}")
    if method in ("trust-region", "optax-l-bfgs"):
        for name, value in options.items():
            if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
                raise TypeError(f"The option {name} of Optimization('{method}') must be a number, not {value!r}.")
            if not value > 0:
                raise ValueError(f"The option {name} of Optimization('{method}') must be positive, not {value!r}.")


def _check_compute_gradient(method: str, compute_gradient: bool) -> None:
    if compute_gradient and method in _WITHOUT_GRADIENT:
        raise ValueError(f"Optimization('{method}') uses no gradients: compute_gradient must be False.")
    if not compute_gradient and method in _WITH_GRADIENT:
        raise ValueError(f"Optimization('{method}') needs analytic gradients: compute_gradient must be True.")
