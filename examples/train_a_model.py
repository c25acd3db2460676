"""Train a tiny network on simulated scenes, publish it as a bundle, and map with it.

    python examples/train_a_model.py FOLDER [STEPS]

It takes minutes on a CPU, and what it finds is not worth having: the next step is the recipe `small`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import rtsmap
from rtsmap.mm.publish import PublishOptions, publish
from rtsmap.mm.recipe import Recipe, find_recipe
from rtsmap.mm.stages import run_recipe
from rtsmap.models import verify
from rtsmap.runs.chip_packs import PackOptions, pack
from rtsmap.simulate.scenes import write_scene


def main(folder: Path, steps: int = 100, size_px: int = 512) -> None:
    """Simulate two scenes, pack them, train, publish, map."""
    for seed in (1, 2):
        write_scene("training", seed, folder / f"{seed}", size_px=size_px, overwrite=True)
    for seed, name in ((1, "train"), (2, "held_out")):
        (packed,) = pack([folder / f"{seed}"], folder / f"{name}.pack", PackOptions(), overwrite=True)
        print(f"{packed.path.name}: {packed.slumps} slumps")

    settings = [
        f"data.groups.train.packs=['{folder / 'train.pack'}']",
        f"data.held_out.held_out=['{folder / 'held_out.pack'}']",
        *(f"stages.{stage}.steps={steps}" for stage in ("optical", "terrain", "fused")),
        f"stages.fused.dense_only_steps={steps // 5}",
        f"stages.fused.validate_every={steps}",
    ]
    run_recipe(Recipe.read(find_recipe("tiny"), settings), folder / "run")
    options = PublishOptions(licence="Apache-2.0: trained on simulated scenes only")
    card = publish(folder / "run", "mine", folder / "mine", options)
    verify(card)

    slumps = rtsmap.predict(folder / "2" / "scene.tif", folder / "2" / "dem.tif", model=card)
    print(f"{card.name} {card.version}: {len(slumps)} footprints")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
