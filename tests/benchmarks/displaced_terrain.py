"""What the networks of the benchmark of fusions find where terrain lies beside the imagery, or is missing.

    python -m tests.benchmarks.displaced_terrain RUN --packs PACKS --budget 8 --seeds 0 1 2

Simulated pairs match to the pixel; real imagery and elevation, of other sensors and laid on other models of
the ground, need not. No training is repeated: the networks are those that `fusions simulated` left in RUN.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rtsmap.mm.detector import MmDetector
from rtsmap.mm.register import build_network
from rtsmap.mm.samples import Sample, SampleOptions, make_sample
from rtsmap.mm.stages import averaged_weights
from rtsmap.rasters.chips import Layer
from tests.benchmarks import fusions


def displaced(sample: Sample, px: int) -> Sample:
    """The sample with terrain moved by `px` down and to the right; what it leaves is no data."""

    def moved(plane: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        result = np.zeros_like(plane)
        result[..., px:, px:] = plane[..., : plane.shape[-2] - px, : plane.shape[-1] - px]
        return result

    terrain = sample.layers["terrain"]
    return replace(
        sample, layers={**sample.layers, "terrain": Layer(moved(terrain.pixels), moved(terrain.valid))}
    )


def without_terrain(sample: Sample) -> Sample:
    """The sample with no terrain that is valid."""
    terrain = sample.layers["terrain"]
    nothing = Layer(np.zeros_like(terrain.pixels), np.zeros_like(terrain.valid))
    return replace(sample, layers={**sample.layers, "terrain": nothing})


LOOKS: dict[str, Callable[[Sample], Sample]] = {
    "as is": partial(displaced, px=0),
    "4 m beside": partial(displaced, px=1),
    "8 m beside": partial(displaced, px=2),
    "20 m beside": partial(displaced, px=5),
    "missing": without_terrain,
}
METHODS = tuple(method for method in fusions.METHODS[2:] if method not in fusions.ALONE)


def looks_of(job: fusions.Job, run: Path, packs: Path) -> dict[str, tuple[float, float]]:
    """AP50 and AP of a trained network in every look, kept beside its result."""
    kept = run / job.name / "displaced_terrain.json"
    if kept.exists():
        return {name: (ap50, ap) for name, (ap50, ap) in json.loads(kept.read_text()).items()}
    spec = fusions.spec_of(job)
    network = build_network(fusions.network_of(job), spec)
    network.load_state_dict(averaged_weights(run / job.name))
    detector = MmDetector(network.eval(), device="cpu")
    places = fusions.images_of(job, run, packs)[1]
    samples = [make_sample(image.read(window), spec, SampleOptions(), None) for image, window in places]
    truth, groups = fusions.truth_of(samples), [image.group for image, _ in places]
    found = {}
    for name, change in LOOKS.items():
        results = fusions.results_of(detector, [change(sample) for sample in samples])
        scores = fusions.scores_of([{"truth": truth, "groups": groups, "results": {"as_is": results}}])
        found[name] = (scores.ap50, scores.ap)
    kept.write_text(json.dumps(found))
    return found


def trained(run: Path, seeds: list[int], methods: list[str], budget: int) -> Iterator[fusions.Job]:
    """Trainings that are finished."""
    for job in fusions.jobs_of("simulated", seeds, methods, budget):
        if (run / job.name / "result.json").exists():
            yield job


def main() -> None:
    """Look with every network, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--budget", type=int, default=1)
    arguments = parser.parse_args()
    jobs = list(trained(arguments.run, arguments.seeds, arguments.methods, arguments.budget))
    console = Console(width=160)
    found: dict[str, list[dict[str, tuple[float, float]]]] = {}
    for job in track(jobs, "looking", console=console):
        found.setdefault(job.method, []).append(looks_of(job, arguments.run, arguments.packs))
    table = Table("method", "seeds", *LOOKS, title="AP50 (AP), mean over seeds, by where terrain lies")
    for method, of_seeds in found.items():
        means = {name: np.mean([looks[name] for looks in of_seeds], axis=0) for name in LOOKS}
        table.add_row(method, str(len(of_seeds)), *(f"{ap50:.3f} ({ap:.3f})" for ap50, ap in means.values()))
    console.print(table)


if __name__ == "__main__":
    main()
