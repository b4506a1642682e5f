"""Example data: PyBLP's files and names, found without importing it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import blpjax.data

NAMES = [
    "NEVO_PRODUCTS_LOCATION", "NEVO_AGENTS_LOCATION", "BLP_PRODUCTS_LOCATION", "BLP_AGENTS_LOCATION",
    "PETRIN_PRODUCTS_LOCATION", "PETRIN_AGENTS_LOCATION", "PETRIN_VALUES_LOCATION", "PETRIN_COVARIANCES_LOCATION",
]  # fmt: skip

needs_files = pytest.mark.skipif(importlib.util.find_spec("pyblp") is None, reason="needs the extra examples")


@needs_files
@pytest.mark.parametrize("name", NAMES)
def test_locations_are_those_of_pyblp(name: str) -> None:
    import pyblp.data

    location = getattr(blpjax.data, name)
    assert isinstance(location, str)
    assert Path(location).samefile(getattr(pyblp.data, name))


@needs_files
def test_all_names_of_pyblp_are_listed() -> None:
    import pyblp.data

    theirs = {name for name in vars(pyblp.data) if name.endswith("_LOCATION")}
    assert theirs == set(NAMES)
    assert theirs <= set(dir(blpjax.data))
    assert {"load_nevo", "load_blp", "load_petrin"} <= set(dir(blpjax.data))


@pytest.mark.slow
@needs_files
def test_loading_does_not_import_pyblp() -> None:
    code = (
        "import sys, blpjax.data as data; products, agents = data.load_nevo(); "
        "from blpjax.data import BLP_AGENTS_LOCATION; print(len(products), len(agents), 'pyblp' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2256", "1880", "False"]


@needs_files
def test_cereals() -> None:
    products, agents = blpjax.data.load_nevo()
    assert (products.groupby("market_ids").size() == 24).all() and products["market_ids"].nunique() == 94
    assert (agents.groupby("market_ids").size() == 20).all()
    assert set(agents["market_ids"]) == set(products["market_ids"])
    assert products["shares"].iloc[0] == 0.012417212
    pd.testing.assert_frame_equal(products, pd.read_csv(blpjax.data.NEVO_PRODUCTS_LOCATION))


@needs_files
def test_automobiles() -> None:
    data = blpjax.data.load_blp()
    assert len(data.products) == 2217 and list(data.products["market_ids"].unique()) == list(range(1971, 1991))
    assert (data.agents.groupby("market_ids").size() == 200).all()


@needs_files
def test_minivans() -> None:
    products, agents, values, covariances = blpjax.data.load_petrin()
    assert len(products) == 2407 and products["market_ids"].nunique() == 13
    assert (agents.groupby("market_ids").size() == 1000).all()
    assert values.loc["E[age | mi]", "value"] == 0.783
    assert list(covariances.index) == list(covariances.columns) == list(values.index)
    assert covariances.shape == (10, 10)


def test_missing_files_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyblp", None)
    message = r"'nevo_products.csv' belongs to the pyblp distribution.*pip install \"blpjax\[examples\]\""
    with pytest.raises(ImportError, match=message):
        blpjax.data.load_nevo()
    with pytest.raises(ImportError, match=message):
        blpjax.data.NEVO_PRODUCTS_LOCATION  # noqa: B018


def test_other_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="no attribute 'CEREALS_LOCATION'"):
        blpjax.data.CEREALS_LOCATION  # noqa: B018
