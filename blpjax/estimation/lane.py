"""Lanes for estimations that have much in common: how they are built, described, and put into batches."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from blpjax.economy.buckets import Economy
from blpjax.estimation.lane_optimizer import LaneOptimizer
from blpjax.iteration import FixedPointLimits, FixedPointMethod, Iteration
from blpjax.machine.placement import Placement
from blpjax.model.parameters import BLOCKS, Coefficients, ParameterLayout, Parameters, UtilityForm
from blpjax.objective.data import ModelData
from blpjax.objective.inference import CovarianceTypes
from blpjax.objective.moments import GMM, Weighting
from blpjax.objective.structure import Specification, StructuralModel

#: Batches are made so that arrays over lanes, products and agents take about this many bytes.
BATCH_BYTES = 2**30
LARGEST_BATCH = 512


class BatchOptions(NamedTuple):
    """What decides which programs are compiled.

    Layout and inner loop, types of covariances, number of GMM steps, and the optimiser.
    """

    specification: Specification
    types: CovarianceTypes
    steps: int
    optimizer: LaneOptimizer = LaneOptimizer()


class Lane(eqx.Module):
    """Everything that one estimation depends on.

    All arrays are traced. Without `W` the first step has that of 2SLS. With a `placement` lanes are spread over its
    devices.

    Batches are two such trees: one whose arrays have a first axis of lanes, and one with what lanes share. Each has
    None where the other one has an array.
    """

    economy: Economy
    data: ModelData
    fixed: Coefficients
    theta: Float[Array, " P"]
    lower: Float[Array, " P"]
    upper: Float[Array, " P"]
    delta: Float[Array, " N"]
    cluster_ids: Int[Array, "N *G"]
    limits: FixedPointLimits
    W: Float[Array, "M M"] | None = None
    placement: Placement | None = eqx.field(static=True, default=None)

    def model(self, specification: Specification) -> StructuralModel:
        """The model of a whole lane as a function of theta."""
        return StructuralModel(specification, self.economy, self.data, self.fixed, self.limits)

    def objective(self, specification: Specification, weighting: Weighting) -> GMM:
        """What a whole lane minimises."""
        return GMM(self.model(specification), weighting, jnp.asarray(1.0))


def place_lane(lane: Lane, placement: Placement | None) -> Lane:
    """The same lane, or part of it, where lanes are spread over devices."""
    placed = copy.copy(lane)
    object.__setattr__(placed, "placement", placement)  # the constructor refuses parts of lanes where it checks types
    return placed


def build_lane(
    parameters: Parameters,
    iteration: Iteration,
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
    cluster_ids : (N,) or (N, G) clusters, see `blpjax.objective.clusters.Clusters`.
    W : (M, M) weighting matrix of the first step, by default that of 2SLS.
    """
    lower, upper = parameters.bounds
    # `jnp.asarray` would compile a program for each shape
    return Lane(
        economy=economy,
        data=data,
        fixed=Coefficients(*(jax.device_put(getattr(parameters.start, name)) for name in BLOCKS)),
        theta=jax.device_put(np.asarray(theta, float)),
        lower=jax.device_put(lower),
        upper=jax.device_put(upper),
        delta=jax.device_put(np.asarray(delta, float)),
        cluster_ids=jax.device_put(cluster_ids),
        limits=jax.tree.map(jnp.asarray, iteration.limits),
        W=None if W is None else jax.device_put(W),
    )


def split_lanes(
    move: Callable[[Lane, Any], Lane], shared: Lane, values: Any, varying: Lane | None = None
) -> tuple[Lane, Lane]:
    """What differs between lanes, with a first axis of lanes, and what they share.

    Parameters
    ----------
    move : function of a lane and of what is its own that returns the lane with this in place, without computations.
    shared : what lanes had in common before; all of a lane where there is no `varying`.
    values : what is each lane's own, with a first axis of lanes.
    varying : what differed between lanes before.
    """
    before = eqx.filter(shared, False) if varying is None else varying
    moved = jax.vmap(lambda part, value: move_lane(move, part, shared, value))(before, values)
    return moved, shared_part(shared, moved)


def move_lane(move: Callable[[Lane, Any], Lane], part: Lane, shared: Lane, value: Any) -> Lane:
    """One lane's part of what differs between lanes: nobody lists it, it is whatever `move` does not leave alone."""
    return _without(move(eqx.combine(part, shared), value), shared)


def shared_part(shared: Lane, varying: Lane) -> Lane:
    """What lanes share, given what differs between them."""
    return jax.tree.map(lambda leaf, own: leaf if own is None else None, shared, varying, is_leaf=_is_none)


def moving_leaves(move: Callable[[Lane, Any], Lane], lane: Lane, value: Any) -> Lane:
    """A tree of booleans: which leaves of a lane `move` changes, for what is one lane's own. Computes nothing."""
    found = []

    def trace(lane: Lane, value: Any) -> None:
        found.append(jax.tree.map(lambda leaf: leaf is not None, _without(move(lane, value), lane), is_leaf=_is_none))

    eqx.filter_eval_shape(trace, lane, value)
    return found[0]


def _without(lane: Lane, shared: Lane) -> Lane:
    """A lane with None in place of the leaves that are those of `shared` themselves."""
    same = {id(leaf) for leaf in jax.tree.leaves(shared)}
    return jax.tree.map(lambda leaf: None if id(leaf) in same else leaf, lane)


def read_batches(batch_size: Any, memory: Any) -> tuple[int | None, int]:
    """How many lanes a batch has, if that is given, and how many bytes a batch may need otherwise.

    Raises
    ------
    ValueError
        When one of them is not positive, or the first no integer.
    """
    if memory is not None and (
        isinstance(memory, bool) or not isinstance(memory, int | float | np.number) or not memory > 0
    ):
        raise ValueError(f"memory must be a positive number of bytes, not {memory!r}.")
    size = batch_size
    if size is not None and (isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1):
        raise ValueError(f"batch_size must be a positive integer, not {size!r}.")
    return None if size is None else int(size), BATCH_BYTES if memory is None else int(memory)


def largest_batch(economy: Economy, P: int, supply: bool, memory: int = BATCH_BYTES, more: int = 0) -> int:
    """How many lanes go into a batch, as many as `memory` bytes hold, by an estimate.

    Where lanes are vectorised, each needs about P + 16 arrays over all pairs of a market's products and agents, and
    with a supply side also pairs of products: 0.75 MB were measured for 10 markets of 20 products and 9 agents with
    P = 2, and 0.84 is the estimate. On CPUs only a few lanes are worked on at a time, and batches need less. `more` is
    how many numbers a lane has beside these.
    """
    sizes = [bucket.size for bucket in economy.buckets]
    pairs = sum(markets * products * (agents + products * supply) for markets, products, agents in sizes)
    return int(np.clip(memory // max(8 * ((P + 16) * pairs + more), 1), 1, LARGEST_BATCH))


def describe(options: BatchOptions, data: ModelData) -> str:
    """A text that is the same for the same options only, and in every process."""
    specification = options.specification
    plain = options._replace(specification=None)  # type: ignore[arg-type]
    logarithmic = data.supply is not None and data.supply.logarithmic
    layout, method = describe_layout(specification.layout), describe_method(specification.method)
    known = plain, layout, method, logarithmic
    conduct = None if data.supply is None else data.supply.conduct
    return repr(known if conduct is None else (*known, conduct.conduct))


def describe_layout(layout: ParameterLayout) -> str:
    """A text that is the same for the same layout only. Functions are told by their names and some values."""
    functions = [
        f and (f.name, f.parameters, _values(f.function, *np.full(len(f.parameters), 0.5)))
        for f in layout.form.transformations
    ]
    return repr((layout._replace(form=UtilityForm()), functions, layout.form.epsilon_scale))


def describe_method(method: FixedPointMethod) -> str:
    """A text that is the same for the same method only, see `describe_layout`."""
    norm, host = None if method.norm is None else _values(method.norm), method.host
    if host is not None and callable(host.method):
        host = dataclasses.replace(host, method=_name(host.method))
    return repr((method._replace(norm=None, host=host), norm))


def _values(function: Any, *arguments: float) -> tuple[Any, ...]:
    """Name of a function of arrays, and some of its values, of which other processes have all but the last digits."""
    found = np.asarray(function(jnp.linspace(-1.5, 2.0, 8), *arguments))
    return _name(function), [f"{value:.6g}" for value in found.ravel()]


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", ""))


def _is_none(leaf: object) -> bool:
    return leaf is None
