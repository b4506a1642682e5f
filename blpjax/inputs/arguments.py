"""Arguments of `Problem` and `Problem.solve`: what they may be, and what to do about those that are not supported."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from blpjax.exceptions import warn_unused
from blpjax.inputs.formulation import Formulation
from blpjax.iteration import Iteration


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


def read_costs_bounds(costs_bounds: Any, supply: bool) -> np.ndarray:
    """Lower and upper bound of marginal costs (2,), infinite where there is none.

    Raises
    ------
    ValueError
        When they are not two numbers in ascending order.

    Warns
    -----
    UnusedOptionWarning
        There is no supply side.
    """
    none = np.array([-np.inf, np.inf])
    if costs_bounds is None:
        return none
    bounds = read_bounds("costs_bounds", costs_bounds)
    if not supply and np.isfinite(bounds).any():
        warn_unused("costs_bounds", "there is no supply side, a third formulation, X3.")
    return bounds if supply else none


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


def check_index(name: str, values: Any, index: pd.Index | None) -> None:
    """Raise `ValueError` when pandas' labels of rows are those of products in another order, or of other rows.

    `index` are those of the products, None where they have none. A default index of other labels says nothing.
    """
    if index is None or not isinstance(values, pd.Series | pd.DataFrame) or len(values.index) != len(index):
        return
    found = values.index
    if found.equals(index):
        return
    plain = found.equals(pd.RangeIndex(len(found)))
    if plain and not found.difference(index).empty:
        return
    raise ValueError(
        f"{name} has another index than product_data, so that it is not clear which rows belong together. Select its "
        "rows by the index of product_data with .loc, or use .to_numpy() to take them in their order."
    )


def read_vector(name: str, values: Any, size: int, index: pd.Index | None = None) -> np.ndarray:
    """Finite numbers (size,), one for each product, or `ValueError`; products may have an index, see `check_index`."""
    check_index(name, values, index)
    array = read_numbers(name, values).reshape(-1)
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


def read_numbers(name: str, values: Any) -> np.ndarray:
    """An array of floats, or `ValueError`."""
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers.") from error
