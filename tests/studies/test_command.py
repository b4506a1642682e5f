"""The command runs studies that files describe, and says what is wrong with a file."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from blpjax import options
from blpjax.exceptions import DescriptionError, StudyError
from blpjax.studies.command import main
from blpjax.studies.description import read_description
from blpjax.studies.monte_carlo import MonteCarlo
from tests.support.study_design import design, study

DESCRIPTION = """
[simulation]
X1 = "1 + prices + x"
X2 = "0 + x"
X3 = "1 + z"
seed = 0

[products]
file = "products.csv"

[integration]
specification = "product"
size = 3

[parameters]
beta = [1, -2.0, 2]
sigma = [[2.0]]
gamma = [1.0, 0.5]

[errors]
xi_variance = 0.05
omega_variance = 0.05
correlation = 0.5

[run]
replications = 4
batch_size = 2
seed = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A description of the study of other tests, its data, and quiet options that the command has to keep.

    Nothing that programs are made of is replaced, so that they may be those that other tests have compiled.
    """
    data = design().product_data
    names = [name for name in data.dtype.names if name not in ("prices", "shares") and data[name].size == len(data)]
    frame = pd.DataFrame({name: data[name].ravel() for name in names})
    frame.to_csv(tmp_path / "products.csv", index=False)
    (tmp_path / "study.toml").write_text(DESCRIPTION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "verbose", False)
        patch.chdir(tmp_path)
        yield tmp_path / "study.toml"


def edit(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    return file


class Recorded:
    """Instead of estimations: the arguments of `MonteCarlo.run`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
        self.calls: list[Any] = []

        def run(made: MonteCarlo, *arguments: Any, **named: Any) -> None:
            self.calls.append((arguments, named))
            raise StudyError("recorded") if error is None else error

        monkeypatch.setattr(MonteCarlo, "run", run)


@pytest.mark.slow
def test_files_describe_the_same_study_as_scripts(file: Path) -> None:
    made, expected = read_description(file).build(), study(True)
    assert made.labels == expected.labels and made.seed == expected.seed
    np.testing.assert_array_equal(made.true_values, expected.true_values)
    np.testing.assert_allclose(made._truth.delta, expected._truth.delta, rtol=1e-12)
    np.testing.assert_allclose(made._truth.root, expected._truth.root, rtol=1e-12)
    np.testing.assert_allclose(made.problem.products.ZS, expected.problem.products.ZS, rtol=1e-12)


def test_estimators_are_described(file: Path) -> None:
    text = """
[estimation]
X1 = "1 + prices"
X2 = "0 + x"
method = "1s"
se_type = "unadjusted"

[estimation.start]
sigma = [[1.5]]
beta = [nan, -1.0]

[estimation.bounds]
sigma = [[[0.1]], [[inf]]]

[estimation.iteration]
method = "newton"
options = { max_evaluations = 50 }

[estimation.optimization]
method = "trust-region"
options = { max_evaluations = 30 }

[estimation.optimal_instruments]
method = "approximate"
first_method = "1s"
drop_indices = []
"""
    file.write_text(file.read_text() + text)
    made = read_description(file).build()
    assert made.labels[1:] == ["prices", "1"] and made.problem.K3 == 0
    assert made._options.steps == 1 and made._options.specification.method.name == "newton"
    np.testing.assert_array_equal(made._shared.theta, [1.5, -1.0])
    np.testing.assert_array_equal(made._shared.lower, [0.1, -np.inf])
    assert dict(made._options.optimizer.options)["max_evaluations"] == 30
    assert made._plan.first_steps == 1 and made._plan.kept == (True, True)
    assert np.isnan(made.true_values).all()  # another model than that of the simulation


def test_shifters_of_optimal_instruments_are_described(file: Path) -> None:
    table = """
[estimation.optimal_instruments]
method = "approximate"
supply_shifters = "0 + x + z"
constant_costs = false

[estimation.optimal_instruments.iteration]
method = "simple"

[run]
"""
    plan = read_description(edit(file, "[run]", table)).build()._plan
    assert (
        len(plan.shifters[0].X1_columns) == 2
        and not plan.constant_costs
        and plan.iteration.fixed_point.name == "simple"
    )


def test_the_demand_side_alone(file: Path) -> None:
    made = read_description(edit(file, "[run]", "[estimation]\ndemand_only = true\n\n[run]")).build()
    assert made.problem.K3 == 0 and made.problem.K1 == 3 and made.labels == study(False).labels


def test_data_may_be_drawn(file: Path) -> None:
    edit(file, 'file = "products.csv"', "T = 3\nJ = 4\nF = 2")
    edit(file, '[integration]\nspecification = "product"\nsize = 3', '[agents]\nfile = "agents.parquet"')
    agents = pd.DataFrame({"market_ids": np.repeat([0, 1, 2], 2), "weights": 0.5, "nodes": [-1.0, 1.0] * 3})
    agents.to_parquet(file.with_name("agents.parquet"))
    edit(file, 'X3 = "1 + z"', 'X3 = "1 + z"\ndemographics = "0 + income"\nrc_types = ["linear"]\nepsilon_scale = 1')
    edit(file, "sigma = [[2.0]]", "sigma = [[2.0]]\npi = [[0.1]]")
    made = read_description(file)._build_simulation()
    assert (made.T, made.N, made.I, made.D) == (3, 12, 6, 1) and made.drawn_variables


@pytest.mark.parametrize("old, new, message", [
    ("seed = 3", "sede = 3", r"\[run\] has the unknown key 'sede'. Did you mean 'seed'\?"),
    ("seed = 3", "zzz = 3", r"\[run\] has the unknown key 'zzz'. Known are replications, batch_size, memory, path"),
    ("[errors]", "[erors]", r"the file has the unknown table or key 'erors'. Did you mean 'errors'\?"),
    ("[run]", "[estimation.stat]\nsigma = 1\n[run]", r"\[estimation\] has the unknown key 'stat'. Did you mean 'start"),
    ("[run]", "[estimation]\nstart = 3\n[run]", r"estimation.start must be a table, \[estimation.start\], not 3"),
    ("replications = 4", "replications = 'four'", r"\[run\] replications must be a positive integer, not 'four'"),
    ("replications = 4", "replications = true", r"\[run\] replications must be a positive integer, not True"),
    ("batch_size = 2", "batch_size = 0", r"\[run\] batch_size must be a positive integer, not 0"),
    ("seed = 3", "seed = 0.5", r"\[run\] seed must be an integer, not 0.5"),
    ("correlation = 0.5", "correlation = '0.5'", r"\[errors\] correlation must be a number, not '0.5'"),
    ('X1 = "1 + prices + x"', "X1 = 1", r"\[simulation\] X1 must be a text, not 1"),
    ("sigma = [[2.0]]", "sigma = [[2.0], []]", r"\[parameters\] sigma must be a number or nested lists of numbers"),
    ("sigma = [[2.0]]", "sigma = [['a']]", r"\[parameters\] sigma must be a number or nested lists of numbers"),
    ("[run]", "[estimation.bounds]\nsigma = [0.1]\n[run]", r"bounds\] sigma must be a list of two, lower and upper"),
    ("gamma = [1.0, 0.5]", "", r"\[parameters\] has no gamma, which is required"),
    ('X3 = "1 + z"', "", r"\[simulation\] has no X3, which is required"),
    ("size = 3", "", r"\[integration\] has no size, which is required"),
    ("sigma = [[2.0]]", "sigma = [[2.0]", "is not valid TOML"),
    ("products.csv", "product.csv", r"\[products\] file .*product.csv cannot be read: .*No such file"),
    ("products.csv", "products.xls", r"\[products\] file must end with .csv or .parquet, but is 'products.xls'"),
    ('file = "products.csv"', "T = 3", r"\[products\] needs either file, or T, J and F"),
    ('file = "products.csv"', "T = 3\nJ = 2\nF = 5", r"the simulation cannot be built: J must be at least F"),
    ("beta = [1, -2.0, 2]", "beta = [1, -2]", r"the simulation cannot be built: beta"),
    ('X1 = "1 + prices + x"', 'X1 = "1 + prices +"', r"the simulation cannot be built: "),
    ('"product"', '"lhs"', r"\[integration\] needs a seed, options = \{ seed = 0 \}"),
    ("[run]", "[estimation]\nmethod = '3s'\n[run]", r"the estimation cannot be built: method must be one of"),
    ("[run]", "[estimation]\nX2 = 'x'\n[run]", r"\[estimation\] needs X1"),
    ("[run]", "[estimation.optimization]\nmethod = 'bfgs'\n[run]", r"other routines than Optimization\('trust-region'"),
    ("[run]", "[estimation.optimization]\noptions = {}\n[run]", r"\[estimation.optimization\] has no method"),
    ("[run]", "[estimation.optimal_instruments]\nmethod = 'a'\n[run]", r"cannot be built: method must be one of"),
    ("[run]", "[estimation]\nX1 = 'x'\ndemand_only = true\n[run]", r"\[estimation\] has formulations and demand_only"),
])  # fmt: skip
def test_wrong_descriptions_are_refused(
    file: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    text = file.read_text()
    file.write_text(text.replace(old, new))
    assert file.read_text() != text
    with pytest.raises(DescriptionError, match=message) as error:
        read_description(file).build()
    assert str(error.value).startswith(str(file))
    assert main([str(file)]) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err) and not shown.out and not file.with_suffix("").exists()


def test_all_keys_of_the_example_are_known(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "examples" / "study.toml").read_text()
    whole = re.sub(r"^# (\w+ = |\[)", r"\1", text.split("\n\n", 1)[1], flags=re.MULTILINE)
    (tmp_path / "study.toml").write_text(whole)
    description = read_description(tmp_path / "study.toml")
    assert description.path == tmp_path / "study"
    assert {name for name, table in description.tables.items() if not table} == set()


def test_a_description_without_a_table_is_refused(file: Path) -> None:
    file.write_text(DESCRIPTION.split("[parameters]")[0])
    with pytest.raises(DescriptionError, match=r"has no table \[parameters\], which needs beta and gamma"):
        read_description(file)
    with pytest.raises(DescriptionError, match=r"missing.toml cannot be read: .*No such file"):
        read_description(file.with_name("missing.toml"))


@pytest.mark.parametrize("arguments, message", [
    ([], "the following arguments are required: study"),
    (["study.toml", "--replications", "0"], "argument --replications: invalid positive integer value: '0'"),
    (["study.toml", "--devices", "x"], "argument --devices: invalid positive integer value: 'x'"),
    (["study.toml", "--repl", "1"], "unrecognized arguments: --repl"),
])  # fmt: skip
def test_wrong_arguments_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_help_explains_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "exit status:" in shown
    assert all(re.search(rf"^  {status} ", shown, re.MULTILINE) for status in (0, 1, 2, 130))


def test_arguments_come_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorded = Recorded(monkeypatch)
    edit(file, "seed = 3", 'memory = 1000000\npath = "kept"')
    assert main([str(file)]) == 1
    other = tmp_path / "other"
    assert main([str(file), "--replications", "7", "--batch-size", "3", "--path", str(other), "--resume"]) == 1
    assert recorded.calls == [
        ((4, 2, tmp_path / "kept"), {"memory": 1000000, "devices": None}),
        ((7, 3, other), {"memory": 1000000, "devices": None}),
    ]
    edit(file, "replications = 4", "")
    assert main([str(file)]) == 2
    assert not options.verbose


def test_a_few_replications_are_no_whole_batch_and_leave_nothing_beside_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorded = Recorded(monkeypatch)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    edit(file, "batch_size = 2", "batch_size = 50")
    assert main([str(file), "--replications", "3"]) == 1
    assert main([str(file)]) == 1
    assert [arguments for arguments, _ in recorded.calls] == [(3, 3, Path("study")), (4, 50, Path("study"))]


def test_failures_have_their_own_status(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Recorded(monkeypatch, KeyboardInterrupt())
    assert main([str(file)]) == 130
    assert "use --resume to go on" in capsys.readouterr().err
    assert main([str(file), "--devices", "1000"]) == 2
    assert "--devices 1000: this process has" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(file.parent)
    file.with_name("study").write_text("")
    assert main([str(file), "--quiet"]) == 1
    assert "study cannot be used as the directory of a study" in capsys.readouterr().err


@pytest.mark.parametrize("supply", [pytest.param(True, marks=pytest.mark.slow), False], ids=["supply", "demand"])
def test_studies_are_run_and_resumed(supply: bool, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The study of demand is that of other tests, and so are its programs."""
    if not supply:
        demand = "[estimation]\ndemand_only = true\n[estimation.start]\nbeta = [nan, nan, nan]\n[run]"
        edit(file, "[run]", demand)
    path = file.with_name("study")
    assert main([str(file)]) == 0
    shown = capsys.readouterr()
    assert "4/4" in shown.err and "bias" in shown.out and "4 replications in batches of 2" in shown.out
    table = pd.read_parquet(path / "table.parquet")
    expected = read_description(file).build().run(4, batch_size=2)
    pd.testing.assert_frame_equal(table, expected.table)
    kept = pd.read_csv(path / "summary.csv").set_index(["block", "parameter"])
    pd.testing.assert_frame_equal(kept, expected.summary(), check_dtype=False)
    assert main([str(file), "--replications", "6"]) == 2
    assert "study holds finished parts of a study: add --resume" in capsys.readouterr().err
    ran: list[int] = []
    original = MonteCarlo.run_batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MonteCarlo, "run_batch", lambda self, first, size: ran.append(first) or original(self, first, size)
        )
        assert main([str(file), "--replications", "6", "--resume", "--quiet"]) == 0
    assert ran == [4] and not capsys.readouterr().err
    assert pd.read_parquet(path / "table.parquet")["replication"].max() == 5
    assert main([str(edit(file, "seed = 3", "seed = 4")), "--resume"]) == 1
    assert "holds another study" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_makes_devices(file: Path) -> None:
    """As a process, with two devices: the same estimates."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "blpjax", str(file), "--devices", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(file.with_name("study") / "table.parquet")
    expected = read_description(file).build().run(4, batch_size=2).table
    np.testing.assert_allclose(table["estimate"], expected["estimate"], rtol=1e-6, atol=1e-8)
