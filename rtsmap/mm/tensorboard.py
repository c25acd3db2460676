"""The logs of a training once more as TensorBoard reads them, with the optional package `tensorboard`.

The rows of `log.jsonl` and `validation.jsonl` are the record. A stage that is started again writes its
events anew from them, so that a killed training leaves neither gaps nor steps that were done twice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtsmap.errors import OptionsError
from rtsmap.mm.train import read_rows

FOLDER = "tensorboard"
_EVENTS = "events.out.tfevents.*"


def check_tensorboard() -> None:
    """Raise OptionsError where the package is missing, before anything is trained."""
    if importlib.util.find_spec("tensorboard") is None:
        raise OptionsError(
            "logs for TensorBoard need the package tensorboard: pip install 'rtsmap[tensorboard]', "
            "or leave --tensorboard out; log.csv and curves.png are written in any case"
        )


@dataclass(frozen=True, slots=True)
class Events:
    """Rows of one stage as scalars by step; made by `open_events`."""

    writer: Any

    def add(self, group: str, row: Mapping[str, float]) -> None:
        """Write the numbers of a row, which has a `step`, as GROUP/NAME."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(f"{group}/{name}", value, int(row["step"]))

    def close(self) -> None:
        """Write what is not written yet."""
        self.writer.close()


def open_events(run: Path, stage: str, steps_done: int) -> Events:
    """The events of a stage in RUN/tensorboard/STAGE, which hold what is logged up to `steps_done`."""
    from torch.utils.tensorboard import SummaryWriter

    folder = run / FOLDER / stage
    for path in folder.glob(_EVENTS):
        path.unlink()
    events = Events(SummaryWriter(str(folder)))
    for group, name in (("train", "log.jsonl"), ("held_out", "validation.jsonl")):
        for row in read_rows(run / stage / name):
            if row["step"] <= steps_done:
                events.add(group, row)
    return events
