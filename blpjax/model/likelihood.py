"""Log likelihoods of all markets with derivatives in mean utilities and in theta, bucket by bucket.

Second derivatives in mean utilities are those within markets, (T, J, J), because a market's likelihood depends on its
own alone. All are exact: formulas in mean utilities, and automatic differentiation, forward over reverse, in theta.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.economy.buckets import Bucket
from blpjax.economy.mapping import cached_elements, map_markets
from blpjax.economy.respondents import Others, Respondents
from blpjax.kernels import likelihood as kernels
from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.likelihood import Answers
from blpjax.model.tastes import MarketTastes, demand_point

#: Tastes as a function of theta (P,).
TastesAt = Callable[[Array], MarketTastes]


class Terms(eqx.Module):
    """A function of mean utilities of the markets of a bucket, with derivatives; sums over markets where possible.

    Those in theta are None where they were not asked for.

    Attributes
    ----------
    value : the function. gradient (T, J), hessian (T, J, J) : in mean utilities, zero for padding.
    by_theta (P,), cross (T, J, P), theta_hessian (P, P) : in theta, and in both.
    """

    value: Float[Array, ""]
    gradient: Float[Array, "..."]
    hessian: Float[Array, "..."]
    by_theta: Float[Array, " P"] | None = None
    cross: Float[Array, "..."] | None = None
    theta_hessian: Float[Array, "P P"] | None = None


class ShareTerms(eqx.Module):
    """Derivatives of the shares of products, `by_delta` (T, J, J) and `by_theta` (T, J, P)."""

    by_delta: Float[Array, "..."]
    by_theta: Float[Array, "..."]


def survey_terms(
    bucket: Bucket, people: Respondents, tastes_at: TastesAt, theta: Array, delta: Float[Array, "T J"], in_theta: bool
) -> Terms:
    """The log likelihood of respondents, group by group."""
    T, J, _ = bucket.size
    G, c = people.chosen.shape
    several = max(1, min(G, cached_elements() // max(1, J * c * people.weights.shape[2])))
    rounds = -(-G // several)
    order = jnp.arange(rounds * several)
    weight = jnp.where(order < G, 1.0, 0.0).reshape(rounds, several)
    place = (order % G).reshape(rounds, several)

    def one(g: Array, weight: Array) -> tuple[Array, Terms]:
        group = jax.tree.map(lambda leaf: leaf[g], people)
        market = jax.tree.map(lambda leaf: leaf[group.market], bucket)
        answers = Answers(group.chosen, weight * group.present, group.weights)

        def point(delta: Array, theta: Array) -> DemandPoint:
            return _survey_point(tastes_at(theta), market, group, delta)

        own = delta[group.market]
        found = kernels.log_likelihood_curvature(point(own, theta), answers)
        scale = tastes_at(theta).scale
        terms = Terms(found.value, found.gradient / scale, found.hessian / scale**2)
        if not in_theta:
            return group.market, terms
        return group.market, _along_theta(lambda d, t: kernels.log_likelihood(point(d, t), answers), own, theta, terms)

    def add(total: Terms, some: tuple[Array, Array]) -> tuple[Terms, None]:
        markets, found = jax.vmap(one)(*some)
        by_market = (found.gradient, found.hessian, found.cross)
        placed = (total.gradient, total.hessian, total.cross)
        added = jax.tree.map(lambda into, part: into.at[markets].add(part), placed, by_market)
        sums = jax.tree.map(
            lambda into, part: into + part.sum(axis=0),
            (total.value, total.by_theta, total.theta_hessian),
            (found.value, found.by_theta, found.theta_hessian),
        )
        return Terms(sums[0], added[0], added[1], sums[1], added[2], sums[2]), None

    zero, P = jnp.zeros(()), theta.size
    begin = Terms(zero, jnp.zeros((T, J)), jnp.zeros((T, J, J)))
    if in_theta:
        begin = Terms(zero, begin.gradient, begin.hessian, jnp.zeros(P), jnp.zeros((T, J, P)), jnp.zeros((P, P)))
    total, _ = jax.lax.scan(add, begin, (place, weight))
    return total


def share_likelihood_terms(
    bucket: Bucket, others: Others, tastes_at: TastesAt, theta: Array, delta: Float[Array, "T J"], in_theta: bool
) -> Terms:
    """The log likelihood of everybody else, less what it is where shares are matched.

    With ``x = pi / s~ - 1`` it is ``sum_j c_j (log(1 + x_j) - x_j)``, because ``sum_j c_j x_j`` is zero, and from the
    numbers by which derivatives of shares are multiplied the number of people may be subtracted. Where populations are
    large this loses no digits of what is nearly zero.
    """
    scale = tastes_at(theta).scale

    def kernel(market: Bucket, delta: Array, others: Others) -> Terms:
        def point(delta: Array, theta: Array) -> DemandPoint:
            return _point(tastes_at(theta), market, delta)

        here = point(delta, theta)
        shares, by_delta = kernels.all_shares_jacobian(here)
        c, by_delta = others.counts, by_delta / scale
        known = jnp.where(c > 0, shares, others.shares)
        x = (known - others.shares) / others.shares
        l = -c.sum() * x / (1.0 + x)  # noqa: E741
        H = kernels.expected_value_hessian(here, l) / scale**2
        twice = c / known**2
        H -= by_delta.T @ (twice[:, None] * by_delta)
        terms = Terms((c * (jnp.log1p(x) - x)).sum(), l @ by_delta, H)
        if not in_theta:
            return terms
        by_theta = _jacobian(lambda t: kernels.all_shares(point(delta, t)), theta, delta.size * market.weights.size)
        found = _along_theta(lambda d, t: kernels.expected_value(point(d, t), l), delta, theta, terms)
        assert found.cross is not None and found.theta_hessian is not None
        weighted = twice[:, None] * by_theta
        return Terms(
            terms.value,
            terms.gradient,
            H,
            found.by_theta,
            found.cross - by_delta.T @ weighted,
            found.theta_hessian - by_theta.T @ weighted,
        )

    return _summed(map_markets(kernel, bucket, delta, others, elements=cached_elements()))


def expected_value_terms(
    bucket: Bucket, values: Float[Array, "T J"], tastes_at: TastesAt, theta: Array, delta: Float[Array, "T J"]
) -> Terms:
    """Sums over products of numbers, which are held, times shares."""
    scale = tastes_at(theta).scale

    def kernel(market: Bucket, delta: Array, own: Array) -> Terms:
        def point(delta: Array, theta: Array) -> DemandPoint:
            return _point(tastes_at(theta), market, delta)

        l = jnp.concatenate([jnp.zeros(1), own])  # noqa: E741
        H = kernels.expected_value_hessian(point(delta, theta), l) / scale**2
        terms = Terms(jnp.zeros(()), jnp.zeros_like(delta), H)
        return _along_theta(lambda d, t: kernels.expected_value(point(d, t), l), delta, theta, terms)

    return _summed(map_markets(kernel, bucket, delta, values, elements=cached_elements()))


def share_terms(bucket: Bucket, tastes_at: TastesAt, theta: Array, delta: Float[Array, "T J"]) -> ShareTerms:
    """Derivatives of the shares of products."""
    scale = tastes_at(theta).scale

    def kernel(market: Bucket, delta: Array) -> ShareTerms:
        def shares(theta: Array) -> Array:
            return kernels.all_shares(_point(tastes_at(theta), market, delta))[1:]

        _, by_delta = kernels.all_shares_jacobian(_point(tastes_at(theta), market, delta))
        by_theta = _jacobian(shares, theta, delta.size * market.weights.size)
        return ShareTerms(by_delta[1:] / scale, by_theta)

    found: ShareTerms = map_markets(kernel, bucket, delta, elements=cached_elements())
    return found


def _point(tastes: MarketTastes, market: Bucket, delta: Array) -> DemandPoint:
    return demand_point(tastes, market, delta, market.X2, jnp.zeros_like(delta), jnp.zeros_like(market.X2))


def _survey_point(tastes: MarketTastes, market: Bucket, group: Respondents, delta: Array) -> DemandPoint:
    """Demand of each respondent at each node."""
    c, R = group.chosen.size, group.weights.shape[1]

    def by_node(values: Array) -> Array:
        wide = jnp.broadcast_to(values[:, None], (c, R, *values.shape[1:]))
        return wide.reshape(c * R, *values.shape[1:])

    k = group.nodes.shape[2]
    nodes = jnp.broadcast_to(group.nodes, (c, R, k)).reshape(c * R, k)
    if group.availability is None:
        available = jnp.where(market.present, 1.0, 0.0)[:, None]
    else:
        available = jnp.repeat(group.availability, R, axis=1)
    changed = (jnp.zeros(c * R), nodes, by_node(group.demographics), available)
    asked = eqx.tree_at(lambda b: (b.weights, b.nodes, b.demographics, b.availability), market, changed)
    return _point(tastes, asked, delta)


def _along_theta(function: Callable[[Array, Array], Array], delta: Array, theta: Array, known: Terms) -> Terms:
    """Derivatives in theta of a function of mean utilities and theta, beside those that are known."""
    P = theta.size
    if P == 0:
        nothing = jnp.zeros((delta.size, 0))
        return Terms(known.value, known.gradient, known.hessian, jnp.zeros(0), nothing, jnp.zeros((0, 0)))
    slopes = jax.grad(function, argnums=(0, 1))
    found, push = jax.linearize(lambda t: slopes(delta, t), theta)
    by_delta, by_theta = jax.lax.map(push, jnp.eye(P))
    return Terms(known.value, known.gradient, known.hessian, found[1], by_delta.T, (by_theta + by_theta.T) / 2)


def _jacobian(function: Callable[[Array], Array], theta: Array, pairs: int) -> Array:
    """Derivatives of a vector on the last axis, some directions at a time."""
    if theta.size == 0:
        return jnp.zeros((function(theta).size, 0))
    _, push = jax.linearize(function, theta)
    return jax.lax.map(push, jnp.eye(theta.size), batch_size=max(1, min(theta.size, 2**15 // max(pairs, 1)))).T


def _summed(terms: Terms) -> Terms:
    """Sums over markets of what does not belong to one."""
    value, by_theta, theta_hessian = jax.tree.map(
        lambda part: part.sum(axis=0), (terms.value, terms.by_theta, terms.theta_hessian)
    )
    return Terms(value, terms.gradient, terms.hessian, by_theta, terms.cross, theta_hessian)
