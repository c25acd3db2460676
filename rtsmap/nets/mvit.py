"""MViTv2 for detection: a vision transformer that halves its resolution and doubles its width in stages.

Paper: Li et al. 2022, "MViTv2: Improved Multiscale Vision Transformers for Classification and
Detection" (arXiv 2112.01526). Checked against timm's `mvitv2_*`; the detection layout (windows, global
last blocks, wider key strides there) follows detectron2's `modeling/backbone/mvit.py`, with one change:
windows share the map evenly and their padding is not seen, where detectron2 pads to whole windows and
lets queries look at the zeros; on maps of whole windows the two are the same. Parameters carry the
official names (`blocks.3.attn.pool_q.weight`), so that official checkpoints fit as they are.
Feature maps are kept as (B, H, W, C); outputs are (B, C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rtsmap.nets.guide import ConvGuide

Layout = Literal["detection", "classification"]
Stem = Literal["patches", "convolutions"]
STEMS: tuple[str, ...] = get_args(Stem)
Guide = Literal["none", "mobilenet_v2"]
GUIDES: tuple[str, ...] = get_args(Guide)

LN_EPS = 1e-6

BLIND = -1e4
"""Added to the score of padding: its weight after softmax is exactly zero, also in half precision."""

STAGES = 4

GUIDE_STRIDE = 4
"""Stride of the finest map of a guide."""


@dataclass(frozen=True, slots=True)
class MViTSize:
    """What distinguishes one MViTv2 from another. Width and heads double from stage to stage."""

    embed_dim: int
    num_heads: int
    stage_blocks: tuple[int, int, int, int]
    drop_path: float


PRESETS: dict[str, MViTSize] = {
    "tiny": MViTSize(96, 1, (1, 2, 5, 2), 0.2),
    "small": MViTSize(96, 1, (1, 2, 11, 2), 0.2),
    "base": MViTSize(96, 1, (2, 3, 16, 3), 0.4),
    "large": MViTSize(144, 2, (2, 6, 36, 4), 0.5),
}
"""The published sizes; drop path as used for detection."""


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Numbers of one block. `window` is in tokens of the block's input, 0 means global attention."""

    dim: int
    dim_out: int
    heads: int
    stride_q: int
    stride_kv: int
    window: int
    table_size: int
    drop_path: float
    stage: int


def plan_blocks(
    size: MViTSize, *, layout: Layout, window: int, kv_stride: int, table_size: int
) -> tuple[BlockPlan, ...]:
    """Numbers of every block, first to last.

    `table_size` is the side of the first stage's token map that the relative position tables are made
    for (56 for 224 px chips at stride 4).
    """
    total = sum(size.stage_blocks)
    plans: list[BlockPlan] = []
    dim = size.embed_dim
    for stage, count in enumerate(size.stage_blocks):
        for i in range(count):
            entering, last = i == 0 and stage > 0, i == count - 1
            stride_kv = max(kv_stride >> stage, 1)
            # Detection looks globally once a stage, with twice the key stride to bear the cost.
            global_block = layout == "classification" or (last and stage > 0)
            doubled = layout == "detection" and last and 0 < stage < STAGES - 1
            side = table_size >> (stage - entering)
            stride_kv = stride_kv * 2 if doubled else stride_kv
            plans.append(
                BlockPlan(
                    dim=dim,
                    dim_out=size.embed_dim << stage,
                    heads=size.num_heads << stage,
                    stride_q=2 if entering else 1,
                    stride_kv=stride_kv,
                    window=0 if global_block else max(window >> (stage - entering), 1),
                    table_size=2 * max(side // (2 if entering else 1), side // stride_kv) - 1,
                    drop_path=size.drop_path * len(plans) / max(total - 1, 1),
                    stage=stage,
                )
            )
            dim = size.embed_dim << stage
    return tuple(plans)


class PatchEmbed(nn.Module):
    """Overlapping patches: (B, C, H, W) to (B, H/stride, W/stride, dim), rounded up."""

    def __init__(self, in_chans: int, dim: int, kernel: int = 7, stride: int = 4) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding=kernel // 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels to tokens."""
        tokens: Tensor = self.proj(pixels)
        return tokens.permute(0, 2, 3, 1)


class ConvStem(nn.Module):
    """Convolutions in the place of patches: the same tokens, from a learned hierarchy of small kernels.

    Xiao et al. 2021, "Early Convolutions Help Transformers See Better" (arXiv 2106.14881): without
    pre-training a transformer learns sooner this way. Halves the resolution until `stride` is reached;
    two residual blocks follow.
    """

    def __init__(self, in_chans: int, dim: int, stride: int) -> None:
        super().__init__()
        halvings = stride.bit_length() - 1
        if stride != 1 << halvings:
            raise ValueError(f"a stem of convolutions needs a stride that is a power of two, got {stride}")
        layers: list[nn.Module] = []
        width = in_chans
        for left in reversed(range(halvings)):
            wider = max(dim >> left, 8)
            layers += [*_convolved(width, wider, 2), *_convolved(wider, wider, 1)]
            width = wider
        self.layers = nn.Sequential(*layers, ConvBlock(width), ConvBlock(width), nn.Conv2d(width, dim, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels to tokens."""
        tokens: Tensor = self.layers(pixels)
        return tokens.permute(0, 2, 3, 1)


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions whose result is added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_convolved(width, width, 1), *_convolved(width, width, 1)[:-1])

    def forward(self, pixels: Tensor) -> Tensor:
        """The same shape."""
        return functional.gelu(pixels + self.layers(pixels))


def _convolved(width: int, wider: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(width, wider, 3, stride, padding=1, bias=False)
    return [conv, nn.GroupNorm(math.gcd(wider, 8), wider), nn.GELU()]


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Each token by itself."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return out


class PooledAttention(nn.Module):
    """Attention whose q, k and v are pooled by depth-wise convolutions, with relative positions."""

    def __init__(self, plan: BlockPlan) -> None:
        super().__init__()
        head_dim = plan.dim_out // plan.heads
        self.heads, self.head_dim = plan.heads, head_dim
        self.window, self.stride_q, self.stride_kv = plan.window, plan.stride_q, plan.stride_kv
        self.qkv = nn.Linear(plan.dim, plan.dim_out * 3)
        self.proj = nn.Linear(plan.dim_out, plan.dim_out)
        self.pool_q = _pool_conv(head_dim, plan.stride_q)
        self.pool_k = _pool_conv(head_dim, plan.stride_kv)
        self.pool_v = _pool_conv(head_dim, plan.stride_kv)
        self.norm_q = nn.LayerNorm(head_dim, eps=LN_EPS)
        self.norm_k = nn.LayerNorm(head_dim, eps=LN_EPS)
        self.norm_v = nn.LayerNorm(head_dim, eps=LN_EPS)
        self.rel_pos_h = nn.Parameter(torch.zeros(plan.table_size, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(plan.table_size, head_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, dim) to (B, H', W', dim_out), halved where stride_q is 2."""
        batch, height, width, _ = tokens.shape
        # (B, H, W, 3 * dim) -> 3 x (B * heads, H, W, head_dim)
        qkv = self.qkv(tokens).reshape(batch, height, width, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).reshape(3, batch * self.heads, height, width, -1)
        q = _pool(q, self.pool_q, self.norm_q)
        k = _pool(k, self.pool_k, self.norm_k)
        v = _pool(v, self.pool_v, self.norm_v)
        out = q + (self._windowed(q, k, v) if self.window else self._attend(q, k, v, None))
        # residual pooling above; (B * heads, H', W', head_dim) -> (B, H', W', dim)
        out = out.reshape(batch, self.heads, *out.shape[1:]).permute(0, 2, 3, 1, 4)
        projected: Tensor = self.proj(out.flatten(3))
        return projected

    def _windowed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention within windows of equal size that share the map evenly."""
        unit = max(self.stride_kv, self.stride_q)
        side_h = even_window(q.shape[1] * self.stride_q, self.window, unit)
        side_w = even_window(q.shape[2] * self.stride_q, self.window, unit)
        q_size = (side_h // self.stride_q, side_w // self.stride_q)
        kv_size = (side_h // self.stride_kv, side_w // self.stride_kv)
        blind = _blind_keys(k, kv_size)
        out = self._attend(
            partition(q, q_size), partition(k, kv_size), partition(v, kv_size), blind, windowed=True
        )
        return unpartition(out, q.shape)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, blind: Tensor | None, *, windowed: bool = False
    ) -> Tensor:
        """softmax(q k / sqrt(d) + q R_h + q R_w) v for maps (B, h, w, d); `blind` keys (B, n) see none."""
        (_, height, width, dim), (batch, rows, cols, _) = q.shape, k.shape
        rel_h = relative_positions(self.rel_pos_h, height, rows, exact=windowed)
        rel_w = relative_positions(self.rel_pos_w, width, cols, exact=windowed)
        # The bias of key (i, j) is one number for its row plus one for its column: appended to q, they
        # meet one-hot rows and columns appended to k, and no attention matrix is ever built.
        bias_h = torch.einsum("bhwc,hkc->bhwk", q, rel_h)
        bias_w = torch.einsum("bhwc,wkc->bhwk", q, rel_w)
        row_of = torch.eye(rows, device=q.device, dtype=k.dtype)[:, None].expand(rows, cols, rows)
        col_of = torch.eye(cols, device=q.device, dtype=k.dtype)[None].expand(rows, cols, cols)
        places = torch.cat([row_of, col_of], dim=-1).expand(batch, rows, cols, rows + cols)
        asking = [q * dim**-0.5, bias_h, bias_w]
        answering = [k, places]
        if blind is not None:
            asking.append(torch.ones_like(q[..., :1]))
            answering.append(blind.reshape(batch, rows, cols, 1).to(k.dtype) * BLIND)
        long_q, long_k = torch.cat(asking, dim=-1), torch.cat(answering, dim=-1)
        # the fast kernels want values as long as queries
        long_v = functional.pad(v, (0, long_q.shape[-1] - dim))
        long_q, long_k, long_v = (t.flatten(1, 2)[:, None] for t in (long_q, long_k, long_v))
        out = functional.scaled_dot_product_attention(long_q, long_k, long_v, scale=1.0)
        return out[:, 0, :, :dim].reshape(q.shape)


def _pool_conv(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


def _pool(heads: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """Depth-wise convolution and LayerNorm of a map (B, H, W, C)."""
    pooled: Tensor = norm(conv(heads.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    return pooled


def even_window(length: int, window: int, unit: int) -> int:
    """Side of equal windows, at most about `window` and a multiple of `unit`, that share `length` tokens."""
    count = -(-length // window)
    return -(-length // (count * unit)) * unit


def partition(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut (B, H, W, C) into windows (B * n, h, w, C), padded with zeros at the lower right."""
    batch, height, width, channels = tokens.shape
    (h, w), rows, cols = size, -(-height // size[0]), -(-width // size[1])
    if rows == cols == 1 and (h, w) == (height, width):
        return tokens
    tokens = functional.pad(tokens, (0, 0, 0, cols * w - width, 0, rows * h - height))
    tokens = tokens.reshape(batch, rows, h, cols, w, channels).transpose(2, 3)
    return tokens.reshape(batch * rows * cols, h, w, channels)


def unpartition(windows: Tensor, shape: Sequence[int]) -> Tensor:
    """Put windows together again and cut the padding off; `shape` is the map's (B, H, W, C)."""
    batch, height, width, _ = shape
    _, h, w, channels = windows.shape
    rows, cols = -(-height // h), -(-width // w)
    tokens = windows.reshape(batch, rows, cols, h, w, channels).transpose(2, 3)
    return tokens.reshape(batch, rows * h, cols * w, channels)[:, :height, :width]


def _blind_keys(keys: Tensor, size: tuple[int, int]) -> Tensor | None:
    """True for padded keys of each window, (B * n, h * w); None where nothing is padded."""
    batch, height, width, _ = keys.shape
    if height % size[0] == 0 and width % size[1] == 0:
        return None
    real = partition(keys.new_ones(1, height, width, 1), size).flatten(1) > 0
    return ~real.repeat(batch, 1)


def relative_positions(table: Tensor, q_size: int, k_size: int, *, exact: bool) -> Tensor:
    """Rows of a relative position table for each query and key of one axis: (q, k, C).

    A table of another length is interpolated, as published; `exact` takes its middle instead where it
    is long enough, so that a distance of n tokens means the same in windows of every size.
    """
    length = 2 * max(q_size, k_size) - 1
    if exact and len(table) > length:
        start = (len(table) - length) // 2
        table = table[start : start + length]
    elif len(table) != length:
        table = functional.interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T
    q_step, k_step = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    q_at = torch.arange(q_size, device=table.device)[:, None] * q_step
    k_at = torch.arange(k_size, device=table.device)[None, :] * k_step
    return table[(q_at - k_at + (k_size - 1) * k_step).long()]


class Block(nn.Module):
    """LayerNorm, pooled attention, LayerNorm, MLP; the first block of a stage widens and halves."""

    def __init__(self, plan: BlockPlan, mlp_ratio: float) -> None:
        super().__init__()
        self.stride_q, self.drop_path = plan.stride_q, plan.drop_path
        self.norm1 = nn.LayerNorm(plan.dim, eps=LN_EPS)
        self.attn = PooledAttention(plan)
        self.norm2 = nn.LayerNorm(plan.dim_out, eps=LN_EPS)
        self.mlp = Mlp(plan.dim_out, int(plan.dim_out * mlp_ratio))
        self.proj = nn.Linear(plan.dim, plan.dim_out) if plan.dim != plan.dim_out else None

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, dim) to (B, H', W', dim_out)."""
        normed = self.norm1(tokens)
        skip = tokens if self.proj is None else self.proj(normed)
        if self.stride_q > 1:
            skip = functional.max_pool2d(skip.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
        tokens = skip + self._dropped(self.attn(normed))
        return tokens + self._dropped(self.mlp(self.norm2(tokens)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """Drop the branch of some samples in training (stochastic depth), keeping its expectation."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        kept = branch.new_empty(len(branch), 1, 1, 1).bernoulli_(keep)
        return branch * (kept / keep)


Meeting = Callable[[int, Tensor], Tensor]
"""From the number of a stage and its map (B, C, h, w) to what another modality has to say to it, as large."""


class MViT(nn.Module):
    """(B, in_chans, H, W) of any H, W to four maps (B, C, h, w) at strides 4, 8, 16 and 32.

    `window` is in tokens of the first stage. `layout="classification"` has no windows and no doubled
    key strides: the published ImageNet network, whose feature maps timm gives too. Then, with `norms`
    off, the maps are the raw outputs of the stages. `stem="convolutions"` and `guide="mobilenet_v2"`, whose
    maps are added to the tokens at the end of each stage, are ours, for small networks that no one has
    pre-trained. Where `recompute` is set, training keeps no more than the input of each block and computes
    the block once more on the way back: the same gradients with less memory and more time.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 96,
        num_heads: int = 1,
        stage_blocks: tuple[int, int, int, int] = (1, 2, 5, 2),
        drop_path: float = 0.0,
        window: int = 56,
        kv_stride: int = 4,
        patch_stride: int = 4,
        mlp_ratio: float = 4.0,
        table_px: int = 224,
        stem: Stem = "patches",
        guide: Guide = "none",
        layout: Layout = "detection",
        norms: bool = True,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads or min(stage_blocks) < 1:
            raise ValueError(
                f"MViT: embed_dim {embed_dim} must be a multiple of num_heads {num_heads}, "
                f"and every stage needs a block, got {stage_blocks}"
            )
        size = MViTSize(embed_dim, num_heads, stage_blocks, drop_path)
        plans = plan_blocks(
            size,
            layout=layout,
            window=window,
            kv_stride=kv_stride,
            table_size=max(table_px // patch_stride, 8),
        )
        self.in_chans, self.recompute = in_chans, False
        self.channels = tuple(embed_dim << stage for stage in range(STAGES))
        self.strides = tuple(patch_stride << stage for stage in range(STAGES))
        self.patch_embed: nn.Module
        if stem == "convolutions":
            self.patch_embed = ConvStem(in_chans, embed_dim, patch_stride)
        else:
            self.patch_embed = PatchEmbed(in_chans, embed_dim, 2 * patch_stride - 1, patch_stride)
        self.blocks = nn.ModuleList(Block(plan, mlp_ratio) for plan in plans)
        self.ends = tuple(sum(stage_blocks[: stage + 1]) - 1 for stage in range(STAGES))
        for stage, channels in enumerate(self.channels if norms else ()):
            self.add_module(f"scale{stage + 2}_norm", nn.LayerNorm(channels, eps=LN_EPS))
        self.norms = norms
        self.apply(_initialise)
        if guide != "none" and patch_stride != GUIDE_STRIDE:
            raise ValueError(f"a guide needs patch_stride {GUIDE_STRIDE}, got {patch_stride}")
        self.guide = ConvGuide(in_chans, self.channels) if guide != "none" else None

    def forward(self, pixels: Tensor, meet: Meeting | None = None) -> list[Tensor]:
        """Four maps, finest first; what `meet` answers to the map of a stage is added before the next one."""
        tokens = self.patch_embed(pixels)
        guided = self.guide(pixels) if self.guide is not None else []
        maps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if self.recompute and self.training and torch.is_grad_enabled():
                # the state of the random numbers is kept along, so that the same paths are dropped
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if index in self.ends:
                if guided:
                    tokens = tokens + guided[len(maps)].permute(0, 2, 3, 1)
                if meet is not None:
                    tokens = tokens + meet(len(maps), self._map(len(maps), tokens)).permute(0, 2, 3, 1)
                maps.append(self._map(len(maps), tokens))
        return maps

    def _map(self, stage: int, tokens: Tensor) -> Tensor:
        """The map (B, C, h, w) of a stage from its tokens (B, h, w, C)."""
        out: Tensor = getattr(self, f"scale{stage + 2}_norm")(tokens) if self.norms else tokens
        return out.permute(0, 3, 1, 2)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
