"""From theta to mean utilities, marginal costs and structural errors: what any objective begins with."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from blpjax.economy.buckets import Economy
from blpjax.exceptions import Status, succeeded
from blpjax.iteration import FixedPointLimits, FixedPointMethod
from blpjax.kernels.contraction import ACCELERATED
from blpjax.model import conduct as conducts
from blpjax.model.demand import Demand
from blpjax.model.inversion import Inversion, invert_economy
from blpjax.model.parameters import Coefficients, ParameterLayout, expand
from blpjax.model.pricing import compute_markups
from blpjax.model.tastes import market_tastes
from blpjax.objective.data import ModelData


class Specification(NamedTuple):
    """What decides which programs are compiled, beyond shapes of arrays: hashable, equal by value."""

    layout: ParameterLayout
    method: FixedPointMethod


class Costs(eqx.Module):
    """Marginal costs c, or log c, ``tilde_costs`` (N,), whether each was `clipped`, and a status (T,) of each market.

    The status of a market is `Status.NOT_FINITE` when some of its transformed costs do not exist.
    """

    tilde_costs: Float[Any, " N"]
    clipped: Bool[Any, " N"]
    status: Int[Any, " T"]


class Solution(NamedTuple):
    """Mean utilities with the loops that found them, and markups (N,), None without a supply side."""

    inversion: Inversion
    markups: Float[Any, " N"] | None


class Structure(NamedTuple):
    """What the model implies at a theta.

    `coefficients` are the parameter matrices, zero where an element is concentrated out, and `dependent` the variables
    (N,) that concentrated elements have to explain, by equation: ``delta - X1 beta`` and ``tilde_costs - X3 gamma``
    over the others.
    """

    coefficients: Coefficients
    dependent: list[Float[Any, " N"]]
    inversion: Inversion
    costs: Costs | None

    @property
    def succeeded(self) -> Bool[Any, ""]:
        """Whether shares were inverted, and costs recovered, in all markets."""
        ok = succeeded(self.inversion.status).all()
        return ok if self.costs is None else ok & succeeded(self.costs.status).all()

    @property
    def valid(self) -> Float[Any, ""]:
        """One, or NaN without success: a factor, so that derivatives are NaN as well."""
        return jnp.where(self.succeeded, 1.0, jnp.nan)


class StructuralModel(eqx.Module):
    """The model of a problem as a function of theta.

    All arrays are traced: data, the values of fixed parameters in `fixed`, and the `limits` of inversions.
    """

    specification: Specification = eqx.field(static=True)
    economy: Economy
    data: ModelData
    fixed: Coefficients
    limits: FixedPointLimits

    @property
    def layout(self) -> ParameterLayout:
        """Where the elements of theta belong."""
        return self.specification.layout

    def expand(self, theta: Float[Any, " P"]) -> Coefficients:
        """Parameter matrices, zero where an element is concentrated out."""
        return expand(self.layout, self.fixed, theta)

    def without_loops(self) -> "StructuralModel":
        """The same model where inversions return where they start: for derivatives at solutions that are known."""
        specification = self.specification._replace(method=FixedPointMethod("return"))
        return StructuralModel(specification, self.economy, self.data, self.fixed, self.limits)

    def without_rescue(self) -> "StructuralModel | None":
        """The same model where inversions end when acceleration fails, None where nothing would follow then.

        Where these succeed in all markets they are exactly what the model's own inversions are.
        """
        method, limits = self.specification.method, self.limits
        if method.name != "anderson" or not method.safeguard or method.nonlinear:
            return None
        specification = self.specification._replace(method=method._replace(safeguard=False))
        fewer = limits._replace(max_evaluations=np.minimum(np.asarray(limits.max_evaluations), ACCELERATED))
        return StructuralModel(specification, self.economy, self.data, self.fixed, fewer)

    def at(self, theta: Float[Any, " P"], start: Float[Any, " N"]) -> Structure:
        """Mean utilities, found from `start`, costs, and what concentrated parameters have to explain."""
        return self.structure(theta, self.solve(theta, start))

    def solve(self, theta: Float[Any, " P"], start: Float[Any, " N"]) -> Solution:
        """Mean utilities, found from `start`, and markups."""
        coefficients = self.expand(theta)
        inversion, supply = self.invert(coefficients, start), self.data.supply
        if supply is None:
            return Solution(inversion, None)
        point = (inversion.delta, supply.X2, supply.X1_slope @ coefficients.beta, supply.X2_slope)
        if supply.conduct is not None:
            conduct = supply.conduct.at(coefficients.kappa)
            return Solution(inversion, conducts.markups(self.demand(coefficients, inversion.delta), conduct).markups)
        tastes = market_tastes(coefficients, self.layout)
        return Solution(inversion, compute_markups(self.economy, tastes, supply.ownership, point))

    def demand(self, coefficients: Coefficients, delta: Float[Any, " N"]) -> Demand:
        """Demand at other prices, too, where supply knows it."""
        supply = self.data.supply
        assert supply is not None and supply.characteristics is not None
        return Demand(self.economy, supply.characteristics, coefficients, delta, self.layout)

    def structure(self, theta: Float[Any, " P"], solution: Solution) -> Structure:
        """What the model implies where mean utilities and markups are known."""
        coefficients, (inversion, markups) = self.expand(theta), solution
        costs = None if markups is None else self.recover_costs(markups)
        tilde_costs = None if costs is None else costs.tilde_costs
        return Structure(coefficients, self.dependent(coefficients, inversion.delta, tilde_costs), inversion, costs)

    def invert(self, coefficients: Coefficients, start: Float[Any, " N"]) -> Inversion:
        """Mean utilities that reproduce observed shares."""
        tastes = market_tastes(coefficients, self.layout)
        return invert_economy(self.economy, tastes, start, self.limits, self.specification.method)

    def recover_costs(self, markups: Float[Any, " N"]) -> Costs:
        """Marginal costs that make observed prices optimal for firms, as X3 explains them (equation 3.8)."""
        supply = self.data.supply
        assert supply is not None
        costs = supply.prices - markups
        lower, upper = supply.costs_bounds
        clipped = (costs < lower) | (costs > upper)
        tilde_costs = jnp.where(clipped, jnp.clip(jax.lax.stop_gradient(costs), lower, upper), costs)
        if supply.logarithmic:
            tilde_costs = jnp.log(tilde_costs)
        finite = [part.all(axis=1) for part in self.economy.spread(jnp.isfinite(tilde_costs))]
        status = jnp.where(self.economy.gather_markets(finite), int(Status.CONVERGED), int(Status.NOT_FINITE))
        return Costs(tilde_costs, clipped, status)

    def dependent(
        self, coefficients: Coefficients, delta: Float[Any, " N"], tilde_costs: Float[Any, " N"] | None
    ) -> list[Float[Any, " N"]]:
        """See `Structure`."""
        found = [delta - self.data.demand.X_unabsorbed @ coefficients.beta]
        if self.data.supply is not None:
            assert tilde_costs is not None
            found.append(tilde_costs - self.data.supply.equation.X_unabsorbed @ coefficients.gamma)
        return found


def concentrated_columns(layout: ParameterLayout, data: ModelData) -> list[Float[Any, "N _"]]:
    """Columns of X1 and X3 whose parameters are concentrated out."""
    columns = (layout.concentrated_beta, layout.concentrated_gamma)
    return [e.X[:, list(c)] for e, c in zip(data.equations, columns, strict=False)]
