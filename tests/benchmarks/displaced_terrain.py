"""What the networks of the benchmark of fusions find where terrain lies beside the imagery, or is missing.

    python -m tests.benchmarks.displaced_terrain RUN --packs PACKS --budget 8 --seeds 0 1 2
    python -m tests.benchmarks.displaced_terrain RUN --packs PACKS --budget 8 --tune-steps 440 --shift-m 8

Simulated pairs match to the pixel; real imagery and elevation, of other sensors and laid on other models of
the ground, need not. No training is repeated: the networks are those that `fusions simulated` left in RUN.
With `--tune-steps` each goes on for so many steps, at a fifth of the rate, on chips whose terrain lies beside
their imagery by `--shift-m` (standard deviation, down and across; 0 shows what more steps alone do).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rtsmap.mm.augment import AugmentOptions, displace
from rtsmap.mm.detector import MmDetector
from rtsmap.mm.register import SlumpNetwork, build_network
from rtsmap.mm.samples import Sample, SampleOptions, SampleSource, make_sample
from rtsmap.mm.stages import averaged_weights
from rtsmap.mm.train import seed_everything, train
from rtsmap.rasters.chips import Layer
from tests.benchmarks import fusions
from tests.benchmarks.fusion_figures import Looked


@dataclass(frozen=True, slots=True)
class Tuning:
    """More steps of a trained network, terrain beside imagery by `shift_m`."""

    steps: int
    shift_m: float

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"tuned_{self.steps}_beside_{self.shift_m:g}_m"


def displaced(sample: Sample, px: int) -> Sample:
    """The sample with terrain moved by `px` down and to the right; what it leaves is no data."""
    moved = displace(sample.layers["terrain"], px, px)
    return replace(sample, layers={**sample.layers, "terrain": moved})


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


def network_of(job: fusions.Job, run: Path) -> SlumpNetwork:
    """The network that a training left."""
    network = build_network(fusions.network_of(job), fusions.spec_of(job))
    network.load_state_dict(averaged_weights(run / job.name))
    return network


def tuned(job: fusions.Job, run: Path, packs: Path, tuning: Tuning) -> SlumpNetwork:
    """The network after more steps, with terrain beside imagery; what was begun goes on."""
    folder, options = run / job.name / tuning.name, fusions.options_of(job)
    options = replace(
        options, steps=tuning.steps, dense_only_steps=0, lr=options.lr / 5, seed=options.seed + 50_000
    )
    augment = AugmentOptions(dem_shift_sd_m=tuning.shift_m)
    chips = SampleOptions(chip_px=128, slump_share=0.5, zoom_sd=0.15, augment=augment)
    learnt = fusions.images_of(job, run, packs)[0]
    source = SampleSource([(1.0, learnt)], fusions.spec_of(job), chips, options.seed)
    seed_everything(options.seed)
    return train(network_of(job, run), source, options, folder)


def looks_of(
    job: fusions.Job, run: Path, packs: Path, tuning: Tuning | None
) -> dict[str, tuple[float, float]]:
    """AP50 and AP of a trained network in every look, kept beside its result."""
    kept = run / job.name / (tuning.name if tuning else "") / "displaced_terrain.json"
    if kept.exists():
        return {name: (ap50, ap) for name, (ap50, ap) in json.loads(kept.read_text()).items()}
    network = tuned(job, run, packs, tuning) if tuning else network_of(job, run)
    detector = MmDetector(network.eval(), device="cpu")
    spec, places = fusions.spec_of(job), fusions.images_of(job, run, packs)[1]
    samples = [make_sample(image.read(window), spec, SampleOptions(), None) for image, window in places]
    truth, groups = fusions.truth_of(samples), [image.group for image, _ in places]
    found = {}
    for name, change in LOOKS.items():
        results = fusions.results_of(detector, [change(sample) for sample in samples])
        figures = Looked.of(truth, results, groups).figures
        found[name] = (figures["AP50"], figures["AP"])
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
    parser.add_argument("--tune-steps", type=int, default=0)
    parser.add_argument("--shift-m", type=float, default=8.0)
    arguments = parser.parse_args()
    jobs = list(trained(arguments.run, arguments.seeds, arguments.methods, arguments.budget))
    tuning = Tuning(arguments.tune_steps, arguments.shift_m) if arguments.tune_steps else None
    console = Console(width=160)
    found: dict[str, list[dict[str, tuple[float, float]]]] = {}
    for job in track(jobs, "looking", console=console):
        found.setdefault(job.method, []).append(looks_of(job, arguments.run, arguments.packs, tuning))
    more = f"after {tuning.steps} steps with terrain beside by {tuning.shift_m:g} m, " if tuning else ""
    title = f"AP50 (AP), {more}mean over seeds, by where terrain lies"
    table = Table("method", "seeds", *LOOKS, title=title)
    for method, of_seeds in found.items():
        means = {name: np.mean([looks[name] for looks in of_seeds], axis=0) for name in LOOKS}
        table.add_row(method, str(len(of_seeds)), *(f"{ap50:.3f} ({ap:.3f})" for ap50, ap in means.values()))
    console.print(table)


if __name__ == "__main__":
    main()
