"""Map the slumps of a scene from Python, and see how good the map is.

    python examples/map_a_scene.py [FOLDER]

The scene is simulated, with its elevation model and the true outlines.
"""

from __future__ import annotations

import sys
from pathlib import Path

import rtsmap
from rtsmap.instances.evaluate import evaluate
from rtsmap.rasters.sources import probe
from rtsmap.runs.preview import draw_preview
from rtsmap.simulate.scenes import write_scene
from rtsmap.vectors.labels import read_polygons


def main(folder: Path, size_px: int = 384) -> None:
    """Simulate, map, compare."""
    simulated = write_scene("demo", 7, folder, size_px=size_px, overwrite=True)
    slumps = rtsmap.predict(
        simulated.scene, dem=simulated.dem, out=folder / "slumps.gpkg", min_score=0.4, overwrite=True
    )
    print(slumps[["id", "score", "area_m2", "relief_m"]].head())

    truth = read_polygons(simulated.truth).to_crs(probe(simulated.scene).crs)
    (matches,) = evaluate(list(slumps.geometry), truth.geometries, list(slumps["score"]), (0.3,))
    print(f"{len(slumps)} mapped, {matches.true_positives} of {matches.n_truth} true slumps found")
    picture = folder / "preview.png"
    draw_preview(folder / "slumps.gpkg", simulated.scene, simulated.dem, picture, truth=simulated.truth)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
