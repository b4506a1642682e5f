"""Monte Carlo studies of likelihoods: everybody's choices are drawn, and estimation is one after the other.

Surveys have as many respondents in each market in every replication, so that all find the same programs compiled.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from blpjax.estimation.lanes import BatchOutcome
from blpjax.estimation.likelihood import LikelihoodContext, solve_likelihood, without_messages
from blpjax.estimation.step import StepResult
from blpjax.exceptions import DataError, Status
from blpjax.inputs.columns import read_market_ids
from blpjax.inputs.likelihood import MicroLikelihood, read_market_sizes
from blpjax.inputs.table_format import plain_value, read_table
from blpjax.iteration import Iteration
from blpjax.model.parameters import Parameters
from blpjax.objective.likelihood_data import build_likelihood
from blpjax.objective.moments import lacks_influence
from blpjax.objective.problem_data import ProblemData
from blpjax.objective.programs import on_host
from blpjax.optimize.bounds import project_gradient
from blpjax.optimize.optimize import Optimization
from blpjax.outputs.synthetic_surveys import sample_markets
from blpjax.problem.likelihood import check_likelihood, likelihood_options
from blpjax.problem.problem import Problem
from blpjax.simulation.results import survey_source
from blpjax.simulation.simulation import Simulation

#: Columns of agent data that surveys do not have.
_OF_AGENTS = ("market_ids", "weights", "agent_ids", "nodes")

#: Options of GMM, which studies of likelihoods do not have.
_DEFAULTS = {"method": "2s", "W_type": "robust", "se_type": "robust", "center_moments": True}


class LikelihoodStudy:
    """Draws surveys and shares for each replication, and estimates by likelihood.

    Parameters
    ----------
    likelihood : whose `micro_data` say how many respondents there are in each market. The population of a market makes
        its choices as the simulation's agents do; some of it are asked, and shares are those of all.
    seed : of the study.
    simulation, problem, parameters : the truth, the model to estimate, and its parameters.
    optimization, iteration : those of `Problem.solve`, None for their defaults.

    Raises
    ------
    TypeError, ValueError, DataError, NotImplementedError
        For likelihoods that `Problem.solve` refuses, problems with optimal instruments, and markets with no more people
        than respondents.
    """

    def __init__(
        self,
        likelihood: Any,
        seed: int,
        simulation: Simulation,
        problem: Problem,
        parameters: Parameters,
        optimization: Optimization | None,
        iteration: Iteration | None,
    ) -> None:
        check_likelihood(problem.data, likelihood, parameters)
        if problem.data.replaced_instruments:
            raise NotImplementedError(
                "Studies of likelihoods need a problem whose instruments are columns of its product data."
            )
        self._likelihood: MicroLikelihood = likelihood
        self._seed, self._simulation, self._problem = seed, simulation, problem
        self._options = likelihood_options(
            parameters, optimization=optimization, iteration=iteration, check_optimality="gradient"
        )
        ids = problem.data.market_index.ids
        self._sizes = np.round(read_market_sizes(likelihood.market_sizes, problem.product_table, ids)).astype(int)
        self._asked = np.zeros(ids.size, int)
        if likelihood.micro_data is not None:
            markets = read_market_ids(read_table(likelihood.micro_data, "micro_data"), "micro_data", "every survey")
            unknown = sorted({plain_value(value) for value in markets} - {plain_value(value) for value in ids}, key=str)
            if unknown:
                raise DataError(
                    f"micro_data: product_data have no markets with the IDs {', '.join(map(repr, unknown))}."
                )
            self._asked += np.bincount(np.searchsorted(ids, markets), minlength=ids.size)
        short = np.flatnonzero(self._sizes <= self._asked)
        if short.size:
            t = int(short[0])
            raise DataError(
                f"market_sizes must exceed numbers of respondents, but market {plain_value(ids[t])!r} has "
                f"{self._sizes[t]} people and {self._asked[t]} respondents."
            )

    @property
    def description(self) -> str:
        """A text that is the same for the same likelihood, optimiser and inner loop only."""
        given, step = self._likelihood, self._options
        return repr(
            (
                given.estimator,
                float(given.sigma2),
                repr(given.integration),
                self._sizes.tolist(),
                self._asked.tolist(),
                repr(step.optimization),
                repr(step.iteration),
            )
        )

    def estimate(self, replications: np.ndarray, drawn: Any, model: Any) -> tuple[BatchOutcome, list[str | None]]:
        """Estimates of replications by their numbers, and sentences on what is wrong with them, None where nothing is.

        Parameters
        ----------
        drawn : `blpjax.studies.replications.Drawn` of the replications.
        model : the simulation's model.
        """
        host, known = on_host(drawn), on_host(model)
        found: list[StepResult | None] = []
        failures: list[str | None] = []
        with without_messages():
            for b, r in enumerate(replications):
                one = jax.tree.map(lambda leaf, b=b: leaf[b], host)
                try:
                    result = self._estimate_one(int(r), one, known)
                    found.append(result)
                    failures.append(None if result.outcome.converged else result.outcome.message)
                except DataError as error:  # such as a product that nobody has chosen
                    found.append(None)
                    failures.append(str(error))
        return self._outcome(found), failures

    def _estimate_one(self, r: int, drawn: Any, model: Any) -> StepResult:
        if not drawn.solved:
            raise DataError("There is no equilibrium.")
        data, likelihood = self._draw(r, drawn, model)
        parameters, iteration = self._options.parameters, self._options.iteration
        objective, linear, _ = build_likelihood(data, parameters, likelihood, iteration)
        logit = data.closed_form_delta(np.asarray(parameters.start.rho))
        context = LikelihoodContext(objective, linear, data, logit, likelihood.sigma2, self._problem)
        return solve_likelihood(self._options, context, parameters.theta, logit)[0]

    def _draw(self, r: int, drawn: Any, model: Any) -> tuple[ProblemData, MicroLikelihood]:
        """The problem's data with shares of people who have been drawn, and the likelihood with a survey of some."""
        known, data = self._simulation.primitives, self._problem.data
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, r]))
        found = sample_markets(survey_source(known, drawn.model(model), drawn.changes), self._asked, self._sizes, rng)
        columns = {**data.product_table.data, **drawn.changes, "shares": found.shares}
        if drawn.exogenous.demand is not None:
            name = "demand_instruments"
            columns = {key: x for key, x in columns.items() if key.rstrip("0123456789") != name}
            columns |= {f"{name}{k}": column for k, column in enumerate(np.asarray(drawn.exogenous.demand).T)}
        table, micro = known.agent_table, None
        if self._likelihood.micro_data is not None:
            rows = found.agents if table.rows is None else table.rows[found.agents]
            micro = {
                name: np.asarray(values)[rows]
                for name, values in table.data.items()
                if name.rstrip("0123456789") not in _OF_AGENTS
            }
            micro |= {"market_ids": table.market_ids[found.agents], "choice_indices": found.choices}
        return data.replace_products(columns, data.tolerances), dataclasses.replace(self._likelihood, micro_data=micro)

    def _outcome(self, found: list[StepResult | None]) -> BatchOutcome:
        layout, bounds, B = self._options.parameters.layout, self._options.parameters.bounds, len(found)
        Q = layout.P + len(layout.concentrated_beta)
        values, errors, identified = np.full((B, Q), np.nan), np.full((B, Q), np.nan), np.ones((B, Q), bool)
        numbers, evaluations = np.full((B, 2), np.nan), np.zeros(B, int)
        status, ok = np.full(B, int(Status.STALLED)), np.zeros(B, bool)
        for b, one in enumerate(found):
            if one is None:
                continue
            values[b], errors[b] = one.summary.parameters, one.summary.inference.standard_errors
            identified[b, : layout.P] = ~np.asarray(lacks_influence(one.outcome.evaluation, one.theta, layout))
            gradient = project_gradient(one.theta, one.gradient, bounds)
            numbers[b] = one.objective, np.abs(gradient).max(initial=0.0)
            evaluations[b], ok[b] = one.outcome.evaluations, one.outcome.converged and not one.failed_markets
            ok[b] &= np.isfinite(values[b]).all() and np.isfinite(errors[b]).all()
            status[b] = int(Status.CONVERGED if one.outcome.converged else Status.STALLED)
        return BatchOutcome(values, errors, identified, numbers[:, 0], numbers[:, 1], evaluations, status, ok)


def refuse_unused(given: Mapping[str, Any]) -> None:
    """`NotImplementedError` for options of GMM that differ from their defaults."""
    for name, value in given.items():
        if value is not None and value != _DEFAULTS.get(name, ()):
            raise NotImplementedError(f"{name} is not supported in studies of likelihoods: leave it out.")
