"""Outcomes of loops as data, and the sentences that they become."""

import warnings

import jax.numpy as jnp
import numpy as np
import pyblp
import pytest

from blpjax import Formulation, Iteration, Problem, exceptions
from blpjax.exceptions import (
    BLPError,
    ConvergenceError,
    ConvergenceWarning,
    DataError,
    DataWarning,
    IdentificationError,
    Status,
    UnusedOptionWarning,
    describe_status,
    raise_for_status,
    succeeded,
)
from tests.support.problems import small_tables
from tests.support.silence import silent

IDS = [f"C{t:02d}" for t in range(12)]

#: Names of PyBLP that are raised here, each tested where it is raised.
PYBLP_NAMES = {
    "AbsorptionError",
    "DeltaConvergenceError",
    "EquilibriumPricesConvergenceError",
    "GenericNumericalError",
    "MultipleErrors",
    "NonpositiveCostsError",
    "NonpositiveSyntheticCostsError",
    "SyntheticDeltaConvergenceError",
    "SyntheticPricesConvergenceError",
    "ThetaConvergenceError",
}


def test_exceptions_have_names_of_pyblp_only_where_documented() -> None:
    names = [name for name in dir(pyblp.exceptions) if name.endswith(("Error", "Errors"))]
    common = {name for name in names if hasattr(exceptions, name)}
    assert common == PYBLP_NAMES
    assert all(name in (exceptions.__doc__ or "") for name in PYBLP_NAMES)


def test_scripts_that_catch_multiple_errors_catch_every_numerical_failure() -> None:
    for name in PYBLP_NAMES:
        with pytest.raises(exceptions.MultipleErrors, match="Inverting shares made no further progress"):
            raise_for_status(np.array([4]), IDS[:1], "Inverting shares", kind=getattr(exceptions, name))


def test_every_status_has_its_own_sentence() -> None:
    assert len({status.sentence for status in Status}) == len(Status)


def test_only_the_first_two_codes_are_successes() -> None:
    codes = [int(status) for status in Status]
    expected = [status in (Status.CONVERGED, Status.ROUNDING_FLOOR) for status in Status]
    assert succeeded(np.array(codes)).tolist() == succeeded(jnp.array(codes)).tolist() == expected


def test_errors_can_be_caught_by_the_base_class_and_by_kind() -> None:
    assert issubclass(DataError, BLPError) and issubclass(DataError, ValueError)
    assert issubclass(IdentificationError, BLPError) and issubclass(ConvergenceError, RuntimeError)


def test_success_says_nothing() -> None:
    codes = np.array([0, 1, 0])
    assert describe_status(codes, IDS[:3]) == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raise_for_status(codes, IDS[:3], "Inverting shares", warn=True)


def test_failures_name_their_markets_grouped_by_cause() -> None:
    codes = np.array([0, 2, 1, 3, 2])
    text = describe_status(codes, np.array(IDS[:5]), np.array([0, 1e-3, 0, np.inf, 2e-2]))
    assert text == (
        "reached the maximum number of evaluations in 2 of 5 markets: 'C01', 'C04' (largest residual 2.0e-02); "
        "produced infinite or missing values in 1 of 5 markets: 'C03' (largest residual inf)"
    )


def test_long_lists_of_markets_are_cut() -> None:
    text = describe_status(np.full(12, Status.STALLED), IDS)
    assert text.endswith("in 12 of 12 markets: 'C00', 'C01', 'C02', 'C03', 'C04' and 7 more")


def test_ids_that_are_numbers_are_shown_as_numbers() -> None:
    assert "1 of 2 markets: 1972" in describe_status(np.array([0, 4]), np.array([1971, 1972]))


def test_missing_residuals_do_not_hide_markets() -> None:
    assert "'C00' (largest residual 0.0e+00)" in describe_status(np.array([3]), IDS[:1], np.array([np.nan]))


def test_failures_raise_or_warn() -> None:
    with pytest.raises(ConvergenceError, match="^Inverting shares made no further progress .* 1 of 1 markets: 'C00'.$"):
        raise_for_status(np.array([4]), IDS[:1], "Inverting shares")
    with pytest.warns(ConvergenceWarning, match="^Inverting shares made no further progress"):
        raise_for_status(np.array([4]), IDS[:1], "Inverting shares", warn=True)
    with pytest.warns(ConvergenceWarning, match=r"of 1 markets: 'C00'\. Results are NaN there\.$"):
        raise_for_status(np.array([4]), IDS[:1], "Inverting shares", warn=True, note="Results are NaN there.")


def test_warnings_point_at_the_users_line() -> None:
    products = small_tables()[0].assign(demand_instrument0=0.5)
    with silent(), pytest.warns(DataWarning, match="demand_instrument0") as caught:
        Problem(Formulation("1 + prices"), products)
    with pytest.warns(UnusedOptionWarning) as unused:
        Iteration("simple", universal_display=True)
    assert {warning.filename for warning in (*caught, *unused)} == {__file__}
