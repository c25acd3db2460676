"""A training that is killed at a step: run as a program by test_stages.py.

Arguments: folder of the packs, run directory, and after how many steps of all stages SIGKILL comes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from rtsmap.mm.stages import Teller, run_recipe
from tests.mm.small_recipes import recipe

if __name__ == "__main__":
    folder, run, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    seen = iter(range(1, last + 1))

    def deadly(_stage: str, done: int, _total: int) -> None:
        if done and next(seen) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    run_recipe(recipe(folder), run, tell=Teller(progress=deadly))
