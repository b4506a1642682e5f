"""Parametric bootstrap: outputs at parameters drawn from the asymptotic distribution of the estimates."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from blpjax import options
from blpjax.economy.buckets import AgentsInEconomy, Economy
from blpjax.economy.loops import Loops, no_loops, worst_loops
from blpjax.economy.mapping import loop_elements
from blpjax.estimation.estimates import Estimates
from blpjax.exceptions import raise_for_status, succeeded
from blpjax.inputs.arguments import read_draws
from blpjax.inputs.integration import Integration
from blpjax.iteration import Iteration
from blpjax.machine.memory import require_memory
from blpjax.machine.pickling import Picklable
from blpjax.machine.tracing import shapes_of
from blpjax.model.elsewhere import (
    Draw,
    coefficients_at,
    covariances_of_estimates,
    hold_errors,
    hold_shares_at,
    lanes,
    map_lanes,
)
from blpjax.model.model import Model
from blpjax.model.parameters import BLOCKS, Coefficients
from blpjax.outputs.counterfactual import CounterfactualMethods
from blpjax.outputs.labels import OutputTables
from blpjax.outputs.query import Given, Output, read_iteration
from blpjax.outputs.sources import OutcomeSource
from blpjax.reporting import report
from blpjax.reporting.tables import Part, one_row_table
from blpjax.values import read_flag, read_seed


class BootstrappedResults(CounterfactualMethods, Picklable):
    """Results at parameters drawn from their asymptotic distribution, with xi and omega as estimated.

    Or at parameters that were estimated again, see `ReestimationResults.to_bootstrapped`.

    Has the compute methods of `ProblemResults`. What they return has a first axis of draws; arrays that they are given
    (but not firm IDs) may have one, too. Where an equilibrium was not found, prices, shares and delta are NaN, and
    what is computed from them. Outcomes of `counterfactual` are those at the estimates, with intervals over draws.

    Attributes
    ----------
    problem_results : results that parameters were drawn around.
    bootstrapped_sigma (draws, K2, K2), bootstrapped_pi (draws, K2, D), bootstrapped_rho (draws, 0, 1),
    bootstrapped_phi (draws, 1, 1) or (draws, 2, 2), or without columns where there are no lags,
    bootstrapped_kappa (draws, C, 1), bootstrapped_beta (draws, K1, 1), bootstrapped_gamma (draws, K3, 1) : parameters.
    bootstrapped_prices (draws, N, 1) : equilibrium prices with a supply side, observed ones without.
    bootstrapped_shares, bootstrapped_delta (draws, N, 1) : market shares and mean utilities.
    computation_time : seconds it took.
    draws : number of draws.
    fp_converged, fp_iterations, contraction_evaluations (T, draws) : the search for equilibrium prices by market, in
        the order of `Problem.unique_market_ids`; true, zero and zero without a supply side. `fp_residuals` has the
        final norms of profit gradients. Where shares are held, they are about inversions of shares.
    """

    draws: int

    def __init__(self, problem_results: Estimates, drawn: Draw, loops: Loops, computation_time: float) -> None:
        coefficients = drawn.coefficients
        self.problem_results = problem_results
        self._drawn = drawn
        self.draws = len(drawn.delta)
        self.bootstrapped_sigma = coefficients.sigma
        self.bootstrapped_pi = coefficients.pi
        self.bootstrapped_rho = coefficients.rho[:, :, None]
        self.bootstrapped_tau = coefficients.tau[:, :, None]
        self.bootstrapped_phi = coefficients.phi
        self.bootstrapped_kappa = coefficients.kappa[:, :, None]
        self.bootstrapped_beta = coefficients.beta[:, :, None]
        self.bootstrapped_gamma = coefficients.gamma[:, :, None]
        self.bootstrapped_prices = drawn.prices[:, :, None]
        self.bootstrapped_shares = drawn.shares[:, :, None]
        self.bootstrapped_delta = drawn.delta[:, :, None]
        self.computation_time = computation_time
        self.fp_converged = succeeded(loops.status).T
        self.fp_iterations = loops.iterations.T
        self.contraction_evaluations = loops.evaluations.T
        self.fp_residuals = loops.residuals.T

    def _parts(self) -> list[Part]:
        columns = {
            ("Computation", "Time"): report.format_seconds(self.computation_time),
            ("Bootstrap", "Draws"): str(self.draws),
        }
        if self.contraction_evaluations.any():
            columns["Fixed Point", "Iterations"] = str(self.fp_iterations.sum())
            columns["Contraction", "Evaluations"] = str(self.contraction_evaluations.sum())
        return [one_row_table(columns, "Bootstrapped Results Summary")]

    def to_dict(self, attributes: Sequence[str] | None = None) -> dict[str, Any]:
        """Attributes by name, all but `problem_results` by default.

        Raises
        ------
        AttributeError
            For names that are not attributes of these results.
        """
        return {name: getattr(self, name) for name in (ATTRIBUTES if attributes is None else attributes)}

    def model_of(self, draw: int) -> Model:
        """The model at one draw, counted from zero."""
        return jax.device_put(jax.tree.map(lambda leaf: leaf[draw], self._drawn)).model(self.problem_results.model)

    @property
    def model(self) -> Model:
        """There is none: `model_of` has that of one draw."""
        raise NotImplementedError("Bootstrapped results have a model for each draw. Use model_of(draw).")

    @property
    def centre(self) -> OutcomeSource:
        """Results at the estimates."""
        assert isinstance(self.problem_results, OutcomeSource)
        return self.problem_results

    @property
    def output_tables(self) -> OutputTables:
        """The problem's tables, which label outputs."""
        known = self.problem_results.problem.data
        return OutputTables(known.product_table, known.market_index, known.agents_in_economy)

    def build_agents(self, agent_data: Any, integration: Integration | None) -> AgentsInEconomy:
        """The problem's economy with other agents."""
        return self.problem_results.problem.data.build_agents(agent_data, integration, options.weights_tol)

    def model_in(self, economy: Economy) -> Model:
        """The model at the estimates in an economy with other agents."""
        return self.problem_results.model_in(economy)

    def delta_method(self, function: Callable[[Model], Any], hold: str = "shares") -> Any:
        """There is none: draws say themselves how uncertain outputs are."""
        raise TypeError(
            "Bootstrapped results have no standard errors by the delta method. Take standard deviations over draws."
        )

    def evaluate_output(self, function: Output, given: Given) -> Any:
        """A pytree of NumPy arrays with a first axis of draws: the function at each draw's model."""
        base = self.problem_results.model
        moving = {name: values for name, values in given.items() if values.ndim > _DIMENSIONS.get(name, 1)}
        fixed = {name: values for name, values in given.items() if name not in moving}

        def evaluate(drawn: Draw, values: Given) -> Any:
            return function(drawn.model(base), {**fixed, **values})

        shapes = shapes_of(evaluate, *jax.tree.map(lambda leaf: leaf[0], (self._drawn, moving)))
        outputs = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        arrays = jax.device_put((self._drawn, moving))
        return map_lanes(lambda chunk: jax.vmap(evaluate)(*chunk), arrays, lanes(base.economy, outputs))


#: Arguments of compute methods that are matrices; others are vectors. One more axis is that of draws.
_DIMENSIONS = {"ownership": 2}

#: What `BootstrappedResults.to_dict` returns by default.
ATTRIBUTES = tuple(
    """bootstrapped_sigma bootstrapped_pi bootstrapped_rho bootstrapped_tau bootstrapped_phi bootstrapped_kappa
    bootstrapped_beta bootstrapped_gamma bootstrapped_prices bootstrapped_shares bootstrapped_delta
    computation_time draws fp_converged fp_iterations contraction_evaluations""".split()
)


def bootstrap_results(
    results: Estimates,
    draws: int = 1000,
    seed: int | None = None,
    iteration: Iteration | None = None,
    constant_costs: bool = True,
) -> BootstrappedResults:
    """Draw parameters, and evaluate the model at each draw; see `ProblemResults.bootstrap`."""
    count, (N, Q) = read_draws(draws), (len(results.delta), len(results.parameters))
    # parameters twice, and prices, shares and mean utilities
    require_memory(8 * count * (2 * Q + 3 * N), f"bootstrap: {count:,} draws of {N:,} products", "Ask for fewer draws.")
    return results_at(results, draw_coefficients(results, count, seed), "xi", iteration, constant_costs)


def results_at(
    results: Estimates,
    coefficients: Coefficients,
    hold: str = "xi",
    iteration: Iteration | None = None,
    constant_costs: bool = True,
) -> BootstrappedResults:
    """Results at coefficients with a first axis of draws.

    Parameters
    ----------
    hold : ``'xi'``: structural errors are as estimated, and prices and shares follow; ``'shares'``: prices and shares
        are as observed, and mean utilities are those that reproduce them.
    iteration : how to solve for prices, or to invert shares.
    constant_costs : see `ProblemResults.bootstrap`.
    """
    chosen = None if iteration is None else read_iteration(iteration)
    constant_costs = read_flag("constant_costs", constant_costs)
    options.output("Bootstrapping results ...")
    began = time.perf_counter()
    base = results.model
    tilde_costs = jax.device_put(results.tilde_costs[:, 0]) if results.tilde_costs.size else None

    def solve(coefficients: Coefficients) -> Any:
        if hold == "shares":
            return hold_shares_at(base, coefficients, Iteration() if chosen is None else chosen)
        return hold_errors(base, tilde_costs, coefficients, chosen, constant_costs)

    arrays = jax.device_put(coefficients)
    count = len(arrays.beta)
    # loops for prices run in groups of their own, see `blpjax.kernels.lanes`
    elements = loop_elements() if hold == "shares" else None
    found = map_lanes(jax.vmap(solve), arrays, lanes(base.economy, elements=elements))
    loops = found.loops
    if loops is None:
        loops = no_loops(count, len(results.problem.data.market_index.ids))
    drawn = eqx.tree_at(lambda d: d.coefficients, found.draw, coefficients)
    action = "The inversion of shares" if hold == "shares" else "The search for equilibrium prices"
    _warn_of_failures(loops, results.problem.data.market_index.ids, action)
    bootstrapped = BootstrappedResults(results, drawn, loops, time.perf_counter() - began)
    options.output(f"Bootstrapped results after {report.format_seconds(bootstrapped.computation_time)}.")
    options.output(f"\n{bootstrapped}")
    return bootstrapped


def draw_coefficients(results: Estimates, draws: int, seed: int | None) -> Coefficients:
    """Draw parameters from their normal distribution, clipped to bounds, as arrays with a first axis of draws."""
    covariances = covariances_of_estimates(results.parameter_covariances, len(results.delta))
    mean = results.parameters[:, 0]
    state = np.random.RandomState(read_seed("seed", seed))
    parameters = state.multivariate_normal(mean, covariances, draws) if mean.size else np.zeros((draws, 0))
    found = coefficients_of(results, parameters)
    clipped = []
    for name in BLOCKS:
        lower, upper = getattr(results, f"{name}_bounds")
        values = np.asarray(getattr(found, name))
        clipped.append(np.clip(values, lower.reshape(values.shape[1:]), upper.reshape(values.shape[1:])))
    return eqx.tree_at(lambda c: [getattr(c, name) for name in BLOCKS], found, clipped)


def coefficients_of(results: Estimates, parameters: np.ndarray) -> Coefficients:
    """Coefficients with a first axis of draws of `parameters` (draws, Q)."""
    return coefficients_at(results.model, parameters)


def _warn_of_failures(loops: Loops, market_ids: np.ndarray, action: str) -> None:
    failed = np.flatnonzero(~succeeded(loops.status).all(axis=1))
    if not failed.size:
        return
    worst = worst_loops(loops, axis=0)
    named = ", ".join(map(str, failed[:5].tolist())) + (f" and {failed.size - 5} more" if failed.size > 5 else "")
    raise_for_status(
        worst.status,
        market_ids,
        f"{action} failed for {failed.size} of {len(loops.status)} draws ({named}): it",
        worst.residuals,
        warn=True,
        note="Results are NaN there.",
    )
