"""The bootstrap that estimates again: samples by weights give what samples in stacked tables give."""

import dataclasses
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.exceptions import IdentificationWarning, StorageError
from blpjax.inference import reestimation
from tests.support import joint
from tests.tolerances import ESTIMATES, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

DEMAND = joint.Model(X2="0 + x", X3=None, demographics=None)


def solve(problem: Any, **options: Any) -> Any:
    with joint.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)
        return problem.solve(**options)


def tables(equal: bool = True) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Five pairs of markets, which are clusters. Equal markets have five products: all samples have one shape then."""
    products, agents = joint.tables(seed=2)
    products["clustering_ids"] = products.market_ids.str[-1].astype(int) // 2
    products["half"] = products.product_ids.isin(["p0", "p1", "p2"]).astype(int)
    if equal:
        products = products.groupby("market_ids").head(5).reset_index(drop=True)
        agents = agents.groupby("market_ids").head(25).assign(weights=1 / 25)
    return products, agents


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, whether covariances are clustered, and arguments of `solve`."""

    model: joint.Model
    arguments: dict[str, Any]

    def build(self, products: pd.DataFrame, agents: pd.DataFrame) -> Any:
        return self.model.build(blpjax, products, agents)


CLUSTERED = {"W_type": "clustered", "se_type": "clustered"}
ABSORBING = joint.Model("0 + prices + x + y", X3="0 + w + x", absorb_demand="C(firm_ids)", absorb_supply="C(half)")
TWO_WAY = dataclasses.replace(DEMAND, X1="0 + prices + x + y", absorb_demand="C(firm_ids) + C(half)")
CASES = {
    "robust": Case(DEMAND, {"sigma": [[0.6]]}),
    "clusters": Case(DEMAND, {"sigma": [[0.6]], "method": "1s", "se_type": "clustered"}),
    "unadjusted": Case(DEMAND, {"sigma": [[0.6]], "W_type": "unadjusted", "se_type": "unadjusted"}),
    "fixed effects": Case(TWO_WAY, {"sigma": [[0.6]]}),
    "supply": Case(joint.Model(), {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [None, -2.0, None, None]}),
    "supply, fixed effects": Case(
        ABSORBING, {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [-2.0, None, None]} | CLUSTERED
    ),
}
QUICK = ("clusters",)


def stacked(products: pd.DataFrame, agents: pd.DataFrame, drawn: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of a sample in which rows are there as often as they are drawn, in markets and clusters of their own."""
    rows, people = [], []
    for copy in range(int(drawn.max())):
        part = products[drawn > copy]
        who = agents[agents.market_ids.isin(part.market_ids)]
        named = {"market_ids": part.market_ids + f"-{copy}", "clustering_ids": part.clustering_ids * 100 + copy}
        rows.append(part.assign(**named))
        people.append(who.assign(market_ids=who.market_ids + f"-{copy}"))
    return pd.concat(rows, ignore_index=True), pd.concat(people, ignore_index=True)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_samples_are_estimated_as_stacked_tables(name: str) -> None:
    case, (products, agents) = CASES[name], tables(equal=name != "supply")
    results = solve(case.build(products, agents), **case.arguments)
    found = results.reestimate(draws=2, recentre=False)
    clustered = case.arguments.get("se_type") == "clustered"
    assert found.unit == ("clusters" if clustered else "markets") and found.ok.all()
    units = results.problem.clusters[0] if clustered else results.problem.market_index.codes
    drawn = reestimation.draw_weights(jax.random.key(0), jnp.arange(2), jnp.asarray(units), int(units.max()) + 1)
    single = solve(case.build(*stacked(products, agents, np.asarray(drawn[1]))), **case.arguments)
    rows = found.table[found.table["draw"] == 1]
    np.testing.assert_allclose(rows["estimate"], single.parameters.ravel(), rtol=1e-6, atol=1e-7)
    errors = np.sqrt(np.diag(single.parameter_covariances) / single.problem.N)
    np.testing.assert_allclose(rows["standard_error"], errors, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(rows["objective"], single.objective, rtol=1e-6, atol=1e-12)


@pytest.fixture(scope="module")
def results() -> Any:
    return solve(CASES["robust"].build(*tables()), **CASES["robust"].arguments)


@pytest.fixture(scope="module")
def clusters() -> Any:
    """In lanes of two, as in the test before, whose programs these are."""
    estimated = solve(CASES["clusters"].build(*tables()), **CASES["clusters"].arguments)
    return estimated.reestimate(draws=6, batch_size=2, recentre=False)


@pytest.fixture(scope="module")
def found(results: Any) -> Any:
    return results.reestimate(draws=6, batch_size=2)


@pytest.mark.slow
def test_recentred_moments_hold_in_the_full_sample(results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample with every market once gives the estimates back, at moments of zero, in both steps."""
    monkeypatch.setattr(reestimation, "draw_weights", lambda key, draws, units, n: jnp.ones((draws.size, units.size)))
    same = results.reestimate(draws=6, batch_size=6)
    ESTIMATES.check(same.parameters[3], results.parameters[:, 0])
    assert (same.table["objective"] < 1e-9).all() and results.objective > 1
    plain = results.reestimate(draws=6, batch_size=6, recentre=False)
    ESTIMATES.check(plain.parameters[3], results.parameters[:, 0])
    FIXED_PARAMETERS.check(plain.table["objective"][0], results.objective)


@pytest.mark.slow
def test_draws_depend_on_their_numbers_alone(results: Any, found: Any, tmp_path: Path) -> None:
    whole = results.reestimate(draws=6, batch_size=6)
    parts = results.reestimate(draws=3, batch_size=2, path=tmp_path / "study")
    assert parts.draws == 3 and len(parts.batches) == 2
    np.testing.assert_allclose(parts.parameters, whole.parameters[:3], rtol=1e-6, atol=1e-9)
    resumed = results.reestimate(draws=4, path=tmp_path / "study")
    pd.testing.assert_frame_equal(resumed.table[: len(parts.table)], parts.table)
    with pytest.raises(StorageError, match="holds another study"):
        results.reestimate(draws=4, seed=1, path=tmp_path / "study")
    other = results.reestimate(draws=2, seed=1, batch_size=2)
    assert (other.parameters != found.parameters[:2]).any(axis=1).all()


@pytest.mark.slow
def test_studies_travel_and_fit_into_memory(results: Any, found: Any) -> None:
    """Workers get pickles. What they run is what is run here."""
    with ThreadPoolExecutor(1) as executor:
        sent = results.reestimate(draws=6, batch_size=2, executor=PicklingExecutor(executor))
    pd.testing.assert_frame_equal(sent.table, found.table)
    small = results.reestimate(draws=3, memory=1)
    assert list(small.batches["size"]) == [1, 1, 1] and small.peak_memory > 0
    np.testing.assert_allclose(small.parameters, found.parameters[:3], rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="memory must be a positive number of bytes, not 0"):
        results.reestimate(memory=0)


class PicklingExecutor:
    """An executor that pickles what it is given, as those with processes do."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self.executor = executor

    def submit(self, function: Any, *arguments: Any) -> Any:
        return self.executor.submit(function, *pickle.loads(pickle.dumps(arguments)))


def test_summaries_describe_the_draws(clusters: Any) -> None:
    found, results = clusters, clusters.problem_results
    summary, known = found.summary(level=0.5), found.parameters
    assert list(summary.index) == [("sigma", "x x x")] + [("beta", name) for name in ("1", "prices", "x", "y")]
    ROUNDING.check(summary["bootstrap_se"], known.std(axis=0, ddof=1))
    ROUNDING.check(summary["bias"], known.mean(axis=0) - results.parameters[:, 0])
    ROUNDING.check(summary[["lower", "upper"]].T, np.percentile(known, [25, 75], axis=0))
    ROUNDING.check(summary["basic_lower"] + summary["upper"], 2 * results.parameters[:, 0])
    ROUNDING.check(summary.loc["beta", "standard_error"], results.beta_se[:, 0])
    assert (summary["draws"] == 6).all() and (summary["failures"] == 0).all()
    assert "Re-estimation from 6 samples of clusters" in str(found) and "prices" in repr(found)
    with pytest.raises(ValueError, match="level must be between zero and one"):
        found.summary(1.5)


def test_failed_draws_count_for_nothing(clusters: Any) -> None:
    found = clusters
    table = found.table.copy()
    table.loc[table["draw"] == 2, ["estimate", "ok"]] = np.nan, False
    table["ok"] = table["ok"].astype(bool)
    broken = dataclasses.replace(found, table=table)
    assert (broken.summary()["failures"] == 1).all() and list(broken.ok) == [True, True, False, True, True, True]
    kept = np.delete(found.parameters, 2, axis=0)
    ROUNDING.check(broken.summary()["bias"], kept.mean(axis=0) - found.problem_results.parameters[:, 0])
    table["ok"] = False
    none = dataclasses.replace(found, table=table)
    assert np.isnan(none.summary()[["lower", "bootstrap_se", "bias"]]).all(axis=None)
    with pytest.raises(ValueError, match="all draws failed"):
        none.to_bootstrapped()


@pytest.mark.slow
def test_outputs_at_each_draw(results: Any, found: Any, tmp_path: Path) -> None:
    """Those of results at a draw's parameters: at observed shares, or with the structural errors of the full sample."""
    with joint.quiet():
        bootstrapped = found.to_bootstrapped()
        elasticities = bootstrapped.compute_elasticities()
        sigma, *beta = found.parameters[4]
        options = {
            "optimization": blpjax.Optimization("return"),
            "method": "1s",
            "check_optimality": "gradient",
            "sigma": [[sigma]],
            "beta": beta,
        }
        single = solve(results.problem, **options)
        held = found.to_bootstrapped(hold="xi")
    np.testing.assert_allclose(elasticities[4], single.compute_elasticities(), rtol=1e-8)
    assert elasticities.shape == (6, *single.compute_elasticities().shape)
    np.testing.assert_array_equal(bootstrapped.bootstrapped_shares[1, :, 0], results.problem.product_table.shares)
    LINEAR_ALGEBRA.check(bootstrapped.bootstrapped_delta[4], single.delta)
    change = results.problem.X1 @ (np.array(beta)[:, None] - results.beta)
    LINEAR_ALGEBRA.check(held.bootstrapped_delta[4], results.delta + change)
    with pytest.raises(ValueError, match="hold must be one of"):
        found.to_bootstrapped(hold="prices")
    found.to_pickle(tmp_path / "found.pickle")
    pd.testing.assert_frame_equal(blpjax.read_pickle(tmp_path / "found.pickle").table, found.table)


@pytest.mark.slow
def test_counterfactuals_have_intervals_over_estimates(results: Any, found: Any) -> None:
    """The middle is at the estimates, and each draw is what the model at that draw's parameters says."""
    firms = results.problem.products.firm_ids[:, 0]
    merged = {"firm_ids": np.where(firms == np.unique(firms)[1], firms.min(), firms)}
    with joint.quiet():
        bootstrapped, point = found.to_bootstrapped(), results.counterfactual(**merged)
        outcome = bootstrapped.counterfactual(**merged)
    assert outcome.draws == bootstrapped.draws == found.ok.sum()
    FIXED_PARAMETERS.check(outcome.markets["total_change"], point.markets["total_change"])
    model = bootstrapped.model_of(3)
    expected = model.compute_prices(firm_ids=merged["firm_ids"], costs=model.compute_costs())[:, 0]
    FIXED_PARAMETERS.check(outcome.drawn["products"]["prices_after"][3], expected)
    changes = outcome.drawn["markets"]["profits_change"]
    assert (changes.std(axis=0) > 0).all()
    ROUNDING.check(outcome.markets["profits_change_lower"], np.quantile(changes, 0.025, axis=0))


@pytest.mark.slow
def test_samples_that_lack_a_level_are_not_identified() -> None:
    """Without any product of a market there is no coefficient of its indicator. Without X2 nothing is inverted."""
    products, _ = tables()
    products["first"] = (products.market_ids == "m000").astype(float)
    problem = joint.Model("1 + prices + x + first", X2=None, X3=None, demographics=None).build(blpjax, products, None)
    found = solve(problem).reestimate(draws=30)
    codes = problem.market_index.codes
    drawn = reestimation.draw_weights(jax.random.key(0), jnp.arange(30), jnp.asarray(codes), 10)
    expected = np.asarray(drawn)[:, codes == 0].any(axis=1)
    np.testing.assert_array_equal(found.ok, expected)
    assert 0 < expected.sum() < 30 and np.isnan(found.parameters[~expected]).all()
    status = found.table[~found.table["ok"]]["status"]
    assert (status == "the sample does not identify the linear parameters").all()


@pytest.mark.slow
def test_clusters_may_divide_markets() -> None:
    """Products count by clusters, whatever others of their markets do: weighted two-stage least squares."""
    products, _ = joint.tables()
    problem = joint.Model(X2=None, X3=None, demographics=None).build(blpjax, products, None)
    found = solve(problem, method="1s").reestimate(draws=2, unit="clusters", recentre=False)
    codes = np.unique(products.clustering_ids, return_inverse=True)[1]
    drawn = reestimation.draw_weights(jax.random.key(0), jnp.arange(2), jnp.asarray(codes), int(codes.max()) + 1)
    w = np.asarray(drawn)[1][:, None]
    assert any(np.ptp(w[rows]) > 0 for rows in problem.market_index.rows)
    X, Z = np.asarray(problem.model_data.demand.X), np.asarray(problem.model_data.demand.Z)
    fitted = Z @ np.linalg.solve(Z.T @ (w * Z), Z.T @ (w * X))
    expected = np.linalg.solve(fitted.T @ (w * X), fitted.T @ (w[:, 0] * problem.closed_form_delta()))
    LINEAR_ALGEBRA.check(found.parameters[1], expected)


@pytest.mark.slow
def test_standard_errors_are_those_of_clusters_by_market() -> None:
    """Resampling markets says, up to noise, what covariances clustered by market say."""
    products, _ = joint.tables(markets=60)
    products["clustering_ids"] = products.market_ids
    problem = joint.Model(X2=None, X3=None, demographics=None).build(blpjax, products, None)
    found = solve(problem, method="1s", se_type="clustered").reestimate(draws=300, unit="markets")
    summary = found.summary()
    ratio = summary["bootstrap_se"] / summary["standard_error"]
    assert ratio.between(0.8, 1.25).all(), ratio
    assert (summary["bias"].abs() < 0.3 * summary["standard_error"]).all()


def test_what_cannot_be_estimated_again(clusters: Any) -> None:
    results = clusters.problem_results
    with pytest.raises(ValueError, match="draws must be a positive integer, not 0"):
        results.reestimate(draws=0)
    with pytest.raises(ValueError, match="unit must be one of"):
        results.reestimate(unit="products")
    products, agents = tables()
    alone = DEMAND.build(blpjax, products.drop(columns="clustering_ids"), agents)
    quick = {
        "sigma": [[0.6]],
        "method": "1s",
        "optimization": blpjax.Optimization("return"),
        "check_optimality": "gradient",
    }
    with pytest.raises(ValueError, match="needs a column 'clustering_ids'"):
        solve(alone, **quick).reestimate(unit="clusters")
    with pytest.raises(ValueError, match="there are clusters in several markets"):
        solve(results.problem, **quick, se_type="clustered").reestimate(unit="markets")
    hosted = solve(results.problem, **quick, iteration=blpjax.Iteration("lm"))
    with pytest.raises(NotImplementedError, match=r"Iteration\('lm'\) runs on the host"):
        hosted.reestimate()
    updated = solve(results.problem, **quick, initial_update=True).last_results
    with pytest.raises(ValueError, match="Results of an initial update cannot be estimated again"):
        updated.reestimate()


@pytest.mark.slow
def test_what_cannot_be_estimated_again_with_supply() -> None:
    products, agents = tables()
    quick = {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [None, -2.0, None, None], "method": "1s"}
    quick |= {"optimization": blpjax.Optimization("return"), "check_optimality": "gradient"}
    bounded = solve(joint.Model().build(blpjax, products, agents), **quick, costs_bounds=(0.1, 10))
    with pytest.raises(ValueError, match="Pass the same costs_bounds again"):
        bounded.reestimate()
    both = joint.Model().build(blpjax, products.assign(covariance_instruments0=products.x), agents)
    with pytest.raises(NotImplementedError, match="Covariance instruments are not supported in re-estimation"):
        solve(both, **quick).reestimate()
