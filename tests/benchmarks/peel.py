"""A real site, twelve experts: Sentinel-2 and Landsat as one map by each rule, without an elevation model.

    python -m tests.benchmarks.peel [--min-score 0.3] [--model rts-starter] [--keep FOLDER]

The commands are those a user would give, and are printed; the folder of the site is all that they are told.
Each map is compared with each expert's outlines by `rtsmap evaluate map`; the table holds means over the
experts, and beside them what the experts agree among each other, by the same measure.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from contextlib import closing
from itertools import permutations
from pathlib import Path
from statistics import mean

from rtsmap.instances.evaluate import match_polygons
from rtsmap.instances.overlaps import RULES
from rtsmap.vectors.geopackage import read_map
from rtsmap.vectors.labels import read_polygons
from tests.benchmarks.worker import Worker
from tests.shared_data import SHARED_DATA

SITE = SHARED_DATA / "rts_sites" / "Peel"
BANDS = "red=3,green=2,blue=1"
MEASURES = ("precision_10", "recall_10", "precision_30", "recall_30", "f1_30", "recall_50", "pixel_iou")


def rtsmap(*arguments: str | Path) -> None:
    """One command, printed; what it says goes to stderr as usual."""
    words = [str(word) for word in arguments]
    print("$ rtsmap", shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "rtsmap", *words], check=True, stdout=subprocess.DEVNULL)


def judged(worker: Worker, a_map: Path, labels: Path, folder: Path) -> dict[str, float]:
    """What `rtsmap evaluate map` says of a map beside one expert's outlines."""
    out = folder / "figures.json"
    command = ["evaluate", "map", str(a_map), str(labels), "--out", str(out), "--overwrite"]
    told = worker.run(command, folder)
    assert told.outcome == "done", told
    figures = {row["figure"]: row["value"] for row in json.loads(out.read_text())["figures"]}
    return {name: float(figures[name]) for name in MEASURES}


def experts_agree(labels: list[Path]) -> dict[float, float]:
    """Mean F1 of one expert's outlines beside another's, by IoU."""
    outlines = [read_polygons(path).geometries for path in labels]
    return {
        iou: mean(match_polygons(a, b, iou).f1 for a, b in permutations(outlines, 2))
        for iou in (0.1, 0.3, 0.5)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--min-score", default="0.3")
    parser.add_argument("--model", default="rts-starter")
    parser.add_argument("--keep", type=Path, help="folder for the maps")
    options = parser.parse_args()
    labels = sorted((SITE / "labels").glob("*.shp"))
    with tempfile.TemporaryDirectory() as name, closing(Worker()) as worker:
        folder = options.keep or Path(name)
        folder.mkdir(exist_ok=True)
        run, maps = folder / "best.rtsrun", {rule: folder / f"{rule}.gpkg" for rule in RULES}
        score = ["--min-score", options.min_score]
        common = ["--bands", BANDS, "--model", options.model, *score, "--overlaps", "best", "--overwrite"]
        rtsmap("predict", SITE, *common, "-o", maps["best"])
        for rule in (rule for rule in RULES if rule != "best"):
            rtsmap("merge", run, "--overlaps", rule, "-o", maps[rule], "--overwrite")
        print("$ rtsmap evaluate map MAP.gpkg LABELS.shp --out figures.json   # each map, each expert")
        print(f"{'rule':8} {'stand':>6} {'give way':>8}  " + "  ".join(f"{m:>12}" for m in MEASURES))
        for rule, path in maps.items():
            rows = [judged(worker, path.resolve(), expert, Path(name)) for expert in labels]
            gone = int(read_map(path)["superseded_by"].notna().sum())
            means = "  ".join(f"{mean(row[m] for row in rows):12.3f}" for m in MEASURES)
            print(f"{rule:8} {len(read_map(path)) - gone:6} {gone:8}  {means}", flush=True)
    agreed = ", ".join(f"{f1:.3f} at IoU {iou}" for iou, f1 in experts_agree(labels).items())
    print(f"{len(labels)} experts among each other, mean F1: {agreed}")


if __name__ == "__main__":
    main()
