"""`rtsmap plan`: make the run directory that workers share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtsmap.cli.exits import PARTIAL
from rtsmap.cli.inputs import (
    AoiOption,
    BandFilesOption,
    BandsOption,
    BatchOption,
    ChipOption,
    CompileOption,
    DateOption,
    DemOption,
    DeviceOption,
    ExcludeOption,
    MinAreaOption,
    MinScoreOption,
    MinSpeckOption,
    MinValidOption,
    ModelOption,
    OriginOption,
    OverlapOption,
    PrecisionOption,
    ReadThreadsOption,
    SceneIdOption,
    ScenesArgument,
    SecondLookOption,
    ShardTilesOption,
    SimplifyOption,
    ViewsOption,
)


def command(
    *,
    scenes: ScenesArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory to make, seen by all workers.")],
    dem: DemOption = None,
    bands: BandsOption = None,
    band: BandFilesOption = None,
    aoi: AoiOption = None,
    exclude: ExcludeOption = None,
    date: DateOption = None,
    scene_id: SceneIdOption = None,
    model: ModelOption = None,
    min_score: MinScoreOption = None,
    min_area_m2: MinAreaOption = None,
    simplify_m: SimplifyOption = None,
    min_speck_px: MinSpeckOption = 4,
    chip_px: ChipOption = None,
    overlap_px: OverlapOption = None,
    origin_px: OriginOption = 0,
    shard_tiles: ShardTilesOption = 4,
    batch_size: BatchOption = None,
    min_valid_share: MinValidOption = 0.01,
    second_look: SecondLookOption = True,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    compiled: CompileOption = False,
    views: ViewsOption = None,
    read_threads: ReadThreadsOption = None,
) -> None:
    """Make the run directory of a scene, or of many, without computing anything.

    Then `rtsmap work RUN`, on as many machines as there are, computes it; `rtsmap merge RUN` makes the map.

    Examples:
      rtsmap plan scene.tif --dem dem.tif --out shared/run
      rtsmap plan scenes.csv --dem 'arcticdem/*_dem.tif' --out shared/run
      rtsmap work shared/run
      rtsmap merge shared/run --out map.gpkg
    """
    from rtsmap.cli.console import progress_bars, tell
    from rtsmap.mm.detector import count_gpus
    from rtsmap.rasters.bands import parse_bands
    from rtsmap.rasters.spectral import parse_band_files
    from rtsmap.runs.many import plan_scenes
    from rtsmap.runs.mapping import PredictOptions
    from rtsmap.runs.run_folders import standing
    from rtsmap.runs.scene_lists import is_one_file, read_scenes
    from rtsmap.runs.spreading import plan_run
    from rtsmap.wording import count_of

    options = PredictOptions(
        chip_px=chip_px,
        overlap_px=overlap_px,
        origin_px=origin_px,
        shard_tiles=shard_tiles,
        batch_size=batch_size,
        min_valid_share=min_valid_share,
        second_look=second_look,
        min_score=min_score,
        min_area_m2=min_area_m2,
        simplify_m=simplify_m,
        min_speck_px=min_speck_px,
        device=device,
        precision=precision,
        compiled=compiled,
        views=views,
        read_threads=read_threads,
        bands=None if bands is None else parse_bands(bands),
        date=date,
        scene_id=scene_id,
    )
    inputs = {"aoi": aoi, "exclude": exclude, "band_files": parse_band_files(band or ())}
    problems = []
    if is_one_file(scenes):
        run = plan_run(scenes[0], dem or None, out, model=model, options=options, inputs=inputs)
        for note in run.prepared.notes:
            tell(f"Note: {note}")
    else:
        with progress_bars() as progress:
            items = read_scenes(scenes, dem)
            entries = plan_scenes(items, out, model=model, options=options, inputs=inputs, progress=progress)
        problems = [entry for entry in entries if entry.problem]
    if device == "auto" and not count_gpus():
        tell(
            "Note: planned for CPUs, as this machine has no GPU; for GPUs of the workers: --device cuda "
            "--precision bf16"
        )
    found = standing(out)
    tell(f"{count_of(found.scenes, 'scene')} with {count_of(found.shards, 'shard')} of tiles")
    typer.echo(out)
    for entry in problems:
        tell(f"{entry.name} cannot be mapped: {entry.problem}")
    if problems:
        raise typer.Exit(PARTIAL)
