"""Compiled programs on disk, which a later process runs without tracing, lowering or compiling anything.

One file holds one program. Its name is a digest of all that decides what the program is: the code of this package,
versions of what compiles it, the processor, the function, its static arguments, and shapes of arrays. Files hold native
code, so they are read and written only in a directory that belongs to the user and that nobody else can write to.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import stat
import sys
import tempfile
import types
from io import BytesIO
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jaxlib
import numpy as np
from jax.tree_util import PyTreeDef, default_registry

from blpjax.exceptions import warn_user
from blpjax.machine.caches import say_not_kept

#: Files that were not used for longest are removed when there are more bytes than this.
CAPACITY = 2**30

#: How many programs a process writes before it looks at the size of the store again.
_BETWEEN_LOOKS = 50

_MAGIC = b"blpjax program 1\n"

#: Functions and classes of these packages are known by name: their code changes with versions that names of files have.
_KNOWN = ("blpjax", "builtins", "collections", "equinox", "functools", "jax", "jaxlib", "numpy", "operator")

#: What `jax.jit` returns.
_JITTED = type(jax.jit(len))


class NotStorableError(Exception):
    """Something that a program depends on has no description that means the same in another process."""


class _Describer(pickle.Pickler):
    """A pickler that refers by name to known functions and classes only, and describes equal values equally."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.fast = True  # no references to what came before: they depend on identity

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, set | frozenset):  # their order differs from process to process
            return type(value).__name__, tuple(sorted(map(describe, value)))
        return None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            if str(value.__module__).partition(".")[0] not in _KNOWN:
                raise NotStorableError(f"{value.__module__}.{value.__qualname__}")
        elif isinstance(value, PyTreeDef):
            return _tree, _parts(value)
        elif isinstance(value, _JITTED):
            name = str(getattr(value, "__qualname__", None))
            if str(value.__module__).partition(".")[0] not in _KNOWN:
                raise NotStorableError(f"{value.__module__}.{name}")
            return name  # by name, such as `jax.nn.sigmoid`
        elif isinstance(value, jax.Array):
            raise NotStorableError(type(value).__name__)
        elif getattr(sys.modules.get(type(value).__module__), "MISSING", None) is value:
            return "MISSING"  # equinox compares it by identity
        return NotImplemented


def describe(value: Any) -> bytes:
    """A description of static values and tree structures from which `restore` makes them again.

    Raises
    ------
    NotStorableError
        When something is not known in other processes, such as a user's function.
    """
    file = BytesIO()
    try:
        _Describer(file).dump(value)
    except NotStorableError:
        raise
    except Exception as error:  # pickling calls methods of what it describes: anything may go wrong
        raise NotStorableError(str(error)) from error
    return file.getvalue()


class _Restorer(pickle.Unpickler):
    def persistent_load(self, identity: Any) -> Any:
        name, elements = identity
        return {"set": set, "frozenset": frozenset}[name](map(restore, elements))


def restore(description: bytes) -> Any:
    """The value that has a description. Only for what this process, or a store, is known to have written."""
    return _Restorer(BytesIO(description)).load()


def _parts(tree: PyTreeDef) -> tuple[Any, ...]:
    if tree.node_data() is None:
        return (tree.num_leaves > 0,)
    return (True, *tree.node_data(), *tree.children())


def _tree(leaf: bool, *node: Any) -> PyTreeDef:
    """The structure of a leaf, of None, or of a node with its type, auxiliary data and children."""
    if not node:
        return jax.tree.structure(0 if leaf else None)
    kind, auxiliary, *children = node
    return PyTreeDef.from_node_data_and_children(default_registry, (kind, auxiliary), children)


class Store:
    """Programs in a directory, which is made when the first one is written."""

    def __init__(self, directory: Path, capacity: int = CAPACITY) -> None:
        self.directory = directory
        self.capacity = capacity
        self._written = 0
        self._refused = False

    def path(self, name: str, description: bytes) -> Path:
        """The file of a program that has a description, under this name."""
        digest = hashlib.sha256(b"\0".join([_surroundings(), name.encode(), description])).hexdigest()
        return self.directory / f"{name}-{digest[:40]}"

    def read(self, path: Path) -> bytes | None:
        """What was written, or None where there is no such file or it is damaged. A damaged one is removed."""
        if not self._usable():
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        head = len(_MAGIC) + hashlib.sha256().digest_size
        content = data[head:]
        if not data.startswith(_MAGIC) or data[len(_MAGIC) : head] != hashlib.sha256(content).digest():
            self.remove(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def write(self, path: Path, content: bytes) -> None:
        """Keep a program. Where that is impossible (no space, a directory that is not the user's) this is said once."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._usable():
                return
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_MAGIC + hashlib.sha256(content).digest() + content)
                os.replace(name, path)
            except OSError:
                os.unlink(name)
                raise
        except OSError as error:
            say_not_kept(self.directory, error.strerror or error)
            return
        if self._written % _BETWEEN_LOOKS == 0:
            self._shrink()
        self._written += 1

    def remove(self, path: Path) -> None:
        """Remove a program that turned out not to work here."""
        with contextlib.suppress(OSError):
            path.unlink()

    def _usable(self) -> bool:
        """Whether the directory is there, the user's, and nobody else can write to it."""
        if self._refused:
            return False
        try:
            found = self.directory.lstat()
        except OSError:
            return False
        if os.name != "posix":
            return stat.S_ISDIR(found.st_mode)
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
        if not mine:
            self._refused = True
            warn_user(
                f"Compiled programs are neither kept in nor read from {self.directory}, because it is not a directory "
                "of yours that only you can write to. Remove it, or have BLPJAX_COMPILATION_CACHE name another one.",
                UserWarning,
            )
        return mine

    def _shrink(self) -> None:
        """Remove what was not used for longest where there is too much."""
        found = []
        for entry in os.scandir(self.directory):
            with contextlib.suppress(OSError):  # another process removed it
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime, status.st_size, entry.path))
        excess = sum(size for _, size, _ in found) - self.capacity
        if excess <= 0:
            return
        for _, size, name in sorted(found):
            if excess <= -self.capacity // 4:
                break
            self.remove(Path(name))
            excess -= size


@functools.cache
def _surroundings() -> bytes:
    """Digest of what all programs of this process depend on: code, versions, devices, and settings of XLA."""
    device = jax.devices()[0]
    known = [
        jax.__version__,
        jaxlib.version.__version__,
        eqx.__version__,
        np.__version__,
        device.platform,
        device.device_kind,
        str(device.client.platform_version),
        str(len(jax.devices())),
        *(f"{name}={os.environ.get(name, '')}" for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
    ]
    digest = hashlib.sha256("\0".join(known).encode())
    root = Path(__file__).parents[1]
    for file in sorted(map(str, root.rglob("*.py"))):
        digest.update(file[len(str(root)) :].encode() + b"\0")
        with open(file, "rb") as source:
            digest.update(source.read())
    return digest.digest()
