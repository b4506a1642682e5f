"""Data of all moments: the equations, the list of moment blocks, and what follows from them for any block."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from blpjax.economy.characteristics import Characteristics
from blpjax.kernels.arrays import namespace
from blpjax.machine.placement import Placement
from blpjax.objective import iv
from blpjax.objective.blocks import (
    CovarianceMoments,
    LinearMoments,
    MomentBlock,
    Moving,
    Point,
    SampleMoments,
)
from blpjax.objective.clusters import Counts
from blpjax.objective.dynamics import Dynamics
from blpjax.objective.equations import Equation, Supply


class Uncertainty(NamedTuple):
    """What covariances of moments consist of.

    `residuals` (N,) belong to the blocks of moments that are averages over products, and `samples` are covariances of
    the moments of other samples.
    """

    residuals: list[Float[Any, " _"]]
    samples: list[Float[Any, "_ _"]]


class ModelData(eqx.Module):
    """Data of all moments: the demand equation and, perhaps, a supply side and more blocks of moments.

    `more` are blocks beyond those of the two equations, `SampleMoments` last. With `weights` (N,) products count so
    many times in all moments and their covariances, as in a bootstrap sample; where clusters of several kinds were
    drawn, `drawn` (N, kinds) say how often each of a product's clusters was. `offset` (M,) is subtracted from averaged
    moments: what they are in the population that a sample is drawn from. `dynamics` say which moments are of
    innovations instead of structural errors; None where all are levels.
    """

    demand: Equation
    supply: Supply | None = None
    more: tuple[MomentBlock, ...] = ()
    weights: Float[Any, " N"] | None = None
    offset: Float[Any, " M"] | None = None
    dynamics: Dynamics | None = None
    drawn: Float[Any, "N kinds"] | None = None

    @property
    def count(self) -> ArrayLike:
        """N, or the sum of weights."""
        return self.demand.Z.shape[0] if self.weights is None else self.weights.sum()

    @property
    def equations(self) -> list[Equation]:
        """Equations with linear parameters: demand, and supply if there is one."""
        return [self.demand] if self.supply is None else [self.demand, self.supply.equation]

    @property
    def blocks(self) -> list[MomentBlock]:
        """All blocks in the order of moments: those of demand, of supply, and `more`."""
        if self.dynamics is not None:
            return [*self.dynamics.blocks(self.equations), *self.more]
        sides = [LinearMoments(equation, supply=side > 0) for side, equation in enumerate(self.equations)]
        return [*sides, *self.more]

    @property
    def product_blocks(self) -> list[MomentBlock]:
        """The blocks whose moments are averages over products."""
        return [block for block in self.blocks if not isinstance(block, SampleMoments)]

    @property
    def size(self) -> int:
        """Number of moments M."""
        return sum(block.size for block in self.blocks)

    @property
    def covariance(self) -> CovarianceMoments | None:
        """The block of covariance instruments, None without any."""
        return next((block for block in self.more if isinstance(block, CovarianceMoments)), None)

    @property
    def projects(self) -> bool:
        """See `MomentBlock`."""
        return any(block.projects for block in self.more)

    @property
    def needs_update(self) -> bool:
        """Whether moments have no weights before they are updated: those of other samples than that of products."""
        return any(isinstance(block, SampleMoments) for block in self.more)

    def add(self, blocks: Sequence[MomentBlock], absorbers: Sequence[Any]) -> "ModelData":
        """Data with more blocks, for which equations absorb fixed effects inside of programs.

        Parameters
        ----------
        absorbers : a `Projection` for each equation.
        """
        if not blocks:
            return self
        equations = [dataclasses.replace(e, absorb=absorb) for e, absorb in zip(self.equations, absorbers, strict=True)]
        more = sorted((*self.more, *blocks), key=lambda block: isinstance(block, SampleMoments))
        return dataclasses.replace(self._with_equations(equations), more=tuple(more))

    def initial_weights(self) -> Float[Any, "M M"]:
        """The weighting matrix (M, M) of 2SLS, and what other blocks begin with."""
        return iv.block_diagonal([block.initial_weights(self.weights) for block in self.blocks])

    def averages(self, point: Point) -> Float[Any, " M"]:
        """Averaged moments ``gbar`` (M,)."""
        parts = [block.averages(point, self.weights) for block in self.blocks]
        averaged = namespace(*parts).concatenate(parts)
        return averaged if self.offset is None else averaged - self.offset

    def jacobian(self, point: Point, tangents: Moving) -> Float[Any, "M Q"]:
        """Derivatives of averaged moments along Q directions."""
        parts = [block.jacobian(point, tangents, self.weights) for block in self.blocks]
        return namespace(*parts).concatenate(parts)

    @property
    def instruments(self) -> list[Float[Any, "_ _"]]:
        """Instruments (N, M) of each block whose moments are averages over products, for their covariances."""
        return [block.instruments for block in self.product_blocks]

    def residuals(self, point: Point) -> list[Float[Any, " _"]]:
        """Residuals (N,) of each of these blocks."""
        return [block.residuals(point) for block in self.product_blocks]

    def uncertainty(self, point: Point) -> Uncertainty:
        """What covariances of moments consist of at a point."""
        samples = [block.covariances(point) for block in self.more if isinstance(block, SampleMoments)]
        return Uncertainty(self.residuals(point), samples)

    def covariances(
        self,
        uncertainty: Uncertainty,
        *,
        kind: str,
        center: bool,
        cluster_ids: Int[Any, "N *G"] | None,
        n_clusters: Counts | None,
    ) -> Float[Any, "M M"]:
        """Covariances S (M, M) of moments times sqrt(N). Arguments are those of `iv.moment_covariances`."""
        size = sum(block.size for block in self.product_blocks)
        S = iv.moment_covariances(
            self.instruments,
            uncertainty.residuals,
            kind=kind,
            center=center,
            cluster_ids=cluster_ids,
            n_clusters=n_clusters,
            weights=self.weights,
            drawn=self.drawn,
            mean=None if self.offset is None else self.offset[:size],
        )
        return iv.block_diagonal([S, *(self.count * sample for sample in uncertainty.samples)])

    def at(
        self,
        characteristics: Characteristics | None = None,
        *,
        instruments: Sequence[Array | None] = (),
        weights: Array | None = None,
        drawn: Array | None = None,
        offset: Array | None = None,
        costs_bounds: Any = None,
        covariance_mean: float | None = None,
        equations: Sequence[Equation] | None = None,
        more: Sequence[MomentBlock] | None = None,
    ) -> "ModelData":
        """The same moments of other data: all that a replication, a sample or other instruments may change.

        Parameters
        ----------
        characteristics : formulas with other variables, such as prices and shares. Fixed effects are not absorbed.
        instruments : instruments (N, M) of each equation, None for those that stay.
        weights, drawn, offset, costs_bounds, covariance_mean, equations, more : in place of those that there are.
        """
        found = list(self.equations if equations is None else equations)
        supply = self.supply
        if characteristics is not None:
            X1, X2 = characteristics.evaluate({})
            X = [X1] if supply is None else [X1, characteristics.evaluate_X3({})]
            found = [dataclasses.replace(e, X=x, X_unabsorbed=x) for e, x in zip(found, X, strict=True)]
            if supply is not None:
                X1_slope, X2_slope = characteristics.slopes("prices")
                prices = characteristics.variables["prices"]
                known = None if supply.conduct is None else characteristics
                supply = dataclasses.replace(supply, prices=prices, X1_slope=X1_slope, X2=X2, X2_slope=X2_slope)
                supply = dataclasses.replace(supply, characteristics=known)
        for side, Z in enumerate(instruments):
            if Z is not None:
                found[side] = dataclasses.replace(found[side], Z=Z, instruments=Z)
        if supply is not None and costs_bounds is not None:
            supply = dataclasses.replace(supply, costs_bounds=jax.device_put(np.asarray(costs_bounds, float)))
        blocks = self.more if more is None else tuple(more)
        if covariance_mean is not None:
            mean = jax.device_put(np.asarray(covariance_mean, float))
            blocks = tuple(dataclasses.replace(b, mean=mean) if isinstance(b, CovarianceMoments) else b for b in blocks)
        return dataclasses.replace(
            dataclasses.replace(self, supply=supply)._with_equations(found),
            more=blocks,
            weights=self.weights if weights is None else weights,
            drawn=self.drawn if drawn is None else drawn,
            offset=self.offset if offset is None else offset,
        )

    def _with_equations(self, equations: Sequence[Equation]) -> "ModelData":
        supply = self.supply
        if supply is not None:
            supply = dataclasses.replace(supply, equation=equations[1])
        return dataclasses.replace(self, demand=equations[0], supply=supply)


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
