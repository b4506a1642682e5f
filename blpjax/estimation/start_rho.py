"""Nesting parameters by linear instrumental variables (Berry 1994).

Without random coefficients, ``log(S_j / S_0) = X1 beta + rho log(S_j / S_h) + xi``: rho is the coefficient on the
logarithm of a product's share within its group, which is endogenous. With subgroups h of groups g there is another
regressor, ``log(S_h / S_g)``, for the parameter of groups (Verboven 1996).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from blpjax.economy.logit import closed_form_delta, log_shares_within
from blpjax.exceptions import IdentificationError
from blpjax.model.starting_values import LARGEST_RHO
from blpjax.objective import iv
from blpjax.objective.problem_data import ProblemData

AUTO = "auto"

#: Estimates below this start here: an element that started at zero would be fixed there.
FLOOR = 0.01


def fill_rho(data: ProblemData, rho: Any, bounds: Any) -> Any:
    """Rho as `Problem.solve` was given it, with linear estimates within bounds in place of ``'auto'``.

    They are at least `FLOOR` and at most `LARGEST_RHO`, as far as bounds allow, and those of subgroups are at least
    those of their groups.

    ``'auto'`` is one parameter for all groups of a level, a sequence of as many times ``'auto'`` as there are groups
    and subgroups one for each of them.
    """
    given = np.asarray(rho, dtype=object).reshape(-1)
    automatic = [isinstance(value, str) and value == AUTO for value in given]
    if not any(automatic):
        return rho
    if data.H == 0:
        raise ValueError("rho must not be given, because there are no nesting_ids in product_data.")
    H, levels = data.H + len(data.unique_subnesting_ids), 1 + bool(len(data.unique_subnesting_ids))
    if not all(automatic) or given.size not in (1, levels, H):
        raise ValueError(f"rho must be 'auto', {H} times 'auto', or numbers, not {rho!r}.")
    found = estimate_rho(data, by_group=given.size > levels)
    lower, upper = (None, None) if bounds is None else bounds
    least = FLOOR if lower is None else np.maximum(np.asarray(lower, float), FLOOR)
    most = LARGEST_RHO if upper is None else np.minimum(np.asarray(upper, float), LARGEST_RHO)
    found = np.clip(found, np.minimum(least, most), most)
    return np.maximum(found, found[data.labels.around(found.size)])


def estimate_rho(data: ProblemData, by_group: bool = False) -> np.ndarray:
    """Two-stage least squares estimates of rho, by level or by group, with the demand-side instruments.

    Raises
    ------
    IdentificationError
        When the instruments do not identify rho.
    """
    table, codes, scale = data.product_table, data.market_index.codes, data.epsilon_scale
    assert table.nesting is not None
    # of groups, then of subgroups
    columns = scale * log_shares_within(table.shares, codes, table.nesting)[:, ::-1]
    if by_group:
        places = table.nesting.codes[:, ::-1, None] == np.arange(data.H + len(data.unique_subnesting_ids))
        columns = (columns[:, :, None] * places).sum(axis=1)
    demand = data.model_data.demand
    X = jnp.hstack([jnp.asarray(data.residualize_demand(columns)), demand.X])
    log_shares = scale * closed_form_delta(table.shares, codes)
    step = iv.linear_step(iv.cross_moments([demand.Z], [X]), iv.initial_weights([demand.Z]))
    if int(step.rank) < X.shape[1]:
        raise IdentificationError(
            "rho='auto' needs instruments for shares within groups, but the demand-side instruments do not tell rho "
            "from the coefficients of X1. Add, for example, numbers of products in groups."
        )
    estimates = step.coefficients(iv.average_moments([demand.Z], [jnp.asarray(log_shares)]))
    return np.asarray(estimates)[: columns.shape[1]]
