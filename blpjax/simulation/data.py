"""Data and parameters of simulations: what is not given is drawn, in PyBLP's order, and everything is checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from blpjax import options
from blpjax.economy.buckets import Economy
from blpjax.exceptions import DataError
from blpjax.inputs import records
from blpjax.inputs.arguments import read_vector
from blpjax.inputs.columns import find_columns, read_market_ids
from blpjax.inputs.design import DesignMatrix
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.instruments import build_blp_instruments
from blpjax.inputs.integration import Integration
from blpjax.inputs.table_format import read_table
from blpjax.inputs.tables import assign_node_columns, read_agents
from blpjax.machine.placement import on_device
from blpjax.model.formulated import Formulated
from blpjax.model.model import Model
from blpjax.model.parameters import BLOCKS, Coefficients, ParameterLayout
from blpjax.model.starting_values import build_parameters

Columns = dict[str, np.ndarray]

#: Fields that are never drawn. Those of IDs and ownership may have several columns.
_NAMES = ("market_ids", "firm_ids", "nesting_ids", "subnesting_ids", "product_ids", "clustering_ids")
_PRODUCT_IDS = (*_NAMES, "lag_indices", "ownership")
_PRODUCT_FIELDS = (*_PRODUCT_IDS, "shares", "prices")
_AGENT_FIELDS = ("market_ids", "agent_ids", "nodes", "weights", "availability")


@dataclasses.dataclass(frozen=True, eq=False)
class Primitives(Formulated):
    """What a simulation is made of, before prices and shares are replaced: `Formulated` with true parameters.

    Attributes
    ----------
    agent_columns : agent data as a table with demographics, None without X2.
    coefficients : true parameters.
    xi : (N,) unobserved demand shocks. omega : (N,) those of costs, None without X3.
    """

    agent_columns: Columns | None
    coefficients: Coefficients
    xi: np.ndarray
    omega: np.ndarray | None

    @property
    def delta(self) -> np.ndarray:
        """(N,) mean utilities ``X1 beta + xi`` at the simulated prices."""
        return self.X1 @ np.asarray(self.coefficients.beta) + self.xi

    @property
    def tilde_costs(self) -> np.ndarray | None:
        """(N,) marginal costs or their logarithms, ``X3 gamma + omega`` at the simulated shares; None without X3."""
        if self.omega is None:
            return None
        return self.X3 @ np.asarray(self.coefficients.gamma) + self.omega

    def layout_in(self, economy: Economy) -> ParameterLayout:
        """Which node columns go with which columns of sigma. Theta has no elements: all parameters are known."""
        nonzero = (np.asarray(self.coefficients.sigma) != 0).any(axis=0)
        nodes = assign_node_columns(economy.buckets[0].nodes.shape[2], nonzero)
        nothing: Any = dict.fromkeys((*BLOCKS, "concentrated_beta", "concentrated_gamma"), ())
        columns = {"sigma_columns": tuple(np.flatnonzero(nonzero).tolist()), "node_columns": tuple(nodes.tolist())}
        return ParameterLayout(**nothing, **columns, form=self.form)

    def layout_of_all(self) -> ParameterLayout:
        """The same where all parameters that are not zero are elements of theta."""
        blocks = {name: np.array(getattr(self.coefficients, name)) for name in BLOCKS}
        found: Any = {name: tuple(map(tuple, np.argwhere(values).tolist())) for name, values in blocks.items()}
        return self.layout_in(self.economy)._replace(**found)

    def model(self, delta: np.ndarray) -> Model:
        """The model at the simulated variables with mean utilities (N,)."""
        return Model(
            economy=self.economy,
            characteristics=self.characteristics,
            coefficients=Coefficients(*jax.device_put(dataclasses.astuple(self.coefficients))),
            delta=on_device(np.asarray(delta, float)),
            layout=self.layout_in(self.economy),
            ownership=self.ownership,
            costs_type=self.costs_type,
            conduct=self.conduct_data,
        )

    def coefficient(self, matrix: str, name: str) -> float:
        """The coefficient on a variable that is one column of X1 or X3 (`matrix`) and in no other column.

        Raises
        ------
        ValueError
            When the variable is none of those, or its coefficient is zero.
        """
        designs = dict(zip(("X1", "X2", "X3"), self.designs, strict=True))
        argument, own = f"{matrix}_name", designs[matrix]
        assert own is not None
        plain = [k for k, column in enumerate(own.columns) if column.label == name and column.inputs == (name,)]
        if name in ("prices", "shares"):
            raise ValueError(f"{argument} must be an exogenous variable, not {name!r}.")
        if not plain:
            raise ValueError(
                f"{argument} must be a variable that {matrix} has as a column of its own, not {name!r}. Columns of "
                f"{matrix} are {', '.join(own.labels)}."
            )
        others = {
            f"'{column.label}' in {which}"
            for which, design in designs.items()
            for k, column in enumerate(() if design is None else design.columns)
            if column.depends_on(name) and not (which == matrix and k == plain[0])
        }
        if others:
            raise ValueError(
                f"{argument} must be in one column of {matrix} only, but {name!r} is also in "
                f"{', '.join(sorted(others))}."
            )
        values = self.coefficients.beta if matrix == "X1" else self.coefficients.gamma
        value = float(np.asarray(values)[plain[0]])
        if value == 0:
            raise ValueError(f"{argument}={name!r} has a coefficient of zero, so no values of it explain anything.")
        return value

    def product_data(self, changes: Mapping[str, np.ndarray]) -> np.recarray:
        """Product data as a structured array of N rows, with some variables replaced."""
        table = self.product_table
        fields = {name: getattr(table, name) for name in _PRODUCT_FIELDS}
        if table.lag_indices is None:
            fields["lag_indices"] = np.zeros((table.shares.size, 0), np.int64)
        if table.subnesting_ids is None:  # a field only where there are some: others are those of PyBLP
            del fields["subnesting_ids"]
        if table.ownership is None:
            fields["ownership"] = np.zeros((table.shares.size, 0))
        ids = {column for name in _PRODUCT_IDS for column in _columns_of(table.data, name, "product_data")}
        variables = {name: values for name, values in table.data.items() if name not in {*fields, *ids}}
        fields |= {name: records.as_variable(values) for name, values in variables.items()}
        return records.structure({**fields, **changes}, table.shares.size)

    def agent_data(self) -> np.recarray | None:
        """Agent data as a structured array of I rows; None without X2."""
        known = self.agent_columns
        if known is None:
            return None
        rows = known["weights"].size
        absent: dict[str, np.ndarray | None] = {"agent_ids": None, "availability": np.zeros((rows, 0))}
        fields = {name: known[name] if name in known else absent[name] for name in _AGENT_FIELDS}
        fields |= {name: records.as_variable(values) for name, values in known.items() if name not in fields}
        return records.structure(fields, rows)


class CompletedProducts(NamedTuple):
    """Columns that a simulation uses, and the names of those that were drawn."""

    columns: Columns
    drawn: tuple[str, ...]


def complete_products(
    data: Any,
    formulations: Sequence[Formulation | None],
    generator: np.random.RandomState,
    others: Sequence[str] = (),
) -> CompletedProducts:
    """Columns of product data that are used; shares, prices and variables of formulas are drawn where they are missing.

    Shares are uniform on (0, 1 / J), others on (0, 1). They are drawn in the order shares, prices, variables of X1, X2
    and X3, each sorted by name, so that a seed gives the draws of PyBLP. `others` are columns that are never drawn.

    Raises
    ------
    DataError
        When there are no market IDs, or a variable has numbered columns only.
    """
    table = "product_data"
    given = read_table(data, table)
    market_ids = read_market_ids(given, table, "every simulation")
    _, codes, sizes = np.unique(market_ids, return_inverse=True, return_counts=True)
    N = market_ids.size
    columns = {name: given[name] for field in _PRODUCT_IDS for name in _columns_of(given, field, table)}
    columns |= {name: given[name] for name in others if name in given and name not in ("shares", "prices")}
    drawn = []

    def add(name: str, scale: Any = 1.0) -> None:
        if name in given and given[name].size:
            columns[name] = given[name]
            return
        if f"{name}0" in given:
            raise DataError(
                f"{table}: there is a column '{name}0' but none called '{name}', which formulas use. Rename it, or "
                f"leave it out to have '{name}' drawn."
            )
        columns[name] = generator.uniform(size=N) / scale
        drawn.append(name)

    add("shares", sizes[codes.reshape(-1)])
    add("prices")
    for formulation in formulations:
        for name in sorted(set() if formulation is None else formulation.names - {*columns, *_PRODUCT_FIELDS}):
            add(name)
    return CompletedProducts(columns, tuple(drawn))


def complete_agents(
    formulation: Formulation | None,
    data: Any,
    integration: Integration | None,
    K2: int,
    market_ids: np.ndarray,
    generator: np.random.RandomState,
) -> Columns | None:
    """Columns of agent data that are used, with nodes and weights built and missing demographics drawn uniformly.

    Rows are agents. `market_ids` (N,) are those of products. Without X2 there are no agents, and nothing may be given.

    Raises
    ------
    DataError, ValueError, TypeError
        When agents cannot be used; see `read_agents`.
    """
    tol = options.weights_tol
    if K2 == 0:
        read_agents(data, integration, K2, market_ids, None if formulation is None else formulation.names, tol)
        return None
    given = None if data is None else read_table(data, "agent_data")
    names = [] if formulation is None else sorted(formulation.names - set(_AGENT_FIELDS))
    known = {name for name in names if given is not None and (name in given or f"{name}0" in given)}
    agents = read_agents(given, integration, K2, market_ids, known or None, tol)
    columns = {"market_ids": agents.market_ids, "nodes": agents.nodes, "weights": agents.weights}
    if agents.agent_ids is not None:
        columns["agent_ids"] = agents.agent_ids
    if agents.availability is not None:
        columns["availability"] = agents.availability
    for name in names:
        # demographics that are specific to products have numbered columns
        if name in known:
            sources = [name] if name in agents.data else find_columns(agents.data, name, "agent_data")
            columns |= {column: agents.data[column][agents.rows] for column in sources}
        else:
            columns[name] = generator.uniform(size=agents.weights.size)
    return columns


def read_coefficients(parameters: Mapping[str, Any], known: Formulated) -> Coefficients:
    """True parameters as arrays, for `parameters` by name.

    Raises
    ------
    ValueError
        When one is missing, superfluous, of the wrong shape or not finite.
    DataError
        When there are fewer columns of nodes than columns of Sigma that are not all zero.
    """
    for name, size in (("beta", known.K1), ("gamma", known.K3)):
        if size and parameters[name] is None:
            raise ValueError(f"{name} must be given: an array of {size} true parameters.")
    # a negative diagonal of sigma is as good as a positive one
    sigma = parameters["sigma"]
    if sigma is not None and np.ndim(sigma) == 2 and np.triu(np.asarray(sigma), 1).any():
        raise ValueError(
            "sigma must be lower-triangular: it is the Cholesky root of the covariance matrix of tastes, but has "
            "elements above its diagonal."
        )
    found = build_parameters(
        **parameters,
        bounds={},
        labels=known.labels,
        n_node_columns=known.agent_table.nodes.shape[1],
        bounded=False,
        form=known.form,
        conduct_bounds=tuple(known.conduct_parameters.values()),
    )
    if found.layout.concentrated_beta or found.layout.concentrated_gamma:
        raise ValueError("beta and gamma must have no missing elements: a simulation needs all true parameters.")
    return found.start


class Errors(NamedTuple):
    """Structural errors: xi (N,), and omega (N,) where there is a supply side."""

    xi: np.ndarray
    omega: np.ndarray | None


class Lagged(NamedTuple):
    """Rows (N,) of lags, None without any, and phi (S, S), how structural errors follow from their lags."""

    indices: np.ndarray | None
    phi: np.ndarray


def read_errors(
    xi: Any,
    omega: Any,
    moments: Mapping[str, Any],
    N: int,
    supply: bool,
    generator: np.random.RandomState,
    lagged: Lagged,
) -> Errors:
    """Structural errors as given, or drawn from a bivariate normal distribution with mean zero.

    `moments` are `xi_variance`, `omega_variance` and `correlation`, with lags those of innovations.

    Raises
    ------
    ValueError
        When errors that are needed are missing, are of the wrong size or not finite, or would not be used, and when
        moments are not those of a distribution, or would not be used.
    """
    if omega is not None and not supply:
        raise ValueError("omega would not be used, because X3 was not formulated. Leave it out.")
    if xi is None and (omega is not None or not supply):
        raise ValueError("xi must be given when X3 is not formulated or omega is given.")
    if omega is None and supply and xi is not None:
        raise ValueError("omega must be given when X3 is formulated and xi is given.")
    if xi is not None:
        unused = [name for name, value in moments.items() if value != _MOMENTS[name]]
        if unused:
            raise ValueError(f"{' and '.join(unused)} would not be used, because xi is given. Leave them out.")
        return Errors(read_vector("xi", xi, N), None if omega is None else read_vector("omega", omega, N))
    variances = np.array([moments["xi_variance"], moments["omega_variance"]], float)
    correlation = float(moments["correlation"])
    if not (np.isfinite(variances).all() and (variances >= 0).all() and -1 <= correlation <= 1):
        raise ValueError(
            "xi_variance and omega_variance must be non-negative and correlation between -1 and 1, but they are "
            f"{variances[0]:g}, {variances[1]:g} and {correlation:g}."
        )
    covariance = correlation * np.sqrt(variances.prod())
    matrix = np.array([[variances[0], covariance], [covariance, variances[1]]])
    draws = generator.multivariate_normal([0, 0], matrix, N, check_valid="ignore")
    if lagged.indices is not None:
        draws = _accumulate(draws, matrix, lagged.indices, lagged.phi)
    return Errors(draws[:, 0], draws[:, 1])


def _accumulate(innovations: np.ndarray, covariances: np.ndarray, lags: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Errors (N, 2) that follow from lags and innovations, in initial periods with the stationary distribution.

    Raises
    ------
    ValueError
        When there is no such distribution, or innovations are collinear.
    """
    from scipy import linalg  # a slow import that only lags need

    radius = np.abs(np.linalg.eigvals(phi)).max()
    if radius > 1 + max(options.stable_atol, options.stable_rtol * radius):
        raise ValueError(
            f"phi must be stable, with eigenvalues below one in absolute value, but the largest is {radius:g}: errors "
            "of initial periods would have no distribution."
        )
    stationary = linalg.solve_discrete_lyapunov(phi, covariances)
    try:
        roots = [linalg.cholesky(matrix, lower=True) for matrix in (stationary, covariances)]
    except linalg.LinAlgError as error:
        raise ValueError(
            "With phi, variances must be positive and correlation between -1 and 1, exclusive, and phi must not have "
            "an eigenvalue of one, so that errors of initial periods can be drawn."
        ) from error
    errors, rows = innovations.copy(), np.arange(len(lags))
    initial = lags == rows
    errors[initial] = errors[initial] @ (roots[0] @ linalg.solve_triangular(roots[1], np.eye(2), lower=True)).T
    followers = np.full(len(lags), -1)
    followers[lags[~initial]] = rows[~initial]
    now = followers[initial]
    while (now := now[now >= 0]).size:  # one period of all products after the other
        errors[now] += errors[lags[now]] @ phi.T
        now = followers[now]
    return errors


_MOMENTS = {"xi_variance": 1, "omega_variance": 1, "correlation": 0.9}


def basic_instruments(primitives: Primitives, columns: Columns) -> Columns:
    """Excluded instruments for `columns` of product data: sums over other products, and shifters of the other side.

    Sums are those of `build_blp_instruments` for all variables in columns of X1 without prices (demand) and in columns
    of X3 without shares (supply), and for ones where numbers of products vary between markets. Variables that appear on
    one side only are instruments of the other side. Constant columns are dropped.
    """
    X1, _, X3 = primitives.designs
    demand = _exogenous_names(X1)
    supply = _exogenous_names(X3)
    instruments = {"demand_instruments": _side(primitives, columns, demand, supply - demand)}
    if X3 is not None:
        instruments["supply_instruments"] = _side(primitives, columns, supply, demand - supply)
    return {name: matrix for name, matrix in instruments.items() if matrix.shape[1]}


def _side(primitives: Primitives, columns: Columns, own: set[str], shifters: set[str]) -> np.ndarray:
    N = primitives.N
    # without firms there are no rivals: sums are over all other products
    data = columns if "firm_ids" in columns else {**columns, "firm_ids": np.zeros(N)}
    varying = len({rows.size for rows in primitives.market_index.rows}) > 1
    parts = [np.zeros((N, 0))]
    if own or varying:
        terms = ["1" if varying else "0", *sorted(own)]
        parts.append(build_blp_instruments(Formulation(" + ".join(terms)), data))
    if shifters:
        parts.append(Formulation(" + ".join(["0", *sorted(shifters)])).build(data).values)
    matrix = np.hstack(parts)
    largest = np.abs(matrix).max(axis=0, initial=0.0)
    return np.ascontiguousarray(matrix[:, np.ptp(matrix, axis=0) > 1e-12 * largest])


def _exogenous_names(design: DesignMatrix | None) -> set[str]:
    if design is None:
        return set()
    exogenous = [column for column in design.columns if not column.names & {"prices", "shares"}]
    return {name for column in exogenous for name in column.names}


def _columns_of(columns: Mapping[str, np.ndarray], field: str, table: str) -> list[str]:
    """Names of the columns of a field that have elements: itself, or numbered ones."""
    # another column, such as an older 'product_ids2', may well stand beside IDs
    found = [field] if field in columns and field != "ownership" else find_columns(columns, field, table)
    return [name for name in found if columns[name].size]
