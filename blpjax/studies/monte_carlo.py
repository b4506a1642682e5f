"""Monte Carlo studies: data that are simulated and estimated again and again, many replications at once."""

import copy
import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pandas as pd

from blpjax.estimation.lane import (
    BATCH_BYTES,
    BatchOptions,
    Lane,
    build_lane,
    describe,
    largest_batch,
    moving_leaves,
    place_lane,
    read_batches,
    shared_part,
)
from blpjax.estimation.lane_optimizer import LaneOptimizer, read_optimizer
from blpjax.estimation.lanes import BatchOutcome, estimate_lanes, tabulate
from blpjax.estimation.options import read_covariance_types
from blpjax.exceptions import Status, succeeded
from blpjax.inputs.arguments import check_choice, read_costs_bounds, read_draws, read_inversion
from blpjax.inputs.identification import check_order_condition
from blpjax.inputs.likelihood import MicroLikelihood
from blpjax.inputs.micro import MicroMoment
from blpjax.iteration import Iteration
from blpjax.machine.batch_files import fingerprint_of
from blpjax.machine.batches import Sizes, run_study
from blpjax.machine.placement import Placement, read_devices
from blpjax.machine.spread import spread
from blpjax.model.parameters import BLOCKS, Parameters, compress
from blpjax.objective.structure import Specification
from blpjax.optimize.optimize import Optimization
from blpjax.problem.problem import Problem
from blpjax.reporting.tables import Part, Shown
from blpjax.simulation.simulation import Simulation
from blpjax.studies.generator import NOTHING, DataGenerator, ExogenousDraws
from blpjax.studies.lane_instruments import Observed, OptimalInstruments, estimate_optimally, plan_instruments
from blpjax.studies.likelihoods import LikelihoodStudy, refuse_unused
from blpjax.studies.replications import Drawn, Replication, build_lanes, build_truth, draw_replications
from blpjax.studies.results import COLUMNS, MonteCarloResults
from blpjax.studies.surveys import SurveyDraws, SurveyStudy
from blpjax.values import check_integer, read_flag

#: How shares are inverted by default. All lanes wait for the slowest one, so that a trial of the optimiser at which the
#: inversion is hard has to fail soon: it steps back then.
INVERSION = Iteration("anderson", {"max_evaluations": 200})

_FIRST = np.zeros(1, int)


class MonteCarlo(Shown):
    """A Monte Carlo study of an estimator.

    In each replication structural errors are drawn anew, firms set prices, respondents of surveys are drawn if there
    are micro moments, and the model is estimated as by `Problem.solve`. Exogenous variables and instruments stay those
    of the simulation unless a `data_generator` draws them, too.
    Replications are processed in batches, as lanes of one compiled program. Draws of a replication depend on `seed` and
    its number only.

    Parameters
    ----------
    simulation : the truth: data, parameters, and X3 for firms' costs.
    problem : the model to estimate, on data of the same shape: by default `SimulationResults.to_problem` of the
        simulation's equilibrium. Formulations and instruments may be others than those of the simulation, but
        instruments may not depend on prices or shares, which change from one replication to the next.
    seed : of all draws.
    data_generator : function of a `numpy.random.Generator`, the replication's own, that returns columns of product data
        by name: numeric exogenous variables of formulas, and all of ``demand_instruments0``, ... or a matrix
        ``demand_instruments``, and likewise for supply. What it leaves out stays, but instruments that the problem has
        from `SimulationResults.to_problem` by default are built from the new variables. Executors need a function that
        can be pickled.
    xi_variance, omega_variance, correlation : of structural errors.
    optimal_instruments : whether and how each replication is estimated again with optimal instruments at its own
        estimates: `OptimalInstruments`, or its `method`, such as ``'approximate'``. By default there is one estimation.
    optimization : ``'trust-region'``, the default, or ``'optax-l-bfgs'``, which ignores bounds, and their options.
        Tolerances refer to the objective without the factor N. Defaults are strict, so that tables do not depend on
        rounding: a ``decrease_tol`` of 1e-21 for the first one and a ``gtol`` of 1e-9 for the second one.
    micro_moments : as in `Problem.solve`, but for observed values, which play no role: in each replication as many
        respondents are drawn as datasets have observations, as by `SimulationResults.simulate_micro_data`, and moments
        have the values that they say. Datasets and parts are asked about the simulation's agents and products for that,
        and about the problem's in estimation. The table has rows of moments, see `MonteCarloResults`. Where functions
        use prices, shares or what `data_generator` draws, they are called again in each replication.
    micro_sample_covariances : whether covariances of the values of micro moments are those of respondents. By default
        they are those that the model has at the estimates.
    likelihood : a `MicroLikelihood` in place of GMM. In each replication the population of each market makes its
        choices as the simulation's agents do. As many of it as `micro_data` have rows there are respondents, whose
        agents' demographics and choices are known, and shares are those of all. Replications are estimated one after
        the other, with the same programs. What GMM alone has must be left out, and the problem has no supply side.
    sigma, pi, rho, tau, kappa, beta, gamma, method, W_type, se_type, center_moments, costs_bounds, iteration, bounds :
        those of `Problem.solve`. By default parameters start at the truth, and inversions that take more than 200
        evaluations fail, at which the optimiser steps back.

    Raises
    ------
    ValueError
        For arguments that `Problem.solve` would refuse, or a problem of another shape than the simulation.
    TypeError, ValueError, RuntimeError, DataError
        For micro moments that cannot be used.
    IdentificationError
        When there are fewer moments than parameters.
    NotImplementedError
        For problems with absorbed fixed effects or covariance moments, other optimisers, and optimal instruments with
        draws. With a likelihood for a supply side and options of GMM.
    """

    _devices: list[jax.Device] | None = None

    def __init__(
        self,
        simulation: Simulation,
        problem: Problem | None = None,
        *,
        seed: int = 0,
        data_generator: Any = None,
        xi_variance: float = 1.0,
        omega_variance: float = 1.0,
        correlation: float = 0.9,
        method: str = "2s",
        W_type: str = "robust",
        se_type: str = "robust",
        center_moments: bool = True,
        costs_bounds: Any = None,
        iteration: Iteration | None = None,
        optimization: Optimization | None = None,
        bounds: dict[str, Any] | None = None,
        optimal_instruments: OptimalInstruments | str | None = None,
        micro_moments: Sequence[MicroMoment] = (),
        micro_sample_covariances: bool = False,
        likelihood: MicroLikelihood | None = None,
        **parameters: Any,
    ) -> None:
        check_choice("method", method, ("1s", "2s"))
        if likelihood is not None:
            gmm = {"method": method, "W_type": W_type, "se_type": se_type, "center_moments": center_moments}
            instruments = {"optimal_instruments": optimal_instruments, "micro_moments": tuple(micro_moments)}
            refuse_unused({**gmm, "costs_bounds": costs_bounds, **instruments})
        self.simulation = simulation
        self.seed = check_integer("seed", seed, minimum=0)
        if problem is None:
            problem = simulation.replace_endogenous().to_problem()
        self.problem = problem
        _check_problem(simulation, problem)
        self._parameters = _read_parameters(simulation, problem, parameters, bounds or {})
        n_clusters = None if problem.product_table.clustering_ids is None else problem.clusters[1]
        chosen = read_inversion(INVERSION if iteration is None else iteration, "safe_linear", (1e-300, None))
        layout = self._parameters.layout
        self._options = BatchOptions(
            Specification(layout, chosen.fixed_point),
            read_covariance_types(W_type, se_type, center_moments, n_clusters),
            2 if method == "2s" else 1,
            _read_optimizer(optimization if likelihood is None else None, bounds),
        )
        self._iteration = chosen
        self._bounds = read_costs_bounds(costs_bounds, problem.model_data.supply is not None)
        self._truth = build_truth(simulation, (xi_variance, omega_variance, correlation))
        self._plan, shifters = None, []
        if optimal_instruments is not None:
            self._plan = plan_instruments(problem, layout, optimal_instruments, self._options.steps)
            shifters = [one for one in self._plan.shifters if one is not None]
        self._generator = None
        if data_generator is not None:
            self._generator = DataGenerator(data_generator, self.seed, simulation, problem, shifters)
        sampled = read_flag("micro_sample_covariances", micro_sample_covariances)
        changing: list[str] = []
        if self._generator is not None and micro_moments is not None:
            changing = list(self._generator.draw(_FIRST).variables)
        study = self.seed, simulation, problem, self._parameters
        self._surveys = SurveyStudy(micro_moments, sampled, *study, changing)
        self._likelihood: LikelihoodStudy | None = None
        counts = [problem.instrument_rank]
        if self._plan is not None:
            counts.append(self._plan.count_moments(layout, problem.model_data.supply is not None))
        for count in counts if likelihood is None else ():
            check_order_condition(count + len(self._surveys.moments), len(self.labels), self.labels, warn=False)
        if likelihood is not None:
            self._likelihood = LikelihoodStudy(likelihood, *study, optimization, iteration)

    def _parts(self) -> list[Part]:
        known = self.problem
        sizes = f"{known.N} products in {known.T} markets"
        estimator = f"{'two-step' if self._options.steps == 2 else 'one-step'} GMM"
        if self._likelihood is not None:
            estimator = "a likelihood"
        text = f"Monte Carlo study of {estimator}: {sizes}"
        text += ", then again with optimal instruments" if self._plan is not None else ""
        text += ". Exogenous variables are drawn anew" if self._generator is not None else ""
        true = pd.DataFrame({"block": self.blocks, "parameter": self.labels, "true": self.true_values})
        return [f"{text}. Seed {self.seed}.", true]

    @property
    def labels(self) -> list[str]:
        """Names of the parameters: theta, then concentrated elements of beta and gamma."""
        return self._parameters.parameter_labels

    @property
    def blocks(self) -> list[str]:
        """The block of each parameter."""
        return self._parameters.parameter_blocks

    @functools.cached_property
    def true_values(self) -> np.ndarray:
        """(Q,) true values of the parameters, NaN where the estimated model is not that of the simulation."""
        layout, known = self._parameters.layout, self.simulation.primitives
        labels = self._parameters.labels
        same = (labels.X1, labels.X2) == (known.labels.X1, known.labels.X2) and labels.X3 in ((), known.labels.X3)
        if not same or labels.conduct not in ((), known.labels.conduct):
            return np.full(len(self.labels), np.nan)
        linear = [np.asarray(known.coefficients.beta)[list(layout.concentrated_beta)]]
        linear.append(np.asarray(known.coefficients.gamma)[list(layout.concentrated_gamma)])
        return np.concatenate([compress(layout, known.coefficients), *linear])

    def run(
        self,
        replications: int,
        batch_size: int | None = None,
        path: str | os.PathLike[str] | None = None,
        executor: Any = None,
        memory: int | None = None,
        devices: int | Sequence[Any] | None = None,
    ) -> MonteCarloResults:
        """Simulate and estimate replications 0, 1, ..., `replications` - 1.

        Parameters
        ----------
        replications : their number.
        batch_size : how many replications are processed together. By default they are divided evenly into as few
            batches as `memory` allows, and with an executor into at least 32. With a given size the last batch is run
            whole too, and replications that are too many are cut from the table: with the same size a replication's
            rows are the same however many there are. With other sizes they may differ by rounding.
        path : directory in which finished batches are kept, as Parquet files. A study that was interrupted goes on
            where it stopped and ends with the same table, and one that is run with more replications keeps those that
            are there. The directory's batch size stays what it was.
        executor : where batches are run: an object with the method `submit` of `concurrent.futures.Executor`, for
            example that of a Dask client, ``client.get_executor()``, or a `ProcessPoolExecutor` whose processes are
            spawned, not forked. The study travels to its workers by pickling. A batch whose worker was lost is run
            again by another one. Finished batches are written by this process.
        memory : bytes that a batch may need by default, an estimate; one gibibyte unless given.
        devices : how many devices of this process replications are spread over, or which ones, for example
            ``jax.local_devices()[:2]``; all of them unless given. Tables do not depend on them, but for rounding. A CPU
            is one device, all cores of which are used.

        Raises
        ------
        TypeError, ValueError
            When a number is not a positive integer, the executor forks, there are no such devices, or `devices` are
            given for an executor, whose workers use those that they have.
        StorageError
            When `path` cannot be used, holds another study, or a file there cannot be read.
        SizeError
            When there is no memory for so many replications, or for such a batch.
        StudyError
            When the executor's workers were lost again and again. Finished batches are kept.
        """
        count = read_draws(replications, "replications")
        given, bytes_ = read_batches(batch_size, memory)
        study = self
        if devices is not None:
            if executor is not None:
                raise ValueError("devices cannot be given for an executor: its workers use all devices that they have.")
            study = copy.copy(self)
            study._devices = read_devices(devices, jax.local_devices())
        # prices and shares, and structural errors, of all replications of a batch at once
        sizes = Sizes(given, self._lanes_within(bytes_), 8 * 4 * self.problem.N)
        outcome = run_study(study, count, sizes, None if path is None else Path(path), executor)
        return MonteCarloResults(outcome.table, outcome.seconds, outcome.batches, outcome.peak_memory)

    @property
    def unit(self) -> str:
        """What is run many times."""
        return "replications"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table of results."""
        return COLUMNS

    @property
    def default_batch_size(self) -> int:
        """At most how many replications are processed together unless `run` is told otherwise."""
        return self._lanes_within(BATCH_BYTES)

    def _lanes_within(self, memory: int) -> int:
        problem, P = self.problem, self._parameters.layout.P
        supply = problem.model_data.supply is not None
        return largest_batch(problem.economy, P, supply, memory, self._surveys.numbers)

    @functools.cached_property
    def _shared(self) -> Lane:
        """All of a lane; what replications draw anew is replaced."""
        problem, parameters = self.problem, self._parameters
        data, nowhere = problem.model_data.at(costs_bounds=self._bounds), np.zeros(problem.N)
        if self._surveys.moments:
            data = data.add([self._surveys.block], [None for _ in data.equations])
        model = parameters, self._iteration, problem.economy, data
        return build_lane(*model, parameters.theta, nowhere, problem.clusters[0])

    @property
    def _replication(self) -> Replication:
        problem, layout = self.problem, self._options.specification.layout
        return Replication(problem.characteristics, layout, problem.add_exogenous)

    @property
    def _moving(self) -> Lane:
        """A tree of booleans: what differs between lanes."""
        exogenous = NOTHING if self._generator is None else self._generator.draw(_FIRST)
        one = jax.tree.map(lambda values: values[0], exogenous)
        variables = self.problem.characteristics.variables
        drawn = Drawn(variables["prices"], variables["shares"], variables["shares"], None, one, self._surveys.nothing)
        return moving_leaves(self._replication, self._shared, drawn)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the study: data, true parameters, estimator and seed."""
        truth, plan, data = self._truth, self._plan, self.problem.model_data
        fixed = eqx.filter(self._shared, self._moving, inverse=True)
        estimated = self.problem.characteristics
        exogenous = {name: x for name, x in estimated.variables.items() if name not in ("prices", "shares")}
        drawn = None if self._generator is None else self._generator.draw(np.arange(2))
        arrays = jax.tree.leaves((truth, fixed, exogenous, drawn, None if plan is None else plan.shifters))
        formulas = [
            [column.label for column in columns]
            for known in (truth.model.characteristics, estimated)
            for columns in (known.X1_columns, known.X2_columns, known.X3_columns)
        ]
        true = truth.description
        again = None if plan is None else plan.description
        text = repr((self.seed, formulas, true, describe(self._options, data), self.labels, again))
        more = "" if self._likelihood is None else self._likelihood.description
        return fingerprint_of(text + self._surveys.description + more, arrays)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what can be computed again."""
        kind = type(self)
        return {
            name: value
            for name, value in self.__dict__.items()
            if not isinstance(getattr(kind, name, None), functools.cached_property)
        }

    def run_batch(self, first: int, size: int) -> pd.DataFrame:
        """Rows of consecutive replications in the table of results.

        Parameters
        ----------
        first : number of the first one.
        size : how many are processed together.
        """
        replications = np.arange(first, first + size)
        drawn = NOTHING if self._generator is None else self._generator.draw(replications)
        if self._likelihood is not None:
            return self._run_likelihoods(self._likelihood, replications, drawn)

        def work(lanes: np.ndarray, placement: Placement | None) -> tuple[BatchOutcome, Any, Any]:
            own = jax.device_put(jax.tree.map(lambda values: values[lanes], drawn))
            return self._estimate(first + lanes, own, placement)

        found, equilibria, survey = spread(work, size, self._devices, self.fingerprint)
        return self._tabulate(first, found, np.asarray(equilibria), survey)

    def _run_likelihoods(
        self, study: LikelihoodStudy, replications: np.ndarray, exogenous: ExogenousDraws
    ) -> pd.DataFrame:
        """Rows of replications that are estimated one after the other."""
        key, numbers = jax.random.key(self.seed), jax.device_put(replications)
        drawn = draw_replications(self._truth, key, numbers, jax.device_put(exogenous))
        found, failures = study.estimate(replications, drawn, self._truth.model)
        return self._tabulate(int(replications[0]), found, np.asarray(drawn.status), failures=failures)

    def _estimate(
        self, replications: np.ndarray, exogenous: ExogenousDraws, placement: Placement | None
    ) -> tuple[BatchOutcome, Any, SurveyDraws | None]:
        """Estimates of replications by their numbers, how their equilibria went, and what respondents said."""
        whole = place_lane(self._shared, placement)
        drawn = draw_replications(
            self._truth, jax.random.key(self.seed), jax.device_put(replications), exogenous, placement
        )
        survey = None
        if self._surveys.moments:
            survey = self._surveys.draw(replications, drawn, self._truth.model)
            drawn = dataclasses.replace(drawn, survey=survey)
            survey = dataclasses.replace(survey, sample=None, surveys=None)  # which tables do not have
        varying = build_lanes(self._replication, whole, drawn)
        shared = shared_part(whole, varying)
        if self._plan is None:
            return estimate_lanes(self._options, varying, shared, replications.size), drawn.status, survey
        observed = Observed(drawn.prices, drawn.shares, exogenous.variables)
        return estimate_optimally(self._options, self._plan, varying, shared, observed), drawn.status, survey

    def _tabulate(
        self,
        first: int,
        found: BatchOutcome,
        equilibria: np.ndarray,
        survey: SurveyDraws | None = None,
        failures: Sequence[str | None] = (),
    ) -> pd.DataFrame:
        B = len(equilibria)
        solved, worst = succeeded(equilibria).all(axis=1), equilibria.max(axis=1)
        known = failures or [None] * B
        failures = [
            other if fine else Status(code).sentence for fine, code, other in zip(solved, worst, known, strict=True)
        ]

        def rows(
            blocks: list[str], labels: list[str], true: np.ndarray, values: Any = None, errors: Any = None
        ) -> pd.DataFrame:
            own = found
            if values is not None:
                known = np.ones(np.shape(values), bool)
                own = dataclasses.replace(found, parameters=values, standard_errors=errors, identified=known)
            return tabulate(own, first + np.arange(B), blocks, labels, failures).assign(true=true.ravel())

        parts = [rows(self.blocks, self.labels, np.tile(self.true_values, B))]
        if survey is not None:
            names, true = self._surveys.names, np.asarray(survey.population)
            parts.append(rows(["survey"] * len(names), names, true, survey.observed, survey.errors))
            parts.append(rows(["micro"] * len(names), names, true, found.micro_values, found.micro_errors))
        table = pd.concat(parts, ignore_index=True).rename(columns={"number": "replication"})
        return table.sort_values("replication", kind="stable", ignore_index=True)[list(COLUMNS)]


def _check_problem(simulation: Simulation, problem: Problem) -> None:
    """Refuse what lanes cannot do."""
    if problem.N != simulation.N or not np.array_equal(
        problem.product_table.market_ids, simulation.primitives.product_table.market_ids
    ):
        raise ValueError("The problem must have the same products as the simulation, in the same order.")
    if problem.ED or problem.ES:
        raise NotImplementedError(
            "Absorbed fixed effects are not supported in Monte Carlo studies. Put indicators, C(...), into formulas."
        )
    if problem.devices is not None:
        raise NotImplementedError(
            "The markets of the problem are spread over devices, which studies spread replications over. Use the "
            "problem without shard()."
        )
    if problem.product_table.lag_indices is not None or simulation.phi.size:
        raise NotImplementedError(
            "Studies draw structural errors that do not follow from their lags. Leave lag_indices out of the product "
            "data, or solve one Simulation(..., phi=..., seed=...) after the other."
        )
    for block in problem.model_data.more:
        if not block.resampled:
            name = block.name.capitalize()
            raise NotImplementedError(f"{name} are not supported in Monte Carlo studies. Leave them out.")
    if simulation.K3 == 0:
        raise NotImplementedError(
            "A simulation without X3 has no marginal costs, from which prices could be drawn. Formulate X3; the "
            "problem may leave it out."
        )


def _read_optimizer(optimization: Optimization | None, bounds: Any) -> LaneOptimizer:
    if optimization is not None and not isinstance(optimization, Optimization):
        raise TypeError(f"optimization must be an Optimization or None, not {type(optimization).__name__}.")
    optimizer = read_optimizer(optimization)
    if optimizer is None:
        raise NotImplementedError(
            "Monte Carlo studies optimise inside of compiled programs, which other routines than "
            "Optimization('trust-region') and Optimization('optax-l-bfgs') cannot do."
        )
    if bounds and optimization is not None and not optimization.supports_bounds:
        raise ValueError(
            f"Optimization('{optimization.method}') ignores bounds. Use 'trust-region', or leave bounds out."
        )
    return optimizer


def _read_parameters(
    simulation: Simulation, problem: Problem, given: dict[str, Any], bounds: dict[str, Any]
) -> Parameters:
    """Starting values, which are the true ones where none are given and both models have the same parameters."""
    if unknown := sorted({*given, *bounds} - set(BLOCKS)):
        raise ValueError(f"{', '.join(unknown)} are no parameters. There are {', '.join(BLOCKS)}.")
    true = simulation.primitives.coefficients
    starts = {}
    for name in BLOCKS:
        value = np.asarray(getattr(true, name))
        starts[name] = value if name not in ("beta", "gamma") and value.size else None
    if problem.data.labels.conduct != simulation.primitives.labels.conduct:
        starts["kappa"] = None
    if problem.model_data.supply is not None:
        # coefficients on prices cannot be concentrated out
        columns = problem.characteristics.X1_columns
        known = np.asarray(true.beta)
        if len(columns) == known.size:
            starts["beta"] = np.where([column.depends_on("prices") for column in columns], known, np.nan)
    return problem.read_parameters(**{**starts, **given}, bounds={**dict.fromkeys(BLOCKS), **bounds})
