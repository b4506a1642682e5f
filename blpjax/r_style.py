"""A front end for users of R: one-string formulas, draws by name and the summary of the package BLPestimatoR.

After Brunner, Heiss, Romahn and Weiser (2017), "Reliable estimation of random coefficient logit demand models", whose
package is BLPestimatoR. Problems and results are those of the rest of blpjax.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from blpjax.exceptions import DataError
from blpjax.inputs.columns import check_present, read_market_ids
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.inputs.table_format import find_vector, read_table
from blpjax.problem.problem import Problem
from blpjax.problem.results import ProblemResults
from blpjax.reporting import frames

#: BLPestimatoR's names of integration methods: PyBLP's specification and its options.
_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlhs": ("mlhs", {}),
    "mc": ("monte_carlo", {}),
    "halton": ("halton", {"scramble": False}),
    "randhalton": ("halton", {"scramble": True}),
    "sggh": ("grid", {}),
    "sgnh": ("nested_grid", {}),
}
_RANDOM = ("mlhs", "mc", "randhalton")
_INTERCEPT = "(Intercept)"
_TABLE = "product_data"


class ThetaGuesses(NamedTuple):
    """Starting values of `Problem.solve`: sigma (K2, K2) and pi (K2, D), or None without demographics."""

    sigma: np.ndarray
    pi: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class EstimationSummary:
    """What BLPestimatoR prints of an estimation.

    Attributes
    ----------
    markets, products : numbers of markets, and of products in all markets.
    demographics : names of demographics.
    linear : one row for each linear coefficient, with columns `estimate`, `std_error`, `t_value` and `p_value`.
    random : the same for random coefficients: ``unobs_sd*x`` is the standard deviation of the taste for x, or the
        element of the Cholesky root in the column of y, ``unobs_sd:y*x``, and ``d*x`` its interaction with d.
    objective : GMM objective at the estimates.
    wald_statistic, wald_df, wald_p_value : test that all random coefficients are zero.
    j_statistic, j_df, j_p_value : Hansen's test of overidentifying restrictions; None when the weighting matrix is not
        an estimate of the efficient one (after one step), or there are as many parameters as moments.
    converged : whether optimisation converged. message : how it ended.
    integration : how shares are integrated. standard_errors : type of standard errors.
    """

    markets: int
    products: int
    demographics: tuple[str, ...]
    linear: pd.DataFrame
    random: pd.DataFrame
    objective: float
    wald_statistic: float
    wald_df: int
    wald_p_value: float
    j_statistic: float | None
    j_df: int | None
    j_p_value: float | None
    converged: bool
    message: str
    integration: str
    standard_errors: str

    def __str__(self) -> str:
        lines = [
            "Data information:",
            f"  {self.markets} market(s) with {self.products} products",
            f"  {len(self.linear)} linear coefficient(s)",
            f"  {len(self.random)} non-linear parameter(s) related to random coefficients",
            f"  {len(self.demographics)} demographic variable(s)",
            "",
            "Linear coefficients:",
            self.linear.to_string(),
        ]
        if len(self.random):
            test = _describe_test(self.wald_statistic, self.wald_df, self.wald_p_value)
            lines += ["", "Random coefficients:", self.random.to_string(), "", f"Wald test: {test}"]
        if self.j_statistic is not None:
            lines += ["", f"Hansen's J test: {_describe_test(self.j_statistic, self.j_df, self.j_p_value)}"]
        ended = "converged" if self.converged else "did NOT converge"
        lines += [
            "",
            "Computational details:",
            f"  The solver {ended} (objective {self.objective:.7g}): {self.message}",
            f"  Market shares: {self.integration}",
            f"  Standard errors: {self.standard_errors}",
        ]
        return "\n".join(lines)


def problem_from_formula(
    model: str,
    product_data: Any,
    market_identifier: str = "market_ids",
    product_identifier: str | None = None,
    *,
    price: str | None = None,
    group_structure: str | None = None,
    demographic_draws: Mapping[str, Any] | None = None,
    integration_method: str | Integration | None = None,
    integration_accuracy: int | None = None,
    integration_seed: int | None = None,
    integration_draws: Mapping[str, Any] | None = None,
    integration_weights: Any = None,
) -> Problem:
    r"""Build a problem from a formula in the manner of the R package BLPestimatoR.

    Parameters
    ----------
    model : str
        ``"share ~ linear | exogenous | random | instruments"``: the column of market shares; variables with linear
        coefficients; those of them, and others, that are exogenous; variables with random coefficients; excluded
        instruments. Parts are formulas of `Formulation`, which have an intercept unless they contain ``0 +``; a part
        ``0`` is empty. Powers are ``I(x^2)`` or ``I(x**2)``. Instruments of the problem are the columns of the second
        and the fourth part, each once.
    product_data : DataFrame, dict of arrays, or structured array
        Columns with the names that `Problem` knows, such as ``firm_ids``, keep their meaning.
    market_identifier, product_identifier : str
        The columns with IDs of markets and, optionally, products.
    price : str, optional
        The column with prices. By default it is the only variable in the linear and random parts that is not in the
        exogenous part. The problem calls it ``prices``.
    group_structure : str, optional
        The column with clusters, for ``se_type='clustered'``.
    demographic_draws : dict of tables, optional
        Draws of demographics by name. A table has a row for each market, with the column `market_identifier` and a
        column for each draw. Rows of other markets are not used.
    integration_method : str or Integration, optional
        ``'MLHS'``, ``'Halton'``, ``'randHalton'`` (scrambled), ``'MC'``, ``'sgGH'`` and ``'sgNH'`` (sparse grids), in
        upper or lower case. Draws are not those of R's generators. Halton sequences leave out their first 1,000 points,
        and go on from market to market.
    integration_accuracy : int, optional
        Number of draws in each market, or level of the sparse grid.
    integration_seed : int, optional
        Seed of the draws.
    integration_draws, integration_weights : dict of tables and sequence, optional
        Draws of tastes in place of those of a method, in tables like those of `demographic_draws`, for each random
        coefficient by name, ``'(Intercept)'`` for the constant; and their weights in each market, by default equal.

    Returns
    -------
    Problem
        Solve it with `solve`. One step, ``method='1s'``, with ``W=None`` is the estimator of BLPestimatoR.

    Raises
    ------
    ValueError
        When the formula is malformed, the price is not evident, or arguments on draws do not fit together.
    TypeError
        When an argument is of the wrong type.
    DataError
        When a table lacks columns or markets, or has repeated markets or values that are not finite numbers.

    Examples
    --------
    ::

        problem = blpjax.problem_from_formula(
            "share ~ price + sugar | sugar | 0 + price | 0 + iv1 + iv2",
            products,
            market_identifier="cdid",
            integration_method="MLHS",
            integration_accuracy=100,
            integration_seed=1,
        )
        results = problem.solve(sigma=1, method="1s")
        print(blpjax.estimation_summary(results))
    """
    columns = read_table(product_data, _TABLE)
    parsed = _parse(model, price)
    sources = {
        "market_ids": market_identifier,
        "prices": parsed.price,
        "shares": parsed.shares,
        "product_ids": product_identifier,
        "clustering_ids": group_structure,
    }
    products = _add_names(columns, sources)
    instruments = _instruments(parsed, products)
    products = {name: products[name] for name in products if not re.fullmatch(r"demand_instruments[0-9]*", name)}
    products["demand_instruments"] = instruments
    chosen = _read_method(integration_method, integration_accuracy, integration_seed)
    draws = _Draws(market_identifier, np.unique(read_market_ids(products, _TABLE)))
    if parsed.X2 is None:
        given = (demographic_draws, chosen, integration_draws, integration_weights)
        if any(value is not None for value in given):
            raise ValueError(f"The formula '{model}' has no random coefficients, so draws would not be used.")
        return Problem(parsed.X1, products, add_exogenous=False)
    labels = [parsed.original(label) for label in parsed.X2.build(products).labels]
    agents = _build_agents(labels, draws, chosen, integration_draws, integration_weights, demographic_draws or {})
    demographics = Formulation("0 + " + " + ".join(demographic_draws)) if demographic_draws else None
    return Problem((parsed.X1, parsed.X2), products, demographics, agents, chosen, add_exogenous=False)


def read_theta_guesses(problem: Problem, guesses: pd.DataFrame) -> ThetaGuesses:
    """Starting values of `Problem.solve` from a table with a row for each random coefficient.

    Parameters
    ----------
    problem : with random coefficients.
    guesses : index: names of random coefficients, with ``'(Intercept)'`` for the constant, and ``'prices'`` or the name
        in the formula for prices. Columns: ``'unobs_sd'``, standard deviations, and demographics. Missing values are
        parameters that stay zero; others must not be zero.

    Raises
    ------
    ValueError
        When rows or columns are not those of the problem, are repeated, or values are zero or infinite.
    """
    formulation = problem.product_formulations[1]
    if formulation is None:
        raise ValueError("The problem has no random coefficients.")
    rows = [_INTERCEPT if label == "1" else label for label in formulation.build(problem.product_table.data).labels]
    columns = ["unobs_sd", *problem.agents_in_economy.demographic_labels]
    data, prices = problem.product_table.data, problem.product_table.prices
    aliases = [name for name in map(str, guesses.index) if name in data and np.array_equal(data[name], prices)]
    guesses = guesses.rename(index=dict.fromkeys(aliases, "prices"))
    for found, wanted, what in ((guesses.index, rows, "rows"), (guesses.columns, columns, "columns")):
        if sorted(map(str, found)) != sorted(wanted):
            raise ValueError(f"guesses: {what} must be {', '.join(wanted)}, not {', '.join(map(str, found))}.")
    values = guesses.loc[rows, columns].to_numpy(float)
    if np.isinf(values).any() or (values == 0).any():
        raise ValueError("guesses: values must be finite and not zero. Use NaN for parameters that are fixed at zero.")
    values = np.nan_to_num(values)
    return ThetaGuesses(np.diag(values[:, 0]), values[:, 1:] if len(columns) > 1 else None)


def estimation_summary(results: ProblemResults) -> EstimationSummary:
    """Linear and random coefficients with standard errors, the objective, and tests, as BLPestimatoR prints them.

    `ProblemResults.estimates` has confidence intervals too.

    Parameters
    ----------
    results : of the last GMM step; others have no standard errors, and tests of NaN.
    """
    problem, layout = results.problem.data, results.layout
    table = results.estimates()
    K = layout.P - len(layout.beta) - len(layout.gamma)
    restrictions = np.eye(K, len(table))
    wald = results.run_wald_test(results.parameters[:K], restrictions) if K else 0.0
    moments = len(results.moments)
    tested = results.step > 1 and moments > len(table)
    J, J_df = (results.run_hansen_test(), moments - len(table)) if tested else (None, None)
    return EstimationSummary(
        markets=problem.T,
        products=problem.N,
        demographics=tuple(results.pi_labels),
        linear=_tabulate(
            [*results.beta_labels, *results.gamma_labels],
            np.concatenate([results.beta, results.gamma]),
            np.concatenate([results.beta_se, results.gamma_se]),
        ),
        random=_tabulate(_random_labels(results), table["estimate"].iloc[:K], table["se"].iloc[:K]),
        objective=float(results.objective),
        wald_statistic=wald,
        wald_df=K,
        wald_p_value=float(chdtrc(K, wald)) if K else 1.0,
        j_statistic=J,
        j_df=J_df,
        j_p_value=None if J is None else float(chdtrc(J_df, J)),
        converged=bool(results.cumulative_converged),
        message=results.message,
        integration=_describe_integration(problem),
        standard_errors=results.se_type,
    )


@dataclasses.dataclass(frozen=True)
class _Model:
    """A one-string formula. In its parts, which may be empty, prices are called `prices`."""

    shares: str
    price: str
    X1: Formulation
    exogenous: Formulation | None
    X2: Formulation | None
    excluded: Formulation | None

    def original(self, label: str) -> str:
        """A label in the names of the user."""
        return _INTERCEPT if label == "1" else _rename(label, "prices", self.price)


def _parse(model: str, price: str | None) -> _Model:
    if not isinstance(model, str):
        raise TypeError(f"model must be a string, not {type(model).__name__}.")
    sides = model.split("~")
    parts = [part.strip().replace("^", "**") for part in sides[-1].split("|")]
    if len(sides) != 2 or len(parts) != 4 or not sides[0].strip().isidentifier():
        raise ValueError(
            f"The formula '{model}' must be 'share ~ linear | exogenous | random | instruments', where a part 0 is "
            "empty."
        )
    if price is None:
        linear, exogenous = (_formulate(part) for part in parts[:2])
        names = set() if linear is None else set(linear.names)
        names -= set() if exogenous is None else exogenous.names
        if len(names) != 1:
            raise ValueError(
                f"price must name the column with prices, because in '{model}' the linear variables that are not "
                f"exogenous are {', '.join(sorted(names)) or 'none'}."
            )
        (price,) = names
    X1, exogenous, X2, excluded = (_formulate(_rename(part, price, "prices")) for part in parts)
    if X1 is None:
        raise ValueError(f"The formula '{model}' has no linear coefficients.")
    return _Model(sides[0].strip(), price, X1, exogenous, X2, excluded)


def _formulate(part: str) -> Formulation | None:
    return None if part in ("", "0", "-1", "- 1") else Formulation(part)


def _rename(text: str, old: str, new: str) -> str:
    """Replace a variable in a formula or label."""
    return re.sub(rf"(?<![\w.]){re.escape(old)}(?![\w.(])", new, text)


def _add_names(columns: Mapping[str, np.ndarray], sources: Mapping[str, str | None]) -> dict[str, np.ndarray]:
    """A table in which columns are under the names of `Problem`, too."""
    named = dict(columns)
    for name, source in sources.items():
        if source is None or source == name:
            continue
        if name in columns:
            raise DataError(f"{_TABLE}: there is a column '{name}' beside '{source}', which takes that name. Drop one.")
        named[name] = find_vector(columns, source, _TABLE, f"the argument or formula with {name}")
    return named


def _instruments(model: _Model, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Columns of the exogenous part and excluded instruments, each once."""
    found: dict[str, np.ndarray] = {}
    for formulation in (model.exogenous, model.excluded):
        if formulation is not None:
            design = formulation.build(columns, _TABLE)
            found = dict(zip(design.labels, design.values.T, strict=True)) | found
    if not found:
        raise ValueError("There are no instruments: the exogenous part and that of instruments are both empty.")
    return np.column_stack(list(found.values()))


def _read_method(method: str | Integration | None, accuracy: int | None, seed: int | None) -> Integration | None:
    if method is None or isinstance(method, Integration):
        if accuracy is not None or seed is not None:
            raise ValueError("integration_accuracy and integration_seed need the name of an integration_method.")
        return method
    if not isinstance(method, str):
        raise TypeError(f"integration_method must be a name or an Integration, not {method!r}.")
    if method.lower() not in _METHODS:
        raise ValueError(
            f"integration_method must be MLHS, MC, Halton, randHalton, sgGH or sgNH, not {method!r}. Other rules can "
            "be given as an Integration."
        )
    if accuracy is None:
        raise ValueError(f"integration_method='{method}' needs integration_accuracy: a number of draws, or a level.")
    specification, options = _METHODS[method.lower()]
    if seed is not None and method.lower() not in _RANDOM:
        raise ValueError(f"integration_method='{method}' draws nothing, so integration_seed would not be used.")
    return Integration(specification, accuracy, options | ({} if seed is None else {"seed": seed}))


@dataclasses.dataclass(frozen=True, eq=False)
class _Draws:
    """Reads tables with a row for each market in the column `market_identifier`, for markets (T,) in order."""

    market_identifier: str
    market_ids: np.ndarray

    def read(self, data: Any, table: str) -> np.ndarray:
        """(T, draws) values of the other columns."""
        columns = read_table(data, table)
        ids = find_vector(columns, self.market_identifier, table, "market_identifier")
        rows: dict[object, int] = {}
        for row, market in enumerate(ids.tolist()):
            if market in rows:
                raise DataError(f"{table}: market {market!r} has more than one row.")
            rows[market] = row
        lacking = [market for market in self.market_ids.tolist() if market not in rows]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise DataError(f"{table}: there is no row for market {lacking[0]!r}{more} of {_TABLE}.")
        order = [rows[market] for market in self.market_ids.tolist()]
        values = []
        for name in columns:
            if name == self.market_identifier:
                continue
            column = find_vector(columns, name, table, "an integration draw")
            check_present(column, name, table, ids)
            if column.dtype.kind not in "biuf":
                raise DataError(f"{table}: column '{name}' does not hold numbers.")
            values.append(column[order].astype(float))
        if not values:
            raise DataError(f"{table}: there are no draws, only the column '{self.market_identifier}'.")
        return np.column_stack(values)


def _build_agents(
    labels: Sequence[str],
    draws: _Draws,
    integration: Integration | None,
    taste_draws: Mapping[str, Any] | None,
    weights: Any,
    demographic_draws: Mapping[str, Any],
) -> dict[str, np.ndarray] | None:
    """Agent data: nodes and weights unless there is an integration, and demographics."""
    if (integration is None) == (taste_draws is None):
        raise ValueError("Random coefficients need either an integration_method or integration_draws, and not both.")
    columns: dict[str, np.ndarray] = {}
    if taste_draws is None:
        assert integration is not None
        if weights is not None:
            raise ValueError("integration_weights belong to integration_draws, which are not given.")
        size = integration.build(len(labels)).weights.size
    else:
        if set(taste_draws) != set(labels):
            raise ValueError(
                f"integration_draws must be for the random coefficients {', '.join(labels)}, not "
                f"{', '.join(map(str, taste_draws)) or 'none'}."
            )
        nodes = {label: draws.read(taste_draws[label], f"integration_draws['{label}']") for label in labels}
        size = nodes[labels[0]].shape[1]
        for label, values in nodes.items():
            _check_size(f"integration_draws['{label}']", values, size)
        columns["nodes"] = np.column_stack([values.reshape(-1) for values in nodes.values()])
        columns["weights"] = np.tile(_read_weights(weights, size), draws.market_ids.size)
    for name, table in demographic_draws.items():
        if not str(name).isidentifier():
            raise ValueError(f"demographic_draws: {name!r} cannot be a variable. Use letters, digits and underscores.")
        values = draws.read(table, f"demographic_draws['{name}']")
        _check_size(f"demographic_draws['{name}']", values, size)
        columns[name] = values.reshape(-1)
    return {"market_ids": np.repeat(draws.market_ids, size), **columns} if columns else None


def _check_size(table: str, values: np.ndarray, size: int) -> None:
    if values.shape[1] != size:
        raise DataError(
            f"{table}: there are {values.shape[1]} draws in each market, but the other tables or the "
            f"integration have {size}."
        )


def _read_weights(weights: Any, size: int) -> np.ndarray:
    if weights is None:
        return np.full(size, 1 / size)
    values = np.array(weights, float).reshape(-1)
    if values.size != size or not np.isfinite(values).all():
        raise ValueError(f"integration_weights must be {size} finite numbers, one for each draw.")
    return values


def _random_labels(results: ProblemResults) -> list[str]:
    X2 = [_INTERCEPT if label == "1" else label for label in results.sigma_labels]
    labels = [f"unobs_sd*{X2[k]}" if k == m else f"unobs_sd:{X2[m]}*{X2[k]}" for k, m in results.layout.sigma]
    labels += [f"{results.pi_labels[d]}*{X2[k]}" for k, d in results.layout.pi]
    nonlinear = results.layout.P - len(results.layout.beta) - len(results.layout.gamma)
    return labels + results.theta_labels[len(labels) : nonlinear]


def _tabulate(labels: Sequence[str], estimates: Any, errors: Any) -> pd.DataFrame:
    table = frames.estimates_frame([_INTERCEPT if label == "1" else label for label in labels], estimates, errors)
    columns = {"parameter": "", "estimate": "estimate", "se": "std_error", "t": "t_value", "p_value": "p_value"}
    return table.rename(columns=columns)[list(columns.values())].set_index("").rename_axis(None)


def _describe_test(statistic: float, df: int | None, p_value: float | None) -> str:
    return f"{statistic:.4f} on {df} DF, p-value: {p_value:.6g}"


def _describe_integration(problem: Any) -> str:
    if problem.K2 == 0:
        return "plain logit, nothing is integrated"
    if problem.integration is None:
        return f"{problem.I} given draws in all markets"
    specification, size = problem.integration.specification, problem.integration.size
    return f"{specification} of size {size}, {problem.I} nodes in all markets"
