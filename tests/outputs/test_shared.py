"""The arguments that compute methods share: seen by name and position, after those of the method."""

import inspect
from typing import Any, Unpack

import pytest

from blpjax.outputs.outputs import Outputs
from blpjax.outputs.shared import DEFAULTS, Shared, compute_method

METHODS = [name for name in dir(Outputs) if name.startswith("compute")]


class Echo:
    """Returns what arrives."""

    @compute_method
    def compute(self, own: int, other: str = "o", *, last: float = 1.0, **shared: Unpack[Shared]) -> Any:
        """What arrives."""
        return own, other, last, shared


def test_signatures_have_own_arguments_then_shared_ones_then_those_behind_a_star() -> None:
    signature = inspect.signature(Echo.compute)
    assert list(signature.parameters) == ["self", "own", "other", *DEFAULTS, "last"]
    assert {p.kind for p in signature.parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert {name: signature.parameters[name].default for name in DEFAULTS} == DEFAULTS
    assert signature.parameters["as_frame"].annotation is bool and signature.parameters["hold"].annotation is str
    assert Echo.compute.__name__ == "compute" and Echo.compute.__doc__ == "What arrives."


def test_all_of_them_arrive_by_name_and_by_position() -> None:
    assert Echo().compute(1) == (1, "o", 1.0, DEFAULTS)
    arrived = {"market_id": "m", "as_frame": True, "standard_errors": False, "hold": "xi"}
    assert Echo().compute(1, "p", "m", True, False, "xi", 2.0) == (1, "p", 2.0, arrived)
    assert Echo().compute(own=1, hold="xi", last=2.0, market_id="m", as_frame=True) == (1, "o", 2.0, arrived)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, r"Echo.compute\(\) missing a required argument: 'own'"),
        ((1,), {"market": "m"}, r"Echo.compute\(\) got an unexpected keyword argument 'market'"),
        ((1, "o", "m"), {"market_id": "m"}, r"Echo.compute\(\) multiple values for argument 'market_id'"),
        ((1, "o", "m", True, True, "xi", 1.0, 2.0), {}, r"Echo.compute\(\) too many positional arguments"),
    ],
)
def test_calls_that_do_not_fit_name_the_method(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Echo().compute(*args, **kwargs)


OF_CONDUCT = [f"compute_{name}" for name in "costs passthrough approximate_prices prices markups profits".split()]


@pytest.mark.parametrize("name", METHODS)
def test_every_compute_method_has_them_and_a_docstring(name: str) -> None:
    method = getattr(Outputs, name)
    parameters = inspect.signature(method).parameters
    names = list(parameters)
    first = names.index("market_id")
    assert names[first : first + 4] == list(DEFAULTS)
    more = ["error_behavior"] if name == "compute_prices" else []
    assert names[first + 4 :] == more + (["conduct"] if name in OF_CONDUCT else [])
    assert {key: parameters[key].default for key in DEFAULTS} == DEFAULTS
    assert inspect.getdoc(method) and all(argument in (Outputs.__doc__ or "") for argument in DEFAULTS)
