from __future__ import annotations

import pytest
import torch

from rtsmap.nets.fusion import FUSIONS, DataLevel, ResidualCrossAttention
from rtsmap.nets.mvit import MViT

BANDS = {"optical": 3, "terrain": 2, "spectral": 1}
WIDTHS = {"optical": 32, "terrain": 16, "spectral": 16}


def make_branch(name, in_chans):
    return MViT(in_chans=in_chans, embed_dim=WIDTHS[name], stage_blocks=(1, 1, 1, 1), window=8)


def make(kind, bands=BANDS):
    torch.manual_seed(0)
    return FUSIONS[kind](bands, make_branch).eval()


def awake(fusion):
    """Give the fusion's zero projections and biases something to say."""
    for name, parameter in fusion.named_parameters():
        if "crossings" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return fusion


def random_inputs(height=72, width=60, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(batch, bands, height, width, generator=generator),
            torch.ones(batch, height, width, dtype=torch.bool),
        )
        for name, bands in BANDS.items()
    }


def with_valid(inputs, name, valid, fill=None):
    pixels = inputs[name][0].clone()
    if fill is not None:
        pixels.masked_fill_(~valid[:, None], fill)
    return {**inputs, name: (pixels, valid)}


def run(fusion, inputs):
    with torch.no_grad():
        return fusion(inputs)


def same(maps, others):
    return all(torch.equal(a, b) for a, b in zip(maps, others, strict=True))


@pytest.mark.parametrize("kind", sorted(FUSIONS))
def test_one_signature_four_maps(kind):
    fusion = make(kind)
    maps = run(fusion, random_inputs())
    assert [m.shape[1] for m in maps] == list(fusion.channels) == [32, 64, 128, 256]
    assert list(fusion.strides) == [4, 8, 16, 32]
    assert [tuple(m.shape[2:]) for m in maps] == [(18, 15), (9, 8), (5, 4), (3, 2)]


def test_at_step_0_fused_is_the_optical_network_exactly():
    fusion, inputs = make("residual_cross_attention"), random_inputs()
    alone = ResidualCrossAttention({"optical": 3}, make_branch).eval()
    alone.branches["optical"].load_state_dict(fusion.branches["optical"].state_dict())
    assert same(run(fusion, inputs), run(alone, {"optical": inputs["optical"]}))


def test_a_present_modality_contributes_once_trained():
    fusion, inputs = awake(make("residual_cross_attention")), random_inputs()
    other = {**inputs, "terrain": (inputs["terrain"][0] + 1, inputs["terrain"][1])}
    for a, b in zip(run(fusion, inputs), run(fusion, other), strict=True):
        assert not torch.allclose(a, b, atol=1e-3)


def test_a_missing_modality_contributes_exactly_nothing():
    fusion, inputs = awake(make("residual_cross_attention")), random_inputs()
    nothing = torch.zeros(2, 72, 60, dtype=torch.bool)
    gone = with_valid(with_valid(inputs, "terrain", nothing), "spectral", nothing)
    lead = run(fusion.branches["optical"], torch.cat([inputs["optical"][0], torch.ones(2, 1, 72, 60)], 1))
    assert same(run(fusion, gone), lead)
    # only one chip of the batch misses it: the batch makes the auxiliary branch run all the same
    half = torch.ones(2, 72, 60, dtype=torch.bool)
    half[1] = False
    mixed = run(fusion, with_valid(with_valid(inputs, "terrain", half), "spectral", half))
    assert all(torch.equal(m[1], a[1]) for m, a in zip(mixed, lead, strict=True))
    assert not any(torch.allclose(m[0], a[0], atol=1e-3) for m, a in zip(mixed, lead, strict=True))


@pytest.mark.parametrize("kind", sorted(FUSIONS))
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e6])
@pytest.mark.parametrize("name", ["optical", "terrain"])
def test_garbage_in_invalid_pixels_changes_nothing(kind, garbage, name):
    fusion, inputs = awake(make(kind)), random_inputs()
    valid = torch.ones(2, 72, 60, dtype=torch.bool)
    valid[0, 10:50, 20:55] = False
    valid[1] = False
    zeros = run(fusion, with_valid(inputs, name, valid, 0.0))
    dirty = run(fusion, with_valid(inputs, name, valid, garbage))
    assert same(zeros, dirty)
    assert all(torch.isfinite(m).all() for m in dirty)


def test_data_level_sees_which_pixels_are_missing():
    fusion = make("data_level")
    assert isinstance(fusion, DataLevel)
    inputs = random_inputs()
    inputs["terrain"] = (torch.zeros_like(inputs["terrain"][0]), inputs["terrain"][1])
    nothing = torch.zeros(2, 72, 60, dtype=torch.bool)
    seen, missing = run(fusion, inputs), run(fusion, with_valid(inputs, "terrain", nothing))
    assert not same(seen, missing)


def test_the_batch_does_not_mix():
    fusion, inputs = awake(make("residual_cross_attention")), random_inputs(batch=3)
    alone = {name: (pixels[1:2], valid[1:2]) for name, (pixels, valid) in inputs.items()}
    for together, one in zip(run(fusion, inputs), run(fusion, alone), strict=True):
        torch.testing.assert_close(together[1:2], one, atol=1e-4, rtol=0)


def test_fusion_learns_from_the_first_step():
    fusion, inputs = make("residual_cross_attention").train(), random_inputs()
    sum((m * torch.randn_like(m)).mean() for m in fusion(inputs)).backward()
    for crossing in fusion.crossings["terrain"]:
        assert crossing.project.weight.grad.abs().sum() > 0
