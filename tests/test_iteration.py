"""Options of fixed-point iteration: what is accepted, what is refused and what the messages say."""

from typing import Any

import numpy as np
import pytest

from blpjax.exceptions import UnusedOptionWarning
from blpjax.iteration import METHODS, Iteration


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_is(method: str) -> None:
    assert METHODS[method] in repr(Iteration(method))


def test_defaults() -> None:
    iteration = Iteration()
    assert iteration.method == iteration.fixed_point.name == "anderson"
    assert iteration.limits.atol == 1e-13 and iteration.limits.max_evaluations == 5000
    assert Iteration("squarem").limits.atol == Iteration("simple").limits.atol == 1e-14
    assert Iteration("squarem").limits[3:6] == (1.0, 1.0, 4.0) and Iteration("squarem").fixed_point.scheme == 3


def test_options_are_read() -> None:
    squarem = Iteration(
        "squarem",
        {
            "atol": 1e-10,
            "rtol": 1e-9,
            "max_evaluations": 7,
            "scheme": 2,
            "step_min": 0.5,
            "step_max": 2,
            "step_factor": 3,
        },
    )
    assert squarem.limits[:6] == (1e-10, 1e-9, 7, 0.5, 2.0, 3.0)
    assert squarem.fixed_point.scheme == 2
    anderson = Iteration("anderson", {"memory": 3, "safeguard": False, "norm": np.linalg.norm})
    assert anderson.fixed_point.memory == 3 and not anderson.fixed_point.safeguard
    assert anderson.fixed_point.norm is np.linalg.norm
    assert "1e-10" in repr(squarem) and "step_max" in repr(squarem) and "step_max" not in repr(anderson)


def test_numbers_do_not_decide_which_program_is_compiled() -> None:
    first, second = Iteration("squarem", {"atol": 1e-10}), Iteration("squarem", {"atol": 1e-9, "max_evaluations": 3})
    assert first.fixed_point == second.fixed_point and hash(first.fixed_point) == hash(second.fixed_point)
    assert Iteration("squarem", {"scheme": 1}).fixed_point != first.fixed_point


def test_equal_options_are_equal() -> None:
    assert Iteration("squarem", {"atol": 1e-10}) == Iteration("squarem", {"atol": 1e-10})
    assert Iteration("squarem", {"atol": 1e-10}) != Iteration("squarem")


def test_the_given_dictionary_is_not_changed() -> None:
    options = {"atol": 1e-10}
    Iteration("squarem", options)
    assert options == {"atol": 1e-10}


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("newtonn", None, "must be a function or one of .*'anderson'.*not 'newtonn'"),
        ("simple", {"scheme": 1}, r"Iteration\('simple'\) does not have the options \['scheme'\]"),
        ("anderson", {"tol": 1}, r"does not have the options \['tol'\]. It has \['atol'"),
        ("newton", {"norm": np.linalg.norm}, r"does not have the options \['norm'\]"),
        ("newton", {"rtol": 1e-3}, r"does not have the options \['rtol'\]"),
        ("return", {"atol": 1e-3}, r"does not have the options \['atol'\]"),
        ("squarem", {"scheme": 4}, "scheme of Iteration must be 1, 2 or 3, not 4"),
        ("squarem", {"step_min": 2.0}, "step_min of Iteration must not exceed step_max"),
        ("squarem", {"step_factor": 0.5}, "step_factor of Iteration must be at least 1, not 0.5"),
        ("simple", {"atol": -1.0}, "atol of Iteration must be at least 0, not -1.0"),
        ("simple", {"atol": np.nan}, "atol of Iteration must be at least 0, not nan"),
        ("simple", {"max_evaluations": 0}, "max_evaluations of Iteration must be at least 1, not 0"),
        ("anderson", {"memory": 11}, "memory of Iteration must be at most 10, not 11"),
        ("anderson", {"memory": 0}, "memory of Iteration must be at least 1, not 0"),
        ("simple", {"max_evaluations": np.inf}, "max_evaluations of Iteration must be an integer, not inf"),
        ("simple", {"max_evaluations": 10.5}, "max_evaluations of Iteration must be an integer, not 10.5"),
        ("anderson", {"memory": 2.5}, "memory of Iteration must be an integer, not 2.5"),
    ],
)
def test_wrong_values_are_refused(method: str, options: dict[str, object] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Iteration(method, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atol": "1e-3"}, "atol of Iteration must be a number, not '1e-3'"),
        ({"max_evaluations": True}, "max_evaluations of Iteration must be a number, not True"),
        ({"norm": 2}, "norm of Iteration must be a function of an array"),
    ],
)
def test_wrong_types_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Iteration("simple", options)


@pytest.mark.usefixtures("unchecked_types")
def test_a_jacobian_is_for_newton_only() -> None:
    assert Iteration("newton", compute_jacobian=True).method == "newton"
    with pytest.raises(ValueError, match=r"Iteration\('simple'\) does not use a Jacobian. Use Iteration\('newton'\)"):
        Iteration("simple", compute_jacobian=True)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("method", ["hybr", "lm", "krylov", "df-sane", "broyden1", "broyden2", "diagbroyden", print])
def test_methods_of_scipy_and_functions_run_on_the_host(method: Any) -> None:
    iteration = Iteration(method, {"anything": 1}, universal_display=True)
    routine = iteration.fixed_point.host
    assert routine is not None and (routine.method, routine.display) == (method, True)
    assert "anything" in repr(iteration) and iteration == Iteration(method, {"anything": 1}, universal_display=True)
    assert iteration != Iteration(method)


def test_a_jacobian_on_the_host_needs_a_method_that_uses_it() -> None:
    assert Iteration("lm", compute_jacobian=True).fixed_point.host.compute_jacobian  # type: ignore[union-attr]
    with pytest.raises(
        ValueError, match=r"Iteration\('krylov'\) does not use a Jacobian. Use 'hybr', 'lm' or 'newton'"
    ):
        Iteration("krylov", compute_jacobian=True)


def test_a_display_of_compiled_loops_has_no_effect_and_says_so() -> None:
    with pytest.warns(UnusedOptionWarning, match=r"universal_display of Iteration\('simple'\) has no effect"):
        assert Iteration("simple", universal_display=True) == Iteration("simple")


@pytest.mark.usefixtures("unchecked_types")
def test_flags_are_flags() -> None:
    with pytest.raises(TypeError, match="The option safeguard of Iteration must be True or False, not 'no'"):
        Iteration("anderson", {"safeguard": "no"})
    with pytest.raises(TypeError, match="universal_display of Iteration must be True or False, not 'no'"):
        Iteration("lm", universal_display="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="compute_jacobian of Iteration must be True or False, not 1"):
        Iteration("lm", compute_jacobian=1)  # type: ignore[arg-type]


def test_texts_are_no_options_of_scipy() -> None:
    with pytest.raises(TypeError, match=r"option maxiter of Iteration\('lm'\) must be a number, not 'abc'"):
        Iteration("lm", {"maxiter": "abc"})
    assert Iteration("broyden1", {"line_search": "wolfe"}).method_options == {"line_search": "wolfe"}


@pytest.mark.usefixtures("unchecked_types")
def test_options_are_a_mapping() -> None:
    with pytest.raises(TypeError, match="method_options of Iteration must be a mapping or None, not 5"):
        Iteration("simple", 5)  # type: ignore[arg-type]
