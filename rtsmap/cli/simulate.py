"""`rtsmap simulate`: make a scene, its elevation model and the true footprints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    out_dir: Annotated[Path, typer.Argument(help="Folder for scene.tif, dem.tif, truth and look-alikes.")],
    preset: Annotated[
        str, typer.Option(help="Family of scenes: benchmark-1, benchmark-1-sparse, training, demo.")
    ] = "benchmark-1",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same scene.")] = 1,
    size_px: Annotated[int | None, typer.Option(help="Side in pixels, instead of the preset's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Simulate a tundra scene with thaw slumps, look-alikes and an elevation model.

    Example: rtsmap simulate scenes/one --preset benchmark-1 --seed 1
    """
    from rich.progress import Progress

    from rtsmap.simulate.scenes import write_scene

    with Progress(transient=True) as progress:
        task = progress.add_task("simulating", total=1.0)
        made = write_scene(
            preset,
            seed,
            out_dir,
            size_px=size_px,
            overwrite=overwrite,
            report=lambda share: progress.update(task, completed=share),
        )
    for path in (made.scene, made.dem, made.truth, made.lookalikes):
        typer.echo(path)
