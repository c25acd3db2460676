"""Map many scenes on SLURM with dask-jobqueue: jobs come and go as the queue allows, one network in each.

    pip install 'rtsmap[dask]' dask-jobqueue
    python examples/map_on_slurm.py scenes.csv /shared/map.gpkg --dem 'arcticdem/*_dem.tif' --jobs 16

Run it where jobs can be submitted, and where the inputs and the map's folder have the paths that they have
on the nodes. Stop it and run it again: what is finished stays. Partition, account and modules are
those of your cluster: add them below, or in ~/.config/dask/jobqueue.yaml.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dask_jobqueue import SLURMCluster

from rtsmap.runs.many import predict_scenes
from rtsmap.runs.on_dask import OnDask
from rtsmap.runs.scene_lists import read_scenes


def main(
    scenes: list[str], out: Path, *, dem: list[str] | None = None, jobs: int = 16, model: Any = None
) -> None:
    """Map scenes; `model` as for `rtsmap.predict`."""
    cluster = SLURMCluster(
        cores=1,  # threads of a worker: the network takes one chip batch at a time
        processes=1,
        job_cpu=4,
        memory="16GB",
        walltime="08:00:00",
        job_extra_directives=["--gres=gpu:1"],
        # a worker ends by itself before SLURM ends it, and is replaced
        worker_extra_args=["--lifetime", "450m", "--lifetime-stagger", "10m"],
    )
    with cluster:
        cluster.adapt(minimum_jobs=1, maximum_jobs=jobs)
        report = predict_scenes(
            OnDask(cluster.scheduler_address),
            read_scenes(scenes, dem),
            out=out,
            overlaps="best",
            model=model,
            overwrite=True,
        )
    print(f"{report.footprints} slumps from {len(report.scenes)} scenes: {report.out}")
    for name, problem in report.problems:
        print(f"{name} is not on the map: {problem}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scenes", nargs="+")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dem", action="append")
    parser.add_argument("--jobs", type=int, default=16)
    options = parser.parse_args()
    main(options.scenes, options.out, dem=options.dem, jobs=options.jobs)
