"""Linear IV-GMM, weighting matrices, covariances and specification tests.

Nothing here knows about demand: the functions take instruments, residuals and averaged moments, and work under
`jax.jit` and `jax.vmap`. Given nothing but NumPy's arrays they compute with NumPy, and nothing is compiled.

Several equations (demand and supply) are sequences with one entry per equation; one equation is a sequence of one.
Only array shapes and what chooses a formula (`kind`, `se_type`, `step`, `center`, `n_clusters`) are static. Equation
numbers are those of the PyBLP documentation. Sums over observations can be weighted: `weights` (N,) say how often
each observation counts, as in a bootstrap sample, and N is then their sum.

Letters: N observations, M moments, K linear parameters, P parameters, E equations.

    g = moments (M,)            G = moments_jacobian (M, P)      A = Z'X / N (M, K)      b = Z'Y / N (M,)
    W = weighting matrix (M, M)  S = moment covariances (M, M)    L: W = L L' (M, M)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from blpjax.kernels.arrays import namespace, on_host
from blpjax.machine.compilation import filtered_program
from blpjax.objective.clusters import Counts, clustered_products, crossed_products

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

    coefficient_map: Float[Any, "K M"]
    moment_map: Float[Any, "M M"]
    rank: Int[Any, ""]

    def coefficients(self, b: Float[Any, "M *R"]) -> Float[Any, "K *R"]:
        """Coefficients that minimise (b - A beta)' W (b - A beta), for one vector b or for each column of a matrix."""
        return self.coefficient_map @ b

    def moments(self, b: Float[Any, "M *R"]) -> Float[Any, "M *R"]:
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

    covariances: Float[Any, "P P"]
    standard_errors: Float[Any, " P"]
    sensitivity: Float[Any, "P M"]
    rank: Int[Any, ""]


class ChiSquaredTest(eqx.Module):
    """A test statistic that is asymptotically chi-squared under the null hypothesis.

    Attributes
    ----------
    statistic : the statistic.
    degrees_of_freedom : number of restrictions tested.
    p_value : probability of a larger statistic under the null hypothesis, NaN without degrees of freedom.
    """

    statistic: Float[Any, ""]
    degrees_of_freedom: Float[Any, ""]
    p_value: Float[Any, ""]


def linear_step(A: Float[Any, "M K"], W: Float[Any, "M M"]) -> LinearStep:
    """Prepare the linear IV-GMM step for a weighting matrix that may be singular. K may be zero.

    Source: equation (3.15); variable projection as in Golub and Pereyra (1973). Least squares on L'A instead of the
    normal equations, because these square the condition number. Derivatives with respect to b are exact. Those with
    respect to A and W exist only where the eigenvalues of the scaled W are distinct.
    """
    L = weight_factor(W)
    scaled_inverse, rank = _column_scaled_pseudo_inverse(L.T @ A)
    coefficient_map = scaled_inverse @ L.T
    return LinearStep(coefficient_map, namespace(A, W).eye(A.shape[0], dtype=A.dtype) - A @ coefficient_map, rank)


def weight_factor(W: Float[Any, "M M"]) -> Float[Any, "M M"]:
    """L with W = L L', from eigenvalues. W may be singular; eigenvalues that rounding made negative count as zero."""
    xp = namespace(W)
    scaled, scale = _unit_diagonal(W)
    eigenvalues, vectors = _decompose(xp.linalg.eigh, scaled)
    # the square root would turn rounding errors of a singular W into weights of relative size 1e-8
    positive = ~(eigenvalues <= _tolerance(W.shape[0]) * eigenvalues.max())
    return vectors * xp.sqrt(xp.where(positive, eigenvalues, 0.0))[None, :] * scale[:, None]


def cross_moments(
    Z: Sequence[Float[Any, "_ _"]], X: Sequence[Float[Any, "_ _"]], weights: Float[Any, " N"] | None = None
) -> Float[Any, "M K"]:
    """A = Z'X / N, block diagonal over equations."""
    _check_equations(Z, X, "X")
    return block_diagonal([_mean_product(z, x, weights) for z, x in zip(Z, X, strict=True)])


def average_moments(
    Z: Sequence[Float[Any, "_ _"]], Y: Sequence[Float[Any, "_ *R"]], weights: Float[Any, " N"] | None = None
) -> Float[Any, "M *R"]:
    """Z'Y / N stacked over equations, for residuals (N,) or for each column of derivatives (N, R). Equation (3.11)."""
    _check_equations(Z, Y, "Y")
    return namespace(*Z, *Y).concatenate([_mean_product(z, y, weights) for z, y in zip(Z, Y, strict=True)])


def initial_weights(Z: Sequence[Float[Any, "_ _"]], weights: Float[Any, " N"] | None = None) -> Float[Any, "M M"]:
    """The 2SLS weighting matrix: (Z'Z / N)^{-1}, block diagonal over equations. Equation (3.23).

    Collinear instruments get a pseudo-inverse. The linear step does not depend on which one.
    """
    return block_diagonal([_scaled_inverse(_mean_product(z, z, weights))[0] for z in Z])


def updated_weights(S: Float[Any, "M M"]) -> Float[Any, "M M"]:
    """W = S^{-1}, equation (3.24), or the Moore-Penrose inverse of a singular S, as with fewer clusters than moments.

    Singularity is judged, and a regular S inverted, after scaling S to a unit diagonal, so that units of instruments do
    not matter.
    """
    inverse, rank = _scaled_inverse(S)
    M = S.shape[0]
    # The unscaled pseudo-inverse, with this tolerance, is what PyBLP gives for singular matrices.
    xp = namespace(S)
    pseudo_inverse = _decompose(partial(xp.linalg.pinv, rtol=M * float(np.finfo(S.dtype).eps)), S)
    W = xp.where(rank == M, inverse, pseudo_inverse)
    return (W + W.T) / 2


def positive_part(S: Float[Any, "M M"], scale: Float[Any, " M"]) -> Float[Any, "M M"]:
    """S with zeros in place of negative eigenvalues, those of S in units in which all of `scale` (M,) are one.

    Covariances that are clustered by several kinds of clusters may have some (Cameron, Gelbach and Miller 2011).
    """
    xp = namespace(S, scale)
    units = xp.sqrt(xp.where(scale > 0, scale, 1.0))
    eigenvalues, vectors = _decompose(xp.linalg.eigh, S / units[:, None] / units[None, :])
    clipped = (vectors * xp.where(eigenvalues < 0, 0.0, eigenvalues)[None, :]) @ vectors.T
    # nothing changes where there is nothing to clip
    return xp.where((eigenvalues < 0).any(), clipped * units[:, None] * units[None, :], S)


def numerical_rank(S: Float[Any, "M M"]) -> Int[Any, ""]:
    """Rank of a positive semidefinite matrix scaled to a unit diagonal.

    For S or Z'Z / N, a rank below M means that instruments are collinear, or clusters fewer than moments.
    """
    return _scaled_inverse(S)[1]


def moment_contributions(Z: Sequence[Float[Any, "_ _"]], residuals: Sequence[Float[Any, " _"]]) -> Float[Any, "N M"]:
    """Contribution of each observation to each moment, its instruments times its residual. Equation (3.12)."""
    _check_equations(Z, residuals, "residuals")
    return namespace(*Z, *residuals).concatenate([z * u[:, None] for z, u in zip(Z, residuals, strict=True)], axis=1)


def moment_covariances(
    Z: Sequence[Float[Any, "_ _"]],
    residuals: Sequence[Float[Any, " _"]],
    *,
    kind: str,
    center: bool = True,
    cluster_ids: Int[Any, "N *G"] | None = None,
    n_clusters: Counts | None = None,
    weights: Float[Any, " N"] | None = None,
    drawn: Float[Any, "N kinds"] | None = None,
    mean: Float[Any, " M"] | None = None,
) -> Float[Any, "M M"]:
    """Covariances S of the moments, jointly over equations, without small-sample factors. Equations (3.25)-(3.28).

    Parameters
    ----------
    Z : instruments of each equation, each with N rows.
    residuals : residuals (N,) of each equation.
    kind : 'robust' (heteroscedasticity), 'clustered', or 'unadjusted' (homoscedasticity; error covariances are centred
        and divided by N).
    center : whether to subtract each moment's mean, before contributions are summed over clusters. No effect on
        'unadjusted'.
    cluster_ids : (N,) integers from 0 to n_clusters - 1, for 'clustered'. Any other ID makes the result NaN. With
        several kinds of clusters (N, G) of them, see `blpjax.objective.clusters`. S may then have negative eigenvalues.
    n_clusters : number of clusters, or G of them; for one kind by default N, which is always enough and costs memory.
    weights : how often each observation counts. Those of a cluster must be equal: a cluster that counts twice is two.
    drawn : how often each observation's cluster of each kind counts, where `weights` are the products of these.
    mean : (M,) what is subtracted from contributions if they are not centred, by default nothing.

    Raises
    ------
    ValueError : unknown kind, or clustered covariances without cluster IDs.
    """
    check_kind(kind, "kind")
    N = Z[0].shape[0]
    if kind == "unadjusted":
        _check_equations(Z, residuals, "residuals")
        xp = namespace(*Z, *residuals)
        u = xp.stack([u - _mean(u, weights) for u in residuals])
        error_covariances = _mean_product(u.T, u.T, weights)
        products = [[_products(Zi, Zj, weights) for Zj in Z] for Zi in Z]
        count = _count(Z[0], weights)
        blocks = [[error_covariances[i, j] * p / count for j, p in enumerate(row)] for i, row in enumerate(products)]
        return xp.block(blocks)
    g = moment_contributions(Z, residuals)
    if center:
        g = g - _mean(g, weights)[None, :]
    elif mean is not None:
        g = g - mean[None, :]
    if kind == "robust":
        return _mean_product(g, g, weights)
    if cluster_ids is None:
        raise ValueError("Clustered covariances need cluster_ids: an integer for the cluster of each observation.")
    return _clustered(g, cluster_ids, N if n_clusters is None else n_clusters, weights, drawn)


def parameter_inference(
    G: Float[Any, "M P"],
    W: Float[Any, "M M"],
    S: Float[Any, "M M"],
    *,
    N: ArrayLike,
    se_type: str,
    step: int,
    robust: Float[Any, "M M"] | None = None,
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
    robust : where S may have negative eigenvalues, robust covariances of the moments, which have none. Negative
        eigenvalues of covariances of parameters, in the units that these give, are then set to zero.

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
    P, xp = G.shape[1], namespace(G, W, S)
    invert = partial(xp.linalg.pinv, rtol=P * float(np.finfo(G.dtype).eps), hermitian=True)
    inverse = xp.where(rank == P, inverse, _decompose(invert, G.T @ L @ L.T @ G) @ G.T @ L)
    coefficient_map = inverse @ L.T
    covariances = inverse @ inverse.T if unadjusted else coefficient_map @ S @ coefficient_map.T
    covariances = (covariances + covariances.T) / 2
    if robust is not None:
        covariances = positive_part(covariances, xp.diagonal(coefficient_map @ robust @ coefficient_map.T))
    return Inference(covariances, standard_errors(covariances, N), -coefficient_map, rank)


def standard_errors(covariances: Float[Any, "P P"], N: ArrayLike) -> Float[Any, " P"]:
    """Square roots of the diagonal of the covariances of sqrt(N) times the estimation error, divided by N."""
    xp = namespace(covariances)
    return xp.sqrt(xp.diagonal(covariances) / N)


@filtered_program(effort=0, what="a test statistic")
def hansen_test(
    moments: Float[Any, " M"], W: Float[Any, "M M"], *, N: ArrayLike, parameters: ArrayLike
) -> ChiSquaredTest:
    """Hansen (1982) test of overidentifying restrictions, J = N g'Wg, at an optimal W.

    Degrees of freedom are the number of moments over that of `parameters`, estimated and concentrated out alike.
    """
    return _chi_squared_test(jnp.asarray(N) * (moments @ W @ moments), moments.shape[0] - jnp.asarray(parameters))


@filtered_program(effort=0, what="a test statistic")
def distance_test(restricted: ArrayLike, unrestricted: ArrayLike, *, restrictions: ArrayLike) -> ChiSquaredTest:
    """Newey and West (1987) distance test: J statistic of the restricted less that of the unrestricted estimates."""
    return _chi_squared_test(jnp.asarray(restricted, float) - jnp.asarray(unrestricted, float), restrictions)


@filtered_program(effort=0, what="a test statistic")
def lm_test(
    moments: Float[Any, " M"],
    G: Float[Any, "M P"],
    W: Float[Any, "M M"],
    covariances: Float[Any, "P P"],
    *,
    N: ArrayLike,
    restrictions: ArrayLike,
) -> ChiSquaredTest:
    """Newey and West (1987) Lagrange multiplier test, N g'WG V G'Wg, at restricted estimates and an optimal W.

    G and V (`covariances`) include the parameters that the restrictions hold fixed.
    """
    score = G.T @ (W @ moments)
    return _chi_squared_test(jnp.asarray(N) * (score @ covariances @ score), restrictions)


@filtered_program(effort=0, what="a test statistic")
def wald_test(
    restrictions: Float[Any, "..."],
    restrictions_jacobian: Float[Any, "..."],
    covariances: Float[Any, "P P"],
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


def _check_equations(Z: Sequence[Any], values: Sequence[Any], name: str) -> None:
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
    left: Float[Any, "N L"], right: Float[Any, "N *R"], weights: Float[Any, " N"] | None
) -> Float[Any, "L *R"]:
    """Mean over observations of products of columns."""
    return _products(left, right, weights) / _count(left, weights)


def _products(
    left: Float[Any, "N L"], right: Float[Any, "N *R"], weights: Float[Any, " N"] | None
) -> Float[Any, "L *R"]:
    return (left if weights is None else left * weights[:, None]).T @ right


def _count(values: Float[Any, "N _"], weights: Float[Any, " N"] | None) -> ArrayLike:
    """N, or the sum of weights."""
    return values.shape[0] if weights is None else weights.sum()


def _mean(values: Float[Any, "N *R"], weights: Float[Any, " N"] | None) -> Float[Any, "*R"]:
    return values.mean(axis=0) if weights is None else weights @ values / weights.sum()


def _clustered(
    g: Float[Any, "N M"],
    ids: Int[Any, "N *G"],
    counts: Counts,
    weights: Float[Any, " N"] | None,
    drawn: Float[Any, "N kinds"] | None,
) -> Float[Any, "M M"]:
    """Covariances of contributions that are correlated within clusters of one or several kinds."""
    if not isinstance(counts, tuple):
        return clustered_products(g, ids, counts, weights) / _count(g, weights)
    return crossed_products(g, ids, counts, weights, drawn) / _count(g, weights)


def block_diagonal(blocks: Sequence[Any]) -> Any:
    """A block-diagonal matrix."""
    if not on_host(*blocks):
        joint: Array = jax.scipy.linalg.block_diag(*blocks)
        return joint
    found = np.zeros(np.sum([block.shape for block in blocks], axis=0))
    row = column = 0
    for block in blocks:
        found[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return found


def _decompose(function: Callable[[Any], Any], matrix: Any) -> Any:
    """A function of a matrix that fails in NumPy where it gives NaN in JAX: for what is not finite."""
    if not on_host(matrix) or np.isfinite(matrix).all():
        return function(matrix)
    return jax.tree.map(lambda part: np.full_like(part, np.nan), function(np.zeros_like(matrix)))


def _unit_diagonal(S: Float[Any, "M M"]) -> tuple[Float[Any, "M M"], Float[Any, " M"]]:
    """S scaled to a unit diagonal, and the scale. Unscaled, eigenvalues of moments in small units drown in rounding."""
    xp = namespace(S)
    diagonal = xp.diagonal(S)
    scale = xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0))
    return S / scale[:, None] / scale[None, :], scale


def _scaled_inverse(S: Float[Any, "M M"]) -> tuple[Float[Any, "M M"], Int[Any, ""]]:
    """Inverse of S from those eigenvalues of the scaled S that are not zero up to rounding, and their number."""
    scaled, scale = _unit_diagonal(S)
    eigenvalues, vectors = _decompose(namespace(S).linalg.eigh, scaled)
    inverses, rank = _reciprocals(eigenvalues, S.shape[0])
    inverse = (vectors * inverses[None, :]) @ vectors.T / scale[:, None] / scale[None, :]
    # exactly symmetric, as weighting matrices that users give are made: a step repeated with its W is the same
    return (inverse + inverse.T) / 2, rank


def _column_scaled_pseudo_inverse(X: Float[Any, "M K"]) -> tuple[Float[Any, "K M"], Int[Any, ""]]:
    """Pseudo-inverse of X, by singular values of X with columns of unit length, and its rank."""
    (M, K), xp = X.shape, namespace(X)
    if K == 0:
        return xp.zeros((0, M), X.dtype), xp.asarray(0)
    norms = xp.linalg.norm(X, axis=0)
    scale = xp.where(norms > 0, norms, 1.0)
    left, singular_values, right = _decompose(partial(xp.linalg.svd, full_matrices=False), X / scale[None, :])
    inverses, rank = _reciprocals(singular_values, max(M, K))
    return (right.T * inverses[None, :]) @ left.T / scale[:, None], rank


def _tolerance(size: int) -> float:
    """Relative size below which an eigenvalue or a singular value is zero up to rounding."""
    return 10 * size * float(jnp.finfo(jnp.float64).eps)


def _reciprocals(values: Float[Any, " K"], size: int) -> tuple[Float[Any, " K"], Int[Any, ""]]:
    """Reciprocals of values that are positive beyond rounding, zero for the others and NaN, and how many are."""
    positive = values > 10 * size * float(np.finfo(values.dtype).eps) * values.max()
    xp = namespace(values)
    return xp.where(positive, 1.0 / xp.where(positive, values, 1.0), 0.0), xp.sum(positive)


def _chi_squared_test(statistic: Float[Any, ""], degrees_of_freedom: ArrayLike) -> ChiSquaredTest:
    df = jnp.asarray(degrees_of_freedom, dtype=statistic.dtype)
    # The distribution is undefined without degrees of freedom: evaluate it at one, then mask.
    p_value = jax.lax.igammac(jnp.where(df > 0, df, 1.0) / 2, jnp.maximum(statistic, 0.0) / 2)
    return ChiSquaredTest(statistic, df, jnp.where(df > 0, p_value, jnp.nan))
