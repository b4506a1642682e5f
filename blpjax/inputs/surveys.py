"""What micro datasets say of a market: the user's functions of its products and agents are called, and checked."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blpjax import options
from blpjax.exceptions import DataError
from blpjax.inputs.micro import MicroDataset, MicroMoment, MicroPart
from blpjax.inputs.named_surveys import (
    Factors,
    MarketArrays,
    SurveyMarket,
    SurveyValues,
    SurveyWeights,
    all_values,
    check_weights,
    describe_cell,
    eliminated_ids,
    value_factors,
    weight_factors,
)
from blpjax.inputs.records import structure
from blpjax.inputs.survey_expressions import Asked, SurveyTables
from blpjax.inputs.table_format import plain_value

#: Weights are checked so many at a time.
_TOGETHER = 2**20


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


def check_columns(moments: Sequence[MicroMoment], tables: SurveyTables) -> None:
    """Check columns of moments by column before anything is computed.

    Raises
    ------
    DataError
        When a column is not there, is in both tables, or holds text where numbers are needed. The message names the
        dataset, the moment, the expression, and similar columns.
    """
    for moment in moments:
        for part in moment.parts:
            dataset, values = part.dataset, part.compute_values
            weights = dataset.compute_weights
            if isinstance(weights, SurveyWeights):
                check_weights(weights, tables, f"Micro dataset '{dataset.name}'")
            if isinstance(values, SurveyValues):
                second = weights.second is not None if isinstance(weights, SurveyWeights) else None
                user = f"Micro moment '{moment.name}' of micro dataset '{dataset.name}', expression '{values}'"
                Asked.of(values.expression, tables, user, second)


def factorise_weights(dataset: MicroDataset, market: SurveyMarket) -> Factors | None:
    """Weights of a dataset that is by column as products, None for other datasets; see `compute_weights` for errors."""
    if not isinstance(dataset.compute_weights, SurveyWeights):
        return None
    return weight_factors(dataset.compute_weights, market, _words(dataset, market))


def factorise_values(part: MicroPart, market: SurveyMarket, weights: Factors) -> Factors | None:
    """Weights times values of a part as products, None where they are none that are finite.

    Raises
    ------
    DataError
        When a column is not there or cannot be used.
    """
    known, named = part.compute_values, part.dataset.compute_weights
    if not (isinstance(known, SurveyValues) and isinstance(named, SurveyWeights)):
        return None
    return value_factors(known, weights, market, named.offsets, _words(part, market))


def compute_weights(dataset: MicroDataset, market: SurveyMarket) -> np.ndarray:
    """Weights of a dataset in one market, of the shape that its function returns.

    Raises
    ------
    RuntimeError
        When the function fails.
    DataError
        When weights have none of the possible shapes, are negative, missing, infinite, or all zero.
    """
    what, rows, J = _words(dataset, market), len(market.agents), len(market.products)
    factors = factorise_weights(dataset, market)
    if factors is not None:
        return np.multiply.outer(factors.agents[0], factors.choices[0])
    weights = _call(dataset.compute_weights, what, market)
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
    # some agents at a time, because second choices may be many
    several = max(1, _TOGETHER // max(1, int(np.prod(weights.shape[1:]))))
    some = [weights[first : first + several] for first in range(0, rows, several)]
    if not all(np.isfinite(part).all() for part in some):
        raise DataError(f"The {what} must be finite.")
    if not all((part >= 0).all() for part in some):
        raise DataError(f"The {what} must not be negative.")
    if not any(part.any() for part in some):
        raise DataError(f"The {what} are all zero. Use market_ids to say which markets the dataset is about.")
    return weights


def compute_values(part: MicroPart, market: SurveyMarket, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a part in one market, of the shape of its dataset's weights. They may be missing where these are zero.

    Raises
    ------
    RuntimeError
        When the function fails.
    DataError
        When values have another shape.
    """
    what, known = _words(part, market), part.compute_values
    if isinstance(known, MarketArrays):
        return known.at(market.market_id, shape, what)
    if isinstance(known, SurveyValues):
        return all_values(known, market.cells(_offsets(shape, market)), what)
    values = _call(known, what, market)
    if values.shape != shape:
        raise DataError(f"The {what} must have the shape {shape} of the dataset's weights, not {values.shape}.")
    return values


def weigh_values(
    part: MicroPart, market: SurveyMarket, weights: np.ndarray, values: np.ndarray, first: int
) -> np.ndarray:
    """Weights times values of some agents, from the `first` one on.

    Raises
    ------
    DataError
        When a value is missing where the weight is not zero.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        weighted = weights * values
    if np.isfinite(weighted).all():
        return weighted
    weighted = np.where(weights != 0, weights * np.where(weights != 0, values, 0.0), 0.0)
    bad = np.argwhere(~np.isfinite(weighted))
    if bad.size:
        what, where, known = _words(part, market), "", part.compute_values
        if isinstance(known, SurveyValues):
            index = (first + int(bad[0][0]), *map(int, bad[0][1:]))
            cells = market.cells(_offsets(weights.shape, market))
            where = f" They are not for {describe_cell(known, cells, index, what)}."
            if cells.first.reshape(-1)[index[1]] < 0:
                where += " For products alone, give given='purchase', or a dataset of buyers."
        raise DataError(f"The {what} must be finite where the dataset's weights are not zero.{where}")
    return weighted


def eliminated_groups(
    dataset: MicroDataset, product_ids: np.ndarray | None, rows: np.ndarray, market: SurveyMarket
) -> np.ndarray | None:
    """Codes (J,) of what is eliminated with each product of a market, None where that is the product alone.

    Raises
    ------
    ValueError
        When there are no such IDs.
    """
    known = dataset.compute_weights
    if isinstance(known, SurveyWeights) and known.without is not None:
        chosen = eliminated_ids(known, market.tables, _words(dataset, market))[market.product_rows]
        return np.unique([str(plain_value(value)) for value in chosen], return_inverse=True)[1].reshape(-1)
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
    """`ValueError` when a group that is eliminated is neither within a nest nor a union of nests of its market.

    `nests` (J, levels) are codes of products' nests at each level.
    """
    if groups is None or nests is None:
        return
    for code, level in itertools.product(np.unique(groups), nests.T):
        members = groups == code
        touched = np.unique(level[members])
        if touched.size > 1 and not members[np.isin(level, touched)].all():
            raise ValueError(
                f"The micro dataset '{dataset.name}' is invalid in market {plain_value(t)!r}: what is eliminated with "
                "a first choice must lie within one nesting group, or consist of whole nesting groups, at each level."
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


def _words(asked: MicroDataset | MicroPart, market: SurveyMarket) -> str:
    """What is computed, for messages."""
    where = f"in market {plain_value(market.market_id)!r}"
    if isinstance(asked, MicroDataset):
        return f"weights for micro dataset '{asked.name}' {where}"
    return f"values for micro part '{asked.name}' of micro dataset '{asked.dataset.name}' {where}"


def _offsets(shape: tuple[int, ...], market: SurveyMarket) -> tuple[int, ...]:
    return tuple(1 + len(market.products) - size for size in shape[1:])


def _call(function: Any, what: str, market: SurveyMarket) -> np.ndarray:
    """What a function returns for all agents, called for one chunk of them after the other."""
    t, products, agents = market.market_id, market.products, market.agents
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
