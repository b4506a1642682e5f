"""Which parameters are free, their order, labels and bounds, and every refusal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyblp
import pytest

from blpjax.exceptions import DataError
from blpjax.model.parameters import Labels, Parameters, compress, expand
from blpjax.model.starting_values import build_parameters
from tests.support.economies import tables
from tests.tolerances import ROUNDING

X1, X2, D = ("1", "prices", "x", "y"), ("1", "prices", "x"), ("income", "age")
SIGMA = np.array([[1.0, 9.0, 9.0], [2.0, 3.0, 9.0], [0.0, 4.0, 5.0]])
PI = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])


def build(**changes: Any) -> Parameters:
    arguments: dict[str, Any] = {
        "sigma": SIGMA,
        "pi": PI,
        "beta": [None, -3.0, np.nan, 0.0],
        "gamma": None,
        "n_node_columns": 3,
    }
    bounds = {name.removesuffix("_bounds"): changes.pop(name) for name in list(changes) if name.endswith("_bounds")}
    labels = {"X1": X1, "X2": X2, "X3": (), "demographics": D} | {
        name: changes.pop(name) for name in ("X1", "X2", "X3", "demographics") if name in changes
    }
    return build_parameters(**(arguments | changes), bounds=bounds, labels=Labels(**labels))


def test_theta_stacks_the_lower_triangle_of_sigma_by_rows_then_pi_by_rows_then_beta() -> None:
    parameters = build()
    assert parameters.theta.tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4, -3]
    assert parameters.theta_labels == [
        "1 x 1", "prices x 1", "prices x prices", "x x prices", "x x x",
        "1 x income", "prices x age", "x x income", "x x age", "prices",
    ]  # fmt: skip
    assert parameters.layout.P == parameters.theta.size
    assert parameters.parameter_labels == [*parameters.theta_labels, "1", "x"]


def test_missing_elements_of_beta_are_concentrated_out_and_zeros_fixed() -> None:
    layout = build().layout
    assert layout.beta == ((1,),) and layout.concentrated_beta == (0, 2)
    assert build(beta=None).layout.concentrated_beta == (0, 1, 2, 3)
    assert build(beta=[1.0, 2.0, 3.0, 4.0]).layout.concentrated_beta == ()


def test_the_upper_triangle_of_sigma_is_ignored() -> None:
    start = np.asarray(build().start.sigma)
    assert start.tolist() == np.tril(SIGMA).tolist()


def test_default_bounds() -> None:
    """The diagonal of sigma is not negative; what is fixed at zero is bounded by zero."""
    parameters = build()
    sigma = parameters.limits.sigma
    assert sigma.lower.tolist() == [[0, 0, 0], [-np.inf, 0, 0], [0, -np.inf, 0]]
    assert sigma.upper.tolist() == [[np.inf, 0, 0], [np.inf, np.inf, 0], [0, np.inf, np.inf]]
    assert parameters.limits.pi.lower.tolist() == [[-np.inf, 0], [0, -np.inf], [-np.inf, -np.inf]]
    assert not parameters.bounded_by_user
    lower, upper = parameters.bounds
    assert lower.tolist() == [0, -np.inf, 0, -np.inf, 0, *[-np.inf] * 5] and upper.tolist() == [np.inf] * 10


def test_the_diagonal_of_sigma_keeps_the_sign_of_its_start() -> None:
    sigma = build(sigma=np.array([[-1.0, 0, 0], [2, 3, 0], [-1, 1, -5]])).limits.sigma
    assert np.diag(sigma.lower).tolist() == [-np.inf, 0, -np.inf] and np.diag(sigma.upper).tolist() == [0, np.inf, 0]
    assert np.isinf(sigma.lower[2, :2]).all() and np.isinf(sigma.upper[2, :2]).all()


@pytest.mark.parametrize(
    "bounds", [(), [[], []], np.zeros(0), (np.zeros(0), np.zeros(0)), (None, None), None, np.zeros((2, 0))]
)
def test_empty_bounds_of_parameters_that_there_are_none_of_are_harmless(bounds: Any) -> None:
    parameters = build(gamma_bounds=bounds, rho_bounds=bounds)
    assert parameters.theta.tolist() == build().theta.tolist() and not parameters.bounded_by_user


def test_infinite_bounds_of_parameters_that_there_are_none_of_are_harmless() -> None:
    """As those of a simulation with a supply side, for a problem without one."""
    infinite = np.full((3, 1), -np.inf), np.full((3, 1), np.inf)
    assert build(gamma_bounds=infinite, rho_bounds=infinite).theta.size == build().theta.size


def test_none_and_nan_are_no_bounds() -> None:
    """As PyBLP documents."""
    bounds = build(pi_bounds=([[np.nan, 0], [0, None], [1, 1]], np.full((3, 2), np.nan))).limits.pi
    assert bounds.lower.tolist() == [[-np.inf, 0], [0, -np.inf], [1, 1]]
    assert bounds.upper.tolist() == [[np.inf, 0], [0, np.inf], [np.inf, np.inf]]


def test_equal_bounds_fix_an_element_at_its_value() -> None:
    lower, upper = np.full((3, 3), -np.inf), np.full((3, 3), np.inf)
    lower[1, 0] = upper[1, 0] = 2.0
    parameters = build(sigma_bounds=(lower, upper), beta_bounds=([None, -3, None, None], [None, -3, None, None]))
    assert "prices x 1" not in parameters.theta_labels and "prices" not in parameters.theta_labels
    assert not parameters.bounded_by_user
    placed = expand(parameters.layout, parameters.start, jnp.asarray(parameters.theta) + 1.0)
    assert placed.sigma[1, 0] == 2.0 and placed.beta[1] == -3.0 and placed.sigma[0, 0] == 2.0


def test_bounds_that_are_missing_or_scalar() -> None:
    parameters = build(sigma_bounds=(None, 10), pi_bounds=(-5, np.nan))
    assert parameters.limits.sigma.lower[0, 0] == -np.inf and parameters.limits.sigma.upper[0, 0] == 10
    assert parameters.bounded_by_user
    assert parameters.limits.pi.lower[0, 0] == -5 and parameters.limits.pi.upper[0, 0] == np.inf
    assert parameters.limits.sigma.upper[0, 1] == 0


def test_unbounded_keeps_fixed_elements_fixed() -> None:
    lower = np.full((3, 3), -np.inf)
    upper = np.full((3, 3), np.inf)
    lower[1, 0] = upper[1, 0] = 2.0
    parameters = build(sigma_bounds=(lower, upper)).unbounded()
    assert np.isinf(parameters.bounds.lower).all() and np.isinf(parameters.bounds.upper).all()
    assert parameters.limits.sigma.lower[1, 0] == parameters.limits.sigma.upper[1, 0] == 2.0
    assert parameters.limits.sigma.upper[0, 1] == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_expand_and_compress_are_inverses(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parameters = build(
        sigma=rng.normal(size=(3, 3)) * (rng.uniform(size=(3, 3)) > 0.3),
        pi=rng.normal(size=(3, 2)) * (rng.uniform(size=(3, 2)) > 0.3),
        beta=[1.0, None, 2.0, 0.0],
        sigma_bounds=(None, None),
    )
    theta = rng.normal(size=parameters.layout.P)
    ROUNDING.check(compress(parameters.layout, expand(parameters.layout, parameters.start, jnp.asarray(theta))), theta)
    again = expand(parameters.layout, parameters.start, jnp.asarray(parameters.theta))
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(parameters.start), strict=True):
        assert one.tolist() == other.tolist()


def test_without_parameters_theta_is_empty() -> None:
    parameters = build(sigma=None, pi=None, beta=None, X2=(), demographics=(), n_node_columns=0)
    assert parameters.theta.shape == (0,) and parameters.theta_labels == [] and parameters.bounds.lower.shape == (0,)
    placed = expand(parameters.layout, parameters.start, jnp.zeros(0))
    assert placed.sigma.shape == (0, 0) and placed.beta.tolist() == [0, 0, 0, 0]


def test_scalars_stand_for_matrices_of_one_element() -> None:
    parameters = build(sigma=0.5, pi=None, X2=("x",), demographics=(), n_node_columns=1, beta=np.ones((4, 1)))
    assert parameters.theta.tolist() == [0.5, 1, 1, 1, 1]


def test_the_given_arrays_are_not_changed() -> None:
    sigma, lower = SIGMA.copy(), np.full((3, 3), -1.0)
    build(sigma=sigma, sigma_bounds=(lower, None))
    assert (sigma == SIGMA).all() and (lower == -1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": None}, r"sigma must be given: an array of shape \(3, 3\), with zeros"),
        ({"pi": None}, r"pi must be given: an array of shape \(3, 2\)"),
        ({"sigma": np.eye(2)}, r"sigma must have the shape \(3, 3\), not \(2, 2\)"),
        ({"sigma": 1.0}, r"sigma must have the shape \(3, 3\), not \(\)"),
        ({"pi": PI.T}, r"pi must have the shape \(3, 2\), not \(2, 3\)"),
        ({"beta": [1.0, 2.0]}, r"beta must have the shape \(4,\), not \(2,\)"),
        ({"beta": [np.inf, None, None, None]}, "beta must be finite"),
        ({"sigma": np.full((3, 3), np.nan)}, "sigma must be finite: use zeros"),
        ({"pi": np.full((3, 2), np.inf)}, "pi must be finite"),
        ({"sigma": "identity"}, "sigma must be an array of numbers"),
        ({"pi": PI, "demographics": ()}, "pi must not be given, because demographics were not formulated"),
        (
            {"sigma": SIGMA, "pi": None, "X2": (), "demographics": ()},
            "sigma must not be given, because X2 was not formulated",
        ),
        ({"sigma": -SIGMA, "sigma_bounds": (0, None)}, r"sigma\[0, 0\] = -1 is not within its bounds \[0, inf\]"),
        (
            {"sigma": [[[1.0]]], "pi": [[1.0, 1.0]], "X2": ("1",)},
            r"sigma must have the shape \(1, 1\), not \(1, 1, 1\)",
        ),
        ({"gamma_bounds": (0, None)}, "gamma_bounds must not be given, because the model has no gamma"),
        ({"gamma_bounds": 5}, "gamma_bounds must not be given, because the model has no gamma"),
        ({"rho_bounds": (None, [0.9])}, "rho_bounds must not be given, because the model has no rho"),
        (
            {"pi": None, "pi_bounds": (np.zeros((3, 2)), None), "demographics": ()},
            "pi_bounds must not be given, because the model has no pi",
        ),
        ({"pi_bounds": (0, 3.5)}, r"pi\[2, 1\] = 4 is not within its bounds \[0, 3.5\]"),
        ({"beta_bounds": ([None, -1, None, None], None)}, r"beta\[1\] = -3 is not within its bounds \[-1, inf\]"),
        (
            {"sigma": 0.5, "pi": None, "X2": ("kind['u']", "kind['v']"), "demographics": ()},
            r"sigma must have the shape \(2, 2\), not \(\). X2 are kind\['u'\], kind\['v'\]. Text, booleans, dates and "
            r"C\(...\) are categorical, with an indicator for each level, such as kind\['u'\]",
        ),
        ({"pi": 0.5}, r"pi must have the shape \(3, 2\).* X2 are 1, prices, x. Demographics are income, age"),
        ({"sigma_bounds": 5}, r"sigma_bounds must be a pair \(lower, upper\) of arrays of the shape of sigma"),
        ({"pi_bounds": (1, 2, 3)}, r"pi_bounds must be a pair \(lower, upper\)"),
        (
            {"sigma_bounds": (np.zeros((2, 2)), None)},
            r"sigma_bounds must hold arrays of the shape \(3, 3\), not \(2, 2\)",
        ),
        ({"pi_bounds": ("low", None)}, "pi_bounds must be an array of numbers"),
        (
            {"beta_bounds": ([-1, -5, None, None], None)},
            "beta_bounds must be infinite for elements of beta that are concentrated out.*Give beta starting values",
        ),
    ],
)
def test_wrong_parameters_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_pair_of_bounds_is_not_read_from_a_transposed_matrix() -> None:
    """As many numbers in another shape are a mistake."""
    with pytest.raises(ValueError, match=r"pi_bounds must hold arrays of the shape \(3, 2\), not \(2, 3\)"):
        build(pi_bounds=(np.full((2, 3), -10.0), None))


def test_too_few_columns_of_nodes_are_an_error() -> None:
    with pytest.raises(DataError, match="nodes have 1 column, but 3 columns of sigma have a nonzero element"):
        build(n_node_columns=1)


def test_columns_of_nodes_go_to_the_columns_of_sigma_that_are_not_all_zero() -> None:
    layout = build(sigma=np.diag([1.0, 0.0, 2.0]), n_node_columns=2).layout
    assert layout.sigma_columns == (0, 2) and layout.node_columns == (0, 1)
    assert build(sigma=np.zeros((3, 3)), n_node_columns=2).layout.node_columns == ()


@pytest.fixture(scope="module")
def small_problem(quiet: None) -> Any:
    """PyBLP's problem with three columns of X2 and as many columns of nodes."""
    products, agents = tables(5, [5, 6, 7, 8], [12] * 4)
    products["demand_instruments6"], products["demand_instruments7"] = products.x**3, products.demand_instruments1**3
    agents["nodes2"] = np.random.default_rng(1).normal(size=len(agents))
    formulations = (pyblp.Formulation("1 + prices + x"), pyblp.Formulation("1 + prices + x"))
    problem = pyblp.Problem(formulations, products, pyblp.Formulation("0 + income"), agents)
    return problem, products, agents


@pytest.mark.parametrize(
    ("sigma", "pi"),
    [
        (np.diag([0.3, 0.0, 0.5]), [[0.0], [0.2], [0.4]]),
        pytest.param([[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0.6]], [[0.1], [0.3], [0.0]], marks=pytest.mark.slow),
    ],
)
def test_labels_order_and_node_columns_are_those_of_pyblp(small_problem: Any, sigma: Any, pi: Any) -> None:
    """Delta at these parameters tells which columns of nodes were used."""
    import blpjax

    problem, products, agents = small_problem
    theirs = problem.solve(
        sigma, pi, method="1s", optimization=pyblp.Optimization("return"), check_optimality="gradient",
        iteration=pyblp.Iteration("squarem", {"atol": 1e-14}),
    )  # fmt: skip
    formulations = (blpjax.Formulation("1 + prices + x"), blpjax.Formulation("1 + prices + x"))
    ours: Any = blpjax.Problem(formulations, products, blpjax.Formulation("0 + income"), agents)
    ours = ours.functions(sigma, pi, iteration=blpjax.Iteration("newton"))
    assert list(ours.theta_labels) == [str(label) for label in theirs.theta_labels]
    ROUNDING.check(ours.theta, theirs.theta)
    np.testing.assert_allclose(ours.delta(ours.theta), theirs.delta[:, 0], rtol=0, atol=1e-11)
