"""``python -m benchmarks``: prints a row per case, and fails if a row fails."""

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.rows import LEGEND, Row, as_json, failed, format_row, header
from benchmarks.settings import QUICK, Settings

#: Variables that set the number of threads of BLAS for NumPy and SciPy, when nothing has imported them yet.
BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

#: Function that yields the rows of a group, by the name of the group: modules are imported when their turn comes.
GROUPS = {
    "nevo": "benchmarks.estimation:nevo_rows",
    "process": "benchmarks.processes:process_rows",
    "programs": "benchmarks.programs:programs_rows",
    "memory": "benchmarks.processes:memory_rows",
    "starts": "benchmarks.starts:starts_rows",
    "autos": "benchmarks.supply:autos_rows",
    "petrin": "benchmarks.minivans:minivan_rows",
    "post": "benchmarks.supply:post_rows",
    "mergers": "benchmarks.supply:mergers_rows",
    "equilibrium": "benchmarks.supply:equilibrium_rows",
    "supply-memory": "benchmarks.supply:memory_rows",
    "nested": "benchmarks.family:nested_rows",
    "rcnl": "benchmarks.family:rcnl_rows",
    "unequal": "benchmarks.family:unequal_rows",
    "study": "benchmarks.studies:study_rows",
    "profile": "benchmarks.breakdown:profile_rows",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was asked for; the exit status is 1 if a row failed."""
    given = _parse(arguments)
    if given.blas_threads is not None:
        for variable in BLAS_VARIABLES:
            os.environ[variable] = str(given.blas_threads)
    facts = machine_facts()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(f"\n{LEGEND}\n\n{header()}", flush=True)
    rows = []
    for group in given.rows:
        for row in run_group(group, _settings(given)):
            print(format_row(row), flush=True)
            rows.append(row)
    if given.json is not None:
        content = {"machine": facts, "rows": [as_json(row) for row in rows]}
        given.json.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    failures = [row.case for row in rows if row.failure]
    print(f"\n{len(rows)} rows, " + (f"{len(failures)} FAILED: {', '.join(failures)}" if failures else "none failed"))
    return 1 if failures else 0


def run_group(group: str, settings: Settings) -> Iterator[Row]:
    """The rows of a group. An exception becomes a failed row, and ends the group."""
    module, name = GROUPS[group].split(":")
    try:
        yield from getattr(import_module(module), name)(settings)
    except Exception as error:  # the other groups go on
        yield failed(group, f"{type(error).__name__}: {error}")


def machine_facts() -> dict[str, Any]:
    """What figures depend on. The average load tells whether other programs were running."""
    import jax

    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ("blpjax", "jax", "jaxlib", "numpy", "scipy", "pyblp")
    facts: dict[str, Any] = {
        "processor": f"{_processor()}, {cores} cores",
        "device": f"{device.platform} ({device.device_kind}), {jax.device_count()} of them",
        "python": platform.python_version(),
        "threads of BLAS": os.environ.get(BLAS_VARIABLES[0], "default"),
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
    }
    if hasattr(os, "getloadavg"):
        facts["load before"] = f"{os.getloadavg()[0]:.2f}"
    return facts


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of blpjax beside PyBLP.")
    parser.add_argument("--rows", nargs="+", choices=GROUPS, default=list(GROUPS), help="which groups of rows (all)")
    parser.add_argument("--repeat", type=int, help="solves by PyBLP and runs of whole processes (3)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="without PyBLP (but a few of its evaluations of autos), and with fewer repetitions and starts",
    )
    parser.add_argument("--blas-threads", type=int, help="threads of BLAS for both libraries (as installed)")
    parser.add_argument("--json", type=Path, help="also write rows to this file")
    given = parser.parse_args(arguments)
    if given.repeat is not None and given.repeat < 1:
        parser.error("--repeat must be at least 1")
    return given


def _settings(given: argparse.Namespace) -> Settings:
    settings = QUICK if given.quick else Settings()
    return settings if given.repeat is None else dataclasses.replace(settings, repeat=given.repeat)


if __name__ == "__main__":
    # Compile times are those without a persistent cache; the process rows choose caches of their own.
    os.environ["BLPJAX_COMPILATION_CACHE"] = "0"
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    sys.exit(main())
