"""Arguments of `Problem` and `Problem.solve`: what they may be, and what to do about those that are not supported."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blpjax import gmm, options
from blpjax.estimator import CovarianceTypes
from blpjax.inputs.design import DesignMatrix
from blpjax.inputs.formulation import Formulation
from blpjax.iteration import Iteration
from blpjax.optimize import Optimization
from blpjax.parameters import Parameters
from blpjax.solver import StepOptions

_UNSUPPORTED: dict[str, tuple[object, str]] = {
    "rho": (None, "nested logit is not implemented yet"),
    "rho_bounds": (None, "nested logit is not implemented yet"),
    "phi": (None, "dynamic moments are not implemented"),
    "phi_bounds": (None, "dynamic moments are not implemented"),
    "demand_moment_types": ("levels", "only moments in levels are implemented"),
    "supply_moment_types": ("levels", "only moments in levels are implemented"),
    "finite_differences": (False, "derivatives are always exact"),
    "error_punishment": (1, "failed evaluations are never accepted"),
    "fp_type": ("safe_linear", "the contraction is always protected against overflow"),
    "shares_bounds": ((1e-300, None), "simulated shares are always bounded from below by 1e-300"),
    "micro_moments": ((), "micro moments are not implemented yet"),
    "micro_sample_covariances": (None, "micro moments are not implemented yet"),
    "resample_agent_data": (None, "simulation error in covariances is not implemented yet"),
}


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


def refuse_model_options(rc_types: Any, epsilon_scale: Any) -> None:
    """Raise `NotImplementedError` for options of `Problem` that are not the defaults."""
    if rc_types is not None and any(kind != "linear" for kind in rc_types):
        raise NotImplementedError("rc_types other than 'linear' are not implemented yet. Leave rc_types out.")
    if epsilon_scale != 1:
        raise NotImplementedError("epsilon_scale other than 1 is not implemented yet. Leave it out.")


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
    message = f"costs_bounds must be a pair (lower, upper) of numbers or None, not {costs_bounds!r}."
    try:
        lower, upper = costs_bounds
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
    iteration: Iteration | None,
    check_optimality: Any,
    error_behavior: Any,
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
    if error_behavior in ("revert", "punish"):
        raise NotImplementedError(
            f"error_behavior='{error_behavior}' is not supported: a failed evaluation is never accepted. Use None, the "
            "default, or 'raise'."
        )
    check_choice("error_behavior", error_behavior, (None, "raise"))
    for name, value, kind in (("optimization", optimization, Optimization), ("iteration", iteration, Iteration)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} must be {kind.__name__} or None, not {type(value).__name__}.")
    for name, covariances in (("W_type", W_type), ("se_type", se_type)):
        gmm.check_kind(covariances, name)
        if covariances == "clustered" and n_clusters is None:
            raise ValueError(f"{name}='clustered' needs a column 'clustering_ids' in product_data.")
    chosen = Optimization("trust-region") if optimization is None else optimization
    if delta_behavior is None:
        delta_behavior = "predicted" if chosen.method == "trust-region" else "first"
    return StepOptions(
        parameters=parameters,
        costs_bounded=costs_bounded,
        optimization=chosen,
        iteration=Iteration() if iteration is None else iteration,
        types=CovarianceTypes(W_type, se_type, bool(center_moments), 1 if n_clusters is None else n_clusters),
        check_optimality=check_optimality,
        error_behavior=error_behavior,
        delta_behavior=delta_behavior,
        scale_objective=bool(scale_objective),
    )


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


def read_vector(name: str, values: Any, size: int) -> np.ndarray:
    """Finite numbers (size,), one for each product, or `ValueError`."""
    array = _read_numbers(name, values).reshape(-1)
    if array.size != size or not np.isfinite(array).all():
        raise ValueError(f"{name} must hold {size} finite numbers, one for each product.")
    return array


def read_draws(draws: Any) -> int:
    """A number of draws, or `ValueError`."""
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws < 1:
        raise ValueError(f"draws must be a positive integer, not {draws!r}.")
    return int(draws)


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise `ValueError` when an argument is none of its choices."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {list(choices)}, not {value!r}.")


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
