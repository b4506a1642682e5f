"""The model at other parameters than the estimates, with either observed shares or structural errors held fixed.

The delta method differentiates these functions, and bootstraps map them over draws.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.buckets import Economy
from blpjax.economy.loops import Loops
from blpjax.economy.mapping import CHUNK_ELEMENTS
from blpjax.iteration import Iteration
from blpjax.kernels.arrays import AnyArray
from blpjax.machine.compilation import filtered_program
from blpjax.machine.forks import check_process
from blpjax.model.model import Model
from blpjax.model.parameters import Coefficients, all_coefficients

_NO_LOOP = Iteration("return")


class Draw(eqx.Module):
    """What differs between models: `coefficients`, and mean utilities, prices and shares (N,)."""

    coefficients: Coefficients
    delta: Float[Array, "*draws N"]
    prices: Float[Array, "*draws N"]
    shares: Float[Array, "*draws N"]

    def model(self, base: Model) -> Model:
        """The model that differs from `base` in this."""
        characteristics = base.characteristics.replace({"prices": self.prices, "shares": self.shares})
        return eqx.tree_at(
            lambda m: (m.coefficients, m.delta, m.characteristics),
            base,
            (self.coefficients, self.delta, characteristics),
        )


class Equilibrium(eqx.Module):
    """Demand at some parameters, and the loops for equilibrium prices, None where prices are fixed.

    Where shares are held, `loops` are those of their inversion.
    """

    draw: Draw
    loops: Loops | None


def covariances_of_estimates(parameter_covariances: np.ndarray, N: int) -> np.ndarray:
    """Covariances (Q, Q) of estimates, given those of sqrt(N) times their errors.

    Raises
    ------
    ValueError
        When they are unknown.
    ForkError
        When this process was forked from one that had used JAX.
    """
    check_process()
    if not np.isfinite(parameter_covariances).all():
        raise ValueError(
            "parameter_covariances of these results are unknown. Use results of the last GMM step, whose standard "
            "errors are finite."
        )
    return parameter_covariances / N


def hold_shares(model: Model, parameters: Float[Array, " Q"]) -> Model:
    """The model at parameters next to the estimates at which `model` is, with delta that reproduces its shares.

    There is no loop: the value of delta is that of `model`, and derivatives come from the implicit function theorem.
    """
    moved = eqx.tree_at(lambda m: m.coefficients, model, coefficients_at(model, parameters))
    return eqx.tree_at(lambda m: m.delta, moved, moved.invert(_NO_LOOP).delta)


@filtered_program(effort=0, what="parameters as matrices")
def coefficients_at(model: Model, parameters: Float[AnyArray, "*draws Q"]) -> Coefficients:
    """Coefficients of a model at other parameters: theta, then concentrated elements of beta and gamma.

    Draws of parameters, with a first axis, have coefficients with that axis.
    """
    place = functools.partial(all_coefficients, model.layout, model.coefficients)
    return jax.vmap(place)(parameters) if parameters.ndim == 2 else place(parameters)


@filtered_program(effort=1, what="mean utilities at other parameters")
def hold_shares_at(model: Model, coefficients: Coefficients, iteration: Iteration) -> Equilibrium:
    """Demand at other coefficients, with the mean utilities that reproduce observed shares at observed prices."""
    moved = eqx.tree_at(lambda m: m.coefficients, model, coefficients)
    found = moved.invert(iteration)
    return Equilibrium(Draw(coefficients, found.delta, moved.prices, moved.shares), Loops(**found.fields()))


@filtered_program(effort=1, what="equilibria at other parameters")
def hold_errors(
    model: Model,
    tilde_costs: Float[Array, " N"] | None,
    coefficients: Coefficients,
    iteration: Iteration | None = None,
    constant_costs: bool = True,
) -> Equilibrium:
    """Demand and equilibrium prices at other coefficients, with xi, omega and fixed effects as in `model`.

    Parameters
    ----------
    model : the model at the estimates.
    tilde_costs : (N,) costs or their logarithms at the estimates; None without a supply side, where prices are fixed.
    coefficients : coefficients at which to evaluate.
    iteration, constant_costs : see `Model.compute_prices`.
    """
    known, before = model.characteristics, model.coefficients
    X1, _ = known.evaluate({})
    delta = model.delta + X1 @ (coefficients.beta - before.beta)
    moved = eqx.tree_at(lambda m: (m.coefficients, m.delta), model, (coefficients, delta))
    if tilde_costs is None:
        return Equilibrium(_draw(moved.at({})), None)
    costs = tilde_costs + known.evaluate_X3({}) @ (coefficients.gamma - before.gamma)
    if model.costs_type == "log":
        costs = jnp.exp(costs)
    found = moved.solve_prices(costs=costs, iteration=iteration, constant_costs=constant_costs)
    return Equilibrium(_draw(moved.at({"prices": found.prices})), Loops(**found.fields()))


def _draw(model: Model) -> Draw:
    return Draw(model.coefficients, model.delta, model.prices, model.shares)


def lanes(economy: Economy, outputs: int = 0, elements: int | None = None) -> int:
    """How many models can be evaluated side by side in bounded memory, when each has so many numbers as outputs.

    The bound is on `elements` of arrays, by default `CHUNK_ELEMENTS`.
    """
    pairs = sum(T * J * max(J, width) for T, J, width in (bucket.size for bucket in economy.buckets))
    return max(1, (CHUNK_ELEMENTS if elements is None else elements) // max(pairs, outputs, 1))


def map_lanes(function: Callable[..., Any], arrays: Any, size: int) -> Any:
    """Call a function of pytrees with a first axis for chunks of at most `size` along it; NumPy arrays come back.

    All chunks have the same size, so that programs are compiled once: the last one repeats its last element.
    """
    total = jax.tree.leaves(arrays)[0].shape[0]
    size = min(size, total)
    parts = []
    for first in range(0, total, size):
        chosen = np.minimum(np.arange(first, first + size), total - 1)
        found = function(arrays if size == total else _take(arrays, chosen))
        parts.append(jax.tree.map(np.asarray, found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:total], *parts)


def _take(arrays: Any, places: np.ndarray) -> Any:
    # chosen on the host: there each shape would be a program of its own
    return jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[places], arrays))
