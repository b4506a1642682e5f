"""What micro datasets say of a market: the user's functions of its products and agents are called, and checked."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from blpjax import options
from blpjax.exceptions import DataError
from blpjax.inputs.micro import MicroDataset, MicroPart
from blpjax.inputs.records import structure
from blpjax.inputs.table_format import plain_value


def market_agents(agents: np.recarray, rows: np.ndarray, J: int) -> np.recarray:
    """Agents of one market with J products: what is specific to products has as many numbers as there are."""
    chosen = agents[rows]
    if chosen.demographics.ndim == 2 and chosen.availability.shape[1] in (0, J):
        return chosen
    fields = {name: chosen[name] for name in chosen.dtype.names}
    if chosen.demographics.ndim == 3:
        fields["demographics"] = chosen.demographics[:, :, :J]
    if chosen.availability.shape[1]:
        fields["availability"] = chosen.availability[:, :J]
    return structure(fields, len(rows))


def spread_nodes(nodes: np.ndarray, columns: np.ndarray, K2: int) -> np.ndarray:
    """Nodes (I, K2) with zeros where sigma has a column of zeros, unless there are K2 columns or sigma has none.

    `columns` are those of sigma that are not all zero, in ascending order.
    """
    if columns.size == K2 or nodes.shape[1] == K2:
        return nodes
    spread = np.zeros((len(nodes), K2))
    spread[:, columns] = nodes[:, : columns.size]
    return spread


def compute_weights(dataset: MicroDataset, t: Any, products: np.recarray, agents: np.recarray) -> np.ndarray:
    """Weights of a dataset in one market, of the shape that its function returns.

    Raises
    ------
    RuntimeError
        When the function fails.
    DataError
        When weights have none of the possible shapes, are negative, missing, infinite, or all zero.
    """
    what = f"weights for micro dataset '{dataset.name}' in market {plain_value(t)!r}"
    weights = _call(dataset.compute_weights, what, t, products, agents)
    rows, J = len(agents), len(products)
    choices = (J, 1 + J)
    shapes = [(rows, a) for a in choices] + [(rows, a, b) for a in choices for b in choices]
    if weights.shape not in shapes:
        raise DataError(
            f"The {what} must have one of the shapes {', '.join(map(str, shapes))}, for {rows} agents and {J} "
            f"products, not {weights.shape}."
        )
    if weights.ndim == 2 and dataset.eliminated_product_ids_index is not None:
        raise DataError(
            f"The {what} are those of first choices alone, for which eliminated_product_ids_index has no meaning."
        )
    # one agent after the other, because second choices may be many
    if not all(np.isfinite(row).all() for row in weights):
        raise DataError(f"The {what} must be finite.")
    if not all((row >= 0).all() for row in weights):
        raise DataError(f"The {what} must not be negative.")
    if not any(row.any() for row in weights):
        raise DataError(f"The {what} are all zero. Use market_ids to say which markets the dataset is about.")
    return weights


def compute_values(
    part: MicroPart, t: Any, products: np.recarray, agents: np.recarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Values of a part in one market, of the shape of its dataset's weights. They may be missing where these are zero.

    Raises
    ------
    RuntimeError
        When the function fails.
    DataError
        When values have another shape.
    """
    what = f"values for micro part '{part.name}' of micro dataset '{part.dataset.name}' in market {plain_value(t)!r}"
    values = _call(part.compute_values, what, t, products, agents)
    if values.shape != shape:
        raise DataError(f"The {what} must have the shape {shape} of the dataset's weights, not {values.shape}.")
    return values


def weigh_values(part: MicroPart, t: Any, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Weights times values of some agents; `DataError` when a value is missing where the weight is not zero."""
    weighted = np.where(weights != 0, weights * np.where(weights != 0, values, 0.0), 0.0)
    if not np.isfinite(weighted).all():
        raise DataError(
            f"The values for micro part '{part.name}' of micro dataset '{part.dataset.name}' in market "
            f"{plain_value(t)!r} must be finite where the dataset's weights are not zero."
        )
    return weighted


def eliminated_groups(dataset: MicroDataset, product_ids: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    """Codes (J,) of what is eliminated with each product of a market, None where that is the product alone.

    Raises
    ------
    ValueError
        When there are no such product IDs.
    """
    index = dataset.eliminated_product_ids_index
    if index is None:
        return None
    columns = 0 if product_ids is None else 1 if product_ids.ndim == 1 else product_ids.shape[1]
    if index >= columns:
        raise ValueError(
            f"The micro dataset '{dataset.name}' is invalid: eliminated_product_ids_index is {index}, but product_data "
            f"have {columns} columns of product_ids."
        )
    assert product_ids is not None
    ids = product_ids[rows] if product_ids.ndim == 1 else product_ids[rows, index]
    codes: dict[Any, int] = {}
    return np.array([codes.setdefault(plain_value(value), len(codes)) for value in ids])


def check_groups(dataset: MicroDataset, t: Any, groups: np.ndarray | None, nests: np.ndarray | None) -> None:
    """`ValueError` when a group that is eliminated is neither within a nest nor a union of nests of its market."""
    if groups is None or nests is None:
        return
    for code in np.unique(groups):
        members = groups == code
        touched = np.unique(nests[members])
        if touched.size > 1 and not members[np.isin(nests, touched)].all():
            raise ValueError(
                f"The micro dataset '{dataset.name}' is invalid in market {plain_value(t)!r}: what is eliminated with "
                "a first choice must lie within one nesting group, or consist of whole nesting groups."
            )


def dataset_markets(dataset: MicroDataset, ids: np.ndarray) -> np.ndarray:
    """Positions of a dataset's markets among sorted market IDs.

    Raises
    ------
    ValueError
        When a market is not there.
    """
    if dataset.market_ids is None:
        return np.arange(len(ids))
    dates = ids.dtype.kind == "M"
    known = {(value if dates else plain_value(value)): t for t, value in enumerate(ids)}
    found, missing = [], []
    for given in dataset.market_ids:
        try:
            key = np.datetime64(given).astype(ids.dtype) if dates else given
        except (TypeError, ValueError):
            key = given
        if key in known:
            found.append(known[key])
        else:
            missing.append(given)
    if missing:
        raise ValueError(
            f"The micro dataset '{dataset.name}' is invalid: product_data have no markets with the IDs "
            f"{', '.join(sorted(repr(plain_value(value)) for value in missing))}."
        )
    return np.sort(found)


def _call(function: Any, what: str, t: Any, products: np.recarray, agents: np.recarray) -> np.ndarray:
    """What a function returns for all agents, called for one chunk of them after the other."""
    parts = []
    for chunk in np.array_split(np.arange(len(agents)), _chunks(t)):
        if chunk.size == 0:
            continue
        some = agents if chunk.size == len(agents) else agents[chunk[0] : chunk[-1] + 1]
        try:
            found = np.asarray(function(plain_value(t), products, some))
            parts.append(found if found.dtype == float else found.astype(float))
        except Exception as error:
            raise RuntimeError(f"Failed to compute {what}, because of the error above.") from error
    if len(parts) == 1:
        return parts[0]
    if len({part.shape[1:] for part in parts}) > 1:
        raise DataError(f"The {what} have other shapes for some chunks of agents.")
    return np.concatenate(parts)


def _chunks(t: Any) -> int:
    chunks = options.micro_computation_chunks
    return int(chunks.get(plain_value(t), 1)) if isinstance(chunks, Mapping) else int(chunks)
