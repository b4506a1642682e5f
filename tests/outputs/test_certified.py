"""Second-order conditions against closed forms of the logit, and searches from several starting prices."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from blpjax import Formulation, Optimization, Problem, Taxes
from blpjax.exceptions import ConvergenceWarning, EquilibriumPricesConvergenceError
from blpjax.outputs import outcome
from tests.support.silence import silent
from tests.support.worlds import FIRMS, PRODUCTS, results
from tests.tolerances import DELTA, LINEAR_ALGEBRA

pytestmark = pytest.mark.usefixtures("quiet")
FIRST = (PRODUCTS.product_ids == 0).to_numpy()


@functools.cache
def logit() -> Any:
    """Firms with a product each, whose profits have the second derivative -a s in their price."""
    with silent():
        problem = Problem(Formulation("1 + prices + x"), PRODUCTS.assign(firm_ids=np.arange(FIRMS.size)))
        return problem.solve(
            beta=[1.0, -2.0, 1.5], method="1s", optimization=Optimization("return"), check_optimality="gradient"
        )


def test_curvature_of_profits_is_that_of_the_closed_form() -> None:
    found = logit().counterfactual(costs=lambda c: c + 0.1, hold=FIRST, check=True)
    free = PRODUCTS.market_ids[~FIRST]
    expected = (-2.0 * PRODUCTS.assign(s=found.after.shares).s[~FIRST]).groupby(free).max()
    LINEAR_ALGEBRA.check(found.markets["largest_curvature"], expected)
    taxed = logit().counterfactual(taxes=Taxes(0.1, 0.25), check=True)
    expected = (-2.0 / 1.25 * PRODUCTS.assign(s=taxed.after.shares).s).groupby(PRODUCTS.market_ids).max()
    LINEAR_ALGEBRA.check(taxed.markets["largest_curvature"], expected)


@pytest.mark.slow
def test_profits_are_concave_after_a_merger_and_an_exit() -> None:
    merged = results().counterfactual(firm_ids={1: 0}, drop=FIRST, check=True)
    assert (merged.markets["largest_curvature"] < 0).all()


def test_firms_that_would_gain_by_other_prices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "largest_curvatures", lambda *given: np.array([-1.0, 0.5, -np.inf]))
    with pytest.warns(ConvergenceWarning, match="Second-order conditions fail in 1 markets, such as 'b'"):
        found = logit().counterfactual(check=True)
    assert found.markets["largest_curvature"].tolist() == [-1.0, 0.5, -np.inf]
    with pytest.raises(EquilibriumPricesConvergenceError, match="such as 'b'"):
        logit().counterfactual(check=True, error_behavior="raise")


@pytest.mark.parametrize("known", [logit, pytest.param(results, marks=pytest.mark.slow)])
def test_other_starts_lead_to_the_same_equilibrium(known: Callable[[], Any]) -> None:
    arguments: dict[str, Any] = {"firm_ids": {1: 0}, "hold": FIRST}
    found, once = known().counterfactual(**arguments, starts=(3, 1)), known().counterfactual(**arguments)
    assert found.markets["equilibria"].tolist() == [1, 1, 1]
    DELTA.check(found.after.prices, once.after.prices)
    np.testing.assert_array_equal(found.after.prices[FIRST], PRODUCTS.prices[FIRST])


def test_different_equilibria_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blpjax.outputs.certified._SAME", 0.0)
    monkeypatch.setattr(np, "allclose", lambda *given, **options: False)
    with pytest.warns(ConvergenceWarning, match="Different equilibria were found in 3 markets, such as 'a'"):
        found = logit().counterfactual(costs=lambda c: c + 0.1, starts=2)
    assert found.markets["equilibria"].tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"check": "yes"}, TypeError, "check must be True or False"),
        ({"starts": 0}, ValueError, "starts must be a positive integer"),
        ({"starts": (2, -1)}, ValueError, "starts"),
        ({"check": True, "prices": PRODUCTS.prices}, ValueError, "nobody sets"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        logit().counterfactual(**arguments)
