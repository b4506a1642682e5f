"""Tables of estimations: what cannot be used is missing, and says why."""

import numpy as np

from blpjax.estimation.lanes import BatchOutcome, tabulate
from blpjax.exceptions import Status


def outcome() -> BatchOutcome:
    """Three estimations of two parameters: a good one, one that failed, and one with numbers that are not finite."""
    parameters = np.arange(6.0).reshape(3, 2)
    errors = np.ones((3, 2))
    errors[2, 1] = np.inf
    return BatchOutcome(
        parameters=parameters,
        standard_errors=errors,
        identified=np.ones((3, 2), bool),
        objectives=np.arange(3.0),
        gradient_norms=np.zeros(3),
        evaluations=np.arange(3),
        status=np.array([int(Status.CONVERGED), int(Status.STALLED), int(Status.CONVERGED)]),
        ok=np.array([True, False, False]),
    )


def test_a_draw_that_is_not_finite_does_not_read_converged() -> None:
    table = tabulate(outcome(), np.arange(5, 8), ["sigma", "beta"], ["x", "prices"], [None, None, None])
    by_draw = table.groupby("number")["status"].unique()
    assert by_draw[5].tolist() == [Status.CONVERGED.sentence]
    assert by_draw[6].tolist() == [Status.STALLED.sentence]
    assert by_draw[7].tolist() == [Status.NOT_FINITE.sentence]
    assert table["ok"].tolist() == [True, True, False, False, False, False]
    assert table["estimate"].isna().tolist() == [False, False, True, True, True, True]
    assert table["parameter"].tolist() == ["x", "prices"] * 3


def test_what_else_is_wrong_comes_first() -> None:
    table = tabulate(outcome(), np.arange(3), ["sigma", "beta"], ["x", "prices"], ["no equilibrium", None, None])
    assert table["status"][0] == "no equilibrium" and not table["ok"][0] and np.isnan(table["estimate"][0])
