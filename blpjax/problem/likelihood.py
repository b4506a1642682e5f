"""Estimation by likelihood: arguments of `Problem.solve` are read, or refused, and results know their covariances."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
import pandas as pd

from blpjax import options
from blpjax.economy.buckets import Economy
from blpjax.estimation.estimates import SolvedProblem
from blpjax.estimation.likelihood import LikelihoodContext, report_likelihood, solve_likelihood, try_likelihood_starts
from blpjax.estimation.options import StepOptions, read_step_options
from blpjax.estimation.step import StepResult
from blpjax.exceptions import IdentificationError, warn_unused
from blpjax.inference.delta_method import apply_joint_delta_method
from blpjax.inference.reestimation_results import ReestimationResults
from blpjax.inputs import arguments
from blpjax.inputs.identification import check_order_condition
from blpjax.inputs.likelihood import MicroLikelihood
from blpjax.iteration import Iteration
from blpjax.machine.forks import check_process
from blpjax.model.elsewhere import Draw
from blpjax.model.model import Model
from blpjax.model.parameters import Parameters
from blpjax.objective.dynamics import MomentTypes
from blpjax.objective.inference import CovarianceTypes
from blpjax.objective.likelihood_data import build_likelihood
from blpjax.objective.likelihood_inference import JointCovariances
from blpjax.objective.problem_data import ProblemData
from blpjax.optimize.optimize import Optimization
from blpjax.problem.data import DataHolder
from blpjax.problem.likelihood_state import LikelihoodEstimates, likelihood_state, read_likelihood_state
from blpjax.problem.results import ProblemResults
from blpjax.problem.state import read_step
from blpjax.reporting.report import ResultsSummary
from blpjax.values import check_integer, read_flag

#: Arguments of `Problem.solve` that have no meaning for likelihoods, with their defaults and what to do.
_UNUSED: Mapping[str, tuple[Any, str]] = {
    "phi": (None, "Moments of innovations need GMM"),
    "kappa": (None, "A supply side needs GMM"),
    "gamma": (None, "A supply side needs GMM"),
    "phi_bounds": (None, "Moments of innovations need GMM"),
    "kappa_bounds": (None, "A supply side needs GMM"),
    "gamma_bounds": (None, "A supply side needs GMM"),
    "initial_update": (None, "There are no weighting matrices"),
    "scale_objective": (True, "Log likelihoods have no scale"),
    "finite_differences": (False, "Derivatives are exact"),
    "costs_bounds": (None, "A supply side needs GMM"),
    "W": (None, "There are no weighting matrices: MicroLikelihood has sigma2"),
    "center_moments": (True, "There are no weighting matrices"),
    "W_type": ("robust", "There are no weighting matrices"),
    "se_type": ("robust", "Standard errors follow from the likelihood"),
    "demand_moment_types": ("levels", "Moments of innovations need GMM"),
    "supply_moment_types": ("levels", "Moments of innovations need GMM"),
    "covariance_moments_mean": (0, "Covariance moments need GMM"),
    "micro_moments": ((), "MicroLikelihood has the survey itself. GMM uses micro moments of surveys that are not rows"),
    "micro_sample_covariances": (None, "There are no micro moments"),
    "resample_agent_data": (None, "Simulation error is not accounted for: use more agents, or GMM"),
    "moment_blocks": ((), "Moments beside those of instruments need GMM"),
    "path": (None, "Only steps of GMM are kept: likelihoods go on from results.theta"),
}


#: Log likelihoods are flat next to their size: the default promises a smaller relative decrease at convergence.
_DEFAULT = Optimization("trust-region", {"decrease_tol": 1e-18})


class LikelihoodResults(ProblemResults):
    """Results of `Problem.solve` with a `MicroLikelihood`: those of GMM, but for what has no meaning.

    The `objective` includes all constants. `moments` (MD, 1) are averages of instruments times structural errors, which
    are not zero in a sample; weighting matrices and covariances of moments are NaN. Shares of outputs are those that
    the model simulates: observed ones are a sample, and are not matched exactly, unless they are constraints.

    Attributes
    ----------
    likelihood : the `MicroLikelihood`.
    delta_se : (N, 1) standard errors of mean utilities.
    parameter_covariances : (Q, Q) covariances of theta and beta, times N.
    """

    def __init__(
        self,
        problem: SolvedProblem,
        result: StepResult,
        step_options: StepOptions,
        likelihood: MicroLikelihood,
        joint: JointCovariances,
        coefficient_map: np.ndarray,
    ) -> None:
        super().__init__(problem, None, result, step_options, estimated=True)
        self.likelihood = likelihood
        self._joint = joint
        self._coefficient_map = coefficient_map

    @property
    def delta_se(self) -> np.ndarray:
        """(N, 1) standard errors of mean utilities."""
        with np.errstate(invalid="ignore"):
            return np.sqrt(self._joint.delta_variances())[:, None]

    def joint_covariances(self) -> np.ndarray:
        """Covariances (Q + N, Q + N) of all parameters and then mean utilities: not times N.

        Structural errors are xi of these products, so that linear parameters vary more than `delta` does.
        """
        P, N, Xi = len(self.theta), len(self.delta), self._coefficient_map
        K = len(Xi)
        theta = np.concatenate([np.eye(P), np.zeros((P, K + N))], axis=1)
        delta = np.concatenate([np.zeros((N, P)), Xi.T, np.eye(N)], axis=1)
        found = self._joint.products((theta, delta), (theta, delta))
        found[P : P + K, P : P + K] += float(self.xi[:, 0] @ self.xi[:, 0]) / N * Xi @ Xi.T
        return np.asarray(found + found.T) / 2

    def delta_method(
        self,
        function: Callable[[Model], Any],
        hold: str = "shares",
        iteration: Iteration | None = None,
        constant_costs: bool = True,
        *,
        as_frame: bool = False,
    ) -> Any:
        """Standard errors of any differentiable function of the model, see `ProblemResults.delta_method`.

        With ``hold='shares'`` the estimates are theta, beta and mean utilities, each with its error: shares are no
        longer known without one, and what `delta` does not say about them is sampling error of the population. Prices
        stay as they are. ``hold='xi'`` is as for other results.

        Raises
        ------
        TypeError, ValueError
            See there.
        """
        if hold != "shares":
            return super().delta_method(function, hold, iteration, constant_costs, as_frame=as_frame)
        if iteration is not None or not constant_costs:
            raise ValueError("iteration and constant_costs are about prices that are solved again, with hold='xi'.")
        if not np.isfinite(self.parameter_covariances).all():
            raise ValueError("Covariances of these results are unknown, because estimation failed.")
        ids, index = self.problem.data.market_index.long_ids, np.arange(len(self.delta))
        names = [f"delta of row {i} in market {market}" for i, market in zip(index, ids, strict=True)]
        labels = [*self.parameter_labels, *names]
        found = apply_joint_delta_method(self, function, self.joint_covariances, labels)
        return found.to_frame() if read_flag("as_frame", as_frame) else found

    def model_in(self, economy: Economy) -> Model:
        """The model at the estimates in an economy with other agents, with the shares that it simulates."""
        model = super().model_in(economy)
        shares = jax.device_put(np.asarray(model.on_host().compute_shares())[:, 0])
        return Draw(model.coefficients, model.delta, model.prices, shares).model(model)

    def run_hansen_test(self) -> float:
        """Refuse: there is no weighting matrix."""
        self._refuse("run_hansen_test", "Twice the difference of objectives of nested models is a likelihood ratio")

    def run_distance_test(self, unrestricted: Any) -> float:
        """Refuse: there is no weighting matrix."""
        self._refuse("run_distance_test", "Twice the difference of objectives is a likelihood ratio")

    def run_lm_test(self) -> float:
        """Refuse: there is no weighting matrix."""
        self._refuse("run_lm_test", "run_wald_test tests restrictions of parameters")

    def reestimate(  # type: ignore[override]
        self,
        draws: int = 200,
        seed: int = 0,
        *,
        batch_size: int | None = None,
        path: str | os.PathLike[str] | None = None,
        executor: Any = None,
    ) -> ReestimationResults:
        """Bootstrap by re-estimation: estimates from samples of markets, with their respondents and populations.

        A market that is drawn twice counts twice in the likelihoods and in the exogeneity restrictions. Samples are
        estimated one after the other, from these estimates, with the same program. The table has no standard errors of
        samples.

        Parameters
        ----------
        draws : number of samples. seed : of `jax.random`.
        batch_size, path, executor : how many samples are processed together (25 by default), where finished batches are
            kept and where they are run; see `MonteCarlo.run`.

        Raises
        ------
        ValueError
            When numbers are not positive integers.
        NotImplementedError
            With absorbed fixed effects.
        StorageError, StudyError
            See `MonteCarlo.run`.
        """
        from blpjax.inference.likelihood_reestimation import LikelihoodBootstrap, reestimate_likelihood

        check_process()
        if self.problem.data.ED:
            self._refuse("reestimate with absorbed fixed effects", "bootstrap draws from the asymptotic distribution")
        study = LikelihoodBootstrap(
            data=self.problem.data,
            likelihood=self.likelihood,
            options=self._options.one_of_many,
            theta=self.theta,
            delta=self.delta[:, 0],
            seed=check_integer("seed", seed, minimum=0),
            labels=tuple(self.parameter_labels),
            blocks=tuple(self._options.parameters.parameter_blocks),
        )
        return reestimate_likelihood(self, study, draws, path, batch_size, executor)

    def compute_instrument_strength(self) -> Any:
        """Refuse: likelihoods are not identified by instruments alone."""
        self._refuse("compute_instrument_strength", "Use results of GMM with the same instruments")

    def integration_report(self, *given: Any, **options: Any) -> Any:
        """Refuse: likelihoods have no lanes yet."""
        self._refuse("integration_report", "Solve problems with other nodes, one after the other")

    def project_fixed_effects(self, *given: Any, **options: Any) -> Any:
        """Refuse: covariances of fixed effects are those of GMM."""
        self._refuse("project_fixed_effects", "Use results of GMM")

    def compute_optimal_instruments(self, *given: Any, **options: Any) -> Any:
        """Refuse: they are instruments of GMM."""
        self._refuse("compute_optimal_instruments", "Use results of GMM, whose instruments a likelihood may have, too")

    def _more_state(self) -> dict[str, Any]:
        found = LikelihoodEstimates(self.likelihood, self._joint, self._coefficient_map)
        return {"likelihood": likelihood_state(found, self.problem.data)}

    def _refuse(self, name: str, instead: str) -> NoReturn:
        raise NotImplementedError(f"{name} is not supported for estimates by likelihood. {instead}.")

    def _summary(self) -> ResultsSummary:
        return dataclasses.replace(super()._summary(), W_condition=None)


def read_likelihood_results(problem: SolvedProblem, state: dict[str, Any]) -> LikelihoodResults:
    """Results that `LikelihoodResults.save` described."""
    (step,) = (read_step(one, problem.data.form) for one in state["steps"])
    found = read_likelihood_state(state["likelihood"], problem.data)
    results = LikelihoodResults(problem, step.result, step.options, *found)
    results.starts = None if state.get("starts") is None else pd.DataFrame(state["starts"])
    return results


def solve_by_likelihood(problem: Any, likelihood: Any, given: Mapping[str, Any]) -> LikelihoodResults:
    """Estimate by likelihood. Arguments are those of `Problem.solve`, by name.

    Raises
    ------
    NotImplementedError
        For a supply side, several devices, and arguments that likelihoods have no use for.
    DataError, IdentificationError, ValueError, TypeError
        See `Problem.solve`.
    """
    _check_type(likelihood)
    _refuse_unused(given)
    data = problem.data
    _check_data(data)
    bounds = {name: given[f"{name}_bounds"] for name in ("sigma", "pi", "rho", "tau", "beta")}
    supports_bounds = getattr(given["optimization"], "supports_bounds", True)
    for name in ("sigma", "pi", "rho"):
        if isinstance(given[name], str):
            raise NotImplementedError(
                f"{name}={given[name]!r} is not supported with a likelihood. Give the values of compute_frac_starts, "
                "or estimates by GMM."
            )
    sigma, pi, rho, beta = (given[name] for name in ("sigma", "pi", "rho", "beta"))
    parameters = problem.read_parameters(sigma, pi, rho, beta, None, bounds, supports_bounds, given["tau"])
    check_likelihood(data, likelihood, parameters)
    unused = [name for name, default in (("iteration", None), ("fp_type", "safe_linear")) if given[name] != default]
    if likelihood.estimator != "share-constrained" and unused:
        warn_unused(
            unused[0],
            "mean utilities of likelihoods are found by Newton's method. Only estimator='share-constrained' inverts "
            "shares.",
        )
    names = ["optimization", "iteration", "fp_type", "shares_bounds", "check_optimality"]
    names += ["error_behavior", "error_punishment", "delta_behavior"]
    step_options = likelihood_options(parameters, **{name: given[name] for name in names})
    iteration = step_options.iteration
    objective, linear, asked = build_likelihood(data, step_options.parameters, likelihood, iteration)
    _check_identification(problem, step_options, linear.restrictions.shape[1], int(asked.sum()), likelihood)
    logit = data.closed_form_delta(np.asarray(parameters.start.rho))
    delta = logit
    if given["delta"] is not None:
        delta = arguments.read_vector("delta", given["delta"], data.N, data.product_table.index)
    context = LikelihoodContext(objective, linear, data, logit, likelihood.sigma2, problem)
    began = time.perf_counter()
    options.output("")
    options.output(f"Starting estimation by likelihood ('{likelihood.estimator}', {asked.sum()} respondents) ...")
    theta, trials = step_options.parameters.theta, None
    if given["starts"] is not None:
        trials = try_likelihood_starts(given["starts"], step_options, context, delta)
        theta = theta if trials.theta is None else trials.theta
    result, joint = solve_likelihood(step_options, context, theta, delta)
    report_likelihood(result, parameters.theta_labels, time.perf_counter() - began)
    results = LikelihoodResults(problem, result, step_options, likelihood, joint, linear.coefficient_map)
    results.starts = None if trials is None else trials.table
    if options.verbose:
        options.output(f"\n{results}")
    return results


def check_likelihood(data: ProblemData, likelihood: Any, parameters: Parameters) -> None:
    """Refuse what cannot be estimated by likelihood, see `solve_by_likelihood`."""
    _check_type(likelihood)
    _check_data(data)
    if parameters.layout.beta:
        names = [parameters.labels.X1[k] for (k,) in parameters.layout.beta]
        raise NotImplementedError(
            f"beta of {', '.join(map(repr, names))} cannot be an element of theta with a likelihood. Leave it out "
            "(NaN), so that it is estimated from mean utilities, or fix it by equal beta_bounds."
        )


def _check_type(likelihood: Any) -> None:
    if not isinstance(likelihood, MicroLikelihood):
        raise TypeError(f"likelihood must be a MicroLikelihood or None, not {type(likelihood).__name__}.")


def _check_data(data: ProblemData) -> None:
    if data.model_data.supply is not None:
        raise NotImplementedError(
            "A likelihood with a supply side is not supported: it has no restrictions of costs. Leave out the third "
            "formulation; compute_costs of the results then gives marginal costs, which can be regressed on what "
            "explains them. For moments of supply beside those of a survey use GMM with micro_moments, perhaps optimal "
            "ones (MicroMoment.scores)."
        )
    if data.placement is not None:
        raise NotImplementedError(
            "A likelihood of markets that are spread over devices is not supported. Use the problem without shard()."
        )
    if data.K2 == 0:
        raise ValueError("A likelihood of consumers' choices needs random coefficients or demographics: X2.")


def likelihood_options(
    parameters: Parameters,
    *,
    optimization: Optimization | None = None,
    iteration: Iteration | None = None,
    fp_type: str = "safe_linear",
    shares_bounds: Any = (1e-300, None),
    check_optimality: str = "both",
    error_behavior: str | None = None,
    error_punishment: Any = 1,
    delta_behavior: str | None = None,
) -> StepOptions:
    """Options of an estimation by likelihood, which are those of `Problem.solve`."""
    found = read_step_options(
        parameters=parameters,
        costs_bounded=False,
        optimization=_DEFAULT if optimization is None else optimization,
        iteration=arguments.read_inversion(iteration, fp_type, shares_bounds),
        check_optimality=check_optimality,
        error_behavior=error_behavior,
        error_punishment=error_punishment,
        finite_differences=False,
        delta_behavior=delta_behavior,
        scale_objective=True,
        W_type="unadjusted",
        se_type="unadjusted",
        center_moments=True,
        n_clusters=None,
        moment_types=MomentTypes(),
    )
    return dataclasses.replace(found, types=CovarianceTypes("unadjusted", "likelihood", True, 1))


def _refuse_unused(given: Mapping[str, Any]) -> None:
    for name, (default, instead) in _UNUSED.items():
        value = given[name]
        absent = (
            value is None or (np.ndim(value) == 0 and value == default) or (np.ndim(value) == 1 and len(value) == 0)
        )
        if not absent:
            raise NotImplementedError(f"{name} is not supported with a likelihood: leave it out. {instead}.")


def _check_identification(
    problem: DataHolder, step_options: StepOptions, restrictions: int, respondents: int, likelihood: MicroLikelihood
) -> None:
    """Fewer instruments than linear parameters, or fewer restrictions than elements of theta without a survey."""
    parameters = step_options.parameters
    names = parameters.parameter_labels[parameters.layout.P :]
    returned = not step_options.optimization.routine.optimizes
    check_order_condition(problem.instrument_rank, len(names), names, warn=returned)
    if respondents == 0 and not likelihood.restricts and parameters.layout.P and not returned:
        raise IdentificationError(
            f"estimator='{likelihood.estimator}' has nothing to estimate theta from without respondents: shares alone "
            "say what mean utilities are. Give micro_data, or use estimator='cler'."
        )
    if respondents == 0 and likelihood.restricts:
        check_order_condition(restrictions, parameters.layout.P, parameters.theta_labels, warn=returned)
