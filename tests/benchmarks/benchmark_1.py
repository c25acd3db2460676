"""A model bundle on benchmark-1: scenes simulated, mapped end to end, footprints matched with the truth.

    python -m tests.benchmarks.benchmark_1 [--model rts-starter] [--seeds 1001 ... 1005] [--folder DIR]
    python -m tests.benchmarks.benchmark_1 --preset benchmark-1-sparse [--seeds 1101 ... 1110]

Prints precision, recall and F1 at IoU 0.3 and 0.5 and false footprints per 100 km2 (those without a slump at
IoU 0.3) for each seed and for all together, at the card's own score threshold. With `--sweep` also for other
thresholds: to choose one, on seeds that are not those of the test. With `--beside-m 8` the elevation model
lies 8 m to the right of its place and 8 m below.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import rasterio
from affine import Affine
from rich.console import Console
from rich.table import Table

from rtsmap.instances.evaluate import Matches, evaluate
from rtsmap.models import load_bundle
from rtsmap.rasters.sources import probe
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.simulate.scenes import write_scene
from rtsmap.vectors.geopackage import read_map
from rtsmap.vectors.labels import read_polygons

IOUS = (0.3, 0.5)
TEST_SEEDS = {"benchmark-1": range(1001, 1006), "benchmark-1-sparse": range(1101, 1111)}


def beside(dem, by_m):
    """A copy of the elevation model that lies to the right and below; the model itself for 0."""
    if not by_m:
        return dem
    moved = dem.with_name(f"dem_beside_{by_m:g}_m.tif")
    shutil.copy(dem, moved)
    with rasterio.open(moved, "r+") as file:
        file.transform = Affine.translation(by_m, -by_m) * file.transform
    return moved


def mapped_and_true(seed, folder, *, preset, model, modalities, lowest_score, beside_m=0.0):
    """Scores and polygons of the footprints, and the true polygons, on the run's grid; the area in km2."""
    scene_folder = Path(folder) / f"{preset}-{seed}"
    if not (scene_folder / "truth.gpkg").exists():
        write_scene(preset, seed, scene_folder)
    scene, dem = scene_folder / "scene.tif", beside(scene_folder / "dem.tif", beside_m)
    out = scene_folder / f"{Path(model).name}-{modalities}.gpkg"
    predict(
        scene,
        dem if modalities == "both" else None,
        out=out,
        model=model,
        options=PredictOptions(min_score=lowest_score),
        overwrite=True,
        discard_run=True,
    )
    found = read_map(out)
    ground = probe(scene)
    truth = read_polygons(scene_folder / "truth.gpkg").to_crs(ground.crs)
    return list(found["score"]), list(found.geometry), list(truth.geometries), ground.geobox.extent.area / 1e6


def summed(all_matches):
    """Matches of several scenes as those of one."""
    first = all_matches[0]
    pairs = tuple(pair for matches in all_matches for pair in matches.pairs)
    n_predicted = sum(matches.n_predicted for matches in all_matches)
    return Matches(first.iou_threshold, pairs, n_predicted, sum(matches.n_truth for matches in all_matches))


def at_threshold(scene, threshold):
    """Matches at each IoU with footprints of at least this score."""
    scores, polygons, truth, _ = scene
    kept = [i for i, score in enumerate(scores) if score >= threshold]
    return evaluate([polygons[i] for i in kept], truth, [scores[i] for i in kept], IOUS)


def add_row(table, name, matches, area_km2):
    """One scene's figures."""
    cells = [f"{m.precision:.3f}  {m.recall:.3f}  {m.f1:.3f}" for m in matches]
    low = matches[0]
    false = f"{100 * low.false_positives / area_km2:.1f}"
    table.add_row(name, str(low.n_truth), str(low.n_predicted), *cells, false)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="rts-starter")
    parser.add_argument("--preset", choices=TEST_SEEDS, default="benchmark-1")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--modalities", choices=("both", "optical"), default="both")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--beside-m", type=float, default=0.0)
    arguments = parser.parse_args()
    seeds = arguments.seeds or TEST_SEEDS[arguments.preset]
    threshold = load_bundle(arguments.model).score_threshold
    lowest = 0.05 if arguments.sweep else threshold
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        scenes = [
            mapped_and_true(
                seed,
                folder,
                preset=arguments.preset,
                model=arguments.model,
                modalities=arguments.modalities,
                lowest_score=lowest,
                beside_m=arguments.beside_m,
            )
            for seed in seeds
        ]
    title = f"{arguments.model} on {arguments.preset} ({arguments.modalities}), score >= {threshold:.2f}"
    if arguments.beside_m:
        title += f", terrain beside by {arguments.beside_m:g} m"
    heads = [f"IoU {iou}: precision, recall, F1" for iou in IOUS]
    table = Table("seed", "slumps", "footprints", *heads, "false per 100 km2", title=title)
    each = [at_threshold(scene, threshold) for scene in scenes]
    areas = [area_km2 for *_, area_km2 in scenes]
    for seed, matches, area_km2 in zip(seeds, each, areas, strict=True):
        add_row(table, str(seed), matches, area_km2)
    add_row(table, "all", [summed(column) for column in zip(*each, strict=True)], sum(areas))
    if arguments.sweep:
        for step in range(2, 20):
            columns = zip(*[at_threshold(scene, step / 20) for scene in scenes], strict=True)
            add_row(table, f"all, >= {step / 20:.2f}", [summed(column) for column in columns], sum(areas))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
