"""Monte Carlo studies that are described in TOML files."""

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from blpjax.exceptions import BLPError, DescriptionError
from blpjax.inputs.construction import build_id_data
from blpjax.inputs.formulation import Formulation
from blpjax.inputs.integration import Integration
from blpjax.iteration import Iteration
from blpjax.model.parameters import BLOCKS
from blpjax.optimize.optimize import Optimization
from blpjax.problem.problem import Problem
from blpjax.simulation.simulation import Simulation
from blpjax.studies.lane_instruments import OptimalInstruments
from blpjax.studies.monte_carlo import MonteCarlo

Table = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StudyDescription:
    """What a file says, checked for keys and types.

    Attributes
    ----------
    file : where it was read.
    tables : its tables. Those that are left out are empty.
    """

    file: Path
    tables: Mapping[str, Table]

    @property
    def run(self) -> Table:
        """The table `run`: `replications`, `batch_size`, `path`, `memory` and `seed`, as far as they are given."""
        return self.tables["run"]

    @property
    def path(self) -> Path:
        """Directory for finished batches, by default one named like the file, without its suffix, where one is now."""
        given = self.run.get("path")
        return Path(self.file.stem) if given is None else self.file.parent / given

    def build(self) -> MonteCarlo:
        """The study.

        Raises
        ------
        DescriptionError
            When the simulation, its equilibrium or the estimation cannot be made from what the file says, or tables of
            data cannot be read.
        """
        simulation = self._attempt("the simulation", self._build_simulation)
        problem = self._attempt("the problem to estimate", lambda: self._build_problem(simulation))
        return self._attempt("the estimation", lambda: self._build_study(simulation, problem))

    def _attempt(self, what: str, build: Callable[[], Any]) -> Any:
        try:
            return build()
        except DescriptionError:
            raise
        except (BLPError, ValueError, TypeError, NotImplementedError) as error:
            raise DescriptionError(f"{self.file}: {what} cannot be built: {error}") from error

    def _build_simulation(self) -> Simulation:
        known = self.tables["simulation"]
        return Simulation(
            _formulations(known),
            self._read_products(),
            **self.tables["parameters"],
            agent_formulation=_demographics(known),
            agent_data=self._read_data("agents"),
            integration=self._read_integration(),
            **self.tables["errors"],
            **{name: known[name] for name in ("rc_types", "epsilon_scale", "costs_type") if name in known},
            seed=known.get("seed", 0),  # a file always describes the same study
        )

    def _build_problem(self, simulation: Simulation) -> Problem:
        known = self.tables["estimation"]
        solved = simulation.replace_endogenous()
        given = any(name in known for name in ("X1", "X2", "X3"))
        if given and known.get("demand_only"):
            raise DescriptionError(
                f"{self.file}: [estimation] has formulations and demand_only. Leave demand_only out: without X3 only "
                "the demand side is estimated."
            )
        if given and "X1" not in known:
            raise DescriptionError(f"{self.file}: [estimation] needs X1, because it has other formulations.")
        formulations: tuple[Formulation | None, ...] = simulation.product_formulations
        if given:
            formulations = _formulations(known)
        elif known.get("demand_only"):
            formulations = (*formulations[:2], None)
        return solved.to_problem(
            formulations,
            agent_formulation=_demographics(known),
            **{name: known[name] for name in ("rc_types", "costs_type") if name in known},
        )

    def _build_study(self, simulation: Simulation, problem: Problem) -> MonteCarlo:
        known = dict(self.tables["estimation"])
        for name in ("X1", "X2", "X3", "demographics", "demand_only", "rc_types", "costs_type"):
            known.pop(name, None)
        known["iteration"] = self._read_iteration("estimation.iteration")
        if optimization := self.tables["estimation.optimization"]:
            known["optimization"] = Optimization(optimization["method"], optimization.get("options"))
        if instruments := dict(self.tables["estimation.optimal_instruments"]):
            for name in ("supply_shifters", "demand_shifters"):
                if name in instruments:
                    instruments[f"{name[:-1]}_formulation"] = Formulation(instruments.pop(name))
            instruments["iteration"] = self._read_iteration("estimation.optimal_instruments.iteration")
            known["optimal_instruments"] = OptimalInstruments(**instruments)
        return MonteCarlo(
            simulation,
            problem,
            seed=self.run.get("seed", 0),
            **self.tables["errors"],
            **known,
            **self.tables["estimation.start"],
            bounds=dict(self.tables["estimation.bounds"]),
        )

    def _read_iteration(self, table: str) -> Iteration | None:
        known = self.tables[table]
        return Iteration(known["method"], known.get("options")) if known else None

    def _read_products(self) -> Any:
        known = self.tables["products"]
        ids = [name for name in ("T", "J", "F") if name in known]
        if ("file" in known) == bool(ids) or len(ids) not in (0, 3):
            raise DescriptionError(f"{self.file}: [products] needs either file, or T, J and F.")
        if ids:
            return build_id_data(known["T"], known["J"], known["F"])
        return self._read_data("products")

    def _read_data(self, table: str) -> pd.DataFrame | None:
        """A CSV or Parquet file beside the description."""
        name = self.tables[table].get("file")
        if name is None:
            return None
        path = self.file.parent / name
        readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
        if path.suffix not in readers:
            raise DescriptionError(f"{self.file}: [{table}] file must end with .csv or .parquet, but is {name!r}.")
        try:
            return readers[path.suffix](path)
        except Exception as error:  # what damaged files lead to differs between versions of pandas and Arrow
            raise DescriptionError(f"{self.file}: [{table}] file {path} cannot be read: {error}") from error

    def _read_integration(self) -> Integration | None:
        known = self.tables["integration"]
        if not known:
            return None
        integration = Integration(known["specification"], known["size"], known.get("options"))
        if integration.random and integration.seed is None:
            raise DescriptionError(
                f"{self.file}: [integration] needs a seed, options = {{ seed = 0 }}. Without one its draws, and so the "
                "study, would be others each time."
            )
        return integration


def read_description(file: Path) -> StudyDescription:
    """Read a file that describes a study.

    Raises
    ------
    DescriptionError
        When it cannot be read, is no TOML, or has keys that are unknown, missing, or of a wrong type. The message names
        the table and the key.
    """
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DescriptionError(f"{file} cannot be read: {error}.") from error
    except ValueError as error:  # also what is not UTF-8
        raise DescriptionError(f"{file} is not valid TOML: {error}.") from error
    tables: dict[str, Table] = {name: {} for name in _TABLES}
    _read_tables(file, "", content, tables)
    for name, keys in _TABLES.items():
        required = [key for key, value in keys.items() if value.required]
        if required and not tables[name] and name not in _OPTIONAL:
            raise DescriptionError(f"{file} has no table [{name}], which needs {' and '.join(required)}.")
        for key in required:
            if tables[name] and key not in tables[name]:
                raise DescriptionError(f"{file}: [{name}] has no {key}, which is required.")
    return StudyDescription(file, tables)


def _read_tables(file: Path, name: str, content: Table, tables: dict[str, Table]) -> None:
    """Check a table, '' for the whole file, and those inside of it, and add them to `tables`."""
    inner = [known.rpartition(".")[2] for known in _TABLES if known.rpartition(".")[0] == name]
    keys = _TABLES.get(name, {})
    found = {}
    for key, value in content.items():
        whole = f"{name}.{key}" if name else key
        if key in inner:
            if not isinstance(value, dict):
                raise DescriptionError(f"{file}: {whole} must be a table, [{whole}], not {value!r}.")
            _read_tables(file, whole, value, tables)
        elif key in keys:
            found[key] = _convert(file, name, key, value, keys[key].kind)
        else:
            where = f"[{name}] has" if name else "the file has"
            what = "key" if name else "table or key"
            raise DescriptionError(f"{file}: {where} the unknown {what} {key!r}. {_suggest(key, [*keys, *inner])}")
    if name:
        tables[name] = found


def _convert(file: Path, table: str, key: str, value: Any, kind: str) -> Any:
    try:
        return _KINDS[kind](value)
    except (ValueError, TypeError):
        raise DescriptionError(f"{file}: [{table}] {key} must be {kind}, not {value!r}.") from None


def _suggest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(known)}."


def _formulations(known: Table) -> tuple[Formulation | None, ...]:
    return tuple(Formulation(known[name]) if name in known else None for name in ("X1", "X2", "X3"))


def _demographics(known: Table) -> Formulation | None:
    return Formulation(known["demographics"]) if "demographics" in known else None


def _exactly(*kinds: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if type(value) not in kinds:  # a boolean is no number here
            raise TypeError
        return value

    return convert


def _positive(value: Any) -> int:
    if _exactly(int)(value) < 1:
        raise ValueError
    return value


def _texts(value: Any) -> list[str]:
    return [_exactly(str)(text) for text in _exactly(list)(value)]


def _numbers(value: Any) -> np.ndarray | float:
    """A number, or nested lists of numbers as an array."""
    if not isinstance(value, list):
        return float(_exactly(int, float)(value))
    rows = [np.asarray(_numbers(row)) for row in value]
    return np.stack(rows) if rows else np.zeros(0)


def _pair(value: Any) -> tuple[Any, Any]:
    lower, upper = _exactly(list)(value)
    return _numbers(lower), _numbers(upper)


#: What keys have to be, in the words of messages.
_KINDS: dict[str, Callable[[Any], Any]] = {
    "a text": _exactly(str),
    "true or false": _exactly(bool),
    "an integer": _exactly(int),
    "a positive integer": _positive,
    "a number": lambda value: float(_exactly(int, float)(value)),
    "a list of texts": _texts,
    "a list of integers": lambda value: [_exactly(int)(number) for number in _exactly(list)(value)],
    "a number or nested lists of numbers of equal length": _numbers,
    "a list of two, lower and upper, numbers or nested lists of them": _pair,
    "a table": _exactly(dict),
}


class _Key(NamedTuple):
    kind: str
    required: bool = False


_TEXT, _INTEGER, _NUMBER = _Key("a text"), _Key("an integer"), _Key("a number")
_ARRAY = _Key("a number or nested lists of numbers of equal length")
_PAIR = _Key("a list of two, lower and upper, numbers or nested lists of them")
_ROUTINE = {"method": _Key("a text", True), "options": _Key("a table")}

#: Tables and their keys. Tables within tables are named by both.
_TABLES: dict[str, dict[str, _Key]] = {
    "simulation": {
        "X1": _Key("a text", True),
        "X2": _TEXT,
        "X3": _Key("a text", True),
        "demographics": _TEXT,
        "rc_types": _Key("a list of texts"),
        "epsilon_scale": _NUMBER,
        "costs_type": _TEXT,
        "seed": _INTEGER,
    },
    "products": {"file": _TEXT, "T": _INTEGER, "J": _INTEGER, "F": _INTEGER},
    "agents": {"file": _Key("a text", True)},
    "integration": {
        "specification": _Key("a text", True),
        "size": _Key("an integer", True),
        "options": _Key("a table"),
    },
    "parameters": {
        **dict.fromkeys(("sigma", "pi", "rho"), _ARRAY),
        **dict.fromkeys(("beta", "gamma"), _ARRAY._replace(required=True)),
    },
    "errors": dict.fromkeys(("xi_variance", "omega_variance", "correlation"), _NUMBER),
    "estimation": {
        "demand_only": _Key("true or false"),
        **dict.fromkeys(("X1", "X2", "X3", "demographics"), _TEXT),
        "rc_types": _Key("a list of texts"),
        **dict.fromkeys(("costs_type", "method", "W_type", "se_type"), _TEXT),
        "center_moments": _Key("true or false"),
        "costs_bounds": _PAIR,
    },
    "estimation.start": {name: _ARRAY for name in BLOCKS if name not in ("tau", "phi", "kappa")},
    "estimation.bounds": {name: _PAIR for name in BLOCKS if name not in ("tau", "phi", "kappa")},
    "estimation.iteration": _ROUTINE,
    "estimation.optimization": _ROUTINE,
    "estimation.optimal_instruments": {
        "method": _Key("a text", True),
        **dict.fromkeys(("first_method", "supply_shifters", "demand_shifters"), _TEXT),
        "constant_costs": _Key("true or false"),
        "drop_indices": _Key("a list of integers"),
    },
    "estimation.optimal_instruments.iteration": _ROUTINE,
    "run": {
        **dict.fromkeys(("replications", "batch_size", "memory"), _Key("a positive integer")),
        "path": _TEXT,
        "seed": _INTEGER,
    },
}

#: Tables that may be left out although some of their keys are required where they are there.
_OPTIONAL = (
    "agents",
    "integration",
    "estimation.iteration",
    "estimation.optimization",
    "estimation.optimal_instruments",
    "estimation.optimal_instruments.iteration",
)
