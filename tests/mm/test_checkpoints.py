from __future__ import annotations

import collections
import contextlib
import os
import pickle
import struct
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision

from rtsmap.errors import WeightsError
from rtsmap.mm.backbones import branches_of, planes_of, take_branch
from rtsmap.mm.checkpoints import (
    fill,
    is_of_mobilenet,
    load_imagenet_guide,
    load_official_backbone,
    load_weights,
    read_official,
    read_weights,
    save_weights,
    take_pyramid,
)
from rtsmap.mm.recipe import StageConfig
from rtsmap.mm.register import build_network
from rtsmap.mm.stages import take_files
from rtsmap.nets.mvit import MViT
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec, Modality
from tests.mm.tiny import CONFIG, tiny_network


def branch(in_chans=3, seed=0):
    torch.manual_seed(seed)
    return MViT(in_chans=in_chans, embed_dim=16, stage_blocks=(1, 2, 1, 1), window=8)


def imagenet_file(path, source):
    """As facebookresearch/mvit writes: no norms of the pyramid, a head, the optimiser beside it."""
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("scale")}
    state |= {"norm.weight": torch.ones(128), "norm.bias": torch.zeros(128)}
    state |= {"head.projection.weight": torch.ones(1000, 128), "head.projection.bias": torch.zeros(1000)}
    torch.save({"epoch": 299, "model_state": state, "optimizer_state": {"lr": 0.1}}, path)
    return path


def detectron_file(path, source, protocol=2):
    """As Detectron2 publishes: numpy arrays of the whole detector, with an author."""
    arrays = {f"backbone.bottom_up.{name}": value.numpy() for name, value in source.state_dict().items()}
    arrays |= {
        "backbone.fpn_lateral2.weight": np.ones((256, 16, 1, 1), np.float32),
        "roi_heads.box_predictor.0.cls_score.bias": np.zeros(81, np.float32),
    }
    content = {"model": collections.OrderedDict(arrays), "__author__": "MViT", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def test_an_imagenet_checkpoint_fills_all_but_the_pyramids_norms(tmp_path):
    source, target = branch(seed=1), branch(seed=2)
    untouched = load_official_backbone(target, imagenet_file(tmp_path / "MViTv2_T_in1k.pyth", source))
    norms = [f"scale{n}_norm.{part}" for n in (2, 3, 4, 5) for part in ("bias", "weight")]
    assert untouched == norms
    assert_equal_weights(source, target, besides=norms)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_detection_checkpoint_fills_everything(tmp_path, protocol):
    source, target = branch(seed=1), branch(seed=2)
    torch.nn.init.normal_(source.scale3_norm.weight)
    path = detectron_file(tmp_path / "model_final_abc.pkl", source, protocol)
    assert load_official_backbone(target, path) == []
    assert_equal_weights(source, target)


def assert_equal_weights(source, target, besides=()):
    wanted = source.state_dict()
    for name, value in target.state_dict().items():
        assert name in besides or torch.equal(value, wanted[name]), name


def test_more_input_channels_start_silent_and_fewer_take_the_mean(tmp_path):
    source = branch(seed=1)
    path = imagenet_file(tmp_path / "m.pyth", source)
    pixels = torch.randn(1, 3, 32, 32)
    wider, single = branch(in_chans=5, seed=2), branch(in_chans=1, seed=2)
    load_official_backbone(wider, path)
    load_official_backbone(single, path)
    wanted = source.patch_embed(pixels)
    torch.testing.assert_close(wider.patch_embed(torch.cat([pixels, torch.randn(1, 2, 32, 32)], 1)), wanted)
    grey = pixels[:, :1]
    torch.testing.assert_close(
        single.patch_embed(grey), source.patch_embed(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("fusion", ["data_level", "residual_cross_attention"])
def test_planes_of_validity_start_silent_and_one_band_counts_as_three_copies(tmp_path, fusion):
    source = branch(seed=1)
    path = imagenet_file(tmp_path / "m.pyth", source)
    heights = Modality("terrain", TERRAIN.bands[:1])
    modalities = (OPTICAL_RGB, heights) if fusion == "data_level" else (heights, OPTICAL_RGB)
    network = tiny_network(
        InputSpec(4.0, modalities),
        fusion=fusion,
        stage_blocks=[1, 2, 1, 1],
        table_px=224,
        window=8,
        **{"terrain.embed_dim": 16},
    )
    kernels = source.patch_embed.proj.weight
    zeros = torch.zeros_like(kernels[:, :1])
    wanted = {
        "optical": [kernels, zeros] + [zeros, zeros] * (fusion == "data_level"),
        "terrain": [kernels.sum(1, keepdim=True), zeros],
    }
    for modality, one in branches_of(network).items():
        load_official_backbone(one, path, planes_of(network)[modality])
        torch.testing.assert_close(one.patch_embed.proj.weight, torch.cat(wanted[modality], 1))


def test_colours_are_seen_as_the_official_network_saw_imagenet(tmp_path):
    source, target, heights = branch(seed=1), branch(in_chans=4, seed=2), branch(seed=3)
    torch.nn.init.normal_(source.patch_embed.proj.bias)
    path = imagenet_file(tmp_path / "m.pyth", source)
    load_official_backbone(target, path, planes=[3], modality=OPTICAL_RGB)
    colours = torch.rand(1, 3, 40, 40)
    # as torchvision's transforms have it, and as a card of ours has it
    mean, sd = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    ours = [
        (255 * band - m.mean) / m.sd for band, m in zip(colours.unbind(1), OPTICAL_RGB.bands, strict=True)
    ]
    wanted = source.patch_embed((colours - mean) / sd)
    seen = target.patch_embed(torch.cat([torch.stack(ours, 1), torch.ones(1, 1, 40, 40)], 1))
    # the rim is padded with 0, which is another colour in each
    torch.testing.assert_close(seen[:, 1:-1, 1:-1], wanted[:, 1:-1, 1:-1], atol=1e-4, rtol=1e-4)
    load_official_backbone(heights, path, modality=TERRAIN)
    assert torch.equal(heights.patch_embed.proj.weight, source.patch_embed.proj.weight)


def detectron_detector(path, network):
    """As Detectron2 publishes a cascade on MViTv2: its names, heads with batch norm, 80 classes."""
    own = network.detector.state_dict()
    arrays = {f"backbone.bottom_up.{n}": v for n, v in branches_of(network)["optical"].state_dict().items()}
    for level in range(4):
        for kind in ("weight", "bias"):
            lateral, output = (own[f"neck.{part}_convs.{level}.conv.{kind}"] for part in ("lateral", "fpn"))
            arrays[f"backbone.fpn_lateral{level + 2}.{kind}"] = lateral
            arrays[f"backbone.fpn_output{level + 2}.{kind}"] = output
    rpn = "proposal_generator.rpn_head"
    for kind in ("weight", "bias"):
        for number in range(2):
            arrays[f"{rpn}.conv.conv{number}.{kind}"] = own[f"rpn_head.rpn_conv.{number}.conv.{kind}"]
        arrays[f"{rpn}.objectness_logits.{kind}"] = own[f"rpn_head.rpn_cls.{kind}"]
        arrays[f"{rpn}.anchor_deltas.{kind}"] = own[f"rpn_head.rpn_reg.{kind}"]
    arrays["roi_heads.box_head.0.conv1.norm.running_mean"] = torch.zeros(16)
    arrays["roi_heads.mask_head.predictor.weight"] = torch.zeros(80, 16, 1, 1)
    path.write_bytes(pickle.dumps({"model": {n: v.numpy() for n, v in arrays.items()}, "__author__": "MViT"}))
    return path


def test_a_detection_checkpoint_fills_pyramid_and_proposals_too(tmp_path):
    spec = InputSpec(4.0, (OPTICAL_RGB,))
    numbers = {k: v for k, v in CONFIG.items() if "." not in k}
    numbers |= {"fusion": "data_level", "rpn_convs": 2, "validity_plane": False}
    source, target = (build_network(numbers, spec) for _ in range(2))
    path = detectron_detector(tmp_path / "model_final.pkl", source)
    assert take_pyramid(target, path) == ["pyramid", "proposals"]
    assert_equal_weights(source.detector.neck, target.detector.neck)
    assert_equal_weights(source.detector.rpn_head, target.detector.rpn_head)
    stage = StageConfig("unimodal", "optical", backbone_weights={"optical": str(path)})
    assert take_files(target, stage) == [f"backbone 'optical', pyramid, proposals from {path}"]


def test_what_of_a_detector_does_not_fit_is_left_as_it_was(tmp_path):
    spec = InputSpec(4.0, (OPTICAL_RGB,))
    numbers = {k: v for k, v in CONFIG.items() if "." not in k} | {"fusion": "data_level"}
    source = build_network({**numbers, "rpn_convs": 2, "validity_plane": False}, spec)
    path = detectron_detector(tmp_path / "model_final.pkl", source)
    assert take_pyramid(build_network(numbers, spec), path) == ["pyramid"]
    assert take_pyramid(build_network({**numbers, "fpn_channels": 32, "rpn_convs": 2}, spec), path) == []
    assert take_pyramid(source, imagenet_file(tmp_path / "m.pyth", branch())) == []


class Runs:
    """What a malicious file holds: a call to make while it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("suffix", [".pkl", ".pyth"])
def test_a_checkpoint_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path, suffix):
    marker, path = tmp_path / "it ran", tmp_path / f"bad{suffix}"
    content = {"model": {"backbone.bottom_up.norm": np.ones(2)}, "x": Runs(marker)}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match="refused"):
        read_official(path)
    assert not marker.exists()


def test_arrays_of_objects_cannot_smuggle_calls(tmp_path):
    marker, path = tmp_path / "it ran", tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"model": {"x": np.array([Runs(marker)], dtype=object)}}))
    with pytest.raises(WeightsError, match="refused"):
        read_official(path)
    assert not marker.exists()


class Call:
    """A pickle that calls `function` with `arguments`, and sets the state of what comes back."""

    def __init__(self, function, arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def test_a_type_of_objects_that_calls_itself_one_of_numbers_is_refused(tmp_path):
    # with its flags set to 0, numpy takes bytes of the file for the address of an object
    kind = Call(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
    address = struct.pack("P", id("an object of this process"))
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"model": {"x": Call(np._core.multiarray.scalar, (kind, address))}}))
    with pytest.raises(WeightsError, match="refused: the pickle holds an array of 'object'"):
        read_official(path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_every_kind_of_number_and_order_are_read(tmp_path, protocol):
    arrays = {
        "columns first": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "big endian": np.arange(5, dtype=">f4"),
        "scalar": np.array(3, np.int64),
        "half": np.arange(4, dtype=np.float16),
    }
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "epoch": np.float64(3)}, protocol=protocol))
    read = read_official(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name].numpy(), array)


@pytest.mark.parametrize(("name", "content"), [
    ("a.pkl", b""),
    ("a.pkl", b"not a pickle"),
    ("a.pkl", pickle.dumps([1, 2])),
    ("a.pkl", pickle.dumps({"model": {"x": "y"}})),
    ("a.pyth", b"not torch's"),
    ("a.onnx", b""),
])  # fmt: skip
def test_broken_files_are_weights_errors_that_name_the_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        read_official(tmp_path / name)
    with pytest.raises(WeightsError, match="absent"):
        read_official(tmp_path / "absent.pkl")


def test_a_checkpoint_of_another_size_says_what_does_not_fit(tmp_path):
    torch.manual_seed(0)
    deeper = MViT(embed_dim=16, stage_blocks=(1, 2, 2, 1), window=8)
    path = imagenet_file(tmp_path / "m.pyth", deeper)
    with pytest.raises(WeightsError, match=r"backbone weights are missing, first 'blocks.4.proj.bias'"):
        load_official_backbone(branch(), path)
    wider = MViT(embed_dim=32, stage_blocks=(1, 2, 1, 1), window=8)
    with pytest.raises(WeightsError, match=r"not fit.* of another shape, first 'blocks.0.attn.norm_k.bias'"):
        load_official_backbone(wider, imagenet_file(tmp_path / "w.pyth", branch()))
    path = imagenet_file(tmp_path / "m.pyth", branch())
    with pytest.raises(WeightsError, match=r"backbone weights are missing, first 'blocks.5"):
        load_official_backbone(deeper, path)


def test_weights_return_from_disk_in_half_precision(tmp_path):
    network, other = tiny_network(seed=1), tiny_network(seed=2)
    save_weights(network, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    for name, value in other.state_dict().items():
        assert value.dtype == network.state_dict()[name].dtype
        torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-3, atol=1e-6)
    parameters = sum(p.numel() for p in network.parameters())
    assert (tmp_path / "w.safetensors").stat().st_size < 2.2 * parameters + 60_000
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_weights_too_large_for_half_precision_are_not_written(tmp_path):
    network = tiny_network()
    with torch.no_grad():
        network.detector.neck.lateral_convs[0].conv.bias[0] = 1e6
    with pytest.raises(WeightsError, match=r"half precision.*lateral_convs"):
        save_weights(network, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_faults_are_counted_and_the_first_is_named():
    layer = torch.nn.Linear(2, 3)
    with pytest.raises(WeightsError, match=r"f: .*1 keys missing, first 'bias'.*1 keys not in the network"):
        fill(layer, {"weight": torch.ones(3, 2), "gamma": torch.ones(1)}, "f")
    with pytest.raises(
        WeightsError, match=r"1 of another shape, first 'weight': got \(2, 3\), wanted \(3, 2\)"
    ):
        fill(layer, {"weight": torch.ones(2, 3), "bias": torch.ones(3)}, "f")


def test_a_file_that_is_not_safetensors_is_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        load_weights(tiny_network(), tmp_path / "w.safetensors")


def test_two_step_training_starts_as_the_optical_detector(tmp_path):
    shared = {name: value for name, value in CONFIG.items() if "." not in name}
    torch.manual_seed(3)
    shared["fusion"] = "data_level"
    optical = build_network(shared, InputSpec(4.0, (OPTICAL_RGB,)))
    terrain = build_network({**shared, "embed_dim": 8}, InputSpec(4.0, (TERRAIN,)))
    save_weights(optical, tmp_path / "optical.safetensors", half=False)
    save_weights(terrain, tmp_path / "terrain.safetensors", half=False)
    fused = tiny_network(seed=4)
    for modality in ("terrain", "optical"):
        weights = read_weights(tmp_path / f"{modality}.safetensors")
        take_branch(fused, weights, modality, modality, heads=True)
    branches = fused.detector.backbone.fusion.branches
    assert_equal_weights(optical.detector.backbone.fusion.branch, branches["optical"])
    assert_equal_weights(terrain.detector.backbone.fusion.branch, branches["terrain"])
    assert_equal_weights(optical.detector.roi_head, fused.detector.roi_head)
    assert_equal_weights(optical.detector.neck, fused.detector.neck)
    with pytest.raises(WeightsError, match="of another shape"):
        take_branch(fused, read_weights(tmp_path / "terrain.safetensors"), "optical", "there", heads=False)


class TestGuide:
    NUMBERS: ClassVar = {"in_chans": 4, "embed_dim": 16, "stage_blocks": (1, 1, 1, 1), "window": 8}

    def test_takes_torchvisions_file(self, tmp_path):
        model = torchvision.models.mobilenet_v2(weights=None)
        torch.save(model.state_dict(), tmp_path / "mobilenet.pth")
        assert is_of_mobilenet(tmp_path / "mobilenet.pth")
        branch = MViT(**self.NUMBERS, guide="mobilenet_v2")
        load_imagenet_guide(branch, tmp_path / "mobilenet.pth", OPTICAL_RGB)
        pixels = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.allclose(
                branch.guide.stages[0](pixels), model.eval().features[:4](pixels), atol=1e-5
            )

    def test_refuses_other_files_and_networks(self, tmp_path):
        torch.save({"features.0.0.weight": torch.zeros(1)}, tmp_path / "half.pth")
        with pytest.raises(WeightsError, match="not torchvision's mobilenet_v2"):
            load_imagenet_guide(
                MViT(**self.NUMBERS, guide="mobilenet_v2"), tmp_path / "half.pth", OPTICAL_RGB
            )
        with pytest.raises(WeightsError, match=r"set optical.guide = 'mobilenet_v2'"):
            load_imagenet_guide(MViT(**self.NUMBERS), tmp_path / "half.pth", OPTICAL_RGB)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("suffix", [".pyth", ".pkl"])
def test_damaged_official_files_end_in_a_sentence(tmp_path, suffix):
    rng = np.random.default_rng(0)
    path, whole = tmp_path / f"x{suffix}", tmp_path / "whole"
    if suffix == ".pyth":
        weights = {"model_state": {"a": torch.ones(3, 3)}}
        torch.save(weights, whole, _use_new_zipfile_serialization=False)
    else:
        whole.write_bytes(pickle.dumps({"model": {"a": np.ones((3, 3), np.float32)}}, protocol=2))
    for number in range(150):
        content = bytearray(whole.read_bytes())
        content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(content))] if number % 3 == 0 else content)
        with contextlib.suppress(WeightsError):
            read_official(path)
    for page in (b"", b"<html>404: not found</html>"):
        path.write_bytes(page)
        with pytest.raises(WeightsError, match=rf"x\{suffix}: not a"):
            read_official(path)
