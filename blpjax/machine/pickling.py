"""Pickle files under PyBLP's names. `ProblemResults.save` and `blpjax.load` are the durable and safe format.

Pickles hold whole Python objects. Reading one can execute anything that is written in it, and one that was written by
another version of blpjax, JAX or pandas may not be readable. Use them between programs of one's own.
"""

import contextlib
import os
import pickle
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from blpjax.exceptions import StorageError


def save_pickle(x: object, path: str | os.PathLike[str]) -> None:
    """Write an object to a pickle file. A file that exists is replaced, in one step, once everything is written.

    Use `ProblemResults.save` for what is kept: other versions of blpjax read such files, and pickles perhaps not.

    Parameters
    ----------
    x : what to write: problems, simulations, results and configurations all can be.
    path : where to write. No suffix is added.

    Raises
    ------
    TypeError
        When the object holds something that cannot be pickled, such as a `lambda` or a function that was defined within
        another function.
    OSError
        When the file cannot be written. What was there before is still there.
    """
    try:
        content = pickle.dumps(x, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"The {type(x).__name__} cannot be pickled: {error}. Functions, such as those of custom configurations, "
            "have to be defined by 'def' at the top level of a module."
        ) from error
    with replace_file(Path(os.path.realpath(path))) as file:
        file.write(content)


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """Read an object from a pickle file that `save_pickle` or `to_pickle` has written.

    **Read only files from sources that you trust**: a pickle file can contain a program, which reading it executes.
    `blpjax.load`, for files of `ProblemResults.save`, executes nothing.

    Parameters
    ----------
    path : the file.

    Raises
    ------
    OSError
        When the file cannot be opened.
    StorageError
        When it names modules or classes that do not exist, because another version of blpjax wrote it, or a program
        with other modules.
    pickle.UnpicklingError, EOFError
        When it is not a pickle file, or is damaged.
    """
    with open(path, "rb") as file:
        try:
            return pickle.load(file)
        except (AttributeError, ModuleNotFoundError) as error:
            raise StorageError(
                f"The pickle file '{os.fspath(path)}' holds objects of another version of blpjax, or of another "
                f"program ({error}). Read it there, and keep results in files of ProblemResults.save, which "
                "blpjax.load reads in later versions, too."
            ) from error


class Picklable:
    """Objects with the method `to_pickle`."""

    def to_pickle(self, path: str | os.PathLike[str]) -> None:
        """Write this object to a pickle file, which `blpjax.read_pickle` reads.

        Pickles are for files that one trusts and reads soon, with the same versions of everything; the durable format
        is that of `ProblemResults.save` and `blpjax.load`. See `blpjax.save_pickle` for errors.
        """
        save_pickle(self, path)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place when everything has been written, and disappears when not.

    Raises
    ------
    OSError
        When `path` is a directory, is in none, or cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a directory.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no directory '{path.parent}'.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
