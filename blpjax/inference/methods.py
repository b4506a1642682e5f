"""Inference beyond standard errors: functions of the estimates, bootstraps, and what further estimation needs."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from blpjax.inference.diagnostics import DiagnosticMethods
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.iteration import Iteration
from blpjax.model.model import Model
from blpjax.objective.micro import MicroMoments
from blpjax.values import read_flag

if TYPE_CHECKING:  # what methods import when they are called
    from blpjax.inference.bootstrap import BootstrappedResults
    from blpjax.inference.fixed_effects import FixedEffectProjection, Weighting
    from blpjax.inference.importance_sampling import ImportanceSamplingResults
    from blpjax.inference.optimal_instruments import OptimalInstrumentResults
    from blpjax.inference.reestimation_results import ReestimationResults


class InferenceMethods(DiagnosticMethods):
    """Results whose uncertainty can be carried to other numbers, and that further estimation can start from."""

    def _micro_blocks(self, user: str) -> list[MicroMoments]:
        """Blocks of micro moments, for the method `user` that calls functions of datasets and parts again."""
        raise NotImplementedError

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
