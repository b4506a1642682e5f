"""Standard errors of outputs: central differences of everything recomputed, with shares or with xi and omega held."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.optimize

import blpjax
from blpjax.exceptions import ConvergenceWarning
from blpjax.inference.delta_method import DeltaMethodResults
from blpjax.model import elsewhere
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.support.estimated import CASES, merged, solved
from tests.tolerances import CENTRAL_DIFFERENCE, FIXED_PARAMETERS, ROUNDING

STEP = 1e-4


def outputs(case: str) -> Callable[[Any], dict[str, Any]]:
    """Elasticities, and what a merger does to prices and consumers, as a function of the model.

    Their mean takes many operations outside of programs.
    """
    firms = merged(CASES[case].tables[0])

    def function(m: Any) -> dict[str, Any]:
        elasticities = m.compute_elasticities()
        prices = m.compute_prices(firm_ids=firms, costs=m.compute_costs())
        found = {
            "elasticities": elasticities,
            "price changes": prices[:, 0] - m.prices,
            "surplus changes": m.compute_consumer_surpluses(prices=prices) - m.compute_consumer_surpluses(),
        }
        if case != "logit":
            found["mean own elasticity"] = m.extract_diagonals(elasticities).mean()
        return found

    return function


def coefficients_at(case: str, parameters: np.ndarray) -> dict[str, np.ndarray]:
    """Matrices with parameters in the order of labels: sigma, pi and the coefficient on prices, then other ones."""
    results = solved(case)
    found = {name: np.array(getattr(results, name)) for name in ("sigma", "pi", "beta", "gamma")}
    values = iter(parameters)
    if found["sigma"].size:
        found["sigma"][[0, 1], [0, 1]] = next(values), next(values)
        found["pi"][0, 0] = next(values)
    price = results.beta_labels.index("prices")
    found["beta"][price] = next(values)
    for k in range(len(found["beta"])):
        if k != price:
            found["beta"][k] = next(values)
    for k in range(len(found["gamma"])):
        found["gamma"][k] = next(values)
    assert not list(values)
    return found


def central_differences(case: str, function: Callable[[np.ndarray], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Standard errors, by name, from differences of outputs at parameters above and below the estimates."""
    results = solved(case)
    estimates = results.parameters[:, 0]
    columns = []
    for step in STEP * np.eye(estimates.size):
        above, below = function(estimates + step), function(estimates - step)
        columns.append({name: (above[name] - below[name]) / (2 * STEP) for name in above})
    covariances = results.parameter_covariances / results.problem.N
    found = {}
    for name in columns[0]:
        J = np.stack([column[name] for column in columns], axis=-1)
        found[name] = np.sqrt(np.einsum("...q,qr,...r", J, covariances, J))
    return found


def by_hand(case: str, hold: str, parameters: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs at these parameters, in NumPy and market by market."""
    results, (products, agents) = solved(case), CASES[case].tables
    found = coefficients_at(case, parameters)
    price = results.beta_labels.index("prices")
    alpha = found["beta"][price, 0]
    X1 = np.delete(results.problem.X1, price, axis=1)
    explained = (X1 @ np.delete(found["beta"], price, axis=0) + results.xi + results.xi_fe)[:, 0]
    if results.gamma.size:
        costs = (results.problem.X3 @ found["gamma"] + results.omega + results.omega_fe)[:, 0]
        costs = np.exp(costs) if CASES[case].costs_type == "log" else costs
    N, T = len(products), 4
    elasticities, changes, surpluses = np.full((N, 8), np.nan), np.zeros(N), np.zeros((T, 1))
    for t, (market_id, market) in enumerate(products.groupby("market_ids")):
        rows = market.index.to_numpy()
        mu, weights = np.zeros((rows.size, 1)), np.ones(1)
        if agents is not None:
            people = agents[agents.market_ids == market_id]
            tastes = found["sigma"] @ people[["nodes0", "nodes1"]].T.to_numpy() + found["pi"] * people.income.to_numpy()
            mu, weights = np.column_stack([np.ones(rows.size), market.x]) @ tastes, people.weights.to_numpy()
        demand = HandMadeDemand(explained[rows][:, None] + mu, weights, alpha)
        before, after = (np.equal.outer(f, f) for f in (market.firm_ids.to_numpy(), merged(market)))
        p = market.prices.to_numpy()
        if hold == "shares":
            demand = demand.reproducing(market.shares.to_numpy(), p)
        if hold == "xi" and results.gamma.size:
            c = costs[rows]
            p = demand.equilibrium(c, before, p)
        else:
            c = p + np.linalg.solve(before * demand.jacobian(p).T, demand.shares(p))
        elasticities[rows, : rows.size] = demand.jacobian(p) * p / demand.shares(p)[:, None]
        new = demand.equilibrium(c, after, p)
        changes[rows] = new - p
        surpluses[t] = demand.surplus(new) - demand.surplus(p)
    own = [
        elasticities[i, list(products.index[products.market_ids == products.market_ids[i]]).index(i)] for i in range(N)
    ]
    return {
        "elasticities": elasticities,
        "mean own elasticity": np.mean(own),
        "price changes": changes,
        "surplus changes": surpluses,
    }


@dataclasses.dataclass(frozen=True)
class HandMadeDemand:
    """One market: utilities without prices (J, I), weights (I,), and a coefficient on prices."""

    utilities: np.ndarray
    weights: np.ndarray
    alpha: float

    def exponentials(self, p: np.ndarray) -> np.ndarray:
        return np.exp(self.utilities + self.alpha * p[:, None])

    def probabilities(self, p: np.ndarray) -> np.ndarray:
        return self.exponentials(p) / (1 + self.exponentials(p).sum(axis=0))

    def shares(self, p: np.ndarray) -> np.ndarray:
        return self.probabilities(p) @ self.weights

    def jacobian(self, p: np.ndarray) -> np.ndarray:
        P = self.probabilities(p)
        return self.alpha * (np.diag(P @ self.weights) - P * self.weights @ P.T)

    def surplus(self, p: np.ndarray) -> float:
        return np.log1p(self.exponentials(p).sum(axis=0)) @ self.weights / -self.alpha

    def reproducing(self, observed: np.ndarray, p: np.ndarray) -> "HandMadeDemand":
        """The same demand, moved by what makes shares at some prices the observed ones."""

        def moved(change: np.ndarray) -> "HandMadeDemand":
            return dataclasses.replace(self, utilities=self.utilities + change[:, None])

        found = scipy.optimize.root(
            lambda change: np.log(observed / moved(change).shares(p)), np.zeros(p.size), tol=1e-14
        )
        assert np.abs(found.fun).max() < 1e-11
        return moved(found.x)

    def equilibrium(self, c: np.ndarray, ownership: np.ndarray, start: np.ndarray) -> np.ndarray:
        def gap(p: np.ndarray) -> np.ndarray:
            return p - c + np.linalg.solve(ownership * self.jacobian(p).T, self.shares(p))

        found = scipy.optimize.root(gap, start, tol=1e-14)
        assert np.abs(found.fun).max() < 1e-10
        return found.x


COMPARISONS = [
    ("linear costs", "shares"),
    ("linear costs", "xi"),
    ("log costs of shares", "shares"),
    ("fixed effects", "xi"),
    ("demand alone", "xi"),
    ("logit", "shares"),
]
QUICK = [("logit", "shares")]


@pytest.mark.parametrize(
    ("case", "hold"),
    [pytest.param(*comparison, marks=() if comparison in QUICK else pytest.mark.slow) for comparison in COMPARISONS],
)
def test_standard_errors_are_those_of_outputs_computed_again(case: str, hold: str) -> None:
    found = solved(case).delta_method(outputs(case), hold)
    value = by_hand(case, hold, solved(case).parameters[:, 0])
    errors = central_differences(case, lambda parameters: by_hand(case, hold, parameters))
    assert len(found.value) >= 3
    for name in found.value:
        FIXED_PARAMETERS.check(found.value[name], value[name], name)
        CENTRAL_DIFFERENCE.check(found.standard_errors[name], errors[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("case", mostly_slow(["linear costs", "demand alone"], ["linear costs"]))
def test_what_is_held_matters_for_errors_and_not_for_values(case: str) -> None:
    shares, xi = (solved(case).delta_method(lambda m: m.compute_costs(), hold) for hold in ("shares", "xi"))
    FIXED_PARAMETERS.check(shares.value, xi.value)
    assert (np.abs(shares.standard_errors / xi.standard_errors - 1) > 1e-3).any()


@pytest.mark.parametrize("hold", ["shares", "xi"])
@pytest.mark.parametrize("case", mostly_slow([*CASES], ["linear costs"]))
def test_parameters_have_their_own_standard_errors(case: str, hold: str) -> None:
    results = solved(case)

    def parameters(m: Any) -> dict[str, Any]:
        sigma = m.coefficients.sigma
        return {"sigma": sigma, "beta": m.coefficients.beta, "gamma": m.coefficients.gamma, "squared": sigma @ sigma.T}

    errors = results.delta_method(parameters, hold).standard_errors
    FIXED_PARAMETERS.check(errors["sigma"], np.nan_to_num(results.sigma_se))
    FIXED_PARAMETERS.check(errors["beta"], results.beta_se[:, 0])
    FIXED_PARAMETERS.check(errors["gamma"], results.gamma_se[:, 0])
    FIXED_PARAMETERS.check(errors["squared"], results.sigma_squared_se)


def test_costs_with_xi_held_are_as_uncertain_as_their_coefficients() -> None:
    results = solved("linear costs")
    errors = results.delta_method(lambda m: m.compute_costs(), "xi").standard_errors
    X3, V = results.problem.X3, gamma_covariances(results)
    FIXED_PARAMETERS.check(errors, np.sqrt(np.einsum("jk,kl,jl->j", X3, V, X3))[:, None])


@pytest.mark.slow
def test_costs_that_move_with_shares_move_with_xi_held() -> None:
    """Equilibria at other parameters have other shares, and so other costs, unless these are constant."""
    results = solved("log costs of shares")
    constant, moving = (
        results.delta_method(lambda m: m.compute_costs(), "xi", constant_costs=constant) for constant in (True, False)
    )
    FIXED_PARAMETERS.check(constant.value, moving.value)
    assert (np.abs(constant.standard_errors / moving.standard_errors - 1) > 1e-3).any()
    costs = solved("log costs of shares").tilde_costs
    expected = np.exp(costs) * np.sqrt(
        np.einsum("jk,kl,jl->j", results.problem.X3, *[gamma_covariances(results)], results.problem.X3)
    ).reshape(-1, 1)
    FIXED_PARAMETERS.check(constant.standard_errors, expected)


def gamma_covariances(results: Any) -> np.ndarray:
    K3 = len(results.gamma)
    return results.parameter_covariances[-K3:, -K3:] / results.problem.N


# what is returned


def test_covariances_intervals_and_tables_belong_together() -> None:
    found = solved("linear costs").delta_method(lambda m: (m.compute_costs(), m.compute_hhi().mean()))
    errors = np.concatenate([found.standard_errors[0][:, 0], found.standard_errors[1][None]])
    ROUNDING.check(np.sqrt(np.diag(found.covariances)), errors)
    assert found.jacobian.shape == (30, 10) and len(found.parameter_labels) == 10
    lower, upper = found.confidence_intervals(0.9)
    ROUNDING.check(lower[0], found.value[0] - 1.6448536269514722 * found.standard_errors[0])
    ROUNDING.check(upper[1], found.value[1] + 1.6448536269514722 * found.standard_errors[1])
    ROUNDING.check(found.upper[0] - found.lower[0], 2 * 1.959963984540054 * found.standard_errors[0])
    frame = found.to_frame()
    assert list(frame.columns) == ["output", "index", "value", "standard_error", "lower", "upper"]
    assert frame.output.tolist() == ["[0]"] * 29 + ["[1]"]
    assert frame["index"].tolist()[-2:] == [(28, 0), ()]
    np.testing.assert_array_equal(frame.value[:29], found.value[0][:, 0])
    np.testing.assert_array_equal(frame.standard_error, errors)


def test_sensitivity_to_moments_is_what_standard_errors_are_made_of() -> None:
    known = solved("logit")
    found = known.delta_method(
        lambda m: jnp.stack([m.prices.mean() / m.compute_costs().mean(), m.compute_costs().mean()])
    )
    G, W = known.moments_jacobian, known.W
    Lambda = -np.linalg.solve(G.T @ W @ G, G.T @ W)
    expected = found.jacobian @ Lambda
    FIXED_PARAMETERS.check(found.sensitivity.T, expected)
    S = known.moments_covariances / len(known.delta)
    variances = np.diag(expected @ S @ expected.T)
    FIXED_PARAMETERS.check(found.standard_errors, np.sqrt(variances))
    standardised = expected * np.sqrt(np.diag(S)) / np.sqrt(variances)[:, None]
    FIXED_PARAMETERS.check(found.standardised_sensitivity.T, standardised)
    labels = found.sensitivity.index.tolist()
    assert labels == known.moment_labels and labels[0] == "demand_instruments0" and len(labels) == known.moments.size
    # labelled as the output is, and one number by its name alone
    own = known.compute_hhi(standard_errors=True).sensitivity
    assert own.columns.names == ["market_ids"] and own.shape == (known.moments.size, len(known.compute_hhi()))
    one = known.delta_method(lambda m: m.compute_costs().mean())
    assert one.sensitivity.columns.tolist() == ["sensitivity"]
    FIXED_PARAMETERS.check(one.sensitivity["sensitivity"], expected[1])


@pytest.mark.slow
def test_padding_has_no_standard_errors_and_no_effect_on_others() -> None:
    results = solved("linear costs")
    found = results.delta_method(lambda m: m.compute_elasticities())
    np.testing.assert_array_equal(np.isnan(found.standard_errors), np.isnan(found.value))
    assert np.isnan(found.value).any()
    alone = results.delta_method(lambda m: m.extract_diagonals(m.compute_elasticities()))
    ROUNDING.check(alone.standard_errors, results.extract_diagonals(found.standard_errors))


@pytest.mark.slow
def test_chunks_of_parameters_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = solved("linear costs")
    whole = results.delta_method(lambda m: m.compute_costs())
    monkeypatch.setattr(elsewhere, "CHUNK_ELEMENTS", 4 * 4 * 8 * 30)
    assert 1 < elsewhere.lanes(results.problem.economy) < 10
    parts = results.delta_method(lambda m: m.compute_costs())
    FIXED_PARAMETERS.check(parts.jacobian, whole.jacobian)


def test_functions_may_use_the_model_at_the_estimates_as_well() -> None:
    """What does not depend on the function's argument is a constant."""
    results = solved("linear costs")
    found = results.delta_method(
        lambda m: m.compute_costs() - results.model.compute_costs() + results.model.compute_markups()
    )
    FIXED_PARAMETERS.check(found.standard_errors, results.compute_costs(standard_errors=True).standard_errors)


def test_other_functions_of_the_same_outputs_compile_nothing(caplog: pytest.LogCaptureFixture) -> None:
    results = solved("linear costs")
    for hold in ("shares", "xi"):
        results.delta_method(lambda m: m.compute_costs(), hold)
    with caplog.at_level(logging.DEBUG, "jax._src.dispatch"):
        for hold in ("shares", "xi"):
            results.delta_method(lambda m: {"costs": m.compute_costs()}, hold)
    compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    assert not compiled


# compute methods

METHODS: dict[str, Callable[[Any], Any]] = {
    "costs": lambda m: m.compute_costs(),
    "elasticities": lambda m: m.compute_elasticities(),
    "delta": lambda m: m.invert(blpjax.Iteration()).delta[:, None],
    "consumer_surpluses": lambda m: m.compute_consumer_surpluses(),
    "prices": lambda m: m.compute_prices(),
    "shares": lambda m: m.compute_shares(),
}


@pytest.mark.parametrize("method", mostly_slow([*METHODS], ["elasticities", "consumer_surpluses"]))
def test_compute_methods_have_standard_errors(method: str) -> None:
    results, hold = solved("linear costs"), "xi" if method in ("shares", "prices", "costs") else "shares"
    found = getattr(results, f"compute_{method}")(standard_errors=True, hold=hold)
    expected = results.delta_method(METHODS[method], hold)
    assert isinstance(found, DeltaMethodResults) and found.hold == hold
    FIXED_PARAMETERS.check(found.value, getattr(results, f"compute_{method}")())
    FIXED_PARAMETERS.check(found.standard_errors, expected.standard_errors)


@pytest.mark.parametrize("method", mostly_slow(["costs", "elasticities"], ["elasticities"]))
def test_one_market_alone_has_the_same_standard_errors(method: str) -> None:
    results = solved("linear costs")
    everything = getattr(results, f"compute_{method}")(standard_errors=True)
    alone = getattr(results, f"compute_{method}")(standard_errors=True, market_id="m001")
    inside = everything.standard_errors[CASES["linear costs"].tables[0].market_ids == "m001"]
    FIXED_PARAMETERS.check(alone.standard_errors, inside[:, : alone.value.shape[1]])
    frame = getattr(results, f"compute_{method}")(standard_errors=True, market_id="m001", as_frame=True)
    np.testing.assert_array_equal(frame.standard_error, alone.standard_errors.ravel())
    pd.testing.assert_frame_equal(alone.to_frame(), frame)


def test_results_are_displayed_in_few_lines_with_labels() -> None:
    results = solved("linear costs")
    elasticities = results.compute_elasticities(standard_errors=True)
    shown = str(elasticities)
    assert "The first 10, of which to_frame() has all" in shown and "row_product" in shown and len(shown) < 1500
    assert elasticities.to_frame()["elasticity"].notna().all()
    hhi = results.delta_method(lambda m: m.compute_hhi().mean())
    assert repr(hhi).splitlines()[0] == "1 output with standard errors, holding observed shares and prices fixed:"
    assert len(repr(hhi)) < 300 and f"{float(hhi.value):.4g}" in repr(hhi) and "<table" in hhi._repr_html_()
    frame = results.delta_method(lambda m: m.compute_hhi().mean(), as_frame=True)
    pd.testing.assert_frame_equal(frame, hhi.to_frame())


@pytest.mark.slow
def test_delta_with_shares_held_varies_as_the_inversion_says() -> None:
    results = solved("linear costs")
    slopes, V = results._result.outcome.evaluation.delta_by_theta, results.parameter_covariances[:4, :4] / 29
    expected = np.sqrt(np.einsum("jp,pq,jq->j", slopes, V, slopes))[:, None]
    FIXED_PARAMETERS.check(results.compute_delta(standard_errors=True).standard_errors, expected)


def test_shares_are_constant_when_they_are_held() -> None:
    results = solved("linear costs")
    errors = results.compute_shares(standard_errors=True).standard_errors
    assert np.abs(errors).max() < 1e-12
    assert results.compute_shares(standard_errors=True, hold="xi").standard_errors.min() > 1e-4


def test_shares_of_other_agents_have_standard_errors() -> None:
    results, (_, agents) = solved("linear costs"), CASES["linear costs"].tables
    found = results.compute_shares(agent_data=agents, standard_errors=True, hold="xi")
    FIXED_PARAMETERS.check(
        found.standard_errors, results.compute_shares(standard_errors=True, hold="xi").standard_errors
    )


# failures


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("blpjax.inference.delta_method.MOST_ELEMENTS", 1000)
    yield


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hold": "omega"}, ValueError, "hold must be 'shares' or 'xi', not 'omega'"),
    ({"function": 3}, TypeError, "function must be a function of a Model, not int"),
    ({"function": lambda m: jnp.argmax(m.delta)}, TypeError, "must return floating-point numbers, not int64"),
    ({"function": lambda m: None}, ValueError, "function must return at least one array"),
    ({"function": lambda m: np.sort(m.compute_costs())}, TypeError, "function must consist of operations of JAX"),
    ({"function": lambda m: 1.0 if m.prices[0] > 0 else 2.0}, TypeError, "and no conditions on values"),
    ({"constant_costs": False}, ValueError, "iteration and constant_costs are about prices .* hold='xi'"),
    ({"iteration": blpjax.Iteration()}, ValueError, "iteration and constant_costs are about prices .* hold='xi'"),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        solved("linear costs").delta_method(**{"function": lambda m: m.compute_costs(), **arguments})


@pytest.mark.usefixtures("small_limit")
def test_absurd_sizes_are_refused_before_anything_is_computed() -> None:
    results = solved("linear costs")
    with pytest.raises(
        ValueError, match=r"Derivatives of 841 outputs \(shapes \(29, 29\)\) in 10 parameters would take"
    ):
        results.delta_method(lambda m: m.compute_prices() - m.prices[None, :])
    found = results.delta_method(lambda m: m.compute_profits()[:, 0] + jnp.zeros(29))
    assert found.covariances.shape == (29, 29)
    many = results.delta_method(lambda m: jnp.broadcast_to(m.prices[:1], (64,)))
    with pytest.raises(ValueError, match="Covariances of 64 outputs would take .* Use jacobian"):
        print(many.covariances)


@pytest.mark.usefixtures("unchecked_types")
def test_levels_of_confidence_are_between_zero_and_one() -> None:
    found = solved("linear costs").delta_method(lambda m: m.compute_costs())
    with pytest.raises(ValueError, match=r"level must be between zero and one, such as 0.95, not 95"):
        found.confidence_intervals(95)


def test_unknown_covariances_are_refused() -> None:
    results = copy.copy(solved("linear costs"))
    results.parameter_covariances = np.full_like(results.parameter_covariances, np.nan)
    with pytest.raises(ValueError, match="parameter_covariances of these results are unknown. Use results of the last"):
        results.delta_method(lambda m: m.compute_costs())


@pytest.mark.parametrize("case", mostly_slow(["linear costs", "logit"], ["logit"]))
def test_markets_without_an_equilibrium_at_the_estimates_are_named(case: str) -> None:
    """Costs that were clipped make other prices optimal, which a loop that is cut short does not find."""
    results = CASES[case].solve(costs_bounds=(1.5, None))
    short = blpjax.Iteration("simple", {"max_evaluations": 2})
    with pytest.warns(ConvergenceWarning, match="prices at the estimates reached the maximum .* in . of 4 markets: 'm"):
        found = results.delta_method(lambda m: m.prices, "xi", iteration=short)
    assert np.isnan(found.value).any()
    np.testing.assert_array_equal(np.isnan(found.standard_errors), np.isnan(found.value))
    if case == "linear costs":
        assert np.isfinite(results.delta_method(lambda m: m.prices, "xi").standard_errors).all()


def test_fixed_parameters_have_no_errors() -> None:
    """Nothing is left to be uncertain about."""
    case = dataclasses.replace(CASES["logit"], model=joint.Model(X2=None, X3=None, demographics=None))
    beta = np.array([-0.5, -2.0, 1.0, 0.5])
    results = case.solve(beta=beta, beta_bounds=(beta, beta))
    for hold in ("shares", "xi"):
        found = results.delta_method(lambda m: m.compute_elasticities(), hold)
        assert found.jacobian.shape == (232, 0)
        assert (found.standard_errors[np.isfinite(found.value)] == 0).all()
