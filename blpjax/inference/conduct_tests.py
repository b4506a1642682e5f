"""Tests of conduct: from models, cost shifters and instruments to statistics of all pairs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr

from blpjax.estimation.estimates import Estimates
from blpjax.exceptions import DataError, IdentificationError, IdentificationWarning, warn_user
from blpjax.inference.conduct_critical_values import NORMAL, POWERS, SIZES, CriticalValues, critical_values
from blpjax.inference.conduct_statistics import Fit, confidence_set, fit_models
from blpjax.inference.conduct_test_results import LEVEL, POWER_COLUMNS, SIZE_COLUMNS, ConductTest
from blpjax.inference.markups import MarkupSlopes, markups_with_slopes
from blpjax.inputs.absorb import Absorber, build_absorber
from blpjax.inputs.arguments import check_choice
from blpjax.inputs.columns import list_rows
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.identification import refuse_endogenous
from blpjax.inputs.taxes import Taxes
from blpjax.kernels.conduct import Conduct, check_conduct
from blpjax.objective import iv
from blpjax.objective.problem_data import ProblemData
from blpjax.objective.projections import orthonormal_basis, residuals_on
from blpjax.values import check_integer, read_flag


class Question(NamedTuple):
    """What is asked: models, cost shifters and sets of instruments by name, taxes of each model, and options."""

    models: dict[str, Conduct]
    costs: Formulation
    instruments: dict[str, Formulation]
    taxes: dict[str, Taxes | None]
    costs_type: str
    se_type: str
    demand_adjustment: bool
    seed: int


class ImpliedCosts(NamedTuple):
    """Markups, costs (N,) and, for the demand adjustment, derivatives (N, P) of what cost shifters explain.

    `explained` are costs or their logarithms.
    """

    markups: np.ndarray
    costs: np.ndarray
    explained: np.ndarray
    slopes: np.ndarray
    parameters: np.ndarray


@dataclasses.dataclass(frozen=True)
class Controls:
    """Cost shifters: fixed effects that are absorbed, and an orthonormal basis of the others' residuals."""

    absorber: Absorber
    basis: np.ndarray

    def residuals(self, values: np.ndarray) -> np.ndarray:
        """What they do not explain of the columns of a matrix (N, K)."""
        return residuals_on(self.basis, self.absorber.residualize(values))


def run_conduct_test(results: Estimates, question: Question) -> ConductTest:
    """Test conduct; see `ProblemResults.test_conduct`."""
    problem = results.problem.data
    implied = _imply(results, question)
    controls = _read_controls(problem, question.costs)
    omega = controls.residuals(np.column_stack([one.explained for one in implied.values()]))
    psi = slopes = errors = None
    if question.demand_adjustment:
        psi, errors = (part[:, next(iter(implied.values())).parameters] for part in influence(results))
        slopes = [one.slopes for one in implied.values()]
    clusters = problem.clusters if question.se_type == "clustered" else None
    fits = {
        name: fit_models(omega, _read_instruments(problem, name, formulation, controls), slopes, psi, clusters, errors)
        for name, formulation in question.instruments.items()
    }
    names = list(question.models)
    return ConductTest(
        table=pd.concat([_tabulate(key, fit, names) for key, fit in fits.items()], ignore_index=True),
        models=pd.concat([_rank(key, fit, names, question.seed) for key, fit in fits.items()], ignore_index=True),
        markups=_label(problem, {name: one.markups for name, one in implied.items()}),
        costs=_label(problem, {name: one.costs for name, one in implied.items()}),
        notes=tuple(_notes(results, question, fits, names)),
        se_type=question.se_type,
        demand_adjustment=question.demand_adjustment,
    )


def read_question(
    results: Estimates,
    models: Any,
    costs: Any,
    instruments: Any,
    costs_type: Any,
    se_type: Any,
    demand_adjustment: Any,
    *,
    taxes: Any,
    seed: Any,
) -> Question:
    """Arguments of `ProblemResults.test_conduct`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        When one of them cannot be used.
    """
    if not isinstance(models, Mapping):
        if isinstance(models, str) or not isinstance(models, Sequence):
            kind = type(models).__name__
            raise TypeError(f"models must be a mapping of names to conducts, or a sequence of them, not {kind}.")
        names = [check_conduct(one).name for one in models]
        if len(set(names)) < len(names):
            raise ValueError(f"Models of a sequence are called {names}. Give a mapping with a name for each.")
        models = dict(zip(names, models, strict=True))
    known = {str(name): check_conduct(one) for name, one in models.items()}
    if len(known) < 2:
        raise ValueError("models must have at least two conducts: tests compare them.")
    if isinstance(instruments, Formulation):
        instruments = {"instruments": instruments}
    if not isinstance(instruments, Mapping) or not instruments:
        raise TypeError("instruments must be a Formulation, or a mapping of names to them.")
    for name, formulation in {"costs": costs, **instruments}.items():
        if not isinstance(formulation, Formulation):
            raise TypeError(f"{name} must be a Formulation, not {type(formulation).__name__}.")
    check_choice("costs_type", costs_type, ("linear", "log"))
    check_choice("se_type", se_type, ("robust", "clustered"))
    if se_type == "clustered" and results.problem.data.product_table.clustering_ids is None:
        raise ValueError("se_type='clustered' needs a column 'clustering_ids' in product_data.")
    adjusts = read_flag("demand_adjustment", demand_adjustment)
    if adjusts:
        _refuse_adjustment(results)
    return Question(
        known,
        costs,
        {str(name): formulation for name, formulation in instruments.items()},
        _read_taxes(taxes, list(known)),
        costs_type,
        se_type,
        adjusts,
        check_integer("seed", seed, minimum=0),
    )


class Influence(NamedTuple):
    """Influence functions of all parameters: estimates differ from the truth by about their sum over N.

    `products` (N, Q) are those of products, and `errors` (MM, Q) those of independent errors of micro moments.
    """

    products: np.ndarray
    errors: np.ndarray


def influence(results: Estimates) -> Influence:
    """Every product's contributions to moments, less their means, times ``-(G'WG)^{-1} G'W`` with the W of estimation.

    Errors of micro moments, those of sampling respondents, have the covariances ``C = R R'`` and are independent of
    products, so that N times the columns of R, times the same matrix, are further independent contributions.
    """
    data, point = results.problem.data.model_data, results.point
    Z = [np.asarray(instruments) for instruments in data.instruments]
    contributions = iv.moment_contributions(Z, [np.asarray(u) for u in data.residuals(point)])
    N, M = contributions.shape
    arrays = results.moments_jacobian, results.W, results.moments_covariances
    # unadjusted standard errors of a first step presume another W than that of estimation: not here
    found = iv.parameter_inference(*map(np.asarray, arrays), N=N, se_type="robust", step=results.step)
    sensitivity = np.asarray(found.sensitivity)
    errors = N * iv.weight_factor(results.micro_covariances).T if len(results.micro) else np.zeros((0, 0))
    return Influence((contributions - contributions.mean(axis=0)) @ sensitivity[:, :M].T, errors @ sensitivity[:, M:].T)


def _refuse_adjustment(results: Estimates) -> None:
    remedy = "Use demand_adjustment=False, which takes demand as if it were known."
    if results.step < 1:
        raise ValueError(f"Results of an initial update are no estimates to adjust for. {remedy}")
    if results.se_type == "likelihood":
        raise NotImplementedError(
            "There is no demand adjustment for estimates by likelihood: mean utilities are estimated, too, with errors "
            "of respondents and of market shares that are no averages over products. Estimate demand by GMM with "
            f"micro_moments, such as MicroMoment.scores of the same survey. Or: {remedy}"
        )
    if results.moments.size != results.problem.data.model_data.size + len(results.micro):
        raise NotImplementedError(
            "The demand adjustment is not implemented for results with moment_blocks, whose contributions are unknown "
            f"after estimation. {remedy}"
        )
    if results.moment_types:
        raise NotImplementedError(f"The demand adjustment is implemented for moments of levels only. {remedy}")
    if not np.isfinite(results.parameter_covariances).all():
        raise ValueError(
            f"Covariances of these results are unknown. Use results of the last GMM step, or the other way: {remedy}"
        )


def _read_taxes(taxes: Any, names: list[str]) -> dict[str, Taxes | None]:
    """Taxes of each model."""
    given = taxes if isinstance(taxes, Mapping) else dict.fromkeys(names, taxes)
    unknown = set(given) - set(names)
    if unknown:
        raise ValueError(f"taxes are given for {sorted(unknown)[0]!r}, but models are called {names}.")
    for name, one in given.items():
        if one is not None and not isinstance(one, Taxes):
            raise TypeError(f"taxes must be Taxes, or a mapping of names of models to them, but of {name} are {one!r}.")
    return {name: given.get(name) for name in names}


def _imply(results: Estimates, question: Question) -> dict[str, ImpliedCosts]:
    """Markups and costs of all models."""
    problem, received, kept = results.problem.data, {}, []
    for name, conduct in question.models.items():
        one = received[name] = _receive(problem.product_table.prices, question.taxes[name])
        kept.append(one.kept if _varies(one.kept, problem.market_index.codes) else None)
        if kept[-1] is not None and not conduct.taxable:
            raise NotImplementedError(
                f"Model {name!r}, {conduct.name}, does not say what it is where ad valorem taxes differ between "
                "products of a market. Give rates that are the same within markets."
            )
    found = markups_with_slopes(results, list(question.models.values()), kept, question.demand_adjustment)
    logarithmic = question.costs_type == "log"
    return {
        name: _subtract(problem, name, received[name], slopes, logarithmic)
        for name, slopes in zip(question.models, found, strict=True)
    }


class Received(NamedTuple):
    """Of each product (N,), the part of its price that firms get before unit taxes, and what they get for a unit."""

    kept: np.ndarray
    prices: np.ndarray


def _receive(prices: np.ndarray, taxes: Taxes | None) -> Received:
    if taxes is None:
        return Received(np.ones_like(prices), prices)
    kept, unit = _spread("ad_valorem", taxes.kept, prices.size), _spread("unit", taxes.unit, prices.size)
    return Received(kept, kept * prices - unit)


def _subtract(
    problem: ProblemData, name: str, received: Received, found: MarkupSlopes, logarithmic: bool
) -> ImpliedCosts:
    """What firms get for a unit less their markups, ``c = r(p) - nu o m``.

    Raises
    ------
    DataError
        When markups are not finite, or costs have no logarithms.
    """
    ids = problem.market_index.long_ids
    if (bad := np.flatnonzero(~np.isfinite(found.markups))).size:
        raise DataError(f"Model {name!r} has no markups in {list_rows(bad, ids)}.")
    markups = received.kept * found.markups
    costs = received.prices - markups
    slopes = -received.kept[:, None] * found.jacobian
    if not logarithmic:
        return ImpliedCosts(markups, costs, costs, slopes, found.parameters)
    if (bad := np.flatnonzero(costs <= 0)).size:
        raise DataError(
            f"Costs that model {name!r} implies are not positive in {list_rows(bad, ids, costs)}, so they have no "
            "logarithms. Use costs_type='linear', or leave the model out."
        )
    return ImpliedCosts(markups, costs, np.log(costs), slopes / costs[:, None], found.parameters)


def _varies(kept: np.ndarray, markets: np.ndarray) -> bool:
    """Whether products of some market differ."""
    order = np.argsort(markets, kind="stable")
    return bool(((np.diff(kept[order]) != 0) & (np.diff(markets[order]) == 0)).any())


def _spread(what: str, values: Any, N: int) -> np.ndarray:
    found = np.asarray(values, float)
    if found.ndim and found.shape != (N,):
        raise ValueError(f"{what} of taxes must be a number, or {N} numbers, one for each product, not {found.shape}.")
    return np.broadcast_to(found, (N,)).astype(float)


def _read_controls(problem: ProblemData, costs: Formulation) -> Controls:
    refuse_endogenous("costs", costs)
    data = problem.product_table.data
    absorber = build_absorber(costs, data)
    return Controls(absorber, orthonormal_basis(absorber.residualize(costs.build(data).values)))


def _read_instruments(problem: ProblemData, name: str, formulation: Formulation, controls: Controls) -> np.ndarray:
    """An orthonormal basis (N, K) of instruments after cost shifters."""
    refuse_endogenous(f"instruments {name!r}", formulation)
    if formulation.absorb_terms:
        raise ValueError(f"instruments {name!r} cannot absorb fixed effects. Absorb them in costs.")
    design = formulation.build(problem.product_table.data)
    basis = orthonormal_basis(controls.absorber.residualize(design.values), controls.basis)
    if not basis.shape[1]:
        raise IdentificationError(
            f"instruments {name!r} ({', '.join(design.labels)}) are explained by cost shifters: they exclude nothing. "
            "Leave them out of costs, or use others."
        )
    constants = sum(not column.inputs for column in design.columns)
    if basis.shape[1] < len(design.labels) - constants:
        warn_user(
            f"instruments {name!r} are collinear with each other or with cost shifters: {len(design.labels)} columns "
            f"({', '.join(design.labels)}) have rank {basis.shape[1]} after cost shifters. Statistics use this rank.",
            IdentificationWarning,
        )
    return basis


def _tabulate(key: str, fit: Fit, names: list[str]) -> pd.DataFrame:
    rows = []
    for i, model in enumerate(names):
        for j in range(i + 1, len(names)):
            F, rho, T = fit.F[i, j], fit.rho[i, j], fit.TRV[i, j]
            values = critical_values(fit.K, rho) if np.isfinite(rho) else _no_values()
            size = next((s for s, value in zip(SIZES, values.size, strict=True) if value < F), np.nan)
            power = next((p for p, value in zip(POWERS[::-1], values.power[::-1], strict=True) if value < F), np.nan)
            row = {"instruments": key, "model": model, "against": names[j], "K": fit.K, "TRV": T}
            row |= {"p_value": 2 * float(ndtr(-abs(T))), "F": F, "rho": rho}
            row |= dict(zip((*SIZE_COLUMNS, *POWER_COLUMNS), (*values.size, *values.power), strict=True))
            claim = _SAME if fit.same[i, j] else _claim(model, names[j], T, size, power)
            row |= {"worst_size": size, "best_power": power, "claim": claim}
            rows.append(row)
    return pd.DataFrame(rows)


def _no_values() -> CriticalValues:
    return CriticalValues((np.nan,) * len(SIZES), (np.nan,) * len(POWERS))


_SAME = "the same costs up to cost shifters: no test"


def _claim(model: str, against: str, T: float, size: float, power: float) -> str:
    """What a test says, given what sizes and powers its instruments allow."""
    if np.isnan(T):
        return "the variance is not positive: no test"
    if abs(T) > NORMAL:
        worse, better = (model, against) if T > 0 else (against, model)
        limit = "sizes may be above 12.5%: instruments are weak" if np.isnan(size) else f"size at most {100 * size:g}%"
        return f"{worse} is rejected for {better} ({limit})"
    limit = "below 50%: instruments are weak" if np.isnan(power) else f"can be {100 * power:g}%"
    return f"neither is rejected (power {limit})"


def _rank(key: str, fit: Fit, names: list[str], seed: int) -> pd.DataFrame:
    found = confidence_set(fit, seed)
    columns = {"instruments": key, "model": names, "Q": fit.Q, "mcs_p_value": found.p_values}
    return pd.DataFrame(columns).assign(in_set=found.p_values > LEVEL)


def _notes(results: Estimates, question: Question, fits: Mapping[str, Fit], names: list[str]) -> list[str]:
    """Sentences on what tests cannot tell, and on demand that presumes conduct."""
    notes = []
    fit = next(iter(fits.values()))
    for i, model in enumerate(names):
        same = [names[j] for j in range(i) if fit.same[i, j]]
        if same:
            notes.append(
                f"{model} implies the same costs as {same[0]}, up to what cost shifters explain: they cannot be told "
                f"apart, and {model} is left out of model confidence sets."
            )
    crossed = isinstance(results.problem.data.clusters.counts, tuple) and question.se_type == "clustered"
    pairs = dict.fromkeys(
        f"{names[i]} and {names[j]}"
        for one in fits.values()
        for i in range(len(names))
        for j in range(i)
        if np.isnan(one.TRV[i, j]) and not one.same[i, j]
    )
    if crossed and pairs:
        notes.append(
            f"Variances that are clustered in several ways are not positive for {', '.join(pairs)}, which have no test."
        )
    if results.problem.data.model_data.supply is not None:
        notes.append(
            "Demand was estimated jointly with a supply side, which presumes a conduct: tests are not neutral between "
            "models. Estimate demand alone."
        )
    for sentence in notes:
        warn_user(sentence, IdentificationWarning)
    return notes


def _label(problem: ProblemData, columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """A row for each product with its market and ID."""
    table = problem.product_table
    labels = {"market_ids": table.market_ids}
    if table.product_ids is not None and table.product_ids.ndim == 1:
        labels["product_ids"] = table.product_ids
    return pd.DataFrame({**labels, **columns}, index=table.index)
