"""Which parameters are free, fixed or concentrated out, their bounds and labels, and theta <-> matrices.

Theta stacks the free elements of Sigma (lower triangle by rows), Pi (by rows), rho, tau, phi (by rows), kappa, beta
and gamma. Zeros are fixed at zero, equal bounds fix an element at its value, and missing elements of beta and gamma are
concentrated out: estimated by linear IV-GMM at every theta.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from blpjax.kernels.arrays import AnyArray, on_host

Index = tuple[tuple[int, ...], ...]


#: Blocks of parameters in the order in which theta stacks them.
BLOCKS = ("sigma", "pi", "rho", "tau", "phi", "kappa", "beta", "gamma")


@dataclasses.dataclass(frozen=True)
class Transformation:
    """A type of random coefficients: a function of the index ``Sigma nu + Pi d`` of one characteristic.

    Parameters
    ----------
    function : ``function(index, *parameters)`` with an array of any shape, and a number for each of the parameters.
        It returns an array of the same shape, and must be one that JAX can trace and differentiate.
    parameters : names of the function's own parameters, which are elements of tau.
    name : what to call the characteristic's type in messages.
    """

    function: Any
    parameters: Any = ()
    name: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be a function of JAX arrays, not {self.function!r}.")
        names = (self.parameters,) if isinstance(self.parameters, str) else tuple(self.parameters)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"parameters must be names of the function's parameters, not {self.parameters!r}.")
        object.__setattr__(self, "parameters", names)


class UtilityForm(NamedTuple):
    """What utilities look like, beyond their parameters (static).

    `transformations` has one for each column of X2, or None where random coefficients enter as they are; it is empty
    where all do. Utilities are divided by `epsilon_scale`.
    """

    transformations: tuple[Transformation | None, ...] = ()
    epsilon_scale: float = 1.0

    @property
    def tau(self) -> tuple[tuple[int, str], ...]:
        """Column of X2 and name of each parameter of a transformation."""
        return tuple((k, name) for k, f in enumerate(self.transformations) if f is not None for name in f.parameters)


class ParameterLayout(NamedTuple):
    """Where the elements of theta belong (static: it decides which program is compiled).

    `sigma`, `pi`, `rho`, `tau`, `phi`, `kappa`, `beta` and `gamma` are indices of free elements, `concentrated_beta`
    and `concentrated_gamma` those of elements that are concentrated out. `sigma_columns` are the columns of Sigma that
    are not all zero, `node_columns` the columns of nodes that go with them.
    """

    sigma: Index
    pi: Index
    rho: Index
    tau: Index
    phi: Index
    kappa: Index
    beta: Index
    gamma: Index
    concentrated_beta: tuple[int, ...]
    concentrated_gamma: tuple[int, ...]
    sigma_columns: tuple[int, ...]
    node_columns: tuple[int, ...]
    form: UtilityForm = UtilityForm()

    @property
    def P(self) -> int:
        """Number of elements of theta."""
        return sum(len(getattr(self, name)) for name in BLOCKS)

    def part(self, name: str) -> slice:
        """Where theta has the elements of a block."""
        at = sum(len(getattr(self, block)) for block in BLOCKS[: BLOCKS.index(name)])
        return slice(at, at + len(getattr(self, name)))


class Coefficients(eqx.Module):
    """Parameters: `sigma` (K2, K2), `pi` (K2, D), `rho`, `tau`, `phi`, `kappa`, `beta` (K1,) and `gamma`.

    `rho` has an element for all nests, or for each of them; with nests within nests for each level, or for each nest.
    `phi` has a row for each structural error, xi and perhaps omega, and a column for the lag of each; no columns where
    product data have no lags. `kappa` (C,) are parameters of conduct, and `gamma` (K3,) those of costs.

    Concentrated elements of `beta` and `gamma` are zero until they are filled in.
    """

    sigma: Float[AnyArray, "K2 K2"]
    pi: Float[AnyArray, "K2 D"]
    rho: Float[AnyArray, " R"]
    tau: Float[AnyArray, " S"]
    phi: Float[AnyArray, "errors lags"]
    kappa: Float[AnyArray, " C"]
    beta: Float[AnyArray, " K1"]
    gamma: Float[AnyArray, " K3"]


class Bounds(NamedTuple):
    """Lower and upper bounds of one block of parameters, arrays of the block's shape."""

    lower: np.ndarray
    upper: np.ndarray


class BlockBounds(NamedTuple):
    """Bounds of all blocks."""

    sigma: Bounds
    pi: Bounds
    rho: Bounds
    tau: Bounds
    phi: Bounds
    kappa: Bounds
    beta: Bounds
    gamma: Bounds


class Labels(NamedTuple):
    """Names of characteristics in X1 (beta), X2 (sigma, rows of pi) and X3 (gamma), of demographics and of nests.

    `lagged` says whether product data have lags, which phi is about. `subnests` are nests within nests, `parents` the
    places of the nests that they lie in, and `conduct` parameters of conduct (kappa).
    """

    X1: tuple[str, ...]
    X2: tuple[str, ...]
    X3: tuple[str, ...]
    demographics: tuple[str, ...]
    nests: tuple[str, ...] = ()
    lagged: bool = False
    subnests: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()
    conduct: tuple[str, ...] = ()

    def of_rho(self, size: int) -> list[str]:
        """Names of rho's elements: one for each level of nests, or for each nest."""
        levels = ["All Groups", "All Subgroups"] if self.subnests else ["All Groups"]
        return levels if size == len(levels) else [*self.nests, *self.subnests]

    def around(self, size: int) -> np.ndarray:
        """Which of rho's elements belongs to the group that each element's nests lie in: its own, where there is none.

        Subgroups' parameters are not below those of their groups where consumers maximise utility.
        """
        if not self.subnests:
            return np.arange(size)
        return np.zeros(size, int) if size == 2 else np.array([*range(len(self.nests)), *self.parents])

    def far_subgroups(self, rho: np.ndarray) -> list[str]:
        """Names of subgroups whose products are worse substitutes than others of the group: theirs is the lower rho."""
        return [self.of_rho(rho.size)[place] for place in np.flatnonzero(rho < rho[self.around(rho.size)])]

    @property
    def errors(self) -> tuple[str, ...]:
        """Names of structural errors, the rows and columns of phi."""
        return ("Xi", "Omega") if self.X3 else ("Xi",)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Starting values, bounds, layout and labels of the parameters of one call of `Problem.solve`."""

    layout: ParameterLayout
    start: Coefficients
    limits: BlockBounds
    labels: Labels
    bounded_by_user: bool

    @property
    def theta(self) -> np.ndarray:
        """Starting values (P,)."""
        return compress(self.layout, self.start)

    def at(self, theta: np.ndarray) -> Coefficients:
        """Parameter matrices with the elements of theta (P,) in place, as NumPy arrays."""
        blocks = {}
        for name in BLOCKS:
            blocks[name] = np.array(getattr(self.start, name))
            if index := getattr(self.layout, name):
                blocks[name][tuple(np.array(index).T)] = theta[self.layout.part(name)]
        return Coefficients(**blocks)

    @property
    def bounds(self) -> Bounds:
        """Bounds of theta, two arrays (P,)."""
        sides: list[list[float]] = [[], []]
        for name, bounds in self.limits._asdict().items():
            for side, bound in zip(sides, bounds, strict=True):
                side.extend(bound[i] for i in getattr(self.layout, name))
        return Bounds(*(np.array(side, dtype=float) for side in sides))

    @property
    def has_bounds(self) -> bool:
        """Whether any element of theta has a finite bound."""
        return bool(np.isfinite(np.concatenate(self.bounds)).any())

    @property
    def theta_labels(self) -> list[str]:
        """A label such as ``'prices x income'`` for each element of theta."""
        X2, layout = self.labels.X2, self.layout
        rows = [f"{X2[k]} x {X2[m]}" for k, m in layout.sigma]
        rows += [f"{X2[k]} x {self.labels.demographics[d]}" for k, d in layout.pi]
        rows += [self.rho_labels[h] for (h,) in layout.rho]
        rows += [self.tau_labels[s] for (s,) in layout.tau]
        rows += [f"{self.labels.errors[k]} on {self.labels.errors[m]}" for k, m in layout.phi]
        rows += [self.labels.conduct[c] for (c,) in layout.kappa]
        rows += [self.labels.X1[k] for (k,) in layout.beta]
        return rows + [self.labels.X3[k] for (k,) in layout.gamma]

    @property
    def rho_labels(self) -> list[str]:
        """A group for each element of rho, or all of them."""
        return self.labels.of_rho(self.start.rho.size)

    @property
    def tau_labels(self) -> list[str]:
        """The characteristic and the name of each parameter of a transformation."""
        return [f"{self.labels.X2[k]}: {name}" for k, name in self.layout.form.tau]

    @property
    def parameter_labels(self) -> list[str]:
        """Labels of theta and then of the concentrated elements of beta and gamma."""
        beta = [self.labels.X1[k] for k in self.layout.concentrated_beta]
        return self.theta_labels + beta + [self.labels.X3[k] for k in self.layout.concentrated_gamma]

    @property
    def theta_names(self) -> list[str]:
        """What sentences call the elements of theta, such as ``'prices x income' of pi``."""
        return [f"{label!r} of {block}" for label, block in zip(self.theta_labels, self.theta_blocks, strict=True)]

    @property
    def theta_blocks(self) -> list[str]:
        """The block of each element of theta, such as `sigma`."""
        return [block for block in BLOCKS for _ in getattr(self.layout, block)]

    @property
    def parameter_blocks(self) -> list[str]:
        """The block of each of the `parameter_labels`."""
        beta, gamma = self.layout.concentrated_beta, self.layout.concentrated_gamma
        return self.theta_blocks + ["beta"] * len(beta) + ["gamma"] * len(gamma)

    def unbounded(self) -> "Parameters":
        """The same parameters with infinite bounds, for routines that cannot use bounds."""

        def infinite(bounds: Bounds) -> Bounds:
            free = ~((bounds.lower == 0) & (bounds.upper == 0)) & (bounds.lower != bounds.upper)
            return Bounds(np.where(free, -np.inf, bounds.lower), np.where(free, np.inf, bounds.upper))

        return dataclasses.replace(self, limits=BlockBounds(*map(infinite, self.limits)))


def expand(layout: ParameterLayout, fixed: Coefficients, theta: Float[AnyArray, " P"]) -> Coefficients:
    """Put the elements of theta into the matrices; all other elements come from `fixed`."""
    blocks = {}
    for name in BLOCKS:
        index, matrix = getattr(layout, name), getattr(fixed, name)
        blocks[name] = _with_elements(matrix, tuple(np.array(index).T), theta[layout.part(name)]) if index else matrix
    return Coefficients(**blocks)


def parameter_directions(layout: ParameterLayout, fixed: Coefficients, concentrated: bool = False) -> Coefficients:
    """How the matrices move with each element of theta, and of concentrated beta and gamma if asked for.

    Parameters enter their matrices linearly: these are ones and zeros, with a first axis of parameters.
    """
    places = [(name, index) for name in BLOCKS for index in getattr(layout, name)]
    if concentrated:
        places += [(name, (k,)) for name in ("beta", "gamma") for k in getattr(layout, f"concentrated_{name}")]
    moved = jax.tree.map(lambda matrix: np.zeros((len(places), *matrix.shape)), fixed)
    for p, (name, index) in enumerate(places):
        getattr(moved, name)[(p, *index)] = 1.0
    return moved


def _with_elements(matrix: AnyArray, index: tuple[np.ndarray, ...], values: AnyArray) -> AnyArray:
    """The matrix with other elements, in NumPy where both are."""
    if not on_host(matrix, values):
        there = jnp.asarray(matrix).at[index]
        return there.set(values, mode="promise_in_bounds", unique_indices=True, wrap_negative_indices=False)
    changed = matrix.copy()
    changed[index] = values
    return changed


def fill_concentrated(
    layout: ParameterLayout, coefficients: Coefficients, estimates: Float[AnyArray, " K"]
) -> Coefficients:
    """Put concentrated elements of beta, then of gamma, into the matrices."""
    K = len(layout.concentrated_beta)
    beta = _with_elements(coefficients.beta, (np.array(layout.concentrated_beta, int),), estimates[:K])
    gamma = _with_elements(coefficients.gamma, (np.array(layout.concentrated_gamma, int),), estimates[K:])
    return eqx.tree_at(lambda c: (c.beta, c.gamma), coefficients, (beta, gamma))


def all_coefficients(layout: ParameterLayout, fixed: Coefficients, parameters: Float[AnyArray, " Q"]) -> Coefficients:
    """Put theta and concentrated elements of beta and gamma into the matrices; other elements come from `fixed`."""
    found = expand(layout, fixed, parameters[: layout.P])
    return fill_concentrated(layout, found, parameters[layout.P :])


def compress(layout: ParameterLayout, coefficients: Coefficients) -> np.ndarray:
    """Theta (P,) of parameter matrices, the inverse of `expand`."""
    values: list[float] = []
    for name in BLOCKS:
        matrix = np.asarray(getattr(coefficients, name))
        values.extend(matrix[i] for i in getattr(layout, name))
    return np.array(values, float)
