"""Columns that look like misspelt fields of a table: these would be ignored without a word."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from blpjax.exceptions import DataWarning, warn_user

#: Optional fields by table, matrices and then IDs. What is required and missing is an error with a suggestion.
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "product_data": (
        ("demand_instruments", "supply_instruments", "covariance_instruments", "ownership"),
        ("firm_ids", "nesting_ids", "subnesting_ids", "product_ids", "clustering_ids", "lag_indices"),
    ),
    "agent_data": (("nodes", "availability"), ("agent_ids",)),
}


def warn_of_misspelt_fields(columns: Mapping[str, np.ndarray], used: Collection[str], table: str) -> None:
    """Warn of columns that no formula uses, and whose names differ by a letter from those of an optional field.

    Numbers are taken for columns of matrices, numbered or not. Columns that look like IDs count where there are no IDs
    of that kind.

    Warns
    -----
    DataWarning
        Naming the column and the field.
    """
    matrices, ids = _FIELDS[table]
    for column in columns:
        if column in used:
            continue
        stem, number = re.fullmatch(r"(.*?)([0-9]*)", column, re.DOTALL).groups()  # type: ignore[union-attr]
        numeric = columns[column].dtype.kind in "iuf"
        close = [name for name in matrices if numeric and _differ_by_a_letter(stem, name)]
        close += [name for name in ids if name not in columns and _differ_by_a_letter(stem, name)]
        if close:
            warn_user(
                f"{table}: column '{column}' is not used. If it is meant to be '{close[0]}{number}', rename it.",
                DataWarning,
            )


def _differ_by_a_letter(found: str, name: str) -> bool:
    """Whether one letter is missing, superfluous, wrong or has changed places, or letters are in the other case."""
    if found == name or abs(len(found) - len(name)) > 1:
        return False
    if found.lower() == name:
        return True
    long, short = (found, name) if len(found) >= len(name) else (name, found)
    at = next((k for k, (a, b) in enumerate(zip(long, short, strict=False)) if a != b), len(short))
    if len(long) > len(short):
        return long[at + 1 :] == short[at:]
    swapped = long[:at] + long[at + 1 : at + 2] + long[at : at + 1] + long[at + 2 :]
    return long[at + 1 :] == short[at + 1 :] or swapped == short
