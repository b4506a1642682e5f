"""Clusters of several kinds: against sums over all pairs of observations, stacked samples, and linearmodels."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from linearmodels.iv import IV2SLS

import blpjax
from blpjax import Formulation, Optimization, Problem
from blpjax.exceptions import DataError, IdentificationWarning
from blpjax.inference.reestimation import draw_crossed
from blpjax.objective import iv
from blpjax.objective.clusters import clustered_products, counts_of_kinds, crossed_products, groupings, number_clusters
from tests.support import joint
from tests.tolerances import FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

RNG = np.random.default_rng(0)
N, M = 60, 4
G = RNG.normal(size=(N, M)) * [1.0, 10.0, 1e-3, 1.0]
IDS = np.column_stack([RNG.integers(0, 9, N), RNG.integers(0, 7, N), RNG.integers(0, 5, N)])


def over_pairs(g: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Sum of products of contributions of all pairs that share a cluster of some kind."""
    share = (ids[:, None, :] == ids[None, :, :]).any(axis=2)
    return g.T @ share @ g


@functools.cache
def data() -> pd.DataFrame:
    products = joint.tables(markets=10)[0]
    rows = np.arange(len(products))  # 71 of them
    return products.assign(
        c0=products.market_ids, c1=products.product_ids, a=rows // 3, b=[f"b{i % 20:02}" for i in rows]
    )


def solve(columns: dict[str, str], **options: Any) -> Any:
    """A logit with columns of clusters, `{name: source}`, and a robust W."""
    products = data().drop(columns="clustering_ids")
    table = products.assign(**{name: products[source] for name, source in columns.items()})
    problem = Problem(Formulation("1 + prices + x + y"), table)
    return problem.solve(**{"method": "1s", "se_type": "clustered", "W_type": "robust"} | options)


TWO = {"clustering_ids0": "a", "clustering_ids1": "b"}

# --- covariances ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [2, 3])
def test_inclusion_and_exclusion_count_each_pair_once(kinds: int) -> None:
    clusters = number_clusters(IDS[:, :kinds])
    expected = over_pairs(G, IDS[:, :kinds])
    here = crossed_products(G, clusters.ids, clusters.counts, None, None)
    there = jax.jit(lambda g, ids: crossed_products(g, ids, clusters.counts, None, None))
    ROUNDING.check(here, expected)
    ROUNDING.check(there(jnp.asarray(G), jnp.asarray(clusters.ids)), expected)
    assert clusters.kinds == kinds and len(clusters.counts) == 2**kinds - 1
    assert counts_of_kinds(clusters.counts) == tuple(np.unique(column).size for column in IDS[:, :kinds].T)


def test_one_column_is_one_kind() -> None:
    clusters = number_clusters(IDS[:, :1])
    assert clusters.ids.shape == (N,) and clusters.counts == 9 and clusters.kinds == 1
    ROUNDING.check(clustered_products(G, clusters.ids, 9, None), over_pairs(G, IDS[:, :1]))
    assert groupings(3) == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


def test_drawn_clusters_are_stacked_samples() -> None:
    """An observation is there once for each copy of its cluster of one kind and each copy of that of the other."""
    drawn = np.column_stack([RNG.integers(0, 3, 9)[IDS[:, 0]], RNG.integers(0, 3, 7)[IDS[:, 1]]])
    clusters = number_clusters(IDS[:, :2])
    rows, ids = [], []
    for i in range(N):
        for copies in itertools.product(range(drawn[i, 0]), range(drawn[i, 1])):
            rows.append(i)
            ids.append([10 * IDS[i, kind] + copies[kind] for kind in range(2)])
    found = crossed_products(G, clusters.ids, clusters.counts, None, drawn.astype(float))
    ROUNDING.check(found, over_pairs(G[rows], np.array(ids)))


@pytest.mark.parametrize("xp", [np, jnp], ids=["host", "device"])
def test_negative_eigenvalues_are_set_to_zero_whatever_the_units(xp: Any) -> None:
    root = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    S, scale = root @ np.diag([3.0, 1.0, -0.5]) @ root.T, np.ones(3)
    expected = root @ np.diag([3.0, 1.0, 0.0]) @ root.T
    ROUNDING.check(iv.positive_part(xp.asarray(S), xp.asarray(scale)), expected)
    units = np.array([1e-3, 1.0, 1e4])
    scaled = iv.positive_part(xp.asarray(S * np.outer(units, units)), xp.asarray(units**2))
    ROUNDING.check(np.asarray(scaled) / np.outer(units, units), expected)
    # what has none stays what it is, to the last bit
    assert (
        np.asarray(iv.positive_part(xp.asarray(expected + np.eye(3)), xp.asarray(scale))) == expected + np.eye(3)
    ).all()


# --- estimation ----------------------------------------------------------------------------------------------------


def test_standard_errors_are_those_of_linearmodels() -> None:
    results = solve(TWO, center_moments=False)
    table = data().assign(one=1.0)
    codes = np.column_stack([np.unique(table[name], return_inverse=True)[1] for name in ("a", "b")])
    delta = np.log(table.shares) - np.log(1 - table.groupby("market_ids").shares.transform("sum"))
    names = [f"demand_instruments{k}" for k in range(6)]
    fit = IV2SLS(delta, table[["one", "x", "y"]], table["prices"], table[names]).fit(
        cov_type="clustered", clusters=codes, debiased=False
    )
    LINEAR_ALGEBRA.check(results.beta[[0, 2, 3, 1], 0], fit.params)
    FIXED_PARAMETERS.check(results.beta_se[[0, 2, 3, 1], 0], fit.std_errors)
    assert "Adjusted for 24 and 20 Clusters" in str(results)


def test_numbered_columns_of_one_kind_are_one_column() -> None:
    """To the last bit; so is a matrix with one column, and up to rounding the same column twice."""
    one, numbered = solve({"clustering_ids": "c0"}), solve({"clustering_ids0": "c0"})
    for name in ("parameters", "parameter_covariances", "updated_W"):
        assert (getattr(one, name) == getattr(numbered, name)).all()
    twice = solve({"clustering_ids0": "c0", "clustering_ids1": "c0"})
    LINEAR_ALGEBRA.check(twice.beta_se, one.beta_se)


def test_a_kind_within_another_changes_nothing() -> None:
    """Products of a market are within the market: their correlation is counted already."""
    rows = data().assign(row=np.arange(len(data())), market=data().market_ids)
    problem = Problem(
        Formulation("1 + prices + x + y"),
        rows.drop(columns="clustering_ids").assign(clustering_ids0=rows.market, clustering_ids1=rows.row),
    )
    found = problem.solve(method="1s", se_type="clustered")
    LINEAR_ALGEBRA.check(found.beta_se, solve({"clustering_ids": "c0"}).beta_se)


def test_weighting_matrices_are_inverses_of_covariances_of_several_kinds() -> None:
    """Of as many rows as clusters of a kind, covariances are close to robust ones."""
    rows = np.arange(len(data())) // 2
    table = data().drop(columns="clustering_ids").assign(clustering_ids0=rows, clustering_ids1=(rows + 7) % 29)
    problem = Problem(Formulation("1 + prices + x + y"), table)
    results = problem.solve(W_type="clustered")
    g = np.asarray(problem.model_data.demand.Z) * results.last_results.xi
    S = over_pairs(g - g.mean(axis=0), table[["clustering_ids0", "clustering_ids1"]].to_numpy()) / len(g)
    assert np.linalg.eigvalsh(S)[0] > 0
    FIXED_PARAMETERS.check(results.W, np.linalg.inv(S))


def test_files_hold_numbers_of_clusters(tmp_path: Any) -> None:
    results = solve(TWO)
    results.save(tmp_path / "results.zip")
    found = blpjax.load(tmp_path / "results.zip")
    assert str(found) == str(results) and found.problem.clusters.counts == results.problem.clusters.counts
    assert found.problem.products.clustering_ids.shape == (len(data()), 2)


def test_eigenvalues_that_were_negative_are_a_warning() -> None:
    """Of moments, which W leaves out; of parameters, with few clusters."""
    with pytest.warns(IdentificationWarning, match=r"24 and 20 clusters, have \d positive eigenvalues only"):
        results = solve(TWO, W_type="clustered")
    eigenvalues = np.linalg.eigvalsh(results.moments_covariances)
    assert eigenvalues[0] < 0
    LINEAR_ALGEBRA.check(results.beta_se, solve(TWO).beta_se)  # covariances of parameters had none
    W = np.linalg.eigvalsh(results.updated_W)
    assert (W > -1e-9 * W[-1]).all()
    table = data().drop(columns="clustering_ids")
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = {"clustering_ids0": rng.integers(0, 3, len(table)), "clustering_ids1": rng.integers(0, 3, len(table))}
        problem = Problem(Formulation("1 + prices + x + y"), table.assign(**ids))
        first = problem.solve(method="1s", W_type="robust")
        B, g = first.parameter_sensitivity, np.asarray(problem.model_data.demand.Z) * first.xi
        V = B @ over_pairs(g - g.mean(axis=0), np.column_stack(list(ids.values()))) @ B.T / len(g)
        if np.linalg.eigvalsh(V)[0] < 0:
            break
    with pytest.warns(IdentificationWarning, match="covariances of the parameters, .* 3 and 3 clusters, had negative"):
        found = problem.solve(method="1s", se_type="clustered").parameter_covariances
    assert np.linalg.eigvalsh(found)[0] > -1e-9 * np.abs(found).max()
    assert np.linalg.eigvalsh(found - V)[0] > -1e-9 * np.abs(found).max()  # errors are larger, not smaller


# --- estimation again ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_of_crossed_clusters_are_estimated_with_weights() -> None:
    """Two-stage least squares where products count as often as both of their clusters are drawn."""
    results = solve(TWO, optimization=Optimization("return"))
    draws = results.reestimate(3, seed=4, recentre=False)
    assert draws.unit == "clusters" and draws.ok.all()
    units = np.column_stack([np.unique(data()[name], return_inverse=True)[1] for name in ("a", "b")])
    drawn = np.asarray(draw_crossed(jax.random.key(4), jnp.arange(3), jnp.asarray(units), (24, 20)))
    problem = results.problem
    y, X, Z = problem.closed_form_delta(), problem.X1, np.asarray(problem.model_data.demand.Z)
    for d in range(3):
        for kind, count in enumerate((24, 20)):  # as many clusters of each kind as there are
            assert sum(drawn[d, units[:, kind] == u, kind][0] for u in range(count)) == count
        w = drawn[d].prod(axis=1)
        P = Z @ np.linalg.pinv(Z.T @ (w[:, None] * Z)) @ Z.T
        A = X.T @ (w[:, None] * P * w)
        b = np.linalg.solve(A @ X, A @ y)
        FIXED_PARAMETERS.check(draws.parameters[d], b)
        rows = np.repeat(np.arange(len(w)), w.astype(int))
        copies = [
            [100 * units[i, 0] + a, 100 * units[i, 1] + c]
            for i in range(len(w))
            for a, c in itertools.product(range(int(drawn[d, i, 0])), range(int(drawn[d, i, 1])))
        ]
        g = (Z * (y - X @ b)[:, None])[rows]
        S = over_pairs(g - g.mean(axis=0), np.array(copies)) / len(rows)
        A, W = -Z[rows].T @ X[rows] / len(rows), np.linalg.pinv(Z[rows].T @ Z[rows] / len(rows))
        B = np.linalg.inv(A.T @ W @ A) @ A.T @ W
        V = B @ S @ B.T
        assert np.linalg.eigvalsh(V)[0] > 0
        errors = draws.table["standard_error"].to_numpy().reshape(3, -1)[d]
        FIXED_PARAMETERS.check(errors, np.sqrt(np.diag(V) / len(rows)))


def test_markets_cannot_be_drawn_where_clusters_cross_them() -> None:
    with pytest.raises(ValueError, match="Errors of different markets are correlated"):
        solve(TWO).reestimate(2, unit="markets")


# --- errors --------------------------------------------------------------------------------------------------------


def test_columns_that_cannot_be_clusters_are_named() -> None:
    table = data().drop(columns="clustering_ids")
    problem = Problem(Formulation("1 + prices + x + y"), table.assign(clustering_ids0=table.c0, clustering_ids1=0))
    with pytest.raises(ValueError, match="'clustering_ids1' has a single value"):
        problem.solve(method="1s", se_type="clustered")
    many = table.assign(**{f"clustering_ids{k}": table.c0 for k in range(6)})
    with pytest.raises(DataError, match="'clustering_ids' have 6 columns"):
        Problem(Formulation("1 + prices + x"), many)
    with pytest.raises(DataError, match="'clustering_ids0' is missing"):
        Problem(Formulation("1 + prices + x"), table.assign(clustering_ids1=table.c0))
    missing = table.assign(clustering_ids0=table.c0, clustering_ids1=table.c1.where(table.c1 != "p0"))
    with pytest.raises(DataError, match="column 'clustering_ids1' has missing values in .*market 'm"):
        Problem(Formulation("1 + prices + x"), missing)


def test_fixed_effects_are_not_projected_with_several_kinds() -> None:
    table = data().drop(columns="clustering_ids").assign(clustering_ids0=data().c0, clustering_ids1=data().c1)
    problem = Problem(Formulation("0 + prices + x + y", absorb="C(product_ids)"), table)
    with pytest.raises(NotImplementedError, match="clustered in several ways"):
        problem.solve(method="1s", se_type="clustered").project_fixed_effects(Formulation("1"))
