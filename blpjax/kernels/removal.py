"""What agents choose instead of products that are removed, with nests, in one market.

Removing product j, or a group of products with it, leaves a part of what its nest weighs, which leaves a part of what
the nest's own nest weighs, and so on. With the parameters rho of a level and nu of the next one, zero at the top, the
part that is left of a nest's weight is ``(1 - q)^((1 - rho) / (1 - nu))``, where q is what the nest's products or nests
lose, as a part of all of them. In the end an agent loses v, as a part of all choices, and product k is chosen with the
probability

    P_ki (1 - v)^-1 prod_{levels at which j and k share a nest} (1 - q)^((1 - rho) / (1 - nu) - 1).

Functions that take arrays with first axes ``*T`` work on many markets of NumPy arrays, too (`blpjax.kernels.arrays`).
"""

from typing import NamedTuple

from jaxtyping import Float

from blpjax.kernels.arrays import AnyArray, namespace, times
from blpjax.kernels.shares import Choices, Nests


class Removal(NamedTuple):
    """What agent i's other choices k gain when j is removed, as a part of their probabilities P_ki.

    It is `everywhere`, and for each level, the innermost first, `within` where j and k share a nest of that level.
    """

    everywhere: Float[AnyArray, "*T J I"]
    within: tuple[Float[AnyArray, "*T J I"], ...]


def removal(found: Choices, nests: Nests, together: Float[AnyArray, "*T J J"] | None = None) -> Removal:
    """What others gain when the row's product is removed.

    `together` is one where the column's product is removed with the row's one. Such groups lie within a nest or consist
    of whole nests, at each level. Parts that are left are sums of what is left, or one less what is lost where that is
    little, so that neither loses its digits.
    """
    P, xp = found.inside, namespace(found.inside)
    removed = xp.eye(P.shape[-2]) if together is None else together
    levels = nests.levels
    scales = [xp.ones_like(nests.scales)]  # 1 / (1 - rho) by product, of the top first
    for level in reversed(levels):
        scales.append(scales[-1] + times(level.members.astype(float), level.odds))
    left, lost = xp.zeros_like(P), xp.ones_like(P)
    powers = []
    for level, Q, own, above in zip(levels, found.within, scales[:0:-1], scales[-2::-1], strict=True):
        same = xp.maximum(level.same(xp.ones_like(level.rho)), removed)
        part = removed @ Q
        remaining, gone = (same - removed) @ Q + part * left, part * lost
        few, some = gone < 0.5, remaining > 0
        logarithm = xp.where(
            few, xp.log1p(-xp.where(few, gone, 0.0)), xp.log(xp.where(few, 1.0, xp.where(some, remaining, 1.0)))
        )
        kappa = (above / own)[..., :, None]
        left = xp.where(few | some, xp.exp(kappa * logarithm), 0.0)
        lost = xp.where(few | some, -xp.expm1(kappa * logarithm), 1.0)
        powers.append((kappa - 1.0) * logarithm)
        removed = same
    part = removed @ P
    remaining = found.outside[..., None, :] + (1.0 - removed) @ P + part * left
    reciprocal = xp.where(remaining > 0, 1.0, 0.0) / xp.where(remaining > 0, remaining, 1.0)
    within, factor = [], reciprocal
    for power in reversed(powers):
        within.append(factor * xp.expm1(power))
        factor = factor * xp.exp(power)
    return Removal(part * lost * reciprocal, tuple(reversed(within)))
