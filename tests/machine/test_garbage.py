"""When Python looks for garbage."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from blpjax.machine.garbage import uncollected


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _collecting() -> Iterator[None]:
    enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.unfreeze()
    gc.enable()
    yield
    if frozen:
        gc.freeze()
    (gc.enable if enabled else gc.disable)()


def test_nothing_is_collected_inside() -> None:
    with pytest.raises(ZeroDivisionError), uncollected():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


@pytest.mark.parametrize("lasting", [False, True])
def test_who_collects_by_hand_still_does(lasting: bool) -> None:
    gc.disable()
    with uncollected(lasting):
        pass
    assert not gc.isenabled()


@pytest.mark.slow
def test_lasting_objects_are_old_and_garbage_is_still_found() -> None:
    with uncollected(lasting=True):
        kept, garbage = Cycle(), Cycle()
    assert any(found is kept for found in gc.get_objects(generation=2))
    reference = weakref.ref(garbage)
    del garbage
    gc.collect()
    assert reference() is None and gc.get_freeze_count() == 0
