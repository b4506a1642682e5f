"""Markups under some conduct at the estimates, and how they move with the parameters of demand."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.conduct import prepare_conduct
from blpjax.economy.loops import Loops
from blpjax.estimation.estimates import Estimates
from blpjax.exceptions import raise_for_status
from blpjax.inference.delta_method import differentiate
from blpjax.model.elsewhere import hold_shares, lanes
from blpjax.model.parameters import BLOCKS


class MarkupSlopes(NamedTuple):
    """Markups ``p - c`` (N,) and their derivatives (N, P) in those of the parameters that they depend on.

    `parameters` (P,) says which of all `ProblemResults.parameters` these are.
    """

    markups: np.ndarray
    jacobian: np.ndarray
    parameters: np.ndarray


def markups_with_slopes(results: Estimates, conduct: Any = None, kept: np.ndarray | None = None) -> MarkupSlopes:
    """Markups under a conduct at observed shares and prices, and their derivatives in the parameters of demand.

    Mean utilities follow the parameters so that shares stay, by the implicit function theorem. The parameters are those
    of theta that are not phi or gamma, and coefficients in X1 on what depends on prices, concentrated or not: others
    move no markups.

    Parameters
    ----------
    conduct : see `ProblemResults.compute_costs`.
    kept : (N,) which part of a price firms get after ad valorem taxes, see `ConductData`; only with a conduct. None
        where it is the same for all products of a market.

    Raises
    ------
    DataError, TypeError, ValueError
        When the conduct cannot be used.
    ConvergenceError
        When there are no markups in some market, naming it.
    """
    model = results.model
    data = None if conduct is None else prepare_conduct(conduct, results.problem.data.product_table)
    if data is not None and kept is not None:
        data = dataclasses.replace(data, kept=kept)
    moving = _moving(results)
    parameters = jnp.asarray(results.parameters[:, 0])

    def markups_at(parameters: Float[Array, " Q"]) -> tuple[Any, Loops | None]:
        moved = hold_shares(model, parameters)
        if data is None:
            return moved.markups(), None
        found = moved.solve_markups(data)
        return found.markups, Loops(**found.fields())

    found = differentiate(markups_at, parameters, lanes(model.economy), jnp.eye(parameters.size)[moving])
    if found.loops is not None and data is not None:
        action = f"Computation of markups with conduct {data.name}"
        raise_for_status(found.loops.status, results.problem.data.market_index.ids, action)
    return MarkupSlopes(np.asarray(found.value), found.jacobian, moving)


def _moving(results: Estimates) -> np.ndarray:
    """Places of the parameters that markups depend on."""
    layout, X1 = results.model.layout, results.model.characteristics.X1_columns
    priced = [(k,) for k, column in enumerate(X1) if column.depends_on("prices")]
    places = [(name, place) for name in BLOCKS for place in getattr(layout, name)]
    places += [("beta", (k,)) for k in layout.concentrated_beta]
    moving = [
        name in ("sigma", "pi", "rho", "tau") or (name == "beta" and tuple(place) in priced) for name, place in places
    ]
    return np.flatnonzero(moving)
