from __future__ import annotations

import pytest
import torch

from rtsmap.errors import CardError
from rtsmap.mm.register import NetworkConfig, Target, enlarged, enlarged_shape, mask_targets
from rtsmap.rasters.bands import OPTICAL_RGB, InputSpec
from tests.mm.tiny import CONFIG, SPEC, squares, tiny_network


def flat_inputs(height, width, batch=1):
    valid = torch.ones(batch, height, width, dtype=torch.bool)
    return {name: (torch.randn(batch, 3, height, width), valid) for name in ("optical", "terrain")}


def every_detection(network):
    """Let detections of any score through."""
    network.detector.test_cfg.rcnn.score_thr = 0.0
    network.detector.roi_head.test_cfg.score_thr = 0.0
    return network.eval()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dimm": 32}, "unknown key 'embed_dimm'"),
        ({"terrain.fpn_channels": 32}, "unknown key 'terrain.fpn_channels'"),
        ({"branches": {}}, "unknown key 'branches'"),
        ({"embed_dim": "32"}, "'embed_dim' must be int"),
        ({"embed_dim": 32.5}, "'embed_dim' must be int"),
        ({"validity_plane": 1}, "'validity_plane' must be bool"),
        ({"enlarge": True}, "'enlarge' must be float"),
        ({"stage_blocks": [1, 1, 2]}, "four stage_blocks"),
        ({"stage_blocks": [1, 1, 2, 0]}, "four stage_blocks"),
        ({"cascade_iou": [0.5], "cascade_weights": [1.0, 0.5]}, "same length"),
        ({"fusion": ["cbam"]}, r"'fusion' must be str, got \['cbam'\]"),
        ({"fusion": "magic"}, "unknown fusion 'magic'; known: cbam, convolution"),
        ({"enlarge": 0}, "enlarge > 0"),
        ({"stem": "cement"}, "patches, convolutions, got 'cement'"),
        ({"fusion.magic": 1}, "unknown key 'fusion.magic'; known: .*fusion.window"),
        ({"fusion.window": 8.5}, "'fusion.window' must be int"),
        ({"fusion": "data_level", "fusion.window": 8}, "unknown key 'fusion.window'"),
    ],
)
def test_a_wrong_model_json_is_refused_with_its_key(changes, message):
    with pytest.raises(CardError, match=message):
        NetworkConfig.from_mapping(CONFIG | changes)


def test_numbers_for_a_modality_that_the_card_lacks_are_refused():
    with pytest.raises(CardError, match="modality terrain, but the card has optical"):
        tiny_network(InputSpec(4.0, (OPTICAL_RGB,)))


def test_options_of_a_fusion_reach_it():
    network = tiny_network(**{"fusion.levels": [8, 16], "fusion.mutual": True})
    fusion = network.detector.backbone.fusion
    assert (fusion.levels, fusion.mutual) == ((8, 16), True)
    with pytest.raises(CardError, match="strides"):
        tiny_network(**{"fusion.levels": [5]})


def test_keys_of_a_modality_shape_its_branch_only():
    network = tiny_network()
    branches = network.detector.backbone.fusion.branches
    assert branches["optical"].channels == (16, 32, 64, 128)
    assert branches["terrain"].channels == (8, 16, 32, 64)


def test_convolutions_before_the_proposals_are_counted():
    alone, pair = (tiny_network(**numbers).detector.rpn_head for numbers in ({}, {"rpn_convs": 2}))
    assert alone.rpn_conv.weight.shape == (16, 16, 3, 3)
    assert [module.conv.weight.shape for module in pair.rpn_conv] == [(16, 16, 3, 3)] * 2


def test_the_same_seed_gives_the_same_network():
    first, second = tiny_network(seed=5).state_dict(), tiny_network(seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_fused_detector_at_step_0_is_the_optical_detector():
    fused = every_detection(tiny_network())
    alone = CONFIG.copy()
    del alone["terrain.embed_dim"]
    from rtsmap.mm.register import build_network

    optical = every_detection(build_network(alone, InputSpec(4.0, (OPTICAL_RGB,))))
    weights = fused.state_dict()
    optical.load_state_dict({name: weights[name] for name in optical.state_dict()})
    inputs, _ = squares()
    for a, b in zip(fused.detect(inputs), optical.detect({"optical": inputs["optical"]}), strict=True):
        assert len(a.boxes) > 0
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.masks, b.masks)


@pytest.mark.parametrize("fusion", ["residual_cross_attention", "data_level"])
def test_a_tiny_network_learns_to_find_bright_squares(fusion):
    network = tiny_network(fusion=fusion, rois_per_chip=16).train()
    inputs, targets = squares(count=2, side=48)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(45):
        total = torch.stack(list(network.loss(inputs, targets).values())).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        losses.append(total.item())
    assert all(torch.isfinite(torch.tensor(losses)))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    for found, target in zip(network.eval().detect(inputs), targets, strict=True):
        assert found.scores[0] > 0.4
        assert box_iou(found.boxes[0], target.boxes[0]) > 0.5
        assert found.masks[0].mean() > 0.5


def box_iou(a, b):
    import torchvision

    return torchvision.ops.box_iou(a[None], b[None]).item()


def test_chips_without_slumps_and_with_ignored_ground_give_a_finite_loss():
    network = tiny_network().train()
    inputs, targets = squares()
    empty = Target(
        torch.zeros(0, 4), torch.zeros(0, 64, 64, dtype=torch.bool), torch.tensor([[0.0, 0, 30, 30]])
    )
    for batch in ([empty, *targets[1:]], [empty] * 3):
        losses = network.loss(inputs, batch)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert torch.isfinite(total)


def test_ground_to_ignore_is_not_learnt_as_background():
    network = tiny_network().train()
    inputs, _ = squares()
    nothing = torch.zeros(0, 4), torch.zeros(0, 64, 64, dtype=torch.bool)
    whole = torch.tensor([[-500.0, -500, 600, 600]])
    ignored = network.loss(inputs, [Target(*nothing, whole)] * 3)
    judged = network.loss(inputs, [Target(*nothing)] * 3)
    assert judged["loss_rpn_cls"] > 0.1
    assert ignored["loss_rpn_cls"] == 0


def test_ground_to_ignore_takes_no_boxes_from_a_slump_on_it():
    from mmengine.structures import InstanceData

    network = tiny_network()
    assigner = network.detector.rpn_head.assigner
    slump = InstanceData(bboxes=torch.tensor([[40.0, 30, 80, 70]]), labels=torch.zeros(1, dtype=torch.long))
    boxes = torch.tensor([[40.0, 30, 80, 70], [42, 33, 84, 72], [90, 90, 110, 110], [120, 120, 150, 150]])
    # the box of an L-shaped region, whose notch holds the slump
    around = InstanceData(bboxes=torch.tensor([[0.0, 0, 112, 112]]))
    nothing = InstanceData(bboxes=torch.zeros(0, 4))
    assigned = [
        assigner.assign(InstanceData(priors=boxes), slump, ignored).gt_inds.tolist()
        for ignored in (nothing, around)
    ]
    assert assigned == [[1, 1, 0, 0], [1, 1, -1, 0]]


@pytest.mark.parametrize("shape", [(3, 5), (32, 32), (37, 90), (150, 61)])
def test_any_chip_shape_can_be_searched(shape):
    (found,) = every_detection(tiny_network()).detect(flat_inputs(*shape))
    assert 0 < len(found.boxes) == len(found.scores) == len(found.masks)
    assert found.boxes.min() >= 0
    assert found.boxes[:, [0, 2]].max() <= shape[1]
    assert found.boxes[:, [1, 3]].max() <= shape[0]
    assert found.masks.shape[1:] == (28, 28)
    assert 0 <= found.masks.min() <= found.masks.max() <= 1


def test_nothing_found_is_an_empty_answer():
    (found,) = tiny_network(min_score=0.99).eval().detect(flat_inputs(48, 48))
    assert found.boxes.shape == (0, 4)
    assert len(found.scores) == len(found.masks) == 0


def test_enlarging_looks_closer_and_answers_in_chip_pixels():
    seen = []
    network = every_detection(tiny_network(enlarge=2.0))
    network.detector.backbone.register_forward_pre_hook(
        lambda _, args: seen.append(args[0]["optical"][0].shape)
    )
    (found,) = network.detect(flat_inputs(40, 56))
    assert seen == [(1, 3, 80, 112)]
    assert found.boxes[:, [0, 2]].max() <= 56
    assert found.boxes[:, [1, 3]].max() <= 40
    losses = network.train().loss(*squares())
    assert all(torch.isfinite(part) for part in losses.values())


def test_enlarging_does_not_smear_missing_pixels_over_valid_ones():
    pixels, valid = torch.full((1, 1, 8, 8), 5.0), torch.ones(1, 8, 8, dtype=torch.bool)
    valid[0, :, 4:] = False
    pixels[0, 0, :, 4:] = float("nan")
    larger, mask = enlarged({"optical": (pixels, valid)}, 2.0)["optical"]
    assert torch.isfinite(larger).all()
    assert torch.equal(larger[:, 0][mask], torch.full_like(larger[:, 0][mask], 5.0))
    assert mask[0, :, :7].all()
    assert not mask[0, :, 8:].any()


@pytest.mark.parametrize("factor", [0.29, 0.5, 0.7, 1.3, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("side", [64, 99, 100, 101])
def test_enlarging_leaves_every_place_where_boxes_say_it_is(side, factor):
    across = (torch.arange(side) + 0.5).expand(side, side)
    places = torch.stack([across, across.mT])[None]
    larger, _ = enlarged({"optical": (places, torch.ones(1, side, side, dtype=torch.bool))}, factor)[
        "optical"
    ]
    rows, cols = enlarged_shape(side, side, factor)
    assert larger.shape[-2:] == (rows, cols)
    assert -1e-6 < side * factor - cols < 1
    # beyond the outermost pixels there is nothing to go between
    inner = torch.arange(cols)[4:-4]
    wanted = ((inner + 0.5) / factor).expand(rows - 8, -1)
    torch.testing.assert_close(larger[0, 0, 4:-4, 4:-4], wanted, atol=0.02, rtol=0)
    torch.testing.assert_close(larger[0, 1, 4:-4, 4:-4], wanted.mT, atol=0.02, rtol=0)


def test_mask_targets_are_the_truth_under_each_box():
    masks = torch.zeros(2, 40, 50, dtype=torch.bool)
    masks[0, 10:20, 5:25] = True
    masks[1, 30:40, 40:50] = True
    boxes = torch.tensor([[5.0, 10, 25, 20], [15, 10, 35, 20], [40, 30, 50, 40]])
    targets = mask_targets(masks, torch.tensor([0, 0, 1]), boxes, 28)
    assert targets.shape == (3, 28, 28)
    # half a pixel of blur at the corner of the truth
    assert targets[0].mean() > 0.99
    assert targets[2].mean() > 0.99
    assert targets[1][:, :13].mean() > 0.99
    assert targets[1][:, 15:].mean() == 0
    assert SPEC.names == ("optical", "terrain")
