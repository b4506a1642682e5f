"""Files of results: what comes back, what is refused, and that nothing in a file is executed."""

import dataclasses
import datetime
import io
import json
import os
import pickle
import shutil
import sys
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jax
import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax import Formulation, Integration, Iteration, Optimization, Problem, ProblemResults
from blpjax.exceptions import BLPError, ConvergenceWarning, DataError, DataWarning, IdentificationWarning, StorageError
from blpjax.iteration import METHODS
from blpjax.machine import storage
from blpjax.problem.state import NotStored, Step, read_step, step_state
from tests.support.economies import tables

pytestmark = pytest.mark.usefixtures("quiet")

SIGMA, PI = np.diag([0.4, 0.8]), np.array([[0.3], [-0.5]])
PRODUCTS = (Formulation("1 + prices + x"), Formulation("1 + x"))
DEMOGRAPHICS = Formulation("0 + income")
EVALUATED: dict[str, Any] = {"optimization": Optimization("return"), "check_optimality": "gradient"}


def make_problem(seed: int = 1, **columns: Any) -> Problem:
    products, agents = tables(seed, [4, 6, 5, 6, 4, 5, 6, 6], [15] * 8)
    return Problem(PRODUCTS, products.assign(**columns), DEMOGRAPHICS, agents)


@pytest.fixture(scope="module")
def results() -> ProblemResults:
    return make_problem().solve(SIGMA, PI, initial_update=True)


@pytest.fixture(scope="module")
def loaded(results: ProblemResults, tmp_path_factory: pytest.TempPathFactory) -> ProblemResults:
    path = tmp_path_factory.mktemp("files") / "results"
    results.save(path)
    return blpjax.load(path)


def same(first: Any, second: Any) -> bool:
    """Whether values are equal bit by bit and of the same type."""
    if type(first) is not type(second):
        return False
    if isinstance(first, np.ndarray):
        if first.dtype == object:
            return first.shape == second.shape and all(map(same, first.reshape(-1), second.reshape(-1)))
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) and first != first:
        return second != second
    return bool(first is second or (first == second and str(first) == str(second)))


def objects(*values: Any) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


TREE = {
    "nothing": None,
    "flags": [True, False],
    "integers": [0, -7, 10**30],
    "floats": [0.1, -0.0, 5e-324, 1.7e308, float("nan"), float("inf"), -float("inf")],
    "text": ["", "ä\u2028\x00", "\ud800", "$array"],
    "$odd": {"$array": {"$$more": 1}, "": 2},
    "empty": {"list": [], "dict": {}},
    "zero-dimensional": np.array(3.5),
    "no elements": np.zeros((0, 3)),
    "matrix": np.random.default_rng(0).normal(size=(3, 2)),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "special": np.array([np.nan, -np.nan, -0.0, np.inf]),
    "big-endian": np.arange(3, dtype=">i4"),
    "booleans": np.array([True, False]),
    "unsigned": np.array([2**64 - 1], dtype=np.uint64),
    "dates": np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
    "durations": np.array([1, 2], dtype="m8[ns]"),
    "fixed width": np.array(["a", "bcd"]),
    "strings": objects("C01Q1", "", "ä"),
    "string matrix": objects("a", "b", "c", "d").reshape(2, 2),
    "null character at the end": objects("a\x00", "b"),
    "one long string": objects("x" * 10_000, *["y"] * 50),
    "no objects": objects(),
    "large integers": objects(10**30, -1),
    "mixed": objects("a", 1, 2.5, None, True, float("nan"), pd.NA, pd.NaT),
    "date objects": objects(datetime.date(2020, 2, 29), datetime.date(1, 1, 1)),
    "datetime objects": objects(
        datetime.datetime(2020, 2, 29, 1, 2, 3, 4),
        datetime.datetime(2020, 2, 29, tzinfo=datetime.UTC),
        datetime.datetime(2020, 2, 29, tzinfo=datetime.timezone(datetime.timedelta(hours=-3))),
    ),
    "timestamps": objects(
        pd.Timestamp("2020-01-01 00:00:00.123456789"),
        pd.Timestamp("2020-10-25 01:30", tz="UTC").tz_convert("Europe/Paris"),  # the second half past two
        pd.Timestamp("2020-10-25 02:30:00.5", tz="UTC"),
        pd.Timestamp("1066-10-14").as_unit("s"),
    ),
}


def test_trees_come_back_bit_by_bit(tmp_path: Path) -> None:
    storage.write(tmp_path / "tree", "test", TREE)
    restored = storage.read(tmp_path / "tree", "test")
    assert list(restored) == list(TREE)
    for key, value in TREE.items():
        assert same(restored[key], value), f"{key}: {restored[key]!r}"
    assert restored["columns first"].flags.f_contiguous
    assert [moment.unit for moment in restored["timestamps"]] == [moment.unit for moment in TREE["timestamps"]]


def test_files_are_plain_archives_of_arrays_and_json(tmp_path: Path) -> None:
    path = tmp_path / "no.suffix.added"
    storage.write(path, "test", {"x": np.arange(3.0), "again": np.arange(3.0), "ids": objects("a", "b")})
    assert os.listdir(tmp_path) == [path.name]
    with np.load(path, allow_pickle=False) as archive:
        assert archive["arrays/0"].tolist() == [0, 1, 2] and archive["arrays/1"].tolist() == ["a", "b"]
        document = json.loads(archive["document.json"])
    assert document["format"] == "blpjax" and document["version"] == storage.VERSION and document["kind"] == "test"
    assert document["blpjax"] == blpjax.__version__
    assert document["state"]["x"] == document["state"]["again"], "equal arrays are stored once"


def test_equal_trees_give_equal_files(tmp_path: Path) -> None:
    storage.write(tmp_path / "first", "test", TREE)
    storage.write(tmp_path / "second", "test", TREE)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"state\['x'\]\[0\] cannot be stored: it is builtins.object"),
        (1 + 2j, "it is builtins.complex"),
        (np.array([1 + 2j]), "element 0 of the array is complex128"),
        (objects("a", pd.Period("2020Q1")), "element 1 of the array is Period"),
        (np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), "element 0 of the array is"),
        ({1: 2}, "its keys are not all strings"),
        (datetime.datetime(2020, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), "it is datetime.datetime"),
        (pd.Timestamp("2020-01-01", tz=datetime.timezone(datetime.timedelta(0), "home")), "Timestamp"),
    ],
)
def test_what_cannot_be_stored_is_named_and_leaves_no_file(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        storage.write(tmp_path / "file", "test", {"x": [value]})
    assert not os.listdir(tmp_path)


def test_files_are_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    storage.write(path, "test", {"x": 1})
    link.symlink_to(path)
    storage.write(link, "test", {"x": 2})
    assert link.is_symlink() and storage.read(path, "test") == {"x": 2}

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np.lib.format, "write_array", fail)
    with pytest.raises(OSError, match="no space left"):
        storage.write(path, "test", {"x": np.arange(3)})
    assert storage.read(path, "test") == {"x": 2}
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no directory '.*missing'"):
        storage.write(tmp_path / "missing" / "file", "test", {})
    with pytest.raises(IsADirectoryError, match="is a directory"):
        storage.write(tmp_path, "test", {})
    with pytest.raises(FileNotFoundError):
        storage.read(tmp_path / "missing", "test")


def rewrite(path: Path, target: Path, **changes: Any) -> Path:
    """Copy a file with members (by name) replaced, removed (None) or, for the document, changed by a function."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            change = changes.get(name, content)
            if callable(change):
                document = json.loads(content)
                change = json.dumps(change(document) or document)
            if change is not None:
                copy.writestr(name, change)
    return target


@pytest.fixture
def file(tmp_path: Path) -> Path:
    storage.write(tmp_path / "good", "test", {"x": np.arange(3.0), "ids": objects(1, "a")})
    return tmp_path / "good"


def test_other_files_are_refused(tmp_path: Path, file: Path) -> None:
    assert issubclass(StorageError, BLPError) and issubclass(StorageError, ValueError)
    text, arrays, other = tmp_path / "text", tmp_path / "arrays.npz", tmp_path / "other"
    text.write_text("market_ids,shares\n")
    np.savez(arrays, x=np.arange(3))
    rewrite(file, other, **{"document.json": lambda document: document.update(format="something") or document})
    for path in (text, arrays, other):
        with pytest.raises(StorageError, match=f"'{path}' was not written by blpjax"):
            storage.read(path, "test")
    with pytest.raises(StorageError, match="does not hold results but test"):
        blpjax.load(file)


def test_newer_formats_ask_for_an_upgrade(tmp_path: Path, file: Path) -> None:
    def newer(document: dict[str, Any]) -> None:
        document.update(version=storage.VERSION + 1, blpjax="99.1", state={"$quantum": 1})

    path = rewrite(file, tmp_path / "newer", **{"document.json": newer})
    message = f"written by blpjax 99.1 in version {storage.VERSION + 1} .* up to {storage.VERSION}. Upgrade"
    with pytest.raises(StorageError, match=message):
        storage.read(path, "test")


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("arrays/0.npy", None, "'arrays/0.npy' is missing"),
        ("arrays/0.npy", b"junk", "damaged"),
        ("document.json", b"{", "damaged"),
        ("document.json", lambda document: document.update(version="1"), "'1' is no version of the format"),
        ("document.json", lambda document: document.pop("state") and None, "state"),
        ("document.json", lambda document: document.update(state=[1]), "not a dictionary"),
        ("document.json", lambda document: document["state"].update(x={"$code": "exit()"}), "unknown type '.code'"),
        ("document.json", lambda document: document["state"].update(x={"$date": "today"}), "damaged"),
        ("document.json", lambda document: document["state"].update(x={"$array": "../x"}), "'../x' is missing"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, file: Path, member: str, content: Any, message: str) -> None:
    path = rewrite(file, tmp_path / "bad", **{member: content})
    with pytest.raises(StorageError, match=f"'{path}' is damaged: .*" if message == "damaged" else message):
        storage.read(path, "test")


def test_truncated_files_and_flipped_bits_are_refused(tmp_path: Path, file: Path) -> None:
    content = file.read_bytes()
    path = tmp_path / "bad"
    path.write_bytes(content[:-30])
    with pytest.raises(StorageError, match="damaged: its end is missing"):
        storage.read(path, "test")
    with zipfile.ZipFile(file) as archive:
        start = archive.getinfo("arrays/0.npy").header_offset
    refused = 0
    for position in range(start + 60, start + 100):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with pytest.raises(StorageError, match="damaged"):
            storage.read(path, "test")
        refused += 1
    assert refused == 40


class Exploit:
    """Unpickling this would leave a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_loading_executes_nothing(tmp_path: Path, file: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Exploit(trace)))
    assert trace.exists(), "the exploit works where objects are unpickled"
    trace.unlink()
    buffer = io.BytesIO()
    np.save(buffer, objects(Exploit(trace)), allow_pickle=True)
    for number, content in enumerate((buffer.getvalue(), pickle.dumps(Exploit(trace)))):
        path = rewrite(file, tmp_path / f"bad{number}", **{"arrays/0.npy": content})
        with pytest.raises(StorageError, match="damaged"):
            storage.read(path, "test")
    path = tmp_path / "pickle"
    path.write_bytes(pickle.dumps(Exploit(trace)))
    with pytest.raises(StorageError, match="was not written by blpjax"):
        storage.read(path, "test")
    assert not trace.exists()


@pytest.mark.slow
def test_loaded_results_have_equal_attributes(results: ProblemResults, loaded: ProblemResults) -> None:
    steps = [results, loaded]
    for number in (2, 1, 0):
        before, after = (step.to_dict() for step in steps)
        assert before["step"] == after["step"] == number
        for name in before:
            assert same(before[name], after[name]), name
        assert str(steps[0]) == str(steps[1]) and steps[0].message == steps[1].message
        assert steps[0].at_bound == steps[1].at_bound and same(steps[0].fp_residuals, steps[1].fp_residuals)
        pd.testing.assert_frame_equal(steps[0].estimates(), steps[1].estimates(), check_exact=True)
        assert steps[1].problem is loaded.problem
        steps = [step.last_results for step in steps]
    assert steps == [None, None]


def test_loaded_results_compute_everything(results: ProblemResults, loaded: ProblemResults) -> None:
    market = results.problem.unique_market_ids[1]
    for compute in (
        lambda r: r.compute_elasticities(),
        lambda r: r.compute_elasticities("x"),
        lambda r: r.compute_elasticities(None, market_id=market),
        lambda r: r.compute_diversion_ratios(),
        lambda r: r.compute_shares(prices=1.1 * r.problem.product_table.prices),
        lambda r: r.compute_probabilities(),
        lambda r: np.array([r.run_hansen_test(), r.run_distance_test(r), r.run_lm_test()]),
        lambda r: np.asarray(r.run_wald_test(r.parameters[:1], np.eye(1, len(r.parameters)))),
    ):
        expected = compute(results)
        np.testing.assert_allclose(compute(loaded), expected, rtol=1e-12, atol=0, equal_nan=True)
        assert np.isfinite(expected).any()
    tidy = loaded.compute_elasticities(as_frame=True)
    pd.testing.assert_frame_equal(tidy, results.compute_elasticities(as_frame=True), rtol=1e-12, atol=0)


@pytest.mark.slow
def test_loaded_results_invert_shares(results: ProblemResults, loaded: ProblemResults) -> None:
    for compute in (
        lambda r: r.compute_delta(),
        lambda r: r.compute_delta(integration=Integration("product", 3), agent_data=r.problem.agent_table.data),
    ):
        np.testing.assert_allclose(compute(loaded), compute(results), rtol=1e-12, atol=0)


def test_loaded_problems_are_the_same_problems(results: ProblemResults, loaded: ProblemResults) -> None:
    assert str(loaded.problem) == str(results.problem)
    assert loaded.problem.product_formulations == results.problem.product_formulations
    for table in ("product_table", "agent_table"):
        before, after = getattr(results.problem, table), getattr(loaded.problem, table)
        assert same(dict(before.data), dict(after.data))
    assert same(np.asarray(results.problem.model_data.demand.Z), np.asarray(loaded.problem.model_data.demand.Z))


def test_loaded_problems_are_solved_by_the_programs_that_are_compiled(
    results: ProblemResults, loaded: ProblemResults
) -> None:
    compiled: list[str] = []

    def listen(event: str, duration: float, **unused: Any) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x * 17.0 + 3.0)(np.arange(11.0))
    assert compiled, "compilations are counted"
    compiled.clear()
    again = loaded.problem.solve(SIGMA, PI, initial_update=True)
    assert not compiled
    assert same(again.theta, results.theta) and same(again.parameter_covariances, results.parameter_covariances)


def test_results_can_be_saved_again(loaded: ProblemResults, tmp_path: Path) -> None:
    loaded.save(tmp_path / "first")
    blpjax.load(str(tmp_path / "first")).save(str(tmp_path / "second"))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def save_and_load(results: ProblemResults, tmp_path: Path) -> ProblemResults:
    results.save(tmp_path / "results")
    shutil.move(tmp_path / "results", tmp_path / "moved")
    return blpjax.load(tmp_path / "moved")


def test_logit_with_fixed_effects_and_clusters(tmp_path: Path) -> None:
    products, _ = tables(2, [4, 6, 5, 6], [1] * 4)
    products["clustering_ids"] = np.arange(len(products)) % 7
    absorbed = Formulation("0 + prices", "C(product_ids) + C(market_ids)", "lsmr", {"residual_tol": 1e-12})
    problem = Problem(absorbed, products, add_exogenous=False)
    results = problem.solve(method="1s", se_type="clustered")
    loaded = save_and_load(results, tmp_path)
    assert loaded.problem.product_formulations[0] == absorbed
    assert not loaded.problem.add_exogenous and loaded.problem.agent_table.weights.size == problem.T
    assert loaded.xi_fe.shape == (problem.N, 1) and same(loaded.xi_fe, results.xi_fe)
    assert same(loaded.to_dict(), results.to_dict()) and str(loaded) == str(results)


@pytest.mark.slow
def test_draws_without_a_seed_come_back(tmp_path: Path) -> None:
    products, agents = tables(3, [4, 6, 5], [30] * 3)
    integration = Integration("monte_carlo", 20)
    problem = Problem(
        PRODUCTS, products, DEMOGRAPHICS, agents.drop(columns=["weights", "nodes0", "nodes1"]), integration
    )
    results = problem.solve(SIGMA, PI, method="1s", **EVALUATED)
    loaded = save_and_load(results, tmp_path)
    assert loaded.problem.integration == integration and type(loaded.problem.integration) is Integration
    assert same(loaded.problem.agent_table.nodes, problem.agent_table.nodes)
    assert same(loaded.problem.agents_in_economy.demographics, problem.agents_in_economy.demographics)
    assert same(loaded.compute_elasticities(), results.compute_elasticities())


@pytest.mark.parametrize(
    "ids",
    [
        lambda codes: codes,
        lambda codes: codes + 0.5,
        lambda codes: np.array("2020-01-01", "M8[D]") + codes,
        lambda codes: pd.Series(pd.Timestamp("2020-01-01", tz="Europe/Paris") + pd.to_timedelta(codes, unit="D")),
        lambda codes: objects(*(datetime.date(2020, 1, 1 + int(code)) for code in codes)),
        lambda codes: pd.Categorical([f"market {code}" for code in codes]),
        lambda codes: objects(*(10**30 + int(code) for code in codes)),
    ],
    ids=["integers", "floats", "dates", "timestamps", "date objects", "categories", "large integers"],
)
def test_markets_keep_their_ids(tmp_path: Path, ids: Any) -> None:
    products, _ = tables(4, [4, 6, 5, 6, 5], [1] * 5)
    codes = np.unique(products["market_ids"], return_inverse=True)[1]
    products["market_ids"] = ids(codes)
    results = Problem(Formulation("1 + prices + x"), products).solve(method="1s")
    loaded = save_and_load(results, tmp_path)
    assert same(loaded.problem.unique_market_ids, results.problem.unique_market_ids)
    market = results.problem.unique_market_ids[2]
    assert same(loaded.compute_elasticities(market_id=market), results.compute_elasticities(market_id=market))


def test_columns_that_cannot_be_stored(tmp_path: Path) -> None:
    N = make_problem().N
    periods = pd.Series(pd.period_range("2000Q1", periods=N, freq="Q"))
    used = make_problem(firm_ids=periods.astype(object)).solve(SIGMA, PI, **EVALUATED)
    message = "column 'firm_ids' holds pandas.*Period, which a file cannot hold, in market 'm000', row 0.*astype"
    with pytest.raises(DataError, match=message):
        used.save(tmp_path / "results")
    assert not os.listdir(tmp_path)
    unused = make_problem(quarter=periods.astype(object)).solve(SIGMA, PI, **EVALUATED)
    with pytest.warns(DataWarning, match="'quarter' holds .* does not use the column, which is left out"):
        unused.save(tmp_path / "results")
    loaded = blpjax.load(tmp_path / "results")
    assert "quarter" not in loaded.problem.product_table.data and str(loaded) == str(unused)


class Untouched(types.ModuleType):
    """Options that nobody may set, not even for a moment: other threads read them, too."""

    def __setattr__(self, name: str, value: Any) -> None:
        assert name == "__class__", f"options.{name} was set"
        super().__setattr__(name, value)


@pytest.mark.slow
def test_data_are_checked_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    products, agents = tables(5, [4, 6, 5, 6], [15] * 4)
    products["twice"] = 2 * products["x"]
    agents["weights"] *= 0.9
    monkeypatch.setattr(blpjax.options, "collinear_atol", 0)
    monkeypatch.setattr(blpjax.options, "collinear_rtol", 0)
    with pytest.warns(DataWarning, match="weights"):
        problem = Problem((Formulation("1 + prices + x + twice"), PRODUCTS[1]), products, DEMOGRAPHICS, agents)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentificationWarning)  # about the estimates
        results = problem.solve(SIGMA, PI, method="1s", **EVALUATED)
    monkeypatch.undo()
    results.save(tmp_path / "results")
    shown: list[str] = []
    monkeypatch.setattr(blpjax.options, "verbose", True)
    monkeypatch.setattr(blpjax.options, "verbose_output", shown.append)
    monkeypatch.setattr(blpjax.options, "__class__", Untouched)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = blpjax.load(tmp_path / "results")
    assert loaded.problem.data.tolerances == results.problem.data.tolerances
    assert not shown and blpjax.options.verbose and blpjax.options.collinear_atol == 1e-10
    assert same(loaded.to_dict(), results.to_dict())


@pytest.mark.slow
def test_functions_of_the_user_are_stored_by_name(tmp_path: Path) -> None:
    def my_routine(initial: Any, bounds: Any, objective: Any, callback: Any, **options: Any) -> tuple[Any, bool]:
        objective(initial)
        return initial, True

    def my_norm(x: Any) -> Any:
        return abs(x).max()

    custom = Optimization(
        my_routine, {"level": 3, "points": (1, [2.0, "a"]), "by": {"f": my_norm}}, compute_gradient=False
    )
    with pytest.warns(ConvergenceWarning, match="not an optimum"):
        results = make_problem().solve(
            SIGMA, PI, method="1s", optimization=custom, iteration=Iteration("simple", {"norm": my_norm})
        )
    loaded = save_and_load(results, tmp_path)
    assert same(loaded.to_dict(), results.to_dict()) and str(loaded) == str(results)
    options = step_of(loaded).options
    optimization, iteration = options.optimization, options.iteration
    assert optimization.method_options["points"] == (1, [2.0, "a"]) and optimization.method_options["level"] == 3
    assert isinstance(optimization.method_options["by"]["f"], NotStored) and not optimization.compute_gradient
    assert "custom routine" in repr(optimization) and "my_routine, not stored" in repr(optimization.method)
    for function in (optimization.method, iteration.fixed_point.norm):
        with pytest.raises(
            NotImplementedError, match=r"my_(routine|norm) was not stored with the results.*Pass it again"
        ):
            function(1.0)
    with pytest.raises(NotImplementedError, match="my_routine was not stored"):
        loaded.problem.solve(SIGMA, PI, optimization=optimization)
    loaded.save(tmp_path / "again")
    assert blpjax.load(tmp_path / "again").objective == results.objective


def step_of(results: ProblemResults) -> Step:
    return Step(results._result, results._options, results._estimated)


@pytest.mark.parametrize("method", METHODS)
def test_options_of_iteration_come_back(results: ProblemResults, method: str) -> None:
    options: dict[str, Any] = {
        "squarem": {
            "norm": np.linalg.norm,
            "rtol": 1e-10,
            "scheme": 2,
            "step_min": 0.5,
            "step_max": 2,
            "step_factor": 3,
        },
        "anderson": {"norm": np.linalg.norm, "memory": 3, "safeguard": False},
        "simple": {"norm": np.linalg.norm, "rtol": 1e-9},
    }.get(method, {}) | ({} if method == "return" else {"atol": 1e-11, "max_evaluations": 77})
    step = step_of(results)
    for iteration in (Iteration(method), Iteration(method, options)):
        wanted = dataclasses.replace(step.options, iteration=iteration)
        restored = read_step(step_state(dataclasses.replace(step, options=wanted)), results.problem.form).options
        assert restored.iteration == iteration and repr(restored.iteration) == repr(iteration)
        assert restored.specification == wanted.specification
        assert hash(restored.specification) == hash(wanted.specification), "programs are found by their hash"


def test_files_that_do_not_describe_results_are_refused(results: ProblemResults, tmp_path: Path) -> None:
    results.save(tmp_path / "results")

    def without_steps(document: dict[str, Any]) -> None:
        del document["state"]["steps"]

    def without_theta(document: dict[str, Any]) -> None:
        del document["state"]["steps"][0]["result"]["theta"]

    for change, message in ((without_steps, "KeyError: 'steps'"), (without_theta, "TypeError: .*theta")):
        path = rewrite(tmp_path / "results", tmp_path / "bad", **{"document.json": change})
        with pytest.raises(
            StorageError, match=f"'{path}' is damaged: its content does not describe results .{message}"
        ):
            blpjax.load(path)


def test_results_of_knitro_load_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = make_problem().solve(SIGMA, PI, method="1s", **EVALUATED)
    stored = step_state(step_of(results))
    stored["options"]["optimization"]["method"] = "knitro"
    monkeypatch.delenv("KNITRODIR", raising=False)
    monkeypatch.setitem(sys.modules, "knitro", None)
    optimization = read_step(stored, results.problem.form).options.optimization
    assert optimization.method == NotStored("Optimization('knitro')")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state["problem"]["product_data"].update(shares=np.ones(3)),
            "column 'shares' has 3",
        ),
        (lambda state: state["steps"][-1]["result"].update(theta=np.ones(3)), "theta"),
        (lambda state: state["steps"][-1]["result"].update(delta=np.ones(3)), "delta has 3 rows instead of"),
        (lambda state: state["steps"][-1]["result"].update(W=np.eye(3)), "W has 3 rows instead of"),
    ],
)
def test_arrays_of_the_wrong_length_name_the_file(
    results: ProblemResults, tmp_path: Path, change: Any, message: str
) -> None:
    results.save(tmp_path / "results")
    state = storage.read(tmp_path / "results", "results")
    change(state)
    path = tmp_path / "bad"
    storage.write(path, "results", state)
    with pytest.raises(StorageError, match=f"'{path}' is damaged: its content does not describe results .*{message}"):
        blpjax.load(path)
