"""Passthrough on the host, by formulas for demand that is linear in prices, is that of programs."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import blpjax
from blpjax.inputs.expressions import degree, parse_expression
from tests.support import joint
from tests.support.programs import compilations
from tests.tolerances import LINEAR_ALGEBRA

GROUPS = 3


@pytest.mark.parametrize("asymmetric", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("nested", [pytest.param(False, marks=pytest.mark.slow), True])
def test_formulas_on_the_host_are_those_of_programs(nested: bool, asymmetric: bool) -> None:
    products, agents = joint.tables(markets=4)
    if asymmetric:
        products = joint.with_asymmetric_ownership(products)
    arguments: dict[str, Any] = {"sigma": joint.SIGMA, "pi": joint.PI, "beta": [None, -2.0, None, None]}
    if nested:
        products["nesting_ids"] = np.arange(len(products)) % GROUPS
        arguments["rho"] = [0.3, 0.9, 0.0]
    model = dataclasses.replace(joint.Model(), X2="1 + x + I(0.1 * prices * x)")
    arguments["sigma"] = np.diag([0.4, 0.6, 0.0])
    arguments["pi"] = np.array([[0.3], [0.0], [-0.2]])
    problem = model.build(blpjax, products, agents)
    with joint.quiet():
        results = problem.solve(
            **arguments, method="1s", optimization=blpjax.Optimization("return"), check_optimality="gradient"
        )
    with compilations() as compiled:
        found = results.compute_passthrough()
    assert not compiled
    LINEAR_ALGEBRA.check(found, results.model.compute_passthrough())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", 0),
        ("prices", 1),
        ("I(prices)", 1),
        ("-prices / x", 1),
        ("x * prices + prices", 1),
        ("prices * x * prices", 2),
        ("prices - log(x)", 1),
        ("log(prices)", np.inf),
        ("x / prices", np.inf),
        ("prices ** 2", np.inf),
        ("2 ** x", 0),
        ("C(prices)", np.inf),
    ],
)
def test_degrees_of_formulas(text: str, expected: float) -> None:
    assert degree(parse_expression(text), "prices") == expected
