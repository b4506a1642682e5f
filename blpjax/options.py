"""Global options, set as attributes of this module: `blpjax.options.verbose = False`.

Names and defaults are PyBLP's. Assignments are checked: a misspelled name raises `AttributeError`, a bad value
`TypeError` or `ValueError`, and a value that asks for something blpjax does not do raises `NotImplementedError` saying
what to do instead.

Options are read where users meet the library (when a problem is built or solved, when text is printed), never inside
compiled functions, so changing one never recompiles anything.

Attributes
----------
digits : int
    Significant digits of displayed numbers.
verbose : bool
    Whether to display progress.
verbose_output : callable
    Called with each displayed text.
flush_output : bool
    Whether to flush standard output after each displayed text. Useful when calling blpjax from R.
dtype : type
    Always `numpy.float64`.
weights_tol : float
    A market is named in a warning when its integration weights sum to a number further than this from one. `numpy.inf`
    disables it.
singular_tol : float
    A warning is given for matrices with a condition number above this. `numpy.inf` disables it.
collinear_atol, collinear_rtol : float
    Tolerances for collinear columns, see `blpjax.inputs.identification`. Zeros for both disable these checks.
psd_atol, psd_rtol : float
    Tolerances for matrices that should be positive semidefinite, for example a weighting matrix. `numpy.inf` disables
    the check.
verbose_tracebacks : bool
    Whether tracebacks show the inner frames of JAX too, which it otherwise leaves out.
finite_differences_epsilon : float
    Step of central differences where `Problem.solve` is told to use ``finite_differences``: each element of theta is
    moved by half of it in both directions.
pseudo_inverses : bool
    Whether singular matrices (of instruments, of covariances of moments, of their derivatives in the parameters) get
    pseudo-inverses. If false, `Problem.solve` raises `IdentificationError` for them.
stable_atol, stable_rtol : float
    By how much the largest eigenvalue of `phi` may exceed one in absolute value in `Simulation`. `numpy.inf` disables
    the check.
micro_computation_chunks : int or mapping
    In how many chunks of agents functions of micro datasets and parts are called, in all markets or by market ID. They
    bound the memory of what these functions return, and change no results.
detect_micro_collinearity : bool
    Whether `Problem.solve` warns of micro parts whose values are linear combinations of those of others.
drop_product_fields
    Known from PyBLP. They have no effect, which setting them to other than their defaults warns of.
"""

import difflib
import numbers
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from blpjax.exceptions import warn_unused
from blpjax.values import check_integer, read_flag

digits: int = 7
verbose: bool = True
verbose_tracebacks: bool = False
verbose_output: Callable[[str], object] = print
flush_output: bool = False
dtype: type = np.float64
finite_differences_epsilon: float = float(np.sqrt(np.finfo(np.float64).eps))
pseudo_inverses: bool = True
weights_tol: float = 1e-10
singular_tol: float = float(1 / np.finfo(np.float64).eps)
collinear_atol: float = 1e-10
collinear_rtol: float = 1e-10
psd_atol: float = 1e-8
psd_rtol: float = 1e-8
stable_atol: float = 1e-8
stable_rtol: float = 1e-8
detect_micro_collinearity: bool = False
micro_computation_chunks: int | Mapping[object, int] = 1
drop_product_fields: bool = False


def output(text: object) -> None:
    """Display a text with `verbose_output` unless `verbose` is off; flush standard output if `flush_output` is on."""
    if verbose:
        verbose_output(str(text))
        if flush_output:
            sys.stdout.flush()


def _check_bool(name: str, value: Any) -> bool:
    return read_flag(f"options.{name}", value)


def _check_digits(name: str, value: Any) -> int:
    return check_integer(f"options.{name}", value, minimum=1)


def _check_tolerance(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"options.{name} must be a number, not {value!r}.")
    if not value >= 0:  # also refuses NaN
        raise ValueError(f"options.{name} must be a non-negative number, not {value!r}.")
    return float(value)


def _check_step(name: str, value: Any) -> float:
    step = _check_tolerance(name, value)
    if not 0 < step < np.inf:
        raise ValueError(f"options.{name} must be a positive number, not {value!r}.")
    return step


def _check_tracebacks(name: str, value: Any) -> bool:
    checked = _check_bool(name, value)
    if checked != verbose_tracebacks:
        _filter_tracebacks(not checked)
    return checked


def _filter_tracebacks(wanted: bool) -> None:
    """Let JAX leave its inner frames out of tracebacks, as it was told before, or not."""
    import jax  # here, because options are read where nothing else needs JAX

    name = "jax_traceback_filtering"
    if wanted:
        jax.config.update(name, _FILTERING.pop(name, "auto"))
    else:
        _FILTERING[name] = getattr(jax.config, name)
        jax.config.update(name, "off")


#: JAX's setting before `verbose_tracebacks` was turned on.
_FILTERING: dict[str, Any] = {}


def _check_chunks(name: str, value: Any) -> int | Mapping[object, int]:
    if isinstance(value, Mapping):
        return {t: check_integer(f"options.{name}[{t!r}]", chunks, minimum=1) for t, chunks in value.items()}
    return check_integer(f"options.{name}", value, minimum=1)


def _check_callable(name: str, value: Any) -> Callable[[str], object]:
    if not callable(value):
        raise TypeError(f"options.{name} must be a function of one string, not {value!r}.")
    return value


def _check_dtype(name: str, value: Any) -> type:
    try:
        is_double = np.dtype(value) == np.dtype(np.float64)
    except TypeError:
        raise TypeError(f"options.{name} must be numpy.float64, not {value!r}.") from None
    if value is None or not is_double:
        raise NotImplementedError(
            f"options.{name} = {value!r} is not supported: blpjax always computes in numpy.float64. Single precision "
            "gives wrong estimates. Extended precision does not exist on accelerators and is not needed against "
            "underflow or overflow, because utilities are shifted by their maximum before they are exponentiated."
        )
    return np.float64


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "digits": _check_digits,
    "verbose": _check_bool,
    "verbose_output": _check_callable,
    "flush_output": _check_bool,
    "dtype": _check_dtype,
    "verbose_tracebacks": _check_tracebacks,
    "finite_differences_epsilon": _check_step,
    "pseudo_inverses": _check_bool,
    "weights_tol": _check_tolerance,
    "singular_tol": _check_tolerance,
    "collinear_atol": _check_tolerance,
    "collinear_rtol": _check_tolerance,
    "psd_atol": _check_tolerance,
    "psd_rtol": _check_tolerance,
    "stable_atol": _check_tolerance,
    "stable_rtol": _check_tolerance,
    "detect_micro_collinearity": _check_bool,
    "micro_computation_chunks": _check_chunks,
}

# Options without effect: the default, and what a user who wants something else should know.
_UNUSED: dict[str, tuple[object, str]] = {
    "drop_product_fields": (drop_product_fields, "Only the fields that a computation needs are ever sent to it."),
}


class _Options(types.ModuleType):
    """A module whose options are checked when they are assigned."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CHECKS:
            value = _CHECKS[name](name, value)
        elif name in _UNUSED:
            _check_unused(name, value)
        elif not name.startswith("__"):  # Python itself sets attributes such as __spec__
            raise AttributeError(f"There is no option '{name}'.{_suggest(name)}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"options.{name} cannot be deleted.")


def _check_unused(name: str, value: object) -> None:
    default, reason = _UNUSED[name]
    of_kind = isinstance(value, bool | np.bool_) == isinstance(default, bool)
    if not of_kind or not isinstance(value, bool | np.bool_ | numbers.Real | Mapping):
        raise TypeError(f"options.{name} must be something like {default!r}, not {value!r}.")
    if isinstance(value, Mapping) or value != default:
        warn_unused(f"options.{name}", reason)


def _suggest(name: str) -> str:
    known = sorted([*_CHECKS, *_UNUSED])
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else f" Options are: {', '.join(known)}."


sys.modules[__name__].__class__ = _Options
