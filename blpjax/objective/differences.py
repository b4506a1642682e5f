"""The objective without derivatives, and with derivatives by central differences instead of exact ones.

Differences cost two inversions of all markets per element of theta, and memory for one evaluation of shares, no more.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from blpjax.exceptions import succeeded
from blpjax.machine.compilation import program
from blpjax.model.inversion import Inversion
from blpjax.objective import moments
from blpjax.objective.data import Specification
from blpjax.objective.moments import Costs, Evaluation, MomentInputs


def evaluate_values(
    specification: Specification,
    inputs: MomentInputs,
    theta: Float[Array | np.ndarray, " P"],
    start: Float[Array, " N"],
) -> Evaluation:
    """Evaluate the objective at theta without derivatives, which are NaN."""
    values = _evaluate(specification, inputs, jnp.asarray(theta), start)
    columns = [[jnp.full_like(part, jnp.nan) for part in _parts(values)]] * np.size(theta)
    return _assemble(inputs, values, columns)


def evaluate_by_differences(
    specification: Specification,
    inputs: MomentInputs,
    theta: Float[Array | np.ndarray, " P"],
    start: Float[Array, " N"],
    epsilon: float,
) -> Evaluation:
    """Evaluate the objective at theta, and its derivatives by central differences, as `moments.evaluate` does exactly.

    ``(f(theta + epsilon / 2) - f(theta - epsilon / 2)) / epsilon`` for one element of theta after the other. Errors of
    inversions are divided by `epsilon`, so with a tolerance of 1e-13 and an epsilon of 1.5e-8 derivatives have about
    five digits.
    """
    values = _evaluate(specification, inputs, jnp.asarray(theta), start)
    columns = []
    for p in range(np.size(theta)):
        sides = []
        for half_step in (epsilon / 2, -epsilon / 2):
            moved = np.array(theta, dtype=float)
            moved[p] += half_step
            sides.append(_parts(_evaluate(specification, inputs, jnp.asarray(moved), values.inversion.delta)))
        columns.append([(up - down) / epsilon for up, down in zip(*sides, strict=True)])
    return _assemble(inputs, values, columns)


class _Values(eqx.Module):
    """What there is without derivatives, by the names of `Evaluation`; `structural` are xi and perhaps omega."""

    objective: Float[Array, ""]
    residuals: Float[Array, " M"]
    structural: list[Float[Array, " N"]]
    inversion: Inversion
    costs: Costs | None
    ok: Bool[Array, ""]


@program(effort=1, static_argnums=0)
def _evaluate(
    specification: Specification, inputs: MomentInputs, theta: Float[Array, " P"], start: Float[Array, " N"]
) -> _Values:
    found = moments.structure(specification, inputs, theta, start)
    concentrated = moments.concentrate(specification, inputs, found.dependent)
    r = np.sqrt(start.size) * concentrated.weighted
    ok = jnp.isfinite(r).all() & succeeded(found.inversion.status).all()
    if found.costs is not None:
        ok = ok & succeeded(found.costs.status).all()
    objective = jnp.where(ok, inputs.factor * (r @ r), jnp.nan)
    return _Values(objective, r, concentrated.residuals, found.inversion, found.costs, ok)


def _parts(values: _Values) -> list[Array]:
    """What is differentiated: residuals r (M,), delta, xi and perhaps omega (N,)."""
    return [values.residuals, values.inversion.delta, *values.structural]


def _assemble(inputs: MomentInputs, values: _Values, columns: list[list[Array]]) -> Evaluation:
    """An evaluation with the columns of its Jacobians: for each element of theta, derivatives of `_parts`."""
    if columns:
        jacobians = [jnp.stack(parts, axis=1) for parts in zip(*columns, strict=True)]
    else:
        jacobians = [jnp.zeros((part.size, 0)) for part in _parts(values)]
    residual_jacobian, delta_by_theta, xi_by_theta, *omega_by_theta = jacobians
    return Evaluation(
        objective=values.objective,
        gradient=2.0 * inputs.factor * residual_jacobian.T @ values.residuals,
        residuals=values.residuals,
        residual_jacobian=residual_jacobian,
        delta_by_theta=delta_by_theta,
        xi_by_theta=xi_by_theta,
        omega_by_theta=omega_by_theta[0] if omega_by_theta else None,
        inversion=values.inversion,
        costs=values.costs,
        ok=values.ok,
    )
