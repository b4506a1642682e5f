"""Micro moments of `Problem.solve`: arguments become a block of moments, with what tables say of it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from blpjax import options
from blpjax.economy.buckets import AgentsInEconomy
from blpjax.economy.surveys import Surveys, build_surveys, dependent_rows
from blpjax.exceptions import IdentificationError, IdentificationWarning, warn_user
from blpjax.inputs.arguments import read_numbers
from blpjax.inputs.identification import collinear_moments
from blpjax.inputs.micro import MicroMoment, MicroPart, distinct_datasets, distinct_parts, read_micro_moments
from blpjax.inputs.surveys import check_columns
from blpjax.model.parameters import ParameterLayout, Parameters
from blpjax.model.surveys import compute_part_values
from blpjax.model.tastes import market_tastes
from blpjax.objective import iv
from blpjax.objective.micro import MicroMoments, build_micro_moments, check_gradients
from blpjax.objective.problem_data import ProblemData
from blpjax.objective.programs import on_host
from blpjax.reporting.micro import MicroLine, micro_lines, micro_table

Method = TypeVar("Method", bound=Callable[..., Any])

#: Arguments of PyBLP's older versions, and what to use.
_RENAMED = {
    "micro_moment_covariances": "micro_sample_covariances",
    "extra_micro_moments": "micro_moments, whose values are functions of several parts",
    "agent_covariances": "micro_moments, whose values are functions of several parts",
}

#: Variances of micro moments that are this small next to squares of values are zero.
_NO_VARIANCE = 1e-12


class MicroSetup(NamedTuple):
    """Micro moments of an estimation: none or one block of moments, lines of tables, and the users' objects."""

    blocks: tuple[MicroMoments, ...] = ()
    lines: tuple[MicroLine, ...] = ()
    moments: tuple[MicroMoment, ...] = ()

    @property
    def size(self) -> int:
        """Number of micro moments."""
        return len(self.moments)

    def with_agents(self, data: ProblemData, agents: AgentsInEconomy, layout: ParameterLayout) -> list[MicroMoments]:
        """The block with other agents, for which the users' functions are called again."""
        if not self.moments:
            return []
        surveys = build_surveys(
            data.survey_markets(data.products, agents, layout), agents.economy, distinct_parts(self.moments)
        )
        return [self.blocks[0].at_agents(surveys, layout)]

    def check_variances(self, S: np.ndarray, N: int) -> None:
        """`IdentificationError` when a moment's variance is zero, according to the moments' covariances S (M, M)."""
        if not self.moments or self.blocks[0].sample is not None:
            return
        variances = np.diag(S)[-self.size :] / N
        scale = np.asarray(self.blocks[0].observations)[np.array(self.blocks[0].parts.datasets)].max()
        constant = [
            moment.name
            for moment, variance in zip(self.moments, variances * scale, strict=True)
            if variance <= _NO_VARIANCE * max(moment.value**2, _NO_VARIANCE)
        ]
        if constant:
            raise IdentificationError(
                f"The model says that the micro moments {', '.join(map(repr, constant))} have no variance: values are "
                "the same for all respondents. Remove them, or give micro_sample_covariances."
            )


def read_micro(
    data: ProblemData, micro_moments: Any, sample_covariances: Any, parameters: Parameters, observed: bool = True
) -> MicroSetup:
    """Read micro moments, call the users' functions, and check gradients at the starting values.

    With `observed` values and numbers of respondents have to be known.

    Raises
    ------
    TypeError, ValueError, RuntimeError, DataError
        When something cannot be used; messages name moment, dataset, part and market.

    Warns
    -----
    IdentificationWarning
        When sample covariances are singular, or, with `options.detect_micro_collinearity`, values are collinear.
    """
    moments = read_micro_moments(() if micro_moments is None else micro_moments, observed)
    sample = _read_covariances(sample_covariances, [moment.name for moment in moments])
    if not moments:
        return MicroSetup()
    layout, parts = parameters.layout, distinct_parts(moments)
    markets = data.survey_markets(data.products, data.agents_in_economy, layout)
    check_columns(moments, markets.tables)
    surveys = build_surveys(markets, data.economy, parts)
    if options.detect_micro_collinearity:
        _warn_of_collinearity(surveys, parts)
    block = build_micro_moments(moments, surveys, layout, sample, data.placement)
    coefficients = parameters.at(parameters.theta)
    delta, tastes = data.closed_form_delta(np.asarray(coefficients.rho)), market_tastes(coefficients, layout)
    here = (surveys, data.economy) if data.placement is not None else on_host((surveys, data.economy))
    values = compute_part_values(here[0], block.parts, here[1], tastes, delta)
    check_gradients(moments, np.asarray(values))
    found = MicroSetup((block,), micro_lines(moments), tuple(moments))
    if options.verbose and observed:
        options.output(f"\n{micro_table(found.lines)}")
    return found


def refuse_old_names(method: Method) -> Method:
    """Decorate `solve` so that arguments of older versions of PyBLP are refused with what to use instead."""

    @functools.wraps(method)
    def checked(*arguments: Any, **named: Any) -> Any:
        for name, instead in _RENAMED.items():
            if name in named:
                raise TypeError(f"There is no argument {name}: use {instead}.")
        return method(*arguments, **named)

    return checked  # type: ignore[return-value]


def _warn_of_collinearity(surveys: Surveys, parts: Sequence[MicroPart]) -> None:
    """Warn of parts whose values, where weights are not zero, are linear combinations of those of others."""
    for d, dataset in enumerate(distinct_datasets(parts)):
        own = [part.name for part in parts if part.dataset == dataset]
        dependent = [own[p] for p in dependent_rows(surveys, d, (options.collinear_atol, options.collinear_rtol))]
        if dependent:
            warn_user(
                f"In micro dataset '{dataset.name}', values of the micro parts {', '.join(map(repr, dependent))} are "
                "linear combinations of those of parts before them. Moments may be collinear.",
                IdentificationWarning,
            )


def _read_covariances(given: Any, names: Sequence[str]) -> np.ndarray | None:
    if given is None:
        return None
    name, size = "micro_sample_covariances", len(names)
    if not size:
        raise ValueError(f"{name} need micro_moments.")
    array = read_numbers(name, given)
    if array.shape != (size, size):
        raise ValueError(f"{name} must have the shape {(size, size)}, for {size} micro moments, not {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite.")
    if (np.abs(array - array.T) > options.psd_atol + options.psd_rtol * np.abs(array)).any():
        raise ValueError(f"{name} must be symmetric.")
    scale = np.sqrt(np.where(np.diag(array) > 0, np.diag(array), 1.0))
    if np.linalg.eigvalsh(array / np.outer(scale, scale)).min() < -max(options.psd_atol, 1e-10):
        raise ValueError(f"{name} must be positive semidefinite.")
    array = (array + array.T) / 2
    if int(iv.numerical_rank(array)) < size:
        groups = [", ".join(repr(names[m]) for m in group) for group in collinear_moments(array)]
        text = f"{name} are singular: their pseudo-inverse weights micro moments. Collinear are {'; '.join(groups)}."
        warn_user(text, IdentificationWarning)
    return array
