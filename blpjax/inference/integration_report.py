"""Estimates and outcomes with other nodes and weights, as tables."""

import dataclasses
from collections.abc import Sequence

import pandas as pd

from blpjax.machine.pickling import Picklable
from blpjax.reporting.tables import Part, Shown


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class IntegrationReport(Shown, Picklable):
    """Estimates with other nodes and weights.

    Attributes
    ----------
    table : a row for each rule, seed, and parameter or outcome, with the columns `integration` (the rule's name),
        `agents` (of the largest market), `seed` (-1 for rules without one), `block` (``'outcome'`` for outcomes),
        `parameter`, `estimate`, `standard_error` (NaN for outcomes; both NaN where estimation failed), `ok`, `status`
        (how estimation ended) and `objective`.
    baseline : a row for each parameter and outcome of the results that were asked: `block`, `parameter`, `estimate` and
        `standard_error`.
    """

    table: pd.DataFrame
    baseline: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """A row for each rule and parameter or outcome, from estimations that are `ok`.

        Columns are `baseline`, the estimate that the results have, its `standard_error`, `mean`, `lowest` and `highest`
        of the `runs` over seeds, their standard deviation `sd` (NaN for a single one), `noise`, which is `sd` over
        `standard_error`, and `shift`, which is ``mean - baseline`` over it, and `failures`. Draws are too few where
        noise is not small, and standard errors, which take them as given, are then too small. Both are NaN where the
        standard error is zero.
        """
        keys = ["integration", "agents", "block", "parameter"]
        known = self.table.assign(estimate=self.table["estimate"].where(self.table["ok"]))
        groups = known.groupby(keys, sort=False)
        found = groups["estimate"].agg(["mean", "std", "min", "max", "count"])
        found.columns = ["mean", "sd", "lowest", "highest", "runs"]
        found["failures"] = groups["ok"].agg(lambda ok: int((~ok).sum()))
        base = self.baseline.set_index(["block", "parameter"]).rename(columns={"estimate": "baseline"})
        found = found.join(base, on=["block", "parameter"])
        errors = found["standard_error"].where(found["standard_error"] > 0)
        found["noise"] = found["sd"] / errors
        found["shift"] = (found["mean"] - found["baseline"]) / errors
        order = ["baseline", "standard_error", "mean", "sd", "lowest", "highest", "noise", "shift", "runs", "failures"]
        return found[order]

    def _parts(self) -> Sequence[Part]:
        return ["Estimates with other nodes:", self.summary()]
