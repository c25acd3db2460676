"""What people see while a command runs: messages, notes and progress, all on stderr.

stdout carries results only, so that commands can be piped.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def tell_error(message: str) -> None:
    """Print an error message on one line, so that paths in it can be copied; in colour where there is one."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)


def tell(message: str) -> None:
    """Print a note for people."""
    from rich.console import Console

    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)


class _Lines(logging.Handler):
    """Prints the library's log records as plain lines, above a progress bar where one is running."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: "
        text = prefix + record.getMessage()
        # a running rich progress redirects sys.stderr, so this line does not tear it
        print(text, file=sys.stderr)  # noqa: T201 - this is the console


def log_to_stderr() -> None:
    """Show what the library logs from INFO on."""
    logger = logging.getLogger("rtsmap")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) that draws one bar a stage while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    bars = Progress(*columns, console=Console(stderr=True))
    stages: dict[str, int] = {}

    def show(stage: str, done: int, total: int) -> None:
        if not stages:
            # not before, or an error that comes first would stand below an empty line
            bars.start()
        if stage not in stages:
            stages[stage] = int(bars.add_task(stage, total=total))
        bars.update(stages[stage], completed=done, total=total)  # type: ignore[arg-type]

    try:
        yield show
    finally:
        if stages:
            bars.stop()
