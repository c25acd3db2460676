"""`rtsmap models`: which models there are, what they are, and whether their files are whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

Model = Annotated[
    str | None, typer.Argument(help="Name of a shipped model or folder of a bundle; default: rts-starter.")
]


def app_with(guarded: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """The three commands, each behind the error handler."""
    app = typer.Typer(help="List, show and verify models.", no_args_is_help=True)
    for name, command in {"list": list_models, "show": show, "verify": verify}.items():
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
    """Check that a model's files are whole and are those its card was written for.

    Examples:
      rtsmap models verify
      rtsmap models verify path/to/bundle
    """
    from rtsmap.models import load_bundle

    card = load_bundle(model)
    typer.echo(f"{card.name} {card.version}: whole ({card.weights}, sha256 {card.sha256})")
