"""Tests of conduct as tables."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from blpjax.inference.conduct_critical_values import POWERS, SIZES
from blpjax.machine.pickling import Picklable
from blpjax.reporting.tables import Part, Shown, Table

#: Models with p-values above this are in the model confidence set.
LEVEL = 0.05

#: Names of columns with critical values of F, for sizes and for powers.
SIZE_COLUMNS = tuple(f"size_{size:g}".replace("0.", "") for size in SIZES)
POWER_COLUMNS = tuple(f"power_{power:g}".replace("0.", "") for power in POWERS)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ConductTest(Shown, Picklable):
    """Which models of conduct fit better: Rivers-Vuong tests of pairs, how strong instruments are, and confidence sets.

    A model fits where the costs that it implies are not explained by instruments, once cost shifters have explained
    what they can.

    Attributes
    ----------
    table : a row for each set of instruments and pair of models, with these columns.

        - instruments, model, against: names.
        - K: how many instruments are linearly independent after cost shifters.
        - TRV: the statistic, asymptotically standard normal under equal fit. Where it is positive, `model` fits worse
          than `against`.
        - p_value: two-sided.
        - F: effective F statistic of the pair. Weak instruments make tests reject too often, or never.
        - rho: what, with K, decides what F should exceed.
        - size_075, size_1, size_125: what F should exceed for a size of at most 7.5%, 10% and 12.5% of tests at 5%.
        - power_5, power_75, power_95: what F should exceed so that power can reach 50%, 75% and 95%.
        - worst_size, best_power: the smallest of these sizes and the largest of these powers that F reaches; NaN where
          F reaches none.
        - claim: the conclusion in words.
    models : a row for each set of instruments and model: `instruments`, `model`, `Q` (lack of fit, in squared units of
        costs), `mcs_p_value` (the running maximum along eliminations, NaN for models with the costs of an earlier one),
        and `in_set`, whether it is in the model confidence set at 5%.
    markups, costs : a row for each product and a column for each model, after market and product: markups are what
        firms get for a unit, less costs. With ``costs_type='log'`` costs are not their logarithms.
    notes : sentences on what cannot be told apart, and what else was found.
    se_type : ``'robust'`` or ``'clustered'``. demand_adjustment : whether demand estimates are taken as such.
    """

    table: pd.DataFrame
    models: pd.DataFrame
    markups: pd.DataFrame
    costs: pd.DataFrame
    notes: tuple[str, ...]
    se_type: str
    demand_adjustment: bool

    def matrix(self, name: str, instruments: str | None = None) -> pd.DataFrame:
        """A statistic of all pairs as a matrix with a row for each model and a column for what it is tested against.

        Parameters
        ----------
        name : a numeric column of `table`, such as ``'TRV'``, ``'F'``, ``'p_value'`` or ``'rho'``.
        instruments : the set of instruments, by default the first one.

        Raises
        ------
        ValueError
            When there is no such column or set.
        """
        sets = list(dict.fromkeys(self.table["instruments"]))
        chosen = sets[0] if instruments is None else instruments
        if chosen not in sets:
            raise ValueError(f"instruments must be one of {sets}, not {instruments!r}.")
        numeric = list(self.table.select_dtypes("number").columns)
        if name not in numeric:
            raise ValueError(f"name must be one of {numeric}, not {name!r}.")
        names = list(dict.fromkeys(self.models["model"]))
        found = pd.DataFrame(np.nan, index=names, columns=names, dtype=float)
        sign = -1.0 if name in ("TRV", "rho") else 1.0
        rows = self.table[self.table["instruments"] == chosen]
        for model, against, value in zip(rows["model"], rows["against"], rows[name], strict=True):
            found.loc[model, against], found.loc[against, model] = value, sign * value
        return found

    def summary(self) -> str:
        """Statistics of all pairs, and model confidence sets, as text."""
        return str(self)

    def _parts(self) -> Sequence[Part]:
        parts: list[Part] = [self._title(), *self.notes]
        for name in dict.fromkeys(self.table["instruments"]):
            parts += [self._tests(name), self._strength(name), self._set(name)]
        return parts

    def _title(self) -> str:
        errors = {"robust": "Robust", "clustered": "Clustered"}[self.se_type]
        demand = "demand as estimated" if self.demand_adjustment else "demand as if known"
        return f"Tests of conduct. {errors} standard errors, {demand}."

    def _tests(self, name: str) -> Table:
        title = f"Rivers-Vuong statistics with instruments {name} (positive: the row fits worse)"
        return _square(self.matrix("TRV", name), title, {})

    def _strength(self, name: str) -> Table:
        rows = self.table[self.table["instruments"] == name]
        marks = {}
        for row in rows.itertuples():
            size = sum(row.F > getattr(row, column) for column in SIZE_COLUMNS)
            power = sum(row.F > getattr(row, column) for column in POWER_COLUMNS)
            marks[row.model, row.against] = "*" * size + "^" * power
        words = "*, **, *** where sizes are at most 12.5%, 10%, 7.5%; ^, ^^, ^^^ where power can be 50%, 75%, 95%"
        return _square(self.matrix("F", name), f"F statistics, K = {rows['K'].iloc[0]} ({words})", marks)

    def _set(self, name: str) -> Table:
        rows = self.models[self.models["instruments"] == name]
        lines = [
            [str(row.model), f"{row.Q:.3g}", _number(row.mcs_p_value), "yes" if row.in_set else "no"]
            for row in rows.itertuples()
        ]
        return Table([["Model", "Q", "MCS p-value", "In set"]], lines, "Model confidence set at 5%")


def _square(frame: pd.DataFrame, title: str, marks: Mapping[tuple[str, str], str]) -> Table:
    """The upper triangle of a matrix, with marks of pairs."""
    names = [str(name) for name in frame.columns]
    lines = []
    for i, name in enumerate(names[:-1]):
        cells = [
            _number(frame.iloc[i, j]) + marks.get((name, names[j]), "") if j > i else "" for j in range(1, len(names))
        ]
        lines.append([name, "|", *cells])
    return Table([["Model", "|", *names[1:]]], lines, title)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
