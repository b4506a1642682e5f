"""How much memory this process has taken, and whether there is enough for what comes."""

import os
import sys
from pathlib import Path

from blpjax.exceptions import SizeError

#: What needs less than this many bytes is not checked.
_LITTLE = 2**28


def require_memory(needed: int | float, what: str, remedy: str, free: int | float | None = None) -> None:
    """Check, before something large is made, that there is memory for it.

    Parameters
    ----------
    needed : number of bytes that it will need at least.
    what : what needs them, the beginning of a sentence, such as ``'10 starts'``.
    remedy : a sentence that says what to do.
    free : bytes that are available, by default those of this process.

    Raises
    ------
    SizeError
        When less memory is available.
    """
    if needed < _LITTLE:
        return
    available = available_memory() if free is None else free
    if available is not None and needed > available:
        raise SizeError(
            f"{what} would need at least {format_bytes(needed)} of memory, but only {format_bytes(available)} are "
            f"available. {remedy}"
        )


def available_memory() -> int | None:
    """Bytes that this process may still take, within limits of its control group too; None where no one tells.

    Memory of accelerators is not counted.
    """
    found = [_system_memory(), *_group_memory(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")), _limited_memory()]
    known = [max(number, 0) for number in found if number is not None]
    return min(known, default=None)


def _system_memory() -> int | None:
    """What the system could give away, swap included."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return known["MemAvailable"] + known.get("SwapFree", 0)
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _group_memory(groups: Path, root: Path) -> list[int]:
    """What is left to the control groups (version 2) of this process: those of containers and of batch queues."""
    try:
        entry = next(line for line in groups.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    own = root / entry[3:].lstrip("/")
    left = []
    for group in (own, *own.parents):
        try:
            limit = int((group / "memory.max").read_text())
            taken = int((group / "memory.current").read_text())
            lines = (group / "memory.stat").read_text().splitlines()
            # files that are kept in memory make room
            left.append(limit - taken + sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file")))
        except (OSError, ValueError, IndexError):  # no such group seen from here, or one without a limit
            pass
        if group == root:
            break
    return left


def _limited_memory() -> int | None:
    """What the limit of this process' addresses, `ulimit -v`, leaves."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        return limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None


def peak_memory() -> int:
    """Largest resident memory that this process has held since it started, in bytes; zero where no one tells.

    Memory of accelerators is not counted.
    """
    # On Linux `getrusage` counts what the parent held when it started this process; the kernel's own mark does not.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def format_bytes(count: int | float) -> str:
    """Format a number of bytes, for example `1.2 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if count < 1000:  # 1020 would be rounded to 1.02e+03
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} EiB"
