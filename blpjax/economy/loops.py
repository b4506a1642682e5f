"""How the loops of all markets ended, and what they took."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from blpjax.economy.buckets import Economy
from blpjax.exceptions import Status
from blpjax.kernels.fixed_point import FixedPoint


class Loops(eqx.Module):
    """The loops of all markets: the base of every result that comes from some.

    Arrays, of JAX or on the host, are (T,) in the sorted order of market IDs, or have one more axis, of draws or
    evaluations. `status` are codes of `blpjax.exceptions.Status`; for the others see `FixedPoint`.
    """

    status: Int[Any, "..."]
    iterations: Int[Any, "..."]
    evaluations: Int[Any, "..."]
    residuals: Float[Any, "..."]

    def fields(self) -> dict[str, Any]:
        """These four arrays by name, without what else a result has."""
        return {name: getattr(self, name) for name in ("status", "iterations", "evaluations", "residuals")}


def gather_loops(economy: Economy, found: Sequence[FixedPoint]) -> Loops:
    """Loops (T,) in the sorted order of market IDs, from those of the markets of each bucket."""
    return Loops(
        status=economy.gather_markets([part.status for part in found]),
        iterations=economy.gather_markets([part.iterations for part in found]),
        evaluations=economy.gather_markets([part.evaluations for part in found]),
        residuals=economy.gather_markets([part.residual for part in found]),
    )


def no_loops(*shape: int) -> Loops:
    """What stands for loops where none are needed: they converged without an evaluation."""
    zeros = np.zeros(shape, int)
    return Loops(zeros + int(Status.CONVERGED), zeros, zeros, zeros.astype(float))


def worst_loops(loops: Loops, axis: int) -> Loops:
    """Loops (T,) that ended worst, along the axis of draws."""
    worst = np.expand_dims(np.asarray(loops.status).argmax(axis), axis)
    found = {name: np.take_along_axis(np.asarray(values), worst, axis) for name, values in loops.fields().items()}
    return Loops(**{name: values.squeeze(axis) for name, values in found.items()})
