"""Residual cross-modality attention (Li et al. 2025, arXiv 2504.17822), and attention across modalities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rtsmap.nets.branches import Branches, BranchMaker, Inputs, seen_cells
from rtsmap.nets.mvit import Mlp, even_window, partition, unpartition

ALL_LEVELS = (4, 8, 16, 32)

Seen = tuple[Tensor, Tensor]
"""A map (B, C, h, w) and which chip pixels its modality saw (B, H, W) bool, True = data."""


class ResidualCrossAttention(nn.Module):
    """The first modality asks, each other one answers, and the answer is added to the first's maps.

    One branch for each modality; at each fused level every auxiliary modality has a `CrossAttention`.
    What is added starts at zero, so an untrained fusion gives exactly the first branch's maps.

    The paper's text leaves open what these choose: `levels`, the strides at which modalities meet;
    `mutual`, whether the others also ask the first, and what they learn is added through a projection;
    `residual_to` 'lead' or 'sum', whether the answers are added to the first's maps or to the (projected)
    sum of all; `interleaved`, whether the first backbone goes on from what its stages were answered, so that
    the later ones see all modalities, too; `key_pool`, by how many cells a side the answering maps are
    averaged before they answer; `mlp_ratio`, above 0, has a small network of so many times the width look at
    each fused cell that another modality saw, as transformers have it after attention.
    """

    def __init__(
        self,
        bands: Mapping[str, int],
        make_branch: BranchMaker,
        *,
        plane: bool = True,
        window: int = 8,
        head_dim: int = 32,
        levels: Sequence[int] = ALL_LEVELS,
        mutual: bool = False,
        residual_to: str = "lead",
        interleaved: bool = False,
        key_pool: int = 1,
        mlp_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        if residual_to not in {"lead", "sum"}:
            raise ValueError(f"residual_to must be 'lead' or 'sum', got {residual_to!r}")
        self.branches = Branches(bands, make_branch, plane=plane)
        lead = self.branches.lead
        self.channels, self.strides = lead.channels, lead.strides
        self.levels = tuple(levels)
        if not self.levels or not set(self.levels) <= set(self.strides):
            raise ValueError(f"levels must be among the strides {list(self.strides)}, got {list(levels)}")
        self.mutual, self.residual_to, self.interleaved = mutual, residual_to, interleaved
        self.crossings, self.returns, self.projections = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for name in self.branches.names[1:]:
            pairs = list(zip(self.channels, self.branches.branch(name).channels, strict=True))

            def crossing(asking: int, answering: int) -> CrossAttention:
                return CrossAttention(asking, answering, window=window, head_dim=head_dim, key_pool=key_pool)

            self.crossings[name] = self._at_levels(crossing(dim, other) for dim, other in pairs)
            if mutual:
                self.returns[name] = self._at_levels(crossing(other, dim) for dim, other in pairs)
            if mutual or residual_to == "sum":
                self.projections[name] = self._at_levels(_silent(other, dim) for dim, other in pairs)
        mixes = mlp_ratio > 0 and len(self.branches.names) > 1
        mixers = (_Mixer(dim, mlp_ratio) for dim in self.channels)
        self.mixers = self._at_levels(mixers) if mixes else None

    def _at_levels(self, modules: Iterable[nn.Module]) -> nn.ModuleList:
        """Modules of the fused levels; nothing at the others."""
        pairs = zip(self.strides, modules, strict=True)
        return nn.ModuleList([part if stride in self.levels else nn.Identity() for stride, part in pairs])

    def forward(self, inputs: Inputs) -> list[Tensor]:
        """Four maps, finest first."""
        lead_name, *others = self.branches.names
        seen = {name: self.branches.maps(name, inputs) for name in others if inputs[name][1].any()}

        def meet(level: int, lead: Tensor) -> Tensor:
            """What all others add to the leading map of a level."""
            asking = lead, inputs[lead_name][1]
            answers = [
                self._answer(name, level, asking, (maps[level], inputs[name][1]))
                for name, maps in seen.items()
                if self.strides[level] in self.levels
            ]
            return sum(answers, torch.zeros_like(lead))

        if self.interleaved:
            fused = self.branches.maps(lead_name, inputs, meet)
        else:
            alone = self.branches.maps(lead_name, inputs)
            fused = [lead + meet(level, lead) for level, lead in enumerate(alone)]
        if self.mixers is not None:
            met = torch.stack([inputs[name][1] for name in others]).any(dim=0)
            fused = [
                mix(cells, met) if isinstance(mix, _Mixer) else cells
                for cells, mix in zip(fused, self.mixers, strict=True)
            ]
        return fused

    def _answer(self, name: str, level: int, lead: Seen, other: Seen) -> Tensor:
        """What modality `name` adds to the leading map at a level."""
        answer: Tensor = _part(self.crossings, name, level)(lead[0], *other)
        answering, valid = other
        if self.mutual:
            answering = answering + _part(self.returns, name, level)(answering, *lead)
        if self.mutual or self.residual_to == "sum":
            seen = seen_cells(valid, (answering.shape[-2], answering.shape[-1]))[:, None]
            answer = answer + _part(self.projections, name, level)(answering) * seen
        return answer


class _Mixer(nn.Module):
    """What a small network adds to each fused cell; nothing at first."""

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, max(int(dim * mlp_ratio), 1))
        nn.init.zeros_(self.mlp.fc2.weight)
        nn.init.zeros_(self.mlp.fc2.bias)

    def forward(self, cells: Tensor, met: Tensor) -> Tensor:
        """Cells (B, C, h, w), changed only where at least half their pixels are `met` (B, H, W) True."""
        added: Tensor = self.mlp(self.norm(cells.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return cells + added * seen_cells(met, (cells.shape[-2], cells.shape[-1]))[:, None]


def _part(parts: nn.ModuleDict, name: str, level: int) -> nn.Module:
    return cast("nn.ModuleList", parts[name])[level]


def _silent(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 1 x 1 projection that starts at zero."""
    project = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    nn.init.zeros_(project.weight)
    return project


class CrossAttention(nn.Module):
    """Attention from maps (B, dim, h, w) to maps (B, dim_key, h, w) of the same ground, in windows.

    The modalities lie on one grid, so what answers a query is near: windows of `window` tokens at every
    level, which at stride 32 is a whole chip. A learned bias for each relative position lets a query
    find its own place; it starts there, since uniform attention would blur what must be learned from.
    Keys with less than half their pixels valid are masked; a query without any valid key gets exactly zero.
    `silent` starts the output projection at zero.
    """

    def __init__(
        self,
        dim: int,
        dim_key: int,
        *,
        window: int,
        head_dim: int,
        key_pool: int = 1,
        silent: bool = True,
    ) -> None:
        super().__init__()
        self.heads = max(min(dim, dim_key) // head_dim, 1)
        inner = self.heads * head_dim
        self.window, self.key_pool = window, key_pool
        self.norm_q, self.norm_k = nn.LayerNorm(dim), nn.LayerNorm(dim_key)
        self.query = nn.Linear(dim, inner)
        self.key, self.value = nn.Linear(dim_key, inner), nn.Linear(dim_key, inner)
        self.project = nn.Linear(inner, dim)
        self.reach = -(-window // key_pool) * key_pool
        self.bias = nn.Parameter(nearness(self.reach).repeat(self.heads, 1, 1))
        if silent:
            nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, asking: Tensor, answering: Tensor, valid: Tensor) -> Tensor:
        """What the answering maps add to the asking ones; `valid` (B, H, W) is in chip pixels."""
        q_map, k_map = asking.permute(0, 2, 3, 1), answering.permute(0, 2, 3, 1)
        _, height, width, _ = q_map.shape
        rows, cols = (even_window(length, self.window, self.key_pool) for length in (height, width))
        queries = self._heads(partition(self.query(self.norm_q(q_map)), (rows, cols)))
        seen = seen_cells(valid, (height, width))[..., None].to(q_map.dtype)
        tokens = partition(self.norm_k(k_map), (rows, cols))
        tokens, seen = self._pooled(tokens, partition(seen, (rows, cols)))
        answered = seen.any(dim=1)
        # A row of -inf only would give NaN: windows without a key look at all, and count for nothing.
        visible = seen | ~answered[:, None]
        bias = self._bias(rows, cols).to(queries.dtype)
        bias = bias.masked_fill(~visible[:, None, None], float("-inf"))
        keys, values = self._heads(self.key(tokens)), self._heads(self.value(tokens))
        out = functional.scaled_dot_product_attention(queries, keys, values, bias)
        out = self.project(out.transpose(1, 2).flatten(2)) * answered[:, None, None]
        out = unpartition(out.reshape(-1, rows, cols, out.shape[-1]), q_map.shape)
        return out.permute(0, 3, 1, 2)

    def _heads(self, windows: Tensor) -> Tensor:
        """(B * n, h, w, heads * d) to (B * n, heads, h * w, d)."""
        tokens = windows.flatten(1, 2)
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

    def _pooled(self, windows: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the seen tokens of each cell of `key_pool` a side, and which cells saw any."""
        side = self.key_pool
        if side == 1:
            return windows, seen.flatten(1) > 0
        shape = windows.shape[0], windows.shape[1] // side, side, windows.shape[2] // side, side, -1
        weight = seen.reshape(shape).sum((2, 4))
        total = (windows * seen).reshape(shape).sum((2, 4))
        return total / weight.clamp(min=1), weight.flatten(1) > 0

    def _bias(self, rows: int, cols: int) -> Tensor:
        """Bias of each query and key of a window, (1, heads, queries, keys)."""
        row, col = self._offsets(rows), self._offsets(cols)
        bias = self.bias[:, row[:, None, :, None], col[None, :, None, :]]
        return bias.reshape(1, self.heads, rows * cols, -1)

    def _offsets(self, length: int) -> Tensor:
        """Index into the table along one axis, (queries, keys); a pooled key stands at its cell's middle."""
        asking = torch.arange(length, device=self.bias.device)
        answering = torch.arange(self.key_pool // 2, length, self.key_pool, device=self.bias.device)
        return asking[:, None] - answering[None, :] + self.reach - 1


def nearness(window: int) -> Tensor:
    """Minus half the squared distance in tokens for each relative position, (1, 2 w - 1, 2 w - 1)."""
    offset = torch.arange(2 * window - 1, dtype=torch.float32) - (window - 1)
    return -0.5 * (offset[:, None] ** 2 + offset[None, :] ** 2).clamp(max=32)[None]
