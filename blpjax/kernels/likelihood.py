"""Log likelihoods of one market: respondents of a survey, and everybody else by the market's shares.

Respondent i, who stands for R nodes of unobserved tastes with weights w_r, has chosen y, so that the likelihood is
``sum_r w_r P_yir``. With the posterior weights ``q_ir = w_r P_yir / sum_r w_r P_yir`` derivatives of its logarithm in
utilities that all share are

    1[j = y] - Pbar_ji,    2 sum_r q_ir P_jir P_kir - 1[j = k] Pbar_ji - Pbar_ji Pbar_ki,    Pbar_ji = sum_r q_ir P_jir.

The others, of whom c_j choose j, have the log likelihood ``sum_j c_j log pi_j`` with ``pi_j = sum_i w_i P_ji``. Its
second derivatives are those of ``sum_j l_j pi_j``, with ``l_j = c_j / pi_j`` held, less
``sum_j c_j dpi_j dpi_j' / pi_j^2``.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.micro import chosen
from blpjax.kernels.shares import share_jacobian


class Answers(NamedTuple):
    """What n respondents have chosen, as places of which the outside good has the first, and who is one.

    `present` is how often each counts, zero for padding. `weights` are those of nodes, the same for everybody where
    there is one row. Agents of the demand that they belong to are all nodes of the first respondent, then those of the
    second, and so on.
    """

    chosen: Int[Array, " n"]
    present: Float[Array, " n"]
    weights: Float[Array, "#n R"]


class Curvature(NamedTuple):
    """A function of mean utilities with its first and second derivatives."""

    value: Float[Array, ""]
    gradient: Float[Array, " J"]
    hessian: Float[Array, "J J"]


def log_likelihood(point: DemandPoint, answers: Answers) -> Float[Array, ""]:
    """Sum over respondents of the logarithm of what they have chosen. Differentiable in the point."""
    return _total(jnp.einsum("ir,ir->i", *_by_node(_chosen(point, answers), answers)), answers)


def log_likelihood_curvature(point: DemandPoint, answers: Answers) -> Curvature:
    """The same with derivatives in the point's mean utilities."""
    if point.nests is not None:
        return _differentiated(lambda p: log_likelihood(p, answers), point)
    found = point.choices()
    p = chosen(found, None, None, jnp.repeat(answers.chosen, answers.weights.shape[1]), None)
    p, w = _by_node(p, answers)
    likelihood = (w * p).sum(axis=1)
    known = jnp.where(answers.present > 0, likelihood, 1.0)
    q = w * p / known[:, None]
    P, counts = found.inside, jnp.repeat(answers.present, q.shape[1])
    mean = (P * q.reshape(-1)[None, :]).reshape(P.shape[0], *q.shape).sum(axis=2)
    weighted, means = P * (counts * q.reshape(-1))[None, :], mean * answers.present[None, :]
    total = means.sum(axis=1)
    hits = jnp.where(answers.chosen[None, :] == 1 + jnp.arange(P.shape[0])[:, None], answers.present[None, :], 0.0)
    hessian = 2.0 * weighted @ P.T - means @ mean.T - jnp.diag(total)
    return Curvature(_total(likelihood, answers), hits.sum(axis=1) - total, hessian)


def all_shares(point: DemandPoint) -> Float[Array, " C"]:
    """Shares of the outside good and of J products."""
    found = point.choices()
    return jnp.concatenate([(found.outside @ point.weights)[None], found.inside @ point.weights])


def all_shares_jacobian(point: DemandPoint) -> tuple[Float[Array, " C"], Float[Array, "C J"]]:
    """The same with derivatives in the point's mean utilities."""
    inside = share_jacobian(point.choices(), point.weights, None, point.nests)
    return all_shares(point), jnp.concatenate([-inside.sum(axis=0)[None], inside])


def expected_value(point: DemandPoint, values: Float[Array, " C"]) -> Float[Array, ""]:
    """``sum_j l_j pi_j`` of numbers l of the outside good and of J products. Differentiable in the point."""
    return values @ all_shares(point)


def expected_value_hessian(point: DemandPoint, values: Float[Array, " C"]) -> Float[Array, "J J"]:
    """Its second derivatives in the point's mean utilities, with the numbers held."""
    if point.nests is not None:
        return _differentiated(lambda p: expected_value(p, values), point).hessian
    found = point.choices()
    P, l = found.inside, values[1:]  # noqa: E741
    weighted = P * point.weights[None, :]
    mean = l @ P + values[0] * found.outside
    own = l * weighted.sum(axis=1) - weighted @ mean
    cross = (weighted @ P.T) * (l[:, None] + l[None, :]) - 2.0 * (weighted * mean[None, :]) @ P.T
    return jnp.diag(own) - cross


def _chosen(point: DemandPoint, answers: Answers) -> Array:
    return chosen(point.choices(), None, None, jnp.repeat(answers.chosen, answers.weights.shape[1]), None)


def _by_node(p: Array, answers: Answers) -> tuple[Array, Array]:
    size = (answers.chosen.size, answers.weights.shape[1])
    return p.reshape(size), jnp.broadcast_to(answers.weights, size)


def _total(likelihood: Array, answers: Answers) -> Array:
    return (answers.present * jnp.log(jnp.where(answers.present > 0, likelihood, 1.0))).sum()


def _differentiated(function: Callable[[DemandPoint], Array], point: DemandPoint) -> Curvature:
    """Derivatives in mean utilities of what has no formula of its own: the demand of nests."""

    def at(delta: Array) -> Array:
        return function(eqx.tree_at(lambda p: p.delta, point, delta))

    value, gradient = jax.value_and_grad(at)(point.delta)
    _, push = jax.linearize(jax.grad(at), point.delta)
    return Curvature(value, gradient, jax.lax.map(push, jnp.eye(point.delta.size)))
