"""From a scene to training chips: one GeoTIFF a modality and chip, an index, annotations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from rtsmap.atomic import refuse_inputs, whole_file
from rtsmap.errors import InputError, OptionsError, RunError, ShardError
from rtsmap.instances.chip_labels import coco_document, cut_labels, ignored_ground
from rtsmap.instances.coverage import MAPPED
from rtsmap.instances.detections import Detection
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN_FOR_TRAINING, InputSpec, Modality, check_bands
from rtsmap.rasters.chips import Chip
from rtsmap.rasters.grids import window_geobox
from rtsmap.rasters.inspection import Problems
from rtsmap.rasters.mosaic import DemFiles
from rtsmap.rasters.tiling import Tile, TileOptions
from rtsmap.rasters.writing import write_geotiff
from rtsmap.runs.detecting import Task, default_read_threads
from rtsmap.runs.engine import Engine
from rtsmap.runs.plan import PLAN, Plan, Run, exclusive, open_run
from rtsmap.runs.preparing import Prepared, prepare
from rtsmap.runs.progress import Progress, silent
from rtsmap.runs.shards import TileResult, read_shard
from rtsmap.runs.stages import complete
from rtsmap.vectors.areas import AreaFiles
from rtsmap.vectors.labels import Polygons, write_polygons
from rtsmap.vectors.united import read_slumps

INDEX, ANNOTATIONS, RUN = "chips.parquet", "annotations.json", ".run"
SHARD_TILES = 4
_CHIP_PATTERN = "[0-9]" * 6 + ".tif"


@dataclass(frozen=True, slots=True)
class ChipOptions:
    """Ground resolution, chips and their overlap in pixels of it, and how empty a chip may be.

    `bands` gives numbers of the scene's bands by name, from 1, where the file does not tell.
    """

    resolution_m: float = 4.0
    chip_px: int = 256
    overlap_px: int = 0
    origin_px: int = 0
    min_valid_share: float = 0.5
    bands: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        check_bands(self.bands or {})
        if not 0 <= self.min_valid_share <= 1:
            raise OptionsError(f"min_valid_share must be within 0..1, got {self.min_valid_share}")


@dataclass(frozen=True, slots=True)
class ChipReport:
    """What was written: chips and annotations; tiles without enough data, failed, or outside the area."""

    out: Path
    chips: int
    no_data: int
    failed: tuple[tuple[int, str], ...]
    annotations: int
    notes: tuple[str, ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class ChipWriter:
    """A detector that finds nothing and writes down what it is shown; so cutting chips is a mapping run."""

    folder: Path
    spec: InputSpec

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        """Write every chip, replacing what an interrupted run left of it."""
        for chip in chips:
            for modality in self.spec.modalities:
                path = self.folder / chip_name(modality.name, chip.tile)
                try:
                    path.parent.mkdir(exist_ok=True)
                    _write_layer(path, chip, modality)
                except (OSError, InputError) as exc:
                    # what fails while chips are cut is else taken for one bad tile
                    raise RunError(f"cutting chips stopped: {exc}") from exc
        return [[] for _ in chips]


def chip_name(modality: str, tile: Tile) -> str:
    """Path of a chip inside the output folder."""
    return f"{modality}/{tile.index:06d}.tif"


def _write_layer(path: Path, chip: Chip, modality: Modality) -> None:
    layer = chip.layers[modality.name]
    if all(band.unit == "DN" for band in modality.bands):
        pixels = np.rint(np.clip(layer.pixels, 0, 255)).astype(np.uint8)
        write_geotiff(path, pixels, chip.geobox, valid=layer.valid, band_names=modality.band_names)
    else:
        pixels = np.where(layer.valid, layer.pixels, np.float32(np.nan))
        write_geotiff(path, pixels, chip.geobox, nodata=float("nan"), band_names=modality.band_names)


def cut_scene(
    scene: Path | str,
    dem: DemFiles | None = None,
    *,
    out: Path | str,
    labels: Path | str | None = None,
    spec: InputSpec | None = None,
    options: ChipOptions | None = None,
    aoi: AreaFiles | None = None,
    exclude: AreaFiles | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> ChipReport:
    """Cut a scene into chips below the folder `out`; called again, it goes on where it stopped.

    Tiles that failed are tried again then. Optical chips are 8 bit with a mask, terrain chips float32 with
    NaN where nothing is known. The index chips.parquet has one row a chip; with `labels` COCO annotations are
    written beside it. Chips with nothing inside `aoi`, or all inside `exclude` (files of polygons in any
    CRS), are left out; in the annotations of all others such ground is a crowd, on which nothing is judged.
    """
    out, options = Path(out), options or ChipOptions()
    groups = (OPTICAL_RGB,) if dem is None else (OPTICAL_RGB, TERRAIN_FOR_TRAINING)
    spec = spec or InputSpec(options.resolution_m, groups)
    problems, polygons = Problems(), None
    with problems.collected():
        polygons = None if labels is None else read_slumps(labels)
    given = {"aoi": aoi, "exclude": exclude, "problems": problems}
    prepared, task = _task(scene, dem, spec, options, out, overwrite=overwrite, given=given)
    receipts, _ = complete(task, progress)
    with exclusive(task.run.directory):
        chips = [(tile, result) for tile, result in _results(task) if result.coverage.status == MAPPED]
        geobox = prepared.plan.geobox
        notes = prepared.notes
        found: list[dict[str, Any]] = []
        if polygons is not None:
            polygons = polygons.to_crs(geobox.crs)
            found = _annotate(chips, polygons, prepared, out / ANNOTATIONS, spec)
            notes = (*notes, *polygons.notes)
            if len(polygons) and not found:
                notes = (*notes, f"{labels}: none of its {len(polygons)} polygons lies on a chip")
        # the index comes last: where it is, the folder is complete, but for tiles that failed
        write_polygons(out / INDEX, _index(chips, geobox, spec), overwrite=True)
    return ChipReport(
        out=out,
        chips=len(chips),
        no_data=sum(receipt.no_data for receipt in receipts),
        failed=tuple((tile.index, reason) for receipt in receipts for tile, reason in receipt.failed),
        annotations=len(found),
        notes=notes,
        left_out=sum(receipt.left_out for receipt in receipts),
    )


def _make_room(out: Path, plan: Plan, *, overwrite: bool) -> None:
    """Refuse a folder that is complete, or that holds something else, unless it may be overwritten."""
    if not out.exists():
        out.mkdir(parents=True)
    elif overwrite and (out / RUN / PLAN).is_file():
        _remove_chips(out, plan.files)
    elif (out / INDEX).exists() and not _has_failed_tiles(out, plan):
        raise InputError(f"{out} holds finished chips already; name another folder, or give --overwrite")
    elif not (out / RUN).is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name a new folder for the chips")


def _has_failed_tiles(out: Path, plan: Plan) -> bool:
    """True for chips of this very plan of which some could not be cut; they are tried again."""
    run = Run(out / RUN, plan, resumed=True)
    try:
        return any(read_shard(run.shard_path(s.index), s, plan.fingerprint).failed for s in plan.shards())
    except ShardError:
        return False


def _remove_chips(out: Path, inputs: Sequence[str]) -> None:
    """Remove what an earlier run wrote, unless it is an input; whatever else lies in the folder stays."""
    chips = list(out.glob(f"*/{_CHIP_PATTERN}"))
    for path in chips:
        refuse_inputs(path, inputs)
    (out / INDEX).unlink(missing_ok=True)
    (out / ANNOTATIONS).unlink(missing_ok=True)
    for path in chips:
        path.unlink()
        with suppress(OSError):
            path.parent.rmdir()
    shutil.rmtree(out / RUN)


def _task(
    scene: Path | str,
    dem: DemFiles | None,
    spec: InputSpec,
    options: ChipOptions,
    out: Path,
    *,
    overwrite: bool,
    given: Mapping[str, Any],
) -> tuple[Prepared, Task]:
    """Plan the run; only when nothing stands in the way, chips that are there make room."""
    engine = Engine(
        spec=spec,
        chip_px=options.chip_px,
        overlap_px=options.overlap_px,
        identity={"chips": spec.to_dict()},
        load=partial(ChipWriter, out, spec),
    )
    tiles = TileOptions(options.chip_px, options.overlap_px, options.origin_px)
    decisive = {"min_valid_share": options.min_valid_share}
    prepared = prepare(
        scene,
        dem,
        engine,
        tiles=tiles,
        shard_tiles=SHARD_TILES,
        options=decisive,
        bands=options.bands,
        **given,
    )
    _make_room(out, prepared.plan, overwrite=overwrite)
    task = Task(
        run=open_run(out / RUN, prepared.plan),
        reader=prepared.reader,
        shards=prepared.plan.shards(),
        engine=engine,
        min_valid_share=options.min_valid_share,
        read_threads=default_read_threads(),
        unwanted=prepared.unwanted_tiles(0.0),
    )
    return prepared, task


def _results(task: Task) -> Iterator[tuple[Tile, TileResult]]:
    for shard in task.shards:
        stored = read_shard(task.run.shard_path(shard.index), shard, task.run.plan.fingerprint)
        yield from zip(shard.tiles, stored.tiles, strict=True)


def _index(chips: Sequence[tuple[Tile, TileResult]], geobox: GeoBox, spec: InputSpec) -> Polygons:
    """One row a chip: its number, files, place on the grid, and the share of it with data."""
    columns: dict[str, list[Any]] = {
        "chip": [tile.index for tile, _ in chips],
        "row": [tile.read.row0 for tile, _ in chips],
        "col": [tile.read.col0 for tile, _ in chips],
        "height": [tile.read.height for tile, _ in chips],
        "width": [tile.read.width for tile, _ in chips],
    }
    for name in spec.names:
        columns[name] = [chip_name(name, tile) for tile, _ in chips]
        columns[f"{name}_valid_share"] = [result.shares[name] for _, result in chips]
    outlines = tuple(window_geobox(geobox, tile.read).extent.geom for tile, _ in chips)
    return Polygons(outlines, geobox.crs, columns)


def _annotate(
    chips: Sequence[tuple[Tile, TileResult]],
    labels: Polygons,
    prepared: Prepared,
    path: Path,
    spec: InputSpec,
) -> list[dict[str, Any]]:
    """Write the labels that fall on chips as a COCO document over the leading modality's files.

    Ground that is not wanted is written beside them, and not given back.
    """
    tree, geobox, ground = shapely.STRtree(labels.geometries), prepared.plan.geobox, prepared.ground
    aside: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for tile, _ in chips:
        grid = window_geobox(geobox, tile.read)
        height, width = tile.read.shape
        file_name = chip_name(spec.names[0], tile)
        images.append({"id": tile.index, "file_name": file_name, "height": height, "width": width})
        found += cut_labels(tree, grid, image_id=tile.index, first_id=len(found) + 1)
    if ground is not None:
        for tile, _ in chips:
            number = 1 + len(found) + len(aside)
            aside += ignored_ground(~ground.wants(tile.read), image_id=tile.index, annotation_id=number)
    document = coco_document(
        images, [*found, *aside], {"description": f"chips at {spec.resolution_m:g} m per pixel"}
    )
    with whole_file(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")
    return found
