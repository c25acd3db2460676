from __future__ import annotations

import subprocess
import sys
import types

import numpy as np
import pytest
import torch
import torchvision

from rtsmap.errors import EngineError
from rtsmap.mm import ops

ops.load_mmdet()


def random_boxes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 80
    size = torch.rand(count, 2, generator=generator) * 40 + 1
    return torch.cat([corner, corner + size], dim=1), torch.rand(count, generator=generator)


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_mmcvs_nms_equals_torchvisions(threshold):
    from mmcv.ops import nms

    boxes, scores = random_boxes(600)
    kept, indexes = nms(boxes, scores, threshold)
    wanted = torchvision.ops.nms(boxes, scores, threshold)
    assert 20 < len(wanted) < 590
    assert torch.equal(indexes, wanted)
    assert torch.equal(kept, torch.cat([boxes[wanted], scores[wanted, None]], dim=1))


def test_nms_with_offset_counts_whole_pixels():
    from mmcv.ops import nms

    boxes, scores = random_boxes(60, seed=1)
    boxes = boxes.round()
    _, indexes = nms(boxes, scores, 0.5, offset=1)
    assert indexes.tolist() == slow_nms(boxes.numpy(), scores.numpy(), 0.5)


def slow_nms(boxes, scores, threshold):
    """Greedy suppression, written out with whole-pixel boxes."""
    kept = []
    for i in np.argsort(-scores):
        overlaps = []
        for j in kept:
            width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]) + 1
            height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]) + 1
            shared = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (boxes[i], boxes[j])]
            overlaps.append(shared / (sum(areas) - shared))
        if all(o <= threshold for o in overlaps):
            kept.append(int(i))
    return kept


def test_mmdets_batched_nms_keeps_levels_apart():
    from mmcv.ops import batched_nms

    boxes, scores = random_boxes(200, seed=2)
    levels = torch.arange(200) % 3
    kept, indexes = batched_nms(boxes, scores, levels, {"type": "nms", "iou_threshold": 0.5})
    wanted = torchvision.ops.batched_nms(boxes, scores, levels, 0.5)
    assert set(indexes.tolist()) == set(wanted.tolist())
    assert torch.equal(kept[:, :4], boxes[indexes])


def test_other_operators_say_what_is_missing_when_called():
    if not ops.install_ops():
        pytest.skip("mmcv has its compiled extension here")
    from mmcv.ops import soft_nms

    boxes, scores = random_boxes(5)
    with pytest.raises(EngineError, match=r"'softnms' is not available.*compiled onedl-mmcv"):
        soft_nms(boxes, scores)


def test_a_compiled_extension_is_left_in_its_place(monkeypatch):
    compiled = types.ModuleType(ops.EXTENSION)
    monkeypatch.setitem(sys.modules, ops.EXTENSION, compiled)
    assert not ops.install_ops()
    assert sys.modules[ops.EXTENSION] is compiled


def test_a_missing_package_is_named(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(ops.importlib, "import_module", broken)
    with pytest.raises(EngineError, match="onedl-mmdetection"):
        ops.load_mmdet.__wrapped__()


def test_mmdet_imports_without_a_warning():
    script = (
        "import warnings; warnings.simplefilter('error'); from rtsmap.mm.ops import load_mmdet; load_mmdet()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == done.stderr == ""


def test_torchs_compiler_and_scikit_learn_are_there_for_those_who_ask():
    program = """
import sys
from rtsmap.mm.ops import load_mmdet
load_mmdet()
assert not {"torch._dynamo", "sklearn", "matplotlib.pyplot"} & set(sys.modules)
import sklearn.gaussian_process, torch, torch._dynamo.utils, torchvision
assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
torch.use_deterministic_algorithms(True)
rois = torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2)
assert rois.shape == (1, 1, 2, 2)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
