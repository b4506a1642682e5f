"""Options: PyBLP's names and defaults, with checked assignments."""

import io
import sys
from collections.abc import Iterator

import jax
import numpy as np
import pytest

import blpjax.options as options
from blpjax.exceptions import UnusedOptionWarning

NAMES = [
    "digits", "verbose", "verbose_tracebacks", "verbose_output", "flush_output", "dtype", "finite_differences_epsilon",
    "pseudo_inverses", "weights_tol", "singular_tol", "collinear_atol", "collinear_rtol", "psd_atol", "psd_rtol",
    "stable_atol", "stable_rtol", "detect_micro_collinearity", "micro_computation_chunks", "drop_product_fields",
]  # fmt: skip


@pytest.fixture(autouse=True)
def restore_options() -> Iterator[None]:
    saved = {name: getattr(options, name) for name in NAMES}
    yield
    for name, value in saved.items():
        setattr(options, name, value)


def test_names_and_defaults_are_those_of_pyblp() -> None:
    pyblp = pytest.importorskip("pyblp")
    theirs = {name for name in vars(pyblp.options) if not name.startswith("_")}
    assert theirs == set(NAMES)
    for name in NAMES:
        # other tests may have silenced either library
        if name not in {"verbose", "verbose_output", "flush_output"}:
            assert getattr(options, name) == getattr(pyblp.options, name), name


@pytest.mark.parametrize(
    "name, value",
    [
        ("digits", 3),
        ("verbose", False),
        ("flush_output", True),
        ("weights_tol", np.inf),
        ("collinear_atol", 0),
        ("psd_rtol", 1e-3),
        ("stable_atol", 1.0),
        ("finite_differences_epsilon", 1e-4),
        ("pseudo_inverses", False),
        ("verbose_tracebacks", True),
    ],
)
def test_assignments_take_effect(name: str, value: object) -> None:
    setattr(options, name, value)
    assert getattr(options, name) == value


def test_misspelled_names_raise_with_the_close_name() -> None:
    with pytest.raises(AttributeError, match="no option 'verbos'.*Did you mean 'verbose'"):
        options.verbos = True  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="Options are: .*digits"):
        options.qqq = True  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del options.digits
    assert not hasattr(options, "verbos")


@pytest.mark.parametrize(
    "name, value, error, message",
    [
        ("digits", 7.0, TypeError, "options.digits must be an integer, not 7.0"),
        ("digits", True, TypeError, "options.digits must be an int"),
        ("digits", 0, ValueError, "options.digits must be at least 1"),
        ("verbose", 1, TypeError, "options.verbose must be True or False, not 1"),
        ("verbose_output", "print", TypeError, "options.verbose_output must be a function"),
        ("weights_tol", "small", TypeError, "options.weights_tol must be a number"),
        ("weights_tol", -1.0, ValueError, "options.weights_tol must be a non-negative number"),
        ("collinear_rtol", np.nan, ValueError, "options.collinear_rtol must be a non-negative number"),
        ("dtype", "no such type", TypeError, "options.dtype must be numpy.float64"),
        ("dtype", np.longdouble, NotImplementedError, "options.dtype.*shifted by their maximum"),
        ("dtype", np.float32, NotImplementedError, "options.dtype.*Single precision gives wrong"),
        ("dtype", None, NotImplementedError, "options.dtype = None is not supported"),
        ("pseudo_inverses", 1, TypeError, "options.pseudo_inverses must be True or False, not 1"),
        ("verbose_tracebacks", "yes", TypeError, "options.verbose_tracebacks must be True or False"),
        ("finite_differences_epsilon", 0, ValueError, "options.finite_differences_epsilon must be a positive number"),
        ("finite_differences_epsilon", np.inf, ValueError, "options.finite_differences_epsilon must be a positive"),
        ("finite_differences_epsilon", "small", TypeError, "options.finite_differences_epsilon must be a number"),
        ("stable_atol", "small", TypeError, "options.stable_atol must be a number, not 'small'"),
        ("micro_computation_chunks", True, TypeError, "options.micro_computation_chunks must be an integer"),
        ("micro_computation_chunks", 0, ValueError, "options.micro_computation_chunks must be at least 1"),
        (
            "micro_computation_chunks",
            {"a": 0},
            ValueError,
            r"options.micro_computation_chunks\['a'\] must be at least 1",
        ),
        ("detect_micro_collinearity", 1, TypeError, "options.detect_micro_collinearity must be True or False"),
        ("drop_product_fields", 1, TypeError, "options.drop_product_fields must be something like False, not 1"),
    ],
)
def test_bad_values_are_refused(name: str, value: object, error: type[Exception], message: str) -> None:
    before = getattr(options, name)
    with pytest.raises(error, match=message):
        setattr(options, name, value)
    assert getattr(options, name) == before


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("drop_product_fields", True, "options.drop_product_fields has no effect: Only the fields"),
    ],
)
def test_options_without_effect_can_be_set_and_say_so(name: str, value: object, message: str) -> None:
    with pytest.warns(UnusedOptionWarning, match=message):
        setattr(options, name, value)
    assert getattr(options, name) == value


@pytest.mark.parametrize("name", NAMES)
def test_every_option_accepts_its_own_value(name: str) -> None:
    value = getattr(options, name)
    setattr(options, name, value)
    assert getattr(options, name) == value


def test_dtype_accepts_any_spelling_of_double() -> None:
    options.dtype = "float64"  # type: ignore[assignment]
    assert options.dtype is np.float64


def test_output_uses_verbose_output_unless_verbose_is_off() -> None:
    texts: list[str] = []
    options.verbose, options.verbose_output = True, texts.append
    options.output("one")
    options.output(2)
    options.verbose = False
    options.output("three")
    assert texts == ["one", "2"]


@pytest.mark.parametrize("flush", [True, False])
def test_output_flushes_on_request(monkeypatch: pytest.MonkeyPatch, flush: bool) -> None:
    class Stream(io.StringIO):
        flushed = False

        def flush(self) -> None:
            self.flushed = True

    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    options.verbose, options.verbose_output, options.flush_output = True, lambda text: stream.write(text), flush
    options.output("text")
    assert stream.getvalue() == "text"
    assert stream.flushed is flush


def test_verbose_tracebacks_show_the_frames_of_jax() -> None:
    before = jax.config.jax_traceback_filtering
    options.verbose_tracebacks = True
    assert jax.config.jax_traceback_filtering == "off"
    options.verbose_tracebacks = True
    options.verbose_tracebacks = False
    assert jax.config.jax_traceback_filtering == before
