"""Bootstrap of estimates by likelihood: markets are drawn with replacement, and the model is estimated again.

A market that is drawn m times counts m times in the log likelihoods and in the exogeneity restrictions, which are those
of weighted instruments. So every sample is an estimation of the same shape, one after the other, with the same program.
Copies of a market have the same mean utilities by symmetry. Markets that are not drawn count next to nothing, so that
their mean utilities are defined. Nothing is recentred: derivatives of the whole objective, likelihoods and restrictions
together, are zero in the population that samples are drawn from.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from blpjax import options as settings
from blpjax.estimation.estimates import Estimates
from blpjax.estimation.lane import read_batches
from blpjax.estimation.lanes import BatchOutcome, tabulate
from blpjax.estimation.likelihood import LikelihoodContext, minimise_likelihood, without_messages
from blpjax.estimation.options import StepOptions
from blpjax.exceptions import Status
from blpjax.inference.reestimation import draw_weights
from blpjax.inference.reestimation_results import COLUMNS, ReestimationResults
from blpjax.inputs.arguments import read_draws
from blpjax.inputs.likelihood import MicroLikelihood
from blpjax.machine.batch_files import fingerprint_of
from blpjax.machine.batches import Sizes, run_study
from blpjax.objective.likelihood import Likelihood
from blpjax.objective.likelihood_data import Linear, build_likelihood, build_linear
from blpjax.objective.problem_data import ProblemData
from blpjax.optimize.bounds import project_gradient

#: What a market counts that was not drawn.
_NEGLIGIBLE = 1e-7

#: How many draws a batch has by default.
_BATCH = 25

_UNIDENTIFIED = "the sample does not identify the linear parameters"


@dataclasses.dataclass(frozen=True, eq=False)
class LikelihoodBootstrap:
    """Estimations from samples of markets: see `blpjax.machine.batches.Study`.

    Attributes
    ----------
    data, likelihood, options : what is estimated and how.
    theta, delta : (P,) and (N,) estimates with the full sample, at which estimations begin.
    seed : of all draws.
    labels, blocks : names and blocks of the Q parameters.
    """

    data: ProblemData
    likelihood: MicroLikelihood
    options: StepOptions
    theta: np.ndarray
    delta: np.ndarray
    seed: int
    labels: tuple[str, ...]
    blocks: tuple[str, ...]

    @property
    def unit(self) -> str:
        """What is counted."""
        return "draws"

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the table."""
        return COLUMNS

    @functools.cached_property
    def _built(self) -> tuple[Likelihood, Linear]:
        return build_likelihood(self.data, self.options.parameters, self.likelihood, self.options.iteration)[:2]

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what can be computed again."""
        return {name: value for name, value in self.__dict__.items() if name != "_built"}

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies data, estimator and seed."""
        known = self.likelihood.estimator, self.options.optimization, self.options.iteration
        text = repr((self.seed, self.labels, *map(str, known)))
        objective, linear = self._built
        return fingerprint_of(text, [*jax.tree.leaves(objective), *linear, self.theta, self.delta])

    def run_batch(self, first: int, size: int) -> pd.DataFrame:
        """Estimates of draws `first`, ..., ``first + size - 1``."""
        numbers, index = np.arange(first, first + size), self.data.market_index
        markets = np.arange(len(index.ids))
        drawn = np.asarray(
            draw_weights(jax.random.key(self.seed), jnp.asarray(numbers), jnp.asarray(markets), markets.size)
        )
        Q, P = len(self.labels), self.theta.size
        values, ok, status = np.full((size, Q), np.nan), np.zeros(size, bool), np.full(size, int(Status.STALLED))
        numbers_of, evaluations = np.full((size, 2), np.nan), np.zeros(size, int)
        failures: list[str | None] = [None] * size
        with without_messages():
            for b, counts in enumerate(drawn):
                objective, linear = self._sample(counts)
                if np.linalg.matrix_rank(linear.coefficient_map) < len(linear.coefficient_map):
                    failures[b] = _UNIDENTIFIED
                    continue
                context = LikelihoodContext(objective, linear, self.data, self.delta, self.likelihood.sigma2, None)
                outcome = minimise_likelihood(self.options, context, self.theta, self.delta)
                evaluation = jax.device_get(outcome.evaluation)
                beta = linear.coefficient_map @ (np.asarray(evaluation.inversion.delta) - linear.offset)
                values[b, :P], values[b, P:] = outcome.theta, beta
                gradient = project_gradient(outcome.theta, evaluation.gradient, self.options.parameters.bounds)
                numbers_of[b] = float(evaluation.objective), np.abs(gradient).max(initial=0.0)
                evaluations[b] = outcome.evaluations
                ok[b] = outcome.converged and bool(evaluation.ok) and np.isfinite(values[b]).all()
                status[b] = int(Status.CONVERGED if outcome.converged else Status.STALLED)
                failures[b] = None if ok[b] else outcome.message
        errors, identified = np.full((size, Q), np.nan), np.ones((size, Q), bool)
        known = numbers_of[:, 0], numbers_of[:, 1], evaluations
        found = BatchOutcome(values, errors, identified, *known, status, ok)
        rows = tabulate(found, numbers, self.blocks, self.labels, failures)
        return rows.rename(columns={"number": "draw"})[list(COLUMNS)]

    def _sample(self, counts: np.ndarray) -> tuple[Likelihood, Linear]:
        """The objective and its linear part where markets count so many times (T,)."""
        objective, linear = self._built
        weights = np.where(counts > 0, counts, _NEGLIGIBLE)
        of_products = counts[self.data.market_index.codes].astype(float)
        own = build_linear(self.data, self.options.parameters, self.likelihood.sigma2, of_products)
        K = np.zeros_like(linear.restrictions)
        L = min(K.shape[1], own.restrictions.shape[1])
        K[:, :L] = own.restrictions[:, :L]
        places, first = np.asarray(objective.economy.market_positions), 0
        people, others = [], []
        for asked, rest in zip(objective.people, objective.others, strict=True):
            here = np.ones(len(np.asarray(rest.counts)))
            inside = (places[: counts.size] >= first) & (places[: counts.size] < first + here.size)
            here[places[: counts.size][inside] - first] = weights[inside]
            first += here.size
            present = np.asarray(asked.present) * here[np.asarray(asked.market)][:, None]
            people.append(dataclasses.replace(asked, present=jax.device_put(present)))
            others.append(dataclasses.replace(rest, counts=jax.device_put(np.asarray(rest.counts) * here[:, None])))
        moved = dataclasses.replace(
            objective,
            people=tuple(people),
            others=tuple(others),
            restrictions=jax.device_put(K if self.likelihood.restricts else K[:, :0]),
        )
        return moved, own


def reestimate_likelihood(
    results: Estimates, study: LikelihoodBootstrap, draws: int, path: Any, batch_size: int | None, executor: Any
) -> ReestimationResults:
    """Draw samples and estimate, see `LikelihoodResults.reestimate`."""
    count, (given, _) = read_draws(draws), read_batches(batch_size, None)
    outcome = run_study(study, count, Sizes(given, _BATCH), None if path is None else Path(path), executor)
    found = ReestimationResults(
        results, "markets", False, outcome.table, outcome.seconds, outcome.batches, outcome.peak_memory
    )
    settings.output(f"\n{found}")
    return found
