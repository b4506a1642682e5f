"""From a problem's data and a survey to a `Likelihood`: who was asked, who was not, and exogeneity restrictions."""

from typing import NamedTuple

import jax
import numpy as np

from blpjax.economy.respondents import build_others, build_respondents
from blpjax.inputs.likelihood import MicroLikelihood, check_agents, read_market_sizes, read_survey
from blpjax.iteration import Iteration
from blpjax.model.parameters import Parameters
from blpjax.objective.likelihood import Likelihood, LikelihoodSpecification
from blpjax.objective.problem_data import ProblemData
from blpjax.objective.programs import on_host

#: Singular values of instruments and of their products with X1 that are this small next to the largest are zero.
_RANK = 1e-10


class Linear(NamedTuple):
    """Two-stage least squares of mean utilities, with instruments of independent columns.

    Attributes
    ----------
    restrictions : (N, L) K with ``K K' = (P_Z - P_{P_Z X}) / sigma2``.
    coefficient_map : (K, N) what turns mean utilities into concentrated elements of beta, ``(X^'X^)^{-1} X^'`` with
        ``X^ = P_Z X``.
    offset : (N,) what fixed elements of beta explain.
    """

    restrictions: np.ndarray
    coefficient_map: np.ndarray
    offset: np.ndarray


def build_linear(data: ProblemData, parameters: Parameters, sigma2: float, weights: np.ndarray | None = None) -> Linear:
    """The linear part of demand, whose fixed effects have been absorbed, perhaps with `weights` (N,) of products."""
    demand, columns = on_host(data.model_data.demand), list(parameters.layout.concentrated_beta)
    root = np.ones(data.N) if weights is None else np.sqrt(weights)
    Z, X = root[:, None] * np.asarray(demand.Z), root[:, None] * np.asarray(demand.X)[:, columns]
    scale = np.linalg.norm(Z, axis=0)
    left, values, _ = np.linalg.svd(Z / np.where(scale > 0, scale, 1.0), full_matrices=False)
    Q = left[:, values > _RANK * values.max(initial=0.0)]
    A = Q.T @ X
    lengths = np.linalg.norm(A, axis=0)
    lengths = np.where(lengths > 0, lengths, 1.0)
    U, values, _ = np.linalg.svd(A / lengths, full_matrices=True)
    rank = int((values > _RANK * values.max(initial=0.0)).sum())
    fixed = np.array(parameters.start.beta)
    fixed[columns] = 0.0
    return Linear(
        restrictions=root[:, None] * (Q @ U[:, rank:]) / np.sqrt(sigma2),
        coefficient_map=np.linalg.pinv(A / lengths) @ Q.T / lengths[:, None] * root[None, :],
        offset=np.asarray(demand.X_unabsorbed) @ fixed,
    )


def build_likelihood(
    data: ProblemData, parameters: Parameters, given: MicroLikelihood, iteration: Iteration
) -> tuple[Likelihood, Linear, np.ndarray]:
    """The objective, its linear part, and numbers (T,) of respondents by market.

    Raises
    ------
    DataError, KeyError, TypeError, ValueError
        When the survey or market sizes cannot be used, naming column, market and row.
    """
    layout, economy, index = parameters.layout, data.economy, data.market_index
    check_agents(data.agent_table.weights, data.agent_table.market_ids)
    sizes = read_market_sizes(given.market_sizes, data.product_table, index.ids)
    rows = read_survey(
        given,
        data.product_table,
        data.agent_formulation,
        data.agents_in_economy.demographic_labels,
        data.K2,
        len(layout.sigma_columns),
    )
    others = build_others(economy, index, data.product_table.shares, sizes, rows)
    linear = build_linear(data, parameters, given.sigma2)
    restrictions = linear.restrictions if given.restricts else linear.restrictions[:, :0]
    asked = np.zeros(len(index.ids), int)
    if rows is not None:
        asked += np.bincount(np.searchsorted(index.ids, rows.market_ids), minlength=asked.size)
    rest = economy.gather([part.shares[:, 1:] for part in others])
    put = jax.device_put((restrictions, linear.offset, jax.tree.map(np.asarray, (parameters.start, iteration.limits))))
    objective = Likelihood(
        specification=LikelihoodSpecification(layout, given.estimator, iteration.fixed_point),
        economy=economy,
        people=build_respondents(economy, index, rows),
        others=others,
        restrictions=put[0],
        offset=put[1],
        fixed=put[2][0],
        limits=put[2][1],
        rest=rest,
        count=jax.device_put(np.asarray(float(max(asked.sum(), data.N)))),
    )
    return objective, linear, asked
