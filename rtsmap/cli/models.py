"""`rtsmap models`: which models there are, what they are, whether their files are whole; and new ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None, typer.Argument(help="Name of a shipped model or folder of a bundle; default: rts-starter.")
]


def app_with(guarded: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """The commands, each behind the error handler."""
    app = typer.Typer(help="List, show, verify and publish models.", no_args_is_help=True)
    commands: dict[str, Callable[..., None]] = {
        "list": list_models,
        "show": show,
        "verify": verify,
        "publish": publish_run,
    }
    for name, command in commands.items():
        app.command(name)(guarded(command))
    return app


def list_models() -> None:
    """List the models that come with rtsmap.

    Example: rtsmap models list
    """
    from rtsmap.models import find_bundle, list_bundles, read_card

    for name in list_bundles():
        card = read_card(find_bundle(name))
        typer.echo(
            f"{name}\t{card.version}\t{card.spec.resolution_m:g} m\t{card.description.splitlines()[0]}"
        )


def show(model: Model = None) -> None:
    """Show what a model wants to see, what it was trained on and how it was measured.

    Examples:
      rtsmap models show
      rtsmap models show path/to/bundle
    """
    from rtsmap.models import find_bundle, read_card

    card = read_card(find_bundle(model))
    facts = {
        "name": f"{card.name} {card.version}",
        "folder": card.folder,
        "description": card.description,
        "classes": ", ".join(card.classes),
        "resolution": f"{card.spec.resolution_m:g} m per pixel",
        **{f"input {m.name}": ", ".join(m.band_names) for m in card.spec.modalities},
        "chips": f"{card.chip_px} px, overlap {card.overlap_px} px",
        "views": f"{card.network.get('views', 1)} of each chip (--views of predict)",
        "thresholds": f"score {card.score_threshold:g}, mask {card.mask_threshold}/255",
        **({} if card.temperature == 1 else {"temperature of scores": f"{card.temperature:g}"}),
        "parameters": f"{card.parameters / 1e6:.1f} M, {card.weights_bytes / 2**20:.1f} MiB",
        "trained on": card.training_data,
        "licence": card.licence,
        **{s.name: f"{s.value:g} on {s.data}\n  by: {s.command}" for s in card.scores},
    }
    for key, value in facts.items():
        typer.echo(f"{key}: {value}")


def verify(model: Model = None) -> None:
    """Check that a model's files are whole, are those its card was written for, and hold data only.

    Examples:
      rtsmap models verify
      rtsmap models verify path/to/bundle
    """
    from rtsmap.models import load_bundle, verify_contents

    card = load_bundle(model)
    verify_contents(card)
    typer.echo(f"{card.name} {card.version}: whole ({card.weights}, sha256 {card.sha256})")


def publish_run(
    *,
    run: Annotated[Path, typer.Argument(help="Folder of a finished rtsmap train.")],
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    licence: Annotated[str, typer.Option(help="Who may use the weights for what, on which grounds.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the bundle; default: NAME.")
    ] = None,
    stage: Annotated[str | None, typer.Option(help="Stage to publish; default: the last.")] = None,
    version: Annotated[str, typer.Option(help="Version of the model.")] = "0.1.0",
    description: Annotated[str | None, typer.Option(help="What it is and what it is good for.")] = None,
    training_data: Annotated[
        str | None, typer.Option(help="What it learnt from; default: the packs of the run.")
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Default: that of the best F1 on held-out chips, else 0.5."),
    ] = None,
    mask_threshold: Annotated[int, typer.Option(min=1, max=255, help="Of 255.")] = 128,
    chip_px: Annotated[int | None, typer.Option(help="Side of a chip; default: as in training.")] = None,
    overlap_px: Annotated[int | None, typer.Option(help="Overlap of chips; default: a quarter.")] = None,
    views: Annotated[int, typer.Option(help="Views of a chip to average: 1, 2 or 4.")] = 1,
    scores: Annotated[
        Path | None,
        typer.Option(help="JSON list of name, value, data, command; default: held-out scores of the run."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
) -> None:
    """Turn a finished training into a model bundle that rtsmap predict takes.

    Example: rtsmap models publish run my-model --out my-model --licence "Apache-2.0, own labels"
    """
    from rtsmap.cli.console import tell
    from rtsmap.mm.publish import PublishOptions, publish
    from rtsmap.models import read_scores

    options = PublishOptions(
        licence=licence,
        version=version,
        stage=stage,
        description=description,
        training_data=training_data,
        score_threshold=score_threshold,
        mask_threshold=mask_threshold,
        chip_px=chip_px,
        overlap_px=overlap_px,
        views=views,
    )
    given = () if scores is None else read_scores(scores)
    card = publish(run, name, out or Path(name), options, scores=given, overwrite=overwrite)
    tell(
        f"{card.name} {card.version}: {card.parameters / 1e6:.2f} M parameters, "
        f"{card.weights_bytes / 2**20:.1f} MiB, score threshold {card.score_threshold:g}"
    )
    typer.echo(card.folder)
