"""The linear equations of demand and supply, with their instruments."""

import equinox as eqx
from jaxtyping import Float

from blpjax.economy.characteristics import Characteristics
from blpjax.economy.conduct import ConductData
from blpjax.kernels.arrays import AnyArray
from blpjax.kernels.markups import Firms
from blpjax.objective.absorption import Projection


class Equation(eqx.Module):
    """Linear characteristics X (N, K) and instruments Z (N, M) of one side, residualised on any fixed effects.

    `X_unabsorbed` (N, K) is X before absorption. `instruments` make contributions to moments and weighting matrices.
    They are `Z`, or what the user residualised instead when exogenous characteristics are not added to the instruments.
    `absorb` residualises inside of compiled programs; None where that is not needed, or done on the host.
    """

    X: Float[AnyArray, "N K"]
    X_unabsorbed: Float[AnyArray, "N K"]
    Z: Float[AnyArray, "N M"]
    instruments: Float[AnyArray, "N M"]
    absorb: Projection | None = None

    def errors(self, dependent: Float[AnyArray, " N"], coefficients: Float[AnyArray, " K"]) -> Float[AnyArray, " N"]:
        """Structural errors of mean utilities or costs at all linear coefficients, residualised by `absorb`."""
        values = dependent if self.absorb is None else self.absorb(dependent)
        return values - self.X @ coefficients


class Supply(eqx.Module):
    """The supply side: its equation, who owns what, and how utilities move with observed prices.

    `X2` (N, K2), `X1_slope` (N, K1) and `X2_slope` (N, K2) are the characteristics and their derivatives in prices.
    Costs are clipped at the two `costs_bounds`. `logarithmic` says whether log costs are linear in X3. Where firms do
    not just set prices, `conduct` says what they do, and `characteristics` have formulas and variables, so that demand
    is known at other prices.
    """

    equation: Equation
    ownership: tuple[AnyArray | Firms, ...]
    prices: Float[AnyArray, " N"]
    X1_slope: Float[AnyArray, "N K1"]
    X2: Float[AnyArray, "N K2"]
    X2_slope: Float[AnyArray, "N K2"]
    costs_bounds: Float[AnyArray, " 2"]
    logarithmic: bool = eqx.field(static=True)
    conduct: ConductData | None = None
    characteristics: Characteristics | None = None
