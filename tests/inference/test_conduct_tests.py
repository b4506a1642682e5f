"""Tests of conduct on results: markups, taxes, logarithms and estimates of demand meet in the statistics."""

import functools
import pickle
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax import Bertrand, Cournot, Formulation, Monopoly, Optimization, PerfectCompetition, Problem, Taxes
from blpjax.exceptions import DataError, IdentificationError, IdentificationWarning
from blpjax.inference.conduct_statistics import fit_models
from blpjax.inference.conduct_tests import influence
from blpjax.objective.clusters import number_clusters
from blpjax.objective.projections import orthonormal_basis, residuals_on
from tests.support import lags
from tests.support.designs import mostly_slow
from tests.support.estimated import CASES, solved
from tests.support.silence import silent
from tests.tolerances import CENTRAL_DIFFERENCE, FIXED_PARAMETERS, LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")

MODELS = {"Bertrand": Bertrand(), "Cournot": Cournot(), "monopoly": Monopoly()}
COSTS = Formulation("1 + w")
RIVALS = Formulation("0 + demand_instruments2 + demand_instruments3")


@functools.cache
def products() -> pd.DataFrame:
    return CASES["demand alone"].tables[0]


def logit(table: pd.DataFrame | None = None) -> Any:
    """A logit at its estimates."""
    with silent():
        problem = Problem(Formulation("1 + prices + x + y"), products() if table is None else table)
        return problem.solve(method="1s", optimization=Optimization("return"), check_optimality="gradient")


@functools.cache
def estimated() -> Any:
    return logit()


@functools.cache
def surveyed() -> Any:
    """Demand with tastes, to which a survey adds two micro moments."""
    survey = blpjax.MicroDataset.everybody("survey", 300)
    moments = [
        blpjax.MicroMoment.mean(survey, "income * x", value=0.05),
        blpjax.MicroMoment.mean(survey, "income", given="purchase", value=0.1),
    ]
    return CASES["demand alone"].solve(micro_moments=moments)


def ask(results: Any = None, models: Any = None, **options: Any) -> Any:
    given = {"costs": COSTS, "instruments": RIVALS} | options
    return (estimated() if results is None else results).test_conduct(MODELS if models is None else models, **given)


def closed_form(table: pd.DataFrame, alpha: float) -> np.ndarray:
    """Markups (N, 3) of the logit under Bertrand, Cournot and joint profits, with firms of several products."""
    s, markets, firms = table.shares.to_numpy(), table.market_ids, table.firm_ids
    firm = table.groupby([markets, firms]).shares.transform("sum").to_numpy()
    inside = table.groupby(markets).shares.transform("sum").to_numpy()
    assert len(s) == len(firm)
    return np.column_stack([1 / (1 - firm), 1 + firm / (1 - inside), 1 / (1 - inside)]) / -alpha


def by_hand(costs: np.ndarray, slopes: Any = None, psi: Any = None, clustered: bool = False, errors: Any = None) -> Any:
    """Statistics from costs (N, M)."""
    table = products()
    controls = orthonormal_basis(np.c_[np.ones(len(table)), table.w])
    basis = orthonormal_basis(table[["demand_instruments2", "demand_instruments3"]].to_numpy(), controls)
    clusters = number_clusters(table.clustering_ids.to_numpy()) if clustered else None
    return fit_models(residuals_on(controls, costs), basis, slopes, psi, clusters, errors)


# --- what is tested ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("costs_type", ["linear", "log"])
@pytest.mark.parametrize("adjust", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_logit_has_the_statistics_of_its_closed_forms(costs_type: str, adjust: bool) -> None:
    """Markups are proportional to one over the coefficient of prices, and so are their derivatives."""
    results, table = estimated(), products()
    alpha = float(results.beta[1, 0])
    markups = closed_form(table, alpha)
    costs = table.prices.to_numpy()[:, None] - markups
    slopes, explained = [m[:, None] / alpha for m in markups.T], costs
    assert (costs > 0).all()
    if costs_type == "log":
        slopes = [slope / c[:, None] for slope, c in zip(slopes, costs.T, strict=True)]
        explained = np.log(costs)
    # two-stage least squares: theta - theta_0 is an average of psi, of the instruments that are residualised
    X = table.assign(one=1.0)[["one", "prices", "x", "y"]].to_numpy()
    Z = np.c_[table[[f"demand_instruments{k}" for k in range(6)]], X[:, [0, 2, 3]]]
    P = Z @ np.linalg.pinv(Z)
    u = results.xi[:, 0]
    A = X.T @ P
    g = Z * u[:, None] - (Z * u[:, None]).mean(axis=0)
    psi = g @ (np.linalg.pinv(Z.T @ Z) @ Z.T @ X @ np.linalg.inv(A @ X)) * len(u)
    expected = by_hand(explained, *((slopes, psi[:, [1]]) if adjust else ()))
    found = ask(costs_type=costs_type, demand_adjustment=adjust)
    for name in ("TRV", "F", "rho"):
        FIXED_PARAMETERS.check(found.matrix(name), getattr(expected, name), name)
    LINEAR_ALGEBRA.check(found.markups[list(MODELS)], markups)
    LINEAR_ALGEBRA.check(found.costs[list(MODELS)], costs)
    LINEAR_ALGEBRA.check(found.models["Q"], expected.Q)
    assert found.markups["market_ids"].tolist() == table.market_ids.tolist()


@pytest.mark.parametrize("name", mostly_slow(["demand alone", "logit", "linear costs", "survey"], ["logit"]))
def test_influence_functions_have_the_covariances_of_estimates(name: str) -> None:
    """Their products are the robust covariances that results report, after one step, with supply, and with a survey."""
    results = surveyed() if name == "survey" else solved(name)
    psi, errors = influence(results)
    FIXED_PARAMETERS.check((psi.T @ psi + errors.T @ errors) / len(psi), results.parameter_covariances)
    assert len(errors) == len(results.micro)


@pytest.mark.slow
@pytest.mark.parametrize("survey", [False, True])
def test_random_coefficients_adjust_by_differences_of_costs(survey: bool) -> None:
    """Derivatives of costs by central differences of results at other parameters."""
    results = surveyed() if survey else solved("demand alone")
    layout, h, slopes = results.layout, 1e-4, []
    psi, errors = (part[:, : len(results.theta)] for part in influence(results))
    for p in range(len(results.theta)):
        sides = []
        for sign in (1, -1):
            moved = results.theta.copy()
            moved[p] += sign * h
            sigma, pi = results.sigma.copy(), results.pi.copy()
            for name, matrix in (("sigma", sigma), ("pi", pi)):
                for place, value in zip(getattr(layout, name), moved[layout.part(name)], strict=True):
                    matrix[place] = value
            beta = [None, float(moved[layout.part("beta")][0]), None, None]
            other = CASES["demand alone"].solve(sigma=sigma, pi=pi, beta=beta)
            sides.append(np.column_stack([other.compute_costs(conduct=model)[:, 0] for model in MODELS.values()]))
        slopes.append((sides[0] - sides[1]) / (2 * h))
    costs = np.column_stack([results.compute_costs(conduct=model)[:, 0] for model in MODELS.values()])
    by_model = [np.column_stack([slope[:, m] for slope in slopes]) for m in range(len(MODELS))]
    expected = by_hand(costs, by_model, psi, True, errors)
    found = ask(results, se_type="clustered")
    if survey:  # respondents' errors matter
        assert (np.abs(by_hand(costs, by_model, psi, True).TRV - expected.TRV)[0, 1:] > 1e-3).all()
    for name in ("TRV", "F", "rho"):
        CENTRAL_DIFFERENCE.check(found.matrix(name), getattr(expected, name), name)


@pytest.mark.slow
def test_taxes_change_what_prices_say_of_costs() -> None:
    """A rate that is the same everywhere scales costs; rates within firms weigh profits in first-order conditions."""
    table = products()
    N = len(table)
    plain = ask()
    uniform = ask(taxes=Taxes(unit=0.1, ad_valorem=0.25))
    LINEAR_ALGEBRA.check(uniform.costs[list(MODELS)], plain.costs[list(MODELS)] / 1.25 - 0.1)
    LINEAR_ALGEBRA.check(uniform.matrix("TRV"), plain.matrix("TRV"))
    rates = np.where(np.arange(N) % 2, 0.3, 0.1)
    taxes = {"Bertrand": Taxes(ad_valorem=rates, base="price"), "monopoly": Taxes(ad_valorem=rates, base="price")}
    found = ask(taxes=taxes)
    LINEAR_ALGEBRA.check(found.costs["Cournot"], plain.costs["Cournot"])
    # nu_j s_j + sum_k H_jk (r_k - c_k) ds_k / dp_j = 0 with r = nu p
    results, nu = estimated(), 1 - rates
    alpha = float(results.beta[1, 0])
    for model in ("Bertrand", "monopoly"):
        margins = nu * table.prices.to_numpy() - found.costs[model].to_numpy()
        LINEAR_ALGEBRA.check(margins, found.markups[model])
        for _, rows in table.groupby("market_ids").indices.items():
            s, firms = table.shares.to_numpy()[rows], table.firm_ids.to_numpy()[rows]
            D = alpha * (np.diag(s) - np.outer(s, s))
            H = firms[:, None] == firms if model == "Bertrand" else np.ones((len(rows), len(rows)))
            np.testing.assert_allclose(nu[rows] * s + (H * D.T) @ margins[rows], 0, atol=1e-10)


def test_effects_of_costs_are_absorbed() -> None:
    absorbed = ask(costs=Formulation("0 + w", absorb="C(firm_ids)"), se_type="clustered")
    included = ask(costs=Formulation("1 + w + C(firm_ids)"), se_type="clustered")
    FIXED_PARAMETERS.check(absorbed.matrix("TRV"), included.matrix("TRV"))
    FIXED_PARAMETERS.check(absorbed.matrix("F"), included.matrix("F"))


def test_one_does_not_need_to_adjust_where_unadjusted_errors_presume_another_weighting_matrix() -> None:
    """The type of standard errors of demand changes no test."""
    with silent():
        problem = Problem(Formulation("1 + prices + x + y"), products())
        results = problem.solve(method="1s", se_type="unadjusted", optimization=Optimization("return"))
    LINEAR_ALGEBRA.check(ask(results).matrix("TRV"), ask().matrix("TRV"))


# --- tables --------------------------------------------------------------------------------------------------------


def test_tables_have_rows_for_sets_and_pairs() -> None:
    sets = {"rivals": RIVALS, "one": Formulation("0 + demand_instruments2")}
    found = ask(instruments=sets)
    pairs = [("Bertrand", "Cournot"), ("Bertrand", "monopoly"), ("Cournot", "monopoly")]
    rows = found.table[["instruments", "model", "against"]].itertuples(index=False, name=None)
    assert list(rows) == [(key, *pair) for key in sets for pair in pairs]
    assert found.table["K"].tolist() == [2] * 3 + [1] * 3
    one = ask(instruments=sets["one"])
    LINEAR_ALGEBRA.check(found.matrix("TRV", "one"), one.matrix("TRV"))
    T = found.matrix("TRV", "rivals")
    np.testing.assert_allclose(T.to_numpy(), -T.to_numpy().T)
    np.testing.assert_allclose(found.matrix("p_value"), found.matrix("p_value").T)
    models = found.models[found.models["instruments"] == "rivals"]
    assert models["mcs_p_value"].max() == 1.0 and models["Q"].idxmin() == models["mcs_p_value"].idxmax()
    sizes = {0.075: "size_075", 0.1: "size_1", 0.125: "size_125"}
    for row in found.table.itertuples():
        reached = [size for size, column in sizes.items() if row.F > getattr(row, column)]
        assert np.isnan(row.worst_size) if not reached else row.worst_size == min(reached)
        assert ("rejected for" in row.claim) == (abs(row.TRV) > 1.96)
    text = found.summary()
    assert "Rivers-Vuong statistics with instruments rivals" in text and "Model confidence set at 5%" in text
    assert "demand as estimated" in text and str(pickle.loads(pickle.dumps(found))) == text
    assert "Bertrand" in found._repr_html_()
    with pytest.raises(ValueError, match="instruments must be one of"):
        found.matrix("TRV", "two")
    with pytest.raises(ValueError, match="name must be one of"):
        found.matrix("claim")


def test_a_sequence_of_models_has_their_names() -> None:
    found = ask(models=[Bertrand(), Cournot()])
    assert found.models["model"].tolist() == [Bertrand().name, Cournot().name]
    own = {"Bertrand": Bertrand(), "own": blpjax.conduct(lambda market: jnp.ones(market.prices.shape), name="ones")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LINEAR_ALGEBRA.check(ask(models=own).markups["own"], np.ones(len(products())))


def test_models_that_cannot_be_told_apart_are_named() -> None:
    """A constant markup is perfect competition once costs have a constant."""
    models = {
        **MODELS,
        "none": PerfectCompetition(),
        "constant": blpjax.conduct(lambda m: 0.1 + 0 * m.prices, name="c"),
    }
    with pytest.warns(IdentificationWarning, match="constant implies the same costs as none"):
        found = ask(models=models)
    pair = found.table[(found.table["model"] == "none") & (found.table["against"] == "constant")].iloc[0]
    assert np.isnan(pair[["TRV", "F", "rho", "p_value", "size_075"]].astype(float)).all() and "no test" in pair["claim"]
    left_out = found.models["model"][found.models["mcs_p_value"].isna()]
    assert left_out.tolist() == ["constant"]
    assert not found.models["in_set"].iloc[-1] and "constant implies" in str(found) and " - " in str(found)


def test_pairs_without_variances_are_not_called_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with clusters of several kinds, where neither statistic need exist."""

    def fit(*given: Any) -> Any:
        found = fit_models(*given)
        for matrix in (found.TRV, found.F, found.rho):
            matrix[[0, 1], [1, 0]] = np.nan
        return found

    monkeypatch.setattr("blpjax.inference.conduct_tests.fit_models", fit)
    found = ask()
    assert found.table["claim"][0] == "the variance is not positive: no test" and not found.notes
    assert "no test" not in found.table["claim"][1]


# --- errors and warnings -------------------------------------------------------------------------------------------


def test_instruments_that_exclude_nothing_are_refused_and_collinear_ones_counted() -> None:
    for formula in ("0 + w", "1", "0 + I(2 * w)"):
        with pytest.raises(IdentificationError, match="explained by cost shifters"):
            ask(instruments=Formulation(formula))
    twice = Formulation("0 + demand_instruments2 + I(3 * demand_instruments2 + w) + demand_instruments3")
    with pytest.warns(IdentificationWarning, match="3 columns .* have rank 2"):
        found = ask(instruments=twice)
    assert found.table["K"].tolist() == [2, 2, 2]
    LINEAR_ALGEBRA.check(found.matrix("F"), ask().matrix("F"))


def test_demand_that_presumes_conduct_is_a_warning() -> None:
    with pytest.warns(IdentificationWarning, match="jointly with a supply side"):
        ask(solved("logit"), {"Bertrand": Bertrand(), "none": PerfectCompetition()}, demand_adjustment=False)


def test_arguments_that_cannot_be_used_are_refused() -> None:
    for options, kind, message in (
        ({"models": {"one": Bertrand()}}, ValueError, "at least two conducts"),
        ({"models": [Bertrand(), Bertrand()]}, ValueError, "a mapping with a name for each"),
        ({"models": "Bertrand"}, TypeError, "not str"),
        ({"models": {"a": Bertrand(), "b": 3}}, TypeError, "3"),
        ({"instruments": {}}, TypeError, "instruments must be a Formulation"),
        ({"instruments": {"z": "0 + x"}}, TypeError, "z must be a Formulation, not str"),
        ({"instruments": Formulation("0 + x", absorb="C(firm_ids)")}, ValueError, "Absorb them in costs"),
        (
            {"instruments": Formulation("0 + prices")},
            IdentificationError,
            "'prices' in instruments .* are endogenous",
        ),
        ({"costs": Formulation("1 + shares")}, IdentificationError, "'shares' in costs are endogenous"),
        ({"instruments": Formulation("0 + nothing")}, DataError, "nothing"),
        ({"costs_type": "cubic"}, ValueError, "costs_type must be one of"),
        ({"se_type": "unadjusted"}, ValueError, "se_type must be one of"),
        ({"taxes": 0.2}, TypeError, "taxes must be Taxes"),
        ({"taxes": {"Bertrant": Taxes()}}, ValueError, "'Bertrant', but models are called"),
        ({"taxes": Taxes(unit=np.ones(3))}, ValueError, "one for each product"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"models": {"a": Bertrand("retailers"), "b": Cournot()}}, DataError, "retailers"),
    ):
        with pytest.raises(kind, match=message):
            ask(**options)
    with pytest.raises(ValueError, match="clustering_ids"):
        ask(logit(products().drop(columns="clustering_ids")), se_type="clustered")


@pytest.mark.usefixtures("unchecked_types")
def test_flags_and_formulas_have_their_types() -> None:
    with pytest.raises(TypeError, match="demand_adjustment"):
        ask(demand_adjustment="yes")
    with pytest.raises(TypeError, match="costs must be a Formulation"):
        ask(costs="1 + w")


def test_costs_without_logarithms_name_model_and_row() -> None:
    with pytest.raises(DataError, match=r"Costs that model 'monopoly' implies are not positive in .*market 'm.*row"):
        ask(logit(products().assign(prices=lambda table: table.prices - 1.0)), costs_type="log")


def test_own_models_do_not_know_rates_within_markets() -> None:
    models = {"Bertrand": Bertrand(), "own": blpjax.conduct(lambda m: 0.2 * m.prices, name="own")}
    with pytest.raises(NotImplementedError, match="Model 'own', own, does not say what it is where ad valorem"):
        ask(models=models, taxes=Taxes(ad_valorem=np.linspace(0, 0.1, len(products()))))
    ask(models=models, taxes=Taxes(ad_valorem=0.1))


class More(blpjax.MomentBlock):
    """Structural errors times a further instrument."""

    instruments: Any

    def residuals(self, point: Any) -> Any:
        """Those of demand."""
        return point.xi


@pytest.mark.slow
def test_results_without_influence_functions_ask_for_known_demand() -> None:
    options = {"method": "1s", "optimization": Optimization("return")}
    more = estimated().problem.solve(**options, moment_blocks=[More(products()[["y"]].to_numpy() ** 2)])
    with pytest.raises(NotImplementedError, match="results with moment_blocks.* Use demand_adjustment=False"):
        ask(more)
    dynamic = lags.build(blpjax, supply=False, random=False, markets=4)
    results = dynamic.solve(**lags.arguments(blpjax, "innovations", supply=False, random=False))
    with pytest.raises(NotImplementedError, match="moments of levels only. Use demand_adjustment=False"):
        ask(results)
    assert np.isfinite(ask(results, demand_adjustment=False).table["TRV"]).all()
    first = (
        estimated().problem.solve(initial_update=True, optimization=Optimization("return")).last_results.last_results
    )
    with pytest.raises(ValueError, match="initial update"):
        ask(first)
