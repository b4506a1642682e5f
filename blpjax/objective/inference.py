"""Compiled programs of estimation, and one GMM step: optimise, then covariances and diagnostics at the optimum.

Each program is compiled once for a shape of economy and a specification, and reused by every evaluation, start and GMM
step: data, weighting matrices, bounds and tolerances are traced.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Float, Int

from blpjax.iteration import FixedPointMethod
from blpjax.machine.compilation import program
from blpjax.objective import iv, moments
from blpjax.objective.data import ModelData, Specification
from blpjax.objective.moments import Evaluation, MomentInputs

#: First-order predictions of mean utilities are used when no element moves by more than this.
FARTHEST_PREDICTION = 5.0

#: Structural errors whose largest derivative in an element of theta, times its size, is below this do not depend on it.
NEGLIGIBLE = 1e-6

#: Columns of the Hessian are computed together as long as they hold fewer numbers than this.
HESSIAN_ELEMENTS = 2**25


class CovarianceTypes(NamedTuple):
    """How covariances of moments are estimated (static)."""

    W_type: str = "robust"
    se_type: str = "robust"
    center_moments: bool = True
    n_clusters: int | None = None


class LinearParameters(eqx.Module):
    """All elements of beta (K1,) and gamma (K3,), and the residualised ``X1 beta`` and ``X3 gamma`` (N,).

    `explained_costs` is None without a supply side.
    """

    beta: Float[Array, " K1"]
    gamma: Float[Array, " K3"]
    explained: Float[Array, " N"]
    explained_costs: Float[Array, " N"] | None


class StepSummary(eqx.Module):
    """What a GMM step reports beside theta.

    Parameters are stacked as theta and then the concentrated elements of beta and gamma, P + K of them. `moments` (M,),
    `moments_jacobian` (M, P + K), `moments_covariances` (M, M), `updated_W` (M, M), `inference` with covariances
    (P + K, P + K), `covariances_rank`, the numerical rank of the moments' covariances, and the part of these (M, M)
    that is simulation error, None unless agents were drawn again.
    """

    parameters: Float[Array, " P"]
    moments: Float[Array, " M"]
    moments_jacobian: Float[Array, "M P"]
    moments_covariances: Float[Array, "M M"]
    updated_W: Float[Array, "M M"]
    inference: iv.Inference
    covariances_rank: Int[Array, ""]
    simulation_covariances: Float[Array, "M M"] | None = None


evaluate = program(effort=1, static_argnums=0)(moments.evaluate)

#: Inputs of `evaluate` at a weighting matrix.
prepare = program(effort=0, static_argnums=0)(moments.make_inputs)


@program(effort=0)
def initial_weights(Z: list[Float[Array, "_ _"]]) -> Float[Array, "M M"]:
    """Weighting matrix of 2SLS for the instruments of all moments."""
    return iv.initial_weights(Z)


def predicted_delta(
    delta: Float[Array, " N"], by_theta: Float[Array, "N P"], step: Float[Array, " P"], otherwise: Float[Array, " N"]
) -> Float[Array, " N"]:
    """Where to start an inversion: ``delta + (d delta / d theta) step``, or `otherwise` when that is far away."""
    change = by_theta @ step
    return jnp.where(jnp.abs(change).max() <= FARTHEST_PREDICTION, delta + change, otherwise)


#: `predicted_delta` as a program of its own.
predict_delta = program(effort=0)(predicted_delta)


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
    economy = inputs.economy
    elements = sum(bucket.shares.size * bucket.weights.shape[1] for bucket in economy.buckets)
    elements //= 1 if economy.placement is None else economy.placement.size
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
def linear_parameters(
    specification: Specification,
    inputs: MomentInputs,
    theta: Float[Array, " P"],
    delta: Float[Array, " N"],
    tilde_costs: Float[Array, " N"] | None,
) -> LinearParameters:
    """Beta and gamma at theta, and what they explain of mean utilities and costs."""
    beta, gamma = moments.linear_parameters(specification, inputs, theta, delta, tilde_costs)
    supply = inputs.data.supply
    return LinearParameters(
        beta, gamma, inputs.data.demand.X @ beta, None if supply is None else supply.equation.X @ gamma
    )


def summarise_step(
    specification: Specification,
    types: CovarianceTypes,
    step: int,
    inputs: MomentInputs,
    theta: Float[Array, " P"],
    evaluation: Evaluation,
    linear: LinearParameters,
    xi: Float[Array, " N"],
    omega: Float[Array, " N"] | None,
    W: Float[Array, "M M"],
    cluster_ids: Int[Array, " N"],
    simulation_covariances: Float[Array, "M M"] | None = None,
) -> StepSummary:
    """Moments, their Jacobian and covariances, and inference about all parameters, at residualised xi and omega.

    `simulation_covariances` are added to the covariances of moments.
    """
    data, layout = inputs.data, specification.layout
    residuals = data.residuals(xi, omega)
    Z = [equation.Z for equation in data.equations]
    if data.covariance is not None:
        Z.append(data.covariance.instruments)
    averaged = iv.average_moments(Z, residuals, data.weights)
    if data.offset is not None:
        averaged = averaged - data.offset
    G = iv.average_moments(Z, _derivatives(specification, data, evaluation, xi, omega), data.weights)

    def covariances(kind: str) -> Array:
        S = iv.moment_covariances(
            data.weighted_instruments,
            residuals,
            kind=kind,
            center=types.center_moments,
            cluster_ids=cluster_ids,
            n_clusters=types.n_clusters,
            weights=data.weights,
            mean=data.offset,
        )
        return S if simulation_covariances is None else S + simulation_covariances

    S = covariances(types.se_type)
    S_for_W = S if types.W_type == types.se_type else covariances(types.W_type)
    inference = iv.parameter_inference(G, W, S, N=data.count, se_type=types.se_type, step=step)
    beta = linear.beta[jnp.array(layout.concentrated_beta, int)]
    gamma = linear.gamma[jnp.array(layout.concentrated_gamma, int)]
    parameters = jnp.concatenate([theta, beta, gamma])
    return StepSummary(
        parameters,
        averaged,
        G,
        S,
        iv.updated_weights(S_for_W),
        inference,
        iv.numerical_rank(S_for_W),
        simulation_covariances,
    )


def lacks_influence(evaluation: Evaluation, theta: Any) -> Any:
    """(P,) whether structural errors hardly depend on an element of theta, whose standard error then means nothing.

    Works on NumPy and JAX arrays alike.
    """
    size = abs(theta).clip(1.0)
    lacking = abs(evaluation.xi_by_theta).max(axis=0, initial=0.0) * size < NEGLIGIBLE
    if evaluation.omega_by_theta is not None:
        lacking = lacking & (abs(evaluation.omega_by_theta).max(axis=0, initial=0.0) * size < NEGLIGIBLE)
    return lacking


summarise = program(effort=0, static_argnums=(0, 1, 2))(summarise_step)


def _derivatives(
    specification: Specification,
    data: ModelData,
    evaluation: Evaluation,
    xi: Float[Array, " N"],
    omega: Float[Array, " N"] | None,
) -> list[Float[Array, "N Q"]]:
    """Derivatives of the residuals of all moments in theta and in the concentrated elements of beta and gamma."""
    layout = specification.layout
    X1 = data.demand.X[:, list(layout.concentrated_beta)]
    if data.supply is None or omega is None or evaluation.omega_by_theta is None:
        return [jnp.concatenate([evaluation.xi_by_theta, -X1], axis=1)]
    X3 = data.supply.equation.X[:, list(layout.concentrated_gamma)]
    xi_by_all = jnp.concatenate([evaluation.xi_by_theta, -X1, jnp.zeros_like(X3)], axis=1)
    omega_by_all = jnp.concatenate([evaluation.omega_by_theta, jnp.zeros_like(X1), -X3], axis=1)
    if data.covariance is None:
        return [xi_by_all, omega_by_all]
    return [xi_by_all, omega_by_all, xi_by_all * omega[:, None] + omega_by_all * xi[:, None]]
