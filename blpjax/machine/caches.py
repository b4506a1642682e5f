"""Where compiled programs are kept between processes."""

import hashlib
import os
import platform
import re
import sys
import warnings
from pathlib import Path

import jax
import jaxlib.version

from blpjax import options

#: Set to ``0`` (or ``off``) to leave JAX's configuration alone and keep nothing, or to a directory to keep programs
#: there.
VARIABLE = "BLPJAX_COMPILATION_CACHE"


def turned_off() -> bool:
    """Whether the environment says that no programs are kept between processes."""
    return os.environ.get(VARIABLE, "").lower() in ("0", "off", "no", "false")


def configure_cache() -> None:
    """Point JAX's compilation cache at a directory of this machine's kind, unless the user has configured one."""
    choice = os.environ.get(VARIABLE, "")
    configured = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if turned_off() or configured or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    directory = cache_directory(choice)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return  # a read-only home directory: everything works, only slower
    jax.config.update("jax_compilation_cache_dir", str(directory))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # the many small programs of an estimation add up: keep those too
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
    # before all other filters: what it matches is ignored, but for what it does about it
    warnings.filters.insert(0, ("ignore", _Faults(directory), UserWarning, None, 0))  # type: ignore[attr-defined]


def say_not_kept(directory: Path, reason: object) -> None:
    """Say, once in a process, that compiled programs cannot be kept."""
    if _said:
        return
    _said.append(True)
    options.output(
        f"Compiled programs cannot be kept in {directory}: {reason}. Later processes compile them again. Make room, or "
        f"have {VARIABLE} name another directory."
    )


_said: list[bool] = []


class _Faults:
    """What JAX warns of entries in our directory, as a pattern of messages: they are mended instead.

    JAX never replaces an entry that it cannot read. Removed here, it is written again when it has been compiled.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def match(self, text: str) -> bool:
        found = re.match(r"Error (reading|writing) persistent compilation cache entry for '([^']*)': (.*)", text, re.S)
        if found is None or jax.config.jax_compilation_cache_dir != str(self.directory):  # type: ignore[attr-defined]
            return False
        what, name, reason = found.groups()
        try:
            for entry in self.directory.glob(f"{name}-*"):  # the message does not say which of the name's entries it is
                entry.unlink()
        except OSError as error:
            reason = str(error)
            what = "writing"
        if what == "writing":
            say_not_kept(self.directory, reason.strip().rstrip("."))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
        return True


def cache_directory(choice: str | Path = "") -> Path:
    """Where programs for this version of jaxlib and this kind of processor are kept: below the user's choice if any."""
    base = Path(choice)
    if not choice:
        home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
        base = (Path(home) if home else Path.home() / ".cache") / "blpjax"
    kind = hashlib.sha256(_processor().encode()).hexdigest()[:12]
    return base / f"jaxlib-{jaxlib.version.__version__}-{platform.machine()}-{kind}"


def _processor() -> str:
    """What distinguishes processors that cannot run each other's programs."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            lines = []
        for line in lines:
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
