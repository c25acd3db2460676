"""Recipes of a few steps, for the tests of training."""

from __future__ import annotations

from rtsmap.mm.packs import write_pack
from rtsmap.mm.recipe import Recipe
from tests.mm.labelled import labelled_image

NETWORK = {
    "embed_dim": 8,
    "stage_blocks": [1, 1, 1, 1],
    "window": 16,
    "drop_path": 0.2,
    "fpn_channels": 16,
    "mask_channels": 16,
    "mask_convs": 1,
    "box_fc_channels": 32,
    "rois_per_chip": 16,
    "rpn_proposals": 30,
    "terrain": {"embed_dim": 16},
}


def recipe_data(folder, **changes):
    """Two unimodal stages, then a fused one on frozen backbones; packs are written into `folder`."""
    if not (folder / "train.pack").exists():
        write_pack(folder / "train.pack", [labelled_image(i, terrain=i < 2) for i in range(3)])
        write_pack(folder / "held_out.pack", [labelled_image(7)])
    options = {"batch_size": 1, "log_every": 1, "keep_every": 2, "warmup_steps": 2, "lr": 1e-3}
    data = {
        "seed": 3,
        "device": "cpu",
        "data": {
            "groups": {"train": {"packs": [str(folder / "train*.pack")]}},
            "held_out": {"watched": [str(folder / "held_out.pack")]},
        },
        "chips": {"chip_px": 64},
        "network": NETWORK,
        "training": options,
        "stages": {
            "optical": {"kind": "unimodal", "modality": "optical", "loss": "pixels", "steps": 3},
            "terrain": {"kind": "unimodal", "modality": "terrain", "loss": "pixels", "steps": 2},
            "fused": {
                "kind": "multimodal",
                "backbones": "frozen",
                "steps": 3,
                "accumulate": 2,
                "validate_every": 2,
            },
        },
    }
    return {**data, **changes}


def recipe(folder, **changes) -> Recipe:
    return Recipe.from_dict(recipe_data(folder, **changes))
