"""One stand-in detector, one scene, one tiling: rtsmap beside SAHI, mmdet's merge and torchgeo's reading.

    python -m tests.benchmarks.beside_others SIMULATED_FOLDER [--size-px 4096] [--torchgeo PYTHON]

The folder is what `rtsmap simulate` wrote; its scene is repeated up to the size. Each way goes from the scene
on disk to a GeoPackage, in a process of its own, in turns: seconds and CPU seconds after a first go at a
small scene, which imports all that is needed, and peak memory (of the kernel, imports included). The stand-in
takes for a slump what is bright, so nearly all of the time is that of reading, joining and writing. mmdet
merges boxes alone: its merge keeps a mask of the whole scene for each object. SAHI's merge is its default
one. torchgeo only reads: it has neither seams nor polygons; `--torchgeo` is the interpreter of an environment
that has it (and what this module imports), without which its row is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.bands import OPTICAL_RGB, InputSpec
from rtsmap.runs.engine import Engine
from rtsmap.runs.mapping import PredictOptions, predict
from tests.benchmarks.large_scenes import repeat_raster

CHIP_PX, OVERLAP_PX = 256, 64
LOW, LEAST_PX = 150, 40


def by_rtsmap(scene: Path, out: Path) -> int:
    """The command's function, without second looks: the others have none."""
    detector = partial(ThresholdDetector, low=LOW, high=255, min_px=LEAST_PX)
    spec = InputSpec(4.0, (OPTICAL_RGB,))
    engine = Engine(spec, CHIP_PX, OVERLAP_PX, {"detector": f"red from {LOW}"}, detector)
    return predict(scene, out=out, model=engine, options=PredictOptions(second_look=False)).footprints


def bright_parts(pixels: np.ndarray) -> Iterator[tuple[np.ndarray, float, tuple[slice, slice]]]:
    """The same stand-in on (H, W, 3) pixels: masks, scores and boxes."""
    red = pixels[..., 0]
    labels, _ = ndimage.label(red >= LOW)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[box] == label
        if np.count_nonzero(inside) >= LEAST_PX:
            yield labels == label, 0.5 + 0.5 * float(red[box][inside].mean() - LOW) / (255 - LOW), box


def by_sahi(scene: Path, out: Path) -> int:
    """SAHI's sliced prediction with its default way of merging, polygons by geopandas."""
    import geopandas
    from sahi.models.base import DetectionModel
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction
    from sahi.utils.cv import get_coco_segmentation_from_bool_mask
    from shapely import polygons, union_all

    class StandIn(DetectionModel):
        def load_model(self):
            self.model, self.category_mapping = "bright", {"0": "rts"}

        def perform_inference(self, image):
            self._original_predictions = list(bright_parts(image))

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list=((0, 0),), full_shape_list=None
        ):
            found = []
            for mask, score, _ in self._original_predictions:
                segmentation = get_coco_segmentation_from_bool_mask(mask)
                if segmentation:
                    found.append(
                        ObjectPrediction(
                            segmentation=segmentation,
                            category_id=0,
                            category_name="rts",
                            score=score,
                            shift_amount=list(shift_amount_list[0]),
                            full_shape=full_shape_list[0] if full_shape_list else None,
                        )
                    )
            self._object_prediction_list_per_image = [found]

    with rasterio.open(scene) as src:
        pixels, affine, crs = np.moveaxis(src.read([1, 2, 3]), 0, -1), src.transform, src.crs
    result = get_sliced_prediction(
        np.ascontiguousarray(pixels),
        StandIn(confidence_threshold=0.3),
        slice_height=CHIP_PX,
        slice_width=CHIP_PX,
        overlap_height_ratio=OVERLAP_PX / CHIP_PX,
        overlap_width_ratio=OVERLAP_PX / CHIP_PX,
        perform_standard_pred=False,
        verbose=0,
    )
    shapes = []
    for one in result.object_prediction_list:
        rings = [np.reshape(ring, (-1, 2)) for ring in one.mask.segmentation if len(ring) >= 6]
        shapes.append(union_all([polygons(np.column_stack(affine * ring.T)).buffer(0) for ring in rings]))
    geopandas.GeoDataFrame(geometry=shapes, crs=crs).to_file(out, driver="GPKG")
    return len(shapes)


def by_mmdet(scene: Path, out: Path) -> int:
    """mmdet's merge of large images: boxes of all slices, non-maximum suppression."""
    from rtsmap.mm.ops import load_mmdet

    load_mmdet()
    import geopandas
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.utils import large_image
    from mmengine.structures import InstanceData
    from sahi.slicing import slice_image
    from shapely import box
    from torchvision.ops import batched_nms

    def suppress(boxes, scores, idxs, nms_cfg):
        kept = batched_nms(boxes, scores, idxs, nms_cfg["iou_threshold"])
        return boxes[kept], kept

    # mmcv's own is compiled code that this distribution comes without
    large_image.batched_nms = suppress
    with rasterio.open(scene) as src:
        pixels, affine, crs = np.moveaxis(src.read([1, 2, 3]), 0, -1), src.transform, src.crs
    slices = slice_image(
        np.ascontiguousarray(pixels),
        slice_height=CHIP_PX,
        slice_width=CHIP_PX,
        overlap_height_ratio=OVERLAP_PX / CHIP_PX,
        overlap_width_ratio=OVERLAP_PX / CHIP_PX,
    )
    samples = []
    for image in slices.images:
        found = list(bright_parts(image))
        boxes = [[cols.start, rows.start, cols.stop, rows.stop] for _, _, (rows, cols) in found]
        instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            scores=torch.tensor([score for _, score, _ in found]),
            labels=torch.zeros(len(found), dtype=torch.long),
        )
        samples.append(DetDataSample(pred_instances=instances))
    rule = {"type": "nms", "iou_threshold": 0.25}
    merged = large_image.merge_results_by_nms(samples, slices.starting_pixels, pixels.shape[:2], rule)
    corners = [
        (affine @ (x0, y0), affine @ (x1, y1)) for x0, y0, x1, y1 in merged.pred_instances.bboxes.tolist()
    ]
    shapes = [box(min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1])) for a, b in corners]
    geopandas.GeoDataFrame(geometry=shapes, crs=crs).to_file(out, driver="GPKG")
    return len(shapes)


def read_by_torchgeo(scene: Path, _out: Path) -> int:
    """Its grid sampler over the scene: chips read, nothing found."""
    import torch
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    data = RasterDataset(paths=str(scene))
    sampler = GridGeoSampler(data, size=CHIP_PX, stride=CHIP_PX - OVERLAP_PX)
    loader = torch.utils.data.DataLoader(data, sampler=sampler, collate_fn=stack_samples)
    return sum(int(batch["image"].shape[0]) for batch in loader)


def read_by_rtsmap(scene: Path, out: Path) -> int:
    """The whole way with a detector that finds nothing: chips are read, an empty map is written."""
    nothing = partial(ThresholdDetector, low=254.9, high=255.1, min_px=10**9)
    engine = Engine(InputSpec(4.0, (OPTICAL_RGB,)), CHIP_PX, OVERLAP_PX, {"detector": "nothing"}, nothing)
    return predict(scene, out=out, model=engine, options=PredictOptions(second_look=False)).tiles


WAYS: dict[str, Callable[[Path, Path], int]] = {
    "rtsmap": by_rtsmap,
    "SAHI": by_sahi,
    "mmdet": by_mmdet,
    "rtsmap, reading": read_by_rtsmap,
    "torchgeo, reading": read_by_torchgeo,
}


def measure(way: str, scene: Path) -> None:
    """Run one way and print its figures."""
    with tempfile.TemporaryDirectory() as folder:
        WAYS[way](scene.with_name("small.tif"), Path(folder) / "small.gpkg")
        wall, cpu = time.perf_counter(), time.process_time()
        count = WAYS[way](scene, Path(folder) / "out.gpkg")
        figures = {"s": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "count": count}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**figures, "mib": peak}))


def main() -> None:
    """Take turns, then print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size-px", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=1200)
    parser.add_argument("--torchgeo", help="the interpreter of an environment with torchgeo")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one, arguments.folder)
        return
    with_torchgeo = arguments.torchgeo or (importlib.util.find_spec("torchgeo") and sys.executable)
    ways = [way for way in WAYS if "torchgeo" not in way or with_torchgeo]
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        size = (arguments.size_px, arguments.size_px)
        scene = repeat_raster(arguments.folder / "scene.tif", Path(folder) / "scene.tif", size)
        repeat_raster(arguments.folder / "scene.tif", Path(folder) / "small.tif", (400, 400))
        for _ in range(arguments.rounds):
            for way in ways:
                python = with_torchgeo if "torchgeo" in way else sys.executable
                rows[way] += _child(way, scene, arguments.limit_s, str(python))
    _print_table(rows, arguments.size_px**2 / 1e6, arguments.limit_s)


def _child(way: str, scene: Path, limit_s: float, python: str) -> list[dict[str, float]]:
    command = [python, "-m", "tests.benchmarks.beside_others", str(scene), "--one", way]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return []
    if done.returncode:
        print(f"{way}: exit {done.returncode}: {done.stderr[-500:]}")
        return []
    return [json.loads(done.stdout.splitlines()[-1])]


def _print_table(rows: dict[str, list[dict[str, float]]], mpx: float, limit_s: float) -> None:
    table = Table("way", "s", "CPU s", "Mpx/s", "MiB", "found", "times rtsmap's seconds")
    ours = {way: np.median([row["s"] for row in found]) for way, found in rows.items() if found}
    for way, found in rows.items():
        if not found:
            table.add_row(way, f"not within {limit_s:.0f}", "", "", "", "", "")
            continue
        s, cpu, mib, count = (np.median([row[key] for row in found]) for key in ("s", "cpu", "mib", "count"))
        beside = ours.get("rtsmap, reading" if "reading" in way else "rtsmap", np.nan)
        cells = (
            f"{s:.1f}",
            f"{cpu:.1f}",
            f"{mpx / s:.2f}",
            f"{mib:.0f}",
            f"{count:.0f}",
            f"{s / beside:.2f}",
        )
        table.add_row(way, *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
