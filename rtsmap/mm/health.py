"""Whether torch, torchvision and mmdet work here: small trials, for `rtsmap doctor`.

Each function gives (what was found, how to mend it); the second is empty when nothing is broken.
"""

from __future__ import annotations

import shutil
import sys
from importlib import metadata

import torch

PIP = f"{sys.executable} -m pip install --force-reinstall"


def torch_works() -> tuple[str, str]:
    """A matrix product on the CPU."""
    product = torch.ones(2, 3) @ torch.ones(3, 2)
    right = bool((product == 3).all())
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    state = f"{torch.__version__} ({build}), {torch.get_num_threads()} threads"
    return state, "" if right else f"a matrix product is wrong; {PIP} torch torchvision"


def torchvision_works() -> tuple[str, str]:
    """Its compiled operators: they are missing where torch and torchvision come from different builds."""
    mend = f"{PIP} torch torchvision (both from the same index)"
    try:
        from rtsmap.nets.vision import torchvision

        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [9.0, 9.0, 12.0, 12.0]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5).tolist()
    except (ImportError, RuntimeError, AttributeError) as exc:
        return f"its operators do not load: {str(exc).splitlines()[0]}", mend
    return torchvision.__version__, "" if kept == [1, 2] else mend


def gpu_works() -> tuple[str, str]:
    """An addition on every GPU that torch sees; none at all is no fault."""
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            mend = "update the NVIDIA driver, or install a torch build for CUDA (pytorch.org)"
            return "the machine has an NVIDIA driver, but torch cannot use it; the CPU is used", mend
        return "none seen by torch; the CPU is used", ""
    states = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        (torch.ones(1, device=f"cuda:{index}") + 1).item()
        states.append(f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    return "; ".join(states), ""


def mmdet_works() -> tuple[str, str]:
    """Importing mmdet, with the operators that rtsmap gives it."""
    from rtsmap.mm.ops import load_mmdet

    load_mmdet()
    names = ("onedl-mmdetection", "onedl-mmengine", "onedl-mmcv")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names), ""


def operators() -> tuple[str, str]:
    """Where nms and RoIAlign come from."""
    from rtsmap.mm.ops import install_ops

    if install_ops():
        return "served by torchvision (mmcv has no compiled extension here, none is needed)", ""
    return "mmcv's own compiled extension", ""
