"""The model as compiled, differentiable functions of theta: building blocks for other optimisers and samplers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from blpjax.economy.characteristics import Characteristics
from blpjax.machine.announcements import said
from blpjax.model import demand
from blpjax.model.demand import Demand
from blpjax.model.inversion import Inversion
from blpjax.objective.moments import GMM
from blpjax.reporting.tables import show_html


class ModelFunctions(eqx.Module):
    """Functions of theta (P,), made by `Problem.functions`.

    All are compiled and work with `jax.grad`, `jax.jacfwd`, `jax.jacrev`, `jax.hessian` and `jax.vmap`. They have no
    memory: inversions always start at `start` (N,). Where shares could not be inverted in some market, moments and the
    objective are NaN, and delta is the last iterate there; `inversion` names the markets' statuses.

    `theta` holds the starting values that were given, and `theta_labels` says what the elements are.
    """

    minimand: GMM
    characteristics: Characteristics
    start: Float[Array, " N"]
    theta: Float[Array, " P"]
    theta_labels: tuple[str, ...] = eqx.field(static=True)

    def __repr__(self) -> str:
        named = ", ".join(self.theta_labels) or "none"
        methods = "delta, moments, objective, shares, probabilities and their derivatives"
        return f"ModelFunctions of {self.theta.size} parameters ({named}), {self.start.size} products: {methods}."

    def _repr_html_(self) -> str:
        starts = pd.DataFrame({"theta": self.theta_labels, "starting value": np.asarray(self.theta)})
        return show_html("ModelFunctions", [repr(self), starts])

    def inversion(self, theta: Float[Array, " P"]) -> Inversion:
        """Mean utilities with the status and counters of every market."""
        with said("Evaluating mean utilities as a function of theta ..."):
            return _invert(self.minimand, theta, self.start)

    def delta(self, theta: Float[Array, " P"]) -> Float[Array, " N"]:
        """Mean utilities (N,) that reproduce the observed market shares."""
        return self.inversion(theta).delta

    def moments(self, theta: Float[Array, " P"]) -> Float[Array, " M"]:
        """Averaged moments (M,) with linear parameters concentrated out."""
        with said("Evaluating moments as a function of theta ..."):
            return _averaged_moments(self.minimand, theta, self.start)

    def objective(self, theta: Float[Array, " P"]) -> Float[Array, ""]:
        """The GMM objective."""
        with said("Evaluating the objective as a function of theta ..."):
            return _objective(self.minimand, theta, self.start)

    def shares(self, theta: Float[Array, " P"], delta: Float[Array, " N"]) -> Float[Array, " N"]:
        """Market shares (N,) at given tastes and mean utilities.

        ``jax.jacfwd(functions.shares, 0)`` has their derivatives in theta (N, P); those in delta are blocks, see
        `share_derivatives`.
        """
        return demand.market_shares(self._demand(theta, delta), None, {})

    def probabilities(self, theta: Float[Array, " P"], delta: Float[Array, " N"]) -> tuple[Float[Array, "T J I"], ...]:
        """Choice probabilities, one padded array (T, J, I) for each bucket of markets."""
        return demand.choice_probabilities(self._demand(theta, delta), None, {})

    def share_derivatives(
        self, theta: Float[Array, " P"], delta: Float[Array, " N"]
    ) -> tuple[Float[Array, "T J J"], ...]:
        """Derivatives of shares in mean utilities, one padded array (T, J, J) for each bucket of markets."""
        return demand.demand_jacobians(self._demand(theta, delta), None)

    def delta_jacobian(self, theta: Float[Array, " P"]) -> Float[Array, "N P"]:
        """Derivatives of the mean utilities in theta, ``-(ds / d delta)^{-1} ds / d theta``."""
        with said("Evaluating derivatives of mean utilities in theta ..."):
            return _delta_jacobian(self.minimand, theta, self.start)

    def _demand(self, theta: Array, delta: Array) -> Demand:
        model = self.minimand.model
        return Demand(model.economy, self.characteristics, model.expand(theta), jnp.asarray(delta), model.layout)


@jax.jit
def _invert(objective: GMM, theta: Array, start: Array) -> Inversion:
    return objective.model.invert(objective.model.expand(theta), start)


@jax.jit
def _averaged_moments(objective: GMM, theta: Array, start: Array) -> Array:
    return objective.moments(theta, start)


@jax.jit
def _objective(objective: GMM, theta: Array, start: Array) -> Array:
    return objective.value(theta, start)


@jax.jit
def _delta_jacobian(objective: GMM, theta: Array, start: Array) -> Array:
    return jax.jacfwd(lambda values: _invert(objective, values, start).delta)(theta)
