"""Where markets live: on one device, or spread over several devices, perhaps of several processes."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blpjax.exceptions import DataError
from blpjax.machine.forks import check_process

#: Name of the axis of devices.
AXIS = "markets"

Devices = int | Sequence[Any] | None
"""The first so many devices, devices of JAX, or all that there are in all processes."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices over which markets are spread in blocks of equal numbers. Equal by value, so that programs are reused.

    Pickles hold no devices: there a placement becomes None.
    """

    mesh: Mesh

    @property
    def size(self) -> int:
        """Number of devices, in all processes."""
        return self.mesh.size

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """Devices in the order of their blocks of markets."""
        return tuple(self.mesh.devices.flat)

    def on_each(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Results of a function of a device's own markets, with the markets of all devices along the first axes.

        Each device runs the function on its own. Loops wait for no other device's.

        Parameters
        ----------
        function : takes and returns pytrees whose arrays have markets along their first axes. What it encloses, traced
            or not, is the same on all devices.
        arguments : pytrees of arrays (T, ...), where `size` divides T.
        """
        # no communication inside: nothing that the check of replicated values could find, and loops do not support it
        spread = jax.shard_map(
            function, mesh=self.mesh, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(AXIS), check_vma=False
        )
        return spread(*arguments)

    def gather(self, tree: Any) -> Any:
        """Arrays that every device, and so every process, has as a whole. May be traced."""
        return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec()))

    def spread(self, values: np.ndarray) -> jax.Array:
        """Put the blocks of host values (T, ...) on their devices, without putting all of them on one."""
        return self._put(values, PartitionSpec(AXIS))

    def repeat(self, values: np.ndarray) -> jax.Array:
        """Put host values on every device."""
        return self._put(values, PartitionSpec())

    def check_same(self, parts: Mapping[str, Any]) -> None:
        """Check that all processes hold the same arrays, for pytrees of host arrays by what they are called.

        Every process has to call this.

        Raises
        ------
        DataError
            When they do not; the message names the parts.
        """
        if jax.process_count() == 1:
            return
        from jax.experimental import multihost_utils

        own = np.stack([np.frombuffer(_digest(tree), np.uint8) for tree in parts.values()])
        everyone = multihost_utils.process_allgather(own)
        same = (everyone == everyone[0]).all(axis=(0, 2))
        differ = [name for name, agrees in zip(parts, same, strict=True) if not agrees]
        if differ:
            raise DataError(
                f"The processes do not have the same problem: {', '.join(differ)} differ. Every process has to read "
                "the same data, and integrations that draw nodes need a seed."
            )

    def _put(self, values: np.ndarray, spec: PartitionSpec) -> jax.Array:
        host = np.asarray(values)
        return jax.make_array_from_callback(host.shape, NamedSharding(self.mesh, spec), lambda block: host[block])

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_placement, ()

    def __deepcopy__(self, memo: Any) -> "Placement":
        return self


def build_placement(devices: Devices = None) -> Placement:
    """Devices in one row.

    Parameters
    ----------
    devices : how many, devices of JAX, or None for all devices of all processes.

    Raises
    ------
    TypeError
        When `devices` is none of this.
    ValueError
        When there are fewer devices, or a device is given twice; with several processes, when one of them has none.
    """
    found = read_devices(devices, jax.devices())
    idle = sorted(set(range(jax.process_count())) - {device.process_index for device in found})
    if idle:
        raise ValueError(
            f"The {len(found)} devices leave process {idle[0]} of {jax.process_count()} without one. Every process "
            "needs a device: use devices=None for all of them."
        )
    return Placement(Mesh(np.array(found), (AXIS,)))


def read_devices(devices: Devices, known: Sequence[jax.Device]) -> list[jax.Device]:
    """Some of the known devices, by their number or as they are, or all of them.

    Raises
    ------
    TypeError, ValueError
        See `build_placement`.
    """
    if devices is None:
        return list(known)
    if isinstance(devices, int | np.integer) and not isinstance(devices, bool):
        if not 1 <= devices <= len(known):
            raise ValueError(f"devices must be between 1 and {len(known)}, the number that JAX finds, not {devices}.")
        return list(known[: int(devices)])
    if not isinstance(devices, list | tuple) or not all(isinstance(device, jax.Device) for device in devices):
        raise TypeError(f"devices must be a number, a list of devices such as jax.devices(), or None, not {devices!r}.")
    if not devices:
        raise ValueError("devices must not be empty.")
    if len(set(devices)) < len(devices):
        raise ValueError("devices must not have a device twice.")
    return list(devices)


def _digest(tree: Any) -> bytes:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        host = np.ascontiguousarray(leaf)
        found.update(f"{host.dtype} {host.shape} ".encode())
        found.update(host.tobytes())
    return found.digest()


def _no_placement() -> None:
    """What is left of a placement in a pickle."""


def on_device(values: jax.Array | np.ndarray) -> jax.Array:
    """An array of JAX: wherever it is if it is one already, and nothing is compiled for it."""
    if isinstance(values, jax.Array):
        return values
    check_process()
    return jax.device_put(values)
