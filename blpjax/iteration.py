"""Options of fixed-point iteration as typed frozen data."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from blpjax.exceptions import warn_unused
from blpjax.machine.host_routines import MINPACK, SCIPY_METHODS, HostRoutine
from blpjax.values import read_flag

Norm = Callable[[Any], Any]

#: Methods that run inside compiled programs, with the sentence that describes each.
METHODS = {
    "anderson": "Anderson acceleration with a Newton safeguard",
    "newton": "the damped Newton method",
    "squarem": "the SQUAREM acceleration method",
    "simple": "non-accelerated iteration",
    "return": "returning the initial values",
}

#: Simulated shares are bounded from below by this, unless `shares_bounds` say otherwise, before logarithms are taken.
SMALLEST_SHARE = 1e-300

_OPTIONS = {
    "anderson": ("max_evaluations", "atol", "rtol", "norm", "memory", "safeguard"),
    "newton": ("max_evaluations", "atol"),
    "squarem": ("max_evaluations", "atol", "rtol", "norm", "scheme", "step_min", "step_max", "step_factor"),
    "simple": ("max_evaluations", "atol", "rtol", "norm"),
    "return": (),
}


class FixedPointMethod(NamedTuple):
    """The part of the options that decides which program is compiled (static, hashable)."""

    name: str = "anderson"
    scheme: int = 3
    memory: int = 5
    safeguard: bool = True
    norm: Norm | None = None
    nonlinear: bool = False  # whether loops are over exp(delta)
    clips: bool = False  # whether simulated shares have other bounds than the default
    host: HostRoutine | None = None  # what runs instead of a loop of ours


class FixedPointLimits(NamedTuple):
    """The part of the options that is traced: changing it compiles nothing."""

    atol: float = 1e-13
    rtol: float = 0.0
    max_evaluations: int = 5000
    step_min: float = 1.0
    step_max: float = 1.0
    step_factor: float = 4.0
    smallest_share: float = SMALLEST_SHARE
    largest_share: float = math.inf


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Iteration:
    """How to solve the fixed-point problems that invert market shares or find equilibrium prices.

    Parameters
    ----------
    method : str or callable
        One of ``'anderson'`` (the default of `Problem.solve`: Anderson acceleration of the contraction with Fukasawa's
        outside-share correction, and damped Newton steps in markets where it stalls), ``'newton'``, ``'squarem'``
        (Varadhan and Roland 2008), ``'simple'`` (the contraction of Berry, Levinsohn and Pakes 1995) and ``'return'``
        (take the initial values as the solution; residuals say how far off they are). These run for all markets at
        once, inside compiled programs. Where ``'anderson'`` or ``'newton'`` do not get there, solutions are followed
        while the agents' deviations from mean utilities grow from zero to their full size.

        SciPy's ``'broyden1'``, ``'broyden2'``, ``'krylov'``, ``'diagbroyden'``, ``'df-sane'``, ``'hybr'`` and ``'lm'``,
        and functions ``method(initial, contraction, callback, **options) -> (final, converged)`` with
        ``contraction(x) -> (image, weights, jacobian)``, run on the host, market by market. They are slow. Whatever
        they say, a market has converged only where log shares, or the derivatives of profits and relative changes of
        equilibrium prices, are off by at most 1e-5.
    method_options : mapping, optional
        None for ``'return'``. ``max_evaluations`` (5000) and ``atol`` (1e-13 for ``'anderson'`` and ``'newton'``,
        1e-14 otherwise); for all but ``'newton'`` also ``rtol`` (0) and ``norm`` (infinity norm; a function of an array
        that JAX can trace, or ``numpy.linalg.norm``); for ``'squarem'`` also ``scheme`` (1, 2 or 3), ``step_min`` (1),
        ``step_max`` (1) and ``step_factor`` (4); for ``'anderson'`` also ``memory`` (5) and ``safeguard`` (true: Newton
        steps in markets where acceleration fails). Those of SciPy's methods are SciPy's, and those of a function are
        its own.
    compute_jacobian : bool, optional
        Whether ``'hybr'``, ``'lm'`` or a function get a Jacobian: of inversions of shares an analytic one, of
        equilibrium prices one by central differences. ``'newton'`` always has analytic ones.
    universal_display : bool, optional
        Whether to print evaluations, iterations and the norm of the change at every evaluation. Only for methods that
        run on the host: compiled programs print nothing, which a warning says.

    Raises
    ------
    ValueError, TypeError
        For unknown methods or options, or options out of range.
    """

    method: str | Callable[..., tuple[Any, Any]]
    fixed_point: FixedPointMethod
    limits: FixedPointLimits

    def __init__(
        self,
        method: str | Callable[..., tuple[Any, Any]] = "anderson",
        method_options: Mapping[str, Any] | None = None,
        compute_jacobian: bool = False,
        universal_display: bool = False,
    ) -> None:
        compute_jacobian = read_flag("compute_jacobian of Iteration", compute_jacobian)
        universal_display = read_flag("universal_display of Iteration", universal_display)
        _check_method(method, compute_jacobian, universal_display)
        if method_options is not None and not isinstance(method_options, Mapping):
            raise TypeError(f"The method_options of Iteration must be a mapping or None, not {method_options!r}.")
        options = dict(method_options or {})
        if callable(method) or method in SCIPY_METHODS:
            if not callable(method):
                _refuse_texts(method, options)
            routine = HostRoutine(method, tuple(options.items()), compute_jacobian, universal_display, False)
            object.__setattr__(self, "method", method)
            object.__setattr__(self, "fixed_point", FixedPointMethod("host", host=routine))
            object.__setattr__(self, "limits", FixedPointLimits())
            return
        known = _OPTIONS[method]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"Iteration('{method}') does not have the options {unknown}. It has {sorted(known)}.")
        default_atol = 1e-13 if method in ("anderson", "newton") else 1e-14
        limits = FixedPointLimits(
            atol=_number(options, "atol", default_atol, minimum=0.0),
            rtol=_number(options, "rtol", 0.0, minimum=0.0),
            max_evaluations=_integer(options, "max_evaluations", 5000, minimum=1),
            step_min=_number(options, "step_min", 1.0),
            step_max=_number(options, "step_max", 1.0, minimum=0.0),
            step_factor=_number(options, "step_factor", 4.0, minimum=1.0),
        )
        if limits.step_min > limits.step_max:
            raise ValueError("The option step_min of Iteration must not exceed step_max.")
        scheme = options.get("scheme", 3)
        if scheme not in (1, 2, 3):
            raise ValueError(f"The option scheme of Iteration must be 1, 2 or 3, not {scheme!r}.")
        memory = _integer(options, "memory", 5, minimum=1)
        if memory > 10:
            raise ValueError(f"The option memory of Iteration must be at most 10, not {memory}.")
        norm = options.get("norm")
        if norm is not None and not callable(norm):
            raise TypeError("The option norm of Iteration must be a function of an array that returns a scalar.")
        safeguard = read_flag("The option safeguard of Iteration", options.get("safeguard", True))
        static = FixedPointMethod(method, int(scheme), memory, safeguard, norm)
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "fixed_point", static)
        object.__setattr__(self, "limits", limits)

    @property
    def method_options(self) -> dict[str, Any]:
        """Options in effect, defaults included, as a new dictionary."""
        if self.fixed_point.host is not None:
            return dict(self.fixed_point.host.options)
        values = {**self.limits._asdict(), **self.fixed_point._asdict()}
        return {name: values[name] for name in _OPTIONS[str(self.method)]}

    def on_shares(self, fp_type: str, shares_bounds: tuple[float, float]) -> "Iteration":
        """The same options for inversions of shares of this type, and with these bounds on simulated shares."""
        nonlinear, host = fp_type.endswith("nonlinear"), self.fixed_point.host
        if host is not None:
            host = dataclasses.replace(host, nonlinear=nonlinear)
        lower, upper = shares_bounds
        clips = (lower, upper) != (SMALLEST_SHARE, math.inf)
        changed = object.__new__(Iteration)
        object.__setattr__(changed, "method", self.method)
        object.__setattr__(
            changed, "fixed_point", self.fixed_point._replace(nonlinear=nonlinear, clips=clips, host=host)
        )
        object.__setattr__(
            changed, "limits", self.limits._replace(smallest_share=float(lower), largest_share=float(upper))
        )
        return changed

    def __repr__(self) -> str:
        host = self.fixed_point.host
        if host is not None:
            name = "a custom method" if callable(host.method) else SCIPY_METHODS[host.method]
            jacobian = "with" if host.compute_jacobian else "without"
            return (
                f"Configured to iterate using {name} {jacobian} analytic Jacobians with options {dict(host.options)}."
            )
        options = {
            k: v
            for k, v in self.limits._asdict().items()
            if (self.method == "squarem" or not k.startswith("step")) and not k.endswith("share")
        }
        listed = ", ".join(f"{name}: {value:g}" for name, value in options.items())
        return f"Configured to iterate using {METHODS[str(self.method)]} with options {{{listed}}}."


def _check_method(method: object, compute_jacobian: bool, universal_display: bool) -> None:
    if callable(method):
        return
    if method in SCIPY_METHODS:
        if compute_jacobian and method not in MINPACK:
            raise ValueError(f"Iteration('{method}') does not use a Jacobian. Use 'hybr', 'lm' or 'newton' for that.")
        return
    if method not in METHODS:
        raise ValueError(
            f"Iteration method must be a function or one of {sorted({*METHODS, *SCIPY_METHODS})}, not {method!r}."
        )
    if compute_jacobian and method != "newton":
        raise ValueError(
            f"Iteration('{method}') does not use a Jacobian. Use Iteration('newton') or compute_jacobian=False."
        )
    if universal_display:
        warn_unused(
            f"universal_display of Iteration('{method}')",
            "its loops run inside compiled programs, which print nothing. Counters and residuals of every market are "
            "attributes of the results. Methods that run on the host, such as Iteration('lm'), display their progress.",
        )


def _refuse_texts(method: str, options: Mapping[str, Any]) -> None:
    """Options are numbers, functions or tables of these; SciPy has one that is a text."""
    for name, value in options.items():
        if isinstance(value, str | bytes) and name != "line_search":
            raise TypeError(f"The option {name} of Iteration('{method}') must be a number, not {value!r}.")


def _number(options: Mapping[str, Any], name: str, default: float, minimum: float = -math.inf) -> float:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"The option {name} of Iteration must be a number, not {value!r}.")
    if not value >= minimum:
        raise ValueError(f"The option {name} of Iteration must be at least {minimum:g}, not {value!r}.")
    return float(value)


def _integer(options: Mapping[str, Any], name: str, default: int, minimum: int) -> int:
    value = _number(options, name, float(default), float(minimum))
    if not value.is_integer():
        raise ValueError(f"The option {name} of Iteration must be an integer, not {value:g}.")
    return int(value)
