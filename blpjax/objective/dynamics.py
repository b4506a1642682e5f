"""Moments of innovations: what is left of structural errors where their lags explain a part of them.

With L the lag and phi how errors follow from lags, ``xi = phi_xx L xi + phi_xo L omega + innovation``, and likewise for
omega. A type of moments replaces errors u in ``E[Z u] = 0`` by innovations, or by differences of innovations from their
lags, and by zero where there are no lags, or no lags of lags (Arellano and Bond 1991).

Moments are linear in mean utilities, costs and characteristics for given phi, and linear in phi for given ones of
these. So lags are taken of instruments, once, and what an evaluation computes is as large as without dynamics.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from blpjax.exceptions import IdentificationError
from blpjax.kernels.arrays import AnyArray, namespace, on_host
from blpjax.kernels.linear_algebra import solve
from blpjax.model.parameters import ParameterLayout
from blpjax.objective import iv
from blpjax.objective.blocks import MomentBlock, Moving, Point
from blpjax.objective.equations import Equation
from blpjax.objective.iv import LinearStep
from blpjax.values import check_integer

LEVELS, INNOVATIONS, DIFFERENCES = KINDS = ("levels", "innovations", "differenced_innovations")

#: Types of moments of one equation, with how many of its instruments, in their order, belong to each.
Types = tuple[tuple[str, int], ...]


class MomentTypes(NamedTuple):
    """Types of moments of demand and of supply: no types where all moments are levels (static)."""

    demand: Types = ()
    supply: Types = ()

    def __bool__(self) -> bool:
        return bool(self.demand or self.supply)


class Dynamics(eqx.Module):
    """Which row is the lag of a row, and the types of moments.

    Attributes
    ----------
    lags : (N,) rows of lags, a row itself where it has none.
    once, twice : (N,) one where a row has a lag, and where its lag has one as well, otherwise zero.
    followers : (N,) the row that a row is the lag of, and `followed` (N,) whether there is one.
    types : of each equation.
    """

    lags: Int[AnyArray, " N"]
    once: Float[AnyArray, " N"]
    twice: Float[AnyArray, " N"]
    followers: Int[AnyArray, " N"]
    followed: Float[AnyArray, " N"]
    types: tuple[Types, ...] = eqx.field(static=True)

    def blocks(self, equations: Sequence[Equation]) -> list[MomentBlock]:
        """A block of moments for each type of each equation."""
        found: list[MomentBlock] = []
        for side, (equation, types) in enumerate(zip(equations, self.types, strict=True)):
            first = 0
            for kind, count in types:
                found.append(DynamicMoments(equation, side > 0, self, kind, first, first + count))
                first += count
        return found

    def transform(
        self, kind: str, own: Float[AnyArray, "N *Q"], explained: Float[AnyArray, "N *Q"]
    ) -> Float[AnyArray, "N *Q"]:
        """Errors as a type of moments has them. `explained` is what their lags would explain, in rows of the lags."""
        if kind == LEVELS:
            return own
        innovations = own - explained[self.lags]
        if kind == INNOVATIONS:
            return _rows(self.once, own) * innovations
        return _rows(self.twice, own) * (innovations - innovations[self.lags])

    def pull(
        self, kind: str, Z: Float[AnyArray, "N m"]
    ) -> tuple[Float[AnyArray, "N m"], Float[AnyArray, "N m"] | None]:
        """Matrices with ``Z' transform(own, explained) = first' own - second' explained``. None stands for zero."""
        if kind == LEVELS:
            return Z, None
        first = _rows(self.once if kind == INNOVATIONS else self.twice, Z) * Z
        first = first if kind == INNOVATIONS else first - self._lead(first)
        return first, self._lead(first)

    def _lead(self, values: Float[AnyArray, "N m"]) -> Float[AnyArray, "N m"]:
        """The transpose of the lag, of values that are zero in initial periods."""
        return _rows(self.followed, values) * values[self.followers]


class DynamicMoments(MomentBlock):
    """Moments of one type: some instruments of an equation, orthogonal to innovations or their differences."""

    equation: Equation
    supply: bool = eqx.field(static=True)
    dynamics: Dynamics
    kind: str = eqx.field(static=True)
    first: int = eqx.field(static=True)
    last: int = eqx.field(static=True)

    @property
    def instruments(self) -> Float[Any, "N M"]:
        """(N, M) instruments of covariances."""
        return self.equation.instruments[:, self.first : self.last]

    @property
    def Z(self) -> Float[Any, "N M"]:
        """(N, M) instruments of averages."""
        return self.equation.Z[:, self.first : self.last]

    @property
    def size(self) -> int:
        """Number of moments M."""
        return self.last - self.first

    def residuals(self, point: Point) -> Float[Any, " N"]:
        """Errors (N,) as this type has them, zero where lags are missing."""
        errors, phi = _errors(point), point.coefficients.phi[int(self.supply)]
        explained = sum(phi[k] * u for k, u in enumerate(errors))
        return self.dynamics.transform(self.kind, errors[int(self.supply)], explained)

    def jacobian(self, point: Point, tangents: Moving, weights: Float[Any, " N"] | None) -> Float[Any, "M Q"]:
        """Derivatives of `averages`: residuals are linear in errors and in phi."""
        side, phi, moved = int(self.supply), point.coefficients.phi, tangents.coefficients.phi
        errors, changes = _errors(point), _errors(tangents)
        explained = sum(
            phi[side, k] * change + u[:, None] * moved[side, k][None, :]
            for k, (u, change) in enumerate(zip(errors, changes, strict=True))
        )
        return iv.average_moments([self.Z], [self.dynamics.transform(self.kind, changes[side], explained)], weights)


class MovingStep(eqx.Module):
    """The linear IV-GMM step where characteristics in moments depend on phi: ``A = constant - sum_r phi_r lagged_r``.

    Attributes
    ----------
    constant : (M, K) cross moments of instruments and characteristics whose parameters are concentrated out.
    lagged : for each equation's moments (M, K), cross moments with lags of characteristics, None for zero.
    root : (M, M) with ``W = root root'`` the weighting matrix of the step.
    columns : how many characteristics each equation has.
    """

    constant: Float[Any, "M K"]
    lagged: list[Float[Any, "M K"] | None]
    root: Float[Any, "M M"]
    columns: tuple[int, ...] = eqx.field(static=True)

    def at(self, phi: Float[Any, "S S"]) -> LinearStep:
        """The step at a phi. Its derivatives exist where columns of A are linearly independent, and NaN says no."""
        A = self._cross_moments(phi)
        if on_host(A, self.root):
            return iv.linear_step(A, self.root @ self.root.T)
        coefficient_map = _left_inverse(self.root.T @ A) @ self.root.T
        return LinearStep(coefficient_map, jnp.eye(A.shape[0]) - A @ coefficient_map, jnp.asarray(A.shape[1]))

    def identifies(self, phi: Float[Any, "S S"]) -> Any:
        """Whether columns of A are linearly independent at a phi."""
        return iv.linear_step(self._cross_moments(phi), self.root @ self.root.T).rank == sum(self.columns)

    def _cross_moments(self, phi: Float[Any, "S S"]) -> Float[Any, "M K"]:
        sides, A = np.repeat(np.arange(len(self.columns)), self.columns), self.constant
        for row, lagged in enumerate(self.lagged):
            A = A if lagged is None else A - phi[row][sides][None, :] * lagged
        return A


class MovingInstruments(NamedTuple):
    """What `moving_instruments` prepares: instruments (N, M) for each dependent variable, those of lags, and the step.

    `lagged` has instruments (N, M) of what lags explain in the moments of each equation, None for zero.
    """

    instruments: list[Any]
    lagged: list[Any]
    step: MovingStep


def moving_instruments(
    dynamics: Dynamics,
    equations: Sequence[Equation],
    X: Sequence[Float[Any, "N _"]],
    scaled: Float[Any, "M m"],
    root: Float[Any, "m m"],
    weights: Float[Any, " N"] | None,
) -> MovingInstruments:
    """Instruments times `scaled`, as moments at any phi need them, and the linear step with weights ``root root'``.

    Parameters
    ----------
    X : characteristics of each equation whose parameters are concentrated out.
    weights : how often products count, in moments of their own and not in those that they are lags of.
    """
    instruments, lagged, start = [], [], 0
    for equation, types in zip(equations, dynamics.types, strict=True):
        parts, more, first = [], [], start
        for kind, count in types:
            Z = equation.Z[:, first - start : first - start + count]
            own, explained = dynamics.pull(kind, Z if weights is None else Z * weights[:, None])
            rows = scaled[first : first + count]
            parts.append(own @ rows)
            more += [] if explained is None else [explained @ rows]
            first += count
        instruments.append(sum(parts[1:], parts[0]))
        lagged.append(sum(more[1:], more[0]) if more else None)
        start = first
    count = X[0].shape[0] if weights is None else weights.sum()
    xp = namespace(*instruments, *X)
    constant = xp.concatenate([z.T @ x / count for z, x in zip(instruments, X, strict=True)], axis=1)
    slopes = [None if z is None else xp.concatenate([z.T @ x / count for x in X], axis=1) for z in lagged]
    return MovingInstruments(instruments, lagged, MovingStep(constant, slopes, root, tuple(x.shape[1] for x in X)))


def moving_moments(
    instruments: Sequence[Float[Any, "N M"]],
    lagged: Sequence[Float[Any, "N M"] | None],
    phi: Float[Any, "S S"],
    dependent: Sequence[Float[Any, " N"]],
    count: ArrayLike,
) -> Float[Any, " M"]:
    """Averaged moments (M,) of dependent variables in place of errors, with what `moving_instruments` prepares."""
    total = sum(z.T @ y for z, y in zip(instruments, dependent, strict=True))
    for row, z in enumerate(lagged):
        if z is not None:
            total = total - z.T @ sum(phi[row, k] * y for k, y in enumerate(dependent))
    return total / count


def build_dynamics(lag_indices: np.ndarray, types: MomentTypes, sizes: Sequence[int]) -> Dynamics:
    """Lags (N,) with types of moments for equations with so many instruments."""
    rows = np.arange(lag_indices.size)
    once = lag_indices != rows
    followers, followed = np.zeros_like(rows), np.zeros(rows.size)
    followers[lag_indices[once]], followed[lag_indices[once]] = rows[once], 1.0
    given = [side or ((LEVELS, size),) for side, size in zip(types, sizes, strict=False)]
    return Dynamics(
        lags=jax.device_put(lag_indices),
        once=jax.device_put(once.astype(float)),
        twice=jax.device_put((once & once[lag_indices]).astype(float)),
        followers=jax.device_put(followers),
        followed=jax.device_put(followed),
        types=tuple(given),
    )


def read_moment_types(demand: Any, supply: Any, sizes: Sequence[int], lagged: np.ndarray | None) -> MomentTypes:
    """Types of moments from `demand_moment_types` and `supply_moment_types` of `Problem.solve`.

    Parameters
    ----------
    sizes : numbers of instruments MD and MS. lagged : (N,) rows of lags, None without lags.

    Raises
    ------
    TypeError, ValueError
        When types are none of those that there are, or twice the same, when counts are not those of instruments, and
        when there are no lags that moments need.
    """
    found = []
    for side, given, size in zip(("demand", "supply"), (demand, supply), sizes, strict=True):
        types = _read_types(f"{side}_moment_types", given, size)
        if isinstance(given, str) and given != LEVELS and size == 0:
            raise ValueError(f"{side}_moment_types would not be used, because there are no {side}-side instruments.")
        for kind, _ in types:
            if kind == LEVELS:
                continue
            name = f"{side}_moment_types with {kind!r}"
            if lagged is None:
                raise ValueError(f"{name} needs lag_indices in product_data: for each product the row of its lag.")
            once = lagged != np.arange(lagged.size)
            if kind == DIFFERENCES and not (once & once[lagged]).any():
                raise ValueError(f"{name} needs a row of product_data whose lag has a lag, by its lag_indices.")
        found.append(() if all(kind == LEVELS for kind, _ in types) else types)
    return MomentTypes(*found)


def check_phi(layout: ParameterLayout, labels: Sequence[str], types: MomentTypes) -> None:
    """Raise `IdentificationError` where no moments depend on some elements of phi that are to be estimated."""
    blind = [label for (row, _), label in zip(layout.phi, labels, strict=True) if not types[row]]
    if blind:
        raise IdentificationError(
            f"phi is not identified for {', '.join(map(repr, blind))}: levels do not depend on it. Use innovations or "
            "differenced_innovations among demand_moment_types for the first row of phi and supply_moment_types for "
            "the second one, or fix elements with phi_bounds or at zero."
        )


def check_step(
    dynamics: Dynamics, step: MovingStep, X: Sequence[Float[Any, "N _"]], phi: np.ndarray, labels: Sequence[str]
) -> None:
    """Raise `IdentificationError` where moments do not identify linear parameters that are concentrated out.

    Parameters
    ----------
    X : characteristics of each equation whose parameters these are, with `labels` of all, on the host like the others.
    """
    largest = []
    for side, columns in enumerate(X):
        left = [np.zeros(columns.shape[1])]
        for row, types in enumerate(dynamics.types):
            own = columns if row == side else np.zeros_like(columns)
            explained = phi[row, side] * columns
            left += [np.abs(dynamics.transform(kind, own, explained)).max(axis=0) for kind, _ in types]
        largest.append(np.max(left, axis=0) <= 1e-10 * np.abs(columns).max(axis=0))
    gone = [label for label, nothing in zip(labels, np.concatenate(largest), strict=True) if nothing]
    if gone or not step.identifies(phi):
        nothing = f"differences leave nothing of {', '.join(map(repr, gone))}"
        raise IdentificationError(
            f"Moments of these types do not identify all linear parameters: "
            f"{nothing if gone else 'characteristics in them are collinear'}. Use other demand_moment_types or "
            "supply_moment_types, such as levels for some instruments, or fix coefficients of beta and gamma."
        )


def instrument_rank(data_blocks: Sequence[MomentBlock]) -> int:
    """How many moments are linearly independent where types of moments may share instruments."""
    return sum(int(iv.numerical_rank(Z.T @ Z)) for Z in (np.asarray(block.Z) for block in data_blocks) if Z.shape[1])


def _read_types(name: str, given: Any, size: int) -> Types:
    listed = ", ".join(map(repr, KINDS))
    text = f"{name} must be one of {listed}, or a list of pairs of one of these and a number of instruments"
    if isinstance(given, str):
        given = [(given, size)]
    if not isinstance(given, Sequence) or any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in given):
        raise TypeError(f"{text}, not {given!r}.")
    for kind, _ in given:
        if kind not in KINDS:
            raise ValueError(f"{text}, not {kind!r}.")
    kinds = [kind for kind, _ in given]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"{name} must have each type only once, not {kinds}.")
    counts = [check_integer(f"The number of instruments in {name}", count, minimum=0) for _, count in given]
    if sum(counts) != size:
        raise ValueError(
            f"The numbers of instruments in {name} must sum to that of all instruments, {size}, not {counts}."
        )
    return tuple((kind, count) for kind, count in zip(kinds, counts, strict=True) if count)


def _errors(point: Point | Moving) -> list[Any]:
    return [point.xi] if point.omega is None else [point.xi, point.omega]


def _rows(factors: AnyArray, values: AnyArray) -> AnyArray:
    """Factors (N,) in the shape of values that have perhaps a second axis."""
    return factors if values.ndim == 1 else factors[:, None]


def _left_inverse(A: Float[Array, "M K"]) -> Float[Array, "K M"]:
    """The pseudo-inverse of a matrix with independent columns, differentiable to any order.

    By normal equations of scaled columns, whose error one Newton step squares.
    """
    if A.shape[1] == 0:
        return jnp.zeros(A.shape[::-1])
    scale = jnp.sqrt(jax.lax.stop_gradient((A**2).sum(axis=0)))
    scale = jnp.where(scale > 0, scale, 1.0)
    scaled = A / scale[None, :]
    cross = scaled.T @ scaled
    inverse = solve(cross, scaled.T)
    inverse = inverse + solve(cross, scaled.T @ (jnp.eye(A.shape[0]) - scaled @ inverse))
    return inverse / scale[:, None]
