"""Weights on disk: our own safetensors files, and the official MViTv2 checkpoints read without trust.

Official files come as `.pyth` (torch's format, ImageNet classification, key `model_state`) and `.pkl`
(a pickle of numpy arrays, Detectron2 detection, key `model`). A pickle can run code, so the first is
read by torch with `weights_only` and the second by an unpickler that can rebuild arrays and nothing else.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rtsmap.errors import WeightsError
from rtsmap.mm.register import SlumpNetwork
from rtsmap.mm.writing import written_whole
from rtsmap.nets.guide import IMAGENET_MEAN, IMAGENET_SD
from rtsmap.nets.mvit import MViT
from rtsmap.rasters.bands import OPTICAL_RGB, Modality

Weights = dict[str, Tensor]

_NUMBERS = "fiub"

_RPN = "proposal_generator.rpn_head"
_DETECTOR_PARTS: Mapping[str, Mapping[str, str]] = {
    "pyramid": {
        f"backbone.fpn_{theirs}{level + 2}": f"neck.{mine}.{level}.conv"
        for theirs, mine in (("lateral", "lateral_convs"), ("output", "fpn_convs"))
        for level in range(4)
    },
    "proposals": {
        **{f"{_RPN}.conv.conv{number}": f"rpn_head.rpn_conv.{number}.conv" for number in range(2)},
        f"{_RPN}.objectness_logits": "rpn_head.rpn_cls",
        f"{_RPN}.anchor_deltas": "rpn_head.rpn_reg",
    },
}
"""Modules of Detectron2's detector, and ours that compute the same."""


def save_weights(network: nn.Module, path: Path, *, half: bool = True) -> None:
    """Write a network's weights under a temporary name, then rename; floats in half precision."""
    weights = {
        name: (value.half() if half and value.dtype.is_floating_point else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    broken = [name for name, value in weights.items() if not torch.isfinite(value.float()).all()]
    if broken:
        raise WeightsError(f"{path}: {len(broken)} tensors do not fit half precision, first {broken[0]}")
    with written_whole(path) as temporary:
        save_file(weights, temporary)


def read_weights(path: Path) -> Weights:
    """All tensors of a safetensors file, floats in single precision. Raises WeightsError."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as exc:
        raise WeightsError(f"{path}: not a readable safetensors file ({exc})") from exc
    return {k: v.float() if v.dtype.is_floating_point else v for k, v in weights.items()}


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network from a safetensors file; every key and shape must fit. Raises WeightsError."""
    fill(network, read_weights(path), str(path))


def fill(module: nn.Module, weights: Mapping[str, Tensor], where: str, *, partial: bool = False) -> None:
    """load_state_dict with a letter: which keys are missing, too many or of another shape.

    `partial` allows missing keys.
    """
    own = module.state_dict()
    missing = [] if partial else sorted(set(own) - set(weights))
    strange = sorted(set(weights) - set(own))
    bent = sorted(k for k in set(own) & set(weights) if own[k].shape != weights[k].shape)
    faults = []
    for what, names in (("missing", missing), ("not in the network", strange)):
        if names:
            faults.append(f"{len(names)} keys {what}, first '{names[0]}'")
    if bent:
        got, wanted = tuple(weights[bent[0]].shape), tuple(own[bent[0]].shape)
        faults.append(f"{len(bent)} of another shape, first '{bent[0]}': got {got}, wanted {wanted}")
    if faults:
        raise WeightsError(
            f"{where}: the weights do not fit the network: {'; '.join(faults)}. "
            "They belong to another configuration"
        )
    module.load_state_dict(dict(weights), strict=not partial)


# Official checkpoints


def read_official(path: Path) -> Weights:
    """Tensors of an official `.pyth` or `.pkl` file under their own names. Raises WeightsError."""
    readers = {".pyth": _read_pyth, ".pth": _read_pyth, ".pkl": _read_pkl}
    if path.suffix not in readers:
        raise WeightsError(f"{path}: wanted a .pyth, .pth or .pkl checkpoint")
    try:
        return readers[path.suffix](path)
    except OSError as exc:
        raise WeightsError(f"{path}: cannot be read ({exc})") from exc


def _read_pyth(path: Path) -> Weights:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as exc:  # a broken pickle can raise anything
        raise WeightsError(
            f"{path}: not a plain checkpoint; files that hold more than tensors are refused "
            f"({first_line(exc)})"
        ) from exc
    return _tensors(content, "model_state", path)


def first_line(exc: Exception) -> str:
    """What an error says first, or its kind when it says nothing."""
    return next(iter(str(exc).splitlines()), type(exc).__name__)


def _read_pkl(path: Path) -> Weights:
    with path.open("rb") as file:
        try:
            content = ArrayUnpickler(file, encoding="latin1").load()
        except WeightsError as exc:
            raise WeightsError(f"{path}: {exc}") from exc
        except Exception as exc:  # a broken pickle can raise anything
            raise WeightsError(f"{path}: not a readable pickle ({type(exc).__name__}: {exc})") from exc
    return _tensors(content, "model", path)


def _tensors(content: Any, key: str, path: Path) -> Weights:
    if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
        content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path}: wanted a mapping of tensors, at '{key}' or at the top")
    weights = {}
    for name, value in content.items():
        if isinstance(value, PickledArray):
            # torch takes the machine's own byte order only
            array = value.array.astype(value.array.dtype.newbyteorder("="))
            weights[str(name)] = torch.from_numpy(array)
        elif isinstance(value, Tensor):
            weights[str(name)] = value
    if not weights:
        raise WeightsError(f"{path}: holds no tensors at '{key}'")
    return weights


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and numpy arrays of numbers; all else is refused, not run.

    Numpy's own types are not handed to the pickle: it sets their state, and a type of objects that calls
    itself one of numbers would read bytes of the file as addresses. Arrays come as `PickledArray`.
    """

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Only the names by which numpy arrays are rebuilt, each served by a harmless stand-in."""
        module = module.replace("numpy._core", "numpy.core")
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy", "ndarray"): PickledArray,
            ("numpy", "dtype"): _PickledType,
            ("numpy.core.multiarray", "_reconstruct"): PickledArray,
            ("numpy.core.multiarray", "scalar"): _scalar,
            ("numpy.core.numeric", "_frombuffer"): _frombuffer,
            ("_codecs", "encode"): _encode,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in allowed:
            raise WeightsError(f"refused: the pickle wants to call {module}.{name}, which is no numpy array")
        return allowed[module, name]


class _PickledType:
    """In the place of numpy's dtype: kind, size and byte order of numbers, and nothing else of its state."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in _NUMBERS:
            raise WeightsError(f"refused: the pickle holds an array of '{self.dtype}', wanted numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """The byte order, second of what numpy writes."""
        if state[1] in {"<", ">"}:
            self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray:
    """In the place of numpy's array, which a pickle makes empty and then fills with its state."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray[Any, Any] = np.zeros(0, np.int8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Version, shape, type, whether columns come first, and bytes, as numpy writes them."""
        _, shape, kind, by_columns, data = state
        self.array = _filled(data, kind, shape, "F" if by_columns else "C")


def _encode(text: str, _codec: str = "latin1") -> bytes:
    """Bytes as old pickle protocols write them: a string of the same code points."""
    return text.encode("latin1")


def _scalar(kind: _PickledType, data: bytes | str) -> Any:
    return _filled(data, kind, (1,), "C")[0]


def _frombuffer(data: Any, kind: _PickledType, shape: tuple[int, ...], order: str) -> PickledArray:
    made = PickledArray()
    made.array = _filled(data, kind, shape, order)
    return made


def _filled(
    data: Any, kind: _PickledType, shape: tuple[int, ...], order: str
) -> np.ndarray[Any, np.dtype[Any]]:
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def load_official_backbone(
    branch: MViT, path: Path, planes: Collection[int] = (), modality: Modality | None = None
) -> list[str]:
    """Fill a branch from an official file; gives the names that stay as they were.

    Only `scale*_norm` may be absent (ImageNet files have none). Weights of the classification head are
    left out; the patch embedding is widened to the bands, and the input channels `planes`, which hold
    validity, start silent. A `modality` that begins with red, green and blue is seen as the file's network
    saw ImageNet, which is normalised with other figures. Raises WeightsError when anything else does not fit.
    """
    weights = backbone_keys(read_official(path))
    kernel, bias = "patch_embed.proj.weight", "patch_embed.proj.bias"
    if kernel in weights:
        if modality is not None and bias in weights and _shows_colours(modality, weights[kernel]):
            weights[kernel], weights[bias] = _as_imagenet(weights[kernel], weights[bias], modality)
        weights[kernel] = widen_input(weights[kernel], branch.in_chans, planes)
    own = set(branch.state_dict())
    untouched = sorted(own - set(weights))
    lost = [name for name in untouched if not name.startswith("scale")]
    if lost:
        raise WeightsError(f"{path}: {len(lost)} backbone weights are missing, first '{lost[0]}'")
    fill(branch, weights, str(path), partial=True)
    return untouched


def _shows_colours(modality: Modality, kernel: Tensor) -> bool:
    return kernel.shape[1] == 3 and modality.band_names[:3] == OPTICAL_RGB.band_names


def _as_imagenet(kernel: Tensor, bias: Tensor, modality: Modality) -> tuple[Tensor, Tensor]:
    """A convolution of colours normalised as ImageNet is, as one of those normalised as the modality is."""
    figures = [(band.mean / 255, band.sd / 255) for band in modality.bands[:3]]
    mean, sd = kernel.new_tensor(figures).T[..., None, None]
    usual_mean, usual_sd = kernel.new_tensor([IMAGENET_MEAN, IMAGENET_SD])[..., None, None]
    shift = (kernel * ((mean - usual_mean) / usual_sd)).sum(dim=(1, 2, 3))
    return kernel * (sd / usual_sd), bias + shift


def take_pyramid(network: SlumpNetwork, path: Path) -> list[str]:
    """Fill pyramid and proposals from a Detectron2 detector of the same make; gives the names of what fits.

    Its heads are left out: their norms and classes are others. A file without a detector fills nothing.
    """
    weights, own = read_official(path), network.detector.state_dict()
    taken = []
    for part, names in _DETECTOR_PARTS.items():
        there = {
            f"{mine}.{kind}": weights.get(f"{theirs}.{kind}")
            for theirs, mine in names.items()
            for kind in ("weight", "bias")
        }
        found = {
            name: value.float()
            for name, value in there.items()
            if value is not None and name in own and value.shape == own[name].shape
        }
        if len(found) == len(there):
            fill(network.detector, found, str(path), partial=True)
            taken.append(part)
    return taken


def load_imagenet_guide(branch: MViT, path: Path, modality: Modality) -> None:
    """Fill the guide of a branch from torchvision's `mobilenet_v2`; raises WeightsError.

    `modality` says how its bands are normalised: the first three are taken for red, green and blue.
    """
    if branch.guide is None:
        raise WeightsError(f"{path}: MobileNetV2 fills a guide; set {modality.name}.guide = 'mobilenet_v2'")
    try:
        branch.guide.take_imagenet(read_official(path))
    except RuntimeError as exc:
        raise WeightsError(f"{path}: not torchvision's mobilenet_v2 ({str(exc).splitlines()[0]})") from exc
    bands = modality.bands[:3]
    branch.guide.take_colours([band.mean / 255 for band in bands], [band.sd / 255 for band in bands])


def is_of_mobilenet(path: Path) -> bool:
    """Whether a checkpoint has the names that torchvision's MobileNetV2 has."""
    return "features.0.0.weight" in read_official(path)


def backbone_keys(weights: Mapping[str, Tensor]) -> Weights:
    """Backbone weights of an official checkpoint under our names."""
    prefix = "backbone.bottom_up."
    if any(name.startswith(prefix) for name in weights):
        weights = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    left_out = ("norm.", "head.", "cls_token", "pos_embed")
    return {n: v.float() for n, v in weights.items() if not n.startswith(left_out)}


def widen_input(kernel: Tensor, in_chans: int, planes: Collection[int] = ()) -> Tensor:
    """A patch embedding (dim, c, k, k) for `in_chans` channels, of which `planes` are no bands: zeros.

    More bands than c are zeros, too; fewer share the sum, so that one band counts as its copies would.
    """
    bands = [channel for channel in range(in_chans) if channel not in planes]
    if len(bands) < kernel.shape[1]:
        kernel = kernel.sum(dim=1, keepdim=True).expand(-1, len(bands), -1, -1) / len(bands)
    wide = kernel.new_zeros(len(kernel), in_chans, *kernel.shape[2:])
    wide[:, bands[: kernel.shape[1]]] = kernel
    return wide
