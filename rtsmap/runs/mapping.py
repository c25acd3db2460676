"""From a scene to a map: plan, shards, slumps, GeoPackage."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox

from rtsmap import __version__
from rtsmap.atomic import (
    folders_below,
    parts_of,
    refuse_existing,
    refuse_inputs,
    refuse_odd_name,
    remove_parts,
)
from rtsmap.errors import InputError, OptionsError
from rtsmap.instances.attributes import Footprint
from rtsmap.instances.coverage import CoverageArea, coverage_areas
from rtsmap.instances.ground import BORDER_M
from rtsmap.instances.polygons import MAX_AREA_CHANGE
from rtsmap.instances.seams import Instance, MergeOptions, TileMap, is_wanted
from rtsmap.models import ModelCard
from rtsmap.rasters import inspection
from rtsmap.rasters.acquisition import iso_date
from rtsmap.rasters.bands import check_bands
from rtsmap.rasters.inspection import Problems
from rtsmap.rasters.mosaic import DemFiles
from rtsmap.rasters.opening import kept_open
from rtsmap.rasters.spectral import BandFiles
from rtsmap.rasters.tiling import TileOptions
from rtsmap.runs.ahead import ahead
from rtsmap.runs.claims import claiming, sweep
from rtsmap.runs.detecting import COVERAGE_STRIDE_PX, Receipt, Task, default_read_threads
from rtsmap.runs.engine import Engine, engine_of, name_of
from rtsmap.runs.footprints import FootprintMaker, FootprintsAhead, fingerprint_text, with_ranks
from rtsmap.runs.looking import Looked
from rtsmap.runs.plan import Run, exclusive, open_run
from rtsmap.runs.preparing import Prepared, prepare
from rtsmap.runs.probability import check_probability, write_probability
from rtsmap.runs.progress import Progress, silent
from rtsmap.runs.stages import InShare
from rtsmap.runs.working import SceneWork, joined, read_shard_of
from rtsmap.timing import Ledger, measuring, stage
from rtsmap.vectors.areas import AreaFiles
from rtsmap.vectors.geopackage import write_map

logger = logging.getLogger(__name__)


_OF_NETWORK = ("device", "precision", "batch_size", "compiled", "views")


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """The numbers of a mapping run; None means what the model's card says.

    `chip_px`, `overlap_px`, `origin_px` and `shard_tiles` lay out the tiles. Tiles with data in less than
    `min_valid_share` of their pixels are not mapped. `read_threads` (default: half the cores, 2 to 8) read
    ahead of the network. `device` is auto, cpu, cuda or cuda:N; `precision`
    auto, fp32, bf16 or fp16. Without `batch_size` the network finds its own; `compiled` has torch compile it
    first, which takes minutes (`rtsmap.mm.detector.MmDetector`). With `views` 4 each chip is looked at in
    four ways, for four times as long, and what they agree on is found (`rtsmap.mm.found.agreed`).

    `bands` gives numbers of the scene's bands by name, from 1, where the file does not tell:
    {"red": 5, "green": 3, "blue": 2}. `date` (ISO 8601) and `scene_id` say when the scene was taken and what
    it is called, before what its tags and its name tell.

    With `second_look`, slumps that tiles found are seen again on chips centred on them, which decide score
    and outline (`rtsmap.instances.looks`); without, the joined parts of tiles are the map.

    `min_score`, `min_area_m2` (default: ten pixels), `simplify_m` (default: half a pixel) and
    `min_speck_px` (smaller pieces and holes are left out) are used when slumps are written, so they may
    change without computing anything again. Raises OptionsError for numbers that cannot be.
    """

    chip_px: int | None = None
    overlap_px: int | None = None
    origin_px: int = 0
    shard_tiles: int = 4
    batch_size: int | None = None
    min_valid_share: float = 0.01
    second_look: bool = True
    min_score: float | None = None
    min_area_m2: float | None = None
    simplify_m: float | None = None
    min_speck_px: int = 4
    device: str = "auto"
    precision: str = "auto"
    compiled: bool = False
    views: int | None = None
    read_threads: int | None = None
    bands: Mapping[str, int] | None = None
    date: str | None = None
    scene_id: str | None = None

    def __post_init__(self) -> None:
        check_bands(self.bands or {})
        if self.date is not None:
            iso_date(self.date)
        for name, low, high in (
            ("shard_tiles", 1, 64),
            ("batch_size", 1, 1024),
            ("min_valid_share", 0, 1),
            ("min_score", 0, 1),
            ("min_area_m2", 0, 1e15),
            ("simplify_m", 0, 1e6),
            ("min_speck_px", 1, 1_000_000),
            ("read_threads", 1, 64),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise OptionsError(f"{name} must be within {low:g}..{high:g}, got {value}")

    @property
    def of_network(self) -> dict[str, Any]:
        """Those that `rtsmap.runs.engine.engine_of` takes, by its names."""
        return {name: getattr(self, name) for name in _OF_NETWORK}

    @classmethod
    def of(cls, **values: Any) -> PredictOptions:
        """Options by name; raises OptionsError for a name that is none, and says which there are."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise OptionsError(f"unknown option {', '.join(unknown)}; there are: {', '.join(known)}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did. `failed` are (tile, reason); `notes` say what was assumed about the inputs.

    `second_looks` counts the chips that slumps were looked at again on, `left_out` the tiles that read
    nothing of the area of interest. `kept` are sentences on what people had put into a map that was replaced.
    """

    out: Path
    run_dir: Path | None
    footprints: int
    tiles: int
    no_data: int
    failed: tuple[tuple[int, str], ...]
    shards_computed: int
    shards_reused: int
    second_looks: int
    seconds: float
    notes: tuple[str, ...]
    left_out: int = 0
    kept: tuple[str, ...] = ()


LONGEST_SLUMP_M = 4000.0
"""No slump is longer (Batagay, the largest, is 1.8 km); what is, is flagged in the log."""

_SMALLEST_PX = 10
_AREA_SLACK = 0.8
"""A grid's scale may be off by 5 %, so its areas by 10 %; outlines are simplified, too."""
_PART_SCORE = 0.3


@dataclass(frozen=True, slots=True)
class SceneRun:
    """A run directory over one scene, with all that is needed to work on it."""

    run: Run
    prepared: Prepared
    engine: Engine
    options: PredictOptions

    @property
    def task(self) -> Task:
        """All tiles of the scene."""
        return Task(
            run=self.run,
            reader=self.prepared.reader,
            shards=self.run.plan.shards(),
            engine=self.engine,
            min_valid_share=self.options.min_valid_share,
            read_threads=self.options.read_threads or default_read_threads(),
            unwanted=self.prepared.unwanted_tiles(BORDER_M),
        )

    @property
    def merge(self) -> MergeOptions:
        """How its slumps are joined, and which are wanted."""
        return _merge_options(self.engine, self.options, _pixel_m(self.prepared))

    def work(
        self,
        *,
        as_it_is: bool = False,
        share: InShare | None = None,
        on_settled: Callable[[Instance], None] = lambda _: None,
    ) -> SceneWork:
        """What of it takes the network."""
        return SceneWork(
            self.task,
            self.merge,
            self.is_near,
            second_look=self.options.second_look,
            as_it_is=as_it_is,
            share=share,
            on_settled=on_settled,
        )

    def told(self, instance: Instance) -> Instance:
        """The slump with the score that users are told."""
        return replace(instance, score=self.engine.told_score(instance.score))

    def is_near(self, instance: Instance) -> bool:
        """False for what no second look could bring onto the wanted ground."""
        ground = self.prepared.ground
        return ground is None or ground.is_near(instance.window, BORDER_M)


def open_scene(
    scene: Path | str,
    dem: DemFiles | None,
    engine: Engine,
    options: PredictOptions,
    directory: Path,
    *,
    inputs: Mapping[str, Any] | None = None,
    model: str | None = None,
    problems: Problems | None = None,
    renew: bool = True,
    outputs: Sequence[Path | str | None] = (),
) -> SceneRun:
    """Plan a run over a scene into a directory, or open the one that is there.

    `inputs` may hold `aoi`, `exclude`, `band_files` and `dem_may_miss` (the DEM is that of many scenes).
    `model` is the name or folder that gave the engine; it is kept for workers that come later. What is wrong
    with the inputs is raised as one error, with known `problems`. With `renew` workers that come later take
    the options, and the inputs' places, that are given now. Raises InputError for `outputs` that are inputs.
    """
    prepared = _prepare(scene, dem, engine, options, {**(inputs or {}), "problems": problems})
    for out in outputs:
        if out is not None:
            refuse_inputs(Path(out), prepared.plan.files)
    asked: dict[str, Any] = {"options": asdict(options), "model": model}
    if inputs and inputs.get("dem_may_miss"):
        asked["dem_may_miss"] = True
    plan = replace(prepared.plan, asked=asked)
    return SceneRun(open_run(directory, plan, renew=renew), replace(prepared, plan=plan), engine, options)


def predict(
    scene: Path | str,
    dem: DemFiles | None = None,
    *,
    out: Path | str,
    model: Engine | ModelCard | str | Path | None = None,
    options: PredictOptions | None = None,
    aoi: AreaFiles | None = None,
    exclude: AreaFiles | None = None,
    band_files: BandFiles | None = None,
    run_dir: Path | str | None = None,
    overwrite: bool = False,
    discard_run: bool = False,
    probability: Path | str | None = None,
    progress: Progress = silent,
    timings: Ledger | None = None,
) -> RunReport:
    """Map the slumps of a scene into a GeoPackage.

    `aoi` and `exclude` are files of polygons in any CRS: of the first only what lies inside is mapped, of the
    second only what lies outside. The rule for footprints on a border is that of `rtsmap.instances.ground`.
    `band_files` are rasters of bands that the model wants and the scene lacks, by name.
    `run_dir` (default: `out` with the suffix .rtsrun) keeps finished shards: calling again with the same
    arguments goes on where a run stopped. `discard_run` removes it after success. `probability` is a raster
    to write as well; see `rtsmap.runs.probability`. `timings` is told where the time goes.
    """
    started = time.time()
    out, options = Path(out), options or PredictOptions()
    problems = Problems()
    with problems.collected():
        check_out(out, overwrite=overwrite)
        if probability is not None:
            check_probability(Path(probability), overwrite=overwrite)
    with measuring(timings):
        inspection.get_ready()
        with stage("loading"):
            engine = engine_of(model, **options.of_network).loaded_once()
        directory = Path(run_dir) if run_dir else out.parent / f"{out.stem}.rtsrun"
        with stage("planning"):
            scene_run = open_scene(
                scene,
                dem,
                engine,
                options,
                directory,
                inputs={"aoi": aoi, "exclude": exclude, "band_files": band_files},
                model=name_of(model),
                problems=problems,
                outputs=(out, probability),
            )
        with _footprints_ahead(scene_run) as (ahead_of_map, work):
            with claiming() as claims:
                work.finish(claims, progress)
            report = make_map(
                scene_run,
                work,
                out,
                overwrite=overwrite,
                probability=probability,
                started=started,
                progress=progress,
                begun=ahead_of_map,
            )
    if discard_run:
        scene_run.run.discard()
        return replace(report, run_dir=None)
    return report


@contextmanager
def _footprints_ahead(scene_run: SceneRun) -> Iterator[tuple[FootprintsAhead, SceneWork]]:
    """A scene's work, and footprints of what it settles."""

    def settled(instance: Instance) -> None:
        if is_wanted(instance, scene_run.merge) and scene_run.is_near(instance):
            begun.begin(scene_run.told(instance))

    work = scene_run.work(on_settled=settled)
    begun = FootprintsAhead(
        lambda: _footprint_maker(scene_run.prepared, work.tiles.receipts, scene_run.options)
    )
    try:
        yield begun, work
    finally:
        begun.close()


def make_map(
    scene_run: SceneRun,
    work: SceneWork,
    out: Path,
    *,
    overwrite: bool = False,
    probability: Path | str | None = None,
    started: float | None = None,
    progress: Progress = silent,
    begun: FootprintsAhead | None = None,
) -> RunReport:
    """Write the map of a scene whose work is finished, and its `probability`; the network is not needed.

    `started` is the time of day from which the report counts seconds. `begun` are footprints under way.
    """
    started = time.time() if started is None else started
    run, prepared, options, merge = scene_run.run, scene_run.prepared, scene_run.options, scene_run.merge
    task, receipts, looked = work.task, work.tiles.receipts, work.looked
    with exclusive(run.directory):
        _sweep(run, out, before=started)
        work.sweep()
        found = joined(task, receipts, merge, progress) if looked is None else iter(looked.instances)
        wanted = (one for one in found if is_wanted(one, merge) and scene_run.is_near(one))
        record = _record(prepared, options, merge, receipts)
        record |= {"temperature": scene_run.engine.temperature, "second_looks": _about_looks(looked)}
        with stage("coverage"):
            coverage = _coverage(task)
        maker = begun or _footprint_maker(prepared, receipts, options)
        footprints = _footprints(scene_run, maker.make, wanted)
        if (ground := prepared.ground) is not None:
            footprints = (one for one in footprints if ground.holds(one.polygon))
            coverage = ground.divide(coverage)
        footprints = map(_doubted_if_long, footprints)
        if probability is not None:
            with stage("probability"):
                write_probability(
                    task, Path(probability), ground=prepared.ground, overwrite=overwrite, progress=progress
                )
        with stage("writing map"):
            written = write_map(
                out, footprints, prepared.plan.geobox.crs, coverage, record, overwrite=overwrite
            )
    return RunReport(
        out=out,
        run_dir=run.directory,
        footprints=written.footprints,
        tiles=sum(len(shard.tiles) for shard in task.shards),
        no_data=sum(receipt.no_data for receipt in receipts),
        failed=tuple((tile.index, reason) for receipt in receipts for tile, reason in receipt.failed),
        shards_computed=work.tiles.computed,
        shards_reused=work.tiles.reused,
        second_looks=looked.looks if looked else 0,
        seconds=time.time() - started,
        notes=(*prepared.notes, *_notes_about_looks(looked)),
        left_out=sum(receipt.left_out for receipt in receipts),
        kept=written.notes,
    )


def _about_looks(looked: Looked | None) -> dict[str, int]:
    """How many looks at how many candidates, for the run's record."""
    if looked is None:
        return {}
    return {"candidates": looked.candidates, "looks": looked.looks, "failed": looked.failed}


def _notes_about_looks(looked: Looked | None) -> tuple[str, ...]:
    if looked is None or not looked.failed:
        return ()
    note = (
        f"{looked.failed} of {looked.looks} second looks failed; their slumps are mapped as the tiles saw "
        "them. The same command with --overwrite, or `rtsmap work`, tries these looks again"
    )
    return (note,)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, an output that could not be written in the end."""
    if out.suffix.lower() != ".gpkg":
        raise InputError(f"{out}: maps are written as .gpkg; `rtsmap export` turns one into other formats")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; create it first")
    refuse_odd_name(out)
    refuse_existing(out, overwrite=overwrite)


def _prepare(
    scene: Path | str,
    dem: DemFiles | None,
    engine: Engine,
    options: PredictOptions,
    given: Mapping[str, Any],
) -> Prepared:
    chip_px = engine.chip_px if options.chip_px is None else options.chip_px
    # an overlap made for larger chips is too much for small ones
    overlap_px = min(engine.overlap_px, chip_px // 2) if options.overlap_px is None else options.overlap_px
    decisive = {
        "batch_size": options.batch_size,
        "min_valid_share": options.min_valid_share,
        "coverage_stride_px": COVERAGE_STRIDE_PX,
    }
    tiles = TileOptions(chip_px, overlap_px, options.origin_px)
    return prepare(
        scene,
        dem,
        engine,
        tiles=tiles,
        shard_tiles=options.shard_tiles,
        options=decisive,
        bands=options.bands,
        taken=options.date,
        scene_id=options.scene_id,
        **given,
    )


def _pixel_m(prepared: Prepared) -> float:
    return abs(float(prepared.plan.geobox.resolution.x))


def _merge_options(engine: Engine, options: PredictOptions, pixel_m: float) -> MergeOptions:
    min_score = engine.own_score(engine.min_score if options.min_score is None else options.min_score)
    return MergeOptions(
        min_score=min_score,
        min_part_score=min(_PART_SCORE, min_score),
        mask_threshold=engine.mask_threshold,
        min_instance_px=_smallest_px(options.min_area_m2, pixel_m),
        max_extent_px=math.ceil(LONGEST_SLUMP_M / pixel_m),
    )


def _smallest_px(min_area_m2: float | None, pixel_m: float) -> int:
    """Pixels of a slump that may be large enough; mostly ten, so that the same slumps are looked at."""
    if min_area_m2 is None:
        return _SMALLEST_PX
    return min(_SMALLEST_PX, max(1, math.floor(_AREA_SLACK * min_area_m2 / pixel_m**2)))


def _doubted_if_long(footprint: Footprint) -> Footprint:
    """The footprint; the log is told of one that is longer than slumps are."""
    left, bottom, right, top = footprint.polygon.bounds
    length_m = max(right - left, top - bottom)
    if length_m > LONGEST_SLUMP_M:
        logger.warning(
            "the footprint at %.5f, %.5f (latitude, longitude) is %.1f km long, and no slump is known that "
            "is longer than 2 km: look at it before you use it",
            footprint.centroid_lat,
            footprint.centroid_lon,
            length_m / 1000,
        )
    return footprint


def _footprints(
    scene_run: SceneRun, make: Callable[[tuple[int, Instance]], Footprint], instances: Iterator[Instance]
) -> Iterator[Footprint]:
    """The slumps that are large enough, made as they are asked for."""
    ranked = with_ranks(scene_run.told(one) for one in instances)
    threads, geobox = scene_run.task.read_threads, scene_run.prepared.plan.geobox
    with kept_open(), ThreadPoolExecutor(threads, "footprints") as pool:
        made = ahead(pool, make, ranked, depth=4 * threads)
        yield from (one for one in made if _is_large_enough(one, geobox, scene_run.options))


def _is_large_enough(footprint: Footprint, geobox: GeoBox, options: PredictOptions) -> bool:
    if options.min_area_m2 is not None:
        return footprint.area_m2 >= options.min_area_m2
    # again, for specks were taken off meanwhile; simplifying may have taken a share, too
    pixel_area = abs(geobox.affine.determinant)
    return bool(footprint.polygon.area >= _SMALLEST_PX * pixel_area * (1 - MAX_AREA_CHANGE))


def _coverage(task: Task) -> list[CoverageArea]:
    tiles = (tile for shard in task.shards for tile in shard.tiles)
    # what became of tiles, without a single mask unpacked
    shards = (read_shard_of(task.run, shard, min_score=math.inf) for shard in task.shards)
    statuses = (result.coverage for shard in shards for result in shard.tiles)
    return coverage_areas(tiles, statuses, task.run.plan.geobox)


def _footprint_maker(
    prepared: Prepared, receipts: Sequence[Receipt], options: PredictOptions
) -> FootprintMaker:
    half_a_pixel_m = _pixel_m(prepared) / 2
    return FootprintMaker(
        geobox=prepared.plan.geobox,
        leading=prepared.leading,
        heights=prepared.reader.heights,
        tiles=TileMap(tile for receipt in receipts for tile in receipt.seen),
        whole=frozenset(index for receipt in receipts for index in receipt.whole),
        scene_fingerprint=fingerprint_text(prepared.plan.inputs["scene"]),
        acquisition=prepared.acquisition,
        simplify_m=half_a_pixel_m if options.simplify_m is None else options.simplify_m,
        min_speck_px=options.min_speck_px,
    )


def _record(
    prepared: Prepared, options: PredictOptions, merge: MergeOptions, receipts: Sequence[Receipt]
) -> dict[str, Any]:
    """How the map was made, for the GeoPackage."""
    return {
        "rtsmap_version": __version__,
        "finished_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "plan_sha256": prepared.plan.fingerprint,
        "plan": prepared.plan.to_dict(),
        "paths": dict(prepared.plan.paths),
        "acquisition": prepared.acquisition.to_dict(),
        "options": asdict(options),
        "merging": asdict(merge),
        "notes": list(prepared.notes),
        "tiles_mapped": sum(len(receipt.seen) for receipt in receipts),
        "tiles_no_data": sum(receipt.no_data for receipt in receipts),
        "tiles_failed": sum(len(receipt.failed) for receipt in receipts),
        "memory_halvings": sum(receipt.halvings for receipt in receipts),
        "tiles_left_out": sum(receipt.left_out for receipt in receipts),
    }


def _sweep(run: Run, out: Path, before: float) -> None:
    """Remove what killed runs left half-written; what is younger than this run may be somebody's work."""
    sweep(run.directory)
    remove_parts([*folders_below(run.directory, ".*.part"), *parts_of(out)], before)
