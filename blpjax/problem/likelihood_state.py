"""Estimates by likelihood as trees of plain values, which files hold beside those of steps and problems, and back."""

from typing import Any, NamedTuple

import numpy as np

from blpjax.economy.buckets import Economy
from blpjax.inputs.integration import Integration
from blpjax.inputs.likelihood import MicroLikelihood
from blpjax.inputs.table_format import plain_value, read_table
from blpjax.objective.likelihood_inference import Blocks, JointCovariances
from blpjax.objective.problem_data import ProblemData
from blpjax.objective.programs import on_host
from blpjax.problem.state import State, integration_state, table_state

#: Columns of surveys that likelihoods use, perhaps numbered, beside variables of the agent formulation.
_FIELDS = ("market_ids", "choice_indices", "product_ids", "availability")


class LikelihoodEstimates(NamedTuple):
    """What estimates by likelihood are made of beside a step: see `blpjax.problem.likelihood.LikelihoodResults`."""

    likelihood: MicroLikelihood
    joint: JointCovariances
    coefficient_map: np.ndarray


def likelihood_state(found: LikelihoodEstimates, data: ProblemData) -> State:
    """The tree of estimates of a problem.

    Raises
    ------
    DataError
        When a column that the survey uses holds objects that cannot be stored.

    Warns
    -----
    DataWarning
        When such a column is left out, because it is not used.
    """
    given, joint = found.likelihood, found.joint
    names = () if data.agent_formulation is None else data.agent_formulation.names
    people = None if given.micro_data is None else read_table(given.micro_data, "micro_data")
    return {
        "market_sizes": _sizes_state(given.market_sizes),
        "micro_data": None if people is None else table_state(people, "micro_data", _FIELDS, names),
        "integration": None if given.integration is None else integration_state(given.integration),
        "estimator": given.estimator,
        "sigma2": float(given.sigma2),
        "joint": {
            **joint._asdict(),
            "blocks": None if joint.blocks is None else joint.blocks.rows(),
            "moved": list(joint.moved),
        },
        "coefficient_map": found.coefficient_map,
    }


def read_likelihood_state(state: State, data: ProblemData) -> LikelihoodEstimates:
    """The estimates of a tree, for the same problem."""
    given, joint, integration = state, state["joint"], state["integration"]
    likelihood = MicroLikelihood(
        market_sizes=_read_sizes(given["market_sizes"]),
        micro_data=given["micro_data"],
        integration=None if integration is None else Integration(**integration),
        estimator=given["estimator"],
        sigma2=given["sigma2"],
    )
    blocks, (theta, delta) = joint["blocks"], joint["moved"]
    known = None if blocks is None else _read_blocks(blocks, on_host(data.economy))
    return LikelihoodEstimates(
        likelihood, JointCovariances(**{**joint, "blocks": known, "moved": (theta, delta)}), state["coefficient_map"]
    )


def _read_blocks(blocks: Any, economy: Economy) -> Blocks:
    if isinstance(blocks, list):  # older files hold padded matrices
        return Blocks(economy, tuple(blocks))
    return Blocks.from_rows(economy, blocks)


def _sizes_state(sizes: Any) -> Any:
    if isinstance(sizes, str):
        return sizes
    if not hasattr(sizes, "items"):
        return float(sizes)
    ids = np.empty(len(sizes), object)
    ids[:] = [plain_value(key) for key in sizes]
    return {"market_ids": ids, "sizes": np.array([float(value) for value in sizes.values()])}


def _read_sizes(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    return dict(zip(map(plain_value, state["market_ids"]), state["sizes"].tolist(), strict=True))
