"""Studies run in batches, here or by an executor: nothing finished is lost, and no order changes a table.

What a study computes is its own business, see `Study`.
"""

import collections
import contextlib
import multiprocessing.context
import shutil
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import tqdm

from blpjax import options
from blpjax.exceptions import StudyError
from blpjax.machine.batch_files import Batch, StudyFiles, open_study
from blpjax.machine.forks import check_process
from blpjax.machine.memory import peak_memory, require_memory

#: How often a batch whose worker was lost is given to another one.
RETRIES = 3
#: An executor gets at least this many batches, unless the user has said how large they are: each worker has some then.
LEAST_BATCHES = 32
#: How many batches are submitted at once to an executor that does not tell how many workers it has.
IN_FLIGHT = 256


@runtime_checkable
class Study(Protocol):
    """Units of work, numbered from zero, each of which gives some rows of a table, as many as every other one.

    Studies travel to workers: they have to be picklable.
    """

    @property
    def unit(self) -> str:
        """What units are called, in the plural, such as `replications`."""

    @property
    def fingerprint(self) -> str:
        """A text that two studies share only if their tables are the same."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the table. The first one numbers units."""

    def run_batch(self, first: int, size: int) -> pd.DataFrame:
        """The rows of units `first`, ..., ``first + size - 1``, in this order."""


class Sizes(NamedTuple):
    """How many units a batch has: as many as were asked for, or else at most as many as memory holds.

    A unit takes `unit_bytes` at least.
    """

    given: int | None
    largest: int
    unit_bytes: int = 0


class StudyOutcome(NamedTuple):
    """A study that was run.

    Attributes
    ----------
    table : rows of all units, in order.
    batches : a row for each batch: its `first` unit, `size`, `seconds` that it took, and `peak_memory` of the process
        that ran it until then, in bytes. Those of batches that were found in files are of when they were run.
    seconds : time that this run took.
    peak_memory : largest memory of processes that ran batches now, or if none did of this one, in bytes.
    """

    table: pd.DataFrame
    batches: pd.DataFrame
    seconds: float
    peak_memory: int


def run_study(
    study: Study, count: int, sizes: Sizes, path: Path | None = None, executor: Any = None, in_flight: int | None = None
) -> StudyOutcome:
    """Run units 0, 1, ..., `count` - 1 of a study, except for batches that are finished already.

    All batches have the same size: of the last one rows that are too many are cut. Rows of a unit hence do not depend
    on the count, down to the last bit. Without a given size the count is divided evenly, so that there are less units
    too many than batches. A directory's size stays what it was.

    Parameters
    ----------
    study : what to run.
    count : number of units.
    sizes : how many units a batch has.
    path : directory of finished batches, each of which is written as it finishes, by this process.
    executor : where batches are run: an object with the method `submit` of `concurrent.futures.Executor`. Without one
        they are run here, one after the other.
    in_flight : how many batches are submitted at once. By default two for each worker, or 256 where the executor does
        not tell how many it has.

    Raises
    ------
    StorageError
        When `path` cannot be used, holds another study, or a file there cannot be read.
    StudyError
        When workers of the executor were lost again and again, or it is broken. Finished batches are kept.
    ValueError
        For an executor with processes that are forked from this one: JAX may hang in them.
    SizeError
        When there is no memory for all rows of the table, or for a batch.
    """
    began = time.perf_counter()
    check_process()
    _check_executor(executor)
    files, size = None, _choose_size(count, sizes, executor is not None)
    row = 8 * len(study.columns)
    require_memory(count * row, f"The table of {count:,} {study.unit}", f"Run fewer {study.unit}.")
    unit = max(row, sizes.unit_bytes)
    require_memory(size * unit, f"A batch of {size:,} {study.unit}", "Use a smaller batch_size, or leave it out.")
    if path is not None:
        files = open_study(path, study.fingerprint, study.columns, size, sizes.given is not None, study.unit)
        size = files.batch_size
    starts = range(0, count, size)
    found = {} if files is None else {first: batch for first in starts if (batch := files.read(first)) is not None}
    missing = [first for first in starts if first not in found]
    finished = dict(found)
    if executor is None:
        results = (_run_batch(study, first, size) for first in missing)
    else:
        results = _run_elsewhere(study, missing, size, executor, in_flight)
    with _open_bar(study, count, _count(found, size, count)) as bar, contextlib.closing(results):
        try:
            for batch in results:
                if files is not None:
                    files.write(batch)
                finished[batch.first] = batch
                bar.update(min(size, count - batch.first))
        except _WorkersLostError as error:
            raise StudyError(
                f"{error} {_describe_kept(study, _count(finished, size, count), files)}"
            ) from error.__cause__
        except KeyboardInterrupt:
            # not from the interrupt, whose traceback leads through everything that ran
            raise KeyboardInterrupt(_describe_kept(study, _count(finished, size, count), files)) from None
    return _collect(study, count, [finished[first] for first in starts], set(missing), time.perf_counter() - began)


def _choose_size(count: int, sizes: Sizes, elsewhere: bool) -> int:
    if sizes.given is not None:
        return sizes.given
    batches = -(-count // sizes.largest)
    if elsewhere:
        batches = max(batches, min(count, LEAST_BATCHES))
    return -(-count // batches)


def _run_batch(study: Study, first: int, size: int) -> Batch:
    began = time.perf_counter()
    table = study.run_batch(first, size)
    return Batch(first, size, table, time.perf_counter() - began, peak_memory())


#: The study that this process ran last as a worker: what it has prepared and compiled serves its next batch.
_KNOWN: dict[str, Study] = {}


def _run_as_worker(fingerprint: str, study: Study, first: int, size: int, attempt: int) -> Batch:
    """Run a batch where it was sent to. Executors that know equal calls by equal arguments take attempts for others."""
    known = _KNOWN.get(fingerprint)
    if known is None:
        known = study
        _KNOWN.clear()
        _KNOWN[fingerprint] = study
    return _run_batch(known, first, size)


class _WorkersLostError(Exception):
    """Batches cannot be run because workers were lost."""


def _run_elsewhere(
    study: Study, missing: Sequence[int], size: int, executor: Any, in_flight: int | None
) -> Generator[Batch, None, None]:
    """Batches by an executor, as they finish."""
    if in_flight is None:
        workers = getattr(executor, "_max_workers", None)
        in_flight = 2 * workers if isinstance(workers, int) else IN_FLIGHT
    waiting, losses = collections.deque(missing), collections.Counter[int]()
    running: dict[futures.Future[Batch], int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < in_flight:
                first = waiting.popleft()
                running[_submit(executor, study, first, size, losses[first])] = first
            done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            failed = None
            for future in done:
                first = running.pop(future)
                error = _error_of(future)
                if error is None:
                    yield future.result()
                elif not _is_loss(error):
                    failed = error
                else:
                    losses[first] += 1
                    waiting.append(first)
                    if losses[first] > RETRIES and failed is None:
                        failed = _WorkersLostError(
                            f"Workers that ran the batch from {first} on were lost {losses[first]} times."
                        )
                        failed.__cause__ = error
            if failed is not None:
                raise failed
    finally:
        for future in running:
            future.cancel()


def _submit(executor: Any, study: Study, first: int, size: int, attempt: int) -> futures.Future[Batch]:
    try:
        return executor.submit(_run_as_worker, study.fingerprint, study, first, size, attempt)
    except RuntimeError as error:  # also BrokenExecutor; otherwise that it was shut down
        raise _WorkersLostError(f"The executor takes no more batches: {error}.".replace("..", ".")) from error


def _error_of(future: futures.Future[Batch]) -> BaseException | None:
    try:
        return future.exception()
    except futures.CancelledError as error:
        return error


def _is_loss(error: BaseException) -> bool:
    """Whether a worker was lost, rather than that its program failed."""
    kinds: tuple[type[BaseException], ...] = (futures.BrokenExecutor, futures.CancelledError, ConnectionError)
    distributed = sys.modules.get("distributed")
    if distributed is not None:  # its errors can only come where it was imported
        kinds += (distributed.scheduler.KilledWorker, distributed.comm.CommClosedError)
    return isinstance(error, kinds)


def _check_executor(executor: Any) -> None:
    if executor is None:
        return
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor must have the method submit of concurrent.futures.Executor, but is {executor!r}. That of a Dask "
            "client is client.get_executor()."
        )
    context = getattr(executor, "_mp_context", None)
    if isinstance(context, multiprocessing.context.BaseContext) and context.get_start_method() == "fork":
        raise ValueError(
            "executor forks this process, and JAX may hang in forked processes. Use "
            "ProcessPoolExecutor(mp_context=multiprocessing.get_context('spawn'))."
        )


@contextlib.contextmanager
def _open_bar(study: Study, count: int, kept: int) -> Iterator[tqdm.tqdm]:
    """A bar on standard error, which is drawn seldom where that is a file; elsewhere its clock does not stand still."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    bar = tqdm.tqdm(
        desc=study.unit.capitalize(),
        total=count,
        initial=kept,
        unit="",
        mininterval=0.1 if watched else 10.0,
        # some terminals say that they have no columns
        ncols=shutil.get_terminal_size().columns if watched else None,
        disable=not options.verbose or kept == count,
    )
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(1.0):
            bar.refresh()

    clock = threading.Thread(target=tick, daemon=True)
    with bar:
        if watched and not bar.disable:
            clock.start()
        try:
            yield bar
        finally:
            ended.set()
            if clock.ident is not None:
                clock.join()


def _count(finished: Iterable[int], size: int, count: int) -> int:
    """How many units are in batches that begin with these ones."""
    return sum(min(size, count - first) for first in finished)


def _describe_kept(study: Study, done: int, files: StudyFiles | None) -> str:
    if files is None:
        return f"The {done} {study.unit} that were finished are lost, because there is no path to keep them in."
    return f"{done} {study.unit} are finished and kept in {files.path}: running the study again goes on from there."


def _collect(study: Study, count: int, batches: Sequence[Batch], new: set[int], seconds: float) -> StudyOutcome:
    table = pd.concat([batch.table for batch in batches], ignore_index=True)
    described = pd.DataFrame(
        {name: [getattr(batch, name) for batch in batches] for name in ("first", "size", "seconds", "peak_memory")}
    )
    peaks = [batch.peak_memory for batch in batches if batch.first in new]
    return StudyOutcome(
        table=table[table[study.columns[0]] < count],
        batches=described,
        seconds=seconds,
        peak_memory=int(np.max(peaks)) if peaks else peak_memory(),
    )
