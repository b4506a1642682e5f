"""Product characteristics as functions of the variables in their formulas, for JAX to evaluate and differentiate."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blpjax.inputs.design import Column


class Characteristics(eqx.Module):
    """The formulas of X1 and X2 (static, equal by value) and the (N,) variables that they use.

    Matrices are not residualised: counterfactual utilities use characteristics as formulated.
    """

    X1_columns: tuple[Column, ...] = eqx.field(static=True)
    X2_columns: tuple[Column, ...] = eqx.field(static=True)
    variables: dict[str, Float[Array, " N"]]

    @property
    def names(self) -> list[str]:
        """Names of the numeric variables, in which derivatives can be taken."""
        used = {key for column in (*self.X1_columns, *self.X2_columns) for key in column.inputs if key in column.names}
        return sorted(used)

    def evaluate(self, changes: Mapping[str, Float[Array, " N"]]) -> tuple[Float[Array, "N K1"], Float[Array, "N K2"]]:
        """X1 and X2 with some variables replaced."""
        variables = {**self.variables, **changes}
        return self._matrix(self.X1_columns, variables), self._matrix(self.X2_columns, variables)

    def slopes(self, name: str) -> tuple[Float[Array, "N K1"], Float[Array, "N K2"]]:
        """Derivatives of each row of X1 and X2 in that row's value of a variable."""
        x = self.variables[name]
        return jax.jvp(lambda values: self.evaluate({name: values}), (x,), (jnp.ones_like(x),))[1]

    def _matrix(self, columns: tuple[Column, ...], variables: Mapping[str, Array]) -> Array:
        N = next(iter(variables.values())).shape[0]
        if not columns:
            return jnp.zeros((N, 0))
        return jnp.stack([jnp.asarray(column.evaluate(variables, jnp), float) for column in columns], axis=1)
