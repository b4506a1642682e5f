"""The command that runs a study which is described in a file, for batch queues."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from blpjax import options
from blpjax.exceptions import BLPError, DescriptionError, StorageError
from blpjax.machine.batch_files import has_parts
from blpjax.machine.pickling import replace_file
from blpjax.studies.description import StudyDescription, read_description
from blpjax.studies.results import MonteCarloResults

#: So many devices of a CPU may be asked for however few cores there are: for trying out what runs on several devices.
_DEVICES = 16

_EPILOG = """\
Finished batches are kept as Parquet files in the directory of --path, else of `path` in the table [run], else in one
named like the file without its suffix, in the current directory. At the end all replications are written there as
table.parquet and what describes the estimates as summary.csv. A study that was stopped, by whatever signal, goes on
with --resume, which may also be given where there is nothing yet: a batch script can always give it.

A batch is run whole: with --replications below the batch size of the file there is one batch of that many instead.

exit status:
  0    the study is finished; replications that failed are counted in the summary
  1    it failed while it ran: files cannot be read or written, or memory is short. What was finished is kept
  2    wrong arguments or a wrong description; nothing was run
  130  interrupted from the keyboard. What was finished is kept
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command ``python -m blpjax``, which is installed as ``blpjax`` too.

    Parameters
    ----------
    arguments : those of the command line, by default this process'.

    Returns
    -------
    int
        Exit status: 0 when the study is finished, 1 when it failed while it ran, 2 for a wrong description, 130 when it
        was interrupted from the keyboard. For wrong arguments the process exits with 2.
    """
    given = _parser().parse_args(arguments)
    try:
        description = read_description(given.study)
        path = description.path if given.path is None else given.path
        replications = given.replications or description.run.get("replications")
        if replications is None:
            raise DescriptionError(
                f"{given.study}: [run] has no replications. Add them, or use --replications on the command line."
            )
        if has_parts(path) and not given.resume:
            raise DescriptionError(
                f"{path} holds finished parts of a study: add --resume to go on with it, or use another --path."
            )
        if given.devices is not None:
            _prepare_devices(given.devices)
        return _run(description, replications, path, given)
    except DescriptionError as error:
        return _fail(error, 2)
    except BLPError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("Interrupted. Finished batches are kept: use --resume to go on.", 130)


def _run(description: StudyDescription, replications: int, path: Path, given: argparse.Namespace) -> int:
    """Run the study, and write and print its results."""
    verbose, options.verbose = options.verbose, False  # tables of the simulation and the problem
    try:
        study = description.build()
        options.verbose = not given.quiet
        known = description.run
        size = given.batch_size or known.get("batch_size")
        if given.replications is not None and given.batch_size is None and size is not None and not has_parts(path):
            size = min(size, given.replications)  # a few replications, to try a study out, do not take a whole batch
        results = study.run(replications, size, path, memory=known.get("memory"), devices=given.devices)
    finally:
        options.verbose = verbose
    _write(results, path)
    print(results)
    print(f"All replications are in {path / 'table.parquet'}, this summary in {path / 'summary.csv'}.")
    return 0


def _write(results: MonteCarloResults, path: Path) -> None:
    try:
        with replace_file(path / "table.parquet") as file:
            results.table.to_parquet(file, index=False)
        with replace_file(path / "summary.csv") as file:
            results.summary().to_csv(file)
    except OSError as error:
        raise StorageError(f"Results cannot be written to {path}: {error}.") from error


def _prepare_devices(count: int) -> None:
    """Make that many devices of a CPU, before JAX looks for devices, or check that there are as many others."""
    cores = os.cpu_count() or 1
    if count > max(_DEVICES, 2 * cores):
        raise DescriptionError(
            f"--devices {count}: this process has {cores} core{'s' * (cores > 1)}, of which at most "
            f"{max(_DEVICES, 2 * cores)} devices are made. More than cores make nothing faster, and each takes memory: "
            "leave --devices out to use all cores."
        )
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # JAX has devices already
    devices = jax.local_devices()
    if len(devices) < count:
        raise DescriptionError(
            f"--devices {count}: this process has {len(devices)} device{'s' * (len(devices) > 1)} of the kind "
            f"{devices[0].platform}."
        )


def _fail(reason: object, status: int) -> int:
    print(f"blpjax: {reason}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m blpjax",
        description="Run the Monte Carlo study that a TOML file describes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", type=Path, help="the file that describes the study")
    parser.add_argument("--path", type=Path, help="directory for finished batches and results")
    parser.add_argument("--resume", action="store_true", help="go on where the study stopped")
    parser.add_argument("--devices", type=_positive, help="number of devices; those of a CPU are made")
    parser.add_argument("--replications", type=_positive, help="their number, instead of that in the file")
    parser.add_argument("--batch-size", type=_positive, help="replications in a batch, instead of those in the file")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "positive integer"  # what argparse calls it in messages
