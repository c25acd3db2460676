"""A network small enough to build and train within a test."""

from __future__ import annotations

import torch

from rtsmap.mm.register import Target, build_network
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec

SPEC = InputSpec(4.0, (OPTICAL_RGB, TERRAIN))
CONFIG = {
    "embed_dim": 16,
    "stage_blocks": [1, 1, 1, 1],
    "window": 16,
    "terrain.embed_dim": 8,
    "fpn_channels": 16,
    "anchor_px": [12, 24, 48, 96, 192],
    "box_fc_channels": 64,
    "mask_convs": 1,
    "mask_channels": 16,
    "rpn_proposals": 50,
    "rois_per_chip": 32,
}


def tiny_network(spec=SPEC, seed=0, **changes):
    torch.manual_seed(seed)
    return build_network(CONFIG | changes, spec)


def squares(count=3, side=64, seed=0):
    """Noise with one bright square a chip: (inputs, targets). The last chip has no terrain."""
    generator = torch.Generator().manual_seed(seed)
    optical = torch.randn(count, 3, side, side, generator=generator) * 0.3
    terrain = torch.randn(count, 3, side, side, generator=generator) * 0.3
    valid = torch.ones(count, side, side, dtype=torch.bool)
    missing = valid.clone()
    missing[-1] = False
    targets = []
    for chip in optical:
        size = int(torch.randint(14, 26, (1,), generator=generator))
        row, col = torch.randint(2, side - size - 2, (2,), generator=generator).tolist()
        mask = torch.zeros(1, side, side, dtype=torch.bool)
        mask[0, row : row + size, col : col + size] = True
        chip[:, mask[0]] += 3
        targets.append(Target(torch.tensor([[col, row, col + size, row + size]]).float(), mask))
    return {"optical": (optical, valid), "terrain": (terrain, missing)}, targets
