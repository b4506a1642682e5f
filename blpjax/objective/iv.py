"""Linear IV-GMM, weighting matrices, covariances and specification tests.

Nothing here knows about demand: the functions take instruments, residuals and averaged moments, and work under
`jax.jit` and `jax.vmap`. Several equations (demand and supply) are sequences with one entry per equation; one equation
is a sequence of one. Only array shapes and what chooses a formula (`kind`, `se_type`, `step`, `center`, `n_clusters`)
are static. Equation numbers are those of the PyBLP documentation. Sums over observations can be weighted: `weights`
(N,) say how often each observation counts, as in a bootstrap sample, and N is then their sum.

Letters: N observations, M moments, K linear parameters, P parameters, E equations.

    g = moments (M,)            G = moments_jacobian (M, P)      A = Z'X / N (M, K)      b = Z'Y / N (M,)
    W = weighting matrix (M, M)  S = moment covariances (M, M)    L: W = L L' (M, M)
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

_KINDS = ("robust", "clustered", "unadjusted")


class LinearStep(eqx.Module):
    """The linear IV-GMM step as two constant matrices, so that everything it gives is linear in b.

    Computed once per weighting matrix by `linear_step` and reused at every evaluation of the objective.

    Attributes
    ----------
    coefficient_map : (K, M) matrix (A'WA)^{-1} A'W, which turns b into the coefficients.
    moment_map : (M, M) matrix I - A (A'WA)^{-1} A'W, which turns b into averaged moments.
    rank : numerical rank of L'A. Below K, the coefficients are not identified and those of least (scaled) norm are
        returned.
    """

    coefficient_map: Float[Array, "K M"]
    moment_map: Float[Array, "M M"]
    rank: Int[Array, ""]

    def coefficients(self, b: Float[Array, "M *R"]) -> Float[Array, "K *R"]:
        """Coefficients that minimise (b - A beta)' W (b - A beta), for one vector b or for each column of a matrix."""
        return self.coefficient_map @ b

    def moments(self, b: Float[Array, "M *R"]) -> Float[Array, "M *R"]:
        """Averaged moments b - A beta at these coefficients; for columns Z' dY / N, the Jacobian of these moments."""
        return self.moment_map @ b


class Inference(eqx.Module):
    """Asymptotic inference about P parameters.

    Attributes
    ----------
    covariances : (P, P) covariances of sqrt(N) times the estimation error.
    standard_errors : (P,) standard errors of the estimates, the square roots of the diagonal over N.
    sensitivity : (P, M) sensitivity of the estimates to the moments, -(G'WG)^{-1} G'W (Andrews, Gentzkow and Shapiro,
        2017).
    rank : numerical rank of L'G. Below P, the parameters are not locally identified and the covariances, which
        then come from a pseudo-inverse, mean nothing.
    """

    covariances: Float[Array, "P P"]
    standard_errors: Float[Array, " P"]
    sensitivity: Float[Array, "P M"]
    rank: Int[Array, ""]


class ChiSquaredTest(eqx.Module):
    """A test statistic that is asymptotically chi-squared under the null hypothesis.

    Attributes
    ----------
    statistic : the statistic.
    degrees_of_freedom : number of restrictions tested.
    p_value : probability of a larger statistic under the null hypothesis, NaN without degrees of freedom.
    """

    statistic: Float[Array, ""]
    degrees_of_freedom: Float[Array, ""]
    p_value: Float[Array, ""]


def linear_step(A: Float[Array, "M K"], W: Float[Array, "M M"]) -> LinearStep:
    """Prepare the linear IV-GMM step for a weighting matrix that may be singular. K may be zero.

    Source: equation (3.15); variable projection as in Golub and Pereyra (1973). Least squares on L'A instead of the
    normal equations, because these square the condition number. Derivatives with respect to b are exact. Those with
    respect to A and W exist only where the eigenvalues of the scaled W are distinct.
    """
    L = weight_factor(W)
    scaled_inverse, rank = _column_scaled_pseudo_inverse(L.T @ A)
    coefficient_map = scaled_inverse @ L.T
    return LinearStep(coefficient_map, jnp.eye(A.shape[0], dtype=A.dtype) - A @ coefficient_map, rank)


def weight_factor(W: Float[Array, "M M"]) -> Float[Array, "M M"]:
    """L with W = L L', from eigenvalues. W may be singular; eigenvalues that rounding made negative count as zero."""
    scaled, scale = _unit_diagonal(W)
    eigenvalues, vectors = jnp.linalg.eigh(scaled)
    # the square root would turn rounding errors of a singular W into weights of relative size 1e-8
    positive = ~(eigenvalues <= _tolerance(W.shape[0]) * eigenvalues.max())
    return vectors * jnp.sqrt(jnp.where(positive, eigenvalues, 0.0))[None, :] * scale[:, None]


def cross_moments(
    Z: Sequence[Float[Array, "_ _"]], X: Sequence[Float[Array, "_ _"]], weights: Float[Array, " N"] | None = None
) -> Float[Array, "M K"]:
    """A = Z'X / N, block diagonal over equations."""
    _check_equations(Z, X, "X")
    A: Array = jax.scipy.linalg.block_diag(*(_mean_product(z, x, weights) for z, x in zip(Z, X, strict=True)))
    return A


def average_moments(
    Z: Sequence[Float[Array, "_ _"]], Y: Sequence[Float[Array, "_ *R"]], weights: Float[Array, " N"] | None = None
) -> Float[Array, "M *R"]:
    """Z'Y / N stacked over equations, for residuals (N,) or for each column of derivatives (N, R). Equation (3.11)."""
    _check_equations(Z, Y, "Y")
    return jnp.concatenate([_mean_product(z, y, weights) for z, y in zip(Z, Y, strict=True)])


def initial_weights(Z: Sequence[Float[Array, "_ _"]], weights: Float[Array, " N"] | None = None) -> Float[Array, "M M"]:
    """The 2SLS weighting matrix: (Z'Z / N)^{-1}, block diagonal over equations. Equation (3.23).

    Collinear instruments get a pseudo-inverse. The linear step does not depend on which one.
    """
    W: Array = jax.scipy.linalg.block_diag(*(_scaled_inverse(_mean_product(z, z, weights))[0] for z in Z))
    return W


def updated_weights(S: Float[Array, "M M"]) -> Float[Array, "M M"]:
    """W = S^{-1}, equation (3.24), or the Moore-Penrose inverse of a singular S, as with fewer clusters than moments.

    Singularity is judged, and a regular S inverted, after scaling S to a unit diagonal, so that units of instruments do
    not matter.
    """
    inverse, rank = _scaled_inverse(S)
    M = S.shape[0]
    # The unscaled pseudo-inverse, with this tolerance, is what PyBLP gives for singular matrices.
    pseudo_inverse = jnp.linalg.pinv(S, rtol=M * float(np.finfo(S.dtype).eps))
    return jnp.where(rank == M, inverse, pseudo_inverse)


def numerical_rank(S: Float[Array, "M M"]) -> Int[Array, ""]:
    """Rank of a positive semidefinite matrix scaled to a unit diagonal.

    For S or Z'Z / N, a rank below M means that instruments are collinear, or clusters fewer than moments.
    """
    return _scaled_inverse(S)[1]


def moment_contributions(
    Z: Sequence[Float[Array, "_ _"]], residuals: Sequence[Float[Array, " _"]]
) -> Float[Array, "N M"]:
    """Contribution of each observation to each moment, its instruments times its residual. Equation (3.12)."""
    _check_equations(Z, residuals, "residuals")
    return jnp.concatenate([z * u[:, None] for z, u in zip(Z, residuals, strict=True)], axis=1)


def moment_covariances(
    Z: Sequence[Float[Array, "_ _"]],
    residuals: Sequence[Float[Array, " _"]],
    *,
    kind: str,
    center: bool = True,
    cluster_ids: Int[Array, " N"] | None = None,
    n_clusters: int | None = None,
    weights: Float[Array, " N"] | None = None,
    mean: Float[Array, " M"] | None = None,
) -> Float[Array, "M M"]:
    """Covariances S of the moments, jointly over equations, without small-sample factors. Equations (3.25)-(3.28).

    Parameters
    ----------
    Z : instruments of each equation, each with N rows.
    residuals : residuals (N,) of each equation.
    kind : 'robust' (heteroscedasticity), 'clustered', or 'unadjusted' (homoscedasticity; error covariances are centred
        and divided by N).
    center : whether to subtract each moment's mean, before contributions are summed over clusters. No effect on
        'unadjusted'.
    cluster_ids : (N,) integers from 0 to n_clusters - 1, for 'clustered'. Any other ID makes the result NaN.
    n_clusters : number of clusters; by default N, which is always enough and costs memory only.
    weights : how often each observation counts. Those of a cluster must be equal: a cluster that counts twice is two.
    mean : (M,) what is subtracted from contributions if they are not centred, by default nothing.

    Raises
    ------
    ValueError : unknown kind, or clustered covariances without cluster IDs.
    """
    check_kind(kind, "kind")
    N = Z[0].shape[0]
    if kind == "unadjusted":
        _check_equations(Z, residuals, "residuals")
        u = jnp.stack([u - _mean(u, weights) for u in residuals])
        error_covariances = _mean_product(u.T, u.T, weights)
        products = [[_products(Zi, Zj, weights) for Zj in Z] for Zi in Z]
        count = _count(Z[0], weights)
        blocks = [[error_covariances[i, j] * p / count for j, p in enumerate(row)] for i, row in enumerate(products)]
        return jnp.block(blocks)
    g = moment_contributions(Z, residuals)
    if center:
        g = g - _mean(g, weights)[None, :]
    elif mean is not None:
        g = g - mean[None, :]
    if kind == "robust":
        return _mean_product(g, g, weights)
    if cluster_ids is None:
        raise ValueError("Clustered covariances need cluster_ids: an integer for the cluster of each observation.")
    return _clustered(g, cluster_ids, N if n_clusters is None else n_clusters, weights)


def parameter_inference(
    G: Float[Array, "M P"],
    W: Float[Array, "M M"],
    S: Float[Array, "M M"],
    *,
    N: ArrayLike,
    se_type: str,
    step: int,
) -> Inference:
    """Covariances, standard errors and sensitivities of the estimates. Equations (3.30) and (3.31).

    Robust and clustered covariances are the sandwich (G'WG)^{-1} G'WSWG (G'WG)^{-1}. Unadjusted ones are (G'WG)^{-1}.
    They presume an optimal W, so in step one S^{-1} takes the place of W, here and in the sensitivity, whatever W was.

    Parameters
    ----------
    G : (M, P) Jacobian of the averaged moments, with columns for nonlinear and for linear parameters.
    W : (M, M) weighting matrix used in estimation.
    S : (M, M) covariances of the moments at the estimates, of kind `se_type`.
    N : number of observations.
    se_type : 'robust', 'clustered' or 'unadjusted'.
    step : 1 for one-step GMM or the first step, 2 for the second.

    Raises
    ------
    ValueError : unknown se_type, or a step below 1.
    """
    check_kind(se_type, "se_type")
    if step < 1:
        raise ValueError(f"step must be 1 for the first GMM step or 2 for the second, not {step}.")
    unadjusted = se_type == "unadjusted"
    L = weight_factor(updated_weights(S) if unadjusted and step == 1 else W)
    inverse, rank = _column_scaled_pseudo_inverse(L.T @ G)
    # Without identification any choice is arbitrary: PyBLP's is the pseudo-inverse of G'WG, unscaled.
    P = G.shape[1]
    arbitrary = jnp.linalg.pinv(G.T @ L @ L.T @ G, rtol=P * jnp.finfo(G.dtype).eps, hermitian=True) @ G.T @ L
    inverse = jnp.where(rank == P, inverse, arbitrary)
    coefficient_map = inverse @ L.T
    covariances = inverse @ inverse.T if unadjusted else coefficient_map @ S @ coefficient_map.T
    covariances = (covariances + covariances.T) / 2
    return Inference(covariances, standard_errors(covariances, N), -coefficient_map, rank)


def standard_errors(covariances: Float[Array, "P P"], N: ArrayLike) -> Float[Array, " P"]:
    """Square roots of the diagonal of the covariances of sqrt(N) times the estimation error, divided by N."""
    return jnp.sqrt(jnp.diagonal(covariances) / N)


def hansen_test(
    moments: Float[Array, " M"], W: Float[Array, "M M"], *, N: ArrayLike, parameters: ArrayLike
) -> ChiSquaredTest:
    """Hansen (1982) test of overidentifying restrictions, J = N g'Wg, at an optimal W.

    Degrees of freedom are the number of moments over that of `parameters`, estimated and concentrated out alike.
    """
    return _chi_squared_test(jnp.asarray(N) * (moments @ W @ moments), moments.shape[0] - jnp.asarray(parameters))


def distance_test(restricted: ArrayLike, unrestricted: ArrayLike, *, restrictions: ArrayLike) -> ChiSquaredTest:
    """Newey and West (1987) distance test: J statistic of the restricted less that of the unrestricted estimates."""
    return _chi_squared_test(jnp.asarray(restricted, float) - jnp.asarray(unrestricted, float), restrictions)


def lm_test(
    moments: Float[Array, " M"],
    G: Float[Array, "M P"],
    W: Float[Array, "M M"],
    covariances: Float[Array, "P P"],
    *,
    N: ArrayLike,
    restrictions: ArrayLike,
) -> ChiSquaredTest:
    """Newey and West (1987) Lagrange multiplier test, N g'WG V G'Wg, at restricted estimates and an optimal W.

    G and V (`covariances`) include the parameters that the restrictions hold fixed.
    """
    score = G.T @ (W @ moments)
    return _chi_squared_test(jnp.asarray(N) * (score @ covariances @ score), restrictions)


def wald_test(
    restrictions: Float[Array, "..."],
    restrictions_jacobian: Float[Array, "..."],
    covariances: Float[Array, "P P"],
    *,
    N: ArrayLike,
) -> ChiSquaredTest:
    """Newey and West (1987) Wald test of r(theta) = 0, N r' (R V R')^{-1} r.

    One degree of freedom per restriction. Redundant restrictions get a pseudo-inverse and are counted once.

    Parameters
    ----------
    restrictions : (R,) restrictions at the estimates.
    restrictions_jacobian : (R, P) their Jacobian with respect to the parameters.
    covariances : (P, P) covariances of sqrt(N) times the estimation error.
    N : number of observations.

    Raises
    ------
    ValueError : the restrictions and their Jacobian have the wrong shape.
    """
    expected = (restrictions.size, covariances.shape[0])
    if restrictions.ndim != 1 or restrictions_jacobian.shape != expected:
        raise ValueError(
            f"restrictions must be a vector and restrictions_jacobian a {expected[0]} by {expected[1]} matrix "
            f"(restrictions by parameters), not of shapes {restrictions.shape} and {restrictions_jacobian.shape}."
        )
    inverse, rank = _scaled_inverse(restrictions_jacobian @ covariances @ restrictions_jacobian.T)
    return _chi_squared_test(jnp.asarray(N) * (restrictions @ inverse @ restrictions), rank)


def check_kind(kind: str, name: str) -> None:
    """Raise a ValueError unless `kind`, the value of the argument `name`, is 'robust', 'clustered' or 'unadjusted'."""
    if kind not in _KINDS:
        raise ValueError(f"{name} must be 'robust', 'clustered' or 'unadjusted', not {kind!r}.")


def _check_equations(Z: Sequence[Array], values: Sequence[Array], name: str) -> None:
    """One entry of `values` per equation, with as many rows as the instruments."""
    if len(Z) != len(values) or not Z:
        raise ValueError(f"Z and {name} must have one entry per equation, but have {len(Z)} and {len(values)} entries.")
    for equation, (z, value) in enumerate(zip(Z, values, strict=True)):
        if z.shape[0] != Z[0].shape[0] or value.shape[0] != z.shape[0]:
            raise ValueError(
                f"Equation {equation} has {z.shape[0]} rows of instruments and {value.shape[0]} rows in {name}, "
                f"where the first equation has {Z[0].shape[0]} rows of instruments; all must be equal."
            )


def _mean_product(
    left: Float[Array, "N L"], right: Float[Array, "N *R"], weights: Float[Array, " N"] | None
) -> Float[Array, "L *R"]:
    """Mean over observations of products of columns."""
    return _products(left, right, weights) / _count(left, weights)


def _products(
    left: Float[Array, "N L"], right: Float[Array, "N *R"], weights: Float[Array, " N"] | None
) -> Float[Array, "L *R"]:
    return (left if weights is None else left * weights[:, None]).T @ right


def _count(values: Float[Array, "N _"], weights: Float[Array, " N"] | None) -> ArrayLike:
    """N, or the sum of weights."""
    return values.shape[0] if weights is None else weights.sum()


def _mean(values: Float[Array, "N *R"], weights: Float[Array, " N"] | None) -> Float[Array, "*R"]:
    return values.mean(axis=0) if weights is None else weights @ values / weights.sum()


def _clustered(
    g: Float[Array, "N M"], cluster_ids: Int[Array, " N"], n_clusters: int, weights: Float[Array, " N"] | None
) -> Float[Array, "M M"]:
    sums = jax.ops.segment_sum(g, cluster_ids, num_segments=n_clusters)
    # segment_sum drops observations whose ID is out of range. NaN, rather than covariances without them.
    valid = jnp.all((cluster_ids >= 0) & (cluster_ids < n_clusters))
    if weights is None:
        return jnp.where(valid, sums.T @ sums / g.shape[0], jnp.nan)
    drawn = jnp.maximum(jax.ops.segment_max(weights, cluster_ids, num_segments=n_clusters), 0.0)
    return jnp.where(valid, (sums * drawn[:, None]).T @ sums / weights.sum(), jnp.nan)


def _unit_diagonal(S: Float[Array, "M M"]) -> tuple[Float[Array, "M M"], Float[Array, " M"]]:
    """S scaled to a unit diagonal, and the scale. Unscaled, eigenvalues of moments in small units drown in rounding."""
    diagonal = jnp.diagonal(S)
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    return S / scale[:, None] / scale[None, :], scale


def _scaled_inverse(S: Float[Array, "M M"]) -> tuple[Float[Array, "M M"], Int[Array, ""]]:
    """Inverse of S from those eigenvalues of the scaled S that are not zero up to rounding, and their number."""
    scaled, scale = _unit_diagonal(S)
    eigenvalues, vectors = jnp.linalg.eigh(scaled)
    inverses, rank = _reciprocals(eigenvalues, S.shape[0])
    return (vectors * inverses[None, :]) @ vectors.T / scale[:, None] / scale[None, :], rank


def _column_scaled_pseudo_inverse(X: Float[Array, "M K"]) -> tuple[Float[Array, "K M"], Int[Array, ""]]:
    """Pseudo-inverse of X, by singular values of X with columns of unit length, and its rank."""
    M, K = X.shape
    if K == 0:
        return jnp.zeros((0, M), X.dtype), jnp.asarray(0)
    norms = jnp.linalg.norm(X, axis=0)
    scale = jnp.where(norms > 0, norms, 1.0)
    left, singular_values, right = jnp.linalg.svd(X / scale[None, :], full_matrices=False)
    inverses, rank = _reciprocals(singular_values, max(M, K))
    return (right.T * inverses[None, :]) @ left.T / scale[:, None], rank


def _tolerance(size: int) -> float:
    """Relative size below which an eigenvalue or a singular value is zero up to rounding."""
    return 10 * size * float(jnp.finfo(jnp.float64).eps)


def _reciprocals(values: Float[Array, " K"], size: int) -> tuple[Float[Array, " K"], Int[Array, ""]]:
    """Reciprocals of values that are positive beyond rounding, zero for the others and NaN, and how many are."""
    positive = values > 10 * size * float(np.finfo(values.dtype).eps) * values.max()
    return jnp.where(positive, 1.0 / jnp.where(positive, values, 1.0), 0.0), jnp.sum(positive)


def _chi_squared_test(statistic: Float[Array, ""], degrees_of_freedom: ArrayLike) -> ChiSquaredTest:
    df = jnp.asarray(degrees_of_freedom, dtype=statistic.dtype)
    # The distribution is undefined without degrees of freedom: evaluate it at one, then mask.
    p_value = jax.lax.igammac(jnp.where(df > 0, df, 1.0) / 2, jnp.maximum(statistic, 0.0) / 2)
    return ChiSquaredTest(statistic, df, jnp.where(df > 0, p_value, jnp.nan))
