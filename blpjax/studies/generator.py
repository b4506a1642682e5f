"""Exogenous variables and instruments that each replication of a Monte Carlo study draws anew."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blpjax.economy.characteristics import Characteristics
from blpjax.exceptions import DataError
from blpjax.inputs.columns import read_matrix, read_vector
from blpjax.objective.build import exogenous_columns
from blpjax.problem.problem import Problem
from blpjax.simulation.data import basic_instruments
from blpjax.simulation.simulation import Simulation

_TABLE = "data_generator"
_SIDES = ("demand_instruments", "supply_instruments")


class ExogenousDraws(eqx.Module):
    """What replications draw: variables of formulas by name (B, N), and excluded instruments of both sides (B, N, M).

    Instruments are None where there is no such side, and everything is empty or None where nothing is drawn.
    """

    variables: dict[str, Float[Array | np.ndarray, "*B N"]]
    demand: Float[Array | np.ndarray, "*B N MD"] | None = None
    supply: Float[Array | np.ndarray, "*B N MS"] | None = None

    def of(self, characteristics: Characteristics) -> dict[str, Any]:
        """Variables that characteristics use."""
        return {name: x for name, x in self.variables.items() if name in characteristics.variables}

    def instruments(self, characteristics: Characteristics, add_exogenous: bool) -> list[Array]:
        """Instruments of each equation (N, M) in a replication whose `characteristics` are given; empty for nothing."""
        sides = [(self.demand, "X1", "prices"), (self.supply, "X3", "shares")]
        found = []
        for excluded, matrix, endogenous in sides:
            if excluded is None:
                break
            Z = jnp.asarray(excluded)
            if add_exogenous:
                X = characteristics.evaluate({})[0] if matrix == "X1" else characteristics.evaluate_X3({})
                columns = exogenous_columns(getattr(characteristics, f"{matrix}_columns"), endogenous)
                Z = jnp.hstack([Z, X[:, np.array(columns, int)]])
            found.append(Z)
        return found


NOTHING = ExogenousDraws({})


class DataGenerator:
    """Calls the user's function for each replication and checks what it returns.

    Parameters
    ----------
    function : of a `numpy.random.Generator` that returns a mapping from names to columns of product data.
    seed : of the study. The generator of replication r is ``numpy.random.default_rng([seed, r])``.
    simulation, problem : the truth and the model to estimate.
    more : names of further variables that instruments are made of.

    Raises
    ------
    TypeError, ValueError, DataError
        When the function does not return for the first replication what it should.
    """

    def __init__(
        self,
        function: Any,
        seed: int,
        simulation: Simulation,
        problem: Problem,
        more: Sequence[Characteristics] = (),
    ) -> None:
        if not callable(function):
            raise TypeError(f"data_generator must be a function or None, not {type(function).__name__}.")
        self._function: Callable[[np.random.Generator], Mapping[str, Any]] = function
        self._seed = seed
        self._primitives, self._table = simulation.primitives, problem.product_table
        known = self._primitives
        used = (known.characteristics, problem.characteristics, *more)
        columns = [column for one in used for column in (*one.X1_columns, *one.X2_columns, *one.X3_columns)]
        # indicators of levels would stay those of the simulation
        categorical = {name for column in columns for name in column.names - set(column.inputs)}
        self._numeric = {name for one in used for name in one.variables} - {"prices", "shares"} - categorical
        basic = basic_instruments(known, {**known.product_table.data})
        sides = {"demand_instruments": self._table.demand_instruments}
        if problem.model_data.supply is not None:
            sides["supply_instruments"] = self._table.supply_instruments
        self._given = sides
        self._built = [name for name, Z in sides.items() if name in basic and np.array_equal(basic[name], Z)]
        self._names: set[str] | None = None
        self.draw(np.zeros(1, int))

    def draw(self, replications: np.ndarray) -> ExogenousDraws:
        """Columns for replications, by their numbers.

        Raises
        ------
        TypeError, ValueError, DataError
            When the function returns something else than it should. The message names replication and column.
        """
        found = [self._draw_one(int(r)) for r in replications]
        variables: dict[str, Any] = {name: np.stack([one[0][name] for one in found]) for name in found[0][0]}
        instruments = [np.stack([one[1][name] for one in found]) for name in self._given]
        return ExogenousDraws(variables, *instruments)

    def _draw_one(self, replication: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        returned = self._function(np.random.default_rng([self._seed, replication]))
        where = f"{_TABLE}, replication {replication}"
        if not isinstance(returned, Mapping):
            raise TypeError(
                f"{where}: the function must return a mapping from names to columns, not {type(returned).__name__}."
            )
        columns = {str(name): np.asarray(values) for name, values in returned.items()}
        for name, values in columns.items():
            self._check(where, name, values)
        variables = {
            name: read_vector({name: values.reshape(-1)}, name, where, self._table.market_ids)
            for name, values in columns.items()
            if name in self._numeric
        }
        if self._names is None:
            self._names = set(variables)
        if set(variables) != self._names:
            raise ValueError(
                f"{where}: the function must return the same variables in every replication, "
                f"{sorted(self._names)}, not {sorted(variables)}."
            )
        instruments, rebuilt = {}, {}
        if self._built:
            rebuilt = basic_instruments(self._primitives, {**self._primitives.product_table.data, **variables})
        for name, given in self._given.items():
            values = read_matrix(columns, name, where, self._table.market_ids)[0]
            if not values.shape[1]:
                values = rebuilt.get(name, values) if name in self._built else given
            if values.shape != given.shape:
                raise ValueError(
                    f"{where}: there must be {given.shape[1]} columns of {name}, as in the problem, not "
                    f"{values.shape[1]}."
                )
            instruments[name] = values
        return variables, instruments

    def _check(self, where: str, name: str, values: np.ndarray) -> None:
        N = self._table.shares.size
        if name in ("prices", "shares"):
            raise ValueError(f"{where}: {name} are not drawn but those of the replication's equilibrium.")
        instruments = [side for side in _SIDES if re.fullmatch(f"{side}[0-9]*", name)]
        if instruments and instruments[0] not in self._given:
            raise ValueError(f"{where}: there is '{name}', but the problem has no supply side.")
        if not instruments and name not in self._numeric:
            close = difflib.get_close_matches(name, sorted(self._numeric), n=1)
            known = f"Did you mean '{close[0]}'?" if close else f"Known are {', '.join(sorted(self._numeric))}."
            raise ValueError(f"{where}: '{name}' is neither a numeric variable of a formula nor an instrument. {known}")
        wrong = values.ndim not in (1, 2) or values.shape[0] != N or (not instruments and values.size != N)
        if wrong:
            raise DataError(f"{where}: column '{name}' must have {N} rows, those of product_data, not {values.shape}.")
