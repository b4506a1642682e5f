"""The benchmarks run, print finite numbers, and say so where a case fails."""

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyblp
import pytest

import blpjax
from benchmarks import __main__ as command
from benchmarks import (
    breakdown,
    child,
    estimation,
    family,
    family_models,
    minivans,
    models,
    processes,
    programs,
    starts,
    studies,
    supply,
)
from benchmarks.comparison import Outcome, compare, compare_outputs
from benchmarks.rows import Row, Timing, as_json, failed, format_row, header, measure
from benchmarks.settings import QUICK, Settings, Size, UnequalSize
from blpjax.data import load_petrin
from blpjax.machine import compilation

TINY = Settings(
    repeat=1,
    warm=1,
    pyblp=False,
    starts=2,
    size=Size(6, 5, 20),
    equilibrium=Size(6, 5, 20),
    nested=Size(20, 8, 0),
    rcnl=3,
    unequal=UnequalSize(12, 3, 20, 10),
    unequal_pyblp=5,
)


@pytest.fixture(autouse=True)
def kept_programs() -> Iterator[None]:
    """Programs that other tests compiled stay, in memory and on disk: compile times do not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blpjax.machine.compilation.forget_programs", lambda: None)
        yield


def only_row(rows: Iterator[Row]) -> Row:
    (row,) = rows
    return row


def check_timing(timing: Timing | None) -> None:
    assert timing is not None
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in timing.seconds)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_ratio_compares_medians_and_extremes() -> None:
    row = Row("case", warm=Timing((1.0, 2.0, 4.0)), first=Timing((9.0,)), pyblp=Timing((40.0, 100.0)))
    assert row.ratio is not None
    assert (row.ratio.median, row.ratio.low, row.ratio.high) == (35.0, 10.0, 100.0)
    assert str(row.ratio) == "35x [10-100]"


def test_rows_without_a_warm_run_are_compared_by_their_first() -> None:
    row = Row("case", first=Timing((2.0,)), pyblp=Timing((6.0,)))
    assert row.ratio is not None and row.ratio.median == 3.0
    assert Row("case", first=Timing((2.0,))).ratio is None


def test_cells_stand_below_their_columns() -> None:
    row = Row("case", compile=1.25, warm=Timing((0.5,)), evaluations=(14, 57), converged=(True, False))
    names, line = header().splitlines()[0], format_row(row)
    for name, cell in (("compile s", "1.25"), ("warm s", "0.5"), ("evaluations", "14 / 57"), ("converged", "yes / NO")):
        assert line[names.index(name) :].startswith(cell)


def test_failed_rows_are_printed_as_failed() -> None:
    text = format_row(failed("case", "ValueError: first line\nsecond line"))
    assert text.splitlines() == ["case  FAILED: ValueError: first line second line"]


def test_measure_counts_each_call() -> None:
    calls: list[int] = []
    timing = measure(lambda: calls.append(1), 3)
    assert len(calls) == len(timing.seconds) == 3


def test_json_has_no_numbers_that_are_not_finite() -> None:
    row = Row("case", warm=Timing((0.5, math.nan)), details={"largest": math.inf, "markets": 3})
    content = json.loads(json.dumps(as_json(row), allow_nan=False))
    assert content["warm"]["seconds"] == [0.5, None]
    assert content["details"] == {"largest": None, "markets": 3}
    assert content["ratio"] is None


def test_differences_are_relative_to_pyblp() -> None:
    ours = Outcome(1.0, (1.0, -2.2), (0.5, 0.5), 3, True)
    theirs = Outcome(1.0, (1.0, -2.0), (0.5, 0.4), 9, True)
    difference = compare(ours, theirs)
    assert difference.estimates == pytest.approx(0.1)
    assert difference.errors == pytest.approx(0.25)


def test_outputs_are_compared_relative_to_their_largest_element() -> None:
    theirs = {"prices": np.array([1.0, 4.0, np.nan]), "shares": np.array([0.5])}
    assert compare_outputs(theirs, theirs)[1] == 0
    ours = theirs | {"prices": np.array([1.2, 4.0, np.nan])}
    assert compare_outputs(ours, theirs) == ("prices", pytest.approx(0.05))
    for wrong in (np.array([1.0, 4.0]), np.array([1.0, np.nan, 4.0])):
        assert compare_outputs(theirs | {"prices": wrong}, theirs) == ("prices", math.inf)


# --- cases ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nevo_rows_reach_the_optimum() -> None:
    verbose = blpjax.options.verbose
    rows = list(estimation.nevo_rows(TINY))
    assert [row.case for row in rows] == ["Nevo, gradient", "Nevo, both"]
    for row in rows:
        assert row.failure == "" and row.converged == (True,) and row.evaluations[0] > 1
        check_timing(row.first)
        check_timing(row.warm)
        assert row.compile is not None and math.isfinite(row.compile)
        assert row.pyblp is None and "PyBLP was not run" in row.details["goals"]
    assert blpjax.options.verbose is verbose


@pytest.mark.slow
def test_nevo_row_fails_at_another_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "NEVO_OBJECTIVE", 4.0)
    row = next(estimation.nevo_rows(TINY))
    assert "objective 4.5615" in row.failure and "instead of 4" in row.failure
    assert "FAILED" in format_row(row)


@pytest.mark.slow
def test_starts_rows_count_endings() -> None:
    estimated, inverted = starts.starts_rows(TINY)
    assert estimated.failure == inverted.failure == ""
    assert estimated.details["ended"].startswith("2 optimum, 0 another local minimum, 0 failure reported")
    assert "start 1, ours / stored PyBLP 1.3.0" in estimated.details
    check_timing(estimated.warm)
    check_timing(inverted.warm)
    assert inverted.details["markets solved to 1e-12"].startswith("94 of 94")


def test_starts_are_those_of_the_stored_results() -> None:
    stored = json.loads(starts.STORED.read_text(encoding="utf-8"))["starts"]
    for start, expected in zip(starts.draw_starts(len(stored)), stored, strict=True):
        np.testing.assert_array_equal(start.sigma, expected["sigma_start"])
        np.testing.assert_array_equal(start.pi, expected["pi_start"])


@pytest.mark.parametrize(
    ("converged", "objective", "kind"),
    [(True, models.NEVO_OBJECTIVE, "optimum"), (True, 35.0, "false convergence"), (False, 35.0, "failure reported")],
)
def test_starts_are_told_apart(monkeypatch: pytest.MonkeyPatch, converged: bool, objective: float, kind: str) -> None:
    # Nothing is minimal at the starting values that this stands for.
    result = SimpleNamespace(
        converged=converged,
        objective=objective,
        objective_evaluations=7,
        fp_converged=np.array([[1, 1], [1, 0]]),
        message="message",
        sigma=models.NEVO_SIGMA,
        pi=models.NEVO_PI,
        projected_gradient_norm=1.0,
        reduced_hessian_eigenvalues=np.array([-1.0, 2.0]),
    )
    problem = SimpleNamespace(solve=lambda *values, **options: result, T=94, N=2256, I=1880)
    ending = starts.estimate(problem, starts.draw_starts(1)[0])
    assert (ending.kind, ending.evaluations, ending.failed_evaluations) == (kind, 7, 1)


def test_a_start_that_crashes_is_counted() -> None:
    def crash(*values: object, **options: object) -> None:
        raise ArithmeticError("overflow")

    ending = starts.estimate(SimpleNamespace(solve=crash), starts.draw_starts(1)[0])
    assert (ending.kind, ending.message) == ("crash", "ArithmeticError: overflow")


@pytest.mark.slow
def test_profile_accounts_for_a_warm_solve() -> None:
    row = only_row(breakdown.profile_rows(TINY))
    assert row.failure == ""
    check_timing(row.warm)
    assert "ms" in row.details["one evaluation with Jacobian"]
    shares = [row.details[name] for name in ("optimiser", "after the optimiser", "before and after the GMM step")]
    assert sum(float(text.split(", ")[1].partition("%")[0]) for text in shares) == pytest.approx(100, abs=2)


@pytest.mark.slow
def test_autos_row_reaches_the_optimum() -> None:
    row = only_row(supply.autos_rows(TINY))
    assert row.failure == "" and row.converged == (True,)
    assert row.details["PyBLP's seconds"].startswith("scaled: 140 times one evaluation")
    check_timing(row.warm)
    check_timing(row.pyblp)


def test_autos_row_fails_elsewhere_and_without_convergence() -> None:
    known = {"objective": models.AUTOS_OBJECTIVE, "cumulative_converged": True}
    assert supply.autos_failure(SimpleNamespace(**known)) == ""
    assert supply.autos_failure(SimpleNamespace(**known | {"cumulative_converged": False})) == "did not converge"
    message = supply.autos_failure(SimpleNamespace(**known | {"objective": 500.0}))
    assert message == "objective 500 instead of 497.3356615"


def test_petrin_row_fails_elsewhere_and_without_convergence() -> None:
    known = {"objective": minivans.OBJECTIVE, "cumulative_converged": True}
    assert minivans.failure(SimpleNamespace(**known)) == ""
    assert minivans.failure(SimpleNamespace(**known | {"cumulative_converged": False})) == "did not converge"
    message = minivans.failure(SimpleNamespace(**known | {"objective": 186.605}))
    assert message == "objective 186.605 instead of 182.719526"


def test_petrin_moments_are_those_of_the_example_data() -> None:
    moments = minivans.micro_moments(blpjax)
    values = load_petrin().micro_values
    assert [moment.name for moment in moments] == list(values.index)
    assert [moment.value for moment in moments] == values["value"].tolist()
    assert len({id(part) for moment in moments for part in moment.parts}) == 16


@pytest.mark.slow
def test_post_row_agrees_with_pyblp() -> None:
    row = only_row(supply.post_rows(dataclasses.replace(TINY, pyblp=True)))
    assert row.failure == "" and row.details["outputs"] == 22
    # Prices after the merger: loops stop at small profit gradients, which say less about prices of small products.
    assert row.estimates_difference is not None and row.estimates_difference < supply.OUTPUT_TOLERANCE
    check_timing(row.first)


def test_equilibrium_row_agrees_with_pyblp() -> None:
    row = only_row(supply.equilibrium_rows(dataclasses.replace(TINY, pyblp=True)))
    assert row.failure == "" and row.size == "T=6 J=5 I=20"
    assert row.estimates_difference is not None and row.estimates_difference < 1e-9
    check_timing(row.warm)
    check_timing(row.pyblp)


@pytest.mark.slow
def test_nested_row_agrees_with_pyblp() -> None:
    row = only_row(family.nested_rows(dataclasses.replace(TINY, pyblp=True)))
    assert row.failure == "" and row.converged == (True, True) and row.size == "T=20 N=160 I=0"
    assert row.estimates_difference is not None and row.estimates_difference < 1e-6
    assert row.errors_difference is not None and row.errors_difference < 1e-6
    check_timing(row.warm)
    check_timing(row.pyblp)


@pytest.mark.slow
def test_rcnl_evaluation_row_agrees_with_pyblp() -> None:
    row = next(family.rcnl_rows(dataclasses.replace(TINY, pyblp=True)))
    assert row.failure == "" and row.evaluations == (1, 1) and row.details["rho"] == "0.4"
    assert row.errors_difference is not None and row.errors_difference < 1e-8


@pytest.mark.slow
def test_rcnl_row_reaches_the_parameters_of_the_simulation() -> None:
    _, row = family.rcnl_rows(TINY)
    assert row.case == "RCNL, two steps" and row.failure == "" and row.converged == (True,)
    assert row.evaluations[0] > 1 and row.pyblp is None
    assert float(row.details["rho"]) == pytest.approx(family_models.RCNL_RHO, abs=0.05)


@pytest.mark.slow
def test_unequal_row_scales_what_pyblp_took(monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process, where compiled programs are kept.
    def run(case: str, library: str, *size: str) -> processes.Process:
        assert (case, library, size) == ("unequal", "blpjax", ("12", "3", "20", "10"))
        return processes.Process(child.run_unequal(library, UnequalSize(*map(int, size))), 1.0)

    monkeypatch.setattr(family, "run_process", run)
    row = only_row(family.unequal_rows(dataclasses.replace(TINY, pyblp=True)))
    assert row.failure == "" and row.size.startswith("T=12 J=3-20 I=10 N=")
    assert row.evaluations == (1, 1) and row.converged == (True, True)
    assert row.estimates_difference is not None and row.estimates_difference < 1e-10
    assert 1 < float(row.details["padded work"].partition(" ")[0]) < 3
    assert row.details["peak memory of the process"].endswith("GiB")
    tables = family_models.simulate_unequal(TINY.unequal)
    factor = tables.pairs / tables.first(5).pairs
    words = row.details["PyBLP's seconds"].split()
    assert words[:3] == ["scaled:", f"{factor:.3f}", "times"] and words[-3:] == ["first", "5", "markets"]
    assert row.pyblp is not None and row.pyblp.median == pytest.approx(factor * float(words[3]), rel=0.01)


def test_unequal_tables_are_cut_by_market() -> None:
    tables = family_models.simulate_unequal(TINY.unequal)
    sizes = [np.bincount(table["market_ids"]) for table in (tables.products, tables.agents)]
    assert tables.pairs == sum(J * people for J, people in zip(*sizes, strict=True))
    assert all(3 <= J <= 20 for J in sizes[0]) and all(8 <= people <= 12 for people in sizes[1])
    sums = np.bincount(tables.products["market_ids"], tables.products["shares"])
    assert (tables.products["shares"] > 0).all() and (sums < 1).all()
    part = tables.first(5)
    assert part.pairs == sum(J * people for J, people in zip(sizes[0][:5], sizes[1][:5], strict=True))
    np.testing.assert_array_equal(part.products["shares"], tables.products["shares"][: sizes[0][:5].sum()])


def test_estimation_rows_fail_elsewhere_and_without_convergence(monkeypatch: pytest.MonkeyPatch) -> None:
    def results(rho: float, converged: bool = True) -> SimpleNamespace:
        values = {name: np.zeros((0, 0)) for name in ("sigma", "pi", "beta", "gamma")}
        errors = {f"{name}_se": value for name, value in values.items()}
        ends = {"converged": converged, "objective_evaluations": 3, "cumulative_objective_evaluations": 5}
        return SimpleNamespace(**values, **errors, **ends, objective=1.0, rho=np.array([rho]), rho_se=np.array([0.1]))

    def fail(ours: SimpleNamespace, theirs: SimpleNamespace) -> str:
        monkeypatch.setattr(family_models, "nested_problem", lambda lib, size: SimpleNamespace(T=1, N=1, I=0))
        monkeypatch.setattr(family_models, "nested_solve", lambda lib, _: ours if lib is blpjax else theirs)
        return only_row(family.nested_rows(dataclasses.replace(TINY, pyblp=True))).failure

    assert fail(results(0.5), results(0.5)) == ""
    assert fail(results(0.6), results(0.5)) == "estimates differ from PyBLP's by 0.2"
    assert fail(results(0.5, False), results(0.5)) == "did not converge"


def test_output_rows_fail_where_outputs_differ_or_are_missing() -> None:
    def fail(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> str:
        tables = [{name: np.array(values) for name, values in item.items()} for item in (ours, theirs)]
        calls = [lambda: tables[0], lambda: tables[1]]
        return supply.output_row("case", "", *calls, Settings(repeat=1, warm=1)).failure

    assert fail({"costs": [1.0]}, {"costs": [1.0 + 1e-9]}) == ""
    assert fail({"costs": [1.1]}, {"costs": [1.0]}) == "costs differ from PyBLP's by 0.1"
    assert fail({"costs": [math.nan]}, {"costs": [1.0]}) == "no finite numbers in costs"
    assert fail({"converged": [1.0, 0.0]}, {"converged": [1.0, 1.0]}) == "1 markets have no equilibrium"


def test_only_pyblp_is_timed_with_the_original_threads_of_lapack(monkeypatch: pytest.MonkeyPatch) -> None:
    lifted, seen = [False], {"blpjax": set[bool](), "pyblp": set[bool]()}

    @contextmanager
    def original() -> Iterator[None]:
        lifted[0] = True
        yield
        lifted[0] = False

    def run(library: str) -> Callable[[], dict[str, np.ndarray]]:
        def outputs() -> dict[str, np.ndarray]:
            seen[library].add(lifted[0])
            return {"costs": np.ones(1)}

        return outputs

    monkeypatch.setattr(estimation, "original_lapack_threads", original)
    supply.output_row("case", "", run("blpjax"), run("pyblp"), Settings(repeat=2, warm=1))
    assert seen == {"blpjax": {False}, "pyblp": {True}}


# --- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_row_agrees_with_pyblp(monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process, where compiled programs are kept.
    def run(case: str, library: str, T: str, J: str, individuals: str, warm: str) -> processes.Process:
        assert case == "simulated"
        size = Size(int(T), int(J), int(individuals))
        return processes.Process(child.run_simulated(library, size, int(warm)), 1.0)

    monkeypatch.setattr(processes, "run_process", run)
    monkeypatch.setattr(blpjax.options, "verbose", False)
    row = only_row(processes.memory_rows(Settings(repeat=1, pyblp=True, size=TINY.size)))
    assert row.failure == "" and row.size == "T=6 J=5 I=20 P=20"
    for timing in (row.first, row.warm, row.pyblp):
        check_timing(timing)
    assert row.estimates_difference is not None and row.estimates_difference < 1e-8
    assert row.errors_difference is not None and row.errors_difference < 1e-5
    assert 0 < float(row.details["peak memory of the process"].partition(" ")[0]) < 6


def test_supply_memory_rows_compare_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(case: str, library: str, *sizes: str) -> processes.Process:
        assert sizes == (("6", "5", "20") if case == "equilibrium" else ())
        peak = 2**29 if library == "blpjax" or case == "post" else 2**28
        return processes.Process(child.Report(_report(1).outcome, 2.0, (), peak), 3.0)

    monkeypatch.setattr(supply, "run_process", run)
    rows = list(supply.memory_rows(dataclasses.replace(TINY, pyblp=True)))
    assert [row.case for row in rows] == ["memory, autos", "memory, post", "memory, equilibrium"]
    assert [row.details["goal"].split(", ")[1] for row in rows] == ["missed", "reached", "missed"]
    assert rows[0].details["peak memory of PyBLP's process"] == "0.25 GiB"


def test_children_run_the_supply_side_of_pyblp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyblp.options, "verbose", False)
    equilibrium = child.run_equilibrium("pyblp", TINY.equilibrium)
    assert equilibrium.outcome.converged and 1 < equilibrium.outcome.estimates[0] < 3


@pytest.mark.slow
def test_a_process_sends_its_report() -> None:
    process = processes.run_process("simulated", "pyblp", "6", "5", "20", "1")
    report = process.report
    assert report.outcome.converged and report.outcome.evaluations == 1
    assert len(report.outcome.estimates) == len(report.outcome.errors) == 24
    check_timing(Timing((report.first, *report.warm)))
    assert len(report.warm) == 1 and process.seconds > report.first + sum(report.warm)


def test_memory_row_fails_above_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    report = child.Report(Outcome(1.0, (1.0,), (1.0,), 1, True), 2.0, (1.0,), 7 * 2**30)
    monkeypatch.setattr(processes, "run_process", lambda *arguments: processes.Process(report, 3.0))
    row = only_row(processes.memory_rows(TINY))
    assert row.failure == "peak of 7.00 GiB, more than 6.00 GiB"


def test_process_rows_compare_empty_and_filled_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}

    def run(case: str, library: str, cache: str = "0") -> processes.Process:
        assert case == "nevo"
        if library == "pyblp":
            return processes.Process(_report(57), 20.0)
        assert Path(cache).is_dir()
        seen[cache] = seen.get(cache, 0) + 1
        return processes.Process(_report(14), 4.0 / seen[cache])

    monkeypatch.setattr(processes, "run_process", run)
    monkeypatch.setattr(processes, "_fill_file_cache", lambda settings: None)
    empty, filled = processes.process_rows(Settings(repeat=3))
    assert list(seen.values()) == [2, 2, 2] and not any(Path(cache).exists() for cache in seen)
    assert empty.ratio is not None and empty.ratio.median == 5.0 and empty.details["goal"] == "5x, reached"
    assert filled.ratio is not None and filled.ratio.median == 10.0 and filled.details["goal"] == "8x, reached"
    assert empty.evaluations == (14, 57) and empty.estimates_difference == 0


def test_a_process_that_fails_is_an_error_with_its_last_line() -> None:
    with pytest.raises(RuntimeError, match="ended with status 1: ModuleNotFoundError: No module named 'neither'"):
        processes.run_process("nevo", "neither")


def test_peak_memory_is_that_of_a_python_process() -> None:
    assert 2**24 < child.peak_memory() < 2**40


def test_simulated_shares_leave_an_outside_share() -> None:
    products, agents = models.simulate(Size(3, 4, 10))
    sums = products["shares"].reshape(3, 4).sum(axis=1)
    assert (products["shares"] > 0).all() and (sums < 1).all()
    assert agents["nodes"].shape == (30, 4)


# --- command --------------------------------------------------------------------------------------------------------


def test_command_prints_failures_goes_on_and_exits_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def one_then_crash(settings: Settings) -> Iterator[Row]:
        assert settings == QUICK
        yield Row("first case", warm=Timing((0.5,)))
        raise ValueError("bad numbers")

    monkeypatch.setattr(estimation, "nevo_rows", one_then_crash)
    monkeypatch.setattr(breakdown, "profile_rows", lambda settings: iter([Row("second case")]))
    file = tmp_path / "rows.json"
    assert command.main(["--rows", "nevo", "profile", "--quick", "--json", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "first case" in printed and "second case" in printed
    assert "nevo  FAILED: ValueError: bad numbers" in printed
    assert "3 rows, 1 FAILED: nevo" in printed
    content = json.loads(file.read_text(encoding="utf-8"))
    assert [row["failure"] for row in content["rows"]] == ["", "ValueError: bad numbers", ""]
    assert "jaxlib" in content["machine"]["packages"]


def test_command_exits_with_zero_when_nothing_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimation, "nevo_rows", lambda settings: iter([Row("case", size=str(settings.repeat))]))
    assert command.main(["--rows", "nevo", "--repeat", "4"]) == 0
    assert "none failed" in capsys.readouterr().out


def test_command_refuses_no_repetitions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--repeat", "0"])
    assert "--repeat must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("group", command.GROUPS)
def test_groups_name_functions_that_exist(group: str) -> None:
    module, name = command.GROUPS[group].split(":")
    assert callable(getattr(importlib.import_module(module), name))


def _report(evaluations: int) -> child.Report:
    return child.Report(Outcome(models.NEVO_OBJECTIVE, (1.0, 2.0), (0.1, 0.2), evaluations, True), 1.0, (), 2**28)


@pytest.mark.slow
def test_studies_are_timed_by_replication() -> None:
    """Jointly with supply in each size of batches, and demand alone in the largest."""
    settings = Settings(repeat=1, pyblp=False, study_markets=20, batches=(1, 2))
    rows = list(studies.study_rows(settings))
    assert [row.case for row in rows] == [
        "study, joint, batches of 1",
        "study, joint, batches of 2",
        "study, demand, batches of 2",
    ]
    for row in rows:
        assert row.failure == "" and row.converged == (True,) and row.warm is not None and row.warm.median > 0
        assert row.details["failures"].startswith("0 of ")
    assert ["peak memory of a process" in row.details for row in rows] == [True, True, False]


# --- programs -------------------------------------------------------------------------------------------------------


def test_rows_of_programs_tell_what_processes_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stores: list[tuple[str, str, str]] = []

    def run(name: str, library: str, store: str) -> tuple[programs.Waiting, float]:
        again = (name, library, store) in stores
        stores.append((name, library, store))
        seconds = {"tracing": 0.0 if again else 1.0, "reading": 0.5}
        return programs.Waiting(0 if again else 3, 3 if again else 0, 100, seconds, 2.0, 2.5), 4.0 if again else 8.0

    monkeypatch.setattr(programs, "run_case", run)
    rows = list(programs.programs_rows(TINY))
    assert len(rows) == 2 * len(programs.CASES)
    empty, filled = rows[:2]
    assert empty.case.endswith("empty store") and empty.first == Timing((8.0,))
    assert empty.details["programs compiled, read"] == "3, 0" and "tracing 1.00" in empty.details["seconds"]
    assert filled.first == Timing((4.0,)) and filled.details["programs compiled, read"] == "0, 3"


def test_a_case_of_programs_counts_what_is_compiled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blpjax.options, "verbose", False)
    compilation.forget_programs()  # of tests before, in the same process
    programs.main("logit", "blpjax")
    found = programs.Waiting(**json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert found.compiled + found.read > 0 and found.instructions > 100 and found.cpu > 0


@pytest.mark.slow
def test_a_case_of_programs_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'unknown'"):
        programs.run_case("unknown", "blpjax", "0")
