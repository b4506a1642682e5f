"""Files of arrays and JSON: a tree of plain values in, the same tree out. Knows nothing of problems and results.

A file is a zip archive. `document.json` says what the file is (format, version of the format, kind) and holds the tree,
in which arrays are references to the other members, `arrays/0.npy` and so on: plain NumPy arrays, which `numpy.load`
opens too. Reading executes no code: arrays of objects are never pickled, and JSON has no functions.
"""

import datetime
import hashlib
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from blpjax.exceptions import StorageError
from blpjax.machine.pickling import replace_file

FORMAT = "blpjax"

#: Version of the format. Files of older versions can be read, those of newer ones cannot.
VERSION = 1

_DOCUMENT = "document.json"
_PLAIN_KINDS = "biufUMm"


def write(path: str | os.PathLike[str], kind: str, state: Mapping[str, Any]) -> None:
    """Write a tree to a file. A file that exists is replaced, in one step, once everything is written.

    Parameters
    ----------
    path : where to write. No suffix is added.
    kind : what the tree describes, for `read` to check.
    state : dictionaries with string keys, lists and tuples (which are read as lists) of strings, numbers, booleans,
        None, dates, timestamps and NumPy arrays, also arrays of such objects. Arrays are stored bit by bit.

    Raises
    ------
    TypeError
        For anything else; the message says where it is in the tree.
    OSError
        When the file cannot be written. What was there before is still there.
    """
    arrays = _Arrays()
    document = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "blpjax": _library_version(),
        "state": _encode(state, "state", arrays),
    }
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    with (
        replace_file(Path(os.path.realpath(path))) as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        _add_member(archive, _DOCUMENT, text.encode("ascii"))
        for name, array in arrays.by_name.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            _add_member(archive, name, buffer.getbuffer())


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Read a tree that `write` has written.

    Raises
    ------
    StorageError
        When the file is not one of blpjax, is of another kind, is damaged, or has a newer version of the format.
    OSError
        When the file cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            _check_zip(file, path)
            with zipfile.ZipFile(file) as archive:
                document = _read_document(archive, path)
                _check_document(document, kind, path)
                state = _decode(document["state"], archive)
    except StorageError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise StorageError(f"The file '{os.fspath(path)}' is damaged: {reason}") from error
    if not isinstance(state, dict):
        raise StorageError(f"The file '{os.fspath(path)}' is damaged: its content is not a dictionary.")
    return state


def find_unsupported(values: np.ndarray) -> int | None:
    """Position of the first element (of the flattened array) that `write` cannot store, or None."""
    if values.dtype.kind in _PLAIN_KINDS:
        return None
    if values.dtype.kind != "O":
        return 0
    return next((i for i, value in enumerate(values.reshape(-1)) if not _is_scalar(value)), None)


class _Arrays:
    """The arrays of a tree by the names of members. Equal ones are stored once."""

    def __init__(self) -> None:
        self.by_name: dict[str, np.ndarray] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def add(self, array: np.ndarray) -> str:
        content = hashlib.sha256(array.tobytes()).digest()
        key = (array.dtype.str, array.shape, array.flags.c_contiguous, content)
        name = self._names.setdefault(key, f"arrays/{len(self._names)}.npy")
        self.by_name.setdefault(name, array)
        return name


def _encode(value: Any, where: str, arrays: _Arrays) -> Any:
    """JSON for one node of the tree. Plain arrays go to `arrays`."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{where} cannot be stored: its keys are not all strings.")
        return {_escape(key): _encode(item, f"{where}[{key!r}]", arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item, f"{where}[{i}]", arrays) for i, item in enumerate(value)]
    if isinstance(value, np.ndarray):
        return _encode_array(np.asarray(value), where, arrays)
    if not _is_scalar(value):
        raise TypeError(f"{where} cannot be stored: it is {type(value).__module__}.{type(value).__qualname__}.")
    return _encode_scalar(value)


def _encode_array(array: np.ndarray, where: str, arrays: _Arrays) -> Any:
    bad = find_unsupported(array)
    if bad is not None:
        found = array.dtype if array.dtype.kind != "O" else type(array.reshape(-1)[bad]).__qualname__
        raise TypeError(f"{where} cannot be stored: element {bad} of the array is {found}.")
    if array.dtype.kind in _PLAIN_KINDS:
        return {"$array": arrays.add(array)}
    text = _as_text(array)
    if text is not None:
        return {"$text": arrays.add(text)}
    return {"$objects": {"shape": list(array.shape), "values": [_encode_scalar(value) for value in array.reshape(-1)]}}


def _as_text(array: np.ndarray) -> np.ndarray | None:
    """Strings as an array of fixed width, None where that would not be the same or would take much more memory."""
    values = array.reshape(-1).tolist()
    if not values or not all(type(value) is str for value in values):
        return None
    lengths = [len(value) for value in values]
    if max(lengths) * len(values) > 8 * sum(lengths) + 1024:
        return None
    text = np.array(values, dtype=str)
    # NumPy drops null characters at the end
    return text.reshape(array.shape) if text.tolist() == values else None


def _is_scalar(value: object) -> bool:
    """Whether one element can be stored without loss."""
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    if isinstance(value, str | bool | np.bool_ | int | np.integer | float | np.float16 | np.float32):
        return True
    if isinstance(value, pd.Timestamp) or type(value) is datetime.datetime:
        return _keeps_zone(value)
    return type(value) is datetime.date


def _keeps_zone(value: datetime.datetime) -> bool:
    """Whether a moment comes back with its time zone: some time zones have no name that says what they are."""
    if value.tzinfo is None or value.tzinfo is datetime.UTC:
        return True
    try:
        restored = _restore_scalar(_encode_scalar(value))
    except (LookupError, TypeError, ValueError):
        return False
    return bool(restored == value) and str(restored.tzinfo) == str(value.tzinfo)


def _encode_scalar(value: Any) -> Any:
    if value is pd.NA or value is pd.NaT:
        return {"$missing": str(value)}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(float(value))}
    if isinstance(value, pd.Timestamp):
        zone = None if value.tzinfo is None else str(value.tzinfo)
        return {"$timestamp": [int(value.asm8.view("i8")), value.unit, zone]}
    if isinstance(value, datetime.datetime):
        return {"$datetime": value.isoformat()}
    if isinstance(value, datetime.date):
        return {"$date": value.isoformat()}
    return value


def _decode(value: Any, archive: zipfile.ZipFile) -> Any:
    if isinstance(value, list):
        return [_decode(item, archive) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if not tag.startswith("$") or tag.startswith("$$"):
        return {_unescape(key): _decode(item, archive) for key, item in value.items()}
    content = value[tag]
    if tag == "$array":
        return _read_array(archive, content)
    if tag == "$text":
        return _read_array(archive, content).astype(object)
    if tag == "$objects":
        array = np.empty(len(content["values"]), dtype=object)
        for i, item in enumerate(content["values"]):
            array[i] = _restore_scalar(item)
        return array.reshape(content["shape"])
    return _restore_scalar(value)


def _restore_scalar(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    (tag, content), *_ = value.items()
    if tag not in _SCALARS:
        raise ValueError(f"there is an unknown type {tag!r}.")
    return _SCALARS[tag](content)


def _restore_timestamp(content: list[Any]) -> pd.Timestamp:
    count, unit, zone = content
    moment = pd.Timestamp(np.datetime64(count, unit))
    return moment if zone is None else moment.tz_localize("UTC").tz_convert(zone)


_SCALARS: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$missing": {"<NA>": pd.NA, "NaT": pd.NaT}.__getitem__,
    "$timestamp": _restore_timestamp,
    "$datetime": datetime.datetime.fromisoformat,
    "$date": datetime.date.fromisoformat,
}


def _escape(key: str) -> str:
    return "$" + key if key.startswith("$") else key


def _unescape(key: str) -> str:
    return key[1:] if key.startswith("$$") else key


def _check_zip(file: IO[bytes], path: str | os.PathLike[str]) -> None:
    if zipfile.is_zipfile(file):
        return
    file.seek(0)
    if file.read(2) == b"PK":
        raise StorageError(f"The file '{os.fspath(path)}' is damaged: its end is missing.")
    raise _not_ours(path)


def _read_document(archive: zipfile.ZipFile, path: str | os.PathLike[str]) -> dict[str, Any]:
    if _DOCUMENT not in archive.namelist():
        raise _not_ours(path)
    document = json.loads(archive.read(_DOCUMENT))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _not_ours(path)
    return document


def _check_document(document: Mapping[str, Any], kind: str, path: str | os.PathLike[str]) -> None:
    version = document["version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{version!r} is no version of the format.")
    if version > VERSION:
        raise StorageError(
            f"The file '{os.fspath(path)}' was written by blpjax {document.get('blpjax')} in version {version} of the "
            f"file format, but the installed blpjax {_library_version()} reads versions up to {VERSION}. Upgrade it."
        )
    if document["kind"] != kind:
        raise StorageError(f"The file '{os.fspath(path)}' does not hold {kind} but {document['kind']}.")


def _not_ours(path: str | os.PathLike[str]) -> StorageError:
    return StorageError(f"The file '{os.fspath(path)}' was not written by blpjax.")


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    if name not in archive.namelist():
        raise ValueError(f"'{name}' is missing.")
    # the whole member, so that its checksum is compared
    array = np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
    if array.dtype.kind not in _PLAIN_KINDS:
        raise ValueError(f"'{name}' is an array of {array.dtype}.")
    return array


def _add_member(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Add a member without the time of writing: equal trees give equal files."""
    archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, compresslevel=1)


def _library_version() -> str:
    try:
        return metadata.version("blpjax")
    except metadata.PackageNotFoundError:
        return "of unknown version"
