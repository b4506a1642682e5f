"""Bootstrap by re-estimation: markets or clusters are drawn with replacement, and the model is estimated again.

A unit that is drawn m times counts m times in all moments, so that every bootstrap sample is an estimation of the same
shape with other weights of products. Moments are recentred as in Hall and Horowitz (1996, Bootstrap critical values for
tests based on generalized-method-of-moments estimators, Econometrica 64, 891-916).
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float, Int

from blpjax import estimator, moments, options, report
from blpjax.arguments import check_choice, read_costs_bounds, read_draws
from blpjax.batch import BatchOptions, BatchOutcome, Lane, estimate_batch
from blpjax.bootstrap import BootstrappedResults, Resampled, coefficients_of, results_at
from blpjax.compilation import filtered_program
from blpjax.economy import Economy, MarketIndex
from blpjax.estimations import BATCH_BYTES, build_lane, describe, largest_batch, split_lane
from blpjax.exceptions import Status, succeeded
from blpjax.inputs.tables import ProductTable
from blpjax.iteration import Iteration
from blpjax.lanes import each_lane
from blpjax.moments import ModelData
from blpjax.parameters import BLOCKS
from blpjax.pickling import Picklable
from blpjax.projection import Projection, build_projection
from blpjax.solver import StepOptions
from blpjax.studies import Sizes, StudyOutcome, run_study
from blpjax.study_files import fingerprint_of

#: Columns of the table of draws.
COLUMNS = (
    "draw",
    "block",
    "parameter",
    "estimate",
    "standard_error",
    "ok",
    "status",
    "objective",
    "gradient_norm",
    "evaluations",
)

#: The equations of `ModelData.equations`, also where their leaves are stand-ins.
_EQUATIONS: tuple[Callable[[Any], Any], ...] = (lambda data: data.demand, lambda data: data.supply.equation)

_UNIDENTIFIED = "the sample does not identify the linear parameters"


@runtime_checkable
class ProblemLike(Protocol):
    """What is needed of a problem."""

    product_table: ProductTable
    model_data: ModelData

    @property
    def N(self) -> int:
        """Number of products in all markets."""

    @property
    def economy(self) -> Economy:
        """All markets, padded into buckets."""

    @property
    def market_index(self) -> MarketIndex:
        """Rows of each market in the product table."""

    @property
    def clusters(self) -> tuple[np.ndarray, int]:
        """Clusters of products, counted from zero, and their number."""

    @property
    def demand_ids(self) -> np.ndarray:
        """Levels of fixed effects absorbed from demand."""

    @property
    def supply_ids(self) -> np.ndarray:
        """Levels of fixed effects absorbed from supply."""


@runtime_checkable
class ResultsLike(Resampled, Protocol):
    """What is needed of results."""

    step: int
    delta: np.ndarray
    moments: np.ndarray
    simulation_covariances: np.ndarray

    @property
    def problem(self) -> ProblemLike:
        """The problem that was solved."""


class FirstStep(NamedTuple):
    """Where the first step of each estimation begins: theta (P,), and the full sample's weighting matrix (M, M)."""

    theta: np.ndarray
    W: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ReestimationResults(Picklable):
    """Estimates from bootstrap samples.

    Attributes
    ----------
    problem_results : results of the full sample.
    unit : what was drawn, ``'markets'`` or ``'clusters'``.
    recentre : whether moments were recentred.
    table : a row for each draw and parameter, with the columns `draw`, `block` (`sigma`, `beta` and so on),
        `parameter`, `estimate`, `standard_error` (both NaN where the draw failed), `ok` (whether all steps converged
        and the sample identifies the linear parameters), `status` (the sentence that says how it ended), `objective`
        (scaled by the number of observations), `gradient_norm` and `evaluations`.
    seconds : time that this run took.
    batches, peak_memory : see `MonteCarloResults`.
    """

    problem_results: ResultsLike
    unit: str
    recentre: bool
    table: pd.DataFrame
    seconds: float
    batches: pd.DataFrame
    peak_memory: int

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(self.table) // max(len(self.problem_results.parameters), 1)

    @property
    def parameters(self) -> np.ndarray:
        """(draws, Q) estimates of all parameters, NaN in draws that failed."""
        return self.table["estimate"].to_numpy().reshape(self.draws, -1)

    @property
    def ok(self) -> np.ndarray:
        """(draws,) whether the estimation succeeded."""
        return self.table["ok"].to_numpy().reshape(self.draws, -1).all(axis=1)

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """A row for each parameter, from draws that are `ok`.

        Columns are the full-sample `estimate`, its asymptotic `standard_error`, `bootstrap_se` (standard deviation over
        draws), `bias` (mean over draws less estimate), the percentile interval at this level, from `lower` to `upper`,
        the basic interval, which mirrors it at the estimate, from `basic_lower` to `basic_upper`, `draws` and
        `failures`.

        Raises
        ------
        ValueError
            When the level is not between zero and one.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between zero and one, not {level!r}.")
        results, known = self.problem_results, self.parameters[self.ok]
        estimate, Q = results.parameters[:, 0], len(results.parameters)
        lower, upper, mean, deviation = np.full((4, Q), np.nan)
        if len(known):
            lower, upper = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2], axis=0)
            mean = known.mean(axis=0)
        if len(known) > 1:
            deviation = known.std(axis=0, ddof=1)
        covariances = np.diag(results.parameter_covariances) / len(results.delta)
        first = self.table.iloc[:Q]
        return pd.DataFrame(
            {
                "estimate": estimate,
                "standard_error": np.sqrt(covariances),
                "bootstrap_se": deviation,
                "bias": mean - estimate,
                "lower": lower,
                "upper": upper,
                "basic_lower": 2 * estimate - upper,
                "basic_upper": 2 * estimate - lower,
                "draws": self.draws,
                "failures": int((~self.ok).sum()),
            },
            index=pd.MultiIndex.from_frame(first[["block", "parameter"]]),
        )

    def to_bootstrapped(
        self, hold: str = "shares", iteration: Iteration | None = None, constant_costs: bool = True
    ) -> BootstrappedResults:
        """Outputs at the estimates of each draw that is `ok`, for the full data, with a first axis of draws.

        Percentiles over that axis are confidence intervals, for example of elasticities
        ``np.percentile(draws.to_bootstrapped().compute_elasticities(), [2.5, 97.5], axis=0)``.

        Parameters
        ----------
        hold : ``'shares'``: prices and shares are as observed, mean utilities those that reproduce them, and costs
            those that make prices optimal. ``'xi'``: structural errors are as estimated with the full sample, and
            equilibrium prices and shares follow, as in `ProblemResults.bootstrap`.
        iteration : how to invert shares or to solve for prices; defaults are those of the methods that do so.
        constant_costs : see `ProblemResults.bootstrap`.

        Raises
        ------
        ValueError
            When no draw is `ok`, or `hold` is neither.

        Warns
        -----
        ConvergenceWarning
            Naming draws and markets for which there is no solution. Results are NaN there.
        """
        check_choice("hold", hold, ("shares", "xi"))
        known = self.parameters[self.ok]
        if not len(known):
            raise ValueError("There are no estimates: all draws failed.")
        coefficients = jax.device_get(coefficients_of(self.problem_results, known))
        return results_at(self.problem_results, coefficients, hold, iteration, constant_costs)

    def __str__(self) -> str:
        title = f"Re-estimation from {self.draws} samples of {self.unit}"
        took = report.format_seconds(self.seconds)
        return f"{title} after {took}:\n" + self.summary().to_string(float_format=lambda x: f"{x:.4g}")

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, eq=False)
class BootstrapStudy:
    """Estimations from samples of units, as lanes: see `blpjax.studies.Study`.

    Attributes
    ----------
    options : what decides which programs are compiled.
    lane : the estimation with the full sample, all weights one.
    units : (N,) unit of each product, counted from zero. count : their number.
    seed : of all draws.
    labels, blocks : names and blocks of the Q parameters.
    absorbed : levels of fixed effects (N, E) of each equation.
    """

    options: BatchOptions
    lane: Lane
    units: np.ndarray
    count: int
    seed: int
    labels: tuple[str, ...]
    blocks: tuple[str, ...]
    absorbed: tuple[np.ndarray, ...]

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
        text = repr((self.seed, self.count, describe(self.options), self.labels))
        return fingerprint_of(text, [self.units, *jax.tree.leaves(self.lane)])

    def run_batch(self, first: int, size: int) -> pd.DataFrame:
        """Estimates of draws `first`, ..., ``first + size - 1``."""
        draws = jnp.arange(first, first + size)
        weights = draw_weights(jax.random.key(self.seed), draws, jnp.asarray(self.units), self.count)
        varying, shared = self._split(weights)
        identified = _is_identified(self.options, varying, shared)
        found = estimate_batch(self.options, varying, shared, size)
        return self._tabulate(first, found, np.asarray(identified))

    def _split(self, weights: Float[Array, "B N"]) -> tuple[Lane, Lane]:
        """Lanes with these weights, and X and Z residualised with them."""
        absorbing = [e for e, ids in enumerate(self.absorbed) if ids.shape[1]]

        def where(lane: Lane) -> list[Any]:
            leaves = [lane.data.weights]
            for e in absorbing:
                equation: Any = _EQUATIONS[e](lane.data)
                projection = equation.absorb
                leaves += [equation.X, equation.Z, projection.weights, projection.counts, projection.inverse]
                leaves += [equation.instruments] if self._same(e) else []
            return leaves

        values = [weights]
        for e in absorbing:
            equation, ids = self.lane.data.equations[e], self.absorbed[e]
            built = [build_projection(ids, row) for row in np.asarray(weights)]
            counts, inverse = (jnp.stack([getattr(p, name) for p in built]) for name in ("counts", "inverse"))
            X, Z = (_absorb(built[0], weights, counts, inverse, values) for values in (equation.X, equation.Z))
            values += [X, Z, weights, counts, inverse] + ([Z] if self._same(e) else [])
        return split_lane(self.lane, where, values)

    def _same(self, e: int) -> bool:
        """Whether the instruments of an equation are its residualised Z, and not what the user residualised."""
        equation = self.lane.data.equations[e]
        return np.array_equal(equation.instruments, equation.Z)

    def _tabulate(self, first: int, found: BatchOutcome, identified: np.ndarray) -> pd.DataFrame:
        B, Q = found.parameters.shape
        ok = identified & succeeded(found.status) & np.isfinite(found.objectives)
        ok &= np.isfinite(found.parameters).all(axis=1)
        sentences = np.array([Status(code).sentence for code in found.status], dtype=object)
        kept = np.where(ok, 1.0, np.nan)[:, None]
        return pd.DataFrame(
            {
                "draw": np.repeat(np.arange(first, first + B), Q),
                "block": np.tile(self.blocks, B),
                "parameter": np.tile(self.labels, B),
                "estimate": (found.parameters * kept).ravel(),
                "standard_error": (found.standard_errors * kept).ravel(),
                "ok": np.repeat(ok, Q),
                "status": np.repeat(np.where(identified, sentences, _UNIDENTIFIED), Q),
                "objective": np.repeat(found.objectives, Q),
                "gradient_norm": np.repeat(found.gradient_norms, Q),
                "evaluations": np.repeat(found.evaluations, Q),
            }
        )


def reestimate(
    results: ResultsLike,
    step_options: StepOptions,
    begin: FirstStep,
    draws: int,
    unit: str | None,
    seed: int,
    recentre: bool,
    costs_bounds: Any,
    **running: Any,
) -> ReestimationResults:
    """Draw samples and estimate; see `ProblemResults.reestimate`, whose `running` arguments decide where and how."""
    count = read_draws(draws)
    study = build_study(results, step_options, begin, unit, seed, recentre, costs_bounds)
    outcome = run_draws(study, results.problem, count, **running)
    drawn = _read_unit(results.problem, step_options, unit)
    found = ReestimationResults(
        results, drawn, recentre, outcome.table, outcome.seconds, outcome.batches, outcome.peak_memory
    )
    options.output(f"\n{found}")
    return found


def run_draws(
    study: BootstrapStudy,
    problem: ProblemLike,
    count: int,
    batch_size: int | None,
    path: str | os.PathLike[str] | None,
    executor: Any,
    memory: int | None,
) -> StudyOutcome:
    """Run draws of a study in batches that memory holds."""
    given = None if batch_size is None else read_draws(batch_size, "batch_size")
    if memory is not None and not memory > 0:
        raise ValueError(f"memory must be a positive number of bytes, not {memory!r}.")
    more = problem.N
    for equation, ids in zip(study.lane.data.equations, study.absorbed, strict=True):
        if ids.shape[1]:
            more += problem.N * (equation.X.shape[1] + 2 * equation.Z.shape[1] + 1) + ids.max() ** 2
    P = study.options.specification.layout.P
    largest = largest_batch(problem.economy, P, int(more), BATCH_BYTES if memory is None else memory)
    return run_study(study, count, Sizes(given, largest), None if path is None else Path(path), executor)


def build_study(
    results: ResultsLike,
    step_options: StepOptions,
    begin: FirstStep,
    unit: str | None,
    seed: int,
    recentre: bool,
    costs_bounds: Any,
) -> BootstrapStudy:
    """The study of bootstrap samples of some results.

    Raises
    ------
    ValueError, NotImplementedError
        See `ProblemResults.reestimate`.
    """
    _refuse(results, step_options, costs_bounds)
    problem, layout = results.problem, step_options.parameters.layout
    drawn = _read_unit(problem, step_options, unit)
    units = problem.clusters[0] if drawn == "clusters" else problem.market_index.codes
    bounds = read_costs_bounds(costs_bounds, problem.model_data.supply is not None)
    absorbed = (problem.demand_ids, problem.supply_ids)[: len(problem.model_data.equations)]
    offset = jnp.asarray(results.moments[:, 0]) if recentre else None
    data = _weighted(problem.model_data, bounds, absorbed, offset)
    same = np.asarray(estimator.initial_weights(problem.model_data.weighted_instruments))
    given = None if np.allclose(begin.W, same, rtol=1e-9, atol=0) else begin.W
    lane = build_lane(step_options, problem.economy, data, begin.theta, results.delta[:, 0], problem.clusters[0], given)
    blocks = [name for name in BLOCKS for _ in getattr(layout, name)]
    blocks += ["beta"] * len(layout.concentrated_beta) + ["gamma"] * len(layout.concentrated_gamma)
    return BootstrapStudy(
        options=BatchOptions(step_options.specification, step_options.types, min(results.step, 2)),
        lane=lane,
        units=np.asarray(units),
        count=int(np.max(units)) + 1,
        seed=int(seed),
        labels=tuple(results.parameter_labels),
        blocks=tuple(blocks),
        absorbed=absorbed,
    )


@filtered_program(effort=0)
def draw_weights(key: Array, draws: Int[Array, " B"], units: Int[Array, " N"], count: int) -> Float[Array, "B N"]:
    """How often each product's unit is drawn, when as many units are drawn as there are, by numbers of draws."""

    def one(draw: Array) -> Array:
        drawn = jax.random.randint(jax.random.fold_in(key, draw), (count,), 0, count)
        return jnp.bincount(drawn, length=count)[units].astype(float)

    return jax.vmap(one)(draws)


@filtered_program(effort=0)
def _is_identified(options: BatchOptions, varying: Lane, shared: Lane) -> Bool[Array, " B"]:
    """Whether linear parameters are identified, which they are not when a sample lacks a level of an indicator."""

    def one(part: Lane) -> Array:
        lane = eqx.combine(part, shared)
        W, factor = lane.data.initial_weights(), jnp.asarray(1.0)
        step = moments.make_inputs(
            options.specification, lane.economy, lane.data, lane.fixed, W, factor, lane.limits
        ).step
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
    equations = []
    for equation, ids in zip(data.equations, absorbed, strict=True):
        projection = build_projection(ids, np.asarray(ones)) if ids.shape[1] else None
        equations.append(dataclasses.replace(equation, absorb=projection))
    supply = data.supply
    if supply is not None:
        supply = dataclasses.replace(supply, equation=equations[1], costs_bounds=jnp.asarray(costs_bounds))
    return dataclasses.replace(data, demand=equations[0], supply=supply, weights=ones, offset=offset)


def _read_unit(problem: ProblemLike, step_options: StepOptions, unit: str | None) -> str:
    """What is drawn; `ValueError` when that cannot be, or would not be what covariances stand for."""
    clustered = "clustered" in (step_options.types.W_type, step_options.types.se_type)
    check_choice("unit", unit, (None, "markets", "clusters"))
    chosen = unit or ("clusters" if clustered else "markets")
    if chosen == "clusters" and problem.product_table.clustering_ids is None:
        raise ValueError("unit='clusters' needs a column 'clustering_ids' in product_data.")
    if chosen == "markets" and clustered:
        clusters, markets = problem.clusters[0], problem.market_index.codes
        if len(np.unique(np.column_stack([clusters, markets]), axis=0)) > problem.clusters[1]:
            raise ValueError(
                "Errors of different markets are correlated, because there are clusters in several markets, and "
                "covariances are clustered. Use unit='clusters'."
            )
    return chosen


def _refuse(results: ResultsLike, step_options: StepOptions, costs_bounds: Any) -> None:
    if results.step < 1:
        raise ValueError("Results of an initial update cannot be estimated again. Use those of a GMM step.")
    if results.problem.economy.placement is not None:
        raise NotImplementedError(
            "The markets of the problem are spread over devices, which re-estimation spreads samples over. Solve the "
            "problem without shard()."
        )
    if results.problem.model_data.covariance is not None:
        raise NotImplementedError("Covariance instruments are not supported in re-estimation. Leave them out.")
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
