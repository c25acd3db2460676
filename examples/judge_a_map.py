"""Judge a map by true outlines: scores with intervals, what its scores are worth, and what went into it.

python examples/judge_a_map.py MAP.gpkg TRUTH.gpkg FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from rtsmap.models import list_bundles, load_bundle, verify
from rtsmap.rasters.survey import survey
from rtsmap.rasters.tiling import TileOptions
from rtsmap.runs.calibrating import calibrate_maps
from rtsmap.runs.evaluating import evaluate_maps
from rtsmap.runs.figures import write_figures
from rtsmap.vectors.geopackage import read_run_record


def main(gpkg: Path, truth: Path, folder: Path) -> None:
    """Print the scores of a map, its calibration, and how its inputs look to the model."""
    evaluation = evaluate_maps([(gpkg, truth)], block_km=0.5)
    for name in ("precision_30", "recall_30", "f1_30"):
        print(name, evaluation.figures[name])
    write_figures(folder / "scores.json", evaluation.figures, {"map": gpkg.name}, overwrite=True)

    calibration = calibrate_maps([gpkg], [truth], precision=0.8, block_km=0.5, resamples=100)
    print(f"temperature {calibration.temperature:.2f} from {len(calibration.outcomes.scores)} footprints")

    print("models:", ", ".join(list_bundles()))
    card = load_bundle()
    verify(card)
    paths = read_run_record(gpkg)["paths"]
    found = survey(paths["scene"], paths["dem"], card.spec, TileOptions(card.chip_px, card.overlap_px))
    print(found.scene, *found.problems, sep="\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
