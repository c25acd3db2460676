"""`rtsmap info`: what rtsmap sees in a scene and an elevation model, before anything is run."""

from __future__ import annotations

from typing import Annotated

import typer

from rtsmap.cli.inputs import BandsOption, DemOption


def command(
    scene: Annotated[str, typer.Argument(help="Optical scene: GeoTIFF, COG or VRT.")],
    dem: DemOption = None,
    bands: BandsOption = None,
    model: Annotated[
        str | None, typer.Option(help="Model to look through: a shipped name or a folder.")
    ] = None,
) -> None:
    """Show how a scene and an elevation model would be read, and what stands in the way.

    Nothing is written, and of the pixels only a sample is read. Exit code 1 if the scene cannot be mapped
    as it is.

    Examples: rtsmap info scene.tif · rtsmap info scene.tif --dem dem.tif --model my-bundle
    """
    from rich.console import Console
    from rich.table import Column, Table

    from rtsmap.errors import InputError
    from rtsmap.models import find_bundle, read_card
    from rtsmap.rasters import inspection
    from rtsmap.rasters.bands import parse_bands
    from rtsmap.rasters.inspection import Problems, check_inputs
    from rtsmap.rasters.survey import survey
    from rtsmap.rasters.tiling import TileOptions

    inspection.get_ready()
    card = read_card(find_bundle(model))
    tiles = TileOptions(card.chip_px, card.overlap_px)
    chosen = None if bands is None else parse_bands(bands)
    problems = Problems()
    remarks = list(check_inputs(scene, dem or None, card.spec, chosen, problems=problems))
    console = Console(highlight=False, soft_wrap=True)
    try:
        found = survey(scene, dem or None, card.spec, tiles, chosen)
    except InputError:
        # the checks above have said so, and more
        problems.raise_any()
        raise
    parts = {"Scene": found.scene, f"Grid for {card.name}": found.grid, "Elevation model": found.dem}
    for title, facts in parts.items():
        if facts:
            # names of files are no words to break lines at, and must not be cut
            table = Table("", Column(overflow="fold"), box=None, show_header=False, pad_edge=False)
            for subject, fact in facts.items():
                table.add_row(f"  {subject}", fact)
            console.print(title, style="bold")
            console.print(table, markup=False)
    remarks = list(dict.fromkeys((*map(str, problems.found), *found.problems, *remarks)))
    if remarks:
        console.print("To know", style="bold")
    for remark in remarks:
        console.print(f"  - {remark}", markup=False)
    if found.blocked or problems.found:
        raise typer.Exit(1)
