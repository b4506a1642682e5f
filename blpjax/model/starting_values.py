"""Starting values, bounds and layout of parameters from the arguments of `Problem.solve`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from blpjax.inputs.design import DesignMatrix
from blpjax.inputs.tables import assign_node_columns
from blpjax.kernels.arrays import AnyArray, namespace, on_host
from blpjax.machine.tracing import operations_of_jax
from blpjax.model.parameters import (
    BLOCKS,
    BlockBounds,
    Bounds,
    Coefficients,
    Index,
    Labels,
    ParameterLayout,
    Parameters,
    Transformation,
    UtilityForm,
)

#: Nesting parameters are below one: at most this by default, in routines that can use bounds.
LARGEST_RHO = 0.99


def build_parameters(
    *,
    sigma: Any,
    pi: Any,
    rho: Any = None,
    tau: Any = None,
    phi: Any = None,
    kappa: Any = None,
    beta: Any,
    gamma: Any,
    bounds: Mapping[str, Any],
    labels: Labels,
    n_node_columns: int,
    bounded: bool = True,
    form: UtilityForm = UtilityForm(),  # noqa: B008 (an immutable tuple)
    conduct_bounds: Sequence[tuple[float, float]] = (),
) -> Parameters:
    """Read the parameter arguments of `Problem.solve`.

    `bounds` has pairs of bounds, or None, by block. Without `bounded`, for optimisation routines that ignore bounds,
    sigma, rho and kappa have no default bounds. `conduct_bounds` are those of kappa. `form` becomes part of the layout.

    Raises
    ------
    ValueError
        For matrices of the wrong shape, missing or superfluous ones, and starting values outside of their bounds.
    DataError
        When there are fewer columns of nodes than columns of Sigma that are not all zero.
    """
    K2, D = len(labels.X2), len(labels.demographics)
    values = {
        "sigma": np.tril(_read("sigma", sigma, (K2, K2), labels, "X2 was not formulated", required=K2 > 0)),
        "pi": _read("pi", pi, (K2, D), labels, "demographics were not formulated", required=D > 0),
        "rho": _read_rho(rho, labels),
        "tau": _read(
            "tau", tau, (len(form.tau),), labels, "no type in rc_types has parameters", required=bool(form.tau)
        ),
        "phi": _read_phi(phi, labels),
        "kappa": _read_kappa(kappa, labels, conduct_bounds),
        "beta": _read_linear("beta", beta, len(labels.X1), labels, "X1 has no columns"),
        "gamma": _read_linear("gamma", gamma, len(labels.X3), labels, "X3 was not formulated"),
    }
    limits = []
    for name, value in values.items():
        lower, upper = np.full(value.shape, -np.inf), np.full(value.shape, np.inf)
        if bounded and name == "sigma":
            # signs are arbitrary with symmetric nodes: what starts below zero stays there, a mirror image
            negative = np.diag(value) < 0
            np.fill_diagonal(lower, np.where(negative, -np.inf, 0.0))
            np.fill_diagonal(upper, np.where(negative, 0.0, np.inf))
        if name == "rho" and bounds.get(name) is None:
            _check_rho(value, labels)
        if bounded and name == "rho":
            lower, upper = np.zeros(value.shape), np.maximum(value, LARGEST_RHO)
        if bounded and name == "kappa":
            lower, upper = np.array(conduct_bounds, float).reshape(-1, 2).T.copy()
        limits.append(_read_bounds(name, bounds.get(name), value, Bounds(lower, upper)))
    free = {name: _free(value, bound) for (name, value), bound in zip(values.items(), limits, strict=True)}
    concentrated = {name: tuple(np.flatnonzero(np.isnan(values[name])).tolist()) for name in ("beta", "gamma")}
    nonzero = (values["sigma"] != 0).any(axis=0)
    return Parameters(
        layout=ParameterLayout(
            **free,
            concentrated_beta=concentrated["beta"],
            concentrated_gamma=concentrated["gamma"],
            sigma_columns=tuple(np.flatnonzero(nonzero).tolist()),
            node_columns=tuple(assign_node_columns(n_node_columns, nonzero).tolist()),
            form=form,
        ),
        start=Coefficients(**{name: np.nan_to_num(value) for name, value in values.items()}),
        limits=BlockBounds(*limits),
        labels=labels,
        bounded_by_user=any(
            bounds.get(name) is not None and (np.isfinite(np.array(limit)) & (limit.lower != limit.upper)).any()
            for name, limit in zip(BLOCKS, limits, strict=True)
        ),
    )


def _read_rho(rho: Any, labels: Labels) -> np.ndarray:
    """One nesting parameter for all groups of a level, or one for each of the groups, those within groups last."""
    absent, H, S = "there are no nesting_ids in product_data", len(labels.nests), len(labels.subnests)
    levels = 2 if S else 1
    if S and np.size(rho) not in (levels, H + S):
        raise ValueError(
            f"With subnesting_ids, rho must have two elements, for all groups and for all subgroups, or {H + S}: one "
            f"for each of {H} groups and then for each of {S} subgroups, in the order of Problem.unique_nesting_ids "
            f"and Problem.unique_subnesting_ids. It is {rho!r}."
        )
    single = rho is not None and np.size(rho) == levels
    values = _read("rho", rho, (min(H + S, levels) if single else H + S,), labels, absent, required=H > 0)
    if (values >= 1).any():
        raise ValueError(f"rho must be below one, not {values.max():g}.")
    return values


def _check_rho(values: np.ndarray, labels: Labels) -> None:
    if (values < 0).any():
        raise ValueError(
            f"rho must not be negative, but is {values.min():g}: products of a group would be worse substitutes than "
            "others. Where that is meant, give Problem.solve rho_bounds that allow it."
        )
    if far := labels.far_subgroups(values):
        raise ValueError(
            f"rho of a subgroup must not be below that of its group, but that of '{far[0]}' is: products of a subgroup "
            "would be worse substitutes than others of the group. Where that is meant, give Problem.solve rho_bounds "
            "that allow it."
        )


def _read_phi(phi: Any, labels: Labels) -> np.ndarray:
    """How structural errors follow from their lags, a row for each of them; no columns without lags."""
    size = len(labels.errors)
    if labels.lagged and phi is None:
        shape = "a number" if size == 1 else "a matrix (2, 2)"
        raise ValueError(
            f"phi must be given, because product_data has lag_indices: {shape}, with zeros where elements are fixed at "
            "zero. Leave lag_indices out where structural errors are not to follow from their lags."
        )
    absent = "product_data has no lag_indices (phi is the fourth positional argument of Problem.solve, beta the fifth)"
    return _read("phi", phi, (size, size * labels.lagged), labels, absent, required=False)


def _read_kappa(kappa: Any, labels: Labels, bounds: Sequence[tuple[float, float]]) -> np.ndarray:
    """Parameters of conduct, in its order."""
    names = ", ".join(map(repr, labels.conduct))
    if labels.conduct and kappa is None:
        raise ValueError(f"kappa must be given: a number for each parameter of conduct, which are {names}.")
    absent = "conduct has no parameters. Put blpjax.Parameter in place of a number of it, such as a profit weight"
    values = _read("kappa", kappa, (len(labels.conduct),), labels, absent, required=False)
    for value, (lower, _), name in zip(values, bounds, labels.conduct, strict=True):
        if value == 0 and lower > 0:
            raise ValueError(f"kappa must not be zero for {name!r}, which has to be positive.")
    return values


def _read_linear(name: str, values: Any, size: int, labels: Labels, absent: str) -> np.ndarray:
    if values is None:
        return np.full(size, np.nan)
    return _read(name, values, (size,), labels, absent, required=False, missing=True)


def _free(values: np.ndarray, bounds: Bounds) -> Index:
    free = (np.nan_to_num(values) != 0) & (bounds.lower != bounds.upper)
    return tuple(map(tuple, np.argwhere(free).tolist()))


def _read(
    name: str,
    values: Any,
    shape: tuple[int, ...],
    labels: Labels,
    absent: str,
    *,
    required: bool,
    missing: bool = False,
) -> np.ndarray:
    """A float array of the given shape, None read as missing; an empty or zero array when there is nothing to read."""
    if values is None:
        if required:
            raise ValueError(
                f"{name} must be given: an array of shape {shape}, with zeros where elements are fixed at zero."
            )
        return np.zeros(shape)
    array = _as_floats(name, values)
    if 0 in shape:
        if array.size == 0:
            return np.zeros(shape)
        raise ValueError(f"{name} must not be given, because {absent}.")
    if array.size == 1 and int(np.prod(shape)) == 1 and array.ndim <= 2:
        array = array.reshape(shape)
    if len(shape) == 1 and array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, not {array.shape}.{_describe_columns(name, labels)}")
    if not (np.isfinite(array) | (missing & np.isnan(array))).all():
        raise ValueError(f"{name} must be finite: use zeros for elements that are fixed at zero.")
    return array


def _describe_columns(name: str, labels: Labels) -> str:
    """What rows and columns of a block of parameters stand for, and which of them variables have become, as words."""
    matrices = {"sigma": ("X2",), "pi": ("X2", "demographics"), "beta": ("X1",), "gamma": ("X3",)}.get(name, ())
    if name == "kappa":
        return f" Parameters of conduct are {', '.join(map(repr, labels.conduct))}."
    words = ""
    for matrix in matrices:
        columns = getattr(labels, matrix)
        indicators = [column for column in columns if re.search(r"\[.+\]", column)]
        words += f" {matrix[0].upper()}{matrix[1:]} are {', '.join(columns[:20])}{', ...' * (len(columns) > 20)}."
        if indicators:
            words += (
                f" Text, booleans, dates and C(...) are categorical, with an indicator for each level, such as "
                f"{indicators[0]}. Convert such a variable to numbers if it is to be one column."
            )
    return words


def _as_floats(name: str, values: Any) -> np.ndarray:
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers.") from error


def _read_bounds(name: str, bounds: Any, values: np.ndarray, default: Bounds) -> Bounds:
    """Bounds of the shape of `values`; zeros are bounded by zero, missing bounds are infinite."""
    fixed = values == 0
    if values.size == 0:
        _refuse_unused_bounds(name, bounds)
        bounds = None
    if bounds is None:
        lower, upper = default.lower.copy(), default.upper.copy()
    else:
        try:
            lower_given, upper_given = bounds
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name}_bounds must be a pair (lower, upper) of arrays of the shape of {name}."
            ) from error
        lower, upper = (
            _one_bound(f"{name}_bounds", bound, values.shape, missing)
            for bound, missing in ((lower_given, -np.inf), (upper_given, np.inf))
        )
    if name == "sigma":
        fixed = fixed | (np.triu(np.ones(values.shape), 1) > 0)
    lower[fixed], upper[fixed] = 0.0, 0.0
    estimated = ~np.isnan(values)
    if (
        bounds is not None
        and name in ("beta", "gamma")
        and (np.isfinite(lower[~estimated]).any() or np.isfinite(upper[~estimated]).any())
    ):
        raise ValueError(
            f"{name}_bounds must be infinite for elements of {name} that are concentrated out: these are not "
            f"searched for. Give {name} starting values for them, or leave their bounds out (None)."
        )
    outside = estimated & ((values < lower) | (values > upper))
    if outside.any():
        i = tuple(np.argwhere(outside)[0].tolist())
        raise ValueError(f"{name}{list(i)} = {values[i]:g} is not within its bounds [{lower[i]:g}, {upper[i]:g}].")
    return Bounds(lower, upper)


def _refuse_unused_bounds(name: str, bounds: Any) -> None:
    """Raise `ValueError` for bounds of parameters that there are none of, unless the bounds are none or infinite."""
    try:
        used = [_binds(bound) for bound in (() if bounds is None else bounds)]
    except TypeError:
        used = [True]
    if any(used):
        raise ValueError(f"{name}_bounds must not be given, because the model has no {name}.")


def _binds(bound: Any) -> bool:
    return bound is not None and not np.isinf(np.asarray(bound, dtype=float)).all()


def _one_bound(name: str, bound: Any, shape: tuple[int, ...], missing: float) -> np.ndarray:
    array = np.full(shape, missing) if bound is None else _as_floats(name, bound)
    if array.size == 1 and array.ndim <= 2:
        array = np.full(shape, array.item())
    if len(shape) == 1 and array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.shape != shape:
        raise ValueError(f"{name} must hold arrays of the shape {shape}, not {array.shape}.")
    return np.where(np.isnan(array), missing, array)


def _check_transformation(kind: Transformation, name: str) -> None:
    """Raise `TypeError` or `ValueError` unless JAX can differentiate a user's type of random coefficients."""
    index, own = jax.ShapeDtypeStruct((2, 3), float), [jax.ShapeDtypeStruct((), float)] * len(kind.parameters)
    try:
        with operations_of_jax(name, "jax.numpy in place of numpy"):
            found, _ = jax.eval_shape(lambda *given: jax.jvp(kind.function, given, given), index, *own)
    except TypeError as error:
        if str(error).startswith(name):
            raise
        raise TypeError(
            f"{name} must be a function of JAX arrays with {1 + len(own)} argument{'s' * bool(own)}, the index"
            f"{''.join(f', {parameter}' for parameter in kind.parameters)}, that JAX can differentiate: {error}"
        ) from error
    if getattr(found, "shape", None) != index.shape:
        raise ValueError(f"{name} must return an array of the shape that it is given, not {found}.")


def _exponential(index: AnyArray) -> AnyArray:
    return namespace(index).exp(index)


def _logistic(index: AnyArray) -> AnyArray:
    return 0.5 + 0.5 * np.tanh(0.5 * index) if on_host(index) else jax.nn.sigmoid(index)


#: Types of random coefficients by PyBLP's names. None is for those that enter as they are.
_RC_TYPES = {
    "linear": None,
    "log": Transformation(_exponential, name="log"),
    "logit": Transformation(_logistic, name="logit"),
}


def read_utility_form(rc_types: Any, epsilon_scale: Any, K2: int) -> UtilityForm:
    """Transformations of random coefficients and the scale of epsilon from arguments of `Problem`.

    Raises
    ------
    ValueError, TypeError
        When there is not one type for each column of X2, a type is neither a name nor a function, or the scale is not a
        positive number.
    """
    number = isinstance(epsilon_scale, int | float | np.number) and not isinstance(epsilon_scale, bool)
    if not number or not 0 < epsilon_scale < np.inf:
        raise ValueError(f"epsilon_scale must be a positive number, not {epsilon_scale!r}.")
    if rc_types is None:
        return UtilityForm((), float(epsilon_scale))
    if isinstance(rc_types, str) or not isinstance(rc_types, Sequence) or len(rc_types) != K2:
        raise ValueError(f"rc_types must be a list with a type for each of the {K2} columns of X2, not {rc_types!r}.")
    for kind in rc_types:
        if not callable(kind) and not isinstance(kind, Transformation) and kind not in _RC_TYPES:
            raise ValueError(
                f"rc_types must be {', '.join(map(repr, _RC_TYPES))}, functions of JAX arrays or Transformation, not "
                f"{kind!r}."
            )
    found = tuple(
        kind if isinstance(kind, Transformation) else Transformation(kind) if callable(kind) else _RC_TYPES[kind]
        for kind in rc_types
    )
    for k, kind in enumerate(found):
        if kind is not None and kind not in _RC_TYPES.values():
            _check_transformation(kind, f"rc_types[{k}]")
    return UtilityForm(found if any(f is not None for f in found) else (), float(epsilon_scale))


def check_price_coefficients(concentrated: Sequence[int], X1: DesignMatrix) -> None:
    """Raise `ValueError` when coefficients of X1 on prices are concentrated out although there is a supply side."""
    missing = [X1.labels[k] for k in concentrated if X1.columns[k].depends_on("prices")]
    if missing:
        raise ValueError(
            f"beta needs starting values for {', '.join(map(repr, missing))}: with a supply side, coefficients on "
            "prices cannot be concentrated out, because marginal costs depend on them. Give beta with None for the "
            "elements that are concentrated out and numbers for these."
        )
