"""Plain values of arguments: what is a flag, an integer or a seed, and what is refused, wherever it is given."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import blpjax
from blpjax.inputs.updating import replace_values
from blpjax.values import check_integer, read_flag, read_seed
from tests.support.problems import small_tables
from tests.support.silence import quiet

pytestmark = pytest.mark.usefixtures("unchecked_types")


def test_flags_are_booleans_only() -> None:
    assert [read_flag("flag", value) for value in (True, False, np.True_, np.False_)] == [True, False, True, False]
    for value in ("no", 1, 0, None, [], np.array([True])):
        with pytest.raises(TypeError, match="flag must be True or False, not"):
            read_flag("flag", value)


def test_integers_and_seeds_are_integers() -> None:
    assert check_integer("size", np.int64(3), minimum=1) == 3 and read_seed("seed", np.uint32(5)) == 5
    assert read_seed("seed", None) is None
    for value in ("a", 1.0, True, [1]):
        with pytest.raises(TypeError, match="seed must be an integer, not"):
            read_seed("seed", value)
    for value, message in ((-1, "seed must be at least 0, not -1"), (2**32, r"seed must be below 2\*\*32")):
        with pytest.raises(ValueError, match=message):
            read_seed("seed", value)


def problem() -> blpjax.Problem:
    return blpjax.Problem(blpjax.Formulation("1 + prices + x"), small_tables()[0])


def results() -> blpjax.ProblemResults:
    return problem().solve(method="1s")


def simulation(**options: Any) -> blpjax.Simulation:
    formulas = tuple(map(blpjax.Formulation, ("1 + prices", "0 + x", "1 + x")))
    data = blpjax.build_id_data(T=2, J=3, F=2)
    integration = blpjax.Integration("product", 2)
    return (
        blpjax.Simulation(formulas[:1], data, [1, -2], xi=np.zeros(6), **options)
        if not options
        else (blpjax.Simulation(formulas, data, [1, -2], 0.5, gamma=[1, 1], integration=integration, **options))
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: problem().functions(scale_objective="no"), "scale_objective must be True or False, not 'no'"),
        (
            lambda: blpjax.Problem(blpjax.Formulation("1 + prices"), small_tables()[0], add_exogenous="no"),
            "add_exogenous must be True or False, not 'no'",
        ),
        (lambda: replace_values({}, {}, partial="no"), "partial must be True or False, not 'no'"),
        (lambda: results().compute_elasticities(as_frame="no"), "as_frame must be True or False, not 'no'"),
        (lambda: results().compute_costs(standard_errors=1), "standard_errors must be True or False, not 1"),
        (lambda: results().compute_consumer_surpluses(keep_all=None), "keep_all must be True or False, not None"),
        (lambda: results().compute_prices(constant_costs="no"), "constant_costs must be True or False, not 'no'"),
        (lambda: results().bootstrap(10, constant_costs=0), "constant_costs must be True or False, not 0"),
        (lambda: results().bootstrap(10, seed="a"), "seed must be an integer, not 'a'"),
        (lambda: results().reestimate(10, recentre="no"), "recentre must be True or False, not 'no'"),
        (lambda: results().reestimate(10, seed="a"), "seed must be an integer, not 'a'"),
        (lambda: results().delta_method(lambda model: model.shares, constant_costs="no"), "constant_costs must be"),
        (lambda: results().compute_optimal_instruments(seed="a"), "seed must be an integer, not 'a'"),
        (lambda: results().compute_optimal_instruments(constant_costs="no"), "constant_costs must be True or False"),
        (lambda: simulation(seed="a"), "seed must be an integer, not 'a'"),
        (lambda: simulation(seed=1.5), "seed must be an integer, not 1.5"),
        (
            lambda: simulation().replace_endogenous(np.ones(6), compute_hessians="no"),
            "compute_hessians must be True or",
        ),
        (lambda: simulation().replace_endogenous(np.ones(6), constant_costs="no"), "constant_costs must be True or"),
        (lambda: blpjax.data_to_dict(np.zeros(2, [("x", float)]), ignore_empty="no"), "ignore_empty must be True or"),
        (
            lambda: blpjax.build_differentiation_instruments(
                blpjax.Formulation("0 + x"), small_tables()[0], interact="no"
            ),
            "interact must be True or False, not 'no'",
        ),
    ],
)
def test_flags_and_seeds_are_checked_wherever_they_are_given(call: Callable[[], Any], message: str) -> None:
    with quiet(), pytest.raises(TypeError, match=message):
        call()
