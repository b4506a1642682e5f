"""From theta to mean utilities, structural errors and averaged moments, with linear parameters concentrated out.

With instruments and characteristics residualised once on any fixed effects, ``Z'M delta = Z'delta``: the loop never
absorbs.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from blpjax.economy import Economy
from blpjax.exceptions import succeeded
from blpjax.gmm import LinearStep, average_moments, cross_moments, linear_step
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.markets import Inversion, invert_economy, market_tastes
from blpjax.parameters import Coefficients, ParameterLayout, expand


class Specification(NamedTuple):
    """What decides which programs are compiled, beyond shapes of arrays: hashable, equal by value."""

    layout: ParameterLayout
    method: FixedPointMethod


class DemandData(eqx.Module):
    """Linear characteristics X1 (N, K1) and instruments Z (N, MD), residualised on any fixed effects.

    `X1_unabsorbed` (N, K1) is X1 before absorption.
    `instruments` make contributions to moments and weighting matrices. They are `Z`, or what the user residualised
    instead when exogenous characteristics are not added to the instruments.
    """

    X1: Float[Array, "N K1"]
    X1_unabsorbed: Float[Array, "N K1"]
    Z: Float[Array, "N M"]
    instruments: Float[Array, "N M"]


class MomentInputs(eqx.Module):
    """Everything that the moments depend on, other than theta and the starting values of delta. All traced.

    `fixed` holds the values of fixed parameters, `step` the linear IV-GMM step at the weighting matrix, and `factor` is
    one, or 1 / N for an objective that is not scaled by N.
    """

    economy: Economy
    data: DemandData
    fixed: Coefficients
    step: LinearStep
    factor: Float[Array, ""]
    limits: FixedPointLimits


class Evaluation(eqx.Module):
    """The objective at one theta, and all that it consists of.

    The objective is `factor` times the sum of squares of `residuals` (M,) ``= sqrt(N) L' gbar`` with ``W = L L'``;
    `residual_jacobian` (M, P) is their derivative in theta and `gradient` (P,) the objective's. `xi_by_theta` (N, P) is
    ``d xi / d theta`` at fixed concentrated parameters. `ok` says that all markets were inverted and all numbers are
    finite.
    """

    objective: Float[Array, ""]
    gradient: Float[Array, " P"]
    residuals: Float[Array, " M"]
    residual_jacobian: Float[Array, "M P"]
    xi_by_theta: Float[Array, "N P"]
    inversion: Inversion
    ok: Bool[Array, ""]


def make_inputs(
    specification: Specification,
    economy: Economy,
    data: DemandData,
    fixed: Coefficients,
    W: Float[Array, "M M"],
    factor: Float[Array, ""],
    limits: FixedPointLimits,
) -> MomentInputs:
    """Prepare the linear step at a weighting matrix W (M, M), which may be singular."""
    A = cross_moments([data.Z], [data.X1[:, list(specification.layout.concentrated_beta)]])
    return MomentInputs(economy, data, fixed, linear_step(A, W), factor, limits)


def invert(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> Inversion:
    """Mean utilities at theta."""
    coefficients = expand(specification.layout, inputs.fixed, theta)
    parameters = market_tastes(coefficients, specification.layout)
    return invert_economy(inputs.economy, parameters, start, inputs.limits, specification.method)


def dependent_variable(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], delta: Float[Array, " N"]
) -> Float[Array, " N"]:
    """``Y = delta - X1 beta`` over the elements of beta that are not concentrated out."""
    return delta - inputs.data.X1_unabsorbed @ expand(specification.layout, inputs.fixed, theta).beta


def averaged_moments(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> Float[Array, " M"]:
    """``gbar = Z'xi / N`` (M,) with linear parameters concentrated out. Differentiable to any order in theta.

    NaN where shares could not be inverted in some market.
    """
    inversion = invert(specification, inputs, theta, start)
    Y = dependent_variable(specification, inputs, theta, inversion.delta)
    g = inputs.step.moments(average_moments([inputs.data.Z], [Y]))
    # a factor, so that derivatives are NaN as well
    return g * jnp.where(succeeded(inversion.status).all(), 1.0, jnp.nan)


def objective(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> Float[Array, ""]:
    """GMM objective ``N gbar'W gbar`` (or ``gbar'W gbar``, unscaled). Differentiable to any order in theta.

    NaN where shares could not be inverted in some market.
    """
    g = averaged_moments(specification, inputs, theta, start)
    r = inputs.step.weight_factor.T @ g
    return inputs.factor * inputs.data.Z.shape[0] * (r @ r)


def evaluate(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> Evaluation:
    """Objective, gradient and the Jacobian of its least-squares residuals, from one inversion of the shares."""

    def dependent(values: Array) -> tuple[Array, Inversion]:
        inversion = invert(specification, inputs, values, start)
        return dependent_variable(specification, inputs, values, inversion.delta), inversion

    Y, push, inversion = jax.linearize(dependent, theta, has_aux=True)
    directions = jnp.eye(theta.size)
    Y_by_theta = jax.vmap(push, out_axes=1)(directions) if theta.size else jnp.zeros((Y.size, 0))
    outer = np.sqrt(inputs.data.Z.shape[0]) * inputs.step.weight_factor.T
    r = outer @ inputs.step.moments(average_moments([inputs.data.Z], [Y]))
    jacobian = outer @ inputs.step.moments(average_moments([inputs.data.Z], [Y_by_theta]))
    finite = jnp.isfinite(r).all() & jnp.isfinite(jacobian).all()
    ok = finite & succeeded(inversion.status).all()
    value = jnp.where(ok, inputs.factor * (r @ r), jnp.nan)
    return Evaluation(value, 2.0 * inputs.factor * jacobian.T @ r, r, jacobian, Y_by_theta, inversion, ok)


def concentrated_beta(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], delta: Float[Array, " N"]
) -> Float[Array, " K1"]:
    """All elements of beta: fixed, in theta, and those concentrated out at this delta."""
    beta = jnp.asarray(expand(specification.layout, inputs.fixed, theta).beta)
    concentrated = specification.layout.concentrated_beta
    if not concentrated:
        return beta
    Y = dependent_variable(specification, inputs, theta, delta)
    estimates = inputs.step.coefficients(average_moments([inputs.data.Z], [Y]))
    return beta.at[jnp.array(concentrated)].set(estimates)
