"""Standard errors of any differentiable function of the model, by the delta method."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from blpjax.economy.loops import Loops
from blpjax.estimation.estimates import Estimates
from blpjax.exceptions import raise_for_status
from blpjax.inputs.arguments import check_level
from blpjax.iteration import Iteration
from blpjax.machine.announcements import said
from blpjax.machine.tracing import operations_of_jax, shapes_of
from blpjax.model.elsewhere import (
    Draw,
    coefficients_at,
    covariances_of_estimates,
    hold_errors,
    hold_shares,
    lanes,
    map_lanes,
)
from blpjax.model.model import Model
from blpjax.reporting.frames import with_confidence_limits
from blpjax.reporting.tables import Part, Shown
from blpjax.values import read_flag

#: So many numbers are displayed.
_SHOWN_ROWS = 10

#: Jacobians and covariances have at most this many elements (2 GiB).
MOST_ELEMENTS = 2**28


class Interval(NamedTuple):
    """Limits of confidence intervals, each an array or a pytree like the outputs."""

    lower: Any
    upper: Any


class Moments(NamedTuple):
    """Averaged moments (MM,): labels, sensitivity (Q, MM) of parameters to them, and standard deviations."""

    labels: list[str]
    sensitivity: np.ndarray
    deviations: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DeltaMethodResults(Shown):
    """A function of the model at the estimates, and how uncertain it is.

    The M numbers that the function returns are counted through all of its arrays, in the order of
    ``jax.tree.leaves``, each by rows.

    Attributes
    ----------
    value : what the function returned at the estimates: a NumPy array, or a pytree of them.
    jacobian : (M, Q) derivatives in all parameters, NaN where the value is.
    parameter_covariances : (Q, Q) covariances of the estimates, already divided by N.
    parameter_labels : Q labels of the parameters.
    hold : what stayed fixed, ``'shares'`` or ``'xi'``.
    moments : averaged moments that parameters were estimated from, None where there are no such alone.
    labels : the table of an output of compute methods, with the place of each number, counted by rows, instead of its
        value; None for other functions.
    """

    value: Any
    jacobian: np.ndarray
    parameter_covariances: np.ndarray
    parameter_labels: list[str]
    hold: str
    labels: pd.DataFrame | None = None
    moments: Moments | None = None

    @property
    def sensitivity(self) -> pd.DataFrame:
        """How the numbers move with each averaged moment (Andrews, Gentzkow and Shapiro 2017): ``J Lambda``.

        Lambda is `ProblemResults.parameter_sensitivity`. If the moments of the model were off by b where it is true,
        numbers would be off by the sum of b times these.

        Returns
        -------
        A row for each moment, and a column for each number, labelled as in `to_frame`.

        Raises
        ------
        ValueError
            Where estimates do not come from moments alone, as those of likelihoods and estimated mean utilities.
        """
        return self._by_moment(False)

    @property
    def standardised_sensitivity(self) -> pd.DataFrame:
        """`sensitivity` in standard errors of the number for a standard deviation of the averaged moment."""
        return self._by_moment(True)

    def _by_moment(self, standardised: bool) -> pd.DataFrame:
        if self.moments is None:
            raise ValueError("There is no sensitivity: these estimates do not come from moments alone.")
        values = self.jacobian @ self.moments.sensitivity
        if standardised:
            variances = ((self.jacobian @ self.parameter_covariances) * self.jacobian).sum(axis=1)
            errors = np.sqrt(np.where(variances > 0, variances, np.nan))
            values = values * self.moments.deviations / errors[:, None]
        names = self.to_frame()[["output", "index"]] if self.labels is None else self.labels.iloc[:, :-1]
        columns = pd.MultiIndex.from_frame(names) if len(values) > 1 and names.shape[1] else None
        frame = pd.DataFrame(values.T, index=pd.Index(self.moments.labels, name="moment"), columns=columns)
        return frame.rename(columns={0: "sensitivity"}) if columns is None and len(values) == 1 else frame

    @cached_property
    def standard_errors(self) -> Any:
        """Standard errors, like `value`; NaN where it is."""
        variances = ((self.jacobian @ self.parameter_covariances) * self.jacobian).sum(axis=1)
        return self._like_value(np.sqrt(np.maximum(variances, 0.0)))

    @cached_property
    def covariances(self) -> np.ndarray:
        """(M, M) covariances ``J V J'`` of the outputs.

        Raises
        ------
        ValueError
            When they would take too much memory.
        """
        M = len(self.jacobian)
        _refuse_size(M * M, f"Covariances of {M} outputs", "Use jacobian and parameter_covariances for some of them.")
        return self.jacobian @ self.parameter_covariances @ self.jacobian.T

    @property
    def lower(self) -> Any:
        """Lower limits of 95% confidence intervals, like `value`."""
        return self.confidence_intervals().lower

    @property
    def upper(self) -> Any:
        """Upper limits of 95% confidence intervals, like `value`."""
        return self.confidence_intervals().upper

    def confidence_intervals(self, level: float = 0.95) -> Interval:
        """Limits ``value -+ z se`` with the normal quantile z of the level.

        Raises
        ------
        ValueError
            When the level is not between zero and one.
        """
        from scipy.special import ndtri  # a slow import that only intervals need

        check_level(level)
        z = ndtri((1 + level) / 2)
        return Interval(
            jax.tree.map(lambda v, se: v - z * se, self.value, self.standard_errors),
            jax.tree.map(lambda v, se: v + z * se, self.value, self.standard_errors),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each number, with standard_error, and lower and upper limits of the 95% confidence interval.

        For outputs of compute methods it is the table that ``as_frame=True`` gives: with labels of markets and
        products, and without padding. For other functions ``output`` says which array of a pytree a number is in (empty
        for one array), ``index`` where it stands there, and ``value`` what it is.
        """
        if self.labels is not None:
            name = str(self.labels.columns[-1])
            places = self.labels[name].to_numpy().astype(int)
            values = np.ravel(self.value)[places]
            errors = np.ravel(self.standard_errors)[places]
            return with_confidence_limits(self.labels.assign(**{name: values}), name, errors)
        rows: list[tuple[str, tuple[int, ...]]] = []
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.value):
            rows += [(jax.tree_util.keystr(path), index) for index in np.ndindex(leaf.shape)]
        columns = {
            "value": self.value,
            "standard_error": self.standard_errors,
            "lower": self.lower,
            "upper": self.upper,
        }
        numbers = {name: _flatten(tree) for name, tree in columns.items()}
        return pd.DataFrame({"output": [r[0] for r in rows], "index": [r[1] for r in rows], **numbers})

    def _parts(self) -> list[Part]:
        M = len(self.jacobian)
        fixed = "observed shares and prices" if self.hold == "shares" else "structural errors"
        frame = self.to_frame()
        shown: list[Part] = [f"{M} output{'s' * (M != 1)} with standard errors, holding {fixed} fixed:"]
        if len(frame) > _SHOWN_ROWS:
            shown[0] = f"{shown[0][:-1]}. The first {_SHOWN_ROWS}, of which to_frame() has all:"
        numbers = frame.head(_SHOWN_ROWS)
        if self.labels is None:
            numbers = numbers.drop(
                columns=[name for name in ("output", "index") if (numbers[name].map(len) == 0).all()]
            )
        return [*shown, numbers]

    def _like_value(self, numbers: np.ndarray) -> Any:
        leaves, structure = jax.tree.flatten(self.value)
        parts = np.split(numbers, np.cumsum([leaf.size for leaf in leaves])[:-1])
        return jax.tree.unflatten(structure, [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)])


def apply_delta_method(
    results: Estimates,
    function: Callable[[Model], Any],
    hold: str = "shares",
    iteration: Iteration | None = None,
    constant_costs: bool = True,
) -> DeltaMethodResults:
    """Differentiate a function of the model in all parameters of some results; see `ProblemResults.delta_method`."""
    if hold not in ("shares", "xi"):
        raise ValueError(f"hold must be 'shares' or 'xi', not {hold!r}.")
    constant_costs = read_flag("constant_costs", constant_costs)
    if hold == "shares" and (iteration is not None or not constant_costs):
        raise ValueError("iteration and constant_costs are about prices that are solved again, with hold='xi'.")
    if not callable(function):
        raise TypeError(f"function must be a function of a Model, not {type(function).__name__}.")
    covariances = covariances_of_estimates(results.parameter_covariances, len(results.delta))
    estimated, parameters = results.model, jax.device_put(results.parameters[:, 0])
    tilde_costs = jax.device_put(results.tilde_costs[:, 0]) if results.tilde_costs.size else None

    def outputs_at(parameters: Float[Array, " Q"]) -> tuple[Any, Loops | None]:
        if hold == "shares":
            model, loops = hold_shares(estimated, parameters), None
        else:
            coefficients = coefficients_at(estimated, parameters)
            found = hold_errors(estimated, tilde_costs, coefficients, iteration, constant_costs)
            model, loops = found.draw.model(estimated), found.loops
        return jax.tree.map(_as_array, function(model)), loops

    shapes = _check_outputs(outputs_at, parameters)
    found = differentiate(outputs_at, parameters, lanes(estimated.economy, _count(shapes)))
    if found.loops is not None:
        ids, action = results.problem.data.market_index.ids, "The search for equilibrium prices at the estimates"
        raise_for_status(found.loops.status, ids, action, found.loops.residuals, warn=True)
    made = _results(found, covariances, list(results.parameter_labels), hold)
    return dataclasses.replace(made, moments=_moments(results))


def apply_joint_delta_method(
    results: Estimates, function: Callable[[Model], Any], covariances: Callable[[], np.ndarray], labels: Sequence[str]
) -> DeltaMethodResults:
    """The delta method where mean utilities were estimated, too, with errors of their own; prices are held.

    Parameters
    ----------
    covariances : makes covariances (Q + N, Q + N) of all parameters and then mean utilities.
    labels : names of these.

    Raises
    ------
    TypeError, ValueError
        See `ProblemResults.delta_method`.
    """
    if not callable(function):
        raise TypeError(f"function must be a function of a Model, not {type(function).__name__}.")
    estimated, Q = results.model, len(results.parameters)
    _refuse_size(len(labels) ** 2, f"Covariances of {len(labels)} estimates", "Use hold='xi'.")

    def outputs_at(values: Float[Array, " V"]) -> tuple[Any, Loops | None]:
        coefficients = coefficients_at(estimated, values[:Q])
        moved = eqx.tree_at(lambda m: (m.coefficients, m.delta), estimated, (coefficients, values[Q:]))
        model = Draw(coefficients, values[Q:], moved.prices, moved.compute_shares()[:, 0]).model(estimated)
        return jax.tree.map(_as_array, function(model)), None

    at = jax.device_put(np.concatenate([results.parameters[:, 0], results.delta[:, 0]]))
    shapes = _check_outputs(outputs_at, at)
    found = differentiate(outputs_at, at, lanes(estimated.economy, _count(shapes)))
    return _results(found, covariances(), list(labels), "shares")


def _results(found: "Derivatives", covariances: np.ndarray, labels: list[str], hold: str) -> DeltaMethodResults:
    """Results whose derivatives are NaN where the value is."""
    jacobian = np.where(np.isnan(_flatten(found.value))[:, None], np.nan, found.jacobian)
    return DeltaMethodResults(found.value, jacobian, covariances, labels, hold)


def _moments(results: Estimates) -> Moments | None:
    Lambda = results.parameter_sensitivity
    if Lambda.shape != (len(results.parameters), results.moments.size) or not np.isfinite(Lambda).all():
        return None
    with np.errstate(invalid="ignore"):
        deviations = np.sqrt(np.diag(results.moments_covariances) / len(results.delta))
    return Moments(results.moment_labels, Lambda, deviations)


#: Outputs at given parameters, and the loops for equilibrium prices, if there were some.
OutputsAt = Callable[[Array], tuple[Any, Loops | None]]


class Derivatives(NamedTuple):
    """Outputs, their Jacobian (M, Q), and the loops for equilibrium prices, if there were some."""

    value: Any
    jacobian: np.ndarray
    loops: Any


def _check_outputs(outputs_at: OutputsAt, parameters: Array) -> Any:
    """Shapes of outputs, or an exception when they cannot be differentiated."""
    with operations_of_jax():
        shapes, _ = shapes_of(outputs_at, parameters)
    leaves = jax.tree.leaves(shapes)
    if not leaves:
        raise ValueError("function must return at least one array.")
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"function must return floating-point numbers, not {leaf.dtype}: they have no derivatives.")
    M, Q = _count(shapes), parameters.size
    _refuse_size(
        M * Q,
        f"Derivatives of {M} outputs (shapes {', '.join(str(leaf.shape) for leaf in leaves)}) in {Q} parameters",
        "Return fewer numbers, and mind that methods of the model return columns (N, 1), while its attributes such as "
        "prices are vectors (N,).",
    )
    return shapes


def differentiate(
    outputs_at: OutputsAt,
    parameters: Float[Array, " Q"],
    width: int,
    directions: np.ndarray | None = None,
) -> Derivatives:
    """The outputs and their Jacobian by columns, `width` of them at a time, perhaps in other `directions` (P, Q).

    Nothing is compiled here but what methods of the model compile for themselves. These programs are found again
    whatever the function, while a program of the whole would have to be compiled for each.
    """
    known = np.eye(parameters.size) if directions is None else directions
    if not len(known):
        value, loops = jax.tree.map(np.array, outputs_at(parameters))
        return Derivatives(value, np.zeros((_flatten(value).size, 0)), loops)
    primals: list[Any] = []

    def columns(directions: Float[Array, "lanes Q"]) -> list[Array]:
        def push(direction: Array) -> tuple[Any, list[Array]]:
            value, tangents, loops = jax.jvp(outputs_at, (parameters,), (direction,), has_aux=True)
            return (value, loops), jax.tree.leaves(tangents)

        primal, tangents = jax.vmap(push, out_axes=(None, 0))(directions)
        primals[:] = [primal]
        return tangents

    with said(f"Differentiating outputs in {len(known)} directions ..."):
        tangents = map_lanes(columns, jax.device_put(known), width)
    jacobian = np.concatenate([leaf.reshape(len(known), -1) for leaf in tangents], axis=1).T
    value, loops = jax.tree.map(np.array, primals[0])
    return Derivatives(value, jacobian, loops)


def _as_array(leaf: Any) -> Array:
    """An array of JAX; one that is one already is not copied, which would be a program."""
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def _count(shapes: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _flatten(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _refuse_size(elements: int, what: str, remedy: str) -> None:
    if elements > MOST_ELEMENTS:
        raise ValueError(f"{what} would take {elements * 8 / 2**30:.1f} GiB. {remedy}")
