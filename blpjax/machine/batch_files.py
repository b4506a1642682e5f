"""Directories of studies: finished batches as Parquet files, so that nothing is lost.

A batch's file appears under its name once it is complete. Which study a directory belongs to is written there first,
and again in every file.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from blpjax.exceptions import StorageError
from blpjax.machine.pickling import replace_file

_FORMAT = 2
_NAME = "study.json"
#: Where a file's metadata say which batch of which study it holds.
_KEY = b"blpjax"


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Rows of consecutive units of a study.

    Attributes
    ----------
    first, size : number of the first unit, and how many there are.
    table : their rows. The first column numbers units.
    seconds : time that computing it took.
    peak_memory : largest memory of the process that computed it until it was done, in bytes.
    """

    first: int
    size: int
    table: pd.DataFrame
    seconds: float
    peak_memory: int


@dataclasses.dataclass(frozen=True)
class StudyFiles:
    """A directory with finished batches of `batch_size` units.

    Attributes
    ----------
    path : the directory.
    fingerprint : identifies the study, see `fingerprint_of`.
    batch_size : how many units each file has.
    columns : those of tables. The first one numbers units.
    """

    path: Path
    fingerprint: str
    batch_size: int
    columns: tuple[str, ...]

    def read(self, first: int) -> Batch | None:
        """The batch that begins with a unit, None if it has not been finished.

        Raises
        ------
        StorageError
            When its file cannot be read, or has not what it should have. The message names it.
        """
        file = self._file(first)
        if not file.exists():
            return None
        try:
            table, known = _read_parquet(file)
            batch = Batch(int(known["first"]), int(known["size"]), table, known["seconds"], int(known["peak_memory"]))
            fingerprint = str(known["fingerprint"])
        except Exception as error:  # what damaged files lead to differs between versions of Arrow
            raise _damaged(file, f"is no readable part of a study ({error})") from error
        if fingerprint != self.fingerprint:
            raise _damaged(file, "is a part of another study")
        if list(table.columns) != list(self.columns):
            found, expected = (", ".join(map(str, names)) for names in (table.columns, self.columns))
            raise _damaged(file, f"has the columns {found} instead of {expected}")
        numbers = table[self.columns[0]].to_numpy()
        rows = len(numbers) // self.batch_size
        if not np.array_equal(numbers, np.repeat(np.arange(first, first + self.batch_size), rows)) or not rows:
            raise _damaged(
                file, f"does not have the {self.columns[0]}s {first} to {first + self.batch_size - 1}, in this order"
            )
        return batch

    def write(self, batch: Batch) -> None:
        """Add a finished batch.

        Raises
        ------
        StorageError
            When it cannot be written.
        """
        file = self._file(batch.first)
        known = {name: getattr(batch, name) for name in ("first", "size", "seconds", "peak_memory")}
        try:
            _write_parquet(file, batch.table, {"fingerprint": self.fingerprint, **known})
        except OSError as error:
            raise StorageError(f"{file} cannot be written: {error}.") from error

    def _file(self, first: int) -> Path:
        return self.path / f"batch-{first:09d}.parquet"


def open_study(
    path: Path, fingerprint: str, columns: Sequence[str], batch_size: int, given: bool, unit: str
) -> StudyFiles:
    """The directory of a study, which is created where there is none.

    Parameters
    ----------
    path : the directory.
    fingerprint : identifies the study, see `fingerprint_of`.
    columns : those of batches.
    batch_size : how many units belong to a batch if the directory is new.
    given : whether the user has asked for this size. Otherwise that of the directory is used.
    unit : what units are called in messages, in the plural.

    Raises
    ------
    StorageError
        When the directory cannot be used, or holds another study or batches of another size.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise StorageError("Keeping studies in files needs pyarrow: pip install 'blpjax[studies]'.") from error
    description = path / _NAME
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not description.exists():
            with replace_file(description) as file:
                known = {"format": _FORMAT, "fingerprint": fingerprint, "batch_size": batch_size}
                file.write(json.dumps(known).encode())
        known = json.loads(description.read_text())
        found = int(known["format"]), str(known["fingerprint"]), int(known["batch_size"])
    except OSError as error:
        raise StorageError(f"{path} cannot be used as the directory of a study: {error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{description} does not describe a study.") from error
    if found[0] != _FORMAT:
        raise StorageError(f"{description} has the format {found[0]}, but this version of blpjax reads {_FORMAT}.")
    if found[1] != fingerprint:
        raise StorageError(
            f"{path} holds another study: its data, parameters, estimator or seed are not those of this one. Use "
            "another path."
        )
    if found[2] < 1:
        raise StorageError(f"{description} does not describe a study.")
    if given and found[2] != batch_size:
        raise StorageError(f"{path} holds batches of {found[2]} {unit}, not {batch_size}. Leave batch_size out.")
    return StudyFiles(path, fingerprint, found[2], tuple(columns))


def has_parts(path: Path) -> bool:
    """Whether a directory holds finished batches."""
    return any(path.glob("batch-*.parquet"))


def fingerprint_of(description: str, arrays: Iterable[object]) -> str:
    """A short text that is the same for the same description and arrays only."""
    digest = hashlib.sha256(description.encode())
    for values in arrays:
        array = np.asarray(values)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _read_parquet(file: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as opened:
        table = opened.read()
    return table.to_pandas(), json.loads(table.schema.metadata[_KEY])


def _write_parquet(file: Path, table: pd.DataFrame, known: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    written = pyarrow.Table.from_pandas(table, preserve_index=False)
    metadata = {**(written.schema.metadata or {}), _KEY: json.dumps(known).encode()}
    with replace_file(file) as stream:
        pyarrow.parquet.write_table(written.replace_schema_metadata(metadata), stream, write_page_checksum=True)


def _damaged(file: Path, what: str) -> StorageError:
    return StorageError(f"{file} {what}. Delete it, and this part will be run again.")
