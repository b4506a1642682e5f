"""Tables as text, Markdown, LaTeX and HTML, of numbers that are given."""

import numpy as np
import pandas as pd

from blpjax.reporting.estimates_table import EstimatesColumn, EstimatesTable
from blpjax.reporting.tables import Shown, Table


def column(name: str, rows: list[tuple[str, str, float, float]], *notes: str) -> EstimatesColumn:
    return EstimatesColumn(
        name, pd.DataFrame(rows, columns=["block", "parameter", "estimate", "se"]), {"N": "7"}, notes
    )


ONE = column("A_1", [("sigma", "x", 0.0, np.nan), ("beta", "1", -2.5, 0.123456), ("gamma", "1", 12345.6, 1e-6)])
TWO = column("B", [("beta", "1", 1.0, 0.5), ("beta", "log(x) | 50%", 3.0, 1.0)], "not so good")
BOTH = EstimatesTable((ONE, TWO))


def test_text_has_standard_errors_below_estimates_in_columns_of_models() -> None:
    lines = str(BOTH).split("\n")
    assert lines[0].split() == ["A_1", "B"]
    table = [line.split("  ") for line in lines]
    assert [cells[0] for cells in table if cells[0] in ("sigma", "beta", "gamma")] == ["sigma", "beta", "gamma"]
    first = next(k for k, line in enumerate(lines) if line.startswith("beta"))
    assert lines[first].split() == ["beta", "1", "-2.50", "1.00"] and lines[first + 1].split() == ["(0.123)", "(0.500)"]
    assert "(NaN)" in str(BOTH) and "(1.00e-06)" in str(BOTH) and "12346" in str(BOTH)
    assert lines[-1] == "B: not so good"


def test_what_a_model_does_not_have_is_blank() -> None:
    frame = BOTH.to_frame()
    assert list(frame.columns) == [(name, kind) for name in ("A_1", "B") for kind in ("estimate", "se")]
    assert frame.loc[("beta", "1"), ("A_1", "estimate")] == -2.5 and frame.loc[("beta", "1"), ("B", "se")] == 0.5
    assert frame.loc[("gamma", "1"), "B"].isna().all() and np.isnan(frame.loc[("beta", "log(x) | 50%"), ("A_1", "se")])


def test_markdown_is_a_table_whose_labels_are_no_syntax() -> None:
    text, note = BOTH.to_markdown().split("\n\n")
    rows = text.split("\n")
    assert rows[0] == "|  |  | A_1 | B |" and rows[1] == "| --- | --- | ---: | ---: |" and note == "B: not so good"
    assert r"|  | log(x) \| 50% |  | 3.00 (1.00) |" in rows


def test_latex_names_blocks_by_symbols_and_escapes_the_rest() -> None:
    plain = BOTH.to_latex()
    assert plain.startswith(r"\begin{tabular}{llcc}") and r" & & A\_1 & B \\" in plain
    assert r"$\beta$ & 1 & -2.50 & 1.00 \\" in plain and r"log(x) | 50\%" in plain and "% B: not so good" in plain
    assert all(line.endswith(r"\\") or line.startswith(("\\", "%")) for line in plain.split("\n"))
    whole = BOTH.to_latex("Demand", "tab:demand")
    assert whole.startswith(r"\begin{table}") and r"\caption{Demand}" in whole and r"\label{tab:demand}" in whole
    assert r"\par B: not so good" in whole and whole.endswith(r"\end{table}")


def test_a_label_twice_in_a_block_is_two_rows() -> None:
    table = EstimatesTable((column("", [("pi", "x", 1.0, 1.0), ("pi", "x", 2.0, 1.0)]),), digits=2)
    assert table.to_frame()[("", "estimate")].tolist() == [1.0, 2.0] and str(table).count("(1.0)") == 2


def test_html_escapes_what_is_shown() -> None:
    table = Table([["a", "|", "<b>"], ["x", "|", ""]], [["1", "|", "&"]], "T<")
    shown = table._repr_html_()
    assert "<th>a x</th><th>&lt;b&gt;</th>" in shown and "&amp;" in shown and "T&lt;" in shown and "|" not in shown
    assert "<small>(0.123)</small>" in BOTH._repr_html_()


def test_objects_are_shown_by_their_parts_and_details_are_folded() -> None:
    class Thing(Shown):
        _hidden = frozenset({"hidden"})
        hidden = public = 1

        def _parts(self) -> list[object]:
            return ["a < b", pd.DataFrame({"x": [1.23456]})]

        def _folded(self) -> list[object]:
            return [BOTH]

    thing = Thing()
    assert str(thing) == repr(thing) == "a < b\n\n      x\n0 1.235"
    top, details = thing._repr_html_().split("<details>")
    assert "a &lt; b" in top and "1.235" in top and "A_1" in details
    assert "public" in dir(thing) and "hidden" not in dir(thing)
