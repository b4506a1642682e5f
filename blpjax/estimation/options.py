"""Options of `Problem.solve` that every GMM step needs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from blpjax import options
from blpjax.estimation.checkpoint import Checkpoint
from blpjax.exceptions import IdentificationError, warn_unused
from blpjax.inputs.arguments import check_choice, read_numbers
from blpjax.iteration import Iteration
from blpjax.model.parameters import Parameters
from blpjax.objective import iv
from blpjax.objective.blocks import MomentBlock, SampleMoments
from blpjax.objective.clusters import Counts, counts_of_kinds
from blpjax.objective.data import ModelData
from blpjax.objective.dynamics import MomentTypes
from blpjax.objective.inference import CovarianceTypes
from blpjax.objective.structure import Specification
from blpjax.optimize.optimize import Optimization
from blpjax.optimize.recorder import FailurePolicy
from blpjax.reporting.micro import MicroLine
from blpjax.values import read_flag

DeltaBehavior = Literal["predicted", "first", "logit", "last"]


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """Options of `Problem.solve` that every GMM step needs.

    `parameters` have infinite bounds where the optimisation routine ignores bounds. `differences` is the step of finite
    differences, or None for exact derivatives. `moment_types` are levels unless they say something else. `micro` are
    lines of tables of micro moments, and `micro_sampled` says whether their covariances were given.
    """

    parameters: Parameters
    costs_bounded: bool
    optimization: Optimization
    iteration: Iteration
    types: CovarianceTypes
    check_optimality: Literal["gradient", "both"]
    error_behavior: Literal["revert", "punish", "raise"] | None
    delta_behavior: DeltaBehavior
    scale_objective: bool
    error_punishment: float = 1.0
    differences: float | None = None
    moment_types: MomentTypes = MomentTypes()
    micro: tuple[MicroLine, ...] = ()
    micro_sampled: bool = False

    @property
    def specification(self) -> Specification:
        """The static part, which decides which programs are compiled."""
        return Specification(self.parameters.layout, self.iteration.fixed_point)

    @property
    def failure_policy(self) -> FailurePolicy | None:
        """What optimisation routines see where the objective cannot be evaluated; None is their default."""
        if self.error_behavior is None or self.error_behavior == "raise":
            return None
        return FailurePolicy(self.error_behavior, self.error_punishment)

    @property
    def one_of_many(self) -> "StepOptions":
        """The same for one of many estimations: without a Hessian, and one that fails does not end the others."""
        behavior = None if self.error_behavior == "raise" else self.error_behavior
        return dataclasses.replace(self, check_optimality="gradient", error_behavior=behavior)


def read_step_options(
    *,
    parameters: Parameters,
    costs_bounded: bool,
    optimization: Optimization | None,
    iteration: Iteration,
    check_optimality: Any,
    error_behavior: Any,
    error_punishment: Any,
    finite_differences: Any,
    delta_behavior: Any,
    scale_objective: bool,
    W_type: str,
    se_type: str,
    center_moments: bool,
    n_clusters: Counts | None,
    moment_types: MomentTypes,
    micro: tuple[MicroLine, ...] = (),
    micro_sampled: bool = False,
) -> StepOptions:
    """Options of `Problem.solve` as all GMM steps use them.

    `costs_bounded` says whether costs have bounds, and `n_clusters` is None without clustering IDs.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        When an option is none of those that there are.
    """
    check_choice("check_optimality", check_optimality, ("gradient", "both"))
    check_choice("delta_behavior", delta_behavior, (None, "predicted", "first", "logit", "last"))
    check_choice("error_behavior", error_behavior, (None, "revert", "punish", "raise"))
    finite_differences = read_flag("finite_differences", finite_differences)
    scale_objective = read_flag("scale_objective", scale_objective)
    if optimization is not None and not isinstance(optimization, Optimization):
        raise TypeError(f"optimization must be Optimization or None, not {type(optimization).__name__}.")
    types = read_covariance_types(W_type, se_type, center_moments, n_clusters)
    chosen = Optimization("trust-region") if optimization is None else optimization
    if finite_differences and chosen.routine.differences:
        found = {**chosen.routine.differences, **(chosen.method_options or {})}
        chosen = dataclasses.replace(chosen, method_options=found)
    punishment = _read_punishment(error_punishment, error_behavior, chosen)
    if delta_behavior == "predicted" and not chosen.compute_gradient:
        raise ValueError("delta_behavior='predicted' needs derivatives: an Optimization with compute_gradient=True.")
    if delta_behavior is None:
        delta_behavior = "predicted" if chosen.routine.predictable else "first"
    return StepOptions(
        parameters=usable_parameters(parameters, chosen),
        costs_bounded=costs_bounded,
        optimization=chosen,
        iteration=iteration,
        types=types,
        check_optimality=check_optimality,
        error_behavior=error_behavior,
        error_punishment=punishment,
        delta_behavior=delta_behavior,
        scale_objective=scale_objective,
        differences=options.finite_differences_epsilon if finite_differences else None,
        moment_types=moment_types,
        micro=micro,
        micro_sampled=micro_sampled,
    )


def usable_parameters(parameters: Parameters, optimization: Optimization) -> Parameters:
    """Parameters with their bounds, infinite ones where the optimisation routine ignores them."""
    return parameters if optimization.supports_bounds else parameters.unbounded()


def read_covariance_types(
    W_type: str, se_type: str, center_moments: bool, n_clusters: Counts | None
) -> CovarianceTypes:
    """How covariances are estimated; `ValueError` for kinds that there are not, and for clusters without IDs."""
    for name, covariances in (("W_type", W_type), ("se_type", se_type)):
        iv.check_kind(covariances, name)
        if covariances == "clustered" and n_clusters is None:
            raise ValueError(f"{name}='clustered' needs a column 'clustering_ids' in product_data.")
        if covariances == "clustered" and n_clusters is not None and 1 in (found := counts_of_kinds(n_clusters)):
            column = f"clustering_ids{found.index(1)}" if len(found) > 1 else "clustering_ids"
            raise ValueError(f"{name}='clustered' needs at least two clusters, but '{column}' has a single value.")
    centered = read_flag("center_moments", center_moments)
    return CovarianceTypes(W_type, se_type, centered, 1 if n_clusters is None else n_clusters)


def _read_punishment(punishment: Any, behavior: str | None, optimization: Optimization) -> float:
    number = isinstance(punishment, int | float | np.integer | np.floating) and not isinstance(punishment, bool)
    if not number or not 0 <= punishment < np.inf:
        raise ValueError(f"error_punishment must be a number of at least zero, not {punishment!r}.")
    if behavior not in ("revert", "punish"):
        if punishment != 1:
            raise ValueError(
                f"error_punishment does nothing with error_behavior={behavior!r}. Use it with 'revert', which is "
                "PyBLP's default, or with 'punish'."
            )
    elif optimization.routine.steps_back:
        warn_unused(
            f"error_behavior='{behavior}'",
            "Optimization('trust-region'), the default, steps back from evaluations that fail. Routines that are led "
            "by values of the objective, such as Optimization('l-bfgs-b'), honour it.",
        )
    return float(punishment)


def read_weights(W: Any, size: int) -> np.ndarray:
    """A weighting matrix (size, size) as given, made exactly symmetric.

    Raises
    ------
    ValueError
        When it has another shape or is not finite, symmetric and positive semidefinite.
    """
    array = read_numbers("W", W)
    if array.shape != (size, size):
        raise ValueError(f"W must have the shape {(size, size)}, not {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError("W must be finite.")
    if (np.abs(array - array.T) > options.psd_atol + options.psd_rtol * np.abs(array)).any():
        raise ValueError("W must be symmetric.")
    scale = np.sqrt(np.where(np.diag(array) > 0, np.diag(array), 1.0))
    if np.linalg.eigvalsh(array / np.outer(scale, scale)).min(initial=0.0) < -1e-6:
        raise ValueError("W must be positive semidefinite.")
    return (array + array.T) / 2


def read_initial_update(given: bool | None, needed: bool) -> bool:
    """Whether W is updated at the starting values; `ValueError` when it has to be but must not."""
    given = None if given is None else read_flag("initial_update", given)
    if needed and given is not None and not given:
        raise ValueError(
            "initial_update=False needs a weighting matrix W: moments from other samples than that of products have no "
            "weights before the first update."
        )
    return needed if given is None else given


def read_moment_blocks(blocks: Any, data: ModelData) -> tuple[MomentBlock, ...]:
    """Blocks of moments beside those of the data.

    Raises
    ------
    TypeError
        When something is no `MomentBlock`.
    ValueError
        When instruments are no matrix of finite numbers with a row for each product.
    """
    if isinstance(blocks, MomentBlock) or not isinstance(blocks, Sequence):
        raise TypeError(f"moment_blocks must be a list of blpjax.MomentBlock instances, not {type(blocks).__name__}.")
    N = data.demand.X.shape[0]
    for k, block in enumerate(blocks):
        if not isinstance(block, MomentBlock):
            raise TypeError(f"moment_blocks[{k}] must be a blpjax.MomentBlock, not {type(block).__name__}.")
        if isinstance(block, SampleMoments):
            continue
        Z = np.asarray(getattr(block, "instruments", np.nan))
        if Z.ndim != 2 or len(Z) != N or not np.isfinite(Z).all():
            raise ValueError(
                f"moment_blocks[{k}] ({block.name}) must have instruments with a row of finite numbers for each of the "
                f"{N} products, not of the shape {Z.shape}."
            )
    return tuple(blocks)


def refuse_pseudo_inverse(weights: np.ndarray, instrument_labels: Sequence[str]) -> None:
    """Raise `IdentificationError` when a weighting matrix (M, M) is a pseudo-inverse and these are not wanted."""
    M = len(weights)
    if options.pseudo_inverses or (rank := int(iv.numerical_rank(np.asarray(weights)))) == M:
        return
    raise IdentificationError(
        f"The {M} instruments {', '.join(map(repr, instrument_labels))} have rank {rank}, so the initial weighting "
        "matrix has to be a pseudo-inverse. Remove collinear instruments, or set options.pseudo_inverses = True."
    )


def read_checkpoint(path: Any, options: StepOptions, products: int, several: bool) -> Checkpoint | None:
    """The file of the best points of an estimation, None where there is nothing to keep; `several` starts have none.

    Raises
    ------
    NotImplementedError
        With several starts.
    ValueError, TypeError
        For a routine that evaluates the starting values, and what is no path.
    StorageError
        See `Checkpoint`.
    """
    if several:
        raise NotImplementedError("path is not supported with starts. Try starts first, and leave one of the two out.")
    if not options.optimization.routine.optimizes:
        raise ValueError("path must not be given with Optimization('return'), which evaluates the starting values.")
    if not options.parameters.theta.size:
        warn_unused("path", "there are no nonlinear parameters, so that estimates have a closed form.")
        return None
    return Checkpoint(Path(path), options.parameters.theta_names, products)
