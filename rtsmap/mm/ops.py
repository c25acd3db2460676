"""The door to mmdet: serves the operator it needs from torchvision where mmcv has none compiled.

mmcv as installed from the package index comes without its compiled extension `mmcv._ext`. Cascade
Mask R-CNN needs one of its operators, nms, which torchvision has; RoIAlign is our own. `install_ops` puts
a stand-in module into the place of the extension; any other operator raises EngineError when called.
Nothing else in rtsmap imports mmdet, mmcv or mmengine before `load_mmdet` has run.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from typing import Any

from torch import Tensor

from rtsmap.errors import EngineError
from rtsmap.nets.vision import torchvision

EXTENSION = "mmcv._ext"


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indexes of the boxes (n, 4: x1, y1, x2, y2) that survive, best score first.

    With `offset` 1 a box's width is x2 - x1 + 1, the convention of whole-pixel boxes.
    """
    boxes = boxes.float()
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    kept: Tensor = torchvision.ops.nms(boxes, scores.float(), iou_threshold)
    return kept


SERVED: dict[str, Callable[..., Any]] = {"nms": nms}


class StandIn(types.ModuleType):
    """A module in the place of `mmcv._ext`: torchvision's operators, and an error for each other one."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return SERVED[name] if name in SERVED else _refuse(name)


def _refuse(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise EngineError(
            f"mmcv's operator '{name}' is not available: the installed mmcv has no compiled extension and "
            f"torchvision serves only {', '.join(SERVED)}. Install a compiled onedl-mmcv to use it."
        )

    return refuse


def install_ops() -> bool:
    """Make `mmcv.ops` importable; True when the stand-in serves, False for a compiled extension.

    Must run before the first import of `mmcv.ops`.
    """
    if EXTENSION not in sys.modules:
        try:
            importlib.import_module(EXTENSION)
        except ImportError:
            stand_in = StandIn(EXTENSION, "torchvision's operators under mmcv's names")
            stand_in.__spec__ = ModuleSpec(EXTENSION, loader=None)
            sys.modules[EXTENSION] = stand_in
    return isinstance(sys.modules[EXTENSION], StandIn)


class Later(types.ModuleType):
    """A module in the place of one that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def _sharded() -> types.ModuleType:
    """In the place of mmengine's wrapper of torch's sharded training, which rtsmap does without."""
    stand_in = types.ModuleType("mmengine.model.wrappers.fully_sharded_distributed")
    stand_in.MMFullyShardedDataParallel = type("MMFullyShardedDataParallel", (), {})  # type: ignore[attr-defined]
    return stand_in


def _strategies() -> types.ModuleType:
    """In the place of mmengine's strategies, of which its flexible runner wants one by name."""
    stand_in = types.ModuleType("mmengine._strategy")
    stand_in.BaseStrategy = type("BaseStrategy", (), {})  # type: ignore[attr-defined]
    return stand_in


@contextmanager
def _without_what_others_need() -> Iterator[None]:
    """Spare seconds of imports in every process of a run.

    Pyplot comes when it is asked for. Scikit-learn, which serves to follow things through videos, is hidden
    meanwhile and missed without complaint; so is what shards a training over many machines.
    """
    stand_ins = (Later("matplotlib.pyplot"), _sharded(), _strategies())
    instead: dict[str, Any] = {module.__name__: module for module in stand_ins}
    instead |= {"sklearn": None, "torch.distributed.optim": None}
    instead = {name: module for name, module in instead.items() if name not in sys.modules}
    sys.modules.update(instead)
    try:
        yield
    finally:
        for name, module in instead.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


@cache
def load_mmdet() -> None:
    """Import mmdet's models with working operators; raises EngineError when a package is missing."""
    try:
        with warnings.catch_warnings():
            # mmcv warns about its own moved modules, mmengine about torch's deprecations.
            warnings.simplefilter("ignore")
            with _without_what_others_need():
                importlib.import_module("mmcv")
                install_ops()
                importlib.import_module("mmdet.models")
    except ImportError as exc:
        raise EngineError(
            f"mmdet cannot be imported ({exc}); wanted onedl-mmdetection, onedl-mmengine and onedl-mmcv: "
            "pip install rtsmap installs them, 'rtsmap doctor' shows what is there"
        ) from exc
