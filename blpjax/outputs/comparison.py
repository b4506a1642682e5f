"""Counterfactuals side by side."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from blpjax.outputs.counterfactual import CounterfactualMethods
from blpjax.outputs.many_owners import OWN_ARGUMENTS, SHARED_ARGUMENTS, can_be_batch, compare_owners

#: So many scenarios are solved one after the other, with programs that single ones need, too.
_FEW = 8


def compare(scenarios: Any, results: CounterfactualMethods, **shared: Any) -> pd.DataFrame:
    """Counterfactuals side by side: changes of everything that `Counterfactual.summary` has.

    Many scenarios that differ in owners and costs alone, such as all mergers of two firms, are solved as one batch.

    Parameters
    ----------
    scenarios : arguments of `ProblemResults.counterfactual` by names of scenarios.
    results : results whose method it is.
    shared : arguments that all scenarios have, such as ``standard_errors=True``; `weights` is that of `summary`.

    Returns
    -------
    A row for each scenario, whose columns are those of the summary: before (of the first point), and for each scenario
    after and change, with a second level for standard errors where they are asked for.

    Raises
    ------
    TypeError
        When scenarios are no mappings.
    """
    if not isinstance(scenarios, Mapping) or not all(isinstance(one, Mapping) for one in scenarios.values()):
        raise TypeError("scenarios must be a mapping of names to arguments of counterfactual, such as {'1+2': {...}}.")
    weights = shared.pop("weights", None)
    alike = all(set(one) <= OWN_ARGUMENTS for one in scenarios.values()) and set(shared) <= SHARED_ARGUMENTS
    if alike and len(scenarios) > _FEW and results.draws is None and can_be_batch(results.model):
        return compare_owners(scenarios, results, weights, **shared)
    rows = {}
    for name, arguments in scenarios.items():
        table = results.counterfactual(**{**shared, **arguments}).summary(weights)
        rows[name] = table.stack()
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("scenario")
    frame.columns = pd.MultiIndex.from_tuples(list(frame.columns))
    return frame
