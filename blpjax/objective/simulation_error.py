"""Simulation error: how much averaged moments vary when agents are drawn again."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from blpjax.economy.buckets import AgentsInEconomy
from blpjax.economy.ownership import pack_firms
from blpjax.exceptions import DataError, raise_for_status
from blpjax.inputs.tables import assign_node_columns
from blpjax.machine.compilation import program
from blpjax.model.parameters import ParameterLayout
from blpjax.objective.micro import MicroMoments
from blpjax.objective.moments import GMM
from blpjax.objective.problem_data import ProblemData

#: What the callable is called in messages.
_NAME = "resample_agent_data"

#: Covariances of fewer samples do not exist.
_LEAST = 2


class SampledMoments(NamedTuple):
    """Averaged moments (M,), and statuses (T,) of the inversion and, with a supply side, of the recovery of costs."""

    moments: Float[Array, " M"]
    inversion_status: Int[Array, " T"]
    residuals: Float[Array, " T"]
    costs_status: Int[Array, " T"] | None


class AgentSamples:
    """Sets of agents that the user's callable draws, from index 0 until it returns None. Can be iterated repeatedly.

    The first two sets are drawn and checked at once, so that mistakes show before anything is estimated. The first
    iteration uses them: the callable sees the indices in the order 0, 1, 2, ..., then again 0, 1, 2, ....

    Parameters
    ----------
    resample : maps an index to agent data as in `Problem`, with nodes and weights, or to None when there are no more.
    data : those of the problem whose agents are drawn again.
    weights_tol : by how much weights may differ from summing to one without a warning.
    micro : the block of micro moments with some agents, in a list, given data, agents and layout of the parameters.

    Raises
    ------
    TypeError
        When `resample` cannot be called.
    ValueError
        When there are no random coefficients, or fewer than two sets.
    DataError
        When a set of agents cannot be used.
    """

    def __init__(
        self,
        resample: Callable[[int], Any],
        data: ProblemData,
        weights_tol: float,
        micro: Callable[[ProblemData, AgentsInEconomy, ParameterLayout], list[MicroMoments]],
    ) -> None:
        if not callable(resample):
            raise TypeError(f"{_NAME} must be a function of an index or None, not {type(resample).__name__}.")
        if data.K2 == 0:
            raise ValueError(f"{_NAME} needs random coefficients: a second formulation, X2.")
        self._resample = resample
        self._data, self._weights_tol, self._micro = data, weights_tol, micro
        self._known: list[AgentsInEconomy] = []
        for index in range(_LEAST):
            agents = self._draw(index)
            if agents is None:
                raise ValueError(
                    f"{_NAME} must return at least {_LEAST} sets of agents, but {_NAME}({index}) returned None."
                )
            self._known.append(agents)

    def __iter__(self) -> Iterator[AgentsInEconomy]:
        """Agents by index."""
        known, self._known = self._known, []
        yield from known
        index = len(known)
        while (agents := self._draw(index)) is not None:
            yield agents
            index += 1

    def replace(self, objective: GMM, agents: AgentsInEconomy) -> GMM:
        """The objective with these agents instead."""
        economy, model = agents.economy, objective.model
        layout, data = model.layout, model.data
        nonzero = np.isin(np.arange(self._data.K2), layout.sigma_columns)
        columns = assign_node_columns(agents.table.nodes.shape[1], nonzero)
        layout = layout._replace(node_columns=tuple(columns.tolist()))
        specification = model.specification._replace(layout=layout)
        if data.supply is not None:
            ownership = self._data.pricing_ownership_in(economy)
            supply = dataclasses.replace(data.supply, ownership=pack_firms(ownership))
            data = dataclasses.replace(data, supply=supply)
        others = [block for block in data.more if not isinstance(block, MicroMoments)]
        data = dataclasses.replace(data, more=(*others, *self._micro(self._data, agents, layout)))
        changed = dataclasses.replace(model, specification=specification, economy=economy, data=data)
        return dataclasses.replace(objective, model=changed)

    def _draw(self, index: int) -> AgentsInEconomy | None:
        data = self._resample(index)
        if data is None:
            return None
        try:
            agents = self._data.build_agents(data, None, self._weights_tol)
        except (DataError, TypeError, ValueError) as error:
            raise DataError(f"What {_NAME}({index}) returned cannot be used: {error}") from error
        known = self._data.agents_in_economy.demographic_labels
        if agents.demographic_labels != known:
            raise DataError(
                f"What {_NAME}({index}) returned cannot be used: its demographics are "
                f"{list(agents.demographic_labels)}, not {list(known)}. Each set of agents needs all levels of "
                "categorical variables."
            )
        return agents


def simulation_covariances(
    samples: AgentSamples,
    market_ids: Any,
    objective: GMM,
    theta: Float[Array, " P"],
    delta: Float[Array, " N"],
) -> np.ndarray:
    r"""Sample covariances (M, M) of averaged moments over sets of agents, at the same theta.

    .. math:: \frac{1}{R - 1} \sum_{r=1}^R (\bar{g}_r - \bar{\bar{g}}) (\bar{g}_r - \bar{\bar{g}})'

    Mean utilities, costs and the concentrated linear parameters are those of each set of agents. PyBLP's documentation,
    equation (3.29).

    Parameters
    ----------
    samples : sets of agents.
    market_ids : T sorted market IDs, for messages.
    objective : the one with the problem's own agents.
    theta : (P,) parameters.
    delta : (N,) where inversions start.

    Raises
    ------
    ConvergenceError
        When shares cannot be inverted, or costs not recovered, for some set of agents; the message names the markets.
    """
    found: list[np.ndarray] = []
    for index, agents in enumerate(samples):
        sampled = _sampled_moments(samples.replace(objective, agents), theta, delta)
        _check(sampled, index, market_ids)
        found.append(np.asarray(sampled.moments))
    if len(found) < _LEAST:
        raise ValueError(f"{_NAME} must return at least {_LEAST} sets of agents, not {len(found)}.")
    return np.atleast_2d(np.cov(np.array(found), rowvar=False))


@program(effort=1)
def _sampled_moments(objective: GMM, theta: Float[Array, " P"], start: Float[Array, " N"]) -> SampledMoments:
    found = objective.model.at(theta, start)
    averaged = objective.average(found)
    costs = None if found.costs is None else found.costs.status
    return SampledMoments(averaged, found.inversion.status, found.inversion.residuals, costs)


def _check(sampled: SampledMoments, index: int, market_ids: Any) -> None:
    action = f"With the agents of {_NAME}({index}), the inversion of market shares"
    raise_for_status(np.asarray(sampled.inversion_status), market_ids, action, np.asarray(sampled.residuals))
    if sampled.costs_status is not None:
        action = f"With the agents of {_NAME}({index}), the recovery of marginal costs"
        raise_for_status(np.asarray(sampled.costs_status), market_ids, action)
