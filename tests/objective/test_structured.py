"""Products and agents as structured arrays, next to PyBLP."""

from typing import Any

import numpy as np
import pyblp
import pytest

import blpjax
from blpjax.exceptions import DataError
from tests.support import lags
from tests.support.silence import quiet
from tests.tolerances import ROUNDING


def products(library: Any, formulas: tuple[str | None, ...] = ("1 + prices + x", "1 + x", "1 + w"), **more: Any) -> Any:
    absorb = {0: "C(firm_ids)"} if more.pop("absorbed", False) else {}
    formulations = tuple(
        None if formula is None else library.Formulation(formula, absorb=absorb.get(k))
        for k, formula in enumerate(formulas)
    )
    with quiet():
        return library.Products(formulations, lags.tables(3)[0], **more)


def check(actual: Any, expected: Any) -> None:
    assert sorted(actual.dtype.names) == sorted(expected.dtype.names)
    for name in actual.dtype.names:
        a, e = actual[name], expected[name]
        assert (a.shape, a.dtype) == (e.shape, e.dtype), name
        if a.dtype == object:
            assert (a.shape[1] == e.shape[1]) and (name == "demand_ids" or a.tolist() == e.tolist()), name
        else:
            ROUNDING.check(np.nan_to_num(a), np.nan_to_num(e), name)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"instruments": False},
        {"add_exogenous": False},
        {"formulas": ("1 + prices + x", None, None)},
        {"formulas": ("0 + prices + x", "1 + x", None), "absorbed": True},
    ],
)
def test_products_are_those_of_pyblp(options: dict[str, Any]) -> None:
    check(products(blpjax, **options), products(pyblp, **options))


@pytest.mark.parametrize("kind", ["data", "integration", "no weights", "no X2"])
def test_agents_are_those_of_pyblp(kind: str) -> None:
    found = []
    for library in (blpjax, pyblp):
        agents = lags.tables(3)[1]
        formulation, options = library.Formulation("0 + income"), {}
        if kind == "integration":
            options["integration"] = library.Integration("product", 3)
        if kind == "no weights":
            agents, options["check_weights"] = agents.drop(columns="weights"), False
        with quiet():
            if kind == "no X2":
                found.append(library.Agents(products(library, ("1 + prices", None, None))))
            else:
                found.append(library.Agents(products(library), formulation, agents, **options))
    check(*found)


@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_structured_is_refused() -> None:
    with pytest.raises(TypeError, match="products must be a structured array of products, such as Products"):
        blpjax.Agents(lags.tables(3)[0])
    with pytest.raises(DataError, match="agent_data: .*'weights'"):
        blpjax.Agents(products(blpjax), agent_data=lags.tables(3)[1].drop(columns="weights"))
    with pytest.raises(TypeError, match="instruments must be True or False"):
        products(blpjax, instruments=1)
    with pytest.raises(TypeError, match="must be Formulation instances"):
        blpjax.Agents(products(blpjax), "0 + income", lags.tables(3)[1])
