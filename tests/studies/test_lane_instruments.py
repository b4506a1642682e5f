"""Optimal instruments in Monte Carlo studies: lanes give what single problems give with instruments of their own."""

import functools
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax import Iteration
from blpjax.estimation.lane import Lane
from blpjax.estimation.lanes import BatchOutcome
from blpjax.exceptions import DataError, IdentificationError, IdentificationWarning, Status
from blpjax.inference.optimal_instruments import fit_prices
from blpjax.model.parameters import BLOCKS, Coefficients
from blpjax.objective.structure import Specification
from blpjax.studies import lane_instruments, replications
from blpjax.studies.lane_instruments import Observed, OptimalInstruments
from blpjax.studies.monte_carlo import MonteCarlo
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.support.study_design import MOMENTS, F, design
from tests.tolerances import FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

SEED, START = 3, {"sigma": [[2.0]]}


@functools.cache
def simulation() -> blpjax.Simulation:
    return design((5, 3, 5, 4) * 4)


def study(supply: bool, options: Any = "approximate", **arguments: Any) -> MonteCarlo:
    if supply:
        return MonteCarlo(simulation(), seed=SEED, optimal_instruments=options, **MOMENTS, **arguments)
    problem = simulation().replace_endogenous().to_problem(simulation().product_formulations[:2])
    given = {"beta": None, **arguments}
    return MonteCarlo(simulation(), problem, seed=SEED, optimal_instruments=options, **MOMENTS, **given)


@functools.cache
def table(supply: bool) -> Any:
    return study(supply).run(3, batch_size=3).table


def single(made: MonteCarlo, replication: int, method: str = "2s", **arguments: Any) -> Any:
    """Results for the data of a replication, from the methods that users call."""
    drawn = replications.draw_replications(made._truth, jax.random.key(SEED), jnp.arange(replication, replication + 1))
    data = dict(made.problem.product_table.data)
    data |= {"prices": np.asarray(drawn.prices[0]), "shares": np.asarray(drawn.shares[0])}
    problem = blpjax.Problem(made.problem.product_formulations, data, agent_data=made.simulation.agent_data)
    start = START | ({"beta": [None, -2.0, None]} if made.problem.K3 else {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)  # sigma may be zero
        first = problem.solve(**start, method=method)
        instruments = first.compute_optimal_instruments()
        return instruments.to_problem(**arguments).solve(**start, method="2s")


def check_replication(rows: Any, results: Any) -> None:
    assert rows["ok"].all() and results.cumulative_converged
    np.testing.assert_allclose(rows["estimate"], results.parameters.ravel(), rtol=1e-6, atol=1e-7)
    errors = np.sqrt(np.diag(results.parameter_covariances) / results.problem.N)
    np.testing.assert_allclose(rows["standard_error"], errors, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(rows["objective"], float(results.objective), rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("supply", [True, False], ids=["supply", "demand"])
def test_replications_are_estimated_as_by_problems_with_optimal_instruments(supply: bool) -> None:
    made, found = study(supply), table(supply)
    for replication in range(2):
        check_replication(found[found["replication"] == replication], single(made, replication))


@pytest.mark.slow
def test_options_of_the_first_estimation_and_of_instruments() -> None:
    options = OptimalInstruments(first_method="1s", supply_shifter_formulation=F("1"), drop_indices=[1])
    rows = study(True, options).run(1, batch_size=1).table
    arguments = {"supply_shifter_formulation": F("1"), "drop_indices": [1]}
    check_replication(rows, single(study(True), 0, "1s", **arguments))


MODELS: dict[str, tuple[joint.Model, dict[str, Any]]] = {
    # beta and gamma of exogenous characteristics in theta, whose instruments are dropped
    "log costs": (
        joint.Model(options={"costs_type": "log"}),
        {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [None, -2.0, 0.9, None], "gamma": [None, 0.4, 0]},
    ),
    # expected prices are fitted values, and expected shares are instruments of demand for gamma
    "costs of shares": (
        joint.Model("1 + log(prices) + x + y", X3="1 + w + shares + log(shares)", options={"costs_type": "log"}),
        {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [None, -4.0, None, None], "gamma": [None, None, 0.1, None]},
    ),
    # expected prices are instruments for betas that are concentrated out
    "logit": (joint.Model("1 + prices + I(prices**2) + x", None, None, demographics=None), {"beta": None}),
}


@pytest.mark.parametrize("name", mostly_slow([*MODELS], ["logit"]))
def test_instruments_of_lanes_span_those_of_problems(name: str) -> None:
    """At parameters that are given."""
    model, parameters = MODELS[name]
    tables = joint.tables(3, model.options.get("costs_type", "linear"), markets=4)
    problem = model.build(blpjax, tables[0], tables[1] if model.X2 else None)
    with joint.quiet():
        results = problem.solve(
            **parameters, method="1s", optimization=blpjax.Optimization("return"), check_optimality="gradient"
        )
        again = results.compute_optimal_instruments().to_problem()
    read = problem.read_parameters(
        **{name: parameters.get(name) for name in ("sigma", "pi", "rho", "beta", "gamma")}, bounds={}
    )
    plan = lane_instruments.plan_instruments(problem, read.layout, "approximate", 1)
    made = _make_one(problem, read, plan, results)
    assert Status(int(made.status[0])) == Status.CONVERGED
    check_span(made.demand[0], again.model_data.demand.Z)
    if problem.K3:
        check_span(made.supply[0], again.model_data.supply.equation.Z)
    assert plan.count_moments(read.layout, problem.K3 > 0) == again.MD + again.MS


def check_span(basis: Any, Z: Any) -> None:
    """Columns of (N, M) are orthogonal, and those of `Z` are combinations of them."""
    Q, Z, N = np.asarray(basis), np.asarray(Z), len(basis)
    assert Q.shape == Z.shape
    LINEAR_ALGEBRA.check(Q.T @ Q / N, np.eye(Q.shape[1]))
    FIXED_PARAMETERS.check(Q @ (Q.T @ Z) / N, Z)


def test_collinear_instruments_become_zeros() -> None:
    Z = np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 1e6, 1e-6]
    Z = np.c_[Z, Z[:, 0] + 1e-6 * Z[:, 1], np.zeros(50)]
    found = np.asarray(lane_instruments._orthonormal(jnp.asarray(Z)))
    lengths = np.linalg.norm(found, axis=0) / np.sqrt(50)
    ROUNDING.check(np.sort(lengths), [0.0, 0.0, 1.0, 1.0, 1.0])
    FIXED_PARAMETERS.check(found @ (found.T @ Z) / 50 / [1.0, 1e6, 1e-6, 1.0, 1.0], Z / [1.0, 1e6, 1e-6, 1.0, 1.0])
    assert np.isnan(lane_instruments._orthonormal(jnp.asarray(Z).at[3, 0].set(jnp.nan))).all()


def _make_one(problem: Any, read: Any, plan: Any, results: Any) -> Any:
    """Instruments of a batch of one lane, with the data of a problem."""
    table, theta = problem.product_table, jnp.asarray(read.theta)
    lane = Lane(
        economy=problem.economy,
        data=problem.model_data,
        fixed=Coefficients(*(jnp.asarray(getattr(read.start, name)) for name in BLOCKS)),
        theta=theta,
        lower=theta,
        upper=theta,
        delta=jnp.zeros(problem.N),
        cluster_ids=jnp.zeros(problem.N, int),
        limits=jax.tree.map(jnp.asarray, Iteration().limits),
    )
    varies = eqx.tree_at(lambda one: one.delta, jax.tree.map(lambda leaf: False, lane), True)
    varying, shared = eqx.partition(lane, varies)
    expected = None
    if not plan.equilibria:
        expected = jnp.asarray(fit_prices(np.asarray(problem.model_data.demand.instruments), table.prices))[None]
    return lane_instruments._make(
        Specification(read.layout, Iteration().fixed_point),
        plan,
        jax.tree.map(lambda leaf: leaf[None], varying),
        shared,
        jnp.asarray(results.parameters[:, 0])[None],
        Observed(jnp.asarray(table.prices)[None], jnp.asarray(table.shares)[None], {}),
        expected,
    )


@pytest.mark.slow
def test_failed_first_estimations_and_expected_prices_are_failures() -> None:
    first = study(True, iteration=Iteration("anderson", {"max_evaluations": 1})).run(3, batch_size=3).table
    prices = OptimalInstruments(iteration=Iteration("squarem", {"max_evaluations": 1}))
    second = study(True, prices).run(3, batch_size=3).table
    for found in (first, second):
        assert not found["ok"].any() and found[["estimate", "standard_error", "objective"]].isna().all(axis=None)
        assert not found["status"].str.contains("converged").any() and (found["evaluations"] > 0).all()
    assert (second["status"] == Status.MAX_EVALUATIONS.sentence).all()


def test_second_estimations_start_where_parameters_matter() -> None:
    """A standard deviation that was estimated as zero starts again at its first starting value."""
    made, count, N = study(True), 3, simulation().N
    varies = eqx.tree_at(lambda lane: lane.delta, jax.tree.map(lambda leaf: False, made._shared), True)
    varying, shared = eqx.partition(made._shared, varies)
    varying = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), varying)
    ones = np.ones(count)
    outcome = BatchOutcome(
        parameters=np.arange(18.0).reshape(count, 6),
        standard_errors=np.ones((count, 6)),
        identified=np.array([[True] * 6, [False] + [True] * 5, [True] * 6]),
        objectives=ones,
        gradient_norms=ones,
        evaluations=np.ones(count, int),
        status=np.zeros(count, int),
        ok=np.ones(count, bool),
    )
    Z, delta = jnp.ones((count, N, 5)), jnp.full((count, N), 7.0)
    instruments = lane_instruments._Made(Z, Z, delta, jnp.zeros(count, int))
    moved, rest = lane_instruments._replace(varying, shared, instruments, outcome, np.array([True, True, False]))
    assert moved.theta.tolist() == [[0.0, 1.0], [2.0, 7.0], [2.0, -2.0]]
    assert moved.delta[:, 0].tolist() == [7.0, 7.0, 0.0]
    assert np.isnan(moved.data.demand.Z).all(axis=(1, 2)).tolist() == [False, False, True]
    assert rest.theta is None and rest.data.supply.equation.Z is None


def test_other_instruments_are_another_study() -> None:
    made = study(True, None)
    options = [
        None,
        "approximate",
        OptimalInstruments(first_method="1s"),
        OptimalInstruments(drop_indices=[0]),
        OptimalInstruments(iteration=Iteration("simple")),
        OptimalInstruments(demand_shifter_formulation=F("x + I(x**2)")),
    ]
    found = [MonteCarlo(made.simulation, made.problem, optimal_instruments=o, **MOMENTS).fingerprint for o in options]
    assert len(set(found)) == len(options)
    again = MonteCarlo(made.simulation, made.problem, optimal_instruments=OptimalInstruments(), **MOMENTS)
    assert again.fingerprint == found[1]


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="method must be one of"):
        OptimalInstruments("exact")
    with pytest.raises(ValueError, match="first_method must be one of"):
        OptimalInstruments(first_method="3s")
    with pytest.raises(NotImplementedError, match="method='normal' are not supported.*Use 'approximate'"):
        study(True, "normal")
    with pytest.raises(TypeError, match="must be OptimalInstruments, 'approximate' or None, not bool"):
        study(True, True)
    with pytest.raises(ValueError, match="drop_indices must be a sequence of integers from 0 to 1"):
        study(True, OptimalInstruments(drop_indices=[2]))
    with pytest.raises(ValueError, match="iteration needs a supply side"):
        study(False, OptimalInstruments(iteration=Iteration("simple")))
    with pytest.raises(TypeError, match="supply_shifter_formulation must be None, because there is no supply side"):
        study(False, OptimalInstruments(supply_shifter_formulation=F("z")))
    with pytest.raises(DataError, match="unknown"):
        study(True, OptimalInstruments(supply_shifter_formulation=F("unknown")))
    none = {"supply_shifter_formulation": F("1"), "demand_shifter_formulation": F("1")}
    with pytest.raises(IdentificationError, match=r"fewer moments \(4\) than parameters \(6: "):
        study(True, OptimalInstruments(drop_indices=[0, 1], **none))
