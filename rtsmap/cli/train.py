"""`rtsmap train`: train a network from packs, in stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rtsmap.mm.stages import Teller


def command(
    *,
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="A recipe as TOML, or the name of one that ships: tiny, small, paper."
        ),
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the training; default: CONFIG_run here.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the logs for TensorBoard too, into OUT/tensorboard.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the recipe, every number written out, and stop.")
    ] = False,
) -> None:
    """Train a network: every stage of a recipe, one after another.

    Run the same command again to go on where it stopped; the result is the same. Works under torchrun.

    Examples:
      rtsmap train small --show > mine.toml
      rtsmap train mine.toml --set stages.fused.steps=5000 --out run
      torchrun --nproc-per-node 2 -m rtsmap train mine.toml --out run
    """
    from rtsmap.mm.recipe import Recipe, find_recipe

    path = find_recipe(config)
    recipe = Recipe.read(path, settings or [])
    if show:
        typer.echo(recipe.to_toml(), nl=False)
        return
    from rtsmap.mm.stages import run_recipe
    from rtsmap.mm.train import Ranks

    ranks = Ranks.from_torchrun(recipe.device)
    folder = out or Path(f"{path.stem}_run")
    try:
        with _shown(quiet=ranks.rank > 0) as tell:
            run_recipe(recipe, folder, ranks=ranks, tell=tell, tensorboard=tensorboard)
    finally:
        ranks.leave()
    if not ranks.rank:
        typer.echo(folder)


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Teller]:
    """One bar a stage with the latest loss; lines instead where nobody watches a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rtsmap.cli.console import tell
    from rtsmap.mm.stages import Teller

    if quiet:
        yield Teller()
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks, totals = {}, {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage], totals[stage] = bars.add_task(stage, total=total, loss=""), total
            bars.update(tasks[stage], completed=done)

        def row(stage: str, values: Mapping[str, float]) -> None:
            bars.update(tasks[stage], loss=f"loss {values['loss']:.3f}")
            if not console.is_terminal:
                speed = f"{values['seconds_per_step']:.2f} s a step"
                step = f"{stage} step {values['step']:.0f} of {totals[stage]}"
                tell(f"{step}: loss {values['loss']:.4f}, {speed}")

        yield Teller(progress, row, tell)
