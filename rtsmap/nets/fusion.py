"""From several modalities with their validity to one pyramid of feature maps.

Every fusion has one signature: it is called with `inputs`, a mapping from modality name to
(pixels (B, C, H, W) normalised, valid (B, H, W) bool, True = data), and returns four maps; `channels`
and `strides` say which. So one backbone on stacked bands is the same kind of part as several
backbones whose pyramids are joined. Invalid pixels are set to zero, whatever they hold.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rtsmap.nets.branches import Inputs
from rtsmap.nets.cross_attention import ResidualCrossAttention
from rtsmap.nets.rival_fusions import (
    DataLevel,
    cbam,
    convolution,
    cross_attention,
    self_attention,
    squeeze_excitation,
)

__all__ = ["FUSIONS", "Inputs", "fusion_options"]

FUSIONS: dict[str, Callable[..., Any]] = {
    "residual_cross_attention": ResidualCrossAttention,
    "data_level": DataLevel,
    "convolution": convolution,
    "squeeze_excitation": squeeze_excitation,
    "cbam": cbam,
    "cross_attention": cross_attention,
    "self_attention": self_attention,
}
"""Fusions by the name that stands in model.json: (bands per modality, branch maker, plane=..., options)."""


def fusion_options(name: str) -> dict[str, Any]:
    """The options that a fusion takes, with their defaults; `plane` is not among them."""
    parameters = inspect.signature(FUSIONS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "plane"}
