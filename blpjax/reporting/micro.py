"""Tables of micro moments, before and after estimation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from blpjax.inputs.micro import MicroMoment
from blpjax.reporting.report import format_number
from blpjax.reporting.tables import Table

#: A moment that moves by less than this share of its size, when a parameter moves by its own size, is uninformative.
_NEGLIGIBLE = 1e-7


class MicroLine(NamedTuple):
    """What a line of tables says of a part of a moment. `moment` counts moments; `first` marks their first lines."""

    moment: int
    first: bool
    observed: float
    name: str
    part: str
    dataset: str
    observations: int
    markets: str


def micro_lines(moments: Sequence[MicroMoment]) -> tuple[MicroLine, ...]:
    """Lines of tables of moments."""
    lines = []
    for m, moment in enumerate(moments):
        for p, part in enumerate(moment.parts):
            dataset = part.dataset
            markets = "All" if dataset.market_ids is None else str(len(dataset.market_ids))
            known = (part.name, dataset.name, dataset.observations, markets)
            lines.append(MicroLine(m, p == 0, moment.value, moment.name, *known))
    return tuple(lines)


def micro_table(lines: Sequence[MicroLine], estimated: np.ndarray | None = None) -> Table:
    """The table of micro moments, with values (MM,) of the model once there are estimates."""
    header = ["Observed", *([] if estimated is None else ["Estimated", "Difference"])]
    header += ["Moment", "Part", "Dataset", "Observations", "Markets"]
    rows = []
    for line in lines:
        numbers = [line.observed]
        if estimated is not None:
            value = float(estimated[line.moment])
            numbers += [value, line.observed - value]
        shown = [format_number(number) for number in numbers] if line.first else [""] * len(numbers)
        name = line.name if line.first else ""
        rows.append([*shown, name, line.part, line.dataset, str(line.observations), line.markets])
    return Table([header], rows, "Micro Moments" if estimated is None else "Estimated Micro Moments")


def micro_frame(
    lines: Sequence[MicroLine],
    observed: np.ndarray,
    values: np.ndarray,
    covariances: np.ndarray,
    derivatives: np.ndarray,
    labels: Sequence[str],
    theta: np.ndarray,
) -> pd.DataFrame:
    """Moments as a table.

    Parameters
    ----------
    lines : what there is to say of moments and parts.
    observed, values : (MM,) observed values, and those of the model. Observed ones may be NaN.
    covariances : (MM, MM) of observed values.
    derivatives : (MM, P) of the model's values in theta (P,), which `labels` name.

    Returns
    -------
    DataFrame
        MM rows with columns moment, observed, value, difference (observed less value), se, t, informative (whether some
        derivative is not zero), and ``d/d label`` for each element of theta.
    """
    errors = np.sqrt(np.diag(covariances)) if len(values) else np.zeros(0)
    moved = np.abs(derivatives) * np.maximum(np.abs(theta), 1.0)
    scale = np.fmax(np.abs(values), errors)
    difference = observed - values
    with np.errstate(divide="ignore", invalid="ignore"):
        t = difference / errors
    return pd.DataFrame(
        {
            "moment": np.array([line.name for line in lines if line.first], object),
            "observed": observed,
            "value": values,
            "difference": difference,
            "se": errors,
            "t": t,
            "informative": moved.max(axis=1, initial=0.0) > _NEGLIGIBLE * scale,
            **{f"d/d {label}": derivatives[:, p] for p, label in enumerate(labels)},
        }
    )


def parts_frame(lines: Sequence[MicroLine], moments: pd.DataFrame, values: np.ndarray | None) -> pd.DataFrame:
    """The same with a row for each part of each moment.

    Columns part, part_value, dataset, observations and markets follow the moment's name. `values` are those of the
    parts by line, None where they are unknown.
    """
    frame = moments.iloc[[line.moment for line in lines]].reset_index(drop=True)
    known = {
        "part": [line.part for line in lines],
        "part_value": np.full(len(lines), np.nan) if values is None else values,
        "dataset": [line.dataset for line in lines],
        "observations": [line.observations for line in lines],
        "markets": [line.markets for line in lines],
    }
    for place, (name, column) in enumerate(known.items()):
        frame.insert(1 + place, name, column)
    return frame
