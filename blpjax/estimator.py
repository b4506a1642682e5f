"""Compiled programs of estimation, and one GMM step: optimise, then covariances and diagnostics at the optimum.

Each program is compiled once for a shape of economy and a specification, and reused by every evaluation, start and GMM
step: data, weighting matrices, bounds and tolerances are traced.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Float, Int

from blpjax import gmm, moments
from blpjax.compilation import program
from blpjax.iteration import FixedPointMethod
from blpjax.moments import Evaluation, MomentInputs, Specification

#: First-order predictions of mean utilities are used when no element moves by more than this.
FARTHEST_PREDICTION = 5.0

#: Columns of the Hessian are computed together as long as they hold fewer numbers than this.
HESSIAN_ELEMENTS = 2**25


class CovarianceTypes(NamedTuple):
    """How covariances of moments are estimated (static)."""

    W_type: str = "robust"
    se_type: str = "robust"
    center_moments: bool = True
    n_clusters: int | None = None


class StructuralErrors(eqx.Module):
    """All elements of beta (K1,) and the linear part of utility that they explain, ``X1 beta`` (N,), residualised."""

    beta: Float[Array, " K1"]
    explained: Float[Array, " N"]


class StepSummary(eqx.Module):
    """What a GMM step reports beside theta.

    Parameters are stacked as theta and then the concentrated elements of beta, P + K of them. `moments` (M,),
    `moments_jacobian` (M, P + K), `moments_covariances` (M, M), `updated_W` (M, M), `inference` with covariances
    (P + K, P + K), and `covariances_rank`, the numerical rank of the moments' covariances.
    """

    parameters: Float[Array, " P"]
    moments: Float[Array, " M"]
    moments_jacobian: Float[Array, "M P"]
    moments_covariances: Float[Array, "M M"]
    updated_W: Float[Array, "M M"]
    inference: gmm.Inference
    covariances_rank: Int[Array, ""]


evaluate = program(effort=1, static_argnums=0)(moments.evaluate)

#: Inputs of `evaluate` at a weighting matrix.
prepare = program(effort=0, static_argnums=0)(moments.make_inputs)


@program(effort=0)
def initial_weights(Z: Float[Array, "N M"]) -> Float[Array, "M M"]:
    """Weighting matrix of 2SLS."""
    return gmm.initial_weights([Z])


@program(effort=0)
def predict_delta(
    delta: Float[Array, " N"], by_theta: Float[Array, "N P"], step: Float[Array, " P"], otherwise: Float[Array, " N"]
) -> Float[Array, " N"]:
    """Where to start an inversion: ``delta + (d delta / d theta) step``, or `otherwise` when that is far away."""
    change = by_theta @ step
    return jnp.where(jnp.abs(change).max() <= FARTHEST_PREDICTION, delta + change, otherwise)


def hessian(
    specification: Specification,
    inputs: MomentInputs,
    theta: Float[Array, " P"],
    delta: Float[Array, " N"],
    progress: bool = False,
) -> Float[Array, "P P"]:
    """Exact Hessian of the objective at theta and its mean utilities `delta`: forward over reverse mode.

    Columns are computed a few at a time where memory asks for it; `progress` shows a bar then.
    """
    P = theta.size
    elements = sum(bucket.shares.size * bucket.weights.shape[1] for bucket in inputs.economy.buckets)
    columns = max(1, min(P, HESSIAN_ELEMENTS // max(elements, 1)))
    batches = -(-P // columns)
    directions = np.eye(batches * columns, P).reshape(batches, columns, P)
    bar = tqdm.tqdm(directions, desc="Hessian", disable=not progress or batches == 1)
    rows = jnp.concatenate([_hessian_rows(specification, inputs, theta, delta, batch) for batch in bar])[:P]
    return (rows + rows.T) / 2


@program(effort=1, static_argnums=0)
def _hessian_rows(
    specification: Specification,
    inputs: MomentInputs,
    theta: Float[Array, " P"],
    delta: Float[Array, " N"],
    directions: Float[Array, "B P"],
) -> Float[Array, "B P"]:
    # derivatives need the solution of the inversion, not the loop that finds it, so the program has none
    solved = specification._replace(method=FixedPointMethod("return"))
    gradient = jax.grad(lambda values: moments.objective(solved, inputs, values, delta))
    _, push = jax.linearize(gradient, theta)
    return jax.vmap(push)(directions)


@program(effort=0, static_argnums=0)
def structural_errors(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], delta: Float[Array, " N"]
) -> StructuralErrors:
    """Beta at theta, and what it explains of delta."""
    beta = moments.concentrated_beta(specification, inputs, theta, delta)
    return StructuralErrors(beta, inputs.data.X1 @ beta)


@program(effort=0, static_argnums=(0, 1, 2))
def summarise(
    specification: Specification,
    types: CovarianceTypes,
    step: int,
    inputs: MomentInputs,
    theta: Float[Array, " P"],
    evaluation: Evaluation,
    beta: Float[Array, " K1"],
    xi: Float[Array, " N"],
    W: Float[Array, "M M"],
    cluster_ids: Int[Array, " N"],
) -> StepSummary:
    """Moments, their Jacobian and covariances, and inference about all parameters, at residualised xi (N,)."""
    data, concentrated = inputs.data, list(specification.layout.concentrated_beta)
    N = xi.size
    averaged = gmm.average_moments([data.Z], [xi])
    by_theta = gmm.average_moments([data.Z], [evaluation.xi_by_theta])
    G = jnp.concatenate([by_theta, -gmm.cross_moments([data.Z], [data.X1[:, concentrated]])], axis=1)

    def covariances(kind: str) -> Array:
        return gmm.moment_covariances(
            [data.instruments],
            [xi],
            kind=kind,
            center=types.center_moments,
            cluster_ids=cluster_ids,
            n_clusters=types.n_clusters,
        )

    S = covariances(types.se_type)
    S_for_W = S if types.W_type == types.se_type else covariances(types.W_type)
    inference = gmm.parameter_inference(G, W, S, N=N, se_type=types.se_type, step=step)
    parameters = jnp.concatenate([theta, beta[jnp.array(concentrated, int)]])
    return StepSummary(parameters, averaged, G, S, gmm.updated_weights(S_for_W), inference, gmm.numerical_rank(S_for_W))
