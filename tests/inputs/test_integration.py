"""Integration rules: PyBLP's nodes and weights, exactness for polynomials, draws, and refused configurations."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import blpjax.inputs.integration
from blpjax.inputs.integration import Integration
from blpjax.inputs.quadrature import NodesAndWeights, gauss_hermite, nested_gauss_hermite, sparse_grid
from tests.support.programs import without_type_checks
from tests.tolerances import LINEAR_ALGEBRA, ROUNDING, Tolerance

# Weights of sparse grids are alternating sums of products that are much larger than the smallest weights.
CANCELLATION = Tolerance(1e-10, 1e-12)

QUADRATURE = ["product", "nested_product", "grid", "nested_grid"]
DRAWS = ["monte_carlo", "halton", "lhs", "mlhs"]


@pytest.fixture(scope="module")
def unchecked() -> ModuleType:
    return without_type_checks(blpjax.inputs.integration)


def build_with_pyblp(specification: str, size: int, dimensions: int, options: dict[str, Any] | None = None) -> Any:
    pyblp = pytest.importorskip("pyblp")
    return pyblp.build_integration(pyblp.Integration(specification, size, options), dimensions)


# quadrature


@pytest.mark.parametrize("dimensions", [1, 2, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5))])
@pytest.mark.parametrize("specification", QUADRATURE)
def test_quadrature_rules_are_those_of_pyblp(specification: str, dimensions: int) -> None:
    for level in range(1, 12):
        points = level if specification in {"product", "grid"} else 19
        if "product" in specification and points**dimensions > 50_000:
            break
        built = Integration(specification, level).build(dimensions)
        expected = build_with_pyblp(specification, level, dimensions)
        assert built.nodes.shape == expected.nodes.shape
        ROUNDING.check(built.nodes, expected.nodes, f"nodes of level {level}")
        CANCELLATION.check(built.weights, expected.weights.ravel(), f"weights of level {level}")


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("specification", QUADRATURE)
def test_every_level_of_pyblp_exists_and_the_next_one_does_not(specification: str, dimensions: int) -> None:
    for level in range(1, 26):
        built = Integration(specification, level).build(dimensions)
        expected = build_with_pyblp(specification, level, dimensions)
        ROUNDING.check(built.nodes, expected.nodes, f"nodes of level {level}")
        CANCELLATION.check(built.weights, expected.weights.ravel(), f"weights of level {level}")
    with pytest.raises(ValueError, match="levels from 1 to 25, not 26"):
        Integration(specification, 26)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Integration(specification, 0)


def normal_moment(power: int) -> int:
    return math.prod(range(1, power, 2)) if power % 2 == 0 else 0


@pytest.mark.parametrize("rule", [gauss_hermite, nested_gauss_hermite])
def test_univariate_rules_integrate_polynomials_exactly(rule: Callable[[int], NodesAndWeights]) -> None:
    for level in range(1, 26):
        built = rule(level)
        for power in range(2 * level):
            terms = built.weights * built.nodes[:, 0] ** power
            assert terms.sum() == pytest.approx(normal_moment(power), abs=1e-11 * np.abs(terms).sum(), rel=1e-11)


@pytest.mark.parametrize("level, size, degree", [(2, 3, 5), (5, 9, 15), (10, 19, 29), (18, 35, 51)])
def test_full_nested_rules_have_the_degree_of_patterson_extensions(level: int, size: int, degree: int) -> None:
    # Only the roots of the extension polynomial reach this degree, so this determines the tabulated nodes.
    built = nested_gauss_hermite(level)
    assert built.weights.size == size
    for power in range(0, degree + 3, 2):
        terms = built.weights * built.nodes[:, 0] ** power
        error = abs(terms.sum() - normal_moment(power)) / np.abs(terms).sum()
        assert error < 1e-11 if power <= degree else error > 1e-11


def test_nodes_of_nested_rules_are_nodes_of_higher_levels() -> None:
    for level in range(1, 25):
        lower, higher = nested_gauss_hermite(level), nested_gauss_hermite(level + 1)
        assert set(lower.nodes[:, 0]) <= set(higher.nodes[:, 0])


@pytest.mark.parametrize("rule", [gauss_hermite, nested_gauss_hermite])
@pytest.mark.parametrize("level", [1, 2, 4, 7])
def test_sparse_grids_integrate_polynomials_of_total_degree_exactly(
    rule: Callable[[int], NodesAndWeights], level: int
) -> None:
    built = sparse_grid(rule, level, 3)
    assert len(np.unique(built.nodes, axis=0)) == built.weights.size
    for powers in np.ndindex(2 * level, 2 * level, 2 * level):
        if sum(powers) <= 2 * level - 1:
            terms = built.weights * np.prod(built.nodes ** np.array(powers), axis=1)
            expected = math.prod(map(normal_moment, powers))
            assert terms.sum() == pytest.approx(expected, abs=1e-11 * np.abs(terms).sum())


def test_sparse_grid_of_the_pyblp_documentation_has_53_nodes() -> None:
    assert Integration("grid", 5).build(2).nodes.shape == (53, 2)


def test_expectation_of_a_lognormal_has_its_closed_form() -> None:
    sigma = np.array([0.5, -0.3, 0.8])
    for specification in QUADRATURE:
        built = Integration(specification, 9).build(3)
        LINEAR_ALGEBRA.check(built.weights @ np.exp(built.nodes @ sigma), np.exp(sigma @ sigma / 2), specification)


# draws


@pytest.mark.parametrize("size, dimensions, seed", [(1, 1, 0), (7, 3, 3), (50, 4, 12345), (200, 1, 2**32 - 1)])
@pytest.mark.parametrize("specification", DRAWS)
def test_seeded_draws_are_those_of_pyblp(specification: str, size: int, dimensions: int, seed: int) -> None:
    built = Integration(specification, size, {"seed": seed}).build(dimensions)
    expected = build_with_pyblp(specification, size, dimensions, {"seed": seed})
    np.testing.assert_array_equal(built.nodes, expected.nodes)
    np.testing.assert_array_equal(built.weights, expected.weights.ravel())


@pytest.mark.parametrize("discard", [0, 7, 12345])
def test_scrambled_halton_points_are_those_of_pyblp(discard: int) -> None:
    options = {"seed": 8, "discard": discard}
    expected = build_with_pyblp("halton", 300, 7, options)
    np.testing.assert_array_equal(Integration("halton", 300, options).build(7).nodes, expected.nodes)


def test_halton_points_of_scipy_are_those_of_its_generator() -> None:
    sequence = stats.qmc.Halton(2, rng=np.random.default_rng(4)).fast_forward(1000)
    built = Integration("halton", 15, {"seed": 4, "scramble": "scipy"}).build_many(2, ["a", "b"])
    ROUNDING.check(stats.norm.cdf(built.nodes), sequence.random(30))


@pytest.mark.parametrize("discard", [1, 6, 1000, None])
def test_unscrambled_halton_points_are_those_of_pyblp(discard: int | None) -> None:
    options: dict[str, Any] = {"scramble": False} | ({} if discard is None else {"discard": discard})
    built = Integration("halton", 60, options).build(6)
    expected = build_with_pyblp("halton", 60, 6, options)
    ROUNDING.check(built.nodes, expected.nodes)
    np.testing.assert_array_equal(built.weights, expected.weights.ravel())


def test_first_halton_points_are_those_of_the_definition() -> None:
    built = Integration("halton", 4, {"scramble": False, "discard": 1}).build(2)
    expected = [[1 / 2, 1 / 3], [1 / 4, 2 / 3], [3 / 4, 1 / 9], [1 / 8, 4 / 9]]
    ROUNDING.check(stats.norm.cdf(built.nodes), expected)


@pytest.mark.parametrize("scramble", [True, "scipy"])
def test_scrambled_halton_points_keep_one_point_in_each_elementary_interval(scramble: bool | str) -> None:
    for column, base in enumerate([2, 3, 5]):
        block = base**4
        options = {"discard": 3 * block, "seed": 1, "scramble": scramble}
        points = stats.norm.cdf(Integration("halton", block, options).build(3).nodes[:, column])
        assert sorted(np.floor(points * block).astype(int)) == list(range(block))


def test_scrambled_halton_points_are_reproducible_and_depend_on_the_seed() -> None:
    first, second = (Integration("halton", 20, {"seed": seed}).build(2).nodes for seed in (0, 1))
    np.testing.assert_array_equal(first, Integration("halton", 20, {"seed": 0}).build(2).nodes)
    assert not np.any(first == second)


@pytest.mark.parametrize("specification", DRAWS)
def test_draws_without_a_seed_differ_and_leave_the_global_generator_alone(specification: str) -> None:
    integration = Integration(specification, 5)
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    assert not np.any(integration.build(2).nodes == integration.build(2).nodes)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]


# many markets


@pytest.mark.parametrize(
    "specification, size, options",
    [
        ("monte_carlo", 6, {"seed": 3}),
        ("lhs", 6, {"seed": 3}),
        ("mlhs", 6, {"seed": 3}),
        ("halton", 6, {"scramble": False}),
        ("halton", 6, {"seed": 3}),
        ("product", 3, None),
        ("nested_grid", 4, None),
    ],
)
def test_agents_of_several_markets_are_those_of_a_pyblp_problem(
    quiet: None, specification: str, size: int, options: dict[str, Any] | None
) -> None:
    pyblp = pytest.importorskip("pyblp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = pd.read_csv(pyblp.data.NEVO_PRODUCTS_LOCATION)
        table = table[table["market_ids"].isin(["C03Q1", "C01Q2", "C01Q1"])][::-1]
        formulations = (pyblp.Formulation("1 + prices"), pyblp.Formulation("0 + prices + sugar + mushy"))
        integration = pyblp.Integration(specification, size, options)
        agents = pyblp.Problem(formulations, table, integration=integration).agents

    built = Integration(specification, size, options).build_many(3, ["C01Q1", "C01Q2", "C03Q1"])
    np.testing.assert_array_equal(built.market_ids, agents.market_ids.ravel())
    ROUNDING.check(built.nodes, agents.nodes)
    ROUNDING.check(built.weights, agents.weights.ravel())


@pytest.mark.parametrize("specification", QUADRATURE + DRAWS)
def test_the_first_market_gets_the_nodes_of_a_single_one(specification: str) -> None:
    options = {"seed": 5} if specification in DRAWS else None
    integration = Integration(specification, 4, options)
    single, many = integration.build(2), integration.build_many(2, np.array([10, 7, 8]))
    size = single.weights.size
    np.testing.assert_array_equal(many.market_ids, np.repeat([10, 7, 8], size))
    np.testing.assert_array_equal(many.nodes[:size], single.nodes)
    np.testing.assert_array_equal(many.weights, np.tile(single.weights, 3))
    same = np.array_equal(many.nodes[:size], many.nodes[size : 2 * size])
    assert same == (specification in QUADRATURE)


@pytest.mark.parametrize("ids", [["a", "b", "a"], [], [["a", "b"]]])
def test_market_ids_must_be_distinct(ids: list[Any]) -> None:
    with pytest.raises(ValueError, match="ids must be a one-dimensional collection of at least one distinct market ID"):
        Integration("product", 2).build_many(1, ids)


# configurations


@pytest.mark.parametrize(
    "specification, size, options, message",
    [
        ("simpson", 3, None, "specification must be one of .*'grid'.*'product'.*, not 'simpson'"),
        ("monte_carlo", 0, None, "size must be at least 1, not 0"),
        ("monte_carlo", 5, {"sede": 1}, r"'monte_carlo' has no option 'sede': it supports \['seed'\]"),
        ("mlhs", 5, {"discard": 1}, "'mlhs' has no option 'discard'"),
        ("halton", 5, {"skip": 1}, r"'halton' has no option 'skip': it supports \['discard', 'scramble', 'seed'\]"),
        ("grid", 5, {"seed": 1}, "'grid' has no option 'seed': quadrature rules have no options"),
        ("lhs", 5, {"seed": -1}, "option seed must be at least 0, not -1"),
        ("lhs", 5, {"seed": 2**32}, r"option seed must be below 2\*\*32"),
        ("halton", 5, {"discard": -1}, "option discard must be at least 0, not -1"),
        ("halton", 5, {"discard": 0, "scramble": False}, "discard must be at least 1 when scramble is False"),
    ],
)
def test_wrong_values_are_refused(specification: str, size: int, options: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Integration(specification, size, options)


@pytest.mark.parametrize(
    "specification, size, options, message",
    [
        (3, 3, None, "specification must be a string, not 3"),
        ("grid", 2.0, None, "size must be an integer, not 2.0"),
        ("grid", True, None, "size must be an integer, not True"),
        ("grid", "5", None, "size must be an integer, not '5'"),
        ("lhs", 5, [("seed", 1)], "specification_options must be None or a dict"),
        ("lhs", 5, {"seed": 1.0}, "option seed must be an integer, not 1.0"),
        ("lhs", 5, {"seed": None}, "option seed must be an integer, not None"),
        ("halton", 5, {"discard": "all"}, "option discard must be an integer, not 'all'"),
        ("halton", 5, {"scramble": 3}, "option scramble must be True, False or 'scipy', not 3"),
    ],
)
def test_wrong_types_are_refused(
    unchecked: ModuleType, specification: Any, size: Any, options: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        unchecked.Integration(specification, size, options)


def test_dimensions_must_be_a_positive_integer(unchecked: ModuleType) -> None:
    with pytest.raises(ValueError, match="dimensions must be at least 1, not 0"):
        Integration("grid", 3).build(0)
    with pytest.raises(TypeError, match="dimensions must be an integer, not 2.0"):
        unchecked.Integration("grid", 3).build(2.0)
    with pytest.raises(TypeError, match="dimensions must be an integer, not '2'"):
        unchecked.Integration("grid", 3).build_many("2", ["a"])


def test_numpy_integers_are_integers(unchecked: ModuleType) -> None:
    integration = unchecked.Integration("lhs", np.int64(3), {"seed": np.int32(2)})
    assert integration == unchecked.Integration("lhs", 3, {"seed": 2})
    assert type(integration.size) is int and type(integration.seed) is int


def test_configurations_are_values() -> None:
    first, second = (Integration("halton", 10, options) for options in ({"seed": 1}, {"discard": 1000, "seed": 1}))
    assert first == second and hash(first) == hash(second)
    assert first != Integration("halton", 10, {"seed": 2})
    assert first != Integration("halton", 11, {"seed": 1})
    assert Integration("grid", 3) != Integration("product", 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.size = 3  # type: ignore[misc]
    first.specification_options["seed"] = 2
    assert first == second


def test_options_of_the_user_are_not_modified() -> None:
    options = {"seed": 1}
    Integration("halton", 10, options)
    assert options == {"seed": 1}


@pytest.mark.parametrize(
    "integration, parts",
    [
        (Integration("monte_carlo", 50, {"seed": 0}), ["Monte Carlo", "size 50", "{seed: 0}"]),
        (Integration("halton", 50), ["Halton", "{discard: 1000, scramble: True}"]),
        (Integration("lhs", 50), ["(LHS)"]),
        (Integration("mlhs", 50), ["(MLHS)"]),
        (Integration("product", 5), ["the Gauss-Hermite product rule", "level 5."]),
        (Integration("nested_product", 5), ["the nested Gauss-Hermite product rule", "level 5."]),
        (Integration("grid", 5), ["sparse grid of Gauss-Hermite", "level 5."]),
        (Integration("nested_grid", 5), ["sparse grid of nested Gauss-Hermite", "level 5."]),
    ],
)
def test_text_names_rule_size_and_options(integration: Integration, parts: list[str]) -> None:
    text = str(integration)
    assert text.startswith("Configured to build nodes and weights with ")
    assert all(part in text for part in parts)
