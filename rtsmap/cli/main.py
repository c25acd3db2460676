"""The `rtsmap` command: what commands there are, and the one place where errors become exit codes.

Nothing heavy is imported here or at the top of a command's module, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from rtsmap import __version__
from rtsmap.cli import (
    demo,
    doctor,
    evaluate,
    export,
    info,
    merge,
    models,
    pack,
    plan,
    predict,
    report,
    review,
    runs,
    simulate,
    tile,
    train,
    work,
)
from rtsmap.cli.console import log_to_stderr, tell_error
from rtsmap.cli.exits import BUG, FAILED, INTERRUPTED
from rtsmap.errors import RtsmapError
from rtsmap.garbage import collect_seldom

app = typer.Typer(
    name="rtsmap",
    help="Map retrogressive thaw slumps from an optical scene and an elevation model.",
    epilog="Start with: rtsmap predict SCENE.tif --dem DEM.tif",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rtsmap {__version__}")
        raise typer.Exit


@app.callback()
def _before_every_command(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, metavar="", help="Show the version."
        ),
    ] = False,
) -> None:
    log_to_stderr()


_NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_NO_PLACE |= {errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
"""Errors of the place that is written to, a file where a folder should be too: nothing that rtsmap could
know better."""
_MORE_PLACE = "Free some space, or name a place that can be written to; then run the same command again"
_A_FOLDER = "A folder is wanted there: name another one, or move the file away"
_CURES = {
    errno.ENAMETOOLONG: "Choose a shorter one",
    errno.EEXIST: _A_FOLDER,
    errno.ENOTDIR: _A_FOLDER,
}


def raise_bug(exc: Exception) -> NoReturn:
    """Leave with a traceback and a plea."""
    traceback.print_exception(exc)
    tell_error(
        f"this is a bug of rtsmap ({type(exc).__name__}), not a mistake of yours. Please report it "
        "with the lines above and the output of `rtsmap doctor`"
    )
    raise typer.Exit(BUG) from exc


def _strip_types_of_flags(command: Callable[..., None]) -> None:
    """Flags take no value, but some versions of typer show `<bool>` beside them."""
    # evaluated once and kept, or typer would see annotations of its own
    command.__annotations__ = get_type_hints(command, include_extras=True)
    for hint in command.__annotations__.values():
        base, *extras = get_args(hint) or (hint,)
        if base in {bool, bool | None}:
            for extra in extras:
                if isinstance(extra, OptionInfo) and extra.metavar is None:
                    extra.metavar = ""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with errors turned into messages and exit codes, and flags without a type in its help."""
    _strip_types_of_flags(command)

    @wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except RtsmapError as exc:
            tell_error(str(exc))
            raise typer.Exit(FAILED) from exc
        except OSError as exc:
            # that the reader of a pipe has gone (`| head`) is typer's to deal with
            if isinstance(exc, BrokenPipeError):
                raise
            if exc.errno not in _NO_PLACE:
                raise_bug(exc)
            cure = _CURES.get(exc.errno, _MORE_PLACE)
            tell_error(f"{exc.filename or 'a file'}: {exc.strerror}. {cure}")
            raise typer.Exit(FAILED) from exc
        except Exception as exc:
            # what typer raises to leave a command knows its own exit code
            if hasattr(exc, "exit_code"):
                raise
            raise_bug(exc)

    return call


for _module in (info, predict, plan, work, merge, tile, export, report, simulate, pack, train, demo, doctor):
    app.command(_module.__name__.rpartition(".")[2])(guarded(_module.command))

app.add_typer(evaluate.app_with(guarded), name="evaluate")
app.add_typer(runs.app_with(guarded), name="runs")
app.add_typer(models.app_with(guarded), name="models")
app.add_typer(review.app_with(guarded), name="review")


def run() -> None:
    """Entry point of the `rtsmap` script."""
    collect_seldom()
    app()
