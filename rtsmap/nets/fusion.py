"""From several modalities with their validity to one pyramid of feature maps.

Every fusion has one signature: it is called with `inputs`, a mapping from modality name to
(pixels (B, C, H, W) normalised, valid (B, H, W) bool, True = data), and returns four maps; `channels`
and `strides` say which. So one backbone on stacked bands is the same kind of part as several
backbones whose pyramids are joined. Invalid pixels are set to zero here, whatever they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtsmap.nets.mvit import MViT, even_window, partition, unpartition

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


class DataLevel(nn.Module):
    """Data-level fusion: one backbone on the stacked bands and validity planes of all modalities."""

    def __init__(self, bands: Mapping[str, int], make_branch: BranchMaker, *, plane: bool = True) -> None:
        super().__init__()
        self.names = tuple(bands)
        self.plane = plane
        self.branch = make_branch(self.names[0], sum(bands.values()) + plane * len(bands))
        self.channels, self.strides = self.branch.channels, self.branch.strides

    def forward(self, inputs: Inputs) -> list[Tensor]:
        """Four maps, finest first."""
        stacked = [with_plane(*inputs[name], plane=self.plane) for name in self.names]
        maps: list[Tensor] = self.branch(torch.cat(stacked, dim=1))
        return maps


class ResidualCrossAttention(nn.Module):
    """The first modality asks, each other one answers, and the answer is added to the first's maps.

    One branch for each modality; at each level every auxiliary modality has a `CrossAttention`. Their
    output projections start at zero, so an untrained fusion gives exactly the first branch's maps.
    """

    def __init__(
        self,
        bands: Mapping[str, int],
        make_branch: BranchMaker,
        *,
        plane: bool = True,
        window: int = 8,
        head_dim: int = 32,
    ) -> None:
        super().__init__()
        self.names = tuple(bands)
        self.plane = plane
        self.branches = nn.ModuleDict(
            {name: make_branch(name, count + plane) for name, count in bands.items()}
        )
        lead = self._branch(self.names[0])
        self.channels, self.strides = lead.channels, lead.strides
        self.crossings = nn.ModuleDict()
        for name in self.names[1:]:
            levels = zip(self.channels, self._branch(name).channels, strict=True)
            self.crossings[name] = nn.ModuleList(
                CrossAttention(dim, dim_key, window=window, head_dim=head_dim) for dim, dim_key in levels
            )

    def _branch(self, name: str) -> MViT:
        return cast("MViT", self.branches[name])

    def forward(self, inputs: Inputs) -> list[Tensor]:
        """Four maps, finest first."""
        lead = self._branch_maps(self.names[0], inputs)
        fused = list(lead)
        for name in self.names[1:]:
            valid = inputs[name][1]
            if not valid.any():
                continue
            keys = self._branch_maps(name, inputs)
            for level, crossing in enumerate(self._crossings(name)):
                fused[level] = fused[level] + crossing(lead[level], keys[level], valid)
        return fused

    def _branch_maps(self, name: str, inputs: Inputs) -> list[Tensor]:
        maps: list[Tensor] = self.branches[name](with_plane(*inputs[name], plane=self.plane))
        return maps

    def _crossings(self, name: str) -> nn.ModuleList:
        return cast("nn.ModuleList", self.crossings[name])


class CrossAttention(nn.Module):
    """Attention from maps (B, dim, h, w) to maps (B, dim_key, h, w) of the same ground, in windows.

    The modalities lie on one grid, so what answers a query is near: windows of `window` tokens at every
    level, which at stride 32 is a whole chip. A learned bias for each relative position lets a query
    find its own place; it starts there, since uniform attention would blur what must be learned from.
    Keys with less than half their pixels valid are masked; a query without any valid key gets exactly zero.
    """

    def __init__(self, dim: int, dim_key: int, *, window: int, head_dim: int) -> None:
        super().__init__()
        self.heads = max(min(dim, dim_key) // head_dim, 1)
        inner = self.heads * head_dim
        self.window = window
        self.norm_q, self.norm_k = nn.LayerNorm(dim), nn.LayerNorm(dim_key)
        self.query = nn.Linear(dim, inner)
        self.key, self.value = nn.Linear(dim_key, inner), nn.Linear(dim_key, inner)
        self.project = nn.Linear(inner, dim)
        self.bias = nn.Parameter(_nearness(window).repeat(self.heads, 1, 1))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, asking: Tensor, answering: Tensor, valid: Tensor) -> Tensor:
        """What the answering maps add to the asking ones; `valid` (B, H, W) is in chip pixels."""
        q_map, k_map = asking.permute(0, 2, 3, 1), answering.permute(0, 2, 3, 1)
        _, height, width, _ = q_map.shape
        side = (even_window(height, self.window, 1), even_window(width, self.window, 1))
        q = self._windows(self.query(self.norm_q(q_map)), side)
        normed = self.norm_k(k_map)
        k, v = self._windows(self.key(normed), side), self._windows(self.value(normed), side)
        seen = functional.adaptive_avg_pool2d(valid[:, None].float(), (height, width)).permute(0, 2, 3, 1)
        seen = partition(seen, side).flatten(1) >= 0.5  # (B * n, tokens)
        answered = seen.any(dim=1)
        # A row of -inf only would give NaN: windows without a key look at all, and count for nothing.
        visible = seen | ~answered[:, None]
        bias = self._bias(side).to(q.dtype).masked_fill(~visible[:, None, None], float("-inf"))
        out = functional.scaled_dot_product_attention(q, k, v, bias)
        out = self.project(out.transpose(1, 2).flatten(2)) * answered[:, None, None]
        out = unpartition(out.reshape(-1, *side, out.shape[-1]), q_map.shape)
        return out.permute(0, 3, 1, 2)

    def _windows(self, tokens: Tensor, side: tuple[int, int]) -> Tensor:
        """(B, H, W, heads * d) to (B * n, heads, tokens of a window, d)."""
        windows = partition(tokens, side).flatten(1, 2)
        return windows.reshape(*windows.shape[:2], self.heads, -1).transpose(1, 2)

    def _bias(self, side: tuple[int, int]) -> Tensor:
        """Bias of each query and key of a window, (1, heads, n, n)."""
        rows = torch.arange(side[0], device=self.bias.device)
        cols = torch.arange(side[1], device=self.bias.device)
        row = rows[:, None, None, None] - rows[None, None, :, None] + self.window - 1
        col = cols[None, :, None, None] - cols[None, None, None, :] + self.window - 1
        n = side[0] * side[1]
        return self.bias[:, row, col].reshape(1, self.heads, n, n)


def _nearness(window: int) -> Tensor:
    """Minus half the squared distance in tokens for each relative position, (1, 2 w - 1, 2 w - 1)."""
    offset = torch.arange(2 * window - 1, dtype=torch.float32) - (window - 1)
    return -0.5 * (offset[:, None] ** 2 + offset[None, :] ** 2).clamp(max=32)[None]


FUSIONS: dict[str, Callable[..., Any]] = {
    "residual_cross_attention": ResidualCrossAttention,
    "data_level": DataLevel,
}
"""Fusions by the name that stands in model.json: (bands per modality, branch maker, plane=...) -> fusion."""
