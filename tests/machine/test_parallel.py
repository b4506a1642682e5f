"""`parallel` is accepted, checked, and says that it does nothing."""

from types import ModuleType
from typing import Any

import pytest

import blpjax
import blpjax.machine.parallel
from tests.support.programs import without_type_checks


@pytest.fixture(scope="module")
def unchecked() -> ModuleType:
    return without_type_checks(blpjax.machine.parallel)


@pytest.mark.parametrize("processes, said", [(1, "A pool of 1 process is not"), (4, "A pool of 4 processes is not")])
def test_a_message_says_that_no_processes_are_started(
    processes: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    monkeypatch.setattr(blpjax.options, "verbose", True)
    monkeypatch.setattr(blpjax.options, "verbose_output", texts.append)
    with blpjax.parallel(processes, use_pathos=True):
        assert len(texts) == 1 and texts[0].startswith(said) and "all markets together" in texts[0]
    assert len(texts) == 1


def test_exceptions_within_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError), blpjax.parallel(2):
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((0,), ValueError, "processes must be at least 1, not 0"),
        ((2.5,), TypeError, "processes must be an integer, not 2.5"),
        ((True,), TypeError, "processes must be an integer, not True"),
        ((2, "yes"), TypeError, "use_pathos must be True or False, not 'yes'"),
    ],
)
def test_arguments_are_checked(unchecked: ModuleType, arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), unchecked.parallel(*arguments):
        pass
