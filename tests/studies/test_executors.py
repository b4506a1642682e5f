"""Monte Carlo studies travel to the workers of executors, which may die."""

import os
import pickle
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from blpjax.studies.description import read_description
from blpjax.studies.monte_carlo import MonteCarlo
from tests.support.study_design import study

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def made() -> MonteCarlo:
    return study(True)


def test_studies_travel_without_what_can_be_computed_again(made: MonteCarlo) -> None:
    fingerprint = made.fingerprint
    made.true_values, made._shared  # noqa: B018
    pickled = pickle.dumps(made)
    assert len(pickled) < 2_500 * made.problem.N
    again = pickle.loads(pickled)
    assert "_shared" not in vars(again) and "_shared" in vars(made)
    assert again.fingerprint == fingerprint and again.columns == made.columns


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Port .* is already in use:UserWarning")
def test_dask_workers_that_are_killed_lose_nothing(made: MonteCarlo, tmp_path: Path) -> None:
    """Two workers, one of which is killed when some batches are finished and others are being run."""
    distributed = pytest.importorskip("distributed")
    killed: list[int] = []

    def kill(pid: int) -> None:
        while len(list(tmp_path.glob("batch-*"))) < 2:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        killed.append(len(list(tmp_path.glob("batch-*"))))

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        killer = threading.Thread(target=kill, args=(next(iter(pids.values())),))
        killer.start()
        results = made.run(16, batch_size=2, path=tmp_path, executor=client.get_executor())
        killer.join()
        assert killed[0] < 8, "the study was over before the worker was killed"
    local = made.run(16, batch_size=2)
    pd.testing.assert_frame_equal(results.table, local.table)
    assert list(results.batches["first"]) == list(local.batches["first"])
    assert len(list(tmp_path.glob("batch-*"))) == 8 and results.peak_memory > 1e8


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_the_example_for_clusters_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With processes of this machine instead of SLURM's jobs."""
    distributed = pytest.importorskip("distributed")

    class LocalJobs(distributed.LocalCluster):
        def __init__(self, cores: int, job_cpu: int, processes: int, memory: str, walltime: str) -> None:
            super().__init__(n_workers=processes, threads_per_worker=cores, dashboard_address=":0")

        def adapt(self, minimum_jobs: int, maximum_jobs: int) -> None:
            super().adapt(minimum=minimum_jobs, maximum=1)

    jobs = ModuleType("dask_jobqueue")
    jobs.SLURMCluster = LocalJobs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_jobqueue", jobs)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "study.toml"
    text = (EXAMPLES / "study.toml").read_text()
    file.write_text(text.replace("replications = 200", "replications = 3").replace("batch_size = 50", "batch_size = 2"))
    results = runpy.run_path(str(EXAMPLES / "slurm_study.py"))["main"](file)
    expected = read_description(file).build().run(3, batch_size=2)
    pd.testing.assert_frame_equal(results.table, expected.table)
    assert results.table["ok"].all() and (tmp_path / "study" / "study.json").exists()
