"""`kill -9` at random moments of a run, each resumed: the same map, and no finished shard computed twice.

    python -m tests.benchmarks.kills [--count 30] [--seed 1]

A run is timed once, planning and the rest apart. Every third kill comes at a moment of the planning, the
others at one of what follows; by what lies on disk it is told which part of the run it hit. Prints a row a
kill; ends with 1 when anything differs.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rtsmap.runs.mapping import predict
from tests.benchmarks.worker import ROOT
from tests.runs.blob_scenes import blob_labels, engine, write_dem, write_scene
from tests.runs.killed_run import OPTIONS
from tests.runs.map_content import content
from tests.runs.test_mapping import CountingDetector

# imports are done before the clock starts: a kill before that kills nothing of ours
PROGRAM = """
import sys
from pathlib import Path
from rtsmap.runs.mapping import predict
from tests.runs.blob_scenes import engine
from tests.runs.killed_run import OPTIONS
scene, dem, out = sys.argv[1:]
print("go", flush=True)
predict(scene, dem, out=Path(out), model=engine(), options=OPTIONS)
"""


def started(scene: Path, dem: Path, out: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(scene), str(dem), str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout
    child.stdout.readline()
    return child


def until_planned(child: subprocess.Popen[bytes], run_dir: Path) -> float:
    """When the plan is there."""
    while child.poll() is None and not (run_dir / "plan.json").exists():
        time.sleep(0.002)
    return time.monotonic()


def stage(run_dir: Path, shards: int) -> str:
    """What the run was about, by what it had left on disk."""
    if not (run_dir / "plan.json").exists():
        return "planning"
    if len(list(run_dir.glob("shard-*.arrow"))) < shards:
        return "mapping"
    return "merging" if not list(run_dir.parent.glob(".*.part")) else "export"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice, wrong = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        scene = write_scene(place / "scene.tif", blob_labels((260, 300), 3, 30))
        dem = write_dem(place / "dem.tif", scene.geobox, share=0.7)
        begin = time.monotonic()
        child = started(scene.path, dem, place / "whole.gpkg")
        begin = time.monotonic()
        planning_s = until_planned(child, place / "whole.rtsrun") - begin
        child.wait()
        length_s = time.monotonic() - begin
        wanted = content(place / "whole.gpkg")
        for number in range(options.count):
            out = place / f"m{number}.gpkg"
            child = started(scene.path, dem, out)
            if number % 3:
                until_planned(child, out.with_suffix(".rtsrun"))
                moment_s = dice.uniform(0, length_s - planning_s)
            else:
                moment_s = dice.uniform(0, planning_s)
            time.sleep(moment_s)
            ended = child.poll() is not None
            child.kill()
            child.wait()
            run_dir = out.with_suffix(".rtsrun")
            about = "ended" if ended else stage(run_dir, 9)
            finished = {path.name: path.stat().st_mtime_ns for path in run_dir.glob("shard-*.arrow")}
            detector = CountingDetector()
            report = predict(
                scene.path,
                dem,
                out=out,
                model=engine(detector=detector),
                options=OPTIONS,
                overwrite=out.exists(),
            )
            same = content(out) == wanted
            again = any((run_dir / name).stat().st_mtime_ns != at for name, at in finished.items())
            once = len(set(detector.seen)) == len(detector.seen) and report.shards_reused == len(finished)
            left = [path.name for path in place.rglob("*.part")]
            good = same and once and not again and not left
            wrong += not good
            print(
                f"{number:3} killed at {moment_s:5.2f} s ({about:8}) with {len(finished)} of 9 shards: "
                + ("as uninterrupted" if good else f"WRONG {same=} {once=} {again=} {left=}"),
                flush=True,
            )
    print(f"{options.count - wrong} of {options.count} right; an undisturbed run takes {length_s:.2f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
