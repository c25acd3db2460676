"""The fusions beside one another, equal budget and tuning, folds by region, seeds: one resumable command.

    python -m tests.benchmarks.fusions mars RUN [--processes 2] [--seeds 0 1 2] [--budget 4]
    python -m tests.benchmarks.fusions simulated RUN --packs PACKS
    python -m tests.benchmarks.fusions mars RUN --report

`mars` learns from the two modalities of real pixels in mars_landslides. Its 306 patches are tiles of two
mosaics, named by row and column, and slides go on from one to the next. So the five folds are strips of the
mosaics, patches that touch those of the test are left out of training, and the bootstrap draws blocks of
4 x 4 patches. `simulated` learns from packs of simulated scenes (PACKS/training/*.pack); those from seed 86
on are the test, and are drawn whole.

Budgets count work: a step passes through one or two backbones, and heads at work cost as much as two more,
as measured (0.065 s a backbone and 0.14 s the heads on one core). For each fold and seed both backbones are
trained alone, then every fusion starts from both. The end-to-end training and what has one backbone (RGB
only, DEM only, data level) train for as many steps as the same work gives them; RGB and DEM once more for
as many steps as a fusion takes, which is less work. The modality that does better
alone leads: the DEM on Mars, imagery on simulated tundra. Every network is also looked
at with the DEM, and with the RGB, shuffled between test chips. A training that has its result, or of which
the repository keeps the figures (`--keep` puts them there), is not done again; one that was killed goes on
from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, Band, InputSpec, Modality
from rtsmap.rasters.tiling import Window
from tests.benchmarks.fusion_figures import (
    Looked,
    Record,
    kept_path,
    mean_of_known,
    mean_sd,
    paired_difference,
    record_of,
)
from tests.shared_data import SHARED_DATA

FOLDS = 5
PIXEL_M = 4.0
ELEVATION_RANGE_M = 250.0
"""The Mars DEMs are scaled to 0..1; with this range a pixel of 4 m has slopes as slumps have them."""
TEST_PX = 256
FIRST_TEST_SEED = 86
BLOCK_PATCHES = 4
"""Patches of one block are drawn together: neighbours share slides."""
TINY_PX = 30
STEPS = {"mars": (120, 320), "simulated": (160, 440)}
"""Steps of a unimodal stage, and of a fusion after both."""
HEADS_COST = 2
"""What heads that learn cost in a step, in backbones."""
LEADS = {"mars": "terrain", "simulated": "optical"}
DENSE_ONLY_SHARE = 0.6
"""Of the unimodal stage: there the per-pixel loss teaches more in less time than heads do."""
NETWORK: dict[str, Any] = {
    "stem": "convolutions",
    "embed_dim": 16,
    "stage_blocks": [1, 1, 2, 1],
    "window": 16,
    "table_px": 128,
    "fpn_channels": 48,
    "mask_channels": 48,
    "mask_convs": 2,
    "box_fc_channels": 128,
    "rois_per_chip": 48,
    "rpn_proposals": 100,
}
RESIDUAL = {"fusion": "residual_cross_attention"}
INTERLEAVED = {**RESIDUAL, "fusion.interleaved": True, "fusion.residual_to": "sum"}
FUSED: dict[str, dict[str, Any]] = {
    "residual cross-attention": RESIDUAL,
    "residual, mutual": {**RESIDUAL, "fusion.mutual": True},
    "residual to the sum": {**RESIDUAL, "fusion.residual_to": "sum"},
    "residual, pooled keys": {**RESIDUAL, "fusion.key_pool": 2},
    "residual, coarse levels": {**RESIDUAL, "fusion.levels": [16, 32]},
    "residual, interleaved": {**RESIDUAL, "fusion.interleaved": True},
    "residual, interleaved, to the sum": INTERLEAVED,
    "residual, interleaved, MLP, to the sum": {**INTERLEAVED, "fusion.mlp_ratio": 2.0},
    "residual, with MLP": {**RESIDUAL, "fusion.mlp_ratio": 2.0},
    "residual, MLP, to the sum": {**RESIDUAL, "fusion.mlp_ratio": 2.0, "fusion.residual_to": "sum"},
    "cross-attention": {"fusion": "cross_attention"},
    "self-attention": {"fusion": "self_attention"},
    "convolution": {"fusion": "convolution"},
    "squeeze-excitation": {"fusion": "squeeze_excitation"},
    "CBAM": {"fusion": "cbam"},
}
SAME_STEPS = ("RGB only, same steps", "DEM only, same steps")
"""One modality for as many steps as a fusion takes, which is less work: what the other one adds."""
ALONE = {
    "RGB only": "optical",
    "DEM only": "terrain",
    **dict(zip(SAME_STEPS, ("optical", "terrain"), strict=True)),
}
PROPOSED = "residual cross-attention"
END_TO_END = {"end to end": RESIDUAL, "end to end, interleaved, to the sum": INTERLEAVED}
MARS_TERRAIN = Modality(
    "terrain",
    (Band("relative_elevation", 0.0, 25.0, -250.0, 250.0), *TERRAIN.bands[1:]),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One training, of `budget` times the steps. `after` are the unimodal stages that it starts from."""

    data: str
    fold: int
    seed: int
    method: str
    budget: int = 1

    @property
    def name(self) -> str:
        data = self.data if self.budget == 1 else f"{self.data}_x{self.budget}"
        return f"{data}/fold{self.fold}_seed{self.seed}/{self.method.replace(' ', '_')}"

    @property
    def after(self) -> tuple[str, ...]:
        if self.method in ALONE:
            return (f"stage {ALONE[self.method]}",)
        return ("stage optical", "stage terrain") if self.method in FUSED else ()


def jobs_of(data: str, seeds: Sequence[int], methods: Sequence[str], budget: int = 1) -> list[Job]:
    """All trainings, those that others start from first."""
    folds = range(FOLDS) if data == "mars" else [0]
    return [Job(data, fold, seed, method, budget) for seed, fold, method in product(seeds, folds, methods)]


METHODS = ("stage optical", "stage terrain", *FUSED, "data level", *ALONE, *END_TO_END)


# Data


def pack_mars(path: Path) -> None:
    """The patches as a pack: elevation stretched to metres; the group is the block that a patch lies in."""
    from rtsmap.mm.packs import Terrain, TrainingImage, write_pack
    from rtsmap.rasters.terrain import gradients

    def images() -> Iterator[TrainingImage]:
        for mask in sorted(SHARED_DATA.glob("mars_landslides/*/mask/*.tif")):
            folder = mask.parents[1]
            found = [min((folder / part).glob(f"{mask.stem}.*")) for part in ("rgb", "dem", "mask")]
            rgb, dem, slides = (_pixels(file) for file in found)
            elevation = dem[0].astype(np.float32) * ELEVATION_RANGE_M
            valid = np.ones(elevation.shape, np.bool_)
            right, up = gradients(elevation, valid, (PIXEL_M, PIXEL_M))
            labels, count = ndimage.label(slides[0] > 0, np.ones((3, 3)))
            sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, count + 1))
            for number, size in enumerate(sizes, start=1):
                if size < TINY_PX:
                    labels[labels == number] = -1
            terrain = Terrain(np.stack([right, up]).astype(np.float32), elevation - elevation.mean(), valid)
            row, col = _place(mask.stem)
            block = f"{row // BLOCK_PATCHES}_{col // BLOCK_PATCHES}"
            yield TrainingImage(mask.stem, block, rgb[:3], valid, labels.astype(np.int16), terrain)

    write_pack(path, images())


def _pixels(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def _place(name: str) -> tuple[int, int]:
    """Row and column of a patch in its mosaic."""
    row, col = name.split("_")
    return int(row), int(col)


def mars_folds(names: Sequence[str]) -> dict[str, int]:
    """The fold of each patch: strips across the mosaics, of about as many patches each."""
    places = np.array([_place(name) for name in names])
    grid = np.zeros(places.max(axis=0) + 1, np.bool_)
    grid[tuple(places.T)] = True
    mosaics = ndimage.label(grid, np.ones((3, 3)))[0][tuple(places.T)]
    folds: dict[str, int] = {}
    first = 0
    for mosaic in np.unique(mosaics):
        members = np.flatnonzero(mosaics == mosaic)
        strips = round(FOLDS * len(members) / len(names))
        along = members[np.lexsort(places[members].T)]
        for strip, part in enumerate(np.array_split(along, strips)):
            folds |= {names[i]: first + strip for i in part}
        first += strips
    assert first == FOLDS, "the mosaics do not share the folds evenly"
    return folds


def mars_split(names: Sequence[str], fold: int) -> tuple[set[str], set[str]]:
    """Patches to learn from, none of which touches one of the test, and those of the test."""
    folds = mars_folds(names)
    tested = {name for name in names if folds[name] == fold}
    seen = {_place(name) for name in tested}

    def touches(name: str) -> bool:
        row, col = _place(name)
        return any((row + down, col + right) in seen for down, right in product((-1, 0, 1), repeat=2))

    return {name for name in names if name not in tested and not touches(name)}, tested


def images_of(job: Job, run: Path, packs: Path | None) -> tuple[list[Any], list[tuple[Any, Window]]]:
    """Images to learn from, and places to be tested on."""
    from rtsmap.mm.packs import read_index

    if job.data == "mars":
        images = {image.name: image for image in read_index(run / "mars.pack")}
        learnt, tested = mars_split(list(images), job.fold)
        return (
            [image for name, image in images.items() if name in learnt],
            [(image, Window(0, 0, *image.shape)) for name, image in images.items() if name in tested],
        )
    assert packs is not None
    paths = sorted((packs / "training").glob("*.pack"))
    test = {path for path in paths if int(path.stem) >= FIRST_TEST_SEED}
    places = [
        (image, Window(row, col, row + TEST_PX, col + TEST_PX))
        for image in (image for path in paths if path in test for image in read_index(path))
        for row in range(0, image.shape[0] - TEST_PX + 1, TEST_PX)
        for col in range(row % (2 * TEST_PX), image.shape[1] - TEST_PX + 1, 2 * TEST_PX)
    ]
    return [image for path in paths if path not in test for image in read_index(path)], places


# One training, in a process of its own


def spec_of(job: Job) -> InputSpec:
    """What the network of a training looks at."""
    parts = {"optical": OPTICAL_RGB, "terrain": MARS_TERRAIN if job.data == "mars" else TERRAIN}
    alone = job.method.removeprefix("stage ") if job.method.startswith("stage ") else ALONE.get(job.method)
    names = [alone] if alone else sorted(parts, key=lambda name: name != LEADS[job.data])
    return InputSpec(PIXEL_M, tuple(parts[name] for name in names))


def network_of(job: Job) -> dict[str, Any]:
    """Its model.json."""
    return {**NETWORK, **{**FUSED, **END_TO_END}.get(job.method, {"fusion": "data_level"})}


def options_of(job: Job) -> Any:
    """Rates that are the same for all, and steps for the same work."""
    from rtsmap.mm.train import TrainOptions

    first, second = (job.budget * steps for steps in STEPS[job.data])
    dense_only = round(first * DENSE_ONLY_SHARE)
    stage = work(first, dense_only, backbones=1)
    budget = 2 * stage + work(second, 0, backbones=2)
    options = TrainOptions(
        steps=second,
        batch_size=4,
        lr=1e-3,
        warmup_steps=40,
        ema_decay=0.98,
        dense_loss=0.5,
        keep_every=60,
        seed=100 * job.seed + job.fold,
    )
    if job.method.startswith("stage "):
        # chips of its own, so that two steps see as many different ones as one training does
        number = 1 + METHODS.index(job.method)
        seed = options.seed + 10_000 * number
        return replace(options, steps=first, dense_only_steps=dense_only, seed=seed)
    if job.method in FUSED or job.method in SAME_STEPS:
        return options
    if job.method in ALONE:
        return replace(options, steps=round((budget - stage) / work(1, 0, backbones=1)))
    backbones = 2 if job.method in END_TO_END else 1
    left = budget - work(dense_only, dense_only, backbones=backbones)
    steps = dense_only + round(left / work(1, 0, backbones=backbones))
    return replace(options, steps=steps, dense_only_steps=dense_only)


def work(steps: int, dense_only: int, *, backbones: int) -> int:
    """What steps cost, `dense_only` of them without heads, in passes of a batch through a backbone."""
    return backbones * steps + HEADS_COST * (steps - dense_only)


def run_job(job: Job, run: Path, packs: Path | None) -> None:
    """Train, look at the test chips, and write result.json."""
    import torch

    from rtsmap.mm.backbones import take_branch
    from rtsmap.mm.register import build_network
    from rtsmap.mm.samples import SampleOptions, SampleSource
    from rtsmap.mm.stages import averaged_weights
    from rtsmap.mm.train import seed_everything, train

    torch.set_num_threads(1)
    folder, options, spec = run / job.name, options_of(job), spec_of(job)
    learnt, places = images_of(job, run, packs)
    seed_everything(options.seed)
    network = build_network(network_of(job), spec)
    for stage in job.after:
        # every fusion starts from the same backbones, pyramid and heads
        modality = stage.removeprefix("stage ")
        weights = averaged_weights(run / replace(job, method=stage).name)
        if modality in spec.names:
            take_branch(network, weights, modality, stage, heads=True)
    chips = SampleOptions(chip_px=128, slump_share=0.5, zoom_sd=0.15)
    if job.data == "mars" or "optical" not in spec.names:
        # where terrain is all there is, a chip without it teaches nothing
        chips = replace(chips, augment=replace(chips.augment, dem_missing_share=0.0))
    before = _peak_mib()
    source = SampleSource([(1.0, learnt)], spec, chips, options.seed)
    steps_done: list[int] = []
    parent = os.getppid()

    def tick(step: int) -> None:
        steps_done.append(step)
        if os.getppid() != parent:
            raise SystemExit("the benchmark was killed; this training goes on when it is started again")

    cpu = time.process_time()
    average = train(network, source, options, folder, tick=tick)
    result = {
        "steps": options.steps,
        "parameters": sum(p.numel() for p in network.parameters()),
        "cpu_s_a_step": (time.process_time() - cpu) / len(steps_done) if steps_done else math.nan,
        "peak_mib": _peak_mib() - before,
        **_looked(average, job, places, spec),
    }
    temporary = folder / "result.json.part"
    temporary.write_text(json.dumps(result))
    temporary.replace(folder / "result.json")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _looked(network: Any, job: Job, places: Sequence[tuple[Any, Window]], spec: InputSpec) -> dict[str, Any]:
    """Truth and detections as COCO has them; detections with each modality shuffled as well."""
    from rtsmap.mm.detector import MmDetector
    from rtsmap.mm.samples import SampleOptions, make_sample

    if job.method.startswith("stage "):
        return {}
    samples = [make_sample(image.read(window), spec, SampleOptions(), None) for image, window in places]
    detector = MmDetector(network, device="cpu")
    looks = {"as_is": results_of(detector, samples)}
    if len(spec.modalities) > 1:
        other = np.roll(np.arange(len(samples)), len(samples) // 2)
        for name in spec.names:
            mixed = [
                replace(sample, layers={**sample.layers, name: samples[other[i]].layers[name]})
                for i, sample in enumerate(samples)
            ]
            looks[f"{name}_shuffled"] = results_of(detector, mixed)
    return {"truth": truth_of(samples), "groups": [image.group for image, _ in places], "results": looks}


def results_of(detector: Any, samples: Sequence[Any]) -> list[dict[str, Any]]:
    """What a network finds on samples, as COCO results."""
    from rtsmap.instances.coco_scores import coco_results
    from rtsmap.mm.validate import chip_of

    found: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        detections = detector.detect([chip_of(sample)])[0]
        found += coco_results(number, detections, sample.ignored.shape)
    return found


def truth_of(samples: Sequence[Any]) -> dict[str, Any]:
    """Their slumps as a COCO data set; ignored ground is a crowd."""
    from pycocotools import mask as coco_mask

    images, annotations = [], []
    for number, sample in enumerate(samples):
        height, width = sample.ignored.shape
        images.append({"id": number, "height": height, "width": width})
        masks = [(mask, 0) for mask in sample.masks]
        if sample.ignored.any():
            masks.append((sample.ignored, 1))
        for mask, crowd in masks:
            runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [cols[0], rows[0], cols[-1] - cols[0] + 1, rows[-1] - rows[0] + 1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": crowd,
                    "segmentation": {"size": [height, width], "counts": runs["counts"].decode("ascii")},
                    "area": int(mask.sum()),
                    "bbox": [int(v) for v in box],
                }
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "slump"}]}


# All trainings


def run_all(jobs: Sequence[Job], run: Path, packs: Path | None, processes: int) -> None:
    """Train what has no result, so many at a time, each after those that it starts from.

    Of what is kept, no weights are: stages are trained again where something else starts from them.
    """
    left = [job for job in jobs if not _has_result(job, run) and not kept_path(job.name).exists()]
    wanted = {replace(job, method=stage) for job in left for stage in job.after}
    left = [job for job in jobs if job in left or (job in wanted and not _has_result(job, run))]
    print(f"{len(jobs)} trainings, {len(left)} to do", flush=True)
    running: dict[Future[int], Job] = {}
    with ThreadPoolExecutor(processes) as pool:
        while left or running:
            ready = [job for job in left if not _waits(job, run)]
            for job in ready[: processes - len(running)]:
                left.remove(job)
                running[pool.submit(_child, job, run, packs)] = job
            if not running:
                raise SystemExit(f"{len(left)} trainings wait for others that failed, first {left[0].name}")
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                print(f"{time.strftime('%H:%M:%S')} {job.name}: {future.result()}", flush=True)


def _has_result(job: Job, run: Path) -> bool:
    return (run / job.name / "result.json").exists()


def _waits(job: Job, run: Path) -> bool:
    return any(not _has_result(replace(job, method=stage), run) for stage in job.after)


def _child(job: Job, run: Path, packs: Path | None) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.fusions", job.data, str(run), "--one", job.method]
    command += ["--fold", str(job.fold), "--seeds", str(job.seed), "--budget", str(job.budget)]
    command += ["--packs", str(packs)] if packs else []
    (run / job.name).mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (run / job.name / "output.txt").open("w") as output:
        code = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode
    return "done" if not code else f"failed, exit {code}; see {run / job.name / 'output.txt'}"


# Figures


COLUMNS = (
    "method",
    "seeds",
    "AP50",
    "AP",
    "mean IoU",
    "M weights",
    "s/step",
    "s in all",
    "MiB",
    "AP50, DEM shuffled",
    "AP50, RGB shuffled",
    "difference, AP50",
    "difference, AP",
)


def report(
    data: str,
    run: Path,
    seeds: Sequence[int],
    budget: int = 1,
    proposed: str = PROPOSED,
    *,
    plain: bool = False,
) -> None:
    """One row for each method whose trainings are all there; `plain` as Markdown."""
    rows = list(_rows(data, run, seeds, budget, proposed))
    if plain:
        for row in (COLUMNS, ["---"] * len(COLUMNS), *rows):
            print("| " + " | ".join(row) + " |")
        return
    table = Table(
        *COLUMNS,
        title=f"{data}, budget x {budget}: mean (sd) over seeds, all folds together",
        caption=f"Differences: {proposed} minus this one, paired, 95 %",
    )
    for row in rows:
        table.add_row(*row)
    Console(width=210).print(table)


def _rows(data: str, run: Path, seeds: Sequence[int], budget: int, proposed: str) -> Iterator[list[str]]:
    done: dict[str, dict[int, list[Record]]] = {}
    for method, seed in product(METHODS[2:], seeds):
        records = [record_of(job.name, run) for job in jobs_of(data, [seed], [method], budget)]
        if all(records):
            done.setdefault(method, {})[seed] = records
    looks = {
        method: {seed: _together(records, "as_is") for seed, records in of_seeds.items()}
        for method, of_seeds in done.items()
    }
    ours = looks.get(proposed, {})
    for method, of_seeds in done.items():
        flat = [record for records in of_seeds.values() for record in records]
        mine = looks[method]
        shuffled = [
            mean_sd([_together(records, look).figures["AP50"] for records in of_seeds.values()])
            if look in flat[0].looks
            else ""
            for look in ("terrain_shuffled", "optical_shuffled")
        ]
        common = sorted(set(ours) & set(mine)) if method != proposed else []
        gaps = [
            "{:+.3f} ({:+.3f} to {:+.3f})".format(
                *paired_difference([ours[s] for s in common], [mine[s] for s in common], figure)
            )
            if common
            else ""
            for figure in ("AP50", "AP")
        ]
        yield [
            method,
            str(len(of_seeds)),
            *(mean_sd([look.figures[name] for look in mine.values()]) for name in ("AP50", "AP")),
            mean_sd([look.mean_iou for look in mine.values()]),
            f"{flat[0].parameters / 1e6:.2f}",
            mean_of_known([record.cpu_s_a_step for record in flat], ".2f"),
            mean_of_known([_cpu_s(job, run) for job in jobs_of(data, list(mine), [method], budget)], ".0f"),
            f"{np.mean([record.peak_mib for record in flat]):.0f}",
            *shuffled,
            *gaps,
        ]


def _together(records: Sequence[Record], look: str) -> Looked:
    """What the networks of all folds found."""
    return Looked.together([record.looks[look] for record in records])


def _cpu_s(job: Job, run: Path) -> float:
    """Seconds of CPU of a training and of those that it starts from; not a number where one is not kept."""
    jobs = [job, *(replace(job, method=stage) for stage in job.after)]
    records = [record_of(one.name, run) for one in jobs]
    return sum(record.steps * record.cpu_s_a_step if record else math.nan for record in records)


def keep(jobs: Iterable[Job], run: Path) -> None:
    """Keep what the table needs of trainings that are done."""
    for job in jobs:
        result = run / job.name / "result.json"
        if result.exists() and not kept_path(job.name).exists():
            Record.of(json.loads(result.read_text())).write(kept_path(job.name))


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=STEPS)
    parser.add_argument("run", type=Path)
    parser.add_argument("--packs", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--budget",
        type=int,
        default=1,
        help="times the steps; with 4 a training takes about nine minutes of a core",
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--proposed", choices=METHODS[2:], default=PROPOSED)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--keep", action="store_true", help="keep what is done in the repository")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--fold", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.data == "simulated" and not (arguments.packs or arguments.report):
        parser.error("simulated needs --packs")
    if arguments.one:
        run_job(
            Job(arguments.data, arguments.fold, arguments.seeds[0], arguments.one, arguments.budget),
            arguments.run,
            arguments.packs,
        )
        return
    if not arguments.report:
        if arguments.data == "mars" and not (arguments.run / "mars.pack").exists():
            pack_mars(arguments.run / "mars.pack")
        methods = [m for m in METHODS if m in arguments.methods or m.startswith("stage ")]
        run_all(
            jobs_of(arguments.data, arguments.seeds, methods, arguments.budget),
            arguments.run,
            arguments.packs,
            arguments.processes,
        )
    if arguments.keep:
        keep(jobs_of(arguments.data, arguments.seeds, METHODS, arguments.budget), arguments.run)
    report(
        arguments.data,
        arguments.run,
        arguments.seeds,
        arguments.budget,
        arguments.proposed,
        plain=arguments.markdown,
    )


if __name__ == "__main__":
    main()
