"""Absorption of fixed effects: residuals of regressions on the indicators of one or several groupings of rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blpjax.exceptions import AbsorptionError, DataError
from blpjax.inputs.design import is_categorical, variable_levels
from blpjax.inputs.expressions import source_text, variable_names
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.table_format import find_vector
from blpjax.inputs.terms import Term


@dataclass(frozen=True, eq=False)
class Absorber:
    """Residualises matrices on fixed effects.

    Parameters
    ----------
    ids : (N, E) integers, one column per dimension of fixed effects. With E = 0 nothing is absorbed.
    method, options : `absorb_method` and `absorb_options` of `Formulation`.
    labels : E names of the dimensions for messages.

    Raises
    ------
    ValueError
        When `ids` is not a matrix of integers, or there are not as many labels as dimensions.
    DataError
        When PyHDFE cannot absorb these IDs, for example because a dimension after the first has a single level.
    """

    ids: np.ndarray
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    _algorithm: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"ids must be a matrix of integers, but its shape is {ids.shape} and its type {ids.dtype}."
            )
        labels = self.labels or tuple(f"dimension {index}" for index in range(ids.shape[1]))
        if len(labels) != ids.shape[1]:
            raise ValueError(f"There are {len(labels)} labels for {ids.shape[1]} dimensions of fixed effects.")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "_algorithm", _create_algorithm(self) if labels else None)

    @property
    def dimensions(self) -> int:
        """E, the number of dimensions of fixed effects."""
        return self.ids.shape[1]

    def residualize(self, matrix: np.ndarray) -> np.ndarray:
        """Compute residuals of the columns of a matrix.

        Parameters
        ----------
        matrix : (N, K) numbers. It is not modified.

        Returns
        -------
        (N, K) residuals. Columns with infinite or missing values, say from a failed evaluation, are all NaN.

        Raises
        ------
        ValueError
            When `matrix` does not have N rows.
        AbsorptionError
            When an iterative method does not converge.
        """
        matrix = np.asarray(matrix, float)
        if matrix.ndim != 2 or matrix.shape[0] != self.ids.shape[0]:
            raise ValueError(
                f"The matrix must have {self.ids.shape[0]} rows and two dimensions, but its shape is {matrix.shape}."
            )
        finite = np.isfinite(matrix).all(axis=0)
        residuals = np.where(finite, matrix, np.nan) if self.dimensions else matrix.copy()
        if self.dimensions and finite.any():
            try:
                # iterative methods would never meet their tolerance on missing values
                residuals[:, finite] = self._algorithm.residualize(matrix[:, finite])
            except RuntimeError as error:
                raise AbsorptionError(
                    f"The absorption of fixed effects {' + '.join(self.labels)} failed: {error} Use another "
                    "absorb_method, or other absorb_options such as a larger iteration_limit."
                ) from error
        return residuals


def build_absorber(formulation: Formulation, data: Mapping[str, np.ndarray], table: str = "product_data") -> Absorber:
    """Build the absorber of a formulation's fixed effects.

    Parameters
    ----------
    formulation : its `absorb` terms are the dimensions; without any, the absorber changes nothing.
    data : arrays by name with N rows, as `read_table` returns them.
    table : what the table is called in messages.

    Raises
    ------
    DataError
        When a variable is missing from the table, is not categorical, or has missing values, or the effects cannot be
        absorbed.
    """
    rows = next((np.shape(values)[0] for values in data.values()), 0)
    columns = [_combined_ids(term, formulation, data, table) for term in formulation.absorb_terms]
    ids = np.column_stack(columns) if columns else np.zeros((rows, 0), int)
    labels = tuple(str(term) for term in formulation.absorb_terms)
    return Absorber(ids, formulation.absorb_method, dict(formulation.absorb_options or {}), labels)


def count_effects(ids: np.ndarray) -> int:
    """How many parameters fixed effects with IDs (N, E) are, less those that are redundant.

    Exact with one or two dimensions. With more, redundant ones between pairs of dimensions are left out.
    """
    if ids.shape[1] < 2:
        return np.unique(ids).size if ids.size else 0

    import pyhdfe  # a slow import that one dimension does not need

    found = pyhdfe.create(ids, drop_singletons=False, compute_degrees=True)
    return int(found.degrees + found.singletons)  # rows that have a level of their own are not among the degrees


class _Within:
    """Deviations from means of groups: what PyHDFE does with one dimension.

    Parameters
    ----------
    codes (N,), counts : groups of rows, and how many rows each has.
    """

    def __init__(self, codes: np.ndarray, counts: np.ndarray) -> None:
        self.codes, self.counts = codes.reshape(-1), counts
        self.order = np.argsort(self.codes, kind="stable")
        self.first = np.cumsum(counts) - counts

    def residualize(self, matrix: np.ndarray) -> np.ndarray:
        """Residuals (N, K) of a matrix."""
        totals = np.add.reduceat(matrix[self.order], self.first)
        return matrix - (totals / self.counts[:, None])[self.codes]


def _create_algorithm(absorber: Absorber) -> Any:
    """PyHDFE's algorithm for the IDs of an absorber, with what it refuses said in the terms of formulas."""
    for label, ids in zip(absorber.labels[1:], absorber.ids.T[1:], strict=True):
        if np.unique(ids).size < 2:
            raise DataError(
                f"The fixed effect {label} has a single level, which {absorber.labels[0]} contains already. Remove it."
            )
    if absorber.dimensions == 1 and absorber.method is None and not absorber.options:
        return _Within(*np.unique(absorber.ids, return_inverse=True, return_counts=True)[1:])

    import pyhdfe  # a slow import that one dimension does not need

    try:
        return pyhdfe.create(
            absorber.ids,
            drop_singletons=False,
            compute_degrees=False,
            residualize_method=absorber.method,
            options=dict(absorber.options),
        )
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        raise DataError(f"The fixed effects {' + '.join(absorber.labels)} cannot be absorbed: {error}") from error


def _combined_ids(term: Term, formulation: Formulation, data: Mapping[str, np.ndarray], table: str) -> np.ndarray:
    """Number the combinations of a term's levels that occur: (N,) integers from zero."""
    codes = []
    for factor in term.factors:
        names = sorted(variable_names(factor))
        vectors = {name: find_vector(data, name, table, f"absorb='{formulation.absorb}'") for name in names}
        if not is_categorical(factor, vectors):
            raise DataError(
                f"{table}: '{source_text(factor)}' in absorb='{formulation.absorb}' is not categorical, and only "
                f"categorical variables can be absorbed. Use C({names[0]})."
            )
        variable_levels(vectors, factor, data, table)
        codes.append(np.unique(vectors[names[0]], return_inverse=True)[1].reshape(-1))
    return np.unique(np.column_stack(codes), axis=0, return_inverse=True)[1].reshape(-1)
