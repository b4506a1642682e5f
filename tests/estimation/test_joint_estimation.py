"""Demand and supply together: PyBLP evaluates the same economies, derivatives meet central differences, errors."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyblp
import pytest

import blpjax
from blpjax.exceptions import ConvergenceError, ConvergenceWarning, DataError, IdentificationWarning
from tests.support import joint
from tests.support.designs import mostly_slow
from tests.support.joint import Model
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, ESTIMATES, FIXED_PARAMETERS

pytestmark = pytest.mark.usefixtures("quiet")

SIGMA = np.diag([0.5, 0.7])
PI = np.array([[0.2], [0.0]])
BETA = [None, -2.5, None, None]

BY_ROW = ("xi", "omega", "xi_fe", "omega_fe", "xi_by_theta_jacobian", "omega_by_theta_jacobian", "tilde_costs")
EVALUATED = (
    *("theta", "objective", "gradient", "projected_gradient", "moments", "moments_jacobian", *BY_ROW),
    *("parameters", "parameter_covariances", "sigma_se", "pi_se", "beta", "beta_se", "gamma", "gamma_se"),
    *("W", "updated_W", "clipped_costs", "clipped_shares"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of one of the economies, what `solve` is given, and how its tables differ."""

    model: Model = Model()
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    costs_type: str = "linear"
    importance: bool = False
    change: Callable[[pd.DataFrame], pd.DataFrame] = lambda products: products

    def build(self, library: Any) -> Any:
        products, agents = joint.tables(3, self.costs_type, self.importance)
        options = {"costs_type": self.costs_type} | dict(self.model.options)
        return dataclasses.replace(self.model, options=options).build(
            library, self.change(products), agents if self.model.X2 else None
        )

    def solve(self, library: Any, **more: Any) -> Any:
        """Results at the starting values."""
        chosen: dict[str, Any] = {
            "sigma": SIGMA,
            "pi": PI,
            "beta": BETA,
            "method": "1s",
            "optimization": library.Optimization("return"),
            "iteration": library.Iteration("squarem", {"atol": 1e-14}),
            "check_optimality": "gradient",
        }
        problem = self.build(library)
        with joint.quiet():
            return problem.solve(**chosen | dict(self.arguments) | more)


def monopoly(products: pd.DataFrame) -> pd.DataFrame:
    return products.assign(firm_ids="one")


def single_products(products: pd.DataFrame) -> pd.DataFrame:
    return products.assign(firm_ids=np.arange(len(products)))


def more_instruments(products: pd.DataFrame) -> pd.DataFrame:
    """Three more for demand and for supply: enough without characteristics, or without fixed effects."""
    rng = np.random.default_rng(4)
    numbers = (*(f"demand_instruments{6 + m}" for m in range(3)), *(f"supply_instruments{4 + m}" for m in range(3)))
    return products.assign(**{name: products["x"] + rng.normal(size=len(products)) for name in numbers})


def covariance_instruments(products: pd.DataFrame) -> pd.DataFrame:
    """Two instruments whose products with xi and omega are a moment each."""
    return products.assign(covariance_instruments0=1.0, covariance_instruments1=products["x"])


FIXED_EFFECTS = Model(
    X1="0 + prices + x + y", absorb_demand="C(product_ids)", absorb_supply="C(product_ids)", X3="0 + w + x"
)
TWO_FIXED_EFFECTS = dataclasses.replace(
    FIXED_EFFECTS, absorb_demand="C(market_ids) + C(product_ids)", absorb_supply="C(market_ids) + C(product_ids)"
)
WITHOUT_CONSTANT = [-2.5, None, None]
# Estimates of some costs at the parameters above are below the first and others above the second.
CLIPPING = (1.2, 1.9)

CASES = {
    "linear costs": Case(),
    "log costs": Case(costs_type="log"),
    "clipped linear costs": Case(arguments={"costs_bounds": CLIPPING}),
    "clipped log costs": Case(
        arguments={"costs_bounds": CLIPPING, "W_type": "clustered", "se_type": "clustered"}, costs_type="log"
    ),
    "lower bounds only": Case(arguments={"costs_bounds": (1.2, None)}, costs_type="log"),
    "upper bounds only": Case(arguments={"costs_bounds": (None, 1.9)}),
    "asymmetric partial ownership": Case(change=joint.with_asymmetric_ownership, costs_type="log"),
    "single-product firms": Case(change=single_products),
    "monopoly": Case(change=monopoly, costs_type="log", arguments={"costs_bounds": (1e-3, None)}),
    "shares in costs": Case(Model(X3="1 + w + shares")),
    "squared shares in log costs": Case(Model(X3="1 + w + x + I(shares**2)"), costs_type="log"),
    "shares times a characteristic in costs": Case(Model(X3="1 + w + shares:x")),
    "fixed effects": Case(FIXED_EFFECTS, {"beta": WITHOUT_CONSTANT}, change=more_instruments),
    "two-way fixed effects": Case(TWO_FIXED_EFFECTS, {"beta": WITHOUT_CONSTANT}, change=more_instruments),
    "fixed effects of costs": Case(Model(X3="0 + w + x", absorb_supply="C(firm_ids)"), costs_type="log"),
    "no exogenous instruments": Case(Model(options={"add_exogenous": False}), change=more_instruments),
    "tastes for prices": Case(
        Model(X1="1 + x + y", X2="1 + prices", demographics="1 + income"),
        {"beta": None, "sigma": np.diag([0.5, 0.1]), "pi": [[0.0, 0.3], [-2.5, 0.2]]},
    ),
    "logarithm of prices": Case(Model(X1="1 + log(prices) + prices:x + y"), {"beta": [None, -4.0, -0.2, None]}),
    "fixed price coefficient": Case(
        arguments={"beta_bounds": ([-np.inf, -2.5, -np.inf, -np.inf], [np.inf, -2.5, np.inf, np.inf])}
    ),
    "some gammas in theta": Case(arguments={"gamma": [0.8, None, 0.3]}),
    "all betas and gammas in theta": Case(
        arguments={"beta": [-0.4, -2.5, 0.8, 0.4], "gamma": [0.8, 0.5, 0.3]}, costs_type="log"
    ),
    "gamma fixed at zero": Case(arguments={"gamma": [None, 0.5, 0.0]}),
    "beta fixed at zero": Case(arguments={"beta": [None, -2.5, 0.8, 0.0]}),
    "unadjusted": Case(arguments={"W_type": "unadjusted", "se_type": "unadjusted"}),
    "unadjusted, not centered": Case(
        arguments={"W_type": "unadjusted", "se_type": "unadjusted", "center_moments": False}, costs_type="log"
    ),
    "clustered, not centered": Case(arguments={"W_type": "clustered", "se_type": "clustered", "center_moments": False}),
    "robust W, clustered errors": Case(arguments={"se_type": "clustered"}),
    "two steps": Case(arguments={"method": "2s", "W_type": "clustered", "se_type": "robust"}, costs_type="log"),
    "two unadjusted steps after an update": Case(
        arguments={"method": "2s", "W_type": "unadjusted", "se_type": "unadjusted", "initial_update": True}
    ),
    "unscaled objective": Case(arguments={"scale_objective": False, "W": np.diag(np.linspace(1, 3, 16))}),
    "weights that do not sum to one": Case(importance=True, costs_type="log"),
    "plain logit": Case(Model(X2=None, demographics=None), {"sigma": None, "pi": None}),
    "covariance moments": Case(change=covariance_instruments),
    "covariance moments of log costs": Case(
        arguments={"covariance_moments_mean": 0.02, "W_type": "clustered", "se_type": "clustered"},
        costs_type="log",
        change=covariance_instruments,
    ),
    "covariance moments, unadjusted": Case(
        arguments={"covariance_moments_mean": 0.02, "W_type": "unadjusted", "se_type": "unadjusted", "method": "2s"},
        change=covariance_instruments,
    ),
    "covariance moments with fixed effects": Case(
        FIXED_EFFECTS,
        {"beta": WITHOUT_CONSTANT, "covariance_moments_mean": -0.01},
        change=lambda p: covariance_instruments(more_instruments(p)),
    ),
    "covariance moments, clipped costs, fixed effects of costs": Case(
        Model(X3="0 + w + x", absorb_supply="C(product_ids)"),
        {"costs_bounds": CLIPPING, "method": "2s"},
        costs_type="log",
        change=covariance_instruments,
    ),
}


#: Designs that are compared each time; between them they have all that is different about others.
QUICK = (
    "clipped log costs",
    "asymmetric partial ownership",
    "squared shares in log costs",
    "two-way fixed effects",
    "tastes for prices",
    "covariance moments, clipped costs, fixed effects of costs",
    "two steps",
    "unadjusted, not centered",
    "weights that do not sum to one",
)


# --- both libraries at the same parameters --------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow([*CASES], QUICK))
def test_evaluation_is_that_of_pyblp(name: str) -> None:
    case = CASES[name]
    ours, theirs = case.solve(blpjax), case.solve(pyblp)
    assert ours.converged and theirs.converged
    assert list(ours.theta_labels) == list(theirs.theta_labels)
    DELTA.check(ours.delta, theirs.delta)
    for attribute in EVALUATED:
        expected = getattr(theirs, attribute)
        if np.size(expected):
            FIXED_PARAMETERS.check(getattr(ours, attribute), expected, attribute)
    if "costs_bounds" in case.arguments and "clipped" in name:
        assert 0 < ours.clipped_costs.sum() < ours.problem.N
    if ours.last_results is not None:
        FIXED_PARAMETERS.check(ours.last_results.objective, theirs.last_results.objective, "first step")


def test_dimensions_are_those_of_pyblp() -> None:
    case = CASES["covariance moments, clipped costs, fixed effects of costs"]
    ours, theirs = case.build(blpjax), case.build(pyblp)
    for dimension in ("T", "N", "F", "I", "K1", "K2", "K3", "D", "MD", "MS", "MC", "ED", "ES"):
        assert getattr(ours, dimension) == getattr(theirs, dimension), dimension


# --- what is known of the economy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", [False, True], ids=["equal weights", "weights that do not sum to one"])
@pytest.mark.parametrize("costs_type", mostly_slow(["linear", "log"], ["log"]))
def test_structural_errors_are_recovered_at_the_true_parameters(costs_type: str, importance: bool) -> None:
    case = Case(costs_type=costs_type, importance=importance)
    results = case.solve(
        blpjax, sigma=joint.SIGMA, pi=joint.PI, beta=list(joint.BETA), gamma=_free(joint.GAMMA[costs_type])
    )
    products = joint.tables(3, costs_type, importance)[0]
    gamma = joint.GAMMA[costs_type]
    X3 = np.column_stack([np.ones(len(products)), products["w"], products["x"]])
    costs = np.log(products["costs"]) if costs_type == "log" else products["costs"]
    DELTA.check(results.xi[:, 0], products["xi"])
    DELTA.check(results.tilde_costs[:, 0], costs)
    DELTA.check(results.omega[:, 0], costs - X3 @ _free(gamma))
    if np.array_equal(gamma, _free(gamma)):
        DELTA.check(results.omega[:, 0], products["omega"])


def _free(gamma: np.ndarray) -> np.ndarray:
    """Starting values of zero would fix a parameter at zero."""
    return np.where(gamma == 0, 0.25, gamma)


def test_clipped_costs_are_at_their_bounds_and_do_not_move() -> None:
    results = CASES["clipped log costs"].solve(blpjax)
    clipped = results.clipped_costs[:, 0]
    assert set(np.exp(results.tilde_costs[clipped, 0]).round(12)) == set(CLIPPING)
    assert (np.exp(results.tilde_costs[~clipped, 0]) > CLIPPING[0]).all()
    assert (np.exp(results.tilde_costs[~clipped, 0]) < CLIPPING[1]).all()
    np.testing.assert_array_equal(results.omega_by_theta_jacobian[clipped], 0)
    assert (results.omega_by_theta_jacobian[~clipped] != 0).all()


def test_bounds_that_do_not_bind_change_nothing() -> None:
    bounded = CASES["log costs"].solve(blpjax, costs_bounds=(1e-3, 1e3))
    free = CASES["log costs"].solve(blpjax)
    assert not bounded.clipped_costs.any()
    np.testing.assert_array_equal(bounded.objective, free.objective)


def test_ownership_of_firms_may_be_spelled_out() -> None:
    def columns(products: pd.DataFrame) -> pd.DataFrame:
        ownership = pyblp.build_ownership(products)
        return products.assign(**{f"ownership{j}": ownership[:, j] for j in range(ownership.shape[1])})

    expected = CASES["log costs"].solve(blpjax)
    actual = Case(change=columns, costs_type="log").solve(blpjax)
    for name in ("objective", "gradient", "omega", "parameter_covariances"):
        FIXED_PARAMETERS.check(getattr(actual, name), getattr(expected, name), name)


def test_ownership_needs_no_firms() -> None:
    """PyBLP asks for firm IDs although it does not use them."""
    with_ids = CASES["asymmetric partial ownership"]
    without = Case(
        change=lambda products: joint.with_asymmetric_ownership(products).drop(columns="firm_ids"), costs_type="log"
    )
    expected, actual = with_ids.solve(blpjax), without.solve(blpjax)
    np.testing.assert_array_equal(actual.omega, expected.omega)
    np.testing.assert_array_equal(actual.objective, expected.objective)


def test_names_of_firms_do_not_matter() -> None:
    renamed = Case(change=lambda p: p.assign(firm_ids=p["firm_ids"].map({0: "z", 1: "y", 2: "x"})), costs_type="log")
    expected, actual = CASES["log costs"].solve(blpjax), renamed.solve(blpjax)
    np.testing.assert_array_equal(actual.omega, expected.omega)


def test_the_order_of_rows_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(sum(joint.PRODUCTS))
    shuffled = Case(
        change=lambda p: joint.with_asymmetric_ownership(p.iloc[order].reset_index(drop=True)), costs_type="log"
    ).solve(blpjax)
    expected = CASES["asymmetric partial ownership"].solve(blpjax)
    FIXED_PARAMETERS.check(shuffled.objective, expected.objective)
    for name in ("omega", "xi", "omega_by_theta_jacobian"):
        FIXED_PARAMETERS.check(getattr(shuffled, name), getattr(expected, name)[order], name)


# --- derivatives ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Neighbours:
    """An optimisation routine that stays where it is, and differentiates objective and gradient numerically."""

    gradient: np.ndarray | None = None
    hessian: np.ndarray | None = None

    def __call__(
        self, initial: np.ndarray, bounds: Any, objective_function: Callable, iteration_callback: Callable
    ) -> tuple[np.ndarray, bool]:
        gradient, hessian = [], []
        for j, size in enumerate(np.abs(initial)):
            step = np.zeros_like(initial)
            step[j] = 1e-5 * max(size, 0.1)
            (above, slope_above, *_), (below, slope_below, *_) = (
                objective_function(initial + sign * step) for sign in (1, -1)
            )
            gradient.append((above - below) / (2 * step[j]))
            hessian.append((np.ravel(slope_above) - np.ravel(slope_below)) / (2 * step[j]))
        self.gradient, self.hessian = np.array(gradient), np.array(hessian)
        return initial, False


DIFFERENTIATED = (
    *("linear costs", "clipped log costs", "asymmetric partial ownership", "squared shares in log costs"),
    *(
        "two-way fixed effects",
        "tastes for prices",
        "logarithm of prices",
        "all betas and gammas in theta",
        "plain logit",
    ),
    *("weights that do not sum to one", "covariance moments of log costs", "covariance moments with fixed effects"),
    *("covariance moments, clipped costs, fixed effects of costs", "no exogenous instruments", "unscaled objective"),
)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        DIFFERENTIATED,
        ["tastes for prices"],
    ),
)
def test_gradient_and_hessian_are_exact(name: str) -> None:
    neighbours = Neighbours()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it does not look for an optimum
        results = CASES[name].solve(
            blpjax, optimization=blpjax.Optimization(neighbours), check_optimality="both", method="1s"
        )
    CENTRAL_DIFFERENCE.check(results.gradient[:, 0], neighbours.gradient, "gradient")
    CENTRAL_DIFFERENCE.check(results.hessian, neighbours.hessian, "hessian")


# Places of sigma, pi and the price coefficient in theta.
PLACES = {"sigma": (0, 0), "pi": (0, 0), "beta": 1}


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["clipped linear costs", "log costs", "asymmetric partial ownership"], ["asymmetric partial ownership"]
    ),
)
@pytest.mark.parametrize("parameter", PLACES)
def test_jacobians_of_delta_and_costs_are_exact(name: str, parameter: str) -> None:
    def solve(change: float) -> Any:
        given = {"sigma": SIGMA.copy(), "pi": PI.copy(), "beta": np.array(BETA, dtype=float)}
        given[parameter][PLACES[parameter]] += change
        return CASES[name].solve(blpjax, **given)

    results, step = solve(0.0), 1e-5
    column = {"sigma": 0, "pi": 2, "beta": 3}[parameter]
    above, below = solve(step), solve(-step)
    costs = (above.tilde_costs - below.tilde_costs) / (2 * step)
    CENTRAL_DIFFERENCE.check(results.omega_by_theta_jacobian[:, [column]], costs)
    if parameter != "beta":
        delta = (above.delta - below.delta) / (2 * step)
        CENTRAL_DIFFERENCE.check(results.xi_by_theta_jacobian[:, [column]], delta)


# --- estimation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", mostly_slow(["log costs", "covariance moments", "fixed effects of costs"], ["log costs"])
)
def test_two_steps_end_where_pyblp_has_an_optimum(name: str) -> None:
    """PyBLP evaluates both steps where they end, each with the weights that it computes itself."""
    case, kinds = CASES[name], {"W_type": "clustered", "se_type": "clustered"}
    ours = case.solve(blpjax, optimization=None, method="2s", **kinds)
    assert ours.cumulative_converged and ours.at_bound == []
    weights, errors = None, ("sigma_se", "pi_se", "beta_se", "gamma_se")
    for step in (ours.last_results, ours):
        given = {"sigma": step.sigma, "pi": step.pi, "beta": _only_prices(step.beta, case.arguments.get("beta", BETA))}
        theirs = case.solve(pyblp, W=weights, **given, **kinds)
        assert theirs.projected_gradient_norm < 1e-5
        for attribute in ("objective", "beta", "gamma", "omega", *(errors if step is ours else ())):
            ESTIMATES.check(getattr(step, attribute), getattr(theirs, attribute), attribute)
        weights = theirs.updated_W
    ESTIMATES.check(ours.updated_W, weights)


def _only_prices(beta: np.ndarray, given: list[float | None]) -> list[float | None]:
    """What is to be given of estimates: coefficients that were given before."""
    return [None if before is None else after for before, after in zip(given, beta[:, 0], strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("costs_type", ["linear", "log"])
def test_true_parameters_are_within_sampling_error(costs_type: str) -> None:
    products, agents = joint.tables(5, costs_type, markets=120)
    problem = Model(options={"costs_type": costs_type}).build(blpjax, products, agents)
    results = problem.solve(SIGMA, PI, beta=[None, -1.5, None, None])
    assert results.cumulative_converged
    true = {
        "beta": joint.BETA[:, None],
        "gamma": joint.GAMMA[costs_type][:, None],
        "sigma": joint.SIGMA,
        "pi": joint.PI,
    }
    for name, values in true.items():
        error = getattr(results, f"{name}_se")
        estimated = np.isfinite(error)
        assert estimated.any()
        distance = np.abs(getattr(results, name) - values)[estimated] / error[estimated]
        assert (distance < 4).all(), (name, distance)


# --- errors ---------------------------------------------------------------------------------------------------------


def without_supply_instruments(products: pd.DataFrame) -> pd.DataFrame:
    return products.drop(columns=[name for name in products if name.startswith("supply_instruments")])


def test_the_price_coefficient_must_be_given_with_a_supply_side() -> None:
    with pytest.raises(ValueError, match="prices"):
        Case().solve(blpjax, beta=None)
    with pytest.raises(ValueError, match="prices.x"):
        CASES["logarithm of prices"].solve(blpjax, beta=[None, -4.0, None, None])


def test_costs_need_to_know_who_owns_what() -> None:
    with pytest.raises((KeyError, ValueError), match=r"firm_ids.*ownership|ownership.*firm_ids"):
        Case(change=lambda products: products.drop(columns="firm_ids")).build(blpjax)


def test_costs_cannot_depend_on_prices() -> None:
    with pytest.raises(Exception, match="prices.*X3|X3.*prices"):
        Case(Model(X3="1 + prices")).build(blpjax)


@pytest.mark.slow
def test_shares_need_supply_instruments() -> None:
    with pytest.warns(IdentificationWarning, match="rank 9.*10 parameters.*more instruments"):
        Case(Model(X3="1 + w + shares"), change=without_supply_instruments).solve(blpjax)


def test_ownership_has_a_column_for_each_product_of_the_largest_market() -> None:
    def drop(products: pd.DataFrame) -> pd.DataFrame:
        return joint.with_asymmetric_ownership(products).drop(columns="ownership7")

    with pytest.raises(ValueError, match="8"):
        Case(change=drop).build(blpjax)


def test_missing_ownership_is_no_ownership_of_zero() -> None:
    """PyBLP takes such values for zeros, fails to compute costs, and reports convergence."""

    def hide(products: pd.DataFrame) -> pd.DataFrame:
        owned = joint.with_asymmetric_ownership(products)
        owned.loc[3, "ownership0"] = np.nan
        return owned

    with pytest.raises(ValueError, match="ownership"):
        Case(change=hide).build(blpjax)


def test_products_that_nobody_owns_are_refused() -> None:
    """A matrix of zeros is singular. PyBLP replaces what it cannot compute and reports convergence."""
    nobody = Case(change=lambda products: products.assign(**{f"ownership{j}": 0.0 for j in range(8)}))
    with pytest.raises(DataError, match="'ownership' has zeros only in 71 rows.*reveals no costs"):
        nobody.build(blpjax)


NEGATIVE = [None, -0.4, None, None]


def test_logarithms_of_negative_costs_are_failures_that_name_markets() -> None:
    """PyBLP replaces what it cannot compute and reports convergence."""
    case = CASES["log costs"]
    with pytest.warns(ConvergenceWarning, match="m000"):
        results = case.solve(blpjax, beta=NEGATIVE)
    assert not results.converged and np.isnan(results.objective)
    with pytest.raises(ConvergenceError, match="costs.*m000"):
        case.solve(blpjax, beta=NEGATIVE, error_behavior="raise")


def test_negative_costs_are_no_failure_where_they_need_not_be() -> None:
    assert np.isfinite(CASES["two-way fixed effects"].solve(blpjax, beta=NEGATIVE[1:]).objective)
    bounded = CASES["log costs"].solve(blpjax, beta=NEGATIVE, costs_bounds=(1e-3, None))
    theirs = CASES["log costs"].solve(pyblp, beta=NEGATIVE, costs_bounds=(1e-3, None))
    assert bounded.clipped_costs.sum() > 50
    for name in ("objective", "gradient", "clipped_costs", "gamma_se"):
        FIXED_PARAMETERS.check(getattr(bounded, name), getattr(theirs, name), name)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((1, 2, 3), "costs_bounds.*pair"),
        ((2.0, 1.0), "costs_bounds"),
        (([0.1, 0.2], None), "costs_bounds"),
        (1.0, "costs_bounds"),
    ],
)
def test_bounds_of_costs_are_a_pair_of_numbers(bounds: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Case().solve(blpjax, costs_bounds=bounds)


def test_costs_are_linear_or_logarithmic() -> None:
    with pytest.raises(ValueError, match="costs_type.*linear.*log"):
        Case(Model(options={"costs_type": "quadratic"})).build(blpjax)


DEMAND = Case(Model(X3=None))


@pytest.mark.parametrize("arguments", [{"gamma": [1.0]}, {"covariance_moments_mean": 0.1}], ids=str)
def test_what_belongs_to_the_supply_side_needs_one(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DEMAND.solve(blpjax, **arguments)


def test_a_mean_of_covariances_needs_covariance_instruments() -> None:
    with pytest.raises(ValueError, match="covariance_moments_mean"):
        Case().solve(blpjax, covariance_moments_mean=0.1)


def test_gamma_has_a_value_for_each_column() -> None:
    with pytest.raises(ValueError, match="gamma.*3"):
        Case().solve(blpjax, gamma=[1.0, 2.0])
    with pytest.raises(ValueError, match="gamma"):
        Case().solve(blpjax, gamma=[1.0, None, None], gamma_bounds=([2, 2, 2], [3, 3, 3]))
