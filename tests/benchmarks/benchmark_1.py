"""A model bundle on benchmark-1: scenes simulated, mapped end to end, footprints matched with the truth.

    python -m tests.benchmarks.benchmark_1 [--model rts-starter] [--seeds 1001 ... 1005] [--folder DIR]

Prints precision, recall and F1 at IoU 0.3 and 0.5 for each seed and for all together, at the card's own
score threshold. With `--sweep` also for other thresholds: to choose one, on seeds that are not 1001-1005.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

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
TEST_SEEDS = (1001, 1002, 1003, 1004, 1005)


def mapped_and_true(seed, folder, *, preset, model, modalities, lowest_score):
    """Scores and polygons of the footprints, and the true polygons, on the run's grid."""
    scene_folder = Path(folder) / f"{preset}-{seed}"
    if not (scene_folder / "truth.gpkg").exists():
        write_scene(preset, seed, scene_folder)
    scene, dem = scene_folder / "scene.tif", scene_folder / "dem.tif"
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
    truth = read_polygons(scene_folder / "truth.gpkg").to_crs(probe(scene).crs)
    return list(found["score"]), list(found.geometry), list(truth.geometries)


def summed(all_matches):
    """Matches of several scenes as those of one."""
    first = all_matches[0]
    pairs = tuple(pair for matches in all_matches for pair in matches.pairs)
    n_predicted = sum(matches.n_predicted for matches in all_matches)
    return Matches(first.iou_threshold, pairs, n_predicted, sum(matches.n_truth for matches in all_matches))


def at_threshold(scene, threshold):
    """Matches at each IoU with footprints of at least this score."""
    scores, polygons, truth = scene
    kept = [i for i, score in enumerate(scores) if score >= threshold]
    return evaluate([polygons[i] for i in kept], truth, [scores[i] for i in kept], IOUS)


def add_row(table, name, matches):
    """One scene's figures."""
    cells = [f"{m.precision:.3f}  {m.recall:.3f}  {m.f1:.3f}" for m in matches]
    low = matches[0]
    table.add_row(name, str(low.n_truth), str(low.n_predicted), *cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="rts-starter")
    parser.add_argument("--preset", default="benchmark-1")
    parser.add_argument("--seeds", type=int, nargs="+", default=TEST_SEEDS)
    parser.add_argument("--modalities", choices=("both", "optical"), default="both")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--sweep", action="store_true")
    arguments = parser.parse_args()
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
            )
            for seed in arguments.seeds
        ]
    title = f"{arguments.model} on {arguments.preset} ({arguments.modalities}), score >= {threshold:.2f}"
    heads = [f"IoU {iou}: precision, recall, F1" for iou in IOUS]
    table = Table("seed", "slumps", "footprints", *heads, title=title)
    each = [at_threshold(scene, threshold) for scene in scenes]
    for seed, matches in zip(arguments.seeds, each, strict=True):
        add_row(table, str(seed), matches)
    add_row(table, "all", [summed(column) for column in zip(*each, strict=True)])
    if arguments.sweep:
        for step in range(2, 20):
            columns = zip(*[at_threshold(scene, step / 20) for scene in scenes], strict=True)
            add_row(table, f"all, >= {step / 20:.2f}", [summed(column) for column in columns])
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
