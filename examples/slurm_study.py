"""Run the study that a file describes on a SLURM cluster: Dask submits jobs, and batches go to them.

It needs `pip install 'blpjax[cluster,studies]' dask-jobqueue`, and is started as a small job of its own, see
`slurm_study.sh`. Finished batches are kept in files, and a second start goes on where the first one stopped.
"""

import sys
from pathlib import Path

import dask_jobqueue
from dask.distributed import Client

from blpjax import MonteCarloResults
from blpjax.studies.description import read_description


def main(file: Path) -> MonteCarloResults:
    """Run the study with twenty jobs of eight cores."""
    description = read_description(file)
    study = description.build()
    cluster = dask_jobqueue.SLURMCluster(
        # queue="...", account="...",
        cores=1,  # a job runs one batch at a time,
        job_cpu=8,  # with all of its cores
        processes=1,
        memory="16GB",
        walltime="04:00:00",
    )
    with cluster, Client(cluster) as client:
        cluster.adapt(minimum_jobs=1, maximum_jobs=20)  # jobs whose time is up are replaced
        known = description.run
        return study.run(
            known["replications"],
            batch_size=known.get("batch_size"),
            path=description.path,
            executor=client.get_executor(),
        )


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
