"""Data of all moments."""

from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from blpjax.iteration import FixedPointMethod
from blpjax.kernels.markups import Firms
from blpjax.machine.placement import Placement
from blpjax.model.parameters import ParameterLayout
from blpjax.objective import iv
from blpjax.objective.absorption import Projection


class Specification(NamedTuple):
    """What decides which programs are compiled, beyond shapes of arrays: hashable, equal by value."""

    layout: ParameterLayout
    method: FixedPointMethod


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


class CovarianceMoments(eqx.Module):
    """Moments ``E[(xi omega - mean) Z] = 0`` (MacKay and Miller 2025) with `instruments` (N, MC).

    Xi and omega are residualised on the fixed effects of `demand` and `supply` at every evaluation.
    """

    instruments: Float[Array, "N MC"]
    mean: Float[Array, ""]
    demand: Projection
    supply: Projection


class ModelData(eqx.Module):
    """Data of all moments: the demand equation and, perhaps, a supply side and covariance moments.

    With `weights` (N,) products count so many times in all moments and their covariances, as in a bootstrap sample.
    `offset` (M,) is subtracted from averaged moments: what they are in the population that a sample is drawn from.
    """

    demand: Equation
    supply: Supply | None = None
    covariance: CovarianceMoments | None = None
    weights: Float[Array, " N"] | None = None
    offset: Float[Array, " M"] | None = None

    @property
    def count(self) -> ArrayLike:
        """N, or the sum of weights."""
        return self.demand.Z.shape[0] if self.weights is None else self.weights.sum()

    @property
    def equations(self) -> list[Equation]:
        """Equations with linear parameters: demand, and supply if there is one."""
        return [self.demand] if self.supply is None else [self.demand, self.supply.equation]

    @property
    def weighted_instruments(self) -> list[Float[Array, "_ _"]]:
        """Instruments of all moments, for weighting matrices."""
        more = [] if self.covariance is None else [self.covariance.instruments]
        return [equation.instruments for equation in self.equations] + more

    def initial_weights(self) -> Float[Array, "M M"]:
        """The weighting matrix (M, M) of 2SLS."""
        return iv.initial_weights(self.weighted_instruments, self.weights)

    def residuals(self, xi: Float[Array, " N"], omega: Float[Array, " N"] | None) -> list[Float[Array, " N"]]:
        """What is orthogonal to each of the instruments."""
        if omega is None:
            return [xi]
        return [xi, omega] if self.covariance is None else [xi, omega, xi * omega - self.covariance.mean]


def place_data(data: ModelData, placement: Placement) -> ModelData:
    """Data of moments: who owns what with the markets of a sharded economy, everything else on every device.

    Raises
    ------
    DataError
        When processes do not have the same data.
    """
    host = jax.tree.map(np.asarray, data)
    placement.check_same({"characteristics and instruments": host})
    placed = jax.tree.map(placement.repeat, eqx.tree_at(_owned, host, replace=None) if host.supply else host)
    if host.supply is None:
        return placed
    owned = jax.tree.map(placement.spread, host.supply.ownership)
    return eqx.tree_at(_owned, placed, owned, is_leaf=lambda leaf: leaf is None)


def _owned(data: ModelData) -> object:
    assert data.supply is not None
    return data.supply.ownership
