"""Product characteristics as functions of the variables in their formulas, for JAX to evaluate and differentiate."""

from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from blpjax.inputs.design import Column, DesignMatrix
from blpjax.inputs.expressions import degree
from blpjax.kernels.arrays import AnyArray, namespace

#: Of derivatives on the host.
_STEP = 1e-200


class Characteristics(eqx.Module):
    """The formulas of X1, X2 and X3 (static, equal by value) and the variables that they use, prices and shares too.

    Variables are (N,), or (J,) where kernels see one market. Matrices are not residualised: counterfactual utilities
    and costs use characteristics as formulated.
    """

    X1_columns: tuple[Column, ...] = eqx.field(static=True)
    X2_columns: tuple[Column, ...] = eqx.field(static=True)
    X3_columns: tuple[Column, ...] = eqx.field(static=True)
    variables: dict[str, Float[AnyArray, "..."]]

    @property
    def names(self) -> list[str]:
        """Names of the numeric variables of X1 and X2, in which derivatives of demand can be taken."""
        used = {key for column in (*self.X1_columns, *self.X2_columns) for key in column.inputs if key in column.names}
        return sorted(used)

    def evaluate(self, changes: Mapping[str, Float[AnyArray, "..."]]) -> tuple[AnyArray, AnyArray]:
        """X1 (N, K1) and X2 (N, K2) with some variables replaced."""
        variables = {**self.variables, **changes}
        return self._matrix(self.X1_columns, variables), self._matrix(self.X2_columns, variables)

    def evaluate_X3(self, changes: Mapping[str, Float[AnyArray, "..."]]) -> AnyArray:
        """X3 (N, K3) with some variables replaced."""
        return self._matrix(self.X3_columns, {**self.variables, **changes})

    def slopes(
        self, name: str, changes: Mapping[str, Float[AnyArray, "..."]] | None = None
    ) -> tuple[AnyArray, AnyArray]:
        """Derivatives of each row of X1 and X2 in that row's value of a variable, after some have been replaced."""
        changed = dict(changes or {})
        if isinstance(self.variables[name], np.ndarray):
            # by a complex step, so small that the real part does not notice: exact to rounding
            moved = {**changed, name: np.asarray(changed.get(name, self.variables[name])) + 1j * _STEP}
            variables = {**self.variables, **moved}
            X1, X2 = (self._matrix(columns, variables) for columns in (self.X1_columns, self.X2_columns))
            return X1.imag / _STEP, X2.imag / _STEP
        x = jnp.asarray(changed.get(name, self.variables[name]))
        return jax.jvp(lambda values: self.evaluate({**changed, name: values}), (x,), (jnp.ones_like(x),))[1]

    def is_linear(self, name: str) -> bool:
        """Whether X1 and X2 are linear in a variable, so that slopes do not depend on it."""
        return all(degree(column.expression, name) <= 1 for column in (*self.X1_columns, *self.X2_columns))

    def replace(self, changes: Mapping[str, Float[AnyArray, "..."]]) -> "Characteristics":
        """The same formulas with other values of some variables; `NameError` for those that no formula has."""
        if unknown := [name for name in changes if name not in self.variables]:
            raise NameError(
                f"No formula has a numeric variable {unknown[0]!r}. There are {', '.join(sorted(self.variables))}."
            )
        return eqx.tree_at(lambda c: c.variables, self, {**self.variables, **changes})

    def _matrix(self, columns: tuple[Column, ...], variables: Mapping[str, AnyArray]) -> AnyArray:
        some = next(iter(variables.values()))
        xp = namespace(some)
        if not columns:
            return xp.zeros((*some.shape, 0))
        if xp is np:
            return np.stack([column.evaluate(variables) for column in columns], axis=-1)
        return jnp.stack([jnp.asarray(column.evaluate(variables, jnp), float) for column in columns], axis=-1)


def build_characteristics(
    designs: Sequence[DesignMatrix | None], prices: np.ndarray, shares: np.ndarray
) -> Characteristics:
    """Characteristics of the designs of X1, X2 and X3 with their variables on the device.

    Parameters
    ----------
    designs : X1, X2 and X3, None where there is no such matrix.
    prices, shares : (N,) prices and market shares.
    """
    inputs = {key: values for design in designs if design is not None for key, values in design.inputs.items()}
    variables = {key: jax.device_put(values) for key, values in {**inputs, "prices": prices, "shares": shares}.items()}
    X1, X2, X3 = (() if design is None else design.columns for design in designs)
    return Characteristics(X1, X2, X3, variables)
