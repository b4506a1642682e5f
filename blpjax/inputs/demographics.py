"""Demographics of agents, which may be specific to products."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from blpjax.exceptions import DataError
from blpjax.inputs.design import Column
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.table_format import is_missing
from blpjax.inputs.tables import lacking_products


class Demographics(NamedTuple):
    """Demographics (I, D), or (I, D, max J) where some are specific to products, and what their D columns contain."""

    values: np.ndarray
    columns: tuple[Column, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """D labels of the columns."""
        return tuple(column.label for column in self.columns)


def build_demographics(
    formulation: Formulation, data: Mapping[str, np.ndarray], product_market_ids: np.ndarray
) -> Demographics:
    """Demographics by a formula for the rows of agent data.

    A variable without a column of its name but with numbered ones, such as `distance0`, `distance1` and so on, is
    specific to products: column j belongs to the j-th product of an agent's market, in the order of product data.
    Columns beyond a market's number of products are not used there.

    Raises
    ------
    DataError
        When a column is missing or a value that is used is unusable.
    """
    _refuse_single_levels(formulation, data)
    specific = sorted(name for name in formulation.names if name not in data and f"{name}0" in data)
    if not specific:
        design = formulation.build(data, "agent_data")
        return Demographics(design.values, design.columns)
    lacking = lacking_products(data["market_ids"], product_market_ids)
    J = lacking.shape[1]
    for name in specific:
        missing = [f"{name}{j}" for j in range(J) if f"{name}{j}" not in data]
        if missing:
            raise DataError(
                f"agent_data: '{name}' is specific to products, so there must be a column for each of the {J} products "
                f"of the largest market, but there is no '{missing[0]}'."
            )
    parts: list[np.ndarray] = []
    columns: tuple[Column, ...] = ()
    labels: tuple[str, ...] = ()
    for j in range(J):
        own = {
            name: np.where(lacking[:, j], np.asarray(data[f"{name}0"]), np.asarray(data[f"{name}{j}"]))
            for name in specific
        }
        design = formulation.build({**data, **own}, "agent_data")
        if parts and design.labels != labels:
            raise DataError(
                f"agent_data: demographics for product {j} of markets are {', '.join(design.labels)}, but those for "
                f"product 0 are {', '.join(labels)}. Variables that are specific to products must have the same levels."
            )
        parts.append(design.values)
        columns, labels = design.columns, design.labels
    return Demographics(np.stack(parts, axis=-1), columns)


def _refuse_single_levels(formulation: Formulation, data: Mapping[str, np.ndarray]) -> None:
    """Raise `DataError` for text that is the same for all agents: it would be a constant, or nothing at all."""
    for name in sorted(formulation.names):
        values = data.get(name)
        if values is None or values.dtype.kind in "iufb" or is_missing(values).any():
            continue
        found = set(values.reshape(-1).tolist())
        if len(found) == 1:
            raise DataError(
                f"agent_data: column '{name}' is {found.pop()!r} for all agents, so it is no demographic. Text is "
                f"categorical: convert the column to numbers, or remove it from agent_formulation."
            )
