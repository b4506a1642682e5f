"""Problem: data and formulations in, results out. Orchestration only.

It has more than 500 lines because methods document all that can be given to them: two thirds are signatures and
docstrings. What is left of `solve`, `functions` and `compare_micro` shares the private methods that build an objective.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd

from blpjax import options
from blpjax.estimation import options as estimation_options
from blpjax.estimation import start_frac
from blpjax.estimation.diagnostics import report_outcome, warn_of_singularity, warn_of_subgroups
from blpjax.estimation.options import StepOptions
from blpjax.estimation.start_rho import fill_rho
from blpjax.estimation.step import StepContext, solve_step
from blpjax.inputs import arguments
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import check_order_condition
from blpjax.inputs.likelihood import MicroLikelihood
from blpjax.iteration import Iteration
from blpjax.machine.pickling import Picklable
from blpjax.model.parameters import Parameters
from blpjax.objective import programs
from blpjax.objective.absorption import build_projection
from blpjax.objective.blocks import MomentBlock
from blpjax.objective.data import ModelData
from blpjax.objective.dynamics import MomentTypes, MovingStep, check_phi, check_step, instrument_rank
from blpjax.objective.moments import GMM
from blpjax.objective.structure import Specification, StructuralModel, concentrated_columns
from blpjax.optimize.optimize import Optimization, OptimizationStatus
from blpjax.problem.data import DataHolder
from blpjax.problem.micro import read_micro, refuse_old_names
from blpjax.problem.results import ProblemResults
from blpjax.reporting.tables import Table
from blpjax.values import read_flag

if TYPE_CHECKING:
    from blpjax.inference.iia import IIATest
    from blpjax.objective.functions import ModelFunctions


class Problem(DataHolder, Picklable):
    """A BLP problem: demand and, with a third formulation, the marginal costs of firms that set prices.

    Parameters
    ----------
    product_formulations : Formulation or sequence of up to three Formulations
        X1, linear characteristics (with any absorbed fixed effects), X2, characteristics with random coefficients, and
        X3, characteristics that explain marginal costs (with any absorbed fixed effects). Without X2 demand is the
        plain logit. X3 may contain shares, not prices.
    product_data : DataFrame, dict of arrays, or structured array
        N rows. Required: `market_ids`, `shares` (in (0, 1), summing to less than one in every market) and `prices`.
        With X3 also `firm_ids`, or `ownership` matrices stacked by market (`build_ownership`), which come first.
        Optional: `demand_instruments0`, `demand_instruments1`, ... or a matrix `demand_instruments`, and likewise
        `supply_instruments` and `covariance_instruments` for X3, `product_ids`, `clustering_ids` (for errors that are
        correlated within clusters of several kinds, such as markets and brands, `clustering_ids0`, `clustering_ids1`
        and so on), `nesting_ids` for the nested logit and RCNL, `subnesting_ids` for groups within these groups, of
        which the same ID in two groups means two subgroups, `lag_indices`, the row of each product's lag (counted from
        zero in the order of the table; the row itself for an initial period), and whatever the formulas name.
    agent_formulation : Formulation, optional
        Demographics d.
    agent_data : DataFrame, dict of arrays, or structured array, optional
        Rows are agents. `market_ids`, `weights` and `nodes0`, `nodes1`, ... (or a matrix `nodes`), and demographics.
        Optional: `agent_ids`, and `availability0`, `availability1`, ... (or a matrix `availability`), factors of exp V
        for the products of the agent's market in the order of the product table, of which zero leaves a product out. A
        demographic with numbered columns instead of one is specific to products, likewise.
    integration : Integration, optional
        Builds nodes and weights, instead of those of `agent_data`.
    rc_types : sequence of K2 types, optional
        How each random coefficient follows from its linear index, by default ``'linear'``: the index itself. ``'log'``
        is its exponential, ``'logit'`` its logistic function, and a function of JAX arrays anything else. A
        `Transformation` is a function with parameters of its own, which `solve` estimates as tau.
    epsilon_scale : float, optional
        Factor of the idiosyncratic taste shocks; small values come near to pure characteristics. The default inversion
        solved all stress markets of the benchmarks at 1e-4, and single ones down to 1e-6.
    costs_type : {'linear', 'log'}
        Whether X3 explains marginal costs or their logarithms.
    add_exogenous : bool, optional
        Whether to add the columns of X1 that do not contain prices, and those of X3 that do not contain shares, to the
        instruments. If false, `demand_instruments` and `supply_instruments` are all instruments, and fixed effects have
        to be absorbed from them beforehand (`build_matrix` does that).
    conduct : Conduct, optional
        How firms compete, such as ``blpjax.Cournot()`` or ``blpjax.TwoTier()``: see docs/conduct.md. Marginal costs are
        then prices less its markups, in estimation and in everything after it. A `Parameter` in place of a number of
        it, such as a profit weight or a bargaining power, is estimated. Columns that it reads are those of
        `product_data`. By default firms set prices, as `firm_ids` or `ownership` say.

    Attributes
    ----------
    T, N, F, I : numbers of markets, products in all markets, firms and agents.
    K1, K2, K3, D : numbers of columns of X1, X2, X3 and demographics.
    MD, MS, MC : numbers of demand, supply and covariance instruments.
    ED, ES : numbers of dimensions of fixed effects absorbed from demand and supply.
    H : number of nesting groups.
    unique_market_ids, unique_firm_ids, unique_product_ids, unique_agent_ids, unique_nesting_ids : sorted IDs.
    unique_subnesting_ids : sorted pairs (S, 2) of the IDs of a group and of a subgroup within it.
    products, agents : structured arrays of the data, with fields such as `X1`, `X2`, `X3`, `ZD`, `ZS`, `nodes`.

    Raises
    ------
    DataError
        When a table cannot be used; the message names table, column, market and row.
    IdentificationError
        When prices are in neither X1 nor X2, or in X3.

    Warns
    -----
    IdentificationWarning
        When columns of X1, X2 or X3 are collinear, so that `solve` cannot estimate the coefficients of all of them.
    """

    @refuse_old_names
    def solve(
        self,
        sigma: Any = None,
        pi: Any = None,
        rho: Any = None,
        phi: Any = None,
        beta: Any = None,
        gamma: Any = None,
        sigma_bounds: Any = None,
        pi_bounds: Any = None,
        rho_bounds: Any = None,
        phi_bounds: Any = None,
        beta_bounds: Any = None,
        gamma_bounds: Any = None,
        delta: Any = None,
        method: str = "2s",
        initial_update: bool | None = None,
        optimization: Optimization | None = None,
        scale_objective: bool = True,
        check_optimality: str = "both",
        finite_differences: bool = False,
        error_behavior: str | None = None,
        error_punishment: float = 1,
        delta_behavior: str | None = None,
        iteration: Iteration | None = None,
        fp_type: str = "safe_linear",
        shares_bounds: Any = (1e-300, None),
        costs_bounds: Any = None,
        W: Any = None,
        center_moments: bool = True,
        W_type: str = "robust",
        se_type: str = "robust",
        demand_moment_types: str | Sequence[tuple[str, int]] = "levels",
        supply_moment_types: str | Sequence[tuple[str, int]] = "levels",
        covariance_moments_mean: float = 0,
        micro_moments: Sequence[Any] = (),
        micro_sample_covariances: Any = None,
        resample_agent_data: Callable[[int], Any] | None = None,
        tau: Any = None,
        tau_bounds: Any = None,
        starts: Any = None,
        moment_blocks: Sequence[MomentBlock] = (),
        likelihood: MicroLikelihood | None = None,
        path: str | os.PathLike[str] | None = None,
        kappa: Any = None,
        kappa_bounds: Any = None,
    ) -> ProblemResults:
        """Estimate the parameters by one-step or two-step GMM, or by likelihood.

        Parameters
        ----------
        sigma : (K2, K2) array
            Starting values of the lower-triangular Cholesky root of the covariance matrix of tastes. Zeros stay zero.
            ``'auto'`` frees the diagonal and starts at the values of `compute_frac_starts`.
        pi : (K2, D) array
            Starting values of the interactions with demographics. Zeros stay zero. ``'auto'`` frees all of them and
            starts at the values of `compute_frac_starts`.
        rho : float or (H,) array
            Starting values of the nesting parameter of all groups, or of each group's in the order of
            `unique_nesting_ids`. Zeros stay zero. Required with `nesting_ids`. ``'auto'``, or H times that, starts at
            linear instrumental variables estimates, where rho is the coefficient on the logarithm of shares within
            groups (Berry 1994). Without random coefficients and supply, these are the estimates of the first step.
            With `subnesting_ids` there are two elements, of all groups and of all subgroups, or H + S, of each group
            and then of each subgroup in the order of `unique_subnesting_ids` (Verboven 1996). Subgroups' parameters
            start at or above those of their groups, below which they are not where consumers maximise utility.
        phi : float or (2, 2) array
            Starting values of how structural errors follow from their lags, which `lag_indices` of the product data
            say: the number for xi, or with X3 ``[[xi on xi, xi on omega], [omega on xi, omega on omega]]``. Zeros stay
            zero. Required with `lag_indices`. Only `demand_moment_types` and `supply_moment_types` other than levels
            depend on it.
        beta : (K1,) array, optional
            NaN or None concentrates an element out (the default for all); zeros stay zero; others become part of theta.
            With a supply side elements on prices cannot be concentrated out, because costs depend on them.
        gamma : (K3,) array, optional
            The same for the parameters of marginal costs.
        tau : array, optional
            Starting values of the parameters of `Transformation` in `rc_types`, one after the other. Zeros stay zero.
        kappa : float or (C,) array, optional
            Starting values of the parameters of conduct, see `Parameter`, in its order. Zeros stay zero. Required where
            there are some.
        sigma_bounds, pi_bounds, rho_bounds, tau_bounds, phi_bounds, kappa_bounds, beta_bounds, gamma_bounds : pairs
            Lower and upper bounds, optional. Equal bounds fix an element, None and NaN are none. By default rho is
            between zero and 0.99, the diagonal of sigma at least zero, or at most zero where it starts below that, and
            kappa where docs/conduct.md says: profit weights are between zero and one.
        delta : (N,) array, optional
            Where inversions of shares start, by default the logit solution.
        method : {'2s', '1s'}
        initial_update : bool, optional
            Whether to update W and delta at the starting values first. By default this is done only where it has to be:
            with micro moments, or `SampleMoments` among `moment_blocks`, and without W.
        optimization : Optimization, optional
            By default ``Optimization('trust-region')``: bounded Gauss-Newton steps with learned curvature.
        scale_objective : bool
            Whether the objective is multiplied by N, so that it is Hansen's J statistic after two steps.
        check_optimality : {'both', 'gradient'}
            Whether to compute the (exact) Hessian too, other than at an initial update.
        finite_differences : bool
            Whether derivatives are central differences, with steps of `options.finite_differences_epsilon`, other than
            in the Hessian. They need less memory, and more time. Their errors keep gradients from vanishing: the
            default optimiser's ``floor_tol`` is then 1e-8 unless `optimization` says something else.
        error_behavior : {None, 'revert', 'punish', 'raise'}
            What optimisation routines see where an evaluation fails. By default, whatever makes them step back.
            ``'revert'``: the objective of the last evaluation that succeeded, times `error_punishment`, and its
            gradient (before any, 1e10 and zero). ``'punish'``: `error_punishment` and a gradient of zero. Failed values
            are never estimates. ``'raise'`` raises `ConvergenceError` at once, and when optimisation does not converge.
        error_punishment : float, see `error_behavior`.
        delta_behavior : {None, 'predicted', 'first', 'logit', 'last'}
            Where inversions start: at the first-order prediction from the best evaluation so far, at `delta` (or the
            last GMM step's solution), at the logit solution, or at the last solution. None is ``'predicted'`` for the
            default optimiser and ``'first'`` for others. Solutions are the same up to the tolerance of `iteration`.
        iteration : Iteration, optional
            By default ``Iteration('anderson', {'atol': 1e-13})``.
        fp_type : {'safe_linear', 'linear', 'safe_nonlinear', 'nonlinear'}
            Whether ``'simple'``, ``'squarem'`` and methods that run on the host iterate on delta or, if nonlinear, on
            its exponential; then `iteration` is by default ``Iteration('squarem')``. All types are protected against
            overflow.
        shares_bounds : pair of floats, optional
            At which simulated shares are clipped before their logarithms are taken. Results have `clipped_shares`.
        costs_bounds : pair of floats, optional
            Bounds at which marginal costs are clipped, by default none. Log costs that may be negative need a positive
            lower bound.
        W : (M, M) array, optional
            Initial weighting matrix, by default that of 2SLS, for M = MD + MS + MC moments and micro moments.
        covariance_moments_mean : float
            Mean m of ``(xi omega - m) Z`` in the moments of covariance instruments.
        resample_agent_data : callable, optional
            Adds simulation error to the covariances of moments, for standard errors and for the weighting matrix. It
            maps an index, counted from zero, to agent data drawn again, with nodes and weights as in `Problem`, and
            returns None when there are no more, after at least two. Moments are evaluated at the step's estimates of
            theta for each set of agents, and the sample covariances of averaged moments are added to S, as in PyBLP.
            (S are covariances of moments times sqrt(N), so this is an N-th of what the variance of averaged moments
            adds to it. Results have it as `simulation_covariances`.) The callable is called anew in each GMM step.
        center_moments, W_type, se_type
            Whether moments are centred, and the type of W and of standard errors: ``'robust'``, ``'clustered'`` or
            ``'unadjusted'``. With clusters of several kinds, contributions that share a cluster of any kind are
            correlated (Cameron, Gelbach and Miller 2011). Negative eigenvalues, which there may be with few clusters,
            are set to zero in covariances of parameters and before W is updated, with a warning.
        demand_moment_types, supply_moment_types : str or list of pairs, optional
            What instruments are orthogonal to: ``'levels'`` of xi or omega, ``'innovations'``, which are what their
            lags do not explain by `phi`, or ``'differenced_innovations'``, innovations less their lags (Arellano and
            Bond 1991). Rows without the lags that they need count as zeros. In a list such as ``[('levels', 2),
            ('innovations', 3)]`` each type has so many of the columns of `products.ZD` or `products.ZS`, in their
            order. W is by default that of 2SLS for each type.
        micro_moments : sequence of MicroMoment, optional
            MM micro moments, which stand last among moments. Their weights are zero until W is updated. Linear
            parameters that are concentrated out are estimated by the other moments. Functions of datasets and parts are
            called once for each market, before anything is estimated.
        micro_sample_covariances : (MM, MM) array, optional
            Sample covariances of observed values, in place of those that the model has for samples of as many
            respondents as datasets have observations.
        starts : int, Starts, list of mappings or (S, P) array, optional
            Tries many starting values of theta, and begins at the best local minimum of the first step's objective that
            they lead to. A number stands for the given values and quasi-random points within bounds, `Starts` has a
            seed and a box. A list of mappings from names of parameters to matrices, such as ``[{"sigma": ..., "pi":
            ...}, ...]``, or an array with a row for each start holds the values themselves; what mappings leave out has
            the given value, and zeros of given matrices stay zero. With the default optimiser and its default options,
            or ``'optax-l-bfgs'``, starts are tried at the same time, and otherwise one after the other. The best one
            has the smallest objective of those where optimisation converged and second-order conditions hold. W is that
            before any initial update; but with micro moments, or `SampleMoments`, and without W, that after the update
            at the given values. Results have a table of `starts`.
        moment_blocks : sequence of MomentBlock, optional
            Moments of one's own, beside those of the instruments: see `blpjax.MomentBlock` for averages over products
            and `blpjax.SampleMoments` for what comes from another sample. They stand last in `moments`, `W` and so on.
        likelihood : MicroLikelihood, optional
            Estimates by the likelihood of consumers' choices and of shares, with exogeneity restrictions, in place of
            GMM. There is one step, whatever `method` is; all of beta is estimated from mean utilities; and what only
            GMM has (weighting matrices, types of covariances, other moments, a supply side) has to be left out.
        path : str or PathLike, optional
            A file for the best point of each GMM step so far, which is replaced whenever there is a better one. Where
            the file is there, because an estimation of the same parameters on as many products was killed or has ended,
            steps begin at its points instead of the starting values. Estimates are then the same up to the tolerance of
            the optimiser. The file has theta only, and no data.

        Returns
        -------
        ProblemResults, or with `likelihood` a `LikelihoodResults`.

        Raises
        ------
        NotImplementedError
            For what likelihoods do not support; the message says what to use.
        DataError
            When `likelihood` has a survey or market sizes that cannot be used, naming column, market and row.
        ValueError, TypeError
            For arguments of the wrong shape or value.
        IdentificationError
            When columns with estimated coefficients are collinear, there are fewer moments than parameters (a warning
            with ``Optimization('return')``), or something is singular and `options.pseudo_inverses` is off. When no
            moments depend on phi, or their types leave nothing of a column of X1 or X3, as differences of a constant.
        ConvergenceError
            Only with ``error_behavior='raise'``.
        StorageError
            When the file at `path` cannot be read or written, or belongs to another estimation.
        """
        arguments.check_choice("method", method, ("1s", "2s"))
        if likelihood is not None:
            given = {name: value for name, value in locals().items() if name not in ("self", "likelihood")}
            from blpjax.problem.likelihood import solve_by_likelihood  # imports much that only likelihoods need

            return solve_by_likelihood(self, likelihood, given)
        bounds = {"sigma": sigma_bounds, "pi": pi_bounds, "rho": rho_bounds, "tau": tau_bounds}
        bounds |= {"phi": phi_bounds, "kappa": kappa_bounds, "beta": beta_bounds, "gamma": gamma_bounds}
        supports_bounds = getattr(optimization, "supports_bounds", True)
        sigma, pi = start_frac.fill_starts(self.data, sigma, pi, bounds)
        rho = fill_rho(self.data, rho, rho_bounds)
        bounds_on_costs = arguments.read_costs_bounds(costs_bounds, self.model_data.supply is not None)
        moment_types = self.data.read_moment_types(demand_moment_types, supply_moment_types)
        more = {"tau": tau, "phi": phi, "kappa": kappa}
        parameters = self.read_parameters(sigma, pi, rho, beta, gamma, bounds, supports_bounds, **more)
        micro = read_micro(self.data, micro_moments, micro_sample_covariances, parameters)
        simulate = None
        if resample_agent_data is not None:
            from blpjax.objective.simulation_error import AgentSamples, simulation_covariances

            samples = AgentSamples(resample_agent_data, self.data, options.weights_tol, micro.with_agents)
            simulate = partial(simulation_covariances, samples, self.market_index.ids)
        data = self._data_of_moments(
            bounds_on_costs, covariance_moments_mean, moment_blocks, moment_types, micro.blocks
        )
        step_options = estimation_options.read_step_options(
            parameters=parameters,
            micro=micro.lines,
            micro_sampled=micro.size > 0 and micro_sample_covariances is not None,
            costs_bounded=bool(np.isfinite(bounds_on_costs).any()),
            optimization=optimization,
            iteration=arguments.read_inversion(iteration, fp_type, shares_bounds),
            check_optimality=check_optimality,
            error_behavior=error_behavior,
            error_punishment=error_punishment,
            finite_differences=finite_differences,
            delta_behavior=delta_behavior,
            scale_objective=scale_objective,
            W_type=W_type,
            se_type=se_type,
            center_moments=center_moments,
            n_clusters=None if self.product_table.clustering_ids is None else self.clusters[1],
            moment_types=moment_types,
        )
        names, returned = step_options.parameters.parameter_labels, not step_options.optimization.routine.optimizes
        added = sum(block.size for block in moment_blocks) + micro.size
        rank = instrument_rank(data.blocks[: -len(data.more) or None]) if moment_types else self.instrument_rank
        check_order_condition(rank + added, len(names), names, warn=returned)
        initial_update = estimation_options.read_initial_update(initial_update, W is None and data.needs_update)
        steps = [(0, "return")] if initial_update else []
        steps += [(1, "")] + ([(2, "")] if method == "2s" else [])
        start_delta = self._read_delta(delta, step_options.parameters)
        context = self._step_context(step_options, data, self._read_weights(W, data), simulate)
        if path is not None:
            checkpoint = estimation_options.read_checkpoint(path, step_options, self.N, starts is not None)
            context = dataclasses.replace(context, checkpoint=checkpoint)
        self._check_dynamics(step_options, context)
        theta = step_options.parameters.theta
        table = None
        # where some moments have no weights yet, they get those of the given values first
        before = 1 if W is None and data.needs_update else steps[0][0]
        results: ProblemResults | None = None
        for step, kind in steps:
            if starts is not None and step == before:
                from blpjax.estimation.starts import try_starts  # it needs what runs many lanes

                trials = try_starts(starts, step_options, context, start_delta)
                table = trials.table
                theta = theta if trials.theta is None else trials.theta
            began = time.perf_counter()
            current = step_options
            if kind == "return":
                current = dataclasses.replace(
                    step_options, optimization=Optimization("return"), check_optimality="gradient"
                )
            options.output("")
            options.output(f"Starting GMM step {step} ...")
            if context.checkpoint is not None and step > 0:
                theta = context.checkpoint.start(step, theta, step_options.parameters.bounds)
            outcome = solve_step(step, current, context, theta, start_delta)
            interrupted = outcome.outcome.status is OptimizationStatus.INTERRUPTED
            last = interrupted or step == steps[-1][0]
            report_outcome(outcome, time.perf_counter() - began)
            micro.check_variances(np.asarray(outcome.summary.moments_covariances), self.N)
            warn_of_singularity(outcome, current.types, context, current.parameters.theta_names)
            results = ProblemResults(self, results, outcome, current, estimated=last)
            results.starts, results.micro_moments = table, micro.moments
            theta, start_delta = outcome.theta, outcome.delta
            if options.verbose:
                options.output(f"\n{results}")
            if last:
                break
            context = context.weigh(np.asarray(outcome.summary.updated_W))
        assert results is not None
        warn_of_subgroups(results.rho[:, 0], self.data.labels)
        return results

    def compare_micro(
        self,
        micro_moments: Sequence[Any],
        sigma: Any = None,
        pi: Any = None,
        rho: Any = None,
        *,
        phi: Any = None,
        beta: Any = None,
        gamma: Any = None,
        tau: Any = None,
        kappa: Any = None,
        delta: Any = None,
        micro_sample_covariances: Any = None,
        iteration: Iteration | None = None,
    ) -> pd.DataFrame:
        """What the model says of micro moments at some parameters, next to what is observed: a look before estimating.

        Mean utilities are those at which the model has the observed shares, as in `solve`, whose arguments these are.
        Programs that this compiles are those of `solve`.

        Parameters
        ----------
        micro_moments : sequence of MicroMoment, which need no observed values here.
        sigma, pi, rho, phi, beta, gamma, tau, kappa : parameters, such as starting values. Zeros are fixed.
        delta : (N,) where inversions start.
        micro_sample_covariances : (MM, MM) covariances of observed values. By default those of sampling so many
            respondents from the model.
        iteration : how shares are inverted.

        Returns
        -------
        DataFrame with a row for each moment and columns `moment`, `observed`, `value` (of the model), `difference`
        (observed less value), `se` (of the observed value), `t`, `informative`, and ``d/d label``, derivatives of the
        model's value in each element of theta.

        Raises
        ------
        TypeError, ValueError, RuntimeError, DataError
            When an argument cannot be used.
        DeltaConvergenceError
            When shares cannot be inverted at these parameters, naming markets.

        Warns
        -----
        IdentificationWarning
            When a moment does not depend on any element of theta: `informative` is false.
        """
        sigma, pi = start_frac.fill_starts(self.data, sigma, pi, {})
        rho = fill_rho(self.data, rho, None)
        more = {"tau": tau, "phi": phi, "kappa": kappa}
        parameters = self.read_parameters(sigma, pi, rho, beta, gamma, {}, bounded=False, **more)
        micro = read_micro(self.data, micro_moments, micro_sample_covariances, parameters, observed=False)
        if not micro.size:
            raise ValueError("micro_moments must have at least one moment.")
        costs_bounds = arguments.read_costs_bounds(None, self.model_data.supply is not None)
        data = self._data_of_moments(costs_bounds, 0, (), self.data.read_moment_types("levels", "levels"), micro.blocks)
        chosen = arguments.read_inversion(iteration, "safe_linear", (1e-300, None))
        specification = Specification(parameters.layout, chosen.fixed_point)
        from blpjax.problem.comparison import compare_moments

        return compare_moments(
            micro,
            self._objective(specification, parameters, chosen, data, np.eye(data.size), True),
            parameters.theta,
            self._read_delta(delta, parameters),
            (self.residualize_demand, self.residualize_supply),
            theta_labels=parameters.theta_labels,
            market_ids=self.market_index.ids,
        )

    def compute_frac_starts(
        self, sigma: Any = None, pi: Any = None, floor: float = start_frac.FLOOR
    ) -> start_frac.FracStarts:
        r"""Starting values of sigma and pi from a linear regression: the FRAC estimator of Salanié and Wolak (2022).

        To second order in the random coefficients, ``log(s_j / s_0)`` is linear in X1, in artificial regressors whose
        coefficients are the variances and covariances of tastes, ``x_k (x_k / 2 - sum_l s_l x_lk)`` for a variance, and
        in X2 times the means of demographics. Two-stage least squares with the demand-side instruments estimates the
        coefficients. How much demographics vary within markets is taken into account by repeating it. Estimates are
        biased towards zero where tastes vary much, but start the optimisation of the GMM objective in a good place.

        Nodes have to have means of zero and variances of one. Elements of pi that cannot be told from means of
        demographics, because these are the same in all markets, start at small positive values.

        Parameters
        ----------
        sigma : (K2, K2) array whose nonzero elements are free, by default the diagonal.
        pi : (K2, D) array whose nonzero elements are free, by default all.
        floor : least standard deviation of a random coefficient times the root mean square of its characteristic, so
            that elements whose estimated variance is negative are free as well.

        Returns
        -------
        FracStarts with `sigma` (K2, K2) and `pi` (K2, D) for `solve`, `beta` (K1,), and `covariances` (K2, K2).

        Raises
        ------
        ValueError
            Without X2, or for arrays of the wrong shape.
        IdentificationError
            When there are fewer instruments than coefficients, or they do not identify them.
        NotImplementedError
            With nests, random coefficients of other types, or agents' own availability of products.
        """
        return start_frac.compute_frac_starts(self.data, sigma, pi, floor)

    def run_iia_test(
        self, formulation: Formulation, instruments: Formulation | None = None, se_type: str = "robust"
    ) -> "IIATest":
        r"""Test whether the logit's independence of irrelevant alternatives fits the data (Gandhi and Houde 2020).

        Under the logit, mean utilities ``log(s_j / s_0)`` depend on a product's own characteristics alone. With random
        coefficients or nests they depend on what rivals are like: a regression on X1 and on variables A such as
        differentiation instruments, by two-stage least squares, has nonzero coefficients on A. The Wald test that these
        are zero needs no estimates of random coefficients. Where it does not reject, A hardly identify them.

        Parameters
        ----------
        formulation : A, exogenous columns of product data, such as ``Formulation("0 + quadratic0 + quadratic1")`` of
            `build_differentiation_instruments`, without what X1 has. They are instruments for themselves. Fixed effects
            of X1 are absorbed from them.
        instruments : exogenous columns of product data that are instruments for prices, beside exogenous columns of X1,
            by default the demand-side instruments. Other functions of what rivals are like, among them, belong to A.
        se_type : ``'robust'``, ``'clustered'`` by `clustering_ids`, or ``'unadjusted'``.

        Returns
        -------
        IIATest with `statistic`, `degrees_of_freedom`, `p_value`, and a `table` of coefficients.

        Raises
        ------
        DataError
            When a variable is missing from product data or cannot be used.
        IdentificationError
            When a formulation contains prices or shares, columns of A are collinear with each other or with X1, or
            instruments are fewer than coefficients.
        ValueError, TypeError
            For other arguments that cannot be used.
        """
        from blpjax.inference.iia import iia_test

        return iia_test(self.data, formulation, instruments, se_type)

    def functions(
        self,
        sigma: Any = None,
        pi: Any = None,
        rho: Any = None,
        beta: Any = None,
        gamma: Any = None,
        *,
        W: Any = None,
        delta: Any = None,
        scale_objective: bool = True,
        iteration: Iteration | None = None,
        costs_bounds: Any = None,
        covariance_moments_mean: float = 0,
        tau: Any = None,
        phi: Any = None,
        kappa: Any = None,
        demand_moment_types: str | Sequence[tuple[str, int]] = "levels",
        supply_moment_types: str | Sequence[tuple[str, int]] = "levels",
        moment_blocks: Sequence[MomentBlock] = (),
    ) -> "ModelFunctions":
        """The model as compiled, differentiable functions of theta, for other optimisers and samplers.

        Parameters are those of `solve`: zeros fix elements of the parameters, W (M, M) is the weighting matrix (by
        default that of 2SLS) and `delta` (N,) is where inversions start (by default the logit solution).
        """
        more = {"tau": tau, "phi": phi, "kappa": kappa}
        parameters = self.read_parameters(sigma, pi, rho, beta, gamma, {}, bounded=False, **more)
        bounds_on_costs = arguments.read_costs_bounds(costs_bounds, self.model_data.supply is not None)
        moment_types = self.data.read_moment_types(demand_moment_types, supply_moment_types)
        data = self._data_of_moments(bounds_on_costs, covariance_moments_mean, moment_blocks, moment_types)
        chosen = Iteration() if iteration is None else iteration
        specification = Specification(parameters.layout, chosen.fixed_point)
        weights = self._read_weights(W, data)
        from blpjax.objective.functions import ModelFunctions

        return ModelFunctions(
            minimand=self._objective(specification, parameters, chosen, data, weights, scale_objective),
            characteristics=self.characteristics,
            start=jax.device_put(self._read_delta(delta, parameters)),
            theta=jax.device_put(parameters.theta),
            theta_labels=tuple(parameters.theta_labels),
        )

    def replace_instruments(
        self, demand_instruments: np.ndarray, supply_instruments: np.ndarray
    ) -> "OptimalInstrumentProblem":
        """The same problem with other excluded instruments, to which exogenous columns of X1 and X3 are added.

        Parameters
        ----------
        demand_instruments : (N, n) excluded demand-side instruments, before absorption of fixed effects.
        supply_instruments : (N, m) excluded supply-side instruments, or (N, 0) without a supply side.

        Raises
        ------
        ValueError
            When they are not finite matrices with N rows, or there are supply-side instruments without a supply side.

        Warns
        -----
        IdentificationWarning
            When instruments are collinear.
        """
        Z = demand_instruments, supply_instruments
        return OptimalInstrumentProblem._derive(lambda tolerances: self.data.replace_instruments(*Z, tolerances))

    def replace_agents(self, agent_data: Any) -> "ImportanceSamplingProblem":
        """The same problem with other agents, whose weights need not sum to one.

        Parameters
        ----------
        agent_data : as in `Problem`, with weights and nodes.

        Raises
        ------
        DataError
            When agents cannot be used, or a level of a categorical demographic is missing.
        """
        return ImportanceSamplingProblem._derive(lambda tolerances: self.data.replace_agents(agent_data, tolerances))

    def _data_of_moments(
        self,
        costs_bounds: np.ndarray,
        covariance_moments_mean: Any,
        moment_blocks: Sequence[MomentBlock],
        moment_types: MomentTypes,
        micro: Sequence[MomentBlock] = (),
    ) -> ModelData:
        """Data of all moments with bounds on costs (2,), the mean of covariance moments, and more blocks in place."""
        data = self.data.moments_of(moment_types)
        mean = arguments.read_covariance_mean(covariance_moments_mean, data.covariance is not None)
        blocks = (*estimation_options.read_moment_blocks(moment_blocks, data), *micro)
        changed = data.at(costs_bounds=costs_bounds, covariance_mean=mean)
        absorbed = (self.demand_ids, self.supply_ids)
        return changed.add(blocks, [build_projection(ids) for ids in absorbed[: len(data.equations)]] if blocks else ())

    def _check_dynamics(self, step_options: StepOptions, context: StepContext) -> None:
        """Refuse types of moments that do not identify parameters, and say which there are."""
        parameters, types = step_options.parameters, step_options.moment_types
        layout, data, step = parameters.layout, context.objective.data, context.objective.weighting.step
        check_phi(layout, parameters.theta_labels[layout.part("phi")], types)
        if data.dynamics is not None and isinstance(step, MovingStep):
            arrays = programs.on_host((data.dynamics, step, concentrated_columns(layout, data)))
            check_step(*arrays, np.asarray(parameters.start.phi), parameters.parameter_labels[layout.P :])
        for side, counts in types._asdict().items():
            if counts:
                options.output("")
                kinds, sizes = [kind for kind, _ in counts], [str(count) for _, count in counts]
                options.output(str(Table([kinds], [sizes], f"{side.capitalize()} Moment Counts")))

    def _moment_labels(self, data: ModelData) -> list[str]:
        known = self.MD + self.MS + self.MC
        return [*self.instrument_labels, *[label for block in data.blocks for label in block.labels][known:]]

    def _read_weights(self, W: Any, data: ModelData) -> np.ndarray:
        if W is not None:
            return estimation_options.read_weights(W, data.size)
        weights = np.asarray(programs.initial_weights(data))
        if not data.needs_update:
            estimation_options.refuse_pseudo_inverse(weights, self._moment_labels(data))
        return weights

    def _read_delta(self, delta: Any, parameters: Parameters) -> np.ndarray:
        if delta is None:
            return self.closed_form_delta(np.asarray(parameters.start.rho))
        return arguments.read_vector("delta", delta, self.N, self.product_table.index)

    def _step_context(
        self, step_options: StepOptions, data: ModelData, weights: np.ndarray, simulate: programs.Simulate | None
    ) -> StepContext:
        parameters, iteration = step_options.parameters, step_options.iteration
        return StepContext(
            objective=self._objective(
                step_options.specification, parameters, iteration, data, weights, step_options.scale_objective
            ),
            market_ids=self.market_index.ids,
            cluster_ids=self.clusters[0],
            residualize=(self.residualize_demand, self.residualize_supply),
            logit_delta=self.closed_form_delta(np.asarray(parameters.start.rho)),
            moment_labels=self._moment_labels(data),
            problem=self,
            simulate=simulate,
        )

    def _objective(
        self,
        specification: Specification,
        parameters: Parameters,
        iteration: Iteration,
        data: ModelData,
        W: np.ndarray,
        scaled: bool,
    ) -> GMM:
        fixed, limits = jax.device_put(jax.tree.map(np.asarray, (parameters.start, iteration.limits)))
        model = StructuralModel(specification, self.economy, data, fixed, limits)
        return programs.weighted(model, W, 1.0 if read_flag("scale_objective", scaled) else 1.0 / self.N)


class OptimalInstrumentProblem(Problem):
    """A problem with optimal excluded instruments, from `OptimalInstrumentResults.to_problem`, used like others."""


class ImportanceSamplingProblem(Problem):
    """A problem with sampled agents, from `ImportanceSamplingResults.to_problem`, used like others."""
