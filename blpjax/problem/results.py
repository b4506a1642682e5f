"""ProblemResults: estimates, covariances and diagnostics, and what they imply.

It has more than 500 lines because methods document all that can be given to them.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from blpjax import options
from blpjax.economy.buckets import AgentsInEconomy
from blpjax.estimation.estimates import SolvedProblem
from blpjax.inference.diagnostics import DiagnosticMethods
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.inputs.micro import MicroMoment
from blpjax.inputs.micro_state import moments_state, read_moments
from blpjax.iteration import Iteration
from blpjax.machine import storage
from blpjax.machine.pickling import Picklable
from blpjax.model.formulated import Formulated
from blpjax.model.model import Model
from blpjax.objective.micro import MicroMoments
from blpjax.outputs.labels import OutputTables
from blpjax.outputs.micro import MicroMethods
from blpjax.outputs.pricing_pressure import PressureMethods
from blpjax.outputs.scores import SurveySource
from blpjax.problem.micro import read_micro
from blpjax.problem.state import Step, read_step, step_state
from blpjax.reporting.micro import micro_frame, parts_frame
from blpjax.reporting.tables import Part
from blpjax.values import read_flag

if TYPE_CHECKING:  # what methods import when they are called
    from blpjax.inference.bootstrap import BootstrappedResults
    from blpjax.inference.fixed_effects import FixedEffectProjection, Weighting
    from blpjax.inference.importance_sampling import ImportanceSamplingResults
    from blpjax.inference.optimal_instruments import OptimalInstrumentResults
    from blpjax.inference.reestimation_results import ReestimationResults


class ProblemResults(DiagnosticMethods, PressureMethods, MicroMethods, Picklable):
    """Results of one GMM step of `Problem.solve`, the last of them with standard errors.

    Arrays have PyBLP's shapes and row order: vectors over products are (N, 1) in the order of the product table, P is
    the number of elements of theta, Q that of theta and the concentrated elements of beta.

    Attributes
    ----------
    problem : the `Problem`.
    last_results : results of the previous GMM step, or None.
    step : number of the GMM step.
    theta (P,), parameters (Q, 1) : estimates; `theta_labels`, `parameter_labels` name them, `parameter_blocks` (Q
        names such as sigma and beta) say what they belong to.
    sigma (K2, K2), pi (K2, D), beta (K1, 1) : estimates as matrices, and `sigma_squared` = sigma sigma'.
    sigma_se, sigma_squared_se, pi_se, beta_se : standard errors, NaN for fixed elements and before the last step.
    phi, phi_se (1, 1) or (2, 2) : how xi, and omega, follow from their lags; without columns where there are none.
    kappa, kappa_se (C, 1) : parameters of conduct, named by `kappa_labels`.
    parameter_covariances (Q, Q) : covariances of sqrt(N) times the estimation error.
    parameter_sensitivity (Q, MD) : sensitivity to moments (Andrews, Gentzkow and Shapiro 2017).
    delta, xi, xi_fe (N, 1) : mean utilities, structural errors, and fixed effects (with any that are absorbed).
    objective : float. moments (MD, 1), moments_jacobian (MD, Q), moments_covariances (MD, MD).
    xi_by_theta_jacobian (N, P) : neither residualised nor projected.
    gradient, projected_gradient (P, 1), projected_gradient_norm.
    hessian, reduced_hessian (P, P), reduced_hessian_eigenvalues (P,) : exact, NaN with ``check_optimality='gradient'``.
    W, updated_W (MD, MD) : weighting matrices.
    converged, cumulative_converged : whether optimisation converged, in this step and in all.
    optimization_iterations, objective_evaluations, optimization_time, total_time : and each with ``cumulative_``.
    fp_converged, fp_iterations, contraction_evaluations (T, evaluations) : the inversion of shares by market, in the
        order of `Problem.unique_market_ids`, and objective evaluation; and each with ``cumulative_``. `fp_residuals`
        has the final residuals.
    micro_moments : the micro moments, None where files or pickles could not hold their functions.
    starts : DataFrame, or None: where each of the starting values led, if `Problem.solve` was given `starts`. See
        `blpjax.estimation.starts.Trials` for its columns.
    """

    starts: pd.DataFrame | None = None
    micro_moments: tuple[MicroMoment, ...] | None = ()

    _hidden = PressureMethods._hidden | {"draws"}

    def micro_frame(self, parts: bool = False) -> pd.DataFrame:
        """Micro moments at these estimates as a table; see `Problem.compare_micro` for its columns.

        Parameters
        ----------
        parts : whether there is a row for each part of each moment, with the additional columns `part`, `part_value`
            (the model's mean, NaN where moments are not known any more), `dataset`, `observations` and `markets`.
        """
        lines, values = self._options.micro, self.micro_values[:, 0]
        observed = np.array([line.observed for line in lines if line.first])
        given = self.micro_covariances, -self.micro_by_theta_jacobian, self.theta_labels, self.theta
        frame = micro_frame(lines, observed, values, *given)
        if not parts:
            return frame
        known = None
        if self.micro_moments is not None:
            known = self.compute_part_values([part for moment in self.micro_moments for part in moment.parts])
        return parts_frame(lines, frame, known)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write these results, those of previous steps, and the problem with its data to a file for `blpjax.load`.

        The file is a zip archive of NumPy arrays and JSON. No suffix is added, and an existing file is replaced.
        Functions of the user, such as a custom optimisation routine, are stored by name only. `micro_moments` are
        stored where they are by column, and are None afterwards where they have functions.

        Raises
        ------
        DataError
            When a column that the problem uses holds objects other than strings, numbers, dates and timestamps.
        OSError
            When the file cannot be written.

        Warns
        -----
        DataWarning
            When such a column is left out, because the problem does not use it.
        """
        steps = [step_state(Step(step._result, step._options, step._estimated)) for step in self._steps]
        starts = None if self.starts is None else {name: column.to_numpy() for name, column in self.starts.items()}
        moments = None if self.micro_moments is None else moments_state(self.micro_moments)
        state = {"problem": self.problem.to_state(), "steps": steps, "starts": starts, "micro_moments": moments}
        storage.write(path, "results", {**state, **self._more_state()})

    def _more_state(self) -> dict[str, Any]:
        """What files hold beside that."""
        return {}

    @classmethod
    def from_state(
        cls,
        problem: SolvedProblem,
        steps: Sequence[dict[str, Any]],
        starts: dict[str, Any] | None = None,
        micro_moments: dict[str, Any] | None = None,
    ) -> "ProblemResults":
        """The last of the results that `save` described, with all previous ones."""
        results: ProblemResults | None = None
        for state in steps:
            step = read_step(state, problem.data.form)
            results = cls(problem, results, step.result, step.options, step.estimated)
            results.starts = None if starts is None else pd.DataFrame(starts)
            results.micro_moments = None if micro_moments is None else tuple(read_moments(micro_moments))
            if not step.options.micro:
                results.micro_moments = ()
        if results is None:
            raise ValueError("There are no GMM steps.")
        return results

    @property
    def formulated(self) -> Formulated:
        """Tables and formulas of the problem."""
        return self.problem.data

    def delta_method(
        self,
        function: Callable[[Model], Any],
        hold: str = "shares",
        iteration: Iteration | None = None,
        constant_costs: bool = True,
        *,
        as_frame: bool = False,
    ) -> Any:
        r"""Standard errors of any differentiable function of the model.

        With ``V = parameter_covariances / N`` and the derivatives J of the function in all Q `parameters` (theta and
        the concentrated elements of beta and gamma), covariances of what it returns are ``J V J'``. Derivatives are
        exact, also through equilibrium prices that the function solves for. What else moves with the parameters
        decides what is estimated:

        ``hold='shares'``
            the observed shares S and prices p stay as they are. Mean utilities are inverted again, ``s(delta(theta),
            p; theta) = S``, so that ``d delta / d theta = -(ds / d delta)^{-1} ds / d theta``, and costs follow from
            firms' first-order conditions, ``c(theta) = p - eta(delta(theta), p; theta)``. This is the uncertainty of
            what parameters imply for the markets that were observed. Xi and omega are different at other parameters.
        ``hold='xi'``
            xi, omega and fixed effects stay as they are, ``delta(theta) = X1(p) beta + xi + fe`` and, with a supply
            side, ``c(theta) = X3 gamma + omega + fe`` (log c with log costs). The model has equilibrium prices at these
            costs (observed prices without a supply side) and shares at these prices. This is what `bootstrap` does, to
            first order: its standard deviations agree with these standard errors when parameters are precise enough.

        The two have the same value at the estimates, unless some costs are clipped, but not the same standard errors.

        Parameters
        ----------
        function : maps a `Model` to an array or a pytree of arrays, in operations that JAX can differentiate: methods
            of the model, which have the names of those of these results and return columns such as (N, 1), its
            attributes `prices`, `shares` and `delta` (N,), and `jax.numpy`. For example ``lambda m:
            m.extract_diagonals(m.compute_elasticities()).mean()``, or the price changes of a merger, ``lambda m:
            m.compute_prices(firm_ids=merged, costs=m.compute_costs())[:, 0] - m.prices``.
        hold : see above.
        iteration, constant_costs : how to solve for prices with ``hold='xi'``, as in `compute_prices`.
        as_frame : whether to return `DeltaMethodResults.to_frame`. `compute` gives outputs by product, market or agent
            their labels, too.

        Returns
        -------
        DeltaMethodResults with `value`, `standard_errors`, `covariances`, `jacobian`, and confidence intervals.

        Covariances of parameters at a bound are used as they are reported, as if there were no bound; intervals are
        then not to be trusted. NaN in the value, such as padding, has standard errors of NaN.

        Raises
        ------
        TypeError
            When the function is none of operations of JAX, or returns integers.
        ValueError
            When covariances are unknown, or derivatives would take too much memory.

        Warns
        -----
        ConvergenceWarning
            With ``hold='xi'``, naming markets in which no equilibrium was found at the estimates.
        """
        from blpjax.inference.delta_method import apply_delta_method

        found = apply_delta_method(self, function, hold, iteration, constant_costs)
        return found.to_frame() if read_flag("as_frame", as_frame) else found

    def bootstrap(
        self,
        draws: int = 1000,
        seed: int | None = None,
        iteration: Iteration | None = None,
        constant_costs: bool = True,
    ) -> "BootstrappedResults":
        """Parametric bootstrap: results at parameters drawn from their asymptotic distribution.

        All `parameters` are drawn from the normal distribution with covariances ``parameter_covariances / N`` and
        clipped to their bounds. Mean utilities and costs follow them, with xi, omega and fixed effects as estimated.
        With a supply side, prices are solved for; then shares are computed. Draws are those of PyBLP with the same
        seed.

        Parameters
        ----------
        draws : number of draws. Prices, shares and delta of all of them are kept.
        seed : of `numpy.random.RandomState`.
        iteration : how to solve for prices, by default ``Iteration('squarem', {'atol': 1e-12})``. Not used without a
            supply side.
        constant_costs : whether costs stay as they are when shares change; if not, they move with shares in X3.

        Returns
        -------
        BootstrappedResults, whose compute methods return arrays with a first axis of draws.

        Raises
        ------
        ValueError
            When there are no draws, or covariances are unknown.

        Warns
        -----
        ConvergenceWarning
            Naming draws and markets for which no equilibrium was found. Results are NaN there.
        """
        from blpjax.inference.bootstrap import bootstrap_results

        return bootstrap_results(self, draws, seed, iteration, constant_costs)

    def reestimate(
        self,
        draws: int = 200,
        unit: str | None = None,
        seed: int = 0,
        *,
        recentre: bool = True,
        costs_bounds: Any = None,
        batch_size: int | None = None,
        path: str | os.PathLike[str] | None = None,
        executor: Any = None,
        memory: int | None = None,
    ) -> "ReestimationResults":
        """Bootstrap by re-estimation: estimates from samples of markets or clusters drawn with replacement.

        Unlike `bootstrap`, which draws parameters from their asymptotic normal distribution, this repeats the
        estimation: all GMM steps with their weighting matrices, from these estimates and with the default optimiser. A
        market that is drawn twice counts as two in all moments and covariances, and so does a cluster. Fixed effects
        are absorbed anew. A first step with another weighting matrix than that of 2SLS has it in all samples. Elements
        of theta on which structural errors do not depend at the estimates, such as a standard deviation of zero, begin
        at the starting values of `Problem.solve`, because they would stay where they are. Micro moments are those of
        samples of their own, of which only means are known: observed values are drawn from the normal distribution
        around those that there are, with `micro_covariances`.

        Draw d depends on `seed` and d alone. Samples are estimated in batches, as lanes of one compiled program.

        Parameters
        ----------
        draws : number of samples.
        unit : ``'markets'`` or ``'clusters'`` (by `clustering_ids`), as many of which are drawn as there are. By
            default clusters where standard errors or W are clustered, and otherwise markets. Clusters may divide
            markets: shares are inverted with all products. Clusters of several kinds are drawn independently of each
            other, and a product counts as often as the product of how often its clusters are drawn (Owen 2007).
        seed : of `jax.random`.
        recentre : whether averaged moments at these estimates are subtracted from those of samples (Hall and Horowitz
            1996). Without that an overidentified model does not hold in the population that samples are drawn from,
            and intervals are no refinement of asymptotic ones. It changes nothing where moments are as many as
            parameters.
        costs_bounds : those of `Problem.solve`, if there were any.
        batch_size, path, executor, memory : how many samples are processed together, where finished batches are kept
            and where they are run, and how many bytes a batch may need; see `MonteCarlo.run`.

        Returns
        -------
        ReestimationResults
            with a tidy `table`, a `summary` with standard errors and intervals, and, by its method `to_bootstrapped`,
            all outputs at the estimates of each sample.

        Raises
        ------
        ValueError
            When numbers are not positive integers; when clusters are drawn but there are none; when markets are drawn
            although covariances are clustered by what is in several markets; for results of an initial update; and
            when costs were bounded and `costs_bounds` is missing.
        NotImplementedError
            With covariance instruments, `moment_blocks`, simulation error, or shares that were inverted by a method on
            the host. With moments of innovations, unless clusters have all periods of their products. With micro
            moments whose functions files or pickles could not hold.
        StorageError, StudyError
            See `MonteCarlo.run`.
        """
        from blpjax.inference.reestimation import reestimate  # it needs what runs many lanes

        return reestimate(
            self,
            self._options,
            self.first_step(),
            draws,
            unit,
            seed,
            recentre,
            costs_bounds,
            micro=self._micro_blocks("reestimate"),
            batch_size=batch_size,
            path=path,
            executor=executor,
            memory=memory,
        )

    def compute_optimal_instruments(
        self,
        method: str = "approximate",
        draws: int = 1,
        seed: int | None = None,
        expected_prices: Any = None,
        iteration: Iteration | None = None,
        constant_costs: bool = True,
    ) -> "OptimalInstrumentResults":
        r"""Feasible optimal instruments for theta (Amemiya 1977, Chamberlain 1987).

        These are expected Jacobians of structural errors, given exogenous variables, times the inverse of the errors'
        sample covariance matrix:

        .. math:: \begin{bmatrix} Z_{D,jt} \\ Z_{S,jt} \end{bmatrix} = \Sigma_{\xi\omega}^{-1}
            E\left[\frac{\partial (\xi_{jt}, \omega_{jt})'}{\partial \theta} \mid Z\right].

        Expectations are averages over draws of xi and omega. At each draw prices and shares are those of the
        equilibrium, and Jacobians are evaluated there. Linear parameters that are concentrated out need no such
        instruments: `OptimalInstrumentResults.to_problem` adds characteristics for them.

        Parameters
        ----------
        method : ``'approximate'`` evaluates Jacobians once, at errors of zero; ``'normal'`` draws errors from a normal
            distribution with their sample covariances, ``'empirical'`` from the errors themselves, with replacement.
        draws : number of draws of all errors. With ``'approximate'`` there is one.
        seed : of `numpy.random.RandomState`, with PyBLP's draws for the same one. Without it they differ each time.
        expected_prices : (N,) expected prices given exogenous variables, at which all draws are evaluated. By default
            they are equilibrium prices of each draw if there is a supply side whose X3 does not contain shares, and
            otherwise fitted values of a regression of prices on demand-side instruments and fixed effects.
        iteration : how to solve for equilibrium prices, by default ``Iteration('squarem', {'atol': 1e-12})``. If it is
            given, prices are equilibrium prices even if X3 contains shares.
        constant_costs : whether marginal costs stay as they are when shares change; if not, they move with shares in
            X3. It matters for equilibrium prices where X3 contains shares.

        Returns
        -------
        OptimalInstrumentResults

        Raises
        ------
        ValueError, TypeError
            For arguments of the wrong shape or value, or an `iteration` that would not be used.
        GenericNumericalError
            When structural errors of these results are not finite.

        Warns
        -----
        ConvergenceWarning
            When equilibrium prices were not found in some market for some draw, which the market's averages leave out.
            (PyBLP averages whatever prices its loop has reached.)
        IdentificationWarning
            When there are covariance instruments, which are not optimised, or moments of innovations.
        """
        from blpjax.inference.optimal_instruments import compute_optimal_instruments

        return compute_optimal_instruments(self, method, draws, seed, expected_prices, iteration, constant_costs)

    def importance_sampling(
        self,
        draws: int,
        ar_constant: float = 1.0,
        seed: int | None = None,
        agent_data: Any = None,
        integration: Integration | None = None,
        delta: Any = None,
    ) -> "ImportanceSamplingResults":
        r"""Draw agents who are likely to buy, with weights that undo this (Berry, Levinsohn and Pakes 1995).

        A candidate i in market t is accepted with probability :math:`(1 - s_{i0t}) / M`, where :math:`1 - s_{i0t}` is
        the probability of buying anything at the estimates. Of those accepted, :math:`I_t` are drawn without
        replacement, with weights :math:`w_{it} = (1 - s_{0t}) / (1 - s_{i0t}) / I_t`. A market needs more than about
        :math:`M I_t / (1 - s_{0t})` candidates.

        Parameters
        ----------
        draws : number of agents to draw in each market.
        ar_constant : M, at least one.
        seed : of `numpy.random.RandomState`, with PyBLP's draws for the same one. Without it they differ each time.
        agent_data, integration : candidates, as in `Problem`; weights are not needed and play no role. By default the
            problem's agents.
        delta : (N,) mean utilities, by default those of these results; `compute_delta` finds more precise ones.

        Returns
        -------
        ImportanceSamplingResults

        Raises
        ------
        ValueError, TypeError
            For arguments of the wrong shape or value, and without X2.
        DataError
            When candidates cannot be used, or fewer than `draws` are accepted in a market, which the message names.
        """
        from blpjax.inference.importance_sampling import importance_sampling

        return importance_sampling(self, draws, ar_constant, seed, agent_data, integration, delta)

    def project_fixed_effects(
        self, formulation: Formulation, product_data: Any = None, weighting: "Weighting" = "gls"
    ) -> "FixedEffectProjection":
        r"""Tastes for characteristics that absorbed fixed effects contain (Nevo 2000, 2001; Chamberlain 1982).

        The fixed effects d of G products, say, are projected on characteristics X that do not vary within products,
        ``d = X b + xi``, by minimum distance:

        .. math:: \hat{b} = (X' V^{-1} X)^{-1} X' V^{-1} \hat{d}, \quad \hat{Var}(\hat{b}) = (X' V^{-1} X)^{-1}.

        V are the covariances of estimated effects. They account for the structural errors of a product's rows and for
        the estimation of all parameters, theta and linear ones, in the manner of `se_type`. For a plain logit they are
        those of a regression on product indicators. Simulation error enters through the parameters alone.

        Standard errors are about what the data say of these products: they take the residuals of d for zero up to
        estimation error, which the chi-squared test of the results examines.

        Parameters
        ----------
        formulation : characteristics, such as ``Formulation('1 + sugar + mushy')``.
        product_data : table with the absorbed variable, such as `product_ids`, and the characteristics; any number of
            rows for each level. By default the problem's product data.
        weighting : ``'gls'``, or ``'ols'`` for equal weights, ``b = (X'X)^{-1} X'd``, with covariances that V implies.

        Returns
        -------
        FixedEffectProjection

        Raises
        ------
        ValueError
            When X1 absorbs no fixed effects, or covariances of parameters are unknown.
        DataError
            When a characteristic varies within a level, a level is missing from `product_data`, or has a single row in
            the problem.
        IdentificationError
            When characteristics are collinear or more than fixed effects, or V is singular, which happens when products
            are within clusters.
        NotImplementedError
            With fixed effects in several dimensions, and for results with `micro_moments` or `moment_blocks`.
        """
        from blpjax.inference.fixed_effects import StepEstimates, project_fixed_effects

        evaluation, layout = self._result.outcome.evaluation, self._options.parameters.layout
        data = self.problem.data.model_data
        if self.moments.size != data.size:
            raise NotImplementedError(
                "Fixed effects cannot be projected from results with micro_moments or moment_blocks."
            )
        estimates = StepEstimates(
            data=self.problem.data,
            layout=layout,
            types=self._options.types,
            xi=self.xi[:, 0],
            xi_fe=self.xi_fe[:, 0],
            residuals=[np.asarray(u) for u in data.residuals(self.point)],
            delta_by_theta=np.asarray(evaluation.delta_by_theta),
            parameter_covariances=self.parameter_covariances,
            parameter_sensitivity=self.parameter_sensitivity,
        )
        return project_fixed_effects(estimates, formulation, product_data, weighting)

    def _micro_blocks(self, user: str) -> list[MicroMoments]:
        """The block of micro moments, for which functions of datasets and parts are called again, or none."""
        if not self._options.micro:
            return []
        if self.micro_moments is None:
            raise NotImplementedError(
                f"{user} needs the functions of micro moments, which files and pickles do not hold. Use moments by "
                "column, such as MicroMoment.mean, or results that were not loaded."
            )
        sample = self.micro_covariances if self._options.micro_sampled else None
        given = self.problem.data, self.micro_moments, sample, self._options.parameters
        return list(read_micro(*given, observed=False).blocks)

    def __getstate__(self) -> dict[str, Any]:
        lost = self.micro_moments is not None and moments_state(self.micro_moments) is None
        return {**self.__dict__, **({"micro_moments": None} if lost else {})}

    def _further_parts(self) -> list[Part]:
        if self.starts is None:
            return super()._further_parts()
        from blpjax.estimation.starts import describe_starts

        return [*super()._further_parts(), describe_starts(self.starts)]

    def survey_source(self) -> SurveySource:
        """What methods for micro data need."""
        known = self.problem.data
        return SurveySource(known, known.products, self.model, self._options.parameters.layout)

    @property
    def output_tables(self) -> OutputTables:
        """The problem's tables, which label outputs."""
        known = self.problem.data
        return OutputTables(known.product_table, known.market_index, known.agents_in_economy)

    def build_agents(self, agent_data: Any, integration: Integration | None) -> AgentsInEconomy:
        """The problem's economy with other agents."""
        return self.problem.data.build_agents(agent_data, integration, options.weights_tol)
