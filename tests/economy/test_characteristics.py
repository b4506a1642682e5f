"""Characteristics as functions of the variables in their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from blpjax.economy.characteristics import Characteristics
from blpjax.inputs.formulation import Formulation
from tests.support.economies import tables
from tests.tolerances import CENTRAL_DIFFERENCE, ROUNDING


@pytest.fixture(scope="module")
def characteristics() -> Characteristics:
    products, _ = tables(3, [4, 5], [2, 2])
    data = {name: products[name].to_numpy() for name in ("prices", "x", "product_ids")}
    X1 = Formulation("prices + log(x) + I(prices**2) * x").build(data)
    X2 = Formulation("0 + x + C(product_ids):prices").build(data)
    variables = {key: jnp.asarray(values) for key, values in {**X1.inputs, **X2.inputs}.items()}
    assert X1.values.shape[1] == 6
    return Characteristics(X1.columns, X2.columns, (), variables)


def test_evaluation_without_changes_gives_the_design_matrices(characteristics: Characteristics) -> None:
    products, _ = tables(3, [4, 5], [2, 2])
    X1, X2 = characteristics.evaluate({})
    x, p = products.x.to_numpy(), products.prices.to_numpy()
    expected = {tuple(np.round(c, 9)) for c in (np.ones(9), p, np.log(x), p**2, x, p**2 * x)}
    assert {tuple(np.round(c, 9)) for c in np.asarray(X1).T} == expected
    ROUNDING.check(X2[:, 0], x)
    ROUNDING.check(X2[:, 1:].sum(axis=1), p)


def test_slopes_are_derivatives_row_by_row(characteristics: Characteristics) -> None:
    assert characteristics.names == ["prices", "x"]
    step = 1e-6
    for name in characteristics.names:
        value = characteristics.variables[name]
        above, below = (characteristics.evaluate({name: value + sign * step}) for sign in (1, -1))
        for slope, high, low in zip(characteristics.slopes(name), above, below, strict=True):
            CENTRAL_DIFFERENCE.check(slope, (np.asarray(high) - np.asarray(low)) / (2 * step), name)


def test_without_X2_the_matrix_has_no_columns(characteristics: Characteristics) -> None:
    plain = Characteristics(characteristics.X1_columns, (), (), characteristics.variables)
    assert plain.evaluate({})[1].shape == (9, 0)
    assert hash(plain.X1_columns) == hash(characteristics.X1_columns)
