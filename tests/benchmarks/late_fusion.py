"""Whether one network finds what another one misses: detections joined afterwards, nothing trained.

    python -m tests.benchmarks.late_fusion mars RUN --budget 4 --first "DEM only" --second "RGB only"

Detections of both, from the results that `fusions` left in RUN, are paired one to one, the surest of the
first choosing first among those of the second that overlap it (IoU over 0.3). A pair has the outline of the
first and the weighted mean of both scores; what has no partner has its score times its side's weight. Where
no weight scores more than the first alone, the second knows little that the first does not, and no fusion of
the two can be expected to gain much.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.benchmarks import fusions
from tests.benchmarks.fusion_figures import Looked, Record

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)
LEAST_IOU = 0.3
Found = Sequence[Mapping[str, Any]]


def joined(first: Found, second: Found, weight: float) -> list[dict[str, Any]]:
    """COCO results of both, of any images; `weight` is that of the second."""
    ours, theirs = _by_image(first), _by_image(second)
    found = []
    for image in ours.keys() | theirs.keys():
        mine = sorted(ours[image], key=lambda one: -one["score"])
        others = theirs[image]
        partners = _partners(mine, others)
        for one, partner in zip(mine, partners, strict=True):
            more = 0.0 if partner is None else others[partner]["score"]
            found.append({**one, "score": (1 - weight) * one["score"] + weight * more})
        alone = set(range(len(others))) - set(partners)
        found += [{**others[i], "score": weight * others[i]["score"]} for i in alone]
    return found


def _by_image(results: Found) -> defaultdict[int, list[Mapping[str, Any]]]:
    images: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for one in results:
        images[one["image_id"]].append(one)
    return images


def _partners(mine: Found, others: Found) -> list[int | None]:
    """Of each of mine, surest first, the surest of the others that overlaps it and is free."""
    if not mine or not others:
        return [None] * len(mine)
    shapes = [one["segmentation"] for one in mine], [one["segmentation"] for one in others]
    overlaps = np.asarray(coco_mask.iou(*shapes, [0] * len(others))) > LEAST_IOU
    scores = np.array([one["score"] for one in others])
    partners: list[int | None] = []
    for row in overlaps:
        best = int(np.argmax(scores * row))
        free = row[best] and scores[best] > 0
        partners.append(best if free else None)
        if free:
            overlaps[:, best] = False
    return partners


def parts_of(run: Path, data: str, method: str, seed: int, budget: int) -> list[dict[str, Any]]:
    """What the folds of a method left."""
    jobs = fusions.jobs_of(data, [seed], [method], budget)
    return [json.loads((run / job.name / "result.json").read_text()) for job in jobs]


def main() -> None:
    """Print AP50 and AP by weight, mean over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=fusions.STEPS)
    parser.add_argument("run", type=Path)
    parser.add_argument("--first", default="DEM only")
    parser.add_argument("--second", default="RGB only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", type=int, default=1)
    arguments = parser.parse_args()
    names = arguments.first, arguments.second
    console = Console()
    figures = defaultdict(list)
    for seed in arguments.seeds:
        both = [parts_of(arguments.run, arguments.data, name, seed, arguments.budget) for name in names]
        for weight in track(WEIGHTS, f"seed {seed}", console=console):
            together = [
                {
                    **one,
                    "results": {"as_is": joined(one["results"]["as_is"], other["results"]["as_is"], weight)},
                }
                for one, other in zip(*both, strict=True)
            ]
            looked = Looked.together([Record.of(part).looks["as_is"] for part in together])
            figures[weight].append((looked.figures["AP50"], looked.figures["AP"]))
    table = Table(f"weight of {names[1]}", "AP50", "AP", title=f"{names[0]}, joined with {names[1]}")
    for weight, of_seeds in figures.items():
        ap50, ap = np.mean(of_seeds, axis=0)
        table.add_row(f"{weight:g}", f"{ap50:.3f}", f"{ap:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
