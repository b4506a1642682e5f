"""Options of the inversion of shares, next to PyBLP: types of contraction, bounds of shares, routines on the host."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyblp
import pytest

import blpjax
from blpjax import options
from blpjax.exceptions import ConvergenceWarning
from tests.support.problems import PI, SIGMA, build, evaluate, small_tables
from tests.support.silence import quiet
from tests.tolerances import DELTA, ROUNDING, Tolerance

#: SciPy's quasi-Newton methods stop at its own tolerance, 6e-6.
SCIPY_DEFAULT = Tolerance(0.0, 1e-5)


@pytest.fixture(scope="module")
def ours() -> Any:
    return build(blpjax)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return build(pyblp)


@pytest.fixture(scope="module")
def solution(ours: Any) -> np.ndarray:
    return np.asarray(evaluate(ours, blpjax).delta)


@pytest.mark.parametrize("fp_type", ["safe_linear", "linear", "safe_nonlinear", "nonlinear"])
def test_contractions_of_all_types_take_the_steps_of_pyblp(ours: Any, theirs: Any, fp_type: str) -> None:
    """All have the same steps in delta, and what is accelerated differs: `squarem` takes other ones if nonlinear."""
    found = [
        evaluate(problem, library, fp_type=fp_type, iteration=library.Iteration("simple", {"atol": 1e-13}))
        for library, problem in ((blpjax, ours), (pyblp, theirs))
    ]
    DELTA.check(found[0].delta, found[1].delta)
    # rounding may decide about the last step
    np.testing.assert_allclose(found[0].contraction_evaluations, found[1].contraction_evaluations, atol=1)


def test_acceleration_is_of_what_the_type_says(ours: Any, solution: np.ndarray) -> None:
    linear, nonlinear = (evaluate(ours, blpjax, fp_type=kind) for kind in ("safe_linear", "safe_nonlinear"))
    DELTA.check(linear.delta, solution)
    DELTA.check(nonlinear.delta, solution)
    assert (linear.contraction_evaluations != nonlinear.contraction_evaluations).any()
    DELTA.check(evaluate(ours, blpjax, fp_type="nonlinear", iteration=None).delta, solution)  # squarem by default


#: A few steps do not converge, whatever the routine says.
not_converged = pytest.mark.filterwarnings("ignore:GMM step 1 did not:blpjax.exceptions.ConvergenceWarning")


def five_steps(initial: Any, contraction: Callable[[Any], Any], callback: Callable[[], None], steps: int) -> Any:
    for _ in range(steps):
        initial = contraction(initial)[0]
        callback()
    return initial, True


@not_converged
@pytest.mark.parametrize("bounds", [(0.05, None), (0.02, 0.2)], ids=str)
def test_shares_are_clipped_in_contractions_as_by_pyblp(ours: Any, theirs: Any, bounds: Any) -> None:
    """With bounds between observed shares no solution is known, but what some steps lead to is."""
    found = [
        evaluate(problem, library, shares_bounds=bounds, iteration=library.Iteration(five_steps, {"steps": 5}))
        for library, problem in ((blpjax, ours), (pyblp, theirs))
    ]
    ROUNDING.check(found[0].delta, found[1].delta)
    assert (found[0].fp_iterations == 5).all() and (found[0].contraction_evaluations == 5).all()
    shares = found[0].compute_shares(delta=found[0].delta)
    lower, upper = (0.0 if bounds[0] is None else bounds[0]), (1.0 if bounds[1] is None else bounds[1])
    np.testing.assert_array_equal(found[0].clipped_shares, (shares < lower) | (shares > upper))
    assert found[0].clipped_shares.any() and not found[0].fp_converged.all()


@pytest.mark.slow
def test_bounds_that_bind_on_the_way_change_the_way_as_in_pyblp(ours: Any, theirs: Any, solution: np.ndarray) -> None:
    shares = small_tables()[0]["shares"]
    bounds = 0.9 * shares.min(), 1.05 * shares.max()
    far = np.where(np.arange(len(shares)) % 2, -9.0, 1.0)
    found = [
        evaluate(problem, library, delta=far, shares_bounds=bounds)
        for library, problem in ((blpjax, ours), (pyblp, theirs))
    ]
    DELTA.check(found[0].delta, solution)
    np.testing.assert_allclose(found[0].contraction_evaluations, found[1].contraction_evaluations, atol=1)
    unbounded = evaluate(ours, blpjax, delta=far)
    assert (found[0].contraction_evaluations > unbounded.contraction_evaluations).any()
    assert not found[0].clipped_shares.any()


# Every routine has a compiled program of its own: seconds each.
SCIPY = [
    "df-sane",
    *(pytest.param(m, marks=pytest.mark.slow) for m in ("broyden1", "broyden2", "krylov", "diagbroyden")),
]


@pytest.mark.parametrize("method", SCIPY)
def test_root_finders_of_scipy_invert_shares(ours: Any, solution: np.ndarray, method: str) -> None:
    found = evaluate(ours, blpjax, iteration=blpjax.Iteration(method))
    assert found.fp_converged.all() and (found.contraction_evaluations > 1).all()
    SCIPY_DEFAULT.check(found.delta, solution)


@pytest.mark.parametrize(
    ("method", "compute_jacobian"), [pytest.param("hybr", False, marks=pytest.mark.slow), ("lm", True)]
)
def test_minpack_takes_the_steps_of_pyblp(ours: Any, theirs: Any, method: str, compute_jacobian: bool) -> None:
    found = [
        evaluate(problem, library, iteration=library.Iteration(method, {"xtol": 1e-12}, compute_jacobian))
        for library, problem in ((blpjax, ours), (pyblp, theirs))
    ]
    np.testing.assert_allclose(found[0].delta, found[1].delta, rtol=0, atol=1e-9)
    if method == "lm":  # the other searches a direction at random where rounding errors are all that is left
        np.testing.assert_allclose(found[0].contraction_evaluations, found[1].contraction_evaluations, atol=2)


@not_converged
def test_routines_on_the_host_can_display_their_progress(ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    iteration = blpjax.Iteration(five_steps, {"steps": 5}, universal_display=True)
    with quiet():
        monkeypatch.setattr(options, "verbose", True)
        monkeypatch.setattr(options, "verbose_output", texts.append)
        ours.solve(
            SIGMA,
            PI,
            method="1s",
            iteration=iteration,
            optimization=blpjax.Optimization("return"),
            check_optimality="gradient",
        )
    lines = [text.split() for text in texts]
    # evaluation, iteration and the norm of the change, for each of five steps
    assert sum(len(line) == 3 and line[0] == "5" for line in lines) == ours.T


#: What `answering` calls: one function has one program, whatever it returns.
ANSWERS: list[Callable[[Any], Any]] = []


def answering(initial: Any, contraction: Any, callback: Any) -> Any:
    return ANSWERS[-1](initial)


def test_an_iteration_that_returns_its_start_has_not_converged(ours: Any) -> None:
    ANSWERS.append(lambda initial: (initial, True))
    with pytest.warns(ConvergenceWarning, match="inversion of market shares made no further progress .* in 8 of 8"):
        found = evaluate(ours, blpjax, iteration=blpjax.Iteration(answering))
    assert not found.converged and not found.fp_converged.any() and (found.fp_residuals > 0.01).all()


@pytest.mark.slow
def test_a_norm_that_is_always_zero_ends_no_loop_successfully(ours: Any) -> None:
    with pytest.warns(ConvergenceWarning, match="inversion of market shares made no further progress"):
        found = evaluate(ours, blpjax, iteration=blpjax.Iteration("simple", {"norm": lambda x: 0.0 * x.sum()}))
    assert not found.converged and not found.fp_converged.any()


def test_a_norm_by_numpy_is_refused_in_words(ours: Any) -> None:
    with pytest.raises(TypeError, match="norm of Iteration must consist of operations of JAX: use jax.numpy"):
        evaluate(ours, blpjax, iteration=blpjax.Iteration("simple", {"norm": lambda x: float(np.max(np.array(x)))}))


def test_values_that_are_returned_have_the_residuals_of_their_shares(ours: Any, solution: np.ndarray) -> None:
    for delta, close in ((solution, True), (solution + 0.1, False)):
        found = evaluate(ours, blpjax, delta=delta, iteration=blpjax.Iteration("return"))
        assert ((found.fp_residuals < 1e-9) == close).all()


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, r"must return \(final, converged\), not None"),
        (([0.5], True), ValueError, "must return 3 final values, as many as it is given, not 1"),
        (("text", True), TypeError, "must return an array of numbers and a flag"),
    ],
)
def test_what_a_custom_iteration_returns_is_checked(
    ours: Any, capfd: pytest.CaptureFixture[str], returned: Any, error: type[Exception], message: str
) -> None:
    ANSWERS.append(lambda initial: returned)
    with pytest.raises(error, match=message) as raised:
        evaluate(ours, blpjax, iteration=blpjax.Iteration(answering))
    assert raised.value.__cause__ is None and raised.value.__suppress_context__
    assert "pure_callback" not in capfd.readouterr().err


def test_errors_of_a_custom_iteration_are_raised_as_they_are(ours: Any) -> None:
    def interrupted(initial: Any) -> Any:
        raise KeyboardInterrupt("by the user")

    ANSWERS.append(interrupted)
    with pytest.raises(KeyboardInterrupt, match="by the user"):
        evaluate(ours, blpjax, iteration=blpjax.Iteration(answering))
