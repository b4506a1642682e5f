"""Artelys Knitro as an optimisation routine, where it is installed. Through its Python interface (Knitro 12 and newer).

Knitro is commercial software with a licence of its own, so blpjax does not depend on it: it is looked for when an
`Optimization` with it is configured.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blpjax.optimize.recorder import Recorder
from blpjax.optimize.routines import OptimizationStatus, RoutineEnd, RoutineSettings

_ALTERNATIVE = (
    "Install Knitro with a licence ('pip install knitro', or its installer with the environment variable KNITRODIR or "
    "the option knitro_dir pointing to the installed directory), or use Optimization('trust-region'), which respects "
    "bounds too."
)

#: Return codes above this say that the final point is optimal, or approximately optimal and feasible.
_WORST_SUCCESS = -200

#: What a callback returns to end Knitro.
_STOP = -504


def check_knitro(method_options: Mapping[str, Any]) -> None:
    """Start Knitro once and set its options.

    Raises
    ------
    OSError
        When Knitro is not installed or does not start, for example without a licence.
    ValueError
        When an option does not exist or cannot have this value.
    """
    with _context(method_options):
        pass


def run_knitro(recorder: Recorder, start: np.ndarray, settings: RoutineSettings) -> RoutineEnd:
    """Minimise with Knitro: BFGS Hessians and the interior-point algorithm, unless options say something else.

    An exception in the objective, such as an interruption, ends Knitro and is raised again.
    """
    defaults = {"algorithm": 1, "gradopt": 1 if recorder.compute_gradient else 2, "hessopt": 2, "honorbnds": 1}
    raised: list[BaseException] = []

    def guarded(function: Callable[..., None]) -> Callable[..., int]:
        def callback(*given: Any) -> int:
            if raised:
                return _STOP
            try:
                function(*given)
            except BaseException as error:  # Knitro is not Python: nothing may pass through it
                raised.append(error)
                return _STOP
            return 0

        return callback

    @guarded
    def set_objective(_: Any, __: Any, request: Any, result: Any, ___: Any) -> None:
        theta = np.array(request.x, dtype=float)
        known = recorder.compute_gradient
        result.obj = recorder.value_and_gradient(theta)[0] if known else recorder.value(theta)

    @guarded
    def set_gradient(_: Any, __: Any, request: Any, result: Any, ___: Any) -> None:
        for p, element in enumerate(recorder.value_and_gradient(np.array(request.x, dtype=float))[1]):
            result.objGrad[p] = float(element)

    @guarded
    def count(_: Any, theta: Any, *unused: Any) -> None:
        recorder.count_iteration(np.array(theta, dtype=float))

    with _context({**defaults, "outlev": 4 if settings.display else 0, **settings.options}) as (knitro, context):
        lower, upper = (
            np.clip(bound, -knitro.KN_INFINITY, knitro.KN_INFINITY).tolist()
            for bound in (recorder.lower, recorder.upper)
        )
        knitro.KN_add_vars(context, start.size)
        knitro.KN_set_var_lobnds(context, xLoBnds=lower)
        knitro.KN_set_var_upbnds(context, xUpBnds=upper)
        knitro.KN_set_var_primal_init_values(context, xInitVals=start.tolist())
        knitro.KN_set_obj_goal(context, knitro.KN_OBJGOAL_MINIMIZE)
        callback = knitro.KN_add_eval_callback(context, evalObj=True, funcCallback=set_objective)
        if recorder.compute_gradient:
            knitro.KN_set_cb_grad(context, callback, objGradIndexVars=knitro.KN_DENSE, gradCallback=set_gradient)
        knitro.KN_set_newpt_callback(context, count)
        knitro.KN_solve(context)
        if raised:
            raise raised[0]
        code, _, theta, _ = knitro.KN_get_solution(context)
    status = OptimizationStatus.CONVERGED if code > _WORST_SUCCESS else OptimizationStatus.ROUTINE_FAILED
    return RoutineEnd(np.array(theta, dtype=float), status, f"Knitro's return code is {code}")


@contextlib.contextmanager
def _context(method_options: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The module and one of its solver instances with these options."""
    options = dict(method_options)
    knitro = _import(options.pop("knitro_dir", None))
    try:
        context = knitro.KN_new()
    except Exception as error:
        raise OSError(f"Knitro is installed but does not start: {error}. Is there a licence? {_ALTERNATIVE}") from error
    try:
        for name, value in options.items():
            _set_option(knitro, context, name, value)
        yield knitro, context
    finally:
        knitro.KN_free(context)


def _import(directory: str | os.PathLike[str] | None) -> Any:
    chosen = os.environ.get("KNITRODIR") if directory is None else directory
    for part in ("lib", "examples/Python") if chosen else ():
        path = Path(str(chosen)) / part
        if directory is not None and not path.is_dir():
            raise OSError(f"Optimization('knitro') finds no directory '{part}' in knitro_dir. {_ALTERNATIVE}")
        if path.is_dir() and str(path) not in sys.path:
            sys.path.append(str(path))
    try:
        knitro = importlib.import_module("knitro")
    except (ImportError, OSError) as error:
        raise OSError(f"Optimization('knitro') needs Knitro, which cannot be imported ({error}). {_ALTERNATIVE}") from (
            error
        )
    if not hasattr(knitro, "KN_new"):
        raise OSError(f"Optimization('knitro') needs Knitro 12 or newer, but an older one is installed. {_ALTERNATIVE}")
    return knitro


def _set_option(knitro: Any, context: Any, name: str, value: Any) -> None:
    """Set an option by its name in lower case, as in Knitro's manual."""
    setters: list[tuple[Callable[..., object], Callable[[Any], object]]] = [(knitro.KN_set_double_param, float)]
    if isinstance(value, str):
        setters = [(knitro.KN_set_char_param, str)]
    elif isinstance(value, int | np.integer):  # options that are real numbers may be given as integers
        setters.insert(0, (knitro.KN_set_int_param, int))
    failures = []
    for setter, kind in setters:
        try:
            setter(context, name, kind(value))
            return
        except Exception as error:
            failures.append(error)
    raise ValueError(f"Knitro does not accept the option {name} = {value!r}: {failures[0]}.") from failures[0]
