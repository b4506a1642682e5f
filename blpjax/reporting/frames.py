"""Tidy pandas tables from plain arrays and labels.

Everything here is told what to tabulate: nothing is computed beyond t statistics, p-values and confidence limits.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


def estimates_frame(labels: Sequence[str], estimates: ArrayLike, standard_errors: ArrayLike) -> pd.DataFrame:
    """Tabulate estimates with t statistics, two-sided p-values and 95% confidence limits from the normal distribution.

    Parameters
    ----------
    labels : (P,) names of the parameters.
    estimates : (P,) or (P, 1).
    standard_errors : (P,) or (P, 1); NaN for fixed parameters, whose statistics are then NaN as well.

    Returns
    -------
    DataFrame
        P rows with columns parameter, estimate, se, t, p_value, lower and upper.

    Raises
    ------
    ValueError
        If the sizes differ.

    """
    from scipy.special import ndtr, ndtri  # a slow import that only tables need

    names = [str(label) for label in labels]
    values, errors = (np.asarray(array, dtype=float).ravel() for array in (estimates, standard_errors))
    if not len(names) == values.size == errors.size:
        raise ValueError(
            f"There are {len(names)} labels, {values.size} estimates and {errors.size} standard errors: "
            "give one of each per parameter."
        )
    with np.errstate(divide="ignore", invalid="ignore"):  # a zero standard error gives an infinite or undefined t
        t = values / errors
    reach = ndtri(0.975) * errors
    return pd.DataFrame(
        {
            "parameter": np.array(names, dtype=object),
            "estimate": values,
            "se": errors,
            "t": t,
            "p_value": 2 * ndtr(-np.abs(t)),
            "lower": values - reach,
            "upper": values + reach,
        }
    )


def matrices_frame(
    market_ids: ArrayLike, product_labels: ArrayLike | None, matrices: ArrayLike, value_name: str
) -> pd.DataFrame:
    """Tabulate a matrix per market, for example elasticities, with one row per pair of products in a market.

    Parameters
    ----------
    market_ids : (N,) or (N, 1) market of each product, in any order.
    product_labels : (N,) or (N, 1) product IDs, or None for positions within markets, counted from 0.
    matrices : (N, max_J) rows of the markets' matrices, whose columns are the market's products in the order of their
        rows, then padding. For one market, (J, J), and only its products in the other arguments.
    value_name : name of the column of values.

    Returns
    -------
    DataFrame
        Columns market_ids, row_product, column_product and `value_name`; rows in the order of the products, no padding.

    Raises
    ------
    ValueError
        If the matrices do not have a row for each product, or too few columns.

    """
    rows = _positions(market_ids, product_labels, "row_product")
    return _long_frame(rows, rows.rename(columns={"row_product": "column_product"}), matrices, value_name)


def vector_frame(
    market_ids: ArrayLike, product_labels: ArrayLike | None, vector: ArrayLike, value_name: str
) -> pd.DataFrame:
    """Tabulate a vector over products, for example shares: columns market_ids, product and `value_name`.

    Parameters
    ----------
    market_ids : (N,) or (N, 1) market of each product, in any order.
    product_labels : (N,) or (N, 1) product IDs, or None for positions within markets, counted from 0.
    vector : (N,) or (N, 1) values.
    value_name : name of the column of values.

    Raises
    ------
    ValueError
        If there is not one value for each product.

    """
    frame = _positions(market_ids, product_labels, "product").drop(columns="position")
    values = np.asarray(vector)
    if values.shape not in [(len(frame),), (len(frame), 1)]:
        raise ValueError(f"{value_name} has shape {values.shape}, but there are {len(frame)} products.")
    return frame.assign(**{value_name: values.ravel()})


def probabilities_frame(
    market_ids: ArrayLike,
    product_labels: ArrayLike | None,
    agent_market_ids: ArrayLike | None,
    agent_labels: ArrayLike | None,
    probabilities: ArrayLike,
    value_name: str = "probability",
) -> pd.DataFrame:
    """Tabulate choice probabilities with one row per product and agent in a market.

    Parameters
    ----------
    market_ids : (N,) or (N, 1) market of each product, in any order.
    product_labels : (N,) or (N, 1) product IDs, or None for positions within markets, counted from 0.
    agent_market_ids : (I,) or (I, 1) market of each agent, in any order; None for one agent in each market (logit).
        Agents of markets without products here are left out.
    agent_labels : (I,) or (I, 1) agent IDs, or None for positions within markets, counted from 0.
    probabilities : (N, max_I), whose columns are the market's agents in the order of their rows, then padding.
    value_name : name of the column of values.

    Returns
    -------
    DataFrame
        Columns market_ids, product, agent and `value_name`; rows in the order of the products, without padding.

    Raises
    ------
    ValueError
        If there is not a row for each product, or there are too few columns, or a market without agents.

    """
    rows = _positions(market_ids, product_labels, "product")
    agents = rows["market_ids"].unique() if agent_market_ids is None else agent_market_ids
    return _long_frame(rows, _positions(agents, agent_labels, "agent"), probabilities, value_name)


def cubes_frame(
    market_ids: ArrayLike, product_labels: ArrayLike | None, cubes: ArrayLike, value_name: str
) -> pd.DataFrame:
    """Tabulate a three-dimensional array per market, for example second derivatives.

    Arguments are those of `matrices_frame`, but for `cubes` (N, max_J, max_J), or (J, J, J) for one market.

    Returns
    -------
    DataFrame
        Columns market_ids, product, first_product, second_product and `value_name`, for the three indices in turn.

    """
    values, rows = np.asarray(cubes), _positions(market_ids, product_labels, "product")
    layers = []
    for position in range(rows["position"].max() + 1):
        with_layer = rows[rows["position"] == position][["market_ids", "product"]]
        known = rows[rows["market_ids"].isin(with_layer["market_ids"])]
        layer = _long_frame(
            known.reset_index(drop=True),
            known.rename(columns={"product": "first_product"}),
            values[known.index.to_numpy(), :, position],
            value_name,
        )
        layers.append(layer.merge(with_layer.rename(columns={"product": "second_product"}), on="market_ids"))
    columns = ["market_ids", "product", "first_product", "second_product", value_name]
    return pd.concat(layers, ignore_index=True)[columns]


def markets_frame(market_ids: ArrayLike, values: ArrayLike, value_name: str) -> pd.DataFrame:
    """Tabulate values (T,) or (T, 1) by market: columns market_ids and `value_name`."""
    return pd.DataFrame({"market_ids": np.asarray(market_ids).ravel(), value_name: np.asarray(values).ravel()})


def agents_frame(
    market_ids: ArrayLike,
    agent_market_ids: ArrayLike | None,
    agent_labels: ArrayLike | None,
    values: ArrayLike,
    value_name: str,
) -> pd.DataFrame:
    """Tabulate values by agent, for example consumer surpluses: columns market_ids, agent and `value_name`.

    Parameters
    ----------
    market_ids : (T,) markets of the rows of `values`.
    agent_market_ids, agent_labels : as in `probabilities_frame`.
    values : (T, max_I), whose columns are the market's agents in the order of their rows, then padding.
    value_name : name of the column of values.

    """
    rows = _positions(market_ids, None, "product")
    agents = rows["market_ids"] if agent_market_ids is None else agent_market_ids
    frame = _long_frame(rows, _positions(agents, agent_labels, "agent"), values, value_name)
    return frame.drop(columns="product")


def with_confidence_limits(frame: pd.DataFrame, value_name: str, standard_errors: ArrayLike) -> pd.DataFrame:
    """Add columns standard_error, lower and upper: the limits of 95% confidence intervals."""
    from scipy.special import ndtri

    errors = np.asarray(standard_errors)
    reach = ndtri(0.975) * errors
    values = frame[value_name]
    return frame.assign(standard_error=errors, lower=values - reach, upper=values + reach)


def _positions(market_ids: ArrayLike, labels: ArrayLike | None, name: str) -> pd.DataFrame:
    """Return markets, labels (in the column `name`) and positions within markets of products or agents."""
    ids = np.asarray(market_ids).ravel()
    positions = pd.Series(ids).groupby(ids, sort=False).cumcount().to_numpy()
    given = positions if labels is None else np.asarray(labels).ravel()
    if given.size != ids.size:
        raise ValueError(f"There are {given.size} labels but {ids.size} market IDs.")
    return pd.DataFrame({"market_ids": ids, name: given, "position": positions})


def _long_frame(rows: pd.DataFrame, columns: pd.DataFrame, matrices: ArrayLike, value_name: str) -> pd.DataFrame:
    """Pair each row with the elements of its market in `columns`, whose positions say where their values are."""
    values = np.asarray(matrices)
    lacking = ~rows["market_ids"].isin(columns["market_ids"])
    if lacking.any():
        raise ValueError(f"Market {rows['market_ids'][lacking].iloc[0]!r} has products but no {columns.columns[1]}.")
    columns = columns[columns["market_ids"].isin(rows["market_ids"])]
    width = columns["position"].max() + 1 if len(columns) else 0
    if values.ndim != 2 or len(values) != len(rows) or values.shape[1] < width:
        raise ValueError(
            f"{value_name} has shape {values.shape}, but there are {len(rows)} products and up to {width} columns in a "
            "market."
        )
    numbered = rows.assign(position=np.arange(len(rows))).rename(columns={"position": "row"})
    pairs = numbered.merge(columns, on="market_ids").sort_values(["row", "position"], ignore_index=True)
    pairs[value_name] = values[pairs.pop("row"), pairs.pop("position")]
    return pairs
