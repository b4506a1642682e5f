"""Demand of one market as conduct sees it: what markups may be functions of."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from blpjax.kernels import linear_algebra
from blpjax.kernels.demand import Curvature, DemandAt, DemandPoint, demand_hessian, demand_with_curvature
from blpjax.kernels.substitution import long_run_diversion_ratios


class Owners(eqx.Module):
    """Who owns what, and how much owners weigh the profits of others.

    Attributes
    ----------
    name : of the column of product data that has the owners' IDs.
    weights : of the profits of others: None for zero, a number, a mapping ``{(f, g): weight of g's profits for f}``, or
        matrices (N, max J) in place of IDs. Kernels see a number, a matrix (F, F) by codes of owners, or `Matrices`.
    """

    name: str = eqx.field(static=True)
    weights: Any = None


class Matrices(eqx.Module):
    """Stands for ownership matrices that a market has under this name."""

    name: str = eqx.field(static=True)


class Retail(eqx.Module):
    """What stands between wholesale prices and demand.

    `prices` are what consumers pay, and `passthrough` derivatives ``dp_j / dw_k`` of these in wholesale prices.
    """

    prices: Float[Array, " J"]
    passthrough: Float[Array, "J J"]


class PricedMarket(eqx.Module):
    """One market at prices: everything that markups may be a function of.

    Arrays are JAX's, may be traced, and have J places, some of which may hold no product (`present` is false there).
    Such places have shares of zero, and rows and columns of the identity in `jacobian`, `disagreement` and ownership
    matrices, so that these can be inverted and markups come out as zero.

    Attributes
    ----------
    prices : (J,) what consumers pay, or retailers, in the wholesale market of `TwoTier`.
    owners, columns : codes of owners (J,), or ownership matrices (J, J), and columns (J,) of product data, by name.
    kept : (J,) which part of a price firms get after ad valorem taxes, None where that is all.
    demand_at, arguments : demand at other prices, ``demand_at(prices, arguments)``.
    retail : for the wholesale market, None for that of consumers.
    """

    demand_at: DemandAt = eqx.field(static=True)
    prices: Float[Array, " J"]
    arguments: Any
    owners: Mapping[str, Array]
    columns: Mapping[str, Array]
    kept: Float[Array, " J"] | None = None
    retail: Retail | None = None

    def at(self, prices: Float[Array, " J"]) -> "PricedMarket":
        """The same market at other prices."""
        self._refuse_wholesale()
        return dataclasses.replace(self, prices=prices)

    def point(self) -> DemandPoint:
        """Demand with its slopes in prices."""
        return self.demand_at(self.prices if self.retail is None else self.retail.prices, self.arguments)

    @property
    def present(self) -> Bool[Array, " J"]:
        """Which places hold products."""
        return self.point().present

    def shares(self) -> Float[Array, " J"]:
        """Market shares s."""
        return jnp.where(self.present, self.point().shares(), 0.0)

    def jacobian(self) -> Float[Array, "J J"]:
        """Derivatives of demand ``D_jk = ds_j / dp_k``. They need not be symmetric."""
        D = self.point().jacobian()
        return self._with_identity(D if self.retail is None else D @ self.retail.passthrough)

    def hessian(self) -> Float[Array, "J J J"]:
        """Second derivatives ``d^2 s_j / dp_k dp_l`` at (j, k, l); zero for absent products."""
        return demand_hessian(*self.curved())

    def curved(self) -> tuple[DemandPoint, Curvature]:
        """Demand with its slopes in prices, and how these move with prices."""
        self._refuse_wholesale()
        return demand_with_curvature(self.demand_at, self.prices, self.arguments)

    def disagreement(self) -> Float[Array, "J J"]:
        """``S_jk = s_k - s_k(without j)``, negative for rivals k that gain when j leaves; ``s_j`` on the diagonal."""
        self._refuse_wholesale()
        point, s = self.point(), self.shares()
        gained = long_run_diversion_ratios(point.utilities(), point.weights, point.availability, point.nests)
        return self._with_identity(jnp.where(jnp.eye(s.size, dtype=bool), s[:, None], -s[:, None] * gained))

    def ownership(self, owners: str | Owners) -> Float[Array, "J J"]:
        """Ownership matrix H: the weight of the profits of product k for the owner of product j.

        `owners` is the name of a column of IDs. Where ad valorem rates differ, weights are those that have the same
        conditions without taxes.
        """
        known = Owners(owners) if isinstance(owners, str) else owners
        if isinstance(known.weights, Matrices):
            return self.weighted(self._owner(known.weights.name))
        codes = self._owner(known.name)
        if codes.ndim == 1:
            H = (codes[:, None] == codes[None, :]).astype(float)
            if known.weights is not None and jnp.ndim(known.weights) == 2:
                return self.weighted(jnp.asarray(known.weights)[codes][:, codes])
        else:
            H = codes
        return self.weighted(H if known.weights is None else H + known.weights * (1.0 - H))

    def weighted(self, H: Float[Array, "J J"]) -> Float[Array, "J J"]:
        """A matrix of profit weights as an ownership matrix: see there. Monopoly has one of ones."""
        if self.kept is not None:
            H = H * self.kept[None, :] / self.kept[:, None]
        return self._with_identity(H)

    def column(self, name: str) -> Float[Array, " J"]:
        """A column of product data."""
        return self.columns[name]

    def price_derivatives(self, function: Callable[["PricedMarket"], Array]) -> Float[Array, "J J"]:
        """Derivatives of a function (J,) of the market in prices, on the last axis, one price after the other."""

        def in_one(direction: Array) -> Array:
            return jax.jvp(lambda prices: function(self.at(prices)), (self.prices,), (direction,))[1]

        return jax.lax.map(in_one, jnp.eye(self.prices.size)).T

    def solve(self, matrix: Float[Array, "J J"], right: Float[Array, "J *R"]) -> Float[Array, "J *R"]:
        """``matrix^{-1} right``. Use this and not that of `jax.numpy`, which may wait forever on CPUs."""
        return linear_algebra.solve(matrix, right)

    def inverse(self, matrix: Float[Array, "J J"]) -> Float[Array, "J J"]:
        """``matrix^{-1}``, likewise."""
        return linear_algebra.solve(matrix, jnp.eye(len(matrix)))

    def _owner(self, name: str) -> Array:
        return self.owners[name]

    def _refuse_wholesale(self) -> None:
        if self.retail is not None:
            raise NotImplementedError(_NO_WHOLESALE)

    def _with_identity(self, matrix: Array) -> Array:
        """The matrix with rows and columns of the identity for absent products."""
        present = self.present
        return jnp.where(present[:, None] & present[None, :], matrix, jnp.eye(present.size))


_NO_WHOLESALE = (
    "The wholesale conduct of TwoTier may use prices, shares and the Jacobian, not second derivatives or disagreement "
    "shares. Bargaining has both tiers."
)
