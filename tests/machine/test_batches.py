"""Studies in batches: kept, resumed, refused, and run by executors that lose workers."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from blpjax import options
from blpjax.exceptions import StorageError, StudyError
from blpjax.machine import batches
from blpjax.machine.batches import Sizes, StudyOutcome, run_study


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """The fake study, from a module that processes can import."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "support"))
    import counting_study

    yield counting_study.CountingStudy
    batches._KNOWN.clear()
    sys.modules.pop("counting_study")


def run(study: Any, count: int, size: int | None = 3, **arguments: Any) -> StudyOutcome:
    return run_study(study, count, Sizes(size, 100), **arguments)


class Spoiled(futures.ThreadPoolExecutor):
    """An executor whose first calls for some batches fail by an error, as if workers had died."""

    def __init__(self, errors: dict[int, list[BaseException]], broken: bool = False) -> None:
        super().__init__(2)
        self.errors = errors
        self.broken = broken
        self.most = 0
        self.now: set[futures.Future[Any]] = set()

    def submit(self, call: Any, *arguments: Any) -> futures.Future[Any]:  # type: ignore[override]
        self.now = {future for future in self.now if not future.done()}
        _, _, first, _, _ = arguments
        if self.errors.get(first):
            future: futures.Future[Any] = futures.Future()
            error = self.errors[first].pop(0)
            if isinstance(error, futures.CancelledError):
                future.cancel()
                future.set_running_or_notify_cancel()
            else:
                future.set_exception(error)
            if self.broken:
                self.shutdown()
            return future
        future = super().submit(call, *arguments)
        self.now.add(future)
        self.most = max(self.most, len(self.now))
        return future


def test_rows_do_not_depend_on_the_count(counting: Any) -> None:
    """The last batch is run whole, and cut."""
    study = counting()
    short, long = run(study, 7).table, run(study, 20).table
    assert study.ran[:3] == [(0, 3), (3, 3), (6, 3)]
    assert list(short["replication"]) == [n for n in range(7) for _ in "ab"]
    pd.testing.assert_frame_equal(short, long[long["replication"] < 7])


@pytest.mark.parametrize("count, largest, sizes", [(10, 100, [10]), (10, 4, [4, 4, 4]), (8, 4, [4, 4]), (9, 8, [5, 5])])
def test_counts_are_divided_evenly(counting: Any, count: int, largest: int, sizes: list[int]) -> None:
    study = counting()
    outcome = run_study(study, count, Sizes(None, largest))
    assert [size for _, size in study.ran] == sizes and len(outcome.table) == 2 * count
    assert sum(sizes) - count < len(sizes)


def test_executors_get_many_batches(counting: Any) -> None:
    with futures.ThreadPoolExecutor(2) as executor:
        outcome = run(counting(), 64, None, executor=executor)
    assert len(outcome.batches) == batches.LEAST_BATCHES


def test_batches_say_what_they_took(counting: Any, tmp_path: Path) -> None:
    outcome = run(counting(), 5, path=tmp_path)
    assert list(outcome.batches.columns) == ["first", "size", "seconds", "peak_memory"]
    assert list(outcome.batches["first"]) == [0, 3] and (outcome.batches["size"] == 3).all()
    assert (outcome.batches["seconds"] > 0).all() and outcome.seconds > outcome.batches["seconds"].sum()
    assert outcome.peak_memory == outcome.batches["peak_memory"].max() > 10e6
    again = run(counting(), 5, path=tmp_path)
    pd.testing.assert_frame_equal(again.batches, outcome.batches)


def test_finished_batches_are_not_run_again(counting: Any, tmp_path: Path) -> None:
    study = counting()
    whole = run(study, 8, path=tmp_path).table
    (tmp_path / "batch-000000003.parquet").unlink()
    resumed = counting()
    pd.testing.assert_frame_equal(run(resumed, 11, None, path=tmp_path).table[: len(whole)], whole)
    assert resumed.ran == [(3, 3), (9, 3)]


def test_errors_of_the_study_come_at_once_and_finished_batches_are_kept(counting: Any, tmp_path: Path) -> None:
    study = counting(bad=3)
    with pytest.raises(ArithmeticError, match="nothing to count at 3"):
        run(study, 12, path=tmp_path / "here")
    assert study.ran == [(0, 3), (3, 3)]
    with futures.ThreadPoolExecutor(1) as executor, pytest.raises(ArithmeticError, match="nothing to count at 3"):
        run(study, 300, path=tmp_path / "elsewhere", executor=executor, in_flight=2)
    for name in ("here", "elsewhere"):
        assert (tmp_path / name / "batch-000000000.parquet").exists()
        resumed = counting()
        pd.testing.assert_frame_equal(run(resumed, 12, path=tmp_path / name).table, run(counting(), 12).table)
        assert (0, 3) not in resumed.ran and (3, 3) in resumed.ran


@pytest.mark.parametrize("flaw, message", [
    ("empty", "is no readable part of a study"),
    ("truncated", "is no readable part of a study"),
    ("flipped", "is no readable part of a study"),
    ("foreign", "is no readable part of a study"),
    ("other study", "is a part of another study"),
    ("columns", "has the columns replication, row, square instead of replication, row, square, text"),
    ("replications", "does not have the replications 3 to 5, in this order"),
])  # fmt: skip
def test_damaged_parts_are_named(counting: Any, tmp_path: Path, flaw: str, message: str) -> None:
    run(counting(), 9, path=tmp_path)
    file = tmp_path / "batch-000000003.parquet"
    content = file.read_bytes()
    if flaw == "empty":
        file.write_bytes(b"")
    elif flaw == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif flaw == "flipped":
        file.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    elif flaw == "foreign":
        pd.DataFrame({"x": [1.0]}).to_parquet(file)
    elif flaw == "other study":
        run(counting("other"), 9, path=tmp_path / "other")
        file.write_bytes((tmp_path / "other" / file.name).read_bytes())
    elif flaw == "columns":
        narrow = counting()
        narrow.columns = narrow.columns[:3]
        original = narrow.run_batch
        narrow.run_batch = lambda first, size: original(first, size)[list(narrow.columns)]
        run(narrow, 9, path=tmp_path / "narrow")
        file.write_bytes((tmp_path / "narrow" / file.name).read_bytes())
    else:
        file.write_bytes((tmp_path / "batch-000000006.parquet").read_bytes())
    with pytest.raises(StorageError, match=f"batch-000000003.parquet {message}") as caught:
        run(counting(), 9, path=tmp_path)
    assert "Delete it" in str(caught.value)


def test_paths_that_cannot_be_written_are_named(counting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    study = counting()
    with pytest.raises(StorageError, match="file/below cannot be used as the directory of a study"):
        run(study, 3, path=tmp_path / "file" / "below")
    assert not study.ran
    original = study.run_batch

    def run_and_replace(first: int, size: int) -> pd.DataFrame:
        (tmp_path / "gone" / "study.json").unlink()
        (tmp_path / "gone").rmdir()
        return original(first, size)

    study.run_batch = run_and_replace
    with pytest.raises(StorageError, match="gone/batch-000000000.parquet cannot be written"):
        run(study, 3, path=tmp_path / "gone")


def test_lost_workers_batches_run_elsewhere(counting: Any, tmp_path: Path) -> None:
    broken = futures.BrokenExecutor("died")
    errors: dict[int, list[BaseException]] = {
        0: [broken, ConnectionResetError(), futures.CancelledError()],
        6: [futures.CancelledError()],
    }
    with Spoiled(errors) as executor:
        table = run(counting(), 30, path=tmp_path, executor=executor, in_flight=4).table
    assert not any(errors.values()) and executor.most <= 4
    pd.testing.assert_frame_equal(table, run(counting(), 30).table)


def test_workers_of_dask_that_were_killed_are_losses(counting: Any) -> None:
    scheduler = pytest.importorskip("distributed").scheduler
    killed = scheduler.KilledWorker("task", "worker", 3)
    with Spoiled({3: [killed]}) as executor:
        assert len(run(counting(), 6, executor=executor).table) == 12


def test_batches_that_are_lost_again_and_again_end_the_study(counting: Any, tmp_path: Path) -> None:
    errors: dict[int, list[BaseException]] = {3: [ConnectionResetError() for _ in range(batches.RETRIES + 1)]}
    with (
        Spoiled(errors) as executor,
        pytest.raises(StudyError, match=r"from 3 on were lost 4 times. \d+ replications are finished and kept in") as e,
    ):
        run(counting(), 9, path=tmp_path, executor=executor, in_flight=1)
    assert isinstance(e.value.__cause__, ConnectionResetError) and "running the study again" in str(e.value)


def test_broken_executors_end_the_study(counting: Any, tmp_path: Path) -> None:
    with (
        Spoiled({3: [futures.BrokenExecutor("died")]}, broken=True) as executor,
        pytest.raises(StudyError, match="The executor takes no more batches.*The 3 replications .* are lost"),
    ):
        run(counting(), 9, executor=executor, in_flight=1)


@pytest.mark.slow
def test_killed_processes_lose_nothing_that_was_finished(counting: Any, tmp_path: Path) -> None:
    """A real pool: its process dies, the study says so, and another one goes on."""
    context = multiprocessing.get_context("spawn")
    with (
        futures.ProcessPoolExecutor(1, mp_context=context) as executor,
        pytest.raises(StudyError, match="takes no more batches.* 3 replications are finished and kept in"),
    ):
        run(counting(bad=3, kill=True), 9, path=tmp_path, executor=executor, in_flight=1)
    with futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        table = run(counting(), 9, path=tmp_path, executor=executor).table
    pd.testing.assert_frame_equal(table, run(counting(), 9).table)


def test_wrong_executors_are_refused(counting: Any) -> None:
    with pytest.raises(TypeError, match=r"executor must have the method submit .* client.get_executor\(\)"):
        run(counting(), 3, executor=2)
    with (
        futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor,
        pytest.raises(ValueError, match="executor forks this process, and JAX may hang"),
    ):
        run(counting(), 3, executor=executor)


def test_progress_is_shown_unless_verbose_is_off(
    counting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "verbose", True)
    run(counting(), 7, path=tmp_path)
    shown = capsys.readouterr()
    assert "Replications: 100%" in shown.err and "7/7" in shown.err and not shown.out
    monkeypatch.setattr(options, "verbose", False)
    run(counting(), 14, path=tmp_path)
    assert not capsys.readouterr().err


def test_terminals_without_columns_show_a_bar_whose_clock_runs(
    counting: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, refreshed = counting(), threading.Event()
    monkeypatch.setattr(options, "verbose", True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    monkeypatch.setattr("tqdm.tqdm.refresh", lambda *_, **__: refreshed.set())
    original = study.run_batch
    monkeypatch.setattr(study, "run_batch", lambda first, size: refreshed.wait(10) and original(first, size))
    run(study, 3)
    assert refreshed.is_set() and "Replications:" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False])
def test_interrupts_say_what_is_kept(counting: Any, tmp_path: Path, kept: bool) -> None:
    study = counting()

    def interrupted(first: int, size: int, run: Any = study.run_batch) -> Any:
        if first:
            raise KeyboardInterrupt
        return run(first, size)

    study.run_batch = interrupted
    with pytest.raises(KeyboardInterrupt) as ended:
        run(study, 9, path=tmp_path if kept else None)
    expected = f"3 replications are finished and kept in {tmp_path}: running the study again goes on from there."
    if not kept:
        expected = "The 3 replications that were finished are lost, because there is no path to keep them in."
    assert str(ended.value) == expected
    assert len(ended.traceback) <= 5 and ended.value.__suppress_context__
