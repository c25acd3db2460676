"""`rtsmap tile`: cut a scene into chips for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtsmap.cli.exits import PARTIAL
from rtsmap.cli.inputs import AoiOption, BandsOption, DemOption, ExcludeOption


def command(
    *,
    scene: Annotated[
        list[str],
        typer.Argument(help="Optical scene: GeoTIFF, COG or VRT with red, green, blue; or chips (.npz)."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the chips.")],
    dem: DemOption = None,
    bands: BandsOption = None,
    aoi: AoiOption = None,
    exclude: ExcludeOption = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Polygons of slumps (of .npz chips a COCO file); adds COCO annotations cut to chips."
        ),
    ] = None,
    resolution_m: Annotated[
        float | None,
        typer.Option(
            min=0.05, max=1000, help="Metres per pixel; default: 4 for scenes, unknown for .npz chips."
        ),
    ] = None,
    chip_px: Annotated[
        int | None, typer.Option(min=16, help="Side of a chip in pixels; default: 256.")
    ] = None,
    overlap_px: Annotated[int, typer.Option(min=0, help="Overlap of neighbouring chips in pixels.")] = 0,
    origin_px: Annotated[int, typer.Option(min=0, help="Where the first full chip begins.")] = 0,
    min_valid_share: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out chips with imagery in less than this share.")
    ] = 0.5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace chips that are there.")] = False,
) -> None:
    """Cut a scene into chips: GeoTIFF files with a GeoParquet index.

    Run the same command again to go on where it stopped. Chips of eight bands (.npz) become such files, too,
    whole and without a place on Earth.
    Exit code 3: some chips could not be read; the same command tries these again.

    Examples:
      rtsmap tile scene.tif --dem dem.tif --out chips
      rtsmap tile scene.tif --out chips --labels slumps.gpkg --chip-px 512
      rtsmap tile chips/*.npz --labels coco.json --out chips
    """
    from rtsmap.cli.console import progress_bars, tell
    from rtsmap.cli.reports import refuse_options
    from rtsmap.errors import InputError
    from rtsmap.rasters.bands import parse_bands
    from rtsmap.runs.chipping import ChipOptions, cut_scene
    from rtsmap.runs.npz_chips import npz_files
    from rtsmap.runs.npz_tiles import cut_chips
    from rtsmap.wording import count_of

    with progress_bars() as progress:
        if npz_files(scene):
            refuse_options(
                f"chips ({scene[0]}) have no place on Earth, and are not cut smaller",
                dem=dem,
                bands=bands,
                aoi=aoi,
                exclude=exclude,
                chip_px=chip_px,
                overlap_px=overlap_px,
                origin_px=origin_px,
            )
            report = cut_chips(
                scene,
                out=out,
                labels=labels,
                resolution_m=resolution_m,
                min_valid_share=min_valid_share,
                overwrite=overwrite,
                progress=progress,
            )
        elif len(scene) > 1:
            raise InputError(f"{scene[1]}: one scene at a time is cut into chips; {scene[0]} is another")
        else:
            chosen = None if bands is None else parse_bands(bands)
            report = cut_scene(
                scene[0],
                dem or None,
                out=out,
                labels=labels,
                options=ChipOptions(
                    resolution_m or 4.0, chip_px or 256, overlap_px, origin_px, min_valid_share, chosen
                ),
                aoi=aoi,
                exclude=exclude,
                overwrite=overwrite,
                progress=progress,
            )
    for note in report.notes:
        tell(f"Note: {note}")
    annotated = f", {count_of(report.annotations, 'annotation')}" if labels else ""
    elsewhere = f", and {report.left_out} outside the area" if aoi or exclude else ""
    left_out = f"{count_of(report.no_data, 'tile')} without enough imagery left out{elsewhere}"
    tell(f"{count_of(report.chips, 'chip')}{annotated}; {left_out}")
    typer.echo(report.out)
    if report.failed:
        tell("These tiles failed; run the same command again to try them again:")
    for index, reason in report.failed:
        tell(f"tile {index} failed: {reason}")
    if report.failed:
        raise typer.Exit(PARTIAL)
