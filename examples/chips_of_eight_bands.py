"""Chips of eight bands (.npz), as slump challenges give them out: results, chips to train from, scores.

    python examples/chips_of_eight_bands.py FOLDER

The chips are simulated. Such chips have no place on Earth, so there is no map of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.chips import ChipReader
from rtsmap.rasters.sources import probe, run_grid
from rtsmap.rasters.tiling import Window
from rtsmap.runs.chip_packs import PackOptions, pack
from rtsmap.runs.chip_scores import LabelledChips, read_results, score_chips
from rtsmap.runs.chipping import cut_scene
from rtsmap.runs.npz_chips import predict_chips
from rtsmap.runs.npz_tiles import cut_chips
from rtsmap.simulate.scenes import write_scene


def main(folder: Path, size_px: int = 256) -> None:
    """Simulate a chip, find slumps on it, score them, and pack it."""
    labels = simulated_chip(folder, size_px)
    # the starter wants slope, which such chips lack: it is asked to go without terrain
    report = predict_chips(
        [folder / "npz"],
        out=folder / "results.json",
        min_score=0.0,
        image_ids=labels,
        without=["terrain"],
        overwrite=True,
    )
    print(f"{report.slumps} detections on {report.chips} chip: {report.out}")

    chips = LabelledChips.read(labels, folder / "npz")
    figures = score_chips(chips, read_results(report.out, chips), min_score=0.5, settings="challenge")
    print(f"AP50 {figures['AP50'].value:.2f}")

    cut = cut_chips([folder / "npz"], out=folder / "chips", labels=labels, resolution_m=4.0, overwrite=True)
    (packed,) = pack([cut.out], folder / "chips.pack", PackOptions(), overwrite=True)
    print(f"{packed.images} image with {packed.slumps} slumps in {packed.path.name}")


def simulated_chip(folder: Path, size_px: int) -> Path:
    """Write npz/1.npz and its COCO labels; near infrared and its indices are made up from the colours."""
    simulated = write_scene("demo", 7, folder / "scene", size_px=size_px, overwrite=True)
    grid = run_grid(probe(simulated.scene), 4.0).geobox
    reader = ChipReader(simulated.scene, simulated.dem, InputSpec(4.0, (OPTICAL_RGB, TERRAIN)), grid)
    layers = reader.read_block(Window(0, 0, *grid.shape))
    red, green, blue = layers["optical"].pixels
    height, _, shade = layers["terrain"].pixels
    nir = np.clip(2.2 * green - 0.6 * red, 1, 255)
    bands = [
        red,
        green,
        blue,
        (nir - red) / (nir + red + 1),
        height,
        shade,
        nir,
        (green - nir) / (green + nir),
    ]
    (folder / "npz").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "npz" / "1.npz", image=np.stack(bands, axis=-1).astype(np.float32))

    cut_scene(simulated.scene, out=folder / "whole", labels=simulated.truth, overwrite=True)
    document = json.loads((folder / "whole" / "annotations.json").read_text(encoding="utf-8"))
    first = document["images"][0] | {"file_name": "1.png"}
    own = [one for one in document["annotations"] if one["image_id"] == first["id"]]
    labels = folder / "labels.json"
    labels.write_text(json.dumps({**document, "images": [first], "annotations": own}), encoding="utf-8")
    return labels


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "eight_bands"))
