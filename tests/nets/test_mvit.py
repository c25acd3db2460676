from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.mvitv2 import checkpoint_filter_fn

from rtsmap.nets.mvit import PRESETS, Block, MViT, MViTSize, even_window, partition, plan_blocks, unpartition

SMALL = {"embed_dim": 16, "stage_blocks": (1, 1, 2, 1), "window": 8, "table_px": 64}


def random_tables(module):
    """Relative positions start at zero or tiny: make them matter."""
    for name, parameter in module.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def official_names(weights, stage_blocks):
    """timm groups blocks by stage; the published names count them through."""
    first = [sum(stage_blocks[:stage]) for stage in range(4)]
    renamed = {}
    for name, value in weights.items():
        if name.startswith("stages."):
            _, stage, _, block, rest = name.split(".", 4)
            rest = rest.replace("shortcut_proj_attn", "proj")
            renamed[f"blocks.{first[int(stage)] + int(block)}.{rest}"] = value
        elif name.startswith("patch_embed"):
            renamed[name] = value
    return renamed


@pytest.mark.parametrize(("preset", "px"), [("tiny", 224), ("tiny", 160), ("small", 160), ("base", 160)])
def test_equals_timm_with_the_same_weights(preset, px):
    torch.manual_seed(0)
    size = PRESETS[preset]
    trained = random_tables(timm.create_model(f"mvitv2_{preset}"))
    theirs = trained
    if px != 224:
        theirs = timm.create_model(f"mvitv2_{preset}", img_size=px).eval()
        theirs.load_state_dict(checkpoint_filter_fn(trained.state_dict(), theirs))
    ours = MViT(
        embed_dim=size.embed_dim,
        num_heads=size.num_heads,
        stage_blocks=size.stage_blocks,
        layout="classification",
        norms=False,
    ).eval()
    ours.load_state_dict(official_names(trained.state_dict(), size.stage_blocks))
    pixels = torch.randn(1, 3, px, px)
    with torch.no_grad():
        wanted = theirs.forward_intermediates(pixels, intermediates_only=True)
        got = ours(pixels)
    for ours_map, their_map in zip(got, wanted, strict=True):
        assert their_map.abs().max() > 1
        torch.testing.assert_close(ours_map, their_map, atol=1e-4, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_any_size_and_aspect_gives_four_maps_rounded_up(height, width):
    torch.manual_seed(0)
    net = MViT(**SMALL).eval()
    with torch.no_grad():
        maps = net(torch.randn(1, 3, height, width))
    for out, channels, stride in zip(maps, net.channels, net.strides, strict=True):
        assert tuple(out.shape) == (1, channels, -(-height // stride), -(-width // stride))
        assert torch.isfinite(out).all()


def test_every_parameter_learns():
    torch.manual_seed(0)
    net = random_tables(MViT(**SMALL)).train()
    sum(out.square().mean() for out in net(torch.randn(2, 3, 70, 50))).backward()
    idle = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a key's own bias shifts all scores of a query alike, so softmax does not see it
    assert not [n for n in idle if "norm_k.bias" not in n]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 20), st.integers(1, 20))
def test_windows_put_together_are_the_map(height, width, h, w):
    tokens = torch.arange(2 * height * width * 3.0).reshape(2, height, width, 3)
    assert torch.equal(unpartition(partition(tokens, (h, w)), tokens.shape), tokens)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.sampled_from([1, 2, 4]))
def test_even_windows_share_the_map_without_a_whole_window_of_padding(length, window, unit):
    side = even_window(length, window, unit)
    count = -(-length // window)
    assert side % unit == 0
    assert side * count >= length
    assert side < -(-length // count) + unit


@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 22), (7, 5)])
def test_window_attention_is_attention_within_each_window_and_padding_is_not_seen(height, width):
    torch.manual_seed(0)
    plan = plan_blocks(
        MViTSize(16, 2, (1, 1, 1, 1), 0.0), layout="detection", window=8, kv_stride=2, table_size=16
    )[0]
    attention = random_tables(Block(plan, 4.0)).attn
    q = torch.randn(2, height, width, 8)
    k, v = (torch.randn(2, -(-height // 2), -(-width // 2), 8) for _ in range(2))
    h, w = (even_window(n, 8, 2) for n in (height, width))
    wanted = torch.empty_like(q)
    for row in range(0, height, h):
        for col in range(0, width, w):
            keys = (slice(None), slice(row // 2, (row + h) // 2), slice(col // 2, (col + w) // 2))
            rows, cols = slice(row, row + h), slice(col, col + w)
            wanted[:, rows, cols] = plain_attention(attention, q[:, rows, cols], k[keys], v[keys], (h, w))
    with torch.no_grad():
        torch.testing.assert_close(attention._windowed(q, k, v), wanted, atol=1e-5, rtol=0)


def plain_attention(attention, q, k, v, window):
    """The formula, written out pair by pair: keys stand every 2 tokens."""
    out = torch.zeros_like(q)
    middle = len(attention.rel_pos_h) // 2
    reach = window[0] // 2 - 1, window[1] // 2 - 1
    with torch.no_grad():
        for y in range(q.shape[1]):
            for x in range(q.shape[2]):
                one = q[:, y, x]
                scores = torch.empty(len(q), k.shape[1], k.shape[2])
                for ky in range(k.shape[1]):
                    for kx in range(k.shape[2]):
                        dy, dx = y - 2 * ky + 2 * reach[0], x - 2 * kx + 2 * reach[1]
                        h = attention.rel_pos_h[dy + middle - window[0] + 1]
                        w = attention.rel_pos_w[dx + middle - window[1] + 1]
                        scores[:, ky, kx] = (one * k[:, ky, kx]).sum(1) / 8**0.5 + one @ h + one @ w
                weights = scores.flatten(1).softmax(1).reshape(scores.shape)
                out[:, y, x] = torch.einsum("bhw,bhwc->bc", weights, v)
    return out


def test_detection_attends_globally_once_a_stage_with_wider_key_strides_there():
    plans = plan_blocks(PRESETS["tiny"], layout="detection", window=56, kv_stride=4, table_size=56)
    assert [i for i, plan in enumerate(plans) if plan.window == 0] == [2, 7, 9]
    assert [plan.window for plan in plans[:6]] == [56, 56, 0, 28, 14, 14]
    assert [plan.stride_kv for plan in plans] == [4, 2, 4, 1, 1, 1, 1, 2, 1, 1]
    # lengths of the published tables
    assert [plan.table_size for plan in plans] == [111, 55, 55, 55, 27, 27, 27, 27, 27, 13]


def test_stochastic_depth_keeps_the_expectation_and_rests_in_evaluation():
    torch.manual_seed(0)
    net = MViT(**SMALL, drop_path=0.5)
    block = net.blocks[-1]
    ones = torch.ones(4000, 1, 1, 1)
    assert abs(block.train()._dropped(ones).mean().item() - 1) < 0.1
    assert torch.equal(block.eval()._dropped(ones), ones)


def test_an_impossible_network_is_refused():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        MViT(embed_dim=30, num_heads=4)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (61, 35), (8, 120)])
def test_a_stem_of_convolutions_gives_the_same_maps_as_patches(height, width):
    pixels = torch.randn(2, 3, height, width)
    maps = [MViT(**SMALL, stem=stem)(pixels) for stem in ("patches", "convolutions")]
    assert [m.shape for m in maps[0]] == [m.shape for m in maps[1]]


def test_a_stem_of_convolutions_halves_until_the_stride():
    with pytest.raises(ValueError, match="power of two"):
        MViT(**SMALL, stem="convolutions", patch_stride=6)
    assert MViT(**SMALL, stem="convolutions", patch_stride=2)(torch.randn(1, 3, 32, 32))[0].shape[-2:] == (
        16,
        16,
    )
