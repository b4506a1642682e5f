"""What the model says of micro moments next to what is observed, before anything is estimated."""

from typing import Any

import numpy as np
import pandas as pd

from blpjax.exceptions import DeltaConvergenceError, IdentificationWarning, raise_for_status, warn_user
from blpjax.machine.placement import on_device
from blpjax.objective import programs
from blpjax.objective.moments import GMM
from blpjax.problem.micro import MicroSetup
from blpjax.reporting.micro import micro_frame


def compare_moments(
    micro: MicroSetup,
    objective: GMM,
    theta: np.ndarray,
    start: np.ndarray,
    residualize: Any,
    *,
    theta_labels: list[str],
    market_ids: np.ndarray,
) -> pd.DataFrame:
    """Observed values of the moments of an objective, those of the model at theta (P,), and their derivatives.

    Raises
    ------
    DeltaConvergenceError
        When shares cannot be inverted in some market.

    Warns
    -----
    IdentificationWarning
        When a moment does not depend on theta.
    """
    evaluation = programs.evaluate(objective, theta, start)
    status, residuals = np.asarray(evaluation.inversion.status), np.asarray(evaluation.inversion.residuals)
    raise_for_status(status, market_ids, "The inversion of market shares", residuals, kind=DeltaConvergenceError)
    found = programs.sensitivity_at(objective, on_device(theta), evaluation, residualize)
    last = slice(len(found.moments) - micro.size, None)
    # an unknown value leaves the derivative, and what the model says
    observed = np.array([moment.value for moment in micro.moments])
    values = np.asarray(micro.blocks[0].observed) - np.asarray(found.moments)[last]
    derivatives = -np.asarray(found.jacobian)[last, : theta.size]
    frame = micro_frame(
        micro.lines, observed, values, np.asarray(found.uncertainty.samples[-1]), derivatives, theta_labels, theta
    )
    uninformative = frame.loc[~frame["informative"], "moment"]
    if len(uninformative):
        warn_user(
            f"The micro moments {', '.join(map(repr, uninformative))} are uninformative: what the model says of them "
            "does not depend on any parameter at these values.",
            IdentificationWarning,
        )
    return frame
