import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax.exceptions import (
    ConvergenceWarning,
    DataError,
    NonpositiveSyntheticCostsError,
    SyntheticDeltaConvergenceError,
    SyntheticPricesConvergenceError,
    UnusedOptionWarning,
)
from tests.support.designs import mostly_slow
from tests.support.silence import quiet
from tests.tolerances import DELTA, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

#: Markets of unequal size, rows mixed; firms have one to three products.
SIZES = (4, 3, 5, 4, 5, 3)
FORMULAS = ("1 + prices + x", "1 + x", "1 + x + z")
BETA = [0.5, -2.0, 1.0]
SIGMA = [[0.4, 0], [0, 0.6]]
PI = [[0.3], [0.0]]
GAMMA = {"linear": [0.8, 0.3, 0.5], "log": [0.0, 0.2, 0.3]}


def id_data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [pd.DataFrame({"market_ids": f"m{t}", "firm_ids": rng.permutation(n) % 3}) for t, n in enumerate(SIZES)]
    return pd.concat(rows).sample(frac=1, random_state=1, ignore_index=True)


def partial_ownership(data: pd.DataFrame) -> pd.DataFrame:
    H = blpjax.build_ownership(data, lambda f, g: 1.0 if f == g else (0.3 if f < g else 0.6))
    return data.assign(**{f"ownership{k}": H[:, k] for k in range(H.shape[1])})


def simulate(library: Any, data: Any = None, formulas: tuple[str | None, ...] = FORMULAS, **options: Any) -> Any:
    """Simulate the same economy with PyBLP or blpjax, perhaps with other options (None leaves one out)."""
    chosen = {
        "beta": BETA,
        "sigma": SIGMA,
        "pi": PI,
        "gamma": GAMMA[options.get("costs_type") or "linear"],
        "agent_formulation": library.Formulation("0 + income"),
        "integration": library.Integration("product", 3),
        "seed": 3,
    } | options
    formulations = tuple(None if formula is None else library.Formulation(formula) for formula in formulas)
    given = {name: value for name, value in chosen.items() if value is not None}
    with quiet():
        return library.Simulation(formulations, id_data() if data is None else data, **given)


def solve(simulation: Any, **options: Any) -> Any:
    with quiet():
        return simulation.replace_endogenous(**options)


def both(data: Any = None, formulas: tuple[str | None, ...] = FORMULAS, **options: Any) -> tuple[Any, Any]:
    return simulate(blpjax, data, formulas, **options), simulate(pyblp, data, formulas, **options)


def check_records(actual: np.recarray, expected: np.recarray) -> None:
    assert expected.dtype.names == actual.dtype.names
    for name in actual.dtype.names:
        a, e = actual[name], expected[name]
        assert a.shape == e.shape, name
        assert a.dtype == e.dtype, name
        if a.dtype.kind == "f":
            ROUNDING.check(np.nan_to_num(a), np.nan_to_num(e), name)
        else:
            assert (a == e).all(), name


def check_by_firm(actual: Mapping[Any, Any], expected: Mapping[Any, Any], scale: float) -> None:
    assert list(actual) == list(expected)
    for market, firms in expected.items():
        assert set(actual[market]) == set(firms)
        for firm, values in firms.items():
            np.testing.assert_allclose(actual[market][firm], values, rtol=1e-7, atol=1e-10 * scale)


# construction


@pytest.mark.parametrize(
    ("formulas", "options"),
    [
        (FORMULAS, {}),
        (("1 + z + prices + log(y) + x", "0 + b + x", "a + log(x)"), {"beta": [1, 1, -2, 1, 1], "gamma": [1, 1, 1]}),
        (("1 + prices + x", None, "0 + z"), {"sigma": None, "pi": None, "gamma": [1], "integration": None}),
        (FORMULAS, {"agent_formulation": "0 + income + age", "pi": [[0.1, 0.2], [0, 0]], "correlation": -0.3}),
    ],
)
def test_draws_are_those_of_pyblp(formulas: tuple[str, ...], options: dict[str, Any]) -> None:
    pair = []
    for library in (blpjax, pyblp):
        chosen = dict(options)
        if formulas[1] is None:
            chosen["agent_formulation"] = None
        elif "agent_formulation" in chosen:
            chosen["agent_formulation"] = library.Formulation(chosen["agent_formulation"])
        if formulas[1] is not None:
            chosen["integration"] = library.Integration("monte_carlo", 7, {"seed": 5})
        pair.append(simulate(library, id_data().assign(y=np.arange(1.0, 25.0)), formulas, **chosen))
    actual, expected = pair
    check_records(actual.product_data, expected.product_data)
    if formulas[1] is None:
        assert actual.agent_data is None
        assert actual.I == 0
    else:
        check_records(actual.agent_data, expected.agent_data)
    for name in ("xi", "omega", "beta", "sigma", "pi", "gamma", "rho"):
        ROUNDING.check(getattr(actual, name), getattr(expected, name), name)
    for name in ("T", "N", "F", "I", "K1", "K2", "K3", "D", "MD", "MS", "MC", "ED", "ES", "H", "costs_type"):
        assert getattr(actual, name) == getattr(expected, name), name
    for name in ("market", "firm", "product", "agent", "nesting"):
        assert list(getattr(actual, f"unique_{name}_ids")) == list(getattr(expected, f"unique_{name}_ids"))
    for name in ("X1", "X2", "X3"):
        ROUNDING.check(actual.products[name], expected.products[name], name)
    ROUNDING.check(actual.agents["demographics"], expected.agents["demographics"])


def test_given_variables_are_used_and_data_are_not_changed() -> None:
    rng = np.random.default_rng(1)
    data = id_data().assign(x=rng.uniform(size=24), prices=2.0, shares=0.05, unused="?", product_ids=range(24))
    agents = pd.DataFrame(
        {"market_ids": np.repeat([f"m{t}" for t in range(6)], 4), "weights": 0.25, "income": rng.normal(size=24)}
    ).assign(nodes0=rng.normal(size=24), nodes1=rng.normal(size=24), agent_ids=range(24))
    copies = data.copy(), agents.copy()
    actual, expected = both(data, agent_data=agents, integration=None)
    pd.testing.assert_frame_equal(data, copies[0])
    pd.testing.assert_frame_equal(agents, copies[1])
    check_records(actual.product_data, expected.product_data)
    check_records(actual.agent_data, expected.agent_data)
    assert actual.drawn_variables == ("z",)
    np.testing.assert_array_equal(actual.product_data["x"][:, 0], data["x"])
    np.testing.assert_array_equal(actual.agent_data["income"][:, 0], agents["income"])


def test_integration_replaces_nodes_of_agent_data_with_demographics() -> None:
    agents = pd.DataFrame({"market_ids": np.repeat([f"m{t}" for t in range(6)], 9), "income": np.arange(54.0)})
    actual, expected = both(agent_data=agents)
    check_records(actual.agent_data, expected.agent_data)


def test_categorical_variables_are_those_of_the_table() -> None:
    formulas = ("1 + prices + kind", None, "1 + x")
    options = {"beta": [1, -2, 0.5], "gamma": [1, 1], "sigma": None, "pi": None}
    data = id_data().assign(kind=["a", "b"] * 12)
    actual, expected = both(data, formulas, agent_formulation=None, integration=None, **options)
    check_records(actual.product_data, expected.product_data)
    ROUNDING.check(actual.products["X1"], expected.products["X1"])


def printed(obj: Any) -> str:
    return re.sub(r"\d\d:\d\d:\d\d", "time", str(obj))


def test_tables_are_printed_as_by_pyblp(monkeypatch: pytest.MonkeyPatch) -> None:
    actual, expected = both()
    assert printed(actual) == printed(expected)
    sigma = [[1.0, 0.0], [0.2, 0.3]]
    actual, expected = both(id_data(), (*FORMULAS[:2], None), sigma=sigma, gamma=None, xi=np.zeros(24))
    assert printed(actual) == printed(expected)


# prices and shares


MODELS: dict[str, dict[str, Any]] = {
    "linear costs": {},
    "log costs": {"costs_type": "log"},
    "partial ownership": {"data": partial_ownership(id_data())},
    "given errors": {"xi": np.linspace(-0.5, 0.5, 24), "omega": np.linspace(0.3, -0.3, 24)},
    "shares in costs": {"formulas": ("1 + prices + x", "1 + x", "1 + z + shares"), "gamma": [0.8, 0.5, -0.4]},
    "shares in log costs": {
        "formulas": ("1 + prices + x", "1 + x", "1 + z + shares"),
        "gamma": [0.1, 0.3, -0.4],
        "costs_type": "log",
    },
    "prices in X2": {"formulas": ("1 + prices + x", "1 + prices", "1 + x + z"), "sigma": [[0.4, 0], [0.1, 0.3]]},
}


#: One of each kind: the others are parts of these, or are compared below.
FAST = ("linear costs", "partial ownership", "given errors", "shares in log costs")


@pytest.mark.parametrize("name", mostly_slow([*MODELS], FAST))
def test_equilibrium_is_that_of_pyblp(name: str) -> None:
    options = dict(MODELS[name])
    pair = both(options.pop("data", None), options.pop("formulas", FORMULAS), **options)
    moving = {"constant_costs": False} if "shares" in name else {}
    actual, expected = (solve(simulation, **moving) for simulation in pair)
    for field in ("prices", "shares"):
        DELTA.check(actual.product_data[field], expected.product_data[field], field)
    DELTA.check(actual.delta, expected.delta)
    DELTA.check(actual.costs, expected.costs)
    assert actual.fp_converged.all()
    assert actual.fp_converged.shape == actual.fp_iterations.shape == actual.contraction_evaluations.shape == (6,)
    scale = np.abs(actual.product_data["shares"]).max()
    check_by_firm(actual.profit_gradients, expected.profit_gradients, scale)
    check_by_firm(actual.profit_gradient_norms, expected.profit_gradient_norms, scale)
    check_by_firm(actual.profit_hessians, expected.profit_hessians, scale)
    check_by_firm(actual.profit_hessian_eigenvalues, expected.profit_hessian_eigenvalues, scale)
    assert list(actual.to_dict()) == list(expected.to_dict())


def test_constant_costs_are_those_of_the_simulated_shares() -> None:
    options = dict(MODELS["shares in log costs"])
    formulas = options.pop("formulas")
    actual, expected = (solve(simulation) for simulation in both(None, formulas, **options))
    DELTA.check(actual.product_data["prices"], expected.product_data["prices"])
    DELTA.check(actual.costs, expected.costs)
    moved = solve(actual.simulation, constant_costs=False)
    X3 = np.c_[np.ones(24), actual.product_data["z"], moved.product_data["shares"]]
    DELTA.check(moved.costs, np.exp(X3 @ actual.simulation.gamma + actual.simulation.omega))
    assert np.abs(moved.product_data["prices"] - actual.product_data["prices"]).max() > 1e-3


def test_outputs_at_the_equilibrium_are_those_of_pyblp() -> None:
    actual, expected = (solve(simulation) for simulation in both())
    for name in (
        "compute_elasticities",
        "compute_diversion_ratios",
        "compute_consumer_surpluses",
        "compute_costs",
        "compute_shares",
        "compute_delta",
        "compute_markups",
        "compute_profits",
        "compute_hhi",
        "compute_passthrough",
        "compute_probabilities",
    ):
        with quiet():
            FIXED_PARAMETERS.check(getattr(actual, name)(), getattr(expected, name)(), name)
    merged = np.where(id_data()["firm_ids"] == 2, 1, id_data()["firm_ids"])
    with quiet():
        prices = expected.compute_prices(firm_ids=merged, costs=expected.costs)
    DELTA.check(actual.compute_prices(firm_ids=merged, costs=actual.costs), prices)
    frame = actual.compute_shares(as_frame=True)
    np.testing.assert_array_equal(frame["share"], actual.compute_shares()[:, 0])
    DELTA.check(actual.compute_shares(), actual.product_data["shares"])
    other = blpjax.Integration("monte_carlo", 5, {"seed": 0})
    agents = {"market_ids": np.repeat([f"m{t}" for t in range(6)], 5), "income": np.zeros(30)}
    theirs = pyblp.Integration("monte_carlo", 5, {"seed": 0})
    with quiet():
        shares = expected.compute_shares(agent_data=agents, integration=theirs)
    FIXED_PARAMETERS.check(actual.compute_shares(agent_data=agents, integration=other), shares)
    with pytest.raises(TypeError, match="no standard errors: its parameters are known"):
        actual.compute_shares(standard_errors=True)


#: A plain logit.
LOGIT = {"sigma": None, "pi": None, "agent_formulation": None, "integration": None}


@pytest.mark.slow
def test_costs_and_no_supply_side() -> None:
    options = {"formulas": (FORMULAS[0], None, None), "gamma": None, "xi": np.zeros(24), **LOGIT}
    costs = np.linspace(0.5, 1.5, 24)
    actual, expected = (solve(simulation, costs=costs) for simulation in both(**options))
    DELTA.check(actual.product_data["prices"], expected.product_data["prices"])
    np.testing.assert_array_equal(actual.costs[:, 0], costs)
    assert actual.simulation.omega is None
    with pytest.raises(ValueError, match="costs must be given, because X3 was not formulated"):
        actual.simulation.replace_endogenous()


def test_prices_may_be_chosen() -> None:
    actual, expected = both()
    prices = np.linspace(1.0, 3.0, 24)
    results = solve(actual, prices=prices, iteration=blpjax.Iteration("return"))
    theirs = solve(expected, prices=prices, iteration=pyblp.Iteration("return"))
    np.testing.assert_array_equal(results.product_data["prices"][:, 0], prices)
    DELTA.check(results.product_data["shares"], theirs.product_data["shares"])
    check_by_firm(results.profit_gradients, theirs.profit_gradients, 1.0)
    check_by_firm(results.profit_hessians, theirs.profit_hessians, 1.0)
    assert not results.fp_iterations.any()
    competition = solve(actual, iteration=blpjax.Iteration("return"))
    np.testing.assert_array_equal(competition.product_data["prices"], competition.costs)


@pytest.mark.slow
def test_simulation_of_a_merger_after_estimation() -> None:
    """Estimates, errors and costs in a simulation give the prices that `compute_prices` gives."""
    first = solve(simulate(blpjax))
    formulas = ("1 + prices + x", None, None)
    with quiet():
        results = first.to_problem(blpjax.Formulation(formulas[0])).solve(method="1s")
    merged = id_data()["firm_ids"].replace({2: 1})
    costs = results.compute_costs()
    data = {**blpjax.data_to_dict(first.product_data), "firm_ids": merged}
    options = {"gamma": None, "sigma": None, "pi": None, "agent_formulation": None, "integration": None}
    simulation = simulate(blpjax, data, formulas, beta=results.beta, xi=results.xi, **options)
    assert simulation.drawn_variables == ()
    again = solve(simulation, costs=costs)
    DELTA.check(again.product_data["prices"], results.compute_prices(firm_ids=merged, costs=costs))
    DELTA.check(again.costs, costs)
    unchanged = solve(simulation, costs=costs, prices=data["prices"], iteration=blpjax.Iteration("return"))
    DELTA.check(unchanged.product_data["shares"], first.product_data["shares"])


def test_equilibria_from_different_starting_prices() -> None:
    simulation = simulate(blpjax)
    base = solve(simulation)
    rng = np.random.default_rng(0)
    for _ in range(20):
        start = base.costs[:, 0] * rng.uniform(0.2, 3.0) + rng.uniform(0, 3, 24)
        found = solve(simulation, prices=start)
        DELTA.check(found.product_data["prices"], base.product_data["prices"])
    norms = [norm for firms in base.profit_gradient_norms.values() for norm in firms.values()]
    assert max(norms) < 1e-12
    largest = [values.max() for firms in base.profit_hessian_eigenvalues.values() for values in firms.values()]
    assert max(largest) < 0


def test_conditions_are_derivatives_of_profits() -> None:
    """Central differences of firms' profits at prices that are no equilibrium."""
    simulation = simulate(blpjax)
    costs = solve(simulation).costs[:, 0]
    prices = costs + np.linspace(0.3, 1.0, 24)
    results = solve(simulation, prices=prices, iteration=blpjax.Iteration("return"))
    firms, markets = id_data()["firm_ids"].to_numpy(), id_data()["market_ids"].to_numpy()
    rows = np.flatnonzero((markets == "m2") & (firms == 0))
    assert rows.size == 2

    def profits(p: np.ndarray) -> float:
        return ((p - costs) * results.compute_shares(prices=p)[:, 0])[rows].sum()

    h = 1e-3
    steps = h * np.eye(24)[rows]
    gradient = [(profits(prices + e) - profits(prices - e)) / (2 * h) for e in steps]
    np.testing.assert_allclose(results.profit_gradients["m2"][0], gradient, rtol=1e-4, atol=1e-6)
    hessian = [
        [
            (profits(prices + e + d) - profits(prices + e - d) - profits(prices - e + d) + profits(prices - e - d))
            / (4 * h**2)
            for d in steps
        ]
        for e in steps
    ]
    np.testing.assert_allclose(results.profit_hessians["m2"][0], hessian, rtol=1e-4, atol=1e-6)
    eigenvalues = np.linalg.eigvalsh(results.profit_hessians["m2"][0])
    LINEAR_ALGEBRA.check(results.profit_hessian_eigenvalues["m2"][0], eigenvalues)
    assert results.profit_gradient_norms["m2"][0] == np.abs(results.profit_gradients["m2"][0]).max()


def test_conditions_may_be_left_out() -> None:
    simulation = simulate(blpjax)
    results = solve(simulation, compute_gradients=False, compute_hessians=False)
    assert results.profit_gradients is results.profit_gradient_norms is None
    assert results.profit_hessians is results.profit_hessian_eigenvalues is None
    assert "Profit" not in str(results)
    gradients = solve(simulation, compute_hessians=False)
    assert gradients.profit_gradients is not None
    assert gradients.profit_hessians is None
    assert "Max Norm" in str(gradients)
    assert "Eigenvalue" not in str(gradients)


def test_summary_is_printed_as_by_pyblp() -> None:
    simulations = both()
    prices = np.linspace(1.0, 3.0, 24)
    tables = [
        printed(solve(simulation, prices=prices, iteration=library.Iteration("return")))
        for simulation, library in zip(simulations, (blpjax, pyblp), strict=True)
    ]
    assert tables[0] == tables[1]


def test_failed_inversions_name_their_markets() -> None:
    data, options = id_data().assign(prices=2.0), {"beta": [0.5, -2.0, 1.0, 0.7]}
    simulation = simulate(blpjax, data, ("1 + prices + x + v", "1 + x", "1 + x + w"), **options)
    hopeless = blpjax.Iteration("anderson", {"max_evaluations": 1})
    with pytest.raises(SyntheticDeltaConvergenceError, match="inversion of market shares .* in 6 of 6 markets: 'm0'"):
        simulation.replace_exogenous("v", "w", iteration=hopeless)


def test_upward_sloping_demand_names_its_markets() -> None:
    simulation = simulate(blpjax, beta=[0.5, 2.0, 1.0])
    message = r"The search for equilibrium prices .* in 6 of 6 markets: 'm0', 'm1', 'm2', 'm3', 'm4' and 1 more"
    with pytest.raises(SyntheticPricesConvergenceError, match=message):
        simulation.replace_endogenous()
    with pytest.warns(ConvergenceWarning, match=message):
        results = simulation.replace_endogenous(error_behavior="warn")
    assert np.isnan(results.product_data["prices"]).all()
    assert np.isnan(results.product_data["shares"]).all()
    assert not results.fp_converged.any()
    assert np.isnan(list(results.profit_gradient_norms["m0"].values())).all()
    assert "6" in str(results)
    with pytest.raises(DataError, match="product_data: column 'shares' has missing values"):
        results.to_problem()


def test_failure_of_one_market_leaves_the_others_alone() -> None:
    xi, omega = np.zeros(24), np.zeros(24)
    good = solve(simulate(blpjax, xi=xi, omega=omega))
    costs = good.costs[:, 0].copy()
    bad = (id_data()["market_ids"] == "m3").to_numpy()
    costs[bad] = 1e4  # nobody buys at such prices
    with pytest.warns(ConvergenceWarning, match="in 1 of 6 markets: 'm3'"):
        found = good.simulation.replace_endogenous(costs=costs, error_behavior="warn")
    assert np.isnan(found.product_data["prices"][bad]).all()
    assert not found.fp_converged[3]
    assert found.fp_converged.sum() == 5
    DELTA.check(found.product_data["prices"][~bad], good.product_data["prices"][~bad])
    elasticities = found.compute_elasticities()
    DELTA.check(elasticities[~bad], good.compute_elasticities()[~bad])
    assert np.isnan(elasticities[bad]).all()


# exogenous characteristics


@pytest.mark.parametrize("costs_type", mostly_slow(["linear", "log"], ["linear"]))
def test_exogenous_characteristics_are_those_of_pyblp(costs_type: str) -> None:
    formulas = ("1 + prices + x + v", "1 + x", "1 + x + w")
    rng = np.random.default_rng(2)
    data = id_data().assign(shares=rng.uniform(0.02, 0.15, 24), prices=rng.uniform(2, 3, 24))
    options = {"beta": [0.5, -2.0, 1.0, 0.7], "costs_type": costs_type}
    with quiet():
        actual, expected = (simulation.replace_exogenous("v", "w") for simulation in both(data, formulas, **options))
    for name in ("v", "w", "x", "prices", "shares"):
        DELTA.check(actual.product_data[name], expected.product_data[name], name)
    DELTA.check(actual.delta, expected.delta)
    DELTA.check(actual.costs, expected.costs)
    assert actual.profit_gradients is None
    known = actual.simulation
    X1 = np.c_[np.ones(24), data["prices"], known.product_data["x"], actual.product_data["v"]]
    DELTA.check(X1 @ known.beta + known.xi, actual.delta)
    # the replaced data are an equilibrium
    DELTA.check(actual.compute_shares()[:, 0], data["shares"])
    DELTA.check(actual.compute_prices()[:, 0], data["prices"])
    with quiet():
        FIXED_PARAMETERS.check(actual.compute_elasticities("v"), expected.compute_elasticities("v"))
        start = known.replace_exogenous("v", "w", delta=np.zeros(24))
    DELTA.check(start.delta, actual.delta)


def test_exogenous_characteristics_without_supply() -> None:
    options = {"formulas": ("1 + prices + x + v", None, None), "beta": [0.5, -2.0, 1.0, 0.7], "xi": np.zeros(24)}
    with quiet():
        actual, expected = (simulation.replace_exogenous("v") for simulation in both(**options, gamma=None, **LOGIT))
    DELTA.check(actual.product_data["v"], expected.product_data["v"])
    assert actual.costs is None
    with pytest.raises(ValueError, match="X3_name would not be used"):
        actual.simulation.replace_exogenous("v", "x")


def test_log_costs_that_are_not_positive_name_their_markets() -> None:
    formulas = ("1 + prices + x + v", None, "1 + x + w")
    data = id_data().assign(prices=2.0)
    data.loc[data["market_ids"] == "m4", "prices"] = 0.01
    options = {"beta": [0.5, -2.0, 1.0, 0.7], "costs_type": "log", **LOGIT}
    simulation = simulate(blpjax, data, formulas, **options)
    message = "logarithms of marginal costs that are not positive .* in 1 of 6 markets: 'm4'"
    with pytest.raises(NonpositiveSyntheticCostsError, match=message):
        simulation.replace_exogenous("v", "w")
    with pytest.warns(ConvergenceWarning, match=message):
        results = simulation.replace_exogenous("v", "w", error_behavior="warn")
    missing = np.isnan(results.product_data["w"][:, 0])
    assert set(data.loc[missing, "market_ids"]) == {"m4"}
    assert np.isfinite(results.product_data["v"]).all()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x", "w"), "X1_name must be in one column of X1 only, but 'x' is also in 'x' in X2, 'x' in X3"),
        (("prices", "w"), "X1_name must be an exogenous variable, not 'prices'"),
        (
            ("q", "w"),
            "X1_name must be a variable that X1 has as a column of its own, not 'q'. Columns of X1 are 1, pri",
        ),
        (("v",), "X3_name must be given, because X3 was formulated"),
        (("v", "x"), "X3_name must be in one column of X3 only"),
        (("u", "w"), "X1_name='u' has a coefficient of zero"),
        (("k", "w"), "X1_name must be a variable that X1 has as a column of its own, not 'k'"),
    ],
)
def test_names_of_exogenous_characteristics(names: tuple[str, ...], message: str) -> None:
    formulas = ("1 + prices + x + v + u + log(k)", "1 + x", "1 + x + w")
    simulation = simulate(blpjax, None, formulas, beta=[0.5, -2.0, 1.0, 0.7, 0.0, 0.1])
    with pytest.raises(ValueError, match=re.escape(message)):
        simulation.replace_exogenous(*names)


# problems


@pytest.mark.parametrize(
    ("formulas", "beta", "gamma", "balanced"),
    [
        (FORMULAS, BETA, GAMMA["linear"], False),
        pytest.param(
            ("1 + prices + x + I(y**2)", "1 + x", "0 + x + z"),
            [0.5, -2, 1, 0.3],
            [0.5, 0.5],
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("0 + prices + x:y", "0 + y + x", "1 + log(z)"), [-2, 1], [1.5, 0.1], True, marks=pytest.mark.slow
        ),
        pytest.param(
            ("1 + prices + prices:x + x", "1 + x", "1 + z + shares"),
            [0.5, -2, 0.1, 1],
            [0.8, 0.5, 0.1],
            True,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("1 + prices + kind + x", "1 + x", "1 + kind"), [0.5, -2, 0.2, 1], [0.8, 0.5], False, marks=pytest.mark.slow
        ),
    ],
)
def test_problems_have_the_instruments_of_pyblp(
    formulas: tuple[str, ...], beta: list[float], gamma: list[float], balanced: bool
) -> None:
    data = pd.DataFrame(blpjax.data_to_dict(blpjax.build_id_data(6, 4, 3))) if balanced else id_data()
    data["kind"] = np.where(np.arange(24) % 3 == 0, "a", "b")
    actual, expected = (
        solve(simulation, compute_hessians=False) for simulation in both(data, formulas, beta=beta, gamma=gamma)
    )
    with quiet():
        problem, theirs = actual.to_problem(), expected.to_problem()
    for name in ("ZD", "ZS", "X1", "X2", "X3", "shares", "prices"):
        DELTA.check(problem.products[name], theirs.products[name], name)
    for name in ("nodes", "weights", "demographics"):
        ROUNDING.check(problem.agents[name], theirs.agents[name], name)
    assert (problem.MD, problem.MS, problem.K3, problem.D) == (theirs.MD, theirs.MS, theirs.K3, theirs.D)


def lagged_data() -> pd.DataFrame:
    """IDs with lags: the product of the same number in the market before, where there is one."""
    data = id_data()
    numbers = data.groupby("market_ids").cumcount()
    rows = {key: row for row, key in enumerate(zip(data.market_ids, numbers, strict=True))}
    keys = ((f"m{int(market[1:]) - 1}", number) for market, number in zip(data.market_ids, numbers, strict=True))
    return data.assign(lag_indices=[rows.get(key, row) for row, key in enumerate(keys)])


PHI = [[0.5, 0.1], [-0.2, 0.7]]
MOMENTS = {"xi_variance": 0.2, "omega_variance": 0.3, "correlation": 0.4}


@pytest.mark.slow
def test_errors_that_follow_from_lags_are_those_of_pyblp() -> None:
    data = lagged_data()
    ours, theirs = both(data, phi=PHI, **MOMENTS)
    np.testing.assert_array_equal(ours.xi, theirs.xi)
    np.testing.assert_array_equal(ours.omega, theirs.omega)
    np.testing.assert_array_equal(ours.phi, theirs.phi)
    lags = data.lag_indices.to_numpy()
    later = lags != np.arange(lags.size)
    assert 0 < later.sum() < lags.size and (later & later[lags]).any()
    # what is left are the draws without lags
    plain = simulate(blpjax, data.drop(columns="lag_indices"), **MOMENTS)
    errors, drawn = (np.hstack([one.xi, one.omega]) for one in (ours, plain))
    ROUNDING.check((errors - errors[lags] @ np.array(PHI).T)[later], drawn[later])
    check_records(ours.product_data, theirs.product_data)
    check_records(ours.products, theirs.products)
    assert "Phi True Values" in str(ours) and "+7.000000E-01" in str(ours)
    results = solve(ours)
    np.testing.assert_array_equal(results.product_data.lag_indices, theirs.product_data.lag_indices)
    with quiet():
        assert results.to_problem().products.lag_indices.shape == (lags.size, 1)


def test_errors_in_initial_periods_are_stationary() -> None:
    """Their covariances solve ``V = phi V phi' + innovations``, by a long sum here."""
    T = 40_000
    data = {"market_ids": np.arange(T), "firm_ids": np.zeros(T), "lag_indices": np.r_[np.arange(T - 1), T - 1]}
    data["lag_indices"] = np.where(np.arange(T) % 2 == 0, np.arange(T), np.arange(T) - 1)
    found = simulate(
        blpjax,
        data,
        ("1 + prices", None, "1"),
        beta=[1, -1],
        gamma=[1],
        sigma=None,
        pi=None,
        phi=PHI,
        agent_formulation=None,
        integration=None,
        **MOMENTS,
    )
    V = np.array([[0.2, 0.4 * np.sqrt(0.06)], [0.4 * np.sqrt(0.06), 0.3]])
    total, power = np.zeros((2, 2)), np.eye(2)
    for _ in range(200):
        total, power = total + power @ V @ power.T, np.array(PHI) @ power
    errors = np.hstack([found.xi, found.omega])
    for rows in (errors[::2], errors[1::2]):
        np.testing.assert_allclose(np.cov(rows, rowvar=False), total, rtol=0.05)


@pytest.mark.usefixtures("unchecked_types")
def test_phi_of_simulations_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = lagged_data()
    for phi, message in (
        (None, "phi must be given, because product_data has lag_indices"),
        (0.5, r"phi must have the shape \(2, 2\)"),
        (np.diag([0.5, 1.2]), "phi must be stable, with eigenvalues below one .* the largest is 1.2"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate(blpjax, data, phi=phi)
    with pytest.raises(ValueError, match="With phi, variances must be positive and correlation between"):
        simulate(blpjax, data, phi=PHI, correlation=1)
    monkeypatch.setattr(blpjax.options, "stable_atol", np.inf)
    with pytest.raises(ValueError, match="With phi, .* must not have an eigenvalue"):
        simulate(blpjax, data, phi=np.diag([0.5, 1.2]))
    # errors that are given are errors
    xi = np.ones(len(data))
    given = simulate(blpjax, data, phi=np.diag([0.5, 1.2]), xi=xi, omega=xi)
    np.testing.assert_array_equal(given.xi[:, 0], xi)


def test_arguments_of_problems() -> None:
    results = solve(simulate(blpjax, costs_type="log"))
    with quiet():
        same = results.to_problem()
        assert same.costs_type == "log"
        logit = results.to_problem(blpjax.Formulation("1 + prices + x"))
        assert (logit.K2, logit.K3, logit.I, logit.MD, logit.costs_type) == (0, 0, 0, same.MD, "linear")
        demand = results.to_problem((blpjax.Formulation("1 + prices"), blpjax.Formulation("0 + x")))
        assert (demand.K1, demand.K2, demand.D, demand.I) == (2, 1, 1, same.I)
        other = results.to_problem(
            (blpjax.Formulation("1 + prices"), blpjax.Formulation("0 + x"), blpjax.Formulation("1 + z")),
            integration=blpjax.Integration("product", 2),
            costs_type="linear",
            add_exogenous=False,
        )
        assert (other.costs_type, other.I, other.add_exogenous) == ("linear", 6 * 2, False)
        data = {**blpjax.data_to_dict(results.product_data), "demand_instruments0": np.arange(24.0)}
        replaced = results.to_problem(blpjax.Formulation("1 + prices + x"), data)
        assert replaced.MD == 3  # the given one, 1 and x
        changed = results.to_problem(rc_types=["log", "linear"], epsilon_scale=0.5)
        assert (changed.rc_types, changed.epsilon_scale) == (["log", "linear"], 0.5)
    # what is shown can be used
    known, formulations = results.simulation, (blpjax.Formulation("1 + prices"), blpjax.Formulation("0 + x"))
    with quiet():
        again = blpjax.Problem(formulations, results.product_data, blpjax.Formulation("0 + income"), known.agent_data)
    assert (again.N, again.I, again.D) == (known.N, known.I, 1)


# what is refused


def test_ownership_without_firms() -> None:
    data = partial_ownership(id_data()).drop(columns="firm_ids")
    simulation = simulate(blpjax, data)
    with pytest.raises(ValueError, match="there is no column 'firm_ids' in product_data. Add it, or use compute_grad"):
        simulation.replace_endogenous()
    found = solve(simulation, compute_gradients=False, compute_hessians=False)
    expected = solve(simulate(blpjax, partial_ownership(id_data())))
    DELTA.check(found.product_data["prices"], expected.product_data["prices"])
    with quiet():
        problem = found.to_problem()
    # one, x and z over all other products, then shifters and exogenous columns
    assert problem.MD == 2 + 1 + 2


def test_firms_are_needed() -> None:
    data = id_data().drop(columns="firm_ids")
    with pytest.raises(DataError, match="a supply side .X3. needs a column 'firm_ids', or 'ownership'"):
        simulate(blpjax, data)
    simulation = simulate(blpjax, data, (*FORMULAS[:2], None), gamma=None, xi=np.zeros(24))
    with pytest.raises(ValueError, match="Equilibrium prices need a column 'firm_ids' in product_data"):
        simulation.replace_endogenous(costs=np.ones(24))


ZEROS = np.zeros(24)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": id_data().drop(columns="market_ids")}, DataError, "no column 'market_ids', which every simulation"),
        ({"data": id_data().assign(x0=1.0)}, DataError, "there is a column 'x0' but none called 'x', which formulas"),
        ({"data": id_data().assign(shares=0.5)}, DataError, "column 'shares' sums to one or more in 6 markets"),
        ({"data": id_data().assign(nesting_ids=1)}, ValueError, "rho must be given: an array of shape (1,)"),
        ({"beta": [0.5, -2.0]}, ValueError, "beta must have the shape"),
        ({"beta": [0.5, None, 1.0]}, ValueError, "beta and gamma must have no missing elements"),
        ({"gamma": None}, ValueError, "gamma must be given: an array of 3 true parameters"),
        ({"sigma": None}, ValueError, "sigma must be given"),
        ({"sigma": [[0.4, 0.2], [0, 0.6]]}, ValueError, "sigma must be lower-triangular"),
        ({"data": id_data().assign(nesting_ids=1), "rho": -0.1}, ValueError, "rho must not be negative, but is -0.1"),
        ({"pi": None}, ValueError, "pi must be given"),
        ({"formulas": (*FORMULAS[:2], None), "xi": ZEROS}, ValueError, "gamma must not be given, because X3 was not"),
        ({"formulas": (*FORMULAS[:2], None), "gamma": None}, ValueError, "xi must be given when X3 is not formulated"),
        ({"omega": ZEROS}, ValueError, "xi must be given when X3 is not formulated or omega is given"),
        ({"xi": ZEROS}, ValueError, "omega must be given when X3 is formulated and xi is given"),
        ({"xi": ZEROS, "omega": [1, 2]}, ValueError, "omega must hold 24 finite numbers"),
        ({"xi": ["a"], "omega": ZEROS}, ValueError, "xi must be an array of numbers"),
        ({"xi": ZEROS, "omega": ZEROS, "xi_variance": 2.0}, ValueError, "xi_variance would not be used, because xi is"),
        (
            {"formulas": (*FORMULAS[:2], None), "gamma": None, "xi": ZEROS, "omega": ZEROS},
            ValueError,
            "omega would not be used, because X3 was not formulated",
        ),
        ({"correlation": 1.5}, ValueError, "correlation between -1 and 1, but they are 1, 1 and 1.5"),
        ({"omega_variance": -1.0}, ValueError, "xi_variance and omega_variance must be non-negative"),
        ({"integration": None}, ValueError, "X2 needs agents"),
        (
            {"formulas": (FORMULAS[0], None, FORMULAS[2]), "sigma": None, "pi": None},
            ValueError,
            "agent_formulation and integration would not be used",
        ),
        ({"formulas": ("1 + x", *FORMULAS[1:])}, ValueError, "Neither X1 nor X2 depends on 'prices'"),
        ({"rho": 0.5}, ValueError, "rho must not be given, because there are no nesting_ids"),
        ({"phi": 0.5}, ValueError, "phi must not be given, because product_data has no lag_indices"),
        ({"rc_types": ["log"]}, ValueError, "rc_types must be a list with a type for each of the 2 columns of X2"),
        ({"epsilon_scale": -1.0}, ValueError, "epsilon_scale must be a positive number, not -1.0"),
        ({"costs_type": "square", "gamma": [1, 1, 1]}, ValueError, "costs_type must be one of"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = dict(options)
    data, formulas = given.pop("data", None), given.pop("formulas", FORMULAS)
    chosen: dict[str, Any] = {
        "beta": BETA,
        "sigma": SIGMA,
        "pi": PI,
        "gamma": GAMMA["linear"],
        "agent_formulation": blpjax.Formulation("0 + income"),
        "integration": blpjax.Integration("product", 3),
    } | given
    formulations = tuple(None if formula is None else blpjax.Formulation(formula) for formula in formulas)
    with quiet(), pytest.raises(error, match=re.escape(message)):
        blpjax.Simulation(formulations, id_data() if data is None else data, **chosen)


def test_the_type_of_costs_has_no_effect_without_a_supply_side() -> None:
    formulation = blpjax.Formulation("1 + prices")
    with pytest.warns(UnusedOptionWarning, match="costs_type='log' has no effect: there is no supply side"):
        built = blpjax.Simulation(formulation, id_data(), [-2.0, -1.0], xi=ZEROS, costs_type="log")
    assert built.costs_type == "linear"


def test_absorption_is_refused() -> None:
    formulation = blpjax.Formulation("1 + prices", absorb="C(market_ids)")
    with pytest.raises(ValueError, match="Fixed effects cannot be absorbed in a simulation"):
        blpjax.Simulation(formulation, id_data(), [-2.0], xi=ZEROS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"costs": [1.0]}, ValueError, "costs must hold 24 finite numbers"),
        ({"prices": np.full(24, np.nan)}, ValueError, "prices must hold 24 finite numbers"),
        ({"error_behavior": "ignore"}, ValueError, "error_behavior must be one of ['raise', 'warn'], not 'ignore'"),
    ],
)
def test_arguments_of_replace_endogenous(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        simulate(blpjax).replace_endogenous(**options)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
def test_other_arguments_of_methods() -> None:
    formulas = ("1 + prices + x + v", "1 + x", "1 + x + w")
    simulation = simulate(blpjax, None, formulas, beta=[0.5, -2.0, 1.0, 0.7])
    with pytest.raises(TypeError, match="iteration must be Iteration or None"):
        simulation.replace_endogenous(iteration="squarem")
    usual, other = (
        simulation.replace_exogenous("v", "w", **options)
        for options in ({}, {"fp_type": "nonlinear", "shares_bounds": (None, None)})
    )
    DELTA.check(other.delta, usual.delta)
    assert (other.contraction_evaluations != usual.contraction_evaluations).any()
    with pytest.raises(ValueError, match="fp_type must be one of"):
        simulation.replace_exogenous("v", "w", fp_type="quadratic")
    with pytest.raises(ValueError, match="shares_bounds must be a pair"):
        simulation.replace_exogenous("v", "w", shares_bounds=1e-10)
    with pytest.raises(ValueError, match="delta must hold 24 finite numbers"):
        simulation.replace_exogenous("v", "w", delta=[1.0])
    with pytest.raises(ValueError, match="error_behavior must be one of"):
        simulation.replace_exogenous("v", "w", error_behavior="ignore")


def test_attributes_by_name() -> None:
    results = solve(simulate(blpjax))
    assert set(results.to_dict(["costs", "delta"])) == {"costs", "delta"}
    with pytest.raises(AttributeError, match="theta"):
        results.to_dict(["theta"])
