"""Linear IV-GMM, weighting matrices, covariances and tests: against PyBLP, linearmodels and closed forms."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyblp
import pyhdfe
import pytest
import scipy.stats
from linearmodels.iv import IV2SLS, IVGMM

from blpjax.objective import iv
from tests.support.designs import mostly_slow
from tests.support.silence import quiet
from tests.tolerances import CENTRAL_DIFFERENCE, LINEAR_ALGEBRA, ROUNDING, Tolerance

KINDS = ("robust", "clustered", "unadjusted")
N_CLUSTERS = 60

# Inverses of G'WG and of S, whose condition numbers reach 1e8, on both sides: in 50 digits PyBLP's covariances of joint
# demand and supply are off by 5e-10 of the largest, ours by 4e-13.
PARITY = Tolerance(1e-9, 1e-9)


def compiled(name: str, *static: str) -> Any:
    """The function of `iv`, compiled where one of its arguments is an array of JAX; its `compiled` always is."""
    plain = getattr(iv, name)
    program = jax.jit(plain, static_argnames=static)

    def call(*arguments: Any, **options: Any) -> Any:
        known = jax.tree.leaves((arguments, options))
        return (program if any(isinstance(x, jax.Array) for x in known) else plain)(*arguments, **options)

    call.compiled = program  # type: ignore[attr-defined]
    return call


linear_step, weight_factor, initial_weights = map(compiled, ("linear_step", "weight_factor", "initial_weights"))
updated_weights, numerical_rank, cross_moments = map(compiled, ("updated_weights", "numerical_rank", "cross_moments"))
average_moments, hansen_test, distance_test = map(compiled, ("average_moments", "hansen_test", "distance_test"))
lm_test, wald_test = map(compiled, ("lm_test", "wald_test"))
moment_covariances = compiled("moment_covariances", "kind", "center", "n_clusters")
parameter_inference = compiled("parameter_inference", "se_type", "step")


class Data(NamedTuple):
    """A logit problem: PyBLP's object, X (N, K), Z (N, M), y and clusters (N,), and the fixed effects to absorb."""

    problem: Any
    X: np.ndarray
    Z: np.ndarray
    y: np.ndarray
    cluster_ids: np.ndarray
    absorb: pyhdfe.algorithms.Algorithm | None

    def residualise(self, y: np.ndarray) -> np.ndarray:
        return y if self.absorb is None else self.absorb.residualize(y[:, None])[:, 0]


@pytest.fixture(scope="module")
def products() -> pd.DataFrame:
    """Twenty markets of Nevo's data, with 60 clusters of eight rows."""
    table = pd.read_csv(pyblp.data.NEVO_PRODUCTS_LOCATION)
    table = table[table["market_ids"].isin(table["market_ids"].unique()[:20])].reset_index(drop=True)
    clusters = np.random.default_rng(0).permutation(np.arange(len(table)) % N_CLUSTERS)
    return table.assign(clustering_ids=clusters)


@pytest.fixture(scope="module", params=mostly_slow(["dummies", "absorbed"], ["dummies"]))
def data(request: pytest.FixtureRequest, products: pd.DataFrame) -> Data:
    """A logit problem without fixed effects, and one whose product fixed effects pyhdfe absorbs here."""
    instruments = products.filter(like="demand_instruments").to_numpy()
    inside = products.groupby("market_ids")["shares"].transform("sum")
    y = np.log(products["shares"].to_numpy() / (1 - inside.to_numpy()))
    clusters = products["clustering_ids"].to_numpy()
    if request.param == "dummies":
        exogenous = np.column_stack([np.ones(len(products)), products["sugar"]])
        X = np.column_stack([exogenous[:, 0], products["prices"], exogenous[:, 1]])
        formulation = pyblp.Formulation("1 + prices + sugar")
        return Data(pyblp_problem(formulation, products), X, np.hstack([instruments, exogenous]), y, clusters, None)
    absorb = pyhdfe.create(products[["product_ids"]].to_numpy())
    X, Z = absorb.residualize(products[["prices"]].to_numpy()), absorb.residualize(instruments)
    formulation = pyblp.Formulation("0 + prices", absorb="C(product_ids)")
    return Data(pyblp_problem(formulation, products), X, Z, y, clusters, absorb)


def pyblp_problem(formulations: Any, products: pd.DataFrame) -> Any:
    with quiet():
        return pyblp.Problem(formulations, products)


def solve(problem: Any, **options: Any) -> Any:
    with quiet():
        return problem.solve(**options)


def random_equation(seed: int, N: int = 40, K: int = 2, M: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X (N, K), Z (N, M) and y (N,) with relevant instruments."""
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(N, M))
    X = Z @ rng.normal(size=(M, K)) + rng.normal(size=(N, K))
    return X, Z, X.sum(axis=1) + rng.normal(size=N) * (1 + Z[:, 0] ** 2)


def random_psd(seed: int, M: int, rank: int | None = None) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(M, M if rank is None else rank))
    return root @ root.T


# Against PyBLP

#: Types of weights and of errors, and whether moments are centred.
TYPES = [(*kinds, True) for kinds in itertools.product(KINDS, KINDS)] + [(kind, kind, False) for kind in KINDS]
#: Those that together have everything.
FEW = [("robust", "unadjusted", True), ("unadjusted", "robust", True), ("clustered", "clustered", False)]


@pytest.mark.parametrize(
    ("W_type", "se_type", "center"),
    [pytest.param(*types, marks=() if types in FEW else pytest.mark.slow) for types in TYPES],
)
def test_two_step_logit_is_pyblps(data: Data, W_type: str, se_type: str, center: bool) -> None:
    second = solve(data.problem, method="2s", W_type=W_type, se_type=se_type, center_moments=center)
    X, Z, y = jnp.asarray(data.X), jnp.asarray(data.Z), jnp.asarray(data.y)
    N = len(y)
    covariances = partial(
        moment_covariances, center=center, cluster_ids=jnp.asarray(data.cluster_ids), n_clusters=N_CLUSTERS
    )
    A, b, W = cross_moments((Z,), (X,)), average_moments((Z,), (y,)), initial_weights((Z,))
    for step, expected in ((1, second.last_results), (2, second)):
        linear = linear_step(A, W)
        beta, moments = linear.coefficients(b), linear.moments(b)
        xi = jnp.asarray(data.residualise(data.y - data.X @ np.asarray(beta)))
        S = covariances((Z,), (xi,), kind=se_type)
        inference = parameter_inference(-A, W, S, N=N, se_type=se_type, step=step)
        next_W = updated_weights(covariances((Z,), (xi,), kind=W_type))
        hansen = hansen_test(moments, W, N=N, parameters=X.shape[1])
        PARITY.check(W, expected.W)
        PARITY.check(beta, expected.beta[:, 0])
        PARITY.check(xi, expected.xi[:, 0])
        PARITY.check(moments, expected.moments[:, 0])
        PARITY.check(-A, expected.moments_jacobian)
        PARITY.check(hansen.statistic, expected.objective)
        PARITY.check(hansen.statistic, expected.run_hansen_test())
        PARITY.check(S, expected.moments_covariances)
        PARITY.check(next_W, expected.updated_W)
        PARITY.check(inference.covariances, expected.parameter_covariances)
        PARITY.check(inference.standard_errors, expected.beta_se[:, 0])
        PARITY.check(inference.sensitivity, expected.parameter_sensitivity)
        W = next_W


@pytest.mark.parametrize("se_type", mostly_slow(["robust", "unadjusted"], ["robust"]))
def test_first_step_inference_at_a_given_W_is_pyblps(products: pd.DataFrame, se_type: str) -> None:
    problem = pyblp_problem(pyblp.Formulation("1 + prices + sugar"), products)
    Z, N = jnp.asarray(problem.products.ZD), problem.N
    scale = jnp.diag(1 + jnp.arange(Z.shape[1]) % 3)
    W = scale @ initial_weights((Z,)) @ scale
    results = solve(problem, method="1s", W=np.asarray(W), se_type=se_type)
    S = moment_covariances((Z,), (jnp.asarray(results.xi[:, 0]),), kind=se_type)
    inference = parameter_inference(jnp.asarray(results.moments_jacobian), W, S, N=N, se_type=se_type, step=1)
    PARITY.check(inference.covariances, results.parameter_covariances)
    PARITY.check(inference.sensitivity, results.parameter_sensitivity)


@pytest.fixture(scope="module")
def joint_problem(products: pd.DataFrame) -> Any:
    """Demand and supply with three supply instruments."""
    rng = np.random.default_rng(1)
    table = products.assign(**{f"supply_instruments{i}": rng.normal(size=len(products)) for i in range(3)})
    demand, supply = pyblp.Formulation("1 + prices + sugar"), pyblp.Formulation("1 + sugar + mushy")
    return pyblp_problem((demand, None, supply), table)


@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["clustered"]))
def test_demand_and_supply_jointly_are_pyblps(joint_problem: Any, kind: str) -> None:
    optimization = pyblp.Optimization("return")
    options = {"method": "2s", "W_type": kind, "se_type": kind, "optimization": optimization}
    results = solve(joint_problem, beta=[None, -30, None], **options).last_results
    table = joint_problem.products
    Z = (jnp.asarray(table.ZD), jnp.asarray(table.ZS))
    residuals = (jnp.asarray(results.xi[:, 0]), jnp.asarray(results.omega[:, 0]))
    ids = jnp.asarray(np.unique(table.clustering_ids, return_inverse=True)[1].ravel())
    W = initial_weights(Z)
    S = moment_covariances(Z, residuals, kind=kind, cluster_ids=ids, n_clusters=N_CLUSTERS)
    G = jnp.asarray(results.moments_jacobian)
    inference = parameter_inference(G, W, S, N=joint_problem.N, se_type=kind, step=1)
    PARITY.check(W, results.W)
    PARITY.check(average_moments(Z, residuals), results.moments[:, 0])
    PARITY.check(S, results.moments_covariances)
    PARITY.check(updated_weights(S), results.updated_W)
    PARITY.check(inference.covariances, results.parameter_covariances)
    PARITY.check(inference.sensitivity, results.parameter_sensitivity)


def test_linear_parameters_are_concentrated_out_of_both_equations(joint_problem: Any) -> None:
    results = solve(joint_problem, beta=[None, -30, None], method="1s", optimization=pyblp.Optimization("return"))
    table = joint_problem.products
    Z = (jnp.asarray(table.ZD), jnp.asarray(table.ZS))
    X = (jnp.asarray(table.X1[:, [0, 2]]), jnp.asarray(table.X3))
    Y = (jnp.asarray((results.delta + 30 * table.prices)[:, 0]), jnp.asarray(results.tilde_costs[:, 0]))
    linear = linear_step(cross_moments(Z, X), initial_weights(Z))
    expected = np.concatenate([results.beta[[0, 2], 0], results.gamma[:, 0]])
    PARITY.check(linear.coefficients(average_moments(Z, Y)), expected)
    PARITY.check(linear.moments(average_moments(Z, Y)), results.moments[:, 0])


def test_too_few_clusters_give_pyblps_pseudo_inverse(products: pd.DataFrame) -> None:
    clusters = np.random.default_rng(2).permutation(np.arange(len(products)) % 15)
    problem = pyblp_problem(pyblp.Formulation("1 + prices + sugar"), products.assign(clustering_ids=clusters))
    results = solve(problem, method="2s", W_type="clustered").last_results
    Z, xi = jnp.asarray(problem.products.ZD), jnp.asarray(results.xi[:, 0])
    S = moment_covariances((Z,), (xi,), kind="clustered", cluster_ids=jnp.asarray(clusters))
    assert numerical_rank(S) == 14
    PARITY.check(updated_weights(S), results.updated_W)


def test_hypothesis_tests_are_pyblps(products: pd.DataFrame) -> None:
    problem = pyblp_problem(pyblp.Formulation("1 + prices + sugar"), products)
    N = problem.N
    free = solve(problem, method="2s")
    held = {"beta": [None, -30, None], "optimization": pyblp.Optimization("return")}
    restricted = solve(problem, method="1s", W=free.W, **held)
    g, G, W, V = (
        jnp.asarray(x)
        for x in (
            restricted.moments[:, 0],
            restricted.moments_jacobian,
            restricted.W,
            restricted.parameter_covariances,
        )
    )
    hansen = hansen_test(g, W, N=N, parameters=2)
    distance = distance_test(restricted.objective, free.objective, restrictions=1)
    lm = lm_test(g, G, W, V, N=N, restrictions=1)
    R = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    r = R @ free.parameters[:, 0] - np.array([-30.0, 0.0])
    wald = wald_test(jnp.asarray(r), jnp.asarray(R), jnp.asarray(free.parameter_covariances), N=N)
    PARITY.check(hansen.statistic, restricted.run_hansen_test())
    PARITY.check(distance.statistic, restricted.run_distance_test(free))
    PARITY.check(lm.statistic, restricted.run_lm_test())
    PARITY.check(wald.statistic, free.run_wald_test(r[:, None], R))
    assert (hansen.degrees_of_freedom, lm.degrees_of_freedom, wald.degrees_of_freedom) == (20, 1, 2)


# Against linearmodels, whose formulas coincide without small-sample factors (debiased=False) and without centring


@pytest.mark.parametrize("kind", KINDS)
def test_two_step_gmm_is_linearmodels(kind: str) -> None:
    X, Z, y = random_equation(0, N=200)
    ids = np.arange(200) // 5
    options: dict[str, Any] = {"clusters": np.asarray(ids)} if kind == "clustered" else {}
    # Their unadjusted error variance is centred only when asked; ours always is.
    model = IVGMM(
        np.asarray(y), None, np.asarray(X), np.asarray(Z), weight_type=kind, center=kind == "unadjusted", **options
    )
    expected = model.fit(iter_limit=2, cov_type=kind, debiased=False, **options)
    A, b = cross_moments((Z,), (X,)), average_moments((Z,), (y,))
    first = linear_step(A, initial_weights((Z,)))
    covariances = partial(moment_covariances, kind=kind, center=False, cluster_ids=ids, n_clusters=40)
    W = updated_weights(covariances((Z,), (y - X @ first.coefficients(b),)))
    second = linear_step(A, W)
    beta = second.coefficients(b)
    PARITY.check(beta, expected.params.to_numpy())
    hansen = hansen_test(second.moments(b), W, N=200, parameters=2)
    PARITY.check(hansen.statistic, expected.j_stat.stat)
    PARITY.check(hansen.p_value, expected.j_stat.pval)
    if kind != "unadjusted":
        S = covariances((Z,), (y - X @ beta,))
        inference = parameter_inference(-A, W, S, N=200, se_type=kind, step=2)
        PARITY.check(inference.covariances / 200, expected.cov.to_numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_two_stage_least_squares_is_linearmodels(kind: str) -> None:
    X, Z, y = random_equation(1, N=200)
    X, Z = (np.column_stack([np.ones(200), x]) for x in (X, Z))
    ids = np.arange(200) // 5
    options: dict[str, Any] = {"clusters": np.asarray(ids)} if kind == "clustered" else {}
    model = IV2SLS(np.asarray(y), np.ones((200, 1)), np.asarray(X[:, 1:]), np.asarray(Z[:, 1:]))
    expected = model.fit(cov_type=kind, debiased=False, **options)
    A, W = cross_moments((Z,), (X,)), initial_weights((Z,))
    beta = linear_step(A, W).coefficients(average_moments((Z,), (y,)))
    # With a constant, residuals and moments of the constant average zero, so centred unadjusted variances coincide.
    S = moment_covariances((Z,), (y - X @ beta,), kind=kind, center=False, cluster_ids=ids)
    inference = parameter_inference(-A, W, S, N=200, se_type=kind, step=1)
    PARITY.check(beta, expected.params.to_numpy())
    PARITY.check(inference.standard_errors, expected.std_errors.to_numpy())


# The linear step


def test_coefficients_minimise_the_objective_and_satisfy_the_normal_equations() -> None:
    X, Z, y = random_equation(2)
    A, b, W = cross_moments((Z,), (X,)), average_moments((Z,), (y,)), random_psd(2, 5)
    step = linear_step(A, W)
    beta, moments = step.coefficients(b), step.moments(b)
    LINEAR_ALGEBRA.check(A.T @ W @ A @ beta, A.T @ W @ b)
    LINEAR_ALGEBRA.check(moments, b - A @ beta)
    LINEAR_ALGEBRA.check(beta, np.linalg.solve(A.T @ W @ A, A.T @ W @ b))


def test_columns_of_a_matrix_are_concentrated_one_by_one() -> None:
    X, Z, y = random_equation(3)
    A, W = cross_moments((Z,), (X,)), random_psd(3, 5)
    b = average_moments((Z,), (np.column_stack([y, y**2]),))
    linear = linear_step(A, W)
    LINEAR_ALGEBRA.check(linear.coefficients(b)[:, 1], linear.coefficients(b[:, 1]))
    LINEAR_ALGEBRA.check(linear.moments(b)[:, 1], linear.moments(b[:, 1]))


def test_the_factor_of_a_singular_matrix_reproduces_it() -> None:
    W = random_psd(4, 6, rank=3)
    L = weight_factor(W)
    ROUNDING.check(L @ L.T, W)
    assert np.isfinite(L).all()
    zeros = np.zeros((2, 2))
    np.testing.assert_array_equal(weight_factor(zeros), zeros)


@pytest.mark.parametrize("rank", [6, 4])
def test_weighting_matrices_are_exactly_symmetric(rank: int) -> None:
    S = np.asarray(random_psd(7, 6, rank)) * np.outer(np.logspace(-3, 3, 6), np.logspace(-3, 3, 6))
    for W in (iv.updated_weights(S), iv.initial_weights((np.asarray(random_equation(8)[1]),))):
        np.testing.assert_array_equal(W, W.T)


def test_collinear_instruments_do_not_change_two_stage_least_squares() -> None:
    X, Z, y = random_equation(5)
    collinear = np.column_stack([Z, Z[:, 0] - 2 * Z[:, 1], Z[:, 2]])
    plain, redundant = (linear_step(cross_moments((z,), (X,)), initial_weights((z,))) for z in (Z, collinear))
    assert numerical_rank(collinear.T @ collinear / 40) == 5
    assert np.abs(initial_weights((collinear,))).max() < 1e3
    LINEAR_ALGEBRA.check(
        redundant.coefficients(average_moments((collinear,), (y,))),
        plain.coefficients(average_moments((Z,), (y,))),
    )


def test_units_of_instruments_do_not_matter() -> None:
    X, Z, y = random_equation(6)
    units = np.asarray([1e9, 1.0, 1e-9, 1.0, 1e5])
    estimates = []
    for z in (Z, Z * units[None, :]):
        A, b = cross_moments((z,), (X,)), average_moments((z,), (y,))
        S = moment_covariances((z,), (y - X.sum(axis=1),), kind="robust")
        estimates.append([linear_step(A, W).coefficients(b) for W in (initial_weights((z,)), updated_weights(S))])
    LINEAR_ALGEBRA.check(estimates[1], estimates[0])


def test_a_singular_weighting_matrix_uses_the_moments_it_weighs() -> None:
    X, Z, y = random_equation(7)
    A, b = cross_moments((Z,), (X,)), average_moments((Z,), (y,))
    linear = linear_step(A, np.diag(np.asarray([1.0, 1.0, 0.0, 0.0, 0.0])))
    LINEAR_ALGEBRA.check(linear.coefficients(b), np.linalg.solve(A[:2], b[:2]))
    assert linear.rank == 2


def test_fewer_weighted_moments_than_coefficients_show_in_the_rank() -> None:
    X, Z, _ = random_equation(8)
    linear = linear_step(cross_moments((Z,), (X,)), np.diag(np.asarray([1.0, 0.0, 0.0, 0.0, 0.0])))
    assert linear.rank == 1
    assert np.isfinite(linear.coefficient_map).all()


def test_without_linear_parameters_moments_are_unchanged() -> None:
    _, Z, y = random_equation(9)
    A, b = cross_moments((Z,), (np.zeros((40, 0)),)), average_moments((Z,), (y,))
    linear = linear_step(A, initial_weights((Z,)))
    assert linear.coefficients(b).shape == (0,)
    assert linear.coefficients(np.zeros((5, 3))).shape == (0, 3)
    np.testing.assert_array_equal(linear.moments(b), b)


def test_an_equation_without_linear_parameters_leaves_the_other_alone() -> None:
    X, Z, y = random_equation(10)
    A = cross_moments((Z, Z), (X, np.zeros((40, 0))))
    assert A.shape == (10, 2)
    joint = linear_step(A, initial_weights((Z, Z)))
    alone = linear_step(A[:5], initial_weights((Z,)))
    b = average_moments((Z, Z), (y, y**2))
    LINEAR_ALGEBRA.check(joint.coefficients(b), alone.coefficients(b[:5]))
    LINEAR_ALGEBRA.check(joint.moments(b)[5:], b[5:])


def test_missing_numbers_are_not_hidden() -> None:
    X, Z, _ = map(jnp.asarray, random_equation(11))
    A, W = cross_moments((Z,), (X,)), jnp.asarray(random_psd(11, 5))
    assert np.isnan(linear_step(A, W.at[0, 0].set(jnp.nan)).moment_map).any()
    assert np.isnan(linear_step(A.at[0, 0].set(jnp.nan), W).moment_map).any()
    assert np.isnan(updated_weights(W.at[0, 0].set(jnp.nan))).any()
    assert numerical_rank(W.at[0, 0].set(jnp.nan)) == 0
    assert linear_step(A.at[0, 0].set(jnp.nan), W).rank == 0
    assert np.isnan(
        parameter_inference(A.at[0, 0].set(jnp.nan), W, W, N=40, se_type="robust", step=1).standard_errors
    ).any()


# Derivatives and batches


def concentrated_objective(theta: jax.Array, X: jax.Array, Z: jax.Array, W: jax.Array) -> jax.Array:
    """N g'Wg with linear parameters concentrated out of a nonlinear left-hand side."""
    Y = jnp.exp(X @ theta / 4) + jnp.sin(theta[0] * Z[:, 0])
    b = iv.average_moments((Z,), (Y,))
    moments = iv.linear_step(iv.cross_moments((Z,), (X[:, :1],)), W).moments(b)
    return Z.shape[0] * moments @ W @ moments


@pytest.mark.parametrize("rank", [pytest.param(5, marks=pytest.mark.slow), 3])
def test_gradient_and_hessian_are_central_differences(rank: int) -> None:
    X, Z, _ = random_equation(12)
    W = random_psd(12, 5, rank)
    theta, step = jnp.asarray([0.3, -0.2]), 1e-5
    objective = jax.jit(concentrated_objective)
    gradient = jax.jit(jax.grad(concentrated_objective))
    directions = step * jnp.eye(2)
    differences = [(objective(theta + d, X, Z, W) - objective(theta - d, X, Z, W)) / (2 * step) for d in directions]
    CENTRAL_DIFFERENCE.check(gradient(theta, X, Z, W), differences)
    differences = [(gradient(theta + d, X, Z, W) - gradient(theta - d, X, Z, W)) / (2 * step) for d in directions]
    hessian = jax.jit(jax.hessian(concentrated_objective))(theta, X, Z, W)
    CENTRAL_DIFFERENCE.check(hessian, differences)


def test_jacobian_of_concentrated_moments_is_the_projection_of_derivatives() -> None:
    X, Z, _ = random_equation(13)
    linear = linear_step(cross_moments((Z,), (X,)), random_psd(13, 5))
    theta = jnp.asarray([0.3, -0.2])

    def left_hand_side(theta: jax.Array) -> jax.Array:
        return jnp.exp(X @ theta / 4)

    def moments(theta: jax.Array) -> jax.Array:
        return linear.moments(iv.average_moments((Z,), (left_hand_side(theta),)))

    projected = linear.moments(average_moments((Z,), (jax.jacfwd(left_hand_side)(theta),)))
    LINEAR_ALGEBRA.check(jax.jit(jax.jacfwd(moments))(theta), projected)


def two_steps(X: jax.Array, Z: jax.Array, y: jax.Array, ids: jax.Array) -> tuple[iv.Inference, iv.ChiSquaredTest]:
    """Clustered two-step GMM with its J test."""
    A, b = iv.cross_moments((Z,), (X,)), iv.average_moments((Z,), (y,))
    beta = iv.linear_step(A, iv.initial_weights((Z,))).coefficients(b)
    W = iv.updated_weights(iv.moment_covariances((Z,), (y - X @ beta,), kind="clustered", cluster_ids=ids))
    linear = iv.linear_step(A, W)
    xi = y - X @ linear.coefficients(b)
    S = iv.moment_covariances((Z,), (xi,), kind="clustered", cluster_ids=ids)
    inference = iv.parameter_inference(-A, W, S, N=y.size, se_type="clustered", step=2)
    return inference, iv.hansen_test(linear.moments(b), W, N=y.size, parameters=X.shape[1])


@pytest.mark.slow
def test_a_batch_of_estimations_equals_the_estimations_one_by_one() -> None:
    samples = [random_equation(seed) for seed in (14, 15, 16)]
    ids = jnp.arange(40) // 2
    X, Z, y = (jnp.stack(arrays) for arrays in zip(*samples, strict=True))
    batch = jax.jit(jax.vmap(two_steps, in_axes=(0, 0, 0, None)))(X, Z, y, ids)
    one = jax.jit(two_steps)
    for i, sample in enumerate(samples):
        for batched, single in zip(jax.tree.leaves(batch), jax.tree.leaves(one(*sample, ids)), strict=True):
            LINEAR_ALGEBRA.check(batched[i], single)


# Covariances of moments


def test_names_of_clusters_do_not_matter() -> None:
    _, Z, y = random_equation(17)
    ids = np.arange(40) % 10
    names = np.asarray(np.random.default_rng(17).permutation(10))
    S = moment_covariances((Z,), (y,), kind="clustered", cluster_ids=ids, n_clusters=10)
    renamed = moment_covariances((Z,), (y,), kind="clustered", cluster_ids=names[ids], n_clusters=10)
    ROUNDING.check(renamed, S)
    default = moment_covariances((Z,), (y,), kind="clustered", cluster_ids=ids)
    ROUNDING.check(default, S)


@pytest.mark.parametrize("center", [True, False])
def test_a_cluster_per_row_is_robust(center: bool) -> None:
    _, Z, y = random_equation(18)
    clustered = moment_covariances((Z,), (y,), kind="clustered", center=center, cluster_ids=np.arange(40))
    robust = moment_covariances((Z,), (y,), kind="robust", center=center)
    ROUNDING.check(clustered, robust)


def test_moments_are_centred_before_they_are_summed_over_clusters() -> None:
    _, Z, y = random_equation(19)
    ids = np.repeat([0, 1, 2], [5, 15, 20])
    g = np.asarray(Z * y[:, None])
    sums = np.stack([(g - g.mean(axis=0))[ids == c].sum(axis=0) for c in range(3)])
    S = moment_covariances((Z,), (y,), kind="clustered", cluster_ids=np.asarray(ids))
    ROUNDING.check(S, sums.T @ sums / 40)


def test_centring_does_not_change_unadjusted_covariances_and_constants_do_not_count() -> None:
    _, Z, y = random_equation(20)
    S = moment_covariances((Z,), (y,), kind="unadjusted", center=True)
    ROUNDING.check(S, np.var(y) * Z.T @ Z / 40)
    shifted = moment_covariances((Z,), (y + 7,), kind="unadjusted", center=False)
    ROUNDING.check(shifted, S)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_numbers_of_copies(kind: str, center: bool) -> None:
    """Observations that count twice are as good as twice the observations, with clusters of their own."""
    X, Z, y = random_equation(17)
    ids, rng = np.arange(40) // 4, np.random.default_rng(3)
    counts = rng.multinomial(10, np.full(10, 0.1))[ids]
    rows = np.concatenate([np.flatnonzero(counts > copy) for copy in range(counts.max())])
    copies = np.concatenate([np.full((counts > copy).sum(), copy) for copy in range(counts.max())])
    names = np.unique(ids[rows] * 100 + copies, return_inverse=True)[1]
    w, residuals = counts.astype(float), y - X.sum(axis=1)

    ROUNDING.check(iv.cross_moments([Z], [X], w), iv.cross_moments([Z[rows]], [X[rows]]))
    ROUNDING.check(
        iv.average_moments([Z, Z], [y, X[:, 0]], w), iv.average_moments([Z[rows]] * 2, [y[rows], X[rows, 0]])
    )
    LINEAR_ALGEBRA.check(iv.initial_weights([Z], w), iv.initial_weights([Z[rows]]))
    mine = iv.moment_covariances([Z, Z[:, :2]], [y, residuals], kind=kind, center=center, cluster_ids=ids, weights=w)
    theirs = iv.moment_covariances(
        [Z[rows], Z[rows, :2]], [y[rows], residuals[rows]], kind=kind, center=center, cluster_ids=names
    )
    ROUNDING.check(mine, theirs)


def test_known_means_take_the_place_of_sample_means() -> None:
    _, Z, y = random_equation(18)
    mean = iv.average_moments([Z], [y])
    known = iv.moment_covariances([Z], [y], kind="robust", center=False, mean=mean)
    ROUNDING.check(known, iv.moment_covariances([Z], [y], kind="robust", center=True))


@pytest.mark.parametrize("ids", [np.arange(40) + 1, np.arange(40) - 1])
def test_cluster_ids_out_of_range_are_not_dropped(ids: np.ndarray) -> None:
    _, Z, y = random_equation(21)
    S = moment_covariances((Z,), (y,), kind="clustered", cluster_ids=np.asarray(ids))
    assert np.isnan(S).all()


# Hypothesis tests


@pytest.mark.parametrize(("statistic", "df"), [(0.5, 1), (12.0, 3), (90.0, 20)])
def test_p_values_are_chi_squared(statistic: float, df: int) -> None:
    result = distance_test(statistic + 4, 4, restrictions=df)
    LINEAR_ALGEBRA.check(result.p_value, scipy.stats.chi2.sf(statistic, df))
    assert result.degrees_of_freedom == df


def test_exactly_identified_models_have_no_p_value() -> None:
    result = hansen_test(np.zeros(3), np.eye(3), N=10, parameters=3)
    assert result.statistic == 0
    assert np.isnan(result.p_value)


def test_redundant_restrictions_count_once() -> None:
    V = random_psd(22, 3)
    r, R = np.asarray([0.3, -0.1]), np.asarray(np.random.default_rng(22).normal(size=(2, 3)))
    once = wald_test(r, R, V, N=50)
    twice = wald_test(np.append(r, r[0]), np.vstack([R, R[:1]]), V, N=50)
    LINEAR_ALGEBRA.check(twice.statistic, once.statistic)
    assert twice.degrees_of_freedom == once.degrees_of_freedom == 2


# Errors


@pytest.mark.parametrize(
    ("center", "weighted"),
    [
        pytest.param(center, weighted, marks=() if center == weighted else pytest.mark.slow)
        for center in (False, True)
        for weighted in (False, True)
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_gives_the_same_covariances_and_inference(kind: str, center: bool, weighted: bool) -> None:
    (X, Z, y), (_, Z_other, u) = random_equation(3), random_equation(4)
    ids = np.arange(len(y)) % 13
    weights = np.array([0.0, 1.0, 2.0])[ids % 3] if weighted else None
    options: dict[str, Any] = {"kind": kind, "center": center, "n_clusters": 13}
    S = iv.moment_covariances([Z, Z_other], [y, u], cluster_ids=ids, weights=weights, **options)
    expected = moment_covariances.compiled([Z, Z_other], [y, u], cluster_ids=ids, weights=weights, **options)
    assert isinstance(S, np.ndarray)
    ROUNDING.check(S, expected)
    G = iv.cross_moments([Z, Z_other], [X, X], weights)
    ROUNDING.check(G, cross_moments.compiled([Z, Z_other], [X, X], weights))
    W = iv.initial_weights([Z, Z_other], weights)
    LINEAR_ALGEBRA.check(W, initial_weights.compiled([Z, Z_other], weights))
    for step in (1, 2):
        found = iv.parameter_inference(G, W, S, N=40, se_type=kind, step=step)
        expected = parameter_inference.compiled(G, W, S, N=40, se_type=kind, step=step)
        assert all(isinstance(part, np.ndarray | np.generic) for part in jax.tree.leaves(found))
        jax.tree.map(LINEAR_ALGEBRA.check, found, jax.tree.map(np.asarray, expected))


def test_numpy_gives_the_same_where_matrices_are_singular_or_not_finite() -> None:
    singular = np.asarray(random_psd(2, 6, rank=4))
    LINEAR_ALGEBRA.check(iv.updated_weights(singular), updated_weights.compiled(singular))
    assert iv.numerical_rank(singular) == numerical_rank.compiled(singular) == 4
    X, Z, _ = random_equation(5)
    A = iv.cross_moments([Z], [X])
    for column in (A, np.zeros((A.shape[0], 0)), np.repeat(A[:, :1], 2, axis=1)):
        found, expected = iv.linear_step(column, np.eye(5)), linear_step.compiled(column, np.eye(5))
        LINEAR_ALGEBRA.check(found.moment_map, expected.moment_map)
        assert int(found.rank) == int(expected.rank)
    unknown = np.full((6, 6), np.nan)
    assert np.isnan(iv.updated_weights(unknown)).all() and np.isnan(iv.weight_factor(unknown)).any()
    ids = np.array([0, 1, 9, *[0] * 37])
    out = iv.moment_covariances([Z], [X[:, 0]], kind="clustered", cluster_ids=ids, n_clusters=3)
    assert np.isnan(out).all()


def test_unknown_kinds_are_refused() -> None:
    _, Z, y = random_equation(23)
    with pytest.raises(ValueError, match="kind must be 'robust', 'clustered' or 'unadjusted', not 'hc1'"):
        iv.moment_covariances((Z,), (y,), kind="hc1")
    with pytest.raises(ValueError, match="se_type must be 'robust', 'clustered' or 'unadjusted', not 'hc1'"):
        iv.parameter_inference(jnp.ones((3, 1)), jnp.eye(3), jnp.eye(3), N=40, se_type="hc1", step=1)


def test_step_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="step must be 1 for the first GMM step or 2 for the second, not 0"):
        iv.parameter_inference(jnp.ones((3, 1)), jnp.eye(3), jnp.eye(3), N=40, se_type="robust", step=0)


def test_clustered_covariances_need_cluster_ids() -> None:
    _, Z, y = random_equation(24)
    with pytest.raises(ValueError, match="Clustered covariances need cluster_ids"):
        iv.moment_covariances((Z,), (y,), kind="clustered")


def test_equations_must_have_equal_numbers_of_rows() -> None:
    _, Z, y = random_equation(25)
    with pytest.raises(ValueError, match="one entry per equation, but have 1 and 2 entries"):
        iv.average_moments((Z,), (y, y))
    with pytest.raises(ValueError, match="Equation 1 has 40 rows of instruments and 39 rows in residuals"):
        iv.moment_contributions((Z, Z), (y, y[:-1]))


def test_restrictions_of_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="restrictions_jacobian a 2 by 3 matrix"):
        iv.wald_test(jnp.zeros(2), jnp.zeros((2, 2)), jnp.eye(3), N=10)
    with pytest.raises(ValueError, match="restrictions must be a vector"):
        iv.wald_test(jnp.zeros((2, 1)), jnp.zeros((2, 3)), jnp.eye(3), N=10)
