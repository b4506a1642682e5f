"""What is too large for this machine is refused before it is made, by one error that says what to do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import blpjax
from blpjax.exceptions import SizeError
from blpjax.machine import memory
from blpjax.machine.batches import Sizes, run_study
from blpjax.studies.command import main
from tests.support.counting_study import CountingStudy
from tests.support.estimated import solved
from tests.support.problems import PI, SIGMA, build

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(autouse=True)
def small_machine() -> Iterator[None]:
    """Whatever machine runs the tests: one with two gibibytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available_memory", lambda: 2**31)
        yield


def large_market(J: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    columns = {f"demand_instruments{k}": rng.normal(size=J) for k in range(4)}
    return pd.DataFrame({"market_ids": "A", "shares": 0.5 / J, "prices": rng.uniform(1, 2, J), **columns})


@pytest.mark.parametrize(
    ("rule", "size", "dimensions"),
    [("monte_carlo", 10**9, 1), ("halton", 10**9, 2), ("mlhs", 10**9, 1), ("product", 10, 9), ("grid", 25, 12)],
)
def test_nodes(rule: str, size: int, dimensions: int) -> None:
    integration = blpjax.Integration(rule, size)
    with pytest.raises(SizeError, match=r"^Integration: [0-9,]+ nodes of \d+ dimensions would need .* Use a smaller"):
        integration.build(dimensions)
    with pytest.raises(SizeError):
        blpjax.build_integration(integration, dimensions)


def test_nodes_of_many_markets() -> None:
    with pytest.raises(SizeError, match="Integration: 1,000,000,000 nodes of 1 dimensions"):
        blpjax.Integration("monte_carlo", 10**5).build_many(1, np.arange(10**4))


def test_rows_of_a_panel() -> None:
    with pytest.raises(SizeError, match=r"build_id_data: 100,000,000,000 rows \(T = 10,000,000,000 times J = 10\)"):
        blpjax.build_id_data(10**10, 10, 5)


def test_ownership_of_a_large_market() -> None:
    with pytest.raises(SizeError, match="build_ownership: matrices of 40,000 rows and 40,000 columns"):
        blpjax.build_ownership({"market_ids": np.zeros(40_000, int), "firm_ids": np.arange(40_000)})


@pytest.mark.parametrize("given", ["agents", "integration"])
def test_agents_times_products(given: str) -> None:
    J, size = 2_000, 100_000
    agents = {"market_ids": np.full(size, "A"), "weights": np.full(size, 1 / size), "nodes": np.zeros(size)}
    chosen: Any = {"agent_data": agents} if given == "agents" else {"integration": blpjax.Integration("halton", size)}
    with pytest.raises(SizeError, match="Market 'A', with 2,000 products times 100,000 agents, would need at least 5"):
        blpjax.Problem((blpjax.Formulation("1 + prices"), blpjax.Formulation("1")), large_market(J), **chosen)


def test_starts() -> None:
    with pytest.raises(SizeError, match="starts: 1,000,000,000 starts would need .* Use fewer starts"):
        build(blpjax).solve(SIGMA, PI, starts=10**9)


def test_draws() -> None:
    results = solved("demand alone")
    with pytest.raises(SizeError, match="bootstrap: 1,000,000,000 draws of .* Ask for fewer draws"):
        results.bootstrap(10**9)
    with pytest.raises(SizeError, match="The table of 1,000,000,000 draws"):
        results.reestimate(draws=10**9)
    with pytest.raises(SizeError, match="A batch of 1,000,000,000 draws .* Use a smaller batch_size"):
        results.reestimate(draws=4, batch_size=10**9)
    with pytest.raises(SizeError, match="Averages over 1,000,000,000 draws"):
        results.compute_optimal_instruments("normal", draws=10**9)


def test_studies(tmp_path: Path) -> None:
    for sizes, count in ((Sizes(None, 100), 10**9), (Sizes(10**9, 100), 4), (Sizes(10**6, 100, 10**4), 4)):
        study = CountingStudy()
        with pytest.raises(SizeError):
            run_study(study, count, sizes, tmp_path / "study")
        assert not study.ran and not (tmp_path / "study").exists()


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "study.toml"
    text = """
[simulation]
X1 = "1 + prices + x"
X3 = "1 + z"
[products]
T = {T}
J = 4
F = 2
[parameters]
beta = [1, -2, 2]
gamma = [1, 0.5]
[run]
replications = {replications}
"""
    file.write_text(text.format(T=10**9, replications=4))
    assert main([str(file)]) == 2
    assert "the simulation cannot be built: build_id_data: 4,000,000,000 rows" in capsys.readouterr().err
    file.write_text(text.format(T=3, replications=4))
    assert main([str(file), "--devices", "1000"]) == 2
    assert "--devices 1000: this process has" in capsys.readouterr().err
    for more, said in (
        (["--replications", "1000000000"], "The table of 1,000,000,000 replications would need"),
        (["--batch-size", "1000000000"], "A batch of 1,000,000,000 replications would need"),
    ):
        assert main([str(file), *more]) == 1
        assert said in capsys.readouterr().err


def test_programs_are_not_run_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What XLA says of a program's memory counts, when it was compiled and before it runs."""
    problem = build(blpjax)
    monkeypatch.setattr(memory, "_LITTLE", 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 10)
    with pytest.raises(SizeError, match="The program .*, for arrays of up to [0-9,]+ numbers, would need"):
        problem.solve(SIGMA, PI, method="1s", optimization=blpjax.Optimization("return"), check_optimality="gradient")
