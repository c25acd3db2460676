"""What residual cross-modality attention is compared with: the other ways to join modalities.

All but `DataLevel` join the maps of one backbone per modality, level by level, and start as close to the
leading modality's maps as their form permits, so that two-step training treats all alike. A cell that
a modality did not see is zero in its maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtsmap.nets.branches import Branches, BranchMaker, Inputs, seen_cells, with_plane
from rtsmap.nets.cross_attention import CrossAttention
from rtsmap.nets.mvit import even_window, partition, unpartition


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


class JoinMaker(Protocol):
    """Makes what joins the modalities' maps of one level, given their widths, the leading one first."""

    def __call__(self, widths: Sequence[int]) -> nn.Module:
        """A module: (maps, seen) -> map; `seen` holds (B, h, w) bool, True = the modality has data there."""
        ...


class FeatureLevel(nn.Module):
    """One backbone for each modality, and one joint at each level."""

    def __init__(
        self, bands: Mapping[str, int], make_branch: BranchMaker, make_join: JoinMaker, *, plane: bool
    ) -> None:
        super().__init__()
        self.branches = Branches(bands, make_branch, plane=plane)
        lead = self.branches.lead
        self.channels, self.strides = lead.channels, lead.strides
        levels = range(len(self.channels))
        self.joints = nn.ModuleList([make_join(self.branches.widths(level)) for level in levels])

    def forward(self, inputs: Inputs) -> list[Tensor]:
        """Four maps, finest first."""
        names = self.branches.names
        pyramids = [self.branches.maps(name, inputs) for name in names]
        fused = []
        for level, joint in enumerate(self.joints):
            maps = [pyramid[level] for pyramid in pyramids]
            size = (maps[0].shape[-2], maps[0].shape[-1])
            seen = [seen_cells(inputs[name][1], size) for name in names]
            # The leading map stays whole: its backbone was told where it saw nothing.
            others = [m * s[:, None] for m, s in zip(maps[1:], seen[1:], strict=True)]
            fused.append(joint([maps[0], *others], seen))
        return fused


def convolution(bands: Mapping[str, int], make_branch: BranchMaker, *, plane: bool = True) -> nn.Module:
    """Maps stacked on channels, then a 3 x 3 convolution to the leading width."""
    return FeatureLevel(bands, make_branch, _Convolution, plane=plane)


def squeeze_excitation(
    bands: Mapping[str, int], make_branch: BranchMaker, *, plane: bool = True, reduction: int = 8
) -> nn.Module:
    """Stacked channels weighted by a gate that sees their means (Hu et al. 2018, arXiv 1709.01507)."""
    return FeatureLevel(bands, make_branch, lambda widths: _Gated(widths, reduction), plane=plane)


def cbam(
    bands: Mapping[str, int], make_branch: BranchMaker, *, plane: bool = True, reduction: int = 8
) -> nn.Module:
    """Channel gate, then a gate for each place (Woo et al. 2018, arXiv 1807.06521), on stacked maps."""
    return FeatureLevel(bands, make_branch, lambda widths: _Gated(widths, reduction, 7), plane=plane)


def cross_attention(
    bands: Mapping[str, int],
    make_branch: BranchMaker,
    *,
    plane: bool = True,
    window: int = 8,
    head_dim: int = 32,
) -> nn.Module:
    """The leading maps ask, and the answers take their place: cross-attention without a residual."""
    return FeatureLevel(
        bands, make_branch, lambda widths: _CrossAttention(widths, window, head_dim), plane=plane
    )


def self_attention(
    bands: Mapping[str, int],
    make_branch: BranchMaker,
    *,
    plane: bool = True,
    window: int = 8,
    head_dim: int = 32,
) -> nn.Module:
    """The tokens of all modalities in one sequence, attending to each other, then projected together."""
    return FeatureLevel(
        bands, make_branch, lambda widths: _SelfAttention(widths, window, head_dim), plane=plane
    )


class _Convolution(nn.Module):
    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.mix = _passing_lead(nn.Conv2d(sum(widths), widths[0], 3, padding=1))

    def forward(self, maps: Sequence[Tensor], _seen: Sequence[Tensor]) -> Tensor:
        mixed: Tensor = self.mix(torch.cat(list(maps), dim=1))
        return mixed


class _Gated(nn.Module):
    """Gates for channels and, where `place_kernel` is given, for places; then a 1 x 1 convolution."""

    def __init__(self, widths: Sequence[int], reduction: int, place_kernel: int = 0) -> None:
        super().__init__()
        total = sum(widths)
        hidden = max(total // reduction, 4)
        self.channel = nn.Sequential(nn.Linear(total, hidden), nn.ReLU(), nn.Linear(hidden, total))
        padding = place_kernel // 2
        self.place = nn.Conv2d(2, 1, place_kernel, padding=padding) if place_kernel else None
        self.mix = _passing_lead(nn.Conv2d(total, widths[0], 1))

    def forward(self, maps: Sequence[Tensor], _seen: Sequence[Tensor]) -> Tensor:
        stacked = torch.cat(list(maps), dim=1)
        gate = self.channel(stacked.mean((2, 3)))
        if self.place is not None:
            gate = gate + self.channel(stacked.amax((2, 3)))
        # Twice a sigmoid is 1 where the gate has no opinion, which leaves the maps as they are.
        stacked = stacked * (2 * gate.sigmoid())[:, :, None, None]
        if self.place is not None:
            summary = torch.stack([stacked.mean(1), stacked.amax(1)], dim=1)
            stacked = stacked * (2 * self.place(summary).sigmoid())
        mixed: Tensor = self.mix(stacked)
        return mixed


class _CrossAttention(nn.Module):
    """Means of what the other modalities answer; the leading map where none of them saw anything."""

    def __init__(self, widths: Sequence[int], window: int, head_dim: int) -> None:
        super().__init__()
        self.crossings = nn.ModuleList(
            CrossAttention(widths[0], other, window=window, head_dim=head_dim, silent=False)
            for other in widths[1:]
        )

    def forward(self, maps: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
        lead, *others = maps
        answers = torch.zeros_like(lead)
        count = torch.zeros_like(lead[:, :1])
        for crossing, other, here in zip(self.crossings, others, seen[1:], strict=True):
            weight = here[:, None].to(lead.dtype)
            answers = answers + crossing(lead, other, here) * weight
            count = count + weight
        return torch.where(count > 0, answers / count.clamp(min=1), lead)


class _SelfAttention(nn.Module):
    """Joint attention in windows over the tokens of all modalities, each keeping its own by a skip."""

    def __init__(self, widths: Sequence[int], window: int, head_dim: int) -> None:
        super().__init__()
        dim = widths[0]
        self.window, self.heads = window, math.gcd(dim, max(dim // head_dim, 1))
        self.enter = nn.ModuleList(
            nn.Identity() if i == 0 else nn.Conv2d(width, dim, 1) for i, width in enumerate(widths)
        )
        self.kind = nn.Parameter(torch.zeros(len(widths), dim))
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.near = nn.Parameter(torch.ones(self.heads))
        self.leave = _passing_lead(nn.Conv2d(len(widths) * dim, dim, 1))

    def forward(self, maps: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
        _, _, height, width = maps[0].shape
        side = (even_window(height, self.window, 1), even_window(width, self.window, 1))
        entered = [enter(m).permute(0, 2, 3, 1) for enter, m in zip(self.enter, maps, strict=True)]
        windows = torch.stack([partition(tokens, side).flatten(1, 2) for tokens in entered], dim=1)
        known = torch.stack([partition(s[..., None].float(), side).flatten(1) > 0 for s in seen], dim=1)
        attended = windows + self._attend(windows, known, side)
        shape = entered[0].shape
        back = [unpartition(part.reshape(-1, *side, shape[-1]), shape) for part in attended.unbind(1)]
        left: Tensor = self.leave(torch.cat(back, dim=-1).permute(0, 3, 1, 2))
        return left

    def _attend(self, windows: Tensor, known: Tensor, side: tuple[int, int]) -> Tensor:
        """(B * n, modalities, tokens, dim) to the same shape."""
        count, kinds, tokens, dim = windows.shape
        normed = self.norm(windows + self.kind[:, None]).flatten(1, 2)
        qkv = self.qkv(normed).reshape(count, kinds * tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        visible = known.flatten(1)
        visible = visible | ~visible.any(dim=1, keepdim=True)
        bias = -self.near[None, :, None, None] * _half_squares(side, windows.device).repeat(kinds, kinds)
        bias = bias.masked_fill(~visible[:, None, None], float("-inf"))
        out = functional.scaled_dot_product_attention(query, key, value, bias)
        projected: Tensor = self.project(out.transpose(1, 2).reshape(windows.shape))
        return projected


def _half_squares(side: tuple[int, int], device: torch.device) -> Tensor:
    """Half the squared distance between the tokens of a window, at most 16, (n, n)."""
    rows, cols = torch.meshgrid(*(torch.arange(n, device=device) for n in side), indexing="ij")
    places = torch.stack([rows.flatten(), cols.flatten()], dim=1).float()
    return (torch.cdist(places, places) ** 2 / 2).clamp(max=16)


def _passing_lead(mix: nn.Conv2d) -> nn.Conv2d:
    """Start a convolution as one that hands on its first channels and takes a hundredth of the others."""
    with torch.no_grad():
        mix.weight *= 0.01
        if mix.bias is not None:
            nn.init.zeros_(mix.bias)
        middle = mix.kernel_size[0] // 2
        lead = range(mix.out_channels)
        mix.weight[lead, lead, middle, middle] += 1
    return mix
