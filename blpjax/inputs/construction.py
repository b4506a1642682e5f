"""Functions that build data: IDs of a simulated panel, ownership, integration nodes, and plain dictionaries."""

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from blpjax.inputs.columns import read_market_ids, read_required_ids
from blpjax.inputs.integration import Integration
from blpjax.inputs.table_format import read_table
from blpjax.machine.memory import require_memory
from blpjax.values import check_integer, read_flag


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
    SizeError
        There is not enough memory for so many rows.
    """
    T, J, F = (check_integer(name, value, minimum=1) for name, value in (("T", T), ("J", J), ("F", F)))
    if J < F:
        raise ValueError(f"J must be at least F, so that each firm has a product, but J is {J} and F is {F}.")
    # in each row two references, the numbers that they are made of, and one or two objects
    require_memory(
        64 * T * J, f"build_id_data: {T * J:,} rows (T = {T:,} times J = {J:,})", "Use fewer markets or products."
    )
    firm_sizes = J // F + (np.arange(F) < J % F)
    data = np.recarray(T * J, dtype=[("market_ids", object, (1,)), ("firm_ids", object, (1,))])
    data["market_ids"][:, 0] = np.repeat(np.arange(T), J)
    data["firm_ids"][:, 0] = np.tile(np.repeat(np.arange(F), firm_sizes), T)
    return data


def build_ownership(
    product_data: object, kappa_specification: str | Callable[[Any, Any], Any] | None = None
) -> np.ndarray:
    r"""Build ownership matrices, one for each market, stacked in the order of the rows.

    Element :math:`H_{jk} = \kappa(f, g)` is the weight that firm f of product j puts on the profits that firm g earns
    with product k.

    Parameters
    ----------
    product_data : DataFrame, mapping from names to arrays, or structured array with N rows. Column `market_ids` is
        required, and `firm_ids` unless the specification is `'monopoly'` or `'single'`.
    kappa_specification : function or str, optional
        By default firms maximise their own profits: elements are one for products of the same firm and zero for others.

        - A function `kappa(f, g)` of two firm IDs gives a finite number. It is called once for each pair of firms that
          meet in a market, f = g included, and may be asymmetric.
        - `'monopoly'`: all elements are one.
        - `'single'`: each product has its own firm, so matrices are identity matrices.

    Returns
    -------
    (N, J) matrix where J is the number of products in the largest market. Rows of smaller markets have NaN on the
    right. Columns of a market are its products in the order of their rows.

    Raises
    ------
    TypeError
        An argument is of the wrong type, or the function returns something that is not a number. The message names
        the two firms.
    ValueError
        The specification is an unknown name, or the function returns NaN or infinity. The message names the two firms.
    DataError
        A column is missing or has missing or unusable values. The message names column, market and row.

    Examples
    --------
    >>> build_ownership({"market_ids": [0, 1, 1], "firm_ids": ["a", "a", "b"]})
    array([[ 1., nan],
           [ 1.,  0.],
           [ 0.,  1.]])
    """
    _check_kappa_specification(kappa_specification)
    table, user = "product_data", "build_ownership"
    columns = read_table(product_data, table)
    market_ids = read_market_ids(columns, table, user)
    market_codes = np.unique(market_ids, return_inverse=True)[1].ravel()
    sizes = np.bincount(market_codes)
    require_memory(
        8 * market_ids.size * int(sizes.max()),
        f"build_ownership: matrices of {market_ids.size:,} rows and {sizes.max():,} columns, as many as the largest "
        "market has products,",
        "Leave ownership out, for that of firm_ids needs none of this, or define smaller markets.",
    )
    ownership = np.full((market_ids.size, sizes.max()), np.nan)
    if kappa_specification == "monopoly":
        firm_codes = np.zeros(market_ids.size, int)
    elif kappa_specification == "single":
        firm_codes = np.arange(market_ids.size)
    else:
        firm_ids = read_required_ids(columns, "firm_ids", table, market_ids, f"{user} with this kappa_specification")
        firms, firm_codes = np.unique(firm_ids, return_inverse=True)
    kappa = _KappaTable(kappa_specification, firms) if callable(kappa_specification) else None
    for rows in np.split(np.argsort(market_codes, kind="stable"), np.cumsum(sizes)[:-1]):
        codes = firm_codes.ravel()[rows]
        same_firm = codes[:, None] == codes
        ownership[rows, : rows.size] = same_firm if kappa is None else kappa.evaluate(codes)
    return ownership


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
    ignore_empty = read_flag("ignore_empty", ignore_empty)
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


def _check_kappa_specification(specification: object) -> None:
    named = isinstance(specification, str)
    if specification is None or callable(specification) or (named and specification in ("monopoly", "single")):
        return
    kind = ValueError if named else TypeError
    raise kind(
        f"kappa_specification must be None, 'monopoly', 'single', or a function of two firm IDs, not {specification!r}."
    )


class _KappaTable:
    """Values of a function of two firm IDs, each computed when it is needed first."""

    def __init__(self, function: Callable[[Any, Any], Any], firms: np.ndarray) -> None:
        self._function = function
        # Python numbers rather than NumPy ones; dates would lose their type
        self._firms = firms.tolist() if firms.dtype.kind in "biufO" else list(firms)
        self._known: dict[tuple[int, int], float] = {}

    def evaluate(self, codes: np.ndarray) -> np.ndarray:
        """Values (J, J) for pairs of products, given the positions (J,) of their firms in the array of firms."""
        present, inverse = np.unique(codes, return_inverse=True)
        values = np.array([[self._value(f, g) for g in present.tolist()] for f in present.tolist()])
        return values[inverse.ravel()[:, None], inverse.ravel()]

    def _value(self, f: int, g: int) -> float:
        if (f, g) not in self._known:
            self._known[f, g] = self._checked(self._firms[f], self._firms[g])
        return self._known[f, g]

    def _checked(self, f: Any, g: Any) -> float:
        result = self._function(f, g)
        array = np.asarray(result)
        if not isinstance(result, numbers.Real) and not (array.ndim == 0 and array.dtype.kind in "biuf"):
            raise TypeError(
                f"kappa_specification must return a number, but it is {result!r} for firms {f!r} and {g!r}."
            )
        value = float(result)
        if not np.isfinite(value):
            raise ValueError(
                f"kappa_specification must return a finite number, but it is {value} for firms {f!r} and {g!r}."
            )
        return value
