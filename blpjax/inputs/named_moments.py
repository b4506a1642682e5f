"""Constructors of micro datasets, parts and moments by the names of columns.

Expressions have the arithmetic of formulas: ``+ - * / **`` with numbers and columns, ``log(...)``, ``exp(...)``,
comparisons such as ``income > 50`` or ``firm_ids == 'F1'``, which are one or zero and which ``and`` joins. Names are

- columns of agent data, whether or not they are in the agent formula; numbered ones, such as `distance0` and so on, by
  their base name, with the value for the choice;
- columns of product data, which are those of the (first) choice, and ``second.x`` those of the second one. The outside
  good has zero in columns of numbers, and no IDs;
- ``purchase`` and ``outside``, one or zero by the choice, likewise ``second.purchase`` and ``second.outside``;
- ``same(firm_ids)``, one where both choices have the same ID;
- ``market``, the ID of the market.

A name that is in both tables is written ``agent.x`` or ``product.x``. Simulations have the columns of formulas alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from blpjax.inputs.expressions import SURVEYS, Expression, Number, Operation, is_comparison, multiply
from blpjax.inputs.formulas import parse_terms
from blpjax.inputs.named_surveys import CHOICES, MarketArrays, SurveyValues, SurveyWeights
from blpjax.inputs.survey_expressions import read_expression
from blpjax.inputs.survey_functions import Coefficient, Correlation, Covariance, Ratio

#: What is asked about: an expression, and a condition or None.
_Asked = tuple[Expression, Expression | None]


Dataset = TypeVar("Dataset", bound="NamedDatasets")
Part = TypeVar("Part", bound="NamedParts")
Moment = TypeVar("Moment", bound="NamedMoments")


class _Unknown:
    """Stands for the value of a moment that is not observed."""


UNKNOWN = _Unknown()


class NamedDatasets:
    """Constructors of `MicroDataset` by column."""

    @classmethod
    def everybody(
        cls: type[Dataset],
        name: str,
        observations: Any = None,
        *,
        agent_weights: str | None = None,
        product_weights: str | None = None,
        market_ids: Any = None,
    ) -> Dataset:
        """A survey of consumers, whatever they choose, the outside good included.

        Parameters
        ----------
        name : what messages and tables call it.
        observations : number of respondents. Estimation needs it; `micro_moments` finds it in the survey's table.
        agent_weights, product_weights : expressions (see `blpjax.inputs.named_moments`) of columns of agents and of
            products, probabilities of being in the survey up to a factor. By default all are as likely. Weights of the
            outside good by columns of products are zero: add ``outside`` to have it in, as in ``"new + outside"``.
        market_ids : markets that the survey is about, by default all.

        Raises
        ------
        TypeError, ValueError
            When an argument has the wrong type, or an expression cannot be parsed. Whether columns exist is checked
            when the dataset is used (`DataError`).
        """
        return cls._named(name, observations, ("any", None), agent_weights, product_weights, market_ids=market_ids)

    @classmethod
    def buyers(
        cls: type[Dataset],
        name: str,
        observations: Any = None,
        *,
        agent_weights: str | None = None,
        product_weights: str | None = None,
        market_ids: Any = None,
    ) -> Dataset:
        """A survey of those who choose one of the products. Arguments and errors are those of `everybody`."""
        return cls._named(name, observations, ("inside", None), agent_weights, product_weights, market_ids=market_ids)

    @classmethod
    def second_choices(
        cls: type[Dataset],
        name: str,
        observations: Any = None,
        *,
        first: str = "inside",
        second: str = "any",
        without: str | None = None,
        agent_weights: str | None = None,
        product_weights: str | None = None,
        market_ids: Any = None,
    ) -> Dataset:
        """A survey of what consumers choose, and what they would choose if that were not there.

        Parameters
        ----------
        first, second : whether first and second choices are ``'inside'`` goods alone, or ``'any'`` with the outside
            good.
        without : column of products with IDs: everything with the ID of the first choice is taken away with it, such as
            ``'brand_ids'``. By default that is the chosen product alone.
        name, observations, agent_weights, product_weights, market_ids : see `everybody`. Weights of products may use
            ``second.x``.

        Raises
        ------
        TypeError, ValueError
            See `everybody`.
        """
        if without is not None and not isinstance(without, str):
            raise TypeError(f"without must be the name of a column, not {without!r}.")
        choices = (first, second)
        return cls._named(name, observations, choices, agent_weights, product_weights, without, market_ids=market_ids)

    @classmethod
    def _named(
        cls: type[Dataset],
        name: str,
        observations: Any,
        choices: tuple[str, str | None],
        agents: Any,
        products: Any,
        without: str | None = None,
        *,
        market_ids: Any,
    ) -> Dataset:
        for argument, choice in zip(("first", "second"), choices, strict=True):
            if choice is not None and choice not in CHOICES:
                raise ValueError(f"{argument} must be one of {', '.join(map(repr, CHOICES))}, not {choice!r}.")
        of_agents, of_products = (
            None if text is None else read_expression(text, f"{argument} of micro dataset {name!r}")
            for argument, text in (("agent_weights", agents), ("product_weights", products))
        )
        weights = SurveyWeights(*choices, of_agents, of_products, without)
        return cls(name, observations, weights, market_ids=market_ids)  # type: ignore[call-arg]


class NamedParts:
    """Constructors of `MicroPart` by column."""

    @classmethod
    def of(cls: type[Part], dataset: Any, expression: str, given: str | None = None, name: str | None = None) -> Part:
        """The mean of an expression over respondents.

        Parameters
        ----------
        dataset : MicroDataset.
        expression : what is averaged, see `blpjax.inputs.named_moments`.
        given : an expression that multiplies it, usually an indicator. Where it is zero, values of the other one may be
            missing.
        name : by default the product of both.

        Raises
        ------
        TypeError, ValueError
            When an argument has the wrong type, or an expression cannot be parsed.
        """
        user = f"an expression of micro dataset {getattr(dataset, 'name', dataset)!r}"
        return cls._of(dataset, (read_expression(expression, user), _read_given(given, user)), name)

    @classmethod
    def _of(cls: type[Part], dataset: Any, asked: _Asked, name: str | None = None) -> Part:
        values = SurveyValues(*asked)
        return cls(str(values) if name is None else name, dataset, values)  # type: ignore[call-arg]


class NamedMoments:
    """Constructors of `MicroMoment` by column.

    Names follow from expressions unless they are given. Without a `value`, moments are there to be computed or to be
    filled in by `blpjax.micro_moments`; `Problem.solve` refuses them. For expressions see
    `blpjax.inputs.named_moments`.
    """

    _part: ClassVar[Any]

    @classmethod
    def mean(
        cls: type[Moment],
        dataset: Any,
        of: str,
        given: str | None = None,
        value: Any = None,
        name: str | None = None,
    ) -> Moment:
        """The mean of an expression, or its mean given an indicator: ``E[of * given] / E[given]``.

        Parameters
        ----------
        dataset : MicroDataset.
        of, given : expressions, such as ``mean(survey, "age", given="minivan")``.
        value : observed value.
        name : by default ``E[of]`` or ``E[of | given]``.

        Raises
        ------
        TypeError, ValueError
            When an argument has the wrong type, or an expression cannot be parsed.
        """
        x, condition, name = cls._read(dataset, name, "E[{}]", given, of)
        if condition is None:
            return cls(name, UNKNOWN if value is None else value, cls._part._of(dataset, (x[0], None)))  # type: ignore[call-arg]
        return cls._make(dataset, name, value, [(x[0], condition), (condition, None)], lambda places: Ratio())

    @classmethod
    def quantile_share(
        cls: type[Moment],
        dataset: Any,
        of: str,
        given: str | None = None,
        value: Any = None,
        name: str | None = None,
    ) -> Moment:
        """The share of respondents for whom a comparison holds, such as ``income > 50``: a point of a distribution.

        With quantiles from a survey, write ``quantile_share(survey, "income <= 23.4", value=0.25)``.

        Raises
        ------
        TypeError, ValueError
            As in `mean`; also when `of` is no comparison.
        """
        (x,), _, name = cls._read(dataset, name, "P[{}]", given, of)
        if not is_comparison(x):
            raise ValueError(f"quantile_share needs a comparison, such as 'income > 50', not {of!r}. Use mean.")
        return cls.mean(dataset, of, given, value, name)

    @classmethod
    def variance(
        cls: type[Moment],
        dataset: Any,
        of: str,
        given: str | None = None,
        value: Any = None,
        name: str | None = None,
    ) -> Moment:
        """The variance of an expression over respondents, perhaps given an indicator. See `mean`."""
        (x,), condition, name = cls._read(dataset, name, "Var[{}]", given, of)
        return cls._make(dataset, name, value, _products(x, x, condition), lambda p: Covariance(p[0], p[1], p[1], p[3]))

    @classmethod
    def covariance(
        cls: type[Moment],
        dataset: Any,
        x: str,
        y: str,
        given: str | None = None,
        value: Any = None,
        name: str | None = None,
    ) -> Moment:
        """The covariance of two expressions over respondents, perhaps given an indicator. See `mean`."""
        (left, right), condition, name = cls._read(dataset, name, "Cov[{}, {}]", given, x, y)
        products = _products(left, right, condition)
        return cls._make(dataset, name, value, products, lambda p: Covariance(*p[:4]))

    @classmethod
    def correlation(
        cls: type[Moment],
        dataset: Any,
        x: str,
        y: str,
        given: str | None = None,
        value: Any = None,
        name: str | None = None,
    ) -> Moment:
        """The correlation of two expressions over respondents, perhaps given an indicator. See `mean`."""
        (left, right), condition, name = cls._read(dataset, name, "Corr[{}, {}]", given, x, y)
        products = [
            *_products(left, right, condition),
            (_times(left, left), condition),
            (_times(right, right), condition),
        ]
        return cls._make(dataset, name, value, products, lambda p: Correlation(p[0], p[1], p[2], p[4], p[5], p[3]))

    @classmethod
    def regression(
        cls: type[Moment],
        dataset: Any,
        formula: str,
        values: Mapping[str, Any] | Sequence[str] | None = None,
        given: str | None = None,
    ) -> list[Moment]:
        """Coefficients of a least squares regression over respondents, each of them a moment.

        Parameters
        ----------
        dataset : MicroDataset.
        formula : such as ``"prices ~ income + age"``: an expression, and terms of a formula (see `Formulation`), with
            an intercept unless ``0 +`` or ``- 1`` removes it. Arithmetic of regressors stands in ``I(...)``.
        values : observed coefficients by term, ``{"income": 1.2}``, or terms whose coefficients are not known yet. The
            intercept is called ``"1"``. By default there is a moment for each term but the intercept, without values.
        given : an indicator: the regression is that of respondents for whom it is one.

        Returns
        -------
        Moments in the order of `values`, with names such as ``"income in prices ~ income + age"``.

        Raises
        ------
        TypeError, ValueError
            When an argument has the wrong type, an expression or the formula cannot be parsed, or a term of `values` is
            not in the formula.
        """
        user = f"a regression of micro dataset {getattr(dataset, 'name', dataset)!r}"
        if not isinstance(formula, str) or formula.count("~") != 1:
            raise ValueError(f"{user} needs a formula such as 'prices ~ income + age', not {formula!r}.")
        left, right = formula.split("~")
        y, condition = read_expression(left, user), _read_given(given, user)
        terms = {str(term): multiply(term.factors) for term in parse_terms(right, SURVEYS)}
        chosen = [label for label in terms if label != "1"] if values is None else list(values)
        unknown = [label for label in chosen if label not in terms]
        if unknown:
            raise ValueError(
                f"{user}: '{unknown[0]}' is none of the terms {', '.join(map(repr, terms))} of {formula!r}."
            )
        labels, x = list(terms), list(terms.values())
        crossed = [_times(x[k], x[m]) for k in range(len(x)) for m in range(k + 1)]
        asked = [(product, condition) for product in [*crossed, *(_times(term, y) for term in x)]]
        suffix, moments = "" if given is None else f" | {given}", []
        for label in chosen:
            k, value = labels.index(label), values[label] if isinstance(values, Mapping) else None

            def function(places: list[int], k: int = k) -> Coefficient:
                return Coefficient(k, tuple(places[: len(crossed)]), tuple(places[len(crossed) :]))

            moments.append(cls._make(dataset, f"{label} in {formula.strip()}{suffix}", value, asked, function))
        return moments

    @classmethod
    def scores(
        cls: type[Moment], results: Any, dataset: Any, micro_data: Any, integration: Any = None, name: str = "score of"
    ) -> list[Moment]:
        """Optimal micro moments: mean scores of respondents, which are zero where parameters are right.

        They are as informative about parameters as the likelihood of the survey, if results are close to the truth
        (Conlon and Gortmaker 2025).

        Parameters
        ----------
        results : first estimates, which have `compute_micro_scores` and `compute_agent_scores`.
        dataset : the survey.
        micro_data, integration : respondents, see `ProblemResults.compute_micro_scores`. `integration` also integrates
            over the nodes of the problem's agents.
        name : what names of moments begin with; names of parameters follow.

        Returns
        -------
        A moment for each element of theta on which probabilities depend. Choices of agents that have no probability
        count as zero. The moments are about the agents of the results' problem.

        Raises
        ------
        KeyError, DataError, ValueError, TypeError, NotImplementedError
            See `ProblemResults.compute_micro_scores`; also when a respondent's choice has no probability.
        """
        observed = results.compute_micro_scores(dataset, micro_data, integration)
        labels = getattr(results, "theta_labels", [str(p) for p in range(len(observed))])
        moments = []
        for label, scores, by_market in zip(
            labels, observed, results.compute_agent_scores(dataset, integration=integration), strict=True
        ):
            arrays = {t: np.nan_to_num(values) for t, values in by_market.items()}
            missing = np.flatnonzero(~np.isfinite(scores))
            if missing.size:
                raise ValueError(
                    f"The score of {label} is not finite for respondent {missing[0]} of micro dataset "
                    f"'{dataset.name}', counted from 0: its choice has no probability."
                )
            if any(values.any() for values in arrays.values()):
                part = cls._part(f"{name} {label}", dataset, MarketArrays(arrays))
                moments.append(cls(part.name, scores.mean(), part))  # type: ignore[call-arg]
        return moments

    @classmethod
    def _read(
        cls: type[Moment], dataset: Any, name: str | None, template: str, given: str | None, *texts: str
    ) -> tuple[list[Expression], Expression | None, str]:
        """Expressions, the condition, and a name."""
        user = f"an expression of micro dataset {getattr(dataset, 'name', dataset)!r}"
        found, condition = [read_expression(text, user) for text in texts], _read_given(given, user)
        if name is None:
            name = template.format(*(text.strip() for text in texts))
            name = name if given is None else f"{name[:-1]} | {given.strip()}]"
        return found, condition, name

    @classmethod
    def _make(
        cls: type[Moment],
        dataset: Any,
        name: str,
        value: Any,
        asked: Sequence[_Asked],
        function: Callable[[list[int]], Any],
    ) -> Moment:
        """A function of means, none of which is there twice. Means of one are not asked for; their place is -1."""
        asked = [(given, None) if of == Number(1.0) and given is not None else (of, given) for of, given in asked]
        wanted = [one for one in dict.fromkeys(asked) if one != (Number(1.0), None)]
        places = [wanted.index(one) if one in wanted else -1 for one in asked]
        parts = [cls._part._of(dataset, one) for one in wanted]
        return cls(name, UNKNOWN if value is None else value, parts, function(places))  # type: ignore[call-arg]


def _products(x: Expression, y: Expression, given: Expression | None) -> list[_Asked]:
    """What a covariance needs, in the order of `Covariance`."""
    condition = Number(1.0) if given is None else given
    return [(_times(x, y), given), (x, given), (y, given), (condition, None)]


def _times(x: Expression, y: Expression) -> Expression:
    if x == y:
        return x if x == Number(1.0) else Operation("**", x, Number(2.0))
    return y if x == Number(1.0) else x if y == Number(1.0) else Operation("*", x, y)


def _read_given(given: str | None, user: str) -> Expression | None:
    return None if given is None else read_expression(given, user)
