"""Tables of estimates from bootstrap samples."""

import dataclasses

import jax
import numpy as np
import pandas as pd

from blpjax.estimation.estimates import Estimates
from blpjax.inference.bootstrap import BootstrappedResults, coefficients_of, results_at
from blpjax.inputs.arguments import check_choice, check_level
from blpjax.iteration import Iteration
from blpjax.machine.pickling import Picklable
from blpjax.reporting import report
from blpjax.reporting.tables import Part, Shown

#: Columns of the table of draws.
COLUMNS = (
    "draw",
    "block",
    "parameter",
    "estimate",
    "standard_error",
    "ok",
    "status",
    "objective",
    "gradient_norm",
    "evaluations",
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ReestimationResults(Shown, Picklable):
    """Estimates from bootstrap samples.

    Attributes
    ----------
    problem_results : results of the full sample.
    unit : what was drawn, ``'markets'`` or ``'clusters'``.
    recentre : whether moments were recentred.
    table : a row for each draw and parameter, with the columns `draw`, `block` (`sigma`, `beta` and so on),
        `parameter`, `estimate`, `standard_error` (both NaN where the draw failed), `ok` (whether all steps converged
        and the sample identifies the linear parameters), `status` (the sentence that says how it ended), `objective`
        (scaled by the number of observations), `gradient_norm` and `evaluations`.
    seconds : time that this run took.
    batches, peak_memory : see `MonteCarloResults`.
    """

    problem_results: Estimates
    unit: str
    recentre: bool
    table: pd.DataFrame
    seconds: float
    batches: pd.DataFrame
    peak_memory: int

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(self.table) // max(len(self.problem_results.parameters), 1)

    @property
    def parameters(self) -> np.ndarray:
        """(draws, Q) estimates of all parameters, NaN in draws that failed."""
        return self.table["estimate"].to_numpy().reshape(self.draws, -1)

    @property
    def ok(self) -> np.ndarray:
        """(draws,) whether the estimation succeeded."""
        return self.table["ok"].to_numpy().reshape(self.draws, -1).all(axis=1)

    def summary(self, level: float = 0.95) -> pd.DataFrame:
        """A row for each parameter, from draws that are `ok`.

        Columns are the full-sample `estimate`, its asymptotic `standard_error`, `bootstrap_se` (standard deviation over
        draws), `bias` (mean over draws less estimate), the percentile interval at this level, from `lower` to `upper`,
        the basic interval, which mirrors it at the estimate, from `basic_lower` to `basic_upper`, `draws` and
        `failures`.

        Raises
        ------
        ValueError
            When the level is not between zero and one.
        """
        check_level(level)
        results, known = self.problem_results, self.parameters[self.ok]
        estimate, Q = results.parameters[:, 0], len(results.parameters)
        lower, upper, mean, deviation = np.full((4, Q), np.nan)
        if len(known):
            lower, upper = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2], axis=0)
            mean = known.mean(axis=0)
        if len(known) > 1:
            deviation = known.std(axis=0, ddof=1)
        covariances = np.diag(results.parameter_covariances) / len(results.delta)
        first = self.table.iloc[:Q]
        return pd.DataFrame(
            {
                "estimate": estimate,
                "standard_error": np.sqrt(covariances),
                "bootstrap_se": deviation,
                "bias": mean - estimate,
                "lower": lower,
                "upper": upper,
                "basic_lower": 2 * estimate - upper,
                "basic_upper": 2 * estimate - lower,
                "draws": self.draws,
                "failures": int((~self.ok).sum()),
            },
            index=pd.MultiIndex.from_frame(first[["block", "parameter"]]),
        )

    def to_bootstrapped(
        self, hold: str = "shares", iteration: Iteration | None = None, constant_costs: bool = True
    ) -> BootstrappedResults:
        """Outputs at the estimates of each draw that is `ok`, for the full data, with a first axis of draws.

        Percentiles over that axis are confidence intervals, for example of elasticities
        ``np.percentile(draws.to_bootstrapped().compute_elasticities(), [2.5, 97.5], axis=0)``.

        Parameters
        ----------
        hold : ``'shares'``: prices and shares are as observed, mean utilities those that reproduce them, and costs
            those that make prices optimal. ``'xi'``: structural errors are as estimated with the full sample, and
            equilibrium prices and shares follow, as in `ProblemResults.bootstrap`.
        iteration : how to invert shares or to solve for prices; defaults are those of the methods that do so.
        constant_costs : see `ProblemResults.bootstrap`.

        Raises
        ------
        ValueError
            When no draw is `ok`, or `hold` is neither.

        Warns
        -----
        ConvergenceWarning
            Naming draws and markets for which there is no solution. Results are NaN there.
        """
        check_choice("hold", hold, ("shares", "xi"))
        known = self.parameters[self.ok]
        if not len(known):
            raise ValueError("There are no estimates: all draws failed.")
        coefficients = jax.device_get(coefficients_of(self.problem_results, known))
        return results_at(self.problem_results, coefficients, hold, iteration, constant_costs)

    def _parts(self) -> list[Part]:
        took = report.format_seconds(self.seconds)
        return [f"Re-estimation from {self.draws} samples of {self.unit} after {took}:", self.summary()]
