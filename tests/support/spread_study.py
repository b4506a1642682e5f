"""Run with eight forced host devices: a study on one of them and on all, which are compared."""

import sys

import jax
import numpy as np

import blpjax
from blpjax.machine import spread
from tests.support.study_design import study


def main() -> None:
    blpjax.options.verbose = False
    made = study(supply=True)
    used = set()

    def each_lane(function, *trees, placement=None):  # type: ignore[no-untyped-def]
        used.add(1 if placement is None else placement.size)
        return known(function, *trees, placement=placement)

    known = spread.each_lane
    single = made.run(12, batch_size=12, devices=1).table
    for module in (blpjax.studies.monte_carlo, sys.modules["blpjax.estimation.lanes"]):
        module.each_lane = each_lane  # type: ignore[attr-defined]
    several = made.run(12, batch_size=12).table
    assert len(jax.local_devices()) == 8 and used == {8}, used
    assert single["ok"].all() and (single["status"] == several["status"]).all()
    for column in ("estimate", "standard_error", "objective"):
        np.testing.assert_allclose(several[column], single[column], rtol=1e-10, atol=1e-12, err_msg=column)
    print("equal")


if __name__ == "__main__":
    main()
