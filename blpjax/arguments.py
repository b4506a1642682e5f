"""Arguments of `Problem` and `Problem.solve`: what they may be, and what to do about those that are not supported."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blpjax import gmm, options
from blpjax.estimator import CovarianceTypes
from blpjax.exceptions import IdentificationError
from blpjax.inputs.design import DesignMatrix
from blpjax.inputs.formulation import Formulation
from blpjax.iteration import Iteration
from blpjax.optimize import Optimization
from blpjax.parameters import Parameters, Transformation, UtilityForm
from blpjax.solver import StepOptions

_UNSUPPORTED: dict[str, tuple[object, str]] = {
    "phi": (None, "dynamic moments are not implemented"),
    "phi_bounds": (None, "dynamic moments are not implemented"),
    "demand_moment_types": ("levels", "only moments in levels are implemented"),
    "supply_moment_types": ("levels", "only moments in levels are implemented"),
    "micro_moments": ((), "micro moments are not implemented yet"),
    "micro_sample_covariances": (None, "micro moments are not implemented yet"),
}


#: Decrease of the objective, relative to its size, that errors of finite differences pretend is possible.
_DIFFERENCES_FLOOR = 1e-8


def read_formulations(
    product_formulations: Any, agent_formulation: Any
) -> tuple[Formulation, Formulation | None, Formulation | None]:
    """Formulations of X1 and, where there are such, X2 and X3.

    Raises
    ------
    TypeError
        When something is not a `Formulation`.
    ValueError
        When fixed effects would be absorbed from X2 or demographics.
    """
    given = [product_formulations] if isinstance(product_formulations, Formulation) else product_formulations
    if not isinstance(given, Sequence) or not 1 <= len(given) <= 3 or not isinstance(given[0], Formulation):
        raise TypeError("product_formulations must be a Formulation or a sequence of one to three Formulations.")
    if any(f is not None and not isinstance(f, Formulation) for f in (*given, agent_formulation)):
        raise TypeError("product_formulations and agent_formulation must be Formulation instances or None.")
    X1, X2, X3 = (*given, None, None)[:3]
    if X2 is not None and X2.absorb is not None:
        raise ValueError(
            "Fixed effects can be absorbed from X1 and X3, but not from X2. Remove absorb from the second formulation."
        )
    if agent_formulation is not None and agent_formulation.absorb is not None:
        raise ValueError("Fixed effects cannot be absorbed from demographics. Remove absorb from agent_formulation.")
    return X1, X2, X3


#: Types of random coefficients by PyBLP's names. None is for those that enter as they are.
_RC_TYPES = {
    "linear": None,
    "log": Transformation(jnp.exp, name="log"),
    "logit": Transformation(jax.nn.sigmoid, name="logit"),
}


def read_utility_form(rc_types: Any, epsilon_scale: Any, K2: int) -> UtilityForm:
    """Transformations of random coefficients and the scale of epsilon from arguments of `Problem`.

    Raises
    ------
    ValueError, TypeError
        When there is not one type for each column of X2, a type is neither a name nor a function, or the scale is not a
        positive number.
    """
    number = isinstance(epsilon_scale, int | float | np.number) and not isinstance(epsilon_scale, bool)
    if not number or not 0 < epsilon_scale < np.inf:
        raise ValueError(f"epsilon_scale must be a positive number, not {epsilon_scale!r}.")
    if rc_types is None:
        return UtilityForm((), float(epsilon_scale))
    if isinstance(rc_types, str) or not isinstance(rc_types, Sequence) or len(rc_types) != K2:
        raise ValueError(f"rc_types must be a list with a type for each of the {K2} columns of X2, not {rc_types!r}.")
    for kind in rc_types:
        if not callable(kind) and not isinstance(kind, Transformation) and kind not in _RC_TYPES:
            raise ValueError(
                f"rc_types must be {', '.join(map(repr, _RC_TYPES))}, functions of JAX arrays or Transformation, not "
                f"{kind!r}."
            )
    found = tuple(
        kind if isinstance(kind, Transformation) else Transformation(kind) if callable(kind) else _RC_TYPES[kind]
        for kind in rc_types
    )
    return UtilityForm(found if any(f is not None for f in found) else (), float(epsilon_scale))


def check_price_coefficients(concentrated: Sequence[int], X1: DesignMatrix) -> None:
    """Raise `ValueError` when coefficients of X1 on prices are concentrated out although there is a supply side."""
    missing = [X1.labels[k] for k in concentrated if X1.columns[k].depends_on("prices")]
    if missing:
        raise ValueError(
            f"beta needs starting values for {', '.join(map(repr, missing))}: with a supply side, coefficients on "
            "prices cannot be concentrated out, because marginal costs depend on them. Give beta with None for the "
            "elements that are concentrated out and numbers for these."
        )


def read_costs_bounds(costs_bounds: Any, supply: bool) -> np.ndarray:
    """Lower and upper bound of marginal costs (2,), infinite where there is none.

    Raises
    ------
    ValueError
        When they are not two numbers in ascending order, or there is no supply side.
    """
    if costs_bounds is None:
        return np.array([-np.inf, np.inf])
    if not supply:
        raise ValueError("costs_bounds need a supply side: a third formulation, X3.")
    return read_bounds("costs_bounds", costs_bounds)


def read_bounds(name: str, given: Any) -> np.ndarray:
    """Lower and upper bound (2,), infinite where there is none; `ValueError` when they are not in ascending order."""
    message = f"{name} must be a pair (lower, upper) of numbers or None, not {given!r}."
    try:
        lower, upper = given
        bounds = np.array([-np.inf if lower is None else lower, np.inf if upper is None else upper], dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(message) from error
    bounds = np.where(np.isnan(bounds), [-np.inf, np.inf], bounds)
    if bounds.shape != (2,) or not bounds[0] <= bounds[1]:
        raise ValueError(message)
    return bounds


def read_covariance_mean(mean: Any, covariance: bool) -> float:
    """The mean of covariance moments; `ValueError` when it is no number, or not zero without such moments."""
    if isinstance(mean, bool) or not isinstance(mean, int | float | np.integer | np.floating) or not np.isfinite(mean):
        raise ValueError(f"covariance_moments_mean must be a number, not {mean!r}.")
    if mean != 0 and not covariance:
        raise ValueError("covariance_moments_mean needs a supply side and covariance_instruments in product_data.")
    return float(mean)


def refuse_unsupported(**given: Any) -> None:
    """Raise `NotImplementedError` for arguments of `Problem.solve` and of results that are not the defaults."""
    for name, value in given.items():
        default, reason = _UNSUPPORTED[name]
        if not _same(value, default):
            raise NotImplementedError(f"{name} is not supported: {reason}. Leave it out.")


def read_step_options(
    *,
    parameters: Parameters,
    costs_bounded: bool,
    optimization: Optimization | None,
    iteration: Iteration,
    check_optimality: Any,
    error_behavior: Any,
    error_punishment: Any,
    finite_differences: Any,
    delta_behavior: Any,
    scale_objective: bool,
    W_type: str,
    se_type: str,
    center_moments: bool,
    n_clusters: int | None,
) -> StepOptions:
    """Options of `Problem.solve` as all GMM steps use them.

    `costs_bounded` says whether costs have bounds, and `n_clusters` is None without clustering IDs.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        When an option is none of those that there are.
    """
    check_choice("check_optimality", check_optimality, ("gradient", "both"))
    check_choice("delta_behavior", delta_behavior, (None, "predicted", "first", "logit", "last"))
    check_choice("error_behavior", error_behavior, (None, "revert", "punish", "raise"))
    if not isinstance(finite_differences, bool | np.bool_):
        raise TypeError(f"finite_differences must be true or false, not {finite_differences!r}.")
    if optimization is not None and not isinstance(optimization, Optimization):
        raise TypeError(f"optimization must be Optimization or None, not {type(optimization).__name__}.")
    types = read_covariance_types(W_type, se_type, center_moments, n_clusters)
    chosen = Optimization("trust-region") if optimization is None else optimization
    if finite_differences and chosen.method == "trust-region":
        found = {"floor_tol": _DIFFERENCES_FLOOR, **(chosen.method_options or {})}
        chosen = dataclasses.replace(chosen, method_options=found)
    punishment = _read_punishment(error_punishment, error_behavior, chosen)
    if delta_behavior == "predicted" and not chosen.compute_gradient:
        raise ValueError("delta_behavior='predicted' needs derivatives: an Optimization with compute_gradient=True.")
    if delta_behavior is None:
        delta_behavior = "predicted" if chosen.method == "trust-region" else "first"
    return StepOptions(
        parameters=parameters,
        costs_bounded=costs_bounded,
        optimization=chosen,
        iteration=iteration,
        types=types,
        check_optimality=check_optimality,
        error_behavior=error_behavior,
        error_punishment=punishment,
        delta_behavior=delta_behavior,
        scale_objective=bool(scale_objective),
        differences=options.finite_differences_epsilon if finite_differences else None,
    )


def read_covariance_types(W_type: str, se_type: str, center_moments: bool, n_clusters: int | None) -> CovarianceTypes:
    """How covariances are estimated; `ValueError` for kinds that there are not, and for clusters without IDs."""
    for name, covariances in (("W_type", W_type), ("se_type", se_type)):
        gmm.check_kind(covariances, name)
        if covariances == "clustered" and n_clusters is None:
            raise ValueError(f"{name}='clustered' needs a column 'clustering_ids' in product_data.")
    return CovarianceTypes(W_type, se_type, bool(center_moments), 1 if n_clusters is None else n_clusters)


def _read_punishment(punishment: Any, behavior: str | None, optimization: Optimization) -> float:
    number = isinstance(punishment, int | float | np.integer | np.floating) and not isinstance(punishment, bool)
    if not number or not 0 <= punishment < np.inf:
        raise ValueError(f"error_punishment must be a number of at least zero, not {punishment!r}.")
    if behavior not in ("revert", "punish"):
        if punishment != 1:
            raise ValueError(
                f"error_punishment does nothing with error_behavior={behavior!r}. Use it with 'revert', which is "
                "PyBLP's default, or with 'punish'."
            )
    elif optimization.method == "trust-region":
        raise ValueError(
            f"error_behavior='{behavior}' needs an optimization routine that is led by values of the objective, for "
            "example Optimization('l-bfgs-b'). Optimization('trust-region'), the default, steps back from evaluations "
            "that fail: leave error_behavior and error_punishment out."
        )
    return float(punishment)


def read_weights(W: Any, size: int) -> np.ndarray:
    """A weighting matrix (size, size) as given, made exactly symmetric.

    Raises
    ------
    ValueError
        When it has another shape or is not finite, symmetric and positive semidefinite.
    """
    array = _read_numbers("W", W)
    if array.shape != (size, size):
        raise ValueError(f"W must have the shape {(size, size)}, not {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError("W must be finite.")
    if (np.abs(array - array.T) > options.psd_atol + options.psd_rtol * np.abs(array)).any():
        raise ValueError("W must be symmetric.")
    scale = np.sqrt(np.where(np.diag(array) > 0, np.diag(array), 1.0))
    if np.linalg.eigvalsh(array / np.outer(scale, scale)).min(initial=0.0) < -1e-6:
        raise ValueError("W must be positive semidefinite.")
    return (array + array.T) / 2


def refuse_pseudo_inverse(weights: np.ndarray, instrument_labels: Sequence[str]) -> None:
    """Raise `IdentificationError` when a weighting matrix (M, M) is a pseudo-inverse and these are not wanted."""
    M = len(weights)
    if options.pseudo_inverses or (rank := int(gmm.numerical_rank(jnp.asarray(weights)))) == M:
        return
    raise IdentificationError(
        f"The {M} instruments {', '.join(map(repr, instrument_labels))} have rank {rank}, so the initial weighting "
        "matrix has to be a pseudo-inverse. Remove collinear instruments, or set options.pseudo_inverses = True."
    )


def read_inversion(iteration: Any, fp_type: Any, shares_bounds: Any) -> Iteration:
    """How shares are inverted: an iteration (or the default one), a type of contraction and bounds on simulated shares.

    Contractions are always protected against overflow, so that ``'linear'`` is ``'safe_linear'`` and ``'nonlinear'`` is
    ``'safe_nonlinear'``.

    Raises
    ------
    TypeError, ValueError
        When one of them is none of what there is, or a nonlinear contraction is asked of a method without any.
    """
    if iteration is not None and not isinstance(iteration, Iteration):
        raise TypeError(f"iteration must be Iteration or None, not {type(iteration).__name__}.")
    check_choice("fp_type", fp_type, ("safe_linear", "linear", "safe_nonlinear", "nonlinear"))
    nonlinear = fp_type.endswith("nonlinear")
    chosen = iteration or Iteration("squarem" if nonlinear else "anderson")
    if nonlinear and chosen.method in ("anderson", "newton"):
        raise ValueError(
            f"fp_type='{fp_type}' needs a method that iterates on the plain contraction, such as Iteration('squarem') "
            f"or Iteration('simple'). Iteration('{chosen.method}') solves for delta itself."
        )
    bounds = read_bounds("shares_bounds", (None, None) if shares_bounds is None else shares_bounds)
    if not bounds[0] < 1 or not bounds[1] > 0:
        raise ValueError(f"shares_bounds must leave room for shares, but are {shares_bounds!r}.")
    return chosen.on_shares(fp_type, (max(float(bounds[0]), 0.0), float(bounds[1])))


def read_vector(name: str, values: Any, size: int) -> np.ndarray:
    """Finite numbers (size,), one for each product, or `ValueError`."""
    array = _read_numbers(name, values).reshape(-1)
    if array.size != size or not np.isfinite(array).all():
        raise ValueError(f"{name} must hold {size} finite numbers, one for each product.")
    return array


def read_draws(draws: Any, name: str = "draws") -> int:
    """A number of draws, or of something else, or `ValueError`."""
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws < 1:
        raise ValueError(f"{name} must be a positive integer, not {draws!r}.")
    return int(draws)


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise `ValueError` when an argument is none of its choices."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {list(choices)}, not {value!r}.")


def check_level(level: float) -> None:
    """Raise `ValueError` unless a level of confidence is between zero and one."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between zero and one, such as 0.95, not {level!r}.")


def _read_numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers.") from error


def _same(value: Any, default: object) -> bool:
    """Whether an argument has its default value, an empty list being as good as an empty tuple."""
    if value is default:
        return True
    if isinstance(default, tuple):
        return isinstance(value, Sequence) and not isinstance(value, str) and tuple(value) == default
    return isinstance(value, str | bool | int | float) and value == default
