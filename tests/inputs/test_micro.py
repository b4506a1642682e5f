"""Micro datasets, parts and moments: what they hold, how they are described, and what is refused."""

from typing import Any

import numpy as np
import pyblp
import pytest

import blpjax
from blpjax.inputs.micro import distinct_datasets, distinct_parts, read_micro_moments


def ones(t: Any, products: Any, agents: Any) -> np.ndarray:
    return np.ones((agents.size, products.size))


def dataset(name: str = "d", library: Any = blpjax, **kwargs: Any) -> Any:
    return library.MicroDataset(name, 60, ones, **kwargs)


def part(name: str = "p", survey: Any = None, library: Any = blpjax) -> Any:
    return library.MicroPart(name, survey or dataset(library=library), ones)


same = part()
moment = blpjax.MicroMoment("m", 1, same)


def test_descriptions_are_those_of_pyblp() -> None:
    texts = []
    for library in (pyblp, blpjax):
        surveys = [
            dataset("all", library),
            dataset("one", library, market_ids=["C61Q1"]),
            dataset("two", library, market_ids=np.array([1, 2])),
        ]
        parts = [part(f"of {survey.name}", survey, library) for survey in surveys]
        moment = library.MicroMoment("m", 0.3, parts[0])
        several = library.MicroMoment("f", np.array([-2.0]), parts[:2], lambda v: v[0], lambda v: np.array([1, 0]))
        texts.append([str(one) for one in (*surveys, *parts, moment, several)])
        assert repr(moment) == str(moment)
    assert texts[0] == texts[1]


def test_attributes_are_arguments() -> None:
    survey = dataset(market_ids=np.array([3, 1]), eliminated_product_ids_index=np.int64(1))
    assert survey.market_ids == {1, 3} and survey.eliminated_product_ids_index == 1
    assert blpjax.MicroDataset("d", np.int32(7), ones).observations == 7
    alone = blpjax.MicroMoment("m", 1, part())
    assert alone.value == 1.0 and [p.name for p in alone.parts] == ["p"] and alone.is_part
    assert alone != blpjax.MicroMoment("m", 1, alone.parts[0]) and len({alone, alone}) == 1


def test_moments_can_be_made_anew_of_the_attributes_of_others() -> None:
    """As scripts do that replace values; PyBLP's functions of a single part are functions, too."""
    old = blpjax.MicroMoment("m", 1, part())
    new = blpjax.MicroMoment(old.name, 2, old.parts, old.compute_value, old.compute_gradient)
    assert new.is_part and new.value == 2 and new.parts == old.parts
    np.testing.assert_array_equal(new.compute_value(np.array([3.0])), 3.0)
    np.testing.assert_array_equal(new.compute_gradient(np.array([3.0])), [1.0])
    assert not blpjax.MicroMoment("m", 1, part(), lambda v: v[0]).is_part


def test_parts_and_datasets_are_counted_once() -> None:
    first, second = dataset("first"), dataset("second")
    parts = [part("a", second), part("b", first), part("c", second)]
    moments = [blpjax.MicroMoment("m", 0, parts[:2], lambda v: v[0] / v[1]), blpjax.MicroMoment("n", 0, parts[2])]
    moments.append(blpjax.MicroMoment("o", 0, (p for p in parts), lambda v: v.sum()))
    assert distinct_parts(moments) == parts and distinct_datasets(parts) == [second, first]
    assert read_micro_moments(iter(moments)) == moments and read_micro_moments([]) == []


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: blpjax.MicroDataset(1, 2, ones), TypeError, "name must be a string, not 1"),
        (lambda: blpjax.MicroDataset("d", 0, ones), ValueError, "observations must be a positive int, not 0"),
        (lambda: blpjax.MicroDataset("d", 10.0, ones), ValueError, "observations must be a positive int, not 10.0"),
        (lambda: blpjax.MicroDataset("d", True, ones), ValueError, "observations must be a positive int, not True"),
        (lambda: blpjax.MicroDataset("d", 2, np.ones(2)), ValueError, "compute_weights must be callable"),
        (lambda: dataset(eliminated_product_ids_index=-1), ValueError, "must be None or a nonnegative int, not -1"),
        (lambda: dataset(eliminated_product_ids_index="0"), ValueError, "must be None or a nonnegative int, not '0'"),
        (lambda: dataset(market_ids=["a", "b", "a"]), ValueError, "market_ids are repeated: 'a'"),
        (lambda: dataset(market_ids=[]), ValueError, "market_ids must have at least one market"),
        (
            lambda: dataset(market_ids="C61Q1"),
            TypeError,
            "market_ids must be a list of market IDs or None, not 'C61Q1'",
        ),
        (lambda: dataset(market_ids=3), TypeError, "market_ids must be a list"),
        (lambda: blpjax.MicroPart(None, dataset(), ones), TypeError, "name must be a string"),
        (lambda: blpjax.MicroPart("p", "d", ones), TypeError, "dataset must be a MicroDataset, not str"),
        (lambda: blpjax.MicroPart("p", dataset(), 1), ValueError, "compute_values must be callable"),
        (lambda: blpjax.MicroMoment("m", [1, 2], part()), TypeError, "value must be a number"),
        (lambda: blpjax.MicroMoment("m", None, part()), TypeError, "value must be a number, not None"),
        (lambda: blpjax.MicroMoment("m", "1", part()), TypeError, "value must be a number, not '1'"),
        (lambda: blpjax.MicroMoment("m", np.nan, part()), ValueError, "value must be finite, not nan"),
        (lambda: blpjax.MicroMoment("m", 1, 2), TypeError, "parts must be a MicroPart or several of them, not int"),
        (lambda: blpjax.MicroMoment("m", 1, []), ValueError, "parts must have at least one MicroPart"),
        (lambda: blpjax.MicroMoment("m", 1, [dataset()]), TypeError, "must consist of MicroParts, not MicroDataset"),
        (lambda: blpjax.MicroMoment("m", 1, [part()]), ValueError, "compute_value is needed with a list of parts"),
        (lambda: blpjax.MicroMoment("m", 1, part(), None, ones), ValueError, "compute_gradient needs a compute_value"),
        (lambda: blpjax.MicroMoment("m", 1, part(), 3), ValueError, "compute_value must be callable"),
        (lambda: blpjax.MicroMoment("m", 1, [part(), part()], sum), ValueError, "two micro parts have the name 'p'"),
        (lambda: blpjax.MicroMoment("m", 1, [same, same], sum), ValueError, "the micro part 'p' is there twice"),
        (
            lambda: blpjax.MicroMoment("m", 1, [part("a"), part("b")], sum),
            ValueError,
            "two micro datasets have the name",
        ),
        (lambda: read_micro_moments(blpjax.MicroMoment("m", 1, part())), TypeError, r"put the moment into a list"),
        (lambda: read_micro_moments("m"), TypeError, "must be a list of MicroMoment instances, not str"),
        (lambda: read_micro_moments(["m"]), TypeError, "but one of them is str"),
        (lambda: read_micro_moments([moment, moment]), ValueError, "the moment 'm' is there twice"),
        (
            lambda: read_micro_moments([moment, blpjax.MicroMoment("m", 2, moment.parts[0])]),
            ValueError,
            "two moments have the name 'm'",
        ),
        (
            lambda: read_micro_moments([moment, blpjax.MicroMoment("n", 2, part())]),
            ValueError,
            "two micro parts have the name 'p'",
        ),
        (
            lambda: read_micro_moments([moment, blpjax.MicroMoment("n", 2, part("q"))]),
            ValueError,
            "two micro datasets have the name 'd'",
        ),
        (lambda: read_micro_moments(np.ones(2)), TypeError, "but one of them is"),
    ],
)
def test_what_is_wrong_is_refused_when_it_is_built(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
