"""What was found on chips so far, beside the results to be: a command that was stopped goes on from there.

A journal is lines of JSON: first what was asked, as a hash, then for each chip its id and its COCO results.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rtsmap.errors import InputError

JOURNAL = ".unfinished.jsonl"
"""What is put behind the stem of the results."""

Results = Sequence[Mapping[str, Any]]


class ChipJournal:
    """The journal of the results `out`; `found` are those of chips that were seen, by image id.

    What lies there is taken over if it was asked the same, which plain data `asked` says, and begun anew
    otherwise (`was_of_another`). A last line that was not written to its end counts as none.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any]) -> None:
        self.path = out.with_name(out.stem + JOURNAL)
        self.found: dict[int, Results] = {}
        self.was_of_another = False
        told = json.dumps(asked, sort_keys=True)
        head = _line({"asked": hashlib.sha256(told.encode()).hexdigest()})
        try:
            kept = self.path.read_bytes() if self.path.exists() else b""
            whole = kept[: kept.rfind(b"\n") + 1]
            if whole.startswith(head):
                self.found = _entries(whole[len(head) :])
                os.truncate(self.path, len(whole))
            else:
                self.was_of_another = bool(kept)
                self.path.write_bytes(head)
        except OSError as exc:
            raise InputError(
                f"{self.path}: cannot be written: {exc.strerror}; what is found is kept there until the "
                "results are written"
            ) from exc

    def add(self, found: Mapping[int, Results]) -> None:
        """Keep what was found on more chips; it is on disk when this returns."""
        self.found.update(found)
        with self.path.open("ab") as file:
            file.writelines(
                _line({"image_id": image_id, "results": list(results)}) for image_id, results in found.items()
            )
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The results are written."""
        self.path.unlink(missing_ok=True)


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _entries(lines: bytes) -> dict[int, Results]:
    entries = map(json.loads, lines.splitlines())
    return {entry["image_id"]: entry["results"] for entry in entries}
