"""`rtsmap report`: a page for looking at a map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rtsmap.cli.inputs import BandsOption, DemOption


def command(
    *,
    gpkg: Annotated[Path, typer.Argument(help="Map made by rtsmap predict (.gpkg).")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file to write; default: MAP_report.html here.")
    ] = None,
    scene: Annotated[
        Path | None, typer.Option(help="The optical scene; default: where it was when the map was made.")
    ] = None,
    dem: DemOption = None,
    bands: BandsOption = None,
    limit: Annotated[
        int, typer.Option(min=1, max=5000, help="So many footprints with pictures, the most uncertain.")
    ] = 200,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is there.")] = False,
) -> None:
    """Write one HTML page that shows a map and takes a review, without any network.

    The page has a map, histograms, coverage, and a gallery of footprints on imagery and shaded relief, the
    most uncertain first. Accept, reject or comment on them, save the review, and write it into the map with
    rtsmap review apply. A map of many scenes gives one page with a map of each scene, up to 40.

    Examples:
      rtsmap report slumps.gpkg --scene scene.tif --dem dem.tif
      rtsmap report slumps.gpkg -o page.html --limit 500
    """
    from rtsmap.cli.console import progress_bars, tell
    from rtsmap.rasters.bands import parse_bands
    from rtsmap.runs.report import write_report

    with progress_bars() as progress:
        facts = write_report(
            gpkg,
            out or Path(f"{gpkg.stem}_report.html"),
            scene=scene,
            dem=dem or None,
            bands=None if bands is None else parse_bands(bands),
            limit=limit,
            overwrite=overwrite,
            progress=progress,
        )
    for note in facts.notes:
        tell(f"Note: {note}")
    if facts.shown < facts.footprints:
        tell(
            f"Note: pictures are of the {facts.shown:,} most uncertain of {facts.footprints:,} footprints; "
            "--limit shows more"
        )
    typer.echo(facts.out)
