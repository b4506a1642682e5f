"""Micro data at the parameters of results: values of micro moments, scores, and simulated surveys."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blpjax.economy.surveys import build_surveys
from blpjax.inputs.integration import Integration
from blpjax.inputs.micro import MicroDataset, MicroPart, distinct_parts, read_micro_moments
from blpjax.inputs.survey_expressions import SurveyTables
from blpjax.inputs.surveys import check_columns
from blpjax.inputs.table_format import plain_value
from blpjax.model.surveys import Parts, compute_part_values
from blpjax.model.tastes import market_tastes
from blpjax.objective.micro import host_values
from blpjax.objective.programs import on_host
from blpjax.outputs import scores
from blpjax.outputs.scores import SurveySource
from blpjax.outputs.synthetic_surveys import simulate_survey
from blpjax.values import read_seed


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
        check_columns(moments, self._survey_tables())
        parts = distinct_parts(moments)
        return host_values(moments, self._part_values(parts))

    def compute_part_values(self, parts: Sequence[MicroPart]) -> np.ndarray:
        """Means of parts (n,), some of which may be there more than once."""
        distinct = list(dict.fromkeys(parts))
        values = self._part_values(distinct) if distinct else np.zeros(0)
        return values[[distinct.index(part) for part in parts]]

    def _part_values(self, parts: Sequence[MicroPart]) -> np.ndarray:
        """Means of distinct parts."""
        source = self.survey_source()
        markets = source.data.survey_markets(source.products, source.data.agents_in_economy, source.layout)
        surveys = build_surveys(markets, source.model.economy, parts)
        model = source.model.on_host()
        # the economy of a simulation has characteristics at the prices that were there before
        economy = model.economy.with_products(model.shares, model.characteristics.evaluate({})[1])
        surveys = on_host(surveys) if economy.on_host else surveys
        tastes = market_tastes(model.coefficients, model.layout)
        return np.asarray(compute_part_values(surveys, Parts.of(parts), economy, tastes, model.delta))

    def _survey_tables(self) -> SurveyTables:
        source = self.survey_source()
        return source.data.survey_markets(source.products, source.data.agents_in_economy, source.layout).tables

    def compute_micro_scores(
        self, dataset: MicroDataset, micro_data: Any, integration: Integration | None = None
    ) -> list[np.ndarray]:
        r"""Scores of respondents: derivatives of log probabilities of their choices in theta.

        Mean utilities follow theta such that shares stay as they are. The probability of respondent n is

        .. math:: P_n = \frac{\sum_{i \in I_n} w_i w_{dij_n} s_{ij_n}}{\sum_t \sum_i \sum_j w_i w_{dij} s_{ij}},

        in which the denominator sums over agents of the markets that occur in `micro_data`, as in PyBLP.

        Parameters
        ----------
        dataset : the survey. Its `compute_weights` is called for the problem's agents and for all rows of a market.
        micro_data : table with `market_ids`, `choice_indices`, which count columns of the dataset's weights (with the
            outside good among these, it is zero), `second_choice_indices` for second choices, and what the agent
            formulation and availability need. Without an `integration` also `micro_ids`, and `weights` and `nodes` of
            perhaps several rows for each respondent.
        integration : builds nodes and weights for each row, which is a respondent then.

        Returns
        -------
        P arrays (n,), by respondent in the order in which they first appear. NaN where a choice has no probability.

        Raises
        ------
        KeyError
            When `micro_data` lack a column.
        DataError, ValueError, TypeError
            When something cannot be used.
        NotImplementedError
            When markets are spread over devices.
        """
        source = self._source_of_scores(dataset)
        own = scores.markets_of(dataset, source.data, micro_data)
        surveys = scores.survey_of(source, own)
        rows = scores.read_rows(source, micro_data, integration, scores.choices_of(surveys, own))
        found = []
        for who, what in scores.scores(source, own, surveys, rows):
            array = np.full(rows.respondents, np.nan)
            array[np.concatenate(who)] = np.concatenate(what)
            found.append(array)
        return found

    def compute_agent_scores(
        self, dataset: MicroDataset, micro_data: Any = None, integration: Integration | None = None
    ) -> list[dict[Any, np.ndarray]]:
        """Scores of all choices of agents, see `compute_micro_scores`: values of optimal micro moments.

        Parameters
        ----------
        dataset : the survey.
        micro_data : respondents as in `compute_micro_scores`, without choices. By default the problem's agents in the
            dataset's markets, with own nodes.
        integration : builds nodes and weights that are integrated over, for each agent or row.

        Returns
        -------
        P dictionaries from market IDs to arrays of the shape of the dataset's weights, in which respondents are in the
        order in which they first appear. NaN where a choice has no probability, which `numpy.nan_to_num` makes zero.

        Raises
        ------
        KeyError, DataError, ValueError, TypeError, NotImplementedError
            See `compute_micro_scores`.
        """
        source = self._source_of_scores(dataset)
        own = dataset if micro_data is None else scores.markets_of(dataset, source.data, micro_data)
        surveys = scores.survey_of(source, own)
        if micro_data is None:
            rows = scores.own_agents(source, own, integration)
        else:
            rows = scores.read_rows(source, micro_data, integration, 0)
            scores.choices_of(surveys, own)
        ids = [plain_value(value) for value in np.unique(rows.table.market_ids)]
        return [dict(zip(ids, what, strict=True)) for _, what in scores.scores(source, own, surveys, rows)]

    def simulate_micro_data(self, dataset: MicroDataset, seed: int | None = None) -> np.recarray:
        """Draw respondents of a survey, and their choices, from the model. Draws are those of PyBLP with the same seed.

        (With `market_ids` PyBLP's are in another order in each process.)

        Parameters
        ----------
        dataset : the survey, with as many respondents as it has observations.
        seed : of `numpy.random.RandomState`.

        Returns
        -------
        Structured array with fields (n, 1): `micro_ids`, `market_ids`, `agent_indices`, which count the agents of a
        market, `choice_indices` and, for second choices, `second_choice_indices`, which count columns of the dataset's
        weights.

        Raises
        ------
        TypeError, ValueError, DataError, RuntimeError
            When the dataset cannot be used, or probabilities of choices are negative.
        NotImplementedError
            When markets are spread over devices.
        """
        source = self._source_of_scores(dataset, tastes=False)
        return simulate_survey(source, dataset, read_seed("seed", seed))

    def _source_of_scores(self, dataset: MicroDataset, tastes: bool = True) -> SurveySource:
        if not isinstance(dataset, MicroDataset):
            raise TypeError(f"dataset must be a MicroDataset, not {type(dataset).__name__}.")
        source = self.survey_source()
        if tastes and source.data.K2 == 0:
            raise ValueError("Scores need random coefficients, but X2 is not formulated.")
        if source.model.economy.placement is not None:
            raise NotImplementedError(
                "Scores and simulated micro data are not supported where markets are spread over devices. Use results "
                "of the problem without shard()."
            )
        return source
