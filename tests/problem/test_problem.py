"""Problem: PyBLP's attributes, input forms, what is refused before anything is compiled, and compiled functions."""

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pyblp
import pytest
import scipy.optimize

import blpjax
from blpjax import Formulation, Integration, Iteration, Optimization, Problem
from blpjax.exceptions import (
    ConvergenceWarning,
    DataError,
    DataWarning,
    IdentificationError,
    IdentificationWarning,
    UnusedOptionWarning,
)
from blpjax.machine import compilation
from tests.support.problems import FORMULAS, PI, SIGMA, build, evaluate, small_tables
from tests.support.programs import compilations
from tests.support.silence import quiet
from tests.tolerances import CENTRAL_DIFFERENCE, DELTA, FIXED_PARAMETERS, LINEAR_ALGEBRA, ROUNDING

pytestmark = pytest.mark.usefixtures("quiet")

SQUAREM = Iteration("squarem", {"atol": 1e-14})


@pytest.fixture(scope="module")
def problem() -> Problem:
    return build(blpjax)


def logit(products: Any = None, formula: str = "1 + prices + x", **options: Any) -> Problem:
    with quiet():
        return Problem(Formulation(formula), small_tables()[0] if products is None else products, **options)


# attributes

NUMBERS = ["T", "N", "F", "I", "K1", "K2", "K3", "D", "MD", "MS", "MC", "ED", "ES", "H"]
IDS = ["market_ids", "firm_ids", "product_ids", "agent_ids", "nesting_ids"]


def pairs() -> dict[str, Callable[[Any], Any]]:
    """Problems of several kinds, as functions of the library."""
    products, agents = small_tables()
    integer_markets = [table.assign(market_ids=table.market_ids.str[1:].astype(int)) for table in (products, agents)]
    return {
        "unequal markets": build,
        "integer markets": lambda library: build(library, *integer_markets),
        "fixed effects": lambda library: library.Problem(
            (
                library.Formulation("0 + prices + x", absorb="C(firm_ids) + C(product_ids)"),
                library.Formulation("1 + I(x**2)"),
            ),
            products,
            library.Formulation("1 + income"),
            agents,
        ),
        "integration": lambda library: library.Problem(
            (library.Formulation("1 + prices"), library.Formulation("1 + x")),
            products,
            integration=library.Integration("product", 3),
        ),
        "logit": lambda library: library.Problem(library.Formulation("prices + x"), products),
        "own instruments": lambda library: library.Problem(
            library.Formulation("prices + x"), products, add_exogenous=False
        ),
        "no firms or products": lambda library: library.Problem(
            library.Formulation("prices + C(kind)"),
            products.drop(columns=["firm_ids", "product_ids", "clustering_ids"]).assign(kind=["u", "v"] * 16),
        ),
    }


@functools.cache
def pair(kind: str) -> tuple[Any, Any]:
    """The same problem, built by PyBLP and by blpjax."""
    with quiet():
        return pairs()[kind](pyblp), pairs()[kind](blpjax)


@pytest.mark.parametrize("kind", pairs())
def test_attributes_are_those_of_pyblp(kind: str) -> None:
    theirs, ours = pair(kind)
    for name in NUMBERS:
        assert getattr(ours, name) == getattr(theirs, name), name
        assert type(getattr(ours, name)) is int, name
    for name in IDS:
        actual, expected = getattr(ours, f"unique_{name}"), getattr(theirs, f"unique_{name}")
        assert actual.tolist() == expected.tolist() and actual.dtype == expected.dtype, name
    for name in ("rc_types", "epsilon_scale", "costs_type"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert [str(f) for f in ours.product_formulations] == [str(f) for f in theirs.product_formulations]
    assert str(ours.agent_formulation) == str(theirs.agent_formulation)


@pytest.mark.parametrize("kind", pairs())
def test_structured_arrays_are_those_of_pyblp(kind: str) -> None:
    theirs, ours = pair(kind)
    for name in ("products", "agents"):
        actual, expected = getattr(ours, name), getattr(theirs, name)
        assert isinstance(actual, np.recarray) and actual.shape == expected.shape
        shared = [field for field in expected.dtype.names if field in actual.dtype.names]
        # categorical variables stand for their indicators
        rest = [field for field in expected.dtype.names if field not in shared and "[" not in field]
        assert rest == []
        for field in shared:
            assert actual[field].shape == expected[field].shape, field
            assert actual[field].dtype == expected[field].dtype, field
            if actual[field].dtype == object:
                if field != "demand_ids":  # ours are numbers
                    assert actual[field].tolist() == expected[field].tolist(), field
            else:
                FIXED_PARAMETERS.check(actual[field], expected[field], field)
    assert ours.products.shares is not None and (ours.products["shares"] == ours.products.shares).all()


@pytest.mark.parametrize("kind", pairs())
def test_the_description_is_that_of_pyblp(kind: str) -> None:
    theirs, ours = pair(kind)
    assert str(ours).split() == str(theirs).split()
    assert repr(ours) == str(ours)


def test_building_prints_what_was_built(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blpjax.options, "verbose", True)
    problem = Problem(Formulation("1 + prices + x"), small_tables()[0])
    printed = capsys.readouterr().out
    assert printed.startswith("Initializing the problem ...\nInitialized the problem after 00:00:0")
    assert str(problem) in printed


def test_dates_may_be_market_ids() -> None:
    products = small_tables()[0]
    days = pd.to_datetime("2020-01-01") + pd.to_timedelta(products.market_ids.str[1:].astype(int), unit="D")
    problem = logit(products.assign(market_ids=days))
    assert problem.T == 8 and problem.unique_market_ids.dtype.kind == "M"
    results = problem.solve(method="1s")
    day = pd.Timestamp("2020-01-03")
    assert results.compute_elasticities(market_id=day).shape == (2, 2)
    assert results.compute_elasticities(market_id=problem.unique_market_ids[2]).shape == (2, 2)


# forms of input


def as_matrices(table: pd.DataFrame, *names: str) -> dict[str, np.ndarray]:
    """Columns of arrays, numbered ones joined to matrices."""
    columns = {name: values.to_numpy(copy=True) for name, values in table.items()}
    for name in names:
        numbered = sorted(column for column in columns if re.fullmatch(name + r"\d+", column))
        columns[name] = np.column_stack([columns.pop(column) for column in numbered])
    return columns


def as_lists(table: pd.DataFrame) -> dict[str, list[Any]]:
    return {name: values.tolist() for name, values in table.items()}


def as_records(table: pd.DataFrame) -> np.recarray:
    return table.to_records(index=False)


FORMS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "dictionary of lists": as_lists,
    "dictionary with matrices": lambda table: as_matrices(
        table, "nodes" if "nodes0" in table else "demand_instruments"
    ),
    "structured array": as_records,
    "columns in another order": lambda table: table[table.columns[::-1]],
    "an index": lambda table: table.set_index(np.arange(len(table))[::-1] * 7),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_form_of_tables_does_not_matter(problem: Problem, form: Callable[[pd.DataFrame], Any]) -> None:
    other = build(blpjax, *map(form, small_tables()))
    for name in ("products", "agents"):
        for field in getattr(problem, name).dtype.names:
            np.testing.assert_array_equal(getattr(other, name)[field], getattr(problem, name)[field], field)
    a, b = (evaluate(p, blpjax) for p in (problem, other))
    for name in ("objective", "delta", "gradient", "parameter_covariances"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)


def test_nothing_of_the_user_is_modified() -> None:
    products, agents = small_tables()
    kept = products.copy(), agents.copy()
    dictionaries = as_matrices(products, "demand_instruments"), as_matrices(agents, "nodes")
    copies = [{name: values.copy() for name, values in table.items()} for table in dictionaries]
    for tables in ((products, agents), dictionaries):
        problem = build(blpjax, *tables)
        given = {"sigma": SIGMA.copy(), "pi": PI.copy(), "W": np.eye(problem.MD), "delta": np.zeros(problem.N)}
        before = {name: values.copy() for name, values in given.items()}
        options = {"optimization": Optimization("return"), "iteration": SQUAREM, "check_optimality": "gradient"}
        results = problem.solve(**given, **options, method="2s")
        results.compute_shares(prices=1.1 * problem.products.prices, agent_data=tables[1])
        for name, values in given.items():
            np.testing.assert_array_equal(values, before[name], name)
    pd.testing.assert_frame_equal(products, kept[0])
    pd.testing.assert_frame_equal(agents, kept[1])
    for table, copy in zip(dictionaries, copies, strict=True):
        assert list(table) == list(copy)
        for name, values in copy.items():
            np.testing.assert_array_equal(table[name], values, name)


def test_tables_that_change_later_do_not_change_the_problem(problem: Problem) -> None:
    tables = as_matrices(small_tables()[0], "demand_instruments"), as_matrices(small_tables()[1], "nodes")
    other = build(blpjax, *tables)
    for table in tables:
        for values in table.values():
            values[...] = values[0]
    a, b = (evaluate(p, blpjax) for p in (problem, other))
    np.testing.assert_array_equal(a.delta, b.delta)
    np.testing.assert_array_equal(a.compute_elasticities(), b.compute_elasticities())
    np.testing.assert_array_equal(a.parameter_covariances, b.parameter_covariances)


@pytest.mark.usefixtures("unchecked_types")
def test_defaults_may_be_given(problem: Problem) -> None:
    """What PyBLP's scripts say explicitly."""
    plain = evaluate(problem, blpjax)
    spelled = evaluate(
        problem,
        blpjax,
        rho=None,
        gamma=None,
        finite_differences=False,
        error_punishment=1.0,
        fp_type="safe_linear",
        shares_bounds=[1e-300, None],
        costs_bounds=None,
        covariance_moments_mean=0.0,
        micro_moments=[],
    )
    np.testing.assert_array_equal(plain.parameter_covariances, spelled.parameter_covariances)


# what problems refuse


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rc_types": ["linear", "log"]}, ValueError, "a type for each of the 3 columns of X2, not .'linear', 'log'."),
        ({"rc_types": "log"}, ValueError, "rc_types must be a list with a type for each of the 3 columns of X2"),
        (
            {"rc_types": ["linear", "log", "exp"]},
            ValueError,
            "'linear', 'log', 'logit'.* functions of JAX arrays.*, not 'exp'",
        ),
        ({"epsilon_scale": 0.0}, ValueError, "epsilon_scale must be a positive number, not 0.0"),
        ({"epsilon_scale": np.inf}, ValueError, "epsilon_scale must be a positive number, not inf"),
        ({"epsilon_scale": "1"}, ValueError, "epsilon_scale must be a positive number, not '1'"),
        ({"costs_type": "quadratic"}, ValueError, "costs_type must be one of"),
    ],
)
def test_wrong_options_of_models_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(blpjax, **options)


def test_the_type_of_costs_has_no_effect_without_a_supply_side() -> None:
    with pytest.warns(UnusedOptionWarning, match="costs_type='log' has no effect: there is no supply side") as caught:
        assert build(blpjax, costs_type="log").costs_type == "linear"
    assert len(caught) == 1


def test_defaults_of_models_may_be_given() -> None:
    assert build(blpjax, rc_types=["linear"] * 3, epsilon_scale=1.0, costs_type="linear").rc_types == ["linear"] * 3


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("formulations", "demographics", "error", "message"),
    [
        ("1 + prices", None, TypeError, "product_formulations must be a Formulation or a sequence"),
        ([], None, TypeError, "product_formulations must be a Formulation or a sequence"),
        ([None, Formulation("1")], None, TypeError, "product_formulations must be a Formulation or a sequence"),
        ([Formulation("prices"), "1"], None, TypeError, "must be Formulation instances or None"),
        ([Formulation("prices"), Formulation("1")], "income", TypeError, "must be Formulation instances or None"),
        ([Formulation("prices")] * 4, None, TypeError, "one to three Formulations"),
        ([Formulation("prices"), None, Formulation("prices")], None, IdentificationError, "X3"),
        ([Formulation("prices"), Formulation("0 + x", "C(firm_ids)")], None, ValueError, "X1 and X3, but not from X2"),
        (
            [Formulation("prices"), Formulation("x")],
            Formulation("income", "C(agent_ids)"),
            ValueError,
            "cannot be absorbed from demographics",
        ),
    ],
)
def test_wrong_formulations_are_refused(
    formulations: Any, demographics: Any, error: type[Exception], message: str
) -> None:
    products, agents = small_tables()
    with pytest.raises(error, match=message):
        Problem(formulations, products, demographics, agents)


BAD_TABLES: dict[str, tuple[Callable[[pd.DataFrame], Any], type[Exception], str]] = {
    "shares are missing": (lambda t: t.drop(columns="shares"), DataError, "product_data.*'shares'"),
    "a share is zero": (
        lambda t: t.assign(shares=t.shares.where(t.index != 4, 0.0)),
        DataError,
        "product_data: column 'shares' must be between zero and one.*market 'm00.', row 4",
    ),
    "shares sum past one": (lambda t: t.assign(shares=0.4), DataError, "'shares' sums to one or more in .*'m000'"),
    "a price is missing": (
        lambda t: t.assign(prices=t.prices.where(t.index != 7)),
        DataError,
        "product_data: column 'prices' has missing values in 1 row.*market 'm00.', row 7",
    ),
    "a regressor is missing": (
        lambda t: t.assign(x=t.x.where(t.index != 2)),
        DataError,
        "column 'x' has a missing.*row 2",
    ),
    "a regressor is text": (lambda t: t.drop(columns="x"), DataError, "'x'"),
    "a nest is missing": (
        lambda t: t.assign(nesting_ids=np.where(t.index == 6, None, "n")),
        DataError,
        "product_data: column 'nesting_ids' has missing values in 1 row.*, row 6",
    ),
    "instruments from one": (
        lambda t: t.rename(columns={"demand_instruments0": "demand_instruments8"}),
        DataError,
        "'demand_instruments0' is missing",
    ),
    "market without agents": (
        lambda t: t.assign(market_ids=t.market_ids.replace("m003", "m9")),
        DataError,
        "no agents in 1 market: 'm9'",
    ),
    "no table": (lambda t: 3, TypeError, "product_data"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_bad_tables_are_refused_before_anything_is_compiled(kind: str, compiled: list[str]) -> None:
    change, error, message = BAD_TABLES[kind]
    with pytest.raises(error, match=message):
        build(blpjax, change(small_tables()[0]))
    assert compiled == []


@pytest.fixture
def compiled() -> Any:
    """Programs that are compiled, or read from a cache, during the test."""
    compilation.forget_programs()
    with compilations() as seen:
        yield seen


def test_compilations_are_counted(compiled: list[str]) -> None:
    jax.jit(lambda x: x + 1)(jnp.ones(3))
    assert compiled


def test_rank_deficient_characteristics_are_named() -> None:
    """By a warning when a problem is built, and by an error when it should estimate coefficients of all columns."""
    products = small_tables()[0]
    products = products.assign(y=2 * products.x, f=products.firm_ids * 2.0)
    X2 = Formulation("1 + prices"), Formulation("0 + x + y")
    cases: list[tuple[Any, dict[str, Any], str, dict[str, Any], dict[str, Any]]] = [
        (
            Formulation("1 + prices + x + y"),
            {},
            "X1 has 4 columns but rank 3: .*('x' is collinear with 'y'|'y' is collinear)",
            {},
            {"beta": [None, None, None, 0]},
        ),
        (
            Formulation("0 + prices + f", absorb="C(firm_ids)"),
            {},
            "X1 has 2 columns but rank 1: 'f' is absorbed by the fixed effects",
            {},
            {"beta": [None, 2.0], "beta_bounds": ([None, 2.0], [None, 2.0])},
        ),
        (
            X2,
            {"integration": Integration("product", 3)},
            "X2 has 2 columns but rank 1",
            {"sigma": 0.3 * np.eye(2)},
            {"sigma": np.diag([0.3, 0])},
        ),
    ]
    for formulations, options, message, together, fixed in cases:
        with pytest.warns(IdentificationWarning) as caught:
            problem = Problem(formulations, products, **options)
        assert any(re.search(message, str(warning.message)) for warning in caught)
        with pytest.raises(IdentificationError, match=message):
            problem.solve(method="1s", **together)
        parameters = {"sigma": None, "pi": None, "rho": None, "beta": None, "gamma": None, "bounds": {}, **fixed}
        parameters["bounds"] = {"beta": parameters.pop("beta_bounds", None)}
        problem.read_parameters(**parameters)


def test_prices_have_to_be_where_they_can_be() -> None:
    products = small_tables()[0]
    with pytest.raises(IdentificationError, match="Neither X1 nor X2 depends on 'prices'"):
        logit(formula="1 + x")
    with pytest.raises(IdentificationError, match="X1 cannot depend on 'shares'"):
        logit(formula="1 + prices + shares")
    with pytest.raises(IdentificationError, match="X1 cannot use 'prices' as a categorical variable"):
        logit(products.assign(prices=np.round(products.prices)), "1 + C(prices)")
    with pytest.warns(IdentificationWarning, match="'prices' are in X2 but not in X1"):
        Problem((Formulation("1 + x"), Formulation("0 + prices")), products, integration=Integration("product", 3))


def test_collinear_instruments_warn_and_do_not_count() -> None:
    products = small_tables()[0]
    few = products.drop(columns=[f"demand_instruments{k}" for k in range(2, 8)])
    few["demand_instruments1"] = 3 * few.demand_instruments0
    with pytest.warns(IdentificationWarning, match="ZD has 5 columns but rank 4: .*'demand_instruments"):
        problem = Problem(Formulation("1 + prices + x + w"), few)
    with pytest.warns(IdentificationWarning, match="Jacobian|covariances"):
        problem.solve(method="1s")
    few = few.drop(columns="demand_instruments1")
    with pytest.raises(IdentificationError, match=r"fewer moments \(4\) than parameters \(5: .*'?log\(prices\)"):
        logit(few, "1 + prices + log(prices) + x + w").solve(method="1s")


def test_duplicated_products_and_odd_weights_warn() -> None:
    products, agents = small_tables()
    with pytest.warns(DataWarning, match="'product_ids' repeats an id of the same market"):
        Problem(Formulation("1 + prices + x"), products.assign(product_ids="p"))
    with pytest.warns(DataWarning, match="agent_data: column 'weights' does not sum to one.*'m000'"):
        formulations = tuple(map(Formulation, FORMULAS))
        Problem(formulations, products, Formulation("0 + income"), agents.assign(weights=2 * agents.weights))


# what solve refuses


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": [1.0]}, "gamma must not be given, because X3 was not formulated"),
        ({"rho": 0.5}, "rho must not be given, because there are no nesting_ids in product_data"),
        ({"covariance_moments_mean": 0.1}, "covariance_moments_mean needs a supply side"),
        ({"covariance_moments_mean": "zero"}, "covariance_moments_mean must be a number"),
    ],
)
def test_options_of_what_is_not_in_the_model_are_refused(
    problem: Problem, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        problem.solve(SIGMA, PI, **options)


def test_every_argument_of_pyblp_is_accepted_or_refused_by_name() -> None:
    """Nothing is accepted and ignored: the others have tests of what they do."""
    import inspect

    theirs = set(inspect.signature(pyblp.Problem.solve).parameters)
    ours = {"tau", "tau_bounds", "starts", "moment_blocks", "likelihood", "path", "kappa", "kappa_bounds"}
    assert set(inspect.signature(Problem.solve).parameters) == theirs | ours
    theirs = set(inspect.signature(pyblp.Problem.__init__).parameters)
    assert set(inspect.signature(Problem.__init__).parameters) == theirs | {"conduct"}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "3s"}, ValueError, r"method must be one of \['1s', '2s'\], not '3s'"),
        ({"check_optimality": "hessian"}, ValueError, "check_optimality must be one of"),
        ({"delta_behavior": "best"}, ValueError, "delta_behavior must be one of"),
        ({"error_behavior": "ignore"}, ValueError, "error_behavior must be one of"),
        ({"initial_update": "no"}, TypeError, "initial_update must be True or False, not 'no'"),
        ({"center_moments": "yes"}, TypeError, "center_moments must be True or False, not 'yes'"),
        ({"scale_objective": None}, TypeError, "scale_objective must be True or False, not None"),
        ({"finite_differences": 1}, TypeError, "finite_differences must be True or False, not 1"),
        ({"W_type": "hac"}, ValueError, "W_type must be 'robust', 'clustered' or 'unadjusted', not 'hac'"),
        ({"se_type": 3}, ValueError, "se_type must be 'robust'"),
        ({"optimization": "bfgs"}, TypeError, "optimization must be Optimization or None, not str"),
        ({"iteration": "squarem"}, TypeError, "iteration must be Iteration or None, not str"),
        ({"W": np.eye(3)}, ValueError, r"W must have the shape \(10, 10\), not \(3, 3\)"),
        ({"W": np.full((10, 10), np.nan)}, ValueError, "W must be finite"),
        ({"W": np.triu(np.ones((10, 10)))}, ValueError, "W must be symmetric"),
        ({"W": np.diag([1.0] * 9 + [-1])}, ValueError, "W must be positive semidefinite"),
        ({"W": "identity"}, ValueError, "W must be an array of numbers"),
        ({"delta": np.zeros(31)}, ValueError, "delta must hold 32 finite numbers"),
        ({"delta": np.full(32, np.nan)}, ValueError, "delta must hold 32 finite numbers"),
        ({"delta": "logit"}, ValueError, "delta must be an array of numbers"),
        ({"sigma": np.eye(2)}, ValueError, r"sigma must have the shape \(3, 3\), not \(2, 2\)"),
        ({"sigma": None}, ValueError, "sigma must be given"),
        ({"pi": None}, ValueError, "pi must be given"),
        ({"pi": np.ones((3, 2))}, ValueError, r"pi must have the shape \(3, 1\)"),
        ({"beta": [1.0]}, ValueError, "beta must have the shape"),
        ({"sigma_bounds": (np.ones((3, 3)), None)}, ValueError, r"sigma\[0, 0\] = 0.5 is not within its bounds"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_compiled(
    problem: Problem, compiled: list[str], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        problem.solve(**{"sigma": SIGMA, "pi": PI, **arguments})
    assert compiled == []


def test_parameters_without_characteristics_are_refused() -> None:
    with pytest.raises(ValueError, match="sigma must not be given, because X2 was not formulated"):
        logit().solve(sigma=1.0)
    with pytest.raises(ValueError, match="pi must not be given"):
        logit().solve(pi=1.0)


@pytest.mark.parametrize("name", ["W_type", "se_type"])
def test_clusters_need_ids(name: str) -> None:
    products, agents = small_tables()
    problem = build(blpjax, products.drop(columns="clustering_ids"), agents)
    with pytest.raises(ValueError, match=f"{name}='clustered' needs a column 'clustering_ids'"):
        problem.solve(SIGMA, PI, **{name: "clustered"})


@pytest.mark.parametrize("name", ["W_type", "se_type"])
def test_clusters_are_at_least_two(name: str) -> None:
    single = logit(small_tables()[0].assign(clustering_ids=1))
    assert single.solve(method="1s").converged
    with pytest.raises(ValueError, match=f"{name}='clustered' needs at least two clusters, but 'clustering_ids' has a"):
        single.solve(method="1s", **{name: "clustered"})


def test_every_column_of_sigma_needs_nodes() -> None:
    products, agents = small_tables()
    problem = build(blpjax, products, agents.drop(columns="nodes2"))
    with pytest.raises(DataError, match="nodes have 2 columns, but 3 columns of sigma have a nonzero element"):
        problem.solve(SIGMA, PI)


@pytest.mark.slow
def test_fewer_moments_than_parameters_raise_unless_nothing_is_optimised() -> None:
    products, agents = small_tables()
    problem = build(blpjax, products.drop(columns=[f"demand_instruments{k}" for k in range(2, 8)]))
    assert problem.MD == 4
    with pytest.raises(IdentificationError, match=r"fewer moments \(4\) than parameters \(10: 1 x 1, prices x prices"):
        problem.solve(SIGMA, PI)
    with pytest.warns(IdentificationWarning) as caught:
        results = problem.solve(SIGMA, PI, optimization=Optimization("return"), iteration=SQUAREM, method="1s")
    messages = [str(warning.message) for warning in caught]
    assert "fewer moments (4) than parameters (10" in messages[0]
    assert any(
        "Jacobian of the moments has rank 4 at the estimates, but there are 10 parameters" in m for m in messages
    )
    assert np.isfinite(results.objective)


def test_singular_covariances_of_moments_are_explained() -> None:
    products = small_tables()[0]
    products["rare"] = (products.index < 1).astype(float)
    few = products.assign(clustering_ids=products.clustering_ids.rank(method="dense") % 4)
    with pytest.warns(
        IdentificationWarning, match="covariances of the 10 moments have rank 4 .*there are only 4 clusters"
    ):
        logit(few).solve(method="1s", W_type="clustered", center_moments=False)
    doubled = products.assign(demand_instruments2=products.rare, demand_instruments3=2 * products.rare)
    with pytest.warns(IdentificationWarning, match="ZD has 10 columns"):
        problem = Problem(Formulation("1 + prices + x"), doubled)
    message = (
        r"the 10 moments have rank 9 .*\(collinear moments: 'demand_instruments[23]'\), so the updated weighting matrix"
    )
    with pytest.warns(IdentificationWarning, match=message):
        problem.solve(method="1s")


def test_the_tolerance_for_singularity_decides_about_the_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    regular = logit(small_tables()[0])
    monkeypatch.setattr(blpjax.options, "singular_tol", 1.0)
    with pytest.warns(IdentificationWarning, match="moments have rank 10 and condition number"):
        regular.solve(method="1s")
    few = small_tables()[0]
    few = few.assign(clustering_ids=few.clustering_ids.rank(method="dense") % 4)
    monkeypatch.setattr(blpjax.options, "singular_tol", np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logit(few).solve(method="1s", W_type="clustered", center_moments=False)


# solve


def test_the_weighting_matrix_and_delta_may_be_given(problem: Problem) -> None:
    theirs = pair("unequal markets")[0]
    W = np.diag(np.linspace(0.5, 2.0, problem.MD))
    given = {"W": W, "delta": np.linspace(-3, 0, problem.N), "scale_objective": False, "center_moments": False}
    a, b = evaluate(problem, blpjax, **given), evaluate(theirs, pyblp, **given)
    for name in ("objective", "W", "updated_W", "delta", "beta", "beta_se", "gradient"):
        FIXED_PARAMETERS.check(getattr(a, name), getattr(b, name), name)


@pytest.mark.parametrize("kinds", [("robust", "unadjusted"), ("unadjusted", "robust"), ("clustered", "clustered")])
@pytest.mark.parametrize("method", ["1s", "2s"])
def test_types_of_covariances_are_those_of_pyblp(problem: Problem, kinds: tuple[str, str], method: str) -> None:
    options = {"W_type": kinds[0], "se_type": kinds[1], "method": method}
    a, b = evaluate(problem, blpjax, **options), evaluate(pair("unequal markets")[0], pyblp, **options)
    for name in ("updated_W", "objective", "parameter_covariances", "sigma_se", "pi_se", "beta_se", "sigma_squared_se"):
        FIXED_PARAMETERS.check(getattr(a, name), getattr(b, name), name)
    assert str(a).split()[-8:] == str(b).split()[-8:]
    assert ("Adjusted for" in str(a)) == (kinds[1] == "clustered")


def test_a_failed_inversion_warns_and_names_markets(problem: Problem) -> None:
    with pytest.warns(ConvergenceWarning, match="reached the maximum number of evaluations in 8 of 8 markets: 'm000'"):
        results = problem.solve(
            SIGMA,
            PI,
            method="1s",
            optimization=Optimization("return"),
            iteration=Iteration("squarem", {"max_evaluations": 3}),
            check_optimality="gradient",
        )
    assert not results.converged and not results.fp_converged.any()
    assert "NOT CONVERGED" in str(results)


# functions


@pytest.fixture(scope="module")
def functions(problem: Problem) -> Any:
    return problem.functions(SIGMA, PI, iteration=SQUAREM)


@pytest.fixture(scope="module")
def results(problem: Problem) -> Any:
    return evaluate(problem, blpjax)


def test_functions_agree_with_results(functions: Any, results: Any) -> None:
    theta = functions.theta
    assert list(functions.theta_labels) == results.theta_labels
    np.testing.assert_array_equal(theta, results.theta)
    DELTA.check(functions.delta(theta), results.delta[:, 0])
    FIXED_PARAMETERS.check(functions.moments(theta), results.moments[:, 0])
    FIXED_PARAMETERS.check(functions.objective(theta), results.objective)
    delta = functions.delta(theta)
    DELTA.check(functions.shares(theta, delta), results.compute_shares()[:, 0])
    assert (np.asarray(functions.inversion(theta).status) == 0).all()
    # beta is concentrated out, so xi_by_theta is the Jacobian of delta
    LINEAR_ALGEBRA.check(functions.delta_jacobian(theta), results.xi_by_theta_jacobian)


@pytest.mark.slow
def test_functions_of_buckets_agree_with_outputs(functions: Any, results: Any) -> None:
    theta, delta = functions.theta, functions.delta(functions.theta)
    economy = results.problem.economy
    probabilities, derivatives = functions.probabilities(theta, delta), functions.share_derivatives(theta, delta)
    shares = [jnp.einsum("tji,ti->tj", P, b.weights) for P, b in zip(probabilities, economy.buckets, strict=True)]
    DELTA.check(economy.gather(shares), results.compute_shares()[:, 0])
    # padded products have probabilities and derivatives of zero
    rows = economy.gather([part.sum(axis=2) for part in derivatives])
    LINEAR_ALGEBRA.check(rows, np.nansum(results.compute_demand_jacobians(None), axis=1))


def test_functions_are_differentiable(functions: Any, results: Any) -> None:
    theta = functions.theta
    FIXED_PARAMETERS.check(jax.grad(functions.objective)(theta), results.gradient[:, 0])
    LINEAR_ALGEBRA.check(jax.jacfwd(functions.delta)(theta), functions.delta_jacobian(theta))


@pytest.mark.slow
def test_functions_are_differentiable_twice(problem: Problem, functions: Any) -> None:
    theta, results = functions.theta, evaluate(problem, blpjax, check_optimality="both")
    FIXED_PARAMETERS.check(jax.hessian(functions.objective)(theta), results.hessian)
    LINEAR_ALGEBRA.check(jax.jacrev(functions.moments)(theta), jax.jacfwd(functions.moments)(theta))


def test_shares_and_delta_are_inverses(functions: Any, results: Any) -> None:
    """By theta and by delta, ``ds/dtheta + ds/ddelta ddelta/dtheta = 0`` along the inversion."""
    theta, delta = functions.theta, functions.delta(functions.theta)
    total = jax.jacfwd(lambda t: functions.shares(t, functions.delta(t)))(theta)
    assert np.abs(total).max() < 1e-9
    by_theta = jax.jacfwd(functions.shares, 0)(theta, delta)
    for p in range(2):
        h = 1e-5 * np.eye(theta.size)[p]
        difference = (functions.shares(theta + h, delta) - functions.shares(theta - h, delta)) / 2e-5
        CENTRAL_DIFFERENCE.check(by_theta[:, p], difference)


def test_functions_can_be_mapped(functions: Any) -> None:
    thetas = jnp.outer(jnp.array([0.5, 1.0, 1.5]), functions.theta)
    mapped = jax.vmap(functions.objective)(thetas)
    FIXED_PARAMETERS.check(mapped, [functions.objective(theta) for theta in thetas])


def test_functions_take_weights_and_delta(problem: Problem, results: Any) -> None:
    functions = problem.functions(SIGMA, PI, W=results.updated_W, delta=results.delta, iteration=SQUAREM)
    unscaled = problem.functions(SIGMA, PI, W=results.updated_W, scale_objective=False, iteration=SQUAREM)
    expected = evaluate(problem, blpjax, W=results.updated_W).objective
    FIXED_PARAMETERS.check(functions.objective(functions.theta), expected)
    FIXED_PARAMETERS.check(problem.N * unscaled.objective(unscaled.theta), expected)
    with pytest.raises(ValueError, match="W must have the shape"):
        problem.functions(SIGMA, PI, W=np.eye(2))


@pytest.fixture(scope="module")
def value_and_gradient(functions: Any) -> Any:
    return jax.jit(jax.value_and_grad(functions.objective))


def test_functions_plug_into_scipy(functions: Any, problem: Problem, value_and_gradient: Any) -> None:
    """Another optimiser, a few lines: it decreases the objective, and agrees with solve on where it is."""
    found = scipy.optimize.minimize(value_and_gradient, functions.theta, jac=True, options={"maxiter": 5})
    assert found.fun < float(functions.objective(functions.theta))
    sigma = np.zeros((3, 3))
    sigma[[0, 1, 2, 2], [0, 1, 1, 2]] = found.x[:4]
    pi = np.array([[found.x[4]], [0.0], [found.x[5]]])
    bounds = (np.full((3, 3), -np.inf), np.full((3, 3), np.inf))
    there = problem.solve(
        sigma,
        pi,
        sigma_bounds=bounds,
        method="1s",
        optimization=Optimization("return"),
        iteration=SQUAREM,
        check_optimality="gradient",
    )
    FIXED_PARAMETERS.check(there.objective, found.fun)


def test_functions_plug_into_optax(functions: Any, value_and_gradient: Any) -> None:
    optimizer = optax.adam(0.05)
    theta, state = functions.theta, optimizer.init(functions.theta)
    values = []
    for _ in range(10):
        value, gradient = value_and_gradient(theta)
        updates, state = optimizer.update(gradient, state)
        theta = optax.apply_updates(theta, updates)
        values.append(float(value))
    assert values[-1] < values[0]


def test_functions_of_the_logit() -> None:
    functions = logit().functions()
    assert functions.theta.shape == (0,)
    results = logit().solve(method="1s")
    ROUNDING.check(functions.delta(functions.theta), results.delta[:, 0])
    FIXED_PARAMETERS.check(functions.objective(functions.theta), results.objective)


def test_solving_does_not_warn(problem: Problem) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(problem, blpjax).converged
