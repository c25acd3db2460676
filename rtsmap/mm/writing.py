"""Files of a training that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from rtsmap.errors import WriteError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to, which becomes `path` once all is on the disk.

    It is always the same name, so that no rest stays behind after a kill and a new start. Raises WriteError,
    mostly for want of space; what was at `path` stays then.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as exc:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch tells of its own counting, and what it was told by the file stands behind that
        reason = exc.__context__ if isinstance(exc.__context__, OSError) else exc
        raise WriteError(
            f"{path}: cannot be written ({reason}). Free some space, or name another place; then run the "
            "same command again"
        ) from exc
