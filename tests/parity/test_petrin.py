"""The automobiles of Petrin (2002) with micro moments: published estimates of PyBLP's tutorial."""

from typing import Any

import numpy as np
import pytest

import blpjax
from benchmarks import minivans
from blpjax.data import load_petrin
from tests.tolerances import check_printed

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.slow]

#: Free elements by rows, as printed for PyBLP 1.1.2.
PRINTED = {
    "beta": "-8.9E+00 +8.3E+00 +4.9E+00 +3.8E+00 -1.4E-01 -6.5E+00 -2.1E+00 -1.3E+00 -1.1E+00 -3.3E+00 +3.4E-02 "
    "+2.2E-01 -1.5E-02",
    "beta_se": "+1.4E+00 +2.4E+00 +1.6E+00 +1.2E+00 +3.2E-01 +1.8E+00 +4.8E-01 +2.0E-01 +2.8E-01 +5.2E-01 +1.2E-02 "
    "+9.2E-02 +6.4E-03",
    "gamma": "+1.4E+00 +8.8E-01 +1.4E+00 +1.2E-01 +2.7E-01 +6.9E-02 -1.2E-02 +1.0E-01 +4.6E-01 +1.6E-03 -1.1E-02 "
    "-6.9E-02",
    "gamma_se": "+1.4E-01 +4.9E-02 +8.0E-02 +6.0E-02 +2.4E-02 +1.8E-02 +2.6E-03 +2.5E-02 +4.3E-02 +2.9E-03 +4.2E-03 "
    "+6.7E-03",
    "micro_values": "+7.5E-01 +3.9E+00 +6.8E-01 +3.2E+00 +6.8E-01 +3.0E+00 +7.3E-01 +3.5E+00 +8.0E-02 +1.6E-01",
    "micro": "+2.9E-02 -1.2E-02 +4.7E-02 -7.6E-03 +5.9E-02 -8.5E-03 -7.7E-02 -1.7E-02 -4.5E-04 -2.1E-03",
}

#: Millions of dollars by which the minivan raised consumer surplus in 1984, with all digits printed. PyBLP's routine
#: had stopped at a gradient of 4.5e-5.
COMPENSATING_VARIATION = 425.90820973


@pytest.fixture(scope="module")
def results(quiet: None) -> blpjax.ProblemResults:
    found: blpjax.ProblemResults = minivans.solve(blpjax, minivans.problem(blpjax))
    return found


def test_two_steps_end_as_published(results: blpjax.ProblemResults) -> None:
    assert results.cumulative_converged and results.projected_gradient_norm < 1e-5
    assert minivans.failure(results) == ""
    check_printed(results.objective, "+1.8E+02")
    for name, printed in PRINTED.items():
        values = np.ravel(getattr(results, name))
        for value, number in zip(values[np.isfinite(values)], printed.split(), strict=True):
            check_printed(value, number)
    check_printed(results.reduced_hessian_eigenvalues[-1], "+1.3E+03")
    check_printed(np.linalg.cond(results.W), "+2.8E+11")
    assert results.sigma[4, 4] < 0  # nodes are not symmetric: the sign means something


def test_what_the_minivan_was_worth_is_as_published(results: blpjax.ProblemResults) -> None:
    products, agents, _, _ = load_petrin()
    year = 1984
    here = products.market_ids == year
    others = here & (products.mi == 0)
    without: Any = blpjax.Simulation(
        results.problem.product_formulations[:2],
        products[others],
        beta=results.beta,
        sigma=results.sigma,
        pi=results.pi,
        agent_formulation=results.problem.agent_formulation,
        agent_data=agents[agents.market_ids == year],
        xi=results.xi[others],
    )
    costs = results.compute_costs(market_id=year)[others[here].to_numpy()]
    counterfactual = without.replace_endogenous(costs=costs)
    households = products.households[here].iloc[0]
    found = results.compute_consumer_surpluses(market_id=year) - counterfactual.compute_consumer_surpluses()
    np.testing.assert_allclose(households * found, COMPENSATING_VARIATION, rtol=1e-4)
