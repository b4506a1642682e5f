"""What is printed and stored: one row per case, with timings as medians and ranges."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one or more repetitions of the same thing."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over repetitions."""
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        """Fastest repetition."""
        return min(self.seconds)

    @property
    def high(self) -> float:
        """Slowest repetition."""
        return max(self.seconds)

    def __add__(self, other: "Timing") -> "Timing":
        return Timing(self.seconds + other.seconds)

    def __str__(self) -> str:
        if len(self.seconds) == 1:
            return f"{self.median:.3g}"
        return f"{self.median:.3g} [{self.low:.3g}-{self.high:.3g}]"


def measure(function: Callable[[], object], repetitions: int = 1) -> Timing:
    """Wall-clock seconds of calls of a function, which must not return before its work is done."""
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return Timing(tuple(seconds))


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times faster than PyBLP: ratio of medians, and of the extremes in both directions."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        median, low, high = (f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in dataclasses.astuple(self))
        return f"{median}x [{low}-{high}]"


@dataclasses.dataclass(frozen=True)
class Row:
    """One case.

    Attributes
    ----------
    case, size : what was run.
    compile : seconds of the first run beyond a warm one.
    first, warm : seconds of the first run in a process, and of later ones. `seconds` is `warm`, or else `first`.
    pyblp : PyBLP's seconds in the same run of the benchmarks, and `ratio` to `seconds`.
    evaluations, converged : of blpjax, and then of PyBLP if it was run.
    estimates_difference, errors_difference : largest relative differences from PyBLP in estimates and standard errors.
    failure : why the row failed, or an empty string.
    details : anything else, by name.
    """

    case: str
    size: str = ""
    compile: float | None = None
    first: Timing | None = None
    warm: Timing | None = None
    pyblp: Timing | None = None
    evaluations: tuple[int, ...] = ()
    converged: tuple[bool, ...] = ()
    estimates_difference: float | None = None
    errors_difference: float | None = None
    failure: str = ""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> Timing | None:
        """What is compared with PyBLP's seconds."""
        return self.first if self.warm is None else self.warm

    @property
    def ratio(self) -> Ratio | None:
        """PyBLP's seconds divided by blpjax's."""
        ours, theirs = self.seconds, self.pyblp
        if ours is None or theirs is None:
            return None
        return Ratio(theirs.median / ours.median, theirs.low / ours.high, theirs.high / ours.low)


def failed(case: str, failure: str) -> Row:
    """The row of a case that could not be run."""
    return Row(case, failure=" ".join(failure.split()) or "no message")


_COLUMNS = (
    ("case", 22),
    ("size", 28),
    ("compile s", 9),
    ("first s", 19),
    ("warm s", 22),
    ("PyBLP s", 19),
    ("ratio", 18),
    ("evaluations", 11),
    ("converged", 9),
    ("estimates", 9),
    ("errors", 8),
)

LEGEND = """\
Seconds are medians [fastest-slowest]. Compile is the first run less a warm one, ratio is PyBLP's seconds divided by
ours. Evaluations of the objective and convergence are ours / PyBLP's. Estimates and errors are the largest relative
differences from PyBLP in estimates and in standard errors."""


def header() -> str:
    """Names of columns, and a rule."""
    names = "  ".join(name.ljust(width) for name, width in _COLUMNS).rstrip()
    return f"{names}\n{'-' * sum(width + 2 for _, width in _COLUMNS)}"


def format_row(row: Row) -> str:
    """One line for a row, and an indented one for its failure and for each of its details."""
    cells = (
        row.case,
        row.size,
        _number(row.compile, ".3g"),
        _text(row.first),
        _text(row.warm),
        _text(row.pyblp),
        _text(row.ratio),
        _pair(row.evaluations),
        _pair("yes" if value else "NO" for value in row.converged),
        _number(row.estimates_difference, ".1e"),
        _number(row.errors_difference, ".1e"),
    )
    line = "  ".join(cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True)).rstrip()
    lines = [f"{line.rstrip(' -')}  FAILED: {row.failure}" if row.failure else line]
    lines += [f"    {name}: {_detail(value)}" for name, value in row.details.items()]
    return "\n".join(lines)


def as_json(row: Row) -> dict[str, Any]:
    """Everything about a row, for `json.dump`; numbers that are not finite become null."""
    derived = {"ratio": None if row.ratio is None else dataclasses.asdict(row.ratio)}
    return _plain(dataclasses.asdict(row) | derived)


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _pair(values: Iterable[object]) -> str:
    return " / ".join(str(value) for value in values) or "-"


def _detail(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case Timing() | Ratio():
            return _plain(dataclasses.asdict(value))
        case list() | tuple():
            return [_plain(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
    return value
