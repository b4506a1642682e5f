"""Micro data at the parameters of results: values of micro moments."""

from typing import Any, NamedTuple, NoReturn

import numpy as np

from blpjax.economy.surveys import build_surveys
from blpjax.inputs.micro import distinct_parts, read_micro_moments
from blpjax.machine.compilation import filtered_program
from blpjax.model.formulated import Formulated
from blpjax.model.model import Model
from blpjax.model.parameters import ParameterLayout
from blpjax.model.surveys import Parts, part_values, survey_sums
from blpjax.model.tastes import market_tastes
from blpjax.objective.micro import host_values
from blpjax.objective.programs import on_host


class SurveySource(NamedTuple):
    """What methods for micro data need of results: tables with formulas, products, the model, and its parameters."""

    data: Formulated
    products: np.recarray
    model: Model
    layout: ParameterLayout


class MicroMethods:
    """Methods of results for micro data."""

    def survey_source(self) -> SurveySource:
        """What these methods need."""
        raise NotImplementedError

    def compute_micro_values(self, micro_moments: Any) -> np.ndarray:
        """Values of micro moments (MM,) at these parameters: means of parts, or functions of them.

        Parameters
        ----------
        micro_moments : sequence of MicroMoment
            Their observed values play no role.

        Raises
        ------
        TypeError, ValueError, RuntimeError, DataError
            See `Problem.solve`.
        """
        moments = read_micro_moments(micro_moments)
        if not moments:
            return np.zeros(0)
        source, parts = self.survey_source(), distinct_parts(moments)
        markets = source.data.survey_markets(source.products, source.data.agents_in_economy, source.layout)
        surveys = build_surveys(markets, source.model.economy, parts)
        model = source.model.on_host()
        if model.economy.on_host:
            with np.errstate(all="ignore"):
                values = _values(model, on_host(surveys), Parts.of(parts))
        else:
            values = np.asarray(_compiled_values(model, surveys, Parts.of(parts)))
        return host_values(moments, values)

    def compute_micro_scores(self, dataset: Any, micro_data: Any, integration: Any = None) -> NoReturn:
        """Raise `NotImplementedError`."""
        raise NotImplementedError(_explain_absence("compute_micro_scores"))

    def compute_agent_scores(self, dataset: Any, micro_data: Any = None, integration: Any = None) -> NoReturn:
        """Raise `NotImplementedError`."""
        raise NotImplementedError(_explain_absence("compute_agent_scores"))

    def simulate_micro_data(self, dataset: Any, seed: int | None = None) -> NoReturn:
        """Raise `NotImplementedError`."""
        raise NotImplementedError(_explain_absence("simulate_micro_data"))


def _explain_absence(name: str) -> str:
    return f"{name} is not supported yet. Use PyBLP."


def _values(model: Model, surveys: Any, parts: Parts) -> Any:
    # the economy of a simulation has characteristics at the prices that were there before
    economy = model.economy.with_products(model.shares, model.characteristics.evaluate({})[1])
    tastes = market_tastes(model.coefficients, model.layout)
    return part_values(survey_sums(surveys, parts, economy, tastes, model.delta), parts)


_compiled_values = filtered_program(effort=1)(_values)
