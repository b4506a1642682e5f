"""Monte Carlo studies: lanes give what single estimations give, whatever the size of batches."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from blpjax import montecarlo
from blpjax.exceptions import IdentificationWarning
from blpjax.montecarlo import MonteCarlo
from tests.tolerances import LINEAR_ALGEBRA

F = blpjax.Formulation
MOMENTS = {"xi_variance": 0.05, "omega_variance": 0.05, "correlation": 0.5}


def design(sizes: tuple[int, ...] = (5, 3, 5, 4) * 5) -> blpjax.Simulation:
    """Markets of different sizes."""
    market_ids = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(0)
    data = {"market_ids": market_ids, "firm_ids": np.concatenate([np.arange(n) // 2 for n in sizes])}
    data |= {f"demand_instruments{k}": rng.uniform(size=market_ids.size) for k in range(2)}
    data |= {f"supply_instruments{k}": rng.uniform(size=market_ids.size) for k in range(2)}
    return blpjax.Simulation(
        (F("1 + prices + x"), F("0 + x"), F("1 + z")),
        data,
        beta=[1.0, -2.0, 2.0],
        sigma=[[2.0]],
        gamma=[1.0, 0.5],
        integration=blpjax.Integration("product", 3),
        seed=0,
        **MOMENTS,
    )


def study(supply: bool) -> MonteCarlo:
    simulation = design()
    if supply:
        return MonteCarlo(simulation, seed=3, **MOMENTS)
    problem = simulation.replace_endogenous().to_problem(simulation.product_formulations[:2])
    return MonteCarlo(simulation, problem, seed=3, beta=None, **MOMENTS)


@pytest.fixture(scope="module", params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["supply", "demand"])
def case(request: Any) -> tuple[MonteCarlo, montecarlo.MonteCarloResults]:
    made = study(request.param)
    return made, made.run(6, batch_size=6)


def test_replications_are_estimated_as_by_solve(case: Any) -> None:
    made, results = case
    drawn = montecarlo._draw(made._truth, jax.random.key(3), jnp.arange(2))
    supply = made.problem.K3 > 0
    for r in range(2):
        data = dict(made.problem.product_table.data)
        data |= {"prices": np.asarray(drawn.prices[r]), "shares": np.asarray(drawn.shares[r])}
        agents = made.simulation.agent_data
        problem = blpjax.Problem(made.problem.product_formulations, data, agent_data=agents)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IdentificationWarning)  # sigma may be zero
            single = problem.solve(sigma=[[2.0]], beta=[None, -2.0, None] if supply else None)
        mine = results.table[results.table["replication"] == r]
        assert mine["ok"].all() == single.converged
        np.testing.assert_allclose(mine["estimate"], single.parameters.ravel(), rtol=1e-6, atol=1e-8)
        errors = np.sqrt(np.diag(single.parameter_covariances) / single.problem.N)
        np.testing.assert_allclose(mine["standard_error"], errors, rtol=1e-5, atol=1e-8)


def test_data_are_equilibria_of_the_simulation(case: Any) -> None:
    """Prices and shares are those of `replace_endogenous` for the same structural errors."""
    made, _ = case
    drawn = montecarlo._draw(made._truth, jax.random.key(3), jnp.arange(2))
    normal = jax.random.normal(jax.random.fold_in(jax.random.key(3), 1), (2, made.simulation.N))
    xi, omega = np.asarray(made._truth.root) @ np.asarray(normal)
    known = made.simulation
    again = blpjax.Simulation(
        known.product_formulations,
        known.product_data,
        agent_data=known.agent_data,
        beta=known.beta,
        sigma=known.sigma,
        gamma=known.gamma,
        xi=xi,
        omega=omega,
    ).replace_endogenous()
    np.testing.assert_allclose(drawn.prices[1], again.product_data["prices"].ravel(), rtol=1e-8)
    np.testing.assert_allclose(drawn.shares[1], again.product_data["shares"].ravel(), rtol=1e-8)


def test_batches_do_not_change_the_table(case: Any) -> None:
    made, results = case
    parts = made.run(5, batch_size=2)
    expected = results.table[results.table["replication"] < 5]
    assert parts.table.shape == expected.shape
    for column in ("replication", "block", "parameter", "ok", "status"):
        assert (parts.table[column].to_numpy() == expected[column].to_numpy()).all()
    np.testing.assert_allclose(parts.table["estimate"], expected["estimate"], rtol=1e-6, atol=1e-9)


def test_summaries_describe_the_table(case: Any) -> None:
    made, results = case
    summary = results.summary()
    assert list(summary.index) == list(zip(made.blocks, made.labels, strict=True))
    slope = ("beta", "prices")
    rows = results.table[(results.table["block"] == "beta") & (results.table["parameter"] == "prices")]
    good = rows[rows["ok"]]
    LINEAR_ALGEBRA.check(summary.loc[slope, "bias"], good["estimate"].mean() + 2.0)
    inside = (good["estimate"] + 2.0).abs() <= 1.959964 * good["standard_error"]
    assert summary.loc[slope, "coverage"] == inside.mean() and summary.loc[slope, "true"] == -2.0
    assert summary.loc[slope, "failures"] == (~rows["ok"]).sum() and "prices" in str(results)


def test_failed_equilibria_are_failures() -> None:
    made = MonteCarlo(design(), seed=3, **MOMENTS)
    broken = made._truth.model.coefficients.beta.at[1].set(2.0)
    made._truth = eqx.tree_at(lambda t: t.model.coefficients.beta, made._truth, broken)
    table = made.run(2, batch_size=2).table
    assert not table["ok"].any() and table["status"].str.contains("slope down").all()


def test_wrong_studies_are_refused() -> None:
    simulation = design()
    with pytest.raises(ValueError, match="replications must be a positive integer, not 0"):
        MonteCarlo(simulation, **MOMENTS).run(0)
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        MonteCarlo(simulation, **MOMENTS).run(2, batch_size=-1)
    with pytest.raises(ValueError, match="Variances must be at least zero"):
        MonteCarlo(simulation, xi_variance=-1.0)
    with pytest.raises(ValueError, match="alpha are no parameters"):
        MonteCarlo(simulation, alpha=1.0)
    with pytest.raises(ValueError, match="method must be one of"):
        MonteCarlo(simulation, method="3s")
    other = design((5, 3, 5, 4) * 4 + (5, 3, 4, 5)).replace_endogenous().to_problem()
    with pytest.raises(ValueError, match="The problem must have the same products as the simulation"):
        MonteCarlo(simulation, other)
    absorbing = simulation.replace_endogenous().to_problem(
        (F("0 + prices + x", absorb="C(firm_ids)"), simulation.product_formulations[1], F("1 + z"))
    )
    with pytest.raises(NotImplementedError, match="Absorbed fixed effects are not supported"):
        MonteCarlo(simulation, absorbing)
