"""Conduct of users: a function that returns markups, or conditions that markups solve."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.exceptions import succeeded
from blpjax.iteration import FixedPointLimits
from blpjax.kernels.conduct import Conduct
from blpjax.kernels.conduct_parameters import Parameter
from blpjax.kernels.fixed_point import FixedPoint, NewtonPoint, newton
from blpjax.kernels.implicit import implicit
from blpjax.kernels.linear_algebra import solve
from blpjax.kernels.priced_market import PricedMarket


def conduct(function: Callable[..., Any], name: str | None = None, parameters: Any = ()) -> Conduct:
    """A conduct of one's own: a function of a `PricedMarket` that returns markups ``p - c`` (J,).

    For example, Cournot is ``lambda market: -(market.ownership("firm_ids") * market.inverse(market.jacobian()).T) @
    market.shares()``. It must consist of operations of JAX, is called for one market at a time, and should be defined
    once: programs are found again by the function.

    With `parameters`, a name or names, it is called with a number for each of them, ``function(market, *parameters)``.
    These are elements of kappa, see `Parameter`.

    Raises
    ------
    TypeError
        When it is not a function, its name no text, or parameters are no names.
    """
    return OwnConduct(*_own(function, name, parameters))


def conditions(function: Callable[..., Any], name: str | None = None, parameters: Any = ()) -> Conduct:
    """A conduct of one's own: conditions ``function(margins, market)`` (J,) that are zero at margins ``p - c`` (J,).

    They are solved by Newton's method from the margins of firms with one product each. See `conduct`. Derivatives of
    the conditions in margins must not be singular. With `parameters` they are
    ``function(margins, market, *parameters)``.

    Raises
    ------
    TypeError
        When it is not a function, its name no text, or parameters are no names.
    """
    return OwnConditions(*_own(function, name, parameters))


class _Own(Conduct):
    """A conduct by a function of a user."""

    function: Callable[..., Any] = eqx.field(static=True)
    label: str = eqx.field(static=True)
    parameters: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """The user's name."""
        return self.label

    @property
    def taxable(self) -> bool:
        """Nobody knows."""
        return False


class OwnConduct(_Own):
    """A conduct of one's own, by a function ``function(market)`` that returns markups (J,): see `conduct`."""

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """What the function returns."""
        return _own_values(self, self.function(market, *self.parameters), market, "markup")


class OwnConditions(_Own):
    """A conduct of one's own, by conditions ``function(margins, market) = 0``: see `conditions`."""

    def markups(self, market: PricedMarket) -> Float[Array, " J"]:
        """Margins that solve the conditions, by Newton's method; NaN where it fails."""
        found = implicit(_solve_conditions, _residual, _solve_slopes, self, market)
        return jnp.where(succeeded(found.status), found.value, jnp.nan)


# conditions

_LIMITS = FixedPointLimits(max_evaluations=200)


def _residual(margins: Array, conduct: OwnConditions, market: PricedMarket) -> Array:
    """Conditions of products, and margins of absent ones, which are zero."""
    found = _own_values(conduct, conduct.function(margins, market, *conduct.parameters), market, "condition")
    return jnp.where(market.present, found, margins)


def _solve_slopes(margins: Array, right: Array, conduct: OwnConditions, market: PricedMarket) -> Array:
    return solve(jax.jacfwd(lambda m: _residual(m, conduct, market))(margins), right)


def _solve_conditions(conduct: OwnConditions, market: PricedMarket) -> FixedPoint:
    def evaluate(margins: Array) -> NewtonPoint:
        residual = _residual(margins, conduct, market)
        step = -_solve_slopes(margins, residual, conduct, market)
        size = jnp.abs(residual).max()
        return NewtonPoint(step, jnp.abs(step).max() / jnp.abs(market.prices).max(), size, -size)

    alone = -market.shares() / jnp.diagonal(market.jacobian())
    return newton(evaluate, alone, _LIMITS, math.inf)


def _own(function: Any, name: Any, parameters: Any) -> tuple[Any, str, tuple[Parameter, ...]]:
    if not callable(function):
        raise TypeError(f"function must be a function, not {type(function).__name__}.")
    label = getattr(function, "__name__", type(function).__name__) if name is None else name
    if not isinstance(label, str):
        raise TypeError(f"name must be text, not {type(name).__name__}.")
    names = (parameters,) if isinstance(parameters, str) else parameters
    if not isinstance(names, Sequence) or not all(isinstance(one, str) for one in names):
        raise TypeError(f"parameters must be names of the function's parameters, not {parameters!r}.")
    return function, label, tuple(map(Parameter, names))


def _own_values(conduct: Conduct, values: Any, market: PricedMarket, what: str) -> Array:
    """What a user's function returned, or an exception."""
    shape = market.prices.shape
    if not isinstance(values, jax.Array) or not jnp.issubdtype(values.dtype, jnp.floating):
        kind = values.dtype if isinstance(values, jax.Array) else type(values).__name__
        raise TypeError(f"The function of conduct {conduct.name!r} must return a JAX array of numbers, not {kind}.")
    if values.shape != shape:
        raise ValueError(
            f"The function of conduct {conduct.name!r} must return a {what} for each product of a market, an array of "
            f"the shape {shape} for {shape[0]} products, not {values.shape}."
        )
    return values
