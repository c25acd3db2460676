from __future__ import annotations

import pytest
import torch

from rtsmap.errors import OptionsError
from rtsmap.mm.backbones import branches_of, freeze_backbones, layer_factors, recompute_backbones
from rtsmap.mm.train import TrainOptions, _parameter_groups, learning_rate, rest
from tests.mm.tiny import squares, tiny_network


def test_partly_frozen_backbones_learn_above_the_frozen_stages_only():
    network = tiny_network(drop_path=0.5).train()
    freeze_backbones(network, 2)
    rest(network)
    inputs, targets = squares(2)
    sum(network.loss(inputs, targets).values()).backward()
    for branch in branches_of(network).values():
        for name, parameter in branch.named_parameters():
            frozen = name.startswith(("patch_embed", "blocks.0.", "blocks.1."))
            assert parameter.requires_grad != frozen, name
            assert (parameter.grad is None) == frozen, name
        assert not branch.blocks[1].training
        assert branch.blocks[2].training


def test_a_guide_is_frozen_as_far_as_its_backbone():
    network = tiny_network(guide="mobilenet_v2")
    freeze_backbones(network, 2)
    for branch in branches_of(network).values():
        for name, parameter in branch.guide.named_parameters():
            frozen = name.startswith(
                ("colours", *(f"{part}.{k}." for part in ("stages", "joins") for k in "01"))
            )
            assert parameter.requires_grad != frozen, name


def test_a_frozen_backbone_gives_the_same_maps_every_time():
    network = tiny_network(drop_path=0.5).train()
    inputs, _ = squares(2)
    freeze_backbones(network)
    rest(network)
    first, second = network.pyramid(inputs), network.pyramid(inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert network.detector.neck.training


def test_layers_learn_slower_the_deeper_they_lie():
    network = tiny_network()
    factors = layer_factors([name for name, _ in network.named_parameters()], 0.5)
    by_part = {}
    for name, factor in factors.items():
        by_part.setdefault(name.partition("fusion.")[2].split(".")[2], set()).add(factor)
        assert "fusion.branches." in name
    assert by_part["patch_embed"] == {0.5**5}
    assert by_part["blocks"] == {0.5**4, 0.5**3, 0.5**2, 0.5}
    assert by_part["scale5_norm"] == {0.5}
    assert layer_factors(["anything"], 1.0) == {}


def test_every_parameter_is_in_one_group_with_its_factor():
    network = tiny_network()
    options = TrainOptions(layer_decay=0.5, backbone_lr_factor=0.1)
    groups = _parameter_groups(network, None, options)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    assert {group["lr_factor"] for group in groups} == {1.0} | {0.1 * 0.5**n for n in range(1, 6)}


@pytest.mark.parametrize("fusion", ["residual_cross_attention", "convolution", "data_level"])
def test_the_factor_of_the_backbones_leaves_the_fusion_its_rate(fusion):
    network = tiny_network(fusion=fusion)
    groups = _parameter_groups(network, None, TrainOptions(backbone_lr_factor=0.1))
    factors = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        slow = name.startswith(("detector.backbone.fusion.branch.", "detector.backbone.fusion.branches."))
        assert factors[id(parameter)] == (0.1 if slow else 1.0), name


def test_the_step_schedule_falls_by_ten_where_it_is_told():
    options = TrainOptions(steps=100, warmup_steps=5, lr=1.0, schedule="step", step_at=(0.5, 0.8))
    rates = [learning_rate(options, step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[49:51] == pytest.approx([1.0, 0.1])
    assert rates[79:81] == pytest.approx([0.1, 0.01])
    with pytest.raises(OptionsError, match="schedule"):
        TrainOptions(schedule="linear")


def losses_and_gradients(network):
    """Of one batch under one seed, and the numbers that the backbones keep for the way back."""
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    torch.manual_seed(3)
    inputs, targets = squares(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.pyramid(inputs)
    torch.manual_seed(3)
    losses = network.loss(inputs, targets)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return losses, gradients, sum(kept), torch.rand(1)


@pytest.mark.parametrize("frozen_stages", [0, 2])
def test_recomputed_blocks_give_the_same_losses_and_gradients_and_keep_less(frozen_stages):
    def network():
        network = tiny_network(drop_path=0.5).train()
        if frozen_stages:
            freeze_backbones(network, frozen_stages)
        rest(network)
        return network

    plain, thrifty = network(), network()
    recompute_backbones(thrifty)
    losses, gradients, kept, after = losses_and_gradients(plain)
    again, same_gradients, kept_less, same_after = losses_and_gradients(thrifty)
    assert kept_less < 0.5 * kept
    assert losses.keys() == again.keys()
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert gradients.keys() == same_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    # what is drawn next is not moved by drawing once more
    assert torch.equal(after, same_after)
