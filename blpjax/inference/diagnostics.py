"""Diagnostics that results have after estimation, beside tests of restrictions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from blpjax.estimation.estimates import Estimates
from blpjax.inference.conduct_test_results import ConductTest
from blpjax.inference.integration_report import IntegrationReport
from blpjax.inputs.formulation import Formulation
from blpjax.model.model import Model
from blpjax.objective.moments import lacks_influence


class FirstStep(NamedTuple):
    """Where the first step of each estimation begins: theta (P,), and the full sample's weighting matrix (M, M)."""

    theta: np.ndarray
    W: np.ndarray


class DiagnosticMethods(Estimates):
    """Results of which one can ask how far to trust them."""

    def compute_instrument_strength(self) -> pd.DataFrame:
        r"""How strong demand-side instruments are for each parameter, in the problem linearised at these estimates.

        Endogenous regressors are derivatives of mean utilities in theta (sigma, pi, rho and tau) and the columns of X1
        that contain prices; they and the instruments are residuals on exogenous columns of X1 and on fixed effects.
        For a logit this is the usual first stage. Moments of supply, surveys or of one's own do not count: they may
        well identify what demand-side instruments do not.

        Returns
        -------
        DataFrame with a row for each endogenous regressor and these columns:

        - block, parameter: its coefficient.
        - effective_f: effective F statistic of its first stage (Montiel Olea and Pflueger 2013), robust to
          heteroscedasticity.
        - critical_value: what `effective_f` should exceed, so that the worst-case bias of two-stage least squares is
          below 10% of that of least squares, at the level of 5% (their simplified procedure). 23.1 with one instrument.
        - effective_f_clustered, critical_value_clustered: the same for errors that are correlated within clusters, only
          where product data have `clustering_ids`.
        - conditional_f: F statistic of Sanderson and Windmeijer (2016), of the part of the regressor that other
          regressors do not explain. It is small for parameters that are weakly identified although each first stage is
          strong. Homoscedastic, like what follows.
        - partial_r2: of excluded instruments in the first stage.

        Its `attrs` have `cragg_donald`, the F statistic of Cragg and Donald (1993) of all regressors jointly,
        `instruments`, the number K of excluded instruments that are linearly independent, and `degrees_of_freedom`, K
        and ``N - K - (exogenous columns and fixed effects)``. Statistics of a regressor that does not vary, such as
        that of a standard deviation at zero, are NaN, and joint ones leave it out.

        Raises
        ------
        IdentificationError
            When there are fewer excluded instruments than endogenous regressors.
        NotImplementedError
            Where demand-side moments are of innovations.
        ValueError
            When there are no endogenous regressors, or too few products.
        """
        from blpjax.inference.instrument_strength import strength_frame

        return strength_frame(self)

    def integration_report(
        self,
        integrations: Any,
        seeds: Any = 5,
        outcome: Callable[[Model], Any] | None = None,
        agent_data: Any = None,
        costs_bounds: Any = None,
    ) -> IntegrationReport:
        """How estimates, and an outcome, move with the number and the seed of draws: estimation again with other nodes.

        All GMM steps are repeated with the nodes and weights of every rule in place of the problem's, from these
        estimates and with the default optimiser. Estimations with the same rule and other seeds are lanes of one
        compiled program. Where estimates differ between seeds by more than a small part of their standard errors, draws
        are too few: standard errors take them as given.

        Parameters
        ----------
        integrations : Integration, several of them, or a mapping of names to them, such as
            ``[Integration("halton", n) for n in (50, 200, 1000)]`` and ``Integration("product", 7)``.
        seeds : how many seeds (0, 1, ...), or a sequence of them, for rules that have one, in place of their own.
        outcome : function of a `Model` that returns a number, or a mapping of names to numbers: what the estimates are
            for. It is evaluated at each estimation's parameters and agents, with mean utilities that reproduce observed
            shares. For example ``lambda m: m.extract_diagonals(m.compute_elasticities()).mean()``.
        agent_data : table with demographics, by default that of the problem. In each market there must be as many rows
            as the rule has nodes; further ones are not used.
        costs_bounds : those of `Problem.solve`, if there were any.

        Returns
        -------
        IntegrationReport with a `table` of all estimations and a `summary`.

        Raises
        ------
        TypeError, ValueError
            For arguments that cannot be used; without X2; for results of an initial update; and when costs were bounded
            and `costs_bounds` is missing.
        DataError
            When agent data have too few rows for a rule, naming the market.
        NotImplementedError
            With micro moments, covariance instruments, moments of one's own, simulation error, markets that are spread
            over devices, or shares that were inverted by a method on the host.

        Warns
        -----
        ConvergenceWarning
            When mean utilities of some market were not found at the estimates of a seed. Its outcomes are NaN.
        """
        from blpjax.inference.integration_runs import read_rules, report_integration  # it needs what runs many lanes

        rules = read_rules(integrations, seeds, agent_data)
        return report_integration(self, self._options, self.first_step(), rules, outcome, costs_bounds)

    def test_conduct(
        self,
        models: Any,
        costs: Formulation,
        instruments: Any,
        costs_type: str = "linear",
        se_type: str = "robust",
        demand_adjustment: bool = True,
        *,
        taxes: Any = None,
        seed: int = 0,
    ) -> ConductTest:
        r"""Test models of conduct against each other, by whether instruments explain the costs that they imply.

        Under the right model, costs ``c_m = p - m_m`` that prices imply depend on cost shifters and on an error that
        instruments do not predict. The lack of fit of a model is ``Q_m = g' W g``, where g are averages of instruments
        times the residuals of costs, and W is the inverse of averages of instruments' products. The statistic of Rivers
        and Vuong (2002), ``TRV = sqrt(N) (Q_l - Q_m) / s``, is standard normal where both models of a pair fit equally
        well, and positive where the first fits worse. Both may be wrong. F tells whether instruments are strong enough
        for it (Duarte, Magnolfi, Sølvsten and Sullivan 2024); its critical values are simulated for the number of
        instruments and the correlation of each pair. Model confidence sets (Hansen, Lunde and Nason 2011) have the
        models that no other one beats.

        Parameters
        ----------
        models : mapping of names to conducts, such as ``{"Bertrand": blpjax.Bertrand(), "Cournot":
            blpjax.Cournot()}``, or a sequence of them.
        costs : cost shifters, exogenous columns of product data, perhaps with fixed effects that are absorbed, such as
            ``Formulation("0 + wage", absorb="C(product_ids)")``.
        instruments : columns of product data that shift markups and are not in `costs`, such as
            ``Formulation("0 + rival_wage")``, or a mapping of names to several such sets.
        costs_type : ``'linear'``, or ``'log'`` where the logarithms of costs are explained.
        se_type : ``'robust'``, or ``'clustered'`` by `clustering_ids`.
        demand_adjustment : whether variances account for the estimation of demand, exactly: estimates' influence
            functions times derivatives of markups. With micro moments, respondents of surveys are a sample of their
            own, independent of products, whose errors have the covariances `micro_covariances`, in whatever clusters
            products are. Simulation error (`resample_agent_data`) is left out. Leaving out everything is only right
            where demand is known.
        taxes : `Taxes` on products that firms remit, or a mapping of names of models to them.
        seed : of draws for p-values of model confidence sets, whose errors are below 0.001.

        Returns
        -------
        ConductTest with `table`, `models`, `markups`, `costs` and `summary`. `plots.plot_conduct_test` draws it.

        Raises
        ------
        TypeError, ValueError
            For arguments that cannot be used, and where covariances of these results are unknown.
        DataError
            When a column is missing or cannot be used, a model has no markups, or costs have no logarithms; the message
            names markets and rows.
        ConvergenceError
            When a model has no markups in some market.
        IdentificationError
            When instruments are explained by cost shifters, or formulas contain prices or shares.
        NotImplementedError
            For estimates by likelihood, with moments of one's own, or with moments of innovations, unless demand is
            taken as known.

        Warns
        -----
        IdentificationWarning
            When instruments are collinear, models imply the same costs, or demand was estimated with a supply side.
        """
        from blpjax.inference.conduct_tests import read_question, run_conduct_test

        question = read_question(
            self, models, costs, instruments, costs_type, se_type, demand_adjustment, taxes=taxes, seed=seed
        )
        return run_conduct_test(self, question)

    def first_step(self) -> FirstStep:
        """Where estimations that repeat this one begin."""
        first = next(step for step in self._steps if step.step > 0 or step is self)
        lacking = lacks_influence(self._result.outcome.evaluation, self.theta, self.layout)
        return FirstStep(np.where(lacking, self._options.parameters.theta, self.theta), first.W)
