"""Micro moments as a block of moments: observed values less those of the model."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.buckets import Economy
from blpjax.economy.surveys import Surveys
from blpjax.inputs.micro import MicroMoment, distinct_datasets, distinct_parts
from blpjax.machine.placement import Placement
from blpjax.model.parameters import ParameterLayout
from blpjax.model.surveys import Parts, part_covariances, part_values, survey_sums
from blpjax.model.tastes import MarketTastes, market_tastes
from blpjax.objective.blocks import Point, SampleMoments

#: Gradients that users give may differ from differences by this share of their size.
_GRADIENT_TOLERANCE = 1e-4


class MomentFunction(NamedTuple):
    """What a moment is as a function of parts (static): their positions, and functions, None where it is the part."""

    parts: tuple[int, ...]
    value: Callable[[Any], Any] | None
    gradient: Callable[[Any], Any] | None
    traced: bool


class MicroMoments(SampleMoments):
    """Observed values less functions of the model's means of parts, ``m - f(v)``.

    Attributes
    ----------
    surveys : what datasets and parts ask about, in the economy of the point.
    observed : (MM,) observed values. observations : (D,) numbers of respondents of datasets.
    sample : (MM, MM) covariances that are used in place of those of the model, or None.
    functions, parts, layout, names : what moments are made of (static).
    """

    name: ClassVar[str] = "micro"

    surveys: Surveys
    observed: Float[Any, " MM"]
    observations: Float[Any, " D"]
    sample: Float[Any, "MM MM"] | None
    functions: tuple[MomentFunction, ...] = eqx.field(static=True)
    parts: Parts = eqx.field(static=True)
    layout: ParameterLayout = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Number of moments MM."""
        return len(self.functions)

    @property
    def labels(self) -> list[str]:
        """Names of the moments."""
        return list(self.names)

    def values(self, point: Point) -> Float[Any, " MM"]:
        """Observed values less those of the model."""
        return self.observed - moment_values(self.functions, self.part_values(point))

    def part_values(self, point: Point) -> Float[Any, " PM"]:
        """Means of parts at a point."""
        tastes = market_tastes(point.coefficients, self.layout)
        return part_values(survey_sums(self.surveys, self.parts, point.economy, tastes, point.delta), self.parts)

    def covariances(self, point: Point) -> Float[Any, "MM MM"]:
        """Covariances of observed values: those of sampling respondents from the model, or those that were given."""
        if self.sample is not None:
            return self.sample
        tastes = market_tastes(point.coefficients, self.layout)
        return self.model_covariances(point.economy, tastes, point.delta, self.part_values(point))

    def model_covariances(
        self, economy: Economy, tastes: MarketTastes, delta: Float[Array, " N"], values: Float[Array, " PM"]
    ) -> Float[Array, "MM MM"]:
        """Covariances of sampling respondents from the model, by the delta method for functions of several parts."""
        one = part_covariances(self.surveys, self.parts, economy, tastes, delta)
        C = one / self.observations[np.array(self.parts.datasets)][None, :]
        F = jax.jacfwd(lambda v: moment_values(self.functions, v))(values)
        return F @ C @ F.T

    def at_agents(self, surveys: Surveys, layout: ParameterLayout) -> "MicroMoments":
        """The same moments with other agents."""
        return dataclasses.replace(self, surveys=surveys, layout=layout)


def build_micro_moments(
    moments: Sequence[MicroMoment],
    surveys: Surveys,
    layout: ParameterLayout,
    sample: np.ndarray | None,
    placement: Placement | None,
) -> MicroMoments:
    """The block of some moments, whose parts the surveys are about.

    Parameters
    ----------
    sample : (MM, MM) checked covariances in place of those of the model, or None.
    placement : devices that markets are spread over, or None.

    Raises
    ------
    ValueError
        When a moment has no gradient, and automatic differentiation does not find it.
    """
    parts = distinct_parts(moments)
    observations = [float(dataset.observations or np.nan) for dataset in distinct_datasets(parts)]
    put = jax.device_put if placement is None else placement.repeat
    return MicroMoments(
        surveys=surveys,
        observed=put(np.array([moment.value if moment.observed else 0.0 for moment in moments])),
        observations=put(np.array(observations)),
        sample=None if sample is None else put(sample),
        functions=moment_functions(moments),
        parts=Parts.of(parts),
        layout=layout,
        names=tuple(moment.name for moment in moments),
    )


def moment_functions(moments: Sequence[MicroMoment], differentiable: bool = True) -> tuple[MomentFunction, ...]:
    """What moments are as functions of their distinct parts; see `build_micro_moments` for errors."""
    places = {part: p for p, part in enumerate(distinct_parts(moments))}
    found = []
    for moment in moments:
        traced = moment.is_part or _can_be_traced(moment)
        if differentiable and not traced and moment.compute_gradient is None:
            raise ValueError(
                f"The micro moment '{moment.name}' needs compute_gradient, because its compute_value cannot be "
                "differentiated automatically: it does not consist of arithmetic and functions of jax.numpy."
            )
        own = tuple(places[part] for part in moment.parts)
        functions = (None, None) if moment.is_part else (moment.compute_value, moment.compute_gradient)
        found.append(MomentFunction(own, *functions, traced))
    return tuple(found)


def moment_values(functions: Sequence[MomentFunction], values: Float[Any, " PM"]) -> Float[Any, " MM"]:
    """Moments (MM,) as functions of the values of parts."""
    firsts = jnp.asarray(values)[np.array([function.parts[0] for function in functions])]
    for m, function in enumerate(functions):
        if function.value is not None:
            firsts = firsts.at[m].set(_call(function, jnp.asarray(values)[np.array(function.parts)]))
    return firsts


def host_values(moments: Sequence[MicroMoment], values: np.ndarray) -> np.ndarray:
    """Moments (MM,) of the values of their distinct parts (PM,), by calls of the users' functions.

    Raises
    ------
    RuntimeError
        When a function fails.
    TypeError
        When a function returns something else than a number.
    """
    places = {part: p for p, part in enumerate(distinct_parts(moments))}
    return np.array([_host_value(moment, values[[places[part] for part in moment.parts]]) for moment in moments])


def check_gradients(moments: Sequence[MicroMoment], values: np.ndarray) -> None:
    """Compare gradients that users give with differences at the values of the distinct parts (PM,).

    Raises
    ------
    RuntimeError
        When a function fails.
    TypeError, ValueError
        When a function returns something else than a number, or a gradient has the wrong size, or is not that of the
        function.
    """
    places = {part: p for p, part in enumerate(distinct_parts(moments))}
    for moment in moments:
        if moment.is_part:
            continue
        at = values[[places[part] for part in moment.parts]]
        value = _host_value(moment, at)
        if moment.compute_gradient is None:
            continue
        gradient = _host_gradient(moment, at)
        steps = 1e-6 * np.maximum(np.abs(at), 1e-3)
        sides = [
            np.array([_host_value(moment, at + sign * step) for step in np.diag(steps)], float) for sign in (1.0, -1.0)
        ]
        differences = (sides[0] - sides[1]) / (2 * steps)
        if not (np.isfinite(value) and np.isfinite(differences).all()):
            continue
        # differences have errors of the rounding of values over steps
        error = (
            _GRADIENT_TOLERANCE * np.maximum(np.abs(gradient), np.abs(differences)).max() + 1e-9 * abs(value) / steps
        )
        if not (np.abs(gradient - differences) <= error).all():
            raise ValueError(
                f"compute_gradient of the micro moment '{moment.name}' is not the derivative of its compute_value: at "
                f"values of the parts {_show(at)} it returns {_show(gradient)}, and differences are "
                f"{_show(differences)}. Leave it out to have it found by automatic differentiation."
            )


def _show(values: np.ndarray) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _host_value(moment: MicroMoment, values: np.ndarray) -> float:
    if moment.is_part:
        return float(values[0])
    assert moment.compute_value is not None
    try:
        found = np.asarray(moment.compute_value(values))
    except Exception as error:
        raise RuntimeError(f"Failed to compute the value of micro moment '{moment.name}'.") from error
    if found.size != 1 or found.dtype.kind not in "iufb":
        raise TypeError(f"compute_value of the micro moment '{moment.name}' must return a number, not {found!r}.")
    return float(found.reshape(-1)[0])


def _host_gradient(moment: MicroMoment, values: np.ndarray) -> np.ndarray:
    assert moment.compute_gradient is not None
    try:
        found = np.asarray(moment.compute_gradient(values), float).reshape(-1)
    except Exception as error:
        raise RuntimeError(f"Failed to compute the gradient of micro moment '{moment.name}'.") from error
    if found.size != values.size:
        raise ValueError(
            f"compute_gradient of the micro moment '{moment.name}' must return {values.size} numbers, one for each "
            f"part, not {found.size}."
        )
    return found


def _can_be_traced(moment: MicroMoment) -> bool:
    assert moment.compute_value is not None
    try:
        shape = jax.eval_shape(moment.compute_value, jax.ShapeDtypeStruct((len(moment.parts),), float))
        return bool(np.prod(shape.shape) == 1 and jnp.issubdtype(shape.dtype, jnp.floating))
    except Exception:  # whatever users' functions of NumPy arrays do with others
        return False


def _call(function: MomentFunction, values: Array) -> Array:
    assert function.value is not None
    if function.traced:
        return jnp.asarray(function.value(values)).reshape(())
    return _called(function, values)


def _called(function: MomentFunction, values: Array) -> Array:
    """A function that JAX cannot trace: the host is called, and derivatives are what the users' gradient says."""
    size = len(function.parts)

    def on_host(call: Callable[[np.ndarray], Any], shape: tuple[int, ...], v: Array) -> Array:
        def host(v: Any) -> np.ndarray:
            return np.asarray(call(np.array(v, float)), float).reshape(shape)

        return jax.pure_callback(host, jax.ShapeDtypeStruct(shape, float), v, vmap_method="sequential")

    def differences(v: np.ndarray) -> np.ndarray:
        """Second derivatives by central differences of the gradient."""
        assert function.gradient is not None
        steps = 1e-5 * np.maximum(np.abs(v), 1e-3)
        sides = [
            [np.asarray(function.gradient(v + sign * step), float).reshape(size) for step in np.diag(steps)]
            for sign in (1.0, -1.0)
        ]
        return (np.array(sides[0]) - np.array(sides[1])) / (2 * steps[:, None])

    @jax.custom_jvp
    def gradient(v: Array) -> Array:
        assert function.gradient is not None
        return on_host(function.gradient, (size,), v)

    @gradient.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
        return gradient(*primals), tangents[0] @ on_host(differences, (size, size), *primals)

    @jax.custom_jvp
    def value(v: Array) -> Array:
        assert function.value is not None
        return on_host(function.value, (), v)

    @value.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
        return value(*primals), gradient(*primals) @ tangents[0]

    found: Array = value(values)
    return found
