"""Simulation: data that are consistent with true parameters, for counterfactuals and Monte Carlo studies."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from blpjax import options
from blpjax.economy.conduct import columns_read
from blpjax.exceptions import (
    ConvergenceError,
    NonpositiveSyntheticCostsError,
    Status,
    SyntheticDeltaConvergenceError,
    SyntheticPricesConvergenceError,
    raise_for_status,
    succeeded,
)
from blpjax.inputs import arguments, records
from blpjax.inputs.arguments import read_vector
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.inputs.tables import read_products
from blpjax.iteration import Iteration
from blpjax.kernels.conduct import check_conduct
from blpjax.machine.pickling import Picklable
from blpjax.model.formulated import build_matrices, formulate, read_costs_type
from blpjax.model.parameters import Transformation
from blpjax.outputs.query import read_iteration
from blpjax.reporting import report
from blpjax.reporting.tables import Part, Shown
from blpjax.simulation import data as simulation_data
from blpjax.simulation.data import Lagged, Primitives
from blpjax.simulation.profit_conditions import FirmConditions
from blpjax.simulation.report import describe_true_values
from blpjax.simulation.results import SimulationResults, Solution
from blpjax.values import read_flag, read_seed


class Simulation(Shown, Picklable):
    """A model with known parameters, in which variables that are not given are drawn.

    `replace_endogenous` replaces prices and shares by those of an equilibrium; `replace_exogenous` takes them as given
    and replaces exogenous characteristics.

    Parameters
    ----------
    product_formulations : Formulation or sequence of up to three Formulations
        X1, X2 and X3, as in `Problem`, without absorbed fixed effects.
    product_data : DataFrame, dict of arrays, or structured array
        N rows. Required: `market_ids`, and with X3 `firm_ids` or `ownership`, which prices depend on (`build_id_data`
        builds IDs). Prices and variables of the formulas that are missing are drawn from the uniform distribution on
        (0, 1), shares from that on (0, 1 / J) in a market of J products.
    beta : (K1,) array
        True parameters of X1.
    sigma : (K2, K2) array, optional
        Lower-triangular Cholesky root of the covariance matrix of tastes. Required with X2.
    pi : (K2, D) array, optional
        Interactions with demographics. Required with an agent formulation.
    gamma : (K3,) array, optional
        True parameters of X3. Required with X3.
    agent_formulation, agent_data, integration
        As in `Problem`. Demographics that are missing are drawn from the uniform distribution on (0, 1).
    xi, omega : (N,) arrays, optional
        Structural errors of demand and costs. With X3, leaving both out draws them from a bivariate normal distribution
        with mean zero. Without X3, `xi` is required.
    xi_variance, omega_variance, correlation : float
        Moments of that distribution.
    rho : float or (H,) array, optional
        Nesting parameters, of all groups or each. Required with `nesting_ids` in the product data. With
        `subnesting_ids` two elements, of groups and of subgroups, or one for each group and then each subgroup.
    phi : float or (2, 2) array, optional
        How structural errors follow from their lags, see `Problem.solve`. Required with `lag_indices` in the product
        data. What is drawn for xi and omega are then innovations, and errors of initial periods have the stationary
        distribution. Without effect where errors are given.
    rc_types, epsilon_scale
        As in `Problem`.
    costs_type : {'linear', 'log'}
        Whether X3 explains marginal costs or their logarithms.
    conduct : Conduct, optional
        How firms compete, as in `Problem`. Columns of product data that it reads must be there.
    kappa : float or (C,) array, optional
        True values of the parameters of conduct, see `Parameter`. Required where it has some.
    seed : int, optional
        Of `numpy.random.RandomState`. The same seed gives the same draws as in PyBLP.

    Attributes
    ----------
    product_formulations, agent_formulation, integration, costs_type : as given.
    product_data, agent_data : structured arrays of the data, drawn variables included. No `agent_data` without X2.
    products, agents : structured arrays of the data with matrices such as `X1`, `X2`, `X3` and `demographics`.
    drawn_variables : names of the columns of product data that were drawn.
    beta, gamma (K1, 1), (K3, 1), sigma (K2, K2), pi (K2, D), rho, phi, kappa (C, 1) : true
        parameters.
    xi, omega : (N, 1) structural errors; `omega` is None without X3.
    T, N, F, I : numbers of markets, products in all markets, firms and agents.
    K1, K2, K3, D : numbers of columns of X1, X2, X3 and demographics.
    H : number of nesting groups.
    MD, MS, MC, ED, ES : zero: there are no instruments and no absorbed fixed effects.
    unique_market_ids, unique_firm_ids, unique_product_ids, unique_agent_ids, unique_nesting_ids : sorted IDs.
    unique_subnesting_ids : sorted pairs of the IDs of a group and of a subgroup within it.

    Raises
    ------
    DataError
        When a table cannot be used; the message names table, column, market and row.
    ValueError, TypeError
        For parameters and errors that are missing, superfluous, or of the wrong shape.
    NotImplementedError
        For options that are not supported yet.
    """

    MD = MS = MC = ED = ES = 0

    def __init__(
        self,
        product_formulations: Formulation | Sequence[Formulation | None],
        product_data: Any,
        beta: Any,
        sigma: Any = None,
        pi: Any = None,
        gamma: Any = None,
        rho: Any = None,
        phi: Any = None,
        agent_formulation: Formulation | None = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        xi: Any = None,
        omega: Any = None,
        xi_variance: float = 1,
        omega_variance: float = 1,
        correlation: float = 0.9,
        rc_types: Sequence[str | Callable[[Any], Any] | Transformation] | None = None,
        epsilon_scale: float = 1.0,
        costs_type: str = "linear",
        seed: int | None = None,
        tau: Any = None,
        *,
        conduct: Any = None,
        kappa: Any = None,
    ) -> None:
        began = time.perf_counter()
        options.output("Initializing the simulation ...")
        self.product_formulations = arguments.read_formulations(product_formulations, agent_formulation)
        _refuse_absorption(self.product_formulations)
        self.costs_type = read_costs_type(costs_type, self.product_formulations[2] is not None)
        self.agent_formulation = agent_formulation
        self.integration = integration
        self.conduct = None if conduct is None else check_conduct(conduct)
        moments = {"xi_variance": xi_variance, "omega_variance": omega_variance, "correlation": correlation}
        self.primitives = self._build(
            product_data,
            agent_data,
            {
                **{"sigma": sigma, "pi": pi, "rho": rho, "tau": tau, "phi": phi},
                **{"kappa": kappa, "beta": beta, "gamma": gamma},
            },
            (rc_types, epsilon_scale),
            (xi, omega),
            moments,
            np.random.RandomState(read_seed("seed", seed)),
        )
        self._set_attributes()
        options.output(f"Initialized the simulation after {report.format_seconds(time.perf_counter() - began)}.")
        if options.verbose:
            options.output(f"\n{self}")

    def _build(
        self,
        product_data: Any,
        agent_data: Any,
        parameters: dict[str, Any],
        form: tuple[Any, Any],
        errors: tuple[Any, Any],
        moments: dict[str, Any],
        generator: np.random.RandomState,
    ) -> Primitives:
        """Complete and check data and parameters, in the order in which PyBLP draws."""
        read = () if self.conduct is None else columns_read(self.conduct)
        completed = simulation_data.complete_products(product_data, self.product_formulations, generator, read)
        self.drawn_variables = completed.drawn
        supply = self.product_formulations[2] is not None
        products = read_products(completed.columns, supply=supply, firms=self.conduct is None)
        designs = build_matrices(self.product_formulations, products.data, self.agent_formulation is not None)
        K2 = 0 if designs[1] is None else designs[1].values.shape[1]
        columns = simulation_data.complete_agents(
            self.agent_formulation, agent_data, self.integration, K2, products.market_ids, generator
        )
        known = formulate(
            self.product_formulations,
            self.agent_formulation,
            products,
            designs,
            columns,
            integration=None,
            weights_tol=np.inf,  # weights have been checked: there is no second warning
            form=form,
            costs_type=self.costs_type,
            conduct=self.conduct,
        )
        coefficients = simulation_data.read_coefficients(parameters, known)
        lagged = Lagged(products.lag_indices, np.asarray(coefficients.phi))
        xi, omega = simulation_data.read_errors(*errors, moments, known.N, supply, generator, lagged)
        return Primitives(**known.fields, agent_columns=columns, coefficients=coefficients, xi=xi, omega=omega)

    def _set_attributes(self) -> None:
        known = self.primitives
        self.product_data, self.agent_data = known.product_data({}), known.agent_data()
        self.sigma, self.pi = np.asarray(known.coefficients.sigma), np.asarray(known.coefficients.pi)
        self.beta = np.asarray(known.coefficients.beta)[:, None]
        self.gamma = np.asarray(known.coefficients.gamma)[:, None]
        self.tau = np.asarray(known.coefficients.tau)[:, None]
        self.kappa = np.asarray(known.coefficients.kappa)[:, None]
        self.rho, self.phi = np.asarray(known.coefficients.rho)[:, None], np.asarray(known.coefficients.phi)
        self.xi = known.xi[:, None]
        self.omega = None if known.omega is None else known.omega[:, None]
        self.T, self.N, self.F, self.I = known.T, known.N, known.F, known.I
        self.K1, self.K2, self.K3, self.D, self.H = known.K1, known.K2, known.K3, known.D, known.H
        self.epsilon_scale, self.rc_types = known.epsilon_scale, known.rc_types
        self.unique_market_ids, self.unique_firm_ids = known.unique_market_ids, known.unique_firm_ids
        self.unique_product_ids, self.unique_agent_ids = known.unique_product_ids, known.unique_agent_ids
        self.unique_nesting_ids = known.unique_nesting_ids
        self.unique_subnesting_ids = known.unique_subnesting_ids

    @cached_property
    def products(self) -> np.recarray:
        """Product data as a structured array of N rows, with X1, X2 and X3."""
        known, none = self.primitives, np.zeros((self.N, 0))
        matrices = records.ProductMatrices(
            X1=known.X1, X2=known.X2, X3=known.X3, ZD=none, ZS=none, ZC=none, demand_ids=none, supply_ids=none
        )
        return records.product_records(known.product_table, matrices, known.designs)

    @cached_property
    def agents(self) -> np.recarray:
        """Agent data as a structured array of I rows, with demographics."""
        return self.primitives.agents

    def replace_endogenous(
        self,
        costs: Any = None,
        prices: Any = None,
        iteration: Iteration | None = None,
        constant_costs: bool = True,
        compute_gradients: bool = True,
        compute_hessians: bool = True,
        error_behavior: str = "raise",
    ) -> SimulationResults:
        """Replace prices and shares by those of an equilibrium in which firms set prices, or under other `conduct`.

        Parameters
        ----------
        costs : (N,) array, optional
            Marginal costs, by default ``X3 gamma + omega``, or its exponential with ``costs_type='log'``. Required
            without X3.
        prices : (N,) array, optional
            Prices to start at, by default marginal costs. With ``Iteration('return')`` they are the solution: prices
            that are chosen, or those of perfect competition.
        iteration : Iteration, optional
            By default ``Iteration('squarem', {'atol': 1e-12})``, or what `ProblemResults.compute_prices` does under
            other conduct.
        constant_costs : bool
            Whether costs stay at those of the simulation's shares. If false, they move with shares in X3, which is what
            one wants where shares have been drawn.
        compute_gradients, compute_hessians : bool
            Whether to compute firms' first- and second-order conditions. There are none under a `conduct`, which has
            others.
        error_behavior : {'raise', 'warn'}
            Whether markets in which no equilibrium is found raise an exception, or have NaN as prices and shares.

        Returns
        -------
        SimulationResults

        Raises
        ------
        ConvergenceError
            Naming the markets without an equilibrium and the reason, for example demand that does not slope down.
        ValueError
            When costs are missing, arrays have the wrong size, or there are no firms.

        Warns
        -----
        ConvergenceWarning
            With ``error_behavior='warn'``, likewise.
        """
        arguments.check_choice("error_behavior", error_behavior, ("raise", "warn"))
        constant_costs = read_flag("constant_costs", constant_costs)
        compute_gradients = read_flag("compute_gradients", compute_gradients)
        compute_hessians = read_flag("compute_hessians", compute_hessians)
        chosen = None if iteration is None else read_iteration(iteration)
        known = self.primitives
        self._require_firms(compute_gradients or compute_hessians)
        given = self._read_costs(costs)
        start = given if prices is None else read_vector("prices", prices, self.N)
        began = time.perf_counter()
        options.output("Replacing prices and shares ...")
        model = known.model(known.delta).on_host()
        found = model.solve_prices(costs=given, prices=start, iteration=chosen, constant_costs=constant_costs)
        kind = SyntheticPricesConvergenceError
        _report_failures("The search for equilibrium prices", found, self.unique_market_ids, error_behavior, kind)
        solved = model.at({"prices": found.prices})
        final = given if constant_costs else np.asarray(model.update_costs(given, solved.shares))
        conditions = None
        if (compute_gradients or compute_hessians) and self.conduct is None:
            assert known.product_table.firm_ids is not None
            gradient = solved.profit_gradients(costs=final) if compute_gradients else None
            hessians = solved.firm_profit_hessians(costs=final) if compute_hessians else None
            conditions = FirmConditions(
                known.market_index,
                known.product_table.firm_ids,
                None if gradient is None else np.asarray(gradient),
                None if hessians is None else np.asarray(hessians),
            )
        changes = {"shares": np.asarray(solved.shares), "prices": np.asarray(found.prices)}
        return self._finish(
            "prices and shares",
            began,
            Solution(
                model=solved,
                changes=changes,
                costs=final,
                status=np.asarray(found.status),
                iterations=np.asarray(found.iterations),
                evaluations=np.asarray(found.evaluations),
                conditions=conditions,
                seconds=time.perf_counter() - began,
            ),
        )

    def replace_exogenous(
        self,
        X1_name: str,
        X3_name: str | None = None,
        delta: Any = None,
        iteration: Iteration | None = None,
        fp_type: str = "safe_linear",
        shares_bounds: Any = (1e-300, None),
        error_behavior: str = "raise",
    ) -> SimulationResults:
        """Take prices and shares as an equilibrium and replace exogenous characteristics by values consistent with it.

        The mean utilities delta that reproduce shares replace the variable v in X1 by ``v + (delta - xi - X1 beta) /
        beta_v``. With X3, costs that make prices optimal, or their logarithms, likewise replace a variable in X3.

        Parameters
        ----------
        X1_name : str
            The variable in X1: a column of its own that is in no other column of X1, X2 or X3.
        X3_name : str, optional
            The variable in X3, likewise. Required with X3.
        delta : (N,) array, optional
            Where the inversion of shares starts, by default the logit solution.
        iteration : Iteration, optional
            By default ``Iteration('anderson', {'atol': 1e-13})``.
        fp_type, shares_bounds
            Only their defaults are supported.
        error_behavior : {'raise', 'warn'}
            Whether markets without a solution raise an exception, or have NaN as characteristics.

        Returns
        -------
        SimulationResults

        Raises
        ------
        ConvergenceError
            Naming the markets where shares could not be inverted, or where log costs are those of costs that are not
            positive.
        ValueError
            When a name is not that of such a variable, or its coefficient is zero.

        Warns
        -----
        ConvergenceWarning
            With ``error_behavior='warn'``, likewise.
        """
        arguments.check_choice("error_behavior", error_behavior, ("raise", "warn"))
        chosen = arguments.read_inversion(iteration, fp_type, shares_bounds)
        known = self.primitives
        beta_v = known.coefficient("X1", X1_name)
        if X3_name is None and known.designs[2] is not None:
            raise ValueError("X3_name must be given, because X3 was formulated: marginal costs have to be explained.")
        if X3_name is not None and known.designs[2] is None:
            raise ValueError("X3_name would not be used, because X3 was not formulated. Leave it out.")
        gamma_w = None if X3_name is None else known.coefficient("X3", X3_name)
        logit = known.closed_form_delta(np.asarray(known.coefficients.rho))
        start = logit if delta is None else read_vector("delta", delta, self.N)
        began = time.perf_counter()
        options.output("Replacing exogenous product characteristics ...")
        inversion = known.model(start).invert(chosen)
        kind = SyntheticDeltaConvergenceError
        _report_failures("The inversion of market shares", inversion, self.unique_market_ids, error_behavior, kind)
        found = np.asarray(inversion.delta)
        model = known.model(found)
        changes = {X1_name: known.product_table.data[X1_name] + (found - known.delta) / beta_v}
        costs = None
        if X3_name is not None:
            assert known.tilde_costs is not None
            costs = np.asarray(model.compute_costs())[:, 0]
            tilde_costs = self._transform_costs(costs, np.asarray(inversion.status), error_behavior)
            changes[X3_name] = known.product_table.data[X3_name] + (tilde_costs - known.tilde_costs) / gamma_w
        # delta does not move: it contains the replaced variable already
        characteristics = model.characteristics.replace({name: jnp.asarray(x) for name, x in changes.items()})
        solved = eqx.tree_at(lambda m: m.characteristics, model, characteristics)
        return self._finish(
            "exogenous characteristics",
            began,
            Solution(
                model=solved,
                changes=changes,
                costs=costs,
                status=np.asarray(inversion.status),
                iterations=np.asarray(inversion.iterations),
                evaluations=np.asarray(inversion.evaluations),
                conditions=None,
                seconds=time.perf_counter() - began,
            ),
        )

    def _finish(self, what: str, began: float, solution: Solution) -> SimulationResults:
        results = SimulationResults(self, solution)
        options.output(f"Replaced {what} after {report.format_seconds(time.perf_counter() - began)}.")
        if options.verbose:
            options.output(f"\n{results}")
        return results

    def _require_firms(self, by_firm: bool) -> None:
        if self.conduct is not None:
            return
        table = self.primitives.product_table
        if table.firm_ids is None and table.ownership is None:
            raise ValueError(
                "Equilibrium prices need a column 'firm_ids' in product_data, or 'ownership' with matrices. There is "
                "neither."
            )
        if table.firm_ids is None and by_firm:
            raise ValueError(
                "Profit gradients and Hessians are those of firms, but there is no column 'firm_ids' in product_data. "
                "Add it, or use compute_gradients=False and compute_hessians=False."
            )

    def _read_costs(self, costs: Any) -> np.ndarray:
        if costs is not None:
            return read_vector("costs", costs, self.N)
        tilde_costs = self.primitives.tilde_costs
        if tilde_costs is None:
            raise ValueError("costs must be given, because X3 was not formulated.")
        return np.exp(tilde_costs) if self.costs_type == "log" else tilde_costs

    def _transform_costs(self, costs: np.ndarray, status: np.ndarray, error_behavior: str) -> np.ndarray:
        """Costs, or their logarithms, NaN where costs are not positive."""
        if self.costs_type == "linear":
            return costs
        bad = np.isfinite(costs) & (costs <= 0)
        failed = np.zeros(self.T, bool)
        failed[self.primitives.market_index.codes[bad]] = True
        codes = np.where(failed & succeeded(status), int(Status.NOT_FINITE), int(Status.CONVERGED))
        what = "With costs_type='log', logarithms of marginal costs that are not positive"
        warn = error_behavior == "warn"
        raise_for_status(codes, self.unique_market_ids, what, warn=warn, kind=NonpositiveSyntheticCostsError)
        return np.log(np.where(bad, np.nan, costs))

    def _parts(self) -> list[Part]:
        names = ["T", "N", "F", "I", "K1", "K2", "K3", "D", "H"]
        labels = self.primitives.labels
        kind = "Log" if self.costs_type == "log" else "Linear"
        formulations = {
            "X1: Linear Characteristics": labels.X1,
            "X2: Nonlinear Characteristics": labels.X2,
            f"X3: {kind} Cost Characteristics": labels.X3,
            "d: Demographics": labels.demographics,
        }
        described = report.describe_problem({name: getattr(self, name) for name in names}, formulations)
        return [*described, *describe_true_values(self.primitives.coefficients, labels, self.primitives.form)]


def _refuse_absorption(formulations: Sequence[Formulation | None]) -> None:
    if any(formulation is not None and formulation.absorb is not None for formulation in formulations):
        raise ValueError(
            "Fixed effects cannot be absorbed in a simulation, where their values have to be known. Add them to the "
            "formula, for example as C(product_ids), with elements of beta or gamma, or to xi or omega."
        )


def _report_failures(
    action: str, found: Any, market_ids: np.ndarray, error_behavior: str, kind: type[ConvergenceError]
) -> None:
    residuals = np.asarray(found.residuals)
    raise_for_status(np.asarray(found.status), market_ids, action, residuals, error_behavior == "warn", kind)
