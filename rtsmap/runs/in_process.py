"""Scenes computed in this process, so that Ctrl-C and errors reach it at once."""

from __future__ import annotations

from dataclasses import dataclass

from rtsmap.runs.workers import Done, Job, Tell, Worker


@dataclass(frozen=True, slots=True)
class InProcess:
    """One worker: this process."""

    wait: bool = True

    def run(self, job: Job, tell: Tell) -> Done:
        """Finish all scenes of the job; without `wait`, only what is free and not held by others."""
        return Worker(job).do(job, tell, wait=self.wait)
