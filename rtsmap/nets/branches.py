"""What every fusion is made of: its inputs with their validity, and one backbone for each modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtsmap.nets.mvit import Meeting, MViT

Inputs = Mapping[str, tuple[Tensor, Tensor]]
"""Modality name to (pixels (B, C, H, W), valid (B, H, W))."""


class BranchMaker(Protocol):
    """Makes the backbone of one modality; a fusion decides how many channels it must take."""

    def __call__(self, name: str, in_chans: int) -> MViT:
        """The backbone of modality `name` with `in_chans` input channels."""
        ...


def with_plane(pixels: Tensor, valid: Tensor, *, plane: bool = True) -> Tensor:
    """Pixels with zeros where invalid, and the validity as one more channel: (B, C + 1, H, W)."""
    mask = valid[:, None]
    pixels = torch.where(mask, pixels, torch.zeros_like(pixels))
    return torch.cat([pixels, mask.to(pixels.dtype)], dim=1) if plane else pixels


def seen_cells(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells of a map of this size with at least half their pixels valid: (B, h, w) bool."""
    return functional.adaptive_avg_pool2d(valid[:, None].float(), size)[:, 0] >= 0.5


class Branches(nn.ModuleDict):
    """One backbone for each modality; the first modality leads."""

    def __init__(self, bands: Mapping[str, int], make_branch: BranchMaker, *, plane: bool) -> None:
        super().__init__({name: make_branch(name, count + plane) for name, count in bands.items()})
        self.names, self.plane = tuple(bands), plane

    def branch(self, name: str) -> MViT:
        """The backbone of a modality."""
        return cast("MViT", self[name])

    @property
    def lead(self) -> MViT:
        """The backbone of the first modality, whose widths the fused maps have."""
        return self.branch(self.names[0])

    def widths(self, level: int) -> tuple[int, ...]:
        """Channels of each modality's map at this level, the leading one first."""
        return tuple(self.branch(name).channels[level] for name in self.names)

    def maps(self, name: str, inputs: Inputs, meet: Meeting | None = None) -> list[Tensor]:
        """Four maps of one modality, finest first; see `MViT.forward`."""
        maps: list[Tensor] = self[name](with_plane(*inputs[name], plane=self.plane), meet)
        return maps
