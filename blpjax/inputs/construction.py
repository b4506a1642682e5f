"""Functions that build data: IDs of a simulated panel, integration nodes, and plain dictionaries from record arrays."""

from typing import Any

import numpy as np

from blpjax.inputs.integration import Integration, check_integer


def build_id_data(T: int, J: int, F: int) -> np.recarray:
    """Build market and firm IDs of a balanced panel.

    Parameters
    ----------
    T : int
        Number of markets.
    J : int
        Number of products in each market.
    F : int
        Number of firms. Each has J / F products in each market, or, where J is not divisible by F, the first J mod F
        firms have one product more than the others.

    Returns
    -------
    recarray
        T * J rows with fields `market_ids` (0 to T - 1) and `firm_ids` (0 to F - 1), both (T * J, 1) objects. Rows of a
        market are adjacent, and so are products of a firm.

    Raises
    ------
    TypeError
        An argument is not an integer.
    ValueError
        T, J or F is not positive, or J is smaller than F.
    """
    T, J, F = (check_integer(name, value, minimum=1) for name, value in (("T", T), ("J", J), ("F", F)))
    if J < F:
        raise ValueError(f"J must be at least F, so that each firm has a product, but J is {J} and F is {F}.")
    firm_sizes = J // F + (np.arange(F) < J % F)
    data = np.recarray(T * J, dtype=[("market_ids", object, (1,)), ("firm_ids", object, (1,))])
    data["market_ids"][:, 0] = np.repeat(np.arange(T), J)
    data["firm_ids"][:, 0] = np.tile(np.repeat(np.arange(F), firm_sizes), T)
    return data


def build_integration(integration: Integration, dimensions: int) -> np.recarray:
    """Build nodes and weights for one market, for example as columns of agent data.

    Parameters
    ----------
    integration : Integration
    dimensions : int
        Number of columns of nodes.

    Returns
    -------
    recarray
        I rows with fields `weights` (I, 1) and `nodes` (I, dimensions).

    Raises
    ------
    TypeError
        `integration` is not an `Integration`, or `dimensions` is not an integer.
    ValueError
        `dimensions` is not positive.
    """
    if not isinstance(integration, Integration):
        raise TypeError(f"integration must be an Integration, not {integration!r}.")
    built = integration.build(dimensions)
    data = np.recarray(built.weights.size, dtype=[("weights", float, (1,)), ("nodes", float, (built.nodes.shape[1],))])
    data["weights"][:, 0] = built.weights
    data["nodes"] = built.nodes
    return data


def data_to_dict(data: np.ndarray, ignore_empty: bool = True) -> dict[str, np.ndarray]:
    """Split the fields of a structured array into one-dimensional arrays, for example for a DataFrame.

    Parameters
    ----------
    data : structured array or recarray with N rows, for example `problem.products`.
    ignore_empty : bool, optional
        Whether fields without columns or rows are left out, which is the default. Otherwise they become empty arrays.

    Returns
    -------
    dict
        (N,) copies. A field with one column keeps its name; one with more becomes `name0`, `name1`, and so on.

    Raises
    ------
    TypeError
        `data` is not a structured array.
    ValueError
        A field has more than two dimensions, rows included, or `data` is not one-dimensional.
    """
    if not isinstance(data, np.ndarray) or data.dtype.names is None:
        raise TypeError(f"data must be a structured NumPy array with named fields, not {type(data).__name__}.")
    if data.ndim != 1:
        raise ValueError(f"data must be one-dimensional, but it has {data.ndim} dimensions.")
    arrays: dict[str, np.ndarray] = {}
    for name in data.dtype.names:
        values: Any = np.asarray(data[name])
        if values.ndim > 2:
            raise ValueError(f"Field '{name}' has {values.ndim} dimensions: only vectors and matrices can be split.")
        if values.size == 0:
            if not ignore_empty:
                arrays[name] = np.empty(0, dtype=values.dtype)
        elif values.ndim == 1 or values.shape[1] == 1:
            arrays[name] = values.reshape(-1).copy()
        else:
            arrays.update({f"{name}{k}": values[:, k].copy() for k in range(values.shape[1])})
    return arrays
