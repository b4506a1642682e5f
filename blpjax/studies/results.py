"""Tables of Monte Carlo studies."""

import dataclasses

import numpy as np
import pandas as pd
from scipy.special import ndtri

from blpjax.inputs.arguments import check_level
from blpjax.machine.memory import format_bytes
from blpjax.reporting import report
from blpjax.reporting.tables import Part, Shown

#: Columns of a study's table.
COLUMNS = (
    "replication",
    "block",
    "parameter",
    "true",
    "estimate",
    "standard_error",
    "ok",
    "identified",
    "status",
    "objective",
    "gradient_norm",
    "evaluations",
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class MonteCarloResults(Shown):
    """Estimates of all replications of a study.

    Attributes
    ----------
    table : a row for each replication and parameter, with the columns `replication`, `block` (`sigma`, `beta` and so
        on), `parameter`, `true`, `estimate`, `standard_error` (NaN where a replication failed), `ok` (whether the
        replication was simulated and all steps converged), `identified` (whether structural errors depend on the
        parameter), `status` (the sentence that says how it ended), `objective`, `gradient_norm` and `evaluations`.
        Micro moments have two rows, whose `true` values are those of the population that respondents were drawn from.
        Those of the block `survey` are what respondents say, with the standard error of their sampling; those of the
        block `micro` what the model says at the estimates, with the standard error that follows from those of
        parameters.
    seconds : time that this run took.
    batches : a row for each batch: number of its `first` replication, `size`, `seconds` that it took, and `peak_memory`
        of the process that ran it until then, in bytes. Those of batches that were found in files are of when they were
        run.
    peak_memory : largest memory of processes that ran batches in this run, or if none did of this one, in bytes.
        Memory of accelerators is not counted.
    """

    table: pd.DataFrame
    seconds: float
    batches: pd.DataFrame
    peak_memory: int

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """A row for each parameter, from replications that are `ok`.

        Columns are the `true` value (a mean where it varies between replications), `mean`, `bias`, `median_bias`,
        `rmse`, `sd` (of estimates), `mean_se`, `coverage` of confidence intervals at this level, `power` of the test at
        ``1 - level`` that the parameter is zero, `replications`, `failures`, and how often a parameter was
        `unidentified`: such replications, as with a standard deviation of zero and symmetric nodes, do not count for
        `mean_se`, `coverage` and `power`.

        Raises
        ------
        ValueError
            When the level is not between zero and one.
        """
        check_level(level)
        z = float(ndtri(0.5 + level / 2))
        rows = {}
        for name, group in self.table.groupby(["block", "parameter"], sort=False):
            known = group[group["ok"]]
            error = known["estimate"] - known["true"]
            told = known[known["identified"]]
            wrong, se = (told["estimate"] - told["true"]).abs(), told["standard_error"]
            rows[name] = {
                "true": group["true"].iloc[0] if group["true"].nunique() < 2 else group["true"].mean(),
                "mean": known["estimate"].mean(),
                "bias": error.mean(),
                "median_bias": error.median(),
                "rmse": np.sqrt((error**2).mean()),
                "sd": known["estimate"].std(),
                "mean_se": se.mean(),
                "coverage": (wrong <= z * se).mean() if wrong.notna().all() else np.nan,
                "power": (told["estimate"].abs() > z * se).mean(),
                "replications": len(group),
                "failures": int((~group["ok"]).sum()),
                "unidentified": len(known) - len(told),
            }
        index = pd.MultiIndex.from_tuples(rows, names=["block", "parameter"])
        return pd.DataFrame(list(rows.values()), index=index)

    def _parts(self) -> list[Part]:
        count = self.table["replication"].nunique()
        size = self.batches["size"].max()
        took = report.format_seconds(self.seconds)
        memory = f"at most {format_bytes(self.peak_memory)} of memory."
        return [self.summary(), f"{count} replications in batches of {size}: {took} in this run, {memory}"]
