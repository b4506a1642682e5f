"""Diagnostics that results have after estimation, beside tests of restrictions."""

import pandas as pd

from blpjax.estimation.estimates import Estimates


class DiagnosticMethods(Estimates):
    """Results of which one can ask how far to trust them."""

    def compute_instrument_strength(self) -> pd.DataFrame:
        r"""How strong demand-side instruments are for each parameter, in the problem linearised at these estimates.

        Endogenous regressors are derivatives of mean utilities in theta (sigma, pi, rho and tau) and the columns of X1
        that contain prices; they and the instruments are residuals on exogenous columns of X1 and on fixed effects.
        For a logit this is the usual first stage. Moments of supply, surveys or of one's own do not count: they may
        well identify what demand-side instruments do not.

        Returns
        -------
        DataFrame with a row for each endogenous regressor and these columns:

        - block, parameter: its coefficient.
        - effective_f: effective F statistic of its first stage (Montiel Olea and Pflueger 2013), robust to
          heteroscedasticity.
        - critical_value: what `effective_f` should exceed, so that the worst-case bias of two-stage least squares is
          below 10% of that of least squares, at the level of 5% (their simplified procedure). 23.1 with one instrument.
        - effective_f_clustered, critical_value_clustered: the same for errors that are correlated within clusters, only
          where product data have `clustering_ids`.
        - conditional_f: F statistic of Sanderson and Windmeijer (2016), of the part of the regressor that other
          regressors do not explain. It is small for parameters that are weakly identified although each first stage is
          strong. Homoscedastic, like what follows.
        - partial_r2: of excluded instruments in the first stage.

        Its `attrs` have `cragg_donald`, the F statistic of Cragg and Donald (1993) of all regressors jointly,
        `instruments`, the number K of excluded instruments that are linearly independent, and `degrees_of_freedom`, K
        and ``N - K - (exogenous columns and fixed effects)``. Statistics of a regressor that does not vary, such as
        that of a standard deviation at zero, are NaN, and joint ones leave it out.

        Raises
        ------
        IdentificationError
            When there are fewer excluded instruments than endogenous regressors.
        NotImplementedError
            Where demand-side moments are of innovations.
        ValueError
            When there are no endogenous regressors, or too few products.
        """
        from blpjax.inference.instrument_strength import strength_frame

        return strength_frame(self)
