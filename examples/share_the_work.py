"""Map a scene by any number of workers, and several scenes as one map, from Python.

    python examples/share_the_work.py SCENE.tif DEM.tif FOLDER

What is a function here is a command elsewhere: rtsmap plan, work, runs show and merge.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rtsmap.runs.in_process import InProcess
from rtsmap.runs.many import predict_scenes
from rtsmap.runs.mapping import PredictOptions
from rtsmap.runs.run_folders import standing
from rtsmap.runs.scene_lists import read_scenes
from rtsmap.runs.spreading import merge_run, plan_run
from rtsmap.runs.workers import Job


def main(scene: Path, dem: Path, folder: Path) -> None:
    """Plan, work and merge in turn, then map the scene together with itself."""
    run = folder / "run"
    options = PredictOptions(min_score=0.4)
    plan_run(scene, dem, run, options=options)

    # this may run on as many machines as see the folder; Processes(4) or OnDask(address) for InProcess()
    done = InProcess().run(Job((run,)), lambda directory, *told: print(directory.name, *told))
    print(f"{done.computed} shards computed")
    print(*standing(run).lines(), sep="\n")

    report = merge_run(run, folder / "shared.gpkg", probability=folder / "probability.tif")
    strict = merge_run(run, folder / "strict.gpkg", changes={"min_score": 0.9})
    print(f"{report.footprints} slumps, {strict.footprints} of them surer than 0.9")

    items = read_scenes([scene], [str(dem)])
    many = predict_scenes(InProcess(), items, out=folder / "many.gpkg", overlaps="best", options=options)
    print(f"{many.footprints} slumps from {len(many.scenes)} scene")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
