"""How large the numbers of a model.json may be, so that a stranger's bundle cannot exhaust memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rtsmap.errors import CardError, WeightsError

_RANGES: Mapping[str, tuple[float, float]] = {
    # tables of relative positions have (2 window)^2 numbers a head, those of the backbone 2 window
    "fusion.window": (1, 64),
    "fusion.mlp_ratio": (0, 16),
    "head_dim": (4, 1024),
    "key_pool": (1, 64),
    "reduction": (1, 1024),
    "embed_dim": (8, 512),
    "num_heads": (1, 64),
    "stage_blocks": (1, 128),
    "window": (1, 4096),
    "drop_path": (0, 0.95),
    "mlp_ratio": (0.1, 16),
    "patch_stride": (1, 64),
    "table_px": (16, 8192),
    "enlarge": (0.05, 16),
    "fpn_channels": (4, 2048),
    "anchor_px": (1, 16384),
    "finest_roi_px": (1, 4096),
    "box_convs": (0, 16),
    "box_fc_channels": (4, 8192),
    "mask_convs": (0, 16),
    "mask_channels": (4, 2048),
    "mask_px": (2, 512),
    "rpn_convs": (1, 16),
    "rpn_proposals": (1, 20_000),
    "rois_per_chip": (1, 20_000),
    "cascade_iou": (0, 1),
    "cascade_weights": (0, 1000),
    "min_score": (0, 1),
    "nms_iou": (0, 1),
    "max_per_chip": (1, 20_000),
}
_ANY = (-1, 65_536)
_LONGEST_LIST = 64


def check_numbers(config: Mapping[str, Any]) -> None:
    """Raise CardError for a number of model.json beyond what any network of ours could use."""
    for key, value in config.items():
        if isinstance(value, (list, tuple)) and len(value) > _LONGEST_LIST:
            raise CardError(f"model.json: '{key}' is a list of {len(value)}, wanted at most {_LONGEST_LIST}")
        low, high = _RANGES.get(key) or _RANGES.get(key.rpartition(".")[2], _ANY)
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, (int, float)) and not low <= number <= high:
                raise CardError(f"model.json: '{key}' must be within {low:g}..{high:g}, got {number}")


def check_size(config: Mapping[str, Any], weights_bytes: int) -> None:
    """Raise WeightsError where `config` asks for more parameters than a weights file of that size can hold.

    Reckoned is a lower bound of the backbones alone: one square matrix a block.
    """
    parts = {key.rpartition(".")[0] for key in config}
    least = sum(_least_parameters(config, part) for part in parts - {"fusion"})
    if least > weights_bytes:
        raise WeightsError(
            f"model.json asks for a network of over {least / 1e6:.0f} million parameters, but the weights "
            f"are {weights_bytes / 1e6:.1f} MB: they do not belong together"
        )


def _least_parameters(config: Mapping[str, Any], part: str) -> int:
    def number(name: str, default: Any) -> Any:
        return config.get(f"{part}.{name}", config.get(name, default))

    width, blocks = number("embed_dim", 32), number("stage_blocks", (1, 1, 2, 1))
    if not isinstance(width, int) or not isinstance(blocks, (list, tuple)):
        return 0
    return sum(
        int(count) * (width << stage) ** 2
        for stage, count in enumerate(blocks)
        if isinstance(count, int) and math.isfinite(count)
    )
