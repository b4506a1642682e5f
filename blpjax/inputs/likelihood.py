"""Consumer-level choices for likelihoods: what users say, and the rows of their survey, checked."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from blpjax import options
from blpjax.exceptions import DataError
from blpjax.inputs.columns import list_rows, read_market_ids
from blpjax.inputs.demographics import build_demographics
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.inputs.table_format import find_vector, is_missing, plain_value, read_table
from blpjax.inputs.tables import ProductTable, read_agents

#: Estimators, with what their inner and outer problems minimise.
ESTIMATORS = {
    "cler": "the micro and macro log likelihoods and the exogeneity restrictions, jointly",
    "cheap": "the log likelihoods in mean utilities, and these with the exogeneity restrictions in theta",
    "mdle": "the micro and macro log likelihoods, jointly",
    "share-constrained": "the micro log likelihood where simulated shares equal those of everybody else",
}

#: Integration whose nodes are the same for everybody.
_RULES = ("product", "nested_product", "grid", "nested_grid")

#: Columns that other surveys have, and why they cannot be used.
_REFUSED = {
    "weights": "respondents are a random sample of their market, and each counts once",
    "second_choice_indices": "likelihoods are those of first choices. Second choices can be micro moments",
    "nodes": "unobserved tastes are integrated over: use integration",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MicroLikelihood:
    r"""Likelihood of a survey and of market shares, with exogeneity restrictions: an objective beside GMM.

    The conformant likelihood with exogeneity restrictions (CLER) of Grieco, Murry, Pinkse and Sagl (2023, Conformant
    and efficient estimation of discrete choice demand models). Theta and mean utilities delta minimise

    .. math:: -\sum_{i} \log \int \pi_{y_i}(z_i, \nu) d\Phi(\nu)
        - \sum_m (N_m - S_m) \sum_j \tilde s_{jm} \log \frac{\pi_{jm}}{\tilde s_{jm}}
        + \frac{1}{2 \sigma^2} \min_\beta (\delta - X_1 \beta)' P_Z (\delta - X_1 \beta)

    over S_m respondents i of market m, out of a population of N_m, with demographics z and choices y; over products and
    the outside good j; and with instruments Z, those of the problem. Here ``s~`` are shares among those whom the survey
    has not asked, ``N s - n`` over ``N - S`` with n respondents who chose j, and ``pi_jm`` are shares of the problem's
    agents. Where shares are precise, the estimator tends to GMM with the same instruments and the micro likelihood.

    Parameters
    ----------
    market_sizes : number, mapping or str
        Population N_m of every market, of each by its ID, or the name of a column of the product data that has it.
    micro_data : DataFrame, dict of arrays, or structured array, optional
        Rows are respondents, a random sample of the population of their market. `market_ids`, the variables of the
        agent formulation, and `choice_indices`, zero for the outside good, one for the first product of the market in
        the order of the product table, and so on; or in their place `product_ids`, missing for the outside good.
        Optional: `availability0`, `availability1`, ..., as in agent data. Markets may lack respondents; without a table
        there are none at all.
    integration : Integration, optional
        Nodes and weights for the unobserved tastes of each respondent, such as ``Integration("product", 7)``. Rules are
        the same for all, draws are those of each respondent. Required where sigma has columns that are not zero.
    estimator : {'cler', 'cheap', 'mdle', 'share-constrained'}
        ``'cler'`` minimises all terms jointly. ``'cheap'`` finds mean utilities market by market, without the
        restrictions, and theta with them. ``'mdle'``, maximum likelihood, has no restrictions. ``'share-constrained'``
        is maximum likelihood of the survey alone where simulated shares equal ``s~``. Beta is estimated afterwards by
        two-stage least squares from mean utilities.
    sigma2 : float
        Variance of structural errors that weights the restrictions, not used by the last two.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or value. Tables are checked by `Problem.solve`.
    """

    market_sizes: Any
    micro_data: Any = None
    integration: Integration | None = None
    estimator: str = "cler"
    sigma2: float = 1.0

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {', '.join(map(repr, ESTIMATORS))}, not {self.estimator!r}.")
        if self.integration is not None and not isinstance(self.integration, Integration):
            raise TypeError(f"integration must be None or an Integration, not {type(self.integration).__name__}.")
        if not _is_number(self.sigma2) or not 0 < self.sigma2 < np.inf:
            raise ValueError(f"sigma2 must be a positive number, not {self.sigma2!r}.")
        sizes = self.market_sizes
        if not _is_number(sizes) and not isinstance(sizes, str | Mapping):
            raise TypeError(
                "market_sizes must be a number, a mapping from market IDs to numbers, or the name of a column of "
                f"product_data, not {type(sizes).__name__}."
            )
        if _is_number(sizes) and not 0 < sizes < np.inf:
            raise ValueError(f"market_sizes must be positive, not {sizes!r}.")

    @property
    def restricts(self) -> bool:
        """Whether the objective has the exogeneity restrictions."""
        return self.estimator in ("cler", "cheap")

    def __repr__(self) -> str:
        rows = 0 if self.micro_data is None else len(next(iter(read_table(self.micro_data, "micro_data").values())))
        nodes = "" if self.integration is None else f" {self.integration!r}"
        return f"Configured to minimize {ESTIMATORS[self.estimator]} ('{self.estimator}'), {rows} respondents.{nodes}"


class SurveyRows(NamedTuple):
    """Checked rows of n respondents.

    Attributes
    ----------
    market_ids : (n,). places : (n,) what each has chosen, zero for the outside good.
    demographics : (n, D), or (n, D, max J). availability : (n, max J), or None.
    nodes, weights : (n, R, k) and (n, R) for the k columns of sigma that are not zero, or one row for all.
    """

    market_ids: np.ndarray
    places: np.ndarray
    demographics: np.ndarray
    availability: np.ndarray | None
    nodes: np.ndarray
    weights: np.ndarray


def read_market_sizes(sizes: Any, products: ProductTable, ids: np.ndarray) -> np.ndarray:
    """Populations (T,) of the markets in the sorted order of their IDs.

    Raises
    ------
    DataError
        When a market has none, a column differs within a market, or something is no positive number.
    """
    if _is_number(sizes):
        return np.full(ids.size, float(sizes))
    if isinstance(sizes, str):
        values = find_vector(products.data, sizes, "product_data", "market_sizes")
        known: dict[Any, Any] = {}
        for row, (market, value) in enumerate(zip(products.market_ids, values, strict=True)):
            if known.setdefault(plain_value(market), value) != value:
                raise DataError(
                    f"product_data: column '{sizes}' must be the same for all products of a market, but in market "
                    f"{plain_value(market)!r} row {row} has {plain_value(value)!r} and not "
                    f"{plain_value(known[plain_value(market)])!r}."
                )
    else:
        known = {plain_value(key): value for key, value in sizes.items()}
    found = np.zeros(ids.size)
    for t, market in enumerate(ids):
        value = known.get(plain_value(market))
        if value is None:
            raise DataError(f"market_sizes lack market {plain_value(market)!r}.")
        if not _is_number(value) or not 0 < value < np.inf:
            raise DataError(f"market_sizes must be positive numbers, but that of {plain_value(market)!r} is {value!r}.")
        found[t] = float(value)
    return found


def read_survey(
    likelihood: MicroLikelihood,
    products: ProductTable,
    formulation: Formulation | None,
    labels: Collection[str],
    K2: int,
    columns: int,
) -> SurveyRows | None:
    """Read and check the rows of a survey; None without any.

    Parameters
    ----------
    formulation, labels : demographics of the problem's agents, and what their columns are called.
    K2, columns : numbers of columns of X2, and of those of sigma that are not zero.

    Raises
    ------
    DataError, KeyError, ValueError, TypeError
        When something cannot be used, naming column, market and row.
    """
    integration, table = likelihood.integration, "micro_data"
    if columns and integration is None and likelihood.micro_data is not None:
        raise ValueError(
            "MicroLikelihood needs an integration over the unobserved tastes of respondents, such as "
            "Integration('product', 7), because sigma is not zero."
        )
    if not columns and integration is not None:
        raise ValueError("There is no unobserved heterogeneity over which to integrate: leave out integration.")
    if likelihood.micro_data is None:
        return None
    found = read_table(likelihood.micro_data, table)
    for name, reason in _REFUSED.items():
        if any(column == name or (name == "nodes" and column.rstrip("0123456789") == name) for column in found):
            raise DataError(f"{table}: column '{name}' cannot be used, because {reason}.")
    market_ids = read_market_ids(found, table, "every survey")
    unknown = np.flatnonzero(~np.isin(market_ids, products.market_ids))
    if unknown.size:
        raise DataError(
            f"{table}: column 'market_ids' has markets that product_data lack in {list_rows(unknown, market_ids)}."
        )
    places = _read_places(found, products, market_ids)
    here = products.market_ids[np.isin(products.market_ids, market_ids)]
    n = market_ids.size
    given = {**found, "weights": np.ones(n), "nodes": np.zeros((n, min(1, K2)))}
    try:
        names = None if formulation is None else formulation.names
        agents = read_agents(given, None, K2, here, names, np.inf)
        demographics = np.zeros((n, 0))
        if formulation is not None:
            built = build_demographics(formulation, agents.data, here)
            if built.labels != tuple(labels):
                raise DataError(f"demographics are {list(built.labels)}, not {list(labels)}.")
            demographics = built.values
    except DataError as error:
        raise DataError(str(error).replace("agent_data", table)) from None
    _check_available(places, agents.availability, market_ids)
    return SurveyRows(market_ids, places, demographics, agents.availability, *_nodes(integration, columns, n))


def _nodes(integration: Integration | None, columns: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    if integration is None:
        return np.zeros((1, 1, 0)), np.ones((1, 1))
    if integration.specification in _RULES:
        one = integration.build(columns)
        return one.nodes[None], one.weights[None]
    built = integration.build_many(columns, np.arange(n))
    return built.nodes.reshape(n, -1, columns), built.weights.reshape(n, -1)


def _read_places(columns: Mapping[str, np.ndarray], products: ProductTable, market_ids: np.ndarray) -> np.ndarray:
    """What respondents have chosen, counted from one among the products of their market."""
    table = "micro_data"
    given = [name for name in ("choice_indices", "product_ids") if name in columns]
    if len(given) != 1:
        raise DataError(
            f"{table}: what respondents have chosen must be in a column 'choice_indices', zero for the outside good, "
            "or in 'product_ids', missing for the outside good" + (", not in both." if given else ". There is neither.")
        )
    values = find_vector(columns, given[0], table, "every survey")
    order: dict[Any, int] = {}
    place = np.zeros(products.market_ids.size, int)
    for row, market in enumerate(products.market_ids.tolist()):
        order[market] = place[row] = order.get(market, 0) + 1
    if given[0] == "choice_indices":
        numeric = values.dtype.kind in "biuf"
        numbers = values.astype(float) if numeric else np.full(values.size, np.nan)
        most = np.array([order[market] for market in market_ids.tolist()])
        bad = np.flatnonzero(~((numbers >= 0) & (numbers <= most) & (numbers == np.round(numbers))))
        if bad.size:
            raise DataError(
                f"{table}: column 'choice_indices' must be integers from zero, the outside good, to the number of "
                f"products of the market, but is not in {list_rows(bad, market_ids, values)}."
            )
        return numbers.astype(int)
    ids = products.product_ids
    if ids is None or ids.ndim > 1:
        raise DataError(
            f"{table}: column 'product_ids' needs one column of product_ids in product_data. Use 'choice_indices'."
        )
    known: dict[tuple[Any, Any], int] = {}
    for market, name, number in zip(products.market_ids.tolist(), ids.tolist(), place.tolist(), strict=True):
        if (market, name) in known:
            raise DataError(
                f"product_data: column 'product_ids' has {name!r} twice in market {market!r}, so that respondents' "
                "choices are not known. Use 'choice_indices'."
            )
        known[market, name] = number
    outside = is_missing(values)
    found = np.array(
        [
            0 if none else known.get((market, name), -1)
            for market, name, none in zip(market_ids.tolist(), values.tolist(), outside, strict=True)
        ]
    )
    bad = np.flatnonzero(found < 0)
    if bad.size:
        raise DataError(
            f"{table}: column 'product_ids' has products that the market lacks in {list_rows(bad, market_ids, values)}."
        )
    return found


def _check_available(places: np.ndarray, availability: np.ndarray | None, market_ids: np.ndarray) -> None:
    if availability is None:
        return
    inside = np.flatnonzero(places > 0)
    bad = inside[~(availability[inside, places[inside] - 1] > 0)]
    if bad.size:
        raise DataError(f"micro_data: respondents have chosen what is not available in {list_rows(bad, market_ids)}.")


def check_agents(weights: np.ndarray, market_ids: np.ndarray) -> None:
    """`DataError` when weights of agents do not sum to one in a market: shares would not be probabilities."""
    ids, codes = np.unique(market_ids, return_inverse=True)
    sums = np.bincount(codes.reshape(-1), weights, ids.size)
    bad = np.flatnonzero(~(np.abs(sums - 1) <= max(options.weights_tol, 1e-9)))
    if bad.size:
        raise DataError(
            f"agent_data: column 'weights' must sum to one in every market for a likelihood, but sums to "
            f"{sums[bad[0]]:.8g} in market {plain_value(ids[bad[0]])!r}. Micro moments need no such weights."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool | np.bool_)
