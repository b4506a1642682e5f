"""Estimates of one or several models side by side: as text, Markdown, LaTeX and HTML."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from blpjax.reporting.tables import SCROLL, STYLE, align

#: How LaTeX writes blocks of parameters.
_SYMBOLS = {name: rf"$\{name}$" for name in ("sigma", "pi", "rho", "tau", "phi", "kappa", "beta", "gamma")}
_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPES |= {character: f"\\{character}" for character in "&%$#_{}"}


@dataclass(frozen=True)
class EstimatesColumn:
    """What a table says of one model.

    Attributes
    ----------
    name : heading of the column.
    estimates : a row for each parameter, with columns block, parameter, estimate and se.
    statistics : what stands below, by name.
    notes : sentences below the table, such as that these are no estimates.
    """

    name: str
    estimates: pd.DataFrame
    statistics: Mapping[str, str]
    notes: Sequence[str] = ()


@dataclass(frozen=True, repr=False)
class EstimatesTable:
    """Estimates of one or several models side by side, with standard errors in parentheses below them.

    It prints as text and is HTML in notebooks. Rows are parameters, with their block (`sigma`, `beta`, ...), in the
    order in which models have them first; what a model does not have is left blank. Parameters that are fixed, such as
    zeros of sigma, have no rows. Below stand numbers of products and markets, the objective, the type of standard
    errors, and whether optimisation converged; a model that did not converge is also named in a note.

    Attributes
    ----------
    columns : what the table says of each model.
    digits : significant digits of numbers.
    """

    columns: tuple[EstimatesColumn, ...]
    digits: int = 3

    def to_frame(self) -> pd.DataFrame:
        """Numbers: rows by block and parameter, columns by model, and estimate and se of each; NaN where there is none.

        Two parameters with the same label in a block, as where a formula repeats a term, are two rows.
        """
        parts = {column.name: _keyed(column.estimates)[["estimate", "se"]] for column in self.columns}
        frame = pd.concat(parts, axis=1, sort=False)
        return frame.droplevel("count").reindex(columns=list(parts), level=0)

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown, with standard errors in the same cells."""
        lines = [["", "", *(column.name for column in self.columns)]]
        for block, parameter, cells in self._rows():
            lines.append([block, parameter, *(" ".join(cell).strip() for cell in cells)])
        lines += [["", name, *cells] for name, cells in self._statistics()]
        escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
        rule = ["---", "---", *["---:"] * len(self.columns)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in [escaped[0], rule, *escaped[1:]])
        return "\n\n".join([text, *self._notes()])

    def to_latex(self, caption: str = "", label: str = "") -> str:
        r"""The table in LaTeX, for the package booktabs: a `tabular`, or with a caption or a label a `table` around it.

        Parameters
        ----------
        caption : of the table, in LaTeX.
        label : by which ``\ref`` finds it.
        """
        width = len(self.columns)
        heads = " & ".join(_latex(column.name) for column in self.columns)
        lines = [rf"\begin{{tabular}}{{ll{'c' * width}}}", r"\toprule", rf" & & {heads} \\", r"\midrule"]
        for block, parameter, cells in self._rows():
            lines.append(rf"{_SYMBOLS.get(block, _latex(block))} & {_latex(parameter)} & {_latex_cells(cells, 0)} \\")
            lines.append(rf" & & {_latex_cells(cells, 1)} \\")
        lines.append(r"\midrule")
        lines += [rf" & {_latex(name)} & {' & '.join(map(_latex, cells))} \\" for name, cells in self._statistics()]
        lines += [r"\bottomrule", r"\end{tabular}"]
        notes = [_latex(note) for note in self._notes()]
        if not caption and not label:
            return "\n".join([*lines, *(f"% {note}" for note in notes)])
        head = [r"\begin{table}", r"\centering", *[rf"\caption{{{caption}}}"] * bool(caption)]
        head += [rf"\label{{{label}}}"] * bool(label)
        return "\n".join([*head, *lines, *(rf"\par {note}" for note in notes), r"\end{table}"])

    def __str__(self) -> str:
        lines = [["", "", *(column.name for column in self.columns)]]
        for block, parameter, cells in self._rows():
            lines.append([block, parameter, *(cell[0] for cell in cells)])
            lines.append(["", "", *(cell[1] for cell in cells)])
        statistics = [["", name, *cells] for name, cells in self._statistics()]
        widths = [max(map(len, column)) for column in zip(*lines, *statistics, strict=True)]
        left = [[line[0].ljust(widths[0]), line[1].ljust(widths[1]), *line[2:]] for line in [*lines, *statistics]]
        text = [align(line, widths).rstrip() for line in left]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        text = [text[0], rule, *text[1 : len(lines)], rule, *text[len(lines) :]]
        return "\n".join([*text, *([""] * bool(self._notes())), *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        lines = [_row("th", ["", "", *(column.name for column in self.columns)])]
        for block, parameter, cells in self._rows():
            shown = [html.escape(cell[0]) + (f"<br><small>{html.escape(cell[1])}</small>") for cell in cells]
            lines.append(_row("td", [f"<em>{html.escape(block)}</em>", html.escape(parameter), *shown], escaped=True))
        lines += [_row("td", ["", name, *cells]) for name, cells in self._statistics()]
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        return SCROLL.format(f"<table {STYLE}>{''.join(lines)}</table>") + notes

    def _rows(self) -> list[tuple[str, str, list[tuple[str, str]]]]:
        """For each parameter its block, where that is another one than before, its label, and cells of two lines."""
        parts = [_keyed(column.estimates) for column in self.columns]
        keys = list(dict.fromkeys(key for part in parts for key in part.index))
        blocks = list(dict.fromkeys(key[0] for key in keys))
        ordered = sorted(keys, key=lambda key: blocks.index(key[0]))
        rows, before = [], None
        for key in ordered:
            cells = [
                (self._number(part.at[key, "estimate"]), f"({self._number(part.at[key, 'se'])})")
                if key in part.index
                else ("", "")
                for part in parts
            ]
            rows.append((key[0] if key[0] != before else "", key[1], cells))
            before = key[0]
        return rows

    def _statistics(self) -> list[tuple[str, list[str]]]:
        names = dict.fromkeys(name for column in self.columns for name in column.statistics)
        return [(name, [column.statistics.get(name, "") for column in self.columns]) for name in names]

    def _notes(self) -> list[str]:
        several = len(self.columns) > 1
        return [f"{column.name}: {note}" if several else note for column in self.columns for note in column.notes]

    def _number(self, x: float) -> str:
        """A number with these significant digits or more, in scientific notation where it is tiny or huge."""
        if not math.isfinite(x):
            return "NaN" if math.isnan(x) else ("Inf" if x > 0 else "-Inf")
        if x and not 1e-4 <= abs(x) < 1e7:
            return f"{x:.{self.digits - 1}e}"
        decimals = self.digits - 1 - (math.floor(math.log10(abs(x))) if x else 0)
        return f"{x:.{max(decimals, 0)}f}"


def _keyed(estimates: pd.DataFrame) -> pd.DataFrame:
    """Estimates by block, parameter, and how often this has been there."""
    frame = estimates[["block", "parameter", "estimate", "se"]].copy()
    frame["count"] = frame.groupby(["block", "parameter"], sort=False).cumcount()
    return frame.set_index(["block", "parameter", "count"])


def _latex_cells(cells: Sequence[tuple[str, str]], line: int) -> str:
    return " & ".join(_latex(cell[line]) for cell in cells)


def _latex(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)


def _row(tag: str, cells: Sequence[str], escaped: bool = False) -> str:
    sides = ["left"] * 2 + ["right"] * (len(cells) - 2)
    shown = [cell if escaped else html.escape(cell) for cell in cells]
    inner = "".join(
        f'<{tag} style="text-align: {side}">{cell}</{tag}>' for side, cell in zip(sides, shown, strict=True)
    )
    return f"<tr>{inner}</tr>"
