"""Packs what the starter model learns from: simulated scenes, and labelled real chips where they are at hand.

    python examples/pack_training_data.py PACKS --scenes 60
    python examples/pack_training_data.py PACKS --scenes 0 --chips CHIPS_FOLDER

CHIPS_FOLDER holds `images/`, `coco_train.json`, `coco_val.json` and `overlap_groups.json` (lists of file
names that show common ground). Chips of one group stay together: a tenth of the groups goes to
`real_dev.pack`. Scenes with seeds from 9000 on are for watching the training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from rtsmap.mm.packs import TrainingImage, write_pack
from rtsmap.mm.splits import is_held_out
from rtsmap.runs.packing import training_image
from rtsmap.simulate.scenes import write_scene

RESOLUTION_M = 4.0
WATCHED_SEEDS = (9000, 9001)


def main() -> None:
    """Pack scenes and chips; what is there is not made again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packs", type=Path)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--chips", type=Path)
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.scenes)
    for seed in (*(WATCHED_SEEDS if arguments.scenes else ()), *seeds):
        path = arguments.packs / "training" / f"{seed}.pack"
        if not path.exists():
            write_pack(path, [simulated_image(seed)])
            print(path, flush=True)
    if arguments.chips:
        pack_chips(arguments.chips, arguments.packs)


def simulated_image(seed: int) -> TrainingImage:
    """One scene, simulated, written, and read again as `predict` would."""
    with tempfile.TemporaryDirectory() as folder:
        made = write_scene("training", seed, Path(folder))
        return training_image(
            made.scene,
            made.dem,
            made.truth,
            RESOLUTION_M,
            group=f"training-{seed}",
            lookalikes=made.lookalikes,
        )


def pack_chips(chips: Path, packs: Path) -> None:
    """Real chips: validation chips as published, training chips split by group."""
    groups = {
        name: f"group {number}"
        for number, names in enumerate(json.loads((chips / "overlap_groups.json").read_text()))
        for name in names
    }
    training = list(labelled_chips(chips, "train", groups))
    write_pack(packs / "real_val.pack", labelled_chips(chips, "val", groups))
    write_pack(packs / "real_dev.pack", [chip for chip in training if is_held_out(chip.group)])
    write_pack(packs / "real_train.pack", [chip for chip in training if not is_held_out(chip.group)])


def labelled_chips(chips: Path, split: str, groups: dict[str, str]) -> Iterator[TrainingImage]:
    """Chips with label numbers, largest slump first."""
    document = json.loads((chips / f"coco_{split}.json").read_text())
    rings: dict[int, list[list[list[float]]]] = {}
    for annotation in sorted(document["annotations"], key=lambda a: -a["area"]):
        rings.setdefault(annotation["image_id"], []).append(annotation["segmentation"])
    for image in document["images"]:
        name = image["file_name"]
        pixels = np.asarray(Image.open(chips / "images" / name).convert("RGB")).transpose(2, 0, 1)
        labels = np.zeros(pixels.shape[1:], np.int16)
        for number, polygons in enumerate(rings.get(image["id"], []), start=1):
            labels[burned(polygons, labels.shape)] = number
        yield TrainingImage(
            name, groups.get(name, name), pixels, np.ones(labels.shape, np.bool_), labels, None
        )


def burned(polygons: list[list[float]], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Pixels of a COCO segmentation."""
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))
    return np.asarray(coco_mask.decode(runs), np.bool_)


if __name__ == "__main__":
    main()
