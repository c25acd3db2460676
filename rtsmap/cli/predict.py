"""`rtsmap predict`: map the slumps of a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtsmap.cli.exits import PARTIAL
from rtsmap.cli.inputs import AoiOption, BandFilesOption, BandsOption, DemOption, ExcludeOption

_LISTED = 20


def command(
    *,
    scene: Annotated[Path, typer.Argument(help="Optical scene: GeoTIFF, COG or VRT with red, green, blue.")],
    dem: DemOption = None,
    bands: BandsOption = None,
    band: BandFilesOption = None,
    aoi: AoiOption = None,
    exclude: ExcludeOption = None,
    date: Annotated[
        str | None,
        typer.Option(help="When the scene was taken, if its tags and name do not tell: 2020-07-05."),
    ] = None,
    scene_id: Annotated[str | None, typer.Option(help="What the scene is called on footprints.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="GeoPackage to write; default: SCENE_slumps.gpkg here.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Shipped model or folder of a bundle; default: rts-starter.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a map that is there.")] = False,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder for finished shards; default: beside the map, .rtsrun.")
    ] = None,
    discard_run: Annotated[
        bool, typer.Option("--discard-run", help="Remove that folder once the map is written.")
    ] = False,
    min_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Leave out slumps below this score.")
    ] = None,
    min_area_m2: Annotated[
        float | None, typer.Option(min=0, help="Leave out slumps smaller than this; default: ten pixels.")
    ] = None,
    simplify_m: Annotated[
        float | None, typer.Option(min=0, help="Tolerance of outlines in metres; default: half a pixel.")
    ] = None,
    min_speck_px: Annotated[
        int, typer.Option(min=1, help="Leave out pieces and holes of a slump below this many pixels.")
    ] = 4,
    chip_px: Annotated[int | None, typer.Option(help="Side of a chip, instead of the model's.")] = None,
    overlap_px: Annotated[int | None, typer.Option(help="Overlap of chips, instead of the model's.")] = None,
    origin_px: Annotated[int, typer.Option(min=0, help="Where the first full chip begins.")] = 0,
    shard_tiles: Annotated[int, typer.Option(min=1, help="A shard is this many tiles high and wide.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Chips that the network sees at once.")] = 8,
    min_valid_share: Annotated[
        float, typer.Option(min=0, max=1, help="Skip tiles with data in less than this share of pixels.")
    ] = 0.01,
    second_look: Annotated[
        bool,
        typer.Option(help="Look at each slump again, on a chip centred on it, which decides."),
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    timings: Annotated[bool, typer.Option("--timings", help="Say where the time went, by stage.")] = False,
    read_threads: Annotated[
        int | None, typer.Option(min=1, help="Blocks read at the same time; default: half the cores.")
    ] = None,
) -> None:
    """Map the slumps of a scene into a GeoPackage.

    Run the same command again to go on where it stopped.
    Exit code 3: the map is written, but some tiles failed.

    Examples:
      rtsmap predict scene.tif --dem dem.tif
      rtsmap predict scene.tif --dem dem.tif -o map.gpkg --min-score 0.7
      rtsmap predict worldview.tif --bands red=5,green=3,blue=2 --dem 'arcticdem/*_dem.tif'
    """
    from rtsmap.cli.console import count_of, progress_bars, tell
    from rtsmap.rasters.bands import parse_bands
    from rtsmap.rasters.spectral import parse_band_files
    from rtsmap.runs.mapping import PredictOptions
    from rtsmap.runs.mapping import predict as map_scene
    from rtsmap.timing import Ledger

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
        read_threads=read_threads,
        bands=None if bands is None else parse_bands(bands),
        date=date,
        scene_id=scene_id,
    )
    ledger = Ledger() if timings else None
    with progress_bars() as progress:
        report = map_scene(
            scene,
            dem or None,
            out=out or Path(f"{scene.stem}_slumps.gpkg"),
            model=model,
            options=options,
            aoi=aoi,
            exclude=exclude,
            band_files=parse_band_files(band or ()),
            run_dir=run_dir,
            overwrite=overwrite,
            discard_run=discard_run,
            progress=progress,
            timings=ledger,
        )
    for note in report.notes:
        tell(f"Note: {note}")
    left_out = f", {report.left_out} outside the area" if aoi or exclude else ""
    tell(
        f"{count_of(report.footprints, 'slump')} from {count_of(report.tiles, 'tile')} "
        f"({report.no_data} without data, {len(report.failed)} failed{left_out}) "
        f"and {count_of(report.second_looks, 'second look')} in {report.seconds:.0f} s"
    )
    if ledger is not None:
        for line in ledger.lines():
            tell(line)
    typer.echo(report.out)
    if report.failed:
        tell("These tiles failed; run the same command with --overwrite to try them again:")
        for index, reason in report.failed[:_LISTED]:
            tell(f"  tile {index}: {reason}")
        if len(report.failed) > _LISTED:
            tell(f"  and {len(report.failed) - _LISTED} more; all stand in the coverage layer")
        raise typer.Exit(PARTIAL)
