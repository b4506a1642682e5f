"""Blocks of moments: what each is a function of, and what GMM needs to know of it.

The moments of a problem are a list of blocks: demand, supply, and whatever is added to them. Each block says what its
residuals are and which instruments they are orthogonal to; averages, covariances, weighting matrices and derivatives
follow from that in one place, `blpjax.objective.data.ModelData`. A block of one's own is a subclass of `MomentBlock`,
or of `SampleMoments` where moments are no averages over products, given to `Problem.solve` as `moment_blocks`.
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.buckets import Economy
from blpjax.machine.tracing import operations_of_jax
from blpjax.model.parameters import Coefficients
from blpjax.objective import iv
from blpjax.objective.equations import Equation, Supply


class Point(eqx.Module):
    """What moments are functions of: the model at some parameters, at which it reproduces the data.

    Attributes
    ----------
    economy : markets with agents and observed shares.
    supply : data of the supply side, None without one.
    coefficients : `sigma`, `pi`, `rho`, `tau`, `beta` and `gamma`, the concentrated elements included.
    delta : (N,) mean utilities.
    xi : (N,) structural errors of demand, residualised on any fixed effects.
    tilde_costs : (N,) marginal costs or their logarithms, None without a supply side.
    omega : (N,) structural errors of supply, likewise.
    """

    economy: Economy
    supply: Supply | None
    coefficients: Coefficients
    delta: Float[Any, " N"]
    xi: Float[Any, " N"]
    tilde_costs: Float[Any, " N"] | None
    omega: Float[Any, " N"] | None

    @property
    def costs(self) -> Float[Any, " N"]:
        """Marginal costs (N,), in units of prices. `ValueError` without a supply side."""
        if self.supply is None or self.tilde_costs is None:
            raise ValueError("There are no marginal costs without a supply side: a third formulation, X3.")
        return jnp.exp(self.tilde_costs) if self.supply.logarithmic else self.tilde_costs

    @property
    def prices(self) -> Float[Any, " N"]:
        """Observed prices (N,). `ValueError` without a supply side."""
        if self.supply is None:
            raise ValueError("Points have prices with a supply side only: a third formulation, X3.")
        return self.supply.prices

    def along(self, function: Any, tangents: "Moving") -> Any:
        """Derivatives of a function of points along `tangents`, whose arrays have a last axis of directions."""

        def at(moving: Moving) -> Any:
            return function(moving.move(self))

        directions = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), tangents)
        return jax.vmap(lambda one: jax.jvp(at, (Moving.of(self),), (one,))[1], out_axes=-1)(directions)


class Moving(eqx.Module):
    """The fields of a `Point` that move with parameters, or derivatives of them with a last axis of directions."""

    coefficients: Coefficients
    delta: Float[Any, "N *Q"]
    xi: Float[Any, "N *Q"]
    tilde_costs: Float[Any, "N *Q"] | None
    omega: Float[Any, "N *Q"] | None

    @classmethod
    def of(cls, point: Point) -> "Moving":
        """The fields of a point."""
        return cls(point.coefficients, point.delta, point.xi, point.tilde_costs, point.omega)

    def move(self, point: Point) -> Point:
        """The point with these fields."""
        return Point(point.economy, point.supply, self.coefficients, self.delta, self.xi, self.tilde_costs, self.omega)


class MomentBlock(eqx.Module):
    """Moments ``E[Z u] = 0``: `instruments` Z (N, M) times residuals u (N,), averaged over products.

    A subclass has a field or property `instruments`, arrays as further fields, and a method `residuals` written with
    JAX. Linear parameters that are concentrated out are estimated by the moments of demand and supply alone.

    Attributes
    ----------
    name : what the block is called in messages, and its moments in tables, followed by numbers.
    resampled : whether bootstrap samples of products, which count products more or less often, are samples for these
        moments as well. Where they are not, re-estimation and Monte Carlo studies refuse the block.
    projects : whether derivatives of structural errors that results report are those after linear parameters have
        been concentrated out and fixed effects absorbed. It is so for covariance moments, as in PyBLP.
    """

    name: ClassVar[str] = "moments"
    resampled: ClassVar[bool] = True
    projects: ClassVar[bool] = False

    if TYPE_CHECKING:  # a field or a property of subclasses

        @property
        def instruments(self) -> Float[Any, "N M"]:
            """(N, M) instruments, for averages and their covariances."""

    @property
    def Z(self) -> Float[Any, "N M"]:
        """(N, M) instruments of averages, where these differ from those of covariances."""
        return self.instruments

    @property
    def size(self) -> int:
        """Number of moments M."""
        return self.instruments.shape[1]

    @property
    def labels(self) -> list[str]:
        """Names of the moments."""
        return [f"{self.name}{m}" for m in range(self.size)]

    def residuals(self, point: Point) -> Float[Any, " N"]:
        """Residuals u (N,), a differentiable function of the point."""
        raise NotImplementedError

    def _traced(self) -> AbstractContextManager[None]:
        """Where what users define is traced."""
        return operations_of_jax(f"moments of the block '{self.name}'", "jax.numpy in place of numpy")

    def averages(self, point: Point, weights: Float[Any, " N"] | None) -> Float[Any, " M"]:
        """Averaged moments (M,). `weights` (N,) say how often products count."""
        with self._traced():
            return iv.average_moments([self.Z], [self.residuals(point)], weights)

    def jacobian(self, point: Point, tangents: Moving, weights: Float[Any, " N"] | None) -> Float[Any, "M Q"]:
        """Derivatives of `averages` along Q directions."""
        rows: Array = point.along(lambda at: self.averages(at, weights), tangents)
        return rows

    def initial_weights(self, weights: Float[Any, " N"] | None) -> Float[Any, "M M"]:
        """The block (M, M) of the initial weighting matrix, that of 2SLS."""
        return iv.initial_weights([self.instruments], weights)


class SampleMoments(MomentBlock):
    """Moments that are no averages over products, for example what a survey has found less what the model says.

    A subclass has a property `size`, and methods `values` and `covariances`. These moments are independent of those
    that are averages over products. Their initial weights are zero unless the subclass has others, so that
    `Problem.solve` updates the weighting matrix at the starting values first.
    """

    resampled: ClassVar[bool] = False

    @property
    def instruments(self) -> Float[Any, "N M"]:
        """There are none."""
        raise AttributeError(f"{type(self).__name__} has no instruments: its moments are no averages over products.")

    @property
    def size(self) -> int:
        """Number of moments M."""
        raise NotImplementedError

    def values(self, point: Point) -> Float[Any, " M"]:
        """Moments (M,), a differentiable function of the point."""
        raise NotImplementedError

    def covariances(self, point: Point) -> Float[Any, "M M"]:
        """Covariances (M, M) of the sampling errors of `values`."""
        raise NotImplementedError

    def averages(self, point: Point, weights: Float[Any, " N"] | None) -> Float[Any, " M"]:
        """The moments (M,), whatever the weights of products."""
        with self._traced():
            return self.values(point)

    def initial_weights(self, weights: Float[Any, " N"] | None) -> Float[Any, "M M"]:
        """Zeros (M, M)."""
        return np.zeros((self.size, self.size))


class LinearMoments(MomentBlock):
    """Moments of an equation: structural errors are orthogonal to its instruments. Equations (3.11) and (3.12)."""

    equation: Equation
    supply: bool = eqx.field(static=True)

    @property
    def instruments(self) -> Float[Any, "N M"]:
        """(N, M) instruments of covariances."""
        return self.equation.instruments

    @property
    def Z(self) -> Float[Any, "N M"]:
        """(N, M) residualised instruments."""
        return self.equation.Z

    def residuals(self, point: Point) -> Float[Any, " N"]:
        """Xi or omega (N,)."""
        if not self.supply:
            return point.xi
        assert point.omega is not None
        return point.omega

    def jacobian(self, point: Point, tangents: Moving, weights: Float[Any, " N"] | None) -> Float[Any, "M Q"]:
        """Derivatives of `averages`: those of structural errors take the place of these."""
        return iv.average_moments([self.Z], [tangents.omega if self.supply else tangents.xi], weights)


class CovarianceMoments(MomentBlock):
    """Moments ``E[(xi omega - mean) Z] = 0`` (MacKay and Miller 2025) with `instruments` (N, MC)."""

    name: ClassVar[str] = "covariance instruments"
    resampled: ClassVar[bool] = False
    projects: ClassVar[bool] = True

    instruments: Float[Any, "N MC"]
    mean: Float[Any, ""]

    def residuals(self, point: Point) -> Float[Any, " N"]:
        """``xi omega - mean`` (N,)."""
        assert point.omega is not None
        return point.xi * point.omega - self.mean
