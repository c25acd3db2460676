"""`rtsmap runs`: how far runs are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from rtsmap.cli.inputs import RunArgument


def show(
    *,
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show how far a run is: shards, failures, who is at work, speed and time left.

    Examples:
      rtsmap runs show map.rtsrun
      watch -n 60 rtsmap runs show shared/run
    """
    from rtsmap.runs.run_folders import standing

    found = standing(run)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
        return
    for line in found.lines():
        typer.echo(line)


def app_with(guarded: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """The group of commands, each guarded."""
    app = typer.Typer(no_args_is_help=True, help="How far runs are.")
    app.command("show")(guarded(show))
    # with one command only, typer would leave out its name
    app.callback()(lambda: None)
    return app
