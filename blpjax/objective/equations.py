"""The linear equations of demand and supply, with their instruments."""

import equinox as eqx
from jaxtyping import Array, Float

from blpjax.kernels.markups import Firms
from blpjax.objective.absorption import Projection


class Equation(eqx.Module):
    """Linear characteristics X (N, K) and instruments Z (N, M) of one side, residualised on any fixed effects.

    `X_unabsorbed` (N, K) is X before absorption. `instruments` make contributions to moments and weighting matrices.
    They are `Z`, or what the user residualised instead when exogenous characteristics are not added to the instruments.
    `absorb` residualises inside of compiled programs; None where that is not needed, or done on the host.
    """

    X: Float[Array, "N K"]
    X_unabsorbed: Float[Array, "N K"]
    Z: Float[Array, "N M"]
    instruments: Float[Array, "N M"]
    absorb: Projection | None = None

    def errors(self, dependent: Float[Array, " N"], coefficients: Float[Array, " K"]) -> Float[Array, " N"]:
        """Structural errors of mean utilities or costs at all linear coefficients, residualised by `absorb`."""
        values = dependent if self.absorb is None else self.absorb(dependent)
        return values - self.X @ coefficients


class Supply(eqx.Module):
    """The supply side: its equation, who owns what, and how utilities move with observed prices.

    `X2` (N, K2), `X1_slope` (N, K1) and `X2_slope` (N, K2) are the characteristics and their derivatives in prices.
    Costs are clipped at the two `costs_bounds`. `logarithmic` says whether log costs are linear in X3.
    """

    equation: Equation
    ownership: tuple[Array | Firms, ...]
    prices: Float[Array, " N"]
    X1_slope: Float[Array, "N K1"]
    X2: Float[Array, "N K2"]
    X2_slope: Float[Array, "N K2"]
    costs_bounds: Float[Array, " 2"]
    logarithmic: bool = eqx.field(static=True)
