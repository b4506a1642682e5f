"""Which parameters are free, fixed or concentrated out, their bounds and labels, and theta <-> matrices.

Theta stacks the free elements of Sigma (lower triangle by rows), Pi (by rows) and beta. Zeros are fixed at zero, equal
bounds fix an element at its value, and missing elements of beta are concentrated out: estimated by linear IV-GMM at
every theta.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.inputs.tables import assign_node_columns

Index = tuple[tuple[int, ...], ...]


class ParameterLayout(NamedTuple):
    """Where the elements of theta belong (static: it decides which program is compiled).

    `sigma_columns` are the columns of Sigma that are not all zero, `node_columns` the columns of nodes that go with
    them.
    """

    sigma: Index
    pi: Index
    beta: tuple[int, ...]
    concentrated_beta: tuple[int, ...]
    sigma_columns: tuple[int, ...]
    node_columns: tuple[int, ...]

    @property
    def P(self) -> int:
        """Number of elements of theta."""
        return len(self.sigma) + len(self.pi) + len(self.beta)


class Coefficients(eqx.Module):
    """Parameter matrices: `sigma` (K2, K2), `pi` (K2, D) and `beta` (K1,).

    Concentrated elements of `beta` are zero until they are filled in.
    """

    sigma: Float[Array | np.ndarray, "K2 K2"]
    pi: Float[Array | np.ndarray, "K2 D"]
    beta: Float[Array | np.ndarray, " K1"]


class Bounds(NamedTuple):
    """Lower and upper bounds of one block of parameters, arrays of the block's shape."""

    lower: np.ndarray
    upper: np.ndarray


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Starting values, bounds, layout and labels of the parameters of one call of `Problem.solve`."""

    layout: ParameterLayout
    start: Coefficients
    sigma_bounds: Bounds
    pi_bounds: Bounds
    beta_bounds: Bounds
    sigma_labels: tuple[str, ...]
    pi_labels: tuple[str, ...]
    beta_labels: tuple[str, ...]
    bounded_by_user: bool

    @property
    def theta(self) -> np.ndarray:
        """Starting values (P,)."""
        return np.asarray(compress(self.layout, self.start))

    def at(self, theta: np.ndarray) -> Coefficients:
        """Parameter matrices with the elements of theta (P,) in place, as NumPy arrays."""
        blocks = []
        first, second = len(self.layout.sigma), len(self.layout.sigma) + len(self.layout.pi)
        parts = (theta[:first], theta[first:second], theta[second:])
        indices: tuple[Index, ...] = (self.layout.sigma, self.layout.pi, tuple((k,) for k in self.layout.beta))
        for matrix, index, values in zip(
            (self.start.sigma, self.start.pi, self.start.beta), indices, parts, strict=True
        ):
            block = np.array(matrix)
            if index:
                block[tuple(np.array(index).T)] = values
            blocks.append(block)
        return Coefficients(*blocks)

    @property
    def bounds(self) -> Bounds:
        """Bounds of theta, two arrays (P,)."""
        return Bounds(
            *(self._stack(*blocks) for blocks in zip(self.sigma_bounds, self.pi_bounds, self.beta_bounds, strict=True))
        )

    @property
    def theta_labels(self) -> list[str]:
        """A label such as ``'prices x income'`` for each element of theta."""
        rows = [f"{self.sigma_labels[k]} x {self.sigma_labels[m]}" for k, m in self.layout.sigma]
        rows += [f"{self.sigma_labels[k]} x {self.pi_labels[d]}" for k, d in self.layout.pi]
        return rows + [self.beta_labels[k] for k in self.layout.beta]

    @property
    def parameter_labels(self) -> list[str]:
        """Labels of theta and then of the concentrated elements of beta."""
        return self.theta_labels + [self.beta_labels[k] for k in self.layout.concentrated_beta]

    def unbounded(self) -> "Parameters":
        """The same parameters with infinite bounds, for routines that cannot use bounds."""

        def infinite(bounds: Bounds) -> Bounds:
            free = ~((bounds.lower == 0) & (bounds.upper == 0)) & (bounds.lower != bounds.upper)
            return Bounds(np.where(free, -np.inf, bounds.lower), np.where(free, np.inf, bounds.upper))

        return dataclasses.replace(
            self,
            sigma_bounds=infinite(self.sigma_bounds),
            pi_bounds=infinite(self.pi_bounds),
            beta_bounds=infinite(self.beta_bounds),
        )

    def _stack(self, sigma: np.ndarray, pi: np.ndarray, beta: np.ndarray) -> np.ndarray:
        blocks = [[block[i] for i in index] for block, index in ((sigma, self.layout.sigma), (pi, self.layout.pi))]
        return np.array([*blocks[0], *blocks[1], *(beta[k] for k in self.layout.beta)], dtype=float)


def expand(layout: ParameterLayout, fixed: Coefficients, theta: Float[Array, " P"]) -> Coefficients:
    """Put the elements of theta into the matrices; all other elements come from `fixed`."""
    first, second = len(layout.sigma), len(layout.sigma) + len(layout.pi)
    return Coefficients(
        _place(fixed.sigma, layout.sigma, theta[:first]),
        _place(fixed.pi, layout.pi, theta[first:second]),
        _place(fixed.beta, tuple((k,) for k in layout.beta), theta[second:]),
    )


def compress(layout: ParameterLayout, coefficients: Coefficients) -> np.ndarray:
    """Theta (P,) of parameter matrices, the inverse of `expand`."""
    sigma, pi, beta = (np.asarray(block) for block in (coefficients.sigma, coefficients.pi, coefficients.beta))
    return np.array(
        [*(sigma[i] for i in layout.sigma), *(pi[i] for i in layout.pi), *(beta[k] for k in layout.beta)], float
    )


def _place(matrix: Array | np.ndarray, index: Index, values: Array) -> Array | np.ndarray:
    if not index:
        return matrix
    return jnp.asarray(matrix).at[tuple(np.array(index).T)].set(values)


def build_parameters(
    *,
    sigma: Any,
    pi: Any,
    beta: Any,
    sigma_bounds: Any,
    pi_bounds: Any,
    beta_bounds: Any,
    X1_labels: Sequence[str],
    X2_labels: Sequence[str],
    demographic_labels: Sequence[str],
    n_node_columns: int,
    bounded: bool = True,
) -> Parameters:
    """Read the parameter arguments of `Problem.solve`.

    Without `bounded`, for optimisation routines that ignore bounds, sigma has no default bounds.

    Raises
    ------
    ValueError
        For matrices of the wrong shape, missing or superfluous ones, and starting values outside of their bounds.
    DataError
        When there are fewer columns of nodes than columns of Sigma that are not all zero.
    """
    K1, K2, D = len(X1_labels), len(X2_labels), len(demographic_labels)
    sigma = _read("sigma", sigma, (K2, K2), "X2 was not formulated", required=K2 > 0)
    sigma = np.tril(sigma)
    pi = _read("pi", pi, (K2, D), "demographics were not formulated", required=D > 0)
    beta = (
        np.full(K1, np.nan)
        if beta is None
        else _read("beta", beta, (K1,), "X1 has no columns", required=False, missing=True)
    )
    concentrated = np.isnan(beta)
    sigma_lower, sigma_upper = np.full((K2, K2), -np.inf), np.full((K2, K2), np.inf)
    if bounded:
        np.fill_diagonal(sigma_lower, 0.0)
    unbounded_pi, unbounded_beta = np.full((K2, D), np.inf), np.full(K1, np.inf)
    sigma_limits = _read_bounds("sigma", sigma_bounds, sigma, Bounds(sigma_lower, sigma_upper))
    pi_limits = _read_bounds("pi", pi_bounds, pi, Bounds(-unbounded_pi, unbounded_pi))
    beta_limits = _read_bounds("beta", beta_bounds, beta, Bounds(-unbounded_beta, unbounded_beta))
    nonzero = (sigma != 0).any(axis=0)
    layout = ParameterLayout(
        sigma=_free(sigma, sigma_limits),
        pi=_free(pi, pi_limits),
        beta=tuple(k for (k,) in _free(np.nan_to_num(beta), beta_limits)),
        concentrated_beta=tuple(np.flatnonzero(concentrated).tolist()),
        sigma_columns=tuple(np.flatnonzero(nonzero).tolist()),
        node_columns=tuple(assign_node_columns(n_node_columns, nonzero).tolist()),
    )
    return Parameters(
        layout=layout,
        start=Coefficients(sigma, pi, np.nan_to_num(beta)),
        sigma_bounds=sigma_limits,
        pi_bounds=pi_limits,
        beta_bounds=beta_limits,
        sigma_labels=tuple(X2_labels),
        pi_labels=tuple(demographic_labels),
        beta_labels=tuple(X1_labels),
        bounded_by_user=any(
            given is not None and (np.isfinite(np.array(limits)) & (limits.lower != limits.upper)).any()
            for given, limits in ((sigma_bounds, sigma_limits), (pi_bounds, pi_limits), (beta_bounds, beta_limits))
        ),
    )


def _free(values: np.ndarray, bounds: Bounds) -> Index:
    return tuple(map(tuple, np.argwhere((values != 0) & (bounds.lower != bounds.upper)).tolist()))


def _read(
    name: str, values: Any, shape: tuple[int, ...], absent: str, required: bool, missing: bool = False
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
    if array.size == 1 and int(np.prod(shape)) == 1:
        array = array.reshape(shape)
    if len(shape) == 1 and array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, not {array.shape}.")
    if not (np.isfinite(array) | (missing & np.isnan(array))).all():
        raise ValueError(f"{name} must be finite: use zeros for elements that are fixed at zero.")
    return array


def _as_floats(name: str, values: Any) -> np.ndarray:
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers.") from error


def _read_bounds(name: str, bounds: Any, values: np.ndarray, default: Bounds) -> Bounds:
    """Bounds of the shape of `values`; zeros are bounded by zero, missing bounds are infinite."""
    fixed = values == 0
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
        and name == "beta"
        and (np.isfinite(lower[~estimated]).any() or np.isfinite(upper[~estimated]).any())
    ):
        raise ValueError(
            "beta_bounds must be infinite for elements of beta that are concentrated out. Give them starting values."
        )
    outside = estimated & ((values < lower) | (values > upper))
    if outside.any():
        i = tuple(np.argwhere(outside)[0].tolist())
        raise ValueError(f"{name}{list(i)} = {values[i]:g} is not within its bounds [{lower[i]:g}, {upper[i]:g}].")
    return Bounds(lower, upper)


def _one_bound(name: str, bound: Any, shape: tuple[int, ...], missing: float) -> np.ndarray:
    array = np.full(shape, missing) if bound is None else _as_floats(name, bound)
    if array.size == 1:
        array = np.full(shape, array.item())
    if len(shape) == 1 and array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.shape != shape:
        raise ValueError(f"{name} must hold arrays of the shape {shape}, not {array.shape}.")
    return np.where(np.isnan(array), missing, array)
