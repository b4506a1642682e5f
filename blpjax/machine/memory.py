"""How much memory this process has taken."""

import sys
from pathlib import Path


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
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
