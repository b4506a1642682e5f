"""Lanes for estimations that differ in little from one of `Problem.solve`: in starting values, or in the sample."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from blpjax.batch import BatchOptions, Lane
from blpjax.economy import Economy
from blpjax.moments import ModelData, Specification
from blpjax.parameters import BLOCKS, Coefficients, UtilityForm
from blpjax.solver import StepOptions, usable_bounds

#: Batches are made so that arrays over lanes, products and agents take about this many bytes.
BATCH_BYTES = 2**30
LARGEST_BATCH = 512


def build_lane(
    options: StepOptions,
    economy: Economy,
    data: ModelData,
    theta: np.ndarray,
    delta: np.ndarray,
    cluster_ids: np.ndarray,
    W: np.ndarray | None = None,
) -> Lane:
    """One estimation with the parameters, bounds and inner loop of `Problem.solve`.

    Parameters
    ----------
    theta, delta : (P,) and (N,) where the optimiser and inversions start.
    cluster_ids : (N,) clusters, counted from zero.
    W : (M, M) weighting matrix of the first step, by default that of 2SLS.
    """
    lower, upper = usable_bounds(options)
    return Lane(
        economy=economy,
        data=data,
        fixed=Coefficients(*(jnp.asarray(getattr(options.parameters.start, name)) for name in BLOCKS)),
        theta=jnp.asarray(theta, float),
        lower=jnp.asarray(lower),
        upper=jnp.asarray(upper),
        delta=jnp.asarray(delta, float),
        cluster_ids=jnp.asarray(cluster_ids),
        limits=jax.tree.map(jnp.asarray, options.iteration.limits),
        W=None if W is None else jnp.asarray(W),
    )


def split_lane(lane: Lane, where: Callable[[Lane], Any], values: Any) -> tuple[Lane, Lane]:
    """What differs between lanes, with a first axis of lanes, and what they share.

    Parameters
    ----------
    lane : one of them.
    where : function of a lane that returns leaves, among them such as are None in `lane`.
    values : arrays to take their place, with a first axis of lanes.
    """
    nothing = eqx.filter(lane, False)
    varying = eqx.tree_at(where, nothing, values, is_leaf=_is_none)
    return varying, eqx.tree_at(where, lane, [None] * len(values), is_leaf=_is_none)


def largest_batch(economy: Economy, P: int, more: int = 0, memory: int = BATCH_BYTES) -> int:
    """How many lanes go into a batch, as many as `memory` bytes hold when each has `more` numbers beside its own."""
    pairs = sum(int(np.prod(bucket.size)) for bucket in economy.buckets)
    return int(np.clip(memory // max(8 * ((P + 8) * pairs + more), 1), 1, LARGEST_BATCH))


def describe(options: BatchOptions) -> str:
    """A text that is the same for the same options only, and in every process: functions are told by their names."""
    specification = options.specification
    layout, method = specification.layout, specification.method
    functions = [f and (f.name or _name(f.function), f.parameters) for f in layout.form.transformations]
    plain = Specification(layout._replace(form=UtilityForm()), method._replace(norm=None))
    named = None if method.norm is None else _name(method.norm)
    return repr((options._replace(specification=plain), functions, layout.form.epsilon_scale, named))


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", ""))


def _is_none(leaf: object) -> bool:
    return leaf is None
