"""Markups under some conduct at the estimates, and how they move with the parameters of demand."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.conduct import prepare_known_conduct
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


def markups_with_slopes(
    results: Estimates, conducts: Sequence[Any], kept: Sequence[np.ndarray | None], slopes: bool
) -> list[MarkupSlopes]:
    """Markups under some conducts at observed shares and prices, and their derivatives in the parameters of demand.

    Mean utilities follow the parameters so that shares stay, by the implicit function theorem. The parameters are those
    of theta that are not phi or gamma, and coefficients in X1 on what depends on prices, concentrated or not: others
    move no markups.

    Parameters
    ----------
    conducts : see `ProblemResults.compute_costs`.
    kept : for each conduct, (N,) which part of a price firms get after ad valorem taxes, see `ConductData`, or None
        where it is the same for all products of a market.
    slopes : whether to differentiate; if not, there are derivatives in no parameters.

    Raises
    ------
    DataError, TypeError, ValueError
        When a conduct cannot be used.
    ConvergenceError
        When there are no markups in some market, naming it.
    """
    model, table = results.model, results.problem.data.product_table
    pairs = zip(conducts, kept, strict=True)
    known = [dataclasses.replace(prepare_known_conduct(conduct, table), kept=nu) for conduct, nu in pairs]
    moving = _moving(results) if slopes else np.zeros(0, int)
    parameters = jax.device_put(results.parameters[:, 0])

    def markups_at(parameters: Float[Array, " Q"]) -> tuple[Any, Any]:
        moved = hold_shares(model, parameters)
        found = [moved.solve_markups(data) for data in known]
        return [one.markups for one in found], [Loops(**one.fields()) for one in found]

    width = lanes(model.economy, sum(table.shares.size for _ in known))
    found = differentiate(markups_at, parameters, width, np.eye(parameters.size)[moving])
    for data, loops in zip(known, found.loops, strict=True):
        action = f"Computation of markups with conduct {data.name}"
        raise_for_status(loops.status, results.problem.data.market_index.ids, action)
    jacobians = np.split(found.jacobian, len(known))
    return [MarkupSlopes(np.asarray(m), d, moving) for m, d in zip(found.value, jacobians, strict=True)]


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
