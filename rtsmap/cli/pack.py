"""`rtsmap pack`: labelled chips and scenes as one file to train from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def command(
    *,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of rtsmap tile --labels or rtsmap simulate, and COCO files (.json)."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Pack to write, for example train.pack.")],
    group: Annotated[
        str | None, typer.Option(help="Name of the ground that all sources show; default: one a folder.")
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="JSON lists of file or folder names that show common ground.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of a COCO file's pictures; default: images/ beside it.")
    ] = None,
    hold_out: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the groups that goes to OUT_held_out instead.")
    ] = 0.0,
    resolution_m: Annotated[
        float | None,
        typer.Option(help="Metres per pixel at which scenes are read (default: 4), and of plain pictures."),
    ] = None,
    reviewed: Annotated[
        Path | None,
        typer.Option(help="Reviewed map: what was rejected in it is remembered as ground without slumps."),
    ] = None,
    simulate: Annotated[
        int, typer.Option(min=0, help="Simulate so many scenes and pack them, too, a group each.")
    ] = 0,
    preset: Annotated[str, typer.Option(help="Kind of scene to simulate.")] = "training",
    first_seed: Annotated[
        int, typer.Option(min=0, help="Of the simulated scenes; the others count on from it.")
    ] = 1,
    size_px: Annotated[
        int | None, typer.Option(help="Side of the simulated scenes in pixels, instead of the preset's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace packs that are there.")] = False,
) -> None:
    """Pack labelled chips or scenes for training. Splits are by group, never by chip.

    Examples:
      rtsmap pack chips/one chips/two --out train.pack
      rtsmap pack coco_train.json --resolution-m 4 --groups overlap_groups.json --hold-out 0.1 --out real.pack
      rtsmap pack scenes/* --out simulated.pack
      rtsmap pack --simulate 50 --out simulated.pack
      rtsmap pack chips/one --reviewed map.gpkg --out train.pack
    """
    from rtsmap.cli.console import progress_bars, tell
    from rtsmap.runs.chip_packs import MadeScene, PackOptions, pack
    from rtsmap.simulate.presets import find_preset
    from rtsmap.simulate.scenes import write_scene
    from rtsmap.wording import count_of

    find_preset(preset)
    options = PackOptions(group, groups, images, hold_out, resolution_m, reviewed)
    # a seed is the same ground in every pack, so its name is
    made = [
        MadeScene(f"{preset}-{seed}", partial(write_scene, preset, seed, size_px=size_px))
        for seed in range(first_seed, first_seed + simulate)
    ]
    with progress_bars() as progress:
        reports = pack(sources or [], out, options, made=made, overwrite=overwrite, progress=progress)
    for report in reports:
        for note in report.notes:
            tell(f"Note: {note}")
        tell(
            f"{report.path}: {count_of(report.images, 'image')} of {count_of(report.groups, 'group')}, "
            f"{count_of(report.slumps, 'slump')}, {report.with_terrain} with terrain"
        )
        typer.echo(report.path)
