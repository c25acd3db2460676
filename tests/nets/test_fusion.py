from __future__ import annotations

import pytest
import torch

from rtsmap.nets.cross_attention import CrossAttention, ResidualCrossAttention
from rtsmap.nets.fusion import FUSIONS, fusion_options
from rtsmap.nets.mvit import MViT
from rtsmap.nets.rival_fusions import DataLevel

BANDS = {"optical": 3, "terrain": 2, "spectral": 1}
WIDTHS = {"optical": 32, "terrain": 16, "spectral": 16}


def make_branch(name, in_chans):
    return MViT(in_chans=in_chans, embed_dim=WIDTHS[name], stage_blocks=(1, 1, 1, 1), window=8)


VARIANTS = [
    {"levels": (8, 16, 32)},
    {"mutual": True},
    {"interleaved": True},
    {"interleaved": True, "residual_to": "sum", "mutual": True, "levels": (8, 16)},
    {"residual_to": "sum"},
    {"key_pool": 2},
    {"mlp_ratio": 2.0, "levels": (8, 32)},
    {"key_pool": 3, "mutual": True, "levels": (4,)},
]


def make(kind, bands=BANDS, **options):
    torch.manual_seed(0)
    return FUSIONS[kind](bands, make_branch, **options).eval()


def awake(fusion):
    """Give the fusion's zero projections and biases something to say."""
    for name, parameter in fusion.named_parameters():
        if any(part in name for part in ("crossings", "returns", "projections", "mixers", "joints")):
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


def untrained_lead(fusion, inputs):
    pixels, valid = inputs["optical"]
    return run(fusion.branches["optical"], torch.cat([pixels, valid[:, None].float()], 1))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_starts_at_the_optical_network_and_moves_away_from_it(options):
    fusion, inputs = make("residual_cross_attention", **options), random_inputs()
    lead = untrained_lead(fusion, inputs)
    assert same(run(fusion, inputs), lead)
    met = options.get("levels", fusion.strides)
    if options.get("interleaved"):
        # what was answered at one stage goes on to all later ones
        met = [stride for stride in fusion.strides if stride >= min(met)]
    for stride, one, other in zip(fusion.strides, run(awake(fusion), inputs), lead, strict=True):
        assert torch.allclose(one, other) == (stride not in met)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_bears_a_missing_modality(options):
    fusion, inputs = awake(make("residual_cross_attention", **options)), random_inputs()
    valid = torch.ones(2, 72, 60, dtype=torch.bool)
    valid[1] = False
    gone = with_valid(with_valid(inputs, "terrain", valid), "spectral", valid)
    for one, alone in zip(run(fusion, gone), untrained_lead(fusion, inputs), strict=True):
        assert torch.equal(one[1], alone[1])


@pytest.mark.parametrize("kind", ["convolution", "squeeze_excitation", "cbam", "self_attention"])
def test_rivals_start_near_the_optical_network(kind):
    fusion, inputs = make(kind), random_inputs()
    for joint in fusion.joints:
        for name, parameter in joint.named_parameters():
            if "place" in name or name.startswith("channel.2"):
                torch.nn.init.zeros_(parameter)
    for one, alone in zip(run(fusion, inputs), untrained_lead(fusion, inputs), strict=True):
        assert (one - alone).std() < 0.5 * alone.std()


def test_cross_attention_without_residual_replaces_the_lead_only_where_others_saw():
    fusion, inputs = awake(make("cross_attention")), random_inputs()
    valid = torch.ones(2, 72, 60, dtype=torch.bool)
    valid[1] = False
    half = run(fusion, with_valid(with_valid(inputs, "terrain", valid), "spectral", valid))
    for one, alone in zip(half, untrained_lead(fusion, inputs), strict=True):
        assert torch.equal(one[1], alone[1])
        assert not torch.allclose(one[0], alone[0], atol=1e-2)


@pytest.mark.parametrize("kind", sorted(set(FUSIONS) - {"data_level"}))
def test_every_parameter_learns(kind):
    fusion, inputs = awake(make(kind)).train(), random_inputs()
    sum((m * torch.randn_like(m)).mean() for m in fusion(inputs)).backward()
    # softmax does not see what shifts all scores of a query alike
    idle = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in idle if "norm_k.bias" not in name and "key.bias" not in name]


def test_pooled_keys_are_the_means_of_what_was_seen():
    torch.manual_seed(3)
    pooled = CrossAttention(32, 16, window=8, head_dim=16, key_pool=2, silent=False)
    plain = CrossAttention(32, 16, window=4, head_dim=16, silent=False)
    state = {k: v for k, v in pooled.state_dict().items() if k != "bias"}
    plain.load_state_dict(state, strict=False)
    for attention in (pooled, plain):
        torch.nn.init.zeros_(attention.bias)
        attention.norm_k = torch.nn.Identity()
    asking, answering = torch.randn(1, 32, 8, 8), torch.randn(1, 16, 8, 8)
    asking = asking[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    everywhere = torch.ones(1, 32, 32, dtype=torch.bool)
    coarse = plain(asking[:, :, ::2, ::2], torch.nn.functional.avg_pool2d(answering, 2), everywhere)
    with torch.no_grad():
        assert torch.allclose(pooled(asking, answering, everywhere)[:, :, ::2, ::2], coarse, atol=1e-5)


def test_options_are_checked():
    assert fusion_options("data_level") == {}
    assert fusion_options("residual_cross_attention")["window"] == 8
    with pytest.raises(ValueError, match="strides"):
        make("residual_cross_attention", levels=(5,))
    with pytest.raises(ValueError, match="residual_to"):
        make("residual_cross_attention", residual_to="optical")
