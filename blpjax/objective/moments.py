"""From theta to mean utilities, marginal costs, structural errors and averaged moments.

Linear parameters are concentrated out. With instruments and characteristics residualised once on any fixed effects,
``Z'M delta = Z'delta``: the loop never absorbs. Covariance moments are the exception: they are products of residuals.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from blpjax.economy.buckets import Economy
from blpjax.exceptions import Status, succeeded
from blpjax.iteration import FixedPointLimits
from blpjax.model.inversion import Inversion, invert_economy
from blpjax.model.parameters import Coefficients, expand
from blpjax.model.pricing import compute_markups
from blpjax.model.tastes import market_tastes
from blpjax.objective import iv
from blpjax.objective.data import ModelData, Specification
from blpjax.objective.iv import LinearStep, average_moments, cross_moments, linear_step


class MomentInputs(eqx.Module):
    """Everything that the moments depend on, other than theta and the starting values of delta. All traced.

    `fixed` holds the values of fixed parameters, `instruments` Z L (N, M) for each equation, with ``W = L L'`` for all
    moments, `step` the linear IV-GMM step with these instruments, `weight_factor` L, and `factor` is one, or 1 / N for
    an objective that is not scaled by N. With covariance moments instruments are Z, and the step that of the others.

    Moments of Z that W then multiplies would lose digits in proportion to the condition number of Z, as optimal
    instruments may have a large one: the objective would be too noisy to be minimised.
    """

    economy: Economy
    data: ModelData
    fixed: Coefficients
    instruments: list[Float[Array, "N _"]]
    step: LinearStep
    weight_factor: Float[Array, "M M"]
    factor: Float[Array, ""]
    limits: FixedPointLimits


class Costs(eqx.Module):
    """Marginal costs c, or log c, ``tilde_costs`` (N,), whether each was `clipped`, and a status (T,) of each market.

    The status of a market is `Status.NOT_FINITE` when some of its transformed costs do not exist.
    """

    tilde_costs: Float[Array, " N"]
    clipped: Bool[Array, " N"]
    status: Int[Array, " T"]


class Evaluation(eqx.Module):
    """The objective at one theta, and all that it consists of.

    The objective is `factor` times the sum of squares of `residuals` (M,) ``= sqrt(N) L' gbar`` with ``W = L L'``;
    `residual_jacobian` (M, P) is their derivative in theta and `gradient` (P,) the objective's. `xi_by_theta` and
    `omega_by_theta` (N, P) are ``d xi / d theta`` and ``d omega / d theta`` at fixed concentrated parameters and before
    absorption of fixed effects; with covariance moments, after both. `delta_by_theta` (N, P) is the derivative of mean
    utilities. `omega_by_theta` and `costs` are None without a supply side. `ok` says that all markets were inverted and
    all numbers are finite.
    """

    objective: Float[Array, ""]
    gradient: Float[Array, " P"]
    residuals: Float[Array, " M"]
    residual_jacobian: Float[Array, "M P"]
    delta_by_theta: Float[Array, "N P"]
    xi_by_theta: Float[Array, "N P"]
    omega_by_theta: Float[Array, "N P"] | None
    inversion: Inversion
    costs: Costs | None
    ok: Bool[Array, ""]


class Structure(NamedTuple):
    """Mean utilities and costs at a theta, and the variables to explain by concentrated parameters, by equation."""

    dependent: list[Float[Array, " N"]]
    inversion: Inversion
    costs: Costs | None


class Concentrated(NamedTuple):
    """Weighted averaged moments ``L'gbar`` (M,) and residuals by equation, with covariance moments as these see them.

    `coefficients` (K,) are all concentrated parameters: elements of beta, then of gamma.
    """

    weighted: Float[Array, " M"]
    residuals: list[Float[Array, " N"]]
    coefficients: Float[Array, " K"]


def make_inputs(
    specification: Specification,
    economy: Economy,
    data: ModelData,
    fixed: Coefficients,
    W: Float[Array, "M M"],
    factor: Float[Array, ""],
    limits: FixedPointLimits,
) -> MomentInputs:
    """Prepare the linear step at a weighting matrix W (M, M), which may be singular."""
    Z, X = [equation.Z for equation in data.equations], _concentrated_columns(specification, data)
    L = iv.weight_factor(W)
    if data.covariance is None:
        ends = np.cumsum([0, *(z.shape[1] for z in Z)])
        Z = [z @ L[first:last] for z, first, last in zip(Z, ends[:-1], ends[1:], strict=True)]
        A = jnp.concatenate([cross_moments([z], [x], data.weights) for z, x in zip(Z, X, strict=True)], axis=1)
        step = linear_step(A, jnp.eye(A.shape[0]))
    else:
        A = cross_moments(Z, X, data.weights)
        step = linear_step(A, W[: A.shape[0], : A.shape[0]])
    return MomentInputs(economy, data, fixed, Z, step, L, factor, limits)


def invert(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> Inversion:
    """Mean utilities at theta."""
    coefficients = expand(specification.layout, inputs.fixed, theta)
    parameters = market_tastes(coefficients, specification.layout)
    return invert_economy(inputs.economy, parameters, start, inputs.limits, specification.method)


def recover_costs(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], delta: Float[Array, " N"]
) -> Costs:
    """Marginal costs that make observed prices optimal for firms, as X3 explains them (equation 3.8)."""
    supply = inputs.data.supply
    assert supply is not None
    coefficients = expand(specification.layout, inputs.fixed, theta)
    tastes = market_tastes(coefficients, specification.layout)
    delta_slope = supply.X1_slope @ coefficients.beta
    markups = compute_markups(
        inputs.economy, tastes, supply.ownership, (delta, supply.X2, delta_slope, supply.X2_slope)
    )
    costs = supply.prices - markups
    lower, upper = supply.costs_bounds
    clipped = (costs < lower) | (costs > upper)
    tilde_costs = jnp.where(clipped, jnp.clip(jax.lax.stop_gradient(costs), lower, upper), costs)
    if supply.logarithmic:
        tilde_costs = jnp.log(tilde_costs)
    finite = [part.all(axis=1) for part in inputs.economy.spread(jnp.isfinite(tilde_costs))]
    status = jnp.where(inputs.economy.gather_markets(finite), int(Status.CONVERGED), int(Status.NOT_FINITE))
    return Costs(tilde_costs, clipped, status)


def structure(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> Structure:
    """``Y = delta - X1 beta`` and ``Y = tilde_costs - X3 gamma`` over the parameters that are not concentrated out."""
    coefficients = expand(specification.layout, inputs.fixed, theta)
    inversion = invert(specification, inputs, theta, start)
    demand = inversion.delta - inputs.data.demand.X_unabsorbed @ coefficients.beta
    if inputs.data.supply is None:
        return Structure([demand], inversion, None)
    costs = recover_costs(specification, inputs, theta, inversion.delta)
    supply = costs.tilde_costs - inputs.data.supply.equation.X_unabsorbed @ coefficients.gamma
    return Structure([demand, supply], inversion, costs)


def concentrate(
    specification: Specification, inputs: MomentInputs, dependent: list[Float[Array, " N"]]
) -> Concentrated:
    """Weighted moments with linear parameters concentrated out, for `Structure.dependent`."""
    data, covariance, step = inputs.data, inputs.data.covariance, inputs.step
    if covariance is None:
        parts = [average_moments([z], [y], data.weights) for z, y in zip(inputs.instruments, dependent, strict=True)]
        b = sum(parts[1:], parts[0])
        if data.offset is not None:
            b = b - inputs.weight_factor.T @ data.offset
        return Concentrated(step.moments(b), dependent, step.coefficients(b))
    b = average_moments(inputs.instruments, dependent, data.weights)
    if data.offset is not None:
        b = b - data.offset[: b.size]
    coefficients = step.coefficients(b)
    X1, X3 = _concentrated_columns(specification, data)
    xi = covariance.demand(dependent[0]) - X1 @ coefficients[: X1.shape[1]]
    omega = covariance.supply(dependent[1]) - X3 @ coefficients[X1.shape[1] :]
    more = average_moments([covariance.instruments], [xi * omega - covariance.mean], data.weights)
    if data.offset is not None:
        more = more - data.offset[b.size :]
    weighted = inputs.weight_factor.T @ jnp.concatenate([step.moments(b), more])
    return Concentrated(weighted, [xi, omega], coefficients)


def average_concentrated(
    specification: Specification, inputs: MomentInputs, dependent: list[Float[Array, " N"]]
) -> Float[Array, " M"]:
    """Averaged moments ``gbar`` (M,) with linear parameters concentrated out, for `Structure.dependent`."""
    data = inputs.data
    found = concentrate(specification, inputs, dependent)
    X = _concentrated_columns(specification, data)
    ends = np.cumsum([0, *(x.shape[1] for x in X)])
    unexplained = [
        y - x @ found.coefficients[first:last]
        for y, x, first, last in zip(dependent, X, ends[:-1], ends[1:], strict=True)
    ]
    Z = [equation.Z for equation in data.equations]
    if data.covariance is not None:
        xi, omega = found.residuals
        Z.append(data.covariance.instruments)
        unexplained.append(xi * omega - data.covariance.mean)
    averaged = average_moments(Z, unexplained, data.weights)
    return averaged if data.offset is None else averaged - data.offset


def averaged_moments(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> Float[Array, " M"]:
    """``gbar`` (M,) with linear parameters concentrated out. Differentiable to any order in theta.

    NaN where shares could not be inverted, or costs recovered, in some market.
    """
    found = structure(specification, inputs, theta, start)
    # a factor, so that derivatives are NaN as well
    valid = jnp.where(_succeeded(found), 1.0, jnp.nan)
    return valid * average_concentrated(specification, inputs, found.dependent)


def objective(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> Float[Array, ""]:
    """GMM objective ``N gbar'W gbar`` (or ``gbar'W gbar``, unscaled). Differentiable to any order in theta.

    NaN where shares could not be inverted, or costs recovered, in some market.
    """
    found = structure(specification, inputs, theta, start)
    valid = jnp.where(_succeeded(found), 1.0, jnp.nan)
    r = valid * concentrate(specification, inputs, found.dependent).weighted
    return inputs.factor * inputs.data.count * (r @ r)


def evaluate(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> Evaluation:
    """Objective, gradient and the Jacobian of its least-squares residuals, from one inversion of the shares."""
    scale = jnp.sqrt(inputs.data.count)

    def forward(values: Array) -> tuple[tuple[Array, list[Array], Array], Structure]:
        found = structure(specification, inputs, values, start)
        concentrated = concentrate(specification, inputs, found.dependent)
        return (scale * concentrated.weighted, concentrated.residuals, found.inversion.delta), found

    (r, residuals, delta), push, found = jax.linearize(forward, theta, has_aux=True)
    if theta.size:
        jacobian, by_theta, delta_by_theta = jax.vmap(push, out_axes=1)(jnp.eye(theta.size))
    else:
        jacobian, by_theta, delta_by_theta = jax.tree.map(lambda leaf: jnp.zeros((leaf.size, 0)), (r, residuals, delta))
    finite = jnp.isfinite(r).all() & jnp.isfinite(jacobian).all()
    ok = finite & _succeeded(found)
    return Evaluation(
        objective=jnp.where(ok, inputs.factor * (r @ r), jnp.nan),
        gradient=2.0 * inputs.factor * jacobian.T @ r,
        residuals=r,
        residual_jacobian=jacobian,
        delta_by_theta=delta_by_theta,
        xi_by_theta=by_theta[0],
        omega_by_theta=by_theta[1] if len(by_theta) > 1 else None,
        inversion=found.inversion,
        costs=found.costs,
        ok=ok,
    )


def linear_parameters(
    specification: Specification,
    inputs: MomentInputs,
    theta: Float[Array, " P"],
    delta: Float[Array, " N"],
    tilde_costs: Float[Array, " N"] | None,
) -> tuple[Float[Array, " K1"], Float[Array, " K3"]]:
    """All elements of beta and gamma: fixed, in theta, and those concentrated out at given delta and costs."""
    layout, data = specification.layout, inputs.data
    coefficients = expand(layout, inputs.fixed, theta)
    beta, gamma = jnp.asarray(coefficients.beta), jnp.asarray(coefficients.gamma)
    dependent = [delta - data.demand.X_unabsorbed @ beta]
    if data.supply is not None:
        assert tilde_costs is not None
        dependent.append(tilde_costs - data.supply.equation.X_unabsorbed @ gamma)
    estimates = concentrate(specification, inputs, dependent).coefficients
    K = len(layout.concentrated_beta)
    beta = beta.at[jnp.array(layout.concentrated_beta, int)].set(estimates[:K])
    return beta, gamma.at[jnp.array(layout.concentrated_gamma, int)].set(estimates[K:])


def _concentrated_columns(specification: Specification, data: ModelData) -> list[Float[Array, "_ _"]]:
    layout = specification.layout
    columns = (layout.concentrated_beta, layout.concentrated_gamma)
    return [e.X[:, list(c)] for e, c in zip(data.equations, columns, strict=False)]


def _succeeded(found: Structure) -> Bool[Array, ""]:
    ok = succeeded(found.inversion.status).all()
    return ok if found.costs is None else ok & succeeded(found.costs.status).all()
