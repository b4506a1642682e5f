"""Surveys of Monte Carlo studies: in each replication respondents are drawn, and micro moments have their values."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.surveys import Surveys, build_surveys, stack_surveys
from blpjax.inputs import records
from blpjax.inputs.micro import MicroMoment, distinct_datasets, distinct_parts
from blpjax.inputs.surveys import compute_values, compute_weights, dataset_markets
from blpjax.machine.batch_files import fingerprint_of
from blpjax.model.parameters import Parameters
from blpjax.objective.blocks import MomentBlock
from blpjax.objective.micro import MicroMoments, host_values, moment_values
from blpjax.objective.programs import on_host
from blpjax.outputs.synthetic_surveys import sample_parts
from blpjax.problem.micro import MicroSetup, read_micro
from blpjax.problem.problem import Problem
from blpjax.simulation.results import change_products, survey_source
from blpjax.simulation.simulation import Simulation
from blpjax.studies.generator import ExogenousDraws

#: Variables that replications draw are multiplied by up to so much, with either sign, to see whether surveys use them.
_FAR = 1e6


class SurveyDraws(eqx.Module):
    """What surveys of replications say.

    Attributes
    ----------
    observed : (B, MM) values of micro moments. population : (B, MM) those of the population that is drawn from.
    errors : (B, MM) standard errors of observed values.
    sample : (B, MM, MM) their covariances, or None where those of the model are used.
    surveys : what datasets and parts ask about, None where that is the same in all replications.
    """

    observed: Float[Array | np.ndarray, "*B MM"]
    population: Float[Array | np.ndarray, "*B MM"]
    errors: Float[Array | np.ndarray, "*B MM"]
    sample: Float[Array | np.ndarray, "*B MM MM"] | None
    surveys: Surveys | None

    def move(self, block: MomentBlock) -> MomentBlock:
        """A block of moments with what was drawn, if it is that of micro moments."""
        if not isinstance(block, MicroMoments):
            return block
        surveys = block.surveys if self.surveys is None else self.surveys
        return dataclasses.replace(block, observed=self.observed, sample=self.sample, surveys=surveys)


class SurveyStudy:
    """Draws respondents for each replication, who are asked what micro moments ask.

    Parameters
    ----------
    micro_moments : whose values play no role.
    sampled : whether covariances are those of respondents, and not those that the model has.
    seed : of the study. Respondents of dataset d in replication r are those of `simulate_micro_data` with a seed that
        follows from all three.
    simulation, problem, parameters : the truth, the model to estimate, and its parameters.

    Raises
    ------
    TypeError, ValueError, RuntimeError, DataError
        When moments cannot be used with the problem or the simulation.
    """

    def __init__(
        self,
        micro_moments: Any,
        sampled: bool,
        seed: int,
        simulation: Simulation,
        problem: Problem,
        parameters: Parameters,
        drawn: Sequence[str] = (),
    ) -> None:
        self._setup: MicroSetup = read_micro(problem.data, micro_moments, None, parameters, observed=False)
        if sampled and not self.moments:
            raise ValueError("micro_sample_covariances need micro_moments.")
        self._parts = distinct_parts(self.moments)
        for dataset in distinct_datasets(self._parts):
            if dataset.observations is None:
                raise ValueError(f"The micro dataset '{dataset.name}' has no number of observations, which are drawn.")
        self._sampled, self._seed = sampled, seed
        self._simulation, self._problem = simulation, problem
        self._layout = parameters.layout
        self._moves = self._uses(("prices", "shares", *drawn)) if self.moments else False

    @property
    def moments(self) -> tuple[MicroMoment, ...]:
        """The micro moments."""
        return self._setup.moments

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [moment.name for moment in self.moments]

    @property
    def block(self) -> MicroMoments:
        """The block of moments at the problem's data."""
        return self._setup.blocks[0]

    @property
    def nothing(self) -> SurveyDraws | None:
        """What one replication's survey could be: arrays of the right shapes, None without micro moments."""
        if not self.moments:
            return None
        one = np.zeros(len(self.moments))
        return SurveyDraws(
            one, one, one, np.diag(one) if self._sampled else None, self.block.surveys if self._moves else None
        )

    @property
    def numbers(self) -> int:
        """How many numbers each lane has of its own beside those that all studies have."""
        if not self._moves:
            return 0
        return sum(leaf.size for leaf in jax.tree.leaves(self.block.surveys))

    def draw(self, replications: np.ndarray, drawn: Any, model: Any) -> SurveyDraws:
        """Surveys of replications by their numbers, at the equilibria that were drawn.

        Where there is no equilibrium all numbers are NaN.

        Parameters
        ----------
        drawn : `blpjax.studies.replications.Drawn` of the replications.
        model : the simulation's model.
        """
        host, known = on_host(drawn), on_host(model)
        found = [
            self._draw_one(int(r), jax.tree.map(lambda leaf, b=b: leaf[b], host), known)
            for b, r in enumerate(replications)
        ]
        observed, population, errors, sample, surveys = zip(*found, strict=True)
        return SurveyDraws(
            np.stack(observed),
            np.stack(population),
            np.stack(errors),
            np.stack(sample) if self._sampled else None,
            stack_surveys(surveys) if self._moves else None,
        )

    def _draw_one(self, r: int, drawn: Any, model: Any) -> tuple[Any, ...]:
        MM, surveys = len(self.moments), on_host(self.block.surveys) if self._moves else None
        if not drawn.solved:
            empty = np.full(MM, np.nan)
            return empty, empty, empty, np.full((MM, MM), np.nan) if self._sampled else None, surveys
        source = survey_source(self._simulation.primitives, drawn.model(model), drawn.changes)
        means, population = np.zeros(len(self._parts)), np.zeros(len(self._parts))
        C = np.zeros((len(self._parts),) * 2)
        for d, dataset in enumerate(distinct_datasets(self._parts)):
            places = [p for p, part in enumerate(self._parts) if part.dataset == dataset]
            seed = int(np.random.SeedSequence([self._seed, r, d]).generate_state(1)[0])
            found = sample_parts(source, [self._parts[p] for p in places], seed)
            means[places], population[places] = found.values.mean(axis=0), found.population
            deviations = found.values - means[places]
            C[np.ix_(places, places)] = deviations.T @ deviations / len(deviations) ** 2
        F = np.asarray(jax.jacfwd(lambda values: moment_values(self.block.functions, values))(means))
        S = F @ C @ F.T
        if self._moves:
            surveys = on_host(self._surveys_at(drawn.changes, drawn.exogenous))
        return (
            host_values(self.moments, means),
            host_values(self.moments, population),
            np.sqrt(np.diag(S).clip(0.0)),
            S if self._sampled else None,
            surveys,
        )

    def _surveys_at(self, changes: dict[str, np.ndarray], exogenous: ExogenousDraws) -> Surveys:
        """Surveys of the problem with other values of some variables."""
        data, formulas = self._problem.data, on_host(self._problem.characteristics)
        formulas = formulas.replace({name: x for name, x in changes.items() if name in formulas.variables})
        table = change_products(data.product_table, changes)
        X1, X2 = formulas.evaluate({})
        drawn = list(map(np.asarray, exogenous.instruments(formulas, self._problem.add_exogenous)))
        Z = [*drawn, *[data.products[name] for name in ("ZD", "ZS")][len(drawn) :]]
        matrices = records.ProductMatrices(
            X1, X2, formulas.evaluate_X3({}), Z[0], Z[1], data.products.ZC, data.demand_ids, data.supply_ids
        )
        products = records.product_records(table, matrices, data.designs)
        markets = dataclasses.replace(data, product_table=table).survey_markets(
            products, data.agents_in_economy, self._layout
        )
        return build_surveys(markets, data.economy, self._parts)

    def _uses(self, names: Sequence[str]) -> bool:
        """Whether surveys depend on variables: whether they are others, or fail, at values far away on both sides."""
        rng, table = np.random.default_rng(0), self._problem.product_table
        known = {"prices": table.prices, "shares": table.shares}
        here = jax.tree.leaves(on_host(self.block.surveys))
        for sign in (-1.0, 1.0):
            changes = {}
            for name in names:
                values = np.asarray(known.get(name, table.data.get(name, np.ones(table.shares.size))), float)
                changes[name] = sign * (1.0 + np.abs(values)) * rng.uniform(1.0, _FAR, values.size)
            try:
                with np.errstate(all="ignore"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    there = jax.tree.leaves(on_host(self._surveys_at(changes, ExogenousDraws({}))))
            except Exception:  # whatever functions of users do with such values
                return True
            if len(here) != len(there) or not all(map(np.array_equal, here, there)):
                return True
        return False

    @property
    def description(self) -> str:
        """A text that is the same for the same moments, datasets and parts at the problem's data only."""
        if not self.moments:
            return ""
        data = self._problem.data
        markets = data.survey_markets(data.products, data.agents_in_economy, self._layout)
        digests = []
        for dataset in distinct_datasets(self._parts):
            for t in map(int, dataset_markets(dataset, markets.index.ids)):
                market = markets.at(t)
                weights = compute_weights(dataset, market)
                own = [part for part in self._parts if part.dataset == dataset]
                digests.append(
                    fingerprint_of("", [weights, *(compute_values(part, market, weights.shape) for part in own)])
                )
        names = [(m.name, [(p.name, p.dataset.name, p.dataset.observations) for p in m.parts]) for m in self.moments]
        at = np.linspace(0.3, 0.7, len(self._parts))
        values = [f"{value:.6g}" for value in host_values(self.moments, at)]
        return repr((names, values, digests, self._sampled))
