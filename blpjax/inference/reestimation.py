"""Bootstrap by re-estimation: markets or clusters are drawn with replacement, and the model is estimated again.

A unit that is drawn m times counts m times in all moments, so that every bootstrap sample is an estimation of the same
shape with other weights of products. Moments are recentred as in Hall and Horowitz (1996, Bootstrap critical values for
tests based on generalized-method-of-moments estimators, Econometrica 64, 891-916).
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float, Int

from blpjax import options
from blpjax.estimation.estimates import Estimates
from blpjax.estimation.lane import BatchOptions, Lane, build_lane, describe, largest_batch, read_batches, split_lanes
from blpjax.estimation.lanes import BatchOutcome, estimate_batch, tabulate
from blpjax.estimation.options import StepOptions
from blpjax.inference.diagnostics import FirstStep
from blpjax.inference.reestimation_results import COLUMNS, ReestimationResults
from blpjax.inputs.arguments import check_choice, read_costs_bounds, read_draws
from blpjax.machine.batch_files import fingerprint_of
from blpjax.machine.batches import Sizes, StudyOutcome, run_study
from blpjax.machine.compilation import filtered_program
from blpjax.machine.forks import check_process
from blpjax.machine.spread import each_lane
from blpjax.objective import programs
from blpjax.objective.absorption import Projection, build_projection
from blpjax.objective.clusters import Counts, counts_of_kinds
from blpjax.objective.data import ModelData
from blpjax.objective.dynamics import MovingStep
from blpjax.objective.equations import Equation
from blpjax.objective.micro import MicroMoments
from blpjax.objective.moments import weigh
from blpjax.objective.problem_data import ProblemData
from blpjax.values import check_integer, read_flag

_UNIDENTIFIED = "the sample does not identify the linear parameters"


@dataclasses.dataclass(frozen=True, eq=False)
class BootstrapStudy:
    """Estimations from samples of units, as lanes: see `blpjax.machine.batches.Study`.

    Attributes
    ----------
    options : what decides which programs are compiled.
    lane : the estimation with the full sample, all weights one.
    units : (N,) unit of each product, counted from zero, or (N, kinds) clusters of several kinds.
    count : their number, or numbers.
    seed : of all draws.
    labels, blocks : names and blocks of the Q parameters.
    absorbed : levels of fixed effects (N, E) of each equation.
    sampling : (MM, MM) covariances of observed values of micro moments, None without any.
    """

    options: BatchOptions
    lane: Lane
    units: np.ndarray
    count: Counts
    seed: int
    labels: tuple[str, ...]
    blocks: tuple[str, ...]
    absorbed: tuple[np.ndarray, ...]
    sampling: np.ndarray | None = None

    @property
    def unit(self) -> str:
        """What is counted."""
        return "draws"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table."""
        return COLUMNS

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies data, estimator, units and seed."""
        text = repr((self.seed, self.count, describe(self.options, self.lane.data), self.labels))
        sampling = [] if self.sampling is None else [self.sampling]
        return fingerprint_of(text, [self.units, *jax.tree.leaves(self.lane), *sampling])

    def run_batch(self, first: int, size: int) -> pd.DataFrame:
        """Estimates of draws `first`, ..., ``first + size - 1``."""
        draws = jnp.arange(first, first + size)
        key, units, observed = jax.random.key(self.seed), jnp.asarray(self.units), self._draw_observed(draws)
        if isinstance(self.count, tuple):
            drawn = draw_crossed(key, draws, units, self.count)
            varying, shared = self._split(drawn.prod(axis=2), drawn, observed)
        else:
            varying, shared = self._split(draw_weights(key, draws, units, self.count), observed=observed)
        identified = _is_identified(self.options, varying, shared)
        found = estimate_batch(self.options, varying, shared, size)
        return self._tabulate(first, found, np.asarray(identified))

    def _draw_observed(self, draws: Int[Array, " B"]) -> Float[Array, "B MM"] | None:
        """Values of micro moments: surveys are samples of their own, of which nothing but means is known."""
        if self.sampling is None:
            return None
        known = next(block.observed for block in self.lane.data.more if isinstance(block, MicroMoments))
        values, vectors = np.linalg.eigh(self.sampling)
        root = vectors * np.sqrt(values.clip(0.0))
        return draw_around(jax.random.key(self.seed), draws, known, jnp.asarray(root))

    def _split(
        self,
        weights: Float[Array, "B N"],
        drawn: Float[Array, "B N kinds"] | None = None,
        observed: Float[Array, "B MM"] | None = None,
    ) -> tuple[Lane, Lane]:
        """Lanes with these weights, X and Z residualised with them, and observed values of micro moments."""
        equations = [
            self._absorb(equation, ids, weights) if ids.shape[1] else None
            for equation, ids in zip(self.lane.data.equations, self.absorbed, strict=True)
        ]
        return split_lanes(_reweight, self.lane, _Sample(weights, drawn, equations, observed))

    def _absorb(self, equation: Equation, ids: np.ndarray, weights: Float[Array, "B N"]) -> "_Absorbed":
        built = [build_projection(ids, row) for row in np.asarray(weights)]
        counts, inverse = (jnp.stack([getattr(p, name) for p in built]) for name in ("counts", "inverse"))
        X, Z = (_absorb(built[0], weights, counts, inverse, values) for values in (equation.X, equation.Z))
        # what the user residualised instead of Z stays
        return _Absorbed(X, Z, Z if np.array_equal(equation.instruments, equation.Z) else None, counts, inverse)

    def _tabulate(self, first: int, found: BatchOutcome, identified: np.ndarray) -> pd.DataFrame:
        failures = [None if fine else _UNIDENTIFIED for fine in identified]
        rows = tabulate(found, first + np.arange(len(identified)), self.blocks, self.labels, failures)
        return rows.rename(columns={"number": "draw"})[list(COLUMNS)]


class _Absorbed(eqx.Module):
    """An equation residualised with the weights of a sample: X, Z, instruments or None where these stay, projection."""

    X: Float[Array, "*B N K"]
    Z: Float[Array, "*B N M"]
    instruments: Float[Array, "*B N M"] | None
    counts: Float[Array, "*B levels"]
    inverse: Float[Array, "*B G G"]


class _Sample(eqx.Module):
    """What a sample's own is: weights of products, and equations where fixed effects are absorbed.

    Where clusters of several kinds are drawn, weights are products of how often each kind is `drawn`. `observed` are
    values of micro moments, None without any.
    """

    weights: Float[Array, "*B N"]
    drawn: Float[Array, "*B N kinds"] | None
    equations: list[_Absorbed | None]
    observed: Float[Array, "*B MM"] | None = None


def _reweight(lane: Lane, sample: _Sample) -> Lane:
    equations = []
    for equation, own in zip(lane.data.equations, sample.equations, strict=True):
        if own is not None and equation.absorb is not None:
            absorb = dataclasses.replace(
                equation.absorb, counts=own.counts, inverse=own.inverse, weights=sample.weights
            )
            instruments = equation.instruments if own.instruments is None else own.instruments
            equation = dataclasses.replace(equation, X=own.X, Z=own.Z, instruments=instruments, absorb=absorb)
        equations.append(equation)
    more = [
        dataclasses.replace(block, observed=sample.observed) if isinstance(block, MicroMoments) else block
        for block in lane.data.more
    ]
    data = lane.data.at(weights=sample.weights, drawn=sample.drawn, equations=equations, more=more)
    return dataclasses.replace(lane, data=data)


def reestimate(
    results: Estimates,
    step_options: StepOptions,
    begin: FirstStep,
    draws: int,
    unit: str | None,
    seed: int,
    recentre: bool,
    costs_bounds: Any,
    *,
    micro: Sequence[MicroMoments] = (),
    **running: Any,
) -> ReestimationResults:
    """Draw samples and estimate; see `ProblemResults.reestimate`, whose `running` arguments decide where and how."""
    count, recentre = read_draws(draws), read_flag("recentre", recentre)
    study = build_study(results, step_options, begin, unit, seed, recentre, costs_bounds, micro=micro)
    outcome = run_draws(study, results.problem.data, count, **running)
    drawn = _read_unit(results.problem.data, step_options, unit)
    found = ReestimationResults(
        results, drawn, recentre, outcome.table, outcome.seconds, outcome.batches, outcome.peak_memory
    )
    options.output(f"\n{found}")
    return found


def run_draws(
    study: BootstrapStudy,
    problem: ProblemData,
    count: int,
    batch_size: int | None,
    path: str | os.PathLike[str] | None,
    executor: Any,
    memory: int | None,
) -> StudyOutcome:
    """Run draws of a study in batches that memory holds."""
    given, bytes_ = read_batches(batch_size, memory)
    more = problem.N
    for equation, ids in zip(study.lane.data.equations, study.absorbed, strict=True):
        if ids.shape[1]:
            more += problem.N * (equation.X.shape[1] + 2 * equation.Z.shape[1] + 1) + ids.max() ** 2
    P, supply = study.options.specification.layout.P, study.lane.data.supply is not None
    largest = largest_batch(problem.economy, P, supply, bytes_, int(more))
    return run_study(study, count, Sizes(given, largest, 8 * int(more)), None if path is None else Path(path), executor)


def build_study(
    results: Estimates,
    step_options: StepOptions,
    begin: FirstStep,
    unit: str | None,
    seed: int,
    recentre: bool,
    costs_bounds: Any,
    *,
    micro: Sequence[MicroMoments] = (),
) -> BootstrapStudy:
    """The study of bootstrap samples of some results, with the block of their micro moments.

    Raises
    ------
    ValueError, NotImplementedError
        See `ProblemResults.reestimate`.
    """
    check_process()
    refuse_lanes(results, step_options, costs_bounds, sum(block.size for block in micro))
    problem = results.problem.data
    drawn = _read_unit(problem, step_options, unit)
    units, count = _kinds_of(problem) if drawn == "clusters" else _markets_of(problem)
    if step_options.moment_types:
        _check_lags(units, problem.product_table.lag_indices)
    bounds = read_costs_bounds(costs_bounds, problem.model_data.supply is not None)
    absorbed = (problem.demand_ids, problem.supply_ids)[: len(problem.model_data.equations)]
    offset = jnp.asarray(results.moments[:, 0]) if recentre else None
    known = problem.moments_of(step_options.moment_types)
    known = known.at(more=(*known.more, *micro))
    data = _weighted(known, bounds, absorbed, offset)
    given = first_weights(begin, known)
    model = step_options.parameters, step_options.iteration, problem.economy, data
    lane = build_lane(*model, begin.theta, results.delta[:, 0], problem.clusters[0], given)
    return BootstrapStudy(
        options=BatchOptions(step_options.specification, step_options.types, min(results.step, 2)),
        lane=lane,
        units=np.asarray(units),
        count=count,
        seed=check_integer("seed", seed, minimum=0),
        labels=tuple(results.parameter_labels),
        blocks=tuple(step_options.parameters.parameter_blocks),
        absorbed=absorbed,
        sampling=np.asarray(results.micro_covariances) if micro else None,
    )


@filtered_program(effort=0)
def draw_around(
    key: Array, draws: Int[Array, " B"], mean: Float[Array, " MM"], root: Float[Array, "MM MM"]
) -> Float[Array, "B MM"]:
    """Normal draws with covariances ``root root'``, by numbers of draws, independent of `draw_weights`."""

    def one(draw: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, draw), 1)
        return mean + root @ jax.random.normal(own, mean.shape)

    return jax.vmap(one)(draws)


@filtered_program(effort=0)
def draw_weights(key: Array, draws: Int[Array, " B"], units: Int[Array, " N"], count: int) -> Float[Array, "B N"]:
    """How often each product's unit is drawn, when as many units are drawn as there are, by numbers of draws."""

    def one(draw: Array) -> Array:
        drawn = jax.random.randint(jax.random.fold_in(key, draw), (count,), 0, count)
        return jnp.bincount(drawn, length=count)[units].astype(float)

    return jax.vmap(one)(draws)


@filtered_program(effort=0)
def draw_crossed(
    key: Array, draws: Int[Array, " B"], units: Int[Array, "N kinds"], counts: tuple[int, ...]
) -> Float[Array, "B N kinds"]:
    """How often each product's cluster of each kind is drawn, where kinds are drawn independently of each other.

    A product counts as often as the product of these (the pigeonhole bootstrap of Owen 2007, The Annals of Applied
    Statistics 1, which Davezies, D'Haultfoeuille and Guyonvarch 2021, The Annals of Statistics 49, show to be valid).
    """

    def one(draw: Array) -> Array:
        keys = jax.random.split(jax.random.fold_in(key, draw), len(counts))
        kinds = [
            jnp.bincount(jax.random.randint(k, (count,), 0, count), length=count)[units[:, kind]].astype(float)
            for kind, (k, count) in enumerate(zip(keys, counts, strict=True))
        ]
        return jnp.stack(kinds, axis=1)

    return jax.vmap(one)(draws)


@filtered_program(effort=0)
def _is_identified(options: BatchOptions, varying: Lane, shared: Lane) -> Bool[Array, " B"]:
    """Whether linear parameters are identified, which they are not when a sample lacks a level of an indicator."""

    def one(part: Lane) -> Array:
        lane = eqx.combine(part, shared)
        step = weigh(options.specification, lane.data, lane.data.initial_weights()).step
        if isinstance(step, MovingStep):
            return step.identifies(lane.model(options.specification).expand(lane.theta).phi)
        return step.rank == step.coefficient_map.shape[0]

    return each_lane(one, varying)


@filtered_program(effort=0)
def _absorb(
    projection: Projection,
    weights: Float[Array, "B N"],
    counts: Float[Array, "B levels"],
    inverse: Float[Array, "B G G"],
    matrix: Float[Array, "N K"],
) -> Float[Array, "B N K"]:
    """Residuals of a matrix on fixed effects with the weights of each lane."""

    def one(weights: Array, counts: Array, inverse: Array) -> Array:
        return Projection(projection.first, counts, projection.others, inverse, weights)(matrix)

    return each_lane(one, weights, counts, inverse)


def _weighted(
    data: ModelData, costs_bounds: np.ndarray, absorbed: tuple[np.ndarray, ...], offset: Array | None
) -> ModelData:
    """Data in which all products count once."""
    ones = jnp.ones(data.demand.Z.shape[0])
    equations = [
        dataclasses.replace(equation, absorb=build_projection(ids, np.asarray(ones)) if ids.shape[1] else None)
        for equation, ids in zip(data.equations, absorbed, strict=True)
    ]
    return data.at(costs_bounds=costs_bounds, equations=equations, weights=ones, offset=offset)


def _markets_of(problem: ProblemData) -> tuple[np.ndarray, Counts]:
    """Markets (N,) and their number."""
    return problem.market_index.codes, int(np.max(problem.market_index.codes)) + 1


def _kinds_of(problem: ProblemData) -> tuple[np.ndarray, Counts]:
    """Clusters (N,) and their number, or with several kinds (N, kinds) and as many numbers."""
    clusters = problem.clusters
    if not isinstance(clusters.counts, tuple):
        return clusters.ids, clusters.counts
    return clusters.ids[:, : clusters.kinds], counts_of_kinds(clusters.counts)


def _read_unit(problem: ProblemData, step_options: StepOptions, unit: str | None) -> str:
    """What is drawn; `ValueError` when that cannot be, or would not be what covariances stand for."""
    clustered = "clustered" in (step_options.types.W_type, step_options.types.se_type)
    check_choice("unit", unit, (None, "markets", "clusters"))
    chosen = unit or ("clusters" if clustered else "markets")
    if chosen == "clusters" and problem.product_table.clustering_ids is None:
        raise ValueError("unit='clusters' needs a column 'clustering_ids' in product_data.")
    if chosen == "clusters" and min(counts_of_kinds(problem.clusters.counts)) < 2:
        raise ValueError("unit='clusters' needs at least two clusters, but 'clustering_ids' has a single value.")
    if chosen == "markets" and clustered:
        units, markets = _kinds_of(problem)[0].reshape(problem.N, -1), problem.market_index.codes
        for kind, count in zip(units.T, counts_of_kinds(problem.clusters.counts), strict=True):
            if len(np.unique(np.column_stack([kind, markets]), axis=0)) == count:
                continue
            raise ValueError(
                "Errors of different markets are correlated, because there are clusters in several markets, and "
                "covariances are clustered. Use unit='clusters'."
            )
    return chosen


def _check_lags(units: np.ndarray, lags: np.ndarray | None) -> None:
    """Raise `NotImplementedError` where units that are drawn lack the lags of their products."""
    if lags is not None and (units[lags] != units).any():
        raise NotImplementedError(
            "Moments other than levels depend on lags, which samples of units would lack that do not have all periods "
            "of their products. Use unit='clusters' with clustering_ids of products, or bootstrap()."
        )


def first_weights(begin: FirstStep, data: ModelData) -> np.ndarray | None:
    """The weighting matrix of first steps, None where it is that of 2SLS, which other data have of their own."""
    same = np.asarray(programs.initial_weights(data))
    return None if np.allclose(begin.W, same, rtol=1e-9, atol=0) else begin.W


def refuse_lanes(results: Estimates, step_options: StepOptions, costs_bounds: Any, micro: int = 0) -> None:
    """Refuse results that lanes of compiled programs cannot estimate again, with so many micro moments.

    Raises
    ------
    ValueError, NotImplementedError
        See `ProblemResults.reestimate`.
    """
    if results.step < 1:
        raise ValueError("Results of an initial update cannot be estimated again. Use those of a GMM step.")
    if results.problem.data.economy.placement is not None:
        raise NotImplementedError(
            "The markets of the problem are spread over devices, which re-estimation spreads samples over. Solve the "
            "problem without shard()."
        )
    if results.moments.size != results.problem.data.model_data.size + micro:
        kinds = "moment_blocks" if micro else "micro_moments or moment_blocks"
        raise NotImplementedError(
            f"Results with {kinds} cannot be estimated again in this way. Solve without them, or use bootstrap, which "
            "draws parameters."
        )
    for block in results.problem.data.model_data.more:
        if not block.resampled:
            raise NotImplementedError(f"{block.name.capitalize()} are not supported in re-estimation. Leave them out.")
    if results.simulation_covariances.any():
        raise NotImplementedError(
            "Simulation error (resample_agent_data) is not supported in re-estimation. Solve without it."
        )
    if step_options.iteration.fixed_point.host is not None:
        raise NotImplementedError(
            f"Iteration({step_options.iteration.method!r}) runs on the host, where estimations cannot be batched. "
            "Solve with a method that runs inside compiled programs, such as the default one."
        )
    if step_options.costs_bounded and costs_bounds is None:
        raise ValueError("Costs were bounded in estimation. Pass the same costs_bounds again.")
