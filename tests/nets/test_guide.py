"""A guide has torchvision's features, and adds nothing before it is trained."""

from __future__ import annotations

import pytest
import torch
import torchvision

from rtsmap.nets.guide import IMAGENET_MEAN, IMAGENET_SD, ConvGuide
from rtsmap.nets.mvit import MViT


@pytest.fixture(scope="module")
def mobilenet():
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(weights=None)
    # means and deviations that are not 0 and 1, so that folding them matters
    model.train()
    with torch.no_grad():
        model(torch.rand(4, 3, 64, 64))
    return model.eval()


def test_features_are_those_of_torchvision(mobilenet):
    guide = ConvGuide(3, (8, 16, 32, 64))
    guide.take_imagenet(mobilenet.state_dict())
    pixels = torch.randn(2, 3, 96, 64)
    features = pixels
    with torch.no_grad():
        for stage in guide.stages:
            features = stage(features)
        wanted = mobilenet.features[:18](pixels)
    assert torch.allclose(features, wanted, atol=1e-5)
    assert wanted.abs().max() > 0.01


def test_normalised_bands_become_those_of_imagenet():
    guide = ConvGuide(4, (8, 16, 32, 64))
    means, sds = (0.35, 0.4, 0.45), (0.1, 0.12, 0.14)
    guide.take_colours(means, sds)
    values = torch.rand(1, 3, 5, 7)
    ours = (values - torch.tensor(means)[:, None, None]) / torch.tensor(sds)[:, None, None]
    theirs = (values - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_SD)[:, None, None]
    seen = guide.colours(torch.cat([ours, torch.ones(1, 1, 5, 7)], dim=1))
    assert torch.allclose(seen, theirs, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (61, 94), (33, 127)])
def test_an_untrained_guide_changes_nothing(shape):
    numbers = {"in_chans": 3, "embed_dim": 16, "stage_blocks": (1, 1, 1, 1), "window": 8}
    torch.manual_seed(1)
    guided, alone = MViT(**numbers, guide="mobilenet_v2").eval(), MViT(**numbers).eval()
    own = alone.state_dict()
    alone.load_state_dict({k: v for k, v in guided.state_dict().items() if k in own})
    pixels = torch.randn(1, 3, *shape)
    for with_guide, without in zip(guided(pixels), alone(pixels), strict=True):
        assert torch.equal(with_guide, without)


def test_what_it_adds_is_learnt():
    guided = MViT(in_chans=3, embed_dim=16, stage_blocks=(1, 1, 1, 1), window=8, guide="mobilenet_v2")
    sum(part.square().sum() for part in guided(torch.randn(1, 3, 64, 64))).backward()
    assert all(join.weight.grad.abs().sum() > 0 for join in guided.guide.joins)


def test_a_guide_keeps_its_stride():
    with pytest.raises(ValueError, match="a guide needs patch_stride 4, got 2"):
        MViT(in_chans=3, embed_dim=16, patch_stride=2, guide="mobilenet_v2")
