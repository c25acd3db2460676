"""Cut a scene with its elevation model into aligned chips with labels, and look at the first one.

python examples/cut_chips.py SCENE.tif DEM.tif LABELS.gpkg FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rtsmap.rasters.reading import read_native
from rtsmap.rasters.sources import probe
from rtsmap.runs.chipping import ChipOptions, cut_scene


def main(scene: Path, dem: Path, labels: Path, folder: Path) -> None:
    """Write the chips and print what there is."""
    report = cut_scene(
        scene, dem, out=folder, labels=labels, options=ChipOptions(chip_px=128, overlap_px=32), overwrite=True
    )
    print(f"{report.chips} chips with {report.annotations} slumps in {report.out}")
    document = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    first = folder / document["images"][0]["file_name"]
    info = probe(first)
    pixels = read_native(info, range(1, info.count + 1)).pixels
    print(f"{first.name}: {', '.join(info.band_names)}, shape {pixels.shape}, CRS {info.crs}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
