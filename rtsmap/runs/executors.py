"""Where the scenes of a run are computed.

An executor keeps workers busy on a job until its scenes are finished: in this process (`in_process`), in
processes of this machine (`processes`), or on a Dask cluster (`on_dask`). Workers share nothing but the run
directory, which is why an executor sends no more than the directories' names, and why a job array needs none.
"""

from __future__ import annotations

from typing import Protocol

from rtsmap.runs.workers import Done, Job, Tell


class Executor(Protocol):
    """Keeps workers busy."""

    def run(self, job: Job, tell: Tell) -> Done:
        """Finish all scenes of the job that can be finished; `tell` is called from this thread."""
        ...
