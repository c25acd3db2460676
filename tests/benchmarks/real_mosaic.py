"""Real slump chips composed into one scene on a polar stereographic grid, mapped, and mapped again shifted.

    python -m tests.benchmarks.real_mosaic [--model rts-starter] [--folder DIR]

The chips (validation chips, and training chips of the groups that trainings hold out) lie in rows on
EPSG:3413 at 4 m, with no data between them; where on Earth they belong is not known. Prints the scores
against the labels, the areas beside those of an equal-area projection, and how many footprints with a
score above the threshold + 0.1 change (no partner at IoU 0.7) when the tiles' origin moves by a third of
a chip.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image
from shapely.affinity import affine_transform
from shapely.geometry import MultiPolygon, Polygon

from rtsmap.instances.evaluate import evaluate, match_polygons
from rtsmap.mm.splits import is_held_out
from rtsmap.models import load_bundle
from rtsmap.rasters.writing import write_geotiff
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.vectors.geopackage import read_map
from rtsmap.vectors.labels import Polygons, read_polygons, write_polygons
from rtsmap.vectors.repair import make_polygons_valid
from tests.shared_data import SHARED_DATA

WIDTH_PX, GAP_PX, GSD_M = 2048, 12, 4.0
CORNER_M = (-2_000_000.0, 500_000.0)


def unseen_chips():
    """(pixels (3, H, W), polygons in chip pixels) of the chips that no training saw."""
    folder = SHARED_DATA / "rts_chips"
    groups = json.loads((folder / "overlap_groups.json").read_text())
    group_of = {name: f"group {number}" for number, names in enumerate(groups) for name in names}
    for split in ("val", "train"):
        document = json.loads((folder / f"coco_{split}.json").read_text())
        by_image = {}
        for annotation in document["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        for image in document["images"]:
            name = image["file_name"]
            if split == "train" and not is_held_out(group_of.get(name, name)):
                continue
            pixels = np.asarray(Image.open(folder / "images" / name).convert("RGB"))
            yield pixels.transpose(2, 0, 1), [_polygon(a) for a in by_image.get(image["id"], [])]


def _polygon(annotation):
    rings = [np.reshape(ring, (-1, 2)) for ring in annotation["segmentation"] if len(ring) >= 6]
    return make_polygons_valid(np.array([MultiPolygon([Polygon(ring) for ring in rings])]))[0]


def compose(chips, folder):
    """Lay chips in rows; write scene.tif and truth.gpkg. Returns how many slumps there are."""
    placed, row, col, tallest = [], GAP_PX, GAP_PX, 0
    for pixels, polygons in chips:
        _, height, width = pixels.shape
        if col + width + GAP_PX > WIDTH_PX:
            row, col, tallest = row + tallest + GAP_PX, GAP_PX, 0
        placed.append((row, col, pixels, polygons))
        col, tallest = col + width + GAP_PX, max(tallest, height)
    canvas = np.zeros((3, row + tallest + GAP_PX, WIDTH_PX), np.uint8)
    transform = Affine(GSD_M, 0, CORNER_M[0], 0, -GSD_M, CORNER_M[1])
    outlines = []
    for row, col, pixels, polygons in placed:
        _, height, width = pixels.shape
        # all-zero pixels would count as fill; black ground is data here
        canvas[:, row : row + height, col : col + width] = np.maximum(pixels, 1)
        to_grid = transform * Affine.translation(col, row)
        outlines += [affine_transform(polygon, to_grid.to_shapely()) for polygon in polygons]
    geobox = GeoBox(canvas.shape[1:], transform, "EPSG:3413")
    write_geotiff(folder / "scene.tif", canvas, geobox, nodata=0, band_names=("red", "green", "blue"))
    write_polygons(folder / "truth.gpkg", Polygons(tuple(outlines), geobox.crs, {}))
    return len(outlines)


def areas_beside_equal_area(found):
    """Greatest relative difference between area_m2 and the area in a polar equal-area projection."""
    lambert = found.to_crs("+proj=laea +lat_0=90 +lon_0=-45 +datum=WGS84 +units=m")
    return float((lambert.area / found["area_m2"] - 1).abs().max()) if len(found) else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="rts-starter")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    card = load_bundle(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        chips = list(unseen_chips())
        print(f"{len(chips)} chips, {compose(chips, folder)} slumps")
        truth = read_polygons(folder / "truth.gpkg").geometries
        maps = []
        for origin_px in (0, card.chip_px // 3):
            out = folder / f"origin-{origin_px}.gpkg"
            options = PredictOptions(origin_px=origin_px)
            report = predict(
                folder / "scene.tif",
                out=out,
                model=arguments.model,
                options=options,
                overwrite=True,
                discard_run=True,
            )
            print(report)
            maps.append(read_map(out))
        for found in maps:
            for matches in evaluate(list(found.geometry), truth, list(found["score"])):
                print(
                    f"IoU {matches.iou_threshold}: precision {matches.precision:.3f} "
                    f"recall {matches.recall:.3f} F1 {matches.f1:.3f} of {matches.n_predicted} footprints"
                )
            print(f"areas against an equal-area projection: {areas_beside_equal_area(found):.2e}")
        sure = [found[found["score"] > card.score_threshold + 0.1] for found in maps]
        for one, other in ((sure[0], maps[1]), (sure[1], maps[0])):
            kept = match_polygons(list(one.geometry), list(other.geometry), 0.7).true_positives
            print(f"{len(one)} sure footprints, {len(one) - kept} change under the shift")


if __name__ == "__main__":
    main()
