"""`rtsmap tile`: cut a scene into chips for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtsmap.cli.exits import PARTIAL
from rtsmap.cli.inputs import AoiOption, BandsOption, DemOption, ExcludeOption


def command(
    *,
    scene: Annotated[Path, typer.Argument(help="Optical scene: GeoTIFF, COG or VRT with red, green, blue.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the chips.")],
    dem: DemOption = None,
    bands: BandsOption = None,
    aoi: AoiOption = None,
    exclude: ExcludeOption = None,
    labels: Annotated[
        Path | None, typer.Option(help="Polygons of slumps; adds COCO annotations cut to chips.")
    ] = None,
    resolution_m: Annotated[float, typer.Option(help="Metres per pixel.")] = 4.0,
    chip_px: Annotated[int, typer.Option(min=16, help="Side of a chip in pixels.")] = 256,
    overlap_px: Annotated[int, typer.Option(min=0, help="Overlap of neighbouring chips in pixels.")] = 0,
    origin_px: Annotated[int, typer.Option(min=0, help="Where the first full chip begins.")] = 0,
    min_valid_share: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out chips with imagery in less than this share.")
    ] = 0.5,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace chips that are there.")] = False,
) -> None:
    """Cut a scene into chips: GeoTIFF files with a GeoParquet index.

    Run the same command again to go on where it stopped.
    Exit code 3: some chips could not be read.

    Examples:
      rtsmap tile scene.tif --dem dem.tif --out chips
      rtsmap tile scene.tif --out chips --labels slumps.gpkg --chip-px 512
    """
    from rtsmap.cli.console import progress_bars, tell
    from rtsmap.rasters.bands import parse_bands
    from rtsmap.runs.chipping import ChipOptions, cut_scene

    chosen = None if bands is None else parse_bands(bands)
    options = ChipOptions(resolution_m, chip_px, overlap_px, origin_px, min_valid_share, chosen)
    with progress_bars() as progress:
        report = cut_scene(
            scene,
            dem or None,
            out=out,
            labels=labels,
            options=options,
            aoi=aoi,
            exclude=exclude,
            overwrite=overwrite,
            progress=progress,
        )
    for note in report.notes:
        tell(f"Note: {note}")
    annotated = f", {report.annotations} annotations" if labels else ""
    elsewhere = f", and {report.left_out} outside the area" if aoi or exclude else ""
    tell(
        f"{report.chips} chips{annotated}; {report.no_data} tiles without enough imagery left out{elsewhere}"
    )
    typer.echo(report.out)
    for index, reason in report.failed:
        tell(f"tile {index} failed: {reason}")
    if report.failed:
        raise typer.Exit(PARTIAL)
