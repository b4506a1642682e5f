"""Second derivatives of what mean utilities and markups of one market solve, for all pairs of parameters at once.

Utilities move linearly with parameters, ``V_p = D_p + X_p B_p`` for product j and agent i, with ``D_jp`` derivatives of
mean utilities, and `blpjax.kernels.slopes.Moves`; slopes of utilities in prices by ``a_p = Z_p B_p + L_p``, and markups
by ``E_p``. Choice probabilities then move by ``P_p = P (V_p - v_p)`` with ``v_p = sum_j P_j V_jp``, and

    sum_j g_j P_jpq = sum_j P_j (g_j - g) (V_jp - v_p) (V_jq - v_q),   g = sum_j P_j g_j,

for any g of products and agents. Everything is products of J x I matrices with narrow ones, as for first derivatives:
no array has a number for each product, agent and parameter, and nothing is differentiated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.kernels.demand import DemandPoint
from blpjax.kernels.markups import Firms, own_share
from blpjax.kernels.slopes import Moves, Multipliers


class Paths(NamedTuple):
    """How mean utilities, in units of `DemandPoint.delta`, and markups, None without supply, move with parameters."""

    delta: Float[Array, "J p"]
    eta: Float[Array, "J p"] | None


def market_curvature(
    point: DemandPoint,
    eta: Float[Array, " J"] | None,
    firms: Firms | None,
    weights: Multipliers,
    moves: Moves,
    paths: Paths,
) -> Float[Array, "p p"]:
    """Second derivatives of `blpjax.kernels.slopes.weighted_equations` along paths that are linear in parameters.

    With common tastes, without nests, and with standard ownership where there are markups. With ``u = mu P a``,
    ``t = eta P`` and sums over each firm's products in place of H, the equation of markups is
    ``sum_i w_i (u'H t - sum_j H_jj eta_j u_j)``.
    """
    J, m = moves.linear.shape
    X, X_slope = (jnp.concatenate([moves.columns(x), jnp.zeros((J, m))], axis=1) for x in (point.X2, point.X2_slope))
    B = jnp.concatenate([moves.B, jnp.zeros((moves.B.shape[0], m))], axis=1)
    L = jnp.concatenate([jnp.zeros_like(moves.columns(point.X2)), moves.linear], axis=1)
    P, D = point.choices().inside, paths.delta
    S = P * point.weights[None, :]
    v = P.T @ D + (P.T @ X) * B

    def moved(values: Array) -> tuple[Array, Array]:
        """``sum_i values V_p`` (J, p), and ``sum_j values V_p`` (I, p)."""
        return values.sum(axis=1)[:, None] * D + X * (values @ B), values.T @ D + (values.T @ X) * B

    def both(values: Array, Y: Array) -> Array:
        """``sum_ij values X_p B_p Y_q B_q``."""
        if not moves.characteristics:
            return jnp.zeros((m, m))
        kinds, places = moves.kinds
        columns = [moves.characteristics.index(k) for k in kinds]
        x, y = X[:, columns], Y[:, columns]
        pairs = (x[:, :, None] * y[:, None, :]).reshape(J, -1).T @ values
        pairs = pairs.reshape(len(kinds), len(kinds), -1)[places[:, None], places]
        n = len(moves.characteristics)
        found = jnp.einsum("pqi,ip,iq->pq", pairs, B[:, :n], B[:, :n])
        return jnp.pad(found, (0, m))

    def of_probabilities(g: Array) -> Array:
        c = S * (g - (P * g).sum(axis=0)[None, :])
        through = D.T @ (X * (c @ B))
        crossed = v.T @ moved(c)[1]
        return D.T @ (c.sum(axis=1)[:, None] * D) + through + through.T + both(c, X) - crossed - crossed.T

    if firms is None or eta is None or weights.markups is None or paths.eta is None:
        return of_probabilities(jnp.broadcast_to(weights.shares[:, None], P.shape))
    a, mu, E = point.utility_slopes(), weights.markups, paths.eta
    own = own_share(firms)
    by_t = firms.apply(eta[:, None] * P) - (own * eta)[:, None]  # what u is multiplied by
    by_u = firms.apply(mu[:, None] * P * a)
    H = of_probabilities(weights.shares[:, None] + mu[:, None] * a * by_t + eta[:, None] * by_u)

    # probabilities with slopes, probabilities with markups, and slopes with markups
    F, Y = S * mu[:, None] * by_t, S * (by_u - (mu * own)[:, None] * a)
    F_moved, Y_moved = moved(F)[0], moved(Y)[0]
    once = D.T @ (X_slope * (F @ B)) + both(F, X_slope) + F_moved.T @ L - v.T @ (B * (F.T @ X_slope) + F.T @ L)
    once += Y_moved.T @ E - v.T @ (Y.T @ E)
    once -= (X_slope * (S @ B) + S.sum(axis=1)[:, None] * L).T @ ((mu * own)[:, None] * E)

    # sums over each firm's products of how u moves, and of how t does
    members, aP = firms.members.astype(float), a * P
    u_f, t_f = members.T @ (mu[:, None] * aP), members.T @ (eta[:, None] * P)

    def grouped(column: Array, values: Array) -> Array:
        return (members * column[:, None]).T @ values

    def of_firms(p: Array) -> tuple[Array, Array]:
        b, mean = B[None, :, p], v[None, :, p]
        u = grouped(mu * D[:, p], aP) + grouped(mu * X[:, p], aP) * b - u_f * mean
        u += grouped(mu * X_slope[:, p], P) * b + grouped(mu * L[:, p], P)
        t = grouped(E[:, p] + eta * D[:, p], P) + grouped(eta * X[:, p], P) * b - t_f * mean
        return (u * point.weights[None, :]).reshape(-1), t.reshape(-1)

    u_p, t_p = jax.lax.map(of_firms, jnp.arange(D.shape[1]))
    once += u_p @ t_p.T
    return H + once + once.T
