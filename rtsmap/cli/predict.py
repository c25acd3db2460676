"""`rtsmap predict`: map the slumps of a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
    OverlapsOption,
    OverwriteOption,
    PrecisionOption,
    ProbabilityOption,
    ReadThreadsOption,
    SceneIdOption,
    ScenesArgument,
    SchedulerOption,
    SecondLookOption,
    ShardTilesOption,
    SimplifyOption,
    TimingsOption,
    ViewsOption,
    WorkersOption,
)


def command(
    *,
    scenes: ScenesArgument,
    dem: DemOption = None,
    bands: BandsOption = None,
    band: BandFilesOption = None,
    aoi: AoiOption = None,
    exclude: ExcludeOption = None,
    date: DateOption = None,
    scene_id: SceneIdOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="GeoPackage; default: SCENE_slumps.gpkg or slumps.gpkg (chips: .json)."
        ),
    ] = None,
    model: ModelOption = None,
    overwrite: OverwriteOption = False,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder for finished shards; default: beside the map, .rtsrun.")
    ] = None,
    discard_run: Annotated[
        bool, typer.Option("--discard-run", help="Remove that folder once the map is written.")
    ] = False,
    probability: ProbabilityOption = None,
    overlaps: OverlapsOption = "best",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
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
    timings: TimingsOption = False,
    read_threads: ReadThreadsOption = None,
    image_ids: Annotated[
        Path | None, typer.Option(help="For chips: COCO file that gives image ids to their names.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="For chips: a modality of the model to go without.")
    ] = None,
) -> None:
    """Map the slumps of a scene, or of many, into a GeoPackage.

    Chips of eight bands (.npz) have no place on Earth: of them come COCO results (.json).

    Run the same command again to go on where it stopped. Of many scenes, each takes the DEM tiles that it
    overlaps, and one bad scene does not stop the others.
    Exit code 3: the map is written, but some tiles or scenes failed.

    Examples:
      rtsmap predict scene.tif --dem dem.tif
      rtsmap predict scene.tif --dem dem.tif -o map.gpkg --min-score 0.7
      rtsmap predict scene.tif --dem dem.tif --workers 4
      rtsmap predict scenes/ --dem 'arcticdem/*_dem.tif' -o map.gpkg --overlaps newest
      rtsmap predict scenes.csv -o map.gpkg --workers 4
      rtsmap predict worldview.tif --bands red=5,green=3,blue=2 --dem 'arcticdem/*_dem.tif'
      rtsmap predict chips/*.npz -o results.json --image-ids test_images.json
    """
    from rtsmap.cli.console import progress_bars
    from rtsmap.cli.reports import (
        PROBABILITY_OF_MANY,
        executor_of,
        refuse_options,
        tell_chips,
        tell_many,
        tell_report,
    )
    from rtsmap.rasters.bands import parse_bands
    from rtsmap.rasters.spectral import parse_band_files
    from rtsmap.runs.in_process import InProcess
    from rtsmap.runs.many import check_rule, discard, predict_scenes
    from rtsmap.runs.mapping import PredictOptions
    from rtsmap.runs.mapping import predict as map_scene
    from rtsmap.runs.npz_chips import npz_files, predict_chips
    from rtsmap.runs.scene_lists import is_one_file, read_scenes
    from rtsmap.runs.spreading import predict_with
    from rtsmap.timing import Ledger

    if npz_files(scenes):
        refuse_options(
            f"chips ({scenes[0]}) have no place on Earth, and are seen as they are",
            dem=dem,
            bands=bands,
            band=band,
            aoi=aoi,
            exclude=exclude,
            date=date,
            scene_id=scene_id,
            run_dir=run_dir,
            discard_run=discard_run,
            workers=workers,
            scheduler=scheduler,
            min_area_m2=min_area_m2,
            simplify_m=simplify_m,
            chip_px=chip_px,
            overlap_px=overlap_px,
            timings=timings,
            probability=probability,
        )
        with progress_bars() as progress:
            found = predict_chips(
                scenes,
                out=out or Path("slumps.json"),
                model=model,
                min_score=min_score,
                image_ids=image_ids,
                without=without or (),
                device=device,
                precision=precision,
                batch_size=batch_size,
                views=views,
                overwrite=overwrite,
                progress=progress,
            )
        tell_chips(found)
        return
    refuse_options("a scene is no chip of eight bands", image_ids=image_ids, without=without)
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
    given: dict[str, Any] = {"model": model, "options": options, "run_dir": run_dir, "overwrite": overwrite}
    inputs: dict[str, Any] = {"aoi": aoi, "exclude": exclude, "band_files": parse_band_files(band or ())}
    check_rule(overlaps)
    executor = executor_of(workers, scheduler)
    ledger = Ledger() if timings else None
    given["timings"] = ledger
    if not is_one_file(scenes):
        refuse_options(PROBABILITY_OF_MANY, probability=probability)
        items = read_scenes(scenes, dem)
        given |= {"out": out or Path("slumps.gpkg"), "overlaps": overlaps, "inputs": inputs}
        with progress_bars() as progress:
            many = predict_scenes(executor or InProcess(), items, progress=progress, **given)
        if discard_run:
            discard(many)
        tell_many(many, ledger)
        return
    scene = scenes[0]
    given |= {"out": out or Path(f"{Path(scene).stem}_slumps.gpkg"), "discard_run": discard_run}
    given["probability"] = probability
    with progress_bars() as progress:
        if executor is None:
            report = map_scene(scene, dem or None, progress=progress, **inputs, **given)
        else:
            report = predict_with(executor, scene, dem or None, inputs=inputs, progress=progress, **given)
    tell_report(report, of_area=bool(aoi or exclude), ledger=ledger)
