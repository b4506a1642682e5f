"""Tables that are text on terminals and HTML in notebooks, and objects that consist of such parts."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

#: What HTML says of tables: numbers are aligned, and wide ones scroll by themselves instead of the page.
STYLE = 'style="font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap"'
SCROLL = '<div style="overflow-x: auto">{}</div>'


@dataclass(frozen=True)
class Table:
    """A table with lines of headings, each with one string per column, as have rows. Columns of `|` separate blocks.

    As text, columns are centred between borders, as in PyBLP.
    """

    header: Sequence[Sequence[str]]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def __str__(self) -> str:
        return text_table(self.header, self.rows, self.title)

    def _repr_html_(self) -> str:
        return SCROLL.format(self._as_html())

    def _as_html(self) -> str:
        kept = [k for k, cells in enumerate(zip(*self.header, *self.rows, strict=True)) if set(cells) != {"|"}]
        headings = [" ".join(line[k] for line in self.header if line[k]).strip() for k in kept]
        lines = [_html_row("th", headings)]
        lines += [_html_row("td", [row[k] for k in kept]) for row in self.rows if any(row[k].strip("|") for k in kept)]
        caption = f'<caption style="text-align: left">{html.escape(self.title)}</caption>' if self.title else ""
        return f"<table {STYLE}>{caption}{''.join(lines)}</table>"


#: What objects consist of when they are shown: tables, numbers as a frame, and sentences.
Part = Any  # a `Table`, a frame, text, or anything else with `_repr_html_`


class Shown:
    """An object that is shown by its parts: as text, and in notebooks as HTML with what is secondary folded."""

    #: Names for the library's own use, which completion leaves out.
    _hidden: ClassVar[frozenset[str]] = frozenset()

    def _parts(self) -> Sequence[Part]:
        """What there is to show."""
        raise NotImplementedError

    def _folded(self) -> Sequence[Part]:
        """What notebooks show when they are asked to."""
        return ()

    def __str__(self) -> str:
        return "\n\n".join(_part_text(part) for part in self._parts())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return show_html(type(self).__name__, self._parts(), self._folded())

    def __dir__(self) -> list[str]:
        return sorted(set(super().__dir__()) - self._hidden)


def show_html(name: str, parts: Sequence[Part], folded: Sequence[Part] = ()) -> str:
    """HTML of an object's parts, the folded ones behind the word "Details"."""
    lines = [f"<strong>{html.escape(name)}</strong>", *map(_part_html, parts)]
    if folded:
        lines += ["<details><summary>Details</summary>", *map(_part_html, folded), "</details>"]
    return f"<div>{''.join(lines)}</div>"


def text_table(
    header: Sequence[Sequence[str]],
    rows: Sequence[Sequence[str]],
    title: str = "",
    include_border: bool = True,
    minimum_widths: Sequence[int] | None = None,
) -> str:
    """Lay out centred columns under header lines; columns of `|` separate blocks.

    Parameters
    ----------
    header : lines of the header, each with one string per column.
    rows : rows below the header, each with one string per column.
    title : a line above the table, without its colon.
    include_border : whether to draw lines above and below.
    minimum_widths : least number of characters of each column.

    Raises
    ------
    ValueError
        If lines differ in their number of columns.

    """
    columns = list(zip(*header, *rows, strict=True))
    floors = minimum_widths or [0] * len(columns)
    widths = [max(floor, *map(len, column)) for floor, column in zip(floors, columns, strict=True)]
    rule = ["|" if set(column) == {"|"} else "-" * width for column, width in zip(columns, widths, strict=True)]
    lines = [align(cells, widths) for cells in [*header, rule, *rows]]
    if include_border:
        border = "=" * len(lines[0])
        lines = [border, *lines, border]
    return "\n".join([f"{title}:"] * bool(title) + lines)


def align(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line of centred cells."""
    return "  ".join(f"{cell:^{width}}" for cell, width in zip(cells, widths, strict=True))


def one_row_table(columns: Mapping[tuple[str, str], str] | Mapping[tuple[str, str, str], str], title: str) -> Table:
    """One row of values below their names.

    Parameters
    ----------
    columns : values by the lines of their names, for example {("Computation", "Time"): "00:01:30"}.
    title : a line above the table, without its colon.

    Raises
    ------
    ValueError
        If names differ in their number of lines.

    """
    return Table([list(line) for line in zip(*columns, strict=True)], [list(columns.values())], title)


def _part_text(part: Part) -> str:
    return part.to_string(float_format=lambda x: f"{x:.4g}") if isinstance(part, pd.DataFrame) else str(part)


def _part_html(part: Part) -> str:
    if isinstance(part, pd.DataFrame):
        return SCROLL.format(part.to_html(float_format=lambda x: f"{x:.4g}", border=0))
    return f"<p>{html.escape(part)}</p>" if isinstance(part, str) else str(part._repr_html_())


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
