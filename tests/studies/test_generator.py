"""Exogenous variables that Monte Carlo studies draw anew: lanes have the data that single problems are built from."""

import functools
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax.exceptions import DataError, IdentificationWarning, StorageError
from blpjax.simulation.data import basic_instruments
from blpjax.studies import replications
from blpjax.studies.monte_carlo import MonteCarlo
from tests.support.study_design import MOMENTS, F, design
from tests.tolerances import LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")

SEED = 3
SIZES = (5, 3, 5, 4) * 4
N = sum(SIZES)


def draw(generator: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": generator.uniform(size=N), "z": generator.uniform(0.5, 1.5, size=N)}


def draw_instruments(generator: np.random.Generator) -> dict[str, np.ndarray]:
    drawn, noise = draw(generator), generator.uniform(size=(N, 4))
    numbered = {f"demand_instruments{k}": drawn["z"] ** (k + 1) * noise[:, k] for k in range(4)}
    return {**drawn, **numbered, "supply_instruments": np.c_[drawn["x"], noise]}


@functools.cache
def simulation() -> blpjax.Simulation:
    return design(SIZES)


@functools.cache
def with_instruments() -> Any:
    """A problem whose instruments are not the default ones."""
    names = {"demand_instruments": np.ones((N, 4)), "supply_instruments": np.ones((N, 5))}
    rng = np.random.default_rng(0)
    own = {name: rng.uniform(size=values.shape) for name, values in names.items()}
    default = simulation().replace_endogenous().to_problem()
    data = {name: values for name, values in default.product_table.data.items() if "instruments" not in name}
    agents = simulation().agent_data
    return blpjax.Problem(simulation().product_formulations, {**data, **own}, agent_data=agents)


def study(function: Callable[..., Any] | None = draw, problem: Any = None, **options: Any) -> MonteCarlo:
    return MonteCarlo(simulation(), problem, seed=SEED, data_generator=function, **MOMENTS, **options)


def single(made: MonteCarlo, replication: int, columns: Mapping[str, Any], optimal: bool = False) -> Any:
    """Results for a replication's data from the methods that users call."""
    exogenous = made._generator.draw(np.array([replication]))  # type: ignore[union-attr]
    exogenous = jax.tree.map(jnp.asarray, exogenous)
    drawn = replications.draw_replications(made._truth, jax.random.key(SEED), jnp.array([replication]), exogenous)
    data = {name: values for name, values in made.problem.product_table.data.items() if "instruments" not in name}
    data |= {"prices": np.asarray(drawn.prices[0]), "shares": np.asarray(drawn.shares[0]), **columns}
    problem = blpjax.Problem(made.problem.product_formulations, data, agent_data=made.simulation.agent_data)
    start = {"sigma": [[2.0]], "beta": [None, -2.0, None]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)  # sigma may be zero
        results = problem.solve(**start)
        return results.compute_optimal_instruments().to_problem().solve(**start) if optimal else results


def columns_of(replication: int, function: Callable[..., Any] = draw) -> dict[str, np.ndarray]:
    return function(np.random.default_rng([SEED, replication]))


def check(rows: Any, results: Any) -> None:
    assert rows["ok"].all() and results.cumulative_converged
    np.testing.assert_allclose(rows["estimate"], results.parameters.ravel(), rtol=1e-6, atol=1e-7)
    errors = np.sqrt(np.diag(results.parameter_covariances) / results.problem.N)
    np.testing.assert_allclose(rows["standard_error"], errors, rtol=1e-6, atol=1e-7)


@functools.cache
def table() -> Any:
    return study().run(4, batch_size=4).table


@pytest.mark.slow
def test_replications_are_those_of_problems_with_their_data() -> None:
    """Default instruments are built from what was drawn."""
    made, known = study(), simulation().primitives
    for r in range(2):
        columns = columns_of(r)
        instruments = basic_instruments(known, {**known.product_table.data, **columns})
        check(table()[table()["replication"] == r], single(made, r, {**columns, **instruments}))


@pytest.mark.slow
def test_equilibria_are_those_of_simulations_with_their_data() -> None:
    made, columns = study(), columns_of(1)
    exogenous = jax.tree.map(jnp.asarray, made._generator.draw(np.array([1])))  # type: ignore[union-attr]
    drawn = replications.draw_replications(made._truth, jax.random.key(SEED), jnp.array([1]), exogenous)
    normal = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(SEED), 1), (2, N)))
    xi, omega = np.asarray(made._truth.root) @ normal
    known = simulation()
    data = {"market_ids": known.product_data["market_ids"].ravel(), "firm_ids": known.product_data["firm_ids"].ravel()}
    parameters = {"beta": known.beta, "sigma": known.sigma, "gamma": known.gamma}
    again = blpjax.Simulation(
        known.product_formulations, {**data, **columns}, agent_data=known.agent_data, **parameters, xi=xi, omega=omega
    ).replace_endogenous()
    np.testing.assert_allclose(drawn.prices[0], again.product_data["prices"].ravel(), rtol=1e-8)
    np.testing.assert_allclose(drawn.shares[0], again.product_data["shares"].ravel(), rtol=1e-8)


@pytest.mark.slow
def test_instruments_may_be_drawn_too() -> None:
    """Those that are not drawn and not default ones stay."""
    drawn = study(draw_instruments, with_instruments())
    check(drawn.run(1, batch_size=1).table, single(drawn, 0, columns_of(0, draw_instruments)))
    kept = study(draw, with_instruments())
    given = {name: with_instruments().product_table.data[name] for name in ("demand_instruments", "supply_instruments")}
    found = kept._generator.draw(np.arange(2))  # type: ignore[union-attr]
    LINEAR_ALGEBRA.check(found.demand[1], given["demand_instruments"])
    LINEAR_ALGEBRA.check(found.supply[0], given["supply_instruments"])


@pytest.mark.slow
def test_optimal_instruments_are_those_of_drawn_variables() -> None:
    made, known = study(optimal_instruments="approximate"), simulation().primitives
    rows = made.run(2, batch_size=2).table
    for r in range(2):
        columns = columns_of(r)
        instruments = basic_instruments(known, {**known.product_table.data, **columns})
        check(rows[rows["replication"] == r], single(made, r, {**columns, **instruments}, optimal=True))


@pytest.mark.slow
def test_tables_depend_on_the_function_and_not_on_batches(tmp_path: Path) -> None:
    made = study()
    parts = made.run(3, batch_size=2, path=tmp_path / "study").table
    expected = table()[table()["replication"] < 3]
    np.testing.assert_allclose(parts["estimate"], expected["estimate"], rtol=1e-6, atol=1e-9)
    assert pickle.loads(pickle.dumps(made)).fingerprint == made.fingerprint
    with pytest.raises(StorageError, match="another study"):
        study(lambda generator: {"x": draw(generator)["x"]}).run(3, batch_size=2, path=tmp_path / "study")


def varying(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Other variables in other replications."""
    drawn = draw(generator)
    return drawn if drawn["x"][0] < 0.5 else {"x": drawn["x"]}


@pytest.mark.parametrize("returned, error, message", [
    ([1.0], TypeError, r"data_generator, replication 0: the function must return a mapping .*, not list"),
    ({"y": np.ones(N)}, ValueError, r"'y' is neither a numeric variable .* nor an instrument. Known are x, z"),
    ({"zz": np.ones(N)}, ValueError, r"'zz' is neither a numeric variable .* Did you mean 'z'\?"),
    ({"prices": np.ones(N)}, ValueError, "prices are not drawn but those of the replication's equilibrium"),
    ({"x": np.ones(N - 1)}, DataError, f"replication 0: column 'x' must have {N} rows, those of product_data, not"),
    ({"x": 1.0}, DataError, f"replication 0: column 'x' must have {N} rows"),
    ({"x": np.full(N, np.nan)}, DataError, r"replication 0: column 'x' has missing values in"),
    ({"demand_instruments": np.ones((N, 2))}, ValueError, "must be 5 columns of demand_instruments, as in .*, not 2"),
    ({"demand_instruments1": np.ones(N)}, DataError, "must start at zero and have no gaps"),
])  # fmt: skip
def test_wrong_columns_are_refused(returned: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        study(lambda generator: returned)


def test_variables_with_levels_are_not_drawn() -> None:
    """Indicators in formulas would stay those of the simulation."""
    known = simulation()
    data = {"market_ids": known.product_data["market_ids"].ravel(), "firm_ids": known.product_data["firm_ids"].ravel()}
    data |= {"x": np.arange(N) % 3.0, "z": np.linspace(0.5, 1.5, N)}
    parameters = {"beta": [1.0, -2.0, 0.1, 0.2], "sigma": known.sigma, "gamma": known.gamma}
    formulations = (F("1 + prices + C(x)"), *known.product_formulations[1:])
    levels = blpjax.Simulation(formulations, data, agent_data=known.agent_data, **parameters, **MOMENTS, seed=0)
    with pytest.raises(ValueError, match="'x' is neither a numeric variable of a formula"):
        MonteCarlo(levels, seed=SEED, data_generator=draw, **MOMENTS)


def test_other_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match="data_generator must be a function or None, not dict"):
        study({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"replication [1-9]: the function must return the same variables in every"):
        study(varying).run(8, batch_size=8)
    demand = simulation().replace_endogenous().to_problem(simulation().product_formulations[:2])
    with pytest.raises(ValueError, match="there is 'supply_instruments0', but the problem has no supply side"):
        study(lambda generator: {"supply_instruments0": np.ones(N)}, demand)
