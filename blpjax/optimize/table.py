"""The table of optimisation routines: all that the library knows of each of them.

A new one needs a function like those of `blpjax.optimize.routines`, and an entry here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from blpjax.optimize import quasi_newton, trust_region
from blpjax.optimize.knitro import check_knitro, run_knitro
from blpjax.optimize.recorder import Recorder
from blpjax.optimize.routines import (
    RoutineEnd,
    RoutineSettings,
    run_custom,
    run_return,
    run_scipy,
    run_stepwise,
)
from blpjax.optimize.stepwise import Stepwise

#: Trust regions of lanes end where a full step promises a relative decrease of the objective below this. Rounding
#: differs between batches and devices: less accurate lanes would carry it into their estimates.
_LANES_DECREASE = 1e-21

#: L-BFGS of lanes ends at a gradient of the objective, without its factor N, below this.
_LANES_GRADIENT = 1e-9

#: Decrease of the objective, relative to its size, that errors of finite differences pretend is possible.
_DIFFERENCES_FLOOR = 1e-8


@dataclasses.dataclass(frozen=True)
class Routine:
    """What there is to know of an optimisation routine. The defaults are those of most routines of SciPy.

    Attributes
    ----------
    description : for users.
    run : function of a recorder, starting values (P,) and `RoutineSettings`.
    options : names of the routine's options, or None where it takes any.
    silenced : names of options that only print, which the routine no longer does. They are accepted and left out.
    check : raises an error for options that do not work, if it checks them itself.
    bounds : whether it respects bounds.
    gradient : whether it may, must or cannot use gradients.
    optimizes : whether it moves away from the starting values.
    moves_start : whether starting values are first moved within bounds, and halved where they cannot be evaluated.
    believed : whether its claim of success is taken for true.
    steps_back : whether residuals lead it, so that it steps back from failed evaluations, whatever users want to be
        seen there.
    predictable : whether trials stay so close to the best point that predictions from there are of use.
    differences : options that finite differences, where they take the place of derivatives, need.
    stepwise : its form inside of compiled programs, if it has one. Options are then positive numbers.
    lane_options : what options are there by default.
    relative : whether tolerances are relative to one plus the objective, so that its scale matters.
    """

    description: str
    run: Callable[[Recorder, np.ndarray, RoutineSettings], RoutineEnd]
    options: tuple[str, ...] | None = None
    silenced: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], None] | None = None
    bounds: bool = True
    gradient: Literal["may", "must", "cannot"] = "may"
    optimizes: bool = True
    moves_start: bool = True
    believed: bool = False
    steps_back: bool = False
    predictable: bool = False
    differences: Mapping[str, float] = dataclasses.field(default_factory=dict)
    stepwise: Stepwise | None = None
    lane_options: Mapping[str, float] = dataclasses.field(default_factory=dict)
    relative: bool = False


def find_routine(method: str | Callable[..., tuple[Any, bool]]) -> Routine:
    """The routine of this name, or that of a user's function."""
    if not isinstance(method, str):
        return Routine("a custom routine", partial(run_custom, method=method), moves_start=False)
    return ROUTINES[method]


def _stepwise(method: Stepwise, description: str, options: tuple[str, ...], **more: Any) -> Routine:
    run = partial(run_stepwise, method=method, steps_back=more.get("steps_back", False))
    return Routine(description, run, options, gradient="must", stepwise=method, **more)


def _scipy(
    method: str, description: str, options: str, display: Mapping[str, Any] | None = None, **more: Any
) -> Routine:
    """A routine of SciPy: its name there, and names of its options, to which those with bounds add `keep_feasible`."""
    names = tuple(options.split()) + (("keep_feasible",) if more.get("bounds", True) else ())
    shown = {**({"disp": True} if "disp" in names else {}), **(display or {})}
    return Routine(description, partial(run_scipy, method=method, display=shown), names, **more)


ROUTINES = {
    "trust-region": _stepwise(
        trust_region.METHOD,
        "the bounded structured quasi-Newton least squares trust-region method",
        trust_region.TrustRegionOptions._fields,
        believed=True,
        steps_back=True,
        predictable=True,
        differences={"floor_tol": _DIFFERENCES_FLOOR},
        lane_options={"decrease_tol": _LANES_DECREASE},
        relative=True,
    ),
    "optax-l-bfgs": _stepwise(
        quasi_newton.METHOD,
        "the L-BFGS algorithm with directions from Optax",
        ("memory_size", *quasi_newton.QuasiNewtonOptions._fields),
        bounds=False,
        lane_options={"gtol": _LANES_GRADIENT},
    ),
    "slsqp": _scipy(
        "slsqp",
        "Sequential Least SQuares Programming in SciPy",
        "disp iprint ftol eps maxiter finite_diff_rel_step",
        {"iprint": 2},
    ),
    "trust-constr": _scipy(
        "trust-constr",
        "the trust-region routine in SciPy",
        "disp verbose gtol xtol barrier_tol initial_tr_radius initial_constr_penalty initial_barrier_parameter "
        "initial_barrier_tolerance factorization_method finite_diff_rel_step maxiter",
        {"verbose": 3},
    ),
    "l-bfgs-b": _scipy(
        "l-bfgs-b",
        "the L-BFGS-B algorithm in SciPy",
        "maxcor ftol gtol eps maxfun maxiter maxls finite_diff_rel_step",
        silenced=("disp", "iprint"),
    ),
    "tnc": _scipy(
        "tnc",
        "the truncated Newton algorithm in SciPy",
        "disp eps scale offset maxCGit eta stepmx accuracy minfev ftol xtol gtol rescale maxfun finite_diff_rel_step",
    ),
    "cg": _scipy(
        "cg",
        "the conjugate gradient algorithm in SciPy",
        "disp maxiter gtol norm eps finite_diff_rel_step c1 c2",
        bounds=False,
    ),
    "bfgs": _scipy(
        "bfgs",
        "the BFGS algorithm in SciPy",
        "disp maxiter gtol norm eps finite_diff_rel_step xrtol c1 c2 hess_inv0",
        bounds=False,
    ),
    "newton-cg": _scipy(
        "newton-cg", "the Newton-CG algorithm in SciPy", "disp xtol maxiter eps c1 c2", bounds=False, gradient="must"
    ),
    "nelder-mead": _scipy(
        "nelder-mead",
        "the Nelder-Mead algorithm in SciPy",
        "disp maxiter maxfev initial_simplex xatol fatol adaptive",
        bounds=False,
        gradient="cannot",
    ),
    "powell": _scipy(
        "powell",
        "the modified Powell algorithm in SciPy",
        "disp xtol ftol maxiter maxfev direc",
        bounds=False,
        gradient="cannot",
    ),
    "knitro": Routine("an installed version of Artelys Knitro", run_knitro, check=check_knitro),
    "return": Routine(
        "a trivial routine that returns the initial parameters",
        run_return,
        options=(),
        optimizes=False,
        moves_start=False,
        believed=True,
    ),
}
