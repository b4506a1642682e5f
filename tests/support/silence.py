"""Neither library prints, and what their dependencies warn of is ignored."""

import contextlib
import warnings
from collections.abc import Iterator

import pytest

import blpjax


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Print nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blpjax.options, "verbose", False)
        patch.setattr("pyblp.options.verbose", False)
        yield


@contextlib.contextmanager
def quiet(*messages: str) -> Iterator[None]:
    """Print nothing, and ignore warnings of PyBLP and its dependencies, and those with one of these messages."""
    with silent(), warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.filterwarnings("ignore", module="pyblp|patsy|pyhdfe|numpy")
        for message in messages:
            warnings.filterwarnings("ignore", message=message)
        yield
