"""Example data: cereals (Nevo, 2000), automobiles (Berry, Levinsohn and Pakes, 1995) and minivans (Petrin, 2002).

The files belong to the pyblp distribution, which the extra `examples` installs. They are read without importing it.

Attributes
----------
NEVO_PRODUCTS_LOCATION, NEVO_AGENTS_LOCATION : str
    Paths of CSV files with simulated cereal products and agents.
BLP_PRODUCTS_LOCATION, BLP_AGENTS_LOCATION : str
    Paths of CSV files with automobiles and agents.
PETRIN_PRODUCTS_LOCATION, PETRIN_AGENTS_LOCATION : str
    Paths of CSV files with automobiles and agents.
PETRIN_VALUES_LOCATION, PETRIN_COVARIANCES_LOCATION : str
    Paths of CSV files with micro moment values and their covariances.

Looking up an attribute raises an `ImportError` that names the extra when the files are not installed.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import pandas as pd

_FILES = {
    "NEVO_PRODUCTS_LOCATION": "nevo_products.csv",
    "NEVO_AGENTS_LOCATION": "nevo_agents.csv",
    "BLP_PRODUCTS_LOCATION": "blp_products.csv",
    "BLP_AGENTS_LOCATION": "blp_agents.csv",
    "PETRIN_PRODUCTS_LOCATION": "petrin_products.csv",
    "PETRIN_AGENTS_LOCATION": "petrin_agents.csv",
    "PETRIN_VALUES_LOCATION": "petrin_values.csv",
    "PETRIN_COVARIANCES_LOCATION": "petrin_covariances.csv",
}

# Declared for type checkers; `__getattr__` finds the files when they are asked for.
NEVO_PRODUCTS_LOCATION: str
NEVO_AGENTS_LOCATION: str
BLP_PRODUCTS_LOCATION: str
BLP_AGENTS_LOCATION: str
PETRIN_PRODUCTS_LOCATION: str
PETRIN_AGENTS_LOCATION: str
PETRIN_VALUES_LOCATION: str
PETRIN_COVARIANCES_LOCATION: str


class ExampleData(NamedTuple):
    """Example data: `products, agents = load_nevo()`.

    Attributes
    ----------
    products : DataFrame, one row for each product in each market.
    agents : DataFrame, one row for each agent in each market.
    """

    products: pd.DataFrame
    agents: pd.DataFrame


class PetrinData(NamedTuple):
    """Example data with micro moments: `products, agents, micro_values, micro_covariances = load_petrin()`.

    Attributes
    ----------
    products : DataFrame, one row for each product in each market.
    agents : DataFrame, one row for each agent in each market.
    micro_values : DataFrame with a row for each of 10 micro moments and the column `value`.
    micro_covariances : DataFrame, 10 x 10 covariances of these moments, with the same labels.
    """

    products: pd.DataFrame
    agents: pd.DataFrame
    micro_values: pd.DataFrame
    micro_covariances: pd.DataFrame


def load_nevo() -> ExampleData:
    """Load the simulated cereal data of Nevo (2000): 24 products and 20 agents in each of 94 markets.

    Raises
    ------
    ImportError
        The data files are not installed.
    """
    return ExampleData(_read("NEVO_PRODUCTS_LOCATION"), _read("NEVO_AGENTS_LOCATION"))


def load_blp() -> ExampleData:
    """Load the automobile data of Berry, Levinsohn and Pakes (1995, 1999): 2,217 products in 20 markets (years).

    Raises
    ------
    ImportError
        The data files are not installed.
    """
    return ExampleData(_read("BLP_PRODUCTS_LOCATION"), _read("BLP_AGENTS_LOCATION"))


def load_petrin() -> PetrinData:
    """Load the automobile data of Petrin (2002): 2,407 products in 13 markets (years), and 10 micro moments.

    Raises
    ------
    ImportError
        The data files are not installed.
    """
    return PetrinData(
        _read("PETRIN_PRODUCTS_LOCATION"),
        _read("PETRIN_AGENTS_LOCATION"),
        _read("PETRIN_VALUES_LOCATION", index_col=0),
        _read("PETRIN_COVARIANCES_LOCATION", index_col=0),
    )


def __getattr__(name: str) -> str:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _locate(_FILES[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *_FILES})


def _read(name: str, index_col: int | None = None) -> pd.DataFrame:
    return pd.read_csv(_locate(_FILES[name]), index_col=index_col)


def _locate(file: str) -> str:
    # The specification of a top-level package is found without importing the package.
    spec = importlib.util.find_spec("pyblp")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder).resolve() / "data" / file
        if path.is_file():
            return str(path)
    raise ImportError(
        f"The example data file '{file}' belongs to the pyblp distribution, which is not installed. Install it with "
        'pip install "blpjax[examples]".'
    )
