"""Counterfactuals under other conduct."""

import jax.numpy as jnp
import numpy as np
import pytest

import blpjax
from tests.support.conduct import CONDUCTS, own_cournot, solved, table
from tests.tolerances import DELTA, ROUNDING, Tolerance

SOLVED = Tolerance(1e-9)
COURNOT = blpjax.Cournot()


@pytest.mark.slow
def test_monopoly_is_one_firm() -> None:
    results, data = solved(), table()
    found = results.counterfactual(conduct=blpjax.Monopoly()).products
    SOLVED.check(found.prices_after, results.counterfactual(firm_ids=np.zeros(len(data))).products.prices_after)


@pytest.mark.slow
def test_prices_are_those_of_compute_prices() -> None:
    results = solved()
    cournot = results.counterfactual(conduct=COURNOT).products
    SOLVED.check(cournot.prices_after, results.compute_prices(conduct=COURNOT)[:, 0])
    ROUNDING.check(cournot.costs_after, results.compute_costs()[:, 0])


def test_what_does_not_fit_is_refused() -> None:
    results, data = solved(), table()
    with pytest.raises(ValueError, match="Bargaining does not depend on firm_ids"):
        results.counterfactual(conduct=blpjax.Bargaining("makers", "makers"), firm_ids={2: 1})
    with pytest.raises(NotImplementedError, match="Ad valorem taxes.*own_cournot"):
        results.counterfactual(conduct=blpjax.conduct(own_cournot), taxes=blpjax.Taxes(ad_valorem=0.1))
    with pytest.raises(TypeError, match="conduct must be a conduct"):
        results.counterfactual(conduct="cournot")
    with pytest.raises(blpjax.exceptions.DataError, match="add: there is no column 'quantity'"):
        new = data.iloc[:1].drop(columns=["quantity"]).assign(product_ids="new", costs=1.0, xi=0.0)
        results.counterfactual(conduct=CONDUCTS["mixed"], add=new[["market_ids", "firm_ids", "x", "y", "costs"]])


@pytest.mark.slow
def test_changes_one_after_the_other_are_the_same_as_both() -> None:
    results, data = solved(), table()
    both = results.counterfactual(firm_ids={2: 1}, conduct=COURNOT)
    merger_first = results.counterfactual(firm_ids={2: 1}).counterfactual(conduct=COURNOT)
    conduct_first = results.counterfactual(conduct=COURNOT).counterfactual(firm_ids={2: 1})
    for other in (merger_first, conduct_first):
        SOLVED.check(other.products.prices_after, both.products.prices_after)
    H = blpjax.build_ownership(data.assign(firm_ids=data.firm_ids.replace(2, 1)))
    by_matrices = results.counterfactual(ownership=np.nan_to_num(H), conduct=COURNOT)
    SOLVED.check(by_matrices.products.prices_after, both.products.prices_after)
    # outputs of the outcome are those under its conduct
    ROUNDING.check(both.compute_costs()[:, 0], both.products.costs_after)
    back = both.counterfactual(firm_ids=data.firm_ids.to_numpy(), conduct=blpjax.Bertrand())
    SOLVED.check(back.products.prices_after, back.products.prices_before)


@pytest.mark.slow
def test_products_that_leave_enter_or_keep_their_prices() -> None:
    results, data = solved(), table()
    some = (data.product_ids == "p2").to_numpy()
    held = results.counterfactual(conduct=COURNOT, hold=some).products
    assert (held.prices_after[some] == data.prices[some]).all() and (
        held.prices_after[~some] != data.prices[~some]
    ).all()
    left = results.counterfactual(conduct=COURNOT, drop=some)
    assert (left.products.shares_after[some] == 0).all()
    rest = left.counterfactual(prices=np.where(some, 1.0, left.products.prices_after), costs=lambda costs: costs)
    m = rest.products.prices_after - rest.products.costs_after
    at = rest.compute_demand_jacobians()
    for market in ("m000", "m003"):
        rows = np.flatnonzero((data.market_ids == market) & ~some)
        places = data[data.market_ids == market].index.get_indexer(rows)
        D, s = at[np.ix_(rows, places)], rest.products.shares_after.to_numpy()[rows]
        H = data.firm_ids.to_numpy()[rows][:, None] == data.firm_ids.to_numpy()[rows]
        SOLVED.check(m.to_numpy()[rows], -(H * np.linalg.inv(D).T) @ s)
    columns = ["market_ids", "firm_ids", "x", "y", "quantity", "product_ids"]
    new = data.loc[some, columns].assign(like="p2", product_ids="new")
    again = results.counterfactual(conduct=CONDUCTS["mixed"], add=new, drop=some).products
    before = results.counterfactual(conduct=CONDUCTS["mixed"]).products
    SOLVED.check(again.prices_after[len(data) :], before.prices_after[some])


@pytest.mark.slow
def test_ad_valorem_taxes_weigh_profits() -> None:
    """Firms that set quantities get ``r = p / (1 + a)``: ``r_j - c_j + sum_k H_jk s_k dr_k / dq_j = 0``."""
    results, data = solved(), table()
    rates = 0.1 + 0.1 * (np.arange(len(data)) % 3)
    outcome = results.counterfactual(conduct=COURNOT, taxes=blpjax.Taxes(ad_valorem=rates, unit=0.05))
    found, D = outcome.products, outcome.compute_demand_jacobians()
    rows = np.flatnonzero(data.market_ids == "m001")
    J = rows.size
    kept, s = 1 / (1 + rates[rows]), found.shares_after.to_numpy()[rows]
    H = data.firm_ids.to_numpy()[rows][:, None] == data.firm_ids.to_numpy()[rows]
    margins = (found.net_prices_after - found.costs_after).to_numpy()[rows]
    SOLVED.check(margins, -(H * np.linalg.inv(D[rows, :J]).T) @ (kept * s))


@pytest.mark.slow
def test_standard_errors_are_those_of_the_delta_method() -> None:
    results = solved()
    outcome = results.counterfactual(conduct=COURNOT, standard_errors=True)
    prices = results.compute_prices(conduct=COURNOT, costs=results.compute_costs(), standard_errors=True)
    assert np.isfinite(outcome.products.prices_after_se).all()
    # with costs as constants they are others
    assert not np.allclose(outcome.products.prices_after_se, prices.standard_errors[:, 0])
    found = outcome.delta_method(lambda before, after: jnp.stack([(after.prices - before.prices).mean()]))
    changed = results.delta_method(lambda model: jnp.stack([(_cournot_prices(model) - model.prices).mean()]))
    DELTA.check(found.value, changed.value)
    DELTA.check(found.standard_errors, changed.standard_errors)


def _cournot_prices(model: object) -> jnp.ndarray:
    from blpjax.economy.conduct import prepare_conduct

    known = prepare_conduct(COURNOT, solved().problem.data.product_table)
    return model.compute_prices(conduct=known)[:, 0]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_some_markets_under_conduct_are_those_among_all() -> None:
    results, data = solved(), table()
    some = data.market_ids.unique()[[2, 0]]
    rows = data.market_ids.isin(some).to_numpy()
    for conduct in (COURNOT, CONDUCTS["mixed"]):
        everything = results.counterfactual(conduct=conduct, firm_ids={2: 1}).products[rows].reset_index(drop=True)
        found = results.counterfactual(conduct=conduct, firm_ids={2: 1}, market_ids=some)
        assert found.markets["market_ids"].tolist() == sorted(some)
        for name in ("prices_after", "profits_after", "costs_after"):
            SOLVED.check(found.products[name], everything[name], name)
        SOLVED.check(found.compute_costs()[:, 0], found.products["costs_after"])
