"""Directories of Monte Carlo studies: finished batches as Parquet files, so that nothing is lost.

A batch's file appears under its name once it is complete. Which study a directory belongs to is written there first.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from blpjax.exceptions import StorageError
from blpjax.pickling import replace_file

_FORMAT = 1
_NAME = "study.json"


@dataclasses.dataclass(frozen=True)
class StudyFiles:
    """A directory with finished batches of `batch_size` replications."""

    path: Path
    batch_size: int

    def read(self, first: int) -> pd.DataFrame | None:
        """The batch that begins with a replication, None if it has not been finished.

        Raises
        ------
        StorageError
            When its file cannot be read.
        """
        file = self._file(first)
        if not file.exists():
            return None
        try:
            return pd.read_parquet(file)
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"{file} is no readable part of a study ({error}). Delete it, and its replications will be run again."
            ) from error

    def write(self, first: int, batch: pd.DataFrame) -> None:
        """Add a finished batch."""
        with replace_file(self._file(first)) as file:
            batch.to_parquet(file, index=False)

    def _file(self, first: int) -> Path:
        return self.path / f"batch-{first:09d}.parquet"


def open_study(path: Path, fingerprint: str, batch_size: int, given: bool) -> StudyFiles:
    """The directory of a study, which is created where there is none.

    Parameters
    ----------
    path : the directory.
    fingerprint : identifies the study, see `fingerprint_of`.
    batch_size : how many replications belong to a batch if the directory is new.
    given : whether the user has asked for this size. Otherwise that of the directory is used.

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
                file.write(
                    json.dumps({"format": _FORMAT, "fingerprint": fingerprint, "batch_size": batch_size}).encode()
                )
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
    if given and found[2] != batch_size:
        raise StorageError(f"{path} holds batches of {found[2]} replications, not {batch_size}. Leave batch_size out.")
    return StudyFiles(path, found[2])


def fingerprint_of(description: str, arrays: Iterable[object]) -> str:
    """A short text that is the same for the same description and arrays only."""
    digest = hashlib.sha256(description.encode())
    for values in arrays:
        array = np.asarray(values)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
