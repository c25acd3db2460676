"""`rtsmap review`: what people think of footprints, written into the map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer


def app_with(guarded: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """The commands, each behind the error handler."""
    app = typer.Typer(no_args_is_help=True)
    app.callback()(_group)
    app.command("apply")(guarded(apply))
    return app


def _group() -> None:
    """Write reviews of footprints into a map."""


def apply(
    *,
    gpkg: Annotated[Path, typer.Argument(help="The map (.gpkg) whose report was reviewed; it is changed.")],
    review: Annotated[Path, typer.Argument(help="The file that the report's page saved (.json).")],
) -> None:
    """Write a review into the columns `review` and `review_comment` of a map's footprints.

    `review` is accepted, rejected or empty. Footprints that the review does not name keep what they have.
    Doing it twice changes nothing; a review with footprints of another map is refused.

    Example:
      rtsmap review apply slumps.gpkg slumps_review.json
    """
    from rtsmap.cli.console import tell
    from rtsmap.vectors.reviews import apply_review

    applied = apply_review(gpkg, review)
    for note in applied.notes:
        tell(f"Note: {note}")
    tell(
        f"{applied.accepted} accepted, {applied.rejected} rejected, {applied.undecided} undecided; "
        f"{applied.commented} with a comment"
    )
    typer.echo(gpkg)
