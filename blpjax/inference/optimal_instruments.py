"""Feasible optimal instruments: expected Jacobians of structural errors, and problems that they are instruments of.

Chamberlain (1987), Amemiya (1977); Conlon and Gortmaker (2020), section 3.3.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from blpjax import options
from blpjax.economy.characteristics import Characteristics
from blpjax.economy.loops import worst_loops
from blpjax.estimation.estimates import Estimates
from blpjax.exceptions import (
    GenericNumericalError,
    IdentificationWarning,
    Status,
    raise_for_status,
    succeeded,
    warn_user,
)
from blpjax.inputs.arguments import check_choice, read_draws, read_vector
from blpjax.inputs.expressions import variable_names
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.table_format import read_table
from blpjax.inputs.terms import INTERCEPT, Term
from blpjax.iteration import Iteration
from blpjax.kernels.arrays import AnyArray, namespace
from blpjax.machine.forks import check_process
from blpjax.machine.pickling import Picklable
from blpjax.model.expectations import Averages, Setting, average_realizations
from blpjax.model.parameters import ParameterLayout
from blpjax.objective.problem_data import ProblemData
from blpjax.outputs.query import read_iteration
from blpjax.reporting import report
from blpjax.reporting.tables import Part, Shown, one_row_table
from blpjax.values import read_flag, read_seed


@dataclasses.dataclass(eq=False, repr=False)
class OptimalInstrumentResults(Shown, Picklable):
    """Optimal instruments for theta, from `ProblemResults.compute_optimal_instruments`.

    Attributes may be replaced before `to_problem` is called, for example by instruments in other units. P is the number
    of elements of theta. Rows of a market are NaN where no draw of structural errors had equilibrium
    prices.

    Attributes
    ----------
    problem_results : the results that they were computed from.
    demand_instruments, supply_instruments : (N, P) instruments, the expected Jacobians times the inverse covariance
        matrix; the second is (N, 0) without a supply side.
    inverse_covariance_matrix : (2, 2) inverse of the sample covariance matrix of xi and omega; (1, 1) inverse variance
        of xi without a supply side.
    expected_xi_by_theta_jacobian, expected_omega_by_theta_jacobian : (N, P) expected Jacobians given the exogenous
        variables, neither residualised nor projected; the second is NaN without a supply side.
    expected_prices, expected_shares : (N, 1) averages of prices and shares over draws.
    computation_time : seconds.
    draws : number of draws of structural errors.
    fp_converged, fp_iterations, contraction_evaluations : (T, draws) whether equilibrium prices were found in a market,
        in the order of `Problem.unique_market_ids`, and how. Without a search, all have converged after no iterations.
    supply_shifter_formulation, demand_shifter_formulation : what is in X3 but not in X1, and in X1 but not in X3,
        without prices, shares and intercepts. None when there is nothing, or no supply side.
    """

    problem_results: Estimates
    demand_instruments: np.ndarray
    supply_instruments: np.ndarray
    inverse_covariance_matrix: np.ndarray
    expected_xi_by_theta_jacobian: np.ndarray
    expected_omega_by_theta_jacobian: np.ndarray
    expected_prices: np.ndarray
    expected_shares: np.ndarray
    computation_time: float
    draws: int
    fp_converged: np.ndarray
    fp_iterations: np.ndarray
    contraction_evaluations: np.ndarray
    supply_shifter_formulation: Formulation | None
    demand_shifter_formulation: Formulation | None

    def to_problem(
        self,
        supply_shifter_formulation: Formulation | None = None,
        demand_shifter_formulation: Formulation | None = None,
        product_data: Any = None,
        drop_indices: Sequence[int] | None = None,
    ) -> Any:
        """The same problem with these as excluded instruments.

        Excluded demand-side instruments are, in this order, `demand_instruments` without dropped columns, columns of X1
        that contain prices and whose coefficients were concentrated out, at expected prices, and supply shifters.
        Excluded supply-side instruments are `supply_instruments` without the same columns, columns of X3 that contain
        shares and whose coefficients were concentrated out, at expected shares, and demand shifters. As in other
        problems the exogenous columns of X1 and X3 follow and fixed effects are absorbed. (PyBLP adds columns of X3
        that contain shares to the instruments here, although they are endogenous.)

        Parameters
        ----------
        supply_shifter_formulation : supply shifters, by default `supply_shifter_formulation`. Intercepts are left out;
            ``Formulation('1')`` stands for no shifters.
        demand_shifter_formulation : likewise for demand shifters.
        product_data : N rows with the variables of these formulations, by default the problem's product data.
        drop_indices : indices of columns to drop from both instruments, by default those of coefficients in theta on
            characteristics that contain neither prices nor shares.

        Returns
        -------
        OptimalInstrumentProblem

        Raises
        ------
        ValueError, TypeError
            For formulations without a supply side, with fixed effects or with prices or shares, and for indices of
            columns that there are not.
        DataError
            When shifters cannot be built; the message names column, market and row.
        ConvergenceError
            When instruments are not finite; the message names markets.

        Warns
        -----
        IdentificationWarning
            When instruments are collinear, for example because shifters are combinations of X1.
        """
        problem = self.problem_results.problem
        shifters = read_shifters(
            (supply_shifter_formulation, demand_shifter_formulation),
            (self.supply_shifter_formulation, self.demand_shifter_formulation),
            self._has_supply,
        )
        model = self.problem_results.model.on_host()
        dropped = read_dropped(drop_indices, model.layout, model.characteristics)
        self._check_numbers()
        table = problem.data.product_table.data
        if product_data is not None:
            table = read_table(product_data, "product_data")
            _check_rows(table, len(self.expected_prices))
        found = excluded_instruments(
            (model.layout, model.characteristics),
            (self.demand_instruments, self.supply_instruments if self._has_supply else None),
            ~dropped,
            self.expected_prices[:, 0],
            self.expected_shares[:, 0],
            build_shifters(shifters, table),
        )
        demand, supply = (np.zeros((len(self.expected_prices), 0)) if Z is None else np.asarray(Z) for Z in found)
        return problem.replace_instruments(demand, supply)

    def to_dict(self, attributes: Sequence[str] | None = None) -> dict[str, Any]:
        """Attributes by name; by default all but `problem_results` and formulations."""
        return {name: getattr(self, name) for name in (ATTRIBUTES if attributes is None else attributes)}

    def _parts(self) -> list[Part]:
        columns = {
            ("Computation", "Time"): report.format_seconds(self.computation_time),
            ("Error Term", "Draws"): str(self.draws),
        }
        if self.fp_iterations.any() or self.contraction_evaluations.any():
            columns["Fixed Point", "Iterations"] = str(self.fp_iterations.sum())
            columns["Contraction", "Evaluations"] = str(self.contraction_evaluations.sum())
        return [one_row_table(columns, "Optimal Instrument Results Summary")]

    @property
    def _has_supply(self) -> bool:
        return self.problem_results.omega.shape[1] > 0

    def _check_numbers(self) -> None:
        for name in ("demand_instruments", "supply_instruments"):
            shape = np.shape(getattr(self, name))
            if len(shape) != 2 or shape[0] != len(self.expected_prices):
                raise ValueError(f"{name} must be a matrix with {len(self.expected_prices)} rows, not {shape}.")
        values = np.hstack([self.demand_instruments, self.supply_instruments, self.expected_shares])
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            data = self.problem_results.problem.data
            found = set(data.product_table.market_ids[bad].tolist())
            markets = data.unique_market_ids
            status = [Status.NOT_FINITE if market in found else Status.CONVERGED for market in markets.tolist()]
            raise_for_status(np.array(status), markets, "The computation of optimal instruments")


#: What `OptimalInstrumentResults.to_dict` returns by default.
ATTRIBUTES = (
    *("demand_instruments", "supply_instruments", "inverse_covariance_matrix"),
    *("expected_xi_by_theta_jacobian", "expected_omega_by_theta_jacobian", "expected_prices", "expected_shares"),
    *("computation_time", "draws", "fp_converged", "fp_iterations", "contraction_evaluations"),
)


def compute_optimal_instruments(
    results: Estimates,
    method: str = "approximate",
    draws: int = 1,
    seed: int | None = None,
    expected_prices: Any = None,
    iteration: Iteration | None = None,
    constant_costs: bool = True,
) -> OptimalInstrumentResults:
    """Optimal instruments for theta; `ProblemResults.compute_optimal_instruments` documents the arguments."""
    began = time.perf_counter()
    check_process()
    options.output("Computing optimal instruments for theta ...")
    check_choice("method", method, ("approximate", "normal", "empirical"))
    count, seed = read_draws(draws), read_seed("seed", seed)
    constant_costs = read_flag("constant_costs", constant_costs)
    data, errors = results.problem.data, _read_errors(results)
    _warn_of_covariance_moments(data)
    if results.moment_types:
        warn_user(
            "Optimal instruments are those of moments in levels: zero for phi, and not optimal for innovations.",
            IdentificationWarning,
        )
    prices, chosen = _read_prices(results, expected_prices, iteration)
    total = 1 if method == "approximate" else count
    bases = np.hstack([results.delta, results.tilde_costs]) - errors
    sample = (bases + drawn for drawn in _draw_errors(errors, method, total, seed))
    known = None if prices is None else jax.device_put(prices)
    setting = Setting(results.model, jax.device_put(results.parameters[:, 0]), known, chosen, constant_costs)
    averages = average_realizations(setting, sample, total)
    _warn_of_failures(averages, data.unique_market_ids)

    weighed = weigh_jacobians(errors, averages.xi_jacobian, averages.omega_jacobian)
    X1, _, X3 = data.product_formulations
    found = OptimalInstrumentResults(
        problem_results=results,
        demand_instruments=weighed.demand,
        supply_instruments=np.zeros((len(errors), 0)) if weighed.supply is None else weighed.supply,
        inverse_covariance_matrix=weighed.inverse,
        expected_xi_by_theta_jacobian=averages.xi_jacobian,
        expected_omega_by_theta_jacobian=averages.omega_jacobian,
        expected_prices=averages.prices[:, None],
        expected_shares=averages.shares[:, None],
        computation_time=time.perf_counter() - began,
        draws=total,
        fp_converged=succeeded(averages.status),
        fp_iterations=averages.iterations,
        contraction_evaluations=averages.evaluations,
        supply_shifter_formulation=find_shifters(X3, X1),
        demand_shifter_formulation=find_shifters(X1, X3),
    )
    options.output(f"Computed optimal instruments after {report.format_seconds(found.computation_time)}.")
    options.output("")
    options.output(found)
    return found


class WeighedJacobians(NamedTuple):
    """Instruments of demand and supply (N, P), None without a supply side, and the inverse covariance matrix."""

    demand: Any
    supply: Any
    inverse: Any


def weigh_jacobians(errors: Any, xi_jacobian: Any, omega_jacobian: Any, xp: Any = np) -> WeighedJacobians:
    """``Sigma^{-1} E[d (xi, omega) / d theta]``, with Sigma the sample covariances of errors (N, 1 or 2).

    Arrays are those of the module `xp`, NumPy or `jax.numpy`.
    """
    if errors.shape[1] == 1:
        inverse = 1 / xp.var(errors).reshape(1, 1)
        return WeighedJacobians(inverse * xi_jacobian, None, inverse)
    inverse = xp.linalg.inv(xp.cov(errors, rowvar=False))
    jacobians = xp.stack([xi_jacobian, omega_jacobian], axis=1)
    instruments = xp.einsum("ab,nbp->nap", inverse, jacobians)
    return WeighedJacobians(instruments[:, 0], instruments[:, 1], inverse)


def excluded_instruments(
    form: tuple[ParameterLayout, Characteristics],
    optimal: tuple[Any, Any],
    kept: np.ndarray,
    prices: Any,
    shares: Any,
    shifters: tuple[Any, Any],
) -> tuple[AnyArray, AnyArray | None]:
    """Excluded instruments of demand and supply, None without a supply side: see `OptimalInstrumentResults.to_problem`.

    Parameters
    ----------
    form : which coefficients are concentrated out, and the formulas of X1 and X3.
    optimal : (N, P) optimal instruments of demand and supply, None without a supply side.
    kept : (P,) which of their columns are kept.
    prices, shares : (N,) expected prices and shares, arrays of JAX or, with formulas whose variables are, of NumPy.
    shifters : matrices with N rows of supply shifters, which belong to demand's instruments, and of demand shifters;
        None for none.
    """
    layout, known = form
    X1, X3 = known.evaluate({"prices": prices})[0], known.evaluate_X3({"shares": shares})
    endogenous = (
        _endogenous(X1, known.X1_columns, layout.concentrated_beta, "prices"),
        _endogenous(X3, known.X3_columns, layout.concentrated_gamma, "shares"),
    )
    columns = np.flatnonzero(kept)
    demand, supply = (
        None
        if Z is None
        else namespace(Z, expected).hstack([Z[:, columns], expected, *([] if others is None else [others])])
        for Z, expected, others in zip(optimal, endogenous, shifters, strict=True)
    )
    assert demand is not None
    return demand, supply


def expects_equilibrium_prices(characteristics: Characteristics, supply: bool, iteration: Iteration | None) -> bool:
    """Whether expected prices are those of equilibria unless they are given, and not fitted values of a regression."""
    return supply and (iteration is not None or not any(c.depends_on("shares") for c in characteristics.X3_columns))


def read_price_iteration(iteration: Any, supply: bool) -> Iteration | None:
    """How equilibrium prices are found, None for the default; `ValueError` where there are none without costs."""
    chosen = None if iteration is None else read_iteration(iteration)
    if chosen is not None and not supply:
        raise ValueError("iteration needs a supply side: without costs there are no equilibrium prices.")
    return chosen


def fit_prices(Z: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Fitted values of regressions of prices, (N,) or each column of (N, R), on instruments Z (N, M)."""
    lengths = np.linalg.norm(Z, axis=0)
    scaled = Z / np.where(lengths > 0, lengths, 1.0)
    return scaled @ np.linalg.lstsq(scaled, prices)[0]


def read_dropped(
    indices: Sequence[int] | None, layout: ParameterLayout, characteristics: Characteristics
) -> np.ndarray:
    """Which of the P columns of optimal instruments are dropped; `ValueError` or `TypeError` for other indices.

    By default these are columns of coefficients in theta on characteristics without prices and shares.
    """
    P = layout.P
    dropped = np.zeros(P, bool)
    if indices is None:
        for name, columns in (("beta", characteristics.X1_columns), ("gamma", characteristics.X3_columns)):
            exogenous = [not {"prices", "shares"} & columns[k].names for (k,) in getattr(layout, name)]
            dropped[layout.part(name)] = exogenous
        return dropped
    message = f"drop_indices must be a sequence of integers from 0 to {P - 1}, not {indices!r}."
    if not isinstance(indices, Sequence | np.ndarray) or isinstance(indices, str):
        raise TypeError(message)
    if any(isinstance(i, bool) or not isinstance(i, int | np.integer) for i in indices):
        raise TypeError(message)
    if any(not -P <= i < P for i in indices):
        raise ValueError(message)
    dropped[list(indices)] = True
    return dropped


def _draw_errors(errors: np.ndarray, method: str, draws: int, seed: int | None) -> Iterator[np.ndarray]:
    """Draws of structural errors (N, 1 or 2), those of PyBLP for a seed."""
    state = np.random.RandomState(seed)
    N, sides = errors.shape
    for _ in range(draws):
        if method == "approximate":
            yield np.zeros_like(errors)
        elif method == "empirical":
            yield errors[state.choice(N, N)]
        elif sides == 1:
            yield state.normal(0, np.std(errors), N)[:, None]
        else:
            yield state.multivariate_normal([0, 0], np.cov(errors, rowvar=False), N)


def _read_errors(results: Estimates) -> np.ndarray:
    """Xi and, with a supply side, omega in the columns of an (N, 1 or 2) matrix."""
    errors = np.hstack([results.xi, results.omega])
    if not np.isfinite(errors).all():
        raise GenericNumericalError(
            "Structural errors of these results are not finite, so there are no optimal instruments: the results' "
            "`message` says which markets failed."
        )
    return errors


def _read_prices(
    results: Estimates, expected_prices: Any, iteration: Any
) -> tuple[np.ndarray | None, Iteration | None]:
    """Expected prices (N,), or None and how to find equilibrium prices."""
    model, supply = results.model, results.omega.shape[1] > 0
    chosen = read_price_iteration(iteration, supply)
    if expected_prices is not None:
        if chosen is not None:
            raise ValueError("Give either expected_prices or iteration, which computes them, not both.")
        index = results.problem.data.product_table.index
        return read_vector("expected_prices", expected_prices, model.delta.size, index), None
    if expects_equilibrium_prices(model.characteristics, supply, chosen):
        return None, chosen
    return _fitted_prices(results.problem.data), None


def _fitted_prices(data: ProblemData) -> np.ndarray:
    """Fitted values (N,) of the regression of prices on demand-side instruments and fixed effects."""
    prices = data.product_table.prices
    residuals = data.residualize_demand(prices[:, None])[:, 0]
    return fit_prices(np.asarray(data.model_data.demand.instruments), residuals) + prices - residuals


def _warn_of_covariance_moments(data: ProblemData) -> None:
    if data.model_data.covariance is not None:
        warn_user(
            "Optimal instruments are those for demand and supply moments alone: covariance_instruments stay what they "
            "are.",
            IdentificationWarning,
        )


def _warn_of_failures(averages: Averages, market_ids: np.ndarray) -> None:
    """Name the markets in which some draw has no equilibrium."""
    worst = worst_loops(averages, axis=1)
    lost = [market for market, ok in zip(market_ids.tolist(), succeeded(averages.status), strict=True) if not ok.any()]
    where = f" (all draws in {len(lost)} markets, where instruments are NaN)" if lost else ""
    action = (
        f"Averages leave out draws of structural errors{where}, because the search for equilibrium prices, or "
        "derivatives at them,"
    )
    raise_for_status(worst.status, market_ids, action, worst.residuals, warn=True)


def find_shifters(formulation: Formulation | None, other: Formulation | None) -> Formulation | None:
    """Exogenous terms of a formulation, X1 or X3, that the other one has not, sorted; None without any."""
    if formulation is None or other is None:
        return None
    exogenous = [[term for term in f.terms if _is_shifter(term)] for f in (formulation, other)]
    names = sorted(str(term) for term in exogenous[0] if term not in exogenous[1])
    return Formulation(f"{' + '.join(names)} - 1") if names else None


def _is_shifter(term: Term) -> bool:
    names = {name for factor in term.factors for name in variable_names(factor)}
    return term != INTERCEPT and not names & {"prices", "shares"}


class Shifters(NamedTuple):
    """Shifters of supply, which are instruments of demand, and of demand; None for none."""

    supply: Formulation | None
    demand: Formulation | None


def read_shifters(given: tuple[Any, Any], default: tuple[Any, Any], supply: bool) -> Shifters:
    """Shifters without intercepts; `ValueError` or `TypeError` for formulations that are none, or without supply."""
    names = ("supply_shifter_formulation", "demand_shifter_formulation")
    return Shifters(*(_read_shifters(*one, supply) for one in zip(names, given, default, strict=True)))


def build_shifters(shifters: Shifters, table: Mapping[str, np.ndarray]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Matrices with N rows; `DataError` where variables are missing or not finite."""
    supply, demand = (None if formulation is None else formulation.build(table).values for formulation in shifters)
    return supply, demand


def _read_shifters(name: str, given: Any, default: Formulation | None, supply: bool) -> Formulation | None:
    if given is None:
        return default
    if not supply:
        raise TypeError(f"{name} must be None, because there is no supply side.")
    if not isinstance(given, Formulation):
        raise TypeError(f"{name} must be a Formulation or None, not {type(given).__name__}.")
    if given.absorb is not None:
        raise ValueError(
            f"{name} must not absorb fixed effects: those of the problem are absorbed from all instruments."
        )
    if endogenous := sorted(given.names & {"prices", "shares"}):
        raise ValueError(f"{name} must not contain {' or '.join(map(repr, endogenous))}: shifters are exogenous.")
    return Formulation(f"{given.formula} - 1") if given.names else None


def _endogenous(X: AnyArray, columns: Sequence[Any], concentrated: Sequence[int], name: str) -> AnyArray:
    """Columns of X that contain a variable and whose coefficients are concentrated out."""
    return X[:, np.array([k for k in concentrated if columns[k].depends_on(name)], int)]


def _check_rows(table: Mapping[str, np.ndarray], size: int) -> None:
    rows = len(next(iter(table.values()))) if table else 0
    if rows != size:
        raise ValueError(f"product_data must have {size} rows, those of the problem, not {rows}.")
