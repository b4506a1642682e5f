"""Matrices from formulas and tables."""

import numpy as np

from blpjax.inputs.absorb import build_absorber
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.table_format import read_table


def build_matrix(formulation: Formulation, data: object) -> np.ndarray:
    """Construct the matrix that a formulation describes, and absorb its fixed effects.

    Parameters
    ----------
    formulation : the columns of the matrix, and fixed effects if there are any.
    data : DataFrame, mapping from names to arrays, or structured array with N rows. It is not modified.

    Returns
    -------
    (N, K) matrix of 64-bit numbers: its columns stand in PyBLP's order; they are residuals if the formulation absorbs
    fixed effects.

    Raises
    ------
    TypeError
        When an argument is of the wrong type.
    DataError
        When variables are missing from the table or unusable. The message names column, market and row.
    ConvergenceError
        When fixed effects cannot be absorbed to the method's tolerance.

    Examples
    --------
    >>> build_matrix(Formulation("0 + x + I(x ** 2)"), {"x": [1, 2, 3]})
    array([[1., 1.],
           [2., 4.],
           [3., 9.]])
    """
    if not isinstance(formulation, Formulation):
        raise TypeError(f"formulation must be a Formulation, not {type(formulation).__name__}.")
    columns = read_table(data, "data")
    matrix = formulation.build(columns, "data").values
    return build_absorber(formulation, columns, "data").residualize(matrix)
