"""Tables of micro moments, before and after estimation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blpjax.inputs.micro import MicroMoment
from blpjax.reporting.report import format_number, table


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


def micro_table(lines: Sequence[MicroLine], estimated: np.ndarray | None = None) -> str:
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
    return table([header], rows, "Micro Moments" if estimated is None else "Estimated Micro Moments")
